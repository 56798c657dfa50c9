"""Known networks beside peers: pruning and distillation on copies of CIFAR-10, at equal steps, in one run.

    python -m benchmarks.peers --data data/cifar10           # budget small: an hour on two cores
    python -m benchmarks.peers --budget full                 # for a GPU
    python -m benchmarks.peers --json FILE                   # and the numbers
    python -m benchmarks.peers --check                       # exits with 1 where a must falls short

``--data`` is a folder train/CLASS/*.jpg, test/CLASS/*.jpg of 32 px; no picture of it goes anywhere else than into the
work folder. What is done is kept there, so a run that was stopped goes on where it was.

- source: ResNet-56 (option A) is trained with labels; it is what is pruned, and the teacher
- pruning to 47 % of its MACs: ours (rounds, the source's cached signals) against Torch-Pruning alone (its group-norm
  pruner and a plain loop of cross-entropy): as many steps, the same images and views
- distillation into ResNet-20 (option A): ours (``training.fit``, cached signals) against torchdistill's loss classes in
  a plain loop with the teacher live, and against no teacher: the same start, steps, images and views
- speed: an epoch of distillation here, signals cached, and in torchdistill as its users run it (ImageFolder,
  DataLoader, DistillationBox)

Every choice is made on the validation split; the test split is looked at once, by what is left in the end. Accuracies
are compared image by image (Tango's interval). The page docs/peers.md is written anew by each run of small or full.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import distillation
from tasks.machine import thread_count
from thinner.errors import UserError
from thinner.networks.spec import NetworkSpec

RESULTS, PAGE = Path("benchmarks/peers.json"), Path("docs/peers.md")
MACS_LEFT = 0.47
MARGIN = 0.005  # of accuracy: how much worse still counts as not worse
LEAST_SPEED = 5.0
SEED = 0
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
TEMPERATURE = 4.0


@dataclass(frozen=True)
class Budget:
    """How much of everything; steps are of ``batch_size`` images. What is compared has the same of each."""

    name: str
    minutes: str  # how long it takes, and where
    source: str  # networks
    student: str
    validation: int  # images, out of the training split
    batch_size: int
    views: int
    source_steps: int
    prune_steps: int
    rounds: int
    distill_steps: int
    source_lr: float
    prune_lr: float
    distill_lr: float
    cut_steps: int  # in which Torch-Pruning would take all channels
    sparsity_steps: int  # of group-sparsity learning, for a second peer that cuts after it; 0: no such peer
    speed_images: int  # in an epoch whose speed is measured
    speed_rounds: int
    latency_batches: tuple[int, ...]
    latency_repeats: int


BUDGETS = {
    budget.name: budget
    for budget in (
        Budget(
            "tiny", "about a minute, for tests", "resnet14a", "resnet8a", validation=40, batch_size=16, views=2,
            source_steps=4, prune_steps=4, rounds=2, distill_steps=3, source_lr=0.05, prune_lr=0.02, distill_lr=0.05,
            cut_steps=40, sparsity_steps=2, speed_images=16, speed_rounds=10, latency_batches=(1,), latency_repeats=10,
        ),
        Budget(
            "small", "an hour on two cores", "resnet56a", "resnet20a", validation=2_000, batch_size=128, views=2,
            source_steps=900, prune_steps=350, rounds=2, distill_steps=300, source_lr=0.1, prune_lr=0.05,
            distill_lr=0.1, cut_steps=200, sparsity_steps=0, speed_images=512, speed_rounds=10,
            latency_batches=(1, 64), latency_repeats=30,
        ),
        Budget(
            "full", "hours on a GPU", "resnet56a", "resnet20a", validation=2_000, batch_size=128, views=40,
            source_steps=60_000, prune_steps=30_000, rounds=4, distill_steps=60_000, source_lr=0.1, prune_lr=0.02,
            distill_lr=0.1, cut_steps=400, sparsity_steps=15_000, speed_images=48_000, speed_rounds=10,
            latency_batches=(1, 64), latency_repeats=50,
        ),
    )
}  # fmt: skip

# As published, on the original images; the copies differ from them by their JPEG.
PUBLISHED = (
    ("Torch-Pruning, group sparsity (Fang et al. 2023)", "https://arxiv.org/abs/2301.12900", "93.53", "93.77", "2.13x"),
    ("Torch-Pruning, L1 (Fang et al. 2023)", "https://arxiv.org/abs/2301.12900", "93.53", "92.93", "2.13x"),
    ("ResRep (Ding et al. 2021)", "https://arxiv.org/abs/2007.03260", "93.71", "93.71", "2.12x"),
    ("HRank (Lin et al. 2020)", "https://arxiv.org/abs/2002.10179", "93.26", "93.17", "50 % of the MACs"),
)

# name: (parts of our loss, arguments of torchdistill's class or None). kd: 0.1 cross-entropy and 0.9 kd on both sides.
# torchdistill 1.1.5 has no class for dkd.
LOSSES: dict[str, tuple[list[tuple[str, float, dict[str, Any], float | None]], tuple[str, dict[str, Any]] | None]] = {
    "kd": (
        [("ce", 0.1, {}, None), ("kd", 0.9, {"temperature": TEMPERATURE}, None)],
        ("KDLoss", {"temperature": TEMPERATURE, "alpha": 0.1}),
    ),
    "dkd": (
        [("ce", 1.0, {}, None), ("dkd", 1.0, {"temperature": TEMPERATURE, "alpha": 1.0, "beta": 2.0}, None)],
        None,
    ),
    "dist": (
        [("ce", 1.0, {}, None), ("dist", 1.0, {"temperature": 1.0, "beta": 2.0, "gamma": 2.0}, None)],
        ("DISTLoss", {"beta": 2.0, "gamma": 2.0, "tau": 1.0}),
    ),
}
RECOVERY = [("ce", 0.5, {}, None), ("kd", 0.5, {"temperature": TEMPERATURE}, None)]
# How ours is cut. Which of the cuts of ResNet-20, trained shortly, had lost least on 3,000 training images that it had
# not seen, decided (statistics re-estimated, before any recovery). `-8`: whole stages stay, widths are those that a
# runtime likes.
OURS: dict[str, dict[str, Any]] = {
    "prune-ours": {"criterion": "l2", "scope": "layer", "round_to": 1},
    "prune-ours-8": {"criterion": "l2", "scope": "global", "round_to": 8, "keep": ["^stem", "conv2$"]},
}


# ------------------------------------------------------------------------------------------ the work, in units


@dataclass(frozen=True)
class Bench:
    """What every unit needs: the data, the device, the budget, and the folder where units lie when they are whole."""

    budget: Budget
    folder: Path
    pictures: Path
    data: Any
    fabric: Any

    @property
    def pool(self) -> Any:
        return self.data.splits["labelled"]

    @property
    def preprocessing(self) -> Any:
        from thinner.data import views

        return views.Preprocessing(32, MEAN, STD)

    @property
    def policy(self) -> Any:
        """As usual for these images: moved by up to four pixels, and mirrored."""
        from thinner.data import views

        return views.Policy(flip=True, translation=0.125)

    def network(self, name: str) -> NetworkSpec:
        return NetworkSpec(name, len(self.data.classes), 3)

    def create(self, name: str) -> Any:
        """With the same weights each time."""
        import torch

        from thinner.networks import models

        torch.manual_seed(SEED)
        return models.create(self.network(name)).to(self.fabric.device, memory_format=torch.channels_last)

    def batches(self, start: int = 0) -> Callable[[int], Any]:
        """Batch number ``step`` of the one stream that all trainings are given, from batch ``start`` on."""
        from thinner.learn import training

        made = training.Batches(
            self.data.images, self.data.labels, self.pool, self.budget.batch_size, SEED, 32, MEAN, STD, self.policy,
            views=self.budget.views, device=self.fabric.device,
        )  # fmt: skip
        return lambda step: made(start + step)

    def accuracy(self, model: Any) -> float:
        """On the validation split, 0 to 1."""
        from thinner.learn import training

        index = self.data.splits["validation"]
        found = training.validation(
            self.data.images, self.data.labels, index, self.preprocessing, device=self.fabric.device
        )(model)
        return float(found["val_accuracy"])

    def save(self, folder: Path, model: Any, name: str) -> None:
        from thinner.networks import checkpoint

        spec = {
            "stage": "peers", "network": self.network(name).as_json(), "classes": list(self.data.classes),
            "preprocessing": self.preprocessing.as_json(), "parents": {}, "data_sha256": self.data.sha256,
        }  # fmt: skip
        checkpoint.save(folder, model.cpu(), spec)

    def load(self, name: str) -> Any:
        import torch

        from thinner.networks import checkpoint

        model = checkpoint.load(self.folder / name).model
        return model.to(self.fabric.device, memory_format=torch.channels_last)

    def fit(self, model: Any, step: Any, steps: int, lr: float, resume: Path, start: int = 0) -> None:
        """Our loop: goes on after its last validation where it was stopped, and keeps the best weights."""
        from thinner.learn import training

        resume.mkdir(parents=True, exist_ok=True)
        training.fit(
            model,
            self.batches(start),
            step,
            steps=steps,
            validate_every=max(1, steps // 4),
            optimizer=training.make_optimizer(model, "sgd", lr=lr, weight_decay=5e-4),
            factor=lambda number: training.learning_rate_factor("onecycle", number, steps, 0.15),
            validate=training.validation(
                self.data.images, self.data.labels, self.data.splits["validation"], self.preprocessing,
                device=self.fabric.device,
            ),
            fabric=self.fabric,
            seed=SEED,
            resume=resume,
        )  # fmt: skip

    def plain_loop(
        self, model: Any, loss_of: Callable[[Any, Any], Any], steps: int, lr: float, regularize: Any = None
    ) -> None:
        """The peers' loop: the same optimiser, rates and batches, and the last weights."""
        from thinner.learn import training

        optimizer = training.make_optimizer(model, "sgd", lr=lr, weight_decay=5e-4)
        model.train()
        for number in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = lr * training.learning_rate_factor("onecycle", number, steps, 0.15)
            optimizer.zero_grad()
            loss_of(model, self.batches()(number)).backward()
            if regularize is not None:
                regularize(model)
            optimizer.step()
        model.eval()


