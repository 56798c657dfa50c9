"""What the person at the keyboard sees of a run: a line per event, a bar per running stage, a table at the
end."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress as Bars
from rich.table import Table

from tasks.stage import bar_columns, numbers_text, progress_text
from thinner import candidates, shipping
from thinner.config import load_params
from thinner.shipping import latency_batches

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


def take_over() -> None:
    """Send what is logged to this console instead of Prefect's, for a run that somebody started in a
    terminal."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
    root.addHandler(_ForPeople())
    for name in _UNHEARD:
        logging.getLogger(name).handlers.clear()


def start_bars() -> None:
    global _bars  # noqa: PLW0603 - a terminal is one
    if console.is_terminal and _bars is None:
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
        logger.info(progress_text(what, event["done"], event["total"], event["numbers"], now - began), extra=QUIET)
        written = now
    _lines[what + stage] = (began, written)
    if event["last"]:
        del _lines[what + stage]


def few(texts: Sequence[str], most: int = 4) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


def print_results(root: Path) -> None:
    """Whether targets were met, the candidates as evaluate measured them, what was proven, where to look, what next."""
    metrics, claims = (root / "reports" / f"{name}.json" for name in ("metrics", "claims"))
    measured = shipping.read_metrics(metrics, complete=True) if metrics.is_file() else {}
    verdicts = shipping.read_verdicts(claims) if claims.is_file() else {}
    targets = shipping.read_targets(root / "reports")
    for target in targets:
        for number, line in enumerate(target["lines"]):
            console.print(line, style="bold green" if target["met"] and number == 0 else "bold red")
    if measured:
        console.print(results_table(measured))
    print_verdicts(verdicts)
    if measured:
        line = shipping.ship_line(measured, load_params().ship.candidate, list(verdicts.values()), targets)
        console.print(f"\n{line}", style="bold" if line.startswith("To ship") else "bold yellow")
    report = root / "reports" / "report.html"
    if report.is_file():
        console.print(f"\nReport   {report.relative_to(root)}  (open it in a browser)", markup=False)
    console.print(
        "\nNext     make ui                      compare runs in MLflow, see this one in Prefect\n"
        "         . .venv/bin/activate         then, for example:\n"
        "         dvc repro                    the same pipeline without Prefect\n"
        "         dvc metrics diff             what changed since the last commit",
        markup=False,
    )


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
        console.print(f"{'':<10}{verdict.get('numbers', '')}", style="dim", markup=False)


RATIOS = ("accuracy", "macro_f1", "agreement", "ece", "risk")  # metrics that end so are shown in per cent


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
    text = f"{value:.2%}" if share else f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}"
    if reference is None or value == reference:
        return text
    if share:
        return f"{text} ({100 * (value - reference):+.2f})"
    return f"{text} ({value / reference - 1:+.1%})" if reference else text


def _show(row: Mapping[str, Any], key: str, form: str) -> str:
    value = row.get(key)
    return "-" if value is None else form.format(value)
