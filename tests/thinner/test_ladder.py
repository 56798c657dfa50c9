"""Which rung is chosen, which layers stay in float, and the sentence that says so: by hand."""

import numpy as np
import pytest

from thinner.evidence import ladder
from thinner.evidence.drop import Drop, drop_of


def row(rung, holds, loss_high):
    return {"rung": rung, "holds": holds, "loss_high": loss_high}


def test_the_best_calibration_is_taken_before_it_is_asked_whether_it_holds():
    rows = [row("static", True, 0.45), row("static", True, 0.3)]
    assert ladder.choose(rows) is rows[1]


def test_the_cheapest_rung_that_holds_is_taken():
    rows = [row("static", False, 0.8), row("mixed", False, 0.6), row("mixed", True, 0.49), row("trained", True, 0.1)]
    assert ladder.choose(rows) is rows[2]


def test_where_none_holds_it_is_the_one_that_may_have_lost_least():
    rows = [row("static", False, 3.0), row("mixed", False, 0.7), row("trained", False, 0.9)]
    assert ladder.choose(rows) is rows[1]


LAYERS = [
    {"layer": "a", "weights": 10, "divergence": 0.1},
    {"layer": "b", "weights": 70, "divergence": 0.9},  # the most divergent, but too large
    {"layer": "c", "weights": 10, "divergence": 0.5},
    {"layer": "d", "weights": 0, "divergence": 0.4},
    {"layer": "e", "weights": 10, "divergence": 0.2},
    {"layer": "f", "weights": 0, "divergence": 0.0},  # changes nothing
]


@pytest.mark.parametrize(
    ("max_float", "expected"),
    [
        (0.0, []),
        (0.1, [["c"]]),  # of six layers one
        (0.3, [["c"], ["c", "d"]]),
        (0.5, [["c"], ["c", "d"], ["c", "d", "e"]]),
        (0.7, [["b"], ["b", "d"]]),  # one of the others with weights would be too many
        (1.0, [["b"], ["b", "c"], ["b", "c", "d", "e"], ["b", "c", "d", "e", "a"]]),
    ],
)
def test_layers_stay_in_float_by_what_they_lose_and_as_many_as_fit(max_float, expected):
    assert ladder.float_sets(LAYERS, max_float) == expected


def test_nothing_to_leave_in_float_is_no_set():
    assert ladder.float_sets([{"layer": "b", "weights": 70, "divergence": 0.9}], 0.5) == []


def test_it_holds_when_more_is_excluded():
    source = np.ones(2000, dtype=bool)
    right = source.copy()
    right[:2] = False
    assert ladder.judged(drop_of(right, source, 0.5))["holds"]
    right[:10] = False  # half a point: no more is not shown
    assert not ladder.judged(drop_of(right, source, 0.5))["holds"]


def test_the_sentence_says_what_came_out():
    found = {"rung": "mixed", "holds": True, "calibration": "entropy", "float_layers": 3}
    (line,) = ladder.describe("prune_int8", "prune", found, ["static", "mixed"], Drop(0.1, -0.1, 0.3, 2000, 0.5), 12)
    assert line == (
        "8 bits hold: prune_int8 (mixed, 3 of 12 layers in float) lost 0.10 points [-0.10, 0.30] against prune on 2,000 "
        "validation images; at most 0.5 asked, and shown."
    )
    drop = Drop(0.1, -0.1, 0.3, 2000, 0.5)
    (line,) = ladder.describe("prune_int8", "prune", found, ["static", "mixed"], drop, 12, besides=3)
    assert line.endswith("asked, and shown, by a test that does not count the 3 attempts before it.")
    (line,) = ladder.describe("prune_int8", "prune", found | {"rung": "static"}, ["static"], drop, 12, besides=2)
    assert line.endswith("asked, and shown, by a test that does not count the 2 other calibrations.")
    found |= {"rung": "static", "holds": False}
    (line,) = ladder.describe("prune_int8", "prune", found, ["static"], Drop(2, 1, 3, 2000, 0.5), 12)
    assert line.startswith("8 BITS DO NOT HOLD: prune_int8 (static, calibrated by entropy) lost 2.00 points [1.00, ")
    assert line.endswith(
        "No rung of the ladder (static) is shown to lose so little. The best is kept, and is not to be shipped."
    )
