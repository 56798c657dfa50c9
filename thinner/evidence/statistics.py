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
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Integer
from lark import Lark, Token, Tree
from lark.exceptions import UnexpectedCharacters, UnexpectedToken
from numpy.typing import NDArray
from scipy import optimize, stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from thinner.errors import UserError, did_you_mean
from thinner.measure.scores import METRICS
from thinner.words import decimals

Kind = Literal["beats", "within", "faster", "smaller", "at_most", "agrees", "answers"]
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
     | NAME IS FASTER THAN NAME (BY NUMBER X)? AT BATCH NUMBER (IN RUNTIME | ON DEVICE)? -> faster
     | NAME IS SMALLER THAN NAME (BY NUMBER X)? IN SIZE                   -> smaller
     | NAME HAS AT MOST NUMBER PERCENT OF THE SIZE OF NAME                -> at_most
     | NAME HAS AT MOST NUMBER PERCENT OF THE MILLISECONDS OF NAME AT BATCH NUMBER (IN RUNTIME | ON DEVICE)? -> at_most
     | NAME AGREES WITH NAME ON NUMBER PERCENT OF IMAGES                  -> agrees
     | NAME ANSWERS NUMBER PERCENT OF IMAGES WITH AT LEAST NUMBER PERCENT METRIC -> answers

BEATS: /beats\b/
IS: /is\b/
WITHIN: /within\b/
FASTER: /faster\b/
SMALLER: /smaller\b/
THAN: /than\b/
AGREES: /agrees\b/
ANSWERS: /answers\b/
HAS: /has\b/
MOST: /most\b/
LEAST: /least\b/
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
METRIC: /(accuracy|balanced_accuracy|macro_f1|worst_class)\b/
RUNTIME: /[A-Za-z_]\w*/
SIZE: /(parameters|macs|bytes)\b/i
MILLISECONDS: /milliseconds\b/
NUMBER: /\d+(\.\d+)?/
NAME: /[A-Za-z_][\w-]*/
DEVICE: /[A-Za-z_][\w-]*/

