"""The candidates: what they are called, and what is shown of each: columns, units and cells, for all who show them.

The page, results.md, README and the terminal each have a table of their own, made here from reports/metrics.json, so
that no number stands in two places with two meanings. Nothing heavy is imported: the terminal's comes at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from thinner.evidence import decision
from thinner.evidence.shipping import RUNTIMES, Metrics, latency_batches, network_of
from thinner.runtimes import catalogue
from thinner.words import interval, milliseconds, milliseconds_limits, percent, points, si, times

if TYPE_CHECKING:  # scipy
    from thinner.evidence.statistics import Estimate

TEACHER, SMALLEST = "finetune", "prune"
CONTROLS = ("scratch", "small")  # what one has without the teacher
WHAT = {
    "finetune": "the pretrained network, fine-tuned: the baseline, and the teacher unless another one is named",
    "self_train": "finetune, trained on with pictures that have no labels",
    "self_train_control": "finetune, trained on for as many steps with the labels alone: self_train's control",
    "scratch": "the student's network, trained without the teacher: the control",
    "distill": "the student, trained on the teacher's outputs",
    "small": "the control at prune's size: cut as far, trained on the labels alone",
    "prune": "the network that prune.source names, with channels removed",
}
# candidate -> its folder in reports: what prune_also may name
ALSO = {f"prune_{source}": f"prune_also/{source}" for source in ("finetune", "scratch", "distill")}
WHAT |= {name: f"{name.removeprefix('prune_')} with channels removed" for name in ALSO}
QUANTIZED = {f"{name}_int8": "quantize" for name in WHAT}
FOLDERS = {**ALSO, **decision.FOLDERS}  # of those that lie deeper than data/NAME and reports/NAME
WHAT |= {
    f"{name}_{format_}": f"{name} as {words}" for name in tuple(WHAT) for format_, words in catalogue.WORDS.items()
} | {name: f"{name.removesuffix('_int8')} in 8 bits, by the ladder of quantize" for name in QUANTIZED}


def in_order(measured: Metrics) -> dict[str, Mapping[str, Any]]:
    """From the teacher to the smallest, then the exports; names of no stage last, by the alphabet."""
    known = [name for name in WHAT if name in measured]
    return {name: measured[name] for name in (*known, *sorted(set(measured) - set(known)))}


def folder_of(name: str) -> str:
    """Where the candidate lies, once it has been made."""
    if network_of(name) == name:
        return f"data/{FOLDERS.get(name, name)}"
    return f"data/{QUANTIZED.get(name, 'export')}/{name}"


# --- what came out, in words ---


def headline(measured: Metrics, test_images: int) -> str:
    """What came out, in one or two sentences that hold whatever the numbers are."""
    small, big = measured[SMALLEST], measured[TEACHER]
    sentence = (
        f"{SMALLEST} is right on {percent(small['accuracy'])} of {test_images:,} test images "
        f"({points(small['accuracy'] - big['accuracy'])} points against "
        f"{TEACHER}'s {percent(big['accuracy'])}) "
        f"with {small['params']:,} parameters: {_ratio(big['params'], small['params'], 'fewer', 'more')}, "
        f"{_ratio(big['macs'], small['macs'], 'fewer', 'more')} MACs and a file "
        f"{_ratio(big['file_bytes'], small['file_bytes'], 'smaller', 'larger')}."
    )
    if small["params_nonzero"] < _NONE_ZERO * small["params"]:
        sentence += f" {small['params_nonzero']:,.0f} of its parameters are not zero."
    batch = latency_batches(measured)[-1]
    mine, its = small[f"latency_ms_b{batch}"], big[f"latency_ms_b{batch}"]
    return sentence + (
        f" Measured in PyTorch at batch {batch}, it is {speed(small, big, batch)} "
        f"({milliseconds(mine)} ms against {milliseconds(its)} ms, {where_timed(small)})."
    )


_NONE_ZERO = 0.98  # of the parameters: a trained network has a few zeros of its own


def on_accelerator(row: Mapping[str, Any]) -> bool:
    """Whether its milliseconds are those of a GPU; an export's are always of the CPU."""
    return bool(row.get("device", "cpu") != "cpu")


def where_timed(row: Mapping[str, Any]) -> str:
    return f"on {row['device']}" if on_accelerator(row) else threads(row["threads"])


def threads(count: int) -> str:
    return f"{count} thread{'s' * (count > 1)}"


def _ratio(theirs: float, mine: float, less: str, more: str) -> str:
    if theirs == mine:
        return "the same"
    return f"{times(theirs, mine)} {less}" if theirs >= mine else f"{times(mine, theirs)} {more}"


def speed(row: Mapping[str, Any], other: Mapping[str, Any], batch: int) -> str:
    """Of measured medians, ``3.0x faster``: only where their 95 % intervals do not meet, else ``not faster (1.1x)``."""
    key = f"latency_ms_b{batch}"
    mine, its = row[key], other[key]
    if row.get(f"{key}_high", mine) < other.get(f"{key}_low", its):
        return f"{times(its, mine)} faster"
    if row.get(f"{key}_low", mine) > other.get(f"{key}_high", its):
        return f"{times(mine, its)} slower"
    return f"not faster ({its / mine:.2f}x)"


