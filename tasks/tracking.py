"""The record, in MLflow. It is written, and never read to decide what to run.

    pipeline run    one per run of the flow that had something to do: its stages, every candidate's numbers
      distill       one per stage that ran: parameters, metrics per epoch, data set, outputs, tags
      prune (test)  one per candidate that evaluate measured, with its model: tasks/candidates.py

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
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import lockfile, mlflow_db, processes, unsent
from tasks.environment import FLOW, PARENT, UNSENT, home_root, set_environment
from thinner import shipping
from thinner.errors import DamagedError, UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "thinner"
KEPT_HERE = "All goes on; what is recorded is kept here until the next run that reaches it, or: thinner sync"
VARIANT = "THINNER_VARIANT"  # "kd seed 3": of a study, or of claims over seeds, told to its stages by flows.worktrees
FLUSH_SECONDS = 2.0  # one log_batch in two seconds costs nothing; one log_metric a step costs 5 ms each
FIGURES = "figures/all.html"
BATCH = 1000  # MLflow's own limit for metrics in one call
VERSIONS = ("thinner", "torch", "torchvision", "timm", "torch-pruning", "numpy", "onnxruntime")


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, else the SQLite file in the repository (the original one inside `dvc exp run
    --temp`)."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home_root() / 'mlflow.db'}"


def shown_uri() -> str:
    """The address for people to read."""
    return without_passwords(tracking_uri())


def without_passwords(text: str, instead: str = "***@") -> str:
    """``text`` with ``instead`` for what stands before the host in every address: a name, a password."""
    return re.sub(r"(?<=//)[^/@\s]*@", instead, text)


def _call(method: str, *arguments: Any, **named: Any) -> Callable[[MlflowClient, str], object]:
    """``client.method(run_id, ...)``, for when its turn comes."""
    return lambda client, run_id: getattr(client, method)(run_id, *arguments, **named)


class Recorder:
    """Writes one MLflow run. Without one (`Recorder()`) every method does nothing: stages need not ask.

    Metrics, parameters and tags are handed to a thread and sent in batches, so that a slow server never holds
    up training. When the server goes away in the middle, that is said once, and the rest is kept here until it can be
    sent (tasks/unsent.py).
    """

    def __init__(
        self,
        client: MlflowClient | None = None,
        run_id: str | None = None,
        experiment: str = "",
        stage_hash: str = "",
        kept: bool = False,
    ) -> None:
        self.run_id = run_id
        self._client = client
        self._experiment, self._stage_hash = experiment, stage_hash
        self._joules = read_joules()
        self._metrics: list[tuple[str, float, int, int]] = []  # key, value, milliseconds since 1970, step
        self._calls: queue.SimpleQueue[Callable[[MlflowClient, str], object]] = queue.SimpleQueue()
        self._guard, self._switch = threading.Lock(), threading.Lock()
        self._kept, self._said = kept, set[str]()
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
        # MLflow's Compare page begins with the first that all runs have: a learning curve's accuracy, not its rate
        ordered = sorted(values.items(), key=lambda item: not item[0].startswith("val/"))
        with self._guard:
            self._metrics += [(name, float(value), now, step or 0) for name, value in ordered]

    def params(self, values: Mapping[str, Any]) -> None:
        """Settings; nested mappings become dotted names. The stage's section is recorded without being asked
        for."""
        if self._client is None:
            return
        from mlflow.entities import Param

        flat = [Param(name, str(value)[:6000]) for name, value in flatten(values).items()]
        for start in range(0, len(flat), 100):  # MLflow's own limit in one call
            part = flat[start : start + 100]
            self._later(_call("log_batch", params=part))

    def tags(self, values: Mapping[str, str]) -> None:
        for name, value in values.items():
            self._later(_call("set_tag", name, str(value)))

    def dataset(self, name: str, sha256: str, path: Path | str, counts: Mapping[str, int]) -> None:
        """The images that the stage worked with. `sha256` is the tag by which runs on the same data are
        found."""
        self.tags({"data.sha256": sha256})
        self._later(lambda client, run_id: log_dataset(client, run_id, name, sha256, Path(path), counts))

    def artifact(self, path: Path | str, folder: str | None = None) -> None:
        """Copy a file, or a folder with all in it, into the record. Done before it returns: `path` may go
        after."""
        if self._client is None or self.run_id is None:
            return
        log = "log_artifacts" if Path(path).is_dir() else "log_artifact"
        self._do(_call(log, str(path), folder))

    def candidates(self) -> None:
        """A run and a model for each candidate, from the files that evaluate has written: tasks/candidates.py."""
        if self._client is None or self.run_id is None:
            return
        from tasks import candidates

        parent = os.environ.get(PARENT) or self.run_id
        try:
            candidates.record(self._client, self._experiment, self._stage_hash, parent)
        except Exception as error:  # noqa: BLE001 - as above; the stage's own run may still be written
            print(
                f"warning: the candidates are not in MLflow at {shown_uri()} ({_first_line(error)}). "
                "The stage goes on; `thinner promote` records what it ships.",
                file=sys.stderr,
                flush=True,
            )

    def predictions(self) -> None:
        """What every candidate named for each test image, small; and which images these were."""
        if self._client is None or self.run_id is None:
            return
        from tasks import candidates

        found = candidates.read_predictions()
        self._do(lambda client, run_id: candidates.log_predictions(client, run_id, found))
        self.tags({candidates.TEST: candidates.test_digest()})

    def figures(self, figures: Mapping[str, Any]) -> None:
        """Plotly figures as a page that MLflow's UI shows, `figures/all.html`, and each as `figures/NAME.json` for
        `plotly.io.from_json`. One page, because the library is in it, five megabytes: it needs no network."""
        if self._client is None or self.run_id is None or not figures:
            return
        page = ["<!doctype html><meta charset='utf-8'><title>Figures</title><body style='font-family: sans-serif'>"]
        texts = {}
        for number, (name, figure) in enumerate(figures.items()):
            texts[f"figures/{name}.json"] = figure.to_json()
            page.append(f"<h2>{name}</h2>")
            page.append(figure.to_html(full_html=False, include_plotlyjs=number == 0, default_height="450px"))
        for file, text in {**texts, FIGURES: "\n".join(page)}.items():
            self._do(_call("log_text", text, file))

    def figures_of(self, run_id: str) -> None:
        """The figures that another run has, as far as it has any: a pipeline run shows those of its report."""

        def copy(client: MlflowClient, own: str) -> None:
            with tempfile.TemporaryDirectory() as folder:
                if client.list_artifacts(run_id, "figures"):
                    client.log_artifacts(own, client.download_artifacts(run_id, "figures", folder), "figures")

        self._do(copy)

    def runs_of(self, stages: Mapping[str, str]) -> dict[str, dict[str, Any]]:
        """By stage, `took` of the newest run that made its result; `stages` maps each to the hash of its inputs. One
        that was made elsewhere is left out. To be shown to people: nothing is decided by it."""
        found: dict[str, dict[str, Any]] = {}

        def look(client: MlflowClient, _: str) -> None:
            for name, stage_hash in stages.items():
                if run_id := find_run(client, self._experiment, name, stage_hash):
                    found[name] = took(client, run_id)

        self._do(look)
        return found

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows with equal keys as `tables/NAME.json`: MLflow's UI shows it as a table, and lays runs side by side."""
        if self._client is None or self.run_id is None or not rows:
            return
        columns = {key: [row.get(key) for row in rows] for key in rows[0]}
        self._do(_call("log_table", columns, f"tables/{name}.json"))

    def end(self, status: str) -> None:
        """FINISHED, FAILED or KILLED. Waits for what is unsent, at most half a minute."""
        self.metrics(joules_since(self._joules))
        if self._thread is not None:
            self._ending = True
            self._wake.set()
            self._thread.join(timeout=30)
        self._do(_call("set_terminated", status))

    def _later(self, call: Callable[[MlflowClient, str], object]) -> None:
        if self._client is not None:
            self._calls.put(call)

    def _send_until_end(self) -> None:
        while not self._ending:
            self._wake.wait(FLUSH_SECONDS)
            self._send()
        self._send()

    def _send(self) -> None:
        from mlflow.entities import Metric

        with self._guard:
            waiting, self._metrics = self._metrics, []
        while True:
            try:
                call = self._calls.get_nowait()
            except queue.Empty:
                break
            self._do(call)
        for start in range(0, len(waiting), BATCH):
            some = [Metric(*metric) for metric in waiting[start : start + BATCH]]
            self._do(_call("log_batch", metrics=some))

    def _do(self, call: Callable[[MlflowClient, str], object]) -> None:
        """Whatever a broken record raises, hours of training must survive it."""
        for _ in range(2):  # there, and if that is gone, here
            with self._switch:
                client, run_id = self._client, self.run_id
            if client is None or run_id is None:
                return
            try:
                call(client, run_id)
            except Exception as error:  # noqa: BLE001 - as above
                if _is_gone(error):
                    self._go_on_here(client, error)
                    continue
                self._warn(f"this could not be recorded: {_first_line(error)}. The stage goes on")
            return

    def _go_on_here(self, gone: MlflowClient, error: Exception) -> None:
        with self._switch:
            if self._client is not gone:  # the other thread was faster
                return
            if self._kept or self.run_id is None:
                self._client = None
                self._warn(f"nothing more is recorded ({_first_line(error)}). The stage goes on")
                return
            try:
                self._client, self._experiment, self.run_id = _continued(self.run_id)
                self._kept = True
                self._warn(f"MLflow at {shown_uri()} no longer answers ({_first_line(error)}). {KEPT_HERE}")
            except Exception as other:  # noqa: BLE001 - as above
                self._client = None
                self._warn(
                    f"MLflow at {shown_uri()} no longer answers ({_first_line(error)}), and the rest cannot be kept "
                    f"here ({_first_line(other)}). The stage goes on; it is not recorded"
                )

    def _warn(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            print(f"warning: {text}", file=sys.stderr, flush=True)


def _is_gone(error: Exception) -> bool:
    """Whether it is the store that fails, and not what it was asked for."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    if isinstance(error, MlflowException):
        return error.error_code in ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")
    return isinstance(error, SQLAlchemyError | ConnectionError | TimeoutError)


def _where_it_goes_on(run_id: str) -> tuple[MlflowClient, str, str, bool]:
    """(client, experiment, run, whether kept here) of a run that another process has begun: where it was begun, or
    where the server has gone away in between, the rest of it here."""
    began_here = os.environ.get(UNSENT) == "yes"
    client, experiment, kept = connect_or_keep()
    if kept and not began_here:
        client, experiment, run_id = _continued(run_id)
    return client, experiment, run_id, kept


def _continued(run_id: str) -> tuple[MlflowClient, str, str]:
    """(client, experiment, run) of a run here that is the rest of ``run_id`` there."""
    with _database_lock():
        client, experiment = unsent.open_store()
    tags = {unsent.CONTINUES: run_id, "host": socket.gethostname(), **_process()}
    return client, experiment, str(client.create_run(experiment, run_name="rest", tags=tags).info.run_id)


def start_stage_run(
    name: str, section: Mapping[str, Any], stage_hash: str, upstream: Mapping[str, str], device: str
) -> Recorder:
    """Open a stage's run, below the flow's if there is one (variable THINNER_PARENT_RUN_ID).

    `upstream` maps each upstream stage to its stage hash; their runs become tags `upstream.NAME`.

    Where MLflow does not answer, the run is kept here, and that is said.
    """
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME, MLFLOW_RUN_NOTE

    lockfile.keep(Path.cwd())  # also of runs by `dvc repro` alone
    client, experiment, kept = connect_or_keep()
    with reachable():
        parent = os.environ.get(PARENT)
        shown, variant = name_and_tags(name)
        tags = {
            MLFLOW_RUN_NAME: shown,
            "stage": name,
            "dvc.stage_hash": stage_hash,
            "device": device,
            **variant,
            **origin(),
        }
        if words := description():
            tags[MLFLOW_RUN_NOTE] = words
        if parent:
            tags[MLFLOW_PARENT_RUN_ID] = parent
        for stage, upstream_hash in upstream.items():
            made_by = find_run(client, experiment, stage, upstream_hash)
            if made_by:
                tags[tag_of("upstream", stage)] = made_by
        run = client.create_run(experiment, run_name=shown, tags=tags)
    recorder = Recorder(client, run.info.run_id, experiment, stage_hash, kept)
    recorder.params(section)
    return recorder


def name_and_tags(name: str) -> tuple[str, dict[str, str]]:
    """A run's name and tags; of a study, or of claims over seeds, they tell variant and seed."""
    told = os.environ.get(VARIANT)
    if not told:
        return name, {}
    variant, _, seed = told.rpartition(" seed ")
    return f"{name} {told}", {"variant": variant, "seed": seed}


def tag_of(kind: str, stage: str) -> str:
    """`stage.distill`, `stage.prune_also.finetune`: MLflow takes no "@" in a tag's name."""
    return f"{kind}.{stage.replace('@', '.')}"


def description() -> str:
    """What the stage does, in the words with which its program's file begins."""
    text = getattr(sys.modules["__main__"], "__doc__", None) or ""
    return " ".join(text.split("\n\n")[0].split())


POWER = Path("/sys/class/powercap")  # Linux: counters of the energy that each processor has used, if they may be read


def read_joules(folder: Path | None = None) -> dict[Path, tuple[float, float]]:
    """Per processor: what its counter shows, and where it starts anew, in joules. Empty where nothing tells."""
    found = {}
    for zone in sorted((folder or POWER).glob("intel-rapl:?")):  # whole processors; "intel-rapl:0:0" is a part of one
        with contextlib.suppress(OSError, ValueError):  # since 2020 most systems let only root read them
            now, turn = ((zone / name).read_text() for name in ("energy_uj", "max_energy_range_uj"))
            found[zone] = (int(now) / 1e6, int(turn) / 1e6)
    return found


def joules_since(before: Mapping[Path, tuple[float, float]]) -> dict[str, float]:
    """What the processors have used since, with whatever else ran on them; {} where nothing tells."""
    if not before:
        return {}
    after = read_joules(next(iter(before)).parent)
    used = [(after[zone][0] - joules) % turn for zone, (joules, turn) in before.items() if zone in after]
    return {"system/energy_joules": sum(used)} if used else {}


def find_run(client: MlflowClient, experiment: str, stage: str, stage_hash: str) -> str | None:
    """The newest finished run of this stage with these inputs."""
    return newest_run(client, experiment, "stage", stage, stage_hash)


def newest_run(client: MlflowClient, experiment: str, tag: str, value: str, stage_hash: str) -> str | None:
    """The newest finished run with this tag and these inputs."""
    runs = client.search_runs(
        [experiment],
        f"tags.{tag} = '{value}' and tags.`dvc.stage_hash` = '{stage_hash}' and attributes.status = 'FINISHED'",
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
        mlflow_db.prepare(uri)
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


def connect_or_keep() -> tuple[MlflowClient, str, bool]:
    """`connect`, or where nothing usable answers there, a store here, which is said; and whether it is the latter.

    All of a flow's runs go to the same place: what its first process found holds for the others (THINNER_UNSENT).
    """
    if os.environ.get(UNSENT) != "yes":
        try:
            return (*connect(), False)
        except UserError as error:
            print(f"warning: {str(error).splitlines()[0]}. {KEPT_HERE}", file=sys.stderr, flush=True)
            os.environ[UNSENT] = "yes"  # one wait is enough for a process
    with _database_lock():
        return (*unsent.open_store(), True)


def sync() -> int:
    """Send what MLflow's server has missed; returns the number of runs.

    Raises:
        UserError: the server does not answer; nothing is lost.
    """
    if not unsent.is_any():
        return 0
    client, experiment = connect()
    with reachable(), _database_lock():
        kept, here = unsent.open_store()
        _mark_killed(kept, here)
        return unsent.send(client, experiment)


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
            f"MLflow at {shown_uri()} cannot be used: {_first_line(error)}\n"
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
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # a bar for each file that it copies
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


def origin() -> dict[str, str]:
    """Where a run comes from: commit, library versions, machine, and the process (to see later whether it
    died)."""
    tags = {f"version.{name}": version for name in VERSIONS if (version := version_of(name))}
    tags["version.python"] = platform.python_version()
    tags["host"] = socket.gethostname()
    tags |= _process()
    if name := os.environ.get("DVC_EXP_NAME"):
        tags["dvc.experiment"] = name
    if here := commit():
        tags["mlflow.source.git.commit"] = here
        tags["git.commit"] = here
        tags["git.dirty"] = str(bool(_git("status", "--porcelain"))).lower()
    return tags


def _process() -> dict[str, str]:
    return {"pid": str(os.getpid()), "pid.started": f"{processes.started(os.getpid()):.2f}"}


def commit() -> str:
    """The commit that is checked out; "" outside of git, or before the first one."""
    return _git("rev-parse", "HEAD")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def version_of(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def log_dataset(
    client: MlflowClient,
    run_id: str,
    name: str,
    sha256: str,
    path: Path,
    counts: Mapping[str, int],
    context: str = "training",
) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=name,
        digest=sha256[:36],  # the longest that MLflow stores; the whole one is the run's tag data.sha256
        source_type="local",
        source=json.dumps({"uri": str(path)}),
        profile=json.dumps(dict(counts)),
    )
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])


