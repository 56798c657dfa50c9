"""What the four training stages share: params.yaml's words turned into thinner's plain arguments."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor, nn

from tasks.stage import Stage
from thinner.data import store, views
from thinner.files import tensors as tensor_files
from thinner.files import whole
from thinner.learn import imbalance, training
from thinner.measure import scores
from thinner.networks import checkpoint, models, weights
from thinner.networks.spec import NetworkSpec
from thinner.params import Augmentation, Budget, Finetune, Network, Params

PREPARED = "data/prepared"
EARLY = "early"  # in a training stage's folder: the weights after keep_step steps, for prune.rewind


class Drawn(Protocol):
    """What `learn` draws from: the batch of a step, and the images that an epoch is counted by."""

    @property
    def pool(self) -> npt.NDArray[np.int64]: ...

    def __call__(self, step: int) -> training.Batch: ...


def policy_of(augment: Augmentation) -> views.Policy:
    return views.Policy(**augment.model_dump())


def spec_of(
    stage: str, network: NetworkSpec, preprocessing: views.Preprocessing, data: store.Store, parents: dict[str, str]
) -> dict[str, Any]:
    return {
        "stage": stage,
        "network": network.as_json(),
        "classes": list(data.classes),
        "preprocessing": preprocessing.as_json(),
        "parents": parents,
        "data_sha256": data.sha256,
    }


def batches_of(
    stage: Stage,
    data: store.Store,
    pool: npt.NDArray[np.int64],
    preprocessing: views.Preprocessing,
    augment: Augmentation,
    batch_size: int,
    fabric: Any,
    number_of_views: int | None = None,
    balanced: bool = False,
) -> training.Batches:
    run = stage.params.run
    return training.Batches(
        images=data.images,
        labels=data.labels,
        pool=pool,
        batch_size=batch_size,
        seed=run.seed,
        size=preprocessing.image_size,
        mean=preprocessing.mean,
        std=preprocessing.std,
        policy=policy_of(augment),
        views=number_of_views,
        device=fabric.device,
        channels_last=run.channels_last,
        rank=fabric.global_rank,
        world=fabric.world_size,
        balanced=balanced,
        there=training.on_device(data.images, fabric.device),
    )


def balance_of(
    params: Params, data: store.Store, device: torch.device, *, drawn_evenly: bool
) -> imbalance.Balance | None:
    """What the section ``imbalance`` does to a cross-entropy with the labels; None where all is at rest.

    ``drawn_evenly``: whether batches can be drawn by class. Those that hold unlabelled images cannot, and there the
    weights do what the drawing would: on average the two are the same. UserError where a class has no labelled image.
    """
    how = params.imbalance
    key = next((f"imbalance.{key}" for key in ("weights", "sampling") if getattr(how, key) == "balanced"), "")
    if not key and how.logit_adjustment == 0.0:
        return None
    labelled = data.labels[data.splits["labelled"]]
    counts = imbalance.class_counts(labelled, data.classes, key or "imbalance.logit_adjustment")
    return imbalance.balance(
        counts,
        weights=bool(key) and not (how.sampling == "balanced" and drawn_evenly),
        logit_adjustment=how.logit_adjustment,
        device=device,
    )


def memory_format_of(params: Params) -> torch.memory_format:
    return torch.channels_last if params.run.channels_last else torch.contiguous_format


def fabric_of(params: Params) -> Any:
    run = params.run
    fabric = training.make_fabric(run.device, run.devices, run.precision, run.nodes)
    if isinstance(run.threads, int):  # Fabric gives each process its share of the cores, which is `auto`
        torch.set_num_threads(run.threads)
    return fabric


@contextlib.contextmanager
def first_alone(fabric: Any) -> Iterator[None]:
    """The first process goes through the block while the others wait for it to come out: what it times has the machine
    to itself."""
    if fabric.global_rank > 0:
        fabric.barrier()
    try:
        yield
    finally:
        if fabric.global_rank == 0:
            fabric.barrier()


def validation_of(
    params: Params, data: store.Store, preprocessing: views.Preprocessing, fabric: Any
) -> Callable[[nn.Module], training.Row]:
    """What chooses among the weights of a training: the validation split, in the training's precision."""
    return training.validation(
        data.images,
        data.labels,
        data.splits["validation"],
        preprocessing,
        device=fabric.device,
        autocast=training.autocast(fabric.device, params.run.precision),
        fabric=fabric,
        choose_by=params.imbalance.choose_by,
    )


