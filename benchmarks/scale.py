"""ImageNet and a billion pictures, worked out on paper from what is measured here.

    python -m benchmarks.orchestration files --json files.json     # first: DVC, by number of files
    python -m benchmarks.scale files.json                          # some three minutes, then the table
    python -m benchmarks.scale files.json --core-hour 0.04 --gb-month 0.02 --json FILE

Measured are one core's pictures a second of decoding (JPEGs of 500 x 375 to 224 px), and this machine's of asking a
teacher (EfficientNet-Lite0, 224 px) and of a training step of a student with cached signals (ResNet-18, 224 px). The
rest is arithmetic, in `work_out`. Prices are assumptions, given as options; no price list was asked.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import distillation
from thinner.errors import UserError

SIDE, CLASSES, PASSES, TOP_K = 224, 1000, 90, 20
JPEG_BYTES = 110_000  # a photo of ImageNet: some 140 GB for 1.28 million
SIZES = {"ImageNet": 1_281_167, "a billion": 1_000_000_000}
RAM, DISK = 128e9, 20e12  # of a large machine, for what breaks first


def measure_decoding(count: int = 200) -> float:
    """Seconds of one core for a picture, from a JPEG in memory to the array that `prepare` keeps."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    from thinner.data import store

    files = []
    for photo in load_sample_images().images:
        made = io.BytesIO()
        Image.fromarray(photo).resize((500, 375)).save(made, "JPEG", quality=90)
        files.append(made.getvalue())
    took = []
    for number in range(count):
        data = files[number % len(files)]
        began = time.perf_counter()
        store.decode(lambda data=data: Image.open(io.BytesIO(data)), SIDE, 3, "crop")  # type: ignore[misc]
        took.append(time.perf_counter() - began)
    return sorted(took)[count // 2]


def measure(rounds: int) -> tuple[dict[str, float], int]:
    """Seconds for a picture of `decode` (one core), `ask` and `train`; and on how many cores the last two were."""
    from statistics import median

    import torch

    params, _ = distillation.set_up()
    job = next(job for job in distillation.jobs(params) if job.stored_size == SIDE)
    with tempfile.TemporaryDirectory() as folder:
        times = distillation.measure(job, rounds, Path(folder), params)
    asked = median(live - cached for live, cached in zip(times["live"], times["cached"], strict=True))
    found = {"decode": measure_decoding(), "ask": float(asked), "train": float(median(times["cached"]))}
    return found, torch.get_num_threads()


def work_out(
    pictures: int, seconds: Mapping[str, float], files: Mapping[str, Any], cores: int, core_hour: float, gb_month: float
) -> dict[str, float]:
    """Bytes, hours and money for ``pictures``.

    ``files``: of benchmarks.orchestration, whose largest row is continued by its exponents. ``cores`` are those that
    `ask` and `train` had. Views: one.
    """
    last = files["rows"][-1]
    times = pictures / last["files"]
    pixels = pictures * SIDE * SIDE * 3
    core_hours = {
        "decode": pictures * seconds["decode"] / 3600,
        "ask": pictures * seconds["ask"] * cores / 3600,
        "train": pictures * PASSES * seconds["train"] * cores / 3600,
    }
    return {
        "raw_bytes": float(pictures * JPEG_BYTES),
        "pixel_bytes": float(pixels),
        "signal_bytes": float(pictures * (2 * CLASSES + 4)),
        "top_k_bytes": float(pictures * (6 * TOP_K + 8)),
        "hash_hours": last["add"] * times ** files["add_exponent"] / 3600,
        "hash_memory": last["peak_bytes"] * times ** files["peak_bytes_exponent"],
        **{f"{name}_core_hours": hours for name, hours in core_hours.items()},
        "computing": sum(core_hours.values()) * core_hour,
        "keeping": (pictures * JPEG_BYTES + 2 * pixels) / 1e9 * gb_month,  # pixels in the cache and, copied, in data
    }


def first_to_break(pictures: int, files: Mapping[str, Any]) -> list[str]:
    """What a large machine does not hold, each with the number of pictures from which on it does not."""
    last, broken = files["rows"][-1], []
    bounds = {
        "the pixels of `prepare`, one file on one disk": DISK / (SIDE * SIDE * 3),
        "the memory of `dvc add` on single files": last["files"]
        * (RAM / last["peak_bytes"]) ** (1 / max(files["peak_bytes_exponent"], 1e-3)),
        "the signals of `teach`, all classes": DISK / (2 * CLASSES + 4),
    }
    for what, bound in sorted(bounds.items(), key=lambda item: item[1]):
        if pictures > bound:
            broken.append(f"{what}: from {bound:,.0f} pictures on")
    return broken


_ROWS = {
    "raw_bytes": "raw JPEGs", "pixel_bytes": "pixels that `prepare` keeps", "signal_bytes": "logits, all classes",
    "top_k_bytes": f"logits, `top_k: {TOP_K}`", "hash_hours": "`dvc add` of single files", "hash_memory": "its memory",
    "decode_core_hours": "decoding", "ask_core_hours": "asking the teacher, one view",
    "train_core_hours": f"training a student, {PASSES} passes", "computing": "computing", "keeping": "keeping, a month",
}  # fmt: skip


def render(found: Mapping[str, Any]) -> str:
    seconds, jobs = found["seconds"], found["jobs"]
    lines = [
        f"Measured: decoding {1 / seconds['decode']:,.0f} pictures a second and core; on {found['cores']} cores the "
        f"teacher {1 / seconds['ask']:,.0f}, a training step {1 / seconds['train']:,.0f}.",
        "",
        "| | " + " | ".join(f"{name} ({count:,})" for name, count in SIZES.items()) + " |",
        "|---|" + "---:|" * len(SIZES),
    ]
    for key, words in _ROWS.items():
        lines.append(f"| {words} | " + " | ".join(_text(key, jobs[name][key]) for name in SIZES) + " |")
    for name, broken in found["breaks"].items():
        lines += ["", f"{name}: {'; '.join(broken) if broken else 'a large machine holds it'}."]
    return "\n".join(lines)


def _text(key: str, value: float) -> str:
    if key.endswith(("bytes", "memory")):
        unit, size = next(((u, s) for u, s in (("TB", 1e12), ("GB", 1e9)) if value >= s), ("MB", 1e6))
        return f"{value / size:,.1f} {unit}"
    if key == "hash_hours":
        return f"{value * 60:,.0f} min" if value < 2 else f"{value:,.0f} h"
    return f"{value:,.{1 if value < 10 else 0}f} core hours" if key.endswith("hours") else f"{value:,.0f} USD"


def main() -> int:
    parser = distillation.parser_of("scale", str(__doc__))
    parser.add_argument("files", type=Path, help="what benchmarks.orchestration files --json wrote")
    parser.add_argument("--rounds", type=int, default=5, help="of measuring (5)")
    parser.add_argument("--core-hour", type=float, default=0.04, help="assumed price in USD (0.04)")
    parser.add_argument("--gb-month", type=float, default=0.02, help="assumed price in USD (0.02)")
    options = parser.parse_args()
    try:
        files = json.loads(options.files.read_text())["files"]
        if len(files["rows"]) < 2:
            raise UserError(
                f"{options.files}: one number of files shows no exponent. Measure two: --files 10000 100000"
            )
        seconds, cores = measure(options.rounds)
    except (OSError, ValueError, KeyError) as error:
        print(f"{options.files}: not what benchmarks.orchestration files --json writes ({error})", file=sys.stderr)
        return 2
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    found = {
        "seconds": seconds,
        "cores": cores,
        "jobs": {
            name: work_out(count, seconds, files, cores, options.core_hour, options.gb_month)
            for name, count in SIZES.items()
        },
        "breaks": {name: first_to_break(count, files) for name, count in SIZES.items()},
    }
    print(render(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
