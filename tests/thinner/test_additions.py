"""data/additions.py: a list that a person filled in, brought into a folder or a CSV source and listed again."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from thinner.data import additions
from thinner.data.sources import DataError, Listing, list_source


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """data/raw with a folder and a CSV of two classes; new pictures elsewhere; one in data.root."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for i, name in enumerate(
        (
            "data/raw/photos/cat/0.png",
            "data/raw/photos/dog/1.png",
            "new/a.png",
            "new/b.png",
            "new/c.png",
            "data/raw/d.png",
        )
    ):
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (4, 4), np.uint8) // 8 * 8 + i).save(path)
    Path("data/raw/list.csv").write_text("split,label, path\n,cat,photos/cat/0.png\n,dog,photos/dog/1.png\n")
    Path("out").mkdir()
    return tmp_path


def listed(source: str) -> Listing:
    return list_source(source, "data/raw", lambda line: None)


def labels(source: str) -> dict[str, str]:
    found = listed(source)
    return {found.name(i): found.classes[found.labels[i]] for i in range(len(found))}


def add(source: str, *lines: str) -> int:
    Path("out/list.csv").write_text("\n".join(["path,label,split,rank", *lines]) + "\n")
    planned = additions.plan(Path("out/list.csv"), listed(source), source, Path("data/raw"))
    additions.bring(planned, source)
    return len(planned)


def test_a_folder_source_gets_copies_in_the_folders_of_their_classes_once(at: Path) -> None:
    source = "folder:data/raw/photos"
    lines = ("../new/a.png,dog,,1", "../new/b.png,,,2", "../new/c.png,cat,,3")
    assert add(source, *lines) == 2
    found = labels(source)
    assert sorted(found.values()) == ["cat", "cat", "dog", "dog"] and len(found) == 4
    (copy,) = Path("data/raw/photos/dog").glob("a-*.png")
    assert copy.read_bytes() == Path("new/a.png").read_bytes() and Path("new/a.png").exists()
    assert add(source, *lines) == 0  # nothing is said to come again
    assert labels(source) == found
    Path("new/a.png").write_bytes(Path("new/b.png").read_bytes())  # another picture of that name is another picture
    add(source, "../new/a.png,dog,,1")
    assert len(labels(source)) == 5


@pytest.mark.parametrize("source", ["folder:data/raw/photos", "csv:data/raw/list.csv"])
def test_pictures_are_added_to_train_and_to_no_other_split(at: Path, source: str) -> None:
    for split in ("test", "Val", "elsewhere"):
        with pytest.raises(
            DataError, match=f"line 2: 'new/a.png' is to go to '{split}', and pictures are added to train"
        ):
            add(source, f"../new/a.png,dog,{split},1")
    assert add(source, "../new/a.png,dog,train,1") == 1


def test_a_class_is_found_as_it_is_typed_however_a_folder_spells_it(at: Path) -> None:
    Path("data/raw/photos/dog").rename("data/raw/photos/chie\u0301n ")  # in two signs, as on a Mac, and a blank
    assert add("folder:data/raw/photos", "../new/a.png,chi\u00e9n,,1") == 1
    assert sorted(labels("folder:data/raw/photos").values()) == ["cat", "chie\u0301n ", "chie\u0301n "]


def test_what_prepare_would_not_read_is_not_added(at: Path) -> None:
    for name in ("without", ".hidden.png"):
        shutil.copy("new/a.png", Path("new", name))
        with pytest.raises(DataError, match="is not called as pictures are. Rename it: .jpg"):
            add("folder:data/raw/photos", f"../new/{name},dog,,1")
    assert len(labels("folder:data/raw/photos")) == 2


def test_an_apostrophe_that_a_list_of_ours_puts_before_a_class_is_none_of_its_name(at: Path) -> None:
    Path("data/raw/photos/dog").rename("data/raw/photos/-1")
    assert add("folder:data/raw/photos", "../new/a.png,'-1,,1") == 1
    assert sorted(labels("folder:data/raw/photos").values()) == ["-1", "-1", "cat"]


def test_where_splits_are_ready_made_new_pictures_go_to_training(at: Path) -> None:
    photos = Path("data/raw/photos")
    for name in ("Train", "test"):
        for kind in ("cat", "dog"):
            (photos / name / kind).mkdir(parents=True)
            (photos / name / kind / "0.png").write_bytes((photos / "cat/0.png").read_bytes())
    for path in ("cat/0.png", "dog/1.png"):
        (photos / path).unlink()
        (photos / path).parent.rmdir()
    assert add("folder:data/raw/photos", "../new/a.png,dog,,1") == 1
    assert [path.parts[3:5] for path in photos.rglob("a-*.png")] == [("Train", "dog")]


def test_a_csv_source_gets_lines_in_its_own_columns(at: Path) -> None:
    source, file = "csv:data/raw/list.csv", Path("data/raw/list.csv")
    before = file.read_text()
    lines = ("../new/a.png,dog,,1", "../data/raw/d.png,cat,,2")
    assert add(source, *lines) == 2
    found = labels(source)
    assert found["d.png"] == "cat" and len(found) == 4  # in place: it lies where DVC sees it
    (copied,) = (name for name in found if name.startswith("added/a-"))
    assert found[copied] == "dog" and Path("data/raw", copied).read_bytes() == Path("new/a.png").read_bytes()
    assert file.read_text() == before + f",dog,{copied}\n,cat,d.png\n"
    add(source, *lines)
    assert labels(source) == found


