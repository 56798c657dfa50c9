"""What numbers were measured on: processor, memory, system, library versions. Nothing that names a machine or
a person.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

LIBRARIES = ("torch", "torchvision", "timm", "torch-pruning", "onnx", "onnxruntime", "numpy", "scikit-learn")


def describe_machine(libraries: Iterable[str] = ()) -> dict[str, Any]:
    """Facts as plain JSON values. ``accelerator`` is null on a machine that has only its CPU. ``libraries``: further
    ones whose versions count."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    name = (
        torch.cuda.get_device_name() if accelerator and accelerator.type == "cuda" else accelerator and accelerator.type
    )
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "accelerator": name,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "libraries": {library: version(library) for library in dict.fromkeys((*LIBRARIES, *libraries))},
    }


def _cpu_name() -> str:
    # platform.processor() is empty on Linux, which says it only here
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )
