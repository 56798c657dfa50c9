"""dvc.lock cut off at any byte: nothing that was whole is lost."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks import lineage, lockfile
from tests.toy import eventually
from thinner.errors import UserError

PROJECT = Path(__file__).parents[2]
TEXT = (PROJECT / "dvc.lock").read_text(encoding="utf-8")


def load(text: str) -> Any:
    return yaml.load(text, Loader=lockfile.LOADER)


WHOLE = load(TEXT)["stages"]
CUTS = sorted({0, 1, 9, 16, 23, 24, *range(40, len(TEXT), 797)})


def lock(root: Path, text: str) -> None:
    (root / "dvc.lock").write_text(text, encoding="utf-8")


def stages(root: Path) -> dict:
    return load((root / "dvc.lock").read_text(encoding="utf-8"))["stages"]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(lockfile, "_PATIENCE", (2, 0.0))
    lock(tmp_path, TEXT)
    lockfile.keep(tmp_path)
    return tmp_path


def test_what_git_could_not_merge_is_a_persons_to_decide(root: Path) -> None:
    head, _, tail = TEXT.partition("stages:\n")
    text = f"{head}<<<<<<< HEAD\nstages:\n=======\nstages: {{}}\n>>>>>>> thinner/nightly\n{tail}"
    lock(root, text)
    with pytest.raises(UserError, match="dvc.lock: git could not merge it.* git checkout --ours dvc.lock"):
        lockfile.mend(root)
    assert (root / "dvc.lock").read_text() == text


def test_a_whole_file_is_left_alone(root: Path) -> None:
    assert lockfile.mend(root) is None
    assert (root / "dvc.lock").read_text() == TEXT == (root / ".thinner/dvc.lock").read_text()


@pytest.mark.integration
def test_cut_anywhere_it_comes_back_byte_for_byte(root: Path) -> None:
    for at in CUTS[:-1]:
        lock(root, TEXT[:at])
        said = lockfile.mend(root)
        in_last = load(TEXT[:at]) if _parses(TEXT[:at]) else {}
        if said is None:  # the cut left every stage there: DVC compares what the last one says with what lies there
            assert list(in_last["stages"]) == list(WHOLE)
        else:
            assert "cut off" in said and (root / "dvc.lock").read_text() == TEXT, at


def _parses(text: str) -> bool:
    try:
        load(text)
    except yaml.YAMLError:
        return False
    return True


def test_what_was_written_before_the_cut_is_kept(root: Path) -> None:
    later = load(TEXT)
    first, second = list(WHOLE)[:2]
    later["stages"][first]["outs"][0]["md5"] = "f" * 32
    text = yaml.safe_dump(later, sort_keys=False)
    at = text.index(list(WHOLE)[4] + ":\n") - 3
    lock(root, text[:at])
    assert lockfile.mend(root) is not None
    found = stages(root)
    assert list(found) == list(WHOLE)
    assert found[first]["outs"][0]["md5"] == "f" * 32
    assert {name: entry for name, entry in found.items() if name != first} == {
        name: entry for name, entry in WHOLE.items() if name != first
    }
    assert found[second] == WHOLE[second]


@pytest.mark.integration
def test_a_file_that_is_cut_is_never_kept(root: Path) -> None:
    for at in CUTS[:-1]:
        lock(root, TEXT[:at])
        lockfile.keep(root)
        assert load((root / ".thinner/dvc.lock").read_text())["stages"].keys() == WHOLE.keys()


def test_a_file_of_aliases_is_not_dvcs_and_takes_no_time(root: Path) -> None:
    laughs = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40))]
    entries = "".join(f"  {line}\n" for line in laughs)
    lock(root, f"schema: '2.0'\nstages:\n  one:\n    cmd: x\n    deps:\n    - path: y\n      md5: z\n{entries}")
    began = time.process_time()
    lockfile.keep(root)
    assert "whole again" in str(lockfile.mend(root))
    assert time.process_time() - began < 5
    assert (root / "dvc.lock").read_text() == TEXT


def test_without_a_copy_the_last_commit_has_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lockfile, "_PATIENCE", (2, 0.0))
    lock(tmp_path, TEXT)
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    lock(tmp_path, "")
    assert "whole again, by the last commit" in (lockfile.mend(tmp_path) or "")
    assert stages(tmp_path) == WHOLE


@pytest.mark.parametrize("change", ["missing", "fewer", "other"])
def test_what_a_person_did_is_left_alone(root: Path, change: str) -> None:
    """No file: everything is to run anew. Other entries: another branch."""
    now = load(TEXT)
    if change == "missing":
        (root / "dvc.lock").unlink()
    elif change == "fewer":
        del now["stages"][next(iter(WHOLE))]
        lock(root, yaml.safe_dump(now, sort_keys=False))
    else:
        lock(root, yaml.safe_dump({"schema": "2.0", "stages": {"mine": {"cmd": "true"}}}))
    assert lockfile.mend(root) is None
    if change == "missing":
        assert not (root / "dvc.lock").exists()


def test_what_a_checkout_took_back_is_not_cut_off(root: Path) -> None:
    fewer = load(TEXT)
    for name in list(WHOLE)[-2:]:
        del fewer["stages"][name]
    text = yaml.safe_dump(fewer, sort_keys=False)
    lock(root, text)
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a"]):
        subprocess.run(["git", *command], cwd=root, check=True)
    assert lockfile.mend(root) is None and (root / "dvc.lock").read_text() == text
    # nor is what runs then: it is what there is to come back to
    first = next(iter(fewer["stages"]))
    fewer["stages"][first]["cmd"] += " --again"
    lock(root, yaml.safe_dump(fewer, sort_keys=False))
    assert lockfile.mend(root) is None
    lockfile.keep(root)
    lock(root, yaml.safe_dump(fewer, sort_keys=False)[:-9])
    assert "whole again" in (lockfile.mend(root) or "") and stages(root) == fewer["stages"]


def test_with_nothing_to_go_by_it_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lockfile, "_PATIENCE", (2, 0.0))
    lock(tmp_path, TEXT[:100])
    assert lockfile.mend(tmp_path) is None
    assert (tmp_path / "dvc.lock").read_text() == TEXT[:100]


def test_whoever_reads_the_lock_mends_it(root: Path) -> None:
    whole = lineage.locked_hashes(root)
    lock(root, TEXT[: TEXT.index("outs:") + 2])
    assert lineage.locked_hashes(root) == whole
    assert (root / "dvc.lock").read_text() == TEXT


def test_a_reader_beside_dvc_waits_until_the_file_is_whole(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = lineage.locked_hashes(root)
    half = TEXT[: TEXT.index("outs:") + 2]
    lock(root, half)
    slept = []

    def sleep(seconds: float) -> None:  # in which DVC comes to the end
        slept.append(seconds)
        lock(root, TEXT)

    monkeypatch.setattr(lineage.time, "sleep", sleep)
    assert lineage.locked_hashes(root) == whole and len(slept) == 1


# --- the rwlock ---

OTHER = {"write": {}, "read": {"/data/raw": [{"pid": 1, "cmd": "dvc status"}]}}


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, check=True)
    (tmp_path / "raw.txt").write_text("raw")
    (tmp_path / "dvc.yaml").write_text(
        "stages:\n  copy:\n    cmd: cp raw.txt made.txt\n    deps: [raw.txt]\n    outs: [made.txt]\n"
    )
    return tmp_path


def dvc(root: Path, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "dvc", *words], cwd=root, capture_output=True, text=True, check=False)


def test_an_empty_folder_of_the_run_cache_is_removed(repository: Path) -> None:
    """What a kill leaves between DVC's making of the folder and its writing into it."""
    assert dvc(repository, "repro").returncode == 0
    (entry,) = (repository / ".dvc/cache/runs").glob("*/*/*")
    entry.unlink()
    (repository / "dvc.lock").unlink()
    met = dvc(repository, "repro")
    assert met.returncode != 0 and "join() argument" in met.stderr  # what a person meets without us
    assert lineage.mend(repository) is None
    assert dvc(repository, "repro").returncode == 0
    (entry,) = (repository / ".dvc/cache/runs").glob("*/*/*")
    assert lineage.mend(repository) is None and entry.exists()


