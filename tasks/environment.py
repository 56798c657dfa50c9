"""What every process of the project has in its environment, in one place.

Two things are decided here and nowhere else: no tool phones home, and a tool that keeps a folder of its own
keeps it inside this repository. A variable that the person has set already always wins.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
from pathlib import Path

from tasks.machine import TORCH
from thinner.errors import UserError

# Between the flow and the stage programs it starts.
PARENT = "THINNER_PARENT_RUN_ID"  # the pipeline's MLflow run; not MLFLOW_RUN_ID: stages would write into that run
FLOW = "THINNER_FLOW"  # "PID:SECONDS", the flow's process and when it started: stages end when it is gone
UNSENT = "THINNER_UNSENT"  # "yes": MLflow did not answer when the flow began, so its runs are kept here
HOME = "THINNER_HOME"  # the repository that keeps what could not be sent, told to runs in its worktrees
CHECKED = "THINNER_CHECKED"  # SHA-256 of the params.yaml that has been checked in depth
STANDS_FOR = "THINNER_STANDS_FOR"  # "FORK:PROGRAM", the process that works and the one that was started
PROGRESS = "::progress "  # begins a line of JSON about a bar, when THINNER_PROGRESS=json

TELEMETRY_OFF = {
    "DO_NOT_TRACK": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DVC_NO_ANALYTICS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}

# With MLflow's defaults a call to a server that is down hangs for four minutes. With these one that refuses is known in
# two seconds, and one that says nothing in twenty: a server that has just begun may take five for its first answers.
MLFLOW_PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}

# of a process, by PyTorch's and Lightning's launchers, and by SLURM
_RANKS = ("LOCAL_RANK", "NODE_RANK", "RANK", "SLURM_PROCID")

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def set_environment(root: Path | None = None) -> None:
    """Put the settings above into `os.environ`, for this process and those it starts.

    `root` also keeps Prefect's database, profiles and logs in `root/.prefect`, so that neither the person's
    other flows nor ours see each other; not when PREFECT_HOME or PREFECT_API_URL say that a server is to be
    shared.
    """
    for name, value in {**TELEMETRY_OFF, **MLFLOW_PATIENCE, **TORCH}.items():
        os.environ.setdefault(name, value)
    # A company's proxy is for the world outside; our servers are on this machine. Libraries read either spelling.
    spellings = ("NO_PROXY", "no_proxy")
    said = {name: os.environ.get(name, "") for name in spellings}
    for name, other in (spellings, spellings[::-1]):
        hosts = [host for host in (said[name] or said[other]).split(",") if host.strip()]
        here = [host for host in LOOPBACK if host not in hosts]
        if "*" in (host.strip() for host in hosts):  # no proxy at all; beside others it would be a name
            hosts, here = ["*"], []
        os.environ[name] = ",".join([*hosts, *here])
    if root is not None and "PREFECT_API_URL" not in os.environ:
        os.environ.setdefault("PREFECT_HOME", str(root / ".prefect"))


def is_further_process() -> bool:
    """Whether this is another than the first, of those that a launcher of data-parallel training has numbered."""
    return any(value.isdecimal() and int(value) > 0 for value in (os.environ.get(rank, "") for rank in _RANKS))


def repository_root() -> Path:
    """The current folder, if it is the project's root.

    All paths in params.yaml and dvc.yaml are relative to it. `dvc exp run --temp` works in a copy of the
    repository: then this is the copy, while `DVC_ROOT` names the original.

    Raises:
        UserError: the current folder has no dvc.yaml and params.yaml.
    """
    here = Path.cwd()
    missing = [name for name in ("dvc.yaml", "params.yaml") if not (here / name).is_file()]
    if missing:
        above = next((p for p in here.parents if (p / "dvc.yaml").is_file()), None)
        hint = f" Try: cd {above}" if above else " Go to the folder that `git clone` made."
        raise UserError(f"run this from the repository's root: {here} has no {' and no '.join(missing)}.{hint}")
    return here


def home_root() -> Path:
    """The repository that the person sees: the original one, also inside `dvc exp run --temp`'s copy."""
    return Path(os.environ.get("DVC_ROOT") or Path.cwd()).resolve()


def child_environment(**extra: str) -> dict[str, str]:
    """The environment for a process we start, with this interpreter's folder first on PATH.

    DVC runs a stage's `python -m tasks.NAME` in a shell: without this it would find another `python` when the
    virtual environment has not been activated.
    """
    folder = str(Path(sys.executable).parent)
    path = os.environ.get("PATH", os.defpath)
    if path.split(os.pathsep)[0] != folder:
        path = folder + os.pathsep + path
    # with PYTHONSAFEPATH a program in a copy of the repository would run the code of the one that is installed
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    return {**kept, "PATH": path, "PYTHONUNBUFFERED": "1", **extra}


def of_the_disk(error: BaseException) -> str:
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
