"""The end of a run: what each stage took and made, whether the target was met, what was proven, which networks matter,
and what to do next. Told to a person in the terminal, and to programs as one JSON object (`thinner run --json FILE`).
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from flows.console import console, networks_table, print_verdicts, results_table
from tasks.lineage import Node
from tasks.record import candidates as made
from thinner.config import load_params
from thinner.errors import UserError
from thinner.evidence import candidates, decision, shipping
from thinner.files import json_files, whole
from thinner.words import duration, milliseconds, percent, si

MARK = "thinner run"  # "made_by" of the file that --json writes: another one is not overwritten
# Prefect's name of the state in which a stage ended -> what a person is told; all else has not run
STATES = {
    "Completed": "ran",
    "Restored": "restored",
    "Cached": "up to date",
    "Failed": "failed",
    "Crashed": "failed",
    "TimedOut": "timed out",
    "Cancelled": "stopped",
}
# Verdicts of a run: what --json says first, and the exit code that goes with it. "done" is a run of some stages only.
CODES = {"to ship": 0, "nothing to ship": 0, "done": 0, "failed": 1, "refused": 2, "stopped": 130}


@dataclass(frozen=True)
class StageEnd:
    """How a stage ended in this run. ``seconds``: what it took now; None where it did not run."""

    name: str
    state: str
    seconds: float | None
    made: str

    @property
    def time(self) -> str:
        if self.seconds is None:
            return self.state
        took = duration(self.seconds)
        return took if self.state == "ran" else f"{self.state}, {took}"


def stages(root: Path, nodes: Sequence[Node], states: Mapping[str, str], took: Mapping[str, float]) -> list[StageEnd]:
    """``states``: by stage Prefect's name of the state it ended in; ``took``: seconds, of those that ran."""
    ends = []
    for node in nodes:
        state = STATES.get(states.get(node.name, ""), "not run")
        there = state in ("ran", "restored", "up to date")
        ends.append(StageEnd(node.name, state, took.get(node.name), _made(root, node) if there else ""))
    return ends


def _made(root: Path, node: Node) -> str:
    """What the stage's result is, in a few words; a file that cannot be read only makes it fewer."""
    known = {
        "prepare": _splits,
        "self_train": _self_trained,
        "teach": _outputs,
        "quantize": _ladder,
        "export": _exports,
        "evaluate": _measured,
        "report": _claims,
    }
    with contextlib.suppress(OSError, UserError, ValueError, KeyError, TypeError):
        return known.get(node.name.partition("@")[0], _network)(root, root / node.outs[0])
    return ", ".join(node.outs)


def _splits(root: Path, folder: Path) -> str:
    counts = json_files.read_object(folder / "info.json", "")["counts"]
    return f"{', '.join(f'{count:,} {name}' for name, count in counts.items() if count)} images"


def _outputs(root: Path, folder: Path) -> str:
    teachers = json_files.read_object(folder / "signals.json", "")["teachers"]
    images = len(np.load(folder / "index.npy", mmap_mode="r", allow_pickle=False))
    return f"{' and '.join(teachers)}'s outputs for {images:,} images"


def _network(root: Path, folder: Path) -> str:
    spec = json_files.read_object(folder / "model.json", "")
    size = si((folder / "model.safetensors").stat().st_size, "B")
    target = next((t for t in shipping.read_targets(root / "reports") if folder == _place(root, t["candidate"])), {})
    if "val_accuracy" in spec:
        said = f"right on {percent(spec['val_accuracy'])} of the validation images"
    else:
        measured = target["unit"] == "ms"
        has = milliseconds(target["size"]) if measured else si(target["size"])
        said = f"round {target['round']}, {has} {target['unit']}"
    return f"{folder.relative_to(root)}: {said}, {size}"


def _self_trained(root: Path, folder: Path) -> str:
    found = decision.read(folder) or {}
    teaches = "it teaches" if found["chosen"] == decision.LEARNER else "not shown better: finetune teaches"
    return f"{_network(root, folder)}; {teaches}"


def _place(root: Path, name: str) -> Path | None:
    return made.made(root).get(name)


def _ladder(root: Path, folder: Path) -> str:
    found = next((t for t in shipping.read_targets(root / "reports") if "rung" in t), None)
    if found is None:
        return "nothing is quantised"
    size = si((folder / found["candidate"] / "model.onnx").stat().st_size, "B")
    return f"{found['candidate']}: {found['rung']}, {'holds' if found['met'] else 'DOES NOT HOLD'}, {size}"


def _exports(root: Path, folder: Path) -> str:
    names = sorted(path.parent.name for path in folder.glob("*/model.json"))
    return f"{len(names)} exports in {folder.relative_to(root)}"


def _measured(root: Path, folder: Path) -> str:
    count = len(shipping.read_metrics(root / "reports" / "metrics.json"))
    images = json_files.read_object(root / "reports" / "evaluate" / "environment.json", "")["test_images"]
    return f"{count} candidates on {images:,} test images"


def _claims(root: Path, page: Path) -> str:
    outcomes = [v["outcome"] for v in shipping.read_verdicts(root / "reports" / "claims.json").values()]
    return f"{page.relative_to(root)}: {outcomes.count('proven')} of {len(outcomes)} claims proven"


# --- for a person ---


