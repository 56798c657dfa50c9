"""evaluate: every candidate on the test split, which is read here and nowhere else."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tasks.stage import Stage, run_stage
from thinner import metrics
from thinner.hardware import describe_machine
from thinner.predict import Candidate, choose_device, confidences, open_candidate, predict_logits
from thinner.profiling import (
    count_macs,
    count_params,
    file_bytes,
    measure_latency,
    pareto_front,
    pinned_threads,
    summarise_latency,
)
from thinner.store import Store, open_store

TEACHER, SMALLEST = "finetune", "prune"
NETWORKS = (TEACHER, "scratch", "distill", SMALLEST)


def evaluate(stage: Stage) -> None:
    run, section = stage.params.run, stage.params.evaluate
    store = open_store("data/prepared")
    names = stage.params.candidate_names
    places = {name: Path("data") / (name if name in NETWORKS else f"export/{name}") for name in names}
    device = choose_device(run.device)
    threads = torch.get_num_threads()  # run.threads, which run_stage has set
    candidates = {name: open_candidate(path, device, threads, run.channels_last) for name, path in places.items()}
    test = store.splits["test"]
    labels = np.asarray(store.labels[test])

    logits = {}
    with stage.progress("test images", total=len(test) * len(candidates)) as bar:
        for number, (name, candidate) in enumerate(candidates.items()):
            done = number * len(test)
            logits[name] = predict_logits(
                candidate,
                store.images,
                test,
                section.batch_size,
                lambda images, done=done: bar.update(done + images),  # type: ignore[misc]
            )
    samples = _time(stage, store, candidates, places)

    predictions = {name: values.argmax(axis=1) for name, values in logits.items()}
    results = {
        name: {
            "accuracy": metrics.accuracy(labels, predictions[name]),
            "macro_f1": metrics.macro_f1(labels, predictions[name]),
            "agreement": metrics.agreement(predictions[name], predictions[TEACHER]),
            **_size(name, candidates, places[name]),
            **_latency(samples, name, section.latency_batches),
            "runtime": candidate.runtime,
            "device": candidate.device,
            "threads": section.latency_threads,
        }
        for name, candidate in candidates.items()
    }

    with stage.output("data/evaluate") as folder:
        np.savez(
            folder / "predictions.npz",
            allow_pickle=False,
            index=test,
            labels=labels,
            **{f"predictions.{name}": values.astype(np.int64) for name, values in predictions.items()},
            **{f"confidences.{name}": confidences(values) for name, values in logits.items()},
            **{f"logits.{name}": values for name, values in logits.items()},
        )
        _write_csv(
            folder / "latency.csv",
            ("candidate", "batch", "round", "latency_ms"),
            (
                (name, batch, number, float(value))
                for batch, by_name in samples.items()
                for name, values in by_name.items()
                for number, value in enumerate(values)
            ),
        )
    with stage.output("reports/metrics.json") as path:
        path.write_text(json.dumps({name: dict(sorted(row.items())) for name, row in results.items()}, indent=2) + "\n")
    with stage.output("reports/evaluate") as folder:
        _write_tables(folder, store, labels, predictions, results)
        # where the milliseconds come from; it stands beside them, so that report need not run on the same
        # machine
        machine = {
            **describe_machine(),
            "device": device,
            "latency_threads": section.latency_threads,
            "latency_repeats": section.latency_repeats,
            "test_images": len(test),
            "data_sha256": store.sha256,
        }
        (folder / "environment.json").write_text(json.dumps(machine, indent=2, sort_keys=True) + "\n")

    stage.record.dataset("test", store.sha256, "data/prepared", {"test": len(test)})
    stage.record.metrics(
        {
            f"test/{name}/{key}": float(value)
            for name, row in results.items()
            for key, value in row.items()
            if not isinstance(value, str)
        }
    )
    stage.record.artifact("reports/metrics.json")
    stage.record.artifact("reports/evaluate")
    stage.record.candidates()


def _time(
    stage: Stage, store: Store, candidates: Mapping[str, Candidate], places: Mapping[str, Path]
) -> dict[int, dict[str, Any]]:
    """Milliseconds by batch size and candidate: of the networks alone, on images that are preprocessed."""
    section = stage.params.evaluate
    warmup = 5
    # ONNX Runtime fixes its threads when a model is loaded, so those are opened again with the number to be
    # timed
    timed = {
        name: open_candidate(places[name], threads=section.latency_threads)
        if candidate.runtime == "onnxruntime"
        else candidate
        for name, candidate in candidates.items()
    }
    samples: dict[int, dict[str, Any]] = {}
    rounds = section.latency_repeats + warmup
    with (
        pinned_threads(section.latency_threads),
        stage.progress("latency", total=rounds * len(section.latency_batches)) as bar,
    ):
        done = 0

        def one_more() -> None:
            nonlocal done
            done += 1
            bar.update(done)

        for batch in section.latency_batches:
            # any images do; repeated where the split has fewer than the batch
            chosen = np.resize(store.splits["test"], batch)
            images = np.asarray(store.images[chosen])
            calls = {}
            for name, candidate in timed.items():
                inputs = candidate.place(candidate.preprocess(images))
                calls[name] = lambda run=candidate.run, inputs=inputs: run(inputs)
            samples[batch] = measure_latency(
                calls, section.latency_repeats, warmup, stage.params.run.seed, on_round=one_more
            )
    return samples


def _latency(samples: Mapping[int, Mapping[str, Any]], name: str, batches: Sequence[int]) -> dict[str, float]:
    out = {}
    for batch in batches:
        out[f"latency_ms_b{batch}"], out[f"latency_ms_b{batch}_p95"] = summarise_latency(samples[batch][name])
    return out


def _size(name: str, candidates: Mapping[str, Candidate], folder: Path) -> dict[str, int]:
    # an export computes what its source computes, so parameters and MACs are counted there
    candidate = candidates[name] if name in NETWORKS else candidates[next(iter(candidates[name].spec["parents"]))]
    if candidate.model is None:
        raise TypeError(f"{name}: no PyTorch network to count")
    preprocessing = candidate.spec["preprocessing"]
    side = preprocessing["image_size"]
    return {
        "params": count_params(candidate.model),
        "params_nonzero": count_params(candidate.model, nonzero=True),
        "macs": count_macs(candidate.model, (len(preprocessing["mean"]), side, side)),
        "file_bytes": file_bytes(folder),
    }


def _write_tables(
    folder: Path,
    store: Store,
    labels: Any,
    predictions: Mapping[str, Any],
    results: Mapping[str, Mapping[str, Any]],
) -> None:
    classes = store.classes
    _write_csv(  # what `dvc plots` makes a confusion matrix of
        folder / "confusion.csv",
        ("actual", "predicted"),
        ((classes[a], classes[p]) for a, p in zip(labels, predictions[SMALLEST], strict=True)),
    )
    counts = np.bincount(labels, minlength=len(classes))
    _write_csv(
        folder / "per_class.csv",
        ("candidate", "class", "images", "accuracy"),
        (
            (name, classes[k], int(counts[k]), float(value))
            for name, values in predictions.items()
            for k, value in enumerate(metrics.per_class_accuracy(labels, values, len(classes)))
            if counts[k]
        ),
    )
    costs = (
        "macs",
        "params",
        "file_bytes",
        *(k for k in results[TEACHER] if k.startswith("latency") and k[-3:] != "p95"),
    )
    accuracies = [row["accuracy"] for row in results.values()]
    fronts = {cost: pareto_front([row[cost] for row in results.values()], accuracies) for cost in costs}
    _write_csv(
        folder / "pareto.csv",
        ("candidate", "runtime", "accuracy", *costs, *(f"front_{cost}" for cost in costs)),
        (
            (
                name,
                row["runtime"],
                row["accuracy"],
                *(row[cost] for cost in costs),
                *(int(fronts[cost][i]) for cost in costs),
            )
            for i, (name, row) in enumerate(results.items())
        ),
    )


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


if __name__ == "__main__":
    run_stage("evaluate", evaluate)
