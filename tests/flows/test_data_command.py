"""flows/data.py: `thinner data ...` on a folder of pictures, from what is found to what prepare makes of it."""

import csv
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from flows import cli, recipes
from tasks.prepare import prepare
from tasks.stage import Stage
from tests.toy import PROJECT
from thinner.config import load_params
from thinner.data.store import open_store

runner = CliRunner()
COLOURS = {"blue": (30, 60, 220), "green": (40, 200, 60), "red": (220, 40, 40)}


def picture(colour: tuple[int, int, int], rng: np.random.Generator) -> Image.Image:
    """Blots of one colour on grey: a class that a network tells apart."""
    shade = Image.fromarray(rng.integers(0, 256, (5, 5), np.uint8)).resize((32, 32), Image.Resampling.BICUBIC)
    weight = np.asarray(shade, dtype=np.float64)[..., None] / 255
    return Image.fromarray((weight * np.array(colour) + (1 - weight) * 128).astype(np.uint8))


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(PROJECT / name, tmp_path)
    folder = tmp_path / "data/raw/photos"
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for i in range(20):
            picture(colour, rng).save(folder / name / f"{i:02d}.png")
    values = {
        "data.source": "folder:data/raw/photos", "data.image_size": 32, "data.channels": 3, "data.labelled": 0.5,
        "data.validation": 0.3, "data.test": 0.2, "student.mean": [0.5] * 3, "student.std": [0.5] * 3,
        "run.threads": 1, "run.device": "cpu",
    }  # fmt: skip
    recipes.write(tmp_path, values, "the test")
    return folder


def prepared() -> None:
    prepare(Stage("prepare", load_params()))


def rows(path: str) -> list[dict[str, str]]:
    with Path(path).open(newline="", encoding="utf-8") as text:
        return list(csv.DictReader(text))


def images_in(page: str) -> list[Image.Image]:
    import base64

    found = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    return [Image.open(io.BytesIO(base64.b64decode(text))) for text in found]


def self_contained(page: str) -> bool:
    return "default-src 'none'" in page and not re.search(r"(src|href)=\"(?!data:)|url\(|@import|<script", page)


# ------------------------------------------------------------------------------- near-duplicates


def test_leaks_come_first_and_are_shown_side_by_side(photos: Path) -> None:
    prepared()
    names = json.loads(Path("data/prepared/names.json").read_text())
    splits = open_store("data/prepared").splits
    first, second = (names[splits["labelled"][i]] for i in (0, 1))
    leaking = names[splits["test"][0]]
    mirrored = Image.open(photos / first).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    mirrored.save(photos / leaking)
    shutil.copy(photos / second, photos / names[splits["labelled"][2]])
    prepared()
    done = runner.invoke(cli.app, ["data", "duplicates"])
    assert done.exit_code == 0, done.output
    assert "2 pairs of near-duplicates in 2 groups, of 60 pictures" in done.output
    assert re.search(rf"test in labelled +1 +{re.escape(f'{first} and {leaking}')}", done.output)
    assert "data.near_duplicates: one_split" in done.output
    found = rows("reports/duplicates.csv")
    assert [row["leak"] for row in found] == ["test in labelled", ""]
    assert {found[0]["file"], found[0]["file_2"]} == {first, leaking} and found[0]["how"] == "mirrored"
    assert found[1]["how"] == "identical" and found[1]["similarity"] == "1.0000"
    page = Path("reports/duplicates.html").read_text()
    shown = images_in(page)
    assert len(shown) == 4 and self_contained(page)
    assert np.array_equal(np.asarray(shown[1]), np.asarray(mirrored))
    assert page.index("test in labelled") < page.index("within one split")


def test_no_duplicates_is_said_too(photos: Path) -> None:
    prepared()
    done = runner.invoke(cli.app, ["data", "duplicates"])
    assert done.exit_code == 0, done.output
    assert "0 pairs" in done.output and "none of them between two splits" in done.output
    assert rows("reports/duplicates.csv") == []


def test_without_prepared_data_each_says_how_to_make_them(photos: Path) -> None:
    for command in ("duplicates", "suspects"):
        done = runner.invoke(cli.app, ["data", command])
        assert done.exit_code == 1 and "dvc repro prepare" in done.output
        assert len(done.output.strip().splitlines()) == 1


def test_names_that_do_not_fit_the_pictures_are_refused(photos: Path) -> None:
    prepared()
    Path("data/prepared/names.json").write_text('["a"]')
    done = runner.invoke(cli.app, ["data", "duplicates"])
    assert done.exit_code == 1 and "does not hold the names of 60 pictures" in done.output


# ------------------------------------------------------------------------------- suspects and corrections


