"""What differs between two states of the prepared data: pictures that came and went, labels, splits.

Of names, labels and splits alone, a few megabytes where the pictures are gigabytes: no pixel is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from thinner.data.sources import DataError
from thinner.errors import DamagedError, one_line
from thinner.files import json_files
from thinner.files.mapped import open_array, read_arrays

FILES = ("names.json", "labels.npy", "splits.npz", "info.json")  # all that is read
UNUSED = "unused"  # the split of a picture that is in none


@dataclass(frozen=True)
class Index:
    """What is known of each picture, by its name."""

    labels: Mapping[str, str | None]  # None: the split has no labels, and prepare has forgotten it
    splits: Mapping[str, str]
    stored: str  # how pixels are stored, in words


@dataclass(frozen=True)
class Difference:
    """Lists are sorted by name."""

    came: list[tuple[str, str | None]]  # name, label
    went: list[tuple[str, str | None]]
    relabelled: list[tuple[str, str, str]]  # name, label before, label after
    moved: list[tuple[str, str, str]]  # name, split before, split after
    stayed: int  # pictures that are in both
    compared: int  # of these, those whose label is known in both


def read(folder: Path) -> Index:
    """The `FILES` of prepared data that lie in ``folder``. Raises DataError where they are not those of one state."""
    try:
        info = json_files.read_object(folder / "info.json", "")
        names = _without_shards(json.loads((folder / "names.json").read_text(encoding="utf-8")), info)
        labels = np.array(open_array(folder / "labels.npy"))
        splits = read_arrays(folder / "splits.npz")
        classes = info["classes"]
        if len(names) != len(labels) or len(set(names)) != len(names):
            raise DamagedError(
                f"{len(names):,} names, some of them twice, or not one for each of {len(labels):,} labels"
            )
        home = np.full(len(labels), UNUSED, dtype=object)
        for name, rows in splits.items():
            home[rows] = name
        known = {
            name: classes[label] if label >= 0 else None for name, label in zip(names, labels.tolist(), strict=True)
        }
    except (OSError, DamagedError, ValueError, KeyError, IndexError, TypeError) as error:
        raise DataError(f"{folder}: names, labels and splits cannot be read ({one_line(error)})") from error
    stored = f"{info.get('image_size')} px, {info.get('channels')} channels, {info.get('fit')}"
    return Index(known, dict(zip(names, home.tolist(), strict=True)), stored)


def _without_shards(names: list[str], info: Mapping[str, Any]) -> list[str]:
    """Names without the shard that a picture lies in, where they still differ: pictures that were packed, or packed
    anew, are the same ones."""
    if not str(info.get("source")).startswith("shards:"):
        return names
    keys = [re.sub(r"^.*?\.tar/", "", name, count=1, flags=re.IGNORECASE) for name in names]
    return keys if len(set(keys)) == len(keys) else names


def compare(before: Index, after: Index) -> Difference:
    """Pictures are the same where their names are. A label that one of the two does not know has not changed."""
    came: list[tuple[str, str | None]] = []
    relabelled: list[tuple[str, str, str]] = []
    moved: list[tuple[str, str, str]] = []
    stayed = compared = 0
    for name, new in after.labels.items():
        if name not in before.labels:
            came.append((name, new))
            continue
        stayed += 1
        old = before.labels[name]
        if old is not None and new is not None:
            compared += 1
            if old != new:
                relabelled.append((name, old, new))
        if before.splits[name] != after.splits[name]:
            moved.append((name, before.splits[name], after.splits[name]))
    went = [(name, old) for name, old in before.labels.items() if name not in after.labels]
    by_name = itemgetter(0)
    return Difference(
        came=sorted(came, key=by_name),
        went=sorted(went, key=by_name),
        relabelled=sorted(relabelled),
        moved=sorted(moved),
        stayed=stayed,
        compared=compared,
    )
