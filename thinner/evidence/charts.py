"""Charts of what candidates cost, how they were trained and how they were pruned; and what all charts have in common.

A chart says in words what it shows, and has its numbers in a table where they are few, for those who do not see it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from thinner.evidence.candidates import Table
from thinner.evidence.comparisons import has_masks
from thinner.evidence.results import Results
from thinner.evidence.shipping import Metrics, latency_batches
from thinner.measure.profiling import pareto_front
from thinner.words import percent

# readable on white and on near-black, and told apart by people with a colour-vision deficiency
COLOURS = ("#4c8fe0", "#e69f00", "#13a37f", "#e0603c", "#a98bdc", "#cc79a7", "#8c8c8c", "#56b4e9", "#9c755f", "#6b6ecf")
SYMBOLS = ("circle", "square", "diamond", "star", "triangle-up", "triangle-down", "cross", "x", "pentagon", "hexagon")


@dataclass(frozen=True)
class Chart:
    """One figure: what it is called, what it shows in words (for those who do not see it), the picture."""

    key: str
    section: str
    title: str
    text: str
    figure: go.Figure
    table: Table | None = None  # the same numbers, where they are few


_MOST_LAYERS = 40  # in a chart; the table has all


def style_of(name: str, results: Results) -> tuple[str, str]:
    """The candidate's colour and symbol, the same in all charts."""
    number = list(results.metrics).index(name)
    turn = number // len(COLOURS)  # the colours come again with other symbols
    return COLOURS[number % len(COLOURS)], SYMBOLS[(number + turn) % len(SYMBOLS)]


def blank_figure(x: str, y: str, **layout: Any) -> go.Figure:
    """Axes with these titles, and what all charts look like; ``height`` in px."""
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


def tradeoffs(results: Results) -> list[Chart]:
    """Accuracy against MACs, bytes and each latency, with the Pareto front."""
    rows = results.metrics
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
        figure = blank_figure(
            label, "test accuracy", height=420, xaxis_type="log", xaxis_dtick="D2", yaxis_tickformat=".1%"
        )
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
            colour, symbol = style_of(name, results)
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


def learning_curves(results: Results) -> list[Chart]:
    """Validation accuracy and loss by step of every stage that trained."""
    charts = []
    for column, label, title, fmt in (
        ("val_accuracy", "validation accuracy", "Validation accuracy while training", ".0%"),
        ("loss", "training loss (log scale)", "Training loss", None),
    ):
        figure = blank_figure("training step", label)
        if fmt:
            figure.update_yaxes(tickformat=fmt)
        else:
            figure.update_yaxes(type="log")
        ends: list[str] = []
        values: list[list[Any]] = []
        for name, frame in results.history.items():
            if column not in frame or "step" not in frame:
                continue
            colour, _ = style_of(name, results)
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


def sensitivity_chart(results: Results) -> list[Chart]:
    """By layer, what its 8 bits alone change, the most first; and which of them stayed in float."""
    if results.sensitivity is None or results.ladder is None:
        return []
    rows = results.sensitivity.sort_values("divergence", ascending=False, kind="stable")
    chosen = results.ladder[results.ladder["chosen"].astype(bool)]
    kept = set(str(chosen["float_names"].iloc[0]).split()) if len(chosen) else set()
    shown = rows.head(_MOST_LAYERS).iloc[::-1]  # the first bar is drawn at the bottom
    figure = blank_figure("divergence from the float network, nats", "", height=120 + 22 * len(shown))
    for words, colour, inside in (("in 8 bits", COLOURS[0], False), ("in float", COLOURS[3], True)):
        part = shown[shown["layer"].isin(kept) == inside]
        figure.add_bar(
            x=part["divergence"].to_numpy(dtype=float),
            y=part["layer"].tolist(),
            orientation="h",
            name=words,
            marker={"color": colour},
            hovertemplate="%{y}<br>%{x:.2e} nats<extra></extra>",
        )
    figure.update_yaxes(categoryorder="array", categoryarray=shown["layer"].tolist())
    worst = rows.iloc[0]
    text = (
        f"Each layer alone in 8 bits, all others in float, on training images: the most sensitive is {worst['layer']} "
        f"({worst['divergence']:.2g} nats, {percent(worst['agreement'])} of images get the same class). "
        f"{f'In float stay {len(kept)} of {len(rows)}.' if kept else 'All of them are in 8 bits.'}"
    )
    table = Table(
        ["layer", "kind", "weights", "divergence", "agreement", "in"],
        [
            [r["layer"], r["kind"], f"{r['weights']:,}", f"{r['divergence']:.2e}", percent(r["agreement"]),
             "float" if r["layer"] in kept else "8 bits"]
            for r in rows.to_dict("records")
        ],
        [
            [r["layer"], r["kind"], r["weights"], r["divergence"], r["agreement"], int(r["layer"] in kept)]
            for r in rows.to_dict("records")
        ],
    )  # fmt: skip
    return [Chart("sensitivity", "quantization", "What 8 bits cost, layer by layer", text, figure, table)]


def pruning_curve(results: Results) -> list[Chart]:
    """Accuracy by size, before and after recovery, round by round."""
    if not results.rounds:
        return []
    several = len(results.rounds) > 1
    masked = has_masks(results)
    size, unit = ("nonzero", "parameters that are not zero") if masked else ("macs", "MACs")
    # a pruned teacher may be ten times a pruned student
    label = (unit if masked else "MACs per image") + " (log scale)" * several
    figure = blank_figure(label, "validation accuracy", yaxis_tickformat=".0%")
    for candidate, rounds in results.rounds.items():
        colour, _ = style_of(candidate, results)
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
    chosen = pd.concat(list(results.rounds.values()))
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
