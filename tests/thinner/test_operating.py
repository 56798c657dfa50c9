"""thinner.measure.operating: whether the promise is kept, on populations whose truth is known."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import special, stats

from thinner import checks
from thinner.config import load_params
from thinner.errors import DamagedError, UserError
from thinner.evidence.answers import first_answers
from thinner.evidence.results import Results
from thinner.evidence.statistics import ClaimError, Evidence, judge, parse_claim
from thinner.measure import operating
from thinner.measure.operating import DELTA, Point, fit_threshold, log_odds, measure, points_of


def test_log_odds_are_those_of_the_softmax_and_do_not_saturate() -> None:
    logits = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32) * 3
    p = special.softmax(logits.astype(np.float64), axis=1).max(axis=1)
    np.testing.assert_allclose(log_odds(logits), np.log(p / (1 - p)), rtol=1e-9)
    np.testing.assert_allclose(log_odds(logits + 100), log_odds(logits), atol=1e-4)
    np.testing.assert_allclose(log_odds(np.array([[80.0, 0.0, 0.0]])), 80 - math.log(2))  # p is 1 in float64


class Population:
    """Two classes; the log-odds are uniform between 0 and 4, and ``right`` says how often each is right."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def right(self, odds: np.ndarray) -> np.ndarray:
        surer = 0.7 + 0.075 * odds  # 70 % to 100 %
        if self.kind == "surer is better":
            return surer
        if self.kind == "the surest are worst":
            return np.where(odds > 3.6, 0.8, surer + 0.05).clip(max=0.999)
        return np.full_like(odds, 0.949)  # confidence says nothing, and the promise can just not be kept

    def draw(self, images: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        odds = rng.uniform(0, 4, images)
        labels = rng.integers(0, 2, images)
        named = np.where(rng.random(images) < self.right(odds), labels, 1 - labels)
        logits = np.zeros((images, 2))
        logits[np.arange(images), named] = odds
        return labels, logits

    def accuracy_from(self, threshold: float) -> float:
        """Among all answers of the population, by a fine grid."""
        return float(self.right(np.linspace(max(threshold, 0), 4, 20_001)).mean())


@pytest.mark.parametrize("kind", ["surer is better", "the surest are worst", "useless"])
@pytest.mark.parametrize(("images", "at_least"), [(300, 0.9), (1000, 0.9), (1000, 0.95)])
def test_the_promise_is_broken_in_no_more_draws_than_was_said(kind: str, images: int, at_least: float) -> None:
    population, rng, draws = Population(kind), np.random.default_rng(1), 250
    broken = 0
    for _ in range(draws):
        threshold = fit_threshold(*population.draw(images, rng), at_least)
        broken += threshold is not None and population.accuracy_from(threshold) < at_least
    # more than this would come up once in 10,000 if the truth were DELTA
    assert broken <= stats.binom.ppf(0.9999, draws, DELTA)


def test_the_threshold_that_looks_right_breaks_it_about_every_second_time_and_ours_still_answers() -> None:
    """The same draws show that the simulation can fail, and that the promise is not kept by silence."""
    population, rng, draws, at_least = Population("surer is better"), np.random.default_rng(2), 200, 0.9
    # accuracy from t on is 0.7 + 0.075 (t + 4) / 2 = 0.9 at t = 4/3: two thirds are answered
    best = 1 - (4 / 3) / 4
    assert population.accuracy_from(4 / 3) == pytest.approx(0.9, abs=1e-6)
    broken, coverages = 0, []
    for _ in range(draws):
        labels, logits = population.draw(1000, rng)
        odds, right = log_odds(logits), logits.argmax(axis=1) == labels
        order = np.argsort(-odds)
        shares = np.cumsum(right[order]) / np.arange(1, len(odds) + 1)
        looks_right = odds[order][np.flatnonzero(shares >= at_least).max()]
        broken += population.accuracy_from(looks_right) < at_least
        found = fit_threshold(labels, logits, at_least)
        coverages.append(0.0 if found is None else 1 - max(found, 0) / 4)
    assert broken > 0.4 * draws
    assert np.median(coverages) > 0.7 * best


def test_a_perfect_network_answers_everything_and_a_bad_one_nothing() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 500)
    logits = rng.normal(size=(500, 5))
    logits[np.arange(500), labels] += 20
    threshold = fit_threshold(labels, logits, 0.98)
    assert threshold is not None and (log_odds(logits) >= threshold).all()
    assert threshold < -math.log(4)  # not even a uniform softmax is unsure
    assert fit_threshold((labels + 1) % 5, logits, 0.98) is None


