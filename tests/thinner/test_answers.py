"""thinner.evidence.answers: the report's first screen, and what to take instead; worked out by hand on ten images."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.measured import METRICS, SMALL, TEACHER, row, with_candidates
from thinner.evidence.answers import alternatives, first_answers
from thinner.evidence.results import Results

PROVEN = [{"claim": "prune beats small on accuracy", "kind": "beats", "outcome": "proven", "numbers": ""}]
WHAT = {"prune": "distill with channels removed"}


def answers(results: Results) -> dict[str, tuple[str, tuple[str, ...]]]:
    return {answer.question: (answer.short, answer.more) for answer in first_answers(results, WHAT)}


def test_the_first_screen_says_which_how_sure_what_it_costs_and_what_it_lost(results: Results) -> None:
    runs = {
        name: {"commit": "", "dirty": False, "seconds": s, "joules": None} for name, s in (("a", 125.0), ("b", 61.0))
    }
    told = answers(replace(results, verdicts=PROVEN, runs=runs))
    assert list(told) == ["Which one?", "How sure?", "What does it cost?", "What did it lose?"]
    assert told["Which one?"] == ("prune", ("distill with channels removed; it lies in data/prune.",))
    # Wilson's interval of 7 in 10, by hand: (0.7 + z2/20 -+ z sqrt(0.021 + z2/400)) / (1 + z2/10), z = 1.96
    assert told["How sure?"][0] == "1 of 1 claims proven"
    assert "Right on 70.0 % of 10 test images, 95 % interval [39.7, 89.2]." in told["How sure?"][1]
    assert told["What does it cost?"] == (
        "120 kB, 4 ms for 64 images",
        (
            "Against finetune: 30.0x faster, its file 100x smaller.",
            "300 k MACs and 30 k parameters.",
            "To make it and all it is compared with, stages computed for 3 min 06 s, added up; what it takes to start "
            "them comes on top.",
        ),
    )
    short, (whole, by_class) = told["What did it lose?"]
    assert short == "Nothing that shows"  # two images of ten
    assert whole.startswith("\N{MINUS SIGN}20.0 points [") and whole.endswith("] against finetune, on the same images.")
    # bag: 4 images, the teacher 3 right and the small one 2; coat: 3 images, 3 and 2
    assert by_class.startswith("By class most on </script><b>coat: \N{MINUS SIGN}33.3 points [")


def test_a_loss_and_a_gain_are_called_so_only_where_the_interval_shows_them(results: Results) -> None:
    labels = np.arange(400) % 3
    off = (labels + 1) % 3
    worse, better = labels.copy(), labels.copy()
    worse[:100], better[:4] = off[:100], off[:4]

    def lost(small: np.ndarray, teacher: np.ndarray) -> str:
        predictions = dict.fromkeys(METRICS, small) | {"finetune": teacher}
        return answers(
            replace(results, index=np.arange(len(labels)), confidences={}, labels=labels, predictions=predictions)
        )["What did it lose?"][0]

    assert lost(worse, better) == "24.0 points"
    assert lost(better, worse) == "Nothing: +24.0 points"
    assert lost(better, better) == "Nothing that shows"


def test_what_is_not_ready_is_not_called_the_one(results: Results) -> None:
    missed = [{"candidate": "prune", "met": False, "lines": ["TARGET MISSED"]}]
    told = answers(replace(results, verdicts=PROVEN, targets=missed))
    assert told["Which one?"] == ("None yet", ("prune is not ready: prune missed its target.",))
    unknown = replace(results, params={**results.params, "ship": {"candidate": "nobody"}})
    assert answers(unknown)["Which one?"][0] == "None yet"
    teacher = replace(results, verdicts=PROVEN, params={**results.params, "ship": {"candidate": "finetune"}})
    assert answers(teacher)["What did it lose?"][0] == "Nothing: it is the baseline"
    export = replace(results, verdicts=PROVEN, params={**results.params, "ship": {"candidate": "prune_onnx"}})
    assert answers(export)["Which one?"] == ("prune_onnx", ("It lies in data/export/prune_onnx.",))


def timed(accuracy: float, size: int, ms: float, runtime: str = "pytorch") -> dict[str, Any]:
    return row(accuracy, size, ms, runtime) | {"latency_ms_b64_low": 0.99 * ms, "latency_ms_b64_high": 1.01 * ms}


def test_alternatives_have_a_price_and_a_gain_and_are_beaten_by_no_other(results: Results) -> None:
    right, wrong = np.zeros(400, dtype=int), np.zeros(400, dtype=int)
    three_wrong = right.copy()
    three_wrong[:2] = 1  # 0.5 points
    wrong[:200] = 1
    measured = {
        "finetune": timed(1.0, 3_000_000, 120.0),  # as accurate as prune, and dearer
        "scratch": timed(0.5, 10_000, 0.5),  # a control, however fast
        "distill": timed(0.995, 60_000, 8.0),  # beaten by prune in all
        "prune": timed(1.0, 30_000, 4.0),
        "prune_finetune": timed(0.995, 30_000, 1.9),
        "prune_scratch": timed(0.5, 30_000, 2.0),  # beaten by prune_finetune
        "prune_onnx": timed(1.0, 29_900, 3.0, "onnxruntime"),
        "prune_onnx_int8": timed(1.0, 7_500, 4.02, "onnxruntime"),  # as fast, as far as is known
    }
    predictions = dict.fromkeys(measured, right) | {
        "distill": three_wrong, "prune_finetune": three_wrong, "scratch": wrong, "prune_scratch": wrong,
    }  # fmt: skip
    told = replace(
        results, metrics=measured, index=np.arange(len(right)), confidences={}, labels=right, predictions=predictions
    )
    table = alternatives(told)
    assert table is not None
    assert table.headings == ["if you can afford", "take", "and get", "accuracy", "batch of 64", "file"]
    assert [cells[:3] for cells in table.rows] == [
        ["ONNX Runtime", "prune_onnx", "1.3x faster"],
        ["ONNX Runtime", "prune_onnx_int8", "file 4.0x smaller"],
        ["0.5 points", "prune_finetune", "2.1x faster"],
    ]
    better = {**measured, "prune_int8": timed(1.0, 7_000, 2.9, "onnxruntime")}
    for target, shown in (
        ([], "prune_int8"),
        ([{"candidate": "prune_int8", "rung": "static", "met": False}], "prune_onnx"),
    ):
        beside = replace(told, metrics=better, predictions=predictions | {"prune_int8": right}, targets=target)
        assert shown in [cells[1] for cells in alternatives(beside).rows]  # what must not be advised beats nothing
    assert table.rows[2][3].startswith("99.5 %, \N{MINUS SIGN}0.5 [\N{MINUS SIGN}")
    assert table.rows[2][4:] == ["1.9 ms", "120 kB"]


def test_more_accurate_is_a_gain_where_it_is_shown_and_slower_and_larger_are_its_price(results: Results) -> None:
    labels = np.zeros(400, dtype=int)
    small = labels.copy()
    small[:40] = 1
    measured = {"finetune": timed(1.0, 300_000, 120.0), "prune": timed(0.9, 30_000, 4.0)}
    told = replace(
        results,
        metrics=measured,
        index=np.arange(len(labels)),
        confidences={},
        labels=labels,
        predictions={"finetune": labels, "prune": small},
    )
    table = alternatives(told)
    assert table is not None
    assert [cells[:3] for cells in table.rows] == [["30.0x slower and file 10.0x larger", "finetune", "+10.0 points"]]
    same = replace(told, predictions={"finetune": small, "prune": small})
    assert alternatives(same) is None


@pytest.mark.parametrize("name", ["distill", "prune_onnx"])
def test_every_candidate_may_be_the_one_that_is_asked_for(results: Results, name: str) -> None:
    told = replace(
        with_candidates(results, prune_onnx_int8=row(0.7, 20_000, 2.0, "onnxruntime")),
        params={**results.params, "ship": {"candidate": name}},
    )
    assert {len(answer.more) > 0 for answer in first_answers(told, {})} == {True}
    table = alternatives(told)
    assert table is not None and name not in [cells[1] for cells in table.rows]
    assert (TEACHER != SMALL).sum() == 2
