"""What a search asks, and its trials: the file, the space of values, Optuna's study behind one door.

Optuna is an optional library (`pip install -e '.[search]'`), and is spoken to here and nowhere else.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import secrets
import socket
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from tasks.record.mlflow_client import without_passwords
from thinner.errors import UserError, did_you_mean, one_line
from thinner.evidence import search as evidence
from thinner.files import whole
from thinner.params import Section
from thinner.runtimes import catalogue

if TYPE_CHECKING:
    import optuna

_STARTUP = 8  # trials that are drawn by chance before the sampler believes that it knows something
_COUNTED = 100_000  # combinations of values that are listed, so that none is tried twice
_DOUBTED = "doubted"  # a user attribute
_DRAWS = 20  # of which one may be new, where it is not known what is
_RANGE = {"low", "high", "step", "log"}


class Retest(Section):
    """How what was found is looked at again."""

    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    networks: Annotated[int, Field(ge=1)] = 3
    margin_points: Annotated[float, Field(gt=0)] = 0.5


class Search(Section):
    """A search's file; docs/search.md explains each key."""

    title: str
    candidate: str
    space: dict[str, Any]
    measure: Literal["accuracy", "balanced_accuracy", "macro_f1", "worst_class"] = "accuracy"
    against: str
    constraints: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    trials: Annotated[int, Field(ge=1)] | None = None
    minutes: Annotated[float, Field(gt=0)] | None = None
    format: str | None = None
    give_up: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    set: dict[str, Any] = Field(default_factory=dict)
    retest: Retest | None = None

    @property
    def costs(self) -> list[str]:
        """What is shown of a network beside its score."""
        return list(dict.fromkeys([self.against, *self.constraints, "params", "macs", "file_bytes"]))

    @property
    def batches(self) -> list[int]:
        """At which it is timed."""
        return sorted({batch for cost in self.costs if (batch := evidence.batch_of(cost)) is not None})

    @property
    def runtime(self) -> str:
        return catalogue.PYTORCH if self.format is None else catalogue.OF[self.format].name

    @model_validator(mode="after")
    def _fits_itself(self) -> Search:
        if not self.space:
            raise ValueError("space: empty. Name at least one key of params.yaml with its values")
        if self.trials is None and self.minutes is None:
            raise ValueError("trials: how many, or for how many minutes? Give trials, minutes or both")
        for where, cost in [("against", self.against), *(("constraints", cost) for cost in self.constraints)]:
            if not evidence.is_cost(cost):
                known = [*evidence.COUNTED, "latency_ms_b1", "latency_ms_b64"]
                choices = f"Choose one of: {', '.join(evidence.COUNTED)}, latency_ms_bN (N pictures at once)"
                raise ValueError(f"{where}: unknown '{cost}'. {did_you_mean(cost, known, always=choices)}")
        if self.format is not None and self.format not in catalogue.FORMATS:
            raise ValueError(f"format: unknown '{self.format}'. Choose one of: {', '.join(catalogue.FORMATS)}")
        if self.retest is not None and len(set(self.retest.seeds)) < len(self.retest.seeds):
            raise ValueError(f"retest.seeds: {self.retest.seeds} has one twice. Give each once")
        return self


# ---------------------------------------------------------------------------------------------------- the space


