"""What a CUDA device would be asked to do, without one: FakeTensor computes shapes and devices, and no numbers.

It refuses operations on tensors of two devices, and whatever cannot go on before the device has told a number: on a
real card that is where the processor would wait. What comes out is compared in tests/test_gpu.py, on a card.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from thinner import predict
from thinner.compress import masks
from thinner.data import views
from thinner.learn import losses, signals, training
from thinner.networks import models
from thinner.networks.spec import NetworkSpec

CUDA = torch.device("cuda", 0)
IMAGES = np.random.default_rng(0).integers(0, 256, (64, 16, 16, 3), dtype=np.uint8)
LABELS = np.arange(64, dtype=np.int64) % 4
POOL = np.arange(64)
MOVING = views.Policy(
    crop=0.7, flip=True, rotation_degrees=10, translation=0.1, brightness=0.1, contrast=0.1, saturation=0.1, erase=0.3
)
POLICIES = {"still": views.Policy(), "moving": MOVING, "trivialaugment": views.Policy(policy="trivialaugment")}
LAYER = "stages.2"
SHAPES = {LAYER: (32, 4, 4)}, {LAYER: (48, 4, 4)}


class Copies(TorchDispatchMode):
    """Notes each copy from the processor to the device: whether anybody waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.waited: list[bool] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | (kwargs or {})
        if any(argument.name == "non_blocking" for argument in func._schema.arguments):
            source = given.get("src", args[0])  # copy_ has two tensors
            if (source.device.type, out.device.type) == ("cpu", "cuda"):
                self.waited.append(not given.get("non_blocking"))
        return out


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> Iterator[Copies]:
    """Inside, everything is fake; pinning, which FakeTensor does not know, gives the tensor itself."""
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor)
    with FakeTensorMode(allow_non_fake_inputs=True), Copies() as noted:
        yield noted


def there(module: nn.Module) -> Any:
    """The module with its tensors on the device; `Module.to` cannot do that to fake ones."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(torch.empty(parameter.shape, device=CUDA))
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=CUDA)
    return module


def network() -> Any:
    return there(models.create(NetworkSpec("resnet8", 4, 3, width=8, stem_stride=1)))


def test_it_tells_where_the_processor_would_wait(copies: Copies) -> None:
    x = torch.empty(4, device=CUDA)
    with pytest.raises(DynamicOutputShapeException):
        x[x > 0]
    with pytest.raises(RuntimeError, match="devices,? cuda:0"):
        x + torch.empty(4)
    torch.empty(4).to(CUDA), views.send(torch.empty(4), CUDA), x.copy_(torch.empty(4))
    with torch.inference_mode():
        torch.empty(4).to(CUDA), views.send(torch.empty(4), CUDA)
    assert copies.waited == [True, False, True, True, False]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("size", [12, 16])
def test_a_batch_goes_to_the_device_and_nobody_waits(copies: Copies, policy: str, size: int) -> None:
    batches = training.Batches(
        IMAGES, LABELS, POOL, 16, 0, size, (0.5,) * 3, (0.25,) * 3, POLICIES[policy], device=CUDA
    )
    batch = batches(0)
    assert (batch.images.device, batch.labels.device, batch.labelled) == (CUDA, CUDA, True)
    assert copies.waited and not any(copies.waited)
    if policy == "moving":  # pixels, drawn numbers, mean, std, labels; and the rows of each size that crops come from
        assert len(copies.waited) == 5 if size == 16 else 5 < len(copies.waited) < 16


def test_a_store_that_lies_there_is_not_copied_again(copies: Copies, monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        total_memory = 4 * IMAGES.nbytes

    monkeypatch.setattr(training, "_there", {})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    store = training.on_device(IMAGES, CUDA)
    assert store is not None and store.device == CUDA and training.on_device(IMAGES, CUDA) is store
    copies.waited.clear()
    training.Batches(
        IMAGES, LABELS, POOL, 16, 0, 16, (0.5,) * 3, (0.25,) * 3, views.Policy(), device=CUDA, there=store
    )(0)
    assert copies.waited == [False] * 4  # which images, their labels, mean, std
    Properties.total_memory -= 1
    assert training.on_device(IMAGES, CUDA) is None  # more than a quarter
    assert training.on_device(IMAGES, torch.device("cpu")) is None


@pytest.mark.parametrize("student", [(32, 4, 4), (32, 6, 5)])  # maps of the same size, and of one that does not divide
@pytest.mark.parametrize("name", losses.LOSSES)
def test_no_loss_waits_for_the_device(copies: Copies, name: str, student: tuple[int, ...]) -> None:
    row = losses.LOSSES[name]
    layers = {"student_layers": [LAYER], "teacher_layers": [LAYER]} if row.make else {}
    combined = there(losses.combine([(name, 1.0, layers, None)], {LAYER: student}, SHAPES[1], images=64))
    for module in combined.modules():
        if isinstance(module, losses.Contrast):
            module._done = 1  # which a resumed one asks for once
    index = torch.empty(16, dtype=torch.int64, device=CUDA)
    found = combined(
        torch.empty(16, 4, device=CUDA), torch.empty(16, 4, device=CUDA), index,
        student_features={LAYER: torch.empty(16, *student, device=CUDA)},
        teacher_features={LAYER: torch.empty(16, *SHAPES[1][LAYER], device=CUDA)}, index=index,
    )  # fmt: skip
    assert found["loss"].device == CUDA
    assert not any(copies.waited)


def test_a_networks_answers_are_asked_for_without_waiting(copies: Copies) -> None:
    teacher = signals.NetworkTeacher(network(), views.Preprocessing(16, (0.5,) * 3, (0.25,) * 3), flip=True)
    logits, _ = teacher(signals.View(IMAGES, POOL[:16], 0, MOVING, 0, CUDA))
    assert (logits.device, logits.dtype) == (CUDA, torch.float32)
    assert copies.waited and not any(copies.waited)


@pytest.mark.parametrize("size", [12, 16])
def test_what_evaluate_shows_a_network_is_made_on_the_device(copies: Copies, size: int) -> None:
    spec = {"preprocessing": views.Preprocessing(size, (0.5,) * 3, (0.25,) * 3).as_json()}
    seen = predict.preprocess(IMAGES[:8], spec, CUDA)
    assert (seen.device, tuple(seen.shape)) == (CUDA, (8, 3, size, size))
    assert copies.waited == [False] * 3  # pixels of a byte, mean, std


def test_masks_are_copied_to_the_device_once(copies: Copies) -> None:
    model = network()
    chosen = {"stem.0": torch.ones(8, 3, 3, 3, dtype=torch.bool)}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with masks.held(model, chosen):
        copies.waited.clear()
        for step in range(3):
            optimizer.step()
            assert len(copies.waited) == 1, step
