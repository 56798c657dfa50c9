"""flows/drift.py: `thinner watch` on folders of pictures, with a network of random weights that is a stage's."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from flows import cli, drift, recipes
from tests.toy import PROJECT
from thinner.data.sources import list_source
from thinner.data.store import open_store, write_store
from thinner.errors import UserError
from thinner.measure.outputs import Outputs
from thinner.networks import checkpoint, export, models
from thinner.networks.spec import NetworkSpec

runner = CliRunner()
SIDE, CLASSES = 16, ("blue", "green", "red")
COLOURS = {"blue": (30, 60, 220), "green": (40, 200, 60), "red": (220, 40, 40)}
NETWORK = NetworkSpec("resnet8", 3, 3, width=4, stem_stride=1)
SPEC: dict[str, Any] = {
    "network": NETWORK.as_json(),
    "classes": list(CLASSES),
    "stage": "prune",
    "parents": {},
    "data_sha256": "0",
    "preprocessing": {"image_size": SIDE, "channels": 3, "mean": [0.5] * 3, "std": [0.5] * 3},
}


def save(folder: Path, count: int, seed: int, darker: float = 1.0) -> None:
    """Blots of the three colours on grey, as many of each."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        shade = Image.fromarray(rng.integers(0, 256, (5, 5), np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        weight = np.asarray(shade, dtype=np.float64)[..., None] / 255
        pixels = weight * np.array(COLOURS[CLASSES[i % 3]]) + (1 - weight) * 128
        Image.fromarray((darker * pixels).astype(np.uint8)).save(folder / f"{i:03d}.png")


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working copy with prepared data, a network and its export; new pictures like those, and darker ones."""
    root = tmp_path_factory.mktemp("shipped")
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(PROJECT / name, root)
    photos = root / "data/raw/photos"
    save(root / "all", 240, seed=0)
    for i, path in enumerate(sorted((root / "all").iterdir())):
        place = photos / CLASSES[i % 3]
        place.mkdir(parents=True, exist_ok=True)
        path.rename(place / path.name)
    values = {
        "data.source": "folder:data/raw/photos", "data.image_size": SIDE, "data.channels": 3, "run.threads": 1,
        "run.device": "cpu", "student.mean": [0.5] * 3, "student.std": [0.5] * 3,
    }  # fmt: skip
    recipes.write(root, values, "the test")
    write_store(
        root / "data/prepared", list_source(f"folder:{photos}", root / "data/raw", lambda line: None),
        source="folder:data/raw/photos", image_size=SIDE, channels=3, fit="crop", labelled=30, validation=180,
        test=30, unlabelled=0, max_unreadable=0.0, max_pixels=10**6, seed=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = models.create(NETWORK).eval()
    checkpoint.save(root / "data/prune", model, SPEC)
    save(root / "data/raw/new", 90, seed=1)
    save(root / "darker", 90, seed=2, darker=0.6)
    return root


@pytest.fixture
def at(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(shipped)
    shutil.rmtree("reports/watch", ignore_errors=True)
    return shipped


def watch(*arguments: str) -> Result:
    return runner.invoke(cli.app, ["watch", *arguments])


def rows(path: str = "reports/watch/to_label.csv") -> list[dict[str, str]]:
    with Path(path).open(newline="", encoding="utf-8-sig") as text:
        return list(csv.DictReader(text))


def fill(path: Path, label: Callable[[dict[str, str]], str]) -> None:
    """As a person does it, in whatever program."""
    filled = rows(str(path))
    with path.open("w", newline="", encoding="utf-8-sig") as text:
        writer = csv.DictWriter(text, drift.COLUMNS)
        writer.writeheader()
        writer.writerows({**row, "label": label(row)} for row in filled)


def test_pictures_like_those_of_validation_have_not_drifted(at: Path) -> None:
    done = watch("data/raw/new", "--strict", "--json", "found.json")
    assert done.exit_code == 0, done.output
    assert "No drift seen, at a false-alarm rate of 1 %: 90 pictures against 180 of validation, by prune" in done.output
    found = json.loads(Path("found.json").read_text())
    assert (found["verdict"], found["false_alarm_rate"], found["pictures"]) == ("no drift seen", 0.01, 90)
    assert set(found["tests"]) == {"confidence", "classes", "features"}
    assert not any(test["drifted"] for test in found["tests"].values())
    assert f"moves {100 * found['detectable']:.1f} % of them" in done.output
    assert "not calibrated: thinner stage evaluate" in done.output and not found["calibrated"]
    assert "reports/watch/to_label.csv    50 pictures" in done.output and "reports/watch/watch.html" in done.output
    assert re.search(r"Next +fill in column `label`", done.output)


def test_a_planted_shift_is_found(at: Path) -> None:
    done = watch("darker")
    assert done.exit_code == 0, done.output
    assert re.search(r"Drift of .*features, at a false-alarm rate of 1 %: 90 .*by prune", done.output)
    strict = watch("darker", "--strict", "--false-alarms", "5")
    assert strict.exit_code == drift.DRIFTED == 3
    assert "at a false-alarm rate of 5 %" in strict.output and "what has changed?" in strict.output


@pytest.mark.integration  # exporting takes seconds
def test_an_export_finds_the_same(at: Path) -> None:
    folder = at / "data/export/prune_onnx"
    folder.mkdir(parents=True)
    loaded = checkpoint.load(at / "data/prune")
    export.export_onnx(loaded.model, folder / "model.onnx", (3, SIDE, SIDE), {"classes": list(CLASSES)}, opset=20)
    (folder / "model.json").write_text(json.dumps(SPEC))
    found = {}
    for name in ("prune", "prune_onnx"):
        done = watch("darker", "--strict", "--candidate", name, "--json", f"{name}.json")
        assert done.exit_code == drift.DRIFTED, done.output
        found[name] = json.loads(Path(f"{name}.json").read_text())
    ours, theirs = (found[name]["tests"]["confidence"]["statistic"] for name in found)
    assert ours == pytest.approx(theirs, abs=0.02)
    same = watch("data/raw/new", "--strict", "--candidate", "prune_onnx")
    assert same.exit_code == 0, same.output


def test_the_list_when_it_is_filled_in_is_a_source_of_prepare(at: Path) -> None:
    assert watch("data/raw/new", "--label", "30").exit_code == 0
    listed = rows()
    assert len(listed) == 30 and list(listed[0]) == list(drift.COLUMNS)
    assert [row["rank"] for row in listed] == [str(place) for place in range(1, 31)]
    assert {row["label"] for row in listed} == {""} and len({row["path"] for row in listed}) == 30
    place = Path("reports/watch/to_label.csv")
    empty = list_source  # nobody has labelled anything yet
    with pytest.raises(Exception, match="has no label"):
        empty(f"csv:{place}", "data/raw", lambda line: None)
    truth = {f"{i:03d}.png": CLASSES[i % 3] for i in range(90)}
    skipped = listed[3]["path"]
    fill(place, lambda row: "" if row["path"] == skipped else truth[Path(row["path"]).name])
    listing = list_source(f"csv:{place}", "data/raw", lambda line: None)
    assert listing.classes == CLASSES and len(listing) == 30
    write_store(
        at / "again", listing, source=f"csv:{place}", image_size=SIDE, channels=3, fit="crop", labelled=9,
        validation=6, test=6, unlabelled="rest", max_unreadable=0.0, max_pixels=10**6, seed=0,
    )  # fmt: skip
    store = open_store(at / "again")
    assert {name: len(numbers) for name, numbers in store.splits.items()} == {
        "labelled": 9, "unlabelled": 9, "validation": 6, "test": 6,
    }  # fmt: skip
    first = Image.open(place.parent / listed[0]["path"])
    assert np.array_equal(store.images[0], np.asarray(first))
    assert (
        store.classes[store.labels[store.splits["labelled"][0]]]
        == truth[Path(listed[store.splits["labelled"][0]]["path"]).name]
    )


def test_labels_that_somebody_wrote_are_not_overwritten(at: Path) -> None:
    assert watch("data/raw/new").exit_code == 0
    fill(Path("reports/watch/to_label.csv"), lambda row: "red" if row["rank"] == "2" else "")
    done = watch("data/raw/new")
    assert done.exit_code == 1 and "reports/watch/to_label.csv: holds labels that somebody wrote" in done.output
    assert [row["label"] for row in rows()].count("red") == 1
    Path("file").write_text("")
    assert "--out: file/below cannot be made (Not a directory)" in watch("data/raw/new", "--out", "file/below").output
    assert watch("data/raw/new", "--out", "elsewhere").exit_code == 0
    assert len(rows("elsewhere/to_label.csv")) == 50


def test_labels_that_somebody_writes_meanwhile_are_not_overwritten(at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from thinner.evidence import drift as evidence

    assert watch("data/raw/new").exit_code == 0
    compare = evidence.compare

    def label_then_compare(*given: Any) -> Any:
        fill(Path("reports/watch/to_label.csv"), lambda row: "red" if row["rank"] == "2" else "")
        return compare(*given)

    monkeypatch.setattr(evidence, "compare", label_then_compare)
    done = watch("data/raw/new")
    assert done.exit_code == 1 and "reports/watch/to_label.csv: holds labels that somebody wrote" in done.output
    assert [row["label"] for row in rows()].count("red") == 1


@pytest.mark.parametrize("part", ["logits", "features"])
def test_numbers_that_are_none_are_refused_and_not_compared(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    given = {"logits": np.zeros((3, 2)), "features": np.zeros((3, 4))}
    given[part][1, 0] = np.nan
    monkeypatch.setattr("thinner.measure.outputs.outputs", lambda *_: Outputs(**given))
    with pytest.raises(UserError, match=r"gives no finite numbers for 1 of 3 pictures, .*--candidate NAME$"):
        drift._outputs(None, [], "pictures", 3, print)


def test_a_rate_that_cannot_be_had_is_refused_before_anything_takes_long(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^false alarms: 60 %\. Give 0\.1 to 50"):
        drift.watch(tmp_path, None, [], "prune", tmp_path, 0.6, 50, tmp_path / "out")  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "text", [b"path;label;split\n./a.png;red;\n", "path\tlabel\n./a.png\tred\n".encode("utf-16"), b""]
)
def test_a_list_that_a_spreadsheet_saved_in_its_own_way_is_not_overwritten(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "to_label.csv").write_bytes(text)
    with pytest.raises(UserError, match=r"to_label\.csv: .*may hold labels.*, or write elsewhere: --out FOLDER$"):
        drift._check_place(tmp_path)
    assert (tmp_path / "to_label.csv").read_bytes() == text
    (tmp_path / "to_label.csv").unlink()
    (tmp_path / "to_label.csv").mkdir()
    with pytest.raises(UserError, match=r"cannot be read"):
        drift._check_place(tmp_path)


def test_the_page_shows_the_pictures_and_asks_the_network_for_nothing(at: Path) -> None:
    import base64
    import io

    assert watch("darker", "--label", "7").exit_code == 0
    page = Path("reports/watch/watch.html").read_text()
    assert "default-src 'none'" in page and not re.search(r"(src|href)=\"(?!data:)|url\(|@import|<script", page)
    shown = [Image.open(io.BytesIO(base64.b64decode(text))) for text in re.findall(r"base64,([^\"]+)\"", page)]
    assert len(shown) == 7 + drift.SHOWN + drift.SHOWN
    first = Image.open(Path("reports/watch", rows()[0]["path"]))
    assert np.array_equal(np.asarray(shown[0]), np.asarray(first))
    assert page.count("<svg") == 2 and "<title>new blue" in page
    headings = re.findall("<h2>(.*?)</h2>", page)
    assert headings[0] == "The 7 most worth a label" and len(headings) == 3


def test_near_duplicates_are_not_both_asked_for(at: Path, tmp_path: Path) -> None:
    save(tmp_path / "twice", 30, seed=5)
    for path in list((tmp_path / "twice").iterdir()):
        Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path.with_name(f"m{path.name}"))
    assert watch(str(tmp_path / "twice"), "--label", "60").exit_code == 0
    names = [Path(row["path"]).name.removeprefix("m") for row in rows()]
    assert len(names) == len(set(names)) and len(names) >= 25


def test_what_cannot_be_read_is_named_counted_and_left_out(at: Path, tmp_path: Path) -> None:
    save(tmp_path / "some", 60, seed=3)
    (tmp_path / "some/999.png").write_bytes(b"no picture")
    (tmp_path / "some/a\tb.png").write_bytes((tmp_path / "some/000.png").read_bytes())
    (tmp_path / "some/001.png").rename(tmp_path / "some/Bildschirmfoto 9.41\u202fPM.png")  # as macOS names them
    done = watch(str(tmp_path / "some"), "--json", "some.json")
    assert done.exit_code == 0, done.output
    assert (
        "note: data/prepared is not what" in done.stderr and "the rate of false alarms is not as stated" in done.stderr
    )
    assert "2 of 62 pictures cannot be read and are left out" in done.output and "999.png (is no picture" in done.output
    found = json.loads(Path("some.json").read_text())
    assert found["pictures"] == 60 and len(found["unreadable"]) == 2
    (tmp_path / "broken").mkdir()
    shutil.copy(tmp_path / "some/999.png", tmp_path / "broken")
    done = watch(str(tmp_path / "broken"))
    assert done.exit_code == 1 and re.search(r"none of 1 pictures can be read \(.*999.png: is no picture", done.output)


def test_few_pictures_are_said_to_be_few(at: Path, tmp_path: Path) -> None:
    save(tmp_path / "few", 12, seed=4)
    done = watch(str(tmp_path / "few"), "--strict", "--json", "few.json")
    assert done.exit_code == 0, done.output
    assert re.search(r"Too few pictures to see a large shift.* Give \d+ or more", done.output)
    found = json.loads(Path("few.json").read_text())
    assert found["verdict"] == "too few pictures" and len(found["to_label"]) <= 12
    (tmp_path / "empty").mkdir()
    assert "no pictures in this folder" in watch(str(tmp_path / "empty")).output
    save(tmp_path / "fewer", 5, seed=4)
    done = watch(str(tmp_path / "fewer"))
    assert done.exit_code == 1 and "5 pictures to look at: too few to compare anything" in done.output


def test_without_validation_pictures_of_this_network_it_says_what_to_do(
    at: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    prepared, kept = Path("data/prepared"), tmp_path / "prepared"
    shutil.copytree(prepared, kept)

    def message() -> str:
        done = watch("data/raw/new")
        assert done.exit_code == 1
        (line,) = done.output.strip().splitlines()
        return line

    try:
        info = json.loads((prepared / "info.json").read_text())
        (prepared / "info.json").write_text(json.dumps({**info, "classes": ["a", "b", "c"]}))
        assert "has other classes than" in message()
        shutil.copy(kept / "info.json", prepared)
        recipes.write(at, {"data.image_size": 20}, "the test")
        assert "pictures of 16 px with 3 channels, but params.yaml has data.image_size: 20" in message()
        recipes.write(at, {"data.image_size": SIDE}, "the test")
        shutil.rmtree(prepared)
        assert "no prepared data" in message() and "dvc repro prepare" in message()
    finally:
        shutil.rmtree(prepared, ignore_errors=True)
        shutil.copytree(kept, prepared)
    assert "no candidate 'distill'. Choose one of: " in watch("data/raw/new", "--candidate", "distill").output


def test_the_list_when_it_is_filled_in_is_brought_into_the_source(at: Path, tmp_path: Path) -> None:
    shutil.copytree(at / "data/raw", tmp_path / "raw")
    try:
        assert watch("darker", "--label", "20").exit_code == 0
        place = Path("reports/watch/to_label.csv")
        truth = {f"{i:03d}.png": CLASSES[i % 3] for i in range(90)}
        fill(place, lambda row: truth[Path(row["path"]).name] if int(row["rank"]) <= 15 else "")
        wanted = [row for row in rows(str(place)) if row["label"]]
        asked = runner.invoke(cli.app, ["data", "add", str(place)])
        assert asked.exit_code == 1 and "there is nobody to ask" in asked.output
        before = list_source("folder:data/raw/photos", "data/raw", lambda line: None)
        done = runner.invoke(cli.app, ["data", "add", "--yes", str(place)])
        assert done.exit_code == 0, done.output
        assert "folder:data/raw/photos: 15 pictures more" in done.output
        assert "has no test and no validation split of its own. It is drawn anew" in done.output
        after = list_source("folder:data/raw/photos", "data/raw", lambda line: None)
        more = {after.name(i): i for i in range(len(after))}.keys() - {before.name(i) for i in range(len(before))}
        assert sorted(Path(name).parent.name for name in more) == sorted(row["label"] for row in wanted)
        assert {Path(name).name.split("-")[0] for name in more} == {Path(row["path"]).stem for row in wanted}
    finally:
        shutil.rmtree(at / "data/raw")
        shutil.copytree(tmp_path / "raw", at / "data/raw")
