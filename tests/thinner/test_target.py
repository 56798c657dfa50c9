"""Which round becomes the network, and what is said of it."""

from pathlib import Path

import pytest

from thinner.compress import target
from thinner.compress.target import Target
from thinner.config import load_params
from thinner.evidence.drop import Drop


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
    assert target.choose_round(rounds(*rows), Target(key, 0.5)) == chosen


@pytest.mark.parametrize(
    ("asked", "unit", "column", "limit", "bound"),
    [
        (Target("macs", 0.5, tolerance=0.01), "macs", "macs", 500, 1.0),
        (Target("macs", 700), "macs", "macs", 700, None),
        (Target("params", 0.25, "weights"), "nonzero", "nonzero", 250, None),
        (Target("latency_ms", 0.3, latency_batch=64), "latency_ms", "latency_ms_b64", 0.3, None),
        (Target("max_drop", 0.5, tolerance=0.01), "macs", "macs", 100, 0.5),  # as small as it gets, and the drop judges
    ],
)
def test_one_value_says_what_is_counted_how_much_is_allowed_and_what_may_be_lost(asked, unit, column, limit, bound):
    assert (asked.unit, asked.column, asked.bound) == (unit, column, bound)
    assert asked.limit(now=1000, fewest=100) == limit


@pytest.mark.parametrize(
    ("asked", "row", "met"),
    [
        (Target("macs", 0.5), {"macs": 500}, True),
        (Target("macs", 0.5), {"macs": 501}, False),
        # missed only where that is shown: the whole interval lies above
        (Target("latency_ms", 500), {"latency_low": 499, "latency_ms_b1": 505}, True),
        (Target("latency_ms", 500), {"latency_low": 501, "latency_ms_b1": 505}, False),
        (Target("max_drop", 0.5), {"loss_high": 0.4, "macs": 10_000}, True),
        (Target("max_drop", 0.5), {"loss_high": 0.5, "macs": 1}, False),
    ],
)
def test_a_row_meets_the_target_or_not(asked, row, met):
    assert asked.is_met(row, 500) is met


def test_a_round_that_was_to_be_slower_than_asked_is_fast_enough_only_where_that_is_shown():
    asked = Target("latency_ms", 500)
    for high, met in ((501, False), (500, True)):
        assert asked.is_met({"latency_low": 450, "latency_high": high}, 500, cut_to_it=False) is met


def test_params_yaml_gives_the_one_value():
    section = load_params(Path(__file__).parents[2] / "params.yaml").prune
    assert section.asked == Target("macs", 0.5, "channels", section.latency_batch, section.tolerance)


WORDS = {"candidate": "prune", "source": "distill", "why": "No round came as far."}
SIZES = {"size": 1_460_704, "source_size": 3_052_160}


def test_what_is_said_of_a_target_names_what_was_asked_and_what_came_out():
    fine = Drop(0.4, -0.3, 1.1, 2000, 1.0)
    assert target.describe(Target("macs", 0.5), met=True, drop=fine, **WORDS, **SIZES) == [
        "Target met: prune has 1,460,704 MACs, 47.9 % of distill's 3,052,160 MACs; at most 50 % asked."
    ]
    milliseconds = {"met": True, "drop": fine, "size": 1.55, "source_size": 4.0, **WORDS}
    (line,) = target.describe(Target("latency_ms", 1.5), **milliseconds, clocked=(1.48, 1.6))
    assert line.startswith("Target met when the network was cut, and not shown to be missed since: prune has 1.55 ms")
    assert line.endswith("at most 1.5 ms asked. The interval of its milliseconds is [1.48, 1.6].")
    (line,) = target.describe(Target("latency_ms", 1.6), **milliseconds, clocked=(1.48, 1.6))
    assert line.startswith("Target met: prune has 1.55 ms")
    (line,) = target.describe(Target("max_drop", 1.5), met=True, drop=fine, **WORDS, **SIZES)
    assert line.endswith("at most 1.5 asked, and shown, by a test that does not count the other rounds.")
    (missed,) = target.describe(Target("macs", 1_000_000), met=False, drop=fine, **WORDS, **SIZES)
    assert missed.startswith("TARGET MISSED: prune has 1,460,704 MACs")
    assert missed.endswith("at most 1,000,000 asked. No round came as far.")


def test_a_loss_beyond_the_tolerance_is_said_where_it_is_shown():
    lost = Drop(3.0, 2.0, 4.0, 2000, 1.0)
    assert target.describe(Target("macs", 0.5), met=True, drop=lost, **WORDS, **SIZES)[1] == (
        "LOSS SHOWN: prune lost 3.00 points [2.00, 4.00] against distill on 2,000 validation images: more than "
        "prune.tolerance, 1 points."
    )
    (only,) = target.describe(Target("max_drop", 0.5), met=False, drop=lost, **WORDS, **SIZES)
    assert only.startswith("TARGET MISSED: prune lost 3.00 points [2.00, 4.00] against distill")
