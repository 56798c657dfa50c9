"""`thinner device ...`: times that another machine took."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from flows.console import console
from tasks.environment import repository_root


def app(for_people: Callable[[Callable[..., None]], Callable[..., None]]) -> typer.Typer:
    """The group of commands. ``for_people`` makes one message of what a person can mend."""
    made = typer.Typer(help="Times that another machine took.", no_args_is_help=True, rich_markup_mode=None)
    made.callback()(_group)  # with one command alone typer would take the group for it
    made.command()(for_people(add))
    return made


def _group() -> None:
    """Times that another machine took, with a bundle's bench.py."""


def add(
    name: Annotated[str, typer.Argument(help="What the device is called in claims and on the page, such as pi5.")],
    file: Annotated[Path, typer.Argument(help="What bench.py wrote there: bench.csv.")],
) -> None:
    """Bring back what bench.py of a bundle wrote on another machine."""
    root = repository_root()
    from tasks import devices

    device = devices.add(root, name, file)
    batches = ", ".join(map(str, device.latency_ms))
    console.print(
        f"{name}: {device.cpu}, {device.system}, {device.threads} thread(s); {', '.join(device.weights)} at batch "
        f"{batches}\n\nNext     thinner stage report    the page and the claims have it",
        markup=False,
    )
