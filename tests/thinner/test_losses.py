"""thinner.learn.losses against oracles written from the papers in float64 NumPy, loop by loop, and against laws."""

import copy
import inspect
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from jaxtyping import install_import_hook
from numpy.typing import NDArray

from thinner.errors import UserError

with install_import_hook("thinner.learn.losses", "beartype.beartype"):  # shapes are checked on every call here
    from thinner.learn import losses
from thinner.learn.losses import LOSSES, combine

Array = NDArray[np.float64]

LOGIT_LOSSES = [name for name, row in LOSSES.items() if row.make is None]
FEATURE_LOSSES = [name for name, row in LOSSES.items() if row.make is not None]
PER_IMAGE = ["kd", "mse", "dkd", "logit_std", "ce"]  # a mean over images; the others compare images
RELATIONAL = ["rkd", "pkt"]
LABELS = torch.tensor([2, 0, 4, 1, 2, 3, 0, 1])


def logits(seed: int, images: int = 8, classes: int = 5, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(images, classes, generator=generator, dtype=torch.float64)).to(dtype)


def maps(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def value_and_gradient(name: str, student: torch.Tensor, *rest: object, **parameters: object) -> tuple[float, Array]:
    student = student.clone().requires_grad_()
    loss = LOSSES[name].function(student, *rest, **parameters)
    loss.backward()
    assert student.grad is not None
    return loss.item(), student.grad.double().numpy()


# ---------------------------------------------------------------------------------- oracles, from the papers


def softmax(row: Array) -> Array:
    e = np.exp(row - row.max())
    return e / e.sum()


def kl(p: Array, q: Array) -> float:
    return float(sum(p[i] * np.log(p[i] / q[i]) for i in range(len(p))))


def oracle_kd(s: Array, t: Array, labels: Array, *, temperature: float) -> float:
    rows = [kl(softmax(b / temperature), softmax(a / temperature)) for a, b in zip(s, t, strict=True)]
    return temperature**2 * float(np.mean(rows))


def oracle_mse(s: Array, t: Array, labels: Array) -> float:
    return float(np.mean([np.mean((a - b) ** 2) for a, b in zip(s, t, strict=True)]))


def oracle_dkd(
    s: Array, t: Array, labels: Array, *, temperature: float, alpha: float, beta: float, target: str
) -> float:
    rows = []
    for a, b, label in zip(s, t, labels.astype(int), strict=True):
        k = label if label >= 0 and target == "label" else int(np.argmax(b))
        p, q = softmax(b / temperature), softmax(a / temperature)
        tckd = kl(np.array([p[k], 1 - p[k]]), np.array([q[k], 1 - q[k]]))
        nckd = kl(np.delete(p, k) / (1 - p[k]), np.delete(q, k) / (1 - q[k]))
        rows.append(alpha * tckd + beta * nckd)
    return temperature**2 * float(np.mean(rows))


def oracle_dist(s: Array, t: Array, labels: Array, *, temperature: float, beta: float, gamma: float) -> float:
    y_s = np.array([softmax(a / temperature) for a in s])
    y_t = np.array([softmax(b / temperature) for b in t])
    inter = np.mean([1 - np.corrcoef(y_s[i], y_t[i])[0, 1] for i in range(len(s))])
    intra = np.mean([1 - np.corrcoef(y_s[:, c], y_t[:, c])[0, 1] for c in range(s.shape[1])])
    return temperature**2 * float(beta * inter + gamma * intra)


def oracle_logit_std(s: Array, t: Array, labels: Array, *, temperature: float) -> float:
    z = [np.array([(row - row.mean()) / row.std() for row in x]) for x in (s, t)]
    return oracle_kd(z[0], z[1], labels, temperature=temperature)


def huber(a: float, b: float) -> float:
    return 0.5 * (a - b) ** 2 if abs(a - b) <= 1 else abs(a - b) - 0.5


def oracle_rkd(s: Array, t: Array, labels: Array, distance: float, angle: float) -> float:
    n = len(s)
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    mu_s, mu_t = (np.mean([np.linalg.norm(x[i] - x[j]) for i, j in pairs]) for x in (s, t))
    by_distance = [huber(np.linalg.norm(s[i] - s[j]) / mu_s, np.linalg.norm(t[i] - t[j]) / mu_t) for i, j in pairs]

    def cosine(x: Array, i: int, j: int, k: int) -> float:
        a, b = x[i] - x[j], x[k] - x[j]
        return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))

    triples = [(i, j, k) for i, j in pairs for k in range(n) if k not in (i, j)]
    by_angle = [huber(cosine(s, *triple), cosine(t, *triple)) for triple in triples]
    return float(distance * np.mean(by_distance) + angle * np.mean(by_angle))


def oracle_pkt(s: Array, t: Array, labels: Array) -> float:
    def kernel(x: Array, i: int, j: int) -> float:
        return float((x[i] @ x[j] / np.linalg.norm(x[i]) / np.linalg.norm(x[j]) + 1) / 2)

    def conditional(x: Array, j: int) -> Array:
        others = np.array([kernel(x, i, j) for i in range(len(x)) if i != j])
        return others / others.sum()

    return float(np.mean([kl(conditional(t, j), conditional(s, j)) for j in range(len(s))]))


def oracle_ce(s: Array, t: Array, labels: Array, label_smoothing: float) -> float:
    classes, rows = s.shape[1], []
    for a, label in zip(s, labels.astype(int), strict=True):
        if label >= 0:
            y = np.full(classes, label_smoothing / classes)
            y[label] += 1 - label_smoothing
            rows.append(-float(y @ np.log(softmax(a))))
    return float(np.mean(rows)) if rows else 0.0


ORACLES: dict[str, Callable[..., float]] = {
    "kd": oracle_kd,
    "mse": oracle_mse,
    "dkd": oracle_dkd,
    "dist": oracle_dist,
    "logit_std": oracle_logit_std,
    "rkd": oracle_rkd,
    "pkt": oracle_pkt,
    "ce": oracle_ce,
}
OTHER_PARAMETERS: dict[str, dict[str, object]] = {
    "kd": {"temperature": 1.5},
    "mse": {},
    "dkd": {"temperature": 2.0, "alpha": 0.5, "beta": 3.0, "target": "teacher"},
    "dist": {"temperature": 4.0, "beta": 2.0, "gamma": 0.5},
    "logit_std": {"temperature": 0.7},
    "rkd": {"distance": 3.0, "angle": 0.5},
    "pkt": {},
    "ce": {"label_smoothing": 0.1},
}


