"""What was asked of pruning, what came out, and what that lost: the round is chosen by size, the loss judged by a test.

A limit of size is a promise, so accuracy on one validation split does not decide whether it is kept. What was lost is
judged afterwards, as a claim is; only where a drop of accuracy *is* the target does the same test choose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool

from thinner import statistics


@dataclass(frozen=True)
class Loss:
    """What was lost against the source on the same images: points of accuracy, paired, with a 95 % interval.

    ``bound``: the points that were to be put up with; None judges nothing.
    """

    points: float
    low: float
    high: float
    images: int
    bound: float | None

    @property
    def outcome(self) -> statistics.Outcome:
        """Of "no more than ``bound`` points were lost"; refuted: that more was lost is shown."""
        if self.bound is None:
            return "not shown"
        return "proven" if self.high < self.bound else "refuted" if self.low > self.bound else "not shown"

    def __str__(self) -> str:
        return f"{self.points:.2f} points [{self.low:.2f}, {self.high:.2f}]"


def loss_of(right: Bool[np.ndarray, " images"], source: Bool[np.ndarray, " images"], bound: float | None) -> Loss:
    """``right``: whether the round's network had each validation image right; ``source``: the same of the network that
    it was cut from. The interval is that of Tango's score test, as for claims (``statistics.score_difference``)."""
    ahead, behind = int((right & ~source).sum()), int((source & ~right).sum())
    low, high, _ = statistics.score_difference(ahead, behind, right.size, -(bound or 0.0) / 100)
    return Loss(100 * (behind - ahead) / right.size, -100 * high, -100 * low, int(right.size), bound)


def least_drop_shown(images: int) -> float:
    """Points: the smallest drop that so many images can exclude, at best: when the two networks never differ."""
    return -100 * statistics.score_difference(0, 0, images, 0.0)[0]


def choose_round(rounds: Sequence[Mapping[str, Any]], key: str) -> int:
    """The number (``round``) of the round that becomes the network. Rounds shrink; ``key`` is that of the target.

    Of those that meet a limit of size the first, which gave up least; of those that keep to a drop of accuracy the
    last, which is the smallest. Where none does: for a size the last, which came nearest; for a drop the most accurate.
    """
    met = [int(row["round"]) for row in rounds if row["target_met"]]
    if key == "max_drop":
        return max(met) if met else int(max(rounds, key=lambda row: row["accuracy_after"])["round"])
    return min(met) if met else int(rounds[-1]["round"])


def describe(
    key: str,
    value: int | float,
    *,
    candidate: str,
    source: str,
    size: str,
    source_size: str,
    share: float,
    met: bool,
    why: str,
    loss: Loss,
) -> list[str]:
    """What a person reads first of a pruned network: whether the target was met, and a loss that is shown.

    ``size``, ``source_size``: as text, with their unit; ``share``: size over the source's; ``why`` it was missed.
    """
    if key == "max_drop":
        found = (
            f"{candidate} lost {loss} against {source} on {loss.images:,} validation images; at most {value:g} asked"
        )
        found += ", and shown" if met else ""
    else:
        asked = f"{value:g} ms" if key == "latency_ms" else f"{value:,}"
        asked = f"{100 * value:g} %" if key != "latency_ms" and isinstance(value, float) else asked
        found = f"{candidate} has {size}, {100 * share:.1f} % of {source}'s {source_size}; at most {asked} asked"
    lines = [f"Target met: {found}." if met else f"TARGET MISSED: {found}. {why}"]
    if key != "max_drop" and loss.outcome == "refuted":
        lines.append(
            f"LOSS SHOWN: {candidate} lost {loss} against {source} on {loss.images:,} validation images: more than "
            f"prune.tolerance, {loss.bound:g} points."
        )
    return lines
