"""A search: which values of params.yaml make a network that is as accurate and as cheap as possible?

    thinner search searches/default.yaml --workers 2

Each trial is a run of the same graph, as far as the network in question, in a git worktree of HEAD that shares its DVC
cache; what trials have in common, such as the teacher, is made once. Optuna draws the trials, and its storage makes a
search that was stopped go on. Trials are judged on the validation split. What is on the front at the end is made anew
with other seeds, chosen from on their validation splits, and only then shown to the test split. docs/search.md tells
the rest.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Completed, Failed

from flows import console, engines, recipes
from flows.pipeline import select
from flows.sweep import best_validation
from flows.trials import (
    Search,
    Space,
    Trials,
    as_json,
    busy_seconds,
    open_study,
    read_space,
    require_optuna,
    worker_id,
)
from flows.worktrees import (
    NOT_BEGUN,
    Begin,
    Heard,
    Worktrees,
    bring_up_to_date,
    cancelled,
    conduct,
    end_all,
    ended_together,
    mistakes,
    refuse_changes,
    run_program,
    verdict,
    with_values,
    write_params,
)
from tasks import lineage, processes, remote
from tasks.environment import repository_root
from thinner import layout
from thinner.config import load_params
from thinner.errors import UserError, did_you_mean
from thinner.evidence import search as evidence
from thinner.evidence import shipping
from thinner.files import json_files, whole, yaml_files
from thinner.measure.scores import METRICS
from thinner.params import Params
from thinner.runtimes import catalogue
from thinner.words import duration

if TYPE_CHECKING:
    import optuna

FOLDER = "reports/searches"  # pages, figures and numbers
WORK = Path(".thinner/searches")
STORAGE = "THINNER_SEARCH_STORAGE"  # the address of Optuna's storage, where several machines share a search
_ASKED = 6  # combinations that a value must be wrong in before it is refused
_GIVEN, _FILE = "given", "file"  # attributes of Optuna's study: the default's values, and what was asked for
DEFAULT = "default"  # params.yaml as it is, beside which every trial is measured
CANDIDATE = "ship.candidate"  # in the space: whose network a trial is, in 32 bits or in 8
_MEASURE = ("evaluate", "export")  # sections of params.yaml by which networks are measured
_ASKED_FOR = ("candidate", "space", "against", "measure", "constraints", "format", "set")  # by whoever reads a page
_FAILURES = 5  # in a row that say more of the machines than of the values
_LATE = 0.5  # of a training's steps: before that nobody can tell which of two will be the better


# ---------------------------------------------------------------------------------------------------- reading


def load_search(path: Path, root: Path) -> tuple[Search, Space]:
    """The search in ``path``. Raises UserError with every mistake, those that values make in params.yaml among them."""
    try:
        search = recipes.read_own(path, Search)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file. docs/search.md says how to write one") from None
    try:
        space = read_space(search.space)
        wrong = list(_mistakes(search, space, root))
    except UserError as error:
        wrong = str(error).splitlines()
    if wrong:
        raise UserError("\n".join([f"{path}: {len(wrong)} mistake(s)", *(f"  {line}" for line in wrong)]))
    return search, space


def _mistakes(search: Search, space: Space, root: Path) -> Iterator[str]:
    named = [*(("space", key) for key in space), *(("set", key) for key in search.set)]
    for where, key in named:
        if key == "run.seed" or key.split(".")[0] == "data":
            yield f"{where}.{key}: all trials answer for the same pictures. Set it in params.yaml: thinner set"
        if where == "set" and key in space:
            yield f"set.{key}: is in space as well. Take it out of one of them"
    try:
        params = with_values(root, search.set)
    except UserError as error:
        yield str(error)
        return
    if lines := mistakes(root, params):
        yield from lines
        return
    nodes = lineage.graph(root)
    stages = {node.name for node in nodes}
    own = load_params(root / "params.yaml")
    networks = [name for name in layout.networks(own) if stage_of(name) in stages]
    known = [*networks, *([own.quantize.candidate] if own.quantize.candidate else [])]
    if CANDIDATE in search.set:
        yield f"set.{CANDIDATE}: here the search's own key says it. Write candidate: {search.set[CANDIDATE]}"
    candidates = candidates_of(search, space)
    for where, key in named:
        if key == "quantize.source" and not set(candidates) <= set(networks):
            yield f"{where}.{key}: it says whose 8 bits are searched. Set it in params.yaml: thinner set"
    for name in candidates:
        if name not in known:
            where = "candidate" if name == search.candidate else f"space.{CANDIDATE}"
            hint = did_you_mean(str(name), known, always=f"Choose one of: {', '.join(known)}")
            yield f"{where}: unknown '{name}'. {hint}"
            return
        if name not in networks and search.format != "onnx":
            yield f"format: {search.format or 'none'}, but {name} runs in ONNX Runtime, so all have to: format: onnx"
    ways = {name: {node.name for node in select(nodes, [stage_of(name)])} for name in candidates}
    upstream = {stage for name, way in ways.items() for stage in way - {stage_of(name)}}
    if odd := [name for name in search.give_up if name not in networks or stage_of(name) not in upstream]:
        trained = ", ".join(name for name in networks if stage_of(name) in upstream)
        yield f"give_up: '{odd[0]}' trains nothing on the way to {search.candidate}. Choose one of: {trained}"
    if search.give_up and search.measure not in ("accuracy", choose_by := params["imbalance"]["choose_by"]):
        yield f"give_up: training looks at accuracy and {choose_by}, not at {search.measure}. Leave one of them out"
    told: set[str] = set()
    parameters = {key: domain for key, domain in space.items() if key != CANDIDATE}  # whose values have been looked at
    for key, domain in parameters.items():
        for value in domain.ends:
            for line in _wrong_with(search, parameters, root, key, value):
                if line not in told:
                    told.add(line)
                    yield f"space.{key}, {as_json(value)}: {line}"
    if search.retest is not None and own.run.seed in search.retest.seeds:
        yield (
            f"retest.seeds: {own.run.seed} is run.seed, by which the networks are chosen, so they would not be new to "
            "it. Give others"
        )
    if search.retest is not None and evidence.batch_of(search.against) is not None:
        from thinner.evidence.statistics import FEWEST_ROUNDS  # SciPy takes its time

        if (rounds := params["evaluate"]["latency_repeats"]) < FEWEST_ROUNDS:
            yield (
                f"retest: {search.against} is compared in {FEWEST_ROUNDS} rounds or more, and evaluate.latency_repeats "
                f"is {rounds}. Give it {FEWEST_ROUNDS} in set, or by thinner set"
            )
    if search.retest is not None and own.data.test is not None:
        yield (
            "retest: with data.test each seed draws other test images, so nothing can be paired. Give the data a test "
            "split of their own and set data.test: null, or leave retest out"
        )


def _wrong_with(search: Search, space: Space, root: Path, key: str, value: Any) -> list[str]:
    """What is wrong with the value, alone and whatever the other keys have; a combination that is wrong is a trial that
    fails."""
    chance = np.random.default_rng(0)
    others = {name: domain.ends for name, domain in space.items() if name != key}
    first: list[str] = []
    for _ in range(_ASKED if others else 1):
        drawn = {name: ends[int(chance.integers(len(ends)))] for name, ends in others.items()} if first else {}
        try:
            lines = mistakes(root, with_values(root, {**search.set, **drawn, key: value}), deep=True)
        except UserError as error:
            return [str(error).removeprefix("set: ")]
        if not lines:
            return []
        first = first or lines
    return first


def candidates_of(search: Search, space: Space) -> list[str]:
    """Whose networks a search looks at, the default's first."""
    drawn = space[CANDIDATE].ends if CANDIDATE in space else ()
    return list(dict.fromkeys([search.candidate, *drawn]))


