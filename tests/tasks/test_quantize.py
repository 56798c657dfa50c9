"""The stage: it climbs as far as it must, says what holds, and what was trained in 8 bits is what runs in 8 bits."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
import yaml

from tasks import learning
from tasks.quantize import quantize
from tasks.stage import Stage
from tasks.teach import teach
from tests.prepared import write_prepared
from thinner import predict
from thinner.compress.fake_quantization import FakeQuantised
from thinner.data import store, views
from thinner.evidence import ladder as ladder_file
from thinner.evidence import shipping
from thinner.learn import training
from thinner.networks import checkpoint, models
from thinner.networks.spec import NetworkSpec
from thinner.params import Params

GOOD = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text())
CLASSES = ("dark", "medium", "bright")
PREPROCESSING = views.Preprocessing(12, mean=(0.5,), std=(0.25,))
NETWORK = NetworkSpec("resnet8", 3, 1, width=8, stem_stride=1)
VALIDATION = 300
judged = ladder_file.judged


def learned(images, labels):
    """A network that tells the three classes apart."""
    torch.manual_seed(0)
    model = models.create(NETWORK).train()
    x = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25
    x = F.interpolate(x, (12, 12), mode="bilinear", antialias=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(40):
        part = np.arange(step * 64, (step + 1) * 64) % len(x)
        optimizer.zero_grad()
        F.cross_entropy(model(x[part]), torch.from_numpy(labels[part])).backward()
        optimizer.step()
    return model.eval()


def planted(model, factor=1e3):
    """The same function in float, with one channel in a range so wide that 256 values leave the others few.

    A ReLU passes on a positive factor, so what a batch norm multiplies the next convolution may divide."""
    block = model.stages[0][0]
    with torch.no_grad():
        block.bn1.weight[0] *= factor
        block.bn1.bias[0] *= factor
        block.conv2.weight[:, 0] /= factor
    return model


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Images of three brightnesses; a teacher, the same network with a planted channel, the teacher's signals."""
    root = tmp_path_factory.mktemp("made")
    rng = np.random.default_rng(0)
    labels = np.arange(700) % 3
    images = (rng.integers(0, 130, (700, 12, 12, 1)) + 60 * labels[:, None, None, None]).astype(np.uint8)
    splits = {
        "labelled": np.arange(100),
        "unlabelled": np.arange(100, 300),
        "validation": np.arange(300, 300 + VALIDATION),
        "test": np.arange(600, 700),
    }
    write_prepared(root, images, labels, splits, CLASSES)
    spec = {"network": NETWORK.as_json(), "classes": list(CLASSES), "preprocessing": PREPROCESSING.as_json(), "parents": {},
            "data_sha256": "0" * 64}  # fmt: skip
    model = learned(images[:300], labels[:300])
    checkpoint.save(root / "data" / "finetune", model, {"stage": "finetune", **spec})
    checkpoint.save(root / "data" / "prune", planted(model), {"stage": "prune", **spec})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        teach(Stage("teach", params_of()))
    return root


