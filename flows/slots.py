"""How many stages may share one GPU: one, until the machine says otherwise.

    git config --global thinner.slots 2

Git's configuration, because it belongs to a machine or a clone and to no result: stages depend on the section `run` of
params.yaml, and a key in there would train everything again. On a CPU nothing is bounded here; `--jobs` and
`--workers` are.

A device is a concurrency limit of Prefect's server, so all that one server knows of is counted: stages, runs of a
study, workers on several machines.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
from prefect.client.orchestration import get_client
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.settings import PREFECT_API_URL

from thinner.errors import UserError, one_line
from thinner.files import yaml_files

KEY = "thinner.slots"
LEASE_SECONDS = 60.0  # after which a server takes back what a killed process held; Prefect allows no less
_GONE = (httpx.HTTPError, RuntimeError, OSError, ConcurrencySlotAcquisitionError)  # what a server's end looks like
_LOOK_SECONDS = 5.0  # between two looks whether the flow was stopped while it waits


def count(root: Path) -> int:
    """How many stages may share a device. Raises UserError where the key is no whole number above 0."""
    command = ["git", "config", "--type=int", "--get", KEY]
    done = subprocess.run(command, cwd=root, text=True, capture_output=True, check=False)
    if done.returncode == 1:  # it is not set
        return 1
    if done.returncode or int(done.stdout) < 1:
        said = one_line(done.stderr or done.stdout)
        raise UserError(f"git config {KEY}: {said}: a whole number above 0. Set it: git config {KEY} 1")
    return int(done.stdout)


def devices(root: Path) -> list[str]:
    """The GPUs that stages use by the params.yaml in ``root``, each by a name that no other machine has."""
    run: dict[str, Any] = yaml_files.read(root / "params.yaml")["run"]
    if run["device"] == "cpu":
        return []
    if run["device"] == "mps" or sys.platform == "darwin":
        found = ["mps"]
    else:
        found = _visible(os.environ.get("CUDA_VISIBLE_DEVICES"))[: int(run["devices"])]
    return [f"thinner-{socket.gethostname()}-{name}" for name in found]


def _visible(told: str | None) -> list[str]:
    """What CUDA shows to a process with this CUDA_VISIBLE_DEVICES, in its order."""
    everything = _gpus()
    if told is None:
        return list(everything)
    chosen: list[str] = []
    for word in (word.strip() for word in told.split(",")):
        if word.isdecimal() and int(word) < len(everything):
            chosen.append(everything[int(word)])
        elif word.startswith("MIG-"):  # a part of one, which no list names
            chosen.append(word)
        elif match := [name for name in everything if word and name.startswith(word)]:
            chosen += match[:1]
        else:  # CUDA shows nothing after what it does not know
            break
    return chosen


@functools.cache
def _gpus() -> tuple[str, ...]:
    """The UUIDs of NVIDIA's GPUs here, by their number; PyTorch, which knows as well, takes seconds to import."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"], text=True, capture_output=True, timeout=30,
            check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in done.stdout.splitlines() if line.startswith("GPU-"))


@contextlib.contextmanager
def held(root: Path, logger: Any, stopped: Callable[[], bool]) -> Iterator[None]:
    """A slot of each device that a stage there uses, from the moment that all are free; none where the flow is
    ``stopped`` meanwhile, or where the server cannot be asked, which is said."""
    names = devices(root)
    with contextlib.ExitStack() as stack:
        if names:
            _take(stack, names, count(root), logger, stopped)
        yield


def _take(stack: contextlib.ExitStack, names: list[str], limit: int, logger: Any, stopped: Callable[[], bool]) -> None:
    waiting = False
    try:
        _set_limits(names, limit)
        while not stopped():
            with contextlib.suppress(TimeoutError):
                taken = concurrency(
                    names, occupy=1, timeout_seconds=_LOOK_SECONDS, lease_duration=LEASE_SECONDS, strict=True,
                    raise_on_lease_renewal_failure=False,
                )  # fmt: skip
                taken.__enter__()
                stack.callback(_give_back, taken, logger)
                return
            with get_client(sync_client=True) as client:  # one that has gone gives none, however long one waits
                if (error := client.api_healthcheck()) is not None:
                    raise RuntimeError(str(error) or type(error).__name__)
            if not waiting:
                logger.info(
                    "waits: %s in use. To let %d share it: git config %s %d", names[0], limit + 1, KEY, limit + 1
                )
                waiting = True
    except _GONE as error:
        logger.warning(
            "whether the GPU is free is not known: Prefect's server does not tell (%s)", one_line(str(error))
        )


def _give_back(taken: contextlib.AbstractContextManager[None], logger: Any) -> None:
    """What was done with the slot is done, whatever has become of the server."""
    try:
        taken.__exit__(None, None, None)
    except _GONE as error:
        logger.warning("the GPU's slot was not given back: Prefect's server does not answer (%s)", one_line(str(error)))


_known: dict[str, int] = {}  # limits that this process has set


def _set_limits(names: list[str], limit: int) -> None:
    with get_client(sync_client=True) as client:
        for name in names:
            if _known.get(name) == limit:
                continue
            if name not in _known and PREFECT_API_URL.value() is None:
                # A server of this run's own has just started. What its database says is held was held by a run that was
                # killed with its server, and leases, which would end, went with that.
                with contextlib.suppress(ObjectNotFound):
                    client.delete_global_concurrency_limit_by_name(name)
            with contextlib.suppress(ObjectAlreadyExists):  # another one has set it in this moment
                client.upsert_global_concurrency_limit_by_name(name, limit)
            _known[name] = limit
