"""flows/search.py and flows/trials.py: what a file may say, which trials come, and a whole search on digits."""

import contextlib
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import psutil
import pytest
import yaml

from flows import search as searching
from flows import trials, worktrees
from tests import clusters, forked
from tests.copies import commit_all, copy_project
from tests.empty import put_stores
from tests.stores import postgres
from tests.test_end_to_end import SMALL, set_params
from tests.toy import eventually, kill_family
from thinner.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")  # inside DVC's trie
ROOT = Path(__file__).resolve().parents[2]
SEARCH: dict[str, Any] = {
    "title": "Which?",
    "candidate": "distill",
    "space": {"student.width": [12, 16], "distill.temperature": {"low": 2.0, "high": 8.0, "log": True}},
    "against": "params",
    "constraints": {"latency_ms_b1": 1.0, "file_bytes": 200000},
    "trials": 4,
}


def load(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> tuple[trials.Search, trials.Space]:
    monkeypatch.chdir(ROOT)
    path = folder / "small.yaml"
    given = {key: value for key, value in {**SEARCH, **changes}.items() if value is not None}
    path.write_text(yaml.safe_dump(given, sort_keys=False))
    return searching.load_search(path, ROOT)


# ---------------------------------------------------------------------------------------------------- the file


def test_a_search_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, space = load(tmp_path, monkeypatch)
    assert found.costs == ["params", "latency_ms_b1", "file_bytes", "macs"] and found.batches == [1]
    assert space["student.width"].ends == (12, 16) and space["distill.temperature"].ends == (2.0, 8.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": {}}, "space: empty. Name at least one key of params.yaml"),
        ({"space": {"studnt.width": [8, 16]}}, "space.studnt.width, 8: 'studnt.width' is no key of params.yaml"),
        ({"space": {"student.widht": [8, 16]}}, r"space.student.widht, 8: student.widht: unknown key .*mean 'width'"),
        (
            {"space": {"student.width": [16, -4]}},
            "space.student.width, -4: student.width: -4: .*greater than or equal to 1",
        ),
        ({"space": {"student.network": ["resnet8", "resnet9"]}}, '"resnet9": student.network: unknown'),
        ({"space": {"student.width": [8]}}, "space.student.width: .*two different values at least"),
        ({"space": {"student.width": [8, 8]}}, "space.student.width: .*each once"),
        ({"space": {"student.width": 8}}, "space.student.width: 8: a list of values, or low and high"),
        ({"space": {"student.width": {"low": 8}}}, "a list of values, or low and high"),
        ({"space": {"student.width": {"low": 8, "high": 4}}}, "low: 8 and high: 4 are no two numbers"),
        ({"space": {"prune.tolerance": {"low": 0, "high": 1, "log": True}}}, "log: True: true needs a low above 0"),
        ({"space": {"student.width": {"low": 8, "high": 16, "step": 9}}}, "step: 9 is no number above 0 and at most 8"),
        ({"space": {"run.seed": [0, 1]}}, "space.run.seed: all trials answer for the same pictures"),
        ({"space": {"data.validation": [100, 200]}}, "space.data.validation: all trials answer for the same pictures"),
        ({"set": {"student.width": 8}}, "set.student.width: is in space as well"),
        ({"set": {"student.width": 0}, "space": {"distill.temperature": [1.0, 2.0]}}, "student.width: 0: .*greater"),
        ({"constraints": {"latency": 1.0}}, "constraints: unknown 'latency'.*file_bytes, latency_ms_bN"),
        ({"constraints": {"param": 1.0}}, "constraints: unknown 'param'. Did you mean 'params'"),
        ({"constraints": {"params": 0}}, "constraints.params: 0: .*greater than 0"),
        ({"against": "flops"}, "against: unknown 'flops'"),
        ({"candidate": "prun"}, "candidate: unknown 'prun'. Did you mean 'prune'"),
        ({"candidate": "prune_onnx"}, "candidate: unknown 'prune_onnx'"),
        ({"trials": None}, "Give trials, minutes or both"),
        ({"trials": 0}, "trials: 0: .*greater than or equal to 1"),
        ({"format": "tflite"}, "format: unknown 'tflite'. Choose one of: onnx"),
        ({"give_up": {"prune": 1.0}}, "give_up: 'prune' trains nothing on the way to distill. Choose one of: finetune"),
        ({"give_up": {"finetune": 1.0}, "measure": "macro_f1"}, "give_up: training looks at accuracy and accuracy"),
        (
            {"candidate": "prune_int8"},
            "format: none, but prune_int8 runs in ONNX Runtime, so all have to: format: onnx",
        ),
        (
            {"space": {"ship.candidate": ["distill", "prune_int8"]}, "format": "openvino"},
            "format: openvino, but prune_int8 runs in ONNX Runtime",
        ),
        ({"space": {"ship.candidate": ["distill", "prune_onnx"]}}, "space.ship.candidate: unknown 'prune_onnx'"),
        ({"set": {"ship.candidate": "prune"}}, "set.ship.candidate: here .* Write candidate: prune"),
        (
            {"candidate": "prune_int8", "format": "onnx", "set": {"quantize.source": "distill"}},
            "set.quantize.source: it says whose 8 bits",
        ),
        ({"retest": {"seeds": [1, 1]}}, r"retest.seeds: \[1, 1\] has one twice"),
        ({"retest": {"seeds": [1, 0, 2]}}, "retest.seeds: 0 is run.seed, by which the networks are chosen"),
        (
            {"retest": {"seeds": [1]}, "against": "latency_ms_b1", "set": {"evaluate.latency_repeats": 6}},
            "retest: latency_ms_b1 is compared in 10 rounds or more, and evaluate.latency_repeats is 6. Give it 10",
        ),
        ({"colour": "red"}, "colour: 'red': extra inputs"),
    ],
)
def test_a_mistake_in_a_search_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as raised:
        load(tmp_path, monkeypatch, **changes)
    assert f"{tmp_path / 'small.yaml'}: " in str(raised.value)


