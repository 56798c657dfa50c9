"""benchmarks/imbalance.py: the classes it thins, and a training of each way."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import imbalance
from thinner.params import Imbalance

ROOT = Path(__file__).parents[2]


def test_classes_fall_by_a_constant_factor_to_a_fiftieth() -> None:
    found = imbalance.sizes(10, imbalance.LARGEST)
    assert (found[0], found[-1]) == (1000, 20)
    ratios = np.array(found[:-1]) / found[1:]
    assert ratios == pytest.approx(50 ** (1 / 9), rel=0.03)


def test_a_subset_is_drawn_by_its_seed_and_has_the_counts_asked_for() -> None:
    labels = np.arange(3000) % 10
    counts = imbalance.sizes(10, 100)
    chosen = imbalance.thinned(labels, np.arange(3000), counts, 0)
    assert np.bincount(labels[chosen]).tolist() == counts
    assert len(set(chosen)) == len(chosen)
    assert not np.array_equal(chosen, imbalance.thinned(labels, np.arange(3000), counts, 1))


@pytest.mark.parametrize("way", imbalance.WAYS)
def test_every_way_trains_and_is_measured(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imbalance, "LARGEST", 60)
    monkeypatch.setattr(imbalance, "BATCH", 16)
    labels = np.arange(1200) % 10
    images = np.random.default_rng(0).integers(0, 256, (1200, 28, 28, 1), dtype=np.uint8)
    how = Imbalance.model_validate(imbalance.AT_REST | imbalance.WAYS[way])
    found = imbalance.learn(images, labels, np.arange(1000), np.arange(1000, 1200), how, 0, 2, ROOT)
    assert set(imbalance.COLUMNS) <= set(found)
    assert f"| `{way}` | " in imbalance.markdown({way: [found, found]})
