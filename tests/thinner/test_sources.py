"""Real files in temporary folders; torchvision's own classes read layouts written here by hand."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from thinner.data import sources
from thinner.data.sources import (
    FASHION_MNIST_SHA256,
    FORMATS,
    LIBRARIES,
    TORCHVISION,
    DataError,
    Listing,
    Part,
    bring_fashion_mnist,
    check_files,
    list_source,
    open_picture,
    unpack_deb,
)


def picture(path: Path, grey: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), grey).save(path)
    return path


def table(listing: Listing) -> list[tuple[str, int, str]]:
    rows = range(len(listing))
    return [(listing.name(i), int(listing.labels[i]), Part(listing.parts[i]).name) for i in rows]


# ---------------------------------------------------------------- folder


def test_a_folder_of_class_folders_is_one_training_part(tmp_path: Path) -> None:
    for name in ("dog/b.png", "dog/deep/er/a.JPG", "cat/1.bmp", "unlabelled/x.webp", "unlabelled/y/z.png"):
        picture(tmp_path / "photos" / name)
    listing = list_source(f"folder:{tmp_path}/photos", tmp_path)
    assert listing.classes == ("cat", "dog")
    assert listing.origin == f"folder {(tmp_path / 'photos').as_posix()}"
    assert table(listing) == [
        ("cat/1.bmp", 0, "TRAIN"),
        ("dog/b.png", 1, "TRAIN"),
        ("dog/deep/er/a.JPG", 1, "TRAIN"),
        ("unlabelled/x.webp", -1, "UNLABELLED"),
        ("unlabelled/y/z.png", -1, "UNLABELLED"),
    ]


def test_the_notes_of_macos_and_hidden_folders_are_no_pictures(tmp_path: Path) -> None:
    for name in ("cat/1.png", "dog/2.png"):
        picture(tmp_path / name)
    for name in ("cat/._1.jpg", "dog/.2.png", ".thumbnails/3.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"Mac OS X")
    assert [path for path, _, _ in table(list_source(f"folder:{tmp_path}", tmp_path))] == ["cat/1.png", "dog/2.png"]


def test_ready_made_splits_and_either_spelling_of_unlabelled_are_respected(tmp_path: Path) -> None:
    for name in ("train/a/1.png", "train/b/2.png", "val/a/3.png", "test/b/4.png", "unlabeled/5.png"):
        picture(tmp_path / name)
    assert table(list_source(f"folder:{tmp_path}", tmp_path)) == [
        ("test/b/4.png", 1, "TEST"),
        ("train/a/1.png", 0, "TRAIN"),
        ("train/b/2.png", 1, "TRAIN"),
        ("val/a/3.png", 0, "VALIDATION"),
        ("unlabeled/5.png", -1, "UNLABELLED"),
    ]


def test_files_that_are_no_images_are_named_not_dropped_silently(tmp_path: Path) -> None:
    picture(tmp_path / "a/1.png")
    picture(tmp_path / "b/1.png")
    (tmp_path / "a/notes.txt").write_text("x")
    (tmp_path / "a/old.psd").write_text("x")
    (tmp_path / "list.xlsx").write_bytes(b"PK")
    (tmp_path / ".gitignore").write_text("*")
    assert list_source(f"folder:{tmp_path}", tmp_path).ignored == ("a/notes.txt", "a/old.psd", "list.xlsx")


def test_listing_decodes_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/broken.jpg").write_bytes(b"no image")
    picture(tmp_path / "b/1.png")
    assert len(list_source(f"folder:{tmp_path}", tmp_path)) == 2


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "has no class folders. Make one folder per class"),
        (["1.png", "a/2.png"], r"1 images lie in .* outside of a class folder \(1.png"),
        (["train/1.png", "train/a/2.png"], "1 images lie in '.*train' outside"),
        (
            ["train/a/1.png", "train/Unlabelled/2.png"],
            r"train/Unlabelled' would be a class. If these .* move it to '.*/unlabelled",
        ),
        (["test/a/1.png", "cats/2.png"], r"mixes splits \(test\) with class folders \(cats\)"),
        (["val/a/1.png"], "has val but no train"),
        (["a/notes.txt"], "holds no images"),
    ],
)
def test_a_folder_that_cannot_be_understood_says_how_to_mend_it(tmp_path: Path, files: list[str], message: str) -> None:
    for name in files:
        if name.endswith(".txt"):
            (tmp_path / name).parent.mkdir()
            (tmp_path / name).write_text("x")
        else:
            picture(tmp_path / name)
    with pytest.raises(DataError, match=rf"^data.source: .*{message}"):
        list_source(f"folder:{tmp_path}", tmp_path)


def test_a_missing_folder_names_a_near_one(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(DataError, match=r"folder '.*/photo' does not exist. Did you mean '.*/photos'"):
        list_source(f"folder:{tmp_path}/photo", tmp_path)
    with pytest.raises(DataError, match=r"'.*' holds: photos"):
        list_source(f"folder:{tmp_path}/zebra", tmp_path)


@pytest.mark.parametrize("source", ["zip:photos", "folder:", "photos"])
def test_an_unknown_kind_lists_the_kinds(source: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Choose one of: torchvision:NAME, folder:PATH, csv:PATH, shards:PATH"):
        list_source(source, tmp_path)


# ---------------------------------------------------------------- odd files


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("cat/1.png", "dog/sub/2.png"):
        picture(tmp_path / "raw/photos" / name)
    return tmp_path / "raw/photos"


def refused(photos: Path, message: str) -> None:
    """By whoever looks first: prepare, or the check before DVC."""
    for look in (
        lambda: list_source(f"folder:{photos}", photos.parent),
        lambda: check_files(photos.parent, f"folder:{photos}"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            look()
        assert str(caught.value).isprintable()  # one line, that can be written anywhere


@pytest.mark.parametrize("byte", [b"\xe9", b"\x80", b"\xff"])
def test_a_name_that_is_not_utf8_is_shown_escaped(photos: Path, byte: bytes) -> None:
    os.rename(photos / "cat/1.png", os.fsencode(photos) + b"/cat/caf" + byte + b".png")
    refused(photos, rf"'.*/cat/caf\\x{byte.hex()}.png' has a name that is not UTF-8. Rename it")


@pytest.mark.parametrize(
    ("signs", "move"),
    [
        ("\0\x1b\x7f\x9f\u2028\u2029", True),  # controls, ends of lines and of paragraphs
        ("\u202a\u202e\u2066\u2069", True),  # the first and the last that embed, override, isolate
        ("\u2027\u202f\u2065\u206a a\u05d0\u200d", False),
    ],
)
def test_what_moves_text(signs: str, move: bool) -> None:
    assert [sources._moves_text(sign) for sign in signs] == [move] * len(signs)


@pytest.mark.parametrize(
    ("name", "shown"),
    [("a\x1b[31mb", r"\\x1b"), ("a\n::progress {}", r"\\n"), ("a\x85b", r"\\x85"), ("a\u2028b", r"\\u2028"),
     ("gpj.\u202ecat", r"\\u202e"), ("a\u2067b", r"\\u2067")],
)  # fmt: skip
def test_names_that_would_do_something_in_a_terminal_or_a_page_are_refused(
    tmp_path: Path, photos: Path, name: str, shown: str
) -> None:
    os.rename(photos / "cat/1.png", photos / f"cat/{name}.png")
    refused(photos, rf"'.*/cat/.*{shown}.*' has '{shown}' in its name. Rename it")
    os.rename(photos / f"cat/{name}.png", photos / "cat/1.png")
    os.rename(photos / "cat", photos / name)
    refused(photos, rf"'.*/photos/.*{shown}.*' has '{shown}' in its name. Rename it")
    os.rename(photos / name, photos / "cat")
    list_source(f"folder:{photos}", photos.parent)
    (photos.parent / "list.csv").write_text(f'path,label\nphotos/cat/1.png,"{name}"\n')
    with pytest.raises(DataError, match=rf"data.source: the class '.*{shown}.*' has '{shown}' in its name") as caught:
        list_source(f"csv:{photos.parent}/list.csv", photos.parent)
    assert str(caught.value).isprintable()


def test_names_in_any_language_are_welcome(photos: Path) -> None:
    # a no-break space, a Persian word with a non-joiner, a family that joiners make, Hebrew, a thousand years of Japan
    for number, name in enumerate(
        [
            "a\xa0b",
            "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
            "\U0001f468\u200d\U0001f469",
            "\u05d7\u05ea\u05d5\u05dc",
            "\u732b\u3000\u72ac",
        ]
    ):
        picture(photos / name / f"{name}.png", number)
    assert len(list_source(f"folder:{photos}", photos.parent).classes) == 7


@pytest.mark.parametrize("target", ["../elsewhere", "photos", ".."])
def test_a_linked_folder_is_refused_wherever_it_leads(photos: Path, target: str) -> None:
    (photos.parents[1] / "elsewhere").mkdir()
    (photos / "linked").symlink_to(photos.parent / target)
    refused(photos, r"'.*/photos/linked' is a link to a folder, and DVC does not look behind it.*Put a copy .*cp -rL")
    check_files(photos.parent, "torchvision:CIFAR10")  # whose files do not change


def test_a_linked_picture_and_a_linked_root_are_read_and_dvc_sees_them_change(photos: Path, tmp_path: Path) -> None:
    disk = picture(tmp_path / "disk/3.png", 9)
    (photos / "cat/3.png").symlink_to(disk)
    (tmp_path / "root").symlink_to(photos.parent)
    listing = list_source(f"folder:{tmp_path / 'root' / 'photos'}", tmp_path / "root")
    assert table(listing) == [("cat/1.png", 0, "TRAIN"), ("cat/3.png", 0, "TRAIN"), ("dog/sub/2.png", 1, "TRAIN")]
    (tmp_path / "dvc.yaml").write_text("stages: {s: {cmd: echo > out, deps: [root], outs: [out]}}")

    def dvc(*words: str) -> str:
        env = {**os.environ, "DVC_SITE_CACHE_DIR": str(tmp_path / "site"), "DVC_NO_ANALYTICS": "1"}
        command = [sys.executable, "-m", "dvc", *words]
        return subprocess.run(command, cwd=tmp_path, env=env, text=True, capture_output=True, check=True).stdout

    dvc("init", "--no-scm", "--quiet")
    dvc("repro", "--quiet")
    assert "up to date" in dvc("status")
    picture(disk, 10)
    assert "root" in dvc("status")


def test_a_link_to_nothing_is_named(photos: Path) -> None:
    (photos / "cat/gone.png").symlink_to("/nowhere/at/all.png")
    refused(photos, "'.*/cat/gone.png' is a link to nothing")


def test_a_fifo_is_never_opened(photos: Path) -> None:
    os.mkfifo(photos / "cat/pipe.png")  # to open it would wait for ever
    refused(photos, "'.*/cat/pipe.png' is a FIFO, no file")
    with pytest.raises(OSError, match="is a FIFO, no file"):
        open_picture(photos / "cat/pipe.png")
    with pytest.raises(OSError, match="is a device, no file"):
        open_picture("/dev/zero")


def test_a_folder_that_may_not_be_read_is_named(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.scandir

    def scandir(path: Any) -> Any:  # root may read everything, so permissions alone would show nothing
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    refused(photos, r"'.*/dog/sub' cannot be read \(Permission denied\)")


def test_a_root_that_is_missing_is_no_matter_here_and_a_folder_that_vanishes_is(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_files(photos / "none", "folder:x")  # told where it is looked for
    real = os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith("sub"):
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    refused(photos, r"'.*/dog/sub' cannot be read \(No such file or directory\)")


def test_a_picture_that_may_not_be_read_is_named(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # root may read everything, so permissions alone would show nothing
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.R_OK or not str(path).endswith("2.png"))
    refused(photos, r"^data.root: '.*/dog/sub/2.png' may not be read. Allow it \(chmod\), or move it away$")


def test_a_folder_with_a_colon_in_its_name_is_read(tmp_path: Path) -> None:
    for name in ("a", "b"):
        picture(tmp_path / "photos: all" / name / "1.png")
    assert len(list_source(f"folder:{tmp_path}/photos: all", tmp_path)) == 2


def test_of_many_kinds_the_most_frequent_eight_are_told() -> None:
    names = [f"x.{ending}" for ending in "aabcdefghi"]
    assert sources.kinds(names) == "2 .a, 1 .b, 1 .c, 1 .d, 1 .e, 1 .f, 1 .g, 1 .h, ..."
    assert sources.kinds(names[:9]) == "2 .a, 1 .b, 1 .c, 1 .d, 1 .e, 1 .f, 1 .g, 1 .h"
    assert sources.kinds([]) == ""


def test_files_of_other_kinds_are_counted_where_nothing_else_is_there(tmp_path: Path) -> None:
    for name in ("a/1.psd", "a/2.PSD", "b/notes"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    with pytest.raises(
        DataError, match=r"no images; files of other kinds: 2 .psd, 1 without an ending. These are read: .jpg"
    ):
        list_source(f"folder:{tmp_path}", tmp_path)


@pytest.mark.parametrize("classes", [["cat"], []])
def test_fewer_than_two_classes_are_refused(tmp_path: Path, classes: list[str]) -> None:
    for name in classes:
        picture(tmp_path / name / "1.png")
    (tmp_path / "list.csv").write_text("path,label\ncat/1.png," + "".join(classes) + "\n")
    message = "has only the class 'cat'. To tell" if classes else "has no label. To tell"
    with pytest.raises(DataError, match=message):
        list_source(f"csv:{tmp_path}/list.csv", tmp_path)
    if classes:
        with pytest.raises(DataError, match=message):
            list_source(f"folder:{tmp_path}", tmp_path)


def test_one_class_in_two_unicode_spellings_is_refused_with_both(tmp_path: Path) -> None:
    for name in ("caf\u00e9", "cafe\u0301"):  # as Windows and Linux, and as macOS writes it
        picture(tmp_path / name / "1.png")
    with pytest.raises(DataError, match=r"'cafe\\u0301' and 'caf\\xe9' are one class"):
        list_source(f"folder:{tmp_path}", tmp_path)
    (tmp_path / "list.csv").write_text("path,label\na.png,caf\u00e9\nb.png,cafe\u0301\n", encoding="utf-8")
    with pytest.raises(DataError, match="are one class"):
        list_source(f"csv:{tmp_path}/list.csv", tmp_path)


def test_classes_that_differ_in_case_alone_are_told(tmp_path: Path) -> None:
    for name in ("cat", "Cat", "dog"):
        picture(tmp_path / name / "1.png")
    said: list[str] = []
    assert list_source(f"folder:{tmp_path}", tmp_path, said.append).classes == ("Cat", "cat", "dog")
    assert said == ["note: the classes 'Cat' and 'cat' differ in case or blanks alone. Is that meant?"]


def test_the_content_says_what_a_picture_is_and_other_readers_of_pillow_are_not_tried(tmp_path: Path) -> None:
    for ending, names in FORMATS.items():
        if ending in LIBRARIES:
            continue
        for name in names:
            Image.new("RGB", (8, 8), "red").save(tmp_path / f"a{name}", ending)
            with open_picture(tmp_path / f"a{name}") as image:
                assert (image.format, image.size) == (ending, (8, 8))
    shutil.copy(tmp_path / "a.gif", tmp_path / "b.jpg")
    with open_picture(tmp_path / "b.jpg") as image:
        assert image.format == "GIF"
    for format in ("EPS", "PCX", "ICO", "TGA"):  # Pillow starts Ghostscript for the first
        Image.new("RGB", (16, 16), "red").save(tmp_path / "x.jpg", format)
        with Image.open(tmp_path / "x.jpg") as image:
            assert image.format == format
        with pytest.raises(OSError, match="is no picture of a kind that is read: JPEG, PNG, WEBP, BMP, GIF, TIFF, PPM"):
            open_picture(tmp_path / "x.jpg")


@pytest.mark.parametrize(("name", "package"), [("a.heic", "pillow-heif"), ("a.jxl", "pillow-jxl-plugin")])
def test_a_picture_whose_library_is_missing_is_listed_and_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    for module, _ in LIBRARIES.values():
        monkeypatch.setitem(sys.modules, module, None)
    sources._readable.cache_clear()
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / name).write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    picture(tmp_path / "dog/1.png")
    listing = list_source(f"folder:{tmp_path}", tmp_path)
    assert listing.name(0) == f"cat/{name}"
    with pytest.raises(OSError, match=f"pip install {package}"):
        listing.read(0)
    sources._readable.cache_clear()


# ---------------------------------------------------------------- csv


def test_a_csv_gives_labels_splits_and_unlabelled_images(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(
        "\ufeffpath, label ,split,note\n"
        'p/1.png, "dog",train,"x\ny"\n'
        "p/2.png,cat,,\n"
        '"p/a, b.png",dog,VAL,\n'
        "p/4.png,cat,test,\n"
        "p/5.png,,,\n"
        "p/6.png,dog,unlabelled,\n",
        encoding="utf-8",
    )
    listing = list_source(f"csv:{tmp_path}/list.csv", tmp_path)
    assert listing.classes == ("cat", "dog")
    assert table(listing) == [
        ("p/1.png", 1, "TRAIN"),
        ("p/2.png", 0, "TRAIN"),
        ("p/a, b.png", 1, "VALIDATION"),
        ("p/4.png", 0, "TEST"),
        ("p/5.png", -1, "TRAIN"),
        ("p/6.png", -1, "UNLABELLED"),
    ]
    assert (listing.labels.dtype, listing.parts.dtype) == (np.int64, np.int8)
    assert listing.origin == f"csv {(tmp_path / 'list.csv').as_posix()}"
    picture(tmp_path / "p/1.png", 7)
    with listing.read(0) as image:
        assert image.getpixel((0, 0)) == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"file,label\na.png,x\n", "has no column path; its columns are: file, label"),
        (b"", "has no column path and label; its columns are: none"),
        (b"path,label,label\na.png,x,y\n", "has the column label more than once. Keep one"),
        (b"path,label,split\na.png,x,dev\n", "line 2: unknown split 'dev'. Choose one of: train"),
        (b"path,label\n,x\n", "line 2: no path"),
        (b'path,label\n"a.png,x\nb.png,y\n', "line 3: the path 'a.png,x b.png,y' has an end of line"),
        (b"path,label\n../../a.png,x\n", "line 2: '../../a.png' lies outside of"),
        (b"path,label\n\xff.png,x\n", "is not UTF-8 with commas"),
        (b"path,label\n", "holds no images"),
    ],
)
def test_a_wrong_csv_names_line_and_mend(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "list.csv").write_bytes(text)
    with pytest.raises(DataError, match=message):
        list_source(f"csv:{tmp_path}/list.csv", tmp_path)


def test_a_missing_csv_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"csv '.*none.csv' does not exist. '.*' holds: nothing"):
        list_source(f"csv:{tmp_path}/none.csv", tmp_path)


# ---------------------------------------------------------------- torchvision


def idx(array: np.ndarray) -> bytes:
    """MNIST's format: magic number (0x08 = uint8, then the dimensions' count), sizes, bytes."""
    head = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape)
    return head + array.astype(np.uint8).tobytes()


def mnist_files(seed: int = 0) -> dict[str, bytes]:
    rng = np.random.default_rng(seed)
    files = {}
    for name, count in (("train", 30), ("t10k", 10)):
        files[f"{name}-images-idx3-ubyte"] = idx(rng.integers(0, 256, (count, 28, 28)))
        files[f"{name}-labels-idx1-ubyte"] = idx(np.arange(count) % 10)
    return files


def test_an_array_set_is_read_where_it_lies(tmp_path: Path) -> None:
    raw = tmp_path / "torchvision/MNIST/raw"
    raw.mkdir(parents=True)
    for name, content in mnist_files().items():
        (raw / name).write_bytes(content)
    said: list[str] = []
    listing = list_source("torchvision:MNIST", tmp_path, said.append)
    assert listing.classes[:2] == ("0 - zero", "1 - one")
    assert (np.bincount(listing.parts) == [30, 0, 10]).all()
    assert listing.labels[:12].tolist() == [*range(10), 0, 1]
    expected = np.frombuffer(mnist_files()["t10k-images-idx3-ubyte"], np.uint8, offset=16).reshape(10, 28, 28)
    assert (np.asarray(listing.read(33)) == expected[3]).all()
    assert listing.name(33) == "test[3]"
    assert said == [f"MNIST: found in {tmp_path / 'torchvision'}"]


def test_sets_of_files_are_listed_by_path_with_their_own_splits(tmp_path: Path) -> None:
    base = tmp_path / "torchvision/dtd/dtd"
    for name in ("banded/banded_1.jpg", "dotted/dotted_1.jpg", "dotted/dotted_2.jpg"):
        picture(base / "images" / name)
    (base / "labels").mkdir()
    (base / "labels/train1.txt").write_text("dotted/dotted_1.jpg\nbanded/banded_1.jpg\n")
    for part in ("val", "test"):
        (base / f"labels/{part}1.txt").write_text("dotted/dotted_2.jpg\nbanded/banded_1.jpg\n")
    listing = list_source("torchvision:DTD", tmp_path, lambda line: None)
    assert listing.classes == ("banded", "dotted")
    assert [(label, part) for _, label, part in table(listing)] == [
        (0, "TRAIN"), (1, "TRAIN"), (0, "TEST"), (1, "TEST"), (0, "VALIDATION"), (1, "VALIDATION"),
    ]  # fmt: skip
    assert listing.name(1) == "dtd/dtd/images/dotted/dotted_1.jpg"
    with listing.read(1) as image:
        assert image.size == (4, 4)
    (base / "labels/val1.txt").write_text("dotted/dotted_2.jpg\n")  # which torchvision would number 0 there
    with pytest.raises(DataError, match="splits of torchvision:DTD have different classes"):
        list_source("torchvision:DTD", tmp_path, lambda line: None)


def test_a_set_without_splits_or_class_names_counts_its_labels(tmp_path: Path) -> None:
    base = tmp_path / "torchvision/gtsrb"
    for number in (0, 2):
        path = base / f"GTSRB/Training/{number:05d}/1.ppm"
        picture(path)
    (base / "GTSRB/Final_Test/Images").mkdir(parents=True)
    picture(base / "GTSRB/Final_Test/Images/9.ppm")
    (base / "GT-final_test.csv").write_text("Filename;ClassId\n9.ppm;1\n")
    listing = list_source("torchvision:GTSRB", tmp_path, lambda line: None)
    assert listing.classes == ("0", "1")
    assert listing.labels.tolist() == [0, 1, 1]

    for name in ("Forest/Forest_1.jpg", "River/River_1.jpg"):
        picture(tmp_path / "torchvision/eurosat/2750" / name)
    listing = list_source("torchvision:EuroSAT", tmp_path, lambda line: None)
    assert listing.classes == ("Forest", "River")
    assert set(listing.parts) == {Part.TRAIN}


def test_lists_of_a_json_set_come_in_the_order_of_paths(tmp_path: Path) -> None:
    base = tmp_path / "torchvision/food-101"
    (base / "meta").mkdir(parents=True)
    names = {"pie": ["pie/2", "pie/1"], "cake": ["cake/9"]}
    for name in (*names["pie"], *names["cake"]):
        picture(base / "images" / f"{name}.jpg")
    for part in ("train", "test"):
        (base / f"meta/{part}.json").write_text(json.dumps(names))
    listing = list_source("torchvision:Food101", tmp_path, lambda line: None)
    assert listing.classes == ("cake", "pie")
    assert [Path(listing.name(i)).stem for i in range(3)] == ["9", "1", "2"]


def test_what_a_set_does_not_label_is_minus_one_whatever_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Set:
        classes = ("a", "b")

        def __init__(self, labels: list[int | None]) -> None:
            self.labels, self.data = labels, np.zeros((len(labels), 2, 2), np.uint8)

        def __len__(self) -> int:
            return len(self.labels)

    def construct(name: str, folder: Path) -> dict[Part, Any]:
        return {Part.TRAIN: Set([1, None, 0]), Part.UNLABELLED: Set([0, 1])}

    monkeypatch.setattr(sources, "_construct", construct)
    listing = list_source("torchvision:STL10", tmp_path, lambda line: None)
    assert listing.labels.tolist() == [1, -1, 0, -1, -1]
    assert listing.parts.tolist() == [Part.TRAIN] * 3 + [Part.UNLABELLED] * 2
    assert (listing.labels.dtype, listing.parts.dtype) == (np.int64, np.int8)
    assert listing.name(4) == "unlabelled[1]"


@pytest.mark.parametrize(
    ("attributes", "labels", "classes", "numbers"),
    [
        ({"classes": [("tench", "Tinca tinca"), "shark"]}, [1, 0], ("tench, Tinca tinca", "shark"), [1, 0]),
        ({"classes": [], "categories": ["b", "a"]}, [0, 1], ("b", "a"), [0, 1]),
        ({"all_categories": ["plant/oak", "plant/ash"]}, [1, 1], ("plant/oak", "plant/ash"), [1, 1]),
        ({"class_to_idx": {"x": 0, "y": 1}}, [0, 1], ("x", "y"), [0, 1]),
        # Omniglot's characters in the order of the disk: b is 0 there, and 1 in the order of names
        ({"_characters": ["b", "c", "a"]}, [0, 1, 2, 0], ("a", "b", "c"), [1, 2, 0, 1]),
        ({}, [7, -1, 0, 7], ("0", "7"), [1, -1, 0, 1]),
    ],
)
def test_class_names_are_whatever_the_set_has(attributes, labels, classes, numbers) -> None:
    names, found = sources._names(SimpleNamespace(**attributes), np.array(labels))
    assert (names, found.tolist()) == (classes, numbers)


@pytest.mark.parametrize(
    ("shape", "kind", "straight"),
    [
        ((2, 4, 5), np.uint8, True),  # grey
        ((2, 4, 5, 3), np.uint8, True),  # colour
        ((2, 3, 4, 5), np.uint8, False),  # channels first, as SVHN's
        ((2, 4, 5), np.float32, False),
        (None, None, False),
    ],
)
def test_pixels_come_straight_from_an_array_that_is_one_of_pictures(shape, kind, straight) -> None:
    class Set:
        def __getitem__(self, i: int) -> tuple[str, int]:
            return f"picture {i}", 9

    dataset: Any = Set()
    if shape:
        dataset.data = np.arange(np.prod(shape)).reshape(shape).astype(kind)
    got = sources._pixels(dataset)(1)
    assert (np.asarray(got) == dataset.data[1]).all() if straight else got == "picture 1"


def test_every_listed_set_exists_and_takes_the_arguments_it_is_given() -> None:
    import inspect

    from torchvision import datasets

    for name, (parts, where) in TORCHVISION.items():
        known = inspect.signature(getattr(datasets, name).__init__).parameters
        free = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
        for arguments in parts.values():
            assert free or set(arguments) <= set(known), name
        assert where != "files" or free or "loader" in known, name
        assert free or "download" in known or name in sources._BY_HAND, name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("FasionMNIST", "Did you mean FashionMNIST"),
        ("cifar10", "Did you mean CIFAR10"),
        ("zzz", "Choose one of: Calt"),
    ],
)
def test_an_unknown_set_names_near_ones(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(DataError, match=f"unknown torchvision set '{name}'. {message}"):
        list_source(f"torchvision:{name}", tmp_path)


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder from which torchvision downloads MNIST and FashionMNIST, by a server of this process."""
    from torchvision import datasets

    (tmp_path / "mirror").mkdir()
    resources = []
    for name, content in mnist_files(seed=1).items():
        packed = gzip.compress(content)
        (tmp_path / f"mirror/{name}.gz").write_bytes(packed)
        resources.append((f"{name}.gz", hashlib.md5(packed).hexdigest()))

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *words: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path / "mirror")) as server:
        for kind in (datasets.MNIST, datasets.FashionMNIST):
            monkeypatch.setattr(kind, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
            monkeypatch.setattr(kind, "resources", resources)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield tmp_path / "mirror"
        server.shutdown()


def test_torchvision_downloads_what_is_not_there_and_only_whole_sets_are_put_in_place(
    tmp_path: Path, mirror: Path
) -> None:
    root, said = tmp_path / "raw", []
    kept = root / "torchvision/MNIST/raw/of-the-user"  # the folder is there, the set is not
    kept.parent.mkdir(parents=True)
    kept.write_text("stays")
    listing = list_source("torchvision:MNIST", root, said.append)
    assert (len(listing), listing.origin) == (40, "torchvision's download of MNIST")
    assert said == [f"MNIST: not complete in {root / 'torchvision'} (Dataset not found. You can use download=True to "
                    "download it)", "MNIST: torchvision downloads it"]  # fmt: skip
    assert kept.read_text() == "stays"
    assert [path.name for path in (root / "torchvision").iterdir()] == ["MNIST"]  # nothing of the download is left
    again = list_source("torchvision:MNIST", root, said.append)
    assert again.origin == f"data/raw: {(root / 'torchvision').as_posix()}"
    assert said[2:] == [f"MNIST: found in {root / 'torchvision'}"]
    (mirror / "t10k-labels-idx1-ubyte.gz").write_bytes(b"another file")  # the last of the four
    with pytest.raises(DataError, match=r"torchvision:MNIST could not be downloaded \(Error downloading t10k-labels.*"
                       r"Put its files into '.*/other/torchvision' as the page of torchvision.datasets.MNIST says"):  # fmt: skip
        list_source("torchvision:MNIST", tmp_path / "other", said.append)
    assert list((tmp_path / "other/torchvision").iterdir()) == []


def test_a_set_that_nobody_can_download_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"StanfordCars is not in .* torchvision cannot download it"):
        list_source("torchvision:StanfordCars", tmp_path, lambda line: None)


