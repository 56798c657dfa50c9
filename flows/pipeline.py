"""The pipeline: DVC's graph as a Prefect flow, one task run per stage, branches side by side.

For each stage the flow asks DVC whether it is up to date and, if not, has DVC run it in a process of its
own. So the graph is written once (dvc.yaml), there is one judge of what is up to date, and `dvc repro` walks
the same road.

    python -m flows.pipeline            everything that is out of date
    python -m flows.pipeline distill    this stage and what it needs
    python -m flows.pipeline --quiet --json end.json
                                        only the end, and that for programs as well
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import psutil
from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.futures import wait
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL
from prefect.states import Completed, Crashed, Failed
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field

from flows import console, ending, prefect_settings, record, server
from flows import slots as gpu
from flows.watch import MARK
from tasks import forks, integrity, lineage, lockfile, processes, remote
from tasks.environment import (
    CHECKED,
    FLOW,
    PARENT,
    PROGRESS,
    UNSENT,
    child_environment,
    of_the_disk,
    repository_root,
)
from tasks.stage import params_digest
from thinner.config import load_params
from thinner.errors import UserError

GRACE_SECONDS = 10.0  # between asking a stage to end and making it
_PASSES = 3  # over the graph, where files were damaged
BUSY_RETRIES, BUSY_SECONDS = 20, 3.0  # somebody's `dvc status` takes a moment, their `dvc repro` a while

# DVC's own talk around a stage's output: the flow has said it better, or it is for people without a flow.
_TALK = (
    "Running stage '",
    "> python -m tasks.",
    "Updating lock file",
    "Generating lock file",
    "Use `dvc push`",
    "To track the changes with git",
    "To enable auto staging",
    "git add ",
    "dvc config core.autostage",
    "Stage '",
    "ERROR: failed to reproduce",
    "Data and pipelines are up to date",
)


def is_talk(line: str) -> bool:
    """Whether a line of DVC's says nothing new. Of a failure that is its own, and not the stage's, it says the reason
    in the line that names the stage."""
    if line.startswith("ERROR: failed to reproduce") and line.count(": ") > 1 and ": failed to run: " not in line:
        return False
    return line.startswith(_TALK)


_processes: dict[str, subprocess.Popen[str]] = {}  # stage -> the dvc that runs it now
_guard = threading.Lock()
_cancelled = threading.Event()
_ended: dict[str, str] = {}  # stage -> Prefect's name of the state in which it ended, of the last flow in this process
_took: dict[str, float] = {}  # stage -> seconds that DVC was at it
_told: dict[str, str] = {}  # what the last flow in this process told its stages through the environment


_THREADS: Any = ThreadPoolTaskRunner(max_workers=64)  # they only wait; `jobs` bounds what computes


def _is_busy(task: Any, task_run: Any, state: State) -> bool:
    """Worth a retry: another process holds the files. A failed training fails again."""
    return lineage.is_busy(state.message or "")


@flow(
    name="thinner",
    flow_run_name=lambda: datetime.now().strftime("pipeline %Y-%m-%d %H:%M:%S"),
    task_runner=_THREADS,
    persist_result=False,
    validate_parameters=True,
)
def pipeline(stages: list[str] | None = None, jobs: Annotated[int, Field(ge=1)] = 2) -> State:
    """Bring the stages (all by default; else these and what they need) up to date, at most `jobs` at a
    time."""
    try:
        return _conduct(stages, jobs)
    except UserError as error:  # a state with a message, not a traceback
        return Failed(message=str(error))


def _conduct(stages: list[str] | None, jobs: int) -> State:
    root = repository_root()
    server.remember()
    for past in (_ended, _took, _told):
        past.clear()
    gpu.count(root)
    with only_run(root):
        _end_leftovers()
        if said := lineage.mend(root):
            get_run_logger().warning(said)
        lockfile.keep(root)
        graph = lineage.graph(root)
        nodes = select(graph, stages)
        if left := lineage.remove_leftovers(root, graph):
            get_run_logger().info("removed, as params.yaml no longer names it: %s", ", ".join(left))
        travel = _travel(root, get_run_logger().info)
        stale = plan(root, nodes)
        asks = bool(stale) and travel.pull and remote.answers(root, get_run_logger().warning)
        environment, helpers = _before_first_stage(root) if stale else ({}, None)
        if asks:
            environment[remote.FETCH] = "yes"
        _told.update(environment)
        _cancelled.clear()
        slots = threading.BoundedSemaphore(jobs)
        states: dict[str, State] = {}
        status = "FAILED"
        console.start_bars()
        try:
            for number in range(_PASSES):
                futures: dict[str, Any] = {}
                for node in nodes:
                    run: Any = stage.with_options(name=node.name, task_run_name=node.name)
                    futures[node.name] = run.submit(
                        root,
                        node,
                        environment,
                        slots,
                        number > 0 or node.name in stale,
                        wait_for=[futures[up] for up in node.upstream if up in futures],
                    )
                wait(list(futures.values()))
                states = _later(states, {name: future.state for name, future in futures.items()})
                # what a stage found damaged is gone by now, so its maker is out of date
                if not any(integrity.AGAIN in (state.message or "") for state in states.values()):
                    break
            _ended.update({name: state.name or "" for name, state in states.items()})
            if all(state.is_completed() for state in states.values()):
                status = "FINISHED"
        except BaseException:  # cancelled, Ctrl-C, SIGTERM: without this the stages would run on by themselves
            status = "KILLED"
            kill_stages()
            raise
        finally:
            console.stop_bars()
            if helpers is not None:
                _close_record(root, environment, status, states, helpers.record)
                helpers.forks.end()
        if travel.push and any(state.name == "Completed" for state in states.values()):
            remote.send(root, get_run_logger().info, get_run_logger().warning)
    return server.decided(_verdict(states))


def _travel(root: Path, say: Callable[[str], None]) -> remote.Travel:
    """Whether results travel with this run; if so, raw data that .dvc files name has come when this returns."""
    travel = remote.travel(root)
    if travel.pull:
        remote.bring_data(root, say)
    if root not in _noted:  # the command asks before the flow, and the flow where no command has
        _noted.add(root)
        data = load_params(root / "params.yaml").data
        lineage.check_data(str(root / data.root), data.source)  # or DVC would hang at a FIFO
        remote.note_other_data(root, say)
    return travel


_noted: set[Path] = set()


def _later(before: Mapping[str, State], now: dict[str, State]) -> dict[str, State]:
    """How each stage ended: one that ran in an earlier pass and is up to date since then has run."""
    return {
        name: before[name] if state.name == "Cached" and name in before and before[name].is_completed() else state
        for name, state in now.items()
    }


@task(
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=BUSY_RETRIES,
    retry_delay_seconds=BUSY_SECONDS,
    retry_condition_fn=_is_busy,
)
def stage(
    root: Path, node: lineage.Node, environment: dict[str, str], slots: threading.Semaphore, stale: bool
) -> State:
    """Ask DVC about one stage; have DVC run it if it is out of date. Not ``stale``: it was up to date a moment ago, and
    is so still where nothing upstream has run.

    Ends as `Cached` (was up to date), `Restored` (DVC had the result in its cache), `Completed`, `Failed` or
    `TimedOut`.
    """
    logger = get_run_logger()
    as_before = not stale and all(_ended.get(up) == "Cached" for up in node.upstream)
    why = [] if as_before else lineage.reasons(root, node.name)
    if not why:
        logger.info("up to date")
        if _ended.get(node.name) not in ("Completed", "Restored"):  # in an earlier pass
            _ended[node.name] = "Cached"
        return Completed(name="Cached", message="up to date")
    with slots:
        if _cancelled.is_set():
            return Failed(name="Cancelled", message="cancelled before it started")
        logger.info("out of date: %s", console.abbreviated(why))
        with gpu.held(root, logger, _cancelled.is_set), console.stage_shown(node.name):
            if _cancelled.is_set():  # while it waited
                return Failed(name="Cancelled", message="cancelled before it started")
            state = _reproduce(root, node, environment, logger)
        stopped = _cancelled.is_set() and not state.is_completed()
        _ended[node.name] = "Cancelled" if stopped else state.name or ""
        return state


def _reproduce(root: Path, node: lineage.Node, environment: dict[str, str], logger: Any) -> State:
    began = time.monotonic()
    fetching = remote.FETCH in environment
    command = remote.command("repro", node.name) if fetching else lineage.reproduce_command(node.name, alone=True)
    process = start_dvc(command, root, environment)
    with _guard:
        _processes[node.name] = process
    said: list[str] = []
    try:
        assert process.stdout is not None
        with ended_after(node.timeout_seconds, process) as timed_out:
            for line in process.stdout:
                _pass_on(line.rstrip(), said, logger)
            code = process.wait()
    finally:
        seconds = time.monotonic() - began
        with _guard:
            _processes.pop(node.name, None)
            _took[node.name] = _took.get(node.name, 0.0) + seconds
    took = f"{seconds:.0f} s"
    everything = "\n".join(said)
    if timed_out.is_set():
        message = f"{node.name} took longer than {node.meta['timeout_minutes']} minutes (dvc.yaml, meta)"
        logger.error(message)
        return Failed(name="TimedOut", message=message)
    if code == 0:
        lockfile.keep(root)
        restored = any(mark in everything for mark in lineage.RESTORED)
        logger.info("restored from DVC's cache" if restored else f"done in {took}")
        return Completed(name="Restored" if restored else "Completed", message=took)
    if lineage.is_busy(everything):
        if mended := lineage.mend_rwlock(root):
            logger.warning(mended)
        raise lineage.BusyError(everything[-500:])
    tail = [line for line in said if line and not is_talk(line)]
    message = f"{node.name} failed after {took}: {tail[-1] if tail else f'exit code {code}'}"
    logger.error("failed after %s. To see it alone: dvc repro --single-item %s", took, node.name)
    return Failed(message=message)


@contextlib.contextmanager
def ended_after(seconds: float | None, process: subprocess.Popen[str]) -> Iterator[threading.Event]:
    """End the process and its group if this takes longer, and set the event. Prefect's timeout_seconds cannot interrupt
    a thread: DVC went on and committed while Prefect said TimedOut."""
    timed_out = threading.Event()

    def end() -> None:
        timed_out.set()
        kill_group(process)

    timer = None if seconds is None else threading.Timer(seconds, end)
    if timer is not None:
        timer.daemon = True
        timer.start()
    try:
        yield timed_out
    finally:
        if timer is not None:
            timer.cancel()


def _pass_on(line: str, said: list[str], logger: Any) -> None:
    if line.startswith(PROGRESS):
        with contextlib.suppress(json.JSONDecodeError, KeyError):
            console.show_progress(json.loads(line.removeprefix(PROGRESS)), logger)
        return
    said.append(line)
    if line.strip() and not is_talk(line.strip()):
        logger.info(line)


def select(nodes: list[lineage.Node], names: list[str] | None) -> list[lineage.Node]:
    """The named stages and all upstream of them, in order.

    Raises:
        UserError: dvc.yaml has no stage of that name.
    """
    if not names:
        return nodes
    by_name = {node.name: node for node in nodes}
    wanted: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in by_name:
            raise UserError(f"unknown stage '{name}'. Choose one of: {', '.join(by_name)}")
        if name not in wanted:
            wanted.add(name)
            waiting += by_name[name].upstream
    return [node for node in nodes if node.name in wanted]


def plan(root: Path, nodes: list[lineage.Node]) -> list[str]:
    """The stages that are out of date now; what follows from them DVC knows only once they have run.

    A stage whose files another process is using counts: its task asks again, and waits if need be.

    Raises:
        UserError: params.yaml is wrong, something lies in the raw data at which DVC would hang or fail, or a place
            where a result has to be written may not be.
    """
    data = load_params().data
    lineage.check_data(data.root, data.source)
    try:
        stale = [name for name, why in lineage.all_reasons(root, [node.name for node in nodes]).items() if why]
    except lineage.BusyError:
        stale = [node.name for node in nodes if _is_stale_or_busy(root, node.name)]
    if stale:
        lineage.check_writable(root, nodes, lineage.cache_folder(root))
    return stale


def _is_stale_or_busy(root: Path, name: str) -> bool:
    try:
        return bool(lineage.reasons(root, name))
    except lineage.BusyError:
        return True


@dataclass(frozen=True)
class _Helpers:
    """Processes that take seconds to import what they need: of one all others of the run are forks; one checks
    params.yaml in depth, if that has to be done; one opens MLflow's run of the flow and waits to close it."""

    digest: str  # of params.yaml as it is checked
    forks: forks.Server
    check: subprocess.Popen[str] | None
    record: record.Record

    @classmethod
    def start(cls, root: Path) -> _Helpers:
        load_params()
        environment, digest = child_environment(**{FLOW: processes.mark()}), params_digest()
        forking = forks.Server.start(environment)
        environment |= forking.environment
        check = None if os.environ.get(CHECKED) == digest else record.start(root, environment, "tasks.check")
        return cls(digest, forking, check, record.Record.start(root, environment))

    def end(self) -> None:
        if self.check:
            with contextlib.suppress(ValueError):
                self.check.communicate("")
        self.record.leave()
        self.forks.end()


