"""evidence/drift.py: each test against its formula by hand, the rate of false alarms, and that planted shifts are
found."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from thinner.errors import UserError
from thinner.evidence import drift
from thinner.measure.outputs import Outputs

CLASSES, FEATURES = 4, 3


def drawn(rng: np.random.Generator, count: int, sure: float = 1.0, prior: Any = None, moved: float = 0.0) -> Outputs:
    """Logits whose answer is a class drawn from ``prior``, and features that know nothing of it."""
    logits = rng.normal(size=(count, CLASSES))
    answer = rng.choice(CLASSES, size=count, p=prior)
    logits[np.arange(count), answer] = logits.max(axis=1) + sure * rng.exponential(size=count) + 1e-3
    return Outputs(logits.astype(np.float32), (rng.normal(size=(count, FEATURES)) + moved).astype(np.float32))


def rows(seed: int, *sizes: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(size, FEATURES)) for size in sizes]


# ------------------------------------------------------------------------------- each test by its formula


def test_confidence_is_compared_by_the_largest_distance_of_the_two_distribution_functions() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(size=30).astype(np.float32), rng.normal(0.7, size=20).astype(np.float32)
    distance, p, effect, text = drift._confidence(ours, theirs)
    places = np.concatenate([ours, theirs])
    apart = [abs(np.mean(ours <= place) - np.mean(theirs <= place)) for place in places]
    assert distance == effect == pytest.approx(max(apart))
    at = places[int(np.argmax(apart))]
    sure = 1 / (1 + np.exp(-float(at)))
    assert text == (
        f"{100 * np.mean(theirs <= at):.1f} % of them have a confidence of at most {100 * sure:.1f} %; "
        f"of validation {100 * np.mean(ours <= at):.1f} %"
    )
    assert p == pytest.approx(stats.ks_2samp(ours, theirs, method="exact").pvalue)


def test_two_samples_without_overlap_have_the_p_value_of_two_orders_among_all() -> None:
    ours, theirs = np.arange(6, dtype=np.float32), np.arange(10, 16, dtype=np.float32)
    distance, p, _, _ = drift._confidence(ours, theirs)
    assert distance == 1.0
    assert p == pytest.approx(2 / math.comb(12, 6))


def test_classes_are_compared_by_pearsons_statistic_and_every_deal_counts_the_same() -> None:
    ours, theirs = np.repeat([0, 1, 3], [5, 3, 1]), np.repeat([0, 1, 3], [1, 2, 3])
    rng = np.random.default_rng(0)
    observed, p, effect, text = drift._classes(ours, theirs, CLASSES, 20_000, rng)
    table = np.array([[1, 2, 3], [5, 3, 1]])
    assert observed == pytest.approx(stats.chi2_contingency(table, correction=False).statistic)
    everything = np.concatenate([ours, theirs])
    extreme = []
    for own in itertools.combinations(range(15), 6):  # all deals of the 15 pictures
        dealt = np.bincount(everything[list(own)], minlength=4)[[0, 1, 3]]
        other = np.bincount(everything, minlength=4)[[0, 1, 3]] - dealt
        found = sum((o - len(own) * t / 15) ** 2 / (len(own) * t / 15) for o, t in zip(dealt, (6, 5, 4), strict=True))
        found += sum((o - 9 * t / 15) ** 2 / (9 * t / 15) for o, t in zip(other, (6, 5, 4), strict=True))
        extreme.append(found >= observed - 1e-9)
    assert p == pytest.approx(np.mean(extreme), abs=4 * math.sqrt(0.25 / 20_000))
    assert effect == pytest.approx(math.sqrt((observed - 2) * 15 / (6 * 9)))
    assert text.startswith(f"{100 * (abs(1 / 6 - 5 / 9) + abs(2 / 6 - 3 / 9) + abs(3 / 6 - 1 / 9)) / 2:.1f} %")


def test_with_many_pictures_the_effect_on_classes_is_cohens_w() -> None:
    ours, theirs = np.repeat([0, 1], [5000, 5000]), np.repeat([0, 1], [6500, 3500])
    _, p, effect, _ = drift._classes(ours, theirs, 2, 999, np.random.default_rng(0))
    pooled = np.array([0.575, 0.425])
    assert effect == pytest.approx(math.sqrt((0.15**2 / pooled).sum()), rel=2e-3)  # less what chance adds
    assert p == 1 / 1000
    assert drift._classes(ours, ours, 2, 999, np.random.default_rng(0))[1:3] == (1.0, 0.0)


def discrepancy(x: np.ndarray, y: np.ndarray) -> float:
    """Gretton et al. 2012, equation 5, by loops; features in units of their deviation over both."""
    both = np.concatenate([x, y])
    x, y = x / both.std(axis=0), y / both.std(axis=0)
    both = np.concatenate([x, y])
    width = np.median([((a - b) ** 2).sum() for a in both for b in both])

    def mean(one: np.ndarray, other: np.ndarray) -> float:
        return float(np.mean([math.exp(-((a - b) ** 2).sum() / width) for a in one for b in other]))

    return mean(x, x) + mean(y, y) - 2 * mean(x, y)


def test_features_are_compared_by_mmd_and_every_way_to_share_them_out_counts_the_same() -> None:
    x, y = rows(1, 5, 4)
    y = y + 0.9
    (observed, p, _, _), _ = drift._features(x, y, 4000, np.random.default_rng(0))
    assert observed == pytest.approx(discrepancy(x, y), abs=1e-6)
    both = np.concatenate([x, y])
    shared = [discrepancy(np.delete(both, own, axis=0), both[list(own)]) for own in itertools.combinations(range(9), 4)]
    assert p == pytest.approx(np.mean(np.array(shared) >= observed - 1e-6), abs=4 * math.sqrt(0.25 / 4000))


def test_the_effect_on_features_is_how_often_they_tell_two_pictures_apart() -> None:
    x, y = rows(2, 40, 30)
    (_, _, effect, _), order = drift._features(x, y + 3.0, 9, np.random.default_rng(0))
    likeness = []
    both, whose = np.concatenate([x, y + 3.0]), np.repeat([0, 1], [40, 30])
    both = both / both.std(axis=0)
    width = np.median(((both[:, None] - both) ** 2).sum(axis=2))
    kernel = np.exp(-((both[:, None] - both) ** 2).sum(axis=2) / width)
    for i in range(70):
        others = np.arange(70) != i
        likeness.append(kernel[i, others & (whose == 1)].mean() - kernel[i, others & (whose == 0)].mean())
    pairs = [new > old for old in likeness[:40] for new in likeness[40:]]
    assert effect == pytest.approx(np.mean(pairs), abs=1e-3)
    assert order.tolist() == np.argsort(-np.array(likeness[40:])).tolist()


def test_features_that_are_the_same_for_all_tell_nothing() -> None:
    same = np.ones((20, FEATURES), dtype=np.float32)
    (statistic, p, effect, _), order = drift._features(same, same[:12], 99, np.random.default_rng(0))
    assert (statistic, p, effect, len(order)) == (0.0, 1.0, 0.5, 12)
    one_dead = [np.concatenate([part, np.ones((len(part), 1))], axis=1) for part in rows(3, 20, 12)]
    (with_dead, *_), _ = drift._features(*one_dead, 9, np.random.default_rng(0))
    assert with_dead == pytest.approx(discrepancy(*rows(3, 20, 12)), abs=1e-6)


def test_of_very_many_pictures_some_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift, "MOST", 15)
    x, y = rows(4, 40, 30)
    (observed, *_), order = drift._features(x, y, 9, np.random.default_rng(7))
    rng = np.random.default_rng(7)
    some = [np.sort(rng.permutation(40)[:15]), np.sort(rng.permutation(30)[:15])]
    assert observed == pytest.approx(discrepancy(x[some[0]], y[some[1]]), abs=1e-6)
    assert sorted(order.tolist()) == some[1].tolist()


# ------------------------------------------------------------------------------- all of them together


def test_each_shift_is_found_by_the_test_that_is_for_it_and_by_no_other() -> None:
    rng = np.random.default_rng(0)
    usual = drawn(rng, 400)
    for name, changed in (
        ("confidence", drawn(rng, 300, sure=0.3)),
        ("classes", drawn(rng, 300, prior=[0.6, 0.2, 0.1, 0.1])),
        ("features", drawn(rng, 300, moved=0.8)),
    ):
        found = drift.compare(usual, changed, 1.0, 0.01, seed=1)
        assert found.drifted == [name] and found.verdict == "drift"
        assert found.findings[name].size in ("medium", "large")
    same = drift.compare(usual, drawn(rng, 300), 1.0, 0.01, seed=1)
    assert same.drifted == [] and same.verdict == "no drift seen"


def test_p_values_are_corrected_for_their_number() -> None:
    rng = np.random.default_rng(5)
    found = drift.compare(drawn(rng, 80), drawn(rng, 60, sure=0.6), 1.0, 0.05, seed=0).findings
    _, adjusted, _, _ = multipletests([one.p_value for one in found.values()], method="holm")
    assert [one.adjusted for one in found.values()] == pytest.approx(adjusted.tolist())
    assert [one.drifted for one in found.values()] == [bool(p <= 0.05) for p in adjusted]


def test_where_nothing_changed_alarms_are_as_rare_as_was_said() -> None:
    rng = np.random.default_rng(11)
    rate, looks = 0.2, 100
    alarms = sum(
        bool(drift.compare(drawn(rng, 40), drawn(rng, 25), 1.0, rate, seed=look).drifted) for look in range(looks)
    )
    assert alarms <= stats.binom.ppf(0.9999, looks, rate)
    assert alarms >= 3  # three tests that share 20 % are not silent either


def test_the_same_seed_gives_the_same_findings_and_the_temperature_counts() -> None:
    rng = np.random.default_rng(3)
    usual, new = drawn(rng, 50), drawn(rng, 40)
    first, again = (drift.compare(usual, new, 1.0, 0.01, seed=4) for _ in range(2))
    assert first.findings == again.findings and first.unlike.tolist() == again.unlike.tolist()
    warm = drift.compare(usual, new, 3.0, 0.01, seed=4)
    assert warm.findings["confidence"].text != first.findings["confidence"].text
    assert warm.findings["classes"] == first.findings["classes"]


def test_words_are_those_of_cohens_d() -> None:
    for name, place in (("confidence", 0), ("features", 1)):
        for d, bound in zip((0.2, 0.5, 0.8), drift.SIZES[name], strict=True):
            grid = np.linspace(-6, 6, 20_001)
            apart = np.abs(stats.norm.cdf(grid) - stats.norm.cdf(grid, d)).max()
            above = float(np.trapezoid(stats.norm.pdf(grid, d) * stats.norm.cdf(grid), grid))
            assert bound == pytest.approx((apart, above)[place], abs=1e-4)
    assert [drift._word("classes", w) for w in (0.09, 0.1, 0.3, 0.7)] == ["negligible", "small", "medium", "large"]


def test_what_is_called_detectable_is_found_in_four_of_five_cases() -> None:
    images, reference, rate = 100, 400, 0.05
    distance = drift.detectable(images, reference, rate)
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):  # a share of the pictures loses all confidence: the functions are so far apart at 0
        new = rng.normal(size=images)
        new[rng.random(images) < distance] -= 100
        hits += stats.ks_2samp(rng.normal(size=reference), new).pvalue <= rate / 3
    assert hits >= stats.binom.ppf(0.001, 200, 0.8)
    assert hits < 200 or distance < 0.1


@pytest.mark.parametrize("reference", [60, 500, 100_000])
def test_as_many_pictures_as_are_asked_for_show_the_distance(reference: int) -> None:
    needed = drift.images_for(0.35, reference, 0.01)
    if needed is None:
        assert drift.detectable(10**9, reference, 0.01) > 0.35
    else:
        assert drift.detectable(needed, reference, 0.01) <= 0.35 < drift.detectable(needed - 1, reference, 0.01)
    assert drift.images_for(0.05, 60, 0.01) is None


def test_few_pictures_without_drift_are_too_few_and_with_a_plain_one_it_is_seen() -> None:
    rng = np.random.default_rng(1)
    usual = drawn(rng, 300)
    assert drift.compare(usual, drawn(rng, 12), 1.0, 0.01, seed=0).verdict == "too few pictures"
    assert drift.compare(usual, drawn(rng, 12, moved=5.0), 1.0, 0.01, seed=0).verdict == "drift"


def test_what_cannot_be_compared_is_refused() -> None:
    rng = np.random.default_rng(1)
    enough, few = drawn(rng, 20), drawn(rng, 9)
    with pytest.raises(UserError, match=r"^9 pictures to look at: too few .* At least 10 are needed$"):
        drift.compare(enough, few, 1.0, 0.01, seed=0)
    with pytest.raises(UserError, match=r"^9 pictures of validation: too few"):
        drift.compare(few, enough, 1.0, 0.01, seed=0)
    for rate in (0.0, 0.0009, 0.51, 1.0):
        with pytest.raises(UserError, match=rf"^false alarms: {100 * rate:g} %\. Give 0\.1 to 50, for example 1$"):
            drift.compare(enough, enough, 1.0, rate, seed=0)
    for rate in (0.001, 0.5):
        assert drift.compare(enough, enough, 1.0, rate, seed=0).drifted == []