def stage_of(network: str) -> str:
    """The stage of dvc.yaml that makes it."""
    if network.endswith("_int8"):
        return "quantize"
    source = network.removeprefix("prune_")
    return f"prune_also@{source}" if source != network else network


# ---------------------------------------------------------------------------------------------------- running


class GivenUpError(Exception):
    """A trial that is so far behind on the way that it is not finished; no mistake of anybody."""


class Goal(NamedTuple):
    """A stage, where it leaves its network, and, where that is an export, what that is of: there parameters and MACs
    are counted. Folders below a root."""

    stage: str
    network: str
    counted: str | None


class Made(NamedTuple):
    """A goal that was reached: its folders, wherever they lie now."""

    network: Path
    counted: Path | None


@dataclass
class Job:
    """One search on this machine, with all that its tasks share."""

    path: Path
    root: Path
    search: Search
    space: Space
    trials: Trials
    params: Params
    workers: int
    retest: bool
    engine: engines.Engine | None = None
    shared: dict[str, threading.Lock] = field(default_factory=dict)
    measured_by: str = ""  # hash of all that measures
    base: dict[str, Any] | None = None  # params.yaml as it was at first: it may be edited while trials go on for hours
    hopeless: dict[str, str] = field(default_factory=dict)  # hash of a stage's inputs -> why its training was given up
    failures: dict[int, tuple[Any, str]] = field(default_factory=dict)  # trials since the last that went well, and why
    judging: threading.Lock = field(default_factory=threading.Lock)
    timing: threading.Lock = field(default_factory=threading.Lock)  # two that are timed would slow each other
    default_is_well: bool = False
    default_made: Future[bool] = field(default_factory=Future)  # whether it is well, as soon as it has ended
    slots: threading.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self.slots = threading.Semaphore(self.workers)

    def default_ended(self) -> None:
        self.default_made.set_result(self.default_is_well)
        self.slots.release()

    def failed(self, trial: optuna.Trial, why: str) -> None:
        """Something went wrong with it. Whether that tells of its values is known once another one has gone well; or
        at once, where it was run again because of that doubt."""
        with self.judging:
            if self.trials.was_doubted(trial):
                self.trials.fail(trial, why)
                return
            self.trials.doubt(trial)
            self.failures[trial.number] = trial, why

    @property
    def broken(self) -> bool:
        """So many have failed in a row that none is to begin."""
        return len(self.failures) >= _FAILURES

    def judge(self) -> None:
        """Those that failed are told so: as one goes well, or as the search ends and they are few. Else Optuna keeps
        them as running, and the next start takes them up."""
        with self.judging:
            for trial, why in self.failures.values():
                self.trials.fail(trial, why)
            self.failures.clear()

    @property
    def retest_folder(self) -> Path:
        """Of these trials alone: another search of the same name has others, with the same numbers."""
        return self.folder / "retest" / self.trials.study.study_name

    @property
    def retest_seeds(self) -> list[int]:
        """That this machine makes the best with, once more."""
        return self.search.retest.seeds if self.search.retest is not None and self.retest else []

    @property
    def folder(self) -> Path:
        return self.root / WORK / self.path.stem

    def goal(self, values: Mapping[str, Any]) -> Goal:
        """What a trial with these values of the space is to make."""
        name = values.get(CANDIDATE, self.search.candidate)
        source = layout.folder_of(self.params, self.params.quantize.source)
        counted = source if name == self.params.quantize.candidate else None
        return Goal(stage_of(name), layout.folder_of(self.params, name), counted)

    def values(self, values: Mapping[str, Any], seed: int | None = None) -> dict[str, Any]:
        """All of params.yaml for a trial with these values of the space."""
        seed = self.params.run.seed if seed is None else seed
        return with_values(self.root, {**self.search.set, **values, "run.seed": seed}, self.base)

    @property
    def given(self) -> dict[str, Any]:
        """The values that params.yaml, with what `set` says, has for the keys of the space."""
        params = with_values(self.root, self.search.set, self.base)
        found = {key: _value(params, key) for key in self.space}
        return found | ({CANDIDATE: self.search.candidate} if CANDIDATE in self.space else {})

    def default(self, seed: int | None = None) -> dict[str, Any]:
        """params.yaml as it is, but for what `set` says of the machine and of how networks are measured."""
        seed = self.params.run.seed if seed is None else seed
        alike = {key: value for key, value in self.search.set.items() if key.split(".")[0] in ("run", *_MEASURE)}
        return with_values(self.root, {**alike, "run.seed": seed}, self.base)

    def bring(
        self, tree: Path, target: str, name: str, environment: Mapping[str, str], logger: Any,
        after: Callable[[str], None] = lambda stage: None, heard: Callable[[str], Heard | None] = lambda stage: None,
    ) -> str | None:  # fmt: skip
        """What went wrong with the target there and all that it needs, or None."""
        return bring_up_to_date(tree, target, name, environment, logger, self.shared, after, self.engine, heard)

    def measure(
        self, tree: Path, out: Path, split: str, networks: Mapping[str, Made], batches: Sequence[int],
        environment: Mapping[str, str], logger: Any,
    ) -> str | None:  # fmt: skip
        """What went wrong with `tasks.measure` there, or None."""
        command = ["tasks.measure", str(out), split, *(f"{name}={made.network}" for name, made in networks.items())]
        if exports := [f"{name}={made.counted}" for name, made in networks.items() if made.counted]:
            command += ["--of", *exports]
        command += ["--format", self.search.format] if self.search.format is not None else []
        command += ["--batches", *map(str, batches)] if batches else []
        shutil.rmtree(out, ignore_errors=True)
        with self.timing:
            if cancelled.is_set():
                return "cancelled"
            return run_program(tree, command, "measure", environment, logger)


