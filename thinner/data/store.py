"""Prepared data: every image decoded once into one memory-mapped uint8 array, labels and splits beside it.

    data/prepared/images.npy   uint8 [N, H, W, C]
                  labels.npy   int64 [N]; -1 where nobody may know the label
                  splits.npz   labelled, unlabelled, validation, test: int64 numbers of images, sorted
                  names.json   of the images, as the source names them: paths below its folder, for example
                  info.json    classes, sha256, counts, image_size, channels, fit, source

Reading is ``open_store(folder)``. Writing is four steps, which ``write_store`` does in a row: `write_images`
streams, `split` looks at all labels, `forget` wipes those of the unlabelled part, `write_splits` writes what
is left. The same input gives the same bytes, whatever the number of workers. Near-duplicates (a crop, another
JPEG quality) are not looked for.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int8, Int64, UInt8
from PIL import Image, ImageOps

from thinner.data.sources import DataError, Listing, Part, kinds
from thinner.errors import DamagedError, one_line
from thinner.files import json_files
from thinner.files.mapped import open_array, read_arrays

SPLITS = ("labelled", "unlabelled", "validation", "test")
Labels = Int64[np.ndarray, " n"]
Numbers = Int64[np.ndarray, " _"]  # of images


# ------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Store:
    """Prepared data, opened. ``images`` is read-only and stays on disk until looked at."""

    images: UInt8[np.ndarray, "n height width channels"]
    labels: Labels
    splits: Mapping[str, Numbers]
    classes: tuple[str, ...]
    sha256: str
    info: Mapping[str, Any]


def open_store(folder: str | Path) -> Store:
    """The data that `write_store` left in ``folder``. Raises DataError where there are none."""
    folder = Path(folder)
    try:
        info = json_files.read_object(folder / "info.json", "")
        images = open_array(folder / "images.npy")
        labels = np.array(open_array(folder / "labels.npy"))
        splits = read_arrays(folder / "splits.npz")
        _check_store(info, images, labels, splits)
    except (OSError, DamagedError) as error:
        raise DataError(f"{folder}: no prepared data ({one_line(error)}). Make them: dvc repro prepare") from error
    splits = {name: splits[name] for name in SPLITS}
    return Store(images, labels, splits, tuple(info["classes"]), info["sha256"], info)


def _check_store(info: Mapping[str, Any], images: Any, labels: Any, splits: Mapping[str, Any]) -> None:
    """Raise DamagedError where the files are not those of one set of data."""
    if wrong := json_files.lacking(info, {"classes": json_files.are_names, "sha256": json_files.is_text}):
        raise DamagedError(f"info.json {wrong}")
    if images.dtype != np.uint8 or images.ndim != 4:
        raise DamagedError(f"images.npy is {images.dtype} {list(images.shape)}")
    if labels.dtype != np.int64 or labels.shape != images.shape[:1] or not _within(labels, -1, len(info["classes"])):
        raise DamagedError("labels.npy does not hold the number of a class, or -1, for each image")
    for name in SPLITS:
        numbers = splits.get(name, labels[:0].astype(np.uint8))
        if numbers.dtype != np.int64 or numbers.ndim != 1 or not _within(numbers, 0, len(labels)):
            raise DamagedError(f"splits.npz has no numbers of images called {name}")


def _within(numbers: Any, low: int, high: int) -> bool:
    return not len(numbers) or (low <= int(numbers.min()) and int(numbers.max()) < high)


# ------------------------------------------------------------------------------- writing


def write_store(
    folder: str | Path,
    listing: Listing,
    *,
    source: str,
    image_size: int,
    channels: int,
    fit: str,
    labelled: int | float,
    validation: int | float | None,
    test: int | float | None,
    unlabelled: int | str,
    max_unreadable: float,
    max_pixels: int,
    seed: int,
    workers: int = 2,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Writes ``listing`` to ``folder`` and answers with the integrity report.

    The arguments are the keys of params.yaml's `data`. ``progress`` is told how many images are done.
    Raises DataError.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = write_images(
        folder / "images.npy", listing,
        image_size=image_size, channels=channels, fit=fit, max_pixels=max_pixels, workers=workers, progress=progress,
    )  # fmt: skip
    _check_unreadable(written.unreadable, len(listing), max_unreadable)
    labels, parts = listing.labels[written.kept], listing.parts[written.kept]
    splits = split(
        labels, parts, listing.classes,
        labelled=labelled, validation=validation, test=test, unlabelled=unlabelled, seed=seed,
    )  # fmt: skip
    labels = forget(labels, splits)
    names = json.dumps([listing.name(int(i)) for i in written.kept], ensure_ascii=False, indent=0)
    (folder / "names.json").write_text(names + "\n", encoding="utf-8")
    info = {"source": source, "image_size": image_size, "channels": channels, "fit": fit}
    write_splits(
        folder, labels, splits,
        classes=listing.classes, pixels_sha256=written.pixels_sha256, info=info,
    )  # fmt: skip
    return integrity_report(listing, written, labels, splits)


@dataclass(frozen=True)
class Written:
    """What `write_images` did. Row r of the array is image ``kept[r]`` of the listing."""

    kept: Numbers
    unreadable: Mapping[str, str]  # name -> reason
    digests: UInt8[np.ndarray, "k 32"]  # SHA-256 of each row
    pixels_sha256: str  # of all rows in order


def write_images(
    file: Path,
    listing: Listing,
    *,
    image_size: int,
    channels: int,
    fit: str,
    max_pixels: int,
    workers: int = 2,
    progress: Callable[[int], None] = lambda done: None,
) -> Written:
    """Decodes each image once and appends it to ``file`` (.npy); unreadable ones are left out and named.

    Threads are enough, Pillow decodes and resizes without Python's lock. Rows go through an ordinary file,
    not a memory map, and a bounded queue: at no time are more than 64 images per worker in memory.
    """
    total = len(listing)
    kept = np.zeros(total, dtype=bool)
    digests = np.zeros((total, 32), dtype=np.uint8)
    unreadable: dict[str, str] = {}
    everything = hashlib.sha256()

    def work(numbers: range) -> list[tuple[bytes, bytes] | str]:
        rows: list[tuple[bytes, bytes] | str] = []
        for i in numbers:
            try:
                pixels = decode(partial(listing.read, i), image_size, channels, fit, max_pixels).tobytes()
            except UnreadableError as error:
                rows.append(str(error))
            else:
                rows.append((pixels, hashlib.sha256(pixels).digest()))
        return rows

    chunks = [range(start, min(start + 16, total)) for start in range(0, total, 16)]
    with file.open("wb") as out, ThreadPoolExecutor(workers) as pool:
        shape = (image_size, image_size, channels)
        length = _write_header(out, (total, *shape))
        for chunk, rows in zip(chunks, _in_order(pool, work, chunks, ahead=4 * workers), strict=True):
            for i, row in zip(chunk, rows, strict=True):
                if isinstance(row, str):
                    unreadable[listing.name(i)] = row
                    continue
                pixels, digest = row
                out.write(pixels)
                everything.update(pixels)
                digests[i] = np.frombuffer(digest, dtype=np.uint8)
                kept[i] = True
            progress(chunk.stop)
        out.seek(0)
        # how many can be read is known only now; NumPy pads the header so that another count fits
        if _write_header(out, (int(kept.sum()), *shape)) != length:
            raise RuntimeError("the .npy header changed its length")
    return Written(np.flatnonzero(kept), unreadable, digests[kept], everything.hexdigest())


def _write_header(out: Any, shape: tuple[int, ...]) -> int:
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(out, header)
    return int(out.tell())


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[range], Any], chunks: Sequence[range], ahead: int
) -> Iterator[Any]:
    """``pool.map`` that runs at most ``ahead`` chunks in advance, so that results do not pile up."""
    todo = iter(chunks)
    running: deque[Future[Any]] = deque(pool.submit(work, chunk) for chunk in islice(todo, ahead))
    while running:
        yield running.popleft().result()
        running.extend(pool.submit(work, chunk) for chunk in islice(todo, 1))


def _check_unreadable(unreadable: Mapping[str, str], total: int, limit: float) -> None:
    if len(unreadable) <= limit * total and len(unreadable) < total:
        return
    shown = [f"  {name}: {reason}" for name, reason in islice(unreadable.items(), 100)]
    if len(unreadable) > len(shown):
        shown.append(f"  ... and {len(unreadable) - len(shown)} more")
    raise DataError(
        f"data.max_unreadable: {limit} allows {math.floor(limit * total)} of {total} images, "
        f"{len(unreadable)} cannot be read:\n"
        + "\n".join(shown)
        + "\nMend or remove them, or raise data.max_unreadable"
    )


def forget(labels: Labels, splits: Mapping[str, Numbers]) -> Labels:
    """Labels, with -1 for every image outside of labelled, validation and test. Nothing later knows them."""
    known = np.concatenate([splits[name] for name in SPLITS if name != "unlabelled"])
    forgotten = np.full_like(labels, -1)
    forgotten[known] = labels[known]
    return forgotten


def write_splits(
    folder: Path,
    labels: Labels,
    splits: Mapping[str, Numbers],
    *,
    classes: Sequence[str],
    pixels_sha256: str,
    info: Mapping[str, Any],
) -> None:
    """labels.npy, splits.npz and info.json, beside the images.

    ``info`` must not say which way the images came, or when: these files are the input of all later stages,
    which would then run again although no pixel changed. The origin is in the integrity report.
    """
    labels = forget(labels, splits)
    digest = hashlib.sha256(bytes.fromhex(pixels_sha256))
    for name in SPLITS:
        digest.update(splits[name].astype("<i8").tobytes())
    digest.update(labels.astype("<i8").tobytes())
    digest.update(json.dumps(list(classes)).encode())
    np.save(folder / "labels.npy", labels)
    np.savez(folder / "splits.npz", allow_pickle=False, **{name: splits[name] for name in SPLITS})
    content = {
        "classes": list(classes),
        "counts": {name: len(splits[name]) for name in SPLITS},
        "sha256": digest.hexdigest(),
        **info,
    }
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    (folder / "info.json").write_text(text, encoding="utf-8")


# ------------------------------------------------------------------------------- decoding

# All that Pillow raises on damaged files, found by flipping bytes; only Pillow's own calls are guarded by it.
UNREADABLE = (
    OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, ArithmeticError, MemoryError,
    AttributeError, RuntimeError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip


def _padded(image: Image.Image, size: tuple[int, int], method: Image.Resampling) -> Image.Image:
    """With black bars. Of a picture so long that Pillow's would leave nothing of it, a line of one pixel stays."""
    if 2 * min(image.size) * max(size) <= max(image.size):
        image = image.resize((size[0], 1) if image.width > image.height else (1, size[1]), method)
    return ImageOps.pad(image, size, method)


