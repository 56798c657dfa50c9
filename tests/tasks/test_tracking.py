"""tasks/tracking.py against a real SQLite store. MLflow itself takes seconds to import: one store for the
module."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import pytest

from tasks import tracking
from tasks.tracking import Recorder
from tests.toy import PROJECT
from thinner.errors import UserError

# MLflow and what it imports deprecate things of their own; SQLite's connections are closed by the garbage
# collector.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tracking")


@pytest.fixture
def store(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "THINNER_PARENT_RUN_ID", "THINNER_FLOW"):
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
    assert tracking.flatten({"a": {"b": {"c": 1}, "d": [1, 2]}, "e": {}}) == {
        "a.b.c": 1,
        "a.d": [1, 2],
        "e": {},
    }


def test_candidate_metrics_are_the_numbers_and_those_of_the_shipped_one_have_the_names_of_every_run() -> None:
    report = {"distill": {"accuracy": 0.5, "device": "cpu", "macs": 10}, "prune": {"accuracy": 0.4}}
    assert tracking.candidate_metrics(report, "prune") == {
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
    before = tracking.read_joules(tmp_path)
    assert len(before) == 2  # a processor's part is in it already
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("950000000\n")  # 50 J
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("25000000\n")  # 100 J to the turn, and 25
    assert tracking.joules_since(before) == {"system/energy_joules": pytest.approx(175.0)}
    assert tracking.joules_since(tracking.read_joules(tmp_path / "none")) == {}


def test_default_address_is_the_repository_that_the_person_sees(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", "/original")  # as inside `dvc exp run --temp`
    assert tracking.tracking_uri() == "sqlite:////original/mlflow.db"
    monkeypatch.delenv("DVC_ROOT")
    assert tracking.tracking_uri() == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://example.org")
    assert tracking.tracking_uri() == "http://example.org"


def test_everything_given_to_a_recorder_is_in_the_run(store: Path) -> None:
    recorder = tracking.start_stage_run("finetune", {"training": {"lr": 0.1}}, "hash-1", {}, "cpu")
    for step in range(2_500):  # more than MLflow takes in one call
        recorder.metrics({"loss": float(step)}, step=step)
    recorder.params({f"p{n}": n for n in range(250)})
    recorder.dataset("digits", "ab" * 32, store, {"test": 10})
    (store / "curve.csv").write_text("a,b")
    recorder.artifact(store / "curve.csv", "reports")
    recorder.figures({"first": figure([1, 2]), "second": figure([3, 4])})
    recorder.metrics({"train/lr": 0.1, "train/loss": 2.0, "val/accuracy": 0.5, "val/loss": 3.0}, step=1)
    recorder.end("FINISHED")

    client, _ = tracking.connect()
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
    monkeypatch.setattr(tracking, "POWER", store / "no counters")
    parent = tracking.open_pipeline_run()
    monkeypatch.setenv("THINNER_PARENT_RUN_ID", parent)
    upstream = tracking.start_stage_run("prepare", {}, "hash-p", {}, "cpu")
    failed = tracking.start_stage_run("prepare", {}, "hash-p", {}, "cpu")
    upstream.end("FINISHED")
    failed.end("FAILED")  # newer, but it made nothing
    also = tracking.start_stage_run("prune_also@finetune", {}, "hash-a", {}, "cpu")
    also.end("FINISHED")
    stage = tracking.start_stage_run(
        "evaluate", {}, "hash-2", {"prepare": "hash-p", "other": "none", "prune_also@finetune": "hash-a"}, "cpu"
    )
    stage.end("FINISHED")

    client, _ = tracking.connect()
    tags = client.get_run(stage.run_id).data.tags
    assert tags["upstream.prepare"] == upstream.run_id
    assert tags["upstream.prune_also.finetune"] == also.run_id
    assert "upstream.other" not in tags
    assert tags["mlflow.parentRunId"] == parent

    reported = tracking.start_stage_run("report", {}, "hash-r", {}, "cpu")
    reported.figures({"first": figure([1, 2])})
    reported.end("FINISHED")

    (store / "reports").mkdir(exist_ok=True)
    (store / "reports/report.html").write_text("<p>all is well</p>")
    (store / "reports/metrics.json").write_text('{"prune": {"accuracy": 0.75}, "distill": {"accuracy": 0.5}}')
    shutil.copy(PROJECT / "params.yaml", store)  # ship.candidate is prune
    claim = "prune agrees with distill on 98 % of images"
    (store / "reports/claims.json").write_text(json.dumps({"claim_1": {"claim": claim, "outcome": "proven"}}))
    tracking.close_pipeline_run(
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
    client, experiment = tracking.connect()
    tags = {"host": socket.gethostname(), "pid": "1", "pid.started": "0"}  # process 1 did not start in 1970
    dead = client.create_run(experiment, tags=tags).info.run_id
    elsewhere = client.create_run(experiment, tags=tags | {"host": "another-machine"}).info.run_id
    living = tracking.start_stage_run("scratch", {}, "hash-3", {}, "cpu")
    tracking.open_pipeline_run()
    assert client.get_run(dead).info.status == "KILLED"
    assert client.get_run(elsewhere).info.status == "RUNNING"
    assert client.get_run(living.run_id).info.status == "RUNNING"
    living.end("FINISHED")


def test_a_store_that_breaks_in_the_middle_is_told_once_and_stops_nothing(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder = tracking.start_stage_run("scratch", {}, "hash-4", {}, "cpu")
    recorder.artifact(store / "missing.csv")
    recorder.metrics({"loss": 1.0})
    recorder.artifact(store / "missing.csv")
    recorder.end("FINISHED")
    assert capsys.readouterr().err.count("no longer answers") == 1


def test_a_server_that_is_down_is_named_within_seconds(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tasks.tracking", "open"],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        check=False,
        timeout=60,
        env=os.environ | {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "PYTHONPATH": str(PROJECT)},
    )
    assert done.returncode == 1
    assert "MLflow at http://127.0.0.1:9 cannot be used" in done.stderr
    assert "unset MLFLOW_TRACKING_URI" in done.stderr
    assert "Traceback" not in done.stderr


def test_any_error_of_the_transport_names_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://example.org")
    with (
        pytest.raises(UserError, match=r"MLflow at http://example\.org cannot be used: refused"),
        tracking.reachable(),
    ):
        raise OSError("refused")
