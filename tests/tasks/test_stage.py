"""tasks/stage.py without DVC and MLflow; with both it is tested in tests/flows/test_pipeline.py."""

import io
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks import environment, machine, processes
from tasks import stage as module
from tasks.environment import of_the_disk
from tasks.lineage import Inputs
from tasks.machine import set_up_torch, thread_count
from tasks.progress import numbers_text, progress_text
from tasks.record import mlflow_client
from tasks.stage import Stage
from tests.toy import PROJECT, eventually
from thinner.config import load_params
from thinner.errors import UserError


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("THINNER_PROGRESS", raising=False)
    return Stage("distill", load_params(PROJECT / "params.yaml"), inputs_hash="0123456789abcdef0123")


def test_section_is_the_one_named_like_the_stage(stage: Stage) -> None:
    assert stage.section is stage.params.distill


def test_a_folder_appears_whole_under_its_name(stage: Stage) -> None:
    with stage.output("data/distill") as folder:
        (folder / "one").write_text("1")
        assert not Path("data/distill").exists()
    assert sorted(p.name for p in Path("data").rglob("*")) == ["distill", "one"]


def test_a_file_appears_whole_under_its_name(stage: Stage) -> None:
    with stage.output("reports/distill/history.csv") as path:
        path.write_text("a")
        assert path.suffix == ".csv"  # writers that go by the suffix must see the same one
        assert not Path("reports/distill/history.csv").exists()
    assert [p.name for p in Path("reports/distill").iterdir()] == ["history.csv"]


def test_an_old_output_is_replaced_whole(stage: Stage) -> None:
    Path("data/distill").mkdir(parents=True)
    Path("data/distill/old").write_text("old")
    with stage.output("data/distill") as folder:
        (folder / "new").write_text("new")
    assert [p.name for p in Path("data/distill").iterdir()] == ["new"]


@pytest.mark.parametrize("path", ["data/distill", "reports/distill.csv"])
def test_a_failure_leaves_neither_the_output_nor_the_partial_one(stage: Stage, path: str) -> None:
    def write(partial: Path) -> None:
        (partial / "x" if partial.is_dir() else partial).write_text("x")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), stage.output(path) as partial:
        write(partial)
    assert list(Path(path).parent.iterdir()) == []


def test_what_a_killed_run_left_is_not_mixed_into_the_output(stage: Stage) -> None:
    Path("data/.partial-distill").mkdir(parents=True)
    Path("data/.partial-distill/half").write_text("half")
    with stage.output("data/distill") as folder:
        assert list(folder.iterdir()) == []


def test_resume_folder_is_named_by_the_inputs(stage: Stage) -> None:
    assert stage.resume.is_dir()
    assert stage.resume != Stage("distill", stage.params, inputs_hash="other").resume
    assert stage.resume != Stage("scratch", stage.params, inputs_hash=stage.inputs_hash).resume


def test_progress_for_the_flow_is_json_lines(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("THINNER_PROGRESS", "json")
    with stage.progress("epochs", total=4) as bar:
        bar.update(2, loss=0.5)
        bar.update(4, val_accuracy=0.75)
    lines = capsys.readouterr().out.splitlines()
    events = [json.loads(line.removeprefix("::progress ")) for line in lines]
    assert events[0] == {
        "stage": "distill",
        "description": "epochs",
        "done": 0,
        "total": 4,
        "numbers": {},
        "last": False,
    }
    assert events[-1] == {
        "stage": "distill",
        "description": "epochs",
        "done": 4,
        "total": 4,
        "numbers": {"loss": 0.5, "val_accuracy": 0.75},
        "last": True,
    }


def test_progress_in_a_log_is_a_plain_line(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    with stage.progress("epochs", total=4) as bar:
        bar.update(4, loss=0.123456)
    assert capsys.readouterr().out == "epochs  100%  loss 0.1235\n"


def test_nested_progress_on_a_terminal_shares_one_display(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdout", Terminal())
    with stage.progress("rounds", total=2) as outer:
        with stage.progress("epochs", total=3) as inner:
            inner.update(3)
        outer.update(1)
        assert module.Progress._live is not None
    assert module.Progress._live is None


def test_texts_of_progress() -> None:
    assert numbers_text({"loss": 0.41234, "val_accuracy": 0.9}) == "loss 0.4123  val_accuracy 0.9"
    assert numbers_text({"images": 27_263.5, "lr": 0.00001234}) == "images 27,264  lr 0.00001234"
    # a quarter done in 30 s leaves 90 s
    assert progress_text("x", 1, 4, {}, 30) == "x   25%  1:30 left"
    assert progress_text("x", 0, 0, {}, 30) == "x  100%"


def test_auto_threads_are_the_cores_of_this_process() -> None:
    assert thread_count(3) == 3
    assert 1 <= thread_count("auto") <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "400000 100000\n"}, 4.0),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, math.inf),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
        ({}, math.inf),
    ],
)
def test_a_containers_share_of_time_is_read(tmp_path: Path, files: dict[str, str], cores: float) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert machine._quota(tmp_path) == cores


