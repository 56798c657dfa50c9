"""What every stage program shares: parameters, an input guard, outputs that appear whole, progress and the
record.

    from tasks.stage import Stage, run_stage

    def distill(stage: Stage) -> None:
        with stage.output("data/distill") as folder, stage.progress("distill", total=steps) as bar:
            ...
            bar.update(step, loss=loss, val_accuracy=accuracy)
        stage.record.metrics({"val_accuracy": accuracy}, step=step)

    if __name__ == "__main__":
        run_stage("distill", distill)

Exit codes: 0 done, 1 something that a person can mend (printed as one message), 2 params.yaml is wrong,
130/143 stopped by a signal. Anything else that fails is a bug and shows its traceback.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import psutil

from tasks import COLLECT, integrity, lineage, processes
from tasks.environment import CHECKED, FLOW, is_further_process, of_the_disk, repository_root, set_environment
from tasks.machine import keep_memory, set_up_torch
from tasks.progress import Progress, Silence
from tasks.record import stage_run
from tasks.record.stage_run import Recorder
from thinner.errors import DamagedError, UserError, one_line

if TYPE_CHECKING:
    from thinner.params import Params

INPUTS = "THINNER_INPUTS"  # the hash of the inputs, for the helper processes of data-parallel training
WORK = Path(".thinner")  # locks, resume folders: per working copy, ignored by git and DVC
LOCK_SECONDS = 10.0  # a stage whose `dvc` was killed needs some to notice and to go


class Stopped(BaseException):
    """A signal asked the stage to end; not an Exception, so that no `except Exception` in a stage swallows
    it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@dataclass(frozen=True)
class Stage:
    """What a stage's function is given. Outside of DVC (in a test, in a REPL) `Stage("prepare", params)` is
    enough."""

    name: str
    params: Params
    record: Recorder = field(default_factory=Recorder)
    inputs_hash: str = "none"
    helper: bool = False  # a further process of data-parallel training: computes, writes and says nothing

    @property
    def section(self) -> Any:
        """The params section with the stage's name; None where the stage has none."""
        return getattr(self.params, self.name, None)

    @property
    def resume(self) -> Path:
        """A folder that outlives a killed run and goes when the stage is done.

        Its name carries the hash of everything that the stage reads (command, dependencies, parameters), so
        that a checkpoint is only ever resumed by the very same job.
        """
        folder = _resume_folder(self.name, self.inputs_hash)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @contextlib.contextmanager
    def output(self, path: str | Path) -> Iterator[Path]:
        """A temporary path beside `path`, renamed to it when the block ends well, removed when it does not.

        A path with a suffix is a file (yielded before it exists), one without is a folder (yielded empty).
        """
        if self.helper:
            with tempfile.TemporaryDirectory() as folder:
                yield Path(folder) / Path(path).name if Path(path).suffix else Path(folder)
            return
        final = Path(path)
        partial = final.with_name(f".partial-{final.name}")
        final.parent.mkdir(parents=True, exist_ok=True)
        _remove(partial)  # left by a killed run; the stage's lock says that nobody else is writing it
        if not final.suffix:
            partial.mkdir()
        try:
            yield partial
        except BaseException:
            _remove(partial)
            raise
        if not partial.exists():
            raise RuntimeError(f"{self.name} was to write {final} but left nothing at {partial}")
        if final.is_dir():  # rename() replaces a file but not a folder with something in it
            _remove(final)
        partial.replace(final)

    def say(self, message: str) -> None:
        """One line for the person who watches; under Prefect it is a line of the task run's log."""
        if not self.helper:
            print(message, flush=True)

    @contextlib.contextmanager
    def progress(self, description: str, total: float) -> Iterator[Progress | Silence]:
        """A bar with the numbers given to `update`; how it looks depends on who reads, see `Progress`."""
        bar = Silence() if self.helper else Progress(self.name, description, total)
        try:
            yield bar
        finally:
            bar.close()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def run_stage(name: str, body: Callable[[Stage], None]) -> NoReturn:
    """The whole life of a stage program; ends the process with one of the exit codes above."""
    sys.exit(_run(name, body))


def _run(name: str, body: Callable[[Stage], None]) -> int:
    set_environment()
    keep_memory()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    from thinner.config import ParamsError

    if is_further_process():
        return _help(name, body)
    recorder = Recorder()
    status = "FAILED"
    inputs: lineage.Inputs | None = None
    try:
        root = repository_root()
        with _only_one(name):
            die_with_parents()
            params = _checked_params()
            inputs = lineage.inputs(root, name)
            _mend_inputs(root, name, inputs)
            device = set_up_torch(params.run)
            recorder = stage_run.start(name, inputs.params, inputs.hash, inputs.upstream, device)
            stage = Stage(name, params, recorder, inputs.hash)
            os.environ[INPUTS] = inputs.hash
            gc.freeze()  # what has been imported stays
            gc.set_threshold(*COLLECT)
            body(stage)
            _compare(stage, inputs, lineage.inputs(root, name))
            shutil.rmtree(stage.resume)
            status = "FINISHED"
            return 0
    except ParamsError as error:
        print(error, file=sys.stderr, flush=True)
        return 2
    except DamagedError as error:
        if inputs is not None:  # whatever it was, of what this run kept nothing is believed
            shutil.rmtree(_resume_folder(name, inputs.hash), ignore_errors=True)
        print(f"{name}: {error}; {integrity.AGAIN}", file=sys.stderr, flush=True)
        return 1
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr, flush=True)
        return 1
    except Stopped as stop:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number in (signal.SIGINT, signal.SIGTERM):  # asked again: it ends already, and its run is to be marked
            signal.signal(number, signal.SIG_IGN)
        status = "KILLED"
        with contextlib.suppress(OSError):  # whoever read our output may be what died
            print(f"{name}: stopped by {stop}", file=sys.stderr, flush=True)
        return 128 + stop.number
    except Exception as error:  # noqa: BLE001 - shown whole, and the record still ends as FAILED
        if words := of_the_disk(error) or _of_memory(error):
            print(f"{name}: {words}", file=sys.stderr, flush=True)
        else:
            traceback.print_exc()
        return 1
    finally:
        recorder.end(status)
        for number in (signal.SIGINT, signal.SIGTERM):  # what is left is Python's own end: nothing there to tidy up
            signal.signal(number, signal.SIG_DFL)


