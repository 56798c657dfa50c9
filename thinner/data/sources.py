"""Where images come from: torchvision, a folder, a CSV file, tar shards.

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
import itertools
import json
import os
import re
import shutil
import stat
import subprocess
import tarfile
import tempfile
import unicodedata
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import IntEnum
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, overload

import numpy as np
from jaxtyping import Int8, Int64
from PIL import Image, UnidentifiedImageError

from thinner.data import tars
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
    ignored: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.labels)


def list_source(source: str, root: str | Path, say: Say = print) -> Listing:
    """The images of ``source`` ("torchvision:NAME", "folder:PATH", "csv:PATH" or "shards:PATH").

    ``root`` is the folder of raw data: torchvision's files are looked for, and put, in ``root``/torchvision,
    and every picture of a folder or CSV, and every shard, lies below it. ``say`` is told how data were found or
    brought. Raises DataError.
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
# Read by a library that is not required. Without it such a picture is unreadable, and named, never passed over.
LIBRARIES: Mapping[str, tuple[str, str]] = {  # format -> (module, package)
    "HEIF": ("pillow_heif", "pillow-heif"),
    "JXL": ("pillow_jxl", "pillow-jxl-plugin"),
}
EXTENSIONS = tuple(ending for endings in FORMATS.values() for ending in endings)


def open_picture(file: str | os.PathLike[str] | io.BytesIO | io.BufferedReader, name: str = "") -> Image.Image:
    """A picture of one of `FORMATS`, by its content and not its name; nothing is decoded yet.

    ``name``: of bytes that have one, for the message that says which library is missing.
    Raises OSError, for what is no file (a FIFO would be waited for), no picture, or of a kind that is not read.
    """
    if isinstance(file, str | os.PathLike) and (special := _special(os.stat(file).st_mode)):
        raise OSError(f"is {special}, no file")
    known = _readable()
    try:
        return Image.open(file, formats=known)
    except UnidentifiedImageError:
        ending = Path(file if isinstance(file, str | os.PathLike) else name).suffix.lower()
        for kind, (_, package) in LIBRARIES.items():
            if ending in FORMATS[kind] and kind not in known:
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


def is_refused(name: str) -> bool:
    """Whether `check_files` refuses a file of this name: it is not UTF-8, or moves text."""
    return any("\udc80" <= sign <= "\udcff" or _moves_text(sign) for sign in name)


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
        if top and (inner := next((one for one in names if PART_NAMES.get(one.lower()) == Part.UNLABELLED), None)):
            raise DataError(
                f"data.source: '{folder / top / inner}' would be a class. If these pictures have no labels, move it to "
                f"'{place}/unlabelled'; else rename it"
            )
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
    if not classes and (shards := _tars(folder)):
        raise DataError(
            f"data.source: folder '{place}' has no class folders, but tar files ({shards[0]}). "
            f"If they are shards: data.source: shards:{place}"
        )
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
                if is_refused(path):  # more than one line of it: a quote that nothing closes
                    raise DataError(
                        f"{where}: the path '{one_line(path, 60)}' has an end of line or another control character. "
                        "Close its quotes, or rename the file"
                    )
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


# -------------------------------------------------------------------------------- tar shards

CLASS_FILES = ("classes.json", "classes.txt")
_MOST_LABEL_BYTES = {"cls": 1 << 12, "json": 1 << 20}  # they are read while listing
_MOST_PICTURE_BYTES = 1 << 30  # of a picture, which is in memory whole while it is decoded
_KEY = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)", re.DOTALL)  # up to the first dot of the file's name, and from there on
_META = re.compile(r"__[^/]*__($|/)")  # what the webdataset library passes over, too
_NUMBER = re.compile(r"-?[0-9]{1,18}")


class Texts(Sequence[str]):
    """Many short texts in one block of memory: a list of a million names takes more than twice as much."""

    def __init__(self) -> None:
        self._block, self._ends = bytearray(), array("q", [0])

    def append(self, text: str) -> None:
        self._block += text.encode("utf-8", "surrogateescape")
        self._ends.append(len(self._block))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        k = range(len(self))[i]
        return self._block[self._ends[k] : self._ends[k + 1]].decode("utf-8", "surrogateescape")


