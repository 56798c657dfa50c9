"""A pt2 export as a LiteRT file (.tflite), in an environment of its own: the converter wants jax and an older pydantic.

    python -m venv litert && litert/bin/pip install litert-torch torch==2.14.1
    litert/bin/python benchmarks/litert.py data/export/prune_pt2/model.pt2 lite.tflite

It takes preprocessed images, one at a time. Says how far its logits are from those of the pt2 file at most, on 64
images of noise; exits with 1 where that is more than 1e-4. Nothing of this project is imported.
"""

import json
import sys
from pathlib import Path

import litert_torch
import numpy as np
import torch


def main(source: str, target: str) -> int:
    files = {"metadata.json": ""}
    program = torch.export.load(source, extra_files=files)  # runs code: only for files of your own (docs/security.md)
    network = program.module(check_guards=False).requires_grad_(False)
    sees = json.loads(files["metadata.json"])["preprocessing"]
    images = torch.randn(64, 1, len(sees["mean"]), sees["image_size"], sees["image_size"])
    converted = litert_torch.convert(network, (images[0],))
    converted.export(target)
    worst = max(float(np.abs(converted(image) - network(image).numpy()).max()) for image in images)
    print(
        f"{target}: {Path(target).stat().st_size:,} bytes, logits within {worst:.1e} of {source} on 64 images of noise"
    )
    return 0 if worst <= 1e-4 else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