@flow(name="thinner-search", persist_result=False, validate_parameters=False)
def search(job: Job, trees: Worktrees, begin: Begin) -> State:
    """The default, the trials, and what was found again with other seeds."""
    with ended_together():
        if (environment := begin()) is None:
            return Failed(message=NOT_BEGUN)
        early: dict[int, Any] = {}  # by seed
        state = _default_and_trials(job, trees, environment, early)
        if state.is_completed() and job.retest_seeds:
            _wait_for_others(job)
            state = again(job, trees, environment, early)
        if not state.is_completed():
            end_all()  # what was begun for a re-test that there will not be
        for future in early.values():
            future.wait()
        return state


def _wait_for_others(job: Job) -> None:
    """While other machines are at trials of this search: what they find belongs to what is tested again, once."""
    told: list[int] = []
    while (busy := job.trials.elsewhere()) and not cancelled.is_set():
        if busy != told:
            said = ", ".join(f"trial {number}" for number in busy)
            get_run_logger().info("waits for other machines, which are at %s; then the re-test", said)
            told = busy
        cancelled.wait(5)


def _default_and_trials(job: Job, trees: Worktrees, environment: dict[str, str], early: dict[int, Any]) -> State:
    """The default and the trials. Where a worker would only wait, for the default's teacher at the beginning or for the
    last trial at the end, it begins with what the re-test needs of all: ``early``, the default with its seeds."""

    def begin(seed: int) -> Any:
        early[seed] = _submit_again(job, seed, DEFAULT, {}, trees, environment)
        return early[seed]

    job.slots.acquire()
    default = make_default.with_options(task_run_name=DEFAULT).submit(job, trees, environment)
    default.add_done_callback(lambda _: job.default_ended())
    if job.search.batches:  # its milliseconds are what all others are counted in: nothing runs beside them
        default.wait()
    else:
        for seed in job.retest_seeds[: job.workers - 1]:
            job.slots.acquire()
            begin(seed).add_done_callback(lambda _: job.slots.release())
    futures: dict[int, Any] = {}
    while True:
        job.slots.acquire()
        no_default = job.default_made.done() and not job.default_made.result()
        if job.broken:  # one that is at work may go well
            for future in futures.values():
                future.wait()
        trial = None if cancelled.is_set() or no_default or job.broken else job.trials.next()
        if trial is None:
            break
        name = f"trial {trial.number}"
        one = attempt.with_options(name=name, task_run_name=name)
        futures[trial.number] = one.submit(job, trial, trees, environment)
        futures[trial.number].add_done_callback(lambda _: job.slots.release())  # even if it did not begin
    if job.default_is_well and not cancelled.is_set() and not job.broken and finalists(job):  # there will be a re-test
        for seed in job.retest_seeds:
            if seed not in early:
                begin(seed)
    for future in (default, *futures.values()):
        future.wait()
    if not default.state.is_completed():
        return verdict({DEFAULT: default.state}, "networks")
    if job.broken:
        whys = [f"  trial {number}: {why}" for number, (_, why) in job.failures.items()]
        said = f"{len(whys)} trials in a row failed, which says more of this machine than of their values:"
        return Failed(message="\n".join([said, *whys]))
    job.judge()
    told = job.trials.others("FAIL")  # they are said, and stop nobody; anything else is a mistake of ours
    if lost := {f"trial {n}": f.state for n, f in futures.items() if not f.state.is_completed() and n not in told}:
        return verdict(lost, "trials")
    if not job.trials.rows():
        whys = [f"  trial {number}: {why}" for number, why in told.items()]
        return Failed(message="\n".join(["no trial was finished", *whys]))
    return verdict({}, "trials")


@task(cache_policy=NO_CACHE, persist_result=False)
def make_default(job: Job, trees: Worktrees, environment: dict[str, str]) -> State:
    """The network of params.yaml as it is, kept beside the search, because every trial is timed beside it."""
    logger, kept = get_run_logger(), job.folder / DEFAULT
    with trees.borrow(job.params.run.seed) as tree:
        write_params(tree, job.default())
        failure = _keep(job, tree, {}, DEFAULT, kept, environment, logger)
        if failure is None and _read_text(kept / "measured" / "key") != _measuring(job):
            networks, out = {DEFAULT: _kept(kept)}, kept / "measured"
            failure = job.bring(tree, "prepare", DEFAULT, environment, logger) or job.measure(
                tree, out, "validation", networks, job.search.batches, environment, logger
            )
    if failure:
        return Failed(message=f"{DEFAULT}: {failure}")
    (kept / "measured" / "key").write_text(_measuring(job))
    row = _measured(kept / "measured")[DEFAULT]
    # whoever comes first: on a second machine milliseconds are counted in those of the first
    if DEFAULT not in job.trials.study.user_attrs:
        job.trials.study.set_user_attr(DEFAULT, row)
    job.trials.put(job.given)
    logger.info(_said(job, row))
    job.default_is_well = True
    return Completed(message=DEFAULT)


