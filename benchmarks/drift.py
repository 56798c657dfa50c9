"""How often does `thinner watch` raise a false alarm, and which shifts does it see with how many pictures?

    python -m benchmarks.drift                  # tables, and benchmarks/drift.json; some ten minutes of one core
    python -m benchmarks.drift --draws 50       # fewer looks
    python -m benchmarks.drift --check          # exits with 1 where false alarms are more than was said

The network and the data are the default job's (`--candidate`). Needs data/prepared and the candidate's folder: thinner
run.

- False alarms: 200 test pictures, drawn anew for each look, against validation's as in use; and once more with a
  reference that is drawn anew as well, both from the test pictures, which chose no weights. Looks that find drift, with
  Clopper and Pearson's 95 % interval.
- Power: so many pictures of a corrupted test split (thinner/data/corruptions.py, severity 1 to 3), and of one that
  lacks a class; the share of the looks that find drift, beside the accuracy on all of them.
- What to label: of 1,000 test pictures 50 are chosen; the share that the network has wrong, beside the 50 of the
  smallest margin and 50 at random.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from thinner.errors import UserError
from thinner.measure.outputs import Outputs

RESULTS = Path("benchmarks/drift.json")
RATES = (0.01, 0.05)
NONE = "none"
LOOKED_AT, REFERENCE = 200, 2000  # pictures
COUNTS = {50: 40, 200: 40, 1000: 20}  # pictures in a look: looks, where --draws is 500
POOL, TO_LABEL, LABEL_DRAWS = 1000, 50, 20
BATCH = 64


def some(seen: Outputs, rows: Any) -> Outputs:
    return Outputs(seen.logits[rows], seen.features[rows])


def look(reference: Outputs, new: Outputs, temperature: float, seed: int) -> dict[str, float]:
    """Holm's p-value of each test."""
    from thinner.evidence import drift

    found = drift.compare(reference, new, temperature, min(RATES), seed)
    return {name: one.adjusted for name, one in found.findings.items()}


def counted(looks: list[dict[str, float]]) -> dict[str, Any]:
    """At each of `RATES`: the share of looks in which a test found drift, its interval, and each test's own share."""
    from statsmodels.stats.proportion import proportion_confint

    rows = {}
    for rate in RATES:
        found = sum(min(one.values()) <= rate for one in looks)
        low, high = proportion_confint(found, len(looks), alpha=0.05, method="beta")
        own = {name: sum(one[name] <= rate for one in looks) / len(looks) for name in looks[0]}
        rows[str(rate)] = {"found": found, "share": found / len(looks), "low": low, "high": high, "tests": own}
    return {"looks": len(looks), "rates": rows}


def holds(false_alarms: dict[str, Any]) -> bool:
    """Whether each rate may be what was said: the interval's lower end is not above it."""
    return all(row["low"] <= float(rate) for one in false_alarms.values() for rate, row in one["rates"].items())


def shifts(images: Any, labels: Any, index: Any) -> Iterator[tuple[str, Any, Any]]:
    """(name, pictures, labels) of each shift; the first is none."""
    from thinner.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt

    yield NONE, images, labels
    for name in CORRUPTIONS:
        for severity in SEVERITIES:
            yield f"{name} {severity}", corrupt(images, index, name, severity, seed=0), labels
    yield "no class 0", images[labels != 0], labels[labels != 0]


def labelled(seen: Outputs, labels: Any, temperature: float, seed: int) -> dict[str, float]:
    """The share of wrong answers among `TO_LABEL` of `POOL` pictures, by way of choosing."""
    from scipy.special import softmax

    from thinner.learn import labelling

    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(labels))[:POOL]
    wrong = seen.logits[rows].argmax(axis=1) != labels[rows]
    shares = softmax(seen.logits[rows].astype(np.float64) / temperature, axis=1)
    ordered = np.sort(shares, axis=1)
    chosen = {
        "thinner watch": labelling.choose(shares, seen.features[rows], TO_LABEL, seed),
        "smallest margin": np.argsort(ordered[:, -1] - ordered[:, -2])[:TO_LABEL],
        "at random": np.arange(TO_LABEL),
    }
    return {name: float(wrong[numbers].mean()) for name, numbers in chosen.items()}


