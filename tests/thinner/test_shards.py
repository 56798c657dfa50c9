"""data.source shards: tars written here by tarfile, and by the webdataset library, which also reads ours."""

from __future__ import annotations

import csv
import gc
import io
import json
import shutil
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flows import init
from thinner.data import packing
from thinner.data.sources import DataError, Listing, Part, Texts, holds_shards, list_source
from thinner.data.store import write_store

Files = dict[str, bytes]


def png(grey: int = 0, side: int = 4) -> bytes:
    made = io.BytesIO()
    Image.new("L", (side, side), grey).save(made, "PNG")
    return made.getvalue()


def tar(path: Path, files: Files | list[tuple[str, bytes]], **how: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, how.pop("mode", "w"), **how) as made:
        for name, content in files.items() if isinstance(files, dict) else files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            made.addfile(info, io.BytesIO(content))
    return path


def listed(folder: Path, said: list[str] | None = None) -> Listing:
    return list_source(f"shards:{folder}", folder, (said if said is not None else []).append)


def table(listing: Listing) -> list[tuple[str, str | None, str]]:
    of = [*listing.classes, None]
    return [(listing.name(i), of[listing.labels[i]], Part(listing.parts[i]).name) for i in range(len(listing))]


TWO: Files = {"a.cls": b"cat", "a.png": png(), "b.cls": b"dog", "b.png": png(9)}

# ------------------------------------------------------------------------------- beside the webdataset library


