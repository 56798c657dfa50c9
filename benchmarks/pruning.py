"""What pruning costs and what it gains, as ratios measured in one run.

    python -m benchmarks.pruning               # a table
    python -m benchmarks.pruning --json FILE   # and the numbers
    python -m benchmarks.pruning --check       # exits with 1 where a must falls short

- step: one cut of 30 % of the channels, split into trace (reading the dependencies off a forward pass), score (the
  criterion), cut (removing the channels) and the rest (the copy, the bookkeeping, the trial run), against one forward
  and backward pass of the same network on one image
- recovery: a training step of the pruned student on the teacher's cached signals, against the same student's plain
  training step; the two ways of benchmarks/distillation.py, which take turns
- speed: the default student as it is, with half of its MACs and with a quarter, at batch 1 and 64, in PyTorch and in
  ONNX Runtime on one thread, all taking turns; each against its own ratio of MACs
- widths: the student cut to half of its MACs with `round_to` 1, 8 and 16, in the same way: what odd widths cost

Widths decide here, not weights: the student is the trained one of data/distill where there is one, else a fresh one.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import distillation
from thinner.errors import UserError
from thinner.networks.spec import NetworkSpec

NETWORKS = (
    ("ResNet-18", "torchvision:resnet18", 224),
    ("MobileNetV3-small", "torchvision:mobilenet_v3_small", 224),
    ("ViT-B/16", "torchvision:vit_b_16", 224),
)
SHARE = 0.3  # of the channels, in one step
PARTS = ("trace", "score", "cut", "rest")
MOST_OF_PLAIN = 1.10  # of the time of plain training
LEAST_SPEED = 1.3  # half of the MACs, batch 64, ONNX Runtime
MACS_LEFT = (0.5, 0.25)
BATCHES = (1, 64)
ROUND_TO = (1, 8, 16)


# ----------------------------------------------------------------------------------------------- one prune step


@contextmanager
def stopwatch() -> Iterator[dict[str, float]]:
    """Seconds spent in tracing, scoring and cutting, while the block runs."""
    import torch_pruning as tp

    from thinner.compress import pruning

    spent = dict.fromkeys(PARTS[:-1], 0.0)
    places: list[tuple[str, Any, str]] = [
        ("trace", tp.dependency.DependencyGraph, "build_dependency"),
        ("score", pruning, "score_channels"),  # layer by layer
        ("score", tp.pruner.BasePruner, "estimate_importance"),  # joined over groups
        ("cut", tp.dependency.Group, "prune"),
    ]
    originals = [getattr(owner, name) for _, owner, name in places]

    def timed(part: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return original(*given, **named)
            finally:
                spent[part] += time.perf_counter() - began

        return call

    for (part, owner, name), original in zip(places, originals, strict=True):
        setattr(owner, name, timed(part, original))
    try:
        yield spent
    finally:
        for (_, owner, name), original in zip(places, originals, strict=True):
            setattr(owner, name, original)


def measure_step(network: NetworkSpec, size: int, rounds: int) -> dict[str, Any]:
    """Seconds of each part of a prune step, and of one forward and backward pass, per round; they take turns."""
    import numpy as np
    import torch
    import torch.nn.functional as F

    from thinner.compress import pruning
    from thinner.networks import models

    torch.manual_seed(0)
    model = models.create(network).eval()
    image = torch.randn(1, network.channels, size, size)
    label = torch.zeros(1, dtype=torch.int64)
    times: dict[str, list[float]] = {part: [] for part in (*PARTS, "pass")}
    for number in range(-1, rounds):  # the first warms up and is not counted
        began = time.perf_counter()
        model.zero_grad()
        F.cross_entropy(model(image), label).backward()
        once = time.perf_counter() - began
        with stopwatch() as spent:
            began = time.perf_counter()
            pruning.cut_share(model, image, SHARE, criterion="l2")
            whole = time.perf_counter() - began
        if number >= 0:
            row = {**spent, "rest": whole - sum(spent.values()), "pass": once}
            for part, seconds in row.items():
                times[part].append(seconds)
    return {part: np.array(values) for part, values in times.items()}


def judge_step(times: dict[str, Any]) -> dict[str, Any]:
    """Medians in ms, and a whole step as a number of passes (median over rounds of their ratios)."""
    import numpy as np

    ratios = sum(times[part] for part in PARTS) / times["pass"]
    return {
        "ms": {part: float(np.median(values) * 1e3) for part, values in times.items()},
        "passes": float(np.median(ratios)),
        "low": float(np.percentile(ratios, 2.5)),
        "high": float(np.percentile(ratios, 97.5)),
    }


# ------------------------------------------------------------------------------------------- the pruned student


def students(params: Any) -> tuple[str, dict[float, Any]]:
    """(where the weights are from, {share of the MACs asked for: network}), 1.0 being the student as it is."""
    import torch

    from thinner.compress import pruning
    from thinner.measure.profiling import count_macs
    from thinner.networks import checkpoint, models

    section = params.student
    if Path("data/distill/model.json").exists():
        loaded = checkpoint.load("data/distill")
        source, model = "data/distill", loaded.model
        shape = loaded.preprocessing.shape
    else:
        torch.manual_seed(0)
        source, model = "fresh weights", models.create(distillation.jobs(params)[0].student).eval()
        shape = (section.channels, section.image_size, section.image_size)
    macs, example = count_macs(model, shape), torch.zeros(1, *shape)
    networks = {1.0: model}
    for share in MACS_LEFT:
        networks[share], _ = pruning.cut(
            model, example, macs=int(share * macs), criterion="l2", round_to=params.prune.round_to
        )
    return source, networks


def measure_recovery(params: Any, student: Any, rounds: int, folder: Path) -> dict[str, Any]:
    """Seconds per image of ``cached`` and of ``plain`` training of a pruned student, in each round."""
    job = distillation.jobs(params)[0]
    steps = {way: job.steps[way] for way in ("cached", "plain")}
    return distillation.measure(replace(job, steps=steps), rounds, folder, params, student=student)


def judge_recovery(times: dict[str, Any]) -> dict[str, Any]:
    from thinner.evidence.statistics import speed_ratio

    found = speed_ratio(times["plain"] * 1e3, times["cached"] * 1e3)  # how often plain goes into cached
    return {
        "time_of_plain": found.effect, "low": found.low, "high": found.high, "holds": found.effect <= MOST_OF_PLAIN
    }  # fmt: skip


def measure_speed(params: Any, networks: dict[Any, Any], shape: tuple[int, int, int], repeats: int) -> dict[str, Any]:
    """Milliseconds, {"RUNTIME/BATCH": {name of the network: samples}}; everything of one batch takes turns."""
    import copy

    import torch

    from thinner.measure.profiling import measure_latency, pinned_threads
    from thinner.networks import export

    kept = torch.channels_last if params.run.channels_last else torch.contiguous_format
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode(), pinned_threads(1):
        sessions, in_torch = {}, {}
        for share, network in networks.items():
            path = Path(folder) / f"{share}.onnx"
            with torch.inference_mode(False):
                export.export_onnx(network, path, shape, {}, params.export.opset)
            sessions[share] = export.open_session(path, threads=1)
            in_torch[share] = copy.deepcopy(network).eval().to(memory_format=kept)
        for batch in BATCHES:
            images = torch.randn(batch, *shape)
            laid_out, array = images.contiguous(memory_format=kept), images.numpy()
            calls: dict[str, Callable[[], object]] = {}
            for share in networks:
                calls[f"pytorch/{share}"] = lambda model=in_torch[share], x=laid_out: model(x)
                calls[f"onnxruntime/{share}"] = lambda session=sessions[share], x=array: export.run_session(session, x)
            samples = measure_latency(calls, repeats=repeats)
            for runtime in ("pytorch", "onnxruntime"):
                found[f"{runtime}/{batch}"] = {share: samples[f"{runtime}/{share}"] for share in networks}
    return found


def judge_speed(samples: dict[str, Any], macs_left: dict[Any, float]) -> dict[str, Any]:
    """Times as fast as the student that was not pruned, with a 95 % interval, beside what its MACs promise."""
    import numpy as np

    from thinner.evidence.statistics import speed_ratio

    found: dict[str, Any] = {}
    for place, by_share in samples.items():
        for share, times in by_share.items():
            row: dict[str, Any] = {"ms": float(np.median(times)), "macs_left": macs_left[share]}
            if share != 1.0:
                speed = speed_ratio(times, by_share[1.0])
                row |= {"times_as_fast": speed.effect, "low": speed.low, "high": speed.high}
                row["verdict"] = "faster" if speed.low > 1 else "slower" if speed.high < 1 else "not faster"
            found.setdefault(place, {})[str(share)] = row
    half = found["onnxruntime/64"].get("0.5")
    return {"places": found, "holds": half is not None and half["times_as_fast"] >= LEAST_SPEED and half["low"] > 1}


def of_widths(student: Any, shape: tuple[int, int, int]) -> dict[Any, Any]:
    """The student (1.0), and by what its widths are multiples of what is left of it at half of its MACs or less."""
    import torch

    from thinner.compress import pruning
    from thinner.measure.profiling import count_macs

    macs, example = count_macs(student, shape) // 2, torch.zeros(1, *shape)
    return {1.0: student} | {
        f"round_to {unit}": pruning.cut(student, example, macs=macs, criterion="l2", round_to=unit)[0]
        for unit in ROUND_TO
    }


# ----------------------------------------------------------------------------------------------------- all of it


def measure_all(params: Any, rounds: int, repeats: int) -> dict[str, Any]:
    from thinner.measure.profiling import count_macs

    results: dict[str, Any] = {"step": {}}
    for name, network, size in NETWORKS:
        asked = NetworkSpec(network, 10, 3)
        results["step"][name] = judge_step(measure_step(asked, size, rounds))
        print(f"{name}: done", file=sys.stderr)
    results["source"], networks = students(params)
    shape = (params.student.channels, params.student.image_size, params.student.image_size)
    whole = count_macs(networks[1.0], shape)
    macs_left = {share: count_macs(network, shape) / whole for share, network in networks.items()}
    results["speed"] = judge_speed(measure_speed(params, networks, shape, repeats), macs_left)
    cut = of_widths(networks[1.0], shape)
    macs_left = {name: count_macs(network, shape) / whole for name, network in cut.items()}
    results["widths"] = judge_speed(measure_speed(params, cut, shape, repeats), macs_left)["places"]
    with tempfile.TemporaryDirectory() as folder:
        times = measure_recovery(params, networks[MACS_LEFT[0]], rounds, Path(folder))
    results["recovery"] = judge_recovery(times)
    return results


def show(results: dict[str, Any], device: str) -> None:
    print(f"\none prune step of {SHARE:.0%} of the channels, ms; {device}\n")
    print(f"{'':24}" + "".join(f"{part:>9}" for part in PARTS) + f"{'fwd+bwd':>9}{'the step is':>28}")
    for name, row in results["step"].items():
        cells = "".join(f"{row['ms'][part]:9,.0f}" for part in (*PARTS, "pass"))
        print(f"{name:<24}{cells}{row['passes']:10.1f} passes [{row['low']:.1f}, {row['high']:.1f}]")
    print(f"\nrecovery with cached signals, time of plain training of the pruned student ({results['source']})\n")
    row = results["recovery"]
    verdict = "holds" if row["holds"] else "NO"
    interval = f"[{row['low']:.2f}, {row['high']:.2f}]"
    print(f"{row['time_of_plain']:.2f} {interval}   must: <= {MOST_OF_PLAIN:.2f}: {verdict}")
    print("\nthe pruned student, one thread, with 95 % intervals\n")
    _show_speeds(results["speed"]["places"])
    print("\nby what its widths are multiples of, at half of the MACs or less\n")
    _show_speeds(results["widths"], named=True)
    verdict = "holds" if results["speed"]["holds"] else "NO"
    print(f"\nmust: half of the MACs >= {LEAST_SPEED} times as fast, batch 64, ONNX Runtime: {verdict}")


def _show_speeds(places: dict[str, Any], *, named: bool = False) -> None:
    print(
        f"{'runtime, batch':<20}{'widths' if named else '':<12}{'MACs left':>10}{'MACs say':>10}{'ms':>9}"
        f"{'times as fast':>24}"
    )
    for place, rows in places.items():
        for name, row in rows.items():
            label = f"{place.replace('/', ', '):<20}{name if named and name != '1.0' else '':<12}"
            cells = f"{label}{row['macs_left']:10.2f}{1 / row['macs_left']:10.2f}{row['ms']:9.2f}"
            if name != "1.0":
                interval = f"{row['times_as_fast']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
                cells += f"{interval:>24}   {row['verdict']}"
            print(cells)


def main() -> int:
    parser = distillation.parser_of("pruning", __doc__)
    parser.add_argument("--rounds", type=int, default=12, help="rounds of steps and of recovery, 10 or more (12)")
    parser.add_argument("--repeats", type=int, default=50, help="rounds of inference, 10 or more (50)")
    options = parser.parse_args()
    try:
        params, device = distillation.set_up()
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    results = measure_all(params, options.rounds, options.repeats)
    show(results, str(device))
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    return 1 if options.check and not (results["recovery"]["holds"] and results["speed"]["holds"]) else 0


if __name__ == "__main__":
    sys.exit(main())
