"""What a study shows: variants over seeds, compared with a baseline seed by seed, as a table and a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from thinner.evidence.statistics import holm

POINTS = 100.0  # accuracies are 0 to 1; people read points


def summarise(rows: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """One row per variant, best mean first.

    ``rows`` has the columns variant, seed and value (0 to 1), one row per finished run. In points: mean, standard
    deviation over seeds (n - 1), and over the seeds that both have the mean difference to ``baseline`` with a 95 %
    interval (Student's t of the paired differences, https://doi.org/10.1093/biomet/6.1.1) and its p-value, adjusted
    for the number of variants (Holm 1979, https://www.jstor.org/stable/4615733). NaN where there are too few seeds.
    ``macs`` and ``share`` (columns that may be there: multiply-adds per image and, of what was pruned, their share of
    the unpruned network's) are averaged over seeds.
    """
    table = rows.pivot(index="variant", columns="seed", values="value") * POINTS
    found = []
    for variant, values in table.iterrows():
        have = values.dropna()
        row: dict[str, Any] = {
            "variant": variant, "seeds": len(have), "mean": have.mean(), "sd": have.std(ddof=1),
            "difference": np.nan, "low": np.nan, "high": np.nan, "p": np.nan,
            **{
                column: rows.loc[rows["variant"] == variant, column].mean() if column in rows else np.nan
                for column in ("macs", "share")
            },
        }  # fmt: skip
        if variant != baseline and baseline in table.index:
            pairs = (values - table.loc[baseline]).dropna().to_numpy()
            if len(pairs):
                row["difference"] = pairs.mean()
            if len(pairs) > 1:
                row["low"], row["high"], row["p"] = _paired_t(pairs)
        found.append(row)
    out = pd.DataFrame(found).sort_values(["mean", "variant"], ascending=[False, True], ignore_index=True)
    tested = out["p"].notna()
    out.loc[tested, "p"] = holm(out.loc[tested, "p"].tolist())
    return out


def _paired_t(differences: np.ndarray) -> tuple[float, float, float]:
    """(low, high, p) of the mean. Where there is no spread but that of rounding, nothing can be tested: differences of
    accuracies on a few hundred images are often equal by chance."""
    if np.ptp(differences) < 1e-9:
        return np.nan, np.nan, 1.0
    result = stats.ttest_1samp(differences, 0.0)
    interval = result.confidence_interval(0.95)
    return float(interval.low), float(interval.high), float(result.pvalue)


def render_markdown(summary: pd.DataFrame, baseline: str, seeds: int, second: pd.DataFrame | None = None) -> str:
    """The table, for a page on a git host; ``second``: the summary against another variant, as two more columns."""
    pruned = bool(summary["macs"].notna().any())
    more = {} if second is None else {row["variant"]: row for row in second.to_dict("records")}
    rival = next((name for name, row in more.items() if np.isnan(row["difference"])), "")
    lines = [
        f"| variant | seeds | mean, % | spread (sd) | against {baseline}, points | p (Holm) |"
        + f" against {rival}, points | p (Holm) |" * bool(more)
        + " MACs |" * pruned,
        "|---|---:|---:|---:|---:|---:|" + "---:|---:|" * bool(more) + "---:|" * pruned,
    ]
    for row in summary.to_dict("records"):
        count = str(row["seeds"]) if row["seeds"] == seeds else f"**{row['seeds']} of {seeds}**"
        spread = "" if np.isnan(row["sd"]) else f"{row['sd']:.2f}"
        share = "" if np.isnan(row["share"]) else f" ({row['share']:.1%})"
        macs = "" if np.isnan(row["macs"]) else f"{row['macs'] / 1e6:.2f} M{share}"
        lines.append(
            f"| `{row['variant']}` | {count} | {row['mean']:.2f} | {spread} | {_against(row)} |"
            + (f" {_against(more[row['variant']])} |" if more else "")
            + f" {macs} |" * pruned
        )
    return "\n".join(lines) + "\n"


def _against(row: Any) -> str:
    """The difference with its interval, and p: two cells."""
    difference = "" if np.isnan(row["difference"]) else f"{row['difference']:+.2f}"
    if not np.isnan(row["low"]):
        difference += f" [{row['low']:+.2f}, {row['high']:+.2f}]"
    p = "" if np.isnan(row["p"]) else ("< 0.0001" if row["p"] < 1e-4 else f"{row['p']:.4f}")
    return f"{difference} | {p}"


def draw(rows: pd.DataFrame, summary: pd.DataFrame, title: str, axis: str, path: Path) -> None:
    """An SVG: a dot per seed, a bar at each variant's mean, best on top; the same bytes for the same rows."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "thinner", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure = Figure(figsize=(8, 1.2 + 0.32 * len(summary)), layout="constrained")
        axes = figure.subplots()
        for place, row in enumerate(reversed(summary.to_dict("records"))):
            values = rows.loc[rows["variant"] == row["variant"], "value"] * POINTS
            axes.plot(values, [place] * len(values), "o", color="#2a6fbb", alpha=0.55, markersize=5)
            axes.plot([row["mean"]] * 2, [place - 0.32, place + 0.32], color="#b5451d", linewidth=2.5)
        axes.set_yticks(range(len(summary)), list(reversed(summary["variant"].tolist())))
        axes.set_xlabel(f"{axis}, %: dots are seeds, bars are means")
        axes.set_title(title, loc="left")
        axes.grid(axis="x", color="#dddddd")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": "thinner"})