FITS: Mapping[str, Callable[..., Image.Image]] = {
    "crop": ImageOps.fit,
    "pad": _padded,
    "stretch": Image.Image.resize,
}


class UnreadableError(Exception):
    """This one image cannot be decoded; the text is the reason."""


def decode(
    read: Callable[[], Image.Image], image_size: int, channels: int, fit: str, max_pixels: int | None = None
) -> UInt8[np.ndarray, "image_size image_size channels"]:
    """One image as a square of ``image_size`` px and 1 or 3 ``channels``, upright, 8 bits.

    ``fit``: "crop" cuts the longer side's ends off, "pad" adds black bars, "stretch" changes the proportions.
    Transparent parts become white. 16-bit grey is scaled to 8 bits, not clipped (65535 -> 255). Colour to
    grey is ITU-R 601. Of an animation the first frame counts. More than ``max_pixels`` to decode, by the file's
    header, are not begun; a JPEG is decoded reduced, where it can be, and counts as that. Raises UnreadableError.
    """
    # Pillow's own limit is fixed, counts a JPEG before it is reduced, and warns in the midst of other output
    Image.MAX_IMAGE_PIXELS = None
    try:
        with read() as opened:
            pixels = opened.width * opened.height
            if opened.format in ("JPEG", "MPO"):
                # lets libjpeg leave out detail beyond twice the wanted size: several times faster for photos
                opened.draft(None, (2 * image_size, 2 * image_size))
                if not opened.info.get("progressive"):  # of which all must be in memory before it is reduced
                    pixels = opened.width * opened.height
            if max_pixels is not None and pixels > max_pixels:
                raise ValueError(f"has {pixels:,} pixels, more than data.max_pixels. To read it: max_pixels: {pixels}")
            opened.load()
            if opened.format:  # an image made from an array has no EXIF, and looking costs as much as resizing
                ImageOps.exif_transpose(opened, in_place=True)
            image = _eight_bits(opened, "L" if channels == 1 else "RGB")
    except UNREADABLE as error:
        raise UnreadableError(" ".join(str(error).split()) or type(error).__name__) from error
    if image.width != image.height:
        if fit not in FITS:
            raise DataError(f"data.fit: unknown '{fit}'. Choose one of: {', '.join(FITS)}")
        image = FITS[fit](image, (image_size, image_size), Image.Resampling.BILINEAR)
    elif image.width != image_size:
        image = image.resize((image_size, image_size), Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.uint8).reshape(image_size, image_size, channels)


