"""thinner.evidence.statistics: the grammar, published worked examples, coverage by simulation, verdicts."""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from benchmarks import intervals
from benchmarks.intervals import paired
from thinner.errors import UserError
from thinner.evidence import statistics
from thinner.evidence.statistics import (
    Claim,
    ClaimError,
    Evidence,
    accuracy_difference,
    agreement_share,
    judge,
    mcnemar_exact,
    parse_claim,
    parse_claims,
    score_difference,
    speed_ratio,
)

CANDIDATES = ["finetune", "scratch", "distill", "prune", "prune_onnx_int8"]


# --------------------------------------------------------------------------------------------------- grammar


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("distill beats scratch on accuracy", ("beats", "distill", "scratch", 0.0, "accuracy", None, None)),
        (
            "distill beats scratch on accuracy by 3.0 points",
            ("beats", "distill", "scratch", 0.03, "accuracy", None, None),
        ),
        (
            "prune is within 1.0 points of distill on accuracy",
            ("within", "prune", "distill", 0.01, "accuracy", None, None),
        ),
        (
            "prune is faster than distill at batch 64 in onnxruntime",
            ("faster", "prune", "distill", 1.0, "latency", 64, "onnxruntime"),
        ),
        (
            "prune is faster than distill by 1.5x at batch 1",
            ("faster", "prune", "distill", 1.5, "latency", 1, "pytorch"),
        ),
        (
            "prune is smaller than finetune by 50x in parameters",
            ("smaller", "prune", "finetune", 50.0, "parameters", None, None),
        ),
        ("prune is smaller than distill in bytes", ("smaller", "prune", "distill", 1.0, "bytes", None, None)),
        ("prune has at most 50 % of the MACs of distill", ("at_most", "prune", "distill", 0.5, "macs", None, None)),
        (
            "prune has at most 60% of the milliseconds of distill at batch 1 in onnxruntime",
            ("at_most", "prune", "distill", 0.6, "latency", 1, "onnxruntime"),
        ),
        (
            "prune_onnx_int8 agrees with prune on 98 % of images",
            ("agrees", "prune_onnx_int8", "prune", 0.98, "agreement", None, None),
        ),
    ],
)
def test_each_kind_of_claim_is_understood(text: str, expected: tuple[object, ...]) -> None:
    c = parse_claim(text, CANDIDATES)
    assert c.text == text
    assert (c.kind, c.candidate, c.reference, c.amount, c.metric, c.batch, c.runtime) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "prune answers 80 % of images with at least 95.5 % accuracy",
            Claim("", "answers", "prune", "prune", 0.8, "accuracy", at_least=0.955),
        ),
        (
            "prune is faster than distill by 2x at batch 1 on raspberry-pi",
            Claim("", "faster", "prune", "distill", 2.0, "latency", 1, "onnxruntime", "raspberry-pi"),
        ),
        (
            "prune has at most 60 % of the milliseconds of distill at batch 8",
            Claim("", "at_most", "prune", "distill", 0.6, "latency", 8, "pytorch", None),
        ),
        (
            "prune beats distill on macro_f1 by 1 point",
            Claim("", "beats", "prune", "distill", 0.01, "macro_f1"),
        ),
        (
            "prune is within 2 points of distill on worst_class",
            Claim("", "within", "prune", "distill", 0.02, "worst_class"),
        ),
    ],
)
def test_all_that_a_claim_says_is_understood(text: str, expected: Claim) -> None:
    assert parse_claim(text) == dataclasses.replace(expected, text=text)


@pytest.mark.parametrize(
    ("text", "word", "message"),
    [
        ("distill beat scratch on accuracy", "beat", "expected one of: agrees, answers, beats, has, is"),
        ("prune is quicker than distill", "quicker", "expected one of: faster, smaller, within"),
        ("distill beats scratch on accurcy by 3 points", "accurcy", "expected one of: accuracy, balanced_accuracy"),
        ("distill beats scratch on accuracy by x points", "x points", "expected a number"),
        ("distill beats scratch on accuracy by 3 percent", "percent", "expected points"),
        (
            "distill beats scratch on accuracy please",
            "please",
            "expected one of: by, the end of the sentence",
        ),
        (
            "prune is faster than distill at batch 64 in tensorrt",
            "tensorrt",
            "unknown runtime. Choose one of: pytorch, onnxruntime",
        ),
        ("prune is faster than distill at batch 64 in 3", "3", "expected the name of a runtime"),
        ("prune is smaller than distill in size", "size", "expected one of: parameters, macs, bytes"),
        ("?? beats distill", "??", "expected the name of a candidate"),
        (
            "prune beats distil on accuracy",
            "distil",
            r"unknown candidate. Did you mean 'distill'? Choose one of: ",
        ),
        ("prune beats prune on accuracy", "prune on", "a candidate cannot be compared with itself"),
        ("prune is within 0 points of distill on accuracy", "0", "a margin above 0 is needed"),
        (
            "prune agrees with distill on 100 % of images",
            "100",
            "a share above 0 % and below 100 % is needed",
        ),
        ("prune is smaller than distill by 0.5x in macs", "0.5", "a factor of 1 or more is needed"),
        (
            "prune is faster than distill at batch 1.5",
            "1.5",
            "a whole number of images, 1 or more, is needed",
        ),
        ("prune is faster than distill by 1.5x at batch 0", "0", "a whole number of images, 1 or more, is needed"),
        ("prune is faster than distill by 0.9x at batch 1", "0.9", "a factor of 1 or more is needed"),
        ("prune has at most 0 % of the macs of distill", "0", "a share above 0 % is needed"),
        ("prune agrees with distill on 0 % of images", "0", "a share above 0 % and below 100 % is needed"),
        (
            "prune answers 80 % of images with at least 90 % macro_f1",
            "macro_f1",
            "expected accuracy: operating points are fitted for it alone",
        ),
        ("prune answers 100 % of images with at least 9 % accuracy", "100", "a share above 0 % and below 100 %"),
        ("prune answers 80 % of images with at least 0 % accuracy", "0 % acc", "a share above 0 % and below 100 %"),
    ],
)
def test_a_mistake_is_pointed_at_by_word_with_the_choices(text: str, word: str, message: str) -> None:
    with pytest.raises(ClaimError) as caught:
        parse_claim(text, CANDIDATES, ["pytorch", "onnxruntime"])
    sentence, pointer = str(caught.value).split("\n")
    assert sentence == text
    assert text[pointer.index("^") :].startswith(word)
    assert message in pointer


