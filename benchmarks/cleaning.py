"""Does `thinner data` find what is there to be found?

    python -m benchmarks.cleaning                     # a table
    python -m benchmarks.cleaning --json FILE         # and the numbers
    python -m benchmarks.cleaning --check             # exits with 1 where a bound is missed
    python -m benchmarks.cleaning --only cifar10 --page FILE   # one piece; the pairs that nobody planted, as a page

fashion, cifar10: of `POOL` pictures `COPIES` each are planted once more as a crop of nine tenths of the side at a
random place, as a JPEG of quality 60, mirrored, and 15 % darker or brighter, by Pillow. Of the pairs that
`duplicates.find` answers with, those with a planted picture are right if the other is its original, or a pair with its
original (`precision`). Pairs of two pictures of the pool are natural: true near-duplicates or mistakes, for eyes to
tell (--page); `strict_precision` counts each of them as a mistake. Recall is of the planted pairs, by kind.

suspects: `FLIPPED` of the 4,000 labels of the default job's labelled and validation pictures are set to another class
at random, with run.seed 0, 1 and 2; `found` is the share of them among the first tenth of the suspects.

Needs the default job's data (data/raw), and for cifar10 the folder data/cifar10/train/CLASS/*.jpg.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from thinner.errors import UserError

POOL, COPIES = 10_000, 300
FLIPPED, LOOKED_AT = 0.05, 0.10
SEEDS = (0, 1, 2)
LEAST_PRECISION, LEAST_RECALL, LEAST_FOUND = 0.95, 0.90, 0.70
SETS = {  # source, data.root, side in px, channels
    "fashion": ("torchvision:FashionMNIST", "data/raw", 28, 1),
    "cifar10": ("folder:data/cifar10", "data/cifar10", 32, 3),
}
PIECES = (*SETS, "suspects")


def _cropped(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    side = round(0.9 * picture.width)
    left, top = (int(place) for place in rng.integers(0, picture.width - side + 1, 2))
    return picture.crop((left, top, left + side, top + side)).resize(picture.size, Image.Resampling.BILINEAR)


def _compressed(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=60)
    return Image.open(buffer)


def _mirrored(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def _brighter(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    factor = float(rng.choice([0.85, 1.15]))
    return picture.point(lambda value: min(255, round(factor * value)))


KINDS: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "crop": _cropped,
    "jpeg": _compressed,
    "mirror": _mirrored,
    "brightness": _brighter,
}


def pictures(name: str, count: int, rng: np.random.Generator) -> Any:
    """``count`` pictures of the training part of a set, as `prepare` stores them."""
    from thinner.data.sources import Part, list_source
    from thinner.data.store import decode

    source, root, side, channels = SETS[name]
    listing = list_source(source, root, lambda line: None)
    training = np.flatnonzero(listing.parts == Part.TRAIN)
    if count > len(training):
        raise UserError(f"--pool: {count} pictures, but {source} has {len(training)}. Ask for fewer")
    chosen = np.sort(rng.permutation(training)[:count])
    return np.stack([decode(partial(listing.read, int(i)), side, channels, "crop") for i in chosen])


def plant(pool: Any, copies: int, rng: np.random.Generator) -> tuple[Any, dict[int, tuple[int, str]]]:
    """(the pool and behind it the copies, number of a copy -> (number of its original, kind)); no original twice."""
    if copies * len(KINDS) > len(pool):
        raise UserError(f"--copies: {copies} of {len(KINDS)} kinds are more than the {len(pool)} pictures of --pool")
    order = rng.permutation(len(pool))
    planted, made = {}, []
    for place, (kind, change) in enumerate(KINDS.items()):
        for i in order[place * copies : (place + 1) * copies].tolist():
            picture = Image.fromarray(pool[i][..., 0] if pool.shape[-1] == 1 else pool[i])
            planted[len(pool) + len(made)] = (i, kind)
            made.append(np.asarray(change(picture, rng)).reshape(pool.shape[1:]))
    return np.concatenate([pool, np.stack(made)]), planted


def judge(pairs: set[tuple[int, int]], planted: dict[int, tuple[int, str]]) -> dict[str, Any]:
    """Recall by kind, precision and strict precision of ``pairs`` (smaller number, larger number)."""
    natural = {pair for pair in pairs if pair[1] not in planted}
    touching = pairs - natural

    def right(pair: tuple[int, int]) -> bool:
        first, second = sorted(planted[end][0] if end in planted else end for end in pair)
        return first == second or (first, second) in natural

    wrong = [pair for pair in touching if not right(pair)]
    wanted = {(original, copy): kind for copy, (original, kind) in planted.items()}
    found = {kind: [pair in pairs for pair, of in wanted.items() if of == kind] for kind in KINDS}
    recall = {kind: float(np.mean(hits)) for kind, hits in found.items()}
    return {
        "planted": len(planted),
        "pairs": len(pairs),
        "natural": len(natural),
        "wrong": len(wrong),
        "precision": 1 - len(wrong) / max(1, len(touching)),
        "strict_precision": sum(map(sum, found.values())) / max(1, len(pairs)),
        "recall": recall,
        "holds": bool(
            touching and len(wrong) / len(touching) <= 1 - LEAST_PRECISION and min(recall.values()) >= LEAST_RECALL
        ),
    }


def near_duplicates(name: str, pool: int, copies: int, page: Path | None) -> dict[str, Any]:
    from thinner.data import duplicates

    rng = np.random.default_rng(0)
    images, planted = plant(pictures(name, pool, rng), copies, rng)
    began = time.process_time()
    pairs = duplicates.find(images)
    took = time.process_time() - began
    if page is not None:
        page.write_text(_natural_page(name, images, [pair for pair in pairs if pair.second not in planted]), "utf-8")
    found = judge({(pair.first, pair.second) for pair in pairs}, planted)
    return {"pool": pool, "seconds": took, **found}


def _natural_page(name: str, images: Any, pairs: list[Any]) -> str:
    from thinner.evidence.pictures_page import Card, Section, render

    cards = [
        Card([(images[i], [str(i)]) for i in (pair.first, pair.second)], f"{pair.similarity:.4f} {pair.how}")
        for pair in pairs
    ]
    return render(f"Pairs of {name} that nobody planted", [f"{len(pairs)} pairs"], [Section("All", "", cards)])


def suspect_labels(seed: int) -> dict[str, Any]:
    """How many of the flipped labels are among the first suspects, of the pictures that ``seed`` draws."""
    from flows.data import pretrained
    from thinner.config import load_params
    from thinner.data.sources import list_source
    from thinner.data.store import decode, split
    from thinner.learn import suspects

    params = load_params()
    source, root, side, channels = SETS["fashion"]
    listing = list_source(source, root, lambda line: None)
    began = time.process_time()
    splits = split(
        listing.labels, listing.parts, listing.classes,
        labelled=2000, validation=2000, test=None, unlabelled="rest", seed=seed,
    )  # fmt: skip
    chosen = np.sort(np.concatenate([splits["labelled"], splits["validation"]]))
    images = np.stack([decode(partial(listing.read, int(i)), side, channels, "crop") for i in chosen])
    model, preprocessing = pretrained(params, len(listing.classes))
    x = suspects.features(model, images, np.arange(len(images)), preprocessing)
    labels, which = flipped(listing.labels[chosen], FLIPPED, len(listing.classes), seed)
    ranking = suspects.rank(labels, suspects.probabilities(x, labels, len(listing.classes), seed))
    first = ranking.order[: round(LOOKED_AT * len(labels))]
    found = float(np.isin(which, first).mean())
    hits = np.intersect1d(which, first)
    return {
        "seed": seed,
        "labels": len(labels),
        "flipped": len(which),
        "estimated": ranking.estimated,
        "found": found,
        "suggested_right": float((ranking.suggested[hits] == listing.labels[chosen][hits]).mean()),
        "seconds": time.process_time() - began,
        "holds": found >= LEAST_FOUND,
    }


def flipped(labels: Any, share: float, classes: int, seed: int) -> tuple[Any, Any]:
    """``labels`` with ``share`` of them set to another class at random; and which."""
    rng = np.random.default_rng(seed)
    which = np.sort(rng.permutation(len(labels))[: round(share * len(labels))])
    changed = labels.copy()
    changed[which] = (labels[which] + rng.integers(1, classes, len(which))) % classes
    return changed, which


def show(found: dict[str, Any]) -> None:
    names = [name for name in SETS if name in found]
    if names:
        print(
            f"{'near-duplicates':<17}{'precision':>10}{'strict':>8}" + "".join(f"{kind:>12}" for kind in KINDS), end=""
        )
        print(f"{'natural':>9}{'CPU s':>7}")
    for name in names:
        row = found[name]
        kinds = "".join(f"{row['recall'][kind]:12.1%}" for kind in KINDS)
        print(f"{name:<17}{row['precision']:10.1%}{row['strict_precision']:8.1%}{kinds}", end="")
        print(f"{row['natural']:9}{row['seconds']:7.0f}")
    for row in found.get("suspects", []):
        print(
            f"suspects, seed {row['seed']}: {row['found']:.1%} of {row['flipped']} flipped labels among the first "
            f"{LOOKED_AT:.0%}; the right label is suggested for {row['suggested_right']:.1%} of these; "
            f"{row['estimated']} estimated wrong; {row['seconds']:.0f} CPU s"
        )
    print(
        f"must: precision {LEAST_PRECISION:.0%}, recall of each kind {LEAST_RECALL:.0%}, flipped labels found "
        f"{LEAST_FOUND:.0%}: {'holds' if holds(found) else 'NO'}"
    )


def holds(found: dict[str, Any]) -> bool:
    rows = [found[name] for name in SETS if name in found] + found.get("suspects", [])
    return bool(rows) and all(row["holds"] for row in rows)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a bound is missed")
    parser.add_argument("--only", choices=PIECES, help="one piece")
    parser.add_argument("--pool", type=int, default=POOL, help=f"pictures that copies are planted among ({POOL})")
    parser.add_argument("--copies", type=int, default=COPIES, help=f"copies of each kind ({COPIES})")
    parser.add_argument("--page", type=Path, help="with --only fashion or cifar10: the natural pairs, as HTML")
    options = parser.parse_args(arguments)
    chosen = PIECES if options.only is None else (options.only,)
    if options.page is not None and options.only not in SETS:
        parser.error(f"--page: shows the pairs of one set. Give --only too: {', '.join(SETS)}")
    import torch

    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    try:
        for name in chosen:
            if name in SETS:
                found[name] = near_duplicates(name, options.pool, options.copies, options.page)
            else:
                found[name] = [suspect_labels(seed) for seed in SEEDS]
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    show(found)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 1 if options.check and not holds(found) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
