"""What a worker of an engine does: one stage of one run, in a clone of its own.

It is handed a parcel (the commit, as a git bundle) and an order (params.yaml and a stage), brings what the stage needs
from DVC's remote, has DVC run it, and sends the result there. It shares no disk with whoever asks: all that it keeps
lies in a folder of its own (`THINNER_WORKER_FOLDER`), with a DVC cache of its own. docs/engines.md tells the rest.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import os
import re
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from flows.pipeline import select
from flows.worktrees import end_processes_of, hear, perform, quoted, remove_others
from tasks import forks, lineage, processes, remote
from tasks.environment import HOME, child_environment
from tasks.git import git
from thinner.errors import UserError, one_line
from thinner.files import yaml_files

FOLDER = "THINNER_WORKER_FOLDER"  # where a worker keeps its clones and its cache; workers on one machine may share it
_LOOK_SECONDS = 0.5  # between two looks whether anybody still waits for the stage


@dataclass(frozen=True)
class Parcel:
    """A commit as it travels: with all before it, so that no worker has to reach a git server."""

    project: str  # the first commit of the repository: whose clone a folder is
    commit: str
    bundle: bytes = field(repr=False)

    @classmethod
    def of(cls, root: Path) -> Parcel:
        """The commit that is checked out in ``root``. Raises UserError for a clone that has not the whole history."""
        if git(root, "rev-parse", "--is-shallow-repository") == "true":
            raise UserError("this clone has not the whole history, which workers are handed: git fetch --unshallow")
        first = git(root, "rev-list", "--max-parents=0", "HEAD").splitlines()[-1]
        with tempfile.TemporaryDirectory() as folder:
            git(root, "bundle", "create", "--quiet", f"{folder}/bundle", "HEAD")
            bundle = (Path(folder) / "bundle").read_bytes()
        return cls(first, git(root, "rev-parse", "HEAD"), bundle)


@dataclass(frozen=True)
class Order:
    """A stage of a run."""

    stage: str
    name: str  # of the run, such as `kd seed 3`
    params: str  # all of params.yaml, which has been checked
    key: str  # lineage.key of the stage where it was asked for: the clone's has to be the same
    environment: dict[str, str] = field(default_factory=dict, repr=False)  # addresses may have passwords


@dataclass(frozen=True)
class Done:
    """What became of an order. The result itself lies on DVC's remote."""

    failure: str | None
    where: str  # host and folder
    ran: tuple[str, ...]  # stages that were computed or restored there, in order
    seconds: float


@task(cache_policy=NO_CACHE, persist_result=False, task_run_name="{order.name}: {order.stage}")
def run_stage(parcel: Parcel, order: Order) -> Done:
    """The whole life of an order. What a person can mend is told in the answer, and raises nothing."""
    began, where = time.monotonic(), socket.gethostname()
    failure: str | None = None
    ran: list[str] = []
    try:
        with _watched(), clone_of(parcel) as clone:
            where = f"{where}:{clone}"
            failure = _bring(clone, order, ran)
    except UserError as error:
        failure = str(error)
    return Done(failure, where, tuple(ran), round(time.monotonic() - began, 1))


def _bring(clone: Path, order: Order, ran: list[str]) -> str | None:
    """What went wrong with the stage and all that it needs, or None."""
    logger, environment = get_run_logger(), {**order.environment, HOME: str(clone), **_forking().environment}
    (clone / "params.yaml").write_text(order.params, encoding="utf-8")
    remove_others(clone, yaml_files.parse(order.params))
    if lineage.key(clone, order.stage) != order.key:
        return f"{order.stage}: {_OTHER}"
    for node in select(lineage.graph(clone), [order.stage]):
        if lineage.reasons(clone, node.name):
            ran.append(node.name)
            if failure := perform([node], remote.command("repro", node.name), clone, order.name, environment, logger):
                return failure
    said, code = hear(remote.command("push"), clone, order.name, environment, logger)
    return None if code == 0 else f"{order.stage}: its result was not sent: {said[-1] if said else code}"