def test_an_unfinished_sentence_is_pointed_at_its_end() -> None:
    with pytest.raises(ClaimError) as caught:
        parse_claim("prune is ")
    assert str(caught.value).split("\n")[1] == "        ^ expected one of: faster, smaller, within"


def test_all_mistakes_are_shown_together_and_are_errors_of_the_user() -> None:
    with pytest.raises(UserError, match=r"(?s)distill beat scratch.*\^.*prune is quick.*\^"):
        parse_claims(["distill beat scratch", "prune beats distill on accuracy", "prune is quick"])


# --------------------------------------------------------------------------------- published worked examples


def test_mcnemar_on_agrestis_approval_ratings() -> None:
    # Agresti, Categorical Data Analysis (2002), table 10.1: of 1600 people asked twice, 794 approved both
    # times, 150 only the first and 86 only the second time. z^2 = 17.36; the interval there is (-0.06,
    # -0.02). Exact p from the definition: 2 * sum_{k <= 86} C(236, k) / 2^236.
    exact = 2 * sum(math.comb(236, k) for k in range(87)) / 2**236
    second, first = paired(794, 86, 150, 570)
    estimate = accuracy_difference(second, first)
    assert estimate.p_value == pytest.approx(exact, rel=1e-9)
    assert estimate.effect == -0.04
    assert (round(estimate.low, 2), round(estimate.high, 2)) == (-0.06, -0.02)
    assert estimate.count == 1600
    # Wald's interval from the book's formula: d +- 1.96 sqrt(b + c - (b - c)^2 / n) / n
    half = 1.96 * math.sqrt(236 - 64**2 / 1600) / 1600
    assert (estimate.low, estimate.high) == pytest.approx((-0.04 - half, -0.04 + half), abs=6e-4)


def test_mcnemar_agrees_with_rs_binomial_test_of_a_cabinets_approval() -> None:
    # Aoki, http://aoki2.si.gunma-u.ac.jp/lecture/Hiritu/McNemar-test-r.html: table 48 28 / 35 53, binom.test:
    # 0.45
    assert mcnemar_exact(28, 35) == pytest.approx(0.45, abs=5e-4)


def test_mcnemar_by_hand_for_small_counts() -> None:
    assert mcnemar_exact(0, 5) == pytest.approx(2 / 32)
    assert mcnemar_exact(1, 5) == pytest.approx(2 * (1 + 6) / 64)
    assert mcnemar_exact(3, 3) == 1.0
    assert mcnemar_exact(0, 0) == 1.0


def test_holm_by_hand_on_the_four_p_values_of_wikipedias_example() -> None:
    # https://en.wikipedia.org/wiki/Holm-Bonferroni_method: 0.01, 0.04, 0.03, 0.005, of which the first and the last
    # are rejected at 0.05. Sorted: 4 x 0.005, 3 x 0.01, 2 x 0.03, and the greater of that and 1 x 0.04
    adjusted = statistics.holm([0.01, 0.04, 0.03, 0.005])
    assert adjusted == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([]) == []


@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_holm_is_statsmodels_to_the_last_bit_ties_and_ones_included(count: int) -> None:
    drawn = np.random.default_rng(count).choice([0.0, 1e-9, 0.003, 0.004, 0.02, 0.3, 1.0], count)
    assert statistics.holm(drawn.tolist()) == multipletests(drawn, method="holm")[1].tolist()


def test_agreement_interval_is_clopper_and_pearsons() -> None:
    # 98 of 100: limits from the beta quantiles of the definition
    same = np.zeros(100, dtype=np.int64)
    other = same.copy()
    other[:2] = 1
    estimate = agreement_share(same, other, share=0.9)
    low, high = stats.beta.ppf(0.025, 98, 3), stats.beta.ppf(0.975, 99, 2)
    assert (estimate.effect, estimate.low, estimate.high) == pytest.approx((0.98, low, high))
    # twice the binomial tail P(X >= 98) at 0.9
    tail = sum(math.comb(100, k) * 0.9**k * 0.1 ** (100 - k) for k in range(98, 101))
    assert estimate.p_value == pytest.approx(2 * tail)


def test_the_bootstrap_of_tables_is_the_bootstrap_of_images() -> None:
    rng = np.random.default_rng(5)
    candidate, reference = paired(700, 60, 30, 210)
    estimate = accuracy_difference(candidate, reference)
    differences = candidate.astype(float) - reference
    # two images are added to the table, one each way
    plain = stats.bootstrap((differences,), np.mean, method="percentile", n_resamples=9999, rng=rng)
    assert estimate.low == pytest.approx(plain.confidence_interval.low, abs=1.5e-3)
    assert estimate.high == pytest.approx(plain.confidence_interval.high, abs=1.5e-3)