def unit(bench: Bench, name: str, work: Callable[[Path], Any]) -> dict[str, Any]:
    """What ``work(folder)`` answers, from its file where it was done before; with the seconds that it took."""
    folder = bench.folder / name
    answer = folder / "row.json"
    if answer.exists():
        return dict(json.loads(answer.read_text()))
    print(f"{name} ...", file=sys.stderr, flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    row = dict(work(folder) or {})
    row["seconds"] = time.perf_counter() - began
    partial = answer.with_suffix(".partial")
    partial.write_text(json.dumps(row))
    os.replace(partial, answer)  # last: it says that the unit is whole
    shutil.rmtree(folder / "resume", ignore_errors=True)
    accuracy = f", validation {row['validation']:.2%}" if "validation" in row else ""
    print(f"{name}: {row['seconds']:.0f} s{accuracy}", file=sys.stderr, flush=True)
    return row


def facts(bench: Bench, model: Any) -> dict[str, Any]:
    from thinner.measure.profiling import count_macs, count_params

    return {
        "validation": bench.accuracy(model),
        "macs": count_macs(model, (3, 32, 32)),
        "params": count_params(model),
    }


def train_source(bench: Bench, folder: Path) -> dict[str, Any]:
    from thinner.learn import training

    model = bench.create(bench.budget.source)
    budget = bench.budget
    bench.fit(model, training.supervised_step(), budget.source_steps, budget.source_lr, folder / "resume")
    row = facts(bench, model)
    bench.save(folder, model, bench.budget.source)
    return row


def write_signals(bench: Bench, folder: Path) -> None:
    """The source's logits for every training image and view, as the stage ``teach`` writes them."""
    from thinner.learn import signals

    work = folder / "resume"
    work.mkdir(exist_ok=True)
    signals.write_signals(
        folder,
        signals.NetworkTeacher(bench.load("source"), bench.preprocessing),
        bench.data.images,
        bench.pool,
        count=bench.budget.views,
        policy=bench.policy,
        seed=SEED,
        batch_size=256,
        device=bench.fabric.device,
        info={},
        work=work,
    )


def lesson(bench: Bench, parts: Any) -> Any:
    """A step of ``training.fit`` with the cached signals."""
    from thinner.learn import losses, signals

    loss, cache = losses.combine(parts), signals.open_signals(bench.folder / "signals")
    per_epoch = max(1, len(bench.pool) // bench.budget.batch_size)

    def step(model: Any, batch: Any, number: int) -> Any:
        asked = cache.logits(batch.index, batch.view, bench.fabric.device)
        return loss(model(batch.images), asked, batch.labels, epoch=number / per_epoch)

    return step


# --------------------------------------------------------------------------------------------------- pruning


def prune_ours(bench: Bench, folder: Path, how: Mapping[str, Any]) -> dict[str, Any]:
    """Cut and recover in rounds, each with its share of the steps, as the stage ``prune`` does."""
    import torch

    from thinner.compress import pruning
    from thinner.measure.profiling import count_macs

    budget, shape = bench.budget, (3, 32, 32)
    model = bench.load("source").cpu()
    whole = count_macs(model, shape)
    each = budget.prune_steps // budget.rounds
    for number in range(1, budget.rounds + 1):
        steps = each if number < budget.rounds else budget.prune_steps - each * (budget.rounds - 1)
        place = f"{folder.name}/round-{number}"
        if (bench.folder / place / "row.json").exists():
            model = bench.load(place).cpu()
            continue
        allowed = int(pruning.size_after(whole, MACS_LEFT * whole, "geometric", number, budget.rounds))
        model, _ = pruning.cut(model, torch.zeros(1, *shape), macs=allowed, seed=SEED + number, **how)
        model.to(bench.fabric.device, memory_format=torch.channels_last)
        start = each * (number - 1)  # the stream goes on where the round before left it

        def recover(inside: Path, model: Any = model, steps: int = steps, start: int = start) -> dict[str, Any]:
            pruning.reestimate_statistics(model, lambda step: bench.batches(start)(step).images, min(20, steps))
            bench.fit(model, lesson(bench, RECOVERY), steps, budget.prune_lr, inside / "resume", start)
            row = facts(bench, model)
            bench.save(inside, model, bench.budget.source)
            return row

        unit(bench, place, recover)
        model = bench.load(place).cpu()
    bench.save(folder, model, bench.budget.source)
    return facts(bench, model.to(bench.fabric.device))


def prune_peer(bench: Bench, folder: Path, together: bool, sparsity_steps: int) -> dict[str, Any]:
    """Torch-Pruning alone, as its authors' benchmark has it: cut in small steps until the MACs are met, then
    cross-entropy.

    ``together``: all layers are ranked together, as there; else each loses the same share, as is the pruner's default.
    With ``sparsity_steps`` the first so many steps are group-sparsity learning (section 3.3 of Fang et al. 2023,
    https://arxiv.org/abs/2301.12900), before the cut, and the others follow it.

    Ours are the target, the optimiser and the batches; and that it is told how option A's shortcuts hang together.
    """
    import torch
    import torch.nn.functional as F
    import torch_pruning as tp

    from thinner.compress import architectures
    from thinner.measure.profiling import count_macs
    from thinner.networks import models

    budget = bench.budget
    model = bench.load("source")
    example = torch.zeros(1, 3, 32, 32)

    def cross_entropy(network: Any, batch: Any) -> Any:
        return F.cross_entropy(network(batch.images), batch.labels)

    def pruner_of(handling: Any) -> Any:
        return tp.pruner.GroupNormPruner(
            model,
            example,
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            reg=5e-4,
            global_pruning=together,
            pruning_ratio=1.0,
            iterative_steps=budget.cut_steps,
            **handling.arguments([models.head_of(model)[1]]),
        )

    if sparsity_steps:
        with architectures.prunable(model.cpu(), example) as handling:
            pruner = pruner_of(handling)
        model.to(bench.fabric.device, memory_format=torch.channels_last)
        bench.plain_loop(model, cross_entropy, sparsity_steps, budget.prune_lr, pruner.regularize)
    allowed = int(MACS_LEFT * count_macs(model, (3, 32, 32)))
    with architectures.prunable(model.cpu().eval(), example) as handling:
        pruner = pruner_of(handling)
        while count_macs(model, (3, 32, 32)) > allowed:
            pruner.step()
    model.to(bench.fabric.device, memory_format=torch.channels_last)
    bench.plain_loop(model, cross_entropy, budget.prune_steps - sparsity_steps, budget.prune_lr)
    row = facts(bench, model)
    bench.save(folder, model, bench.budget.source)
    return row


# ---------------------------------------------------------------------------------------------- distillation


def distill_ours(bench: Bench, folder: Path, name: str) -> dict[str, Any]:
    model = bench.create(bench.budget.student)
    budget = bench.budget
    bench.fit(model, lesson(bench, LOSSES[name][0]), budget.distill_steps, budget.distill_lr, folder / "resume")
    row = facts(bench, model)
    bench.save(folder, model, bench.budget.student)
    return row


def scratch(bench: Bench, folder: Path) -> dict[str, Any]:
    """The same student, start, steps and views, with labels and no teacher."""
    from thinner.learn import training

    model = bench.create(bench.budget.student)
    budget = bench.budget
    bench.fit(model, training.supervised_step(), budget.distill_steps, budget.distill_lr, folder / "resume")
    row = facts(bench, model)
    bench.save(folder, model, bench.budget.student)
    return row


def torchdistill_loss(name: str) -> Callable[[Any, Any, Any], Any]:
    """torchdistill's own class, as a function of the student's and the teacher's logits and the labels."""
    import torch.nn.functional as F
    from torchdistill.losses import mid_level

    given = LOSSES[name][1]
    if given is None:
        raise UserError(f"torchdistill has no class for '{name}'")
    kind, arguments = given
    criterion = getattr(mid_level, kind)(".", "output", ".", "output", **arguments)

    def loss(student: Any, teacher: Any, labels: Any) -> Any:
        found = criterion({".": {"output": student}}, {".": {"output": teacher}}, labels)
        return found if kind == "KDLoss" else found + F.cross_entropy(student, labels)

    return loss


def distill_peer(bench: Bench, folder: Path, name: str) -> dict[str, Any]:
    """torchdistill's loss in a plain loop, the teacher asked in every step."""
    import torch

    model, teacher, criterion = bench.create(bench.budget.student), bench.load("source"), torchdistill_loss(name)

    def loss_of(network: Any, batch: Any) -> Any:
        with torch.no_grad():
            asked = teacher(batch.images)
        return criterion(network(batch.images), asked, batch.labels)

    bench.plain_loop(model, loss_of, bench.budget.distill_steps, bench.budget.distill_lr)
    row = facts(bench, model)
    bench.save(folder, model, bench.budget.student)
    return row


# ----------------------------------------------------------------------------------------------------- speed


@dataclass(frozen=True)
class Pair:
    """Teacher and student of an epoch whose speed is measured; the weights make no difference to it."""

    name: str
    teacher: NetworkSpec
    teacher_size: int  # px
    student: NetworkSpec


def pairs(bench: Bench, params: Any) -> list[Pair]:
    """The networks of this page, and those of the default job of params.yaml."""
    job = distillation.jobs(params)[0]
    source, student = (NetworkSpec(name, 10, channels=3) for name in (bench.budget.source, bench.budget.student))
    return [
        Pair("these networks", source, 32, student),
        Pair("default job", replace(job.teacher, channels=3), job.teacher_size, replace(job.student, channels=3)),
    ]


def macs_say(pair: Pair) -> float:
    """How many times as many MACs a step has that asks the teacher as one that does not: its backward pass counts two.

    No loop that computes the same can gain more than this, but for what loading and memory layouts cost.
    """
    from thinner.measure.profiling import count_macs
    from thinner.networks import models

    teacher = count_macs(models.skeleton(pair.teacher), (3, pair.teacher_size, pair.teacher_size))
    return 1 + teacher / (3 * count_macs(models.skeleton(pair.student), (3, 32, 32)))


def measure_speed(bench: Bench, pair: Pair) -> dict[str, list[float]]:
    """Seconds of an epoch over ``speed_images``, {way: a number for each round}; the ways take turns."""
    import numpy as np
    import torch

    budget = bench.budget
    ours = _our_epoch(bench, pair)
    workers = thread_count("auto")
    ways: dict[str, Callable[[], None]] = {
        "thinner": ours,
        "torchdistill, 0 workers": _torchdistill_epoch(bench, pair, 0),
        f"torchdistill, {workers} workers": _torchdistill_epoch(bench, pair, workers),
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    order = np.random.default_rng(1)
    for number in range(-1, budget.speed_rounds):  # the first warms up and is not counted
        for way in order.permutation(list(ways)):
            began = time.perf_counter()
            ways[str(way)]()
            if bench.fabric.device.type == "cuda":
                torch.cuda.synchronize()
            if number >= 0:
                times[str(way)].append(time.perf_counter() - began)
    return times


def _our_epoch(bench: Bench, pair: Pair) -> Callable[[], None]:
    import numpy as np
    import torch

    from thinner.learn import losses, signals, training
    from thinner.networks import models

    device = bench.fabric.device
    pool = bench.pool[: bench.budget.speed_images]
    rng = np.random.default_rng(0)
    # as a set of signals lies in memory once it was read; what they say makes no difference to the time
    cache = signals.Signals(
        rng.standard_normal((1, len(pool), 10)).astype(np.float16),
        np.zeros((1, len(pool)), np.float32),
        np.asarray(pool),
        {},
    )
    loss = losses.combine(LOSSES["kd"][0])
    torch.manual_seed(SEED)
    model = models.create(pair.student).to(device, memory_format=torch.channels_last)
    steps = max(1, len(pool) // bench.budget.batch_size)
    batches = training.Batches(
        bench.data.images, bench.data.labels, pool, min(len(pool), bench.budget.batch_size), SEED, 32, MEAN, STD,
        bench.policy, views=1, device=device,
    )  # fmt: skip

    def step(network: Any, batch: Any, number: int) -> Any:
        asked = cache.logits(batch.index, batch.view, device)
        return loss(network(batch.images), asked, batch.labels, epoch=0.0)

    def epoch() -> None:
        training.fit(
            model, batches, step, steps=steps, validate_every=steps,
            optimizer=training.make_optimizer(model, "sgd", lr=1e-3, weight_decay=5e-4),
            factor=lambda number: 1.0, validate=lambda judged: {"val_accuracy": 0.0, "val_loss": 0.0},
            fabric=bench.fabric, seed=SEED,
        )  # fmt: skip

    return epoch


def _torchdistill_epoch(bench: Bench, pair: Pair, workers: int) -> Callable[[], None]:
    import logging

    import torch
    from torch import nn
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    from thinner.networks import models

    logging.getLogger("torchdistill").setLevel(logging.WARNING)
    logging.getLogger().setLevel(logging.WARNING)  # it logs to the root
    from torchdistill.core.distillation import get_distillation_box

    torch.manual_seed(SEED)
    teacher: nn.Module = models.create(pair.teacher).eval()
    if pair.teacher_size != 32:
        teacher = nn.Sequential(nn.Upsample(pair.teacher_size, mode="bilinear"), teacher)
    student = models.create(pair.student)
    look = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(),
            transforms.ToTensor(), transforms.Normalize(MEAN, STD),
        ]
    )  # fmt: skip
    pictures = ImageFolder(str(bench.pictures / "train"), look)
    count = min(len(pictures), bench.budget.speed_images)
    batch_size = min(count, bench.budget.batch_size)
    sampler = {"class_or_func": torch.utils.data.RandomSampler, "kwargs": {"num_samples": count}}
    box = get_distillation_box(
        teacher.to(bench.fabric.device),
        student.to(bench.fabric.device),
        {"train": pictures},
        {
            "num_epochs": 1,
            "train_data_loader": {
                "dataset_id": "train",
                "sampler": sampler,
                "kwargs": {
                    "batch_size": batch_size, "num_workers": workers, "drop_last": True,
                    "pin_memory": bench.fabric.device.type == "cuda",
                },
            },
            "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
            "student": {"forward_proc": "forward_batch_only"},
            "optimizer": {"key": "SGD", "kwargs": {"lr": 1e-3, "momentum": 0.9, "weight_decay": 5e-4}},
            "criterion": {
                "key": "WeightedSumLoss",
                "kwargs": {
                    "sub_terms": {
                        "kd": {
                            "criterion": {
                                "key": "KDLoss",
                                "kwargs": {
                                    "student_module_path": ".", "student_module_io": "output",
                                    "teacher_module_path": ".", "teacher_module_io": "output",
                                    "temperature": TEMPERATURE, "alpha": 0.1, "reduction": "batchmean",
                                },
                            },
                            "weight": 1.0,
                        }
                    }
                },
            },
        },
        bench.fabric.device, None, False, 1,
    )  # fmt: skip

    def epoch() -> None:
        box.pre_epoch_process(epoch=0)
        for images, targets, supplement in box.train_data_loader:
            images, targets = images.to(bench.fabric.device), targets.to(bench.fabric.device)  # noqa: PLW2901
            box.pre_forward_process()
            loss = box.forward_process(images, targets, supplement)
            box.post_forward_process(loss=loss)
        box.post_epoch_process()

    return epoch


def measure_latency(bench: Bench, names: list[str]) -> dict[str, dict[str, list[float]]]:
    """Milliseconds in ONNX Runtime on one thread, {batch: {network: samples}}, all networks of a batch in turns."""
    import torch

    from thinner.measure import profiling as clock
    from thinner.networks import checkpoint, export

    work = bench.folder / "latency" / "resume"
    work.mkdir(parents=True, exist_ok=True)
    sessions = {}
    for name in names:
        path = work / f"{name}.onnx"
        export.export_onnx(checkpoint.load(bench.folder / name).model, path, (3, 32, 32), {}, 18)
        sessions[name] = export.open_session(path, threads=1)
    found = {}
    for batch in bench.budget.latency_batches:
        images = torch.randn(batch, 3, 32, 32).numpy()
        calls: dict[str, Callable[[], object]] = {
            name: lambda session=session, images=images: export.run_session(session, images)
            for name, session in sessions.items()
        }
        samples = clock.measure_latency(calls, repeats=bench.budget.latency_repeats)
        found[str(batch)] = {name: times.tolist() for name, times in samples.items()}
    return found


# --------------------------------------------------------------------------------------------- what came out


def right_on_test(bench: Bench, name: str) -> dict[str, Any]:
    """Which images of the test split the network has right: 0 and 1, as text."""
    import torch

    from thinner.learn import training

    index = bench.data.splits["test"]
    logits = training.logits_of(
        bench.load(name), bench.data.images, index, bench.preprocessing, device=bench.fabric.device
    )
    right = logits.argmax(1) == torch.from_numpy(bench.data.labels[index])
    return {"right": "".join("1" if each else "0" for each in right.tolist())}


def compare(rights: Mapping[str, str], candidate: str, reference: str) -> dict[str, float]:
    """Accuracy of ``candidate`` less that of ``reference`` on the same images, with Tango's 95 % interval."""
    import numpy as np

    from thinner.evidence.statistics import accuracy_difference

    ours, theirs = (np.array([each == "1" for each in rights[name]]) for name in (candidate, reference))
    found = accuracy_difference(ours, theirs, margin=MARGIN)
    return {"effect": found.effect, "low": found.low, "high": found.high}


def judge(units: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Comparisons and musts out of what the units answered."""
    rights = {name.removeprefix("test/"): row["right"] for name, row in units.items() if name.startswith("test/")}
    found: dict[str, Any] = {
        "networks": {
            name: {
                "test": rights[name].count("1") / len(rights[name]),
                **{key: units[name][key] for key in ("validation", "macs", "params", "seconds")},
            }
            for name in rights
        },
        "images": len(rights["source"]),
        "signals_seconds": units["signals"]["seconds"],
    }
    sides = {
        "pruning": (OURS, [name for name in rights if name.startswith("prune-torchpruning")], ["source"]),
        "distillation": (
            [f"ours-{loss}" for loss in LOSSES],
            [name for name in rights if name.startswith("torchdistill-")],
            ["scratch"],
        ),
    }
    for what, (ours, theirs, others) in sides.items():
        ours = [name for name in ours if name in rights]  # noqa: PLW2901
        found[what] = {
            f"{name}, {reference}": compare(rights, name, reference)
            for name in ours
            for reference in (*theirs, *others)
            if what == "pruning" or reference in (name.replace("ours-", "torchdistill-"), *others)
        }
        best = [max(names, key=lambda name: units[name]["validation"]) for names in (ours, theirs)]
        found[f"best_{what}"] = {"ours": best[0], "theirs": best[1], **compare(rights, *best)}
    found["speed"] = {
        pair: judge_speed(times) | {"macs_say": units["speed"]["macs_say"][pair]}
        for pair, times in units["speed"]["times"].items()
    }
    found["latency"] = {batch: judge_latency(samples) for batch, samples in units["latency"]["samples"].items()}
    found["musts"] = {
        **{what: found[f"best_{what}"]["low"] > -MARGIN for what in sides},
        "speed": found["speed"]["default job"]["ratio"] >= LEAST_SPEED,
    }
    return found


def judge_speed(times: Mapping[str, list[float]]) -> dict[str, Any]:
    """Seconds of the median epoch of each way; how many times as fast ours is as the faster of torchdistill's."""
    import numpy as np

    from thinner.evidence.statistics import speed_ratio

    medians = {way: float(np.median(seconds)) for way, seconds in times.items()}
    other = min((way for way in medians if way != "thinner"), key=lambda way: medians[way])
    ratio = speed_ratio(np.array(times["thinner"]) * 1e3, np.array(times[other]) * 1e3)
    return {"seconds": medians, "against": other, "ratio": ratio.effect, "low": ratio.low, "high": ratio.high}


def judge_latency(samples: Mapping[str, list[float]]) -> dict[str, Any]:
    """Median ms of each network; how many times as fast it is as the source."""
    import numpy as np

    from thinner.evidence.statistics import speed_ratio

    found = {}
    for name, times in samples.items():
        ratio = speed_ratio(np.array(times), np.array(samples["source"]))
        found[name] = {"ms": float(np.median(times)), "ratio": ratio.effect, "low": ratio.low, "high": ratio.high}
    return found


# ---------------------------------------------------------------------------------------------- all of it


def trainings(budget: Budget) -> dict[str, Callable[[Bench, Path], Any]]:
    """What is trained once the source and its signals are there: each for itself, in any order."""
    works: dict[str, Callable[[Bench, Path], Any]] = {}
    for name, how in OURS.items():
        works[name] = lambda bench, folder, how=how: prune_ours(bench, folder, how)
    peers = {"prune-torchpruning": (True, 0), "prune-torchpruning-layer": (False, 0)}
    if budget.sparsity_steps:
        peers["prune-torchpruning-sparse"] = (True, budget.sparsity_steps)
    for name, choice in peers.items():
        works[name] = lambda bench, folder, choice=choice: prune_peer(bench, folder, *choice)
    works["scratch"] = scratch
    for loss, (_, theirs) in LOSSES.items():
        works[f"ours-{loss}"] = lambda bench, folder, loss=loss: distill_ours(bench, folder, loss)
        if theirs is not None:
            works[f"torchdistill-{loss}"] = lambda bench, folder, loss=loss: distill_peer(bench, folder, loss)
    return works


def train_side_by_side(bench: Bench, command: Sequence[str]) -> None:
    """The trainings on a CPU, each in a process of its own with one thread, as many at once as there are cores.

    Two trainings on a core each are done sooner than one after the other on both: a step of ResNet-56 does not take
    half the time on two. And what comes out does not depend on the number of cores. Raises UserError where one fails;
    it has said why.
    """
    waiting = [name for name in trainings(bench.budget) if not (bench.folder / name / "row.json").exists()]

    def train(name: str) -> int:
        return subprocess.run([*command, "--only", name], check=False).returncode

    with ThreadPoolExecutor(thread_count("auto")) as pool:
        failed = [name for name, code in zip(waiting, pool.map(train, waiting), strict=True) if code]
    if failed:
        raise UserError(
            f"{', '.join(failed)}: ended with an error, which stands above. What is whole is kept: run again"
        )


def run(bench: Bench, params: Any, command: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Every unit that is not whole yet; {unit: what it answered}. ``command`` is this program with its options."""
    done = {"source": unit(bench, "source", lambda folder: train_source(bench, folder))}
    done["signals"] = unit(bench, "signals", lambda folder: write_signals(bench, folder))
    if bench.fabric.device.type == "cpu":
        train_side_by_side(bench, command)
    for name, work in trainings(bench.budget).items():
        done[name] = unit(bench, name, lambda folder, work=work: work(bench, folder))
    done["speed"] = unit(
        bench,
        "speed",
        lambda folder: {
            "times": {pair.name: measure_speed(bench, pair) for pair in pairs(bench, params)},
            "macs_say": {pair.name: macs_say(pair) for pair in pairs(bench, params)},
        },
    )
    pruned = [name for name in done if name == "source" or name in OURS or name.startswith("prune-torchpruning")]
    done["latency"] = unit(bench, "latency", lambda folder: {"samples": measure_latency(bench, pruned)})
    for name in [name for name, row in done.items() if "validation" in row]:  # last of all: nothing is chosen after it
        done[f"test/{name}"] = unit(bench, f"test/{name}", lambda folder, name=name: right_on_test(bench, name))
    return done


def open_bench(params: Any, budget: Budget, pictures: Path, folder: Path) -> Bench:
    """The work folder, with the pictures decoded into it. Raises UserError where it belongs to another run."""
    from thinner.data import sources, store
    from thinner.learn import training

    if not (pictures / "train").is_dir() or not (pictures / "test").is_dir():
        raise UserError(
            f"--data: '{pictures}' has no train and test. Give a folder with train/CLASS/*.jpg and test/CLASS/*.jpg"
        )
    plan = {"budget": asdict(budget), "data": str(pictures.resolve()), "losses": [LOSSES, RECOVERY], "cuts": OURS}
    plan = json.loads(json.dumps(plan))  # as it is read again: lists for tuples
    written = folder / "plan.json"
    if written.exists() and json.loads(written.read_text()) != plan:
        raise UserError(f"--work: '{folder}' holds a run of another plan. Give another folder, or remove this one")
    prepared = folder / "prepared"
    if not written.exists():
        shutil.rmtree(prepared, ignore_errors=True)
        source = f"folder:{pictures}"
        listing = sources.list_source(source, pictures, lambda line: None)
        labelled = int((listing.parts == sources.Part.TRAIN).sum()) - budget.validation
        store.write_store(
            prepared, listing, source=source, image_size=32, channels=3, fit="crop", labelled=labelled,
            validation=budget.validation, test=None, unlabelled=0, max_unreadable=0.0, max_pixels=32 * 32,
            seed=SEED, workers=thread_count("auto"),
        )  # fmt: skip
        written.write_text(json.dumps(plan))
    fabric = training.make_fabric(params.run.device, 1, "fp32")
    return Bench(budget, folder, pictures, store.open_store(prepared), fabric)


# ----------------------------------------------------------------------------------------------- what is shown

# The page's lines are those of prose: at most 120 characters.
INTRO = """# Beside known peers, on known networks

The networks and the images that papers on pruning and distillation use, and two libraries beside us:
[Torch-Pruning](https://github.com/VainF/Torch-Pruning) and
[torchdistill](https://github.com/yoshitomo-matsubara/torchdistill). All of a table was made in one run, on the same
images and views, in as many steps of as many images.

```sh
python -m benchmarks.peers --data data/cifar10        # budget small: an hour on two cores
python -m benchmarks.peers --budget full              # for a GPU
python -m benchmarks.peers --check                    # and exit code 1 where a must falls short
```

The folder holds `train/CLASS/*.jpg` and `test/CLASS/*.jpg` of 32 px: JPEG copies of CIFAR-10 (Krizhevsky 2009). JPEG
costs something, so figures published for the original images are an orientation and no yardstick. The command writes
this page; a run that was stopped goes on where it was.

## What is compared

- Source: ResNet-56 with shortcuts without parameters (`resnet56a`), trained with labels. It is pruned, and it teaches.
- Pruning, ours: cut to 47 % of its MACs in rounds (l2, the same share of each layer). Each round is recovered with half
  cross-entropy and half the source's cached signals. A second network keeps the widths of the stages and cuts inside
  the blocks, to multiples of 8, which runtimes like.
- Pruning, Torch-Pruning alone: its `GroupNormPruner`, in small steps until the MACs are met, then cross-entropy in a
  plain loop. All layers are ranked together, as in its authors' benchmark, or each loses the same share (by layer). It
  is told how these shortcuts hang together, which it cannot see. Where a row says sparse, group-sparsity learning takes
  a part of the same steps before the cut.
- Distillation, ours: `resnet20a` with `kd`, `dkd` and `dist` on cached signals.
- Distillation, torchdistill: its `KDLoss` and `DISTLoss` in a plain loop that asks the teacher in every step. Release
  1.1.5 has no class for DKD. Scratch: labels alone.
- The optimiser, its rates, the initial weights and the order of the images are the same on both sides. Ours keeps the
  weights that validated best of four times, the plain loops keep the last.
- Speed: an epoch of distillation with cached signals, and the same in torchdistill as it is used: ImageFolder,
  DataLoader, DistillationBox. With and without workers; the faster counts.
- Choices are made on validation; the test split is looked at once. Differences are paired, with Tango's 95 % interval.
"""

NAMES = {
    "source": "source, teacher",
    "prune-ours": "pruned, ours",
    "prune-ours-8": "pruned, ours, inside blocks, widths of 8",
    "prune-torchpruning": "pruned, Torch-Pruning alone",
    "prune-torchpruning-layer": "pruned, Torch-Pruning alone, by layer",
    "prune-torchpruning-sparse": "pruned, Torch-Pruning alone, sparse",
    "scratch": "student, scratch",
    **{f"ours-{loss}": f"student, ours, {loss}" for loss in LOSSES},
    **{f"torchdistill-{loss}": f"student, torchdistill, {loss}" for loss, (_, theirs) in LOSSES.items() if theirs},
}


def points(row: Mapping[str, float]) -> str:
    return f"{100 * row['effect']:+.2f} [{100 * row['low']:+.2f}, {100 * row['high']:+.2f}]"


def times_as_fast(row: Mapping[str, float]) -> str:
    return f"{row['ratio']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


def render(found: Mapping[str, Any]) -> str:
    """What one run found, as Markdown."""
    budget = found["budget"]
    verdict = {True: "holds", False: "**NO**"}
    lines = [
        f"## Budget {budget['name']}",
        "",
        f"{found['device']}. Source and teacher: `{budget['source']}`, student: `{budget['student']}`. "
        f"{found['images']:,} test images.",
        "",
        f"Steps of {budget['batch_size']} images: {budget['source_steps']:,} for the source, {budget['prune_steps']:,} "
        f"for each pruned network (ours in {budget['rounds']} rounds), {budget['distill_steps']:,} for each student.",
        "",
        "| network | test accuracy | validation | MACs | parameters | seconds |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {NAMES[name]} | {row['test']:.2%} | {row['validation']:.2%} | {row['macs'] / 1e6:.1f} M "
        f"| {row['params'] / 1e3:.0f} k | {row['seconds']:.0f} |"
        for name, row in found["networks"].items()
    ]
    lines += [
        "",
        f"The cached signals took {found['signals_seconds']:.0f} s, once for all of ours. All trainings together took "
        f"{(found['signals_seconds'] + sum(row['seconds'] for row in found['networks'].values())) / 60:.0f} minutes.",
        "",
        "| difference on the test split | points | must | |",
        "|---|--:|---|---|",
    ]
    for what in ("pruning", "distillation"):
        for names, row in found[what].items():
            ours, reference = names.split(", ")
            lines.append(f"| {NAMES[ours]}, less {NAMES[reference]} | {points(row)} | | |")
        best = found[f"best_{what}"]
        lines.append(
            f"| best of both sides on validation: {NAMES[best['ours']]}, less {NAMES[best['theirs']]} | {points(best)} "
            f"| above -{100 * MARGIN:.1f} | {verdict[found['musts'][what]]} |"
        )
    lines += [
        "",
        "| an epoch of distillation | images/s here | torchdistill | times as fast | MACs alone say | must | |",
        "|---|--:|--:|--:|--:|---|---|",
    ]
    for pair, row in found["speed"].items():
        must = f"at least {LEAST_SPEED:g}" if pair == "default job" else ""
        holds = verdict[found["musts"]["speed"]] if must else ""
        rates = [budget["speed_images"] / row["seconds"][way] for way in ("thinner", row["against"])]
        lines.append(
            f"| {pair} | {rates[0]:,.0f} | {rates[1]:,.0f} ({row['against'].partition(', ')[2]}) "
            f"| {times_as_fast(row)} | {row['macs_say']:.1f} | {must} | {holds} |"
        )
    lines += [
        "",
        "| ONNX Runtime, one thread | batch | ms | times as fast as the source |",
        "|---|--:|--:|--:|",
    ]
    for batch, rows in found["latency"].items():
        lines += [
            f"| {NAMES[name]} | {batch} | {row['ms']:.2f} | {'' if name == 'source' else times_as_fast(row)} |"
            for name, row in rows.items()
        ]
    return "\n".join(lines)


def page(results: Mapping[str, Any]) -> str:
    """docs/peers.md, of the runs in benchmarks/peers.json."""
    published = [
        "## Published, on the original images",
        "",
        "| ResNet-56 on CIFAR-10 | before, % | after, % | how much smaller |",
        "|---|--:|--:|---|",
        *(f"| [{name}]({link}) | {before} | {after} | {much} |" for name, link, before, after, much in PUBLISHED),
        "",
        "Accuracies as the papers give them, after some hundreds of epochs.",
    ]
    runs = [render(found) for found in results.values()] or [
        "## Results\n\nNo run of `small` or `full` is recorded yet."
    ]
    return "\n".join([INTRO, "\n\n".join(runs), "", *published, ""])


def read_results() -> dict[str, Any]:
    return dict(json.loads(RESULTS.read_text())) if RESULTS.exists() else {}


def record(found: dict[str, Any]) -> None:
    """Into benchmarks/peers.json, and the page anew; tiny is for tests and leaves no trace."""
    if found["budget"]["name"] == "tiny":
        return
    results = {**read_results(), found["budget"]["name"]: found}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    PAGE.write_text(page(results))


def main(argv: list[str] | None = None) -> int:
    parser = distillation.parser_of("peers", str(__doc__))
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data", type=Path, default=Path("data/cifar10"), help="folder of the pictures")
    parser.add_argument(
        "--budget", choices=list(BUDGETS), default="small",
        help="; ".join(f"{name}: {budget.minutes}" for name, budget in BUDGETS.items()),
    )  # fmt: skip
    parser.add_argument("--work", type=Path, help="folder for what is done (.thinner/peers/BUDGET)")
    parser.add_argument("--only", help=argparse.SUPPRESS)  # one training, with one thread: train_side_by_side
    options = parser.parse_args(argv)
    budget = BUDGETS[options.budget]
    pictures, told = options.data.resolve(), options.json.resolve() if options.json else None
    work = options.work.resolve() if options.work else None
    if told == RESULTS.resolve():
        parser.error(f"--json: {RESULTS} holds the results of all budgets. Name another file")
    try:
        params, device = distillation.set_up()
        import torch

        folder = work or Path(".thinner/peers") / budget.name
        folder.mkdir(parents=True, exist_ok=True)
        bench = open_bench(params, budget, pictures, folder)
        if options.only is not None:
            torch.set_num_threads(1)
            work_of = trainings(budget)[options.only]
            unit(bench, options.only, lambda place: work_of(bench, place))
            return 0
        own = ["--data", str(pictures), "--budget", budget.name, "--work", str(folder)]
        units = run(bench, params, [sys.executable, "-m", "benchmarks.peers", *own])
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    found = {"budget": asdict(budget), "device": str(device), **judge(units)}
    print(render(found))
    record(found)
    if told:
        told.write_text(json.dumps(found, indent=2) + "\n")
    return 1 if options.check and not all(found["musts"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