%ignore /\s+/
"""

_WORDS = {
    "NAME": "the name of a candidate",
    "DEVICE": "the name of a device",
    "NUMBER": "a number",
    "METRIC": ", ".join(METRICS),
    "RUNTIME": "the name of a runtime",
    "SIZE": "parameters, macs, bytes",
    "PERCENT": "%",
    "POINTS": "points",
    "$END": "the end of the sentence",
}


@dataclass(frozen=True)
class Claim:
    """One sentence, understood.

    `amount` is a difference or share as a ratio (beats, within, agrees, at_most) or a factor (faster, smaller).
    `metric`: one of scores.METRICS, latency, parameters, macs, bytes or agreement. `batch` and `runtime` belong to
    latency alone.
    """

    text: str
    kind: Kind
    candidate: str
    reference: str
    amount: float
    metric: str
    batch: int | None = None
    runtime: str | None = None
    device: str | None = None  # where bench.py of a bundle was run; None: where evaluate was
    at_least: float | None = None  # answers: the operating point, as a ratio


def parse_claim(text: str, candidates: Sequence[str] | None = None, runtimes: Sequence[str] | None = None) -> Claim:
    """Read one claim; see docs/claims.md for the grammar.

    With `candidates`, their names are checked too, and with `runtimes` those. Raises ClaimError, which shows the word
    and what could stand there.
    """
    try:
        tree = _parser().parse(text)
    except UnexpectedToken as error:
        at = len(text.rstrip()) if error.token.type == "$END" else error.token.start_pos
        raise _pointed(text, at or 0, _choices(error.accepts or error.expected)) from None
    except UnexpectedCharacters as error:
        raise _pointed(text, error.pos_in_stream or 0, _choices(error.allowed or set())) from None
    names = _tokens(tree, "NAME")
    for what, words, known in (("candidate", names, candidates), ("runtime", _tokens(tree, "RUNTIME"), runtimes)):
        for word in words:
            if known is not None and word not in known:
                hint = did_you_mean(word, known, always=f"Choose one of: {', '.join(known)}")
                raise _pointed(text, word.start_pos or 0, f"unknown {what}. {hint}")
    if len(names) > 1 and names[0] == names[1]:
        raise _pointed(text, names[1].start_pos or 0, "a candidate cannot be compared with itself")
    return _understand(text, tree, names)


def parse_claims(
    texts: Sequence[str], candidates: Sequence[str] | None = None, runtimes: Sequence[str] | None = None
) -> list[Claim]:
    """Read all claims; raises one ClaimError that shows every mistake."""
    claims, mistakes = [], []
    for text in texts:
        try:
            claims.append(parse_claim(text, candidates, runtimes))
        except ClaimError as error:
            mistakes.append(str(error))
    if mistakes:
        raise ClaimError("\n".join(mistakes))
    return claims


def _understand(text: str, tree: Tree[Token], names: list[Token]) -> Claim:
    numbers = _tokens(tree, "NUMBER")
    first, second = str(names[0]), str(names[-1])
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
    if tree.data == "answers":
        metric = _tokens(tree, "METRIC")[0]
        if metric != "accuracy":
            raise _pointed(text, metric.start_pos or 0, "expected accuracy: operating points are fitted for it alone")
        share, at_least = (float(number) / 100 for number in numbers)
        for number in numbers:
            if not 0 < float(number) < 100:
                raise _pointed(text, number.start_pos or 0, "a share above 0 % and below 100 % is needed")
        return Claim(text, "answers", first, second, share, "accuracy", at_least=at_least)
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
    runtime, device = _tokens(tree, "RUNTIME"), _tokens(tree, "DEVICE")
    return Claim(
        text,
        kind,
        first,
        second,
        factor,
        "latency",
        int(batch),
        str(runtime[0]) if runtime else "onnxruntime" if device else "pytorch",
        str(device[0]) if device else None,
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
    per candidate, parameters, macs and bytes, or one of each per seed. `latency_ms`: per (runtime or device, batch),
    candidates' times [rounds] or [seeds, rounds], taken in turn, so that times of one round were taken next to
    each other. `labels`: the true classes, for metrics in which every class counts. `answered`: per
    candidate and operating point, whether it answered; of one seed alone.
    """

    right: Mapping[str, Bool[np.ndarray, "*seeds images"]]
    predictions: Mapping[str, Integer[np.ndarray, "*seeds images"]]
    sizes: Mapping[str, Mapping[str, int | Sequence[int]]]
    latency_ms: Mapping[tuple[str, int], Mapping[str, Float[np.ndarray, "*seeds rounds"]]]
    labels: Integer[np.ndarray, " images"] | None = None
    answered: Mapping[str, Mapping[float, Bool[np.ndarray, " images"]]] | None = None


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
        labels=runs[0].labels,
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
        scale, sign, of = 100, "", "%"
        if self.claim.kind in ("faster", "smaller"):
            scale, of = 1, "x"
        elif self.claim.kind not in ("at_most", "agrees", "answers"):
            sign, of = "+", " points"
        effect, low, high, asked = (scale * value for value in (e.effect, e.low, e.high, self.threshold))
        form = f"{sign}.{decimals(effect, asked)}f"
        most = "at most " * (self.claim.kind == "at_most")
        inner, last = "%" * (of == "%"), of * (of != " points")
        numbers = f"{effect:{form}}{of} [{low:{form}}{inner}, {high:{form}}{inner}], asked {most}{asked:{form}}{last}"
        p = "" if self.p_value is None else f", p = {self.p_value:.2g}"
        units = {"latency": "rounds", "agreement": "images", **dict.fromkeys(METRICS, "images")}
        unit = units.get(self.claim.metric)
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


def _place(claim: Claim) -> tuple[str, int]:
    """Whose times a claim about speed is about: the key of `Evidence.latency_ms`."""
    return claim.device or str(claim.runtime), int(claim.batch or 0)


def is_timed(claim: Claim, evidence: Evidence) -> bool:
    """Whether both networks of a claim about speed were timed where it says."""
    return {claim.candidate, claim.reference} <= set(evidence.latency_ms.get(_place(claim), {}))


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
        table = evidence.latency_ms.get(_place(claim))
        if table is None:
            known = ", ".join(f"batch {batch} in {runtime}" for runtime, batch in evidence.latency_ms) or "nothing"
            where = f"on {claim.device}" if claim.device else f"in {claim.runtime}"
            raise ClaimError(f"{claim.text}\nno times at batch {claim.batch} {where}; measured were: {known}")
        times = [_find(claim, name, table) for name in names]
        if claim.kind == "faster":
            return speed_ratio(*times, factor=claim.amount, seed=seed, resamples=resamples), claim.amount
        found = speed_ratio(*times, factor=1 / claim.amount, seed=seed, resamples=resamples)
        share = dataclasses.replace(found, effect=1 / found.effect, low=1 / found.high, high=1 / found.low)
        return share, claim.amount
    if claim.kind == "answers":
        return _answers(claim, evidence)
    if claim.kind == "agrees":
        own, other = (_find(claim, name, evidence.predictions) for name in names)
        return agreement_share(own, other, share=claim.amount, seed=seed, resamples=resamples), claim.amount
    margin = claim.amount if claim.kind == "beats" else -claim.amount
    drawn: dict[str, Any] = {"seed": seed, "resamples": resamples}
    if claim.metric == "accuracy":
        right, reference = (_find(claim, name, evidence.right) for name in names)
        return accuracy_difference(right, reference, margin=margin, **drawn), margin
    if evidence.labels is None:
        raise ClaimError(f"{claim.text}\n{claim.metric} needs the labels of the test images, and there are none")
    own, other = (_find(claim, name, evidence.predictions) for name in names)
    if claim.metric == "balanced_accuracy":
        return balanced_accuracy_difference(own, other, evidence.labels, margin=margin, **drawn), margin
    if claim.metric == "macro_f1":
        return macro_f1_difference(own, other, evidence.labels, margin=margin, **drawn), margin
    return worst_class_difference(own, other, evidence.labels, margin=margin), margin


