"""Operating points: how sure a network has to be of an answer, so that at least 95, 98, 99 % of its answers are right.

What is below the threshold is answered "unsure". The threshold is fitted on validation images, and holds for images
like them with a probability that is chosen beforehand (`DELTA`).

Not every method holds here. The accuracy among answers is a ratio, whose denominator depends on the threshold, and it
need not grow with it. So conformal risk control (Angelopoulos et al. 2024, https://arxiv.org/abs/2208.02814), which
bounds the mean of a loss that is monotone in the threshold, does not apply; and the threshold that looks right on the
validation images is too low about every second time. Learn then Test (Angelopoulos et al. 2021,
https://arxiv.org/abs/2110.01052) needs neither: each threshold is a hypothesis, "of the answers above it fewer than
98 % are right", and is used only where that is rejected.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Integer

from thinner.errors import DamagedError, UserError, one_line
from thinner.files import json_files

TARGETS = (0.95, 0.98, 0.99)  # accuracies among answers that are asked for
DELTA = 0.05  # how often, over draws of the validation images, a threshold may promise too much
FILE = Path("reports", "evaluate", "operating_points.json")
_PLANNING = 0.1  # ratio of the validation images that choose which thresholds are tried
_STARTS = (4, 8)  # times as many answers as can show anything

Labels = Integer[np.ndarray, " images"]
Logits = Float[np.ndarray, "images classes"]


@dataclass(frozen=True)
class Point:
    """One operating point, and what came of it on the test split. Ratios are 0 to 1."""

    at_least: float  # accuracy among answers that was asked for
    log_odds: float | None  # answer from here on; None: no threshold could be shown to keep the promise
    coverage: float  # share of the test images that is answered
    accuracy: float | None  # of those answers; None where there are none
    low: float | None  # 95 % interval of that accuracy (Clopper and Pearson)
    high: float | None
    images: int  # of the test split
    validation_images: int  # that the threshold was fitted on

    def covers(self, log_odds: float) -> bool:
        """Whether an answer of these odds is given."""
        return self.log_odds is not None and log_odds >= self.log_odds


def log_odds(logits: Logits) -> Float[np.ndarray, " images"]:
    """How sure a network is of its answer: log(p / (1 - p)), p being the softmax probability of the top class.

    From the logits themselves, not divided by a temperature: that is fitted on the same labels as the threshold. And
    not by way of p, which is 1 in floating point where logits are far apart.
    """
    z = np.sort(logits.astype(np.float64), axis=1)
    top, rest = z[:, -1], z[:, :-1]
    most = rest[:, -1]
    return np.asarray(top - most - np.log(np.exp(rest - most[:, None]).sum(axis=1)))


def fit_threshold(labels: Labels, logits: Logits, at_least: float, delta: float = DELTA, seed: int = 0) -> float | None:
    """The least log-odds from which on answers are right with a probability of ``at_least``; None if there is no such.

    With probability 1 - ``delta`` over the draw of the validation images, the accuracy among answers of the whole
    population is at least ``at_least``. There is no assumption about the network or the order of its log-odds, but that
    the images are independent draws of that population, and did not choose the network.

    A tenth of the images, without a look at their labels, says which thresholds are tried: its own log-odds, from the
    strictest to one that answers everything. The others test them in this order. Of n answers k are right:
    Binomial(n, accuracy), since the threshold is not from these images; so P(Binomial(n, ``at_least``) >= k) is an
    exact p-value (Clopper and Pearson's bound, the other way around).

    Testing in a fixed order costs no correction but ends at the first threshold that fails, and with few answers even a
    good one may. So there are two beginnings (`_STARTS`) with half of ``delta`` each, and the first half is added to
    the second where nothing has failed in between: the fallback procedure of Wiens and Dmitrienko, which keeps
    ``delta`` for all thresholds together (it is a sequential rejection: Goeman & Solari 2010,
    https://arxiv.org/abs/1211.3313).
    """
    right, odds = logits.argmax(axis=1) == labels, log_odds(logits)
    planning = np.zeros(len(labels), dtype=bool)
    planning[np.random.default_rng(seed).permutation(len(labels))[: math.ceil(_PLANNING * len(labels))]] = True
    tried = _thresholds(odds[planning], logits.shape[1])
    shares = _shares(int(planning.sum()), len(tried), int((~planning).sum()), at_least, delta)
    p_values = _p_values(odds[~planning], right[~planning], tried, at_least)
    found, kept = None, 0.0  # what the thresholds before it may still be wrong with
    for threshold, p_value, share in zip(tried, p_values, shares, strict=True):
        if p_value <= kept + share and kept + share > 0:
            found, kept = float(threshold), kept + share
        else:
            kept = 0.0
    return found


def _thresholds(planned: Float[np.ndarray, " planned"], classes: int) -> Float[np.ndarray, " tried"]:
    """From the strictest to one that no log-odds are below: those of a uniform softmax are -log(classes - 1)."""
    return np.append(np.sort(planned)[::-1], -math.log(max(classes - 1, 1)) - 1.0)


def _shares(planned: int, tried: int, others: int, at_least: float, delta: float) -> Float[np.ndarray, " tried"]:
    """How ``delta`` is shared out: an equal part to each threshold above which `_STARTS` times as many answers can be
    expected as are needed at least. Of n answers that are all right the p-value is ``at_least`` ** n, so that fewer
    than log(delta) / log(at_least) show nothing.
    """
    shares, needed = np.zeros(tried), math.log(delta) / math.log(at_least)
    for times in _STARTS:
        shares[min(math.ceil(times * needed / max(others, 1) * planned), tried) - 1] += delta / len(_STARTS)
    return shares


def _p_values(
    odds: Float[np.ndarray, " images"],
    right: Bool[np.ndarray, " images"],
    tried: Float[np.ndarray, " tried"],
    at_least: float,
) -> Float[np.ndarray, " tried"]:
    """Of "fewer than ``at_least`` of the answers from this threshold on are right"; 1 where there are none."""
    from scipy.stats import binom

    order = np.argsort(-odds)
    answered = np.searchsorted(-odds[order], -tried, side="right")
    those_right = np.concatenate([[0], np.cumsum(right[order])])[answered]
    return np.where(answered > 0, binom.sf(those_right - 1, answered, at_least), 1.0)


def measure(labels: Labels, logits: Logits, at_least: float, threshold: float | None, validation_images: int) -> Point:
    """What the threshold does on images that did not fit it."""
    from statsmodels.stats.proportion import proportion_confint

    answered = log_odds(logits) >= (math.inf if threshold is None else threshold)
    count, right = int(answered.sum()), int((logits.argmax(axis=1) == labels)[answered].sum())
    low, high = proportion_confint(right, count, alpha=0.05, method="beta") if count else (None, None)
    return Point(
        at_least=at_least,
        log_odds=threshold,
        coverage=count / len(labels),
        accuracy=right / count if count else None,
        low=None if low is None else float(low),
        high=None if high is None else float(high),
        images=len(labels),
        validation_images=validation_images,
    )


def points_of(
    validation_labels: Integer[np.ndarray, " validation"],
    validation_logits: Float[np.ndarray, "validation classes"],
    labels: Labels,
    logits: Logits,
) -> list[Point]:
    """An operating point for each of `TARGETS`: fitted on the validation split, measured on the test split."""
    return [
        measure(
            labels, logits, target, fit_threshold(validation_labels, validation_logits, target), len(validation_labels)
        )
        for target in TARGETS
    ]


# --- on disk ---


def as_json(points: Mapping[str, Sequence[Point]]) -> dict[str, list[dict[str, Any]]]:
    return {name: [asdict(point) for point in row] for name, row in points.items()}


def read_points(path: Path) -> dict[str, list[Point]]:
    """The operating points of each candidate; of none where evaluate wrote no such file. Raises DamagedError."""
    if not path.is_file():
        return {}
    again = "Make it again: dvc repro evaluate"
    found = json_files.read_object(path, again)
    for name, rows in found.items():
        for row in rows if isinstance(rows, list) else [None]:
            if wrong := json_files.lacking(row, _POINT):
                raise DamagedError(f"{path}: {one_line(name, 60)} {wrong}. {again}")
    return {name: [Point(**{key: row[key] for key in _POINT}) for row in rows] for name, rows in found.items()}


def choose(points: Sequence[Point], percent: float, whose: str) -> Point:
    """The point of ``percent`` (98 for 98 %). Raises UserError, with the choices."""
    for point in points:
        if math.isclose(100 * point.at_least, percent):
            return point
    if not points:
        raise UserError(f"{whose}: has no operating points. Make them: thinner stage evaluate")
    raise UserError(
        f"at least {percent:g} %: {whose} has no such operating point. Choose one of: "
        + ", ".join(f"{100 * point.at_least:g}" for point in points)
    )


def _is_ratio(value: Any) -> bool:
    return json_files.is_number(value) and 0 <= value <= 1


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


_POINT = {
    "at_least": _is_ratio,
    "log_odds": lambda value: value is None or json_files.is_number(value),
    "coverage": _is_ratio,
    **dict.fromkeys(("accuracy", "low", "high"), lambda value: value is None or _is_ratio(value)),
    "images": _is_count,
    "validation_images": _is_count,
}
