"""prepare: the images of `data.source`, decoded, split and checked -> data/prepared, reports/prepare.json."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from tasks.machine import thread_count
from tasks.stage import Stage, run_stage
from thinner.data import cleaning
from thinner.data.sources import list_source
from thinner.data.store import SPLITS, open_store, write_store

BLACK = 16  # 4095, the most that 12 bits hold, as thinner.data.store scales 16 bits to 8


def prepare(stage: Stage) -> None:
    run, data = stage.params.run, stage.params.data
    listing = list_source(data.source, data.root, stage.say)
    if data.corrections is not None:  # it may lie beside the pictures, and is read
        ours = Path(data.corrections).name
        listing = dataclasses.replace(listing, ignored=tuple(name for name in listing.ignored if name != ours))
    stage.say(f"{len(listing)} images of {len(listing.classes)} classes: {listing.origin}")
    choices = data.model_dump(exclude={"root", "corrections", "near_duplicates"})
    with stage.output("data/prepared") as folder:
        with stage.progress("prepare", total=len(listing)) as bar:
            report = write_store(
                folder, listing, **choices,
                seed=run.seed, workers=thread_count(run.threads), progress=bar.update,
            )  # fmt: skip
        if data.corrections is not None or data.near_duplicates != "keep":
            with stage.progress("clean", total=report["images"]["stored"]) as bar:
                report, said = cleaning.clean(
                    folder, listing, report,
                    corrections=data.corrections, one_split=data.near_duplicates == "one_split", progress=bar.update,
                )  # fmt: skip
            for line in said:
                stage.say(line)
        with stage.output("reports/prepare.json") as file:
            file.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for line in warnings(report):
        stage.say(line)
    store = open_store("data/prepared")
    for line in dark(store.images):
        stage.say(line)
    counts = {name: len(store.splits[name]) for name in SPLITS}
    stage.record.dataset(data.source, store.sha256, "data/prepared", counts)
    stage.record.tags({"data_origin": listing.origin})
    stage.record.metrics(
        {
            **{f"images_{name}": float(count) for name, count in report["images"].items()},
            **{f"{key}_count": float(report[key]["count"]) for key in ("unreadable", "duplicates")},
        }
    )
    stage.record.artifact("reports/prepare.json")


def warnings(report: dict[str, Any]) -> list[str]:
    """A line for each thing that a person should look at."""

    def some(part: dict[str, Any]) -> str:
        return ", ".join(list(part["files"])[:5])

    images, ignored, seen = report["images"], report["ignored"], report["leakage"]["test_images"]
    found = [
        (report["unreadable"]["count"], f"could not be read: {some(report['unreadable'])}"),
        (ignored["count"], f"files are of a kind we do not read ({ignored['kinds']}): {some(ignored)}"),
        (report["duplicates"]["count"], "images have an identical twin"),
        (report["duplicates"]["with_other_label"], "groups of identical images carry different labels"),
        (seen, "test images have an identical twin among the training images: the test flatters"),
        (images["unused"], "images are in no split"),
    ]
    lines = [f"note: {count} {text} (reports/prepare.json)" for count, text in found if count]
    if any("pip install" in reason for reason in report["unreadable"]["files"].values()):
        lines.append("note: DVC does not see that a package was installed. When it is: dvc repro --force prepare")
    return lines


def dark(images: UInt8[np.ndarray, "n height width channels"], most: int = 1000) -> list[str]:
    """A line if pictures are nearly black, as 10 or 12 bits in a file of 16 bits come out; no such file says its range.

    At most ``most`` pictures are looked at, evenly spread, since all would be read from the disk once more.
    """
    rows = np.linspace(0, len(images) - 1, min(most, len(images))).astype(int)
    found = [row for row in rows.tolist() if images[row].max() <= BLACK]
    if not found:
        return []
    names = json.loads(Path("data/prepared/names.json").read_text(encoding="utf-8"))
    return [
        f"note: {len(found)} of {len(rows)} pictures looked at have nothing above {BLACK} of 255, as 12 bits in a file "
        f"of 16 bits would: {', '.join(names[row] for row in found[:5])}. If so, scale them to 16 bits"
    ]


if __name__ == "__main__":
    run_stage("prepare", prepare)
