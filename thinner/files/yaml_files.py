"""YAML files that a person writes, read as DVC reads them, or refused in one line.

DVC reads params.yaml by YAML 1.2. Another reader would see other values in the same text: in YAML 1.1 `010` is eight,
`1:30` is ninety, `yes` is true, and of a key that stands there twice the last one counts. So what is checked here and
what DVC watches could differ. All of our own files are read by the same library in the same way.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from thinner.errors import UserError

_LARGEST = 1_000_000  # bytes: a list of ten thousand claims fits
_DEEPEST = 30
_MOST_ALIASES = 100
_MOST_NODES = 100_000  # with every alias written out
# What no terminal, table or database should be sent: control characters but tab and line feed, line separators, half
# characters, and those that turn the direction of writing (https://trojansource.codes)
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class YamlFileError(UserError):
    """The text is no YAML that can be used; ``str()`` is one line without the file's name."""


def read(path: str | Path) -> Any:
    """The values in a file. Raises YamlFileError, FileNotFoundError and other OSErrors."""
    path = Path(path)
    if path.stat().st_size > _LARGEST:
        raise YamlFileError(f"larger than {_LARGEST:,} bytes. Is it the right file?")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise YamlFileError(f"not UTF-8 (byte {error.start}). Save it as UTF-8") from None
    return parse(text)


def parse(text: str) -> Any:
    """The values in ``text``: dictionaries, lists, strings, numbers, booleans, dates and None."""
    try:
        _look_through(text)
        return _parser().load(text)
    except YamlFileError:
        raise
    except DuplicateKeyError as error:
        key = re.search(r'found duplicate key "(.*?)" with value', str(error))
        raise YamlFileError(
            f"{_line(error)}the key {key[1] if key else ''} stands there twice. Take one of them out"
        ) from None
    except YAMLError as error:
        raise YamlFileError(f"{_line(error)}not YAML: {_problem(error)}") from None
    except (ValueError, OverflowError, TypeError, RecursionError, AssertionError, AttributeError, LookupError) as error:
        # the library's own way of saying that a number has too many digits, a date has a 13th month, a key is a list
        raise YamlFileError(f"not YAML that can be read: {' '.join(str(error).split())[:200]}") from None


def _parser() -> YAML:
    return YAML(typ="safe")  # as DVC does


def _look_through(text: str) -> None:
    """Refuse, before a value is made of it, what would take a minute, all memory, or Python's stack."""
    sizes: dict[str, int] = {}  # nodes below an anchor, aliases written out
    open_: list[tuple[str | None, int]] = []
    total = aliases = 0
    for event in _parser().parse(text):
        line = event.start_mark.line + 1
        if isinstance(event, MappingEndEvent | SequenceEndEvent):
            anchor, before = open_.pop()
            if anchor is not None:
                sizes[anchor] = total - before
            continue
        if isinstance(event, AliasEvent):
            aliases += 1
            if event.anchor not in sizes:
                raise YamlFileError(f"line {line}: *{event.anchor} stands for itself, or for nothing. Write it out")
            total += sizes[event.anchor]
        elif isinstance(event, ScalarEvent | MappingStartEvent | SequenceStartEvent):
            total += 1
            if event.tag is not None and str(event.tag) != "!":
                raise YamlFileError(f"line {line}: the tag {str(event.tag)[:60]!r} is not known here. Take it out")
            if isinstance(event, ScalarEvent):
                if event.anchor is not None:
                    sizes[event.anchor] = 1
                if found := _UNPRINTABLE.search(event.value):
                    raise YamlFileError(f"line {line}: the character {found[0]!a} is in it. Take it out")
        if isinstance(event, MappingStartEvent | SequenceStartEvent):
            open_.append((event.anchor, total - 1))
            if len(open_) > _DEEPEST:
                raise YamlFileError(f"line {line}: nested more than {_DEEPEST} deep. Nothing here needs that")
        if total > _MOST_NODES or aliases > _MOST_ALIASES:
            raise YamlFileError(f"line {line}: too many values, or too many aliases. Nothing here needs that")


def _line(error: YAMLError) -> str:
    mark = error.problem_mark if isinstance(error, MarkedYAMLError) else None
    return "" if mark is None else f"line {mark.line + 1}: "


def _problem(error: YAMLError) -> str:
    text = error.problem if isinstance(error, MarkedYAMLError) and error.problem else str(error)
    return " ".join(str(text).split())[:200]
