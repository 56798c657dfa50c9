"""The one training loop. Fine-tuning, the control, distillation and recovery differ only in ``step``.

Everything random is a function of the step's number: which images a batch holds, which views of them, dropout,
mixup. So a run that was killed goes on from its last saved state and ends with the very same weights.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from lightning_fabric import Fabric
from torch import Tensor, nn

from thinner.data import views
from thinner.data.ahead import in_advance
from thinner.errors import DamagedError, UserError
from thinner.files import tensors as tensor_files
from thinner.files.mapped import read_rows
from thinner.learn import imbalance
from thinner.measure import scores

Row = dict[str, float]
AHEAD = 2  # batches that are made while a GPU computes
SAVE_SECONDS = 20.0  # a state of every size that fits here is on the disk in a second


class TrainingError(UserError):
    """Training cannot go on: the loss is no number, or a saved state does not fit."""


@dataclass(frozen=True)
class Batch:
    """What a step is given, on the training device."""

    images: Float[Tensor, "batch channels size size"]  # normalised
    labels: Int[Tensor, " batch"]  # -1 where there is none
    index: Int[np.ndarray, " batch"]  # image numbers in the store
    view: Int[np.ndarray, " batch"]
    targets: Float[Tensor, "batch classes"] | None = None  # in place of labels after mixup or cutmix
    labelled: bool | None = None  # whether all have a label, where that is known without asking the device


@dataclass(frozen=True)
class Batches:
    """Batch number ``step`` as a pure function; all have ``batch_size`` images.

    The stream is one permutation of ``pool`` after the other, cut into batches; an image's view number is the
    number of its pass, modulo ``views`` where only so many are known (``None``: a new one in every pass).

    ``balanced``: every class that the pool has comes equally often, each by a stream of its own. The stream of classes
    is cut into blocks, of about a batch, that hold each class as often, in an order of their own; the images of a class
    come by one permutation of them after the other, so a rare class is seen in more passes, each with views of its own.
    A pool without labels cannot be balanced: ValueError.
    """

    images: npt.NDArray[np.uint8]  # [images, height, width, channels], usually memory-mapped
    labels: npt.NDArray[np.int64]
    pool: npt.NDArray[np.int64]
    batch_size: int
    seed: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    policy: views.Policy
    views: int | None = None
    device: torch.device | str = "cpu"
    channels_last: bool = True
    rank: int = 0  # with ``world`` processes each takes every world-th image of a batch
    world: int = 1
    balanced: bool = False
    there: Tensor | None = None  # all ``images`` once more, on the device (`on_device`)

    def __len__(self) -> int:
        """Batches in one pass over the pool."""
        return math.ceil(len(self.pool) / self.batch_size)

    def numbers(self, step: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(image numbers, view numbers) of batch ``step``."""
        position = np.arange(step * self.batch_size, (step + 1) * self.batch_size)[self.rank :: self.world]
        if self.balanced:
            return self._balanced(position)
        passes, offset = np.divmod(position, len(self.pool))
        index = np.empty(len(position), dtype=np.int64)
        for number in np.unique(passes):
            here = passes == number
            index[here] = self.pool[permutation(self.seed, int(number), len(self.pool))[offset[here]]]
        return index, passes if self.views is None else passes % self.views

    @cached_property
    def _members(self) -> list[npt.NDArray[np.int64]]:
        """The pool by class."""
        labels = self.labels[self.pool]
        if (labels < 0).any():
            raise ValueError("balanced: some images of the pool have no label, so their class is not known")
        return [self.pool[labels == k] for k in np.unique(labels)]

    def _balanced(self, position: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        classes = len(self._members)
        often = max(1, self.batch_size // classes)  # so often does a block hold each class
        keep = 2 * classes + 3
        block, offset = np.divmod(position, classes * often)
        slot = np.empty_like(position)
        for number in np.unique(block):
            here = block == number
            slot[here] = permutation(self.seed + _OF_CLASSES, int(number), classes * often, keep)[offset[here]]
        turn, drawn = slot % classes, block * often + slot // classes  # which class, and its how many-th image
        index, passes = np.empty_like(position), np.empty_like(position)
        for k, members in enumerate(self._members):
            own = np.flatnonzero(turn == k)
            passes[own], within = np.divmod(drawn[own], len(members))
            for number in np.unique(passes[own]):
                here = passes[own] == number
                order = permutation(self.seed + _OF_IMAGES, int(number) * classes + k, len(members), keep)
                index[own[here]] = members[order[within[here]]]
        return index, passes if self.views is None else passes % self.views

    def __call__(self, step: int) -> Batch:
        return self.of(*self.numbers(step))

    def of(self, index: npt.NDArray[np.int64], view: npt.NDArray[np.int64]) -> Batch:
        """These views of these images, in the order of the images' numbers."""
        order = np.argsort(index)  # a memory map reads forwards faster, and the sum of a batch has no order
        index, view = index[order], view[order]
        chosen: Any = read_rows(self.images, index) if self.there is None else self.there[self._sent(index)]
        pixels = views.draw(
            chosen,
            index,
            view,
            size=self.size,
            seed=self.seed,
            policy=self.policy,
            device=self.device,
        )
        batch = views.normalise(pixels, list(self.mean), list(self.std))
        if self.channels_last:
            batch = batch.contiguous(memory_format=torch.channels_last)
        labels = self.labels[index]
        return Batch(batch, self._sent(labels), index, view, labelled=bool((labels >= 0).all()))

    def _sent(self, numbers: npt.NDArray[np.int64]) -> Tensor:
        return views.send(torch.from_numpy(numbers), self.device)


_there: dict[tuple[int, torch.device], tuple[npt.NDArray[np.uint8], Tensor]] = {}  # whose key holds while it is kept


def on_device(images: npt.NDArray[np.uint8], device: torch.device) -> views.Stored | None:
    """All ``images`` on a CUDA ``device``, once in this process, where they take no more than a quarter of its memory:
    then no batch has to be read and copied. None elsewhere."""
    if device.type != "cuda" or images.nbytes > torch.cuda.get_device_properties(device).total_memory / 4:
        return None
    if (id(images), device) not in _there:
        _there[id(images), device] = images, torch.from_numpy(np.array(images)).to(device)
    return _there[id(images), device][1]


_permutations: dict[tuple[int, int, int], npt.NDArray[np.int64]] = {}
_OF_CLASSES, _OF_IMAGES = 1 << 40, 2 << 40  # added to a seed (below 2^31), so that no two streams have a key in common


def permutation(seed: int, number: int, length: int, keep: int = 3) -> npt.NDArray[np.int64]:
    """Order of pass ``number``: Philox keyed by the two numbers, so no pass depends on the ones before. ``keep``: how
    many orders are remembered beside it."""
    key = (seed, number, length)
    if key not in _permutations:
        while len(_permutations) > keep:  # a batch meets two passes at the most; a stage has one or two pools
            _permutations.pop(next(iter(_permutations)))
        _permutations[key] = np.random.Generator(np.random.Philox(key=[seed, number])).permutation(length)
    return _permutations[key]


def make_fabric(device: str, devices: int, precision: str, nodes: int = 1) -> Fabric:
    """Devices, precision and data-parallel; ``device`` and ``precision`` as in params.yaml. ``nodes``: machines with so
    many devices each, which find each other as Fabric has it: by torchrun, by SLURM, or by MASTER_ADDR, MASTER_PORT and
    NODE_RANK. Raises TrainingError where nothing tells them how, or SLURM has started another number of processes."""
    lacking = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")  # where Fabric starts them itself
    tasks = None if interactive else os.environ.get("SLURM_NTASKS")
    if devices * nodes > 1 and tasks is not None and tasks != str(devices * nodes):  # it would wait for the others
        raise TrainingError(
            f"run.devices: {devices} and run.nodes: {nodes} are {devices * nodes} processes, but SLURM has started "
            f"{tasks}. Start the stage by srun --nodes {nodes} --ntasks-per-node {devices} (docs/gpu.md)"
        )
    if nodes > 1 and lacking and tasks is None:
        raise TrainingError(
            f"run.nodes: {nodes}, but nothing says where they meet: no {' and no '.join(lacking)}. Set both, "
            "and NODE_RANK, on each node; or start with torchrun or srun (docs/gpu.md); or set run.nodes: 1"
        )
    kinds = {"auto": "auto", "cpu": "cpu", "cuda": "cuda", "mps": "mps"}
    precisions: dict[str, Any] = {"fp32": "32-true", "tf32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
    fabric = Fabric(
        accelerator=kinds[device],
        devices=devices,
        num_nodes=nodes,
        strategy="ddp" if devices * nodes > 1 else "auto",
        precision=precisions[precision],
    )
    if devices * nodes > 1:
        fabric.launch()
    return fabric


Autocast = Callable[[], contextlib.AbstractContextManager[Any]]


def autocast(device: torch.device | str, precision: str) -> Autocast:
    """A context for a forward pass outside of `fit`, with the precision that training has."""
    halves = {"bf16": torch.bfloat16, "fp16": torch.float16}
    if precision not in halves:
        return contextlib.nullcontext
    return partial(torch.autocast, torch.device(device).type, halves[precision])


def make_optimizer(
    model: nn.Module,
    name: str,
    *,
    lr: float,
    weight_decay: float,
    heads: Sequence[str] = (),
    head_lr: float | None = None,
    scales: Mapping[str, float] | None = None,
    extra: nn.Module | None = None,
    fused: bool = True,
) -> torch.optim.Optimizer:
    """``sgd`` (Nesterov momentum 0.9), ``adam`` or ``adamw``; the heads (module paths) may have a rate of their own.
    ``scales`` multiply ``lr`` by tensor (``models.layer_scales``).

    Biases and normalisation weights (tensors of one dimension) are not decayed, as in He et al. 2019, section 3.1
    (https://arxiv.org/abs/1812.01187). ``fused`` has to be off where fp16 meets ``clip_norm``: fused optimisers take
    the loss's scale off the gradients themselves, and so after they would have been clipped. And where it meets
    ``sgd``: PyTorch's fused kernel keeps a momentum that it never wrote where the first step is skipped.
    """
    at_heads = tuple(f"{path}." for path in heads)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    named = [*model.named_parameters(), *(extra.named_parameters() if extra is not None else ())]
    for path, parameter in named:
        if parameter.requires_grad:
            rate = head_lr if head_lr is not None and path.startswith(at_heads) else lr
            rate *= 1.0 if scales is None else scales.get(path, 1.0)
            decay = weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
    if not groups:
        raise TrainingError("nothing to train: every layer is frozen. Lower finetune.freeze")
    parameters = [{"params": p, "lr": rate, "weight_decay": decay} for (rate, decay), p in groups.items()]
    # fused: one pass over each tensor. On a CPU the default walks a network's 150 small tensors eleven times, 90 ms a
    # step for EfficientNet-Lite0.
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=lr, momentum=0.9, nesterov=True, fused=fused)
    if name == "adam":
        return torch.optim.Adam(parameters, lr=lr, fused=fused)
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=lr, fused=fused)
    raise TrainingError(f"optimizer: unknown '{name}'. Choose one of: sgd, adam, adamw")


def steps_of(
    images: int, *, batch_size: int, steps: int | None, epochs: int | None, validate_every: int | None
) -> tuple[int, int]:
    """(total steps, steps between two validations) of a training with ``steps`` or ``epochs`` over ``images`` images;
    validation is once per epoch where ``validate_every`` is None."""
    per_epoch = max(1, math.ceil(images / batch_size))
    total = steps if steps is not None else per_epoch * (epochs or 0)
    return total, min(total, validate_every or per_epoch)


def learning_rate_factor(schedule: str, step: int, steps: int, warmup: float) -> float:
    """What the rate is multiplied by in step ``step`` of ``steps``; ``warmup`` is a ratio of the steps.

    constant, linear and cosine rise linearly and then stay, or fall to zero. onecycle (Smith & Topin 2017,
    https://arxiv.org/abs/1708.07120, in the two-phase cosine form of PyTorch's OneCycleLR) rises by a cosine
    from 1/25 and falls to 1/250,000.
    """
    if schedule == "onecycle":
        peak = max(1.0, warmup * steps - 1.0)
        if step <= peak:
            return _cosine(1 / 25, 1.0, step / peak)
        return _cosine(1.0, 1 / 250_000, min(1.0, (step - peak) / max(1.0, steps - 1 - peak)))
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / (rising + 1)
    done = min(1.0, (step - rising) / max(1, steps - rising))
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        return 1.0 - done
    if schedule == "cosine":
        return _cosine(1.0, 0.0, done)
    raise TrainingError(f"schedule: unknown '{schedule}'. Choose one of: constant, cosine, linear, onecycle")


def _cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) / 2.0 * (1.0 + math.cos(math.pi * done))


