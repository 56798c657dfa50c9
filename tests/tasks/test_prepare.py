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
from thinner.data.sources import DataError, list_source
from thinner.data.store import open_store, write_store
from thinner.params import Data, Params, Run

RUN = Run(
    seed=0, device="cpu", devices=1, nodes=1, precision="fp32", threads=2, channels_last=False, compile=False, sync_batch_norm=False
)  # fmt: skip
DATA = Data(
    source="folder:data/raw/photos", root="data/raw", image_size=16, channels=3, fit="crop",
    labelled=10, validation=6, test=6, unlabelled="rest", max_unreadable=0.1, max_pixels=10_000,
    corrections=None, near_duplicates="keep",
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


def everything() -> dict[str, bytes]:
    files = [*Path("data/prepared").iterdir(), Path("reports/prepare.json")]
    return {file.name: file.read_bytes() for file in files}


def test_without_corrections_it_writes_what_write_store_writes(photos: Path, tmp_path: Path) -> None:
    prepare(stage())
    listing = list_source(DATA.source, DATA.root, lambda line: None)
    choices = DATA.model_dump(exclude={"root", "corrections", "near_duplicates"})
    report = write_store(tmp_path / "other", listing, **choices, seed=0)
    found = everything()
    assert json.loads(found.pop("prepare.json")) == report
    assert found == {file.name: file.read_bytes() for file in (tmp_path / "other").iterdir()}


def test_corrections_change_labels_and_no_split(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(stage())
    before = open_store("data/prepared")
    names = json.loads(Path("data/prepared/names.json").read_text())
    rows = {name: int(before.splits[name][0]) for name in ("labelled", "unlabelled", "test")}
    file = Path("data/raw/corrections.csv")
    given = {row: names[row].split("/")[0] for row in rows.values()}
    other = {"cat": "dog", "dog": "cat"}
    lines = [f"{names[row]},{label},{other[label]}" for row, label in given.items()]
    file.write_text("\n".join(["file,given,label", *lines]) + "\n")
    prepare(stage(corrections=str(file)))
    assert (
        "3 labels are corrected by data/raw/corrections.csv (2 of them in a split with labels)"
        in capsys.readouterr().out
    )
    after = open_store("data/prepared")
    for name, numbers in before.splits.items():
        np.testing.assert_array_equal(after.splits[name], numbers)
    changed = np.flatnonzero(after.labels != before.labels)
    assert set(changed.tolist()) == {rows["labelled"], rows["test"]}
    assert after.sha256 != before.sha256
    report = json.loads(Path("reports/prepare.json").read_text())
    assert report["cleaning"] == {"corrected": {"labels": 3, "used": 2}}
    assert report["balance"]["test"] == dict(
        zip(after.classes, np.bincount(after.labels[after.splits["test"]]).tolist(), strict=True)
    )


def test_no_corrections_in_the_file_leave_every_byte(photos: Path) -> None:
    (photos / "dog/00.png").write_bytes((photos / "cat/01.png").read_bytes())
    (photos / "dog/02.png").write_bytes(b"")
    prepare(stage())
    before = everything()
    Path("data/raw/corrections.csv").write_text("file,given,label\n")
    prepare(stage(corrections="data/raw/corrections.csv"))
    after = everything()
    report = json.loads(after.pop("prepare.json"))
    assert report.pop("cleaning") == {"corrected": {"labels": 0, "used": 0}}
    assert report == json.loads(before.pop("prepare.json"))
    assert after == before


def test_corrections_beside_the_pictures_are_not_called_files_that_nobody_reads(photos: Path) -> None:
    (photos / "notes.txt").write_text("taken in May")
    (photos / "corrections.csv").write_text("file,given,label\n")
    prepare(stage(corrections=str(photos / "corrections.csv")))
    ignored = json.loads(Path("reports/prepare.json").read_text())["ignored"]
    assert ignored["count"] == 1 and list(ignored["files"]) == ["notes.txt"]


def test_a_corrected_picture_that_is_gone_is_one_line(photos: Path) -> None:
    Path("data/raw/corrections.csv").write_text("file,given,label\ncat/99.png,cat,dog\n")
    with pytest.raises(DataError) as caught:
        prepare(stage(corrections="data/raw/corrections.csv"))
    assert str(caught.value) == (
        "data/raw/corrections.csv line 2: 'cat/99.png' is no picture of folder data/raw/photos. Remove the line"
    )
    assert not Path("data/prepared").exists()


def test_corrections_that_empty_a_class_are_refused(photos: Path) -> None:
    lines = [f"dog/{i:02d}.png,dog,cat" for i in range(15)]
    Path("data/raw/corrections.csv").write_text("\n".join(["file,given,label", *lines]) + "\n")
    with pytest.raises(DataError, match="no picture of class 'dog' is left in labelled"):
        prepare(stage(corrections="data/raw/corrections.csv"))


def test_near_duplicates_come_into_one_split(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(stage())
    names = json.loads(Path("data/prepared/names.json").read_text())
    splits = open_store("data/prepared").splits
    cats = {name: [names[row] for row in rows if names[row].startswith("cat")] for name, rows in splits.items()}
    kept, moved = cats["labelled"][0], cats["test"][0]
    Image.open(photos / kept).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(photos / moved)
    prepare(stage(near_duplicates="one_split"))
    assert f"note: near-duplicates in two splits: 1 moved: {moved} (from test to labelled)" in capsys.readouterr().out
    after = open_store("data/prepared").splits
    row = names.index(moved)
    assert row in after["labelled"] and row not in after["test"]
    assert sum(map(len, after.values())) == sum(map(len, splits.values()))
    report = json.loads(Path("reports/prepare.json").read_text())
    assert report["cleaning"]["moved"] == {"count": 1, "files": {moved: "from test to labelled"}}
    assert report["images"]["test"] == len(splits["test"]) - 1


def test_copies_of_the_sources_own_test_pictures_are_dropped_from_training(photos: Path, tmp_path: Path) -> None:
    own = tmp_path / "data/raw/own"
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (own / part / name).mkdir(parents=True)
    for number, file in enumerate(sorted(photos.rglob("*.png"))):
        part = "test" if number % 3 == 0 else "train"
        (own / part / file.parent.name / file.name).write_bytes(file.read_bytes())
    original, copy = own / "test/cat/00.png", own / "train/cat/copy.png"
    Image.open(original).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(copy)
    prepare(stage(source="folder:data/raw/own", test=None, near_duplicates="one_split"))
    report = json.loads(Path("reports/prepare.json").read_text())
    (file,) = report["cleaning"]["dropped"]["files"].items()
    assert file[0] == "train/cat/copy.png" and file[1].endswith("like a picture of test")
    assert report["images"]["unused"] == 1 and report["images"]["test"] == 10
