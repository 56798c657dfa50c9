"""Training in 8 bits: a QDQ graph as a PyTorch network, every rounding in its place, whose weights and ranges learn.

Quantisation-aware training (Jacob et al. 2018, https://arxiv.org/abs/1712.05877), of the very graph that is shipped: it
is read node by node and runs in float32 on numbers that are rounded where the graph rounds them, and what was learned
is written back into it. So nothing is exported anew, and no second program decides where a rounding stands.

- Rounding passes gradients straight through (Bengio et al. 2013, https://arxiv.org/abs/1308.3432).
- Weights keep a scale per channel that is observed in every step: the largest of the channel becomes the largest whole
  number. Biases have the scale that integer kernels want: the input's times the weights'.
- Scales of activations are learned, with the gradient of LSQ (Esser et al. 2020, https://arxiv.org/abs/1902.08153).
  Deviation: what is learned is the logarithm of their change, as in TQT (Jain et al. 2019,
  https://arxiv.org/abs/1903.08066), so that a step is a ratio, whatever the range; zero points stay as calibrated.
- Batch norms are folded before the first step (`quantization.fold`), and so frozen from step 0: in 8 bits and float the
  network trains as it will run, in batches of any size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from jaxtyping import Float
from onnx import numpy_helper
from torch import Tensor, nn

from thinner.compress.quantization import QuantiseError, arrays_of
from thinner.networks.export import INPUT, OUTPUT

QUANTISED = "_quantized"  # what ONNX Runtime's quantiser adds to the name of a constant in 8 (a bias: 32) bits
_TINY = float(np.finfo(np.float32).tiny)
_INT32 = 2**31 - 1


class _Round(torch.autograd.Function):
    """round(x / scale) between ``low`` and ``high``, times ``scale``: what a QuantizeLinear and the DequantizeLinear
    after it compute. Gradients: to x, where it is in range; to the scale, that of LSQ (equation 3)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
        whole = (x / scale).round_()  # a division, as ONNX has it: times the inverse rounds otherwise now and then
        ctx.save_for_backward(x, scale)
        ctx.bounds = (low, high)
        return whole.clamp_(low, high).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        x, scale = ctx.saved_tensors
        low, high = ctx.bounds
        exact = x / scale
        whole = exact.round()
        inside = (whole >= low) & (whole <= high)
        to_scale = None
        if ctx.needs_input_grad[1]:
            error = torch.where(inside, whole - exact, whole.clamp(low, high))
            to_scale = (gradient * error).sum() / math.sqrt(x.numel() * max(1, high))  # their g, in section 2.2
        return gradient * inside, to_scale, None, None


