"""`thinner plan`: what a run would do, how long that takes on this machine, and what lies on the disk afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from flows.console import abbreviated, busy, console
from tasks import forecast, lineage
from tasks.machine import thread_count
from thinner.params import Params
from thinner.words import si


@dataclass(frozen=True)
class Planned:
    """A stage, why it would run (nothing where it is up to date), and its cost."""

    stage: str
    why: list[str]
    cost: forecast.Cost

    @property
    def runs(self) -> bool:
        return bool(self.why)


@dataclass(frozen=True)
class Plan:
    """All stages, and the whole: seconds of a run, bytes that it adds to ``data``, bytes that are free."""

    stages: list[Planned]
    seconds: float
    bytes: int
    free: int
    words: str
    too_long: tuple[str, ...] = ()  # a line for each stage that would be ended before it is done

    def as_json(self) -> dict[str, Any]:
        rows = [{**asdict(each.cost), "runs": each.runs, "why": each.why} for each in self.stages]
        return {
            "stages": rows,
            "seconds": self.seconds,
            "bytes": self.bytes,
            "free_bytes": self.free,
            "too_long": list(self.too_long),
        }


def make_plan(root: Path, params: Params, jobs: int, *, fresh: bool = False) -> Plan:
    """Look at the data, time a few steps, and add up. ``fresh``: as if nothing were there yet."""
    nodes = lineage.graph(root)
    with busy() as telling:
        telling("looking at the images")
        counts = forecast.count_images(params, say=lambda text: None)
        clock = forecast.Clock(lambda what: telling(f"timing {what}"))
        costs = forecast.foretell(params, counts, clock)
        stages: list[Planned] = []
        stale: set[str] = set()
        telling("which stages are up to date?")
        known = {} if fresh else lineage.all_reasons(root, [node.name for node in nodes])
        for node in nodes:
            why = ["would run"] if fresh else known[node.name]
            if not why and (after := sorted(stale.intersection(node.upstream))):
                why = [f"follows {', '.join(after)}"]
            if why:
                stale.add(node.name)
            unknown = forecast.Cost(node.name, 0.0, 0, "a stage of your own, which is not foretold")
            stages.append(Planned(node.name, why, costs.get(node.name, unknown)))
    wanted = {each.stage: each.cost for each in stages if each.runs}
    seconds = forecast.whole_run(wanted, nodes, params, jobs, clock.start_seconds)
    size = sum(cost.bytes for cost in wanted.values())
    threads = thread_count(params.run.threads)
    words = f"{threads} thread{'s' * (threads > 1)} a stage, {jobs} stage{'s' * (jobs > 1)} side by side"
    return Plan(stages, seconds, size, forecast.free_bytes(root), words, tuple(too_long(wanted, nodes)))


def too_long(costs: Mapping[str, forecast.Cost], nodes: Sequence[lineage.Node]) -> Iterator[str]:
    """A line for each stage that the flow would end before it is done, if it takes what is foretold."""
    for node in nodes:
        limit, cost = node.timeout_seconds, costs.get(node.name)
        if limit is not None and cost is not None and cost.seconds > limit:
            yield (
                f"{node.name} takes about {about(cost.seconds)}, but is ended after {about(limit)}. Raise its "
                f"meta.timeout_minutes in dvc.yaml: {node.meta['timeout_minutes']:g}"
            )


def print_plan(plan: Plan) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("stage")
    table.add_column("time", justify="right")
    table.add_column("on disk", justify="right")
    table.add_column("what")
    table.add_column("why")
    for each in plan.stages:
        time = about(each.cost.seconds) if each.runs else "-"
        size = si(each.cost.bytes, "B") if each.runs and each.cost.bytes else "-"
        table.add_row(each.stage, time, size, each.cost.words, abbreviated(each.why) if each.runs else "up to date")
    console.print(table)
    if not any(each.runs for each in plan.stages):
        console.print("\nEverything is up to date: a run takes seconds and trains nothing")
        return
    console.print(
        f"\nIn all   about {about(plan.seconds)} on this machine as busy as it is now ({plan.words})\n"
        f"On disk  {si(plan.bytes, 'B')} in data, and once more in DVC's cache; {si(plan.free, 'B')} are free"
    )
    if 2 * plan.bytes > plan.free:
        console.print("The disk is too small for that. Lower teach.views or data.image_size", style="red")
    for line in plan.too_long:
        console.print(line, style="red")
    console.print("\nNext     thinner run")


def about(seconds: float) -> str:
    """As a person says it: 40 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min" if hours < 24 else f"{seconds / 86_400:.1f} days"
