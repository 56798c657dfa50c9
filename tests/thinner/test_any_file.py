"""Whatever stands in a file: a value or one line of ours, in no time, and no code but ours. Of YAML: test_yaml_files."""

import io
import json
import os
import struct
import tarfile
import zipfile
from argparse import Namespace
from collections import OrderedDict
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import timm  # noqa: F401 - what a reader imports late is none of its time
import torch
import torchvision  # noqa: F401
from anything import SEEDS, VALUES, ask, changed, damaged, fuzz, written
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from PIL import Image

from flows import console, serve
from tasks import lockfile
from thinner.data import sources, store
from thinner.evidence import results, shipping
from thinner.files import mapped, whole
from thinner.files import tensors as tensor_files
from thinner.learn import signals
from thinner.networks import checkpoint, export, models, weights
from thinner.networks.spec import NetworkSpec
from thinner.predict import predict

pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")

NETWORK = NetworkSpec("resnet8", 3, 1, width=4, stem_stride=2)
CLASSES = ["cat", "dog", "cow"]
SPEC = {
    "stage": "prune", "network": NETWORK.as_json(), "classes": CLASSES, "parents": {}, "data_sha256": "0", "val_accuracy": 0.5,
    "preprocessing": {"image_size": 16, "channels": 1, "mean": [0.5], "std": [0.5]},
}  # fmt: skip
PICTURES = [np.arange(20 * 16, dtype=np.uint8).reshape(20, 16, 1)]


def saved(write) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# ---------------------------------------------------------------------------------------------------- weights


@cache
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return models.create(NETWORK).eval()


@cache
def weights_file(kind: str) -> bytes:
    state = network().state_dict()
    if kind == "safetensors":
        from safetensors.torch import save

        return save(state)
    return saved(lambda file: torch.save(state, file, _use_new_zipfile_serialization=kind == "zip"))


def load_weights(path: Path) -> None:
    """As finetune does."""
    weights.read_file(path)
    models.load_pretrained(models.create(NETWORK), NETWORK, str(path))


@fuzz()
@given(st.sampled_from(["zip", "legacy", "safetensors"]), SEEDS, st.booleans())
def test_damaged_weights(tmp_path, kind, seed, other_name):
    content = weights_file(kind)
    head = {"zip": 0, "legacy": 4000, "safetensors": 3000}[kind]
    ending = ".safetensors" if (kind == "safetensors") != other_name else ".pth"
    ask("weights, bytes", partial(load_weights, put(tmp_path / f"w{ending}", damaged(content, seed, head))))


LENGTH = 8 + struct.unpack("<Q", weights_file("safetensors")[:8])[0]
HEADER = json.loads(weights_file("safetensors")[8:LENGTH])
ODD_ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F64", "F8_E8M0", "F4", "BOOL", "C64", "U64", "X", "", 1, None]),
        "shape": st.lists(st.sampled_from([0, 1, 2, 36, -1, 2**31, 2**63, 10**40, 1.5, "1", None]), max_size=4)
        | VALUES,
        "data_offsets": st.lists(st.sampled_from([0, 1, 36, 144, 145, 288, -1, 2**63, 10**40, 0.5]), max_size=3)
        | VALUES,
    }
)


@fuzz()
@given(
    changed(HEADER) | st.dictionaries(st.sampled_from(sorted(HEADER)) | st.text(max_size=6), ODD_ENTRIES, max_size=3),
    st.booleans(),
    SEEDS,
)
def test_safetensors_with_another_header(tmp_path, header, beside, seed):
    if beside and isinstance(header, dict):
        header = {**HEADER, **header}
    text = json.dumps(header).encode()
    length = len(text) if seed % 5 else seed
    content = struct.pack("<Q", length) + text + weights_file("safetensors")[LENGTH:]
    ask("weights, safetensors header", partial(load_weights, put(tmp_path / "w.safetensors", content)))


