"""Where images come from: torchvision, a folder, a CSV file.

``list_source("folder:data/raw/photos", "data/raw")`` looks and counts but decodes nothing: it answers with
a `Listing`, which `thinner.data.store` streams into one array. A new kind of source is one function and its row in
`SOURCES`; a new torchvision set is one row in `TORCHVISION`.
"""

from __future__ import annotations

import csv
import difflib
import functools
import gzip
import hashlib
import importlib
import io
import os
import shutil
import stat
import subprocess
import tarfile
import tempfile
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Int8, Int64
from PIL import Image, UnidentifiedImageError

from thinner.errors import UserError, one_line

Say = Callable[[str], None]


class DataError(UserError):
    """The data cannot be used as params.yaml asks; the message names the key, the value and the mend."""


class Part(IntEnum):
    """The source's own split of an image. Ready-made validation and test splits are respected."""

    TRAIN = 0
    VALIDATION = 1
    TEST = 2
    UNLABELLED = 3


@dataclass(frozen=True)
class Listing:
    """What a source holds, nothing decoded yet. Columns, not a list of objects: a million images must fit.

    ``labels`` holds -1 where the source has no label. ``name(i)`` is for people, ``read(i)`` opens image i
    and may be called from several threads. ``ignored`` names files beside the images that no one will read.
    """

    classes: tuple[str, ...]
    labels: Int64[np.ndarray, " n"]
    parts: Int8[np.ndarray, " n"]
    name: Callable[[int], str]
    read: Callable[[int], Image.Image]
    origin: str
    ignored: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)


def list_source(source: str, root: str | Path, say: Say = print) -> Listing:
    """The images of ``source`` ("torchvision:NAME", "folder:PATH" or "csv:PATH").

    ``root`` is the folder of raw data: torchvision's files are looked for, and put, in ``root``/torchvision,
    and every picture of a folder or CSV lies below it. ``say`` is told how data were found or brought.
    Raises DataError.
    """
    kind, _, place = source.partition(":")
    if kind not in SOURCES or not place:
        known = ", ".join(f"{name}:{'NAME' if name == 'torchvision' else 'PATH'}" for name in SOURCES)
        raise DataError(f"data.source: unknown '{source}'. Choose one of: {known}")
    listing = SOURCES[kind](place, Path(root), say)
    if not len(listing):
        passed = f"; files of other kinds: {kinds(listing.ignored)}. These are read: {', '.join(EXTENSIONS)}"
        raise DataError(f"data.source: '{source}' holds no images{passed if listing.ignored else ''}")
    if len(listing.classes) < 2:
        found = f"only the class '{one_line(listing.classes[0], 60)}'" if listing.classes else "no label"
        raise DataError(f"data.source: '{source}' has {found}. To tell classes apart takes two or more: add pictures")
    for names in _alike(listing.classes, lambda name: unicodedata.normalize("NFC", name).strip().casefold()):
        say(f"note: the classes {' and '.join(map(repr, names))} differ in case or blanks alone. Is that meant?")
    return listing


# -------------------------------------------------------------------------------- pictures

# Pillow's name of each format that is read, and how its files end: for prepare, predict and served models alike. No
# other of Pillow's readers is tried, whatever a file is called: that of EPS starts a program.
FORMATS: Mapping[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"), "PNG": (".png",), "WEBP": (".webp",), "BMP": (".bmp",),
    "GIF": (".gif",), "TIFF": (".tif", ".tiff"), "PPM": (".pgm", ".ppm", ".pbm", ".pnm"), "AVIF": (".avif",),
    "HEIF": (".heic", ".heif"), "JXL": (".jxl",),
}  # fmt: skip
# Read by a library that is not required. Without it such a picture is unreadable, and named, never passed over:
# what is prepared does not depend on what happens to be installed.
LIBRARIES: Mapping[str, tuple[str, str]] = {  # format -> (module, package)
    "HEIF": ("pillow_heif", "pillow-heif"),
    "JXL": ("pillow_jxl", "pillow-jxl-plugin"),
}
EXTENSIONS = tuple(ending for endings in FORMATS.values() for ending in endings)