def list_shards(place: str, root: Path, say: Say = print) -> Listing:
    """The samples of webdataset's tar shards: ``place``, a .tar or a folder with some at any depth.

    A sample is KEY.jpg (or another of `EXTENSIONS`) with KEY.cls or KEY.json beside it, in a row. KEY ends at the first
    dot of the file's name. Splits are said by shards' names, or those of their folders: a word of `PART_NAMES`.
    Raises DataError.
    """
    given = Path(place)
    if not given.exists():
        raise DataError(f"data.source: shards '{place}' does not exist. {_near_folders(given, root)}")
    check_files(root, "folder")
    folder, shards = (given.parent, [given.name]) if given.is_file() else (given, _tars(given))
    if not shards:
        raise DataError(f"data.source: shards '{place}' holds no .tar. To make some: thinner data pack {place} DEST")
    parts = _shard_parts(place, shards)
    # as a folder's pictures come: those without labels last
    shards.sort(key=lambda shard: (parts[shard] == Part.UNLABELLED, shard))
    names, ignored = Texts(), Texts()
    of_shard, labels = array("i"), array("i")  # the label's number in `texts`, -1 where there is none
    offsets, sizes = array("q"), array("q")
    texts: dict[str, int] = {}
    first: list[str] = []  # for each text, the file that has it first, for a message
    try:
        for number, shard in enumerate(shards):
            labelled = parts[shard] != Part.UNLABELLED  # else a label is not looked at
            for sample in _samples_of(folder / shard, shard, labelled, ignored):
                if sample.label is not None and sample.label not in texts:
                    texts[sample.label] = len(first)
                    first.append(f"{shard}/{sample.picture.name}")
                names.append(sample.picture.name)
                of_shard.append(number)
                labels.append(-1 if sample.label is None else texts[sample.label])
                offsets.append(sample.picture.offset)
                sizes.append(sample.picture.size)
    except tars.TarError as error:
        raise DataError(f"data.source: {error}") from error
    if len(names) and not texts:
        raise DataError(
            f"data.source: shards '{place}' have no labels: no .cls beside a picture, and no .json with \"label\". "
            "Write KEY.cls beside KEY.jpg; folders of classes become shards by: thinner data pack FOLDER DEST"
        )
    classes, label_of_text = _classes_of(folder, texts, first, say)
    for beside in () if given.is_file() else sorted({*_files_below(folder)} - {*shards, *CLASS_FILES}):
        ignored.append(beside)
    home, text, offset, size = (np.array(column) for column in (of_shard, labels, offsets, sizes))

    def name(i: int) -> str:
        return f"{shards[home[i]]}/{names[i]}"

    def read(i: int) -> Image.Image:
        if size[i] > _MOST_PICTURE_BYTES:
            raise OSError(f"has {size[i]:,} bytes, and at most {_MOST_PICTURE_BYTES:,} are read. Make it smaller")
        data = tars.read(folder / shards[home[i]], int(offset[i]), int(size[i]))
        return open_picture(io.BytesIO(data), names[i])

    return Listing(
        classes=classes,
        labels=np.append(label_of_text, -1)[text].astype(np.int64),  # -1 is the last of them
        parts=np.array([parts[shard] for shard in shards], dtype=np.int8)[home],
        name=name,
        read=read,
        origin=f"shards {given.as_posix()}",
        ignored=ignored,
    )


def holds_shards(folder: Path) -> bool:
    """Whether there are tar files in ``folder``, and no picture beside them."""
    found = False
    for name in _files_below(folder):
        if name.lower().endswith(EXTENSIONS):
            return False
        found = found or name.lower().endswith(tars.ENDINGS)
    return found


def _tars(folder: Path) -> list[str]:
    """The tar files below ``folder``, sorted: compressed ones as well, which are refused when they are read."""
    return sorted(name for name in _files_below(folder) if name.lower().endswith(tars.ENDINGS))


def _files_below(folder: Path) -> Iterator[str]:
    """Paths of the files below ``folder``, at any depth; hidden ones and those of hidden folders are passed over."""
    for top, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name[0] != "."]
        yield from ((Path(top) / name).relative_to(folder).as_posix() for name in files if name[0] != ".")


