"""Few labels, many pictures: how much better is a teacher after one round of self-training?

    python -m benchmarks.self_training                        # goes on where it was stopped; then the table
    python -m benchmarks.self_training --check                # exits with 1 where it is not 3 points above both
    python -m benchmarks.self_training --seeds 10 --set self_train.method=fixmatch

The default job's pictures (Fashion-MNIST) and network, with `LABELS` labels, drawn by the seed: 10 of each class. The
stages prepare, finetune and self_train themselves run, one working folder per seed, with `CHANGES` of params.yaml.
What is measured, on `TEST` of the 10,000 test images, the same for all seeds:

- finetune: the plain teacher
- self_train_control: trained on with labels alone: as many steps, each with as many images as one of self_train
- self_train: trained on with pictures that have no labels

Weights are chosen by 500 validation images, in all three alike. What would have been decided with fewer of those is
computed from the same answers. `CHANGES` and the values in params.yaml were tuned on seed 10, on validation images.

What was run is kept by its parameters, not by the code: after a change of code give another --work.

Needs the default job's data (data/raw).
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from tasks.finetune import finetune
from tasks.machine import set_up_torch
from tasks.prepare import prepare
from tasks.self_train import self_train
from tasks.stage import Stage
from thinner.data import store
from thinner.evidence import decision, statistics
from thinner.learn import self_training, training
from thinner.networks import checkpoint
from thinner.params import Params

ROOT = Path(__file__).resolve().parents[1]
NETWORKS = {name: f"data/{decision.FOLDERS.get(name, name)}" for name in decision.NAMES}
LABELS, SEEDS, MUST_POINTS = 100, (0, 1, 2, 3, 4), 3.0
TEST = 2_500  # test images that are looked at: all of them take longer than a training
FEWER = (100, 200, 500)  # validation images
CHANGES: dict[str, Any] = {
    "run.threads": 1,
    "data.root": str(ROOT / "data/raw"),
    "data.labelled": LABELS,
    "data.validation": 500,
    "finetune.training.epochs": None,
    "finetune.training.steps": 100,
    "finetune.training.validate_every": 50,
    "finetune.training.batch_size": 32,
    "self_train.networks": ["finetune"],
    "self_train.training.steps": 300,
    "self_train.training.validate_every": 100,
}


def params_with(changes: Mapping[str, Any], seed: int) -> Params:
    raw = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for key, value in {**changes, "run.seed": seed}.items():
        *sections, last = key.split(".")
        place = raw
        for section in sections:
            place = place[section]
        if last not in place:
            raise SystemExit(f"--set {key}: params.yaml has no such key")
        place[last] = value
    return Params.model_validate(raw)


def measure(params: Params, work: Path) -> dict[str, Any]:
    """Run the stages that have not run, in a folder of its own below ``work``, and return what came out: for each
    network the classes that it names for the test and for the validation images, with the labels; and seconds."""
    values = params.model_dump_json(include={"run", "data", "imbalance", "finetune", "self_train"})
    folder = work / hashlib.sha256(values.encode()).hexdigest()[:12]
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.chdir(folder):
        seconds: dict[str, float] = {}
        for name, body, made in (
            ("prepare", prepare, "data/prepared/info.json"),
            ("finetune", finetune, "data/finetune/model.json"),
            ("self_train@finetune", self_train, f"{NETWORKS[decision.LEARNER]}/{decision.FILE}"),
        ):
            start = time.perf_counter()
            if not Path(made).exists():
                body(Stage(name, params))
                seconds[name] = time.perf_counter() - start
        return {**_answers(), "seconds": seconds, "decision": decision.read(Path(NETWORKS[decision.LEARNER]))}


def _answers() -> dict[str, Any]:
    kept = Path("answers.npz")
    data = store.open_store("data/prepared")
    some = np.sort(np.random.default_rng(0).permutation(data.splits["test"])[:TEST])
    index = {"test": some, "validation": data.splits["validation"]}
    if not kept.exists():
        found = {}
        for name, place in NETWORKS.items():
            loaded = checkpoint.load(place)
            model = loaded.model.to(memory_format=torch.channels_last)
            for split, numbers in index.items():
                logits = training.logits_of(model, data.images, numbers, loaded.preprocessing)
                found[f"{split}.{name}"] = logits.argmax(1).numpy()
        np.savez(kept, allow_pickle=False, **found)
    with np.load(kept, allow_pickle=False) as file:
        found = {key: file[key] for key in file.files}
    return {
        split: {name: found[f"{split}.{name}"] for name in NETWORKS} | {"labels": data.labels[index[split]]}
        for split in index
    }


def summary(runs: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Test accuracy of each seed, the paired differences over seeds, and how often self-training would have been chosen
    with fewer validation images (the first ones)."""
    evidence = statistics.over_seeds([_evidence(run["test"]) for run in runs.values()])
    claims = [
        statistics.parse_claim(f"{decision.LEARNER} beats {other} on accuracy by {MUST_POINTS:g} points")
        for other in (decision.PLAIN, decision.CONTROL)
    ]
    verdicts = statistics.judge(claims, evidence)
    return {
        "accuracy": {
            seed: {name: float(np.mean(run["test"][name] == run["test"]["labels"])) for name in NETWORKS}
            for seed, run in runs.items()
        },
        "seconds": {seed: run["seconds"] for seed, run in runs.items()},
        "verdicts": {v.claim.reference: {"outcome": v.outcome, "numbers": v.numbers} for v in verdicts},
        "chosen": {
            images: sum(_chosen(run["validation"], images) for run in runs.values())
            for images in FEWER
            if all(images <= len(run["validation"]["labels"]) for run in runs.values())
        },
        "holds": all(v.outcome == "proven" for v in verdicts),
    }


