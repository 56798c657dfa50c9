"""small: the control at prune's size. What people do without a teacher: cut as far, then train on the labels alone.

The network is the pretrained one, fine-tuned, or `scratch`: the student with its own start and no teacher.
Criterion, scope, widths, rounds of cutting, views, optimiser and number of steps are those of `prune`.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from torch import nn

from tasks import learning
from tasks.prune import Knife, examples_of, plan_steps
from tasks.stage import Stage, run_stage
from thinner import checkpoint, masks, profiling, store
from thinner.config import Params


def small(stage: Stage) -> None:
    params, section = stage.params, stage.params.small
    data = store.open_store(learning.PREPARED)
    fabric = learning.fabric_of(params)
    name = section.source
    source, goal = checkpoint.load(f"data/{name}"), checkpoint.load("data/prune")
    preprocessing = source.spec["preprocessing"]
    stage.record.dataset("prepared", data.sha256, learning.PREPARED, {k: len(v) for k, v in data.splits.items()})

    knife = Knife(
        params.model_copy(update={"prune": params.prune.model_copy(update={"target": _size_of(params, goal)})}),
        source.model,
        _shape_of(source),
        examples_of(params, data, preprocessing),
        within_reach=True,
    )
    stage.say(f"small: {name} has {knife.plan}")
    model: nn.Module = source.model
    held: masks.Masks = {}
    for number in range(1, params.prune.rounds + 1):
        if knife.size(model) > (allowed := knife.allowed(number, model)):
            model, held = knife.cut(model, allowed, number, None)

    rounds = len(list(Path("data/prune/rounds").iterdir()))
    steps = rounds * plan_steps(params, len(learning.training_pool(data)))
    plan = params.prune.training.model_copy(update={"steps": steps, "epochs": None})
    with masks.held(model, held) if held else contextlib.nullcontext():
        history = learning.learn_labels(
            stage, model, plan, section, params.student.augment, data, preprocessing, fabric
        )
    spec = learning.spec_of("small", source.spec["network"], preprocessing, data, {name: source.sha256})
    learning.finish(stage, model, spec, history)


def _shape_of(made: checkpoint.Loaded) -> tuple[int, int, int]:
    """Of an image as this network wants it."""
    wants = made.spec["preprocessing"]
    return wants["channels"], wants["image_size"], wants["image_size"]


def _size_of(params: Params, goal: checkpoint.Loaded) -> dict[str, int]:
    """A target of prune's own size, counted as prune counts it."""
    if params.prune.granularity != "channels":
        return {"params": profiling.count_params(goal.model, nonzero=True)}
    if params.prune.goal[0] == "params":
        return {"params": profiling.count_params(goal.model)}
    return {"macs": profiling.count_macs(goal.model, _shape_of(goal))}


if __name__ == "__main__":
    run_stage("small", small)
