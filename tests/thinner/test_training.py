"""The one loop: learns, resumes exactly, keeps the best, and depends on nothing but its arguments."""

import copy
import json
import math
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.servers import free_port
from thinner import checks
from thinner.data import ahead, views
from thinner.files import tensors as tensor_files
from thinner.learn import losses, training
from thinner.networks.spec import NetworkSpec

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (120, 8, 8, 1), dtype=np.uint8)
IMAGES[::2] = (IMAGES[::2].astype(int) // 3).astype(np.uint8)  # even images are darker: something to learn
LABELS = np.arange(120, dtype=np.int64) % 2
POOL, HELD_OUT = np.arange(0, 80), np.arange(80, 120)
PREPROCESSING = views.Preprocessing(8, mean=(0.5,), std=(0.5,))


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.Dropout(0.2),
        nn.Flatten(),
        nn.Linear(256, 2),
    )


def batches(**changes):
    arguments = {
        "images": IMAGES, "labels": LABELS, "pool": POOL, "batch_size": 16, "seed": 3, "size": 8, "mean": (0.5,),
        "std": (0.5,), "policy": views.Policy(flip=True), **changes,
    }  # fmt: skip
    return training.Batches(**arguments)


def fit(model, resume=None, stop_at=None, **changes):
    class Stopped(Exception):
        pass

    seen = []

    def on_validation(row):
        seen.append(row)
        if stop_at is not None and row["step"] >= stop_at:
            raise Stopped

    arguments = {
        "steps": 30, "validate_every": 5, "factor": lambda s: training.learning_rate_factor("cosine", s, 30, 0.1),
        "optimizer": training.make_optimizer(model, "adamw", lr=1e-2, weight_decay=0.01),
        "validate": training.validation(IMAGES, LABELS, HELD_OUT, PREPROCESSING), "seed": 3, "resume": resume,
        "fabric": training.make_fabric("cpu", 1, "fp32"), "on_validation": on_validation,
        "step": training.supervised_step(), **changes,
    }  # fmt: skip
    try:
        return training.fit(model, batches(), arguments.pop("step"), **arguments)
    except Stopped:
        return None