# --- the flow's own run ---


def open_pipeline_run(name: str | None = None) -> str:
    """Open the run above the stages' runs (a study's, or of claims over seeds, where it has a ``name``); also mark what
    died without saying so. Returns its id."""
    client, experiment, _ = connect_or_keep()
    with reachable():
        _mark_killed(client, experiment)
        kind = "study" if name else "pipeline"
        name = datetime.now().strftime(f"{name or kind} %Y-%m-%d %H:%M:%S")
        # The process to watch is the flow, not this helper, which is gone in a second.
        tags = {"stage": kind, **origin()}
        if flow := os.environ.get(FLOW):
            tags["pid"], tags["pid.started"] = flow.split(":")
        return str(client.create_run(experiment, run_name=name, tags=tags).info.run_id)


def close_pipeline_run(run_id: str, status: str, stages: Mapping[str, Mapping[str, str]]) -> None:
    """`stages` maps each stage to `state` (what the flow called it) and `hash` (its dvc.stage_hash)."""
    client, experiment, run_id, kept = _where_it_goes_on(run_id)
    recorder = Recorder(client, run_id, experiment, kept=kept)
    with reachable():  # a stage that did not end within its grace could not end its run either
        _mark_killed(client, experiment)
    lines = ["| stage | state | run | took | energy |", "|---|---|---|---:|---:|"]
    with reachable():
        for name, stage in stages.items():
            made_by = find_run(client, experiment, name, stage["hash"]) if stage.get("hash") else None
            if made_by:
                recorder.tags({tag_of("stage", name): made_by})
            if made_by and name == "report" and status == "FINISHED":
                recorder.figures_of(made_by)
            link = f"[{made_by[:8]}](#/experiments/{experiment}/runs/{made_by})" if made_by else "not recorded"
            lines.append(f"| {name} | {stage['state']} | {link} | {_cost(client, made_by)} |")
    targets = shipping.read_targets(Path("reports")) if status == "FINISHED" else []
    first = [part for line in shipping.target_lines(targets) for part in (f"**{line}**", "")]
    recorder.tags({"mlflow.note.content": "\n".join([*first, *lines])})
    if status == "FINISHED":
        _record_results(recorder)
        for file in map(
            Path,
            (
                "reports/metrics.json",
                "reports/claims.json",
                "reports/evaluate",
                "reports/report.html",
                "reports/results.md",
                "dvc.lock",
                "params.yaml",
            ),
        ):
            if file.exists():
                recorder.artifact(file, file.name if file.is_dir() else None)
    recorder.end(status)


