"""Decoding against hand-worked pixels, splits against counts by hand, and what may never reach the disk."""

from __future__ import annotations

import hashlib
import io
import json
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images
from sklearn.model_selection import train_test_split

from thinner.data.sources import DataError, Listing, Part, list_source, open_picture
from thinner.data.store import (
    SPLITS,
    UnreadableError,
    _quotas,
    decode,
    forget,
    integrity_report,
    open_store,
    split,
    write_images,
    write_splits,
    write_store,
)

RED_LEFT = np.zeros((8, 8, 3), np.uint8)
RED_LEFT[:, :4, 0] = 255
CHOICES: dict[str, Any] = {
    "source": "folder:x", "image_size": 8, "channels": 1, "fit": "crop", "labelled": 40, "validation": 20,
    "test": 0.1, "unlabelled": "rest", "max_unreadable": 0.0, "max_pixels": 1_000_000, "seed": 0,
}  # fmt: skip


def opened(image: Image.Image, format: str, **options: Any) -> Callable[[], Image.Image]:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return partial(Image.open, io.BytesIO(buffer.getvalue()))


def digits(count: int = 200) -> Listing:
    """scikit-learn's handwritten digits: 8 x 8 pixels, values 0 to 16."""
    data = load_digits()
    images = (data.images * 15.9).astype(np.uint8)
    return Listing(
        classes=tuple("0123456789"),
        labels=data.target[:count].astype(np.int64),
        parts=np.zeros(count, np.int8),
        name=lambda i: f"digit {i}",
        read=lambda i: Image.fromarray(images[i]),
        origin="scikit-learn",
    )


# ---------------------------------------------------------------- decoding


@pytest.mark.parametrize("format", ["PNG", "BMP", "WEBP"])
def test_lossless_formats_come_out_as_they_went_in(format: str) -> None:
    options = {"lossless": True} if format == "WEBP" else {}
    assert (decode(opened(Image.fromarray(RED_LEFT), format, **options), 8, 3, "crop") == RED_LEFT).all()


def test_a_jpeg_photo_is_close_to_its_pixels() -> None:
    photo = load_sample_images().images[0]
    read = opened(Image.fromarray(photo), "JPEG", quality=95)
    got = decode(read, 64, 3, "stretch").astype(float)
    # an oracle that shares no code with Pillow: the mean of each block of the 640 x 427 photo
    blocks = photo[:384, :].reshape(64, 6, 64, 10, 3).mean(axis=(1, 3))
    exact = decode(lambda: Image.fromarray(photo[:384]), 64, 3, "stretch").astype(float)
    assert np.abs(exact - blocks).mean() < 4
    assert np.abs(got - decode(lambda: Image.fromarray(photo), 64, 3, "stretch")).mean() < 2


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    values = np.array([[0, 257], [32768, 65535]], np.uint16)
    got = decode(opened(Image.fromarray(values), "PNG"), 2, 1, "crop")[..., 0]
    assert got.tolist() == [[0, 1], [128, 255]]
    assert decode(opened(Image.fromarray(values), "PNG"), 2, 3, "crop")[1, 1].tolist() == [255] * 3


@pytest.mark.parametrize("value", [-1, 65536])
def test_more_than_sixteen_bits_and_floating_point_have_no_range_that_is_agreed(value: int) -> None:
    for fine in (0, 65535):
        pixels = np.array([[0, fine], [65535, 0]], np.int32)
        got = decode(lambda pixels=pixels: Image.fromarray(pixels), 2, 1, "crop")[..., 0]
        assert got.tolist() == [[0, fine // 257], [255, 0]]
    for pixels, reason in (
        (np.array([[0, value], [0, 0]], np.int32), "^more than 16 bits per pixel$"),
        (
            np.zeros((2, 2), np.float32),
            "^floating-point pixels have no agreed range; convert the file to 8 or 16 bits$",
        ),
    ):
        with pytest.raises(UnreadableError, match=reason):
            decode(lambda pixels=pixels: Image.fromarray(pixels), 2, 1, "crop")


def test_palette_with_transparency_lies_on_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    got = decode(opened(image, "PNG", transparency=1), 2, 3, "stretch")
    assert got[0].tolist() == [[255, 0, 0], [255, 255, 255]]


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 100, [100, 100, 100]),
        ("1", 1, [255, 255, 255]),
        ("RGB", (1, 2, 3), [1, 2, 3]),
        ("RGBA", (200, 0, 0, 0), [255, 255, 255]),
        ("RGBA", (200, 0, 0, 255), [200, 0, 0]),
        ("LA", (50, 255), [50, 50, 50]),
        ("LA", (50, 0), [255, 255, 255]),
    ],
)
def test_every_mode_of_png_becomes_three_channels(mode: str, colour: Any, expected: list[int]) -> None:
    got = decode(opened(Image.new(mode, (4, 4), colour), "PNG"), 4, 3, "crop")
    assert got[1, 2].tolist() == expected


