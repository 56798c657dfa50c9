"""Numbers to pictures: one HTML page that needs nothing but a browser, and the same as Markdown.

All that is shown is computed from what evaluate and the training stages wrote; nothing is measured here, and
equal inputs give equal pages. A ratio of MACs is called just that. "Faster" is said of measured milliseconds
only.

    python -m thinner.report --readme README.md            # put today's table between the two marks
    python -m thinner.report --readme README.md --check    # exit 1 if the table there is not today's
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import math
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io
import plotly.offline
import yaml
from jaxtyping import Float, Integer, UInt8
from PIL import Image

from thinner import json_files, metrics, shipping, statistics
from thinner.errors import UserError
from thinner.profiling import pareto_front
from thinner.shipping import RUNTIMES, Metrics, latency_batches, open_points, read_targets, ship_line, target_lines
from thinner.words import duration, interval, limits, milliseconds, milliseconds_limits, percent, points, si, times

TEACHER, SMALLEST = "finetune", "prune"
WHAT = {
    "finetune": "the pretrained network, fine-tuned: the baseline and the teacher",
    "scratch": "the student's network, trained without the teacher: the control",
    "distill": "the student, trained on the teacher's outputs",
    "small": "the control at prune's size: cut as far, trained on the labels alone",
    "prune": "the network that prune.source names, with channels removed",
}
# candidate -> its folder in reports: what prune_also may name
ALSO = {f"prune_{source}": f"prune_also/{source}" for source in ("finetune", "scratch", "distill")}
WHAT |= {name: f"{name.removeprefix('prune_')} with channels removed" for name in ALSO}
WHAT |= {
    f"{name}_{format_}": f"{name} as {words}"
    for name in tuple(WHAT)
    for format_, words in (("onnx", "ONNX"), ("onnx_int8", "ONNX in 8 bits"), ("pt2", "a torch.export program"))
}
# readable on white and on near-black, and told apart by people with a colour-vision deficiency
COLOURS = ("#4c8fe0", "#e69f00", "#13a37f", "#e0603c", "#a98bdc", "#cc79a7", "#8c8c8c", "#56b4e9", "#9c755f", "#6b6ecf")
SYMBOLS = ("circle", "square", "diamond", "star", "triangle-up", "triangle-down", "cross", "x", "pentagon", "hexagon")
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
MOST_CLASSES_IN_A_CHART = 40
MOST_CLASSES_IN_A_TABLE = 15  # of a confusion matrix: as many columns, and their numbers in the chart's cells
COVERAGES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # of the risk-coverage curve's table
SAMPLE_SIDE_PX = 96  # a larger picture is shown reduced, so that the page stays small


@dataclass(frozen=True)
class Evidence:
    """What a report is made of; paths and formats are docs/evaluation.md's."""

    metrics: Metrics  # reports/metrics.json
    environment: Mapping[str, Any]  # reports/evaluate/environment.json
    history: Mapping[str, pd.DataFrame]  # reports/<stage>/history.csv
    rounds: Mapping[str, pd.DataFrame]  # candidate -> reports/<stage>/rounds.csv
    index: Integer[np.ndarray, " test"]  # numbers of the test images in the store
    labels: Integer[np.ndarray, " test"]
    predictions: Mapping[str, Integer[np.ndarray, " test"]]
    confidences: Mapping[str, Float[np.ndarray, " test"]]
    images: UInt8[np.ndarray, "images height width channels"]
    classes: Sequence[str]
    data: Mapping[str, Any]  # data/prepared/info.json
    integrity: Mapping[str, Any]  # reports/prepare.json
    params: Mapping[str, Any]  # params.yaml
    verdicts: Sequence[Mapping[str, Any]]  # reports/claims.json
    targets: Sequence[Mapping[str, Any]] = ()  # target.json of every pruning stage
    # what an evaluation may leave out, or an older one did not know
    reliability: pd.DataFrame | None = None  # reports/evaluate/reliability.csv
    risk_coverage: pd.DataFrame | None = None  # reports/evaluate/risk_coverage.csv
    corruptions: pd.DataFrame | None = None  # reports/evaluate/corruptions.csv
    hashes: Mapping[str, str] = field(default_factory=dict)  # path -> MD5, as in dvc.lock
    # stage -> commit, dirty, seconds, joules of the run that made its result; None where no such run is on record
    runs: Mapping[str, Mapping[str, Any] | None] = field(default_factory=dict)

    @property
    def shipped(self) -> str:
        return str(self.params["ship"]["candidate"])

    @property
    def ready(self) -> bool:
        """Whether that one may be called the one to ship."""
        return not open_points(self.shipped, self.verdicts, self.targets)


