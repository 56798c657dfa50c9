"""Stage programs of a run that begin as forks of one process, which has imported torch and MLflow once.

Each `python -m tasks.NAME` imports the same libraries, three seconds of a processor, and a run has a dozen of them.
So the flow starts one process that imports them and waits. A program that finds its address in the variable
THINNER_FORKS hands over its arguments, folder, environment and files as soon as it starts; the process forks, and the
fork is the program. The one that was started stays in its place: it passes signals on, and ends as the fork does.

    flow ── dvc ── sh ── python -m tasks.distill        (the stand-in, a few megabytes)
      └─ python -m tasks.forks ── fork                  (the program)

Libraries alone are shared: modules of this repository are imported by each fork anew, as they are then. Nothing is
handed over where a fork would not be what the program is: for another interpreter or other options of it, for other
variables that libraries read as they are imported, for a further process of data-parallel training, beside threads, and
on systems other than Linux, whose libraries do not bear forks. `dvc repro` without a flow knows no address.

    server = forks.Server.start(os.environ)
    subprocess.run(["python", "-m", "tasks.distill"], env={**os.environ, **server.environment})
    server.end()
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from tasks import COLLECT
from tasks.environment import STANDS_FOR, is_further_process

ADDRESS = "THINNER_FORKS"  # of the process that forks
OFF = "off"  # in its place: none is wanted
# what several programs import, and nothing that a single one does
LIBRARIES = (
    "numpy", "torch", "torchvision", "timm", "torch_pruning", "lightning_fabric", "safetensors.torch", "jaxtyping",
    "onnx", "scipy.stats", "statsmodels.stats.proportion", "pandas", "PIL.Image", "pydantic", "psutil",
    "mlflow", "mlflow.entities", "mlflow.utils.mlflow_tags", "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.artifact.local_artifact_repo", "dvc.repo", "dvc.repo.index", "dvc.stage.cache", "dvc.dvcfile",
    "dvc.lock", "scmrepo.git", "networkx", "ruamel.yaml", "yaml", "rich.progress",
)  # fmt: skip
# read as libraries are loaded, so a fork has what the process had
_READ_EARLY = ("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "ATEN_", "TORCH", "PYTORCH_", "PYTHON", "LD_", "MALLOC_")
_OURS = {"tasks", "thinner", "flows", "benchmarks", "tests"}
# it hands its process over to DVC, whose stages are to be forks
_STARTS_STAGES = "tasks.remote"
_LENGTH = 8  # bytes that tell how long a request is


def _kind() -> list[Any]:
    """What has to be equal in two processes for one to stand for the other, environment aside."""
    return [sys.executable, sys.version, list(sys.flags), sys.warnoptions, sorted(map(str, sys._xoptions.items()))]


def _early(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(_READ_EARLY)}


def _are_alike(told: Mapping[str, str], before: Mapping[str, str], now: Mapping[str, str]) -> bool:
    """Whether libraries read in ``told`` what they read here, ``before``. What they have set since (``now``), as torch
    does, whoever imported them has set as well, and those that it started have it."""
    asked, had, has = _early(told), _early(before), _early(now)
    return all(asked.get(name) in (had.get(name), has.get(name)) for name in {*asked, *had})


# ------------------------------------------------------------------------------------------------ the program's side


def hand_over() -> None:
    """Have the run's forking process be this program, and end as it does; returns where there is none, or it may not.

    Called before anything large is imported: by `tasks` for its own programs, by a program of another folder itself.
    """
    module = sys.orig_argv[sys.orig_argv.index("-m") + 1] if sys.argv[0] == "-m" else None
    if module is not None and (not module.startswith("tasks.") or module == _STARTS_STAGES):
        return
    address = os.environ.pop(ADDRESS, OFF)
    if address == OFF or is_further_process():
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as peer:
        peer.connect(address)
        request = json.dumps(
            {
                "module": module,
                "argv": sys.argv,
                "path": sys.path,
                "folder": os.getcwd(),
                "environment": dict(os.environ),
                "kind": _kind(),
                "pid": os.getpid(),
            }
        ).encode()
        sys.stdout.flush()
        signals, pid = _Signals(peer), 0
        try:
            socket.send_fds(peer, [len(request).to_bytes(_LENGTH, "big")], [0, 1, 2])
            peer.sendall(request)
            pid = int(_line(peer) or 0)
        finally:
            signals.found(pid)
        if pid:
            _stand_in(peer)


class _Signals:
    """Passed on to the fork; what comes before its number is known waits for that, or for a second one."""

    def __init__(self, peer: socket.socket) -> None:
        self.peer, self.fork, self.early = peer, 0, []  # type: ignore[var-annotated]
        heeded = (
            n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN
        )
        self.before = {number: signal.signal(number, self.heard) for number in heeded}

    def heard(self, number: int, _: object) -> None:
        if self.fork:
            with contextlib.suppress(OSError):
                self.peer.send(b"asked\n")
                os.kill(self.fork, number)
        elif self.early:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        else:
            self.early.append(number)

    def found(self, fork: int) -> None:
        """The fork's number, or 0: there is none, and this program goes on by itself."""
        self.fork = fork
        if not fork:
            for number, handler in self.before.items():
                signal.signal(number, handler)
        for number in self.early:
            os.kill(os.getpid(), number)


def _stand_in(peer: socket.socket) -> NoReturn:
    code = _line(peer)
    _line(peer)  # until the fork is gone, with its locks
    os._exit(int(code) if code else 128 + signal.SIGKILL)  # without a word: killed, by somebody or for its memory


