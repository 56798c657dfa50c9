"""A study: variants of params.yaml, each with several seeds, side by side, through DVC.

    python -m flows.sweep studies/losses.yaml --workers 2     run what is missing, then write table and figure
    python -m flows.sweep studies/losses.yaml --report        only the table and the figure

Each run is `dvc repro TARGET` in a git worktree of this repository's HEAD that shares its DVC cache. So a teacher that
several variants share is trained once; a study that was stopped goes on where it was; and a row of the table says by a
key whether what it rests on (code, data, parameters) is still what is here. docs/studies.md tells the rest.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Completed, Failed
from pydantic import Field, model_validator

from flows import console, engines, recipes, server
from flows.worktrees import (
    NOT_BEGUN,
    Begin,
    Worktrees,
    bring_up_to_date,
    cancelled,
    conduct,
    ended_together,
    mistakes,
    parse_seeds,
    refuse_changes,
    verdict,
    with_values,
    write_params,
)
from tasks import lineage, processes
from tasks.environment import repository_root, set_environment
from thinner.errors import UserError
from thinner.files import whole
from thinner.params import Section

# step: of the best validation, or the chosen round of prune. macs: multiply-adds per image of the network; share: of
# those of the network that was pruned, of prune only
COLUMNS = ("variant", "seed", "target", "value", "step", "macs", "share", "seconds", "commit", "key")
_WORDS = ("variant", "target", "commit", "key")
# imported before the first run: while runs go on for hours, a person edits the tree, and modules of two ages do not fit
_WHAT_READS_RESULTS = ("thinner.networks.checkpoint", "thinner.measure.profiling", "thinner.evidence.study")
FOLDER = "docs/studies"  # tables, figures and numbers: a study is a page of the documentation


class Variant(Section):
    """What differs from params.yaml, and where the result is read if not in the study's target."""

    target: str | None = None
    set: dict[str, Any] = Field(default_factory=dict)


class Study(Section):
    """A study's file; docs/studies.md explains each key."""

    title: str
    finding: str = ""  # what a reader should take from the table; written by a person once it is there
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    target: str
    measure: Literal["val_accuracy"]
    baseline: str
    rival: str | None = None  # a second variant that all are compared with, on the page
    recipe: str | None = None  # recipes/NAME.yaml, whose values come before those of `set`
    set: dict[str, Any] = Field(default_factory=dict)
    variants: Annotated[dict[str, Variant], Field(min_length=1)]

    @model_validator(mode="after")
    def _fits_itself(self) -> Study:
        for key in ("baseline", "rival"):
            name = getattr(self, key)
            if name is not None and name not in self.variants:
                raise ValueError(f"{key}: '{name}' is no variant. Choose one of: {', '.join(self.variants)}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: {self.seeds} has one twice. Give each once")
        return self


@dataclass(frozen=True)
class Run:
    """One variant with one seed."""

    variant: str
    seed: int
    target: str
    params: dict[str, Any]  # all of params.yaml

    @property
    def name(self) -> str:
        return f"{self.variant} seed {self.seed}"


# ---------------------------------------------------------------------------------------------------- reading


def load_study(path: Path, root: Path) -> Study:
    """The study in ``path``. Raises UserError with every mistake, those in the variants' parameters among them."""
    try:
        study = recipes.read_own(path, Study)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file. docs/studies.md says how to write one") from None
    wrong = list(_mistakes(study, root))
    if wrong:
        raise UserError("\n".join([f"{path}: {len(wrong)} mistake(s)", *(f"  {line}" for line in wrong)]))
    return study


def _mistakes(study: Study, root: Path) -> Iterator[str]:
    stages = [node.name for node in lineage.graph(root)]
    if study.recipe is not None:
        try:
            recipes.load(root, study.recipe)
        except UserError as error:
            yield str(error)
            return
    for name, variant in study.variants.items():
        target = variant.target or study.target
        if target not in stages:
            yield f"variants.{name}: unknown target '{target}'. Choose one of: {', '.join(stages)}"
        if not name.replace("_", "").replace("-", "").isalnum():
            yield f"variants.{name}: a name has letters, digits, - and _"
        if "run.seed" in {**study.set, **variant.set}:
            yield f"variants.{name}: run.seed is set by `seeds`. Take it out of `set`"
            continue
        try:
            params = overridden(root, study, variant, study.seeds[0])
        except UserError as error:
            yield f"variants.{name}: {error}"
            continue
        yield from (f"variants.{name}: {line}" for line in mistakes(root, params))


