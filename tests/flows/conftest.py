"""A Prefect server for all tests of flows that are not about the server which a run starts by itself."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.servers import answers, end_group, free_port, wait_until
from tests.toy import Toy


@pytest.fixture(scope="session")
def prefect_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home = tmp_path_factory.mktemp("prefect")
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    env = kept | {"PREFECT_HOME": str(home), "PREFECT_API_URL": url, "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    command = ["-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port), "--log-level", "ERROR"]
    with (home / "log").open("w") as log:
        server = subprocess.Popen([sys.executable, *command], env=env, stdout=log, stderr=log, start_new_session=True)
    wait_until(lambda: answers(f"{url}/health"), server, home / "log", 180)
    yield url
    end_group(server)


@pytest.fixture
def shared(toy: Toy, prefect_url: str) -> None:
    """The toy's runs are told to a server that is there already."""
    toy.env["PREFECT_API_URL"] = prefect_url
