"""Structured pruning: channels are cut out and the network really shrinks.

Which layers hang together is found by Torch-Pruning's dependency graph (Fang et al. 2023, DepGraph,
https://arxiv.org/abs/2301.12900). Ours is what to ask of it: a limit of multiply-accumulates (MACs), parameters or
milliseconds rather than a share of channels, met and never missed; widths that hardware likes; rounds.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning as tp
from jaxtyping import Float
from torch import Tensor, nn

from thinner.compress import architectures
from thinner.compress.criteria import ChannelScores, Criterion, Examples, GroupImportance, look_up, score_channels
from thinner.compress.target import Unit, sized
from thinner.errors import UserError
from thinner.measure.profiling import count_macs, count_params, measure_latency, median_interval, pinned_threads
from thinner.networks import models


class PruningError(UserError):
    """The network cannot be pruned as asked."""


class NothingToPruneError(PruningError):
    """The network is as small as is asked for already."""


@dataclass(frozen=True)
class Cut:
    """What one cut did."""

    macs_before: int
    macs_after: int
    params_before: int
    params_after: int


def size_after(now: float, final: float, schedule: str, number: int, rounds: int) -> float:
    """Size allowed after round ``number`` of ``rounds``; never rising, and exactly ``final`` after the last.

    one_shot: all in the first round. linear: the same amount each round. cubic: the gradual schedule of Zhu & Gupta
    2017 (https://arxiv.org/abs/1710.01878, equation 1), which takes most at the start. geometric: the same share of
    what is left each round, as in iterative magnitude pruning (Frankle & Carbin 2019,
    https://arxiv.org/abs/1803.03635).
    """
    if schedule not in SCHEDULES:
        raise PruningError(f"prune.schedule: unknown '{schedule}'. Choose one of: {', '.join(SCHEDULES)}")
    if number >= rounds:
        return final
    return SCHEDULES[schedule](now, final, number / rounds) if number > 0 else now


SCHEDULES: dict[str, Callable[[float, float, float], float]] = {  # size at the start, at the end, share of rounds done
    "one_shot": lambda now, final, done: final,
    "linear": lambda now, final, done: now + (final - now) * done,
    "cubic": lambda now, final, done: final + (now - final) * (1 - done) ** 3,
    "geometric": lambda now, final, done: now * (final / now) ** done,
}


@dataclass(frozen=True)
class Clock:
    """How a latency is measured: images at once, layout of memory, on one thread.

    ``beside``: a network that takes turns with the one that is measured. Alone in a loop a network finds its weights in
    the caches, and looks faster than it will be where others run as well.
    """

    batch: int
    memory_format: torch.memory_format = torch.channels_last
    repeats: int = 30
    beside: nn.Module | None = None


def size_of(
    unit: Unit, model: nn.Module, example: Float[Tensor, "one channels size size"], clock: Clock | None = None
) -> float:
    """MACs per image, parameters (``nonzero``: without the zeros), or the milliseconds of a batch, measured now on this
    machine's CPU.

    Of several networks the one that looks just fast enough has often been lucky, so a latency is the upper limit of the
    median's 95 % interval, and not the median itself.
    """
    if unit == "macs":
        return count_macs(model, tuple(example.shape[1:]))
    if unit in ("params", "nonzero"):
        return count_params(model, nonzero=unit == "nonzero")
    if clock is None:
        raise PruningError("latency_ms: needs a clock. Say how it is measured: clock=Clock(batch=64)")
    networks = {"": copy.deepcopy(model)} | (
        {"beside": copy.deepcopy(clock.beside)} if clock.beside is not None else {}
    )
    for network in networks.values():
        network.eval().cpu().to(memory_format=clock.memory_format)
    x = example.expand(clock.batch, -1, -1, -1).contiguous(memory_format=clock.memory_format)
    with torch.inference_mode(), pinned_threads(1):
        calls = {name: (lambda network=network: network(x)) for name, network in networks.items()}
        samples = measure_latency(calls, repeats=clock.repeats)
    return median_interval(samples[""])[1]


def cut(
    model: nn.Module,
    example: Float[Tensor, "batch channels size size"],
    *,
    macs: int | None = None,
    params: int | None = None,
    latency_ms: float | None = None,
    criterion: str,
    scope: str = "global",
    round_to: int = 1,
    keep: Sequence[str] = (),
    examples: Examples | None = None,
    seed: int = 0,
    clock: Clock | None = None,
    rewound: nn.Module | None = None,
) -> tuple[nn.Module, Cut]:
    """A smaller copy of ``model``, cut as little as it takes to meet one limit: ``macs`` per image, ``params``, or
    ``latency_ms`` of a batch, measured with ``clock``.

    ``scope``: ``global`` ranks the channels of all layers together, ``layer`` takes the same share of each,
    ``isomorphic`` ranks together where the layers that are cut together are of the same make (Fang et al. 2024,
    https://arxiv.org/abs/2407.04616). ``keep``: regular expressions; layers whose path matches one keep their outputs,
    as the classifier always does. ``examples`` is for criteria that look at data. ``rewound``: a network of the same
    shape whose weights the result has instead; which channels go is decided by those of ``model`` (Renda et al. 2020,
    https://arxiv.org/abs/2003.02389).

    The share of channels is found by bisection; Torch-Pruning then removes the lowest of ``criterion``.
    Raises PruningError when the limit is below what can be reached or nothing can be removed.
    """
    limits: dict[Unit, float | None] = {"macs": macs, "params": params, "latency_ms": latency_ms}
    given: list[tuple[Unit, float]] = [(unit, limit) for unit, limit in limits.items() if limit is not None]
    if len(given) != 1:
        raise PruningError(f"cut: give one of macs, params, latency_ms; there are {len(given)}")
    unit, limit = given[0]
    shape = tuple(example.shape[1:])
    now = size_of(unit, model, example, clock)
    if limit >= now:
        raise NothingToPruneError(
            f"nothing to prune: the network has {sized(unit, now)} and up to {sized(unit, limit)} are allowed"
        )
    scores = score_channels(criterion, model, examples, seed)
    source = model if rewound is None else rewound

    def smaller(share: float) -> tuple[nn.Module, float]:
        network = _prune(source, example, share, scores, scope, round_to, keep)
        return network, size_of(unit, network, example, clock)

    low, high = 0.0, _LARGEST
    best, reached = smaller(high)
    if reached > limit:
        raise PruningError(
            f"prune.target: {sized(unit, limit)} of {sized(unit, now)} are asked for; "
            + out_of_reach(unit, now, reached, round_to, keep)
        )
    if count_params(best) == count_params(model):  # only a clock can say that less is reached
        raise NothingToPruneError(
            f"nothing to prune: no channel can go, and measured again it takes {sized(unit, reached)}"
        )
    for _ in range(_BISECTIONS):
        if reached >= _NEAR_ENOUGH * limit:
            break
        middle = (low + high) / 2
        candidate, size = smaller(middle)
        # where a share takes nothing away, a clock may find the very same network to be fast enough
        if size <= limit and count_params(candidate) < count_params(model):
            high = middle
            if size >= reached:
                best, reached = candidate, size
        else:
            low = middle
    return best, Cut(count_macs(model, shape), count_macs(best, shape), count_params(model), count_params(best))


_BISECTIONS = 10  # a thousandth of the channels: finer than one channel of any usual layer
_NEAR_ENOUGH = 0.99  # of what is allowed: closer is not worth tracing the network again
_LARGEST = 0.98  # of all channels; within one step Torch-Pruning keeps to it layer by layer with scope `layer` alone


def share_of(fewest: float, now: float) -> str:
    """The least share that can be asked for, in whole percent: rounded up, or it would be refused again."""
    return f"{math.ceil(100 * fewest / now)}%"


def out_of_reach(unit: Unit, now: float, fewest: float, round_to: int, keep: Sequence[str]) -> str:
    """What can be reached, what stands in the way, and the mend."""
    kept = f", with prune.keep: {list(keep)}" if keep else ""
    mend = "Ask for more" if unit == "latency_ms" else f"Ask for {share_of(fewest, now)} to 100%"  # no share of a clock
    return (
        f"with round_to {round_to}{kept} the smallest that can be reached is {sized(unit, fewest)} "
        f"({fewest / now:.0%}). {mend}, or lower prune.round_to" + (" or prune.keep" * bool(keep))
    )


def reachable(
    unit: Unit,
    model: nn.Module,
    example: Float[Tensor, "batch channels size size"],
    *,
    criterion: str = "l2",
    scope: str = "global",
    round_to: int = 1,
    keep: Sequence[str] = (),
    examples: Examples | None = None,
    seed: int = 0,
    clock: Clock | None = None,
    rounds: int = 1,
) -> tuple[float, float]:
    """(size now, smallest size that ``cut`` can reach when it is given the same, one cut after another in ``rounds``).

    Unless ``scope`` is ``layer``, scores decide where the last channels stay, and so how small the network gets. A
    criterion that needs ``examples`` and has none counts as l2 here, which then is an estimate; so are the scores of
    later rounds, between which a network trains.
    """
    if examples is None and look_up(criterion).needs_examples:
        criterion = "l2"
    smallest = model
    for number in range(rounds):
        scores = score_channels(criterion, smallest, examples, seed + number)
        smaller = _prune(smallest, example, _LARGEST, scores, scope, round_to, keep)
        if count_params(smaller) == count_params(smallest):
            break
        smallest = smaller
    return size_of(unit, model, example, clock), size_of(unit, smallest, example, clock)


def cuts_in_a_row(unit: Unit, schedule: str, rounds: int) -> int:
    """How many cuts one after another a target may count on: of a clock one, since each is measured anew."""
    return 1 if schedule == "one_shot" or unit == "latency_ms" else rounds


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
    return _prune(model, example, share, score_channels(criterion, model), scope, round_to, keep)


def _prune(
    model: nn.Module,
    example: Tensor,
    ratio: float,
    scores: tuple[Criterion, ChannelScores],
    scope: str,
    round_to: int,
    keep: Sequence[str],
) -> nn.Module:
    if scope not in SCOPES:
        raise PruningError(f"prune.scope: unknown '{scope}'. Choose one of: {', '.join(SCOPES)}")
    smaller = copy.deepcopy(model).eval()
    frozen = {name for name, p in smaller.named_parameters() if not p.requires_grad}
    smaller.requires_grad_(True)  # the graph is read off autograd
    ignored = [head for _, head in models.heads_of(smaller)]
    ignored += [m for name, m in smaller.named_modules() if name and any(re.search(pattern, name) for pattern in keep)]
    with architectures.prunable(smaller, example) as handling:
        pruner = _WholeMultiples(
            smaller,
            example,
            importance=GroupImportance(smaller, *scores),
            global_pruning=scope != "layer",
            isomorphic=scope == "isomorphic",
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


SCOPES = ("global", "layer", "isomorphic")


class _WholeMultiples(tp.pruner.BasePruner):  # type: ignore[misc]
    """Torch-Pruning 1.6 rounds the channels that remain down, to none at the end, and then leaves the whole layer
    alone; and it rounds the channels of one group, or attention head, as if they were the layer's. Here the width of
    the whole layer goes to the nearest multiple of ``round_to`` that its groups allow, at least one. Where none is
    narrower than the layer, the multiple is halved until one is, but for widths below half of ``round_to``."""

    def _is_atten_group(self, group: Any) -> Any:
        self._parts = self._get_channel_groups(group)  # asked of each group of layers right before it is rounded
        return super()._is_atten_group(group)

    def _round_to(self, n_pruned: int, current_channels: int, round_to: int) -> int:
        width = current_channels // self._parts  # of one group, of which n_pruned channels are to go
        unit = round_to // math.gcd(round_to, self._parts)
        while unit >= width and unit > 1 and self._parts * (unit // 2) >= round_to // 2:
            unit //= 2
        remaining = max(1, round((width - n_pruned) / unit)) * unit
        return max(0, width - remaining)


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