@pytest.fixture
def project(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def params_of(**changes):
    raw = yaml.safe_load(yaml.safe_dump(GOOD))
    raw["run"] |= {"threads": 1, "device": "cpu"}
    raw["student"] |= {"width": 8, "stem_stride": 1, "image_size": 12, "mean": [0.5], "std": [0.25]}
    raw["quantize"] |= {"max_drop": 2.0, "images": 64, "latency_batch": 2, "calibration": ["minmax"]}
    raw["quantize"]["training"] |= {"steps": 60, "validate_every": 20, "batch_size": 32, "lr": 0.005}
    for key, value in changes.items():
        place = raw["quantize"]["training"] if key in raw["quantize"]["training"] else raw["quantize"]
        place[key] = value
    return Params.model_validate(raw)


def run(**changes):
    quantize(Stage("quantize", params_of(**changes)))
    return pd.read_csv("reports/quantize/ladder.csv"), json.loads(Path("reports/quantize/target.json").read_text())


def logits_of(folder, split="validation"):
    data = store.open_store(learning.PREPARED)
    return predict.predict_logits(predict.open_candidate(folder, threads=1), data.images, data.splits[split], 64)


@pytest.mark.integration
def test_it_goes_no_further_than_it_must(project):
    ladder, found = run(source="finetune")
    assert ladder["rung"].tolist() == ["float", "static"]
    assert ladder["chosen"].tolist() == [False, True]
    assert found["met"] and found["candidate"] == "finetune_int8"
    assert found["lines"][0].startswith("8 bits hold: finetune_int8 (static, calibrated by minmax) lost ")
    assert not Path("reports/quantize/sensitivity.csv").exists()


@pytest.mark.integration
def test_a_planted_network_falls_on_the_first_rung_and_nothing_calls_it_shippable(project):
    ladder, found = run(rungs=["static"])
    assert ladder["loss_points"][1] > 2.0
    assert not ladder["holds"][1] and ladder["chosen"][1]
    assert not found["met"]
    (line,) = found["lines"]
    assert line.startswith("8 BITS DO NOT HOLD: prune_int8 ") and line.endswith("and is not to be shipped.")
    targets = shipping.read_targets(Path("reports"))
    proven = [{"claim": "prune beats scratch on accuracy", "kind": "beats", "outcome": "proven"}]
    assert shipping.open_points("prune_int8", proven, targets) == ["prune_int8 missed its target"]
    assert shipping.open_points("prune", proven, targets) == []  # float is as good as it was
    assert Path("data/quantize/prune_int8/model.onnx").is_file()


@pytest.mark.integration
def test_the_layers_that_lose_most_stay_in_float_and_bring_it_back(project):
    ladder, found = run(rungs=["static", "mixed"], max_float=0.5)
    assert found["met"] and found["rung"] == "mixed"
    sensitivity = pd.read_csv("reports/quantize/sensitivity.csv")
    worst = sensitivity.sort_values("divergence", ascending=False)["layer"].head(2).tolist()
    assert set(worst) == {"stages.0.0.conv1", "stages.0.0.conv2"}  # whose tensor has the planted channel
    row = ladder[ladder["chosen"]].iloc[0]
    names = row["float_names"].split()
    assert names == sensitivity.sort_values("divergence", ascending=False)["layer"].head(len(names)).tolist()
    graph = onnx.load("data/quantize/prune_int8/model.onnx").graph
    kinds = {item.name: item.data_type for item in graph.initializer}
    for name in names:
        assert kinds[f"{name}.weight"] == onnx.TensorProto.FLOAT
    assert kinds["stem.0.weight_quantized"] == onnx.TensorProto.INT8
    assert row["file_bytes"] > ladder[ladder["rung"] == "static"]["file_bytes"].iloc[0]
    assert row["float_weights"] <= 0.5
    counts = ladder[ladder["rung"] == "mixed"]["float_layers"].tolist()
    assert counts == [1, 2, 4, 8][: len(counts)] and not ladder["holds"].iloc[1:-1].any()


@pytest.mark.integration
def test_training_in_8_bits_brings_it_back_and_what_was_trained_is_what_runs(project, capsys):
    ladder, found = run(rungs=["static", "trained"])
    assert found["met"] and found["rung"] == "trained"
    assert ladder["steps"].iloc[-1] == 60 and ladder["float_layers"].iloc[-1] == 0
    history = pd.read_csv("reports/quantize/history.csv")
    assert history["step"].tolist() == [20, 40, 60]
    assert history["val_accuracy"].max() == pytest.approx(ladder["accuracy"].iloc[-1], abs=0.01)
    data = store.open_store(learning.PREPARED)
    network = FakeQuantised(onnx.load("data/quantize/prune_int8/model.onnx"))
    trained = training.logits_of(network, data.images, data.splits["test"], PREPROCESSING).numpy()
    theirs = logits_of("data/quantize/prune_int8", "test")
    assert (trained.argmax(1) == theirs.argmax(1)).mean() >= 0.99
    assert np.abs(trained - theirs).max() < 0.05 * np.ptp(theirs)
    assert "differ by 0.0e+00 from those trained" in capsys.readouterr().out


@pytest.mark.integration
def test_training_starts_where_the_rung_below_ended(project, monkeypatch):
    monkeypatch.setattr(ladder_file, "judged", lambda drop: {**judged(drop), "holds": False})
    ladder, found = run(max_float=0.25)
    assert found["rung"] in ("mixed", "trained") and not found["met"]
    mixed, trained = ladder[ladder["rung"] == "mixed"].iloc[-1], ladder.iloc[-1]
    assert trained["rung"] == "trained"
    assert trained["float_names"] == mixed["float_names"] and mixed["float_layers"] == 4  # of 13 layers a quarter
    assert ladder["chosen"].to_numpy().nonzero()[0].tolist() == [ladder.iloc[1:]["loss_high"].idxmin()]


@pytest.mark.integration
def test_a_training_that_was_stopped_ends_with_the_same_file(project, monkeypatch):
    run(rungs=["static", "trained"])
    whole = Path("data/quantize/prune_int8/model.onnx").read_bytes()
    shutil.rmtree(Stage("quantize", params_of(rungs=["static", "trained"])).resume)
    real = training.Batches.__call__

    class Killed(BaseException):
        pass

    def dies(self, step):
        if step == 27:
            raise Killed
        return real(self, step)

    monkeypatch.setattr(training.Batches, "__call__", dies)
    with pytest.raises(Killed):
        run(rungs=["static", "trained"])
    monkeypatch.setattr(training.Batches, "__call__", real)
    seen = []
    monkeypatch.setattr(training.Batches, "__call__", lambda self, step: seen.append(step) or real(self, step))
    run(rungs=["static", "trained"])
    assert min(seen) == 20  # from the state at its last validation
    assert Path("data/quantize/prune_int8/model.onnx").read_bytes() == whole


@pytest.mark.integration
def test_too_few_validation_images_are_said_and_nothing_is_trained_in_vain(project, capsys):
    ladder, found = run(max_drop=1.0)
    assert ladder["rung"].tolist() == ["float", "static"]
    assert not found["met"]
    assert "quantize.max_drop 1 points, but 300 validation images show a drop of 1.27" in capsys.readouterr().out


def test_without_rungs_nothing_is_quantised(project):
    quantize(Stage("quantize", params_of(rungs=[])))
    assert list(Path("data/quantize").iterdir()) == []
    assert len(pd.read_csv("reports/quantize/ladder.csv")) == 0
    assert shipping.read_targets(Path("reports")) == []


@pytest.mark.integration
def test_ranges_are_of_training_images_and_of_no_others(project):
    def made_with(changed=None):
        path = Path("data/prepared/images.npy")
        kept = np.load(path)
        images = kept.copy()
        if changed:
            index = np.load("data/prepared/splits.npz")[changed]
            images[index] = 255 - images[index]
        np.save(path, images)
        run(rungs=["static"], source="finetune")
        np.save(path, kept)
        shutil.rmtree(Stage("quantize", params_of()).resume)
        return Path("data/quantize/finetune_int8/model.onnx").read_bytes()

    before = made_with()
    assert made_with("validation") == made_with("test") == before
    assert made_with("unlabelled") != before
