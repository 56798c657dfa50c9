"""8 bits by static quantisation: an ONNX network in ONNX Runtime's QDQ form, whole or with some layers left in float.

Weights get a scale for each output channel, activations a scale and a zero point for each tensor (Jacob et al. 2018,
https://arxiv.org/abs/1712.05877). Three steps, so that ranges are found once and used often: ``fold`` batch norms into
convolutions, ``calibrate`` ranges, ``quantise``. All work on files, as ONNX Runtime's quantiser does.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
from jaxtyping import Float
from onnx import numpy_helper

from thinner.errors import UserError, one_line
from thinner.networks.export import (
    INPUT,
    OUTPUT,
    Images,
    Logits,
    Method,
    open_session,
    read_metadata,
    run_session,
    save_onnx,
)

Batch = Float[np.ndarray, "_ channels height width"]  # of several that may be of other sizes
METHODS: tuple[Method, ...] = get_args(Method)
# what computes; the rest (Reshape, MaxPool, Relu after a convolution, ...) takes over the numbers that it is given
_COMPUTES = {"Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Mul", "Sigmoid", "Softmax", "LayerNormalization"}
_SUFFIXES = (".weight", ".bias")


class QuantiseError(UserError):
    """A network, or a way to quantise it, that 8 bits cannot be had of."""


@dataclass(frozen=True)
class Layer:
    """A part of the network that can be in 8 bits or in float."""

    node: str  # its name in the graph
    name: str  # the module's path where it has weights, else what it computes and how many-th of those it is
    kind: str
    weights: int  # numbers, without those that every layer may share


def fold(source: str | Path, path: str | Path) -> None:
    """Write ``source`` to ``path`` with batch norms folded into the convolutions before them, and a name for each
    node."""
    # imported here, as below, because they bring a second of imports that no other stage needs
    from onnxruntime.quantization.shape_inference import quant_pre_process

    # symbolic shape inference is for transformers' dynamic sequence lengths; only our batch size is free
    quant_pre_process(source, path, skip_symbolic_shape=True)
    model = onnx.load(path)
    taken = [node.name for node in model.graph.node]
    for number, node in enumerate(model.graph.node):
        if taken.count(node.name) > 1:  # functions of the exporter that were inlined leave theirs empty
            node.name = f"node_{number}_{node.op_type}"
    onnx.save(model, path)


def layers_of(folded: str | Path) -> list[Layer]:
    """What ``quantise`` can leave in float, in the order of the graph; no name has a space in it."""
    graph = onnx.load(folded).graph
    sizes = {item.name: int(np.prod(item.dims)) for item in graph.initializer}
    found, counts = [], dict.fromkeys(_COMPUTES, 0)
    for node in graph.node:
        if node.op_type not in _COMPUTES:
            continue
        counts[node.op_type] += 1
        own = [name for name in node.input if sizes.get(name, 0) > 1]
        named = next((name.removesuffix(end) for name in own for end in _SUFFIXES if name.endswith(end)), "")
        name = named or f"{node.op_type}-{counts[node.op_type]}"
        found.append(Layer(node.name, name, node.op_type, sum(sizes[name] for name in own)))
    return found


def calibrate(folded: str | Path, path: str | Path, batches: Iterable[Batch], method: Method) -> None:
    """Write to ``path`` the range of each activation on ``batches`` (preprocessed images), found by ``method``.

    minmax: the smallest and largest value. percentile: without the lowest and the highest 0.005 % of values. entropy:
    by the Kullback-Leibler divergence of histograms (Migacz 2017,
    https://www.cse.iitd.ac.in/~rijurekha/course/tensorrt.pdf), of which ONNX Runtime has 128 bins as its default, and
    so looks at no range narrower than the first batch's. All three are ONNX Runtime's. Raises QuantiseError where
    a method finds no range, as histograms do of values that hardly differ.
    """
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator, save_tensors_data

    class One(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no type information
        def __init__(self, batch: Images) -> None:
            self._left: list[dict[str, Images]] = [{INPUT: batch}]

        def get_next(self) -> dict[str, Images] | None:
            return self._left.pop() if self._left else None

    named = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}
    # its own percentile is symmetric, which leaves half of the 256 values to what a ReLU never gives
    options = {"percentile": 99.99, "symmetric": False} if method == "percentile" else {}
    # it tells what it does on the standard output
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        calibrator = create_calibrator(
            Path(folded),
            augmented_model_path=str(Path(folder, "augmented.onnx")),
            calibrate_method=CalibrationMethod[named[method]],
            extra_options=options,
        )
        try:
            for batch in batches:  # one by one: a histogram needs every activation of a batch in memory
                calibrator.collect_data(One(np.ascontiguousarray(batch)))
            found = calibrator.compute_data()
        except ValueError as error:  # NumPy's, of a histogram
            raise QuantiseError(f"calibration by {method} finds no range ({one_line(error)})") from error
        save_tensors_data(found, path)


def quantise(
    folded: str | Path,
    path: str | Path,
    ranges: str | Path,
    metadata: Mapping[str, Any],
    *,
    only: Sequence[str] = (),
    leave: Sequence[str] = (),
    float_logits: bool = False,
) -> None:
    """Write ``folded`` to ``path`` with weights and activations in 8 bits, by the ``ranges`` that `calibrate` wrote.

    ``only``: the nodes that are quantised (empty: all); ``leave``: those that stay in float. ``float_logits``: the last
    layer's result is not rounded to one of 256 values, among which the two highest logits are often equal.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import load_tensors_data

    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "quantised.onnx"
        quantize_static(
            Path(folded),
            target,
            None,
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            # CPUs without VNNI add two 8-bit products in 16 bits and overflow silently; 7-bit weights cannot
            reduce_range=True,
            calibrate_method=load_tensors_data(ranges).calibration_method,  # it asks whether that was meant
            calibration_cache_path=ranges,
            nodes_to_quantize=list(only),
            nodes_to_exclude=list(leave),
            # else a ReLU before a rounding is left to that, and who reads what is not rounded would miss it
            extra_options={"QDQKeepRemovableActivations": True} if leave else {},
        )
        model = onnx.load(target)
        _read_unrounded(model.graph, set(leave))
        if float_logits:
            _keep_logits(model.graph)
        save_onnx(model, path, metadata)


def _read_unrounded(graph: onnx.GraphProto, leave: set[str]) -> None:
    """Have the nodes that stay in float read what is not rounded.

    Not only because nothing else would be float: between two roundings ONNX Runtime (1.19 and later) puts a float
    layer's weights into 8 bits by itself when it loads the file, with one scale for all channels.
    """
    made = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        for place, name in enumerate(node.input) if node.name in leave else ():
            last = made.get(name)
            rounding = made.get(last.input[0]) if last is not None and last.op_type == "DequantizeLinear" else None
            if rounding is not None:
                node.input[place] = rounding.input[0]
    _drop_unread(graph)


def _drop_unread(graph: onnx.GraphProto) -> None:
    """Take out nodes and numbers that nothing reads any more."""
    while True:
        read = {output.name for output in graph.output} | set(_names_read(graph))
        unread = [node for node in graph.node if not read.intersection(node.output)]
        if not unread:
            break
        for node in unread:
            graph.node.remove(node)
    for item in [item for item in graph.initializer if item.name not in read]:
        graph.initializer.remove(item)


def _names_read(graph: onnx.GraphProto) -> Iterator[str]:
    """By its nodes, and by those of graphs within them, such as the branches of an If."""
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from (output.name for output in inner.output)
                yield from _names_read(inner)


def _keep_logits(graph: onnx.GraphProto) -> None:
    """Take off the pair of nodes that rounds the graph's result."""
    made = {name: node for node in graph.node for name in node.output}
    last = made[OUTPUT]
    if last.op_type != "DequantizeLinear" or last.input[0] not in made:
        return
    rounding = made[last.input[0]]
    source = rounding.input[0]
    readers = [node for node in graph.node if source in node.input and node is not rounding]
    if source not in made or readers:
        return
    for node in (last, rounding):
        graph.node.remove(node)
    made[source].output[list(made[source].output).index(source)] = OUTPUT
    _drop_unread(graph)


def quantise_onnx(source: str | Path, path: str | Path, batches: Iterable[Batch]) -> None:
    """Write ``source`` to ``path`` in 8 bits: all of it, with the smallest and largest values that occur on ``batches``
    (preprocessed images that are not tested on). How much accuracy it costs is for evaluate to say."""
    with tempfile.TemporaryDirectory() as folder:
        folded, ranges = Path(folder) / "folded.onnx", Path(folder) / "ranges.json"
        fold(source, folded)
        calibrate(folded, ranges, batches, "minmax")
        quantise(folded, path, ranges, read_metadata(source))


def sensitivity(
    folded: str | Path, ranges: str | Path, layers: Sequence[Layer], images: Images, expected: Logits, threads: int = 0
) -> Iterable[dict[str, Any]]:
    """For each layer, as it is measured: what its 8 bits alone change, all others in float.

    ``expected``: the float network's logits of ``images`` (preprocessed). ``divergence``: the mean Kullback-Leibler
    divergence (nats) of the probabilities from the float network's; ``agreement``: the share of images (0 to 1) that
    get the same class. Accuracy would need many more images to tell two layers apart.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "one.onnx"
        for layer in layers:
            quantise(folded, path, ranges, {}, only=[layer.node], float_logits=True)
            got = run_session(open_session(path, threads), images)
            yield {
                "layer": layer.name,
                "kind": layer.kind,
                "weights": layer.weights,
                "divergence": divergence(got, expected),
                "agreement": float((got.argmax(1) == expected.argmax(1)).mean()),
            }


def divergence(logits: Logits, expected: Logits) -> float:
    """Mean Kullback-Leibler divergence KL(expected || logits) of the softmax, in nats."""
    first, second = (_log_softmax(values.astype(np.float64)) for values in (expected, logits))
    return float((np.exp(first) * (first - second)).sum(axis=1).mean())


def _log_softmax(logits: Any) -> Any:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def arrays_of(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """The graph's constants by name."""
    return {item.name: numpy_helper.to_array(item) for item in graph.initializer}
