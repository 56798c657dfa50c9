"""benchmarks/drift.py: what is counted as an alarm, and that pictures which change are found and others are not."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks import drift
from thinner.measure.outputs import Outputs

ROOT = Path(__file__).resolve().parents[2]


def test_an_alarm_is_a_look_in_which_any_test_is_at_most_the_rate() -> None:
    looks = [{"a": 0.01, "b": 1.0}, {"a": 0.04, "b": 0.03}, {"a": 0.3, "b": 0.6}, {"a": 1.0, "b": 0.002}]
    found = drift.counted(looks)
    assert found["looks"] == 4
    strict, loose = (found["rates"][rate] for rate in ("0.01", "0.05"))
    assert (strict["found"], loose["found"]) == (2, 3)
    assert strict["tests"] == {"a": 0.25, "b": 0.25} and loose["tests"] == {"a": 0.5, "b": 0.5}
    assert loose["low"] == pytest.approx(stats.beta.ppf(0.025, 3, 2))
    assert loose["high"] == pytest.approx(stats.beta.ppf(0.975, 4, 1))


def test_a_rate_holds_unless_its_whole_interval_is_above_what_was_said() -> None:
    some = [{"a": 0.001}] * 5 + [{"a": 1.0}] * 195
    assert drift.holds({"as in use": drift.counted(some)})  # 2.5 % [0.8, 5.7]
    many = [{"a": 0.001}] * 12 + [{"a": 1.0}] * 188
    assert not drift.holds({"as in use": drift.counted(some), "drawn anew": drift.counted(many)})  # 6 % [3.1, 10.2]


def test_the_shifts_are_the_corruptions_and_a_missing_class() -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 1), np.uint8)
    labels = np.array([0, 1, 2, 0, 1, 2, 1, 1])
    found = {name: (pictures, truth) for name, pictures, truth in drift.shifts(images, labels, np.arange(8))}
    assert list(found)[1::3] == ["noise 1", "blur 1", "contrast 1", "jpeg 1", "no class 0"] and len(found) == 14
    assert found["none"][0] is images
    for place, (part, whole) in enumerate(((images[[1, 2, 4, 5, 6, 7]], images), (labels[labels > 0], labels))):
        assert np.array_equal(found["no class 0"][place], part)
        assert found["blur 2"][place].shape == whole.shape
    assert all((pictures != images).any() for pictures, _ in list(found.values())[1:13])


def test_what_is_chosen_is_more_often_wrong_than_what_is_drawn() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 2000)
    logits = rng.normal(size=(2000, 4))
    logits[np.arange(2000), labels] += 2.0
    found = drift.labelled(Outputs(logits, rng.normal(size=(2000, 6))), labels, 1.0, seed=0)
    assert found["at random"] < found["thinner watch"] and found["at random"] < found["smallest margin"]


def test_the_page_has_the_numbers_of_the_file() -> None:
    page = (ROOT / "docs/watch.md").read_text()
    for line in drift.render(json.loads((ROOT / drift.RESULTS).read_text())).splitlines():
        assert line in page
