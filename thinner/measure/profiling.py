"""What a candidate costs: parameters, MACs, bytes on disk, milliseconds. Memory is in memory.py.

The first three are properties of the network and do not vary. Latency is a measurement: candidates take turns
round by round, so that a machine that warms up or gets busy slows all of them and not one. A ratio of MACs is
not a speed-up; only a ratio of measured milliseconds is.
"""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:  # the report reads numbers: PyTorch and SciPy, which take seconds, are for who measures
    from torch import nn


def count_params(model: nn.Module, nonzero: bool = False) -> int:
    """Parameters of ``model``; shared ones count once, buffers not at all. torchvision's ``num_params``.

    ``nonzero`` counts only those that are not exactly 0: the two differ where weights were masked, not
    removed.
    """
    import torch

    return sum(int(torch.count_nonzero(p)) if nonzero else p.numel() for p in model.parameters())


def count_macs(model: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Multiply-accumulates of one inference on one image of ``input_shape`` (channels, height, width).

    Counted by ``torch.utils.flop_counter`` (2 FLOPs are 1 MAC) over convolutions, linear layers and matrix
    products, those of attention included; activations, normalisation, pooling and additions do not count.
    This is the convention behind torchvision's published ``weights.meta["_ops"]``, and equals it to all
    digits printed there.

    The network runs on the meta device, where only shapes are computed: no arithmetic, no activations in
    memory, and none of the fused attention kernels that would hide their products from the counter.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode  # with it comes Triton

    # the copy is needed because .to("meta") works in place and would throw the weights away
    shapes = copy.deepcopy(model).to("meta").eval()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        shapes(torch.empty((1, *input_shape), device="meta"))
    return int(counter.get_total_flops()) // 2


def file_bytes(path: str | Path) -> int:
    """Size in bytes of what must be shipped to run a candidate: a file, or the weights in a folder.

    In a folder these are all files called ``model``: ``model.safetensors``, or an export's, with what lies beside it
    (external data of ``model.onnx``, ``model.bin`` of ``model.xml``). ``model.json`` does not count.
    """
    path = Path(path)
    if path.is_file():
        return path.stat().st_size
    files = [file for file in path.glob("model.*") if file.suffix != ".json"]
    if not files:
        raise FileNotFoundError(f"{path}: neither model.safetensors nor the file of an export here")
    return sum(file.stat().st_size for file in files)


@contextmanager
def pinned_threads(threads: int) -> Iterator[None]:
    """Let PyTorch's operators use exactly ``threads`` CPU threads inside the block."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure_latency(
    candidates: Mapping[str, Callable[[], object]],
    repeats: int,
    warmup: int = 3,
    seed: int = 0,
    on_round: Callable[[], None] | None = None,
) -> dict[str, Float[np.ndarray, " repeats"]]:
    """Milliseconds of each call, for every candidate: ``repeats`` samples in the order they were taken.

    Sample i of all candidates comes from the same round, so samples are paired: a comparison can use
    differences within rounds. Within a round the order is shuffled (seeded), so that nobody always runs on
    the caches that the same neighbour left behind. ``warmup`` rounds run first and are thrown away: they pay
    for memory allocation, kernel selection and compilation. Garbage collection is off while the clock runs. A
    callable must return only when its work is done, so one on a GPU must synchronise.
    """
    names = list(candidates)
    samples = {name: np.empty(repeats, dtype=np.float64) for name in names}
    order = np.random.default_rng(seed)
    collecting = gc.isenabled()
    try:
        gc.collect()
        gc.disable()
        for round_number in range(-warmup, repeats):
            for index in order.permutation(len(names)):
                call = candidates[names[index]]
                start = time.perf_counter_ns()
                call()
                elapsed_ns = time.perf_counter_ns() - start
                if round_number >= 0:
                    samples[names[index]][round_number] = elapsed_ns / 1e6
            if on_round:
                on_round()
    finally:
        if collecting:
            gc.enable()
    return samples


def summarise_latency(samples_ms: Float[np.ndarray, " repeats"]) -> tuple[float, float]:
    """(median, 95th percentile) in ms. The mean is left out: one pause of the machine moves it."""
    return float(np.median(samples_ms)), float(np.percentile(samples_ms, 95))


def median_interval(samples_ms: Float[np.ndarray, " repeats"]) -> tuple[float, float]:
    """95 % limits of the median, in ms, at least: two of the samples, whatever their distribution.

    How many samples lie below the median is binomial; the narrowest pair of order statistics that holds it in 95 %
    (Conover 1999, section 3.2, by SciPy). Samples are taken as independent. ValueError with fewer than 6: then not even
    the smallest and the largest hold it that often.
    """
    if len(samples_ms) < 6:
        raise ValueError(f"{len(samples_ms)} samples: no interval of 95 % with fewer than 6")
    from scipy.stats import quantile_test

    interval = quantile_test(samples_ms, q=float(np.median(samples_ms)), p=0.5).confidence_interval(0.95)
    return float(interval.low), float(interval.high)


def pareto_front(costs: Sequence[float], accuracies: Sequence[float]) -> list[bool]:
    """For each candidate: is no other at least as accurate and as cheap, and better in one of the two?"""
    points = list(zip(costs, accuracies, strict=True))
    return [
        not any(c <= cost and a >= accuracy and (c, a) != (cost, accuracy) for c, a in points)
        for cost, accuracy in points
    ]
