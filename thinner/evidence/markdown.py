"""What the page says as Markdown: reports/results.md, for a pull request. Pictures are the page's alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from thinner.evidence import candidates
from thinner.evidence.answers import alternatives
from thinner.evidence.candidates import SMALLEST, TEACHER, Table, headline, on_accelerator, threads
from thinner.evidence.comparisons import (
    class_rows,
    corruptions_table,
    differences,
    ladder_table,
    rounds_table,
    stages_table,
)
from thinner.evidence.results import Environment, Results, find_commit
from thinner.evidence.self_training_line import self_training_line
from thinner.evidence.shipping import Metrics, open_points, ship_line, target_lines
from thinner.words import interval, limits, percent, points, with_thousands

MOST_CLASSES_IN_MARKDOWN = 10


def render_pull_request(results: Results) -> str:
    """All that the page says in words and tables."""
    measured, environment = results.metrics, results.environment
    parts = [
        render_markdown(measured, environment, results.shipped, results.verdicts, results.targets),
        *([self_training_line(results.self_training), ""] if results.self_training else []),
        "### Differences of accuracy",
        "",
        *markdown_table(
            [f"against {TEACHER}", "points", "95 % interval", "p"],
            [
                [name, points(e.effect), interval(e.low, e.high), "" if e.p_value is None else f"{e.p_value:.2g}"]
                for name, e in differences(results).items()
            ],
        ),
        "",
        "Paired on the same images; each interval by itself, p-values (McNemar) not corrected for their number.",
        "",
    ]
    if other := alternatives(results):
        parts += ["### Alternatives", "", *_as_markdown(other), ""]
    parts += ["### Cost", "", *_as_markdown(candidates.costs(measured)), ""]
    if (calibration := candidates.calibration(measured)).headings[1:]:
        parts += ["### Calibration", "", *_as_markdown(calibration), ""]
    if robustness := corruptions_table(results):
        parts += ["### Accuracy on corrupted test images, mean over severities", "", *_as_markdown(robustness), ""]
    if rounds := rounds_table(results):
        parts += ["### Pruning, on validation images", "", *_as_markdown(rounds), ""]
    if ladder := ladder_table(results):
        parts += ["### The ladder to 8 bits, on validation images", "", *_as_markdown(ladder), ""]
    worst = sorted(class_rows(results), key=lambda row: row.difference.effect)[:MOST_CLASSES_IN_MARKDOWN]
    parts += [
        f"### Classes that {SMALLEST} lost most on",
        "",
        *markdown_table(
            ["class", "images", TEACHER, SMALLEST, "points", "95 % interval"],
            [
                [
                    cell(row.name),
                    f"{row.images:,}",
                    f"{percent(row.teacher)} {limits(*row.teacher_limits)}",
                    f"{percent(row.small)} {limits(*row.small_limits)}",
                    points(row.difference.effect),
                    interval(row.difference.low, row.difference.high),
                ]
                for row in worst
            ],
        ),
        "",
        "Square brackets are 95 % intervals: Wilson's of a share, in percent; of the difference, in points.",
        "",
        "### What was run",
        "",
        *(_as_markdown(runs) if (runs := stages_table(results)) else ["Stages: not recorded here."]),
        "",
        f"- Data: {results.data['source']}, SHA-256 `{environment.data_sha256}`",
        f"- Evaluated on: {environment.cpu}, {environment.system}, "
        f"Python {environment.python}, "
        + ", ".join(f"{name} {version}" for name, version in environment.libraries.items()),
        *(
            f"- Timed on {device.name} too: {device.cpu}, {device.system}, {threads(device.threads)}, ONNX Runtime, "
            "the network alone"
            for device in results.devices.values()
        ),
        f"- Seed: {results.params['run']['seed']}",
        *(f"- Commit: `{find_commit(md5)}`" for md5 in results.hashes.values()),
        "- Reproduce: check that commit out, then `make run`",
    ]
    return "\n".join(parts) + "\n"


def render_markdown(
    measured: Metrics,
    environment: Environment,
    shipped: str,
    verdicts: Sequence[Mapping[str, Any]] = (),
    targets: Sequence[Mapping[str, Any]] = (),
) -> str:
    """What was proven, and the candidates as a table. What was asked of pruning stands in the first lines: a missed
    target and a loss that is shown before all else."""
    marked = None if open_points(shipped, verdicts, targets) else shipped
    table = candidates.for_markdown(measured)
    rows = [[f"**{name}** (to ship)" if name == marked else name, *cells] for name, *cells in table.rows]
    lines = [
        *first_lines(measured, environment, shipped, verdicts, targets),
        *verdict_lines(verdicts),
        *markdown_table(table.headings, rows, last="---"),
        "",
        f"{environment.test_images:,} test images; agreement is with the baseline ({TEACHER}); "
        f'"vs baseline" is in points. {how_latency_was_measured(measured, environment)}',
    ]
    return "\n".join(lines) + "\n"


def first_lines(
    measured: Metrics,
    environment: Environment,
    shipped: str,
    verdicts: Sequence[Mapping[str, Any]],
    targets: Sequence[Mapping[str, Any]],
) -> list[str]:
    """What came out, whether the target was met, and what to ship, as paragraphs; what went wrong comes first."""
    told = [part for line in target_lines(targets) for part in (f"**{line}**", "")]
    loud = any(not target["met"] or len(target["lines"]) > 1 for target in targets)
    first = [headline(measured, environment.test_images), ""]
    return [*(told + first if loud else first + told), f"**{ship_line(measured, shipped, verdicts, targets)}**", ""]


def verdict_lines(verdicts: Sequence[Mapping[str, Any]]) -> list[str]:
    """The claims as a table; nothing where there are none."""
    if not verdicts:
        return []
    lines = ["| verdict | claim | measured on the test split |", "|---|---|---|"]
    lines += [f"| **{v['outcome']}** | {v['claim']} | {with_thousands(v['numbers'])} |" for v in verdicts]
    return [*lines, ""]


def how_latency_was_measured(measured: Metrics, environment: Environment) -> str:
    others = {row["device"]: None for row in measured.values() if on_accelerator(row)}
    also = f"; of networks in PyTorch on {environment.accelerator or ' and '.join(others)}" if others else ""
    return (
        f"Latency is the median of {environment.latency_repeats} interleaved runs on {environment.cpu}, "
        f"{threads(measured[TEACHER]['threads'])}{also}. MACs are per image."
    )


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]], last: str = "---:") -> list[str]:
    """The lines of a table: names to the left, numbers to the right; ``last``: the rule of the last column."""
    rule = "|".join(["---", *["---:"] * (len(headings) - 2), last])
    return [f"| {' | '.join(headings)} |", f"|{rule}|", *(f"| {' | '.join(row)} |" for row in rows)]


def _as_markdown(table: Table) -> list[str]:
    return markdown_table(table.headings, table.rows)


def cell(text: str) -> str:
    """A class's name is text, whatever signs it has."""
    return re.sub(r"([\\|`*_<>\[\]])", r"\\\1", text)
