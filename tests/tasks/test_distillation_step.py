"""What a student is taught is what the teacher says: cached or live, one teacher or several, or a file."""

import contextlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from tasks import distillation, learning, teachers
from tasks.stage import Stage
from tasks.teach import teach
from tests.prepared import write_prepared
from thinner.data import store, views
from thinner.errors import UserError
from thinner.files import whole
from thinner.learn import training
from thinner.learn.signals import SignalsError
from thinner.networks import checkpoint, models
from thinner.networks.spec import NetworkSpec
from thinner.params import Params

GOOD = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text())
CLASSES = ("cat", "dog", "fox")
PREPROCESSING = views.Preprocessing(16, mean=(0.5,), std=(0.25,))
TEACHER = NetworkSpec("resnet8", 3, 1, width=8, stem_stride=1)
FEATURES = [{"layer": "stages.1", "keep": "map"}, {"layer": "stages.2", "keep": "pooled"}]
LAYERS = {"student_layers": ["stages.1"], "teacher_layers": ["stages.1"]}
LAST = {"student_layers": ["stages.2"], "teacher_layers": ["stages.2"]}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """40 images and a teacher, prepared and fine-tuned."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 12, 12, 1), dtype=np.uint8)
    labels = rng.integers(0, 3, 40)
    labels[8:24] = -1
    splits = {
        "labelled": np.arange(8),
        "unlabelled": np.arange(8, 24),
        "validation": np.arange(24, 34),
        "test": np.arange(34, 40),
    }
    write_prepared(tmp_path, images, labels, splits, CLASSES)
    make_teacher(tmp_path / "data" / "finetune", 0)
    return tmp_path


def make_teacher(folder, seed, classes=CLASSES, **facts):
    torch.manual_seed(seed)
    spec = {"stage": "finetune", "network": TEACHER.as_json(), "classes": list(classes), "preprocessing": PREPROCESSING.as_json(),
            "parents": {}, "data_sha256": "0" * 64}  # fmt: skip
    checkpoint.save(folder, models.create(TEACHER), {**spec, **facts})


def params_of(**changes):
    raw = yaml.safe_load(yaml.safe_dump(GOOD))
    raw["run"]["threads"] = 1
    raw["teach"]["at_chance"] = "allow"  # these teachers have learned nothing
    raw["student"] |= {"width": 4, "image_size": 12, "mean": [0.5], "std": [0.25]}
    for key, value in changes.items():
        section, name = key.split("__")
        raw[section][name] = value
    return Params.model_validate(raw)


def run_teach(params):
    teach(Stage("teach", params))


def student_of(params):
    torch.manual_seed(1)
    return models.create(models.describe(params.student, 3))


def trained(params, steps=12):
    """Weights of a student after some steps with the losses of `params`."""
    data = store.open_store(learning.PREPARED)
    stage = Stage("distill", params)
    fabric = training.make_fabric("cpu", 1, "fp32")
    model = student_of(params)
    batches = learning.batches_of(
        stage, data, learning.training_pool(data), replace(PREPROCESSING, image_size=12), params.student.augment, 8, fabric,
        number_of_views=params.teach.views,
    )  # fmt: skip
    distilled = distillation.step_of(params, data, model, len(batches), fabric.device)
    training.fit(
        model, batches, distilled.step, steps=steps, validate_every=steps,
        optimizer=training.make_optimizer(model, "sgd", lr=0.01, weight_decay=0.0, extra=distilled.extra),
        factor=lambda number: 1.0, validate=lambda judged: {"val_accuracy": 0.0, "val_loss": 0.0}, fabric=fabric, seed=0,
        extra=distilled.extra,
    )  # fmt: skip
    return model.state_dict()


MOVING = {
    "crop": 0.8,
    "flip": True,
    "rotation_degrees": 0.0,
    "translation": 0.0,
    "brightness": 0.0,
    "contrast": 0.0,
    "saturation": 0.0,
    "erase": 0.0,
}


@pytest.mark.parametrize(
    "loss",
    [
        {"name": "kd", "weight": 1.0},
        {"name": "fitnet", "weight": 1.0, **LAYERS},
        {"name": "at", "weight": 10.0, **LAYERS},
        {"name": "sp", "weight": 10.0, **LAYERS},
        {"name": "crd", "weight": 0.1, "width": 8, "negatives": 16, **LAST},
        {"name": "pkt_pooled", "weight": 1.0, **LAST},
    ],
    ids=lambda loss: loss["name"],
)
def test_cached_and_live_teach_the_same(project, loss):
    cached = params_of(distill__losses=[loss], teach__views=3, teach__features=FEATURES, student__augment=MOVING)
    run_teach(cached)
    live = params_of(
        distill__losses=[loss],
        distill__teacher="live",
        teach__views=3,
        teach__features=FEATURES,
        student__augment=MOVING,
    )
    one, two, before = trained(cached), trained(live), student_of(cached).state_dict()
    moved = max(float((one[n] - before[n]).abs().max()) for n in one if "weight" in n)
    apart = max(float((one[n] - two[n]).abs().max()) for n in one if "weight" in n)
    assert moved > 1e-3  # something was learnt,
    # and float16 is all that lies between the two; crd divides cosines by 0.07, so more comes of it
    assert apart < (0.1 if loss["name"] == "crd" else 0.02) * moved


def test_several_teachers_count_by_their_accuracy_on_validation(project):
    make_teacher(project / "data" / "teachers" / "second", 7)
    data = store.open_store(learning.PREPARED)
    both = ["finetune", "data/teachers/second"]
    chosen = teachers.teacher(params_of(teach__teachers=both, teach__combine="accuracy"), data, torch.device("cpu"))
    rights = []
    for folder in ("data/finetune", "data/teachers/second"):
        logits = training.logits_of(
            checkpoint.load(folder).model, data.images, data.splits["validation"], PREPROCESSING
        )
        rights.append(int((logits.argmax(1).numpy() == data.labels[data.splits["validation"]]).sum()))
    assert sum(rights) > 0 and rights[0] != rights[1]
    assert list(chosen.weights.values()) == pytest.approx([right / sum(rights) for right in rights])
    equal = teachers.teacher(params_of(teach__teachers=both), data, torch.device("cpu"))
    assert list(equal.weights.values()) == [0.5, 0.5]


def test_a_teacher_at_chance_is_refused_before_anybody_is_taught(project):
    refusing = params_of(teach__at_chance="refuse")
    with pytest.raises(UserError, match=r"'finetune' names 30\.0% of 10 .*would 40\.0%.*at_chance: allow"):
        run_teach(refusing)  # looked at by itself: the checkpoint does not say how good it is
    assert not (project / "data/teach").exists()
    make_teacher(project / "data" / "finetune", 0, val_accuracy=0.9)
    run_teach(refusing)
    make_teacher(project / "data" / "finetune", 0, val_accuracy=0.9, data_sha256="1" * 64)  # of other images
    with pytest.raises(UserError, match="nothing to teach"):
        run_teach(refusing)


@pytest.mark.parametrize(
    ("count", "accuracy", "refused"),
    [(20, 0.5, True), (20, 0.55, False), (1000, 0.51, True), (1000, 0.53, False), (1000, 0.4, True)],
)
def test_chance_is_judged_by_a_test_where_there_are_images_enough(count, accuracy, refused):
    with pytest.raises(UserError) if refused else contextlib.nullcontext():
        teachers._refuse_chance("x", accuracy, np.arange(count) % 2)


def test_what_was_kept_says_who_said_it(project):
    make_teacher(project / "data" / "teachers" / "second", 7)
    run_teach(params_of(teach__teachers=["finetune", "data/teachers/second"]))
    info = json.loads((project / "data" / "teach" / "signals.json").read_text())
    wanted = {n: whole.file_sha256(f"data/{n}/model.safetensors") for n in ("finetune", "teachers/second")}
    assert info["teachers"] == {"finetune": wanted["finetune"], "data/teachers/second": wanted["teachers/second"]}
    assert info["weights"] == {"finetune": 0.5, "data/teachers/second": 0.5}
    # and so does the student's checkpoint, of whoever taught it
    assert teachers.parents(params_of(teach__teachers=["data/teachers/second"])) == {
        "data/teachers/second": wanted["teachers/second"]
    }
    both = params_of(teach__teachers=["finetune", "data/teachers/second"])
    assert teachers.parents(both) == info["teachers"]


def test_the_mend_for_a_teacher_that_knows_nothing_is_of_that_teacher():
    assert "(finetune.training)" in teachers._mend_of(params_of(), "finetune")
    assert teachers._mend_of(params_of(), "data/teachers/second") == "Name another teacher"


def test_logits_from_a_file_teach(project):
    (project / "data" / "teachers").mkdir()
    rng = np.random.default_rng(3)
    given = rng.normal(size=(24, 3)).astype(np.float32)
    np.savez(project / "data/teachers/api.npz", names=np.array([f"{n}.png" for n in range(24)]), logits=given)
    params = params_of(teach__teachers=["data/teachers/api.npz"])
    run_teach(params)
    ask = distillation._cached([], torch.device("cpu"))
    logits, _ = ask(np.arange(24), np.zeros(24, dtype=np.int64))
    np.testing.assert_allclose(logits.numpy(), given, atol=2e-3)
    # weighing needs the validation images, which the file does not have
    with pytest.raises(SignalsError, match="no logits for 10 of the 34 images, such as 24.png"):
        run_teach(params_of(teach__teachers=["data/teachers/api.npz", "finetune"], teach__combine="accuracy"))


def test_logits_from_a_file_that_know_nothing_are_refused_by_the_labelled_images_that_they_have(project):
    (project / "data" / "teachers").mkdir()
    labels = np.load(project / "data" / "prepared" / "labels.npy")
    params = params_of(teach__teachers=["data/teachers/api.npz"], teach__at_chance="refuse")
    names = np.array([f"{n}.png" for n in range(24)])
    known = np.flatnonzero(labels[:24] >= 0)
    for right, refused in ((0.0, True), (9.0, False)):
        given = np.zeros((24, 3), np.float32)
        given[known, labels[known]] = right
        given[known, (labels[known] + 1) % 3] += 1.0
        np.savez(project / "data/teachers/api.npz", names=names, logits=given)
        wrong = pytest.raises(
            UserError, match=r"teachers\[0\]: 'data/teachers/api.npz' names 0.0% of .* labelled images"
        )
        with wrong if refused else contextlib.nullcontext():
            run_teach(params)


def test_a_grey_teacher_of_colour_pictures_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images, labels = np.zeros((12, 16, 16, 3), np.uint8), np.arange(12) % 3
    parts = np.split(np.arange(12), [3, 6, 9])
    write_prepared(tmp_path, images, labels, dict(zip(store.SPLITS, parts, strict=True)), CLASSES)
    make_teacher(tmp_path / "data" / "finetune", 0)
    with pytest.raises(UserError, match=r"teachers\[0\]: 'finetune' takes pictures of 1 channel, the data have 3"):
        run_teach(params_of())


def test_a_teacher_of_other_classes_is_refused(project):
    make_teacher(project / "data" / "teachers" / "second", 7, classes=("a", "b", "c"))
    with pytest.raises(
        checkpoint.CheckpointError, match=r"teach.teachers\[0\]: 'data/teachers/second' knows the classes"
    ):
        run_teach(params_of(teach__teachers=["data/teachers/second"]))
