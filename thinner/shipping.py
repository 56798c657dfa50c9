"""What a person is told first: was the target met, and is there a network to ship. One answer for the page, Markdown,
the terminal, the record and the registry; nothing heavy is imported.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from thinner.words import milliseconds, percent, si

Metrics = Mapping[str, Mapping[str, Any]]
Rows = Sequence[Mapping[str, Any]]

RUNTIMES = {"pytorch": "PyTorch", "onnxruntime": "ONNX Runtime"}
_EXPORTS = ("_onnx_int8", "_onnx", "_pt2")


def read_targets(reports: Path) -> list[dict[str, Any]]:
    """What every pruning stage says of its target: reports/prune/target.json first, then those of prune_also."""
    files = [reports / "prune" / "target.json", *sorted((reports / "prune_also").glob("*/target.json"))]
    return [json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file()]


def target_lines(targets: Rows) -> list[str]:
    """The sentences of all targets, those of a missed one first."""
    return [line for target in sorted(targets, key=lambda target: bool(target["met"])) for line in target["lines"]]


def network_of(candidate: str) -> str:
    """The network that an export was made of: ``prune`` of ``prune_onnx_int8``."""
    ending = next((ending for ending in _EXPORTS if candidate.endswith(ending)), "")
    return candidate.removesuffix(ending)


def open_points(shipped: str, verdicts: Rows, targets: Rows) -> list[str]:
    """Why ``shipped`` is not ready to ship, in words; empty where it is: every claim is proven, its target is met."""
    missed = [t for t in targets if t["candidate"] == network_of(shipped) and not t["met"]]
    lines = [f"{target['candidate']} missed its target" for target in missed]
    lines += [f"{v['outcome']}: {v['claim']}" for v in verdicts if v["outcome"] != "proven"]
    return lines if verdicts else [*lines, "no claims were made (docs/claims.md has the grammar)"]


def ship_line(measured: Metrics, shipped: str, verdicts: Rows, targets: Rows) -> str:
    """Which candidate is to be shipped, and what it is in three numbers; or that nothing is, why not, and what there
    is instead."""
    if shipped not in measured:
        return f"Nothing is ready to ship: {shipped} was not evaluated."
    if not (missing := open_points(shipped, verdicts, targets)):
        return f"To ship: {shipped} ({len(verdicts)} of {len(verdicts)} claims proven). {_costs(measured, shipped)}."
    proven = sum(verdict["outcome"] == "proven" for verdict in verdicts)
    count = f" ({proven} of {len(verdicts)} claims proven)" if verdicts else ""
    return f"Nothing is ready to ship{count}. {'; '.join(missing)}. {_instead(measured)}"


def _instead(measured: Metrics) -> str:
    """The most accurate network, and the most accurate of those that cost no more than the student."""
    networks = [name for name in measured if network_of(name) == name]
    best = max(networks, key=lambda name: float(measured[name]["accuracy"]))
    text = f"The most accurate is {best}. {_costs(measured, best)}."
    if "distill" not in networks:
        return text
    small = [name for name in networks if measured[name]["macs"] <= measured["distill"]["macs"]]
    if (cheap := max(small, key=lambda name: float(measured[name]["accuracy"]))) != best:
        text += f" Of those with the student's MACs or fewer it is {cheap}. {_costs(measured, cheap)}."
    return text


def _costs(measured: Metrics, name: str) -> str:
    row, batch = measured[name], latency_batches(measured)[-1]
    return (
        f"It is right on {percent(row['accuracy'])}, its file has {si(row['file_bytes'], 'B')}, and a batch of {batch} "
        f"takes {milliseconds(row[f'latency_ms_b{batch}'])} ms in {RUNTIMES[row['runtime']]}"
    )


def latency_batches(measured: Metrics) -> list[int]:
    """The batches, images at once, at which latencies were measured."""
    keys = next(iter(measured.values()))
    found = (key.removeprefix("latency_ms_b") for key in keys if key.startswith("latency_ms_b"))
    return sorted(int(batch) for batch in found if batch.isdigit())
