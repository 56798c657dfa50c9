"""teach: the teacher's logits for every training image and view that students will see, computed once."""

from tasks import learning
from tasks.stage import Stage, run_stage
from thinner import checkpoint, signals, store, training

TEACH = "data/teach"


def teach(stage: Stage) -> None:
    params, section = stage.params, stage.params.teach
    data = store.open_store(learning.PREPARED)
    # one process: a teacher that only looks gains little from more, and the file has one writer
    fabric = training.make_fabric(params.run.device, 1, params.run.precision)
    teacher = checkpoint.load("data/finetune")
    pool = learning.training_pool(data)
    stage.record.dataset("prepared", data.sha256, learning.PREPARED, {k: len(v) for k, v in data.splits.items()})

    total = section.views * len(pool)
    with stage.output(TEACH) as folder, stage.progress("teach", total) as bar:
        signals.write_signals(
            folder,
            teacher.model.to(memory_format=learning.memory_format_of(params)),
            data.images,
            pool,
            count=section.views,
            classes=len(data.classes),
            preprocessing=teacher.spec["preprocessing"],
            policy=learning.policy_of(params.student.augment),
            seed=params.run.seed,
            batch_size=section.batch_size,
            device=fabric.device,
            info={"teacher": teacher.sha256, "data_sha256": data.sha256, "views": section.views},
            work=stage.resume,
            on_images=lambda done: bar.update(done, images=done),
        )
    stage.record.metrics({"teach/images": float(total)})
    stage.say(f"teach: {section.views} view(s) of {len(pool):,} images in {TEACH}")


if __name__ == "__main__":
    run_stage("teach", teach)