_early: list[_Helpers] = []  # started before the flow, while Prefect's server starts


def _before_first_stage(root: Path) -> tuple[dict[str, str], _Helpers]:
    """Check params.yaml in depth and open MLflow's run; what the stages are told, and what will close it."""
    helpers = _early.pop() if _early else _Helpers.start(root)
    if helpers.digest != params_digest():  # edited since
        helpers.end()
        helpers = _Helpers.start(root)
    note = _open_note(root)
    note.parent.mkdir(exist_ok=True)
    note.touch()
    check = helpers.check
    try:
        check_error = check.communicate()[1] if check else ""
        if check and check.returncode:  # before a run is opened that nobody would close
            raise UserError(check_error.strip())
        opened = helpers.record.open()
    except BaseException:
        helpers.end()
        raise
    if opened.said:
        get_run_logger().warning(opened.said)
    told = {PARENT: opened.run_id, CHECKED: helpers.digest, UNSENT: "yes" if opened.kept else "no"}
    return told | helpers.forks.environment, helpers


def _open_note(root: Path) -> Path:
    """A file that is there from before MLflow's run of a flow is opened until it is closed."""
    return root / ".thinner" / "open-run"


def _mend_record(root: Path) -> None:
    """A flow that was killed behind its last stage left a run that seems to run, and no further one that would look."""
    command = [sys.executable, "-m", "tasks.record.pipeline_run", "mend"]
    if not subprocess.run(command, env=child_environment(), capture_output=True, check=False).returncode:
        _open_note(root).unlink(missing_ok=True)