class _Straight(torch.autograd.Function):
    """``rounded`` in place of ``x``, whose gradient it gets."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rounded: Tensor) -> Tensor:
        return rounded

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0], None


def fake_quantise(
    x: Float[Tensor, "*shape"], scale: Float[Tensor, ""], zero_point: int, low: int = 0, high: int = 255
) -> Float[Tensor, "*shape"]:
    """``x`` on the grid of ``scale`` with whole numbers from ``low`` to ``high``, of which ``zero_point`` is 0.0."""
    out: Tensor = _Round.apply(x, scale, low - zero_point, high - zero_point)
    return out


def weight_scale(
    weight: Float[Tensor, "*shape"], axis: int | None, high: int, least: Tensor | None = None
) -> Float[Tensor, "*channels"]:
    """A scale per channel along ``axis`` (None: one for all), by which its largest weight becomes ``high``; none below
    ``least``."""
    largest = weight.detach().abs()
    if axis is None:
        largest = largest.amax()
    elif weight.ndim > 1:
        largest = largest.amax(dim=[d for d in range(weight.ndim) if d != axis])
    scale = (largest / high).clamp_min(_TINY)
    return scale if least is None else torch.maximum(scale, least)


class FakeQuantised(nn.Module):
    """The QDQ graph ``quantised`` as a network: float images [batch, channels, height, width] to logits.

    ``folded``: the float graph that it was made of, whose weights are where training begins; None: the weights of
    ``quantised`` as they are, to run it and not to train it. Raises QuantiseError where the graph has an operator that
    is not known here.
    """

    def __init__(self, quantised: onnx.ModelProto, folded: onnx.ModelProto | None = None) -> None:
        super().__init__()
        graph = quantised.graph
        unknown = sorted({n.op_type for n in graph.node} - set(_OPERATORS) - {_QUANTISE, _DEQUANTISE})
        if unknown:
            raise QuantiseError(f"the graph has {', '.join(unknown)}, which training in 8 bits does not know")
        self._nodes = [(node, _attributes(node)) for node in graph.node]
        self._constants = arrays_of(graph)
        self._starts = {} if folded is None else arrays_of(folded.graph)
        self._plain: dict[str, Any] = {}  # constants that do not learn: Python's numbers and whole ones
        self._last = {name: number for number, node in enumerate(graph.node) for name in node.input}
        self._rounding: dict[str, tuple[str, int, int, int]] = {}  # result of a QuantizeLinear -> scale, zero, range
        self._weights: dict[str, tuple[str, int | None, int]] = {}  # result of a DequantizeLinear -> name, axis, high
        self._given: dict[str, str] = {}  # the same, of what does not learn -> name
        self._biases: dict[str, tuple[str, str, str]] = {}  # the same -> name, its input, its weights
        self._scale_of: dict[str, str] = {}  # result of a DequantizeLinear of activations -> their scale
        self._read_quantisers()
        self._read_constants()

    # --- reading the graph ---

    def _read_quantisers(self) -> None:
        for node, attributes in self._nodes:
            if node.op_type == _QUANTISE:
                zero = self._constants[node.input[2]]
                bounds = np.iinfo(zero.dtype)
                self._rounding[node.output[0]] = (node.input[1], int(zero), int(bounds.min), int(bounds.max))
                self._learn_scale(node.input[1])
            elif node.op_type == _DEQUANTISE and node.input[0] in self._constants:
                values = self._constants[node.input[0]]
                name = node.input[0].removesuffix(QUANTISED)
                if values.dtype == np.uint8:  # a constant that is added, rounded as activations are: it stays as it is
                    zero, by = (self._constants[node.input[n]] for n in (2, 1))
                    self.register_buffer(_key(name), torch.from_numpy((values.astype(np.float32) - zero) * by))
                    self._given[node.output[0]] = name
                    continue
                if values.dtype == np.int32:
                    self._biases[node.output[0]] = (name, "", "")
                else:
                    axis = attributes.get("axis", 1) if self._constants[node.input[1]].ndim else None
                    # the quantiser took 7 bits of the 8, or all of them (then without -128)
                    high = 64 if np.abs(values.astype(int)).max(initial=0) <= 64 else 127
                    self._weights[node.output[0]] = (name, axis, high)
                self._add(name, self._start_of(node.input[0], node.input[1], name, attributes))
            elif node.op_type == _DEQUANTISE:
                self._scale_of[node.output[0]] = node.input[1]
        for node, _ in self._nodes:
            for name in node.input[2:3]:
                if name in self._biases and not self._biases[name][1]:  # equal ones may be one constant, of the first
                    self._biases[name] = (self._biases[name][0], self._scale_of[node.input[0]], node.input[1])

    def _start_of(self, quantised: str, scale: str, name: str, attributes: Mapping[str, Any]) -> np.ndarray:
        if name in self._starts:
            return self._starts[name]
        values, by = self._constants[quantised], self._constants[scale]
        if by.ndim and values.ndim > 1:
            by = by.reshape([-1 if d == attributes.get("axis", 1) else 1 for d in range(values.ndim)])
        return values.astype(np.float32) * by

    def _read_constants(self) -> None:
        of_quantisers = {name for node, _ in self._nodes if node.op_type in (_QUANTISE, _DEQUANTISE)
                         for name in node.input}  # fmt: skip
        statistics = {name for node, _ in self._nodes if node.op_type == "BatchNormalization"
                      for name in node.input[3:5]}  # fmt: skip
        for name, values in self._constants.items():
            if name in of_quantisers:
                continue
            if not np.issubdtype(values.dtype, np.floating):
                self._plain[name] = torch.from_numpy(values.copy())
            elif values.size == 1:
                self._plain[name] = float(values.reshape(()))
            elif name in statistics:
                self.register_buffer(_key(name), torch.from_numpy(values.copy()))
            else:
                self._add(name, values)

    def _add(self, name: str, values: np.ndarray) -> None:
        if _key(name) not in self._parameters:
            self.register_parameter(_key(name), nn.Parameter(torch.from_numpy(np.array(values, dtype=np.float32))))

    def _learn_scale(self, name: str) -> None:
        if _key(name) not in self._parameters:
            start = torch.tensor(float(self._constants[name]), dtype=torch.float32)
            self.register_buffer(f"{_key(name)}__start", start)
            self.register_parameter(_key(name), nn.Parameter(torch.zeros(())))

    # --- running it ---

    def _scale(self, name: str) -> Tensor:
        start, change = getattr(self, f"{_key(name)}__start"), getattr(self, _key(name))
        scale: Tensor = start * change.exp()
        return scale

    def _own(self, name: str) -> Tensor:
        found: Tensor = getattr(self, _key(name))
        return found

    def _scales(self) -> dict[str, Tensor]:
        """Of all weights as they are now, by the result that they are part of: where a bias of the layer would not fit
        into 32 bits, a larger one than the weights need."""
        least: dict[str, Tensor] = {}
        for bias, scale, weight in self._biases.values():
            needed = self._own(bias).detach().abs() / (self._scale(scale).detach() * _INT32) * 1.0001
            _, axis, _ = self._weights[weight]
            least[weight] = needed if axis is not None else needed.amax()
        return {
            made: weight_scale(self._own(name), axis, high, least.get(made))
            for made, (name, axis, high) in self._weights.items()
        }

    def _whole(self, made: str, scales: Mapping[str, Tensor]) -> Tensor:
        """The weights as whole numbers."""
        name, axis, high = self._weights[made]
        weight = self._own(name).detach()
        return (weight / _along(scales[made], axis, weight.ndim)).round().clamp(-high, high)

    def _whole_bias(self, made: str, scales: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The bias as whole numbers, and its scale."""
        name, scale, weight = self._biases[made]
        by = self._scale(scale).detach() * scales[weight]
        return (self._own(name).detach() / by).round(), by

    def forward(self, images: Float[Tensor, "batch ..."]) -> Float[Tensor, "answers ..."]:
        scales = self._scales()
        values: dict[str, Any] = {INPUT: images}
        for number, (node, attributes) in enumerate(self._nodes):
            (made,) = node.output
            if node.op_type == _QUANTISE:
                scale, zero, low, high = self._rounding[made]
                values[made] = fake_quantise(self._value(node.input[0], values), self._scale(scale), zero, low, high)
            elif made in self._weights:
                name, axis, _ = self._weights[made]
                weight = self._own(name)
                rounded = self._whole(made, scales) * _along(scales[made], axis, weight.ndim)
                values[made] = _Straight.apply(weight, rounded)
            elif made in self._biases:
                whole, by = self._whole_bias(made, scales)
                values[made] = _Straight.apply(self._own(self._biases[made][0]), whole * by)
            elif made in self._given:
                values[made] = self._own(self._given[made])
            elif node.op_type == _DEQUANTISE:
                values[made] = values[node.input[0]]  # rounded already, and in its scale
            else:
                inputs = [self._value(name, values) for name in node.input]
                values[made] = _OPERATORS[node.op_type](inputs, attributes)
            for name in node.input:  # what nobody will ask for again
                if self._last[name] == number:
                    values.pop(name, None)
        logits: Tensor = values[OUTPUT]
        return logits

    def _value(self, name: str, values: Mapping[str, Any]) -> Any:
        if name in values:
            return values[name]
        if not name:  # an input that is left out
            return None
        return self._plain[name] if name in self._plain else self._own(name)

    # --- writing it back ---

    @torch.no_grad()
    def write_into(self, quantised: onnx.ModelProto) -> onnx.ModelProto:
        """``quantised``, which this was made of, with what was learned since: a copy."""
        model = onnx.ModelProto()
        model.CopyFrom(quantised)
        scales = self._scales()
        new: dict[str, np.ndarray] = {}
        for node, _ in self._nodes:
            made = node.output[0]
            if node.op_type == _QUANTISE:
                new[node.input[1]] = self._scale(node.input[1]).cpu().numpy()
            elif made in self._weights:
                new[node.input[0]] = self._whole(made, scales).to(torch.int8).cpu().numpy()
                new[node.input[1]] = scales[made].cpu().numpy()
            elif made in self._biases:
                whole, by = self._whole_bias(made, scales)
                new[node.input[0]] = whole.double().clamp(-_INT32, _INT32).to(torch.int32).cpu().numpy()
                new[node.input[1]] = by.cpu().numpy()
        for item in model.graph.initializer:
            old = self._constants[item.name]
            value = new.get(item.name)
            if value is None:
                if item.name in self._plain or _key(item.name) not in self._parameters:
                    continue
                value = self._own(item.name).detach().cpu().numpy()
            item.CopyFrom(numpy_helper.from_array(value.astype(old.dtype).reshape(old.shape), item.name))
        return model


