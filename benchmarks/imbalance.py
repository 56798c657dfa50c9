"""What do class weights, balanced sampling and logit adjustment do on unequal classes?

    python -m benchmarks.imbalance                    # a table, as in docs/imbalance.md; some ten minutes
    python -m benchmarks.imbalance --json FILE        # and the numbers
    python -m benchmarks.imbalance --steps 20 --seeds 0

Of Fashion-MNIST's training images each class keeps fewer than the one before, by a constant factor, down to a
fiftieth: `LARGEST` to `LARGEST` / `FACTOR` to learn from, half as many to choose by. The test images are all 10,000,
1,000 a class, so accuracy and balanced accuracy are the same. The student of params.yaml learns `STEPS` steps of
`BATCH` images from nothing, with a crop and a mirror as views; weights are chosen by balanced accuracy for all alike.
Subset, start and views are those of the seed.

Needs the default job's data (data/raw).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from thinner.config import load_params
from thinner.data import sources, store, views
from thinner.learn import imbalance, training
from thinner.measure import scores
from thinner.networks import models
from thinner.params import Imbalance

LARGEST, FACTOR = 1000, 50
STEPS, BATCH, EVERY = 400, 64, 100
SEEDS = (0, 1, 2)
AT_REST = {"weights": "none", "sampling": "natural", "logit_adjustment": 0.0, "choose_by": "balanced_accuracy"}
WAYS: dict[str, dict[str, Any]] = {
    "none": {},
    "weights: balanced": {"weights": "balanced"},
    "sampling: balanced": {"sampling": "balanced"},
    "logit_adjustment: 1.0": {"logit_adjustment": 1.0},
}
METRICS = ("balanced_accuracy", "macro_f1", "worst_class")


def sizes(classes: int, largest: int) -> list[int]:
    """Images of each class: from ``largest`` to ``largest`` / `FACTOR`, by a constant factor."""
    return [round(largest * FACTOR ** (-k / (classes - 1))) for k in range(classes)]


def thinned(labels: NDArray[np.int64], free: NDArray[np.int64], counts: Sequence[int], seed: int) -> NDArray[np.int64]:
    """So many of each class among the images ``free``, drawn by ``seed``."""
    drawn = np.random.default_rng(seed).permutation(free)
    return np.sort(np.concatenate([drawn[labels[drawn] == k][:count] for k, count in enumerate(counts)]))


def read(root: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """(images, labels, numbers of the training images, numbers of the test images) of Fashion-MNIST."""
    listing = sources.list_source("torchvision:FashionMNIST", str(root / "data/raw"), lambda text: None)
    images = np.stack([store.decode(partial(listing.read, n), 28, 1, "crop", 10**6) for n in range(len(listing))])
    train, test = (np.flatnonzero(listing.parts == part) for part in (sources.Part.TRAIN, sources.Part.TEST))
    return images, listing.labels, train, test


def learn(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    train: NDArray[np.int64],
    test: NDArray[np.int64],
    how: Imbalance,
    seed: int,
    steps: int,
    root: Path,
) -> dict[str, float]:
    """`METRICS` on the test images of one training."""
    section = load_params(root / "params.yaml").student
    classes = int(labels.max()) + 1
    counts = sizes(classes, LARGEST)
    labelled = thinned(labels, train, counts, seed)
    free = np.setdiff1d(train, labelled)
    validation = thinned(labels, free, [max(1, count // 2) for count in counts], seed)
    fabric = training.make_fabric("cpu", 1, "fp32")
    preprocessing = views.Preprocessing.of(section)
    torch.manual_seed(seed)
    model = models.create(models.describe(section, classes))
    batches = training.Batches(
        images, labels, labelled, BATCH, seed, section.image_size, tuple(section.mean), tuple(section.std),
        views.Policy(crop=0.8, flip=True), balanced=how.sampling == "balanced",
    )  # fmt: skip
    balance = imbalance.balance(
        np.bincount(labels[labelled], minlength=classes),
        weights=how.weights == "balanced",
        logit_adjustment=how.logit_adjustment,
        device="cpu",
    )
    plan = section.training
    model.to(memory_format=torch.channels_last)
    training.fit(
        model,
        batches,
        training.supervised_step(balance=balance),
        steps=steps,
        validate_every=min(EVERY, steps),
        optimizer=training.make_optimizer(model, plan.optimizer, lr=plan.lr, weight_decay=plan.weight_decay),
        factor=lambda number: training.learning_rate_factor(plan.schedule, number, steps, plan.warmup),
        validate=training.validation(images, labels, validation, preprocessing, choose_by=how.choose_by),
        fabric=fabric,
        seed=seed,
        choose_by=how.choose_by,
    )
    answers = training.logits_of(model, images, test, preprocessing).argmax(1).numpy()
    table = np.bincount(labels[test] * classes + answers, minlength=classes**2).reshape(classes, classes)
    recall = np.diag(table) / table.sum(axis=1)
    return {metric: scores.score(metric, table) for metric in METRICS} | {"rarest_three": float(recall[-3:].mean())}


COLUMNS = {
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro-F1",
    "worst_class": "worst class",
    "rarest_three": "the three rarest classes",
}


def markdown(found: dict[str, list[dict[str, float]]]) -> str:
    """The mean over seeds of each column, with the least and the largest."""
    lines = [f"| | {' | '.join(COLUMNS.values())} |", "|---|" + "---:|" * len(COLUMNS)]
    for way, rows in found.items():
        cells = []
        for key in COLUMNS:
            values = [100 * row[key] for row in rows]
            cells.append(f"{np.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})")
        lines.append(f"| `{way}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.imbalance", description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seeds", type=lambda text: [int(n) for n in text.split(",")], default=list(SEEDS))
    parser.add_argument("--json", type=Path, help="where the numbers go")
    given = parser.parse_args(arguments)
    root = Path(__file__).parents[1]
    torch.set_num_threads(1)
    images, labels, train, test = read(root)
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for seed in given.seeds:
        for way, changes in WAYS.items():
            start = time.perf_counter()
            how = Imbalance.model_validate(AT_REST | changes)
            found[way].append(learn(images, labels, train, test, how, seed, given.steps, root))
            numbers = ", ".join(f"{key} {value:.1%}" for key, value in found[way][-1].items())
            print(f"seed {seed}, {way}: {numbers}; {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    print(markdown(found))
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