TENSORS = [
    lambda: torch.zeros(0), lambda: torch.tensor(1.0), lambda: torch.tensor(float("nan")), lambda: torch.zeros(4, 1, 3, 3),
    lambda: torch.zeros(4, 1, 3, 3, dtype=torch.complex64), lambda: torch.zeros(1).expand(10**6, 10**6),
    lambda: torch.zeros(1, dtype=torch.int8).expand(10**9, 10**9), lambda: torch.zeros(4, 1, 3, 3).to_sparse(),
    lambda: torch.zeros(4, 4).to_sparse_csr(), lambda: torch.quantize_per_tensor(torch.zeros(4, 1, 3, 3), 0.1, 0, torch.qint8),
    lambda: torch.zeros(4, 1, 3, 3, device="meta"), lambda: torch.zeros(3, dtype=torch.bool),
    lambda: torch.zeros(3).to(torch.float8_e4m3fn), lambda: torch.zeros(3).to(torch.float8_e8m0fnu),
    lambda: torch.zeros(3, dtype=torch.uint16), lambda: torch.zeros(3, dtype=torch.bfloat16), lambda: torch.zeros(3).half(),
    lambda: torch.zeros(3, dtype=torch.complex64).conj(), lambda: torch.nn.Parameter(torch.zeros(3)),
    lambda: torch.tensor([float("inf")] * 3, dtype=torch.complex128), lambda: torch.zeros(4, 1, 3, 3).transpose(0, 2),
    lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
]  # fmt: skip
NAMES = st.sampled_from(
    [*network().state_dict(), "module.conv1.weight", "state_dict", "model", "a\nb", "\x1b[31m", "", "x" * 600]
)
OBJECTS = st.recursive(
    st.sampled_from(TENSORS).map(lambda make: make()) | VALUES,
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(NAMES, inner, max_size=5)
    | st.dictionaries(NAMES | st.integers() | st.none() | st.tuples(st.integers()), inner, max_size=5)
    | inner.map(lambda value: Namespace(args=value)) | inner.map(lambda value: OrderedDict(model=value)),
    max_leaves=6,
)  # fmt: skip
STATES = st.dictionaries(NAMES, st.sampled_from(TENSORS).map(lambda make: make()), min_size=1, max_size=3).map(
    lambda some: {**network().state_dict(), **some}
)


@fuzz()
@given(OBJECTS | STATES | STATES.map(lambda state: {"state_dict": state}), st.booleans())
@pytest.mark.filterwarnings("ignore:.*(prototype stage|beta state|quantize_per_tensor|deprecated):UserWarning")
def test_other_things_that_were_pickled(tmp_path, value, zipped):
    try:
        content = saved(lambda file: torch.save(value, file, _use_new_zipfile_serialization=zipped))
    except (RuntimeError, NotImplementedError, RecursionError, UnicodeEncodeError):
        return  # torch itself cannot write it
    ask("weights, pickled values", partial(load_weights, put(tmp_path / "w.pth", content)))


# ---------------------------------------------------------------------------------------------------- checkpoints


@cache
def checkpoint_files() -> dict[str, bytes]:
    """By name; as the network is after pruning, so that there is a description of what was cut."""
    import tempfile

    from thinner.compress import pruning

    with tempfile.TemporaryDirectory() as folder:
        model = pruning.cut(
            models.create(replace(NETWORK, width=8)).eval(),
            torch.zeros(1, 1, 16, 16),
            macs=60_000,
            criterion="l2",
            round_to=1,
        )[0]
        checkpoint.save(folder, model, {**SPEC, "network": replace(NETWORK, width=8).as_json()})
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def plain_spec() -> dict:
    return json.loads(checkpoint_files()[checkpoint.SPEC])


def write_checkpoint(folder: Path, spec: bytes | None = None, tensors: bytes | None = None) -> Path:
    files = checkpoint_files()
    put(folder / checkpoint.SPEC, files[checkpoint.SPEC] if spec is None else spec)
    put(folder / checkpoint.WEIGHTS, files[checkpoint.WEIGHTS] if tensors is None else tensors)
    return folder


