"""thinner bundle: what is in it answers as `thinner predict` does, whatever the picture; and elsewhere, without torch."""

import ast
import csv
import hashlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

import thinner
from flows import cli, recipes
from tasks.bundle import make_bundle
from tests.browser import Browser
from tests.programs import load_program
from thinner.compress import quantization
from thinner.config import load_params
from thinner.errors import UserError
from thinner.measure import operating
from thinner.networks import checkpoint, export, models
from thinner.networks.spec import NetworkSpec
from thinner.predict import open_candidate, weights_sha256
from thinner.ship import bundle as bundling

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ["cat", "dog|wolf", "Aal ü"]
SIDE, TEMPERATURE = 28, 2.5


def network(channels: int) -> tuple[NetworkSpec, torch.nn.Module]:
    """A small network with random weights, batch norms that have seen something, and logits that are far apart."""
    about = NetworkSpec("resnet8", 3, channels, width=4, stem_stride=1)
    torch.manual_seed(1)
    model = models.create(about).train()
    with torch.no_grad():
        model(torch.randn(64, channels, 16, 16))
        head = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
        head.weight *= 20
        # patterns of all contrasts and sizes of detail: each class is named for some
        some = [torch.nn.functional.interpolate(torch.rand(16, channels, k, k), (32, 32)) for k in (1, 4, 16, 32)]
        head.bias -= model.eval()((torch.cat(some) - 0.3) / 0.2).median(0).values
    return about, model.eval()


def write_project(root: Path, channels: int = 1, colours: int = 1, fit: str = "crop", size: int = 32) -> Path:
    """What a run leaves, as far as a bundle is concerned. ``channels``: of the pictures; ``colours``: of the network."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["data"] |= {"image_size": SIDE, "channels": channels, "fit": fit}
    params["ship"]["candidate"] = "prune_onnx"
    params["student"] |= {"mean": [0.5] * channels, "std": [0.5] * channels}
    (root / "data/prepared").mkdir(parents=True)
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    shutil.copy(ROOT / "dvc.yaml", root)
    labels = np.arange(90) % 3
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (90, SIDE, SIDE, channels), dtype=np.uint8)
    splits = {
        "labelled": np.arange(20),
        "unlabelled": np.arange(20, 20),
        "validation": np.arange(20, 50),
        "test": np.arange(50, 90),
    }
    np.save(root / "data/prepared/images.npy", images)
    np.save(root / "data/prepared/labels.npy", labels)
    np.savez(root / "data/prepared/splits.npz", **splits)  # type: ignore[arg-type]
    counts = {name: len(numbers) for name, numbers in splits.items()}
    info = {"classes": CLASSES, "sha256": "d" * 64, "source": "made here", "counts": counts, "fit": fit}
    (root / "data/prepared/info.json").write_text(json.dumps(info))
    about, model = network(colours)
    spec = {
        "network": about.as_json(), "classes": CLASSES, "stage": "prune", "parents": {}, "data_sha256": "0",
        "preprocessing": {"image_size": size, "channels": channels, "mean": [0.3, 0.4, 0.5][:colours], "std": [0.2, 0.3, 0.4][:colours]},
    }  # fmt: skip
    checkpoint.save(root / "data/prune", model, spec)
    (root / "reports/evaluate").mkdir(parents=True)
    # thresholds between which some test images lie: the middle of their own log-odds
    logits = np.concatenate([answer(root / "data/prune", picture) for picture in images[50:]])
    middle = float(np.median(operating.log_odds(logits)))
    points = [
        operating.measure(labels[50:], logits, target, odds, 30) for target, odds in ((0.95, middle), (0.98, None))
    ]
    (root / operating.FILE).write_text(json.dumps(operating.as_json({"prune": points, "prune_onnx": points})))
    row = {
        "accuracy": 0.7, "macs": 3_000_000, "params": 23_456, "file_bytes": 95_000, "runtime": "pytorch",
        "latency_ms_b1": 1.25, "latency_ms_b1_low": 1.2, "latency_ms_b1_high": 1.3, "threads": 1,
        "temperature": TEMPERATURE, "ece": 0.08, "ece_scaled": 0.02,
    }  # fmt: skip
    (root / "reports/metrics.json").write_text(
        json.dumps({"finetune": {**row, "accuracy": 0.8}, "prune": row, "prune_onnx": row})
    )
    (root / "reports/evaluate/environment.json").write_text(json.dumps({"cpu": "Some CPU", "test_images": 40}))
    verdict = {
        "claim": "prune beats small on accuracy",
        "kind": "beats",
        "outcome": "not shown",
        "numbers": "+1.00 points",
    }
    (root / "reports/claims.json").write_text(json.dumps({"claim_1": verdict}))
    (root / "reports/evaluate/per_class.csv").write_text(
        "candidate,class,images,accuracy,low,high\nprune_onnx,dog|wolf,13,0.5,0.25,0.75\nfinetune,cat,13,1,0.7,1\n"
    )
    return root


def answer(folder: Path, picture: np.ndarray) -> np.ndarray:
    """The candidate's logits for one stored picture: what `thinner predict` computes."""
    candidate = open_candidate(folder)
    return candidate.collect(candidate.run(candidate.place(candidate.preprocess(picture[None]))))