def _answers(claim: Claim, evidence: Evidence) -> tuple[Estimate, float]:
    """Of the two things that are claimed, how many images are answered and how many of those right, the one that is
    shown less: both have to hold, so the larger p-value is the claim's (an intersection-union test, Berger 1982,
    https://doi.org/10.1080/00401706.1982.10487790). If one does not hold, it is that one."""
    points = (evidence.answered or {}).get(claim.candidate, {})
    answered = next((points[key] for key in points if math.isclose(key, claim.at_least or 0)), None)
    if answered is None:
        known = ", ".join(f"{100 * key:g} %" for key in points) or "none"
        raise ClaimError(
            f"{claim.text}\n{claim.candidate} has no operating point of {100 * (claim.at_least or 0):g} %, or it is of "
            f"several seeds; known are: {known}"
        )
    right = _find(claim, claim.candidate, evidence.right).reshape(-1)[answered]
    parts = ((answered, claim.amount, "of images answered"), (right, claim.at_least or 0.0, "of answers right"))
    found = [(_share(part, asked, words), asked) for part, asked, words in parts]
    short = [pair for pair in found if pair[0].effect <= pair[1]]
    if len(short) == 2:  # either would refute it: the smaller p-value of two, times two
        (estimate, asked) = min(short, key=lambda pair: pair[0].p_value or 0.0)
        return replace(estimate, p_value=min(1.0, 2 * (estimate.p_value or 0.0))), asked
    return short[0] if short else max(found, key=lambda pair: pair[0].p_value or 0.0)


def _share(which: NDArray[np.bool_], asked: float, words: str) -> Estimate:
    """The share that is true against ``asked``: Clopper and Pearson's interval, twice the smaller binomial tail."""
    count, images = int(which.sum()), which.size
    if not images:
        return Estimate(0.0, 0.0, 1.0, 1.0, 0, 1, f"{words}: there are none")
    low, high = proportion_confint(count, images, alpha=0.05, method="beta")
    tails = [stats.binomtest(count, images, asked, alternative=side).pvalue for side in ("less", "greater")]
    return Estimate(
        count / images, float(low), float(high), min(1.0, 2 * float(min(tails))), images, 1, f"{words}, exact binomial"
    )


def _find(claim: Claim, name: str, table: Mapping[str, T]) -> T:
    if name not in table:
        raise ClaimError(f"{claim.text}\nnothing was measured for {name!r}; there is: {', '.join(table) or 'nothing'}")
    return table[name]


# --------------------------------------------------------------------------------------------------------
# tests


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number, in order: Holm 1979, https://www.jstor.org/stable/4615733.

    The k-th smallest of m, from 0, times m - k, but not less than the one before it and at most 1. That is what
    statsmodels' ``multipletests`` gives, to the last bit; which collects garbage at each call, half a second.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return corrected.tolist()


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
    bootstrap will not do here: with few images it called one false claim in eight proven. "By how much" is proven only
    where McNemar's test proves that there is a difference at all.

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
        method, exact = "Tango's score test", mcnemar_exact(ahead, behind)
        # by so much means by anything, which has an exact test
        if (effect > margin > 0 or effect < margin < 0) and exact > p_value:
            p_value, method = exact, "Tango's score test, and McNemar's"
        return Estimate(effect, low, high, p_value, images, 1, method)
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
        return float(_tango(ahead, behind, images, tested))

    effect, quantile = (ahead - behind) / images, float(stats.norm.ppf(0.975))
    ends = []
    for end, wanted in ((-1.0, quantile), (1.0, -quantile)):
        inside = end * (1 - 1e-9)
        rejected = effect != end and abs(score(inside)) > quantile
        ends.append(float(optimize.brentq(lambda at, z=wanted: score(at) - z, effect, inside)) if rejected else end)
    return ends[0], ends[1], float(min(1.0, 2 * stats.norm.sf(abs(score(margin)))))


