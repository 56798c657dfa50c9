"""Fake quantisation against NumPy in float64, the operators against ONNX's own reference, the whole against ONNX
Runtime."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

from thinner.compress import quantization
from thinner.compress.fake_quantization import FakeQuantised, fake_quantise, weight_scale
from thinner.compress.quantization import QuantiseError
from thinner.networks.export import export_onnx, save_onnx

# --- roundings ---


def on_the_grid(x, scale, zero_point, low, high):
    """QuantizeLinear and DequantizeLinear, by the definition of ONNX, in float64."""
    whole = np.clip(np.rint(np.float64(x) / np.float64(scale)) + zero_point, low, high)
    return (whole - zero_point) * np.float64(scale)


@pytest.mark.parametrize("zero_point", [0, 7, 128, 255])
def test_values_are_those_of_float64(zero_point):
    scale = 0.0625  # a power of two: the division has no error, so that ties are ties in both
    x = np.concatenate([np.arange(-600, 600) / 32, np.random.default_rng(0).normal(0, 8, 500)]).astype(np.float32)
    got = fake_quantise(torch.from_numpy(x), torch.tensor(scale), zero_point)
    np.testing.assert_array_equal(got.numpy(), on_the_grid(x, scale, zero_point, 0, 255))


def test_gradients_are_those_of_lsq():
    """Esser et al. 2020, equations 2, 3 and 5, worked in NumPy."""
    rng = np.random.default_rng(1)
    x, scale, zero_point = rng.normal(0, 3, 400).astype(np.float32), 0.01, 100
    upstream = rng.normal(size=400).astype(np.float32)
    tensor, s = torch.tensor(x, requires_grad=True), torch.tensor(scale, requires_grad=True)
    fake_quantise(tensor, s, zero_point).backward(torch.from_numpy(upstream))
    ratio = np.float64(x) / np.float64(np.float32(scale))
    low, high = -zero_point, 255 - zero_point
    inside = (np.rint(ratio) >= low) & (np.rint(ratio) <= high)
    np.testing.assert_array_equal(tensor.grad, upstream * inside)
    to_scale = np.where(inside, np.rint(ratio) - ratio, np.where(ratio < low, low, high))
    assert 0.1 < inside.mean() < 0.9
    assert float(s.grad) == pytest.approx(float((upstream * to_scale).sum() / np.sqrt(400 * high)), rel=1e-4)


@pytest.mark.parametrize(("axis", "shape"), [(0, (4, 3, 2, 2)), (1, (5, 4)), (None, (6, 2))])
def test_the_largest_weight_of_a_channel_is_the_largest_whole_number(axis, shape):
    weight = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    others = None if axis is None else tuple(d for d in range(len(shape)) if d != axis)
    expected = np.abs(weight).max(axis=others) / 64
    np.testing.assert_allclose(weight_scale(torch.from_numpy(weight), axis, 64).numpy(), expected, rtol=1e-7)


# --- operators ---


def of_one(kind, arrays, inputs, opset=20, **attributes):
    """A graph of one node: the first of ``inputs`` is given, the others are constants."""
    names = [f"c{n}" if array is not None else "" for n, array in enumerate(arrays)]
    node = helper.make_node(kind, ["images", *names], ["logits"], **attributes)
    graph = helper.make_graph(
        [node], "one",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, list(inputs.shape))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(a, n) for a, n in zip(arrays, names, strict=True) if a is not None],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def numbers(*shape):
    return np.random.default_rng(len(shape) + sum(shape)).normal(size=shape).astype(np.float32)


WHOLE = np.array
IMAGE = numbers(2, 4, 7, 6)
CASES = {
    "conv": ("Conv", [numbers(6, 2, 3, 3), numbers(6)], IMAGE, {"group": 2, "strides": [2, 1], "pads": [1, 0, 1, 0]}),
    "conv, uneven": ("Conv", [numbers(3, 4, 2, 2)], IMAGE, {"pads": [0, 1, 1, 0], "dilations": [2, 1]}),
    "gemm": ("Gemm", [numbers(5, 4), numbers(5)], numbers(3, 4), {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    "gemm, as it is": ("Gemm", [numbers(4, 5)], numbers(3, 4), {}),
    "gemm, transposed": ("Gemm", [numbers(4, 5)], numbers(4, 3), {"transA": 1}),
    "matmul": ("MatMul", [numbers(6, 5)], numbers(2, 3, 6), {}),
    "add": ("Add", [numbers(4, 1, 1)], IMAGE, {}),
    "sub": ("Sub", [numbers(6)], IMAGE, {}),
    "mul": ("Mul", [numbers(4, 1, 1)], IMAGE, {}),
    "div by a number": ("Div", [np.array(3.0, dtype=np.float32)], IMAGE, {}),
    "pow": ("Pow", [np.array(2.0, dtype=np.float32)], IMAGE, {}),
    "relu": ("Relu", [], IMAGE, {}),
    "clip": ("Clip", [np.array(-0.5, dtype=np.float32), np.array(0.7, dtype=np.float32)], IMAGE, {}),
    "clip, below": ("Clip", [np.array(0.1, dtype=np.float32)], IMAGE, {}),
    "sigmoid": ("Sigmoid", [], IMAGE, {}),
    "tanh": ("Tanh", [], IMAGE, {}),
    "erf": ("Erf", [], IMAGE, {}),
    "gelu": ("Gelu", [], IMAGE, {}),
    "gelu, tanh": ("Gelu", [], IMAGE, {"approximate": "tanh"}),
    "hard sigmoid": ("HardSigmoid", [], 4 * IMAGE, {"alpha": 1 / 6, "beta": 0.5}),
    "hard swish": ("HardSwish", [], 4 * IMAGE, {}),
    "softmax": ("Softmax", [], IMAGE, {"axis": 1}),
    "batch norm": ("BatchNormalization", [numbers(4), numbers(4) + 1, numbers(4), np.abs(numbers(4))], IMAGE, {}),
    "layer norm": ("LayerNormalization", [numbers(6), numbers(6)], IMAGE, {"axis": -1, "epsilon": 1e-3}),
    "global average": ("GlobalAveragePool", [], IMAGE, {}),
    "average": ("AveragePool", [], IMAGE, {"kernel_shape": [2, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "average, counted": ("AveragePool", [], IMAGE, {"kernel_shape": [3, 3], "pads": [1] * 4, "count_include_pad": 1}),
    "max": ("MaxPool", [], IMAGE, {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "max, uneven": ("MaxPool", [], IMAGE, {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [0, 0, 1, 0]}),
    "mean": ("ReduceMean", [WHOLE([2, 3])], IMAGE, {"keepdims": 0}),
    "reshape": ("Reshape", [WHOLE([0, -1])], IMAGE, {}),
    "flatten": ("Flatten", [], IMAGE, {}),
    "flatten, elsewhere": ("Flatten", [], IMAGE, {"axis": 2}),
    "transpose": ("Transpose", [], IMAGE, {"perm": [0, 2, 3, 1]}),
    "squeeze": ("Squeeze", [WHOLE([2, 3])], numbers(2, 4, 1, 1), {}),
    "unsqueeze": ("Unsqueeze", [WHOLE([1, 3])], numbers(2, 4), {}),
    "concat": ("Concat", [numbers(2, 3, 7, 6)], IMAGE, {"axis": 1}),
    "pad": ("Pad", [WHOLE([0, 1, 2, 0, 0, 3, 0, 1])], IMAGE, {}),
    "slice": ("Slice", [WHOLE([1, 0]), WHOLE([2**63 - 1, -2]), WHOLE([2, 3]), WHOLE([2, 1])], IMAGE, {}),
    "gather": ("Gather", [WHOLE([[0, 2], [-1, 1]])], IMAGE, {"axis": 1}),
    "gather one": ("Gather", [WHOLE(1)], IMAGE, {"axis": 1}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_operators_compute_what_onnx_says(case):
    kind, arrays, inputs, attributes = CASES[case]
    model = of_one(kind, [np.asarray(a) for a in arrays], inputs, **attributes)
    (expected,) = ReferenceEvaluator(model).run(None, {"images": inputs})
    with torch.no_grad():
        got = FakeQuantised(model)(torch.from_numpy(inputs))
    np.testing.assert_allclose(got.numpy(), expected, atol=2e-5, rtol=1e-4)


def test_an_operator_that_is_not_known_is_named():
    with pytest.raises(QuantiseError, match="the graph has LpNormalization, which training in 8 bits does not know"):
        FakeQuantised(of_one("LpNormalization", [], numbers(2, 3)))


# --- the whole ---


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU6())
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.head = nn.Linear(8, 3)
        nn.init.uniform_(self.first[1].weight, 0.5, 1.5)
        nn.init.normal_(self.first[1].bias)

    def forward(self, images):
        x = self.first(images)
        return self.head((x + torch.relu(self.deep(x))).mean((2, 3)))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    export_onnx(Small().eval(), folder / "plain.onnx", (1, 12, 12), {}, 20)
    quantization.fold(folder / "plain.onnx", folder / "folded.onnx")
    images = numbers(16, 1, 12, 12)
    np.save(folder / "images.npy", images)
    quantization.calibrate(folder / "folded.onnx", folder / "ranges.json", [images[:8], images[8:]], "minmax")
    quantization.quantise(folder / "folded.onnx", folder / "int8.onnx", folder / "ranges.json", {}, float_logits=True)
    return folder


def loaded(files):
    return onnx.load(files / "int8.onnx"), onnx.load(files / "folded.onnx")


def run_plainly(path, images):
    """ONNX Runtime without optimisation: it does what the nodes say, in float, one after the other."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(path, options).run(None, {"images": images})[0]


