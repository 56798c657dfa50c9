"""Candidates for other runtimes: ONNX, run by ONNX Runtime; and torch.export's pt2. 8 bits: compress/quantization.py.
What these and others are to the rest: thinner/runtimes.

An export is a folder with `model.onnx` or `model.pt2`, and `model.json`, read like a checkpoint's. The file also says
by itself what its outputs mean and how an image becomes its input: `classes` and `preprocessing` as JSON, in an ONNX
file's `metadata_props` and in a pt2 archive's `extra/metadata.json`.
"""

from __future__ import annotations

import contextlib
import copy
import json
import mmap
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import torch
from jaxtyping import Float
from torch import nn

from thinner.data import views
from thinner.errors import UserError, one_line

Images = Float[np.ndarray, "batch channels height width"]
Logits = Float[np.ndarray, "batch classes"]
Method = Literal["minmax", "percentile", "entropy"]  # how ranges for 8 bits are found

INPUT, OUTPUT = "images", "logits"
PIXELS = "pixels"  # the input's name where preprocessing is part of the graph
METADATA = "metadata.json"
COMPARED = 64  # images on which an export is held to the network that it was made of
PROTOBUF_LIMIT_BYTES = 2**31 - 2**24  # a larger message cannot be written; its weights go to a file beside it


class ExportError(UserError):
    """An export that does not compute what the network computes."""


@contextlib.contextmanager
def writing(kind: str, model: nn.Module, instead: str) -> Iterator[None]:
    """Around another library's conversion of ``model``: whatever that raises, of a network that it cannot read or
    write, is an ExportError of one line that says what to do ``instead``."""
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:
        raise ExportError(
            f"'{type(model).__name__}' cannot be written as {kind} ({one_line(error)}). To do without: {instead}"
        ) from error