@pytest.mark.parametrize("name", LOGIT_LOSSES)
def test_each_logit_loss_has_its_own_oracle(name: str) -> None:
    assert name in ORACLES
    assert name in OTHER_PARAMETERS


@pytest.mark.parametrize("labels", [LABELS, torch.where(LABELS == 2, -1, LABELS)], ids=["labelled", "partly"])
@pytest.mark.parametrize("other", [False, True], ids=["defaults", "other parameters"])
@pytest.mark.parametrize("name", LOGIT_LOSSES)
def test_logit_loss_is_the_papers_formula(name: str, other: bool, labels: torch.Tensor) -> None:
    defaults = {key: parameter.default for key, parameter in LOSSES[name].parameters.items()}
    parameters = OTHER_PARAMETERS[name] if other else defaults
    student, teacher = logits(1), logits(2)
    expected = ORACLES[name](student.numpy(), teacher.numpy(), labels.numpy(), **parameters)
    # logit_std and dist soften a square root by a documented epsilon, at most 1e-6 of the variance here
    tolerance = 2e-6 if name in ("logit_std", "dist") else 1e-12
    value = LOSSES[name].function(student, teacher, labels, **parameters).item()
    assert value == pytest.approx(expected, rel=tolerance)
    # and the defaults of the function are those of the table
    if not other:
        assert LOSSES[name].function(student, teacher, labels).item() == value


@pytest.mark.parametrize(("images", "scale"), [(3, 1.0), (4, 1e-3), (8, 1e-3)])
@pytest.mark.parametrize("name", RELATIONAL)
def test_relations_of_few_images_that_lie_close_together(name: str, images: int, scale: float) -> None:
    student, teacher = scale * logits(1, images), logits(2, images)
    defaults = {key: parameter.default for key, parameter in LOSSES[name].parameters.items()}
    expected = ORACLES[name](student.numpy(), teacher.numpy(), LABELS.numpy(), **defaults)
    assert LOSSES[name].function(student, teacher, LABELS[:images]).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("classes", [2, 5])
def test_dkd_of_the_first_class_which_the_teacher_does_not_favour(classes: int) -> None:
    student, teacher, labels = logits(1, classes=classes), logits(2, classes=classes), torch.zeros(8, dtype=torch.int64)
    teacher[:, 1] += 9
    parameters = {"temperature": 4.0, "alpha": 1.0, "beta": 8.0, "target": "label"}
    expected = oracle_dkd(student.numpy(), teacher.numpy(), labels.numpy(), **parameters)
    assert losses.dkd(student, teacher, labels).item() == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_kd_worked_by_hand() -> None:
    # teacher (3/4, 1/4), student (1/2, 1/2), T = 1: 3/4 ln(3/2) + 1/4 ln(1/2)
    teacher = torch.tensor([[math.log(3.0), 0.0]])
    value = losses.kd(torch.zeros(1, 2), teacher, torch.tensor([0]), temperature=1)
    assert value.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-6)


def test_kd_and_ce_agree_with_torchs_own_operations() -> None:
    student, teacher = logits(1), logits(2)
    kl_div = F.kl_div((student / 4).log_softmax(1), (teacher / 4).softmax(1), reduction="batchmean") * 16
    torch.testing.assert_close(losses.kd(student, teacher, LABELS), kl_div)
    smoothed = losses.ce(student, teacher, LABELS, label_smoothing=0.2)
    torch.testing.assert_close(smoothed, F.cross_entropy(student, LABELS, label_smoothing=0.2))


def test_dkd_with_beta_equal_to_the_teachers_doubt_is_kd() -> None:
    student, teacher, labels = logits(1, images=1), logits(2, images=1), torch.tensor([3])
    doubt = 1 - (teacher / 4).softmax(1)[0, 3].item()
    torch.testing.assert_close(
        losses.dkd(student, teacher, labels, alpha=1.0, beta=doubt), losses.kd(student, teacher, labels)
    )


# ------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("name", LOGIT_LOSSES)
def test_logit_loss_gradient_matches_finite_differences(name: str) -> None:
    student, teacher = logits(1, images=4).requires_grad_(), logits(2, images=4)
    labels = torch.tensor([1, -1, 0, 4])
    assert torch.autograd.gradcheck(lambda s: LOSSES[name].function(s, teacher, labels), (student,))


@pytest.mark.parametrize("name", LOGIT_LOSSES)
def test_teacher_receives_no_gradient(name: str) -> None:
    student, teacher = logits(1).requires_grad_(), logits(2).requires_grad_()
    LOSSES[name].function(student, teacher, LABELS).backward()
    assert teacher.grad is None


# ------------------------------------------------------------------------------------------------ identities


@pytest.mark.parametrize("name", ["kd", "mse", "dkd", "logit_std", "rkd", "pkt", "dist"])
def test_a_network_distilled_from_itself_has_zero_loss_and_zero_gradient(name: str) -> None:
    student = logits(1)
    value, gradient = value_and_gradient(name, student, student, LABELS)
    tolerance = 1e-6 if name == "dist" else 1e-12  # dist's documented epsilon over the spread of probabilities
    assert abs(value) <= tolerance
    assert np.abs(gradient).max() <= tolerance


@pytest.mark.parametrize("name", ["kd", "dkd", "dist", "logit_std", "ce"])
def test_a_constant_added_to_all_logits_of_an_image_changes_nothing(name: str) -> None:
    student, teacher = logits(1), logits(2)
    shift = 10 * logits(3, classes=1)
    function = LOSSES[name].function
    plain = function(student, teacher, LABELS)
    torch.testing.assert_close(function(student + shift, teacher - 2 * shift, LABELS), plain)


def test_a_constant_added_to_the_students_logits_does_count_for_mse() -> None:
    student = logits(1)
    assert losses.mse(student + 2.0, student, LABELS).item() == pytest.approx(4.0)


def test_logit_std_ignores_each_images_scale() -> None:
    student, teacher = logits(1), logits(2)
    scale = logits(3, classes=1).exp()
    plain, scaled = (
        losses.logit_std(student, teacher, LABELS),
        losses.logit_std(student * scale, teacher, LABELS),
    )
    torch.testing.assert_close(scaled, plain, rtol=1e-3, atol=0)  # 1e-6 under the root, rows shrunk to 0.01
    assert not torch.isclose(losses.kd(student * scale, teacher, LABELS), losses.kd(student, teacher, LABELS))


def test_dist_ignores_scale_and_offset_of_the_students_probabilities() -> None:
    # A constant times each row's deviations from 1/5 keeps them probabilities: correlations of rows stay 1.
    p = (logits(2) / 4).softmax(1)
    damped = 0.2 + 0.5 * (p - 0.2)
    value = losses.dist(damped.log(), p.log(), LABELS)
    assert abs(value.item()) < 1e-5
    assert losses.kd(damped.log(), p.log(), LABELS).item() > 1e-2