def open_picture(file: str | os.PathLike[str] | io.BytesIO | io.BufferedReader) -> Image.Image:
    """A picture of one of `FORMATS`, by its content and not its name; nothing is decoded yet.

    Raises OSError, for what is no file (a FIFO would be waited for), no picture, or of a kind that is not read.
    """
    if isinstance(file, str | os.PathLike) and (special := _special(os.stat(file).st_mode)):
        raise OSError(f"is {special}, no file")
    known = _readable()
    try:
        return Image.open(file, formats=known)
    except UnidentifiedImageError:
        ending = Path(file).suffix.lower() if isinstance(file, str | os.PathLike) else ""
        for name, (_, package) in LIBRARIES.items():
            if ending in FORMATS[name] and name not in known:
                raise OSError(f"is read by a package that is not here: pip install {package}") from None
        raise OSError(f"is no picture of a kind that is read: {', '.join(known)}") from None


@functools.cache
def _readable() -> tuple[str, ...]:
    """The `FORMATS` that can be read here; the optional libraries make themselves known to Pillow."""
    for module, _ in LIBRARIES.values():
        try:
            library = importlib.import_module(module)
        except ImportError:
            continue
        if hasattr(library, "register_heif_opener"):
            library.register_heif_opener()
    return tuple(name for name in FORMATS if name not in LIBRARIES or name in Image.OPEN)


def kinds(names: Iterable[str]) -> str:
    """How many files of each ending, the most frequent first: "12 .psd, 1 .txt"."""
    counted = Counter(Path(name).suffix.lower() or "without an ending" for name in names)
    shown = [f"{count} {ending}" for ending, count in counted.most_common(8)]
    return ", ".join([*shown, "..."] if len(counted) > len(shown) else shown)


def _special(mode: int) -> str:
    """What this is if it is neither a file nor a folder, else nothing."""
    known = {stat.S_ISFIFO: "a FIFO", stat.S_ISSOCK: "a socket", stat.S_ISCHR: "a device", stat.S_ISBLK: "a device"}
    return next((name for test, name in known.items() if test(mode)), "")


# -------------------------------------------------------------------------------- folder and CSV


def check_files(root: str | Path, source: str) -> None:
    """Raise DataError for what lies in ``root`` and DVC cannot watch, before DVC or Pillow waits for it or fails.

    That is names that are not UTF-8, links to nothing, FIFOs and their like, folders that may not be read, and links to
    folders, behind which DVC does not look: a changed picture would go unnoticed, and a link to a folder above holds
    everything again. Sets of torchvision, which do not change, may lie behind one; ``root`` itself may be a link, and
    so may files.
    """

    def refuse(path: str, what: str) -> DataError:
        shown = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        shown = "".join(ascii(sign)[1:-1] if _moves_text(sign) else sign for sign in shown)
        return DataError(f"data.root: '{shown}' {what}")

    def failed(error: OSError) -> None:
        if error.filename == os.fspath(root) and isinstance(error, FileNotFoundError):
            return  # what is missing is told where it is looked for
        raise refuse(str(error.filename), f"cannot be read ({error.strerror}). Allow it (chmod), or move it away")

    for top, folders, files in os.walk(root, onerror=failed):
        for name in sorted((*folders, *files)):
            path = os.path.join(top, name)
            if not name.isascii() and any("\udc80" <= letter <= "\udcff" for letter in name):
                raise refuse(path, "has a name that is not UTF-8. Rename it (convmv does so for many)")
            if not name.isprintable() and (bad := next(filter(_moves_text, name), None)):
                raise refuse(path, f"has {bad!a} in its name. Rename it")
        for name in sorted(folders):
            path = os.path.join(top, name)
            if not source.startswith("torchvision") and os.path.islink(path):
                raise refuse(
                    path,
                    "is a link to a folder, and DVC does not look behind it: a changed picture would go unnoticed. "
                    "Put a copy in its place (cp -rL), or set data.root and data.source to where the pictures lie "
                    f"({os.path.realpath(path)})",
                )
        for name in sorted(files):
            path = os.path.join(top, name)
            try:
                mode = os.stat(path).st_mode
            except OSError as error:
                raise refuse(path, f"is a link to nothing ({error.strerror}). Mend or remove it") from None
            if special := _special(mode):
                raise refuse(path, f"is {special}, no file. Remove it")
            if not os.access(path, os.R_OK):
                raise refuse(path, "may not be read. Allow it (chmod), or move it away")