# ---------------------------------------------------------------- Fashion-MNIST

TINY = mnist_files(seed=1)
SUMS = {name: hashlib.sha256(TINY[name]).hexdigest() for name in FASHION_MNIST_SHA256}
PLACE = "torchvision/FashionMNIST/raw"


def put(folder: Path, zipped: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in TINY.items():
        if zipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("where", "zipped", "origin"),
    [
        (f"raw/{PLACE}", False, "data/raw: "),
        (f"raw/{PLACE}", True, "data/raw: "),
        ("raw", False, "data/raw: "),
        ("raw", True, "data/raw: "),
        ("system/usr/share/datasets/fashion-mnist", True, "the installed Debian package"),
    ],
)
def test_fashion_mnist_is_found_checked_and_put_in_place(tmp_path: Path, where: str, zipped: bool, origin: str) -> None:
    put(tmp_path / where, zipped)
    said: list[str] = []
    found = bring_fashion_mnist(tmp_path / "raw", said.append, tmp_path / "system", SUMS)
    assert found.startswith(origin)
    assert said == [f"FashionMNIST: from {found}"]
    files = {path.name: path.read_bytes() for path in (tmp_path / "raw" / PLACE).iterdir()}
    assert {name: files[name] for name in TINY} == TINY
    assert not [name for name in files if name.startswith(".partial")]


