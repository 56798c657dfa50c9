"""Does the ladder to 8 bits hold where post-training quantisation alone does not?

    python -m benchmarks.quantization                        # a table, as in docs/quantization.md
    python -m benchmarks.quantization --check                # and exit code 1 where a must falls short
    python -m benchmarks.quantization lite0 --seeds 0        # parts by name
    python -m benchmarks.quantization --quick                # less trained: minutes a part
    python -m benchmarks.quantization --json FILE            # and the numbers
    python -m benchmarks.quantization --nncf PYTHON          # beside NNCF, of an environment of its own that has it

Fashion-MNIST as in params.yaml, but for 8,000 validation images, since 2,000 show little. All networks but `few` have
the default job's teacher (EfficientNet-Lite0, fine-tuned), whose cached signals they learn from:

    lite0       the teacher itself
    few         the same network at 32 px, of 200 labels in place of 2,000: small margins, which `static` does not bear
    mobilenet   timm's MobileNetV3-small at 32 px, distilled
    resnet18    torchvision's ResNet-18 at 32 px, distilled
    resnet8     the default job's student, distilled and pruned

Of each the stage `quantize` climbs its ladder; then every attempt is tested on the 10,000 test images against the float
network, paired. `static` is what post-training quantisation alone gives: the best of three calibrations. NNCF's
accuracy-aware quantisation (`quantize_with_accuracy_control`) gets the same float ONNX file, calibration and validation
images and bound; it runs in the environment whose Python is named:

    python -m venv .nncf && .nncf/bin/pip install nncf onnx onnxruntime openvino

What was done lies in `--work` (.thinner/quantization) and is not done again, nor are the numbers of other choices
(`--set`) told apart there: give those a folder of their own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml

from tasks import distill, finetune, prepare, prune, quantize, teach
from tasks.stage import Stage
from thinner import predict
from thinner.compress.fake_quantization import FakeQuantised
from thinner.data import store, views
from thinner.evidence import drop
from thinner.learn.training import logits_of
from thinner.networks import checkpoint
from thinner.params import Params

VALIDATION = 8_000
MOST_POINTS = 0.5  # that the ladder may lose on the test images
FALLS_POINTS = 2.0  # at least one network loses more by static alone
COLOUR = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "width": None, "stem_stride": None}
# what differs from params.yaml, by dotted key; and the stages that make the network
PARTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "lite0": ({"quantize.source": "finetune", "quantize.training.batch_size": 64}, ()),
    "few": (
        {
            "data.labelled": 200, "finetune.image_size": 32, "quantize.source": "finetune",
            "quantize.training.batch_size": 64,
        },
        ("prepare", "finetune", "teach"),
    ),
    "mobilenet": (
        {
            "student.network": "timm:mobilenetv3_small_100", "quantize.source": "distill", "student.training.lr": 0.003,
            "quantize.training.batch_size": 128, **{f"student.{key}": value for key, value in COLOUR.items()},
        },
        ("distill",),
    ),
    "resnet18": (
        {
            "student.network": "torchvision:resnet18", "quantize.source": "distill", "student.training.steps": 400,
            "student.training.lr": 0.003, "quantize.training.batch_size": 128,
            **{f"student.{key}": value for key, value in COLOUR.items()},
        },
        ("distill",),
    ),
    "resnet8": ({}, ("distill", "prune")),
}  # fmt: skip
# --quick: a teacher of less, of fewer images, and short trainings
QUICK = {
    "finetune.training.epochs": 3, "data.unlabelled": 6_000,
    "student.training.steps": 300, "student.training.validate_every": 100, "student.training.batch_size": 128,
    "prune.training.steps": 150, "prune.training.validate_every": 50,
    "quantize.training.steps": 150, "quantize.training.validate_every": 50, "quantize.training.batch_size": 64,
}  # fmt: skip
STAGES: dict[str, Callable[[Stage], None]] = {
    "prepare": prepare.prepare,
    "finetune": finetune.finetune,
    "teach": teach.teach,
    "distill": distill.distill,
    "prune": prune.prune,
    "quantize": quantize.quantize,
}
MADE = {"prepare": "data/prepared"}  # the others make data/NAME
SHARED = ("prepare", "finetune", "teach")  # by the parts that do not make them for themselves


def params_of(root: Path, part: str | None, seed: int, changes: Mapping[str, Any]) -> Params:
    raw = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
    given = {
        "run.seed": seed, "run.threads": 1, "run.device": "cpu", "data.root": str(root / "data/raw"),
        "data.validation": VALIDATION, "prune.on_miss": "keep", "quantize.max_drop": MOST_POINTS,
        **(PARTS[part][0] if part else {}), **changes,
    }  # fmt: skip
    for key, value in given.items():
        place = raw
        *sections, last = key.split(".")
        for section in sections:
            place = place[section]
        place[last] = value
    return Params.model_validate(raw)


def make(params: Params, stages: tuple[str, ...]) -> None:
    """Run the stages whose result is not there yet, in the present folder."""
    for name in stages:
        if not Path(MADE.get(name, f"data/{name}")).exists():
            STAGES[name](Stage(name, params))


def run_part(root: Path, work: Path, part: str, seed: int, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The ladder of one network with one seed, tested; from `result.json` where it was done."""
    base, folder = work / f"seed{seed}", work / f"seed{seed}-{part}"
    kept = folder / "result.json"
    if kept.is_file():
        return dict(json.loads(kept.read_text(encoding="utf-8")))
    for place in (base, folder):
        place.mkdir(parents=True, exist_ok=True)
    shared = tuple(name for name in SHARED if name not in PARTS[part][1])
    with contextlib.chdir(base):
        make(params_of(root, None, seed, changes), shared)
    start = time.monotonic()
    with contextlib.chdir(folder):
        Path("data").mkdir(exist_ok=True)
        for name in shared:
            if not (link := Path(MADE.get(name, f"data/{name}"))).exists():
                link.symlink_to(base.resolve() / link)
        params = params_of(root, part, seed, changes)
        make(params, (*PARTS[part][1], "quantize"))
        found = tested(params) | {"minutes": (time.monotonic() - start) / 60, "part": part, "seed": seed}
        Path("result.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def attempts() -> Path:
    (folder,) = Path(".thinner/resume").glob("quantize-*/climb/attempts")
    return folder


def tested(params: Params) -> dict[str, Any]:
    """Every attempt of the ladder on the test images, against the float network."""
    data = store.open_store("data/prepared")
    test = data.splits["test"]
    labels = np.asarray(data.labels[test])
    table = pd.read_csv("reports/quantize/ladder.csv")

    def answers(folder: Path) -> Any:
        return predict.predict_logits(predict.open_candidate(folder, threads=1), data.images, test, 256)

    whole = answers(attempts() / "float")
    right = whole.argmax(1) == labels
    rows = []
    for row in table.to_dict("records"):
        folder = attempts() / folder_of(row)
        logits = answers(folder)
        lost = drop.drop_of(logits.argmax(1) == labels, right, MOST_POINTS)
        kept = {key: row[key] for key in ("rung", "calibration", "steps", "float_layers", "float_weights", "chosen",
                                          "holds", "file_bytes", "latency_ms", "accuracy")}  # fmt: skip
        same = float((logits.argmax(1) == whole.argmax(1)).mean())
        rows.append(
            {str(k): None if isinstance(v, float) and np.isnan(v) else v for k, v in kept.items()}
            | {"test_accuracy": float((logits.argmax(1) == labels).mean()), "agreement": same,
               "points": lost.points, "low": lost.low, "high": lost.high}
        )  # fmt: skip
        if row["rung"] == "trained":
            import onnx

            network = FakeQuantised(onnx.load(folder / "model.onnx"))
            seen = views.Preprocessing.from_json(checkpoint.read_spec(folder)["preprocessing"])
            mine = logits_of(network, data.images, test, seen).numpy()
            rows[-1] |= {
                "trained_difference": float(np.abs(mine - logits).max()),
                "trained_agreement": float((mine.argmax(1) == logits.argmax(1)).mean()),
            }
    return {"attempts": rows, "network": checkpoint.read_spec(attempts() / "float")["network"]["name"]}


def folder_of(row: Mapping[str, Any]) -> str:
    if row["rung"] in ("float", "trained"):
        return str(row["rung"])
    return f"{row['rung']}-{row['calibration']}-{int(row['float_layers'])}"


def beside_nncf(
    python: str, work: Path, part: str, seed: int, changes: Mapping[str, Any], root: Path
) -> dict[str, Any]:
    """NNCF's accuracy-aware quantisation of the same float file, tested in the same way."""
    folder = work / f"seed{seed}-{part}"
    kept = folder / "nncf.json"
    if kept.is_file():
        return dict(json.loads(kept.read_text(encoding="utf-8")))
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.chdir(folder):
        params = params_of(root, part, seed, changes)
        data = store.open_store("data/prepared")
        preprocessing = views.Preprocessing.from_json(checkpoint.read_spec(attempts() / "float")["preprocessing"])
        pool = np.sort(np.concatenate([data.splits["labelled"], data.splits["unlabelled"]]))
        chosen = np.sort(np.random.default_rng(seed).permutation(pool)[: params.quantize.images])
        given = {}
        for name, index in (("calibration", chosen), *((n, data.splits[n]) for n in ("validation", "test"))):
            given[name] = views.preprocess(np.asarray(data.images[index]), preprocessing).numpy()
        labels = {name: np.asarray(data.labels[data.splits[name]]) for name in ("validation", "test")}
        np.savez("nncf.npz", **given, labels=labels["validation"], allow_pickle=False)
        program = Path(__file__).with_name("nncf_peer.py")
        model = attempts() / "float" / "model.onnx"
        start = time.monotonic()
        command = [python, str(program), str(model), "nncf.npz", "nncf.onnx", str(MOST_POINTS / 100), "nncf-logits.npy"]
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        Path("nncf.npz").unlink()
        if done.returncode:
            return {"failed": (done.stderr.strip().splitlines() or ["no words"])[-1]}
        logits = np.load("nncf-logits.npy")
        candidate = predict.open_candidate(attempts() / "float", threads=1)
        whole = predict.predict_logits(candidate, data.images, data.splits["test"], 256)
        right, its = (values.argmax(1) == labels["test"] for values in (logits, whole))
        lost = drop.drop_of(right, its, MOST_POINTS)
        found = {
            "points": lost.points, "low": lost.low, "high": lost.high, "test_accuracy": float(right.mean()),
            "file_bytes": Path("nncf.onnx").stat().st_size, "minutes": (time.monotonic() - start) / 60,
        }  # fmt: skip
        Path("nncf.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def static_of(found: Mapping[str, Any]) -> dict[str, Any]:
    """What post-training quantisation alone gives: of static the attempt that the ladder takes, by validation."""
    rows = [row for row in found["attempts"] if row["rung"] == "static"]
    chosen = next((row for row in rows if row["chosen"]), None)
    return dict(chosen or max(rows, key=lambda row: row["accuracy"]))


def chosen_of(found: Mapping[str, Any]) -> dict[str, Any]:
    return dict(next(row for row in found["attempts"] if row["chosen"]))


def musts(results: list[dict[str, Any]]) -> dict[str, bool]:
    holds = {
        f"{found['part']}, seed {found['seed']}: at most {MOST_POINTS} points lost on the test images": (
            chosen_of(found)["points"] <= MOST_POINTS
        )
        for found in results
    }
    falls = max((static_of(found)["points"] for found in results), default=0.0)
    return holds | {f"static alone loses more than {FALLS_POINTS} points of one network": falls > FALLS_POINTS}


def _share(row: Mapping[str, Any], whole: Mapping[str, Any]) -> str:
    return f"{100 * row['file_bytes'] / whole['file_bytes']:.0f} %"


def markdown(results: list[dict[str, Any]]) -> str:
    lines = [
        "| network, seed | float | static alone, points lost | the ladder, points lost | rung | file of float "
        "| NNCF: points lost, file, time |",
        "|---|---:|---:|---:|---|---:|---:|",
    ]
    for found in results:
        whole, static, chosen = found["attempts"][0], static_of(found), chosen_of(found)
        count = int(chosen["float_layers"] or 0)
        left = f", {count} layer{'s' * (count != 1)} in float" if count else ""
        peer = found.get("nncf", {})
        cells = [
            f"{found['part']}, {found['seed']}",
            f"{100 * whole['test_accuracy']:.2f} %",
            *(f"{row['points']:.2f} [{row['low']:.2f}, {row['high']:.2f}]" for row in (static, chosen)),
            f"{chosen['rung']}{left}{'' if chosen['holds'] else ' (not shown on validation)'}",
            _share(chosen, whole),
            f"{peer['points']:.2f} [{peer['low']:.2f}, {peer['high']:.2f}], {_share(peer, whole)}, "
            f"{60 * peer['minutes']:.0f} s" if "points" in peer else peer.get("failed", "not run"),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    for found in results:
        for row in found["attempts"]:
            if "trained_difference" in row:
                lines.append(
                    f"\n{found['part']}, seed {found['seed']}: of what was trained, ONNX Runtime's logits differ by "
                    f"{row['trained_difference']:.2g} at most, and {row['trained_agreement']:.2%} of the test images "
                    "get the same class."
                )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quantization", description=str(__doc__).splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"which of {', '.join(PARTS)} (all)")
    parser.add_argument("--seeds", default="0,1,2", help="comma between them (0,1,2)")
    parser.add_argument("--work", type=Path, default=Path(".thinner/quantization"), help="folder for what is done")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="another value of params.yaml")
    parser.add_argument("--quick", action="store_true", help="less trained, for minutes a part")
    parser.add_argument("--nncf", metavar="PYTHON", help="Python of an environment that has NNCF")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a must falls short")
    options = parser.parse_args(arguments)
    if unknown := [part for part in options.parts if part not in PARTS]:
        parser.error(f"unknown part '{unknown[0]}'. Choose one of: {', '.join(PARTS)}")
    given = {key: yaml.safe_load(value) for key, _, value in (text.partition("=") for text in options.set)}
    changes = {**(QUICK if options.quick else {}), **given}
    root, work = Path.cwd(), options.work.resolve() / ("quick" if options.quick else "whole")
    torch.set_num_threads(1)
    results = []
    for seed in (int(text) for text in options.seeds.split(",")):
        for part in options.parts or PARTS:
            found = run_part(root, work, part, seed, changes)
            if options.nncf:
                python = str(Path(options.nncf).absolute())
                found["nncf"] = beside_nncf(python, work, part, seed, changes, root)
            results.append(found)
            print(markdown(results), flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    verdicts = musts(results)
    for text, holds in verdicts.items():
        print(f"{'holds' if holds else 'FALLS SHORT'}: {text}")
    return int(options.check and not all(verdicts.values()))


if __name__ == "__main__":
    sys.exit(main())
