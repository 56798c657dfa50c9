"""What a reader of the report asks first: which network, how sure, what it costs, what it lost; and what else there is.

Everything is about the candidate that ``ship.candidate`` names, compared with the teacher on the same test images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from statsmodels.stats.proportion import proportion_confint

from thinner.evidence import statistics
from thinner.evidence.candidates import CONTROLS, SMALLEST, TEACHER, Table, folder_of, speed
from thinner.evidence.results import Results
from thinner.evidence.shipping import RUNTIMES, latency_batches, open_points, unfit
from thinner.measure.operating import Point
from thinner.words import duration, interval, limits, milliseconds, percent, points, si, times

_AS_LARGE = 1.05  # files that differ by less are said to be as large


@dataclass(frozen=True)
class Answer:
    question: str
    short: str
    more: tuple[str, ...]  # sentences


def first_answers(results: Results, what: Mapping[str, str]) -> list[Answer]:
    """The first screen. ``what``: what each candidate is, in words."""
    name = _asked(results)
    row, teacher = results.metrics[name], results.metrics[TEACHER]
    return [
        _which(results, name, what.get(name, "").partition(":")[0]),
        _how_sure(results, name, row),
        _what_it_costs(results, name, row, teacher),
        _what_it_lost(results, name),
    ]


def _asked(results: Results) -> str:
    return results.shipped if results.shipped in results.metrics else SMALLEST


def _which(results: Results, name: str, what: str) -> Answer:
    if results.ready:
        is_ = f"{what}; it" if what else "It"
        return Answer("Which one?", name, (f"{is_} lies in {folder_of(name)}.",))
    why = open_points(results.shipped, results.verdicts, results.targets)
    return Answer("Which one?", "None yet", (f"{name} is not ready: {'; '.join(why)}.",))


def _how_sure(results: Results, name: str, row: Mapping[str, Any]) -> Answer:
    proven = sum(verdict["outcome"] == "proven" for verdict in results.verdicts)
    short = f"{proven} of {len(results.verdicts)} claims proven" if results.verdicts else "Nothing was claimed"
    images = len(results.labels)
    right = int((results.predictions[name] == results.labels).sum())
    low, high = proportion_confint(right, images, alpha=0.05, method="wilson")
    return Answer(
        "How sure?",
        short,
        (
            f"Right on {percent(row['accuracy'])} of {images:,} test images, 95 % interval {limits(low, high)}.",
            *_where_sure(results.points.get(name, ())),
            "One training run of each; another seed is another run.",
        ),
    )


def _where_sure(found: Sequence[Point]) -> list[str]:
    """What it does if it may say "unsure", at each operating point."""
    told = [
        f"{percent(point.coverage)} where {100 * point.at_least:g} % have to be right ({percent(point.accuracy)} are, "
        f"{limits(point.low, point.high)})"
        for point in found
        if point.accuracy is not None and point.low is not None and point.high is not None
    ]
    if told:
        return [f"Allowed to be unsure, of the images it answers {', '.join(told)}."]
    asked = ", ".join(f"{100 * point.at_least:g}" for point in found)
    return [f"At no confidence were {asked} % of its answers shown to be right."] if found else []


def _what_it_costs(results: Results, name: str, row: Mapping[str, Any], teacher: Mapping[str, Any]) -> Answer:
    batch = latency_batches(results.metrics)[-1]
    more = [f"{si(row['macs'])} MACs and {si(row['params'])} parameters."]
    if name != TEACHER:
        size = _larger_or_smaller(row["file_bytes"], teacher["file_bytes"]) or "as large"
        more.insert(0, f"Against {TEACHER}: {speed(row, teacher, batch)}, its file {size}.")
    seconds = [run["seconds"] for run in results.runs.values() if run is not None]
    if seconds and len(seconds) == len(results.runs):
        more.append(
            f"To make it and all it is compared with, stages computed for {duration(sum(seconds))}, added up; what it "
            "takes to start them comes on top."
        )
    took = f"{milliseconds(row[f'latency_ms_b{batch}'])} ms for {batch} images"
    return Answer("What does it cost?", f"{si(row['file_bytes'], 'B')}, {took}", tuple(more))


def _what_it_lost(results: Results, name: str) -> Answer:
    question = "What did it lose?"
    if name == TEACHER:
        return Answer(question, "Nothing: it is the baseline", ())
    right = {key: results.predictions[key] == results.labels for key in (name, TEACHER)}
    whole = statistics.accuracy_difference(right[name], right[TEACHER])
    if whole.high < 0:
        short = f"{points(-whole.effect).lstrip('+')} points"
    elif whole.low > 0:
        short = f"Nothing: {points(whole.effect)} points"
    else:
        short = "Nothing that shows"
    more = [f"{points(whole.effect)} points {interval(whole.low, whole.high)} against {TEACHER}, on the same images."]
    by_class = [
        (statistics.accuracy_difference(right[name][own], right[TEACHER][own]), results.classes[k])
        for k in range(len(results.classes))
        if (own := results.labels == k).any()
    ]
    worst, of = min(by_class, key=lambda pair: pair[0].effect)
    if worst.effect < 0:
        more.append(f"By class most on {of}: {points(worst.effect)} points {interval(worst.low, worst.high)}.")
    return Answer(question, short, tuple(more))


def _larger_or_smaller(mine: float, its: float) -> str:
    """``2.0x smaller``; empty where they are as large."""
    if mine * _AS_LARGE <= its:
        return f"{times(its, mine)} smaller"
    return f"{times(mine, its)} larger" if mine >= its * _AS_LARGE else ""


# --- what else there is ---


def alternatives(results: Results) -> Table | None:
    """What to take instead, for those who can afford something: measured candidates that are better in accuracy, speed
    at the largest batch or size of the file, and that no other one beats in all three. None where there is none.

    More accurate is said only where the interval of the paired difference lies above 0, faster only where the intervals
    of the medians do not meet. Controls are left out: they are there to compare with. What wants another runtime counts
    as having a price, so that it hides nothing that runs in the same one.
    """
    name, measured = _asked(results), results.metrics
    batch = latency_batches(measured)[-1]
    asked = measured[name]
    right = {key: predicted == results.labels for key, predicted in results.predictions.items()}

    def costs(row: Mapping[str, Any]) -> tuple[float, ...]:
        return -row["accuracy"], row[f"latency_ms_b{batch}"], row["file_bytes"]

    def beaten(key: str) -> bool:
        mine = costs(measured[key])
        return any(
            costs(row) != mine
            and all(a <= b for a, b in zip(costs(row), mine, strict=True))
            and row["runtime"] in (measured[key]["runtime"], asked["runtime"])
            for other, row in measured.items()
            if other not in (key, *CONTROLS, *unfit(results.targets))
        )

    rows, values = [], []
    for key, row in measured.items():
        if key in (name, *CONTROLS, *unfit(results.targets)) or beaten(key):
            continue
        difference = statistics.accuracy_difference(right[key], right[name])
        price = [RUNTIMES[row["runtime"]]] if row["runtime"] != asked["runtime"] else []
        gain = []
        if difference.low > 0:
            gain.append(f"{points(difference.effect)} points")
        elif points(difference.effect) != "0.0" and difference.effect < 0:
            price.insert(0, f"{points(-difference.effect).lstrip('+')} points")
        for said in (speed(row, asked, batch), _size(row["file_bytes"], asked["file_bytes"])):
            if said.endswith(("faster", "smaller")):
                gain.append(said)
            elif said.endswith(("slower", "larger")):
                price.append(said)
        if not gain:
            continue
        rows.append(
            [
                " and ".join(price) or "nothing",
                key,
                ", ".join(gain),
                f"{percent(row['accuracy'])}, {points(difference.effect)} {interval(difference.low, difference.high)}",
                f"{milliseconds(row[f'latency_ms_b{batch}'])} ms",
                si(row["file_bytes"], "B"),
            ]
        )
        values.append(difference.effect)
    if not rows:
        return None
    headings = ["if you can afford", "take", "and get", "accuracy", f"batch of {batch}", "file"]
    return Table(headings, [rows[k] for k in np.argsort(-np.array(values), kind="stable")])


def _size(mine: float, its: float) -> str:
    said = _larger_or_smaller(mine, its)
    return said and f"file {said}"
