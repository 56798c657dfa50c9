"""`thinner watch FOLDER`: have the pictures that come in after shipping drifted away from validation's, and which of
them are most worth a label?"""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from flows.console import busy, console
from flows.data import check_unlabelled
from thinner.errors import UserError, one_line
from thinner.params import Params
from thinner.words import percent

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import UInt8

    from thinner.data.store import Store
    from thinner.evidence.drift import Drift
    from thinner.measure.outputs import Outputs
    from thinner.network import Network

PREPARED = Path("data/prepared")
FOLDER = Path("reports/watch")
CSV, PAGE = "to_label.csv", "watch.html"
# The first three are those of a csv source of `prepare`, which leaves the others alone.
COLUMNS = ("path", "label", "split", "answer", "confidence", "runner_up", "rank")
DRIFTED = 3  # the exit code of --strict: 1 is an error, 2 a wrong call
BATCH = 64
SHOWN = 24  # pictures of each section of the page, beside those to label


@dataclass(frozen=True)
class Watched:
    """What was found, and where it was written."""

    candidate: str
    drift: Drift
    conclusion: str
    unreadable: Mapping[str, str]  # picture -> reason
    confidence: tuple[float, float]  # mean of validation's and of the new pictures
    calibrated: bool
    to_label: Sequence[Mapping[str, Any]]
    folder: Path

    def as_json(self) -> dict[str, Any]:
        drift = self.drift
        return {
            "verdict": drift.verdict,
            "conclusion": self.conclusion,
            "false_alarm_rate": drift.rate,
            "candidate": self.candidate,
            "pictures": drift.images,
            "unreadable": dict(self.unreadable),
            "validation_pictures": drift.reference,
            "tests": {name: found.as_json() for name, found in drift.findings.items()},
            "detectable": drift.detectable,
            "mean_confidence": {"validation": self.confidence[0], "new": self.confidence[1]},
            "calibrated": self.calibrated,
            "to_label": [dict(row) for row in self.to_label],
            "places": {"to_label": str(self.folder / CSV), "page": str(self.folder / PAGE)},
        }


def watch(
    root: Path, params: Params, files: Sequence[Path], candidate: str, place: Path, rate: float, count: int, out: Path
) -> Watched:
    """Compare the pictures in ``files`` with validation's, as the candidate in ``place`` sees both; write the list to
    label and the page to ``out``. ``rate``: of false alarms, 0 to 1. Raises UserError."""
    import numpy as np
    import torch  # noqa: F401 - set_up_torch does nothing before it is there
    from scipy.special import softmax

    from tasks.machine import set_up_torch, thread_count
    from thinner.data.store import open_store
    from thinner.evidence import drift, drift_page
    from thinner.network import load
    from thinner.predict import choose_device, open_candidate

    drift.check_rate(rate)
    _check_place(out)
    set_up_torch(params.run)
    device, threads = choose_device(params.run.device), thread_count(params.run.threads)
    network = load(place, params=root / "params.yaml", device=device)
    store = open_store(root / PREPARED)
    _check_store(store, network)
    opened = open_candidate(place, device, threads, params.run.channels_last)
    if opened.spec.get("data_sha256") not in (None, store.sha256):
        print(
            f"note: {PREPARED} is not what {network.folder} learned from, which may have learned some of its "
            "validation pictures: then the rate of false alarms is not as stated. Make both of one: thinner run",
            file=sys.stderr,
        )
    with busy() as telling:
        reference = _outputs(
            opened, _validation(store), "pictures of validation", len(store.splits["validation"]), telling
        )
        pictures = _Pictures(network, files, threads)
        new = _outputs(opened, pictures.batches(), "pictures", len(files), telling)
        _check_readable(pictures, files)
        telling("comparing")
        found = drift.compare(reference, new, network.temperature or 1.0, rate, params.run.seed)
        telling("choosing what to label")
        shares = softmax(new.logits.astype(np.float64) / (network.temperature or 1.0), axis=1)
        usual = softmax(reference.logits.astype(np.float64) / (network.temperature or 1.0), axis=1)
        rows, images = _to_label(pictures, shares, new, count, params.run.seed, network.classes, out)
        conclusion = drift_page.conclusion(found, candidate)
        figures = [
            drift_page.histogram(usual.max(axis=1), shares.max(axis=1)),
            drift_page.frequencies(network.classes, usual.argmax(axis=1), shares.argmax(axis=1)),
        ]
        sections = _sections(rows, images, pictures, found, store, shares, network.classes, params.run.seed)
        _check_place(out)  # once more: somebody may have written labels meanwhile
        _write(out, rows, drift_page.page(f"{conclusion}.", found, figures, sections))
    confidence = (float(usual.max(axis=1).mean()), float(shares.max(axis=1).mean()))
    return Watched(
        candidate, found, conclusion, pictures.unreadable, confidence, network.temperature is not None, rows, out
    )


