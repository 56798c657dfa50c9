"""A process whose forks the stages are that the flows of tests start (tasks/forks.py): tests share one, as each flow
would import torch and MLflow anew for a job of a blink. What a flow does with its own is in tests/tasks/test_forks.py,
test_pipeline.py and test_first_hour.py; what `dvc repro` starts by itself is never a fork."""

import atexit
import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

from tasks import forks
from tasks.environment import child_environment


@functools.cache
def address(pythonpath: str) -> dict[str, str]:
    """For the environment of flows whose PYTHONPATH this is."""
    given = {name: value for name, value in child_environment(PYTHONPATH=pythonpath).items() if name != forks.ADDRESS}
    server = forks.Server.start(given)
    atexit.register(server.end)
    return server.environment or {forks.ADDRESS: forks.OFF}


def program(module: str) -> list[str]:
    """In place of `python -m MODULE`, for whoever has the address in the environment."""
    return [sys.executable, str(Path(__file__).with_name("as_fork.py")), module]


def run(command: list[str], env: dict[str, str], *, check: bool, **how: Any) -> subprocess.CompletedProcess[str]:
    """In place of ``subprocess.run`` where `python -m MODULE` of ours is started by what is tested."""
    assert command[:2] == [sys.executable, "-m"]
    module, *words = command[2:]
    told = env | {"PYTHONUNBUFFERED": "1"} | address(env["PYTHONPATH"])
    return subprocess.run([*program(module), *words], env=told, check=check, **how)
