"""The `thinner` command: the Makefile's verbs, and a few more, for an activated environment."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
from rich.table import Table
from rich.text import Text

from flows import data, device, drift, remote
from flows.console import abbreviated, busy, console, print_comparison, print_verdicts
from tasks import integrity, lineage
from tasks.environment import of_the_disk, repository_root, set_environment
from thinner.config import load_params
from thinner.errors import UserError
from thinner.evidence import shipping
from thinner.files import whole

app = typer.Typer(
    name="thinner",
    help="Make a pretrained vision model small, with proof: fine-tune, distil, prune, export, evaluate.\n\n"
    "Run it in the repository's root. Choices are in params.yaml, the graph of stages in dvc.yaml.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


Machine = Literal["cpu", "gpu"]
Jobs = Annotated[int, typer.Option(min=1, help="How many stages may compute side by side, where the graph allows.")]

Engine = Annotated[
    str | None, typer.Option(help="Where stages run: local, or on a cluster of dask or ray. docs/engines.md")
]
Address = Annotated[str | None, typer.Option(help="Of the cluster that is up, such as tcp://HOST:8786.")]

Quiet = Annotated[bool, typer.Option("--quiet", help="Say only how it ended, and what went wrong.")]
EndFile = Annotated[
    Path | None,
    typer.Option("--json", help="Keep how it ended in this file: verdict, target, claims, stages, places."),
]


def _leave() -> NoReturn:
    if server := sys.modules.get("flows.server"):  # a flow was at work: its server may not have started
        server.leave(1)
    raise typer.Exit(1) from None


def _for_people(command: Callable[..., None]) -> Callable[..., None]:
    """What a person can mend is one message and exit code 1."""

    @wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except UserError as error:
            print(error, file=sys.stderr)
            _leave()
        except OSError as error:
            if not (words := of_the_disk(error)):
                raise
            print(words, file=sys.stderr)
            _leave()

    return guarded


@app.command()
@_for_people
def run(
    jobs: Jobs = 2,
    recipe: Annotated[
        str | None, typer.Option(help="Write this recipe into params.yaml first: thinner recipe.")
    ] = None,
    quiet: Quiet = False,
    file: EndFile = None,
) -> None:
    """Bring every stage up to date. Nothing to do takes seconds and trains nothing."""
    from flows import pipeline

    begin = None if recipe is None else partial(_apply_recipe, recipe, None)
    raise typer.Exit(pipeline.run(None, jobs, quiet, file, begin))


@app.command()
@_for_people
def init(
    photos: Annotated[str, typer.Argument(help="A folder of pictures or of tar shards, a .csv, or torchvision:NAME.")],
    machine: Annotated[Machine, typer.Option("--for", help="What it will be trained on.")] = "cpu",
    minutes: Annotated[float, typer.Option(min=1.0, help="How long a run may take.")] = 45.0,
    size: Annotated[str | None, typer.Option(help="How large the file may be, such as 200kB.")] = None,
    latency: Annotated[str | None, typer.Option(help="How long a picture may take here, such as 2ms.")] = None,
    start_from: Annotated[
        str | None, typer.Option("--from", help="A recipe, by name or file: what it says comes first.")
    ] = None,
) -> None:
    """Look at your pictures and write a params.yaml that fits them, with the reason beside each number."""
    from flows import amounts
    from flows import init as beginning
    from flows.plan import about

    root = repository_root()
    if size is not None and latency is not None:
        raise UserError("--size and --latency: one target at a time. Give one, and look at the other in the report")
    wishes = beginning.Wishes(
        device=machine,
        minutes=minutes,
        size_bytes=None if size is None else amounts.parse_bytes(size),
        latency_ms=None if latency is None else amounts.parse_ms(latency),
    )
    with busy() as telling:
        fitted = beginning.init(
            root, photos, wishes, start_from, lambda line: console.print(line, markup=False), telling
        )
    table = Table(box=None, pad_edge=False)
    for heading in ("key", "chosen", "why"):
        table.add_column(heading, overflow="fold")
    for row in beginning.shown(fitted.proposal):
        table.add_row(*(Text(cell) for cell in row))
    console.print()
    console.print(table)
    took = "" if fitted.seconds is None else f"A run takes about {about(fitted.seconds)} on this machine.\n"
    console.print(f"\n{took}{fitted.remark}", markup=False)
    console.print(
        f"\nparams.yaml is written; the one before it is {beginning.KEPT}"
        "\nNext     thinner plan    each stage's time and what lies on the disk\n         thinner run",
        markup=False,
    )


@app.command()
@_for_people
def recipe(
    name: Annotated[str | None, typer.Argument(help="Which; none: list them.")] = None,
    source: Annotated[
        str | None, typer.Option(help="Your pictures instead of the recipe's, such as folder:data/raw/photos.")
    ] = None,
) -> None:
    """Write a tested set of choices for other data into params.yaml; without a name, list what there is."""
    if name is not None:
        _apply_recipe(name, source)
        console.print("\nNext     python -m tasks.check    what is wrong, if anything\n         thinner run")
        return
    if source is not None:
        raise UserError("--source: of which recipe? Give its name, for example: thinner recipe photos --source ...")
    from flows import recipes

    root = repository_root()
    table = Table(box=None, pad_edge=False)
    for heading in ("recipe", "for"):
        table.add_column(heading)
    for each in recipes.names(root):
        table.add_row(each, recipes.load(root, each).title)
    console.print(table)


@app.command("set")
@_for_people
def set_values(
    pairs: Annotated[list[str], typer.Argument(metavar="KEY=VALUE...", help="Values are YAML, as in params.yaml.")],
) -> None:
    """Change keys of params.yaml, checked and with its comments: thinner set distill.temperature=2
    'prune.target={params: 0.3}'."""
    from flows import recipes

    changed = recipes.write(repository_root(), recipes.read_pairs(pairs), "thinner set")
    if not changed:
        console.print("params.yaml has it.")
        return
    console.print("\n".join(["params.yaml:", *(f"  {line}" for line in changed)]), markup=False)
    console.print("\nNext     thinner plan    what that runs, and how long it takes\n         thinner run")


def _apply_recipe(name: str, source: str | None) -> None:
    from flows import recipes

    root = repository_root()
    changed = recipes.apply(root, name, source=source)
    console.print(recipes.load(root, name).note.strip())
    console.print(
        "\n".join(["", "params.yaml:", *(f"  {line}" for line in changed)]) if changed else "\nparams.yaml has it."
    )


@app.command()
@_for_people
def stage(
    name: Annotated[str, typer.Argument(help="A stage of dvc.yaml, for example distill.")],
    jobs: Jobs = 2,
    quiet: Quiet = False,
    file: EndFile = None,
) -> None:
    """Bring one stage, and what it needs, up to date."""
    from flows import pipeline

    raise typer.Exit(pipeline.run([name], jobs, quiet, file))


@app.command()
@_for_people
def status() -> None:
    """Say of each stage whether it is up to date, and if not, why."""
    root = repository_root()
    data = load_params().data
    lineage.check_data(data.root, data.source)
    if said := lineage.mend(root):
        console.print(said, style="yellow", markup=False)
    nodes = lineage.graph(root)
    why = lineage.all_reasons(root, [node.name for node in nodes])
    stale: set[str] = set()
    table = Table(box=None, pad_edge=False)
    for heading in ("stage", "state", "why"):
        table.add_column(heading)
    for node in nodes:
        if why[node.name]:
            stale.add(node.name)
            table.add_row(node.name, "out of date", abbreviated(why[node.name]))
        elif after := sorted(stale.intersection(node.upstream)):
            # Its inputs have not changed yet, but will: DVC sees that only once the upstream stage has run.
            stale.add(node.name)
            table.add_row(node.name, "out of date", f"follows {', '.join(after)}")
        else:
            table.add_row(node.name, "up to date", "")
    console.print(table)


@app.command()
@_for_people
def plan(
    jobs: Jobs = 2,
    fresh: Annotated[bool, typer.Option("--fresh", help="As if nothing were there yet.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """Say what a run would do, how long it takes on this machine, and what lies on the disk afterwards. Runs nothing
    but a few timed steps."""
    from flows import plan as planning

    root = repository_root()
    params = load_params(deep=True)
    lineage.check_data(params.data.root, params.data.source)
    made = planning.make_plan(root, params, jobs, fresh=fresh)
    if as_json:
        print(json.dumps(made.as_json(), indent=2))
    else:
        planning.print_plan(made)


@app.command()
@_for_people
def verify() -> None:
    """Read every result and its copy in DVC's cache again; bring back, or have made again, what a disk has damaged."""
    from flows import pipeline

    root = repository_root()
    with pipeline.only_run(root), busy() as telling:
        if said := lineage.mend(root):
            console.print(said, style="yellow", markup=False)
        found = integrity.mend_all(root, lambda path: telling(f"reading {path}"))
    for damage in found:
        console.print(str(damage), style="yellow" if damage.restored else "red", markup=False)
    lost = [damage.path for damage in found if not damage.restored]
    outs, others = integrity.looked_at(root)
    for path, why in others.items():
        if not any(one == path or one.startswith(f"{path}/") for one in lost):  # that has been said
            console.print(f"{path} {why}", style="yellow", markup=False)
    if outs and not found:
        console.print(f"{len(outs)} results of {len({out.stage for out in outs})} stages: all as they were written")
    if others or lost:
        console.print("\nNext     thinner run    make again what is missing")
        raise typer.Exit(1)


