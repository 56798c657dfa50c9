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
import ctypes
import errno
import fcntl
import hashlib
import json
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
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import psutil

from tasks import integrity, lineage, processes, tracking
from tasks.environment import CHECKED, FLOW, PROGRESS, repository_root, set_environment
from tasks.tracking import Recorder
from thinner.errors import DamagedError, UserError

if TYPE_CHECKING:
    from thinner.config import Params, Run

INPUTS = "THINNER_INPUTS"  # the hash of the inputs, for the helper processes of data-parallel training
_LAST_WORDS_SECONDS = 8.0  # to save a state and mark the run, when who started the stage has died
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


class Progress:
    """How far a stage is. On a terminal a bar; read by the flow (THINNER_PROGRESS=json) one `::progress
    {json}` line each quarter of a second; anywhere else a plain line each five seconds. May be nested:
    rounds around epochs."""

    _live: ClassVar[Any] = None  # rich shows one live display at a time, so nested bars share it
    _open: ClassVar[int] = 0

    def __init__(self, stage: str, description: str, total: float) -> None:
        self._stage, self._description, self._total = stage, description, total
        self._done: float = 0
        self._numbers: dict[str, float] = {}
        self._start = self._shown = time.monotonic()
        self._bar: Any = None
        self._json = os.environ.get("THINNER_PROGRESS") == "json"
        self._every = 0.25 if self._json else 0.1 if sys.stdout.isatty() else 5.0
        if self._every == 0.1:
            if Progress._live is None:
                from rich.progress import Progress as Bars

                Progress._live = Bars(*bar_columns())
                Progress._live.start()
            self._bar = Progress._live.add_task(description, total=total, numbers="")
        elif self._json:
            self._show()  # at once, so that a bar stands while the first step compiles or warms up
        Progress._open += 1

    def update(self, done: float, **numbers: float) -> None:
        """`done` of `total`, in the caller's unit; numbers stay shown until they are given anew."""
        self._done = done
        self._numbers.update({name: float(value) for name, value in numbers.items()})
        if time.monotonic() - self._shown >= self._every:
            self._show()

    def close(self) -> None:
        self._show(last=True)
        Progress._open -= 1
        if Progress._live is not None and Progress._open == 0:
            Progress._live.stop()
            Progress._live = None

    def _show(self, last: bool = False) -> None:
        self._shown = time.monotonic()
        if self._bar is not None:
            Progress._live.update(self._bar, completed=self._done, numbers=numbers_text(self._numbers))
        elif self._json:
            event = {
                "stage": self._stage,
                "description": self._description,
                "done": self._done,
                "total": self._total,
                "numbers": self._numbers,
                "last": last,
            }
            print(PROGRESS + json.dumps(event), flush=True)
        else:
            print(
                progress_text(self._description, self._done, self._total, self._numbers, self._shown - self._start),
                flush=True,
            )


class Silence:
    """The progress of a helper process: its first process shows the bar of all."""

    def update(self, done: float, **numbers: float) -> None: ...

    def close(self) -> None: ...


def numbers_text(numbers: dict[str, float]) -> str:
    """`loss 0.412  val_accuracy 0.873`: four significant digits, names as they were given."""
    return "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())


def progress_text(description: str, done: float, total: float, numbers: dict[str, float], seconds: float) -> str:
    """The plain form of a bar: `distill  45 %  loss 0.41  val_accuracy 0.86  1:02 left`."""
    share = min(1.0, done / total) if total else 1.0
    left = f"{_clock(seconds / share - seconds)} left" if 0.01 <= share < 1 else ""
    return "  ".join(part for part in (description, f"{share:4.0%}", numbers_text(numbers), left) if part)


def bar_columns() -> list[Any]:
    """The columns of a live bar, the same under `dvc repro` and under the flow."""
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn

    return [
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
    ]


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"


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

    if any(_rank(kind) > 0 for kind in ("LOCAL_RANK", "NODE_RANK", "RANK", "SLURM_PROCID")):
        return _help(name, body)
    recorder = Recorder()
    status = "FAILED"
    inputs: lineage.Inputs | None = None
    try:
        root = repository_root()
        with _only_one(name):
            _die_with_parents()
            params = _checked_params()
            inputs = lineage.inputs(root, name)
            _mend_inputs(root, name, inputs)
            device = set_up_torch(params.run)
            recorder = tracking.start_stage_run(name, inputs.params, inputs.hash, inputs.upstream, device)
            stage = Stage(name, params, recorder, inputs.hash)
            os.environ[INPUTS] = inputs.hash
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
        if words := _of_the_disk(error):
            print(f"{name}: {words}", file=sys.stderr, flush=True)
        else:
            traceback.print_exc()
        return 1
    finally:
        recorder.end(status)
        for number in (signal.SIGINT, signal.SIGTERM):  # what is left is Python's own end: nothing there to tidy up
            signal.signal(number, signal.SIG_DFL)


