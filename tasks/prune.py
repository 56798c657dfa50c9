"""prune: cut, recover with the teacher's signals, verify, measure, repeat; every round is kept."""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasks import learning, lessons
from tasks.stage import Stage, run_stage
from thinner import (
    checkpoint,
    criteria,
    masks,
    profiling,
    pruning,
    statistics,
    store,
    target,
    training,
    verify,
    views,
    whole,
)
from thinner.config import Params
from thinner.errors import UserError
from thinner.mapped import take

Row = dict[str, Any]


def prune(stage: Stage) -> None:
    params, section, plan = stage.params, stage.params.prune, stage.params.prune.training
    data = store.open_store(learning.PREPARED)
    fabric = learning.fabric_of(params)
    source_name, place = source_of(stage), place_of(stage)
    source = checkpoint.load(f"data/{source_name}")
    preprocessing = source.spec["preprocessing"]
    shape = (preprocessing["channels"], preprocessing["image_size"], preprocessing["image_size"])
    validation = data.splits["validation"]
    validate = training.validation(data.images, data.labels, validation, preprocessing, device=fabric.device)
    bound = _bound_of(section)
    _refuse_what_cannot_be_shown(section, len(validation))
    stage.record.dataset("prepared", data.sha256, learning.PREPARED, {k: len(v) for k, v in data.splits.items()})
    pool = learning.training_pool(data)
    look = views.preprocess(data.images[data.splits["validation"][:_LOOKED_AT]], preprocessing, "cpu")

    knife = Knife(params, source.model, shape, examples_of(params, data, preprocessing))
    stage.say(f"{stage.name}: {knife.plan}")
    networks: list[nn.Module] = [copy.deepcopy(source.model)]

    def right_of(model: nn.Module) -> npt.NDArray[np.bool_]:
        logits = training.logits_of(model, data.images, validation, preprocessing, device=fabric.device)
        return np.asarray(logits.argmax(1).numpy() == data.labels[validation])

    source_right = right_of(source.model.to(fabric.device))
    facts, folder = verify.facts_of(source.model.cpu(), shape, source.spec), Path(f"data/{source_name}")
    before = float(source_right.mean())
    rows = [_row(0, facts, folder, before, before, target.loss_of(source_right, source_right, bound))]
    kept = stage.resume / "rounds"
    spec = learning.spec_of(
        stage.name,
        source.spec["network"],
        preprocessing,
        data,
        {source_name: source.sha256, "finetune": learning.parent("data/finetune")},
    )
    model = source.model
    early = checkpoint.load(f"data/{source_name}/{learning.EARLY}").model if section.rewind else None

    def recover(
        number: int, model: nn.Module, held: masks.Masks
    ) -> tuple[float, list[training.Row], npt.NDArray[np.bool_]]:
        """Re-estimate statistics, then train; (accuracy in between, learning curve, what is right afterwards)."""
        batches = learning.batches_of(
            stage,
            data,
            pool,
            preprocessing,
            params.student.augment,
            plan.batch_size,
            fabric,
            number_of_views=params.teach.views,
        )
        model.to(fabric.device, memory_format=learning.memory_format_of(params))
        pruning.reestimate_statistics(model, lambda step: batches(step).images, _STATISTICS_BATCHES)
        before = validate(model)["val_accuracy"]
        resume = stage.resume / f"round-{number}"
        resume.mkdir(exist_ok=True)
        lesson = lessons.lesson(params, data, model, len(batches), fabric.device)
        # the scales are pushed down for the next cut: after the last there is none (Liu et al. 2017, section 3). What
        # counts is how far down they are, so the last weights are kept and not those that validated best before
        weight = section.sparsity if number < section.rounds else 0.0
        pace = plan.model_copy(update={"validate_every": plan_steps(params, len(pool))}) if weight else plan
        with masks.held(model, held) if held else contextlib.nullcontext():
            history = learning.learn(
                stage,
                f"{stage.name} {number}/{section.rounds}",
                model,
                batches,
                _with_penalty(lesson.step, weight),
                pace,
                data,
                preprocessing,
                fabric,
                resume=resume,
                record_prefix=f"round_{number}/",
                extra=lesson.extra,
            )
        right = right_of(model)
        model.cpu()
        return before, history, right

    if section.sparsity > 0 and not fabric.broadcast(
        fabric.global_rank == 0 and _is_there(stage, kept / "1", section.rewind)
    ):
        recover(0, model, {})
    for number in range(1, section.rounds + 1):
        folder = kept / str(number)
        # a killed run may have come this far
        if fabric.broadcast(fabric.global_rank == 0 and _is_there(stage, folder, section.rewind)):
            model = checkpoint.load(folder).model
            early = checkpoint.load(folder / "early").model if section.rewind else None
            rows.append(whole.read_json(folder / "row.json"))
            networks.append(model)
        else:
            allowed = knife.allowed(number, model)
            was_cut = stage.resume / f"round-{number}" / "cut"
            if fabric.global_rank == 0:
                _remove_damaged(stage, was_cut)
            size = fabric.broadcast(knife.size(model))
            # widths come in multiples of round_to: the round before may have gone further than it had to
            if size <= allowed and not (was_cut / checkpoint.SPEC).exists():
                stage.say(
                    f"{stage.name}: round {number} has nothing to cut: {knife.sized(size)}, "
                    f"at most {knife.sized(allowed)} are asked for"
                )
                continue
            try:
                # once, for all processes and for a run that goes on: measured again it would be other widths
                if knife.measures:
                    failure = None
                    if fabric.global_rank == 0 and not (was_cut / checkpoint.SPEC).exists():
                        try:
                            checkpoint.save(was_cut, knife.cut(model, allowed, number, early)[0], spec)
                        except pruning.PruningError as error:
                            failure = error
                    if (failure := fabric.broadcast(failure)) is not None:
                        raise failure
                    model, held = checkpoint.load(was_cut).model, {}
                else:
                    model, held = knife.cut(model, allowed, number, early)
            except pruning.NothingToPruneError as error:  # measured once more it is fast enough
                stage.say(f"{stage.name}: round {number}: {error}")
                continue
            except pruning.PruningError as error:
                if section.goal[0] != "max_drop" or number == 1:
                    raise
                stage.say(f"{stage.name}: no round after {number - 1}, the network cannot be smaller ({error})")
                break
            early = copy.deepcopy(model) if section.rewind else None
            stage.say(
                f"{stage.name}: round {number} of {section.rounds}, "
                f"{knife.sized(size)} -> {knife.sized(knife.size(model))}"
            )
            before, history, right = recover(number, model, held)
            if fabric.global_rank == 0:
                checkpoint.save(folder, model, spec)
                facts = verify.verify_saved(folder, model, look, at_most=knife.limits(allowed))
                if early is not None:
                    checkpoint.save(folder / "early", early, spec)
                loss = target.loss_of(right, source_right, bound)
                row = _row(number, facts, folder, before, float(right.mean()), loss)
                pd.DataFrame(history).astype({"step": int}).to_csv(folder / "history.csv", index=False)
                whole.write_json(folder / "row.json", row)  # last: it says that the round is whole
            fabric.barrier()
            rows.append(whole.read_json(folder / "row.json"))
            networks.append(model)
        _record_curve(stage, folder / "history.csv", (number - 1) * plan_steps(params, len(pool)))
        if _is_enough(stage, number, rows[-1]["loss_points"]):
            break

    if len(rows) == 1:
        raise pruning.PruningError(
            f"prune.target: {_asked(section)}, and {source_name} has {knife.sized(knife.size(source.model.cpu()))}: no "
            "round had anything to cut. Ask for less"
        )
    if section.granularity == "channels":  # masks give no speed, so none is shown
        _add_latencies(stage, rows, networks, shape, knife)
    for row in rows:
        row["target_met"] = knife.is_met(row)
    chosen = target.choose_round(rows[1:], section.goal[0])
    for row in rows:
        row["chosen"] = row["round"] == chosen
    reached = _reached(stage, rows, chosen, knife, len(validation))
    for line in reached["lines"]:
        stage.say(f"{stage.name}: {line}")
    if not reached["met"] and section.on_miss == "fail":
        each = "; ".join(
            f"round {r['round']}: {knife.sized(r[knife.column])}, lost {_loss_of(r, len(validation), bound)}"
            for r in rows[1:]
        )
        raise pruning.PruningError(
            f"prune.target: {reached['lines'][0]} Rounds: {each}. prune.on_miss: keep takes it all the same"
        )
    with stage.output(f"data/{place}") as out:
        for path in (kept / str(chosen)).glob("model.*"):
            shutil.copy2(path, out / path.name)
        for row in rows[1:]:
            place_of_round = out / "rounds" / str(row["round"])
            place_of_round.mkdir(parents=True)
            for path in (kept / str(row["round"])).glob("model.*"):
                shutil.copy2(path, place_of_round / path.name)
    histories = [pd.read_csv(kept / str(row["round"]) / "history.csv").assign(round=row["round"]) for row in rows[1:]]
    with stage.output(f"reports/{place}/history.csv") as path:
        curve = pd.concat(histories)
        curve["step"] += (curve["round"] - 1) * plan_steps(params, len(pool))
        curve.to_csv(path, index=False)
    with stage.output(f"reports/{place}/rounds.csv") as path:
        pd.DataFrame(rows).to_csv(path, index=False)
    with stage.output(f"reports/{place}/target.json") as path:
        path.write_text(json.dumps(reached, indent=2) + "\n", encoding="utf-8")
    _record(stage, rows, chosen, reached)


