"""thinner plan: what is said of a forecast. Whether it comes true: benchmarks/forecast.py."""

import pytest

from flows import console, plan
from flows.plan import Plan, Planned, about
from tasks.forecast import Cost, each_step
from tasks.lineage import Node

PREPARE = Cost("prepare", 20.0, 47_000_000, "60,000 pictures of 28 px")
TEACH = Cost("teach", 754.0, 1_430_000, "1 view of 58,000 images")
WORDS = "2 threads a stage, 2 stages side by side"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (89, "89 s"), (91, "2 min"), (7_100, "118 min"), (7_260, "2 h 1 min"), (100_000, "1.2 days")],
)
def test_times_are_said_as_a_person_says_them(seconds: float, text: str) -> None:
    assert about(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0214, "0.021 s each"), (0.00003, "0.00003 s each"), (1.26, "1.3 s each"), (123, "120 s each")],
)
def test_a_step_of_any_length_has_no_exponent(seconds: float, text: str) -> None:
    assert each_step(seconds) == text


def said(made: Plan) -> list[str]:
    with console.console.capture() as captured:
        plan.print_plan(made)
    return [" ".join(line.split()) for line in captured.get().splitlines() if line.strip()]


def test_a_plan_says_each_stages_time_what_lies_on_the_disk_and_what_next() -> None:
    stages = [Planned("prepare", [], PREPARE), Planned("teach", ["follows finetune"], TEACH)]
    assert said(Plan(stages, 754.0, 1_430_000, 50_000_000_000, WORDS)) == [
        "stage time on disk what why",
        "prepare - - 60,000 pictures of 28 px up to date",
        "teach 13 min 1.43 MB 1 view of 58,000 images follows finetune",
        f"In all about 13 min on this machine as busy as it is now ({WORDS})",
        "On disk 1.43 MB in data, and once more in DVC's cache; 50 GB are free",
        "Next thinner run",
    ]


def test_a_disk_that_is_too_small_is_said_before_anything_runs() -> None:
    lines = said(Plan([Planned("teach", ["changed"], TEACH)], 754.0, 1_430_000, 2_000_000, WORDS))
    assert "The disk is too small for that. Lower teach.views or data.image_size" in lines


def test_a_stage_that_would_be_ended_before_it_is_done_is_said_with_the_mend() -> None:
    def node(name: str, **meta: object) -> Node:
        return Node(name=name, upstream=(), command="", outs=(), meta=meta)

    nodes = [node("prepare", timeout_minutes=60), node("teach", timeout_minutes=12), node("own")]
    lines = tuple(plan.too_long({"prepare": PREPARE, "teach": TEACH, "own": TEACH}, nodes))
    expected = "teach takes about 13 min, but is ended after 12 min. Raise its meta.timeout_minutes in dvc.yaml: 12"
    assert lines == (expected,)
    assert not list(plan.too_long({"teach": TEACH}, [node("teach", timeout_minutes=13)]))
    shown = said(Plan([Planned("teach", ["changed"], TEACH)], 754.0, 1, 10**9, WORDS, lines))
    assert expected in " ".join(shown) and shown[-1] == "Next thinner run"


def test_nothing_to_do_is_said() -> None:
    lines = said(Plan([Planned("prepare", [], PREPARE)], 0.0, 0, 1, WORDS))
    assert lines[-1] == "Everything is up to date: a run takes seconds and trains nothing"
