"""Does a bundle answer as `thinner predict` does, for every picture of the test split?

    python -m benchmarks.bundle prune prune_onnx_int8
    python -m benchmarks.bundle prune --python VENV/bin/python     an environment with the three packages alone

Makes each bundle in a temporary folder, writes the test pictures as PNG files, and has the bundle's own predict.py name
them in a process of its own. Exits with 1 where a class differs, or logits by more than the bundle allows.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tasks.bundle import make_bundle
from tasks.record.candidates import made
from thinner.config import load_params
from thinner.data.store import open_store
from thinner.predict import open_candidate

# runs in the bundle's folder, with its environment: decodes files, and keeps logits
PROGRAM = """
import sys, numpy as np, predict
network = predict.Network(threads=1)
files = open(sys.argv[1]).read().splitlines()
np.save(sys.argv[2], np.concatenate([network.logits(network.decode(file)[None]) for file in files]))
"""


def compare(candidate: str, files: list[Path], store: Any, python: str, folder: Path) -> dict[str, Any]:
    """The bundle of ``candidate`` against the candidate itself, on ``files``, which are the store's test pictures."""
    root = Path.cwd()
    bundle = make_bundle(root, load_params(), candidate, folder / candidate).folder
    (folder / "files.txt").write_text("\n".join(map(str, files)))
    found = folder / f"{candidate}.npy"
    command = [python, "-c", PROGRAM, str(folder / "files.txt"), str(found)]
    subprocess.run(command, cwd=bundle, check=True)
    opened = open_candidate(made(root)[candidate], threads=1)
    its = [
        opened.collect(opened.run(opened.place(opened.preprocess(np.array(store.images[i : i + 1])))))
        for i in store.splits["test"]
    ]
    mine, expected = np.load(found).astype(np.float64), np.concatenate(its)
    difference = np.abs(mine - expected).max(axis=1)
    return {
        "candidate": candidate,
        "pictures": len(files),
        "same_class": int((mine.argmax(axis=1) == expected.argmax(axis=1)).sum()),
        "largest_difference": float(difference.max()),
        "within_1e-4": int((difference <= 1e-4).sum()),
        "allowed": json.loads((bundle / "labels.json").read_text())["golden_tolerance"],
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("candidates", nargs="+")
    parser.add_argument("--python", default=sys.executable, help="of the environment that runs the bundle")
    parser.add_argument("--images", type=int, help="only so many test pictures")
    asked = parser.parse_args(arguments)
    store = open_store("data/prepared")
    test = store.splits["test"][: asked.images]
    store.splits["test"] = test  # type: ignore[index]  # our own copy
    right = True
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = [folder / f"{i}.png" for i in test]
        for i, file in zip(test, files, strict=True):
            pixels = np.asarray(store.images[i])
            Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file)
        for candidate in asked.candidates:
            row = compare(candidate, files, store, asked.python, folder)
            print(json.dumps(row))
            right &= row["same_class"] == row["pictures"] and row["largest_difference"] <= row["allowed"]
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
