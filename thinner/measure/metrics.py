"""How well predictions fit labels, and how far their confidences can be trusted.

Pure functions. What looks at classes takes integer arrays `[images]`; what looks at confidences takes logits
`[images, classes]`, and calls the softmax probability of the class with the largest logit the confidence. No
result depends on batch size or on the order of the images, equal confidences included. Counts are added up as
integers and divided once; all else is in float64. Accuracy, macro-F1, top-k accuracy, the Brier score and the
confusion matrix are scikit-learn's, Wilson's interval is statsmodels'.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Integer, Shaped
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.metrics import accuracy_score, brier_score_loss, confusion_matrix, f1_score, top_k_accuracy_score
from statsmodels.stats.proportion import proportion_confint

from thinner.measure.scores import score

Classes = Integer[np.ndarray, " images"]
Logits = Float[np.ndarray, "images classes"]

BINS = 15  # of a reliability diagram: Guo et al. 2017, and most who compare calibration since
TEMPERATURES = (0.05, 20.0)  # a fit that ends at one of them has no minimum: all right, or worse than guessing


def accuracy(labels: Classes, predictions: Classes) -> float:
    """The share of images whose predicted class is their label.

    Like its sisters it raises ValueError on no images, or on arrays of different lengths.
    """
    _check(labels, predictions)
    return float(accuracy_score(labels, predictions))


def macro_f1(labels: Classes, predictions: Classes) -> float:
    """The mean over classes of F1 = 2 TP / (2 TP + FP + FN); every class weighs the same, however rare.

    A class counts when it occurs among the labels or the predictions. One that occurs in neither has no F1,
    and scoring it 0 would punish a candidate for a test split that lacks the class.
    """
    _check(labels, predictions)
    return float(f1_score(labels, predictions, average="macro", zero_division=0.0))


def balanced_accuracy(labels: Classes, predictions: Classes) -> float:
    """The mean over classes of `per_class_accuracy`; a class without images is left out.

    Brodersen et al. 2010, https://doi.org/10.1109/ICPR.2010.764. What scikit-learn calls ``balanced_accuracy_score``.
    """
    return score("balanced_accuracy", _table(labels, predictions))


def worst_class(labels: Classes, predictions: Classes) -> tuple[int, float]:
    """(class, its share of images that were recognised) of the class with the least; the first of several."""
    shares = per_class_accuracy(labels, predictions, len(_table(labels, predictions)))
    worst = int(np.nanargmin(shares))
    return worst, float(shares[worst])


def _table(labels: Classes, predictions: Classes) -> Integer[np.ndarray, "actual predicted"]:
    return confusion(labels, predictions, int(max(labels.max(initial=0), predictions.max(initial=0))) + 1)


def per_class_accuracy(labels: Classes, predictions: Classes, classes: int) -> Float[np.ndarray, " classes"]:
    """Of each class's images, the share that was recognised (its recall); NaN for a class without images."""
    counts = confusion(labels, predictions, classes)
    images = counts.sum(axis=1)
    return np.divide(np.diag(counts), images, out=np.full(classes, np.nan), where=images > 0)


def per_class_interval(
    labels: Classes, predictions: Classes, classes: int
) -> tuple[Float[np.ndarray, " classes"], Float[np.ndarray, " classes"]]:
    """Lower and upper 95 % limits of `per_class_accuracy`, by class; NaN for a class without images.

    Wilson's interval (1927, https://doi.org/10.1080/01621459.1927.10502953): unlike the textbook's normal one it
    stays within 0 to 1 and keeps a width where all images of a class were right. Each is 95 % by itself.
    """
    counts = confusion(labels, predictions, classes)
    images = counts.sum(axis=1)
    low, high = np.full(classes, np.nan), np.full(classes, np.nan)
    there = images > 0
    low[there], high[there] = proportion_confint(np.diag(counts)[there], images[there], alpha=0.05, method="wilson")
    return low, high


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


# ------------------------------------------------------------------------------------------- confidences


def top_k_accuracy(labels: Classes, logits: Logits, k: int) -> float:
    """The share of images whose label is among the ``k`` classes with the largest logits.

    ValueError where ``k`` is not below the number of classes: then every answer would be right.
    """
    _check_logits(labels, logits)
    if not 1 <= k < logits.shape[1]:
        raise ValueError(f"top {k} of {logits.shape[1]} classes: k must be 1 to {logits.shape[1] - 1}")
    if logits.shape[1] == 2:  # then k is 1, and scikit-learn would want one score per image
        return accuracy(labels, logits.argmax(axis=1))
    return float(top_k_accuracy_score(labels, logits.astype(np.float64), k=k, labels=np.arange(logits.shape[1])))


def nll(labels: Classes, logits: Logits) -> float:
    """Negative log-likelihood in nats per image: the mean of -log p(label). Cross-entropy, 0 at best.

    Not scikit-learn's ``log_loss``, which takes probabilities: those of hopeless answers are 0 in float64, and it
    would count each as 36 nats however far off it was. From logits there is nothing to clip.
    """
    _check_logits(labels, logits)
    return -float(log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels].mean())


