"""Engines: where the stages of studies, seeds and searches run. Here, or on the workers of a Dask or a Ray cluster.

    python -m flows.sweep studies/losses.yaml --engine dask --address tcp://HOST:8786

Runs are conducted here in any case, each in a worktree. With an engine a stage that neither DVC's cache here nor the
remote has goes to a worker (flows/worker.py), through Prefect's own integration: prefect-dask, prefect-ray. Its result
comes back by the remote, into the worktree, as if it had been made there; so all that reads results is the same.
"""

from __future__ import annotations

import contextlib
import contextvars
import importlib.util
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from prefect import Flow
from prefect.context import FlowRunContext, TaskRunContext
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import server, worker, worktrees
from flows.pipeline import select
from tasks import lineage, remote
from tasks.environment import LOOPBACK, PARENT, UNSENT
from tasks.git import git
from tasks.record.mlflow_client import tracking_uri
from thinner.errors import UserError, did_you_mean, one_line

LOCAL = "local"
_PARTS = {"dask": ("prefect_dask", "distributed"), "ray": ("prefect_ray", "ray")}  # engine, and extra -> modules
ENGINES = (LOCAL, *_PARTS)
_EXAMPLES = {"dask": "tcp://HOST:8786", "ray": "ray://HOST:10001"}
_START = {
    "dask": "dask scheduler --host HOST, and on each machine: dask worker tcp://HOST:8786 --nthreads 1",
    "ray": "ray start --head, and on each machine: ray start --address HOST:6379",
}
_ANSWER_SECONDS = 5.0
_LOOK_SECONDS = 0.5
_HEAD_SECONDS = (5.0, 15.0)  # between attempts to be let in by a head of Ray's


@dataclass(frozen=True)
class Choice:
    """What a person chose; nothing is connected yet."""

    name: str
    address: str


