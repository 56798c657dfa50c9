"""evaluate: every candidate on the test split, which is read here and nowhere else.

Fitted here are each candidate's temperature and operating points, and those on the validation split.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tasks.stage import Stage, run_stage
from thinner import layout
from thinner.data import corruptions
from thinner.data.store import Store, open_store
from thinner.evidence import statistics
from thinner.measure import metrics, operating, scores
from thinner.measure.hardware import describe_machine
from thinner.measure.memory import measure_memory
from thinner.measure.profiling import (
    count_macs,
    count_params,
    file_bytes,
    measure_latency,
    median_interval,
    pareto_front,
    pinned_threads,
    summarise_latency,
)
from thinner.predict import Candidate, calls_on, choose_device, open_candidate, predict_logits, weights_sha256
from thinner.runtimes import catalogue

TEACHER, SMALLEST = "finetune", "prune"
WARMUP = 5  # rounds of timing that do not count


def evaluate(stage: Stage) -> None:
    run, section = stage.params.run, stage.params.evaluate
    store = open_store("data/prepared")
    names = layout.candidate_names(stage.params)
    places = {name: Path(layout.folder_of(stage.params, name)) for name in names}
    device = choose_device(run.device)
    threads = torch.get_num_threads()  # run.threads, which run_stage has set
    candidates = {name: open_candidate(path, device, threads, run.channels_last) for name, path in places.items()}
    others = {
        name: [open_candidate(places[name], where, threads, run.channels_last) for where in further]
        for name, further in further_devices(candidates, device, run.devices).items()
    }
    test, validation = store.splits["test"], store.splits["validation"]
    labels, validation_labels = np.asarray(store.labels[test]), np.asarray(store.labels[validation])

    logits, temperatures, points = {}, {}, {}
    with stage.progress("images", total=(len(test) + len(validation)) * len(candidates)) as bar:
        done = 0
        for name, candidate in candidates.items():

            def one_more(images: int, before: int = 0) -> None:
                bar.update(done + before + images)  # noqa: B023 - it is called before the next one is made

            beside = others[name]
            logits[name] = predict_logits(candidate, store.images, test, section.batch_size, one_more, beside)
            seen = predict_logits(
                candidate,
                store.images,
                validation,
                section.batch_size,
                lambda images: one_more(images, len(test)),
                beside,
            )
            temperatures[name] = metrics.fit_temperature(validation_labels, seen)
            points[name] = operating.points_of(validation_labels, seen, labels, logits[name])
            done += len(test) + len(validation)
    samples = _time(stage, store, candidates, places)
    height, width, channels = store.images.shape[1:]
    memory = measure_memory(
        list(places.values()),
        max(section.latency_batches),
        section.latency_threads,
        (height, width, channels),
        run.channels_last,
    )

    predictions = {name: values.argmax(axis=1) for name, values in logits.items()}
    if untested := scores.missing(labels, store.classes):
        named = ", ".join(f"'{name}'" for name in untested)
        stage.say(f"evaluate: no test image of {named}: nothing here tells how well that is recognised")
    results: dict[str, dict[str, Any]] = {
        name: {
            "accuracy": metrics.accuracy(labels, predictions[name]),
            "balanced_accuracy": metrics.balanced_accuracy(labels, predictions[name]),
            "macro_f1": metrics.macro_f1(labels, predictions[name]),
            **_worst(labels, predictions[name], store.classes),
            "agreement": metrics.agreement(predictions[name], predictions[TEACHER]),
            **_confidence(labels, logits[name], temperatures[name]),
            **_size(name, candidates, places[name]),
            **_latency(samples, name, section.latency_batches),
            **({"peak_memory_bytes": memory[str(places[name])]} if memory else {}),
            "runtime": candidate.runtime,
            "device": candidate.device,
            "threads": section.latency_threads,
        }
        for name, candidate in candidates.items()
    }
    corrupted = _corrupt(stage, store, candidates) if section.corruptions else []
    for name in results if corrupted else ():
        results[name]["corruption_accuracy"] = float(np.mean([share for who, *_, share in corrupted if who == name]))

    for name, row in _as_trained(stage, store, candidates, places, logits).items():
        results[name] |= row

    with stage.output("data/evaluate") as folder:
        np.savez(
            folder / "predictions.npz",
            allow_pickle=False,
            index=test,
            labels=labels,
            **{f"predictions.{name}": values.astype(np.int64) for name, values in predictions.items()},
            **{f"confidences.{name}": metrics.confidences(values) for name, values in logits.items()},
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
        _write_confidence(folder, labels, logits, temperatures)
        text = json.dumps(operating.as_json(points), indent=2) + "\n"
        (folder / operating.FILE.name).write_text(text, encoding="utf-8")
        if corrupted:
            _write_csv(folder / "corruptions.csv", ("candidate", "corruption", "severity", "accuracy"), corrupted)
        # where the milliseconds come from; it stands beside them, so that report need not run on the same
        # machine
        machine = {
            **describe_machine(catalogue.RUNTIMES[candidate.runtime].package for candidate in candidates.values()),
            "device": device,
            "latency_threads": section.latency_threads,
            "latency_repeats": section.latency_repeats,
            "test_images": len(test),
            "data_sha256": store.sha256,
            "weights_sha256": {name: weights_sha256(path) for name, path in places.items()},
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
    stage.record.metrics(
        {
            f"test/{name}/{what}_at_{100 * point.at_least:g}": value
            for name, row in points.items()
            for point in row
            for what, value in (("coverage", point.coverage), ("accuracy", point.accuracy))
            if value is not None
        }
    )
    stage.record.artifact("reports/metrics.json")
    stage.record.artifact("reports/evaluate")
    stage.record.candidates()


def further_devices(candidates: Mapping[str, Candidate], device: str, devices: int) -> dict[str, list[str]]:
    """Where each candidate is opened once more, to share the test and validation images: on all CUDA devices of
    ``run.devices``, if it runs there. What is timed stays on the first."""
    further = [f"cuda:{number}" for number in range(1, devices)] if device == "cuda" else []
    return {name: further if candidate.device == device else [] for name, candidate in candidates.items()}


def _as_trained(
    stage: Stage,
    store: Store,
    candidates: Mapping[str, Candidate],
    places: Mapping[str, Path],
    logits: Mapping[str, Any],
) -> dict[str, dict[str, float]]:
    """What was trained in 8 bits is what runs in 8 bits: of such candidates the largest difference of their logits from
    those of the graph in PyTorch, in which they were trained, and the share of test images that get the same class."""
    found = {}
    for name, candidate in candidates.items():
        spec = candidate.spec
        if spec.get("quantized", {}).get("rung") != "trained" or spec.get("input") == "pixels":
            continue
        import onnx  # here, because most runs have no such candidate

        from thinner.compress.fake_quantization import FakeQuantised
        from thinner.learn.training import logits_of

        network = FakeQuantised(onnx.load(places[name] / "model.onnx"))
        trained = logits_of(network, store.images, store.splits["test"], candidate.preprocessing).numpy()
        row = {
            "trained_difference": float(np.abs(trained - logits[name]).max()),
            "trained_agreement": metrics.agreement(trained.argmax(axis=1), logits[name].argmax(axis=1)),
        }
        stage.say(
            f"{name}: on {len(trained):,} test images logits are within {row['trained_difference']:.1e} of those that "
            f"were trained, and {row['trained_agreement']:.2%} get the same class"
        )
        found[name] = row
    return found


def _corrupt(stage: Stage, store: Store, candidates: Mapping[str, Candidate]) -> list[tuple[str, str, int, float]]:
    """Accuracy on the corrupted test split by candidate, corruption and severity."""
    test, batch = store.splits["test"], stage.params.evaluate.batch_size
    cases = [(name, severity) for name in corruptions.CORRUPTIONS for severity in corruptions.SEVERITIES]
    right = dict.fromkeys(((who, *case) for who in candidates for case in cases), 0)
    with stage.progress("corrupted images", total=len(cases) * len(test)) as bar:
        for number, (corruption, severity) in enumerate(cases):
            # a picture is corrupted once for all candidates, and never are all of them in memory
            for start in range(0, len(test), batch):
                part = test[start : start + batch]
                images = corruptions.corrupt(
                    np.asarray(store.images[part]), part, corruption, severity, stage.params.run.seed
                )
                labels = np.asarray(store.labels[part])
                for name, candidate in candidates.items():
                    found = predict_logits(candidate, images, np.arange(len(part)), batch).argmax(axis=1)
                    right[name, corruption, severity] += int((found == labels).sum())
                bar.update(number * len(test) + start + len(part))
    return [(*case, count / len(test)) for case, count in right.items()]


def _time(
    stage: Stage, store: Store, candidates: Mapping[str, Candidate], places: Mapping[str, Path]
) -> dict[int, dict[str, Any]]:
    """Milliseconds by batch size and candidate: of the networks alone, on images that are preprocessed."""
    section = stage.params.evaluate
    # other runtimes than PyTorch fix their threads when a model is loaded, so those are opened again with the number
    # to be timed
    timed = {
        name: candidate
        if candidate.runtime == catalogue.PYTORCH
        else open_candidate(places[name], threads=section.latency_threads)
        for name, candidate in candidates.items()
    }
    samples: dict[int, dict[str, Any]] = {}
    rounds = section.latency_repeats + WARMUP
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
            calls = calls_on(timed, np.asarray(store.images[chosen]))
            samples[batch] = measure_latency(
                calls, section.latency_repeats, WARMUP, stage.params.run.seed, on_round=one_more
            )
    return samples


def _latency(samples: Mapping[int, Mapping[str, Any]], name: str, batches: Sequence[int]) -> dict[str, float]:
    out = {}
    for batch in batches:
        key = f"latency_ms_b{batch}"
        out[key], out[f"{key}_p95"] = summarise_latency(samples[batch][name])
        out[f"{key}_low"], out[f"{key}_high"] = median_interval(samples[batch][name])
        out[f"throughput_b{batch}"] = 1000 * batch / out[key]
    return out


def _worst(labels: Any, predictions: Any, classes: Sequence[str]) -> dict[str, Any]:
    """The class that was recognised least, and the share of its images that was."""
    worst, share = metrics.worst_class(labels, predictions)
    return {"worst_class": share, "worst_class_name": classes[worst]}


def _confidence(labels: Any, logits: Any, temperature: float) -> dict[str, float]:
    """What rests on confidences: as the candidate gives them, and with its temperature."""
    measures = {"nll": metrics.nll, "brier": metrics.brier, "ece": metrics.ece}
    top5 = {"accuracy_top5": metrics.top_k_accuracy(labels, logits, 5)} if logits.shape[1] > 5 else {}
    return {
        **top5,
        **{key: measure(labels, logits) for key, measure in measures.items()},
        "temperature": temperature,
        **{f"{key}_scaled": measure(labels, logits / temperature) for key, measure in measures.items()},
        "aurc": metrics.aurc(labels, logits),
    }


def _size(name: str, candidates: Mapping[str, Candidate], folder: Path) -> dict[str, int]:
    candidate = candidates[name]
    if candidate.model is None:  # an export computes what its source computes, so parameters and MACs are counted there
        candidate = candidates[next(iter(candidate.spec["parents"]))]
    if candidate.model is None:
        raise TypeError(f"{name}: no PyTorch network to count")
    return {
        "params": count_params(candidate.model),
        "params_nonzero": count_params(candidate.model, nonzero=True),
        "macs": count_macs(candidate.model, candidate.preprocessing.shape),
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
        ("candidate", "class", "images", "accuracy", "low", "high"),
        (
            (name, classes[k], int(counts[k]), float(value), float(low[k]), float(high[k]))
            for name, values in predictions.items()
            for low, high in [metrics.per_class_interval(labels, values, len(classes))]
            for k, value in enumerate(metrics.per_class_accuracy(labels, values, len(classes)))
            if counts[k]
        ),
    )
    _write_csv(
        folder / "lost_classes.csv",
        ("candidate", "class", "images", "teacher_accuracy", "accuracy", "difference", "low", "high", "p_value"),
        (
            (name, classes[k], *row)
            for name, values in predictions.items()
            if name != TEACHER
            for k, *row in _lost(labels, values, predictions[TEACHER])
        ),
    )
    costs = (
        "macs",
        "params",
        "file_bytes",
        *(k for k in results[TEACHER] if k.startswith("latency") and k.split("_")[-1] not in ("p95", "low", "high")),
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


def _lost(labels: Any, predictions: Any, teacher: Any) -> list[tuple[Any, ...]]:
    """By class, the most lost first: images, accuracies, the difference with its interval, McNemar's p after Holm."""
    rows: list[tuple[Any, ...]] = []
    for k in np.unique(labels):
        mine, theirs = predictions[labels == k] == k, teacher[labels == k] == k
        e = statistics.accuracy_difference(mine, theirs)
        rows.append((int(k), e.count, float(theirs.mean()), float(mine.mean()), e.effect, e.low, e.high, e.p_value))
    adjusted = statistics.holm([row[-1] for row in rows])
    return sorted(((*row[:-1], p) for row, p in zip(rows, adjusted, strict=True)), key=lambda row: (row[4], row[0]))


