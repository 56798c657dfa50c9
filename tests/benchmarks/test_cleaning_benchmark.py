"""benchmarks/cleaning.py: what is counted as right, by hand."""

import numpy as np
import pytest

from benchmarks import cleaning
from thinner.errors import UserError

# pool 0 to 9; copies of 0 (crop), 1 (jpeg), 2 (mirror), 3 (brightness)
PLANTED = {10: (0, "crop"), 11: (1, "jpeg"), 12: (2, "mirror"), 13: (3, "brightness")}
WANTED = {(0, 10), (1, 11), (2, 12), (3, 13)}


def test_what_was_planted_is_right_and_all_else_with_a_copy_is_wrong() -> None:
    found = cleaning.judge(WANTED, PLANTED)
    assert found["holds"] and found["precision"] == found["strict_precision"] == 1
    found = cleaning.judge({*WANTED, (5, 10), (11, 12)}, PLANTED)
    assert found["wrong"] == 2 and found["precision"] == pytest.approx(4 / 6) and not found["holds"]


def test_a_copy_is_like_what_its_original_is_like() -> None:
    """0 and 4 are a pair already, so the copy of 0 and 4 are one, and so is 4's likeness to it alone no mistake."""
    found = cleaning.judge({*WANTED, (0, 4), (4, 10)}, PLANTED)
    assert (found["natural"], found["wrong"], found["precision"]) == (1, 0, 1)
    assert found["strict_precision"] == pytest.approx(4 / 6)
    found = cleaning.judge({*WANTED, (0, 1), (10, 11)}, PLANTED)
    assert found["wrong"] == 0


def test_a_kind_that_is_not_found_misses_the_bound() -> None:
    found = cleaning.judge(WANTED - {(2, 12)}, PLANTED)
    assert found["recall"] == {"crop": 1, "jpeg": 1, "mirror": 0, "brightness": 1} and not found["holds"]
    assert not cleaning.judge(set(), PLANTED)["holds"]


@pytest.mark.parametrize("channels", [1, 3])
def test_copies_are_of_different_pictures_and_changed(channels: int) -> None:
    rng = np.random.default_rng(0)
    pool = rng.integers(0, 200, (20, 20, 20, channels), np.uint8)
    images, planted = cleaning.plant(pool, 3, rng)
    assert len(images) == 32 and len({original for original, _ in planted.values()}) == 12
    for copy, (original, kind) in planted.items():
        assert (images[copy] != pool[original]).any()
        if kind == "mirror":
            np.testing.assert_array_equal(images[copy], pool[original][:, ::-1])
        if kind == "brightness":
            ratio = images[copy].astype(float).sum() / pool[original].sum()
            assert ratio == pytest.approx(0.85, abs=0.01) or ratio == pytest.approx(1.15, abs=0.01)
    with pytest.raises(UserError, match="--copies: 6 of 4 kinds are more than the 20 pictures"):
        cleaning.plant(pool, 6, rng)


def test_flipped_labels_are_as_many_as_asked_and_all_wrong() -> None:
    labels = np.arange(1000) % 10
    changed, which = cleaning.flipped(labels, 0.05, 10, seed=3)
    assert len(which) == 50 and (np.flatnonzero(changed != labels) == which).all()
    assert changed.min() >= 0 and changed.max() < 10


def test_check_holds_only_if_all_that_was_measured_does() -> None:
    right = {"holds": True}
    assert cleaning.holds({"fashion": right, "suspects": [right, right]})
    assert not cleaning.holds({"fashion": right, "suspects": [right, {"holds": False}]})
    assert not cleaning.holds({})
