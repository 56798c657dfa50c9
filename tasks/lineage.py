"""What talks to DVC (its remotes: remote.py): the graph, what is up to date and why not, and what a stage reads.

DVC owns these answers. Nothing here caches them or keeps a second ledger. DVC *runs* a stage only as a
process of its own (`reproduce_command`): its locks know process ids, so two threads of one process would run
a stage twice.

`root` is always the current folder as well, because DVC reads the names of stages relative to that.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import itertools
import json
import logging
import os
import shutil
import stat
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import yaml

from tasks import lockfile
from thinner.errors import UserError
from thinner.files import whole

# Repo objects are cheap (10 ms), but their lock is per process: two of our threads must take turns.
_turn = threading.Lock()

# In DVC's messages when another process works on the same paths, or its note of who does is half written.
BUSY = "is busy"
_TORN = "Unable to read RWLock-file", "RWLock-file format error"

# What DVC prints when it fetched a stage's results from its run-cache instead of running the command.
RESTORED = ("is cached - skipping run", "didn't change, skipping")

_LOOKS, _LOOK_SECONDS = 6, 0.2
_P = ParamSpec("_P")
_T = TypeVar("_T")


class BusyError(UserError):
    """Another process works on the same files; it is worth trying again a little later."""


def is_busy(text: str) -> bool:
    """Whether DVC says what `BusyError` says."""
    return any(mark in text for mark in (BUSY, *_TORN))


class _LockUnreadableError(UserError):
    """dvc.lock is half written, or cut off; or DVC's rwlock was, and is mended."""


def _refusal(error: Exception, text: str) -> UserError:
    return _LockUnreadableError(text) if str(lockfile.LOCK) in str(error) else UserError(text)


