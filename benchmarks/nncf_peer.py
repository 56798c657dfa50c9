"""NNCF's accuracy-aware quantisation of an ONNX file; run by benchmarks/quantization.py with the Python of an
environment that has NNCF, and so without anything of this project.

    python nncf_peer.py MODEL.onnx ARRAYS.npz OUT.onnx MAX_DROP LOGITS.npy

ARRAYS.npz has `calibration`, `validation` and `test` (preprocessed images) and `labels` (of validation). MAX_DROP is a
ratio. LOGITS.npy gets the logits of the test images in ONNX Runtime.
"""

import sys

import nncf
import numpy as np
import onnx
import onnxruntime

BATCH = 64


def run(model, images):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate(
        [session.run(None, {name: images[start : start + BATCH]})[0] for start in range(0, len(images), BATCH)]
    )


def main(path, arrays, out, max_drop, logits):
    given = np.load(arrays, allow_pickle=False)
    model = onnx.load(path)
    name = model.graph.input[0].name

    def accuracy(candidate, batches):
        right = [(run(candidate, images).argmax(1) == labels) for images, labels in batches]
        # NNCF ranks by the values of its items, which are batches
        return float(np.concatenate(right).mean()), [float(values.mean()) for values in right]

    def pairs(images, labels):
        return [(images[n : n + BATCH], labels[n : n + BATCH]) for n in range(0, len(images), BATCH)]

    calibration = given["calibration"]
    quantised = nncf.quantize_with_accuracy_control(
        model,
        calibration_dataset=nncf.Dataset(
            [calibration[n : n + 1] for n in range(len(calibration))], lambda image: {name: image}
        ),
        validation_dataset=nncf.Dataset(pairs(given["validation"], given["labels"]), lambda pair: {name: pair[0]}),
        validation_fn=accuracy,
        max_drop=float(max_drop),
        drop_type=nncf.DropType.ABSOLUTE,
        subset_size=len(calibration),
    )
    onnx.save(quantised, out)
    np.save(logits, run(quantised, given["test"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