def _end(run_id: str, status: str) -> None:
    client, _, run_id, _ = _where_it_goes_on(run_id)
    with reachable():
        client.set_terminated(run_id, status)


def _cost(client: MlflowClient, run_id: str | None) -> str:
    """How long the run took that made the result, whenever that was, and what energy, where the machine tells."""
    if run_id is None:
        return " | "
    run = took(client, run_id)
    joules = run["joules"]
    return f"{run['seconds']:.0f} s | {f'{joules:.0f} J' if joules is not None else 'not told'}"


def took(client: MlflowClient, run_id: str) -> dict[str, Any]:
    """Of a run that has ended: `seconds`, `joules` (None where the machine does not tell), `commit` ("" outside of git)
    and whether that was `dirty`."""
    run = client.get_run(run_id)
    return {
        "seconds": (run.info.end_time - run.info.start_time) / 1000,
        "joules": run.data.metrics.get("system/energy_joules"),
        "commit": run.data.tags.get("git.commit", ""),
        "dirty": run.data.tags.get("git.dirty") == "true",
    }


def _record_results(recorder: Recorder) -> None:
    """What a pipeline run is compared by: choices, numbers, verdicts, and what was named for each test image."""
    from thinner.config import load_params

    with contextlib.suppress(FileNotFoundError, DamagedError):
        params = load_params()
        recorder.params(params.model_dump(mode="json"))
        measured = shipping.read_metrics(Path("reports/metrics.json"))
        recorder.metrics(candidate_metrics(measured, params.ship.candidate))
        recorder.tags({"ship.candidate": params.ship.candidate})
        for target in shipping.read_targets(Path("reports")):
            recorder.metrics({f"{target['candidate']}/target_met": float(target["met"])})
        recorder.table("candidates", [{"candidate": name, **row} for name, row in measured.items()])
    with contextlib.suppress(FileNotFoundError, DamagedError):
        verdicts = list(shipping.read_verdicts(Path("reports/claims.json")).values())
        # the sentence is the value: a name may not have a "%" in it
        recorder.tags(
            {f"claim.{number}": f"{v['outcome']}: {v['claim']}" for number, v in enumerate(verdicts, start=1)}
        )
        recorder.metrics({"claims/proven": float(sum(v["outcome"] == "proven" for v in verdicts))})
        recorder.table("claims", verdicts)
    with contextlib.suppress(FileNotFoundError):
        recorder.predictions()


