"""thinner.networks.export: what ONNX Runtime and exported programs compute against what PyTorch's modules compute."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from thinner.compress.quantization import quantise_onnx
from thinner.data import views
from thinner.networks import models
from thinner.networks.export import (
    ExportError,
    add_preprocessing,
    check_parity,
    export_onnx,
    export_pt2,
    open_pt2,
    open_session,
    read_metadata,
    refuse_code,
    run_session,
)
from thinner.networks.spec import NetworkSpec

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


@pytest.mark.parametrize("long", [False, True], ids=["as written by onnx", "with longer numbers"])
def test_a_graph_that_repeats_itself_for_ever_is_refused_before_it_runs(tmp_path: Path, long: bool) -> None:
    h, scalar = onnx.helper, onnx.TensorProto
    body = h.make_graph(
        [h.make_node("Identity", ["go"], ["go_on"]), h.make_node("Identity", ["x"], ["y"])],
        "body",
        [h.make_tensor_value_info("number", scalar.INT64, []), h.make_tensor_value_info("go", scalar.BOOL, []),
         h.make_tensor_value_info("x", scalar.FLOAT, [1, 3])],
        [h.make_tensor_value_info("go_on", scalar.BOOL, []), h.make_tensor_value_info("y", scalar.FLOAT, [1, 3])],
    )  # fmt: skip
    graph = h.make_graph(
        [h.make_node("Loop", ["", "yes", "images"], ["logits"], body=body)],
        "endless",
        [h.make_tensor_value_info("images", scalar.FLOAT, [1, 3])],
        [h.make_tensor_value_info("logits", scalar.FLOAT, [1, 3])],
        [h.make_tensor("yes", scalar.BOOL, [], [True])],
    )
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model)
    node = graph.node[0].SerializeToString()
    written = model.SerializeToString()
    assert written.count(b"\x22\x04Loop") == 1 and node in written
    path = tmp_path / "model.onnx"
    path.write_bytes(written.replace(b"\x22\x04Loop", b"\x22\x84\x80\x00Loop") if long else written)
    with pytest.raises(ExportError, match="model.onnx: repeats a part of itself"):
        open_session(path)


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


def test_int8_is_in_qdq_form(exported: Path, images: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "int8.onnx"
    quantise_onnx(exported, path, [images])
    nodes = onnx.load(path).graph.node
    kinds = [node.op_type for node in nodes]
    assert {"QuantizeLinear", "DequantizeLinear"} <= set(kinds)
    assert not [kind for kind in kinds if kind.startswith("QLinear") or kind in ("ConvInteger", "MatMulInteger")]
    made_by = {name: node.op_type for node in nodes for name in node.output}
    # each convolution computes on what was 8 bits: image and kernel
    convolutions = [node for node in nodes if node.op_type == "Conv"]
    assert len(convolutions) == 2
    assert all(made_by[name] == "DequantizeLinear" for node in convolutions for name in node.input[:2])


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


# -------------------------------------------------------------------------------- preprocessing in the graph


@pytest.fixture(scope="module")
def with_preprocessing(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pixels") / "model.onnx"
    shutil.copy(exported, path)
    add_preprocessing(
        path, views.Preprocessing.from_json(METADATA["preprocessing"]), 1, {**METADATA, "input": "pixels"}
    )
    return path


@pytest.mark.parametrize("size", [(12, 12), (28, 28), (9, 31)])
@pytest.mark.parametrize("batch", [1, 5])
def test_a_graph_with_preprocessing_takes_pictures_of_any_size(
    with_preprocessing: Path, size: tuple[int, int], batch: int
) -> None:
    pictures = np.random.default_rng(1).integers(0, 256, (batch, *size, 1), dtype=np.uint8)
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    resized = torch.nn.functional.interpolate(pixels, (12, 12), mode="bilinear", antialias=True)
    with torch.inference_mode():
        expected = small()((resized - 0.5) / 0.25).numpy()
    session = open_session(with_preprocessing, threads=1)
    assert (session.get_inputs()[0].name, session.get_inputs()[0].type) == ("pixels", "tensor(uint8)")
    np.testing.assert_allclose(run_session(session, pictures), expected, atol=1e-4)


def test_grey_pictures_become_three_channels_in_the_graph(tmp_path: Path) -> None:
    preprocessing = views.Preprocessing(8, mean=(0.1, 0.2, 0.3), std=(0.5, 0.4, 0.2))
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 2)).eval()
    export_onnx(network, tmp_path / "model.onnx", (3, 8, 8), {}, opset=18)
    add_preprocessing(tmp_path / "model.onnx", preprocessing, 1, {})
    pictures = np.random.default_rng(1).integers(0, 256, (3, 8, 8, 1), dtype=np.uint8)
    mean, std = (torch.tensor(numbers).view(1, 3, 1, 1) for numbers in (preprocessing.mean, preprocessing.std))
    with torch.inference_mode():
        expected = network((torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255 - mean) / std).numpy()
    np.testing.assert_allclose(run_session(open_session(tmp_path / "model.onnx"), pictures), expected, atol=1e-5)


def test_preprocessing_is_not_put_before_operators_that_cannot_be_in_one_graph_with_it(tmp_path: Path) -> None:
    plain = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(200, 2)).eval()
    export_onnx(plain, tmp_path / "model.onnx", (1, 12, 12), METADATA, opset=17)
    before = (tmp_path / "model.onnx").read_bytes()
    seen = views.Preprocessing.from_json(METADATA["preprocessing"])
    with pytest.raises(ExportError, match=r"version 17, and .* Set export\.opset: 18 or more, and export it again"):
        add_preprocessing(tmp_path / "model.onnx", seen, 1, METADATA)
    assert (tmp_path / "model.onnx").read_bytes() == before


def test_a_version_of_operators_that_a_network_cannot_be_written_with_is_refused(tmp_path: Path) -> None:
    padded = nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(288, 2)).eval()
    with pytest.raises(ExportError, match=r"export\.opset: 17, .* Set export\.opset: 18"):
        export_onnx(padded, tmp_path / "model.onnx", (1, 12, 12), METADATA, opset=17)
    assert not (tmp_path / "model.onnx").exists()


class Deciding(nn.Module):
    """What it computes hangs on numbers: no exporter can follow that."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(1)[:, :2]
        return flat if float(x.sum()) > 0 else -flat