def source_of(stage: Stage) -> str:
    """The candidate that is pruned: of `prune_also@finetune` finetune, of `prune` what prune.source names."""
    return stage.name.partition("@")[2] or stage.params.prune.source


def place_of(stage: Stage) -> str:
    """Where the stage writes, below data and below reports: `prune`, or `prune_also/finetune`."""
    return stage.name.replace("@", "/")


_STATISTICS_BATCHES = 20
_LOOKED_AT = 16  # validation images whose logits must be the same after loading
_POINTS_ROUNDING = 1e-6  # 90.0 - 89.5 is more than 0.5
_CLOCKED = 3  # times: other work on the machine only ever makes a network look slower
_CRITERION_BATCH = 64
# A first look at each round, on one thread, at these batch sizes and at prune.latency_batch. What is reported in the
# end is measured by evaluate, whose keys are its own.
_LATENCY_BATCHES = (1, 64)
_LATENCY_REPEATS = 30


class Knife:
    """The section ``prune`` as two questions: how large may round n be, and make it so.

    Raises PruningError, before any training, when the target is out of reach.
    """

    def __init__(
        self,
        params: Params,
        model: nn.Module,
        shape: tuple[int, int, int],
        examples: criteria.Examples | None,
        *,
        within_reach: bool = False,  # a target out of reach becomes the nearest that is not, instead of an error
    ) -> None:
        self._section, self._seed, self._examples = params.prune, params.run.seed, examples
        self._example = torch.zeros(1, *shape)
        # as the rounds are measured in the end: beside the source
        self._clock = pruning.Clock(params.prune.latency_batch, learning.memory_format_of(params), beside=model)
        self._how: dict[str, Any] = {
            "criterion": params.prune.criterion,
            "scope": params.prune.scope,
            "round_to": params.prune.round_to,
            "keep": params.prune.keep,
            "clock": self._clock,
        }
        key, value = self._section.goal
        self._unit: pruning.Unit = {"max_drop": "macs"}.get(key, key) if self._channels else "params"  # type: ignore[assignment]
        self._now, fewest = self._range(model)
        if key == "max_drop":
            self._final = fewest
        else:
            self._final = value if key == "latency_ms" else pruning.final_size(value, self._now)
        if within_reach:
            self._final = max(self._final, fewest)
        if self._final < fewest:
            reach = pruning.out_of_reach(self._unit, self._now, fewest, self._section.round_to, self._section.keep)
            raise pruning.PruningError(f"prune.target: {self.sized(self._final)} are asked for; {reach}")
        end = "as small as a drop allows" if key == "max_drop" else f"to {self.sized(self._final)}"
        self.plan = f"{self.sized(self._now)}, {end}; {self.sized(fewest)} can be reached"

    @property
    def measures(self) -> bool:
        """Whether what is cut depends on a measurement."""
        return self._unit == "latency_ms"

    @property
    def _channels(self) -> bool:
        return self._section.granularity == "channels"

    def _range(self, model: nn.Module) -> tuple[float, float]:
        section = self._section
        if section.granularity == "weights":
            return masks.reachable(model, section.keep)
        if not self._channels:
            pattern = self._pattern(model, 0)
            masked = copy.deepcopy(model)
            masks.apply(masked, pattern)
            return profiling.count_params(model, nonzero=True), profiling.count_params(masked, nonzero=True)
        return self._reachable(model, 1, pruning.cuts_in_a_row(self._unit, section.schedule, section.rounds))

    def _reachable(self, model: nn.Module, number: int, rounds: int) -> tuple[float, float]:
        """(size now, smallest size) of so many cuts of ``model``, scored as those of round ``number`` onwards are."""
        scored: Any = {"examples": self._examples, "seed": self._seed + number}
        return pruning.reachable(self._unit, model, self._example, **self._how, **scored, rounds=rounds)

    def _pattern(self, model: nn.Module, number: int) -> masks.Masks:
        n, _, m = self._section.granularity.partition(":")
        return masks.mask_pattern(
            model,
            int(n),
            int(m),
            criterion=self._section.criterion,
            keep=self._section.keep,
            examples=self._examples,
            seed=self._seed + number,
        )

    def allowed(self, number: int, model: nn.Module) -> float:
        """The size that round ``number`` may leave of ``model``; what one cut cannot do is left for the next rounds."""
        size = pruning.size_after(self._now, self._final, self._section.schedule, number, self._section.rounds)
        if self.measures:
            return size
        last = number == self._section.rounds
        return int(size if last or not self._channels else max(size, self._reachable(model, number, 1)[1]))

    def size(self, model: nn.Module) -> float:
        if not self._channels:
            return profiling.count_params(model, nonzero=True)
        return pruning.size_of(self._unit, model, self._example, self._clock)

    def sized(self, size: float) -> str:
        return f"{size:,.0f} nonzero parameters" if not self._channels else pruning.sized(self._unit, size)

    @property
    def unit(self) -> str:
        """What sizes are counted in, as a word."""
        if not self._channels:
            return "nonzero parameters"
        return {"macs": "MACs", "params": "parameters", "latency_ms": "ms"}[self._unit]

    @property
    def column(self) -> str:
        """What the target limits, as a column of rounds.csv."""
        if self._unit == "latency_ms":
            return f"latency_ms_b{self._section.latency_batch}"
        return self._unit if self._channels else "nonzero"

    @property
    def limit(self) -> float:
        """The largest size that meets the target: MACs, parameters, or milliseconds."""
        return self._final

    def is_met(self, row: Row) -> bool:
        """Whether a round is what the target asks for. A drop has to be shown to be no more than was asked. A latency
        was shown to be low enough when the network was cut; measured again it is missed when *that* is shown."""
        if self._section.goal[0] == "max_drop":
            return bool(row["loss_high"] < self._section.goal[1])
        return bool(row["latency_low" if self.measures else self.column] <= self._final)

    def limits(self, allowed: float) -> dict[str, float]:
        """What the saved network is held to; a latency is a measurement and is reported instead."""
        return {} if self.measures else {self.column: allowed}

    def cut(
        self, model: nn.Module, allowed: float, number: int, early: nn.Module | None
    ) -> tuple[nn.Module, masks.Masks]:
        """(the smaller network, masks that training has to hold). ``early``: a network of the same shape whose weights
        it has instead."""
        section = self._section
        if self._channels:
            limit: Any = allowed
            smaller, _ = pruning.cut(
                model,
                self._example,
                **{self._unit: limit},
                **self._how,
                examples=self._examples,
                seed=self._seed + number,
                rewound=early,
            )
            return smaller, {}
        if section.granularity == "weights":
            held = masks.mask_weights(
                model,
                nonzero=int(allowed),
                criterion=section.criterion,
                scope=section.scope,
                keep=section.keep,
                examples=self._examples,
                seed=self._seed + number,
            )
        else:
            held = self._pattern(model, number)
        smaller = copy.deepcopy(model if early is None else early)
        masks.apply(smaller, held)
        return smaller, held


