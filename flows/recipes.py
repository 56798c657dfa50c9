"""Recipes: what differs from the default job for other data, as files that are tested. `recipes/NAME.yaml` has

    title:  one line
    note:   what it was measured on, and what came out
    set:    values by dotted key, as in a study

A recipe is written into params.yaml, so that DVC, Git and the person see one place for each number. Comments stay.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import YAMLError

from thinner.config import ParamsError, load_params
from thinner.errors import UserError, did_you_mean, one_line
from thinner.files import yaml_files
from thinner.params import Section

FOLDER = "recipes"
_Model = TypeVar("_Model", bound=Section)


class Recipe(Section):
    title: str
    note: str
    set: dict[str, Any]


def names(root: Path) -> list[str]:
    return sorted(path.stem for path in (root / FOLDER).glob("*.yaml"))


def load(root: Path, name: str) -> Recipe:
    """Raises UserError, with the choices, where there is no such recipe."""
    path = root / FOLDER / f"{name}.yaml"
    if name not in names(root):
        hint = did_you_mean(name, names(root), always=f"Choose one of: {', '.join(names(root))}")
        raise UserError(f"recipe: unknown '{name}'. {hint}")
    return read_own(path, Recipe)


def read_own(path: Path, model: type[_Model]) -> _Model:
    """A file of ours beside params.yaml, by its model. Raises UserError with every mistake, and FileNotFoundError."""
    try:
        return model.model_validate(yaml_files.read(path))
    except yaml_files.YamlFileError as error:
        raise UserError(f"{path}: {error}") from None
    except ValidationError as error:
        lines = []
        for item in error.errors():
            where = ".".join(str(part) for part in item["loc"])
            text = str(item.get("ctx", {}).get("error", "")) or f"{item['input']!r}: {item['msg'].lower()}"
            lines.append(f"  {where}: {text}" if where else f"  {text}")
        raise UserError("\n".join([f"{path}: {len(lines)} mistake(s)", *lines])) from None


def apply(root: Path, name: str, *, source: str | None = None) -> list[str]:
    """Write the recipe's values into params.yaml and say what changed, `key: before -> after`.

    ``source``: data.source instead of the recipe's, with a data.root that holds it. Raises UserError.
    """
    recipe = load(root, name)
    values = recipe.set | ({} if source is None else _placed(source, recipe.set.get("data.root", "")))
    return write(root, values, f"{FOLDER}/{name}.yaml")


def read_pairs(pairs: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUE`` by dotted key; values are YAML, as in params.yaml. Raises UserError."""
    values: dict[str, Any] = {}
    for pair in pairs:
        key, sign, text = pair.partition("=")
        if not sign or not key.strip():
            raise UserError(f"'{one_line(pair, 60)}': no KEY=VALUE. For example: thinner set distill.temperature=2")
        try:
            values[key.strip()] = _plain(_parser().load(text))
        except YAMLError as error:
            raise UserError(f"{key}: '{one_line(text, 60)}' is no YAML ({one_line(error, 120)})") from None
    return values


def write(root: Path, values: Mapping[str, Any], whose: str, why: Mapping[str, str] | None = None) -> list[str]:
    """Put ``values`` (by dotted key) into params.yaml and say what changed. ``why``: what is written beside a key, by
    key, and, for the items of a list, by ``key.number``. ``whose``: where the values are from, for a message.

    The file is checked before it is written: raises UserError, and leaves it as it was, where anything is wrong.
    """
    path = root / "params.yaml"
    try:
        yaml_files.read(path)
    except yaml_files.YamlFileError as error:
        raise ParamsError(Path(path.name), [str(error)]) from None
    parser = _parser()
    params = parser.load(path.read_text(encoding="utf-8"))
    changed = []
    for key, value in values.items():
        place, last = _find(params, key, whose)
        if not isinstance(place, list | dict):
            raise UserError(f"{whose}: '{key}' is no key of params.yaml: {key.rpartition('.')[0]} is {flat(place)}")
        if not isinstance(place, dict):
            raise UserError(f"{whose}: '{key}' lies in a list. Give the whole list: {key.rpartition('.')[0]}=[...]")
        before = place.get(last)
        # 1 is one image and 1.0 are all; a key that is not there is no null
        if last not in place or before != value or _kind(before) != _kind(value):
            changed.append(f"{key}: {flat(before)} -> {flat(value)}")
            place[last] = _styled(value)
            made = place[last]
            if isinstance(before, list) and before and isinstance(made, CommentedSeq) and not made.fa.flow_style():
                _put_comment(made, len(made) - 1, "", _comment(before, len(before) - 1).partition("\n")[2])
    for key, text in (why or {}).items():
        place, last = _find(params, key, whose)
        _put_comment(place, int(last) if isinstance(place, list) else last, f"# {text}")
    written = io.StringIO()
    parser.dump(params, written)
    partial = path.with_name(".partial-params.yaml")
    partial.write_text(written.getvalue(), encoding="utf-8")
    try:
        load_params(partial)
        os.replace(partial, path)
    except ParamsError as error:
        raise ParamsError(Path(path.name), error.lines) from None
    finally:
        partial.unlink(missing_ok=True)
    return changed


