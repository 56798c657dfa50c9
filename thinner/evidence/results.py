"""Reading what stages wrote in reports/ and data/evaluate: one record, of which the page and results.md are made."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Integer, UInt8

from thinner.errors import DamagedError, UserError
from thinner.evidence import decision, ladder, shipping
from thinner.evidence.candidates import FOLDERS, QUANTIZED, in_order
from thinner.evidence.shipping import Metrics, open_points, read_targets
from thinner.files import json_files
from thinner.files.json_files import is_number, lacking
from thinner.measure import devices, operating


@dataclass(frozen=True)
class Environment:
    """Where candidates were evaluated and timed: reports/evaluate/environment.json."""

    cpu: str
    cores: int
    memory_gib: float
    accelerator: str | None
    system: str
    python: str
    libraries: Mapping[str, str]
    latency_threads: int
    latency_repeats: int
    test_images: int
    data_sha256: str


@dataclass(frozen=True)
class Results:
    """What a report is made of; paths and formats are docs/evaluation.md's."""

    metrics: Metrics  # reports/metrics.json
    environment: Environment
    history: Mapping[str, pd.DataFrame]  # reports/<stage>/history.csv
    rounds: Mapping[str, pd.DataFrame]  # candidate -> reports/<stage>/rounds.csv
    index: Integer[np.ndarray, " test"]  # numbers of the test images in the store
    labels: Integer[np.ndarray, " test"]
    predictions: Mapping[str, Integer[np.ndarray, " test"]]
    confidences: Mapping[str, Float[np.ndarray, " test"]]
    images: UInt8[np.ndarray, "images height width channels"]
    classes: Sequence[str]
    data: Mapping[str, Any]  # data/prepared/info.json
    integrity: Mapping[str, Any]  # reports/prepare.json
    params: Mapping[str, Any]  # params.yaml
    verdicts: Sequence[Mapping[str, Any]]  # reports/claims.json
    targets: Sequence[Mapping[str, Any]] = ()  # target.json of every pruning stage
    self_training: Mapping[str, Any] | None = None  # reports/self_train/finetune/decision.json
    # what an evaluation may leave out, or an older one did not know
    reliability: pd.DataFrame | None = None  # reports/evaluate/reliability.csv
    risk_coverage: pd.DataFrame | None = None  # reports/evaluate/risk_coverage.csv
    ladder: pd.DataFrame | None = None  # reports/quantize/ladder.csv
    sensitivity: pd.DataFrame | None = None  # reports/quantize/sensitivity.csv
    corruptions: pd.DataFrame | None = None  # reports/evaluate/corruptions.csv
    points: Mapping[str, Sequence[operating.Point]] = field(default_factory=dict)  # candidate -> its operating points
    devices: Mapping[str, devices.Device] = field(default_factory=dict)  # that bundles were timed on; also in `metrics`
    hashes: Mapping[str, str] = field(default_factory=dict)  # path -> MD5, as in dvc.lock
    # stage -> commit, dirty, seconds, joules of the run that made its result; None where no such run is on record
    runs: Mapping[str, Mapping[str, Any] | None] = field(default_factory=dict)

    @property
    def shipped(self) -> str:
        return str(self.params["ship"]["candidate"])

    @property
    def ready(self) -> bool:
        """Whether that one may be called the one to ship."""
        return not open_points(self.shipped, self.verdicts, self.targets)