def sealed_again(folder: Path, spec) -> None:
    """As one who knows how would: then it is what lies behind the seal that answers."""
    if isinstance(spec, dict):
        spec = whole.sealed(spec, {checkpoint.WEIGHTS: folder / checkpoint.WEIGHTS})
    put(folder / checkpoint.SPEC, json.dumps(spec).encode())


def test_the_checkpoint_itself_is_read(tmp_path):
    folder = write_checkpoint(tmp_path)
    assert plain_spec()["pruned"]["attributes"]
    sealed_again(folder, plain_spec())
    assert predict(folder, PICTURES)[0].label in CLASSES


@fuzz()
@given(changed(plain_spec()), SEEDS)
def test_another_model_json(tmp_path, spec, seed):
    folder = write_checkpoint(tmp_path, written(spec, seed))
    ask("checkpoint, model.json", partial(predict, folder, PICTURES))


@fuzz()
@given(changed({k: v for k, v in plain_spec().items() if k not in ("integrity", "sealed")}))
def test_another_model_json_that_is_sealed_again(tmp_path, spec):
    folder = write_checkpoint(tmp_path)
    try:
        sealed_again(folder, spec)
    except UnicodeEncodeError:  # pragma: no cover - JSON escapes half characters
        return
    ask("checkpoint, sealed again", partial(predict, folder, PICTURES))