def test_the_score_test_on_tangos_contact_lenses() -> None:
    # Tango 1998, section 6.1: 44 patients, one for whom the standard alone was effective, margin 0.1. Printed there:
    # Z = 1.709, one-sided p = 0.044, lower limit of the 90 % interval -0.096.
    _, _, p_value = score_difference(0, 1, 44, -0.1)
    assert stats.norm.isf(p_value / 2) == pytest.approx(1.709, abs=5e-4)
    assert p_value / 2 == pytest.approx(0.044, abs=5e-4)
    assert score_difference(0, 1, 44, -0.0955)[2] > 0.1 > score_difference(0, 1, 44, -0.0965)[2]
    candidate, reference = paired(43, 0, 1, 0)
    assert accuracy_difference(candidate, reference, margin=-0.1).p_value == p_value


def test_the_score_interval_is_that_of_rs_propcis() -> None:
    # scoreci.mp(25, 28, 618, conf.level = 0.90) is [-0.0148, 0.0247]: its first count is the one that is taken off
    for limit in (-0.0148, 0.0247):
        assert score_difference(28, 25, 618, limit)[2] == pytest.approx(0.1, abs=2e-3)


@pytest.mark.parametrize(
    ("ahead", "behind", "images"), [(60, 30, 1000), (0, 0, 200), (0, 5, 5), (5, 0, 5), (1, 0, 44), (0, 0, 1)]
)
def test_the_score_interval_holds_what_is_not_rejected(ahead: int, behind: int, images: int) -> None:
    low, high, _ = score_difference(ahead, behind, images, 0.0)
    assert -1 <= low <= (ahead - behind) / images <= high <= 1
    for limit in (low, high):
        if abs(limit) < 1:
            assert score_difference(ahead, behind, images, limit)[2] == pytest.approx(0.05, abs=1e-6)
    mirrored = score_difference(behind, ahead, images, 0.0)
    assert mirrored[:2] == pytest.approx((-high, -low), abs=1e-9)


def test_without_a_margin_the_score_test_is_mcnemars_without_correction() -> None:
    statistic = mcnemar([[0, 40], [20, 0]], exact=False, correction=False)
    assert score_difference(40, 20, 160, 0.0)[2] == pytest.approx(float(statistic.pvalue))


def test_the_studentised_bootstrap_on_efron_and_tibshiranis_mice(monkeypatch: pytest.MonkeyPatch) -> None:
    # An Introduction to the Bootstrap (1993), sections 2.1 and 12.5: survival of the nine mice of the control group, in
    # days. Mean 56.22; the bootstrap-t interval at 90 % is given there as [35.82, 116.74], of 1,000 draws.
    days = np.array([52, 104, 146, 10, 51, 30, 40, 27, 46])
    monkeypatch.setattr(statistics, "FEWEST_ROUNDS", 9)
    for limit in (35.82, 116.74):
        estimate = speed_ratio(np.ones(9), np.exp(days / 100), factor=math.exp(limit / 100))
        assert 100 * math.log(estimate.effect) == pytest.approx(56.22, abs=0.005)
        assert estimate.p_value == pytest.approx(0.10, abs=0.02)


def test_speed_is_close_to_students_interval_for_regular_times() -> None:
    rng = np.random.default_rng(1)
    candidate, reference = np.exp(rng.normal(0, 0.1, 60)), np.exp(rng.normal(math.log(2), 0.1, 60))
    estimate = speed_ratio(candidate, reference, factor=1.9)
    logs = np.log(reference / candidate)
    expected = stats.ttest_1samp(logs, math.log(1.9))
    interval = np.exp(expected.confidence_interval(0.95))
    assert estimate.effect == pytest.approx(np.exp(logs.mean()))
    assert (estimate.low, estimate.high) == pytest.approx(tuple(interval), rel=5e-3)
    assert estimate.p_value == pytest.approx(expected.pvalue, abs=0.02)


# ----------------------------------------------------------------------------------- coverage, by simulation


@pytest.mark.parametrize("kind", intervals.SIMULATIONS)
@pytest.mark.integration
def test_intervals_cover_the_truth_and_false_claims_are_rarely_proven(kind: str) -> None:
    covered, proven = intervals.run(intervals.SIMULATIONS[kind], comparisons=2000)
    assert intervals.holds(kind, covered, proven), (covered, proven)


def test_what_a_simulation_has_to_show() -> None:
    assert intervals.holds("accuracy", 0.93, 0.05)
    assert not intervals.holds("accuracy", 0.929, 0.03)
    assert not intervals.holds("accuracy", 0.98, 0.03)
    assert not intervals.holds("accuracy", 0.95, 0.051)
    assert intervals.holds("hardly_any_difference", 0.98, 0.0)
    assert not intervals.holds("hardly_any_difference", 0.92, 0.0)


@pytest.mark.integration
def test_of_several_false_claims_together_hardly_any_is_proven() -> None:
    assert intervals.run_family(comparisons=2000) <= 0.05


def test_the_simulation_finds_intervals_that_are_too_short() -> None:
    def too_short(rng: np.random.Generator, seed: int) -> tuple[statistics.Estimate, float]:
        estimate, truth = intervals.simulate_accuracy(rng, seed)
        narrow = [estimate.effect + 0.7 * (limit - estimate.effect) for limit in (estimate.low, estimate.high)]
        return dataclasses.replace(estimate, low=narrow[0], high=narrow[1], p_value=0.0), truth

    covered, proven = intervals.run(too_short, comparisons=300)
    assert covered < 0.93
    assert proven > 0.3