def test_fashion_mnist_is_listed_from_where_it_was_put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "raw", zipped=True)
    bring = partial(bring_fashion_mnist, system=tmp_path / "none", sha256=SUMS)
    monkeypatch.setattr(sources, "bring_fashion_mnist", bring)
    said: list[str] = []
    listing = list_source("torchvision:FashionMNIST", tmp_path / "raw", said.append)
    assert listing.origin == f"data/raw: {(tmp_path / 'raw').as_posix()}"
    assert said == [f"FashionMNIST: from {listing.origin}"]
    assert (np.bincount(listing.parts) == [30, 0, 10]).all()
    assert listing.labels[:12].tolist() == [*range(10), 0, 1]
    assert listing.classes[9] == "Ankle boot"


def test_raw_data_go_before_the_installed_package(tmp_path: Path) -> None:
    put(tmp_path / "raw")
    put(tmp_path / "system/usr/share/datasets/fashion-mnist", zipped=True)
    origin = bring_fashion_mnist(tmp_path / "raw", lambda line: None, tmp_path / "system", SUMS)
    assert origin == f"data/raw: {tmp_path / 'raw'}"


def test_the_second_run_finds_what_the_first_put_in_place(tmp_path: Path) -> None:
    put(tmp_path / "system/usr/share/datasets/fashion-mnist", zipped=True)
    bring_fashion_mnist(tmp_path / "raw", lambda line: None, tmp_path / "system", SUMS)
    shutil.rmtree(tmp_path / "system")
    again = bring_fashion_mnist(tmp_path / "raw", lambda line: None, tmp_path / "system", SUMS)
    assert again == f"data/raw: {tmp_path / 'raw' / PLACE}"


