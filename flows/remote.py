"""`thinner remote ...`, `thinner push` and `thinner pull`: results that travel between clones."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from flows.console import busy, console
from tasks import lineage, remote
from tasks.environment import repository_root
from thinner.config import load_params
from thinner.errors import UserError


def app(for_people: Callable[[Callable[..., None]], Callable[..., None]]) -> typer.Typer:
    """The group of commands. ``for_people`` makes one message of what a person can mend."""
    made = typer.Typer(
        help="Where results travel: a bucket or a folder that clones share.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    for command in (init, show):
        made.command()(for_people(command))
    return made


def init(
    address: Annotated[str, typer.Argument(help="s3://BUCKET/FOLDER, gs://..., ssh://HOST/FOLDER, or a /FOLDER.")],
    endpoint: Annotated[
        str | None, typer.Option(help="Of a store that speaks S3 and is not Amazon's, such as http://127.0.0.1:9000.")
    ] = None,
    profile: Annotated[str | None, typer.Option(help="Whose credentials: a profile of ~/.aws/credentials.")] = None,
    region: Annotated[str | None, typer.Option(help="Of the S3 bucket.")] = None,
    each_run: Annotated[
        bool, typer.Option("--each-run", help="In this clone, each run asks there first, and sends what it made.")
    ] = False,
    local: Annotated[bool, typer.Option("--local", help="Of this clone only: .dvc/config.local.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="In place of the remote that is set up.")] = False,
    untried: Annotated[
        bool,
        typer.Option("--untried", help="Write no file there: credentials come later, by dvc remote modify --local."),
    ] = False,
) -> None:
    """Set up where results travel: write and remove a file there, and make it DVC's default remote. No credentials in
    it; they come from the environment, a profile, or: dvc remote modify --local."""
    root = repository_root()
    url = remote.parse(address, root)
    given = {"endpointurl": endpoint, "profile": profile, "region": region}
    options = {key: value for key, value in given.items() if value is not None}
    if options and not url.startswith("s3://"):
        names = {"endpointurl": "--endpoint", "profile": "--profile", "region": "--region"}
        raise UserError(f"{', '.join(names[key] for key in options)}: for s3:// only")
    if endpoint is not None:
        remote.check_endpoint(endpoint)
    before = remote.configured(root)
    if before is not None and (before.name, before.url) != (remote.NAME, url) and not replace:
        raise UserError(
            f"DVC's default remote is '{before.name}' already: {before.url}. Keep it (thinner push and pull use it), "
            f"or take this one in its place: thinner remote init --replace {url}"
        )
    remote.check_installed(url)
    if not untried:
        with busy() as telling:
            telling(f"asking {url}")
            remote.probe(root, {"url": url, **options}, writing=True)
    remote.write(root, url, options, local=local, replace=replace)
    if each_run:
        for key in ("thinner.pull", "thinner.push"):
            subprocess.run(["git", "config", key, "true"], cwd=root, check=True)
    place = ".dvc/config.local" if local else ".dvc/config"
    commit = "" if local else f"         git commit -m 'Results travel' {place}    other clones have it then\n"
    tried = "was not tried" if untried else "answers"
    console.print(
        f"{url} {tried}, and {place} names it\n\nNext     thinner push    send the results that are here\n{commit}"
        f"         thinner pull    in another clone: bring what is there, and train nothing",
        markup=False,
    )


def show() -> None:
    """Say which remote is set up, whether it answers, and what a run does with it."""
    root = repository_root()
    there = remote.required(root)
    travel = remote.travel(root)
    with busy() as telling:
        telling(f"asking {there.url}")
        remote.probe(root)
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_row("remote", Text(f"{there.name}, {there.url}"))
    table.add_row("answers", "yes")
    table.add_row(
        "before a run", "asked for each result" if travel.pull else "not asked (git config thinner.pull true)"
    )
    table.add_row(
        "after a run", "what it made is sent" if travel.push else "nothing is sent (git config thinner.push true)"
    )
    console.print(table)


def push(
    everything: Annotated[
        bool, typer.Option("--all", help="Every result that DVC's cache here has, not only those of dvc.lock.")
    ] = False,
) -> None:
    """Send the results that lie here to the remote, so that other clones restore them."""
    root = repository_root()
    url = remote.required(root).url
    if said := lineage.mend(root):
        console.print(said, style="yellow", markup=False)
    try:
        sent = remote.push(root, everything=everything)
    except UserError:
        raise
    except Exception as error:
        raise UserError(remote.explain(error, url)) from error
    if not sent.results:
        raise UserError("there is no result here that could be sent. Make one: thinner run")
    away = [node.name for node in lineage.graph(root) if node.name not in sent.stages]
    console.print(
        f"{url} has {sent.results} results of {len(sent.stages)} stages; {sent.files} of their files were new there",
        markup=False,
    )
    if away:
        console.print(f"not here, so not sent: {', '.join(away)}", style="yellow", markup=False)
    console.print(
        "\nNext     git add dvc.lock params.yaml reports && git commit    "
        "results are found by their inputs, which git has"
    )


def pull() -> None:
    """Restore every stage whose result the remote has for the present params.yaml and code. Trains nothing."""
    from flows import pipeline

    root = repository_root()
    remote.required(root)
    load_params()
    with pipeline.only_run(root):
        if said := lineage.mend(root):
            console.print(said, style="yellow", markup=False)
        remote.bring_data(root, lambda line: console.print(line, markup=False))
        data = load_params().data
        lineage.check_data(data.root, data.source)
        remote.note_other_data(root, lambda line: console.print(line, style="yellow", markup=False))
        restored, missing = _restore(root)
    if restored:
        console.print(f"restored: {', '.join(restored)}", markup=False)
    if missing:
        console.print(f"not there: {', '.join(missing)}\n\nNext     thinner run    makes these here", markup=False)
    if not restored and not missing:
        console.print("Every stage is up to date: nothing to bring")


def _restore(root: Path) -> tuple[list[str], list[str]]:
    restored: list[str] = []
    missing: list[str] = []
    for node in lineage.graph(root):
        if set(node.upstream) & set(missing):
            missing.append(node.name)
        elif lineage.reasons(root, node.name):
            with busy() as telling:
                telling(f"{node.name}: asking the remote")
                code = remote.run(root, remote.command("restore", node.name), lambda line: None)
            (missing if code == remote.NOT_THERE else restored).append(node.name)
    return restored, missing
