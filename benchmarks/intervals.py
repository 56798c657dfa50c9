"""Do the intervals and tests of claims keep their word? Simulated comparisons whose truth is known.

    python -m benchmarks.intervals                       # 2,000 comparisons of each kind, a table
    python -m benchmarks.intervals --comparisons 500 --only speed        # or --only classes, family
    python -m benchmarks.intervals --check               # exit code 1 where one breaks its word

95 % intervals have to cover the truth in 93 to 97 % of comparisons; a claim that is false by as little as can be may
be proven in 5 % at most (two-sided tests: some 2.5 % is what to expect). Where two candidates differ on no more than
two images or so, coverage comes in steps: there intervals may cover more (`AT_LEAST`). So may those of metrics in
which every class counts (`CLASS_SIMULATIONS`): some classes have a handful of images.
"""

from __future__ import annotations

import argparse
import gc
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thinner.evidence.statistics import (
    Estimate,
    Evidence,
    accuracy_difference,
    agreement_share,
    balanced_accuracy_difference,
    judge,
    macro_f1_difference,
    parse_claims,
    speed_ratio,
    worst_class_difference,
)
from thinner.measure.scores import score

COVERAGE, FALSE_PROVEN = (0.93, 0.97), 0.05
RESAMPLES = 600  # a stage takes 20,000; the noise that fewer add is part of what is measured

Simulation = Callable[[np.random.Generator, int], tuple[Estimate, float]]


def paired(both: int, candidate_only: int, reference_only: int, neither: int) -> tuple[NDArray[np.bool_], ...]:
    """Who was right on each image, from the four counts."""
    cells = [both, candidate_only, reference_only, neither]
    return np.repeat([True, True, False, False], cells), np.repeat([True, False, True, False], cells)


def _table(rng: np.random.Generator, ahead: float, behind: float, images: int = 1000) -> tuple[NDArray[np.bool_], ...]:
    plus, minus, same = (int(count) for count in rng.multinomial(images, [ahead, behind, 1 - ahead - behind]))
    return paired(same, plus, minus, 0)


def simulate_accuracy(rng: np.random.Generator, seed: int) -> tuple[Estimate, float]:
    """One seed, a true difference of one point: what "by 1 point" and "within" rest on."""
    right, reference = _table(rng, 0.05, 0.04)
    return accuracy_difference(right, reference, margin=0.01, seed=seed, resamples=RESAMPLES), 0.01


def simulate_equal_accuracy(rng: np.random.Generator, seed: int) -> tuple[Estimate, float]:
    """One seed, no difference: what "beats" rests on."""
    right, reference = _table(rng, 0.05, 0.05)
    return accuracy_difference(right, reference, seed=seed, resamples=RESAMPLES), 0.0


def simulate_few_differences(rng: np.random.Generator, seed: int) -> tuple[Estimate, float]:
    """200 images, of which the candidate loses four and wins two, on average: "within", with a small test split."""
    right, reference = _table(rng, 0.01, 0.02, 200)
    return accuracy_difference(right, reference, margin=-0.01, seed=seed, resamples=RESAMPLES), -0.01


def simulate_hardly_any_difference(rng: np.random.Generator, seed: int) -> tuple[Estimate, float]:
    """200 images, of which the candidate loses two on average, and in one comparison of seven none."""
    right, reference = _table(rng, 0.0, 0.01, 200)
    return accuracy_difference(right, reference, margin=-0.01, seed=seed, resamples=RESAMPLES), -0.01


def simulate_few_differences_over_seeds(rng: np.random.Generator, seed: int) -> tuple[Estimate, float]:
    """Three seeds that win and lose the same few of 200 images, as an export and its source do."""
    right, reference = (np.tile(who, (3, 1)) for who in _table(rng, 0.01, 0.02, 200))
    return accuracy_difference(right, reference, margin=-0.01, seed=seed, resamples=RESAMPLES), -0.01


def _seeds(rng: np.random.Generator, seed: int, seeds: int) -> tuple[Estimate, float]:
    # each network has its own luck, each image its own difficulty for either candidate
    images, truth = 200, 0.03
    difficulty, taste = rng.uniform(-0.08, 0.08, (2, images))
    luck, other_luck = rng.uniform(-0.02, 0.02, (2, seeds, 1))
    right = rng.random((seeds, images)) < 0.8 + truth + difficulty + taste + luck
    reference = rng.random((seeds, images)) < 0.8 + difficulty + other_luck
    return accuracy_difference(right, reference, margin=truth, seed=seed, resamples=RESAMPLES), truth


