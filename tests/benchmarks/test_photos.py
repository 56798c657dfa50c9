"""benchmarks/photos.py: few pictures out of many, always the same."""

import shutil
from pathlib import Path

import pytest

from benchmarks import photos
from thinner.data.sources import Part, list_source


def folder(root: Path, train: int, test: int) -> Path:
    for name in (*photos.CLASSES, "frog"):
        for part, count in (("train", train), ("test", test)):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                (root / part / name / f"{number:04}.jpg").write_bytes(b"a picture")
    return root


def test_it_copies_what_the_study_is_about_and_a_second_time_nothing(tmp_path, capsys):
    data, out = folder(tmp_path / "all", 810, 101), tmp_path / "few"
    assert photos.main(["--data", str(data), "--out", str(out)]) == 0
    listing = list_source(f"folder:{out}", tmp_path)
    assert listing.classes == photos.CLASSES
    parts = list(listing.parts)
    assert [parts.count(part) for part in (Part.TRAIN, Part.UNLABELLED, Part.TEST)] == [1200, 2000, 400]
    assert all(label == -1 for label, part in zip(listing.labels, parts, strict=True) if part == Part.UNLABELLED)
    one = out / "train/cat/0299.jpg"
    one.write_bytes(b"mine")
    assert photos.main(["--data", str(data), "--out", str(out)]) == 0 and one.read_bytes() == b"mine"
    assert "3,600 pictures" in capsys.readouterr().out


@pytest.mark.integration
def test_a_copy_that_was_stopped_is_made_again(tmp_path, monkeypatch):
    data, out = folder(tmp_path / "all", 800, 100), tmp_path / "few"
    copy = shutil.copyfile

    def stopped(source, target):
        Path(target).write_bytes(b"a pi")
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copyfile", stopped)
    with pytest.raises(KeyboardInterrupt):
        photos.pick(data, out)
    monkeypatch.setattr(shutil, "copyfile", copy)
    assert photos.pick(data, out) == 3600
    assert {path.read_bytes() for path in out.rglob("*.jpg")} == {b"a picture"}
    assert len(list_source(f"folder:{out}", tmp_path)) == 3600


@pytest.mark.parametrize(("train", "test"), [(799, 100), (800, 99), (0, 0)])
def test_too_few_pictures_are_named_before_anything_is_copied(tmp_path, capsys, train, test):
    data = folder(tmp_path / "all", train, test)
    assert photos.main(["--data", str(data), "--out", str(tmp_path / "few")]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "airplane" in said and "are needed" in said
    assert not (tmp_path / "few").exists()
