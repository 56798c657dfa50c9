"""Claims about candidates: a small grammar, a test for each kind, a verdict for each claim.

`parse_claims` turns sentences into `Claim`s; `judge` takes them with an `Evidence` and returns `Verdict`s. A
verdict is

- proven: the effect lies beyond what is claimed, and the test rejects that this is chance
- refuted: it lies on the other side, and the test rejects that this is chance
- not shown: anything else

Tests are two-sided at `alpha` (0.05) for "the effect is exactly what is claimed", so a claim that is false,
however narrowly, is called proven in at most alpha / 2 of all repetitions. P-values of all claims judged
together are corrected by Holm's method; intervals are 95 % each, uncorrected.

Ratios are 0 to 1 in here: `by 3.0 points` is 0.03. Nothing in here looks at a validation or test split by
itself.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Integer
from lark import Lark, Token, Tree
from lark.exceptions import UnexpectedCharacters, UnexpectedToken
from numpy.typing import NDArray
from scipy import optimize, stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from thinner.errors import UserError

Kind = Literal["beats", "within", "faster", "smaller", "at_most", "agrees"]
Outcome = Literal["proven", "refuted", "not shown"]

T = TypeVar("T")

FEWEST_ROUNDS = 10  # of timing; with fewer, an interval says nothing
RESAMPLES = 20_000  # a bootstrap p-value is then good to 0.001 near 0.05, and may be as small as 0.0001


class ClaimError(UserError):
    """A claim that cannot be read or judged; the text shows the sentence with a caret under the word."""


# -----------------------------------------------------------------------------------------------------
# grammar

GRAMMAR = r"""
claim: NAME BEATS NAME ON METRIC (BY NUMBER POINTS)?                      -> beats
     | NAME IS WITHIN NUMBER POINTS OF NAME ON METRIC                     -> within
     | NAME IS FASTER THAN NAME (BY NUMBER X)? AT BATCH NUMBER (IN RUNTIME)? -> faster
     | NAME IS SMALLER THAN NAME (BY NUMBER X)? IN SIZE                   -> smaller
     | NAME HAS AT MOST NUMBER PERCENT OF THE SIZE OF NAME                -> at_most
     | NAME HAS AT MOST NUMBER PERCENT OF THE MILLISECONDS OF NAME AT BATCH NUMBER (IN RUNTIME)? -> at_most
     | NAME AGREES WITH NAME ON NUMBER PERCENT OF IMAGES                  -> agrees

BEATS: /beats\b/
IS: /is\b/
WITHIN: /within\b/
FASTER: /faster\b/
SMALLER: /smaller\b/
THAN: /than\b/
AGREES: /agrees\b/
HAS: /has\b/
MOST: /most\b/
THE: /the\b/
WITH: /with\b/
ON: /on\b/
OF: /of\b/
BY: /by\b/
AT: /at\b/
IN: /in\b/
BATCH: /batch\b/
IMAGES: /images\b/
POINTS: /points?\b/
X: /x\b/
PERCENT: "%"
METRIC: /accuracy\b/
RUNTIME: /(pytorch|onnxruntime)\b/
SIZE: /(parameters|macs|bytes)\b/i
MILLISECONDS: /milliseconds\b/
NUMBER: /\d+(\.\d+)?/
NAME: /[A-Za-z_][\w-]*/