@pytest.mark.integration
def test_a_value_that_is_right_in_some_combination_is_no_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # resnet8 of width 8 cannot lose half of its MACs in steps of 16 channels, but in steps of 8
    space = {"student.width": [8, 16], "prune.round_to": [8, 16]}
    assert set(load(tmp_path, monkeypatch, candidate="prune", space=space)[1]) == set(space)
    with pytest.raises(UserError, match="space.student.width, 8: prune.target: 386,208 MACs are asked for"):
        load(tmp_path, monkeypatch, candidate="prune", space={"student.width": [8, 16]})


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml: no such file\. docs/search\.md"):
        searching.load_search(tmp_path / "none.yaml", ROOT)


def test_without_optuna_the_command_that_installs_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^thinner search .* not installed: pip install -e '\.\[search\]'$"):
        searching.start(Path("searches/default.yaml"), 1, None)


@pytest.mark.integration
@pytest.mark.parametrize("path", sorted((ROOT / "searches").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_searches_are_right(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    searching.load_search(path, ROOT)


# ---------------------------------------------------------------------------------------------------- the trials


def test_combinations_are_all_of_them_or_none_where_they_cannot_be_counted() -> None:
    space = trials.read_space({"a": [1, None], "b": {"low": 2, "high": 6, "step": 2}})
    assert trials.combinations(space) == [{"a": a, "b": b} for a in (1, None) for b in (2, 4, 6)]
    assert trials.combinations(trials.read_space({"a": [1, 2], "b": {"low": 0.5, "high": 1}})) is None
    steps = trials.read_space({"a": {"low": 0.1, "high": 0.75, "step": 0.2}})
    assert trials.combinations(steps) == [{"a": 0.1}, {"a": 0.3}, {"a": 0.5}, {"a": 0.7}]
    assert steps["a"].tell(0.1 + 0.2) == 0.3 and steps["a"].tell(0.4) is None


def test_time_side_by_side_counts_once_and_pauses_do_not() -> None:
    start = datetime(2026, 1, 1)

    def span(begin: float, end: float | None) -> SimpleNamespace:
        stop = None if end is None else start + timedelta(seconds=end)
        return SimpleNamespace(datetime_start=start + timedelta(seconds=begin), datetime_complete=stop)

    spans = [span(100, 130), span(0, 10), span(5, 20), span(6, 7), span(120, None)]
    assert trials.busy_seconds(spans, start + timedelta(seconds=150)) == 20 + 50
    assert trials.busy_seconds([]) == 0


def test_milliseconds_are_those_of_the_default_times_the_ratio() -> None:
    measured = {"trial": {"accuracy": 0.9, "latency_ms_b1": 3.0}, "default": {"latency_ms_b1": 4.0}}
    assert searching.beside(measured, {"latency_ms_b1": 2.0}) == {"accuracy": 0.9, "latency_ms_b1": 1.5}


def test_a_trial_that_is_far_behind_on_the_way_is_given_up(tmp_path: Path) -> None:
    history = tmp_path / "reports/distill/history.csv"
    history.parent.mkdir(parents=True)
    rows = [  # the best of all is dear; the best that keeps to the limit had 80 % on its way
        {"name": "trial 3", "accuracy": 0.95, "params": 99, "way": {"distill": 0.94}},
        {"name": "trial 4", "accuracy": 0.81, "params": 9, "way": {"distill": 0.80}},
        {"name": "trial 5", "accuracy": 0.70, "params": 9, "way": {"distill": 0.90}},
    ]
    job: Any = SimpleNamespace(
        search=SimpleNamespace(give_up={"distill": 3.0}, measure="accuracy", constraints={"params": 10}),
        trials=SimpleNamespace(rows=lambda: rows),
        values=lambda values: {"imbalance": {"choose_by": "accuracy"}},
    )
    way: dict[str, float] = {}
    curves: dict[str, searching.Curve] = {}
    history.write_text("step,val_accuracy,val_loss\n1,0.771,1\n2,0.769,1\n")
    searching._look(job, tmp_path, "teach", way, curves)
    assert way == {}
    searching._look(job, tmp_path, "distill", way, curves)
    assert way == {"distill": 0.771} and curves == {"distill": [(1, 0.771), (2, 0.771)]}
    history.write_text("step,val_accuracy,val_loss\n1,0.7,1\n2,0.769,1\n")
    with pytest.raises(searching.GivenUpError, match="distill 76.90% .* 3.10 points below that of trial 4"):
        searching._look(job, tmp_path, "distill", way, curves)
    rows.clear()
    searching._look(job, tmp_path, "distill", way, curves)  # behind nobody


TRAINING = """
import json, sys, time
print("what is no bar", flush=True)
for step, score in ((100, 0.2), (400, 0.5), (500, 0.66), (600, 0.71), (800, 0.77), (1000, 0.9)):
    numbers = {"loss": 1.0, "val_accuracy": score}
    event = {"stage": "distill", "description": sys.argv[1], "done": step, "total": int(sys.argv[2]),
             "numbers": numbers, "last": False}
    print("::progress " + json.dumps(event), flush=True)
    if step == int(sys.argv[3]):
        time.sleep(600)
"""


@pytest.mark.parametrize(
    ("words", "given_up"),
    [
        (("distill", "1000", "600"), True),
        (("finetune", "1000", "-1"), False),  # another bar of the same stage
        (("distill", "2000", "-1"), False),  # which takes twice as many steps
        (("distill", "1000", "-1"), True),
    ],
)
def test_a_training_that_is_far_behind_in_its_second_half_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], given_up: bool
) -> None:
    monkeypatch.setattr(searching.lineage, "key", lambda folder, stage: "the same")
    monkeypatch.setattr(searching.lineage, "inputs", lambda folder, stage: SimpleNamespace(hash="0" * 64))
    # in the first half it is farther behind than 3.5 points; at 500 steps 3 points, at 600 it is 4
    curve = [(100, 0.6), (400, 0.68), (500, 0.69), (600, 0.75), (1000, 0.95)]
    rows = [{"name": "trial 4", "accuracy": 0.8, "params": 9, "way": {"distill": 0.95}, "curves": {"distill": curve}}]
    job: Any = SimpleNamespace(
        search=SimpleNamespace(give_up={"distill": 3.5}, measure="accuracy", constraints={"params": 10}),
        trials=SimpleNamespace(rows=lambda: rows), hopeless={},
    )  # fmt: skip
    assert searching._listener(job, tmp_path, "prune") is None
    state = tmp_path / ".thinner/resume/distill-0000000000000000"
    state.mkdir(parents=True)
    assert searching._listener(job, tmp_path, "distill") is None  # what it had seen before it was cut off is not told
    job.hopeless["the same"] = "why"
    assert searching._listener(job, tmp_path, "distill") is not None
    job.hopeless.clear()
    state.rmdir()
    heard = searching._listener(job, tmp_path, "distill")
    hear = functools.partial(worktrees.hear, folder=tmp_path, name="trial 5", environment={}, logger=None)
    command = [sys.executable, "-c", TRAINING, *words]
    if not given_up:
        assert hear(command, heard=heard) == (["what is no bar"], 0)
        return
    why = "distill 71.00% on the validation split after 600 of 1,000 steps, 4.00 points below what trial 4 had by then"
    with pytest.raises(searching.GivenUpError, match=f"^{why}$"):
        hear(command, heard=heard)
    assert not worktrees._processes  # it has ended, long before its 600 seconds
    # a trial that needs the very same is ended at its first word
    with pytest.raises(searching.GivenUpError, match=f"^{why}$"):
        searching._listener(job, tmp_path, "distill")({"description": "distill", "done": 0, "total": 9, "numbers": {}})


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., trials.Trials]:
    pytest.importorskip("optuna")

    def make(worker: str = "me", **changes: Any) -> trials.Trials:
        search = trials.Search.model_validate({**SEARCH, "space": {"a": [1, 2], "b": [{"x": 1}, None]}, **changes})
        study = trials.open_study(f"sqlite:///{tmp_path / 'optuna.db'}", "it", 0)
        return trials.Trials(study, search, trials.read_space(search.space), 0, worker)

    return make


