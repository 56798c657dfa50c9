"""Programs that begin as forks of one process: as if each had been started by itself."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tasks import forks, processes
from tests.toy import eventually

ROOT = Path(__file__).resolve().parent.parent.parent

# a package called `tasks`, as this one begins, with a program that tells what it finds
PROGRAM = '''
"""A program."""
import json, os, signal, subprocess, sys, time
def tell():
    print(json.dumps({
        "argv": sys.argv[1:], "file": sys.argv[0], "folder": os.getcwd(), "said": sys.stdin.read(),
        "one": os.environ.get("ONE"), "torch": "torch" in sys.modules, "doc": sys.modules["__main__"].__doc__,
        "spec": __spec__.name, "fork": os.environ.get("THINNER_STANDS_FOR"), "address": os.environ.get("THINNER_FORKS"),
        "pid": os.getpid(),
    }))
if __name__ == "__main__":
    what = sys.argv[1]
    if what == "tell":
        tell()
    elif what == "fail":
        raise ValueError("it failed")
    elif what == "exit":
        print("on its way", file=sys.stderr)
        sys.exit(int(sys.argv[2]))
    elif what == "words":
        sys.exit("in words")
    elif what == "onnxruntime":  # has a thread, from the moment at which it is imported
        import onnxruntime
        print(len(os.listdir("/proc/self/task")))
    elif what == "card":
        import torch
        print(torch.cuda._is_in_bad_fork())
    elif what == "heed":
        signal.signal(signal.SIGTERM, lambda *_: (print("told", flush=True), sys.exit(7)))
        print(os.getpid(), flush=True)
        time.sleep(900)
    elif what == "deaf":
        from tasks import processes
        processes.GRACE_SECONDS = 900.0  # what it has if it is asked again
        signal.signal(signal.SIGTERM, lambda *_: print("told", flush=True))
        print(os.getpid(), flush=True)
        time.sleep(900)
    elif what == "child":
        child = subprocess.run([sys.executable, "-m", "tasks.program", "tell"], text=True, capture_output=True, input="")
        print(child.stdout)
    elif what == "parents":
        from tasks import processes
        print(json.dumps([process.pid for process in processes.parents()]))
'''

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="libraries of other systems do not bear forks"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our packages, with that program among the tasks."""
    folder = tmp_path_factory.mktemp("place")
    for name in ("tasks", "thinner"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "tasks/program.py").write_text(PROGRAM)
    return folder


@pytest.fixture(scope="module")
def told(place: Path) -> Iterator[dict[str, str]]:
    """The environment of programs that are to be forks."""
    environment = {k: v for k, v in os.environ.items() if k != forks.ADDRESS} | {"PYTHONPATH": str(place)}
    server = forks.Server.start(environment)
    assert server.process is not None
    yield environment | server.environment
    folder = server.folder
    server.end()
    assert folder is not None
    assert not folder.exists()


def start(place: Path, environment: dict[str, str], *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tasks.program", *words], cwd=place, env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def ran(place: Path, environment: dict[str, str], *words: str, said: str = "") -> tuple[int, str, str]:
    process = start(place, environment, *words)
    out, error = process.communicate(said, timeout=600)
    return process.returncode, out, error


def tells(place: Path, environment: dict[str, str], said: str = "") -> dict[str, object]:
    code, out, error = ran(place, environment, "tell", "a word", said=said)
    assert code == 0, error
    return dict(json.loads(out))


def test_a_fork_is_what_the_program_would_have_been(place: Path, told: dict[str, str]) -> None:
    plain = tells(place, {**told, forks.ADDRESS: forks.OFF, "ONE": "1"}, "some words")
    fork = tells(place, {**told, "ONE": "1"}, "some words")
    differs = {"torch", "fork", "pid"}
    assert {k: v for k, v in fork.items() if k not in differs} == {k: v for k, v in plain.items() if k not in differs}
    assert (plain["torch"], plain["fork"]) == (False, None)
    assert fork["torch"]
    assert str(fork["fork"]).startswith(f"{fork['pid']}:")
    assert fork["argv"] == ["tell", "a word"]
    assert tells(place, told)["one"] is None  # of another's environment nothing is left


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [(["exit", "0"], 0, "on its way\n"), (["exit", "3"], 3, "on its way\n"), (["words"], 1, "in words\n")],
)
def test_it_ends_as_the_program_ends(
    place: Path, told: dict[str, str], words: list[str], code: int, error: str
) -> None:
    assert ran(place, told, *words) == (code, "", error)


