"""Servers on this machine: `ui` to look at runs, `serve` for the nightly schedule. Both end with Ctrl-C.

Everything listens on loopback only. Prefect asks for this working copy's secret (flows/__init__.py): loopback alone
does not keep out a web page in a browser on this machine. MLflow asks nobody, and refuses foreign origins and hosts.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from flows import prefect_settings
from tasks import processes
from tasks.environment import child_environment, repository_root, set_environment
from tasks.record.mlflow_client import tracking_uri, without_passwords
from thinner.errors import UserError

HOST = "127.0.0.1"
POOL = "thinner"
PREFECT_PORT, MLFLOW_PORT = 4200, 5000  # the tools' own defaults; the next free one when taken
START_SECONDS = 120.0


def ui() -> int:
    """MLflow and Prefect, until Ctrl-C."""
    root = _prepare()
    with _Servers(root) as servers:
        mlflow_url = servers.mlflow()
        prefect_url = servers.prefect()
        print(
            f"\n  MLflow    {without_passwords(mlflow_url)}\n  Prefect   {without_passwords(prefect_url)}{_login()}"
            "\n\nCtrl-C ends both.",
            flush=True,
        )
        return servers.wait()


def serve() -> int:
    """Prefect's server and a worker; puts up the deployments of prefect.yaml."""
    root = _prepare()
    with _Servers(root) as servers:
        url = servers.prefect()
        api = os.environ.get("PREFECT_API_URL") or f"{url}/api"  # a person's own may end otherwise
        env = child_environment(PREFECT_API_URL=api, THINNER_ROOT=str(root))
        _once(env, "work-pool", "create", POOL, "--type", "process", "--overwrite")
        _once(env, "deploy", "--all")
        servers.start(
            "worker",
            env,
            "-m",
            "prefect",
            "worker",
            "start",
            "--pool",
            POOL,
            "--type",
            "process",
            "--name",
            "thinner-worker",
        )
        print(
            f"\n  Prefect   {without_passwords(url)}{_login()}\n\n"
            "By the schedule in prefect.yaml: thinner/nightly, thinner/on-new-data. "
            f"At once:\n  {_client(url)}.venv/bin/prefect deployment run thinner/nightly\n"
            "Ctrl-C ends the server and the worker.",
            flush=True,
        )
        return servers.wait()


def running_server(root: Path) -> str | None:
    """The address of the Prefect server that `make ui` or `make serve` has running for this folder."""
    return processes.url_of(root / ".thinner" / "prefect-server.json")


class _Servers:
    """Child processes that end together."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.logs = root / ".thinner" / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        self.note: Path | None = None
        self.before: dict[int, Any] = {}

    def __enter__(self) -> _Servers:
        # Started in the background of a script, SIGINT is ignored, and our children would inherit that. A closed
        # terminal says SIGHUP; with nohup it may be closed.
        wanted = [signal.SIGTERM, signal.SIGINT]
        wanted += [signal.SIGHUP] * (signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN)
        self.before = {number: signal.signal(number, _interrupt) for number in wanted}
        return self

    def __exit__(self, *_: object) -> None:
        for number in self.before:  # a closed terminal says it twice, and each child is to be ended
            signal.signal(number, signal.SIG_IGN)
        try:
            self._end_all()
        finally:
            for number, handler in self.before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _end_all(self) -> None:
        if self.note is not None:
            self.note.unlink(missing_ok=True)
        # The worker first: it passes the signal on to the flow it runs, which ends the stages and tells the
        # server.
        for child in reversed(self.children.values()):
            _end(child)

    def start(self, name: str, env: Mapping[str, str], *arguments: str) -> subprocess.Popen[bytes]:
        # What a worker says is what its flows say; the servers' own talk goes to a file.
        log = None if name == "worker" else (self.logs / f"{name}.log").open("w")
        # A session of its own: Ctrl-C reaches only us, and we end the children in the right order.
        child = subprocess.Popen(
            [sys.executable, *arguments],
            env=dict(env),
            cwd=self.root,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log and subprocess.STDOUT,
        )
        if log is not None:
            log.close()  # the child has its own copy
        self.children[name] = child
        return child

    def mlflow(self) -> str:
        uri = tracking_uri()
        if uri.startswith("http"):
            return uri  # somebody else's server: there is nothing to start
        port = _free_port(MLFLOW_PORT)
        # With its default four workers and job queue it takes 3.2 GB and 20 s; like this 0.5 GB and 8 s.
        # The address by the environment: in an argument everybody on this machine could read its password.
        env = child_environment(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false", MLFLOW_BACKEND_STORE_URI=uri)
        child = self.start(
            "MLflow",
            env,
            "-m",
            "mlflow",
            "server",
            "--host",
            HOST,
            "--port",
            str(port),
            "--workers",
            "1",
            "--app-name",
            "thinner",
            "--uvicorn-opts",
            "--log-level warning",
        )
        url = f"http://{HOST}:{port}"
        _await(f"{url}/health", child, "MLflow")
        return url

    def prefect(self) -> str:
        if shared := os.environ.get("PREFECT_API_URL"):
            return shared.rstrip("/").removesuffix("/api")
        if known := running_server(self.root):
            return known
        port = _free_port(PREFECT_PORT)
        url = f"http://{HOST}:{port}"
        env = child_environment(
            PREFECT_SERVER_UI_API_URL=f"{url}/api",
            PREFECT_API_URL=f"{url}/api",
            PREFECT_SERVER_CORS_ALLOWED_ORIGINS=url,
        )
        child = self.start(
            "Prefect",
            env,
            "-m",
            "prefect",
            "server",
            "start",
            "--host",
            HOST,
            "--port",
            str(port),
            "--log-level",
            "ERROR",
        )
        _await(f"{url}/api/health", child, "Prefect")
        _free_slots(env)  # of runs that a power cut ended: no worker is there yet
        started = processes.started(child.pid)
        self.note = self.root / ".thinner" / "prefect-server.json"
        self.note.parent.mkdir(exist_ok=True)
        self.note.write_text(json.dumps({"url": url, "pid": child.pid, "started": started}))
        return url

    def wait(self) -> int:
        """Until Ctrl-C (0) or until one of them ends by itself (1)."""
        try:
            while True:
                for name, child in self.children.items():
                    if child.poll() is not None:
                        print(
                            f"{name} ended with exit code {child.returncode}: see .thinner/logs",
                            file=sys.stderr,
                        )
                        return 1
                time.sleep(0.3)
        except KeyboardInterrupt:
            print("\nStopping.", flush=True)
            return 0


def _login() -> str:
    """What the browser asks for the first time, or nothing where the server is somebody's own."""
    secret = os.environ.get("PREFECT_SERVER_API_AUTH_STRING")
    if not secret:
        return ""
    asked = secret if sys.stdout.isatty() else "what .thinner/prefect-secret holds"  # others may read a log
    return f"\n            asks once for {asked}"