def _alike(names: Iterable[str], key: Callable[[str], str]) -> list[list[str]]:
    """Groups of different names that ``key`` makes the same."""
    groups: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        groups.setdefault(key(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _moves_text(sign: str) -> bool:
    """Whether a terminal, a page or a log would do something with it instead of showing it: controls (an escape
    sequence, an end of line), and what turns the direction of the text behind it (CVE-2021-42574)."""
    return (
        unicodedata.category(sign) in ("Cc", "Zl", "Zp") or "\u202a" <= sign <= "\u202e" or "\u2066" <= sign <= "\u2069"
    )


def _check_classes(classes: Iterable[str]) -> None:
    """Names that do not look like what they are. One class in two Unicode spellings (macOS writes e and an accent,
    others one letter) looks the same."""
    for name in sorted(classes):
        if bad := next((sign for sign in name if _moves_text(sign)), None):
            raise DataError(f"data.source: the class {name!a} has {bad!a} in its name. Rename it")
    for names in _alike(classes, lambda name: unicodedata.normalize("NFC", name)):
        shown = " and ".join(ascii(name) for name in names)
        raise DataError(f"data.source: {shown} are one class, '{names[0]}', in two spellings of Unicode. Give it one")


PART_NAMES: Mapping[str, Part] = {
    "train": Part.TRAIN, "val": Part.VALIDATION, "valid": Part.VALIDATION, "validation": Part.VALIDATION,
    "test": Part.TEST, "unlabeled": Part.UNLABELLED, "unlabelled": Part.UNLABELLED,
}  # fmt: skip


def list_folder(place: str, root: Path, say: Say = print) -> Listing:
    """``place``/CLASS/... or ``place``/{train,val,test}/CLASS/..., and beside either ``place``/unlabelled/...

    Classes are the folders' names, sorted; below a class folder any depth. Raises DataError.
    """
    folder = Path(place)
    if not folder.is_dir():
        raise DataError(f"data.source: folder '{place}' does not exist. {_near_folders(folder, root)}")
    check_files(root, "folder")
    inside = _folders(folder)
    own = [name for name in inside if name.lower() in PART_NAMES]
    ready_made = [name for name in own if PART_NAMES[name.lower()] != Part.UNLABELLED]
    others = [name for name in inside if name not in own]
    if ready_made and others:
        raise DataError(
            f"data.source: folder '{place}' mixes splits ({', '.join(ready_made)}) with class folders "
            f"({', '.join(others[:5])}). Move the class folders into '{place}/train'"
        )
    if ready_made and not any(PART_NAMES[name.lower()] == Part.TRAIN for name in ready_made):
        raise DataError(f"data.source: folder '{place}' has {', '.join(ready_made)} but no train. Add '{place}/train'")

    ignored: list[str] = []
    found: list[tuple[str, str | None, Part]] = []  # (path below the folder, class, part)
    classes: set[str] = set()
    for top in ready_made or [""]:
        part = PART_NAMES[top.lower()] if top else Part.TRAIN
        names = others if not top else _folders(folder / top)
        classes.update(names)
        for name in names:
            below = (Path(top) / name).as_posix()
            found += [(path, name, part) for path in _pictures(folder, below, ignored)]
        beside = [child.name for child in sorted((folder / top).iterdir()) if child.is_file()]
        ignored += [(Path(top) / name).as_posix() for name in beside if not _is_picture(name) and name[0] != "."]
        strays = [name for name in beside if _is_picture(name)]
        if strays:
            raise DataError(
                f"data.source: {len(strays)} images lie in '{folder / top}' outside of a class folder "
                f"({strays[0]}, ...). Move them into a folder named after their class, "
                f"or into '{place}/unlabelled'"
            )
    for top in (name for name in own if name not in ready_made):
        found += [(path, None, Part.UNLABELLED) for path in _pictures(folder, top, ignored)]
    if not classes:
        raise DataError(
            f"data.source: folder '{place}' has no class folders. "
            f"Make one folder per class: '{place}/CLASS/picture.jpg'"
        )
    _check_classes(classes)
    index = {name: number for number, name in enumerate(sorted(classes))}
    return _files(
        classes=tuple(sorted(classes)),
        paths=[path for path, _, _ in found],
        base=folder,
        labels=[-1 if name is None else index[name] for _, name, _ in found],
        parts=[part for _, _, part in found],
        origin=f"folder {folder.as_posix()}",
        ignored=ignored,
    )


_COLUMNS = ("path", "label", "split")


def list_csv(place: str, root: Path, say: Say = print) -> Listing:
    """Columns path,label[,split]: path relative to the CSV, label may be empty, split one of `PART_NAMES`.

    Further columns are left alone. Classes are the labels, sorted as text. Raises DataError.
    """
    file = Path(place)
    if not file.is_file():
        raise DataError(f"data.source: csv '{place}' does not exist. {_near_folders(file, root)}")
    check_files(root, "folder")
    try:
        with file.open(newline="", encoding="utf-8-sig") as text:  # spreadsheets write a byte-order mark
            table = csv.DictReader(text, skipinitialspace=True)
            columns = [column.strip() for column in table.fieldnames or []]
            table.fieldnames = columns
            missing = [column for column in ("path", "label") if column not in columns]
            if missing:
                raise DataError(
                    f"data.source: csv '{place}' has no column {' and '.join(missing)}; its columns are: "
                    f"{one_line(', '.join(columns) or 'none')}. The first line must be path,label or path,label,split"
                )
            twice = [column for column, count in Counter(columns).items() if count > 1 and column in _COLUMNS]
            if twice:
                raise DataError(f"data.source: csv '{place}' has the column {twice[0]} more than once. Keep one")
            paths, names, parts = [], [], []
            for row in table:
                where = f"data.source: csv '{place}' line {table.line_num}"
                path, name, part = (str(row.get(key) or "").strip() for key in _COLUMNS)
                if not path:
                    raise DataError(f"{where}: no path. Every line needs one")
                if not _below(file.parent / path, root):
                    raise DataError(
                        f"{where}: '{one_line(path)}' lies outside of '{root}', where DVC would not notice a changed "
                        f"picture. Move the pictures into '{root}'"
                    )
                if part.lower() not in PART_NAMES and part:
                    known = "train, val, test, unlabelled"
                    raise DataError(f"{where}: unknown split '{one_line(part, 60)}'. Choose one of: {known}")
                paths.append(path)
                parts.append(PART_NAMES[part.lower()] if part else Part.TRAIN)
                # a label beside the word "unlabelled" is not looked at
                names.append("" if parts[-1] == Part.UNLABELLED else name)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"data.source: csv '{place}' is not UTF-8 with commas ({one_line(error)}). Save it so"
        ) from error
    classes = tuple(sorted(set(names) - {""}))
    _check_classes(classes)
    index = {name: number for number, name in enumerate(classes)} | {"": -1}
    return _files(
        classes=classes,
        paths=paths,
        base=file.parent,
        labels=[index[name] for name in names],
        parts=parts,
        origin=f"csv {file.as_posix()}",
    )


def _files(
    *,
    classes: tuple[str, ...],
    paths: Sequence[str],
    base: Path,
    labels: Sequence[int],
    parts: Sequence[Part],
    origin: str,
    ignored: Sequence[str] = (),
) -> Listing:
    return Listing(
        classes=classes,
        labels=np.array(labels, dtype=np.int64),
        parts=np.array(parts, dtype=np.int8),
        name=lambda i: str(paths[i]),
        read=lambda i: open_picture(base / paths[i]),
        origin=origin,
        ignored=tuple(ignored),
    )


def _folders(folder: Path) -> list[str]:
    return sorted(child.name for child in folder.iterdir() if child.is_dir() and child.name[0] != ".")


def _is_picture(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS) and name[0] != "."  # "._a.jpg" is macOS's note on a.jpg


def _pictures(folder: Path, below: str, ignored: list[str]) -> Iterator[str]:
    """Paths of the images in ``folder``/``below`` at any depth, sorted; other files go to ``ignored``."""
    for top, folders, files in os.walk(folder / below):
        folders[:] = sorted(name for name in folders if name[0] != ".")
        for name in sorted(files):
            path = (Path(top) / name).relative_to(folder).as_posix()
            if _is_picture(name):
                yield path
            else:
                ignored.append(path)


def _below(path: Path, root: Path) -> bool:
    """Whether ``path`` is spelled as lying in ``root``; `check_files` has seen to links."""
    return Path(os.path.abspath(path)).is_relative_to(os.path.abspath(root))


def _near_folders(wanted: Path, root: Path) -> str:
    here = wanted.parent if wanted.parent.is_dir() else root
    names = sorted(child.name for child in here.iterdir() if child.name[0] != ".") if here.is_dir() else []
    near = difflib.get_close_matches(wanted.name, names, 1)
    return f"Did you mean '{here / near[0]}'?" if near else f"'{here}' holds: {', '.join(names[:8]) or 'nothing'}"


# -------------------------------------------------------------------------------- torchvision

Arguments = Mapping[str, Any]
Parts = Mapping[Part, Arguments]

_WHOLE: Parts = {Part.TRAIN: {}}
_TRAIN: Parts = {Part.TRAIN: {"train": True}, Part.TEST: {"train": False}}
_SPLIT: Parts = {Part.TRAIN: {"split": "train"}, Part.TEST: {"split": "test"}}
_SPLIT_VAL: Parts = {Part.TRAIN: {"split": "train"}, Part.VALIDATION: {"split": "val"}}
_SPLIT_ALL: Parts = {**_SPLIT, Part.VALIDATION: {"split": "val"}}


def _samples(dataset: Any) -> list[int]:
    return [label for _, label in dataset._samples]


def _pcam_labels(dataset: Any) -> Any:
    file = dataset._base_folder / dataset._FILES[dataset._split]["targets"][0]
    with dataset.h5py.File(file) as opened:
        return opened["y"][:, 0, 0, 0]


# name -> (constructor arguments of each part, where the labels are without decoding an image).
# "files": the set takes `loader=`; one that answers with the path lists paths and labels, and we decode.
TORCHVISION: Mapping[str, tuple[Parts, str | Callable[[Any], Any]]] = {
    "Caltech101": (_WHOLE, "y"),
    "Caltech256": (_WHOLE, "y"),
    "CIFAR10": (_TRAIN, "targets"),
    "CIFAR100": (_TRAIN, "targets"),
    "CLEVRClassification": (_SPLIT_VAL, "files"),  # its test split has no labels
    "Country211": ({**_SPLIT, Part.VALIDATION: {"split": "valid"}}, "files"),
    "DTD": (_SPLIT_ALL, "files"),
    "EMNIST": ({part: {"split": "balanced", **arguments} for part, arguments in _TRAIN.items()}, "targets"),
    "EuroSAT": (_WHOLE, "files"),
    "FashionMNIST": (_TRAIN, "targets"),
    "FER2013": (_SPLIT, _samples),
    "FGVCAircraft": (_SPLIT_ALL, "files"),
    "Flowers102": (_SPLIT_ALL, "files"),
    "Food101": (_SPLIT, "files"),
    "GTSRB": (_SPLIT, _samples),
    "ImageNet": (_SPLIT_VAL, "files"),
    "Imagenette": (_SPLIT_VAL, "files"),
    "INaturalist": (
        {Part.TRAIN: {"version": "2021_train_mini"}, Part.VALIDATION: {"version": "2021_valid"}}, "files",
    ),
    "KMNIST": (_TRAIN, "targets"),
    "LFWPeople": (_WHOLE, "files"),  # its train and test splits have different people
    "MNIST": (_TRAIN, "targets"),
    "Omniglot": (_WHOLE, "files"),  # "background": the other split has other characters
    "OxfordIIITPet": ({Part.TRAIN: {"split": "trainval"}, Part.TEST: {"split": "test"}}, "_labels"),
    "PCAM": (_SPLIT_ALL, _pcam_labels),
    "Places365": ({Part.TRAIN: {"split": "train-standard"}, Part.VALIDATION: {"split": "val"}}, "files"),
    "QMNIST": (_TRAIN, lambda dataset: dataset.targets[:, 0]),
    "RenderedSST2": (_SPLIT_ALL, "files"),
    "SEMEION": (_WHOLE, "labels"),
    "StanfordCars": (_SPLIT, "files"),
    "STL10": ({**_SPLIT, Part.UNLABELLED: {"split": "unlabeled"}}, "labels"),
    "SUN397": (_WHOLE, "files"),
    "SVHN": (_SPLIT, "labels"),
    "USPS": (_TRAIN, "targets"),
}  # fmt: skip
_BY_HAND = ("FER2013", "ImageNet", "LFWPeople", "StanfordCars")  # torchvision reads but cannot download them


def check_torchvision_name(place: str) -> None:
    """Raises DataError with near names when ``place`` is no classification set of torchvision."""
    if place not in TORCHVISION:
        lower = {name.lower(): name for name in TORCHVISION}
        near = [lower[name] for name in difflib.get_close_matches(place.lower(), list(lower), 3, 0.5)]  # CIFAR10, 100
        hint = f"Did you mean {' or '.join(near)}?" if near else f"Choose one of: {', '.join(TORCHVISION)}"
        raise DataError(f"data.source: unknown torchvision set '{place}'. {hint}")


def list_torchvision(place: str, root: Path, say: Say = print) -> Listing:
    """A classification set of torchvision from ``root``/torchvision; downloaded only when it is not there.

    Labels and official splits are torchvision's. Raises DataError.
    """
    check_torchvision_name(place)
    folder = root / "torchvision"
    if place == "FashionMNIST":
        origin = bring_fashion_mnist(root, say)
        datasets = _construct(place, folder)
    else:
        origin = f"data/raw: {folder.as_posix()}"
        try:
            datasets = _construct(place, folder)
            say(f"{place}: found in {folder}")
        except (RuntimeError, OSError) as error:  # how torchvision says "not there", differently for each set
            say(f"{place}: not complete in {folder} ({' '.join(str(error).split())[:120]})")
            origin = f"torchvision's download of {place}"
            _download(place, folder, say)
            datasets = _construct(place, folder)

    labels, parts, images = [], [], []
    where = TORCHVISION[place][1]
    for part, dataset in datasets.items():
        rows: Any
        if where == "files":
            # sorted, because some sets list files in the order of the disk
            pairs = sorted((str(path), label) for path, label in (dataset[i] for i in range(len(dataset))))
            rows, found = [path for path, _ in pairs], [label for _, label in pairs]
        else:
            found = getattr(dataset, where) if isinstance(where, str) else where(dataset)
            rows = range(len(dataset))
        numbers = np.array([-1 if label is None else int(label) for label in found], dtype=np.int64)
        labels.append(numbers if part != Part.UNLABELLED else np.full_like(numbers, -1))
        parts.append(np.full(len(numbers), part, dtype=np.int8))
        images.append((part, _pixels(dataset), rows))
    if len({str(getattr(dataset, "classes", None)) for dataset in datasets.values()}) > 1:
        raise DataError(
            f"data.source: the splits of torchvision:{place} have different classes, so its files in "
            f"'{folder}' are not complete. Remove them to have them downloaded again"
        )
    classes, numbers = _names(datasets[Part.TRAIN], np.concatenate(labels))
    starts = np.cumsum([0, *(len(rows) for _, _, rows in images)])

    def find(i: int) -> tuple[Part, Any, Any]:
        block = int(np.searchsorted(starts, i, side="right")) - 1
        part, pixels, rows = images[block]
        return part, pixels, rows[i - int(starts[block])]

    def name(i: int) -> str:
        part, _, row = find(i)
        return os.path.relpath(row, folder) if isinstance(row, str) else f"{part.name.lower()}[{row}]"

    def read(i: int) -> Image.Image:
        _, pixels, row = find(i)
        return open_picture(row) if isinstance(row, str) else pixels(row)

    return Listing(classes, numbers, np.concatenate(parts), name, read, origin)


def _construct(name: str, folder: Path, **arguments: Any) -> dict[Part, Any]:
    """The torchvision objects of all parts of set ``name``."""
    from torchvision import datasets

    parts, where = TORCHVISION[name]
    if where == "files":
        arguments["loader"] = str  # the "image" is then its path
    folder.mkdir(parents=True, exist_ok=True)
    return {part: getattr(datasets, name)(folder, **own, **arguments) for part, own in parts.items()}


def _download(name: str, folder: Path, say: Say) -> None:
    if name in _BY_HAND:
        raise DataError(
            f"data.source: torchvision:{name} is not in '{folder}', and torchvision cannot download it. "
            f"Put its files there as the page of torchvision.datasets.{name} says"
        )
    say(f"{name}: torchvision downloads it")
    # beside its place and moved when whole: several sets take an existing folder for a complete one
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as partial:
        try:
            _construct(name, Path(partial), download=True)
        except (RuntimeError, OSError, ValueError, ImportError) as error:
            raise DataError(
                f"data.source: torchvision:{name} could not be downloaded ({' '.join(str(error).split())}). "
                f"Put its files into '{folder}' as the page of torchvision.datasets.{name} says"
            ) from error
        _move_into(Path(partial), folder)


def _move_into(source: Path, target: Path) -> None:
    for child in sorted(source.iterdir()):
        if child.is_dir() and (target / child.name).is_dir():
            _move_into(child, target / child.name)
        else:
            child.replace(target / child.name)


def _pixels(dataset: Any) -> Callable[[int], Image.Image]:
    """Image i of a torchvision object; straight from its array where it has a plain one: twice as fast."""
    if hasattr(dataset, "data"):
        data = np.asarray(dataset.data)
        if data.dtype == np.uint8 and (data.ndim == 3 or data.shape[-1] == 3):
            return lambda i: Image.fromarray(data[i])
    return lambda i: dataset[i][0]


def _names(dataset: Any, labels: Int64[np.ndarray, " n"]) -> tuple[tuple[str, ...], Int64[np.ndarray, " n"]]:
    """Class names, and labels that count them from 0."""
    for attribute in ("classes", "categories", "all_categories", "class_to_idx"):
        names = getattr(dataset, attribute, None)
        if names:  # ImageNet's are tuples of synonyms
            return tuple(name if isinstance(name, str) else ", ".join(name) for name in names), labels
    if hasattr(dataset, "_characters"):  # Omniglot numbers its classes in the order of the disk
        order = sorted(range(len(dataset._characters)), key=lambda k: dataset._characters[k])
        rank = np.argsort(order)
        return tuple(dataset._characters[k] for k in order), rank[labels]
    present = np.unique(labels[labels >= 0])
    numbers = np.where(labels < 0, -1, np.searchsorted(present, labels))
    return tuple(str(number) for number in present), numbers


# -------------------------------------------------------------------------------- Fashion-MNIST

PACKAGE = "dataset-fashion-mnist"
# Of the uncompressed files: images begin with 0x803 (60,000 x 28 x 28: 47,040,016 bytes), labels with 0x801.
FASHION_MNIST_SHA256: Mapping[str, str] = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


def bring_fashion_mnist(
    root: Path,
    say: Say = print,
    system: Path = Path("/"),
    sha256: Mapping[str, str] = FASHION_MNIST_SHA256,
) -> str:
    """Has the four uncompressed files in ``root``/torchvision/FashionMNIST/raw, and says which way they came.

    In this order: ``root`` itself; the Debian package installed below ``system``; the package brought by
    apt-get, without root's rights; torchvision's download. Whatever the way, each file must have its SHA-256
    sum before it is put in place. Raises DataError.
    """
    place = root / "torchvision" / "FashionMNIST" / "raw"
    installed = system / "usr/share/datasets/fashion-mnist"
    for folder, origin in (
        (place, f"data/raw: {place.as_posix()}"),
        (root, f"data/raw: {root.as_posix()}"),
        (installed, f"the installed Debian package {PACKAGE}"),
    ):
        if _four_files(folder, sha256) is not None:
            say(f"FashionMNIST: from {origin}")
            _put_in_place(folder, place, sha256, origin)
            return origin
    failures = []
    for bring, origin in (
        (_apt_download, f"the Debian package {PACKAGE}, brought by apt-get download"),
        (_torchvision_fashion_mnist, "torchvision's download of FashionMNIST"),
    ):
        with tempfile.TemporaryDirectory(prefix="thinner-") as temporary:
            say(f"FashionMNIST: not in {root}; trying {origin}")
            try:
                folder = bring(Path(temporary))
            except (OSError, RuntimeError, subprocess.SubprocessError, tarfile.TarError) as error:
                failures.append(f"{origin}: {' '.join(str(error).split())}")
                say(f"FashionMNIST: no {failures[-1]}")
                continue
            _put_in_place(folder, place, sha256, origin)
            say(f"FashionMNIST: from {origin}")
            return origin
    files = ", ".join(f"{name}.gz" for name in sha256)
    raise DataError(
        f"data.source: torchvision:FashionMNIST is not in '{root}' and could not be brought:\n  "
        + "\n  ".join(failures)
        + f"\nInstall the Debian package {PACKAGE}, or put {files} into '{root}'"
    )


def _four_files(folder: Path, names: Mapping[str, str]) -> list[Path] | None:
    """The files in ``folder``, each plain or as .gz; None when one is missing."""
    found = []
    for name in names:
        there = [path for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
        if not there:
            return None
        found.append(there[0])
    return found


def _put_in_place(folder: Path, place: Path, sha256: Mapping[str, str], origin: str) -> None:
    """Copies the uncompressed files to ``place``, after all four were found right."""
    files = _four_files(folder, sha256)
    if files is None:
        raise DataError(f"data.source: {origin} does not hold all of: {', '.join(sha256)}")
    place.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        ready: list[tuple[Path, Path]] = []
        # a folder of its own: two worktrees at once may bring the same files
        own = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".partial-", dir=place)))
        for path, (name, expected) in zip(files, sha256.items(), strict=True):
            partial = own / name
            found = hashlib.sha256()
            try:
                with _opened(path) as source, ExitStack() as copy:
                    target = None if path == place / name else copy.enter_context(partial.open("wb"))
                    while block := source.read(1 << 20):
                        found.update(block)
                        if target:
                            target.write(block)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise DataError(
                    f"data.source: {path} is a damaged .gz file ({error}). Remove it and run again"
                ) from error
            if found.hexdigest() != expected:
                raise DataError(
                    f"data.source: {path} is not Fashion-MNIST's {name}: expected SHA-256 {expected}, "
                    f"found {found.hexdigest()} (uncompressed). Remove the file and run again"
                )
            if path != place / name:
                ready.append((partial, place / name))
        for partial, final in ready:
            partial.replace(final)


