"""The first hour of somebody with a folder of photos, played: init, plan, run, predict, and no file edited by hand.

    python -m benchmarks.first_hour                    # 1,200 labelled photos of 4 classes out of data/cifar10
    python -m benchmarks.first_hour --minutes 30 --json FILE --check

The folder is messy as people's are: nine formats, grey and turned ones, near-duplicates, one in twenty with a wrong
label, files that are no pictures, and a folder without labels beside the classes. ``play`` does in a clone what
docs/init.md says; `--check` exits with 1 where a step fails or the minutes that were asked for are not kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image, ImageOps

from benchmarks.clones import clone_environment, make_clone
from benchmarks.photos import CLASSES
from tasks.environment import repository_root
from thinner.errors import UserError

PHOTOS = "data/raw/my photos"
WRONG, TWINS = 0.05, 0.03  # shares of the labelled photos
LABELLED, UNLABELLED, ASKED = 300, 500, 50  # of each class
FORMATS = ("jpg", "JPG", "jpeg", "png", "bmp", "webp", "tif", "gif", "jfif")
FACTOR = 1.5  # within which the minutes have to be foretold


@dataclasses.dataclass(frozen=True)
class Mess:
    """What was done to the photos. ``wrong``: paths in the folder whose label is another's; ``twins``: copies, and of
    what; ``asked``: photos outside of the folder, by true class, to be predicted."""

    labelled: int
    unlabelled: int
    wrong: tuple[str, ...]
    twins: Mapping[str, str]
    asked: Mapping[str, Sequence[Path]]


def make_mess(
    pictures: Mapping[str, Sequence[Image.Image]],
    folder: Path,
    *,
    labelled: int,
    unlabelled: int,
    asked: int,
    seed: int = 0,
    share_wrong: float = WRONG,
    share_twins: float = TWINS,
) -> Mess:
    """A messy folder out of ``pictures`` by class. Of each class the first ``labelled`` get a label, the next
    ``unlabelled`` lie in the folder ``unlabelled``, the next ``asked`` go beside the folder, to be predicted."""
    choose = random.Random(seed)  # noqa: S311 - a mess, not a secret
    names = list(pictures)
    wrong, twins, others = [], {}, {}
    for name in names:
        for number, picture in enumerate(pictures[name][: labelled + unlabelled + asked]):
            if number >= labelled + unlabelled:
                place = folder.with_name("asked") / name / f"IMG {number:04d}.png"
                others.setdefault(name, []).append(place)
                _save(picture, place)
                continue
            given = name
            if number < labelled and choose.random() < share_wrong:
                given = choose.choice([other for other in names if other != name])
            place = folder / (given if number < labelled else "unlabelled")
            if choose.random() < 0.1:
                place /= "Urlaub 2024 (Köln)"
            file = place / f"{name[0].upper()}IMG_{number:04d}.{choose.choice(FORMATS)}"
            _save(_as_people_have_them(picture, choose), file, turned=choose.random() < 0.05)
            if given != name and number < labelled:
                wrong.append(file.relative_to(folder).as_posix())
            if number < labelled and choose.random() < share_twins:
                twin = file.with_name(f"{file.stem} (copy).jpg")
                _save(_nearly(picture, choose), twin, quality=60)
                twins[twin.relative_to(folder).as_posix()] = file.relative_to(folder).as_posix()
    first = folder / names[0]
    (first / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0" * 99)
    (first / ".DS_Store").write_bytes(b"\0" * 64)
    (first / "notes.txt").write_text("the good ones\n")
    (folder / "list.xlsx").write_bytes(b"PK\x03\x04" + b"\0" * 99)
    return Mess(labelled * len(names), unlabelled * len(names), tuple(wrong), twins, others)


def _as_people_have_them(picture: Image.Image, choose: random.Random) -> Image.Image:
    kind = choose.random()
    if kind < 0.03:
        return picture.convert("L")
    if kind < 0.05:
        return picture.convert("RGBA")
    return picture.convert("CMYK") if kind < 0.06 else picture


def _nearly(picture: Image.Image, choose: random.Random) -> Image.Image:
    width, height = picture.size
    kind = choose.choice(("mirrored", "cropped", "saved again"))
    if kind == "mirrored":
        return ImageOps.mirror(picture)
    if kind == "cropped":
        x, y = round(0.05 * width), round(0.05 * height)
        return picture.crop((x, y, width - x, height - y)).resize((width, height), Image.Resampling.BILINEAR)
    return picture


def _save(picture: Image.Image, file: Path, *, turned: bool = False, quality: int = 92) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    kind = file.suffix.lower()
    if picture.mode == "CMYK" and kind not in (".jpg", ".jpeg", ".jfif", ".tif"):
        picture = picture.convert("RGB")
    if picture.mode == "RGBA" and kind not in (".png", ".webp", ".tif", ".gif"):
        picture = picture.convert("RGB")
    extra: dict[str, Any] = {}
    if kind in (".jpg", ".jpeg", ".jfif"):
        extra = {"format": "JPEG", "quality": quality}
        if turned:  # a camera held upright: pixels lie, and a note says how they stand
            exif = Image.Exif()
            exif[0x0112] = 6
            extra["exif"] = exif.tobytes()
            picture = picture.transpose(Image.Transpose.ROTATE_90)
    picture.save(file, **extra)


def thinner(clone: Path, *command: str) -> str:
    """What `thinner COMMAND` printed. Raises UserError where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", *command], cwd=clone, env=clone_environment(clone),
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        told = done.stdout[-3000:] + done.stderr[-1000:]
        raise UserError(f"thinner {' '.join(command[:3])} ended with {done.returncode}:\n{told}")
    return done.stdout


