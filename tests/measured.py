"""What the stages would have written of four candidates and ten test images, by hand; and pages to read it from."""

import json
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from thinner.evidence.results import Environment, Results

CLASSES = ["bag", "</script><b>coat", "boot"]
LABELS = np.array([0, 0, 1, 1, 2, 2, 0, 1, 2, 0])
TEACHER = np.array([0, 0, 1, 1, 2, 2, 0, 1, 2, 1])  # 9 of 10
SMALL = np.array([1, 0, 1, 2, 2, 2, 0, 1, 2, 1])  # 7 of 10: wrong on 0, 3 and, like the teacher, on 9
CONFIDENCE = np.array([0.6, 0.9, 0.9, 0.8, 0.9, 0.9, 0.9, 0.9, 0.9, 0.99])
INDEX = np.arange(100, 110)


def row(accuracy: float, size: int, latency_ms: float, runtime: str = "pytorch") -> dict[str, Any]:
    return {
        "accuracy": accuracy,
        "macro_f1": accuracy,
        "agreement": 0.8,
        "params": size,
        "params_nonzero": size,
        "macs": 10 * size,
        "file_bytes": 4 * size,
        "latency_ms_b1": latency_ms / 8,
        "latency_ms_b1_p95": latency_ms / 7,
        "latency_ms_b64": latency_ms,
        "latency_ms_b64_p95": 2 * latency_ms,
        "runtime": runtime,
        "device": "cpu",
        "threads": 1,
    }


METRICS = {
    "finetune": row(0.9, 3_000_000, 120.0),
    "distill": row(0.8, 60_000, 8.0),
    "prune": row(0.7, 30_000, 4.0),
    "prune_onnx": row(0.7, 30_000, 3.0, "onnxruntime"),
}
ROUNDS = pd.DataFrame(
    {
        "round": [0, 1],
        "macs": [600_000, 300_000],
        "params": [60_000, 30_000],
        "accuracy_before": [0.8, 0.5],
        "accuracy_after": [0.8, 0.75],
        "chosen": [False, True],
    }
)
LADDER = pd.DataFrame(
    {
        "rung": ["float", "static", "mixed"], "calibration": [None, "minmax", "minmax"], "steps": [None, 0, 0],
        "float_layers": [None, 0, 1], "float_names": [None, None, "stem"], "accuracy": [0.75, 0.5, 0.75],
        "agreement": [1.0, 0.6, 0.9], "loss_points": [0.0, 25.0, 0.0], "loss_low": [-1.0, 20.0, -0.5],
        "loss_high": [1.0, 30.0, 0.4], "file_bytes": [120_000, 30_000, 40_000], "latency_ms": [4.0, 2.0, 3.0],
        "holds": [True, False, True], "chosen": [False, False, True],
    }
)  # fmt: skip
SENSITIVITY = pd.DataFrame(
    {"layer": ["fc", "stem"], "kind": ["Gemm", "Conv"], "weights": [50, 100], "divergence": [0.01, 0.5],
     "agreement": [1.0, 0.6]}
)  # fmt: skip
ENVIRONMENT = Environment(
    cpu="Some CPU",
    cores=2,
    memory_gib=8,
    accelerator=None,
    system="Linux x86_64",
    python="3.11.9",
    libraries={"torch": "2.14.1"},
    latency_threads=1,
    latency_repeats=50,
    test_images=10,
    data_sha256="ab" * 32,
)
INTEGRITY = {
    "origin": "made by hand",
    "unreadable": {"count": 0},
    "duplicates": {"count": 4},
    "leakage": {"count": {"labelled_test": 3}},
}


# what a fuller evaluation writes beside it
RELIABILITY = pd.DataFrame(
    {
        "candidate": ["finetune"] * 4 + ["prune"] * 4,
        "scaled": [0, 0, 1, 1] * 2,
        "bin": [0, 1] * 4,
        "confidence": [0.6, 0.9, 0.62, 0.85, 0.7, 0.95, 0.65, 0.8],
        "accuracy": [0.61, 0.92, 0.6, 0.88, 0.5, 0.9, 0.6, 0.82],
        "images": [5] * 8,
    }
)
RISK = pd.DataFrame({"candidate": ["prune"] * 3, "coverage": [0.5, 0.8, 1.0], "risk": [0.01, 0.125, 0.3]})
CORRUPTIONS = pd.DataFrame(
    {
        "candidate": ["prune"] * 4,
        "corruption": ["noise", "noise", "blur", "blur"],
        "severity": [1, 3, 1, 3],
        "accuracy": [0.6, 0.4, 0.7, 0.5],  # mean 0.55; clean 0.7
    }
)


class Page(HTMLParser):
    """Tags with their attributes, and the visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._hidden = 0
        self._goes_on = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._goes_on = tag == "wbr"
        self._hidden += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if self._goes_on and self.text:  # a word that may be broken there
            self.text[-1] += data
        elif not self._hidden:
            self.text.append(data)
        self._goes_on = False

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def with_candidates(results: Results, **rows: dict[str, Any]) -> Results:
    """With further candidates that predict what the small one does."""
    return replace(
        results,
        metrics={**results.metrics, **rows},
        predictions={**results.predictions, **dict.fromkeys(rows, SMALL)},
        confidences={**results.confidences, **dict.fromkeys(rows, CONFIDENCE)},
    )


def with_pruned_teacher(results: Results) -> Results:
    curve, names = results.history["finetune"], ("finetune", "distill", "prune", "prune_finetune", "prune_onnx")
    return replace(
        results,
        metrics={name: METRICS.get(name, row(0.85, 1_500_000, 60.0)) for name in names},
        history={**results.history, "prune_finetune": curve},
        rounds={"prune": ROUNDS, "prune_finetune": ROUNDS.assign(macs=[30_000_000, 15_000_000])},
        predictions={**results.predictions, "prune_finetune": TEACHER},
        confidences={**results.confidences, "prune_finetune": CONFIDENCE},
    )


def row_of(html: str, table: str, name: str) -> str:
    """The words of one row of the table with that label."""
    body = html.partition(f'aria-label="{table}"')[2].partition("</table>")[0]
    (found,) = (row for row in body.split("<tr") if f'data-value="{name}"' in row)
    return Page("<tr" + found).words


def write_inputs(folder: Path, results: Results) -> tuple[Path, Path]:
    reports, evaluated = folder / "reports", folder / "evaluate"
    places = {"prune_finetune": "prune_also/finetune"}
    for path in (reports / "evaluate", evaluated, *(reports / places.get(name, name) for name in results.history)):
        path.mkdir(parents=True)
    (reports / "metrics.json").write_text(json.dumps(results.metrics, sort_keys=True))
    (reports / "evaluate" / "environment.json").write_text(json.dumps(asdict(results.environment)))
    verdicts = {f"claim_{n}": verdict for n, verdict in enumerate(results.verdicts)}
    (reports / "claims.json").write_text(json.dumps(verdicts))
    (reports / "prepare.json").write_text(json.dumps(results.integrity))
    for name, frame in results.history.items():
        frame.to_csv(reports / places.get(name, name) / "history.csv", index=False)
    for name, frame in results.rounds.items():
        frame.to_csv(reports / places.get(name, name) / "rounds.csv", index=False)
    np.savez(
        evaluated / "predictions.npz",
        index=results.index,
        labels=results.labels,
        **{f"predictions.{name}": values for name, values in results.predictions.items()},
        **{f"confidences.{name}": values for name, values in results.confidences.items()},
    )
    return reports, evaluated
