"""Seeds: params.yaml as it is, run with several `run.seed` as far as evaluate, for claims about all of them.

    thinner claims --seeds 0,1,2 --workers 2

Each seed that is missing runs in a git worktree of HEAD, as in a study. What the tests need of it is kept in
`.thinner/seeds/SEED`, with a key of all that it rests on (commands, parameters, code, raw data): when that changes, the
seed is run again, that is, trained or brought from DVC's cache.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Completed, Failed

from flows import console, engines, worktrees
from flows.pipeline import only_run, select
from flows.worktrees import (
    Worktrees,
    cancelled,
    conduct,
    ended_together,
    refuse_changes,
    reproduce,
    verdict,
    with_values,
    write_params,
)
from tasks import lineage
from thinner import layout, words
from thinner.errors import UserError
from thinner.evidence import shipping
from thinner.measure import operating
from thinner.params import Params

TARGET = "evaluate"
FOLDER = Path(".thinner/seeds")
KEPT = ("reports/metrics.json", "data/evaluate")  # what tasks.report.judge_runs reads, with params.yaml
ALSO_KEPT = ("reports/quantize", str(operating.FILE))  # the same, where 8 bits were tried and points chosen
KEY = "key"


def evaluate_seeds(
    root: Path, params: Params, seeds: Sequence[int], workers: int | None = None, choice: engines.Choice | None = None
) -> list[Path]:
    """A folder per seed with what evaluate wrote for HEAD's params.yaml and that seed; what is missing is run. With an
    engine its workers train; evaluate, which measures speed, runs here in any case.

    Raises:
        UserError: something is not committed, the test split depends on the seed, or a seed failed.
    """
    if len(seeds) > 1 and params.data.test is not None:
        raise UserError(
            f"data.test: {params.data.test}: each seed draws other test images, so nothing can be paired. "
            "Give the data a test split of their own, and set data.test: null"
        )
    refuse_changes(root, "Seeds are run from a commit")
    with only_run(root):
        given = {seed: with_values(root, {"run.seed": seed}) for seed in seeds}  # once: a person may edit params.yaml
        keys = find_keys(root, given)
        missing = {seed: key for seed, key in keys.items() if not _is_kept(root, seed, key)}
        console.console.print(f"To run: {_named(missing)}" if missing else f"Up to date: {_named(seeds)}", markup=False)
        if missing:
            if choice is not None:
                engines.check(choice, root)
            with engines.connected(choice, root) as engine:
                trees = Worktrees(root, [root / FOLDER / f"worktree-{seed}" for seed in missing], engine=engine)
                name, count = f"claims over {_named(seeds)}", engines.side_by_side(engine, workers)
                state = conduct(root, name, min(count, len(missing)), trees, bring_up_to_date, root, missing, given)
            if not state.is_completed():
                raise UserError(
                    f"{state.message}\nNothing was judged. What was finished is kept. "
                    f"Mend it and run again: thinner claims --seeds {','.join(map(str, seeds))}"
                )
    folders = [root / FOLDER / str(seed) for seed in seeds]
    for seed, folder in zip(seeds, folders, strict=True):  # whose results they are; their key has told that it is so
        write_params(folder, given[seed])
    return folders


def render(params: Params, folders: Mapping[int, Path], verdicts: Mapping[str, Any], commit: str) -> str:
    """The page of `--page`: verdicts over all seeds, and what each seed's networks are."""
    measured = {seed: shipping.read_metrics(folder / KEPT[0]) for seed, folder in folders.items()}
    seeds = ",".join(map(str, folders))
    lines = [
        "<!-- written by `thinner claims --seeds ... --page`; do not edit -->",
        f"# The job of params.yaml over {_named(folders)}",
        "",
        f"Data: `{params.data.source}`. A seed changes all that is drawn: which images are labelled, the teacher,",
        "first weights, the order of images. All are tested on the same images.",
        "",
        "```sh",
        f"thinner claims --seeds {seeds} --strict --json reports/claims_seeds.json --page docs/seeds.md",
        "```",
        "",
        "| verdict | claim | over all seeds |",
        "|---|---|---|",
        *(f"| **{v['outcome']}** | {v['claim']} | {v['numbers']} |" for v in verdicts.values()),
        "",
        "Accuracy on the test split, %:",
        "",
        "| network | " + " | ".join(f"seed {seed}" for seed in folders) + " | mean | multiply-adds |",
        "|---|" + "---:|" * (len(folders) + 2),
    ]
    for name in layout.networks(params):
        rows = [of[name] for of in measured.values() if name in of]
        if len(rows) < len(folders):
            continue
        accuracies = [100 * row["accuracy"] for row in rows]
        sizes = [words.si(size) for size in sorted({row["macs"] for row in rows})]
        lines.append(
            f"| `{name}` | "
            + " | ".join(f"{value:.2f}" for value in accuracies)
            + f" | {statistics.mean(accuracies):.2f} | {' to '.join(dict.fromkeys((sizes[0], sizes[-1])))} |"
        )
    note = "`small` is cut to at most the size of `prune`: where widths come in multiples it can be smaller."
    return "\n".join(
        [*lines, "", *([note] if "small" in layout.networks(params) else []), f"Of commit {commit[:12]}.", ""]
    )