@task(cache_policy=NO_CACHE, persist_result=False)
def attempt(job: Job, trial: optuna.Trial, trees: Worktrees, environment: dict[str, str]) -> State:
    """One trial: made, measured beside the default, told to Optuna."""
    logger, name, values = get_run_logger(), f"trial {trial.number}", trial.user_attrs["values"]
    try:
        with trees.borrow(job.params.run.seed) as tree:
            if cancelled.is_set():
                return Cancelled(message=f"{name}: cancelled before it started")
            logger.info(_as_text(values))
            began = time.monotonic()
            write_params(tree, job.values(values))
            goal = job.goal(values)
            way: dict[str, float] = {}
            curves: dict[str, Curve] = {}
            with console.stage_shown(name):
                failure = job.bring(
                    tree, goal.stage, name, environment, logger,
                    lambda stage: _look(job, tree, stage, way, curves),
                    lambda stage: _listener(job, tree, stage),
                )  # fmt: skip
                made = Made(tree / goal.network, None if goal.counted is None else tree / goal.counted)
                if failure is None and goal.counted and shipping.unfit(shipping.read_targets(tree / "reports")):
                    raise GivenUpError("no rung of the ladder to 8 bits holds, so nothing could be claimed of it")
                out = job.folder / "measured" / str(trial.number)
                if failure is None:
                    if not job.default_made.result():  # so this one is taken up again at the next start
                        return Cancelled(message=f"{name}: there is no default to measure it beside")
                    networks = {"trial": made, DEFAULT: _kept(job.folder / DEFAULT)}
                    failure = job.measure(tree, out, "validation", networks, job.search.batches, environment, logger)
            if cancelled.is_set():  # Optuna keeps it as running, and the next start takes it up
                return Cancelled(message=f"{name}: cancelled")
            if failure:
                job.failed(trial, failure)
                return Failed(message=f"{name}: {failure}")
            row = beside(_measured(out), job.trials.study.user_attrs[DEFAULT])
            row |= {
                "way": way,
                "curves": curves,
                "seconds": round(time.monotonic() - began),
                "commit": trees.commit[:12],
            }
            job.trials.finish(trial, row)
            job.judge()
            logger.info(_said(job, row))
            return Completed(message=name)
    except GivenUpError as error:
        job.trials.fail(trial, str(error), given_up=True)
        job.judge()
        logger.info("given up: %s", error)
        return Completed(name="GivenUp", message=str(error))
    except (UserError, OSError) as error:  # of the machine as likely as of its values
        if cancelled.is_set():
            return Cancelled(message=f"{name}: cancelled")
        job.failed(trial, str(error))
        return Failed(message=f"{name}: {error}")


def beside(measured: Mapping[str, Mapping[str, Any]], default: Mapping[str, Any]) -> dict[str, Any]:
    """The row of a trial. Its milliseconds are those of the default when that was measured alone, times the ratio of
    the two measured in turn: a machine that was busy then, or is another one, slows both."""
    row = dict(measured["trial"])
    for cost in row:
        if evidence.batch_of(cost) is not None:
            row[cost] *= default[cost] / measured[DEFAULT][cost]
    return row


def _look(job: Job, tree: Path, stage: str, way: dict[str, float], curves: dict[str, Curve]) -> None:
    """Raise GivenUpError where the stage's network is too far below what the best trial so far had there."""
    name = _given_up_at(job, stage)
    if name is None:
        return
    way[name] = float(best_validation(tree, name, job.values({}))[f"val_{job.search.measure}"])
    curves[name] = curve(tree, name, f"val_{job.search.measure}")
    best = _best(job, name)
    if best is not None and way[name] < best["way"][name] - job.search.give_up[name] / 100:
        raise GivenUpError(
            f"{name} {way[name]:.2%} on the validation split, {100 * (best['way'][name] - way[name]):.2f} points below "
            f"that of {best['name']}"
        )


Curve = list[tuple[int, float]]  # after so many steps: the best validation so far


def curve(folder: Path, network: str, metric: str) -> Curve:
    """Of a training that has ended there."""
    history = pd.read_csv(folder / "reports" / network / "history.csv")
    return [(int(s), float(v)) for s, v in zip(history["step"], history[metric].cummax(), strict=True)]


def _given_up_at(job: Job, stage: str) -> str | None:
    return next((name for name in job.search.give_up if stage_of(name) == stage), None)


def _best(job: Job, network: str) -> dict[str, Any] | None:
    """The row of the best trial so far that keeps to all limits and made this network on its way."""
    kept = [row for row in job.trials.rows() if not evidence.missed(row, job.search.constraints)]
    return max((row for row in kept if network in row["way"]), key=lambda row: row[job.search.measure], default=None)