def _kind(value: Any) -> tuple[bool, bool]:
    return isinstance(value, bool), isinstance(value, float)


def _comment(place: Any, key: str | int) -> str:
    """What stands behind a key, or an item of a list, with the empty lines that follow."""
    tokens = place.ca.items.get(key) or []
    token = tokens[0 if isinstance(place, list) else 2] if tokens else None
    return "" if token is None else str(token.value)


def _put_comment(place: Any, key: str | int, text: str, after: str | None = None) -> None:
    """Write ``text`` behind a key in place of what stands there. The empty lines that follow stay, or are ``after``."""
    after = _comment(place, key).partition("\n")[2] if after is None else after
    place.yaml_add_eol_comment("#", key)
    place.ca.items[key][0 if isinstance(place, list) else 2].value = f"{text}\n{after}"


def _find(params: Any, key: str, whose: str) -> tuple[Any, str]:
    """(the mapping or list that holds ``key``, its last part)."""
    *sections, last = key.split(".")
    for section in sections:
        if not isinstance(params, dict) or section not in params:
            raise UserError(f"{whose}: '{key}' is no key of params.yaml: there is no '{section}'")
        params = params[section]
    return params, last


def _placed(source: str, root: str) -> dict[str, str]:
    """data.source, and data.root: the recipe's where that holds the pictures, else their own folder."""
    kind, _, place = source.partition(":")
    folder = Path(os.path.normpath(place))
    if kind not in ("folder", "csv", "shards"):
        return {"data.source": source, "data.root": "data/raw"}  # where sets are downloaded to
    if kind == "csv" or (kind == "shards" and folder.suffix == ".tar"):
        folder = folder.parent
    held = bool(root) and Path(root) in (folder, *folder.parents)
    return {"data.source": source, "data.root": root if held else folder.as_posix()}


def _parser() -> YAML:
    """Reads and writes params.yaml in the style that it has, so that a difference shows only what differs."""
    parser = YAML()
    parser.preserve_quotes = True
    parser.width = 4096  # no line is folded
    parser.indent(mapping=2, sequence=4, offset=2)
    parser.representer.add_representer(
        type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    return parser


def _styled(value: Any) -> Any:
    """Mappings and lists of numbers and of words on one line, sentences one below the other."""
    if isinstance(value, dict):
        made: Any = CommentedMap({key: _styled(part) for key, part in value.items()})
    elif isinstance(value, list):
        made = CommentedSeq([_styled(part) for part in value])
        if any(isinstance(part, dict) or (isinstance(part, str) and " " in part) for part in value):
            return made
    else:
        return value
    made.fa.set_flow_style()
    return made


def flat(value: Any) -> str:
    """As YAML, on one line."""
    text = yaml.safe_dump(yaml.safe_load(yaml.safe_dump(_plain(value))), default_flow_style=True, width=4096)
    return text.removesuffix("\n...\n").strip()


def _plain(value: Any) -> Any:
    """Without what the round trip keeps beside the values."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, str):  # with the quotes that it had
        return str(value)
    return value.real if isinstance(value, float | int) and not isinstance(value, bool) else value