def learn(
    stage: Stage,
    name: str,
    model: nn.Module,
    batches: Drawn,
    step: Callable[[nn.Module, training.Batch, int], dict[str, Tensor]],
    plan: Budget,
    data: store.Store,
    preprocessing: views.Preprocessing,
    fabric: Any,
    *,
    resume: Path | None = None,
    record_prefix: str = "",
    extra: nn.Module | None = None,
    scales: Mapping[str, float] | None = None,
) -> list[training.Row]:
    """Train as ``plan`` says, shown and recorded; returns the rows of the learning curve. ``resume``: where states go,
    if the stage trains more than once."""
    run = stage.params.run
    resume = resume or stage.resume
    steps, validate_every = training.steps_of(
        len(batches.pool),
        batch_size=plan.batch_size,
        steps=plan.steps,
        epochs=plan.epochs,
        validate_every=plan.validate_every,
    )
    model.to(memory_format=memory_format_of(stage.params))
    choose_by = stage.params.imbalance.choose_by
    if choose_by != "accuracy" and (unseen := scores.missing(data.labels[data.splits["validation"]], data.classes)):
        named = ", ".join(f"'{name}'" for name in unseen)
        stage.say(f"{name}: imbalance.choose_by: {choose_by} leaves out {named}: no validation image of it")
    if plan.keep_step is not None and fabric.global_rank == 0:
        step = keep_early(model, step, plan.keep_step, resume)
    with stage.progress(name, steps) as bar, contextlib.ExitStack() as stack:

        def on_validation(row: training.Row) -> None:
            stage.record.metrics(
                {record_prefix + _metric(key): value for key, value in row.items() if key != "step"},
                step=int(row["step"]),
            )

        shared = training.synchronised(model, fabric) if run.sync_batch_norm else contextlib.nullcontext()
        stack.enter_context(shared)
        return training.fit(
            model,
            batches,
            step,
            steps=steps,
            validate_every=validate_every,
            optimizer=training.make_optimizer(
                model,
                plan.optimizer,
                lr=plan.lr,
                weight_decay=plan.weight_decay,
                heads=[] if plan.head_lr is None else [path for path, _ in models.heads_of(model)],
                head_lr=plan.head_lr,
                scales=scales,
                extra=extra,
                fused=run.precision != "fp16" or (plan.clip_norm is None and plan.optimizer != "sgd"),
            ),
            factor=lambda number: training.learning_rate_factor(plan.schedule, number, steps, plan.warmup),
            validate=validation_of(stage.params, data, preprocessing, fabric),
            fabric=fabric,
            seed=run.seed,
            clip_norm=plan.clip_norm,
            ema=plan.ema,
            patience=plan.patience,
            choose_by=choose_by,
            compiled=run.compile,
            extra=extra,
            resume=resume,
            on_step=lambda number, row: bar.update(number, **row),
            on_validation=on_validation,
            say=lambda text: stage.say(f"{name}: {text}"),
        )


def scales_of(section: Finetune, model: nn.Module) -> dict[str, float] | None:
    """What each layer's learning rate is multiplied by; None where all learn alike."""
    return None if section.layer_decay == 1.0 else models.layer_scales(model, section.layer_decay)


def learn_labels(
    stage: Stage,
    model: nn.Module,
    plan: Budget,
    how: Any,
    augment: Augmentation,
    data: store.Store,
    preprocessing: views.Preprocessing,
    fabric: Any,
    **further: Any,
) -> list[training.Row]:
    """Train with the labels alone; ``how`` has ``mixup``, ``cutmix`` and ``label_smoothing``; ``further`` as in learn.

    Views are new in every pass: only a teacher's are limited in number.
    """
    balance = balance_of(stage.params, data, fabric.device, drawn_evenly=True)
    mixed = mixing(stage, how, len(data.classes))
    return learn(
        stage,
        stage.name,
        model,
        batches_of(
            stage,
            data,
            data.splits["labelled"],
            preprocessing,
            augment,
            plan.batch_size,
            fabric,
            balanced=stage.params.imbalance.sampling == "balanced",
        ),
        training.supervised_step(how.label_smoothing, mixed, balance),
        plan,
        data,
        preprocessing,
        fabric,
        **further,
    )


