"""prune: cut, recover with the teacher's signals, verify, measure, repeat; every round is kept."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasks import distillation, learning, teachers
from tasks.stage import Stage, run_stage
from thinner.compress import criteria, masks, pruning, rounds, target
from thinner.data import store, views
from thinner.evidence import drop
from thinner.files.mapped import read_rows
from thinner.learn import training
from thinner.networks import checkpoint
from thinner.params import Params


def prune(stage: Stage) -> None:
    params, section = stage.params, stage.params.prune
    data = store.open_store(learning.PREPARED)
    fabric = learning.fabric_of(params)
    source_name = source_of(stage)
    folder = Path(f"data/{source_name}")
    source = checkpoint.load(folder)
    preprocessing = source.preprocessing
    validation = data.splits["validation"]
    asked = section.asked
    if asked.is_drop and (refusal := drop.refusal(asked.value, len(validation))):
        raise pruning.PruningError(refusal)
    stage.record.dataset("prepared", data.sha256, learning.PREPARED, {k: len(v) for k, v in data.splits.items()})
    # scores are float64, which Apple's GPU has not
    device = fabric.device if fabric.device.type == "cuda" else "cpu"
    with learning.first_alone(fabric) if asked.is_measured else contextlib.nullcontext():
        plan = plan_of(params, source, data, device=device)
    stage.say(f"{stage.name}: {plan.words}")
    spec = learning.spec_of(
        stage.name,
        source.network,
        preprocessing,
        data,
        {source_name: source.sha256, **teachers.parents(params)},
    )
    pool = learning.training_pool(data)
    steps = plan_steps(params, len(pool))

    def answers(model: nn.Module) -> npt.NDArray[np.bool_]:
        logits = training.logits_of(model, data.images, validation, preprocessing, device=fabric.device)
        return np.asarray(logits.argmax(1).numpy() == data.labels[validation])

    def say(text: str) -> None:
        stage.say(f"{stage.name}: {text}")

    found = rounds.prune_in_rounds(
        plan,
        source,
        folder,
        recover=_recovery(stage, data, preprocessing, pool, fabric),
        answers=answers,
        look=views.preprocess(data.images[validation[:_LOOKED_AT]], preprocessing, "cpu"),
        spec=spec,
        folder=stage.resume / "rounds",
        work=stage.resume,
        fabric=fabric,
        say=say,
        on_round=lambda number, place: _record_curve(stage, place / rounds.HISTORY, (number - 1) * steps),
    )
    if stage.helper:  # the first process times the rounds, alone, and writes them
        return
    if asked.granularity == "channels":  # masks give no speed, so none is shown
        memory_format = learning.memory_format_of(params)
        rounds.add_latencies(found, plan, source.preprocessing.shape, memory_format, source_name, say)
    for row in found.rows:
        row["target_met"] = asked.is_met(row, plan.limit, cut_to_it=found.cut_to_limit(plan, row))
    chosen = target.choose_round(found.rows[1:], asked)
    for row in found.rows:
        row["chosen"] = row["round"] == chosen
    reached = _reached(stage, plan, found, chosen, len(validation))
    for line in reached["lines"]:
        say(line)
    if not reached["met"] and section.on_miss == "fail":
        each = "; ".join(
            f"round {r['round']}: {asked.sized(r[asked.column])}, "
            f"lost {rounds.drop_in(r, len(validation), asked.bound)}"
            for r in found.rows[1:]
        )
        raise pruning.PruningError(
            f"prune.target: {reached['lines'][0]} Rounds: {each}. prune.on_miss: keep takes it all the same"
        )
    _write(stage, found.rows, chosen, reached, steps)


def source_of(stage: Stage) -> str:
    """The candidate that is pruned: of `prune_also@finetune` finetune, of `prune` what prune.source names."""
    return stage.name.partition("@")[2] or stage.params.prune.source


def subfolder_of(stage: Stage) -> str:
    """Where the stage writes, below data and below reports: `prune`, or `prune_also/finetune`."""
    return stage.name.replace("@", "/")


_STATISTICS_BATCHES = 20
_LOOKED_AT = 16  # validation images whose logits must be the same after loading
_CRITERION_BATCH = 64


def plan_of(
    params: Params,
    source: checkpoint.Loaded,
    data: store.Store,
    asked: target.Target | None = None,
    device: torch.device | str = "cpu",
) -> rounds.PruningPlan:
    """The section ``prune`` for this network. ``asked``: another target than the section's, which becomes the nearest
    that can be reached. ``device``: where criteria look at images."""
    return rounds.PruningPlan(
        asked or params.prune.asked,
        way_of(params),
        source.model,
        source.preprocessing.shape,
        examples=examples_of(params, data, source.preprocessing, device),
        seed=params.run.seed,
        memory_format=learning.memory_format_of(params),
        within_reach=asked is not None,
    )


def way_of(params: Params) -> rounds.Way:
    section = params.prune
    return rounds.Way(
        criterion=section.criterion,
        scope=section.scope,
        schedule=section.schedule,
        rounds=section.rounds,
        round_to=section.round_to,
        keep=section.keep,
        stop_drop=section.stop_drop,
        rewind=section.rewind,
        warm_up=section.sparsity > 0,
    )


def examples_of(
    params: Params, data: store.Store, preprocessing: views.Preprocessing, device: torch.device | str = "cpu"
) -> criteria.Examples | None:
    """``prune.images`` labelled images and the cross-entropy, for criteria that look at data."""
    if not criteria.look_up(params.prune.criterion).needs_examples:
        return None
    labelled = data.splits["labelled"]
    drawn = np.random.default_rng(params.run.seed).permutation(labelled)[: params.prune.images]
    batches = [
        (
            views.preprocess(read_rows(data.images, part), preprocessing, device),
            torch.from_numpy(data.labels[part]).to(device),
        )
        for part in np.array_split(np.sort(drawn), max(1, len(drawn) // _CRITERION_BATCH))
    ]
    return criteria.Examples(batches, F.cross_entropy)


def plan_steps(params: Params, images: int) -> int:
    """Steps of one round of recovery over so many images, by which the rounds' curves are set one after the other."""
    plan = params.prune.training
    return training.steps_of(
        images, batch_size=plan.batch_size, steps=plan.steps, epochs=plan.epochs, validate_every=None
    )[0]


