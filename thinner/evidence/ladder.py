"""The ladder to 8 bits: what each rung cost, which one holds, and the sentences that say so. Nothing heavy is imported.

static: all of it in 8 bits, ranges by the best of a few methods. mixed: the layers that lose most stay in float.
trained: the same graph learns. A rung is tried when those below do not hold.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from thinner.evidence.drop import Drop

RUNGS = ("static", "mixed", "trained")
Row = dict[str, Any]
LADDER, SENSITIVITY = Path("reports/quantize/ladder.csv"), Path("reports/quantize/sensitivity.csv")
# of ladder.csv: an attempt a row, the float source first. Ratios are 0 to 1, points are 100 times those
COLUMNS = (
    "rung", "calibration", "steps", "float_layers", "float_names", "float_weights", "accuracy", "agreement",
    "loss_points", "loss_low", "loss_high", "file_bytes", "latency_ms", "latency_low", "latency_high", "holds",
    "chosen",
)  # fmt: skip


def float_sets(rows: Sequence[Mapping[str, Any]], max_float: float) -> list[list[str]]:
    """Which layers stay in float, in growing sets of 1, 2, 4, ... and of as many as fit.

    ``rows``: of sensitivity.csv (``layer``, ``weights``, ``divergence``). Layers come by what their 8 bits change, the
    most first, as long as they are at most ``max_float`` of all layers (a ratio, rounded up); one with which more than
    that of all weights would be in float is left out.
    """
    limit, most = max_float * sum(row["weights"] for row in rows), math.ceil(max_float * len(rows))
    chosen: list[str] = []
    used = 0
    for row in sorted(rows, key=lambda row: -row["divergence"]):
        if len(chosen) < most and row["divergence"] > 0 and used + row["weights"] <= limit:
            chosen.append(row["layer"])
            used += row["weights"]
    counts = [2**power for power in range(len(chosen).bit_length()) if 2**power < len(chosen)]
    return [chosen[:count] for count in [*counts, len(chosen)] if count]


def best_of(rows: Iterable[Row]) -> Row:
    """The one that may have lost least: whose interval of the loss ends lowest; of equal ones the first."""
    return min(rows, key=lambda row: float(row["loss_high"]))


def choose(rows: Sequence[Row]) -> Row:
    """The cheapest attempt that holds, and where none does the best; ``rows`` in the order of the climb.

    Of static the best method is taken before it is asked whether it holds: they cost the same.
    """
    static = [row for row in rows if row["rung"] == "static"]
    climbed = [*([best_of(static)] if static else []), *(row for row in rows if row["rung"] != "static")]
    return next((row for row in climbed if row["holds"]), None) or best_of(climbed)


def judged(drop: Drop) -> dict[str, Any]:
    """The columns that tell of a drop. It holds when more than ``drop.bound`` is excluded."""
    return {
        "loss_points": drop.points,
        "loss_low": drop.low,
        "loss_high": drop.high,
        "holds": drop.outcome == "proven",
    }


def describe(
    candidate: str, source: str, row: Row, rungs: Sequence[str], drop: Drop, layers: int, besides: int = 0
) -> list[str]:
    """What a person reads first of the network in 8 bits. ``layers``: how many it has; ``besides``: how many others
    were tested on the same images: of ``static`` other calibrations, else the attempts before it that did not hold."""
    way = f"static, calibrated by {row['calibration']}"
    if row["rung"] != "static":
        way = f"{row['rung']}, {row['float_layers']} of {layers} layers in float"
    lost = (
        f"{candidate} ({way}) lost {drop} against {source} on {drop.images:,} validation images; at most "
        f"{drop.bound:g} asked"
    )
    if row["holds"]:
        many = "s" * (besides > 1)
        others = f"other calibration{many}" if row["rung"] == "static" else f"attempt{many} before it"
        counted = f", by a test that does not count the {besides} {others}" if besides else ""
        return [f"8 bits hold: {lost}, and shown{counted}."]
    tried = ", ".join(rung for rung in RUNGS if rung in rungs)
    return [
        f"8 BITS DO NOT HOLD: {lost}. No rung of the ladder ({tried}) is shown to lose so little. The best is kept, "
        "and is not to be shipped."
    ]