def _patient(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Asked once more where dvc.lock could not be read, for DVC rewrites it in place and a reader beside it can see
    half of it, for milliseconds; where it stays so, it is mended."""

    @functools.wraps(function)
    def asked(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        for look in range(_LOOKS):
            try:
                return function(*args, **kwargs)
            except _LockUnreadableError:
                if look == _LOOKS - 1 or (look == _LOOKS - 2 and lockfile.mend(Path(str(args[0]))) is None):
                    raise
                time.sleep(_LOOK_SECONDS)
        raise AssertionError("unreachable")

    return asked


def check_data(root: str, source: str) -> None:
    """Raise UserError for what DVC cannot watch in the folder of raw data.

    DVC would wait for ever for a FIFO, and has no words for a name that is not UTF-8 or a link to nothing.
    """
    from thinner.data import sources  # NumPy and Pillow are not needed to ask for help

    sources.check_files(root, source)


def check_writable(root: Path, nodes: Iterable[Node], cache: Path) -> None:
    """Raise UserError where a result could not be written, or not kept in DVC's ``cache``: hours of training would end
    at that."""
    outs = [out for node in nodes for out in node.outs]
    kept = [str(cache / name) for name in ("files/md5", "runs")]
    for name in [".dvc/tmp", ".thinner", lockfile.LOCK.name, *kept, *outs]:
        place = root / name
        found = place.exists()
        while not place.exists():
            place = place.parent
        for path in [place, place.parent] if found and name in outs else [place]:  # a result that is there is replaced
            if not os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
                shown = path.relative_to(root) if path != root and path.is_relative_to(root) else path
                raise UserError(
                    f"{shown}: may not be written ({stat.filemode(path.stat().st_mode)}), and {name} has to be. "
                    f"Mend its owner or mode (chmod u+w {shown}), or the disk's mount"
                )


@dataclass(frozen=True)
class Node:
    """One stage of dvc.yaml."""

    name: str
    upstream: tuple[str, ...]
    command: str
    outs: tuple[str, ...]
    meta: Mapping[str, Any]

    @property
    def timeout_seconds(self) -> float | None:
        """`meta: {timeout_minutes: N}` in dvc.yaml; None means that the stage may take as long as it
        likes."""
        minutes = self.meta.get("timeout_minutes")
        return None if minutes is None else 60 * float(minutes)


@dataclass(frozen=True)
class Inputs:
    """What a stage reads, hashed by DVC (files through its state database, so unchanged ones are not read
    again)."""

    hash: str  # the key of DVC's run-cache: command, dependencies, parameters, names of the outs
    deps: Mapping[str, str]  # path -> md5
    params: Mapping[str, Any]  # "prune.rounds" -> value
    outs: tuple[str, ...]
    upstream: Mapping[str, str]  # stage -> the hash of its inputs when it last ran

    def changes(self, later: Inputs) -> list[str]:
        """The paths and parameters that differ, by name."""
        before, after = {**self.deps, **self.params}, {**later.deps, **later.params}
        return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


@_patient
def graph(root: Path) -> list[Node]:
    """All stages of dvc.yaml, each after its upstream ones; ties in the order of dvc.yaml."""
    with _repo(root) as repo, repo.lock:
        dag = repo.index.graph
        stages = [stage for stage in repo.index.stages if stage.cmd]
        nodes = {
            stage.name: Node(
                name=stage.name,
                upstream=tuple(sorted(up.name for up in dag.successors(stage) if up.cmd)),
                command=str(stage.cmd),
                outs=tuple(out.def_path for out in stage.outs),
                meta=dict(stage.meta or {}),
            )
            for stage in stages
        }
    ordered: dict[str, Node] = {}

    def visit(name: str) -> None:
        for upstream in nodes[name].upstream:
            visit(upstream)
        ordered.setdefault(name, nodes[name])

    for name in nodes:
        visit(name)
    return list(ordered.values())


def remove_leftovers(root: Path, nodes: list[Node]) -> list[str]:
    """Remove what stages of a `foreach` wrote that params.yaml no longer names; returns the paths.

    A stage that depends on the folder around them would depend on them still, and be another one than in a fresh
    clone. DVC's cache keeps them: named again, they come back.
    """
    names, outs = {node.name for node in nodes}, {out for node in nodes for out in node.outs}
    removed = []
    for name, entry in locked_stages(root).items():
        if "@" not in name or name in names:
            continue
        for out in [out["path"] for out in entry.get("outs", []) if out["path"] not in outs]:
            path = root / out
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.exists():
                path.unlink()
            else:
                continue
            removed.append(out)
    return removed


def reasons(root: Path, name: str) -> list[str]:
    """Why the stage is out of date, one short phrase each; empty when it is up to date."""
    return all_reasons(root, [name])[name]


@_patient
def all_reasons(root: Path, names: Iterable[str]) -> dict[str, list[str]]:
    """`reasons` of each of these stages. dvc.yaml and dvc.lock, which take long to read, are read once."""
    if not (names := list(names)):
        return {}
    with _repo(root) as repo, repo.lock:
        stages = {stage.name: stage for stage in repo.index.stages if stage.cmd}  # not what `dvc add` keeps
        # not asked for by name: a bare one would be that of the current folder's dvc.yaml, for a worktree another one
        found = {name: list(itertools.chain(*stages[name].status(check_updates=True).values())) for name in names}
    locked = locked_hashes(root) if any(found.values()) else {}
    # of a stage that has not run DVC would list every file as modified
    return {name: [] if not said else _phrases(said) if name in locked else [_NEW] for name, said in found.items()}


_NEW = "has not run yet"


def _phrases(status: Iterable[Any]) -> list[str]:
    """What DVC says of one stage."""
    found: list[str] = []
    for entry in status:
        if isinstance(entry, str):  # "changed command", "always changed"
            found.append(entry)
            continue
        for kind, paths in entry.items():
            for path, change in paths.items():
                if isinstance(change, dict):  # {"params.yaml": {"prune.rounds": "modified"}}
                    found += [f"{key} {what}" for key, what in change.items()]
                else:
                    said = "not here" if change == "deleted" else change  # nobody deletes in a new clone
                    found.append(f"{path} {said}" + (" (output)" if kind == "changed outs" else ""))
    return found


@_patient
def key(root: Path, *targets: str) -> str:
    """SHA-256 over everything that the results of ``targets`` depend on: commands and parameters of these stages and of
    all upstream, and the content of every file that they read and no stage makes (code, raw data)."""
    from dvc.exceptions import DvcException

    said: dict[str, Any] = {}
    with _repo(root) as repo:
        try:
            dag = repo.index.graph
            waiting = [stage for stage in dag if stage.cmd and stage.name in targets]
            made = {out.fs_path for stage in repo.index.stages if stage.cmd for out in stage.outs}
            while waiting:
                stage = waiting.pop()
                if stage.name in said:
                    continue
                waiting += [up for up in dag.successors(stage) if up.cmd]
                reads: dict[str, Any] = {}
                for dep in stage.deps:
                    if dep.fs_path in made:
                        continue
                    if any(out.startswith(f"{dep.fs_path}/") for out in made):  # those of a foreach, and a note
                        reads[dep.def_path] = _but(made, Path(dep.fs_path))
                        continue
                    dep.save()
                    reads[dep.def_path] = dep.hash_info.value
                said[stage.name] = {"cmd": str(stage.cmd), "reads": reads}
        except DvcException as error:
            raise _refusal(error, f"{', '.join(targets)}: {error}") from error
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()


def _but(made: set[str], folder: Path) -> dict[str, str]:
    """SHA-256 of what lies in the folder, but for what stages make."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        path.relative_to(folder).as_posix(): whole.file_sha256(path)
        for path in files
        if not any(str(place) in made for place in (path, *path.parents))
    }


@dataclass(frozen=True)
class Out:
    """A file or folder as its stage left it, by dvc.lock."""

    path: str  # below the root
    md5: str  # of a folder: with ".dir" at its end
    stage: str


def locked_outs(root: Path) -> list[Out]:
    """All that stages have written, in the order of dvc.lock."""
    return [
        Out(out["path"], out["md5"], name)
        for name, entry in locked_stages(root).items()
        for out in entry.get("outs", [])
        if "md5" in out
    ]


@_patient
def believed(root: Path, only: Collection[str] | None = None) -> dict[str, str]:
    """By path, what DVC takes the outs for that lie here (``only`` those); it does not read files whose time and size
    are as before."""
    with _repo(root) as repo:
        outs = [out for out in repo.index.outs if only is None or out.def_path in only]
        return {out.def_path: out.get_hash().value for out in outs if out.exists}