def same_weights(one, two):
    return all(a.equal(b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_it_learns():
    model = network()
    history = fit(model)
    assert max(row["val_accuracy"] for row in history) > 0.9
    assert [row["step"] for row in history] == [5, 10, 15, 20, 25, 30]


def test_two_runs_end_with_identical_weights():
    one, two = network(), network()
    assert fit(one) == fit(two)
    assert same_weights(one, two)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_killed_run_resumes_and_ends_with_identical_weights(tmp_path, name, ema, layout):
    def optimizer(model):
        return training.make_optimizer(model, name, lr=1e-2, weight_decay=0.01)

    straight, cut = (network().to(memory_format=layout) for _ in range(2))
    history = fit(straight, optimizer=optimizer(straight), ema=ema)
    # the exception leaves before the state of step 20 is written, as a kill in between would
    assert fit(cut, resume=tmp_path, stop_at=20, optimizer=optimizer(cut), ema=ema) is None
    again = network().to(memory_format=layout)
    resumed = fit(again, resume=tmp_path, optimizer=optimizer(again), ema=ema)
    assert [list(row.items()) for row in resumed] == [list(row.items()) for row in history]  # columns in their order
    assert same_weights(straight, again)


class KilledError(Exception):
    pass


def killed_at(number):
    """A step that ends the training before it has done ``number`` of them."""
    step = training.supervised_step()

    def killing(model, batch, at):
        if at == number:
            raise KilledError
        return step(model, batch, at)

    return killing


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_between_two_validations_the_state_is_saved_by_time(tmp_path, ema):
    model, again = network(), network()
    history = fit(model, ema=ema)
    with pytest.raises(KilledError):
        fit(again, resume=tmp_path, save_seconds=0.0, step=killed_at(13), ema=ema)
    seen = []

    def step(*arguments):
        seen.append(arguments[2])
        return training.supervised_step()(*arguments)

    again = network()
    assert fit(again, resume=tmp_path, step=step, ema=ema) == history  # the mean loss of steps 10 to 15 among it
    assert seen[0] == 13 and same_weights(model, again)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_a_step_saves_the_state_after_it(tmp_path, number):
    def stop(*_):
        raise KilledError

    def step(model, batch, at):
        if at == 12:
            signal.raise_signal(number)
        return training.supervised_step()(model, batch, at)

    model, again = network(), network()
    history = fit(model)
    before = signal.signal(number, stop)
    try:
        with pytest.raises(KilledError):
            fit(network(), resume=tmp_path, step=step)
        assert signal.getsignal(number) is stop
    finally:
        signal.signal(number, before)
    assert tensor_files.read(tmp_path / "training.safetensors")[1]["done"] == 13
    assert fit(again, resume=tmp_path) == history and same_weights(model, again)


def test_a_second_ctrl_c_does_not_wait_for_the_step(tmp_path):
    def stop(*_):
        raise KilledError

    after = []

    def step(model, batch, at):
        if at == 12:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            after.append(at)
        return training.supervised_step()(model, batch, at)

    before = signal.signal(signal.SIGINT, stop)
    try:
        with pytest.raises(KilledError):
            fit(network(), resume=tmp_path, step=step)
        assert not after and signal.getsignal(signal.SIGINT) is stop
    finally:
        signal.signal(signal.SIGINT, before)
    assert tensor_files.read(tmp_path / "training.safetensors")[1]["done"] == 10


@pytest.mark.parametrize("where", ["step", "write"])
def test_sigterm_twice_is_sigterm_once(tmp_path, monkeypatch, where):
    # a flow asks the process's group, and the stage itself sees that the flow's dvc has gone
    def stop(*_):
        raise KilledError

    def step(model, batch, at):
        if at == 12:
            signal.raise_signal(signal.SIGTERM)
            if where == "step":
                signal.raise_signal(signal.SIGTERM)
        return training.supervised_step()(model, batch, at)

    real = tensor_files.write

    def write(path, tensors, about):
        if where == "write" and about["done"] == 13:
            signal.raise_signal(signal.SIGTERM)
        return real(path, tensors, about)

    monkeypatch.setattr(tensor_files, "write", write)
    before = signal.signal(signal.SIGTERM, stop)
    try:
        with pytest.raises(KilledError):
            fit(network(), resume=tmp_path, step=step)
        assert signal.getsignal(signal.SIGTERM) is stop
    finally:
        signal.signal(signal.SIGTERM, before)
    assert tensor_files.read(tmp_path / "training.safetensors")[1]["done"] == 13


def test_without_time_going_by_a_state_is_saved_at_validations_only(tmp_path):
    with pytest.raises(KilledError):
        fit(network(), resume=tmp_path, step=killed_at(13))
    assert tensor_files.read(tmp_path / "training.safetensors")[1]["done"] == 10


@pytest.mark.parametrize("damage", ["bit", "header", "half", "empty"])
def test_a_damaged_state_is_said_and_not_used(tmp_path, damage):
    model, again, said = network(), network(), []
    history = fit(model)
    with pytest.raises(KilledError):
        fit(network(), resume=tmp_path, step=killed_at(13))
    file = tmp_path / "training.safetensors"
    content = bytearray(file.read_bytes())
    content[{"bit": -5, "header": 20}.get(damage, 0)] ^= 16
    file.write_bytes({"half": content[: len(content) // 2], "empty": b""}.get(damage, content))
    assert fit(again, resume=tmp_path, say=said.append) == history
    assert same_weights(model, again)
    assert len(said) == 1 and str(file) in said[0] and "begins anew" in said[0]


def test_no_state_is_saved_that_is_no_number(tmp_path):
    def step(model, batch, number):
        loss = training.supervised_step()(model, batch, number)["loss"]
        return {"loss": loss * math.nan if number == 12 else loss}

    with pytest.raises(training.TrainingError, match="step 13 of 30"):
        fit(network(), resume=tmp_path, save_seconds=0.0, step=step)
    tensors, about = tensor_files.read(tmp_path / "training.safetensors")
    assert about["done"] == 12 and all(t.isfinite().all() for t in tensors.values())


def test_the_best_validated_weights_are_kept():
    model = network()
    scores = iter([0.5, 0.9, 0.7, 0.9, 0.6, 0.5])
    states = []

    def validate(judged):
        states.append({n: t.clone() for n, t in judged.state_dict().items()})
        return {"val_accuracy": next(scores), "val_loss": 1.0 - 0.1 * len(states) * (len(states) == 4)}

    fit(model, validate=validate)
    best = states[3]  # a tie with the second in accuracy, the lower loss decides
    assert all(t.equal(best[n]) for n, t in model.state_dict().items())


def test_patience_ends_the_training():
    scores = iter([0.5, 0.9, 0.7, 0.8, 0.99, 0.99])
    history = fit(network(), patience=2, validate=lambda m: {"val_accuracy": next(scores), "val_loss": 1.0})
    assert [row["val_accuracy"] for row in history] == [0.5, 0.9, 0.7, 0.8]


def test_ema_validates_the_average():
    # the average starts as a copy after the first step (at most 0.0025 away: AdamW's step is its rate) and with this
    # decay stays there, while the trained weights go on
    averaged, trained, fresh = network(), network(), network()
    fit(averaged, ema=1 - 1e-9)
    fit(trained, validate=lambda m, n=iter(range(99)): {"val_accuracy": next(n) / 99, "val_loss": 1.0})

    def distance(model):
        return max(
            float((a - b).detach().abs().max()) for a, b in zip(model.parameters(), fresh.parameters(), strict=True)
        )

    assert distance(averaged) < 0.003 < 0.01 < distance(trained)


def test_a_loss_that_is_no_number_stops_with_what_to_do():
    with pytest.raises(training.TrainingError, match=r"loss is nan at step 1 of 30\. Lower training\.lr"):
        training.fit(
            model := network(), batches(), lambda m, b, n: {"loss": m(b.images).sum() * math.nan}, steps=30,
            validate_every=5, optimizer=training.make_optimizer(model, "sgd", lr=0.1, weight_decay=0),
            factor=lambda s: 1.0, validate=lambda m: {"val_accuracy": 0.0, "val_loss": 0.0}, seed=0,
            fabric=training.make_fabric("cpu", 1, "fp32"),
        )  # fmt: skip


def test_every_image_comes_once_per_pass_and_every_batch_is_full():
    source = batches(pool=np.arange(70), batch_size=16)
    index = np.concatenate([source.numbers(step)[0] for step in range(35)])  # 560 = 8 passes of 70
    view = np.concatenate([source.numbers(step)[1] for step in range(35)])
    assert np.bincount(index).tolist() == [8] * 70
    assert all(sorted(index[view == number]) == list(range(70)) for number in range(8))


def test_view_numbers_cycle_through_the_known_views():
    source = batches(views=3)
    views_seen = np.concatenate([source.numbers(step)[1] for step in range(40)])
    assert sorted(set(views_seen)) == [0, 1, 2]


def test_a_store_that_lies_on_the_device_gives_the_same_batches():
    moving = {"policy": views.Policy(crop=0.7, flip=True, erase=0.5)}
    for step in (0, 7):
        read, there = batches(**moving)(step), batches(**moving, there=torch.from_numpy(IMAGES))(step)
        assert read.images.equal(there.images) and read.labels.equal(there.labels)
        assert np.array_equal(read.index, there.index)
    assert training.on_device(IMAGES, torch.device("cpu")) is None


def test_two_processes_share_a_batch_without_overlap():
    whole = batches().numbers(7)[0]
    halves = [batches(rank=rank, world=2).numbers(7)[0] for rank in (0, 1)]
    assert sorted(np.concatenate(halves)) == sorted(whole)
    assert [len(half) for half in halves] == [8, 8]


def test_a_batch_is_a_function_of_its_number():
    one, two = batches()(11), batches()(11)
    assert torch.equal(one.images, two.images)
    assert np.array_equal(one.labels.numpy(), LABELS[one.index])


@pytest.mark.parametrize("warmup", [0.1, 0.3])
def test_onecycle_equals_pytorchs(warmup):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=50, pct_start=warmup)
    for step in range(50):
        ours = training.learning_rate_factor("onecycle", step, 50, warmup)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-7)
        optimizer.step()
        theirs.step()


def test_cosine_without_warm_up_equals_pytorchs():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40)
    for step in range(40):
        ours = training.learning_rate_factor("cosine", step, 40, 0.0)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear", "onecycle"])
def test_rates_rise_and_then_never_rise_again(schedule):
    factors = [training.learning_rate_factor(schedule, step, 100, 0.2) for step in range(100)]
    peak = factors.index(max(factors))
    assert max(factors) == pytest.approx(1.0, abs=1e-3)
    assert all(a <= b + 1e-12 for a, b in zip(factors[:peak], factors[1 : peak + 1], strict=True))
    assert all(a >= b - 1e-12 for a, b in zip(factors[peak:], factors[peak + 1 :], strict=False))


def test_norms_and_biases_are_not_decayed_and_the_head_has_its_rate():
    optimizer = training.make_optimizer(network(), "adamw", lr=0.1, weight_decay=0.5, heads=["6"], head_lr=1.0)
    found = {(g["lr"], g["weight_decay"]): sorted(tuple(p.shape) for p in g["params"]) for g in optimizer.param_groups}
    assert found == {
        (0.1, 0.5): [(4, 1, 3, 3), (4, 4, 3, 3)], (0.1, 0.0): [(4,)] * 4, (1.0, 0.5): [(2, 256)], (1.0, 0.0): [(2,)],
    }  # fmt: skip


def test_a_step_is_as_long_as_a_tensors_scale_says():
    moved = []
    for scales in (None, {"0.weight": 0.25}):
        model = network()
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer = training.make_optimizer(model, "sgd", lr=0.1, weight_decay=0.0, scales=scales)
        torch.manual_seed(0)
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()
        moved.append({name: p.detach() - before[name] for name, p in model.named_parameters()})
    for name, plain in moved[0].items():
        torch.testing.assert_close(moved[1][name], (0.25 if name == "0.weight" else 1.0) * plain)


def test_mixing_leaves_batches_with_unlabelled_images_alone():
    batch = batches(labels=np.where(LABELS == 0, -1, 1))(0)
    assert training.mix(batch, mixup=1.0, cutmix=0.0, classes=2, seed=0, step=0) is batch


@pytest.mark.parametrize(("mixup", "cutmix"), [(1.0, 0.0), (0.0, 1.0)])
def test_mixed_targets_are_shares_and_a_function_of_the_step(mixup, cutmix):
    batch = batches()(0)
    changed = 0
    for step in range(8):
        one, two = (training.mix(batch, mixup=mixup, cutmix=cutmix, classes=2, seed=0, step=step) for _ in range(2))
        assert torch.equal(one.images, two.images)
        assert torch.allclose(one.targets.sum(1), torch.ones(16))
        changed += not torch.equal(one.images, batch.images)  # a drawn share of nearly 1 can leave 8 pixels as they are
    assert changed >= 5


@pytest.mark.parametrize(("mixup", "cutmix"), [(1.0, 0.0), (0.0, 1.0)])
def test_images_in_the_order_of_their_classes_are_mixed_with_the_other_class_as_often_as_not(mixup, cutmix):
    """Batches come in the order of the store, and a folder's classes lie one after the other in it."""
    count = 64
    labels = np.repeat([0, 1], count // 2)
    images = (100 * labels[:, None, None, None] + np.zeros((count, 8, 8, 1))).astype(np.uint8)
    batch = batches(images=images, labels=labels, pool=np.arange(count), batch_size=count)(0)
    assert batch.index.tolist() == list(range(count))
    mixed = [training.mix(batch, mixup=mixup, cutmix=cutmix, classes=2, seed=0, step=step) for step in range(20)]
    shares = [float(((one.targets > 0).sum(1) == 2).float().mean()) for one in mixed]
    assert 0.4 < np.mean(shares) < 0.6, shares  # of two classes with as many images each
    for one in mixed:  # a row's number, view, label and pixels stay together
        assert sorted(one.index) == list(range(count)) and one.labels.tolist() == labels[one.index].tolist()
        alone = one.targets.max(1).values == 1
        torch.testing.assert_close(one.images[alone], batch.images[torch.from_numpy(one.index)][alone])


def test_a_mixed_batch_keeps_the_layout_of_its_memory():
    batch = batches(images=np.repeat(IMAGES, 3, axis=3), mean=(0.5,) * 3, std=(0.5,) * 3, channels_last=True)(0)
    mixed = training.mix(batch, mixup=1.0, cutmix=0.0, classes=2, seed=0, step=0)
    assert mixed.images.is_contiguous(memory_format=torch.channels_last)


def test_extra_modules_train_along_and_resume(tmp_path):
    def run(folder, stop_at=None):
        model, extra = network(), nn.Linear(2, 2)
        with torch.no_grad():
            extra.weight.fill_(0.1), extra.bias.zero_()

        def step(m, b, n):
            return {"loss": nn.functional.cross_entropy(extra(m(b.images)), b.labels)}

        class Stopped(Exception):
            pass

        def on_validation(row):
            if stop_at == row["step"]:
                raise Stopped

        try:
            training.fit(
                model, batches(), step, steps=20, validate_every=5, seed=0, extra=extra, resume=folder,
                optimizer=training.make_optimizer(model, "adam", lr=0.01, weight_decay=0, extra=extra),
                factor=lambda s: 1.0, validate=training.validation(IMAGES, LABELS, HELD_OUT, PREPROCESSING),
                fabric=training.make_fabric("cpu", 1, "fp32"), on_validation=on_validation,
            )  # fmt: skip
        except Stopped:
            return None
        return extra.weight.detach().clone()

    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    whole = run(tmp_path / "a")
    assert run(tmp_path / "b", stop_at=15) is None
    assert torch.equal(run(tmp_path / "b"), whole)


SEVERAL_PROCESSES = """
import contextlib, json, sys
from pathlib import Path
import numpy as np, torch
from safetensors.torch import save_file
from torch import nn
from tasks.learning import keep_early
from thinner.compress import masks
from thinner.data import views
from thinner.learn import losses, training
from thinner.networks import models

torch.set_num_threads(1)
cases, devices, nodes, out = json.loads(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
images = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1), dtype=np.uint8)
labels = np.arange(64, dtype=np.int64) % 4
pool, held_out = np.arange(48), np.arange(48, 64)
fabric = training.make_fabric("cpu", devices, "fp32", nodes)
seen = views.Preprocessing(8, mean=(0.5,), std=(0.5,))


class Stopped(Exception):
    pass


def train(case, folder):
    torch.manual_seed(0)
    norm = [nn.BatchNorm2d(4)] if "norm" in case else []
    model = nn.Sequential(nn.Conv2d(1, 4, 3), *norm, nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))
    extra, step, more = None, training.supervised_step(), {}
    if case.startswith("loss "):
        name = case.split()[1]
        teacher = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Flatten(), nn.Linear(216, 4)).requires_grad_(False)
        taps, asked = models.tap(model, ["0"]), models.tap(teacher, ["0"])
        layers = {"student_layers": ["0"], "teacher_layers": ["0"]} if losses.LOSSES[name].make else {}
        parts = [(name, 1.0, layers, None), ("ce", 1.0, {}, None)]
        combined = losses.combine(parts, {"0": (4, 6, 6)}, {"0": (6, 6, 6)}, images=64)
        extra = combined if combined.state_dict() else None

        def step(network, batch, number):
            logits = network(batch.images)
            return combined(logits, teacher(batch.images), batch.labels, student_features=taps,
                            teacher_features=asked, index=torch.from_numpy(batch.index))

    if "clip" in case:
        more["clip_norm"] = 0.5
    if "ema" in case:
        more["ema"] = 0.9
    if case == "patience":
        more["patience"] = 1
    if case == "no number":
        def step(network, batch, number, plain=step):
            parts = plain(network, batch, number)
            last = fabric.global_rank == fabric.world_size - 1
            return {"loss": parts["loss"] * float("nan")} if number == 3 and last else parts

    if case == "keep_step" and fabric.global_rank == 0:
        step = keep_early(model, step, 6, folder)
    held = masks.mask_weights(model, nonzero=590, criterion="l2") if case == "masks" else {}
    batches = training.Batches(images, labels, pool, 16, 0, 8, (0.5,), (0.5,), views.Policy(flip=True),
                               rank=fabric.global_rank, world=fabric.world_size)

    def fit(on_validation=lambda row: None):
        return training.fit(
            model, batches, step, steps=12, validate_every=4, seed=0, fabric=fabric, extra=extra,
            optimizer=training.make_optimizer(model, "sgd", lr=0.05, weight_decay=0.0, extra=extra),
            factor=lambda s: 1.0, validate=training.validation(images, labels, held_out, seen, fabric=fabric),
            resume=folder, on_validation=on_validation, **more)

    def stop(row):
        if row["step"] == 8:
            raise Stopped

    with masks.held(model, held) if held else contextlib.nullcontext():
        if case == "resume":
            with contextlib.suppress(Stopped):
                fit(stop)
            fabric.barrier()
            with torch.no_grad():  # what went on after the last state is gone
                for parameter in model.parameters():
                    parameter.fill_(0.5)
        history = fit()
    return model, extra, history


for case in cases:
    folder = out / case / "resume"
    if fabric.global_rank == 0:
        folder.mkdir(parents=True)
    fabric.barrier()
    try:
        model, extra, history = train(case, folder)
    except training.TrainingError as error:
        (out / case / f"{fabric.global_rank}.txt").write_text(str(error))
        continue
    place = out / case / str(fabric.global_rank)
    place.with_suffix(".json").write_text(json.dumps([[row["val_accuracy"], row["val_loss"]] for row in history]))
    state = {f"model.{name}": tensor.contiguous() for name, tensor in model.state_dict().items()}
    state |= {f"extra.{name}": tensor.contiguous() for name, tensor in (extra.state_dict() if extra else {}).items()}
    save_file(state, place)
    fabric.barrier()
"""
PLAIN_CASES = ["plain", "ema clip", "patience", "resume", "keep_step", "masks", "norm", "loss fitnet clip"]
LOSS_CASES = [f"loss {name}" for name in losses.LOSSES]
# What these compare lies in a process's own share of the batch; batch norms know their own share alone, and crd has a
# memory. docs/gpu.md says so.
OF_A_SHARE = {"norm", *(f"loss {name}" for name in checks.RELATING)}

OF_A_PROCESS = ("running_", "_memory", "known_labels", "_scale")  # buffers: of batch norms, and of crd


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """All cases, trained by one process and by two."""
    folder = tmp_path_factory.mktemp("processes")
    (folder / "train.py").write_text(SEVERAL_PROCESSES)
    for devices in (1, 2):
        train(folder, [*PLAIN_CASES, *LOSS_CASES, "no number"], str(devices), "1", str(devices))
    return folder


def train(folder, cases, *how, **environment):
    done = subprocess.run(
        [sys.executable, "train.py", json.dumps(cases), *how], check=False, cwd=folder, capture_output=True, text=True,
        timeout=600, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.integration
@pytest.mark.parametrize("case", [*PLAIN_CASES, *LOSS_CASES])
def test_two_processes_learn_what_one_does(trained, case):
    """The network, and what trains along with it: the same in both processes, and what one process learns."""
    one, first, second = (load_file(trained / place) for place in (f"1/{case}/0", f"2/{case}/0", f"2/{case}/1"))
    curves = [
        json.loads((trained / f"{place}.json").read_text()) for place in (f"1/{case}/0", f"2/{case}/0", f"2/{case}/1")
    ]
    assert curves[1] == curves[2]  # each looked at half of the images, and all were told the same
    learned = [name for name in one if not any(own in name for own in OF_A_PROCESS)]
    assert all(first[name].equal(second[name]) for name in learned)
    # what was measured is what is kept, by whichever process
    kept = [name for name in one if name.startswith("model.") and "running_" in name]
    assert all(first[name].equal(second[name]) for name in kept)
    if case in OF_A_SHARE:
        assert any(not torch.allclose(one[name], first[name], atol=1e-5) for name in learned)  # or docs say too little
        return
    assert np.allclose(curves[0], curves[1], atol=1e-5)
    assert all(torch.allclose(one[name], first[name], atol=1e-5) for name in one)


@pytest.mark.integration
def test_a_loss_that_is_no_number_in_one_process_ends_all_at_the_same_step(trained):
    assert "loss is nan at step 4 of 12" in (trained / "1/no number/0.txt").read_text()
    said = [(trained / f"2/no number/{rank}.txt").read_text() for rank in (0, 1)]
    assert "loss is nan at step 10 of 12" in said[0] and said[0] == said[1]


@pytest.mark.integration
def test_two_nodes_of_one_device_learn_what_two_devices_do(trained):
    """Two machines, both of which are this one; the second is started by hand."""
    meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    how = [["plain", "ema clip"], "1", "2", "nodes"]
    with ThreadPoolExecutor(2) as pool:
        for node in [pool.submit(train, trained, *how, NODE_RANK=str(rank), **meet) for rank in (0, 1)]:
            node.result()
    for case in how[0]:
        of_nodes, of_devices = (load_file(trained / f"{kind}/{case}/1") for kind in ("nodes", "2"))
        assert all(of_nodes[name].equal(of_devices[name]) for name in of_devices)


def test_nodes_that_cannot_find_each_other_are_one_line(monkeypatch):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(training.TrainingError, match="run.nodes: 2, but nothing says .*: no MASTER_ADDR. Set both"):
        training.make_fabric("cpu", 1, "fp32", 2)


def test_another_number_of_processes_than_slurm_has_started_is_one_line(monkeypatch):
    """As in `sbatch --ntasks 1`, where the one process would wait for a second that nobody starts."""
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.delenv("SLURM_JOB_NAME", raising=False)
    with pytest.raises(
        training.TrainingError, match="are 2 processes, but SLURM has started 1. Start the stage by srun"
    ):
        training.make_fabric("cpu", 2, "fp32")
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")  # a person's shell: nodes have to be told as anywhere
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(training.TrainingError, match="no MASTER_ADDR"):
        training.make_fabric("cpu", 1, "fp32", 2)


@pytest.mark.integration
def test_two_processes_that_were_stopped_or_keep_an_early_state_end_as_if_they_had_not(trained):
    for devices in (1, 2):
        plain, resumed, keeping = (
            load_file(trained / f"{devices}/{case}/0") for case in ("plain", "resume", "keep_step")
        )
        assert all(plain[name].equal(resumed[name]) and plain[name].equal(keeping[name]) for name in plain)
    early = [load_file(trained / f"{devices}/keep_step/resume/early.safetensors") for devices in (1, 2)]
    assert all(torch.allclose(early[0][name], early[1][name], atol=1e-5) for name in early[0])
    masked = load_file(trained / "2/masks/1")
    assert sum(int(tensor.count_nonzero()) for tensor in masked.values()) <= 590


@pytest.mark.parametrize("name", ["resnet8", "timm:tf_efficientnet_lite0"])
def test_synchronised_norms_share_their_tensors_and_hooks_and_go_again(name):
    from thinner.networks import models

    torch.manual_seed(0)
    of_kind = {"width": 8, "stem_stride": 1} if name == "resnet8" else {}
    model = models.create(NetworkSpec(name, 2, 3, **of_kind))
    norms = {path: m for path, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    heard = []
    first = next(iter(norms))
    norms[first].register_forward_hook(lambda *_: heard.append(first))
    x = torch.randn(4, 3, 32, 32)
    plain = copy.deepcopy(model).train()
    state, seen = model.state_dict(), plain(x)
    heard.clear()
    with training._with_synchronised_norms(model):
        assert all(isinstance(model.get_submodule(path), nn.SyncBatchNorm) for path in norms) and norms
        assert list(model.state_dict()) == list(state)
        torch.testing.assert_close(model.train()(x), seen)  # alone it is the plain one, activations and all
        model.eval()
    assert heard == [first]
    assert all(model.get_submodule(path) is norm and not norm.training for path, norm in norms.items())
    assert all(torch.equal(tensor, plain.state_dict()[key]) for key, tensor in model.state_dict().items())


def test_the_statistics_of_synchronised_norms_are_kept_of_a_network_that_was_moved():
    """As a GPU's are, to which it goes while it trains: then it has other buffers, and parameters with other tensors."""
    from thinner.networks import models

    torch.manual_seed(0)
    model = models.create(NetworkSpec("resnet8", 2, 3, width=8, stem_stride=1))
    plain, x = copy.deepcopy(model).train(), torch.randn(4, 3, 16, 16)
    plain(x)
    with training._with_synchronised_norms(model):
        model._apply(lambda tensor: tensor.clone())
        model.train()(x)
    assert all(torch.equal(tensor, plain.state_dict()[key]) for key, tensor in model.state_dict().items())
    assert not any(isinstance(m, nn.SyncBatchNorm) for m in model.modules())


def test_frozen_norms_stay_frozen_and_one_process_is_left_as_it_is():
    from thinner.networks import models

    model = models.create(NetworkSpec("resnet8", 2, 3, width=8, stem_stride=1))
    models.freeze(model, 2)
    frozen = {name: m.running_mean.clone() for name, m in model.named_modules() if "train" in vars(m)
              and isinstance(m, nn.BatchNorm2d)}  # fmt: skip
    assert frozen
    with training._with_synchronised_norms(model):
        model.train()(torch.randn(4, 3, 16, 16))
        assert any(isinstance(m, nn.SyncBatchNorm) for m in model.modules())
    assert all(torch.equal(model.get_submodule(name).running_mean, mean) for name, mean in frozen.items())
    with training.synchronised(model, training.make_fabric("cpu", 1, "fp32")):
        assert not any(isinstance(m, nn.SyncBatchNorm) for m in model.modules())


def test_norms_are_not_synchronised_where_pytorch_cannot():
    from lightning_fabric import Fabric

    two = Fabric(accelerator="cpu", devices=2)  # not launched
    with (
        pytest.raises(training.TrainingError, match="run.sync_batch_norm: true, but PyTorch has that for CUDA devices"),
        training.synchronised(network(), two),
    ):
        pass


def test_a_forward_pass_has_the_precision_of_training():
    model, x = nn.Linear(64, 3), torch.randn(5, 64)
    for precision, dtype in (("fp32", torch.float32), ("tf32", torch.float32), ("bf16", torch.bfloat16)):
        with training.autocast("cpu", precision)():
            assert model(x).dtype == dtype
    half = training.validation(
        IMAGES, LABELS, HELD_OUT, PREPROCESSING, autocast=training.autocast("cpu", "bf16")
    )(network())  # fmt: skip
    whole = training.validation(IMAGES, LABELS, HELD_OUT, PREPROCESSING)(network())
    assert half["val_loss"] != whole["val_loss"]
    assert half["val_loss"] == pytest.approx(whole["val_loss"], rel=0.02)


def half_precision():
    """What fp16 is on a GPU, by the CPU's gradient scaler."""
    from lightning_fabric import Fabric
    from lightning_fabric.plugins import MixedPrecision

    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    return Fabric(accelerator="cpu", devices=1, plugins=[plugin])


def test_what_is_made_in_advance_is_the_same_in_the_same_order_and_no_more_than_that():
    made, asked = [], []

    def make(number):
        made.append(number)
        return number * number

    with ahead.in_advance(make, 10, 2) as square:
        for number in range(3, 10):
            asked.append(square(number))
            assert max(made) <= min(number + 2, 9)
    assert asked == [number * number for number in range(3, 10)]
    assert made == list(range(3, 10))


def test_what_fails_in_advance_fails_when_its_turn_comes_and_leaves_no_thread():
    import threading

    def make(number):
        if number == 2:
            raise ValueError("the third")
        return number

    before = set(threading.enumerate())
    with ahead.in_advance(make, 10, 2) as number_of:
        assert [number_of(0), number_of(1)] == [0, 1]
        with pytest.raises(ValueError, match="the third"):
            number_of(2)
    assert not [one for one in threading.enumerate() if one not in before and one.name.startswith("in advance")]


def test_batches_made_in_advance_train_the_same_network(monkeypatch):
    def made_ahead(batches, steps, device):
        return ahead.in_advance(batches, steps, 2)

    plain, threaded = network(), network()
    history = fit(plain)
    monkeypatch.setattr(training, "_made_ahead", made_ahead)  # as on a GPU, whose streams are tested there
    assert fit(threaded) == history
    assert same_weights(plain, threaded)


def test_every_network_of_a_process_is_compiled(monkeypatch):
    """After eight PyTorch's compiler leaves the next as it is, as in a ninth round of pruning."""
    import torch._dynamo as compiler

    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counting))
    for number in range(compiler.config.recompile_limit + 2):
        fit(nn.Sequential(nn.Flatten(), nn.Linear(64, 4 + number), nn.Linear(4 + number, 2)), compiled=True, steps=2)
        assert len(graphs) == number + 1
    torch.compiler.reset()


def test_fp16_trains_with_clipped_gradients():
    """Fused optimisers refuse to be clipped under a gradient scaler."""
    model = network()
    optimizer = training.make_optimizer(model, "adamw", lr=1e-2, weight_decay=0.01, fused=False)
    history = fit(model, optimizer=optimizer, fabric=half_precision(), clip_norm=1.0, steps=10)
    assert math.isfinite(history[-1]["loss"])


def test_a_killed_fp16_run_resumes_with_the_scale_it_had(tmp_path):
    def loud(model, batch, number):  # at the first scale, 65,536, gradients overflow: it comes down step by step
        return {"loss": 4096 * nn.functional.cross_entropy(model(batch.images), batch.labels)}

    whole, stopped, resumed = network(), network(), network()
    history = fit(whole, fabric=half_precision(), step=loud)
    assert fit(stopped, fabric=half_precision(), step=loud, resume=tmp_path, stop_at=15) is None
    fabric = half_precision()
    assert fit(resumed, fabric=fabric, step=loud, resume=tmp_path) == history
    assert same_weights(whole, resumed)
    assert fabric.strategy.precision.scaler.get_scale() < 65_536


def test_steps_are_given_or_follow_from_epochs():
    epochs = {"batch_size": 64, "epochs": 3, "steps": None, "validate_every": None}
    assert training.steps_of(2000, **epochs) == (96, 32)  # 2,000 / 64 = 31.25
    assert training.steps_of(2000, **epochs | {"epochs": None, "steps": 50}) == (50, 32)
    assert training.steps_of(2000, **epochs | {"validate_every": 200}) == (96, 96)
