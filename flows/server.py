"""Prefect's server, as far as a run depends on it: dead before it begins, gone in its midst, and ended with it.

What a run computes does not need the server; it is told what happens. So where it has gone, the run goes on, says so
once, and ends as it would have ended.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import logging
import os
import ssl
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    PREFECT_HOME,
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
    get_current_settings,
    temporary_settings,
)

from flows import OWN_SERVER, console, own_server
from flows.watch import MARK, PROGRAM
from tasks import processes
from tasks.record import mlflow_client
from thinner.errors import UserError, one_line

GOODBYE_SECONDS = 5.0  # for Prefect's last words to a server that is not there
STARTS = 3  # of a server of the run's own, where it ends while it starts
_STARTS_ANEW = 3  # the exit status at which Prefect starts its server once more
_watches: list[subprocess.Popen[bytes]] = []
_url: str | None = None  # of the server that the flow at work has
_state: State | None = None  # what the flow has come to
_gone = threading.Event()
_begun = threading.Event()
_hurry = contextlib.ExitStack()  # never closed: what is entered holds until the process ends


def leave_dead() -> None:
    """Where the Prefect server that is set does not answer, begin this very command again with one of its own; it says
    so. Prefect itself would wait for minutes, or end with a traceback.

    Raises:
        UserError: the server is set in a place that is not ours to change.
    """
    url = PREFECT_API_URL.value()
    why = None if url is None else why_dead(str(url))
    if why is None:
        return
    words = f"Prefect's server at {mlflow_client.without_passwords(str(url))} does not answer ({why})"
    if "PREFECT_API_URL" not in os.environ:
        raise UserError(f"{words}. Start it, or take PREFECT_API_URL out of the profile: prefect config view")
    console.console.print(f"{words}. This run has a server of its own", style="yellow", markup=False)
    sys.stdout.flush()
    theirs = ("PREFECT_API_URL", "PREFECT_API_KEY", "PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING")
    environment = {name: value for name, value in os.environ.items() if name not in theirs}
    os.execve(sys.executable, sys.orig_argv, {**environment, OWN_SERVER: "yes"})  # noqa: S606 - itself, anew


def why_dead(url: str, seconds: float = 5.0) -> str | None:
    bare = mlflow_client.without_passwords(url, "")  # urllib would take it for a part of the host's name
    if not bare.lower().startswith(("http://", "https://")):
        return "its address has to begin with http:// or https://"
    try:
        with urllib.request.urlopen(f"{bare.rstrip('/')}/health", timeout=seconds):  # noqa: S310 - looked at above
            return None
    except urllib.error.HTTPError as error:  # "who are you?" is an answer
        return None if error.code < 500 else f"HTTP {error.code}"
    except (OSError, ValueError, http.client.HTTPException) as error:
        why = getattr(error, "reason", error)
        if isinstance(why, ssl.SSLCertVerificationError):  # it is there; whom to trust is said to Prefect
            return None
        return str(why) or type(error).__name__


def watch_own() -> None:
    """Have Prefect's embedded server, which this process is about to start, end with it: also by `kill -9`."""
    mark = os.environ[MARK] = processes.mark()
    _watches.append(  # or the pipe would be closed with the object
        subprocess.Popen(
            [sys.executable, "-m", "flows.watch", mark],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    )


# --- gone in the midst ---


def remember() -> None:
    """Called by a flow when it begins: which server it has, while there is one to be asked."""
    global _url  # noqa: PLW0603 - a process has one flow at a time
    with get_client(sync_client=True) as client:
        _url = str(client.api_url)
    _begun.set()


def url() -> str:
    """Of the server that the flow at work has."""
    assert _url is not None, "a flow calls remember() first"
    return _url


def decided(state: State) -> State:
    """Called by a flow as the last thing it does. Where the server has gone, Prefect is kept from asking it for
    minutes whether it may end so."""
    global _state  # noqa: PLW0603
    _state = state
    why = None if _url is None else why_dead(_url)
    if why is None:
        return state
    _gone.set()
    console.console.print(
        f"Prefect's server does not answer any more ({why}). The run went on without it; of how it ended, Prefect's "
        "pages know nothing",
        style="yellow",
        markup=False,
    )
    for name in ("prefect", "prefect.flow_runs", "prefect.task_runs", "prefect._internal"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    _hurry.enter_context(temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}))
    with contextlib.suppress(AttributeError):
        FlowRunContext.get().client._client.timeout = 1.0  # type: ignore[union-attr]
    return state


