"""Pictures of a folder or a list, packed into tar shards that this project and the webdataset library read.

    DEST/train-000000.tar       KEY.cls, the number of the class as text, and KEY.jpg: the file's own bytes, undecoded
         unlabelled-000000.tar  KEY.jpg
         classes.json           the classes' names, that of number 0 first

KEY is the picture's path in its source without the ending, and without dots in the file's name, for there webdataset's
keys end. The same pictures give the same bytes: members have no time and no owner, and come in the source's order.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from thinner.data.sources import CLASS_FILES, EXTENSIONS, FORMATS, DataError, Listing, Part, list_source, open_picture
from thinner.errors import one_line
from thinner.files.whole import write, write_text

# In the order in which shards are listed. A folder's pictures are, too, so that equal pictures make equal stores.
WORDS = {Part.TEST: "test", Part.TRAIN: "train", Part.VALIDATION: "val", Part.UNLABELLED: "unlabelled"}
Member = tuple[str, bytes]  # name, content
T = TypeVar("T")


def pack(
    listing: Listing,
    base: Path,
    root: Path,
    folder: Path,
    *,
    most_bytes: int | None = None,
    most_pictures: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Listing:
    """Write the pictures that ``listing`` names, relative to ``base``, into ``folder``, which is there and empty.

    A shard has at most so many pictures, and so many bytes unless one picture alone has more. Paths that lead out of
    ``base``, as a CSV may have them, count from ``root``. ``progress`` is told how many pictures are written. Answers
    with the shards, read back and compared with the source. Raises DataError.
    """
    paths = [base / listing.name(i) for i in range(len(listing))]
    names = [_inside(path, base, root) for path in paths]
    endings = [_ending(path) for path in paths]
    stems = [f"{key}." for key in keys(names)]
    labels = listing.labels.tolist()
    written: list[int] = []

    def members(rows: Sequence[int]) -> Iterator[Member]:
        for i in rows:
            if labels[i] >= 0:
                yield f"{stems[i]}cls", str(labels[i]).encode()
            yield f"{stems[i]}{endings[i]}", _of(paths[i], Path.read_bytes)
            written.append(i)
            progress(len(written))

    for part, word in WORDS.items():
        rows = np.flatnonzero(listing.parts == part).tolist()
        sizes = [
            _room(f"{stems[i]}{endings[i]}", _of(paths[i], os.path.getsize))
            + (_room(f"{stems[i]}cls", len(str(labels[i]))) if labels[i] >= 0 else 0)
            for i in rows
        ]
        for number, cut in enumerate(cuts(sizes, most_bytes, most_pictures)):
            write(folder / f"{word}-{number:06d}.tar", partial(write_tar, members=members(rows[cut])))
    text = json.dumps(listing.classes, ensure_ascii=False, indent=0) + "\n"
    write_text(folder / CLASS_FILES[0], text)
    made = list_source(f"shards:{folder}", folder, lambda line: None)
    if not _same(made, listing, written, [f"{stems[i]}{endings[i]}" for i in written]):
        raise DataError(f"{base}: the shards do not hold what was to be packed. Does something write there? Pack again")
    return made


def keys(names: Sequence[str]) -> list[str]:
    """webdataset's key of each picture, by its path. Where two would have one (1.jpg and 1.png), both get eight digits
    of their path's SHA-256. Raises DataError where a path is there twice."""
    plain = [_key(name) for name in names]
    count = Counter(plain)
    made = [
        key if count[key] == 1 else f"{key}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        for key, name in zip(plain, names, strict=True)
    ]
    twice = {key for key, count in Counter(made).items() if count > 1}
    for name in (name for name, key in zip(names, made, strict=True) if key in twice):
        raise DataError(f"'{one_line(name)}' is listed twice, and shards have each picture once. Keep one line")
    return made


def cuts(sizes: Sequence[int], most_bytes: int | None, most_pictures: int | None) -> Iterator[slice]:
    """Which samples, of ``sizes`` in bytes, each shard has."""
    start, total = 0, 0
    for i, size in enumerate(sizes):
        full = most_bytes is not None and _tar_bytes(total + size) > most_bytes
        if i > start and (full or i - start == most_pictures):
            yield slice(start, i)
            start, total = i, 0
        total += size
    if sizes:
        yield slice(start, len(sizes))


def write_tar(path: Path, members: Iterable[Member]) -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in members:
            tar.addfile(_header(name, len(content)), io.BytesIO(content))
            tar.members.clear()  # type: ignore[attr-defined] # it would keep every header


def _header(name: str, size: int) -> tarfile.TarInfo:
    """Of time 0 and nobody's, mode 0644."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info


def _room(name: str, size: int) -> int:
    """Bytes of a member in a tar."""
    return len(_header(name, size).tobuf(tarfile.PAX_FORMAT)) + -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _tar_bytes(members: int) -> int:
    """Of a whole tar: two blocks of zeros are its end, and its size is a multiple of a record's."""
    return -(-(members + 2 * tarfile.BLOCKSIZE) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


def _key(name: str) -> str:
    folder, _, file = name.rpartition("/")
    stem = os.path.splitext(file)[0] if file.lower().endswith(EXTENSIONS) else file
    key = f"{folder}/{stem.replace('.', '_')}".lstrip("/")
    return f"x{key}" if key.startswith("__") else key  # such names are metadata to webdataset, which it passes over


def _inside(path: Path, base: Path, root: Path) -> str:
    found = os.path.relpath(path, base)
    return Path(os.path.relpath(path, root) if found.startswith("..") else found).as_posix()


def _ending(path: Path) -> str:
    """As the file's name has it; where that says of no picture, as a CSV may list some, of what it is."""
    if path.name.lower().endswith(EXTENSIONS):
        return path.suffix[1:]
    with _of(path, open_picture) as picture:
        return FORMATS.get(str(picture.format), FORMATS["JPEG"])[0][1:]  # a JPEG of several pictures is called MPO


def _of(path: Path, ask: Callable[[Path], T]) -> T:
    try:
        return ask(path)
    except OSError as error:
        why = one_line(error.strerror or error)
        raise DataError(f"'{one_line(path)}' cannot be packed ({why}). Mend it, or take it out of the list") from error


def _same(made: Listing, listing: Listing, order: Sequence[int], names: Sequence[str]) -> bool:
    """Whether ``made`` has the rows of ``listing`` in ``order``: members of these ``names``, labels and splits."""
    index = {name: number for number, name in enumerate(listing.classes)}
    numbers = np.array([*(index[name] for name in made.classes), -1])  # a class without pictures is not among them
    return (
        len(made) == len(listing) == len(order)
        and all(made.name(k).endswith(f".tar/{name}") for k, name in enumerate(names))
        and np.array_equal(numbers[made.labels], listing.labels[order])
        and np.array_equal(made.parts, listing.parts[order])
    )