def read_results(
    reports: Path,
    evaluated: Path,
    *,
    images: Any,
    classes: Sequence[str],
    data: Mapping[str, Any],
    params: Mapping[str, Any],
    verdicts: Sequence[Mapping[str, Any]] = (),
    runs: Mapping[str, Mapping[str, Any] | None] | None = None,
) -> Results:
    """Gather what the stages left in ``reports`` and in ``evaluated`` (predictions.npz)."""
    measured = read_metrics(reports / "metrics.json")
    timed = devices.read_devices(reports)
    with np.load(evaluated / "predictions.npz", allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    return Results(
        metrics=devices.with_times(measured, timed),
        environment=read_environment(reports / "evaluate" / "environment.json"),
        history=_tables(reports, measured, "history.csv"),
        rounds=_tables(reports, measured, "rounds.csv"),
        index=arrays["index"],
        labels=arrays["labels"],
        predictions={name: arrays[f"predictions.{name}"] for name in measured},
        confidences={name: arrays[f"confidences.{name}"] for name in measured},
        images=images,
        classes=classes,
        data=data,
        params=params,
        verdicts=verdicts,
        targets=read_targets(reports),
        # DVC leaves there what a stage made that params.yaml names no longer
        self_training=decision.read(reports / decision.FOLDERS[decision.LEARNER])
        if (params.get("self_train") or {}).get("networks")
        else None,
        integrity=_read(reports / "prepare.json", _INTEGRITY, "Make it again: dvc repro prepare"),
        reliability=_table(reports / "evaluate" / "reliability.csv"),
        risk_coverage=_table(reports / "evaluate" / "risk_coverage.csv"),
        corruptions=_table(reports / "evaluate" / "corruptions.csv"),
        ladder=_table(reports / "quantize" / ladder.LADDER.name),
        sensitivity=_table(reports / "quantize" / ladder.SENSITIVITY.name),
        points=operating.read_points(reports / "evaluate" / operating.FILE.name),
        devices=timed,
        hashes={"reports/metrics.json": _md5(reports / "metrics.json")},
        runs=runs or {},
    )


def _tables(reports: Path, names: Iterable[str], file: str) -> dict[str, pd.DataFrame]:
    found = ((name, _table(reports / (QUANTIZED.get(name) or FOLDERS.get(name, name)) / file)) for name in names)
    return {name: table for name, table in found if table is not None}


def _table(path: Path) -> pd.DataFrame | None:
    words = {"layer": str, "kind": str, "float_names": str}  # of quantize: a layer may be called 8
    found = pd.read_csv(path, dtype=words) if path.is_file() else None
    return None if found is None or found.empty else found.fillna({"float_names": ""})


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()  # DVC's hash of a file


def read_metrics(path: Path) -> Metrics:
    """The candidates' numbers, ordered from the teacher to the smallest."""
    try:
        found = shipping.read_metrics(path, complete=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file. Make it: thinner run, or dvc repro evaluate") from None
    return in_order(found)


def read_environment(path: Path) -> Environment:
    """Raises DamagedError; FileNotFoundError."""
    found = _read(path, _ENVIRONMENT, "Make it again: dvc repro evaluate")
    return Environment(**{item.name: found[item.name] for item in fields(Environment)})


def _read(path: Path, kinds: Mapping[str, Callable[[Any], bool]], mend: str) -> dict[str, Any]:
    found = json_files.read_object(path, mend)
    if wrong := lacking(found, kinds):
        raise DamagedError(f"{path}: {wrong}. {mend}")
    return found


def _is_string(value: Any) -> bool:
    return isinstance(value, str)


def _counts(value: Any) -> bool:
    return isinstance(value, dict) and is_number(value.get("count"))


_ENVIRONMENT: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("cpu", "system", "python", "data_sha256"), _is_string),
    **dict.fromkeys(("cores", "memory_gib", "latency_threads", "latency_repeats", "test_images"), is_number),
    "accelerator": lambda value: value is None or isinstance(value, str),
    "libraries": lambda value: isinstance(value, dict) and all(map(_is_string, value.values())),
}
_INTEGRITY: dict[str, Callable[[Any], bool]] = {
    "origin": _is_string,
    "unreadable": _counts,
    "duplicates": _counts,
    "leakage": lambda value: (
        isinstance(value, dict)
        and isinstance(value.get("count"), dict)
        and all(map(is_number, value["count"].values()))
    ),
}


def find_commit(md5: str) -> str:
    """The command that names the commit whose dvc.lock has a file with this hash.

    The commit itself cannot stand in the page: the page is an output, and would differ after every commit.
    """
    return f"git log -1 --format=%H -S {md5} -- dvc.lock"
