"""What so many test images can show, before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Sequence

LEVEL, POWER = 1.959964, 0.841621  # standard normal: 97.5 % and 80 % of it lie below
DISAGREE = 0.1  # share of images on which exactly one of two networks of like accuracy is right, as on our own data


def detectable(images: int, disagree: float = DISAGREE) -> float:
    """The difference of two accuracies, in points, that a paired test on ``images`` images shows in four of five cases.

    ``disagree`` is the share (0 to 1) of images on which exactly one of the two networks is right: the others tell
    nothing. The normal approximation of Connor 1987, "Sample size for testing differences in proportions for the
    paired-sample design" (https://doi.org/10.2307/2531961), for a difference that is small beside ``disagree``. As much
    has to be asked for as a margin ("within 2.0 points"), for two networks that are as good as each other to be shown
    to be within it. Raises ValueError for no images.
    """
    if images < 1:
        raise ValueError(f"images: {images}. There must be one at least")
    return 100 * (LEVEL + POWER) * math.sqrt(disagree / images)


def images_for(points: float, disagree: float = DISAGREE) -> int:
    """How many images show a difference of ``points`` in four of five cases: ``detectable`` turned around."""
    return math.ceil(disagree * (100 * (LEVEL + POWER) / points) ** 2)


def detectable_by_class(images: Sequence[int], disagree: float = DISAGREE) -> float:
    """`detectable` of two balanced accuracies, from the number of test images of each class.

    The mean of K classes' differences has the variance sum_k (disagree / n_k) / K^2, so the smallest classes decide.
    With equal classes it is that of the accuracy. Raises ValueError where there is no class, or one without images.
    """
    if not images or min(images) < 1:
        raise ValueError(f"images: {list(images)}. There must be one of each class at least")
    return 100 * (LEVEL + POWER) * math.sqrt(disagree * sum(1 / count for count in images)) / len(images)