def _write_confidence(folder: Path, labels: Any, logits: Mapping[str, Any], temperatures: Mapping[str, float]) -> None:
    """Reliability before (scaled 0) and after (1) the temperature, and the risk at 1 % to 100 % coverage."""
    rows = []
    for name, values in logits.items():
        for scaled, temperature in enumerate((1.0, temperatures[name])):
            table = metrics.reliability(labels, values / temperature)
            columns = (table.confidence.tolist(), table.accuracy.tolist(), table.images.tolist())
            rows += [(name, scaled, bin_, *row) for bin_, row in enumerate(zip(*columns, strict=True), start=1)]
    header = ("candidate", "scaled", "bin", "confidence", "accuracy", "images")
    _write_csv(folder / "reliability.csv", header, rows)
    images = np.unique(np.ceil(np.arange(1, 101) * len(labels) / 100).astype(int))
    _write_csv(
        folder / "risk_coverage.csv",
        ("candidate", "coverage", "risk"),
        (
            (name, int(n) / len(labels), float(risk[n - 1]))
            for name, values in logits.items()
            for risk in [metrics.risk_coverage(labels, values)]
            for n in images
        ),
    )


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([_text(cell) for cell in row] for row in rows)


def _text(cell: Any) -> Any:
    """A class may be called "=1+1": a spreadsheet would compute it, or ask a server for it, but for an apostrophe."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@")) else cell


if __name__ == "__main__":
    run_stage("evaluate", evaluate)