def mix(batch: Batch, *, mixup: float, cutmix: float, classes: int, seed: int, step: int) -> Batch:
    """Mixup (Zhang et al. 2018, https://arxiv.org/abs/1710.09412) or CutMix (Yun et al. 2019,
    https://arxiv.org/abs/1905.04899) by torchvision, one of the two per batch where both are asked for.

    Rows without a label are not mixed with others' labels: a batch that has any stays as it is. Partners are drawn:
    torchvision pairs neighbours, and batches are in the order of the store, in which those often are of one class.
    """
    if mixup == 0 and cutmix == 0:
        return batch
    if not (batch.labelled if batch.labelled is not None else bool((batch.labels >= 0).all())):
        return batch
    from torchvision.transforms import v2

    choices: list[Any] = [v2.MixUp(alpha=mixup, num_classes=classes)] if mixup else []
    choices += [v2.CutMix(alpha=cutmix, num_classes=classes)] if cutmix else []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_step_seed(seed, step) ^ 0x5EED)
        order = torch.randperm(len(batch.labels))
        place, rows = views.send(order, batch.images.device), order.numpy()
        images, targets = choices[step % len(choices)](batch.images[place], batch.labels[place])
    if batch.images.is_contiguous(memory_format=torch.channels_last):
        images = images.contiguous(memory_format=torch.channels_last)
    return replace(
        batch, images=images, targets=targets, labels=batch.labels[place], index=batch.index[rows],
        view=batch.view[rows],
    )  # fmt: skip