def examples_of(params: Params, data: store.Store, preprocessing: dict[str, Any]) -> criteria.Examples | None:
    """``prune.images`` labelled images and the cross-entropy, for criteria that look at data."""
    if not criteria.look_up(params.prune.criterion).needs_examples:
        return None
    labelled = data.splits["labelled"]
    drawn = np.random.default_rng(params.run.seed).permutation(labelled)[: params.prune.images]
    batches = [
        (
            views.preprocess(take(data.images, part), preprocessing, "cpu"),
            torch.from_numpy(data.labels[part]),
        )
        for part in np.array_split(np.sort(drawn), max(1, len(drawn) // _CRITERION_BATCH))
    ]
    return criteria.Examples(batches, F.cross_entropy)


def _with_penalty(
    step: Callable[[nn.Module, training.Batch, int], dict[str, Tensor]], weight: float
) -> Callable[[nn.Module, training.Batch, int], dict[str, Tensor]]:
    if weight == 0.0:
        return step

    def penalised(model: nn.Module, batch: training.Batch, number: int) -> dict[str, Tensor]:
        parts = step(model, batch, number)
        penalty = weight * criteria.scale_penalty(model)
        return {**parts, "loss": parts["loss"] + penalty, "scale_penalty": penalty}

    return penalised


def _is_there(stage: Stage, folder: Path, rewind: bool) -> bool:
    """Whether a round is done, and still what was written; if not, what is left of it goes, and so it is done again."""
    if (folder / "row.json").exists():
        _remove_damaged(stage, folder, *([folder / learning.EARLY] if rewind else []))
    return (folder / "row.json").exists()


def _remove_damaged(stage: Stage, folder: Path, *within: Path) -> None:
    try:
        for place in (folder, *within):
            if (place / checkpoint.SPEC).exists():
                checkpoint.read_spec(place)
                checkpoint.check_file(place / checkpoint.WEIGHTS)
        if (folder / "row.json").exists():
            whole.read_json(folder / "row.json")
    except UserError as error:
        stage.say(f"{stage.name}: {error}; done again")
        shutil.rmtree(folder)


def _is_enough(stage: Stage, number: int, drop: float) -> bool:
    """Whether the round that ended ``drop`` points below the source is the last."""
    section = stage.params.prune
    if section.goal[0] == "max_drop" and drop > section.goal[1] + _POINTS_ROUNDING:
        stage.say(
            f"{stage.name}: round {number} lost {drop:.2f} points, more than max_drop {section.goal[1]}: "
            "no further round"
        )
        return True
    if section.stop_drop is not None and drop > section.stop_drop + _POINTS_ROUNDING:
        if number < section.rounds:
            stage.say(
                f"{stage.name}: round {number} lost {drop:.2f} points, more than stop_drop {section.stop_drop}: "
                "it cannot be recovered, no further round"
            )
        return True
    return False


def _asked(section: Any) -> str:
    key, value = section.goal
    return f"{{{key}: {value:g}}} is asked for"


def plan_steps(params: Params, images: int) -> int:
    """Steps of one round of recovery over so many images, by which the rounds' curves are set one after the other."""
    plan = params.prune.training
    return training.steps_of(
        images, batch_size=plan.batch_size, steps=plan.steps, epochs=plan.epochs, validate_every=None
    )[0]


def _row(number: int, facts: verify.Facts, folder: Path, before: float, after: float, loss: target.Loss) -> Row:
    return {
        "round": number,
        "macs": facts.macs,
        "params": facts.params,
        "nonzero": facts.nonzero,
        "file_bytes": profiling.file_bytes(folder),
        "compressed_bytes": masks.compressed_bytes(folder / checkpoint.WEIGHTS),
        "accuracy_before": before,
        "accuracy_after": after,
        "loss_points": loss.points,
        "loss_low": loss.low,
        "loss_high": loss.high,
    }


def _bound_of(section: Any) -> float | None:
    """How many points of accuracy may be lost; None: as many as the target takes."""
    key, value = section.goal
    return value if key == "max_drop" else section.tolerance and 100 * section.tolerance


def _loss_of(row: Row, images: int, bound: float | None) -> target.Loss:
    return target.Loss(row["loss_points"], row["loss_low"], row["loss_high"], images, bound)


def _refuse_what_cannot_be_shown(section: Any, images: int) -> None:
    key, value = section.goal
    if key == "max_drop" and value <= (least := target.least_drop_shown(images)):
        raise pruning.PruningError(
            f"prune.target: max_drop {value:g} points, but {images:,} validation images show a drop of {least:.2f} "
            "points at the least. Ask for more, or set data.validation higher"
        )


def _add_latencies(
    stage: Stage, rows: list[Row], networks: list[nn.Module], shape: tuple[int, int, int], knife: Knife
) -> None:
    """Median milliseconds of each round's network, all rounds interleaved, and how much faster than the source each
    is, with a 95 % interval. "Faster" is said only where that lies above 1.

    Where milliseconds are the target and the last round misses them, the clock is read again: a busy machine is no
    reason to call a network slow.
    """
    section, memory_format = stage.params.prune, learning.memory_format_of(stage.params)
    for network in networks:
        network.eval().to(memory_format=memory_format)
    with torch.inference_mode(), profiling.pinned_threads(1):
        for batch in sorted({*_LATENCY_BATCHES, section.latency_batch}):
            x = torch.zeros(batch, *shape).contiguous(memory_format=memory_format)
            calls = {str(n): (lambda m=m, x=x: m(x)) for n, m in enumerate(networks)}
            asked = batch == section.latency_batch
            for _ in range(_CLOCKED if asked and knife.measures else 1):
                samples = profiling.measure_latency(calls, repeats=_LATENCY_REPEATS)
                for n, row in enumerate(rows):
                    row[f"latency_ms_b{batch}"] = profiling.summarise_latency(samples[str(n)])[0]
                    if asked:
                        row["latency_low"], row["latency_high"] = profiling.median_interval(samples[str(n)])
                if asked and knife.measures and knife.is_met(rows[-1]):
                    break
            for n, row in enumerate(rows):
                if not asked or n == 0:
                    continue
                ratio = statistics.speed_ratio(samples[str(n)], samples["0"])
                row |= {"speed_ratio": ratio.effect, "speed_low": ratio.low, "speed_high": ratio.high}
                stage.say(
                    f"{stage.name}: round {row['round']} is {speed_text(ratio)} at batch {batch} "
                    f"than {source_of(stage)}"
                )


def speed_text(ratio: statistics.Estimate) -> str:
    """``faster 1.34x [1.30, 1.38]`` where the interval excludes 1, else ``not faster (0.98x [0.95, 1.02])``."""
    interval = f"{ratio.effect:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]"
    return f"faster {interval}" if ratio.low > 1.0 else f"not faster ({interval})"


def _reached(stage: Stage, rows: list[Row], chosen: int, knife: Knife, images: int) -> dict[str, Any]:
    """reports/prune/target.json: what was asked, what came out, and the sentences that say so everywhere."""
    section, row = stage.params.prune, next(row for row in rows if row["round"] == chosen)
    key, value = section.goal
    bound = _bound_of(section)
    loss = _loss_of(row, images, bound)
    size, source_size = float(row[knife.column]), float(rows[0][knife.column])
    candidate = "prune" if stage.name == "prune" else f"prune_{source_of(stage)}"
    lines = target.describe(
        key,
        value,
        candidate=candidate,
        source=source_of(stage),
        size=knife.sized(size),
        source_size=knife.sized(source_size),
        share=size / source_size,
        met=bool(row["target_met"]),
        why="" if row["target_met"] else _why_missed(section, loss),
        loss=loss,
    )
    return {
        "candidate": candidate,
        "source": source_of(stage),
        "target": {key: value},
        "met": bool(row["target_met"]),
        "round": chosen,
        "unit": knife.unit,
        "size": size,
        "source_size": source_size,
        "limit": None if key == "max_drop" else knife.limit,
        "loss_points": loss.points,
        "loss_low": loss.low,
        "loss_high": loss.high,
        "loss_bound": bound,
        "within_bound": loss.outcome,
        "images": images,
        "lines": lines,
    }


def _why_missed(section: Any, loss: target.Loss) -> str:
    key, value = section.goal
    if key == "max_drop":
        return (
            f"No round is shown to have lost less than {value:g} points. Give prune.rounds more (smaller cuts), "
            "prune.training.steps more, data.validation more images, or max_drop more."
        )
    if key == "latency_ms":
        return "It was fast enough when it was cut; the machine is slower now. Run it on a quiet one, or ask for more."
    return (
        f"No round came as far: the last lost {loss}, and prune.stop_drop is {section.stop_drop}. Give prune.rounds or "
        "prune.training.steps more, or set prune.stop_drop: null."
    )


def _record_curve(stage: Stage, history: Path, before: int) -> None:
    """A round's learning curve under the names that every training stage uses (``val/accuracy``).

    Its first step follows the ``before`` steps of the rounds before, as in reports/prune/history.csv. ``learn`` records
    a round as it happens, as ``round_N/val/accuracy``; this is done when it is whole, from its file: so the run of a
    stage that was killed and goes on has the rounds before as well, and no step twice.
    """
    for row in pd.read_csv(history).to_dict("records"):
        step = before + int(row.pop("step"))
        stage.record.metrics({learning._metric(str(key)): value for key, value in row.items()}, step=step)


def _record(stage: Stage, rows: list[Row], chosen: int, reached: dict[str, Any]) -> None:
    for row in rows:
        numbers = {f"prune/{k}": float(v) for k, v in row.items() if k not in ("round", "chosen", "target_met")}
        stage.record.metrics(numbers, step=row["round"])
    stage.record.metrics({"prune/target_met": float(reached["met"])})
    stage.record.tags({"mlflow.note.content": "\n\n".join(reached["lines"])})
    stage.record.artifact(f"reports/{place_of(stage)}/rounds.csv")
    stage.record.artifact(f"reports/{place_of(stage)}/target.json")
    stage.record.artifact(f"data/{place_of(stage)}/{checkpoint.WEIGHTS}", "checkpoint")
    stage.record.artifact(f"data/{place_of(stage)}/{checkpoint.SPEC}", "checkpoint")
    best = next(row for row in rows if row["round"] == chosen)
    stage.record.metrics({"val/best_accuracy": best["accuracy_after"]})
    # of the MACs where channels went; masks leave those as they are
    what, key = ("MACs", "macs") if stage.params.prune.granularity == "channels" else ("parameters not zero", "nonzero")
    stage.say(
        f"{stage.name}: round {chosen} chosen: {best[key] / rows[0][key]:.0%} of the {what}, validation "
        f"accuracy {rows[0]['accuracy_after']:.2%} -> {best['accuracy_after']:.2%}"
    )


if __name__ == "__main__":
    run_stage(f"prune_also@{sys.argv[1]}" if len(sys.argv) > 1 else "prune", prune)
