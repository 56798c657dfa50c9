"""On a CUDA device: the same views, losses, masks and answers as on the CPU; training in every precision; exact resume.

    pytest -m gpu tests/test_gpu.py
    THINNER_TEST_DEVICE=cpu pytest -m gpu tests/test_gpu.py    # without such a device: do the tests run to their end?

The second command compares the CPU with itself, so it proves that nothing here is misspelt, and no more. Without a
device, and without the variable, all are skipped. What must be installed: docs/gpu.md.
"""

import copy
import dataclasses
import functools
import importlib.util
import itertools
import json
import os

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS is not deterministic, and resume not exact

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from thinner import predict
from thinner.compress import criteria, masks, pruning
from thinner.data import views
from thinner.learn import losses, signals, training
from thinner.networks import checkpoint, models
from thinner.networks.spec import NetworkSpec

DEVICE = os.environ.get("THINNER_TEST_DEVICE") or ("cuda" if torch.cuda.is_available() else None)
NONE = "no CUDA device is to be seen (THINNER_TEST_DEVICE=cpu runs the bodies without one)"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE is None, reason=NONE),
    pytest.mark.filterwarnings("ignore:.*AMP with fp16 is not supported on CPU"),  # bf16 stands in for it there
    pytest.mark.filterwarnings("ignore:.*deterministic"),  # some operators have no such form on a GPU
]

RNG = np.random.default_rng(0)
LABELS = np.arange(320, dtype=np.int64) % 4
IMAGES = (RNG.integers(0, 128, (320, 16, 16, 3)) + 40 * LABELS[:, None, None, None]).astype(np.uint8)
POOL, HELD_OUT = np.arange(256), np.arange(256, 320)
PREPROCESSING = views.Preprocessing(16, mean=(0.5,) * 3, std=(0.25,) * 3)
NETWORK = NetworkSpec("resnet8", 4, 3, width=8, stem_stride=1)
MOVING = views.Policy(
    crop=0.7, flip=True, rotation_degrees=10, translation=0.1, brightness=0.1, contrast=0.1, saturation=0.1, erase=0.3
)
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
STEPS = 24


@pytest.fixture
def device():
    return DEVICE


@pytest.fixture
def exact():
    """Deterministic operators, as stages ask for; as it was before, afterwards."""
    before = torch.get_deterministic_debug_mode()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.set_deterministic_debug_mode(before)


def network(device, layout="channels_last", **changes):
    torch.manual_seed(0)
    return models.create(replace(NETWORK, **changes)).to(device, memory_format=LAYOUTS[layout])


def batches(device, layout="channels_last", policy=views.Policy(flip=True)):
    return training.Batches(
        IMAGES, LABELS, POOL, batch_size=64, seed=1, size=16, mean=(0.5,) * 3, std=(0.25,) * 3, policy=policy,
        device=device, channels_last=layout == "channels_last",
    )  # fmt: skip


def fit(model, device, *, precision="fp32", layout="channels_last", optimizer="sgd", step=None, steps=STEPS, **more):
    fabric = training.make_fabric(device, 1, precision)
    return training.fit(
        model, batches(device, layout), step or training.supervised_step(), steps=steps, validate_every=steps // 3,
        optimizer=training.make_optimizer(
            model, optimizer, lr=0.02 if optimizer == "sgd" else 0.002, weight_decay=1e-3, extra=more.get("extra"),
            fused=precision != "fp16",
        ),
        factor=lambda number: 1.0, seed=1, fabric=fabric,
        validate=training.validation(IMAGES, LABELS, HELD_OUT, PREPROCESSING, device=fabric.device), **more,
    )  # fmt: skip


