"""export: networks in the formats of other runtimes, those of thinner/runtimes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tasks.stage import Stage, run_stage
from thinner import layout
from thinner.compress.quantization import quantise_onnx
from thinner.data import views
from thinner.data.store import Store, open_store
from thinner.networks import checkpoint
from thinner.networks.export import COMPARED, ExportError, add_preprocessing, check_parity
from thinner.runtimes import catalogue
from thinner.runtimes.protocol import Source


def export(stage: Stage) -> None:
    section = stage.params.export
    for name in section.formats:
        catalogue.require(catalogue.OF[name])
    store = open_store("data/prepared")
    images = calibration_images(store, section.calibration_images, stage.params.run.seed)

    total = len(section.candidates) * len(section.formats)
    with stage.output("data/export") as folder, stage.progress("export", total=total) as bar:
        folder.mkdir(exist_ok=True)
        done = 0
        for source in section.candidates:
            for _ in _formats(stage, folder, source, images):
                done += 1
                bar.update(done)


def calibration_images(store: Store, count: int, seed: int) -> Any:
    """``count`` drawn of the validation images: not trained on, and not what evaluate measures on."""
    drawn = np.random.default_rng(seed).permutation(store.splits["validation"])
    return store.images[np.sort(drawn[:count])]


def _formats(stage: Stage, folder: Path, source: str, images: Any) -> Iterator[str]:
    """Write ``source`` in every format below ``folder``, and yield the name of each as it is done."""
    section = stage.params.export
    loaded = checkpoint.load(layout.networks(stage.params)[source])
    preprocessing = loaded.preprocessing
    inputs = views.preprocess(images, preprocessing).numpy()
    metadata = {"classes": loaded.spec["classes"], "preprocessing": preprocessing.as_json()}
    compared, pictures = inputs[:COMPARED], np.array(images[:COMPARED])
    with tempfile.TemporaryDirectory() as scratch:
        given = Source(loaded.model, inputs, metadata, section.opset, Path(scratch), quantise_onnx)
        for name in section.formats:
            runtime, format_ = catalogue.OF[name], catalogue.FORMATS[name]
            target = folder / f"{source}_{name}" / runtime.files[0]
            target.parent.mkdir(exist_ok=True)
            try:
                format_.write(given, target)
            except ExportError as error:  # of a file on the way to this one, maybe
                raise ExportError(f"{target.parent.name}: {error}") from error
            spec = {**loaded.spec, "format": name, "stage": "export", "parents": {source: loaded.sha256}}
            pixels = format_.pixels and section.preprocessing_in_graph
            if pixels:
                spec["input"] = "pixels"
                about = {**metadata, "input": "pixels"}
                add_preprocessing(target, preprocessing, images.shape[-1], about)
            if not format_.int8:
                run = runtime.open(target, 0)
                difference = check_parity(loaded.model, target, compared, inputs=pictures if pixels else None, run=run)
                _compare(stage, target.parent.name, difference, len(compared))
            checkpoint.write_spec(target.parent, spec, *runtime.files)
            for file in runtime.files:
                stage.record.artifact(target.with_name(file), folder=target.parent.name)
            yield target.parent.name


def _compare(stage: Stage, name: str, difference: float, images: int) -> None:
    stage.say(f"{name}: logits within {difference:.1e} of the checkpoint's on {images} images")
    stage.record.metrics({f"{name}/largest_logit_difference": difference})


if __name__ == "__main__":
    run_stage("export", export)