def read_evidence(
    reports: Path,
    evaluated: Path,
    *,
    images: Any,
    classes: Sequence[str],
    data: Mapping[str, Any],
    params: Mapping[str, Any],
    verdicts: Sequence[Mapping[str, Any]] = (),
    runs: Mapping[str, Mapping[str, Any] | None] | None = None,
) -> Evidence:
    """Gather what the stages left in ``reports`` and in ``evaluated`` (predictions.npz)."""
    measured = read_metrics(reports / "metrics.json")
    with np.load(evaluated / "predictions.npz", allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    return Evidence(
        metrics=measured,
        environment=json_files.read_object(
            reports / "evaluate" / "environment.json", "Make it again: dvc repro evaluate"
        ),
        history=_tables(reports, measured, "history.csv"),
        rounds=_tables(reports, measured, "rounds.csv"),
        index=arrays["index"],
        labels=arrays["labels"],
        predictions={name: arrays[f"predictions.{name}"] for name in measured},
        confidences={name: arrays[f"confidences.{name}"] for name in measured},
        images=images,
        classes=classes,
        data=data,
        params=params,
        verdicts=verdicts,
        targets=read_targets(reports),
        integrity=json_files.read_object(reports / "prepare.json", "Make it again: dvc repro prepare"),
        reliability=_table(reports / "evaluate" / "reliability.csv"),
        risk_coverage=_table(reports / "evaluate" / "risk_coverage.csv"),
        corruptions=_table(reports / "evaluate" / "corruptions.csv"),
        hashes={"reports/metrics.json": _md5(reports / "metrics.json")},
        runs=runs or {},
    )


def _tables(reports: Path, names: Iterable[str], file: str) -> dict[str, pd.DataFrame]:
    found = ((name, _table(reports / ALSO.get(name, name) / file)) for name in names)
    return {name: table for name, table in found if table is not None}


def _table(path: Path) -> pd.DataFrame | None:
    return pd.read_csv(path) if path.is_file() else None


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()  # DVC's hash of a file


def read_metrics(path: Path) -> Metrics:
    """The candidates' numbers, ordered from the teacher to the smallest."""
    try:
        found = shipping.read_metrics(path, complete=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file. Make it: thinner run, or dvc repro evaluate") from None
    known = [name for name in WHAT if name in found]
    return {name: found[name] for name in (*known, *sorted(set(found) - set(known)))}


# --- words and numbers ---


def headline(measured: Metrics, test_images: int) -> str:
    """What came out, in one or two sentences that hold whatever the numbers are."""
    small, big = measured[SMALLEST], measured[TEACHER]
    sentence = (
        f"{SMALLEST} is right on {percent(small['accuracy'])} of {test_images:,} test images "
        f"({points(small['accuracy'] - big['accuracy'])} points against "
        f"{TEACHER}'s {percent(big['accuracy'])}) "
        f"with {small['params']:,} parameters: {_ratio(big['params'], small['params'], 'fewer', 'more')}, "
        f"{_ratio(big['macs'], small['macs'], 'fewer', 'more')} MACs and a file "
        f"{_ratio(big['file_bytes'], small['file_bytes'], 'smaller', 'larger')}."
    )
    if small["params_nonzero"] < _NONE_ZERO * small["params"]:
        sentence += f" {small['params_nonzero']:,.0f} of its parameters are not zero."
    batch = latency_batches(measured)[-1]
    mine, its = small[f"latency_ms_b{batch}"], big[f"latency_ms_b{batch}"]
    return sentence + (
        f" Measured in PyTorch at batch {batch}, it is {speed(small, big, batch)} "
        f"({milliseconds(mine)} ms against {milliseconds(its)} ms, {_threads(small['threads'])})."
    )


_NONE_ZERO = 0.98  # of the parameters: a trained network has a few zeros of its own


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count > 1)}"


def _ratio(theirs: float, mine: float, less: str, more: str) -> str:
    return f"{times(theirs, mine)} {less}" if theirs >= mine else f"{times(mine, theirs)} {more}"


def _verdict_lines(verdicts: Sequence[Mapping[str, Any]]) -> list[str]:
    if not verdicts:
        return []
    lines = ["| verdict | claim | measured on the test split |", "|---|---|---|"]
    lines += [f"| **{v['outcome']}** | {v['claim']} | {v['numbers']} |" for v in verdicts]
    return [*lines, ""]


