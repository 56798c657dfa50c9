"""tasks/report.py: what it reads back from the record. What it makes of results is in test_evaluate.py."""

import shutil
from pathlib import Path

import pytest

from tasks import lineage
from tasks.record import mlflow_client, stage_run
from tasks.report import _runs
from tasks.stage import Stage
from tests.toy import PROJECT
from thinner.config import load_params

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow and what it imports deprecate things of their own


def test_report_reads_which_runs_made_the_stages_and_what_they_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "THINNER_PARENT_RUN_ID", "THINNER_FLOW"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mlflow_client, "commit", lambda: "c0ffee")  # this folder is not under git
    monkeypatch.setattr(stage_run, "POWER", tmp_path / "power")
    counter = tmp_path / "power" / "intel-rapl:0"
    counter.mkdir(parents=True)
    (counter / "max_energy_range_uj").write_text("1000000000")
    (counter / "energy_uj").write_text("5000000")
    for name in ("dvc.yaml", "dvc.lock"):
        shutil.copy(PROJECT / name, tmp_path)
    params = load_params(PROJECT / "params.yaml").model_copy(update={"prune_also": ["finetune"]})
    assert _runs(Stage("report", params)) == {}  # nobody records
    assert not (tmp_path / "mlflow.db").exists()

    hashes = lineage.locked_hashes(tmp_path)
    made = stage_run.start("distill", {}, hashes["distill"], {}, "cpu")
    other = stage_run.start("teach", {}, "of other inputs", {}, "cpu")
    (counter / "energy_uj").write_text("45000000")
    for recorder in (made, other):
        recorder.end("FINISHED")
    stage = Stage("report", params, stage_run.start("report", {}, hashes["report"], {}, "cpu"))
    found = _runs(stage)
    # in the order of dvc.yaml, and without the one that is still running
    assert list(found) == [
        "prepare", "finetune", "scratch", "teach", "distill", "prune", "small", "prune_also@finetune",
        "quantize", "export", "evaluate",
    ]  # fmt: skip
    info = mlflow_client.connect()[0].get_run(made.run_id).info
    assert found["distill"] == {
        "seconds": (info.end_time - info.start_time) / 1000,
        "joules": 40.0,
        "commit": "c0ffee",
        "dirty": False,
    }
    assert [run for name, run in found.items() if name != "distill"] == [None] * 10
    # a file that is missing is no reason to give up the record, and a record that has gone meanwhile stops nothing
    stage.record.artifact(tmp_path / "missing.csv")
    assert _runs(stage) == found
    shutil.rmtree(tmp_path / ".thinner", ignore_errors=True)
    (tmp_path / "mlflow.db").write_bytes(b"no database at all")
    assert set(_runs(stage)) == set(found)
    stage.record.end("FINISHED")