@pytest.mark.parametrize(
    "name",
    ["resnet9999999998", "resnet" + "9" * 5000, "wrn-16-99999", "resnet122", "torchvision:resnet18", "timm:resnet18.a_b",
     "torchvision:regnet_y_400mf", "python:nets/mine.py:make", "python:../mine.py:make", "timm:", "torchvision:../x", "a\nb"],
)  # fmt: skip
def test_a_checkpoint_of_another_network(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    put(Path("nets/mine.py"), b"open('it-ran', 'w')")
    put(Path("mine.py"), b"open('it-ran', 'w')")
    folder = write_checkpoint(tmp_path)
    for pruned in (None, plain_spec()["pruned"]):
        spec = {**plain_spec(), "network": {**plain_spec()["network"], "name": name}, "pruned": pruned}
        sealed_again(folder, spec)
        ask("checkpoint, other networks", partial(predict, folder, PICTURES))
    assert not Path("it-ran").exists()


@fuzz(0.5)
@given(SEEDS, st.booleans())
def test_damaged_tensors_of_a_checkpoint(tmp_path, seed, again):
    folder = write_checkpoint(tmp_path, tensors=damaged(checkpoint_files()[checkpoint.WEIGHTS], seed, 3000))
    if again:
        sealed_again(folder, plain_spec())
    ask("checkpoint, model.safetensors", partial(predict, folder, PICTURES))


# ---------------------------------------------------------------------------------------------------- arrays

IMAGES = [f"cat/{number}.jpg" for number in range(6)]
NEEDED = np.arange(6)
GIVEN = {"names": np.array(IMAGES), "logits": np.zeros((6, 3), np.float32), "classes": np.array(CLASSES)}
ARRAYS = st.sampled_from(
    [np.array(None), np.array([{"a": 1}], dtype=object), np.zeros(0), np.zeros((6, 3)), np.zeros((6, 3), np.complex64),
     np.full((6, 3), np.nan), np.full((6, 3), 1e308), np.zeros((6, 3), bool), np.zeros((6, 3), "datetime64[s]"), np.array(5),
     np.array("a"), np.array(["a\nb"] * 6), np.array([b"a"] * 6), np.zeros(6, "f4,i4"), np.array([["x"] * 3] * 6),
     np.zeros((6, 3), np.int64), np.zeros((6, 3, 1)), np.array(IMAGES * 2), np.array([]), np.arange(6), np.zeros((0, 3)),
     np.array(["x" * 600] * 3), np.array(["\x1b[31m", "a\nb", "c"]), np.zeros(6, "V0"), np.array(IMAGES).reshape(2, 3),
     np.array([2**63 - 1] * 6), np.array([-1] * 6), np.zeros((1, 16, 16, 1), np.uint8), np.zeros((6, 3), np.float16)]
)  # fmt: skip


def read_given(path: Path):
    return signals.read_given(path, IMAGES, CLASSES, NEEDED)


@fuzz()
@given(SEEDS, st.booleans())
def test_damaged_logits_of_a_teacher(tmp_path, seed, compressed):
    content = saved(lambda file: (np.savez_compressed if compressed else np.savez)(file, **GIVEN))
    ask("teacher's .npz, bytes", partial(read_given, put(tmp_path / "t.npz", damaged(content, seed))))


@fuzz()
@given(
    st.dictionaries(st.sampled_from([*GIVEN, "file", "a\nb", ""]), ARRAYS, max_size=2),
    st.sets(st.sampled_from([*GIVEN])),
    st.booleans(),
)
def test_other_arrays_of_a_teacher(tmp_path, others, gone, alone):
    given_ = {name: array for name, array in {**GIVEN, **others}.items() if name not in gone}
    path = tmp_path / "t.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in given_.items():
            archive.writestr(f"{name}.npy", saved(lambda file, array=array: np.save(file, array)))
    if alone and others:
        path.write_bytes(saved(lambda file: np.save(file, next(iter(others.values())))))
    ask("teacher's .npz, arrays", partial(read_given, path))


def header_of(shape: str, descr: str = "'<f4'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize(
    "content",
    [header_of("(10000000000, 3)"), header_of("(6, 1000000000000000000000)"), header_of("(-6, 3)"), header_of("(6, 3"),
     header_of("__import__('os').system('touch it-ran')"), header_of("(6, 3)", "'O'") + b"cos\nsystem\n(S'touch it-ran'\ntR.",
     header_of("(6, 3)", "'<U1000000000'"), header_of("(" * 5000), header_of("(6, 3)") + bytes(72)],
)  # fmt: skip
def test_an_array_that_says_it_is_what_it_is_not(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("t.npz", "w") as archive:
        archive.writestr("names.npy", saved(lambda file: np.save(file, GIVEN["names"])))
        archive.writestr("logits.npy", content)
    found = ask("teacher's .npz, headers", partial(read_given, Path("t.npz")))
    assert (found is not None) == (len(content) > 128 and content.endswith(bytes(72)))
    assert not Path("it-ran").exists()
    put(Path("alone.npy"), content)
    ask("one array", partial(mapped.open_array, Path("alone.npy")))
    assert not Path("it-ran").exists()


def test_a_small_file_that_would_fill_the_memory_is_refused(tmp_path):
    path = tmp_path / "t.npz"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("logits.npy", "w") as file,
    ):
        file.write(header_of("(100000000, 3)"))
        for _ in range(600):
            file.write(bytes(1_000_000))
    with pytest.raises(signals.SignalsError, match=r"would take 0.6 GB of memory, from a file of"):
        read_given(path)
    ask("teacher's .npz, headers", partial(read_given, path))


SIGNALS = {"views": 2, "classes": 5, "top_k": 3, "features": [{"layer": "layer1", "pooled": False}], "seed": 0}
SIGNAL_ARRAYS = {
    "logits": np.zeros((2, 6, 3), np.float16), "centres": np.zeros((2, 6), np.float32), "index": np.arange(6),
    "classes": np.zeros((2, 6, 3), np.int32), "rest": np.zeros((2, 6), np.float32), "features-0": np.zeros((2, 6, 4), np.float16),
}  # fmt: skip


def use_signals(folder: Path) -> None:
    found = signals.open_signals(folder)
    rows, view = found.index[:2], np.zeros(min(2, len(found.index)), np.int64)
    found.logits(rows, view)
    found.features(rows, view)


def write_signals(folder: Path, info: bytes, **arrays: bytes) -> Path:
    put(folder / "signals.json", info)
    for name, array in SIGNAL_ARRAYS.items():
        put(folder / f"{name}.npy", arrays.get(name) or saved(lambda file, array=array: np.save(file, array)))
    return folder


@fuzz()
@given(changed(SIGNALS), SEEDS)
def test_another_signals_json(tmp_path, info, seed):
    ask("signals, signals.json", partial(use_signals, write_signals(tmp_path, written(info, seed))))


@fuzz()
@given(st.sampled_from(list(SIGNAL_ARRAYS)), SEEDS | ARRAYS)
def test_other_arrays_of_signals(tmp_path, name, other):
    content = saved(lambda file: np.save(file, SIGNAL_ARRAYS[name] if isinstance(other, int) else other))
    content = damaged(content, other, 100) if isinstance(other, int) else content
    ask(
        "signals, arrays",
        partial(use_signals, write_signals(tmp_path, json.dumps(SIGNALS).encode(), **{name: content})),
    )


INFO = {
    "classes": CLASSES,
    "counts": {"test": 2},
    "sha256": "0" * 64,
    "source": "s",
    "image_size": 8,
    "channels": 1,
    "fit": "crop",
}
STORE_ARRAYS = {"images": np.zeros((8, 8, 8, 1), np.uint8), "labels": np.array([0, 1, 2, -1, -1, 0, 1, 2])}
SPLITS = {name: np.array(rows) for name, rows in zip(store.SPLITS, ([0, 1, 2], [3, 4], [5], [6, 7]), strict=True)}


def use_store(folder: Path) -> None:
    found = store.open_store(folder)
    for rows in found.splits.values():
        mapped.read_rows(found.images, rows)
        [found.classes[label] for label in found.labels[rows]]


def write_prepared(folder: Path, **files: bytes) -> Path:
    put(folder / "info.json", files.get("info", json.dumps(INFO).encode()))
    put(folder / "splits.npz", files.get("splits", saved(lambda file: np.savez(file, **SPLITS))))
    for name, array in STORE_ARRAYS.items():
        put(folder / f"{name}.npy", files.get(name, saved(lambda file, array=array: np.save(file, array))))
    return folder


def test_the_store_and_the_signals_themselves_are_read(tmp_path):
    use_store(write_prepared(tmp_path / "store"))
    use_signals(write_signals(tmp_path / "signals", json.dumps(SIGNALS).encode()))


@fuzz()
@given(changed(INFO), SEEDS)
def test_another_info_json(tmp_path, info, seed):
    ask("prepared data, info.json", partial(use_store, write_prepared(tmp_path, info=written(info, seed))))


@fuzz()
@given(st.sampled_from([*STORE_ARRAYS, "splits"]), st.sampled_from(store.SPLITS), SEEDS | ARRAYS)
def test_other_arrays_of_prepared_data(tmp_path, name, split, other):
    if name == "splits":
        arrays = SPLITS if isinstance(other, int) else {**SPLITS, split: other}
        content = saved(lambda file: np.savez(file, **arrays))
    else:
        content = saved(lambda file: np.save(file, STORE_ARRAYS[name] if isinstance(other, int) else other))
    content = damaged(content, other, 100) if isinstance(other, int) else content
    ask("prepared data, arrays", partial(use_store, write_prepared(tmp_path, **{name: content})))


# ---------------------------------------------------------------------------------------------------- exports


@cache
def exported(ending: str) -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"model{ending}")
        if ending == ".onnx":
            export.export_onnx(network(), path, (1, 16, 16), {"classes": CLASSES}, opset=20)
        else:
            export.export_pt2(network(), path, (1, 16, 16), {"classes": CLASSES})
        return path.read_bytes()