ROW = {"accuracy": 0.9, "params": 10, "latency_ms_b1": 0.5, "file_bytes": 1000, "macs": 1}


def test_every_combination_is_tried_once_the_default_first(opened: Callable[..., trials.Trials]) -> None:
    tried = opened(trials=20)
    tried.put({"a": 2, "b": None})
    seen = []
    while (trial := tried.next()) is not None:
        seen.append(trial.user_attrs["values"])
        tried.finish(trial, ROW)
    assert seen[0] == {"a": 2, "b": None}
    assert sorted(map(trials.as_json, seen)) == sorted(
        trials.as_json({"a": a, "b": b}) for a in (1, 2) for b in ({"x": 1}, None)
    )


def test_a_search_ends_after_its_trials_and_those_that_failed_count(opened: Callable[..., trials.Trials]) -> None:
    tried = opened(trials=3, space={"a": {"low": 0.1, "high": 1.0}})
    first, second, third = tried.next(), tried.next(), tried.next()
    assert first is not None and second is not None and third is not None and tried.next() is None
    tried.finish(first, ROW)
    tried.fail(second, "out of memory\nat step 3")
    tried.fail(third, "far behind", given_up=True)
    assert opened(trials=3, space={"a": {"low": 0.1, "high": 1.0}}).next() is None
    assert tried.others("FAIL") == {1: "out of memory at step 3"} and tried.others("PRUNED") == {2: "far behind"}
    assert [row["name"] for row in tried.rows()] == ["trial 0"]


