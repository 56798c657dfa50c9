"""flows/serve.py: what is printed, and the schedule after a power cut."""

import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from flows import serve
from tests.servers import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
# Starts the server as `thinner serve` does, does something with it, and is gone as by a power cut.
WITH_A_SERVER = """
import os, signal, subprocess, sys
from pathlib import Path
from flows import serve
from tasks.environment import child_environment, set_environment

set_environment(Path.cwd())
with serve._Servers(Path.cwd()) as servers:
    env = child_environment(PREFECT_API_URL=servers.prefect() + "/api")
    if sys.argv[1] == "freed":
        serve._free_slots(env)
    subprocess.run([sys.executable, "-c", sys.argv[2], sys.argv[1]], env=env, check=True)
    for child in servers.children.values():
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
"""
BEGIN_A_RUN = """
import sys
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import ConcurrencyOptions
from prefect.states import Pending, Running

with get_client(sync_client=True) as client:
    flow = client.create_flow_from_name("it")
    deployment = client.create_deployment(
        flow, "nightly", concurrency_limit=1,
        concurrency_options=ConcurrencyOptions(collision_strategy="CANCEL_NEW"),
    )
    run = client.create_flow_run_from_deployment(deployment, name=sys.argv[1])
    client.set_flow_run_state(run.id, Pending())
    if client.read_flow_run(run.id).state.is_pending():
        client.set_flow_run_state(run.id, Running())
    print("the run", sys.argv[1], "is", client.read_flow_run(run.id).state_type.value)
"""


@pytest.mark.long
def test_a_run_that_died_with_its_server_does_not_hold_its_deployments_slot(tmp_path: Path) -> None:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "THINNER_", "MLFLOW_"))}
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "params.yaml").write_text("")
    said = {}
    for what in ("first", "next", "freed"):
        done = subprocess.run(
            [sys.executable, "-c", WITH_A_SERVER, what, BEGIN_A_RUN], cwd=tmp_path, text=True, capture_output=True,
            env={**kept, "PYTHONPATH": str(ROOT), "PREFECT_HOME": str(tmp_path / ".prefect")}, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        said[what] = done.stdout
    assert "the run first is RUNNING" in said["first"]
    assert "the run next is CANCELLED" in said["next"]  # what Prefect does, for ever
    assert "first was cut off: its server was killed, or the machine went down" in said["freed"]
    assert "the run freed is RUNNING" in said["freed"]


def test_a_secret_is_shown_to_a_terminal_and_kept_out_of_a_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "thinner:hidden")
    assert "hidden" not in serve._login() and ".thinner/prefect-secret" in serve._login()
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert "asks once for thinner:hidden" in serve._login()
    assert "word" not in serve._client("https://me:word@host")


def test_what_mlflow_is_told_of_a_database_is_in_no_list_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:secret@host/runs")
    monkeypatch.setattr(serve, "_await", lambda *_: None)
    servers = serve._Servers(tmp_path)
    seen = {}
    monkeypatch.setattr(servers, "start", lambda name, env, *words: seen.update(env=env, words=words))
    servers.mlflow()
    assert seen["env"]["MLFLOW_BACKEND_STORE_URI"] == "postgresql://me:secret@host/runs"
    assert "secret" not in " ".join(seen["words"])


@pytest.mark.integration
def test_mlflows_assistant_which_would_run_commands_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    servers = serve._Servers(tmp_path)
    try:
        url = servers.mlflow()
        asked = urllib.request.Request(
            f"{url}/ajax-api/3.0/mlflow/assistant/config", b"{}", {"Content-Type": "application/json"}, method="PUT"
        )
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(asked, timeout=PATIENCE)
        with urllib.request.urlopen(f"{url}/api/2.0/mlflow/experiments/search?max_results=1", timeout=PATIENCE) as it:
            assert b"experiments" in it.read()
    finally:
        servers.__exit__()
