"""Structured pruning: channels are cut out and the network really shrinks.

Which layers hang together is found by Torch-Pruning's dependency graph (Fang et al. 2023, DepGraph,
https://arxiv.org/abs/2301.12900). Ours is what to ask of it: a share of the multiply-accumulates (MACs) rather than
a share of channels, met and never missed; widths that hardware likes; rounds of cutting and recovering.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning as tp
from jaxtyping import Float
from torch import Tensor, nn

from thinner import architectures, models
from thinner.errors import UserError
from thinner.profiling import count_macs, count_params


class PruningError(UserError):
    """The network cannot be pruned as asked."""


@dataclass(frozen=True)
class Cut:
    """What one cut did."""

    macs_before: int
    macs_after: int
    params_before: int
    params_after: int


def target_macs(macs: int, ratio: float, number: int) -> int:
    """MACs allowed after round ``number`` (1, 2, ...): each round removes ``ratio`` of what the one before left.

    The geometric schedule of iterative magnitude pruning (Frankle & Carbin 2019, https://arxiv.org/abs/1803.03635).
    """
    return int(macs * (1.0 - ratio) ** number)


def cut(
    model: nn.Module,
    example: Float[Tensor, "batch channels size size"],
    *,
    macs: int,
    criterion: str,
    scope: str = "global",
    round_to: int = 1,
    keep: Sequence[str] = (),
) -> tuple[nn.Module, Cut]:
    """A smaller copy of ``model`` with at most ``macs`` multiply-accumulates per image, and as few cuts as that takes.

    ``scope``: ``global`` ranks the channels of all layers together, ``layer`` takes the same share of each.
    ``keep``: regular expressions; layers whose path matches one keep their outputs, as the classifier always does.
    The share of channels is found by bisection; Torch-Pruning then removes the lowest of ``criterion``.
    Raises PruningError when ``macs`` is below what can be reached or nothing can be removed.
    """
    before, params_before = count_macs(model, tuple(example.shape[1:])), count_params(model)
    if macs >= before:
        raise PruningError(f"nothing to prune: the network has {before:,} MACs and up to {macs:,} are allowed")
    low, high = 0.0, _LARGEST
    smallest = _prune(model, example, high, criterion, scope, round_to, keep)
    reached = count_macs(smallest, tuple(example.shape[1:]))
    if reached > macs:
        raise PruningError(
            f"prune.ratio, prune.rounds: ask for {macs:,} MACs of {before:,}; the smallest that can be reached with "
            f"round_to {round_to} is {reached:,} ({reached / before:.0%}). "
            "Lower prune.ratio, prune.rounds or prune.round_to"
        )
    best, best_macs = smallest, reached
    for _ in range(_BISECTIONS):
        if best_macs >= _NEAR_ENOUGH * macs:
            break
        middle = (low + high) / 2
        candidate = _prune(model, example, middle, criterion, scope, round_to, keep)
        candidate_macs = count_macs(candidate, tuple(example.shape[1:]))
        if candidate_macs <= macs:
            high = middle
            if candidate_macs >= best_macs:
                best, best_macs = candidate, candidate_macs
        else:
            low = middle
    return best, Cut(before, best_macs, params_before, count_params(best))


_BISECTIONS = 10  # a thousandth of the channels: finer than one channel of any usual layer
_NEAR_ENOUGH = 0.99  # of the MACs allowed: closer is not worth tracing the network again
_LARGEST = 0.98  # of a layer's channels; the rest keeps every layer alive


def reachable_macs(
    model: nn.Module,
    example: Float[Tensor, "batch channels size size"],
    *,
    scope: str = "global",
    round_to: int = 1,
    keep: Sequence[str] = (),
) -> tuple[int, int]:
    """(MACs now, fewest MACs that ``cut`` can reach)."""
    smallest = _prune(model, example, _LARGEST, "magnitude", scope, round_to, keep)
    shape = tuple(example.shape[1:])
    return count_macs(model, shape), count_macs(smallest, shape)


def cut_share(
    model: nn.Module,
    example: Float[Tensor, "batch channels size size"],
    share: float,
    *,
    criterion: str,
    scope: str = "layer",
    round_to: int = 1,
    keep: Sequence[str] = (),
) -> nn.Module:
    """A smaller copy of ``model`` without ``share`` (0 to 1) of its channels, whatever that makes of its MACs.

    The other arguments are those of ``cut``. Raises ArchitectureError when the network is of a kind that cannot be cut.
    """
    return _prune(model, example, share, criterion, scope, round_to, keep)


def _prune(
    model: nn.Module, example: Tensor, ratio: float, criterion: str, scope: str, round_to: int, keep: Sequence[str]
) -> nn.Module:
    if criterion not in CRITERIA:
        raise PruningError(f"prune.criterion: unknown '{criterion}'. Choose one of: {', '.join(CRITERIA)}")
    smaller = copy.deepcopy(model).eval()
    frozen = {name for name, p in smaller.named_parameters() if not p.requires_grad}
    smaller.requires_grad_(True)  # the graph is read off autograd
    ignored = [models.head_of(smaller)[1]]
    ignored += [m for name, m in smaller.named_modules() if name and any(re.search(pattern, name) for pattern in keep)]
    with architectures.prunable(smaller, example) as handling:
        pruner = _WholeMultiples(
            smaller,
            example,
            importance=CRITERIA[criterion](),
            global_pruning=scope == "global",
            pruning_ratio=ratio,
            max_pruning_ratio=_LARGEST,
            round_to=round_to,
            **handling.arguments(ignored),
        )
        pruner.step()
    for name, parameter in smaller.named_parameters():
        parameter.requires_grad_(name not in frozen)
        parameter.grad = None
    return smaller


class _WholeMultiples(tp.pruner.BasePruner):  # type: ignore[misc]
    """Torch-Pruning 1.6 rounds the channels that remain down, to none at the end, and then leaves the whole layer
    alone. Here they go to the nearest multiple, at least one."""

    def _round_to(self, n_pruned: int, current_channels: int, round_to: int) -> int:
        remaining = max(1, round((current_channels - n_pruned) / round_to)) * round_to
        return max(0, current_channels - remaining)


@torch.no_grad()
def reestimate_statistics(model: nn.Module, batches: Callable[[int], Tensor], count: int) -> None:
    """Recompute the running statistics of batch norms as plain means over ``count`` batches.

    After a cut the old statistics are of another network (Li et al. 2020, EagleEye,
    https://arxiv.org/abs/2007.02491).
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    old = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # PyTorch's way to say: cumulative average
    model.train()
    for number in range(count):
        model(batches(number))
    for norm, momentum in zip(norms, old, strict=True):
        norm.momentum = momentum
    model.eval()


def choose_round(rounds: Sequence[dict[str, Any]], source_accuracy: float, tolerance: float) -> int:
    """The round (its ``round``) with the fewest MACs whose validation accuracy is within ``tolerance`` of the source's;
    where none is, the one with the best accuracy."""
    good = [r for r in rounds if r["accuracy_after"] >= source_accuracy - tolerance]
    if good:
        return int(min(good, key=lambda r: r["macs"])["round"])
    return int(max(rounds, key=lambda r: r["accuracy_after"])["round"])


def _magnitude() -> Any:
    """Group magnitude: the L2 norms of all that belongs to a channel, over all layers that hang together, relative to
    the group's mean (Li et al. 2017, https://arxiv.org/abs/1608.08710; for groups Fang et al. 2023, DepGraph)."""
    return tp.importance.GroupMagnitudeImportance(p=2, group_reduction="mean", normalizer="mean")


# To add a criterion: one function that returns a Torch-Pruning importance, its row here, one test row.
CRITERIA: dict[str, Callable[[], Any]] = {
    "magnitude": _magnitude,
}
