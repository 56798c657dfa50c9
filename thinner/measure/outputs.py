"""What a network makes of pictures: its logits, and the features that it makes them of, in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from thinner.networks import models
from thinner.predict import Candidate

Images = UInt8[np.ndarray, "_ height width channels"]  # a batch; they may differ in size


@dataclass(frozen=True)
class Outputs:
    """Of each picture, float32. ``features`` is what the classifier gets; of a convolutional one its mean over the
    plane."""

    logits: Float[np.ndarray, "images classes"]
    features: Float[np.ndarray, "images features"]


def outputs(
    candidate: Candidate, batches: Iterable[Images], on_batch: Callable[[int], None] = lambda done: None
) -> Outputs:
    """Of all pictures in ``batches``, which may be empty. ``on_batch`` is told how many pictures are done.

    An export shows no features: its logits stand in for them.
    """
    logits = [np.zeros((0, len(candidate.spec["classes"])), np.float32)]
    features: list[Any] = []
    hook = None
    if candidate.model is not None:
        _, head = models.head_of(candidate.model)
        hook = head.register_forward_pre_hook(lambda module, given: features.append(given[0].detach()))
    done = 0
    try:
        for images in batches:
            if not len(images):
                continue
            before = len(features)
            logits.append(candidate.collect(candidate.run(candidate.place(candidate.preprocess(images)))))
            if hook is not None:
                (seen,) = features[before:]
                features[-1] = (seen.mean((2, 3)) if seen.ndim == 4 else seen).float().cpu().numpy()
            done += len(images)
            on_batch(done)
    finally:
        if hook is not None:
            hook.remove()
    found = np.concatenate(logits)
    return Outputs(found, np.concatenate(features) if features else found)