def _close_record(
    root: Path,
    environment: Mapping[str, str],
    status: str,
    states: Mapping[str, State],
    recorder: record.Record,
) -> None:
    """Have ``recorder``, which opened MLflow's run, close it."""
    hashes = lineage.locked_hashes(root)
    stages = {
        name: {"state": state.name or "", "hash": hashes.get(name, "") if state.is_completed() else ""}
        for name, state in states.items()
    }
    closed = recorder.close(root, child_environment(**environment), environment[PARENT], status=status, stages=stages)
    if not closed.well:  # what was computed stands; only its summary in MLflow is missing
        get_run_logger().warning("MLflow's run of this pipeline was not closed: %s", closed.error[-300:])
        return
    _open_note(root).unlink(missing_ok=True)
    if closed.said:
        get_run_logger().info(closed.said.splitlines()[-1])


def _verdict(states: dict[str, State]) -> State:
    """The flow's own state. Names what failed and what therefore did not run."""
    failed = [name for name, state in states.items() if state.is_failed() or state.is_crashed()]
    waiting = [name for name, state in states.items() if not state.is_completed() and name not in failed]
    if failed:
        first = states[failed[0]].message or failed[0]
        return Failed(message=first + (f". Not run: {', '.join(waiting)}" if waiting else ""))
    done = [name for name, state in states.items() if state.name != "Cached"]
    if not done:
        return Completed(name="Cached", message="every stage is up to date")
    return Completed(message=f"ran: {', '.join(done)}")