def _eight_bits(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own convert("L") clips it
        grey = np.asarray(image).astype(np.int64)
        if grey.min(initial=0) < 0 or grey.max(initial=0) > 65535:
            raise ValueError("more than 16 bits per pixel")
        return Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8)).convert(mode)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range; convert the file to 8 or 16 bits")
    if image.mode in ("LA", "La", "PA", "RGBa", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image).convert("RGB")
    return image if image.mode == mode else image.convert(mode)


# ------------------------------------------------------------------------------- splitting


def split(
    labels: Labels,
    parts: Int8[np.ndarray, " n"],
    classes: Sequence[str],
    *,
    labelled: int | float,
    validation: int | float | None,
    test: int | float | None,
    unlabelled: int | str,
    seed: int,
) -> dict[str, Numbers]:
    """Numbers of the images in each of `SPLITS`, disjoint and sorted; stratified and drawn by ``seed``.

    A count is a number of images; a ratio is a share of the source's labelled training part as it comes. Null
    for ``validation`` or ``test`` means the source's own split. Where there is one, a count draws from it and
    a ratio is refused, because it is not a share of the training part. "rest" is all that remains, with the
    source's own unlabelled images. Every class is in every split that is drawn, at least once. Test is drawn
    first, then validation, then labelled: a changed ``labelled`` leaves validation and test as they were.

    Labels of the images that end up unlabelled are read here, to draw in proportion, and nowhere later.
    Raises DataError.
    """
    rng = np.random.default_rng(seed)
    unknown = labels < 0
    training = np.flatnonzero((parts == Part.TRAIN) & ~unknown)
    chosen: dict[str, Numbers] = {}
    free = np.ones(len(labels), dtype=bool)

    def draw(key: str, asked: int | float, source: Numbers, later: int) -> Numbers:
        """``later`` images of each class stay for the splits that are drawn after this one."""
        left = source[free[source]]
        count = asked if isinstance(asked, int) else math.floor(asked * len(source) + 1e-9)
        sizes = np.bincount(labels[left], minlength=len(classes))
        _check_draw(f"data.{key}: {asked}", count, dict(zip(classes, sizes.tolist(), strict=True)), later)
        return _take(rng, left, labels[left], _quotas(count, sizes, np.ones_like(sizes), sizes - later))

    asked_of = {"test": (test, Part.TEST), "validation": (validation, Part.VALIDATION)}
    later = 1 + sum(asked is not None and not (parts == part).any() for asked, part in asked_of.values())
    for name, (asked, part) in asked_of.items():
        own = np.flatnonzero(parts == part)
        if (unknown & (parts == part)).any():
            raise DataError(
                f"data.{name}: {int(unknown[own].sum())} images of the {name} split have no label. "
                "Label them, or list them as unlabelled"
            )
        if asked is None and not len(own):
            raise DataError(
                f"data.{name}: null, but the source has no {name} split of its own. Give a number of images or a ratio"
            )
        if asked is None:
            chosen[name] = own
        elif not len(own):
            later -= 1
            chosen[name] = draw(name, asked, training, later)
        elif isinstance(asked, int):
            chosen[name] = draw(name, asked, own, later=0)
        else:
            raise DataError(
                f"data.{name}: {asked}, but the source has its own {name} split of {len(own)} images. "
                f"Set data.{name}: null to use it, or a number of its images"
            )
        free[chosen[name]] = False
    chosen["labelled"] = draw("labelled", labelled, training, later=0)
    free[chosen["labelled"]] = False

    pool = np.flatnonzero(free & ((parts == Part.TRAIN) | (parts == Part.UNLABELLED)))
    if isinstance(unlabelled, int):
        if unlabelled > len(pool):
            raise DataError(
                f"data.unlabelled: {unlabelled} images asked, {len(pool)} are left. "
                "Ask for fewer, or set data.unlabelled: rest"
            )
        groups, strata = np.unique(labels[pool], return_inverse=True)
        sizes = np.bincount(strata, minlength=len(groups))
        quotas = _quotas(unlabelled, sizes, np.zeros_like(sizes), sizes)
        pool = _take(rng, pool, strata, quotas)
    elif unlabelled != "rest":
        raise DataError(f"data.unlabelled: unknown '{unlabelled}'. Give a number of images, or: rest")
    chosen["unlabelled"] = pool
    return {name: chosen[name].astype(np.int64) for name in SPLITS}


