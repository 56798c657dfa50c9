"""Each criterion gives the numbers of its paper, worked by hand on a network of three layers."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch_pruning as tp
from torch import nn

from thinner.compress import criteria
from thinner.compress.criteria import (
    CRITERIA,
    Criterion,
    CriterionError,
    Examples,
    GroupImportance,
    lamp,
    per_channel,
    scale_penalty,
    score_channels,
    score_weights,
)
from thinner.networks import models
from thinner.networks.spec import NetworkSpec

# Layers "0", "2" and "5". What the tests below expect follows from these numbers, on paper:
#   image 1, label 1: a = (1, 2), behind the second layer (-1, 5) -> (0, 5), logits (0, 10)
#   image 2, label 0: a = (2, 4), behind the second layer (-2, 10) -> (0, 10), logits (0, 20)
# The loss is the label's own logit. Its gradients: of image 1 (6, 2), ((0, 0), (2, 4)), ((0, 0), (0, 5)); of image 2
# nothing but ((0, 10), (0, 0)) at the head, whose weight there is 0.
FIRST = [[1.0], [2.0]]
SECOND = [[1.0, -1.0], [3.0, 1.0]]
HEAD = [[1.0, 0.0], [0.0, 2.0]]
IMAGES = torch.tensor([1.0, 2.0]).view(2, 1, 1, 1)
LABELS = torch.tensor([1, 0])


def label_logit(logits, labels):
    return logits[0, labels[0]]


def no_scores(model, examples, seed):
    raise AssertionError("scores are given")


EXAMPLES = Examples([(IMAGES, LABELS)], label_logit)


def network():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(2, 2, 1, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2, 2, bias=False),
    )
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor(FIRST).view(2, 1, 1, 1))
        model[2].weight.copy_(torch.tensor(SECOND).view(2, 2, 1, 1))
        model[5].weight.copy_(torch.tensor(HEAD))
    return model


BY_HAND = {
    "l1": {("0", "out"): [1, 2], ("2", "in"): [4, 2], ("2", "out"): [2, 4], ("5", "in"): [1, 2]},
    "l2": {("0", "out"): [1, 4], ("2", "in"): [10, 2], ("2", "out"): [2, 10], ("5", "in"): [1, 4]},
    "taylor": {("0", "out"): [18, 8], ("2", "in"): [18, 8], ("2", "out"): [0, 50], ("5", "in"): [0, 50]},
    "hessian": {("0", "out"): [9, 4], ("2", "in"): [9, 4], ("2", "out"): [0, 13], ("5", "in"): [0, 25]},
    "apoz": {("0", "in"): [1], ("2", "in"): [1, 1], ("5", "in"): [0, 1]},
    "mean_activation": {("0", "in"): [1.5], ("2", "in"): [1.5, 3], ("5", "in"): [0, 7.5]},
}


@pytest.mark.parametrize("name", BY_HAND)
def test_scores_by_hand(name):
    _, scores = score_channels(name, network(), EXAMPLES)
    for key, expected in BY_HAND[name].items():
        assert scores[key].tolist() == pytest.approx(expected), key


# (group of the first layer's outputs, group of the second's)
JOINED = {
    "l1": ([2.5 / 2.25, 2 / 2.25], [1.5 / 2.25, 3 / 2.25]),
    "l2": ([5.5 / 4.25, 3 / 4.25], [1.5 / 4.25, 7 / 4.25]),
    "lamp": ([1, 3 / 8.5], [1.5 / 8.5, 1]),
    "taylor": ([18 / 13, 8 / 13], [0, 2]),
    "hessian": ([9 / 6.5, 4 / 6.5], [0, 2]),
    "apoz": ([1, 1], [0, 1]),
    "mean_activation": ([2 / 3, 4 / 3], [0, 2]),
}


def groups_of(model, example):
    graph = tp.DependencyGraph().build_dependency(model, example)
    return list(graph.get_all_groups(ignored_layers=[models.head_of(model)[1]]))


def item(module, side, channels, roots):
    """As Torch-Pruning names them: a layer, its ``channels`` that are cut, and those of the group's first that they
    belong to."""
    handler = SimpleNamespace(__name__=f"prune_{side}_channels")
    dep = SimpleNamespace(handler=handler, target=SimpleNamespace(module=module))
    return SimpleNamespace(dep=dep, idxs=channels, root_idxs=roots)


@pytest.mark.parametrize(
    ("join", "normalise", "expected"),
    [
        ("sum", "none", [(1 + 3 + 4) / 2, (2 + 5 + 6) / 2]),
        ("mean", "none", [(1 + 3.5) / 2, (2 + 5.5) / 2]),
        ("first", "none", [1, 2]),
        ("sum", "mean", [4 / 5.25, 6.5 / 5.25]),
        ("sum", "lamp", [4 / 10.5, 1]),
    ],
)
def test_a_group_of_layers_by_hand(join, normalise, expected):
    model = nn.ModuleDict({name: nn.Linear(4, 2) for name in "abcd"})
    scores = {("a", "out"): [1, 2], ("a", "in"): [50] * 4, ("b", "in"): [3, 4, 5, 6], ("c", "out"): [7, 8]}
    scores = {key: torch.tensor(values, dtype=torch.float32) for key, values in scores.items()}
    # one without scores; one whose channels are known, and two of which it is not known where they belong
    group = [
        item(model["d"], "out", [0, 1], [0, 1]), item(model["a"], "out", [0, 1], [0, 1]),
        item(model["c"], "out", [0, 1], None), item(model["c"], "out", [0, 1], [0, None]),
        item(model["b"], "in", [0, 1, 2, 3], [0, 0, 1, 1]),
    ]  # fmt: skip
    importance = GroupImportance(model, Criterion(no_scores, None, "", "", join=join, normalise=normalise), scores)
    found = importance(group)
    assert found.dtype == torch.float64 and found.tolist() == pytest.approx(expected, abs=1e-8)
    assert importance(group[:1]) is None
    assert importance([item(nn.Linear(2, 2), "out", [0, 1], [0, 1])]) is None  # not of this network
    turned = importance([item(model["a"], "out", [1, 0], [0, 1])]).tolist()
    assert turned[0] > turned[1]


def test_a_channel_of_queries_keys_and_values_is_all_of_its_rows():
    model = nn.ModuleDict({"qkv": nn.Linear(6, 6)})
    model["qkv"].rows = lambda channel: torch.tensor([channel, channel + 2, channel + 4])
    scores = {("qkv", side): torch.arange(1.0, 7.0) for side in ("out", "in")}
    importance = GroupImportance(model, Criterion(no_scores, None, "", "", normalise="none"), scores)
    found = importance([item(model["qkv"], "out", [0, 1], [0, 1])])
    assert found.tolist() == pytest.approx([1 + 3 + 5, 2 + 4 + 6], abs=1e-8)
    inputs = importance([item(model["qkv"], "in", [0, 1], [0, 1])])  # those are channels one by one
    assert inputs.tolist() == pytest.approx([1, 2], abs=1e-8)


def test_groups_of_no_importance_are_told_apart_by_when_they_were_asked_for():
    model = nn.ModuleDict({"a": nn.Linear(2, 2)})
    importance = GroupImportance(
        model, Criterion(no_scores, None, "", "", normalise="none"), {("a", "out"): torch.zeros(2)}
    )
    group = [item(model["a"], "out", [0, 1], [0, 1])]
    found = [importance(group).tolist() for _ in range(3)]
    assert found == [pytest.approx([n * 1e-18, 0.5e-9 + n * 1e-18], rel=1e-12) for n in (1, 2, 3)]


def test_equal_channels_go_first_things_first_and_layers_of_equal_ones_lose_the_same_share():
    model = nn.Sequential(*(nn.Conv2d(2, 2, 1, bias=False) for _ in range(3)), nn.Flatten(), nn.Linear(2, 2))
    for layer in (*model[:3], model[4]):
        nn.init.ones_(layer.weight)
    importance = GroupImportance(model, *score_channels("l1", model))
    found = [importance(group) for group in groups_of(model, torch.zeros(1, 2, 1, 1))]
    # 1 each, and far below that: the place in the layer, and far below that, which layer it is
    steps = [[(value - 1) * 1e9 for value in values.tolist()] for values in found]
    assert steps == [pytest.approx([0, 0.5], abs=1e-6)] * 3
    assert all(values.dtype == torch.float64 for values in found)


@pytest.mark.parametrize("name", JOINED)
def test_layers_that_are_cut_together_are_joined(name):
    model = network()
    importance = GroupImportance(model, *score_channels(name, model, EXAMPLES))
    joined = {str(group[0].dep.target.name).split(" ")[0]: importance(group) for group in groups_of(model, IMAGES[:1])}
    for layer, expected in zip(("0", "2"), JOINED[name], strict=True):
        assert joined[layer].tolist() == pytest.approx(expected, abs=1e-6)


def test_fpgm_is_the_distance_to_all_other_filters_by_hand():
    model = nn.Sequential(nn.Conv2d(2, 3, 1, bias=False), nn.Flatten(), nn.Linear(3, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]]).view(3, 2, 1, 1))
        model[2].weight.copy_(torch.tensor([[0.0, 1.0, 3.0], [0.0, 1.0, 7.0]]))
    _, scores = score_channels("fpgm", model)
    assert scores["0", "out"].tolist() == [15.0, 10.0, 15.0]
    # the head: rows (0, 1, 3) and (0, 1, 7), 4 apart
    assert scores["2", "out"].tolist() == [4.0, 4.0]


@pytest.mark.parametrize(
    ("groups", "weight", "expected"),
    [
        # inputs x outputs of a group: output filters are the columns (0, 0), (3, 4), (6, 8)
        (1, [[0.0, 3.0, 6.0], [0.0, 4.0, 8.0]], [15.0, 10.0, 15.0]),
        # one input for each group of 2 outputs: the filters are 0, 1 and 3, 7
        (2, [[0.0, 1.0], [3.0, 7.0]], [0 + 1 + 3 + 7, 1 + 0 + 2 + 6, 3 + 2 + 0 + 4, 7 + 6 + 4 + 0]),
    ],
)
def test_fpgm_of_a_transposed_convolution_by_hand(groups, weight, expected):
    # behind a normalisation, which has no filters
    model = nn.Sequential(nn.BatchNorm2d(2), nn.ConvTranspose2d(2, len(expected), 1, groups=groups, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor(weight)[..., None, None])
    assert {key: value.tolist() for key, value in score_channels("fpgm", model)[1].items()} == {("1", "out"): expected}


def test_filters_that_are_equal_have_no_distance():
    # 30 of them: from 26 on torch.cdist would take a matrix product, which rounds
    model = nn.Linear(7, 30)
    with torch.no_grad():
        model.weight.copy_((torch.arange(1.0, 8) / 3).expand(30, 7))
    assert not score_channels("fpgm", model)[1]["", "out"].any()


def test_channel_scores_are_sums_of_weight_scores():
    # by a call from here: the table's rows are made when the module is imported
    seen = []

    def weights(model, examples, seed):
        seen.append((model, examples, seed))
        return {"2": torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(2, 2, 1, 1)}

    model = network()
    found = criteria._summed(weights)(model, EXAMPLES, 7)
    assert seen == [(model, EXAMPLES, 7)]
    assert {key: value.tolist() for key, value in found.items()} == {("2", "out"): [3, 7], ("2", "in"): [4, 6]}
    transposed = nn.Sequential(nn.ConvTranspose2d(2, 2, 1))
    twice = criteria._summed(lambda model, examples, seed: {"0": torch.tensor([[1.0, 2.0], [3.0, 4.0]])})
    assert {key: value.tolist() for key, value in twice(transposed, None, 0).items()} == {
        ("0", "in"): [3, 7],
        ("0", "out"): [4, 6],
    }


def test_activations_are_means_over_batches_images_and_places_of_what_arrives_by_hand():
    # by a call from here: the table's rows are made when the module is imported
    class Tokens(nn.Module):
        """A normalisation, a convolution, and a linear layer whose channels come last."""

        def __init__(self):
            super().__init__()
            self.norm, self.conv, self.head = nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1, bias=False), nn.Linear(2, 2)
            nn.init.eye_(self.conv.weight.data.view(2, 2))

        def forward(self, x):
            return self.head(self.conv(self.norm(x)).relu().flatten(2).movedim(1, 2)).mean(1)

    model = Tokens().train()
    model.norm.eps = 0.0
    model.conv.eval()
    first = torch.tensor([[[[1.0, -3.0]], [[0.0, 2.0]]], [[[5.0, 0.0]], [[-4.0, -4.0]]]])  # 2 images, 2 channels, 1 x 2
    second = torch.tensor([[[[3.0, 0.0]], [[0.0, 8.0]]]])
    examples = Examples([(first, torch.tensor([0, 0])), (second, torch.tensor([0]))], label_logit)
    found = criteria._activations(torch.abs)(model, examples, 0)
    assert {key: value.tolist() for key, value in found.items()} == {
        ("conv", "in"): pytest.approx([(1 + 3 + 5 + 0 + 3 + 0) / 6, (0 + 2 + 4 + 4 + 0 + 8) / 6]),
        ("head", "in"): pytest.approx([(1 + 0 + 5 + 0 + 3 + 0) / 6, (0 + 2 + 0 + 0 + 0 + 8) / 6]),
    }
    assert all(value.dtype == torch.float64 and not value.requires_grad for value in found.values())
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert not any(module._forward_pre_hooks for module in model.modules())
    with pytest.raises(CriterionError, match=r"looks at images\. Give examples=Examples\(batches, loss\)"):
        criteria._activations(torch.abs)(model, None, 0)


@pytest.mark.parametrize("name", ["taylor", "hessian"])
def test_a_layer_that_the_network_does_not_use_has_no_score(name):
    model = network()
    model.add_module("spare", nn.Linear(2, 2))
    model.forward = model[:6].forward
    used = {("0", "out"), ("0", "in"), ("2", "out"), ("2", "in"), ("5", "out"), ("5", "in")}
    assert score_channels(name, model, EXAMPLES)[1].keys() == used
    assert score_weights(name, model, EXAMPLES).keys() == {"0", "2", "5"}


def test_bn_scale_is_the_size_of_the_scale_and_its_penalty_their_sum():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([-0.5, 0.25]))
    _, scores = score_channels("bn_scale", model)
    assert {key: value.tolist() for key, value in scores.items()} == {("1", "out"): [0.5, 0.25]}
    scale_penalty(model).backward()
    assert scale_penalty(model).item() == 0.75
    assert model[1].weight.grad.tolist() == [-1.0, 1.0]
    with pytest.raises(CriterionError, match="batch norms, and the network has none"):
        score_channels("bn_scale", network())


def test_lamp_by_hand():
    # 1 / (1 + 4 + 9), 4 / (4 + 9), 9 / 9
    assert lamp(torch.tensor([4.0, 9.0, 1.0])).tolist() == pytest.approx([4 / 13, 1.0, 1 / 14])
    assert lamp(torch.tensor([0.04, 0.09, 0.01])).tolist() == pytest.approx([4 / 13, 1.0, 1 / 14])
    assert lamp(torch.zeros(3)).tolist() == [0.0, 0.0, 0.0]
    scores = score_weights("lamp", network())
    assert scores["0"].flatten().tolist() == pytest.approx([1 / 5, 1.0])


def test_weight_scores_by_hand():
    model = network()
    assert score_weights("l1", model)["2"].flatten().tolist() == [1, 1, 3, 1]
    assert score_weights("l2", model)["2"].flatten().tolist() == [1, 1, 9, 1]
    assert score_weights("taylor", model, EXAMPLES)["2"].flatten().tolist() == [0, 0, 18, 8]
    assert score_weights("hessian", model, EXAMPLES)["2"].flatten().tolist() == [0, 0, 9, 4]
    assert score_weights("hessian", model, EXAMPLES)["5"].flatten().tolist() == [0, 0, 0, 25]


@pytest.mark.parametrize("name", [name for name, row in CRITERIA.items() if row.weights is None])
def test_a_criterion_of_channels_says_that_it_knows_no_weights(name):
    with pytest.raises(
        CriterionError, match=f"'{name}' scores channels, not single weights. Choose one of: random, l1"
    ):
        score_weights(name, network(), EXAMPLES)


def trained_like(seed=0):
    torch.manual_seed(seed)
    model = models.create(NetworkSpec("resnet8", 3, 1, width=4, stem_stride=2))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.2, 1.0)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.3)
    return model


@pytest.mark.parametrize("name", [name for name, row in CRITERIA.items() if row.needs_examples])
def test_two_batches_of_4_score_like_one_of_8(name):
    model = trained_like().train()
    generator = torch.Generator().manual_seed(1)
    images, labels = torch.randn(8, 1, 16, 16, generator=generator), torch.arange(8) % 3
    cross_entropy = nn.functional.cross_entropy
    whole = score_channels(name, model, Examples([(images, labels)], cross_entropy))[1]
    halves = [(images[:4], labels[:4]), (images[4:], labels[4:])]
    parts = score_channels(name, model, Examples(halves, cross_entropy))[1]
    last = score_channels(name, model, Examples(halves[1:], cross_entropy))[1]
    assert whole.keys() == parts.keys()
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, rtol=1e-4, atol=1e-9)
    assert any(not torch.allclose(last[key], value, rtol=1e-2) for key, value in whole.items())
    # and looking changes nothing
    assert model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_hessian_is_the_mean_of_squared_gradients_of_single_images():
    # the oracle takes the gradients from torch.func, all images at once
    model = trained_like().eval()
    generator = torch.Generator().manual_seed(1)
    images, labels = torch.randn(5, 1, 16, 16, generator=generator), torch.arange(5) % 3
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def loss(parameters, image, label):
        logits = torch.func.functional_call(model, (parameters, buffers), image[None])
        return nn.functional.cross_entropy(logits, label[None])

    gradients = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(parameters, images, labels)
    scores = score_weights("hessian", model, Examples([(images, labels)], nn.functional.cross_entropy))
    for name, value in scores.items():
        g, w = gradients[f"{name}.weight"].double(), parameters[f"{name}.weight"].double()
        torch.testing.assert_close(value, 0.5 * g.square().mean(0) * w.square(), rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("l1", tp.importance.GroupMagnitudeImportance(p=1)),
        ("l2", tp.importance.GroupMagnitudeImportance(p=2)),
        ("lamp", tp.importance.LAMPImportance(p=2)),
        ("bn_scale", tp.importance.BNScaleImportance(normalizer=None)),  # the paper's scales are not normalised
    ],
)
def test_magnitudes_are_those_of_torch_pruning(name, theirs):
    model = trained_like()
    importance = GroupImportance(model, *score_channels(name, model))
    groups = groups_of(model, torch.zeros(1, 1, 16, 16))
    assert len(groups) == 6
    for group in groups:
        torch.testing.assert_close(importance(group), theirs(group).double(), rtol=1e-5, atol=1e-6)


def test_torch_prunings_hessian_keeps_the_last_image_only():
    # why ours is used; when this fails, theirs is mended
    model = network()
    theirs = tp.importance.GroupHessianImportance()
    for image, label in ((IMAGES[:1], LABELS[:1]), (IMAGES[1:], LABELS[1:])):
        model.zero_grad()
        label_logit(model(image), label).backward()
        theirs.accumulate_grad(model)
    assert theirs._accu_grad[model[0].weight].flatten().tolist() == [
        0.0,
        0.0,
    ]  # of image 2 alone; 36 and 4 with image 1
    assert theirs._counter[model[0].weight] == 1


def test_torch_prunings_fpgm_measures_between_squares():
    # why ours is used; when this fails, theirs is mended
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.ReLU(), nn.Conv2d(2, 1, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, 3.0]).view(2, 1, 1, 1))
    (group,) = groups_of(model, torch.zeros(1, 1, 1, 1))
    theirs = tp.importance.FPGMImportance(group_reduction="first", normalizer=None)(group)
    assert theirs.tolist() == [8.0, 8.0]  # |1^2 - 3^2|, and not |1 - 3|


def test_what_belongs_to_a_channel_of_a_grouped_convolution():
    values = torch.arange(8.0).view(4, 2, 1, 1)  # 4 filters in 2 groups, 2 inputs each
    found = per_channel(nn.Conv2d(4, 4, 1, groups=2), values)
    assert found["out"].tolist() == [1, 5, 9, 13]
    assert found["in"].tolist() == [2, 4, 10, 12]


def test_what_belongs_to_a_channel_of_a_transposed_convolution():
    values = torch.arange(6.0).view(2, 3, 1, 1)
    found = per_channel(nn.ConvTranspose2d(2, 3, 1), values)
    assert found["in"].tolist() == [3, 12]
    assert found["out"].tolist() == [3, 5, 7]


def test_depthwise_weights_count():
    # the channel with the larger depthwise filter stays, though all else is equal
    model = nn.Sequential(
        nn.Conv2d(1, 2, 1, bias=False), nn.Conv2d(2, 2, 1, groups=2, bias=False), nn.Flatten(), nn.Linear(2, 1)
    )
    for layer in (model[0], model[1], model[3]):
        nn.init.ones_(layer.weight)
    with torch.no_grad():
        model[1].weight[0] = 5.0
    (group,) = groups_of(model, torch.zeros(1, 1, 1, 1))
    first, second = GroupImportance(model, *score_channels("l2", model))(group).tolist()
    assert first / second == pytest.approx((1 + 25 + 1) / (1 + 1 + 1))


def test_activations_of_a_flattened_channel_are_averaged():
    # 2 channels of 2 x 1 pixels: channel 0 has 1 and 3, channel 1 has 0 and 8
    model = nn.Sequential(nn.Conv2d(2, 2, 1, bias=False), nn.Flatten(), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2).view(2, 2, 1, 1))
    image = torch.tensor([[[[1.0], [3.0]], [[0.0], [8.0]]]])
    (group,) = groups_of(model, image)
    looked = Examples([(image, torch.tensor([0]))], label_logit)
    assert GroupImportance(model, *score_channels("apoz", model, looked))(group).tolist() == pytest.approx([1, 0.5])
    mean = GroupImportance(model, *score_channels("mean_activation", model, looked))(group)
    assert mean.tolist() == pytest.approx([2 / 3, 4 / 3])


def test_random_is_uniform_and_follows_the_seed():
    model = trained_like()
    one, again, other = (score_channels("random", model, seed=seed)[1] for seed in (0, 0, 1))
    assert all(one[key].equal(again[key]) for key in one)
    assert not any(one[key].equal(other[key]) for key in one)
    layer = nn.Sequential(nn.Linear(100, 100))
    values = score_weights("random", layer)["0"].flatten()
    assert values.equal(score_weights("random", layer)["0"].flatten())
    assert not values.equal(score_weights("random", layer, seed=1)["0"].flatten())
    # float32 has 2 ** 24 numbers there: two of 10,000 weights would be equal, and both cut
    assert {values.dtype, *(vector.dtype for vector in one.values())} == {torch.float64}
    assert 0 <= float(values.min()) and float(values.max()) < 1
    assert float(values.mean()) == pytest.approx(0.5, abs=4 / math.sqrt(12 * 10_000))


def test_criteria_of_data_say_that_they_need_some():
    with pytest.raises(CriterionError, match="'taylor' looks at images, and there are none. Raise prune.images"):
        score_channels("taylor", network())
    with pytest.raises(CriterionError, match="'hessian' looks at images"):
        score_weights("hessian", network(), Examples([], label_logit))


def test_an_unknown_criterion_lists_the_known():
    with pytest.raises(CriterionError, match="unknown 'L9'. Choose one of: random, l1, l2"):
        score_channels("L9", network())


def test_every_criterion_has_its_numbers_worked_by_hand_and_its_paper():
    elsewhere = {"random", "lamp", "fpgm", "bn_scale"}  # tests of their own above
    assert set(BY_HAND) | elsewhere == set(CRITERIA)
    assert all(row.link.startswith("https://") for row in CRITERIA.values())


def test_batch_norms_without_scales_are_left_alone():
    plain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, affine=False), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    assert scale_penalty(plain).item() == 4.0
    with pytest.raises(CriterionError, match="prune.sparsity: pushes the scales"):
        scale_penalty(plain[:2])
