"""The metrics that may choose weights and be claimed, from counts of answers; numpy alone, as training and tests need
them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "worst_class")


def score(metric: str, counts: NDArray[np.generic]) -> float:
    """One of `METRICS`, 0 to 1, from ``counts``: images by actual class (row) and predicted class (column).

    - balanced_accuracy: the mean over classes of the share that was recognised (recall)
    - macro_f1: the mean over classes of 2 TP / (2 TP + FP + FN)
    - worst_class: the least share of a class that was recognised

    A class without images is left out; of macro_f1 only if it was not predicted either. ValueError for no images.
    """
    table = np.asarray(counts, dtype=np.float64)
    right, actual, predicted = np.diag(table), table.sum(axis=1), table.sum(axis=0)
    if not actual.any():
        raise ValueError("no images: a ratio of nothing is not defined")
    if metric == "accuracy":
        return float(right.sum() / actual.sum())
    if metric == "macro_f1":
        seen = actual + predicted > 0
        return float((2 * right[seen] / (actual + predicted)[seen]).mean())
    recall = right[actual > 0] / actual[actual > 0]
    if metric == "balanced_accuracy":
        return float(recall.mean())
    if metric == "worst_class":
        return float(recall.min())
    raise ValueError(f"metric: unknown '{metric}'. Choose one of: {', '.join(METRICS)}")


def missing(labels: NDArray[np.int64], classes: Sequence[str]) -> list[str]:
    """The classes that no label names, in order."""
    there = set(np.unique(labels).tolist())
    return [name for number, name in enumerate(classes) if number not in there]
