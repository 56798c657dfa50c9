"""What DVC rewrites in place, dvc.lock and its rwlock, what it makes in two steps, its run cache, and how they are
mended.

A full disk or a kill in that moment leaves them empty or cut off. Then every command of DVC fails, or stages are
silently missing.

Of dvc.lock there is a copy from when it was whole, by which what is lost comes back. Nothing is believed that DVC would
not judge anyway: an entry says what a stage read and wrote, by hash, and DVC compares it with what lies there.

The rwlock says which process uses which files. What it says of processes that are gone is taken out; DVC does that too,
but believes that a process lives as soon as another one has its number.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import yaml
from ruamel.yaml import YAML

from thinner.errors import UserError

LOCK, KEPT = Path("dvc.lock"), Path(".thinner/dvc.lock")
RWLOCK = Path(".dvc", "tmp", "rwlock")
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_FRESH = 2.0  # seconds in which whoever made a folder may still write into it
_PATIENCE = 10, 0.1  # looks, and seconds between them: DVC itself may be at its milliseconds of writing


def keep(root: Path) -> None:
    """Copy dvc.lock, if it is whole. Never raises: a run does not fail for want of a copy."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        text = (root / LOCK).read_text(encoding="utf-8")
        now, before = _stages(text), _read(root / KEPT)
        if now is None or now == before or (_is_cut(now, before) and text != _committed(root)):
            return
        partial = root / KEPT.with_suffix(".partial")
        partial.parent.mkdir(exist_ok=True)
        _write(partial, text)
        os.replace(partial, root / KEPT)


def _is_conflict(path: Path) -> bool:
    try:
        return re.search(r"^<<<<<<< ", path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE) is not None
    except OSError:
        return False


def mend(root: Path) -> str | None:
    """Bring back what is lost of dvc.lock. Returns one sentence about it, or None where nothing was to be done."""
    path = root / LOCK
    for look in range(_PATIENCE[0]):
        if not path.exists():  # nothing has run yet, or a person wants it so
            return None
        now = _read(path)
        if now is None and _is_conflict(path):
            raise UserError(
                "dvc.lock: git could not merge it, and both sides are in it. Take one: git checkout --ours dvc.lock "
                "(or --theirs), git add dvc.lock. Then thinner run: what that one lacks is made, or restored"
            )
        best = _last_whole(root)
        if best is None or not (now is None or _is_cut(now, _stages(best[1]))):
            return None
        if now is not None and path.read_text(encoding="utf-8") == _committed(root):  # a person took back what was new
            keep(root)
            return None
        if look:
            time.sleep(_PATIENCE[1])
    assert best is not None
    where, text = best
    kept = _stages(text) or {}
    later = dict(list((now or {}).items())[:-1])  # the last entry of what was cut off may itself be a part
    partial = path.with_name(".partial-dvc.lock")
    if later.items() <= kept.items():
        _write(partial, text)
    else:
        with partial.open("w", encoding="utf-8") as file:
            YAML().dump({"schema": "2.0", "stages": {**kept, **later}}, file)  # the library and style of DVC
    os.replace(partial, path)
    return f"dvc.lock was cut off (a full disk, or a kill while DVC wrote it). It is whole again, by {where}"


def mend_run_cache(cache: Path) -> None:
    """Remove the empty folders of DVC's run cache: a kill between the making of one and the writing into it leaves it,
    and then DVC (3.67) fails at that stage for ever ("join() argument must be str"). ``cache``: DVC's cache folder."""
    for folder in (cache / "runs").glob("*/*"):
        with contextlib.suppress(OSError):  # a folder that is not empty cannot be removed, which is what is wanted
            if not any(folder.iterdir()):
                time.sleep(max(0.0, min(_FRESH, folder.stat().st_mtime + _FRESH - time.time())))
                folder.rmdir()