def write_export(folder: Path, name: str, content: bytes) -> Path:
    put(folder / name, content)
    put(folder / checkpoint.SPEC, json.dumps(SPEC).encode())
    return folder


def test_the_exports_themselves_are_read(tmp_path):
    for ending in (".onnx", ".pt2"):
        folder = write_export(tmp_path / ending[1:], f"model{ending}", exported(ending))
        assert predict(folder, PICTURES)[0].label in CLASSES


def use_export(folder: Path, name: str) -> None:
    """What `thinner predict` does with it, and what evaluate reads beside it."""
    predict(folder, PICTURES)
    export.read_metadata(folder / name)


@fuzz()
@given(SEEDS)
def test_damaged_onnx(tmp_path, seed):
    folder = write_export(tmp_path, "model.onnx", damaged(exported(".onnx"), seed, 3000))
    ask("ONNX, bytes", partial(use_export, folder, "model.onnx"))


def onnx_of(inputs, outputs, dtype, shape) -> bytes:
    kind = getattr(TensorProto, dtype)
    ins = [helper.make_tensor_value_info(name, kind, shape) for name in inputs]
    outs = [helper.make_tensor_value_info(name, kind, None) for name in outputs]
    nodes = [helper.make_node("Identity", [inputs[0] if inputs else ""], [name]) for name in outputs]
    graph = helper.make_graph(nodes, "g", ins, outs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


GRAPH_NAMES = st.lists(st.sampled_from(["images", "logits", "pixels", "x", "a\nb"]), max_size=2, unique=True)


@fuzz()
@given(
    GRAPH_NAMES, GRAPH_NAMES, st.sampled_from(["FLOAT", "DOUBLE", "UINT8", "STRING", "FLOAT16", "BOOL", "INT64"]),
    st.sampled_from([[None, 1, 16, 16], [1, 1, 16, 16], [None, 3], [], [0], None, [7, 1, 16, 16], ["n", "c", "h", "w"]]),
)  # fmt: skip
def test_onnx_with_other_ends(tmp_path, inputs, outputs, dtype, shape):
    outputs = [name for name in outputs if name not in inputs]
    folder = write_export(tmp_path, "model.onnx", onnx_of(inputs, outputs, dtype, shape))
    ask("ONNX, other inputs and outputs", partial(use_export, folder, "model.onnx"))


@fuzz()
@given(changed(SPEC), st.booleans())
def test_another_model_json_beside_onnx(tmp_path, spec, pixels):
    folder = write_export(tmp_path, "model.onnx", exported(".onnx"))
    if pixels and isinstance(spec, dict):
        spec["input"] = "pixels"
    put(folder / checkpoint.SPEC, json.dumps(spec).encode())
    ask("ONNX, model.json", partial(predict, folder, PICTURES))


@fuzz(0.3)
@given(SEEDS)
def test_a_damaged_program(tmp_path, seed):
    folder = write_export(tmp_path, "model.pt2", damaged(exported(".pt2"), seed))
    ask("pt2, bytes", partial(use_export, folder, "model.pt2"))


@cache
def members() -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(exported(".pt2"))) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def documents() -> list[str]:
    return [name for name in members() if name.endswith(".json")]


