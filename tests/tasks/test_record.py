"""tasks/record/mlflow_client.py against a real SQLite store. MLflow itself takes seconds to import: one store for the
module."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import pytest

from tasks.environment import MLFLOW_PATIENCE
from tasks.record import mlflow_client, pipeline_run, stage_run, unsent
from tasks.record.stage_run import Recorder
from tests.servers import free_port
from tests.toy import PROJECT, eventually
from thinner.errors import UserError

# MLflow and what it imports deprecate things of their own; SQLite's connections are closed by the garbage
# collector.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(
    ("told", "name", "tags"),
    [
        ("", "distill", {}),
        ("kd seed 3", "distill kd seed 3", {"variant": "kd", "seed": "3"}),
        ("a seed b seed 0", "distill a seed b seed 0", {"variant": "a seed b", "seed": "0"}),
        ("trial 4", "distill trial 4", {"variant": "trial 4"}),
    ],
)
def test_a_run_says_of_which_variant_and_seed_it_is(
    monkeypatch: pytest.MonkeyPatch, told: str, name: str, tags: dict[str, str]
) -> None:
    monkeypatch.setenv(mlflow_client.VARIANT, told)
    assert mlflow_client.name_and_tags("distill") == (name, tags)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tracking")


@pytest.fixture
def store(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in (
        "MLFLOW_TRACKING_URI",
        "MLFLOW_EXPERIMENT_NAME",
        "THINNER_PARENT_RUN_ID",
        "THINNER_FLOW",
        "THINNER_UNSENT",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DVC_ROOT", str(home))
    monkeypatch.chdir(home)
    return home


def test_a_recorder_without_a_run_does_nothing(tmp_path: Path) -> None:
    recorder = Recorder()
    recorder.metrics({"loss": 1.0}, step=1)
    recorder.params({"lr": 1})
    recorder.tags({"a": "b"})
    recorder.dataset("x", "0" * 64, tmp_path, {"test": 1})
    recorder.artifact(tmp_path / "missing")
    recorder.end("FINISHED")


def test_flatten_gives_dotted_names() -> None:
    assert stage_run.flatten({"a": {"b": {"c": 1}, "d": [1, 2]}, "e": {}}) == {
        "a.b.c": 1,
        "a.d": [1, 2],
        "e": {},
    }


def test_candidate_metrics_are_the_numbers_and_those_of_the_shipped_one_have_the_names_of_every_run() -> None:
    report = {"distill": {"accuracy": 0.5, "device": "cpu", "macs": 10}, "prune": {"accuracy": 0.4}}
    assert pipeline_run.candidate_metrics(report, "prune") == {
        "test/distill/accuracy": 0.5,
        "test/distill/macs": 10.0,
        "test/prune/accuracy": 0.4,
        "test/accuracy": 0.4,
    }


def test_energy_is_the_difference_of_the_counters_also_when_they_start_anew(tmp_path: Path) -> None:
    for zone, turn in (("intel-rapl:0", 1000), ("intel-rapl:1", 1000), ("intel-rapl:0:0", 1000)):
        (tmp_path / zone).mkdir()
        (tmp_path / zone / "energy_uj").write_text("900000000\n")
        (tmp_path / zone / "max_energy_range_uj").write_text(f"{turn}000000\n")
    before = stage_run.read_joules(tmp_path)
    assert len(before) == 2  # a processor's part is in it already
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("950000000\n")  # 50 J
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("25000000\n")  # 100 J to the turn, and 25
    assert stage_run.joules_since(before) == {"system/energy_joules": pytest.approx(175.0)}
    assert stage_run.joules_since(stage_run.read_joules(tmp_path / "none")) == {}


def test_default_address_is_the_repository_that_the_person_sees(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", "/original")  # as inside `dvc exp run --temp`
    assert mlflow_client.tracking_uri() == "sqlite:////original/mlflow.db"
    monkeypatch.delenv("DVC_ROOT")
    assert mlflow_client.tracking_uri() == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://example.org")
    assert mlflow_client.tracking_uri() == "http://example.org"


def test_everything_given_to_a_recorder_is_in_the_run(store: Path) -> None:
    recorder = stage_run.start("finetune", {"training": {"lr": 0.1}}, "hash-1", {}, "cpu")
    for step in range(2_500):  # more than MLflow takes in one call
        recorder.metrics({"loss": float(step)}, step=step)
    recorder.params({f"p{n}": n for n in range(250)})
    recorder.dataset("digits", "ab" * 32, store, {"test": 10})
    (store / "curve.csv").write_text("a,b")
    recorder.artifact(store / "curve.csv", "reports")
    recorder.figures({"first": figure([1, 2]), "second": figure([3, 4])})
    recorder.metrics({"train/lr": 0.1, "train/loss": 2.0, "val/accuracy": 0.5, "val/loss": 3.0}, step=1)
    recorder.end("FINISHED")

    client, _ = mlflow_client.connect()
    run = client.get_run(recorder.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "finetune"
    assert run.data.params["training.lr"] == "0.1"
    assert run.data.params["p249"] == "249"
    assert [m.value for m in client.get_metric_history(recorder.run_id, "loss")] == [float(n) for n in range(2_500)]
    assert run.data.tags["data.sha256"] == "ab" * 32
    assert run.data.tags["dvc.stage_hash"] == "hash-1"
    assert run.data.tags["version.torch"]
    assert run.inputs.dataset_inputs[0].dataset.name == "digits"
    assert [file.path for file in client.list_artifacts(recorder.run_id, "reports")] == ["reports/curve.csv"]
    # what MLflow's Compare page begins with
    curve = [name for name in run.data.metrics if name.startswith(("val/", "train/"))]
    assert curve == ["val/accuracy", "val/loss", "train/lr", "train/loss"]
    assert artifacts(client, recorder.run_id, "figures") == {
        "figures/all.html",
        "figures/first.json",
        "figures/second.json",
    }
    page = Path(client.download_artifacts(recorder.run_id, "figures/all.html", str(store))).read_text()
    assert page.count("Plotly.newPlot(") >= 2
    assert page.index("<h2>first</h2>") < page.index("<h2>second</h2>")
    assert 4e6 < len(page) < 6e6  # the library is in it, once
    assert not re.search(r"<script[^>]* src=", page)


def figure(heights: list[int]) -> go.Figure:
    return go.Figure(go.Bar(y=heights))


def artifacts(client: Any, run: str | None, folder: str | None = None) -> set[str]:
    return {file.path for file in client.list_artifacts(run, folder)}


def test_a_stage_names_the_runs_of_its_upstream_stages_and_its_parent(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_run, "POWER", store / "no counters")
    parent = pipeline_run.open_run()
    monkeypatch.setenv("THINNER_PARENT_RUN_ID", parent)
    upstream = stage_run.start("prepare", {}, "hash-p", {}, "cpu")
    failed = stage_run.start("prepare", {}, "hash-p", {}, "cpu")
    upstream.end("FINISHED")
    failed.end("FAILED")  # newer, but it made nothing
    also = stage_run.start("prune_also@finetune", {}, "hash-a", {}, "cpu")
    also.end("FINISHED")
    stage = stage_run.start(
        "evaluate", {}, "hash-2", {"prepare": "hash-p", "other": "none", "prune_also@finetune": "hash-a"}, "cpu"
    )
    stage.end("FINISHED")

    client, _ = mlflow_client.connect()
    tags = client.get_run(stage.run_id).data.tags
    assert tags["upstream.prepare"] == upstream.run_id
    assert tags["upstream.prune_also.finetune"] == also.run_id
    assert "upstream.other" not in tags
    assert tags["mlflow.parentRunId"] == parent

    reported = stage_run.start("report", {}, "hash-r", {}, "cpu")
    reported.figures({"first": figure([1, 2])})
    reported.end("FINISHED")

    (store / "reports").mkdir(exist_ok=True)
    (store / "reports/report.html").write_text("<p>all is well</p>")
    (store / "reports/metrics.json").write_text('{"prune": {"accuracy": 0.75}, "distill": {"accuracy": 0.5}}')
    shutil.copy(PROJECT / "params.yaml", store)  # ship.candidate is prune
    claim = "prune agrees with distill on 98 % of images"
    (store / "reports/claims.json").write_text(
        json.dumps({"claim_1": {"claim": claim, "kind": "beats", "outcome": "proven"}})
    )
    pipeline_run.close_run(
        parent,
        "FINISHED",
        {
            "prepare": {"state": "Cached", "hash": "hash-p"},
            "scratch": {"state": "NotReady", "hash": ""},
            "prune_also@finetune": {"state": "Completed", "hash": "hash-a"},
            "report": {"state": "Cached", "hash": "hash-r"},
        },
    )
    closed = client.get_run(parent)
    assert closed.info.status == "FINISHED"
    assert closed.data.tags["stage.prepare"] == upstream.run_id
    assert closed.data.tags["stage.prune_also.finetune"] == also.run_id
    took = closed.data.tags["mlflow.note.content"].split("| prepare | Cached |")[1].splitlines()[0]
    made = client.get_run(upstream.run_id).info
    assert f"| {(made.end_time - made.start_time) / 1000:.0f} s | not told |" in took
    assert "| scratch | NotReady | not recorded |" in closed.data.tags["mlflow.note.content"]
    assert "| stage | state | run | took | energy |" in closed.data.tags["mlflow.note.content"]
    assert closed.data.metrics["test/accuracy"] == closed.data.metrics["test/prune/accuracy"] == 0.75
    assert closed.data.metrics["test/distill/accuracy"] == 0.5
    assert closed.data.params["ship.candidate"] == "prune"
    assert closed.data.tags["claim.1"] == f"proven: {claim}"
    assert closed.data.metrics["claims/proven"] == 1
    assert artifacts(client, parent) >= {"metrics.json", "claims.json", "params.yaml", "report.html"}
    assert artifacts(client, parent, "tables") == {"tables/candidates.json", "tables/claims.json"}
    assert artifacts(client, parent, "figures") == {"figures/all.html", "figures/first.json"}
    # not by load_table, which looks where other tests of this process have pointed MLflow
    table = json.loads(Path(client.download_artifacts(parent, "tables/candidates.json", str(store))).read_text())
    assert pd.DataFrame(table["data"], columns=table["columns"])["accuracy"].tolist() == [0.75, 0.5]


def test_runs_of_killed_processes_are_marked_by_the_next_pipeline_run(store: Path) -> None:
    client, experiment = mlflow_client.connect()
    tags = {"host": socket.gethostname(), "pid": "1", "pid.started": "-9"}  # process 1 did not start then
    dead = client.create_run(experiment, tags=tags).info.run_id
    elsewhere = client.create_run(experiment, tags=tags | {"host": "another-machine"}).info.run_id
    living = stage_run.start("scratch", {}, "hash-3", {}, "cpu")
    pipeline_run.open_run()
    assert client.get_run(dead).info.status == "KILLED"
    assert client.get_run(elsewhere).info.status == "RUNNING"
    assert client.get_run(living.run_id).info.status == "RUNNING"
    living.end("FINISHED")


def test_an_experiment_that_was_deleted_in_the_pages_is_restored_and_said(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client, experiment = mlflow_client.connect()
    client.delete_experiment(experiment)
    recorder = stage_run.start("scratch", {}, "hash-deleted", {}, "cpu")
    recorder.end("FINISHED")
    assert client.get_run(recorder.run_id).info.experiment_id == experiment
    assert client.get_experiment(experiment).lifecycle_stage == "active"
    assert "was deleted; it is restored" in capsys.readouterr().err


def test_what_cannot_be_recorded_is_told_and_stops_nothing(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorder = stage_run.start("scratch", {}, "hash-4", {}, "cpu")
    recorder.artifact(store / "missing.csv")
    recorder.metrics({"loss": 1.0})
    recorder.artifact(store / "missing.csv")
    recorder.end("FINISHED")
    assert capsys.readouterr().err.count("could not be recorded") == 1
    assert mlflow_client.connect()[0].get_run(recorder.run_id).data.metrics["loss"] == 1.0  # and all else is


def test_a_record_so_slow_that_its_run_ends_before_it_has_all_says_what_is_lost(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stage_run, "LAST_SECONDS", 0.1)
    recorder = stage_run.start("scratch", {}, "hash-slow", {}, "cpu")
    working, answered = recorder._client, threading.Event()

    class Slow:
        def __getattr__(self, name: str) -> Any:
            if name != "set_terminated":
                assert answered.wait(60)
            return getattr(working, name)

    recorder._client = Slow()
    recorder.metrics({"loss": 1.0})
    recorder.end("FINISHED")
    assert f"run {recorder.run_id} had not sent within 0.1 s of its end is lost" in capsys.readouterr().err
    answered.set()
    recorder._thread.join(60)


@pytest.fixture
def kept(store: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """As if MLflow did not answer: what is recorded from here on goes to the store of what is unsent."""
    monkeypatch.setenv("THINNER_UNSENT", "yes")
    return monkeypatch


@pytest.mark.integration
def test_what_was_kept_is_sent_whole(store: Path, kept: pytest.MonkeyPatch) -> None:
    parent = pipeline_run.open_run()
    kept.setenv("THINNER_PARENT_RUN_ID", parent)
    first = stage_run.start("prepare", {}, "hash-k1", {}, "cpu")
    first.end("FINISHED")
    second = stage_run.start("distill", {"lr": 0.1}, "hash-k2", {"prepare": "hash-k1"}, "cpu")
    for step in range(2_500):
        second.metrics({"loss": float(step)}, step=step)
    second.dataset("digits", "ab" * 32, store, {"test": 10})
    (store / "curve.csv").write_text("a,b")
    second.artifact(store / "curve.csv", "reports")
    second.end("FAILED")
    living = stage_run.start("scratch", {}, "hash-k3", {}, "cpu")  # is still at it
    pipeline_run._end(parent, "FINISHED")
    kept.setenv("THINNER_UNSENT", "no")
    client, experiment = mlflow_client.connect()
    before = len(client.search_runs([experiment]))

    assert mlflow_client.sync() == 3
    runs = {run.data.tags.get("stage"): run for run in client.search_runs([experiment], max_results=4)}
    assert len(client.search_runs([experiment])) == before + 4
    assert [m.value for m in client.get_metric_history(runs["distill"].info.run_id, "loss")] == [
        float(n) for n in range(2_500)
    ]
    assert runs["distill"].info.status == "FAILED" and runs["distill"].data.params["lr"] == "0.1"
    assert runs["distill"].info.start_time <= runs["distill"].info.end_time
    assert runs["distill"].inputs.dataset_inputs[0].dataset.name == "digits"
    assert artifacts(client, runs["distill"].info.run_id, "reports") == {"reports/curve.csv"}
    # they name one another by the names that they have there
    assert runs["distill"].data.tags["upstream.prepare"] == runs["prepare"].info.run_id
    assert runs["distill"].data.tags["mlflow.parentRunId"] == runs["pipeline"].info.run_id
    assert unsent.is_any() and mlflow_client.sync() == 0
    living.metrics({"loss": 7.0})
    living.end("FINISHED")
    assert mlflow_client.sync() == 1 and len(client.search_runs([experiment])) == before + 4
    assert not unsent.is_any() and mlflow_client.sync() == 0
    assert not any(file.is_file() for file in (store / ".thinner/unsent/artifacts").rglob("*"))


@pytest.mark.integration
def test_sending_that_is_cut_off_goes_on_and_makes_no_run_twice(store: Path, kept: pytest.MonkeyPatch) -> None:
    for number in range(3):
        recorder = stage_run.start("scratch", {}, f"hash-c{number}", {}, "cpu")
        recorder.metrics({"loss": float(number)})
        recorder.end("FINISHED")
    kept.setenv("THINNER_UNSENT", "no")
    client, experiment = mlflow_client.connect()
    before = len(client.search_runs([experiment]))
    send, calls = unsent._send_one, []

    def cut_off(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise ConnectionError("the line is dead")
        send(*arguments)

    kept.setattr(unsent, "_send_one", cut_off)
    with pytest.raises(UserError, match="the line is dead"):
        mlflow_client.sync()
    kept.setattr(unsent, "_send_one", send)
    assert mlflow_client.sync() == 2
    runs = client.search_runs([experiment], max_results=3)
    assert len(client.search_runs([experiment])) == before + 3
    assert sorted(run.data.metrics["loss"] for run in runs) == [0.0, 1.0, 2.0]


def _server(folder: Path, port: int) -> "subprocess.Popen[bytes]":
    process = subprocess.Popen(
        [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
            "--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", str(folder / "there"),
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip

    def answers() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as line:
            line.sendall(b"GET /health HTTP/1.0\r\n\r\n")
            return b"200" in line.recv(100)
        return False

    eventually(answers)
    return process


@pytest.mark.integration
@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.long)])
def test_a_server_that_dies_or_hangs_in_the_middle_misses_nothing(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], how: int
) -> None:
    port = free_port()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    server = _server(tmp_path, port)
    try:
        recorder = stage_run.start("distill", {}, "hash-s", {}, "cpu")
        run_id = recorder.run_id
        recorder.metrics({"loss": 1.0}, step=1)
        time.sleep(2 * stage_run.FLUSH_SECONDS)
        os.killpg(server.pid, how)
        for name, value in MLFLOW_PATIENCE.items():
            monkeypatch.setenv(name, value)
        recorder.metrics({"loss": 2.0}, step=2)
        (store / "curve.csv").write_text("a,b")
        began = time.monotonic()
        recorder.artifact(store / "curve.csv")
        assert time.monotonic() - began < 200  # 22 on a quiet machine, with MLflow's defaults 240
        recorder.end("FINISHED")
        assert capsys.readouterr().err.count("no longer answers") == 1
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        server = _server(tmp_path, port)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
        assert mlflow_client.sync() == 1
        client, _ = mlflow_client.connect()
        run = client.get_run(run_id)
        assert run.info.status == "FINISHED" and run.info.run_name == "distill"
        assert run.data.tags["stage"] == "distill"
        assert [m.value for m in client.get_metric_history(run_id, "loss")] == [1.0, 2.0]
        assert artifacts(client, run_id) == {"curve.csv"}
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.mark.integration
@pytest.mark.parametrize("late", ["create_run", "set_terminated"])
def test_a_server_that_goes_away_after_its_first_answer_is_as_one_that_was_never_there(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], late: str
) -> None:
    from mlflow.exceptions import MlflowException

    class Slow:
        """A client of the store, but for one call that takes too long."""

        def __init__(self, client: Any) -> None:
            self._client = client

        def __getattr__(self, name: str) -> Any:
            return self._times_out if name == late else getattr(self._client, name)

        def _times_out(self, *arguments: Any, **named: Any) -> None:
            raise MlflowException("API request failed: Read timed out. (read timeout=10)")  # as MLflow words it

    connect = mlflow_client.connect

    def connect_to_slow() -> tuple[Any, str]:
        client, experiment = connect()
        return Slow(client), experiment

    monkeypatch.setattr(mlflow_client, "connect", connect_to_slow)
    run_id = pipeline_run.open_run("late")
    recorder = stage_run.start("distill", {}, f"hash-{late}", {}, "cpu")
    recorder.metrics({"loss": 1.0}, step=1)
    recorder.end("FINISHED")
    pipeline_run._end(run_id, "FINISHED")
    said = capsys.readouterr().err
    assert said.count("warning") == (1 if late == "create_run" else 2) and "All goes on" in said

    monkeypatch.setattr(mlflow_client, "connect", connect)
    monkeypatch.delenv("THINNER_UNSENT", raising=False)
    assert mlflow_client.sync() == 2
    client, experiment = mlflow_client.connect()
    runs = client.search_runs([experiment], f"tags.`dvc.stage_hash` = 'hash-{late}'")
    assert [run.data.metrics["loss"] for run in runs] == [1.0]
    above = client.search_runs([experiment], "tags.stage = 'study'")
    assert {run.info.status for run in (*runs, *above)} == {"FINISHED"}
    for run in above:
        client.delete_run(run.info.run_id)


def test_what_is_recorded_while_the_record_changes_places_is_in_it(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stage_run, "FLUSH_SECONDS", 0.05)
    recorder = stage_run.start("distill", {}, "hash-r", {}, "cpu")
    working, continued = recorder._client, mlflow_client.continued

    class Gone:
        def __getattr__(self, name: str) -> Any:
            raise ConnectionError("reset by peer")

    def slowly(run_id: str) -> Any:
        recorder.metrics({"loss": 2.0}, step=2)
        time.sleep(0.5)  # the sender wakes ten times
        return continued(run_id)

    monkeypatch.setattr(mlflow_client, "continued", slowly)
    recorder._client = Gone()
    (store / "curve.csv").write_text("a,b")
    recorder.artifact(store / "curve.csv")
    recorder.end("FINISHED")
    assert capsys.readouterr().err.count("no longer answers") == 1
    client, run_id = recorder._client, recorder.run_id
    assert client is not working
    assert [m.value for m in client.get_metric_history(run_id, "loss")] == [2.0]
    assert artifacts(client, run_id) == {"curve.csv"}


@pytest.mark.integration
def test_a_server_that_is_down_is_named_within_seconds(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tasks.record.pipeline_run", "hold"],
        cwd=tmp_path,
        input="null\n",
        text=True,
        capture_output=True,
        check=False,
        timeout=600,
        env=os.environ | {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "PYTHONPATH": str(PROJECT)},
    )
    assert done.returncode == 0
    kept, _, said = json.loads(done.stdout)
    assert kept and not done.stderr
    assert "MLflow at http://127.0.0.1:9 cannot be used" in said
    assert "thinner sync" in said and "\n" not in said


def test_any_error_of_the_transport_names_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://example.org")
    with (
        pytest.raises(UserError, match=r"MLflow at http://example\.org cannot be used: refused"),
        mlflow_client.reachable(),
    ):
        raise OSError("refused")