_QUANTISE, _DEQUANTISE = "QuantizeLinear", "DequantizeLinear"


def _key(name: str) -> str:
    """A constant's name as a parameter's: without points."""
    return name.replace(".", "__") or "_"


def _along(scale: Tensor, axis: int | None, dimensions: int) -> Tensor:
    return scale if axis is None else scale.view([-1 if d == axis else 1 for d in range(dimensions)])


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    found = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in found.items()}


# --- the operators of ONNX, as far as classifiers have them (https://onnx.ai/onnx/operators) ---

Inputs = Sequence[Any]
Attributes = Mapping[str, Any]


def _conv(x: Inputs, a: Attributes) -> Tensor:
    image, weight, bias = x[0], x[1], x[2] if len(x) > 2 else None
    image, pads = _padded(image, a)
    return F.conv2d(image, weight, bias, a.get("strides", 1), pads, a.get("dilations", 1), a.get("group", 1))


def _padded(image: Tensor, a: Attributes, value: float = 0.0) -> tuple[Tensor, tuple[int, int]]:
    """ONNX has a pad for each side, PyTorch one for both: the image, padded where they differ, and what is left."""
    if a.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise QuantiseError(f"the graph has auto_pad {a['auto_pad']}, which training in 8 bits does not know")
    top, left, bottom, right = a.get("pads", (0, 0, 0, 0))
    if (top, left) == (bottom, right):
        return image, (top, left)
    return F.pad(image, (left, right, top, bottom), value=value), (0, 0)


