"""Do the intervals and tests of claims keep their word? Simulated comparisons whose truth is known.

    python -m benchmarks.intervals                       # 2,000 comparisons of each kind, a table
    python -m benchmarks.intervals --comparisons 500 --only speed
    python -m benchmarks.intervals --check               # exit code 1 where one breaks its word

95 % intervals have to cover the truth in 93 to 97 % of comparisons; a claim that is false by as little as can be may
be proven in 5 % at most (two-sided tests: some 2.5 % is what to expect). Where two candidates differ on no more than
two images or so, coverage comes in steps: there, and only there, intervals may cover more (`AT_LEAST`).
"""

from __future__ import annotations

import argparse
import gc
import math
import sys
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from thinner.statistics import (
    Estimate,
    Evidence,
    accuracy_difference,
    agreement_share,
    judge,
    parse_claims,
    speed_ratio,
)

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
    most = 1.0 if kind in AT_LEAST else COVERAGE[1]
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
    parser.add_argument("--only", choices=[*SIMULATIONS, "family"], help="one kind")
    parser.add_argument("--check", action="store_true", help="exit with 1 where one breaks its word")
    given = parser.parse_args(arguments)
    broken = False
    print("| simulation | intervals that cover the truth | false claims proven | |\n|---|---:|---:|---|")
    for name, simulate in SIMULATIONS.items():
        if given.only in (None, name):
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
