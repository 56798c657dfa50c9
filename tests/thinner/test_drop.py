"""What was lost is points of accuracy, paired by image, and judged as a claim is."""

import numpy as np
import pytest

from thinner.evidence import statistics
from thinner.evidence.drop import Drop, drop_of, refusal


def answers(images, ahead, behind):
    """(right of the round, right of the source): `ahead` images that only the round has right, `behind` the other way."""
    mine, source = np.zeros(images, bool), np.zeros(images, bool)
    mine[:ahead] = True
    source[ahead : ahead + behind] = True
    return mine, source


def test_a_loss_is_paired_by_image_and_has_the_interval_of_tangos_score_test():
    # tests/thinner/test_statistics.py holds the test itself to published examples; here: points, and the sign of a loss
    lost = drop_of(*answers(44, 0, 3), 1.0)
    low, high, _ = statistics.score_difference(0, 3, 44, 0.0)
    assert lost.points == pytest.approx(100 * 3 / 44)
    assert (lost.low, lost.high) == pytest.approx((-100 * high, -100 * low))
    assert lost.low < lost.points < lost.high


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
    assert drop_of(*answers(10_000, ahead, behind), bound).outcome == outcome


def test_a_limit_that_is_not_the_bound_does_not_read_as_it():
    assert str(Drop(0.1, -0.3, 0.5004, 10_000, 0.5)) == "0.1000 points [-0.3000, 0.5004]"
    assert str(Drop(0.1, -0.3, 0.4996, 10_000, 0.5)) == "0.1000 points [-0.3000, 0.4996]"
    assert (
        str(Drop(0.1, -0.3, 0.6, 10_000, 0.5)) == str(Drop(0.1, -0.3, 0.6, 10_000, None)) == "0.10 points [-0.30, 0.60]"
    )


def test_the_smallest_drop_that_can_be_shown_is_that_of_networks_that_never_differ():
    # nothing differs in n images: the score interval ends at z^2 / (n + z^2)
    z = 1.959963984540054
    assert 0.191 < 100 * z**2 / (2000 + z**2) < 0.192
    assert (line := refusal(0.19, 2000)) and "show a drop of 0.20 points at the least" in line  # what can be asked for
    assert refusal(0.2, 2000) is None
    assert drop_of(*answers(2000, 0, 0), 0.2).outcome == "proven"
    assert drop_of(*answers(2000, 0, 0), 0.19).outcome == "not shown"
