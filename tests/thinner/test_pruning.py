"""Cuts meet their target, keep what must be kept, and say when they cannot."""

import pytest
import torch
from torch import nn

from thinner import models, pruning
from thinner.profiling import count_macs, count_params

NETWORK = {"name": "resnet8", "width": 16, "stem_stride": 2, "classes": 10, "channels": 1}
EXAMPLE = torch.zeros(1, 1, 32, 32)


def network():
    torch.manual_seed(0)
    return models.create(NETWORK)


def macs(model):
    return count_macs(model, (1, 32, 32))


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("round_to", [1, 8])
@pytest.mark.parametrize("share", [0.8, 0.5, 0.3])
def test_the_target_is_met_and_not_missed_by_much(scope, round_to, share):
    model = network()
    smaller, made = pruning.cut(
        model, EXAMPLE, macs=int(share * macs(model)), criterion="magnitude", scope=scope, round_to=round_to
    )
    assert macs(smaller) == made.macs_after <= share * made.macs_before
    assert made.params_after == count_params(smaller) < made.params_before
    if round_to == 1:
        assert made.macs_after > (share - 0.07) * made.macs_before
    assert smaller(torch.zeros(2, 1, 32, 32)).shape == (2, 10)


def test_the_source_is_left_as_it_was():
    model = network()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    pruning.cut(model, EXAMPLE, macs=macs(model) // 2, criterion="magnitude")
    assert all(t.equal(before[n]) for n, t in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_widths_are_multiples():
    model = network()
    smaller, _ = pruning.cut(model, EXAMPLE, macs=macs(model) // 2, criterion="magnitude", round_to=8)
    assert all(m.out_channels % 8 == 0 for m in smaller.modules() if isinstance(m, nn.Conv2d))


def test_kept_layers_keep_their_outputs():
    model = network()
    smaller, _ = pruning.cut(
        model, EXAMPLE, macs=int(0.7 * macs(model)), criterion="magnitude", keep=[r"^stages\.2\.0\.conv1$"]
    )
    assert smaller.get_submodule("stages.2.0.conv1").out_channels == 64


def test_the_channels_of_least_magnitude_go_by_hand():
    # one hidden layer; channel k has weight k+1, so half of the MACs means the channels 0 and 1 go
    model = nn.Sequential(nn.Conv2d(1, 4, 1, bias=False), nn.Flatten(), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.arange(1.0, 5.0).view(4, 1, 1, 1))
        model[2].weight.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]]))
    smaller, _ = pruning.cut(model, torch.zeros(1, 1, 1, 1), macs=6, criterion="magnitude")
    assert smaller[0].weight.flatten().tolist() == [3.0, 4.0]
    assert smaller[2].weight.tolist() == [[3.0, 4.0], [3.0, 4.0]]


def test_an_out_of_reach_target_names_the_reach():
    model = network()
    with pytest.raises(pruning.PruningError, match=r"smallest that can be reached with round_to 8 is .* \(\d+%\)"):
        pruning.cut(model, EXAMPLE, macs=1000, criterion="magnitude", round_to=8)


def test_a_cut_that_removes_nothing_is_an_error():
    model = network()
    with pytest.raises(pruning.PruningError, match="nothing to prune"):
        pruning.cut(model, EXAMPLE, macs=macs(model), criterion="magnitude")


def test_an_unknown_criterion_lists_the_known():
    with pytest.raises(pruning.PruningError, match="unknown 'L9'. Choose one of: magnitude"):
        pruning.cut(network(), EXAMPLE, macs=1_000_000, criterion="L9")


def test_the_schedule_falls_and_ends_at_the_target():
    targets = [pruning.target_macs(1_000_000, 0.3, number) for number in range(6)]
    assert targets[0] == 1_000_000
    assert all(later < earlier for earlier, later in zip(targets, targets[1:], strict=False))
    assert targets[5] == int(1_000_000 * 0.7**5)


def test_statistics_are_the_plain_mean_over_the_batches():
    norm = nn.BatchNorm2d(1)
    model = nn.Sequential(norm)
    data = torch.randn(4, 8, 1, 5, 5, generator=torch.Generator().manual_seed(0)) * 3 + 2
    pruning.reestimate_statistics(model, lambda number: data[number], 4)
    assert torch.allclose(norm.running_mean, data.mean(dim=(1, 2, 3, 4)).mean().view(1), atol=1e-6)
    assert torch.allclose(norm.running_var, data.flatten(1).var(dim=1).mean().view(1), rtol=1e-5)
    assert not model.training
    assert norm.momentum == 0.1


@pytest.mark.parametrize(
    ("accuracies", "chosen"),
    [([0.90, 0.90, 0.90], 3), ([0.90, 0.895, 0.88], 2), ([0.80, 0.82, 0.81], 2)],
)
def test_the_smallest_round_within_the_tolerance_is_chosen(accuracies, chosen):
    rounds = [{"round": n + 1, "macs": 100 - 10 * n, "accuracy_after": a} for n, a in enumerate(accuracies)]
    assert pruning.choose_round(rounds, source_accuracy=0.90, tolerance=0.01) == chosen