def play(clone: Path, mess: Mess, minutes: float, recipe: Path | None = None) -> dict[str, Any]:
    """init, plan, run, predict in ``clone``, which has the folder at PHOTOS, then near-duplicates and suspect labels;
    seconds of each and what came out. ``recipe`` is what somebody shared, for `thinner init --from`."""
    took: dict[str, float] = {}

    def timed(name: str, *command: str) -> str:
        began = time.monotonic()
        said = thinner(clone, *command)
        took[name] = round(time.monotonic() - began, 1)
        return said

    shared = () if recipe is None else ("--from", str(recipe))
    said = timed("init", "init", PHOTOS, "--minutes", f"{minutes:g}", *shared)
    planned = json.loads(timed("plan", "plan", "--json"))
    timed("run", "run", "--json", "end.json")
    end = json.loads((clone / "end.json").read_text())
    name = end["ship"] or "prune"
    files = {str(file): label for label, asked in mess.asked.items() for file in asked}
    told = timed("predict", "predict", "--json", "--candidate", name, *files).splitlines()
    answers = [json.loads(line) for line in told]
    right = [answer["label"] == label for answer, label in zip(answers, files.values(), strict=True)]
    timed("duplicates", "data", "duplicates")
    timed("suspects", "data", "suspects")
    pairs = pd.read_csv(clone / "reports" / "duplicates.csv").filter(like="file").agg(frozenset, axis=1)
    suspects = set(pd.read_csv(clone / "reports" / "suspects.csv")["file"])
    return {
        "said": said,
        "took": took,
        "foretold": planned["seconds"],
        "planned": [row["stage"] for row in planned["stages"] if row["runs"]],
        "asked minutes": minutes,
        "end": end,
        "candidate": name,
        "predicted": len(right),
        "right": sum(right),
        "twins": len(mess.twins),
        "twins found": sum(frozenset(pair) in set(pairs) for pair in mess.twins.items()),
        "wrong labels": len(mess.wrong),
        "wrong among the suspects": len(suspects & set(mess.wrong)),
        "suspects": len(suspects),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.first_hour", description="A newcomer's first hour.")
    parser.add_argument("--data", type=Path, default=Path("data/cifar10"), help="train/CLASS/*.jpg")
    parser.add_argument("--minutes", type=float, default=45.0, help="what `thinner init` is given")
    parser.add_argument("--side", type=int, default=0, help="px that the photos are enlarged to; 0: as they are")
    parser.add_argument("--folder", type=Path, help="where the clone stays")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="hour-") as base:
            clone = make_clone(repository_root(), given.folder or Path(base).resolve() / "clone")
            pictures = {}
            for name in CLASSES:
                needed = LABELLED + UNLABELLED + ASKED
                files = sorted((given.data / "train" / name).glob("*.jpg"))[:needed]
                if len(files) < needed:
                    raise UserError(
                        f"{given.data / 'train' / name}: {len(files)} pictures (*.jpg), {needed} are needed"
                    )
                pictures[name] = [_opened(file, given.side) for file in files]
            shutil.rmtree(clone / PHOTOS, ignore_errors=True)
            mess = make_mess(pictures, clone / PHOTOS, labelled=LABELLED, unlabelled=UNLABELLED, asked=ASKED)
            found = play(clone, mess, given.minutes)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    seconds = found["took"]["run"]
    ratio = seconds / found["foretold"]
    print(found["said"])
    for name, value in found["took"].items():
        print(f"{name:9}{value:8.0f} s")
    print(
        f"\nasked for {given.minutes:g} min, foretold {found['foretold'] / 60:.1f}, took {seconds / 60:.1f} "
        f"({ratio:.2f} of what was foretold)\n{found['end']['verdict']}; {found['candidate']} is right on "
        f"{found['right']} of {found['predicted']} photos that were not in the folder\n"
        f"near-duplicates found: {found['twins found']} of {found['twins']}; wrong labels among {found['suspects']} "
        f"suspects: {found['wrong among the suspects']} of {found['wrong labels']}"
    )
    if given.json:
        found.pop("said")
        given.json.write_text(json.dumps(found, indent=1) + "\n")
    kept = 1 / FACTOR < ratio < FACTOR and seconds <= 60 * given.minutes * FACTOR
    return int(given.check and not kept)


def _opened(file: Path, side: int) -> Image.Image:
    with Image.open(file) as picture:
        copy = picture.convert("RGB")
    return copy.resize((side, side), Image.Resampling.BICUBIC) if side else copy


if __name__ == "__main__":
    sys.exit(main())