def candidate_metrics(report: Mapping[str, Any], shipped: str) -> dict[str, float]:
    """`test/NAME/KEY` of every candidate, as evaluate's run has them, and `test/KEY` of the one that is shipped, as
    the candidates' own runs have them. What is not a number stays out."""
    numbers = {
        name: {key: float(value) for key, value in row.items() if isinstance(value, int | float)}
        for name, row in report.items()
    }
    # first those of the shipped one: MLflow's compare page begins with the first that it finds
    flat = {f"test/{key}": value for key, value in numbers.get(shipped, {}).items()}
    return flat | {f"test/{name}/{key}": value for name, row in numbers.items() for key, value in row.items()}


def _bring_to_registry() -> None:
    """The network that came out becomes the challenger. If that fails, `thinner promote` does it later."""
    from tasks import registry
    from thinner.config import load_params

    try:
        name, version = registry.register(Path.cwd(), load_params())
        print(f"{name} version {version} is in MLflow's model registry. To ship it: thinner promote")
    except UserError as error:
        print(f"not brought to the model registry: {error}")


def _mark_killed(client: MlflowClient, experiment: str) -> None:
    """A process that was killed with -9 could not end its run: it would be shown as running for ever."""
    here = f"attributes.status = 'RUNNING' and tags.host = '{socket.gethostname()}'"
    for run in client.search_runs([experiment], here, max_results=1000):
        tags = run.data.tags
        if "pid" in tags and not processes.is_alive(int(tags["pid"]), float(tags.get("pid.started", 0))):
            client.set_terminated(run.info.run_id, "KILLED")


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return without_passwords(text.splitlines()[0])[:300]


