"""What a person decided about pictures and labels, brought into the prepared data: corrected labels, and
near-duplicates kept in one split.

A correction is a line ``file,given,label`` of the file that `data.corrections` names: the picture as the source names
it, its label there, and the right one. The source itself stays as it is, so null takes all of them back. Splits are
drawn by the labels as given: a correction moves no picture from one split to another.
"""

from __future__ import annotations

import csv
import hashlib
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from thinner.data.sources import DataError, Listing, Part
from thinner.data.store import SPLITS, Labels, Numbers, Written, forget, integrity_report, open_store, write_splits
from thinner.errors import one_line

COLUMNS = ("file", "given", "label")
_MOST_SHOWN = 20  # lines of a message


@dataclass(frozen=True)
class Correction:
    """One picture's label: ``given`` in the source, ``label`` instead. ``where``: for a message, file and line."""

    file: str
    given: str
    label: str
    where: str = ""


def read(path: str | Path, undecided: bool = False) -> list[Correction]:
    """The rows of a CSV file with the columns `COLUMNS`; others are left alone. ``undecided``: rows without a label may
    be there, and are left out. Raises DataError."""
    rows = []
    for line, row in table(Path(path), COLUMNS, ". Start from reports/suspects.csv: thinner data suspects"):
        where = f"{path} line {line}"
        cells = {column: unquoted(row[column]) for column in COLUMNS}
        if undecided and not cells["label"]:
            continue
        if empty := [column for column, cell in cells.items() if not cell]:
            raise DataError(f"{where}: no {empty[0]}. Fill it in, or remove the line")
        rows.append(Correction(**cells, where=where))
    return rows


def table(path: Path, columns: Sequence[str], mend: str = "") -> list[tuple[int, dict[str, str | None]]]:
    """(line, cells by column) of each row of a CSV file that people edit. Raises DataError where it cannot be read, or
    lacks one of ``columns``; ``mend`` follows that."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as text:
            rows = csv.DictReader(text)
            if lacking := [column for column in columns if column not in (rows.fieldnames or [])]:
                found = one_line(", ".join(rows.fieldnames or []) or "none")
                raise DataError(f"{path}: no column {' and '.join(lacking)}; its columns are: {found}{mend}")
            return [(rows.line_num, row) for row in rows]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not UTF-8 with commas ({one_line(error)}). Save it so") from error


def write(path: Path, corrections: Iterable[Correction]) -> None:
    with path.open("w", newline="", encoding="utf-8") as text:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([safe(cell) for cell in (one.file, one.given, one.label)] for one in corrections)


def safe(cell: Any) -> Any:
    """A cell that no spreadsheet computes: a class may be called "=1+1"."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@")) else cell


def unquoted(cell: str | None) -> str:
    """A cell as it was before `safe` put an apostrophe before it."""
    text = (cell or "").strip()
    return text[1:] if text[:1] == "'" and text[1:2] in ("=", "+", "-", "@") else text


def plain(name: str) -> str:
    """A name as it is typed: a Mac's folders have é in two signs, and nobody sees a blank at an end."""
    return unicodedata.normalize("NFC", name).strip()


def spellings(names: Iterable[str]) -> dict[str, str]:
    """How names are spelt, by what is typed for them; of two that are typed alike neither."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(plain(name), []).append(name)
    return {typed: spelt[0] for typed, spelt in found.items() if len(spelt) == 1}


# ------------------------------------------------------------------------------- labels


def relabelled(listing: Listing, corrections: Sequence[Correction]) -> Labels:
    """The source's labels with the corrections. Raises DataError, with a line for each that does not fit."""
    numbers = _numbers(listing)
    index = {name: number for number, name in enumerate(listing.classes)}
    labels = listing.labels.copy()
    wrong: list[str] = []
    seen: dict[str, Correction] = {}
    for one in spelt(listing, corrections):
        before = seen.setdefault(one.file, one)
        if line := _mistake(one, before, listing, numbers, index):
            wrong.append(f"{one.where}: {line}")
        else:
            labels[numbers[one.file]] = index[one.label]
    raise_for(wrong)
    return labels


def spelt(listing: Listing, corrections: Iterable[Correction]) -> list[Correction]:
    """Corrections with files and classes as the source spells them, however they were typed."""
    known = {listing.name(i) for i in range(len(listing))}
    classes, files = spellings(listing.classes), spellings(known)

    def of(one: Correction) -> Correction:
        given, label = (
            name if name in listing.classes else classes.get(plain(name), name) for name in (one.given, one.label)
        )
        file = one.file if one.file in known else files.get(plain(one.file), one.file)
        return replace(one, file=file, given=given, label=label)

    return [of(one) for one in corrections]


