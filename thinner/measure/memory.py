"""How much memory an inference takes, at its peak, in a process of its own: what a process once had is not given back.

    python -m thinner.measure.memory 64 1 28x28x1 data/prune data/export/prune_onnx

prints bytes by folder, as JSON; before the folders stand batch, threads and a picture's shape.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import numpy as np

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def measure_memory(
    folders: Sequence[str | Path], batch: int, threads: int, picture: tuple[int, int, int], channels_last: bool = False
) -> dict[str, int]:
    """Bytes by which a process grows, at its peak, from before it opens a candidate until one batch is through.

    That is weights, activations, compiled kernels and the runtime's working memory, on the CPU. ``picture`` is
    (height, width, channels) of a stored one. Only pages with content of their own count: those of files, such as the
    libraries' code, are shared and can be dropped at any time; the preprocessed batch, made before, does not count
    either. Every candidate has a process of its own, forked from one that has imported the libraries and computed
    nothing. Repeats differ by about a megabyte.

    Empty where the system does not keep a peak: only Linux does (``VmHWM`` in proc_pid_status(5)).
    """
    if not (STATUS.exists() and os.access(RESET, os.W_OK)):
        return {}
    numbers = [str(batch), str(threads), "x".join(map(str, picture)), str(int(channels_last))]
    # this very package, also where it is not installed and the current folder is another one
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-m", "thinner.measure.memory", *numbers, *map(str, folders)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"memory could not be measured:\n{done.stderr}")
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def _grow(folder: Path, batch: int, threads: int, picture: Sequence[int], channels_last: bool) -> int:
    import torch

    from thinner import predict
    from thinner.networks import checkpoint

    torch.set_num_threads(threads)
    inputs = predict.preprocess(np.zeros((batch, *picture), dtype=np.uint8), checkpoint.read_spec(folder))
    RESET.write_text("5")  # the peak starts anew: proc_pid_clear_refs(5)
    before = _resident("RssAnon")
    candidate = predict.open_candidate(folder, "cpu", threads, channels_last)
    candidate.run(candidate.place(inputs))
    # the peak is of all pages; those of files only get more, so what they are now they were at most
    return _resident("VmHWM") - _resident("RssFile") - _resident("RssShmem") - before


def _resident(field: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024  # the system says kB and means KiB


def _main(batch: str, threads: str, picture: str, channels_last: str, *folders: str) -> int:
    # all that candidates need, before the first fork
    import timm  # noqa: F401
    import torchvision  # noqa: F401

    from thinner import predict  # noqa: F401
    from thinner.runtimes import catalogue

    for folder in folders:
        if runtime := catalogue.in_folder(Path(folder)):
            runtime.load()

    sides = [int(side) for side in picture.split("x")]
    found = {}
    for folder in folders:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                grown = _grow(Path(folder), int(batch), int(threads), sides, bool(int(channels_last)))
                os.write(writing, str(grown).encode())
                code = 0
            except BaseException:  # noqa: BLE001 - whatever it is, the forked copy must not go on as the parent
                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            text = pipe.read()
        _, status = os.waitpid(child, 0)
        if status:
            return 1
        found[folder] = int(text)
    sys.stdout.write(json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
