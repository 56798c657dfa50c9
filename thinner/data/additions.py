"""Pictures that a person has labelled, brought into the source: a list ``path,label``, as `thinner watch` writes it.

A folder source gets copies, in the folder of each class (below ``train`` where splits are ready-made). A CSV source
gets lines, and copies of those pictures that do not lie below ``data.root`` yet. Shards get one more shard. Names of
copies have eight digits of their content's SHA-256, so that none takes another's place, and the same list twice is the
same as once.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from thinner.data.cleaning import plain, raise_for, spellings, table, unquoted
from thinner.data.packing import Member, write_tar
from thinner.data.sources import (
    EXTENSIONS,
    PART_NAMES,
    DataError,
    Listing,
    Part,
    given_classes,
    is_refused,
    names_splits,
)
from thinner.errors import one_line
from thinner.files.whole import file_sha256, write

_WANTED = ("path", "label")
ADDED = "added"  # beside a CSV source: the folder of its copies


@dataclass(frozen=True)
class Addition:
    """``picture`` becomes ``target``, which is the same where no copy is needed."""

    picture: Path
    label: str
    target: Path


def plan(file: Path, listing: Listing, source: str, root: Path) -> list[Addition]:
    """What the lines of ``file`` with a label add to the ``source`` that is listed. Paths are relative to the file.

    Nothing is written. Raises DataError, with a line for each that does not fit.
    """
    kind, _, place = source.partition(":")
    if kind not in ("folder", "csv", "shards"):
        raise DataError(
            f"data.source: {source} takes no further pictures. Put all into folders, one for each class: docs/data.md"
        )
    if kind == "shards" and Path(place).is_file():
        raise DataError(f"data.source: {source} is one tar, which stays as it is. Give the folder that holds it")
    base = Path(place).parent if kind == "csv" else Path(place)
    known = {os.path.abspath(base / listing.name(i)): int(listing.labels[i]) for i in range(len(listing))}
    earlier = {Path(name).name: listing.classes[label] for name, label in known.items() if label >= 0}
    wrong: list[str] = []
    found: dict[str, Addition] = {}  # by what tells pictures apart: a copy's name, or the place where it lies
    spelt = spellings(listing.classes)
    for where, picture, written, split in _rows(file):
        shown, label = one_line(picture), spelt.get(plain(written), written)
        if split and PART_NAMES.get(split.lower()) != Part.TRAIN:
            wrong.append(
                f"{where}: '{shown}' is to go to '{one_line(split, 40)}', and pictures are added to train alone. Leave "
                "`split` empty"
            )
        elif is_refused(str(picture)):
            wrong.append(f"{where}: '{shown}' has a name that prepare refuses. Rename it")
        elif not picture.is_file():
            wrong.append(f"{where}: no file '{shown}'. Paths are relative to {file.parent}")
        elif (there := known.get(os.path.abspath(picture))) is not None:
            if there >= 0 and listing.classes[there] == label:
                continue  # it was added before
            mend = f"Write its label into {place}" if kind == "csv" else "Move it into its class's folder"
            wrong.append(f"{where}: '{shown}' is in the source already. {mend}")
        elif label not in listing.classes:
            classes = ", ".join(listing.classes[:20]) + (", ..." if len(listing.classes) > 20 else "")
            wrong.append(f"{where}: unknown class '{one_line(label, 60)}'. Choose one of: {classes}")
        elif kind != "csv" and not (picture.name.lower().endswith(EXTENSIONS) and picture.name[0] != "."):
            wrong.append(
                f"{where}: '{shown}' is not called as pictures are. Rename it: {', '.join(EXTENSIONS[:5])}, ..."
            )
        else:
            made = Addition(picture, label, _target(picture, label, kind, base, root))
            copied = made.target != picture
            if copied and earlier.get(made.target.name) == label:
                continue  # it was added before
            if copied and earlier.get(made.target.name, label) != label:
                wrong.append(
                    f"{where}: '{shown}' was added as '{earlier[made.target.name]}' before, by the name "
                    f"{made.target.name}. Take that out of the source first"
                )
            elif (before := found.setdefault(made.target.name if copied else str(picture), made)).label != label:
                wrong.append(f"{where}: '{shown}' is '{label}' here and '{before.label}' above. Keep one")
    raise_for(wrong)
    return list(found.values())


def bring(additions: Sequence[Addition], source: str) -> None:
    """Copy the pictures, each whole or not at all, and write the lines of a CSV source; or write one shard."""
    if source.startswith("shards:"):
        _write_shard(additions, Path(source.partition(":")[2]))
        return
    for one in additions:
        if one.picture != one.target and not one.target.exists():
            one.target.parent.mkdir(parents=True, exist_ok=True)
            write(one.target, lambda partial, one=one: shutil.copyfile(one.picture, partial))  # type: ignore[misc]
    kind, _, place = source.partition(":")
    if kind == "csv" and additions:
        lines = _lines(Path(place), additions)
        write(Path(place), lambda partial: partial.write_bytes(lines))


def _rows(file: Path) -> list[tuple[str, Path, str, str]]:
    """(where, picture, label, split) of each line that has a label."""
    found = []
    for line, row in table(file, _WANTED):
        path, label, split = (unquoted(row.get(key)) for key in (*_WANTED, "split"))
        if label:
            found.append((f"{file} line {line}", _plain(file.parent / path), label, split))
    return found


def _plain(path: Path) -> Path:
    return Path(os.path.normpath(path))


def _target(picture: Path, label: str, kind: str, base: Path, root: Path) -> Path:
    if kind == "csv" and Path(os.path.abspath(picture)).is_relative_to(os.path.abspath(root)):
        return picture
    stem = picture.stem.replace(".", "_") if kind == "shards" else picture.stem  # webdataset's keys end at a dot
    name = f"{stem}-{file_sha256(picture)[:8]}{picture.suffix}"
    if kind != "folder":
        return base / ADDED / name
    own = [child.name for child in sorted(base.iterdir()) if child.is_dir()]
    train = [top for top in own if PART_NAMES.get(top.lower()) == Part.TRAIN]
    return base.joinpath(*train[:1], label, name)


def _write_shard(additions: Sequence[Addition], folder: Path) -> None:
    """One more shard, named by what is in it."""
    given = given_classes(folder)
    members: list[Member] = []
    for one in additions:
        label = one.label if given is None else str(given[1].index(one.label))
        key = f"{ADDED}/{one.target.stem}"
        members += [(f"{key}.cls", label.encode()), (f"{key}{one.target.suffix}", one.picture.read_bytes())]
    if members:
        digest = hashlib.sha256("\n".join(f"{one.target.name} {one.label}" for one in additions).encode()).hexdigest()
        split = "train-" if names_splits(folder) else ""
        write(folder / f"{split}{ADDED}-{digest[:8]}.tar", partial(write_tar, members=members))


def _lines(file: Path, additions: Sequence[Addition]) -> bytes:
    """The whole list, with further lines that have its own columns."""
    before = file.read_bytes()
    header = next(csv.reader(io.StringIO(before.decode("utf-8-sig")), skipinitialspace=True))
    added = io.StringIO()
    writer = csv.writer(added, lineterminator="\r\n" if b"\r\n" in before else "\n")
    listed = _paths(before, header)
    for one in additions:
        path = Path(os.path.relpath(one.target, file.parent)).as_posix()
        cells = {"path": path, "label": one.label}
        if os.path.normpath(path) not in listed:
            writer.writerow([cells.get(column.strip(), "") for column in header])
    end = b"" if before.endswith(b"\n") else b"\n"
    return before + end + added.getvalue().encode()


def _paths(text: bytes, header: Sequence[str]) -> set[str]:
    """Those that a CSV source lists."""
    place = [column.strip() for column in header].index("path")
    rows = csv.reader(io.StringIO(text.decode("utf-8-sig"), newline=""), skipinitialspace=True)
    return {os.path.normpath(row[place].strip()) for row in rows if len(row) > place}