def supervised_step(
    label_smoothing: float = 0.0,
    prepare: Callable[[Batch, int], Batch] | None = None,
    balance: imbalance.Balance | None = None,
) -> Callable[[nn.Module, Batch, int], dict[str, Tensor]]:
    """`supervised_loss` of the batch, which ``prepare`` may change before (mixup)."""

    def step(model: nn.Module, batch: Batch, number: int) -> dict[str, Tensor]:
        if prepare is not None:
            batch = prepare(batch, number)
        return {"loss": supervised_loss(model(batch.images), batch, label_smoothing, balance)}

    return step


def supervised_loss(
    logits: Float[Tensor, "batch classes"],
    batch: Batch,
    label_smoothing: float = 0.0,
    balance: imbalance.Balance | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy with the batch's labels; with ``balance`` that of `imbalance.cross_entropy`."""
    target = batch.labels if batch.targets is None else batch.targets
    if balance is not None:
        return imbalance.cross_entropy(logits, target, label_smoothing, balance).mean()
    return F.cross_entropy(logits, target, label_smoothing=label_smoothing)


def _step_seed(seed: int, step: int) -> int:
    return (seed * 1_000_003 + step * 7_919 + 17) % 2**63


def fit(
    model: nn.Module,
    batches: Callable[[int], Batch],
    step: Callable[[nn.Module, Batch, int], dict[str, Tensor]],
    *,
    steps: int,
    validate_every: int,
    optimizer: torch.optim.Optimizer,
    factor: Callable[[int], float],
    validate: Callable[[nn.Module], Row],
    fabric: Fabric,
    seed: int,
    clip_norm: float | None = None,
    ema: float = 0.0,
    patience: int | None = None,
    choose_by: str = "accuracy",
    compiled: bool = False,
    extra: nn.Module | None = None,
    resume: Path | None = None,
    save_seconds: float = SAVE_SECONDS,
    on_step: Callable[[int, Row], None] = lambda number, row: None,
    on_validation: Callable[[Row], None] = lambda row: None,
    say: Callable[[str], None] = print,
) -> list[Row]:
    """Train ``model`` in place for ``steps`` steps and leave it with the weights that validated best.

    ``step(model, batch, number)`` returns ``loss`` and named parts; ``batches(number)`` the batch of a step;
    ``factor(number)`` what the optimiser's rates are multiplied by; ``validate(model)`` numbers among which
    ``val_accuracy`` (0 to 1; of another ``choose_by``, ``val_`` and its name) decides, ``val_loss`` breaks ties. With
    ``ema`` > 0 the validated and kept weights are the exponential moving average. ``patience`` validations without a
    better one end the training.
    ``extra`` are modules that train along and are thrown away (regressors of feature losses).

    After each validation, and after ``save_seconds`` without one, the whole state goes to ``resume``; a new call with
    the same arguments goes on there. SIGTERM and Ctrl-C do what they did before, but for a step that is under way: that
    one ends, and the state is saved first. A state that is not what was written is said (``say``) and not used. Returns
    one row per validation. Raises TrainingError as soon as the loss is not finite (on a GPU, which would have to wait
    for its every number, within ten steps).
    """
    bare, chosen = model, f"val_{choose_by}"
    base_rates = [group["lr"] for group in optimizer.param_groups]
    if compiled:
        torch.compiler.reset()  # after eight networks it would leave the ninth as it is, as for that of a ninth round
    trained: Any = torch.compile(model) if compiled else model
    wrapped, optimizer = fabric.setup(trained, optimizer)
    if extra is not None:
        extra.to(fabric.device)
    average = _average(bare, ema) if ema > 0 else None
    history: list[Row] = []
    best: dict[str, Tensor] = {}
    start = count = 0
    sums: dict[str, Tensor] = {}
    state_file = resume / "training.safetensors" if resume is not None else None
    if state_file is not None and state_file.exists():
        try:
            tensors, about = tensor_files.read(state_file)
        except DamagedError as error:
            say(f"{error}; training begins anew")
            if fabric.global_rank == 0:
                state_file.unlink()
        else:
            best = _restore(tensors, bare, optimizer, average, extra)
            start, history, count = about["done"], about["history"], about["count"]
            fabric.strategy.precision.load_state_dict(about["precision"])
            sums = {name: value.to(fabric.device) for name, value in _part(tensors, "sums").items()}
    saved = time.monotonic()
    stale = _stale(history, chosen)
    bare.train()
    with _made_ahead(batches, steps, fabric.device) as batch_of:
        for number in range(start, steps):
            if patience is not None and stale >= patience:
                break
            for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
                group["lr"] = rate * factor(number)
            # dropout and stochastic depth become functions of the step, so nothing random needs to be saved
            torch.manual_seed(_step_seed(seed, number) + fabric.global_rank)
            with _signals_wait() as arrived:
                parts = step(wrapped, batch_of(number), number)
                optimizer.zero_grad(set_to_none=True)
                fabric.backward(parts["loss"])
                _average_gradients(extra, fabric)
                if clip_norm is not None:
                    fabric.clip_gradients(wrapped, optimizer, max_norm=clip_norm, error_if_nonfinite=False)
                optimizer.step()
                if average is not None:
                    average.update_parameters(bare)
                for name, value in parts.items():
                    sums[name] = sums.get(name, torch.zeros((), device=value.device)) + value.detach().float()
                count += 1
            done = number + 1
            _check_finite(sums["loss"], done, steps, fabric)
            if done % validate_every == 0 or done == steps:
                means = {name: float(total) / count for name, total in sums.items()}
                judged = bare if average is None else average.module
                share_buffers(judged, fabric)
                row = {"step": float(done), "lr": optimizer.param_groups[0]["lr"], **means, **validate(judged)}
                row = fabric.broadcast(row)  # all processes decide by the numbers of the first
                bare.train()
                history.append(row)
                stale = _stale(history, chosen)
                if stale == 0:
                    best = {n: t.detach().cpu().clone() for n, t in judged.state_dict().items()}
                sums, count = {}, 0
                on_validation(row)
                on_step(done, {"loss": row["loss"], chosen: row[chosen]})
                fabric.barrier()
            elif done % 10 == 0:
                on_step(done, {"loss": float(sums["loss"]) / count})
            due = not count or arrived or time.monotonic() - saved > save_seconds
            if due and state_file is not None and fabric.global_rank == 0:
                if count:  # between two validations the loss may not have been looked at
                    _refuse_infinite(sums["loss"], done, steps)
                precision = fabric.strategy.precision.state_dict()  # of fp16 the scale of the loss
                about = {"done": done, "history": history, "count": count, "precision": precision}
                with _signals_wait() as late:
                    tensor_files.write(state_file, _state(best, sums, bare, optimizer, average, extra), about)
                arrived += late
                saved = time.monotonic()
            if arrived:
                signal.raise_signal(arrived[0])
    bare.load_state_dict(best)
    bare.eval()
    return history


@contextlib.contextmanager
def synchronised(model: nn.Module, fabric: Fabric) -> Iterator[None]:
    """Inside, batch norms normalise by the whole batch, of which each process has a share: PyTorch's SyncBatchNorm,
    which is for CUDA devices. Raises TrainingError on others. Alone, a process has the whole batch."""
    if fabric.world_size == 1:
        yield
        return
    if fabric.device.type != "cuda":
        raise TrainingError(
            f"run.sync_batch_norm: true, but PyTorch has that for CUDA devices, and this is {fabric.device.type}. "
            "Set it to false"
        )
    with _with_synchronised_norms(model):
        yield


@contextlib.contextmanager
def _with_synchronised_norms(model: nn.Module) -> Iterator[None]:
    """Other layers in their place, with the very same tensors and hooks."""
    # timm's, since its own norms have an activation inside, which PyTorch's would drop
    from timm.layers.norm_act import convert_sync_batchnorm

    norms = {
        name: m
        for name, m in model.named_modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and "train" not in vars(m)  # a frozen one is not trained
    }
    for name, norm in norms.items():
        shared = convert_sync_batchnorm(norm)
        shared._forward_hooks, shared._forward_pre_hooks = norm._forward_hooks, norm._forward_pre_hooks
        model.set_submodule(name, shared)
    try:
        yield
    finally:
        for name, norm in norms.items():
            trained = model.get_submodule(name)
            for key, buffer in trained.named_buffers(recurse=False):  # a network that was moved has other ones by now
                setattr(norm, key, buffer)
            norm.train(trained.training)
            model.set_submodule(name, norm)


@contextlib.contextmanager
def _made_ahead(batches: Callable[[int], Batch], steps: int, device: torch.device) -> Iterator[Callable[[int], Batch]]:
    """``batches``; for a CUDA device the next ones are made while it computes, by a thread and on a stream of their
    own. They are functions of their number, so nothing but the time is another. A CPU has nothing to spare for that."""
    if device.type != "cuda":
        yield batches
        return
    side = torch.cuda.Stream(device)

    def make(number: int) -> tuple[Batch, torch.cuda.Event]:
        with torch.cuda.stream(side):
            return batches(number), side.record_event()

    with in_advance(make, steps, AHEAD) as made:

        def batch_of(number: int) -> Batch:
            batch, there = made(number)
            stream = torch.cuda.current_stream(device)
            stream.wait_event(there)
            for tensor in (batch.images, batch.labels):  # or the other stream would write the next batch over them
                tensor.record_stream(stream)
            return batch

        yield batch_of


@contextlib.contextmanager
def _signals_wait() -> Iterator[list[int]]:
    """Inside, SIGTERM and a first SIGINT are only noted, for the caller to raise.

    SIGTERM often comes twice: to the process's group, and from whoever sees its parent end. A second Ctrl-C is a person
    who will not wait: it acts at once.
    """
    arrived: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield arrived
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore(*numbers: int) -> None:
        for number in numbers:
            if callable(handler := before[signal.Signals(number)]):
                signal.signal(number, handler)

    def note(number: int, frame: object) -> None:
        arrived.append(number)
        if number == signal.SIGINT:
            restore(number)

    for number, handler in before.items():
        if callable(handler):  # what is ignored stays ignored, and what ends the process outright does so
            signal.signal(number, note)
    try:
        yield arrived
    finally:
        restore(*before)


def share_buffers(model: nn.Module, fabric: Fabric) -> None:
    """Give every process the first one's statistics of batch norms, of which each has its own: those are kept, so those
    are judged."""
    if fabric.world_size == 1:
        return
    for buffer in model.buffers():
        firsts = buffer.contiguous()
        torch.distributed.broadcast(firsts, src=0)
        if firsts is not buffer:
            buffer.copy_(firsts)


def _average_gradients(extra: nn.Module | None, fabric: Fabric) -> None:
    """Between processes. Data-parallel training averages those of the network; what trains along with it is ours to
    average, before gradients are clipped by the length of all of them."""
    if extra is None or fabric.world_size == 1:
        return
    for parameter in extra.parameters():
        if parameter.grad is not None:
            mean: Any = fabric.all_reduce(parameter.grad, reduce_op="mean")
            parameter.grad = mean


def _stale(history: list[Row], key: str) -> int:
    """Validations since the best one."""
    if not history:
        return 0
    found = [(row[key], -row["val_loss"]) for row in history]
    return len(found) - 1 - found.index(max(found))


def _average(model: nn.Module, decay: float) -> torch.optim.swa_utils.AveragedModel:
    return torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(decay), use_buffers=False
    )