def render_markdown(
    measured: Metrics,
    environment: Mapping[str, Any],
    shipped: str,
    verdicts: Sequence[Mapping[str, Any]] = (),
    targets: Sequence[Mapping[str, Any]] = (),
) -> str:
    """What was proven, and the candidates as a table, for a README or a pull request. What was asked of pruning stands
    in the first lines: a missed target and a loss that is shown before all else."""
    marked = None if open_points(shipped, verdicts, targets) else shipped
    batches = latency_batches(measured)
    top5 = has_top5(measured)
    header = [
        "candidate",
        "accuracy",
        "vs teacher",
        *["top-5"] * top5,
        "macro-F1",
        "agreement",
        "parameters",
        "MACs",
        "file",
        *(f"ms, batch {batch}" for batch in batches),
        "runtime",
    ]
    lines = [
        "| " + " | ".join(header) + " |",
        "|---|" + "---:|" * (len(header) - 2) + "---|",
    ]
    teacher = measured[TEACHER]
    for name, row in measured.items():
        cells = [
            f"**{name}** (to ship)" if name == marked else name,
            percent(row["accuracy"]),
            "" if name == TEACHER else points(row["accuracy"] - teacher["accuracy"]),
            *[percent(row["accuracy_top5"]) if "accuracy_top5" in row else ""] * top5,
            f"{row['macro_f1']:.3f}",
            "" if name == TEACHER else percent(row["agreement"]),
            si(row["params"]),
            si(row["macs"]),
            si(row["file_bytes"], "B"),
            *(milliseconds(row[f"latency_ms_b{batch}"]) for batch in batches),
            RUNTIMES[row["runtime"]],
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return (
        "\n".join(
            [
                *_first_lines(measured, environment, shipped, verdicts, targets),
                *_verdict_lines(verdicts),
                *lines,
                "",
                f"{environment['test_images']:,} test images; agreement is with the teacher ({TEACHER}); "
                '"vs teacher" is in points. ' + _how_latency_was_measured(environment, teacher["threads"]),
            ]
        )
        + "\n"
    )


def _first_lines(
    measured: Metrics,
    environment: Mapping[str, Any],
    shipped: str,
    verdicts: Sequence[Mapping[str, Any]],
    targets: Sequence[Mapping[str, Any]],
) -> list[str]:
    """What came out, whether the target was met, and what to ship, as paragraphs; what went wrong comes first."""
    told = [part for line in target_lines(targets) for part in (f"**{line}**", "")]
    loud = any(not target["met"] or len(target["lines"]) > 1 for target in targets)
    first = [headline(measured, environment["test_images"]), ""]
    return [*(told + first if loud else first + told), f"**{ship_line(measured, shipped, verdicts, targets)}**", ""]


def _how_latency_was_measured(environment: Mapping[str, Any], threads: int) -> str:
    return (
        f"Latency is the median of {environment['latency_repeats']} interleaved runs on {environment['cpu']}, "
        f"{_threads(threads)}. MACs are per image."
    )


def render_readme(
    measured: Metrics,
    environment: Mapping[str, Any],
    shipped: str,
    verdicts: Sequence[Mapping[str, Any]] = (),
    targets: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The first screen of a README: what came out, and the networks with the exports of the one to ship. Claims stand
    here where they are not proven; ``render_markdown`` has all."""
    family = shipped.removesuffix("_int8").removesuffix("_onnx").removesuffix("_pt2")
    batch, teacher = latency_batches(measured)[-1], measured[TEACHER]
    rows = [
        [
            f"**{name}**" if name == shipped else name,
            percent(row["accuracy"]),
            si(row["params"]),
            si(row["macs"]),
            si(row["file_bytes"], "B"),
            milliseconds(row[f"latency_ms_b{batch}"]),
            RUNTIMES[row["runtime"]],
        ]
        for name, row in measured.items()
        if row["runtime"] == "pytorch" or name.startswith(f"{family}_onnx")
        if not name.endswith("_pt2")
    ]
    table = _markdown_table(
        ["network", "accuracy", "parameters", "MACs", "file", f"ms, batch {batch}", "runtime"], rows
    )
    last = f"{environment['test_images']:,} test images. {_how_latency_was_measured(environment, teacher['threads'])}"
    return "\n".join(
        [
            *(textwrap.fill(line, 120) for line in _first_lines(measured, environment, shipped, verdicts, targets)),
            *_verdict_lines([verdict for verdict in verdicts if verdict["outcome"] != "proven"]),
            *table,
            "",
            textwrap.fill(last, 120),
            "",
        ]
    )


def render_pull_request(evidence: Evidence) -> str:
    """All that the page says in words and tables, as Markdown for a pull request; pictures are the page's."""
    first = render_markdown(
        evidence.metrics, evidence.environment, evidence.shipped, evidence.verdicts, evidence.targets
    )
    parts = [first]
    deltas = differences(evidence)
    parts += [
        "### Differences of accuracy",
        "",
        *_markdown_table(
            [f"against {TEACHER}", "points", "95 % interval", "p"],
            [
                [name, points(e.effect), interval(e.low, e.high), "" if e.p_value is None else f"{e.p_value:.2g}"]
                for name, e in deltas.items()
            ],
        ),
        "",
        "Paired on the same images; each interval by itself, p-values (McNemar) not corrected for their number.",
        "",
    ]
    parts += ["### Cost", "", *_as_markdown(_columns(evidence.metrics, _cost_columns(evidence.metrics))), ""]
    if (calibration := _columns(evidence.metrics, CALIBRATION)).headings[1:]:
        parts += ["### Calibration", "", *_as_markdown(calibration), ""]
    if robustness := _robustness(evidence):
        parts += ["### Accuracy on corrupted test images, mean over severities", "", *_as_markdown(robustness), ""]
    if rounds := _round_rows(evidence):
        masked = has_masks(evidence)
        rows = [
            [
                label,
                si(row["macs"]),
                f"{int(row['params']):,}",
                *([f"{int(row['nonzero']):,}", si(row["compressed_bytes"], "B")] if masked else []),
                percent(row["accuracy_before"]),
                percent(row["accuracy_after"]),
            ]
            for label, row in rounds
        ]
        header = [
            "round", "MACs", "parameters", *["not zero", "file, gzip"] * masked, "before recovery", "after recovery"
        ]  # fmt: skip
        parts += ["### Pruning, on validation images", "", *_markdown_table(header, rows), ""]
    worst = sorted(_class_rows(evidence), key=lambda row: float(row["difference"]))[:MOST_CLASSES_IN_MARKDOWN]
    parts += [
        f"### Classes that {SMALLEST} lost most on",
        "",
        *_markdown_table(
            ["class", "images", TEACHER, SMALLEST, "points", "95 % interval"],
            [
                [
                    _cell(row["class"]),
                    f"{row['images']:,}",
                    f"{percent(row['teacher'])} {limits(*row['teacher_limits'])}",
                    f"{percent(row['small'])} {limits(*row['small_limits'])}",
                    points(row["difference"]),
                    interval(row["low"], row["high"]),
                ]
                for row in worst
            ],
        ),
        "",
        "Square brackets are 95 % intervals: Wilson's of a share, in percent; of the difference, in points.",
        "",
        "### What was run",
        "",
        *(_as_markdown(runs) if (runs := _run_table(evidence)) else ["Stages: not recorded here."]),
        "",
        f"- Data: {evidence.data['source']}, SHA-256 `{evidence.environment['data_sha256']}`",
        f"- Evaluated on: {evidence.environment['cpu']}, {evidence.environment['system']}, "
        f"Python {evidence.environment['python']}, "
        + ", ".join(f"{name} {version}" for name, version in evidence.environment["libraries"].items()),
        f"- Seed: {evidence.params['run']['seed']}",
        *(f"- Commit: `{find_commit(md5)}`" for md5 in evidence.hashes.values()),
        "- Reproduce: check that commit out, then `make run`",
    ]
    return "\n".join(parts) + "\n"


MOST_CLASSES_IN_MARKDOWN = 10


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = "|---|" + "---:|" * (len(header) - 1)
    return [f"| {' | '.join(header)} |", rule, *(f"| {' | '.join(row)} |" for row in rows)]


def _as_markdown(table: Table) -> list[str]:
    return _markdown_table(table.headings, table.rows)


def _round_rows(evidence: Evidence) -> list[tuple[str, Any]]:
    """Every pruning round with what it is called; with its candidate, where several were pruned."""
    return [
        (
            f"{name} " * (len(evidence.rounds) > 1) + f"{int(row['round'])}{' (chosen)' if row['chosen'] else ''}",
            row,
        )
        for name, table in evidence.rounds.items()
        for row in table.to_dict("records")
    ]


def _removed(evidence: Evidence) -> str:
    return "weights set to zero" if has_masks(evidence) else "channels removed"


def has_masks(evidence: Evidence) -> bool:
    """Whether weights were set to zero instead of channels removed: sizes then stand still, and zeros are counted."""
    return any(_size_of_rounds(rounds) == "nonzero" for rounds in evidence.rounds.values())


def _size_of_rounds(rounds: pd.DataFrame) -> str:
    """The column that shrinks from round to round."""
    still = rounds["params"].nunique() == 1
    return "nonzero" if still and "nonzero" in rounds and rounds["nonzero"].nunique() > 1 else "macs"


def _cell(text: str) -> str:
    """A class's name is text, whatever signs it has."""
    return re.sub(r"([\\|`*_<>\[\]])", r"\\\1", text)


def find_commit(md5: str) -> str:
    """The command that names the commit whose dvc.lock has a file with this hash.

    The commit itself cannot stand in the page: the page is an output, and would differ after every commit.
    """
    return f"git log -1 --format=%H -S {md5} -- dvc.lock"


# --- what is compared ---


@dataclass(frozen=True)
class Table:
    """Headings and rows as they are read, and by cell what it is sorted by. A row begins with its name."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    values: Sequence[Sequence[Any]]


# key in metrics.json, heading, what is written of a candidate's numbers
Column = tuple[str, str, Callable[[Mapping[str, Any]], str]]


def _column(key: str, heading: str, form: Callable[[float], str]) -> Column:
    return key, heading, lambda row: form(row[key])


CALIBRATION: tuple[Column, ...] = (
    _column("nll", "NLL", "{:.3f}".format),
    _column("brier", "Brier", "{:.3f}".format),
    _column("ece", "ECE", percent),
    _column("temperature", "temperature", "{:.2f}".format),
    _column("nll_scaled", "NLL, scaled", "{:.3f}".format),
    _column("brier_scaled", "Brier, scaled", "{:.3f}".format),
    _column("ece_scaled", "ECE, scaled", percent),
    _column("aurc", "AURC", "{:.4f}".format),
)


def _cost_columns(measured: Metrics) -> list[Column]:
    """All that was measured of time and memory, and the parameters to the last one."""
    columns: list[Column] = []
    for batch in latency_batches(measured):
        columns += _latency_columns(batch, measured[TEACHER])
    columns.append(_column("peak_memory_bytes", "peak memory", lambda value: si(value, "B")))
    columns.append(_column("params", "parameters", lambda value: f"{value:,.0f}"))
    columns.append(_column("params_nonzero", "parameters, not 0", lambda value: f"{value:,.0f}"))
    return columns


def _latency_columns(batch: int, teacher: Mapping[str, Any]) -> list[Column]:
    key = f"latency_ms_b{batch}"
    return [
        _column(key, f"ms, batch {batch}", milliseconds),
        (
            f"{key}_low",
            f"95 %, batch {batch}",
            lambda row: milliseconds_limits(row[f"{key}_low"], row[f"{key}_high"]),
        ),
        _column(f"{key}_p95", f"p95, batch {batch}", milliseconds),
        (key, f"against {TEACHER}, batch {batch}", lambda row: "" if row is teacher else speed(row, teacher, batch)),
        _column(f"throughput_b{batch}", f"images/s, batch {batch}", lambda value: f"{value:,.0f}"),
    ]


def speed(row: Mapping[str, Any], other: Mapping[str, Any], batch: int) -> str:
    """Of measured medians, ``3.0x faster``: only where their 95 % intervals do not meet, else ``not faster (1.1x)``."""
    key = f"latency_ms_b{batch}"
    mine, its = row[key], other[key]
    if row.get(f"{key}_high", mine) < other.get(f"{key}_low", its):
        return f"{times(its, mine)} faster"
    if row.get(f"{key}_low", mine) > other.get(f"{key}_high", its):
        return f"{times(mine, its)} slower"
    return f"not faster ({its / mine:.2f}x)"


def _columns(measured: Metrics, columns: Sequence[Column]) -> Table:
    """Those columns that some candidate has a number for."""
    there = [column for column in columns if any(column[0] in row for row in measured.values())]
    return Table(
        ["candidate", *(heading for _, heading, _ in there)],
        [
            [name, *("" if row.get(key) is None else written(row) for key, _, written in there)]
            for name, row in measured.items()
        ],
        [[name, *(row.get(key, "") for key, *_ in there)] for name, row in measured.items()],
    )


def has_top5(measured: Metrics) -> bool:
    """evaluate leaves it out where there are five classes or fewer."""
    return any("accuracy_top5" in row for row in measured.values())


def _robustness(evidence: Evidence) -> Table | None:
    """Accuracy by candidate on clean images and on each kind of corruption; None where that was not measured."""
    found = evidence.corruptions
    if found is None or found.empty:
        return None
    means = {name: rows.groupby("corruption")["accuracy"].mean() for name, rows in found.groupby("candidate")}
    kinds = list(dict.fromkeys(found["corruption"]))
    values: list[list[Any]] = [
        [name, row["accuracy"], *(float(means[name][kind]) for kind in kinds)]
        for name, row in evidence.metrics.items()
        if name in means
    ]
    rows = [[name, *(percent(value) for value in shares)] for name, *shares in values]
    return Table(["candidate", "not corrupted", *kinds], rows, values)


def _run_table(evidence: Evidence) -> Table | None:
    """By stage, what the run took that made its result, and the commit that was checked out then."""
    if not evidence.runs:
        return None
    rows, values = [], []
    for stage, run in evidence.runs.items():
        if run is None:
            rows.append([stage, "not recorded here", "", ""])
            values.append([stage, "", "", ""])
            continue
        commit = run["commit"][:12] or "not told"
        energy = "not told" if run["joules"] is None else si(run["joules"], "J")
        rows.append([stage, commit + " and changes" * run["dirty"], duration(run["seconds"]), energy])
        values.append([stage, commit, run["seconds"], "" if run["joules"] is None else run["joules"]])
    return Table(["stage", "commit", "duration", "energy"], rows, values)


def differences(evidence: Evidence) -> dict[str, statistics.Estimate]:
    """Each candidate's accuracy minus the teacher's, on the same images, with its interval."""
    right = {name: predicted == evidence.labels for name, predicted in evidence.predictions.items()}
    return {
        name: statistics.accuracy_difference(right[name], right[TEACHER])
        for name in evidence.metrics
        if name != TEACHER
    }


def update_readme(path: Path, table: str) -> bool:
    """Put ``table`` between the two marks in ``path``; True if that changed the file.

    Raises UserError where the marks are missing, and leaves the file alone.
    """
    text = path.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise UserError(
            f"{path}: needs one line '{BEGIN}' and, after it, one line '{END}'; the table goes between them"
        )
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    updated = f"{before}{BEGIN}\n{table.strip()}\n{END}{after}"
    if updated == text:
        return False
    path.write_text(updated, encoding="utf-8")
    return True


# --- the page ---


def render_html(evidence: Evidence, samples: int) -> str:
    """The page. ``samples``: how many images that the smallest candidate gets wrong are shown."""
    folder = Path(__file__).parent / "templates"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "points": points,
        "si": si,
        "milliseconds": milliseconds,
        "interval": lambda estimate: interval(estimate.low, estimate.high),
        "limits": lambda pair: limits(*pair),
        "comma": lambda value: f"{value:,}",
    }
    environment.globals |= {"times": times, "zip": zip, "chart": _chart_json, "find_commit": find_commit}
    environment.globals |= {"milliseconds_limits": milliseconds_limits, "speed": speed}
    accuracy = evidence.metrics[SMALLEST]["accuracy"]
    return environment.get_template("report.html.j2").render(
        evidence=evidence,
        metrics=evidence.metrics,
        teacher=evidence.metrics[TEACHER],
        teacher_name=TEACHER,
        small_name=SMALLEST,
        what=WHAT | {"prune": f"{evidence.params['prune']['source']} with {_removed(evidence)}"},
        rounds=_round_rows(evidence),
        masked=has_masks(evidence),
        runtimes=RUNTIMES,
        batches=latency_batches(evidence.metrics),
        verdicts=evidence.verdicts,
        headline=headline(evidence.metrics, len(evidence.labels)),
        shipped=evidence.shipped if evidence.ready else None,
        ship_line=ship_line(evidence.metrics, evidence.shipped, evidence.verdicts, evidence.targets),
        targets=evidence.targets,
        top5=has_top5(evidence.metrics),
        deltas=differences(evidence),
        calibration=_columns(evidence.metrics, CALIBRATION),
        cost=_columns(evidence.metrics, _cost_columns(evidence.metrics)),
        standard_error=math.sqrt(accuracy * (1 - accuracy) / len(evidence.labels)),
        charts=_charts(evidence),
        runs=_run_table(evidence),
        whole_matrices=len(evidence.classes) <= MOST_CLASSES_IN_A_TABLE,
        confusions=_most_confused(evidence),
        class_rows=_class_rows(evidence),
        wrong=_wrong_samples(evidence, samples),
        wrong_count=int((evidence.predictions[SMALLEST] != evidence.labels).sum()),
        params_yaml=yaml.safe_dump(dict(evidence.params), sort_keys=False, allow_unicode=True, default_flow_style=None),
        plotly_js=plotly.offline.get_plotlyjs(),
    )


def render_figures(evidence: Evidence) -> dict[str, go.Figure]:
    """The page's charts by name, for those who keep figures elsewhere."""
    return {chart.key: chart.figure for chart in _charts(evidence)}


@dataclass(frozen=True)
class Chart:
    """One figure: what it is called, what it shows in words (for those who do not see it), the picture."""

    key: str
    section: str
    title: str
    text: str
    figure: go.Figure
    table: Table | None = None  # the same numbers, where they are few


def _chart_json(chart: Chart) -> str:
    # inside <script> only "</" could end the block
    return str(plotly.io.to_json(chart.figure, validate=True)).replace("</", "<\\/")


def _charts(evidence: Evidence) -> list[Chart]:
    charts = [*_tradeoffs(evidence), *_learning_curves(evidence), *_pruning_curve(evidence)]
    charts += [*_reliability(evidence), *_risk_coverage(evidence), *_corruptions(evidence)]
    if len(evidence.classes) <= MOST_CLASSES_IN_A_CHART:
        charts += [_per_class(evidence), _class_changes(evidence), *_confusion_matrices(evidence)]
    return charts


def _style(name: str, evidence: Evidence) -> tuple[str, str]:
    number = list(evidence.metrics).index(name)
    turn = number // len(COLOURS)  # the colours come again with other symbols
    return COLOURS[number % len(COLOURS)], SYMBOLS[(number + turn) % len(SYMBOLS)]


def _figure(x: str, y: str, **layout: Any) -> go.Figure:
    figure = go.Figure()
    figure.update_layout(
        template="none",
        height=layout.pop("height", 380),
        margin={"l": 64, "r": 16, "t": 12, "b": 56},
        legend={"orientation": "h", "y": -0.26, "x": 0, "yanchor": "top"},
        hovermode="closest",
        xaxis={"title": {"text": x, "standoff": 10}, "automargin": True},
        yaxis={"title": {"text": y, "standoff": 12}, "automargin": True},
    )
    figure.update_layout(**layout)
    return figure


def _tradeoffs(evidence: Evidence) -> list[Chart]:
    rows = evidence.metrics
    charts = []
    networks = {name: row for name, row in rows.items() if row["runtime"] == "pytorch"}
    axes: list[tuple[str, str, str, Metrics]] = [
        ("macs", "MACs per image (log scale)", "Accuracy against MACs", networks),
        ("file_bytes", "bytes of the file (log scale)", "Accuracy against file size", rows),
    ]
    axes += [
        (
            f"latency_ms_b{batch}",
            f"median ms, batch of {batch} (log scale)",
            f"Accuracy against measured latency, batch {batch}",
            rows,
        )
        for batch in latency_batches(rows)
    ]
    for key, label, title, chosen in axes:
        figure = _figure(label, "test accuracy", height=420, xaxis_type="log", xaxis_dtick="D2", yaxis_tickformat=".1%")
        figure.update_layout(legend={"entrywidth": 0.49, "entrywidthmode": "fraction", "font": {"size": 10}})
        on_front = pareto_front([row[key] for row in chosen.values()], [row["accuracy"] for row in chosen.values()])
        front = sorted((row[key], row["accuracy"]) for row, good in zip(chosen.values(), on_front, strict=True) if good)
        figure.add_scatter(
            x=[x for x, _ in front],
            y=[y for _, y in front],
            mode="lines",
            name="Pareto front",
            hoverinfo="skip",
            line={"color": "#8c8c8c", "dash": "dot", "width": 1.5, "shape": "hv"},
        )
        unit = {"macs": "MACs", "file_bytes": "bytes"}.get(key, "ms")
        for name, row in chosen.items():
            colour, symbol = _style(name, evidence)
            figure.add_scatter(
                x=[row[key]],
                y=[row["accuracy"]],
                mode="markers",
                name=name,
                marker={"color": colour, "symbol": symbol, "size": 13},
                hovertemplate=f"{name}<br>%{{y:.2%}}<br>%{{x:,}} {unit}<extra></extra>",
            )
        best = ", ".join(name for name, good in zip(chosen, on_front, strict=True) if good)
        charts.append(
            Chart(
                key.replace("_", "-"),
                "tradeoff",
                title,
                "Up and left is better. On the Pareto front (no other candidate is both as accurate "
                f"and as cheap): {best}."
                + (" MACs count arithmetic; they do not say how long it takes." if key == "macs" else ""),
                figure,
            )
        )
    return charts


def _learning_curves(evidence: Evidence) -> list[Chart]:
    charts = []
    for column, label, title, fmt in (
        ("val_accuracy", "validation accuracy", "Validation accuracy while training", ".0%"),
        ("loss", "training loss (log scale)", "Training loss", None),
    ):
        figure = _figure("training step", label)
        if fmt:
            figure.update_yaxes(tickformat=fmt)
        else:
            figure.update_yaxes(type="log")
        ends: list[str] = []
        values: list[list[Any]] = []
        for name, frame in evidence.history.items():
            if column not in frame or "step" not in frame:
                continue
            colour, _ = _style(name, evidence)
            # a stage with several trainings in a row (pruning's rounds) starts its steps anew: show them one
            # after another
            steps = frame["step"].to_numpy(dtype=float)
            restarts = np.flatnonzero(np.diff(steps) <= 0) + 1
            steps = steps + sum(
                (np.where(np.arange(len(steps)) >= at, steps[at - 1], 0.0) for at in restarts), start=0.0
            )
            figure.add_scatter(
                x=steps,
                y=frame[column].to_numpy(dtype=float),
                name=name,
                mode="lines+markers",
                line={"color": colour, "width": 2},
                marker={"size": 4},
            )
            last = float(frame[column].iloc[-1])
            ends.append(f"{name} {percent(last) if fmt else f'{last:.3g}'}")
            measured = np.flatnonzero(frame[column].notna())
            values += [[name, int(steps[at]), float(frame[column].iloc[at])] for at in measured]
        if ends:
            text = f"Last values: {', '.join(ends)}."
            if not fmt:
                text += " Stages minimise different losses, so compare shapes and not heights."
            rows = [[name, f"{step:,}", percent(value) if fmt else f"{value:.4g}"] for name, step, value in values]
            table = Table(["candidate", "step", label.removesuffix(" (log scale)")], rows, values)
            charts.append(Chart(column.replace("_", "-"), "learning", title, text, figure, table))
    return charts


def _pruning_curve(evidence: Evidence) -> list[Chart]:
    if not evidence.rounds:
        return []
    several = len(evidence.rounds) > 1
    masked = has_masks(evidence)
    size, unit = ("nonzero", "parameters that are not zero") if masked else ("macs", "MACs")
    # a pruned teacher may be ten times a pruned student
    label = (unit if masked else "MACs per image") + " (log scale)" * several
    figure = _figure(label, "validation accuracy", yaxis_tickformat=".0%")
    for candidate, rounds in evidence.rounds.items():
        colour, _ = _style(candidate, evidence)
        before = f"{candidate}, " * several
        for column, words, dash in (
            ("accuracy_after", "after recovery", "solid"),
            ("accuracy_before", "before recovery", "dot"),
        ):
            figure.add_scatter(
                x=rounds[size].to_numpy(),
                y=rounds[column].to_numpy(dtype=float),
                name=before + words,
                mode="lines+markers",
                line={"color": colour, "dash": dash, "width": 2},
                marker={"size": 8},
                customdata=rounds["round"].to_numpy(),
                hovertemplate=before + f"round %{{customdata}}<br>%{{y:.2%}}<br>%{{x:,}} {unit}<extra></extra>",
            )
    chosen = pd.concat(list(evidence.rounds.values()))
    chosen = chosen[chosen["chosen"].astype(bool)]
    if len(chosen):
        figure.add_scatter(
            x=chosen[size].to_numpy(),
            y=chosen["accuracy_after"].to_numpy(dtype=float),
            name="chosen",
            mode="markers",
            marker={"size": 18, "symbol": "circle-open", "line": {"width": 2.5}, "color": "#8c8c8c"},
            hoverinfo="skip",
        )
    if several:
        figure.update_xaxes(autorange="reversed", type="log", dtick="D2")
    else:
        figure.update_xaxes(autorange="reversed", rangemode="tozero")
    return [
        Chart(
            "pruning",
            "pruning",
            f"Accuracy as {'weights' if masked else 'channels'} go, round by round",
            f"Each round {'sets weights to zero' if masked else 'removes channels'} (dotted: at once after the cut) "
            "and trains on (solid). Read from left to right.",
            figure,
        )
    ]


def _per_class(evidence: Evidence) -> Chart:
    rows = sorted(_class_rows(evidence), key=lambda row: row["small"])
    figure = _figure("share of the class's images recognised", "", height=120 + 26 * len(rows), xaxis_tickformat=".0%")
    for key, name in (("teacher", TEACHER), ("small", SMALLEST)):
        colour, symbol = _style(name, evidence)
        figure.add_scatter(
            x=[row[key] for row in rows],
            y=[row["class"] for row in rows],
            name=name,
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 11},
            hovertemplate="%{y}: %{x:.1%}<extra>" + name + "</extra>",
        )
    figure.update_layout(legend_y=-56 / (120 + 26 * len(rows)) - 0.08, yaxis_type="category")
    worst = rows[0]
    return Chart(
        "per-class",
        "classes",
        "Accuracy by class",
        f"{SMALLEST} does worst on {worst['class']}: {percent(worst['small'])}, "
        f"where {TEACHER} has {percent(worst['teacher'])}.",
        figure,
    )


def _class_changes(evidence: Evidence) -> Chart:
    """Gain or loss against the teacher, class by class, each with its own interval."""
    rows = sorted(_class_rows(evidence), key=lambda row: -float(row["difference"]))
    figure = _figure("points against " + TEACHER, "", height=120 + 26 * len(rows))
    shown = [100 * row["difference"] for row in rows]
    figure.add_scatter(
        x=shown,
        y=[row["class"] for row in rows],
        mode="markers",
        marker={"color": COLOURS[3], "size": 10},
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [100 * row["high"] - x for row, x in zip(rows, shown, strict=True)],
            "arrayminus": [x - 100 * row["low"] for row, x in zip(rows, shown, strict=True)],
            "color": COLOURS[3],
            "thickness": 1.5,
        },
        hovertemplate="%{y}: %{x:+.1f} points<extra></extra>",
        showlegend=False,
    )
    figure.add_vline(x=0, line={"color": "#8c8c8c", "width": 1, "dash": "dot"})
    figure.update_layout(yaxis_type="category")
    lost = [row["class"] for row in rows if row["high"] < 0]
    gained = [row["class"] for row in rows if row["low"] > 0]
    return Chart(
        "class-changes",
        "classes",
        f"What {SMALLEST} gains and loses, by class",
        f"{SMALLEST} minus {TEACHER} on the same images. The interval lies below 0 for "
        f"{', '.join(lost) or 'no class'}, above 0 for {', '.join(gained) or 'no class'}. "
        f"Each is a 95 % interval by itself: of {len(rows)} classes some lie beside 0 by chance.",
        figure,
    )


