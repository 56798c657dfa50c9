"""thinner.predict on several devices, all of which are this CPU. What a card answers: tests/test_gpu.py."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tasks.evaluate import further_devices
from thinner.data import views
from thinner.networks import checkpoint, models
from thinner.networks.spec import NetworkSpec
from thinner.predict import Candidate, open_candidate, predict_logits

NETWORK = NetworkSpec("resnet8", 4, 3, width=8, stem_stride=1)
IMAGES = np.random.default_rng(0).integers(0, 256, (50, 16, 16, 3), dtype=np.uint8)
INDEX = np.arange(3, 48)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    preprocessing = views.Preprocessing(16, mean=(0.5,) * 3, std=(0.25,) * 3)
    spec = {
        "stage": "distill", "network": NETWORK.as_json(), "classes": list("abcd"), "parents": {},
        "preprocessing": preprocessing.as_json(), "data_sha256": "0" * 64,
    }  # fmt: skip
    checkpoint.save(tmp_path, models.create(NETWORK).eval(), spec)
    return tmp_path


def counted(folder: Path, seen: list[int]) -> Candidate:
    """The candidate, which notes how many images it is given at once."""
    candidate = open_candidate(folder)

    def run(batch: Any) -> Any:
        seen.append(len(batch))
        return candidate.run(batch)

    return replace(candidate, run=run)


@pytest.mark.parametrize("devices", [1, 2, 3])
@pytest.mark.parametrize("size", [7, 45, 64])
def test_several_devices_share_the_batches_and_say_what_one_does(folder: Path, devices: int, size: int) -> None:
    seen: list[list[int]] = [[] for _ in range(devices)]
    first, *others = (counted(folder, own) for own in seen)
    told: list[int] = []
    found = predict_logits(first, IMAGES, INDEX, size, told.append, others)
    assert np.array_equal(found, predict_logits(open_candidate(folder), IMAGES, INDEX, size))
    each = [min(size, 45 - start) for start in range(0, 45, size)]
    assert told == np.cumsum(each).tolist()
    assert [sorted(own) for own in seen] == [sorted(each[number::devices]) for number in range(devices)]


@pytest.mark.parametrize(
    ("device", "devices", "further"),
    [("cuda", 3, ["cuda:1", "cuda:2"]), ("cuda", 1, []), ("cpu", 3, []), ("mps", 1, [])],
)
def test_evaluate_takes_all_cuda_devices_for_what_runs_there(
    folder: Path, device: str, devices: int, further: list[str]
) -> None:
    network = replace(open_candidate(folder), device=device)
    export = replace(network, runtime="onnxruntime", device="cpu")
    found = further_devices({"prune": network, "prune_onnx": export}, device, devices)
    assert found == {"prune": further, "prune_onnx": []}


def test_what_fails_on_a_further_device_fails(folder: Path) -> None:
    def run(batch: Any) -> Any:
        raise RuntimeError("that one is broken")

    with pytest.raises(RuntimeError, match="that one is broken"):
        predict_logits(open_candidate(folder), IMAGES, INDEX, 7, others=[replace(open_candidate(folder), run=run)])