def same_weights(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


# ------------------------------------------------------------------------------------------------------- views


@pytest.mark.parametrize("size", [12, 16, 20])
def test_views_are_the_cpus_and_do_not_depend_on_the_batch(device, size):
    index, view = np.arange(64), np.arange(64) % 3
    cpu = views.draw(IMAGES[:64], index, view, size=size, seed=5, policy=MOVING)
    there = views.draw(IMAGES[:64], index, view, size=size, seed=5, policy=MOVING, device=device)
    assert there.device.type == device
    torch.testing.assert_close(there.cpu(), cpu, rtol=0, atol=1e-5)
    one_by_one = [
        views.draw(
            IMAGES[i : i + 1], index[i : i + 1], view[i : i + 1], size=size, seed=5, policy=MOVING, device=device
        )
        for i in range(64)
    ]
    assert torch.equal(torch.cat(one_by_one), there)


def test_trivialaugment_is_the_cpus_but_where_rounding_decides(device):
    """Posterize, solarize and equalize ask on which side of a level a pixel lies."""
    index, policy = np.arange(300), dataclasses.replace(MOVING, crop=0.4, aspect=0.75, policy="trivialaugment")
    cpu, there = (
        views.draw(IMAGES[:300], index, 1, size=11, seed=5, policy=policy, device=where) for where in ("cpu", device)
    )
    assert ((there.cpu() - cpu).abs() > 1e-5).float().mean() < 0.005
    one_by_one = [
        views.draw(IMAGES[i : i + 1], index[i : i + 1], 1, size=11, seed=5, policy=policy, device=device)
        for i in range(300)
    ]
    assert torch.equal(torch.cat(one_by_one), there)


@pytest.mark.parametrize("size", [12, 16, 20])
def test_what_a_network_sees_is_what_it_sees_on_the_cpu(device, size):
    asked = replace(PREPROCESSING, image_size=size)
    there = views.preprocess(IMAGES[:64], asked, device)
    torch.testing.assert_close(there.cpu(), views.preprocess(IMAGES[:64], asked), rtol=0, atol=5e-5)  # 1e-5 / std


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_batch_is_the_cpus_and_lies_as_it_should(device, layout):
    there, cpu = batches(device, layout, MOVING)(3), batches("cpu", layout, MOVING)(3)
    torch.testing.assert_close(there.images.cpu(), cpu.images, rtol=0, atol=5e-5)
    assert there.images.is_contiguous(memory_format=LAYOUTS[layout])
    assert torch.equal(there.labels.cpu(), cpu.labels)
    assert np.array_equal(there.index, cpu.index)
    store = training.on_device(IMAGES, torch.device(device))
    assert (store is None) == (device != "cuda")
    if store is not None:
        held = dataclasses.replace(batches(device, layout, MOVING), there=store)(3)
        assert torch.equal(held.images, there.images)


# ---------------------------------------------------------------------------------------------------- training


@functools.cache
def on_the_cpu(ema):
    return fit(network("cpu"), "cpu", ema=ema)


# Sums are taken in another order, products of float32 may be rounded to TF32, and halves have 8 or 11 bits.
CLOSE = {"fp32": 0.02, "bf16": 0.06, "fp16": 0.04}


@pytest.mark.parametrize("ema", [0.0, 0.5])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("precision", CLOSE)
def test_training_learns_what_it_learns_on_the_cpu(device, precision, layout, ema):
    model = network(device, layout)
    history = fit(model, device, precision=precision, layout=layout, ema=ema)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {p.device.type for p in model.parameters()} == {device}
    found, cpu = ([row["loss"] for row in rows] for rows in (history, on_the_cpu(ema)))
    assert np.isfinite(found).all()
    assert found[-1] < 0.8 * found[0]
    if precision != "fp16":  # whose first steps are left out until the scale of the gradients fits
        assert found == pytest.approx(cpu, abs=CLOSE[precision])
    assert history[-1]["val_loss"] == pytest.approx(on_the_cpu(ema)[-1]["val_loss"], abs=0.3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_it_learns_the_same(device, precision):
    torch.compiler.reset()
    history = fit(network(device), device, precision=precision, compiled=True)
    assert [row["loss"] for row in history] == pytest.approx(
        [row["loss"] for row in on_the_cpu(0.0)], abs=CLOSE[precision]
    )


@pytest.mark.parametrize("precision", CLOSE)
def test_gradients_can_be_clipped_in_every_precision(device, precision):
    history = fit(network(device), device, precision=precision, clip_norm=1.0)
    assert history[-1]["loss"] < history[0]["loss"]


def loud(model, batch, number):
    """Gradients of float16 overflow at first, so their scale must come down, and be the same after a resume."""
    return {"loss": 4096 * nn.functional.cross_entropy(model(batch.images), batch.labels)}


@pytest.mark.parametrize(
    ("precision", "optimizer", "step"),
    [("fp32", "sgd", None), ("fp32", "adamw", None), ("bf16", "adamw", None), ("fp16", "adamw", loud)],
)
def test_a_training_that_was_stopped_ends_with_the_very_same_weights(
    device, precision, optimizer, step, tmp_path, exact
):
    def stop(row):
        if row["step"] >= 2 * (STEPS // 3):
            raise KeyboardInterrupt

    how = {"precision": precision, "optimizer": optimizer, "step": step, "ema": 0.5}
    whole, again, stopped, resumed = (network(device) for _ in range(4))
    history = fit(whole, device, **how)
    assert fit(again, device, **how) == history
    assert same_weights(whole, again)
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, device, resume=tmp_path, on_validation=stop, **how)
    assert fit(resumed, device, resume=tmp_path, **how) == history
    assert same_weights(whole, resumed)


# ----------------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("top_k", [None, 2])
def test_what_a_teacher_says_is_kept_as_on_the_cpu_and_cached_equals_live(device, precision, top_k, tmp_path):
    model = network("cpu").eval()
    fit(model, "cpu")
    layer, index = "stages.2", np.arange(0, 64, 2)
    sets, answers = [], []
    for where in ("cpu", device):
        kept = [signals.Feature(layer)]
        autocast = training.autocast(where, precision if sets else "fp32")
        one = signals.NetworkTeacher(copy.deepcopy(model).to(where), PREPROCESSING, kept, autocast)
        place, work = (tmp_path / f"{kind} {len(sets)}" for kind in ("set", "work"))
        place.mkdir(), work.mkdir()
        signals.write_signals(
            place, one, IMAGES, index, count=2, policy=MOVING, seed=3, batch_size=7, device=where, info={}, work=work,
            top_k=top_k, features=kept,
        )  # fmt: skip
        sets.append(signals.open_signals(place))
        answers.append(one(signals.View(IMAGES, index, 1, MOVING, 3, where))[0].cpu())
    (cpu, there), (expected, live) = sets, answers
    views_of = np.ones(len(index), dtype=np.int64)
    largest = float(expected.abs().max())
    found = there.logits(index, views_of, device).cpu()
    if top_k is None:  # rounded to float16 and to nothing else
        assert (found - live).abs().max() <= 2e-3 * max(1.0, largest)
    else:  # the largest are kept, and what is left over is shared out
        assert torch.equal(found.argmax(1), live.argmax(1))
    bound = 3e-2 if precision == "bf16" else 5e-3
    assert (live - expected).abs().max() <= bound * largest
    maps = there.features(index, views_of)[layer], cpu.features(index, views_of)[layer]
    assert (maps[0] - maps[1]).abs().max() <= 2 * bound * float(maps[1].abs().max())


# ------------------------------------------------------------------------------------------------------ losses


def said(device, seed):
    """(logits, features) of a network for 16 images, leaves of a graph on the device."""
    generator = torch.Generator().manual_seed(seed)
    width = 6 + seed
    tensors = [torch.randn(16, 4, generator=generator), torch.randn(16, width, 4, 4, generator=generator)]
    logits, features = (tensor.to(device).requires_grad_() for tensor in tensors)
    return logits, {"layer": features}


def loss_of(name):
    shapes = {"layer": (7, 4, 4)}, {"layer": (8, 4, 4)}
    layers = {"student_layers": ["layer"], "teacher_layers": ["layer"]} if losses.LOSSES[name].make else {}
    return losses.combine([(name, 1.0, layers, None)], *shapes, images=len(IMAGES))


@pytest.mark.parametrize("name", losses.LOSSES)
def test_a_loss_and_its_gradient_are_the_cpus(device, name):
    found = []
    for where in (device, "cpu"):
        (logits, features), (teacher_logits, teacher_features) = said(where, 1), said(where, 2)
        combined = loss_of(name).to(where).train()
        labels = torch.arange(16, device=where) % 4
        loss = combined(
            logits, teacher_logits, labels, student_features=features, teacher_features=teacher_features,
            index=torch.arange(16, device=where),
        )["loss"]  # fmt: skip
        loss.backward()
        given = [x.grad for x in (logits, features["layer"]) if x.grad is not None]
        found.append([loss.detach().cpu(), *(grad.cpu() for grad in given)])
        assert teacher_logits.grad is None
        assert loss.device.type == where
    for there, cpu in zip(*found, strict=True):
        torch.testing.assert_close(there, cpu, rtol=5e-3, atol=1e-4 + 2e-3 * float(cpu.abs().max()))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", losses.LOSSES)
def test_a_student_trains_with_every_loss(device, name, precision):
    layer = "stages.2"
    student, teacher = network(device), network(device, width=12).eval()
    taps, asked = models.tap(student, [layer]), models.tap(teacher, [layer])
    layers = {"student_layers": [layer], "teacher_layers": [layer]} if losses.LOSSES[name].make else {}
    shapes = {layer: (32, 4, 4)}, {layer: (48, 4, 4)}
    combined = losses.combine([(name, 1.0, layers, None)], *shapes, images=len(IMAGES)).to(device)

    def step(model, batch, number):
        with torch.no_grad():
            logits = teacher(batch.images)
        index = torch.from_numpy(batch.index).to(device)
        return combined(
            model(batch.images), logits, batch.labels, student_features=taps, teacher_features=asked, index=index
        )

    extra = combined if combined.state_dict() else None
    history = fit(student, device, precision=precision, optimizer="adamw", step=step, steps=6, extra=extra)
    assert len(history) == 3
    assert all(np.isfinite(row["loss"]) for row in history)


# ------------------------------------------------------------------------------------------ masks and pruning


def test_what_is_masked_stays_zero_on_the_device(device):
    model = network("cpu")
    chosen = masks.mask_weights(model, nonzero=6000, criterion="l2")
    with masks.held(model.to(device), chosen):
        fit(model, device, optimizer="adamw")
    for name, mask in chosen.items():
        weight = model.get_submodule(name).weight.cpu()
        assert not weight[~mask].any()
        assert weight[mask].count_nonzero() > 0.9 * mask.sum()


def examples(device):
    seen = views.preprocess(IMAGES[:32], PREPROCESSING, device)
    labels = torch.from_numpy(LABELS[:32]).to(device)
    return criteria.Examples([(seen[:16], labels[:16]), (seen[16:], labels[16:])], nn.functional.cross_entropy)


@pytest.mark.parametrize("name", criteria.CRITERIA)
def test_channels_score_as_on_the_cpu(device, name):
    model = network("cpu").eval()  # as prune has it: it goes to where the images are, and comes back
    _, there = criteria.score_channels(name, model, examples(device), 0)
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    _, cpu = criteria.score_channels(name, network("cpu").eval(), examples("cpu"), 0)
    assert there.keys() == cpu.keys()
    for key, values in cpu.items():
        close = 2e-2 * float(values.abs().max())  # taylor sums what nearly cancels
        torch.testing.assert_close(there[key], values, rtol=2e-2, atol=close)


def test_a_network_cut_by_taylor_recovers_on_the_device(device):
    model = network(device)
    fit(model, device)
    seen = torch.zeros(1, 3, 16, 16)
    small, cut = pruning.cut(
        model.cpu(),
        seen,
        macs=pruning.count_macs(model, (3, 16, 16)) // 2,
        criterion="taylor",
        examples=examples(device),
    )
    assert cut.macs_after <= cut.macs_before // 2
    history = fit(small.to(device, memory_format=torch.channels_last), device)
    assert history[-1]["val_loss"] < 1.4  # chance: 1.39
    assert {p.device.type for p in small.parameters()} == {device}


# ------------------------------------------------------------------------------------------------- candidates


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["checkpoint", "pt2"])
def test_a_candidate_answers_as_on_the_cpu(device, kind, layout, tmp_path):
    model = network("cpu").eval()
    fit(model, "cpu")
    spec = {
        "stage": "distill", "network": NETWORK.as_json(), "classes": list("abcd"), "preprocessing": PREPROCESSING.as_json(), "parents": {},
        "data_sha256": "0" * 64,
    }  # fmt: skip
    checkpoint.save(tmp_path / "checkpoint", model, spec)
    if kind == "pt2":
        pytest.importorskip("onnxruntime", reason="thinner.networks.export needs it")
        from thinner.networks import export

        (tmp_path / "pt2").mkdir()
        export.export_pt2(model, tmp_path / "pt2" / "model.pt2", (3, 16, 16), {})
        (tmp_path / "pt2" / "model.json").write_text((tmp_path / "checkpoint" / "model.json").read_text())
    answers = {
        (where, size): predict.predict_logits(
            predict.open_candidate(tmp_path / kind, where, channels_last=layout == "channels_last"),
            IMAGES,
            HELD_OUT,
            size,
        )
        for where, size in itertools.product((device, "cpu"), (64, 7))
    }
    expected = answers["cpu", 64]
    for found in answers.values():
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-2 * np.abs(expected).max())


# -------------------------------------------------------------------------------------------------- all stages

TOOLS = [tool for tool in ("prefect", "dvc", "mlflow") if importlib.util.find_spec(tool) is None]


@pytest.mark.integration
@pytest.mark.skipif(bool(TOOLS), reason=f"the whole pipeline needs {', '.join(TOOLS)}")
def test_every_stage_runs_on_the_device(device, tmp_path):
    import test_end_to_end as digits

    root = digits.clone(tmp_path / "thinner")
    digits.set_params(root, {"run.device": device, "run.precision": "bf16"})
    digits.run(root, "git", "commit", "--all", "--quiet", "--message", "on the device")
    digits.pipeline(root)
    metrics = json.loads((root / "reports" / "metrics.json").read_text())
    for name in ("finetune", "scratch", "distill", "small", "prune"):
        assert metrics[name]["device"] == device
    assert metrics["finetune"]["accuracy"] > 0.5
    assert metrics["distill"]["accuracy"] > 0.5