def print_stages(ends: Sequence[StageEnd]) -> None:
    """A line per stage."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("stage", "time", "what came out"):
        table.add_column(heading, overflow="fold")
    for end in ends:
        style = "red" if end.state in ("failed", "timed out") else "dim" if end.state != "ran" else None
        table.add_row(end.name, end.time, end.made, style=style)
    console.print(table)
    console.print()


def print_results(root: Path, everything: bool = False) -> tuple[str, str]:
    """Whether targets were met, what was proven, what to ship, the networks that matter (``everything``: all that was
    measured), where to look, what next. Returns the verdict and the sentence about what to ship."""
    results = _Results(root)
    for target in results.targets:
        for number, line in enumerate(target["lines"]):
            console.print(line, style="bold green" if target["met"] and number == 0 else "bold red")
    print_verdicts(results.verdicts)
    if results.measured:
        line = results.ship_line
        console.print(f"\n{line}", style="bold" if line.startswith("To ship") else "bold yellow")
        if everything:
            console.print(results_table(results.measured))
        else:
            console.print(networks_table(results.measured, results.shipped, results.ready))
            shown = candidates.that_matter(results.measured, results.shipped)
            if others := [name for name in results.measured if name not in shown]:
                console.print(f"Also measured: {', '.join(others)}. All of them: thinner report --all", style="dim")
    console.print()
    for place, path, note in _places(root, results):
        console.print(f"{place:<8} {path}{f'  ({note})' if note else ''}")
    # where `make run` took an environment that is not active
    activate = [] if shutil.which("thinner") else ["         . .venv/bin/activate         then, for example:"]
    lines = [
        "Next     make ui                      compare runs in MLflow, see this one in Prefect",
        *activate,
        "         thinner predict photo.jpg    what the small network says of a picture",
        "         thinner bundle               take it away: runs without torch and this project",
        "         dvc repro                    the same pipeline without Prefect",
        "         dvc metrics diff             what changed since the last commit",
    ]
    console.print("\n" + "\n".join(lines))
    return results.verdict, results.ship_line


def results(root: Path) -> tuple[str, str]:
    """The verdict of a run that went as far as its report, and the sentence about what to ship."""
    found = _Results(root)
    return found.verdict, found.ship_line


def _places(root: Path, results: _Results) -> list[tuple[str, str, str]]:
    found = []
    if (root / "reports" / "report.html").is_file():
        found.append(("Report", "reports/report.html", "open it in a browser"))
    if results.measured and (folder := _place(root, results.shipped)):
        note = "" if results.ready else "of which not all is proven"
        found.append(("Network", str(folder.relative_to(root)), note))
    return found


# --- for programs ---


class _Results:
    """What the last stages left in reports/; empty where they have left nothing."""

    def __init__(self, root: Path) -> None:
        metrics, claims = (root / "reports" / f"{name}.json" for name in ("metrics", "claims"))
        self.measured = shipping.read_metrics(metrics, complete=True) if metrics.is_file() else {}
        self.verdicts = shipping.read_verdicts(claims) if claims.is_file() else {}
        self.targets = shipping.read_targets(root / "reports")
        self.shipped = load_params(root / "params.yaml").ship.candidate
        rows = list(self.verdicts.values())
        self.ready = self.shipped in self.measured and not shipping.open_points(self.shipped, rows, self.targets)
        self.verdict = "to ship" if self.ready else "nothing to ship"
        self.ship_line = "Nothing was evaluated."
        if self.measured:
            self.ship_line = shipping.ship_line(self.measured, self.shipped, rows, self.targets)


def check_file(path: Path) -> None:
    """Raise UserError where ``path`` cannot be what --json writes, before anything runs."""
    check_place("--json", path)
    if path.exists():
        with contextlib.suppress(OSError, ValueError, AttributeError):
            if json.loads(path.read_bytes()).get("made_by") == MARK:
                return
        raise UserError(f"--json {path}: is there, and was not written by {MARK}. Name another file, or remove it")


def check_place(option: str, path: Path) -> None:
    """Raise UserError where no file can be made at the ``path`` that an option names, before anything runs."""
    if path.is_dir():
        raise UserError(f"{option} {path}: is a folder. Name a file in it")
    if path.exists():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        path.unlink()
    except OSError as error:
        raise UserError(f"{option} {path}: cannot be written ({error.strerror}). Name another file") from None


def as_json(root: Path, verdict: str, message: str, ends: Sequence[StageEnd], whole: bool) -> dict[str, Any]:
    """One object; ``verdict`` is one of CODES. ``whole``: the run went as far as its report, so results are its own."""
    results = _Results(root) if whole else None
    found: dict[str, Any] = {
        "made_by": MARK,
        "verdict": verdict,
        "exit_code": CODES[verdict],
        "message": message,
        "ship": results.shipped if results and results.ready else None,
        "target": results.targets if results else [],
        "claims": [{key: row.get(key) for key in ("claim", "outcome", "numbers")} for row in results.verdicts.values()]
        if results
        else [],
        "stages": [{"name": e.name, "state": e.state, "seconds": e.seconds, "made": e.made} for e in ends],
        "places": {},
    }
    if results:
        files = ("reports/report.html", "reports/results.md", "reports/metrics.json", "reports/claims.json")
        found["places"] = {Path(file).name: file for file in files if (root / file).is_file()}
        found["places"]["networks"] = {name: str(folder.relative_to(root)) for name, folder in made.made(root).items()}
    return found


def write(path: Path, found: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    text = json.dumps(found, indent=2, ensure_ascii=False) + "\n"
    try:
        whole.write_text(path, text)
    except OSError as error:
        raise UserError(f"--json {path}: cannot be written ({error.strerror}). Name another file") from None