def _shard_parts(place: str, shards: Sequence[str]) -> dict[str, Part]:
    """The split of each shard, by the rules that a folder's splits have."""
    found: dict[str, Part | None] = {}
    for shard in shards:
        words = _words(shard)
        if len({PART_NAMES[word] for word in words}) > 1:
            said = " and ".join(words)
            raise DataError(f"data.source: shard '{shard}' says {said}. Name one split, as in train-000000.tar")
        found[shard] = PART_NAMES[words[0]] if words else None
    ready_made = sorted({part.name.lower() for part in found.values() if part not in (None, Part.UNLABELLED)})
    others = [shard for shard, part in found.items() if part is None]
    if ready_made and others:
        raise DataError(
            f"data.source: shards '{place}' mixes splits ({', '.join(ready_made)}) with shards that name none "
            f"({', '.join(others[:5])}). Call those train-..., or put them into '{place}/train'"
        )
    if ready_made and "train" not in ready_made:
        raise DataError(f"data.source: shards '{place}' has {', '.join(ready_made)} but no train. Add train-000000.tar")
    return {shard: Part.TRAIN if part is None else part for shard, part in found.items()}


def names_splits(folder: Path) -> bool:
    """Whether the shards in ``folder`` say which split they are of."""
    return any(set(_words(shard)) - {"unlabelled", "unlabeled"} for shard in _tars(folder))


def _words(shard: str) -> list[str]:
    """The words of `PART_NAMES` in a shard's name, or that folders on the way to it are called."""
    *folders, name = shard.lower().split("/")
    return sorted({*folders, *re.split(r"[^a-z]+", name)} & set(PART_NAMES))


class _Sample(NamedTuple):
    picture: tars.Entry
    label: str | None


def _samples_of(path: Path, shard: str, labelled: bool, ignored: Texts) -> Iterator[_Sample]:
    """The pictures of a shard with their labels as text, as the webdataset library groups files: by key, in a row.

    Files that are of no use go to ``ignored``. Raises DataError.
    """

    def refuse(what: str) -> DataError:
        return DataError(f"data.source: '{one_line(path.as_posix())}': {what}")

    def keyed() -> Iterator[tuple[str, str, tars.Entry]]:
        for entry in tars.entries(path):
            if not entry.name.isprintable() and (bad := next(filter(_moves_text, entry.name), None)):
                raise refuse(f"{entry.name!a} has {bad!a} in its name. Rename the file and pack again")
            if (found := _KEY.fullmatch(entry.name)) and not _META.match(entry.name):
                yield found[1], found[2].lower(), entry
            else:
                ignored.append(f"{shard}/{entry.name}")

    hashes = array("q")  # of the keys: a set of them would be most of the memory
    with path.open("rb") as file:
        for key, group in itertools.groupby(keyed(), key=itemgetter(0)):
            hashes.append(hash(key))
            files: dict[str, tars.Entry] = {}
            for _, ending, entry in group:
                if ending in files:
                    raise refuse(f"'{one_line(entry.name)}' is there twice. Keep one")
                files[ending] = entry
            pictures = [ending for ending in files if f".{ending}" in EXTENSIONS]
            if len(pictures) > 1:
                shown = " and ".join(f"'{one_line(files[ending].name)}'" for ending in pictures)
                raise refuse(f"{shown} are two pictures of one key. Keep one, or give each a key")
            if not pictures and (dotted := [ending for ending in files if f".{ending}".endswith(EXTENSIONS)]):
                raise refuse(
                    f"'{one_line(files[dotted[0]].name)}' has a dot in its name, and there webdataset's key ends, so "
                    f"'{one_line(key)}' has no picture. Rename the file; thinner data pack FOLDER DEST does so"
                )
            used = {*pictures, *(("cls", "json") if pictures else ())}
            for entry in (entry for ending, entry in files.items() if ending not in used):
                ignored.append(f"{shard}/{entry.name}")
            if pictures:
                yield _Sample(files[pictures[0]], _label(file, files, refuse) if labelled else None)
    if twice := _repeated(hashes):
        again = Counter(key for key, _ in itertools.groupby(keyed(), key=itemgetter(0)) if hash(key) in twice)
        for key in (key for key, count in again.items() if count > 1):
            raise refuse(
                f"the key '{one_line(key)}' comes again after others: to webdataset that is another sample. Pack the "
                "files of a sample in a row: tar --sort=name, or thinner data pack FOLDER DEST"
            )


def _repeated(hashes: Sequence[int]) -> set[int]:
    found = np.sort(np.array(hashes, dtype=np.int64))
    return set(found[1:][found[1:] == found[:-1]].tolist())