def test_the_command_says_which_one_breaks_its_word(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert intervals.main(["--comparisons", "20", "--only", "agreement"]) == 0
    monkeypatch.setattr(intervals, "COVERAGE", (1.1, 1.2))
    assert intervals.main(["--comparisons", "20", "--only", "agreement", "--check"]) == 1
    assert "**broken**" in capsys.readouterr().out


# -------------------------------------------------------------------------------------------- laws and edges


def test_swapping_the_two_mirrors_the_estimate() -> None:
    a, b = paired(700, 60, 30, 210)
    one, other = accuracy_difference(a, b), accuracy_difference(b, a)
    assert other.effect == -one.effect
    assert other.p_value == one.p_value
    assert (other.low, other.high) == pytest.approx((-one.high, -one.low), abs=1e-3)


def test_two_that_never_differ_are_not_known_to_be_equal_from_few_images() -> None:
    few, many = np.ones(20, dtype=bool), np.ones(10_000, dtype=bool)
    assert accuracy_difference(few, few, margin=-0.01).p_value > 0.05
    assert accuracy_difference(many, many, margin=-0.01).p_value < 0.001
    two_hundred = np.ones(200, dtype=bool)
    assert accuracy_difference(two_hundred, two_hundred, margin=-0.01).p_value > 0.15
    for images in (20, 200):
        seeds = np.ones((3, images), dtype=bool)
        assert accuracy_difference(seeds, seeds, margin=-0.01).p_value > 0.05


def test_one_seed_as_a_row_is_the_same_as_one_seed() -> None:
    a, b = paired(700, 60, 30, 210)
    assert accuracy_difference(a[None], b[None]) == accuracy_difference(a, b)


def test_variance_between_seeds_widens_the_interval() -> None:
    rng = np.random.default_rng(2)
    reference = rng.random((5, 2000)) < 0.8
    steady = rng.random((5, 2000)) < 0.85
    unsteady = rng.random((5, 2000)) < np.array([0.78, 0.92, 0.80, 0.90, 0.85])[:, None]
    narrow, wide = accuracy_difference(steady, reference), accuracy_difference(unsteady, reference)
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)
    assert (narrow.seeds, narrow.count) == (5, 2000)


def test_an_interval_over_seeds_ends_where_shares_end() -> None:
    labels = np.zeros((2, 50), dtype=np.int64)
    other = labels.copy()
    other[0, :10] = 1  # the seeds agree on 80 % and on all: t with one degree of freedom reaches far
    found = agreement_share(other, labels, share=0.5)
    assert found.effect == 0.9
    assert (found.low, found.high) == (0.0, 1.0)


def test_an_estimate_depends_on_its_seed_alone() -> None:
    a, b = paired(700, 60, 30, 210)
    assert accuracy_difference(a, b, seed=7) == accuracy_difference(a, b, seed=7)
    assert len({accuracy_difference(a, b, seed=seed) for seed in range(10)}) > 1


def test_all_that_an_estimate_says() -> None:
    ones, five = np.ones(20), np.ones(5, dtype=np.int64)
    nothing = "no spread between {}: nothing can be tested"
    assert speed_ratio(ones, 2 * ones) == statistics.Estimate(2.0, 2.0, 2.0, 1.0, 20, 1, nothing.format("rounds"))
    seeds = speed_ratio(np.ones((2, 20)), 2 * np.ones((2, 20)))
    assert (seeds.low, seeds.high) == (seeds.effect, seeds.effect) == pytest.approx((2, 2))
    assert dataclasses.astuple(seeds)[3:] == (1.0, 20, 2, nothing.format("seeds"))
    times = np.exp(np.random.default_rng(0).normal(0, 0.1, (2, 30)))
    assert dataclasses.astuple(speed_ratio(times[0], times[1]))[4:] == (30, 1, "studentised bootstrap")
    assert dataclasses.astuple(speed_ratio(times, np.ones((2, 30))))[4:] == (30, 2, "t over seeds")
    assert dataclasses.astuple(agreement_share(five, five, share=0.5))[4:] == (5, 1, "exact binomial")
    assert dataclasses.astuple(accuracy_difference(five > 0, five > 1))[4:] == (5, 1, "McNemar exact, paired bootstrap")


def test_all_claims_are_read_with_the_names_that_there_are() -> None:
    with pytest.raises(ClaimError, match="(?s)unknown candidate.*unknown runtime"):
        parse_claims(["a beats c on accuracy", "a is faster than b at batch 1 in x"], ["a", "b"], ["pytorch"])


def test_times_without_any_spread_prove_nothing_and_ties_stay_finite() -> None:
    ones = np.ones(20)
    assert speed_ratio(ones, 2 * ones).p_value == 1.0
    tied = ones.copy()
    tied[0] = 1.5
    seeds = speed_ratio(np.ones((2, 20)), 2 * np.ones((2, 20)))
    assert (seeds.p_value, seeds.seeds, seeds.count) == (1.0, 2, 20)
    estimate = speed_ratio(tied, 2 * ones)
    assert 0 < estimate.low < estimate.effect < estimate.high < math.inf


