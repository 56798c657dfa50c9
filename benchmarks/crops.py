"""What does it gain that a crop shows the pixels of a larger stored picture, and not those of a reduced one?

    python -m benchmarks.crops                     # a table, as in docs/views.md; some twenty minutes of one core
    python -m benchmarks.crops --steps 20 --seeds 0

Photos of 32 px and a network that sees 16 px. "reduced" trains on pictures that were reduced to 16 px before they are
cropped; "stored" draws each crop from the pictures of 32 px, as `views.draw` does. All else is the same in a seed:
pictures, start, steps, the order of batches, the window of each view, and how it is validated and tested (the whole
picture, reduced to 16 px). A training takes `STEPS` steps of `BATCH` pictures; what validates best is tested. Two more
trainings show an oblong crop and TrivialAugment.

``--data`` is a folder train/CLASS/*.jpg, test/CLASS/*.jpg of CIFAR-10's pictures. What was trained is kept in
``--kept``: a run that was stopped goes on there.
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from thinner.data import sources, store, views
from thinner.errors import DamagedError, UserError
from thinner.files import whole
from thinner.learn import training
from thinner.networks import models
from thinner.networks.spec import NetworkSpec

STORED, SIZE = 32, 16  # px
LABELLED, VALIDATION = 1000, 200  # of each class, of the training pictures
STEPS, BATCH, EVERY = 1000, 128, 200
SEEDS = (0, 1, 2)
PREPROCESSING = views.Preprocessing(SIZE, mean=(0.5,) * 3, std=(0.25,) * 3)
WAYS: dict[str, tuple[str, dict[str, Any]]] = {  # name: (which pictures, the policy beside flips)
    "crop: 0.7, reduced": ("reduced", {"crop": 0.7}),
    "crop: 0.7": ("stored", {"crop": 0.7}),
    "crop: 0.5, reduced": ("reduced", {"crop": 0.5}),
    "crop: 0.5": ("stored", {"crop": 0.5}),
    "crop: 0.5, aspect: 0.75": ("stored", {"crop": 0.5, "aspect": 0.75}),
    "crop: 0.5, policy: trivialaugment": ("stored", {"crop": 0.5, "policy": "trivialaugment"}),
}
AGAINST = {
    "crop: 0.7": "crop: 0.7, reduced",
    "crop: 0.5": "crop: 0.5, reduced",
    "crop: 0.5, aspect: 0.75": "crop: 0.5",
    "crop: 0.5, policy: trivialaugment": "crop: 0.5",
}
AS_BEFORE = {"crop": 0.92}  # crops so large that all are drawn from pictures of the network's size


class Pictures:
    """CIFAR-10's, decoded: at ``STORED`` px and reduced to ``SIZE``; the first of each class by name are drawn from."""

    def __init__(self, folder: Path) -> None:
        listing = sources.list_source(f"folder:{folder}", str(folder), lambda text: None)
        train = np.flatnonzero(listing.parts == sources.Part.TRAIN)
        self.classes = len(listing.classes)
        of_class = [train[listing.labels[train] == k] for k in range(self.classes)]
        if min(len(numbers) for numbers in of_class) < LABELLED + VALIDATION:
            raise UserError(f"{folder}: {LABELLED + VALIDATION:,} pictures of each class are needed in train/CLASS")
        chosen = [
            np.concatenate([numbers[:LABELLED] for numbers in of_class]),
            np.concatenate([numbers[LABELLED : LABELLED + VALIDATION] for numbers in of_class]),
            np.flatnonzero(listing.parts == sources.Part.TEST),
        ]
        every = np.concatenate(chosen)
        self.labels = listing.labels[every]
        self.stored = np.stack([store.decode(partial(listing.read, int(n)), STORED, 3, "crop") for n in every])
        small = [views.resize(views.to_pixels(part), SIZE) for part in np.array_split(self.stored, 64)]
        self.reduced = (255.0 * torch.cat(small)).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
        ends = np.cumsum([len(numbers) for numbers in chosen])
        self.labelled, self.validation, self.test = np.split(np.arange(len(every)), ends[:-1])