@pytest.mark.parametrize("source", ["folder:data/raw/photos", "csv:data/raw/list.csv"])
def test_a_picture_gets_one_label_and_one_line_wherever_it_lies_and_whenever_it_comes(at: Path, source: str) -> None:
    Path("more").mkdir()
    Path("more/a.png").write_bytes(Path("new/a.png").read_bytes())
    with pytest.raises(DataError, match=r"line 3: 'more/a\.png' is 'cat' here and 'dog' above\. Keep one"):
        add(source, "../new/a.png,dog,,1", "../more/a.png,cat,,2")
    assert add(source, "../new/a.png,dog,,1", "../more/a.png,dog,,2") == 1
    found = labels(source)
    assert len(found) == 3
    if source.startswith("csv"):
        assert len(Path("data/raw/list.csv").read_text().splitlines()) == 4
    with pytest.raises(DataError, match=r"line 2: 'new/a\.png' was added as 'dog' before, by the name a-\w{8}\.png"):
        add(source, "../new/a.png,cat,,1")
    assert labels(source) == found


def test_a_csv_keeps_its_mark_its_ends_of_lines_and_a_last_line_without_one(at: Path) -> None:
    file = Path("data/raw/list.csv")
    file.write_bytes("\ufeffpath,label\r\nphotos/cat/0.png,cat\r\nphotos/dog/1.png,dog".encode())
    before = file.read_bytes()
    add("csv:data/raw/list.csv", "../data/raw/d.png,cat,,2")
    assert file.read_bytes() == before + b"\nd.png,cat\r\n"
    assert labels("csv:data/raw/list.csv")["d.png"] == "cat"


def test_every_line_that_does_not_fit_is_named_and_nothing_is_written(at: Path) -> None:
    with pytest.raises(DataError) as raised:
        add(
            "folder:data/raw/photos", "../new/gone.png,cat,,1", "../new/a.png,cow,,2", "../new/b.png,cat,,3",
            "../new/./b.png,dog,,4", "../data/raw/photos/cat/0.png,dog,,5", "../data/raw/photos/cat/0.png,cat,,6",
        )  # fmt: skip
    lines = str(raised.value).splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("out/list.csv line 2: no file 'new/gone.png'")
    assert lines[1] == "out/list.csv line 3: unknown class 'cow'. Choose one of: cat, dog"
    assert lines[2] == "out/list.csv line 5: 'new/b.png' is 'dog' here and 'cat' above. Keep one"
    assert lines[3].startswith("out/list.csv line 6: 'data/raw/photos/cat/0.png' is in the source already. Move it")
    assert len(labels("folder:data/raw/photos")) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"file,label\na,b\n", r"no column path; its columns are: file, label"),
        (b"", r"no column path and label; its columns are: none"),
        (b"path,label\n\xff\xfe,cat\n", r"not UTF-8 with commas"),
    ],
)
def test_a_list_that_is_none_is_refused(at: Path, text: bytes, message: str) -> None:
    Path("bad.csv").write_bytes(text)
    with pytest.raises(DataError, match=message):
        additions.plan(Path("bad.csv"), listed("folder:data/raw/photos"), "folder:data/raw/photos", Path("data/raw"))
    with pytest.raises(DataError, match=r"gone\.csv: no such file"):
        additions.plan(Path("gone.csv"), listed("folder:data/raw/photos"), "folder:data/raw/photos", Path("data/raw"))


@pytest.mark.parametrize("names", [None, ["ant", "cat", "dog"]])
def test_shards_get_one_more_shard_once(at: Path, names: list[str] | None) -> None:
    import webdataset

    folder, source = Path("data/raw/shards"), "shards:data/raw/shards"
    folder.mkdir()
    number = {"cat": "1", "dog": "2"} if names else {"cat": "cat", "dog": "dog"}
    if names:
        (folder / "classes.json").write_text(json.dumps(names))
    with webdataset.TarWriter(str(folder / "train-0.tar")) as made:
        for label in ("cat", "dog"):
            made.write({"__key__": f"{label}/0", "png": Path("new/a.png").read_bytes(), "cls": number[label]})
    Path("new/b.1.png").write_bytes(Path("new/b.png").read_bytes())
    Path("new/c.dat").write_bytes(Path("new/c.png").read_bytes())
    with pytest.raises(DataError, match=r"line 2: '.*c.dat' is not called as pictures are. Rename it: .jpg, "):
        add(source, "../new/c.dat,cat,,1")
    lines = ("../new/a.png,dog,,1", "../new/b.1.png,cat,,2", "../new/c.png,,,3")
    assert add(source, *lines) == 2 and add(source, *lines) == 0
    (shard,) = folder.glob("train-added-*.tar")
    found = listed(source)
    added = {found.name(i): found.classes[found.labels[i]] for i in range(len(found)) if shard.name in found.name(i)}
    assert sorted(added.values()) == ["cat", "dog"] and len(found) == 4
    assert any(name.startswith(f"{shard.name}/added/b_1-") for name in added)
    with pytest.raises(DataError, match="was added as 'dog' before"):
        add(source, "../new/a.png,cat,,1")
    with pytest.raises(DataError, match=r"is one tar, which stays as it is. Give the folder that holds it"):
        add(f"{source}/train-0.tar", *lines)


def test_a_set_of_torchvision_takes_no_more_pictures(at: Path) -> None:
    with pytest.raises(DataError, match=r"torchvision:MNIST takes no further pictures"):
        additions.plan(Path("x"), listed("folder:data/raw/photos"), "torchvision:MNIST", Path("data/raw"))
