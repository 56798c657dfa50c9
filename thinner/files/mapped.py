"""Arrays on disk: opened without a pickle being looked at, and rows of them read without the array taking root in
memory."""

from __future__ import annotations

import contextlib
import mmap
import zipfile
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from thinner.errors import DamagedError, one_line

# numbers hardly shrink; zeros do, a thousand times, in a file made to fill memory
_MOST_BYTES = 2**28
_MOST_TIMES = 100

Scalar = TypeVar("Scalar", bound=np.generic)


def open_array(path: Path) -> npt.NDArray[Any]:
    """The array of a ``.npy``; it stays on disk until looked at. Raises DamagedError; FileNotFoundError."""
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError:
        raise
    except Exception as error:  # NumPy evaluates the header, so whatever Python raises
        raise DamagedError(f"{path}: damaged ({one_line(error)})") from error


def read_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a ``.npz``. Raises DamagedError; FileNotFoundError."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked, packed = sum(info.file_size for info in archive.infolist()), path.stat().st_size
        if unpacked > max(_MOST_BYTES, _MOST_TIMES * packed):
            raise DamagedError(
                f"{path}: would take {unpacked / 1e9:.1f} GB of memory, from a file of {packed / 1e6:.1f} MB. "
                "If that is meant, write it with numpy.savez, which does not compress"
            )
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except (FileNotFoundError, DamagedError):
        raise
    except Exception as error:  # zipfile and zlib have many for a file that is not whole
        raise DamagedError(f"{path}: damaged, or no .npz ({one_line(error)})") from error
    return {name: array for name, array in found.items() if isinstance(array, np.ndarray)}  # else plain bytes


def read_rows(array: npt.NDArray[Scalar], rows: Any) -> npt.NDArray[Scalar]:
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
