"""`thinner data diff` between commits of a repository with real pictures that prepare has read."""

import csv
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from flows import cli, recipes
from tasks import remote
from tests.empty import put_stores
from tests.toy import PROJECT

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning"),  # inside DVC's trie
]
GRAPH = {
    "stages": {
        "prepare": {
            "cmd": "python -m tasks.prepare",
            "deps": ["data/raw"],
            "params": ["run.seed", "data"],
            "outs": ["data/prepared"],
            "metrics": [{"reports/prepare.json": {"cache": False}}],
        }
    }
}


def sh(root: Path, *command: str) -> str:
    env = os.environ | {
        "PYTHONPATH": str(PROJECT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    if (root / "params.yaml").exists():  # its deep check has tests of its own, and takes as long as prepare
        env["THINNER_CHECKED"] = hashlib.sha256((root / "params.yaml").read_bytes()).hexdigest()
    return subprocess.run(command, cwd=root, env=env, text=True, capture_output=True, check=True).stdout


def commit(root: Path, tag: str) -> None:
    sh(root, sys.executable, "-m", "dvc", "repro", "--quiet")
    sh(root, "git", "add", "--all")
    sh(root, "git", "commit", "--quiet", "--message", tag)
    sh(root, "git", "tag", tag)


def paint(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(shade).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(noise).save(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Tag `one`: 10 cats and 10 dogs. Tag `two`: a cat less, two owls, cat 3 is a dog by a correction."""
    root = tmp_path_factory.mktemp("diff") / "repo"
    photos = root / "data/raw/photos"
    for number in range(20):
        paint(photos / ("cat" if number < 10 else "dog") / f"{number:02d}.png", number)
    shutil.copy(PROJECT / "params.yaml", root)
    put_stores(root)
    (root / "dvc.yaml").write_text(yaml.safe_dump(GRAPH, sort_keys=False))
    (root / ".gitignore").write_text(".thinner/\n.prefect/\nmlflow.db*\nmlartifacts/\n.partial-*\ndata/raw\n")
    values = {
        "data.source": "folder:data/raw/photos", "data.image_size": 16, "data.channels": 3, "data.labelled": 0.6,
        "data.validation": 0.2, "data.test": 0.2, "student.mean": [0.5] * 3, "student.std": [0.5] * 3,
        "run.threads": 1, "run.device": "cpu",
    }  # fmt: skip
    here = Path.cwd()
    os.chdir(root)
    try:
        recipes.write(root, values, "the test")
        for command in (["init", "--quiet", "--initial-branch=main"], ["config", "user.email", "a@example.org"]):
            sh(root, "git", *command)
        sh(root, "git", "config", "user.name", "A")
        sh(root, sys.executable, "-m", "dvc", "init", "--quiet")
        remote.write(root, str(root.parent / "store"), {}, local=False, replace=False)
        sh(root, "git", "commit", "--quiet", "--allow-empty", "--message", "nothing")
        sh(root, "git", "tag", "empty")
        commit(root, "one")
        (photos / "cat/00.png").unlink()
        for number in (90, 91, 92):
            paint(photos / "owl" / f"{number}.png", number)
        (root / "data/raw/corrections.csv").write_text("file,given,label\ncat/03.png,cat,dog\n")
        recipes.write(root, {"data.corrections": "data/raw/corrections.csv"}, "the test")
        commit(root, "two")
        yield root
    finally:
        os.chdir(here)


def diff(root: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int, str]:
    monkeypatch.chdir(root)
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    done = CliRunner().invoke(cli.app, ["data", "diff", *words])
    return done.exit_code, " ".join(done.output.split())


def test_pictures_that_came_went_and_changed_label_are_named(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, said = diff(made, monkeypatch, "one", "two", "--csv", "changes.csv")
    assert code == 0, said
    assert "3 came owl 3 owl/90.png; owl/91.png; owl/92.png" in said
    assert "1 went cat 1 cat/00.png" in said
    assert "1 changed label cat \N{RIGHTWARDS ARROW} dog 1 cat/03.png" in said
    assert "19 pictures are in both" in said
    with (made / "changes.csv").open(newline="") as text:
        rows = list(csv.DictReader(text))
    (made / "changes.csv").unlink()
    assert {"change": "label", "file": "cat/03.png", "before": "cat", "after": "dog"} in rows
    assert [row["file"] for row in rows if row["change"] == "went"] == ["cat/00.png"]
    code, said = diff(made, monkeypatch, "two")  # what lies here is that commit's
    assert code == 0 and "0 came 0 went 0 changed label 0 changed split" in said and "pixels are not" not in said


def test_another_picture_under_the_same_name_is_said(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(shutil.copytree(made, made.parent / "repainted", symlinks=True))
    paint(root / "data/raw/photos/dog/15.png", 1234)
    sh(root, sys.executable, "-m", "dvc", "repro", "--quiet")
    code, said = diff(root, monkeypatch, "two")
    assert code == 0 and "the names are the same and the pixels are not: some file has another picture in it" in said


def test_a_clone_fetches_the_index_and_no_picture(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    other = made.parent / "other"
    sh(made.parent, "git", "clone", "--quiet", str(made), str(other))
    code, said = diff(other, monkeypatch, "one", "two")
    assert code == 1 and "one: data/prepared is neither in DVC's cache here nor at a remote" in said
    monkeypatch.chdir(made)
    remote.push(made, everything=True)
    code, said = diff(other, monkeypatch, "one", "two")
    assert code == 0 and "1 went cat 1 cat/00.png" in said
    here = {path.stat().st_size for path in (other / ".dvc/cache/files").rglob("*") if path.is_file()}
    pixels = (made / "data/prepared/images.npy").stat().st_size
    assert here and max(here) < pixels


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "nowhere is no commit, tag or branch ("),
        (["--", "-p"], "'-p' is no commit, tag or branch"),
        (["empty"], "empty has no dvc.lock. The commits that have one: git log --oneline -- dvc.lock"),
    ],
)
def test_a_revision_that_is_none_is_one_line(
    made: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    code, output = diff(made, monkeypatch, *words)
    assert code == 1 and output.startswith(said) and "Traceback" not in output