def _opened(path: Path) -> Any:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def _apt_download(folder: Path) -> Path:
    """The package's files, unpacked below ``folder``; missing package lists are fetched to it as well."""
    if shutil.which("apt-get") is None:
        raise FileNotFoundError("there is no apt-get on this machine")
    (folder / "lists/partial").mkdir(parents=True)
    (folder / "cache/archives/partial").mkdir(parents=True)
    own = ["-o", f"Dir::State::Lists={folder / 'lists'}", "-o", f"Dir::Cache={folder / 'cache'}"]
    try:
        _run(["apt-get", "download", PACKAGE], folder)
    except RuntimeError:
        _run(["apt-get", *own, "-o", "Debug::NoLocking=1", "update"], folder)
        _run(["apt-get", *own, "download", PACKAGE], folder)
    package = next(folder.glob(f"{PACKAGE}*.deb"))
    unpack_deb(package, folder / "unpacked")
    return folder / "unpacked/usr/share/datasets/fashion-mnist"


def _run(command: Sequence[str], folder: Path) -> None:
    words = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=600, env=words)
    if done.returncode:
        raise RuntimeError(f"`{' '.join(command)}` said {done.returncode}: {done.stderr.strip()[-300:]}")


def unpack_deb(package: Path, folder: Path) -> None:
    """The files of a Debian package into ``folder``, without root; by dpkg-deb, or by our own reading.

    Our reading knows what Python's tarfile knows (xz, gz, bz2), not zstd. Format: deb(5), ar(5).
    """
    if shutil.which("dpkg-deb"):
        _run(["dpkg-deb", "-x", str(package.absolute()), str(folder.absolute())], package.parent)
        return
    with package.open("rb") as file:
        for name, content in _ar_members(file):
            if name.startswith("data.tar"):
                with tarfile.open(fileobj=io.BytesIO(content)) as data:
                    data.extractall(folder, filter="data")
                return
    raise RuntimeError(f"{package.name} holds no data.tar")


def _ar_members(file: BinaryIO) -> Iterator[tuple[str, bytes]]:
    if file.read(8) != b"!<arch>\n":
        raise RuntimeError("not a Debian package")
    while header := file.read(60):
        size = int(header[48:58])
        yield header[:16].decode().strip().rstrip("/"), file.read(size)
        file.read(size % 2)  # members start at even positions


def _torchvision_fashion_mnist(folder: Path) -> Path:
    from torchvision.datasets import FashionMNIST

    FashionMNIST(folder, download=True)
    return folder / "FashionMNIST" / "raw"


SOURCES: Mapping[str, Callable[[str, Path, Say], Listing]] = {
    "torchvision": list_torchvision,
    "folder": list_folder,
    "csv": list_csv,
}