@app.command()
@_for_people
def sync() -> None:
    """Send what MLflow's server missed while it was away; the next run does that, too."""
    from tasks.record import mlflow_client

    repository_root()
    set_environment()
    sent = mlflow_client.sync()
    there = mlflow_client.shown_uri()
    console.print(f"{sent} runs that {there} had missed are in it now" if sent else "Nothing to send")


@app.command()
@_for_people
def report(
    everything: Annotated[bool, typer.Option("--all", help="Every candidate, every batch that was timed.")] = False,
) -> None:
    """Show the last results, the networks that matter as a table, and where the whole report is."""
    root = repository_root()
    if not (root / "reports" / "metrics.json").is_file():
        raise UserError("there is no reports/metrics.json yet. Make it: thinner run")
    from flows.ending import print_results

    print_results(root, everything)


@app.command()
@_for_people
def claims(
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 if one of them is not proven.")] = False,
    seeds: Annotated[
        str | None,
        typer.Option(help="Such as 0,1,2: run what is missing of these seeds, up to evaluate; judge over all of them."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="How many of --seeds train side by side; 1, with an engine one per worker."),
    ] = None,
    also: Annotated[
        list[Path] | None,
        typer.Option(
            "--with",
            help="Another working copy, run with another seed and else the same params.yaml; the verdict is over all.",
        ),
    ] = None,
    file: Annotated[Path | None, typer.Option("--json", help="Keep the verdicts in this file.")] = None,
    page: Annotated[
        Path | None, typer.Option("--page", help="With --seeds: write verdicts and each seed's networks, as Markdown.")
    ] = None,
    engine: Engine = None,
    address: Address = None,
) -> None:
    """Show the verdict on each claim of params.yaml, as of the last report or over several seeds. A schedule can gate
    on --strict."""
    root = repository_root()
    if seeds is None and workers is not None:
        raise UserError("--workers: how many of --seeds train side by side. Give --seeds too, for example 0,1,2")
    if seeds is not None and also:
        raise UserError("--seeds and --with: give one of them. --seeds runs the seeds here, --with reads other copies")
    if seeds is None and (engine is not None or address is not None):
        raise UserError("--engine: where --seeds train. Give --seeds too, for example 0,1,2")
    if seeds is None and page is not None:
        raise UserError("--page: shows the networks of several seeds. Give --seeds too, for example 0,1,2")
    from flows import ending

    for option, place in (("--json", file), ("--page", page)):
        if place is not None:
            ending.check_place(option, place)
    if seeds is None:
        verdicts = _last_verdicts(root, also or [])
    else:
        verdicts = _verdicts_over(root, seeds, workers, page, engine, address)
    print_verdicts(verdicts)
    proven = sum(verdict["outcome"] == "proven" for verdict in verdicts.values())
    console.print(f"{proven} of {len(verdicts)} proven")
    if file is not None:
        _write(file, json.dumps(verdicts, indent=2) + "\n")
    code = 1 if strict and proven < len(verdicts) else 0
    if seeds is not None:
        from flows import server

        code = server.leave(code)
    raise typer.Exit(code)