def test_a_network_that_cannot_be_exported_is_one_line_with_the_way_around(tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match=r"'Deciding' cannot be written as ONNX .* set quantize\.rungs: \[\]"
    ) as onnx_:
        export_onnx(Deciding().eval(), tmp_path / "model.onnx", (1, 12, 12), METADATA, opset=20)
    with pytest.raises(ExportError, match=r"cannot be written as a torch\.export program .* leave pt2 out of") as pt2:
        export_pt2(Deciding().eval(), tmp_path / "model.pt2", (1, 12, 12), METADATA)
    assert not {"\n"} & {*str(onnx_.value), *str(pt2.value)} and not list(tmp_path.iterdir())


def test_a_graph_with_preprocessing_says_so_and_is_as_reproducible(
    with_preprocessing: Path, exported: Path, tmp_path: Path
) -> None:
    assert read_metadata(with_preprocessing) == {**METADATA, "input": "pixels"}
    assert b".py" not in with_preprocessing.read_bytes()
    shutil.copy(exported, tmp_path / "again.onnx")
    add_preprocessing(
        tmp_path / "again.onnx",
        views.Preprocessing.from_json(METADATA["preprocessing"]),
        1,
        {**METADATA, "input": "pixels"},
    )
    assert (tmp_path / "again.onnx").read_bytes() == with_preprocessing.read_bytes()


def test_int8_may_have_preprocessing_in_float(exported: Path, images: np.ndarray, tmp_path: Path) -> None:
    plain, pixels = tmp_path / "int8.onnx", tmp_path / "pixels.onnx"
    quantise_onnx(exported, plain, [images])
    shutil.copy(plain, pixels)
    add_preprocessing(pixels, views.Preprocessing.from_json(METADATA["preprocessing"]), 1, METADATA)
    pictures = np.random.default_rng(1).integers(0, 256, (4, 12, 12, 1), dtype=np.uint8)
    prepared = ((pictures.transpose(0, 3, 1, 2) / 255 - 0.5) / 0.25).astype(np.float32)
    expected = run_session(open_session(plain), prepared)
    np.testing.assert_allclose(run_session(open_session(pixels), pictures), expected, atol=1e-5)


def test_parity_is_checked_from_pictures_to_logits(with_preprocessing: Path) -> None:
    pictures = np.random.default_rng(1).integers(0, 256, (4, 12, 12, 1), dtype=np.uint8)
    prepared = ((pictures.transpose(0, 3, 1, 2) / 255 - 0.5) / 0.25).astype(np.float32)
    assert check_parity(small(), with_preprocessing, prepared, inputs=pictures) <= 1e-4
    with pytest.raises(ExportError, match="allowed are"):
        check_parity(small(), with_preprocessing, prepared, inputs=pictures[:, ::-1].copy())


# ----------------------------------------------------------------------------------------------------- pt2


