"""How near training, teach and distillation come to what a CUDA card can do, as ratios measured in one run.

    python -m benchmarks.gpu                          # all parts; after 8 minutes none is begun
    python -m benchmarks.gpu --json FILE              # and the numbers, written after each part
    python -m benchmarks.gpu --check                  # exits with 1 unless all goals hold
    python -m benchmarks.gpu --parts resnet50 teach   # some parts
    python -m benchmarks.gpu --device cpu --quick     # tiny sizes, to see that every line runs; says nothing of speed

What is timed is what the stages run: a store that thinner.data.store wrote, batches of tasks.learning, the steps of
tasks.distillation, ``thinner.learn.training.fit``, and the stage teach. Pixels are random, weights too: what pictures
show makes no difference to the time.

- resnet50, student, mobilenet: a training step with the real data path, against the same step on one held batch
- teach: images a second of the stage teach, against the same network on one held batch
- distill: training with the teacher's cached signals, against asking the teacher in every step
- deterministic, compile: the step on one held batch, each of the two off and on

The ways of a part take turns in shuffled order. A ratio is taken within each round and averaged over rounds, with a
95 % interval (``thinner.evidence.statistics.speed_ratio``). The clock runs between two steps in the midst of ``fit``,
each after the device has done what it was given. A part that fails costs one line; the others run.

docs/gpu.md says what each row means, and what a machine needs.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import importlib.metadata
import json
import math
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.distillation import parser_of
from tasks.environment import repository_root, set_environment
from tasks.machine import keep_memory, set_up_torch
from tasks.stage import Stage
from thinner.errors import UserError, one_line

LIMIT_SECONDS = 480.0  # of the whole run: what has not begun by then does not
ROUNDS = 10  # as few as speed_ratio takes
NEEDS_GB = 40
EDGE = 4  # steps before the clock starts and after it stops: batches may be prepared ahead on both sides
FEWEST, MOST = 8, 400  # timed steps of a round
LIBRARIES = ("torchvision", "timm", "lightning-fabric", "numpy")  # whose versions count
IMAGENET = 1_281_167  # images of its training split
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]

# bfloat16 multiply-adds a second of the tensor cores: NVIDIA's data sheets count two FLOPs to one, and those of Hopper
# give the rate with sparsity, which doubles it. The first name that is part of the card's name is taken.
H100 = "https://www.nvidia.com/en-us/data-center/h100/"
H200 = "https://www.nvidia.com/en-us/data-center/h200/"
A100 = "https://www.nvidia.com/en-us/data-center/a100/"
CARDS: tuple[tuple[str, float, str], ...] = (
    ("H100 PCIe", 1_513e12 / 4, H100),
    ("H100 NVL", 1_671e12 / 4, H100),
    ("H100", 1_979e12 / 4, H100),
    ("H200 NVL", 1_671e12 / 4, H200),
    ("H200", 1_979e12 / 4, H200),
    ("A100", 312e12 / 2, A100),
)


@dataclass(frozen=True)
class Job:
    """A network in training; sizes in pixels. ``seconds``: about how long its rounds may take in all."""

    network: dict[str, Any]
    size: int
    batch_size: int
    least: float  # ratio of the step on one held batch
    seconds: float


@dataclass(frozen=True)
class Sizes:
    """How large everything is. ``stores``: images, classes and the stored side by the store's name."""

    stores: dict[str, tuple[int, int, int]]
    resnet50: Job
    student: Job
    mobilenet: Job
    threads: str | int


_SMALL = {"name": "resnet8", "width": 16, "stem_stride": 1}
FULL = Sizes(
    stores={"large": (8_192, 1000, 224), "small": (50_000, 10, 32)},
    resnet50=Job({"name": "timm:resnet50"}, 224, 256, 0.95, 50.0),
    student=Job(_SMALL, 32, 256, 0.90, 25.0),
    mobilenet=Job({"name": "timm:mobilenetv3_small_100"}, 224, 512, 0.85, 35.0),
    threads="auto",
)
QUICK = Sizes(
    stores={"large": (96, 10, 32), "small": (96, 10, 16)},
    resnet50=Job({"name": "timm:test_resnet"}, 32, 8, 0.95, 0.0),
    student=Job({**_SMALL, "width": 4}, 16, 8, 0.90, 0.0),
    mobilenet=Job({"name": "timm:mobilenetv3_small_050"}, 32, 8, 0.85, 0.0),
    threads=1,
)


