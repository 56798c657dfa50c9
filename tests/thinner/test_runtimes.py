"""thinner/runtimes: each file keeps the protocol, and what it writes computes what PyTorch computes."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from thinner import predict
from thinner.compress.quantization import quantise_onnx
from thinner.data import views
from thinner.errors import UserError
from thinner.networks import checkpoint, export, models
from thinner.networks.spec import NetworkSpec
from thinner.runtimes import catalogue
from thinner.runtimes.protocol import Runtime, Source

ROOT = Path(__file__).resolve().parents[2]
METADATA = {"classes": ["cat", "dog|wolf", "ünï"], "preprocessing": {"image_size": 32, "mean": [0.5], "std": [0.25]}}
NETWORKS = {
    "resnet8": NetworkSpec("resnet8", 3, 1, width=8, stem_stride=2),
    "mobilenet": NetworkSpec("torchvision:mobilenet_v3_small", 3, 3),
}
FLOAT = [name for name, format_ in catalogue.FORMATS.items() if not format_.int8]
OPTIONAL = [name for name, runtime in catalogue.OF.items() if runtime.optional]


def here(format_: str) -> Any:
    """The format as a parameter of a test that converts with it; to load ExecuTorch alone takes ten seconds."""
    line = catalogue.missing([format_])
    slow = [pytest.mark.integration] if format_ == "executorch" else []
    return pytest.param(format_, marks=[pytest.mark.skipif(line is not None, reason=str(line)), *slow])


def source_of(kind: str, scratch: Path) -> Source:
    torch.manual_seed(0)
    network = models.create(NETWORKS[kind])
    images = torch.randn(70, NETWORKS[kind].channels, 32, 32)
    with torch.no_grad():  # statistics and scales of a trained network: neither 0 nor 1
        network.train()(images)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
    scratch.mkdir()
    return Source(network.eval(), images.numpy(), METADATA, 20, scratch, quantise_onnx)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], tuple[Source, Path]]:
    """(kind of network, format) -> what was written, and where; each once."""
    root = tmp_path_factory.mktemp("exports")
    sources: dict[str, Source] = {}

    def write(kind: str, format_: str) -> tuple[Source, Path]:
        if kind not in sources:
            sources[kind] = source_of(kind, root / f"{kind}-steps")
        path = root / f"{kind}_{format_}" / catalogue.OF[format_].files[0]
        if not path.exists():
            path.parent.mkdir()
            catalogue.FORMATS[format_].write(sources[kind], path)
        return sources[kind], path

    return write


def answers(runtime: Runtime, path: Path, images: np.ndarray, threads: int = 1) -> np.ndarray:
    run = runtime.open(path, threads)
    if isinstance(run, nn.Module):
        with torch.inference_mode():
            return np.asarray(run(torch.from_numpy(images)).numpy())
    return run(images)


@torch.inference_mode()
def of_pytorch(source: Source, images: np.ndarray) -> np.ndarray:
    return np.asarray(source.network(torch.from_numpy(images)).numpy())


# ------------------------------------------------------------------- that need no extra


@pytest.mark.parametrize("name", catalogue.RUNTIMES)
def test_each_runtime_keeps_the_protocol(name: str) -> None:
    one = catalogue.RUNTIMES[name]
    assert one.name == name and re.fullmatch("[a-z][a-z0-9_]*", name)  # a word of claims
    assert one.words and one.package and one.module
    assert one.formats and callable(one.load) and callable(one.open)
    assert all(re.fullmatch(r"model\.[a-z0-9]+", file) and file != checkpoint.SPEC for file in one.files)
    for format_, what in one.formats.items():
        assert callable(what.write) and what.words and catalogue.OF[format_] is one
        assert f"`{format_}`" in (ROOT / "docs" / "evaluation.md").read_text()
        assert f"`{format_}`" in (ROOT / "docs" / "params.md").read_text()
    assert one.words in (ROOT / "docs" / "claims.md").read_text() or not one.optional


def test_no_two_runtimes_have_a_name_a_format_or_a_file_in_common() -> None:
    formats = [name for one in catalogue.RUNTIMES.values() for name in one.formats]
    files = [file for one in catalogue.RUNTIMES.values() for file in (*one.files, checkpoint.WEIGHTS)[: len(one.files)]]
    assert len(set(formats)) == len(formats) and len(set(files)) == len(files)
    assert checkpoint.WEIGHTS not in files


def test_each_file_of_the_folder_is_a_row_of_the_catalogue() -> None:
    files = {path.stem for path in (ROOT / "thinner" / "runtimes").glob("*.py")}
    files -= {"__init__", "protocol", "catalogue"}
    nodes = ast.walk(ast.parse((ROOT / "thinner" / "runtimes" / "catalogue.py").read_text()))
    rows = {node.value.id for node in nodes if isinstance(node, ast.Attribute) and node.attr == "RUNTIME"}  # type: ignore[attr-defined]
    assert files == rows and len(rows) == len(catalogue.RUNTIMES)


def test_the_names_alone_import_no_library() -> None:
    script = (
        "import sys; from thinner.runtimes import catalogue; from thinner.evidence import shipping, candidates;"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'openvino', 'executorch', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, text=True, capture_output=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_optional_runtime_is_an_extra_of_its_packages_name() -> None:
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for one in catalogue.RUNTIMES.values():
        if one.optional:
            assert [text for text in extras[one.package] if re.match(rf"{one.package}\b", text)], one.name


def test_what_is_not_installed_is_one_line_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert catalogue.missing(["onnx", "onnx_int8", "pt2"]) is None
    line = "OpenVINO is not installed. Install what is missing: pip install -e '.[openvino]'"
    assert catalogue.missing(["onnx", "openvino", "openvino_int8"]) == line
    both = catalogue.missing(["executorch", "openvino"])
    assert both and both.endswith("pip install -e '.[executorch,openvino]'") and "ExecuTorch and OpenVINO are" in both
    with pytest.raises(UserError, match=r"^OpenVINO is not installed\. .*'\.\[openvino\]'$"):
        catalogue.require(catalogue.RUNTIMES["openvino"])


@pytest.mark.parametrize("name", [name for name, one in catalogue.RUNTIMES.items() if one.optional])
def test_a_candidate_whose_runtime_is_not_installed_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    files = catalogue.RUNTIMES[name].files
    for file in files:
        (tmp_path / file).write_bytes(b"content")
    spec = {"network": NETWORKS["resnet8"].as_json(), "preprocessing": {"image_size": 32, "mean": [0.5], "std": [0.25]}}
    checkpoint.write_spec(tmp_path, {**spec, "classes": METADATA["classes"]}, *files)
    with pytest.raises(UserError, match=rf"is not installed\. .*pip install -e '\.\[{name}\]'$"):
        predict.open_candidate(tmp_path)
    (tmp_path / files[-1]).write_bytes(b"other")  # each of its files is vouched for
    with pytest.raises(UserError, match=f"{files[-1]}: is not what was written"):
        predict.open_candidate(tmp_path)
    with pytest.raises(UserError, match=f"{files[-1]}: is not what was written"):
        predict.weights_sha256(tmp_path)


def test_the_hash_of_a_candidate_of_two_files_follows_each_of_them(tmp_path: Path) -> None:
    def digest(xml: bytes, binary: bytes) -> str:
        (tmp_path / "model.xml").write_bytes(xml)
        (tmp_path / "model.bin").write_bytes(binary)
        spec = {"network": NETWORKS["resnet8"].as_json(), "classes": METADATA["classes"]}
        seen = views.Preprocessing(32, mean=(0.5,), std=(0.25,))
        checkpoint.write_spec(tmp_path, {**spec, "preprocessing": seen.as_json()}, "model.xml", "model.bin")
        return predict.weights_sha256(tmp_path)

    assert len({digest(b"a", b"b"), digest(b"a", b"c"), digest(b"c", b"b"), digest(b"b", b"a")}) == 4


@pytest.mark.integration
def test_an_onnx_file_that_computes_another_thing_stops_every_format_that_is_made_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, write = source_of("resnet8", tmp_path / "steps"), export.export_onnx
    other = models.create(NETWORKS["resnet8"]).eval()
    monkeypatch.setattr(export, "export_onnx", lambda network, *given: write(other, *given))
    for step in ("onnx", "onnx_int8"):
        with pytest.raises(export.ExportError, match="logits differ from PyTorch's by up to"):
            getattr(source, step)


# ------------------------------------------------------------------- real conversions


@pytest.mark.parametrize("kind", ["resnet8", pytest.param("mobilenet", marks=pytest.mark.integration)])
@pytest.mark.parametrize("format_", [here(name) for name in FLOAT])
def test_logits_are_those_of_pytorch_at_every_batch(
    written: Callable[[str, str], tuple[Source, Path]], kind: str, format_: str
) -> None:
    source, path = written(kind, format_)
    run = catalogue.OF[format_].open(path, 1)
    # 1, what was the example, more than ExecuTorch takes at once, and back
    for size in (1, 2, 15, 16, 64, 65, 70, 1):
        some = source.images[:size]
        with torch.inference_mode():
            got = run(torch.from_numpy(some)).numpy() if isinstance(run, nn.Module) else run(some)
        assert got.shape == (size, 3) and got.dtype == np.float32
        np.testing.assert_allclose(got, of_pytorch(source, some), atol=2e-5)


@pytest.mark.parametrize("format_", [here(name) for name, what in catalogue.FORMATS.items() if what.int8])
def test_eight_bits_name_mostly_the_same_classes(
    written: Callable[[str, str], tuple[Source, Path]], format_: str
) -> None:
    source, path = written("resnet8", format_)
    got, expected = answers(catalogue.OF[format_], path, source.images), of_pytorch(source, source.images)
    assert (got.argmax(1) == expected.argmax(1)).mean() > 0.9
    assert 1e-4 < np.abs(got - expected).max() < 1.0  # it does round


@pytest.mark.integration
@pytest.mark.parametrize("format_", [here(name) for name in catalogue.FORMATS])
def test_equal_networks_give_equal_files_and_equal_answers(
    written: Callable[[str, str], tuple[Source, Path]], tmp_path: Path, format_: str
) -> None:
    source, path = written("resnet8", format_)
    runtime = catalogue.OF[format_]
    (tmp_path / "steps").mkdir()
    again = tmp_path / path.name
    catalogue.FORMATS[format_].write(replace(source, scratch=tmp_path / "steps"), again)
    for file in runtime.files:
        assert again.with_name(file).read_bytes() == path.with_name(file).read_bytes()
        assert str(tmp_path).encode() not in again.with_name(file).read_bytes()
    first, second = (answers(runtime, each, source.images) for each in (path, again))
    np.testing.assert_array_equal(first, second)


@pytest.mark.integration
@pytest.mark.parametrize("format_", [here(name) for name in catalogue.FORMATS])
def test_a_file_that_is_not_whole_is_one_line_and_the_process_lives(
    written: Callable[[str, str], tuple[Source, Path]], tmp_path: Path, format_: str
) -> None:
    """In a process of its own: what ends a process is not caught by a test in it."""
    _, path = written("resnet8", format_)
    runtime = catalogue.OF[format_]
    rng = np.random.default_rng(0)
    whole = path.read_bytes()
    contents = [b"", b"<html>404</html>", whole[: len(whole) // 2], whole[:40], b"\x00" * 64]
    contents += [rng.bytes(int(size)) for size in rng.integers(1, 2000, 10)]
    for number, content in enumerate(contents):
        folder = tmp_path / str(number)
        shutil.copytree(path.parent, folder)
        (folder / path.name).write_bytes(content)
    script = (
        "import sys; from pathlib import Path; from thinner.errors import UserError; from thinner.runtimes import catalogue\n"
        "runtime = catalogue.RUNTIMES[sys.argv[1]]\n"
        "for folder in sorted(Path(sys.argv[2]).iterdir()):\n"
        "    try: runtime.open(folder / runtime.files[0], 1); print('opened')\n"
        "    except UserError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, runtime.name, str(tmp_path)],
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert len(lines) == len(contents)
    assert all(path.name in line and "Export it again: thinner stage export" in line for line in lines)


# ------------------------------------------------------------------- OpenVINO

openvino_here = pytest.mark.skipif(
    catalogue.missing(["openvino"]) is not None, reason=str(catalogue.missing(["openvino"]))
)
executorch_here = pytest.mark.skipif(
    catalogue.missing(["executorch"]) is not None, reason=str(catalogue.missing(["executorch"]))
)


@openvino_here
def test_openvino_keeps_metadata_and_computes_in_float32_with_as_many_threads_as_asked(
    written: Callable[[str, str], tuple[Source, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import json

    _, path = written("resnet8", "openvino")
    openvino: Any = catalogue.RUNTIMES["openvino"].load()
    model = openvino.Core().read_model(path)
    for key, value in METADATA.items():
        assert json.loads(model.get_rt_info(["thinner", key]).value) == value
    assert {str(op.get_element_type()) for op in model.get_ops() if op.get_type_name() == "Constant"} == {
        "<Type: 'float32'>",
        "<Type: 'int64_t'>",
    }
    compiled: list[Any] = []
    compile_model = openvino.Core.compile_model
    monkeypatch.setattr(
        openvino.Core, "compile_model", lambda self, *args: compiled.append(compile_model(self, *args)) or compiled[-1]
    )
    for threads in (1, 2):
        catalogue.RUNTIMES["openvino"].open(path, threads)
        assert compiled[-1].get_property("INFERENCE_NUM_THREADS") == threads
        assert compiled[-1].get_property("INFERENCE_PRECISION_HINT") == openvino.Type.f32
        assert compiled[-1].get_property("NUM_STREAMS") == 1


@openvino_here
def test_openvino_tells_nobody_that_it_is_used(
    written: Callable[[str, str], tuple[Source, Path]], tmp_path: Path
) -> None:
    """No connection is opened, and it leaves nothing in the home folder."""
    source, path = written("resnet8", "openvino")
    script = (
        "import socket, sys\n"
        "def refuse(*args, **options): raise SystemExit('a connection')\n"
        "socket.socket.connect = refuse; socket.create_connection = refuse\n"
        "from pathlib import Path; import types; import numpy as np\n"
        "from thinner.runtimes import catalogue\n"
        "made = types.SimpleNamespace(network=None, onnx=Path(sys.argv[1]), metadata={})\n"
        "target = Path(sys.argv[2]).with_name('again.xml')\n"
        "catalogue.FORMATS['openvino'].write(made, target)\n"
        "print(catalogue.RUNTIMES['openvino'].open(target, 1)(np.zeros((1, 1, 32, 32), 'f')).shape)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(source.onnx), str(path)],
        cwd=ROOT,
        env={**os.environ, "HOME": str(tmp_path)},
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.stdout.strip() == "(1, 3)", done.stderr
    assert not (tmp_path / "intel").exists()


@openvino_here
@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        ('type="ReLU"', 'type="Loop"', "repeats a part of itself"),
        ('type="ReLU"', 'type="Lo&#111;p"', "repeats a part of itself"),
        ("<net", '<!DOCTYPE net [<!ENTITY a "aa">]><net', "it declares a document type"),
        ('type="ReLU"', 'type="Nothing"', "damaged, or made by something else"),
    ],
)
def test_openvino_opens_no_graph_that_no_export_of_ours_is(
    written: Callable[[str, str], tuple[Source, Path]], tmp_path: Path, before: str, after: str, line: str
) -> None:
    _, path = written("resnet8", "openvino")
    text = path.read_text()
    assert before in text
    shutil.copyfile(path.with_name("model.bin"), tmp_path / "model.bin")
    (tmp_path / "model.xml").write_text(text.replace(before, after, 1))
    with pytest.raises(export.ExportError, match=line):
        catalogue.RUNTIMES["openvino"].open(tmp_path / "model.xml", 1)


# ------------------------------------------------------------------- ExecuTorch


@pytest.mark.integration
@executorch_here
def test_executorch_keeps_metadata_and_runs_the_network_in_xnnpack(
    written: Callable[[str, str], tuple[Source, Path]],
) -> None:
    import json

    _, path = written("mobilenet", "executorch")
    program = catalogue.RUNTIMES["executorch"].open(path, 1)
    assert json.loads(program.file.load_method("metadata")([])[0]) == METADATA  # type: ignore[union-attr]
    assert b"XnnpackBackend" in path.read_bytes()


@executorch_here
def test_executorch_has_the_threads_of_whoever_runs_and_all_stay_right(
    written: Callable[[str, str], tuple[Source, Path]],
) -> None:
    """It has one pool for the process: opening for another number must not leave others with a pool that is gone."""
    import executorch.extension.pybindings._C as library  # noqa: N811

    source, path = written("resnet8", "executorch")
    expected = of_pytorch(source, source.images[:8])
    runtime = catalogue.RUNTIMES["executorch"]
    one = runtime.open(path, 1)
    for _ in range(3):
        two = runtime.open(path, 2)
        for run, threads in ((two, 2), (one, 1), (two, 2)):
            np.testing.assert_allclose(run(source.images[:8]), expected, atol=2e-5)
            assert library._threadpool_get_thread_count() == threads