def _check_draw(key: str, count: int, left: Mapping[str, int], later: int) -> None:
    """Whether ``count`` images can be drawn from ``left`` (class -> images), each class at least once."""
    poor = [f"'{name}' ({number})" for name, number in left.items() if number < 1 + later]
    if poor:
        raise DataError(
            f"{key}: too few images left of class {', '.join(poor[:10])} to be in every split, "
            f"{1 + later} needed. Add images, or remove the class"
        )
    if count < len(left):
        raise DataError(f"{key} is {count} images, but there are {len(left)} classes. Ask for more")
    total, kept = sum(left.values()), later * len(left)
    if count > total - kept:
        reason = f" and the other splits need {kept}" if kept else ""
        raise DataError(f"{key} is {count} images, but {total} are left{reason}. Ask for fewer")


def _quotas(
    count: int, sizes: Int64[np.ndarray, " c"], least: Int64[np.ndarray, " c"], most: Int64[np.ndarray, " c"]
) -> Int64[np.ndarray, " c"]:
    """How many of each class, ``count`` in all: in proportion to ``sizes``, largest remainders first."""
    ideal = count * sizes / max(1, sizes.sum())
    quotas = np.clip(np.floor(ideal).astype(np.int64), least, most)
    while (missing := count - int(quotas.sum())) != 0:
        step = 1 if missing > 0 else -1
        room = quotas < most if step > 0 else quotas > least
        gap = np.where(room, step * (ideal - quotas), -np.inf)
        quotas[int(np.argmax(gap))] += step
    return quotas


