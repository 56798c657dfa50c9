"""One picture of a run: accuracy, and what it costs in time. For a page elsewhere that runs no program, so an SVG of
some kB; the report's own charts (thinner/evidence/charts.py) move, and bring a program along."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from thinner.evidence import candidates
from thinner.evidence.shipping import latency_batches
from thinner.words import milliseconds

_POINTS = 100.0
_WIDE = 10.0  # from this ratio on the axis is logarithmic


def draw(measured: Mapping[str, Mapping[str, Any]], shipped: str) -> str:
    """An SVG: a line for each candidate that matters, with a dot at its accuracy and one at its time; ``shipped`` is
    filled. The same text for the same numbers."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    batch = latency_batches(measured)[-1]
    shown = candidates.that_matter(measured, shipped)
    names = list(reversed(shown))  # the first one on top
    panels = {
        "accuracy on the test images, %": [_POINTS * shown[name]["accuracy"] for name in names],
        f"ms, batch {batch}": [shown[name][f"latency_ms_b{batch}"] for name in names],
    }
    with mpl.rc_context({"svg.hashsalt": "thinner", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure = Figure(figsize=(8, 1 + 0.3 * len(names)), layout="constrained")
        both = figure.subplots(1, 2, sharey=True)
        for axes, (label, values) in zip(both, panels.items(), strict=True):
            for place, (name, value) in enumerate(zip(names, values, strict=True)):
                face = "#b5451d" if name == shipped else "none"
                axes.plot(value, place, "o", markersize=7, markerfacecolor=face, markeredgecolor="#b5451d")
            axes.set_xlabel(label)
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.margins(x=0.1, y=0.5 / len(names))
            axes.grid(color="#dddddd")
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
        if max(values) > _WIDE * min(values):
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda value, _: milliseconds(value))
        both[0].set_yticks(range(len(names)), names)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": "thinner"})
    return text.getvalue()
