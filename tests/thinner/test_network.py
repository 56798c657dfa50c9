"""thinner.network, which is what `import thinner` gives: a folder and a picture, and a class with its probability."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

import thinner
from flows import cli
from thinner.networks import checkpoint, export, models
from thinner.networks.spec import NetworkSpec

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ["cat", "dog", "eel"]
SIDE = 28  # params.yaml's data.image_size: pictures of that size are not resized
MEAN, STD, TEMPERATURE = 0.3, 0.4, 2.5
NETWORK = NetworkSpec("resnet8", 3, 1, width=4, stem_stride=1)
SPEC: dict[str, Any] = {
    "network": NETWORK.as_json(),
    "classes": CLASSES,
    "stage": "prune",
    "parents": {},
    "data_sha256": "0",
    "preprocessing": {"image_size": SIDE, "channels": 1, "mean": [MEAN], "std": [STD]},
}
GREY = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    """What a run leaves of a network with random weights: its checkpoint, two exports, what evaluate fitted."""
    root = tmp_path_factory.mktemp("repository")
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, root)
    torch.manual_seed(1)
    model = models.create(NETWORK).eval()
    checkpoint.save(root / "data/prune", model, SPEC)
    checkpoint.save(root / "data/prune_also/distill", model, SPEC)
    shape = (1, SIDE, SIDE)
    for name, ending in (("prune_onnx", "onnx"), ("prune_pt2", "pt2")):
        folder = root / "data/export" / name
        folder.mkdir(parents=True)
        write = export.export_pt2 if ending == "pt2" else lambda *given: export.export_onnx(*given, opset=20)
        write(model, folder / f"model.{ending}", shape, {"classes": CLASSES})
        (folder / "model.json").write_text(json.dumps(SPEC))
    (root / "reports").mkdir()
    measured = {name: {"temperature": TEMPERATURE} for name in ("prune", "prune_distill", "prune_onnx")}
    (root / "reports/metrics.json").write_text(json.dumps(measured))
    return root, model


def by_hand(model: torch.nn.Module, grey: np.ndarray, temperature: float) -> np.ndarray:
    """PyTorch's own forward pass and float64 NumPy's softmax."""
    x = torch.tensor((grey / 255.0 - MEAN) / STD, dtype=torch.float32)[None, None]
    with torch.no_grad():
        z = model(x)[0].numpy().astype(np.float64) / temperature
    shares: np.ndarray = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    return shares


@pytest.mark.integration
@pytest.mark.parametrize(
    ("folder", "temperature"),
    [
        ("data/prune", TEMPERATURE),
        ("data/prune_also/distill", TEMPERATURE),
        ("data/export/prune_onnx", TEMPERATURE),
        ("data/export/prune_pt2", None),  # which evaluate has not measured
    ],
)
def test_probabilities_are_the_softmax_of_what_pytorch_computes(
    made: tuple[Path, torch.nn.Module], folder: str, temperature: float | None
) -> None:
    root, model = made
    net = thinner.load(root / folder)
    assert net.classes == tuple(CLASSES)
    assert net.temperature == temperature
    answer = net.predict(GREY)
    shares = by_hand(model, GREY, temperature or 1.0)
    np.testing.assert_allclose(list(answer.probabilities.values()), shares, rtol=1e-4)
    assert list(answer.probabilities) == CLASSES
    assert answer.label == CLASSES[int(shares.argmax())]
    assert answer.confidence == max(answer.probabilities.values()) == answer.probabilities[answer.label]
    assert sum(answer.probabilities.values()) == pytest.approx(1)


def test_a_path_an_image_and_an_array_of_the_same_pixels_are_answered_the_same(
    made: tuple[Path, torch.nn.Module], tmp_path: Path
) -> None:
    net = thinner.load(made[0] / "data/prune")
    Image.fromarray(GREY).save(tmp_path / "grey.png")
    answer = net.predict(GREY)
    path = tmp_path / "grey.png"
    with Image.open(path) as image:
        kinds = [path, str(path), image, Image.fromarray(GREY), GREY, GREY[..., None], np.dstack([GREY] * 3)]
        assert [net.predict(kind) for kind in kinds] == [answer] * len(kinds)
        assert image.getpixel((0, 0)) == GREY[0, 0]  # it was not closed
        assert net.predict(kinds) == net.predict(tuple(kinds)) == [answer] * len(kinds)
    assert net.predict([]) == []
    # colours: ITU-R 601, as prepare makes grey of them
    red = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
    red[..., 0] = GREY
    assert net.predict(red) == net.predict(np.asarray(Image.fromarray(red).convert("L")))


def test_the_orientation_of_a_photo_counts_in_an_image_as_in_its_file(
    made: tuple[Path, torch.nn.Module], tmp_path: Path
) -> None:
    net = thinner.load(made[0] / "data/prune")
    turned = Image.fromarray(np.rot90(GREY))  # 90 degrees anticlockwise; the file says: turn it clockwise
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "photo.png", exif=exif)
    with Image.open(tmp_path / "photo.png") as image:
        assert net.predict(image) == net.predict(tmp_path / "photo.png") == net.predict(GREY)
        assert image.size == turned.size and (np.asarray(image) == np.rot90(GREY)).all()


def test_the_command_gives_the_very_same_numbers(
    made: tuple[Path, torch.nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made[0])
    files = [tmp_path / name for name in ("wide.png", "tall.jpg")]
    for file, shape in zip(files, ((40, 90, 3), (200, 50, 3)), strict=True):
        pixels = np.random.default_rng(len(file.name)).integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(pixels).save(file)
    for candidate, folder in (("prune", "data/prune"), ("prune_onnx", "data/export/prune_onnx")):
        done = CliRunner().invoke(cli.app, ["predict", *map(str, files), "--candidate", candidate, "--json"])
        assert done.exit_code == 0, done.output
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        answers = thinner.load(folder).predict(files)  # a path relative to where one is
        assert rows == [
            {"image": str(file), "label": answer.label, "confidence": answer.confidence}
            for file, answer in zip(files, answers, strict=True)
        ]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (GREY.astype(np.float32), r"an array of float32 \[28, 28\] is no picture. Give uint8 \[height, width\]"),
        (np.zeros((4, 4, 4), np.uint8), r"an array of uint8 \[4, 4, 4\] is no picture"),
        (np.zeros((2, 4, 4, 3), np.uint8), r"an array of uint8 \[2, 4, 4, 3\] is no picture"),
        (np.zeros((0, 4), np.uint8), r"an array of uint8 \[0, 4\] is no picture"),
        (7, "int is no picture. Give a path, a PIL image, a uint8 array, or a list of those"),
        ("nowhere.png", "nowhere.png: .*No such file or directory"),
        (Image.new("F", (4, 4)), "the image: floating-point pixels have no agreed range"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_is_no_picture_is_refused_in_one_line(made: tuple[Path, torch.nn.Module], given: Any, said: str) -> None:
    with pytest.raises(thinner.UserError, match=said) as refused:
        thinner.load(made[0] / "data/prune").predict(given)
    assert "\n" not in str(refused.value)


def test_a_folder_elsewhere_wants_its_params(made: tuple[Path, torch.nn.Module], tmp_path: Path) -> None:
    root, model = made
    shutil.copytree(root / "data/prune", tmp_path / "shipped")
    with pytest.raises(thinner.UserError, match=r"shipped: no params.yaml around it .* params='params.yaml'"):
        thinner.load(tmp_path / "shipped")
    net = thinner.load(tmp_path / "shipped", params=root / "params.yaml")
    assert net.temperature is None
    np.testing.assert_allclose(list(net.predict(GREY).probabilities.values()), by_hand(model, GREY, 1.0), rtol=1e-4)
    with pytest.raises(thinner.UserError, match=r"nothing: neither model.safetensors nor model.onnx"):
        thinner.load(root / "data/nothing")


def test_a_picture_is_stored_as_the_networks_data_were_whatever_params_yaml_says_now(
    made: tuple[Path, torch.nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what the other sections name need not lie where a notebook runs."""
    shutil.copytree(made[0], tmp_path / "copy")
    root = tmp_path / "copy"
    params = yaml.safe_load((root / "params.yaml").read_text())
    params["data"] |= {"image_size": 64, "fit": "stretch", "corrections": "data/raw/corrections.csv"}
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.chdir(tmp_path)
    info = {"sha256": SPEC["data_sha256"], "image_size": SIDE, "channels": 1, "fit": "pad"}
    (root / "data/prepared").mkdir()
    for sha256, how in ((SPEC["data_sha256"], (SIDE, 1, "pad")), ("of others", (64, 1, "stretch"))):
        (root / "data/prepared/info.json").write_text(json.dumps(info | {"sha256": sha256}))
        stored = thinner.load(root / "data/prune")._as_stored.keywords
        assert (stored["image_size"], stored["channels"], stored["fit"]) == how


