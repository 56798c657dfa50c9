"""What a runtime is to all the rest: a file beside this one that ends in a `Runtime`, and a row of catalogue.py.

Nothing heavy is imported, here or at the head of such a file: tables and messages want the names alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float
    from torch import nn

    # float32 images [batch, channels, height, width] to float32 logits [batch, classes]; a torch module is called with
    # tensors, on the device and with the threads of whoever opened it
    Opened = Callable[[np.ndarray], np.ndarray] | nn.Module


@dataclass(frozen=True)
class Source:
    """A network that is to be exported, and what a format may need for that."""

    network: nn.Module  # in eval mode, on the CPU
    images: Float[np.ndarray, "images channels height width"]  # preprocessed, of the validation split: for 8 bits
    metadata: Mapping[str, Any]  # classes and preprocessing, to be kept in the file itself; JSON
    opset: int  # of ONNX
    scratch: Path  # a folder for steps on the way
    quantise: Callable[[Path, Path, Iterable[np.ndarray]], None]  # (float ONNX, 8-bit ONNX, batches to calibrate on)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Of one image: channels, height, width."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    @cached_property
    def onnx(self) -> Path:
        """The network as ONNX, which several runtimes start from. Raises ExportError where it computes another thing
        than PyTorch does."""
        from thinner.networks import export

        path = self.scratch / "model.onnx"
        export.export_onnx(self.network, path, self.input_shape, self.metadata, self.opset)
        export.check_parity(self.network, path, self.images[: export.COMPARED])
        return path

    @cached_property
    def onnx_int8(self) -> Path:
        """The same in 8 bits (QDQ), calibrated on ``images``."""
        import numpy as np

        from thinner.networks import export

        path = self.scratch / "int8" / "model.onnx"
        path.parent.mkdir()
        parts = -(-len(self.images) // export.COMPARED)  # bounds memory; it changes no range
        self.quantise(self.onnx, path, np.array_split(self.images, parts))
        return path


@dataclass(frozen=True)
class Format:
    """One way to write a network for a runtime. Its key in `Runtime.formats` is what params.yaml calls it, and ends the
    names of candidates: prune_onnx_int8."""

    words: str  # what a network becomes, for people: "ONNX in 8 bits"
    write: Callable[[Source, Path], None]  # to the path of the runtime's first file
    int8: bool = False  # rounds, so its logits are not held to those of PyTorch
    pixels: bool = False  # an ONNX graph as it is, which export.preprocessing_in_graph can begin with preprocessing


@dataclass(frozen=True)
class Runtime:
    """What runs an exported network."""

    name: str  # in claims and metrics.json: "prune is faster than distill at batch 1 in onnxruntime"
    words: str  # for people
    package: str  # whose version is recorded; of an optional one also the name of the extra that installs it
    module: str  # what there is to import once it is installed
    files: tuple[str, ...]  # in a candidate's folder; by the first of them a runtime knows its own
    formats: Mapping[str, Format]  # the first is what a network's name means: prune in onnxruntime is prune_onnx
    load: Callable[[], object]  # imports the library and computes nothing
    open: Callable[[Path, int], Opened]  # the first file, threads (0: one per core). Raises ExportError
    optional: bool = False