@pytest.mark.parametrize(
    ("candidate", "reference", "message"),
    [
        (np.ones(9), np.ones(9), "10 or more: there are 9 and 9"),
        (np.ones(12), np.ones(11), "there are 12 and 11"),
        (np.zeros(12), np.ones(12), "positive times"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_times_that_cannot_be_compared_are_refused(
    candidate: NDArray[np.float64], reference: NDArray[np.float64], message: str
) -> None:
    with pytest.raises(ClaimError, match=message):
        speed_ratio(candidate, reference)


@pytest.mark.usefixtures("unchecked")
def test_predictions_that_cannot_be_paired_are_refused() -> None:
    with pytest.raises(ClaimError, match=r"there are \(3,\) and \(4,\)"):
        accuracy_difference(np.ones(3, dtype=bool), np.ones(4, dtype=bool))
    with pytest.raises(ClaimError, match="at least one"):
        agreement_share(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), share=0.9)


# --------------------------------------------------------------------------------------------- several seeds


def test_speed_over_seeds_is_students_t_of_the_seeds_means() -> None:
    rng = np.random.default_rng(3)
    candidate = np.exp(rng.normal(0, 0.05, (4, 20)))
    reference = np.exp(rng.normal(0.4, 0.05, (4, 20)) + rng.normal(0, 0.1, (4, 1)))
    estimate = speed_ratio(candidate, reference, factor=1.2)
    expected = stats.ttest_1samp(np.log(reference / candidate).mean(1), math.log(1.2))
    assert (estimate.low, estimate.high) == pytest.approx(tuple(np.exp(expected.confidence_interval(0.95))))
    assert estimate.p_value == pytest.approx(expected.pvalue)
    assert (estimate.count, estimate.seeds) == (20, 4)


def test_one_seed_of_times_as_a_row_is_the_same_as_one_seed() -> None:
    rng = np.random.default_rng(3)
    a, b = np.exp(rng.normal(0, 0.05, (2, 20)))
    assert speed_ratio(a[None], b[None]) == speed_ratio(a, b)


def test_runs_with_other_seeds_are_judged_together() -> None:
    one, rng = evidence(), np.random.default_rng(1)
    other = dataclasses.replace(
        one,
        right={name: right ^ (rng.random(10_000) < 0.01) for name, right in one.right.items()},
        sizes={**one.sizes, "prune": {"parameters": 68_000, "macs": 1_800_000, "bytes": 150_000}},
        latency_ms={
            k: {n: t * np.exp(rng.normal(0, 0.01, t.size)) for n, t in times.items()}
            for k, times in one.latency_ms.items()
        },
    )
    both = statistics.over_seeds([one, other])
    claims = parse_claims(
        [
            "distill beats scratch on accuracy",
            "prune is smaller than finetune by 50x in parameters",
            "prune is smaller than finetune by 60x in parameters",
            "prune is faster than distill at batch 64 in onnxruntime",
        ]
    )
    beats, smaller, too_small, faster = judge(claims, both)
    assert beats.estimate.seeds == faster.estimate.seeds == 2
    means = [run.right["distill"].mean() - run.right["scratch"].mean() for run in (one, other)]
    assert beats.estimate.effect == pytest.approx(np.mean(means))
    # 100x with one seed, 50x with the other: what holds for both is 50x
    assert (smaller.estimate.low, smaller.estimate.effect, smaller.estimate.high) == (50.0, 50.0, 100.0)
    assert (smaller.outcome, too_small.outcome) == ("proven", "refuted")
    assert "2 seeds" in str(smaller)


def test_one_run_is_itself() -> None:
    one = evidence()
    assert statistics.over_seeds([one]) is one


def test_runs_that_measured_other_things_are_not_put_together() -> None:
    one = evidence()
    fewer = dataclasses.replace(one, right={n: r for n, r in one.right.items() if n != "prune"})
    with pytest.raises(ClaimError, match="the runs differ in their candidates: prune"):
        statistics.over_seeds([one, fewer])
    shorter = dataclasses.replace(
        one, latency_ms={k: {n: t[:20] for n, t in times.items()} for k, times in one.latency_ms.items()}
    )
    with pytest.raises(ClaimError, match=r"the number of times at batch 64 in onnxruntime: \[\(20,\), \(50,\)\]"):
        statistics.over_seeds([one, shorter])


# -------------------------------------------------------------------------------------------------- verdicts


def evidence() -> Evidence:
    rng = np.random.default_rng(0)
    images = 10_000
    labels = rng.integers(10, size=images)

    def predict(accuracy: float, luck: NDArray[np.float64]) -> NDArray[np.int64]:
        return np.where(luck < accuracy, labels, (labels + 1) % 10)

    common = rng.random(images)  # networks of one family fail on the same images
    noisy = (common + 0.02 * rng.standard_normal(images)).clip(0, 1)
    predictions = {
        "finetune": predict(0.885, common),
        "scratch": predict(0.83, rng.random(images)),
        "distill": predict(0.875, noisy),
        "prune": predict(0.8745, common),
    }
    rounds = np.exp(rng.normal(0, 0.05, (3, 50)))
    return Evidence(
        right={name: p == labels for name, p in predictions.items()},
        predictions=predictions,
        sizes={
            "finetune": {"parameters": 3_400_000, "macs": 30_000_000, "bytes": 13_600_000},
            "prune": {"parameters": 34_000, "macs": 1_800_000, "bytes": 150_000},
            "twin": {"parameters": 34_000, "macs": 1_800_000, "bytes": 150_001},
        },
        latency_ms={("onnxruntime", 64): {"distill": 5 * rounds[0], "prune": 3 * rounds[1], "twin": 3 * rounds[2]}},
    )


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("distill beats scratch on accuracy", "proven"),
        ("distill beats scratch on accuracy by 3.0 points", "proven"),
        ("distill beats scratch on accuracy by 20 points", "refuted"),
        ("scratch beats distill on accuracy", "refuted"),
        ("prune beats distill on accuracy", "not shown"),
        ("prune is within 1.0 points of distill on accuracy", "proven"),
        ("scratch is within 1.0 points of distill on accuracy", "refuted"),
        ("prune is within 0.1 points of distill on accuracy", "not shown"),
        ("prune is faster than distill at batch 64 in onnxruntime", "proven"),
        ("prune is faster than distill by 3x at batch 64 in onnxruntime", "refuted"),
        ("prune is faster than twin at batch 64 in onnxruntime", "not shown"),
        ("prune is smaller than finetune by 50x in parameters", "proven"),
        ("prune is smaller than finetune by 100x in parameters", "proven"),
        ("prune is smaller than finetune by 101x in parameters", "refuted"),
        ("finetune is smaller than prune in macs", "refuted"),
        ("prune is smaller than twin in macs", "refuted"),
        ("prune is smaller than twin in bytes", "proven"),
        ("prune has at most 1 % of the parameters of finetune", "proven"),  # exactly 1 %
        ("prune has at most 0.9 % of the parameters of finetune", "refuted"),
        ("prune has at most 6 % of the MACs of finetune", "proven"),
        ("twin has at most 100 % of the bytes of prune", "refuted"),
        ("prune has at most 75 % of the milliseconds of distill at batch 64 in onnxruntime", "proven"),
        ("prune has at most 40 % of the milliseconds of distill at batch 64 in onnxruntime", "refuted"),
        ("prune has at most 100 % of the milliseconds of twin at batch 64 in onnxruntime", "not shown"),
        ("prune agrees with finetune on 98 % of images", "proven"),
        ("prune agrees with finetune on 99.9 % of images", "refuted"),
    ],
)
def test_verdicts(text: str, outcome: str) -> None:
    (verdict,) = judge([parse_claim(text)], evidence())
    assert verdict.outcome == outcome, str(verdict)
    e = verdict.estimate
    assert e.low <= e.effect <= e.high
    if verdict.p_value is not None and outcome == "proven":
        assert verdict.p_value <= 0.05
        assert e.high < verdict.threshold if verdict.claim.kind == "at_most" else e.low > verdict.threshold