def test_few_images_show_nothing() -> None:
    """All of n right has a p-value of 0.98 ** n: 148 of them show 98 % at 5 %, 149 * 0.9 do not."""
    labels = np.zeros(164, dtype=np.int64)
    logits = np.stack([np.linspace(5, 6, 164), np.zeros(164)], axis=1)
    assert 0.98 ** (164 - 17) > DELTA >= 0.98 ** (166 - 17)
    assert fit_threshold(labels, logits, 0.98) is None
    more = np.stack([np.linspace(5, 6, 166), np.zeros(166)], axis=1)
    assert fit_threshold(np.zeros(166, dtype=np.int64), more, 0.98) is not None


def test_thresholds_are_planned_without_a_look_at_their_labels() -> None:
    population, rng = Population("surer is better"), np.random.default_rng(3)
    labels, logits = population.draw(1000, rng)
    planning = np.random.default_rng(0).permutation(1000)[:100]  # fit_threshold's own seed
    other = labels.copy()
    other[planning] = 1 - labels[planning]
    assert fit_threshold(labels, logits, 0.9) == fit_threshold(other, logits, 0.9) is not None


def test_a_point_says_what_it_does_on_the_test_split() -> None:
    labels = np.zeros(10, dtype=np.int64)
    odds = np.arange(10.0)  # 0 to 9; the network is wrong on the two surest and on the least sure
    named = np.array([1, 0, 0, 0, 0, 0, 0, 0, 1, 1])
    logits = np.zeros((10, 2))
    logits[np.arange(10), named] = odds
    point = measure(labels, logits, 0.95, 4.0, 77)
    assert (point.coverage, point.accuracy, point.images, point.validation_images) == (0.6, 4 / 6, 10, 77)
    # Clopper and Pearson's limits, by their definition
    assert point.low is not None and point.high is not None
    assert stats.binom.sf(3, 6, point.low) == pytest.approx(0.025)
    assert stats.binom.cdf(4, 6, point.high) == pytest.approx(0.025)
    assert point.covers(4.0) and not point.covers(3.999)
    silent = measure(labels, logits, 0.95, None, 77)
    assert (silent.coverage, silent.accuracy, silent.low) == (0.0, None, None)
    assert not silent.covers(1e9)


def test_points_are_read_as_they_were_written_and_refused_where_changed(tmp_path: Path) -> None:
    population, rng = Population("surer is better"), np.random.default_rng(4)
    points = points_of(*population.draw(2000, rng), *population.draw(500, rng))
    assert [point.at_least for point in points] == [0.95, 0.98, 0.99]
    path = tmp_path / "points.json"
    written = operating.as_json({"prune": points})
    path.write_text(json.dumps(written, allow_nan=False))
    assert operating.read_points(path) == {"prune": points}
    assert operating.read_points(tmp_path / "nowhere.json") == {}
    for wrong in (
        {"prune": {"at_least": 0.95}},
        {"prune": [{**written["prune"][0], "log_odds": "high"}]},
        {"prune": 3},
    ):
        path.write_text(json.dumps(wrong))
        with pytest.raises(DamagedError, match="Make it again: dvc repro evaluate"):
            operating.read_points(path)


def test_a_point_that_is_not_there_is_refused_with_the_choices() -> None:
    labels, logits = Population("surer is better").draw(200, np.random.default_rng(5))
    points = points_of(labels, logits, labels, logits)
    assert operating.choose(points, 98, "prune").at_least == 0.98
    with pytest.raises(UserError, match="at least 97 %: prune has no such operating point. Choose one of: 95, 98, 99"):
        operating.choose(points, 97, "prune")
    with pytest.raises(UserError, match="prune: has no operating points. Make them: thinner stage evaluate"):
        operating.choose([], 98, "prune")


