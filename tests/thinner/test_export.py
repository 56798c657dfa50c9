"""thinner.export: what ONNX Runtime computes against what PyTorch computes."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from thinner.export import (
    ExportError,
    check_parity,
    export_onnx,
    open_session,
    quantise_onnx,
    read_metadata,
    run_session,
)

METADATA = {"classes": ["cat", "Hund ü"], "preprocessing": {"image_size": 12, "mean": [0.5], "std": [0.25]}}


class Small(nn.Module):
    """A convolution, a batch norm with statistics that matter, a shortcut, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.again = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        x = torch.relu(self.again(x) + x)
        return self.head(x.mean((2, 3)))


def small() -> Small:
    torch.manual_seed(0)
    network = Small().train()
    with torch.no_grad():
        network(torch.randn(64, 1, 12, 12) * 2 + 1)
    return network.eval()


@pytest.fixture(scope="module")
def source() -> Small:
    """What is exported, in the layout and mode in which training leaves it."""
    return small().to(memory_format=torch.channels_last).train()


@pytest.fixture(scope="module")
def exported(source: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    export_onnx(source, path, (1, 12, 12), METADATA, opset=20)
    return path


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(7, 1, 12, 12)).astype(np.float32)


def test_logits_equal_pytorchs_at_any_batch_size(exported: Path, images: np.ndarray) -> None:
    session, network = open_session(exported, threads=1), small()
    for size in (1, 2, 7):
        with torch.inference_mode():
            expected = network(torch.from_numpy(images[:size])).numpy()
        np.testing.assert_allclose(run_session(session, images[:size]), expected, atol=1e-5)


def test_the_largest_difference_is_reported(exported: Path, images: np.ndarray) -> None:
    assert check_parity(small(), exported, images) <= 1e-5


def test_another_network_fails_the_parity_check_with_the_numbers(exported: Path, images: np.ndarray) -> None:
    network = small()
    with torch.no_grad():
        network.head.bias += 0.5
    with pytest.raises(ExportError, match=r"by up to 5\.00e-01 on 7 images; allowed are 1e-04"):
        check_parity(network, exported, images)


def test_nan_fails_the_parity_check(exported: Path, images: np.ndarray) -> None:
    network = small()
    with torch.no_grad():
        network.head.bias.fill_(float("nan"))
    with pytest.raises(ExportError, match="nan"):
        check_parity(network, exported, images)


def test_another_number_of_classes_fails_the_parity_check(exported: Path, images: np.ndarray) -> None:
    network = small()
    network.head = nn.Linear(8, 3)
    with pytest.raises(ExportError, match=r"logits \(1, 2\), but PyTorch's are \(1, 3\)"):
        check_parity(network, exported, images)


def test_the_file_says_what_goes_in_and_what_comes_out(exported: Path) -> None:
    assert read_metadata(exported) == METADATA
    model = onnx.load(exported)
    assert [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == [
        "batch",
        1,
        12,
        12,
    ]
    assert [d.dim_param or d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim] == [
        "batch",
        2,
    ]
    assert model.opset_import[0].version == 20


def test_the_file_holds_no_path_of_the_machine_that_made_it(exported: Path) -> None:
    assert b".py" not in exported.read_bytes()
    assert b"site-packages" not in exported.read_bytes()


def test_equal_networks_give_equal_files(exported: Path, tmp_path: Path) -> None:
    export_onnx(small(), tmp_path / "again.onnx", (1, 12, 12), METADATA, opset=20)
    assert (tmp_path / "again.onnx").read_bytes() == exported.read_bytes()


def test_int8_is_close_smaller_in_type_and_keeps_the_metadata(
    exported: Path, images: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "int8.onnx"
    quantise_onnx(exported, path, [images[:4], images[4:]])
    model = onnx.load(path)
    kernels = [i for i in model.graph.initializer if len(i.dims) == 4]
    assert kernels
    assert all(i.data_type == onnx.TensorProto.INT8 for i in kernels)
    assert read_metadata(path) == METADATA
    full, int8 = (run_session(open_session(p, threads=1), images) for p in (exported, path))
    assert 0 < np.abs(full - int8).max() < 0.05 * np.ptp(full) + 0.02


def test_int8_weights_have_a_scale_per_channel(exported: Path, images: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "int8.onnx"
    quantise_onnx(exported, path, [images])
    scales = [i for i in onnx.load(path).graph.initializer if i.name.endswith("_scale") and list(i.dims) == [8]]
    assert len(scales) >= 2


def test_exporting_leaves_the_network_as_it_was(source: Small, exported: Path) -> None:
    assert exported.exists()
    assert source.training
    assert source.again.weight.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), small().parameters(), strict=True))
