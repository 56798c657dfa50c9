"""What cached teacher signals cost and save, as ratios measured in one run.

    python -m benchmarks.distillation               # a table
    python -m benchmarks.distillation --json FILE   # and the numbers
    python -m benchmarks.distillation --check       # exits with 1 where a must falls short

Four ways to run the same training step (`thinner.learn.training.fit`, the student's optimiser and batch size):

- limit: one fixed batch, and the teacher's logits for it, in memory: nothing to load, nothing to look up
- cached: what `distill` does: views of stored images, the teacher's logits from the teach stage's file
- plain: the same views, and labels instead of a teacher
- live: the same views, and the teacher asked in every step

They take turns in shuffled order; a ratio is taken within each round and then averaged over rounds, with a 95 %
interval (`thinner.evidence.statistics.speed_ratio`). Images are random numbers in a memory-mapped file: what they
show makes no difference to the time. The teacher's weights are random as well.

Then memory: the resident size of a process after one epoch with cached signals, for 7,000 images and for 70,000 (of
64 px, so that the larger set is 290 MB). Training reads every image and should keep none.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tasks.environment import repository_root, set_environment
from tasks.machine import keep_memory, set_up_torch, thread_count
from thinner.config import load_params
from thinner.errors import UserError
from thinner.networks.spec import NetworkSpec

WAYS = ("limit", "cached", "plain", "live")


@dataclass(frozen=True)
class Job:
    """What is measured; sizes in pixels, counts in images, steps per round."""

    name: str
    student: NetworkSpec
    student_size: int
    teacher: NetworkSpec
    teacher_size: int
    stored_size: int
    images: int
    batch_size: int
    steps: dict[str, int]
    policy: dict[str, Any]
    least_of_limit: float


MOST_OF_PLAIN = 1.10  # of the time of plain training
MOST_GROWTH = 1.05  # of the resident size, for ten times as many images
FEW_IMAGES = 7_000


def jobs(params: Any) -> list[Job]:
    teacher = NetworkSpec(params.finetune.network, 10, params.finetune.channels)
    given = params.student
    student = NetworkSpec(given.network, 10, given.channels, width=given.width, stem_stride=given.stem_stride)
    augmented = {"crop": 0.7, "flip": True, "erase": 0.3}
    default = Job(
        "default job",
        student,
        params.student.image_size,
        teacher,
        params.finetune.image_size,
        params.data.image_size,
        images=60_000,
        batch_size=params.student.training.batch_size,
        steps={"limit": 20, "cached": 20, "plain": 20, "live": 4},
        policy=params.student.augment.model_dump(),
        least_of_limit=0.80,
    )
    moving = Job(**{**vars(default), "name": "default job, views that differ", "policy": augmented})
    resnet18 = Job(
        "ResNet-18, 224 px",
        NetworkSpec("torchvision:resnet18", 10, 3),
        224,
        replace(teacher, channels=3),
        224,
        224,
        images=512,
        batch_size=16,
        steps={"limit": 2, "cached": 2, "plain": 2, "live": 2},
        policy=augmented,
        least_of_limit=0.95,
    )
    return [default, moving, resnet18]


def generate(job: Job, folder: Path) -> tuple[Any, Any, Any]:
    """Memory-mapped images, labels and opened signals, all random, written to ``folder``."""
    import numpy as np

    from thinner.learn import signals

    rng = np.random.default_rng(0)
    shape = (job.images, job.stored_size, job.stored_size, job.student.channels)
    images = np.lib.format.open_memmap(folder / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
    for start in range(0, job.images, 1_000):
        images[start : start + 1_000] = rng.integers(0, 256, images[start : start + 1_000].shape, dtype=np.uint8)
    images.flush()
    np.save(folder / "logits.npy", rng.standard_normal((1, job.images, 10)).astype(np.float16))
    np.save(folder / "centres.npy", np.zeros((1, job.images), dtype=np.float32))
    np.save(folder / "index.npy", np.arange(job.images))
    (folder / "signals.json").write_text("{}")
    del images
    return np.load(folder / "images.npy", mmap_mode="r"), rng.integers(0, 10, job.images), signals.open_signals(folder)


def measure(job: Job, rounds: int, folder: Path, params: Any, student: Any = None) -> dict[str, Any]:
    """Seconds per image of each way of ``job.steps`` in each round; of ``student`` instead of a fresh one, if given."""
    import numpy as np
    import torch

    from thinner.data import views
    from thinner.learn import losses, signals, training
    from thinner.networks import models

    images, labels, cache = generate(job, folder)
    channels, pool = job.student.channels, np.arange(job.images)
    policy = views.Policy(**job.policy)
    fabric = training.make_fabric(params.run.device, 1, params.run.precision)
    device = fabric.device
    batches = training.Batches(
        images, labels, pool, job.batch_size, 0, job.student_size,
        (0.5,) * channels, (0.5,) * channels, policy, views=1, device=device, channels_last=params.run.channels_last,
    )  # fmt: skip
    kept = torch.channels_last if params.run.channels_last else torch.contiguous_format
    teacher = models.create(job.teacher).eval().to(device, memory_format=kept)
    preprocessing = views.Preprocessing(
        job.teacher_size, mean=(0.5,) * job.teacher.channels, std=(0.5,) * job.teacher.channels
    )
    loss = losses.combine([("kd", 1.0, {"temperature": 4.0}, None)])
    fixed = batches(0)
    fixed_logits = cache.logits(fixed.index, fixed.view, device)

    def limit(model: Any, batch: Any, number: int) -> Any:
        return loss(model(batch.images), fixed_logits, batch.labels, epoch=0.0)

    def cached(model: Any, batch: Any, number: int) -> Any:
        return loss(model(batch.images), cache.logits(batch.index, batch.view, device), batch.labels, epoch=0.0)

    def live(model: Any, batch: Any, number: int) -> Any:
        with torch.no_grad():
            asked = signals.view_logits(
                teacher, images, batch.index, batch.view,
                preprocessing=preprocessing, policy=policy, seed=0, device=device,
            )  # fmt: skip
        return loss(model(batch.images), asked, batch.labels, epoch=0.0)

    steps: dict[str, Callable[..., Any]] = {
        "limit": limit, "cached": cached, "plain": training.supervised_step(), "live": live
    }  # fmt: skip
    torch.manual_seed(0)
    model = (student or models.create(job.student)).to(device, memory_format=kept)
    plan = params.student.training
    position = 0

    def seconds(way: str) -> float:
        nonlocal position
        count, offset = job.steps[way], position
        position += count  # goes on through the epoch, as training does
        began = time.perf_counter()
        training.fit(
            model,
            (lambda number: fixed) if way == "limit" else (lambda number: batches(offset + number)),
            steps[way],
            steps=count,
            validate_every=count,
            optimizer=training.make_optimizer(
                model, plan.optimizer, lr=1e-3, weight_decay=plan.weight_decay, heads=[models.head_of(model)[0]]
            ),
            factor=lambda number: 1.0,
            validate=lambda judged: {"val_accuracy": 0.0, "val_loss": 0.0},
            fabric=fabric,
            seed=0,
        )
        if device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - began) / (count * job.batch_size)

    order = np.random.default_rng(1)
    times: dict[str, list[float]] = {way: [] for way in job.steps}
    for number in range(-1, rounds):  # the first warms up and is not counted
        for way in order.permutation(list(job.steps)):
            took = seconds(str(way))
            if number >= 0:
                times[str(way)].append(took)
        print(f"\r{job.name}: round {number + 1} of {rounds}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return {way: np.array(values) for way, values in times.items()}


def resident(job: Job, folder: Path) -> int:
    """Bytes that this process, which should be new, holds after an epoch of ``job`` with cached signals."""
    set_environment()
    keep_memory()
    import numpy as np
    import psutil
    import torch

    from thinner.data import views
    from thinner.learn import losses, training
    from thinner.networks import models

    params = load_params()
    set_up_torch(params.run)
    images, labels, cache = generate(job, folder)
    fabric = training.make_fabric(params.run.device, 1, params.run.precision)
    channels = job.student.channels
    batches = training.Batches(
        images, labels, np.arange(job.images), job.batch_size, 0, job.student_size,
        (0.5,) * channels, (0.5,) * channels, views.Policy(**job.policy), views=1, device=fabric.device,
    )  # fmt: skip
    loss = losses.combine([("kd", 1.0, {"temperature": 4.0}, None)])
    model = models.create(job.student).to(fabric.device, memory_format=torch.channels_last)
    training.fit(
        model,
        batches,
        lambda judged, batch, number: loss(
            judged(batch.images), cache.logits(batch.index, batch.view, fabric.device), batch.labels, epoch=0.0
        ),
        steps=len(batches),
        validate_every=len(batches),
        optimizer=training.make_optimizer(model, "adamw", lr=1e-3, weight_decay=0.0),
        factor=lambda number: 1.0,
        validate=lambda judged: {"val_accuracy": 0.0, "val_loss": 0.0},
        fabric=fabric,
        seed=0,
    )
    return int(psutil.Process().memory_info().rss)


def measure_memory(job: Job, few: int = FEW_IMAGES) -> dict[str, Any]:
    """Resident bytes with ``few`` images and with ten times as many, each in a new process."""
    sizes = {}
    for count in (few, 10 * few):
        with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("spawn").Pool(1) as pool:
            sizes[count] = pool.apply(resident, (replace(job, images=count, stored_size=64), Path(folder)))
    ratio = sizes[10 * few] / sizes[few]
    return {"resident_bytes": sizes, "growth": ratio, "holds": ratio < MOST_GROWTH}


def judge(job: Job, times: dict[str, Any]) -> dict[str, Any]:
    import numpy as np

    from thinner.evidence.statistics import speed_ratio

    def ratio(way: str, of: str) -> dict[str, float]:
        found = speed_ratio(times[way] * 1e3, times[of] * 1e3)
        return {"ratio": found.effect, "low": found.low, "high": found.high}

    result: dict[str, Any] = {"images_per_second": {way: float(1 / np.median(times[way])) for way in WAYS}}
    result["cached_of_limit"] = ratio("cached", "limit")
    result["cached_of_plain"] = ratio("cached", "plain")
    result["cached_of_live"] = ratio("cached", "live")
    result["least_of_limit"] = job.least_of_limit
    result["time_of_plain"] = 1 / result["cached_of_plain"]["ratio"]
    result["holds"] = (
        result["cached_of_limit"]["ratio"] >= job.least_of_limit and result["time_of_plain"] <= MOST_OF_PLAIN
    )
    return result


def parser_of(name: str, doc: str) -> argparse.ArgumentParser:
    """The options that every benchmark with a must has."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=doc.split("\n", maxsplit=1)[0])
    parser.add_argument("--json", type=Path, help="keep the numbers in this file")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a must falls short")
    return parser


