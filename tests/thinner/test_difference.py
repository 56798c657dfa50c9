"""thinner/data/difference.py on two states small enough to be worked by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from thinner.data import difference
from thinner.data.sources import DataError


def state(folder: Path, pictures: dict[str, tuple[str | None, str]], classes: list[str]) -> Path:
    """The four files for {name: (label, split)}."""
    folder.mkdir()
    (folder / "names.json").write_text(json.dumps(list(pictures)))
    labels = [-1 if label is None else classes.index(label) for label, _ in pictures.values()]
    np.save(folder / "labels.npy", np.array(labels, np.int64))
    home = [split for _, split in pictures.values()]
    rows = {name: np.flatnonzero([name == each for each in home]) for name in ("labelled", "unlabelled", "validation")}
    np.savez(folder / "splits.npz", **rows)
    info = {"classes": classes, "sha256": "0", "image_size": 28, "channels": 1, "fit": "crop"}
    (folder / "info.json").write_text(json.dumps(info))
    return folder


def test_what_came_went_and_changed(tmp_path: Path) -> None:
    before = state(
        tmp_path / "before",
        {
            "a": ("cat", "labelled"),
            "b": ("cat", "labelled"),
            "c": ("dog", "validation"),
            "d": (None, "unlabelled"),
            "e": ("dog", "labelled"),
        },
        ["cat", "dog"],
    )
    after = state(
        tmp_path / "after",  # another order of classes and pictures, and a class more: neither is a change
        {
            "f": ("owl", "labelled"),
            "e": ("dog", "validation"),
            "d": ("cat", "labelled"),
            "b": ("dog", "labelled"),
            "a": ("cat", "labelled"),
            "g": (None, "unlabelled"),
        },
        ["owl", "dog", "cat"],
    )
    found = difference.compare(difference.read(before), difference.read(after))
    assert found == difference.Difference(
        came=[("f", "owl"), ("g", None)],
        went=[("c", "dog")],
        relabelled=[("b", "cat", "dog")],
        moved=[("d", "unlabelled", "labelled"), ("e", "labelled", "validation")],
        stayed=4,
        compared=3,  # of d nobody knew the label before
    )


def test_a_state_against_itself_is_no_difference(tmp_path: Path) -> None:
    index = difference.read(state(tmp_path / "x", {"a": ("cat", "labelled"), "b": (None, "unlabelled")}, ["cat"]))
    assert difference.compare(index, index) == difference.Difference([], [], [], [], stayed=2, compared=1)


@pytest.mark.parametrize("harm", ["names.json", "labels.npy", "splits.npz", "info.json"])
def test_files_that_do_not_belong_together_are_one_line(tmp_path: Path, harm: str) -> None:
    folder = state(tmp_path / "x", {"a": ("cat", "labelled"), "b": ("dog", "labelled")}, ["cat", "dog"])
    if harm == "names.json":
        (folder / harm).write_text('["a", "a"]')
    else:
        (folder / harm).write_bytes((folder / harm).read_bytes()[:-20])
    with pytest.raises(DataError, match=r"names, labels and splits cannot be read \("):
        difference.read(folder)


def test_pictures_that_were_packed_or_packed_anew_are_the_same_ones(tmp_path: Path) -> None:
    def kept(name: str, *names: str, source: str) -> difference.Index:
        folder = state(tmp_path / name, dict.fromkeys(names, ("cat", "labelled")), ["cat"])
        info = json.loads((folder / "info.json").read_text())
        (folder / "info.json").write_text(json.dumps({**info, "source": source}))
        return difference.read(folder)

    files = kept("files", "cat/1.jpg", "cat/2.jpg", source="folder:photos")
    shards = kept("shards", "train-0.tar/cat/1.jpg", "deep/train-1.TAR/cat/3.jpg", source="shards:s")
    found = difference.compare(files, shards)
    assert (found.came, found.went, found.stayed) == ([("cat/3.jpg", "cat")], [("cat/2.jpg", "cat")], 1)
    same = kept("same", "0.tar/1.jpg", "1.tar/1.jpg", source="shards:s")  # keys count in each shard anew
    assert list(same.labels) == ["0.tar/1.jpg", "1.tar/1.jpg"]
    assert list(kept("folder", "x.tar/1.jpg", source="folder:s").labels) == ["x.tar/1.jpg"]