%ignore /\s+/
"""

_WORDS = {
    "NAME": "the name of a candidate",
    "NUMBER": "a number",
    "METRIC": "accuracy",
    "RUNTIME": "pytorch, onnxruntime",
    "SIZE": "parameters, macs, bytes",
    "PERCENT": "%",
    "POINTS": "points",
    "$END": "the end of the sentence",
}


@dataclass(frozen=True)
class Claim:
    """One sentence, understood.

    `amount` is a difference or share as a ratio (beats, within, agrees, at_most) or a factor (faster, smaller).
    `metric`: accuracy, latency, parameters, macs, bytes or agreement. `batch` and `runtime` belong to latency
    alone.
    """

    text: str
    kind: Kind
    candidate: str
    reference: str
    amount: float
    metric: str
    batch: int | None = None
    runtime: str | None = None


def parse_claim(text: str, candidates: Sequence[str] | None = None) -> Claim:
    """Read one claim; see docs/claims.md for the grammar.

    With `candidates`, names are checked too. Raises ClaimError, which shows the word and what could stand
    there.
    """
    try:
        tree = _parser().parse(text)
    except UnexpectedToken as error:
        at = len(text.rstrip()) if error.token.type == "$END" else error.token.start_pos
        raise _pointed(text, at or 0, _choices(error.accepts or error.expected)) from None
    except UnexpectedCharacters as error:
        raise _pointed(text, error.pos_in_stream or 0, _choices(error.allowed or set())) from None
    names = _tokens(tree, "NAME")
    for name in names:
        if candidates is not None and name not in candidates:
            close = difflib.get_close_matches(name, candidates, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            known = f"{', '.join(candidates)}"
            raise _pointed(text, name.start_pos or 0, f"unknown candidate{hint}. Choose one of: {known}")
    if names[0] == names[1]:
        raise _pointed(text, names[1].start_pos or 0, "a candidate cannot be compared with itself")
    return _understand(text, tree, names)


def parse_claims(texts: Sequence[str], candidates: Sequence[str] | None = None) -> list[Claim]:
    """Read all claims; raises one ClaimError that shows every mistake."""
    claims, mistakes = [], []
    for text in texts:
        try:
            claims.append(parse_claim(text, candidates))
        except ClaimError as error:
            mistakes.append(str(error))
    if mistakes:
        raise ClaimError("\n".join(mistakes))
    return claims


def _understand(text: str, tree: Tree[Token], names: list[Token]) -> Claim:
    numbers = _tokens(tree, "NUMBER")
    first, second = str(names[0]), str(names[1])
    if tree.data == "beats":
        amount = float(numbers[0]) / 100 if numbers else 0.0
        return Claim(text, "beats", first, second, amount, str(_tokens(tree, "METRIC")[0]))
    if tree.data == "within":
        amount = float(numbers[0]) / 100
        if amount == 0:
            raise _pointed(text, numbers[0].start_pos or 0, "a margin above 0 is needed: equality cannot be shown")
        return Claim(text, "within", first, second, amount, str(_tokens(tree, "METRIC")[0]))
    if tree.data == "agrees":
        amount = float(numbers[0]) / 100
        if not 0 < amount < 1:
            raise _pointed(text, numbers[0].start_pos or 0, "a share above 0 % and below 100 % is needed")
        return Claim(text, "agrees", first, second, amount, "agreement")
    kind: Kind = "faster" if tree.data == "faster" else "smaller" if tree.data == "smaller" else "at_most"
    if kind == "at_most":
        factor = float(numbers[0]) / 100
        if factor == 0:
            raise _pointed(text, numbers[0].start_pos or 0, "a share above 0 % is needed")
    else:
        factor = float(numbers[0]) if _tokens(tree, "BY") else 1.0
        if factor < 1:
            raise _pointed(text, numbers[0].start_pos or 0, "a factor of 1 or more is needed")
    if sizes := _tokens(tree, "SIZE"):
        return Claim(text, kind, first, second, factor, str(sizes[0]).lower())
    batch = numbers[-1]
    if not batch.isdigit() or int(batch) < 1:
        raise _pointed(text, batch.start_pos or 0, "a whole number of images, 1 or more, is needed")
    runtime = _tokens(tree, "RUNTIME")
    return Claim(
        text,
        kind,
        first,
        second,
        factor,
        "latency",
        int(batch),
        str(runtime[0]) if runtime else "pytorch",
    )


@functools.cache
def _parser() -> Lark:
    return Lark(GRAMMAR, start="claim", parser="lalr", maybe_placeholders=False)


def _tokens(tree: Tree[Token], kind: str) -> list[Token]:
    return [child for child in tree.children if isinstance(child, Token) and child.type == kind]


def _choices(terminals: set[str]) -> str:
    words = sorted(_WORDS.get(name, name.lower()) for name in terminals)
    return f"expected {'one of: ' if len(words) > 1 or ',' in words[0] else ''}{', '.join(words)}"


def _pointed(text: str, position: int, message: str) -> ClaimError:
    return ClaimError(f"{text}\n{' ' * position}^ {message}")


# -----------------------------------------------------------------------------------------------------
# verdicts


@dataclass(frozen=True)
class Evidence:
    """What was measured on the test split.

    `right`: per candidate, whether each image was right, [images] or [seeds, images]; the images and seeds of
    all candidates are the same, in the same order. `predictions`: the classes, in the same shape. `sizes`:
    per candidate, parameters, macs and bytes, or one of each per seed. `latency_ms`: per (runtime, batch),
    candidates' times [rounds] or [seeds, rounds], taken in turn, so that times of one round were taken next to
    each other.
    """

    right: Mapping[str, Bool[np.ndarray, "*seeds images"]]
    predictions: Mapping[str, Integer[np.ndarray, "*seeds images"]]
    sizes: Mapping[str, Mapping[str, int | Sequence[int]]]
    latency_ms: Mapping[tuple[str, int], Mapping[str, Float[np.ndarray, "*seeds rounds"]]]


def over_seeds(runs: Sequence[Evidence]) -> Evidence:
    """The evidence of several runs that differ in their seed alone, as one: claims are then about the way of making
    the candidates, and variance between seeds enters. The caller has seen to it that the test images are the same.

    ClaimError where runs measured other candidates, or times at other batches or for another number of rounds.
    """
    if len(runs) == 1:
        return runs[0]
    return Evidence(
        right=_stacked([run.right for run in runs], "candidates"),
        predictions=_stacked([run.predictions for run in runs], "candidates"),
        sizes={
            name: {kind: np.ravel([run.sizes[name][kind] for run in runs]).tolist() for kind in kinds}
            for name, kinds in runs[0].sizes.items()
        },
        latency_ms={
            key: _stacked([run.latency_ms.get(key, {}) for run in runs], f"times at batch {key[1]} in {key[0]}")
            for key in runs[0].latency_ms
        },
    )


def _stacked(tables: Sequence[Mapping[str, NDArray[Any]]], what: str) -> dict[str, NDArray[Any]]:
    names = set(tables[0])
    for table in tables[1:]:
        if set(table) != names:
            odd = ", ".join(sorted(names ^ set(table)))
            raise ClaimError(f"the runs differ in their {what}: {odd}. Run all of them with the same params.yaml")
    shapes = {table[name].shape for table in tables for name in names}
    if len(shapes) > 1:
        raise ClaimError(f"the runs differ in the number of {what}: {sorted(shapes)}. Give all the same")
    return {name: np.stack([table[name] for table in tables]) for name in tables[0]}


@dataclass(frozen=True)
class Estimate:
    """An effect with its 95 % interval and the p-value of "the effect is exactly what is claimed".

    Differences and shares are ratios (0.03 = 3 points), speeds and sizes factors (shares for at_most). `p_value`
    is None for sizes: they are counted, not sampled. `count` is images for predictions, rounds for times, 1 for sizes.
    """

    effect: float
    low: float
    high: float
    p_value: float | None
    count: int
    seeds: int
    method: str


@dataclass(frozen=True)
class Verdict:
    """A claim and what came of it. The effect was compared with `threshold`; `p_value` is after Holm."""

    claim: Claim
    outcome: Outcome
    estimate: Estimate
    threshold: float
    p_value: float | None

    @property
    def numbers(self) -> str:
        """The effect with its interval, what was asked for, and what that rests on, in the claim's own units."""
        e = self.estimate
        if self.claim.kind in ("faster", "smaller"):
            numbers = f"{e.effect:.2f}x [{e.low:.2f}, {e.high:.2f}], asked {self.threshold:.2f}x"
        elif self.claim.kind == "at_most":
            numbers = f"{e.effect:.2%} [{e.low:.2%}, {e.high:.2%}], asked at most {self.threshold:.2%}"
        elif self.claim.kind == "agrees":
            numbers = f"{e.effect:.2%} [{e.low:.2%}, {e.high:.2%}], asked {self.threshold:.2%}"
        else:
            points = [100 * x for x in (e.effect, e.low, e.high, self.threshold)]
            numbers = "{:+.2f} points [{:+.2f}, {:+.2f}], asked {:+.2f}".format(*points)
        p = "" if self.p_value is None else f", p = {self.p_value:.2g}"
        unit = {"latency": "rounds", "accuracy": "images", "agreement": "images"}.get(self.claim.metric)
        sample = "" if unit is None else f", {e.count} {unit}"
        if unit is not None or e.seeds > 1:
            sample += f", {e.seeds} seed{'s' if e.seeds > 1 else ''}"
        return f"{numbers}{p}{sample} ({e.method})"

    def __str__(self) -> str:
        return f"{self.outcome}: {self.claim.text}: {self.numbers}"


