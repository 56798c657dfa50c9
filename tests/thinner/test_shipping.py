"""What is said first: targets, and whether there is something to ship."""

import json
from typing import Any

import pytest

from thinner.evidence import shipping

PROVEN = {"claim": "prune beats scratch on accuracy", "outcome": "proven", "kind": "beats"}
OPEN = {"claim": "prune is within 1.0 points of distill on accuracy", "outcome": "not shown", "kind": "within"}


def row(accuracy: float, macs: int, runtime: str = "pytorch") -> dict[str, Any]:
    return {
        "accuracy": accuracy,
        "macs": macs,
        "file_bytes": 4 * macs,
        "latency_ms_b64": macs / 1e6,
        "runtime": runtime,
    }


METRICS = {
    "finetune": row(0.83, 30_000_000),
    "scratch": row(0.73, 3_000_000),
    "distill": row(0.71, 3_000_000),
    "prune": row(0.70, 1_500_000),
    "prune_onnx": row(0.99, 1_500_000, "onnxruntime"),
}
MET = {
    "candidate": "prune",
    "met": True,
    "lines": ["Target met: a."],
    "target": {"macs": 0.5},
    "loss_bound": 1.0,
    "within_bound": "not shown",
}
MISSED = {**MET, "met": False, "lines": ["TARGET MISSED: b."]}


def test_a_network_is_to_ship_when_every_claim_is_proven_and_its_target_met() -> None:
    line = shipping.ship_line(METRICS, "prune", [PROVEN, PROVEN], [MET])
    assert line == (
        "To ship: prune (2 of 2 claims proven). It is right on 70.0 %, its file has 6 MB, and a batch of 64 takes "
        "1.5 ms in PyTorch."
    )


def test_where_a_claim_is_open_nothing_is_and_the_best_networks_are_named_with_their_costs() -> None:
    line = shipping.ship_line(METRICS, "prune", [PROVEN, OPEN], [MET])
    assert line == (
        "Nothing is ready to ship (1 of 2 claims proven). not shown: prune is within 1.0 points of distill on accuracy. "
        "The most accurate is finetune. It is right on 83.0 %, its file has 120 MB, and a batch of 64 takes 30 ms in "
        "PyTorch. Of those with the student's MACs or fewer it is scratch. It is right on 73.0 %, its file has 12 MB, "
        "and a batch of 64 takes 3 ms in PyTorch."
    )


def test_a_missed_target_no_claims_and_what_was_not_evaluated_are_not_to_ship() -> None:
    agrees = {"claim": "prune_onnx_int8 agrees with prune on 98 % of images", "outcome": "proven", "kind": "agrees"}
    assert shipping.open_points("prune_onnx_int8", [PROVEN, agrees], [MISSED]) == ["prune missed its target"]
    other = {**MISSED, "candidate": "prune_finetune"}
    assert shipping.open_points("prune_onnx_int8", [PROVEN, agrees], [other]) == []
    its_own = {**PROVEN, "claim": "prune_finetune_onnx agrees with finetune on 90 % of images", "kind": "agrees"}
    assert shipping.open_points("prune_finetune_pt2", [its_own], [other]) == ["prune_finetune missed its target"]
    assert shipping.open_points("prune", [], [MET]) == ["no claims were made (docs/claims.md has the grammar)"]
    assert shipping.ship_line(METRICS, "other", [PROVEN], []) == "Nothing is ready to ship: other was not evaluated."


def test_a_shown_loss_is_an_open_point_where_the_target_is_a_size_and_told_once_where_it_is_the_target() -> None:
    lost = {**MET, "within_bound": "refuted"}
    said = "prune was shown to have lost more than prune.tolerance, 1 points of accuracy"
    assert shipping.open_points("prune_onnx", [PROVEN], [lost]) == [said]
    assert shipping.open_points("prune_onnx", [PROVEN], [{**lost, "candidate": "prune_finetune"}]) == []
    asked = {**MISSED, "within_bound": "refuted", "target": {"max_drop": 1.0}}
    assert shipping.open_points("prune", [PROVEN], [asked]) == ["prune missed its target"]


def test_claims_that_say_nothing_of_the_answers_do_not_make_a_network_ready() -> None:
    """A network that is always wrong is as small and as fast."""
    small = {"claim": "prune has at most 50 % of the MACs of distill", "outcome": "proven", "kind": "at_most"}
    other = {"claim": "distill beats scratch on accuracy", "outcome": "proven", "kind": "beats"}
    said = "no claim is about how prune answers, such as its accuracy (docs/claims.md has the grammar)"
    assert shipping.open_points("prune", [small, other], [MET]) == [said]
    assert shipping.open_points("prune_onnx", [small, other, PROVEN], [MET]) == []


@pytest.mark.parametrize(
    ("claim", "shipped", "ready"),
    [
        ("prune is within 1 points of distill on accuracy", "prune", True),
        ("prune_onnx is within 1 points of distill on accuracy", "prune", True),  # the same network in floats
        ("prune answers 60 % of images with at least 98 % accuracy", "prune_pt2", True),
        ("prune_onnx agrees with prune on 98 % of images", "prune", False),  # says of the export that it is one
        ("scratch is within 50 points of prune on accuracy", "prune", False),  # is about scratch
        ("prune_int8 is within 1 points of distill on accuracy", "prune", False),  # 8 bits are another network
        ("prune is within 1 points of distill on accuracy", "prune_onnx_int8", False),
        ("prune_onnx_int8 is within 1 points of distill on accuracy", "prune_onnx_int8", True),
    ],
)
def test_a_claim_has_to_be_about_what_is_shipped(claim: str, shipped: str, ready: bool) -> None:
    kind = "answers" if "answers" in claim else "agrees" if "agrees" in claim else "within"
    verdict = {"claim": claim, "outcome": "proven", "kind": kind}
    assert (shipping.open_points(shipped, [verdict], [MET]) == []) == ready


def test_8_bits_that_the_ladder_has_judged_need_no_claim_of_their_own() -> None:
    held = {"candidate": "prune_int8", "met": True, "lines": ["8 bits hold."], "rung": "static"}
    assert shipping.open_points("prune_int8", [PROVEN], [MET, held]) == []
    assert shipping.open_points("prune_int8", [PROVEN], [MET]) == [
        "no claim is about how prune_int8 answers: claim that it agrees with prune"
    ]


def test_targets_are_read_from_every_pruning_stage_and_a_missed_one_is_told_first(tmp_path: Any) -> None:
    assert shipping.read_targets(tmp_path) == []
    for place, target in {"prune": MET, "prune_also/finetune": {**MISSED, "candidate": "prune_finetune"}}.items():
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "target.json").write_text(json.dumps(target))
    found = shipping.read_targets(tmp_path)
    assert [target["candidate"] for target in found] == ["prune", "prune_finetune"]
    assert shipping.target_lines(found) == ["TARGET MISSED: b.", "Target met: a."]


def test_batches_are_those_that_any_candidate_was_timed_at() -> None:
    timed = {"latency_ms_b64": 1.0, "latency_ms_b64_p95": 2.0, "latency_ms_b8": 0.5, "latency_ms_b08": 0.5}
    assert shipping.latency_batches({"distill": {"accuracy": 0.9}, "prune": timed, "small": {"latency_ms_b1": 1}}) == [
        1,
        8,
        64,
    ]
    assert shipping.latency_batches({}) == []