def _write(path: Path, text: str) -> None:
    """Whole or not at all, where it is a file and no pipe or device; behind a link."""
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
    else:
        whole.write_text(Path(os.path.realpath(path)), text)


def _last_verdicts(root: Path, also: list[Path]) -> dict[str, Any]:
    path = root / "reports" / "claims.json"
    if not path.is_file():
        raise UserError("there is no reports/claims.json yet. Make it: thinner run")
    verdicts: dict[str, Any] = shipping.read_verdicts(path)
    params = load_params()
    if params.claims != [verdict["claim"] for verdict in verdicts.values()]:
        raise UserError("claims: params.yaml has others than were judged. Judge them: thinner stage report")
    if also:
        from tasks.report import judge_runs

        return judge_runs([root, *also], params.claims, params.run.seed)
    return verdicts


def _verdicts_over(
    root: Path, text: str, workers: int | None, page: Path | None, engine: str | None, address: str | None
) -> dict[str, Any]:
    from flows import engines
    from flows import seeds as over
    from flows.worktrees import head, parse_seeds

    chosen = parse_seeds(text)
    choice = engines.choose(engine, address)
    params = load_params()
    if not params.claims:
        raise UserError("claims: params.yaml has none, so there is nothing to judge. docs/claims.md has the grammar")
    try:
        folders = over.evaluate_seeds(root, params, chosen, workers, choice)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    from tasks.report import judge_runs

    verdicts = judge_runs(folders, params.claims, params.run.seed)
    if len(chosen) == 1:
        console.print("1 seed: what another seed would change is not known", style="yellow")
    if page is not None:
        text = over.render(params, dict(zip(chosen, folders, strict=True)), verdicts, head(root))
        _write(page, text)
    return verdicts


