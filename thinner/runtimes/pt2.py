"""torch.export's programs, which PyTorch runs without the classes that made the network. See networks/export.py."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from thinner.runtimes.protocol import Format, Runtime, Source

if TYPE_CHECKING:
    from thinner.runtimes.protocol import Opened


def _write(source: Source, path: Path) -> None:
    from thinner.networks import export

    export.export_pt2(source.network, path, source.input_shape, source.metadata)


def _load() -> None:
    from thinner.networks import export  # noqa: F401


def _open(path: Path, threads: int) -> Opened:
    from thinner.networks import export

    return export.open_pt2(path)  # threads are the process's: profiling.pinned_threads


RUNTIME = Runtime(
    name="pytorch",
    words="PyTorch",
    package="torch",
    module="torch",
    files=("model.pt2",),
    formats={"pt2": Format("a torch.export program", _write)},
    load=_load,
    open=_open,
)