def _check_finite(loss: Tensor, done: int, steps: int, fabric: Fabric) -> None:
    """``loss``: a sum, in which one number that is none stays. All processes must find the same, or some would wait for
    others that have gone."""
    if fabric.world_size > 1:
        if done % 10 == 0 or done == steps:
            _refuse_infinite(fabric.all_reduce(loss.clone(), reduce_op="sum"), done, steps)
    elif loss.device.type == "cpu" or done % 10 == 0 or done == steps:
        _refuse_infinite(loss, done, steps)


def _refuse_infinite(loss: Any, done: int, steps: int) -> None:
    if not math.isfinite(value := float(loss)):
        raise TrainingError(
            f"loss is {value} at step {done} of {steps}. Lower training.lr, set training.clip_norm: 1.0, or "
            "run.precision: fp32"
        )


def _state(
    best: dict[str, Tensor],
    sums: dict[str, Tensor],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: nn.Module | None,
    extra: nn.Module | None,
) -> dict[str, Tensor]:
    parts = {"best": best, "sums": sums, "model": model.state_dict()}
    if average is not None:
        parts["average"] = average.state_dict()
    if extra is not None:
        parts["extra"] = extra.state_dict()
    tensors = {f"{part}.{name}": tensor for part, held in parts.items() for name, tensor in held.items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {
            f"optimizer.{number}.{key}": torch.as_tensor(value) for key, value in state.items() if value is not None
        }
    return tensors


def _part(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {n.removeprefix(f"{name}."): t for n, t in tensors.items() if n.startswith(f"{name}.")}


def _restore(
    tensors: dict[str, Tensor],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: nn.Module | None,
    extra: nn.Module | None,
) -> dict[str, Tensor]:
    """What ``_state`` took, put back; returns the weights that validated best."""
    model.load_state_dict(_part(tensors, "model"))
    if average is not None:
        average.load_state_dict(_part(tensors, "average"))
    if extra is not None:
        extra.load_state_dict(_part(tensors, "extra"))
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _part(tensors, "optimizer").items():
        number, _, key = name.partition(".")
        state.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor) and key != "step":
                    # laid out like its parameter (channels_last, maybe): fused optimisers walk both as raw memory
                    optimizer.state[parameter][key] = torch.empty_like(parameter).copy_(value)
    return _part(tensors, "best")


@torch.inference_mode()
def logits_of(
    model: nn.Module,
    images: npt.NDArray[np.uint8],
    index: npt.NDArray[np.int64],
    preprocessing: views.Preprocessing,
    *,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    autocast: Autocast = contextlib.nullcontext,
    on_batch: Callable[[int], None] = lambda done: None,
) -> Float[Tensor, "images classes"]:
    """What ``model`` (put in eval mode) says of the unaugmented images ``index``, in float32 on the CPU."""
    model.eval()
    out = []
    for start in range(0, len(index), batch_size):
        x = views.preprocess(read_rows(images, index[start : start + batch_size]), preprocessing, device)
        with autocast():
            logits = model(views.laid_out_for(model, x))
        out.append(logits.float().cpu())
        on_batch(min(len(index), start + batch_size))
    return torch.cat(out)


def validation(
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    index: npt.NDArray[np.int64],
    preprocessing: views.Preprocessing,
    device: torch.device | str = "cpu",
    autocast: Autocast = contextlib.nullcontext,
    fabric: Fabric | None = None,
    choose_by: str = "accuracy",
) -> Callable[[nn.Module], Row]:
    """A ``validate`` for ``fit``: ``val_accuracy`` (0 to 1), ``val_loss`` (mean cross-entropy, nats) and, of another
    ``choose_by``, ``val_`` and its name (0 to 1): what `scores.score` says.

    With several processes of ``fabric`` each looks at its share of the images, and all are told the same.
    """
    world = 1 if fabric is None else fabric.world_size
    own = index if fabric is None else index[fabric.global_rank :: world]
    target = torch.from_numpy(labels[own])

    def scored(logits: Tensor) -> Row:
        if choose_by == "accuracy":
            return {}
        counts: Any = torch.bincount(target * logits.shape[1] + logits.argmax(1), minlength=logits.shape[1] ** 2)
        if fabric is not None and world > 1:
            summed: Any = fabric.all_reduce(counts.to(fabric.device), reduce_op="sum")
            counts = summed.cpu()
        return {f"val_{choose_by}": scores.score(choose_by, counts.view(logits.shape[1], -1).numpy())}

    def validate(model: nn.Module) -> Row:
        logits = logits_of(model, images, own, preprocessing, device=device, autocast=autocast)
        right = (logits.argmax(1) == target).double()
        if fabric is None or world == 1:
            return {
                "val_accuracy": float(right.mean()),
                "val_loss": float(F.cross_entropy(logits.double(), target)),
                **scored(logits),
            }
        sums = torch.stack([right.sum(), F.cross_entropy(logits.double(), target, reduction="sum")])
        summed: Any = fabric.all_reduce(sums.to(fabric.device), reduce_op="sum")
        accuracy, loss = (summed / len(index)).tolist()
        return {"val_accuracy": accuracy, "val_loss": loss, **scored(logits)}

    return validate
