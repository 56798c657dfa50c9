"""What distill and prune train with: the teacher's signals, cached or live, and the losses of ``distill.losses``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tasks.learning import memory_format_of, policy_of, preprocessing_of
from thinner import checkpoint, losses, models, signals, store, training, views
from thinner.config import Params

TEACH = "data/teach"


@dataclass(frozen=True)
class Lesson:
    """A step for ``fit`` that compares the student with the teacher, and what must be trained along with it."""

    step: Callable[[nn.Module, training.Batch, int], dict[str, Tensor]]
    extra: nn.Module | None


def lesson(params: Params, data: store.Store, student: nn.Module, per_epoch: int, device: torch.device) -> Lesson:
    """The losses of ``distill.losses`` between ``student`` (on ``device``) and the teacher.

    With ``teacher: cached`` the teacher's logits come from the teach stage, with ``live`` from the network itself.
    Losses that compare feature maps need the live teacher (thinner.checks says so before anything runs).
    """
    distill = params.distill
    parts = []
    for part in distill.losses:
        given = parameters_of(part.name, part.parameters, distill.temperature)
        parts.append((part.name, part.weight, given, given.pop("warmup_epochs", None)))
    layers = {side: [n for p in parts for n in p[2].get(f"{side}_layers", [])] for side in ("student", "teacher")}
    if distill.teacher == "cached":
        cache = signals.open_signals(TEACH)
        combined = losses.combine(parts, seed=params.run.seed)

        def cached(model: nn.Module, batch: training.Batch, number: int) -> dict[str, Tensor]:
            teacher_logits = cache.logits(batch.index, batch.view, device)
            return combined(model(batch.images), teacher_logits, batch.labels, epoch=number / per_epoch)

        return Lesson(cached, None)

    loaded = checkpoint.load("data/finetune")
    teacher = loaded.model.to(device, memory_format=memory_format_of(params))
    student_taps, teacher_taps = models.tap(student, layers["student"]), models.tap(teacher, layers["teacher"])

    def ask(index: npt.NDArray[np.int64], view: npt.NDArray[np.int64]) -> Tensor:
        with torch.no_grad():
            return signals.view_logits(
                teacher,
                data.images,
                index,
                view,
                preprocessing=loaded.spec["preprocessing"],
                policy=policy_of(params.student.augment),
                seed=params.run.seed,
                device=device,
            )

    if layers["student"]:  # one dry forward of each sizes what compares them
        ask(data.splits["labelled"][:2], np.zeros(2, dtype=np.int64))
        with torch.no_grad():
            student.eval()(views.preprocess(data.images[:2], preprocessing_of(params.student), device))
    combined = losses.combine(
        parts,
        {name: tuple(value.shape[1:]) for name, value in student_taps.items()},
        {name: tuple(value.shape[1:]) for name, value in teacher_taps.items()},
        images=len(data.images),
        seed=params.run.seed,
    ).to(device)

    def live(model: nn.Module, batch: training.Batch, number: int) -> dict[str, Tensor]:
        teacher_logits = ask(batch.index, batch.view)
        return combined(
            model(batch.images),
            teacher_logits,
            batch.labels,
            epoch=number / per_epoch,
            student_features=student_taps,
            teacher_features=teacher_taps,
            index=torch.from_numpy(batch.index).to(device),
        )

    return Lesson(live, combined if any(True for _ in combined.parameters()) else None)


def parameters_of(name: str, given: dict[str, Any], temperature: float) -> dict[str, Any]:
    """The loss's own parameters; ``distill.temperature`` fills in where a loss of logits has one and its row says
    nothing. (The temperature of crd is another thing: it divides cosines.)"""
    row = losses.LOSSES[name]
    if "logits" in row.needs and "temperature" in row.parameters and "temperature" not in given:
        return {**given, "temperature": temperature}
    return dict(given)