@dataclass(frozen=True)
class Choices:
    """A list of values, whatever they are: Optuna is told of their JSON."""

    values: tuple[Any, ...]

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values by which mistakes are looked for."""
        return self.values

    @property
    def listed(self) -> tuple[Any, ...] | None:
        return self.values

    def ask(self, trial: optuna.Trial, key: str) -> Any:
        return json.loads(trial.suggest_categorical(key, [as_json(value) for value in self.values]))

    def tell(self, value: Any) -> Any:
        """As Optuna has it; None for what is none of the values."""
        return next((as_json(known) for known in self.values if as_json(known) == as_json(value)), None)


@dataclass(frozen=True)
class Range:
    """From low to high, both included: of whole numbers where both are."""

    low: float
    high: float
    step: float | None
    log: bool

    @property
    def whole(self) -> bool:
        return all(isinstance(value, int) for value in (self.low, self.high, self.step) if value is not None)

    @property
    def ends(self) -> tuple[Any, ...]:
        return self.low, self.high

    @property
    def listed(self) -> tuple[Any, ...] | None:
        step = self.step or (1 if self.whole else None)
        if step is None or (self.high - self.low) / step > _COUNTED:
            return None
        if self.whole:
            return tuple(range(int(self.low), int(self.high) + 1, int(step)))
        return tuple(float(f"{self.low + n * step:.12g}") for n in range(int((self.high - self.low) / step + 1e-9) + 1))

    def ask(self, trial: optuna.Trial, key: str) -> Any:
        high = self.high if self.listed is None else self.listed[-1]  # which the steps may not reach
        if self.whole:
            return trial.suggest_int(key, int(self.low), int(high), step=int(self.step or 1), log=self.log)
        value = trial.suggest_float(key, self.low, high, step=self.step, log=self.log)
        if self.listed is not None:
            return min(self.listed, key=lambda known: abs(known - value))
        # digits that a person wants to read: the sampler does not miss the others
        return min(max(float(f"{value:.3g}"), self.low), self.high)

    def tell(self, value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        if self.listed is not None:
            return next((known for known in self.listed if math.isclose(known, value)), None)
        return value if self.low <= value <= self.high else None


Space = Mapping[str, Choices | Range]


def as_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def read_space(given: Mapping[str, Any]) -> dict[str, Choices | Range]:
    """Raises UserError with a line for each mistake."""
    found: dict[str, Choices | Range] = {}
    wrong = []
    for key, values in given.items():
        try:
            found[key] = _domain(values)
        except ValueError as error:
            wrong.append(f"space.{key}: {error}")
    if wrong:
        raise UserError("\n".join(wrong))
    return found


def _domain(given: Any) -> Choices | Range:
    if isinstance(given, list):
        if len({as_json(value) for value in given}) < max(2, len(given)):
            raise ValueError(
                f"{one_line(given, 60)}: two different values at least, each once; a single one goes to set"
            )
        return Choices(tuple(given))
    if not isinstance(given, dict) or not {"low", "high"} <= set(given) <= _RANGE:
        raise ValueError(f"{one_line(given, 60)}: a list of values, or low and high with step or log")
    low, high, step, log = given["low"], given["high"], given.get("step"), given.get("log", False)
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in (low, high)) or low >= high:
        raise ValueError(f"low: {low} and high: {high} are no two numbers, the first below the second")
    if log not in (True, False) or (log and (low <= 0 or step is not None)):
        raise ValueError(f"log: {log}: true needs a low above 0, and no step")
    if step is not None and (isinstance(step, bool) or not isinstance(step, int | float) or not 0 < step <= high - low):
        raise ValueError(f"step: {step} is no number above 0 and at most {high - low}")
    return Range(low, high, step, bool(log))


def combinations(space: Space) -> list[dict[str, Any]] | None:
    """All of them; None where they cannot be counted, or are too many."""
    listed = [domain.listed for domain in space.values()]
    if any(values is None for values in listed) or math.prod(len(values or ()) for values in listed) > _COUNTED:
        return None
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*(v for v in listed if v))]


# ---------------------------------------------------------------------------------------------------- trials


@dataclass
class Trials:
    """Optuna's study, as far as a search needs it. ``worker``: which of those that share it this is."""

    study: optuna.Study
    search: Search
    space: Space
    seed: int
    worker: str = field(default_factory=lambda: f"{socket.gethostname()}:{Path.cwd()}")

    def __post_init__(self) -> None:
        everything = combinations(self.space)
        self._all = None if everything is None else {as_json(values): values for values in everything}
        self._chance = np.random.default_rng([self.seed, len(self.study.trials)])
        self._guard = threading.Lock()

    def take_up(self) -> list[int]:
        """Before the first trial: those that this worker was at when it was stopped are to be run again, and their
        numbers returned."""
        from optuna.trial import TrialState

        cut = []
        for trial in self.study.get_trials(states=[TrialState.RUNNING]):
            if trial.user_attrs.get("worker") == self.worker:
                self.study.tell(trial.number, state=TrialState.FAIL)
                if set(trial.params) == set(self.space):
                    doubted = {_DOUBTED: True} if _DOUBTED in trial.user_attrs else {}
                    self.study.enqueue_trial(trial.params, user_attrs=doubted)
                cut.append(trial.number)
        return cut

    def was_doubted(self, trial: optuna.Trial) -> bool:
        """Whether it is run again because it was not clear that its values made it fail."""
        return _DOUBTED in trial.user_attrs

    def doubt(self, trial: optuna.Trial) -> None:
        trial.set_user_attr(_DOUBTED, True)

    def put(self, values: Mapping[str, Any]) -> None:
        """These values come next, where they are in the space and nobody has drawn them."""
        told = {key: self.space[key].tell(value) for key, value in values.items()}
        with self._guard:
            if None not in told.values():
                self.study.enqueue_trial(told, skip_if_exists=True)

    def next(self) -> optuna.Trial | None:
        """The next trial, with its values in user attribute `values`; None where the search is over."""
        with self._guard:
            known = self._counted()
            if self.search.trials is not None and len(known) >= self.search.trials:
                return None
            if self.search.minutes is not None and busy_seconds(known) >= 60 * self.search.minutes:
                return None
            tried = {as_json(trial.user_attrs["values"]) for trial in known}
            trial, values = self._ask()
            for _ in range(_DRAWS):  # of a range there may be no list of what is left
                if as_json(values) not in tried or self._all is not None:
                    break
                self._forget(trial)
                trial, values = self._ask()
            if as_json(values) in tried and self._all is not None:
                self._forget(trial)
                left = [values for text, values in self._all.items() if text not in tried]
                if not left:
                    return None
                chosen = left[int(self._chance.integers(len(left)))]
                self.study.enqueue_trial({key: self.space[key].tell(value) for key, value in chosen.items()})
                trial, values = self._ask()
            trial.set_user_attr("values", values)
            return trial

    def _ask(self) -> tuple[optuna.Trial, dict[str, Any]]:
        trial = self.study.ask()
        trial.set_user_attr("worker", self.worker)
        trial.set_user_attr("began", time.time())  # Optuna's own times are of the machine's zone
        return trial, {key: domain.ask(trial, key) for key, domain in self.space.items()}

    def _forget(self, trial: optuna.Trial) -> None:
        from optuna.trial import TrialState

        self.study.tell(trial, state=TrialState.FAIL)

    def finish(self, trial: optuna.Trial, row: Mapping[str, Any]) -> None:
        trial.set_user_attr("row", dict(row))
        for cost, limit in self.search.constraints.items():
            trial.set_constraint(cost, row[cost] / limit - 1)
        self.study.tell(trial, [row[self.search.measure], row[self.search.against]])

    def fail(self, trial: optuna.Trial, why: str, *, given_up: bool = False) -> None:
        from optuna.trial import TrialState

        trial.set_user_attr("why", one_line(why, 300))
        self.study.tell(trial, state=TrialState.PRUNED if given_up else TrialState.FAIL)

    def rows(self) -> list[dict[str, Any]]:
        """Of every trial that was finished, what was measured, with `name`, `number`, `values` and `way`."""
        return [
            {**trial.user_attrs["row"], "name": f"trial {trial.number}", "number": trial.number,
             "values": trial.user_attrs["values"]}
            for trial in self.study.trials
            if trial.state.name == "COMPLETE"
        ]  # fmt: skip

    def others(self, state: Literal["PRUNED", "FAIL"]) -> dict[int, str]:
        """By number, why trials were given up or failed."""
        trials = self.study.trials
        return {t.number: str(t.user_attrs["why"]) for t in trials if t.state.name == state and "why" in t.user_attrs}

    def elsewhere(self, now: float | None = None) -> list[int]:
        """Trials that other workers are at. One that takes more than twice as long as any that was finished is taken
        for lost with its machine."""
        trials, now = self.study.trials, time.time() if now is None else now
        took = [t.duration.total_seconds() for t in trials if t.state.name == "COMPLETE" and t.duration]
        return [
            t.number
            for t in trials
            if t.state.name == "RUNNING" and t.user_attrs.get("worker") not in (None, self.worker)
            and (not took or now - t.user_attrs.get("began", now) < 2 * max(took))
        ]  # fmt: skip

    def _counted(self) -> list[Any]:
        """All trials but those that were cut off, or had been tried before."""
        return [
            trial
            for trial in self.study.trials
            if "values" in trial.user_attrs and (trial.state.name != "FAIL" or "why" in trial.user_attrs)
            and trial.state.name != "WAITING"
        ]  # fmt: skip