@fuzz(0.3)
@given(
    st.sampled_from(documents()).flatmap(lambda name: st.tuples(st.just(name), changed(json.loads(members()[name]))))
)
def test_a_program_of_other_operators(tmp_path, change):
    name, value = change
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for member, held in {**members(), name: json.dumps(value).encode()}.items():
            archive.writestr(member, held)
    folder = write_export(tmp_path, "model.pt2", content.getvalue())
    ask("pt2, JSON", partial(use_export, folder, "model.pt2"))


@pytest.mark.parametrize(
    "target",
    ["torch.load", "torch.hub.load", "torch.utils.cpp_extension.load", "torch.os.system", "_operator.methodcaller",
     "math.exp", "os.system", "torch.ops.aten.from_file.default", "#x:y", "torch.ops.load_library", "a\nb", ""],
)  # fmt: skip
def test_a_program_that_calls_something_else(tmp_path, target):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for member, held in members().items():
            archive.writestr(member, held.replace(b'"torch.ops.aten.relu.default"', json.dumps(target).encode()))
    folder = write_export(tmp_path, "model.pt2", content.getvalue())
    assert ask("pt2, JSON", partial(predict, folder, PICTURES)) is None


# ---------------------------------------------------------------------------------------------------- pictures

FORMATS = ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "PPM"]


