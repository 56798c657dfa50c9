"""thinner/evidence/search.py: fronts, limits and ranks worked by hand."""

from pathlib import Path

import pytest

from thinner.evidence import search, statistics

DEFAULT = {"name": "default", "accuracy": 0.90, "params": 1000, "latency_ms_b1": 1.0}
ROWS = [  # cheapest to dearest; b is as dear as c and worse, e is dearer than d and no better
    {"name": "a", "accuracy": 0.80, "params": 100, "latency_ms_b1": 0.9},
    {"name": "b", "accuracy": 0.85, "params": 200, "latency_ms_b1": 0.5},
    {"name": "c", "accuracy": 0.898, "params": 200, "latency_ms_b1": 1.2},
    {"name": "d", "accuracy": 0.91, "params": 500, "latency_ms_b1": 0.8},
    {"name": "e", "accuracy": 0.91, "params": 900, "latency_ms_b1": 0.8},
]


def names(rows: list) -> str:
    return "".join(row["name"] for row in rows)


def test_the_front_has_no_row_that_another_beats() -> None:
    assert names(search.front(ROWS, "accuracy", "params")) == "acd"
    assert names(search.front(ROWS, "accuracy", "latency_ms_b1")) == "bde"  # d and e are one point
    assert search.front([], "accuracy", "params") == []


def test_a_limit_is_kept_by_who_just_reaches_it() -> None:
    assert search.missed(ROWS[3], {"params": 500, "latency_ms_b1": 0.8}) == []
    assert search.missed(ROWS[3], {"params": 499, "latency_ms_b1": 0.79}) == [
        "parameters 500 > 499",
        "latency, batch 1 0.8 ms > 0.79 ms",
    ]


def test_with_limits_the_most_accurate_comes_first_and_without_the_cheapest_that_is_good_enough() -> None:
    assert names(search.rank(ROWS, DEFAULT, "accuracy", "params", {"params": 500}, 0.005)) == "dca"
    # which b alone keeps to
    assert names(search.rank(ROWS, DEFAULT, "accuracy", "params", {"latency_ms_b1": 0.7}, 0.005)) == "b"
    assert names(search.rank(ROWS, DEFAULT, "accuracy", "params", {}, 0.005)) == "cda"
    assert names(search.rank(ROWS, DEFAULT, "accuracy", "params", {}, 0.001)) == "dca"
    assert search.rank(ROWS, DEFAULT, "accuracy", "params", {"params": 99}, 0.005) == []


@pytest.mark.parametrize(
    ("against", "second"),
    [
        ("latency_ms_b64", "trial_7 is faster than default at batch 64 in onnxruntime"),
        ("params", "trial_7 is smaller than default in parameters"),
        ("macs", "trial_7 is smaller than default in MACs"),
        ("file_bytes", "trial_7 is smaller than default in bytes"),
    ],
)
def test_what_is_claimed_of_a_trial_can_be_judged(against: str, second: str) -> None:
    claims = search.claims_about("trial_7", "accuracy", against, 0.5, "onnxruntime")
    assert claims == ["trial_7 is within 0.5 points of default on accuracy", second]
    statistics.parse_claims(claims, ["default", "trial_7"], ["onnxruntime"])


@pytest.mark.parametrize(
    ("name", "batch"), [("latency_ms_b1", 1), ("latency_ms_b64", 64), ("latency_ms_b0", None), ("params", None)]
)
def test_costs_are_known_by_name(name: str, batch: int | None) -> None:
    assert search.batch_of(name) == batch
    assert search.is_cost(name) == (name != "latency_ms_b0")
    assert not search.is_cost("accuracy")


def test_the_table_has_a_row_a_trial() -> None:
    rows = [{**ROWS[3], "values": {"student.width": "`8`"}, "note": "on the front"}]
    assert search.table(rows, ["student.width", "prune.rounds"], "accuracy", ["params", "latency_ms_b1"]) == (
        "| | `student.width` | `prune.rounds` | accuracy | parameters | latency, batch 1 | |\n"
        "|---|---|---|---:|---:|---:|---|\n"
        "| d | `8` |  | 91.0 % | 500 | 0.8 ms | on the front |\n"
    )


@pytest.mark.parametrize("against", ["params", "latency_ms_b1"])  # of a wide range, and of a narrow one
def test_the_figure_is_the_same_for_the_same_rows(tmp_path: Path, against: str) -> None:
    for name in ("one.svg", "two.svg"):
        search.draw(ROWS, DEFAULT, "accuracy", against, {against: 0.85}, "Which?", tmp_path / name)
    text = (tmp_path / "one.svg").read_text()
    assert text == (tmp_path / "two.svg").read_text()
    assert "Which?" in text and "misses a limit" in text and "default" in text