def _recovery(
    stage: Stage, data: store.Store, preprocessing: views.Preprocessing, pool: npt.NDArray[np.int64], fabric: Any
) -> rounds.Recover:
    """Re-estimate statistics, then train with the teacher's signals."""
    params, section, plan = stage.params, stage.params.prune, stage.params.prune.training
    validate = learning.validation_of(params, data, preprocessing, fabric)
    autocast = training.autocast(fabric.device, params.run.precision)

    def recover(number: int, model: nn.Module, held: masks.Masks) -> tuple[float, list[training.Row]]:
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
        model.to(fabric.device).to(memory_format=learning.memory_format_of(params))
        with autocast():
            pruning.reestimate_statistics(model, lambda step: batches(step).images, _STATISTICS_BATCHES)
        training.share_buffers(model, fabric)
        before = validate(model)["val_accuracy"]
        resume = stage.resume / f"round-{number}"
        resume.mkdir(exist_ok=True)
        distilled = distillation.step_of(params, data, model, len(batches), fabric.device)
        # the scales are pushed down for the next cut: after the last there is none (Liu et al. 2017, section 3). What
        # counts is how far down they are, so the last weights are kept and not those that validated best before
        weight = section.sparsity if number < section.rounds else 0.0
        pace = plan.model_copy(update={"validate_every": plan_steps(params, len(pool))}) if weight else plan
        with masks.held(model, held) if held else contextlib.nullcontext():
            history = learning.learn(
                stage,
                f"{stage.name} {number}/{section.rounds}",
                model,
                batches,
                _with_penalty(distilled.step, weight),
                pace,
                data,
                preprocessing,
                fabric,
                resume=resume,
                record_prefix=f"round_{number}/",
                extra=distilled.extra,
            )
        return before, history

    return recover


def _with_penalty(
    step: Callable[[nn.Module, training.Batch, int], dict[str, Tensor]], weight: float
) -> Callable[[nn.Module, training.Batch, int], dict[str, Tensor]]:
    if weight == 0.0:
        return step

    def penalised(model: nn.Module, batch: training.Batch, number: int) -> dict[str, Tensor]:
        parts = step(model, batch, number)
        penalty = weight * criteria.scale_penalty(model)
        return {**parts, "loss": parts["loss"] + penalty, "scale_penalty": penalty}

    return penalised


