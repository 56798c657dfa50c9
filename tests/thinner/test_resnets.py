"""The families of papers on small images: sizes as published, option A's shortcuts, and cuts of all of them."""

import copy
import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from thinner.compress import pruning
from thinner.measure import verify
from thinner.measure.profiling import count_macs, count_params
from thinner.networks import checkpoint, export, models, resnets
from thinner.networks.spec import NetworkSpec


def network(name, classes=10, channels=3):
    return NetworkSpec(name, classes, channels)


# ------------------------------------------------------------------------------------------- sizes, as published


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        # He et al. 2015, table 6
        ("resnet20a", "0.27"), ("resnet32a", "0.46"), ("resnet44a", "0.66"), ("resnet56a", "0.85"), ("resnet110a", "1.7"),
        # Zagoruyko & Komodakis 2016, table 4
        ("wrn-40-1", "0.6"), ("wrn-40-2", "2.2"), ("wrn-40-4", "8.9"), ("wrn-40-8", "35.7"), ("wrn-28-10", "36.5"),
        ("wrn-22-8", "17.2"), ("wrn-16-8", "11.0"), ("wrn-16-10", "17.1"),
    ],
)  # fmt: skip
def test_the_papers_name_as_many_millions_of_parameters(name, millions):
    digits = len(millions.partition(".")[2])
    with torch.device("meta"):
        counted = count_params(models.create(network(name)))
    # the last digit printed: rounded by some, cut off by others
    assert abs(counted / 1e6 - float(millions)) < 10**-digits, counted


@pytest.mark.parametrize(
    ("name", "params", "macs"),
    [
        # stem; 2n convolutions of 16; one of 16 to 32 and 2n-1 of 32; one of 32 to 64 and 2n-1 of 64; norms; classifier
        ("resnet56a",
         3*16*9 + 18*16*16*9 + 16*32*9 + 17*32*32*9 + 32*64*9 + 17*64*64*9 + 2*(19*16 + 18*32 + 18*64) + 64*10 + 10,
         1024*(3*16*9 + 18*16*16*9) + 256*(16*32*9 + 17*32*32*9) + 64*(32*64*9 + 17*64*64*9) + 64*10),
        # two convolutions and a projection in each of three blocks
        ("resnet8x4",
         3*32*9 + 32*64*9 + 64*64*9 + 32*64 + 64*128*9 + 128*128*9 + 64*128 + 128*256*9 + 256*256*9 + 128*256
         + 2*(32 + 3*64 + 3*128 + 3*256) + 256*10 + 10,
         1024*(3*32*9 + 32*64*9 + 64*64*9 + 32*64) + 256*(64*128*9 + 128*128*9 + 64*128)
         + 64*(128*256*9 + 256*256*9 + 128*256) + 256*10),
        # two blocks a stage, projections without norms, a norm before each convolution and one at the end
        ("wrn-16-2",
         3*16*9 + 16*32*9 + 3*32*32*9 + 16*32 + 32*64*9 + 3*64*64*9 + 32*64 + 64*128*9 + 3*128*128*9 + 64*128
         + 2*(16 + 3*32 + 32 + 3*64 + 64 + 3*128 + 128) + 128*10 + 10,
         1024*(3*16*9 + 16*32*9 + 3*32*32*9 + 16*32) + 256*(32*64*9 + 3*64*64*9 + 32*64)
         + 64*(64*128*9 + 3*128*128*9 + 64*128) + 128*10),
    ],
)  # fmt: skip
def test_parameters_and_macs_are_those_worked_by_hand(name, params, macs):
    with torch.device("meta"):
        model = models.create(network(name))
    assert (count_params(model), count_macs(model, (3, 32, 32))) == (params, macs)


