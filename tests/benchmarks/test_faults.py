"""A few of the kills of `python -m benchmarks.faults`, and that it sees what it is there to see."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import faults


def test_a_trial_is_always_the_same_kill() -> None:
    assert faults.plan(0, 7) == faults.plan(0, 7)
    plans = [faults.plan(0, number) for number in range(300)]
    assert {plan["victim"] for plan in plans} == {*faults.VICTIMS, "all"}
    assert {plan["kind"] for plan in plans} == {"moment", "write"}
    assert all(plan["victim"] in ("stage", "dvc", "all") for plan in plans if plan["runner"] == "dvc")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[str, bytes]]:
    return faults.prepared(tmp_path_factory.mktemp("faults"))


@pytest.mark.long
@pytest.mark.parametrize(
    ("victim", "kind", "at"),
    [("stage", "write", "3 after"), ("dvc", "write", "9 after"), ("all", "moment", "9.0 s")],
)
def test_after_a_kill_the_next_run_ends_the_same(
    made: tuple[Any, dict[str, bytes]], tmp_path: Path, victim: str, kind: str, at: str
) -> None:
    row = faults.trial(*made, {"runner": "dvc", "victim": victim, "kind": kind, "at": at}, tmp_path)
    assert row["ended"] in ("same", "too late") if kind == "moment" else row["ended"] == "same"


@pytest.mark.long
def test_what_differs_is_seen(made: tuple[Any, dict[str, bytes]], tmp_path: Path) -> None:
    toy, reference = made
    copy = faults.copy_of(toy, tmp_path)  # out of date, so its results are others
    assert faults.difference(copy.root, reference, "dvc").startswith("differs: data/distill/model.json")
    assert faults.difference(copy.root, faults.content(copy.root), "flow") == "same"
    (copy.root / "data/.partial-distill").mkdir()
    assert faults.difference(copy.root, faults.content(copy.root), "dvc") == "half files: data/.partial-distill"


def test_the_page_is_what_the_numbers_give() -> None:
    rows = json.loads(faults.RESULTS.read_text())
    text = faults.PAGE.read_text()
    fell = [row for row in rows if row["ended"] != "too late"]
    assert f"\n{len(fell)} kills, " in text and f"; {len(rows) - len(fell)} more came too late." in text
