"""NNCF's accuracy-aware quantisation of an ONNX file; run by benchmarks/quantization.py with the Python of an
environment that has NNCF, and so without anything of this project.

    python nncf_peer.py MODEL.onnx ARRAYS.npz OUT.onnx MAX_DROP LOGITS.npy

ARRAYS.npz has `calibration`, `validation` and `test` (preprocessed images) and `labels` (of validation). MAX_DROP is a
ratio. LOGITS.npy gets the logits of the test images in ONNX Runtime.
"""

import math
import sys

import nncf
import numpy as np
import onnx
import onnxruntime

BATCH = 64
RANKED_BY = 300  # images, NNCF's default, which counts items: of one image each


def logits_of(model, batches):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return [session.run(None, {name: images})[0] for images in batches]


def batches_of(images):
    return [images[start : start + BATCH] for start in range(0, len(images), BATCH)]


def main(path, arrays, out, max_drop, logits):
    given = np.load(arrays, allow_pickle=False)
    model = onnx.load(path)
    name = model.graph.input[0].name

    def accuracy(candidate, batches):
        batches = list(batches)
        answers = logits_of(candidate, [images for images, _ in batches])
        right = [logits.argmax(1) == labels for logits, (_, labels) in zip(answers, batches, strict=True)]
        # NNCF ranks by the values of its items, which are batches
        return float(np.concatenate(right).mean()), [float(values.mean()) for values in right]

    pairs = list(zip(batches_of(given["validation"]), batches_of(given["labels"]), strict=True))
    calibration = given["calibration"]
    quantised = nncf.quantize_with_accuracy_control(
        model,
        calibration_dataset=nncf.Dataset(
            [calibration[n : n + 1] for n in range(len(calibration))], lambda image: {name: image}
        ),
        validation_dataset=nncf.Dataset(pairs, lambda pair: {name: pair[0]}),
        validation_fn=accuracy,
        max_drop=float(max_drop),
        drop_type=nncf.DropType.ABSOLUTE,
        subset_size=len(calibration),
        advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(
            ranking_subset_size=math.ceil(RANKED_BY / BATCH)
        ),
    )
    onnx.save(quantised, out)
    np.save(logits, np.concatenate(logits_of(quantised, batches_of(given["test"]))))


if __name__ == "__main__":
    main(*sys.argv[1:])