def test_resnet56_of_the_pruning_papers_has_125_million_macs():
    # HRank (Lin et al. 2020, https://arxiv.org/abs/2002.10179, table 2): 125.49 M, 0.85 M parameters
    with torch.device("meta"):
        model = models.create(network("resnet56a"))
    assert f"{count_macs(model, (3, 32, 32)) / 1e6:.2f}" == "125.49"


def test_resnetN_starts_from_the_weights_it_always_started_from():
    # recorded from our own code before the families were added: shows "unchanged" and no more
    torch.manual_seed(0)
    model = models.create(replace(network("resnet8", channels=1), width=8, stem_stride=2))
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.numpy().tobytes())
    assert digest.hexdigest() == "2bd5c41ef9c9238bd64a8be30474ce01a11cfbdc289e2d34cc3869a0ae670fc7"


# --------------------------------------------------------------------------------------------- what they compute


def test_option_a_keeps_every_second_pixel_and_adds_channels_of_zeros():
    block = resnets.BasicBlock(3, 5, 2, "A").eval()
    x = torch.randn(2, 3, 7, 6)
    way = block.shortcut(block.subsample(x))
    assert torch.equal(way[:, :3], x[:, :, ::2, ::2])
    assert way.shape == (2, 5, 4, 3)
    assert not way[:, 3:].any()
    assert not list(block.shortcut.parameters())
    assert isinstance(resnets.BasicBlock(5, 5, 1, "A").shortcut, nn.Identity)


def test_a_wide_block_has_its_norms_first_and_projects_what_the_first_one_gives():
    torch.manual_seed(0)
    block = resnets.PreactivationBlock(4, 6, 2).eval()
    x = torch.randn(2, 4, 8, 8)
    ready = torch.relu(block.bn1(x))
    way = nn.functional.conv2d(ready, block.shortcut.weight, stride=2)
    inner = torch.relu(block.bn2(nn.functional.conv2d(ready, block.conv1.weight, stride=2, padding=1)))
    torch.testing.assert_close(block(x), way + nn.functional.conv2d(inner, block.conv2.weight, padding=1))
    same = resnets.PreactivationBlock(4, 4, 1).eval()
    nn.init.zeros_(same.conv2.weight)
    assert torch.equal(same(x), x), "what is not projected passes by the norm"


# ---------------------------------------------------------------------------------------------------------- cuts


