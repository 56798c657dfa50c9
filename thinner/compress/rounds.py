"""Pruning in rounds: cut a little, recover, look at what is on the disk, and again, until the target is met.

Every round is kept in a folder of its own with a checkpoint, its learning curve and its row of the table, so a run that
was killed goes on after the last whole round. What trains in between is the caller's: ``prune_in_rounds`` knows nothing
of teachers, and runs with any function that makes a network better.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from lightning_fabric import Fabric
from torch import Tensor, nn

from thinner.compress import criteria, masks, pruning
from thinner.compress.target import Target
from thinner.errors import UserError
from thinner.evidence import statistics
from thinner.evidence.drop import Drop, drop_of
from thinner.files import tensors as tensor_files
from thinner.files import whole
from thinner.learn import training
from thinner.measure import profiling, verify
from thinner.networks import checkpoint

Row = dict[str, Any]  # of rounds.csv

EARLY = "early"  # beside a network: its weights after keep_step steps, for rewinding
HISTORY = "history.csv"
_ROW, _CUT, _MASKS = "row.json", "cut", "masks.safetensors"
_DROP_ROUNDING = 1e-6  # 90.0 - 89.5 is more than 0.5
_CLOCKED = 3  # times: other work on the machine only ever makes a network look slower
# A first look at each round, on one thread, at these batch sizes and at the target's. What is reported in the end is
# measured by evaluate, whose keys are its own.
_LATENCY_BATCHES = (1, 64)
_LATENCY_REPEATS = 30


@dataclass(frozen=True)
class Way:
    """How one gets to the target. The names are those of params.yaml's section ``prune``."""

    criterion: str
    scope: str = "global"
    schedule: str = "geometric"
    rounds: int = 1
    round_to: int = 1
    keep: Sequence[str] = ()
    stop_drop: float | None = None  # points: a round that loses more is the last
    rewind: bool = False
    warm_up: bool = False  # train once before the first cut, as for scales that are pushed down


class PruningPlan:
    """A target, a network and a way as two questions: how large may round n be, and make it so.

    Raises PruningError, before any training, when the target is out of reach.
    """

    def __init__(
        self,
        target: Target,
        way: Way,
        model: nn.Module,
        shape: tuple[int, int, int],
        *,
        examples: criteria.Examples | None = None,
        seed: int = 0,
        memory_format: torch.memory_format = torch.channels_last,
        within_reach: bool = False,  # a target out of reach becomes the nearest that is not, instead of an error
    ) -> None:
        self.target, self.way = target, way
        self._examples, self._seed = examples, seed
        self._example = torch.zeros(1, *shape)
        self._channels = target.granularity == "channels"
        # as the rounds are measured in the end: beside the source
        self._clock = pruning.Clock(target.latency_batch, memory_format, beside=model)
        self._how: dict[str, Any] = {
            "criterion": way.criterion,
            "scope": way.scope,
            "round_to": way.round_to,
            "keep": way.keep,
            "clock": self._clock,
        }
        self._now, fewest = self._range(model)
        limit = target.limit(self._now, fewest)
        if within_reach:
            limit = max(limit, fewest)
        if limit < fewest:
            reach = pruning.out_of_reach(target.unit, self._now, fewest, way.round_to, way.keep)
            raise pruning.PruningError(f"prune.target: {target.sized(limit)} are asked for; {reach}")
        self.limit = limit  # the largest size that meets the target
        end = "as small as a drop allows" if target.is_drop else f"to {target.sized(limit)}"
        self.words = f"{target.sized(self._now)}, {end}; {target.sized(fewest)} can be reached"

    def _range(self, model: nn.Module) -> tuple[float, float]:
        """(size now, smallest size) of ``model``."""
        if self.target.granularity == "weights":
            return masks.reachable(model, self.way.keep)
        if not self._channels:
            masked = copy.deepcopy(model)
            masks.apply(masked, self._pattern(model, 0))
            return self.size(model), self.size(masked)
        cuts = pruning.cuts_in_a_row(self.target.unit, self.way.schedule, self.way.rounds)
        return self._reachable(model, 1, cuts)

    def _reachable(self, model: nn.Module, number: int, rounds: int) -> tuple[float, float]:
        """(size now, smallest size) of so many cuts of ``model``, scored as those of round ``number`` onwards are."""
        scored: Any = {"examples": self._examples, "seed": self._seed + number}
        return pruning.reachable(self.target.unit, model, self._example, **self._how, **scored, rounds=rounds)

    def _pattern(self, model: nn.Module, number: int) -> masks.Masks:
        n, _, m = self.target.granularity.partition(":")
        return masks.mask_pattern(
            model,
            int(n),
            int(m),
            criterion=self.way.criterion,
            keep=self.way.keep,
            examples=self._examples,
            seed=self._seed + number,
        )

    def size(self, model: nn.Module) -> float:
        return pruning.size_of(self.target.unit, model, self._example, self._clock)

    def allowed(self, number: int, model: nn.Module) -> float:
        """The size that round ``number`` may leave of ``model``; what one cut cannot do is left for the next rounds."""
        size = pruning.size_after(self._now, self.limit, self.way.schedule, number, self.way.rounds)
        if self.target.is_measured:
            return size
        last = number == self.way.rounds
        return int(size if last or not self._channels else max(size, self._reachable(model, number, 1)[1]))

    def aims_at_limit(self, number: int) -> bool:
        """Whether round ``number`` is cut to the target itself, and not to a size before it."""
        return pruning.size_after(self._now, self.limit, self.way.schedule, number, self.way.rounds) <= self.limit

    def limits(self, allowed: float) -> dict[str, float]:
        """What the saved network is held to; a latency is a measurement and is reported instead."""
        return {} if self.target.is_measured else {self.target.column: allowed}

    def cut(
        self, model: nn.Module, allowed: float, number: int, early: nn.Module | None = None
    ) -> tuple[nn.Module, masks.Masks]:
        """(the smaller network, masks that training has to hold). ``early``: a network of the same shape whose weights
        it has instead."""
        seed = self._seed + number
        if self._channels:
            limit: Any = allowed
            smaller, _ = pruning.cut(
                model,
                self._example,
                **{self.target.unit: limit},
                **self._how,
                examples=self._examples,
                seed=seed,
                rewound=early,
            )
            return smaller, {}
        if self.target.granularity == "weights":
            held = masks.mask_weights(
                model,
                nonzero=int(allowed),
                criterion=self.way.criterion,
                scope=self.way.scope,
                keep=self.way.keep,
                examples=self._examples,
                seed=seed,
            )
        else:
            held = self._pattern(model, number)
        smaller = copy.deepcopy(model if early is None else early)
        masks.apply(smaller, held)
        return smaller, held

    def cut_in_rounds(self, model: nn.Module) -> tuple[nn.Module, masks.Masks]:
        """All the cuts, one after the other, and no training in between."""
        held: masks.Masks = {}
        for number in range(1, self.way.rounds + 1):
            if self.size(model) > (allowed := self.allowed(number, model)):
                model, held = self.cut(model, allowed, number)
        return model, held

    def nothing_cut(self, source: str) -> pruning.PruningError:
        return pruning.PruningError(
            f"prune.target: {self.target} is asked for, and {source} has {self.target.sized(self._now)}: no round had "
            "anything to cut. Ask for less"
        )


