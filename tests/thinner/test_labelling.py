"""learn/labelling.py: gradients written out, the draw's probabilities by hand, and no two alike."""

import numpy as np
import pytest
from scipy import stats

from thinner.learn import labelling


def example(count: int, classes: int = 3, features: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.dirichlet(np.ones(classes), size=count), rng.normal(size=(count, features))


def gradients(p: np.ndarray, h: np.ndarray) -> np.ndarray:
    """Of the cross-entropy with the answer as the label, by the classifier's weights, written out."""
    onehot = np.eye(p.shape[1])[p.argmax(axis=1)]
    return np.stack([np.outer(q - one, x).ravel() for q, one, x in zip(p, onehot, h, strict=True)])


def test_the_first_has_the_longest_gradient_and_the_second_is_drawn_by_squared_distance() -> None:
    p, h = example(6)
    g = gradients(p, h)
    draws = [labelling.choose(p, h, 2, seed).tolist() for seed in range(600)]
    first = int(np.linalg.norm(g, axis=1).argmax())
    assert {draw[0] for draw in draws} == {first}
    square = np.minimum(np.square(g - g[first]).sum(axis=1), np.square(g).sum(axis=1))
    counts = np.bincount([draw[1] for draw in draws], minlength=6)
    others = np.arange(6) != first
    assert counts[first] == 0
    assert stats.chisquare(counts[others], 600 * square[others] / square.sum()).pvalue > 1e-3


def test_the_third_is_drawn_by_the_distance_from_the_nearest_of_the_two_and_no_gradient() -> None:
    p, h = example(5)
    g = gradients(p, h)
    draws = [labelling.choose(p, h, 3, seed).tolist() for seed in range(1500)]
    first = draws[0][0]
    second = int(np.bincount([draw[1] for draw in draws]).argmax())
    thirds = [draw[2] for draw in draws if draw[1] == second]
    nearest = np.min([np.square(g - other).sum(axis=1) for other in (g[first], g[second], 0 * g[first])], axis=0)
    left = nearest > 1e-12
    counts = np.bincount(thirds, minlength=5)
    assert counts[~left].sum() == 0
    assert stats.chisquare(counts[left], len(thirds) * nearest[left] / nearest.sum()).pvalue > 1e-3


def test_none_is_drawn_twice_and_copies_are_not_drawn_at_all() -> None:
    p, h = example(8)
    chosen = labelling.choose(np.tile(p, (3, 1)), np.tile(h, (3, 1)), 24, seed=0).tolist()
    assert sorted(row % 8 for row in chosen) == list(range(8))
    assert labelling.choose(p, h, 100, seed=0).tolist() == labelling.choose(p, h, 8, seed=0).tolist()
    assert len(labelling.choose(p, h, 3, seed=0)) == 3


def test_pictures_that_the_network_is_sure_of_are_not_drawn() -> None:
    p = np.full((20, 3), [1.0, 0.0, 0.0])
    p[[4, 11]] = [[0.5, 0.4, 0.1], [0.4, 0.3, 0.3]]
    h = np.random.default_rng(0).normal(size=(20, 4))
    assert sorted(labelling.choose(p, h, 20, seed=0).tolist()) == [4, 11]
    assert len(labelling.choose(np.tile(p[:1], (20, 1)), h, 20, seed=0)) == 0


@pytest.mark.parametrize("channels", [1, 3])
def test_of_near_duplicates_the_one_that_was_drawn_first_stays(channels: int) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 16, 16, channels), np.uint8)
    images[7] = images[2][:, ::-1]  # mirrored
    images[9] = images[0]
    images[12] = images[0]
    kept = labelling.unlike(images, 100)
    assert kept == [number for number in range(40) if number not in (7, 9, 12)]
    assert labelling.unlike(images, 8) == [0, 1, 2, 3, 4, 5, 6, 8]
    assert labelling.unlike(images[:1], 5) == [0]
    assert labelling.unlike(images[:0], 5) == []
