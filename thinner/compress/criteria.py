"""Which channels or weights matter least: one row of ``CRITERIA`` for each way to tell.

A criterion scores each layer by itself: a number per channel (``channels``), and where its paper has one, a number per
weight (``weights``). ``GroupImportance`` then joins the layers that must be cut together, in the same way for every
criterion, and is what Torch-Pruning calls. Low scores go first.

Torch-Pruning 1.6.1 has criteria of its own. Checked against hand-worked numbers, its magnitude and LAMP are right (the
tests compare ours with them); four others are not used, because

- its Hessian keeps the last sample's gradient only: ``accumulate_grad`` asks whether a parameter's *name* is known, but
  files gradients by the parameter itself, so each sample overwrites the one before;
- its FPGM raises weights to the power ``p`` (2) before it takes distances, which is not the paper's distance;
- its Taylor uses the gradient of the mean loss, which is near zero at the end of a training, and passes batch norm by;
- its activation importance keeps the last batch only, and sums over tokens but averages over pixels.

And none of them looks at the weights of depthwise convolutions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch_pruning as tp
from jaxtyping import Float, Int
from torch import Tensor, nn

from thinner.errors import UserError

Side = Literal["out", "in"]
ChannelScores = dict[tuple[str, Side], Float[Tensor, " channels"]]  # (layer's path, side) -> a score per channel
WeightScores = dict[str, Tensor]  # layer's path -> a score per element of its ``weight``


class CriterionError(UserError):
    """A criterion cannot score this network, or not with what it was given."""


@dataclass(frozen=True)
class Examples:
    """What criteria that need data look at: batches of (images, labels), and a loss of (logits, labels). A network
    is scored on the device of the images, which has to know float64."""

    batches: Sequence[tuple[Float[Tensor, "_ channels height width"], Int[Tensor, " _"]]]
    loss: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Criterion:
    channels: Callable[[nn.Module, Examples | None, int], ChannelScores]  # the number is a seed
    weights: Callable[[nn.Module, Examples | None, int], WeightScores] | None
    paper: str
    link: str
    needs_examples: bool = False
    # how the values that a layer has of one channel are joined: weights add up, activations are averaged (a channel
    # that is flattened has one per pixel). "first" takes the first layer of a group alone, else layers are averaged.
    join: Literal["sum", "mean", "first"] = "sum"
    normalise: Literal["mean", "lamp", "none"] = "mean"  # what makes groups comparable when all are ranked together


def _layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Layers whose weights belong to channels: convolutions, linear layers, normalisations with a scale."""
    kinds = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
    for name, module in model.named_modules():
        if isinstance(module, kinds) and module.weight is not None:
            yield name, module


