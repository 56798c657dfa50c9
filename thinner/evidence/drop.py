"""How much accuracy a smaller network lost against its source: on the same images, paired, with an interval."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from thinner.evidence import statistics
from thinner.words import decimals


@dataclass(frozen=True)
class Drop:
    """Points of accuracy that were lost, with a 95 % interval; below zero where accuracy was won.

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
        digits = 2 if self.bound is None else max(decimals(limit, self.bound) for limit in (self.low, self.high))
        return f"{self.points:.{digits}f} points [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def drop_of(right: Bool[np.ndarray, " images"], source: Bool[np.ndarray, " images"], bound: float | None) -> Drop:
    """``right``: whether the smaller network had each image right; ``source``: the same of the network that it was cut
    from. The interval is that of Tango's score test, as for claims (``statistics.score_difference``)."""
    ahead, behind = int((right & ~source).sum()), int((source & ~right).sum())
    low, high, _ = statistics.score_difference(ahead, behind, right.size, -(bound or 0.0) / 100)
    return Drop(100 * (behind - ahead) / right.size, -100 * high, -100 * low, int(right.size), bound)


def refusal(points: float, images: int, key: str = "prune.target: max_drop") -> str | None:
    """Why ``key: points`` can never be shown by so many validation images; None where it can.

    The least that they can exclude is what they exclude of two networks that never differ.
    """
    if points > least(images):
        return None
    fewest = math.ceil(100 * least(images)) / 100  # rounded down it would be refused again
    return (
        f"{key} {points:g} points, but {images:,} validation images show a drop of {fewest:.2f} points at the least. "
        "Ask for more, or set data.validation higher"
    )


def least(images: int) -> float:
    """The smallest drop, in points, that so many images can exclude: of two networks that never differ."""
    return -100 * statistics.score_difference(0, 0, images, 0.0)[0]
