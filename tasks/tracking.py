"""The only file that talks to MLflow. The record is written, and never read to decide what to run.

    pipeline run    one per run of the flow that had something to do: its stages, every candidate's numbers
      distill       one per stage that ran: parameters, metrics per epoch, data set, outputs, tags

A stage that was up to date has no new run; the pipeline run points to the one that made it (tag
`stage.NAME`), which is found by the hash of the stage's inputs (tag `dvc.stage_hash`). A stage that a plain
`dvc repro` ran has a run without a parent. Where: the address in MLFLOW_TRACKING_URI, else an SQLite file in
the repository.

`python -m tasks.tracking open|close` is how the flow, which does not import MLflow, opens and closes its run.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import json
import logging
import os
import platform
import queue
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from tasks.environment import FLOW, PARENT, home_root, set_environment
from thinner.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "thinner"
VARIANT = "THINNER_VARIANT"  # "kd seed 3": of a study, told to its stages by flows.sweep
FLUSH_SECONDS = 2.0  # one log_batch in two seconds costs nothing; one log_metric a step costs 5 ms each
BATCH = 1000  # MLflow's own limit for metrics in one call
VERSIONS = ("thinner", "torch", "torchvision", "timm", "torch-pruning", "numpy", "onnxruntime")


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, else the SQLite file in the repository (the original one inside `dvc exp run
    --temp`)."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home_root() / 'mlflow.db'}"


class Recorder:
    """Writes one MLflow run. Without one (`Recorder()`) every method does nothing: stages need not ask.

    Metrics, parameters and tags are handed to a thread and sent in batches, so that a slow server never holds
    up training. When the server goes away in the middle, that is said once and the stage goes on unrecorded.
    """

    def __init__(self, client: MlflowClient | None = None, run_id: str | None = None) -> None:
        self.run_id = run_id
        self._client = client
        self._metrics: list[tuple[str, float, int, int]] = []  # key, value, milliseconds since 1970, step
        self._calls: queue.SimpleQueue[Callable[[MlflowClient, str], None]] = queue.SimpleQueue()
        self._guard = threading.Lock()
        self._wake = threading.Event()
        self._ending = False
        self._thread: threading.Thread | None = None
        if client is not None:
            self._thread = threading.Thread(target=self._send_until_end, name="mlflow", daemon=True)
            self._thread.start()

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Numbers of one moment; `step` in the unit that the stage counts in."""
        if self._client is None:
            return
        now = int(time.time() * 1000)
        with self._guard:
            self._metrics += [(name, float(value), now, step or 0) for name, value in values.items()]

    def params(self, values: Mapping[str, Any]) -> None:
        """Settings; nested mappings become dotted names. The stage's section is recorded without being asked
        for."""
        if self._client is None:
            return
        from mlflow.entities import Param

        flat = [Param(name, str(value)[:6000]) for name, value in flatten(values).items()]
        for start in range(0, len(flat), 100):  # MLflow's own limit in one call
            part = flat[start : start + 100]
            # type: ignore[misc]
            self._later(lambda client, run_id, part=part: client.log_batch(run_id, params=part))

    def tags(self, values: Mapping[str, str]) -> None:
        for name, value in values.items():
            # type: ignore[misc]
            self._later(lambda client, run_id, n=name, v=value: client.set_tag(run_id, n, str(v)))

    def dataset(self, name: str, sha256: str, path: Path | str, counts: Mapping[str, int]) -> None:
        """The images that the stage worked with. `sha256` is the tag by which runs on the same data are
        found."""
        self.tags({"data.sha256": sha256})
        self._later(lambda client, run_id: _log_dataset(client, run_id, name, sha256, Path(path), counts))

    def artifact(self, path: Path | str, folder: str | None = None) -> None:
        """Copy a file, or a folder with all in it, into the record. Done before it returns: `path` may go
        after."""
        if self._client is None or self.run_id is None:
            return
        path = Path(path)
        with self._or_go_on():
            if path.is_dir():
                self._client.log_artifacts(self.run_id, str(path), folder)
            else:
                self._client.log_artifact(self.run_id, str(path), folder)

    def end(self, status: str) -> None:
        """FINISHED, FAILED or KILLED. Waits for what is unsent, at most half a minute."""
        if self._thread is not None:
            self._ending = True
            self._wake.set()
            self._thread.join(timeout=30)
        if self._client is not None and self.run_id is not None:
            with self._or_go_on():
                self._client.set_terminated(self.run_id, status)

    def _later(self, call: Callable[[MlflowClient, str], None]) -> None:
        if self._client is not None:
            self._calls.put(call)

    def _send_until_end(self) -> None:
        while not self._ending:
            self._wake.wait(FLUSH_SECONDS)
            self._send()
        self._send()

    def _send(self) -> None:
        from mlflow.entities import Metric

        client, run_id = self._client, self.run_id
        if client is None or run_id is None:
            return
        with self._guard:
            waiting, self._metrics = self._metrics, []
        with self._or_go_on():
            while True:
                try:
                    call = self._calls.get_nowait()
                except queue.Empty:
                    break
                call(client, run_id)
            for start in range(0, len(waiting), BATCH):
                client.log_batch(run_id, metrics=[Metric(*metric) for metric in waiting[start : start + BATCH]])

    @contextlib.contextmanager
    def _or_go_on(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever a broken record raises, hours of training must survive it
            if self._client is not None:
                self._client = None
                print(
                    f"warning: MLflow at {tracking_uri()} no longer answers ({_first_line(error)}). "
                    "The stage goes on; the rest of it is not recorded.",
                    file=sys.stderr,
                    flush=True,
                )


def start_stage_run(
    name: str, section: Mapping[str, Any], stage_hash: str, upstream: Mapping[str, str], device: str
) -> Recorder:
    """Open a stage's run, below the flow's if there is one (variable THINNER_PARENT_RUN_ID).

    `upstream` maps each upstream stage to its stage hash; their runs become tags `upstream.NAME`.

    Raises:
        UserError: MLflow cannot be reached or refuses, before anything has been computed.
    """
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME

    client, experiment = connect()
    with reachable():
        parent = os.environ.get(PARENT)
        variant = os.environ.get(VARIANT)
        shown = f"{name} {variant}" if variant else name
        tags = {
            MLFLOW_RUN_NAME: shown,
            "stage": name,
            "dvc.stage_hash": stage_hash,
            "device": device,
            **_origin(),
        }
        if parent:
            tags[MLFLOW_PARENT_RUN_ID] = parent
        for stage, upstream_hash in upstream.items():
            made_by = find_run(client, experiment, stage, upstream_hash)
            if made_by:
                tags[f"upstream.{stage}"] = made_by
        if variant:
            tags["variant"], _, tags["seed"] = variant.rpartition(" seed ")
        run = client.create_run(experiment, run_name=shown, tags=tags)
    recorder = Recorder(client, run.info.run_id)
    recorder.params(section)
    return recorder


def find_run(client: MlflowClient, experiment: str, stage: str, stage_hash: str) -> str | None:
    """The newest finished run of this stage with these inputs."""
    runs = client.search_runs(
        [experiment],
        f"tags.stage = '{stage}' and tags.`dvc.stage_hash` = '{stage_hash}' and attributes.status = 'FINISHED'",
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    return runs[0].info.run_id if runs else None


def connect() -> tuple[MlflowClient, str]:
    """A client and the id of our experiment, which is made if it is not there.

    Raises:
        UserError: nothing usable answers at the address.
    """
    _quiet()
    with reachable(), _database_lock():
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        uri = tracking_uri()
        try:
            client = MlflowClient(tracking_uri=uri)
            return client, _experiment(client)
        except MlflowException as error:
            if "out-of-date database schema" not in str(error):
                raise
        # Made by an older MLflow. The lock is ours, so no other stage migrates at the same time.
        subprocess.run([sys.executable, "-m", "mlflow", "db", "upgrade", uri], check=True, capture_output=True)
        client = MlflowClient(tracking_uri=uri)
        return client, _experiment(client)


def _experiment(client: MlflowClient) -> str:
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    own = tracking_uri().startswith("sqlite:")  # elsewhere the server knows best where its files belong
    location = (home_root() / "mlartifacts").as_uri() if own else None
    return client.create_experiment(name, artifact_location=location)


@contextlib.contextmanager
def reachable() -> Iterator[None]:
    """Turns whatever MLflow or its transport raises into one message that names the address."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # requests, SQLAlchemy, OSError: each store has its own family
        raise UserError(
            f"MLflow at {tracking_uri()} cannot be used: {_first_line(error)}\n"
            "Start that server, or `unset MLFLOW_TRACKING_URI` to record into ./mlflow.db"
        ) from error


@contextlib.contextmanager
def _database_lock() -> Iterator[None]:
    """One process at a time: several that meet a fresh database all create its tables, and all but one
    fail."""
    path = home_root() / ".thinner" / "mlflow.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _quiet() -> None:
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="mlflow.*")


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"training": {"lr": 1}}` -> `{"training.lr": 1}`; lists stay whole."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _origin() -> dict[str, str]:
    """Where a run comes from: commit, library versions, machine, and the process (to see later whether it
    died)."""
    tags = {f"version.{name}": version for name in VERSIONS if (version := _version(name))}
    tags["version.python"] = platform.python_version()
    tags["host"] = socket.gethostname()
    tags["pid"] = str(os.getpid())
    tags["pid.started"] = f"{psutil.Process().create_time():.2f}"
    if name := os.environ.get("DVC_EXP_NAME"):
        tags["dvc.experiment"] = name
    commit = _git("rev-parse", "HEAD")
    if commit:
        tags["mlflow.source.git.commit"] = commit
        tags["git.commit"] = commit
        tags["git.dirty"] = str(bool(_git("status", "--porcelain"))).lower()
    return tags


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _log_dataset(
    client: MlflowClient, run_id: str, name: str, sha256: str, path: Path, counts: Mapping[str, int]
) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=name,
        digest=sha256[:36],  # the longest that MLflow stores; the whole one is the run's tag data.sha256
        source_type="local",
        source=json.dumps({"uri": str(path)}),
        profile=json.dumps(dict(counts)),
    )
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])


# --- the flow's own run ---


def open_pipeline_run(name: str | None = None) -> str:
    """Open the run above the stages' runs (a study's, where it has a ``name``); also mark what died without saying so.
    Returns its id."""
    client, experiment = connect()
    with reachable():
        _mark_killed(client, experiment)
        kind = "study" if name else "pipeline"
        name = datetime.now().strftime(f"{name or kind} %Y-%m-%d %H:%M:%S")
        # The process to watch is the flow, not this helper, which is gone in a second.
        tags = {"stage": kind, **_origin()}
        if flow := os.environ.get(FLOW):
            tags["pid"], tags["pid.started"] = flow.split(":")
        return str(client.create_run(experiment, run_name=name, tags=tags).info.run_id)


def close_pipeline_run(run_id: str, status: str, stages: Mapping[str, Mapping[str, str]]) -> None:
    """`stages` maps each stage to `state` (what the flow called it) and `hash` (its dvc.stage_hash)."""
    client, experiment = connect()
    recorder = Recorder(client, run_id)
    lines = ["| stage | state | run |", "|---|---|---|"]
    with reachable():
        for name, stage in stages.items():
            made_by = find_run(client, experiment, name, stage["hash"]) if stage.get("hash") else None
            if made_by:
                recorder.tags({f"stage.{name}": made_by})
            link = f"[{made_by[:8]}](#/experiments/{experiment}/runs/{made_by})" if made_by else "not recorded"
            lines.append(f"| {name} | {stage['state']} | {link} |")
    recorder.tags({"mlflow.note.content": "\n".join(lines)})
    if status == "FINISHED":
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
            recorder.metrics(candidate_metrics(json.loads(Path("reports/metrics.json").read_text())))
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
            verdicts = json.loads(Path("reports/claims.json").read_text()).values()
            recorder.tags({f"claim: {v['claim']}": v["outcome"] for v in verdicts})
        for file in map(
            Path,
            (
                "reports/metrics.json",
                "reports/claims.json",
                "reports/report.html",
                "reports/results.md",
                "dvc.lock",
                "params.yaml",
            ),
        ):
            if file.is_file():
                recorder.artifact(file)
    recorder.end(status)


def candidate_metrics(report: Mapping[str, Any]) -> dict[str, float]:
    """`{"distill": {"accuracy": 0.87}}` -> `{"distill.accuracy": 0.87}`; what is not a number stays out."""
    flat = flatten(report)
    return {name: value for name, value in flat.items() if isinstance(value, (int, float)) and "per_class" not in name}


def _mark_killed(client: MlflowClient, experiment: str) -> None:
    """A process that was killed with -9 could not end its run: it would be shown as running for ever."""
    here = f"attributes.status = 'RUNNING' and tags.host = '{socket.gethostname()}'"
    for run in client.search_runs([experiment], here, max_results=1000):
        tags = run.data.tags
        if "pid" in tags and not is_alive(int(tags["pid"]), float(tags.get("pid.started", 0))):
            client.set_terminated(run.info.run_id, "KILLED")


def is_alive(pid: int, started: float) -> bool:
    """Whether this very process lives: ids are used again, so the moment of its start (seconds) must
    agree."""
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]


def main(arguments: list[str]) -> int:
    """`open [NAME]` prints the new run's id; `close ID STATUS` reads the stages as JSON from standard input; `end ID
    STATUS` only ends it."""
    set_environment()
    try:
        if arguments[0] == "open":
            print(open_pipeline_run(*arguments[1:2]))
        elif arguments[0] == "end":
            with reachable():
                connect()[0].set_terminated(arguments[1], arguments[2])
        else:
            close_pipeline_run(arguments[1], arguments[2], json.load(sys.stdin))
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
