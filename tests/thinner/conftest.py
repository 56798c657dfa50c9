"""Results, as pages and tables are made of them."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tests.measured import (
    CLASSES,
    CONFIDENCE,
    CORRUPTIONS,
    ENVIRONMENT,
    INDEX,
    INTEGRITY,
    LABELS,
    METRICS,
    RELIABILITY,
    RISK,
    ROUNDS,
    SMALL,
    TEACHER,
)
from thinner.evidence.results import Results


@pytest.fixture
def results() -> Results:
    steps = pd.DataFrame({"step": [10.0, 20.0], "loss": [1.0, 0.5], "val_accuracy": [0.5, 0.75]})
    return Results(
        metrics=METRICS,
        environment=ENVIRONMENT,
        history={"finetune": steps, "prune": pd.concat([steps, steps])},
        rounds={"prune": ROUNDS},
        index=INDEX,
        labels=LABELS,
        predictions={"finetune": TEACHER, "distill": SMALL, "prune": SMALL, "prune_onnx": SMALL},
        confidences=dict.fromkeys(METRICS, CONFIDENCE),
        images=np.random.default_rng(0).integers(0, 255, (110, 8, 8, 1), dtype=np.uint8),
        classes=CLASSES,
        data={"source": "folder:data/raw", "counts": {"labelled": 5, "test": 10}},
        integrity=INTEGRITY,
        params={"run": {"seed": 7}, "prune": {"source": "distill"}, "ship": {"candidate": "prune"}},
        verdicts=[
            {"claim": "distill beats <prune>", "kind": "beats", "outcome": "not shown", "numbers": "+1.00 points"}
        ],
        hashes={"reports/metrics.json": "c0ffee"},
    )


@pytest.fixture
def fuller(results: Results) -> Results:
    more = {
        "nll": 0.512, "brier": 0.2, "ece": 0.081, "temperature": 1.5, "nll_scaled": 0.4, "brier_scaled": 0.19,
        "ece_scaled": 0.0123, "aurc": 0.0456, "throughput_b64": 16_000.0, "latency_ms_b64_low": 3.9,
        "latency_ms_b64_high": 4.2, "peak_memory_bytes": 2_500_000,
    }  # fmt: skip
    measured = {**METRICS, "prune": {**METRICS["prune"], **more}}
    return replace(results, metrics=measured, reliability=RELIABILITY, risk_coverage=RISK, corruptions=CORRUPTIONS)
