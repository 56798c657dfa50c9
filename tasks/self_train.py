"""self_train: the fine-tuned network once more, with the pictures that have no labels; beside it the control.

Both start from data/finetune and train for the same steps, with the same rates and schedule, on as many images a step:
the control on labelled ones alone. The later stages are taught by the self-trained network only if it is shown better,
on the validation images, than the plain one and than the control (`teachers.plain_or_self_trained`).
"""

from __future__ import annotations

import copy
import json
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from tasks import learning
from tasks.stage import Stage, run_stage
from thinner.data import store, views
from thinner.errors import UserError
from thinner.evidence import decision
from thinner.evidence.self_training_line import self_training_line
from thinner.learn import self_training, training
from thinner.networks import checkpoint, models

CONTROL = "control"  # in the stage's folders, and before the names of its metrics


def self_train(stage: Stage) -> None:
    params, section = stage.params, stage.params.self_train
    data = store.open_store(learning.PREPARED)
    if not len(data.splits["unlabelled"]):
        raise UserError(
            "self_train.networks: learns from pictures without labels, and there are none. Set data.unlabelled: rest, "
            "or self_train.networks: []"
        )
    smoothing = section.training.label_smoothing
    most = 1.0 - smoothing + smoothing / len(data.classes)
    if section.method == "fixmatch" and section.threshold > most:
        raise UserError(
            f"self_train.threshold: {section.threshold:g} is hardly ever reached with training.label_smoothing: "
            f"{smoothing:g} and {len(data.classes)} classes: the target itself is {most:.3f}. Set "
            "self_train.training.label_smoothing: 0.0, or self_train.method: freematch"
        )
    fabric = learning.fabric_of(params)
    place = stage.name.replace("@", "/")
    source = checkpoint.load(f"data/{stage.name.partition('@')[2]}")
    stage.record.dataset("prepared", data.sha256, learning.PREPARED, {k: len(v) for k, v in data.splits.items()})

    learner, control = copy.deepcopy(source.model), copy.deepcopy(source.model)
    stage.say(f"self_train: the control, {section.training.steps:,} steps with labelled images alone")
    its_history = _control(stage, control, source.preprocessing, data, fabric)
    stage.say(f"self_train: {section.method}, {section.training.steps:,} steps")
    history = _self_trained(stage, learner, source.preprocessing, data, fabric)

    validation = data.splits["validation"]
    names = (decision.PLAIN, decision.CONTROL, decision.LEARNER)
    answers = {
        name: _answers(stage, model, data, source.preprocessing, validation, fabric)
        for name, model in zip(names, (source.model, control, learner), strict=True)
    }
    found = self_training.decide(np.asarray(data.labels[validation]), answers, params.imbalance.choose_by)
    text = json.dumps(found, indent=2) + "\n"

    with stage.output(f"data/{place}") as folder:
        checkpoint.save(folder, learner, _spec(stage, source, data, history))
        checkpoint.save(folder / CONTROL, control, _spec(stage, source, data, its_history))
        (folder / decision.FILE).write_text(text, encoding="utf-8")
    with stage.output(f"reports/{place}/{decision.FILE}") as path:
        path.write_text(text, encoding="utf-8")
    learning.write_history(stage, f"reports/{place}/history.csv", history)
    learning.write_history(stage, f"reports/{place}/{CONTROL}/history.csv", its_history)
    stage.record.metrics({f"val/{name}": value for name, value in found["accuracy"].items()})
    for file in (checkpoint.WEIGHTS, checkpoint.SPEC):
        stage.record.artifact(f"data/{place}/{file}", "checkpoint")
    stage.say(f"self_train: {self_training_line(found)}")


def _control(
    stage: Stage, model: nn.Module, preprocessing: views.Preprocessing, data: store.Store, fabric: Any
) -> list[training.Row]:
    """Train on with the labels alone: a step learns from as many images as one of the learner's."""
    section, plain = stage.params.self_train, stage.params.finetune
    models.freeze(model, plain.freeze)
    plan = section.training
    budget = plan.model_copy(update={"batch_size": plan.batch_size * (1 + section.ratio)})
    resume = stage.resume / CONTROL
    resume.mkdir(exist_ok=True)
    return learning.learn_labels(
        stage, model, budget, plan, plain.augment, data, preprocessing, fabric,
        resume=resume, record_prefix=f"{CONTROL}/", scales=learning.scales_of(plain, model),
    )  # fmt: skip


def _self_trained(
    stage: Stage, model: nn.Module, preprocessing: views.Preprocessing, data: store.Store, fabric: Any
) -> list[training.Row]:
    params, section = stage.params, stage.params.self_train
    plan = section.training
    models.freeze(model, params.finetune.freeze)

    def mean(own: Tensor) -> Tensor:
        reduced: Tensor = fabric.all_reduce(own, reduce_op="mean")
        return reduced

    threshold: float | self_training.Thresholds = section.threshold
    if section.method == "freematch":
        means = {"mean": mean} if fabric.world_size > 1 else {}
        threshold = self_training.Thresholds(len(data.classes), section.momentum, **means)
    labelled = learning.batches_of(
        stage, data, data.splits["labelled"], preprocessing, params.finetune.augment, plan.batch_size, fabric,
        balanced=params.imbalance.sampling == "balanced",
    )  # fmt: skip
    weak = learning.batches_of(
        stage, data, data.splits["unlabelled"], preprocessing, section.weak, section.ratio * plan.batch_size, fabric
    )
    return learning.learn(
        stage,
        stage.name,
        model,
        self_training.Batches(labelled, weak, learning.policy_of(section.strong)),
        self_training.step_of(
            threshold=threshold,
            weight=section.weight,
            label_smoothing=plan.label_smoothing,
            prepare=learning.mixing(stage, plan, len(data.classes)),
            balance=learning.balance_of(params, data, fabric.device, drawn_evenly=True),
        ),
        plan,
        data,
        preprocessing,
        fabric,
        extra=threshold if isinstance(threshold, self_training.Thresholds) else None,
        scales=learning.scales_of(params.finetune, model),
    )


def _answers(
    stage: Stage,
    model: nn.Module,
    data: store.Store,
    preprocessing: views.Preprocessing,
    index: npt.NDArray[np.int64],
    fabric: Any,
) -> npt.NDArray[np.int64]:
    autocast = training.autocast(fabric.device, stage.params.run.precision)
    model.to(fabric.device).to(memory_format=learning.memory_format_of(stage.params))
    logits = training.logits_of(model, data.images, index, preprocessing, device=fabric.device, autocast=autocast)
    return np.asarray(logits.argmax(1).numpy())


def _spec(stage: Stage, source: checkpoint.Loaded, data: store.Store, history: list[training.Row]) -> dict[str, Any]:
    choose_by = stage.params.imbalance.choose_by
    best = learning.best_of(history, choose_by)
    parents = {stage.name.partition("@")[2]: source.sha256}
    spec = learning.spec_of(stage.name, source.network, source.preprocessing, data, parents)
    return {**spec, "val_accuracy": best["val_accuracy"], f"val_{choose_by}": best[f"val_{choose_by}"]}


if __name__ == "__main__":
    run_stage(f"self_train@{sys.argv[1]}", self_train)
