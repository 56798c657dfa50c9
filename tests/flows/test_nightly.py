"""flows/nightly.py: a run that nobody watches, with values, a commit and a branch of its own."""

import configparser
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prefect import flow

from flows import nightly, pipeline, worktrees
from tasks import processes
from tests.browser import Browser, find_chromium
from tests.hooks import Hook, webhook
from tests.toy import PROJECT, Toy
from thinner.config import load_params
from thinner.errors import UserError


@pytest.fixture
def hook() -> Iterator[Hook]:
    with webhook() as made:
        yield made


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "params.yaml").write_text((PROJECT / "params.yaml").read_text())
    return tmp_path / "params.yaml"


def test_values_of_a_run_keep_the_files_comments(file: Path) -> None:
    before = file.read_text()
    nightly._put_in(file, {"distill.temperature": 7, "prune.target": {"params": 0.3}})
    params = load_params(file)
    assert params.distill.temperature == 7
    lines = [line for line in file.read_text().splitlines() if line not in before.splitlines()]
    assert len(lines) == 2
    nightly._put_in(file, {})
    assert load_params(file) == params


@pytest.mark.parametrize(
    ("values", "lines"),
    [
        ({"distill.temperature": 0}, [r"set: distill\.temperature: 0: should be greater than 0"]),
        ({"distill.temprature": 2}, [r"set: distill\.temprature: unknown key \(value 2\)\. Did you mean 'temperature'\?"]),
        ({"destill.temperature": 2}, [r"set: 'destill\.temperature' is no key of params.yaml: there is no 'destill'"]),
        ({"distill": {"temperature": 2}}, [r"set: 'distill' is a section of params.yaml. Name its keys: distill.temp"]),
        ({"distill.temperature": "hot", "run.seed": -1}, [r"set: run\.seed: -1: ", r"set: distill\.temperature: 'hot': "]),
    ],
)  # fmt: skip
def test_a_value_that_no_params_yaml_could_hold_is_named_with_key_and_mend_and_nothing_is_written(
    file: Path, values: dict[str, Any], lines: list[str]
) -> None:
    before = file.read_bytes()
    with pytest.raises(UserError) as refused:
        nightly._put_in(file, values)
    said = str(refused.value).splitlines()
    assert len(said) == len(lines)
    assert all(re.match(line, text) for line, text in zip(lines, said, strict=True))
    assert file.read_bytes() == before


def test_the_command_to_do_it_again_can_be_typed_as_it_stands(tmp_path: Path) -> None:
    root = tmp_path / "a folder"
    root.mkdir()
    again = nightly._retry(root, ["prune"], 1, {"prune.target": {"params": 0.3}}, "origin/main", "nights")
    said = subprocess.run(
        ["sh", "-c", again.replace("python -m flows.nightly", "printf '%s\\n'")],
        text=True,
        capture_output=True,
        check=True,
    )
    assert said.stdout.splitlines() == [
        "prune", "--jobs", "1", "--set", "prune.target={params: 0.3}", "--ref", "origin/main", "--commit-to", "nights"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("names", "data", "found"),
    [
        ([], "data/raw", []),
        (["data/raw.dvc", "data/rawer.dvc", "models.dvc"], "data/raw", ["data/raw.dvc"]),
        (["data.dvc"], "./data/raw/", ["data.dvc"]),
        (["data/raw/cats.dvc", "data/raw/new dogs.dvc"], "data/raw", ["data/raw/cats.dvc", "data/raw/new dogs.dvc"]),
    ],
)
def test_the_pointers_to_raw_data_of_a_commit(names: list[str], data: str, found: list[str]) -> None:
    listed = "\n".join(f"100644 blob {'0' * 40}\t{name}" for name in names)
    assert nightly._pointers(listed, data) == found


def test_networks_of_an_earlier_night_that_this_one_does_not_have_are_removed(tmp_path: Path) -> None:
    left = ["data/prune_also/finetune", "reports/prune_also/finetune", "data/self_train/finetune"]
    kept = ["data/prune_also/scratch", "reports/prune_also/scratch", "data/prune"]
    for name in (*left, *kept):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "data/prune_also/README.md").write_text("what lies here")
    worktrees.remove_others(tmp_path, {"prune_also": ["scratch"], "self_train": {"networks": []}})
    assert not any((tmp_path / name).exists() for name in left)
    assert all((tmp_path / name).exists() for name in (*kept, "data/prune_also/README.md"))