def simulate_seeds(rng: np.random.Generator, seed: int) -> tuple[Estimate, float]:
    """Five seeds on the same 200 images: the hierarchical bootstrap."""
    return _seeds(rng, seed, 5)


def simulate_three_seeds(rng: np.random.Generator, seed: int) -> tuple[Estimate, float]:
    """The same with three seeds."""
    return _seeds(rng, seed, 3)


def simulate_agreement(rng: np.random.Generator, seed: int) -> tuple[Estimate, float]:
    """One seed, 10,000 images, of which 98 % agree on average."""
    own = np.zeros(10_000, dtype=np.int64)
    return agreement_share(own, (rng.random(10_000) < 0.02).astype(np.int64), share=0.98), 0.98


def simulate_agreement_over_seeds(rng: np.random.Generator, seed: int) -> tuple[Estimate, float]:
    """Five seeds, 200 images, of which 98 % agree on average."""
    own = np.zeros((5, 200), dtype=np.int64)
    other = (rng.random((5, 200)) < 0.02).astype(np.int64)
    return agreement_share(own, other, share=0.98, seed=seed, resamples=RESAMPLES), 0.98


def simulate_speed(rng: np.random.Generator, seed: int) -> tuple[Estimate, float]:
    """40 rounds, each disturbed as a whole by far more than what sets the two apart."""
    disturbance = rng.normal(0, 0.3, 40)
    reference = np.exp(disturbance + rng.normal(math.log(1.5), 0.05, 40))
    candidate = np.exp(disturbance + rng.normal(0, 0.05, 40))
    return speed_ratio(candidate, reference, factor=1.5, seed=seed, resamples=RESAMPLES), 1.5


def simulate_speed_over_seeds(rng: np.random.Generator, seed: int) -> tuple[Estimate, float]:
    """Five seeds, whose networks are not equally fast, 20 rounds each."""
    luck = rng.normal(math.log(1.5), 0.03, (5, 1))
    reference = np.exp(luck + rng.normal(0, 0.05, (5, 20)))
    candidate = np.exp(rng.normal(0, 0.05, (5, 20)))
    return speed_ratio(candidate, reference, factor=1.5, seed=seed), 1.5


# ------------------------------------------------------------------------- metrics in which every class counts alike

SIZES = (400, 259, 168, 109, 70, 45, 29, 19, 12, 8)  # images of ten classes: each has 0.65 of the one before
FEW_SIZES = (100, 50, 20, 10, 5)
LARGE_SIZES = (2000, 1000, 500, 250, 125)
# shares of images that both, the candidate alone, the reference alone and neither have right
Cells = tuple[float, float, float, float]


def _by_class(
    rng: np.random.Generator, sizes: Sequence[int], cells: Sequence[Cells], seeds: int = 1, luck: float = 0.0
) -> tuple[NDArray[np.int64], ...]:
    """(candidate's answers, reference's answers, labels) with these shares in each class.

    What is wrong is half of the time the next class, half of the time the first, and the same for both where both are
    wrong. Over seeds each image keeps half of its luck, and each network of a seed is ``luck`` better or worse in all
    classes alike, by one standard deviation.
    """
    labels = np.repeat(np.arange(len(sizes)), sizes)
    shares = np.cumsum(np.array(cells), axis=1)[labels]
    hard = rng.random(labels.size)
    mine, theirs = np.empty((2, seeds, labels.size), dtype=np.int64)
    for seed in range(seeds):
        again = np.where(rng.random(labels.size) < 0.5, hard, rng.random(labels.size))
        which = (again[:, None] > shares[:, :3]).sum(axis=1)
        right = np.isin(which, (0, 1)), np.isin(which, (0, 2))
        wrong = np.where(rng.random(labels.size) < 0.5, (labels + 1) % len(sizes), np.where(labels == 0, 1, 0))
        for answers, ok in ((mine, right[0]), (theirs, right[1])):
            lost = rng.random(labels.size) < abs(shift := luck * rng.standard_normal())
            answers[seed] = np.where(np.where(lost, shift > 0, ok), labels, wrong)
    return (mine, theirs, labels) if seeds > 1 else (mine[0], theirs[0], labels)