def _line(peer: socket.socket) -> str:
    """What the other side says next; "" where it has gone."""
    said = b""
    with contextlib.suppress(ConnectionError):
        while not said.endswith(b"\n") and (more := peer.recv(1)):
            said += more
    return said.decode().strip()


# ------------------------------------------------------------------------------------------------- the flow's side


@dataclass
class Server:
    """The process that forks. Where there is none, programs start by themselves."""

    process: subprocess.Popen[bytes] | None = None
    folder: Path | None = None

    @property
    def environment(self) -> dict[str, str]:
        """For the programs that are to be forks."""
        return {ADDRESS: str(self.folder / "socket")} if self.folder else {}

    @classmethod
    def start(cls, environment: Mapping[str, str]) -> Server:
        """It imports, while whoever has the address waits. None is started in a run of a study, which has one, or where
        THINNER_FORKS=off says so."""
        if not sys.platform.startswith("linux") or ADDRESS in os.environ:
            return cls()
        folder = Path(tempfile.mkdtemp(prefix="thinner-"))  # nobody else may enter
        try:
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(folder / "socket"))
                listener.listen(64)
                process = subprocess.Popen(
                    [sys.executable, "-m", "tasks.forks", str(listener.fileno()), str(folder)],
                    env={**environment, ADDRESS: OFF},
                    pass_fds=[listener.fileno()],
                    stdin=subprocess.PIPE,  # it ends when nobody holds the other end
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,  # Ctrl-C is for those that stand in
                )
        except OSError:  # a path too long for a socket, or no room
            shutil.rmtree(folder, ignore_errors=True)
            return cls()
        return cls(process, folder)

    def end(self) -> None:
        """The process ends; its forks, if any are left, go on."""
        if self.process is not None:
            self.process.communicate()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.process = self.folder = None


# ------------------------------------------------------------------------------------------- the process that forks


def _serve(listener: socket.socket, before: Mapping[str, str]) -> tuple[socket.socket, dict[str, Any]] | None:
    """Returns in each fork, with what it is to be; and None where the flow is gone."""
    signal.signal(signal.SIGCHLD, lambda *_: _reap())
    mine = _kind()
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            return None
        peer, _ = listener.accept()
        files: list[int] = []
        try:
            request = _read(peer, files)
            alike = request["kind"] == mine and _are_alike(request["environment"], before, os.environ)
            if not alike or threading.active_count() > 1 or len(files) != 3:
                peer.sendall(b"0\n")
            elif os.fork() == 0:
                listener.close()
                for number, file in enumerate(files):
                    os.dup2(file, number)
                return peer, request
        except (OSError, ValueError):
            pass  # it died in the middle of its request, or no process can be had: then it starts by itself
        finally:
            for file in files:
                os.close(file)
        peer.close()


def _read(peer: socket.socket, files: list[int]) -> dict[str, Any]:
    """A program's request; ``files`` gets those that it hands over."""
    peer.settimeout(10.0)  # one that dies in the middle of it holds up nobody
    head, given, _, _ = socket.recv_fds(peer, _LENGTH, 3)
    files += given
    text = b""
    while len(text) < int.from_bytes(head, "big") and (more := peer.recv(1 << 16)):
        text += more
    peer.settimeout(None)
    return dict(json.loads(text))


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _become(peer: socket.socket, request: dict[str, Any], set_by_libraries: Mapping[str, str]) -> int:
    """Be the program; its exit code."""
    for number, handler in (
        (signal.SIGCHLD, signal.SIG_DFL), (signal.SIGTERM, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler),
    ):  # fmt: skip
        signal.signal(number, handler)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update({**set_by_libraries, **request["environment"], STANDS_FOR: f"{os.getpid()}:{request['pid']}"})
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    sys.argv[:], sys.path[:] = request["argv"], request["path"]
    gc.set_threshold(*COLLECT)  # as Python has it: the package is imported once more, and asks for it then
    for name in [name for name in sys.modules if name.partition(".")[0] in _OURS]:
        del sys.modules[name]
    importlib.invalidate_caches()
    peer.sendall(f"{os.getpid()}\n".encode())
    threading.Thread(target=_heed, args=(peer,), name="stand-in", daemon=True).start()
    try:
        if request["module"]:
            sys.argv[0] = ""  # as Python has it while it looks for the module; run_module puts the file there
            runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(request["argv"][0], run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BaseException:  # noqa: BLE001 - shown as Python shows it
        traceback.print_exc()
        return 1
    return 0


def _heed(peer: socket.socket) -> None:
    """End when the stand-in has died: at once where it had passed on that this should end, else in the gentle way."""
    asked = False
    while _line(peer):
        asked = True
    from tasks import processes  # psutil is not for those that stand in

    processes.end_this_process(gently=not asked)


def main() -> int:
    listener = socket.socket(fileno=int(sys.argv[1]))
    os.chdir("/")  # folders of runs may go while it waits
    before = dict(os.environ)
    for name in LIBRARIES:
        with contextlib.suppress(Exception):  # the program that needs it will say so
            importlib.import_module(name)
    gc.collect()
    gc.freeze()
    set_by_libraries = {name: value for name, value in os.environ.items() if name not in before}
    if (given := _serve(listener, before)) is None:
        shutil.rmtree(sys.argv[2], ignore_errors=True)
        return 0
    peer, request = given
    code = _become(peer, request, set_by_libraries)
    with contextlib.suppress(OSError):
        peer.sendall(f"{code}\n".encode())
    return code


if __name__ == "__main__":
    sys.exit(main())
