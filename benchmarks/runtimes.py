"""One network in all runtimes that are installed: the same answers? how large, how fast? In the same rounds.

    python -m benchmarks.runtimes prune prune_int8      a table in Markdown; under two minutes for the default job

A checkpoint (prune) is written in every format of thinner/runtimes, into a temporary folder. A candidate that is ONNX
(prune_int8 of the ladder, prune_onnx_int8) runs as it is, and as OpenVINO reads it. Differences and agreement are
against PyTorch, of an ONNX candidate against ONNX Runtime, on the whole test split. ms: medians with 95 % limits.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tasks.export import calibration_images
from tasks.record.candidates import made
from thinner.compress.quantization import quantise_onnx
from thinner.config import load_params
from thinner.data import views
from thinner.data.store import Store, open_store
from thinner.measure.profiling import file_bytes, measure_latency, median_interval, pinned_threads, summarise_latency
from thinner.networks import checkpoint
from thinner.predict import Candidate, open_candidate, predict_logits
from thinner.runtimes import catalogue
from thinner.runtimes.protocol import Source
from thinner.words import milliseconds, milliseconds_limits, si


def write(name: str, source: Path, store: Store, folder: Path) -> Iterator[tuple[str, Path]]:
    """Names of the table and folders: ``source`` itself, then what it becomes in other runtimes, below ``folder``."""
    yield name, source
    spec = checkpoint.read_spec(source)
    params = load_params()
    section = params.export
    if (source / "model.onnx").is_file():
        formats = ["openvino"]
        given = Source(
            torch.nn.Identity(), np.empty((0, 0, 0, 0), np.float32), {}, section.opset, folder, quantise_onnx
        )
        vars(given)["onnx"] = source / "model.onnx"  # which is there already, and is made of no network
    else:
        images = np.asarray(calibration_images(store, section.calibration_images, params.run.seed))
        inputs = views.preprocess(images, views.Preprocessing.from_json(spec["preprocessing"])).numpy()
        (steps := folder / f"{name}-steps").mkdir()
        formats = list(catalogue.FORMATS)
        given = Source(
            checkpoint.load(source).model, inputs, {"classes": spec["classes"]}, section.opset, steps, quantise_onnx
        )
    for format_ in formats:
        if catalogue.missing([format_]):
            print(f"{name}: {format_} is left out: {catalogue.missing([format_])}", file=sys.stderr)
            continue
        files = catalogue.OF[format_].files
        (target := folder / f"{name}_{format_}").mkdir()
        catalogue.FORMATS[format_].write(given, target / files[0])
        checkpoint.write_spec(target, {**spec, "format": format_}, *files)
        yield target.name, target


def _call(candidate: Candidate, inputs: Any) -> Callable[[], object]:
    return lambda: candidate.run(inputs)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("candidates", nargs="*", default=["prune"])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--images", type=int, help="only so many test pictures")
    asked = parser.parse_args(arguments)
    params, store, known = load_params(), open_store("data/prepared"), made(Path())
    threads, batches = params.evaluate.latency_threads, params.evaluate.latency_batches
    test = store.splits["test"][: asked.images]
    rows: dict[str, dict[str, Any]] = {}
    opened: dict[str, Candidate] = {}
    with tempfile.TemporaryDirectory() as temporary, pinned_threads(threads):
        for name in asked.candidates:
            expected = None
            for called, folder in write(name, known[name], store, Path(temporary)):
                opened[called] = candidate = open_candidate(folder, threads=threads)
                logits = predict_logits(candidate, store.images, test, params.evaluate.batch_size)
                expected = logits if expected is None else expected
                rows[called] = {
                    "words": catalogue.RUNTIMES[candidate.runtime].words,
                    "bytes": file_bytes(folder),
                    "difference": float(np.abs(logits - expected).max()),
                    "same": int((logits.argmax(1) == expected.argmax(1)).sum()),
                }
        for batch in batches:
            images = np.asarray(store.images[np.resize(test, batch)])
            calls = {called: _call(c, c.place(c.preprocess(images))) for called, c in opened.items()}
            for called, samples in measure_latency(calls, asked.rounds, warmup=20).items():
                rows[called][f"ms{batch}"] = summarise_latency(samples)[0], *median_interval(samples)
    heads = ["candidate", "runtime", "file", "largest difference", "same class", *(f"ms, batch {b}" for b in batches)]
    print(f"\n{len(test):,} test images, {threads} thread(s), {asked.rounds} rounds\n")
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for called, row in rows.items():
        times = [f"{milliseconds(row[f'ms{b}'][0])} {milliseconds_limits(*row[f'ms{b}'][1:])}" for b in batches]
        cells = [called, row["words"], si(row["bytes"], "B"), f"{row['difference']:.1e}", f"{row['same']:,}", *times]
        print(f"| {' | '.join(cells)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