def test_more_claims_make_each_harder_to_prove_but_sizes_do_not_count() -> None:
    texts = ["distill beats scratch on accuracy", "prune is within 0.1 points of distill on accuracy"]
    size = "prune is smaller than finetune in bytes"
    alone = [judge([parse_claim(text)], evidence())[0] for text in texts]
    together = judge(parse_claims([*texts, size]), evidence())
    raw = [verdict.estimate.p_value for verdict in alone]
    assert None not in raw
    assert together[0].p_value == pytest.approx(2 * raw[0])  # the smaller of two
    assert together[1].p_value == pytest.approx(max(raw[1], 2 * raw[0]))
    assert together[2].p_value is None
    assert together[2].outcome == "proven"


def test_a_verdict_reads_as_a_sentence_with_effect_interval_p_and_counts() -> None:
    claims = [
        "distill beats scratch on accuracy by 3.0 points",
        "prune is smaller than finetune by 50x in parameters",
    ]
    beats, smaller = map(str, judge(parse_claims(claims), evidence()))
    pattern = (
        r"proven: distill beats .* by 3\.0 points: \+4\.\d\d points \[\+3\.\d\d, \+5\.\d\d\], asked \+3\.00, "
        r"p = [\de.-]+, 10000 images, 1 seed \(Tango's score test\)"
    )
    assert re.fullmatch(pattern, beats), beats
    assert smaller.endswith(": 100.00x [100.00, 100.00], asked 50.00x (exact)")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prune beats resnet on accuracy", "nothing was measured for 'resnet'; there is: finetune, scratch"),
        (
            "prune is smaller than scratch in macs",
            "nothing was measured for 'scratch'; there is: finetune, prune, twin",
        ),
        (
            "prune is faster than distill at batch 1",
            "no times at batch 1 in pytorch; measured were: batch 64 in onnxruntime",
        ),
    ],
)
def test_missing_evidence_is_named(text: str, message: str) -> None:
    with pytest.raises(ClaimError, match=re.escape(message)):
        judge([parse_claim(text)], evidence())


def tail(at_least: int, of: int, share: float) -> float:
    """P(Binomial(of, share) >= at_least), term by term."""
    return sum(math.comb(of, k) * share**k * (1 - share) ** (of - k) for k in range(at_least, of + 1))


def of_answers(answered: int, right: int, images: int = 200) -> Evidence:
    """``answered`` of the images, ``right`` of those; of the others, which do not count, all are wrong."""
    which, correct = np.arange(images) < answered, np.arange(images) < right
    none = np.zeros(images, dtype=bool)
    points = {"prune": {0.99: none, 0.9: which}}
    return Evidence(
        right={"prune": correct[None], "x": ~correct}, predictions={}, sizes={}, latency_ms={}, answered=points
    )


