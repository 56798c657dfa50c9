"""All runtimes, and what everything else asks of them. Nothing heavy is imported."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path

from thinner.errors import UserError
from thinner.runtimes import executorch, onnxruntime, openvino, pt2
from thinner.runtimes.protocol import Format, Runtime

PYTORCH = "pytorch"  # what networks run in before they are exported
RUNTIMES: dict[str, Runtime] = {
    runtime.name: runtime
    for runtime in (
        onnxruntime.RUNTIME,
        pt2.RUNTIME,
        openvino.RUNTIME,
        executorch.RUNTIME,
    )
}
FORMATS: dict[str, Format] = {name: format_ for one in RUNTIMES.values() for name, format_ in one.formats.items()}
WORDS: dict[str, str] = {name: format_.words for name, format_ in FORMATS.items()}
OF: dict[str, Runtime] = {name: one for one in RUNTIMES.values() for name in one.formats}  # format -> its runtime


class MissingError(UserError):
    """A runtime that is not installed."""


def in_folder(folder: Path) -> Runtime | None:
    """The runtime whose file lies in a candidate's folder; None: no export, or nothing."""
    return next((one for one in RUNTIMES.values() if (folder / one.files[0]).is_file()), None)


def exported(runtime: str, network: str) -> str:
    """What tables call ``network`` in ``runtime``: prune_onnx of prune in onnxruntime; in pytorch, prune itself."""
    return network if runtime == PYTORCH else f"{network}_{next(iter(RUNTIMES[runtime].formats))}"


def missing(formats: Iterable[str]) -> str | None:
    """How to install what these formats want and is not there, in one line; None where nothing is missing."""
    wanted = {OF[name].name: OF[name] for name in formats}.values()
    absent = [one for one in wanted if not _is_installed(one)]
    if not absent:
        return None
    extras = ",".join(one.package for one in absent)
    are = f"{' and '.join(one.words for one in absent)} {'is' if len(absent) == 1 else 'are'}"
    return f"{are} not installed. Install what is missing: pip install -e '.[{extras}]'"


def require(runtime: Runtime) -> None:
    """Raises MissingError, with the command that installs it."""
    if line := missing([next(iter(runtime.formats))]):
        raise MissingError(line)


def _is_installed(runtime: Runtime) -> bool:
    return not runtime.optional or importlib.util.find_spec(runtime.module) is not None
