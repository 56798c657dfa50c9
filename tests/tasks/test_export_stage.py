"""tasks/export.py: which images int8's ranges come from."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tasks.export import export
from tasks.stage import Stage
from tests.tasks.test_evaluate import CLASSES, PREPROCESSING, SMALL, write_store
from thinner.networks import checkpoint, models
from thinner.networks.spec import NetworkSpec


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Prepared data of 60 images, 12 of them for validation, and one network."""
    monkeypatch.chdir(tmp_path)
    write_store(tmp_path / "data" / "prepared")
    network = NetworkSpec("resnet8", 3, 1, width=4, stem_stride=1)
    torch.manual_seed(0)
    spec = {
        "stage": "distill", "network": network.as_json(), "classes": list(CLASSES), "preprocessing": PREPROCESSING.as_json(),
        "parents": {}, "data_sha256": "0" * 64,
    }  # fmt: skip
    checkpoint.save(tmp_path / "data" / "distill", models.create(network), spec)
    return tmp_path


def exported(project: Path) -> bytes:
    section = SMALL.export.model_copy(update={"candidates": ["distill"], "formats": ["onnx_int8"]})
    export(Stage("export", SMALL.model_copy(update={"export": section})))
    return (project / "data" / "export" / "distill_onnx_int8" / "model.onnx").read_bytes()


@pytest.mark.integration
def test_int8_is_calibrated_on_validation_images_and_no_others(project: Path) -> None:
    path = project / "data" / "prepared" / "images.npy"
    images, validation = np.load(path), np.load(path.with_name("splits.npz"))["validation"]
    before = exported(project)
    others = np.setdiff1d(np.arange(len(images)), validation)
    nonsense = images.copy()
    nonsense[others] = np.random.default_rng(1).integers(0, 2, nonsense[others].shape) * 255
    np.save(path, nonsense)
    assert exported(project) == before
    nonsense[validation] = 255 - images[validation]
    np.save(path, nonsense)
    assert exported(project) != before