@app.command()
@_for_people
def search(
    file: Annotated[Path, typer.Argument(help="What to search, a YAML file: docs/search.md.")],
    workers: Annotated[
        int | None, typer.Option(min=1, help="How many trials run side by side; 1, with an engine one per worker.")
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            envvar="THINNER_SEARCH_STORAGE",
            show_envvar=True,
            help="Address of a database that several machines share, such as postgresql://...; else a file here.",
        ),
    ] = None,
    trials_only: Annotated[
        bool, typer.Option("--trials-only", help="No re-test at the end: for machines that help another one.")
    ] = False,
    only_report: Annotated[
        bool, typer.Option("--report", help="Only write page and figure, from what was run.")
    ] = False,
    engine: Engine = None,
    address: Address = None,
) -> None:
    """Which values of params.yaml make the best network? Trials by Optuna; the best are re-tested with other seeds."""
    from flows import engines
    from flows import search as searching

    choice = engines.choose(engine, address)
    try:
        code = searching.start(file, workers, storage, report=only_report, retest=not trials_only, choice=choice)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    from flows import server

    raise typer.Exit(code if only_report else server.leave(code))


@app.command()
@_for_people
def compare(
    runs: Annotated[
        list[str] | None, typer.Argument(help="Names or ids of MLflow runs; none: the last two pipeline runs.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Also the metrics of each candidate.")] = False,
) -> None:
    """Show runs side by side, as MLflow's compare page does, and test whether their accuracies differ."""
    repository_root()
    set_environment()
    from tasks.record.compare import compare as lay_side_by_side

    print_comparison(lay_side_by_side(runs or []), everything)


@app.command()
@_for_people
def models() -> None:
    """List what is in the model registry: which version is champion, which is challenger, and why."""
    repository_root()
    set_environment()
    from tasks.record import registry

    params = load_params()
    found = registry.versions(params)
    if not found:
        raise UserError(f"{registry.model_name(params)}: nothing is registered yet. thinner run, then thinner promote")
    console.print(registry.model_name(params), style="bold")
    table = Table(box=None, pad_edge=False)
    for heading in found[0]:
        table.add_column(heading)
    for row in found:
        table.add_row(*row.values())
    console.print(table)


@app.command()
@_for_people
def promote(
    other_images: Annotated[
        bool, typer.Option("--other-images", help="The champion was tested on other images: the claims alone decide.")
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Also what was rolled back, or has a later challenger beside it.")
    ] = False,
) -> None:
    """Make the new network champion if all claims hold and it is not worse than the old one, else exit with 1."""
    root = repository_root()
    set_environment()
    from tasks.record import registry

    params = load_params()
    _print_decision(registry.promote(root, params, other_images=other_images, again=again))
    console.print(f"\nNext     thinner bundle {params.ship.candidate}    a folder that runs elsewhere", markup=False)


@app.command()
@_for_people
def rollback(why: Annotated[str, typer.Argument(help="The reason, which is written on the version.")]) -> None:
    """Make the champion before this one champion again."""
    repository_root()
    set_environment()
    from tasks.record import registry

    _print_decision(registry.rollback(load_params(), why))