def find_keys(root: Path, given: Mapping[int, Mapping[str, Any]]) -> dict[int, str]:
    """What each seed's evaluation rests on (``given``: its params.yaml). One worktree tells it for all, so that raw
    data are hashed once."""
    trees = Worktrees(root, [root / FOLDER / "keys"])
    keys = {}
    for seed, params in given.items():
        write_params(trees.paths[0], params)
        keys[seed] = lineage.key(trees.paths[0], TARGET)
    trees.remove()
    return keys


def _is_kept(root: Path, seed: int, key: str) -> bool:
    path = root / FOLDER / str(seed) / KEY
    return path.is_file() and path.read_text() == key


def _named(seeds: Collection[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


@flow(name="thinner-seeds", persist_result=False, validate_parameters=False)
def bring_up_to_date(
    root: Path, keys: dict[int, str], given: dict[int, dict[str, Any]], trees: Worktrees, begin: worktrees.Begin
) -> State:
    """Train, side by side; then evaluate one seed after the other. One that fails does not stop the others."""
    folders = dict(zip(keys, trees.paths, strict=True))
    with ended_together():
        if (environment := begin()) is None:
            return Failed(message=worktrees.NOT_BEGUN)
        futures = {}
        for seed, folder in folders.items():
            write_params(folder, given[seed])
            name = f"train seed {seed}"
            futures[seed] = train.with_options(name=name, task_run_name=name).submit(seed, folder, trees, environment)
        for future in futures.values():
            future.wait()
        for seed, folder in folders.items():
            if futures[seed].state.is_completed():
                name = f"evaluate seed {seed}"
                alone = evaluate.with_options(name=name, task_run_name=name)
                futures[seed] = alone.submit(root, seed, folder, keys[seed], environment)
                futures[seed].wait()  # before the next: evaluate measures speed
    return verdict({f"seed {seed}": future.state for seed, future in futures.items()}, "seeds")


@task(cache_policy=NO_CACHE, persist_result=False)
def train(seed: int, folder: Path, trees: Worktrees, environment: dict[str, str]) -> State:
    """All that evaluate needs."""
    upstream = next(node.upstream for node in lineage.graph(folder) if node.name == TARGET)
    return _bring(folder, upstream, seed, environment, trees.engine)


@task(cache_policy=NO_CACHE, persist_result=False)
def evaluate(root: Path, seed: int, folder: Path, key: str, environment: dict[str, str]) -> State:
    """Evaluate, and keep what it wrote."""
    state = _bring(folder, [TARGET], seed, environment)
    if state.is_completed() and lineage.key(folder, TARGET) != key:
        return Failed(message=f"seed {seed}: the data changed while it ran, so it is of neither. Run it again")
    if state.is_completed():
        kept = root / FOLDER / str(seed)
        partial = kept.with_name(f".partial-{seed}")
        shutil.rmtree(partial, ignore_errors=True)
        for name in (*KEPT, *(name for name in ALSO_KEPT if (folder / name).exists())):
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if (folder / name).is_dir() else shutil.copy
            copy(folder / name, partial / name)
        (partial / KEY).write_text(key)
        shutil.rmtree(kept, ignore_errors=True)
        partial.rename(kept)
    return state


def _bring(
    folder: Path, stages: Sequence[str], seed: int, environment: Mapping[str, str], engine: engines.Engine | None = None
) -> State:
    name, logger = f"claims seed {seed}", get_run_logger()
    if cancelled.is_set():
        return Cancelled(message=f"seed {seed}: cancelled before it started")
    began = time.monotonic()
    with console.stage_shown(name):
        if engine is None:
            failure = reproduce(folder, select(lineage.graph(folder), list(stages)), name, environment, logger)
        else:
            each = (worktrees.bring_up_to_date(folder, s, name, environment, logger, {}, engine=engine) for s in stages)
            failure = next(filter(None, each), None)
    if failure:
        return Failed(message=f"seed {seed}: {failure}")
    took = f"{time.monotonic() - began:.0f} s"
    logger.info("done in %s", took)
    return Completed(message=took)
