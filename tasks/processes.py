"""Which process is which, and locks between them. Numbers of processes are used again, so the moment of its start goes
with each."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import psutil

from tasks.environment import STANDS_FOR
from thinner.errors import UserError

GRACE_SECONDS = 8.0  # to save a state and mark the run, when who started a program has died


@contextlib.contextmanager
def only_one(path: Path, refusal: str | None = None, patience: float = 0.0) -> Iterator[None]:
    """Hold the lock in ``path``; the kernel drops it when the process ends, however it ends.

    Args:
        refusal: what to say where another process still holds it after ``patience`` seconds, with ``{pid}`` for its
            number; None waits as long as it takes

    Raises:
        UserError: ``refusal``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    give_up = time.monotonic() + patience
    with path.open("a+") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | (0 if refusal is None else fcntl.LOCK_NB))
                break
            except BlockingIOError:
                if time.monotonic() >= give_up:
                    lock.seek(0)
                    raise UserError(str(refusal).format(pid=lock.read().strip())) from None
                time.sleep(0.2)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def started(pid: int) -> float:
    """When the process started, in seconds; on Linux since the machine did, because a clock that is set in between
    would make another process of it. Raises psutil.NoSuchProcess."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[19]) / os.sysconf("SC_CLK_TCK")  # starttime, the 22nd of all (proc_pid_stat(5))
    except (OSError, ValueError, IndexError):
        return psutil.Process(pid).create_time()


def parents() -> list[psutil.Process]:
    """Of this process, the nearest first; of a fork (tasks/forks.py) the program that it is, and that one's parents."""
    fork, _, program = os.environ.get(STANDS_FOR, "").partition(":")
    here = psutil.Process()
    found = [] if str(here.pid) == fork else here.parents()
    for number, process in enumerate([here, *found]):
        if str(process.pid) == fork:
            with contextlib.suppress(psutil.NoSuchProcess):
                stands = psutil.Process(int(program))
                return [*found[:number], stands, *stands.parents()]
    return found


def end_this_process(gently: bool = True) -> NoReturn:
    """With all that it has started. ``gently``: after SIGTERM and some seconds, in which partial outputs go, a state is
    saved and the run is marked."""
    if gently:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_SECONDS)
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            child.kill()
    os._exit(128 + signal.SIGTERM)


def mark(pid: int | None = None) -> str:
    """`PID:SECONDS`, of this process if no other is named."""
    pid = pid or os.getpid()
    return f"{pid}:{started(pid):.2f}"


def is_alive(pid: int, when: float) -> bool:
    """Whether the very process lives that ``started`` at ``when``."""
    try:
        return abs(started(pid) - when) < 1 and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def url_of(note: Path) -> str | None:
    """The address in a server's ``note``, if that very server lives; whatever else stands there is no address."""
    try:
        found = json.loads(note.read_bytes())
        url, pid, when = str(found["url"]), found["pid"], float(found["started"])
        lives = type(pid) is int and is_alive(pid, when)
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError, psutil.Error):
        return None
    return url if lives and re.fullmatch(r"http://127\.0\.0\.1:\d{1,5}", url) else None
