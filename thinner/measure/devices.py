"""Times that another machine took with a bundle's bench.py: reports/devices/NAME.csv, one file for each device.

A device's times are of networks by their SHA-256. Those of other weights than the present ones are no times of these
networks, and are not shown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from thinner.errors import DamagedError, UserError, one_line
from thinner.files import json_files
from thinner.measure.profiling import median_interval, summarise_latency
from thinner.runtimes import catalogue

FOLDER = Path("reports", "devices")
NAME = re.compile(r"[A-Za-z_][\w-]{0,39}")  # what a claim can name
RESERVED = tuple(catalogue.RUNTIMES)  # in claims
FEWEST_ROUNDS = 10
_NUMBERS = {"batch": 1, "round": 0, "latency_ms": 0, "threads": 1, "cores": 1}  # column -> the least
_TEXTS = ("candidate", "weights_sha256", "cpu", "system", "onnxruntime")


@dataclass(frozen=True)
class Device:
    """What bench.py measured there."""

    name: str
    cpu: str
    system: str
    threads: int
    weights: Mapping[str, str]  # candidate -> SHA-256 of the weights that it was exported from
    # batch -> candidate -> ms by round; times of one round were taken in turn
    latency_ms: Mapping[int, Mapping[str, Float[np.ndarray, " rounds"]]]

    def of(self, weights: Mapping[str, str]) -> Device:
        """The same with the times of these weights alone."""
        kept = [name for name, sha256 in self.weights.items() if weights.get(name) == sha256]
        times = {
            batch: {name: table[name] for name in kept if name in table} for batch, table in self.latency_ms.items()
        }
        return Device(
            self.name, self.cpu, self.system, self.threads,
            {name: self.weights[name] for name in kept}, {batch: table for batch, table in times.items() if table},
        )  # fmt: skip


def check_name(name: str) -> None:
    """Raises UserError where a claim could not name the device so."""
    if not NAME.fullmatch(name) or name in RESERVED:
        raise UserError(
            f"device '{one_line(name, 60)}': give it a name of letters, digits, _ and -, that begins with a letter and "
            f"is none of {', '.join(RESERVED)}, such as pi5"
        )


def read_device(path: Path, name: str) -> Device:
    """The device of a file that bench.py wrote. Raises UserError; DamagedError where it is no such file."""

    def wrong(what: str) -> DamagedError:
        return DamagedError(f"{path}: {one_line(what)}. Make it again on the device: python bench.py")

    try:
        rows = pd.read_csv(path, dtype=dict.fromkeys(_TEXTS, str), keep_default_na=False, na_values=())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file. It is what bench.py of a bundle writes on the device") from None
    except Exception as error:  # pandas has many for what is no table
        raise wrong(f"is no CSV ({one_line(error)})") from error
    if missing := [column for column in (*_TEXTS, *_NUMBERS) if column not in rows.columns]:
        raise wrong(f"has no column {', '.join(missing)}")
    if rows.empty:
        raise wrong("has no times")
    for column, least in _NUMBERS.items():
        numbers = pd.to_numeric(rows[column], errors="coerce").to_numpy(dtype=np.float64)
        if not np.isfinite(numbers).all() or not (numbers >= least).all() or not (numbers < 1e9).all():
            raise wrong(f"has something in {column} that cannot be")
        if column != "latency_ms" and (numbers != np.round(numbers)).any():
            raise wrong(f"has a fraction in {column}")
        rows[column] = numbers if column == "latency_ms" else numbers.astype(np.int64)
    if (rows["latency_ms"] <= 0).any():
        raise wrong("has a time of 0")
    for column in ("threads", "cpu", "system", "onnxruntime"):
        if rows[column].nunique() > 1:
            raise wrong(
                f"is of several machines or settings: {column} is {' and '.join(map(str, rows[column].unique()[:2]))}"
            )
    if rows.groupby("candidate")["weights_sha256"].nunique().max() > 1:
        raise wrong("has two networks of one name")
    return Device(
        name=name,
        cpu=one_line(rows["cpu"].iloc[0], 80),
        system=one_line(rows["system"].iloc[0], 80),
        threads=int(rows["threads"].iloc[0]),
        weights={str(key): str(value) for key, value in rows.groupby("candidate")["weights_sha256"].first().items()},
        latency_ms=_times(rows, wrong),
    )


def _times(rows: Any, wrong: Any) -> dict[int, dict[str, np.ndarray]]:
    times: dict[int, dict[str, np.ndarray]] = {}
    for batch, table in rows.groupby("batch"):
        by_name = {str(name): own.sort_values("round") for name, own in table.groupby("candidate")}
        rounds = next(iter(by_name.values()))["round"].to_numpy()
        if len(rounds) < FEWEST_ROUNDS or len(np.unique(rounds)) < len(rounds):
            raise wrong(f"has {len(np.unique(rounds))} rounds at batch {batch}; {FEWEST_ROUNDS} are needed, each once")
        if any(not np.array_equal(own["round"].to_numpy(), rounds) for own in by_name.values()):
            raise wrong(f"has not the same rounds of all networks at batch {batch}")
        times[int(batch)] = {name: own["latency_ms"].to_numpy(dtype=np.float64) for name, own in by_name.items()}
    return times


def read_devices(reports: Path) -> dict[str, Device]:
    """The devices of ``reports``/devices, each with the times of those weights alone that evaluate measured; without
    those that have none. Raises DamagedError."""
    environment = reports / "evaluate" / "environment.json"
    again = "Make it again: dvc repro evaluate"
    weights = json_files.read_object(environment, again).get("weights_sha256", {}) if environment.is_file() else {}
    if not isinstance(weights, dict):
        raise DamagedError(f"{environment}: has weights_sha256: {one_line(repr(weights), 60)}. {again}")
    found = {
        path.stem: read_device(path, path.stem).of(weights) for path in sorted((reports / FOLDER.name).glob("*.csv"))
    }
    return {name: device for name, device in found.items() if device.weights}


def with_times(measured: Mapping[str, Mapping[str, Any]], devices: Mapping[str, Device]) -> dict[str, dict[str, Any]]:
    """``measured`` with a median and its 95 % interval for each device and batch: ``latency_ms_b1_on_pi5``, and
    ``low_ms_b1_on_pi5`` and ``high_ms_b1_on_pi5``."""
    rows = {name: dict(row) for name, row in measured.items()}
    for device in devices.values():
        for batch, table in device.latency_ms.items():
            for name, samples in table.items():
                if name in rows:
                    where = f"b{batch}_on_{device.name}"
                    rows[name][f"latency_ms_{where}"] = summarise_latency(samples)[0]
                    low, high = median_interval(samples)
                    rows[name] |= {f"low_ms_{where}": low, f"high_ms_{where}": high}
    return rows