def test_a_second_process_that_brings_the_same_files_meanwhile_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "system/usr/share/datasets/fashion-mnist", zipped=True)
    opened, calls = sources._opened, []

    def open_and_be_overtaken(path: Path) -> object:
        calls.append(path)
        if len(calls) == 2:  # one file is copied
            bring_fashion_mnist(tmp_path / "raw", lambda line: None, tmp_path / "system", SUMS)
        return opened(path)

    monkeypatch.setattr(sources, "_opened", open_and_be_overtaken)
    bring_fashion_mnist(tmp_path / "raw", lambda line: None, tmp_path / "system", SUMS)
    assert {path.name: path.read_bytes() for path in (tmp_path / "raw" / PLACE).iterdir()} == TINY


@pytest.mark.parametrize("zipped", [False, True])
def test_a_wrong_file_stops_it_with_file_and_both_sums_and_nothing_is_put(tmp_path: Path, zipped: bool) -> None:
    put(tmp_path / "raw", zipped)
    name = "t10k-labels-idx1-ubyte"
    bad = TINY[name][:-1] + b"\x07"
    path = tmp_path / "raw" / (f"{name}.gz" if zipped else name)
    path.write_bytes(gzip.compress(bad) if zipped else bad)
    with pytest.raises(DataError) as caught:
        bring_fashion_mnist(tmp_path / "raw", lambda line: None, tmp_path / "system", SUMS)
    for part in (str(path), SUMS[name], hashlib.sha256(bad).hexdigest()):
        assert part in str(caught.value)
    assert list((tmp_path / "raw" / PLACE).iterdir()) == []


