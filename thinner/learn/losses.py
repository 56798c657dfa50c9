"""Distillation losses: pure functions of tensors. `LOSSES`, at the foot, lists them; `combine` adds them up.

A loss of logits is called `loss(student_logits, teacher_logits, labels, **parameters)` and returns a scalar.
Its row says what else it needs; what looks at features has a factory `make_*`, which returns a module (with
the regressors, embeddings and memories that the loss trains) around the pure function of the same name.

True of all of them:

- The teacher is detached: no gradient reaches it.
- Arithmetic is float32 or wider, also for half inputs and under autocast: the squares, norms and
  exponentials in here overflow float16 and lose small differences in bfloat16.
- Inputs are clamped to +-65504, float16's range. Cached teacher logits are float16, so nothing that a
  teacher says is lost; squares, fourth powers and sums of them stay finite in float32. NaN is passed on, to
  be seen. Beyond the clamp the gradient is zero: a student out there has already diverged.
- A per-image loss is a mean over the batch, so one batch of 8 is worth the mean of two of 4. A relational
  loss (rkd, pkt, sp, one half of dist) compares the images of a batch with each other. For a batch too small
  to hold a comparison it is exactly 0, with a zero gradient: an odd last batch of one image stops nothing.
- A label of -1 means "not labelled".
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ParamSpec

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from thinner.data.views import send
from thinner.errors import UserError, did_you_mean
from thinner.learn.imbalance import Balance, cross_entropy
from thinner.networks import models

# `temperature: 4` in a YAML file is an int; a type checker that runs wants to hear that ints are welcome.
Number = float | int
Shape = tuple[int, ...]
P = ParamSpec("P")

LIMIT = 65504.0  # float16's largest number; see the top of this file


def no_autocast(x: Tensor) -> torch.autocast:
    """A context in which float32 stays float32; autocast would run its matrix products in half precision."""
    return torch.autocast(device_type=x.device.type, enabled=False)


def full_precision(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Switch autocast off inside `function`, which takes tensors."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        first = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        with no_autocast(first):
            return function(*args, **kwargs)

    return wrapped


# ---------------------------------------------------------------------------------------------------- logits


@full_precision
def kd(
    student_logits: Float[Tensor, "batch classes"],
    teacher_logits: Float[Tensor, "batch classes"],
    labels: Int[Tensor, " batch"],
    *,
    temperature: Number = 4.0,
) -> Float[Tensor, ""]:
    """Knowledge distillation: the student's softened distribution matches the teacher's.

    L = T^2 * mean_batch KL( softmax(z_teacher / T) || softmax(z_student / T) )

    T^2 keeps the size of the gradient when T changes. Hinton, Vinyals, Dean 2015,
    https://arxiv.org/abs/1503.02531, section 2. Deviation: KL instead of cross-entropy; they differ by the
    teacher's entropy, which has no gradient, and KL is 0 when the student agrees. `labels` is unused. Adding
    a constant to a row of logits changes nothing.
    """
    student, teacher = _pair(student_logits, teacher_logits)
    return temperature**2 * _divergence(teacher / temperature, student / temperature).mean()


@full_precision
def mse(
    student_logits: Float[Tensor, "batch classes"],
    teacher_logits: Float[Tensor, "batch classes"],
    labels: Int[Tensor, " batch"],
) -> Float[Tensor, ""]:
    """Logit matching: L = mean over batch and classes of (z_student - z_teacher)^2.

    Kim et al. 2021, https://arxiv.org/abs/2105.08919, equation 4 (what kd tends to for T to infinity, without
    centring). Deviation: mean over classes where the paper has the squared norm, so a weight means the same
    for 10 and 1,000 classes. `labels` is unused. A constant added to one network's logits does count here.
    """
    student, teacher = _pair(student_logits, teacher_logits)
    return F.mse_loss(student, teacher)


@full_precision
def dkd(
    student_logits: Float[Tensor, "batch classes"],
    teacher_logits: Float[Tensor, "batch classes"],
    labels: Int[Tensor, " batch"],
    *,
    temperature: Number = 4.0,
    alpha: Number = 1.0,
    beta: Number = 8.0,
    target: str = "label",
) -> Float[Tensor, ""]:
    """Decoupled distillation: kd split into the target class and the others, each with its own weight.

    L = T^2 * mean_batch [ alpha * KL(b_teacher || b_student) + beta * KL(p^_teacher || p^_student) ]
    b = (p_t, 1 - p_t) for the target class t; p^ = softmax over the other classes; p = softmax(z / T)

    kd is the case alpha = 1, beta = 1 - p_t(teacher). Zhao et al. 2022, https://arxiv.org/abs/2203.08679,
    equations 5-7; alpha, beta and T are theirs for CIFAR-100, and they let the weight grow over the first 20
    epochs.

    Deviation: the paper has a label for every image. With `target="label"`, an image without one takes the
    teacher's top class as t; with `target="teacher"`, every image does, and no ground truth is read. Raises
    UserError for fewer than two classes or another `target`.
    """
    if student_logits.shape[1] < 2:
        raise UserError(f"dkd: needs two classes or more, there are {student_logits.shape[1]}")
    if target not in ("label", "teacher"):
        raise UserError(f"dkd.target: unknown {target!r}. Choose one of: label, teacher")
    student, teacher = _pair(student_logits, teacher_logits)
    student, teacher = student / temperature, teacher / temperature
    top = teacher.argmax(1)
    t = torch.where(labels >= 0, labels, top) if target == "label" else top
    t = t.to(torch.int64)[:, None]
    # The numbers of the other classes, as indices: masking with -inf would make 0 * inf in the gradient.
    others = torch.arange(student.shape[1] - 1, device=student.device)[None, :]
    others = others + (others >= t)
    student_others, teacher_others = student.gather(1, others), teacher.gather(1, others)
    student_split = torch.cat([student.gather(1, t), student_others.logsumexp(1, keepdim=True)], 1)
    teacher_split = torch.cat([teacher.gather(1, t), teacher_others.logsumexp(1, keepdim=True)], 1)
    of_target = _divergence(teacher_split, student_split).mean()
    of_others = _divergence(teacher_others, student_others).mean()
    return temperature**2 * (alpha * of_target + beta * of_others)


@full_precision
def dist(
    student_logits: Float[Tensor, "batch classes"],
    teacher_logits: Float[Tensor, "batch classes"],
    labels: Int[Tensor, " batch"],
    *,
    temperature: Number = 1.0,
    beta: Number = 1.0,
    gamma: Number = 1.0,
) -> Float[Tensor, ""]:
    """DIST: correlate with the teacher, rather than equal it, along classes and along the batch.

    L = T^2 * [ beta * mean_rows (1 - r(y_student, y_teacher)) + gamma * mean_columns (1 - r(...)) ]
    y = softmax(z / T)

    with Pearson's correlation r, which ignores each network's scale and offset in probability (not in
    logits). Huang et al. 2022, https://arxiv.org/abs/2205.10536, equations 8-10; T^2 from the authors' code.

    Deviations: r = <a, b> / sqrt((|a|^2 + e) (|b|^2 + e)), e = 1e-8, for centred a and b, where their code
    adds 1e-8 to the product of norms; with that, a student whose outputs are all equal (a head that starts at
    zero) has a gradient of 1e8. So a row or column without spread counts as uncorrelated, and a
    self-comparison is 0 up to e / |a|^2. A batch of one image has no columns to correlate: the second part is
    0. `labels` is unused.
    """
    student, teacher = _pair(student_logits, teacher_logits)
    student, teacher = (student / temperature).softmax(1), (teacher / temperature).softmax(1)
    rows = 1 - _pearson(student, teacher).mean()
    columns = 1 - _pearson(student.T, teacher.T).mean() if len(student) > 1 else torch.zeros_like(rows)
    return temperature**2 * (beta * rows + gamma * columns)


@full_precision
def logit_std(
    student_logits: Float[Tensor, "batch classes"],
    teacher_logits: Float[Tensor, "batch classes"],
    labels: Int[Tensor, " batch"],
    *,
    temperature: Number = 2.0,
) -> Float[Tensor, ""]:
    """kd of standardised logits: z -> (z - mean(z)) / std(z), row by row, for both networks.

    A small student need not reach the teacher's range of logits, only their order and proportions.
    Sun et al. 2024, https://arxiv.org/abs/2403.01427, algorithm 1; T is their base temperature, and the
    weight beside ce there is 9 (with 0.1 for ce). The standard deviation divides by the number of classes.

    Deviation: std = sqrt(variance + 1e-6) instead of std + 1e-7, which has no gradient where all logits of a
    row are equal, as those of a head that starts at zero are. Adding a constant to a row or multiplying it by
    a positive number changes nothing beyond that 1e-6.
    """
    student, teacher = _pair(student_logits, teacher_logits)
    student, teacher = (F.layer_norm(z, z.shape[1:], eps=1e-6) for z in (student, teacher))
    return kd(student, teacher, labels, temperature=temperature)


@full_precision
def rkd(
    student_embeddings: Float[Tensor, "batch student_width"],
    teacher_embeddings: Float[Tensor, "batch teacher_width"],
    labels: Int[Tensor, " batch"],
    *,
    distance: Number = 1.0,
    angle: Number = 2.0,
) -> Float[Tensor, ""]:
    """Relational distillation: distances between images, and angles among three, are those of the teacher.

    L = distance * mean_{i != j} h(d_ij / mu (student), d_ij / mu (teacher))
      + angle * mean_{i, j, k distinct} h(cos_ijk (student), cos_ijk (teacher))
    d_ij = |x_i - x_j|, mu = mean d_ij, cos_ijk of the angle at j, h = Huber loss with delta 1

    Park et al. 2019, https://arxiv.org/abs/1904.05068, equations 5-10; they weigh distance to angle 1 : 2.
    `rkd` compares logits, `rkd_pooled` the pooled features of named layers; widths may differ.

    Deviations: means over distinct tuples where the paper has sums, so that a weight does not depend on the
    batch size (the authors' code divides by n^2 and n^3, which is smaller by (n-1)/n and (n-1)(n-2)/n^2).
    Coinciding images have distance 0 with gradient 0. Time and memory of the angles grow with n^3: 256 images
    make 17 million. Two images have no angle, one has no distance: that part is 0.
    """
    student, teacher = _pair(student_embeddings, teacher_embeddings)
    count = len(student)
    total = _zero(student)
    if count >= 2 and distance > 0:
        # Not by matrix products: |a|^2 + |b|^2 - 2ab has lost all digits for images that lie close together.
        exact = "donot_use_mm_for_euclid_dist"
        lengths = [_off_diagonal(torch.cdist(x, x, compute_mode=exact)) for x in (student, teacher)]
        student_lengths, teacher_lengths = (d / d.mean().clamp_min(1e-6) for d in lengths)
        total = total + distance * F.smooth_l1_loss(student_lengths, teacher_lengths)
    if count >= 3 and angle > 0:
        # arms[j, i] points from j to i; their products are the cosines at j
        student_arms, teacher_arms = (_unit(x[None, :, :] - x[:, None, :]) for x in (student, teacher))
        student_cosines = student_arms @ student_arms.transpose(1, 2)
        teacher_cosines = teacher_arms @ teacher_arms.transpose(1, 2)
        apart = ~torch.eye(count, dtype=torch.bool, device=student.device)
        distinct = apart[:, :, None] & apart[:, None, :] & apart[None, :, :]
        each = F.smooth_l1_loss(student_cosines, teacher_cosines, reduction="none")
        total = total + angle * (each * distinct).sum() / (count * (count - 1) * (count - 2))
    return total


@full_precision
def pkt(
    student_embeddings: Float[Tensor, "batch student_width"],
    teacher_embeddings: Float[Tensor, "batch teacher_width"],
    labels: Int[Tensor, " batch"],
) -> Float[Tensor, ""]:
    """Probabilistic knowledge transfer: the same neighbours are likely as in the teacher's space.

    L = mean_j sum_{i != j} p_{i|j} log(p_{i|j} / q_{i|j}),   p_{i|j} = K(x_i, x_j) / sum_{k != j} K(x_k, x_j)
    K(a, b) = (cos(a, b) + 1) / 2;  p of the teacher, q of the student

    Passalis & Tefas 2018, https://arxiv.org/abs/1803.10837, section 3, with their cosine kernel.
    `pkt` compares logits, `pkt_pooled` the pooled features of named layers; widths may differ.

    Deviations: mean over j where the paper has a sum; the authors' code also keeps i = j and divides by n^2,
    so their weights (30,000) do not carry over. K is at least 1e-7, so that opposite images give a large
    number and not infinity. Fewer than three images leave each with one neighbour at most, of probability 1:
    the loss is 0.
    """
    student, teacher = _pair(student_embeddings, teacher_embeddings)
    count = len(student)
    if count < 3:
        return _zero(student)
    logs = []
    for embeddings in (student, teacher):
        unit = _unit(embeddings)
        kernel = ((unit @ unit.T + 1) / 2).clamp_min(1e-7)
        kernel = _off_diagonal(kernel)
        logs.append(kernel.log() - kernel.sum(1, keepdim=True).log())
    log_q, log_p = logs
    return (log_p.exp() * (log_p - log_q)).sum(1).mean()


@full_precision
def ce(
    student_logits: Float[Tensor, "batch classes"],
    teacher_logits: Float[Tensor, "batch classes"],
    labels: Int[Tensor, " batch"],
    *,
    label_smoothing: Number = 0.0,
    balance: Balance | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy with the ground truth, for the images that have one.

    L = mean over labelled images of -sum_c y_c log softmax(z_student)_c,   y = (1 - s) * onehot + s / classes

    Label smoothing s: Szegedy et al. 2016, https://arxiv.org/abs/1512.00567, section 7. Rows with label -1
    are left out of the sum and of the count; a batch without labels gives exactly 0, with a zero gradient.
    `teacher_logits` is unused. With `balance`, rows are weighted or logits adjusted for unequal classes:
    `thinner.learn.imbalance.cross_entropy`.
    """
    student = _wide(student_logits)
    labelled = (labels >= 0).sum().clamp_min(1)
    if balance is not None:
        return cross_entropy(student, labels.to(torch.int64), float(label_smoothing), balance).sum() / labelled
    summed = F.cross_entropy(
        student,
        labels.to(torch.int64),
        ignore_index=-1,
        reduction="sum",
        label_smoothing=float(label_smoothing),
    )
    return summed / labelled


# -------------------------------------------------------------------------------------------------- features


@full_precision
def fitnet(
    student_features: Float[Tensor, " batch *shape"],
    teacher_features: Float[Tensor, " batch *shape"],
) -> Float[Tensor, ""]:
    """Hint: L = mean of (r(student) - teacher)^2, here of features already of the teacher's shape.

    Romero et al. 2015, https://arxiv.org/abs/1412.6550, equation 3. Deviations: a mean where the paper has
    half the squared norm; trained together with the student, not in a stage before. `make_fitnet` adds the
    regressor r.
    """
    student, teacher = _pair(student_features, teacher_features)
    return F.mse_loss(student, teacher)


@full_precision
def at(
    student_features: Float[Tensor, "batch student_channels student_height student_width"],
    teacher_features: Float[Tensor, "batch teacher_channels teacher_height teacher_width"],
) -> Float[Tensor, ""]:
    """Attention transfer: the student looks where the teacher looks.

    L = mean over batch and places of (Q_student / |Q_student| - Q_teacher / |Q_teacher|)^2
    Q = mean over channels of A^2

    Zagoruyko & Komodakis 2017, https://arxiv.org/abs/1612.03928, equation 2. As in the authors' code, which
    the weight of 1,000 belongs to, the norm of the difference is squared and averaged. Where the maps' sizes
    differ, the larger is averaged down to the smaller. The scale of the features changes nothing.
    """
    student, teacher = _pair(student_features, teacher_features)
    student, teacher = _same_size(student, teacher)
    maps = [F.normalize(x.square().mean(1).flatten(1), dim=1) for x in (student, teacher)]
    return F.mse_loss(maps[0], maps[1])


@full_precision
def sp(
    student_features: Float[Tensor, " batch *student_shape"],
    teacher_features: Float[Tensor, " batch *teacher_shape"],
) -> Float[Tensor, ""]:
    """Similarity preserving: images that excite the teacher alike excite the student alike.

    L = 1 / n^2 * | G_student - G_teacher |_F^2
    G = A A^T with its rows brought to length 1;  A = features, one row per image

    Tung & Mori 2019, https://arxiv.org/abs/1907.09682, equations 2-4; their weight is 3,000. One image is
    always similar to itself: the loss of a batch of one is 0. Deviation: a row of G shorter than 1e-6 is
    divided by 1e-6.
    """
    student, teacher = _pair(student_features, teacher_features)
    grams = [x.flatten(1) @ x.flatten(1).T for x in (student, teacher)]
    student_gram, teacher_gram = (F.normalize(gram, dim=1, eps=1e-6) for gram in grams)
    return F.mse_loss(student_gram, teacher_gram)


@full_precision
def hcl(
    student_features: Float[Tensor, "batch channels height width"],
    teacher_features: Float[Tensor, "batch channels height width"],
) -> Float[Tensor, ""]:
    """Hierarchical context loss of review: compare at full size and on grids of 4x4, 2x2 and 1x1 means.

    L = (MSE + sum_l w_l * MSE(pool_l)) / (1 + sum_l w_l)
    over the grids l smaller than the map;  w = 1/2, 1/4, 1/8 in turn

    Chen et al. 2021, https://arxiv.org/abs/2104.09044, section 3.4; grids and weights from the authors' code.
    """
    student, teacher = _pair(student_features, teacher_features)
    total, weight, weights = F.mse_loss(student, teacher), 1.0, 1.0
    for side in (4, 2, 1):
        if side < student.shape[2]:
            weight /= 2
            pooled = [_averaged(x, (side, side)) for x in (student, teacher)]
            total = total + weight * F.mse_loss(pooled[0], pooled[1])
            weights += weight
    return total / weights


@full_precision
def crd(
    anchors: Float[Tensor, "batch width"],
    positives: Float[Tensor, "batch width"],
    negatives: Float[Tensor, "negatives width"],
    *,
    usable: Bool[Tensor, "batch negatives"],
    scale: Float[Tensor, ""],
    temperature: Number = 0.07,
) -> Float[Tensor, ""]:
    """One direction of contrastive representation distillation: tell the pair of one image from pairs of two.

    L = -mean_i [ log h(a_i, p_i) + N * mean_j log(1 - h(a_i, n_j)) ],   h(a, b) = e / (e + N)
    e = exp(a . b / T) / scale,  N = number of negatives; rows are of length 1

    Tian, Krishnan, Isola 2020, https://arxiv.org/abs/1910.10699, equations 9 and 18-19, with scale the mean
    of exp(a . b / T) as the authors' code estimates it, once. The mean over j takes the negatives that are
    `usable` for that image; none usable: that part is 0. Positives and negatives are detached: they come from
    a memory.
    """
    anchor = _wide(anchors)
    positive, negative = _wide(positives.detach()).to(anchor), _wide(negatives.detach()).to(anchor)
    log_count = math.log(max(len(negative), 1))
    # log h = log sigmoid(log e - log N): without quotients of exponentials, whose range 1 / 0.07 would use up
    offset = scale.detach().to(anchor).log() + log_count
    of_positive = F.logsigmoid((anchor * positive).sum(1) / temperature - offset)
    of_negative = F.logsigmoid(offset - anchor @ negative.T / temperature)
    mean_negative = (of_negative * usable).sum(1) / usable.sum(1).clamp_min(1)
    return -(of_positive + len(negative) * mean_negative).mean()


class Pairs(nn.Module):
    """A loss of two feature tensors, summed over pairs of layers.

    `regressors`, if any, bring the student's features to the teacher's width.
    """

    def __init__(self, function: Callable[..., Tensor], regressors: Sequence[nn.Module] = ()) -> None:
        super().__init__()
        self.function = function
        self.regressors = nn.ModuleList(regressors)

    def forward(
        self,
        student_features: Sequence[Tensor],
        teacher_features: Sequence[Tensor],
        index: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        losses = []
        with no_autocast(student_features[0]):
            for number, pair in enumerate(zip(student_features, teacher_features, strict=True)):
                student, teacher = _pair(*pair)
                if self.regressors:
                    if student.dim() == 4:
                        student, teacher = _same_size(student, teacher)
                    student = self.regressors[number](student)
                losses.append(self.function(student, teacher))
        return torch.stack(losses).sum()


def make_fitnet(student_shapes: Sequence[Shape], teacher_shapes: Sequence[Shape], seed: int = 0) -> Pairs:
    """`fitnet` with a regressor per pair of layers: a 1x1 convolution for maps, a linear layer for vectors.

    Deviation: the larger map is averaged down to the smaller, where the paper shrinks with a wide kernel; so
    the regressor has no batch norm and no choice of kernel to go wrong, and a batch of one image is a batch
    like any other.
    """
    _check_layers("fitnet", student_shapes, teacher_shapes)
    regressors: list[nn.Module] = []
    with _seeded(seed):
        for student, teacher in zip(student_shapes, teacher_shapes, strict=True):
            if len(student) != len(teacher) or len(student) not in (1, 3):
                raise UserError(
                    f"fitnet: layers of shapes {student} and {teacher} cannot be paired. "
                    "Name layers that give two maps [channels, height, width] or two vectors [width]"
                )
            maps = len(student) == 3
            regressors.append(nn.Conv2d(student[0], teacher[0], 1) if maps else nn.Linear(student[0], teacher[0]))
    return Pairs(fitnet, regressors)


def make_at(student_shapes: Sequence[Shape], teacher_shapes: Sequence[Shape], seed: int = 0) -> Pairs:
    """`at` summed over pairs of layers; nothing to train."""
    _check_layers("at", student_shapes, teacher_shapes)
    for shape in (*student_shapes, *teacher_shapes):
        if len(shape) != 3:
            raise UserError(f"at: a layer of shape {shape} has no places to attend to. Name layers that give maps")
    return Pairs(at)


def make_sp(student_shapes: Sequence[Shape], teacher_shapes: Sequence[Shape], seed: int = 0) -> Pairs:
    """`sp` summed over pairs of layers of any shapes; nothing to train."""
    _check_layers("sp", student_shapes, teacher_shapes)
    return Pairs(sp)


def make_rkd_pooled(
    student_shapes: Sequence[Shape],
    teacher_shapes: Sequence[Shape],
    seed: int = 0,
    distance: Number = 1.0,
    angle: Number = 2.0,
) -> Pairs:
    """`rkd` of pooled features, summed over pairs of layers; nothing to train."""
    _check_layers("rkd_pooled", student_shapes, teacher_shapes)
    return Pairs(lambda s, t: rkd(s, t, _no_labels(s), distance=distance, angle=angle))


def make_pkt_pooled(student_shapes: Sequence[Shape], teacher_shapes: Sequence[Shape], seed: int = 0) -> Pairs:
    """`pkt` of pooled features, summed over pairs of layers; nothing to train."""
    _check_layers("pkt_pooled", student_shapes, teacher_shapes)
    return Pairs(lambda s, t: pkt(s, t, _no_labels(s)))


class _BatchNorm(nn.BatchNorm2d):
    """Batch norm that uses its running statistics where a channel has a single value.

    torch refuses to train there, but an epoch's last batch may hold one image, and review's deepest layer
    may be 1x1.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() > x.shape[1] or not self.training:
            return super().forward(x)
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


class Fusion(nn.Module):
    """Review's attention based fusion (ABF) of one student layer with what came from the deeper ones."""

    def __init__(self, channels: int, middle: int, channels_out: int, deepest: bool) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.Conv2d(channels, middle, 1, bias=False), _BatchNorm(middle))
        self.expand = nn.Sequential(nn.Conv2d(middle, channels_out, 3, padding=1, bias=False), _BatchNorm(channels_out))
        self.attend = None if deepest else nn.Sequential(nn.Conv2d(2 * middle, 2, 1), nn.Sigmoid())
        for block in (self.reduce, self.expand):
            nn.init.kaiming_uniform_(block.get_parameter("0.weight"), a=1)

    def forward(self, features: Tensor, deeper: Tensor | None, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The features in the teacher's shape, for the loss, and the fused ones, for the next layer up."""
        fused = self.reduce(features)
        if self.attend is not None and deeper is not None:
            deeper = F.interpolate(deeper, fused.shape[2:], mode="nearest")
            weights = self.attend(torch.cat([fused, deeper], 1))
            fused = fused * weights[:, :1] + deeper * weights[:, 1:]
        if fused.shape[2:] != tuple(size):
            fused = F.interpolate(fused, list(size), mode="nearest")
        return self.expand(fused), fused


class Review(nn.Module):
    """Each teacher layer is explained by the student's layer and all deeper ones; see `make_review`."""

    def __init__(self, fusions: Sequence[Fusion]) -> None:
        super().__init__()
        self.fusions = nn.ModuleList(fusions)

    def forward(
        self,
        student_features: Sequence[Tensor],
        teacher_features: Sequence[Tensor],
        index: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        losses = []
        deeper: Tensor | None = None
        layers = list(zip(self.fusions, student_features, teacher_features, strict=True))
        with no_autocast(student_features[0]):
            for fusion, *pair in reversed(layers):
                student, teacher = (x[:, :, None, None] if x.dim() == 2 else x for x in _pair(*pair))
                matched, deeper = fusion(student, deeper, teacher.shape[2:])
                losses.append(hcl(matched, teacher))
        return torch.stack(losses).sum()


def make_review(
    student_shapes: Sequence[Shape],
    teacher_shapes: Sequence[Shape],
    seed: int = 0,
    middle: int = 512,
) -> Review:
    """Knowledge review: `hcl` between each teacher layer and the student's layers from there down, fused.

    Layers are named from shallow to deep, maps or (at the end) vectors. Chen et al. 2021,
    https://arxiv.org/abs/2104.09044, section 3: fusion by 1x1 convolution to `middle` channels (the deepest
    layer's, if fewer), attention between the layer and what comes from below, 3x3 convolution to the
    teacher's channels. The authors let the weight grow over the first 20 epochs.
    """
    _check_layers("review", student_shapes, teacher_shapes)
    for shape in (*student_shapes, *teacher_shapes):
        if len(shape) not in (1, 3):
            raise UserError(f"review: a layer of shape {shape} is neither a map [channels, height, width] nor a vector")
    middle = min(middle, student_shapes[-1][0])
    deepest = len(student_shapes) - 1
    with _seeded(seed):
        pairs = enumerate(zip(student_shapes, teacher_shapes, strict=True))
        return Review([Fusion(s[0], middle, t[0], number == deepest) for number, (s, t) in pairs])


class Contrast(nn.Module):
    """CRD with its embeddings and memories; see `make_crd`. A resumed run needs its state dict only."""

    student_memory: Tensor
    teacher_memory: Tensor
    known_labels: Tensor
    student_scale: Tensor
    teacher_scale: Tensor
    step: Tensor

    def __init__(
        self,
        student_width: int,
        teacher_width: int,
        *,
        images: int,
        width: int,
        negatives: int,
        temperature: Number,
        momentum: Number,
        seed: int,
    ) -> None:
        super().__init__()
        self.negatives = min(negatives, images)
        self.temperature, self.momentum, self.seed = temperature, momentum, seed
        self.embed_student = nn.Linear(student_width, width)
        self.embed_teacher = nn.Linear(teacher_width, width)
        for name in ("student_memory", "teacher_memory"):
            self.register_buffer(name, F.normalize(torch.randn(images, width)))
        self.register_buffer("known_labels", torch.full((images,), -1, dtype=torch.int64))
        for name in ("student_scale", "teacher_scale"):
            self.register_buffer(name, torch.zeros(()))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self._done: int | None = None  # `step`; a GPU that is asked for it in every step would have to finish first
        self.register_load_state_dict_post_hook(Contrast._count_anew)

    def _count_anew(self, keys: object) -> None:
        self._done = None

    def forward(
        self,
        student_features: Sequence[Tensor],
        teacher_features: Sequence[Tensor],
        index: Int[Tensor, " batch"],
        labels: Int[Tensor, " batch"] | None = None,
    ) -> Tensor:
        done = int(self.step) if self._done is None else self._done
        with no_autocast(student_features[0]):
            student, teacher = _pair(student_features[0], teacher_features[0])
            student = F.normalize(self.embed_student(student))
            teacher = F.normalize(self.embed_teacher(teacher))
            index = index.to(torch.int64)
            if labels is not None:
                self.known_labels[index] = labels.to(torch.int64)
            drawn = self._draw(done)
            if done == 0:
                self.student_scale.copy_(self._mean_score(student, self.teacher_memory, index, drawn))
                self.teacher_scale.copy_(self._mean_score(teacher, self.student_memory, index, drawn))
            loss = self._loss(student, teacher, index, labels, drawn)
            self._remember(index, student, teacher)
            self._done = done + 1
            return loss

    def _draw(self, done: int) -> Tensor:
        # Seeded by the step: a run resumed from the state dict draws what an unbroken one would have drawn.
        # By NumPy, because torch's CPU generator looks at the lower 32 bits of a seed only.
        generator = np.random.default_rng((self.seed, done))
        drawn = torch.from_numpy(generator.integers(len(self.student_memory), size=self.negatives))
        return send(drawn, self.student_memory.device)

    def _mean_score(self, anchors: Tensor, memory: Tensor, index: Tensor, drawn: Tensor) -> Tensor:
        positive = (anchors * memory[index]).sum(1, keepdim=True)
        return (torch.cat([positive, anchors @ memory[drawn].T], 1).detach() / self.temperature).exp().mean()

    def _loss(self, student: Tensor, teacher: Tensor, index: Tensor, labels: Tensor | None, drawn: Tensor) -> Tensor:
        usable = drawn[None, :] != index[:, None]
        if labels is not None:
            usable &= (self.known_labels[drawn][None, :] != labels[:, None]) | (labels[:, None] < 0)
        directions = (
            (student, self.teacher_memory, self.student_scale),
            (teacher, self.student_memory, self.teacher_scale),
        )
        losses = [
            crd(
                anchors,
                memory[index],
                memory[drawn],
                usable=usable,
                scale=scale,
                temperature=self.temperature,
            )
            for anchors, memory, scale in directions
        ]
        return losses[0] + losses[1]

    @torch.no_grad()
    def _remember(self, index: Tensor, student: Tensor, teacher: Tensor) -> None:
        for memory, fresh in ((self.student_memory, student), (self.teacher_memory, teacher)):
            mixed = self.momentum * memory[index] + (1 - self.momentum) * fresh.to(memory.dtype)
            memory[index] = F.normalize(mixed)
        self.step += 1


def make_crd(
    student_shapes: Sequence[Shape],
    teacher_shapes: Sequence[Shape],
    *,
    images: int,
    seed: int = 0,
    width: int = 128,
    negatives: int = 4096,
    temperature: Number = 0.07,
    momentum: Number = 0.5,
) -> Contrast:
    """Contrastive representation distillation: `crd` both ways between embeddings of one pooled layer each.

    The student's embedding is contrasted with a memory of the teacher's, and the other way round; a memory
    keeps one embedding for each of `images` images, all of which are learned from, as a moving average. Tian,
    Krishnan, Isola 2020, https://arxiv.org/abs/1910.10699, section 3.1, memory after Wu et al. 2018,
    https://arxiv.org/abs/1805.01978; weight 0.8 in the paper, with 16,384 negatives. The teacher's embedding
    is trained, the teacher is not.

    Deviations: one draw of negatives serves the whole batch (a matrix product instead of a gather of
    batch x negatives x width numbers); those that are the image itself, or have its label where both are
    known, are not used for that image, and the mean over the rest is scaled up. When a batch holds two views
    of one image, one of them is remembered. Memory: 2 x images x width x 4 bytes.
    """
    _check_layers("crd", student_shapes, teacher_shapes)
    if len(student_shapes) != 1 or any(len(shape) != 1 for shape in (*student_shapes, *teacher_shapes)):
        raise UserError(
            f"crd: compares one pooled layer with one, not {list(student_shapes)} with {list(teacher_shapes)}"
        )
    with _seeded(seed):
        return Contrast(
            student_shapes[0][0],
            teacher_shapes[0][0],
            images=images,
            width=width,
            negatives=negatives,
            temperature=temperature,
            momentum=momentum,
            seed=seed,
        )


# --------------------------------------------------------------------------------------------- many at once


class Combined(nn.Module):
    """A weighted sum of losses, made by `combine`; its parameters are trained, but not saved."""

    def __init__(self, parts: Sequence[Part], modules: Mapping[str, nn.Module], balance: Balance | None = None) -> None:
        super().__init__()
        self.parts = tuple(parts)
        self.trained = nn.ModuleDict(modules)
        self.balance = balance

    def forward(
        self,
        student_logits: Float[Tensor, "batch classes"],
        teacher_logits: Float[Tensor, "batch classes"] | None,
        labels: Int[Tensor, " batch"],
        *,
        epoch: Number = math.inf,
        student_features: Mapping[str, Tensor] | None = None,
        teacher_features: Mapping[str, Tensor] | None = None,
        index: Int[Tensor, " batch"] | None = None,
    ) -> dict[str, Tensor]:
        """`loss`, to call backward on, and each part by name: detached, without its weight.

        `epoch` counts epochs trained, with fractions, or from 1 in whole ones: a part with a warm-up has the
        share epoch / warmup_epochs of its weight until that is 1. Features are keyed by the layers' module
        paths. Without `teacher_logits` (None), only ce can be computed.
        """
        total = _zero(student_logits)
        values: dict[str, Tensor] = {}
        for part in self.parts:
            row = LOSSES[part.name]
            if part.key in self.trained:
                student = _pick(part.student_layers, student_features, part, "student")
                teacher = _pick(part.teacher_layers, teacher_features, part, "teacher")
                if "pooled" in row.needs:
                    student, teacher = [_pooled(x) for x in student], [_pooled(x) for x in teacher]
                if "index" in row.needs and index is None:
                    raise UserError(f"{part.key}: needs the image numbers (index) of the batch")
                value = self.trained[part.key](student, teacher, index, labels)
            else:
                if teacher_logits is None and "logits" in row.needs:
                    raise UserError(f"{part.key}: needs the teacher's logits, and there is no teacher")
                reference = student_logits if teacher_logits is None else teacher_logits
                beside = {} if self.balance is None or "balance" not in row.needs else {"balance": self.balance}
                value = row.function(student_logits, reference, labels, **part.parameters, **beside)
            warm = 1.0 if not part.warmup_epochs else min(epoch / part.warmup_epochs, 1.0)
            total = total + part.weight * warm * value
            values[part.key] = value.detach()
        return {"loss": total, **values}


@dataclass(frozen=True)
class Part:
    """One term of a `Combined`: `key` is its name in the result, numbered when a loss occurs twice."""

    key: str
    name: str
    weight: Number
    parameters: Mapping[str, Any]
    warmup_epochs: Number | None
    student_layers: tuple[str, ...]
    teacher_layers: tuple[str, ...]


def combine(
    parts: Sequence[tuple[str, Number, Mapping[str, Any], Number | None]],
    student_shapes: Mapping[str, Shape] | None = None,
    teacher_shapes: Mapping[str, Shape] | None = None,
    images: int | None = None,
    seed: int = 0,
    balance: Balance | None = None,
) -> Combined:
    """Make one training loss of parts `(name, weight, parameters, warmup_epochs or None)`.

    A part that compares features names them in its parameters, `student_layers` and `teacher_layers`: lists
    of module paths, paired in order. The shapes, without the batch, come by module path from one dry forward;
    `images` is the number of images that an index may name (crd's memory); `balance` is given to what asks for it.
    Raises UserError that names the part and the choices.
    """
    if not parts:
        raise UserError("no losses: name at least one, such as ce or kd")
    made: list[Part] = []
    modules: dict[str, nn.Module] = {}
    for name, weight, parameters, warmup in parts:
        checked = check_parameters(name, parameters)
        seen = sum(part.name == name for part in made)
        key = name if seen == 0 else f"{name}_{seen + 1}"
        student_layers = tuple(checked.pop("student_layers", ()))
        teacher_layers = tuple(checked.pop("teacher_layers", ()))
        row = LOSSES[name]
        if row.make is not None:
            shapes = (
                [_shape(layer, student_shapes, key, "student", row) for layer in student_layers],
                [_shape(layer, teacher_shapes, key, "teacher", row) for layer in teacher_layers],
            )
            extra: dict[str, Any] = {}
            if "index" in row.needs:
                if images is None:
                    raise UserError(f"{key}: needs to know the number of images")
                extra["images"] = images
            modules[key] = row.make(*shapes, seed=seed, **extra, **checked)
        made.append(Part(key, name, weight, checked, warmup, student_layers, teacher_layers))
    return Combined(made, modules, balance)


def check_parameters(name: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """`parameters` of the loss `name` with its defaults filled in; UserError on what does not fit."""
    if name not in LOSSES:
        hint = did_you_mean(name, LOSSES, always=f"Choose one of: {', '.join(LOSSES)}")
        raise UserError(f"unknown loss {name!r}. {hint}")
    row = LOSSES[name]
    layers = ("student_layers", "teacher_layers") if row.make is not None else ()
    choices = (*row.parameters, *layers)
    for key in parameters:
        if key not in choices:
            known = f"Choose one of: {', '.join(choices)}" if choices else f"{name} has no parameters"
            raise UserError(f"{name}: unknown parameter {key!r}. {did_you_mean(key, choices, always=known)}")
    complete: dict[str, Any] = {}
    for key, parameter in row.parameters.items():
        complete[key] = parameter.check(f"{name}.{key}", parameters.get(key, parameter.default))
    for key in layers:
        value = parameters.get(key)
        paths = isinstance(value, list | tuple) and all(isinstance(path, str) for path in value)
        if not value or not paths:
            raise UserError(f"{name}.{key}: a list of module paths is needed, got {value!r}")
        complete[key] = tuple(value)
    if layers and len(complete["student_layers"]) != len(complete["teacher_layers"]):
        raise UserError(
            f"{name}: {len(complete['student_layers'])} student_layers cannot be paired "
            f"with {len(complete['teacher_layers'])} teacher_layers"
        )
    return complete


def with_temperature(name: str, given: Mapping[str, Any], temperature: float) -> dict[str, Any]:
    """`given`, in which `temperature` fills in where a loss of logits has one and nothing is said. (The temperature of
    crd is another thing: it divides cosines.)"""
    row = LOSSES[name]
    if "logits" in row.needs and "temperature" in row.parameters and "temperature" not in given:
        return {**given, "temperature": temperature}
    return dict(given)


# ---------------------------------------------------------------------------------------------------- helpers


def _wide(x: Tensor) -> Tensor:
    """float32 or wider, inside float16's range; see the top of this file."""
    return (x if x.dtype == torch.float64 else x.float()).clamp(-LIMIT, LIMIT)


def _pair(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    wide = _wide(student)
    return wide, _wide(teacher.detach()).to(wide)


def _divergence(
    teacher: Float[Tensor, "batch classes"], student: Float[Tensor, "batch classes"]
) -> Float[Tensor, " batch"]:
    """KL(softmax(teacher) || softmax(student)) of each row; finite, as clamped logits have finite logs."""
    log_p, log_q = teacher.log_softmax(1), student.log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1)


def _pearson(a: Float[Tensor, "rows columns"], b: Float[Tensor, "rows columns"]) -> Float[Tensor, " rows"]:
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return (a * b).sum(1) / ((a.square().sum(1) + 1e-8) * (b.square().sum(1) + 1e-8)).sqrt()


def _unit(x: Tensor) -> Tensor:
    """Vectors along the last dimension brought to length 1.

    A zero vector stays zero and passes its gradient on unscaled; a small divisor would make that huge.
    """
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / torch.where(length > 0, length, torch.ones_like(length))


def _off_diagonal(x: Float[Tensor, "count count"]) -> Float[Tensor, "count others"]:
    """Each row without the number on the diagonal. A mask would do, but how many it leaves only the device knows."""
    count = len(x)
    return x.flatten()[1:].view(count - 1, count + 1)[:, :-1].reshape(count, count - 1)


def _zero(student: Tensor) -> Tensor:
    """0 with a zero gradient: a training step may call backward on it."""
    return (_wide(student) * 0).sum()


def _no_labels(student: Tensor) -> Tensor:
    return torch.full((len(student),), -1, dtype=torch.int64, device=student.device)


def _same_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Average each map down to the smaller height and width of the two."""
    sides = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    shrunk = [x if x.shape[2:] == sides else _averaged(x, sides) for x in (student, teacher)]
    return shrunk[0], shrunk[1]


def _averaged(
    x: Float[Tensor, "batch channels height width"], sides: tuple[int, int]
) -> Float[Tensor, "batch channels rows columns"]:
    """`F.adaptive_avg_pool2d` as two matrix products: Apple's GPU has that operator only where ``sides`` divide the
    map's, and on an NVIDIA card its gradient is another one each time."""
    bins = (_bins(size, side).to(x.dtype) for size, side in zip(x.shape[2:], sides, strict=True))
    rows, columns = (send(means, x.device) for means in bins)
    return rows @ x @ columns.T


def _bins(size: int, side: int) -> Float[Tensor, "side size"]:
    """Row i takes the mean from ``floor(i size / side)`` up to ``ceil((i + 1) size / side)``."""
    number, place = torch.arange(side)[:, None], torch.arange(size)
    within = (place >= number * size // side) & (place < -(-(number + 1) * size // side))
    return within.double() / within.sum(1, keepdim=True)


def _pooled(x: Tensor) -> Tensor:
    return x if x.dim() == 2 else models.pooled(_wide(x))


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Initial weights by `seed` alone, leaving the process's generator where it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _shape(layer: str, shapes: Mapping[str, Shape] | None, key: str, side: str, row: Loss) -> Shape:
    if shapes is None or layer not in shapes:
        known = shapes or {}
        hint = did_you_mean(layer, known, always=f"Measured: {', '.join(known) or 'none'}")
        raise UserError(f"{key}.{side}_layers: the shape of {layer!r} is not known. {hint}")
    shape = tuple(shapes[layer])
    return (models.pooled_width(shape),) if "pooled" in row.needs else shape


def _pick(layers: Sequence[str], features: Mapping[str, Tensor] | None, part: Part, side: str) -> list[Tensor]:
    missing = [layer for layer in layers if features is None or layer not in features]
    if features is None or missing:
        raise UserError(f"{part.key}: the {side}'s features of {', '.join(missing)} are missing")
    return [features[layer] for layer in layers]


def _check_layers(name: str, student_shapes: Sequence[Shape], teacher_shapes: Sequence[Shape]) -> None:
    if not student_shapes or len(student_shapes) != len(teacher_shapes):
        raise UserError(
            f"{name}: {len(student_shapes)} student layers cannot be paired with {len(teacher_shapes)} teacher layers"
        )


# ------------------------------------------------------------------------------------------------------ table


@dataclass(frozen=True)
class Parameter:
    """A parameter's default, and what it may be: from `low` to `high`, both included, or of `choices`."""

    default: Number | str
    low: Number = -math.inf
    high: Number = math.inf
    choices: tuple[str, ...] = ()

    def check(self, where: str, value: Any) -> Number | str:
        if self.choices:
            if value not in self.choices:
                raise UserError(f"{where}: unknown {value!r}. Choose one of: {', '.join(self.choices)}")
            return str(value)
        kind = int if isinstance(self.default, int) else int | float
        if isinstance(value, bool) or not isinstance(value, kind) or not self.low <= value <= self.high:
            noun = "a whole number" if kind is int else "a number"
            raise UserError(f"{where}: {noun} from {self.low} to {self.high} is needed, got {value!r}")
        return value if kind is int else float(value)


@dataclass(frozen=True)
class Loss:
    """One loss. `needs`: what it reads, among

    - logits: the teacher's
    - labels: the ground truth (-1 where there is none)
    - features: whole maps of named layers, which only a live teacher has
    - pooled: features of named layers, averaged over places: small enough to be cached
    - index: image numbers
    - balance: what is done about unequal classes, where anything is

    `make`: the factory of what compares features or pooled ones, else None.
    """

    function: Callable[..., Tensor]
    needs: frozenset[str]
    paper: str
    arxiv: str
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    make: Callable[..., nn.Module] | None = None

    @property
    def link(self) -> str:
        return f"https://arxiv.org/abs/{self.arxiv}"


def _temperature(default: float) -> Parameter:
    return Parameter(default, 0.01, 1000)


_LOGITS, _FEATURES, _POOLED = frozenset({"logits"}), frozenset({"features"}), frozenset({"pooled"})
_WEIGHT = Parameter(1.0, 0, 1e6)
_DKD = {
    "temperature": _temperature(4.0),
    "alpha": _WEIGHT,
    "beta": Parameter(8.0, 0, 1e6),
    "target": Parameter("label", choices=("label", "teacher")),
}
_DIST = {"temperature": _temperature(1.0), "beta": _WEIGHT, "gamma": _WEIGHT}
_RKD = {"distance": _WEIGHT, "angle": Parameter(2.0, 0, 1e6)}
_CE = {"label_smoothing": Parameter(0.0, 0, 0.99)}
_CRD = {
    "width": Parameter(128, 1, 2**16),
    "negatives": Parameter(4096, 1, 2**20),
    "temperature": Parameter(0.07, 0.02, 100),
    "momentum": Parameter(0.5, 0, 1),
}
_REVIEW = {"middle": Parameter(512, 1, 2**16)}

LOSSES: Mapping[str, Loss] = {
    "kd": Loss(kd, _LOGITS, "Hinton et al. 2015", "1503.02531", {"temperature": _temperature(4.0)}),
    "mse": Loss(mse, _LOGITS, "Kim et al. 2021", "2105.08919"),
    "dkd": Loss(dkd, _LOGITS | {"labels"}, "Zhao et al. 2022", "2203.08679", _DKD),
    "dist": Loss(dist, _LOGITS, "Huang et al. 2022", "2205.10536", _DIST),
    "logit_std": Loss(logit_std, _LOGITS, "Sun et al. 2024", "2403.01427", {"temperature": _temperature(2.0)}),
    "rkd": Loss(rkd, _LOGITS, "Park et al. 2019", "1904.05068", _RKD),
    "rkd_pooled": Loss(rkd, _POOLED, "Park et al. 2019", "1904.05068", _RKD, make_rkd_pooled),
    "pkt": Loss(pkt, _LOGITS, "Passalis & Tefas 2018", "1803.10837"),
    "pkt_pooled": Loss(pkt, _POOLED, "Passalis & Tefas 2018", "1803.10837", {}, make_pkt_pooled),
    "ce": Loss(ce, frozenset({"labels", "balance"}), "Szegedy et al. 2016", "1512.00567", _CE),
    "fitnet": Loss(fitnet, _FEATURES, "Romero et al. 2015", "1412.6550", {}, make_fitnet),
    "at": Loss(at, _FEATURES, "Zagoruyko & Komodakis 2017", "1612.03928", {}, make_at),
    "sp": Loss(sp, _FEATURES, "Tung & Mori 2019", "1907.09682", {}, make_sp),
    "crd": Loss(crd, _POOLED | {"index"}, "Tian et al. 2020", "1910.10699", _CRD, make_crd),
    "review": Loss(hcl, _FEATURES, "Chen et al. 2021", "2104.09044", _REVIEW, make_review),
}