def choose(name: str | None, address: str | None) -> Choice | None:
    """None: here. Raises UserError for what is no engine, is not installed, or lacks its address."""
    name = name or LOCAL
    if name not in ENGINES:
        choices = f"Choose one of: {', '.join(ENGINES)}"
        raise UserError(f"--engine: unknown '{name}'. {did_you_mean(name, ENGINES, always=choices)}")
    if name == LOCAL:
        if address is not None:
            raise UserError(f"--address: '{address}' is a cluster's. Say which engine that is: --engine dask, or ray")
        return None
    missing = [module for module in _PARTS[name] if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError(f"--engine {name}: {missing[0]} is not installed. Install it: pip install -e '.[{name}]'")
    if address is None:
        raise UserError(
            f"--engine {name}: of which cluster? Give --address {_EXAMPLES[name]}; to start one: {_START[name]}"
        )
    return Choice(name, address)


def check(choice: Choice, root: Path) -> None:
    """All that can be known before anything runs: does the cluster answer, can workers reach what they need?

    Raises:
        UserError: the mend, in one line.
    """
    host, port = _host_and_port(choice)
    if remote.configured(root) is None:
        raise UserError(
            f"--engine {choice.name}: results travel by a remote, and none is set up: thinner remote init "
            "s3://BUCKET/FOLDER, then git commit"
        )
    there = remote.required(root)
    committed = git(root, "show", "HEAD:.dvc/config")
    if f"url = {there.url}\n" not in f"{committed}\n":
        raise UserError(
            f"--engine {choice.name}: .dvc/config of the last commit does not name {there.url}, so no worker knows it: "
            f"thinner remote init {there.url} (without --local), then git commit .dvc/config"
        )
    server = PREFECT_API_URL.value()
    if host not in LOOPBACK and (server is None or urlsplit(server).hostname in LOOPBACK):
        raise UserError(
            f"--engine {choice.name}: workers at {host} tell Prefect how they are, and the server of this run listens "
            "on this machine only. Set PREFECT_API_URL to one that they reach"
        )
    try:
        socket.create_connection((host, port), timeout=_ANSWER_SECONDS).close()
    except OSError as error:
        why = error.strerror or error
        raise UserError(
            f"--address: no {choice.name.capitalize()} cluster answers at {choice.address} ({why}). "
            f"Start one: {_START[choice.name]}"
        ) from None


def _host_and_port(choice: Choice) -> tuple[str, int]:
    text = choice.address if "://" in choice.address else f"tcp://{choice.address}"
    schemes = {"dask": ("tcp", "tls"), "ray": ("tcp", "ray")}[choice.name]
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if host is None or port is None or parts.scheme not in schemes:
        raise UserError(
            f"--address: '{one_line(choice.address)}' is no address of {choice.name.capitalize()}. For example: "
            f"{_EXAMPLES[choice.name]}"
        )
    return host, port


class Engine:
    """A cluster to which stages are handed.

    Args:
        runner: Prefect's task runner, entered
        workers: how many the cluster has
        states: whether trainings send their states, for others to go on from
    """

    def __init__(self, choice: Choice, parcel: worker.Parcel, runner: Any, workers: int, states: bool) -> None:
        self.workers = workers
        self._choice, self._parcel, self._runner = choice, parcel, runner
        self._states = {remote.STATES: "yes"} if states else {}
        self._there: set[str] = set()  # lineage.key of results that the remote has
        self._sending = threading.Lock()

    def make(self, folder: Path, stage: str, name: str, environment: Mapping[str, str], logger: Any) -> str | None:
        """Have the stage's result lie in ``folder``, all before it being there; what went wrong, or None."""
        failure = self._restore(folder, stage, name, environment, logger)
        if failure != _NOT_THERE:
            return failure
        if failure := worktrees.check_params(folder, environment):
            return failure
        if failure := self._send_what_it_needs(folder, stage, name, environment, logger):
            return failure
        key = lineage.key(folder, stage)
        params = (folder / "params.yaml").read_text(encoding="utf-8")
        order = worker.Order(stage, name, params, key, {**for_workers(environment), **self._states})
        done = self._handed_over(order)
        if isinstance(done, str) or done.failure:
            return done if isinstance(done, str) else done.failure
        self._there.add(key)
        logger.info("%s: made by %s in %.0f s", stage, done.where, done.seconds)
        failure = self._restore(folder, stage, name, environment, logger)
        return f"{stage}: made by {done.where}, and the remote does not have it" if failure == _NOT_THERE else failure

    def _restore(self, folder: Path, stage: str, name: str, environment: Mapping[str, str], logger: Any) -> str | None:
        said, code = worktrees.hear(remote.command("restore", stage), folder, name, environment, logger)
        if code in (0, remote.NOT_THERE):
            return _NOT_THERE if code else None
        return said[-1] if said else f"tasks.remote ended with {code}"

    def _send_what_it_needs(
        self, folder: Path, stage: str, name: str, environment: Mapping[str, str], logger: Any
    ) -> str | None:
        """What DVC's cache here has and the remote has not, a worker would make again."""
        nodes = select(lineage.graph(folder), [stage])[:-1]
        keys = {lineage.key(folder, node.name) for node in nodes}
        with self._sending:
            if keys <= self._there and self._there:
                return None
            said, code = worktrees.hear(remote.command("push"), folder, name, environment, logger)
            if code and not worktrees.cancelled.is_set():
                return f"{stage}: what it needs was not sent: {said[-1] if said else code}"
            self._there |= keys
        return None

    def _handed_over(self, order: worker.Order) -> worker.Done | str:
        """What the worker answers, or why there is no answer."""
        try:
            future = self._submit(order)
            while not self._is_done(future):
                if worktrees.cancelled.wait(_LOOK_SECONDS):
                    self._cancel(future)
                    return "cancelled"
            done = future.result(raise_on_failure=False)
        except Exception as error:  # noqa: BLE001 - whatever a cluster's library raises
            done = error
        if isinstance(done, worker.Done):
            return done
        return f"{order.stage}: {_why_lost(done)}"

    def _submit(self, order: worker.Order) -> Any:
        """Through Prefect's task runner, as a task run of the flow.

        What Prefect would send along is the flow with all its parameters, which hold this machine's threads and files;
        workers are told of the flow run's name and nothing else.
        """

        def submit() -> Any:
            context = FlowRunContext.get()
            assert context is not None
            bare = context.model_copy(update={"parameters": {}, "flow": Flow(_stand_in, name="thinner")})
            TaskRunContext.__var__.set(None)  # type: ignore[arg-type] # as outside of a task
            with bare, temporary_settings({PREFECT_API_URL: server.url()}):
                return self._runner.submit(worker.run_stage, {"parcel": self._parcel, "order": order})

        return contextvars.copy_context().run(submit)

    def _is_done(self, future: Any) -> bool:
        if self._choice.name == "dask":
            return bool(future.wrapped_future.done())
        import ray

        return bool(ray.wait([future.wrapped_future], timeout=0)[0])

    def _cancel(self, future: Any) -> None:
        if self._choice.name == "dask":
            future.wrapped_future.cancel()
        else:
            import ray

            ray.cancel(future.wrapped_future)


_NOT_THERE = "not there"


def _stand_in() -> None:
    """In place of a flow that stays where it is."""


def _why_lost(error: Any) -> str:
    names = {cls.__name__ for cls in type(error).__mro__}
    if names & {"KilledWorker", "WorkerCrashedError", "OutOfMemoryError", "NodeDiedError"}:
        return f"the workers that had it died ({worker.plain(error)}). Look at their logs; memory is the usual reason"
    if names & {"ModuleNotFoundError", "ImportError", "AttributeError"}:
        return f"a worker lacks this project, or has another version ({worker.plain(error)}): pip install -e . there"
    return f"lost with the cluster ({worker.plain(error)})"


def for_workers(environment: Mapping[str, str]) -> dict[str, str]:
    """What a worker's stages are told: where MLflow is, if that is a server. A file here is none of theirs; they keep
    the record in their clones then."""
    uri = tracking_uri()
    if not uri.startswith(("http://", "https://", "postgresql", "mysql", "mssql")):
        return {}
    return {"MLFLOW_TRACKING_URI": uri, **{name: environment[name] for name in (PARENT, UNSENT) if name in environment}}


def side_by_side(engine: Engine | None, workers: int | None) -> int:
    """How many runs are under way at once: what a person said, else one here, and one for each worker elsewhere."""
    return workers or (1 if engine is None else engine.workers)


@contextlib.contextmanager
def connected(choice: Choice | None, root: Path) -> Iterator[Engine | None]:
    """The cluster, while a flow runs. Raises UserError where it has no worker or cannot be spoken to."""
    if choice is None:
        yield None
        return
    with contextlib.ExitStack() as stack:
        try:
            runner, workers = stack.enter_context(_dask(choice) if choice.name == "dask" else _ray(choice))
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"--address: {choice.address} cannot be spoken to: {worker.plain(error)}") from error
        if not workers:
            raise UserError(
                f"--address: the cluster at {choice.address} has no worker. Start some: {_START[choice.name]}"
            )
        yield Engine(choice, worker.Parcel.of(root), runner, workers, remote.states_travel(root))


@contextlib.contextmanager
def _dask(choice: Choice) -> Iterator[tuple[Any, int]]:
    from prefect_dask.task_runners import DaskTaskRunner

    with DaskTaskRunner(address=choice.address, client_kwargs={"timeout": _ANSWER_SECONDS}) as runner:
        yield runner, len(runner.client.nthreads())  # asked for here: several threads would make several clients


@contextlib.contextmanager
def _ray(choice: Choice) -> Iterator[tuple[Any, int]]:
    import ray
    from prefect_ray.task_runners import RayTaskRunner

    try:
        with contextlib.ExitStack() as stack:
            for wait in (*_HEAD_SECONDS, None):
                runner = RayTaskRunner(address=choice.address, init_kwargs={"log_to_driver": False})
                try:
                    stack.enter_context(runner)
                    break
                except ConnectionError:  # by ray://: a head that has just begun hears before it can answer
                    ray.shutdown()
                    if wait is None:
                        raise
                    time.sleep(wait)
            # the head's is none where it was started with no processor
            yield runner, sum(bool(node["Alive"] and node["Resources"].get("CPU")) for node in ray.nodes())
    finally:
        ray.shutdown()  # the task runner leaves a client of ray://... connected, and its tasks at work
