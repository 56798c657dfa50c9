"""finetune: the pretrained network, with a new head, adapted to the labelled images: the baseline and the teacher."""

from tasks import learning
from tasks.stage import Stage, run_stage
from thinner import models, store


def finetune(stage: Stage) -> None:
    params, section = stage.params, stage.params.finetune
    data = store.open_store(learning.PREPARED)
    fabric = learning.fabric_of(params)
    preprocessing = learning.preprocessing_of(section)

    model, network, start = learning.started(stage, section, len(data.classes))
    frozen = models.freeze(model, section.freeze)
    stage.say(f"finetune: {section.network}, weights {start.source}, {len(frozen)} frozen parts")
    stage.record.dataset("prepared", data.sha256, learning.PREPARED, {k: len(v) for k, v in data.splits.items()})

    plan = section.training
    history = learning.learn_labels(stage, model, plan, plan, section.augment, data, preprocessing, fabric)
    spec = learning.spec_of("finetune", network, preprocessing, data, start.parents)
    learning.finish(stage, model, spec, history)


if __name__ == "__main__":
    run_stage("finetune", finetune)