@pytest.mark.parametrize(
    ("answered", "right", "outcome", "count", "asked", "p_value", "words"),
    [
        # 80 % of 200 and 90 % of the answers are claimed; of two that hold it is the one that is shown less
        (180, 178, "proven", 200, 0.8, 2 * tail(180, 200, 0.8), "of images answered"),
        (190, 180, "proven", 190, 0.9, 2 * tail(180, 190, 0.9), "of answers right"),
        # and what does not hold, whatever the other does
        (100, 100, "refuted", 200, 0.8, 2 * tail(100, 200, 0.2), "of images answered"),
        (190, 100, "refuted", 190, 0.9, 2 * tail(90, 190, 0.1), "of answers right"),
        (165, 150, "not shown", 165, 0.9, 1.0, "of answers right"),
    ],
)
def test_of_what_is_answered_and_right_both_have_to_hold(
    answered: int, right: int, outcome: str, count: int, asked: float, p_value: float, words: str
) -> None:
    claim = parse_claim("prune answers 80 % of images with at least 90 % accuracy")
    (verdict,) = judge([claim], of_answers(answered, right))
    e = verdict.estimate
    assert (verdict.outcome, e.count, e.seeds, e.method) == (outcome, count, 1, f"{words}, exact binomial")
    if p_value < 1:
        assert e.p_value == pytest.approx(p_value)
    seen = answered if count == 200 else right
    assert (verdict.threshold, e.effect) == (asked, seen / count)
    limits = stats.beta.ppf([0.025, 0.975], [seen, seen + 1], [count - seen + 1, count - seen])
    assert (e.low, e.high) == pytest.approx(tuple(np.where([True, seen < count], limits, 1.0)))


def test_of_two_things_that_do_not_hold_the_one_that_is_surely_wrong_is_told() -> None:
    """129 of 159 answers are right, where 90 % were claimed, while hardly fewer are answered than claimed."""
    claim = parse_claim("prune answers 80 % of images with at least 90 % accuracy")
    (verdict,) = judge([claim], of_answers(159, 129))
    assert (verdict.outcome, verdict.threshold) == ("refuted", 0.9)
    expected = 4 * tail(30, 159, 0.1)  # two-sided, of two that were looked at
    assert 1e-4 < expected < 0.01 and verdict.p_value == pytest.approx(expected)


def test_more_is_not_proven_where_less_is_not() -> None:
    """Five images that only one of two has right: McNemar's exact p-value is 2 / 2^5, and the score test's 0.0285."""
    ahead, none = np.arange(200) < 5, np.zeros(200, dtype=bool)
    for margin in (0.0, 0.001):
        estimate = statistics.accuracy_difference(ahead, none, margin=margin)
        assert estimate.p_value == pytest.approx(0.0625)
    assert statistics.score_difference(5, 0, 200, 0.001)[2] < 0.03
    refuted = statistics.accuracy_difference(none, ahead, margin=-0.001)  # nor is less refuted
    assert refuted.p_value == pytest.approx(0.0625)
    within = statistics.accuracy_difference(ahead, none, margin=-0.02)  # "within" needs no difference
    assert within.p_value == statistics.score_difference(5, 0, 200, -0.02)[2]


@pytest.mark.parametrize("seeds", [2, 3])
def test_seeds_that_tie_by_chance_are_no_certainty(seeds: int) -> None:
    """Each disagrees on five images of 1,000, and no two on the same one."""
    one, other = np.zeros((seeds, 1000), dtype=np.int64), np.zeros((seeds, 1000), dtype=np.int64)
    for number in range(seeds):
        other[number, 5 * number : 5 * number + 5] = 1
    estimate = statistics.agreement_share(one, other, share=0.994)
    assert estimate.effect == pytest.approx(0.995)
    assert estimate.low < 0.993 and estimate.high > 0.997 and estimate.p_value > 0.05
    same = statistics.agreement_share(
        one, np.tile(other[:1], (seeds, 1)), share=0.994
    )  # the very same images: other images
    assert same.low < 0.993 < 0.996 < same.high  # alone may be others


def test_worst_classes_of_seeds_that_tie_by_chance_have_an_interval() -> None:
    labels = np.repeat([0, 1], 500)
    mine, theirs = np.tile(labels, (2, 1)), np.tile(labels, (2, 1))
    for number in range(2):
        mine[number, 5 * number : 5 * number + 5] = 1
        theirs[number, 500 + 5 * number : 505 + 5 * number] = 0
    estimate = statistics.worst_class_difference(mine, theirs, labels, margin=-0.02)
    assert estimate.low < -0.005 and estimate.high > 0.005


def test_rounds_are_counted_by_seed() -> None:
    with pytest.raises(ClaimError, match="10 or more: there are 6 and 6"):
        statistics.speed_ratio(np.ones((2, 6)), np.ones((2, 6)))


@pytest.mark.parametrize(
    ("kind", "numbers", "said"),
    [
        ("faster", (1.004, 1.0012, 1.007, 0.001, 30, 1, "m"), "1.004x [1.001, 1.007], asked 1.000x, p = 0.001"),
        (
            "at_most",
            (0.500001, 0.500001, 0.500001, None, 1, 1, "m"),
            "50.0001% [50.0001%, 50.0001%], asked at most 50.0000%",
        ),
        ("beats", (0.01, 0.0, 0.02, 0.5, 9, 1, "m"), "+1.00 points [+0.00, +2.00], asked +1.00, p = 0.5"),
    ],
)
def test_what_differs_from_what_was_asked_reads_so(kind: str, numbers: Any, said: str) -> None:
    asked = {"faster": 1.0, "at_most": 0.5, "beats": 0.01}[kind]
    metric = {"faster": "latency", "at_most": "macs", "beats": "accuracy"}[kind]
    verdict = statistics.Verdict(
        Claim("", kind, "a", "b", asked, metric), "proven", statistics.Estimate(*numbers), asked, numbers[3]
    )
    assert verdict.numbers.startswith(said)