def _rank(kind: str) -> int:
    """Which process this is, of those that a launcher of data-parallel training has numbered; 0 where there is none."""
    value = os.environ.get(kind, "")
    return int(value) if value.isdecimal() else 0


def _help(name: str, body: Callable[[Stage], None]) -> int:
    """The life of a further process of data-parallel training, started by Lightning Fabric with this very command, or
    on another machine by a person or a launcher: no lock, no record and no outputs of its own; it ends when the first
    process does."""
    from thinner.config import load_params

    _die_with_parents()
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
    return 0


def set_up_torch(run: Run) -> str:
    """Threads, seeds and determinism for this process, in this one place. Returns the device's name for the
    record.

    Does nothing but name the machine's processor when the stage does not use torch: importing it costs
    seconds. Warnings only, because a few operators have no deterministic form on a GPU; on the CPU all that we
    use have one.
    """
    if "torch" not in sys.modules:
        return "cpu"
    import torch

    torch.set_num_threads(thread_count(run.threads))
    torch.manual_seed(run.seed)  # for whatever takes no generator, such as the initial weights of a layer
    if run.compile:
        torch.use_deterministic_algorithms(True, warn_only=True)  # tells the compiler as well, which takes seconds
    else:
        torch.set_deterministic_debug_mode("warn")
    torch.backends.cudnn.benchmark = False
    # NVIDIA's 19 bits in place of 32, in convolutions and in products of matrices alike; PyTorch has it in one of them
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = run.precision == "tf32"
    if run.device in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda: {torch.cuda.get_device_name()}"
    if run.device in ("auto", "mps") and torch.backends.mps.is_available():
        return "mps"
    return f"cpu: {torch.get_num_threads()} threads"


def thread_count(threads: str | int) -> int:
    """`auto` is every core that this process may use, which in a container is fewer than the machine has."""
    if isinstance(threads, int):
        return threads
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def keep_memory() -> None:
    """Have glibc keep big blocks instead of giving each back to the kernel, before torch takes the first one.

    Measured: inference at batch 256 spent half of its time in page faults; 520 -> 1,118 images/s with this.
    `mallopt` instead of MALLOC_* variables, because those are read before Python starts. Other C libraries
    have no such call, or one with other numbers: there it is left alone.
    """
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.gnu_get_libc_version  # noqa: B018 - only glibc has it
        for parameter in (-3, -1):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            libc.mallopt(parameter, 2**31 - 1)


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


@contextlib.contextmanager
def _only_one(name: str) -> Iterator[None]:
    """Hold the stage's lock. The kernel drops it when the process ends, however it ends."""
    path = WORK / "locks" / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as lock:
        give_up = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > give_up:
                    lock.seek(0)
                    raise UserError(
                        f"already running in this folder (process {lock.read().strip()}). "
                        "Wait for it to end, or stop it"
                    ) from None
                time.sleep(0.2)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


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


def _of_the_disk(error: BaseException) -> str:
    """What a full or read-only disk means to a person; "" where it is something else."""
    number = getattr(error, "errno", None)
    file = getattr(error, "filename", None) or "what it makes"
    text = str(error)
    # NumPy and safetensors tell no error number
    full = "No space left on device" in text or ("requested and" in text and "written" in text)
    if full or number in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"no room is left on the disk to write {file} ({shutil.disk_usage('.').free / 1e6:,.0f} MB free). "
            "Make room, then run again: it goes on from the last state that was saved"
        )
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"may not write or read {file} ({os.strerror(number)}). Change its owner or mode, then run again"
    if number == errno.EIO:
        return f"the disk fails to give or take {file} ({os.strerror(number)}). See the system's log"
    return ""


def _die_with_parents() -> None:
    """End when the `dvc` (or the flow) that started this stage has died.

    `kill -9` of dvc leaves its command alive, and the next `dvc repro` would start a second one beside it.
    Polled: the kernel's PDEATHSIG fires when the parent's *thread* ends, knows only one generation, and is
    Linux's alone.
    """
    watched: list[tuple[int, float]] = []
    for parent in psutil.Process().parents():
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
        os.kill(os.getpid(), signal.SIGTERM)  # the gentle way: partial outputs go, the run is marked
        time.sleep(_LAST_WORDS_SECONDS)
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
        os._exit(128 + signal.SIGTERM)

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
