"""scratch: the control. The student's network, views and number of steps, but only labels and no teacher."""

from tasks import learning
from tasks.stage import Stage, run_stage
from thinner import models, store, training


def scratch(stage: Stage) -> None:
    params, section, plan = stage.params, stage.params.scratch, stage.params.student.training
    data = store.open_store(learning.PREPARED)
    fabric = learning.fabric_of(params)
    model, network, parents = learning.new_student(stage, data)
    preprocessing = learning.preprocessing_of(params.student)
    stage.record.dataset("prepared", data.sha256, learning.PREPARED, {k: len(v) for k, v in data.splits.items()})

    # the control may look at a new view in every pass; only the teacher's views are limited in number
    batches = learning.batches_of(
        stage, data, data.splits["labelled"], preprocessing, params.student.augment, plan.batch_size, fabric
    )
    mixed = lambda batch, number: training.mix(  # noqa: E731
        batch, mixup=section.mixup, cutmix=section.cutmix, classes=len(data.classes), seed=params.run.seed, step=number
    )
    history = learning.learn(
        stage,
        "scratch",
        model,
        batches,
        training.supervised_step(section.label_smoothing, mixed),
        plan,
        data,
        preprocessing,
        fabric,
        resume=stage.resume,
        head=models.head_of(model)[0],
    )
    learning.finish(stage, model, learning.spec_of("scratch", network, preprocessing, data, parents), history)


if __name__ == "__main__":
    run_stage("scratch", scratch)