@dataclass(frozen=True)
class Row:
    """One number. ``least``: the goal, where there is one."""

    name: str
    value: float | None  # None: not to be had on this device
    unit: str
    low: float | None = None  # of a 95 % interval
    high: float | None = None
    least: float | None = None

    @property
    def holds(self) -> bool:
        return self.least is None or (self.value is not None and self.value >= self.least)


class OutOfTimeError(UserError):
    """The run has taken as long as it may."""


@dataclass(frozen=True)
class Bench:
    """What all parts share."""

    raw: dict[str, Any]  # params.yaml
    device: Any  # torch.device
    sizes: Sizes
    quick: bool
    folder: Path  # of the stores
    until: float  # time.monotonic()

    def params(self, job: Job, store: str, **changes: Any) -> Any:
        """params.yaml with ``job`` as the student, ResNet-50 as the teacher, in bfloat16; and ``changes``, whose names
        are "section__key"."""
        from thinner.params import Params

        raw = copy.deepcopy(self.raw)
        free: dict[str, Any] = {"width": None, "stem_stride": None, "weights": None, "mean": MEAN, "std": STD}
        for section, whose in (("student", job), ("finetune", self.sizes.resnet50)):
            given = {"network" if key == "name" else key: value for key, value in whose.network.items()}
            raw[section] |= free | given | {"image_size": whose.size, "augment": raw["finetune"]["augment"]}
        raw["student"]["training"]["batch_size"] = job.batch_size
        raw["run"] |= {"device": self.device.type, "devices": 1, "precision": "bf16", "threads": self.sizes.threads}
        raw["run"] |= {"channels_last": True, "compile": False}
        raw["data"] |= {"image_size": self.sizes.stores[store][2], "channels": 3}
        raw["finetune"]["freeze"] = 0
        raw["teach"] |= {"teachers": ["finetune"], "views": 1, "features": [], "top_k": None, "at_chance": "allow"}
        raw["teach"]["batch_size"] = self.sizes.resnet50.batch_size
        for name, value in changes.items():
            section, _, key = name.partition("__")
            raw[section][key] = value
        return Params.model_validate(raw)

    @contextlib.contextmanager
    def store(self, name: str) -> Iterator[Any]:
        """The store ``name``, opened, with its folder as the current one: stages name their paths from there."""
        from thinner.data import store

        root = self.folder / name
        if not (root / "data/prepared/info.json").exists():
            write_random_store(root / "data/prepared", *self.sizes.stores[name])
        with contextlib.chdir(root):
            yield store.open_store("data/prepared")

    def wait(self) -> None:
        """Until the device has done what it was given."""
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def write_random_store(folder: Path, images: int, classes: int, size: int) -> None:
    """A store of random pixels, in the way that the stage prepare writes one."""
    import os

    import numpy as np
    from PIL import Image

    from thinner.data import sources, store

    parts = np.full(images, sources.Part.TRAIN, dtype=np.int8)
    parts[-16:-8], parts[-8:] = sources.Part.VALIDATION, sources.Part.TEST

    def read(number: int) -> Image.Image:
        pixels = np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8)
        return Image.fromarray(pixels)

    listing = sources.Listing(
        tuple(f"{number:04d}" for number in range(classes)), np.arange(images, dtype=np.int64) % classes, parts,
        str, read, "random",
    )  # fmt: skip
    store.write_store(
        folder, listing, source="random", image_size=size, channels=3, fit="crop", labelled=1.0, validation=None,
        test=None, unlabelled="rest", max_unreadable=0.0, max_pixels=size * size, seed=0, workers=os.cpu_count() or 1,
    )  # fmt: skip


# ----------------------------------------------------------------------------------------------------- the clock


@dataclass(frozen=True)
class Way:
    """One of the things that take turns. ``step`` and ``batches`` as ``fit`` takes them; ``set_up`` comes before."""

    model: Any
    batches: Callable[[int], Any]
    step: Callable[..., Any]
    set_up: Callable[[], None] = lambda: None