def test_it_starts_as_the_graph_that_it_was_made_of(files):
    quantised, folded = loaded(files)
    images = np.load(files / "images.npy")
    network = FakeQuantised(quantised, folded)
    with torch.no_grad():
        got = network(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(got, run_plainly(files / "int8.onnx", images), atol=1e-5)
    again = network.write_into(quantised)
    assert quantization.arrays_of(again.graph).keys() == quantization.arrays_of(quantised.graph).keys()
    for name, values in quantization.arrays_of(quantised.graph).items():
        np.testing.assert_array_equal(quantization.arrays_of(again.graph)[name], values)


def trained(files, steps=5):
    quantised, folded = loaded(files)
    network = FakeQuantised(quantised, folded)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    images = torch.from_numpy(np.load(files / "images.npy"))
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), torch.arange(16) % 3).backward()
        optimizer.step()
    return network, quantised, images


def test_everything_learns_and_what_was_trained_is_what_is_written(files, tmp_path):
    network, quantised, images = trained(files)
    start = dict(FakeQuantised(*loaded(files)).named_parameters())
    still = {name for name, value in network.named_parameters() if torch.equal(value, start[name])}
    assert still == set()  # weights, biases and scales of activations
    save_onnx(network.write_into(quantised), tmp_path / "trained.onnx", {})
    with torch.no_grad():
        expected = network(images).numpy()
        read = FakeQuantised(onnx.load(tmp_path / "trained.onnx"))(images).numpy()
    np.testing.assert_array_equal(read, expected)
    np.testing.assert_allclose(run_plainly(tmp_path / "trained.onnx", images.numpy()), expected, atol=1e-5)
    whole = [a for a in quantization.arrays_of(onnx.load(tmp_path / "trained.onnx").graph).values()
             if a.dtype == np.int8 and a.ndim > 1]  # fmt: skip
    assert len(whole) == 3
    assert all((np.abs(a.reshape(len(a), -1).astype(int)).max(axis=1) == 64).all() for a in whole)