def test_a_model_that_does_not_fit_its_classes_is_refused(made: tuple[Path, torch.nn.Module], tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(made[0] / "data/export/prune_onnx", folder)
    spec = {**SPEC, "classes": CLASSES[:2], "network": replace(NETWORK, classes=2).as_json()}
    (folder / "model.json").write_text(json.dumps(spec))
    with pytest.raises(thinner.UserError, match=r"gives \[1, 3\] numbers for a picture, and model.json has 2 classes"):
        thinner.load(folder, params=made[0] / "params.yaml").predict(GREY)


@pytest.mark.integration
def test_the_public_names_are_there_and_no_others() -> None:
    assert [getattr(thinner, name).__name__ for name in thinner.__all__] == thinner.__all__
    assert all(getattr(thinner, name).__doc__ for name in thinner.__all__)
    with pytest.raises(AttributeError, match="module 'thinner' has no attribute 'laod'. It has Network, Prediction"):
        thinner.laod  # noqa: B018
    script = "from thinner import *; import thinner, sys; print(load is thinner.load, 'mlflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, text=True, capture_output=True, check=True)
    assert done.stdout.split() == ["True", "False"]


def test_the_lines_in_readme_and_docs_run(
    made: tuple[Path, torch.nn.Module],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = Path(shutil.copytree(made[0], tmp_path / "repository"))
    Image.fromarray(GREY).save(root / "photo.jpg")
    monkeypatch.chdir(root)
    expected = thinner.load("data/prune").predict("photo.jpg")
    for page in ("README.md", "docs/python.md"):
        (block,) = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
        exec(compile(block, page, "exec", dont_inherit=True), {})
        assert capsys.readouterr().out.startswith(f"{expected.label} {expected.confidence}")
    assert len(re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[0].splitlines()) <= 5
