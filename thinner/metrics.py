"""How well predictions fit labels: accuracy, macro-F1, per class, confusion, agreement.

Pure functions of integer arrays `[images]`, one class number per image. All of them are ratios (0 to 1)
except `confusion`, which counts images. Counts are added up as integers and divided once in float64, so the
result does not depend on batch size or on the order of the images. macro-F1 and the confusion matrix are
scikit-learn's.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Integer
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, f1_score

Classes = Integer[np.ndarray, " images"]


def accuracy(labels: Classes, predictions: Classes) -> float:
    """The share of images whose predicted class is their label.

    Like its sisters it raises ValueError on no images, or on arrays of different lengths.
    """
    _check(labels, predictions)
    return int(np.count_nonzero(labels == predictions)) / len(labels)


def macro_f1(labels: Classes, predictions: Classes) -> float:
    """The mean over classes of F1 = 2 TP / (2 TP + FP + FN); every class weighs the same, however rare.

    A class counts when it occurs among the labels or the predictions. One that occurs in neither has no F1,
    and scoring it 0 would punish a candidate for a test split that lacks the class.
    """
    _check(labels, predictions)
    return float(f1_score(labels, predictions, average="macro", zero_division=0.0))


def per_class_accuracy(labels: Classes, predictions: Classes, classes: int) -> Float[np.ndarray, " classes"]:
    """Of each class's images, the share that was recognised (its recall); NaN for a class without images."""
    counts = confusion(labels, predictions, classes)
    images = counts.sum(axis=1)
    return np.divide(np.diag(counts), images, out=np.full(classes, np.nan), where=images > 0)


def confusion(labels: Classes, predictions: Classes, classes: int) -> Integer[np.ndarray, "actual predicted"]:
    """Images counted by actual class (row) and predicted class (column)."""
    _check(labels, predictions)
    for name, values in (("labels", labels), ("predictions", predictions)):
        if values.min() < 0 or values.max() >= classes:
            raise ValueError(f"{name} run from {values.min()} to {values.max()}, but there are {classes} classes")
    counts: NDArray[np.int64] = confusion_matrix(labels, predictions, labels=np.arange(classes))
    return counts


def agreement(predictions: Classes, others: Classes) -> float:
    """The share of images on which two candidates name the same class, right or wrong."""
    return accuracy(others, predictions)


def _check(labels: Classes, predictions: Classes) -> None:
    if len(labels) != len(predictions):
        raise ValueError(f"{len(labels)} labels, but {len(predictions)} predictions")
    if len(labels) == 0:
        raise ValueError("no images: a ratio of nothing is not defined")
