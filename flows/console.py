"""What the person at the keyboard sees of a run: a line per event, a bar per running stage, a table at the
end."""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from tasks.progress import bar_columns, numbers_text
from thinner.evidence import candidates
from thinner.evidence.shipping import latency_batches
from thinner.words import number, with_thousands

_UNHEARD = ("prefect.events", "prefect._internal")  # a server that does not answer: flows.server says it once
QUIET = {"quiet": True}  # `extra` of a log record that Prefect keeps and the console leaves out
LINE_SECONDS = 10.0  # how often a running stage is worth a line of a log

# Without markup and emoji, in tables as well: names of files, reasons and parameters may hold [brackets] and :colons:.
PLAIN: dict[str, Any] = {"highlight": False, "soft_wrap": True, "markup": False, "emoji": False}
console = Console(**PLAIN)
if not console.is_terminal:
    console = Console(**PLAIN, width=120)  # a log has no edge to wrap at
_bars: Bars | None = None
_rows: dict[str, Any] = {}  # stage -> the rich task that shows it
_lines: dict[str, tuple[float, float]] = {}  # bar -> when it began, when it was last written to the log
_quiet = False  # only the end of a run is told, and what went wrong


class _ForPeople(logging.Handler):
    """Prefect's and the stages' log lines as `23:01:07 distill    text`; above the bars when there are
    any."""

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if getattr(record, "quiet", False) and _bars is not None:
            return
        if record.name.startswith(_UNHEARD):
            return
        noise = record.levelno < logging.WARNING or message.startswith("Finished in state")
        if record.name.startswith("prefect") and noise and not _is_ours(record):
            return  # "Beginning flow run 'ruby-fox'", "Created task run", "Finished in state NotReady(...)"
        style = "red" if record.levelno >= logging.ERROR else "yellow" if record.levelno >= logging.WARNING else None
        name = getattr(record, "task_run_name", "")
        moment = time.strftime("%H:%M:%S", time.localtime(record.created))
        for line in message.rstrip().splitlines():
            console.print(f"{moment} {name:<9} {line}", style=style, markup=False)


def _is_ours(record: logging.LogRecord) -> bool:
    return Path(record.pathname).parent.name == "flows"


def take_over(quiet: bool = False) -> None:
    """Send what is logged to this console instead of Prefect's, for a run that somebody started in a
    terminal. ``quiet``: only warnings and errors, and no bars."""
    global _quiet  # noqa: PLW0603 - a terminal is one
    _quiet = quiet
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
    root.addHandler(_ForPeople(logging.WARNING if quiet else logging.NOTSET))
    for name in _UNHEARD:
        logging.getLogger(name).handlers.clear()


@contextlib.contextmanager
def busy() -> Iterator[Callable[[str], None]]:
    """A function that says what is being done: on a line that changes, or in a log every ten seconds on a line of its
    own, on standard error, so that what is printed for programs stays theirs."""
    if console.is_terminal and sys.stdout.isatty():  # FORCE_COLOR makes a pipe one, for colours
        with console.status("") as shown:
            yield lambda words: shown.update(Text(words))
        return
    last = time.monotonic()

    def say(words: str) -> None:
        nonlocal last
        if (now := time.monotonic()) - last >= LINE_SECONDS:
            last = now
            print(words, file=sys.stderr, flush=True)

    yield say


def start_bars() -> None:
    global _bars  # noqa: PLW0603 - a terminal is one
    if console.is_terminal and _bars is None and not _quiet:
        _bars = Bars(*bar_columns(), console=console, transient=True)
        _bars.start()


def stop_bars() -> None:
    global _bars  # noqa: PLW0603
    if _bars is not None:
        _bars.stop()
        _bars = None
        _rows.clear()


@contextlib.contextmanager
def stage_shown(stage: str) -> Iterator[None]:
    """A bar for the stage, while it runs."""
    if _bars is not None:
        _rows[stage] = _bars.add_task(escape(stage), total=None, numbers="starting")  # columns of bars read markup
    try:
        yield
    finally:
        if _bars is not None and stage in _rows:
            _bars.remove_task(_rows.pop(stage))


def show_progress(event: Mapping[str, Any], logger: Any) -> None:
    """Move the stage's bar; now and then write it to the log, for those who read that instead."""
    stage, what = event["stage"], event["description"]
    if _bars is not None and stage in _rows:
        inner = "" if what == stage else f"{what}  "
        _bars.update(
            _rows[stage],
            total=event["total"],
            completed=event["done"],
            numbers=escape(inner + numbers_text(event["numbers"])),
        )
    now = time.monotonic()
    began, written = _lines.get(what + stage, (now, now))
    if event["last"] or now - written >= LINE_SECONDS:
        logger.info(_line(what, event, now - began), extra=QUIET)
        written = now
    _lines[what + stage] = (began, written)
    if event["last"]:
        del _lines[what + stage]


def _line(what: str, event: Mapping[str, Any], seconds: float) -> str:
    """`distill   45%  images 27,264  1:02 left`; ``seconds`` since the bar began."""
    share = min(1.0, event["done"] / event["total"]) if event["total"] else 1.0
    minutes, rest = divmod(round(seconds / share - seconds), 60) if share >= 0.01 else (0, 0)
    left = f"{minutes}:{rest:02d} left" if 0.01 <= share < 1 else ""
    return "  ".join(part for part in (what, f"{share:4.0%}", numbers_text(event["numbers"]), left) if part)


