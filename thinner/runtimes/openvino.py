"""OpenVINO on the CPU, for its own format: model.xml, the graph, and model.bin, the weights. An extra of this project.

The file is made of the ONNX export, in float32; that of 8 bits of the same QDQ graph that ONNX Runtime has. Inference
is in float32 too: on CPUs that have bfloat16 OpenVINO's default is that, and answers would depend on the machine.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.parsers import expat

from thinner.runtimes.protocol import Format, Runtime, Source

if TYPE_CHECKING:
    from thinner.runtimes.protocol import Opened

NAMESPACE = "thinner"  # of what is kept in the file: rt_info
_REPEATS = ("Loop", "TensorIterator")


def _load() -> Any:
    """The library. Its package openvino_telemetry, which tells its maker of every import and asks nobody, is kept out:
    without it OpenVINO has a stub in its place."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # what import takes for "not there"
    import openvino

    return openvino


def _write(source: Source, path: Path) -> None:
    _convert(source.onnx, path, source)


def _write_int8(source: Source, path: Path) -> None:
    _convert(source.onnx_int8, path, source)


def _convert(onnx: Path, path: Path, source: Source) -> None:
    openvino = _load()
    from thinner.networks import export

    with export.writing("OpenVINO's files", source.network, "leave openvino and openvino_int8 out of export.formats"):
        model = openvino.Core().read_model(onnx)
    for number, node in enumerate(model.get_ordered_ops()):
        # what ONNX gave no name has a number that counts through the process's life
        if re.fullmatch(rf"{node.get_type_name()}_\d+", node.get_friendly_name()):
            node.set_friendly_name(f"{node.get_type_name()}_{number}")
    for key, value in source.metadata.items():
        model.set_rt_info(json.dumps(value), [NAMESPACE, key])
    openvino.save_model(model, path, compress_to_fp16=False)  # the default halves the weights' digits


def _open(path: Path, threads: int) -> Opened:
    """On the CPU, one inference at a time. Raises ExportError; also where a part of the graph is repeated, maybe for
    ever: no export of ours has such a part."""
    from thinner.networks import export

    library = _load()  # what is wrong with the library is not the file's damage
    _refuse_loops(path)
    settings: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
        # whoever is timed next would find its processors taken
        "ENABLE_CPU_PINNING": False,
    }
    try:
        compiled = library.Core().compile_model(path, "CPU", settings)
    except Exception as error:  # it has RuntimeError for all
        raise export.damaged(path, error) from error
    if len(compiled.inputs) != 1 or len(compiled.outputs) != 1:
        raise export.ExportError(
            f"{path}: has {len(compiled.inputs)} inputs and {len(compiled.outputs)} outputs; a classifier of ours has "
            "one of each. Export it again: thinner stage export"
        )
    request = compiled.create_infer_request()
    return lambda images: request.infer([images], share_inputs=True)[0]


def _refuse_loops(path: Path) -> None:
    from thinner.networks import export

    kinds: set[str] = set()

    def element(name: str, attributes: dict[str, str]) -> None:
        if name == "layer":
            kinds.add(attributes.get("type", ""))

    def declaration(*of_entities: object) -> None:
        raise ValueError("it declares a document type")  # entities may multiply; no export of ours has any

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.StartDoctypeDeclHandler = element, declaration
    try:
        with path.open("rb") as file:
            parser.ParseFile(file)
    except (expat.ExpatError, ValueError) as error:
        raise export.damaged(path, error) from error
    if found := kinds & set(_REPEATS):
        raise export.ExportError(
            f"{path}: repeats a part of itself ({found.pop()}), maybe for ever, as no export of ours does. Export it "
            "again: thinner stage export"
        )


RUNTIME = Runtime(
    name="openvino",
    words="OpenVINO",
    package="openvino",
    module="openvino",
    files=("model.xml", "model.bin"),
    formats={
        "openvino": Format("an OpenVINO model", _write),
        "openvino_int8": Format("an OpenVINO model in 8 bits", _write_int8, int8=True),
    },
    load=_load,
    open=_open,
    optional=True,
)