def overridden(root: Path, study: Study, variant: Variant, seed: int) -> dict[str, Any]:
    """params.yaml with the values of the study's recipe, of the study, the variant and the seed in it."""
    recipe = {} if study.recipe is None else recipes.load(root, study.recipe).set
    return with_values(root, {**recipe, **study.set, **variant.set, "run.seed": seed})


def plan(study: Study, root: Path, only: Sequence[str] = (), seeds: Sequence[int] = ()) -> list[Run]:
    """All runs in the order in which they start: one per seed first, which make what the others share; then seed by
    seed, so that a worktree changes its data seldom."""
    for chosen, known, what in ((only, list(study.variants), "variant"), (seeds, study.seeds, "seed")):
        for name in chosen:
            if name not in known:
                raise UserError(f"--{'only' if what == 'variant' else 'seeds'}: no {what} '{name}' in this study")
    runs = [
        Run(name, seed, variant.target or study.target, overridden(root, study, variant, seed))
        for seed in (seeds or study.seeds)
        for name, variant in study.variants.items()
        if not only or name in only
    ]
    # the furthest down the graph makes most of what is shared
    depth = {node.name: number for number, node in enumerate(lineage.graph(root))}
    firsts = {seed: max((r for r in runs if r.seed == seed), key=lambda r: depth[r.target]).name for seed in study.seeds
              if any(r.seed == seed for r in runs)}  # fmt: skip
    return sorted(runs, key=lambda run: firsts[run.seed] != run.name)


# ---------------------------------------------------------------------------------------------------- results


class Results:
    """`docs/studies/NAME.csv`: a row per finished run, rewritten whole after each."""

    def __init__(self, path: Path, study: Study) -> None:
        self.path, self._study, self._guard = path, study, threading.Lock()
        self._rows: dict[tuple[str, int], dict[str, Any]] = {}
        if path.exists():
            # a variant may be called 8, or nan: only cells of numbers may hold none
            words, empty = dict.fromkeys(_WORDS, str), {name: [""] for name in COLUMNS if name not in _WORDS}
            table = pd.read_csv(path, dtype=words, keep_default_na=False, na_values=empty)
            for row in _records(table):
                if row["variant"] in study.variants and row["seed"] in study.seeds:
                    self._rows[row["variant"], row["seed"]] = row

    def key_of(self, run: Run) -> str | None:
        row = self._rows.get((run.variant, run.seed))
        return None if row is None else str(row["key"])

    def add(self, run: Run, row: dict[str, Any]) -> None:
        with self._guard:
            self._rows[run.variant, run.seed] = row
            self._write()

    def drop(self, run: Run) -> None:
        """What it rested on has changed: it is no result any more."""
        with self._guard:
            self._rows.pop((run.variant, run.seed), None)
            self._write()

    def frame(self) -> pd.DataFrame:
        places = {name: number for number, name in enumerate(self._study.variants)}
        rows = sorted(self._rows.values(), key=lambda row: (places[row["variant"]], row["seed"]))
        return pd.DataFrame(rows, columns=list(COLUMNS))

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        table = self.frame().astype({"macs": "Int64"})  # a count, or nothing
        whole.write(self.path, lambda partial: table.to_csv(partial, index=False))


def read_result(folder: Path, run: Run, measure: str) -> dict[str, Any]:
    """The best validation of the run's target, as `fit` chose it; of prune, the round that it chose."""
    if run.target == "prune":
        rounds = pd.read_csv(folder / "reports/prune/rounds.csv")
        chosen = rounds[rounds["chosen"]].iloc[0]
        macs, share = int(chosen["macs"]), float(chosen["macs"] / rounds.iloc[0]["macs"])
        return {"value": float(chosen["accuracy_after"]), "step": int(chosen["round"]), "macs": macs, "share": share}
    best = best_validation(folder, run.target, run.params)
    return {"value": float(best[measure]), "step": int(best["step"]), **_macs(folder / "data" / run.target)}