def mend_rwlock(root: Path) -> str | None:
    """Take out of DVC's rwlock what names no living process; remove it where it is no JSON. Returns one sentence, or
    None where nothing was to be done. To be called with the guard under which DVC writes it: `lineage.mend_rwlock`.
    """
    path = root / RWLOCK
    if not path.exists():
        return None
    written = path.stat().st_mtime
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        readers = {name: list(infos) for name, infos in entries.get("read", {}).items()}
        writers = dict(entries.get("write", {}))
        named = {_sign(info) for infos in [*readers.values(), writers.values()] for info in infos}
    except (ValueError, AttributeError, TypeError, KeyError, OverflowError, RecursionError):
        path.unlink(missing_ok=True)
        return f"{RWLOCK} was cut off (a kill while DVC wrote it) and is removed"
    gone = {sign for sign in named if not _lives(*sign, written)}
    if not gone:
        return None
    kept = {name: [info for info in infos if _sign(info) not in gone] for name, infos in readers.items()}
    left = {
        "write": {name: info for name, info in writers.items() if _sign(info) not in gone},
        "read": {name: infos for name, infos in kept.items() if infos},
    }
    partial = path.with_name(".partial-rwlock")
    _write(partial, json.dumps(left))
    os.replace(partial, path)
    ended = ", ".join(str(pid) for pid in sorted({pid for pid, _ in gone}))
    return f"{RWLOCK} named processes that have ended ({ended}); they are taken out"


def _sign(info: dict[str, Any]) -> tuple[int, str]:
    return int(info["pid"]), str(info["cmd"])


def _lives(pid: int, command: str, written: float) -> bool:
    """Whether this very command runs: numbers of processes are used again. DVC writes `" ".join(sys.argv)`."""
    try:
        process = psutil.Process(pid)
        words = " ".join(process.cmdline()).split()
        started = process.create_time()
    except (psutil.NoSuchProcess, ValueError, OverflowError):  # a number that no process can have
        return False
    except psutil.Error:
        return True
    if started > written + 1:
        return False
    arguments = command.split()[1:]
    if not arguments or "-c" in words[1:2]:  # a worker of pytest, for one, shows other words than it was given
        return True
    return words[-len(arguments) :] == arguments


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _last_whole(root: Path) -> tuple[str, str] | None:
    """(where from, text) of our copy, or where there is none, of the last commit's."""
    if _read(root / KEPT) is not None:
        return str(KEPT), (root / KEPT).read_text(encoding="utf-8")
    text = _committed(root)
    return ("the last commit", text) if text is not None and _stages(text) is not None else None


def _committed(root: Path) -> str | None:
    """What the last commit's holds."""
    shown = subprocess.run(
        ["git", "show", f"HEAD:./{LOCK}"],
        cwd=root,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    return shown.stdout if shown.returncode == 0 else None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return _stages(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None


def _stages(text: str) -> dict[str, Any] | None:
    """The entries, if the text is a whole file as DVC writes it."""
    try:
        # DVC writes none, and a thousand bytes of them can be a year's work to compare
        if "*" in text and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=LOADER)):
            return None
        found = yaml.load(text, Loader=LOADER)  # noqa: S506 - a safe one, see there
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):  # a 13th month, a key that is a list, ...
        return None
    if not isinstance(found, dict) or "schema" not in found or not isinstance(found.get("stages", {}), dict):
        return None
    stages: dict[str, Any] = found.get("stages", {})
    return stages if all(_is_entry(entry) for entry in stages.values()) else None


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or "cmd" not in entry:
        return False
    lists = [entry.get(key) or [{}] for key in ("deps", "outs")]
    if not all(isinstance(some, list) for some in lists):
        return False
    parts = [part for some in lists for part in some]
    return all(isinstance(part, dict) and (not part or ("path" in part and len(part) > 1)) for part in parts)


def _is_cut(now: dict[str, Any], kept: dict[str, Any] | None) -> bool:
    """Whether ``now`` is the beginning of ``kept``: DVC keeps the order of entries and adds new ones at the end."""
    return kept is not None and len(now) < len(kept) and list(now) == list(kept)[: len(now)]
