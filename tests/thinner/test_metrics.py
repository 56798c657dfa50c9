"""thinner.metrics against numbers worked by hand."""

import numpy as np
import pytest

from thinner.metrics import accuracy, agreement, confusion, macro_f1, per_class_accuracy

#                 cat cat cat dog dog owl
LABELS = np.array([0, 0, 0, 1, 1, 2])
PREDICTED = np.array([0, 0, 1, 1, 2, 2])


def test_accuracy_is_the_share_of_right_answers() -> None:
    assert accuracy(LABELS, PREDICTED) == 4 / 6


def test_macro_f1_is_the_mean_over_classes_worked_by_hand() -> None:
    # cat: TP 2, FP 0, FN 1 -> 4/5; dog: TP 1, FP 1, FN 1 -> 1/2; owl: TP 1, FP 1, FN 0 -> 2/3
    assert macro_f1(LABELS, PREDICTED) == pytest.approx((4 / 5 + 1 / 2 + 2 / 3) / 3, rel=1e-15)


def test_macro_f1_scores_a_class_that_is_predicted_but_never_right_as_zero() -> None:
    # class 0: TP 1, FN 1 -> 2/3; class 1 is predicted once and never there -> 0
    assert macro_f1(np.array([0, 0]), np.array([0, 1])) == pytest.approx((2 / 3 + 0) / 2, rel=1e-15)


def test_macro_f1_leaves_out_a_class_that_occurs_nowhere() -> None:
    assert macro_f1(np.array([0, 2]), np.array([0, 2])) == 1.0


def test_per_class_accuracy_is_each_class_recall_and_nan_without_images() -> None:
    np.testing.assert_array_equal(per_class_accuracy(LABELS, PREDICTED, 4), [2 / 3, 1 / 2, 1.0, np.nan])


def test_confusion_has_actual_classes_in_rows() -> None:
    np.testing.assert_array_equal(confusion(LABELS, PREDICTED, 3), [[2, 1, 0], [0, 1, 1], [0, 0, 1]])


def test_confusion_keeps_a_row_for_a_class_without_images() -> None:
    assert confusion(LABELS, PREDICTED, 5).shape == (5, 5)


def test_agreement_counts_equal_answers_even_when_both_are_wrong() -> None:
    assert agreement(np.array([1, 1, 2, 0]), np.array([1, 0, 2, 2])) == 0.5


def test_agreement_of_a_candidate_with_itself_is_one_and_is_symmetric() -> None:
    assert agreement(PREDICTED, PREDICTED) == 1.0
    assert agreement(LABELS, PREDICTED) == agreement(PREDICTED, LABELS)


def test_order_of_images_changes_nothing() -> None:
    order = np.random.default_rng(0).permutation(len(LABELS))
    assert accuracy(LABELS, PREDICTED) == accuracy(LABELS[order], PREDICTED[order])
    assert macro_f1(LABELS, PREDICTED) == macro_f1(LABELS[order], PREDICTED[order])


def test_accuracy_is_the_weighted_mean_of_per_class_accuracy() -> None:
    rng = np.random.default_rng(1)
    labels, predictions = rng.integers(0, 7, 500), rng.integers(0, 7, 500)
    shares = np.bincount(labels, minlength=7) / 500
    assert accuracy(labels, predictions) == pytest.approx(
        per_class_accuracy(labels, predictions, 7) @ shares, rel=1e-12
    )


def test_unequal_lengths_and_empty_inputs_are_refused_with_the_numbers() -> None:
    with pytest.raises(ValueError, match="6 labels, but 5 predictions"):
        accuracy(LABELS, PREDICTED[:5])
    with pytest.raises(ValueError, match="no images"):
        macro_f1(LABELS[:0], PREDICTED[:0])


def test_a_label_outside_the_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="predictions run from 0 to 2, but there are 2 classes"):
        confusion(np.array([0, 1, 1]), np.array([0, 1, 2]), 2)
    with pytest.raises(ValueError, match="labels run from -1"):
        confusion(np.array([-1, 1]), np.array([0, 1]), 2)
