"""Networks of the user's own: ``python:nets/mine.py:make``, a function that takes classes and channels.

    def make(classes: int, channels: int) -> nn.Module: ...

A checkpoint names its network, and whoever wrote it may name any file. So code is imported only where the
``params.yaml`` of the current folder names it, and only as it was when the checkpoint was made.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
import traceback
from pathlib import Path
from types import ModuleType

import yaml
from torch import nn

from thinner.errors import NetworkError
from thinner.networks.spec import NetworkSpec

FAMILY, FOLDER = "python", "nets"  # DVC watches this folder
_NAME = re.compile(r"python:(nets/(?:\w[\w-]*/)*\w[\w-]*\.py):([A-Za-z_]\w*)")
_MODULES: dict[tuple[str, str], ModuleType] = {}  # (file, its SHA-256) -> imported once, so that classes stay the same


def is_own(name: str) -> bool:
    return name.startswith(f"{FAMILY}:")


def check_name(name: str) -> tuple[Path, str]:
    """(file, function) of ``python:nets/FILE.py:FUNCTION``. Raises NetworkError; imports nothing."""
    found = _NAME.fullmatch(name)
    if found is None:
        raise NetworkError(f"unknown '{name}'. A network of your own is python:{FOLDER}/FILE.py:FUNCTION")
    path = Path(found[1])
    if not path.is_file():
        raise NetworkError(f"'{name}': no file '{path}' here. Write it, or run where it is (docs/weights.md)")
    if not path.resolve().is_relative_to(Path(FOLDER).resolve()):
        raise NetworkError(f"'{name}': '{path}' is a link to a place that DVC does not watch. Copy it to {FOLDER}")
    return path, found[2]


def code_sha256(name: str) -> str:
    """SHA-256 of the file that ``name`` is in."""
    return hashlib.sha256(check_name(name)[0].read_bytes()).hexdigest()


def build(network: NetworkSpec) -> nn.Module:
    """The network that the function makes. Raises NetworkError, before any import where it must not be imported."""
    name = network.name
    if name not in _named():
        raise NetworkError(
            f"'{name}' is code, and params.yaml of this folder does not name it, so it is not run. If you trust it, "
            "set finetune.network or student.network to it; else take an export (ONNX) of this checkpoint"
        )
    path, function = check_name(name)
    digest = code_sha256(name)
    if network.code_sha256 not in (None, digest):
        raise NetworkError(
            f"'{name}': {path} is another than this checkpoint was made with (SHA-256 {digest[:12]}, then "
            f"{str(network.code_sha256)[:12]}). Bring it back: git checkout COMMIT {path}, or make it again: dvc repro"
        )
    make = getattr(_module(path, digest), function, None)
    if not callable(make):
        raise NetworkError(f"'{name}': {path} has no function '{function}'. Write def {function}(classes, channels)")
    try:
        model = make(classes=network.classes, channels=network.channels)
    except Exception as error:  # whatever their code raises is theirs to mend
        raise NetworkError(f"'{name}': {function}(classes, channels) failed: {_where(error, path)}") from error
    if not isinstance(model, nn.Module):
        raise NetworkError(f"'{name}': {function} returned a {type(model).__name__}. Return an nn.Module")
    return model


def _named() -> set[str]:
    """The networks that params.yaml of the current folder names; none where there is no such file."""
    try:
        raw = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return set()
    sections = [raw.get(name) for name in ("finetune", "student")] if isinstance(raw, dict) else []
    return {str(section.get("network")) for section in sections if isinstance(section, dict)}


def _module(path: Path, digest: str) -> ModuleType:
    key = (str(path.resolve()), digest)
    if key not in _MODULES:
        name = f"thinner_own_{path.stem.replace('-', '_')}_{digest[:12]}"
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:  # pragma: no cover - the name ends in .py
            raise NetworkError(f"'{path}' cannot be imported")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses and typing look their module up there
        try:
            spec.loader.exec_module(module)
        except Exception as error:  # as above
            del sys.modules[name]
            raise NetworkError(f"'{path}' cannot be imported: {_where(error, path)}") from error
        _MODULES[key] = module
    return _MODULES[key]


def _where(error: Exception, path: Path) -> str:
    """``TypeError: what (line 12)``, the last line of ``path`` that was run."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).name == path.name]
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
    return f"{type(error).__name__}: {text}" + (f" (line {lines[-1]})" if lines else "")