def raise_for(wrong: Sequence[str]) -> None:
    if not wrong:
        return
    more = [f"... and {len(wrong) - _MOST_SHOWN} more"] if len(wrong) > _MOST_SHOWN else []
    raise DataError("\n".join([*wrong[:_MOST_SHOWN], *more]))


def _numbers(listing: Listing) -> dict[str, list[int]]:
    """A CSV file may list a picture twice: then both are meant."""
    found: dict[str, list[int]] = {}
    for i in range(len(listing)):
        found.setdefault(listing.name(i), []).append(i)
    return found


def _mistake(
    one: Correction,
    before: Correction,
    listing: Listing,
    numbers: Mapping[str, list[int]],
    index: Mapping[str, int],
) -> str | None:
    shown, remove = one_line(one.file), "Remove the line"
    if one.file not in numbers:
        return f"'{shown}' is no picture of {listing.origin}. {remove}"
    if one.label not in index:
        known = ", ".join(listing.classes[:20]) + (", ..." if len(listing.classes) > 20 else "")
        return f"unknown class '{one_line(one.label, 60)}'. Choose one of: {known}"
    if before is not one and before.label != one.label:
        here, there = one_line(one.label, 60), one_line(before.label, 60)
        return f"'{shown}' is '{here}' here and '{there}' in {before.where}. Keep one"
    now = {int(label) for label in listing.labels[numbers[one.file]]}
    if now == {-1}:
        return f"'{shown}' has no label in the source, so there is nothing to correct. {remove}"
    if now != {index.get(one.given, -2)}:
        names = " and ".join(f"'{listing.classes[label]}'" for label in sorted(now) if label >= 0)
        return (
            f"'{shown}' is labelled {names} in the source now, not '{one_line(one.given, 60)}'. {remove}, or look again"
        )
    return None


@dataclass(frozen=True)
class Change:
    """What `merged` would do to one picture's label: ``before`` is what counts now."""

    file: str
    before: str
    after: str


def merged(
    listing: Listing, existing: Sequence[Correction], rows: Sequence[Correction]
) -> tuple[list[Correction], list[Change]]:
    """All corrections, sorted by file, once ``rows`` are added to the ``existing`` ones; and what changes thereby.

    ``given`` of a row is the label that the person saw: the source's, or that of an existing correction. A row that
    gives a picture its label in the source back removes the correction. Raises DataError, a line for each wrong row.
    """
    existing, rows = spelt(listing, existing), spelt(listing, rows)
    relabelled(listing, existing)
    kept = {one.file: one for one in existing}
    wrong = []
    translated = []
    for row in rows:
        old = kept.get(row.file)
        if old is not None and row.given != old.label:
            now, shown = one_line(old.label, 60), one_line(row.file)
            wrong.append(
                f"{row.where}: '{shown}' is corrected to '{now}' already, not '{one_line(row.given, 60)}'. "
                "Remove the line, or look again: thinner data suspects"
            )
            continue
        translated.append(row if old is None else Correction(row.file, old.given, row.label, row.where))
    raise_for(wrong)
    relabelled(listing, translated)
    changes: dict[str, Change] = {}
    for row in translated:
        before = kept[row.file].label if row.file in kept else row.given
        if before == row.label:
            continue
        changes.setdefault(row.file, Change(row.file, before, row.label))
        kept[row.file] = row
    kept = {file: one for file, one in kept.items() if one.given != one.label}
    return [kept[file] for file in sorted(kept)], list(changes.values())


# ------------------------------------------------------------------------------- the prepared data