def mixing(stage: Stage, how: Any, classes: int) -> Callable[[training.Batch, int], training.Batch]:
    """A batch and the number of its step to the batch with the ``mixup`` and ``cutmix`` of ``how``."""

    def mixed(batch: training.Batch, number: int) -> training.Batch:
        return training.mix(
            batch, mixup=how.mixup, cutmix=how.cutmix, classes=classes, seed=stage.params.run.seed, step=number
        )

    return mixed


def keep_early(
    model: nn.Module,
    step: Callable[[nn.Module, training.Batch, int], dict[str, Tensor]],
    at: int,
    resume: Path,
) -> Callable[[nn.Module, training.Batch, int], dict[str, Tensor]]:
    """``step``, which also writes the weights after ``at`` steps, before the next, into ``resume``: a training that is
    killed later has them still."""

    def keeping(wrapped: nn.Module, batch: training.Batch, number: int) -> dict[str, Tensor]:
        if number == at:
            tensor_files.write(resume / f"{EARLY}.safetensors", model.state_dict())
        return step(wrapped, batch, number)

    return keeping


def _metric(key: str) -> str:
    """``val/accuracy``, ``train/loss``: the same names and steps in every run, so that MLflow lays curves together."""
    return f"val/{key.removeprefix('val_')}" if key.startswith("val_") else f"train/{key}"


def best_of(history: list[training.Row], choose_by: str = "accuracy") -> training.Row:
    return max(history, key=lambda row: (row[f"val_{choose_by}"], -row["val_loss"]))


def write_history(stage: Stage, path: str, history: list[training.Row]) -> None:
    with stage.output(path) as temporary:
        pd.DataFrame(history).astype({"step": int}).to_csv(temporary, index=False)
    stage.record.artifact(path)


def finish(stage: Stage, model: nn.Module, spec: dict[str, Any], history: list[training.Row]) -> None:
    """Write the stage's checkpoint and learning curve, record both, and say what came out."""
    if stage.helper:  # the first process does, and removes what it resumes from
        return
    folder = f"data/{stage.name}"
    choose_by = stage.params.imbalance.choose_by
    best = best_of(history, choose_by)
    spec = {**spec, "val_accuracy": best["val_accuracy"], f"val_{choose_by}": best[f"val_{choose_by}"]}
    with stage.output(folder) as temporary:
        checkpoint.save(temporary, model, spec)
        if (early := stage.resume / f"{EARLY}.safetensors").exists():
            network = copy.deepcopy(model).cpu()
            network.load_state_dict(tensor_files.read(early)[0])
            checkpoint.save(temporary / EARLY, network, spec)
    write_history(stage, f"reports/{stage.name}/history.csv", history)
    stage.record.metrics({f"val/best_{key}": best[f"val_{key}"] for key in dict.fromkeys(("accuracy", choose_by))})
    stage.record.artifact(f"{folder}/{checkpoint.WEIGHTS}", "checkpoint")
    stage.record.artifact(f"{folder}/{checkpoint.SPEC}", "checkpoint")
    chosen = f"accuracy {best['val_accuracy']:.2%}"
    if choose_by != "accuracy":
        chosen = f"{choose_by} {best[f'val_{choose_by}']:.2%} ({chosen})"
    stage.say(f"{stage.name}: best validation {chosen} at step {int(best['step'])}; weights in {folder}")


def training_pool(data: store.Store) -> npt.NDArray[np.int64]:
    """Every image that a student may see: labelled and unlabelled, sorted."""
    return np.sort(np.concatenate([data.splits["labelled"], data.splits["unlabelled"]]))


def started(stage: Stage, section: Network, classes: int) -> tuple[nn.Module, NetworkSpec, models.Start]:
    """(network, its description, where its weights are from) as training begins; what is to be said is said."""
    network = models.describe(section, classes)
    torch.manual_seed(stage.params.run.seed)
    model = models.create(network)
    start = models.load_pretrained(model, network, section.weights)
    for note in (*start.notes, *weights.remarks(section.network, section.weights, views.Preprocessing.of(section))):
        stage.say(f"{stage.name}: {note}")
    return model, network, start


def new_student(stage: Stage, data: store.Store) -> tuple[nn.Module, NetworkSpec, dict[str, str]]:
    """The student's network as it starts, the same for scratch and distill; and what it was made from, for the spec."""
    section = stage.params.student
    model, network, start = started(stage, section, len(data.classes))
    return model, network, {} if section.weights is None else start.parents


def parent(folder: str) -> str:
    """SHA-256 of the weights of the checkpoint in ``folder``."""
    return whole.file_sha256(Path(folder) / checkpoint.WEIGHTS)
