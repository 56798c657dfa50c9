"""thinner bundle: a candidate as a folder and a zip that run without this project, with a page of what is known."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks import lineage
from tasks.record import candidates, mlflow_client
from thinner.data.store import open_store
from thinner.errors import UserError
from thinner.evidence import shipping
from thinner.files import json_files, whole
from thinner.measure import operating
from thinner.network import is_measured
from thinner.params import Params
from thinner.ship import bundle as bundling
from thinner.ship.model_card import Facts, render

PICTURES = 16  # golden ones, of the validation split


@dataclass(frozen=True)
class Made:
    """Where the bundle is, and what was compared."""

    folder: Path
    archive: Path
    difference: float  # of its logits from the candidate's
    pictures: int
    outdated: list[str]  # stages whose results are not those of what is here
    timed: list[str]  # the networks that bench.py times


def make_bundle(
    root: Path,
    params: Params,
    candidate: str,
    out: Path | None = None,
    *,
    replace: bool = False,
    bench: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Made:
    """Write the bundle of ``candidate`` to ``out`` (bundles/CANDIDATE) and its zip beside it, whole or not at all.

    Raises UserError: there is no such candidate, nothing to make it from, or something is at its place.
    """
    made = candidates.made(root)
    if candidate not in made:
        choices = f"Choose one of: {', '.join(made)}" if made else "None has been made yet: thinner run"
        raise UserError(f"no candidate '{candidate}'. {choices}")
    source, out = made[candidate], out or Path("bundles", candidate)
    store = open_store(root / "data" / "prepared")
    channels = int(store.images.shape[3])
    measured = is_measured(root, candidate, source)
    known = operating.read_points(root / operating.FILE).get(candidate, []) if measured else []
    temperature = shipping.find_temperature(root, candidate) if measured else None
    if not measured:
        say(f"{candidate}: evaluate has measured other weights of it. Measure these: thinner stage evaluate")
    elif temperature is None:
        say(f"{candidate}: evaluate has not measured it, so its probabilities are not calibrated and its card is short")
    with bundling.new_folder(out, replace) as folder:
        model = bundling.write_model(source, folder / bundling.MODEL, channels, params.export.opset)
        tolerance = bundling.INT8_TOLERANCE if model.int8 else bundling.TOLERANCE
        pictures = _golden(store)
        difference = bundling.write_golden(
            folder / bundling.GOLDEN, source, folder / bundling.MODEL, pictures, tolerance
        )
        picture = {
            "image_size": int(store.images.shape[1]),
            "fit": store.info.get("fit", params.data.fit),
            "max_pixels": params.data.max_pixels,
        }
        bundling.write_labels(
            folder / bundling.LABELS, candidate, model, picture, channels, temperature, known, tolerance
        )
        bundling.copy_programs(folder)
        timed = bundling.write_bench(folder, made, params.export.opset) if bench else []
        outdated = _outdated(root)
        facts = Facts(
            candidate=candidate,
            model=model,
            params=params,
            data=store.info,
            golden_pictures=len(pictures),
            golden_difference=difference,
            tolerance=tolerance,
            points=known,
            commit=mlflow_client.commit(),
            changed=mlflow_client.origin().get("git.dirty") == "true",
            outdated=outdated,
            hashes=_hashes(root, folder, source, model, store.sha256),
            **(_reports(root, candidate) if measured else {}),  # numbers of other weights are none of these
        )
        (folder / bundling.CARD).write_text(render(facts), encoding="utf-8")
    return Made(out, bundling.archive_of(out), difference, len(pictures), outdated, timed)


def _golden(store: Any) -> np.ndarray:
    """Validation pictures, evenly over the split: neither trained on nor what evaluate measures on."""
    validation = store.splits["validation"]
    chosen = validation[np.unique(np.linspace(0, len(validation) - 1, PICTURES).astype(int))]
    return np.array(store.images[chosen])


def _reports(root: Path, candidate: str) -> dict[str, Any]:
    """What evaluate and report left; nothing where they have not run."""
    reports = root / "reports"
    files = reports / "metrics.json", reports / "evaluate" / "environment.json"
    found: dict[str, Any] = {}
    if all(path.is_file() for path in files):
        again = "Make it again: dvc repro evaluate"
        found["measured"] = shipping.read_metrics(files[0], complete=True)
        found["environment"] = json_files.read_object(files[1], again)
        if wrong := json_files.lacking(found["environment"], {"test_images": lambda value: type(value) is int}):
            raise UserError(f"{files[1]}: {wrong}. {again}")
    table = reports / "evaluate" / "per_class.csv"
    if table.is_file():
        with table.open(newline="", encoding="utf-8") as file:
            found["classes"] = [row for row in csv.DictReader(file) if row["candidate"] == candidate]
        for row in found["classes"]:  # before such signs evaluate puts an apostrophe, for spreadsheets
            if row["class"][:2] in ("'=", "'+", "'-", "'@"):
                row["class"] = row["class"][1:]
    if (reports / "claims.json").is_file():
        found["verdicts"] = list(shipping.read_verdicts(reports / "claims.json").values())
    found["targets"] = shipping.targets_of(candidate, shipping.read_targets(reports))
    return found


def _outdated(root: Path) -> list[str]:
    """The stages whose results are not those of what is here; none where DVC does not watch this folder."""
    if not (root / ".dvc").is_dir():
        return []
    names = [node.name for node in lineage.graph(root)]
    return [name for name, why in lineage.all_reasons(root, names).items() if why]


def _hashes(root: Path, folder: Path, source: Path, model: bundling.Model, data: str) -> dict[str, str]:
    made_from = next(path for path in sorted(source.glob("model.*")) if path.suffix != ".json")
    return {
        bundling.MODEL: model.sha256,
        bundling.GOLDEN: whole.file_sha256(folder / bundling.GOLDEN),
        made_from.relative_to(root).as_posix(): model.source_sha256,
        "data/prepared": data,
        **{name: whole.file_sha256(root / name) for name in ("params.yaml", "dvc.lock") if (root / name).is_file()},
    }