def _reliability(evidence: Evidence) -> list[Chart]:
    table = evidence.reliability
    if table is None or table.empty:
        return []
    figure = _figure("confidence", "share that is right", xaxis_tickformat=".0%", yaxis_tickformat=".0%")
    figure.add_scatter(
        x=[0, 1],
        y=[0, 1],
        mode="lines",
        name="calibrated",
        line={"color": "#8c8c8c", "dash": "dot", "width": 1.5},
        hoverinfo="skip",
    )
    values: list[list[Any]] = []
    for name in (TEACHER, SMALLEST):
        for scaled, words, dash in ((0, "as it is", "solid"), (1, "after scaling", "dash")):
            rows = table[(table["candidate"] == name) & (table["scaled"] == scaled)].sort_values("confidence")
            if rows.empty:
                continue
            colour, symbol = _style(name, evidence)
            figure.add_scatter(
                x=rows["confidence"].to_numpy(dtype=float),
                y=rows["accuracy"].to_numpy(dtype=float),
                customdata=rows["images"].to_numpy(),
                name=f"{name}, {words}",
                mode="lines+markers",
                line={"color": colour, "dash": dash, "width": 2},
                marker={"symbol": symbol if scaled == 0 else f"{symbol}-open", "size": 8},
                hovertemplate=f"{name}, {words}<br>said %{{x:.1%}}, right %{{y:.1%}}<br>"
                "%{customdata} images<extra></extra>",
            )
            values += [
                [f"{name}, {words}", float(row["confidence"]), float(row["accuracy"]), int(row["images"])]
                for row in rows.to_dict("records")
            ]
    lowest = max(0.0, float(table["confidence"].min()) - 0.05)
    figure.update_xaxes(range=[lowest, 1.01])
    row = evidence.metrics[SMALLEST]
    words = "Below the line a network is surer than it is right. "
    if row.get("ece") is not None and row.get("ece_scaled") is not None:
        words += (
            f"{SMALLEST}'s calibration error is {percent(row['ece'])}, and {percent(row['ece_scaled'])} "
            "after temperature scaling, which was fitted on validation images."
        )
    cells = [[name, percent(said), percent(right), f"{images:,}"] for name, said, right, images in values]
    listed = Table(["candidate", "mean confidence", "share that is right", "images"], cells, values)
    return [Chart("reliability", "calibration", "Reliability: confidence against accuracy", words, figure, listed)]


