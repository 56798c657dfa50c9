"""Times the networks in the folder `bench` beside this file on this machine. It needs numpy and onnxruntime.

    python bench.py                              writes bench.csv; takes a minute or more, by machine
    python bench.py --threads 4 --rounds 100

Then bring bench.csv back to where the bundle was made: thinner device add NAME bench.csv

Networks take turns: a round times each of them once, in an order that is shuffled anew, so what slows the machine down
slows all of them. A line of the CSV is one time of one network, with the temperature and the clock of the processor at
that moment where the system tells them (Linux), else nothing. Have nothing else run meanwhile.
"""

from __future__ import annotations

import argparse
import csv
import gc
import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

HERE = Path(__file__).resolve().parent
COLUMNS = (
    "candidate", "weights_sha256", "batch", "round", "latency_ms", "threads", "temperature_c", "clock_mhz", "cpu",
    "cores", "system", "onnxruntime",
)  # fmt: skip
WARMUP = 5  # rounds that are thrown away: they pay for memory and for the choice of kernels


def processor() -> str:
    """What the system calls it: the board, where it says that (a Raspberry Pi), else the processor."""
    try:
        return Path("/proc/device-tree/model").read_text(encoding="utf-8").strip("\0\n ")
    except OSError:
        pass
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def temperature() -> str:
    """Of the hottest zone, in degrees Celsius."""
    found = []
    for zone in Path("/sys/class/thermal").glob("thermal_zone*/temp"):
        try:
            found.append(int(zone.read_text()) / 1000)
        except (OSError, ValueError):
            continue
    return f"{max(found):.1f}" if found else ""


def clock() -> str:
    """Of the first core, in MHz."""
    try:
        return str(int(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq").read_text()) // 1000)
    except (OSError, ValueError):
        return ""


def opened(file: Path, sha256: str, threads: int) -> onnxruntime.InferenceSession:
    if hashlib.sha256(file.read_bytes()).hexdigest() != sha256:
        sys.exit(f"{file.name}: is not the file that was bundled (its SHA-256 differs). Unpack the bundle again")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # idle threads would spin on, and take the processor from the network that is timed next
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Time the bundle's networks here, and write a CSV.")
    parser.add_argument("--rounds", type=int, default=50, help="times of each network; 10 or more for claims")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batches", default="1", help="images at once, such as 1,64")
    parser.add_argument("--out", type=Path, default=Path("bench.csv"))
    asked = parser.parse_args(arguments)
    batches = [int(text) if text.strip().isdigit() else 0 for text in asked.batches.split(",")]
    if min(batches) < 1 or asked.threads < 1 or asked.rounds < 1:
        parser.error("--batches, --threads and --rounds: whole numbers of 1 or more")
    networks = json.loads((HERE / "bench" / "networks.json").read_text(encoding="utf-8"))
    sessions = {
        name: opened(HERE / "bench" / about["file"], about["sha256"], asked.threads) for name, about in networks.items()
    }
    here = (processor(), os.cpu_count(), f"{platform.system()} {platform.machine()}", onnxruntime.__version__)
    rng = np.random.default_rng(0)
    rows: list[tuple[object, ...]] = []
    for batch in batches:
        inputs = {
            name: rng.normal(size=(batch, *about["input"])).astype(np.float32) for name, about in networks.items()
        }
        for number in range(-WARMUP, asked.rounds):
            gc.collect()
            gc.disable()
            for name in rng.permutation(list(networks)):
                feed = {sessions[name].get_inputs()[0].name: inputs[name]}
                start = time.perf_counter_ns()
                sessions[name].run(["logits"], feed)
                took = (time.perf_counter_ns() - start) / 1e6
                if number >= 0:
                    now = (f"{took:.6f}", asked.threads, temperature(), clock())
                    rows.append((name, networks[name]["weights_sha256"], batch, number, *now, *here))
            gc.enable()
    with asked.out.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        table.writerows(rows)
    for batch in batches:
        for name in networks:
            times = [float(str(row[4])) for row in rows if (row[0], row[2]) == (name, batch)]
            print(f"{name}, batch {batch}: {np.median(times):.3g} ms")
    print(
        f"{asked.out}: {len(rows)} times, {asked.threads} thread(s)\nNext     thinner device add NAME {asked.out.name}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