def test_option_a_without_its_dead_channels_is_the_same_function():
    torch.manual_seed(0)
    model = models.create(network("resnet8a")).eval()
    # channel 1 dies in the first stage and lives on in the second, where its shortcut then brings zeros
    dead = [[1, 4, 7, 9], [4, 7, 9, 20, 21, 25, 30, 31], [4, 7, 9, *range(20, 25), *range(50, 58)]]
    with torch.no_grad():
        for number, stage in enumerate(model.stages):
            gone, block = dead[number], stage[0]
            for conv, norm in ((model.stem[0], model.stem[1]), (block.conv2, block.bn2))[number > 0 :]:
                conv.weight[gone] = norm.weight[gone] = norm.bias[gone] = 0
            after = model.stages[number + 1][0].conv1 if number < 2 else model.fc
            after.weight[:, gone] = 0
            if number == 0:
                block.conv1.weight[:, gone] = 0
    smaller = pruning.cut_share(model, torch.zeros(1, 3, 32, 32), 0.25, criterion="l2", keep=["conv1"])
    assert [stage[0].conv2.out_channels for stage in smaller.stages] == [12, 24, 48]
    # by hand: of 12 channels that are left, number 1 to 12, each to its own place; channel 1 has none left
    left = [i for i in range(16) if i not in dead[0]]
    expected = [left.index(i) + 1 if i in left else 0 for i in range(32) if i not in dead[1]]
    assert smaller.stages[1][0].shortcut.source.tolist() == expected
    x = torch.randn(4, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(smaller(x), model(x))


def test_option_a_can_be_cut_again_and_again_after_it_was_loaded(tmp_path):
    torch.manual_seed(0)
    spec = {
        "network": network("resnet8a").as_json(),
        "classes": list("abcdefghij"),
        "preprocessing": {"image_size": 32, "mean": [0.5], "std": [0.5]},
    }
    model = models.create(network("resnet8a")).eval()
    example = torch.zeros(1, 3, 32, 32)
    for share in (0.8, 0.6, 0.4):
        model, _ = pruning.cut(model, example, macs=int(share * count_macs(model, (3, 32, 32))), criterion="l1")
        checkpoint.save(tmp_path, model, spec)
        loaded = checkpoint.load(tmp_path).model
        assert loaded.stages[2][0].shortcut.channels_in == model.stages[1][0].conv2.out_channels
        x = torch.randn(2, 3, 32, 32)
        with torch.inference_mode():
            assert torch.equal(loaded(x), model(x))
        model = loaded


@pytest.mark.integration  # each starts a process that imports torch
@pytest.mark.parametrize(("name", "channels"), [("resnet56a", 3), ("resnet8x4", 1), ("wrn-16-2", 3)])
def test_cut_to_47_percent_saved_loaded_and_exported_the_logits_are_equal(tmp_path, name, channels):
    torch.manual_seed(0)
    described = network(name, channels=channels)
    model = models.create(described).eval()
    shape = (channels, 32, 32)
    allowed = int(0.47 * count_macs(model, shape))
    smaller, done = pruning.cut(model, torch.zeros(1, *shape), macs=allowed, criterion="l2")
    assert 0.98 * allowed < done.macs_after <= allowed
    smaller.train()
    smaller(torch.randn(8, *shape)).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in smaller.parameters())
    smaller.eval()
    spec = {"stage": "prune", "network": described.as_json(), "classes": list("abcdefghij"), "parents": {}, "data_sha256": "0",
            "preprocessing": {"image_size": 32, "channels": channels, "mean": [0.5] * channels, "std": [0.5] * channels}}  # fmt: skip
    checkpoint.save(tmp_path, smaller, spec)
    x = torch.randn(4, *shape)
    verify.verify_saved(tmp_path, smaller, x, at_most={"macs": allowed})
    export.export_onnx(smaller, tmp_path / "model.onnx", shape, {}, 18)
    export.check_parity(copy.deepcopy(smaller), tmp_path / "model.onnx", np.asarray(x))


# --------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet9", r"unknown 'resnet9'\. Depth is 6n\+2; the nearest is resnet8\. For the ImageNet network say"),
        ("resnet55a", r"unknown 'resnet55a'\. Depth is 6n\+2; the nearest is resnet56a$"),
        ("resnet10x4", r"unknown 'resnet10x4'\. Depth is 6n\+2; the nearest is resnet8x4$"),
        ("wrn-38-2", r"unknown 'wrn-38-2'\. Depth is 6n\+4 and the factor at least 1; the nearest is wrn-40-2$"),
        ("wrn-16-0", r"the nearest is wrn-16-1$"),
        ("wrn_40_2", r"unknown 'wrn_40_2'\. Choose for example one of: .*wrn-40-2"),
        ("resnet56b", r"unknown 'resnet56b'\. Choose for example one of: .*resnet56"),
    ],
)
def test_a_name_that_is_not_of_the_family_is_answered_with_the_nearest_one(name, message):
    with pytest.raises(models.NetworkError, match=message):
        models.create(network(name))


def test_the_names_that_are_listed_are_right_and_the_smallest_of_each_kind_runs():
    assert [resnets.mistake(name) for name in resnets.names()] == [None] * len(resnets.names())
    for name in ("resnet8", "resnet8a", "resnet8x4", "wrn-10-1"):
        assert name in resnets.names()
        made = replace(network(name), width=16, stem_stride=1) if resnets.has_width(name) else network(name)
        with torch.device("meta"):
            assert models.create(made)(torch.empty(1, 3, 32, 32, device="meta")).shape == (1, 10)