# number of the round (0: before the first cut), network, masks to hold
# -> (accuracy before the training, learning curve); the network is trained in place
Recover = Callable[[int, nn.Module, masks.Masks], tuple[float, list[training.Row]]]
# which validation images a network has right
Answers = Callable[[nn.Module], Bool[np.ndarray, " images"]]


@dataclass(frozen=True)
class Rounds:
    """What came out: row 0 is the source. ``networks`` are beside their rows, on the CPU. ``ended``: a round that lost
    too much was the last, before others that were to be cut further."""

    rows: list[Row]
    networks: list[nn.Module]
    ended: bool = False

    def cut_to_limit(self, plan: PruningPlan, row: Row) -> bool:
        """Whether this row's network was cut to the target itself, or found to be small enough for it in the last
        round."""
        return plan.aims_at_limit(row["round"]) or (row is self.rows[-1] and not self.ended)


def prune_in_rounds(
    plan: PruningPlan,
    source: checkpoint.Loaded,
    source_folder: Path,
    *,
    recover: Recover,
    answers: Answers,
    look: Float[Tensor, "images channels size size"],
    spec: dict[str, Any],
    folder: Path,
    work: Path,
    fabric: Fabric,
    say: Callable[[str], None] = print,
    on_round: Callable[[int, Path], None] = lambda number, folder: None,
) -> Rounds:
    """Cut ``source`` as ``plan`` says, ``recover`` after each cut, and keep each round in ``folder``/NUMBER.

    ``answers`` judges the source and each round on the same images; ``look`` are images that the saved network has to
    answer in a new process as it did here. ``spec`` is that of the checkpoints, ``work`` holds what goes when all is
    done (each round's cut, so that one that was killed while it recovered goes on with it). With several processes the
    first one decides what is cut. ``on_round(number, folder)`` is called for each round, also of an earlier run.

    Raises PruningError when the target cannot be reached; VerificationError when a file is not what was trained.
    """
    target, way = plan.target, plan.way
    device = fabric.device
    model, networks = source.model, [copy.deepcopy(source.model)]
    shape = tuple(look.shape[1:])
    source_right = answers(model.to(device))
    facts = verify.facts_of(model.cpu(), shape, source.spec)
    before = float(source_right.mean())
    rows = [_row(0, facts, source_folder, before, before, drop_of(source_right, source_right, target.bound))]
    early = checkpoint.load(source_folder / EARLY).model if way.rewind else None
    first, ended = fabric.global_rank == 0, False

    def is_there(number: int) -> bool:
        return bool(fabric.broadcast(first and _is_whole(folder / str(number), way.rewind, say)))

    if way.warm_up and not is_there(1):
        recover(0, model, {})
        model.cpu()
    for number in range(1, way.rounds + 1):
        place = folder / str(number)
        if is_there(number):  # a killed run may have come this far
            model = checkpoint.load(place).model
            early = checkpoint.load(place / EARLY).model if way.rewind else None
        else:
            try:
                found = _cut_once(plan, model, number, early, work / f"round-{number}", spec, fabric, say)
            except pruning.PruningError as error:
                if not target.is_drop or number == 1:
                    raise
                say(f"no round after {number - 1}, the network cannot be smaller ({error})")
                break
            if found is None:
                continue
            model, held, allowed = found
            early = copy.deepcopy(model) if way.rewind else None
            before, history = recover(number, model, held)
            right = answers(model)
            model.cpu()
            if first:
                checkpoint.save(place, model, spec)
                facts = verify.verify_saved(place, model, look, at_most=plan.limits(allowed))
                if early is not None:
                    checkpoint.save(place / EARLY, early, spec)
                lost = drop_of(right, source_right, target.bound)
                pd.DataFrame(history).astype({"step": int}).to_csv(place / HISTORY, index=False)
                # last: it says that the round is whole
                whole.write_json(place / _ROW, _row(number, facts, place, before, float(right.mean()), lost))
            fabric.barrier()
        rows.append(whole.read_json(place / _ROW))
        networks.append(model)
        on_round(number, place)
        if _is_enough(target, way, number, rows[-1]["loss_points"], say):
            ended = True
            break
    if len(rows) == 1:
        raise plan.nothing_cut(source_folder.name)
    return Rounds(rows, networks, ended)


