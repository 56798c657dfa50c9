"""A checkpoint is built again from its spec alone, in another process, bit for bit."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

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


@pytest.mark.integration
def test_pruned_networks_load_in_a_new_process_with_the_same_logits(tmp_path):
    sizes = {"resnet8": 32, "torchvision:mobilenet_v3_small": 64, "torchvision:squeezenet1_1": 64}
    models_of = {}
    for number, (name, size) in enumerate(sizes.items()):
        network = NETWORK if name == "resnet8" else NetworkSpec(name, 5, 3)
        models_of[str(number)] = model = pruned(network, size, 0.6)
        checkpoint.save(tmp_path / str(number), model, spec(network))
        x = torch.randn(2, network.channels, size, size, generator=torch.Generator().manual_seed(1))
        np.save(tmp_path / str(number) / "x.npy", x.numpy())
    script = (
        "import sys, numpy, torch; from thinner import checkpoint; torch.set_num_threads(int(sys.argv[1]))\n"
        "for folder in sys.argv[2:]:\n"
        "    model = checkpoint.load(folder).model; x = torch.from_numpy(numpy.load(folder + '/x.npy'))\n"
        "    with torch.inference_mode(): numpy.save(folder + '/y.npy', model(x).numpy())"
    )
    command = [sys.executable, "-c", script, str(torch.get_num_threads()), *(str(tmp_path / n) for n in models_of)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
    for number, model in models_of.items():
        x, y = (np.load(tmp_path / number / name) for name in ("x.npy", "y.npy"))
        with torch.inference_mode():
            assert np.array_equal(y, model(torch.from_numpy(x)).numpy())


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


# ---------------------------------------------------------------------------------- what a description may say

TINY = NetworkSpec("resnet8", 5, 1, width=4, stem_stride=2)


def unsealed(folder, change=lambda spec: None):
    """A checkpoint in ``folder`` whose description was written by hand."""
    torch.manual_seed(0)
    checkpoint.save(folder, models.create(TINY), spec(TINY))
    found = json.loads((folder / "model.json").read_text())
    del found["integrity"], found["sealed"]
    change(found)
    (folder / "model.json").write_text(json.dumps(found))
    return found


@pytest.mark.parametrize(
    ("value", "old", "may"),
    [
        (4, 8, True), (8, 8, True), (1, 8, True), (9, 8, False), (0, 8, False), (0, 0, True), (-1, 0, False),
        (True, 8, False), (4, True, False), ("4", 8, False), (4, None, False), (None, None, False),
        ((4, 3), (8, 3), True), ((8, 4), (8, 3), False), ((4,), (8, 3), False), ([4, 3], (8, 3), False), (4, (8,), False),
        ((4,), 8, False),
        (0.5, 0.25, True), (0.5, 2, True), (2, 0.5, True), (float("inf"), 0.5, False), ("x", 0.5, False), (0.5, None, False),
        (0.5, "x", False),
    ],
)  # fmt: skip
def test_pruning_makes_numbers_smaller_and_scales_anything(value, old, may):
    assert checkpoint._is_less(value, old) is may


def blocks():
    model = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.BatchNorm1d(6))
    model[0].heads, model[0].scale, model[0].grid = 4, 0.5, (2, 3)
    model[0].weight.requires_grad_(False)
    model[0].register_buffer("table", torch.zeros(6, dtype=torch.int32), persistent=False)
    return model


def test_dimensions_and_shapes_are_set_where_they_are_named():
    model, before = blocks(), blocks()
    checkpoint.apply_dimensions(
        model,
        {
            "attributes": {
                "0": {"out_features": 3, "heads": 2, "scale": 0.7, "grid": [1, 3]},
                "1": {"num_features": 3},
            },
            "shapes": {"0.weight": [3, 8], "0.table": [4], "1.running_mean": [3]},
        },
    )
    linear, norm = model
    assert (linear.out_features, linear.in_features, linear.heads, linear.scale, linear.grid) == (3, 8, 2, 0.7, (1, 3))
    assert norm.num_features == 3
    shapes = {name: tuple(tensor.shape) for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    assert shapes["0.weight"] == (3, 8) and shapes["0.table"] == (4,) and shapes["1.running_mean"] == (3,)
    assert shapes["0.bias"] == shapes["1.running_var"] == (6,)
    assert not linear.weight.requires_grad and linear.bias.requires_grad
    assert linear.table.dtype == torch.int32
    assert model.state_dict().keys() == before.state_dict().keys()  # the table stays out of it


@pytest.mark.parametrize(
    ("pruned", "message"),
    [
        ({"attributes": {"0": {"out_features": 7}}, "shapes": {}}, "0.out_features cannot be 7"),
        ({"attributes": {"2": {"out_features": 3}}, "shapes": {}}, "2.out_features cannot be 3"),
        ({"attributes": {"0": {"forward": 3}}, "shapes": {}}, "0.forward cannot be 3"),
        ({"attributes": {"0": {"grid": [3, 3]}}, "shapes": {}}, r"0.grid cannot be \(3, 3\)"),
        ({"attributes": {}, "shapes": {"0.weight": [7, 8]}}, r"0.weight cannot be of shape \[7, 8\]"),
        ({"attributes": {}, "shapes": {"0.weight": 3}}, "0.weight cannot be of shape 3"),
        ({"attributes": {}, "shapes": {"0.other": [3]}}, r"0.other cannot be of shape \[3\]"),
    ],
)
def test_a_description_may_make_nothing_larger_and_set_nothing_new(pruned, message):
    text = rf"^model.json: {message} in a pruned Sequential. Make it again: dvc checkout --force$"
    with pytest.raises(DamagedError, match=text):
        checkpoint.apply_dimensions(blocks(), pruned)


def test_what_pruning_changed_is_found_by_comparing_with_a_new_network():
    torch.manual_seed(0)
    model = models.create(TINY)
    conv, norm = model.stages[0][0].conv1, model.stages[0][0].bn1
    conv.out_channels, norm.num_features = 3, 3
    conv.weight = torch.nn.Parameter(conv.weight[:3])
    norm.register_buffer("running_mean", norm.running_mean[:3])
    names = {module: name for name, module in model.named_modules()}
    assert checkpoint.changed_dimensions(model, TINY) == {
        "attributes": {names[conv]: {"out_channels": 3}, names[norm]: {"num_features": 3}},
        "shapes": {f"{names[conv]}.weight": [3, 4, 3, 3], f"{names[norm]}.running_mean": [3]},
    }
    plain = torch.nn.Module()
    plain.number, plain.share, plain.sizes = 3, 0.5, (1, 2)
    plain.flag, plain.word, plain.none, plain.mixed, plain.empty, plain._own = True, "x", None, (1, 0.5), (), 4
    plain.inner = torch.nn.Identity()  # has no number
    assert checkpoint._dimensions(plain) == {"": {"number": 3, "share": 0.5, "sizes": (1, 2)}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(classes=[]), "has classes: []"),
        (lambda s: s.update(classes=["a", 1]), "has classes: ['a', 1]"),
        (lambda s: s.update(input="text"), "has input: 'text'"),
        (lambda s: s.update(parents=[]), "has parents: []"),
        (lambda s: s.update(val_accuracy="good"), "has val_accuracy: 'good'"),
        (lambda s: s.update(pruned=[1]), "has pruned: [1]"),
        (lambda s: s.update(network=[]), "network is no object"),
        (lambda s: s["network"].update(name=""), "network has name: ''"),
        (lambda s: s["network"].pop("name"), "network lacks name"),
        (lambda s: s["network"].update(channels=2), "network has channels: 2"),
        (lambda s: s["network"].update(width=0), "network has width: 0"),
        (lambda s: s["network"].update(width=10_001), "network has width: 10001"),
        (lambda s: s["network"].update(stem_stride=True), "network has stem_stride: True"),
        (lambda s: s["network"].update(classes=4), "network has classes: 4"),
        (lambda s: s.update(preprocessing=[]), "preprocessing is no object"),
        (lambda s: s["preprocessing"].update(image_size=1025), "preprocessing has image_size: 1025"),
        (lambda s: s["preprocessing"].update(mean=[0.5, 0.5]), "preprocessing has mean: [0.5, 0.5]"),
        (lambda s: s["preprocessing"].update(mean=[]), "preprocessing has mean: []"),
        (lambda s: s["preprocessing"].update(std=["x"]), "preprocessing has std: ['x']"),
        (lambda s: s["preprocessing"].update(std=0.5), "preprocessing has std: 0.5"),
        (lambda s: s["preprocessing"].pop("std"), "preprocessing lacks std"),
        (lambda s: s.update(pruned={"attributes": [], "shapes": {}}), "pruned has attributes: []"),
        (lambda s: s.update(pruned={"attributes": {"0": 3}, "shapes": {}}), "pruned has attributes: {'0': 3}"),
        (lambda s: s.update(pruned={"attributes": {}, "shapes": []}), "pruned has shapes: []"),
        (lambda s: s.update(pruned={"attributes": {}}), "pruned lacks shapes"),
    ],
)
def test_a_description_that_no_stage_writes_is_refused_where_it_is_read(tmp_path, change, message):
    written = {**spec(TINY), "network": TINY.as_json()}
    change(written)
    (tmp_path / "model.json").write_text(json.dumps(written))
    with pytest.raises(DamagedError) as caught:
        checkpoint.read_spec(tmp_path)
    again = f"Make it again: dvc checkout --force {tmp_path}"
    assert str(caught.value) == f"{tmp_path / 'model.json'}: {message}. {again}"


def test_a_description_of_three_channels_and_of_before_pruning_is_read(tmp_path):
    written = spec(replace(TINY, channels=3, width=10_000, stem_stride=1)) | {"input": "pixels", "pruned": None}
    written["preprocessing"] |= {"mean": [0.5, 0, 1], "std": [1, 1, 1.0], "image_size": 1024}
    written["val_accuracy"] = 0.5
    (tmp_path / "model.json").write_text(json.dumps(written))
    assert checkpoint.read_spec(tmp_path) == written


def test_a_description_that_is_not_ours_is_told_from_one_that_is_damaged(tmp_path):
    (tmp_path / "model.json").write_text(json.dumps({"network": TINY.as_json()}))
    lacks = "model.json: lacks classes, preprocessing. It was not written by thinner"
    with pytest.raises(checkpoint.CheckpointError, match=lacks):
        checkpoint.read_spec(tmp_path)
    (tmp_path / "model.json").write_text("[1]")
    with pytest.raises(checkpoint.CheckpointError, match="lacks classes, network, preprocessing"):
        checkpoint.read_spec(tmp_path)
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(
        DamagedError, match=rf"model.json: not JSON \(.*\). Make it again: dvc checkout --force {tmp_path}$"
    ):
        checkpoint.read_spec(tmp_path)


def test_a_file_beside_the_description_is_checked_by_it(tmp_path):
    sha = checkpoint.save(tmp_path, models.create(TINY), spec(TINY))
    assert checkpoint.check_file(tmp_path / "model.safetensors") == sha
    (tmp_path / "other.onnx").write_bytes(b"of no one")
    assert checkpoint.check_file(tmp_path / "other.onnx") == whole.file_sha256(tmp_path / "other.onnx")
    again = checkpoint.write_spec(tmp_path, checkpoint.read_spec(tmp_path), "model.safetensors", "other.onnx")
    assert again == sha
    (tmp_path / "other.onnx").write_bytes(b"changed")
    digest, known = whole.file_sha256(tmp_path / "other.onnx"), json.loads((tmp_path / "model.json").read_text())
    with pytest.raises(DamagedError) as caught:
        checkpoint.check_file(tmp_path / "other.onnx")
    assert str(caught.value) == (
        f"{tmp_path / 'other.onnx'}: is not what was written (SHA-256 {digest[:12]}, model.json beside it says "
        f"{known['integrity']['files']['other.onnx'][:12]}). Make it again: dvc checkout --force {tmp_path}"
    )
    with pytest.raises(checkpoint.CheckpointError, match=r"none.pt2: no such file. Make it again: dvc repro"):
        checkpoint.check_file(tmp_path / "none.pt2")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(checkpoint.CheckpointError, match=r"model.safetensors: no such file"):
        checkpoint.load(tmp_path)


def test_what_was_saved_is_loaded_in_eval_mode_with_its_digest(tmp_path):
    model = models.create(TINY).train()
    sha = checkpoint.save(tmp_path / "new/folder", model, spec(TINY))
    loaded = checkpoint.load(str(tmp_path / "new/folder"))
    assert loaded.sha256 == sha and not loaded.model.training
    assert loaded.spec == {**spec(TINY), "pruned": None}
    for name, tensor in model.state_dict().items():
        assert loaded.model.state_dict()[name].equal(tensor), name


def test_tensors_of_another_kind_or_none_are_named_with_what_was_expected(tmp_path):
    unsealed(tmp_path)
    weights = tmp_path / "model.safetensors"
    tensors = load_file(weights)
    tensors["extra"] = torch.zeros(2, 3, dtype=torch.float16)
    tensors["fc.bias"] = torch.zeros(5, dtype=torch.int64)
    save_file(tensors, weights)
    with pytest.raises(checkpoint.CheckpointError) as caught:
        checkpoint.load(tmp_path)
    said = (
        "2 tensors do not fit the spec; first extra: file float16 [2, 3], spec none. Take the two files of one folder"
    )
    assert str(caught.value) == f"{weights}: {said}"
    del tensors["extra"]
    save_file(tensors, weights)
    with pytest.raises(
        checkpoint.CheckpointError, match=r"1 tensors .* first fc.bias: file int64 \[5\], spec float32 \[5\]"
    ):
        checkpoint.load(tmp_path)


def test_a_file_that_is_no_safetensors_and_a_network_that_cannot_be_built_are_named(tmp_path):
    unsealed(tmp_path)
    whole_file = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole_file[:1000])
    again = rf"Make it again: dvc checkout --force {tmp_path}$"
    with pytest.raises(DamagedError, match=rf"model.safetensors: damaged \(.+\). {again}"):
        checkpoint.load(tmp_path)
    half = {"attributes": {}, "shapes": {"fc.bias": [2.5]}}
    unsealed(tmp_path, lambda s: s.update(pruned=half))
    with pytest.raises(DamagedError, match=rf"model.json: no network can be built as it says \(\w+: .+\). {again}"):
        checkpoint.load(tmp_path)


def test_buffers_outside_of_the_state_are_hidden_and_saved_where_they_were_resized():
    model = blocks()
    assert checkpoint._hidden(model).keys() == {"0.table"}
    assert checkpoint._hidden(model, {"1.running_mean"}) == {}
    assert checkpoint._hidden(model, {"0.table"}).keys() == {"0.table"}
    state = model.state_dict().keys()
    assert checkpoint.saved_tensors(model, {}).keys() == state
    assert checkpoint.saved_tensors(model, {"pruned": None}).keys() == state
    resized = {"pruned": {"attributes": {}, "shapes": {"0.table": [4], "0.weight": [3, 8]}}}
    assert checkpoint.saved_tensors(model, resized).keys() == state | {"0.table"}
