"""Flipped bits under DVC's nose: time, size and inode of the file stay as they are."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tasks import integrity, lineage

pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")  # inside DVC's trie

GRAPH = {
    "stages": {
        "first": {
            "cmd": "mkdir -p data/first/sub && cp raw.txt data/first/b && cp raw.txt data/first/sub/x"
            " && echo more >> data/first/b",
            "deps": ["raw.txt"],
            "outs": ["data/first"],
            "metrics": [{"first.json": {"cache": False}}],
        },
        "second": {
            "cmd": "cat data/first/b first.json > second.txt",
            "deps": ["data/first", "first.json"],
            "outs": ["second.txt"],
        },
    }
}
GRAPH["stages"]["first"]["cmd"] += " && echo 1 > first.json"


def dvc(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def git(root: Path, *arguments: str) -> None:
    subprocess.run(["git", "-c", "user.name=x", "-c", "user.email=x@y", *arguments], cwd=root, check=True)


def test_what_lies_in_a_folder_around_the_results_of_several_stages_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    graph = {
        "stages": {
            "each": {
                "foreach": ["one", "two"],
                "do": {"cmd": "mkdir -p all && echo ${item} > all/${item}", "outs": ["all/${item}"]},
            },
            "reader": {"cmd": "cat all/* > read.txt", "deps": ["all"], "outs": ["read.txt"]},
        }
    }
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump(graph))
    git(tmp_path, "init", "-q")
    dvc(tmp_path, "init", "--quiet")
    dvc(tmp_path, "repro", "--quiet")
    file = tmp_path / "all" / "one"
    inputs = lineage.inputs(tmp_path, "reader")
    assert integrity.mend_inputs(tmp_path, inputs) == []
    before, mode = file.stat(), file.stat().st_mode
    file.chmod(0o644)
    with file.open("r+b") as opened:
        opened.write(b"0")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    file.chmod(mode)
    (damage,) = integrity.mend_inputs(tmp_path, inputs)
    assert damage.path == "all/one" and damage.stage == "each@one"
    assert not file.exists() or file.read_text() == "one\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("integrity") / "repo"
    root.mkdir()
    (root / "raw.txt").write_text("raw")
    (root / "dvc.yaml").write_text(yaml.safe_dump(GRAPH))
    git(root, "init", "-q")
    dvc(root, "init", "--quiet")
    dvc(root, "repro", "--quiet")
    git(root, "add", "--all")
    git(root, "commit", "-qm", "made")
    return root


@pytest.fixture
def repo(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = Path(shutil.copytree(made, tmp_path / "repo", symlinks=True))
    monkeypatch.chdir(root)
    lineage.reasons(root, "second")  # DVC has seen all files as they lie here
    return root


def flip(path: Path, bit: int = 9) -> None:
    before = path.stat()
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    with path.open("r+b") as file:  # in place: the inode stays
        file.write(content)
    path.chmod(before.st_mode)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def cached(root: Path, path: str) -> Path:
    md5 = integrity._md5(root / path)
    return root / ".dvc/cache/files/md5" / md5[:2] / md5[2:]


def inputs(root: Path) -> lineage.Inputs:
    return lineage.inputs(root, "second")


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in _files(root)}


def _files(root: Path) -> Iterator[Path]:
    return (path for path in root.rglob("*") if path.is_file() and not {".git", "tmp"} & set(path.parts[-6:]))


def test_what_is_whole_is_left_alone(repo: Path) -> None:
    before = contents(repo)
    assert integrity.mend_inputs(repo, inputs(repo)) == [] == integrity.mend_all(repo)
    assert contents(repo) == before


@pytest.mark.parametrize("path", ["data/first/b", "data/first/sub/x", "first.json"])
def test_a_flipped_bit_that_dvc_does_not_see_is_found_and_undone(repo: Path, path: str) -> None:
    before = contents(repo)
    flip(repo / path)
    assert lineage.reasons(repo, "second") == []  # nobody else notices
    (damage,) = integrity.mend_inputs(repo, inputs(repo))
    assert str(damage) == f"{path} is not what first wrote (a flipped bit?); it is whole again, from DVC's cache"
    assert contents(repo) == before
    assert lineage.reasons(repo, "second") == [] == lineage.reasons(repo, "first")


def test_where_no_good_copy_is_left_it_is_removed_and_made_again(repo: Path) -> None:
    before = contents(repo)
    copy = cached(repo, "data/first/b")
    flip(copy, 3)
    flip(repo / "data/first/b")
    (damage,) = integrity.mend_inputs(repo, inputs(repo))
    assert damage.restored is None and str(damage).endswith(integrity.AGAIN)
    assert not (repo / "data/first/b").exists() and not copy.exists()
    dvc(repo, "repro")
    assert {name: value for name, value in contents(repo).items() if "runs" not in name} == {
        name: value for name, value in before.items() if "runs" not in name
    }


def test_without_dvcs_cache_a_flipped_bit_is_found_too(repo: Path) -> None:
    shutil.rmtree(repo / ".dvc/cache")
    assert integrity.mend_inputs(repo, inputs(repo)) == []
    flip(repo / "data/first/sub/x")
    (damage,) = integrity.mend_inputs(repo, inputs(repo))
    assert damage.path == "data/first" and damage.restored is None and not (repo / "data/first").exists()


def test_what_dvcignore_names_is_no_part_of_a_folder(repo: Path) -> None:
    (repo / ".dvcignore").write_text("*.log\n")
    (repo / "data/first/x.log").write_text("noise")
    shutil.rmtree(repo / ".dvc/cache")
    assert "data/first" not in str(lineage.reasons(repo, "second"))
    assert integrity.mend_inputs(repo, inputs(repo)) == []


def test_what_is_in_the_last_commit_comes_from_there(repo: Path) -> None:
    shutil.rmtree(repo / ".dvc/cache")
    flip(repo / "first.json")
    (damage,) = integrity.mend_inputs(repo, inputs(repo))
    assert damage.restored == "the last commit" and (repo / "first.json").read_text() == "1\n"


def test_what_a_person_changed_is_dvcs_to_judge(repo: Path) -> None:
    (repo / "data/first/b").write_text("other")
    assert integrity.mend_inputs(repo, inputs(repo)) == []
    assert (repo / "data/first/b").read_text() == "other"


@pytest.mark.parametrize("path", ["data/first/b", "second.txt"])
def test_a_damaged_object_of_dvcs_cache_is_written_again(repo: Path, path: str) -> None:
    before = contents(repo)
    copy = cached(repo, path)
    flip(copy)
    (damage,) = integrity.mend_all(repo)
    assert damage.restored == path and str(copy.relative_to(repo)) == damage.path
    assert contents(repo) == before and copy.stat().st_mode & 0o777 == 0o444


def test_a_damaged_list_of_a_folder_is_removed(repo: Path) -> None:
    (listing,) = (repo / ".dvc/cache/files/md5").glob("*/*.dir")
    flip(listing, 100)
    assert [damage.restored for damage in integrity.mend_all(repo)] == [None]
    assert not listing.exists() and integrity.mend_inputs(repo, inputs(repo)) == []


def test_it_can_be_left_out(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flip(repo / "data/first/b")
    monkeypatch.setenv(integrity.OFF, "no")
    assert integrity.mend_inputs(repo, inputs(repo)) == []