@pytest.fixture(scope="module")
def program(source: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "model.pt2"
    export_pt2(source, path, (1, 12, 12), METADATA)
    return path


def test_a_program_computes_the_networks_logits_at_any_batch_size(program: Path, images: np.ndarray) -> None:
    loaded = open_pt2(program)
    for size in (1, 2, 7):
        with torch.inference_mode():
            expected = small()(torch.from_numpy(images[:size]))
            torch.testing.assert_close(loaded(torch.from_numpy(images[:size])), expected, atol=1e-6, rtol=0)
    assert check_parity(small(), program, images) <= 1e-5


def test_another_network_fails_the_parity_check_of_a_program(program: Path, images: np.ndarray) -> None:
    network = small()
    with torch.no_grad():
        network.head.bias += 0.5
    with pytest.raises(ExportError, match=r"by up to 5\.00e-01 on 7 images; allowed are 1e-04"):
        check_parity(network, program, images)


@pytest.mark.integration
def test_a_program_needs_torch_alone(program: Path, images: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", images)
    code = (
        "import sys, numpy, torch\n"
        "network = torch.export.load(sys.argv[1]).module()\n"
        "numpy.save(sys.argv[3], network(torch.from_numpy(numpy.load(sys.argv[2]))).detach().numpy())\n"
        "assert not any(name.split('.')[0] in ('thinner', 'test_export', 'timm', 'torchvision') for name in sys.modules)"
    )
    files = [program, tmp_path / "images.npy", tmp_path / "logits.npy"]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, files)], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    with torch.inference_mode():
        expected = small()(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), expected, atol=1e-6)


def test_a_program_holds_metadata_and_no_pickle_and_no_path(program: Path) -> None:
    assert read_metadata(program) == METADATA
    with zipfile.ZipFile(program) as archive:
        for name in archive.namelist():
            content = archive.read(name)
            assert not name.endswith((".pt", ".pkl")) or content == b"", name  # what would be pickled is empty
            assert b".py" not in content, name
            assert b"Small" not in content, name


def test_equal_networks_give_equal_programs(program: Path, tmp_path: Path) -> None:
    export_pt2(small(), tmp_path / "model.pt2", (1, 12, 12), METADATA)
    assert (tmp_path / "model.pt2").read_bytes() == program.read_bytes()


class Command:
    """Runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def tampered(program: Path, folder: Path, change: Callable[[dict[str, bytes]], list[tuple[str, bytes]]]) -> Path:
    """A copy of the archive with other members; `change` takes {name below the top folder: bytes}."""
    with zipfile.ZipFile(program) as archive:
        members = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    path = folder / "model.pt2"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of a name that is there twice
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in change(members):
                archive.writestr(f"model/{name}", content)
    return path


def with_size(members: dict[str, bytes], text: str) -> list[tuple[str, bytes]]:
    graph = json.loads(members["models/model.json"])
    graph["planted"] = [{"as_expr": {"expr_str": text}}]
    return list((members | {"models/model.json": json.dumps(graph).encode()}).items())


def marked(members: dict[str, bytes]) -> list[tuple[str, bytes]]:
    name = "data/weights/model_weights_config.json"
    config = json.loads(members[name])
    next(iter(config["config"].values()))["use_pickle"] = True
    return list((members | {name: json.dumps(config).encode()}).items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, c: list((m | {"data/sample_inputs/model.pt": c}).items()), "holds 'data/sample_inputs/model.pt'"),
        (lambda m, c: list((m | {"data/constants/custom_obj_0": c}).items()), "holds 'data/constants/custom_obj_0'"),
        (lambda m, c: [*m.items(), ("models/model.json", m["models/model.json"])], "two members of one name"),
        (lambda m, c: marked(m), "a tensor that is kept as a pickle"),
        (lambda m, c: with_size(m, "exec('import os')"), "a size that is no arithmetic: \"exec('import os')\""),
        (lambda m, c: with_size(m, "s0.__class__"), "a size that is no arithmetic"),
    ],
)
def test_a_program_that_could_run_code_is_not_opened(program, tmp_path, change, message) -> None:
    mark = tmp_path / "it-ran"
    path = tampered(program, tmp_path, lambda members: change(members, pickle.dumps(Command(mark))))
    for opens in (open_pt2, read_metadata):
        with pytest.raises(ExportError, match=re.escape(message)):
            opens(path)
    assert not mark.exists()


def test_sizes_that_are_arithmetic_and_what_is_no_archive(program, tmp_path) -> None:
    refuse_code(
        tampered(program, tmp_path, lambda members: with_size(members, "Mul(Integer(2), Symbol('s77', positive=True))"))
    )
    (tmp_path / "model.pt2").write_text("<html>")
    with pytest.raises(ExportError, match="is no pt2 archive"):
        open_pt2(tmp_path / "model.pt2")


@pytest.mark.parametrize("name", ["timm:tf_efficientnet_lite0", "torchvision:swin_t", "timm:vit_tiny_patch16_224"])
@pytest.mark.integration
def test_programs_of_large_networks_pass(tmp_path, name) -> None:
    network = models.create(NetworkSpec(name, 3, 3)).eval()
    export_pt2(network, tmp_path / "model.pt2", (3, 224, 224) if "vit" in name else (3, 64, 64), METADATA)
    refuse_code(tmp_path / "model.pt2")