def export_onnx(
    model: nn.Module,
    path: str | Path,
    input_shape: tuple[int, int, int],
    metadata: Mapping[str, Any],
    opset: int,
    instead: str = "leave what is made of ONNX out of export.formats, and set quantize.rungs: []",
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
    with writing("ONNX", model, instead):
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
    if (written := opset_of(program.model_proto)) != opset:
        raise ExportError(
            f"export.opset: {opset}, but '{type(model).__name__}' could only be written with {written}. Set "
            f"export.opset: {written}"
        )
    save_onnx(program.model_proto, path, metadata)


def opset_of(program: onnx.ModelProto) -> int:
    """The version of ONNX's own operators that a file needs."""
    return next(int(one.version) for one in program.opset_import if one.domain in ("", "ai.onnx"))


def export_pt2(
    model: nn.Module, path: str | Path, input_shape: tuple[int, int, int], metadata: Mapping[str, Any]
) -> None:
    """Write ``model`` to ``path`` as a torch.export program with a free batch size.

    It holds PyTorch's own operators and the weights, so torch alone can run it, without the classes that made the
    network; not holding example inputs, it holds no pickle. ``input_shape`` is (channels, height, width) of one
    preprocessed image. What names files or classes of the machine that made it is taken out: equal networks give equal
    files, as long as those have the same name.
    """
    network = copy.deepcopy(model).cpu().eval().to(memory_format=torch.contiguous_format)
    example = torch.zeros((2, *input_shape))  # batch 2, because a size of 1 would be taken for a constant
    with writing("a torch.export program", model, "leave pt2 out of export.formats"):
        program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for node in program.graph.nodes:
        for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node", "torch_fn"):
            node.meta.pop(key, None)
    program.example_inputs = None
    torch.export.save(program, path, extra_files={METADATA: json.dumps(metadata)})


def open_pt2(path: str | Path) -> nn.Module:
    """The network that ``export_pt2`` wrote: callable on float images, of operators only.

    An archive that holds anything else is refused before PyTorch looks at it. Raises ExportError.
    """
    refuse_code(path)
    try:
        # the checks of input shapes are generated code that runs before every inference; the shapes are ours
        module: nn.Module = torch.export.load(path).module(check_guards=False)
    except Exception as error:  # torch has no error of its own for an archive that is not whole
        raise damaged(path, error) from error
    return module


def damaged(path: str | Path, error: Exception) -> ExportError:
    """What to raise where a runtime does not open ``path``, and which of its errors said so."""
    return ExportError(
        f"{path}: damaged, or made by something else ({type(error).__name__}: {one_line(error)}). "
        "Export it again: thinner stage export"
    )


def refuse_code(path: str | Path) -> None:
    """Raise ExportError unless the pt2 archive holds plain tensors, JSON and text alone.

    torch.export.load unpickles example inputs and constants, and has SymPy evaluate sizes, which is Python's ``eval``:
    whoever made the file would run what they like. So nothing of the kind may be in it: no member that is not on the
    list below, none twice (readers differ in which they take), no example inputs, no tensor marked as pickled, and
    sizes made of numbers, symbols and arithmetic only.
    """

    def refuse(what: str) -> ExportError:
        return ExportError(
            f"{path}: {one_line(what)}. Opening it could run code of whoever made it. Take the network's "
            "model.safetensors or ONNX file instead, or export it here: thinner stage export"
        )

    try:
        with zipfile.ZipFile(path) as archive:
            names = [info.filename for info in archive.infolist()]
            if len(set(names)) < len(names):
                raise refuse("has two members of one name")
            for info in archive.infolist():
                inner = info.filename.partition("/")[2]
                if info.file_size == 0 and _EXAMPLES.fullmatch(inner):
                    continue
                if not _PLAIN.fullmatch(inner):
                    raise refuse(f"holds '{inner}', which may be a pickle")
                if inner.endswith(".json") and not inner.startswith("extra/"):
                    if info.compress_type != zipfile.ZIP_STORED:  # torch compresses nothing
                        raise refuse(f"has '{inner}' compressed, which may fill the memory")
                    _refuse_values(json.loads(archive.read(info)), refuse)
    except ExportError:
        raise
    except Exception as error:  # zipfile has many for a file that is not whole
        raise ExportError(
            f"{path}: is no pt2 archive ({one_line(error)}). Export it again: thinner stage export"
        ) from error


_PLAIN = re.compile(
    r"data/weights/weight_\d+|data/constants/tensor_\d+|data/(weights|constants)/\w+_config\.json|models/\w+\.json|"
    r"extra/[\w.]+|archive_format|archive_version|byteorder|version|\.data/\w+|\.format_version|\.storage_alignment"
)
_EXAMPLES = re.compile(r"data/sample_inputs/\w+\.pt")
# as SymPy writes it down: Mul(Integer(2), Symbol('s77', positive=True, integer=True))
_SIZE = re.compile(
    r"(?:Symbol\('[su]\d+'(?:, \w+=(?:True|False))*\)|[su]\d+|\d+|Integer|Add|Mul|Pow|Max|Min|Mod|FloorDiv|CleanDiv|"
    r"[-+*/(), ])*"
)


def _refuse_values(value: Any, refuse: Callable[[str], ExportError]) -> None:
    """Of the archive's JSON: tensors that are marked as pickled, and sizes that are more than arithmetic."""
    if isinstance(value, Mapping):
        if value.get("use_pickle"):
            raise refuse("has a tensor that is kept as a pickle")
        if "expr_str" in value and not _SIZE.fullmatch(str(value["expr_str"])):
            raise refuse(f"has a size that is no arithmetic: {str(value['expr_str'])[:60]!r}")
        for part in value.values():
            _refuse_values(part, refuse)
    elif isinstance(value, list):
        for part in value:
            _refuse_values(part, refuse)


def add_preprocessing(
    path: str | Path, preprocessing: views.Preprocessing, channels: int, metadata: Mapping[str, Any]
) -> None:
    """Put resizing and normalisation in front of the ONNX network at ``path``, in place.

    It then takes pictures as they are decoded: uint8 [batch, height, width, ``channels``], of any size, under the name
    `PIXELS`. The operators are those of ``views.preprocess``, antialiasing included, in float32 also where the network
    is int8. Oblong pictures are stretched: cropping is up to whoever decodes them. Raises ExportError for a network
    with operators from before antialiased resizing.
    """
    second = onnx.load(path)
    if (opset := opset_of(second)) < ANTIALIASED:
        raise ExportError(
            f"{path}: has ONNX's operators of version {opset}, and antialiased resizing came with {ANTIALIASED}. Set "
            f"export.opset: {ANTIALIASED} or more, and export it again"
        )
    steps = _Preprocessing(preprocessing).eval()
    # sizes that are neither 1 nor equal, so that none is taken for a constant
    example = torch.zeros((2, 28, 30, channels), dtype=torch.uint8)
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("height", min=2), 2: torch.export.Dim("width", min=2)}
    program = torch.onnx.export(
        steps,
        (example,),
        dynamo=True,
        dynamic_shapes=(free,),
        input_names=[PIXELS],
        output_names=[INPUT],
        opset_version=opset,
        verbose=False,
    )
    if program is None:
        raise ExportError("torch.onnx.export gave no program for the preprocessing")
    first = program.model_proto
    # the two graphs count their values alike
    first = onnx.compose.add_prefix(first, "preprocessing.", rename_inputs=False, rename_outputs=False)
    first.ir_version = second.ir_version
    save_onnx(onnx.compose.merge_models(first, second, io_map=[(INPUT, INPUT)]), path, metadata)


ANTIALIASED = 18  # the version of ONNX's operators whose Resize can do that


class _Preprocessing(nn.Module):
    def __init__(self, preprocessing: views.Preprocessing) -> None:
        super().__init__()
        self.size, self.mean, self.std = preprocessing.image_size, preprocessing.mean, preprocessing.std

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        images = pixels.permute(0, 3, 1, 2).to(torch.float32) / 255.0
        # views.resize leaves out what has the size already; a graph for any size cannot, and need not
        images = nn.functional.interpolate(
            images, size=(self.size, self.size), mode="bilinear", antialias=True, align_corners=False
        )
        return views.normalise(images, self.mean, self.std)