def seconds_a_step(bench: Bench, way: Way, fabric: Any, steps: int, number: int) -> float:
    """Of ``fit``, over ``steps`` steps in its midst. ``number``: of the round, for other batches in each."""
    from thinner.learn import training

    marks: list[float] = []
    edge = 1 if bench.quick else EDGE

    def step(model: Any, batch: Any, count: int) -> Any:
        if count in (edge, edge + steps):
            bench.wait()
            marks.append(time.perf_counter())
        return way.step(model, batch, count)

    way.set_up()
    batches = way.batches
    if isinstance(batches, training.Batches):  # as it is, not in a function around it: fit may know how to prefetch it
        batches = replace(batches, seed=10 + number)
    total = edge + steps + edge
    fit(bench, way.model, batches, step, fabric, total)
    return (marks[1] - marks[0]) / steps


def fit(
    bench: Bench, model: Any, batches: Any, step: Callable[..., Any], fabric: Any, steps: int, compiled: bool = False
) -> None:
    """``thinner.learn.training.fit``, which validates nothing and keeps no state."""
    from thinner.learn import training

    training.fit(
        model,
        batches,
        step,
        steps=steps,
        validate_every=steps,
        optimizer=training.make_optimizer(model, "sgd", lr=1e-3, weight_decay=0.0),
        factor=lambda count: 1.0,
        validate=lambda judged: {"val_accuracy": 0.0, "val_loss": 0.0},
        fabric=fabric,
        seed=0,
        compiled=compiled,
        say=bench.say,
    )


