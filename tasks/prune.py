"""prune: cut channels, recover with the teacher's signals, measure, repeat; every round is kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from tasks import learning, lessons
from tasks.stage import Stage, run_stage
from thinner import checkpoint, models, profiling, pruning, store, training


def prune(stage: Stage) -> None:
    params, section, plan = stage.params, stage.params.prune, stage.params.prune.training
    data = store.open_store(learning.PREPARED)
    fabric = learning.fabric_of(params)
    source = checkpoint.load(f"data/{section.source}")
    preprocessing = source.spec["preprocessing"]
    shape = (preprocessing["channels"], preprocessing["image_size"], preprocessing["image_size"])
    example = torch.zeros(1, *shape)
    validate = training.validation(
        data.images, data.labels, data.splits["validation"], preprocessing, device=fabric.device
    )
    stage.record.dataset("prepared", data.sha256, learning.PREPARED, {k: len(v) for k, v in data.splits.items()})
    pool = learning.training_pool(data)

    source_macs = profiling.count_macs(source.model, shape)
    networks: list[nn.Module] = [source.model]
    accuracy = validate(source.model.to(fabric.device))["val_accuracy"]
    rows = [_row(0, source.model.cpu(), Path(f"data/{section.source}"), shape, accuracy, accuracy)]
    kept = stage.resume / "rounds"
    model = source.model
    for number in range(1, section.rounds + 1):
        folder = kept / str(number)
        if (folder / "row.json").exists():  # a killed run had come this far
            model = checkpoint.load(folder).model
            rows.append(json.loads((folder / "row.json").read_text()))
            networks.append(model)
            continue
        allowed = pruning.target_macs(source_macs, section.ratio, number)
        macs = profiling.count_macs(model.cpu(), shape)
        if macs <= allowed:  # widths come in multiples of round_to: the round before went further than it had to
            stage.say(f"prune: round {number} has nothing to cut: {macs:,} MACs, at most {allowed:,} are asked for")
            continue
        model, made = pruning.cut(
            model,
            example,
            macs=allowed,
            criterion=section.criterion,
            scope=section.scope,
            round_to=section.round_to,
            keep=section.keep,
        )
        stage.say(
            f"prune: round {number} of {section.rounds}, {made.macs_before:,} -> {made.macs_after:,} MACs, "
            f"{made.params_before:,} -> {made.params_after:,} parameters"
        )
        batches = learning.batches_of(
            stage,
            data,
            pool,
            preprocessing,
            params.student.augment,
            plan.batch_size,
            fabric,
            number_of_views=params.teach.views,
        )
        model.to(fabric.device, memory_format=learning.memory_format_of(params))
        pruning.reestimate_statistics(model, lambda step, b=batches: b(step).images, _STATISTICS_BATCHES)
        before = validate(model)["val_accuracy"]
        resume = stage.resume / f"round-{number}"
        resume.mkdir(exist_ok=True)
        lesson = lessons.lesson(params, data, model, len(batches), fabric.device)
        history = learning.learn(
            stage,
            f"prune {number}/{section.rounds}",
            model,
            batches,
            lesson.step,
            plan,
            data,
            preprocessing,
            fabric,
            resume=resume,
            record_prefix=f"round_{number}/",
            head=models.head_of(model)[0],
            extra=lesson.extra,
        )
        model.cpu()
        spec = learning.spec_of(
            "prune",
            source.spec["network"],
            preprocessing,
            data,
            {section.source: source.sha256, "finetune": learning.parent("data/finetune")},
        )
        if fabric.global_rank == 0:
            checkpoint.save(folder, model, spec)
            row = _row(number, model, folder, shape, before, learning.best_of(history)["val_accuracy"])
            pd.DataFrame(history).astype({"step": int}).to_csv(folder / "history.csv", index=False)
            (folder / "row.json").write_text(json.dumps(row))  # last: it says that the round is whole
        fabric.barrier()
        row = json.loads((folder / "row.json").read_text())
        rows.append(row)
        networks.append(model)

    chosen = pruning.choose_round(rows[1:], accuracy, section.tolerance)
    for row, latency in zip(rows, _latencies(stage, networks, preprocessing, shape), strict=True):
        row |= {**latency, "chosen": row["round"] == chosen}
    with stage.output("data/prune") as out:
        for path in (kept / str(chosen)).glob("model.*"):
            shutil.copy2(path, out / path.name)
        for row in rows[1:]:
            target = out / "rounds" / str(row["round"])
            target.mkdir(parents=True)
            for path in (kept / str(row["round"])).glob("model.*"):
                shutil.copy2(path, target / path.name)
    histories = [pd.read_csv(kept / str(row["round"]) / "history.csv").assign(round=row["round"]) for row in rows[1:]]
    with stage.output("reports/prune/history.csv") as path:
        curve = pd.concat(histories)
        curve["step"] += (curve["round"] - 1) * plan_steps(params)
        curve.to_csv(path, index=False)
    with stage.output("reports/prune/rounds.csv") as path:
        pd.DataFrame(rows).to_csv(path, index=False)
    _record(stage, rows, chosen)


_STATISTICS_BATCHES = 20
# A first look at each round, on one thread. Not a key: a changed way of timing must not repeat the recovery; what is
# reported in the end is measured by evaluate, whose keys are its own.
_LATENCY_BATCHES = (1, 64)
_LATENCY_REPEATS = 30


def plan_steps(params: Any) -> int:
    """Steps of one round of recovery, by which the rounds' curves are set one after the other."""
    plan = params.prune.training
    return int(plan.steps if plan.steps is not None else plan.epochs * 1_000)