def make(root: Path, candidate: str = "prune", **more: Any) -> Path:
    return make_bundle(root, load_params(root / "params.yaml"), candidate, **more).folder


def opened(folder: Path) -> ModuleType:
    """The bundle's predict.py as a module, from where it lies."""
    return load_program(folder / "predict.py")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A project and a bundle of it that was moved away; for tests that change neither."""
    root = write_project(tmp_path_factory.mktemp("project"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        made = make(root)
    moved = tmp_path_factory.mktemp("elsewhere") / "moved away"
    shutil.copytree(root / made, moved)
    # an export with preprocessing, which is bundled as it is: to export once more takes seconds
    place = root / "data/export/prune_onnx"
    place.mkdir(parents=True)
    shutil.copy(moved / "model.onnx", place)
    spec = {**checkpoint.read_spec(root / "data/prune"), "format": "onnx", "input": "pixels"}
    checkpoint.write_spec(place, spec, "model.onnx")
    return root, moved


@pytest.fixture
def project(shared: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it without the bundle, in which one is."""
    root = Path(shutil.copytree(shared[0], tmp_path / "project", ignore=shutil.ignore_patterns("bundles")))
    monkeypatch.chdir(root)
    return root


def write_files(folder: Path) -> list[Path]:
    """Pictures of every kind that is read: their forms, sizes, colours, orientations."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    colour = np.kron(rng.integers(0, 256, (23, 31, 3)), np.ones((13, 13, 1))).astype(np.uint8)
    grey = rng.integers(0, 256, (40, 33), dtype=np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(colour).save(folder / "large.jpg", quality=90)
    Image.fromarray(colour).save(folder / "progressive.jpg", progressive=True)
    Image.fromarray(colour).save(folder / "turned.jpg", exif=turned)
    Image.fromarray(grey).save(folder / "grey.jpg")
    Image.fromarray(colour).convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(grey).save(folder / "grey.png")
    Image.fromarray(grey).save(folder / "turned.png", exif=turned)
    Image.fromarray(colour[:20, :20]).save(folder / "small.png")
    Image.fromarray(colour[:SIDE, :SIDE]).save(folder / "as_stored.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "sixteen_bits.png")
    Image.fromarray(np.dstack([colour, rng.integers(0, 256, colour.shape[:2], dtype=np.uint8)])).save(
        folder / "clear.png"
    )
    Image.fromarray(colour).quantize(16).save(folder / "palette.gif", transparency=3)
    Image.fromarray(colour).save(folder / "photo.webp")
    Image.fromarray(grey).convert("1").save(folder / "bits.tif")
    Image.fromarray(grey[:1, :9]).save(folder / "a_line.bmp")
    return sorted(folder.iterdir())


# ------------------------------------------------------------------------------------------ the same answers


@pytest.mark.integration
def test_a_bundle_answers_as_thinner_predict_for_files_of_every_kind(shared: tuple[Path, Path], tmp_path: Path) -> None:
    compare(*shared, write_files(tmp_path / "files"))


@pytest.mark.integration
@pytest.mark.parametrize(
    ("channels", "colours", "fit", "size"), [(1, 3, "pad", 20), (3, 3, "stretch", 41), (3, 3, "crop", SIDE)]
)
def test_so_it_does_in_colour_and_however_pictures_are_made_to_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels: int, colours: int, fit: str, size: int
) -> None:
    root = write_project(tmp_path / "project", channels, colours, fit, size)
    monkeypatch.chdir(root)
    files = write_files(tmp_path / "files")
    Image.new("RGB", (3 * size * size, 1), "white").save(tmp_path / "files" / "long.png")
    compare(root, root / make(root), [*files, tmp_path / "files" / "long.png"])


def compare(root: Path, folder: Path, files: list[Path]) -> None:
    """The bundle in ``folder`` with ``thinner predict`` in ``root``: pixels, logits, class and probability of each file,
    and of the test split."""
    bundled, net = opened(folder).Network(), thinner.load(root / "data/prune")
    seen, names = [], set()
    for file in files:
        mine, its = bundled.decode(file), net.decode(file)
        np.testing.assert_array_equal(mine, its, err_msg=file.name)
        np.testing.assert_allclose(bundled.logits(mine[None]), answer(root / "data/prune", its), atol=1e-4)
        label, probability = bundled.name(file)
        expected = net.predict(file)
        assert (label, probability) == (expected.label, pytest.approx(expected.confidence, abs=1e-4))
        seen.append(its.tobytes())
        names.add(label)
    assert len(set(seen)) >= len(files) - 1  # or there was nothing to tell apart
    for picture in np.load(root / "data/prepared/images.npy")[50:]:  # the test split, as it is stored
        np.testing.assert_allclose(bundled.logits(picture[None]), answer(root / "data/prune", picture), atol=1e-4)


@pytest.mark.integration
@pytest.mark.parametrize("size", [(9, 31), (200, 61), (2, 2), (64, 64)])
def test_the_model_itself_takes_pictures_of_any_size(shared: tuple[Path, Path], size: tuple[int, int]) -> None:
    """PyTorch's own antialiased resizing is the oracle."""
    root, folder = shared
    pictures = np.random.default_rng(2).integers(0, 256, (3, *size, 1), dtype=np.uint8)
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    resized = torch.nn.functional.interpolate(pixels, (32, 32), mode="bilinear", antialias=True)
    with torch.inference_mode():
        expected = checkpoint.load(root / "data/prune").model((resized - 0.3) / 0.2).numpy()
    np.testing.assert_allclose(opened(folder).Network().logits(pictures), expected, atol=1e-4)


