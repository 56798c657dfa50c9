"""tasks/measure.py: what it writes of a network is what the network says, on the split that was asked for alone."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.prepared import write_prepared
from tests.test_end_to_end import set_params
from thinner.networks import checkpoint, models
from thinner.networks.spec import NetworkSpec

PROJECT = Path(__file__).resolve().parents[2]
SPLITS = {
    "labelled": np.arange(4), "unlabelled": np.arange(0), "validation": np.arange(4, 24), "test": np.arange(24, 64)
}  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """data/prepared with noise, and two networks that know nothing: width 4 and width 8."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (64, 8, 8, 1)), rng.integers(0, 3, 64)
    write_prepared(tmp_path, images, labels, SPLITS, ["a", "b", "c"])
    shutil.copy(PROJECT / "params.yaml", tmp_path)
    (tmp_path / "dvc.yaml").write_text("")
    set_params(tmp_path, {"run.threads": 1, "evaluate.latency_repeats": 6, "export.calibration_images": 8})
    for width in (4, 8):
        torch.manual_seed(width)
        network = NetworkSpec("resnet8", 3, 1, width=width, stem_stride=1)
        about = {"image_size": 8, "channels": 1, "mean": [0.5], "std": [0.25]}
        checkpoint.save(
            tmp_path / f"w{width}",
            models.create(network),
            {"network": network.as_json(), "classes": ["a", "b", "c"], "preprocessing": about, "parents": {},
             "data_sha256": "0" * 64, "stage": "distill"},
        )  # fmt: skip
    return tmp_path


def measure(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tasks.measure", *arguments]
    env = {**os.environ, "PYTHONPATH": str(PROJECT)}
    return subprocess.run(command, cwd=root, env=env, text=True, capture_output=True, check=False)


def by_hand(root: Path, name: str, index: np.ndarray) -> np.ndarray:
    """The classes that the network names, each picture by itself, normalised here."""
    model = checkpoint.load(root / name).model.eval()
    images = np.load(root / "data/prepared/images.npy")[index]
    with torch.no_grad():
        inputs = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25
        return np.array([int(model(one[None]).argmax()) for one in inputs])


@pytest.mark.integration
@pytest.mark.parametrize("format_", [None, "onnx"])
def test_scores_and_costs_are_those_of_the_network(root: Path, format_: str | None) -> None:
    more = [] if format_ is None else ["--format", format_]
    done = measure(root, "out", "validation", "small=w4", "large=w8", "--batches", "1", "4", *more)
    assert done.returncode == 0, done.stderr
    found = json.loads((root / "out/measured.json").read_text())
    labels = np.load(root / "data/prepared/labels.npy")[SPLITS["validation"]]
    with np.load(root / "out/predictions.npz") as file:
        assert file["index"].tolist() == SPLITS["validation"].tolist()  # and of the test split nothing
        for name, folder in (("small", "w4"), ("large", "w8")):
            named = by_hand(root, folder, SPLITS["validation"])
            assert file[f"predictions.{name}"].tolist() == named.tolist()
            assert found[name]["accuracy"] == pytest.approx((named == labels).mean())
            weights = checkpoint.load(root / folder).model
            assert found[name]["params"] == sum(p.numel() for p in weights.parameters())
            if format_ is None:
                assert found[name]["file_bytes"] == (root / folder / "model.safetensors").stat().st_size
    assert {row["runtime"] for row in found.values()} == {"pytorch" if format_ is None else "onnxruntime"}
    assert found["small"]["macs"] < found["large"]["macs"]
    with (root / "out/latency.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 6
    times = [float(row["latency_ms"]) for row in rows if (row["candidate"], row["batch"]) == ("large", "4")]
    assert found["large"]["latency_ms_b4"] == pytest.approx(np.median(times))


@pytest.mark.integration
def test_what_cannot_be_measured_is_one_line(root: Path) -> None:
    done = measure(root, "out", "test", "small=nowhere")
    assert done.returncode == 1
    assert done.stderr.startswith("measure: nowhere: neither model.safetensors nor") and done.stderr.count("\n") == 1
    assert not (root / "out").exists()
