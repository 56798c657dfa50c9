"""thinner.measure.scores against scikit-learn, from the same answers."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score, recall_score

from thinner.measure import scores

ORACLES = {
    "accuracy": accuracy_score,
    "balanced_accuracy": balanced_accuracy_score,
    "macro_f1": lambda labels, answers: f1_score(labels, answers, average="macro"),
    "worst_class": lambda labels, answers: recall_score(labels, answers, average=None).min(),
}


@pytest.mark.parametrize("metric", scores.METRICS)
@pytest.mark.parametrize("seed", range(3))
def test_a_table_of_counts_has_scikit_learns_score(metric: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(5), (40, 20, 10, 4, 1))
    answers = np.where(rng.random(labels.size) < 0.7, labels, rng.integers(0, 5, labels.size))
    table = confusion_matrix(labels, answers, labels=np.arange(5))
    assert scores.score(metric, table) == pytest.approx(ORACLES[metric](labels, answers), rel=1e-12)


def test_a_class_without_images_is_left_out_and_of_f1_only_if_nobody_named_it() -> None:
    table = np.array([[3, 1, 0], [0, 0, 0], [0, 0, 0]])  # the second is named once, the third never occurs
    assert scores.score("balanced_accuracy", table) == scores.score("worst_class", table) == 0.75
    assert scores.score("macro_f1", table) == pytest.approx((6 / 7 + 0) / 2)


def test_nothing_has_no_score_and_no_other_metric_is_known() -> None:
    with pytest.raises(ValueError, match="no images"):
        scores.score("accuracy", np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"unknown 'auc'. Choose one of: accuracy, balanced_accuracy"):
        scores.score("auc", np.ones((2, 2)))


def test_classes_that_no_label_names_are_missing() -> None:
    assert scores.missing(np.array([0, 2, 2]), ["cat", "dog", "fox", "hen"]) == ["dog", "hen"]