def test_rkd_ignores_place_scale_and_rotation_of_the_embedding() -> None:
    student, teacher = logits(1), logits(2)
    rotation = torch.linalg.qr(logits(3, 5, 5)).Q
    moved = 7 * student @ rotation + logits(4, images=1)
    torch.testing.assert_close(losses.rkd(moved, teacher, LABELS), losses.rkd(student, teacher, LABELS))


def test_pkt_ignores_each_embeddings_length() -> None:
    student, teacher = logits(1), logits(2)
    longer = student * logits(3, classes=1).exp()
    torch.testing.assert_close(losses.pkt(longer, teacher, LABELS), losses.pkt(student, teacher, LABELS))


@pytest.mark.parametrize("name", RELATIONAL)
def test_relational_losses_compare_embeddings_of_different_widths(name: str) -> None:
    student, teacher = logits(1, classes=3), logits(2, classes=7)
    defaults = {key: parameter.default for key, parameter in LOSSES[name].parameters.items()}
    value = LOSSES[name].function(student, teacher, LABELS).item()
    oracle = ORACLES[name](student.numpy(), teacher.numpy(), LABELS.numpy(), **defaults)
    assert value == pytest.approx(oracle, rel=1e-12)


# --------------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("name", PER_IMAGE)
def test_one_batch_of_eight_equals_the_mean_of_two_of_four(name: str) -> None:
    student, teacher, function = logits(1), logits(2), LOSSES[name].function
    halves = [function(student[i], teacher[i], LABELS[i]) for i in (slice(0, 4), slice(4, 8))]
    torch.testing.assert_close(function(student, teacher, LABELS), (halves[0] + halves[1]) / 2)


@pytest.mark.parametrize("name", LOGIT_LOSSES)
def test_the_order_of_the_images_does_not_matter(name: str) -> None:
    student, teacher, order = logits(1), logits(2), torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    function = LOSSES[name].function
    torch.testing.assert_close(
        function(student[order], teacher[order], LABELS[order]), function(student, teacher, LABELS)
    )


@pytest.mark.parametrize("images", [1, 2, 3])
@pytest.mark.parametrize("name", LOGIT_LOSSES)
def test_small_last_batches_have_a_finite_loss_and_gradient(name: str, images: int) -> None:
    value, gradient = value_and_gradient(name, logits(1, images), logits(2, images), LABELS[:images])
    assert math.isfinite(value)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", RELATIONAL)
def test_a_single_image_has_no_relations_and_no_gradient(name: str) -> None:
    value, gradient = value_and_gradient(name, logits(1, 1), logits(2, 1), LABELS[:1])
    assert value == 0
    assert (gradient == 0).all()


def test_dist_of_a_single_image_is_its_row_alone() -> None:
    student, teacher = logits(1, 1), logits(2, 1)
    expected = 1 - np.corrcoef(student.softmax(1)[0], teacher.softmax(1)[0])[0, 1]
    assert losses.dist(student, teacher, LABELS[:1]).item() == pytest.approx(expected, rel=1e-6)


def test_rkd_of_two_images_has_no_angle_and_equal_distances() -> None:
    assert losses.rkd(logits(1, 2), logits(2, 2), LABELS[:2]).item() == 0


@pytest.mark.parametrize("name", RELATIONAL)
def test_coinciding_images_have_a_finite_gradient(name: str) -> None:
    student = logits(1)
    student[1] = student[0]
    student[2:4] = 0
    for teacher in (logits(2), student):
        value, gradient = value_and_gradient(name, student, teacher, LABELS)
        assert math.isfinite(value)
        assert np.abs(gradient).max() < 100


@pytest.mark.parametrize("name", LOGIT_LOSSES)
def test_a_head_that_starts_at_zero_has_a_usable_gradient(name: str) -> None:
    value, gradient = value_and_gradient(name, torch.zeros(8, 5), logits(2).float(), LABELS)
    assert math.isfinite(value)
    assert np.abs(gradient).max() < 5000


# --------------------------------------------------------------------------------------- numbers at the edge


