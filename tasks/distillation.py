"""What distill and prune train with: the teacher's signals, cached or live, and the losses of ``distill.losses``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tasks import teachers
from tasks.learning import balance_of, policy_of, training_pool
from thinner.data import store, views
from thinner.learn import losses, signals, training
from thinner.networks import models
from thinner.params import Params

TEACH = "data/teach"

Query = Callable[[Any, Any], tuple[Tensor, Mapping[str, Tensor]]]  # image numbers, view numbers -> logits, features


@dataclass(frozen=True)
class DistillationStep:
    """A step for ``fit`` that compares the student with the teacher, and what must be trained along with it."""

    step: Callable[[nn.Module, training.Batch, int], dict[str, Tensor]]
    extra: nn.Module | None


def step_of(
    params: Params, data: store.Store, student: nn.Module, per_epoch: int, device: torch.device
) -> DistillationStep:
    """The losses of ``distill.losses`` between ``student`` (on ``device``) and the teacher.

    With ``teacher: cached`` logits and features come from the teach stage, with ``live`` from the networks themselves.
    What is compared must have been kept: thinner.checks says so before anything runs.
    """
    distill = params.distill
    parts = []
    for part in distill.losses:
        given = losses.with_temperature(part.name, part.parameters, distill.temperature)
        parts.append((part.name, part.weight, given, given.pop("warmup_epochs", None)))
    wanted = {
        side: list(dict.fromkeys(n for p in parts for n in p[2].get(f"{side}_layers", [])))
        for side in ("student", "teacher")
    }
    query = _cached(wanted["teacher"], device) if distill.teacher == "cached" else _live(params, data, wanted, device)
    taps = models.tap(student, wanted["student"])
    shapes: dict[str, dict[str, tuple[int, ...]]] = {"student": {}, "teacher": {}}
    if wanted["student"]:  # one dry forward of each sizes what compares them
        two = data.splits["labelled"][:2]
        with torch.no_grad():
            student.eval()(views.preprocess(data.images[two], views.Preprocessing.of(params.student), device))
        features = query(two, np.zeros(2, dtype=np.int64))[1]
        shapes = {
            side: {name: tuple(value.shape[1:]) for name, value in found.items()}
            for side, found in (("student", taps), ("teacher", features))
        }
    pool = training_pool(data)  # sorted; what a loss remembers of each image, it has of these alone
    combined = losses.combine(
        parts,
        shapes["student"],
        shapes["teacher"],
        images=len(pool),
        seed=params.run.seed,
        balance=balance_of(params, data, device, drawn_evenly=False),
    ).to(device)

    def step(model: nn.Module, batch: training.Batch, number: int) -> dict[str, Tensor]:
        logits, features = query(batch.index, batch.view)
        return combined(
            model(batch.images),
            logits,
            batch.labels,
            epoch=number / per_epoch,
            student_features=taps,
            teacher_features=features,
            index=views.send(torch.from_numpy(np.searchsorted(pool, batch.index)), device),
        )

    return DistillationStep(step, combined if any(True for _ in combined.state_dict()) else None)


def _cached(layers: Sequence[str], device: torch.device) -> Query:
    cache = signals.open_signals(TEACH).only(layers)
    return lambda index, view: (
        cache.logits(index, view, device),
        cache.features(index, view, device) if layers else {},
    )


def _live(params: Params, data: store.Store, wanted: dict[str, list[str]], device: torch.device) -> Query:
    teacher = teachers.teacher(params, data, device, [signals.Feature(layer) for layer in wanted["teacher"]]).query
    policy, seed = policy_of(params.student.augment), params.run.seed

    def query(index: Any, view: Any) -> tuple[Tensor, Mapping[str, Tensor]]:
        return teacher(signals.View(data.images, index, view, policy, seed, device))

    return query
