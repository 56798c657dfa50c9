"""What a person is told first: was the target met, and is there a network to ship. One answer for the page, Markdown,
the terminal, the record and the registry; nothing heavy is imported.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from thinner.errors import DamagedError, one_line
from thinner.files import json_files
from thinner.files.json_files import are_texts, is_number, is_text, lacking
from thinner.runtimes import catalogue
from thinner.words import milliseconds, percent, si

Metrics = Mapping[str, Mapping[str, Any]]
Rows = Sequence[Mapping[str, Any]]

RUNTIMES = {name: runtime.words for name, runtime in catalogue.RUNTIMES.items()}
# the longest first: _onnx_int8 is no _int8
_EXPORTS = sorted((*(f"_{name}" for name in catalogue.FORMATS), "_int8"), key=len, reverse=True)
_EIGHT_BITS = "_int8"
_ABOUT_ANSWERS = ("beats", "within", "agrees", "answers")  # kinds of claims; the others are about sizes and speed


def read_targets(reports: Path) -> list[dict[str, Any]]:
    """What every pruning stage says of its target: reports/prune/target.json first, then those of prune_also; and
    quantize of its ladder."""
    also = sorted((reports / "prune_also").glob("*/target.json"))
    files = [reports / "prune" / "target.json", *also, reports / "quantize" / "target.json"]
    return [_target(file) for file in files if file.is_file()]


def targets_of(candidate: str, targets: Rows) -> list[Mapping[str, Any]]:
    """Those that concern ``candidate``: its own, and that of the network that it was made of."""
    return [target for target in targets if target["candidate"] in (candidate, network_of(candidate))]


def _target(file: Path) -> dict[str, Any]:
    name = file.parts[-2]
    again = f"Make it again: dvc repro {f'prune_also@{name}' if file.parts[-3] == 'prune_also' else name}"
    found = json_files.read_object(file, again)
    if wrong := lacking(found, _TARGET | (_JUDGED if "within_bound" in found else {})):
        raise DamagedError(f"{file}: {wrong}. {again}")
    return found


def unfit(targets: Rows) -> set[str]:
    """The networks in 8 bits of which no rung of the ladder holds: nothing is claimed of them, and none is advised."""
    return {str(target["candidate"]) for target in targets if "rung" in target and not target["met"]}


def read_metrics(path: Path, complete: bool = False) -> dict[str, dict[str, Any]]:
    """What evaluate measured of each candidate; ``complete``: all that `ship_line` tells of one must be there.

    Raises DamagedError; FileNotFoundError.
    """
    again = "Make it again: dvc repro evaluate"
    found = json_files.read_object(path, again)
    batches = [key for row in found.values() if isinstance(row, dict) for key in row if _LATENCY.fullmatch(key)]
    needed = (*_COSTS, *(batches or ["latency_ms_b1"])) if complete else ()
    for name, row in found.items():
        given = (key for key in row if key in _KINDS or _LATENCY.fullmatch(key)) if isinstance(row, dict) else ()
        if wrong := lacking(row, {key: _KINDS.get(key, is_number) for key in dict.fromkeys((*needed, *given))}):
            raise DamagedError(f"{path}: {one_line(name, 60)} {wrong}. {again}")
    return found


def read_verdicts(path: Path) -> dict[str, dict[str, Any]]:
    """The verdict on each claim, by its number. Raises DamagedError; FileNotFoundError."""
    again = "Make it again: dvc repro report"
    found = json_files.read_object(path, again)
    for number, verdict in found.items():
        if wrong := lacking(verdict, _VERDICT):
            raise DamagedError(f"{path}: {one_line(number, 60)} {wrong}. {again}")
    return found


def find_temperature(root: Path, candidate: str) -> float | None:
    """The temperature of a candidate's confidences; None where evaluate has not measured it."""
    path = root / "reports" / "metrics.json"
    measured = read_metrics(path) if path.is_file() else {}
    return measured.get(candidate, {}).get("temperature")