def test_shards_that_webdataset_writes_are_read(tmp_path: Path) -> None:
    import webdataset

    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (5, 6, 3), np.uint8) for _ in range(5)]
    with webdataset.ShardWriter(f"{tmp_path}/train-%06d.tar", maxcount=2, verbose=0) as shards:
        for i, pixels in enumerate(pictures):
            label: dict[str, Any] = {"cls": 2 - i % 2} if i < 3 else {"json": {"label": 2 - i % 2}}
            shards.write({"__key__": f"x/{i:03d}", "png": pixels, "txt": "beside", **(label if i < 4 else {})})
    found = listed(tmp_path)
    assert table(found) == [
        ("train-000000.tar/x/000.png", "2", "TRAIN"),
        ("train-000000.tar/x/001.png", "1", "TRAIN"),
        ("train-000001.tar/x/002.png", "2", "TRAIN"),
        ("train-000001.tar/x/003.png", "1", "TRAIN"),
        ("train-000002.tar/x/004.png", None, "TRAIN"),
    ]
    assert all(np.array_equal(np.asarray(found.read(i)), pictures[i]) for i in range(5))
    assert list(found.ignored)[:2] == ["train-000000.tar/x/000.txt", "train-000000.tar/x/001.txt"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves files open
def test_shards_that_are_packed_here_are_read_by_webdataset(photos: Path, tmp_path: Path) -> None:
    import webdataset

    shards = pack(photos, tmp_path / "shards", most_pictures=2)
    names = json.loads((shards / "classes.json").read_text())
    files = [str(path) for path in sorted(shards.glob("train-*.tar"))]
    assert len(files) == 3
    found = list(webdataset.WebDataset(files, shardshuffle=False).decode())  # cls: as a number
    assert [sample["__key__"] for sample in found] == [
        "train/a cat/1", "train/a cat/2", "train/dög/1_5", "train/dög/2", "train/dög/deep/3",
    ]  # fmt: skip
    assert [names[sample["cls"]] for sample in found] == ["a cat", "a cat", "dög", "dög", "dög"]
    raw = list(webdataset.WebDataset(files, shardshuffle=False))
    assert raw[2]["png"] == (photos / "train/dög/1.5.png").read_bytes()
    assert raw[3]["jpg"] == (photos / "train/dög/2.JPG").read_bytes()
    gc.collect()


# ------------------------------------------------------------------------------- packing


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with ready-made splits: 5 to learn from, 2 for choosing, 2 for testing, 1 without a label."""
    rng = np.random.default_rng(0)
    for name in (
        "train/a cat/1.png", "train/a cat/2.png", "train/dög/1.5.png", "train/dög/2.JPG", "train/dög/deep/3.png",
        "validation/a cat/1.png", "validation/dög/2.png", "test/a cat/8.png", "test/dög/9.png", "unlabelled/1.png",
    ):  # fmt: skip
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (9, 8, 3), np.uint8)).save(path)
    return tmp_path / "photos"


def pack(source: Path, dest: Path, **how: int) -> Path:
    kind, base = ("csv", source.parent) if source.suffix == ".csv" else ("folder", source)
    dest.mkdir()
    packing.pack(list_source(f"{kind}:{source}", source.parent), base, source.parent, dest, **how)
    return dest


def store(source: str, root: Path, folder: Path) -> dict[str, Any]:
    """The bytes of a store by file, and its report; what names the source is left out."""
    report = write_store(
        folder, list_source(source, root), source=source, image_size=8, channels=3, fit="crop", labelled=4,
        validation=None, test=None, unlabelled="rest", max_unreadable=0.2, max_pixels=10**6, seed=0,
    )  # fmt: skip
    info = json.loads((folder / "info.json").read_text())
    assert info.pop("source") == source
    files = {name: (folder / name).read_bytes() for name in ("images.npy", "labels.npy", "splits.npz")}
    return {**files, "info": info, "images": report["images"], "balance": report["balance"]}


def test_the_same_pictures_as_a_folder_and_as_shards_make_the_same_store(photos: Path, tmp_path: Path) -> None:
    (photos / "train/a cat/broken.jpg").write_bytes(b"")
    shards = pack(photos, tmp_path / "shards", most_pictures=3)
    made = store(f"shards:{shards}", shards, tmp_path / "b")
    assert made == store(f"folder:{photos}", photos, tmp_path / "a")
    assert made["images"]["found"] == 11 and made["images"]["stored"] == 10
    names = json.loads((tmp_path / "b/names.json").read_text())
    assert names[0] == "test-000000.tar/test/a cat/8.png" and names[-1] == "unlabelled-000000.tar/unlabelled/1.png"


def test_the_same_pictures_give_the_same_bytes(photos: Path, tmp_path: Path) -> None:
    first = pack(photos, tmp_path / "first")
    elsewhere = shutil.copytree(photos, tmp_path / "elsewhere", copy_function=shutil.copyfile)  # other times
    second = pack(elsewhere, tmp_path / "second")
    names = sorted(path.name for path in first.iterdir())
    assert names == ["classes.json", "test-000000.tar", "train-000000.tar", "unlabelled-000000.tar", "val-000000.tar"]
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes()
    with tarfile.open(first / "train-000000.tar") as made:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in made} == {(0, 0, 0, "", "", 0o644)}


def test_a_list_is_packed_with_pictures_from_beside_it_and_without_endings(tmp_path: Path) -> None:
    for name in ("pool/x/a.png", "pool/y/scan.001", "lists/b.png", "pool/__c__.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(png(len(name)))
    list_ = tmp_path / "lists/all.csv"
    rows = "../pool/x/a.png,=odd,\n../pool/y/scan.001,7,\nb.png,,\n../pool/__c__.png,7,test\n"
    list_.write_text(f"path,label,split\n{rows}")
    dest = tmp_path / "shards"
    dest.mkdir()
    packing.pack(list_source(f"csv:{list_}", tmp_path), list_.parent, tmp_path, dest)
    assert table(listed(dest)) == [
        ("test-000000.tar/pool/__c__.png", "7", "TEST"),
        ("train-000000.tar/pool/x/a.png", "=odd", "TRAIN"),
        ("train-000000.tar/pool/y/scan_001.png", "7", "TRAIN"),
        ("train-000000.tar/b.png", None, "TRAIN"),
    ]


def test_where_to_cut_by_hand() -> None:
    # a tar ends with 1,024 bytes of zeros and is filled up to a multiple of 10,240
    assert list(packing.cuts([4096, 4096, 1024, 512], 10_240, None)) == [slice(0, 3), slice(3, 4)]
    assert list(packing.cuts([99_999, 512, 512], 10_240, None)) == [slice(0, 1), slice(1, 3)]
    assert list(packing.cuts([1] * 5, None, 2)) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert list(packing.cuts([], 10_240, None)) == []


def test_no_shard_is_larger_than_asked_and_few_are_much_smaller(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(60):
        path = tmp_path / "photos" / "ab"[i % 2] / f"{'long' * rng.integers(1, 50)}-é-{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(i) + bytes(int(rng.integers(0, 4000))))
    sizes = [path.stat().st_size for path in pack(tmp_path / "photos", tmp_path / "s", most_bytes=30_720).glob("*.tar")]
    assert len(sizes) > 4 and max(sizes) <= 30_720 and sorted(sizes)[1] > 15_000


def test_two_pictures_that_would_have_one_key_get_each_its_own() -> None:
    found = packing.keys(["c/1.jpg", "c/1.png", "c/2.jpg", "c.v2/1.jpg", "__d/1.jpg"])
    assert found[2:] == ["c/2", "c.v2/1", "x__d/1"]
    assert [key[:4] for key in found[:2]] == ["c/1-", "c/1-"] and len(set(found)) == 5
    assert packing.keys(["c/1.png", "c/1.jpg"]) == found[1::-1]  # whatever the order
    with pytest.raises(DataError, match=r"'c/1.jpg' is listed twice, and shards have each picture once. Keep one line"):
        packing.keys(["c/1.jpg", "c/1.jpg"])


def test_a_picture_that_is_not_there_is_named_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "list.csv").write_text("path,label\na.png,1\ngone.png,2\n")
    with pytest.raises(DataError, match=r"gone.png' cannot be packed \(No such file or directory\). Mend it, or take"):
        pack(tmp_path / "list.csv", tmp_path / "shards")
    assert list((tmp_path / "shards").iterdir()) == []


def test_what_somebody_else_writes_among_the_shards_is_noticed(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    listing = list_source(f"folder:{photos}", photos)

    def meddle(done: int) -> None:
        tar(folder / "train-7.tar", {"a.cls": b"0", "a.png": png()})

    with pytest.raises(DataError, match="the shards do not hold what was to be packed. Does something write there"):
        packing.pack(listing, photos, photos, folder, progress=meddle)


# ------------------------------------------------------------------------------- splits, labels, names


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (["00.tar", "01.tar"], ["TRAIN", "TRAIN"]),
        (["test-0.tar", "train-0.tar", "val_1.TAR"], ["TEST", "TRAIN", "VALIDATION"]),
        (["imagenet1k-train-0001.tar", "imagenet1k-validation-07.tar"], ["TRAIN", "VALIDATION"]),
        (["Valid/00.tar", "train/deep/00.tar"], ["VALIDATION", "TRAIN"]),
        (["b.tar", "unlabeled-0.tar"], ["TRAIN", "UNLABELLED"]),
        (["unlabelled/0.tar", "val/0.tar", "train/0.tar"], ["TRAIN", "VALIDATION", "UNLABELLED"]),  # as listed
        (["latest.tar", "contrast.tar"], ["TRAIN", "TRAIN"]),
    ],
)
def test_the_split_is_a_word_of_the_shard_or_its_folder(tmp_path: Path, names: list[str], parts: list[str]) -> None:
    for name in names:
        tar(tmp_path / name, TWO)
    found = listed(tmp_path)
    assert [Part(part).name for part in found.parts[::2]] == parts
    assert all((found.labels[i] < 0) == (found.parts[i] == Part.UNLABELLED) for i in range(len(found)))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["test-0.tar", "0.tar"], r"mixes splits \(test\) with shards that name none \(0.tar\). Call those train-..."),
        (["val/0.tar"], "has validation but no train. Add train-000000.tar"),
        (["train/test-0.tar"], r"shard 'train/test-0.tar' says test and train. Name one split"),
        ([], r"holds no .tar. To make some: thinner data pack .* DEST"),
    ],
)
def test_shards_of_unclear_splits_are_refused(tmp_path: Path, names: list[str], message: str) -> None:
    for name in names:
        tar(tmp_path / name, TWO)
    with pytest.raises(DataError, match=rf"^data.source: .*{message}"):
        listed(tmp_path)


def test_one_tar_is_a_source_too_and_a_missing_one_names_a_near_one(tmp_path: Path) -> None:
    tar(tmp_path / "photos.tar", TWO)
    tar(tmp_path / "test-others.tar", TWO)
    found = list_source(f"shards:{tmp_path}/photos.tar", tmp_path)
    assert table(found) == [("photos.tar/a.png", "cat", "TRAIN"), ("photos.tar/b.png", "dog", "TRAIN")]
    with pytest.raises(DataError, match=r"shards '.*photo.tar' does not exist. Did you mean '.*photos.tar'"):
        list_source(f"shards:{tmp_path}/photo.tar", tmp_path)


def test_numbers_are_classes_in_their_order_and_a_line_says_how_to_name_them(tmp_path: Path) -> None:
    tar(tmp_path / "0.tar", {f"{i}.{end}": str(i).encode() for i in (10, 9, 2) for end in ("cls", "jpg")})
    said: list[str] = []
    found = listed(tmp_path, said)
    assert found.classes == ("2", "9", "10") and found.labels.tolist() == [2, 1, 0]
    assert said == [f"note: the classes are numbers. To name them: {tmp_path}/classes.txt, a line each, 0 first"]


@pytest.mark.parametrize(
    ("file", "text"), [("classes.txt", "zebra\r\n cat \nemu\n"), ("classes.json", '["zebra", "cat", "emu"]')]
)
def test_numbers_count_the_names_of_a_file_and_names_may_be_used_too(tmp_path: Path, file: str, text: str) -> None:
    tar(
        tmp_path / "train/0.tar",
        {"a.cls": b"2\n", "a.jpg": b"", "b.json": b'{"cls": 0}', "b.jpg": b"", "c.cls": b"emu", "c.jpg": b""},
    )
    (tmp_path / file).write_text(text)
    said: list[str] = []
    found = listed(tmp_path, said)
    assert [label for _, label, _ in table(found)] == ["emu", "zebra", "emu"]
    assert found.classes == ("zebra", "emu") and found.ignored[:] == []
    assert said == [f"note: 1 of 3 classes of {file} have no picture here, and are left out"]


@pytest.mark.parametrize(
    ("label", "text", "message"),
    [
        (
            "3",
            '["x", "y"]',
            r"0.tar/a.jpg' has the label '3', but a label is one of the 2 names in classes.json, or a number from 0 to 1",
        ),
        ("z", '["x", "y"]', r"has the label 'z', but"),
        ("0", '{"x": 0}', r"classes.json' is not a list of names, that of class 0 first. Write it so"),
        ("0", '["x", 1]', "is not a list of names"),
        ("0", '["x", "x"]', r"names 'x' twice. Give each class its name"),
        ("0", '["x', r"classes.json' cannot be read \(Unterminated string"),
        ("0", '["x\\u001b[2J", "y"]', r"the class 'x\\x1b\[2J' has '\\x1b' in its name. Rename it"),
    ],
)
def test_a_file_of_classes_that_does_not_fit_is_named(tmp_path: Path, label: str, text: str, message: str) -> None:
    tar(tmp_path / "0.tar", {"a.cls": label.encode(), "a.jpg": b"", "b.cls": b"1", "b.jpg": b""})
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(DataError, match=message):
        listed(tmp_path)


def test_two_files_of_classes_are_one_too_many(tmp_path: Path) -> None:
    tar(tmp_path / "0.tar", TWO)
    for name in ("classes.json", "classes.txt"):
        (tmp_path / name).write_text("x")
    with pytest.raises(DataError, match=r"has classes.json and classes.txt. Keep one"):
        listed(tmp_path)


def test_json_may_have_the_label_or_none_and_cls_goes_first(tmp_path: Path) -> None:
    says = [{"label": "x"}, {"cls": 3, "label": None}, {"label": 4, "cls": 5}, {"width": 8}, {"label": "no"}]
    files = {f"{i}.{end}": json.dumps(said).encode() for i, said in enumerate(says) for end in ("json", "JPG")}
    tar(tmp_path / "0.tar", [*files.items(), ("4.cls", b"yes")])
    assert [label for _, label, _ in table(listed(tmp_path))] == ["x", "3", "4", None, "yes"]


def test_what_is_no_picture_or_label_is_passed_over_and_counted(tmp_path: Path) -> None:
    files = {
        "./a.cls": b"x", "./._a.jpg": b"mac", "./a.jpg": b"", "a.seg.png": b"", "a.txt": b"", "b.cls": b"y", "b.tga": b"",
        "README": b"", "d/.hidden.jpg": b"", "__meta__/c.jpg": b"", "c.cls": b"y", "c.jpg": b"",
    }  # fmt: skip
    tar(tmp_path / "0.tar", files)
    (tmp_path / "notes.md").write_text("")
    (tmp_path / ".gitignore").write_text("")
    found = listed(tmp_path)
    assert table(found) == [("0.tar/a.jpg", "x", "TRAIN"), ("0.tar/c.jpg", "y", "TRAIN")]
    assert sorted(found.ignored) == [
        "0.tar/._a.jpg", "0.tar/README", "0.tar/__meta__/c.jpg", "0.tar/a.seg.png", "0.tar/a.txt", "0.tar/b.cls",
        "0.tar/b.tga", "0.tar/d/.hidden.jpg", "notes.md",
    ]  # fmt: skip


# ------------------------------------------------------------------------------- what strangers may put into a tar


def link(kind: bytes, name: str = "c.jpg", **more: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in more.items():
        setattr(info, key, value)
    return info


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (link(tarfile.SYMTYPE, linkname="/etc/passwd"), r"'c.jpg' is a link, and none is followed. Pack the file itself: tar --deref"),
        (link(tarfile.LNKTYPE, linkname="a.png"), "'c.jpg' is a hard link, and none is followed"),
        (link(tarfile.CHRTYPE), "'c.jpg' is a device. Pack without it"),
        (link(tarfile.FIFOTYPE), "'c.jpg' is a FIFO. Pack without it"),
        (link(b"Z"), r"'c.jpg' is of a kind that is not read \(b'Z'\). Pack without it"),
        (link(tarfile.REGTYPE, "/etc/c.jpg"), r"'/etc/c.jpg' has a name that leads out of the tar. Pack again from inside"),
        (link(tarfile.REGTYPE, "x/../../c.jpg"), r"'x/../../c.jpg' has a name that leads out of the tar"),
        (link(tarfile.REGTYPE, "c\x1b[2J.jpg"), r"'c\\x1b\[2J.jpg' has '\\x1b' in its name. Rename the file and pack again"),
        (link(tarfile.REGTYPE, "caf\udce9.jpg"), r"'caf\\udce9.jpg' has a name that is not UTF-8. Rename the file"),
        (link(tarfile.REGTYPE, "b.jpg"), r"'b.png' and 'b.jpg' are two pictures of one key. Keep one, or give each a key"),
        (link(tarfile.REGTYPE, "b.PNG"), r"'b.PNG' is there twice. Keep one"),
        (link(tarfile.REGTYPE, "a.jpg"), r"the key 'a' comes again after others: .* tar --sort=name"),
        (link(tarfile.REGTYPE, "c.2024.jpg"), r"'c.2024.jpg' has a dot in its name, and there webdataset's key ends, so 'c' has no"),
        (link(tarfile.REGTYPE, "c.jpg", pax_headers={"GNU.sparse.map": "0,0", "GNU.sparse.size": "9"}), "'c.jpg' is sparse"),
        (link(tarfile.REGTYPE, "c.jpg", pax_headers={"size": "-512"}), "'c.jpg' has a damaged header"),
    ],
)  # fmt: skip
def test_what_would_be_lost_or_do_harm_is_refused_by_name(tmp_path: Path, odd: tarfile.TarInfo, message: str) -> None:
    with tarfile.open(tar(tmp_path / "0.tar", TWO), "a", format=tarfile.PAX_FORMAT, errors="surrogateescape") as made:
        if "udce9" in ascii(odd.name):
            made.format = tarfile.GNU_FORMAT
        made.addfile(odd)
    with pytest.raises(DataError, match=rf"^data.source: '{tmp_path}/0.tar'.*{message}") as refused:
        listed(tmp_path)
    assert "\n" not in str(refused.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.tar"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.cls", b"", "'c.cls' is empty. Write the class's number or name, or leave it out"),
        ("c.cls", b" \n", "'c.cls' is empty"),
        ("c.cls", b"-1", "'c.cls' says -1, which is no class. Leave the label out where there is none"),
        ("c.cls", b"\xff\xfe", r"'c.cls' is not text in UTF-8 \(.*\). Mend it"),
        ("c.cls", b"x" * 5000, "'c.cls' has 5,000 bytes, too many for a label. Leave it out"),
        ("c.cls", "a\u202eb".encode(), r"the class 'a\\u202eb' has '\\u202e' in its name. Rename it"),
        ("c.json", b"", r"'c.json' is not JSON in UTF-8 \(Expecting value"),
        ("c.json", b'{"label": true}', "'c.json' has a label that is neither a number nor a name: True"),
        ("c.json", b'{"label": [1]}', r"neither a number nor a name: \[1\]"),
        ("c.json", b"[" * 100_000, "'c.json' is not JSON"),
    ],
)  # fmt: skip
def test_a_label_that_is_none_is_refused_by_name(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    tar(tmp_path / "0.tar", {**TWO, name: content, "c.jpg": b""})
    with pytest.raises(DataError, match=message):
        listed(tmp_path)


def test_shards_without_any_label_say_what_to_write(tmp_path: Path) -> None:
    tar(tmp_path / "0.tar", {"cat/1.jpg": b"", "dog/1.jpg": b""})
    with pytest.raises(DataError, match=r"have no labels: .* Write KEY.cls beside KEY.jpg; folders of classes"):
        listed(tmp_path)


@pytest.mark.parametrize(
    ("name", "mode", "mend"),
    [
        ("0.tar.gz", "w:gz", r"Once: gunzip {0}/0.tar.gz$"),
        ("0.tgz", "w:gz", r"Once: gunzip {0}/0.tgz$"),
        ("0.tar", "w:gz", r"Once: mv {0}/0.tar {0}/0.tar.gz && gunzip {0}/0.tar.gz$"),
        ("0.tar.bz2", "w:bz2", "Once: bunzip2 {0}/0.tar.bz2$"),
        ("0.tar.xz", "w:xz", "Once: unxz {0}/0.tar.xz$"),
    ],
)
def test_compressed_tars_are_refused_with_the_command(tmp_path: Path, name: str, mode: str, mend: str) -> None:
    tar(tmp_path / name, TWO, mode=mode)
    with pytest.raises(DataError, match=rf"is compressed, so no picture .*{mend.format(tmp_path)}"):
        listed(tmp_path)


def test_a_tar_that_was_cut_off_is_refused_wherever_that_was(tmp_path: Path) -> None:
    whole = tar(tmp_path / "0.tar", TWO).read_bytes()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512  # of the last member
    with tarfile.open(tmp_path / "0.tar") as made:
        assert made.getmembers()[-1].offset_data + 512 == end
    for length in {*range(0, end + 1, 128), end + 511}:
        (tmp_path / "0.tar").write_bytes(whole[:length])
        with pytest.raises(
            DataError, match=r"0.tar': (is no whole tar|'\w.\w+' is cut off|ends without|has a damaged)"
        ):
            listed(tmp_path)
    (tmp_path / "0.tar").write_bytes(whole[: end + 512])  # GNU tar takes one block of zeros, too
    assert len(listed(tmp_path)) == 2


def test_two_tars_in_one_file_and_what_is_no_tar_are_refused(tmp_path: Path) -> None:
    whole = tar(tmp_path / "0.tar", TWO).read_bytes()
    (tmp_path / "0.tar").write_bytes(whole + whole)
    with pytest.raises(DataError, match=r"has something behind its end, as two tars in one file have"):
        listed(tmp_path)
    (tmp_path / "0.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(DataError, match=r"0.tar': is no whole tar \(.*\). Copy it here again, or pack it again"):
        listed(tmp_path)


# ------------------------------------------------------------------------------- reading


def test_a_bomb_an_empty_and_a_broken_picture_are_unreadable_with_their_reasons(tmp_path: Path) -> None:
    tar(
        tmp_path / "train.tar",
        {**TWO, "c.cls": b"cat", "c.png": b"", "d.cls": b"cat", "d.png": png(side=600), "e.jpg": png()[:40]},
    )
    tar(tmp_path / "test.tar", TWO)
    tar(tmp_path / "val.tar", TWO)
    with pytest.raises(DataError, match="3 cannot be read") as refused:
        write_store(
            tmp_path / "store", listed(tmp_path), source="s", image_size=8, channels=1, fit="crop", labelled=2,
            validation=None, test=None, unlabelled=0, max_unreadable=0.2, max_pixels=1000, seed=0,
        )  # fmt: skip
    assert "  train.tar/c.png: is no picture of a kind that is read" in str(refused.value)
    assert "  train.tar/d.png: has 360,000 pixels, more than data.max_pixels" in str(refused.value)
    assert "  train.tar/e.jpg: " in str(refused.value)


def test_a_picture_whose_library_is_missing_is_listed_and_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thinner.data.sources._readable", lambda: ("PNG",))
    tar(tmp_path / "0.tar", {**TWO, "c.cls": b"cat", "c.HEIC": b"heic"})
    with pytest.raises(OSError, match="is read by a package that is not here: pip install pillow-heif"):
        listed(tmp_path).read(2)


def test_many_threads_read_at_once(tmp_path: Path) -> None:
    for shard in range(2):
        files = {
            f"{i}.{end}": png(i) if end == "png" else b"xy"[i % 2 :][:1] for i in range(100) for end in ("cls", "png")
        }
        tar(tmp_path / f"{shard}.tar", files)
    found = listed(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        seen = list(pool.map(lambda i: np.asarray(found.read(i))[0, 0], range(200)))
    assert seen == [*range(100), *range(100)]


def test_a_tar_that_got_shorter_meanwhile_is_unreadable_and_a_huge_member_is_never_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tar(tmp_path / "0.tar", TWO)
    found = listed(tmp_path)
    monkeypatch.setattr("thinner.data.sources._MOST_PICTURE_BYTES", 10)
    with pytest.raises(OSError, match=r"has \d+ bytes, and at most 10 are read. Make it smaller"):
        found.read(1)
    monkeypatch.undo()
    path.write_bytes(path.read_bytes()[:1600])
    with pytest.raises(OSError, match="is cut off: the tar is shorter than it was when it was listed"):
        found.read(1)


def test_texts_in_one_block_are_a_sequence_like_any_other() -> None:
    texts, plain = Texts(), ["", "é", "\udcff", "abc"]
    for text in plain:
        texts.append(text)
    assert list(texts) == plain and texts[-1] == "abc" and texts[1:3] == plain[1:3] and len(texts) == 4
    with pytest.raises(IndexError):
        texts[4]


# ------------------------------------------------------------------------------- what else asks for sources


def test_a_folder_that_holds_only_shards_is_told_from_pictures(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(photos, tmp_path / "shards")
    assert holds_shards(tmp_path / "shards") and not holds_shards(photos)
    tar(photos / "train/more.tar", TWO)
    assert not holds_shards(photos)
    monkeypatch.chdir(tmp_path)
    for asked in ("shards", "shards:shards"):
        found = init.look(asked)
        assert (found.source, found.root, found.looked_at, found.colour) == ("shards:shards", "shards", 10, True)
    assert init.look("shards/train-000000.tar").source == "shards:shards/train-000000.tar"
    with pytest.raises(
        DataError,
        match=r"no class folders, but tar files \(test-000000.tar\). If they are shards: data.source: shards:s",
    ):
        list_source("folder:shards", tmp_path)


def test_names_in_csv_files_of_people_are_those_of_the_listing(photos: Path, tmp_path: Path) -> None:
    from thinner.data import cleaning

    shards = pack(photos, tmp_path / "shards")
    rows = [("train-000000.tar/train/dög/2.JPG", "dög", "a cat")]
    with (tmp_path / "c.csv").open("w", newline="") as text:
        csv.writer(text).writerows([cleaning.COLUMNS, *rows])
    found = listed(shards)
    labels = cleaning.relabelled(found, cleaning.read(tmp_path / "c.csv"))
    assert [found.name(i) for i in np.flatnonzero(labels != found.labels).tolist()] == [rows[0][0]]
