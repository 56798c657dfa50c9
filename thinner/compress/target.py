"""What is asked of pruning: one value, made once from params.yaml, for the check, the cuts, the verification and the
words of the report. Nothing heavy is imported.

A limit of size is a promise, so accuracy on one validation split does not decide whether it is kept. What was lost is
judged afterwards, as a claim is (``thinner.evidence.drop``); only where a drop of accuracy *is* the target does the
same test choose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from thinner.evidence.drop import Drop

Key = Literal["macs", "params", "latency_ms", "max_drop"]
Unit = Literal["macs", "params", "latency_ms", "nonzero"]  # what a size is counted in
UNITS: dict[Unit, str] = {
    "macs": "MACs",
    "params": "parameters",
    "latency_ms": "ms",
    "nonzero": "nonzero parameters",
}


def sized(unit: Unit, size: float) -> str:
    """``1,460,704 MACs``, ``0.82 ms``."""
    return f"{size:.3g} ms" if unit == "latency_ms" else f"{size:,.0f} {UNITS[unit]}"


def limit_of(value: int | float, now: float) -> float:
    """The size that ``value`` asks for: a whole number is a count, a number with a point is a share of ``now``."""
    return int(value * now) if isinstance(value, float) else value


@dataclass(frozen=True)
class Target:
    """``prune.target`` with what decides how it is counted and judged.

    ``key`` and ``value`` as in params.yaml: a count or a share of MACs or parameters, milliseconds of a batch of
    ``latency_batch``, or points of accuracy that may be lost. ``tolerance``: the share of images (0 to 1) beyond which
    a loss that is shown is told, where the target is a size; None tells of none.
    """

    key: Key
    value: int | float
    granularity: str = "channels"  # or "weights", or "N:M": masks, which change neither MACs nor speed
    latency_batch: int = 1
    tolerance: float | None = None

    @property
    def is_drop(self) -> bool:
        return self.key == "max_drop"

    @property
    def unit(self) -> Unit:
        """What sizes are counted in. Towards a drop networks shrink by their MACs."""
        if self.granularity != "channels":
            return "nonzero"
        return "macs" if self.key == "max_drop" else self.key

    @property
    def is_measured(self) -> bool:
        """Whether a size is a measurement, and so another one each time."""
        return self.unit == "latency_ms"

    @property
    def column(self) -> str:
        """The size as a column of rounds.csv."""
        return f"latency_ms_b{self.latency_batch}" if self.is_measured else self.unit

    @property
    def bound(self) -> float | None:
        """How many points of accuracy may be lost; None: as many as the target takes."""
        if self.is_drop:
            return self.value
        return self.tolerance and 100 * self.tolerance

    def limit(self, now: float, fewest: float) -> float:
        """The largest size that meets the target, of a network of size ``now`` that can be cut to ``fewest``."""
        if self.is_drop:
            return fewest
        return self.value if self.is_measured else limit_of(self.value, now)

    def is_met(self, row: Mapping[str, Any], limit: float, *, cut_to_it: bool = True) -> bool:
        """Whether a row of rounds.csv is what the target asks for. A drop has to be shown to be no more than was asked.
        A latency was shown to be low enough when the network was ``cut_to_it``; measured again it is missed when *that*
        is shown. Of a round that was to be slower, it has to be shown now."""
        if self.is_drop:
            return bool(row["loss_high"] < self.value)
        if self.is_measured:
            return bool(row["latency_low" if cut_to_it else "latency_high"] <= limit)
        return bool(row[self.column] <= limit)

    def sized(self, size: float) -> str:
        return sized(self.unit, size)

    def __str__(self) -> str:
        return f"{{{self.key}: {self.value:g}}}"


def choose_round(rounds: Sequence[Mapping[str, Any]], target: Target) -> int:
    """The number (``round``) of the round that becomes the network. Rounds shrink.

    Of those that meet a limit of size the first, which gave up least; of those that keep to a drop of accuracy the
    last, which is the smallest. Where none does: for a size the last, which came nearest; for a drop the most accurate.
    """
    met = [int(row["round"]) for row in rounds if row["target_met"]]
    if target.is_drop:
        return max(met) if met else int(max(rounds, key=lambda row: row["accuracy_after"])["round"])
    return min(met) if met else int(rounds[-1]["round"])


def describe(
    target: Target,
    *,
    candidate: str,
    source: str,
    size: float,
    source_size: float,
    met: bool,
    why: str,
    drop: Drop,
    clocked: tuple[float, float] | None = None,
) -> list[str]:
    """What a person reads first of a pruned network: whether the target was met, and a loss that is shown.

    ``size``, ``source_size``: in ``target.unit``; ``why`` it was missed; ``drop``: against ``source``; ``clocked``: of
    milliseconds, their 95 % interval. Where that has the limit within it, nothing was shown by it, and that is said.
    """
    lost = f"{candidate} lost {drop} against {source} on {drop.images:,} validation images"
    value = target.value
    if target.is_drop:
        shown = ", and shown, by a test that does not count the other rounds" if met else ""
        found = f"{lost}; at most {value:g} asked{shown}"
    else:
        share = not target.is_measured and isinstance(value, float)
        asked = f"{100 * value:g} %" if share else f"{value:g} ms" if target.is_measured else f"{value:,}"
        found = (
            f"{candidate} has {target.sized(size)}, {100 * size / source_size:.1f} % of {source}'s "
            f"{target.sized(source_size)}; at most {asked} asked"
        )
    lines = [f"Target met: {found}." if met else f"TARGET MISSED: {found}. {why}"]
    if met and clocked is not None and clocked[1] > value:
        low, high = clocked
        lines = [
            f"Target met when the network was cut, and not shown to be missed since: {found}. The interval of its "
            f"milliseconds is [{low:.3g}, {high:.3g}]."
        ]
    if not target.is_drop and drop.outcome == "refuted":
        lines.append(f"LOSS SHOWN: {lost}: more than prune.tolerance, {drop.bound:g} points.")
    return lines