def learn(pictures: Pictures, images: NDArray[np.uint8], policy: views.Policy, seed: int, steps: int) -> float:
    """Accuracy (0 to 1) on the test pictures after training on views of ``images``."""
    torch.manual_seed(seed)
    network = NetworkSpec("resnet8", pictures.classes, channels=3, width=16, stem_stride=1)
    model = models.create(network).to(memory_format=torch.channels_last)
    mean, std = PREPROCESSING.mean, PREPROCESSING.std
    training.fit(
        model,
        training.Batches(images, pictures.labels, pictures.labelled, BATCH, seed, SIZE, mean, std, policy),
        training.supervised_step(),
        steps=steps,
        validate_every=min(EVERY, steps),
        optimizer=training.make_optimizer(model, "adamw", lr=0.01, weight_decay=0.05),
        factor=lambda number: training.learning_rate_factor("onecycle", number, steps, 0.2),
        validate=training.validation(pictures.stored, pictures.labels, pictures.validation, PREPROCESSING),
        fabric=training.make_fabric("cpu", 1, "fp32"),
        seed=seed,
    )
    answers = training.logits_of(model, pictures.stored, pictures.test, PREPROCESSING).argmax(1).numpy()
    return float((answers == pictures.labels[pictures.test]).mean())


def costs(pictures: Pictures, rounds: int = 40) -> dict[str, float]:
    """How many times as long a batch of views of stored pictures takes as one where all are reduced to the network's
    size and then cropped; in turns."""
    policies = {"": AS_BEFORE} | {name: policy for name, (which, policy) in WAYS.items() if which == "stored"}
    ways = [
        training.Batches(
            pictures.stored, pictures.labels, pictures.labelled, BATCH, 0, SIZE, (0.5,) * 3, (0.25,) * 3,
            views.Policy(flip=True, **policy),
        )
        for policy in policies.values()
    ]  # fmt: skip
    seconds = np.empty((rounds, len(ways)))
    for number in range(rounds):
        for way, batches in enumerate(ways):
            start = time.perf_counter()
            batches(number)
            seconds[number, way] = time.perf_counter() - start
    times = np.median(seconds, axis=0)
    print(f"a batch as before: {1000 * times[0]:.1f} ms", file=sys.stderr)
    return dict(zip(policies, (times / times[0]).tolist(), strict=True))


def interval(differences: NDArray[np.float64]) -> tuple[float, float]:
    """95 % by Student's t over seeds; of one seed there is none."""
    if len(differences) < 2:
        return float("nan"), float("nan")
    half = stats.t.ppf(0.975, len(differences) - 1) * stats.sem(differences)
    return float(differences.mean() - half), float(differences.mean() + half)


def markdown(found: dict[str, float], ratios: dict[str, float], seeds: list[int]) -> str:
    accuracy = {name: 100 * np.array([found[f"{name}; {seed}"] for seed in seeds]) for name in WAYS}
    lines = [
        "| views | accuracy | against | gain, points [95 %] | by seed | time of a batch |",
        "|---|---:|---|---:|---:|---:|",
    ]
    for name, values in accuracy.items():
        cells = ["", "", "", ""]
        if name in AGAINST:
            gains = values - accuracy[AGAINST[name]]
            low, high = interval(gains)
            cells = [
                AGAINST[name],
                f"{gains.mean():+.1f} [{low:.1f}, {high:.1f}]",
                ", ".join(f"{gain:+.1f}" for gain in gains),
                f"{ratios[name]:.2f}x",
            ]
        lines.append(f"| {' | '.join([name, f'{values.mean():.1f} %', *cells])} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.crops", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data/cifar10"), help="the pictures")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seeds", type=lambda text: [int(n) for n in text.split(",")], default=list(SEEDS))
    parser.add_argument("--kept", type=Path, default=Path(".thinner/crops.json"), help="what was trained already")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        pictures = Pictures(given.data)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    try:
        kept = whole.read_json(given.kept)
    except (FileNotFoundError, DamagedError):
        kept = {}
    found: dict[str, float] = kept.get("found", {}) if kept.get("steps") == given.steps else {}
    given.kept.parent.mkdir(parents=True, exist_ok=True)
    for seed in given.seeds:
        for name, (which, changes) in WAYS.items():
            key = f"{name}; {seed}"
            if key in found:
                continue
            start = time.perf_counter()
            policy = views.Policy(flip=True, **changes)
            found[key] = learn(pictures, getattr(pictures, which), policy, seed, given.steps)
            whole.write_json(given.kept, {"steps": given.steps, "found": found})
            print(f"{key}: {found[key]:.1%}, {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    print(markdown(found, costs(pictures), given.seeds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