def _client(url: str) -> str:
    """The variables that a command of Prefect's needs to reach the server."""
    secret = "PREFECT_API_AUTH_STRING=$(cat .thinner/prefect-secret) " if _login() else ""
    return f"PREFECT_API_URL={without_passwords(url)}/api {secret}"


def _prepare() -> Path:
    root = repository_root()
    set_environment(root)
    return root


# Our server has just started, and its worker has not: what its database says is at work was killed with the one before
# (a power cut), and holds the one slot that its deployment has.
_FREE = """
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import StateType
from prefect.states import Crashed

BUSY = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
OF_A_DEPLOYMENT = {"deployment_id": {"is_null_": False}, "state": {"type": {"any_": BUSY}}}
with get_client(sync_client=True) as client:
    for run in client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(OF_A_DEPLOYMENT)):
        client.set_flow_run_state(run.id, Crashed(message="its machine or its server was stopped"), force=True)
        print(f"{run.name} was cut off: its server was killed, or the machine went down")
"""


def _free_slots(env: Mapping[str, str]) -> None:
    if prefect_settings.is_shared_database():  # another machine's server may have a worker
        print("What Prefect's shared database holds for running is left alone. After a power cut: its pages, Flow Runs")
        return
    done = subprocess.run([sys.executable, "-c", _FREE], env=dict(env), text=True, capture_output=True, check=False)
    print(done.stdout, end="", flush=True)
    if done.returncode:
        raise UserError(f"Prefect's server did not say what it holds for running:\n{done.stderr.strip()[-2000:]}")


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _once(env: Mapping[str, str], *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", *arguments],
        env=dict(env),
        text=True,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise UserError(f"prefect {' '.join(arguments)} failed:\n{(done.stdout + done.stderr).strip()[-2000:]}")


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is not None:
        return
    members = psutil.Process(child.pid).children(recursive=True)
    child.terminate()
    try:
        child.wait(timeout=20)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    for member in members:
        try:
            member.terminate()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(members, timeout=5)


def _free_port(first: int) -> int:
    for port in range(first, first + 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise UserError(f"no free port between {first} and {first + 99}")


def _await(url: str, child: subprocess.Popen[bytes], name: str) -> None:
    give_up = time.monotonic() + START_SECONDS
    print(f"starting {name} ...", flush=True)
    while time.monotonic() < give_up:
        if child.poll() is not None:
            raise UserError(f"{name} ended while it started, with exit code {child.returncode}: see .thinner/logs")
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 - on loopback, and made here
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise UserError(f"{name} did not answer at {url} within {START_SECONDS:.0f} s")


if __name__ == "__main__":
    try:
        sys.exit({"ui": ui, "serve": serve}[sys.argv[1]]())
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
