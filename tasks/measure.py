"""Networks measured beside the graph, for `thinner search`: `python -m tasks.measure OUT SPLIT NAME=FOLDER ...`

    --format onnx     exported first, and measured in that format's runtime; what is an export stays as it is
    --of NAME=FOLDER  what an export is of, and is counted in its place: an export has neither parameters nor MACs
    --batches 1 64    and milliseconds at these batch sizes, the networks taking turns as in evaluate

It runs where data/prepared and params.yaml are those that the networks were made with, and writes into OUT
`measured.json` (an object per network), `predictions.npz` and, with batches, `latency.csv`, the last two as evaluate
does. SPLIT is validation, by which one may choose; or test, of which a search asks once, when all is chosen.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tasks.environment import set_environment
from tasks.evaluate import WARMUP
from tasks.export import calibration_images
from tasks.machine import keep_memory, set_up_torch
from tasks.stage import die_with_parents
from thinner.config import load_params
from thinner.data.store import Store, open_store
from thinner.errors import UserError
from thinner.measure import profiling
from thinner.measure.scores import METRICS, score
from thinner.params import Params
from thinner.predict import Candidate, calls_on, choose_device, open_candidate, predict_logits, weights_sha256
from thinner.runtimes import catalogue


def measure(
    out: Path,
    split: str,
    places: dict[str, Path],
    params: Params,
    format_: str | None,
    batches: Sequence[int],
    counted: Mapping[str, Path] | None = None,
) -> dict[str, dict[str, Any]]:
    """Scores (ratios), params, macs, file_bytes and latency_ms_bN of each network in ``places``, by its name; they are
    written into ``out`` as well. Raises UserError: a network is not there, or its runtime is not installed."""
    store = open_store("data/prepared")
    index = store.splits[split]
    labels = np.asarray(store.labels[index])
    device, threads = choose_device(params.run.device), params.evaluate.latency_threads
    found: dict[str, dict[str, Any]] = {}
    predictions, calls = {}, {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, place in places.items():
            network = open_candidate((counted or {}).get(name, place), device, 0, params.run.channels_last)
            if catalogue.in_folder(place) is not None:
                shipped, candidate = place, open_candidate(place, device, threads)
            elif format_ is None:
                shipped, candidate = place, network
            else:
                shipped = export(place, Path(scratch) / name, format_, store, params)
                candidate = open_candidate(shipped, device, threads)
            logits = predict_logits(candidate, store.images, index, params.evaluate.batch_size)
            predictions[name] = logits.argmax(axis=1)
            counts = np.zeros((len(store.classes), len(store.classes)), dtype=np.int64)
            np.add.at(counts, (labels, predictions[name]), 1)
            found[name] = {
                **{metric: score(metric, counts) for metric in METRICS},
                **_count(network),
                "file_bytes": profiling.file_bytes(shipped),
                "runtime": candidate.runtime,
                "weights_sha256": weights_sha256(place),
            }
            calls[name] = candidate
        rows = _time(calls, store, index, batches, params, found)
    out.mkdir(parents=True, exist_ok=True)
    np.savez(
        out / "predictions.npz",
        allow_pickle=False,
        index=index,
        labels=labels,
        **{f"predictions.{name}": values.astype(np.int64) for name, values in predictions.items()},
    )
    if batches:
        with (out / "latency.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([("candidate", "batch", "round", "latency_ms"), *rows])
    (out / "measured.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found


def export(place: Path, target: Path, format_: str, store: Store, params: Params) -> Path:
    """The network in ``place`` as the stage export would write it into ``target``, which is returned."""
    from thinner.compress.quantization import quantise_onnx  # onnx takes a second
    from thinner.data import views
    from thinner.networks import checkpoint
    from thinner.runtimes.protocol import Source

    runtime = catalogue.OF[format_]
    catalogue.require(runtime)
    loaded = checkpoint.load(place)
    about = {"classes": loaded.spec["classes"], "preprocessing": loaded.preprocessing.as_json()}
    images = calibration_images(store, params.export.calibration_images, params.run.seed)
    target.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        inputs = views.preprocess(images, loaded.preprocessing).numpy()
        given = Source(loaded.model.eval(), inputs, about, params.export.opset, Path(scratch), quantise_onnx)
        catalogue.FORMATS[format_].write(given, target / runtime.files[0])
    checkpoint.write_spec(target, {**loaded.spec, "format": format_}, *runtime.files)
    return target


def _count(network: Candidate) -> dict[str, int]:
    if network.model is None:
        raise UserError("an export has neither parameters nor MACs. Say what it is of: --of NAME=FOLDER")
    macs = profiling.count_macs(network.model, network.preprocessing.shape)
    return {"params": profiling.count_params(network.model), "macs": macs}


def _time(
    candidates: dict[str, Candidate],
    store: Store,
    index: Any,
    batches: Sequence[int],
    params: Params,
    found: dict[str, dict[str, Any]],
) -> list[tuple[str, int, int, float]]:
    """Rows of latency.csv; the medians go into ``found``."""
    section, rows = params.evaluate, []
    with profiling.pinned_threads(section.latency_threads):
        for batch in batches:
            calls = calls_on(candidates, np.asarray(store.images[np.resize(index, batch)]))
            samples = profiling.measure_latency(calls, section.latency_repeats, WARMUP, params.run.seed)
            for name, values in samples.items():
                found[name][f"latency_ms_b{batch}"] = float(np.median(values))
                rows += [(name, batch, number, float(value)) for number, value in enumerate(values)]
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tasks.measure", description="Measure networks on a split.")
    parser.add_argument("out", type=Path)
    parser.add_argument("split", choices=["validation", "test"])
    parser.add_argument("networks", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--format", choices=list(catalogue.FORMATS))
    parser.add_argument("--of", nargs="+", metavar="NAME=FOLDER", default=[])
    parser.add_argument("--batches", type=int, nargs="*", default=[])
    given = parser.parse_args()
    set_environment()
    die_with_parents()  # a search that is killed and begun again measures there once more
    keep_memory()
    places, counted = (
        {name: Path(folder) for name, _, folder in (text.partition("=") for text in texts)}
        for texts in (given.networks, given.of)
    )
    try:
        params = load_params()
        set_up_torch(params.run)
        measure(given.out, given.split, places, params, given.format, given.batches, counted)
    except UserError as error:
        print(f"measure: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