def _risk_coverage(evidence: Evidence) -> list[Chart]:
    table = evidence.risk_coverage
    if table is None or table.empty:
        return []
    figure = _figure(
        "share of the images that are answered", "share of the answers that are wrong",
        xaxis_tickformat=".0%", yaxis_tickformat=".1%", yaxis_rangemode="tozero",
    )  # fmt: skip
    ends: list[str] = []
    values: list[list[Any]] = []
    for name, row in evidence.metrics.items():
        rows = table[table["candidate"] == name].sort_values("coverage")
        if rows.empty or row["runtime"] != "pytorch":
            continue
        colour, _ = _style(name, evidence)
        coverage, risk = rows["coverage"].to_numpy(dtype=float), rows["risk"].to_numpy(dtype=float)
        figure.add_scatter(
            x=coverage,
            y=risk,
            name=name,
            mode="lines",
            line={"color": colour, "width": 2},
            hovertemplate=f"{name}<br>answers %{{x:.0%}}, wrong %{{y:.2%}}<extra></extra>",
        )
        # the smallest share of the images that was looked at and is not below the one asked for
        near = [float(risk[at]) for at in np.searchsorted(coverage, np.array(COVERAGES) - 1e-9) if at < len(risk)]
        if len(near) == len(COVERAGES):
            values.append([name, *near])
            ends.append(f"{name} {percent(near[COVERAGES.index(0.8)])}")
    text = "Images of low confidence are left to someone else, the surest are answered; lower is better."
    if ends:
        text += f" Wrong among the surest 80 %: {', '.join(ends)}."
    cells = [[name, *(percent(value) for value in risks)] for name, *risks in values]
    listed = Table(["candidate", *(f"answers {coverage:.0%}" for coverage in COVERAGES)], cells, values)
    return [Chart("risk-coverage", "calibration", "Risk and coverage", text, figure, listed)]