# ------------------------------------------------------------------------------------------------- claims


def evidence(answered: np.ndarray, right: np.ndarray) -> Evidence:
    predictions = np.zeros(len(right), dtype=np.int64)
    return Evidence({"prune": right}, {"prune": predictions}, {}, {}, answered={"prune": {0.98: answered}})


@pytest.mark.parametrize(
    ("answered", "wrong", "outcome", "effect", "words"),
    [
        (750, 2, "proven", 0.75, "of images answered"),  # 75 % and 99.7 %: both clear, the first one less so
        (600, 2, "refuted", 0.6, "of images answered"),
        (750, 60, "refuted", 690 / 750, "of answers right"),
        (710, 2, "not shown", 0.71, "of images answered"),
        (0, 0, "refuted", 0.0, "of images answered"),
    ],
)
def test_a_claim_about_answers_needs_both_how_many_and_how_right(
    answered: int, wrong: int, outcome: str, effect: float, words: str
) -> None:
    claim = parse_claim("prune answers 70 % of images with at least 98 % accuracy", ["prune", "small"])
    assert (claim.kind, claim.candidate, claim.amount, claim.at_least) == ("answers", "prune", 0.7, 0.98)
    which, right = np.zeros(1000, dtype=bool), np.ones(1000, dtype=bool)
    which[:answered] = True
    right[:wrong] = False
    right[answered:] = False  # what is not answered does not count
    (verdict,) = judge([claim], evidence(which, right))
    assert (verdict.outcome, verdict.estimate.effect) == (outcome, pytest.approx(effect))
    assert verdict.estimate.method == f"{words}, exact binomial"
    if outcome == "proven":  # SciPy's own two-sided tail of the weaker of the two
        tails = [stats.binom.sf(749, 1000, 0.7), stats.binom.sf(747, 750, 0.98)]
        assert verdict.p_value == pytest.approx(2 * max(tails))
    assert "images" in verdict.numbers and f"asked {100 * verdict.threshold:.2f}%" in verdict.numbers


def test_claims_about_answers_that_cannot_be_judged_are_refused() -> None:
    text = "prune answers 70 % of images with at least 97 % accuracy"
    with pytest.raises(ClaimError, match="prune has no operating point of 97 %, .*known are: 98 %"):
        judge([parse_claim(text)], evidence(np.ones(10, dtype=bool), np.ones(10, dtype=bool)))
    with pytest.raises(ClaimError, match="a share above 0 % and below 100 % is needed"):
        parse_claim("prune answers 100 % of images with at least 98 % accuracy")
    with pytest.raises(ClaimError, match="expected accuracy"):
        parse_claim("prune answers 70 % of images with at least 98 % macro_f1")


def test_params_with_a_claim_about_another_point_are_refused_before_anything_runs() -> None:
    params = load_params(Path(__file__).parents[2] / "params.yaml")
    texts = [f"prune answers 60 % of images with at least {percent} % accuracy" for percent in (98, 97)]
    (said,) = checks._claims(params.model_copy(update={"claims": texts}))
    assert said == "claims[1]: at least 97 % is no operating point. Choose one of: 95, 98, 99"


def test_the_first_screen_says_what_it_answers_where_it_may_be_unsure(results: Results) -> None:
    def told(*points: Point) -> str:
        (answer,) = (
            a for a in first_answers(replace(results, points={"prune": points}), {}) if a.question == "How sure?"
        )
        return " ".join(answer.more)

    some = Point(0.98, 1.5, 0.641, 0.9861, 0.983, 0.9888, 10000, 2000)
    none = Point(0.99, None, 0.0, None, None, None, 10000, 2000)
    assert "of the images it answers 64.1 % where 98 % have to be right (98.6 % are, [98.3, 98.9])." in told(some, none)
    assert "At no confidence were 99 % of its answers shown to be right." in told(none)
    assert "unsure" not in told()