# --- processes ---


def kill_stages() -> None:
    """End every running stage, with all that it started, and wait until they are gone."""
    _cancelled.set()
    with _guard:
        running = list(_processes.values())
    killers = [threading.Thread(target=kill_group, args=(process,)) for process in running]
    for killer in killers:
        killer.start()
    for killer in killers:
        killer.join()


def kill_group(process: subprocess.Popen[str]) -> None:
    """SIGTERM to the process's group, so that a stage can tidy up; SIGKILL to whatever is left after a grace
    period."""
    give_up = time.monotonic() + GRACE_SECONDS
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            while number == signal.SIGTERM and time.monotonic() < give_up:
                process.poll()  # reaps dvc, which would else count as a member for ever
                os.killpg(process.pid, 0)
                time.sleep(0.05)
        except (ProcessLookupError, PermissionError):  # macOS says the latter of a group of zombies
            return


def start_dvc(command: list[str], root: Path, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """DVC at work in ``root``, its stages telling of their progress; all that it says is on ``stdout``."""
    return subprocess.Popen(
        command,
        cwd=root,
        env=child_environment(**environment, THINNER_PROGRESS="json", **{FLOW: processes.mark()}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        # its own process group: one kill reaches dvc, its shell, the stage and its workers
        start_new_session=True,
    )


@contextlib.contextmanager
def stoppable(words: str, seconds: float = 30.0) -> Iterator[None]:
    """A flow that Ctrl-C ends, within `seconds`; ``words`` tell the person what becomes of the work.

    On a terminal the same Ctrl-C ends Prefect's embedded server, and Prefect goes on asking that one for minutes,
    for its last logs even when the flow has ended. So whatever is left after `seconds` is cut off.
    """

    if PREFECT_API_URL.value() is None:
        server.watch_own()

    def leave() -> None:
        for child in psutil.Process().children():
            child.kill()
        os._exit(130)

    def leave_in(seconds: float) -> None:
        last = threading.Timer(seconds, leave)
        last.daemon = True
        last.start()

    def stop(*_: object) -> None:
        leave_in(seconds)
        console.console.print(words, style="yellow", markup=False)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    except KeyboardInterrupt:
        leave_in(5.0)  # the stages are gone and MLflow knows; what is left is Prefect's goodbye
        raise
    finally:
        signal.signal(signal.SIGINT, before)


def only_run(root: Path) -> contextlib.AbstractContextManager[None]:
    """One pipeline run per working copy."""
    return processes.only_one(
        root / ".thinner" / "locks" / "pipeline.lock",
        "another run of the pipeline is at work in this folder. Wait for it, or stop it with Ctrl-C there",
    )


def _end_leftovers() -> None:
    """A flow run that was killed would be shown as running for ever."""
    if os.environ.get(MARK) != processes.mark():
        return  # a shared server: others' runs are none of our business
    if prefect_settings.is_shared_database():
        return  # nor are those of other servers in one database
    from prefect.client.schemas.filters import (
        FlowFilter,
        FlowFilterName,
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import StateType

    ours = FlowFilter(name=FlowFilterName(any_=["thinner"]))
    running = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING]))
    with get_client(sync_client=True) as client:
        for other in client.read_flow_runs(flow_filter=ours, flow_run_filter=FlowRunFilter(state=running)):
            if str(other.id) not in (str(flow_run.id), str(flow_run.parent_flow_run_id)):
                client.set_flow_run_state(other.id, Crashed(message="the process was killed"), force=True)


