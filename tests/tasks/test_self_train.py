"""The stage self_train: it trains beside a control, goes on where it was killed, and teaches only if it helped."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from tasks import learning, teachers
from tasks.finetune import finetune
from tasks.self_train import self_train
from tasks.stage import Stage
from tests.prepared import write_prepared
from thinner.data import store
from thinner.errors import UserError
from thinner.evidence import decision
from thinner.learn import self_training
from thinner.networks import checkpoint
from thinner.params import Params

GOOD = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text())
CLASSES = ("down", "flat", "up")
STILL = {"crop": 1.0, "flip": False, "rotation_degrees": 0.0, "translation": 0.0, "brightness": 0.0, "contrast": 0.0,
         "saturation": 0.0, "erase": 0.0}  # fmt: skip
PLACE = Path("data/self_train/finetune")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Brightness that falls, stays or rises from left to right, under noise: 6 labels, 240 pictures without, 200 to
    choose by."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    labels = np.arange(466) % 3
    ramp = np.linspace(-1, 1, 12)[None, None, :] * (labels - 1)[:, None, None]
    images = np.clip(128 + 60 * ramp + 70 * rng.standard_normal((466, 12, 12)), 0, 255)[..., None]
    parts = np.split(np.arange(466), [6, 246, 446])
    splits = dict(zip(("labelled", "unlabelled", "validation", "test"), parts, strict=True))
    write_prepared(tmp_path, images, np.where(np.isin(np.arange(466), parts[1]), -1, labels), splits, CLASSES)
    return tmp_path


def params(**changes):
    """Parameters of a small job; ``changes`` of the section self_train."""
    raw = yaml.safe_load(yaml.safe_dump(GOOD))
    raw["run"]["threads"] = 1
    raw["finetune"] |= {
        "network": "resnet8", "width": 8, "stem_stride": 1, "weights": None, "image_size": 12, "mean": [0.5],
        "std": [0.25], "freeze": 0, "augment": STILL,
    }  # fmt: skip
    budget = {"epochs": None, "schedule": "constant", "warmup": 0.0, "batch_size": 6, "lr": 0.01, "weight_decay": 0.0}
    raw["finetune"]["training"] |= {**budget, "steps": 12, "validate_every": 4}
    training = {
        **raw["self_train"]["training"],
        **budget,
        "steps": 8,
        "validate_every": 3,
        **changes.pop("training", {}),
    }
    weak, strong = STILL, {**STILL, "translation": 0.1}
    raw["self_train"] |= {"networks": ["finetune"], "momentum": 0.9, "weak": weak, "strong": strong, **changes}
    raw["self_train"]["training"] = training
    return Params.model_validate(raw)


def run(given):
    finetune(Stage("finetune", given))
    return again(given)


def again(given):
    stage = Stage("self_train@finetune", given)
    self_train(stage)
    shutil.rmtree(stage.resume)
    return decision.read(PLACE)


def weights(folder=PLACE):
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(Path(folder).rglob("model.safetensors"))
    }


def test_both_networks_start_from_the_plain_one_and_are_kept_with_what_was_decided(project, capsys):
    found = run(params())
    plain, learner, control = (checkpoint.load(f) for f in ("data/finetune", PLACE, PLACE / "control"))
    assert learner.spec["parents"] == control.spec["parents"] == {"finetune": plain.sha256}
    assert len({plain.sha256, learner.sha256, control.sha256}) == 3
    assert json.loads(Path("reports/self_train/finetune/decision.json").read_text()) == found
    data = store.open_store("data/prepared")
    named = data.labels[data.splits["validation"]]
    for loaded, name in ((plain, decision.PLAIN), (learner, decision.LEARNER), (control, decision.CONTROL)):
        asked = learning.training.logits_of(loaded.model, data.images, data.splits["validation"], loaded.preprocessing)
        assert found["accuracy"][name] == pytest.approx(np.mean(asked.argmax(1).numpy() == named))
    curve, its = (pd.read_csv(f"reports/self_train/finetune/{file}") for file in ("history.csv", "control/history.csv"))
    assert list(curve["step"]) == list(its["step"]) == [3, 6, 8]
    assert {"labelled_loss", "pseudo_loss", "believed", "threshold"} <= set(curve)
    assert learner.spec["val_accuracy"] == curve["val_accuracy"].max()
    assert "Self-training" in capsys.readouterr().out


@pytest.mark.integration
@pytest.mark.parametrize("method", ["freematch", "fixmatch"])
@pytest.mark.parametrize("stopped", ["control", "learner"])
def test_a_killed_run_goes_on_to_the_same_bits(project, monkeypatch, method, stopped):
    given = params(method=method, threshold=0.5)
    run(given)
    wanted = weights()
    shutil.rmtree(PLACE)

    drawn = learning.training.Batches if stopped == "control" else self_training.Batches
    draw, calls = drawn.__call__, []

    def killed(self, step):
        calls.append(step)
        if step == 5 and (stopped == "learner" or self.batch_size == 24):  # the control's: 6 (1 + ratio 3)
            raise KeyboardInterrupt
        return draw(self, step)

    monkeypatch.setattr(drawn, "__call__", killed)
    stage = Stage("self_train@finetune", given)
    with pytest.raises(KeyboardInterrupt):
        self_train(stage)
    assert not PLACE.exists()
    monkeypatch.setattr(drawn, "__call__", lambda self, step: calls.append(step) or draw(self, step))
    calls.clear()
    self_train(stage)
    assert calls[0] == 3 or stopped == "control"  # after the last validation: nothing was trained twice
    assert weights() == wanted


@pytest.mark.integration
def test_pictures_without_labels_make_this_teacher_better_and_it_teaches(project):
    found = run(params(method="fixmatch", threshold=0.9, training={"steps": 60, "validate_every": 20}))
    assert found["chosen"] == decision.LEARNER, found
    assert found["accuracy"][decision.LEARNER] > found["accuracy"][decision.CONTROL] + 0.03
    given = params()
    assert teachers.plain_or_self_trained(given) == str(PLACE)
    chosen = teachers.teacher(given, store.open_store("data/prepared"), torch.device("cpu"))
    assert chosen.sha256 == {"finetune": checkpoint.load(PLACE).sha256}


def test_wrong_pseudo_labels_are_not_chosen_and_the_plain_teacher_teaches(project, capsys):
    """Weak views that are mirrored half of the time exchange "up" and "down", strong ones are not: half of what is
    learnt of these two is the wrong name, and every name is believed."""
    wrong = {"weak": {**STILL, "flip": True}, "method": "fixmatch", "threshold": 0.01, "weight": 10.0}
    found = run(params(**wrong, training={"steps": 30, "validate_every": 30}))
    assert found["accuracy"][decision.LEARNER] < found["accuracy"][decision.PLAIN]
    assert found["chosen"] == decision.PLAIN
    assert "was not shown to help" in capsys.readouterr().out
    assert teachers.plain_or_self_trained(params()) == "data/finetune"


def test_where_it_is_off_the_plain_teacher_teaches_whatever_lies_there(project):
    run(params())
    (PLACE / decision.FILE).write_text("not read")
    assert teachers.plain_or_self_trained(params(networks=[])) == "data/finetune"


def test_a_decision_that_is_missing_or_damaged_is_said(project):
    with pytest.raises(UserError, match="self-training has not been done. Do it: thinner stage self_train@finetune"):
        teachers.plain_or_self_trained(params())
    PLACE.mkdir(parents=True)
    (PLACE / decision.FILE).write_text('{"chosen": "prune"}')
    with pytest.raises(UserError, match="decision.json: .*Make it again: dvc repro self_train@finetune"):
        teachers.plain_or_self_trained(params())


def test_nothing_without_labels_is_an_error_that_says_what_to_set(project):
    given = params()
    finetune(Stage("finetune", given))
    folder = Path("data/prepared/splits.npz")
    with np.load(folder) as file:
        splits = dict(file)
    np.savez(folder, **{**splits, "unlabelled": splits["unlabelled"][:0]})
    with pytest.raises(UserError, match="there are none. Set data.unlabelled: rest, or self_train.networks: "):
        self_train(Stage("self_train@finetune", given))


def test_a_threshold_that_smoothed_labels_never_reach_is_refused(project):
    given = params(method="fixmatch", threshold=0.95, training={"label_smoothing": 0.1})
    finetune(Stage("finetune", given))
    with pytest.raises(UserError, match=r"self_train.threshold: 0.95 .* the target itself is 0.933"):
        self_train(Stage("self_train@finetune", given))