def _cut_once(
    plan: PruningPlan,
    model: nn.Module,
    number: int,
    early: nn.Module | None,
    work: Path,
    spec: dict[str, Any],
    fabric: Fabric,
    say: Callable[[str], None],
) -> tuple[nn.Module, masks.Masks, float] | None:
    """(network, masks, size allowed) of round ``number``, cut by the first of all processes and read from ``work`` by
    each; None where there is nothing to cut.

    Once, also for a run that goes on: measured again it would be other widths, and scores that look at data differ
    between processes.
    """
    place, failure = work / _CUT, None
    if fabric.global_rank == 0:
        try:
            _remove_damaged([place], say)
            if not (place / _ROW).exists():
                allowed, size = plan.allowed(number, model), plan.size(model)
                if size <= allowed:  # widths come in multiples of round_to: the round before may have gone further
                    raise pruning.NothingToPruneError(
                        f"nothing to cut: {plan.target.sized(size)}, at most {plan.target.sized(allowed)} are asked for"
                    )
                smaller, held = plan.cut(model, allowed, number, early)
                checkpoint.save(place, smaller, spec)
                tensor_files.write(place / _MASKS, held)
                whole.write_json(place / _ROW, {"size": size, "allowed": allowed})
        except pruning.PruningError as error:
            failure = error
    failure = fabric.broadcast(failure)
    if isinstance(failure, pruning.NothingToPruneError):  # or, measured once more, it is fast enough
        say(f"round {number}: {failure}")
        return None
    if failure is not None:
        raise failure
    smaller, sizes = checkpoint.load(place).model, whole.read_json(place / _ROW)
    after = fabric.broadcast(plan.size(smaller) if fabric.global_rank == 0 else 0.0)
    say(f"round {number} of {plan.way.rounds}, {plan.target.sized(sizes['size'])} -> {plan.target.sized(after)}")
    return smaller, tensor_files.read(place / _MASKS)[0], sizes["allowed"]


def _row(number: int, facts: verify.Facts, folder: Path, before: float, after: float, lost: Drop) -> Row:
    return {
        "round": number,
        "macs": facts.macs,
        "params": facts.params,
        "nonzero": facts.nonzero,
        "file_bytes": profiling.file_bytes(folder),
        "compressed_bytes": masks.compressed_bytes(folder / checkpoint.WEIGHTS),
        "accuracy_before": before,
        "accuracy_after": after,
        "loss_points": lost.points,
        "loss_low": lost.low,
        "loss_high": lost.high,
    }