def _row(
    number: int, model: nn.Module, folder: Path, shape: tuple[int, int, int], before: float, after: float
) -> dict[str, Any]:
    return {
        "round": number,
        "macs": profiling.count_macs(model, shape),
        "params": profiling.count_params(model),
        "file_bytes": profiling.file_bytes(folder),
        "accuracy_before": before,
        "accuracy_after": after,
    }


def _latencies(
    stage: Stage, networks: list[nn.Module], preprocessing: dict[str, Any], shape: tuple[int, int, int]
) -> list[dict[str, float]]:
    """Median milliseconds of each round's network, all rounds interleaved."""
    memory_format = learning.memory_format_of(stage.params)
    out: list[dict[str, float]] = [{} for _ in networks]
    with torch.inference_mode(), profiling.pinned_threads(1):
        for batch in _LATENCY_BATCHES:
            x = torch.zeros(batch, *shape).contiguous(memory_format=memory_format)
            models_ = [m.eval().to(memory_format=memory_format) for m in networks]
            calls = {str(n): (lambda m=m, x=x: m(x)) for n, m in enumerate(models_)}
            samples = profiling.measure_latency(calls, repeats=_LATENCY_REPEATS)
            for n in range(len(networks)):
                out[n][f"latency_ms_b{batch}"] = float(torch.tensor(samples[str(n)]).median())
    return out


def _record(stage: Stage, rows: list[dict[str, Any]], chosen: int) -> None:
    for row in rows:
        numbers = {f"prune/{k}": float(v) for k, v in row.items() if k not in ("round", "chosen")}
        stage.record.metrics(numbers, step=row["round"])
    stage.record.artifact("reports/prune/rounds.csv")
    stage.record.artifact("data/prune/model.safetensors", "checkpoint")
    stage.record.artifact("data/prune/model.json", "checkpoint")
    best = next(row for row in rows if row["round"] == chosen)
    stage.record.metrics({"val/best_accuracy": best["accuracy_after"]})
    stage.say(
        f"prune: round {chosen} chosen on validation: {best['macs'] / rows[0]['macs']:.0%} of the MACs, "
        f"accuracy {rows[0]['accuracy_after']:.2%} -> {best['accuracy_after']:.2%}"
    )


if __name__ == "__main__":
    run_stage("prune", prune)
