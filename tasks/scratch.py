"""scratch: the control. The student's network, views and number of steps, but only labels and no teacher."""

from tasks import learning
from tasks.stage import Stage, run_stage
from thinner.data import store, views


def scratch(stage: Stage) -> None:
    params, section, plan = stage.params, stage.params.scratch, stage.params.student.training
    data = store.open_store(learning.PREPARED)
    fabric = learning.fabric_of(params)
    model, network, parents = learning.new_student(stage, data)
    preprocessing = views.Preprocessing.of(params.student)
    stage.record.dataset("prepared", data.sha256, learning.PREPARED, {k: len(v) for k, v in data.splits.items()})

    history = learning.learn_labels(stage, model, plan, section, params.student.augment, data, preprocessing, fabric)
    learning.finish(stage, model, learning.spec_of("scratch", network, preprocessing, data, parents), history)


if __name__ == "__main__":
    run_stage("scratch", scratch)