def _check_place(out: Path) -> None:
    """Make the folder, before anything takes long. Raises UserError where a list holds labels that somebody wrote."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: {one_line(out)} cannot be made ({error.strerror}). Name another folder") from error
    mend = f"Bring them in (thinner data add {out / CSV}) and move it away"
    check_unlabelled(out / CSV, mend, ", or write elsewhere: --out FOLDER")


def _check_store(store: Store, network: Network) -> None:
    side, channels = store.images.shape[1], store.images.shape[3]
    if store.classes != network.classes:
        raise UserError(
            f"{PREPARED}: has other classes than {network.folder}, so its validation pictures are not this network's. "
            "Make both of one params.yaml: thinner run"
        )
    if (side, channels) != network.square:
        raise UserError(
            f"{PREPARED}: pictures of {side} px with {channels} channels, but params.yaml has data.image_size: "
            f"{network.square[0]}, data.channels: {network.square[1]}. Make it again: dvc repro prepare"
        )
    if not len(store.splits["validation"]):
        raise UserError(f"{PREPARED}: no validation pictures, and nothing else to compare with. Set data.validation")


def _check_readable(pictures: _Pictures, files: Sequence[Path]) -> None:
    if not pictures.files:
        name, reason = next(iter(pictures.unreadable.items()))
        raise UserError(f"none of {len(files):,} pictures can be read ({name}: {reason})")


class _Pictures:
    """The new pictures, decoded as prepare does; what cannot be read is left out and named."""

    def __init__(self, network: Network, files: Sequence[Path], threads: int) -> None:
        self._network, self._given, self._threads = network, files, threads
        self.files: list[Path] = []  # those that could be read
        self.unreadable: dict[str, str] = {}

    def batches(self) -> Iterator[UInt8[np.ndarray, "batch height width channels"]]:
        import numpy as np

        with ThreadPoolExecutor(self._threads) as pool:
            for start in range(0, len(self._given), BATCH):
                part = self._given[start : start + BATCH]
                read = []
                for path, image in zip(part, pool.map(self._decode, part), strict=True):
                    if isinstance(image, str):
                        self.unreadable[one_line(path)] = image
                    else:
                        read.append(image)
                        self.files.append(path)
                if read:
                    yield np.stack(read)

    def _decode(self, path: Path) -> Any:
        from thinner.data.sources import is_refused
        from thinner.network import UnreadablePictureError

        if is_refused(str(path)):
            return "has a name that prepare refuses. Rename it"
        try:
            return self._network.decode(path)
        except UnreadablePictureError as error:
            return error.reason

    def read(self, numbers: Sequence[int]) -> UInt8[np.ndarray, "some height width channels"]:
        """Those of `files` once more: not all are kept in memory."""
        import numpy as np

        return np.stack([self._network.decode(self.files[number]) for number in numbers])


def _validation(store: Store) -> Iterator[UInt8[np.ndarray, "batch height width channels"]]:
    from thinner.files.mapped import read_rows

    rows = store.splits["validation"]
    for start in range(0, len(rows), BATCH):
        yield read_rows(store.images, rows[start : start + BATCH])


def _outputs(opened: Any, batches: Any, what: str, total: int, telling: Any) -> Outputs:
    import numpy as np

    from thinner.measure.outputs import outputs

    try:
        found = outputs(opened, batches, lambda done: telling(f"{what}: {done:,} of {total:,}"))
    except UserError:
        raise
    except Exception as error:  # a graph that somebody else made may fail at any of its operators
        raise UserError(
            f"this model does not run on pictures ({one_line(error)}). Make it again: thinner run"
        ) from error
    whole = np.isfinite(found.logits).all(axis=1) & np.isfinite(found.features).all(axis=1)
    if wrong := int((~whole).sum()):
        raise UserError(
            f"this model gives no finite numbers for {wrong:,} of {len(whole):,} {what}, so nothing can be compared. "
            "Make it again: thinner run, or look through another one: --candidate NAME"
        )
    return found


# ------------------------------------------------------------------------------- what to label


def _to_label(
    pictures: _Pictures,
    shares: Any,
    new: Outputs,
    count: int,
    seed: int,
    classes: Sequence[str],
    out: Path,
) -> tuple[list[dict[str, Any]], list[Any]]:
    """Rows of the list, and their pictures."""
    import numpy as np

    from thinner.learn import labelling

    drawn = labelling.choose(shares, new.features, 2 * count, seed).tolist()
    rows: list[dict[str, Any]] = []
    kept: list[Any] = []
    if not drawn:  # the network is sure of all
        return rows, kept
    images = pictures.read(drawn)
    for place, number in enumerate(labelling.unlike(images, count), start=1):
        row = drawn[number]
        first, second = np.argsort(-shares[row], kind="stable")[:2].tolist()
        rows.append(
            {
                "path": _relative(pictures.files[row], out),
                "label": "",
                "split": "",
                "answer": classes[first],
                "confidence": round(float(shares[row, first]), 4),
                "runner_up": classes[second],
                "rank": place,
            }
        )
        kept.append(images[number])
    return rows, kept


def _relative(path: Path, out: Path) -> str:
    """As a csv source wants it: from the list's folder. The dot keeps a spreadsheet from computing it."""
    name = Path(os.path.relpath(path, out)).as_posix()
    return name if name.startswith("../") else f"./{name}"


