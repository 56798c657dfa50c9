"""Has data come? A look at the names, sizes and times of raw data, and at .dvc files: no file is read, and neither DVC
nor MLflow is imported, so it costs a walk through the folder.

What was seen last is in `.thinner/seen.json`. It is written when a run has ended, not when it begins: what was there in
a run that was killed is new still.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thinner.errors import UserError, one_line
from thinner.files import whole

_OWN = "torchvision"  # prepare brings these files itself, and DVC does not watch them either (.dvcignore)


@dataclass(frozen=True)
class Look:
    """``digest``: over name, size and time of each file, and .dvc files. ``changed``: seconds since the epoch when a
    file or folder was last written, moved or removed."""

    digest: str
    files: int
    changed: float


def look(root: Path, data: str, pointers: str = "") -> Look:
    """What lies in the folder ``data`` of ``root``; ``pointers`` stands for the .dvc files of another commit. Raises
    UserError where a folder may not be read, or a link leads to itself."""
    lines, changed, top = [], 0.0, root / data
    try:
        for path, found in _walk(top, but=top / _OWN):
            changed = max(changed, found.st_ctime)
            if not stat.S_ISDIR(found.st_mode):
                lines.append(f"{path[len(os.fspath(top)) :]}\0{found.st_size}\0{found.st_mtime_ns}")
    except OSError as error:
        raise UserError(
            f"{one_line(error.filename or top)}: cannot be looked at ({error.strerror}). Make it readable for the user "
            "of this run, or take it away"
        ) from error
    digest = hashlib.sha256("\n".join(sorted(lines)).encode(errors="surrogateescape"))
    folder = Path(os.path.normpath(data))
    for above in [folder, *folder.parents][:-1]:  # dvc add data/raw leaves data/raw.dvc
        with contextlib.suppress(OSError):
            digest.update((root / f"{above}.dvc").read_bytes())
    digest.update(pointers.encode())
    return Look(digest.hexdigest(), len(lines), changed)


def _walk(top: Path, but: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Folders and files, through links as well, each folder once. What goes while one looks is left out: its folder has
    changed then, and the next look sees that."""
    been: set[tuple[int, int]] = set()
    waiting = [os.fspath(top)]
    while waiting:
        place = waiting.pop()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            found = os.stat(place)
            if (found.st_dev, found.st_ino) in been:
                continue
            been.add((found.st_dev, found.st_ino))
            yield place, found
            with os.scandir(place) as entries:
                for entry in entries:
                    if entry.is_dir():
                        waiting += [entry.path] if entry.path != os.fspath(but) else []
                        continue
                    with contextlib.suppress(FileNotFoundError):
                        yield entry.path, entry.stat()


def news(root: Path, seen: Look, settle_seconds: float) -> str | None:
    """Why there is nothing to run for, or None where there is something. The first look remembers, and runs nothing."""
    try:
        before = json.loads(_file(root).read_bytes())["digest"]
    except FileNotFoundError:
        before = None
    except (OSError, ValueError, KeyError, TypeError):  # cut off by something else than us: looked at anew
        before = None
    count = f"{seen.files:,} file{'' if seen.files == 1 else 's'}"
    if before is None:
        remember(root, seen)
        return f"first look: {count}. The next change to them starts a run"
    if before == seen.digest:
        return f"nothing new: {count}, as last time"
    since = time.time() - seen.changed
    if since < 0:  # this clock was set since then, or a server's runs ahead: what counts is how long we see the same
        since = _seconds_alike(root, seen)
    if since < settle_seconds:
        return f"still coming in: last changed {since:.0f} s ago, and a run waits for {settle_seconds:g} s"
    return None


def _seconds_alike(root: Path, seen: Look) -> float:
    """Since a look first found all as it is now."""
    path, now = root / ".thinner" / "coming.json", time.time()
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(path.read_bytes())
        if kept["digest"] == seen.digest and kept["first"] <= now:
            return float(now - kept["first"])
    with contextlib.suppress(OSError):
        write_whole(path, {"digest": seen.digest, "first": now})
    return 0.0


def remember(root: Path, seen: Look) -> None:
    when = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    write_whole(_file(root), {"digest": seen.digest, "files": seen.files, "when": when})


def _file(root: Path) -> Path:
    return root / ".thinner" / "seen.json"


def write_whole(path: Path, value: Any) -> None:
    """``value`` as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole.write_text(path, json.dumps(value))
