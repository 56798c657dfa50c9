"""ONNX Runtime, for ONNX in float and in 8 bits. How files are written and opened: thinner/networks/export.py."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from thinner.runtimes.protocol import Format, Runtime, Source

if TYPE_CHECKING:
    from thinner.runtimes.protocol import Opened


def _write(source: Source, path: Path) -> None:
    _copy(source.onnx, path)


def _write_int8(source: Source, path: Path) -> None:
    _copy(source.onnx_int8, path)


def _copy(made: Path, path: Path) -> None:
    for file in made.parent.glob(f"{made.name}*"):  # weights beyond 2 GB lie beside it
        shutil.copyfile(file, path.with_name(file.name))


def _load() -> None:
    from thinner.networks import export  # noqa: F401


def _open(path: Path, threads: int) -> Opened:
    from thinner.networks import export

    session = export.open_session(path, threads)
    return lambda images: export.run_session(session, images)


RUNTIME = Runtime(
    name="onnxruntime",
    words="ONNX Runtime",
    package="onnxruntime",
    module="onnxruntime",
    files=("model.onnx",),
    formats={
        "onnx": Format("ONNX", _write, pixels=True),
        "onnx_int8": Format("ONNX in 8 bits", _write_int8, int8=True, pixels=True),
    },
    load=_load,
    open=_open,
)