@cache
def picture(format: str) -> bytes:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 20, 3), np.uint8))
    return saved(lambda file: image.save(file, format))


@fuzz(2)
@given(st.sampled_from(FORMATS), SEEDS)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow tells of what it passes over
def test_damaged_pictures(tmp_path, format, seed):
    path = put(tmp_path / f"p.{format.lower()}", damaged(picture(format), seed, 60))
    read = partial(store.decode, partial(sources.open_picture, path), 8, 3, "crop", 1_000_000)
    ask("pictures", read, store.UnreadableError)


# ---------------------------------------------------------------------------------------------------- tables

TABLE = b"path,label,split\na.jpg,cat,train\nb.jpg,dog,test\n"
WORDS = st.lists(
    st.sampled_from(["path", "label", "split", ",", "\n", "\r", '"', "a.jpg", "cat", "train", "test", "..", "/", "\0", "\x1b[31m",
                     "\u2028", "é", "e\u0301", "x" * 200_000, ";", "\t"]) | st.text(max_size=3), max_size=30,
).map("".join)  # fmt: skip


@fuzz()
@given(WORDS | WORDS.map(lambda text: "path,label,split\n" + text) | SEEDS)
def test_any_table(tmp_path, text):
    content = damaged(TABLE, text) if isinstance(text, int) else text.encode("utf-8", "surrogatepass")
    put(tmp_path / "t.csv", content)
    ask("csv", lambda: sources.list_source(f"csv:{tmp_path / 't.csv'}", tmp_path, lambda line: None))


@cache
def shard(format: int) -> bytes:
    def write(buffer):
        with tarfile.open(fileobj=buffer, mode="w", format=format) as made:
            for name in ("a", "b" * 200, "é/c"):  # of which two need a second header
                for ending, content in (("cls", b"1" if name == "a" else b"2"), ("png", picture("PNG"))):
                    info = tarfile.TarInfo(f"{name}.{ending}")
                    info.size = len(content)
                    made.addfile(info, io.BytesIO(content))

    return saved(write)


@fuzz(2)
@given(st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]), SEEDS)
def test_damaged_shards(tmp_path, format, seed):
    put(tmp_path / "s/0.tar", damaged(shard(format), seed, 600))
    found = ask("shards", lambda: sources.list_source(f"shards:{tmp_path / 's'}", tmp_path, lambda line: None))
    if found is not None:
        read = partial(store.decode, partial(found.read, 0), 8, 3, "crop", 1_000_000)
        ask("pictures", read, store.UnreadableError)


# ---------------------------------------------------------------------------------------------------- JSON

ROW = {
    "accuracy": 0.9, "macro_f1": 0.9, "macs": 1000, "params": 10, "file_bytes": 5, "runtime": "pytorch", "temperature": 0.8,
    "latency_ms_b1": 0.5, "latency_ms_b64": 4.5,
}  # fmt: skip
METRICS = {"prune": ROW, "distill": {**ROW, "macs": 2000}}
CLAIMS = {"claim_1": {"claim": "a beats b", "kind": "beats", "outcome": "proven", "numbers": "1"}}
TARGET = {"candidate": "prune", "met": False, "lines": ["Target missed"], "target": {"macs": 0.5}, "loss_bound": 1.0}


def use_reports(root: Path) -> None:
    """What `thinner run` says last, and predict's temperature."""
    measured = shipping.read_metrics(root / "reports/metrics.json")
    results.read_metrics(root / "reports/metrics.json")
    verdicts = list(shipping.read_verdicts(root / "reports/claims.json").values())
    targets = shipping.read_targets(root / "reports")
    assert shipping.find_temperature(root, "prune") is None or shipping.find_temperature(root, "prune") > 0
    console.results_table(measured)
    console.print_verdicts({str(number): verdict for number, verdict in enumerate(verdicts)})
    shipping.target_lines(targets)
    shipping.ship_line(measured, "prune", verdicts, targets)
    shipping.ship_line(measured, "prune", verdicts, [])


