"""Unequal classes in training: losses by formulas and scikit-learn, batches by counting, weights kept by metric."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import balanced_accuracy_score, f1_score, recall_score
from sklearn.utils.class_weight import compute_class_weight
from torch import nn

from thinner.data import views
from thinner.errors import UserError
from thinner.learn import imbalance, losses, training
from thinner.learn.imbalance import Balance

COUNTS = np.array([60, 25, 10, 5])
LABELS = np.repeat(np.arange(4), COUNTS)


def logits(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(**how: Any) -> Balance:
    asked: dict[str, Any] = {"weights": False, "logit_adjustment": 0.0, "device": "cpu", **how}
    found = imbalance.balance(COUNTS, **asked)
    assert found is not None
    return found


# -------------------------------------------------------------------------------------------------------- losses


def test_weights_are_scikit_learns_and_have_the_mean_1_over_the_images() -> None:
    weights = imbalance.class_weights(COUNTS)
    oracle = compute_class_weight("balanced", classes=np.arange(4), y=LABELS)
    np.testing.assert_allclose(weights, oracle, rtol=1e-12)
    assert weights[LABELS].mean() == pytest.approx(1.0)


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
def test_the_adjusted_loss_worked_by_hand(tau: float) -> None:
    z = logits(3)
    labels = torch.tensor([3, 0, 2])
    rows = imbalance.cross_entropy(z, labels, 0.0, made(logit_adjustment=tau))
    for row, label, found in zip(z.numpy(), labels.tolist(), rows.tolist(), strict=True):
        powers = [math.exp(v) * (n / 100) ** tau for v, n in zip(row, COUNTS, strict=True)]
        assert found == pytest.approx(-math.log(powers[label] / sum(powers)), rel=1e-6)


def test_the_weighted_loss_is_pytorchs_sum_divided_by_the_number_of_images() -> None:
    z, labels = logits(8), torch.tensor([0, 1, 2, 3, 3, 0, 0, 1])
    found = imbalance.cross_entropy(z, labels, 0.0, made(weights=True)).mean()
    weight = torch.from_numpy(imbalance.class_weights(COUNTS))
    oracle = F.cross_entropy(z, labels, weight=weight, reduction="sum") / 8
    torch.testing.assert_close(found, oracle, rtol=1e-6, atol=0)


@pytest.mark.parametrize("how", [{"weights": True}, {"logit_adjustment": 1.0}])
def test_one_batch_of_8_is_the_mean_of_two_of_4(how: dict[str, Any]) -> None:
    z, labels, balance = logits(8), torch.tensor([0, 1, 2, 3, 3, 0, 0, 1]), made(**how)
    whole = imbalance.cross_entropy(z, labels, 0.1, balance).mean()
    halves = [imbalance.cross_entropy(z[s], labels[s], 0.1, balance).mean() for s in (slice(4), slice(4, 8))]
    torch.testing.assert_close(whole, sum(halves) / 2)


@pytest.mark.parametrize("how", [{"weights": True}, {"logit_adjustment": 1.0}])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_mixed_image_has_the_loss_of_each_label_by_its_share(how: dict[str, Any], smoothing: float) -> None:
    z, balance = logits(2), made(**how)
    first, second = torch.tensor([0, 3]), torch.tensor([2, 1])
    shares = 0.3 * F.one_hot(first, 4).double() + 0.7 * F.one_hot(second, 4).double()
    one, two = (imbalance.cross_entropy(z, labels, smoothing, balance) for labels in (first, second))
    torch.testing.assert_close(imbalance.cross_entropy(z, shares, smoothing, balance), 0.3 * one + 0.7 * two)


def best_table(kinds: torch.Tensor, frequencies: torch.Tensor, balance: Balance | None) -> torch.Tensor:
    """Logits by kind of image (row) and class that have the least loss."""
    table = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([table], lr=1, max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def risk() -> torch.Tensor:
        optimizer.zero_grad()
        rows, labels = table.repeat_interleave(4, 0), torch.arange(4).repeat(3)
        if balance is None:
            each = F.cross_entropy(rows, labels, reduction="none")
        else:
            each = imbalance.cross_entropy(rows, labels, 0.0, balance)
        total = (each.view(3, 4) * kinds.T * frequencies).sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimizer.step(risk)  # type: ignore[arg-type]
    return table.detach()


def test_all_three_ways_have_the_same_best_network() -> None:
    # a network that is a table: images come in three kinds, as often of each class as `kinds` says. The best balanced
    # classifier has the logits log P(kind | class), but for a constant of each kind; worked from the table by hand
    kinds = torch.tensor([[0.7, 0.2, 0.1], [0.3, 0.4, 0.3], [0.1, 0.2, 0.7], [0.2, 0.6, 0.2]], dtype=torch.float64)
    priors = torch.from_numpy(COUNTS / 100)
    wanted = kinds.T.log()
    for balance, frequencies in (
        (made(weights=True), priors),
        (made(logit_adjustment=1.0), priors),
        (None, torch.full((4,), 0.25, dtype=torch.float64)),  # sampling: every class as often
    ):
        found = best_table(kinds, frequencies, balance)
        torch.testing.assert_close(found - found[:, :1], wanted - wanted[:, :1], rtol=0, atol=1e-4)


def test_at_rest_there_is_no_balance_and_the_loss_is_pytorchs_to_the_last_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert imbalance.balance(COUNTS, weights=False, logit_adjustment=0.0, device="cpu") is None
    monkeypatch.setattr(imbalance, "cross_entropy", lambda *_: pytest.fail("it is at rest"))
    z, labels = logits(8).float(), torch.arange(8) % 4
    batch = training.Batch(z.view(8, 1, 2, 2), labels, np.arange(8), np.zeros(8, dtype=np.int64))
    loss = training.supervised_step(0.1)(nn.Flatten(), batch, 0)["loss"]
    assert loss.equal(F.cross_entropy(z, labels, label_smoothing=0.1))


def test_the_loss_ce_of_distillation_is_corrected_and_images_without_a_label_do_not_count() -> None:
    z, labels, balance = logits(4), torch.tensor([3, -1, 0, -1]), made(weights=True)
    known = imbalance.cross_entropy(z[[0, 2]], labels[[0, 2]], 0.1, balance).mean()
    parts = [("kd", 1.0, {}, None), ("ce", 0.5, {"label_smoothing": 0.1}, None)]
    corrected, plain = (losses.combine(parts, balance=b)(z, z + 1, labels) for b in (balance, None))
    torch.testing.assert_close(corrected["ce"], known)
    torch.testing.assert_close(corrected["kd"], plain["kd"])
    torch.testing.assert_close(plain["ce"], F.cross_entropy(z, labels, ignore_index=-1, label_smoothing=0.1))
    torch.testing.assert_close(corrected["loss"], corrected["kd"] + 0.5 * known)
    nothing = losses.ce(z.requires_grad_(), z, torch.full((4,), -1), balance=made(weights=True, logit_adjustment=1.0))
    nothing.backward()  # type: ignore[no-untyped-call]
    assert nothing.item() == 0.0 and z.grad is not None and not z.grad.any()


def test_a_class_without_labelled_images_is_named_with_the_key() -> None:
    with pytest.raises(UserError, match=r"^imbalance.weights: needs labelled .* there is none of 'dog', 'fox'\. Label"):
        imbalance.class_counts(np.array([0, 0, 3]), ["cat", "dog", "fox", "hen"], "imbalance.weights")
    many = [str(n) for n in range(9)]
    with pytest.raises(UserError, match=r"none of '1', '2', '3' and 5 more\. "):
        imbalance.class_counts(np.array([0]), many, "imbalance.sampling")
    assert imbalance.class_counts(LABELS, many[:4], "x").tolist() == COUNTS.tolist()


# ------------------------------------------------------------------------------------------------------- batches

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (100, 8, 8, 1), dtype=np.uint8)


def batches(**changes: Any) -> training.Batches:
    arguments: dict[str, Any] = {
        "images": IMAGES, "labels": LABELS, "pool": np.arange(100), "batch_size": 16, "seed": 3, "size": 8,
        "mean": (0.5,), "std": (0.5,), "policy": views.Policy(flip=True), "balanced": True, **changes,
    }  # fmt: skip
    return training.Batches(**arguments)


def test_every_class_is_drawn_equally_often_and_every_image_of_a_class_too() -> None:
    source = batches()
    drawn = [source.numbers(step)[0] for step in range(60)]
    for index in drawn:  # 16 is a multiple of 4: each batch is balanced by itself
        assert np.bincount(LABELS[index]).tolist() == [4, 4, 4, 4]
    often = np.bincount(np.concatenate(drawn), minlength=100)  # 240 of each class
    assert often[LABELS == 0].tolist() == [4] * 60
    assert set(often[LABELS == 1]) == {9, 10}  # 240 / 25
    assert often[LABELS == 2].tolist() == [24] * 10
    assert often[LABELS == 3].tolist() == [48] * 5


@pytest.mark.parametrize("batch_size", [2, 7, 15])
def test_batches_that_do_not_divide_evenly_stay_balanced_over_time(batch_size: int) -> None:
    source = batches(batch_size=batch_size)
    counts = np.bincount(LABELS[np.concatenate([source.numbers(step)[0] for step in range(100)])])
    assert counts.max() - counts.min() <= max(1, batch_size // 4)


def test_an_image_that_comes_again_has_a_new_view_and_no_order_repeats() -> None:
    source = batches()
    numbers = [source.numbers(step) for step in range(60)]
    index, view = (np.concatenate(part) for part in zip(*numbers, strict=True))
    assert len(set(zip(index.tolist(), view.tolist(), strict=True))) == len(index)
    rare = LABELS[index] == 3
    passes = [index[rare & (view == number)].tolist() for number in range(48)]
    assert {tuple(sorted(row)) for row in passes} == {(95, 96, 97, 98, 99)}
    assert len({tuple(row) for row in passes}) > 20
    assert batches(views=2).numbers(50)[1].max() == 1


def test_a_batch_is_a_function_of_seed_and_step_alone() -> None:
    first = [batches().numbers(step)[0] for step in range(9)]
    source = batches()
    assert all(np.array_equal(source.numbers(step)[0], first[step]) for step in (8, 0, 5, 3))
    other = [batches(seed=4).numbers(step)[0] for step in range(9)]
    assert not any(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_processes_share_a_batch_and_none_of_them_has_a_class_for_itself() -> None:
    labels = np.repeat([0, 1], (90, 10))
    whole = batches(labels=labels)
    parts = [batches(labels=labels, rank=rank, world=2) for rank in range(2)]
    seen = [np.concatenate([part.numbers(step)[0] for step in range(20)]) for part in parts]
    for step in range(20):
        both = np.concatenate([part.numbers(step)[0] for part in parts])
        assert sorted(both) == sorted(whole.numbers(step)[0])
    for index in seen:  # with as many processes as classes, too
        assert 0.3 < (labels[index] == 0).mean() < 0.7


def test_images_without_a_label_cannot_be_balanced() -> None:
    with pytest.raises(ValueError, match="have no label"):
        batches(labels=np.where(np.arange(100) < 3, -1, LABELS)).numbers(0)


def test_at_rest_batches_are_those_of_one_permutation_after_the_other() -> None:
    source = batches(balanced=False, batch_size=50)
    for number in range(3):
        order = np.random.Generator(np.random.Philox(key=[3, number])).permutation(100)
        found = np.concatenate([source.numbers(2 * number)[0], source.numbers(2 * number + 1)[0]])
        assert found.tolist() == order.tolist()


# -------------------------------------------------------------------------------------------------------- training


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 4))


PREPROCESSING = views.Preprocessing(8, mean=(0.5,), std=(0.5,))


class KilledError(Exception):
    pass


def fit(model: nn.Module, killed_at: int = -1, **changes: Any) -> list[training.Row]:
    step = training.supervised_step(balance=made(logit_adjustment=1.0))

    def killing(model: nn.Module, batch: training.Batch, number: int) -> dict[str, torch.Tensor]:
        if number == killed_at:
            raise KilledError
        return step(model, batch, number)

    arguments: dict[str, Any] = {
        "steps": 24, "validate_every": 6, "factor": lambda number: 1.0, "seed": 3,
        "optimizer": training.make_optimizer(model, "adamw", lr=1e-2, weight_decay=0.01),
        "fabric": training.make_fabric("cpu", 1, "fp32"), "save_seconds": 0.0, "choose_by": "macro_f1",
        "validate": training.validation(IMAGES, LABELS, np.arange(100), PREPROCESSING, choose_by="macro_f1"), **changes,
    }  # fmt: skip
    return training.fit(model, batches(), killing, **arguments)


def test_a_killed_training_with_balanced_batches_ends_with_the_same_weights(tmp_path: Path) -> None:
    straight, cut, again = network(), network(), network()
    history = fit(straight)
    with pytest.raises(KilledError):
        fit(cut, killed_at=15, resume=tmp_path)
    assert fit(again, resume=tmp_path) == history
    assert all(a.equal(b) for a, b in zip(straight.state_dict().values(), again.state_dict().values(), strict=True))


ORACLES = {
    "balanced_accuracy": balanced_accuracy_score,
    "macro_f1": lambda labels, answers: f1_score(labels, answers, average="macro"),
    "worst_class": lambda labels, answers: recall_score(labels, answers, average=None, labels=np.arange(4)).min(),
}


@pytest.mark.parametrize("metric", ORACLES)
def test_validation_says_what_scikit_learn_says_of_the_same_answers(metric: str) -> None:
    model = network()
    answers = training.logits_of(model, IMAGES, np.arange(100), PREPROCESSING).argmax(1).numpy()
    row = training.validation(IMAGES, LABELS, np.arange(100), PREPROCESSING, choose_by=metric)(model)
    assert row[f"val_{metric}"] == pytest.approx(ORACLES[metric](LABELS, answers))
    plain = training.validation(IMAGES, LABELS, np.arange(100), PREPROCESSING)(model)
    assert plain == {key: row[key] for key in ("val_accuracy", "val_loss")}


def test_the_metric_that_was_asked_for_chooses_and_ends_the_training() -> None:
    model, states = network(), []
    rows = iter([(0.9, 0.1), (0.5, 0.6), (0.8, 0.3), (0.7, 0.2)])

    def validate(judged: nn.Module) -> training.Row:
        states.append({name: tensor.clone() for name, tensor in judged.state_dict().items()})
        accuracy, worst = next(rows)
        return {"val_accuracy": accuracy, "val_worst_class": worst, "val_loss": 1.0}

    history = fit(model, validate=validate, choose_by="worst_class", patience=2)
    assert [row["val_worst_class"] for row in history] == [0.1, 0.6, 0.3, 0.2]
    assert all(tensor.equal(states[1][name]) for name, tensor in model.state_dict().items())
