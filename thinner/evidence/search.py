"""What a search shows: which trials are on the front, which keep to the limits, which come first; a table and a figure.

A row is a mapping with what `tasks.measure` found of a network: scores (ratios, 0 to 1) and costs (params, macs,
file_bytes, latency_ms_bN). Nothing here knows which split they are of.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from thinner.evidence.statistics import Verdict
from thinner.measure.profiling import pareto_front
from thinner.words import milliseconds, percent, si

Row = Mapping[str, Any]
Named = TypeVar("Named", bound=Row)

COUNTED = {"params": "parameters", "macs": "MACs", "file_bytes": "file"}
LATENCY = re.compile(r"latency_ms_b([1-9]\d{0,4})")
_WIDE = 5  # costs that are so many times another want a log scale
_IN_CLAIMS = {"params": "parameters", "macs": "MACs", "file_bytes": "bytes"}


def is_cost(name: str) -> bool:
    return name in COUNTED or LATENCY.fullmatch(name) is not None


def batch_of(cost: str) -> int | None:
    """N of latency_ms_bN; None of other costs."""
    found = LATENCY.fullmatch(cost)
    return None if found is None else int(found[1])


def shown(cost: str, value: float) -> str:
    if cost in COUNTED:
        return si(value, "B" if cost == "file_bytes" else "")
    return f"{milliseconds(value)} ms"


def heading(cost: str) -> str:
    return COUNTED.get(cost) or f"latency, batch {batch_of(cost)}"


def missed(row: Row, constraints: Mapping[str, float]) -> list[str]:
    """The limits that the network does not keep to, as words; a limit itself is kept to."""
    return [
        f"{heading(cost)} {shown(cost, row[cost])} > {shown(cost, limit)}"
        for cost, limit in constraints.items()
        if row[cost] > limit
    ]


def front(rows: Sequence[Named], measure: str, against: str) -> list[Named]:
    """The rows of which no other is as accurate and as cheap, and better in one of the two; the cheapest first."""
    good = pareto_front([row[against] for row in rows], [row[measure] for row in rows])
    return sorted((row for row, is_good in zip(rows, good, strict=True) if is_good), key=lambda row: row[against])


def rank(
    rows: Sequence[Named], default: Row, measure: str, against: str, constraints: Mapping[str, float], margin: float
) -> list[Named]:
    """Of those that keep to all limits the front, the best first. With limits that is the most accurate. Without any it
    is the cheapest whose ``measure`` is at most ``margin`` (a ratio) below the default's; those further below come
    after all of these, the most accurate first."""
    on_front = front([row for row in rows if not missed(row, constraints)], measure, against)
    accurate_first = sorted(on_front, key=lambda row: (-row[measure], row[against]))
    if constraints:
        return accurate_first
    enough = [row for row in on_front if row[measure] >= default[measure] - margin]
    return enough + [row for row in accurate_first if row[measure] < default[measure] - margin]


def claims_about(name: str, measure: str, against: str, margin_points: float, runtime: str) -> list[str]:
    """What is tested of a network that was found, beside `default`: as accurate but for a margin, and cheaper."""
    batch = batch_of(against)
    cheaper = (
        f"{name} is faster than default at batch {batch} in {runtime}"
        if batch is not None
        else f"{name} is smaller than default in {_IN_CLAIMS[against]}"
    )
    return [f"{name} is within {margin_points:g} points of default on {measure}", cheaper]


def table(rows: Sequence[Row], keys: Sequence[str], measure: str, costs: Sequence[str]) -> str:
    """Markdown. A row has `name`, `values` (what is written below ``keys``), scores and costs, and `note`."""
    lines = [
        "| | " + "".join(f"`{key}` | " for key in keys) + f"{measure} | "
        + "".join(f"{heading(cost)} | " for cost in costs) + "|",
        "|---|" + "---|" * len(keys) + "---:|" * (1 + len(costs)) + "---|",
    ]  # fmt: skip
    for row in rows:
        cells = [row["name"], *(row["values"].get(key, "") for key in keys), percent(row[measure])]
        lines.append("| " + " | ".join([*cells, *(shown(cost, row[cost]) for cost in costs), row["note"]]) + " |")
    return "\n".join(lines) + "\n"


def verdict_table(verdicts: Sequence[Verdict]) -> str:
    rows = (f"| **{verdict.outcome}** | {verdict.claim.text} | {verdict.numbers} |" for verdict in verdicts)
    return "\n".join(["| verdict | claim | numbers |", "|---|---|---|", *rows, ""])


def draw(
    rows: Sequence[Row], default: Row, measure: str, against: str, constraints: Mapping[str, float], title: str,
    path: Path,
) -> None:  # fmt: skip
    """An SVG: a dot per trial, hollow where it misses a limit; the front as steps; the same bytes for the same rows."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    points = 100.0
    with mpl.rc_context({"svg.hashsalt": "thinner", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.subplots()
        for kept, face, label in ((True, "#2a6fbb", "keeps to all limits"), (False, "none", "misses a limit")):
            part = [row for row in rows if (not missed(row, constraints)) == kept]
            if part:
                axes.plot(
                    [row[against] for row in part], [points * row[measure] for row in part], "o", markersize=6,
                    markerfacecolor=face, markeredgecolor="#2a6fbb", label=label if constraints else "a trial",
                )  # fmt: skip
        best = front([row for row in rows if not missed(row, constraints)], measure, against)
        axes.step(
            [row[against] for row in best], [points * row[measure] for row in best], where="post", color="#b5451d",
            linewidth=1.2, label="front",
        )  # fmt: skip
        for row in best:
            axes.annotate(
                str(row["name"]).removeprefix("trial "), (row[against], points * row[measure]),
                textcoords="offset points", xytext=(5, 5), fontsize=8,
            )  # fmt: skip
        axes.plot([default[against]], [points * default[measure]], "*", color="#111111", markersize=12, label="default")
        if against in constraints:
            axes.axvline(constraints[against], color="#8c8c8c", linestyle=":", label="limit")
        costs = [default[against], *(row[against] for row in rows)]
        if max(costs) > _WIDE * min(costs):
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_minor_locator(NullLocator())
        else:
            axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.xaxis.set_major_formatter(lambda value, _: shown(against, value))
        axes.set_xlabel(heading(against))
        axes.set_ylabel(f"{measure.replace('_', ' ')} on the validation split, %")
        axes.set_title(title, loc="left")
        axes.grid(color="#dddddd")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": "thinner"})