def test_a_cut_gz_file_is_named(tmp_path: Path) -> None:
    put(tmp_path / "raw", zipped=True)
    path = tmp_path / "raw/train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz is a damaged .gz file"):
        bring_fashion_mnist(tmp_path / "raw", lambda line: None, tmp_path / "system", SUMS)


def test_when_no_way_leads_there_all_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(folder: Path) -> Path:
        raise RuntimeError("no route to host")

    monkeypatch.setenv("PATH", "")  # a machine without apt
    monkeypatch.setattr(sources, "_torchvision_fashion_mnist", no_network)
    with pytest.raises(DataError, match=r"(?s)no apt-get on this machine.*no route to host.*Install the Debian"):
        bring_fashion_mnist(tmp_path / "raw", lambda line: None, tmp_path / "system", SUMS)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A Debian package as deb(5) describes it, built here byte by byte."""
    put(tmp_path / "tree/usr/share/datasets/fashion-mnist", zipped=True)
    with tarfile.open(tmp_path / "data.tar.xz", "w:xz") as data:
        data.add(tmp_path / "tree", ".")
    with tarfile.open(tmp_path / "control.tar.xz", "w:xz") as control:
        (tmp_path / "control").write_text("Package: x\nVersion: 1\nArchitecture: all\n")
        control.add(tmp_path / "control", "./control")
    content = b"!<arch>\n"
    for name, body in (
        ("debian-binary", b"2.0\n"),
        ("control.tar.xz", (tmp_path / "control.tar.xz").read_bytes()),
        ("data.tar.xz", (tmp_path / "data.tar.xz").read_bytes()),
    ):
        content += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(body):<10}`\n".encode() + body
        content += b"\n" * (len(body) % 2)
    (tmp_path / "x.deb").write_bytes(content)
    return tmp_path / "x.deb"


@pytest.mark.parametrize("path", [None, ""], ids=["dpkg-deb where there is one", "our own reading"])
def test_a_package_is_unpacked_without_root(
    package: Path, tmp_path: Path, path: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if path is not None:
        monkeypatch.setenv("PATH", path)
    unpack_deb(package, tmp_path / "out")
    unpacked = tmp_path / "out/usr/share/datasets/fashion-mnist"
    assert {name: gzip.decompress((unpacked / f"{name}.gz").read_bytes()) for name in TINY} == TINY


@pytest.mark.parametrize("lists", [True, False], ids=["with package lists", "without"])
def test_apt_get_brings_the_package_and_fetches_its_lists_where_there_are_none(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lists: bool
) -> None:
    # a script stands for apt-get: it answers as the real one does where it has, and has not, lists of packages
    folder, log, name = tmp_path / "temporary", tmp_path / "log", sources.PACKAGE
    (tmp_path / "bin").mkdir()
    folder.mkdir()
    ready = f"cp {package} {name}_1_all.deb; exit 0" if lists else ":"
    (tmp_path / "bin/apt-get").write_text(
        f"""#!/bin/sh
