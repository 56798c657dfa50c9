"""What tests share that start a server on loopback."""

import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

PATIENCE = 600  # seconds after which what hangs is ended: no claim, for a machine may be busy


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait_until(ready: Callable[[], object], server: subprocess.Popen[bytes], log: Path) -> None:
    """Ask again and again; a process that has ended, or is not ready in time, fails the test with the log's end."""
    give_up = time.monotonic() + PATIENCE
    while not ready():
        assert server.poll() is None and time.monotonic() < give_up, log.read_text()[-2000:]
        time.sleep(0.05)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def end_group(server: subprocess.Popen[Any] | psutil.Process) -> None:
    """SIGTERM to a server and all that it started, which has a session of its own; SIGKILL 20 s later."""
    os.killpg(server.pid, 15)
    try:
        server.wait(20)
    except (subprocess.TimeoutExpired, psutil.TimeoutExpired):
        os.killpg(server.pid, 9)
        server.wait()
