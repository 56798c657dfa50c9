"""A checkpoint is judged by a new process: what is not the network that was saved is named."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from thinner.compress import pruning
from thinner.measure import verify
from thinner.measure.profiling import count_macs, count_params
from thinner.networks import checkpoint, models
from thinner.networks.spec import NetworkSpec

pytestmark = pytest.mark.integration  # each starts a process that imports torch

NETWORK = NetworkSpec("resnet8", 10, 1, width=8, stem_stride=2)
SPEC = {"stage": "prune", "network": NETWORK.as_json(), "classes": list("abcdefghij"), "parents": {}, "data_sha256": "0" * 64,
        "preprocessing": {"image_size": 16, "channels": 1, "mean": [0.5], "std": [0.5]}}  # fmt: skip
IMAGES = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def pruned(tmp_path):
    torch.manual_seed(0)
    model = models.create(NETWORK)
    model, _ = pruning.cut(model, IMAGES[:1], params=int(0.6 * count_params(model)), criterion="l2")
    model.to(memory_format=torch.channels_last)
    checkpoint.save(tmp_path, model, SPEC)
    return tmp_path, model


def test_what_was_saved_is_found_again_bit_for_bit(pruned):
    folder, model = pruned
    found = verify.verify_saved(folder, model, IMAGES, at_most={"params": count_params(model)})
    assert (found.macs, found.params) == (count_macs(model, (1, 16, 16)), count_params(model))
    assert found.nonzero < found.params  # fresh batch norms have biases of 0
    assert model.stem[0].weight.is_contiguous(memory_format=torch.channels_last)  # left as it was


def test_a_changed_bit_is_found(pruned):
    folder, model = pruned
    state = load_file(folder / "model.safetensors")
    state["fc.bias"].view(torch.int32)[0] += 1
    save_file(state, folder / "model.safetensors")
    with pytest.raises(verify.VerificationError, match="does not load in a new process: .*is not what was written"):
        verify.verify_saved(folder, model, IMAGES)
    checkpoint.write_spec(
        folder, checkpoint.read_spec(folder), "model.safetensors"
    )  # as if it had been saved like that
    with pytest.raises(verify.VerificationError, match="logits differ by up to .*e-"):
        verify.verify_saved(folder, model, IMAGES)


def test_more_than_was_asked_is_found(pruned):
    folder, model = pruned
    with pytest.raises(
        verify.VerificationError, match=r"params [\d,]+, at most 100 asked; nonzero .*, at most 1 asked"
    ):
        verify.verify_saved(folder, model, IMAGES, at_most={"params": 100, "nonzero": 1})


def test_another_network_is_found(pruned):
    folder, model = pruned
    smaller, _ = pruning.cut(model, IMAGES[:1], params=int(0.8 * count_params(model)), criterion="l2")
    with pytest.raises(
        verify.VerificationError, match="macs .* in memory, .* when loaded; params .*; tensor_bytes .*; logits differ"
    ):
        verify.verify_saved(folder, smaller, IMAGES)


def test_a_file_with_something_else_in_it_is_found(pruned):
    folder, model = pruned
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"rest")
    checkpoint.write_spec(folder, checkpoint.read_spec(folder), "model.safetensors")
    with pytest.raises(verify.VerificationError, match="does not load in a new process: .*damaged"):
        verify.verify_saved(folder, model, IMAGES)


def test_a_spec_that_lost_its_widths_is_found(pruned):
    folder, model = pruned
    checkpoint.write_spec(folder, {**checkpoint.read_spec(folder), "pruned": None}, "model.safetensors")
    with pytest.raises(verify.VerificationError, match="does not load in a new process: .*tensors do not fit the spec"):
        verify.verify_saved(folder, model, IMAGES)


def test_buffers_outside_of_the_state_count_where_pruning_resized_them(tmp_path):
    network = NetworkSpec("timm:swinv2_tiny_window8_256", 10, 3)
    model = models.create(network).eval()
    model, _ = pruning.cut(model, torch.zeros(1, 3, 256, 256), params=int(0.6 * count_params(model)), criterion="l2")
    spec = {
        **SPEC,
        "network": network.as_json(),
        "preprocessing": {"image_size": 256, "channels": 3, "mean": [0.5] * 3, "std": [0.5] * 3},
    }
    checkpoint.save(tmp_path, model, spec)
    state = load_file(tmp_path / "model.safetensors")
    assert state.keys() - model.state_dict().keys()  # there are such
    found = verify.verify_saved(tmp_path, model, torch.randn(2, 3, 256, 256))
    assert found.tensor_bytes == sum(t.numel() * t.element_size() for t in state.values())
