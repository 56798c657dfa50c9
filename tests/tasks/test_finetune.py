"""The stage finetune: a head that learns alone first, and rates that fall towards the image."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from tasks import learning
from tasks.finetune import finetune
from tasks.stage import Stage
from tests.prepared import write_prepared
from thinner.networks import checkpoint, models
from thinner.networks.spec import NetworkSpec
from thinner.params import Params

GOOD = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text())
CLASSES = ("cat", "dog", "fox")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """72 images of three brightnesses, and a pretrained network: one with weights of its own."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 72)
    images = rng.integers(0, 90, (72, 16, 16, 1)) + 60 * labels[:, None, None, None]
    parts = np.split(np.arange(72), [40, 40, 60])
    splits = dict(zip(("labelled", "unlabelled", "validation", "test"), parts, strict=True))
    write_prepared(tmp_path, images, labels, splits, CLASSES)
    torch.manual_seed(9)
    (tmp_path / "data" / "weights").mkdir()
    network = models.create(NetworkSpec("resnet8", 7, 1, width=8, stem_stride=1))
    torch.save(network.state_dict(), tmp_path / "data" / "weights" / "w.pth")
    return tmp_path


def trained(**changes):
    """The parameters before and after, by name; the learning curve."""
    raw = yaml.safe_load(yaml.safe_dump(GOOD))
    raw["run"]["threads"] = 1
    raw["finetune"] |= {
        "network": "resnet8", "width": 8, "stem_stride": 1, "weights": "data/weights/w.pth", "image_size": 16,
        "mean": [0.5], "std": [0.25], "freeze": 0,
    }  # fmt: skip
    raw["finetune"]["augment"] |= {"crop": 1.0, "flip": False, "erase": 0.0}
    raw["finetune"]["training"] |= {"epochs": None, "steps": 4, "validate_every": 4, "batch_size": 8, "lr": 0.01}
    raw["finetune"]["training"] |= {"schedule": "constant", "warmup": 0.0, **changes.pop("training", {})}
    raw["finetune"] |= changes
    stage = Stage("finetune", Params.model_validate(raw))
    before = dict(learning.started(stage, stage.params.finetune, 3)[0].named_parameters())
    shutil.rmtree(stage.resume)  # of another training, which this one would go on with
    finetune(stage)
    after = dict(checkpoint.load("data/finetune").model.named_parameters())
    return before, after, pd.read_csv("reports/finetune/history.csv")


def test_with_next_to_no_rate_afterwards_only_the_head_has_learnt(project, capsys):
    # the head's own rate is that of both phases; after the probe a body at 1e-30 of the rate stays where it was
    before, after, curve = trained(probe_steps=40, layer_decay=1e-30, training={"steps": 1, "validate_every": 1})
    assert all(torch.allclose(after[n], before[n], atol=1e-12) for n in before if not n.startswith("fc."))
    assert not torch.allclose(after["fc.weight"], before["fc.weight"], atol=0.01)
    assert list(curve["step"]) == [1]
    assert "finetune: the head alone, 40 steps: " in capsys.readouterr().out


def test_the_head_that_learnt_alone_is_where_the_whole_network_starts(project):
    _, plain, _ = trained()
    _, probed, _ = trained(probe_steps=40)
    assert not torch.equal(plain["fc.weight"], probed["fc.weight"])
    _, again, _ = trained(probe_steps=40)
    assert all(torch.equal(probed[n], again[n]) for n in probed)


def test_the_whole_network_learns_after_the_probe(project):
    before, after, _ = trained(probe_steps=5)
    moved = [n for n in before if not torch.equal(before[n], after[n])]
    assert set(moved) == set(before)


def test_rates_fall_towards_the_image(project):
    def first_step(decay):
        sgd = {"optimizer": "sgd", "weight_decay": 0.0, "steps": 1, "validate_every": 1}
        before, after, _ = trained(layer_decay=decay, training=sgd)
        return {n: (after[n] - before[n]).detach().norm() for n in before}

    plain, decayed = first_step(1.0), first_step(0.5)
    scales = models.layer_scales(checkpoint.load("data/finetune").model, 0.5)
    assert all(float(decayed[n]) == pytest.approx(scales[n] * float(plain[n]), rel=2e-3) for n in plain)
