"""Who teaches after self-training: what decision.json says. Nothing heavy is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from thinner.errors import DamagedError
from thinner.files import json_files
from thinner.files.json_files import is_number, is_text, lacking

PLAIN, LEARNER, CONTROL = "finetune", "self_train", "self_train_control"  # as candidates are called
NAMES = (PLAIN, CONTROL, LEARNER)
FOLDERS = {LEARNER: "self_train/finetune", CONTROL: "self_train/finetune/control"}  # below data
FILE = "decision.json"  # in the stage's folders in data, where it decides, and in reports
_AGAIN = "Make it again: dvc repro self_train@finetune"


def read(folder: Path) -> dict[str, Any] | None:
    """What the stage left in ``folder``, which is its folder in data or in reports; None where it never ran.

    Raises DamagedError."""
    path = folder / FILE
    if not path.is_file():
        return None
    found = json_files.read_object(path, _AGAIN)
    compared = {other: lambda row: not lacking(row, _COMPARED) for other in (PLAIN, CONTROL)}
    if wrong := (
        lacking(found, _KINDS)
        or lacking(found["accuracy"], dict.fromkeys((PLAIN, CONTROL, LEARNER), is_number))
        or lacking(found["against"], compared)
    ):
        raise DamagedError(f"{path}: {wrong}. {_AGAIN}")
    return found


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict)


_KINDS = {
    "chosen": lambda value: value in (PLAIN, LEARNER),
    "metric": is_text,
    "images": is_number,
    "accuracy": _is_mapping,
    "against": _is_mapping,
}
_COMPARED = dict.fromkeys(("effect", "low", "high", "p_value"), is_number)
