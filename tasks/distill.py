"""distill: the student learns from the teacher's signals on every training image, labelled or not."""

from tasks import distillation, learning, teachers
from tasks.stage import Stage, run_stage
from thinner.data import store, views


def distill(stage: Stage) -> None:
    params, plan = stage.params, stage.params.student.training
    data = store.open_store(learning.PREPARED)
    fabric = learning.fabric_of(params)
    model, network, parents = learning.new_student(stage, data)
    preprocessing = views.Preprocessing.of(params.student)
    stage.record.dataset("prepared", data.sha256, learning.PREPARED, {k: len(v) for k, v in data.splits.items()})

    batches = learning.batches_of(
        stage,
        data,
        learning.training_pool(data),
        preprocessing,
        params.student.augment,
        plan.batch_size,
        fabric,
        number_of_views=params.teach.views,
    )
    distilled = distillation.step_of(params, data, model.to(fabric.device), len(batches), fabric.device)
    history = learning.learn(
        stage,
        "distill",
        model,
        batches,
        distilled.step,
        plan,
        data,
        preprocessing,
        fabric,
        extra=distilled.extra,
    )
    spec = learning.spec_of("distill", network, preprocessing, data, parents | teachers.parents(params))
    learning.finish(stage, model, spec, history)


if __name__ == "__main__":
    run_stage("distill", distill)
