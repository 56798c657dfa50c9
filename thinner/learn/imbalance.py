"""Unequal classes: what a cross-entropy needs so that rare classes count as much as frequent ones. docs/imbalance.md
says when to use what; how batches are drawn evenly is in thinner.learn.training.

Three ways lead to the same end, the smallest mean over classes of the error: weights, sampling and logit adjustment.
Each is complete by itself, so two of them correct twice (Menon et al. 2021, https://arxiv.org/abs/2007.07314,
theorem 1: an adjustment by the full priors goes with weights of 1, and weights 1 / prior with no adjustment).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Integer
from numpy.typing import NDArray
from torch import Tensor

from thinner.errors import UserError

Counts = Integer[np.ndarray, " classes"]


@dataclass(frozen=True)
class Balance:
    """What `cross_entropy` does beside its formula, on the device of the logits.

    ``weights``: what each class's images are multiplied by; ``offsets``: what is added to each class's logit.
    """

    weights: Float[Tensor, " classes"] | None = None
    offsets: Float[Tensor, " classes"] | None = None


def class_counts(labels: NDArray[np.int64], classes: Sequence[str], key: str) -> Counts:
    """Labelled images of each class. UserError, which names ``key``, where a class has none."""
    counts = np.bincount(labels, minlength=len(classes))
    if missing := [name for name, count in zip(classes, counts.tolist(), strict=True) if not count]:
        named = ", ".join(f"'{name}'" for name in missing[:3]) + (f" and {len(missing) - 3} more" * (len(missing) > 3))
        raise UserError(
            f"{key}: needs labelled training images of every class, and there is none of {named}. Label some, raise "
            f"data.labelled, or switch {key} off"
        )
    return counts


def class_weights(counts: Counts) -> Float[np.ndarray, " classes"]:
    """n / (K n_k) for n images of K classes: scikit-learn's ``class_weight="balanced"``, after King & Zeng 2001
    (https://doi.org/10.1093/oxfordjournals.pan.a004868). Over the images themselves their mean is 1."""
    return np.asarray(counts.sum() / (len(counts) * counts.astype(np.float64)))


def log_priors(counts: Counts) -> Float[np.ndarray, " classes"]:
    """log(n_k / n)."""
    return np.asarray(np.log(counts / counts.sum()))


def balance(counts: Counts, *, weights: bool, logit_adjustment: float, device: torch.device | str) -> Balance | None:
    """`class_weights` if asked, and ``logit_adjustment`` times `log_priors` if it is not 0; None where neither is."""
    if not weights and logit_adjustment == 0.0:
        return None

    def tensor(values: NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(values).float().to(device)

    return Balance(
        weights=tensor(class_weights(counts)) if weights else None,
        offsets=tensor(logit_adjustment * log_priors(counts)) if logit_adjustment != 0.0 else None,
    )


def cross_entropy(
    logits: Float[Tensor, "batch classes"],
    target: Int[Tensor, " batch"] | Float[Tensor, "batch classes"],
    label_smoothing: float,
    balance: Balance,
) -> Float[Tensor, " batch"]:
    """Of each image: w_y times the cross-entropy of softmax(z + tau log pi) with its label y (0 for a label of -1).

    z are the ``logits``, w are ``balance.weights``, tau log pi are ``balance.offsets``: equation 10 of Menon
    et al. 2021, https://arxiv.org/abs/2007.07314. The network's own logits stay as they are, so what it predicts is
    argmax z: no export and no prediction knows of the priors. A ``target`` of shares (mixup, CutMix) has the loss of
    each label by its share.

    Deviation: to be averaged over the batch by the number of images. PyTorch's ``weight`` divides by the sum of the
    weights in the batch: a rare image then counts the less, the more of them are beside it, and one batch of 8 differs
    from two of 4.
    """
    adjusted = logits if balance.offsets is None else logits + balance.offsets
    if not target.is_floating_point():
        rows = F.cross_entropy(
            adjusted, target.long(), ignore_index=-1, reduction="none", label_smoothing=label_smoothing
        )
        return rows if balance.weights is None else rows * balance.weights[target.clamp_min(0)]
    weighted = target if balance.weights is None else target * balance.weights
    scale = weighted.sum(1)
    return scale * F.cross_entropy(
        adjusted, weighted / scale[:, None], reduction="none", label_smoothing=label_smoothing
    )
