"""Tensors in files that are whole or not there, and that say when they are no longer what was written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from thinner.errors import DamagedError, one_line
from thinner.files import whole

_KEY = "sha256"


def write(path: Path, tensors: Mapping[str, Tensor], about: Any = None) -> None:
    """``tensors`` (of any device) and ``about`` (JSON) as safetensors with a checksum over all of it."""
    held = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps(about)  # in its own order: of a learning curve that is the order of the columns
    metadata = {"about": text, _KEY: _of_tensors(held, text)}
    whole.write(path, lambda partial: save_file(held, partial, metadata=metadata))


def read(path: Path) -> tuple[dict[str, Tensor], Any]:
    """(tensors on the CPU, ``about``) of ``write``. Raises DamagedError; FileNotFoundError."""
    if not path.exists():
        raise FileNotFoundError(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
        about = json.loads(metadata["about"])
        right = metadata.get(_KEY) == _of_tensors(tensors, metadata["about"])
    except Exception as error:  # safetensors, torch and json have many for a file that is not whole
        raise DamagedError(f"{path}: damaged ({one_line(error)})") from error
    if not right:
        raise DamagedError(f"{path}: damaged (its checksum differs)")
    return tensors, about


def _of_tensors(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
