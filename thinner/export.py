"""Candidates for other runtimes: ONNX, and int8 by static quantisation; both run by ONNX Runtime.

An export is a folder with `model.onnx` and `model.json`, read like a checkpoint's. The ONNX file also says by
itself what its outputs mean and how an image becomes its input: `metadata_props` carries `classes` and
`preprocessing` as JSON.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from jaxtyping import Float
from torch import nn

from thinner.errors import UserError

Images = Float[np.ndarray, "batch channels height width"]
Logits = Float[np.ndarray, "batch classes"]

INPUT, OUTPUT = "images", "logits"
PROTOBUF_LIMIT_BYTES = 2**31 - 2**24  # a larger message cannot be written; its weights go to a file beside it


class ExportError(UserError):
    """An export that does not compute what the network computes."""


def export_onnx(
    model: nn.Module,
    path: str | Path,
    input_shape: tuple[int, int, int],
    metadata: Mapping[str, Any],
    opset: int,
) -> None:
    """Write ``model`` to ``path`` as ONNX with a free batch size, checked by ``onnx.checker``.

    ``input_shape`` is (channels, height, width) of one preprocessed image; ``metadata`` is stored as JSON, a
    property per key. The file holds no paths, times or source lines of the machine that made it: equal
    networks give equal files.
    """
    # a copy in the standard layout: the exporter writes what it is given, and ONNX knows no channels_last
    network = copy.deepcopy(model).cpu().eval().to(memory_format=torch.contiguous_format)
    # batch 2, because torch.export takes a size of 1 to be a constant
    example = torch.zeros((2, *input_shape))
    program = torch.onnx.export(
        network,
        (example,),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        input_names=[INPUT],
        output_names=[OUTPUT],
        opset_version=opset,
        verbose=False,
    )
    if program is None:
        raise ExportError(f"torch.onnx.export gave no program for {type(model).__name__}")
    _save(program.model_proto, path, metadata)


def check_parity(
    network: Callable[[torch.Tensor], torch.Tensor], path: str | Path, images: Images, tolerance: float = 1e-4
) -> float:
    """The largest difference between the logits of ``network`` and of ONNX Runtime on ``images``.

    Images go through in batches of 1 and of all, so that a batch size frozen into the graph shows. Raises
    ExportError with the numbers when the difference exceeds ``tolerance``.
    """
    session = open_session(path)
    worst = 0.0
    with torch.inference_mode():
        for batch in (images[:1], images):
            expected = network(torch.from_numpy(batch)).float().numpy()
            got = run_session(session, batch)
            if got.shape != expected.shape:
                raise ExportError(f"{path}: logits {got.shape}, but PyTorch's are {expected.shape}")
            # np.maximum keeps NaN, which max() would lose
            worst = float(np.maximum(worst, np.abs(got.astype(np.float64) - expected).max()))
    if not worst <= tolerance:  # written so that NaN fails
        raise ExportError(
            f"{path}: logits differ from PyTorch's by up to {worst:.2e} on {len(images)} images; "
            f"allowed are {tolerance:.0e}. Try another export.opset, or leave ONNX out of export.formats"
        )
    return worst


def quantise_onnx(source: str | Path, path: str | Path, batches: Iterable[Images]) -> None:
    """Write ``source`` to ``path`` with weights and activations in 8 bits.

    Static quantisation by ONNX Runtime in its QDQ form (Jacob et al. 2018, https://arxiv.org/abs/1712.05877):
    a range per output channel for weights, a range per tensor for activations, found as the smallest and
    largest values that occur on ``batches`` (preprocessed images that are neither trained on nor tested on).
    Batch norms are folded into convolutions first. Not done: quantisation-aware training. How much accuracy
    it costs is for evaluate to say.
    """
    # imported here because they bring a second of imports that no other stage needs
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no type information
        def __init__(self) -> None:
            self._batches = iter(batches)

        def get_next(self) -> dict[str, Images] | None:
            batch = next(self._batches, None)
            return None if batch is None else {INPUT: batch}

    metadata = read_metadata(source)
    with tempfile.TemporaryDirectory() as folder:
        folded, quantised = Path(folder) / "folded.onnx", Path(folder) / "quantised.onnx"
        # symbolic shape inference is for transformers' dynamic sequence lengths; only our batch size is free
        quant_pre_process(source, folded, skip_symbolic_shape=True)
        quantize_static(
            folded,
            quantised,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            # CPUs without VNNI add two 8-bit products in 16 bits and overflow silently; 7-bit weights cannot
            reduce_range=True,
        )
        _save(onnx.load(quantised), path, metadata)


def open_session(path: str | Path, threads: int = 0) -> onnxruntime.InferenceSession:
    """ONNX Runtime on the CPU for ``path``, with exactly ``threads`` threads (0: one per core)."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # its idle threads would spin on, and take the CPU from whoever is timed next
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run_session(session: onnxruntime.InferenceSession, images: Images) -> Logits:
    logits: Logits = session.run([OUTPUT], {INPUT: images})[0]
    return logits


def read_metadata(path: str | Path) -> dict[str, Any]:
    """What ``export_onnx`` stored beside the graph."""
    model = onnx.load(path, load_external_data=False)
    return {item.key: json.loads(item.value) for item in model.metadata_props}


def _save(model: onnx.ModelProto, path: str | Path, metadata: Mapping[str, Any]) -> None:
    # the exporter notes for each node which line of which file on this machine it came from
    del model.metadata_props[:]
    for thing in (
        model.graph,
        *model.graph.node,
        *model.graph.input,
        *model.graph.output,
        *model.graph.value_info,
        *model.graph.initializer,
        *(node for function in model.functions for node in function.node),
    ):
        del thing.metadata_props[:]
        thing.doc_string = ""
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in metadata.items()})
    onnx.save(
        model,
        path,
        save_as_external_data=model.ByteSize() > PROTOBUF_LIMIT_BYTES,
        location=f"{Path(path).name}.data",
    )
    onnx.checker.check_model(str(path), full_check=True)