def run(
    stages: list[str] | None = None,
    jobs: int = 2,
    quiet: bool = False,
    file: Path | None = None,
    begin: Callable[[], None] | None = None,
) -> int:
    """What `make run` does: plan, flow, the end. Returns the exit code.

    ``quiet``: only the end is told, and what went wrong. ``file``: how it ended, as JSON (flows.ending). ``begin``:
    what comes before all else, and may refuse.
    """
    nodes: list[lineage.Node] = []
    try:
        root = repository_root()
        if file is not None:
            ending.check_file(file)
    except UserError as error:
        console.console.print(str(error), style="red", markup=False)
        return 2
    try:
        if begin is not None:
            begin()
        load_params()  # first of all: a typo is told at once
        if said := lineage.mend(root):
            console.console.print(said, style="yellow", markup=False)
        nodes = select(lineage.graph(root), stages)
        verdict, message = _bring_up_to_date(root, nodes, stages, jobs, quiet)
    except UserError as error:
        console.console.print(str(error), style="red", markup=False)
        verdict, message = "refused", str(error)
    except OSError as error:
        if not (message := of_the_disk(error)):
            raise
        console.console.print(message, style="red", markup=False)
        verdict = "failed" if _ended else "refused"
    except KeyboardInterrupt:
        verdict, message = "stopped", "stopped by Ctrl-C or a signal"
    if file is not None:
        try:
            ending.write(file, as_json(root, nodes, verdict, message))
        except UserError as error:
            console.console.print(str(error), style="red", markup=False)
            return 2
    code = ending.CODES[verdict]
    return server.leave(code) if verdict != "stopped" else code


