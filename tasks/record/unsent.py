"""What MLflow's server missed while it was away: kept in an MLflow store of our own, and sent when it is back.

    .thinner/unsent/mlflow.db, artifacts    runs as MLflow has them, so nothing is written in another form

A run that had begun on the server goes on here as one with the tag `thinner.continues`; what is sent joins the two.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.environment import HOME, home_root
from tasks.record import database

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

CONTINUES = "thinner.continues"  # tag: the run on the server that this is the rest of
_SENT = "thinner.sent_as"  # tag: the run on the server that this is being sent to, should sending be cut off
_OURS = (CONTINUES, _SENT)
# of a run that is the rest of another, what only says how it came to be here
_ITS_OWN = "host", "pid", "pid.started", "mlflow.runName", "mlflow.user", "mlflow.source.name", "mlflow.source.type"
_BATCH = 1000  # MLflow's own limit for metrics in one call, 100 for the rest
_EXPERIMENT = "unsent"


def folder() -> Path:
    return Path(os.environ.get(HOME) or home_root()) / ".thinner" / "unsent"


def is_any() -> bool:
    """Whether a run is kept here; asked of the file itself, as MLflow would take seconds to say so."""
    path = folder() / "mlflow.db"
    if not path.is_file():
        return False
    with database.read_only(path) as opened:
        return bool(opened.execute("SELECT count(*) FROM runs WHERE lifecycle_stage = 'active'").fetchone()[0])


def open_store() -> tuple[MlflowClient, str]:
    """A client of the store that is kept here, and the id of its experiment. The caller holds database_lock."""
    from mlflow import MlflowClient

    folder().mkdir(parents=True, exist_ok=True)
    database.prepare(_uri())
    client = MlflowClient(tracking_uri=_uri())
    found = client.get_experiment_by_name(_EXPERIMENT)
    if found is not None:
        return client, str(found.experiment_id)
    return client, client.create_experiment(_EXPERIMENT, artifact_location=(folder() / "artifacts").as_uri())


def has(kept: MlflowClient, run_id: str) -> bool:
    """Whether the run was begun here."""
    from mlflow.exceptions import MlflowException

    try:
        return kept.get_run(run_id).info.run_id == run_id
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False


def _uri() -> str:
    return f"sqlite:///{folder() / 'mlflow.db'}"


def send(client: MlflowClient, experiment: str) -> int:
    """Send every run that has ended to ``client``; returns their number. What is sent is kept no longer.

    Cut off in the middle, the next call goes on: no run is made twice. The caller holds database_lock.
    """
    kept, here = open_store()
    runs = kept.search_runs([here], order_by=["attributes.start_time ASC"], max_results=10_000)
    targets = {run.info.run_id: target for run in runs if (target := _target(run))}
    ended = [run for run in runs if run.info.status != "RUNNING"]
    for run in runs:  # first all, as runs name one another
        if run.info.run_id not in targets:
            made = client.create_run(experiment, start_time=run.info.start_time, run_name=run.info.run_name)
            targets[run.info.run_id] = made.info.run_id
            kept.set_tag(run.info.run_id, _SENT, made.info.run_id)
    for run in ended:
        _send_one(kept, client, run, targets)
        kept.delete_run(run.info.run_id)
    if ended:  # rows and files go for good
        command = [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", _uri()]
        subprocess.run(command, env={**os.environ, "MLFLOW_TRACKING_URI": _uri()}, capture_output=True, check=False)
    return len(ended)


def _target(run: Run) -> str | None:
    return run.data.tags.get(CONTINUES) or run.data.tags.get(_SENT)


def _send_one(kept: MlflowClient, client: MlflowClient, run: Run, targets: Mapping[str, str]) -> None:
    from mlflow.entities import Param, RunTag

    name, target = run.info.run_id, targets[run.info.run_id]
    own = (*_OURS, *(_ITS_OWN if CONTINUES in run.data.tags else ()))
    tags = [RunTag(key, targets.get(value, value)) for key, value in run.data.tags.items() if key not in own]
    params = [Param(key, value) for key, value in run.data.params.items()]
    for some in _parts(tags, 100):
        client.log_batch(target, tags=some)
    for some in _parts(params, 100):
        client.log_batch(target, params=some)
    metrics = [point for key in run.data.metrics for point in kept.get_metric_history(name, key)]
    for some in _parts(metrics, _BATCH):
        client.log_batch(target, metrics=some)
    if run.inputs is not None and run.inputs.dataset_inputs:
        client.log_inputs(target, run.inputs.dataset_inputs)
    if kept.list_artifacts(name):
        with tempfile.TemporaryDirectory() as copy:
            client.log_artifacts(target, kept.download_artifacts(name, "", copy))
    client.set_terminated(target, run.info.status, run.info.end_time)


def _parts(values: list[Any], size: int) -> Iterator[list[Any]]:
    return (values[start : start + size] for start in range(0, len(values), size))
