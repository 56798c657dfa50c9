"""The stage on real pictures: what it writes, what it says, and that both are the same the second time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from tasks.prepare import dark, prepare
from tasks.stage import Stage
from thinner.config import Data, Params, Run
from thinner.sources import DataError
from thinner.store import open_store

RUN = Run(
    seed=0, device="cpu", devices=1, precision="fp32", threads=2, channels_last=False, compile=False
)  # fmt: skip
DATA = Data(
    source="folder:data/raw/photos", root="data/raw", image_size=16, channels=3, fit="crop",
    labelled=10, validation=6, test=6, unlabelled="rest", max_unreadable=0.1, max_pixels=10_000,
)  # fmt: skip


def stage(**changes: Any) -> Stage:
    data = DATA.model_copy(update=changes)
    return Stage("prepare", cast(Params, Params.model_construct(run=RUN, data=data)))


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data/raw/photos"
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for i in range(15):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / name / f"{i:02d}.png")
    return folder


def test_it_writes_the_prepared_data_and_the_report(photos: Path) -> None:
    prepare(stage())
    store = open_store("data/prepared")
    report = json.loads(Path("reports/prepare.json").read_text())
    assert store.images.shape == (30, 16, 16, 3)
    assert report["origin"] == "folder data/raw/photos"
    assert report["balance"]["test"] == {"cat": 3, "dog": 3}
    assert (store.labels[store.splits["unlabelled"]] == -1).all()


def test_a_second_run_writes_the_same_bytes(photos: Path) -> None:
    def everything() -> dict[str, bytes]:
        files = [*Path("data/prepared").iterdir(), Path("reports/prepare.json")]
        return {file.name: file.read_bytes() for file in files}

    prepare(stage())
    first = everything()
    prepare(stage())
    assert everything() == first


def test_what_a_person_should_look_at_is_said(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "cat/00.png").write_bytes(b"")
    (photos / "cat/notes.txt").write_text("x")
    for name in ("dog/00.png", "dog/01.png"):
        (photos / name).write_bytes((photos / "cat/01.png").read_bytes())
    prepare(stage())
    said = capsys.readouterr().out
    assert "30 images of 2 classes: folder data/raw/photos" in said
    assert "note: 1 could not be read: cat/00.png" in said
    assert "note: 1 files are of a kind we do not read (1 .txt): cat/notes.txt" in said
    assert "note: 2 images have an identical twin" in said


@pytest.mark.parametrize(("white", "told"), [(4095, True), (65535, False)])
def test_pictures_of_12_bits_in_files_of_16_are_told(
    photos: Path, capsys: pytest.CaptureFixture[str], white: int, told: bool
) -> None:
    for name in ("cat/03.png", "dog/07.png"):
        Image.fromarray(np.linspace(0, white, 256).astype(np.uint16).reshape(16, 16)).save(photos / name)
    prepare(stage())
    line = "note: 2 of 30 pictures looked at have nothing above 16 of 255, as 12 bits in a file of 16 bits would: "
    assert (line + "cat/03.png, dog/07.png. If so, scale" in capsys.readouterr().out) == told
    assert (open_store("data/prepared").images[3].max() == 16) == told


def test_at_most_a_thousand_pictures_are_looked_at_for_darkness(photos: Path) -> None:
    prepare(stage())  # for the names
    assert dark(np.full((5000, 2, 2, 1), 17, np.uint8)) == []
    images = np.full((30, 2, 2, 1), 255, np.uint8)
    images[[0, 1, 29]] = 16
    assert dark(images, most=2)[0].startswith("note: 2 of 2 pictures looked at")  # the first and the last


def test_a_failure_leaves_what_was_there_before(photos: Path) -> None:
    prepare(stage())
    before = open_store("data/prepared").sha256
    for i in range(10):
        (photos / f"dog/{i:02d}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"data.max_unreadable: 0.1 allows 3 of 30 images, 10 cannot be read"):
        prepare(stage())
    assert open_store("data/prepared").sha256 == before
    assert not list(Path("data").glob(".partial*"))
