"""small: the control at prune's size. What people do without a teacher: cut as far, then train on the labels alone.

The network is the pretrained one, fine-tuned, or `scratch`: the student with its own start and no teacher.
Criterion, scope, widths, rounds of cutting, views, optimiser and number of steps are those of `prune`.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

from torch import nn

from tasks import learning
from tasks.prune import plan_of, plan_steps
from tasks.stage import Stage, run_stage
from thinner.compress import masks
from thinner.compress.target import Target
from thinner.data import store
from thinner.errors import UserError
from thinner.measure import profiling
from thinner.networks import checkpoint
from thinner.params import Params


def small(stage: Stage) -> None:
    params, section = stage.params, stage.params.small
    data = store.open_store(learning.PREPARED)
    fabric = learning.fabric_of(params)
    name = section.source
    source, goal = checkpoint.load(f"data/{name}"), checkpoint.load("data/prune")
    preprocessing = source.preprocessing
    stage.record.dataset("prepared", data.sha256, learning.PREPARED, {k: len(v) for k, v in data.splits.items()})

    plan = plan_of(params, source, data, size_of(params, goal.model, goal.preprocessing.shape))
    stage.say(f"small: {name} has {plan.words}")
    if (own := plan.size(source.model)) < plan.limit:
        raise UserError(
            f"small.source: {name} has {plan.target.sized(own)}, less than the {plan.target.sized(plan.limit)} of "
            f"prune: it is no control at that size. Set small.source: {'scratch' if name == 'finetune' else 'finetune'}"
        )
    model, held = plan.cut_in_rounds(source.model)

    # before the first round scales are pushed down as long as a round takes
    rounds = len(list(Path("data/prune/rounds").iterdir())) + (params.prune.sparsity > 0)
    steps = rounds * plan_steps(params, len(learning.training_pool(data)))
    budget = params.prune.training.model_copy(update={"steps": steps, "epochs": None})
    with masks.held(model, held) if held else contextlib.nullcontext():
        history = learning.learn_labels(
            stage, model, budget, section, params.student.augment, data, preprocessing, fabric
        )
    spec = learning.spec_of("small", source.network, preprocessing, data, {name: source.sha256})
    learning.finish(stage, model, spec, history)


def size_of(params: Params, pruned: nn.Module, shape: tuple[int, int, int]) -> Target:
    """A target of prune's own size, counted as prune counts it; ``shape``: channels, height, width of what it sees."""
    asked = params.prune.asked
    if asked.granularity != "channels":
        return replace(asked, key="params", value=profiling.count_params(pruned, nonzero=True))
    if asked.key == "params":
        return replace(asked, value=profiling.count_params(pruned))
    return replace(asked, key="macs", value=profiling.count_macs(pruned, shape))


if __name__ == "__main__":
    run_stage("small", small)
