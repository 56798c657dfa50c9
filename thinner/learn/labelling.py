"""Which pictures without a label are most worth one? Those that the network is unsure of, and no two alike.

BADGE (Ash et al. 2020, https://arxiv.org/abs/1906.03671): a picture stands for the gradient that its label would give
to the classifier's weights, were the label what the network answers,

    g = (p - onehot(answer)) x h        p: probabilities, h: features

It is long where the network is unsure (uncertainty sampling: Settles 2009,
http://digital.library.wisc.edu/1793/60660), and points elsewhere for other features and other rivals. The seeding of
k-means++ (Arthur & Vassilvitskii 2007) then draws pictures with a probability that is their squared distance from those
drawn already. As in the authors' program the first is the longest. Unlike theirs, no gradient at all (a picture that
the network is sure of) counts as drawn already: who labels is not asked about such pictures.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int64, UInt8

from thinner.data import duplicates

_SAME = 1e-9  # of the longest gradient's square: rounding, and not a distance

Rows = Int64[np.ndarray, " chosen"]


def choose(
    probabilities: Float[np.ndarray, "images classes"],
    features: Float[np.ndarray, "images features"],
    count: int,
    seed: int,
) -> Rows:
    """Numbers of at most ``count`` pictures, in the order in which they were drawn; fewer where all others have the
    gradient of one that was drawn, or none.

    The gradients themselves, classes times features numbers, are never made: <g, g'> = <a, a'> <h, h'>.
    """
    rng = np.random.default_rng(seed)
    a = probabilities.astype(np.float64)
    a[np.arange(len(a)), a.argmax(axis=1)] -= 1
    h = features.astype(np.float64)
    length = np.square(a).sum(axis=1) * np.square(h).sum(axis=1)
    chosen: list[int] = []
    nearest = length.copy()
    while len(chosen) < min(count, len(a)):
        nearest[nearest <= _SAME * length.max(initial=0.0)] = 0.0
        if (total := nearest.sum()) <= 0:
            break
        row = int(rng.choice(len(a), p=nearest / total)) if chosen else int(length.argmax())
        chosen.append(row)
        square = length + length[row] - 2 * (a @ a[row]) * (h @ h[row])
        nearest = np.minimum(nearest, np.maximum(square, 0.0))
        nearest[row] = 0.0
    return np.array(chosen, dtype=np.int64)


def unlike(images: UInt8[np.ndarray, "drawn height width channels"], count: int) -> list[int]:
    """The first ``count`` of ``images`` (their numbers) of which no two are near-duplicates."""
    if len(images) < 2:
        return list(range(len(images)))[:count]
    like: dict[int, set[int]] = {}
    for pair in duplicates.find(images):
        like.setdefault(pair.second, set()).add(pair.first)
        like.setdefault(pair.first, set()).add(pair.second)
    kept: list[int] = []
    for number in range(len(images)):
        if len(kept) < count and not like.get(number, set()).intersection(kept):
            kept.append(number)
    return kept