def _reached(stage: Stage, plan: rounds.PruningPlan, found: rounds.Rounds, chosen: int, images: int) -> dict[str, Any]:
    """reports/prune/target.json: what was asked, what came out, and the sentences that say so everywhere."""
    rows = found.rows
    asked, row = plan.target, next(row for row in rows if row["round"] == chosen)
    lost = rounds.drop_in(row, images, asked.bound)
    size, source_size = float(row[asked.column]), float(rows[0][asked.column])
    candidate = "prune" if stage.name == "prune" else f"prune_{source_of(stage)}"
    met = bool(row["target_met"])
    return {
        "candidate": candidate,
        "source": source_of(stage),
        "target": {asked.key: asked.value},
        "met": met,
        "round": chosen,
        "unit": target.UNITS[asked.unit],
        "size": size,
        "source_size": source_size,
        "limit": None if asked.is_drop else plan.limit,
        "loss_points": lost.points,
        "loss_low": lost.low,
        "loss_high": lost.high,
        "loss_bound": asked.bound,
        "within_bound": lost.outcome,
        "images": images,
        "lines": target.describe(
            asked,
            candidate=candidate,
            source=source_of(stage),
            size=size,
            source_size=source_size,
            met=met,
            why="" if met else rounds.why_missed(asked, plan.way, lost, cut_to_it=found.cut_to_limit(plan, row)),
            drop=lost,
            clocked=(row["latency_low"], row["latency_high"]) if asked.is_measured else None,
        ),
    }


def _record_curve(stage: Stage, history: Path, before: int) -> None:
    """A round's learning curve under the names that every training stage uses (``val/accuracy``).

    Its first step follows the ``before`` steps of the rounds before, as in reports/prune/history.csv. ``learn`` records
    a round as it happens, as ``round_N/val/accuracy``; this is done when it is whole, from its file: so the run of a
    stage that was killed and goes on has the rounds before as well, and no step twice.
    """
    for row in pd.read_csv(history).to_dict("records"):
        step = before + int(row.pop("step"))
        stage.record.metrics({learning._metric(str(key)): value for key, value in row.items()}, step=step)


def _write(stage: Stage, rows: list[rounds.Row], chosen: int, reached: dict[str, Any], steps: int) -> None:
    """The chosen network, every round beside it, the tables; and the same for the record."""
    kept, place = stage.resume / "rounds", subfolder_of(stage)
    with stage.output(f"data/{place}") as out:
        places = {out: chosen} | {out / "rounds" / str(row["round"]): row["round"] for row in rows[1:]}
        for folder, number in places.items():
            folder.mkdir(parents=True, exist_ok=True)
            for path in (kept / str(number)).glob("model.*"):
                shutil.copy2(path, folder / path.name)
    histories = [pd.read_csv(kept / str(row["round"]) / rounds.HISTORY).assign(round=row["round"]) for row in rows[1:]]
    with stage.output(f"reports/{place}/history.csv") as path:
        curve = pd.concat(histories)
        curve["step"] += (curve["round"] - 1) * steps
        curve.to_csv(path, index=False)
    with stage.output(f"reports/{place}/rounds.csv") as path:
        pd.DataFrame(rows).to_csv(path, index=False)
    with stage.output(f"reports/{place}/target.json") as path:
        path.write_text(json.dumps(reached, indent=2) + "\n", encoding="utf-8")

    for row in rows:
        numbers = {f"prune/{k}": float(v) for k, v in row.items() if k not in ("round", "chosen", "target_met")}
        stage.record.metrics(numbers, step=row["round"])
    stage.record.metrics({"prune/target_met": float(reached["met"])})
    stage.record.tags({"mlflow.note.content": "\n\n".join(reached["lines"])})
    stage.record.artifact(f"reports/{place}/rounds.csv")
    stage.record.artifact(f"reports/{place}/target.json")
    stage.record.artifact(f"data/{place}/{checkpoint.WEIGHTS}", "checkpoint")
    stage.record.artifact(f"data/{place}/{checkpoint.SPEC}", "checkpoint")
    best = next(row for row in rows if row["round"] == chosen)
    stage.record.metrics({"val/best_accuracy": best["accuracy_after"]})
    # of the MACs where channels went; masks leave those as they are
    what, key = ("MACs", "macs") if stage.params.prune.granularity == "channels" else ("parameters not zero", "nonzero")
    stage.say(
        f"{stage.name}: round {chosen} chosen: {best[key] / rows[0][key]:.0%} of the {what}, validation "
        f"accuracy {rows[0]['accuracy_after']:.2%} -> {best['accuracy_after']:.2%}"
    )


if __name__ == "__main__":
    run_stage(f"prune_also@{sys.argv[1]}" if len(sys.argv) > 1 else "prune", prune)