def test_what_nobody_catches_is_shown(place: Path, told: dict[str, str]) -> None:
    code, _, error = ran(place, told, "fail")
    assert code == 1
    assert error.endswith("ValueError: it failed\n")


def test_a_library_with_threads_of_its_own_ends_well(place: Path, told: dict[str, str]) -> None:
    code, out, error = ran(place, told, "onnxruntime")
    assert (code, error) == (0, "")
    assert int(out) > 1


def test_a_fork_may_use_a_gpu(place: Path, told: dict[str, str]) -> None:
    """As long as the process that forks has not: CUDA does not bear a fork once it has begun."""
    assert ran(place, told, "card") == (0, "False\n", "")


def test_a_change_of_our_code_is_seen_by_the_next_program(place: Path, told: dict[str, str]) -> None:
    before = tells(place, told)["doc"]
    file = place / "tasks/program.py"
    file.write_text(PROGRAM.replace('"""A program."""', '"""Another program."""'))
    try:
        assert (before, tells(place, told)["doc"]) == ("A program.", "Another program.")
    finally:
        file.write_text(PROGRAM)


def test_what_libraries_set_themselves_is_no_other_environment(place: Path) -> None:
    """A study imports torch to count what it made, and hands on what that has set."""
    says = (
        "import json, os; had = dict(os.environ); import torchvision; print(json.dumps({**os.environ} | {'had': had}))"
    )
    names = ("TORCHINDUCTOR_CACHE_DIR", forks.ADDRESS)  # it may be imported here, too
    environment = {k: v for k, v in os.environ.items() if k not in names} | {"PYTHONPATH": str(place)}
    done = subprocess.run([sys.executable, "-c", says], env=environment, text=True, capture_output=True, check=True)
    after = json.loads(done.stdout)
    had = after.pop("had")
    new = {name: value for name, value in after.items() if had.get(name) != value}
    assert new
    server = forks.Server.start(environment)
    assert tells(place, environment | server.environment | new)["fork"]
    assert tells(place, environment | server.environment | dict.fromkeys(new, "/elsewhere"))["fork"] is None
    server.end()


@pytest.mark.parametrize("change", [{"OMP_NUM_THREADS": "3"}, {"PYTHONPATH": ""}, {"RANK": "1"}])
def test_what_libraries_read_early_or_a_further_process_is_no_fork(
    place: Path, told: dict[str, str], change: dict[str, str]
) -> None:
    assert tells(place, told | change)["fork"] is None


def test_what_a_fork_starts_is_none(place: Path, told: dict[str, str]) -> None:
    code, out, error = ran(place, told, "child")
    assert code == 0, error
    child = json.loads(out)
    assert not child["torch"]
    assert not child["fork"].startswith(f"{child['pid']}:")  # inherited, of the one that started it


def test_what_becomes_dvc_is_no_fork_but_the_stages_below_it_are(place: Path, told: dict[str, str]) -> None:
    ours = place / "tasks/remote.py"
    kept = ours.read_text()
    ours.write_text(PROGRAM)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tasks.remote", "child"], cwd=place, env=told, text=True, check=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        )  # fmt: skip
    finally:
        ours.write_text(kept)
    stage = json.loads(done.stdout)
    assert stage["torch"]
    assert stage["fork"].startswith(f"{stage['pid']}:")


def test_the_parents_of_a_fork_are_those_of_the_program(place: Path, told: dict[str, str]) -> None:
    process = start(place, told, "parents")
    out, error = process.communicate("", timeout=600)
    assert process.returncode == 0, error
    assert json.loads(out)[:2] == [process.pid, os.getpid()]


