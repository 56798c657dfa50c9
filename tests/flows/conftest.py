"""A Prefect server for all tests of flows that are not about the server which a run starts by itself."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.toy import PROJECT, Toy


@pytest.fixture(scope="session")
def prefect_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home = tmp_path_factory.mktemp("prefect")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    env = kept | {"PREFECT_HOME": str(home), "PREFECT_API_URL": url, "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    command = ["-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port), "--log-level", "ERROR"]
    with (home / "log").open("w") as log:
        server = subprocess.Popen([sys.executable, *command], env=env, stdout=log, stderr=log, start_new_session=True)
    give_up = time.monotonic() + 180
    while True:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                break
        except (urllib.error.URLError, OSError):
            assert server.poll() is None and time.monotonic() < give_up, (home / "log").read_text()[-2000:]
            time.sleep(0.2)
    yield url
    os.killpg(server.pid, 15)
    try:
        server.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, 9)
        server.wait()


@pytest.fixture(scope="session")
def empty_record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's file without a run, whose tables take as long to make as three stages."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    made = f"from tasks.record import database; database.prepare('sqlite:///{path}')"
    subprocess.run([sys.executable, "-c", made], cwd=PROJECT, check=True, capture_output=True)
    return path


@pytest.fixture
def shared(toy: Toy, prefect_url: str, empty_record: Path) -> None:
    """The toy's runs are told to servers and files that are there already."""
    toy.env["PREFECT_API_URL"] = prefect_url
    if not (toy.root / "mlflow.db").exists():
        shutil.copy(empty_record, toy.root)