def _is_whole(folder: Path, rewind: bool, say: Callable[[str], None]) -> bool:
    """Whether a round is done, and still what was written; if not, what is left of it goes, and so it is done again."""
    if (folder / _ROW).exists():
        _remove_damaged([folder, *([folder / EARLY] if rewind else [])], say)
    return (folder / _ROW).exists()


def _remove_damaged(folders: Sequence[Path], say: Callable[[str], None]) -> None:
    """Removes the first of ``folders``, which holds the others, if anything in them is not what was written."""
    try:
        for folder in folders:
            if (folder / checkpoint.SPEC).exists():
                checkpoint.read_spec(folder)
                checkpoint.check_file(folder / checkpoint.WEIGHTS)
        if (folders[0] / _ROW).exists():
            whole.read_json(folders[0] / _ROW)
        if (folders[0] / _MASKS).exists():
            tensor_files.read(folders[0] / _MASKS)
    except UserError as error:
        say(f"{error}; done again")
        shutil.rmtree(folders[0])


def _is_enough(target: Target, way: Way, number: int, points: float, say: Callable[[str], None]) -> bool:
    """Whether the round that ended so many points below the source is the last."""
    lost = f"round {number} lost {points:.2f} points, more than"
    if target.is_drop and points > target.value + _DROP_ROUNDING:
        say(f"{lost} max_drop {target.value}: no further round")
        return True
    if way.stop_drop is not None and points > way.stop_drop + _DROP_ROUNDING:
        if number < way.rounds:
            say(f"{lost} stop_drop {way.stop_drop}: it cannot be recovered, no further round")
        return True
    return False


# --- what came out ---


def add_latencies(
    found: Rounds,
    plan: PruningPlan,
    shape: tuple[int, int, int],
    memory_format: torch.memory_format,
    source: str,
    say: Callable[[str], None] = print,
) -> None:
    """Median milliseconds of each round's network, all rounds interleaved, and how much faster than the source each
    is, with a 95 % interval. "Faster" is said only where that lies above 1.

    Where milliseconds are the target and the last round misses them, the clock is read again: a busy machine is no
    reason to call a network slow.
    """
    target, rows = plan.target, found.rows
    for network in found.networks:
        network.eval().to(memory_format=memory_format)
    with torch.inference_mode(), profiling.pinned_threads(1):
        for batch in sorted({*_LATENCY_BATCHES, target.latency_batch}):
            x = torch.zeros(batch, *shape).contiguous(memory_format=memory_format)
            calls = {str(n): (lambda m=m, x=x: m(x)) for n, m in enumerate(found.networks)}
            asked = batch == target.latency_batch
            for _ in range(_CLOCKED if asked and target.is_measured else 1):
                samples = profiling.measure_latency(calls, repeats=_LATENCY_REPEATS)
                for n, row in enumerate(rows):
                    row[f"latency_ms_b{batch}"] = profiling.summarise_latency(samples[str(n)])[0]
                    if asked:
                        row["latency_low"], row["latency_high"] = profiling.median_interval(samples[str(n)])
                aimed = found.cut_to_limit(plan, rows[-1])
                if asked and target.is_measured and target.is_met(rows[-1], plan.limit, cut_to_it=aimed):
                    break
            for n, row in enumerate(rows):
                if not asked or n == 0:
                    continue
                ratio = statistics.speed_ratio(samples[str(n)], samples["0"])
                row |= {"speed_ratio": ratio.effect, "speed_low": ratio.low, "speed_high": ratio.high}
                say(f"round {row['round']} is {speed_text(ratio)} at batch {batch} than {source}")


def speed_text(ratio: statistics.Estimate) -> str:
    """``faster 1.34x [1.30, 1.38]`` where the interval excludes 1, else ``not faster (0.98x [0.95, 1.02])``."""
    interval = f"{ratio.effect:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]"
    return f"faster {interval}" if ratio.low > 1.0 else f"not faster ({interval})"


def drop_in(row: Row, images: int, bound: float | None) -> Drop:
    """The drop that a row of rounds.csv tells."""
    return Drop(row["loss_points"], row["loss_low"], row["loss_high"], images, bound)


def why_missed(target: Target, way: Way, drop: Drop, *, cut_to_it: bool = True) -> str:
    """One sentence, with the mend. ``cut_to_it``: whether the last round was cut to the target."""
    if target.is_drop:
        return (
            f"No round is shown to have lost less than {target.value:g} points. Give prune.rounds more (smaller cuts), "
            "prune.training.steps more, data.validation more images, or max_drop more."
        )
    if target.is_measured and cut_to_it:
        return "It was fast enough when it was cut; the machine is slower now. Run it on a quiet one, or ask for more."
    return (
        f"No round came as far: the last lost {drop}, and prune.stop_drop is {way.stop_drop}. Give prune.rounds or "
        "prune.training.steps more, or set prune.stop_drop: null."
    )