def _print_decision(decision: Any) -> None:
    what = "is champion" if decision.promoted else "was not promoted"
    console.print(f"{decision.model} version {decision.version} {what}: {decision.reason}", markup=False)
    if not decision.promoted:
        raise typer.Exit(1)


@app.command()
@_for_people
def ui() -> None:
    """MLflow and Prefect in the browser, on this machine only; Ctrl-C ends both."""
    from flows import serve as servers

    raise typer.Exit(servers.ui())


@app.command()
@_for_people
def serve() -> None:
    """Run the nightly schedule of prefect.yaml: server and worker on this machine; Ctrl-C ends both."""
    from flows import serve as servers

    raise typer.Exit(servers.serve())


@app.command()
@_for_people
def bundle(
    candidate: Annotated[
        str | None, typer.Argument(help="Which network; none: the one that ship.candidate names.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The folder to write; else bundles/CANDIDATE.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace the bundle that is there.")] = False,
    bench: Annotated[
        bool, typer.Option("--bench", help="With a program that times all networks on another machine.")
    ] = False,
) -> None:
    """Make a folder and a zip of a network that run elsewhere, with numpy, onnxruntime and pillow alone."""
    root = repository_root()
    params = load_params()
    from tasks.bundle import make_bundle

    name = candidate or params.ship.candidate
    made = make_bundle(
        root, params, name, out,
        replace=replace, bench=bench, say=lambda line: console.print(line, style="yellow", markup=False),
    )  # fmt: skip
    if made.outdated:
        console.print(
            f"{', '.join(made.outdated)}: out of date, which the card says. Its numbers are of an earlier state",
            style="yellow",
            markup=False,
        )
    console.print(
        f"{shown(made.folder)} and {shown(made.archive)}: {made.pictures} golden pictures, logits within "
        f"{made.difference:.1e} of {name}'s\n\nNext     python {shown(made.folder)}/predict.py photo.jpg",
        markup=False,
    )