def busy_seconds(trials: Iterable[Any], now: datetime | None = None) -> float:
    """How long at least one of the trials was at work: what side by side ran counts once, and a pause does not."""
    end, total = datetime.min, 0.0
    spans = sorted((t.datetime_start, t.datetime_complete or now or datetime.now()) for t in trials if t.datetime_start)
    for start, stop in spans:
        if stop > end:
            total += (stop - max(start, end)).total_seconds()
            end = stop
    return total


def require_optuna() -> None:
    if importlib.util.find_spec("optuna") is None:
        raise UserError(
            "thinner search draws its trials with Optuna, which is not installed: pip install -e '.[search]'"
        )


def worker_id(folder: Path) -> str:
    """Of whoever works in ``folder``, for as long as that is there: a container has another host's name each time, and
    two machines may have the same."""
    path = folder / "worker"
    if not path.is_file():
        whole.write_text(path, f"{socket.gethostname()}:{secrets.token_hex(8)}")
    return path.read_text(encoding="utf-8")


def open_study(storage: str, name: str, seed: int, worker: str = "") -> optuna.Study:
    """Optuna's study of that name in the database at the address. ``worker``: who draws, where others draw as well.
    Raises UserError where that cannot be had."""
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # several workers write into one file: they wait for each other
    options = {"connect_args": {"timeout": 60}} if storage.startswith("sqlite:") else {}
    try:
        opened = optuna.storages.RDBStorage(storage, engine_kwargs=options)
        study = optuna.create_study(
            storage=opened, study_name=name, directions=["maximize", "minimize"], load_if_exists=True
        )
    except (SQLAlchemyError, ImportError, ValueError, RuntimeError) as error:
        place = without_passwords(storage)
        why = one_line(without_passwords(str(error).partition("\n")[0]), 160)
        raise UserError(
            f"--storage: {place} cannot be opened ({why}). Look at the address, and at the server"
        ) from None
    # each start draws on, and does not draw the same again
    entropy = [seed, len(study.trials), *worker.encode()]
    chance = int(np.random.SeedSequence(entropy).generate_state(1)[0])
    study.sampler = optuna.samplers.TPESampler(seed=chance, n_startup_trials=_STARTUP)
    return study