def write_reports(root: Path, **files: bytes) -> Path:
    put(root / "reports/metrics.json", files.get("metrics", json.dumps(METRICS).encode()))
    put(root / "reports/claims.json", files.get("claims", json.dumps(CLAIMS).encode()))
    put(root / "reports/prune/target.json", files.get("target", json.dumps(TARGET).encode()))
    return root


def test_the_reports_themselves_are_read(tmp_path):
    use_reports(write_reports(tmp_path))


@fuzz(2)
@given(
    st.tuples(st.just("metrics"), changed(METRICS)) | st.tuples(st.just("claims"), changed(CLAIMS))
    | st.tuples(st.just("target"), changed(TARGET)), SEEDS,
)  # fmt: skip
def test_other_reports(tmp_path, change, seed):
    name, value = change
    ask("reports", partial(use_reports, write_reports(tmp_path, **{name: written(value, seed)})))


@fuzz()
@given(changed({"url": "http://127.0.0.1:4200", "pid": os.getpid(), "started": 1.0}), SEEDS)
def test_any_note_of_a_server(tmp_path, note, seed):
    put(tmp_path / ".thinner" / "prefect-server.json", written(note, seed))
    found = ask("note of a server", partial(serve.running_server, tmp_path))
    assert found is None or found.startswith("http://127.0.0.1:")  # process 1 may have started at second 1


@fuzz()
@given(changed({"write": {"a": {"pid": 4, "cmd": "dvc"}}, "read": {"b": [{"pid": 5, "cmd": "dvc repro"}]}}), SEEDS)
def test_any_rwlock(tmp_path, value, seed):
    put(tmp_path / lockfile.RWLOCK, written(value, seed))
    ask("rwlock", partial(lockfile.mend_rwlock, tmp_path))
    assert ask("rwlock", partial(lockfile.mend_rwlock, tmp_path)) is None  # what it mends stays mended


LOCK = b"""schema: '2.0'
stages:
  prepare:
    cmd: python -m tasks.prepare
    deps:
    - path: a.py
      hash: md5
      md5: abc
  teach:
    cmd: python -m tasks.teach
"""


@fuzz()
@given(SEEDS)
def test_any_dvc_lock(tmp_path, seed):
    put(tmp_path / lockfile.KEPT, LOCK if seed % 2 else damaged(LOCK, seed + 1))
    put(tmp_path / lockfile.LOCK, damaged(LOCK, seed))
    lockfile_patience = lockfile._PATIENCE
    try:
        lockfile._PATIENCE = 2, 0.0
        ask("dvc.lock", partial(lockfile.mend, tmp_path))
        ask("dvc.lock", partial(lockfile.keep, tmp_path))
    finally:
        lockfile._PATIENCE = lockfile_patience


@fuzz()
@given(changed({"sha256": "", "value": {"done": 3}}), SEEDS)
def test_any_file_with_a_checksum(tmp_path, value, seed):
    if isinstance(value, dict) and seed % 3 == 0 and "value" in value:
        value["sha256"] = whole._of_json(value["value"])
    ask("JSON with a checksum", partial(whole.read_json, put(tmp_path / "a.json", written(value, seed))))


@fuzz()
@given(SEEDS)
def test_any_tensors_with_a_checksum(tmp_path, seed):
    tensor_files.write(tmp_path / "a", {"x": torch.zeros(3), "y": torch.zeros(2, 2)}, {"step": 3})
    path = put(tmp_path / "b", damaged((tmp_path / "a").read_bytes(), seed, 200))
    ask("tensors with a checksum", partial(tensor_files.read, path))
