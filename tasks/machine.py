"""Threads, memory, seeds and determinism of a stage's process: what decides the bits of a result, and its speed.

No result depends on the rest of what a stage program shares (tasks/stage.py): that reads, watches and records.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from thinner.params import Run

TORCH = {
    # Stages run side by side, each with a thread per core. OpenMP's threads wait by spinning, which then takes the core
    # from a thread that has work (measured beside a busy process: 11 images/s of training, 76 without spinning); but
    # with no spinning at all each small layer pays for waking up (on a free machine: 117 images/s; like this 147).
    "GOMP_SPINCOUNT": "5000",
    # cuBLAS is deterministic only with a fixed workspace, and reads this once, before its first call.
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    # An operator that Apple's GPU lacks runs on the CPU instead of stopping the stage.
    "PYTORCH_ENABLE_MPS_FALLBACK": "1",
}


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
    """`auto` is every core that this process may use, which in a container is fewer than the machine has: by the cores
    that it is given, or by its share of their time, rounded up."""
    if isinstance(threads, int):
        return threads
    given = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(given, _quota())))


_CGROUP = Path("/sys/fs/cgroup")


def _quota(root: Path = _CGROUP) -> float:
    """Cores' worth of time that the control group of this process may use (``docker run --cpus``, Kubernetes' limit),
    as it stands at ``root``: in a container its own is there."""
    try:
        quota, period = (root / "cpu.max").read_text().split()  # version 2
    except (OSError, ValueError):
        try:
            quota, period = ((root / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        except OSError:
            return math.inf
    try:
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    except ValueError:  # max
        return math.inf


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