def files_in(root: Path, folder: Path) -> list[Path]:
    """The files that DVC counts as the folder's: those that .dvcignore names are none."""
    with _repo(root) as repo:
        return sorted(Path(name) for name in repo.dvcignore.find(repo.fs, str(folder)))


def cache_folder(root: Path) -> Path:
    """Where DVC keeps every version of what the stages made."""
    with _repo(root) as repo:
        return Path(repo.cache.local.path).parent.parent  # below it, DVC adds files/md5


def mend(root: Path) -> str | None:
    """Put right what a kill or a full disk may leave of DVC's own files. Returns a sentence for people, or None where
    there is nothing that they have to know."""
    said = lockfile.mend(root)
    lockfile.mend_run_cache(cache_folder(root))
    return said


def reproduce_command(*names: str, alone: bool = False) -> list[str]:
    """The command that has DVC run (or restore) these stages, with those upstream that are out of date. ``alone``:
    without any upstream stage."""
    return [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", *(["--single-item"] if alone else []), *names]


@_patient
def inputs(root: Path, name: str) -> Inputs:
    """Hash what the stage reads as it is now. Takes no lock of DVC's: `dvc repro` holds some while the stage
    runs.

    Raises:
        UserError: dvc.yaml has no such stage, or something that the stage reads is missing.
    """
    from dvc.exceptions import DvcException
    from dvc.stage.cache import _get_stage_hash

    with _repo(root) as repo:
        try:
            stage = repo.stage.load_one(name=name)
            for dep in stage.deps:
                dep.save()  # "save" into the object that we throw away: dvc.lock is not written
        except DvcException as error:
            raise _refusal(error, f"{name}: {error}. To make what is missing: dvc repro {name}") from error
        params: dict[str, Any] = {}
        deps: dict[str, str] = {}
        for dep in stage.deps:
            value = dep.hash_info.value
            if isinstance(value, dict):
                params.update(value)
            else:
                deps[dep.def_path] = str(value)
        dag = repo.index.graph
        here = next(node for node in dag if node.cmd and node.name == name)
        upstream = [up.name for up in dag.successors(here) if up.cmd]
        digest = _get_stage_hash(stage)
    locked = locked_hashes(root)
    return Inputs(
        hash=digest,
        deps=deps,
        params=params,
        outs=tuple(out.def_path for out in stage.outs),
        upstream={up: locked[up] for up in upstream if up in locked},
    )


def locked_hashes(root: Path) -> dict[str, str]:
    """For each stage of dvc.lock, the `Inputs.hash` that it had when it ran."""
    from dvc.stage.cache import _get_cache_hash

    entries = locked_stages(root)
    return {name: _get_cache_hash(copy.deepcopy(entry), key=True) for name, entry in entries.items()}


@_patient
def locked_stages(root: Path) -> dict[str, Any]:
    path = root / lockfile.LOCK
    try:
        entries = (yaml.load(path.read_text(), Loader=lockfile.LOADER) or {}).get("stages") or {}  # noqa: S506
    except FileNotFoundError:
        return {}
    except (yaml.YAMLError, AttributeError) as error:
        raise _LockUnreadableError(f"{path} cannot be read: it is not YAML. To make it anew: dvc repro") from error
    return dict(entries)


def mend_rwlock(root: Path) -> str | None:
    """`lockfile.mend_rwlock`, while no command of DVC writes the file; None, too, where one does not let go of it."""
    from dvc.lock import LockError, make_lock

    guard = root / lockfile.RWLOCK.with_name("rwlock.lock")
    try:
        with make_lock(str(guard), tmp_dir=str(guard.parent)):
            return lockfile.mend_rwlock(root)
    except (LockError, OSError):
        return None


@contextmanager
def _repo(root: Path) -> Iterator[Any]:
    from dvc.exceptions import DvcException, NotDvcRepoError
    from dvc.lock import LockError
    from dvc.repo import Repo
    from dvc.rwlock import RWLockFileCorruptedError, RWLockFileFormatError

    # that a process was killed which held something is no news: mostly it was us
    logging.getLogger("dvc.rwlock").setLevel(logging.ERROR)
    try:
        # The root is named outright: inside `dvc exp run --temp` DVC_ROOT points at another repository.
        with _turn, Repo(str(root), _wait_for_lock=True) as repo:
            yield repo
    except NotDvcRepoError as error:
        raise UserError(f"{root} is not under DVC: dvc init makes it so") from error
    except (RWLockFileCorruptedError, RWLockFileFormatError) as error:
        raise _LockUnreadableError(f"DVC: {error}. {mend_rwlock(root) or ''}") from error
    except LockError as error:
        if BUSY in str(error):
            if said := mend_rwlock(root):
                raise _LockUnreadableError(f"DVC: {error}. {said}") from error
            raise BusyError(f"DVC: {error}") from error
        raise UserError(f"DVC: {error}") from error
    except DvcException as error:
        raise _refusal(error, f"DVC: {error}") from error