def _score(metric: str, sizes: Sequence[int], cells: Sequence[Cells]) -> float:
    """The true difference: of the tables of answers that are expected."""
    classes, tables = len(sizes), []
    for own in (1, 2):
        table = np.zeros((classes, classes))
        for k, (size, shares) in enumerate(zip(sizes, cells, strict=True)):
            right = shares[0] + shares[own]
            table[k, k] += size * right
            table[k, (k + 1) % classes] += size * (1 - right) / 2
            table[k, 1 if k == 0 else 0] += size * (1 - right) / 2
        tables.append(score(metric, table))
    return tables[0] - tables[1]


_OF_CLASSES: dict[str, Any] = {
    "balanced_accuracy": balanced_accuracy_difference,
    "macro_f1": macro_f1_difference,
    "worst_class": worst_class_difference,
}


def _simulate(
    metric: str, sizes: Sequence[int], cells: Sequence[Cells], seeds: int = 1, luck: float = 0.0
) -> Simulation:
    truth = _score(metric, sizes, cells)

    def simulate(rng: np.random.Generator, seed: int) -> tuple[Estimate, float]:
        answers = _by_class(rng, sizes, cells, seeds, luck)
        drawn = {} if metric == "worst_class" else {"seed": seed, "resamples": RESAMPLES}
        return _OF_CLASSES[metric](*answers, margin=truth, **drawn), truth

    return simulate


_LIKE: Cells = (0.75, 0.06, 0.05, 0.14)  # one point better in every class
_EXPORT: Cells = (0.90, 0.01, 0.02, 0.07)  # hardly ever different, and a little worse
_EQUAL: Cells = (0.72, 0.08, 0.08, 0.12)
_GOOD: Cells = (0.88, 0.04, 0.04, 0.04)
_BAD: Cells = (0.50, 0.08, 0.10, 0.32)
CLASS_SIMULATIONS: dict[str, Simulation] = {
    "balanced_accuracy": _simulate("balanced_accuracy", SIZES, [_LIKE] * 10),
    "balanced_accuracy_many_images": _simulate("balanced_accuracy", LARGE_SIZES, [_LIKE] * 5),
    "balanced_accuracy_few_differences": _simulate("balanced_accuracy", FEW_SIZES, [_EXPORT] * 5),
    "balanced_accuracy_three_seeds": _simulate("balanced_accuracy", SIZES, [_LIKE] * 10, 3, 0.02),
    "balanced_accuracy_few_images_three_seeds": _simulate("balanced_accuracy", FEW_SIZES, [_LIKE] * 5, 3, 0.02),
    "macro_f1": _simulate("macro_f1", SIZES, [_LIKE] * 10),
    "macro_f1_many_images": _simulate("macro_f1", LARGE_SIZES, [_LIKE] * 5),
    "macro_f1_few_differences": _simulate("macro_f1", FEW_SIZES, [_EXPORT] * 5),
    "macro_f1_three_seeds": _simulate("macro_f1", SIZES, [_LIKE] * 10, 3, 0.02),
    "worst_class_all_alike": _simulate("worst_class", [60] * 10, [_EQUAL] * 10),
    "worst_class_all_alike_few_images": _simulate("worst_class", [8] * 10, [_EQUAL] * 10),
    "worst_class_one": _simulate("worst_class", SIZES, [_GOOD] * 7 + [_BAD] + [_GOOD] * 2),
    "worst_class_one_many_images": _simulate("worst_class", [600] * 5, [_BAD] + [_GOOD] * 4),
    "worst_class_smallest": _simulate("worst_class", SIZES, [_GOOD] * 9 + [_BAD]),
    "worst_class_of_each": _simulate(
        "worst_class", [60] * 5, [(0.50, 0.05, 0.30, 0.15), (0.50, 0.30, 0.05, 0.15), *[_GOOD] * 3]
    ),
    "worst_class_one_against_all": _simulate(
        "worst_class", [60] * 10, [(0.64, 0.16, 0.16, 0.04), *[(0.76, 0.19, 0.04, 0.01)] * 9]
    ),
    "worst_class_all_alike_three_seeds": _simulate("worst_class", [60] * 10, [_EQUAL] * 10, 3, 0.02),
    "worst_class_one_many_images_three_seeds": _simulate("worst_class", [600] * 5, [_BAD] + [_GOOD] * 4, 3, 0.02),
    "worst_class_one_three_seeds": _simulate("worst_class", SIZES, [_GOOD] * 7 + [_BAD] + [_GOOD] * 2, 3, 0.02),
}


