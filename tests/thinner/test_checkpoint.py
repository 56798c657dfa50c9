"""A checkpoint is built again from its spec alone, in another process, bit for bit."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from thinner.compress import pruning
from thinner.errors import DamagedError
from thinner.files import whole
from thinner.measure.profiling import count_macs
from thinner.networks import checkpoint, models
from thinner.networks.spec import NetworkSpec

NETWORK = NetworkSpec("resnet8", 5, 1, width=16, stem_stride=2)


def spec(network):
    return {
        "stage": "prune", "network": network.as_json(), "classes": list("abcde"), "parents": {}, "data_sha256": "0",
        "preprocessing": {"image_size": 32, "channels": network.channels, "mean": [0.5], "std": [0.5]},
    }  # fmt: skip


def pruned(network, size, share, round_to=1):
    torch.manual_seed(0)
    model = models.create(network).eval()
    example = torch.zeros(1, network.channels, size, size)
    macs = count_macs(model, tuple(example.shape[1:]))
    return pruning.cut(model, example, macs=int(share * macs), criterion="l2", round_to=round_to)[0]


@pytest.mark.parametrize(
    ("network", "size"),
    [
        (NETWORK, 32),
        (NetworkSpec("torchvision:mobilenet_v3_small", 5, 3), 64),
        (NetworkSpec("torchvision:squeezenet1_1", 5, 3), 64),
    ],
)
def test_a_pruned_network_loads_in_a_new_process_with_the_same_logits(tmp_path, network, size):
    model = pruned(network, size, 0.6)
    checkpoint.save(tmp_path, model, spec(network))
    x = torch.randn(2, network.channels, size, size, generator=torch.Generator().manual_seed(1))
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


@pytest.mark.parametrize("at", [1, 2])
def test_a_write_that_fails_leaves_each_file_as_it_was(tmp_path, monkeypatch, at):
    """A full disk, at the first file and at the second: no half of a new checkpoint stands in the old one's place."""
    torch.manual_seed(0)
    checkpoint.save(tmp_path, models.create(NETWORK), spec(NETWORK))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    moved, replace = [], whole.os.replace

    def full(source, target):
        assert Path(source).parent == Path(target).parent and Path(source).stat().st_size > 0
        moved.append(Path(target).name)
        if len(moved) == at:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(whole.os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(tmp_path, models.create(NETWORK), spec(NETWORK) | {"stage": "later"})
    kept = {name: content for name, content in before.items() if name not in moved[: at - 1]}
    assert kept and all((tmp_path / name).read_bytes() == content for name, content in kept.items())


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


def test_the_spec_does_not_tell_in_which_order_layers_were_cut(tmp_path):
    example = torch.zeros(1, 1, 32, 32)
    layers = [rf"^stages\.{n}\.0\.conv1$" for n in range(3)]
    others = r"^(stem|stages\.\d\.0\.(conv2|shortcut))"  # the residual stream stays, so that each layer is cut alone
    folders, networks = [], []
    for order in ([0, 1, 2], [2, 0, 1]):
        torch.manual_seed(0)
        network = models.create(NETWORK).eval()
        for n in order:
            keep = [others, *(layer for m, layer in enumerate(layers) if m != n)]
            network = pruning.cut_share(network, example, 0.5, criterion="l2", keep=keep)
        folders.append(tmp_path / str(order[0]))
        networks.append(network)
        checkpoint.save(folders[-1], network, spec(NETWORK))
    first, second = (checkpoint.load(folder) for folder in folders)
    assert first.spec == second.spec
    assert first.spec["pruned"]["attributes"]["stages.0.0.conv1"] == {"out_channels": 8}
    x = torch.randn(3, 1, 32, 32)
    with torch.inference_mode():
        assert torch.equal(first.model(x), networks[0](x))
        assert torch.equal(second.model(x), networks[1](x))
        assert torch.equal(first.model(x), second.model(x)), "each layer was ranked by itself"


def test_a_hidden_buffer_that_pruning_resized_is_saved(tmp_path):
    # swin v2 of timm has zeros for a bias of keys in a buffer outside its state; its size follows the embedding
    network = NetworkSpec("timm:swinv2_tiny_window8_256", 5, 3)
    torch.manual_seed(0)
    model = models.create(network).eval()
    smaller = pruning.cut_share(model, torch.zeros(1, 3, 256, 256), 0.5, criterion="l2")
    checkpoint.save(tmp_path, smaller, spec(network))
    loaded = checkpoint.load(tmp_path).model
    assert list(loaded.state_dict()) == list(model.state_dict())
    assert loaded.layers[0].blocks[0].attn.k_bias.tolist() == [0.0] * 48
    x = torch.randn(1, 3, 256, 256)
    with torch.inference_mode():
        assert torch.equal(loaded(x), smaller(x))


@pytest.mark.parametrize("name", ["regnet_y_400mf", "mnasnet0_5"])
def test_networks_that_torchvision_builds_or_loads_in_a_way_of_their_own(tmp_path, name):
    # regnets work out their widths with tensors, which are empty on "meta"; mnasnet asks for its state's version
    network = NetworkSpec(f"torchvision:{name}", 5, 3)
    torch.manual_seed(0)
    model = models.create(network).eval()
    checkpoint.save(tmp_path, model, spec(network))
    state = torch.random.get_rng_state()
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(checkpoint.load(tmp_path).model(x), model(x))
    assert torch.equal(state, torch.random.get_rng_state())


def test_buffers_that_are_not_saved_are_computed_again(tmp_path):
    # swin keeps its table of relative positions out of some states; a meta build would leave it empty
    network = NetworkSpec("timm:swin_s3_tiny_224", 5, 3)
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
    with pytest.raises(DamagedError, match=r"model\.safetensors: is not what was written"):
        checkpoint.load(tmp_path)


def test_a_flipped_bit_in_either_file_is_found(tmp_path):
    checkpoint.save(tmp_path, models.create(NETWORK), spec(NETWORK))
    rng = np.random.default_rng(0)
    for name in ("model.safetensors", "model.json"):
        whole_file = (tmp_path / name).read_bytes()
        for at in rng.integers(0, len(whole_file), 40):
            flipped = bytearray(whole_file)
            flipped[at] ^= 1 << rng.integers(8)
            (tmp_path / name).write_bytes(flipped)
            try:
                checkpoint.load(tmp_path)
            except (DamagedError, checkpoint.CheckpointError):
                continue
            # all that may pass is another way of writing the same: a blank beside a tab
            assert json.loads(bytes(flipped)) == json.loads(whole_file)
        (tmp_path / name).write_bytes(whole_file)
    checkpoint.load(tmp_path)


def test_a_checkpoint_of_before_has_no_seal_and_is_read(tmp_path):
    checkpoint.save(tmp_path, models.create(NETWORK), spec(NETWORK))
    unsealed = json.loads((tmp_path / "model.json").read_text())
    sealed = checkpoint.load(tmp_path)
    assert "integrity" not in sealed.spec  # it is the file's, not the network's
    del unsealed["integrity"], unsealed["sealed"]
    (tmp_path / "model.json").write_text(json.dumps(unsealed))
    assert checkpoint.load(tmp_path).spec == sealed.spec


def test_weights_of_another_network_are_refused_by_name(tmp_path):
    checkpoint.save(tmp_path / "a", models.create(NETWORK), spec(NETWORK))
    wide = replace(NETWORK, width=8)
    checkpoint.save(tmp_path / "b", models.create(wide), spec(wide))
    (tmp_path / "a" / "model.json").write_text((tmp_path / "b" / "model.json").read_text())
    with pytest.raises(DamagedError, match=r"is not what was written .*model\.json beside it says"):
        checkpoint.load(tmp_path / "a")
    other = json.loads((tmp_path / "a" / "model.json").read_text())
    del other["integrity"], other["sealed"]
    (tmp_path / "a" / "model.json").write_text(json.dumps(other))
    with pytest.raises(checkpoint.CheckpointError, match=r"do not fit the spec; first fc\.weight"):
        checkpoint.load(tmp_path / "a")


def test_the_spec_is_plain_json_and_nothing_is_left_beside_it(tmp_path):
    sha = checkpoint.save(tmp_path, models.create(NETWORK), spec(NETWORK))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.json", "model.safetensors"]
    assert json.loads((tmp_path / "model.json").read_text())["network"] == {
        "name": "resnet8", "classes": 5, "channels": 1, "width": 16, "stem_stride": 2,
    }  # fmt: skip
    assert checkpoint.load(tmp_path).network == NETWORK
    assert sha == whole.file_sha256(tmp_path / "model.safetensors")
