"""finetune: the pretrained network, with a new head, adapted to the labelled images: the baseline and the teacher."""

import copy
from typing import Any

from torch import nn

from tasks import learning
from tasks.stage import Stage, run_stage
from thinner.data import store, views
from thinner.networks import models


def finetune(stage: Stage) -> None:
    params, section = stage.params, stage.params.finetune
    data = store.open_store(learning.PREPARED)
    fabric = learning.fabric_of(params)
    preprocessing = views.Preprocessing.of(section)

    model, network, start = learning.started(stage, section, len(data.classes))
    frozen = models.freeze(model, section.freeze)
    stage.say(f"finetune: {section.network}, weights {start.source}, {len(frozen)} frozen parts")
    stage.record.dataset("prepared", data.sha256, learning.PREPARED, {k: len(v) for k, v in data.splits.items()})

    plan = section.training
    if section.probe_steps:
        _probe(stage, model, data, preprocessing, fabric)
    history = learning.learn_labels(
        stage, model, plan, plan, section.augment, data, preprocessing, fabric,
        scales=learning.scales_of(section, model),
    )  # fmt: skip
    spec = learning.spec_of("finetune", network, preprocessing, data, start.parents)
    learning.finish(stage, model, spec, history)


def _probe(stage: Stage, model: nn.Module, data: store.Store, preprocessing: views.Preprocessing, fabric: Any) -> None:
    """Train the head alone, on features as they are: where it starts from noise, its first gradients spoil them (Kumar
    et al. 2022, https://arxiv.org/abs/2202.10054)."""
    section = stage.params.finetune
    probe = copy.deepcopy(model)  # or its batch norms would stay as they are for good
    models.freeze_all(probe)
    for _, head in models.heads_of(probe):
        head.requires_grad_(True)
    budget = section.training.model_copy(
        update={"steps": section.probe_steps, "epochs": None, "validate_every": section.probe_steps, "keep_step": None}
    )
    resume = stage.resume / "probe"
    resume.mkdir(exist_ok=True)
    history = learning.learn_labels(
        stage, probe, budget, section.training, section.augment, data, preprocessing, fabric,
        resume=resume, record_prefix="probe/",
    )  # fmt: skip
    model.load_state_dict(probe.state_dict())
    stage.say(f"finetune: the head alone, {section.probe_steps} steps: {history[-1]['val_accuracy']:.2%} on validation")


if __name__ == "__main__":
    run_stage("finetune", finetune)
