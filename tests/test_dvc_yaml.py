"""dvc.yaml says what is true: stages, programs, code, parameters; one word per thing."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
GRAPH = yaml.safe_load((ROOT / "dvc.yaml").read_text())
STAGES = {name: entry.get("do", entry) for name, entry in GRAPH["stages"].items()}  # of a foreach, what it repeats
PROGRAMS = {name: "prune" if name == "prune_also" else name for name in STAGES}
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text())

# They, and tasks/record/, decide what is recorded or refused, never what is computed: a better message, or a new key of another stage, must
# not train a network again. (The values of params.yaml are dependencies by themselves.)
ONLY_WATCH = {
    "tasks.integrity",
    "tasks.lineage",
    "tasks.processes",
    "tasks.environment",
    "tasks.progress",
    "thinner.config",
    "thinner.checks",
    "thinner.params",
}
# It reads, watches and records around a stage's work; what it does to torch has a file of its own.
INSTEAD = {"tasks.stage": "tasks.machine"}
SHARED_SECTIONS = {"run", "data", "imbalance", "student", "claims", "ship"}  # sections that are not a stage's


def _file(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    return path if path.is_file() else None


class _Imports(ast.NodeVisitor):
    def __init__(self) -> None:
        self.found: set[str] = set()

    def visit_If(self, node: ast.If) -> None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return  # not imported when it runs
        self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        self.found |= {alias.name for alias in node.names}

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        self.found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}


def code_of(module: str) -> list[str]:
    """The files of this repository that the module imports, directly or not, with itself."""
    seen, waiting = {module}, [module]
    while waiting:
        path = _file(waiting.pop())
        assert path is not None
        visitor = _Imports()
        visitor.visit(ast.parse(path.read_text()))
        found = {INSTEAD.get(name, name) for name in visitor.found} - seen - ONLY_WATCH
        for name in {name for name in found if not name.startswith("tasks.record.")}:
            if name.split(".")[0] in ("tasks", "thinner") and _file(name):
                seen.add(name)
                waiting.append(name)
    return sorted(str(path.relative_to(ROOT)) for name in seen if (path := _file(name)))


def test_what_a_stage_program_shares_imports_only_what_watches_and_the_one_file_that_stands_for_it() -> None:
    visitor = _Imports()
    visitor.visit(ast.parse((ROOT / "tasks" / "stage.py").read_text()))
    ours = {name for name in visitor.found if name.split(".")[0] in ("tasks", "thinner") and _file(name)}
    computes = {name for name in ours - ONLY_WATCH if not name.startswith("tasks.record.")}
    assert computes == {INSTEAD["tasks.stage"], "thinner.errors"}


@pytest.mark.parametrize("stage", STAGES)
def test_code_dependencies_are_the_imports(stage: str) -> None:
    declared = sorted(dep for dep in STAGES[stage]["deps"] if dep.endswith(".py"))
    wanted = code_of(f"tasks.{PROGRAMS[stage]}")
    lines = "\n".join(f"      - {path}" for path in wanted)
    assert declared == wanted, f"in dvc.yaml, the code that `{stage}` depends on should be:\n{lines}"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_has_one_word(stage: str) -> None:
    each = " ${item}" if "foreach" in GRAPH["stages"][stage] else ""
    assert STAGES[stage]["cmd"] == f"python -m tasks.{PROGRAMS[stage]}{each}"
    assert (ROOT / "tasks" / f"{PROGRAMS[stage]}.py").is_file()
    outs = STAGES[stage]["outs"]
    folder = {"prepare": ["data/prepared"], "report": ["reports/report.html"]}.get(
        stage, [f"data/{stage}{each.replace(' ', '/')}"]
    )
    assert outs == folder
    if stage != "prepare":  # its section is `data`, which others read as well
        assert stage in PARAMS


def test_each_task_file_and_each_section_is_a_stage_or_shared() -> None:
    tasks = {path.stem: path.read_text() for path in (ROOT / "tasks").glob("*.py") if path.stem != "stage"}
    programs = {name for name, text in tasks.items() if "    run_stage(" in text}
    assert programs == set(PROGRAMS.values()), "a new stage needs an entry in dvc.yaml"
    assert set(PARAMS) == (set(STAGES) | SHARED_SECTIONS) - {"prepare"}, "a new stage needs a section in params.yaml"


@pytest.mark.parametrize("stage", STAGES)
def test_declared_parameters_exist(stage: str) -> None:
    for key in STAGES[stage]["params"]:
        section = PARAMS
        for word in key.split("."):
            assert word in section, f"{stage}: {key} is not in params.yaml"
            section = section[word]


@pytest.mark.parametrize("stage", STAGES)
def test_declared_parameters_are_those_that_the_program_reads(stage: str) -> None:
    """Whatever `params.SECTION` the stage's own file mentions has to be declared, whole or in part."""
    sections = {
        node.attr
        for node in ast.walk(ast.parse((ROOT / "tasks" / f"{PROGRAMS[stage]}.py").read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr in PARAMS
        and (getattr(node.value, "attr", "") == "params" or getattr(node.value, "id", "") == "params")
    }
    assert sections <= {key.split(".")[0] for key in STAGES[stage]["params"]}


def test_pruning_also_is_pruning_of_another_network() -> None:
    said = yaml.safe_dump(STAGES["prune"]).replace("data/${prune.source}", "data/${item}")
    said = said.replace("python -m tasks.prune", "python -m tasks.prune ${item}")
    for folder in ("data", "reports"):
        said = said.replace(f"{folder}/prune", f"{folder}/prune_also/${{item}}")
    assert STAGES["prune_also"] == yaml.safe_load(said)
    assert GRAPH["stages"]["prune_also"]["foreach"] == "${prune_also}"
    assert PARAMS["prune_also"] == []


@pytest.mark.parametrize("stage", ["export", "evaluate", "report"])
def test_stages_that_read_all_pruned_networks_depend_on_which_there_are(stage: str) -> None:
    """Their folders are there when no network is in them: DVC fails where a dependency is missing."""
    (folder,) = {"data/prune_also", "reports/prune_also"} & set(STAGES[stage]["deps"])
    assert "prune_also" in STAGES[stage]["params"]
    assert (ROOT / folder / "README.md").is_file()


@pytest.mark.parametrize("stage", ["teach", "distill", "prune", "prune_also", "export", "evaluate", "report"])
def test_stages_that_are_taught_or_look_at_all_networks_depend_on_self_training(stage: str) -> None:
    (folder,) = {"data/self_train", "reports/self_train"} & set(STAGES[stage]["deps"])
    assert {"self_train", "self_train.networks"} & set(STAGES[stage]["params"])
    assert (ROOT / folder / "README.md").is_file()


def test_self_training_is_off_as_shipped_and_then_no_stage() -> None:
    assert GRAPH["stages"]["self_train"]["foreach"] == "${self_train.networks}"
    assert PARAMS["self_train"]["networks"] == []


def test_stages_that_start_from_weights_watch_their_folder_and_no_others_do() -> None:
    starting = {name for name in STAGES if {"learning.started(", "learning.new_student("} & set(_calls(PROGRAMS[name]))}
    assert starting == {name for name, stage in STAGES.items() if "data/weights" in stage["deps"]}
    assert starting == {"finetune", "scratch", "distill"}
    assert (ROOT / "data/weights/README.md").is_file()


def _calls(program: str) -> list[str]:
    nodes = ast.walk(ast.parse((ROOT / "tasks" / f"{program}.py").read_text()))
    return [f"{ast.unparse(node.func)}(" for node in nodes if isinstance(node, ast.Call)]


@pytest.mark.parametrize("stage", STAGES)
def test_stages_that_may_build_a_network_of_ones_own_watch_its_code(stage: str) -> None:
    assert ("nets" in STAGES[stage]["deps"]) == ("thinner/networks/own.py" in STAGES[stage]["deps"])
    assert (ROOT / "nets/README.md").is_file()


def test_small_results_are_in_git_and_large_ones_in_dvc() -> None:
    for name, stage in STAGES.items():
        for kind in ("metrics", "plots"):
            for entry in stage.get(kind, []):
                ((path, options),) = entry.items()
                assert path.startswith("reports/"), name
                assert options == {"cache": False}, name
        assert all(isinstance(out, str) for out in stage["outs"]), name


def test_changing_the_pruning_target_concerns_only_what_comes_after() -> None:
    """By the graph alone; that DVC agrees is shown by tests/flows/test_pipeline.py."""
    readers = {name for name, stage in STAGES.items() if {"prune", "prune.target"} & set(stage["params"])}
    makers = {out.removesuffix("/${item}"): name for name, stage in STAGES.items() for out in stage["outs"]}
    makers |= {
        path: name
        for name, stage in STAGES.items()
        for kind in ("metrics", "plots")
        for entry in stage.get(kind, [])
        for path in entry
    }
    concerned, grown = set(readers), True
    while grown:
        more = {
            name
            for name, stage in STAGES.items()
            if any(makers.get(dep.replace("${quantize.source}", "prune")) in concerned for dep in stage["deps"])
        }
        grown = not more <= concerned
        concerned |= more
    assert concerned == {"prune", "prune_also", "small", "quantize", "export", "evaluate", "report"}


def test_curves_in_the_plots_are_written_by_a_stage() -> None:
    written = {path for stage in STAGES.values() for entry in stage.get("plots", []) for path in entry}
    for plot in GRAPH["plots"]:
        ((title, options),) = plot.items()
        for path in options["y"]:
            assert any(path == out or path.startswith(f"{out}/") for out in written), title


@pytest.mark.integration
def test_dvc_sees_a_byte_of_a_weights_file_and_of_a_network_of_ones_own(tmp_path: Path) -> None:
    """The real dvc.yaml, with a line in place of everything that stages read and write."""

    def run(*command: str) -> str:
        bin_first = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        env = os.environ | {"PATH": bin_first, "DVC_NO_ANALYTICS": "1"}
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True).stdout

    graph = {**GRAPH, "stages": {name: stage for name, stage in GRAPH["stages"].items() if "foreach" not in stage}}
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump(graph))
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    for stage in graph["stages"].values():
        entries = [*stage["deps"], *stage["outs"], *stage.get("plots", []), *stage.get("metrics", [])]
        for entry in [next(iter(e)) if isinstance(e, dict) else e for e in entries]:
            there = entry.replace("${prune.source}", "distill").replace("${quantize.source}", "prune")
            path = tmp_path / there.replace("${data.root}", "data/raw")
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix:
                path.write_text("a line")
            else:
                path.mkdir(exist_ok=True)
                (path / "file").write_text("a line")
    run("dvc", "init", "--no-scm", "--quiet")
    run("dvc", "commit", "--force", "--quiet")

    def changed() -> set[str]:
        return {
            name for name, what in json.loads(run("dvc", "status", "--json")).items() if "changed deps" in str(what)
        }

    assert changed() == set()
    (tmp_path / "data/weights/mine.pth").write_text("weights")
    assert changed() == {"finetune", "scratch", "distill"}
    run("dvc", "commit", "--force", "--quiet")
    (tmp_path / "data/weights/mine.pth").write_text("weightz")
    assert changed() == {"finetune", "scratch", "distill"}
    run("dvc", "commit", "--force", "--quiet")
    (tmp_path / "nets/mine.py").write_text("# code")
    builders = {"finetune", "scratch", "teach", "distill", "prune", "small", "quantize", "export", "evaluate"}
    assert changed() == builders
