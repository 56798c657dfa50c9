"""Self-training: the network labels pictures that have no labels, and learns those answers that it is sure of.

A weak view of a picture is named by the network as it stands; where it is sure enough, a strong view of the same one
learns that name: FixMatch (Sohn et al. 2020, https://arxiv.org/abs/2001.07685) with one fixed threshold, FreeMatch
(Wang et al. 2023, https://arxiv.org/abs/2205.07246) with thresholds of each class that follow the network's own
confidence. Whether it helped is `decide`d by paired tests: wrong names that are learnt make a network worse.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from thinner.data import views
from thinner.evidence import statistics
from thinner.evidence.decision import CONTROL, LEARNER, PLAIN
from thinner.learn import imbalance, training

_STRONG = 1 << 40  # added to a view's number: its strong view is drawn by numbers of its own
_LEVEL = 0.05  # of the paired tests


@dataclass(frozen=True)
class Batches:
    """Batch ``step`` as a pure function: B labelled images, then weak views of U others, then their strong views.

    ``labelled`` and ``weak`` draw the two kinds, each in a stream of its own; strong views follow ``strong``. Labels of
    the unlabelled are -1, whatever the store has.
    """

    labelled: training.Batches
    weak: training.Batches
    strong: views.Policy

    @property
    def pool(self) -> NDArray[np.int64]:
        """What an epoch is counted by: the labelled images."""
        return self.labelled.pool

    def __call__(self, step: int) -> training.Batch:
        index, view = self.weak.numbers(step)
        parts = [
            self.labelled(step),
            self.weak.of(index, view),
            replace(self.weak, policy=self.strong).of(index, view + _STRONG),
        ]
        hidden = [parts[0].labels, *(torch.full_like(part.labels, -1) for part in parts[1:])]
        images = torch.cat([part.images for part in parts])
        if self.labelled.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return training.Batch(
            images,
            torch.cat(hidden),
            np.concatenate([part.index for part in parts]),
            np.concatenate([part.view for part in parts]),
        )


def parts_of(batch: training.Batch) -> tuple[training.Batch, Float[Tensor, "u c h w"], Float[Tensor, "u c h w"]]:
    """(the labelled part, weak views, strong views) of a batch of `Batches`."""
    count = int((batch.labels >= 0).sum())
    weak, strong = batch.images[count:].chunk(2)
    labelled = training.Batch(batch.images[:count], batch.labels[:count], batch.index[:count], batch.view[:count])
    return labelled, weak, strong


class Thresholds(nn.Module):
    """FreeMatch's self-adaptive thresholds: ``forward`` takes the probabilities q of a batch of weak views, moves the
    running means, and returns the threshold of each class. Nothing is learnt: the two means are buffers.

    tau   <- m tau + (1 - m) mean_b max_c q_b(c)        how sure the network is at all
    p(c)  <- m p(c) + (1 - m) mean_b q_b(c)             how sure of each class; both start at 1 / classes
    threshold(c) = tau p(c) / max_c p(c)                equations 5 to 8 of the paper

    With several processes the means are of all their images (``mean``). Not here: the paper's fairness loss (SAF).
    """

    tau: Tensor
    classes: Tensor

    def __init__(self, classes: int, momentum: float, mean: Callable[[Tensor], Tensor] = lambda own: own) -> None:
        super().__init__()
        self.momentum, self._mean = momentum, mean
        self.register_buffer("tau", torch.tensor(1.0 / classes))
        self.register_buffer("classes", torch.full((classes,), 1.0 / classes))

    @torch.no_grad()
    def forward(self, probabilities: Float[Tensor, "batch classes"]) -> Float[Tensor, " classes"]:
        sure = self._mean(probabilities.amax(1).mean())
        self.tau.lerp_(sure, 1.0 - self.momentum)
        self.classes.lerp_(self._mean(probabilities.mean(0)), 1.0 - self.momentum)
        return self.tau * self.classes / self.classes.max()


def believed(
    probabilities: Float[Tensor, "batch classes"], thresholds: Float[Tensor, " classes"]
) -> tuple[Int[Tensor, " batch"], Bool[Tensor, " batch"]]:
    """(the class that is named, whether its probability reaches that class's threshold) of each picture."""
    most, named = probabilities.max(1)
    return named, most >= thresholds[named]


def pseudo_loss(
    logits: Float[Tensor, "batch classes"], named: Int[Tensor, " batch"], mask: Bool[Tensor, " batch"]
) -> Float[Tensor, ""]:
    """Mean over the batch of the cross-entropy with ``named``, 0 where ``mask`` is false: equation 4 of FixMatch. The
    sum is divided by all pictures, so that few that are believed count little."""
    return (F.cross_entropy(logits, named, reduction="none") * mask).mean()


def step_of(
    *,
    threshold: float | Thresholds,
    weight: float,
    label_smoothing: float = 0.0,
    prepare: Callable[[training.Batch, int], training.Batch] | None = None,
    balance: imbalance.Balance | None = None,
) -> Callable[[nn.Module, training.Batch, int], dict[str, Tensor]]:
    """A step for ``fit`` over `Batches`: the labelled loss plus ``weight`` times `pseudo_loss`.

    ``threshold``: FixMatch's number, or FreeMatch's `Thresholds` (give them to ``fit`` as ``extra``: they are part of
    the state that a killed run goes on from). The other arguments are of the labelled part, as in
    ``training.supervised_step``.

    Deviation from both papers: weak views are looked at in eval mode (running statistics of batch norms, no dropout)
    and without gradients, so the answers are those that the network would give when used, and cost a forward pass
    alone. No averaged weights are kept for it.
    """

    def step(model: nn.Module, batch: training.Batch, number: int) -> dict[str, Tensor]:
        labelled, weak, strong = parts_of(batch)
        if prepare is not None:
            labelled = prepare(labelled, number)
        model.eval()
        with torch.no_grad():
            probabilities = model(weak).float().softmax(1)
        model.train()
        if isinstance(threshold, Thresholds):
            limits = threshold(probabilities)
        else:
            limits = probabilities.new_full((probabilities.shape[1],), threshold)
        named, mask = believed(probabilities, limits)
        logits = model(torch.cat([labelled.images, strong]))
        supervised = training.supervised_loss(logits[: len(labelled.labels)], labelled, label_smoothing, balance)
        pseudo = pseudo_loss(logits[len(labelled.labels) :], named, mask)
        return {
            "loss": supervised + weight * pseudo,
            "labelled_loss": supervised,
            "pseudo_loss": pseudo,
            "believed": mask.float().mean(),
            "threshold": limits.mean(),
        }

    return step


# ------------------------------------------------------------------------------------------------------ choosing


def decide(
    labels: Int[np.ndarray, " images"], answers: Mapping[str, Int[np.ndarray, " images"]], metric: str = "accuracy"
) -> dict[str, Any]:
    """Which network teaches: the self-trained one only if it is shown to be better than the plain one *and* than the
    control, each by a paired test on these (validation) images; else the plain one.

    ``answers``: the class that each of `PLAIN`, `CONTROL` and `LEARNER` names. ``metric``: one of scores.METRICS. Both
    tests must reject at 5 %, two-sided, so nothing is to be corrected for their number (an intersection-union test,
    Berger 1982, https://doi.org/10.1080/00401706.1982.10487790).

    Returns what decision.json holds: ``chosen``, ``metric``, ``images``, ``accuracy`` of the three, ``against``: the
    effect, low, high (ratios) and p_value of each comparison.
    """
    evidence = statistics.Evidence(
        right={name: named == labels for name, named in answers.items()},
        predictions=answers,
        sizes={},
        latency_ms={},
        labels=labels,
    )
    against: dict[str, Any] = {}
    better = True
    for other in (PLAIN, CONTROL):
        claim = statistics.parse_claim(f"{LEARNER} beats {other} on {metric}")
        (verdict,) = statistics.judge([claim], evidence, alpha=_LEVEL)
        found = verdict.estimate
        against[other] = {"effect": found.effect, "low": found.low, "high": found.high, "p_value": found.p_value}
        better = better and verdict.outcome == "proven"
    return {
        "chosen": LEARNER if better else PLAIN,
        "metric": metric,
        "images": len(labels),
        "accuracy": {name: float(right.mean()) for name, right in evidence.right.items()},
        "against": against,
    }
