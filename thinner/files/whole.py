"""Files that are whole or not there, and that say when they are no longer what was written.

Written beside their place, forced to the disk and then renamed, so neither a kill nor a power cut leaves half of one.
Each carries a SHA-256: a bit that a disk, a cable or a memory flips changes neither length nor time of a file, and
would be computed with.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from thinner.errors import DamagedError, one_line

_KEY = "sha256"


def write(path: Path, writer: Callable[[Path], Any]) -> None:
    """Have ``writer`` write a file beside ``path``, and put it there once the disk has it."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        writer(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):  # why it failed is what has to be told
            partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """``text`` in UTF-8."""
    write(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """``value`` and its checksum. To be read by ``read_json``."""
    text = json.dumps({_KEY: _of_json(value), "value": value})
    write_text(path, text)


def read_json(path: Path) -> Any:
    """What ``write_json`` wrote. Raises DamagedError; FileNotFoundError where there is no such file."""
    try:
        found = json.loads(path.read_bytes())
        value = found["value"]
        right = found[_KEY] == _of_json(value)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError(f"{path}: damaged ({one_line(error)})") from error
    if not right:
        raise DamagedError(f"{path}: damaged (its checksum differs)")
    return value


def _of_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def file_sha256(path: str | Path) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- a description that answers for itself and for the files beside it ---

_SEAL, _MARK = "integrity", "sealed"  # one flipped bit cannot take away both


def sealed(spec: Mapping[str, Any], files: Mapping[str, Path]) -> dict[str, Any]:
    """``spec`` (a JSON object) with SHA-256 of itself and of ``files``, by their names."""
    bare = _bare(spec)
    seal: dict[str, Any] = {"files": {name: file_sha256(path) for name, path in files.items()}}
    return {**bare, _MARK: True, _SEAL: {**seal, "spec": _of_json([bare, seal["files"]])}}


def _bare(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in spec.items() if name not in (_SEAL, _MARK)}


def opened(spec: Mapping[str, Any], source: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """(``spec`` without its seal, SHA-256 of the files beside it); none are known where it was never sealed.

    Raises DamagedError where spec and seal differ.
    """
    bare, seal = _bare(spec), spec.get(_SEAL)
    if seal is None and _MARK not in spec:
        return bare, {}
    files = seal.get("files") if isinstance(seal, dict) else None
    if (
        not isinstance(seal, dict)
        or not isinstance(files, dict)
        or not all(isinstance(value, str) for value in files.values())
        or spec.get(_MARK) is not True
        or seal.get("spec") != _of_json([bare, files])
    ):
        raise DamagedError(
            f"{source}: is not what was written (its checksum differs): a flipped bit, or changed by hand. "
            "Make it again: dvc checkout --force, or the stage that writes it"
        )
    return bare, dict(files)