def per_channel(layer: Any, values: Tensor) -> dict[Side, Float[Tensor, " channels"]]:
    """Sum of ``values`` (one per element of ``layer.weight``) over what belongs to each output and input channel.

    In a convolution of several groups an input channel meets the filters of its own group only.
    """
    if values.ndim == 1:  # normalisation
        return {"out": values}
    groups = getattr(layer, "groups", 1)
    parts = values.reshape(groups, values.shape[0] // groups, values.shape[1], -1)
    first, second = parts.sum((2, 3)).flatten(), parts.sum((1, 3)).flatten()
    # a transposed convolution's weight has its inputs first
    return {"in": first, "out": second} if getattr(layer, "transposed", False) else {"out": first, "in": second}


def _summed(weights: Callable[[nn.Module, Examples | None, int], WeightScores]) -> Any:
    """Channel scores as sums of weight scores."""

    def channels(model: nn.Module, examples: Examples | None, seed: int) -> ChannelScores:
        layers = dict(_layers(model))
        return {
            (name, side): vector
            for name, values in weights(model, examples, seed).items()
            for side, vector in per_channel(layers[name], values).items()
        }

    return channels


def _l1(model: nn.Module, examples: Examples | None, seed: int) -> WeightScores:
    """``|w|`` (Li et al. 2017, https://arxiv.org/abs/1608.08710; for groups Fang et al. 2023, DepGraph,
    https://arxiv.org/abs/2301.12900)."""
    return {name: layer.weight.detach().double().abs() for name, layer in _layers(model)}


def _l2(model: nn.Module, examples: Examples | None, seed: int) -> WeightScores:
    """``w^2``, so that a channel has its squared L2 norm: the group magnitude of DepGraph
    (https://arxiv.org/abs/2301.12900)."""
    return {name: layer.weight.detach().double().square() for name, layer in _layers(model)}


def _lamp(model: nn.Module, examples: Examples | None, seed: int) -> WeightScores:
    """``w^2 / sum of v^2 over all v of the layer with v^2 >= w^2`` (Lee et al. 2021, https://arxiv.org/abs/2010.07611).

    For channels the same is taken of squared norms, within each group of layers.
    """
    return {name: lamp(values.flatten()).reshape(values.shape) for name, values in _l2(model, examples, seed).items()}


def lamp(squares: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Each of ``squares`` over the sum of itself and all that are larger. The largest has 1, so every layer keeps
    one."""
    ordered, order = squares.sort()
    tail = ordered.flip(0).cumsum(0).flip(0)
    # a layer of nothing but zeros: all equal, and none of them any use
    return torch.empty_like(squares).scatter_(0, order, torch.where(tail > 0, ordered / tail.clamp_min(1e-300), 0.0))


def _random_weights(model: nn.Module, examples: Examples | None, seed: int) -> WeightScores:
    """Uniform in [0, 1): the control that every other criterion has to beat (Blalock et al. 2020,
    https://arxiv.org/abs/2003.03033)."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(layer.weight.shape, generator=generator, dtype=torch.float64) for name, layer in _layers(model)
    }


def _random_channels(model: nn.Module, examples: Examples | None, seed: int) -> ChannelScores:
    generator = torch.Generator().manual_seed(seed)
    return {
        (name, side): torch.rand(len(vector), generator=generator, dtype=torch.float64)
        for name, layer in _layers(model)
        for side, vector in per_channel(layer, layer.weight.detach()).items()
    }


def _fpgm(model: nn.Module, examples: Examples | None, seed: int) -> ChannelScores:
    """``sum over j of ||F_i - F_j||_2`` over the filters of a layer: those near the geometric median can be replaced by
    the others (He et al. 2019, https://arxiv.org/abs/1811.00250, equation 4). Output filters only, as in the paper."""
    scores: ChannelScores = {}
    for name, layer in _layers(model):
        weight = layer.weight.detach().double()
        if weight.ndim == 1:
            continue
        if getattr(layer, "transposed", False):
            groups = layer.groups
            weight = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)
        filters = weight.flatten(1)
        # no matrix product: its rounding gives equal filters a distance
        distances = torch.cdist(filters, filters, compute_mode="donot_use_mm_for_euclid_dist")
        scores[name, "out"] = distances.sum(1)
    return scores


def _bn_scale(model: nn.Module, examples: Examples | None, seed: int) -> ChannelScores:
    """``|gamma|`` of batch norm (Liu et al. 2017, network slimming, https://arxiv.org/abs/1708.06519).

    The paper trains with a penalty on the scales first: ``scale_penalty``. Layers without batch norm are left alone.
    """
    norms = {
        (name, "out"): layer.weight.detach().double().abs()
        for name, layer in _layers(model)
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.weight is not None
    }
    if not norms:
        raise CriterionError(
            "prune.criterion: 'bn_scale' looks at the scales of batch norms, and the network has none. "
            "Choose for example: l2, taylor"
        )
    return norms  # type: ignore[return-value]


def scale_penalty(model: nn.Module) -> Float[Tensor, ""]:
    """``sum of |gamma|`` over all batch norms: what network slimming adds to the loss, times a weight
    (https://arxiv.org/abs/1708.06519, equation 1)."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    scales = [norm.weight.abs().sum() for norm in norms if norm.weight is not None]
    if not scales:
        raise CriterionError(
            "prune.sparsity: pushes the scales of batch norms down, and the network has none. Set it to 0"
        )
    return torch.stack(scales).sum()


def _gradients(model: nn.Module, examples: Examples | None) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """For each image by itself: (number of images in all, gradient of its loss per layer).

    By images, so that two batches of 4 count like one of 8. In eval mode: batch norm in training mode would make a
    filter's scale irrelevant, and its gradient along itself zero.
    """
    if examples is None:
        raise CriterionError("this criterion looks at images and labels. Give examples=Examples(batches, loss)")
    layers = dict(_layers(model))
    total = sum(len(labels) for _, labels in examples.batches)
    modes = [(module, module.training) for module in model.modules()]
    wanted = [(p, p.requires_grad) for p in model.parameters()]
    model.eval().requires_grad_(True)
    try:
        for images, labels in examples.batches:
            for number in range(len(labels)):
                loss = examples.loss(model(images[number : number + 1]), labels[number : number + 1])
                found = torch.autograd.grad(loss, [layer.weight for layer in layers.values()], allow_unused=True)
                yield total, {n: g.detach().double() for n, g in zip(layers, found, strict=True) if g is not None}
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, flag in wanted:
            parameter.requires_grad_(flag)


def _taylor_channels(model: nn.Module, examples: Examples | None, seed: int) -> ChannelScores:
    """``mean over images of (sum over the channel's weights of g w)^2``, ``g`` the gradient of the image's loss
    (Molchanov et al. 2019, https://arxiv.org/abs/1906.10771, equation 9).

    Deviation: the paper averages over mini-batches of training, this over images of the network at rest.
    """
    layers = dict(_layers(model))
    scores: ChannelScores = {}
    for total, gradients in _gradients(model, examples):
        for name, gradient in gradients.items():
            change = gradient * layers[name].weight.detach().double()
            for side, vector in per_channel(layers[name], change).items():
                scores[name, side] = scores.get((name, side), torch.zeros_like(vector)) + vector.square() / total
    return scores


def _taylor_weights(model: nn.Module, examples: Examples | None, seed: int) -> WeightScores:
    """``mean over images of (g w)^2`` (the same paper, equation 8)."""
    return _mean_over_images(model, examples, lambda g, w: (g * w).square())


def _hessian(model: nn.Module, examples: Examples | None, seed: int) -> WeightScores:
    """``h w^2 / 2``, the saliency of Optimal Brain Damage (LeCun et al. 1990,
    https://proceedings.neurips.cc/paper/1989/hash/6c9882bbac1c7093bd25041881277658-Abstract.html, equation 5).

    Deviation: for the Hessian's diagonal ``h`` stands the empirical Fisher information, the mean over images of the
    squared gradient. The two are equal in expectation for a network that has fitted its data; the paper
    propagates second derivatives.
    """
    return _mean_over_images(model, examples, lambda g, w: g.square() * w.square() / 2)


def _mean_over_images(
    model: nn.Module, examples: Examples | None, of: Callable[[Tensor, Tensor], Tensor]
) -> WeightScores:
    layers = dict(_layers(model))
    scores: WeightScores = {}
    for total, gradients in _gradients(model, examples):
        for name, gradient in gradients.items():
            value = of(gradient, layers[name].weight.detach().double()) / total
            scores[name] = scores[name] + value if name in scores else value
    return scores


def _activations(of: Callable[[Tensor], Tensor]) -> Callable[[nn.Module, Examples | None, int], ChannelScores]:
    """Mean over images and places of ``of(a)``, ``a`` the values that arrive at a layer, per input channel.

    Looked at where they are read and not where they are made, so after whatever non-linearity there is, and also where
    that is a function and no module.
    """

    @torch.no_grad()
    def channels(model: nn.Module, examples: Examples | None, seed: int) -> ChannelScores:
        if examples is None:
            raise CriterionError("this criterion looks at images. Give examples=Examples(batches, loss)")
        sums: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        hooks = []
        for name, layer in _layers(model):
            if layer.weight.ndim == 1:
                continue
            axis = -1 if isinstance(layer, nn.Linear) else 1

            def look(module: nn.Module, inputs: Any, name: str = name, axis: int = axis) -> None:
                values = of(inputs[0].detach().double()).movedim(axis, -1).flatten(0, -2)
                sums[name] = sums.get(name, torch.zeros(values.shape[-1], dtype=torch.float64)) + values.sum(0).cpu()
                counts[name] = counts.get(name, 0) + len(values)

            hooks.append(layer.register_forward_pre_hook(look))
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            for images, _ in examples.batches:
                model(images)
        finally:
            for hook in hooks:
                hook.remove()
            for module, mode in modes:
                module.training = mode
        return {(name, "in"): sums[name] / counts[name] for name in sums}

    return channels


class GroupImportance(tp.importance.Importance):  # type: ignore[misc]
    """Scores of layers joined over a group of layers that are cut together, as Torch-Pruning asks for them.

    Equal scores are told apart by place: of a layer's equal channels the first go first, and layers whose channels are
    all equal lose the same share. Without that Torch-Pruning, which takes all up to a threshold, would take whole
    layers, and then, because a layer cannot go, nothing.
    """

    def __init__(self, model: nn.Module, criterion: Criterion, scores: Mapping[tuple[str, Side], Tensor]) -> None:
        self._names = {module: name for name, module in model.named_modules()}
        self._criterion = criterion
        self._scores = scores
        self._groups = 0

    @torch.no_grad()
    def __call__(self, group: Any) -> Tensor | None:
        channels = len(group[0].idxs)
        found: list[Tensor] = []
        for item in group:
            side: Side = "in" if item.dep.handler.__name__ == "prune_in_channels" else "out"
            vector = self._scores.get((self._names.get(item.dep.target.module, ""), side))
            roots = item.root_idxs
            if vector is None or roots is None or any(root is None for root in roots):
                continue
            at = torch.tensor(roots)
            numbers = torch.tensor(list(item.idxs))
            if side == "out" and (rows := getattr(item.dep.target.module, "rows", None)):
                # queries, keys and values in one layer (architectures.py): a channel is three of its rows
                values = torch.stack([vector.cpu().double()[rows(int(i))].sum() for i in numbers])
            else:
                values = vector.cpu().double()[numbers]
            joined = torch.zeros(channels, dtype=torch.float64).index_add_(0, at, values)
            if self._criterion.join != "sum":
                joined /= torch.bincount(at, minlength=channels).clamp_min(1)
            found.append(joined)
            if self._criterion.join == "first":
                break
        if not found:
            return None  # Torch-Pruning then leaves the group alone
        importance = torch.stack(found).mean(0)
        if self._criterion.normalise == "lamp":
            importance = lamp(importance)
        elif self._criterion.normalise == "mean":
            importance = importance / importance.mean().clamp_min(1e-300)
        self._groups += 1
        place = torch.arange(channels, dtype=torch.float64) / channels
        return importance + _TIE * (place + self._groups * _TIE)


_TIE = 1e-9  # far below a difference in float32 weights, far above the rounding of float64

# To add a criterion: its function, its row here, its hand-worked row in tests/thinner/test_criteria.py.
CRITERIA: dict[str, Criterion] = {
    "random": Criterion(
        _random_channels,
        _random_weights,
        "Blalock et al. 2020",
        "https://arxiv.org/abs/2003.03033",
        join="first",
        normalise="none",
    ),
    "l1": Criterion(_summed(_l1), _l1, "Li et al. 2017", "https://arxiv.org/abs/1608.08710"),
    "l2": Criterion(_summed(_l2), _l2, "Fang et al. 2023", "https://arxiv.org/abs/2301.12900"),
    "lamp": Criterion(_summed(_l2), _lamp, "Lee et al. 2021", "https://arxiv.org/abs/2010.07611", normalise="lamp"),
    "fpgm": Criterion(_fpgm, None, "He et al. 2019", "https://arxiv.org/abs/1811.00250"),
    "bn_scale": Criterion(_bn_scale, None, "Liu et al. 2017", "https://arxiv.org/abs/1708.06519", normalise="none"),
    "taylor": Criterion(
        _taylor_channels,
        _taylor_weights,
        "Molchanov et al. 2019",
        "https://arxiv.org/abs/1906.10771",
        needs_examples=True,
    ),
    "hessian": Criterion(
        _summed(_hessian),
        _hessian,
        "LeCun et al. 1990",
        "https://proceedings.neurips.cc/paper/1989/hash/6c9882bbac1c7093bd25041881277658-Abstract.html",
        needs_examples=True,
    ),
    "apoz": Criterion(
        _activations(lambda a: (a != 0).double()),  # what is kept is 1 - APoZ: the share of values that are not zero
        None,
        "Hu et al. 2016",
        "https://arxiv.org/abs/1607.03250",
        needs_examples=True,
        join="mean",
        normalise="none",
    ),
    "mean_activation": Criterion(
        _activations(torch.abs),  # the paper's are behind a ReLU, where the two are the same
        None,
        "Molchanov et al. 2017",
        "https://arxiv.org/abs/1611.06440",
        needs_examples=True,
        join="mean",
    ),
}


def score_channels(
    name: str, model: nn.Module, examples: Examples | None = None, seed: int = 0
) -> tuple[Criterion, ChannelScores]:
    """The criterion ``name`` and what it says of every layer of ``model``. Raises CriterionError."""
    criterion = look_up(name)
    _check_examples(name, criterion, examples)
    return criterion, _where_images_are(criterion.channels, model, examples, seed)


def score_weights(name: str, model: nn.Module, examples: Examples | None = None, seed: int = 0) -> WeightScores:
    """What the criterion ``name`` says of every weight. Raises CriterionError, also where it knows channels only."""
    criterion = look_up(name)
    if criterion.weights is None:
        able = ", ".join(n for n, c in CRITERIA.items() if c.weights is not None)
        raise CriterionError(
            f"prune.criterion: '{name}' scores channels, not single weights. Choose one of: {able}; "
            "or set prune.granularity: channels"
        )
    _check_examples(name, criterion, examples)
    return _where_images_are(criterion.weights, model, examples, seed)


def _where_images_are(
    of: Callable[..., dict[Any, Tensor]], model: nn.Module, examples: Examples | None, seed: int
) -> Any:
    """Scores on the CPU. They are computed on the device of the images; the network is then back where it was."""
    if examples is None or not examples.batches:
        return of(model, examples, seed)
    home, there = next(model.parameters()).device, examples.batches[0][0].device
    try:
        return {key: scores.cpu() for key, scores in of(model.to(there), examples, seed).items()}
    finally:
        model.to(home)


def look_up(name: str) -> Criterion:
    if name not in CRITERIA:
        raise CriterionError(f"prune.criterion: unknown '{name}'. Choose one of: {', '.join(CRITERIA)}")
    return CRITERIA[name]


def _check_examples(name: str, criterion: Criterion, examples: Examples | None) -> None:
    if criterion.needs_examples and (examples is None or not any(len(labels) for _, labels in examples.batches)):
        raise CriterionError(
            f"prune.criterion: '{name}' looks at images, and there are none. Raise prune.images, or choose one of: "
            + ", ".join(n for n, c in CRITERIA.items() if not c.needs_examples)
        )