def _evidence(answers: Mapping[str, NDArray[np.int64]]) -> statistics.Evidence:
    named = {name: answers[name] for name in NETWORKS}
    right = {name: found == answers["labels"] for name, found in named.items()}
    return statistics.Evidence(right=right, predictions=named, sizes={}, latency_ms={}, labels=answers["labels"])


def _chosen(answers: Mapping[str, NDArray[np.int64]], images: int) -> bool:
    """Whether self-training is chosen by this many validation images, drawn from all of them."""
    some = np.random.default_rng(0).permutation(len(answers["labels"]))[:images]
    found = self_training.decide(answers["labels"][some], {name: answers[name][some] for name in NETWORKS})
    return bool(found["chosen"] == decision.LEARNER)


def markdown(found: Mapping[str, Any]) -> str:
    rows = found["accuracy"]
    lines = [f"| seed | {' | '.join(NETWORKS)} | points above finetune | above the control |", "|---|" + "---:|" * 5]
    for seed, row in rows.items():
        shares = [row[name] for name in NETWORKS]
        gains = [100 * (row[decision.LEARNER] - row[other]) for other in (decision.PLAIN, decision.CONTROL)]
        cells = [*(f"{share:.1%}" for share in shares), *(f"{gain:+.1f}" for gain in gains)]
        lines.append(f"| {seed} | {' | '.join(cells)} |")
    means = {name: float(np.mean([row[name] for row in rows.values()])) for name in NETWORKS}
    gains = [100 * (means[decision.LEARNER] - means[other]) for other in (decision.PLAIN, decision.CONTROL)]
    cells = [*(f"{share:.1%}" for share in means.values()), *(f"{gain:+.1f}" for gain in gains)]
    lines += [f"| mean | {' | '.join(cells)} |", ""]
    lines += [
        f"Against {name}: {verdict['outcome']}, {verdict['numbers']}" for name, verdict in found["verdicts"].items()
    ]
    lines += [f"Chosen with {n:,} validation images: {count} of {len(rows)}" for n, count in found["chosen"].items()]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.self_training", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=lambda text: [int(n) for n in text.split(",")], default=list(SEEDS))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of params.yaml, to try")
    parser.add_argument("--work", type=Path, default=ROOT / ".thinner/self-training", help="where runs are kept")
    parser.add_argument("--json", type=Path, help="where the numbers go")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a must falls short")
    given = parser.parse_args(arguments)
    changes = {
        **CHANGES,
        **{key: yaml.safe_load(value) for key, _, value in (text.partition("=") for text in given.set)},
    }
    runs = {}
    for seed in given.seeds:
        params = params_with(changes, seed)
        set_up_torch(params.run)
        runs[seed] = measure(params, given.work.resolve())
        found = summary({seed: runs[seed]})
        print(f"seed {seed}: {found['accuracy'][seed]}, {found['seconds'][seed]}", file=sys.stderr, flush=True)
    found = summary(runs)
    print(markdown(found))
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 1 if given.check and not found["holds"] else 0


if __name__ == "__main__":
    sys.exit(main())