# --- tables ---


@dataclass(frozen=True)
class Table:
    """Headings and rows as they are read, and by cell what it is sorted by, where it can be. A row begins with its
    name."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    values: Sequence[Sequence[Any]] = ()
    notes: Sequence[Sequence[Sequence[str]]] = ()  # by cell, its small print on the page


@dataclass(frozen=True)
class Column:
    """One thing that is shown of every candidate; where a candidate has no ``key``, its cell is empty."""

    key: str  # in metrics.json: what the column is sorted by
    heading: str
    text: Callable[[Mapping[str, Any]], str]
    notes: Callable[[str, Mapping[str, Any]], list[str]] = lambda name, row: []


def _column(key: str, heading: str, form: Callable[[Any], str]) -> Column:
    return Column(key, heading, lambda row: form(row[key]))


def _table(measured: Metrics, columns: Sequence[Column], first: str = "candidate") -> Table:
    """Those columns that some candidate has a number for."""
    there = [c for c in columns if any(row.get(c.key) is not None for row in measured.values())]
    return Table(
        [first, *(c.heading for c in there)],
        [[name, *("" if row.get(c.key) is None else c.text(row) for c in there)] for name, row in measured.items()],
        [[name, *(row.get(c.key, "") for c in there)] for name, row in measured.items()],
        notes=[[[], *(c.notes(name, row) for c in there)] for name, row in measured.items()],
    )


ACCURACY = _column("accuracy", "accuracy", percent)
TOP5 = _column("accuracy_top5", "top-5", percent)  # evaluate leaves it out where there are five classes or fewer
BALANCED = _column("balanced_accuracy", "balanced accuracy", percent)
MACRO_F1 = _column("macro_f1", "macro-F1", "{:.3f}".format)
WORST = _column("worst_class", "worst class", percent)
AGREEMENT = _column("agreement", "agreement", percent)
PARAMETERS = _column("params", "parameters", si)
MACS = _column("macs", "MACs", si)
FILE = _column("file_bytes", "file", lambda value: si(value, "B"))


def _runtime_alone(row: Mapping[str, Any]) -> str:
    return RUNTIMES[row["runtime"]]


def _runtime(row: Mapping[str, Any]) -> str:
    return _runtime_alone(row) + (f", {row['device']}" if on_accelerator(row) else "")


RUNTIME = Column("runtime", "runtime", _runtime)


def _latency(batch: int) -> Column:
    return _column(f"latency_ms_b{batch}", f"ms, batch {batch}", milliseconds)


def for_markdown(measured: Metrics) -> Table:
    """Of results.md: all that is compared, a number a cell."""
    teacher = measured[TEACHER]

    def of_others(column: Column) -> Column:
        return replace(column, text=lambda row: "" if row is teacher else column.text(row))

    against = of_others(_column("accuracy", "vs baseline", lambda accuracy: points(accuracy - teacher["accuracy"])))
    latencies = [_latency(batch) for batch in latency_batches(measured)]
    classes = [BALANCED, MACRO_F1, WORST]
    sizes = [PARAMETERS, MACS, FILE]
    columns = [ACCURACY, against, TOP5, *classes, of_others(AGREEMENT), *sizes, *latencies, RUNTIME]
    return _table(measured, columns)


_SHOWN = ("onnx", "int8")  # kinds of exports on README's first screen


def for_readme(measured: Metrics, shipped: str) -> Table:
    """Of README's first screen: the networks, and the ONNX exports of the one to ship; the largest batch alone."""
    shown = {
        name: row
        for name, row in measured.items()
        if row["runtime"] == "pytorch" or name.startswith(tuple(f"{network_of(shipped)}_{kind}" for kind in _SHOWN))
        if not name.endswith("_pt2")
    }
    columns = [ACCURACY, PARAMETERS, MACS, FILE, _latency(latency_batches(measured)[-1]), RUNTIME]
    return _table(shown, columns, first="network")


def that_matter(measured: Metrics, shipped: str) -> dict[str, Mapping[str, Any]]:
    """Those that a person looks at first: the teacher, the controls, the student, the network to ship and its
    exports."""
    network = network_of(shipped)
    names = (TEACHER, *CONTROLS, "distill", network, shipped)
    return {
        name: row
        for name, row in in_order(measured).items()
        if name in names or (name != network and network_of(name) == network)
    }


def for_end(measured: Metrics, shipped: str) -> Table:
    """Of the end of a run: those that matter, in the words of README; fits into 80 columns."""
    columns = [ACCURACY, PARAMETERS, MACS, FILE, *map(_latency, latency_batches(measured)[-1:]), RUNTIME]
    return _table(that_matter(measured, shipped), columns, first="network")