def _max_pool(x: Inputs, a: Attributes) -> Tensor:
    image, pads = _padded(x[0], a, -math.inf)
    return F.max_pool2d(
        image, a["kernel_shape"], a.get("strides", 1), pads, a.get("dilations", 1), bool(a.get("ceil_mode", 0))
    )


def _average_pool(x: Inputs, a: Attributes) -> Tensor:
    image, pads = _padded(x[0], a)
    counted = bool(a.get("count_include_pad", 0))
    if image is not x[0] and not counted:
        raise QuantiseError("the graph averages over uneven borders, which training in 8 bits does not know")
    return F.avg_pool2d(image, a["kernel_shape"], a.get("strides", 1), pads, bool(a.get("ceil_mode", 0)), counted)


def _gemm(x: Inputs, a: Attributes) -> Tensor:
    first = x[0].T if a.get("transA", 0) else x[0]
    weight = x[1] if a.get("transB", 0) else x[1].T
    out = a.get("alpha", 1.0) * F.linear(first, weight) if a.get("alpha", 1.0) != 1.0 else F.linear(first, weight)
    return out + a.get("beta", 1.0) * x[2] if len(x) > 2 and x[2] is not None else out


def _clip(x: Inputs, a: Attributes) -> Tensor:
    low, high = (x[n] if len(x) > n and x[n] is not None else None for n in (1, 2))
    return torch.clamp(x[0], low, high)


def _reshape(x: Inputs, a: Attributes) -> Any:
    shape = [int(size) for size in x[1]]
    if not a.get("allowzero", 0):
        shape = [x[0].shape[d] if size == 0 else size for d, size in enumerate(shape)]
    return x[0].reshape(shape)


def _axes(x: Inputs, a: Attributes) -> list[int]:
    given = x[1] if len(x) > 1 and x[1] is not None else a.get("axes", ())
    return [int(axis) for axis in given]


def _reduce_mean(x: Inputs, a: Attributes) -> Tensor:
    axes = _axes(x, a) or list(range(x[0].ndim))
    return x[0].mean(dim=axes, keepdim=bool(a.get("keepdims", 1)))


def _squeeze(x: Inputs, a: Attributes) -> Any:
    return x[0].squeeze(tuple(_axes(x, a))) if _axes(x, a) else x[0].squeeze()


def _unsqueeze(x: Inputs, a: Attributes) -> Any:
    out = x[0]
    for axis in sorted(_axes(x, a)):
        out = out.unsqueeze(axis)
    return out