def measure(candidate: str, draws: int) -> dict[str, Any]:
    import torch

    from thinner.config import load_params
    from thinner.data.store import open_store
    from thinner.evidence.shipping import find_temperature
    from thinner.files.mapped import read_rows
    from thinner.layout import folder_of
    from thinner.measure.outputs import outputs
    from thinner.predict import open_candidate

    torch.set_num_threads(1)
    store = open_store("data/prepared")
    opened = open_candidate(folder_of(load_params(), candidate), threads=1)
    temperature = find_temperature(Path(), candidate) or 1.0

    def seen(images: Any) -> Outputs:
        return outputs(opened, (images[start : start + BATCH] for start in range(0, len(images), BATCH)))

    index = store.splits["test"]
    images, labels = read_rows(store.images, index), store.labels[index]
    validation, test = seen(read_rows(store.images, store.splits["validation"])), seen(images)
    rng = np.random.default_rng(0)
    began = time.monotonic()

    def say(what: str) -> None:
        print(f"{time.monotonic() - began:5.0f} s  {what}", file=sys.stderr, flush=True)

    fixed, anew = [], []
    for number in range(draws):
        order = rng.permutation(len(labels))
        new = some(test, order[:LOOKED_AT])
        fixed.append(look(validation, new, temperature, number))
        anew.append(look(some(test, order[LOOKED_AT : LOOKED_AT + REFERENCE]), new, temperature, number))
        if number % 50 == 49:
            say(f"false alarms: {number + 1} of {draws} draws")
    power: dict[str, dict[str, Any]] = {}
    for name, pictures, truth in shifts(images, labels, index):
        changed = seen(pictures)
        power[name] = {"accuracy": float((changed.logits.argmax(axis=1) == truth).mean())}
        for count, looks in ({} if name == NONE else COUNTS).items():
            rows = [rng.permutation(len(pictures))[:count] for _ in range(max(2, looks * draws // 500))]
            found = [look(validation, some(changed, part), temperature, seed) for seed, part in enumerate(rows)]
            power[name][str(count)] = counted(found)
        say(f"power: {name}")
    chosen = [labelled(test, labels, temperature, seed) for seed in range(LABEL_DRAWS)]
    return {
        "candidate": candidate,
        "pictures": LOOKED_AT,
        "reference": {"as in use": len(validation.logits), "drawn anew": REFERENCE},
        "false_alarms": {"as in use": counted(fixed), "drawn anew": counted(anew)},
        "power": power,
        "wrong_among_chosen": {name: float(np.mean([one[name] for one in chosen])) for name in chosen[0]},
        "seconds": round(time.monotonic() - began),
    }


def render(found: dict[str, Any]) -> str:
    lines = ["| reference | false alarms said | measured | looks |", "|---|---:|---:|---:|"]
    for name, one in found["false_alarms"].items():
        for rate, row in one["rates"].items():
            span = f"{100 * row['share']:.1f} % [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
            lines.append(f"| {name} | {100 * float(rate):g} % | {span} | {one['looks']} |")
    lines += ["", "| shift | accuracy | " + " | ".join(f"{count:,} pictures" for count in COUNTS) + " |"]
    lines.append("|---|" + "---:|" * (1 + len(COUNTS)))
    for name, row in found["power"].items():
        shares = [row[str(count)]["rates"][str(min(RATES))]["share"] for count in COUNTS if name != NONE]
        cells = [f"{100 * share:.0f} %" for share in shares] or [""] * len(COUNTS)
        lines.append(f"| {name} | {100 * row['accuracy']:.1f} % | {' | '.join(cells)} |")
    lines += ["", f"| {TO_LABEL} of {POOL:,}, chosen | wrong answers among them |", "|---|---:|"]
    lines += [f"| {name} | {100 * share:.0f} % |" for name, share in found["wrong_among_chosen"].items()]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drift", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--candidate", default="prune")
    parser.add_argument("--draws", type=int, default=500, help="looks at pictures that have not drifted")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the numbers are kept")
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args(arguments)
    try:
        if given.draws < 1:
            raise UserError(f"--draws: {given.draws}. Give 1 or more")
        found = measure(given.candidate, given.draws)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(render(found))
    return int(given.check and not holds(found["false_alarms"]))


if __name__ == "__main__":
    sys.exit(main())