def for_terminal(measured: Metrics) -> Table:
    """Of the terminal, all candidates: units are the column's, so that digits line up (a file's is what people say of
    it); fits into 80 columns with two batches."""
    candidates = {name: row for name, row in measured.items() if "accuracy" in row}
    columns = [
        _column("accuracy", "accuracy", "{:.2%}".format),
        _column("macro_f1", "macro-F1", "{:.4f}".format),
        _column("params", "params", "{:,}".format),
        _column("macs", "MACs", lambda macs: f"{macs / 1e6:.2f} M"),
        FILE,
        *(_column(f"latency_ms_b{batch}", f"ms b{batch}", "{:.2f}".format) for batch in latency_batches(candidates)),
    ]
    return _table(candidates, columns)


def for_page(measured: Metrics, differences: Mapping[str, Estimate]) -> Table:
    """Of the page: with small print, which compares with the teacher (``differences``: of accuracy) and has
    intervals."""
    teacher = measured[TEACHER]

    def difference(name: str, row: Mapping[str, Any]) -> list[str]:
        estimate = differences.get(name)
        return [f"{points(estimate.effect)} {interval(estimate.low, estimate.high)}"] if estimate else []

    def compared(column: Column) -> Column:
        return replace(column, notes=lambda name, row: _less_or_more(row[column.key], teacher[column.key]))

    def latency(batch: int) -> Column:
        column = _latency(batch)

        def notes(name: str, row: Mapping[str, Any]) -> list[str]:
            limits = [_limits(row, column.key)] if f"{column.key}_low" in row else []
            against = [] if row is teacher else [speed(row, teacher, batch)]
            return [*limits, f"p95 {milliseconds(row[f'{column.key}_p95'])}", *against]

        return replace(column, notes=notes)

    columns = [
        replace(RUNTIME, notes=lambda name, row: [row["device"]] * on_accelerator(row), text=_runtime_alone),
        replace(ACCURACY, notes=difference),
        *(TOP5, BALANCED, MACRO_F1),
        replace(WORST, notes=lambda name, row: [row["worst_class_name"]] if "worst_class_name" in row else []),
        AGREEMENT,
        *(compared(column) for column in (_column("params", "parameters", "{:,}".format), MACS, FILE)),
        *(latency(batch) for batch in latency_batches(measured)),
    ]
    return _table(measured, columns)


def _less_or_more(mine: float, its: float) -> list[str]:
    return [f"{times(its, mine)} less"] * (mine < its) or [f"{times(mine, its)} more"] * (mine > its)


def _limits(row: Mapping[str, Any], key: str) -> str:
    return milliseconds_limits(row[f"{key}_low"], row[f"{key}_high"])


def costs(measured: Metrics) -> Table:
    """All that was measured of time and memory, and the parameters to the last one."""
    teacher = measured[TEACHER]

    def of_batch(batch: int) -> list[Column]:
        key = f"latency_ms_b{batch}"
        return [
            _latency(batch),
            Column(f"{key}_low", f"95 %, batch {batch}", lambda row: _limits(row, key)),
            _column(f"{key}_p95", f"p95, batch {batch}", milliseconds),
            Column(
                key,
                f"against {TEACHER}, batch {batch}",
                lambda row: "" if row is teacher else speed(row, teacher, batch),
            ),
            _column(f"throughput_b{batch}", f"images/s, batch {batch}", "{:,.0f}".format),
        ]

    columns = [
        *(column for batch in latency_batches(measured) for column in of_batch(batch)),
        _column("peak_memory_bytes", "peak memory", lambda size: si(size, "B")),
        _column("params", "parameters", "{:,.0f}".format),
        _column("params_nonzero", "parameters, not 0", "{:,.0f}".format),
        *_on_devices(measured),
    ]
    return _table(measured, columns)


def _on_devices(measured: Metrics) -> list[Column]:
    """Times that a bundle's bench.py took elsewhere, of the network in ONNX Runtime (thinner/measure/devices.py)."""

    def of_device(batch: str, device: str) -> list[Column]:
        low, high = (f"{limit}_ms_b{batch}_on_{device}" for limit in ("low", "high"))
        return [
            _column(f"latency_ms_b{batch}_on_{device}", f"ms, batch {batch}, on {device}", milliseconds),
            Column(low, f"95 %, batch {batch}, on {device}", lambda row: milliseconds_limits(row[low], row[high])),
        ]

    found = {at.groups() for row in measured.values() for key in row if (at := _ON_DEVICE.fullmatch(key))}
    ordered = sorted(found, key=lambda pair: (pair[1], int(pair[0])))
    return [column for batch, device in ordered for column in of_device(batch, device)]


_ON_DEVICE = re.compile(r"latency_ms_b(\d+)_on_([\w-]+)")


def calibration(measured: Metrics) -> Table:
    """What confidences are worth, before and after temperature scaling."""
    columns = [
        _column("nll", "NLL", "{:.3f}".format),
        _column("brier", "Brier", "{:.3f}".format),
        _column("ece", "ECE", percent),
        _column("temperature", "temperature", "{:.2f}".format),
        _column("nll_scaled", "NLL, scaled", "{:.3f}".format),
        _column("brier_scaled", "Brier, scaled", "{:.3f}".format),
        _column("ece_scaled", "ECE, scaled", percent),
        _column("aurc", "AURC", "{:.4f}".format),
    ]
    return _table(measured, columns)