def _help(name: str, body: Callable[[Stage], None]) -> int:
    """The life of a further process of data-parallel training, started by Lightning Fabric with this very command, or
    on another machine by a person or a launcher: no lock, no record and no outputs of its own; it ends when the first
    process does."""
    from thinner.config import load_params

    die_with_parents()
    try:
        params = load_params()
        if params.run.processes == 1:
            raise UserError(
                f"{name}: this is a further process of data-parallel training by its environment (NODE_RANK, RANK or "
                "SLURM_PROCID above 0), but run.devices and run.nodes are 1. Set them, or start one process"
            )
        if INPUTS not in os.environ:  # on another machine
            os.environ[INPUTS] = lineage.inputs(repository_root(), name).hash
        set_up_torch(params.run)
        body(Stage(name, params, inputs_hash=os.environ[INPUTS], helper=True))
    except UserError as error:
        print(error, file=sys.stderr, flush=True)
        return 1
    except Stopped as stop:  # the first process is told as well, and says so
        signal.setitimer(signal.ITIMER_REAL, 0)
        return 128 + stop.number
    except Exception as error:
        if not (words := _of_memory(error)):
            raise
        print(f"{name}: {words}", file=sys.stderr, flush=True)
        return 1
    return 0


def _checked_params() -> Params:
    """The parameters; checked to the depth that needs torch, unless the flow has just done that for this
    very file."""
    from thinner.config import load_params

    return load_params(deep=os.environ.get(CHECKED) != params_digest())


def params_digest(root: Path = Path()) -> str:
    """Which params.yaml: the flow hands it to its stages, so that nine of them need not repeat the deep
    check."""
    path = root / "params.yaml"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "none"


def _only_one(name: str) -> contextlib.AbstractContextManager[None]:
    """Hold the stage's lock."""
    refusal = "already running in this folder (process {pid}). Wait for it to end, or stop it"
    return processes.only_one(WORK / "locks" / f"{name}.lock", refusal, LOCK_SECONDS)


def _stop(number: int, frame: FrameType | None) -> None:
    # where it is raised in a callback or a destructor, Python swallows it: so it is raised again until it is heard
    signal.signal(signal.SIGALRM, lambda *_: _stop(number, frame))
    signal.setitimer(signal.ITIMER_REAL, 3.0)
    raise Stopped(number)


def _resume_folder(name: str, inputs_hash: str) -> Path:
    return WORK / "resume" / f"{name}-{inputs_hash[:16]}"


def _mend_inputs(root: Path, name: str, inputs: lineage.Inputs) -> None:
    """Raises UserError where something that the stage reads is not what was written, and cannot be brought back."""
    found = integrity.mend_inputs(root, inputs)
    for damage in found:
        if damage.restored:
            print(f"{name}: {damage}", flush=True)
    if lost := [damage for damage in found if not damage.restored]:
        raise UserError("; ".join(str(damage) for damage in lost))


def _of_memory(error: BaseException) -> str:
    """What a batch that is too large for the memory of a machine or a GPU means to a person; "" where it is something
    else."""
    text = str(error)
    # PyTorch has a class for CUDA; its processor's allocator and Apple's GPU raise RuntimeError
    of_a_device = type(error).__name__ == "OutOfMemoryError" or "MPS backend out of memory" in text
    if not (of_a_device or isinstance(error, MemoryError) or "can't allocate memory" in text):
        return ""
    return (
        f"out of memory ({one_line(text, 160) or 'the system has none left'}). Halve the batch_size that this stage "
        "reads, and with that of a training its lr; or take smaller images (image_size), or run.precision: bf16"
    )


def die_with_parents() -> None:
    """End when the `dvc` (or the flow) that started this stage has died.

    `kill -9` of dvc leaves its command alive, and the next `dvc repro` would start a second one beside it.
    Polled: the kernel's PDEATHSIG fires when the parent's *thread* ends, knows only one generation, and is
    Linux's alone.
    """
    watched: list[tuple[int, float]] = []
    for parent in processes.parents():
        watched.append((parent.pid, processes.started(parent.pid)))
        with contextlib.suppress(psutil.Error):
            if any(Path(word).name == "dvc" for word in parent.cmdline()[:3]):
                break
    else:
        watched = []  # not below a dvc: somebody typed `python -m tasks.NAME`
    if flow := os.environ.get(FLOW):
        pid, started = flow.split(":")
        watched.append((int(pid), float(started)))
    if not watched:
        return

    def watch() -> None:
        while all(processes.is_alive(pid, started) for pid, started in watched):
            time.sleep(0.5)
        processes.end_this_process()

    threading.Thread(target=watch, name="watch-parents", daemon=True).start()


def _compare(stage: Stage, before: lineage.Inputs, after: lineage.Inputs) -> None:
    """DVC hashes what a stage read only after it ran: an edit in between would be recorded as if it had been
    read."""
    changed = before.changes(after)
    if changed:
        shutil.rmtree(stage.resume)
        raise UserError(
            f"changed while the stage ran: {', '.join(changed)}. Its result would be recorded as made "
            f"from what is there now, which is not true, so it is not kept. "
            f"Run it again: dvc repro {stage.name}"
        )
