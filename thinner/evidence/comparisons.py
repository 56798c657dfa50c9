"""What is computed from results to be shown: differences from the teacher, classes, corruption, rounds, stages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from thinner.evidence import statistics
from thinner.evidence.candidates import SMALLEST, TEACHER, Table
from thinner.evidence.results import Results
from thinner.measure import metrics
from thinner.words import duration, milliseconds, percent, si

CHOSEN = " (chosen)"  # ends the name of the pruning round that became the candidate


def differences(results: Results) -> dict[str, statistics.Estimate]:
    """Each candidate's accuracy minus the teacher's, on the same images, with its interval."""
    right = {name: predicted == results.labels for name, predicted in results.predictions.items()}
    return {
        name: statistics.accuracy_difference(right[name], right[TEACHER]) for name in results.metrics if name != TEACHER
    }


@dataclass(frozen=True)
class ClassRow:
    """A class in both networks' eyes: accuracies with Wilson's 95 % limits, and their paired difference (ratios)."""

    name: str
    images: int
    teacher: float
    teacher_limits: tuple[float, float]
    small: float
    small_limits: tuple[float, float]
    difference: statistics.Estimate


def class_rows(results: Results) -> list[ClassRow]:
    """A row for each class that occurs."""
    count = len(results.classes)
    right = {name: results.predictions[name] == results.labels for name in (TEACHER, SMALLEST)}

    def recognised(name: str) -> list[tuple[float, tuple[float, float]]]:
        shares = metrics.per_class_accuracy(results.labels, results.predictions[name], count)
        lows, highs = metrics.per_class_interval(results.labels, results.predictions[name], count)
        return [
            (share, (low, high))
            for share, low, high in zip(*map(np.ndarray.tolist, (shares, lows, highs)), strict=True)
        ]

    rows = []
    for k, (teacher, small) in enumerate(zip(recognised(TEACHER), recognised(SMALLEST), strict=True)):
        own = results.labels == k
        if own.any():
            difference = statistics.accuracy_difference(right[SMALLEST][own], right[TEACHER][own])
            rows.append(ClassRow(results.classes[k], int(own.sum()), *teacher, *small, difference))
    return rows


@dataclass(frozen=True)
class Mistake:
    """How many images of one class both networks saw as another."""

    actual: str
    predicted: str
    small: int
    teacher: int


def most_confused(results: Results, rows: int = 10) -> list[Mistake]:
    """The smallest candidate's most frequent mistakes."""
    classes, count = results.classes, len(results.classes)
    small, big = (metrics.confusion(results.labels, results.predictions[name], count) for name in (SMALLEST, TEACHER))
    wrong = small - np.diag(np.diag(small))
    order = np.argsort(-wrong, axis=None, kind="stable")[:rows]
    pairs = [divmod(int(flat), count) for flat in order]
    return [Mistake(classes[a], classes[p], int(small[a, p]), int(big[a, p])) for a, p in pairs if wrong[a, p]]


def corruptions_table(results: Results) -> Table | None:
    """Accuracy by candidate on clean images and on each kind of corruption; None where that was not measured."""
    found = results.corruptions
    if found is None or found.empty:
        return None
    means = {name: rows.groupby("corruption")["accuracy"].mean() for name, rows in found.groupby("candidate")}
    kinds = list(dict.fromkeys(found["corruption"]))
    values: list[list[Any]] = [
        [name, row["accuracy"], *(float(means[name][kind]) for kind in kinds)]
        for name, row in results.metrics.items()
        if name in means
    ]
    rows = [[name, *(percent(value) for value in shares)] for name, *shares in values]
    return Table(["candidate", "not corrupted", *kinds], rows, values)


def has_masks(results: Results) -> bool:
    """Whether weights were set to zero instead of channels removed: sizes then stand still, and zeros are counted."""
    return any(_shrinking(rounds) == "nonzero" for rounds in results.rounds.values())


def _shrinking(rounds: pd.DataFrame) -> str:
    """The column that shrinks from round to round."""
    still = rounds["params"].nunique() == 1
    return "nonzero" if still and "nonzero" in rounds and rounds["nonzero"].nunique() > 1 else "macs"


def rounds_table(results: Results) -> Table | None:
    """Every pruning round; with its candidate, where several were pruned."""
    if not results.rounds:
        return None
    masked = has_masks(results)
    rows = []
    for candidate, rounds in results.rounds.items():
        for row in rounds.to_dict("records"):
            of = f"{candidate} " * (len(results.rounds) > 1)
            name = f"{of}{int(row['round'])}{CHOSEN * bool(row['chosen'])}"
            zeros = [f"{int(row['nonzero']):,}", si(row["compressed_bytes"], "B")] if masked else []
            accuracies = percent(row["accuracy_before"]), percent(row["accuracy_after"])
            rows.append([name, si(row["macs"]), f"{int(row['params']):,}", *zeros, *accuracies])
    more = ["not zero", "file, gzip"] * masked
    headings = ["round", "MACs", "parameters", *more, "before recovery", "after recovery"]
    return Table(headings, rows)


def ladder_table(results: Results) -> Table | None:
    """Every attempt of the ladder to 8 bits, on validation images, the float network first."""
    if results.ladder is None:
        return None
    rows = []
    for row in results.ladder.to_dict("records"):
        is_float = row["rung"] == "float"
        how = "" if is_float else row["calibration"]
        lost = "" if is_float else f"{row['loss_points']:.2f} [{row['loss_low']:.2f}, {row['loss_high']:.2f}]"
        rows.append(
            [
                f"{row['rung']}{CHOSEN * bool(row['chosen'])}",
                how,
                "all" if is_float else f"{int(row['float_layers'])}",
                percent(row["accuracy"]),
                lost,
                "" if is_float else "yes" if row["holds"] else "not shown",
                percent(row["agreement"]),
                si(row["file_bytes"], "B"),
                milliseconds(row["latency_ms"]),
            ]
        )
    headings = ["rung", "calibration", "layers in float", "accuracy", "points lost", "holds", "agreement", "file", "ms"]
    return Table(headings, rows)


def stages_table(results: Results) -> Table | None:
    """By stage, what the run took that made its result, and the commit that was checked out then."""
    if not results.runs:
        return None
    rows, values = [], []
    for stage, run in results.runs.items():
        if run is None:
            rows.append([stage, "not recorded here", "", ""])
            values.append([stage, "", "", ""])
            continue
        commit = run["commit"][:12] or "not told"
        energy = "not told" if run["joules"] is None else si(run["joules"], "J")
        rows.append([stage, commit + " and changes" * run["dirty"], duration(run["seconds"]), energy])
        values.append([stage, commit, run["seconds"], "" if run["joules"] is None else run["joules"]])
    return Table(["stage", "commit", "duration", "energy"], rows, values)
