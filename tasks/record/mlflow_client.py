"""MLflow, as all of the record speaks to it: where it is, how to reach it or to keep things here, and what every run
says of where it comes from.

Where: the address in MLFLOW_TRACKING_URI, else an SQLite file in the repository.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import logging
import os
import platform
import re
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from tasks import processes
from tasks.environment import UNSENT, home_root
from tasks.record import database, unsent
from thinner.errors import UserError
from thinner.runtimes import catalogue

if TYPE_CHECKING:
    from mlflow import MlflowClient

P = ParamSpec("P")
T = TypeVar("T")

EXPERIMENT = "thinner"
KEPT_HERE = "All goes on; what is recorded is kept here until the next run that reaches it, or: thinner sync"
VARIANT = "THINNER_VARIANT"  # "kd seed 3": of a study, or of claims over seeds, told to its stages by flows.worktrees
VERSIONS = (
    *("thinner", "torch", "torchvision", "timm", "torch-pruning", "numpy", "onnxruntime"),
    *(runtime.package for runtime in catalogue.RUNTIMES.values() if runtime.optional),
)


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, else the SQLite file in the repository (the original one inside `dvc exp run
    --temp`)."""
    told = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    if re.match(r"sqlite:///[^/]", told):  # of this folder, whichever copy of it asks
        return f"sqlite:///{home_root() / told.removeprefix('sqlite:///')}"
    return told


def shown_uri() -> str:
    """The address for people to read."""
    return without_passwords(tracking_uri())


def without_passwords(text: str, instead: str = "***@") -> str:
    """``text`` with ``instead`` for what stands before the host in every address: a name, a password."""
    return re.sub(r"(?<=//)[^/@\s]*@", instead, text)


def is_gone(error: Exception) -> bool:
    """Whether it is the store that fails, and not what it was asked for."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    if isinstance(error, MlflowException):
        return error.error_code in ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")
    return isinstance(error, SQLAlchemyError | ConnectionError | TimeoutError)


def where_it_goes_on(run_id: str) -> tuple[MlflowClient, str, str, bool]:
    """(client, experiment, run, whether kept here) of a run that another process has begun: where it was begun, or
    where the server has gone away in between, the rest of it here."""
    client, experiment, kept = connect_or_keep()
    if kept and not unsent.has(client, run_id):
        client, experiment, run_id = continued(run_id)
    return client, experiment, run_id, kept


def continued(run_id: str) -> tuple[MlflowClient, str, str]:
    """(client, experiment, run) of a run here that is the rest of ``run_id`` there."""
    with database_lock():
        client, experiment = unsent.open_store()
    tags = {unsent.CONTINUES: run_id, "host": socket.gethostname(), **_process()}
    return client, experiment, str(client.create_run(experiment, run_name="rest", tags=tags).info.run_id)


def name_and_tags(name: str) -> tuple[str, dict[str, str]]:
    """A run's name and tags; of a study, or of claims over seeds, they tell variant and seed, of a search's trial the
    variant alone."""
    told = os.environ.get(VARIANT)
    if not told:
        return name, {}
    variant, between, seed = told.rpartition(" seed ")
    return f"{name} {told}", {"variant": variant, "seed": seed} if between else {"variant": told}


def tag_of(kind: str, stage: str) -> str:
    """`stage.distill`, `stage.prune_also.finetune`: MLflow takes no "@" in a tag's name."""
    return f"{kind}.{stage.replace('@', '.')}"


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
    with reachable(), database_lock():
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        uri = tracking_uri()
        database.prepare(uri)
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
            _keep_from_now_on(error)
    with database_lock():
        return (*unsent.open_store(), True)


def or_here(do: Callable[P, T]) -> Callable[P, T]:
    """``do``, which begins with `connect_or_keep` and asks within `reachable`; once more, with the store here, where
    the server goes away in its middle or takes too long: that is as good as one that was never there."""

    @functools.wraps(do)
    def whole(*arguments: P.args, **named: P.kwargs) -> T:
        try:
            return do(*arguments, **named)
        except UserError as error:
            why = error.__cause__
            if os.environ.get(UNSENT) == "yes" or not (isinstance(why, Exception) and is_gone(why)):
                raise
            _keep_from_now_on(error)
        return do(*arguments, **named)

    return whole


def _keep_from_now_on(error: UserError) -> None:
    print(f"warning: {first_line(error)}. {KEPT_HERE}", file=sys.stderr, flush=True)
    os.environ[UNSENT] = "yes"  # one wait is enough for a process


def sync() -> int:
    """Send what MLflow's server has missed; returns the number of runs.

    Raises:
        UserError: the server does not answer; nothing is lost.
    """
    if not unsent.is_any():
        return 0
    client, experiment = connect()
    with reachable(), database_lock():
        kept, here = unsent.open_store()
        mark_killed(kept, here)
        return unsent.send(client, experiment)


def _experiment(client: MlflowClient) -> str:
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    found = client.get_experiment_by_name(name)
    if found is not None:
        if found.lifecycle_stage == "deleted":  # in MLflow's pages; no run could begin in it
            client.restore_experiment(found.experiment_id)
            words = f"note: MLflow's experiment '{name}' was deleted; it is restored, with all of its runs"
            print(words, file=sys.stderr, flush=True)
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
            f"MLflow at {shown_uri()} cannot be used: {first_line(error)}\n"
            "Start that server, or `unset MLFLOW_TRACKING_URI` to record into ./mlflow.db"
        ) from error


def database_lock() -> contextlib.AbstractContextManager[None]:
    """One process at a time: several that meet a fresh database all create its tables, and all but one fail."""
    return processes.only_one(home_root() / ".thinner" / "mlflow.lock")


def _quiet() -> None:
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # a bar for each file that it copies
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="mlflow.*")


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


def mark_killed(client: MlflowClient, experiment: str) -> None:
    """A process that was killed with -9 could not end its run: it would be shown as running for ever."""
    here = f"attributes.status = 'RUNNING' and tags.host = '{socket.gethostname()}'"
    for run in client.search_runs([experiment], here, max_results=1000):
        tags = run.data.tags
        if "pid" in tags and not processes.is_alive(int(tags["pid"]), float(tags.get("pid.started", 0))):
            client.set_terminated(run.info.run_id, "KILLED")


def first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return without_passwords(text.splitlines()[0])[:300]