def best_validation(folder: Path, stage: str, params: dict[str, Any]) -> pd.Series[Any]:
    """The row of the stage's history.csv whose weights were kept."""
    history = pd.read_csv(folder / "reports" / stage / "history.csv")
    decides = f"val_{params['imbalance']['choose_by']}"
    return history.sort_values([decides, "val_loss"], ascending=[False, True]).iloc[0]


def _macs(folder: Path) -> dict[str, int]:
    """Of the checkpoint in ``folder``, if there is one."""
    from thinner.measure import profiling  # torch takes seconds, and most of what this program does needs none
    from thinner.networks import checkpoint

    try:
        made = checkpoint.load(folder)
    except UserError:  # a stage that makes no network, such as teach; what it says is the stage's
        return {}
    return {"macs": profiling.count_macs(made.model, made.preprocessing.shape)}


# ---------------------------------------------------------------------------------------------------- running


@flow(name="thinner-sweep", persist_result=False, validate_parameters=False)
def sweep(study: Study, runs: list[Run], results: Results, trees: Worktrees, begin: Begin) -> State:
    """Every run that is not up to date; one that fails does not stop the others."""
    shared: dict[str, threading.Lock] = {}
    with ended_together():
        if (environment := begin()) is None:
            return Failed(message=NOT_BEGUN)
        futures = {
            one.name: run.with_options(name=one.name, task_run_name=one.name).submit(
                one, study, results, trees, environment, shared
            )
            for one in runs
        }
        for future in futures.values():
            future.wait()
    return verdict({name: future.state for name, future in futures.items()}, "runs")


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]


@task(cache_policy=NO_CACHE, persist_result=False)
def run(
    one: Run, study: Study, results: Results, trees: Worktrees, environment: dict[str, str],
    shared: dict[str, threading.Lock],
) -> State:  # fmt: skip
    """One variant with one seed. Ends as `Cached` (the row in the results still holds), `Completed` or `Failed`."""
    logger = get_run_logger()
    with trees.borrow(one.seed) as folder:
        if cancelled.is_set():
            return Cancelled(message=f"{one.name}: cancelled before it started")
        write_params(folder, one.params)
        key = lineage.key(folder, one.target)
        known = results.key_of(one)
        if known == key:
            logger.info("up to date")
            return Completed(name="Cached", message="up to date")
        if known is not None:
            results.drop(one)
        began = time.monotonic()
        with console.stage_shown(one.name):
            failure = bring_up_to_date(folder, one.target, one.name, environment, logger, shared, engine=trees.engine)
        if failure:
            return Failed(message=f"{one.name}: {failure}")
        if lineage.key(folder, one.target) != key:
            return Failed(message=f"{one.name}: the data changed while it ran, so it is of neither. Run it again")
        row = read_result(folder, one, study.measure)
        seconds = round(time.monotonic() - began)
        results.add(
            one,
            {"variant": one.variant, "seed": one.seed, "target": one.target, **row, "seconds": seconds,
             "commit": trees.commit[:12], "key": key},
        )  # fmt: skip
        logger.info(f"{study.measure} {row['value']:.2%} after {seconds} s")
        return Completed(message=f"{row['value']:.4f}")


def start(
    path: Path, workers: int | None, only: Sequence[str], seeds: Sequence[int], choice: engines.Choice | None = None
) -> int:
    """The whole life of a sweep. Returns the exit code."""
    root = repository_root()
    study = load_study(path, root)
    refuse_changes(root, "A study is of a commit")
    if choice is not None:
        engines.check(choice, root)
    runs = plan(study, root, only, seeds)
    results = Results(root / FOLDER / f"{path.stem}.csv", study)
    folder = root / ".thinner" / "sweeps" / path.stem

    busy = "this study is running already. Wait for it, or stop it with Ctrl-C there"
    with processes.only_one(folder / "lock", busy), engines.connected(choice, root) as engine:
        sources = {(run.params["data"]["root"], run.params["data"]["source"]) for run in runs}
        count = min(engines.side_by_side(engine, workers), len(runs))
        trees = Worktrees(root, [folder / f"worker-{number}" for number in range(count)], sources, engine=engine)
        state = conduct(
            root, f"study {path.stem}", count, trees, sweep, study, runs, results, modules=_WHAT_READS_RESULTS
        )
    if not results.frame().empty:
        write_report(path, root)
    if not state.is_completed():
        console.console.print(state.message or "failed", style="red", markup=False)
        console.console.print(f"What was finished is kept. Mend it and run again: python -m flows.sweep {path}")
    return 0 if state.is_completed() else 1


