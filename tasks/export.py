"""export: networks as ONNX, and as ONNX in 8 bits, for ONNX Runtime."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tasks.stage import Stage, run_stage
from thinner import checkpoint, views
from thinner.export import check_parity, export_onnx, quantise_onnx
from thinner.store import open_store

CALIBRATION_BATCH = 64  # bounds memory; ranges are smallest and largest values, so it changes no result


def export(stage: Stage) -> None:
    section = stage.params.export
    store = open_store("data/prepared")
    # validation images: not trained on, and not what evaluate measures on
    validation = store.splits["validation"]
    chosen = np.random.default_rng(stage.params.run.seed).permutation(validation)[: section.calibration_images]
    images = store.images[np.sort(chosen)]

    total = len(section.candidates) * len(section.formats)
    with stage.output("data/export") as folder, stage.progress("export", total=total) as bar:
        folder.mkdir(exist_ok=True)
        done = 0
        for source in section.candidates:
            for _ in _formats(stage, folder, source, images):
                done += 1
                bar.update(done)


def _formats(stage: Stage, folder: Path, source: str, images: Any) -> Iterator[str]:
    """Write ``source`` in every format below ``folder``, and yield the name of each as it is done."""
    section = stage.params.export
    loaded = checkpoint.load(f"data/{source}")
    preprocessing = loaded.spec["preprocessing"]
    inputs = views.preprocess(images, preprocessing).numpy()
    plain = folder / f"{source}_onnx" / "model.onnx"
    plain.parent.mkdir()
    metadata = {"classes": loaded.spec["classes"], "preprocessing": preprocessing}
    shape = inputs.shape[1:]
    export_onnx(loaded.model, plain, (shape[0], shape[1], shape[2]), metadata, section.opset)
    compared = inputs[:CALIBRATION_BATCH]
    difference = check_parity(loaded.model, plain, compared)
    stage.say(f"{source}_onnx: logits within {difference:.1e} of PyTorch's on {len(compared)} images")
    stage.record.metrics({f"{source}_onnx/largest_logit_difference": difference})
    for format_ in section.formats:
        target = folder / f"{source}_{format_}" / "model.onnx"
        target.parent.mkdir(exist_ok=True)
        if format_ == "onnx_int8":
            quantise_onnx(plain, target, np.array_split(inputs, -(-len(inputs) // CALIBRATION_BATCH)))
        spec = {**loaded.spec, "format": format_, "stage": "export", "parents": {source: loaded.sha256}}
        (target.parent / "model.json").write_text(json.dumps(spec, indent=1, sort_keys=True) + "\n")
        stage.record.artifact(target, folder=target.parent.name)
        yield target.parent.name
    if "onnx" not in section.formats:  # then it was only a step on the way
        plain.unlink()
        plain.parent.rmdir()


if __name__ == "__main__":
    run_stage("export", export)
