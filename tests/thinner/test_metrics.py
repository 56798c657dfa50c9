"""thinner.measure.metrics against numbers worked by hand, PyTorch and scikit-learn."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

from thinner.measure import metrics
from thinner.measure.metrics import accuracy, agreement, confusion, macro_f1, per_class_accuracy

#                 cat cat cat dog dog owl
LABELS = np.array([0, 0, 0, 1, 1, 2])
PREDICTED = np.array([0, 0, 1, 1, 2, 2])


def test_accuracy_is_the_share_of_right_answers() -> None:
    assert accuracy(LABELS, PREDICTED) == 4 / 6


def test_accuracy_is_the_count_divided_once() -> None:
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(0, 10, (2, 9973))
    assert accuracy(labels, predictions) == int((labels == predictions).sum()) / 9973
    assert accuracy(np.array([-1, 0]), np.array([0, 0])) == 0.5  # a label that is no class is missed, not refused


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


@pytest.mark.usefixtures("unchecked")
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


def test_per_class_interval_is_wilsons_formula() -> None:
    # cat: 2 of 3 right. (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)
    low, high = metrics.per_class_interval(LABELS, PREDICTED, 4)
    z, n, p = stats.norm.ppf(0.975), 3, 2 / 3
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    middle = p + z**2 / (2 * n)
    assert low[0] == pytest.approx((middle - half) / (1 + z**2 / n), rel=1e-9)
    assert high[0] == pytest.approx((middle + half) / (1 + z**2 / n), rel=1e-9)
    assert high[2] == pytest.approx(1.0) and low[2] < 0.5  # one image, right: nothing is known for sure
    assert np.isnan(low[3]) and np.isnan(high[3])


# ------------------------------------------------------------------------------------------- confidences


def logits_of(*rows: list[float]) -> np.ndarray:
    """Logits whose softmax is the rows."""
    return np.log(np.array(rows))


def random_logits(images: int = 400, classes: int = 7, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images)
    logits = rng.normal(size=(images, classes)) + 1.5 * np.eye(classes)[labels]
    return labels, (3 * logits).astype(np.float32)  # three times too sure


def test_top_k_accuracy_counts_labels_among_the_k_largest() -> None:
    logits = np.array([[0.1, 0.5, 0.4], [0.6, 0.3, 0.1], [0.2, 0.3, 0.5]])
    labels = np.array([2, 2, 2])
    assert metrics.top_k_accuracy(labels, logits, 1) == pytest.approx(1 / 3)
    assert metrics.top_k_accuracy(labels, logits, 2) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="top 3 of 3 classes: k must be 1 to 2"):
        metrics.top_k_accuracy(labels, logits, 3)


def test_top_1_is_accuracy_also_for_two_classes() -> None:
    for classes in (2, 7):
        labels, logits = random_logits(classes=classes)
        assert metrics.top_k_accuracy(labels, logits, 1) == accuracy(labels, logits.argmax(1))


def test_nll_is_pytorchs_cross_entropy_and_scikit_learns_log_loss() -> None:
    labels, logits = random_logits()
    expected = torch.nn.functional.cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(labels))
    assert metrics.nll(labels, logits) == pytest.approx(float(expected), rel=1e-12)
    probabilities = torch.from_numpy(logits).double().softmax(1).numpy()
    assert metrics.nll(labels, logits) == pytest.approx(log_loss(labels, probabilities), rel=1e-9)


def test_nll_of_a_hopeless_answer_is_not_clipped() -> None:
    assert metrics.nll(np.array([1]), np.array([[2000.0, 0.0]])) == 2000.0


def test_brier_worked_by_hand() -> None:
    # right and sure of 0.7: 0.3^2 + 0.2^2 + 0.1^2; wrong, and sure of 0.6: 0.6^2 + (1 - 0.3)^2 + 0.1^2
    logits = logits_of([0.7, 0.2, 0.1], [0.6, 0.3, 0.1])
    assert metrics.brier(np.array([0, 1]), logits) == pytest.approx(((0.09 + 0.04 + 0.01) + (0.36 + 0.49 + 0.01)) / 2)
    assert metrics.brier(np.array([1]), np.array([[1e3, -1e3]])) == pytest.approx(2.0)


def test_brier_of_two_classes_is_over_both() -> None:
    assert metrics.brier(np.array([0]), logits_of([0.7, 0.3])) == pytest.approx(2 * 0.09)


def test_reliability_worked_by_hand() -> None:
    # confidences 0.6 0.7 | 0.8 0.9: two bins of two images
    logits = logits_of([0.6, 0.4], [0.7, 0.3], [0.8, 0.2], [0.9, 0.1])
    table = metrics.reliability(np.array([1, 0, 0, 0]), logits, bins=2)
    np.testing.assert_allclose(table.confidence, [0.65, 0.85])
    np.testing.assert_allclose(table.accuracy, [0.5, 1.0])
    np.testing.assert_array_equal(table.images, [2, 2])
    assert metrics.ece(np.array([1, 0, 0, 0]), logits, bins=2) == pytest.approx(0.5 * 0.15 + 0.5 * 0.15)


def test_bins_have_equal_mass_and_every_image_is_in_one() -> None:
    labels, logits = random_logits(images=607)
    table = metrics.reliability(labels, logits)
    assert table.images.sum() == 607
    assert len(table.images) == 15 and table.images.min() >= 40 and table.images.max() <= 41
    assert (np.diff(table.confidence) > 0).all()
    assert table.accuracy @ table.images / 607 == pytest.approx(accuracy(labels, logits.argmax(1)))


def test_equal_confidences_stay_in_one_bin() -> None:
    labels = np.array([0, 0, 0, 1] * 5)
    logits = np.tile(logits_of([0.8, 0.2]), (20, 1))
    table = metrics.reliability(labels, logits)
    np.testing.assert_array_equal(table.images, [20])
    assert metrics.ece(labels, logits) == pytest.approx(0.05)  # 0.75 right, 0.8 sure


@pytest.mark.parametrize("bins", [1, 5, 10])
def test_reliability_and_its_error_are_scikit_learns_in_bins_of_equal_mass(bins: int) -> None:
    labels, logits = random_logits()
    images = len(labels) // 10 * 10  # so that each bin has as many
    labels, logits = labels[:images], logits[:images]
    probabilities = torch.from_numpy(logits).double().softmax(1).numpy()
    right = labels == probabilities.argmax(1)
    fraction, confidence = calibration_curve(right, probabilities.max(1), n_bins=bins, strategy="quantile")
    table = metrics.reliability(labels, logits, bins)
    np.testing.assert_allclose(table.accuracy, fraction, atol=1e-12)
    np.testing.assert_allclose(table.confidence, confidence, atol=1e-6)
    assert (table.images == images // bins).all()
    assert metrics.ece(labels, logits, bins) == pytest.approx(float(np.abs(fraction - confidence).mean()), abs=1e-6)


def test_confidences_that_are_true_have_a_small_error_and_tempered_ones_a_large_one() -> None:
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(20_000, 5)) * 2
    probabilities = torch.from_numpy(logits).softmax(1).numpy()
    labels = (rng.random((20_000, 1)) > probabilities.cumsum(1)).sum(1)
    assert metrics.ece(labels, logits) < 0.015
    assert metrics.ece(labels, 3 * logits) > 0.1


def test_temperature_gives_back_what_was_multiplied_in() -> None:
    rng = np.random.default_rng(4)
    logits = rng.normal(size=(50_000, 4)) * 2
    probabilities = torch.from_numpy(logits).softmax(1).numpy()
    labels = (rng.random((50_000, 1)) > probabilities.cumsum(1)).sum(1)
    assert metrics.fit_temperature(labels, 2.5 * logits) == pytest.approx(2.5, rel=0.03)
    assert metrics.fit_temperature(labels, 0.5 * logits) == pytest.approx(0.5, rel=0.03)


def test_temperature_is_where_the_derivative_of_the_nll_is_zero() -> None:
    labels, logits = random_logits()
    fitted = metrics.fit_temperature(labels, logits)
    t = torch.tensor(fitted, dtype=torch.float64, requires_grad=True)
    torch.nn.functional.cross_entropy(torch.from_numpy(logits).double() / t, torch.from_numpy(labels)).backward()
    assert float(t.grad) == pytest.approx(0, abs=1e-5)
    assert metrics.nll(labels, logits / fitted) < metrics.nll(labels, logits)
    np.testing.assert_array_equal((logits / fitted).argmax(1), logits.argmax(1))


def test_a_temperature_without_a_minimum_ends_at_the_bounds() -> None:
    logits = np.array([[2.0, 0.0], [0.0, 2.0]])
    assert 0.05 <= metrics.fit_temperature(np.array([0, 1]), logits) < 0.06  # all right
    assert metrics.fit_temperature(np.array([1, 0]), logits) == pytest.approx(20, rel=1e-3)  # all wrong


def test_risk_coverage_worked_by_hand() -> None:
    # by confidence: 0.9 right, 0.8 wrong, 0.7 right, 0.6 wrong
    logits = logits_of([0.6, 0.4], [0.9, 0.1], [0.7, 0.3], [0.8, 0.2])
    labels = np.array([1, 0, 0, 1])
    np.testing.assert_allclose(metrics.risk_coverage(labels, logits), [0, 1 / 2, 1 / 3, 2 / 4])
    assert metrics.aurc(labels, logits) == pytest.approx((1 / 2 + 1 / 3 + 1 / 2) / 4)


def test_equal_confidences_have_the_risk_of_a_random_order() -> None:
    logits = np.tile(logits_of([0.8, 0.2]), (4, 1))
    np.testing.assert_allclose(metrics.risk_coverage(np.array([0, 1, 0, 0]), logits), [0.25] * 4)


def test_risk_at_full_coverage_is_the_error_and_confidence_helps() -> None:
    labels, logits = random_logits()
    error = 1 - accuracy(labels, logits.argmax(1))
    assert metrics.risk_coverage(labels, logits)[-1] == pytest.approx(error)
    assert metrics.aurc(labels, logits) < error


def test_order_changes_no_number_that_rests_on_confidences() -> None:
    labels, logits = random_logits()
    logits = logits.round(0)  # many equal confidences
    order = np.random.default_rng(1).permutation(len(labels))
    for measure in (metrics.nll, metrics.brier, metrics.ece, metrics.aurc, metrics.fit_temperature):
        assert measure(labels, logits) == pytest.approx(measure(labels[order], logits[order]), rel=1e-9)


def test_a_constant_added_to_an_images_logits_changes_nothing() -> None:
    labels, logits = random_logits()
    moved = logits.astype(np.float64) + np.random.default_rng(2).normal(size=(len(labels), 1)) * 10
    for measure in (metrics.nll, metrics.brier, metrics.ece, metrics.aurc):
        assert measure(labels, moved) == pytest.approx(measure(labels, logits), rel=1e-6)


@pytest.mark.usefixtures("unchecked")
def test_logits_that_do_not_fit_the_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="labels run from 0 to 2, but there are 2 logits"):
        metrics.nll(np.array([0, 2]), np.zeros((2, 2)))
    with pytest.raises(ValueError, match="not finite"):
        metrics.ece(np.array([0, 1]), np.array([[0.0, np.nan], [0.0, 1.0]]))
    with pytest.raises(ValueError, match="3 labels, but 2 predictions"):
        metrics.aurc(np.array([0, 1, 1]), np.zeros((2, 2)))