@pytest.mark.integration
def test_exports_are_bundled_with_or_without_preprocessing_and_in_8_bits(project: Path) -> None:
    loaded = checkpoint.load(project / "data/prune")
    pictures = np.load(project / "data/prepared/images.npy")
    about = {"classes": CLASSES, "preprocessing": loaded.spec["preprocessing"]}
    places = {name: project / "data/export" / name for name in ("plain_onnx", "plain_onnx_int8", "prune_onnx")}
    plain = places["plain_onnx"] / "model.onnx"
    for name in ("plain_onnx", "plain_onnx_int8"):
        places[name].mkdir(parents=True)
    export.export_onnx(loaded.model, plain, (1, 32, 32), about, 20)
    candidate = open_candidate(project / "data/prune")
    calibrated = candidate.preprocess(pictures[20:50]).numpy()
    quantization.quantise_onnx(plain, places["plain_onnx_int8"] / "model.onnx", [calibrated])
    for name in ("plain_onnx", "plain_onnx_int8"):
        spec = {**loaded.spec, "format": name.removeprefix("plain_"), "parents": {"prune": loaded.sha256}}
        checkpoint.write_spec(places[name], spec, "model.onnx")
    for name, place in places.items():
        bundled = opened(make(project, name)).Network()
        assert bundled.about["golden_tolerance"] == (bundling.INT8_TOLERANCE if "int8" in name else 1e-4)
        got = np.concatenate([bundled.logits(picture[None]) for picture in pictures])
        expected = np.concatenate([answer(place, picture) for picture in pictures])
        if "int8" in name:  # a pixel that differs in its last digit may be rounded the other way
            assert (got.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.95
            assert np.median(np.abs(got - expected)) < 1e-4
        else:
            np.testing.assert_allclose(got, expected, atol=1e-4)


def test_an_answer_below_the_operating_point_is_unsure_in_the_bundle_and_in_thinner_predict(
    shared: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, folder = shared
    monkeypatch.chdir(root)
    stored = np.load(root / "data/prepared/images.npy")[50:]
    files = [tmp_path / f"{number:02}.png" for number in range(len(stored))]
    for file, pixels in zip(files, stored, strict=True):
        Image.fromarray(pixels[..., 0]).save(file)
    done = CliRunner().invoke(cli.app, ["predict", "--json", "--at-least", "95", *map(str, files)])
    assert done.exit_code == 0, done.output
    theirs = [json.loads(line)["label"] for line in done.stdout.splitlines()]
    bundled = opened(folder).Network()
    mine = [bundled.name(file, 95)[0] for file in files]
    assert mine == ["unsure" if label is None else label for label in theirs]
    assert 15 <= mine.count("unsure") <= 25  # the threshold is the median
    assert {bundled.name(file, 98)[0] for file in files} == {"unsure"}  # of which none was found
    with pytest.raises(Exception, match="--at-least 97: no such operating point. Choose one of: 95, 98"):
        bundled.name(files[0], 97)
    refused = CliRunner().invoke(cli.app, ["predict", "--at-least", "97", str(files[0])])
    assert refused.exit_code == 1
    never = CliRunner().invoke(cli.app, ["predict", "--json", "--at-least", "98", str(files[0])])
    assert json.loads(never.stdout)["label"] is None and "so every answer is 'unsure'" in never.stderr
    assert "so every answer is 'unsure'" in run(folder, "--at-least", "98", str(files[0])).stderr


# ---------------------------------------------------------------------------------------- predict.py by itself


def test_predict_needs_three_packages_and_nothing_of_ours() -> None:
    for path in bundling.PROGRAMS.glob("*.py"):
        found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(str(node.module).split(".")[0])
        assert found - sys.stdlib_module_names <= {"numpy", "onnxruntime", "PIL", "predict"}, path.name


def run(folder: Path, *arguments: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    """predict.py as a person runs it, from another folder; -P: nothing beside the program is imported by accident."""
    command = [python, "-P", str(folder / "predict.py"), *arguments]
    return subprocess.run(
        command, cwd=folder.parent, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": ""}
    )


def test_a_line_for_each_picture_and_one_for_each_that_cannot_be_read(
    shared: tuple[Path, Path], tmp_path: Path
) -> None:
    root, folder = shared
    files = write_files(tmp_path / "files")
    (tmp_path / "no.jpg").write_bytes(b"no picture")
    (tmp_path / "phone.heic").write_bytes(b"one of a phone")
    (tmp_path / "cut.png").write_bytes((tmp_path / "files/grey.png").read_bytes()[:-200])
    bad = [tmp_path / name for name in ("no.jpg", "nowhere.png", "phone.heic", "cut.png")]
    done = run(folder, *map(str, [*bad[:2], *files, *bad[2:]]))
    assert done.returncode == 0 and run(folder, *map(str, bad)).returncode == 1  # as `thinner predict` has it
    rows = list(csv.reader(done.stdout.splitlines()))
    answers = thinner.load(root / "data/prune").predict(files)
    assert rows[0] == ["file", "class", "probability"]
    assert [row[:2] for row in rows[1:]] == [
        [str(file), found.label] for file, found in zip(files, answers, strict=True)
    ]
    assert [float(row[2]) for row in rows[1:]] == pytest.approx([found.confidence for found in answers], abs=1e-4)
    lines = done.stderr.splitlines()
    if importlib.util.find_spec("pillow_heif") is None:
        assert lines[2].endswith("is read by a package that is not here: pip install pillow-heif")
    assert len(lines) == len(bad) and all(line.startswith(f"{path}: ") for line, path in zip(lines, bad, strict=True))
    assert run(folder, *map(str, files)).returncode == 0
    assert run(folder).returncode == run(folder, "--at-least", "97", str(files[0])).returncode == 2
    of_folder = run(folder, str(tmp_path / "files")).stdout
    assert of_folder == run(folder, *map(str, sorted(files))).stdout and of_folder.count("\n") == len(files) + 1
    (tmp_path / "empty").mkdir()
    empty = run(folder, str(tmp_path / "empty"))
    assert empty.returncode == 2 and "no picture in this folder" in empty.stderr


def test_whoever_reads_the_first_lines_only_gets_no_traceback(shared: tuple[Path, Path], tmp_path: Path) -> None:
    files = [str(file) for file in write_files(tmp_path / "files")] * 20
    command = shlex.join([sys.executable, "-P", str(shared[1] / "predict.py"), *files])
    done = subprocess.run(["bash", "-c", f"{command} | head -1"], capture_output=True, text=True, check=False)
    assert done.stdout == "file,class,probability\n" and done.stderr == ""


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        (np.zeros((1, 28, 28, 1), np.float32), "pixels: float32, but the model takes uint8: 0 is black, 255 is white"),
        (np.zeros((28, 28, 1), np.uint8), r"pixels: \[28, 28, 1\] has 3 dimensions, but the model takes 4"),
        (
            np.zeros((1, 28, 28, 3), np.uint8),
            r"pixels: \[1, 28, 28, 3\], but the model takes \[batch, height, width, 1\]",
        ),
        (np.zeros((1, 0, 28, 1), np.uint8), "none of them 0"),
    ],
)
def test_what_the_model_does_not_take_is_refused_in_one_line(
    shared: tuple[Path, Path], pixels: np.ndarray, said: str
) -> None:
    module = opened(shared[1])
    with pytest.raises(module.RefusedError, match=said) as refused:
        module.Network().logits(pixels)
    assert "\n" not in str(refused.value)


def test_a_picture_with_too_many_pixels_is_not_begun(shared: tuple[Path, Path], tmp_path: Path) -> None:
    module = opened(shared[1])
    bundled = module.Network()
    bundled.about["picture"]["max_pixels"] = 1000
    Image.new("L", (40, 26)).save(tmp_path / "large.png")
    with pytest.raises(module.RefusedError, match="large.png: has 1,040 pixels; max_pixels in labels.json is 1,000"):
        bundled.decode(tmp_path / "large.png")


def test_the_selftest_holds_and_notices_what_changed(shared: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(shared[1], folder)
    done = run(folder, "--selftest")
    assert done.returncode == 0
    assert re.fullmatch(
        r"self-test: 20 pictures of 3 sizes, the class is the maker's for 20, logits within \S+ of the maker's, allowed 1e-04: holds\n",
        done.stdout,
    )
    with np.load(folder / "golden.npz") as file:
        golden = {name: file[name] for name in file.files}
    golden["logits_28x28"][3, 1] += 3e-4
    np.savez(folder / "golden.npz", **golden)
    done = run(folder, "--selftest")
    assert done.returncode == 1 and "DOES NOT HOLD" in done.stdout and "within 3.0e-04" in done.stdout
    model = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(model[:-1] + bytes([model[-1] ^ 1]))
    assert "model.onnx has SHA-256" in run(folder, "--selftest").stdout
    (folder / "model.onnx").write_bytes(b"none")
    done = run(folder, "--selftest")
    assert done.returncode == 2 and "no whole bundle here" in done.stderr and done.stderr.count("\n") == 1


# ----------------------------------------------------------------------------------------- the bundle as a whole


def test_a_bundle_has_its_files_in_a_folder_and_in_a_zip(project: Path) -> None:
    folder = make(project, "prune_onnx")
    assert folder == Path("bundles/prune_onnx")
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert names == {
        "model.onnx", "labels.json", "predict.py", "golden.npz", "model-card.md", "browser/index.html", "browser/predict.js",
    }  # fmt: skip
    with zipfile.ZipFile("bundles/prune_onnx.zip") as archive:
        assert archive.testzip() is None
        assert {entry.filename: archive.read(entry) for entry in archive.infolist()} == {
            f"prune_onnx/{name}": (folder / name).read_bytes() for name in names
        }
    labels = json.loads((folder / "labels.json").read_text())
    assert labels["classes"] == CLASSES and labels["temperature"] == TEMPERATURE
    assert labels["input"]["shape"] == ["batch", "height", "width", 1] and labels["input"]["dtype"] == "uint8"
    session = export.open_session(folder / "model.onnx")
    assert [(one.name, one.type) for one in session.get_inputs()] == [(labels["input"]["name"], "tensor(uint8)")]
    assert labels["model_sha256"] == hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    with np.load(folder / "golden.npz") as golden:  # none of the test split, on which nobody looks but evaluate
        stored = np.load("data/prepared/images.npy")
        for picture in golden["pictures_28x28"]:
            (where,) = np.flatnonzero((stored == picture).all(axis=(1, 2, 3)))
            assert 20 <= where < 50


def test_equal_things_give_equal_bundles(project: Path) -> None:
    make(project, "prune_onnx", out=Path("one/prune_onnx"))
    make(project, "prune_onnx", out=Path("two/prune_onnx"))
    assert Path("one/prune_onnx.zip").read_bytes() == Path("two/prune_onnx.zip").read_bytes()


def test_what_is_there_is_not_overwritten_unless_asked_for_and_never_if_it_is_something_else(project: Path) -> None:
    make(project, "prune_onnx")
    before = Path("bundles/prune_onnx.zip").read_bytes()
    Path("bundles/prune_onnx/note.txt").write_text("mine")
    with pytest.raises(
        UserError, match="bundles/prune_onnx: is there already. Give --out another place, or replace it"
    ):
        make(project, "prune_onnx")
    assert Path("bundles/prune_onnx/note.txt").read_text() == "mine"
    make(project, "prune_onnx", replace=True)
    assert not Path("bundles/prune_onnx/note.txt").exists() and Path("bundles/prune_onnx.zip").read_bytes() == before
    Path("photos").mkdir()
    Path("photos/mine.jpg").write_text("picture")
    Path("mine.zip").write_bytes(b"something else")
    with pytest.raises(UserError, match="mine.zip: is of no bundle, so it is not replaced"):
        make(project, "prune_onnx", out=Path("mine"), replace=True)
    assert Path("mine.zip").read_bytes() == b"something else"
    with pytest.raises(UserError, match=r"--out \.: names no new folder"):
        make(project, "prune_onnx", out=Path())
    with pytest.raises(UserError, match="photos: is no bundle, so it is not replaced"):
        make(project, "prune_onnx", out=Path("photos"), replace=True)
    assert Path("photos/mine.jpg").exists()


def test_a_bundle_that_fails_leaves_nothing(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundling, "TOLERANCE", -1.0)
    with pytest.raises(
        export.ExportError,
        match=r"model.onnx: logits differ from those of .*prune_onnx by up to .*, allowed are -1e\+00",
    ):
        make(project, "prune_onnx")
    assert list(Path("bundles").iterdir()) == []


def test_what_cannot_be_bundled_is_said(project: Path) -> None:
    with pytest.raises(UserError, match="no candidate 'prun'. Choose one of: prune, prune_onnx"):
        make(project, "prun")
    place = project / "data/export/prune_pt2"
    loaded = checkpoint.load(project / "data/prune")
    place.mkdir(parents=True)
    export.export_pt2(loaded.model, place / "model.pt2", (1, 32, 32), {})
    checkpoint.write_spec(place, {**loaded.spec, "format": "pt2"}, "model.pt2")
    with pytest.raises(
        UserError, match=r"model.pt2, of which no ONNX file can be made. Bundle the network that it was made of"
    ):
        make(project, "prune_pt2")
    assert not Path("bundles/prune_pt2").exists()


def test_the_card_says_what_is_known_with_intervals_and_what_is_not(project: Path) -> None:
    for command in (
        ("init", "--quiet"),
        ("add", "params.yaml"),
        ("-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qm", "a"),
    ):
        subprocess.run(["git", *command], check=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    card = (make(project, "prune_onnx") / "model-card.md").read_text()
    # Wilson's interval of 28 right of 40, by hand: z = 1.95996, p = 0.7, n = 40
    z, p, n = 1.959964, 0.7, 40
    middle, half = (
        (p + z * z / (2 * n)) / (1 + z * z / n),
        z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5 / (1 + z * z / n),
    )
    assert (
        f"| prune_onnx | 70.0 % | [{100 * (middle - half):.1f}, {100 * (middle + half):.1f}] | 23.5 k | 3 M | 95 kB | 1.25 | [1.2, 1.3] |"
        in card
    )
    assert "| finetune | 80.0 % |" in card
    assert "| **not shown** | prune beats small on accuracy | +1.00 points |" in card
    assert r"| dog\|wolf | 13 | 50.0 % | [25.0, 75.0] |" in card
    assert "| 98 % | none found | 0.0 % |" in card
    assert "- Licence: MIT (https://github.com/zalandoresearch/fashion-mnist)" in card  # as params.yaml has that source
    assert "whom they show, who agreed: not stated" in card
    assert f"`{commit}`, with changes that are not committed" in card
    assert "cannot be made again from a commit" in card and "git checkout" not in card
    assert "- Labels: as in the source" in card
    for path in (
        "bundles/prune_onnx/model.onnx",
        "bundles/prune_onnx/golden.npz",
        "data/export/prune_onnx/model.onnx",
        "params.yaml",
    ):
        assert hashlib.sha256(Path(path).read_bytes()).hexdigest() in card
    assert max(len(line) for line in card.splitlines()) < 600 and "None" not in card and "nan" not in card


def test_a_card_tells_no_folder_of_its_makers_machine_and_that_labels_were_corrected(project: Path) -> None:
    photos = project / "photos"
    photos.mkdir()
    (photos / "corrections.csv").write_text("file,given,label\n")
    values = {
        "data.source": f"folder:{photos}",
        "data.root": str(photos),
        "data.corrections": f"{photos}/corrections.csv",
    }
    recipes.write(project, values, "the test")
    folder = make(project, "prune_onnx")
    card = (folder / "model-card.md").read_text()
    assert "- Source: folder:photos\n" in card and "- Labels: some were corrected by hand" in card
    assert str(project) not in card and str(project) not in (folder / "labels.json").read_text()


def test_a_network_that_was_not_evaluated_is_bundled_and_the_card_says_so(project: Path) -> None:
    shutil.rmtree("reports")
    said: list[str] = []
    folder = make(project, "prune_onnx", say=said.append)
    assert said == [
        "prune_onnx: evaluate has not measured it, so its probabilities are not calibrated and its card is short"
    ]
    labels = json.loads((folder / "labels.json").read_text())
    assert (labels["temperature"], labels["calibrated"], labels["operating_points"]) == (1.0, False, [])
    card = (folder / "model-card.md").read_text()
    assert "Not measured: `evaluate` has not seen this network." in card and "No claims were made." in card
    with pytest.raises(Exception, match="This bundle has none"):
        opened(folder).Network().threshold(95)


def test_what_evaluate_left_of_other_weights_is_not_told_of_these(project: Path) -> None:
    path = project / "reports/evaluate/environment.json"
    environment = json.loads(path.read_text())
    path.write_text(json.dumps(environment | {"weights_sha256": {"prune": "of those that lay there before"}}))
    said: list[str] = []
    folder = make(project, "prune", say=said.append)
    assert said == ["prune: evaluate has measured other weights of it. Measure these: thinner stage evaluate"]
    card = (folder / "model-card.md").read_text()
    assert "Not measured: `evaluate` has not seen this network." in card and "No claims were made." in card
    labels = json.loads((folder / "labels.json").read_text())
    assert (labels["temperature"], labels["calibrated"], labels["operating_points"]) == (1.0, False, [])
    assert thinner.load(project / "data/prune").temperature is None
    path.write_text(json.dumps(environment | {"weights_sha256": {"prune": weights_sha256(project / "data/prune")}}))
    assert thinner.load(project / "data/prune").temperature is not None


def test_pictures_are_made_square_as_the_data_were_and_not_as_params_say_today(project: Path) -> None:
    set_params = recipes.write(project, {"data.fit": "pad"}, "the test")
    assert set_params
    assert json.loads((make(project, "prune") / "labels.json").read_text())["picture"]["fit"] == "crop"


def test_the_command_makes_the_bundle_of_the_network_to_ship(project: Path) -> None:
    done = CliRunner().invoke(cli.app, ["bundle"])
    assert done.exit_code == 0, done.output
    assert "bundles/prune_onnx and bundles/prune_onnx.zip: 16 golden pictures, logits within" in " ".join(
        done.stdout.split()
    )
    again = CliRunner().invoke(cli.app, ["bundle", "prune_onnx"])
    assert again.exit_code == 1
    other = CliRunner().invoke(cli.app, ["bundle", "prune_onnx", "--out", "there/mine", "--replace"])
    assert other.exit_code == 0 and Path("there/mine/predict.py").is_file() and Path("there/mine.zip").is_file()


# ------------------------------------------------------------------------------------------------- elsewhere


@pytest.mark.integration
def test_in_a_fresh_environment_with_three_packages(shared: tuple[Path, Path], tmp_path: Path) -> None:
    root = shared[0]
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = str(tmp_path / "venv/bin/python")
    install = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "numpy",
        "onnxruntime",
        "pillow",
    ]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no package index: {done.stderr.strip().splitlines()[-1]}")
    for package in ("torch", "thinner", "onnx"):
        assert (
            subprocess.run([python, "-I", "-c", f"import {package}"], capture_output=True, check=False).returncode == 1
        )
    files = write_files(tmp_path / "files")
    for number, picture in enumerate(np.load(root / "data/prepared/images.npy")[50:]):
        Image.fromarray(picture[..., 0]).save(tmp_path / "files" / f"test{number}.png")
        files.append(tmp_path / "files" / f"test{number}.png")
    with zipfile.ZipFile(root / "bundles/prune.zip") as archive:
        archive.extractall(tmp_path / "unpacked")
    place = tmp_path / "unpacked" / "prune"
    done = run(place, "--selftest", python=python)
    assert done.returncode == 0, done.stdout + done.stderr
    done = run(place, *map(str, files), python=python)
    assert done.returncode == 0, done.stderr
    rows = list(csv.reader(done.stdout.splitlines()))[1:]
    answers = thinner.load(root / "data/prune").predict(files)
    assert [row[1] for row in rows] == [found.label for found in answers]
    script = (
        "import sys, numpy as np, predict\n"
        "net = predict.Network()\n"
        "np.save(sys.argv[1], np.concatenate([net.logits(net.decode(f)[None]) for f in sys.argv[2:]]))\n"
    )
    subprocess.run([python, "-c", script, str(tmp_path / "logits.npy"), *map(str, files)], cwd=place, check=True)
    net = thinner.load(root / "data/prune")
    expected = np.concatenate([answer(root / "data/prune", net.decode(file)) for file in files])
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), expected, atol=1e-4)