def take_turns(bench: Bench, title: str, ways: Mapping[str, Callable[[int], float]]) -> dict[str, Any]:
    """Seconds of each way in each round; a way is called with the number of the round. One round warms up."""
    import numpy as np

    order = np.random.default_rng(1)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(-1, ROUNDS):
        if time.monotonic() > bench.until:
            raise OutOfTimeError(f"no time is left after {number} of {ROUNDS} rounds")
        for name in order.permutation(list(ways)):
            took = ways[str(name)](number)
            if number >= 0:
                times[str(name)].append(took)
        print(f"\r{title}: round {number + 1} of {ROUNDS}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return {name: np.array(values) for name, values in times.items()}


def time_steps(bench: Bench, title: str, ways: Mapping[str, Way], fabric: Any, seconds: float) -> dict[str, Any]:
    """Seconds a step of each way in each round; as many steps a round as ``seconds`` allow."""
    few = 1 if bench.quick else FEWEST
    first = {name: seconds_a_step(bench, way, fabric, few, -2) for name, way in ways.items()}
    again = sum(seconds_a_step(bench, way, fabric, few, -2) for way in ways.values()) if not bench.quick else 0.0
    fit_in = int(seconds / ROUNDS / max(again, 1e-9)) - 2 * EDGE
    steps = few if bench.quick else min(MOST, max(FEWEST, fit_in))
    bench.say(f"{title}: {', '.join(first)}; {steps} timed steps a round")
    return take_turns(
        bench,
        title,
        {
            name: lambda number, way=way: seconds_a_step(bench, way, fabric, steps, number)  # type: ignore[misc]
            for name, way in ways.items()
        },
    )


def ratio(name: str, times: Mapping[str, Any], way: str, of: str, least: float | None = None) -> Row:
    """How many times as fast as ``of`` the way is."""
    from thinner.evidence.statistics import speed_ratio

    found = speed_ratio(times[way] * 1e3, times[of] * 1e3)
    return Row(name, found.effect, "times", found.low, found.high, least)


def rate(name: str, seconds: Any, images: int) -> Row:
    import numpy as np

    return Row(name, float(images / np.median(seconds)), "images/s")


# ----------------------------------------------------------------------------------------------------- the parts


def open_job(bench: Bench, job: Job, data: Any, store: str) -> tuple[Any, Any, Any, Any]:
    """(stage, fabric, network on the device, batches) of training ``job`` on ``data``, as distill makes them."""
    import torch

    from tasks import learning
    from thinner.data import views

    params = bench.params(job, store)
    set_up_torch(params.run)
    stage = Stage("scratch", params)
    fabric = learning.fabric_of(params)
    torch.manual_seed(0)
    model = new_network(params, params.student, data, fabric)
    batches = learning.batches_of(
        stage, data, learning.training_pool(data), views.Preprocessing.of(params.student), params.student.augment,
        job.batch_size, fabric, number_of_views=params.teach.views,
    )  # fmt: skip
    return stage, fabric, model, read_from_disk(batches)


def read_from_disk(batches: Any) -> Any:
    """``batches`` as they are where a store is too large to lie on the card. What lies there goes: each part opens the
    store anew, and none would find its copy again."""
    from thinner.learn import training

    training._there.clear()
    return replace(batches, there=None)


def new_network(params: Any, section: Any, data: Any, fabric: Any) -> Any:
    from tasks import learning
    from thinner.networks import models

    model = models.create(models.describe(section, len(data.classes)))
    return model.to(fabric.device, memory_format=learning.memory_format_of(params))


def train(bench: Bench, title: str, job: Job, store: str) -> list[Row]:
    """A step with the real data path, against the same step on one held batch."""
    import torch

    from thinner.learn import training
    from thinner.measure.profiling import count_macs, count_params

    cuda = bench.device.type == "cuda"
    with bench.store(store) as data:
        _, fabric, model, batches = open_job(bench, job, data, store)
        held, step = batches(0), training.supervised_step()
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        times = time_steps(
            bench,
            title,
            {"real": Way(model, batches, step), "held": Way(model, lambda number: held, step)},
            fabric,
            job.seconds,
        )
        peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else None
        alone = take_turns(bench, f"{title}, batches alone", {"alone": lambda number: _alone(bench, batches, number)})
    rows = [
        ratio("real data path, of one held batch", times, "real", "held", job.least),
        rate("with the real data path", times["real"], job.batch_size),
        rate("on one held batch", times["held"], job.batch_size),
        rate("batches alone, nothing ahead", alone["alone"], job.batch_size),
        Row("peak memory", peak, "GiB"),
        Row("parameters", count_params(model) / 1e3, "k"),
    ]
    # a step is three inferences: forward, and backward to inputs and to weights
    macs = 3 * count_macs(model.cpu(), (3, job.size, job.size)) * (rows[1].value or math.nan)
    card = card_rate(torch.cuda.get_device_name() if cuda else "")
    rows.append(Row("multiply-adds", macs / 1e12, "T/s"))
    rows.append(Row("of the card's figure", macs / card[0] if card else None, "share"))
    return rows


def _alone(bench: Bench, batches: Any, number: int) -> float:
    count = 1 if bench.quick else 8
    start = time.perf_counter()
    for step in range(count):
        batches((number + 1) * count + step)
    bench.wait()
    return (time.perf_counter() - start) / count


def card_rate(name: str) -> tuple[float, str] | None:
    """(bfloat16 multiply-adds a second, source) of the card; None of one that is not in the table."""
    return next(((rate, source) for card, rate, source in CARDS if card in name), None)


def resnet50(bench: Bench) -> list[Row]:
    rows = train(bench, "resnet50", bench.sizes.resnet50, "large")
    rate = next(row.value for row in rows if row.name == "with the real data path") or math.nan
    return [*rows, Row("ImageNet, 90 passes at that rate", 90 * IMAGENET / rate / 3600, "h")]


def student(bench: Bench) -> list[Row]:
    return train(bench, "student", bench.sizes.student, "small")


def mobilenet(bench: Bench) -> list[Row]:
    return train(bench, "mobilenet", bench.sizes.mobilenet, "large")


class Bar:
    """Stands where a stage shows its progress, and notes when how many images were done."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float]] = []

    def update(self, done: float, **numbers: float) -> None:
        self.seen.append((time.perf_counter(), done))


@dataclass(frozen=True)
class Watched(Stage):
    """A stage that says nothing and whose progress is kept."""

    bar: Bar = field(default_factory=Bar)

    def say(self, message: str) -> None: ...

    @contextlib.contextmanager
    def progress(self, description: str, total: float) -> Iterator[Any]:
        yield self.bar


def save_teacher(params: Any, data: Any, fabric: Any) -> Any:
    """A teacher as the stage finetune leaves one, of random weights; returns its network on the device."""
    from tasks import learning
    from thinner.data import views
    from thinner.networks import checkpoint, models

    model = new_network(params, params.finetune, data, fabric)
    network = models.describe(params.finetune, len(data.classes))
    spec = learning.spec_of("finetune", network, views.Preprocessing.of(params.finetune), data, {})
    if not Path("data/finetune").exists():  # a spec with an accuracy: else the stage would look for it in each round
        Path("data").mkdir(exist_ok=True)
        checkpoint.save("data/finetune", copy.deepcopy(model).cpu(), {**spec, "val_accuracy": 0.5})
    return model


def teach(bench: Bench) -> list[Row]:
    """The stage teach, from its third batch on, against its network on one held batch, in the same precision."""
    import torch

    from tasks import learning
    from tasks.teach import teach as stage_teach
    from thinner.data import views

    job = bench.sizes.resnet50
    with bench.store("large") as data:
        params = bench.params(job, "large")
        set_up_torch(params.run)
        fabric = learning.fabric_of(params)
        model = save_teacher(params, data, fabric).eval()
        batches = learning.batches_of(
            Stage("teach", params), data, learning.training_pool(data), views.Preprocessing.of(params.finetune),
            params.student.augment, job.batch_size, fabric,
        )  # fmt: skip
        x = read_from_disk(batches)(0).images
        count = max(1, len(learning.training_pool(data)) // job.batch_size - 2)

        def taught(number: int) -> float:
            stage = Watched("teach", params)
            stage_teach(stage)
            (began, few), (ended, all_of_them) = stage.bar.seen[1], stage.bar.seen[-1]
            return (ended - began) / (all_of_them - few)

        @torch.inference_mode()
        def inferred(number: int) -> float:
            with fabric.autocast():
                model(x)
                bench.wait()
                start = time.perf_counter()
                for _ in range(count):
                    model(x)
                bench.wait()
            return (time.perf_counter() - start) / (count * job.batch_size)

        times = take_turns(bench, "teach", {"teach": taught, "inference": inferred})
    return [
        ratio("teach, of pure inference", times, "teach", "inference", 0.90),
        rate("teach", times["teach"], 1),
        rate("pure inference", times["inference"], 1),
    ]


def distill(bench: Bench) -> list[Row]:
    """A step with cached signals against a step with the live teacher, for two students of ResNet-50."""
    from tasks import distillation
    from tasks.teach import teach as stage_teach

    rows = []
    for name, job, store, least in (
        ("the small student", bench.sizes.student, "small", 3.0),
        ("MobileNetV3-small", bench.sizes.mobilenet, "large", None),
    ):
        # asked live, the teacher sees the student's whole batch: as many images as ResNet-50 has in training
        job = replace(job, batch_size=min(job.batch_size, bench.sizes.resnet50.batch_size))  # noqa: PLW2901
        with bench.store(store) as data:
            _, fabric, model, batches = open_job(bench, job, data, store)
            params = {kind: bench.params(job, store, distill__teacher=kind) for kind in ("cached", "live")}
            save_teacher(params["live"], data, fabric)
            stage_teach(Watched("teach", params["cached"]))
            ways = {
                kind: Way(model, batches, distillation.step_of(given, data, model, len(batches), fabric.device).step)
                for kind, given in params.items()
            }
            times = time_steps(bench, f"distill, {name}", ways, fabric, 40.0)
        rows += [
            ratio(f"{name}: cached, of live", times, "cached", "live", least),
            rate(f"{name}: cached", times["cached"], job.batch_size),
            rate(f"{name}: live", times["live"], job.batch_size),
        ]
    return rows


def deterministic(bench: Bench) -> list[Row]:
    """One held batch, under torch's deterministic mode, which stages set, against without."""
    import torch

    def free(benchmark: bool) -> None:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = benchmark

    rows = []
    for name, job, store in _two(bench):
        with bench.store(store) as data:
            stage, fabric, model, batches = open_job(bench, job, data, store)
            way = held_way(model, batches)
            ways = {
                "on": replace(way, set_up=lambda stage=stage: set_up_torch(stage.params.run)),
                "off": replace(way, set_up=lambda: free(False)),
                "off, cuDNN may search": replace(way, set_up=lambda: free(True)),
            }
            try:
                times = time_steps(bench, f"deterministic, {name}", ways, fabric, 30.0)
            finally:
                set_up_torch(stage.params.run)
        rows += [
            ratio(f"{name}: deterministic, of not", times, "on", "off"),
            ratio(f"{name}: deterministic, of not and cuDNN may search", times, "on", "off, cuDNN may search"),
        ]
    return rows


def compiled(bench: Bench) -> list[Row]:
    """One held batch, with ``run.compile`` and without."""
    import torch

    rows = []
    for (name, job, store), steps in zip(_two(bench), (FEWEST, 100), strict=True):
        with bench.store(store) as data:
            stage, fabric, model, batches = open_job(bench, job, data, store)
            run = stage.params.run
            set_up_torch(run.model_copy(update={"compile": True}))
            try:
                few = 1 if bench.quick else steps
                first, times = alternate(bench, f"compile, {name}", model, batches(0), fabric, few)
            finally:
                set_up_torch(run)
                torch.compiler.reset()
        rows += [ratio(f"{name}: compiled, of eager", times, "compiled", "eager")]
        rows += [Row(f"{name}: the first step, compiling", first, "s")]
    return rows


def alternate(bench: Bench, title: str, model: Any, held: Any, fabric: Any, steps: int) -> tuple[float, dict[str, Any]]:
    """(seconds of the first compiled step, seconds a step of each way in each round), in one call of ``fit``: each call
    compiles anew, so ways cannot take turns by calls."""
    import numpy as np
    import torch.nn.functional as F

    eager = fabric.setup_module(model)  # the same weights
    order, edge = np.random.default_rng(1), 1 if bench.quick else EDGE
    blocks = [str(way) for _ in range(-1, ROUNDS) for way in order.permutation(["eager", "compiled"])]
    length, marks, first = edge + steps, np.zeros((len(blocks) + 1, 2)), [0.0, 0.0]

    def step(wrapped: Any, batch: Any, count: int) -> Any:
        block, within = divmod(count, length)
        if within in (0, edge):
            bench.wait()
            marks[block, int(within == edge)] = time.perf_counter()
        if within == 0:
            if time.monotonic() > bench.until:
                raise OutOfTimeError(f"no time is left after {block} of {len(blocks)} blocks")
            print(f"\r{title}: block {block} of {len(blocks)}", end="", file=sys.stderr, flush=True)
        if count - 1 == length * blocks.index("compiled"):
            bench.wait()
            first[1] = time.perf_counter()
        way = wrapped if block < len(blocks) and blocks[block] == "compiled" else eager
        return {"loss": F.cross_entropy(way(batch.images), batch.labels)}

    total = len(blocks) * length + 1
    fit(bench, model, lambda number: held, step, fabric, total, compiled=True)
    print(file=sys.stderr)
    first[0] = marks[blocks.index("compiled"), 0]
    took = (marks[1:, 0] - marks[:-1, 1]) / steps
    # of the first round nothing counts
    times = {way: took[2:][[block == way for block in blocks[2:]]] for way in ("eager", "compiled")}
    return first[1] - first[0], times


def _two(bench: Bench) -> tuple[tuple[str, Job, str], ...]:
    return ("ResNet-50", bench.sizes.resnet50, "large"), ("the small student", bench.sizes.student, "small")


def held_way(model: Any, batches: Any) -> Way:
    from thinner.learn import training

    held = batches(0)
    return Way(model, lambda number: held, training.supervised_step())


PARTS: Mapping[str, Callable[[Bench], list[Row]]] = {  # with a goal first: time may run out
    "resnet50": resnet50,
    "student": student,
    "mobilenet": mobilenet,
    "teach": teach,
    "distill": distill,
    "deterministic": deterministic,
    "compile": compiled,
}


# ------------------------------------------------------------------------------------------------------ the run


def describe(device: Any) -> dict[str, Any]:
    """Card, driver and versions, as plain values."""
    import torch

    libraries = {
        d.metadata["Name"]: d.version for name in LIBRARIES for d in importlib.metadata.distributions(name=name)
    }
    versions = {"python": platform.python_version(), "torch": torch.__version__, "libraries": libraries}
    if device.type != "cuda":
        return {"card": None, "driver": None, **versions, "cuda": torch.version.cuda}
    try:
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(asked, text=True, capture_output=True, check=True, timeout=30).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        driver = "unknown"
    found = torch.cuda.get_device_properties(0)
    card = card_rate(found.name)
    return {
        "card": found.name,
        "memory_gib": round(found.total_memory / 2**30, 1),
        "multiply_adds": {"per_second": card[0], "source": card[1]} if card else None,
        "driver": driver,
        **versions,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def run(bench: Bench, names: list[str], keep: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """The parts ``names`` in turn; ``keep`` is given all that is known after each."""
    import torch

    parts: dict[str, Any] = {}
    found = {"quick": bench.quick, "device": bench.device.type, **describe(bench.device), "parts": parts}
    for name in names:
        began = time.monotonic()
        rows, failure = [], None
        try:
            if began > bench.until:
                raise OutOfTimeError("no time is left")
            rows = PARTS[name](bench)
        except Exception as error:  # noqa: BLE001 - whatever it is, the other parts run
            failure = f"{type(error).__name__}: {one_line(str(error), 300)}"
            if isinstance(error, torch.OutOfMemoryError):
                failure += f"; the sizes are for a card of {NEEDS_GB} GB or more"
            bench.say(f"\n{name}: {failure}")
        parts[name] = {
            "seconds": time.monotonic() - began,
            "failure": failure,
            "rows": [{**asdict(row), "holds": row.holds} for row in rows],
        }
        keep(found)
        gc.collect()
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
    return found


def all_hold(found: Mapping[str, Any]) -> bool:
    return all(
        part["failure"] is None and all(row["holds"] for row in part["rows"]) for part in found["parts"].values()
    )


def render(found: Mapping[str, Any]) -> str:
    """The table, which goals hold, and what it was measured on."""
    lines = ["", f"{'part':<14}{'row':<60}{'value':>12} {'unit':<9}{'95 % interval':<18}goal", ""]
    goals = []
    for name, part in found["parts"].items():
        for row in part["rows"]:
            value = "-" if row["value"] is None else f"{row['value']:,.{0 if row['value'] >= 1000 else 3}f}"
            interval = "" if row["low"] is None else f"[{row['low']:.3f}, {row['high']:.3f}]"
            goal = "" if row["least"] is None else f">= {row['least']:.2f}"
            lines.append(f"{name:<14}{row['name']:<60}{value:>12} {row['unit']:<9}{interval:<18}{goal}".rstrip())
            if goal:
                goals.append(f"{name}: {row['name']}, {goal}: {'holds' if row['holds'] else 'NO'} ({value})")
        if part["failure"]:
            lines.append(f"{name:<14}failed: {part['failure']}")
            goals.append(f"{name}: NO (failed)")
    where = f"{found['card'] or found['device']}, driver {found['driver']}, torch {found['torch']}"
    lines += ["", *goals, "", f"{where}, CUDA {found['cuda']}, Python {found['python']}"]
    if found["quick"]:
        lines.append("tiny sizes: these numbers say that the command runs, and nothing of speed")
    return "\n".join(lines)


def options_of(argv: list[str] | None) -> Any:
    parser = parser_of("gpu", str(__doc__))
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), metavar="NAME",
                        help=f"of these only: {', '.join(PARTS)}")  # fmt: skip
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu is to try the command out")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does every line run?")
    return parser.parse_args(argv)


def open_bench(options: Any, folder: Path) -> Bench:
    """Raises UserError where this is not the repository's root, or the device is not there."""
    set_environment()  # before torch is imported, which reads some of it once
    keep_memory()
    from thinner.files import yaml_files

    raw = yaml_files.read(repository_root() / "params.yaml")
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device is to be seen. To try the command out without: --device cpu --quick")
    sizes = QUICK if options.quick else FULL
    until = time.monotonic() + LIMIT_SECONDS
    return Bench(raw, torch.device(options.device), sizes, options.quick, folder, until)


def main(argv: list[str] | None = None) -> int:
    options = options_of(argv)
    told = options.json.resolve() if options.json else None

    def keep(found: dict[str, Any]) -> None:
        if told:
            told.write_text(json.dumps({**found, "all_hold": all_hold(found)}, indent=2) + "\n")

    with tempfile.TemporaryDirectory(prefix="thinner-gpu-") as folder:
        try:
            bench = open_bench(options, Path(folder))
        except UserError as error:
            print(error, file=sys.stderr)
            return 2
        found = run(bench, options.parts, keep)
    print(render(found))
    return 1 if options.check and not all_hold(found) else 0


if __name__ == "__main__":
    sys.exit(main())