def _listener(job: Job, tree: Path, stage: str) -> Heard | None:
    """Who raises GivenUpError while a stage trains: in the second half of its steps its best validation so far is
    beside what the best trial had had by that step. That is looked at only where both take as many steps."""
    name = _given_up_at(job, stage)
    if name is None:
        return None
    key = lineage.key(tree, stage)
    if key not in job.hopeless and (tree / remote.state_folder(tree, stage)).exists():
        return None  # it goes on from a state, and its validations before that are told to nobody
    metric, margin = f"val_{job.search.measure}", job.search.give_up[name] / 100
    best_so_far, looked_at = 0.0, -1.0

    def heard(event: Mapping[str, Any]) -> None:
        nonlocal best_so_far, looked_at
        if key in job.hopeless:  # another trial needed the very same
            raise GivenUpError(job.hopeless[key])
        done, total, value = event["done"], event["total"], event["numbers"].get(metric)
        if event["description"] != name or value is None:
            return
        best_so_far = max(best_so_far, value)
        if value == looked_at or not _LATE * total <= done < total:
            return
        looked_at, best = value, _best(job, name)
        theirs: Curve = [] if best is None else best.get("curves", {}).get(name, [])
        if best is None or not theirs or theirs[-1][0] != total:
            return
        then = max((score for step, score in theirs if step <= done), default=0.0)
        if best_so_far < then - margin:
            job.hopeless[key] = (
                f"{name} {best_so_far:.2%} on the validation split after {done:,} of {total:,} steps, "
                f"{100 * (then - best_so_far):.2f} points below what {best['name']} had by then"
            )
            raise GivenUpError(job.hopeless[key])

    return heard


def _keep(
    job: Job, tree: Path, values: Mapping[str, Any], name: str, kept: Path, environment: Mapping[str, str], logger: Any
) -> str | None:
    """Bring the network of the params.yaml in ``tree`` up to date, and copy it to ``kept``; what went wrong, or
    None."""
    goal = job.goal(values)
    key = lineage.key(tree, goal.stage)
    if _read_text(kept / "key") == key:
        return None
    with console.stage_shown(name):
        failure = job.bring(tree, goal.stage, name, environment, logger)
    if failure is None:
        shutil.rmtree(kept, ignore_errors=True)
        shutil.copytree(tree / goal.network, kept / "network")
        if goal.counted is not None:
            shutil.copytree(tree / goal.counted, kept / "counted")
        (kept / "key").write_text(key)
    return failure


def _kept(folder: Path) -> Made:
    """What `_keep` has put there."""
    counted = folder / "counted"
    return Made(folder / "network", counted if counted.is_dir() else None)


def _measuring(job: Job) -> str:
    """What the numbers of the default rest on, beside its weights."""
    return as_json([job.search.format, job.search.batches, job.measured_by])


def _measured(out: Path) -> dict[str, dict[str, Any]]:
    """What `tasks.measure`, which loads torch, left there. Raises DamagedError; FileNotFoundError."""
    return json_files.read_object(out / "measured.json", "Measure again: thinner search")


def _read_text(path: Path) -> str | None:
    return path.read_text() if path.is_file() else None