@pytest.mark.integration
def test_in_a_browser_with_onnxruntime_web(shared: tuple[Path, Path], tmp_path: Path) -> None:
    if (npm := shutil.which("npm")) is None:
        pytest.skip("no npm on this machine")
    root, folder = shared
    place = tmp_path / "served"
    shutil.copytree(folder, place)
    done = subprocess.run(
        [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "onnxruntime-web"],
        cwd=place, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"npm has no onnxruntime-web: {done.stderr.strip()[:200]}")
    program = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"]
    with subprocess.Popen(program, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            port = re.search(r"port (\d+)", server.stdout.readline())
            assert port is not None
            with Browser(tmp_path) as browser:
                browser.open(f"http://127.0.0.1:{port[1]}/browser/index.html")
                found = browser.until("window.result")
                assert found["holds"], found
                assert (found["pictures"], found["sizes"], found["same"], found["allowed"]) == (20, 3, 20, 1e-4)
                assert 0 < found["difference"] <= 1e-4
                assert "holds." in browser.run("document.getElementById('selftest').textContent")
                # a stored picture as a file: the browser decodes it, and its PNG is without loss
                Image.fromarray(np.load(root / "data/prepared/images.npy")[60, ..., 0]).save(place / "stored.png")
                named = browser.run(
                    "import('/browser/predict.js').then(async (m) => {"
                    " const file = await (await fetch('/stored.png')).blob();"
                    " const network = await m.open();"
                    " return [await m.name(network, file), await m.name(network, file, 98)]; })"
                )
                expected = thinner.load(root / "data/prune").predict(place / "stored.png")
                assert named[0]["label"] == expected.label and named[1]["label"] == "unsure"
                assert named[0]["probability"] == pytest.approx(expected.confidence, abs=1e-3)
                # a large one, oblong, is made as small as the data are before the network sees it
                large = Image.open(place / "stored.png").resize((300, 400), Image.Resampling.NEAREST)
                large.save(place / "large.png")
                named = browser.run(
                    "import('/browser/predict.js').then(async (m) => {"
                    " const network = await m.open();"
                    " const file = await (await fetch('/large.png')).blob();"
                    " const large = await m.name(network, file);"
                    " network.about.picture.max_pixels = 1000;"
                    " return [large, await m.name(network, file).catch((error) => error.message)]; })"
                )
                expected = thinner.load(root / "data/prune").predict(place / "large.png")
                assert named[0]["label"] == expected.label
                # of a network of random weights, which other averages change a lot
                assert named[0]["probability"] == pytest.approx(expected.confidence, abs=0.15)
                assert named[1] == "has 120000 pixels; max_pixels in labels.json is 1000"
        finally:
            server.terminate()
