"""A checkpoint is built again from its spec alone, in another process, bit for bit."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from thinner import checkpoint, models, pruning
from thinner.profiling import count_macs

NETWORK = {"name": "resnet8", "width": 16, "stem_stride": 2, "classes": 5, "channels": 1}


def spec(network):
    return {
        "stage": "prune", "network": network, "classes": list("abcde"), "parents": {}, "data_sha256": "0",
        "preprocessing": {"image_size": 32, "channels": network["channels"], "mean": [0.5], "std": [0.5]},
    }  # fmt: skip


def pruned(network, size, share, round_to=1):
    torch.manual_seed(0)
    model = models.create(network).eval()
    example = torch.zeros(1, network["channels"], size, size)
    macs = count_macs(model, tuple(example.shape[1:]))
    return pruning.cut(model, example, macs=int(share * macs), criterion="l2", round_to=round_to)[0]


@pytest.mark.parametrize(
    ("network", "size"),
    [
        (NETWORK, 32),
        ({"name": "torchvision:mobilenet_v3_small", "classes": 5, "channels": 3}, 64),
        ({"name": "torchvision:squeezenet1_1", "classes": 5, "channels": 3}, 64),
    ],
)
def test_a_pruned_network_loads_in_a_new_process_with_the_same_logits(tmp_path, network, size):
    model = pruned(network, size, 0.6)
    checkpoint.save(tmp_path, model, spec(network))
    x = torch.randn(2, network["channels"], size, size, generator=torch.Generator().manual_seed(1))
    np.save(tmp_path / "x.npy", x.numpy())
    script = (
        "import sys, numpy, torch; from thinner import checkpoint; torch.set_num_threads(int(sys.argv[2]))\n"
        "loaded = checkpoint.load(sys.argv[1]); x = torch.from_numpy(numpy.load(sys.argv[1] + '/x.npy'))\n"
        "with torch.inference_mode(): numpy.save(sys.argv[1] + '/y.npy', loaded.model(x).numpy())"
    )
    threads = str(torch.get_num_threads())
    subprocess.run([sys.executable, "-c", script, str(tmp_path), threads], check=True, cwd=Path(__file__).parents[2])
    with torch.inference_mode():
        assert np.array_equal(np.load(tmp_path / "y.npy"), model(x).numpy())


def test_an_unpruned_network_says_so():
    assert checkpoint.changed_dimensions(models.create(NETWORK), NETWORK) is None


def test_what_was_pruned_in_two_steps_loads_like_what_was_pruned_in_one(tmp_path):
    example = torch.zeros(1, 1, 32, 32)
    first = pruned(NETWORK, 32, 0.7)
    second = pruning.cut(first, example, macs=int(0.6 * count_macs(first, (1, 32, 32))), criterion="l2")[0]
    checkpoint.save(tmp_path, second, spec(NETWORK))
    loaded = checkpoint.load(tmp_path).model
    x = torch.randn(3, 1, 32, 32)
    with torch.inference_mode():
        assert torch.equal(loaded(x), second.eval()(x))


def test_buffers_that_are_not_saved_are_computed_again(tmp_path):
    # swin keeps its table of relative positions out of some states; a meta build would leave it empty
    network = {"name": "timm:swin_s3_tiny_224", "classes": 5, "channels": 3}
    torch.manual_seed(0)
    model = models.create(network).eval()
    checkpoint.save(tmp_path, model, spec(network))
    x = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        assert torch.equal(checkpoint.load(tmp_path).model(x), model(x))


def test_loading_draws_no_random_numbers(tmp_path):
    checkpoint.save(tmp_path, models.create(NETWORK), spec(NETWORK))
    state = torch.random.get_rng_state()
    checkpoint.load(tmp_path)
    assert torch.equal(state, torch.random.get_rng_state())


def test_missing_files_name_the_next_command(tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match=r"model\.json: no such file\. Make it: thinner run"):
        checkpoint.load(tmp_path)


def test_a_damaged_file_is_named(tmp_path):
    checkpoint.save(tmp_path, models.create(NETWORK), spec(NETWORK))
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(checkpoint.CheckpointError, match=r"model\.safetensors: damaged"):
        checkpoint.load(tmp_path)


def test_weights_of_another_network_are_refused_by_name(tmp_path):
    checkpoint.save(tmp_path / "a", models.create(NETWORK), spec(NETWORK))
    wide = {**NETWORK, "width": 8}
    checkpoint.save(tmp_path / "b", models.create(wide), spec(wide))
    (tmp_path / "a" / "model.json").write_text((tmp_path / "b" / "model.json").read_text())
    with pytest.raises(checkpoint.CheckpointError, match=r"do not fit the spec; first fc\.weight"):
        checkpoint.load(tmp_path / "a")


def test_the_spec_is_plain_json_and_nothing_is_left_beside_it(tmp_path):
    sha = checkpoint.save(tmp_path, models.create(NETWORK), spec(NETWORK))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.json", "model.safetensors"]
    assert json.loads((tmp_path / "model.json").read_text())["network"] == NETWORK
    assert sha == checkpoint.file_sha256(tmp_path / "model.safetensors")
