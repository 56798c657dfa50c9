"""What so many images can show, against many draws of the very test that claims use."""

import numpy as np
import pytest

from thinner.evidence import power
from thinner.evidence.statistics import balanced_accuracy_difference, score_difference


@pytest.mark.parametrize(("images", "disagree"), [(400, 0.1), (2_000, 0.1), (2_000, 0.3)])
def test_two_networks_that_are_as_good_are_shown_to_be_within_the_difference_in_four_of_five_cases(images, disagree):
    margin = power.detectable(images, disagree)
    rng = np.random.default_rng(0)
    draws = rng.multinomial(images, [disagree / 2, disagree / 2, 1 - disagree], size=400)
    shown = [score_difference(int(a), int(b), images, -margin / 100)[0] > -margin / 100 for a, b, _ in draws]
    assert 0.74 < np.mean(shown) < 0.87


def test_a_difference_of_that_size_is_seen_in_four_of_five_cases():
    images, disagree = 2_000, 0.1
    effect = power.detectable(images, disagree) / 100
    rng = np.random.default_rng(1)
    draws = rng.multinomial(images, [(disagree + effect) / 2, (disagree - effect) / 2, 1 - disagree], size=400)
    seen = [score_difference(int(a), int(b), images, 0.0)[0] > 0.0 for a, b, _ in draws]
    assert 0.74 < np.mean(seen) < 0.87


def test_images_for_is_the_same_turned_around():
    for points in (1.0, 2.5, 8.0):
        images = power.images_for(points)
        assert power.detectable(images) <= points < power.detectable(images - 1)


def test_no_images_show_nothing():
    with pytest.raises(ValueError, match="images: 0"):
        power.detectable(0)


def test_with_equal_classes_balanced_accuracy_shows_what_accuracy_shows():
    assert power.detectable_by_class([250] * 8) == pytest.approx(power.detectable(2_000))


@pytest.mark.integration
def test_the_smallest_class_decides_what_balanced_accuracy_can_show():
    sizes = [900, 60, 40]
    margin = power.detectable_by_class(sizes)
    assert margin > 2 * power.detectable(1_000)
    rng, shown = np.random.default_rng(0), []
    for _ in range(300):
        mine, theirs, labels = (np.repeat(np.arange(3), sizes) for _ in range(3))
        which = rng.random(1_000)
        mine[which < 0.05] = (mine[which < 0.05] + 1) % 3
        theirs[which > 0.95] = (theirs[which > 0.95] + 1) % 3
        shown.append(balanced_accuracy_difference(mine, theirs, labels, margin=-margin / 100).low > -margin / 100)
    assert 0.7 < np.mean(shown) < 0.9


@pytest.mark.parametrize("sizes", [[], [5, 0]])
def test_a_class_without_images_shows_nothing(sizes):
    with pytest.raises(ValueError, match="one of each class at least"):
        power.detectable_by_class(sizes)
