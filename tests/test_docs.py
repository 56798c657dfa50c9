"""README and docs are true because they are checked: commands, paths, links, keys, choices and examples."""

import ast
import importlib
import importlib.util
import itertools
import re
import subprocess
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from thinner.config import load_params
from thinner.networks.spec import NetworkSpec
from thinner.params import Augmentation, Params, Training

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "data/raw/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
GRAPH = yaml.safe_load((ROOT / "dvc.yaml").read_text())
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text())

NOT_KEYS = {"data.sha256", "prune.target.params"}  # a tag of MLflow's; a target in place of prune.target.macs
NOT_PATHS = {
    "thinner/nightly",
    "thinner/on-new-data",
    "origin/main",
    "origin/thinner/nightly",
    "torchvision/",
    "extra/metadata.json",
}  # Prefect deployments; branches; a folder; a place in a pt2 archive
METRIC = re.compile(r"(test|train|val|claims|system)/[\w/]+")  # MLflow's: test/accuracy
SUFFIXES = {
    "csv",
    "db",
    "html",
    "json",
    "lock",
    "md",
    "npy",
    "npz",
    "onnx",
    "py",
    "safetensors",
    "toml",
    "yaml",
}

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def fences(page: Path, *languages: str) -> list[str]:
    """The fenced blocks in one of the languages; "" is a block that names none."""
    found = re.findall(r"^( *)```(\w*)\n(.*?)^\1```", page.read_text(), re.MULTILINE | re.DOTALL)
    return [text for _, language, text in found if language in languages]


def spans(page: Path) -> list[str]:
    prose = re.sub(r"^( *)```.*?^\1```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", prose)


def commands(page: Path) -> list[str]:
    """Whatever a reader may type: shell blocks, indented lines, inline code; without comments."""
    prose = re.sub(r"^( *)```.*?^\1```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    lines = itertools.chain(
        *(block.splitlines() for block in fences(page, "", "sh")),
        re.findall(r"^ {4,}(.*)$", prose, re.MULTILINE),
        spans(page),
    )
    parts = itertools.chain(*(re.split(r"&&|;", line.split(" #")[0]) for line in lines))
    return [part.strip() for part in parts if part.strip()]


# ------------------------------------------------------------------------------------------------ commands


@every_page
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {m[1] for command in commands(page) if (m := re.match(r"make ([\w-]+)", command))}
    assert named <= targets, f"not in the Makefile: {named - targets}"


@every_page
def test_verbs_and_options_of_the_command_exist(page: Path) -> None:
    import typer

    from flows.cli import app

    verbs: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for command in commands(page):
        if match := re.match(r"(?:\.venv/bin/)?thinner ([a-z]\w*)(.*)", command):
            assert match[1] in verbs, f"thinner has no {match[1]}"
            verb = verbs[match[1]]
            if hasattr(verb, "commands") and (
                words := re.match(r" ([a-z]\w*)", match[2])
            ):  # a group: thinner data apply
                assert words[1] in verb.commands, f"thinner {match[1]} has no {words[1]}"
                verb = verb.commands[words[1]]
            options = {"--help", "-h", *(name for p in verb.params for name in p.opts)}
            given = set(re.findall(r"(?<!\S)--?[a-z][\w-]*", match[2]))
            assert given <= options, f"thinner {match[1]} has no {given - options}"


@every_page
def test_programs_exist(page: Path) -> None:
    for command in commands(page):
        if match := re.search(r"python -m ([a-z][\w.]*)", command):
            name = match[1]
            own = ROOT.joinpath(*name.split(".")).with_suffix(".py")
            if name.split(".")[0] in ("thinner", "tasks", "flows"):
                assert own.is_file(), f"python -m {name}: no such module"
                assert "__main__" in own.read_text(), f"python -m {name} does nothing"
            else:
                assert importlib.util.find_spec(name), f"python -m {name}: no such module"


def test_every_verb_is_in_the_list_of_commands_and_every_stage_in_readme() -> None:
    import typer

    from flows.cli import app

    text = (ROOT / "docs" / "commands.md").read_text()
    for verb in typer.main.get_command(app).commands:  # type: ignore[attr-defined]
        assert f"`thinner {verb}" in text
    readme = (ROOT / "README.md").read_text()
    for stage in GRAPH["stages"]:
        assert f"| `{stage}` |" in readme