def clean(
    folder: Path,
    listing: Listing,
    report: Mapping[str, Any],
    *,
    corrections: str | None,
    one_split: bool,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[dict[str, Any], list[str]]:
    """Labels and splits in ``folder``, which `store.write_store` has just written, once more with what was decided.

    Answers with the integrity report, anew, and lines for a person. Raises DataError.
    """
    store = open_store(folder)
    unreadable = report["unreadable"]["files"]
    kept = np.array([i for i in range(len(listing)) if listing.name(i) not in unreadable], dtype=np.int64)
    written = _as_written(store.images, kept, unreadable)
    labels, splits = listing.labels[kept], dict(store.splits)
    said: list[str] = []
    found: dict[str, Any] = {}
    if corrections is not None:
        right = relabelled(listing, read(corrections))[kept]
        found["corrected"] = _corrected(right != labels, splits)
        said.append(
            f"{found['corrected']['labels']} labels are corrected by {corrections}"
            f" ({found['corrected']['used']} of them in a split with labels)"
        )
        labels = right
    if one_split:
        from thinner.data import duplicates

        group = duplicates.groups(len(kept), duplicates.find(store.images, progress=progress))
        splits, moved, dropped = in_one_split(splits, group, listing.parts[kept])
        names = [listing.name(int(i)) for i in kept]
        for word, rows in (("moved", moved), ("dropped", dropped)):
            found[word] = {"count": len(rows), "files": {names[row]: what for row, what in rows.items()}}
            some = ", ".join(f"{names[row]} ({what})" for row, what in list(rows.items())[:5])
            if rows:
                said.append(f"note: near-duplicates in two splits: {len(rows)} {word}: {some} (reports/prepare.json)")
    _check_classes((listing.labels[kept], store.splits), (labels, splits), listing.classes)
    info = {key: store.info[key] for key in ("source", "image_size", "channels", "fit")}
    labels = forget(labels, splits)
    write_splits(folder, labels, splits, classes=listing.classes, pixels_sha256=written.pixels_sha256, info=info)
    return {**integrity_report(listing, written, labels, splits), "cleaning": found}, said


def _as_written(images: Any, kept: Numbers, unreadable: Mapping[str, str]) -> Written:
    """What `store.write_images` answered with, from what it wrote."""
    everything = hashlib.sha256()
    digests = np.zeros((len(images), 32), dtype=np.uint8)
    for row, image in enumerate(images):
        pixels = image.tobytes()
        everything.update(pixels)
        digests[row] = np.frombuffer(hashlib.sha256(pixels).digest(), dtype=np.uint8)
    return Written(kept, unreadable, digests, everything.hexdigest())


def _corrected(changed: Any, splits: Mapping[str, Numbers]) -> dict[str, int]:
    known = np.concatenate([splits[name] for name in SPLITS if name != "unlabelled"])
    return {"labels": int(changed.sum()), "used": int(changed[known].sum())}


def in_one_split(
    splits: Mapping[str, Numbers], group: Int64[np.ndarray, " n"], parts: Any
) -> tuple[dict[str, Numbers], dict[int, str], dict[int, str]]:
    """(splits, moved, dropped): no group of near-duplicates lies both in the training part and in validation or test,
    nor in both of these. ``moved`` and ``dropped`` say of a picture from where, and to where.

    A picture of the source's own test or validation split is never moved: its copies elsewhere are dropped, those of
    validation where one is in the test. Of splits that were drawn, all go to the first of labelled, unlabelled and
    validation in which the group has a picture. Labelled and unlabelled pictures are both trained on, and stay.
    """
    home = np.full(len(group), -1)
    for number, name in enumerate(SPLITS):
        home[splits[name]] = number
    labelled, unlabelled, validation, test = range(len(SPLITS))
    fixed = {
        split: (home == split) & (parts == part) for split, part in ((test, Part.TEST), (validation, Part.VALIDATION))
    }
    order = np.argsort(group, kind="stable")
    moved: dict[int, str] = {}
    dropped: dict[int, str] = {}
    for members in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
        inside = members[home[members] >= 0]
        where = {labelled if place == unlabelled else int(place) for place in home[inside]}
        if len(where) < 2:
            continue
        own = next((split for split, mask in fixed.items() if mask[inside].any()), None)
        for row in inside.tolist():
            before = int(home[row])
            if own is not None and before != own:
                dropped[row] = f"from {SPLITS[before]}, like a picture of {SPLITS[own]}"
                home[row] = -1
            elif own is None and before > unlabelled:
                target = int(min(home[inside]))
                if before != target:
                    moved[row] = f"from {SPLITS[before]} to {SPLITS[target]}"
                    home[row] = target
    return {name: np.flatnonzero(home == number) for number, name in enumerate(SPLITS)}, moved, dropped


def _check_classes(
    before: tuple[Labels, Mapping[str, Numbers]], after: tuple[Labels, Mapping[str, Numbers]], classes: Sequence[str]
) -> None:
    """Raise DataError where a split with labels has lost the last picture of a class."""
    for name in SPLITS:
        if name == "unlabelled":
            continue
        had, has = (set(labels[splits[name]].tolist()) for labels, splits in (before, after))
        if lost := sorted(had - has):
            raise DataError(
                f"data.corrections, data.near_duplicates: no picture of class '{one_line(classes[lost[0]], 60)}' is "
                f"left in {name}. Ask for more (data.{name}), or correct less"
            )