echo "$@" >> {log}
case "$*" in
  "download {name}") {ready} ;;
  *update) [ -d {folder}/lists/partial -a -d {folder}/cache/archives/partial ] && touch {log}.updated && exit 0 ;;
  *"download {name}") [ -e {log}.updated ] && cp {package} {name}_1_all.deb && exit 0 ;;
esac
[ "$LC_ALL" = C ] && echo "E: Unable to locate package" >&2
exit 100
"""
    )
    (tmp_path / "bin/apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/bin:/usr/bin")
    found = sources._apt_download(folder)
    assert {name: gzip.decompress((found / f"{name}.gz").read_bytes()) for name in TINY} == TINY
    own = f"-o Dir::State::Lists={folder}/lists -o Dir::Cache={folder}/cache"
    asked = [f"download {name}"]
    if not lists:
        asked += [f"{own} -o Debug::NoLocking=1 update", f"{own} download {name}"]
    assert log.read_text().splitlines() == asked
    package.unlink()
    shutil.rmtree(folder)
    folder.mkdir()
    (tmp_path / "bin/apt-get").write_text("#!/bin/sh\necho E: no network in $LC_ALL >&2\nexit 100")
    with pytest.raises(RuntimeError, match=r"^`apt-get -o .* update` said 100: E: no network in C$"):
        sources._apt_download(folder)


def test_where_nothing_is_there_torchvision_brings_the_four_files(
    tmp_path: Path, mirror: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")  # a machine without apt
    said: list[str] = []
    found = bring_fashion_mnist(tmp_path / "raw", said.append, tmp_path / "system", SUMS)
    assert found == "torchvision's download of FashionMNIST"
    apt = f"the Debian package {sources.PACKAGE}, brought by apt-get download"
    assert said == [
        f"FashionMNIST: not in {tmp_path / 'raw'}; trying {apt}",
        f"FashionMNIST: no {apt}: there is no apt-get on this machine",
        f"FashionMNIST: not in {tmp_path / 'raw'}; trying {found}",
        f"FashionMNIST: from {found}",
    ]
    assert {path.name: path.read_bytes() for path in (tmp_path / "raw" / PLACE).iterdir()} == TINY


def test_our_own_reading_knows_both_spellings_of_names_and_writes_nothing_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    (tmp_path / "file").write_text("x")

    def member(name: str, body: bytes) -> bytes:
        return f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(body):<10}`\n".encode() + body + b"\n" * (len(body) % 2)

    for inside, there in (("file", True), ("../outside", False)):
        with tarfile.open(tmp_path / "data.tar.gz", "w:gz") as data:
            data.add(tmp_path / "file", inside)
        content = (tmp_path / "data.tar.gz").read_bytes()
        # GNU's ar ends a name with a slash; a first member of odd length is padded
        package = b"!<arch>\n" + member("debian-binary/", b"2.0") + member("data.tar.gz/", content)
        (tmp_path / "x.deb").write_bytes(package)
        if there:
            unpack_deb(tmp_path / "x.deb", tmp_path / "out")
            assert (tmp_path / "out/file").read_text() == "x"
        else:
            with pytest.raises(tarfile.TarError):
                unpack_deb(tmp_path / "x.deb", tmp_path / "out")
    assert not (tmp_path / "outside").exists()
    (tmp_path / "x.deb").write_bytes(b"!<arch>\n" + member("debian-binary", b"2.0\n"))
    with pytest.raises(RuntimeError, match="x.deb holds no data.tar"):
        unpack_deb(tmp_path / "x.deb", tmp_path / "out")


def test_what_is_no_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    (tmp_path / "x.deb").write_bytes(b"<html>")
    with pytest.raises(RuntimeError, match="not a Debian package"):
        unpack_deb(tmp_path / "x.deb", tmp_path / "out")


@pytest.mark.integration
def test_fashion_mnist_comes_by_apt_and_is_the_real_one(tmp_path: Path) -> None:
    if shutil.which("apt-get") is None:
        pytest.skip("no apt-get on this machine")
    known = subprocess.run(["apt-get", "download", "--print-uris", sources.PACKAGE], capture_output=True, check=False)
    if known.returncode:
        pytest.skip("apt-get has no package lists here")
    said: list[str] = []
    bring_fashion_mnist(tmp_path, said.append, system=tmp_path / "no system")
    assert said[-1].endswith("brought by apt-get download")
    listing = list_source("torchvision:FashionMNIST", tmp_path, said.append)
    assert len(listing) == 70_000
    assert listing.classes[0] == "T-shirt/top"
    # the header says which file holds the images, independently of our table of sums
    head = (tmp_path / PLACE / "train-images-idx3-ubyte").read_bytes()[:16]
    assert struct.unpack(">4I", head) == (0x803, 60_000, 28, 28)
    assert np.bincount(listing.labels[listing.parts == Part.TEST]).tolist() == [1000] * 10