@app.command()
@_for_people
def predict(
    images: Annotated[list[Path], typer.Argument(help="Pictures, or folders of pictures.")],
    candidate: Annotated[
        str,
        typer.Option(help="A network that the pipeline made: finetune, scratch, distill, prune, prune_onnx, ..."),
    ] = "prune",
    at_least: Annotated[
        float | None,
        typer.Option(metavar="PERCENT", help="Answer only where that share of such answers is right: 95, 98 or 99."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per picture instead of a table.")] = False,
) -> None:
    """Name the class of pictures with one of the candidates. Confidence is the softmax probability, with the
    temperature that evaluate fitted on the validation split."""
    root = repository_root()
    files = find_pictures(images)
    folder = candidate_folder(root, candidate)
    from thinner.measure import operating
    from thinner.network import Prediction, UnreadablePictureError, load

    network = load(folder)
    if network.temperature is None:
        print("confidences are not calibrated: evaluate has not run. Run it: thinner stage evaluate", file=sys.stderr)
    point = None if at_least is None else operating.choose(network.operating_points, at_least, candidate)
    if point is not None and point.log_odds is None:
        print(
            f"--at-least {at_least:g}: of no confidence of {candidate} could so much be shown with "
            f"{point.validation_images:,} validation images, so every answer is 'unsure'. More labels may help, or a "
            "better network",
            file=sys.stderr,
        )
    found: dict[Path, Prediction] = {}
    unreadable: dict[Path, str] = {}
    for path in files:
        try:
            found[path] = network.predict(path)
        except UnreadablePictureError as error:
            unreadable[path] = error.reason

    def answer(path: Path) -> str | None:
        """The class; None where the network is not as sure as was asked."""
        return found[path].label if point is None or point.covers(found[path].log_odds) else None

    if as_json:
        for path in files:
            row: dict[str, object] = {"image": shown(path)}
            if path in unreadable:
                row["error"] = unreadable[path]
            else:
                row |= {"label": answer(path), "confidence": found[path].confidence}
            print(json.dumps(row))
    table = Table(box=None, pad_edge=False)
    table.add_column("picture", overflow="fold")
    table.add_column("class", overflow="fold")
    table.add_column("confidence", justify="right")
    for path in files:
        name = Text(shown(path))  # which may have brackets in it, rich's markup
        if path in unreadable:
            table.add_row(name, Text(f"unreadable: {unreadable[path]}"), "")
        else:
            table.add_row(name, Text(answer(path) or "unsure"), f"{found[path].confidence:.1%}")
    if not as_json:
        console.print(table)
    if not found:
        raise typer.Exit(1)


@app.command()
@_for_people
def watch(
    pictures: Annotated[list[Path], typer.Argument(help="Folders of pictures that came in since, or pictures.")],
    candidate: Annotated[
        str | None, typer.Option(help="The network that is in use; none: the one that ship.candidate names.")
    ] = None,
    false_alarms: Annotated[
        float, typer.Option(metavar="PERCENT", help="In how many looks at unchanged pictures a drift may be seen.")
    ] = 1.0,
    label: Annotated[int, typer.Option(min=1, help="How many pictures are chosen to be labelled.")] = 50,
    out: Annotated[Path, typer.Option(help="Where list and page are written.")] = drift.FOLDER,
    strict: Annotated[bool, typer.Option("--strict", help=f"Exit with {drift.DRIFTED} where there is drift.")] = False,
    file: Annotated[Path | None, typer.Option("--json", help="Keep the findings in this file.")] = None,
) -> None:
    """Say whether pictures have drifted from validation's, at a stated rate of false alarms, and which of them are most
    worth a label."""
    root = repository_root()
    params = load_params()
    name = candidate or params.ship.candidate
    place = candidate_folder(root, name)
    files = find_pictures(pictures)
    found = drift.watch(root, params, files, name, place, false_alarms / 100, label, out)
    drift.print_watched(found, len(files))
    if file is not None:
        drift.write_json(file, found)
    raise typer.Exit(drift.DRIFTED if strict and found.drift.drifted else 0)


def shown(path: str | os.PathLike[str]) -> str:
    """A name that can be printed: what is not UTF-8 in it, or would move a terminal's cursor, is escaped."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def find_pictures(paths: list[Path]) -> list[Path]:
    """The files named, and all pictures in the folders named, sorted. What is passed over there is said on stderr.

    Raises:
        UserError: a path does not exist, or a folder has no pictures.
    """
    found: list[Path] = []
    for path in paths:
        if os.path.isdir(path):  # Path's raises where a folder on the way is closed
            found += _inside(path)
            continue
        try:
            path.stat()
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{shown(path)}: no such file or folder") from None
        except OSError:  # its row says why it cannot be read
            pass
        found.append(path)
    return found


def _inside(folder: Path) -> list[Path]:
    """The pictures below ``folder``, as prepare looks for them: hidden files are none, links to folders are not
    followed."""
    from thinner.data.sources import EXTENSIONS, kinds

    pictures: list[Path] = []
    others: list[str] = []
    notes: list[str] = []

    def failed(error: OSError) -> None:
        notes.append(f"{shown(error.filename)}: cannot be read ({error.strerror})")

    for top, folders, files in os.walk(folder, onerror=failed):
        folders[:] = sorted(name for name in folders if name[0] != ".")
        for name in folders:
            if os.path.islink(place := os.path.join(top, name)):
                notes.append(f"{shown(place)}: a link to a folder is not followed. Name it too: {shown(place)}/")
        for name in files:
            if name[0] != ".":
                picture = name.lower().endswith(EXTENSIONS)
                pictures.append(Path(top, name)) if picture else others.append(name)
    if others:
        notes.append(f"{shown(folder)}: files of other kinds: {kinds(others)}")
    if not pictures:
        why = f"; {'; '.join(notes)}" if notes else ""
        raise UserError(f"{shown(folder)}: no pictures in this folder ({', '.join(EXTENSIONS)}){why}")
    for note in notes:
        print(f"note: passed over: {note}", file=sys.stderr)
    return sorted(pictures)


def candidate_folder(root: Path, name: str) -> Path:
    """Where the candidate lies: data/NAME, data/prune_also/SOURCE for prune_SOURCE, data/export/NAME for an export, or
    data/quantize/NAME.

    Raises:
        UserError: it has not been made; names those that have.
    """
    from tasks.record import candidates

    made = candidates.made(root)
    if name not in made:
        choices = f"Choose one of: {', '.join(made)}" if made else "None has been made yet: thinner run"
        raise UserError(f"no candidate '{name}'. {choices}")
    return made[name]


app.add_typer(data.app(_for_people), name="data")
app.add_typer(device.app(_for_people), name="device")
app.add_typer(remote.app(_for_people), name="remote")
app.command()(_for_people(remote.push))
app.command()(_for_people(remote.pull))

if __name__ == "__main__":
    app()