def test_a_bias_beyond_32_bits_gets_a_coarser_scale(files, tmp_path):
    network, quantised, images = trained(files, steps=0)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if name.endswith("weight") and value.ndim == 4:
                value[0] = 0.0
                value[0, 0, 0, 0] = 1e-12
            if "first" in name and value.ndim == 1:
                value[0] = 3.0
        expected = network(images).numpy()
    save_onnx(network.write_into(quantised), tmp_path / "coarse.onnx", {})
    np.testing.assert_allclose(run_plainly(tmp_path / "coarse.onnx", images.numpy()), expected, atol=1e-5)


def test_a_constant_that_is_added_is_rounded_and_does_not_learn(tmp_path):
    class Shifted(Small):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.linspace(-1.0, 2.0, 8).view(8, 1, 1))

        def forward(self, images):
            return self.head((self.first(images) + self.shift).mean((2, 3)))

    export_onnx(Shifted().eval(), tmp_path / "plain.onnx", (1, 12, 12), {}, 20)
    quantization.fold(tmp_path / "plain.onnx", tmp_path / "folded.onnx")
    images = numbers(8, 1, 12, 12)
    quantization.calibrate(tmp_path / "folded.onnx", tmp_path / "ranges.json", [images], "minmax")
    quantization.quantise(tmp_path / "folded.onnx", tmp_path / "int8.onnx", tmp_path / "ranges.json", {})
    network = FakeQuantised(onnx.load(tmp_path / "int8.onnx"), onnx.load(tmp_path / "folded.onnx"))
    with torch.no_grad():
        got = network(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(got, run_plainly(tmp_path / "int8.onnx", images), atol=1e-4)
    assert not [name for name, _ in network.named_parameters() if "shift" in name and not name.endswith("scale")]