SIMULATIONS: dict[str, Simulation] = {
    "accuracy": simulate_accuracy,
    "equal_accuracy": simulate_equal_accuracy,
    "few_differences": simulate_few_differences,
    "hardly_any_difference": simulate_hardly_any_difference,
    "seeds": simulate_seeds,
    "three_seeds": simulate_three_seeds,
    "few_differences_over_seeds": simulate_few_differences_over_seeds,
    "agreement": simulate_agreement,
    "agreement_over_seeds": simulate_agreement_over_seeds,
    "speed": simulate_speed,
    "speed_over_seeds": simulate_speed_over_seeds,
}
AT_LEAST = ("hardly_any_difference",)


def run(simulate: Simulation, comparisons: int, seed: int = 20) -> tuple[float, float]:
    """(share of intervals that cover the truth, share of comparisons in which "more than the truth" is proven)."""
    rng = np.random.default_rng(seed)
    covered = proven = 0
    for number in range(comparisons):
        estimate, truth = simulate(rng, number)
        covered += estimate.low <= truth <= estimate.high
        proven += estimate.p_value is not None and estimate.p_value <= 0.05 and estimate.effect > truth
    return covered / comparisons, proven / comparisons


def holds(kind: str, covered: float, proven: float) -> bool:
    """Whether intervals and tests of `kind` keep their word."""
    most = 1.0 if kind in AT_LEAST or kind in CLASS_SIMULATIONS else COVERAGE[1]
    return COVERAGE[0] <= covered <= most and proven <= FALSE_PROVEN


FAMILY = (
    "a beats b on accuracy",
    "c is within 1 points of d on accuracy",
    "e agrees with f on 98 % of images",
    "g is faster than h at batch 1",
)


def run_family(comparisons: int, seed: int = 20) -> float:
    """The share of runs in which any of `FAMILY` is proven, though all are false by as little as can be: after Holm."""
    rng = np.random.default_rng(seed)
    claims = parse_claims(FAMILY)
    any_proven = 0
    gc.collect()
    gc.freeze()  # statsmodels collects garbage in each correction; what is older than this loop is then left out of it
    for number in range(comparisons):
        a, b = _table(rng, 0.05, 0.05)
        c, d = _table(rng, 0.03, 0.04)
        differ = (rng.random(1000) < 0.02).astype(np.int64)
        g, h = np.exp(rng.normal(0, 0.05, (2, 40)))
        evidence = Evidence(
            right={"a": a, "b": b, "c": c, "d": d},
            predictions={"e": np.zeros(1000, dtype=np.int64), "f": differ},
            sizes={},
            latency_ms={("pytorch", 1): {"g": g, "h": h}},
        )
        verdicts = judge(claims, evidence, seed=number, resamples=RESAMPLES)
        any_proven += any(verdict.outcome == "proven" for verdict in verdicts)
    gc.unfreeze()
    return any_proven / comparisons


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.intervals", description=__doc__.splitlines()[0])
    parser.add_argument("--comparisons", type=int, default=2000, help="of each kind")
    parser.add_argument("--only", choices=[*SIMULATIONS, *CLASS_SIMULATIONS, "family", "classes"], help="one kind")
    parser.add_argument("--check", action="store_true", help="exit with 1 where one breaks its word")
    given = parser.parse_args(arguments)
    broken = False
    print("| simulation | intervals that cover the truth | false claims proven | |\n|---|---:|---:|---|")
    kinds = CLASS_SIMULATIONS if given.only == "classes" else {**SIMULATIONS, **CLASS_SIMULATIONS}
    for name, simulate in kinds.items():
        if given.only in (None, name, "classes"):
            covered, proven = run(simulate, given.comparisons)
            right = holds(name, covered, proven)
            broken |= not right
            print(f"| {name} | {covered:.1%} | {proven:.1%} | {'' if right else '**broken**'} |", flush=True)
    if given.only in (None, "family"):
        proven = run_family(given.comparisons)
        broken |= proven > FALSE_PROVEN
        print(f"| family | | {proven:.1%} | {'' if proven <= FALSE_PROVEN else '**broken**'} |")
    return 1 if given.check and broken else 0


if __name__ == "__main__":
    sys.exit(main())
