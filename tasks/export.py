"""export: networks as ONNX, and as ONNX in 8 bits, for ONNX Runtime; and as torch.export programs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tasks.stage import Stage, run_stage
from thinner import layout
from thinner.compress.quantization import quantise_onnx
from thinner.data import views
from thinner.data.store import open_store
from thinner.networks import checkpoint
from thinner.networks.export import add_preprocessing, check_parity, export_onnx, export_pt2

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
    loaded = checkpoint.load(layout.networks(stage.params)[source])
    preprocessing = loaded.spec["preprocessing"]
    inputs = views.preprocess(images, preprocessing).numpy()
    metadata = {"classes": loaded.spec["classes"], "preprocessing": preprocessing}
    shape = (inputs.shape[1], inputs.shape[2], inputs.shape[3])
    compared = inputs[:CALIBRATION_BATCH]
    plain = folder / f"{source}_onnx" / "model.onnx"
    if any(format_.startswith("onnx") for format_ in section.formats):
        plain.parent.mkdir()
        export_onnx(loaded.model, plain, shape, metadata, section.opset)
        _compare(stage, f"{source}_onnx", check_parity(loaded.model, plain, compared), len(compared))
    # "onnx" comes last: int8 is made from it, and it may get its preprocessing only afterwards
    for format_ in sorted(section.formats, key=lambda name: name == "onnx"):
        target = folder / f"{source}_{format_}" / ("model.pt2" if format_ == "pt2" else "model.onnx")
        target.parent.mkdir(exist_ok=True)
        spec = {**loaded.spec, "format": format_, "stage": "export", "parents": {source: loaded.sha256}}
        if format_ == "pt2":
            export_pt2(loaded.model, target, shape, metadata)
            _compare(stage, target.parent.name, check_parity(loaded.model, target, compared), len(compared))
        elif format_ == "onnx_int8":
            quantise_onnx(plain, target, np.array_split(inputs, -(-len(inputs) // CALIBRATION_BATCH)))
        if format_ != "pt2" and section.preprocessing_in_graph:
            spec["input"] = "pixels"
            add_preprocessing(target, preprocessing, images.shape[-1], {**metadata, "input": "pixels"}, section.opset)
            if format_ == "onnx":
                pictures = np.array(images[:CALIBRATION_BATCH])
                check_parity(loaded.model, target, compared, inputs=pictures)
        checkpoint.write_spec(target.parent, spec, target.name)
        stage.record.artifact(target, folder=target.parent.name)
        yield target.parent.name
    if plain.is_file() and "onnx" not in section.formats:  # then it was only a step on the way
        plain.unlink()
        plain.parent.rmdir()


def _compare(stage: Stage, name: str, difference: float, images: int) -> None:
    stage.say(f"{name}: logits within {difference:.1e} of the checkpoint's on {images} images")
    stage.record.metrics({f"{name}/largest_logit_difference": difference})


if __name__ == "__main__":
    run_stage("export", export)
