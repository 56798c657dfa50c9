"""JSON files that our commands write and read back, or the one line that says which file is damaged and how to mend it.

Whoever reads one says by ``lacking`` what it holds, so that a file that a person or a disk changed is refused where it
is read, and not by a traceback where it is used. Nothing heavy is imported.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from thinner.errors import DamagedError, one_line

MOST = 1e300  # no number of ours is as large; what is would not fit a float, or be infinite when multiplied


def read(path: Path, mend: str) -> Any:
    """The value in ``path``. Raises DamagedError, which ends in ``mend``; FileNotFoundError."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(f"{path}: not JSON ({one_line(error)}). {mend}") from error


def read_object(path: Path, mend: str) -> dict[str, Any]:
    """The same, where it has to be an object."""
    found = read(path, mend)
    if not isinstance(found, dict):
        raise DamagedError(f"{path}: holds no JSON object. {mend}")
    return found


def is_number(value: Any) -> bool:
    """Whether it is a number that can be computed with: finite, and not as large as to overflow."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MOST


def is_text(value: Any) -> bool:
    """Whether it is a name or a sentence: something is in it, and all of it can be printed."""
    return isinstance(value, str) and value.isprintable() and bool(value)


def are_texts(value: Any) -> bool:
    """Whether it is a list of texts; there may be none, and each may be empty."""
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def are_names(value: Any) -> bool:
    """The same, with at least one in it."""
    return are_texts(value) and bool(value)


def lacking(value: Any, kinds: Mapping[str, Any]) -> str | None:
    """What ``value`` lacks of an object with keys and values as in ``kinds`` (key -> test); None where it is right."""
    if not isinstance(value, dict):
        return "is no object"
    for key, test in kinds.items():
        if key not in value:
            return f"lacks {key}"
        if not test(value[key]):
            return f"has {key}: {one_line(repr(value[key]), 60)}"
    return None