def judge(
    claims: Sequence[Claim],
    evidence: Evidence,
    *,
    alpha: float = 0.05,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> list[Verdict]:
    """A verdict for each claim, in order, corrected for their number. ClaimError if evidence is missing."""
    measured = [_measure(claim, evidence, seed=seed, resamples=resamples) for claim in claims]
    p_values = {n: e.p_value for n, (e, _) in enumerate(measured) if e.p_value is not None}
    adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    verdicts = []
    for number, (claim, (estimate, threshold)) in enumerate(zip(claims, measured, strict=True)):
        p_value = adjusted.get(number)
        outcome: Outcome = "not shown"
        beyond = estimate.effect - threshold if claim.kind != "at_most" else threshold - estimate.effect
        if p_value is None:
            strictly = claim.kind == "smaller" and claim.amount == 1.0  # without a factor
            outcome = "proven" if beyond > 0 or (beyond == 0 and not strictly) else "refuted"
        elif p_value <= alpha and beyond != 0:
            outcome = "proven" if beyond > 0 else "refuted"
        verdicts.append(Verdict(claim, outcome, estimate, threshold, p_value))
    return verdicts


def _measure(claim: Claim, evidence: Evidence, *, seed: int, resamples: int) -> tuple[Estimate, float]:
    """The estimate for a claim and the threshold that its effect must exceed."""
    names = (claim.candidate, claim.reference)
    if claim.kind == "smaller":
        small, large = (np.atleast_1d(_find(claim, name, evidence.sizes)[claim.metric]) for name in names)
        ratios = large / small
        low, high, seeds = float(ratios.min()), float(ratios.max()), ratios.size
        # the least of them is the effect: what is claimed has to hold for every seed
        return Estimate(
            low, low, high, None, 1, seeds, "exact" if seeds == 1 else "exact, least of seeds"
        ), claim.amount
    if claim.kind == "at_most" and claim.metric != "latency":
        own, theirs = (np.atleast_1d(_find(claim, name, evidence.sizes)[claim.metric]) for name in names)
        shares = own / theirs
        low, high, seeds = float(shares.min()), float(shares.max()), shares.size
        # the largest of them is the effect: what is claimed has to hold for every seed
        method = "exact" if seeds == 1 else "exact, largest of seeds"
        return Estimate(high, low, high, None, 1, seeds, method), claim.amount
    if claim.metric == "latency":
        table = evidence.latency_ms.get((str(claim.runtime), int(claim.batch or 0)))
        if table is None:
            known = ", ".join(f"batch {batch} in {runtime}" for runtime, batch in evidence.latency_ms) or "nothing"
            raise ClaimError(
                f"{claim.text}\nno times at batch {claim.batch} in {claim.runtime}; measured were: {known}"
            )
        times = [_find(claim, name, table) for name in names]
        if claim.kind == "faster":
            return speed_ratio(*times, factor=claim.amount, seed=seed, resamples=resamples), claim.amount
        found = speed_ratio(*times, factor=1 / claim.amount, seed=seed, resamples=resamples)
        share = dataclasses.replace(found, effect=1 / found.effect, low=1 / found.high, high=1 / found.low)
        return share, claim.amount
    if claim.kind == "agrees":
        own, other = (_find(claim, name, evidence.predictions) for name in names)
        return agreement_share(own, other, share=claim.amount, seed=seed, resamples=resamples), claim.amount
    right, reference = (_find(claim, name, evidence.right) for name in names)
    margin = claim.amount if claim.kind == "beats" else -claim.amount
    return accuracy_difference(right, reference, margin=margin, seed=seed, resamples=resamples), margin


def _find(claim: Claim, name: str, table: Mapping[str, T]) -> T:
    if name not in table:
        raise ClaimError(f"{claim.text}\nnothing was measured for {name!r}; there is: {', '.join(table) or 'nothing'}")
    return table[name]


# --------------------------------------------------------------------------------------------------------
# tests


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number, in order: Holm 1979, https://www.jstor.org/stable/4615733."""
    return [float(p) for p in multipletests(p_values, method="holm")[1]] if p_values else []


def mcnemar_exact(candidate_only: int, reference_only: int) -> float:
    """Two-sided exact McNemar test of equal accuracy on the same images.

    The arguments count images that one of the two alone had right. Under equality each is a fair coin:
    p = 2 P(Binomial(b + c, 1/2) <= min(b, c)), at most 1. McNemar 1947, https://doi.org/10.1007/BF02295996.
    """
    table = [[0, candidate_only], [reference_only, 0]]
    return float(mcnemar(table, exact=True).pvalue)


def accuracy_difference(
    candidate: Bool[np.ndarray, "*seeds images"],
    reference: Bool[np.ndarray, "*seeds images"],
    *,
    margin: float = 0.0,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Accuracy of the candidate minus that of the reference, on the same images, against `margin` (a ratio).

    One seed, margin 0 (whether there is a difference): McNemar's exact test, and the percentile interval of a paired
    bootstrap over images. Only the 2x2 table of who was right matters, so tables are drawn from a multinomial, which is
    what drawing images amounts to. One image is added for each of the two (Bonett & Price 2012,
    https://doi.org/10.3102/1076998611411915): when they hardly ever differ, a plain bootstrap never sees that they
    might.

    One seed, another margin (by how much, or within): the score test and its interval, see `score_difference`. A
    bootstrap will not do here: with few images it called one false claim in eight proven.

    Several seeds ([seeds, images]): see `_over_seeds`. Raises ClaimError on unequal shapes or no images.
    """
    _check_shapes(candidate, reference)
    difference = candidate.astype(np.int64) - reference.astype(np.int64)
    if difference.ndim == 2 and len(difference) > 1:
        return _over_seeds(difference.astype(np.float64), margin, bounds=(-1, 1), seed=seed, resamples=resamples)
    difference = difference.reshape(-1)
    ahead, behind = int((difference > 0).sum()), int((difference < 0).sum())
    images = difference.size
    effect = (ahead - behind) / images
    if margin != 0:
        low, high, p_value = score_difference(ahead, behind, images, margin)
        return Estimate(effect, low, high, p_value, images, 1, "Tango's score test")
    cells = np.array([behind + 1, images - ahead - behind, ahead + 1])
    drawn = np.random.default_rng(seed).multinomial(images + 2, cells / cells.sum(), size=resamples)
    low, high = np.quantile((drawn[:, 2] - drawn[:, 0]) / (images + 2), [0.025, 0.975])
    p_value = mcnemar_exact(ahead, behind)
    return Estimate(effect, float(low), float(high), p_value, images, 1, "McNemar exact, paired bootstrap")


def score_difference(ahead: int, behind: int, images: int, margin: float) -> tuple[float, float, float]:
    """(low, high, p-value) for the difference of two accuracies on the same images: Tango's score test.

    `ahead` and `behind` count images that one of the two alone had right. The variance is that of the most likely
    table among those whose difference is exactly what is tested, so few images, and no difference at all, are no
    special cases; at margin 0 it is McNemar's test without correction. The 95 % interval holds every difference that
    is not rejected. p-value two-sided, against `margin`. Tango 1998,
    https://doi.org/10.1002/(SICI)1097-0258(19980430)17:8<891::AID-SIM780>3.0.CO;2-B
    """

    def score(tested: float) -> float:
        # the likeliest share that only the reference has right, where the difference is `tested`: a quadratic
        middle = (2 * images - ahead + behind) * tested - ahead - behind
        last = -behind * tested * (1 - tested)
        share = (np.sqrt(max(middle**2 - 8 * images * last, 0.0)) - middle) / (4 * images)
        variance = images * (2 * share + tested * (1 - tested))
        above = ahead - behind - images * tested
        return float(above / np.sqrt(variance)) if variance > 0 else float(np.copysign(np.inf, above) if above else 0)

    effect, quantile = (ahead - behind) / images, float(stats.norm.ppf(0.975))
    ends = []
    for end, wanted in ((-1.0, quantile), (1.0, -quantile)):
        inside = end * (1 - 1e-9)
        rejected = effect != end and abs(score(inside)) > quantile
        ends.append(float(optimize.brentq(lambda at, z=wanted: score(at) - z, effect, inside)) if rejected else end)
    return ends[0], ends[1], float(min(1.0, 2 * stats.norm.sf(abs(score(margin)))))


def agreement_share(
    candidate: Integer[np.ndarray, "*seeds images"],
    reference: Integer[np.ndarray, "*seeds images"],
    *,
    share: float,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Estimate:
    """The share of images on which both name the same class, against `share`.

    One seed: Clopper and Pearson's exact interval, and twice the smaller binomial tail. Several: see
    `_over_seeds`.
    """
    _check_shapes(candidate, reference)
    same = candidate == reference
    if same.ndim == 2 and len(same) > 1:
        return _over_seeds(same.astype(np.float64), share, bounds=(0, 1), seed=seed, resamples=resamples)
    count, images = int(same.sum()), same.size
    low, high = proportion_confint(count, images, alpha=0.05, method="beta")
    tails = [stats.binomtest(count, images, share, alternative=side).pvalue for side in ("less", "greater")]
    p_value = min(1.0, 2 * float(min(tails)))
    return Estimate(count / images, float(low), float(high), p_value, images, 1, "exact binomial")


def speed_ratio(
    candidate_ms: Float[np.ndarray, "*seeds rounds"],
    reference_ms: Float[np.ndarray, "*seeds rounds"],
    *,
    factor: float = 1.0,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Estimate:
    """How many times faster the candidate is: geometric mean over rounds of reference / candidate.

    Both must have been timed in every round, in turn: what slows a whole round down then cancels. Rounds are
    drawn with replacement and taken as independent. The interval is studentised (bootstrap-t: Efron &
    Tibshirani 1993, section 12.5), because in 20 to 50 rounds percentile and BCa intervals of a mean are too
    short: they covered 91-94 % in simulation. Raises ClaimError on unequal or fewer than 10 rounds, and on
    times that are not positive.
    """
    if candidate_ms.shape != reference_ms.shape or candidate_ms.size < FEWEST_ROUNDS:
        raise ClaimError(
            f"a speed-up needs the same rounds of both, {FEWEST_ROUNDS} or more: "
            f"there are {candidate_ms.size} and {reference_ms.size}"
        )
    if not (np.minimum(candidate_ms, reference_ms) > 0).all():
        raise ClaimError("a speed-up needs positive times")
    logs = np.log(reference_ms.astype(np.float64) / candidate_ms.astype(np.float64))
    if logs.ndim == 2 and len(logs) > 1:
        return _speed_over_seeds(logs, factor)
    logs = logs.reshape(-1)
    rounds, mean = logs.size, float(logs.mean())
    ratio = float(np.exp(mean))
    if np.ptp(logs) == 0:  # a clock too coarse to see a difference
        method = "no spread between rounds: nothing can be tested"
        return Estimate(ratio, ratio, ratio, 1.0, rounds, 1, method)
    drawn = logs[np.random.default_rng(seed).integers(rounds, size=(resamples, rounds))]
    errors = drawn.std(axis=1, ddof=1)
    offsets = (drawn.mean(axis=1) - mean) * np.sqrt(rounds)
    # A draw of equal rounds has no spread: it lies as far out as can be. 50 standard errors are far enough.
    t = np.divide(offsets, errors, out=50 * np.sign(offsets), where=errors > 0).clip(-50, 50)
    error = float(logs.std(ddof=1) / np.sqrt(rounds))
    high, low = np.exp(mean - np.quantile(t, [0.025, 0.975]) * error)
    p_value = _inverted(t, (mean - float(np.log(factor))) / error)
    return Estimate(ratio, float(low), float(high), p_value, rounds, 1, "studentised bootstrap")


def _speed_over_seeds(logs: Float[np.ndarray, "seeds rounds"], factor: float) -> Estimate:
    by_seed = logs.mean(axis=1)
    ratio, seeds, rounds = float(np.exp(by_seed.mean())), *logs.shape
    if np.ptp(by_seed) < 1e-9:  # equal but for rounding
        method = "no spread between seeds: nothing can be tested"
        return Estimate(ratio, ratio, ratio, 1.0, rounds, seeds, method)
    test = stats.ttest_1samp(by_seed, np.log(factor))
    low, high = np.exp(test.confidence_interval(0.95))
    return Estimate(ratio, float(low), float(high), float(test.pvalue), rounds, seeds, "t over seeds")


def _over_seeds(
    values: Float[np.ndarray, "seeds images"],
    threshold: float,
    *,
    bounds: tuple[float, float],
    seed: int,
    resamples: int,
) -> Estimate:
    """The mean of `values`, with an interval that holds for new images and new seeds: a two-level bootstrap.

    Every seed is tested on the same images, so seeds and images are crossed: value = mean + seed + image +
    rest. One draw of the mean adds up

    - seeds: Student's t with seeds - 1 degrees of freedom, times the standard error of the seeds' means.
      Resampling itself is useless here: three or five seeds, drawn with replacement, vary too little (by
      (n-1)/n, and not like t)
    - images: the images' means over seeds, resampled, and shrunk to leave out the rest's share, which is in
      the seeds'

    `bounds` are the least and the largest value there could be. Seeds are treated as a sample of all seeds.
    Owen 2007, https://arxiv.org/abs/0705.0561, on bootstraps of crossed data.
    """
    rng = np.random.default_rng(seed)
    seeds, images = values.shape
    mean = values.mean()
    by_seed, by_image = values.mean(1), values.mean(0)
    rest = values - by_seed[:, None] - by_image[None, :] + mean
    rest_variance = (rest**2).sum() / ((seeds - 1) * max(images - 1, 1))
    image_variance = by_image.var(ddof=1) if images > 1 else 0.0
    rest_share = rest_variance / seeds / image_variance if image_variance > 0 else float(rest_variance > 0)
    # The images' means have few distinct values, so drawing images is drawing counts of values. One image more at
    # each end of the scale, as in `accuracy_difference`.
    distinct, counts = np.unique(by_image, return_counts=True)
    distinct, weights = np.append(distinct, bounds) - mean, np.append(counts, [1.0, 1.0])
    drawn = rng.multinomial(images + 2, weights / (images + 2), size=resamples) @ distinct / (images + 2)
    error = by_seed.std(ddof=1) / np.sqrt(seeds)
    draws = mean + error * rng.standard_t(seeds - 1, size=resamples) + np.sqrt(max(1 - rest_share, 0)) * drawn
    low, high = np.clip(np.quantile(draws, [0.025, 0.975]), *bounds)
    p_value = _inverted(draws, threshold)
    return Estimate(float(mean), float(low), float(high), p_value, images, seeds, "bootstrap over seeds and images")


def _inverted(draws: NDArray[np.float64], value: float) -> float:
    """The two-sided p-value at which the percentile interval of `draws` just reaches `value`.

    One is added to each count, so that it is never 0 for lack of draws (Davison & Hinkley 1997, section 4.2).
    """
    tail = min((draws <= value).sum(), (draws >= value).sum())
    return float(min(1.0, 2 * (tail + 1) / (len(draws) + 1)))


def _check_shapes(candidate: NDArray[np.generic], reference: NDArray[np.generic]) -> None:
    if candidate.shape != reference.shape or candidate.size == 0:
        raise ClaimError(
            "a paired comparison needs the same seeds and images of both, and at least one: "
            f"there are {candidate.shape} and {reference.shape}"
        )