def _tango(ahead: Any, behind: Any, images: Any, tested: Any) -> Any:
    """Tango's z of numbers or arrays of them: how far the difference lies above ``tested``; it falls with that."""
    # the likeliest share that only the reference has right, where the difference is `tested`: a quadratic
    middle = (2 * images - ahead + behind) * tested - ahead - behind
    last = -behind * tested * (1 - tested)
    share = (np.sqrt(np.maximum(middle**2 - 8 * images * last, 0.0)) - middle) / (4 * images)
    variance = images * (2 * share + tested * (1 - tested))
    above = ahead - behind - images * tested
    with np.errstate(divide="ignore", invalid="ignore"):
        z = above / np.sqrt(variance)
    return np.where(variance > 0, z, np.where(above != 0, np.copysign(np.inf, above), 0.0))


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
    rounds_of = [times.shape[-1] if times.size else 0 for times in (candidate_ms, reference_ms)]
    if candidate_ms.shape != reference_ms.shape or min(rounds_of) < FEWEST_ROUNDS:
        raise ClaimError(
            f"a speed-up needs the same rounds of both, {FEWEST_ROUNDS} or more: "
            f"there are {rounds_of[0]} and {rounds_of[1]}"
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
    if np.ptp(by_seed) < _ALIKE:
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
    strata: Integer[np.ndarray, " images"] | None = None,
) -> Estimate:
    """The mean of `values`, with an interval that holds for new images and new seeds: a two-level bootstrap.

    Every seed is tested on the same images, so seeds and images are crossed: value = mean + seed + image +
    rest. One draw of the mean adds up

    - seeds: Student's t with seeds - 1 degrees of freedom, times the standard error of the seeds' means.
      Resampling itself is useless here: three or five seeds, drawn with replacement, vary too little (by
      (n-1)/n, and not like t). Seeds that are right on as many images by chance, not on the same ones, have the
      error that the rest alone would give: else a tie would be certainty
    - images: the images' means over seeds, resampled, and shrunk to leave out the rest's share, which is in
      the seeds'

    `bounds` are the least and the largest value there could be. Seeds are treated as a sample of all seeds.
    Owen 2007, https://arxiv.org/abs/0705.0561, on bootstraps of crossed data.

    With `strata` (the classes of the images) it is the mean over classes of their means, and images are drawn within
    their class. The draws of a class are centred: in a class of five the two images that are added would pull them
    towards the middle of `bounds`.
    """
    rng = np.random.default_rng(seed)
    seeds, images = values.shape
    groups = [values] if strata is None else [values[:, strata == k] for k in np.unique(strata)]
    by_seed = np.mean([group.mean(1) for group in groups], axis=0)
    mean = np.mean([group.mean() for group in groups])
    drawn, least = np.zeros(resamples), 0.0
    for group in groups:
        found = _Images.of(group, bounds)
        drawn += found.draw(rng, resamples) - (0.0 if strata is None else found.middle)
        least += found.rest / len(groups) ** 2
    alike = np.ptp(by_seed) < _ALIKE
    error = np.sqrt(least if alike else by_seed.var(ddof=1) / seeds)
    draws = mean + error * rng.standard_t(seeds - 1, size=resamples) + drawn / len(groups)
    low, high = np.clip(np.quantile(draws, [0.025, 0.975]), *bounds)
    p_value = _inverted(draws, threshold)
    return Estimate(float(mean), float(low), float(high), p_value, images, seeds, "bootstrap over seeds and images")


_ALIKE = 1e-9  # shares that are equal but for rounding


@dataclass(frozen=True)
class _Images:
    """What other images would make of a mean over seeds and images: the distinct ``offsets`` of the images' means, how
    likely each is (``shares``), and by how much they are to be shrunk (``kept``). ``rest``: what of the mean's variance
    is neither the seeds' nor the images'."""

    images: int
    offsets: Float[np.ndarray, " distinct"]
    shares: Float[np.ndarray, " distinct"]
    kept: float
    rest: float

    @classmethod
    def of(cls, values: Float[np.ndarray, "seeds images"], bounds: tuple[float, float]) -> _Images:
        seeds, images = values.shape
        mean, by_seed, by_image = values.mean(), values.mean(1), values.mean(0)
        rest = values - by_seed[:, None] - by_image[None, :] + mean
        rest_variance = (rest**2).sum() / ((seeds - 1) * max(images - 1, 1))
        image_variance = by_image.var(ddof=1) if images > 1 else 0.0
        rest_share = rest_variance / seeds / image_variance if image_variance > 0 else float(rest_variance > 0)
        # The images' means have few distinct values, so drawing images is drawing counts of values. One image more at
        # each end of the scale, as in `accuracy_difference`.
        distinct, counts = np.unique(by_image, return_counts=True)
        offsets, weights = np.append(distinct, bounds) - mean, np.append(counts, [1.0, 1.0])
        kept = float(np.sqrt(max(1 - rest_share, 0)))
        return cls(images, offsets, weights / (images + 2), kept, float(rest_variance / (seeds * images)))

    def draw(self, rng: np.random.Generator, resamples: int) -> Float[np.ndarray, " resamples"]:
        counts = rng.multinomial(self.images + 2, self.shares, size=resamples)
        return np.asarray(self.kept * (counts @ self.offsets / (self.images + 2)))

    @property
    def middle(self) -> float:
        """What `draw` gives on average."""
        return float(self.kept * (self.shares @ self.offsets))

    @property
    def variance(self) -> float:
        """Of `draw`."""
        spread = self.shares @ self.offsets**2 - (self.shares @ self.offsets) ** 2
        return float(self.kept**2 * spread / (self.images + 2))


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