def misplaced(photos: Path) -> tuple[str, str]:
    """Two labelled pictures are put into the wrong folder; returns their new names."""
    prepared()
    names = json.loads(Path("data/prepared/names.json").read_text())
    labelled = [names[row] for row in open_store("data/prepared").splits["labelled"]]
    red, blue = (next(name for name in labelled if name.startswith(colour)) for colour in ("red", "blue"))
    for name, colour in ((red, "blue"), (blue, "green")):
        picture(COLOURS[colour], np.random.default_rng(9)).save(photos / name)
    prepared()
    return red, blue


def test_from_a_suspect_to_a_corrected_label_and_back(photos: Path) -> None:
    red, blue = misplaced(photos)
    done = runner.invoke(cli.app, ["data", "suspects"])
    assert done.exit_code == 0, done.output
    found = rows("reports/suspects.csv")
    assert f"{len(found)} of 48 labels" in done.output and len(found) == 5
    assert [row["rank"] for row in found] == ["1", "2", "3", "4", "5"]
    suspected = {row["file"]: (row["given"], row["suggested"], row["label"]) for row in found[:2]}
    assert suspected == {red: ("red", "blue", ""), blue: ("blue", "green", "")}
    page = Path("reports/suspects.html").read_text()
    assert len(images_in(page)) == 5 and self_contained(page)
    again = Path("reports/suspects.csv").read_bytes()
    runner.invoke(cli.app, ["data", "suspects"])
    assert Path("reports/suspects.csv").read_bytes() == again

    # nobody has decided anything yet
    nothing = runner.invoke(cli.app, ["data", "apply", "reports/suspects.csv", "--yes"])
    assert nothing.exit_code == 0 and "no line has a `label` yet" in nothing.output
    assert not Path("data/raw/corrections.csv").exists()

    # what a person has written into the list is not written over, whatever a spreadsheet made of it
    decided = again.replace(b",blue,,", b",blue,green,", 1)
    for text in (decided, decided.replace(b",", b";")):
        Path("reports/suspects.csv").write_bytes(text)
        refused = runner.invoke(cli.app, ["data", "suspects"])
        assert refused.exit_code == 1 and "hold" in refused.output and "labels" in refused.output
        assert Path("reports/suspects.csv").read_bytes() == text
    Path("reports/suspects.csv").write_bytes(again)

    # the person decides on two lines
    pd.read_csv("reports/suspects.csv").assign(label=lambda table: table["suggested"].where(table["rank"] <= 2)).to_csv(
        "mine.csv", index=False
    )
    before = Path("params.yaml").read_text()
    asked = runner.invoke(cli.app, ["data", "apply", "mine.csv"])
    assert asked.exit_code == 1 and "there is nobody to ask" in asked.output
    assert Path("params.yaml").read_text() == before and not Path("data/raw/corrections.csv").exists()
    done = runner.invoke(cli.app, ["data", "apply", "mine.csv", "--yes"])
    assert done.exit_code == 0, done.output
    assert "2 of 2 lines with a label change it" in done.output
    assert re.search(r"red +blue +1", done.output) and f"{red}: red → blue" in done.output
    assert "data.corrections: null -> data/raw/corrections.csv" in done.output
    lines = zip(before.splitlines(), Path("params.yaml").read_text().splitlines(), strict=True)
    ((old, new),) = [(old, new) for old, new in lines if old != new]
    assert old.split()[:2] == ["corrections:", "null"] and old.split("#")[1] == new.split("#")[1]
    assert new.split()[:2] == ["corrections:", "data/raw/corrections.csv"]
    wrong = open_store("data/prepared")
    prepared()
    right = open_store("data/prepared")
    names = json.loads(Path("data/prepared/names.json").read_text())
    changed = {names[row]: right.classes[right.labels[row]] for row in np.flatnonzero(right.labels != wrong.labels)}
    assert changed == {red: "blue", blue: "green"}

    # null takes them back, to the byte
    recipes.write(Path(), {"data.corrections": None}, "the test")
    prepared()
    assert open_store("data/prepared").sha256 == wrong.sha256
    refused = runner.invoke(cli.app, ["data", "apply", "mine.csv", "--yes"])
    assert refused.exit_code == 1 and "is there, but data.corrections is null" in refused.output


def test_a_line_that_does_not_fit_writes_nothing(photos: Path) -> None:
    Path("mine.csv").write_text("file,given,label\nred/00.png,red,blue\nred/99.png,red,blue\nred/01.png,red,rad\n")
    done = runner.invoke(cli.app, ["data", "apply", "mine.csv", "--yes"])
    assert done.exit_code == 1
    assert done.output.splitlines() == [
        "mine.csv line 3: 'red/99.png' is no picture of folder data/raw/photos. Remove the line",
        "mine.csv line 4: unknown class 'rad'. Choose one of: blue, green, red",
    ]
    assert not Path("data/raw/corrections.csv").exists()