def test_beside_another_run_it_is_dropped(tmp_path: Path) -> None:
    hold = (
        f"from pathlib import Path; from tasks import processes; import sys\n"
        f"with processes.only_one(Path({str(tmp_path / '.thinner/locks/pipeline.lock')!r})): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold], cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(nightly._BusyError, match="another run of the pipeline"), nightly._only_one(tmp_path, False):
            pass
        other.communicate()
    with (
        nightly._only_one(tmp_path, False),
        pytest.raises(UserError, match="busy"),
        processes.only_one(tmp_path / nightly.PLACE / "lock", "busy"),
    ):
        pass
    with nightly._only_one(tmp_path, False), pipeline.only_run(tmp_path):  # the pipeline's turn
        pass
    with (
        nightly._only_one(tmp_path, True),  # it works in a folder of its own, and nobody measures here beside it
        pytest.raises(UserError, match="another run of the pipeline"),
        pipeline.only_run(tmp_path),
    ):
        pass


def test_a_look_that_finds_nothing_new_starts_nothing(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = file.parent
    (root / "dvc.yaml").write_text("stages: {}")
    (root / "data/raw").mkdir(parents=True)
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "argv", ["nightly", "--only-new-data"])
    monkeypatch.setattr(subprocess, "Popen", None)  # no process
    monkeypatch.setattr(nightly.server, "outlived", None)  # and no flow
    for words in ("first look: 0 files. The next change", "nothing new: 0 files", "still coming in: last changed"):
        assert nightly.main() == 0
        assert words in capsys.readouterr().out
        if words.startswith("nothing"):
            (root / "data/raw/1.png").write_bytes(b"half of")


@pytest.mark.filterwarnings("ignore:'imghdr' is deprecated")
def test_a_message_that_is_not_taken_is_one_line_and_no_failure(
    tmp_path: Path, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = {
        "verdict": "refused",
        "exit_code": 2,
        "message": "m",
        "ship": None,
        "target": [],
        "claims": [],
        "stages": [],
        "places": {},
    }
    night = nightly.messages.Night("nightly", tmp_path, end, "0123", "make run")
    monkeypatch.setenv("THINNER_NOTIFY", hook.address)
    assert nightly.tell(tmp_path, night, "never") == [] and hook.got == []
    assert nightly.tell(tmp_path, night, "always") == [] and len(hook.got) == 1
    hook.status = 404
    (line,) = nightly.tell(tmp_path, night, "always")
    assert line == "no message to address 1 of 1 (JSON): it answered HTTP 404. The run stands as it ended"
    hook.status = 200
    for count in (3, 3):  # the next run tells what nobody has heard, once
        assert nightly.tell(tmp_path, night, "changes") == [] and len(hook.got) == count
    other = replace(night, end=end | {"message": "another"})
    monkeypatch.delenv("THINNER_NOTIFY")
    monkeypatch.setattr(nightly, "_of_block", lambda: None)
    assert nightly.tell(tmp_path, other, "changes") == []
    monkeypatch.setenv("THINNER_NOTIFY", hook.address)
    assert nightly.tell(tmp_path, other, "changes") == [] and len(hook.got) == 4


def test_a_page_has_a_name_that_prefect_takes_and_without_one_the_message_still_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = {"verdict": "refused", "exit_code": 2, "message": "m", "ship": None, "target": [], "claims": [], "stages": []}
    night = nightly.messages.Night("Nightly_GPU 2", tmp_path, end | {"places": {}}, "0123", "make run")
    seen = []
    monkeypatch.setattr(nightly, "create_markdown_artifact", lambda text, key, title: seen.append(key))
    assert nightly._publish(night) == [] and seen == ["thinner-nightly-gpu-2"]

    def refuse(*_: object) -> None:
        raise ValueError("Artifact key must only contain lowercase letters, numbers, and dashes")

    monkeypatch.setattr(nightly, "create_markdown_artifact", refuse)
    (line,) = nightly._publish(night)
    assert line.startswith("no page in Prefect: Artifact key must")


def test_where_git_refuses_there_is_still_somebody_to_tell(tmp_path: Path) -> None:
    (tmp_path / "reports").mkdir()
    assert nightly._refused(tmp_path, "nightly", "dubious ownership", "make run").commit == "unknown"


def test_a_worktree_has_what_lets_one_in_to_the_remote_and_shows_it_to_nobody(tmp_path: Path) -> None:
    theirs, mine = tmp_path / "theirs", tmp_path / "mine"
    text = "[cache]\n    dir = /old\n    type = copy\n['remote \"results\"']\n    secret_access_key = a%b=c\n"
    theirs.write_text(text)
    worktrees._share_cache(theirs, mine, Path("/cache"))
    worktrees._share_cache(theirs, mine, Path("/cache"))
    found = configparser.RawConfigParser()
    found.read(mine)
    assert {name: dict(found[name]) for name in found.sections()} == {
        "cache": {"dir": '"/cache"', "type": "copy"},
        "'remote \"results\"'": {"secret_access_key": "a%b=c"},
    }
    assert mine.stat().st_mode & 0o777 == 0o600 and theirs.read_text() == text
    worktrees._share_cache(tmp_path / "none", mine, Path("/cache"))
    assert mine.read_text().split() == ["[cache]", "dir", "=", '"/cache"']


def test_both_deployments_are_runs_of_this_flow_with_parameters_that_it_has() -> None:
    found = yaml.safe_load((PROJECT / "prefect.yaml").read_text())["deployments"]
    assert [one["name"] for one in found] == ["nightly", "on-new-data"]
    for one in found:
        assert one["entrypoint"] == "flows/nightly.py:nightly"
        nightly.nightly.validate_parameters(one.get("parameters", {}))
    assert found[1]["parameters"] == {"only_new_data": True}


# --- with everything real ---


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path / "toy")


@pytest.mark.integration
def test_a_night_with_a_value_of_its_own_fails_is_told_and_run_again_and_is_on_its_branch(
    toy: Toy, hook: Hook, shared: None, tmp_path: Path
) -> None:
    toy.env["THINNER_NOTIFY"] = hook.address
    raw = toy.root / "data/raw/one.txt"
    raw.parent.mkdir(parents=True)
    raw.write_text("as committed")
    toy.run("dvc", "add", "--quiet", "data/raw")
    toy.commit()
    raw.unlink()
    raw.write_text("edited since")
    program = toy.root / "program.py"
    program.write_text(program.read_text() + "# not committed\n")
    before = toy.run("git", "status", "--porcelain").stdout, (toy.root / "params.yaml").read_bytes()
    night = ("-m", "flows.nightly", "finetune", "--set", "finetune.image_size=48", "--commit-to", "thinner/nightly")

    (tmp_path / "params.yaml").write_bytes(before[1])
    nightly._put_in(tmp_path / "params.yaml", {"finetune.image_size": 48})
    # checked in depth already, which would take ten seconds each time
    checked = {"THINNER_CHECKED": hashlib.sha256((tmp_path / "params.yaml").read_bytes()).hexdigest()}
    failed = toy.run(sys.executable, *night, "--ref", "main", check=False, TOY_FAIL="finetune", **checked)
    assert failed.returncode == 1
    (told,) = hook.got
    assert (told["title"], told["type"]) == ("thinner nightly: finetune failed", "failure")
    lines = told["message"].splitlines()
    assert lines[0] == "Stage    finetune"
    assert lines[1].startswith("Reason   finetune failed after ") and lines[1].endswith(": finetune: asked to fail")
    assert lines[2].endswith(
        "python -m flows.nightly finetune --set finetune.image_size=48 --ref main --commit-to thinner/nightly"
    )
    assert not toy.run("git", "branch", "--list", "thinner/nightly").stdout

    (toy.root / ".git/worktrees/tree/index.lock").touch()  # as a git that was killed leaves it
    done = toy.run(sys.executable, *night, **checked)
    assert "not committed, so not in this run: program.py" in done.stdout
    assert hook.got[1]["type"] == "success" and "ran: finetune" in hook.got[1]["message"]
    tree = toy.root / nightly.PLACE / "tree"
    ran = (tree / "ran.txt").read_text().split()
    assert ran == ["prepare", "finetune", "finetune"]
    kept = yaml.safe_load(toy.run("git", "show", "thinner/nightly:dvc.lock").stdout)
    assert kept["stages"]["finetune"]["params"]["params.yaml"] == {"finetune.image_size": 48}
    changed = toy.run("git", "diff", "--name-only", "main", "thinner/nightly").stdout.split()
    assert changed == ["dvc.lock", "params.yaml"]

    # the working copy, its index and its branch are as they were; nothing ran in it
    assert (toy.run("git", "status", "--porcelain").stdout, (toy.root / "params.yaml").read_bytes()) == before
    assert toy.ran() == [] and not (toy.root / "data/finetune").exists()
    assert ((tree / "data/raw/one.txt").read_text(), raw.read_text()) == ("as committed", "edited since")

    pages = _ask(toy.env["PREFECT_API_URL"], "artifacts", artifacts={"key": {"any_": ["thinner-nightly"]}})
    assert any("# thinner nightly: done" in page["data"] for page in pages)
    for path in toy.root.rglob("*"):  # nor in a file, and not in Prefect's pages
        assert not path.is_file() or hook.secret.encode() not in path.read_bytes(), path
    assert hook.secret not in failed.stdout + failed.stderr + done.stdout + done.stderr + json.dumps(pages)


@pytest.mark.integration
@pytest.mark.usefixtures("shared")
def test_new_data_that_have_settled_start_a_run_and_the_same_start_none(toy: Toy, hook: Hook) -> None:
    toy.env |= {"THINNER_NOTIFY": hook.address}
    toy.env["THINNER_CHECKED"] = hashlib.sha256((toy.root / "params.yaml").read_bytes()).hexdigest()

    def look(*words: str, code: int = 0, **env: str) -> str:
        command = ("-m", "flows.nightly", "prepare", "--only-new-data", *words)
        done = toy.run(sys.executable, *command, check=False, **env)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    dropped = toy.root / "data/raw/new.txt"
    dropped.parent.mkdir(parents=True)
    assert "first look: 0 files" in look()
    dropped.write_text("has come")
    assert "still coming in" in look() and toy.ran() == [] and hook.got == []
    look("--settle-seconds", "0", code=1, TOY_FAIL="prepare")
    assert toy.ran() == ["prepare"] and [said["title"] for said in hook.got] == ["thinner nightly: prepare failed"]
    assert "nothing new: 1 file" in look("--settle-seconds", "0")  # what failed is not tried again every ten minutes
    dropped.with_name("more.txt").write_text("has come later")
    look("--settle-seconds", "0")
    assert toy.ran() == ["prepare"] and hook.got[-1]["type"] == "success"
    assert "nothing new: 2 files" in look("--settle-seconds", "0") and len(hook.got) == 2


@pytest.mark.integration
def test_prefects_page_of_a_run_shows_its_picture(prefect_url: str, tmp_path: Path) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    find_chromium()
    end = {"verdict": "to ship", "exit_code": 0, "message": "m", "ship": "prune", "target": [], "claims": [],
           "stages": [], "places": {"metrics.json": "reports/metrics.json"}}  # fmt: skip
    night = nightly.messages.Night("seen", PROJECT, end, "0123", "make run")
    with temporary_settings({PREFECT_API_URL: prefect_url}):
        assert flow(nightly._publish, name="seen")(night) == []
    (page,) = _ask(prefect_url, "artifacts", artifacts={"key": {"any_": ["thinner-seen"]}})
    with Browser(tmp_path) as browser:
        browser.open(f"{prefect_url.removesuffix('/api')}/artifacts/artifact/{page['id']}")
        wide = browser.until("document.querySelector('img[alt^=accuracy]')?.naturalWidth")
        assert wide > 300 and browser.run("document.querySelectorAll('table tr').length") > 5


def _ask(url: str, what: str, **filters: Any) -> Any:
    return httpx.post(f"{url}/{what}/filter", json=filters).raise_for_status().json()
