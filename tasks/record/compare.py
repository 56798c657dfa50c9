"""Runs beside each other, as MLflow's compare page has them: metrics, parameters that differ, and paired tests.

The tests are what that page has not: where two runs keep what they named for each test image, and these are the same
images, the difference of their accuracies has an interval and a p-value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.record import candidates, mlflow_client
from thinner.errors import UserError
from thinner.evidence import statistics

SHORTEST_PREFIX = 4  # of a run's id


@dataclass(frozen=True)
class Row:
    """What a run recorded, so far as it is compared."""

    id: str
    name: str
    metrics: Mapping[str, float]
    params: Mapping[str, str]


@dataclass(frozen=True)
class Difference:
    """A candidate's accuracy in one run minus that in the first, on the same test images; ratios."""

    run: str
    candidate: str
    estimate: statistics.Estimate


@dataclass(frozen=True)
class Comparison:
    runs: list[Row]
    differences: list[Difference]
    notes: list[str]  # why two runs have no tests


def compare(words: Sequence[str]) -> Comparison:
    """The runs that ``words`` name (id, start of an id, or name: the newest), or the last two pipeline runs.

    Raises:
        UserError: a word names no run, or several; fewer than two runs.
    """
    client, experiment = mlflow_client.connect()
    with mlflow_client.reachable():
        found = [_find(client, experiment, word) for word in words] if words else _last(client, experiment)
        if len({run.info.run_id for run in found}) < 2:
            raise UserError("compare: two runs or more are needed. Names and ids are in MLflow: thinner ui")
        differences: list[Difference] = []
        notes: list[str] = []
        first, *others = found
        kept = {run.info.run_id: candidates.fetch_predictions(client, run.info.run_id) for run in found}
        for other in others:
            names = f"{other.info.run_name} and {first.info.run_name}"
            pair = kept[first.info.run_id], kept[other.info.run_id]
            if pair[0] is None or pair[1] is None:
                notes.append(f"{names}: no paired tests, because not both keep what they named for each image")
            elif other.data.tags.get(candidates.TEST) != first.data.tags.get(candidates.TEST):
                notes.append(f"{names}: no paired tests, because they were tested on other images")
            else:
                differences += _paired(other.info.run_name, pair[0], pair[1])
        rows = [Row(run.info.run_id, run.info.run_name, run.data.metrics, run.data.params) for run in found]
        return Comparison(rows, differences, notes)


def _paired(run: str, first: Mapping[str, Any], other: Mapping[str, Any]) -> list[Difference]:
    """One per candidate that both have; where each has a single one, these two, whatever they are called."""
    mine, its = (
        {key.removeprefix("predictions."): value for key, value in kept.items() if key.startswith("predictions.")}
        for kept in (other, first)
    )
    pairs = [(name, mine[name], its[name]) for name in its if name in mine]
    if not pairs and len(mine) == len(its) == 1:
        ((name, predicted),), ((reference, wanted),) = mine.items(), its.items()
        pairs = [(f"{name} against {reference}", predicted, wanted)]
    labels = np.asarray(first["labels"])
    return [
        Difference(run, name, statistics.accuracy_difference(predicted == labels, wanted == labels))
        for name, predicted, wanted in pairs
    ]


def _last(client: Any, experiment: str) -> list[Any]:
    return list(
        client.search_runs(
            [experiment],
            "tags.stage = 'pipeline' and attributes.status = 'FINISHED'",
            order_by=["attributes.start_time DESC"],
            max_results=2,
        )
    )


def _find(client: Any, experiment: str, word: str) -> Any:
    newest = ["attributes.start_time DESC"]
    name = word.replace("'", "''")
    named = client.search_runs([experiment], f"attributes.run_name = '{name}'", order_by=newest, max_results=1)
    if named:
        return named[0]
    if re.fullmatch(rf"[0-9a-f]{{{SHORTEST_PREFIX},32}}", word):
        found = client.search_runs([experiment], f"attributes.run_id LIKE '{word}%'", max_results=5)
        if len(found) == 1:
            return found[0]
        if found:
            several = ", ".join(f"{run.info.run_id[:12]} ({run.info.run_name})" for run in found)
            raise UserError(f"compare: '{word}' begins several ids: {several}. Give more of it")
    recent = client.search_runs([experiment], "tags.stage = 'pipeline'", order_by=newest, max_results=5)
    last = "; ".join(f"'{run.info.run_name}' ({run.info.run_id[:8]})" for run in recent) or "none yet: thinner run"
    raise UserError(f"compare: no run is named '{word}', and no id begins so. The last pipeline runs: {last}")