def _label(file: BinaryIO, files: Mapping[str, tars.Entry], refuse: Callable[[str], DataError]) -> str | None:
    """The text of KEY.cls, or what KEY.json has under "label" or "cls"; .cls goes first."""
    ending = "cls" if "cls" in files else "json"
    if (entry := files.get(ending)) is None:
        return None

    def wrong(what: str) -> DataError:
        return refuse(f"'{one_line(entry.name)}' {what}")

    if entry.size > _MOST_LABEL_BYTES[ending]:
        raise wrong(f"has {entry.size:,} bytes, too many for a label. Leave it out")
    file.seek(entry.offset)
    found: Any = file.read(entry.size)
    try:
        found = found.decode("utf-8-sig")
        if ending == "json":
            table = json.loads(found)
            keys = [key for key in ("label", "cls") if isinstance(table, dict) and table.get(key) is not None]
            if not keys:
                return None
            found = table[keys[0]]
    except (ValueError, RecursionError) as error:
        raise wrong(f"is not {'text' if ending == 'cls' else 'JSON'} in UTF-8 ({one_line(error)}). Mend it") from error
    if isinstance(found, bool) or not isinstance(found, str | int):
        raise wrong(f"has a label that is neither a number nor a name: {one_line(found, 60)}. Mend it")
    label = str(found).strip()
    if not label:
        raise wrong("is empty. Write the class's number or name, or leave it out")
    if _NUMBER.fullmatch(label) and int(label) < 0:
        raise wrong(f"says {label}, which is no class. Leave the label out where there is none")
    return label


def _classes_of(
    folder: Path, texts: Mapping[str, int], first: Sequence[str], say: Say
) -> tuple[tuple[str, ...], Int64[np.ndarray, " t"]]:
    """The classes that occur, and which each of the labels' ``texts`` is.

    With one of `CLASS_FILES` a number counts its names from 0, in their order; without it, texts are the classes.
    """
    given = given_classes(folder)
    if given is None:
        numbers = all(_NUMBER.fullmatch(text) for text in texts)
        classes = tuple(sorted(texts, key=lambda text: (int(text) if numbers else 0, text)))
        if numbers and texts:
            say(f"note: the classes are numbers. To name them: {folder / CLASS_FILES[1]}, a line each, 0 first")
        of_text = {name: number for number, name in enumerate(classes)}
    else:
        file, every = given
        index = {name: number for number, name in enumerate(every)}
        found = {}
        for text, number in texts.items():
            k = int(text) if _NUMBER.fullmatch(text) else index.get(text, -1)
            if not 0 <= k < len(every):
                where = one_line((folder / first[number]).as_posix())
                raise DataError(
                    f"data.source: '{where}' has the label '{one_line(text, 60)}', but a label is one of the "
                    f"{len(every)} names in {file}, or a number from 0 to {len(every) - 1}. Mend one of them"
                )
            found[text] = k
        present = sorted(set(found.values()))
        place = {k: number for number, k in enumerate(present)}
        if absent := len(every) - len(present):
            say(f"note: {absent} of {len(every)} classes of {file} have no picture here, and are left out")
        classes = tuple(every[k] for k in present)
        of_text = {text: place[k] for text, k in found.items()}
    _check_classes(classes)
    return classes, np.array([of_text[text] for text in texts], dtype=np.int64)


def given_classes(folder: Path) -> tuple[str, list[str]] | None:
    """Which of `CLASS_FILES` lies in ``folder``, and its names. Raises DataError."""
    files = [folder / name for name in CLASS_FILES if (folder / name).is_file()]
    if not files:
        return None
    if len(files) > 1:
        raise DataError(f"data.source: '{folder}' has {' and '.join(CLASS_FILES)}. Keep one")
    (file,) = files
    try:
        text = file.read_text(encoding="utf-8-sig")
        names = json.loads(text) if file.suffix == ".json" else [line.strip() for line in text.rstrip().splitlines()]
    except (ValueError, RecursionError) as error:
        raise DataError(f"data.source: '{file}' cannot be read ({one_line(error)}). Write it in UTF-8") from error
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        wanted = "a list of names" if file.suffix == ".json" else "a name in each line"
        raise DataError(f"data.source: '{file}' is not {wanted}, that of class 0 first. Write it so")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(f"data.source: '{file}' names '{one_line(twice[0], 60)}' twice. Give each class its name")
    return file.name, names


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
    "shards": list_shards,
}