def test_an_operating_point_that_answers_nothing_shows_nothing_and_one_that_is_missing_is_named() -> None:
    (nothing,) = judge([parse_claim("prune answers 5 % of images with at least 99 % accuracy")], of_answers(9, 9))
    assert (nothing.outcome, nothing.estimate.effect, nothing.threshold) == ("refuted", 0.0, 0.05)
    none = statistics._share(np.zeros(0, dtype=bool), 0.9, "of answers right")
    assert none == statistics.Estimate(0.0, 0.0, 1.0, 1.0, 0, 1, "of answers right: there are none")
    text = "{} answers 80 % of images with at least 95 % accuracy"
    for name, known in (("prune", "99 %, 90 %"), ("x", "none")):
        with pytest.raises(ClaimError) as caught:
            judge([parse_claim(text.format(name))], of_answers(9, 9))
        assert str(caught.value) == (
            f"{text.format(name)}\n{name} has no operating point of 95 %, or it is of several seeds; known are: {known}"
        )


@pytest.mark.parametrize(
    ("claim", "estimate", "expected"),
    [
        (
            Claim("", "faster", "a", "b", 1.5, "latency", 1, "pytorch"),
            (2.0, 1.754, 2.5, 0.0123, 30, 1, "m"),
            "2.00x [1.75, 2.50], asked 1.50x, p = 0.012, 30 rounds, 1 seed (m)",
        ),
        (
            Claim("", "smaller", "a", "b", 1.5, "macs"),
            (2.0, 2.0, 3.0, None, 1, 3, "m"),
            "2.00x [2.00, 3.00], asked 1.50x, 3 seeds (m)",
        ),
        (
            Claim("", "at_most", "a", "b", 1.5, "bytes"),
            (0.5, 0.25, 0.75, None, 1, 1, "m"),
            "50.00% [25.00%, 75.00%], asked at most 150.00% (m)",
        ),
        (
            Claim("", "agrees", "a", "b", 1.5, "agreement"),
            (0.5, 0.25, 0.75, 0.5, 9, 2, "m"),
            "50.00% [25.00%, 75.00%], asked 150.00%, p = 0.5, 9 images, 2 seeds (m)",
        ),
        (
            Claim("", "answers", "a", "a", 1.5, "accuracy", at_least=0.9),
            (0.5, 0.25, 0.75, 0.5, 9, 1, "m"),
            "50.00% [25.00%, 75.00%], asked 150.00%, p = 0.5, 9 images, 1 seed (m)",
        ),
        (
            Claim("", "within", "a", "b", 1.5, "macro_f1"),
            (-0.5, -0.25, 0.75, 0.5, 9, 1, "m"),
            "-50.00 points [-25.00, +75.00], asked +150.00, p = 0.5, 9 images, 1 seed (m)",
        ),
    ],
)
def test_numbers_are_in_the_claims_own_units(claim: Claim, estimate: tuple[Any, ...], expected: str) -> None:
    verdict = statistics.Verdict(claim, "proven", statistics.Estimate(*estimate), 1.5, estimate[3])
    assert verdict.numbers == expected


def test_times_are_looked_for_where_the_claim_says() -> None:
    one = evidence()
    times = one.latency_ms["onnxruntime", 64]
    both = dataclasses.replace(one, latency_ms={**one.latency_ms, ("pi5", 1): {"prune": times["prune"]}})
    for place, known in (("at batch 64 in onnxruntime", True), ("at batch 64", False), ("at batch 1 on pi5", False)):
        assert statistics.is_timed(parse_claim(f"prune is faster than distill {place}"), both) == known
    both.latency_ms["pi5", 1]["distill"] = 2 * times["prune"]
    claim = parse_claim("prune is faster than distill at batch 1 on pi5")
    assert statistics.is_timed(claim, both)
    assert judge([claim], both)[0].estimate.effect == pytest.approx(2)


def test_a_share_of_the_time_is_the_speed_up_upside_down() -> None:
    texts = [
        f"prune {words} distill at batch 64 in onnxruntime"
        for words in ("is faster than", "has at most 80 % of the milliseconds of")
    ]
    faster, share = judge(parse_claims(texts), evidence(), seed=3, resamples=500)
    e, f = share.estimate, faster.estimate
    assert (1 / e.effect, 1 / e.high, 1 / e.low) == pytest.approx((f.effect, f.low, f.high))
    assert share.threshold == 0.8
    times = evidence().latency_ms["onnxruntime", 64]
    same = speed_ratio(times["prune"], times["distill"], factor=1.25, seed=3, resamples=500)
    assert e.p_value == same.p_value


def test_sizes_over_seeds_have_to_hold_for_each() -> None:
    sizes = {"a": {"macs": [10, 30]}, "b": {"macs": [100, 100]}}
    two = Evidence(right={}, predictions={}, sizes=sizes, latency_ms={})
    smaller, at_most = judge(
        parse_claims(["a is smaller than b by 5x in macs", "a has at most 25 % of the macs of b"]), two
    )
    assert smaller.estimate == statistics.Estimate(100 / 30, 100 / 30, 10.0, None, 1, 2, "exact, least of seeds")
    assert at_most.estimate == statistics.Estimate(0.3, 0.1, 0.3, None, 1, 2, "exact, largest of seeds")
    assert (smaller.outcome, at_most.outcome) == ("refuted", "refuted")


def test_no_claims_give_no_verdicts() -> None:
    assert judge([], evidence()) == []


def test_the_docs_sentences_parse() -> None:
    page = (Path(__file__).parents[2] / "docs" / "claims.md").read_text(encoding="utf-8")
    sentences = re.findall(r"^ +- ([a-z].*)$", page, re.MULTILINE)
    assert {claim.kind for claim in parse_claims(sentences)} == {
        "beats",
        "within",
        "faster",
        "smaller",
        "at_most",
        "agrees",
    }
    assert all(isinstance(claim, Claim) for claim in parse_claims(sentences))
