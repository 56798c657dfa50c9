"""The section imbalance in the stages: who learns how, what is refused, and what is said."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml

from tasks import distillation, learning, teachers
from tasks.stage import Stage
from thinner.data import store, views
from thinner.errors import UserError
from thinner.learn import training
from thinner.networks import models
from thinner.params import Params

GOOD = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text())
CLASSES = ["cat", "dog", "fox"]
LABELLED = [0] * 20 + [1] * 8 + [2] * 4


def params_of(**imbalance: Any) -> Params:
    raw = yaml.safe_load(yaml.safe_dump(GOOD))
    raw["run"]["threads"] = 1
    raw["imbalance"] |= imbalance
    raw["student"] |= {"width": 4, "image_size": 12, "mean": [0.5], "std": [0.25]}
    raw["student"]["training"] |= {"steps": 6, "validate_every": 3, "batch_size": 12}
    raw["distill"]["losses"] = [{"name": "ce", "weight": 1.0}]
    raw["distill"]["teacher"] = "live"
    return Params.model_validate(raw)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> store.Store:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data" / "prepared"
    folder.mkdir(parents=True)
    labels = np.array([*LABELLED, *[-1] * 8, *[0] * 10, *[1] * 5, *[0] * 6, 2, 2])
    rng = np.random.default_rng(0)
    np.save(folder / "images.npy", rng.integers(0, 256, (len(labels), 12, 12, 1), dtype=np.uint8))
    np.save(folder / "labels.npy", labels)
    ends = {"labelled": (0, 32), "unlabelled": (32, 40), "validation": (40, 55), "test": (55, 63)}
    np.savez(folder / "splits.npz", **{name: np.arange(*end) for name, end in ends.items()})
    (folder / "info.json").write_text(json.dumps({"classes": CLASSES, "sha256": "0" * 64}))
    return store.open_store(learning.PREPARED)


def learnt(params: Params, data: store.Store) -> tuple[dict[str, torch.Tensor], list[training.Row]]:
    """Weights and curve of the control."""
    stage = Stage("scratch", params)
    model, _, _ = learning.new_student(stage, data)
    history = learning.learn_labels(
        stage, model, params.student.training, params.scratch, params.student.augment, data,
        views.Preprocessing.of(params.student), learning.fabric_of(params), resume=Path(tempfile.mkdtemp(dir=".")),
    )  # fmt: skip
    return model.state_dict(), history


def test_each_way_learns_something_else_and_the_curve_has_the_metric_that_chose(data: store.Store) -> None:
    ways: list[dict[str, Any]] = [{}, {"weights": "balanced"}, {"sampling": "balanced"}, {"logit_adjustment": 1.0}]
    found = [learnt(params_of(**way), data)[0]["fc.weight"] for way in ways]
    assert all(not a.equal(b) for n, a in enumerate(found) for b in found[:n])
    again, history = learnt(params_of(), data)
    assert again["fc.weight"].equal(found[0])
    assert "val_macro_f1" not in history[0]
    _, history = learnt(params_of(choose_by="macro_f1"), data)
    assert [0 <= row["val_macro_f1"] <= 1 for row in history] == [True, True]


def test_what_a_balance_is_made_of(data: store.Store) -> None:
    device = torch.device("cpu")
    assert learning.balance_of(params_of(), data, device, drawn_evenly=True) is None
    weights = learning.balance_of(params_of(weights="balanced"), data, device, drawn_evenly=True)
    assert weights is not None and weights.weights is not None and weights.offsets is None
    torch.testing.assert_close(weights.weights, torch.tensor([32 / 60, 32 / 24, 32 / 12]))
    # batches that are drawn evenly need no weights, and those that cannot be have them
    sampled = params_of(sampling="balanced")
    assert learning.balance_of(sampled, data, device, drawn_evenly=True) is None
    instead = learning.balance_of(sampled, data, device, drawn_evenly=False)
    assert instead is not None and instead.weights is not None and instead.weights.equal(weights.weights)
    adjusted = learning.balance_of(params_of(logit_adjustment=0.5), data, device, drawn_evenly=False)
    assert adjusted is not None and adjusted.offsets is not None and adjusted.weights is None
    torch.testing.assert_close(adjusted.offsets, 0.5 * (torch.tensor([20.0, 8.0, 4.0]) / 32).log())


@pytest.mark.parametrize("way", [{}, {"weights": "balanced"}, {"sampling": "balanced"}, {"logit_adjustment": 1.0}])
def test_the_loss_ce_of_distillation_is_corrected_as_the_section_says(
    data: store.Store, way: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    params = params_of(**way)
    monkeypatch.setattr(distillation, "_live", lambda *_: lambda index, view: (torch.zeros(len(index), 3), {}))
    model = models.create(models.describe(params.student, 3)).eval()
    pool = learning.training_pool(data)
    preprocessing = views.Preprocessing.of(params.student)
    fabric = learning.fabric_of(params)
    batch = learning.batches_of(
        Stage("distill", params), data, pool, preprocessing, params.student.augment, 40, fabric
    )(0)
    loss = distillation.step_of(params, data, model, 1, fabric.device).step(model.eval(), batch, 0)["loss"]
    known = batch.labels >= 0
    z, labels = model(batch.images)[known].double(), batch.labels[known]
    priors = torch.tensor([20, 8, 4], dtype=torch.float64) / 32
    if "logit_adjustment" in way:
        wanted = F.cross_entropy(z + priors.log(), labels)
    elif way:
        wanted = F.cross_entropy(z, labels, weight=1 / (3 * priors), reduction="sum") / 32
    else:
        wanted = F.cross_entropy(z, labels)
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-5, atol=1e-6)


def test_a_class_without_labelled_images_stops_what_needs_them_and_nothing_else(data: store.Store) -> None:
    data.splits["labelled"] = data.splits["labelled"][:28]  # no fox
    learnt(params_of(), data)
    for key, value in (("weights", "balanced"), ("sampling", "balanced"), ("logit_adjustment", 1.0)):
        with pytest.raises(UserError, match=rf"^imbalance\.{key}: needs labelled training images .* none of 'fox'\."):
            learnt(params_of(**{key: value}), data)


def test_a_class_that_cannot_choose_is_said(data: store.Store, capsys: pytest.CaptureFixture[str]) -> None:
    learnt(params_of(choose_by="worst_class"), data)
    said = capsys.readouterr().out
    assert "imbalance.choose_by: worst_class leaves out 'fox': no validation image of it" in said
    learnt(params_of(), data)
    assert "leaves out" not in capsys.readouterr().out


def test_a_teacher_that_heeds_rare_classes_is_not_at_chance() -> None:
    labels = np.repeat([0, 1], (180, 20))
    knows = np.where(np.arange(200) % 5 == 0, 1 - labels, labels)  # 80 % of each class, and of all: less than 90 %
    with pytest.raises(UserError, match="names 80.0% of 200"):
        teachers._refuse_chance("x", 0.8, labels)
    teachers._refuse_chance("x", 0.8, labels, lambda: knows)
    guesses = np.random.default_rng(0).permutation(knows)
    for nothing in (guesses, np.zeros(200, dtype=np.int64)):
        with pytest.raises(UserError, match="nothing to teach"):
            teachers._refuse_chance("x", 0.8, labels, lambda answers=nothing: answers)