def abbreviated(texts: Sequence[str], most: int = 4) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


def networks_table(metrics: Mapping[str, Mapping[str, Any]], shipped: str, ready: bool) -> Table:
    """The networks that matter; in bold the one to ship, where it is ``ready``."""
    shown = candidates.for_end(metrics, shipped)
    table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False)
    table.add_column(shown.headings[0], overflow="fold")
    for heading in shown.headings[1:]:
        table.add_column(heading, justify="left" if heading == "runtime" else "right", no_wrap=True)
    for name, *cells in shown.rows:
        table.add_row(name, *(cell or "-" for cell in cells), style="bold" if ready and name == shipped else None)
    return table


def results_table(metrics: Mapping[str, Mapping[str, Any]]) -> Table:
    """A row per candidate of reports/metrics.json."""
    # Fits into 80 columns with prune_onnx_int8; a longer name, prune_finetune_onnx_int8, is folded where it has to be.
    shown = candidates.for_terminal(metrics)
    batches = " and of ".join(", of ".join(map(str, latency_batches(metrics))).rsplit(", of ", 1))
    table = Table(
        title="Candidates, on the test split" + (f"; ms: one batch of {batches} images" if batches else ""),
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
    )
    table.add_column(shown.headings[0], overflow="fold")
    for heading in shown.headings[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    for name, *cells in shown.rows:
        table.add_row(name, *(cell or "-" for cell in cells))
    return table


def study_table(rows: Sequence[Mapping[str, Any]], title: str, baseline: str) -> Table:
    """A row per variant of a study, best first; differences in points, with 95 % intervals."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("variant", no_wrap=True)
    for heading in ("seeds", "mean", "sd", f"against {baseline}", "p (Holm)"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        known = {key: value for key, value in row.items() if not isinstance(value, float) or math.isfinite(value)}
        against = _show(known, "difference", "{:+.2f}")
        if "low" in known:
            against += f" [{known['low']:+.2f}, {known['high']:+.2f}]"
        table.add_row(
            row["variant"],
            str(row["seeds"]),
            _show(known, "mean", "{:.2f} %"),
            _show(known, "sd", "{:.2f}"),
            against,
            _show(known, "p", "{:.4f}"),
        )
    return table


def print_verdicts(verdicts: Mapping[str, Mapping[str, Any]]) -> None:
    """A line per claim of reports/claims.json, and below it what the verdict rests on."""
    styles = {"proven": "green", "refuted": "red", "not shown": "yellow"}
    for verdict in verdicts.values():
        console.print(f"{verdict['outcome']:<10}", style=styles[verdict["outcome"]], end="", markup=False)
        console.print(verdict["claim"], markup=False)
        console.print(f"{'':<10}{with_thousands(verdict.get('numbers', ''))}", style="dim", markup=False)


# metrics that end so are shown in per cent
RATIOS = ("accuracy", "macro_f1", "worst_class", "agreement", "ece", "risk")


def print_comparison(found: Any, everything: bool) -> None:
    """A column per run: metrics with the change against the first, parameters that differ; then the paired tests."""
    first, *others = found.runs
    shared = sorted({key for run in found.runs for key in run.metrics})
    shown = [key for key in shared if everything or key.count("/") < 2]
    style: dict[str, Any] = {"title_justify": "left", "box": SIMPLE_HEAD, "pad_edge": False}
    table = Table("", title="Metrics, and the change against the first run", **style)
    for run in found.runs:
        table.add_column(f"{run.name}\n{run.id[:8]}", justify="right")
    for key in shown:
        cells = [_metric_text(key, run.metrics.get(key), None) for run in (first,)]
        cells += [_metric_text(key, run.metrics.get(key), first.metrics.get(key)) for run in others]
        table.add_row(key, *cells)
    console.print(table)
    keys = sorted({key for run in found.runs for key in run.params})
    differing = [key for key in keys if len({run.params.get(key) for run in found.runs}) > 1]
    if differing:
        table = Table("", title="Parameters that differ", **style)
        for run in found.runs:
            table.add_column(run.name, justify="right")
        for key in differing:
            table.add_row(key, *(run.params.get(key, "-") for run in found.runs))
        console.print(table)
    if found.differences:
        title = f"Accuracy against {first.name}, paired on the same images; 95 % intervals, p-values uncorrected"
        table = Table("run", "candidate", title=title, **style)
        for heading in ("points", "interval", "p", "images"):
            table.add_column(heading, justify="right")
        for row in found.differences:
            e = row.estimate
            interval = f"[{100 * e.low:+.2f}, {100 * e.high:+.2f}]"
            points = f"{100 * e.effect:+.2f}"
            table.add_row(row.run, row.candidate, points, interval, f"{e.p_value:.2g}", f"{e.count:,}")
        console.print(table)
    for note in found.notes:
        console.print(note, markup=False)


def _metric_text(key: str, value: float | None, reference: float | None) -> str:
    if value is None:
        return "-"
    share = key.endswith(RATIOS)
    text = f"{value:.2%}" if share else number(value)
    if reference is None or value == reference:
        return text
    if share:
        return f"{text} ({100 * (value - reference):+.2f})"
    return f"{text} ({value / reference - 1:+.1%})" if reference else text


def _show(row: Mapping[str, Any], key: str, form: str) -> str:
    value = row.get(key)
    return "-" if value is None else form.format(value)