def _pad(x: Inputs, a: Attributes) -> Tensor:
    sides = [int(side) for side in x[1]]
    half = len(sides) // 2
    value = x[2] if len(x) > 2 and x[2] is not None else 0.0
    pairs = [(sides[d], sides[d + half]) for d in reversed(range(half))]
    if a.get("mode", "constant") != "constant" or len(x) > 3:
        raise QuantiseError("the graph pads in a way that training in 8 bits does not know")
    return F.pad(x[0], [side for pair in pairs for side in pair], value=float(value))


def _slice(x: Inputs, a: Attributes) -> Any:
    starts, ends = ([int(n) for n in x[k]] for k in (1, 2))
    axes = [int(n) for n in x[3]] if len(x) > 3 and x[3] is not None else list(range(len(starts)))
    steps = [int(n) for n in x[4]] if len(x) > 4 and x[4] is not None else [1] * len(starts)
    index: list[slice] = [slice(None)] * x[0].ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        index[axis] = slice(*slice(start, end, step).indices(x[0].shape[axis]))  # to the end: the largest number
    return x[0][tuple(index)]


def _batch_norm(x: Inputs, a: Attributes) -> Tensor:
    return F.batch_norm(x[0], x[3], x[4], x[1], x[2], training=False, eps=a.get("epsilon", 1e-5))


def _layer_norm(x: Inputs, a: Attributes) -> Tensor:
    shape = x[0].shape[a.get("axis", -1) % x[0].ndim :]
    return F.layer_norm(x[0], shape, x[1], x[2] if len(x) > 2 else None, a.get("epsilon", 1e-5))


def _gather(x: Inputs, a: Attributes) -> Tensor:
    data, index = torch.as_tensor(x[0]), torch.as_tensor(x[1])
    axis = a.get("axis", 0) % data.ndim
    found = data.index_select(axis, index.reshape(-1).to(data.device) % data.shape[axis])
    return found.reshape(*data.shape[:axis], *index.shape, *data.shape[axis + 1 :])


def _matmul(x: Inputs, a: Attributes) -> Any:
    return x[0] @ x[1]


_OPERATORS: dict[str, Callable[[Inputs, Attributes], Any]] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Add": lambda x, a: x[0] + x[1],
    "Sub": lambda x, a: x[0] - x[1],
    "Mul": lambda x, a: x[0] * x[1],
    "Div": lambda x, a: x[0] / x[1],
    "Pow": lambda x, a: x[0] ** x[1],
    "Sqrt": lambda x, a: x[0].sqrt(),
    "Relu": lambda x, a: F.relu(x[0]),
    "Clip": _clip,
    "Sigmoid": lambda x, a: x[0].sigmoid(),
    "Tanh": lambda x, a: x[0].tanh(),
    "Erf": lambda x, a: x[0].erf(),
    "Gelu": lambda x, a: F.gelu(x[0], approximate=a.get("approximate", "none")),
    "HardSigmoid": lambda x, a: (x[0] * a.get("alpha", 0.2) + a.get("beta", 0.5)).clamp(0.0, 1.0),
    "HardSwish": lambda x, a: F.hardswish(x[0]),
    "Softmax": lambda x, a: x[0].softmax(a.get("axis", -1)),
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "GlobalAveragePool": lambda x, a: x[0].mean(dim=(2, 3), keepdim=True),
    "AveragePool": _average_pool,
    "MaxPool": _max_pool,
    "ReduceMean": _reduce_mean,
    "Reshape": _reshape,
    "Flatten": lambda x, a: (
        x[0].flatten(1) if a.get("axis", 1) == 1 else x[0].reshape(math.prod(x[0].shape[: a["axis"]]), -1)
    ),
    "Transpose": lambda x, a: x[0].permute(a["perm"]),
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Concat": lambda x, a: torch.cat([torch.as_tensor(part) for part in x], dim=a["axis"]),
    "Identity": lambda x, a: x[0],
    "Pad": _pad,
    "Slice": _slice,
    "Shape": lambda x, a: torch.tensor(x[0].shape[a.get("start", 0) : a.get("end")]),
    "Gather": _gather,
    "Range": lambda x, a: torch.arange(int(x[0]), int(x[1]), int(x[2])),
    "Cast": lambda x, a: x[0],
    "Expand": lambda x, a: x[0].expand(*(max(int(n), m) for n, m in zip(x[1], x[0].shape, strict=True))),
}