_TARGET: dict[str, Callable[[Any], bool]] = {
    "candidate": is_text,
    "met": lambda value: isinstance(value, bool),
    "lines": are_texts,
}
_JUDGED: dict[str, Callable[[Any], bool]] = {  # where a pruning stage has judged the loss beside the target
    "target": lambda value: isinstance(value, dict),
    "loss_bound": lambda value: value is None or is_number(value),
}
_LATENCY = re.compile(r"latency_ms_b[1-9]\d{0,8}")
_COSTS = ("accuracy", "macs", "file_bytes", "runtime")
_KINDS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("accuracy", "balanced_accuracy", "macro_f1", "worst_class"), is_number),
    **dict.fromkeys(("macs", "params", "file_bytes"), is_number),
    "worst_class_name": lambda value: isinstance(value, str),
    "runtime": lambda value: isinstance(value, str) and value in RUNTIMES,
    "temperature": lambda value: is_number(value) and value > 0,
}
_VERDICT: dict[str, Callable[[Any], bool]] = {
    "claim": lambda value: isinstance(value, str),
    "outcome": lambda value: value in ("proven", "refuted", "not shown"),
    "kind": is_text,
}


def target_lines(targets: Rows) -> list[str]:
    """The sentences of all targets, those of a missed one first."""
    return [line for target in sorted(targets, key=lambda target: bool(target["met"])) for line in target["lines"]]


def network_of(candidate: str) -> str:
    """The network that an export was made of: ``prune`` of ``prune_onnx_int8``, and of ``prune_int8``."""
    ending = next((ending for ending in _EXPORTS if candidate.endswith(ending)), "")
    return candidate.removesuffix(ending)


def open_points(shipped: str, verdicts: Rows, targets: Rows) -> list[str]:
    """Why ``shipped`` is not ready to ship, in words; empty where it is: every claim is proven, one of them is about
    its answers, its targets are met, and no loss beyond prune.tolerance was shown.
    """
    network, own = network_of(shipped), targets_of(shipped, targets)
    lines = [f"{target['candidate']} missed its target" for target in own if not target["met"]]
    lines += [
        f"{target['candidate']} was shown to have lost more than prune.tolerance, {target['loss_bound']:g} points of "
        "accuracy"
        for target in own
        # of which a drop is not the target itself
        if target.get("within_bound") == "refuted" and "max_drop" not in target["target"]
    ]
    lines += [f"{v['outcome']}: {v['claim']}" for v in verdicts if v["outcome"] != "proven"]
    if not verdicts:
        return [*lines, "no claims were made (docs/claims.md has the grammar)"]
    about = [v for v in verdicts if v["kind"] in _ABOUT_ANSWERS]
    if not any(_is_about(v, shipped) for v in about):
        lines.append(f"no claim is about how {network} answers, such as its accuracy (docs/claims.md has the grammar)")
    # 8 bits are another network than the one they were made of; the ladder has judged its own
    judged = any(_first(v) == shipped for v in about) or any(target["candidate"] == shipped for target in own)
    if shipped.endswith(_EIGHT_BITS) and not judged:
        lines.append(f"no claim is about how {shipped} answers: claim that it agrees with {network}")
    return lines


def _first(verdict: Mapping[str, Any]) -> str:
    """Whom a claim is about: the name that it begins with."""
    return str(verdict["claim"]).split()[0]


def _is_about(verdict: Mapping[str, Any], shipped: str) -> bool:
    """Whether a claim is about the answers of the network that ``shipped`` is, compared with another network's or
    counted. An export in floats is the network; one in 8 bits is not."""
    first, *others = str(verdict["claim"]).split()
    same = first == shipped or (network_of(first) == network_of(shipped) and not first.endswith(_EIGHT_BITS))
    return same and not any(network_of(word) == network_of(shipped) for word in others)


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
        + (f" on {row['device']}" if row.get("device", "cpu") != "cpu" else "")
    )


def latency_batches(measured: Metrics) -> list[int]:
    """The batches, images at once, at which latencies were measured."""
    found = {key for row in measured.values() for key in row if _LATENCY.fullmatch(key)}
    return sorted(int(key.removeprefix("latency_ms_b")) for key in found)
