"""Masked weights are those of least score, as many as asked, and they stay zero through training."""

import gzip

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from thinner.compress import masks
from thinner.compress.criteria import Examples
from thinner.compress.pruning import PruningError
from thinner.learn import training
from thinner.measure.profiling import count_macs, count_params
from thinner.networks import models
from thinner.networks.spec import NetworkSpec


def network():
    torch.manual_seed(0)
    return models.create(NetworkSpec("resnet8", 10, 1, width=8, stem_stride=2))


def by_hand():
    """One hidden layer of 8 weights, then the classifier of 2, no biases: 10 parameters."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, -5.0, 3.0, -2.0], [0.5, 8.0, -7.0, 6.0]]))
        model[2].weight.fill_(0.1)  # smaller than all, and kept
    return model


def test_the_smallest_weights_go_by_hand():
    model = by_hand()
    found = masks.mask_weights(model, nonzero=6, criterion="l1")  # 4 of the hidden layer and the classifier's 2
    assert list(found) == ["1"]
    assert found["1"].tolist() == [[False, True, False, False], [False, True, True, True]]
    masks.apply(model, found)
    assert model[1].weight.tolist() == [[0.0, -5.0, 0.0, 0.0], [0.0, 8.0, -7.0, 6.0]]
    assert count_params(model, nonzero=True) == 6
    assert not torch.signbit(model[1].weight[0, 3])  # no minus zero


def test_masks_that_leave_all_change_no_bit():
    model = network()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    masks.apply(model, {"stem.0": torch.ones_like(model.stem[0].weight, dtype=torch.bool)})
    assert all(t.equal(before[name]) for name, t in model.state_dict().items())


def test_two_of_four_by_hand():
    found = masks.mask_pattern(by_hand(), 2, 4, criterion="l1")
    assert found["1"].tolist() == [[False, True, True, False], [False, True, True, False]]


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("criterion", ["random", "l1", "l2", "lamp", "hessian", "taylor"])
def test_as_many_are_left_as_asked(scope, criterion):
    model = network()
    images = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    examples = Examples([(images, torch.arange(3))], nn.functional.cross_entropy)
    before, macs = count_params(model, nonzero=True), count_macs(model, (1, 16, 16))
    asked = before // 2
    masks.apply(model, masks.mask_weights(model, nonzero=asked, criterion=criterion, scope=scope, examples=examples))
    layers = 9
    assert asked - layers <= count_params(model, nonzero=True) <= asked
    assert count_params(model) > before - 100  # nothing went away
    assert count_macs(model, (1, 16, 16)) == macs


def test_every_layer_keeps_some():
    model = network()
    with torch.no_grad():
        model.stages[1][0].conv1.weight.mul_(1e-6)
    _, fewest = masks.reachable(model)
    masks.apply(model, masks.mask_weights(model, nonzero=fewest, criterion="l1"))
    assert count_params(model, nonzero=True) == fewest
    assert all(m.weight.count_nonzero() > 0 for m in model.modules() if isinstance(m, nn.Conv2d))


def test_pattern_holds_in_every_row_of_inputs():
    model = network()
    found = masks.mask_pattern(model, 2, 4, criterion="l2")
    masks.apply(model, found)
    assert "stem.0" not in found  # one input channel
    for name, module in model.named_modules():
        if name in found:
            rows = module.weight.detach().movedim(1, -1).reshape(-1, 4)
            assert (rows.count_nonzero(1) == 2).all(), name


def test_pruned_stays_pruned_through_training_and_without_the_masks_would_not():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(32, 1, 16, 16, generator=generator), torch.arange(32) % 10

    def train(held):
        model = network().train()
        found = masks.mask_weights(model, nonzero=count_params(model) // 2, criterion="l1")
        masks.apply(model, found)
        optimizer = training.make_optimizer(model, "adamw", lr=0.01, weight_decay=0.05)
        before = model.stem[0].weight.detach().clone()

        def steps():
            for _ in range(3):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()

        if held:
            with masks.held(model, found):
                steps()
        else:
            steps()
        assert not model.stem[0].weight.equal(before)  # it learns
        return sum(int((model.get_submodule(n).weight[~mask] != 0).sum()) for n, mask in found.items())

    assert train(held=True) == 0
    assert train(held=False) > 1000


def test_later_rounds_keep_among_what_earlier_ones_kept():
    model = network()
    first = masks.mask_weights(model, nonzero=int(0.6 * count_params(model)), criterion="random", seed=1)
    masks.apply(model, first)
    second = masks.mask_weights(model, nonzero=int(0.4 * count_params(model)), criterion="random", seed=2)
    assert all((second[name] <= first[name]).all() for name in first)
    assert sum(int(m.sum()) for m in second.values()) < sum(int(m.sum()) for m in first.values())


def test_kept_layers_have_no_mask():
    found = masks.mask_weights(network(), nonzero=16_000, criterion="l1", keep=[r"^stages\.2"])
    assert not any(name.startswith("stages.2") for name in found)
    assert "fc" not in found


def test_compressed_size_shows_the_zeros_and_is_gzips(tmp_path):
    model = network()
    sizes = []
    for share in (1.0, 0.3):
        if share < 1:
            masks.apply(model, masks.mask_weights(model, nonzero=int(share * count_params(model)), criterion="l1"))
        save_file(model.state_dict(), tmp_path / "model.safetensors")
        sizes.append(masks.compressed_bytes(tmp_path / "model.safetensors"))
        raw = (tmp_path / "model.safetensors").read_bytes()
        assert sizes[-1] == pytest.approx(len(gzip.compress(raw)), rel=0.02)
    assert sizes[1] < 0.5 * sizes[0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: masks.mask_weights(m, nonzero=10**9, criterion="l1"), "nothing to prune: .* are not zero"),
        (
            lambda m: masks.mask_weights(m, nonzero=10, criterion="l1"),
            r"the fewest that can be left is [\d,]+ \(\d+%\)",
        ),
        (lambda m: masks.mask_weights(m, nonzero=9000, criterion="l1", scope="isomorphic"), "is for channels"),
        (lambda m: masks.mask_weights(m, nonzero=9000, criterion="fpgm"), "scores channels, not single weights"),
        (lambda m: masks.mask_pattern(m, 4, 4, criterion="l1"), "'4:4' keeps nothing or all"),
        (lambda m: masks.mask_pattern(m, 2, 7, criterion="l1"), "finds no layer whose inputs are a multiple of 7"),
    ],
)
def test_what_cannot_be_is_named(call, message):
    with pytest.raises(Exception, match=message) as caught:
        call(network())
    assert isinstance(caught.value, PruningError) or "prune.criterion" in str(caught.value)