@pytest.mark.parametrize(
    ("dtype", "extreme"),
    [
        (torch.float16, 6e4),
        (torch.float16, math.inf),
        (torch.bfloat16, 1e30),
        (torch.float32, 1e30),
        (torch.float32, math.inf),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", LOGIT_LOSSES)
def test_extreme_logits_give_no_nan(name: str, dtype: torch.dtype, extreme: float) -> None:
    student, teacher = logits(1, dtype=dtype), logits(2, dtype=dtype)
    student[0, 0], student[1, 1], student[2] = extreme, -extreme, extreme
    student[4], student[5] = torch.tensor([extreme, -extreme, 0, extreme, 1]), torch.tensor([-extreme] * 5)
    teacher[0, 3], teacher[3, 1], teacher[4] = extreme, -extreme, -extreme
    teacher[5] = torch.tensor([-extreme, extreme, 0, 1, -extreme])
    value, gradient = value_and_gradient(name, student, teacher, LABELS)
    assert math.isfinite(value)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", LOGIT_LOSSES)
def test_half_inputs_are_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    student, teacher, function = logits(1, dtype=dtype), logits(2, dtype=dtype), LOSSES[name].function
    value = function(student, teacher, LABELS)
    assert value.dtype == torch.float32
    exact = function(student.double(), teacher.double(), LABELS)
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LOGIT_LOSSES)
def test_autocast_does_not_reach_into_a_loss(name: str) -> None:
    student, teacher, function = logits(1).float(), logits(2).float(), LOSSES[name].function
    plain = function(student, teacher, LABELS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(function(student, teacher, LABELS), plain)


def test_cached_float16_teacher_logits_meet_a_float32_student() -> None:
    teacher = logits(2, dtype=torch.float16)
    mixed = losses.kd(logits(1).float(), teacher, LABELS)
    torch.testing.assert_close(mixed, losses.kd(logits(1).float(), teacher.float(), LABELS))


@pytest.mark.parametrize("name", LOGIT_LOSSES)
def test_nan_logits_are_not_hidden(name: str) -> None:
    student = logits(1)
    student[0, 0] = math.nan
    assert math.isnan(LOSSES[name].function(student, logits(2), LABELS).item())


# -------------------------------------------------------------------------------------------- missing labels


def test_ce_is_the_mean_over_the_labelled_rows() -> None:
    student, labels = logits(1), torch.where(LABELS >= 2, -1, LABELS)
    known = labels >= 0
    expected = F.cross_entropy(student[known], labels[known])
    value, gradient = value_and_gradient("ce", student, logits(2), labels)
    assert value == pytest.approx(expected.item(), rel=1e-12)
    assert (gradient[~known.numpy()] == 0).all()


def test_ce_without_any_label_is_exactly_zero_with_a_zero_gradient() -> None:
    value, gradient = value_and_gradient("ce", logits(1), logits(2), torch.full((8,), -1), label_smoothing=0.1)
    assert value == 0
    assert (gradient == 0).all()


def test_dkd_takes_the_teachers_top_class_for_an_unlabelled_image() -> None:
    student, teacher = logits(1), logits(2)
    unlabelled = losses.dkd(student, teacher, torch.full((8,), -1))
    torch.testing.assert_close(unlabelled, losses.dkd(student, teacher, teacher.argmax(1)))


def test_dkd_with_target_teacher_never_reads_a_label() -> None:
    student, teacher = logits(1), logits(2)
    nonsense = torch.full((8,), 999)
    assert torch.equal(
        losses.dkd(student, teacher, nonsense, target="teacher"),
        losses.dkd(student, teacher, torch.full((8,), -1), target="teacher"),
    )


def test_dkd_refuses_a_single_class_and_an_unknown_target() -> None:
    with pytest.raises(UserError, match="dkd: needs two classes or more, there are 1"):
        losses.dkd(logits(1, classes=1), logits(2, classes=1), LABELS)
    with pytest.raises(UserError, match=r"dkd\.target: unknown 'truth'\. Choose one of: label, teacher"):
        losses.dkd(logits(1), logits(2), LABELS, target="truth")


# -------------------------------------------------------------------------------------------------- features


def oracle_pool(x: Array, height: int, width: int) -> Array:
    n, c, h, w = x.shape
    return x.reshape(n, c, height, h // height, width, w // width).mean((3, 5))


def oracle_at(s: Array, t: Array) -> float:
    rows = []
    for a, b in zip(s, t, strict=True):
        q = [np.array([(x[:, i, j] ** 2).mean() for i in range(x.shape[1]) for j in range(x.shape[2])]) for x in (a, b)]
        rows.append(np.mean((q[0] / np.linalg.norm(q[0]) - q[1] / np.linalg.norm(q[1])) ** 2))
    return float(np.mean(rows))


def oracle_sp(s: Array, t: Array) -> float:
    n, grams = len(s), []
    for x in (s, t):
        gram = np.array([[np.sum(x[i] * x[j]) for j in range(n)] for i in range(n)])
        grams.append(np.array([row / np.sqrt(np.sum(row**2)) for row in gram]))
    return float(np.sum((grams[0] - grams[1]) ** 2) / n**2)


@pytest.mark.parametrize(("size", "sides"), [((7, 7), (4, 4)), ((8, 6), (4, 3)), ((5, 9), (2, 7)), ((3, 3), (1, 1))])
def test_uneven_maps_are_averaged_as_pytorchs_adaptive_pooling_does(
    size: tuple[int, int], sides: tuple[int, int]
) -> None:
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    ours, theirs = losses._averaged(x, sides), torch.nn.functional.adaptive_avg_pool2d(x, sides)
    torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=1e-14)
    weight = torch.randn(*theirs.shape, dtype=torch.float64)
    gradients = [torch.autograd.grad((out * weight).sum(), x)[0] for out in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-14, atol=1e-14)


def oracle_hcl(s: Array, t: Array) -> float:
    terms, weights = [np.mean((s - t) ** 2)], [1.0]
    for side, weight in [(4, 0.5), (2, 0.25), (1, 0.125)] if s.shape[2] > 4 else [(2, 0.5), (1, 0.25)]:
        terms.append(np.mean((oracle_pool(s, side, side) - oracle_pool(t, side, side)) ** 2))
        weights.append(weight)
    return float(np.dot(terms, weights) / np.sum(weights))


def test_attention_transfer_is_the_papers_formula_and_pools_the_larger_map() -> None:
    student, teacher = maps(1, 4, 3, 4, 4), maps(2, 4, 6, 4, 4)
    assert losses.at(student, teacher).item() == pytest.approx(oracle_at(student.numpy(), teacher.numpy()), rel=1e-12)
    large = maps(3, 4, 6, 8, 8)
    pooled = oracle_pool(large.numpy(), 4, 4)
    assert losses.at(student, large).item() == pytest.approx(oracle_at(student.numpy(), pooled), rel=1e-12)
    torch.testing.assert_close(losses.at(5 * student, teacher), losses.at(student, teacher))


def test_of_maps_that_are_not_square_each_side_is_the_smaller_ones() -> None:
    student, teacher = maps(1, 4, 3, 8, 2), maps(2, 4, 6, 4, 4)
    pooled = [oracle_pool(x.numpy(), 4, 2) for x in (student, teacher)]
    assert losses.at(student, teacher).item() == pytest.approx(oracle_at(*pooled), rel=1e-12)
    low = [maps(seed, 2, 3, 2, 8) for seed in (3, 4)]
    expected = oracle_hcl_small(*(x.numpy() for x in low))
    assert losses.hcl(*low).item() == pytest.approx(expected, rel=1e-12)


def test_similarity_preserving_is_the_papers_formula() -> None:
    student, teacher = maps(1, 5, 3, 4, 4), maps(2, 5, 7, 2, 2)
    assert losses.sp(student, teacher).item() == pytest.approx(oracle_sp(student.numpy(), teacher.numpy()), rel=1e-12)
    torch.testing.assert_close(losses.sp(5 * student, teacher), losses.sp(student, teacher))
    assert losses.sp(student[:1], teacher[:1]).item() == 0


def test_a_short_row_of_similarities_is_divided_by_a_millionth() -> None:
    faint, plain = torch.full((1, 1), 1e-4, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    assert losses.sp(faint, plain).item() == pytest.approx((1e-8 / 1e-6 - 1) ** 2, rel=1e-12)


@pytest.mark.parametrize("weights", [{}, {"distance": 3.0, "angle": 0.5}])
def test_relations_of_pooled_features_are_summed_over_layers(weights: dict[str, float]) -> None:
    student, teacher = [maps(1, 5, 4), maps(2, 5, 3)], [maps(3, 5, 6), maps(4, 5, 2)]
    shapes = [(4,), (3,)], [(6,), (2,)]
    pairs = [(s.numpy(), t.numpy(), LABELS.numpy()) for s, t in zip(student, teacher, strict=True)]
    expected = sum(oracle_rkd(*pair, **{"distance": 1.0, "angle": 2.0, **weights}) for pair in pairs)
    assert losses.make_rkd_pooled(*shapes, **weights)(student, teacher).item() == pytest.approx(expected, rel=1e-12)
    if not weights:
        total = sum(oracle_pkt(*pair) for pair in pairs)
        assert losses.make_pkt_pooled(*shapes)(student, teacher).item() == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize("side", [8, 4])
def test_hierarchical_context_loss_is_the_weighted_mean_over_grids(side: int) -> None:
    student, teacher = maps(1, 2, 3, side, side), maps(2, 2, 3, side, side)
    assert losses.hcl(student, teacher).item() == pytest.approx(oracle_hcl(student.numpy(), teacher.numpy()), rel=1e-12)


def test_fitnet_regresses_maps_by_a_1x1_convolution_and_vectors_linearly() -> None:
    module = losses.make_fitnet([(3, 8, 8), (3,)], [(5, 4, 4), (2,)]).double()
    student, teacher = [maps(1, 2, 3, 8, 8), maps(2, 2, 3)], [maps(3, 2, 5, 4, 4), maps(4, 2, 2)]
    weights = [(r.weight.detach().numpy(), r.bias.detach().numpy()) for r in module.regressors]
    small = oracle_pool(student[0].numpy(), 4, 4)
    hint = np.einsum("oc,nchw->nohw", weights[0][0][:, :, 0, 0], small) + weights[0][1][None, :, None, None]
    vector = student[1].numpy() @ weights[1][0].T + weights[1][1]
    expected = np.mean((hint - teacher[0].numpy()) ** 2) + np.mean((vector - teacher[1].numpy()) ** 2)
    assert module(student, teacher).item() == pytest.approx(expected, rel=1e-12)


def oracle_conv3(x: Array, weight: Array) -> Array:
    n, _, h, w = x.shape
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    out = np.zeros((n, weight.shape[0], h, w))
    for i in range(h):
        for j in range(w):
            out[:, :, i, j] = np.einsum("ncab,ocab->no", padded[:, :, i : i + 3, j : j + 3], weight)
    return out


def test_review_fuses_from_deep_to_shallow_as_the_paper_draws_it() -> None:
    module = losses.make_review([(3, 8, 8), (4, 4, 4)], [(5, 8, 8), (6, 2, 2)]).double().eval()
    state = {key: value.numpy() for key, value in module.state_dict().items()}
    student, teacher = [maps(1, 2, 3, 8, 8), maps(2, 2, 4, 4, 4)], [maps(3, 2, 5, 8, 8), maps(4, 2, 6, 2, 2)]

    def norm(x: Array) -> Array:  # batch norm as initialised, in eval mode: mean 0, variance 1
        return x / np.sqrt(1 + 1e-5)

    def reduce(level: int, x: Array) -> Array:
        return norm(np.einsum("oc,nchw->nohw", state[f"fusions.{level}.reduce.0.weight"][:, :, 0, 0], x))

    deep = reduce(1, student[1].numpy())[:, :, ::2, ::2]  # nearest: 4x4 to the teacher's 2x2
    total = oracle_hcl_small(norm(oracle_conv3(deep, state["fusions.1.expand.0.weight"])), teacher[1].numpy())
    shallow = reduce(0, student[0].numpy())
    below = deep.repeat(4, axis=2).repeat(4, axis=3)  # nearest: 2x2 to the layer's 8x8
    scores = np.einsum(
        "oc,nchw->nohw", state["fusions.0.attend.0.weight"][:, :, 0, 0], np.concatenate([shallow, below], 1)
    )
    attention = 1 / (1 + np.exp(-(scores + state["fusions.0.attend.0.bias"][None, :, None, None])))
    fused = shallow * attention[:, :1] + below * attention[:, 1:]
    total += oracle_hcl(norm(oracle_conv3(fused, state["fusions.0.expand.0.weight"])), teacher[0].numpy())
    assert module(student, teacher).item() == pytest.approx(total, rel=1e-12)


def oracle_hcl_small(s: Array, t: Array) -> float:
    """2x2 maps: the full size with weight 1 and one mean with weight 1/2."""
    return float((np.mean((s - t) ** 2) + 0.5 * np.mean((s.mean((2, 3)) - t.mean((2, 3))) ** 2)) / 1.5)


def test_review_trains_on_a_batch_of_one_with_a_pooled_layer() -> None:
    module = losses.make_review([(3, 8, 8), (4,)], [(5, 4, 4), (6,)])
    value = module([maps(1, 1, 3, 8, 8).float(), maps(2, 1, 4).float()], [maps(3, 1, 5, 4, 4), maps(4, 1, 6)])
    value.backward()
    assert math.isfinite(value.item())


# ------------------------------------------------------------------------------------------------------- crd


def unit(x: Array) -> Array:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def oracle_crd(anchors: Array, positives: Array, negatives: Array, *, usable: Array, scale: float, t: float) -> float:
    count, rows = len(negatives), []
    for i in range(len(anchors)):

        def h(b: Array, a: Array = anchors[i]) -> float:
            e = np.exp(a @ b / t) / scale
            return float(e / (e + count))

        kept = [np.log(1 - h(negatives[j])) for j in range(count) if usable[i, j]]
        rows.append(np.log(h(positives[i])) + (count * np.mean(kept) if kept else 0.0))
    return -float(np.mean(rows))


def test_contrastive_loss_is_the_papers_objective() -> None:
    a, p, n = (torch.from_numpy(unit(maps(seed, count, 4).numpy())) for seed, count in ((1, 3), (2, 3), (3, 6)))
    usable = torch.tensor([[True] * 6, [True, False] * 3, [False] * 6])
    scale = torch.tensor(2.5, dtype=torch.float64)
    value = losses.crd(a, p, n, usable=usable, scale=scale, temperature=0.3)
    expected = oracle_crd(a.numpy(), p.numpy(), n.numpy(), usable=usable.numpy(), scale=2.5, t=0.3)
    assert value.item() == pytest.approx(expected, rel=1e-12)
    assert torch.autograd.gradcheck(lambda x: losses.crd(x, p, n, usable=usable, scale=scale), (a.requires_grad_(),))


def crd_batch(step: int) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor, torch.Tensor]:
    index = torch.tensor([[0, 3, 5], [1, 2, 3]][step])
    return [maps(10 + step, 3, 4).float()], [maps(20 + step, 3, 6).float()], index, torch.tensor([0, 1, -1])


def test_contrast_draws_negatives_scores_both_ways_and_remembers() -> None:
    module = losses.make_crd([(4,)], [(6,)], images=10, width=5, negatives=7, temperature=0.5, momentum=0.25)
    old = {key: value.clone().double().numpy() for key, value in module.state_dict().items()}
    drawn = module._draw(int(module.step)).numpy()
    assert {0, 3, 5} <= set(drawn)  # each image of the batch meets itself among the negatives
    (s,), (t,), index, labels = crd_batch(0)
    value = module([s], [t], index, labels)
    g_s = unit(s.numpy() @ old["embed_student.weight"].T + old["embed_student.bias"])
    g_t = unit(t.numpy() @ old["embed_teacher.weight"].T + old["embed_teacher.bias"])
    known = {0: 0, 3: 1}
    usable = np.array(
        [
            [d != i and not (k >= 0 and known.get(d) == k) for d in drawn]
            for i, k in zip(index.tolist(), labels.tolist(), strict=True)
        ]
    )
    total = 0.0
    for own, memory in ((g_s, old["teacher_memory"]), (g_t, old["student_memory"])):
        positives, negatives = memory[index], memory[drawn]
        scores = [np.exp(own[i] @ b / 0.5) for i in range(3) for b in (positives[i], *negatives)]
        total += oracle_crd(own, positives, negatives, usable=usable, scale=float(np.mean(scores)), t=0.5)
    assert value.item() == pytest.approx(total, rel=1e-5)
    new = module.state_dict()
    assert new["step"].item() == 1 and new["step"].dtype == torch.int64
    np.testing.assert_allclose(
        new["student_memory"][index], unit(0.25 * old["student_memory"][index] + 0.75 * g_s), atol=1e-6
    )
    np.testing.assert_allclose(
        new["teacher_memory"][index], unit(0.25 * old["teacher_memory"][index] + 0.75 * g_t), atol=1e-6
    )
    untouched = [1, 2, 4, 6, 7, 8, 9]
    np.testing.assert_allclose(new["student_memory"][untouched], old["student_memory"][untouched], atol=1e-7)


def test_contrast_draws_by_its_seed_and_step_alone() -> None:
    def draw(seed: int, step: int) -> list[int]:
        module = losses.make_crd([(4,)], [(6,)], images=1000, seed=seed, negatives=20)
        return module._draw(step).tolist()

    assert draw(1, 2) == draw(1, 2)
    assert len({tuple(draw(*key)) for key in [(1, 2), (1, 3), (2, 2), (0, 2), (2**32, 2)]}) == 5


def test_contrast_trains_both_embeddings_and_never_the_teacher() -> None:
    module = losses.make_crd([(4,)], [(6,)], images=10, width=5, negatives=7)
    (s,), (t,), index, labels = crd_batch(0)
    s.requires_grad_(), t.requires_grad_()
    module([s], [t], index, labels).backward()
    assert s.grad is not None
    assert t.grad is None
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


def test_contrast_resumed_from_its_state_goes_on_as_if_unbroken() -> None:
    def fresh(seed: int) -> torch.nn.Module:
        return losses.make_crd([(4,)], [(6,)], images=10, seed=seed, width=5, negatives=4)

    unbroken = fresh(3)
    unbroken(*crd_batch(0))
    resumed = fresh(3)
    resumed(*crd_batch(0)), resumed(*crd_batch(1))  # what it has done before does not count
    resumed.load_state_dict(unbroken.state_dict())
    assert torch.equal(unbroken(*crd_batch(1)), resumed(*crd_batch(1)))
    assert torch.equal(unbroken.student_memory, resumed.student_memory)


def test_contrast_refuses_maps_and_several_layers() -> None:
    with pytest.raises(UserError, match="crd: compares one pooled layer with one"):
        losses.make_crd([(4, 8, 8)], [(6,)], images=10)


# ---------------------------------------------------------------------------- laws of all losses of features

SHAPES: dict[str, tuple[list[tuple[int, ...]], list[tuple[int, ...]]]] = {
    "rkd_pooled": ([(4,)], [(6,)]),
    "pkt_pooled": ([(4,)], [(6,)]),
    "fitnet": ([(4, 4, 4)], [(6, 4, 4)]),
    "at": ([(4, 4, 4)], [(6, 4, 4)]),
    "sp": ([(4, 4, 4)], [(6, 2, 2)]),
    "crd": ([(4,)], [(6,)]),
    "review": ([(4, 4, 4), (4, 2, 2)], [(6, 4, 4), (5, 2, 2)]),
}


def feature_module(name: str) -> torch.nn.Module:
    extra = {"images": 12, "negatives": 5} if name == "crd" else {}
    make = LOSSES[name].make
    assert make is not None
    return make(*SHAPES[name], seed=1, **extra)


def features(name: str, images: int, scale: float = 1.0) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    student = [scale * maps(30 + i, images, *shape) for i, shape in enumerate(SHAPES[name][0])]
    teacher = [scale * maps(40 + i, images, *shape) for i, shape in enumerate(SHAPES[name][1])]
    return student, teacher


@pytest.mark.parametrize("name", FEATURE_LOSSES)
def test_feature_loss_gradients_match_finite_differences(name: str) -> None:
    module = feature_module(name).double().eval()
    student, teacher = features(name, 3)
    index, labels = torch.tensor([1, 4, 6]), torch.tensor([0, -1, 1])
    module(student, teacher, index, labels)  # crd's scale is a constant from its first batch on

    def loss(*inputs: torch.Tensor) -> torch.Tensor:
        # a copy, because crd's memory moves at every call
        value: torch.Tensor = copy.deepcopy(module)(list(inputs), teacher, index, labels)
        return value

    assert torch.autograd.gradcheck(loss, tuple(x.requires_grad_() for x in student), fast_mode=True)


@pytest.mark.parametrize("name", FEATURE_LOSSES)
def test_the_order_of_the_images_does_not_matter_for_features(name: str) -> None:
    student, teacher = features(name, 5)
    index, labels, order = torch.arange(5), torch.tensor([0, 1, -1, 1, 2]), torch.tensor([4, 2, 0, 1, 3])
    plain = feature_module(name).double()(student, teacher, index, labels)
    moved = feature_module(name).double()(
        [x[order] for x in student], [x[order] for x in teacher], index[order], labels[order]
    )
    torch.testing.assert_close(moved, plain)


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("name", FEATURE_LOSSES)
def test_small_last_batches_have_finite_feature_losses(name: str, images: int) -> None:
    student, teacher = features(name, images)
    student = [x.float().requires_grad_() for x in student]
    module = feature_module(name)
    value = module(student, [x.float() for x in teacher], torch.arange(images), torch.full((images,), -1))
    value.backward()
    assert math.isfinite(value.item())
    assert all(x.grad is not None and x.grad.isfinite().all() for x in student)


@pytest.mark.parametrize(("dtype", "scale"), [(torch.float16, 3e4), (torch.bfloat16, 1e30), (torch.float32, 1e30)])
@pytest.mark.parametrize("name", FEATURE_LOSSES)
def test_extreme_features_give_no_nan(name: str, dtype: torch.dtype, scale: float) -> None:
    student, teacher = features(name, 4, scale)
    student = [x.to(dtype).requires_grad_() for x in student]
    value = feature_module(name)(student, [x.to(dtype) for x in teacher], torch.arange(4), torch.arange(4))
    value.backward()
    assert math.isfinite(value.item())
    assert all(x.grad is not None and x.grad.isfinite().all() for x in student)


@pytest.mark.parametrize("name", FEATURE_LOSSES)
def test_autocast_does_not_reach_into_feature_losses(name: str) -> None:
    student, teacher = ([x.float() for x in side] for side in features(name, 4))
    arguments = (student, teacher, torch.arange(4), torch.arange(4))
    plain = feature_module(name)(*arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(feature_module(name)(*arguments), plain)


@pytest.mark.parametrize("name", ["at", "sp", "rkd_pooled", "pkt_pooled"])
def test_a_network_compared_with_itself_has_zero_feature_loss(name: str) -> None:
    shapes = SHAPES[name][0]
    make = LOSSES[name].make
    assert make is not None
    x = [maps(1, 5, *shape) for shape in shapes]
    assert make(shapes, shapes)(x, x).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("name", FEATURE_LOSSES)
def test_factories_start_from_their_seed_and_leave_the_global_generator_alone(name: str) -> None:
    before = torch.random.get_rng_state()
    first, second = feature_module(name).state_dict(), feature_module(name).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    ("name", "shapes", "message"),
    [
        ("fitnet", ([(4, 8, 8)], [(6,)]), "cannot be paired"),
        ("fitnet", ([(4,)], [(6,), (6,)]), "1 student layers cannot be paired with 2 teacher layers"),
        ("at", ([(4,)], [(6, 2, 2)]), "has no places to attend to"),
        ("review", ([(4, 9)], [(6, 2, 2)]), "neither a map"),
    ],
)
def test_layers_that_do_not_fit_are_refused(name: str, shapes: tuple[object, object], message: str) -> None:
    make = LOSSES[name].make
    assert make is not None
    with pytest.raises(UserError, match=message):
        make(*shapes)


# --------------------------------------------------------------------------------------------------- combine


def test_combine_adds_weighted_parts_and_names_them() -> None:
    student, teacher = logits(1), logits(2)
    total = combine([("kd", 0.9, {"temperature": 4}, None), ("ce", 0.1, {}, None)])(student, teacher, LABELS)
    kd, ce = losses.kd(student, teacher, LABELS), losses.ce(student, teacher, LABELS)
    assert list(total) == ["loss", "kd", "ce"]
    torch.testing.assert_close(total["loss"], 0.9 * kd + 0.1 * ce)
    assert torch.equal(total["kd"], kd)
    assert torch.equal(total["ce"], ce)


def test_combined_loss_passes_the_parts_gradients_on() -> None:
    student, teacher = logits(1).requires_grad_(), logits(2)
    total = combine([("kd", 2.0, {}, None), ("mse", 0.5, {}, None)])(student, teacher, LABELS)
    total["loss"].backward()
    expected = 2 * value_and_gradient("kd", logits(1), teacher, LABELS)[1]
    expected = expected + 0.5 * value_and_gradient("mse", logits(1), teacher, LABELS)[1]
    assert student.grad is not None
    np.testing.assert_allclose(student.grad.numpy(), expected, rtol=1e-10)
    assert not total["kd"].requires_grad


@pytest.mark.parametrize(("epoch", "share"), [(0, 0.0), (5, 0.25), (10.0, 0.5), (20, 1.0), (99, 1.0)])
def test_a_warm_up_grows_a_parts_weight_linearly(epoch: float, share: float) -> None:
    student, teacher = logits(1), logits(2)
    result = combine([("dkd", 2.0, {}, 20), ("ce", 1.0, {}, None)])(student, teacher, LABELS, epoch=epoch)
    torch.testing.assert_close(result["loss"], 2 * share * result["dkd"] + result["ce"])


def test_without_labels_and_without_ce_nothing_of_the_labels_is_read() -> None:
    free = combine([("kd", 1.0, {}, None), ("dist", 1.0, {}, None), ("dkd", 1.0, {"target": "teacher"}, None)])
    student, teacher = logits(1), logits(2)
    unlabelled = free(student, teacher, torch.full((8,), -1))
    assert torch.equal(unlabelled["loss"], free(student, teacher, torch.full((8,), 999))["loss"])


def test_unequal_classes_count_in_what_asks_for_it_alone() -> None:
    balance = losses.Balance(weights=torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
    student, teacher = logits(1).float(), logits(2).float()
    parts = [("kd", 1.0, {}, None), ("ce", 1.0, {"label_smoothing": 0.1}, None)]
    weighed, plain = (combine(parts, balance=found)(student, teacher, LABELS) for found in (balance, None))
    assert weighed["ce"].equal(losses.ce(student, teacher, LABELS, label_smoothing=0.1, balance=balance))
    assert plain["ce"].equal(losses.ce(student, teacher, LABELS, label_smoothing=0.1))
    assert not torch.isclose(weighed["ce"], plain["ce"])
    assert weighed["kd"].equal(plain["kd"])


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("kd", {}, {"temperature": 3.0}),
        ("kd", {"temperature": 5}, {"temperature": 5}),
        ("dkd", {"beta": 2}, {"beta": 2, "temperature": 3.0}),
        ("mse", {}, {}),
        ("ce", {"label_smoothing": 0.1}, {"label_smoothing": 0.1}),
        ("crd", {"width": 4}, {"width": 4}),  # whose temperature is another thing
    ],
)
def test_a_temperature_for_all_fills_in_where_a_loss_of_logits_has_one(
    name: str, given: dict[str, object], expected: dict[str, object]
) -> None:
    before = dict(given)
    found = losses.with_temperature(name, given, 3.0)
    assert found == expected and given == before and found is not given


@pytest.mark.parametrize(
    ("name", "key", "low", "high"),
    [
        ("kd", "temperature", 0.01, 1000),
        ("dkd", "beta", 0, 1e6),
        ("ce", "label_smoothing", 0, 0.99),
        ("crd", "width", 1, 2**16),
        ("crd", "momentum", 0, 1),
    ],
)
def test_a_parameter_may_be_its_bounds_and_nothing_beyond(name: str, key: str, low: float, high: float) -> None:
    parameter = LOSSES[name].parameters[key]
    whole = isinstance(parameter.default, int)
    for bound in (low, high):
        found = parameter.check("there", bound)
        assert found == bound and type(found) is (int if whole else float)
    for beyond in (low - 1 if whole else low - 1e-3, high + 1):
        with pytest.raises(UserError) as caught:
            parameter.check("there", beyond)
        noun = "a whole number" if whole else "a number"
        assert str(caught.value) == f"there: {noun} from {low} to {high} is needed, got {beyond!r}"


def test_a_loss_that_is_called_by_names_is_in_full_precision_and_keeps_its_name() -> None:
    student, teacher = logits(1).float(), logits(2).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = losses.sp(student_features=student, teacher_features=teacher)
    assert found.equal(losses.sp(student, teacher))
    assert losses.sp.__name__ == "sp"


def test_a_loss_may_occur_twice_and_is_numbered() -> None:
    parts = [("kd", 1.0, {"temperature": 2}, None), ("kd", 1.0, {"temperature": 8}, None)]
    assert list(combine(parts)(logits(1), logits(2), LABELS)) == ["loss", "kd", "kd_2"]


def test_ground_truth_alone_needs_no_teacher_and_kd_says_that_it_does() -> None:
    assert combine([("ce", 1.0, {}, None)])(logits(1), None, LABELS)["loss"].item() > 0
    with pytest.raises(UserError, match="kd: needs the teacher's logits, and there is no teacher"):
        combine([("kd", 1.0, {}, None)])(logits(1), None, LABELS)


def test_combine_sizes_feature_parts_by_shape_and_pools_for_those_that_want_it() -> None:
    layers = {"student_layers": ["layer2"], "teacher_layers": ["blocks.5"]}
    parts = [
        ("crd", 0.8, {**layers, "negatives": 5}, None),
        ("fitnet", 1.0, layers, None),
        ("ce", 1.0, {}, None),
    ]
    both = combine(parts, {"layer2": (4, 2, 2)}, {"blocks.5": (6, 2, 2)}, images=12, seed=1)
    student, teacher = maps(1, 8, 4, 2, 2).float(), maps(2, 8, 6, 2, 2).float()
    result = both(
        logits(1).float(),
        logits(2).float(),
        LABELS,
        student_features={"layer2": student},
        teacher_features={"blocks.5": teacher},
        index=torch.arange(8),
    )
    alone = losses.make_crd([(4,)], [(6,)], images=12, seed=1, negatives=5)
    expected = alone([student.mean((2, 3))], [teacher.mean((2, 3))], torch.arange(8), LABELS)
    torch.testing.assert_close(result["crd"], expected.detach())
    assert sum(p.numel() for p in both.parameters()) == (4 + 1) * 128 + (6 + 1) * 128 + (4 + 1) * 6


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (("kll", {}), r"^unknown loss 'kll'\. Choose one of: kd, mse, dkd, .*review"),
        (("logitstd", {}), r"^unknown loss 'logitstd'\. Did you mean 'logit_std'\?"),
        (("kd", {"temprature": 4}), r"kd: unknown parameter 'temprature'\. Did you mean 'temperature'\?"),
        (("mse", {"temperature": 4}), r"mse: unknown parameter 'temperature'\. mse has no parameters"),
        (("kd", {"temperature": 0}), r"kd\.temperature: a number from 0\.01 to 1000 is needed, got 0"),
        (("kd", {"temperature": "4"}), r"kd\.temperature: a number .* got '4'"),
        (("kd", {"temperature": True}), r"kd\.temperature: a number .* got True"),
        (("dkd", {"target": "truth"}), r"dkd\.target: unknown 'truth'\. Choose one of: label, teacher"),
        (("review", {"middle": 2.5}), r"review\.middle: a whole number from 1 to 65536 is needed, got 2\.5"),
        (("at", {}), r"at\.student_layers: a list of module paths is needed, got None"),
        (
            ("at", {"student_layers": ["a"], "teacher_layers": ["b", "c"]}),
            "1 student_layers cannot be paired",
        ),
        (
            ("at", {"student_layers": ["layr1"], "teacher_layers": ["b"]}),
            r"at\.student_layers: the shape of 'layr1' is not known\. Did you mean 'layer1'\? Measured: ",
        ),
        (
            ("crd", {"student_layers": ["layer1"], "teacher_layers": ["layer1"]}),
            "crd: needs to know the number of images",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_does_not_fit_is_named_with_the_choices(part: tuple[str, dict[str, object]], message: str) -> None:
    shapes = {"layer1": (4, 2, 2)}
    with pytest.raises(UserError, match=message):
        combine([(part[0], 1.0, part[1], None)], shapes, shapes)


def test_missing_features_index_and_parts_are_named() -> None:
    with pytest.raises(UserError, match="no losses: name at least one"):
        combine([])
    layers = {"student_layers": ["a"], "teacher_layers": ["a"]}
    crd = combine([("crd", 1.0, layers, None)], {"a": (4,)}, {"a": (4,)}, images=8)
    with pytest.raises(UserError, match="crd: the student's features of a are missing"):
        crd(logits(1), logits(2), LABELS)
    given = {"a": maps(1, 8, 4)}
    with pytest.raises(UserError, match=r"crd: needs the image numbers \(index\) of the batch"):
        crd(logits(1), logits(2), LABELS, student_features=given, teacher_features=given)


# ----------------------------------------------------------------------------------------------------- table


@pytest.mark.parametrize("name", LOSSES)
def test_the_tables_parameters_are_those_of_the_function(name: str) -> None:
    row = LOSSES[name]
    signature = inspect.signature(row.make or row.function).parameters
    common = {"seed", "images"} if row.make else {"balance"}  # not of params.yaml
    defaults = {
        key: p.default for key, p in signature.items() if p.default is not inspect.Parameter.empty and key not in common
    }
    assert defaults == {key: parameter.default for key, parameter in row.parameters.items()}


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_names_its_paper_in_its_docstring_and_in_the_docs(name: str) -> None:
    row = LOSSES[name]
    texts = (row.function.__doc__ or "") + ((row.make.__doc__ or "") if row.make else "")
    assert row.link in texts
    assert row.needs <= {"logits", "labels", "features", "pooled", "index", "balance"}
    page = (Path(__file__).parents[2] / "docs" / "losses.md").read_text(encoding="utf-8")
    assert re.search(rf"^\| `{name}` \|", page, re.MULTILINE), f"docs/losses.md has no row for {name}"
    assert row.link in page


def test_shapes_are_checked_while_tests_run() -> None:
    with pytest.raises(Exception, match="kd"):
        losses.kd(logits(1), logits(2, classes=4), LABELS)