def main(arguments: list[str]) -> int:
    """`open [NAME]` prints the new run's id, behind "kept" where it is kept here, else "there"; `close ID STATUS` reads
    the stages as JSON from standard input, and brings what was made to the model registry; `end ID STATUS` only ends
    it; `mend` ends those whose process is gone."""
    set_environment()
    try:
        if arguments[0] == "open":
            run_id = open_pipeline_run(*arguments[1:2])
            print("kept" if os.environ.get(UNSENT) == "yes" else "there", run_id)
        elif arguments[0] == "mend":
            client, experiment, _ = connect_or_keep()
            with reachable():
                _mark_killed(client, experiment)
        elif arguments[0] == "end":
            _end(arguments[1], arguments[2])
        else:
            if tracking_uri().startswith("sqlite"):  # opened while the stages still end: it takes a second
                with contextlib.suppress(UserError):
                    connect()
            stages = json.loads(sys.stdin.read() or "{}")  # nothing: whoever asked has died meanwhile
            close_pipeline_run(arguments[1], arguments[2], stages)
            if unsent.is_any():
                with contextlib.suppress(UserError):  # it has been said that MLflow does not answer; the next run tries
                    print(f"{sync()} runs that MLflow had missed are in it now")
            if arguments[2] == "FINISHED" and "report" in stages:
                _bring_to_registry()
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
