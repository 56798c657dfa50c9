"""The hour of somebody with a messy folder of photos (benchmarks/first_hour.py), with few of them: three real photos,
of which each picture is a piece of 64 px, and the class which photo it is of.

Whether the minutes are kept is for a quiet machine: `python -m benchmarks.first_hour --check`.
"""

import json
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from benchmarks import first_hour
from tests.copies import commit_all, copy_project
from tests.toy import PROJECT
from thinner.config import load_params
from thinner.data import sources

SIDE, LABELLED, UNLABELLED, ASKED = 64, 24, 8, 4
SHARES = {"share_wrong": 0.1, "share_twins": 0.1}
# What somebody shared: as few steps as show that all of it runs. How many `init` takes by itself: tests/flows/test_init.py
QUICK = """\
title: little
note: for a test
set:
  run.threads: 1
  finetune.training.epochs: 6
  student.training.steps: 60
  prune.rounds: 1
  prune.training.steps: 30
"""


def pieces(photo: Image.Image, count: int, seed: int) -> list[Image.Image]:
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        side = int(draw.integers(SIDE, min(photo.size)))
        x, y = (int(draw.integers(0, extent - side + 1)) for extent in photo.size)
        found.append(photo.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=(x, y, x + side, y + side)))
    return found


@pytest.fixture(scope="module")
def pictures() -> dict[str, list[Image.Image]]:
    china, flower = (Image.fromarray(photo) for photo in load_sample_images().images)
    with Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg") as file:
        portrait = file.convert("RGB")
    photos = {"temple": china, "flower": flower, "portrait": portrait}
    return {
        name: pieces(photo, LABELLED + UNLABELLED + ASKED, seed) for seed, (name, photo) in enumerate(photos.items())
    }


def test_the_mess_is_one_and_the_pipeline_reads_it(pictures: dict[str, list[Image.Image]], tmp_path: Path) -> None:
    mess = first_hour.make_mess(
        pictures, tmp_path / "photos", labelled=LABELLED, unlabelled=UNLABELLED, asked=ASKED, **SHARES
    )
    listing = sources.list_source(f"folder:{tmp_path / 'photos'}", tmp_path / "photos")
    assert listing.classes == ("flower", "portrait", "temple")
    assert (listing.labels >= 0).sum() == mess.labelled + len(mess.twins)
    assert (listing.labels < 0).sum() == mess.unlabelled
    assert mess.wrong and mess.twins and sum(map(len, mess.asked.values())) == 3 * ASKED
    assert len({Path(name).suffix for name in map(listing.name, range(len(listing)))}) >= 8
    assert {Path(name).suffix for name in listing.ignored} >= {".txt", ".xlsx"}
    for number in range(len(listing)):
        with listing.read(number) as picture:
            assert picture.size == (SIDE, SIDE)


@pytest.mark.long
def test_the_hour_of_somebody_with_photos(pictures: dict[str, list[Image.Image]], tmp_path: Path) -> None:
    root = copy_project(tmp_path / "thinner")
    mess = first_hour.make_mess(
        pictures, root / first_hour.PHOTOS, labelled=LABELLED, unlabelled=UNLABELLED, asked=ASKED, **SHARES
    )
    commit_all(root)
    recipe = tmp_path / "shared.yaml"
    recipe.write_text(QUICK)
    found = first_hour.play(root, mess, minutes=1, recipe=recipe)
    assert "A run takes about" in found["said"] and "test images" in found["said"]
    assert (root / ".thinner/params-before-init.yaml").read_bytes() == (PROJECT / "params.yaml").read_bytes()
    assert found["foretold"] > 0 and {"prepare", "finetune", "prune", "report"} <= set(found["planned"])
    params = load_params(root / "params.yaml")
    assert params.prune.rounds == 1 and params.prune.source == "finetune"
    assert params.data.source == f"folder:{first_hour.PHOTOS}" and params.data.channels == 3
    assert found["end"]["exit_code"] == 0 and found["end"]["verdict"] in ("to ship", "nothing to ship")
    assert all(target["met"] for target in found["end"]["target"])
    assert found["predicted"] == 3 * ASKED and found["right"] >= 2 * ASKED
    assert found["twins found"] >= 0.5 * found["twins"] > 0
    assert found["wrong among the suspects"] >= 0.5 * min(found["wrong labels"], found["suspects"]) > 0
    metrics = json.loads((root / "reports" / "metrics.json").read_text())
    assert metrics["prune"]["macs"] < metrics["finetune"]["macs"]