def set_up() -> tuple[Any, Any]:
    """(params.yaml, the device that training uses), with threads and memory as in a stage. Raises UserError."""
    set_environment()
    keep_memory()
    repository_root()
    params = load_params()
    import torch

    device = set_up_torch(params.run)
    torch.set_num_threads(thread_count(params.run.threads))
    return params, device


def main() -> int:
    parser = parser_of("distillation", __doc__)
    parser.add_argument("--rounds", type=int, default=12, help="rounds of measuring, 10 or more (12)")
    options = parser.parse_args()
    try:
        params, device = set_up()
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    results: dict[str, Any] = {}
    for job in jobs(params):
        with tempfile.TemporaryDirectory() as folder:
            results[job.name] = judge(job, measure(job, options.rounds, Path(folder), params))
    memory = measure_memory(jobs(params)[0])
    print(f"\nimages per second, median of {options.rounds} rounds; {device}\n")
    print(f"{'':32}" + "".join(f"{way:>9}" for way in WAYS))
    for name, result in results.items():
        print(f"{name:<32}" + "".join(f"{result['images_per_second'][way]:9,.0f}" for way in WAYS))
    print("\ncached signals, with 95 % intervals\n")
    print(f"{'':32}{'of the limit':>22}{'time of plain':>22}{'times live':>22}   must")
    for name, result in results.items():
        limit, plain, live = (result[f"cached_of_{way}"] for way in ("limit", "plain", "live"))
        cells = [
            f"{limit['ratio']:.2f} [{limit['low']:.2f}, {limit['high']:.2f}]",
            f"{1 / plain['ratio']:.2f} [{1 / plain['high']:.2f}, {1 / plain['low']:.2f}]",
            f"{live['ratio']:.2f} [{live['low']:.2f}, {live['high']:.2f}]",
        ]
        must = f">= {result['least_of_limit']:.2f}, <= {MOST_OF_PLAIN:.2f}: {'holds' if result['holds'] else 'NO'}"
        print(f"{name:<32}" + "".join(f"{cell:>22}" for cell in cells) + f"   {must}")
    print("\nresident memory after an epoch with cached signals\n")
    for count, size in memory["resident_bytes"].items():
        print(f"{count:>9,} images {size / 2**20:9,.0f} MiB")
    print(f"   growth {memory['growth']:.3f}   must: < {MOST_GROWTH:.2f}: {'holds' if memory['holds'] else 'NO'}")
    results["memory"] = memory
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    return 1 if options.check and not all(result["holds"] for result in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
