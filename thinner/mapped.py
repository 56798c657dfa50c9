"""Rows of an array on disk, read without the array taking root in memory."""

from __future__ import annotations

import contextlib
import mmap
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Scalar = TypeVar("Scalar", bound=np.generic)


def take(array: npt.NDArray[Scalar], rows: Any) -> npt.NDArray[Scalar]:
    """``array[rows]`` as a copy. Pages of a memory-mapped ``array`` that this touched are given back to the kernel.

    Training looks at every row sooner or later. The pages stay in the kernel's cache, so the next look costs no disk,
    but no longer count as this process's: else its resident size grows with the number of images, and a container
    with a memory limit ends a training that needs a fraction of it.
    """
    out: npt.NDArray[Scalar] = np.array(array[rows])
    mapping = getattr(array, "_mmap", None)
    if mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
        with contextlib.suppress(OSError, ValueError):  # advice: where it is not taken, only the size differs
            mapping.madvise(mmap.MADV_DONTNEED)
    return out
