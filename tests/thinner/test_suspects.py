"""thinner/learn/suspects.py: features, out-of-fold probabilities, and which labels are suspect."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from thinner.data import views
from thinner.errors import UserError
from thinner.learn import suspects
from thinner.networks import models
from thinner.networks.spec import NetworkSpec

LOOK = views.Preprocessing(16, mean=(0.5, 0.4, 0.3), std=(0.5, 0.5, 0.5))


@pytest.mark.parametrize("name", ["resnet8", "torchvision:squeezenet1_1"])
def test_features_are_what_the_classifier_gets(name: str) -> None:
    torch.manual_seed(0)
    size = 16 if name == "resnet8" else 64
    network = NetworkSpec(name, 4, 3, **({"width": 8, "stem_stride": 1} if size == 16 else {}))
    model, look = models.create(network), replace(LOOK, image_size=size)
    images = np.random.default_rng(0).integers(0, 256, (200, 16, 16, 3), np.uint8)
    rows = np.arange(199, 40, -1)
    told: list[int] = []
    found = suspects.features(model, images, rows, look, progress=told.append)
    assert told == [128, 159]
    with torch.inference_mode():
        logits = model(views.preprocess(images[rows], look))
        head = models.head_of(model)[1]
        x = torch.from_numpy(found)
        if isinstance(head, torch.nn.Conv2d):  # SqueezeNet has a ReLU between this layer and the mean over the plane
            assert found.shape == (159, head.in_channels)
        else:
            torch.testing.assert_close(head(x), logits, atol=1e-5, rtol=1e-4)


def blobs(per_class: int, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), per_class)
    centres = 4 * rng.normal(size=(classes, 10))
    return (centres[labels] + rng.normal(size=(len(labels), 10))).astype(np.float32), labels


def test_flipped_labels_come_first_and_the_right_one_is_suggested() -> None:
    x, right = blobs(60)
    given = right.copy()
    wrong = np.array([3, 50, 77, 100, 130, 171])
    given[wrong] = (right[wrong] + 1) % 3
    ranking = suspects.rank(given, suspects.probabilities(x, given, 3, seed=0))
    assert set(ranking.order[:6].tolist()) == set(wrong.tolist())
    assert (ranking.suggested[wrong] == right[wrong]).all()
    assert ranking.estimated == 6
    assert (np.diff(ranking.score[ranking.order]) >= 0).all()


def test_a_label_is_as_suspect_as_it_is_improbable() -> None:
    p = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.2, 0.5, 0.3], [0.3, 0.3, 0.4]])
    ranking = suspects.rank(np.array([0, 1, 0, 2]), p)
    np.testing.assert_allclose(ranking.score, [0.7, 0.6, 0.2, 0.4])
    assert ranking.order.tolist() == [2, 3, 1, 0]
    assert ranking.suggested.tolist() == [1, 2, 1, 0]


def test_a_picture_is_judged_by_a_probe_that_has_not_seen_it() -> None:
    """Features that name the picture and nothing else: fitted with it, a probe knows its label; without it, none."""
    labels = np.tile([0, 1], 40)
    p = suspects.probabilities(np.eye(80, dtype=np.float32), labels, 2, seed=0)
    assert abs(p[np.arange(80), labels].mean() - 0.5) < 0.05


def test_seed_draws_the_folds() -> None:
    x, labels = blobs(20)
    first = suspects.probabilities(x, labels, 3, seed=1)
    np.testing.assert_array_equal(first, suspects.probabilities(x, labels, 3, seed=1))
    assert (first != suspects.probabilities(x, labels, 3, seed=2)).any()
    np.testing.assert_allclose(first.sum(1), 1.0)


def test_classes_with_few_pictures_or_none_are_judged_too() -> None:
    x, labels = blobs(20)
    x, labels = np.concatenate([x, x[:3] + 50]), np.concatenate([labels, [4, 4, 5]])
    p = suspects.probabilities(x, labels, 7, seed=0)
    assert p.shape == (63, 7) and (p[:, [3, 6]] == 0).all()
    ranking = suspects.rank(labels, p)
    assert ranking.order[0] == 62  # the only one of its class: what fold it is in, the others do not know it
    assert set(ranking.suggested.tolist()) <= {0, 1, 2, 4, 5}


@pytest.mark.parametrize("labels", [[], [0], [0, 1, 2], [1, 1, 1]])
def test_too_few_labels_are_refused(labels: list[int]) -> None:
    with pytest.raises(UserError, match=f"data.labelled: {len(labels)} pictures with labels are too few"):
        suspects.probabilities(np.zeros((len(labels), 2), np.float32), np.array(labels, dtype=np.int64), 3, seed=0)
