"""How far a stage is: bars and their words, the same under `dvc repro` and under the flow."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any, ClassVar

from tasks.environment import PROGRESS
from thinner.words import number


class Progress:
    """How far a stage is. On a terminal a bar; read by the flow (THINNER_PROGRESS=json) one `::progress
    {json}` line each quarter of a second; anywhere else a plain line each five seconds. May be nested:
    rounds around epochs."""

    _live: ClassVar[Any] = None  # rich shows one live display at a time, so nested bars share it
    _open: ClassVar[int] = 0

    def __init__(self, stage: str, description: str, total: float) -> None:
        self._stage, self._description, self._total = stage, description, total
        self._done: float = 0
        self._numbers: dict[str, float] = {}
        self._start = self._shown = time.monotonic()
        self._bar: Any = None
        self._json = os.environ.get("THINNER_PROGRESS") == "json"
        self._every = 0.25 if self._json else 0.1 if sys.stdout.isatty() else 5.0
        if self._every == 0.1:
            if Progress._live is None:
                from rich.progress import Progress as Bars

                Progress._live = Bars(*bar_columns())
                Progress._live.start()
            self._bar = Progress._live.add_task(description, total=total, numbers="")
        elif self._json:
            self._show()  # at once, so that a bar stands while the first step compiles or warms up
        Progress._open += 1

    def update(self, done: float, **numbers: float) -> None:
        """`done` of `total`, in the caller's unit; numbers stay shown until they are given anew."""
        self._done = done
        self._numbers.update({name: float(value) for name, value in numbers.items()})
        if time.monotonic() - self._shown >= self._every:
            self._show()

    def close(self) -> None:
        self._show(last=True)
        Progress._open -= 1
        if Progress._live is not None and Progress._open == 0:
            Progress._live.stop()
            Progress._live = None

    def _show(self, last: bool = False) -> None:
        self._shown = time.monotonic()
        if self._bar is not None:
            Progress._live.update(self._bar, completed=self._done, numbers=numbers_text(self._numbers))
        elif self._json:
            event = {
                "stage": self._stage,
                "description": self._description,
                "done": self._done,
                "total": self._total,
                "numbers": self._numbers,
                "last": last,
            }
            print(PROGRESS + json.dumps(event), flush=True)
        else:
            print(
                progress_text(self._description, self._done, self._total, self._numbers, self._shown - self._start),
                flush=True,
            )


class Silence:
    """The progress of a helper process: its first process shows the bar of all."""

    def update(self, done: float, **numbers: float) -> None: ...

    def close(self) -> None: ...


def numbers_text(numbers: dict[str, float]) -> str:
    """`loss 0.412  images 27,264`: four digits or more and no exponent, names as they were given."""
    return "  ".join(f"{name} {number(value)}" for name, value in numbers.items())


def progress_text(description: str, done: float, total: float, numbers: dict[str, float], seconds: float) -> str:
    """The plain form of a bar: `distill  45 %  loss 0.41  val_accuracy 0.86  1:02 left`."""
    share = min(1.0, done / total) if total else 1.0
    left = f"{_clock(seconds / share - seconds)} left" if 0.01 <= share < 1 else ""
    return "  ".join(part for part in (description, f"{share:4.0%}", numbers_text(numbers), left) if part)


def bar_columns() -> list[Any]:
    """The columns of a live bar, the same under `dvc repro` and under the flow."""
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn

    return [
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
    ]


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