@functools.cache
def _forking() -> forks.Server:
    """What the stages on this worker are forks of: one process for as long as the worker lives, with which it ends."""
    server = forks.Server.start(child_environment())
    atexit.register(server.end)
    return server


_OTHER = (
    "what it rests on is not the same on the worker. Only what git or DVC has travels. Raw data, data/teachers and "
    "data/weights: commit them, or dvc add FOLDER. If that is done, another version of this project is installed there"
)


# ---------------------------------------------------------------------------------------------------- clones


def worker_folder() -> Path:
    """Where this worker keeps what it has."""
    told = os.environ.get(FOLDER)
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return (Path(told) if told else Path(cache) / "thinner" / "worker").expanduser().resolve()


@contextlib.contextmanager
def clone_of(parcel: Parcel) -> Iterator[Path]:
    """A clone of the project, for this order alone, with the parcel's commit in it."""
    home = worker_folder() / parcel.project[:12]
    with contextlib.ExitStack() as held:
        for number in itertools.count():
            clone = home / f"clone-{number}"
            try:
                held.enter_context(processes.only_one(home / f"clone-{number}.lock", "another order has it"))
                break
            except UserError:
                continue
        _check_out(parcel, clone, home / "cache")
        lineage.mend(clone)
        yield clone


def _check_out(parcel: Parcel, clone: Path, cache: Path) -> None:
    if not (clone / ".git").is_dir():
        clone.mkdir(parents=True, exist_ok=True)
        git(clone, "init", "--quiet")
    for left in (clone / ".git").glob("*.lock"):  # of a git that was killed with its worker: the clone is ours alone
        left.unlink()
    ready = clone / ".git" / "thinner-commit"  # what is there whole, with its raw data
    if ready.is_file() and ready.read_text() == parcel.commit:
        return
    ready.unlink(missing_ok=True)
    with tempfile.NamedTemporaryFile() as bundle:
        bundle.write(parcel.bundle)
        bundle.flush()
        git(clone, "fetch", "--quiet", "--no-tags", bundle.name, "HEAD")
    git(clone, "checkout", "--quiet", "--force", "--detach", parcel.commit)
    (clone / ".dvc" / "config.local").write_text(f"[cache]\n    dir = {quoted(cache)}\n")
    if added := [name for name in git(clone, "ls-files", "*.dvc").splitlines() if (clone / name).is_file()]:
        command = [sys.executable, "-m", "dvc", "--wait-for-lock", "pull", "--quiet", *added]
        said, code = hear(command, clone, "raw data", {}, get_run_logger())
        if code:
            raise UserError(f"{', '.join(added)}: did not come from the remote ({said[-1] if said else code})")
    ready.write_text(parcel.commit)


# ---------------------------------------------------------------------------------------------------- the end


@contextlib.contextmanager
def _watched() -> Iterator[None]:
    """End the processes of this order as soon as nobody waits for it: the flow was stopped, or has died.

    Dask tells a worker that, but cannot interrupt what runs there. Ray interrupts the task, or ends its process.
    """
    mine, over = threading.get_ident(), threading.Event()
    wanted = _wanted_by_dask()

    def watch() -> None:
        while not over.wait(_LOOK_SECONDS):
            if not wanted():
                end_processes_of(mine)

    watcher = threading.Thread(target=watch, name="watch-order", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()


def _wanted_by_dask() -> Callable[[], bool]:
    if (distributed := sys.modules.get("distributed")) is None:
        return lambda: True
    try:
        worker = distributed.get_worker()
        key = worker.get_current_task()
    except ValueError:  # no task of Dask's
        return lambda: True

    def wanted() -> bool:
        found = worker.state.tasks.get(key)
        return found is not None and found.state == "executing"

    return wanted


def plain(error: BaseException) -> str:
    """One line without what terminals colour; of another machine's traceback its last."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    if "Traceback (most recent call last)" in text:
        text = text.strip().splitlines()[-1].strip()
    return one_line(f"{type(error).__name__}: {text}", 300)
