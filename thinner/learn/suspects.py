"""Labels that are probably wrong: confident learning (https://arxiv.org/abs/1911.00068, by cleanlab) on what a linear
probe says of each picture that it was not fitted to.

1. `features`: what the pretrained network hands to its classifier, computed once for each picture.
2. `probabilities`: logistic regression on them, fitted `FOLDS` times, each time without the pictures it then judges.
3. `rank`: cleanlab's score of each label, and its estimate of how many are wrong.

A probe on a network that has never seen these labels cannot have learnt the wrong ones by heart, as a fine-tuned one
has. What it finds are labels that look wrong: also pictures that are odd, or of two classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from thinner.data import views
from thinner.errors import UserError
from thinner.files.mapped import read_rows
from thinner.networks import models

FOLDS = 5
# Of the sum of squares of the weights, in scikit-learn's C: strong, because a weak one fits the wrong labels as well.
INVERSE_REGULARISATION = 1e-3
STEPS = 200  # of L-BFGS at most
BATCH = 128

Labels = Int64[np.ndarray, " n"]
Probabilities = Float[np.ndarray, "n classes"]


@dataclass(frozen=True)
class Ranking:
    """``order``: numbers of the labels, the most suspect first. ``score`` of each label: 0 wrong to 1 right.
    ``suggested``: the class that the others would have had it be. ``estimated``: how many are wrong."""

    order: Int64[np.ndarray, " n"]
    score: Float[np.ndarray, " n"]
    suggested: Labels
    estimated: int


def features(
    model: nn.Module,
    images: UInt8[np.ndarray, "all height width channels"],
    rows: Int64[np.ndarray, " n"],
    preprocessing: views.Preprocessing,
    *,
    device: torch.device | str = "cpu",
    progress: Callable[[int], None] = lambda done: None,
) -> Float[np.ndarray, "n features"]:
    """The input of the classifier of ``model``, for the pictures ``rows`` of ``images``; of a convolutional classifier
    its mean over the plane."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        value = given[0].detach()
        kept.append((value.mean((2, 3)) if value.ndim == 4 else value).float().cpu())

    _, head = models.head_of(model)
    model.eval().to(device)
    hook = head.register_forward_pre_hook(keep)
    try:
        with torch.inference_mode():
            for start in range(0, len(rows), BATCH):
                chosen = rows[start : start + BATCH]
                model(views.preprocess(read_rows(images, chosen), preprocessing, device))
                progress(start + len(chosen))
    finally:
        hook.remove()
    return torch.cat(kept).numpy()


def probabilities(x: Float[np.ndarray, "n features"], labels: Labels, classes: int, seed: int) -> Probabilities:
    """Out-of-fold probabilities of each class, from logistic regression on standardised features.

    Folds are stratified and drawn by ``seed``. A class of which a fold's other pictures have none gets 0 there.
    Raises UserError where no class has two pictures.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    most = int(np.bincount(labels).max(initial=0))
    if most < 2 or len(np.unique(labels)) < 2:
        raise UserError(
            f"data.labelled: {len(labels)} pictures with labels are too few to judge labels by: two classes, and two "
            "pictures of one, are needed. Label more"
        )
    found = np.zeros((len(labels), classes))
    folds = StratifiedKFold(min(FOLDS, most), shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)  # of which the docstring tells
        parts = list(folds.split(x, labels))
    for fitted, judged in parts:
        if len(np.unique(labels[fitted])) < 2:
            found[judged, labels[fitted][0]] = 1.0
            continue
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=INVERSE_REGULARISATION, max_iter=STEPS))
        probe.fit(x[fitted], labels[fitted])
        found[np.ix_(judged, probe.classes_)] = probe.predict_proba(x[judged])
    return found


def rank(labels: Labels, p: Probabilities) -> Ranking:
    """Every label by its own probability, cleanlab's self-confidence: of its scores the one that found most flipped
    labels (benchmarks.cleaning)."""
    from cleanlab.count import num_label_issues
    from cleanlab.rank import get_label_quality_scores

    present, known = np.unique(labels, return_inverse=True)  # cleanlab wants classes that occur
    among = p[:, present]
    among = among / np.maximum(among.sum(1, keepdims=True), 1e-12)
    score = get_label_quality_scores(known, among, method="self_confidence")
    rivals = among.copy()
    rivals[np.arange(len(known)), known] = -1.0
    return Ranking(
        order=np.lexsort((np.arange(len(score)), score)).astype(np.int64),
        score=np.asarray(score, dtype=np.float64),
        suggested=present[rivals.argmax(1)].astype(np.int64),
        estimated=int(num_label_issues(known, among)),
    )
