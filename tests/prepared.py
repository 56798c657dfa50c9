"""What `prepare` leaves in data/prepared, as far as the stages after it read it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def write_prepared(
    root: Path, images: np.ndarray, labels: np.ndarray, splits: Mapping[str, Any], classes: Sequence[str]
) -> None:
    folder = root / "data" / "prepared"
    folder.mkdir(parents=True)
    np.save(folder / "images.npy", images.astype(np.uint8))
    np.save(folder / "labels.npy", labels)
    np.savez(folder / "splits.npz", **splits)
    (folder / "info.json").write_text(json.dumps({"classes": list(classes), "sha256": "0" * 64}))
    (folder / "names.json").write_text(json.dumps([f"{n}.png" for n in range(len(images))]))
