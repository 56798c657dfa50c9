"""How long each stage will take on this machine, and what it leaves on the disk: a few timed steps, then arithmetic.

What is timed is the real thing on noise in place of pictures: the stage's network, batches, views, optimiser and
precision, and for ``prune`` and ``small`` the networks that are left after each cut. Nothing is written.

What every stage has beside its work (Python's and the libraries' start, MLflow, DVC's hashing) is counted in starts of
Python with the libraries, which is timed as well. ``python -m benchmarks.forecast`` compares all of it with real runs.
"""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tasks import learning
from tasks.machine import thread_count
from tasks.prune import plan_steps, way_of
from tasks.small import size_of
from thinner import layout
from thinner.compress import criteria, pruning, rounds
from thinner.compress.target import Target
from thinner.data import corruptions, store, views
from thinner.data.sources import Listing, list_source
from thinner.errors import UserError
from thinner.evidence import decision
from thinner.learn import training
from thinner.measure import profiling
from thinner.networks import checkpoint, models
from thinner.params import Augmentation, Budget, Network, Params
from thinner.runtimes import catalogue
from thinner.words import number as in_words

_TIMED, _WARM = 5, 2  # steps
_ENOUGH_SECONDS = 3.0  # of timed steps, where each takes long
_NOISE = 512  # pictures
_DECODED = 48  # of the source's pictures
_BESIDE = 2.2  # starts of Python that a stage has beside its work: its own, and what MLflow and DVC do
_FLOW = 3.0  # the same of a whole run: the flow, Prefect's server, the look at what is up to date
_EXPORTED = 0.2  # of each exported file: traced, simplified, compared
_QUANTISED = 0.4  # of each attempt in 8 bits: ranges found, quantised, compared
_FORKED = 0.2  # of each candidate whose memory is measured in a process of its own
_CALL_SECONDS = 5e-4  # the least that a call of a network takes
_ONNX = 0.6  # ONNX Runtime's time, of PyTorch's; taken for other runtimes too


@dataclass(frozen=True)
class Cost:
    """What one stage takes, alone on the machine, and leaves in ``data``."""

    stage: str
    seconds: float
    bytes: int
    words: str


@dataclass(frozen=True)
class Counts:
    """Images of each split, and what else of the data a cost depends on."""

    labelled: int
    validation: int
    test: int
    unlabelled: int
    classes: int
    decode_seconds: float  # of one picture, on one thread

    @property
    def stored(self) -> int:
        return self.labelled + self.validation + self.test + self.unlabelled

    @property
    def pool(self) -> int:
        return self.labelled + self.unlabelled


def count_images(params: Params, listing: Listing | None = None, say: Callable[[str], None] = print) -> Counts:
    """How ``prepare`` would split the images, and how long a picture takes to decode (a few are)."""
    data = params.data
    listing = listing or list_source(data.source, data.root, say)
    splits = store.split(
        listing.labels,
        listing.parts,
        listing.classes,
        labelled=data.labelled,
        validation=data.validation,
        test=data.test,
        unlabelled=data.unlabelled,
        seed=params.run.seed,
    )
    start, chosen = time.perf_counter(), np.linspace(0, len(listing) - 1, min(_DECODED, len(listing))).astype(int)
    for number in chosen.tolist():
        try:
            store.decode(partial(listing.read, number), data.image_size, data.channels, data.fit, data.max_pixels)
        except store.UnreadableError:  # prepare names it
            continue
    seconds = (time.perf_counter() - start) / len(chosen)
    counts = {name: len(numbers) for name, numbers in splits.items()}
    return Counts(**counts, classes=len(listing.classes), decode_seconds=seconds)