# ---------------------------------------------------------------------------------------------------- report


def write_report(path: Path, root: Path) -> None:
    """`docs/studies/NAME.md` and `.svg` out of the CSV, and the table on the terminal."""
    from thinner.evidence import study as studies

    study = load_study(path, root)
    place = root / FOLDER / path.stem
    rows = Results(Path(f"{place}.csv"), study).frame()
    if rows.empty:
        raise UserError(f"{place}.csv has no finished run. Run it: python -m flows.sweep {path}")
    summary = studies.summarise(rows, study.baseline)
    studies.draw(rows, summary, study.title, "accuracy on the validation split", Path(f"{place}.svg"))
    Path(f"{place}.md").write_text(render(study, path, rows, summary), encoding="utf-8")
    console.console.print(console.study_table(_records(summary), study.title, study.baseline))
    console.console.print(
        f"\nTable    {place.relative_to(root)}.md\nFigure   {place.relative_to(root)}.svg\n"
        f"Numbers  {place.relative_to(root)}.csv\n\n"
        "Next     git add docs/studies         keep them: a study is of a commit\n"
        "         make ui                      every run's learning curve in MLflow",
        markup=False,
    )


def render(study: Study, path: Path, rows: pd.DataFrame, summary: pd.DataFrame) -> str:
    from thinner.evidence import study as studies

    second = studies.summarise(rows, study.rival) if study.rival else None
    both = f"`{study.baseline}`" + (f" and to `{study.rival}`" if study.rival else "")
    missing = len(study.seeds) * len(study.variants) - len(rows)
    commits = ", ".join(sorted(set(rows["commit"])))
    hours = rows["seconds"].sum() / 3600
    return (
        f"<!-- written by `python -m flows.sweep {path.as_posix()} --report`; do not edit -->\n"
        f"# {study.title}\n\n"
        f"{studies.render_markdown(summary, study.baseline, len(study.seeds), second)}\n"
        f"![A dot per seed, a bar per mean]({path.stem}.svg)\n\n"
        + (f"{study.finding.strip()}\n\n" if study.finding else "")
        + f"{_measured(rows)} A seed changes all that is drawn: "
        "the splits, the teacher, the first weights, the order of images. Variants of one seed share their splits and "
        f"their teacher, so differences to {both} are taken seed by seed: mean, 95 % interval of Student's "
        f"t, p adjusted by Holm for {int(summary['p'].notna().sum())} variants.\n\n"
        f"{len(rows)} runs of commit {commits}, {hours:.1f} hours of runs in all"
        + (f"; {missing} runs are missing" if missing else "")
        + f". To repeat: `python -m flows.sweep {path.as_posix()}`\n"
    )


def _measured(rows: pd.DataFrame) -> str:
    text = "Accuracy on the validation split, of the weights that validated best"
    return text + ("; of `prune`, of the round that it chose." if rows["share"].notna().any() else ".")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.sweep", description="Run a study: variants x seeds.")
    parser.add_argument("study", type=Path, help="a YAML file, for example studies/losses.yaml")
    parser.add_argument("--workers", type=int, help="runs side by side (1; with an engine: one per worker)")
    parser.add_argument("--engine", help="where stages run: local, dask or ray (local); docs/engines.md")
    parser.add_argument("--address", help="of the cluster that is up, such as tcp://HOST:8786")
    parser.add_argument("--only", action="append", default=[], help="only these variants, comma between them")
    parser.add_argument("--seeds", help="only these, for example 0,1,2")
    parser.add_argument("--report", action="store_true", help="only write table and figure from what was run")
    options = parser.parse_args()
    try:
        root = repository_root()
        set_environment(root)
        if options.report:
            write_report(options.study, root)
            return 0
        seeds = [] if options.seeds is None else parse_seeds(options.seeds)
        only = [name.strip() for words in options.only for name in words.split(",")]
        choice = engines.choose(options.engine, options.address)
        workers = None if options.workers is None else max(1, options.workers)
        return server.leave(start(options.study, workers, only, seeds, choice))
    except UserError as error:
        print(error, file=sys.stderr)
        return server.leave(2)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
