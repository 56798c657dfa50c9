"""What the two orders of studies/order.yaml cost to train, as a ratio measured in one run.

    python -m benchmarks.orders               # a table
    python -m benchmarks.orders --json FILE   # and the numbers
    python -m benchmarks.orders --check       # exits with 1 where the study's two orders do not cost the same

Distil then prune trains the student in `distill` and what each round of `prune` leaves of it; prune then distil trains
what is left of the teacher. Teacher and signals are the same in both and are left out. For each of these networks, cut
as `prune` cuts it, steps of training with cached signals (`thinner.learn.training.fit`) take turns over several rounds;
a round's cost of an order is the sum of seconds per step times the steps that the study gives it.

Both must end with the same multiply-adds within 10 %, and cost the same within 15 %: then the study's table compares
accuracies and nothing else.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import distillation
from flows.sweep import load_study, overridden
from tasks.environment import repository_root
from thinner.errors import UserError
from thinner.params import Params

STUDY = Path("studies/order.yaml")
MOST_MACS = 1.10  # of the smaller end's
MOST_COST = 1.15  # of the cheaper order's
SLOW = 2e-3  # seconds per image: of a network slower than this fewer steps are measured


@dataclass(frozen=True)
class Training:
    """One network of an order, and how long it is trained."""

    name: str
    model: Any
    shape: tuple[int, int, int]
    steps: int
    batch_size: int


def trainings(params: Params) -> list[Training]:
    """Every network that ``params`` train with signals: the student, and what each round of prune leaves.

    The student's own training counts only where it is what prune starts from. Weights are those of data/, or fresh.
    """
    from tasks.learning import memory_format_of
    from tasks.prune import way_of
    from thinner.compress.rounds import PruningPlan

    plan, name = params.prune.training, params.prune.source
    steps = _steps(plan.steps)
    model, shape = _network(params, name)
    found = []
    if name == "distill":
        budget = params.student.training
        found.append(Training("the student", model, shape, _steps(budget.steps), budget.batch_size))
    pruning_plan = PruningPlan(
        params.prune.asked, way_of(params), model, shape, seed=params.run.seed, memory_format=memory_format_of(params)
    )
    for number in range(1, params.prune.rounds + 1):
        allowed = pruning_plan.allowed(number, model)
        if pruning_plan.size(model) <= allowed:
            continue
        model, _ = pruning_plan.cut(model, allowed, number)
        what = f"round {number} of {params.prune.rounds} of {'the student' if name == 'distill' else 'the teacher'}"
        found.append(Training(what, model, shape, steps, plan.batch_size))
    return found


def _steps(steps: int | None) -> int:
    if steps is None:
        raise UserError(f"{STUDY}: costs are compared by steps. Give training.steps, not training.epochs")
    return steps


def _network(params: Params, name: str) -> tuple[Any, tuple[int, int, int]]:
    import torch

    from thinner.networks import checkpoint, models

    folder = Path("data") / name
    if (folder / "model.json").exists():
        loaded = checkpoint.load(folder)
        return loaded.model, loaded.preprocessing.shape
    section = params.student if name == "distill" else params.finetune
    job = distillation.jobs(params)[0]
    torch.manual_seed(0)
    model = models.create(job.student if name == "distill" else job.teacher)
    return model.eval(), (section.channels, section.image_size, section.image_size)


def measure(params: Params, orders: Mapping[str, list[Training]], rounds: int) -> dict[str, list[Any]]:
    """{order: for each of its networks the seconds per step in each round}, all networks taking turns."""
    import numpy as np

    job = replace(distillation.jobs(params)[0], images=4_096)
    took: dict[str, list[list[float]]] = {name: [[] for _ in order] for name, order in orders.items()}
    turns = [(name, place) for name, order in orders.items() for place in range(len(order))]
    rng = np.random.default_rng(1)
    steps = dict.fromkeys(turns, 4)
    for number in range(-1, rounds):  # the first shows how long a step is and is not counted
        for turn in (turns[i] for i in rng.permutation(len(turns))):
            name, place = turn
            one = orders[name][place]
            asked = replace(
                job, student_size=one.shape[1], batch_size=one.batch_size, steps={"cached": steps[turn]},
                student=replace(job.student, channels=one.shape[0]),
            )  # fmt: skip
            with tempfile.TemporaryDirectory() as folder:
                times = distillation.measure(asked, 1, Path(folder), params, student=one.model)
            per_image = float(times["cached"][0])
            if number < 0:
                steps[turn] = 2 if per_image > SLOW else 8
            else:
                took[name][place].append(per_image * one.batch_size)
    return {name: [np.array(times) for times in order] for name, order in took.items()}


def judge(orders: Mapping[str, list[Training]], times: Mapping[str, list[Any]]) -> dict[str, Any]:
    """Seconds and multiply-adds of each order; how often the baseline's cost goes into the other's."""
    import numpy as np

    from thinner.evidence.statistics import speed_ratio
    from thinner.measure.profiling import count_macs

    found: dict[str, Any] = {"orders": {}}
    costs = []
    for name, order in orders.items():
        parts = [one.steps * seconds for one, seconds in zip(order, times[name], strict=True)]
        costs.append(np.sum(parts, axis=0))
        found["orders"][name] = {
            "seconds": float(np.median(costs[-1])),
            "macs": count_macs(order[-1].model, order[-1].shape),
            "parts": {
                one.name: {"steps": one.steps, "ms_per_step": float(1e3 * np.median(seconds))}
                for one, seconds in zip(order, times[name], strict=True)
            },
        }
    first, second = costs
    ratio = speed_ratio(first, second)  # seconds of the second for each of the first
    ends = [row["macs"] for row in found["orders"].values()]
    found["cost"] = {"ratio": ratio.effect, "low": ratio.low, "high": ratio.high}
    found["macs_apart"] = max(ends) / min(ends)
    found["holds"] = found["macs_apart"] <= MOST_MACS and 1 / MOST_COST <= ratio.effect <= MOST_COST
    return found


def show(found: dict[str, Any], device: str) -> None:
    print(f"\ntraining with signals; {device}\n")
    print(f"{'order':<20}{'network':<32}{'steps':>7}{'ms a step':>11}{'seconds':>9}{'MACs at the end':>17}")
    for name, row in found["orders"].items():
        for part, numbers in row["parts"].items():
            seconds = numbers["steps"] * numbers["ms_per_step"] / 1e3
            print(f"{name:<20}{part:<32}{numbers['steps']:7,}{numbers['ms_per_step']:11.0f}{seconds:9.0f}")
        print(f"{name:<20}{'in all':<32}{'':18}{row['seconds']:9.0f}{row['macs']:17,}")
    first, second = found["orders"]
    cost = found["cost"]
    print(
        f"\n{second} costs {cost['ratio']:.2f} [{cost['low']:.2f}, {cost['high']:.2f}] times what {first} costs; "
        f"multiply-adds {found['macs_apart']:.2f} apart"
    )
    print(
        f"must: costs within {MOST_COST - 1:.0%}, multiply-adds within {MOST_MACS - 1:.0%}: "
        f"{'holds' if found['holds'] else 'NO'}"
    )


def main() -> int:
    parser = distillation.parser_of("orders", __doc__)
    parser.add_argument("--rounds", type=int, default=10, help="rounds of measuring, 10 or more (10)")
    options = parser.parse_args()
    try:
        params, device = distillation.set_up()
        root = repository_root()
        study = load_study(STUDY, root)
        orders = {}
        for name, variant in study.variants.items():
            orders[name] = trainings(Params.model_validate(overridden(root, study, variant, params.run.seed)))
        if len(orders) != 2:
            raise UserError(f"{STUDY}: {len(orders)} variants, and two orders are compared here")
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    found = judge(orders, measure(params, orders, options.rounds))
    show(found, str(device))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    return 1 if options.check and not found["holds"] else 0


if __name__ == "__main__":
    sys.exit(main())