def _take(rng: np.random.Generator, pool: Numbers, strata: Labels, quotas: Int64[np.ndarray, " c"]) -> Numbers:
    """``quotas[c]`` images of each stratum c, at random, sorted."""
    taken = [rng.permutation(pool[strata == c])[:quota] for c, quota in enumerate(quotas)]
    return np.sort(np.concatenate([np.empty(0, dtype=pool.dtype), *taken]))  # of no class nothing is taken


# ------------------------------------------------------------------------------- integrity


def integrity_report(
    listing: Listing, written: Written, labels: Labels, splits: Mapping[str, Numbers], examples: int = 20
) -> dict[str, Any]:
    """What a person should know before trusting the data; plain values, ready for JSON.

    Equal means equal as stored: every pixel, after decoding and resizing. Counts are of all cases; at most
    ``examples`` groups of duplicates are named, but every unreadable file. Nothing here depends on a label
    of an unlabelled image.
    """
    names = [listing.name(int(i)) for i in written.kept]
    home = np.full(len(names), -1)
    for number, name in enumerate(SPLITS):
        home[splits[name]] = number
    _, group, size = np.unique(written.digests, axis=0, return_inverse=True, return_counts=True)
    group = group.reshape(-1)
    twins = np.flatnonzero(size[group] > 1)
    groups = [members for _, members in _grouped(twins, group[twins])]

    leaks, leaking, conflicts = {}, [], 0
    learned_from = np.isin(home, [SPLITS.index("labelled"), SPLITS.index("unlabelled")])
    seen = int(np.isin(group[home == SPLITS.index("test")], group[learned_from]).sum())  # some in both: once
    for first in range(len(SPLITS)):
        for second in range(first + 1, len(SPLITS)):
            inside = np.isin(group[home == second], group[home == first])
            leaks[f"{SPLITS[first]}_{SPLITS[second]}"] = int(inside.sum())
    for members in groups:
        if len(set(home[members]) - {-1}) > 1:
            leaking.append(members)
        conflicts += len(set(labels[members]) - {-1}) > 1

    def named(found: Sequence[Numbers]) -> list[list[str]]:
        tag = (*SPLITS, "unused")
        return [[f"{tag[home[i]]}: {names[i]}" for i in members] for members in found[:examples]]

    balance: dict[str, dict[str, int]] = {}
    for name in SPLITS:
        if name != "unlabelled":
            counts = np.bincount(labels[splits[name]], minlength=len(listing.classes))
            balance[name] = dict(zip(listing.classes, counts.tolist(), strict=True))
    return {
        "origin": listing.origin,
        "images": {
            "found": len(listing),
            "stored": len(names),
            **{name: len(splits[name]) for name in SPLITS},
            "unused": int((home == -1).sum()),
        },
        "unreadable": {"count": len(written.unreadable), "files": dict(written.unreadable)},
        "ignored": {
            "count": len(listing.ignored),
            "kinds": kinds(listing.ignored),
            "files": list(listing.ignored[:examples]),
        },
        "duplicates": {
            "count": int(len(twins) - len(groups)),
            "with_other_label": int(conflicts),
            "groups": named(groups),
        },
        "leakage": {"count": leaks, "test_images": seen, "groups": named(leaking)},
        "balance": balance,
    }


def _grouped(rows: Numbers, keys: Numbers) -> Iterator[tuple[int, Numbers]]:
    """Rows with the same key, in the order of each group's first row."""
    groups: dict[int, list[int]] = {}
    for row, key in zip(rows.tolist(), keys.tolist(), strict=True):
        groups.setdefault(key, []).append(row)
    for key, members in groups.items():
        yield key, np.array(members)