def _corruptions(evidence: Evidence) -> list[Chart]:
    table = evidence.corruptions
    if table is None or table.empty:
        return []
    kinds = list(dict.fromkeys(table["corruption"]))
    figure = _figure("", "accuracy, mean over severities", yaxis_tickformat=".0%", barmode="group")
    falls = []
    for name, row in evidence.metrics.items():
        rows = table[table["candidate"] == name]
        if rows.empty or row["runtime"] != "pytorch":
            continue
        mean = rows.groupby("corruption")["accuracy"].mean()
        colour, _ = _style(name, evidence)
        figure.add_bar(
            x=kinds,
            y=[float(mean[kind]) for kind in kinds],
            name=name,
            marker={"color": colour},
            hovertemplate=f"{name}, %{{x}}: %{{y:.1%}}<extra></extra>",
        )
        falls.append(f"{name} {points(float(mean.mean()) - row['accuracy'])}")
    severities = table["severity"].nunique()
    return [
        Chart(
            "corruptions",
            "robustness",
            "Accuracy on corrupted test images",
            f"Mean of {severities} severities. Points against clean images, over all kinds: {', '.join(falls)}.",
            figure,
            _robustness(evidence),
        )
    ]


def _class_rows(evidence: Evidence) -> list[dict[str, Any]]:
    """Per class that occurs: both accuracies with Wilson's 95 % limits, and their paired difference with its interval
    (ratios)."""
    count = len(evidence.classes)
    right = {name: evidence.predictions[name] == evidence.labels for name in (TEACHER, SMALLEST)}
    paired = {
        k: statistics.accuracy_difference(right[SMALLEST][own], right[TEACHER][own])
        for k in range(count)
        if (own := evidence.labels == k).any()
    }
    by_name = {
        name: metrics.per_class_accuracy(evidence.labels, evidence.predictions[name], count)
        for name in (TEACHER, SMALLEST)
    }
    bounds = {
        name: metrics.per_class_interval(evidence.labels, evidence.predictions[name], count)
        for name in (TEACHER, SMALLEST)
    }
    images = np.bincount(evidence.labels, minlength=count)
    return [
        {
            "class": evidence.classes[k],
            "images": int(images[k]),
            "teacher": float(by_name[TEACHER][k]),
            "small": float(by_name[SMALLEST][k]),
            "teacher_limits": tuple(float(bound[k]) for bound in bounds[TEACHER]),
            "small_limits": tuple(float(bound[k]) for bound in bounds[SMALLEST]),
            "difference": paired[k].effect,
            "low": paired[k].low,
            "high": paired[k].high,
        }
        for k in range(count)
        if images[k]
    ]


