"""ExecuTorch with its XNNPACK kernels, for phones and boards that have no Python: model.pte. An extra of this project.

A file is planned for batches of up to `AT_ONCE` images, memory included; larger ones go through in parts. What XNNPACK
does not take runs in ExecuTorch's own kernels.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import os
import re
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from thinner.runtimes.protocol import Format, Runtime, Source

if TYPE_CHECKING:
    import numpy as np

    from thinner.runtimes.protocol import Opened

AT_ONCE = 64  # images
FORWARD, METADATA = "forward", "metadata"  # what a file can be asked for


def _write(source: Source, path: Path) -> None:
    import torch

    from thinner.networks import export

    with _quiet(), export.writing("an ExecuTorch program", source.network, "leave executorch out of export.formats"):
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        # As many as there can be: of an example of 2, lowering with torch 2.14 made "at most 15", without a word
        example = torch.zeros((AT_ONCE, *source.input_shape))
        batch = torch.export.Dim("batch", max=AT_ONCE)
        program = torch.export.export(source.network, (example,), dynamic_shapes=({0: batch},))
        lowered = to_edge_transform_and_lower(
            program, partitioner=[XnnpackPartitioner()], constant_methods={METADATA: json.dumps(dict(source.metadata))}
        )
        path.write_bytes(lowered.to_executorch().buffer)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the library says of itself when it is imported (that torch has changed), and of the processor."""
    log = logging.getLogger("torch.utils._pytree")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)


def _load() -> Any:
    """The library, without the exporter: executorch.runtime imports all of that."""
    import torch  # noqa: F401 - whose libraries it needs

    return importlib.import_module("executorch.extension.pybindings._C")


class _Program:
    """A file, opened for ``threads``. ExecuTorch has one pool of threads for the process, and what is opened keeps to
    the pool that it found: another number means to open again."""

    opened: ClassVar[weakref.WeakSet[_Program]] = weakref.WeakSet()
    file: Any = None
    method: Any = None  # None: closed

    def __init__(self, path: Path, threads: int) -> None:
        self.path, self.threads = path, threads
        self.load()

    def load(self) -> None:
        library = _load()
        with _quiet():
            if library._threadpool_get_thread_count() != self.threads:
                for program in _Program.opened:
                    program.method = program.file = None  # they must not outlive their pool
                library._unsafe_reset_threadpool(self.threads)
            # looks whether offsets lead out of the file; without it garbage ends the process
            thorough = library.Verification.InternalConsistency
            self.file = library._load_program(str(self.path), program_verification=thorough)
            self.method = self.file.load_method(FORWARD)
        _Program.opened.add(self)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        import numpy as np
        import torch

        if self.method is None:
            self.load()
        parts = [images[start : start + AT_ONCE] for start in range(0, len(images), AT_ONCE)]
        logits = [self.method([torch.from_numpy(part)])[0].numpy() for part in parts]
        return logits[0] if len(logits) == 1 else np.concatenate(logits)


def _open(path: Path, threads: int) -> Opened:
    """Raises ExportError. A file of ExecuTorch's that was made to do harm may end the process: docs/security.md."""
    from thinner.networks import export

    _load()  # what is wrong with the library is not the file's damage
    _refuse_garbage(path)
    try:
        program = _Program(path, threads or os.cpu_count() or 1)
        meta = program.file.method_meta(FORWARD)
    except Exception as error:  # it has RuntimeError for all
        raise export.damaged(path, error) from error
    if meta.num_inputs() != 1 or meta.num_outputs() != 1:
        raise export.ExportError(
            f"{path}: has {meta.num_inputs()} inputs and {meta.num_outputs()} outputs; a classifier of ours has one of "
            "each. Export it again: thinner stage export"
        )
    return program


def _refuse_garbage(path: Path) -> None:
    """ExecuTorch would write what stands in place of its own mark to the terminal, as UTF-8, or end the process."""
    from thinner.networks import export

    with path.open("rb") as file:
        head = file.read(8)
    if not re.fullmatch(rb"ET\d\d", head[4:]):
        raise export.ExportError(f"{path}: is no program of ExecuTorch's. Export it again: thinner stage export")


RUNTIME = Runtime(
    name="executorch",
    words="ExecuTorch",
    package="executorch",
    module="executorch",
    files=("model.pte",),
    formats={"executorch": Format("an ExecuTorch program", _write)},
    load=_load,
    open=_open,
    optional=True,
)
