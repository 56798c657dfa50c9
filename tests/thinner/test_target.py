"""Which round becomes the network, and what is said of it."""

import numpy as np
import pytest

from thinner import statistics, target


def rounds(*rows: tuple[bool, float]) -> list[dict[str, object]]:
    return [{"round": n, "target_met": met, "accuracy_after": a} for n, (met, a) in enumerate(rows, start=1)]


@pytest.mark.parametrize(
    ("key", "rows", "chosen"),
    [
        # a limit of size is a promise: the accuracy of one split does not decide
        ("macs", [(False, 0.90), (True, 0.80)], 2),
        ("macs", [(False, 0.90), (True, 0.80), (True, 0.95)], 2),  # the first that meets it gave up least
        ("params", [(False, 0.90), (False, 0.80)], 2),  # none does: the last came nearest
        ("latency_ms", [(True, 0.70), (True, 0.90)], 1),
        # of those that keep to a drop the smallest; where none does the most accurate
        ("max_drop", [(True, 0.90), (True, 0.89), (False, 0.80)], 2),
        ("max_drop", [(False, 0.80), (False, 0.82), (False, 0.81)], 2),
    ],
)
def test_the_round_is_chosen_by_the_target(key, rows, chosen):
    assert target.choose_round(rounds(*rows), key) == chosen


def answers(images, ahead, behind):
    """(right of the round, right of the source): `ahead` images that only the round has right, `behind` the other way."""
    mine, source = np.zeros(images, bool), np.zeros(images, bool)
    mine[:ahead] = True
    source[ahead : ahead + behind] = True
    return mine, source


def test_a_loss_is_paired_by_image_and_has_the_interval_of_tangos_score_test():
    # tests/thinner/test_statistics.py holds the test itself to published examples; here: points, and the sign of a loss
    loss = target.loss_of(*answers(44, 0, 3), 1.0)
    low, high, _ = statistics.score_difference(0, 3, 44, 0.0)
    assert loss.points == pytest.approx(100 * 3 / 44)
    assert (loss.low, loss.high) == pytest.approx((-100 * high, -100 * low))
    assert loss.low < loss.points < loss.high


@pytest.mark.parametrize(
    ("ahead", "behind", "bound", "outcome"),
    [
        (20, 20, 1.0, "proven"),  # 0 of 10,000: far from a point
        (20, 400, 1.0, "refuted"),  # 3.8 points
        (20, 130, 1.0, "not shown"),  # 1.1 points: more than a point, and not shown to be
        (20, 400, None, "not shown"),  # nothing was to be judged
    ],
)
def test_a_loss_is_judged_as_a_claim_is(ahead, behind, bound, outcome):
    assert target.loss_of(*answers(10_000, ahead, behind), bound).outcome == outcome


def test_the_smallest_drop_that_can_be_shown_is_that_of_networks_that_never_differ():
    # nothing differs in n images: the score interval ends at z^2 / (n + z^2)
    z = 1.959963984540054
    assert target.least_drop_shown(2000) == pytest.approx(100 * z**2 / (2000 + z**2))
    assert target.loss_of(*answers(2000, 0, 0), 0.2).outcome == "proven"
    assert target.loss_of(*answers(2000, 0, 0), 0.19).outcome == "not shown"


WORDS = {"candidate": "prune", "source": "distill", "why": "No round came as far."}
SIZES = {"size": "1,460,704 MACs", "source_size": "3,052,160 MACs", "share": 1_460_704 / 3_052_160}


def test_what_is_said_of_a_target_names_what_was_asked_and_what_came_out():
    fine = target.Loss(0.4, -0.3, 1.1, 2000, 1.0)
    assert target.describe("macs", 0.5, met=True, loss=fine, **WORDS, **SIZES) == [
        "Target met: prune has 1,460,704 MACs, 47.9 % of distill's 3,052,160 MACs; at most 50 % asked."
    ]
    (missed,) = target.describe("macs", 1_000_000, met=False, loss=fine, **WORDS, **SIZES)
    assert missed.startswith("TARGET MISSED: prune has 1,460,704 MACs")
    assert missed.endswith("at most 1,000,000 asked. No round came as far.")


def test_a_loss_beyond_the_tolerance_is_said_where_it_is_shown():
    lost = target.Loss(3.0, 2.0, 4.0, 2000, 1.0)
    assert target.describe("macs", 0.5, met=True, loss=lost, **WORDS, **SIZES)[1] == (
        "LOSS SHOWN: prune lost 3.00 points [2.00, 4.00] against distill on 2,000 validation images: more than "
        "prune.tolerance, 1 points."
    )
    (only,) = target.describe("max_drop", 0.5, met=False, loss=lost, **WORDS, **SIZES)
    assert only.startswith("TARGET MISSED: prune lost 3.00 points [2.00, 4.00] against distill")
