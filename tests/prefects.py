"""One Prefect server for all tests of a run that are not about the server which a flow starts by itself: processes of the
tests share it, as each takes as long to start as several flows take to run."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import psutil

from flows.own_server import ENVIRONMENT
from tasks import processes
from tests.empty import put_prefect
from tests.servers import answers, end_group, free_port, wait_until


def url(share: Path) -> str:
    """Its address; the first that asks starts it. ``share`` is a folder of the run."""
    told = share / "prefect.url"
    with processes.only_one(share / "prefect.lock"):
        if not told.exists():
            told.write_text(_start(share))
    return told.read_text()


def _start(share: Path) -> str:
    home = share / "prefect"
    put_prefect(home)
    port = free_port()
    address = f"http://127.0.0.1:{port}/api"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")} | ENVIRONMENT
    env = kept | {"PREFECT_HOME": str(home), "PREFECT_API_URL": address, "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    command = ["-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port), "--log-level", "ERROR"]
    with (home / "log").open("w") as log:
        server = subprocess.Popen([sys.executable, *command], env=env, stdout=log, stderr=log, start_new_session=True)
    (share / "prefect.pid").write_text(str(server.pid))
    wait_until(lambda: answers(f"{address}/health"), server, home / "log")
    server.returncode = 0  # or Popen complains that whoever started it leaves it
    return address


def end(share: Path) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        end_group(psutil.Process(int((share / "prefect.pid").read_text())))