def _confusion_matrices(evidence: Evidence) -> list[Chart]:
    charts = []
    count = len(evidence.classes)
    for name, row in evidence.metrics.items():
        if row["runtime"] != "pytorch":
            continue
        counts = metrics.confusion(evidence.labels, evidence.predictions[name], count)
        shares = np.divide(counts, np.maximum(counts.sum(axis=1, keepdims=True), 1))
        figure = _figure("predicted", "actual", height=max(380, 150 + 26 * count))
        figure.add_heatmap(
            z=shares,
            x=list(evidence.classes),
            y=list(evidence.classes),
            zmin=0,
            zmax=1,
            showscale=False,
            colorscale=[
                [0, "rgba(76,143,224,0)"],
                [0.05, "rgba(76,143,224,0.25)"],
                [1, "rgba(76,143,224,1)"],
            ],
            text=np.where(counts > 0, counts.astype(str), "") if count <= MOST_CLASSES_IN_A_TABLE else None,
            texttemplate="%{text}" if count <= MOST_CLASSES_IN_A_TABLE else None,
            customdata=counts,
            hovertemplate="%{y} seen as %{x}: %{customdata}<extra></extra>",
            xgap=1,
            ygap=1,
        )
        figure.update_yaxes(autorange="reversed", type="category", showgrid=False)
        figure.update_xaxes(tickangle=-45, type="category", showgrid=False)
        wrong = counts - np.diag(np.diag(counts))
        actual, predicted = divmod(int(wrong.argmax()), count)
        values = [[class_, *row] for class_, row in zip(evidence.classes, counts.tolist(), strict=True)]
        cells = [[class_, *(f"{images:,}" for images in row)] for class_, *row in values]
        listed = Table(["actual", *evidence.classes], cells, values)
        charts.append(
            Chart(
                f"confusion-{name}",
                "confusion",
                f"Confusion matrix of {name}",
                "Images by actual class (row) and predicted class (column); colour is the share of the row. "
                f"Most frequent mistake: {evidence.classes[actual]} seen as {evidence.classes[predicted]}, "
                f"{wrong[actual, predicted]} times.",
                figure,
                listed if count <= MOST_CLASSES_IN_A_TABLE else None,
            )
        )
    return charts


