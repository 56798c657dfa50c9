"""Are new pictures like those of validation? Drift of a network's answers and of what it sees, with a false-alarm rate
that is stated beforehand.

Three tests, each of "both are draws of one distribution":

- confidence: Kolmogorov and Smirnov's, of the log-odds of each answer;
- classes: chi-square of how often each class was answered, its p-value by permutation, so that rare classes are right;
- features: the maximum mean discrepancy of what the classifier gets (Gretton et al. 2012,
  https://jmlr.org/papers/v13/gretton12a.html), Gaussian kernel, its p-value by permutation.

In Rabanser et al. 2019, "Failing Loudly" (https://arxiv.org/abs/1810.11953), shifts were found best by what a
classifier that was trained for the task makes of the pictures.

Holm's correction makes the rate that of all three together: where nothing has changed, any of them raises an alarm in
that share of looks at most. That holds for pictures that are independent draws, and for one look: frames of one film
are not, and a look a day is many.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int64
from scipy.stats import ks_2samp, norm, rankdata

from thinner.errors import UserError
from thinner.evidence.statistics import holm
from thinner.measure.operating import log_odds
from thinner.measure.outputs import Outputs
from thinner.words import percent

TESTS = {"confidence": "Kolmogorov-Smirnov", "classes": "chi-square", "features": "MMD"}
RATES = (0.001, 0.5)  # of false alarms, that may be asked for: permutations grow as they fall
POWER = 0.8
MOST = 2000  # pictures of each side that MMD compares: its kernel's matrix grows with the square
FEWEST = 10  # pictures of each side
_MEDIAN_OF = 500  # pictures, drawn of both sides together: the width of MMD's kernel
_TIE = 1e-6  # of two discrepancies in float32: far below the 1e-4 by which permutations differ

# Sizes in words: those of Cohen's d 0.2, 0.5 and 0.8 between two normal distributions of one spread, in each measure:
# the largest distance of their distribution functions 2 F(d / 2) - 1, and the probability F(d / sqrt(2)) that a draw
# of one is above a draw of the other (Vargha & Delaney 2000). Cohen's w has its own (1988, chapter 7).
_D = (0.2, 0.5, 0.8)
SIZES: Mapping[str, tuple[float, float, float]] = {
    "confidence": tuple(2 * float(norm.cdf(d / 2)) - 1 for d in _D),  # type: ignore[dict-item]
    "classes": (0.1, 0.3, 0.5),
    "features": tuple(float(norm.cdf(d / math.sqrt(2))) for d in _D),  # type: ignore[dict-item]
}
LARGE = SIZES["confidence"][2]

Rows = Int64[np.ndarray, " _"]


@dataclass(frozen=True)
class Finding:
    """One test. ``effect``: of confidence the distance of the two distribution functions; of classes Cohen's w, of
    features the probability (0.5 to 1) with which they tell a new picture from one of validation."""

    statistic: float
    p_value: float
    adjusted: float  # by Holm, for all tests together
    drifted: bool
    effect: float
    size: str  # the same in a word
    text: str  # what differs, in a sentence

    def as_json(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True)
class Drift:
    rate: float  # of false alarms, 0 to 1, of all tests together
    images: int
    reference: int  # images of validation
    findings: Mapping[str, Finding]
    detectable: float  # distance of the distributions of confidence that is found with a probability of `POWER`
    unlike: Rows  # new pictures, the one whose features are least like validation's first; of at most `MOST`

    @property
    def drifted(self) -> list[str]:
        return [name for name, finding in self.findings.items() if finding.drifted]

    @property
    def verdict(self) -> str:
        """ "drift", "no drift seen"; "too few pictures", where not even a large shift would be seen."""
        if self.drifted:
            return "drift"
        return "too few pictures" if self.detectable > LARGE else "no drift seen"


def compare(reference: Outputs, new: Outputs, temperature: float, rate: float, seed: int) -> Drift:
    """``new`` pictures against the ``reference``, both by the same network.

    ``temperature`` divides the logits, as in the confidences that people see. Permutations are drawn by ``seed``.
    Raises UserError: the rate is none of `RATES`, or fewer than `FEWEST` pictures are on one side.
    """
    check_rate(rate)
    n, m = len(new.logits), len(reference.logits)
    for count, whose in ((n, "pictures to look at"), (m, "pictures of validation")):
        if count < FEWEST:
            raise UserError(f"{count} {whose}: too few to compare anything. At least {FEWEST} are needed")
    rng = np.random.default_rng(seed)
    permutations = max(999, math.ceil(3 * len(TESTS) / rate) - 1)  # so that p-values reach a third of Holm's strictest
    # mixed precision may round logits apart by one bit in another batch, so ties are counted as ties in float32
    odds = [log_odds(part.logits / temperature).astype(np.float32) for part in (reference, new)]
    answers = [part.logits.argmax(axis=1).astype(np.int64) for part in (reference, new)]
    confidence = _confidence(odds[0], odds[1])
    classes = _classes(answers[0], answers[1], new.logits.shape[1], permutations, rng)
    features, unlike = _features(reference.features, new.features, permutations, rng)
    raw = {"confidence": confidence, "classes": classes, "features": features}
    adjusted = holm([p for _, p, _, _ in raw.values()])
    findings = {
        name: Finding(statistic, p, q, q <= rate, effect, _word(name, effect), text)
        for (name, (statistic, p, effect, text)), q in zip(raw.items(), adjusted, strict=True)
    }
    return Drift(rate, n, m, findings, detectable(n, m, rate), unlike)


def check_rate(rate: float) -> None:
    """Raise UserError where the rate is none of `RATES`."""
    low, high = RATES
    if not low <= rate <= high:
        raise UserError(f"false alarms: {100 * rate:g} %. Give {100 * low:g} to {100 * high:g}, for example 1")


def detectable(images: int, reference: int, rate: float) -> float:
    """The distance of two distribution functions (0 to 1) that the test of confidence shows in four of five cases.

    The test rejects beyond c = sqrt(-ln(a / 2) / 2 * (1/n + 1/m)) (Smirnov 1948), a being Holm's strictest level, and
    at the point where the functions differ most the observed difference has a standard deviation of at most
    sqrt((1/n + 1/m) / 4). So it is an upper bound: a shift of this size is found at least as often.
    """
    spread = math.sqrt(1 / images + 1 / reference)
    return min(1.0, spread * _standing(rate))


def images_for(distance: float, reference: int, rate: float) -> int | None:
    """How many pictures show that ``distance``: `detectable` turned around; None where validation is too small."""
    left = (distance / _standing(rate)) ** 2 - 1 / reference
    return math.ceil(1 / left - 1e-9) if left > 0 else None


def _standing(rate: float) -> float:
    level = rate / len(TESTS)
    return math.sqrt(-math.log(level / 2) / 2) + float(norm.ppf(POWER)) / 2


def _word(name: str, effect: float) -> str:
    return ("negligible", "small", "medium", "large")[sum(effect >= bound for bound in SIZES[name])]


# ------------------------------------------------------------------------------- the tests

Result = tuple[float, float, float, str]  # statistic, p-value, effect, text


def _confidence(reference: Float32[np.ndarray, " m"], new: Float32[np.ndarray, " n"]) -> Result:
    found = ks_2samp(reference, new)
    distance, place = float(found.statistic), float(found.statistic_location)
    below, usual = (float((odds <= place).mean()) for odds in (new, reference))
    sure = 1 / (1 + math.exp(-place))
    text = f"{percent(below)} of them have a confidence of at most {percent(sure)}; of validation {percent(usual)}"
    return distance, float(found.pvalue), distance, text


def _classes(
    reference: Int64[np.ndarray, " m"],
    new: Int64[np.ndarray, " n"],
    classes: int,
    permutations: int,
    rng: np.random.Generator,
) -> Result:
    """Pearson's statistic of the 2 x classes table. A permutation of the pictures deals each class's number out to the
    two sides: draws of the multivariate hypergeometric distribution. Cohen's w is without what chance adds to the
    statistic, its degrees of freedom (as Bergsma 2013 does for Cramer's V)."""
    n, m = len(new), len(reference)
    counts = np.stack([np.bincount(part, minlength=classes) for part in (new, reference)])
    counts = counts[:, counts.sum(axis=0) > 0]
    total = counts.sum(axis=0)
    expected = n * total / (n + m)

    def statistic(own: Any) -> Any:
        return (np.square(own - expected) / expected).sum(axis=-1) * (n + m) / m

    observed = float(statistic(counts[0]))
    dealt = rng.multivariate_hypergeometric(total, n, size=permutations, method="marginals")
    p_value = _p_value(statistic(dealt), observed, 1e-9 * max(observed, 1.0))
    effect = math.sqrt(max(0.0, observed - (len(total) - 1)) * (n + m) / (n * m))
    apart = float(abs(counts[0] / n - counts[1] / m).sum()) / 2
    text = f"{percent(apart)} of them would need another answer to be as usual"
    return observed, p_value, effect, text


def _features(
    reference: Float[np.ndarray, "m features"],
    new: Float[np.ndarray, "n features"],
    permutations: int,
    rng: np.random.Generator,
) -> tuple[Result, Rows]:
    """MMD^2 = mean k(x, x') + mean k(y, y') - 2 mean k(x, y), k(x, y) = exp(-|x - y|^2 / (2 s^2)), over features in
    units of their standard deviation; 2 s^2 is the median squared distance. Both are of all pictures together, so a
    permutation leaves them as they are, and the p-value is exact."""
    rows = [np.sort(rng.permutation(len(part))[:MOST]) for part in (reference, new)]
    x = np.concatenate([part[chosen] for part, chosen in zip((reference, new), rows, strict=True)])
    m, n = (len(chosen) for chosen in rows)
    kernel = _kernel(x.astype(np.float64), rng)
    if kernel is None:
        return (0.0, 1.0, 0.5, "features are the same for all"), rows[1]
    own = np.zeros(m + n, dtype=np.float32)
    own[m:] = 1
    everything, of_each = float(kernel.sum(dtype=np.float64)), kernel.sum(axis=1, dtype=np.float64)

    def discrepancy(sides: Any) -> Any:
        inside = ((sides @ kernel) * sides).sum(axis=1, dtype=np.float64)
        with_all = sides @ of_each
        outside = everything - 2 * with_all + inside
        return inside / n**2 + outside / m**2 - 2 * (with_all - inside) / (n * m)

    observed = float(discrepancy(own[None])[0])
    shuffled = []
    for start in range(0, permutations, 256):
        sides = np.tile(own, (min(256, permutations - start), 1))
        shuffled.append(discrepancy(rng.permuted(sides, axis=1)))
    p_value = _p_value(np.concatenate(shuffled), observed, _TIE)
    # how much more a picture is like the new ones than like validation's, itself left out
    inner = kernel @ own
    likeness = (inner - own) / np.maximum(n - own, 1) - (of_each - inner - (1 - own)) / np.maximum(m - (1 - own), 1)
    ranks = rankdata(likeness)
    told = float((ranks[m:].sum() - n * (n + 1) / 2) / (n * m))
    effect = max(told, 0.5)
    text = f"they tell a new picture from one of validation in {percent(effect)} of pairs; chance is 50 %"
    return (observed, p_value, effect, text), rows[1][np.argsort(-likeness[m:], kind="stable")].astype(np.int64)


def _kernel(
    x: Float[np.ndarray, "pictures features"], rng: np.random.Generator
) -> Float32[np.ndarray, "pictures pictures"] | None:
    """None where all are the same. In place and in float32, because its size is what takes time."""
    spread = x.std(axis=0)
    x = (x[:, spread > 0] - x[:, spread > 0].mean(axis=0)) / spread[spread > 0]
    square, x = np.square(x).sum(axis=1).astype(np.float32), x.astype(np.float32)
    distances = x @ x.T
    distances *= -2
    distances += square[:, None]
    distances += square
    np.maximum(distances, 0, out=distances)
    some = rng.permutation(len(x))[:_MEDIAN_OF]
    among = distances[np.ix_(some, some)]
    width = float(np.median(among)) or float(among.mean(dtype=np.float64))
    if width <= 1e-6:
        return None
    distances /= -width
    found: Float32[np.ndarray, "pictures pictures"] = np.exp(distances, out=distances)
    return found


def _p_value(permuted: Float[np.ndarray, " permutations"], observed: float, tie: float) -> float:
    """The observed one is a permutation as well (Phipson & Smyth 2010, https://doi.org/10.2202/1544-6115.1585)."""
    return (1 + int((permuted >= observed - tie).sum())) / (1 + len(permuted))