def outlived(flow: Callable[[], State]) -> State:
    """What ``flow`` comes to, by its own word, and not by what Prefect's client makes of a server that has gone.

    Raises:
        UserError: a server of the run's own did not start.
    """
    global _url, _state  # noqa: PLW0603
    _url = _state = None
    _gone.clear()
    _begun.clear()
    own = PREFECT_API_URL.value() is None
    try:
        with _started_again() if own else contextlib.nullcontext():
            state = flow()
    except Exception as error:
        if _own_word() is None:
            if own and not _begun.is_set() and isinstance(error, (RuntimeError, httpx.TransportError)):
                _gone.set()  # so `leave` ends the process, or Prefect would start one more for its last words
                raise _not_started(error) from error
            raise
    finally:
        _begun.set()
    return _own_word() or state


@contextlib.contextmanager
def _started_again() -> Iterator[None]:
    """Until the flow begins: a server of its own that ends is started again at once, and that ``STARTS`` times in all.

    Prefect starts one again at one exit status only, and then for ever; at any other it waits for its whole timeout. So
    it is told of that one status whichever it was, and of an error in place of one start too many.
    """
    from prefect.server.api.server import SubprocessASGIServer  # takes a second, which Prefect would take in a moment

    prefects: Any = SubprocessASGIServer
    prefects_own = prefects._run_uvicorn_command
    started: list[Any] = []

    def counted(server: Any) -> Any:
        if len(started) == STARTS and not _begun.is_set():
            last = started[-1].returncode
            raise RuntimeError(f"It ended {STARTS} times while it started, at last with exit status {last}")
        process: Any = _start(server.port)
        process.poll = functools.partial(_looked_at, process)
        started.append(process)
        return process

    prefects._run_uvicorn_command = counted
    try:
        yield
    finally:
        prefects._run_uvicorn_command = prefects_own


def _start(port: int) -> subprocess.Popen[bytes]:
    """The server's process, as Prefect has it."""
    ours = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
    settings = get_current_settings().to_environment_variables(exclude_unset=True)
    words = ["--host", "127.0.0.1", "--port", str(port), "--log-level", "error", "--lifespan", "on"]
    return subprocess.Popen(
        [sys.executable, "-m", "flows.own_server", "--factory", PROGRAM, *words],
        env={**os.environ, **ours, **settings, **own_server.ENVIRONMENT},
    )


def _looked_at(process: subprocess.Popen[bytes]) -> int | None:
    """What Prefect is told when it looks whether its server still starts."""
    code = subprocess.Popen.poll(process)
    return code if code is None or _begun.is_set() else _STARTS_ANEW


def _not_started(error: Exception) -> UserError:
    key = "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"
    seconds = PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.value()
    if isinstance(error, RuntimeError) and "Timed out" in str(error):
        why = f"Prefect's server did not start within {seconds} s; nothing has run"
        return UserError(f"{why}. Give it more time ({key}={max(300, 2 * seconds)}), or do without it: dvc repro")
    return UserError(
        f"Prefect's server did not start; nothing has run. {one_line(str(error)) or type(error).__name__}. What it "
        f"said stands above; its files are in {PREFECT_HOME.value()}. Without it: dvc repro"
    )


def has_gone() -> bool:
    """Whether a flow of this process has found, as it ended, that its server does not answer any more."""
    return _gone.is_set()


def _own_word() -> State | None:
    return _state if _gone.is_set() else None


def leave(code: int) -> int:
    """``code``; where the server has gone the process ends by it soon, whatever Prefect still wants to send."""
    if _gone.is_set():
        sys.stdout.flush()
        last = threading.Timer(GOODBYE_SECONDS, os._exit, (code,))
        last.daemon = True
        last.start()
    return code
