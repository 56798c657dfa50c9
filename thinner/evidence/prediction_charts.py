"""Charts of what candidates say of the test images: calibration, risk, corruption, classes, confusion."""

from __future__ import annotations

from typing import Any

import numpy as np

from thinner.evidence.candidates import SMALLEST, TEACHER, Table
from thinner.evidence.charts import COLOURS, Chart, blank_figure, style_of
from thinner.evidence.comparisons import class_rows, corruptions_table
from thinner.evidence.results import Results
from thinner.measure import metrics
from thinner.words import percent, points

MOST_CLASSES_IN_A_TABLE = 15  # of a confusion matrix: as many columns, and their numbers in the chart's cells
COVERAGES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # of the risk-coverage curve's table


def reliability(results: Results) -> list[Chart]:
    """Confidence against accuracy in bins, before and after temperature scaling."""
    table = results.reliability
    if table is None or table.empty:
        return []
    figure = blank_figure("confidence", "share that is right", xaxis_tickformat=".0%", yaxis_tickformat=".0%")
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
            colour, symbol = style_of(name, results)
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
    row = results.metrics[SMALLEST]
    words = "Below the line a network is surer than it is right. "
    if row.get("ece") is not None and row.get("ece_scaled") is not None:
        words += (
            f"{SMALLEST}'s calibration error is {percent(row['ece'])}, and {percent(row['ece_scaled'])} "
            "after temperature scaling, which was fitted on validation images."
        )
    cells = [[name, percent(said), percent(right), f"{images:,}"] for name, said, right, images in values]
    listed = Table(["candidate", "mean confidence", "share that is right", "images"], cells, values)
    return [Chart("reliability", "calibration", "Reliability: confidence against accuracy", words, figure, listed)]


def risk_coverage(results: Results) -> list[Chart]:
    """How many answers are wrong, where only the surest are given."""
    table = results.risk_coverage
    if table is None or table.empty:
        return []
    figure = blank_figure(
        "share of the images that are answered", "share of the answers that are wrong",
        xaxis_tickformat=".0%", yaxis_tickformat=".1%", yaxis_rangemode="tozero",
    )  # fmt: skip
    ends: list[str] = []
    values: list[list[Any]] = []
    for name, row in results.metrics.items():
        rows = table[table["candidate"] == name].sort_values("coverage")
        if rows.empty or row["runtime"] != "pytorch":
            continue
        colour, _ = style_of(name, results)
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


def corruptions(results: Results) -> list[Chart]:
    """Accuracy by kind of corruption."""
    table = results.corruptions
    if table is None or table.empty:
        return []
    kinds = list(dict.fromkeys(table["corruption"]))
    figure = blank_figure("", "accuracy, mean over severities", yaxis_tickformat=".0%", barmode="group")
    falls = []
    for name, row in results.metrics.items():
        rows = table[table["candidate"] == name]
        if rows.empty or row["runtime"] != "pytorch":
            continue
        mean = rows.groupby("corruption")["accuracy"].mean()
        colour, _ = style_of(name, results)
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
            corruptions_table(results),
        )
    ]


def per_class(results: Results) -> Chart:
    """Each class's accuracy, of the teacher and of the smallest."""
    rows = sorted(class_rows(results), key=lambda row: row.small)
    figure = blank_figure(
        "share of the class's images recognised", "", height=120 + 26 * len(rows), xaxis_tickformat=".0%"
    )
    for name, shares in ((TEACHER, [row.teacher for row in rows]), (SMALLEST, [row.small for row in rows])):
        colour, symbol = style_of(name, results)
        figure.add_scatter(
            x=shares,
            y=[row.name for row in rows],
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
        f"{SMALLEST} does worst on {worst.name}: {percent(worst.small)}, where {TEACHER} has {percent(worst.teacher)}.",
        figure,
    )


def class_changes(results: Results) -> Chart:
    """Gain or loss against the teacher, class by class, each with its own interval."""
    rows = sorted(class_rows(results), key=lambda row: -row.difference.effect)
    figure = blank_figure("points against " + TEACHER, "", height=120 + 26 * len(rows))
    shown = [100 * row.difference.effect for row in rows]
    figure.add_scatter(
        x=shown,
        y=[row.name for row in rows],
        mode="markers",
        marker={"color": COLOURS[3], "size": 10},
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [100 * row.difference.high - x for row, x in zip(rows, shown, strict=True)],
            "arrayminus": [x - 100 * row.difference.low for row, x in zip(rows, shown, strict=True)],
            "color": COLOURS[3],
            "thickness": 1.5,
        },
        hovertemplate="%{y}: %{x:+.1f} points<extra></extra>",
        showlegend=False,
    )
    figure.add_vline(x=0, line={"color": "#8c8c8c", "width": 1, "dash": "dot"})
    figure.update_layout(yaxis_type="category")
    lost = [row.name for row in rows if row.difference.high < 0]
    gained = [row.name for row in rows if row.difference.low > 0]
    return Chart(
        "class-changes",
        "classes",
        f"What {SMALLEST} gains and loses, by class",
        f"{SMALLEST} minus {TEACHER} on the same images. The interval lies below 0 for "
        f"{', '.join(lost) or 'no class'}, above 0 for {', '.join(gained) or 'no class'}. "
        f"Each is a 95 % interval by itself: of {len(rows)} classes some lie beside 0 by chance.",
        figure,
    )


def confusion_matrices(results: Results) -> list[Chart]:
    """One for each network; exports answer as theirs does."""
    charts = []
    count = len(results.classes)
    for name, row in results.metrics.items():
        if row["runtime"] != "pytorch":
            continue
        counts = metrics.confusion(results.labels, results.predictions[name], count)
        shares = np.divide(counts, np.maximum(counts.sum(axis=1, keepdims=True), 1))
        figure = blank_figure("predicted", "actual", height=max(380, 150 + 26 * count))
        figure.add_heatmap(
            z=shares,
            x=list(results.classes),
            y=list(results.classes),
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
        most = "There is no mistake."
        if wrong.any():
            named = f"{results.classes[actual]} seen as {results.classes[predicted]}"
            most = f"Most frequent mistake: {named}, {wrong[actual, predicted]} times."
        values = [[class_, *row] for class_, row in zip(results.classes, counts.tolist(), strict=True)]
        cells = [[class_, *(f"{images:,}" for images in row)] for class_, *row in values]
        listed = Table(["actual", *results.classes], cells, values)
        charts.append(
            Chart(
                f"confusion-{name}",
                "confusion",
                f"Confusion matrix of {name}",
                f"Images by actual class (row) and predicted class (column); colour is the share of the row. {most}",
                figure,
                listed if count <= MOST_CLASSES_IN_A_TABLE else None,
            )
        )
    return charts