def test_transparent_colour_of_an_rgb_png_becomes_white() -> None:
    got = decode(opened(Image.new("RGB", (4, 4), (9, 9, 9)), "PNG", transparency=(9, 9, 9)), 4, 3, "crop")
    assert got[0, 0].tolist() == [255, 255, 255]


def test_cmyk_jpeg_is_ink_on_white_paper() -> None:
    no_ink, cyan = (Image.new("CMYK", (16, 16), ink) for ink in ((0, 0, 0, 0), (255, 0, 0, 0)))
    assert decode(opened(no_ink, "JPEG", quality=100), 16, 3, "crop").min() >= 250
    red, green, blue = decode(opened(cyan, "JPEG", quality=100), 16, 3, "crop")[8, 8].tolist()
    assert red < 10
    assert min(green, blue) > 240


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_a_turned_photo_is_set_upright(format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: the camera was turned; the upright image is this one turned right
    got = decode(opened(Image.fromarray(RED_LEFT), format, exif=exif), 8, 3, "crop").astype(int)
    assert got[1, 4, 0] > 200  # the left half is now the upper half
    assert got[6, 4, 0] < 60


def test_grey_of_a_colour_is_its_luma() -> None:
    got = decode(opened(Image.new("RGB", (4, 4), (255, 0, 0)), "PNG"), 4, 1, "crop")
    assert got.shape == (4, 4, 1)
    assert abs(int(got[0, 0, 0]) - 0.299 * 255) <= 1  # ITU-R 601


def test_the_three_ways_to_make_a_square() -> None:
    wide = np.zeros((4, 8, 3), np.uint8)
    wide[:, 2:6] = 255  # white in the middle half
    read = opened(Image.fromarray(wide), "PNG")
    assert (decode(read, 4, 3, "crop") == 255).all()
    pad = decode(read, 8, 3, "pad")
    assert (pad[:2] == 0).all()
    assert (pad[6:] == 0).all()
    assert (pad[2:6] == wide).all()
    assert decode(read, 4, 3, "stretch")[:, :, 0].mean() == pytest.approx(255 / 2, abs=3)
    with pytest.raises(DataError, match=r"data.fit: unknown 'squeeze'. Choose one of: crop, pad, stretch"):
        decode(read, 4, 3, "squeeze")


def webp_of_34_bytes() -> bytes:
    """A lossless WebP of 16383 x 8000 px by its header: width and height less one, 14 bits each."""
    bits = (16383 - 1) | (8000 - 1) << 14
    lossless = b"\x2f" + bits.to_bytes(4, "little") + bytes([0x88, 0x88, 0x08]) + bytes(6)
    body = b"WEBPVP8L" + len(lossless).to_bytes(4, "little") + lossless
    return b"RIFF" + len(body).to_bytes(4, "little") + body


@pytest.mark.parametrize(
    ("content", "pixels"),
    [
        (webp_of_34_bytes(), "131,064,000"),
        (b"P5 20000 10000 255\n", "200,000,000"),
    ],
)
def test_more_pixels_than_allowed_are_not_begun_and_the_message_says_how_to_read_them(content, pixels) -> None:
    tracemalloc.start()
    with pytest.raises(UnreadableError, match=f"has {pixels} pixels.*max_pixels: {pixels.replace(',', '')}$"):
        decode(partial(open_picture, io.BytesIO(content)), 8, 3, "crop", 50_000_000)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_a_jpeg_counts_as_it_is_decoded_and_a_progressive_one_whole() -> None:
    scan = Image.new("L", (4000, 3000), 128)
    assert (decode(opened(scan, "JPEG"), 96, 1, "crop", 750 * 1000) == 128).all()  # an eighth would be 500 x 375
    with pytest.raises(UnreadableError, match="has 12,000,000 pixels"):
        decode(opened(scan, "JPEG", progressive=True), 96, 1, "crop", 11_999_999)
    with pytest.raises(UnreadableError, match="has 12,000,000 pixels"):
        decode(opened(scan, "PNG"), 96, 1, "crop", 11_999_999)
    assert (decode(opened(scan, "PNG"), 96, 1, "crop", 12_000_000) == 128).all()


def test_of_a_gif_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    assert decode(opened(frames[0], "GIF", save_all=True, append_images=frames[1:]), 8, 3, "crop")[0, 0, 0] == 255


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF"])
def test_a_damaged_file_is_unreadable_and_never_anything_else(format: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(load_sample_images().images[1][:64, :64]).save(buffer, format)
    content = buffer.getvalue()
    with pytest.raises(UnreadableError):
        decode(partial(open_picture, io.BytesIO(content[: len(content) // 2])), 8, 3, "crop", 10**6)
    rng = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(content)
        for place in rng.integers(0, min(400, len(damaged)), 4):
            damaged[place] = rng.integers(256)
        try:
            decode(partial(open_picture, io.BytesIO(bytes(damaged))), 8, 3, "crop", 10**6)
        except (UnreadableError, UserWarning):  # Pillow warns about some; outside of the tests it reads on
            continue


# ---------------------------------------------------------------- the array


def test_the_array_holds_every_image_in_order_and_opens_as_a_memory_map(tmp_path: Path) -> None:
    listing = digits(203)
    report = write_store(tmp_path, listing, **CHOICES)
    store = open_store(tmp_path)
    assert isinstance(store.images, np.memmap)
    assert store.images.shape == (203, 8, 8, 1)
    assert all((store.images[i, :, :, 0] == np.asarray(listing.read(i))).all() for i in range(203))
    assert store.classes == tuple("0123456789")
    assert report["images"]["stored"] == 203
    sizes = {name: len(store.splits[name]) for name in SPLITS}
    assert sizes == {"labelled": 40, "unlabelled": 123, "validation": 20, "test": 20}
    assert store.info["counts"] == sizes


def test_what_lies_beside_the_array_is_text_to_read_and_names_what_was_asked(tmp_path: Path) -> None:
    listing = Listing(**{**vars(digits()), "name": "caf\u00e9 {}".format, "classes": ("\u732b", *"123456789")})
    done: list[int] = []
    write_store(tmp_path / "new/folder", listing, **CHOICES, progress=done.append)
    assert done[-1] == 200 and done == sorted(done)
    names = (tmp_path / "new/folder/names.json").read_bytes().decode("utf-8")
    assert names.startswith('[\n"caf\u00e9 0",\n"caf\u00e9 1",\n') and names.endswith('199"\n]\n')
    text = (tmp_path / "new/folder/info.json").read_bytes().decode("utf-8")
    assert text.startswith('{\n  "classes": [\n    "\u732b",\n') and text.endswith("\n}\n")
    info = open_store(tmp_path / "new/folder").info
    asked = {"source": "folder:x", "image_size": 8, "channels": 1, "fit": "crop"}
    assert {key: info[key] for key in info if key not in ("classes", "counts", "sha256")} == asked


def test_the_checksum_is_of_pixels_splits_labels_and_classes_as_written_by_hand(tmp_path: Path) -> None:
    write_store(tmp_path, digits(), **CHOICES)
    store = open_store(tmp_path)
    digest = hashlib.sha256(hashlib.sha256(np.ascontiguousarray(store.images).tobytes()).digest())
    for name in ("labelled", "unlabelled", "validation", "test"):
        digest.update(b"".join(int(i).to_bytes(8, "little") for i in store.splits[name]))
    digest.update(b"".join(int(label).to_bytes(8, "little", signed=True) for label in store.labels))
    digest.update(b'["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]')
    assert store.sha256 == digest.hexdigest()


def test_a_store_is_refused_too_many_pixels(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="200 cannot be read:\n  digit 0: has 64 pixels"):
        write_store(tmp_path, digits(), **{**CHOICES, "max_pixels": 63})


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_same_data_give_the_same_bytes_whatever_the_number_of_workers(tmp_path: Path) -> None:
    for name, workers in (("a", 1), ("b", 3)):
        write_store(tmp_path / name, digits(), **CHOICES, workers=workers)
    assert folder_bytes(tmp_path / "a") == folder_bytes(tmp_path / "b")
    write_store(tmp_path / "c", digits(), **{**CHOICES, "seed": 1})
    assert open_store(tmp_path / "c").sha256 != open_store(tmp_path / "a").sha256


def test_the_way_the_data_came_does_not_change_what_later_stages_read(tmp_path: Path) -> None:
    write_store(tmp_path / "a", digits(), **CHOICES)
    other = Listing(**{**vars(digits()), "origin": "a download"})
    report = write_store(tmp_path / "b", other, **CHOICES)
    assert folder_bytes(tmp_path / "a") == folder_bytes(tmp_path / "b")
    assert report["origin"] == "a download"


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    def peak_bytes(count: int) -> int:
        listing = Listing(
            classes=("a",), labels=np.zeros(count, np.int64), parts=np.zeros(count, np.int8), name=str,
            read=lambda i: Image.new("RGB", (64, 64), (i % 256, i // 256, 0)), origin="made",
        )  # fmt: skip
        tracemalloc.start()
        write_images(tmp_path / "images.npy", listing, image_size=64, channels=3, fit="crop", max_pixels=4096)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak_bytes(200)  # imports and caches
    grown = peak_bytes(2000) - peak_bytes(200)
    array_bytes = 1800 * 64 * 64 * 3  # 22 MB would have been added, were images kept
    assert grown < array_bytes / 8  # a few chunks more lie ready where the machine is busy


def test_a_folder_of_photos_goes_all_the_way(tmp_path: Path) -> None:
    for name, photo in zip(("china", "flower"), load_sample_images().images, strict=True):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for k in range(12):
            crop = Image.fromarray(photo[k * 10 : k * 10 + 200, k * 20 : k * 20 + 300])
            crop.save(tmp_path / "photos" / name / f"{k:02d}.{('jpg', 'png', 'webp', 'bmp')[k % 4]}")
    listing = list_source(f"folder:{tmp_path}/photos", tmp_path)
    wanted = {**CHOICES, "channels": 3, "image_size": 32, "labelled": 8, "validation": 4, "test": 4}
    report = write_store(tmp_path / "out", listing, **wanted)
    store = open_store(tmp_path / "out")
    assert report["balance"]["labelled"] == {"china": 4, "flower": 4}
    assert len(store.splits["unlabelled"]) == 8
    assert store.images.shape == (24, 32, 32, 3)
    means = [store.images[i].mean(axis=(0, 1)) for i in (0, 12)]
    assert np.abs(means[0] - means[1]).max() > 20  # the two photos are not the same colour


def test_no_prepared_data_says_how_to_make_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no prepared data .*dvc repro prepare"):
        open_store(tmp_path)


LABELS_NPY = "labels.npy does not hold the number of a class, or -1, for each image"
NO_LABELS = np.full(60, -1)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("info.json", b"[]", r".*info.json: holds no JSON object."),
        ("info.json", {"classes": list("0123456789")}, "info.json lacks sha256"),
        ("info.json", {"classes": [], "sha256": "0"}, r"info.json has classes: \[\]"),
        ("info.json", {"classes": list("0123456789"), "sha256": 5}, "info.json has sha256: 5"),
        ("images.npy", np.zeros((60, 8, 8, 1), np.float32), r"images.npy is float32 \[60, 8, 8, 1\]"),
        ("images.npy", np.zeros((60, 8, 8), np.uint8), r"images.npy is uint8 \[60, 8, 8\]"),
        ("labels.npy", NO_LABELS.astype(np.int32), LABELS_NPY),
        ("labels.npy", NO_LABELS[:-1], LABELS_NPY),
        ("labels.npy", NO_LABELS + 11, LABELS_NPY),
        ("labels.npy", NO_LABELS - 1, LABELS_NPY),
        ("splits.npz", {"validation": None}, "splits.npz has no numbers of images called validation"),
        ("splits.npz", {"test": np.zeros(0, np.uint8)}, "splits.npz has no numbers of images called test"),
        ("splits.npz", {"test": np.zeros((2, 1), np.int64)}, "splits.npz has no numbers of images called test"),
        ("splits.npz", {"labelled": np.array([60])}, "splits.npz has no numbers of images called labelled"),
        ("splits.npz", {"labelled": np.array([-1])}, "splits.npz has no numbers of images called labelled"),
    ],
)
def test_files_that_are_not_of_one_set_of_data_are_refused(tmp_path: Path, name: str, content: Any, said: str) -> None:
    write_store(tmp_path, digits(60), **{**CHOICES, "labelled": 20, "validation": 10, "test": 10})
    file = tmp_path / name
    if name == "splits.npz":
        whole = {key: value for key, value in np.load(file).items() if content.get(key, value) is not None}
        np.savez(file, **{**whole, **{key: value for key, value in content.items() if value is not None}})
    elif name.endswith(".npy"):
        np.save(file, content)
    else:
        file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(DataError, match=rf"^{tmp_path}: no prepared data \({said}\). Make them: dvc repro prepare$"):
        open_store(str(tmp_path))


def test_the_least_and_the_largest_numbers_are_read(tmp_path: Path) -> None:
    write_store(tmp_path, digits(60), **{**CHOICES, "labelled": 20, "validation": 10, "test": 10})
    np.save(tmp_path / "labels.npy", np.where(np.arange(60) % 2, -1, 9))
    np.savez(tmp_path / "splits.npz", labelled=[0, 59], **{name: np.zeros(0, np.int64) for name in SPLITS[1:]})
    assert open_store(tmp_path).splits["labelled"].tolist() == [0, 59]


# ---------------------------------------------------------------- unreadable files


@pytest.fixture
def damaged(tmp_path: Path) -> Listing:
    """20 pictures in two classes; one JPEG is cut short, one PNG is text, one path is gone."""
    folder = tmp_path / "photos"
    for i in range(20):
        path = folder / ("a" if i % 2 else "b") / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), i * 10).save(path)
    (folder / "a/99.jpg").write_bytes(b"")
    (folder / "b/98.png").write_text("hello")
    Image.fromarray(load_sample_images().images[0][:64, :64]).save(folder / "a/97.jpg")
    listing = list_source(f"folder:{folder}", tmp_path)
    content = (folder / "a/97.jpg").read_bytes()
    (folder / "a/97.jpg").write_bytes(content[: len(content) // 2])
    return listing


SMALL = {**CHOICES, "labelled": 8, "validation": 4, "test": 4}


def test_unreadable_files_within_the_limit_are_left_out_and_named(damaged: Listing, tmp_path: Path) -> None:
    damaged = Listing(**{**vars(damaged), "ignored": ("a/x.psd", "b/x.txt", "b/y.txt")})
    report = write_store(tmp_path / "out", damaged, **{**SMALL, "max_unreadable": 0.2})
    assert report["ignored"] == {"count": 3, "kinds": "2 .txt, 1 .psd", "files": ["a/x.psd", "b/x.txt", "b/y.txt"]}
    assert report["unreadable"]["count"] == 3
    assert list(report["unreadable"]["files"]) == ["a/97.jpg", "a/99.jpg", "b/98.png"]
    assert "truncated" in report["unreadable"]["files"]["a/97.jpg"].lower()
    assert report["images"] == {
        "found": 23, "stored": 20, "labelled": 8, "unlabelled": 4, "validation": 4, "test": 4, "unused": 0,
    }  # fmt: skip
    store = open_store(tmp_path / "out")
    assert store.images.shape[0] == 20
    for name in ("labelled", "validation", "test"):  # the rows moved up, their labels with them
        for i in store.splits[name]:
            number = int(store.images[i, 0, 0, 0]) // 10
            assert store.classes[store.labels[i]] == ("a" if number % 2 else "b")


def test_more_unreadable_files_than_allowed_stop_it_with_their_names(damaged: Listing, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.max_unreadable: 0.1 allows 2 of 23 images, 3 cannot") as caught:
        write_store(tmp_path / "out", damaged, **{**SMALL, "max_unreadable": 0.1})
    for name in ("a/97.jpg", "a/99.jpg", "b/98.png"):
        assert f"  {name}: " in str(caught.value)


def unreadable(count: int) -> Listing:
    def read(i: int) -> Image.Image:
        raise OSError(f"broken {i}")

    labels, parts = np.zeros(count, np.int64), np.zeros(count, np.int8)
    return Listing(classes=("a", "b"), labels=labels, parts=parts, name="{}.png".format, read=read, origin="made")


@pytest.mark.parametrize(
    ("count", "more"), [(3, ""), (100, ""), (101, "\n  ... and 1 more"), (130, "\n  ... and 30 more")]
)
def test_of_many_unreadable_files_a_hundred_are_named_and_all_is_too_many(
    tmp_path: Path, count: int, more: str
) -> None:
    with pytest.raises(DataError) as caught:
        write_store(tmp_path, unreadable(count), **{**SMALL, "max_unreadable": 1.0})
    named = "\n".join(f"  {i}.png: broken {i}" for i in range(min(count, 100)))
    assert str(caught.value) == (
        f"data.max_unreadable: 1.0 allows {count} of {count} images, {count} cannot be read:\n{named}{more}\n"
        "Mend or remove them, or raise data.max_unreadable"
    )


# ---------------------------------------------------------------- splitting

LABELS = np.repeat([0, 1, 2], [600, 300, 100])
TRAIN = np.zeros(1000, np.int8)
ABC = ("a", "b", "c")
ASK: dict[str, Any] = {"labelled": 100, "validation": 50, "test": 200, "unlabelled": "rest", "seed": 3}


def test_splits_are_disjoint_complete_sorted_and_in_proportion() -> None:
    splits = split(LABELS, TRAIN, ABC, **ASK)
    assert np.sort(np.concatenate([*splits.values()])).tolist() == list(range(1000))
    for name, expected in {
        "labelled": [60, 30, 10], "validation": [30, 15, 5],
        "test": [120, 60, 20], "unlabelled": [390, 195, 65],
    }.items():  # fmt: skip
        assert np.bincount(LABELS[splits[name]]).tolist() == expected
        assert (np.diff(splits[name]) > 0).all()
        assert splits[name].dtype == np.int64


def test_class_counts_are_within_one_of_scikit_learns_stratification() -> None:
    labels = np.repeat(np.arange(7), [13, 29, 41, 57, 77, 101, 150])
    ask = {**ASK, "labelled": 40, "validation": 37, "test": 111}
    ours = np.bincount(labels[split(labels, np.zeros(len(labels), np.int8), "abcdefg", **ask)["test"]])
    _, theirs = train_test_split(labels, test_size=111, stratify=labels, random_state=0)
    assert np.abs(ours - np.bincount(theirs)).max() <= 1


def test_ratios_are_shares_of_the_training_part_as_it_comes() -> None:
    splits = split(LABELS, TRAIN, ABC, **{**ASK, "labelled": 0.7, "validation": 0.1, "test": 0.2})
    assert {name: len(splits[name]) for name in SPLITS} == {
        "labelled": 700, "unlabelled": 0, "validation": 100, "test": 200,
    }  # fmt: skip


def test_a_seed_gives_its_split_and_another_another() -> None:
    first, again, other = (split(LABELS, TRAIN, ABC, **{**ASK, "seed": seed}) for seed in (0, 0, 1))
    assert all((first[name] == again[name]).all() for name in SPLITS)
    assert any((first[name] != other[name]).any() for name in ("labelled", "validation", "test"))


def test_asking_for_more_labels_leaves_validation_and_test_alone() -> None:
    first, second = (split(LABELS, TRAIN, ABC, **{**ASK, "labelled": count}) for count in (50, 300))
    assert (first["test"] == second["test"]).all()
    assert (first["validation"] == second["validation"]).all()


def test_ready_made_splits_are_used_whole_and_unlabelled_images_join_the_rest() -> None:
    parts = TRAIN.copy()
    parts[500:560], parts[700:720], parts[950:] = Part.VALIDATION, Part.TEST, Part.UNLABELLED
    labels = np.where(parts == Part.UNLABELLED, -1, LABELS)
    splits = split(labels, parts, ABC, **{**ASK, "validation": None, "test": None})
    assert splits["validation"].tolist() == list(range(500, 560))
    assert splits["test"].tolist() == list(range(700, 720))
    assert len(splits["unlabelled"]) == 1000 - 80 - 100
    assert set(range(950, 1000)) <= set(splits["unlabelled"].tolist())


def test_a_count_draws_from_the_sources_own_test_split() -> None:
    parts = TRAIN.copy()
    parts[::2] = Part.TEST
    chosen = split(LABELS, parts, ABC, **{**ASK, "test": 50})["test"]
    assert len(chosen) == 50
    assert (chosen % 2 == 0).all()


def test_what_is_drawn_for_labelled_is_of_the_training_part_and_has_a_label() -> None:
    parts = TRAIN.copy()
    parts[::2] = Part.TEST  # of which 50 are drawn: the others are in no split, and least of all in training
    labels = np.where(np.arange(1000) % 4 == 1, -1, LABELS)
    splits = split(labels, parts, ABC, **{**ASK, "test": 50, "validation": 20, "labelled": 0.5})
    assert len(splits["labelled"]) == 125  # half of those of the training part that have a label
    for name in ("labelled", "validation"):
        assert (splits[name] % 2 == 1).all() and (labels[splits[name]] >= 0).all()
    assert (splits["unlabelled"] % 2 == 1).all() and len(splits["unlabelled"]) == 500 - 125 - 20


def test_a_draw_leaves_an_image_of_each_class_for_the_splits_after_it() -> None:
    labels, parts = np.array([0] * 12 + [1] * 3), np.zeros(15, np.int8)
    splits = split(labels, parts, ("common", "rare"), **{**ASK, "test": 9, "validation": 2, "labelled": 4})
    # in proportion it would be 7 and 2 for test; but of the rare one each of the other two needs one
    expected = {"test": [8, 1], "validation": [1, 1], "labelled": [3, 1], "unlabelled": [0, 0]}
    assert {name: np.bincount(labels[found], minlength=2).tolist() for name, found in splits.items()} == expected


def test_a_count_may_be_all_of_the_sources_own_split_and_as_few_as_there_are_classes() -> None:
    parts = TRAIN.copy()
    parts[::2] = Part.TEST
    parts[1::4] = Part.VALIDATION
    ask = {**ASK, "test": 500, "validation": 3, "labelled": 3}
    splits = split(LABELS, parts, ABC, **ask)
    assert splits["test"].tolist() == list(range(0, 1000, 2))
    for name, remainder in (("validation", 1), ("labelled", 3)):
        assert LABELS[splits[name]].tolist() == [0, 1, 2]
        assert (splits[name] % 4 == remainder).all()


def test_a_class_without_images_is_named() -> None:
    with pytest.raises(DataError, match=r"data.test: 200: too few images left of class 'd' \(0\), 'e' \(0\) to be in"):
        split(LABELS, TRAIN, (*ABC, "d", "e"), **ASK)


def test_a_count_of_unlabelled_images_is_in_proportion() -> None:
    chosen = split(LABELS, TRAIN, ABC, **{**ASK, "unlabelled": 100})["unlabelled"]
    assert np.bincount(LABELS[chosen]).tolist() == [60, 30, 10]
    assert len(split(LABELS, TRAIN, ABC, **{**ASK, "unlabelled": 0})["unlabelled"]) == 0
    all_labelled = {**ASK, "labelled": len(LABELS) - 250, "unlabelled": 0}  # nothing is left to draw from
    assert split(LABELS, TRAIN, ABC, **all_labelled)["unlabelled"].tolist() == []


@pytest.mark.parametrize(
    ("count", "sizes", "later", "expected"),
    [
        (7, [3, 3, 3], 0, [3, 2, 2]),  # 2 1/3 each: the first of equal remainders
        (9, [12, 3], 2, [8, 1]),  # 7.2 and 1.8, of which 1 may go
        (10, [95, 1, 1, 1, 1, 1], 0, [5, 1, 1, 1, 1, 1]),  # 9.5 and 0.1 each, which have to be 1
        (12, [50, 40, 2, 2, 2, 2], 0, [5, 3, 1, 1, 1, 1]),  # 6.1, 4.9, 0.2: the four that are too many come off both
    ],
)
def test_quotas_by_hand(count: int, sizes: list[int], later: int, expected: list[int]) -> None:
    found = np.array(sizes)
    assert _quotas(count, found, np.ones_like(found), found - later).tolist() == expected


def test_a_rare_class_is_in_every_split() -> None:
    labels = np.array([0] * 997 + [1] * 3)
    splits = split(labels, TRAIN, ("common", "rare"), **ASK)
    for name in ("labelled", "validation", "test"):
        assert (labels[splits[name]] == 1).sum() == 1


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        ({"labelled": 751}, "data.labelled: 751 is 751 images, but 750 are left. Ask for fewer"),
        ({"labelled": 1.0}, "data.labelled: 1.0 is 1000 images, but 750 are left"),
        ({"labelled": 2}, "data.labelled: 2 is 2 images, but there are 3 classes. Ask for more"),
        ({"validation": 0}, "data.validation: 0 is 0 images, but there are 3 classes"),
        ({"test": 995}, "data.test: 995 is 995 images, but 1000 are left and the other splits need 6"),
        ({"unlabelled": 651}, "data.unlabelled: 651 images asked, 650 are left. Ask for fewer, or set"),
        ({"unlabelled": "most"}, "data.unlabelled: unknown 'most'. Give a number of images, or: rest"),
        ({"test": None}, "data.test: null, but the source has no test split of its own. Give a number"),
        ({"validation": None}, "data.validation: null, but the source has no validation split"),
    ],
)
def test_what_cannot_be_split_names_key_value_and_mend(ask: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=rf"^{message}"):
        split(LABELS, TRAIN, ABC, **{**ASK, **ask})


def test_a_class_with_too_few_images_is_named() -> None:
    labels = np.array([0] * 998 + [1] * 2)
    with pytest.raises(DataError, match=r"data.test: 200: too few images left of class 'rare' \(2\) .* 3 needed"):
        split(labels, TRAIN, ("common", "rare"), **ASK)


def test_a_ratio_of_a_ready_made_split_is_refused() -> None:
    parts = TRAIN.copy()
    parts[::2] = Part.VALIDATION
    with pytest.raises(DataError, match=r"data.validation: 0.1, but the source has its own .* Set .*: null"):
        split(LABELS, parts, ABC, **{**ASK, "validation": 0.1})


def test_a_test_image_without_label_is_refused() -> None:
    parts = TRAIN.copy()
    parts[:5] = Part.TEST
    with pytest.raises(DataError, match=r"data.test: 5 images of the test split have no label. Label them, or"):
        split(np.where(parts == Part.TEST, -1, LABELS), parts, ABC, **{**ASK, "test": None})


# ---------------------------------------------------------------- what nobody may know


def test_nonsense_labels_of_the_unlabelled_part_change_no_byte(tmp_path: Path) -> None:
    listing = digits()
    ask = {key: CHOICES[key] for key in ("labelled", "validation", "test", "unlabelled", "seed")}
    splits = split(listing.labels, listing.parts, listing.classes, **ask)
    nonsense = listing.labels.copy()
    nonsense[splits["unlabelled"]] = np.random.default_rng(9).integers(0, 10, len(splits["unlabelled"]))
    assert (nonsense != listing.labels).any()
    for name, labels in (("true", listing.labels), ("nonsense", nonsense)):
        (tmp_path / name).mkdir()
        write_splits(tmp_path / name, labels, splits, classes=listing.classes, pixels_sha256="00", info={})
    assert folder_bytes(tmp_path / "true") == folder_bytes(tmp_path / "nonsense")
    assert (open_labels := np.load(tmp_path / "true/labels.npy"))[splits["unlabelled"]].tolist() == [-1] * 120
    assert (open_labels[splits["test"]] == listing.labels[splits["test"]]).all()


def test_labels_of_images_in_no_split_are_forgotten_too() -> None:
    splits = {"labelled": [0], "unlabelled": [1], "validation": [2], "test": [3]}
    numbers = {name: np.array(rows) for name, rows in splits.items()}
    assert forget(np.array([5, 5, 5, 5, 5]), numbers).tolist() == [5, -1, 5, 5, -1]


def test_the_report_does_not_tell_the_classes_of_the_unlabelled_part(tmp_path: Path) -> None:
    report = write_store(tmp_path, digits(), **CHOICES)
    assert set(report["balance"]) == {"labelled", "validation", "test"}
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize("size", [(3000, 1), (1, 3000), (16, 1)])
def test_of_a_picture_however_long_something_is_left_between_the_bars(size: tuple[int, int]) -> None:
    padded = decode(lambda: Image.new("RGB", size, "white"), 8, 1, "pad")[:, :, 0]
    line = padded if size[0] > size[1] else padded.T
    assert (line == 255).all(axis=1).sum() == 1 and (line == 0).all(axis=1).sum() == 7


# ---------------------------------------------------------------- duplicates and leakage


def test_twins_leaks_and_contradictions_are_counted(tmp_path: Path) -> None:
    # rows 0-9, by their grey value; equal values are equal images
    values = [1, 1, 2, 3, 1, 4, 5, 3, 6, 6]
    homes = {"labelled": [0, 1, 2], "unlabelled": [3], "validation": [4, 5], "test": [6, 7]}
    listing = Listing(
        classes=("a", "b", "c"), labels=np.array([0, 1, 0, 0, 0, 1, 0, 1, 0, 0]), parts=np.zeros(10, np.int8),
        name=lambda i: f"{i}.png", read=lambda i: Image.new("L", (2, 2), values[i]), origin="made",
    )  # fmt: skip
    written = write_images(tmp_path / "i.npy", listing, image_size=2, channels=1, fit="crop", max_pixels=4)
    splits = {name: np.array(rows) for name, rows in homes.items()}
    report = integrity_report(listing, written, forget(listing.labels, splits), splits)
    assert report["duplicates"] == {
        "count": 4,  # of 10 images 6 differ
        "with_other_label": 1,  # rows 0, 1, 4; rows 3 and 7 differ too, but the label of 3 is unknown
        "groups": [
            ["labelled: 0.png", "labelled: 1.png", "validation: 4.png"],
            ["unlabelled: 3.png", "test: 7.png"],
            ["unused: 8.png", "unused: 9.png"],
        ],
    }
    assert report["leakage"]["count"] == {
        "labelled_unlabelled": 0, "labelled_validation": 1, "labelled_test": 0,
        "unlabelled_validation": 0, "unlabelled_test": 1, "validation_test": 0,
    }  # fmt: skip
    assert report["leakage"]["test_images"] == 1
    assert len(report["leakage"]["groups"]) == 2
    assert report["images"]["unused"] == 2
    assert report["balance"]["labelled"] == {"a": 2, "b": 1, "c": 0}
    both = {"labelled": [0], "unlabelled": [1], "validation": [], "test": [4, 2]}  # of 0, 1 and 4 all is equal
    again = {name: np.array(rows, dtype=np.int64) for name, rows in both.items()}
    found = integrity_report(listing, written, forget(listing.labels, again), again)["leakage"]
    assert (found["count"]["labelled_test"], found["count"]["unlabelled_test"], found["test_images"]) == (1, 1, 1)
    few = integrity_report(listing, written, forget(listing.labels, splits), splits, examples=1)
    assert few["duplicates"]["groups"] == report["duplicates"]["groups"][:1] and few["duplicates"]["count"] == 4