@pytest.mark.parametrize(("what", "number", "code"), [("heed", signal.SIGTERM, 7), ("heed", signal.SIGINT, 130)])
def test_signals_are_passed_on(place: Path, told: dict[str, str], what: str, number: signal.Signals, code: int) -> None:
    process = start(place, told, what)
    assert process.stdout is not None
    fork = int(process.stdout.readline())
    assert fork != process.pid
    process.send_signal(number)
    out, _ = process.communicate(timeout=600)
    assert process.returncode == code
    assert out == ("told\n" if number == signal.SIGTERM else "")
    eventually(lambda: not psutil.pid_exists(fork))  # it has ended, and is reaped


def test_a_fork_that_is_killed_is_seen(place: Path, told: dict[str, str]) -> None:
    process = start(place, told, "heed")
    assert process.stdout is not None
    os.kill(int(process.stdout.readline()), signal.SIGKILL)
    process.communicate(timeout=600)
    assert process.returncode == 128 + signal.SIGKILL


def test_a_fork_ends_when_its_stand_in_is_killed(place: Path, told: dict[str, str]) -> None:
    process = start(place, told, "heed")
    assert process.stdout is not None
    fork = int(process.stdout.readline())
    process.kill()
    assert process.communicate(timeout=600)[0] == "told\n"
    eventually(lambda: not psutil.pid_exists(fork))


def test_a_deaf_fork_that_was_asked_ends_with_its_stand_in(place: Path, told: dict[str, str]) -> None:
    process = start(place, told, "deaf")
    assert process.stdout is not None
    fork = int(process.stdout.readline())
    process.terminate()
    assert process.stdout.readline() == "told\n"
    assert psutil.pid_exists(fork)
    process.kill()
    eventually(lambda: not psutil.pid_exists(fork))  # at once, without a second asking
    process.communicate(timeout=600)


def test_where_what_forks_has_gone_a_program_starts_by_itself(place: Path, told: dict[str, str]) -> None:
    server = forks.Server.start({k: v for k, v in told.items() if k != forks.ADDRESS})
    environment = told | server.environment
    assert server.process is not None
    server.process.kill()
    server.process.wait()
    assert tells(place, environment)["fork"] is None
    server.end()
    assert tells(place, told | {forks.ADDRESS: "/nowhere"})["fork"] is None


def test_who_dies_in_the_middle_of_a_request_leaves_nothing_open(place: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != forks.ADDRESS} | {"PYTHONPATH": str(place)}
    server = forks.Server.start(environment)
    assert server.process is not None
    told = environment | server.environment
    assert tells(place, told)["fork"]
    folder = Path("/proc", str(server.process.pid), "fd")
    eventually(lambda: len(list(folder.iterdir())) == 4)  # the fork's end is seen
    for words in (b"", b'{"module": '):
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(told[forks.ADDRESS])
            socket.send_fds(peer, [(100).to_bytes(8, "big")], [0, 1, 2])
            peer.sendall(words)
    assert tells(place, told)["fork"]
    eventually(lambda: len(list(folder.iterdir())) == 4)
    server.end()


def test_nobody_else_may_have_programs_run(told: dict[str, str]) -> None:
    folder = Path(told[forks.ADDRESS]).parent
    assert folder.stat().st_mode & 0o077 == 0


def test_what_forks_ends_with_who_started_it(place: Path) -> None:
    """However that ended: nobody holds the other end of its standard input then."""
    program = (
        "import os, time; from tasks import forks; s = forks.Server.start(os.environ)\n"
        "print(s.process.pid, s.folder, flush=True); time.sleep(60)"
    )
    environment = {k: v for k, v in os.environ.items() if k != forks.ADDRESS} | {"PYTHONPATH": str(place)}
    process = subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    number, folder = process.stdout.readline().split()
    pid = int(number)
    born = processes.started(pid)
    process.kill()
    process.communicate()
    eventually(lambda: not processes.is_alive(pid, born))  # an orphan that nobody buries is dead, too
    assert not Path(folder).exists()
