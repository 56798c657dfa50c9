"""Self-training: thresholds, masks and losses against NumPy in float64 and PyTorch's operators; who is chosen."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn

from thinner.data import views
from thinner.evidence.decision import CONTROL, LEARNER, PLAIN
from thinner.evidence.self_training_line import self_training_line
from thinner.learn import self_training, training

CLASSES = 5


def batches(unlabelled: int = 6, labelled: int = 4, **changes) -> self_training.Batches:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)
    labels = rng.integers(0, CLASSES, 40)
    drawn = training.Batches(
        images, labels, np.arange(10), labelled, 3, 8, (0.5,), (0.25,), views.Policy(crop=0.9), channels_last=False
    )
    others = replace(drawn, pool=np.arange(10, 40), batch_size=unlabelled)
    return self_training.Batches(drawn, others, views.Policy(**{"crop": 0.5, "erase": 1.0, **changes}))


def probabilities(rows: int, seed: int = 0, sharpness: float = 3.0) -> np.ndarray:
    z = sharpness * np.random.default_rng(seed).standard_normal((rows, CLASSES))
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


# ------------------------------------------------------------------------------------------------------- thresholds


def test_thresholds_are_those_worked_by_hand():
    """Two classes, momentum 0.5. tau: 0.5 -> (0.5 + 0.8) / 2 = 0.65. p: (0.5, 0.5) -> (0.55, 0.45), from the means 0.6
    and 0.4. Thresholds: 0.65 and 0.65 * 0.45 / 0.55."""
    found = self_training.Thresholds(2, 0.5)(torch.tensor([[0.9, 0.1], [0.3, 0.7]]))
    assert found.tolist() == pytest.approx([0.65, 0.65 * 0.45 / 0.55], rel=1e-6)


def test_thresholds_follow_the_paper_in_float64_numpy():
    thresholds = self_training.Thresholds(CLASSES, 0.9)
    tau, p = 1 / CLASSES, np.full(CLASSES, 1 / CLASSES)
    for step in range(50):
        q = probabilities(7, step)
        tau = 0.9 * tau + 0.1 * q.max(1).mean()
        p = 0.9 * p + 0.1 * q.mean(0)
        found = thresholds(torch.from_numpy(q).float())
        np.testing.assert_allclose(found.numpy(), tau * p / p.max(), rtol=2e-5)
    assert float(found.max()) == pytest.approx(tau, rel=2e-5)  # of the class that is named most; others' are lower


def test_means_of_several_processes_are_those_of_all_their_images():
    q = torch.from_numpy(probabilities(8)).float()
    whole = self_training.Thresholds(CLASSES, 0.5)(q)
    halves = list(q.split(4))
    means = iter(
        [(halves[0].amax(1).mean() + halves[1].amax(1).mean()) / 2, (halves[0].mean(0) + halves[1].mean(0)) / 2]
    )
    shared = self_training.Thresholds(CLASSES, 0.5, mean=lambda own: next(means))(halves[0])
    torch.testing.assert_close(shared, whole)


def test_two_means_are_all_the_state_and_nothing_is_learnt():
    thresholds = self_training.Thresholds(CLASSES, 0.9)
    thresholds(torch.from_numpy(probabilities(7)).float())
    again = self_training.Thresholds(CLASSES, 0.9)
    again.load_state_dict(thresholds.state_dict())
    q = torch.from_numpy(probabilities(7, 1)).float()
    assert torch.equal(again(q), thresholds(q))
    assert not list(thresholds.parameters())


# ----------------------------------------------------------------------------------------------------- mask and loss


def test_what_is_believed_reaches_the_threshold_of_its_class():
    q = probabilities(200)
    limits = np.linspace(0.3, 0.9, CLASSES)
    named, mask = self_training.believed(torch.from_numpy(q), torch.from_numpy(limits))
    assert named.tolist() == q.argmax(1).tolist()
    assert mask.tolist() == [row.max() >= limits[row.argmax()] for row in q]
    assert 0 < mask.sum() < 200
    exactly = torch.tensor([[0.75, 0.25]])
    assert self_training.believed(exactly, torch.tensor([0.75, 0.1]))[1].tolist() == [True]


def test_loss_is_the_sum_of_what_is_believed_over_all_images():
    rng = np.random.default_rng(1)
    z, named = rng.standard_normal((9, CLASSES)), rng.integers(0, CLASSES, 9)
    mask = rng.random(9) < 0.5
    log_softmax = z - np.log(np.exp(z).sum(1, keepdims=True))
    wanted = -sum(log_softmax[row, named[row]] for row in np.flatnonzero(mask)) / 9
    given = torch.from_numpy(z), torch.from_numpy(named), torch.from_numpy(mask)
    assert float(self_training.pseudo_loss(*given)) == pytest.approx(wanted, rel=1e-12)
    # PyTorch's own: images that are not believed are ignored, the sum is divided by all
    ignored = torch.where(given[2], given[1], -100)
    theirs = F.cross_entropy(given[0], ignored, ignore_index=-100, reduction="sum") / 9
    torch.testing.assert_close(self_training.pseudo_loss(*given), theirs)


def test_nothing_believed_is_a_loss_of_zero_without_a_gradient():
    z = torch.randn(3, CLASSES, requires_grad=True)
    self_training.pseudo_loss(z, torch.tensor([0, 1, 2]), torch.zeros(3, dtype=torch.bool)).backward()
    assert not z.grad.any()


# ------------------------------------------------------------------------------------------------------------ batches


def test_a_batch_holds_labelled_images_then_weak_then_strong_views_of_the_same_others():
    made = batches()
    batch = made(5)
    assert batch.images.shape == (16, 1, 8, 8)
    assert (batch.labels[:4] >= 0).all()
    assert (batch.labels[4:] == -1).all()  # the store knows them, and nobody is told
    assert set(batch.index[:4]) <= set(range(10))
    assert batch.index[4:10].tolist() == batch.index[10:].tolist()
    assert set(batch.index[4:]) <= set(range(10, 40))
    labelled, weak, strong = self_training.parts_of(batch)
    assert torch.equal(labelled.images, made.labelled(5).images)
    assert torch.equal(weak, made.weak(5).images)
    assert not torch.equal(weak, strong)


def test_strong_views_have_random_numbers_of_their_own():
    """With one policy for both, the two views of a picture differ: were the numbers shared, they would be equal."""
    made = batches(crop=0.9, erase=0.0)
    _, weak, strong = self_training.parts_of(made(0))
    assert not any(torch.equal(a, b) for a, b in zip(weak, strong, strict=True))


def test_a_batch_is_a_function_of_its_number():
    first, again = batches()(7), batches()(7)
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, batches()(8).images)


# --------------------------------------------------------------------------------------------------------------- step


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES)).train()


@pytest.mark.parametrize("threshold", [0.3, 0.999])
def test_a_step_is_both_losses_with_the_networks_own_answers(threshold):
    model, batch = network(), batches()(0)
    step = self_training.step_of(threshold=threshold, weight=2.0)
    parts = {name: float(value.detach()) for name, value in step(model, batch, 0).items()}
    w, b = (p.detach().double().numpy() for p in model[1].parameters())
    z = batch.images.double().numpy().reshape(16, 64) @ w.T + b
    log_softmax = z - np.log(np.exp(z).sum(1, keepdims=True))
    labelled = -np.mean([log_softmax[n, int(y)] for n, y in enumerate(batch.labels[:4])])
    sure = [n for n in range(6) if np.exp(log_softmax[4 + n].max()) >= threshold]
    pseudo = -sum(log_softmax[10 + n, log_softmax[4 + n].argmax()] for n in sure) / 6
    assert parts["labelled_loss"] == pytest.approx(labelled, rel=1e-5)
    assert parts["pseudo_loss"] == pytest.approx(pseudo, rel=1e-5, abs=1e-12)
    assert parts["loss"] == pytest.approx(labelled + 2.0 * pseudo, rel=1e-5)
    assert parts["believed"] == pytest.approx(len(sure) / 6)
    assert model.training


def test_weak_views_get_no_gradient_and_leave_batch_norms_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, CLASSES)).train()
    batch = batches()(0)
    batch.images.requires_grad_()
    self_training.step_of(threshold=0.01, weight=1.0)(model, batch, 0)["loss"].backward()
    assert not batch.images.grad[4:10].any()
    assert batch.images.grad[:4].any()
    assert batch.images.grad[10:].any()
    learnt = torch.cat([batch.images[:4], batch.images[10:]])
    assert float(model[0].running_mean) == pytest.approx(0.1 * float(learnt.detach().mean()), rel=1e-4)


# ----------------------------------------------------------------------------------------------------------- choosing


def answers(labels, **wrong):
    """Answers that are right but for the first so many images, or for a slice of them."""
    found = {}
    for name, which in wrong.items():
        named = labels.copy()
        where = slice(0, which) if isinstance(which, int) else which
        named[where] = (named[where] + 1) % CLASSES
        found[name] = named
    return {PLAIN: found["plain"], CONTROL: found["control"], LEARNER: found["learner"]}


def test_better_than_both_is_chosen_with_exact_p_values():
    labels = np.random.default_rng(0).integers(0, CLASSES, 400)
    found = self_training.decide(labels, answers(labels, plain=100, control=90, learner=60))
    assert found["chosen"] == LEARNER
    assert found["accuracy"] == {PLAIN: 0.75, CONTROL: 0.775, LEARNER: 0.85}
    for other, ahead in ((PLAIN, 40), (CONTROL, 30)):
        assert found["against"][other]["p_value"] == pytest.approx(stats.binomtest(0, ahead).pvalue)
        assert found["against"][other]["effect"] == pytest.approx(ahead / 400)
    assert self_training_line(found).startswith("Self-training helped: self_train is right on 85.0 % of 400 ")


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"plain": 60, "control": 60, "learner": 100}, "worse than both"),
        ({"plain": 100, "control": 60, "learner": 60}, "better than the plain one, but so is the control"),
        ({"plain": 60, "control": 100, "learner": 60}, "better than a control that lost, and not than the plain one"),
        ({"plain": 64, "control": 64, "learner": 60}, "four images of 400: chance"),
    ],
)
def test_anything_else_keeps_the_plain_teacher(wrong, why):
    labels = np.random.default_rng(0).integers(0, CLASSES, 400)
    found = self_training.decide(labels, answers(labels, **wrong))
    assert found["chosen"] == PLAIN, why
    assert "was not shown to help" in self_training_line(found)
    assert self_training_line(found).endswith("The plain teacher, finetune, is kept.")


def test_the_metric_that_chooses_weights_chooses_the_teacher():
    """Right on more images, by the frequent class alone: of balanced accuracy that is a loss."""
    labels = np.repeat([0, 1], [360, 40])
    half = answers(labels, plain=slice(0, 60), control=slice(0, 60), learner=slice(370, 400))
    assert self_training.decide(labels, half)["chosen"] == LEARNER
    balanced = self_training.decide(labels, half, "balanced_accuracy")
    assert balanced["chosen"] == PLAIN
    assert balanced["against"][PLAIN]["effect"] == pytest.approx((60 / 360 - 30 / 40) / 2)