def test_readme_is_read_in_a_hurry() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 120


@every_page
def test_no_line_of_prose_is_longer_than_120(page: Path) -> None:
    prose = re.sub(r"^( *)```.*?^\1```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    lines = [line for line in prose.splitlines() if not line.lstrip().startswith(("|", "<!--"))]
    assert [line for line in lines if len(line) > 120] == []


# ------------------------------------------------------------------------------------------- paths and links


def written_by_stages() -> set[str]:
    paths: set[str] = set()
    for stage in (entry.get("do", entry) for entry in GRAPH["stages"].values()):
        for entry in itertools.chain(*(stage.get(kind, []) for kind in ("outs", "metrics", "plots"))):
            paths |= {entry} if isinstance(entry, str) else set(entry)
    return {path.partition("/${item}")[0] for path in paths}


def ignored_by_git() -> set[str]:
    lines = [*(ROOT / ".gitignore").read_text().split(), ".dvc/cache", ".dvc/config.local"]
    return {line.strip("/") for line in lines if "*" not in line and "#" not in line}


def known(path: str, page: Path) -> bool:
    """It is in the repository, or a stage writes it, or it is the person's own, or it is the tools'."""
    path = path.rstrip("/")
    if (ROOT / path).exists() or (page.parent / path).exists():
        return True
    own = {
        *written_by_stages(),
        *ignored_by_git(),
        PARAMS["data"]["root"],
        "data/teachers",
        "data/weights",
        "nets",
        "dvc.lock",
    }
    if any(path == place or path.startswith(f"{place}/") for place in own):
        return True
    # a bare name of a file that code writes or reads somewhere
    return "/" not in path and any(
        f'"{path}"' in file.read_text() or f"/{path}" in file.read_text()
        for package in ("thinner", "tasks", "flows")
        for file in (ROOT / package).rglob("*.py")
    )


@every_page
def test_paths_exist(page: Path) -> None:
    for span in spans(page):
        is_path = re.fullmatch(r"\.?\w[\w.-]*(/[\w.-]+)*/?", span) and (
            "/" in span or span.rpartition(".")[2] in SUFFIXES
        )
        placeholder = re.search(r"\b(NAME|PATH|CLASS|FILE)\b", span)
        if is_path and not placeholder and span not in NOT_PATHS and not METRIC.fullmatch(span):
            assert known(span, page), f"`{span}` is no file here and nothing writes it"


def slugs(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        assert not anchor or anchor in slugs(there), target


@every_page
def test_no_page_names_a_folder_of_one_machine(page: Path) -> None:
    assert not re.search(r"(?<![\w.])/(home|root|Users|work|mnt)/\w", page.read_text())


def test_every_page_of_the_docs_is_in_their_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in index


# ------------------------------------------------------------------------------------------------ parameters


def has_key(dotted: str) -> bool:
    place: Any = PARAMS
    for word in dotted.split("."):
        if not isinstance(place, dict) or word not in place:
            return False
        place = place[word]
    return True


@every_page
def test_keys_exist(page: Path) -> None:
    sections = "|".join(PARAMS)
    for text in [*spans(page), *fences(page, "", "sh")]:
        for match in re.finditer(rf"(?<![\w/.-])({sections})(\.[a-z]\w*)+\b(?!/)", text):
            key = match[0]
            if key in NOT_KEYS or key.rpartition(".")[2] in SUFFIXES:
                continue
            assert has_key(key), f"{key} is not in params.yaml"


def tables(page: Path) -> dict[str, dict[str, str]]:
    """heading -> first cell -> the row"""
    found: dict[str, dict[str, str]] = {}
    for part in re.split(r"^## ", page.read_text(), flags=re.MULTILINE)[1:]:
        heading, _, body = part.partition("\n")
        found[heading] = {m[1]: m[0] for m in re.finditer(r"^\| `(\w+)` \|.*$", body, re.MULTILINE)}
    return found


def test_params_page_has_a_row_per_key_and_no_other() -> None:
    documented = tables(ROOT / "docs" / "params.md")
    wanted = {section: set(keys) if isinstance(keys, dict) else set() for section, keys in PARAMS.items()}
    wanted |= {"training": set(Training.model_fields), "augment": set(Augmentation.model_fields)}
    assert {heading: set(rows) for heading, rows in documented.items()} == wanted


def choices(annotation: Any) -> Iterator[str]:
    if typing.get_origin(annotation) is typing.Literal:
        yield from (value for value in typing.get_args(annotation) if isinstance(value, str))
    else:
        for part in typing.get_args(annotation):
            yield from choices(part)


def test_params_page_names_every_choice() -> None:
    documented = tables(ROOT / "docs" / "params.md")
    models: dict[str, Any] = {
        name: field.annotation for name, field in Params.model_fields.items() if isinstance(PARAMS[name], dict)
    }
    for heading, model in {**models, "training": Training}.items():
        for key, field in model.model_fields.items():
            for choice in choices(field.annotation):
                assert f"`{choice}`" in documented[heading][key], f"{heading}.{key}: {choice}"


def test_params_page_names_every_criterion() -> None:
    from thinner.compress.criteria import CRITERIA

    pruning = (ROOT / "docs" / "pruning.md").read_text()
    for name in CRITERIA:
        assert f"`{name}`" in tables(ROOT / "docs" / "params.md")["prune"]["criterion"]
        assert f"| `{name}` |" in pruning


def merged(base: Any, changes: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(changes, dict):
        return changes
    # a target has one key: another takes its place
    return {**base, **{k: v if k == "target" else merged(base.get(k), v) for k, v in changes.items()}}


@every_page
def test_examples_of_params_are_accepted(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from thinner.learn import losses

    run_examples(page, monkeypatch)
    monkeypatch.chdir(tmp_path)
    for block in fences(page, "yaml"):
        changes = yaml.safe_load(block)
        if not isinstance(changes, dict) or not set(changes) <= set(PARAMS):
            continue  # of another file, or a piece of a section
        for teacher in changes.get("teach", {}).get("teachers", []):
            if "/" in teacher:  # the reader's own
                Path(teacher).mkdir(parents=True)
        path = tmp_path / "params.yaml"
        path.write_text(yaml.safe_dump(merged(PARAMS, changes)))
        for part in load_params(path).distill.losses:
            given = {key: value for key, value in part.parameters.items() if key != "warmup_epochs"}
            losses.check_parameters(part.name, given)


# -------------------------------------------------------------------------------------------------- examples


@every_page
def test_imports_in_examples_exist(page: Path) -> None:
    for block in fences(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    package = importlib.import_module(str(node.module))
                    if not hasattr(package, alias.name):
                        importlib.import_module(f"{node.module}.{alias.name}")


def run_examples(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do to `thinner` what the blocks in docs/extend.md say, each in the module it was written for."""
    from thinner.compress import criteria
    from thinner.learn import losses

    if page.name != "extend.md":
        return
    for block in fences(page, "python"):
        if "RUNTIME = " in block:  # a file of its own, which tests/tasks/test_runtime_stages.py runs
            continue
        module = losses if re.search(r"full_precision|LOSSES", block) else criteria
        namespace = vars(module) | {"__name__": module.__name__}
        before = {"LOSSES": losses.LOSSES, "CRITERIA": criteria.CRITERIA}
        exec(compile(block, str(page), "exec", dont_inherit=True), namespace)
        (made,) = ast.parse(block).body
        name = str(made.target.id if isinstance(made, ast.AnnAssign) else made.name)  # type: ignore[union-attr,attr-defined]
        value = {**before[name], **namespace[name]} if name in before else namespace[name]
        monkeypatch.setattr(module, name, value, raising=False)


def test_the_loss_of_the_example_works(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    import torch.nn.functional as F

    from thinner.learn import losses

    run_examples(ROOT / "docs" / "extend.md", monkeypatch)
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(6, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    labels = torch.zeros(6, dtype=torch.int64)
    row = losses.LOSSES["reverse_kd"]
    # PyTorch's own operator: kl_div(log q, p) is KL(p || q)
    expected = 4 * F.kl_div((teacher / 2).log_softmax(1), (student / 2).softmax(1), reduction="batchmean")
    torch.testing.assert_close(row.function(student, teacher, labels, temperature=2.0), expected)
    assert row.function(teacher, teacher, labels).item() == pytest.approx(0, abs=1e-12)
    assert row.link in str(row.function.__doc__)
    combined = losses.combine([("kd", 0.5, {}, None), ("reverse_kd", 0.5, {"temperature": 2.0}, None)])
    assert torch.isfinite(combined(student, teacher, labels)["loss"])


def test_the_criterion_of_the_example_works(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from torch import nn

    from thinner.compress import pruning

    run_examples(ROOT / "docs" / "extend.md", monkeypatch)
    # one hidden layer of 64 channels; half of the MACs means half of them: those whose largest weight is 1 to 32,
    # however large the other weight is
    model = nn.Sequential(nn.Conv2d(2, 64, 1, bias=False), nn.Flatten(), nn.Linear(64, 2, bias=False))
    largest = torch.randperm(64, generator=torch.Generator().manual_seed(0)) + 1.0
    with torch.no_grad():
        model[0].weight.copy_(torch.stack([largest, -0.9 * largest.clamp(max=32)], 1).view(64, 2, 1, 1))
        model[2].weight.fill_(1.0)
    smaller, _ = pruning.cut(model, torch.zeros(1, 2, 1, 1), macs=128, criterion="linf")
    assert smaller[0].weight[:, 0].flatten().tolist() == largest[largest > 32].tolist()  # type: ignore[index,union-attr]


# -------------------------------------------------------------------------------------------------- the rest


def committed_reports(folder: Path) -> Path | None:
    """`reports` as of the last commit. Who runs the pipeline anew measures other latencies; a README that
    fits the commit is right until those are committed as well."""
    for name in ("metrics.json", "evaluate/environment.json"):
        command = ["git", "show", f"HEAD:reports/{name}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
        if done.returncode:
            return None
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(done.stdout)
    return folder


def test_the_results_in_readme_are_those_of_the_reports(tmp_path: Path) -> None:
    from thinner.evidence.report import BEGIN, END, main

    readme = ROOT / "README.md"
    text = readme.read_text()
    assert text.count(BEGIN) == text.count(END) == 1
    here = ROOT / "reports"
    places = [here] if (here / "metrics.json").is_file() and (here / "evaluate").is_dir() else []
    if committed := committed_reports(tmp_path / "reports"):
        places.append(committed)
    block = text.split(BEGIN)[1].split(END)[0]
    if not places:
        assert "`make run`" in block
        assert "|---" not in block
        return
    given = ["--readme", str(readme), "--check", "--reports"]
    assert any(main([*given, str(place)]) == 0 for place in places), (
        "README's results are not those in reports/. Run: python -m thinner.evidence.report --readme README.md"
    )


def test_changelog_has_the_version() -> None:
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version
    assert f"## [{version[1]}]" in (ROOT / "CHANGELOG.md").read_text()


def test_pre_commit_downloads_nothing() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    for hook in repository["hooks"]:
        assert hook["language"] == "system"
        assert hook["entry"].startswith(".venv/bin/")


def test_the_example_of_logits_from_elsewhere_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    from thinner.learn import signals

    (tmp_path / "data" / "teachers").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    (block,) = fences(ROOT / "docs" / "teachers.md", "python")
    exec(compile(block, "teachers.md", "exec", dont_inherit=True), {})
    names = ["cat/000.jpg", "cat/001.jpg", "dog/007.jpg"]
    index, logits = signals.read_given(Path("data/teachers/large.npz"), names, ["dog", "cat"], np.array([1, 2]))
    assert index.tolist() == [1, 2]
    np.testing.assert_allclose(logits, [[-2.0, 4.1], [2.2, -1.3]])


def test_the_example_of_a_network_of_ones_own_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from thinner.networks import models

    (block,) = fences(ROOT / "docs" / "weights.md", "python")
    examples = [yaml.safe_load(text) for text in fences(ROOT / "docs" / "weights.md", "yaml")]
    (changes,) = (example for example in examples if "student" in example)
    monkeypatch.chdir(tmp_path)
    Path("nets").mkdir()
    Path("nets/mine.py").write_text(block)
    Path("params.yaml").write_text(yaml.safe_dump(merged(PARAMS, changes)))
    model = models.create(NetworkSpec(changes["student"]["network"], 5, 1))
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 5)


def test_notebooks_are_kept_without_their_outputs_and_are_in_the_index() -> None:
    import json

    index = (ROOT / "docs" / "README.md").read_text()
    for page in (ROOT / "docs").glob("*.ipynb"):
        assert f"]({page.name})" in index
        cells = json.loads(page.read_text())["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        assert code and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
        assert page.stat().st_size < 20_000