def test_auto_threads_keep_to_that_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_quota", lambda: 0.5)
    assert thread_count("auto") == 1


def test_programs_that_we_start_run_the_code_of_their_folder_and_write_one_record(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    assert "PYTHONSAFEPATH" not in environment.child_environment()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    for given, seen in (("sqlite:///mlflow.db", f"sqlite:///{tmp_path}/mlflow.db"), ("sqlite:////a/b.db",) * 2):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
        assert mlflow_client.tracking_uri() == seen


def test_an_input_that_changed_meanwhile_fails_by_name_and_forgets_the_resume_folder(stage: Stage) -> None:
    before = Inputs("a", {"data/teach": "1", "thinner/learn/losses.py": "2"}, {"run.seed": 1}, (), {})
    after = Inputs("b", {"data/teach": "1", "thinner/learn/losses.py": "3"}, {"run.seed": 2}, (), {})
    folder = stage.resume
    with pytest.raises(UserError, match=r"run\.seed, thinner/learn/losses\.py.*dvc repro distill"):
        module._compare(stage, before, after)
    assert not folder.exists()


def _program(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def test_a_second_process_of_the_same_stage_is_told_who_holds_it(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    holder = subprocess.Popen(
        _program("from tasks.stage import _only_one\nimport time\nwith _only_one('distill'): time.sleep(60)"),
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
    )
    try:
        lock = Path(".thinner/locks/distill.lock")
        eventually(lambda: lock.exists() and lock.read_text() == str(holder.pid))
        monkeypatch.setattr(module, "LOCK_SECONDS", 0.0)
        with pytest.raises(UserError, match=f"already running.*{holder.pid}"), module._only_one("distill"):
            pass
    finally:
        holder.kill()
        holder.wait()


def test_a_lock_dies_with_its_holder(stage: Stage) -> None:
    text = "import os\nfrom tasks.stage import _only_one\nwith _only_one('distill'): os.kill(os.getpid(), 9)"
    done = subprocess.run(_program(text), env=os.environ | {"PYTHONPATH": str(PROJECT)}, check=False)
    assert done.returncode == -signal.SIGKILL
    with module._only_one("distill"):
        pass


def test_a_stage_ends_when_the_flow_that_started_it_is_gone(stage: Stage) -> None:
    gone = subprocess.Popen(_program("import time; time.sleep(900)"))

    flow = processes.mark(gone.pid)
    child = subprocess.Popen(
        _program(
            "import time\nfrom tasks.stage import die_with_parents\ndie_with_parents()\n"
            "print('watching', flush=True)\ntime.sleep(900)"
        ),
        env=os.environ | {"PYTHONPATH": str(PROJECT), "THINNER_FLOW": flow},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    with child.stdout as out:
        assert out.readline() == "watching\n"
        assert child.poll() is None
        gone.kill()
        gone.wait()
        assert child.wait(timeout=600) == -signal.SIGTERM  # by itself it would sleep for 900 s


def _run(name: str, body: Any) -> int:
    """The exit code of a stage's life up to the point where it would talk to DVC."""
    return module._run(name, body)


def test_a_signal_that_python_swallows_is_raised_again(stage: Stage) -> None:
    """In a destructor Python prints an exception and goes on: the stage would train to its end."""
    text = (
        "import signal, time, os\nfrom tasks import stage\n"
        "class Late:\n    def __del__(self):\n        os.kill(os.getpid(), signal.SIGTERM)\n        time.sleep(1)\n"
        "signal.signal(signal.SIGTERM, stage._stop)\n"
        "Late()\nprint('swallowed', flush=True)\n"
        "try:\n    time.sleep(900)\nexcept stage.Stopped as stop:\n    print(stop)"
    )
    done = subprocess.run(
        _program(text),
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        text=True,
        capture_output=True,
        check=False,
        timeout=600,
    )
    assert done.stdout == "swallowed\nSIGTERM\n"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device", "data/x.npy"), "no room is left on the disk to write data/x.npy"),
        (OSError(122, "Disk quota exceeded"), "no room is left"),
        (OSError("1000 requested and 512 written"), "no room is left"),  # NumPy's
        (RuntimeError("I/O error: No space left on device (os error 28)"), "no room is left"),  # safetensors'
        (PermissionError(13, "Permission denied", "reports/x"), "may not write or read reports/x (Permission denied)"),
        (OSError(30, "Read-only file system", "data"), "may not write or read data"),
        (OSError(5, "Input/output error", "data/x"), "the disk fails to give or take data/x"),
        (FileNotFoundError(2, "No such file or directory", "x"), ""),  # that is a bug of ours, and keeps its traceback
        (ValueError("x"), ""),
    ],
)
def test_what_the_disk_does_is_said_in_one_line(error: Exception, words: str) -> None:
    said = of_the_disk(error)
    assert said.startswith(words) and bool(said) == bool(words) and "\n" not in said


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_disk_that_is_full_says_so() -> None:
    with pytest.raises(OSError, match="No space") as caught:
        Path("/dev/full").write_text("x")
    assert "no room is left" in of_the_disk(caught.value)


@pytest.mark.parametrize(
    ("allocate", "words"),
    [
        (lambda torch: torch.empty(1 << 60, dtype=torch.uint8), "can't allocate memory: you tried to allocate 115292"),
        (lambda torch: np.empty(1 << 60, dtype=np.uint8), "Unable to allocate 1.00 EiB"),
        (lambda torch: bytearray(1 << 62), "the system has none left"),
    ],
)
def test_a_memory_that_is_full_is_one_line_with_the_mend(allocate: Callable[[Any], Any], words: str) -> None:
    import torch

    with pytest.raises((MemoryError, RuntimeError)) as caught:
        allocate(torch)
    said = module._of_memory(caught.value)
    assert words in said and "Halve the batch_size" in said and "\n" not in said and len(said) < 400


def test_a_gpus_memory_that_is_full_is_the_same_line() -> None:
    """PyTorch's own class, with a text that it has; nothing here has a GPU to fill."""
    import torch

    text = (
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 7.79 GiB of which 1 GiB is free."
    )
    assert "(CUDA out of memory. Tried to allocate 2.00 GiB." in module._of_memory(torch.cuda.OutOfMemoryError(text))
    assert module._of_memory(RuntimeError("a bug of ours")) == module._of_memory(KeyError("memory")) == ""


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(30)", 143, ""),
        ("bytearray(1 << 62)", 1, "distill: out of memory (the system has none left). Halve the batch_size"),
        ("raise errors.UserError('a mistake')", 1, "a mistake"),
    ],
)
def test_a_further_process_that_ends_early_shows_no_traceback(tmp_path: Path, body: str, code: int, words: str) -> None:
    params = (PROJECT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(params.replace("\n  devices: 1 ", "\n  devices: 2 "))
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    program = (
        "import os, signal, time\nfrom tasks.stage import run_stage\nfrom thinner import errors\n"
        f"def body(stage):\n    {body}\nrun_stage('distill', body)"
    )
    done = subprocess.run(
        _program(program),
        env=os.environ | {"PYTHONPATH": str(PROJECT), "LOCAL_RANK": "1", "THINNER_INPUTS": "none"},
        cwd=tmp_path, text=True, capture_output=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith(words) and done.stderr.count("\n") == bool(words), done.stderr


def test_which_process_it_is_does_not_hang_on_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    before = processes.mark()
    pid, when = before.split(":")
    assert int(pid) == os.getpid() and processes.is_alive(int(pid), float(when))
    assert not processes.is_alive(int(pid), float(when) + 5)
    if sys.platform.startswith(
        "linux"
    ):  # as if the clock had been set by an hour: psutil adds when the machine started
        monkeypatch.setattr(psutil.Process, "create_time", lambda self: 3600.0)
        assert processes.mark() == before
    gone = subprocess.Popen(["true"])
    started = processes.started(gone.pid)
    os.waitid(os.P_PID, gone.pid, os.WEXITED | os.WNOWAIT)
    assert not processes.is_alive(gone.pid, started)  # ended, and not waited for
    gone.wait()
    assert not processes.is_alive(gone.pid, started)


def test_outside_of_the_repository_the_message_says_where_to_go(
    stage: Stage, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        assert _run("distill", lambda stage: None) == 1
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert "run this from the repository's root" in capsys.readouterr().err


def test_wrong_parameters_end_with_code_2_and_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text((PROJECT / "params.yaml").read_text() + "\nbogus: 1\n")
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    done = subprocess.run(
        _program("from tasks.stage import run_stage\nrun_stage('distill', print)"),
        cwd=tmp_path,
        text=True,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 2
    assert "bogus" in done.stderr
    assert "Traceback" not in done.stderr


def test_openmp_reads_its_variable_before_torch_is_there() -> None:
    """A stage that `dvc repro` starts has nobody who sets it before."""
    code = "import sys, os, tasks; assert 'torch' not in sys.modules; print(os.environ['GOMP_SPINCOUNT'])"
    bare = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, env=bare, text=True, capture_output=True, check=True
    )
    assert done.stdout.strip() == "5000"


def test_a_program_does_not_look_for_garbage_as_it_ends() -> None:
    """Of a million objects that torch and MLflow make as they are imported none is any."""
    last = "atexit.register(lambda: print(gc.get_freeze_count() > 1000))"  # called after those of later imports
    code = f"import atexit, gc; {last}; import tasks, logging; assert not gc.get_freeze_count()"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, text=True, capture_output=True, check=True)
    assert done.stdout.strip() == "True"


@pytest.mark.parametrize(("precision", "on"), [("fp32", False), ("tf32", True), ("bf16", False)])
def test_19_bits_are_used_where_they_are_asked_for(precision: str, on: bool) -> None:
    import torch

    run = load_params(PROJECT / "params.yaml").run
    threads, debug = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    try:
        set_up_torch(run.model_copy(update={"precision": precision, "threads": 1}))
        assert torch.backends.cudnn.allow_tf32 is torch.backends.cuda.matmul.allow_tf32 is on
    finally:
        torch.set_num_threads(threads)
        torch.set_deterministic_debug_mode(debug)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("code", "without"),
    [
        ("import tasks.prepare", {"torch", "scipy", "pandas", "mlflow", "dvc"}),
        ("import tasks.report", {"torch", "triton", "mlflow", "dvc"}),
        (
            "from thinner.networks import models, spec\n"
            "models.skeleton(spec.NetworkSpec('resnet14', classes=3, channels=1, width=8, stem_stride=1))",
            {"torch._dynamo"},
        ),
    ],
    ids=["prepare", "report", "skeleton"],
)
def test_what_takes_seconds_to_load_is_not_loaded_where_nothing_uses_it(code: str, without: set[str]) -> None:
    shown = f"import sys\n{code}\nprint(sorted({without!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", shown], cwd=PROJECT, text=True, capture_output=True, check=True)
    assert done.stdout.strip() == "[]"