def _sections(
    rows: Sequence[Mapping[str, Any]],
    images: Sequence[Any],
    pictures: _Pictures,
    found: Drift,
    store: Store,
    shares: Any,
    classes: Sequence[str],
    seed: int,
) -> list[Any]:
    import numpy as np

    from thinner.evidence.pictures_page import Card, Section
    from thinner.files.mapped import read_rows

    chosen = [
        Card(
            [(image, [row["path"], f"{row['answer']} {percent(row['confidence'])}"])],
            f"{row['rank']}: or {row['runner_up']}?",
        )
        for row, image in zip(rows, images, strict=True)
    ]
    far = found.unlike[:SHOWN].tolist()
    unlike = [
        Card(
            [(image, [str(pictures.files[row])])],
            f"{classes[int(shares[row].argmax())]} {percent(float(shares[row].max()))}",
        )
        for row, image in zip(far, pictures.read(far), strict=True)
    ]
    drawn = np.sort(np.random.default_rng(seed).permutation(store.splits["validation"])[:SHOWN])
    usual = [
        Card([(image, [store.classes[int(store.labels[row])]])], "label")
        for row, image in zip(drawn.tolist(), read_rows(store.images, drawn), strict=True)
    ]
    return [
        Section(
            f"The {len(chosen)} most worth a label", "Unsure, and no two alike. The answer, and its rival.", chosen
        ),
        Section("Least like validation's", "By what the network sees in them.", unlike),
        Section("Validation's, to compare", "Drawn at random, with their labels.", usual),
    ]


def _write(out: Path, rows: Sequence[Mapping[str, Any]], page: str) -> None:
    from thinner.data.cleaning import safe
    from thinner.files.whole import write, write_text

    def table(partial: Path) -> None:
        with partial.open("w", newline="", encoding="utf-8") as text:
            writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows({key: safe(value) for key, value in row.items()} for row in rows)

    write(out / CSV, table)
    write_text(out / PAGE, page)


# ------------------------------------------------------------------------------- how it ended


def print_watched(watched: Watched, files: int) -> None:
    drift = watched.drift
    if watched.unreadable:
        some = "; ".join(f"{name} ({reason})" for name, reason in list(watched.unreadable.items())[:5])
        more = f"; and {len(watched.unreadable) - 5:,} more" if len(watched.unreadable) > 5 else ""
        left_out = f"{len(watched.unreadable):,} of {files:,} pictures cannot be read and are left out: {some}{more}"
        console.print(left_out, style="yellow", markup=False)
    table = Table(box=None, pad_edge=False)
    for heading in ("test", "drift", "size", "p (Holm)", "what differs"):
        table.add_column(heading, overflow="fold", justify="right" if heading == "p (Holm)" else "left")
    for name, found in drift.findings.items():
        seen = Text("yes", style="red") if found.drifted else Text("not seen")
        size, text = (found.size, found.text) if found.drifted else ("", "")
        table.add_row(name, seen, size, f"{found.adjusted:.2g}", Text(text))
    console.print(table)
    style = {"drift": "red", "too few pictures": "yellow"}.get(drift.verdict, "green")
    console.print(f"\n{watched.conclusion}", style=style, markup=False)
    usual, now = watched.confidence
    told = "" if watched.calibrated else " (not calibrated: thinner stage evaluate)"
    console.print(f"mean confidence {percent(now)}; of validation {percent(usual)}{told}", markup=False)
    wanted = f"{len(watched.to_label)} pictures most worth a label"
    console.print(
        f"{watched.folder / CSV}    {wanted}\n{watched.folder / PAGE}    the same with the pictures", markup=False
    )
    look = "look at the page first: what has changed? Then " if drift.drifted else ""
    console.print(
        f"\nNext     {look}fill in column `label` of {watched.folder / CSV}\n"
        f"         thinner data add {watched.folder / CSV}",
        markup=False,
    )


def write_json(path: Path, watched: Watched) -> None:
    from thinner.files.whole import write_text

    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(watched.as_json(), indent=2, ensure_ascii=False) + "\n"
    write_text(path, text)