def test_lines_that_change_nothing_write_nothing(photos: Path) -> None:
    Path("mine.csv").write_text("file,given,label\nred/00.png,red,red\n")
    done = runner.invoke(cli.app, ["data", "apply", "mine.csv", "--yes"])
    assert done.exit_code == 0 and "0 of 1 lines with a label change it" in done.output
    assert not Path("data/raw/corrections.csv").exists()


def test_labels_are_judged_by_a_pretrained_network_only(photos: Path) -> None:
    prepared()
    recipes.write(Path(), {"finetune.weights": None}, "the test")
    done = runner.invoke(cli.app, ["data", "suspects"])
    assert done.exit_code == 1 and done.output.startswith("finetune.weights: null, but labels are judged by")


def test_corrections_lie_where_dvc_sees_them(photos: Path) -> None:
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["data"]["corrections"] = "labels.csv"
    Path("params.yaml").write_text(yaml.safe_dump(params))
    done = runner.invoke(cli.app, ["data", "apply", "mine.csv"])
    assert done.exit_code == 1
    assert "data.corrections: 'labels.csv' lies outside of data.root ('data/raw')" in done.output
    assert "Move it: data.corrections: data/raw/labels.csv" in done.output
    params["data"]["corrections"] = "data/raw/labels.csv"
    Path("params.yaml").write_text(yaml.safe_dump(params))
    done = runner.invoke(cli.app, ["data", "apply", "mine.csv"])
    assert "data.corrections: no file 'data/raw/labels.csv'" in done.output


# ------------------------------------------------------------------------------- shards


def test_from_a_folder_to_shards_that_prepare_reads_alike(photos: Path) -> None:
    prepared()
    before = {name: Path("data/prepared", name).read_bytes() for name in ("images.npy", "labels.npy", "splits.npz")}
    done = runner.invoke(cli.app, ["data", "pack", str(photos), "data/raw/shards", "--shard-size", "25"])
    assert done.exit_code == 0, done.output
    size = sum(path.stat().st_size for path in Path("data/raw/shards").glob("*.tar"))
    assert re.search(rf" 3 +60 +60 +{size:,} +{size // 3:,} +train", done.output)
    command = "thinner set data.source=shards:data/raw/shards data.root=data/raw/shards"
    assert f"Next     {command}" in done.output
    assert runner.invoke(cli.app, command.split()[1:]).exit_code == 0
    prepared()
    assert {name: Path("data/prepared", name).read_bytes() for name in before} == before
    assert json.loads(Path("data/prepared/names.json").read_text())[0] == "train-000000.tar/blue/00.png"
    assert sorted(path.name for path in Path("data/raw").iterdir()) == ["photos", "shards"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data/raw/photos", "data/raw"], "data/raw: is there already. Give another place, or remove it first"),
        (["data/raw/photos", "data/raw/photos/x"], "lies in data/raw/photos, which would hold its own shards then"),
        (["torchvision:MNIST", "s"], "only folders and lists of pictures are packed. Give folder:PATH or csv:PATH"),
        (["shards:data/raw/photos", "s"], "only folders and lists of pictures are packed"),
        (["folder:data/raw/fotos", "s"], "Did you mean 'data/raw/photos'"),
        (["data/raw/list.csv", "s"], "gone.png' cannot be packed (No such file or directory)"),
        (["data/raw/photos", "s", "--shard-size", "500"], ""),
        (["data/raw/photos", "s", "--shard-size", "0"], "--shard-size: '0' is neither bytes, such as 500MB, nor a"),
        (["data/raw/photos", "s", "--shard-size", "5 apples"], "--shard-size: '5 apples' is neither"),
        (
            ["data/raw/photos", "s", "--shard-size", "0kB"],
            "--shard-size: '0kB' is no size of a file. Give for example 200kB",
        ),
        (["data/raw/photos", "s", "--shard-size", "1.5 MB"], ""),
    ],
)
def test_what_cannot_be_packed_leaves_nothing_behind(photos: Path, words: list[str], said: str) -> None:
    Path("data/raw/list.csv").write_text("path,label\nphotos/red/00.png,red\ngone.png,blue\n")
    before = sorted(path for path in Path().rglob("*"))
    done = runner.invoke(cli.app, ["data", "pack", *words])
    assert said in done.output.replace("\n", "") and done.exit_code == (1 if said else 0), done.output
    if said:
        assert sorted(path for path in Path().rglob("*")) == before