@pytest.mark.integration
@pytest.mark.parametrize("text", ["", '{"write": {}, "re', "[]", '{"read": {"/raw": [1]}}', '{"write": 3}'])
def test_an_rwlock_that_was_cut_off_is_removed(repository: Path, text: str) -> None:
    path = repository / lockfile.RWLOCK
    path.write_text(text)
    assert dvc(repository, "status").returncode != 0  # what a person meets without us
    assert lineage.reasons(repository, "copy") == ["has not run yet"]
    assert dvc(repository, "repro").returncode == 0
    path.write_text(text)
    assert "cut off" in lineage.mend_rwlock(repository)
    assert lineage.mend_rwlock(repository) is None


@pytest.mark.integration
def test_a_process_that_only_has_the_number_of_one_that_was_killed_holds_nothing(repository: Path) -> None:
    path, before = repository / lockfile.RWLOCK, time.time() - 60
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as later:
        sleeping = subprocess.Popen(["sleep", "600"])
        try:
            for pid in (sleeping.pid, later.pid):
                held = {"pid": pid, "cmd": "/bin/dvc repro --single-item copy"}
                path.write_text(json.dumps({"write": {str(repository / "made.txt"): held}, "read": {}}))
                if pid == later.pid:  # its words tell nothing; that it began after the file was written does
                    os.utime(path, (before, before))
                assert "is busy" in dvc(repository, "repro").stderr
                assert lineage.reasons(repository, "copy") == ["has not run yet"]
                assert dvc(repository, "repro", "--force").returncode == 0
                (repository / "dvc.lock").unlink()
                (repository / "made.txt").unlink()
        finally:
            sleeping.kill()
            sleeping.wait()
            later.communicate(b"\n")


def test_who_really_works_keeps_what_it_holds(
    repository: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    graph = (repository / "dvc.yaml").read_text()
    (repository / "dvc.yaml").write_text(graph.replace("cp raw", "touch begun; sleep 600; cp raw"))
    worker = subprocess.Popen([sys.executable, "-m", "dvc", "repro", "copy"], cwd=repository, start_new_session=True)
    path = repository / lockfile.RWLOCK
    try:
        eventually((repository / "begun").exists)  # before that DVC writes the file again and again
        before = path.read_text()
        assert str(worker.pid) in before
        assert lineage.mend_rwlock(repository) is None
        assert path.read_text() == before
        with pytest.raises(lineage.BusyError):
            lineage.reasons(repository, "copy")
        held = json.loads(before)
        held["read"].update(OTHER["read"])  # process 1 is no `dvc status`
        path.write_text(json.dumps(held))
        assert "(1)" in lineage.mend_rwlock(repository)
        assert json.loads(path.read_text()) == json.loads(before)
    finally:
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
    assert lineage.reasons(repository, "copy") == ["has not run yet"]
    # that it was killed is no news, in none of DVC's ways to say so
    assert "had been killed" not in caplog.text + "".join(capfd.readouterr())