def as_json(root: Path, nodes: list[lineage.Node], verdict: str, message: str) -> dict[str, Any]:
    """How the last flow in this process ended, for programs."""
    ends = ending.stages(root, nodes, _ended, _took)
    return ending.as_json(root, verdict, message, ends, verdict in ("to ship", "nothing to ship"))


def ended() -> frozenset[str]:
    """The stages that the last flow in this process has looked at."""
    return frozenset(_ended)


def run_in_mlflow() -> str | None:
    """The id of the run that the last flow in this process has there; None where it had nothing to do."""
    return _told.get(PARENT)


def _bring_up_to_date(
    root: Path, nodes: list[lineage.Node], stages: list[str] | None, jobs: int, quiet: bool
) -> tuple[str, str]:
    """Run what is out of date and tell the end; the verdict (one of ending.CODES) and what it rests on."""
    _travel(root, lambda line: console.console.print(line, markup=False))
    stale = plan(root, nodes)
    if not quiet:
        console.console.print(
            f"Out of date: {', '.join(stale)}, and what follows from it"
            if stale
            else f"Every stage is up to date: {', '.join(node.name for node in nodes)}",
            markup=False,
        )
        if stale and (said := remote.hint(root)):
            console.console.print(said, style="yellow", markup=False)
    _took.clear()
    _ended.clear()
    if not stale and PREFECT_API_URL.value() is None:
        # No server is there to be told, and starting one takes twice as long as all the rest.
        if _open_note(root).exists():
            with contextlib.suppress(UserError), only_run(root):  # of a run that is at work it is none of our business
                _mend_record(root)
        _ended.update({node.name: "Cached" for node in nodes})
    else:
        if stale:
            _early.append(_Helpers.start(root))
        server.leave_dead()
        console.take_over(quiet)
        try:
            with stoppable("Stopping. The next run goes on from the last checkpoint."):
                state = server.outlived(lambda: pipeline(stages, jobs, return_state=True))
        finally:
            while _early:  # no flow took them over
                _early.pop().end()
        ending.print_stages(ending.stages(root, nodes, _ended, _took))
        if not state.is_completed():
            message = state.message or state.name or ""
            console.console.print(message, style="red", markup=False)
            return "failed", message
    if stages and "report" not in (node.name for node in nodes):
        console.console.print("Next     thinner run    the stages after it")
        return "done", f"up to date: {', '.join(node.name for node in nodes)}"
    return ending.print_results(root)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.pipeline", description="Bring stages up to date.")
    parser.add_argument("stages", nargs="*", help="these and what they need; none: all of them")
    parser.add_argument("--jobs", type=int, default=2, help="how many may compute side by side (2)")
    parser.add_argument("--quiet", action="store_true", help="say only how it ended, and what went wrong")
    parser.add_argument("--json", type=Path, dest="file", metavar="FILE", help="keep how it ended in this file")
    given = parser.parse_args()
    if given.jobs < 1:
        parser.error("--jobs: must be 1 or more")
    return run(given.stages or None, given.jobs, given.quiet, given.file)


if __name__ == "__main__":
    sys.exit(main())
