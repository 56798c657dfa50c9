"""Weights set to zero where they stand: the network keeps its shape, and its speed.

What is won is a file that compresses better, and hardware with sparse kernels may be faster. Nothing here measures any,
so nothing here claims any: a masked network has as many MACs as before.
"""

from __future__ import annotations

import gzip
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from thinner.compress.criteria import Examples, score_weights
from thinner.compress.pruning import PruningError, share_of
from thinner.measure.profiling import count_params
from thinner.networks import models

Masks = dict[str, Bool[Tensor, "..."]]  # layer's path -> True where its weight stays


def _layers(model: nn.Module, keep: Sequence[str]) -> dict[str, Any]:
    """Convolutions and linear layers; the classifier and what matches ``keep`` stay whole."""
    heads = [head for _, head in models.heads_of(model)]
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.conv._ConvNd | nn.Linear)
        and all(module is not head for head in heads)
        and not any(re.search(pattern, name) for pattern in keep)
    }


_FLOOR = 0.02  # of a layer's weights stay, whatever their scores: a layer of zeros says nothing


def reachable(model: nn.Module, keep: Sequence[str] = ()) -> tuple[int, int]:
    """(parameters that are not zero, fewest that ``mask_weights`` can leave)."""
    layers = _layers(model, keep)
    now = count_params(model, nonzero=True)
    prunable = sum(int(layer.weight.count_nonzero()) for layer in layers.values())
    return now, now - prunable + sum(math.ceil(_FLOOR * layer.weight.numel()) for layer in layers.values())


def mask_weights(
    model: nn.Module,
    *,
    nonzero: int,
    criterion: str,
    scope: str = "global",
    keep: Sequence[str] = (),
    examples: Examples | None = None,
    seed: int = 0,
) -> Masks:
    """Masks that leave ``nonzero`` parameters, biases and all counted: those of the highest ``criterion``.

    ``scope``: ``global`` ranks the weights of all layers together, ``layer`` takes the same share of each (Blalock et
    al. 2020, https://arxiv.org/abs/2003.03033, compare the two). Han et al. 2015 (https://arxiv.org/abs/1506.02626)
    have a threshold for each layer, from the spread of its weights, which is neither. A weight that is zero stays zero.
    Raises PruningError when ``nonzero`` is out of reach, or not less than there are.
    """
    if scope not in ("global", "layer"):
        raise PruningError(f"prune.scope: '{scope}' is for channels. Single weights know: global, layer")
    layers = _layers(model, keep)
    now, fewest = reachable(model, keep)
    if nonzero >= now:
        raise PruningError(f"nothing to prune: {now:,} parameters are not zero and up to {nonzero:,} are allowed")
    if nonzero < fewest:
        kept = f"with prune.keep: {list(keep)} " if keep else ""
        raise PruningError(
            f"prune.target: {nonzero:,} of {now:,} parameters are asked for; {kept}the fewest that can be left is "
            f"{fewest:,} ({fewest / now:.0%}). Ask for {share_of(fewest, now)} to 100%"
        )
    all_scores = score_weights(criterion, model, examples, seed)
    scores = {}
    for name, layer in layers.items():
        own = all_scores[name].flatten().clone()
        own[layer.weight.flatten() == 0] = -1.0
        top = own.argsort(descending=True, stable=True)[: math.ceil(_FLOOR * own.numel())]
        own[top] = math.inf
        scores[name] = own
    left = nonzero - (now - sum(int(layer.weight.count_nonzero()) for layer in layers.values()))
    if scope == "global":
        flat = torch.cat(list(scores.values()))
        stays = torch.zeros(len(flat), dtype=torch.bool)
        stays[flat.argsort(descending=True, stable=True)[:left]] = True
        parts = stays.split([len(own) for own in scores.values()])
    else:
        share = left / sum(len(own) for own in scores.values())
        parts = tuple(
            own.argsort(descending=True, stable=True).argsort()
            < max(math.ceil(_FLOOR * len(own)), int(share * len(own)))
            for own in scores.values()
        )
    return {name: part.reshape(layers[name].weight.shape) for name, part in zip(layers, parts, strict=True)}


def mask_pattern(
    model: nn.Module,
    n: int,
    m: int,
    *,
    criterion: str,
    keep: Sequence[str] = (),
    examples: Examples | None = None,
    seed: int = 0,
) -> Masks:
    """Masks that leave the best ``n`` of every ``m`` weights in a row along a layer's inputs (Zhou et al. 2021,
    https://arxiv.org/abs/2102.04010; 2:4 is what sparse tensor cores read).

    Layers whose inputs are no multiple of ``m`` stay whole. Raises PruningError when that is all of them.
    """
    if not 0 < n < m:
        raise PruningError(f"prune.granularity: '{n}:{m}' keeps nothing or all. Give N:M with N below M, such as '2:4'")
    layers = _layers(model, keep)
    able = {name: layer for name, layer in layers.items() if layer.weight.shape[1] % m == 0}
    if not able:
        raise PruningError(
            f"prune.granularity: '{n}:{m}' finds no layer whose inputs are a multiple of {m} (inputs: "
            f"{', '.join(str(layer.weight.shape[1]) for layer in layers.values())}). Choose another M, or weights"
        )
    all_scores = score_weights(criterion, model, examples, seed)
    masks: Masks = {}
    for name in able:
        rows = all_scores[name].movedim(1, -1)
        order = rows.unflatten(-1, (-1, m)).argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        masks[name] = (order < n).flatten(-2).movedim(-1, 1).contiguous()
    return masks


@torch.no_grad()
def apply(model: nn.Module, masks: Masks) -> None:
    """Set to zero, in place, what the masks leave out."""
    for name, mask in masks.items():
        weight = _weight_of(model, name)
        weight.masked_fill_(~mask.to(weight.device), 0.0)  # times 0 would leave minus zeros


def _weight_of(model: nn.Module, name: str) -> Tensor:
    weight = model.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    return weight


@contextmanager
def held(model: nn.Module, masks: Masks) -> Iterator[None]:
    """While the block runs, every optimiser's step is followed by the masks: what is pruned stays pruned.

    Gradients and momentum go on, so without this the first step would revive all of it.
    """
    apply(model, masks)
    there = dict(masks)  # copied to the network's device once, wherever that will be

    def again(*_: object) -> None:
        for name, mask in there.items():
            there[name] = mask.to(_weight_of(model, name).device)
        apply(model, there)

    handle = register_optimizer_step_post_hook(again)
    try:
        yield
    finally:
        handle.remove()


def compressed_bytes(path: str | Path) -> int:
    """Size of the file in gzip's best compression: where zeros show, as they do not in the file itself."""
    return len(gzip.compress(Path(path).read_bytes(), 9, mtime=0))
