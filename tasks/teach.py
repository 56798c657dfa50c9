"""teach: the teacher's signals for every training image and view that students will see, computed once."""

import torch

from tasks import learning, teachers
from tasks.stage import Stage, run_stage
from thinner.data import store
from thinner.learn import signals, training

TEACH = "data/teach"


def teach(stage: Stage) -> None:
    params, section = stage.params, stage.params.teach
    data = store.open_store(learning.PREPARED)
    # one process, since the file has one writer; the teacher is on each of its GPUs
    fabric = training.make_fabric(params.run.device, 1, params.run.precision)
    features = [signals.Feature(kept.layer, kept.keep == "pooled") for kept in section.features]
    chosen = teachers.teacher(params, data, fabric.device, features)
    further = [torch.device("cuda", n) for n in range(1, params.run.devices)] if fabric.device.type == "cuda" else []
    others = [(teachers.teacher(params, data, device, features).query, device) for device in further]
    pool = learning.training_pool(data)
    stage.record.dataset("prepared", data.sha256, learning.PREPARED, {k: len(v) for k, v in data.splits.items()})

    total = section.views * len(pool)
    with stage.output(TEACH) as folder, stage.progress("teach", total) as bar:
        signals.write_signals(
            folder,
            chosen.query,
            data.images,
            pool,
            count=section.views,
            policy=learning.policy_of(params.student.augment),
            seed=params.run.seed,
            batch_size=section.batch_size,
            device=fabric.device,
            info={"teachers": chosen.sha256, "weights": chosen.weights, "data_sha256": data.sha256},
            work=stage.resume,
            top_k=section.top_k,
            features=features,
            others=others,
            on_images=lambda done: bar.update(done, images=done),
            say=lambda text: stage.say(f"teach: {text}"),
        )
    stage.record.metrics({"teach/images": float(total)})
    for name, weight in chosen.weights.items():
        if len(chosen.weights) > 1:
            stage.say(f"teach: {name} counts {weight:.1%}")
    kept = "logits" if section.top_k is None else f"the {section.top_k} largest logits"
    layers = "".join(f", {feature.layer} ({'pooled' if feature.pooled else 'map'})" for feature in features)
    stage.say(f"teach: {kept}{layers} for {section.views} view(s) of {len(pool):,} images in {TEACH}")


if __name__ == "__main__":
    run_stage("teach", teach)