# ------------------------------------------------------------------------- tests in which every class counts alike


def balanced_accuracy_difference(
    candidate: Integer[np.ndarray, "*seeds images"],
    reference: Integer[np.ndarray, "*seeds images"],
    labels: Integer[np.ndarray, " images"],
    *,
    margin: float = 0.0,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Balanced accuracy of the candidate minus that of the reference, against ``margin`` (a ratio).

    The effect is D = mean over classes of d_k, the difference of their accuracies on the same n_k images of class k.
    One seed: with Tango's limits l_k <= d_k <= u_k of each class, the limits of the mean of K classes are

        D - sqrt(sum_k (d_k - l_k)^2) / K,   D + sqrt(sum_k (u_k - d_k)^2) / K

    (MOVER, the method of variance estimates recovery: Zou & Donner 2008, https://doi.org/10.1002/sim.3095). Each half
    takes the variance near its own limit, so a class of five images in which nothing differed is not taken for one that
    could not differ. The p-value is the level at which a limit reaches ``margin``. One class: Tango's test itself.

    Several seeds: `_over_seeds`, with images drawn within their classes. A class without images is left out.
    """
    classes = _check_classes(candidate, reference, labels)
    difference = (candidate == labels).astype(np.int64) - (reference == labels)
    if difference.ndim == 2 and len(difference) > 1:
        values = difference.astype(np.float64)
        return _over_seeds(values, margin, bounds=(-1, 1), seed=seed, resamples=resamples, strata=labels)
    difference = difference.reshape(-1)
    images = np.array([(labels == k).sum() for k in classes])
    ahead = np.array([(difference[labels == k] > 0).sum() for k in classes])
    behind = np.array([(difference[labels == k] < 0).sum() for k in classes])
    each = (ahead - behind) / images
    effect = float(each.mean())

    def limit(z: float) -> float:
        distance = float(np.sqrt(((each - _tango_limit(ahead, behind, images, z)) ** 2).sum())) / len(classes)
        return effect - math.copysign(distance, z)

    side, quantile = (1.0 if effect >= margin else -1.0), float(stats.norm.ppf(0.975))
    p_value = 2 * float(stats.norm.sf(_level(lambda z: side * (limit(side * z) - margin))))
    method = "MOVER of Tango's limits by class"
    return Estimate(effect, limit(quantile), limit(-quantile), min(1.0, p_value), labels.size, 1, method)


def macro_f1_difference(
    candidate: Integer[np.ndarray, "*seeds images"],
    reference: Integer[np.ndarray, "*seeds images"],
    labels: Integer[np.ndarray, " images"],
    *,
    margin: float = 0.0,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Macro-F1 of the candidate minus that of the reference, against ``margin`` (a ratio).

    One seed: a paired bootstrap of each class's images, so that there are as many of each as there are; the p-value
    is that of the percentile interval which just reaches ``margin``. Only who said what matters, so pairs of answers
    are drawn. In each class two images are added, one that the candidate alone has right and one that the reference
    alone has (as in `accuracy_difference`), the other answer being the class's most frequent mistake: otherwise a class
    of five images, all of them right, would never be seen wrong. What these two shift is taken off again.

    Several seeds: each seed's difference, linearised in the images' weights (the infinitesimal jackknife: Efron 1982,
    https://doi.org/10.1137/1.9781611970319, chapter 6), goes through `_over_seeds`.

    F1 hangs on how frequent classes are. The claim is about images with as many of each class as the test split has.
    """
    _check_classes(candidate, reference, labels)
    known, codes = np.unique(np.concatenate([labels, candidate.ravel(), reference.ravel()]), return_inverse=True)
    label, size = codes[: labels.size], max(len(known), 2)
    own, other = codes[labels.size :].reshape(2, -1, labels.size)
    if len(own) > 1:
        values = np.stack([_linear_f1(a, b, label, size) for a, b in zip(own, other, strict=True)])
        return _over_seeds(values, margin, bounds=(-1, 1), seed=seed, resamples=resamples, strata=labels)
    tables = [_pairs_of(own[0], other[0], label, k, size) for k in np.unique(label).tolist()]
    images = np.bincount(label, minlength=size)
    counted = [int((images + np.bincount(who, minlength=size) > 0).sum()) for who in (own[0], other[0])]

    def difference(drawn: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
        """Of each row of weights of pairs, by class."""
        total = np.zeros(len(drawn[0]))
        for side, sign in ((0, 1), (1, -1)):
            right, said = np.zeros((2, len(drawn[0]), size))
            for table, weights in zip(tables, drawn, strict=True):
                answers = table.pairs[:, side]
                right[:, table.label] = weights[:, answers == table.label].sum(axis=1)
                np.add.at(said.T, answers, weights.T)
            total += sign * (2 * right / np.maximum(images + said, 1e-12)).sum(axis=1) / counted[side]
        return total

    effect = float(difference([table.seen[None, :] for table in tables])[0])
    middle = float(difference([table.images * table.shares[None, :] for table in tables])[0])
    rng, draws, rows = np.random.default_rng(seed), [], max(1, 2_000_000 // size)
    for start in range(0, resamples, rows):
        few = min(rows, resamples - start)
        # as many images as the class has, though two more are drawn
        drawn = [rng.multinomial(t.images + 2, t.shares, size=few) * (t.images / (t.images + 2)) for t in tables]
        draws.append(difference(drawn) - middle + effect)
    found = np.concatenate(draws)
    low, high = np.clip(np.quantile(found, [0.025, 0.975]), -1, 1)
    p_value = _inverted(found, margin)
    return Estimate(effect, float(low), float(high), p_value, labels.size, 1, "paired bootstrap by class")


@dataclass(frozen=True)
class _Pairs:
    """What two candidates said of one class's images: the distinct ``pairs``, how many there were (``seen``) and their
    ``shares`` when two images are added."""

    label: int
    images: int
    pairs: Integer[np.ndarray, "pairs 2"]
    seen: Float[np.ndarray, " pairs"]
    shares: Float[np.ndarray, " pairs"]


def _pairs_of(
    own: Integer[np.ndarray, " images"],
    other: Integer[np.ndarray, " images"],
    labels: Integer[np.ndarray, " images"],
    label: int,
    classes: int,
) -> _Pairs:
    here = labels == label
    pairs, seen = np.unique(np.stack([own[here], other[here]], axis=1), axis=0, return_counts=True)
    wrong = np.bincount(np.concatenate([own[here], other[here]]), minlength=classes)
    wrong[label] = -1
    if wrong.max() == 0:  # never wrong: the most frequent of the other classes
        wrong = np.bincount(labels, minlength=classes)
        wrong[label] = -1
    mistake = int(wrong.argmax())
    added = np.array([[label, mistake], [mistake, label]])
    counts = np.append(seen, [1, 1]).astype(np.float64)
    return _Pairs(
        int(label),
        int(here.sum()),
        np.concatenate([pairs, added]),
        np.append(seen, [0, 0]).astype(np.float64),
        counts / counts.sum(),
    )


def _linear_f1(
    own: Integer[np.ndarray, " images"],
    other: Integer[np.ndarray, " images"],
    labels: Integer[np.ndarray, " images"],
    classes: int,
) -> Float[np.ndarray, " images"]:
    """A value for each image, so that the mean over classes of their means is the difference of the two macro-F1, and
    moves as that does when an image of a class has a little more weight and the class's others less."""
    images = np.bincount(labels, minlength=classes)
    total, slopes = 0.0, np.zeros(len(labels))
    for answers, sign in ((own, 1), (other, -1)):
        said = np.bincount(answers, minlength=classes)
        right = np.bincount(labels[answers == labels], minlength=classes)
        among = np.maximum(images + said, 1)
        f1, counted = 2 * right / among, int((images + said > 0).sum())
        total += sign * f1.sum() / counted
        # F1 = 2 TP / (images + said): an answer adds to `said` of its class, and to TP where it is right
        slopes += sign * (2 / among[labels] * (answers == labels) - f1[answers] / among[answers]) / counted
    slopes *= images[labels]
    means = np.bincount(labels, slopes, minlength=classes) / np.maximum(images, 1)
    return np.asarray(total + np.count_nonzero(images) * (slopes - means[labels]))


NEAR_WORST = 10  # classes of the other network that each class is compared with: those that it recognised least


def worst_class_difference(
    candidate: Integer[np.ndarray, "*seeds images"],
    reference: Integer[np.ndarray, "*seeds images"],
    labels: Integer[np.ndarray, " images"],
    *,
    margin: float = 0.0,
) -> Estimate:
    """The candidate's worst class minus the reference's worst class, as accuracies, against ``margin`` (a ratio).

    min_k a_k - min_j b_j > m says: for *every* class k of the candidate there is *some* class j of the reference with
    a_k - b_j > m. Which class is worst is not known, and the one that looks worst looks worse than it is: a bootstrap
    of the two minima is biased. Instead

    - every k has to be shown, each at the full level: whatever k is truly the worst, it had to pass a valid test
      (intersection-union: Berger 1982, https://doi.org/10.1080/00401706.1982.10487790). p = max over k of p_k
    - for one k, some j will do, so the p-values of its comparisons share the level (Bonferroni, weighted): half of it
      goes to j = k, which is paired and mostly decides, the rest to the others in equal parts. p_k = min over j of
      p_kj / w_j. The weights do not depend on the data. Of the others only the `NEAR_WORST` that the reference
      recognised least are tried, which can only make p_k larger

    Neither step needs the comparisons to be independent. "Below m" is the same with the two exchanged. The p-value is
    twice the one-sided p; the interval holds every margin that is not rejected, so it is wider than 95 % asks for.

    One seed: j = k by Tango's score test, else Newcombe's interval of two independent shares from Wilson's limits
    (1998, https://doi.org/10.1002/(SICI)1097-0258(19980430)17:8<873::AID-SIM779>3.0.CO;2-I). Several seeds: the worst
    class is the one that is recognised least on average over seeds; each comparison is Student's t with Satterthwaite's
    degrees of freedom, the variances being those of `_over_seeds`. A class without images is left out.
    """
    classes = _check_classes(candidate, reference, labels)
    right, theirs = (np.atleast_2d(who == labels) for who in (candidate, reference))
    make = _Compared if len(right) == 1 else _ComparedOverSeeds
    up, down = make(right, theirs, labels, classes), make(theirs, right, labels, classes)
    effect = up.worst - down.worst
    p_value = up.p_above(margin) if effect >= margin else down.p_above(-margin)
    low, high = up.limit(0.025), -down.limit(0.025)
    seeds = len(right)
    return Estimate(effect, low, high, min(1.0, 2 * p_value), labels.size, seeds, "intersection-union over classes")


class _Compared:
    """Every class of one network with those that another one recognised least; one seed. Rows are classes, columns
    comparisons, of which the first is with the same class."""

    def __init__(
        self,
        mine: Bool[np.ndarray, "seeds images"],
        theirs: Bool[np.ndarray, "seeds images"],
        labels: Integer[np.ndarray, " images"],
        classes: Integer[np.ndarray, " classes"],
    ) -> None:
        groups = [labels == k for k in classes]
        self.images = np.array([int(group.sum()) for group in groups])
        self.mine, self.theirs = (np.array([float(who[:, group].mean()) for group in groups]) for who in (mine, theirs))
        self.worst = float(self.mine.min())
        own = np.arange(len(classes))[:, None]
        least = np.argsort(self.theirs, kind="stable")[: NEAR_WORST + 1]
        self.other = np.concatenate([own, np.broadcast_to(least, (len(classes), len(least)))], axis=1)
        twice = self.other[:, 1:] == own  # the same class once more
        others = max(len(classes) - 1, 1)
        self.weight = np.concatenate([np.full(own.shape, 0.5), np.where(twice, 0.0, 0.5 / others)], axis=1)
        if len(classes) == 1:
            self.weight[:, 0] = 1.0
        self._prepare(mine, theirs, groups)

    def _prepare(self, mine: Any, theirs: Any, groups: Sequence[Any]) -> None:
        self.ahead = np.array([int((mine & ~theirs)[:, group].sum()) for group in groups])
        self.behind = np.array([int((theirs & ~mine)[:, group].sum()) for group in groups])

    def p_above(self, margin: float) -> float:
        """One-sided p of "the worst class is no more than ``margin`` above the other's worst"."""
        p = stats.norm.sf(self._z(margin))
        shared = np.divide(p, self.weight, out=np.ones_like(p), where=self.weight > 0)
        return float(np.minimum(shared, 1.0).min(axis=1).max())

    def limit(self, level: float) -> float:
        """The largest margin that is rejected at the one-sided ``level``."""
        return float(np.clip(self._limits(level * self.weight).max(axis=1).min(), -1, 1))

    def _z(self, margin: float) -> Float[np.ndarray, "classes others"]:
        """How many standard errors each difference lies above ``margin``."""
        low, high = np.zeros(self.other.shape), np.full(self.other.shape, _FAR)
        for _ in range(_HALVINGS):  # the z at which the lower limit reaches the margin
            middle = (low + high) / 2
            above = self._newcombe(middle) > margin
            low, high = np.where(above, middle, low), np.where(above, high, middle)
        low[:, 0] = np.maximum(_tango(self.ahead, self.behind, self.images, margin), 0.0)
        return low

    def _limits(self, levels: Float[np.ndarray, "classes others"]) -> Float[np.ndarray, "classes others"]:
        z = stats.norm.isf(np.maximum(levels, 1e-300))
        found = np.where(levels > 0, self._newcombe(z), -1.0)
        found[:, 0] = _tango_limit(self.ahead, self.behind, self.images, z[0, 0])
        return found

    def _newcombe(self, z: Float[np.ndarray, "classes others"]) -> Float[np.ndarray, "classes others"]:
        """Lower limits of the differences of two independent shares."""
        mine, theirs = self.mine[:, None], self.theirs[self.other]
        below = mine - _wilson(mine, self.images[:, None], -z)
        above = _wilson(theirs, self.images[self.other], z) - theirs
        return np.asarray(mine - theirs - np.sqrt(below**2 + above**2))


class _ComparedOverSeeds(_Compared):
    """The same over several seeds."""

    def _prepare(self, mine: Any, theirs: Any, groups: Sequence[Any]) -> None:
        seeds = len(mine)
        a, b = (np.array([who[:, group].mean(axis=1) for group in groups]) for who in (mine, theirs))
        of_seeds = (a[:, None, :] - b[self.other]).var(axis=2, ddof=1) / seeds
        found = [
            [_Images.of(values[:, group], bounds) for group in groups]
            for values, bounds in (
                (mine.astype(np.float64), (0, 1)),
                (theirs.astype(np.float64), (0, 1)),
                (mine.astype(np.float64) - theirs, (-1, 1)),
            )
        ]

        def together(key: str) -> NDArray[np.float64]:
            alone_a, alone_b, paired = (np.array([getattr(one, key) for one in of_groups]) for of_groups in found)
            both = alone_a[:, None] + alone_b[self.other]
            both[:, 0] = paired
            return np.asarray(both)

        of_images = together("variance")
        of_seeds = np.where(of_seeds < _ALIKE**2, together("rest"), of_seeds)  # of a tie, see `_over_seeds`
        self.error = np.sqrt(of_seeds + of_images)
        self.freedom = np.full(self.error.shape, 1e9)
        np.divide((seeds - 1) * self.error**4, of_seeds**2, out=self.freedom, where=of_seeds > 0)
        self.gap = self.mine[:, None] - self.theirs[self.other]

    def _z(self, margin: float) -> Float[np.ndarray, "classes others"]:
        t = np.divide(self.gap - margin, self.error, out=np.zeros_like(self.gap), where=self.error > 0)
        return np.asarray(stats.norm.isf(np.clip(stats.t.sf(t, self.freedom), 1e-300, 1.0)))

    def _limits(self, levels: Float[np.ndarray, "classes others"]) -> Float[np.ndarray, "classes others"]:
        t = stats.t.isf(np.maximum(levels, 1e-300), self.freedom)
        return np.where(levels > 0, self.gap - t * self.error, -1.0)


_FAR, _HALVINGS = 40.0, 40  # standard errors beyond which there is nothing; steps after which nothing moves


def _level(above: Callable[[float], float]) -> float:
    """The z from 0 to `_FAR` at which ``above``, which falls, reaches 0; the end where it does not."""
    if above(0.0) <= 0:
        return 0.0
    return _FAR if above(_FAR) > 0 else float(optimize.brentq(above, 0.0, _FAR))


def _tango_limit(ahead: Any, behind: Any, images: Any, z: float) -> Float[np.ndarray, " classes"]:
    """The differences that lie ``z`` standard errors below what was seen (above, where it is negative)."""
    low, high = np.full(np.shape(ahead), -1.0), np.full(np.shape(ahead), 1.0)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        below = _tango(ahead, behind, images, middle) > z
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return (low + high) / 2


def _wilson(share: Any, images: Any, z: Any) -> Any:
    """Wilson's limit (1927, https://doi.org/10.1080/01621459.1927.10502953) of a share, ``z`` standard errors up."""
    spread = np.sqrt(share * (1 - share) / images + z**2 / (4 * images**2))
    return (share + z**2 / (2 * images) + z * spread) / (1 + z**2 / images)


def _check_classes(
    candidate: NDArray[np.generic], reference: NDArray[np.generic], labels: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The classes that have images."""
    _check_shapes(candidate, reference)
    if candidate.shape[-1:] != labels.shape:
        raise ClaimError(f"{labels.size} labels, but answers for {candidate.shape[-1]} images")
    return np.unique(labels)
