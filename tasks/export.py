"""export: the pruned network as ONNX, and as ONNX in 8 bits, for ONNX Runtime."""

from __future__ import annotations

import json

import numpy as np

from tasks.stage import Stage, run_stage
from thinner import checkpoint, views
from thinner.export import check_parity, export_onnx, quantise_onnx
from thinner.store import open_store

SOURCE = "prune"
CALIBRATION_BATCH = 64  # bounds memory; ranges are smallest and largest values, so it changes no result


def export(stage: Stage) -> None:
    section = stage.params.export
    loaded = checkpoint.load(f"data/{SOURCE}")
    store = open_store("data/prepared")
    preprocessing = loaded.spec["preprocessing"]
    # validation images: not trained on, and not what evaluate measures on
    validation = store.splits["validation"]
    chosen = np.random.default_rng(stage.params.run.seed).permutation(validation)[: section.calibration_images]
    images = views.preprocess(store.images[np.sort(chosen)], preprocessing).numpy()

    with stage.output("data/export") as folder, stage.progress("export", total=len(section.formats)) as bar:
        folder.mkdir(exist_ok=True)
        plain = folder / f"{SOURCE}_onnx" / "model.onnx"
        plain.parent.mkdir()
        metadata = {"classes": loaded.spec["classes"], "preprocessing": preprocessing}
        shape = images.shape[1:]
        export_onnx(loaded.model, plain, (shape[0], shape[1], shape[2]), metadata, section.opset)
        difference = check_parity(loaded.model, plain, images[:CALIBRATION_BATCH])
        stage.say(f"onnx: logits within {difference:.1e} of PyTorch's on {len(images[:CALIBRATION_BATCH])} images")
        stage.record.metrics({"onnx/largest_logit_difference": difference})

        for number, format_ in enumerate(section.formats, start=1):
            target = folder / f"{SOURCE}_{format_}" / "model.onnx"
            target.parent.mkdir(exist_ok=True)
            if format_ == "onnx_int8":
                quantise_onnx(plain, target, np.array_split(images, -(-len(images) // CALIBRATION_BATCH)))
            spec = {**loaded.spec, "format": format_, "stage": "export", "parents": {SOURCE: loaded.sha256}}
            (target.parent / "model.json").write_text(json.dumps(spec, indent=1, sort_keys=True) + "\n")
            stage.record.artifact(target, folder=target.parent.name)
            bar.update(number)
        if "onnx" not in section.formats:  # then it was only a step on the way
            plain.unlink()
            plain.parent.rmdir()


if __name__ == "__main__":
    run_stage("export", export)