def _as_text(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {as_json(value)}" for key, value in values.items())


def _said(job: Job, row: Mapping[str, Any]) -> str:
    search = job.search
    costs = ", ".join(f"{evidence.heading(cost)} {evidence.shown(cost, row[cost])}" for cost in search.costs)
    wrong = evidence.missed(row, search.constraints)
    return f"{search.measure} {row[search.measure]:.2%}, {costs}" + (f"; misses {', '.join(wrong)}" if wrong else "")


# ---------------------------------------------------------------------------------------------------- once more


def again(job: Job, trees: Worktrees, environment: dict[str, str], early: Mapping[int, Any]) -> State:
    """The best of the front and the default with other seeds; chosen from on validation, then tested. ``early``: the
    defaults that were begun before, by their seeds."""
    retest = job.search.retest
    assert retest is not None
    chosen = {name_of(row): row["values"] for row in finalists(job)}
    if not chosen:
        return verdict({}, "trials")  # none keeps to the limits, which the page says
    states: dict[str, State] = {}
    # network by network, so that of two workers none waits for the teacher that the other one trains
    futures = {
        f"{name} seed {seed}": early[seed]
        if name == DEFAULT and seed in early
        else _submit_again(job, seed, name, values, trees, environment)
        for name, values in {DEFAULT: {}, **chosen}.items()
        for seed in retest.seeds
    }
    for what, future in futures.items():
        future.wait()
        states[what] = future.state
    for split in ("validation", "test"):  # of the second nothing is known before all is chosen by the first
        for seed in retest.seeds:
            if all(state.is_completed() for state in states.values()):
                what = f"{split} seed {seed}"
                one = measure_again.with_options(name=what, task_run_name=what)
                future = one.submit(job, seed, split, [DEFAULT, *chosen], trees, environment)
                future.wait()
                states[what] = future.state
        if split == "validation" and all(state.is_completed() for state in states.values()):
            _write_json(job.retest_folder / "chosen.json", {"of": chosen, "order": _choose(job, chosen)})
    return verdict(states, "parts of the re-test")


def _submit_again(
    job: Job, seed: int, name: str, values: dict[str, Any], trees: Worktrees, environment: dict[str, str]
) -> Any:
    what = f"{name} seed {seed}"
    one = make_again.with_options(name=what, task_run_name=what)
    return one.submit(job, seed, name, values, trees, environment)


@task(cache_policy=NO_CACHE, persist_result=False)
def make_again(
    job: Job, seed: int, name: str, values: dict[str, Any], trees: Worktrees, environment: dict[str, str]
) -> State:
    with trees.borrow(seed) as tree:
        if cancelled.is_set():
            return Cancelled(message=f"{name} seed {seed}: cancelled before it started")
        write_params(tree, job.default(seed) if name == DEFAULT else job.values(values, seed))
        kept = job.retest_folder / str(seed) / name
        failure = _keep(job, tree, values, f"{name} seed {seed}", kept, environment, get_run_logger())
    return Failed(message=f"{name} seed {seed}: {failure}") if failure else Completed(message=name)


@task(cache_policy=NO_CACHE, persist_result=False)
def measure_again(
    job: Job, seed: int, split: str, names: list[str], trees: Worktrees, environment: dict[str, str]
) -> State:
    """All of a seed in turn, with nothing beside them; once, as long as the networks are the same."""
    logger, place = get_run_logger(), job.retest_folder / str(seed)
    batches = sorted({*job.search.batches, *job.params.evaluate.latency_batches}) if split == "validation" else []
    made = {name: (place / name / "key").read_text() for name in names}
    key = hashlib.sha256(as_json([job.search.format, batches, job.measured_by, made]).encode()).hexdigest()
    if _read_text(place / split / "key") == key:
        if split == "test":  # another question about the same answers is another look
            _note_test(job, names)
        return Completed(name="Cached", message="up to date")
    with trees.borrow(seed) as tree:
        write_params(tree, job.default(seed))
        failure = job.bring(tree, "prepare", f"seed {seed}", environment, logger)
        if failure is None:
            if split == "test":
                _note_test(job, names)
            networks = {name: _kept(place / name) for name in names}
            failure = job.measure(tree, place / split, split, networks, batches, environment, logger)
    if failure:
        return Failed(message=f"{split} seed {seed}: {failure}")
    (place / split / "key").write_text(key)
    return Completed(message=split)


def _note_test(job: Job, names: Sequence[str]) -> None:
    """Of what the test split was asked: the page counts it, for a second look is not as good as a first."""
    made = {
        f"{name} seed {seed}": (job.retest_folder / str(seed) / name / "key").read_text()
        for seed in job.retest_seeds
        for name in names
    }
    question = None if job.search.retest is None else job.search.retest.model_dump()
    asked = hashlib.sha256(as_json([made, job.search.format, job.measured_by, question]).encode()).hexdigest()
    before = _looks(job)
    if asked not in before:
        _write_json(_tested_file(job), [*before, asked])


def _looks(job: Job) -> list[Any]:
    """A hash for each re-test, of all the networks that it asked the test split about."""
    path = _tested_file(job)
    return json_files.read(path, "Delete it") if path.is_file() else []


def _tested_file(job: Job) -> Path:
    return job.folder / "retest" / "tested.json"  # of all searches of this name: it is the same test split


def name_of(row: Mapping[str, Any]) -> str:
    return f"trial_{row['number']}"


def finalists(job: Job) -> list[dict[str, Any]]:
    """The trials that are looked at again, the best first."""
    search, default = job.search, job.trials.study.user_attrs[DEFAULT]
    margin, most = (search.retest.margin_points / 100, search.retest.networks) if search.retest else (0.0, 3)
    ranked = evidence.rank(job.trials.rows(), default, search.measure, search.against, search.constraints, margin)
    alike: dict[str, dict[str, Any]] = {}  # one network may be what several trials came to
    for row in ranked:
        alike.setdefault(row.get("weights_sha256", row["name"]), row)
    return list(alike.values())[:most]


def _choose(job: Job, chosen: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The finalists by what they are over the new seeds, on their validation splits, the best first."""
    search = job.search
    assert search.retest is not None
    rows = mean_rows(job, [DEFAULT, *chosen], search.retest.seeds)
    default, *found = rows
    margin = search.retest.margin_points / 100
    best = evidence.rank(found, default, search.measure, search.against, search.constraints, margin)
    return [row["name"] for row in best]


def mean_rows(job: Job, names: Sequence[str], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Over the seeds: the mean of the score, and of each cost the largest, which is what has to keep to a limit."""
    measured = [_measured(job.retest_folder / str(seed) / "validation") for seed in seeds]
    costs = [key for key in measured[0][DEFAULT] if evidence.is_cost(key)]
    return [
        {
            "name": name,
            **{metric: float(np.mean([of[name][metric] for of in measured])) for metric in METRICS},
            **{cost: max(of[name][cost] for of in measured) for cost in costs},
        }
        for name in names
    ]


def _write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=2) + "\n"
    whole.write_text(path, text)


# ---------------------------------------------------------------------------------------------------- the whole


def start(
    path: Path, workers: int | None, storage: str | None, *, report: bool = False, retest: bool = True,
    choice: engines.Choice | None = None,
) -> int:  # fmt: skip
    """The whole life of a search. Returns the exit code."""
    require_optuna()
    root = repository_root()
    search_, space = load_search(path, root)
    params = load_params(root / "params.yaml")
    folder = root / WORK / path.stem
    folder.mkdir(parents=True, exist_ok=True)
    own = f"sqlite:///{folder / 'optuna.db'}"
    address = storage or os.environ.get(STORAGE) or own
    file = json.loads(as_json(search_.model_dump(include=set(_ASKED_FOR))))
    if not report:
        refuse_changes(root, "A search is of a commit")
        if choice is not None:
            engines.check(choice, root)
    busy = "this search is running already. Wait for it, or stop it with Ctrl-C there"
    with processes.only_one(folder / "lock", busy):
        if report:
            name = _read_text(folder / "study") or ""
            if not name:
                raise UserError(f"{path}: has not run here yet. Run it: thinner search {path}")
            study = open_study(address, name, params.run.seed)
            if study.user_attrs.get(_FILE, file) != file:
                raise UserError(
                    f"{path}: asks for something else than what was run: candidate, space, against, measure, "
                    f"constraints, format or set has changed since then. Run it: thinner search {path}"
                )
            job = Job(path, root, search_, space, Trials(study, search_, space, params.run.seed), params, 1, False)
            if not job.trials.rows():
                raise UserError(f"{path}: no trial was finished yet. Go on with it: thinner search {path}")
            write_report(job)
            return 0
        with engines.connected(choice, root) as engine:
            count = engines.side_by_side(engine, workers)
            trees = Worktrees(root, [folder / f"worker-{number}" for number in range(count)])
            name, measured_by = _name(path, root, search_, space, trees)
            worker = worker_id(folder)
            # alone it draws the same at each beginning; beside others it must not draw what they do
            study = open_study(address, name, params.run.seed, worker if address != own else "")
            (folder / "study").write_text(study.study_name)
            trials = Trials(study, search_, space, params.run.seed, worker)
            if cut := trials.take_up():
                names = ", ".join(f"trial {number}" for number in cut)
                console.console.print(f"Cut off, and now run again: {names}", markup=False)
            base = yaml_files.read(root / "params.yaml")
            job = Job(
                path, root, search_, space, trials, params, count, retest, engine, measured_by=measured_by, base=base
            )
            study.set_user_attr(_FILE, file)
            if _GIVEN not in study.user_attrs:
                study.set_user_attr(_GIVEN, job.given)
            state = conduct(root, f"search {path.stem}", count, trees, search, job)
        for number, why in trials.others("FAIL").items():
            console.console.print(f"trial {number} failed: {why}", style="yellow", markup=False)
        if trials.rows():
            write_report(job)
    if not state.is_completed():
        console.console.print(state.message or "failed", style="red", markup=False)
        console.console.print(f"What was finished is kept. Mend it and run again: thinner search {path}")
    return 0 if state.is_completed() else 1


def _name(path: Path, root: Path, search_: Search, space: Space, trees: Worktrees) -> tuple[str, str]:
    """The name of Optuna's study: another one as soon as results would rest on something else; and the hash of what
    measures. Raises UserError for a key of the space that changes nothing."""
    tree, stages = trees.paths[0], [stage_of(name) for name in candidates_of(search_, space)]

    def keys(values: Mapping[str, Any]) -> list[str]:
        write_params(tree, with_values(root, {**search_.set, **values}))
        return [lineage.key(tree, stage) for stage in stages]

    for name, domain in space.items():
        if name != CANDIDATE and keys({name: domain.ends[0]}) == keys({name: domain.ends[-1]}):
            made = " or ".join(candidates_of(search_, space))
            raise UserError(f"{path}: space.{name}: nothing that {made} is made of depends on it. Take it out")
    asked = search_.model_dump(include={"candidate", "space", "against", "measure", "constraints", "format"})
    rests_on = [*keys({}), asked]
    measured_by = _what_measures(tree)
    write_params(tree, with_values(root, {}))
    digest = hashlib.sha256(as_json([*rests_on, measured_by, lineage.key(tree, stages[0])]).encode()).hexdigest()
    return f"{path.stem}-{digest[:12]}", measured_by


def _what_measures(tree: Path) -> str:
    """A hash of the code and the parameters by which networks are measured there: in no key of what is trained."""
    stages, params = yaml_files.read(tree / "dvc.yaml")["stages"], yaml_files.read(tree / "params.yaml")
    deps = {dep for name in _MEASURE for dep in stages.get(name, {}).get("deps", [])}
    code = sorted({"tasks/measure.py", *(dep for dep in deps if dep.endswith(".py"))})
    digests = [(name, whole.file_sha256(tree / name)) for name in code]
    return hashlib.sha256(as_json([digests, {name: params[name] for name in _MEASURE}]).encode()).hexdigest()


def _value(params: Any, key: str) -> Any:
    for part in key.split("."):
        params = params[part]
    return params


# ---------------------------------------------------------------------------------------------------- report


def write_report(job: Job) -> None:
    """`reports/searches/NAME.md`, `.svg` and `.csv`, and what matters of it on the terminal."""
    place = job.root / FOLDER / job.path.stem
    place.parent.mkdir(parents=True, exist_ok=True)
    search_, default, rows = job.search, job.trials.study.user_attrs[DEFAULT], job.trials.rows()
    flat = [
        {"trial": row["number"], **{key: as_json(value) for key, value in row["values"].items()},
         search_.measure: row[search_.measure], **{cost: row[cost] for cost in search_.costs},
         "seconds": row["seconds"], "commit": row["commit"]}
        for row in rows
    ]  # fmt: skip
    pd.DataFrame(flat).to_csv(f"{place}.csv", index=False)
    evidence.draw(
        rows, default, search_.measure, search_.against, search_.constraints, search_.title, Path(f"{place}.svg")
    )
    page, winner = render(job)
    Path(f"{place}.md").write_text(page, encoding="utf-8")
    console.console.print(f"Trials   {len(rows)} finished. {winner.replace('**', '').replace('`', '')}\n", markup=False)
    console.console.print(f"Page     {FOLDER}/{job.path.stem}.md\nFigure   {FOLDER}/{job.path.stem}.svg", markup=False)


def render(job: Job) -> tuple[str, str]:
    """(the page, the sentence about the winner)."""
    search_, rows, default = job.search, job.trials.rows(), job.trials.study.user_attrs[DEFAULT]
    kept = [row for row in rows if not evidence.missed(row, search_.constraints)]
    on_front = {row["number"] for row in evidence.front(kept, search_.measure, search_.against)}
    busy = busy_seconds(t for t in job.trials.study.trials if t.state.name in ("COMPLETE", "PRUNED"))
    failed, given_up = job.trials.others("FAIL"), job.trials.others("PRUNED")
    limits = ", ".join(
        f"{evidence.heading(cost)} at most {evidence.shown(cost, limit)}" for cost, limit in search_.constraints.items()
    )
    shown = sorted(rows, key=lambda row: row[search_.against])
    table = [{**default, "name": f"`{DEFAULT}`", "values": _defaults(job), "note": _note(job, default, False)}]
    table += [
        {**row, "name": f"**{row['number']}**" if row["number"] in on_front else str(row["number"]),
         "values": {key: f"`{as_json(value)}`" for key, value in row["values"].items()},
         "note": _note(job, row, row["number"] in on_front)}
        for row in shown
    ]  # fmt: skip
    winner, tested = _retested(job)
    commits = ", ".join(sorted({str(row["commit"]) for row in rows}))
    where = search_.runtime if search_.format is None else f"{search_.runtime}, as {search_.format}"
    candidates = " or ".join(f"`{name}`" for name in candidates_of(search_, job.space))
    lines = [
        f"<!-- written by `thinner search {job.path.as_posix()} --report`; do not edit -->",
        f"# {search_.title}",
        "",
        f"Of {candidates}: {search_.measure} on the validation split against"
        f" {evidence.heading(search_.against)}. Limits: {limits or 'none'}. Networks run in {where}.",
        "",
        winner,
        "",
        f"![{search_.measure} of each trial against its cost, and the front]({job.path.stem}.svg)",
        "",
        f"Trials: {len(rows)} finished, {len(given_up)} given up, {len(failed)} failed, in {duration(busy)}; "
        f"{len(kept)} keep to all limits. Of commit {commits}. To repeat: `thinner search {job.path.as_posix()}`",
        "",
        evidence.table(table, list(search_.space), search_.measure, search_.costs),
        *([_TIMED, ""] if search_.batches else []),
        *(f"- trial {number} was given up: {why}" for number, why in given_up.items()),
        *(f"- trial {number} failed: {why}" for number, why in failed.items()),
        *([""] if given_up or failed else []),
        *tested,
    ]
    return "\n".join(lines).rstrip() + "\n", winner


_TIMED = (
    "Each trial was timed in turn with the default; its milliseconds are the default's, measured once, times the ratio "
    "of the two."
)


def _defaults(job: Job) -> dict[str, str]:
    """As they were when the search began: params.yaml may have been set to the winner since then."""
    given = job.trials.study.user_attrs.get(_GIVEN) or job.given
    return {key: f"`{as_json(given[key])}`" for key in job.search.space}


def _note(job: Job, row: Mapping[str, Any], on_front: bool) -> str:
    wrong = evidence.missed(row, job.search.constraints)
    return "; ".join(wrong) if wrong else "on the front" if on_front else ""


def _retested(job: Job) -> tuple[str, list[str]]:
    """(the sentence about the winner, the page's part about the re-test)."""
    search_ = job.search
    ranked = finalists(job)
    if not ranked:
        return "**None found: no trial keeps to all limits.**", []
    place = job.retest_folder / "chosen.json"
    names = [DEFAULT, *map(name_of, ranked)]
    seeds = [] if search_.retest is None else search_.retest.seeds
    done = [(job.retest_folder / str(seed) / "test" / "key").is_file() for seed in seeds]
    if search_.retest is None or not all(done) or not place.is_file():
        best = ranked[0]
        return (
            f"**Best so far: trial {best['number']}, by the validation split alone, which chose it; not tested yet.** "
            f"To take it: `{_command(job, best['values'])}`",
            [],
        )
    chosen = json_files.read_object(place, "Delete it, and search again")
    measured = [set(_measured(job.retest_folder / str(seed) / "test")) for seed in seeds]
    now = as_json({name_of(row): row["values"] for row in ranked})
    if as_json(chosen["of"]) != now or any(of != set(names) for of in measured):
        return "**The front has changed since the re-test.** Run it again: `thinner search " + str(job.path) + "`", []
    return _tested(job, ranked, chosen["order"], names, seeds)


def _tested(
    job: Job, ranked: Sequence[Mapping[str, Any]], order: Sequence[str], names: Sequence[str], seeds: Sequence[int]
) -> tuple[str, list[str]]:
    from tasks.report import gather  # torch
    from thinner.evidence import statistics, study

    search_ = job.search
    assert search_.retest is not None
    margin = search_.retest.margin_points
    runs = []
    rows = []
    for seed in seeds:
        folder = job.retest_folder / str(seed)
        shutil.copy(folder / "validation" / "latency.csv", folder / "test")
        found = _measured(folder / "test")
        runs.append(gather(folder / "test", found))
        rows += [{"variant": name, "seed": seed, "value": found[name][search_.measure]} for name in names]
    claims = [
        claim
        for name in names[1:]
        for claim in evidence.claims_about(name, search_.measure, search_.against, margin, search_.runtime)
    ]
    parsed = statistics.parse_claims(claims, list(names), [*catalogue.RUNTIMES, catalogue.PYTORCH])
    verdicts = statistics.judge(parsed, statistics.over_seeds(runs), seed=job.params.run.seed)
    summary = study.summarise(pd.DataFrame(rows), DEFAULT)
    means = {row["name"]: row for row in mean_rows(job, names, seeds)}
    values = {name_of(row): row["values"] for row in ranked}
    looks = len(_looks(job))
    costs = [*search_.costs, *(cost for cost in means[DEFAULT] if evidence.batch_of(cost) is not None)]
    table = [
        {**means[name], "name": f"`{name}`", "values": {}, "note": _note(job, means[name], False)} for name in names
    ]
    lines = [
        "## Once more, with other seeds",
        "",
        f"The best {len(ranked)} of the front and the default, made anew with seed"
        f"{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}: other splits, teacher, first weights, order of "
        "images. The mean score on the validation splits, by which the winner was chosen; of each cost the largest:",
        "",
        evidence.table(table, [], search_.measure, list(dict.fromkeys(costs))),
        "Then, with all chosen, the test split"
        + (
            f", which this search has asked {looks} times, of other networks or with another question"
            if looks > 1
            else ", once"
        )
        + ":",
        "",
        study.render_markdown(summary, DEFAULT, len(seeds)),
        evidence.verdict_table(verdicts),
    ]
    if not order:
        return "**None found: with other seeds no network of the front keeps to all limits.**", lines
    first = order[0]
    own = [verdict for verdict in verdicts if verdict.claim.candidate == first]
    proven = sum(verdict.outcome == "proven" for verdict in own)
    trial, command = first.replace("_", " "), _command(job, values[first])
    if proven == len(own):
        return f"**Winner: {trial}: {proven} of {len(own)} claims proven.** To make it the pipeline: `{command}`", lines
    return (
        f"**No winner is shown: of {trial}, the best on the validation splits, {proven} of {len(own)} claims are "
        f"proven.** To make it the pipeline all the same: `{command}`",
        lines,
    )


def _command(job: Job, values: Mapping[str, Any]) -> str:
    params = with_values(job.root, {})
    changed = {k: v for k, v in {**job.search.set, **values}.items() if as_json(_value(params, k)) != as_json(v)}
    pairs = " ".join(shlex.quote(f"{key}={as_json(value)}") for key, value in changed.items())
    return f"thinner set {pairs}" if pairs else "thinner run"