class Clock:
    """Times steps and looks on this machine; what was timed once is not timed again, also for other ``params``."""

    def __init__(self, say: Callable[[str], None] = lambda text: None) -> None:
        self._known: dict[Any, Any] = {}
        self._say = say

    def _once(self, key: Any, words: str, measure: Callable[[], Any]) -> Any:
        if key not in self._known:
            self._say(words)
            self._known[key] = measure()
        return self._known[key]

    @cached_property
    def start_seconds(self) -> float:
        """Of Python with the libraries that every stage imports."""
        self._say("a start of Python")
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import mlflow, tasks.distill"], check=True, capture_output=True)
        return time.perf_counter() - start

    def step_seconds(
        self, params: Params, name: str, network: Any, section: Network, augment: Augmentation, plan: Budget
    ) -> float:
        """Of one training step. ``network``: (what it is told apart by, how it is made)."""
        key, make = network
        run = params.run
        told = ("step", key, plan.batch_size, plan.optimizer, section.image_size, params.data.image_size, augment, run)
        return float(
            self._once((*told, params.data.channels), f"training steps of {name}", lambda: self._steps(
                params, make(), section, augment, plan
            ))
        )  # fmt: skip

    def _steps(self, params: Params, model: Any, section: Network, augment: Augmentation, plan: Budget) -> float:
        fabric = training.make_fabric(params.run.device, 1, params.run.precision)
        images, labels = _noise(params, max(_NOISE, plan.batch_size))
        batches = training.Batches(
            images=images,
            labels=labels,
            pool=np.arange(len(images)),
            batch_size=plan.batch_size,
            seed=0,
            size=section.image_size,
            mean=tuple(section.mean),
            std=tuple(section.std),
            policy=learning.policy_of(augment),
            device=fabric.device,
            channels_last=params.run.channels_last,
        )
        step = training.supervised_step()
        model = model.to(memory_format=learning.memory_format_of(params)).train()
        optimizer = training.make_optimizer(model, plan.optimizer, lr=1e-4, weight_decay=0.0)
        wrapped, optimizer = fabric.setup(model, optimizer)

        def once(number: int) -> None:
            parts = step(wrapped, batches(number), number)
            optimizer.zero_grad(set_to_none=True)
            fabric.backward(parts["loss"])
            optimizer.step()
            parts["loss"].item()  # a GPU answers when it is done

        return _median(once) / params.run.devices

    def look_seconds(self, params: Params, name: str, network: Any, preprocessing: views.Preprocessing) -> float:
        """Of one image, of which only the answer is wanted."""
        key, make = network
        size = preprocessing.image_size
        told = ("look", key, size, params.data.image_size, params.data.channels, params.run)

        def measure() -> float:
            device = training.make_fabric(params.run.device, 1, params.run.precision).device
            model = make().to(device, memory_format=learning.memory_format_of(params)).eval()
            images, _ = _noise(params, _NOISE // 2)
            index = np.arange(len(images))

            def once(number: int) -> None:
                training.logits_of(model, images, index, preprocessing, device=device)

            return _median(once, warm=1, timed=3) / len(images)

        return float(self._once(told, f"looks of {name}", measure))

    def cut(
        self, params: Params, name: str, network: Any, section: Network, asked: Target | None = None
    ) -> list[tuple[Any, Any]]:
        """The networks after each cut of ``prune``, as (what they are told apart by, how they are made). ``asked``: how
        far, where it is not what prune is asked."""
        key, make = network
        way, asked = way_of(params), asked or params.prune.asked
        told = ("cut", key, section.image_size, asked, repr(way))

        def measure() -> list[Any]:
            # widths are about the same by any criterion, and this one needs no image
            looks = criteria.look_up(way.criterion).needs_examples
            model = make()
            plan = rounds.PruningPlan(
                asked,
                replace(way, rewind=False, warm_up=False, criterion="l2" if looks else way.criterion),
                model,
                (section.channels, section.image_size, section.image_size),
                memory_format=learning.memory_format_of(params),
                within_reach=True,
            )
            found = []
            for number in range(1, way.rounds + 1):
                if plan.size(model) > (allowed := plan.allowed(number, model)):
                    try:
                        model = plan.cut(model, allowed, number)[0]
                    except pruning.PruningError:  # measured once more, it is fast enough or out of reach
                        if not asked.is_measured:
                            raise
                found.append(model)
            return found

        made = self._once(told, f"cuts of {name}", measure)
        return [((*told, number), lambda model=model: model) for number, model in enumerate(made)]


def _median(once: Callable[[int], None], warm: int = _WARM, timed: int = _TIMED) -> float:
    for number in range(warm):
        once(number)
    taken: list[float] = []
    while len(taken) < timed and (sum(taken) < _ENOUGH_SECONDS or len(taken) < 2):
        start = time.perf_counter()
        once(warm + len(taken))
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def each_step(seconds: float) -> str:
    return f"{in_words(float(f'{seconds:.2g}'))} s each"


def _noise(params: Params, images: int) -> tuple[Any, Any]:
    rng, side = np.random.default_rng(0), params.data.image_size
    pixels = rng.integers(0, 256, (images, side, side, params.data.channels), dtype=np.uint8)
    return pixels, rng.integers(0, 2, images)


def _fresh(section: Network, classes: int) -> tuple[Any, Callable[[], Any]]:
    """(what it is told apart by, how it is made), with weights that were never trained: they are as fast."""
    network = models.describe(section, classes)
    return repr(network), lambda: models.create(network)


def foretell(params: Params, counts: Counts, clock: Clock) -> dict[str, Cost]:
    """The cost of each stage but ``report``'s pictures, in the order of dvc.yaml. PyTorch's threads are set as the
    stages will have them.

    Not in it: losses between layers, a criterion that looks at images, a compiler's start.
    """
    torch.set_num_threads(thread_count(params.run.threads))
    return {cost.stage: cost for cost in _Job(params, counts, clock).costs()}


class _Job:
    def __init__(self, params: Params, counts: Counts, clock: Clock) -> None:
        self.params, self.counts, self.clock = params, counts, clock
        self.start = clock.start_seconds
        self.networks: dict[str, tuple[Any, Network]] = {}  # candidate -> network, section: what is measured

    def costs(self) -> list[Cost]:
        params, counts = self.params, self.counts
        fresh = _fresh(params.finetune, counts.classes)
        key, make = fresh

        def frozen() -> Any:
            model = make()
            models.freeze(model, params.finetune.freeze)
            return model

        teacher = ((key, params.finetune.freeze), frozen)
        student = _fresh(params.student, counts.classes)
        self.networks = {
            "finetune": (fresh, params.finetune),
            "scratch": (student, params.student),
            "distill": (student, params.student),
        }
        if params.self_train.networks:
            self.networks |= dict.fromkeys((decision.LEARNER, decision.CONTROL), (fresh, params.finetune))
        augment, plan = params.student.augment, params.student.training
        found = [
            self._prepare(),
            self._finetune(teacher),
            *(self._self_trained(name, teacher) for name in params.self_train.networks),
            self._trained("scratch", student, params.student, augment, plan),
            self._teach(),
            self._trained("distill", student, params.student, augment, plan, taught=True),
        ]
        for stage, source in (("prune", params.prune.source), *((f"prune_also@{s}", s) for s in params.prune_also)):
            found.append(self._pruned(stage, source))
        found += [self._small(), self._quantize(), self._export(), self._evaluate()]
        return [*found, Cost("report", self.start * _BESIDE, 0, "tables and the page")]

    def _finetune(self, teacher: Any) -> Cost:
        section = self.params.finetune
        cost = self._trained("finetune", teacher, section, section.augment, section.training)
        if not section.probe_steps:
            return cost
        (key, _), make = teacher

        def held() -> Any:
            model = make()
            models.freeze_all(model)
            for _, head in models.heads_of(model):
                head.requires_grad_(True)
            return model

        each = self._step("finetune", ((key, "head"), held), section, section.augment, section.training, False)
        return replace(
            cost,
            seconds=cost.seconds + section.probe_steps * each,
            words=f"{cost.words}, before them {section.probe_steps:,} of the head",
        )

    def _self_trained(self, name: str, network: Any) -> Cost:
        section, own = self.params.finetune, self.params.self_train
        plan = own.training.model_copy(update={"batch_size": own.training.batch_size * (1 + own.ratio)})
        stage = f"self_train@{name}"
        one = self._trained(stage, network, section, section.augment, plan)
        look = self.clock.look_seconds(self.params, stage, network, views.Preprocessing.of(section))
        steps = self._steps(plan, self.counts.labelled)[0]
        looked = steps * own.ratio * own.training.batch_size + 3 * self.counts.validation
        seconds = 2 * one.seconds - self._beside(0.0) + looked * look
        return replace(
            one,
            seconds=seconds,
            bytes=2 * one.bytes,
            words=f"{one.words}, twice: with pictures without labels, and the control",
        )

    def _beside(self, seconds: float) -> float:
        return seconds + _BESIDE * self.start

    def _prepare(self) -> Cost:
        counts, data = self.counts, self.params.data
        workers = min(thread_count(self.params.run.threads), os.cpu_count() or 1)
        seconds = counts.stored * counts.decode_seconds / workers
        size = counts.stored * data.image_size**2 * data.channels
        return Cost("prepare", self._beside(seconds), size, f"{counts.stored:,} pictures of {data.image_size} px")

    def _steps(self, plan: Budget, pool: int) -> tuple[int, int]:
        """(steps, looks at the validation images)."""
        steps, every = training.steps_of(
            pool, batch_size=plan.batch_size, steps=plan.steps, epochs=plan.epochs, validate_every=plan.validate_every
        )
        return steps, math.ceil(steps / every)

    def _trained(
        self,
        stage: str,
        network: Any,
        section: Network,
        augment: Augmentation,
        plan: Budget,
        *,
        taught: bool = False,
    ) -> Cost:
        steps, looks = self._steps(plan, self.counts.pool if taught else self.counts.labelled)
        each = self._step(stage, network, section, augment, plan, taught)
        look = self.clock.look_seconds(self.params, stage, network, views.Preprocessing.of(section))
        seconds = steps * each + looks * self.counts.validation * look
        size = 4 * profiling.count_params(network[1]())
        return Cost(
            stage, self._beside(seconds), size, f"{steps:,} steps of {plan.batch_size} images, {each_step(each)}"
        )

    def _step(
        self, stage: str, network: Any, section: Network, augment: Augmentation, plan: Budget, taught: bool
    ) -> float:
        each = self.clock.step_seconds(self.params, stage, network, section, augment, plan)
        if taught and self.params.distill.teacher == "live":
            each += plan.batch_size * self._teachers_look()
        return each

    def _teachers_look(self) -> float:
        """Seconds for an image of all teachers."""
        total = 0.0
        for name in self.params.teach.teachers:
            if name.endswith(".npz"):
                continue
            asked = 1 + self.params.teach.flip
            if name == "finetune":
                network, wants = self.networks[name][0], views.Preprocessing.of(self.params.finetune)
            else:
                seen = checkpoint.read_spec(name)["preprocessing"]
                network = (name, lambda name=name: checkpoint.load(name).model)
                wants = views.Preprocessing.from_json(seen)
            total += asked * self.clock.look_seconds(self.params, f"the teacher {name}", network, wants)
        return total

    def _teach(self) -> Cost:
        section = self.params.teach
        looked = section.views * self.counts.pool
        each = 2 * self.counts.classes + 4 if section.top_k is None else section.top_k * 6 + 4
        return Cost(
            "teach",
            self._beside(looked * self._teachers_look()),
            looked * (each + 2 * self._kept_values()),
            f"{section.views} view{'s' * (section.views > 1)} of {self.counts.pool:,} images",
        )

    def _kept_values(self) -> int:
        """Numbers of the teacher's layers that are kept for each view of an image."""
        kept, section = self.params.teach.features, self.params.finetune
        if not kept:
            return 0
        model = self.networks["finetune"][0][1]().eval()
        taps = models.tap(model, [feature.layer for feature in kept])
        with torch.no_grad():
            model(torch.zeros(1, section.channels, section.image_size, section.image_size))
        shapes = {name: tuple(value.shape[1:]) for name, value in taps.items()}
        return sum(
            models.pooled_width(shapes[f.layer]) if f.keep == "pooled" else math.prod(shapes[f.layer]) for f in kept
        )

    def _pruned(self, stage: str, source: str) -> Cost:
        params, plan = self.params, self.params.prune.training
        network, section = self.networks[source]
        candidate = "prune" if stage == "prune" else f"prune_{source}"
        cuts = self.clock.cut(params, source, network, section)
        steps, looks = self._steps(plan, self.counts.pool)
        rounds_of = [network, *cuts] if params.prune.sparsity > 0 else cuts
        seconds, size = 0.0, 0
        for number, cut in enumerate(rounds_of, 1):
            each = self._step(f"{stage} {number}", cut, section, params.student.augment, plan, taught=True)
            look = self.clock.look_seconds(params, f"{stage} {number}", cut, views.Preprocessing.of(section))
            seconds += steps * each + (looks + 2) * self.counts.validation * look
            size += 4 * profiling.count_params(cut[1]())
        self.networks[candidate] = (cuts[-1], section)
        words = f"{len(cuts)} rounds of {plan_steps(params, self.counts.pool):,} steps of {plan.batch_size} images"
        return Cost(stage, self._beside(seconds), size + size // max(1, len(cuts)), words)

    def _small(self) -> Cost:
        params, plan = self.params, self.params.prune.training
        source = params.small.source
        network, section = self.networks[source]
        # cut to prune's own size: where both start from one network, the very same
        last, its = self.networks["prune"]
        if not self._alike(source):
            shape = (its.channels, its.image_size, its.image_size)
            last = self.clock.cut(params, source, network, section, size_of(params, last[1](), shape))[-1]
        self.networks["small"] = (last, section)
        rounds = len(self.clock.cut(params, params.prune.source, *self.networks[params.prune.source]))
        steps = (rounds + (params.prune.sparsity > 0)) * plan_steps(params, self.counts.pool)
        looks = math.ceil(steps / (plan.validate_every or max(1, self.counts.labelled // plan.batch_size)))
        each = self.clock.step_seconds(params, "small", last, section, params.student.augment, plan)
        look = self.clock.look_seconds(params, "small", last, views.Preprocessing.of(section))
        size = 4 * profiling.count_params(last[1]())
        return Cost(
            "small",
            self._beside(steps * each + looks * self.counts.validation * look),
            size,
            f"{steps:,} steps of {plan.batch_size} images, {each_step(each)}",
        )

    def _alike(self, source: str) -> bool:
        mine, theirs = self.networks[source], self.networks[self.params.prune.source]
        return mine[0][0] == theirs[0][0] and mine[1] is theirs[1]

    def _of(self, candidate: str) -> tuple[Any, Network]:
        name = candidate
        while name not in self.networks:  # prune_onnx_int8 -> prune
            name, ending, _ = name.rpartition("_")
            if not ending:
                raise UserError(f"export.candidates: '{candidate}' is no network of this job. Take it out")
        return self.networks[name]

    def _quantize(self) -> Cost:
        """Its first rung; how far it has to climb is not known before."""
        section = self.params.quantize
        if section.candidate is None:
            return Cost("quantize", self._beside(0.0), 0, "nothing")
        network, wants = self.networks[section.source]
        look = self.clock.look_seconds(self.params, section.source, network, views.Preprocessing.of(wants))
        attempts = len(section.calibration)
        seen = attempts * (section.images + self.counts.validation) + self.counts.validation
        seconds = look * seen + (1 + attempts) * _QUANTISED * self.start
        words = f"the first rung, {attempts} ways" + " (more where it does not hold)" * (len(section.rungs) > 1)
        return Cost("quantize", self._beside(seconds), profiling.count_params(network[1]()), words)

    def _export(self) -> Cost:
        section = self.params.export
        size = 0
        for name in section.candidates:
            weights = 4 * profiling.count_params(self._of(name)[0][1]())
            size += sum(weights // 4 if catalogue.FORMATS[kind].int8 else weights for kind in section.formats)
        files = len(section.candidates) * len(section.formats)
        return Cost("export", self._beside(files * _EXPORTED * self.start), size, f"{files} files")

    def _evaluate(self) -> Cost:
        params, section = self.params, self.params.evaluate
        threads = thread_count(params.run.threads)
        seconds = 0.0
        cases = len(corruptions.CORRUPTIONS) * len(corruptions.SEVERITIES) if section.corruptions else 0
        for name in layout.candidate_names(params):
            network, wants = self._of(name)
            look = self.clock.look_seconds(params, name, network, views.Preprocessing.of(wants))
            look *= 1.0 if layout.runtime_of(params, name) == catalogue.PYTORCH else _ONNX
            seconds += look * (self.counts.test * (1 + cases) + self.counts.validation)
            slower = max(1.0, threads / section.latency_threads)
            seconds += section.latency_repeats * sum(
                max(5e-4, look * batch * slower) for batch in section.latency_batches
            )
            seconds += _FORKED * self.start
        words = f"{len(layout.candidate_names(params))} candidates on {self.counts.test:,} test images, and their speed"
        return Cost("evaluate", self._beside(seconds), 0, words)


def makespan(
    costs: Mapping[str, float], upstream: Mapping[str, Sequence[str]], *, jobs: int, threads: int, cores: int
) -> float:
    """Seconds from the first start to the last end, with at most ``jobs`` stages side by side.

    Each wants ``threads`` cores; where they want more than there are, all get an equal share. A stage starts as soon as
    what it needs is there, in the order of ``costs``.
    """
    waiting = list(costs)
    left: dict[str, float] = {}
    done: set[str] = set()
    now = 0.0
    while waiting or left:
        for name in list(waiting):
            if len(left) < jobs and all(up in done or up not in costs for up in upstream.get(name, ())):
                left[name] = costs[name]
                waiting.remove(name)
        speed = min(1.0, cores / (threads * len(left)))
        first = min(left, key=lambda name: left[name])
        passed = left.pop(first)
        now += passed / speed
        left = {name: seconds - passed for name, seconds in left.items()}
        done.add(first)
    return now


def whole_run(costs: Mapping[str, Cost], nodes: Sequence[Any], params: Params, jobs: int, start: float) -> float:
    """Seconds of a run of these stages. ``nodes``: of tasks.lineage.graph; ``start``: Clock.start_seconds."""
    if not costs:
        return _FLOW * start
    threads, cores = thread_count(params.run.threads), thread_count("auto")
    upstream = {node.name: node.upstream for node in nodes}
    return _FLOW * start + makespan(
        {name: cost.seconds for name, cost in costs.items()}, upstream, jobs=jobs, threads=threads, cores=cores
    )


def free_bytes(folder: Path) -> int:
    """What is left on the disk of ``folder``."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize
