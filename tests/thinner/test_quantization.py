"""Static quantisation in three steps: what is in 8 bits, what stays in float, and what a layer's 8 bits change."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from scipy.special import rel_entr, softmax
from torch import nn

from thinner.compress import quantization
from thinner.networks.export import export_onnx, open_session, run_session


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Hardswish())
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Hardswish())
        self.head = nn.Linear(8, 4)

    def forward(self, images):
        x = self.first(images)
        return self.head((x + self.second(x)).mean((2, 3)))


IMAGES = np.random.default_rng(0).normal(size=(32, 1, 12, 12)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    export_onnx(Small().eval(), folder / "plain.onnx", (1, 12, 12), {}, 20)
    quantization.fold(folder / "plain.onnx", folder / "folded.onnx")
    quantization.calibrate(folder / "folded.onnx", folder / "minmax.json", [IMAGES[:16], IMAGES[16:]], "minmax")
    return folder


def logits(path: Path) -> np.ndarray:
    return run_session(open_session(path, 1), IMAGES)


def kinds(path: Path) -> dict[str, int]:
    return {item.name: item.data_type for item in onnx.load(path).graph.initializer}


def test_folding_changes_nothing_and_every_node_has_a_name_of_its_own(folder: Path) -> None:
    graph = onnx.load(folder / "folded.onnx").graph
    assert "BatchNormalization" not in {node.op_type for node in graph.node}
    names = [node.name for node in graph.node]
    assert all(names) and len(set(names)) == len(names)
    np.testing.assert_allclose(logits(folder / "folded.onnx"), logits(folder / "plain.onnx"), atol=1e-5)


def test_layers_have_their_modules_names_and_the_number_of_their_weights(folder: Path) -> None:
    found = {layer.name: (layer.kind, layer.weights) for layer in quantization.layers_of(folder / "folded.onnx")}
    assert found["first.0"] == ("Conv", 8 * 9 + 8)
    assert found["second.0"] == ("Conv", 8 * 8 * 9 + 8)
    assert found["head"] == ("Gemm", 8 * 4 + 4)
    assert found["Add-1"] == ("Add", 0)
    assert not any(" " in name for name in found)  # ladder.csv has them with spaces between


@pytest.mark.parametrize("method", quantization.METHODS)
def test_each_method_finds_ranges_that_work(folder: Path, tmp_path: Path, method: str) -> None:
    quantization.calibrate(folder / "folded.onnx", tmp_path / "ranges.json", [IMAGES[:16], IMAGES[16:]], method)
    quantization.quantise(folder / "folded.onnx", tmp_path / "int8.onnx", tmp_path / "ranges.json", {})
    expected = logits(folder / "folded.onnx")
    assert 0 < np.abs(logits(tmp_path / "int8.onnx") - expected).max() < 0.2 * np.ptp(expected)


def test_ranges_by_percentile_leave_out_what_is_rare(folder: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(1).uniform(-1, 1, (32, 1, 12, 12)).astype(np.float32)
    images[0, 0, 0, 0] = 100.0  # of 4,608 numbers: more than 0.01 % of them
    scales = {}
    for method in ("minmax", "percentile"):
        quantization.calibrate(folder / "folded.onnx", tmp_path / f"{method}.json", [images], method)
        quantization.quantise(folder / "folded.onnx", tmp_path / "one.onnx", tmp_path / f"{method}.json", {})
        scales[method] = float(quantization.arrays_of(onnx.load(tmp_path / "one.onnx").graph)["images_scale"])
    assert scales["minmax"] == pytest.approx(101 / 255, rel=0.01)
    assert scales["percentile"] < scales["minmax"]


def test_what_is_left_stays_in_float_and_the_rest_does_not(folder: Path, tmp_path: Path) -> None:
    layers = {layer.name: layer.node for layer in quantization.layers_of(folder / "folded.onnx")}
    path = tmp_path / "mixed.onnx"
    quantization.quantise(folder / "folded.onnx", path, folder / "minmax.json", {}, leave=[layers["second.0"]])
    assert kinds(path)["second.0.weight"] == TensorProto.FLOAT
    assert kinds(path)["first.0.weight_quantized"] == kinds(path)["head.weight_quantized"] == TensorProto.INT8
    quantization.quantise(folder / "folded.onnx", path, folder / "minmax.json", {}, only=[layers["second.0"]])
    assert kinds(path)["second.0.weight_quantized"] == TensorProto.INT8
    assert kinds(path)["first.0.weight"] == kinds(path)["head.weight"] == TensorProto.FLOAT


def test_onnx_runtime_leaves_in_float_what_is_in_float(folder: Path, tmp_path: Path) -> None:
    """As it loads a file it may put weights into 8 bits by itself: with and without that the logits are the same."""
    layers = {layer.name: layer.node for layer in quantization.layers_of(folder / "folded.onnx")}
    path = tmp_path / "mixed.onnx"
    for names in (["second.0"], ["first.0"], ["first.0", "second.0"]):
        leave = [layers[name] for name in names]
        quantization.quantise(folder / "folded.onnx", path, folder / "minmax.json", {}, leave=leave)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        plainly = onnxruntime.InferenceSession(path, options).run(None, {"images": IMAGES})[0]
        graph = onnx.load(path).graph
        step = float(quantization.arrays_of(graph)["logits_scale"])
        assert np.abs(logits(path) - plainly).mean() < 0.02 * step
        read = {"logits"} | {name for node in graph.node for name in node.input}
        assert all(read & set(node.output) for node in graph.node)  # no rounding that nobody reads is left
        assert {item.name for item in graph.initializer} <= read


def test_with_all_layers_in_float_the_network_is_the_float_one(tmp_path: Path) -> None:
    model = Small().eval()
    model.first[2] = model.second[1] = nn.ReLU6()
    export_onnx(model, tmp_path / "plain.onnx", (1, 12, 12), {}, 20)
    quantization.fold(tmp_path / "plain.onnx", tmp_path / "folded.onnx")
    quantization.calibrate(tmp_path / "folded.onnx", tmp_path / "ranges.json", [IMAGES], "minmax")
    nodes = [layer.node for layer in quantization.layers_of(tmp_path / "folded.onnx")]
    path = tmp_path / "float.onnx"
    quantization.quantise(tmp_path / "folded.onnx", path, tmp_path / "ranges.json", {}, leave=nodes, float_logits=True)
    expected = logits(tmp_path / "folded.onnx")
    assert np.abs(logits(path) - expected).max() < 0.02 * np.ptp(expected)  # activations between them may be rounded


def test_logits_in_float_are_more_than_256_values_and_nothing_else_is_another(folder: Path, tmp_path: Path) -> None:
    for name, given in (("rounded", False), ("float", True)):
        quantization.quantise(
            folder / "folded.onnx", tmp_path / f"{name}.onnx", folder / "minmax.json", {}, float_logits=given
        )
    rounded, kept = (logits(tmp_path / f"{name}.onnx") for name in ("rounded", "float"))
    step = float(quantization.arrays_of(onnx.load(tmp_path / "rounded.onnx").graph)["logits_scale"])
    assert np.abs(rounded - kept).max() <= 1.01 * step  # half a step, and one where a value lies on the edge
    assert np.abs(rounded / step - np.rint(rounded / step)).max() < 1e-3
    assert np.abs(kept / step - np.rint(kept / step)).max() > 0.1
    left = kinds(tmp_path / "rounded.onnx").keys() - kinds(tmp_path / "float.onnx").keys()
    assert left == {"logits_scale", "logits_zero_point"}


def test_the_divergence_is_scipys() -> None:
    rng = np.random.default_rng(3)
    mine, its = rng.normal(size=(2, 20, 5)).astype(np.float32)
    p, q = (softmax(x.astype(np.float64), axis=1) for x in (its, mine))
    assert quantization.divergence(mine, its) == pytest.approx(float(rel_entr(p, q).sum(axis=1).mean()), rel=1e-12)
    assert quantization.divergence(its, its) == 0.0


def test_the_layer_with_a_planted_outlier_is_the_most_sensitive(tmp_path: Path) -> None:
    """Of one tensor one channel is a thousand times as large, and the next layer takes it back: float is the same."""
    model = Small().eval()
    model.first[2] = model.second[1] = nn.ReLU()
    with torch.no_grad():
        model.second[0].weight[3] *= 1e3
        model.second[0].bias[3] *= 1e3

        class Back(nn.Module):
            def forward(self, x):
                return x * torch.tensor([1.0, 1, 1, 1e-3, 1, 1, 1, 1]).view(8, 1, 1)

    model.second.append(Back())
    export_onnx(model, tmp_path / "plain.onnx", (1, 12, 12), {}, 20)
    quantization.fold(tmp_path / "plain.onnx", tmp_path / "folded.onnx")
    quantization.calibrate(tmp_path / "folded.onnx", tmp_path / "ranges.json", [IMAGES], "minmax")
    layers = quantization.layers_of(tmp_path / "folded.onnx")
    expected = logits(tmp_path / "folded.onnx")
    rows = list(quantization.sensitivity(tmp_path / "folded.onnx", tmp_path / "ranges.json", layers, IMAGES, expected))
    assert [row["layer"] for row in rows] == [layer.name for layer in layers]
    worst = max(rows, key=lambda row: row["divergence"])
    assert worst["layer"] in ("second.0", "Mul-1")  # which make and take the tensor
    assert worst["divergence"] > 10 * np.median([row["divergence"] for row in rows])