def check_parity(
    network: Callable[[torch.Tensor], torch.Tensor],
    path: str | Path,
    images: Images,
    tolerance: float = 1e-4,
    inputs: np.ndarray | None = None,
    run: Callable[[np.ndarray], np.ndarray] | nn.Module | None = None,
    instead: str = "leave this one out of export.formats",
) -> float:
    """The largest difference between the logits of ``network`` and of the export at ``path`` on ``images``.

    ``inputs`` are what the export is fed in their stead: pictures, where preprocessing is part of it. ``run`` is the
    opened export; without it an ONNX file or a pt2 archive is opened. Images go through in batches of 1 and of all, so
    that a batch size frozen into the graph shows. Raises ExportError with the numbers when the difference exceeds
    ``tolerance``, and with what to do ``instead``.
    """
    inputs = images if inputs is None else inputs
    run = _runner(path) if run is None else run
    worst = 0.0
    with torch.inference_mode():
        for size in (1, len(images)):
            expected = network(torch.from_numpy(images[:size])).float().numpy()
            some = inputs[:size]
            got = run(torch.from_numpy(some)).numpy() if isinstance(run, nn.Module) else run(some)
            if got.shape != expected.shape:
                raise ExportError(f"{path}: logits {got.shape}, but PyTorch's are {expected.shape}")
            # np.maximum keeps NaN, which max() would lose
            worst = float(np.maximum(worst, np.abs(got.astype(np.float64) - expected).max()))
    if not worst <= tolerance:  # written so that NaN fails
        raise ExportError(
            f"{path}: logits differ from PyTorch's by up to {worst:.2e} on {len(images)} images; "
            f"allowed are {tolerance:.0e}. Try another export.opset, or {instead}"
        )
    return worst


def _runner(path: str | Path) -> Callable[[np.ndarray], np.ndarray] | nn.Module:
    if Path(path).suffix == ".pt2":
        return open_pt2(path)
    session = open_session(path)
    return lambda inputs: run_session(session, inputs)


def open_session(path: str | Path, threads: int = 0) -> onnxruntime.InferenceSession:
    """ONNX Runtime on the CPU for ``path``, with exactly ``threads`` threads (0: one per core).

    A graph that repeats a part of itself is refused before the runtime sees it: it may do so for ever, and already
    while it is opened, when constants are folded. No export of ours has such a part.
    """
    _refuse_loops(Path(path))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # its idle threads would spin on, and take the CPU from whoever is timed next
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # it has a dozen of its own, and Python's
        raise damaged(path, error) from error
    inputs, outputs = ([one.name for one in some()] for some in (session.get_inputs, session.get_outputs))
    if len(inputs) != 1 or OUTPUT not in outputs:
        raise ExportError(
            f"{path}: takes {one_line(inputs)} and gives {one_line(outputs)}; a classifier of ours takes one thing and "
            f"gives '{OUTPUT}'. Export it again: thinner stage export"
        )
    return session


# The kind of a node, as protobuf writes it: the field's number (4) and that a text follows, its length, the text.
# Numbers may be written longer than they have to be.
_LOOPS = re.compile(rb"(?:\x22|\xa2\x80*\x00)(?:\x04|\x84\x80*\x00)(?:Loop|Scan)|(?:\x0b|\x8b\x80*\x00)SequenceMap")


def _refuse_loops(path: Path) -> None:
    """Looks at the bytes, since to parse them takes as much memory again, and what opens is measured."""
    with contextlib.suppress(OSError, ValueError), path.open("rb") as file:  # missing, empty: the runtime says it
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            repeats = _LOOPS.search(content) is not None
        if repeats:
            raise ExportError(
                f"{path}: repeats a part of itself, maybe for ever, as no export of ours does. Export it again: "
                "thinner stage export"
            )


def run_session(session: onnxruntime.InferenceSession, inputs: np.ndarray) -> Logits:
    logits: Logits = session.run([OUTPUT], {session.get_inputs()[0].name: inputs})[0]
    return logits


def read_metadata(path: str | Path) -> dict[str, Any]:
    """What was stored beside the graph."""
    if Path(path).suffix == ".pt2":
        refuse_code(path)
    try:
        if Path(path).suffix == ".pt2":
            files = {METADATA: ""}
            torch.export.load(path, extra_files=files)
            return dict(json.loads(files[METADATA]))
        model = onnx.load(path, load_external_data=False)
        return {item.key: json.loads(item.value) for item in model.metadata_props}
    except Exception as error:  # as above
        raise damaged(path, error) from error


def save_onnx(model: onnx.ModelProto, path: str | Path, metadata: Mapping[str, Any]) -> None:
    """Write ``model`` with ``metadata`` (a property per key, as JSON) and nothing of the machine that made it; checked
    by ``onnx.checker``."""
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