def test_no_value_of_a_range_in_steps_comes_twice_and_of_another_one_hardly(
    opened: Callable[..., trials.Trials],
) -> None:
    def drawn(tried: trials.Trials) -> list[float]:
        seen = []
        while (trial := tried.next()) is not None:
            seen.append(trial.user_attrs["values"]["a"])
            tried.finish(trial, ROW)
        return seen

    assert sorted(drawn(opened(trials=9, space={"a": {"low": 0.1, "high": 0.75, "step": 0.2}}))) == [0.1, 0.3, 0.5, 0.7]


def test_a_range_that_is_rounded_is_drawn_again_where_that_was_tried(opened: Callable[..., trials.Trials]) -> None:
    tried = opened(trials=10, space={"a": {"low": 0.99, "high": 0.9999}})  # of three digits: 0.99 to 1, eleven values
    seen = []
    while (trial := tried.next()) is not None:
        seen.append(trial.user_attrs["values"]["a"])
        tried.finish(trial, ROW)
    assert len(seen) == 10 and len(set(seen)) >= 9


def test_a_worker_is_a_folder_and_those_that_share_a_search_draw_each_their_own(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    folders = tmp_path / "one", tmp_path / "two"
    for folder in folders:
        folder.mkdir()
    one, two = map(trials.worker_id, folders)
    assert one != two and trials.worker_id(folders[0]) == one
    search = trials.Search.model_validate({**SEARCH, "space": {"a": {"low": 0.0, "high": 1.0}}, "constraints": {}})

    def draws(number: int, worker: str) -> list[Any]:
        study = trials.open_study(f"sqlite:///{tmp_path / f'{number}.db'}", "it", 0, worker)
        tried = trials.Trials(study, search, trials.read_space(search.space), 0, worker)
        return [trial.user_attrs["values"]["a"] for _ in range(4) if (trial := tried.next()) is not None]

    first = draws(1, one)
    assert draws(2, one) == first != draws(3, two) and draws(4, "") == draws(5, "")


def test_trials_of_others_are_waited_for_unless_they_take_far_too_long(opened: Callable[..., trials.Trials]) -> None:
    mine, other = opened(), opened(worker="another machine")
    assert mine.elsewhere() == []
    trial, theirs = mine.next(), other.next()
    assert trial is not None and theirs is not None
    assert mine.elsewhere() == [theirs.number] and other.elsewhere() == [trial.number]
    mine.finish(trial, ROW)
    took = mine.study.trials[trial.number]
    began = mine.study.trials[theirs.number].user_attrs["began"]
    assert took.datetime_complete and took.datetime_start
    length = (took.datetime_complete - took.datetime_start).total_seconds()
    assert mine.elsewhere(began + length) == [theirs.number] and mine.elsewhere(began + 3 * length) == []
    other.finish(theirs, ROW)
    assert mine.elsewhere() == other.elsewhere() == []


def job_of(tried: trials.Trials, folder: Path) -> Any:
    params = SimpleNamespace(run=SimpleNamespace(seed=0))
    return searching.Job(folder / "it.yaml", folder, tried.search, tried.space, tried, params, 1, True)  # type: ignore[arg-type]


def test_failures_in_a_row_are_of_the_machines_and_count_as_nothing_tried(
    opened: Callable[..., trials.Trials], tmp_path: Path
) -> None:
    tried = opened(trials=40, space={"a": {"low": 1, "high": 40}})
    job = job_of(tried, tmp_path)

    def drawn() -> Any:
        trial = tried.next()
        assert trial is not None
        return trial

    for _ in range(searching._FAILURES - 1):
        job.failed(drawn(), "no room is left")
    assert not job.broken and tried.others("FAIL") == {}
    tried.finish(drawn(), ROW)
    job.judge()  # so it was their values
    assert len(tried.others("FAIL")) == searching._FAILURES - 1
    lost = [drawn() for _ in range(searching._FAILURES)]
    for trial in lost:
        job.failed(trial, "the cluster is gone")
    assert job.broken and len(tried.others("FAIL")) == searching._FAILURES - 1
    again = opened(trials=40, space={"a": {"low": 1, "high": 40}})
    assert again.take_up() == [trial.number for trial in lost]
    once_more = [trial for _ in lost if (trial := again.next()) is not None]
    assert [t.user_attrs["values"] for t in once_more] == [t.user_attrs["values"] for t in lost]
    later = job_of(again, tmp_path)
    for trial in once_more:  # so it is their values: a search does not end twice by the same
        later.failed(trial, "a value that is none")
    assert not later.broken and tried.others("FAIL")[once_more[0].number] == "a value that is none"
    last = again.next()
    assert last is not None
    later.failed(last, "another value that is none")
    later.judge()  # the search has ended, and it is the only one
    assert tried.others("FAIL")[last.number] == "another value that is none"


def test_a_network_that_several_trials_came_to_is_tested_once(
    opened: Callable[..., trials.Trials], tmp_path: Path
) -> None:
    tried = opened(trials=4, retest={"seeds": [1], "networks": 2})
    tried.study.set_user_attr(searching.DEFAULT, {**ROW, "params": 20})
    for number, digest in enumerate(("same", "same", "other", "third")):
        trial = tried.next()
        assert trial is not None
        tried.finish(trial, {**ROW, "accuracy": 0.9 - number / 1000, "params": 10 - number, "weights_sha256": digest})
    assert [row["weights_sha256"] for row in searching.finalists(job_of(tried, tmp_path))] == ["same", "other"]


def test_minutes_that_are_over_end_a_search(opened: Callable[..., trials.Trials]) -> None:
    tried = opened(trials=None, minutes=0.001)
    trial = tried.next()
    assert trial is not None
    time.sleep(0.1)
    tried.finish(trial, ROW)
    assert tried.next() is None


def test_what_was_cut_off_is_run_again_by_the_worker_that_was_at_it(opened: Callable[..., trials.Trials]) -> None:
    tried = opened()
    tried.put({"a": 3, "b": None})  # which is not in the space
    mine = tried.next()
    assert mine is not None
    other = opened(worker="another machine").next()
    assert other is not None
    again = opened()
    assert again.take_up() == [mine.number]
    trial = again.next()
    assert trial is not None and trial.user_attrs["values"] == mine.user_attrs["values"]
    values = [mine.user_attrs["values"], other.user_attrs["values"]]
    assert (more := again.next()) is not None and more.user_attrs["values"] not in values


def test_an_address_that_is_none_is_named_without_its_password() -> None:
    pytest.importorskip("optuna")
    with pytest.raises(UserError, match="^--storage: .* cannot be opened") as raised:
        trials.open_study("nosuchdb://me:secret@host/name", "it", 0)
    assert "secret" not in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.integration
def test_workers_share_a_database_on_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna")
    with postgres("search") as server:
        monkeypatch.setenv("PGPASSFILE", server.env["PGPASSFILE"])
        address = f"postgresql://{server.words[0]}/search"
        search = trials.Search.model_validate({**SEARCH, "space": {"a": [1, 2], "b": [{"x": 1}, None]}, "trials": 20})
        space = trials.read_space(search.space)
        one, two = (
            trials.Trials(trials.open_study(address, "it", 0), search, space, 0, name) for name in ("one", "two")
        )
        one.put({"a": 2, "b": None})
        seen = []
        for number in range(5):
            trial = (one, two)[number % 2].next()
            if trial is not None:
                seen.append(trials.as_json(trial.user_attrs["values"]))
                one.finish(trial, {**ROW, "params": 10 * number + 1})
        assert len(seen) == len(set(seen)) == 4  # each combination once, whoever asked
        assert [row["params"] for row in two.rows()] == [1, 11, 21, 31]


# ---------------------------------------------------------------------------------------------------- a search


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """The real graph on scikit-learn's digits, with a test split of their own."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    root = copy_project(tmp_path / "thinner")
    put_stores(root)
    found = load_digits()
    for number, (image, label) in enumerate(zip(found.images, found.target, strict=True)):
        folder = root / "data/raw/digits" / ("test" if number % 4 == 0 else "train") / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 255 / 16).round().astype(np.uint8)).save(folder / f"{number:04d}.png")
    set_params(root, {**SMALL, "data.test": None})
    (root / "searches/small.yaml").write_text(
        yaml.safe_dump({
            "title": "Which width?", "candidate": "scratch", "space": {"student.width": [8, 16, 24]}, "against": "params",
            "constraints": {"params": 40000, "latency_ms_b1": 1000}, "trials": 3,
            "retest": {"seeds": [1], "networks": 1, "margin_points": 20.0},
        })
    )  # fmt: skip
    commit_all(root)
    return root


def environment(root: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("THINNER_", "MLFLOW_", "PREFECT_API", "DVC_"))}
    return kept | {
        "PYTHONPATH": str(root), "PREFECT_HOME": str(root / ".prefect"), "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(root.parent / "site-cache"), **forked.address(str(root)),
    }  # fmt: skip


COMMAND = [sys.executable, "-m", "flows.cli", "search", "searches/small.yaml"]


_HELPERS = ("tasks.forks", "tasks.record.pipeline_run", "tasks.check")


def stages_below(process: subprocess.Popen[str]) -> list[psutil.Process]:
    found = []
    for member in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # also of a zombie: it ended while we looked
            if any(word.startswith("tasks.") and word not in _HELPERS for word in member.cmdline()):
                found.append(member)
    return found


def runs_of(root: Path, stage: str) -> list[Any]:
    """MLflow's, that ended well."""
    import mlflow

    runs = mlflow.MlflowClient(f"sqlite:///{root / 'mlflow.db'}").search_runs(["1"])
    return [run for run in runs if run.data.tags.get("stage") == stage and run.info.status == "FINISHED"]


@pytest.mark.long
def test_a_search_that_is_stopped_or_killed_goes_on_and_ends_with_a_tested_page(digits: Path) -> None:
    pytest.importorskip("optuna")
    work = digits / ".thinner/searches/small"
    heeding = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execvp(sys.argv[1], sys.argv[1:])"
    )
    started = functools.partial(
        subprocess.Popen, [sys.executable, "-c", heeding, *COMMAND], cwd=digits, env=environment(digits), text=True,
        start_new_session=True,
    )  # fmt: skip
    process = started(stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    # in the midst of the second trial: the first is measured, and there is more to do
    eventually(lambda: (work / "measured/0/measured.json").exists() or process.poll() is not None)
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 130, said
    assert "the same command goes on" in said

    # and what nobody can catch, once the trial that was cut off is run again: `kill -9` of all at once
    with (digits.parent / "said.txt").open("w+") as out:
        process = started(stdout=out, stderr=out)
        eventually(lambda: stages_below(process) or process.poll() is not None)
        kill_family(process)
        out.seek(0)
        assert "Cut off, and now run again: trial" in out.read()

    done = subprocess.run(COMMAND, cwd=digits, env=environment(digits), text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    table = pd.read_csv(digits / "reports/searches/small.csv").set_index("student.width")
    assert sorted(table.index) == [8, 16, 24]
    assert table.sort_index()["params"].is_monotonic_increasing
    page = (digits / "reports/searches/small.md").read_text()
    assert "Trials: 3 finished, 0 given up, 0 failed, in " in page
    assert "> 40 k" in page  # what misses the limit says so
    assert page.count("trial_") >= 3 and "the test split, once:" in page
    assert re.search(r"\*\*(Winner|No winner is shown)", page) and "thinner set student.width=8" in page
    assert (digits / "reports/searches/small.svg").is_file()
    assert (
        subprocess.run(
            ["git", "worktree", "list"], cwd=digits, text=True, capture_output=True, check=True
        ).stdout.count("\n")
        == 1
    )
    # the test split was asked once, and not before a network was chosen
    tested, (chosen,) = work / "retest/tested.json", work.glob("retest/*/chosen.json")
    assert len(json.loads(tested.read_text())) == 1
    assert chosen.stat().st_mtime <= tested.stat().st_mtime

    assert len(runs_of(digits, "prepare")) == 2  # once for all trials, once for the other seed

    again = subprocess.run(COMMAND, cwd=digits, env=environment(digits), text=True, capture_output=True, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    assert (digits / "reports/searches/small.md").read_text() == page  # nothing was measured anew
    assert not re.search(r"^\d\d:\d\d:\d\d trial", again.stdout, re.MULTILINE)

    def report() -> "subprocess.CompletedProcess[str]":
        command = [*COMMAND, "--report"]
        return subprocess.run(command, cwd=digits, env=environment(digits), text=True, capture_output=True, check=False)

    # the page is of what was run: neither of the params.yaml nor of the question of another day
    set_params(digits, {"student.width": 24})
    assert report().returncode == 0
    rows = [(digits / "reports/searches/small.md").read_text(), page]
    assert len({next(line for line in text.splitlines() if line.startswith("| `default`")) for text in rows}) == 1
    # nor is what was tested that of trials with other values
    of = json.loads(chosen.read_text())
    chosen.write_text(json.dumps({**of, "of": {name: {"student.width": 23} for name in of["of"]}}))
    assert report().returncode == 0
    assert "**The front has changed since the re-test.**" in (digits / "reports/searches/small.md").read_text()
    text = (digits / "searches/small.yaml").read_text()
    (digits / "searches/small.yaml").write_text(text.replace("latency_ms_b1", "latency_ms_b64"))
    other = report()
    assert other.returncode != 0 and "asks for something else than what was run" in other.stdout + other.stderr
    shutil.rmtree(digits)


FIRST = (r"trial 0 +ship.candidate", r"default +accuracy")  # a trial's values, and what the default has come to


@pytest.mark.long
def test_bits_and_resolution_are_searched_as_any_key_is(digits: Path) -> None:
    pytest.importorskip("optuna")
    set_params(digits, {"quantize.source": "scratch", "quantize.rungs": ["static"]})
    (digits / "searches/small.yaml").write_text(
        yaml.safe_dump({
            "title": "How many bits, of which picture?", "candidate": "scratch", "format": "onnx",
            "space": {"ship.candidate": ["scratch", "scratch_int8"], "student.image_size": [8, 16]},
            "against": "file_bytes", "trials": 4, "give_up": {"scratch": 50.0},
            "retest": {"seeds": [1], "networks": 1, "margin_points": 50.0},
        })
    )  # fmt: skip
    commit_all(digits)
    command = [*COMMAND, "--workers", "3"]  # the second makes the default with the new seed
    done = subprocess.run(command, cwd=digits, env=environment(digits), text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    # no milliseconds are asked for, so a trial begins beside the default
    said = [line.split(maxsplit=1)[1] for line in done.stdout.splitlines() if re.match(r"\d\d:\d\d:\d\d ", line)]
    first, default = (next(n for n, line in enumerate(said) if re.match(words, line)) for words in FIRST)
    assert first < default, done.stdout
    table = pd.read_csv(digits / "reports/searches/small.csv").set_index(["ship.candidate", "student.image_size"])
    floats, ints = table.loc['"scratch"'].sort_index(), table.loc['"scratch_int8"'].sort_index()
    assert len(table) == 4 and list(floats.index) == list(ints.index) == [8, 16]
    assert (ints["file_bytes"] < 0.6 * floats["file_bytes"]).all()
    # counted in the network that the 8 bits are of, where a larger picture costs four times as much
    assert (ints["params"] == floats["params"]).all() and (ints["macs"] == floats["macs"]).all()
    assert floats.loc[16, "macs"] > 3 * floats.loc[8, "macs"]
    page = (digits / "reports/searches/small.md").read_text()
    assert "Of `scratch` or `scratch_int8`: accuracy" in page and ", as onnx." in page, page
    assert "**Winner: trial" in page and "'ship.candidate=\"scratch_int8\"'" in page, page  # smaller, within 50 points
    shutil.rmtree(digits)


@pytest.mark.long
def test_a_default_that_fails_ends_the_search(digits: Path) -> None:
    pytest.importorskip("optuna")
    set_params(digits, {"student.training.lr": 1e30})
    (digits / "searches/small.yaml").write_text(
        yaml.safe_dump({
            "title": "Which learning rate?", "candidate": "scratch", "space": {"student.training.lr": [0.1, 0.2, 0.3]},
            "against": "params", "trials": 3,
        })
    )  # fmt: skip
    commit_all(digits)
    command = [*COMMAND, "--workers", "2"]
    done = subprocess.run(command, cwd=digits, env=environment(digits), text=True, capture_output=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 of 1 failed:" in done.stdout and "\n  default: scratch: loss is nan" in done.stdout, done.stdout
    # a trial that had begun ends its training, which is kept; no other begins
    assert [run.data.tags["variant"] for run in runs_of(digits, "scratch")] == ["trial 0"]
    assert not (digits / ".thinner/searches/small/measured").exists()
    shutil.rmtree(digits)


@pytest.mark.long
def test_a_search_trains_on_a_cluster_and_measures_here(digits: Path, tmp_path: Path, prefect_url: str) -> None:
    pytest.importorskip("optuna")
    (digits / "searches/small.yaml").write_text(
        yaml.safe_dump({
            "title": "Which width?", "candidate": "scratch", "space": {"student.width": [8, 24]}, "against": "params",
            "constraints": {"params": 40000}, "trials": 1,
        })
    )  # fmt: skip
    store = ["dvc", "remote", "add", "--default", "results", str(tmp_path / "store")]
    subprocess.run([sys.executable, "-m", *store], cwd=digits, check=True, capture_output=True)
    subprocess.run(["git", "add", "--force", "data/raw/digits"], cwd=digits, check=True)  # or a worker would lack them
    commit_all(digits)
    whole = SimpleNamespace(root=digits, env=environment(digits) | {"PREFECT_API_URL": prefect_url})
    with clusters.started("dask", whole, tmp_path, encrypted=True) as cluster:
        assert cluster.address.startswith("tls://")
        cluster.start_worker("one")
        words = ["--engine", "dask", "--address", cluster.address]
        done = subprocess.run(
            [*COMMAND, *words], cwd=digits, env=whole.env, text=True, capture_output=True, check=False
        )
    assert done.returncode == 0, done.stdout + done.stderr
    table = pd.read_csv(digits / "reports/searches/small.csv").set_index("student.width")
    assert len(table) == 1 and (digits / "reports/searches/small.md").is_file()
    # the default and the trial: the weights were made there, and brought here to be measured
    made = {path.parts[-1] for path in tmp_path.glob("one/clones/*/*/.thinner/locks/*.lock")}
    assert {"prepare.lock", "scratch.lock"} <= made, made
    assert not list((digits / ".thinner").glob("*/*/.thinner/locks/scratch.lock"))
    shutil.rmtree(digits)


def test_trials_are_of_params_yaml_as_it_was_when_the_search_began(tmp_path: Path) -> None:
    base = {"run": {"seed": 0}, "distill": {"temperature": 4.0}}
    found = worktrees.with_values(tmp_path, {"run.seed": 3}, base)  # where no params.yaml lies, or another one by now
    assert found == {"run": {"seed": 3}, "distill": {"temperature": 4.0}} and base["run"]["seed"] == 0