def _most_confused(evidence: Evidence, rows: int = 10) -> list[dict[str, Any]]:
    count = len(evidence.classes)
    small, big = (metrics.confusion(evidence.labels, evidence.predictions[name], count) for name in (SMALLEST, TEACHER))
    wrong = small - np.diag(np.diag(small))
    order = np.argsort(-wrong, axis=None, kind="stable")[:rows]
    pairs = [divmod(int(flat), count) for flat in order]
    return [
        {
            "actual": evidence.classes[a],
            "predicted": evidence.classes[p],
            "small": int(small[a, p]),
            "teacher": int(big[a, p]),
        }
        for a, p in pairs
        if wrong[a, p]
    ]


def _wrong_samples(evidence: Evidence, samples: int) -> list[dict[str, Any]]:
    """Images that the smallest candidate gets wrong: first those the teacher gets right, then by sureness."""
    small, teacher = evidence.predictions[SMALLEST], evidence.predictions[TEACHER]
    wrong = np.flatnonzero(small != evidence.labels)
    teacher_wrong = teacher[wrong] != evidence.labels[wrong]
    order = wrong[np.lexsort((evidence.index[wrong], -evidence.confidences[SMALLEST][wrong], teacher_wrong))]
    return [
        {
            "number": int(evidence.index[k]),
            "actual": evidence.classes[evidence.labels[k]],
            "small": evidence.classes[small[k]],
            "confidence": float(evidence.confidences[SMALLEST][k]),
            "teacher": evidence.classes[teacher[k]],
            "teacher_right": bool(teacher[k] == evidence.labels[k]),
            "png": _png(np.asarray(evidence.images[evidence.index[k]])),
        }
        for k in order[:samples]
    ]


def _png(image: UInt8[np.ndarray, "height width channels"]) -> str:
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    picture.thumbnail((SAMPLE_SIDE_PX, SAMPLE_SIDE_PX))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m thinner.report",
        description="Put the results table, made from reports/, into a README.",
    )
    parser.add_argument("--readme", type=Path, required=True, help=f"file with the marks {BEGIN} and {END}")
    parser.add_argument("--reports", type=Path, default=Path("reports"), help="folder that evaluate wrote (reports)")
    parser.add_argument(
        "--params", type=Path, default=Path("params.yaml"), help="where ship.candidate stands (params.yaml)"
    )
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if the table is out of date")
    options = parser.parse_args(arguments)
    try:
        table = render_readme(
            read_metrics(options.reports / "metrics.json"),
            json_files.read_object(
                options.reports / "evaluate" / "environment.json", "Make it again: dvc repro evaluate"
            ),
            yaml.safe_load(options.params.read_text(encoding="utf-8"))["ship"]["candidate"],
            list(shipping.read_verdicts(options.reports / "claims.json").values()),
            read_targets(options.reports),
        )
        if options.check:
            current = f"{BEGIN}\n{table.strip()}\n{END}" in options.readme.read_text(encoding="utf-8")
            if not current:
                print(  # noqa: T201 - a command speaks to a person
                    f"{options.readme}: the results are not those of {options.reports}/. "
                    f"Run: python -m thinner.report --readme {options.readme}",
                    file=sys.stderr,
                )
            return 0 if current else 1
        changed = update_readme(options.readme, table)
    except (UserError, FileNotFoundError) as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    print(f"{options.readme}: {'updated' if changed else 'was up to date'}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