def brier(labels: Classes, logits: Logits) -> float:
    """The mean over images of sum_k (p_k - [k is the label])^2: 0 at best, 2 at worst.

    Brier 1950 (https://doi.org/10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2), as he wrote it: over all classes,
    not halved.
    """
    _check_logits(labels, logits)
    probabilities = softmax(logits.astype(np.float64), axis=1)
    return float(brier_score_loss(labels, probabilities, labels=np.arange(logits.shape[1]), scale_by_half=False))


@dataclass(frozen=True)
class Reliability:
    """Images by confidence, lowest first: mean confidence and accuracy (0 to 1) and the number of images by bin."""

    confidence: Float[np.ndarray, " bins"]
    accuracy: Float[np.ndarray, " bins"]
    images: Integer[np.ndarray, " bins"]


def reliability(labels: Classes, logits: Logits, bins: int = BINS) -> Reliability:
    """What a reliability diagram shows: is 90 % confidence right nine times of ten?

    Bins have equally many images, as far as equal confidences allow: those stay together, so that order changes
    nothing; a bin that is left empty is left out. The usual bins of equal width put nearly all images of a good
    network into the last one and leave others with a handful, whose accuracy is mostly chance; that makes the
    error look larger than it is and hang on the number of bins (Nixon et al. 2019,
    https://arxiv.org/abs/1904.01685; Roelofs et al. 2022, https://arxiv.org/abs/2012.08668).
    """
    right, confidence = _confident(labels, logits)
    edges = np.unique(np.quantile(confidence, np.linspace(0, 1, bins + 1)[1:-1]))
    place = np.searchsorted(edges, confidence, side="left")
    images = np.bincount(place, minlength=len(edges) + 1)
    filled = images > 0
    sums = [np.bincount(place, values, minlength=len(edges) + 1) for values in (confidence, right)]
    mean_confidence, mean_right = (total[filled] / images[filled] for total in sums)
    return Reliability(mean_confidence, mean_right, images[filled])


def ece(labels: Classes, logits: Logits, bins: int = BINS) -> float:
    """Expected calibration error of the confidences, 0 to 1: the mean over images of |accuracy - confidence| of
    their bin in `reliability`. Naeini et al. 2015 (https://doi.org/10.1609/aaai.v29i1.9602), with bins of equal mass.

    Even perfect confidences have an error above 0 on finitely many images: each bin's accuracy is a matter of chance.
    """
    table = reliability(labels, logits, bins)
    return float(np.abs(table.accuracy - table.confidence) @ table.images / table.images.sum())


def fit_temperature(labels: Classes, logits: Logits) -> float:
    """The temperature T with the least `nll` of ``logits / T``: above 1 tempers an overconfident network.

    Guo et al. 2017 (https://arxiv.org/abs/1706.04599). To be fitted on images that neither trained nor test. It
    changes no prediction, only confidences. The search is within `TEMPERATURES`; nll is convex in 1 / T, so what it
    finds is the minimum there.
    """
    _check_logits(labels, logits)
    bounds = tuple(np.log(TEMPERATURES))
    found = minimize_scalar(
        lambda log_t: nll(labels, logits / np.exp(log_t)), bounds=bounds, method="bounded", options={"xatol": 1e-6}
    )
    return float(np.exp(found.x))


def risk_coverage(labels: Classes, logits: Logits) -> Float[np.ndarray, " images"]:
    """Selective risk: entry n - 1 is the share of wrong answers among the n images of largest confidence.

    What error is left if the network answers only where it is sure, at coverage n / images: Geifman & El-Yaniv 2017
    (https://arxiv.org/abs/1705.08500). Among images of equal confidence it is what a random order gives on average.
    """
    right, confidence = _confident(labels, logits)
    values, group, images = np.unique(-confidence, return_inverse=True, return_counts=True)
    wrong = np.bincount(group, ~right, minlength=len(values))
    return np.cumsum(np.repeat(wrong / images, images)) / np.arange(1, len(right) + 1)


def aurc(labels: Classes, logits: Logits) -> float:
    """The area under the risk-coverage curve: the mean of `risk_coverage`, 0 at best. A random order of the images
    would give the error rate. Geifman et al. 2019 (https://arxiv.org/abs/1805.08206)."""
    return float(risk_coverage(labels, logits).mean())


def confidences(logits: Logits) -> Float[np.ndarray, " images"]:
    """The softmax probability of the class with the largest logit, in float64."""
    return np.asarray(softmax(logits.astype(np.float64), axis=1).max(axis=1))


def _confident(labels: Classes, logits: Logits) -> tuple[Bool[np.ndarray, " images"], Float[np.ndarray, " images"]]:
    """Whether each image was right, and its confidence."""
    _check_logits(labels, logits)
    return logits.argmax(axis=1) == labels, confidences(logits)


def _check_logits(labels: Classes, logits: Logits) -> None:
    _check(labels, logits[:, 0])
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError(f"labels run from {labels.min()} to {labels.max()}, but there are {logits.shape[1]} logits")
    if not np.isfinite(logits).all():
        raise ValueError("logits that are not finite: the network is broken")


def _check(labels: Classes, predictions: Shaped[np.ndarray, " predicted"]) -> None:
    if len(labels) != len(predictions):
        raise ValueError(f"{len(labels)} labels, but {len(predictions)} predictions")
    if len(labels) == 0:
        raise ValueError("no images: a ratio of nothing is not defined")
