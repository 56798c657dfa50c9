"""params.yaml, read and checked: what is wrong is named before anything runs.

``load_params`` reads the file and checks all that can be checked without torch: unknown keys, types, bounds,
keys that contradict each other. ``deep=True`` also looks networks, weights, criteria and losses up and checks
that the stages fit together; it imports torch, so the flow leaves it to the stages and to ``tasks.check``.

All errors of a file are raised together, one line each: key, value, mend.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from thinner import layout
from thinner.errors import UserError, did_you_mean
from thinner.files import yaml_files
from thinner.params import Network, Params, Prunable


class ParamsError(UserError):
    """params.yaml cannot be run; ``str()`` has one line per mistake."""

    def __init__(self, path: str | Path, lines: Iterable[str]) -> None:
        self.lines = list(lines)
        count = f"{len(self.lines)} mistake" + ("s" if len(self.lines) > 1 else "")
        super().__init__("\n".join([f"{path}: {count}", *(f"  {line}" for line in self.lines)]))


def load_params(path: str | Path = "params.yaml", deep: bool = False, classes: int | None = None) -> Params:
    """The choices in ``path``. Raises ParamsError with every mistake of the file."""
    params = read_params(path)
    lines = list(_contradictions(params))
    if deep:
        lines += _deep_contradictions(params, classes)
    if lines:
        raise ParamsError(path, lines)
    return params


def read_params(path: str | Path) -> Params:
    """The choices in ``path``, each of them right by itself. Whether they go together, and with the files that lie
    here, is not asked. Raises ParamsError."""
    path = Path(path)
    if not path.is_file():
        raise ParamsError(
            path, ["no such file. Run from the repository's root, or restore it: git checkout params.yaml"]
        )
    try:
        raw = yaml_files.read(path)
    except yaml_files.YamlFileError as error:
        raise ParamsError(path, [str(error)]) from None
    except OSError as error:
        raise ParamsError(path, [f"cannot be read ({error.strerror})"]) from None
    if not isinstance(raw, dict):
        raise ParamsError(path, [f"must be sections with keys, found {type(raw).__name__}"])
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        raise ParamsError(path, _readable(error, raw)) from None


def _readable(error: ValidationError, raw: dict[Any, Any]) -> list[str]:
    lines: dict[str, str] = {}
    for item in error.errors():
        kind, context = item["type"], item.get("ctx", {})
        parts, value = _place(item["loc"], raw, missing=kind == "missing")
        key, shown = ".".join(str(part) for part in parts), _shown(value)
        if kind == "extra_forbidden":
            known = _known_keys(parts[:-1])
            hint = did_you_mean(str(parts[-1]), known, f"Known keys: {', '.join(known)}")
            line = f"unknown key (value {shown}). {hint}"
        elif kind == "missing":
            line = "missing. Add it; docs/params.md says what it does"
        elif kind == "literal_error":
            line = f"unknown {shown}. Choose one of: {context['expected']}"
        elif kind == "value_error":
            text = str(context["error"])
            if parts and parts[0] in Params.model_fields and ": " in text and " " not in text.split(": ", 1)[0]:
                inner, _, text = text.partition(": ")
                key = f"{key}.{inner}"
                line = text
            else:
                line = f"{shown} {text}"
        elif kind == "string_pattern_mismatch" and key == "data.source":
            line = f"unknown {shown}. Choose one of: torchvision:NAME, folder:PATH, csv:PATH, shards:PATH"
        elif kind == "bool_type":
            line = f"{shown}: should be a valid boolean, true or false"
        else:
            message = item["msg"][0].lower() + item["msg"][1:]
            line = f"{shown}: {message.replace('input ', '')}"
        lines[key] = f"{lines[key]}; or {line}" if key in lines and lines[key] != line else line
    return [f"{key}: {line}" if key else line for key, line in lines.items()]


def _place(loc: tuple[int | str, ...], raw: Any, *, missing: bool) -> tuple[list[Any], Any]:
    """The keys of the file in pydantic's location, and the value there.

    pydantic adds to a location which branch of a union it tried ("int", "constrained-float"): no key of the file. It
    also writes keys that are no strings as such.
    """
    parts: list[Any] = []
    value = raw
    for number, part in enumerate(loc):
        if isinstance(value, dict):
            keys = [key for key in value if key == part or (not isinstance(key, str) and str(key) == part)]
            if keys:
                value = value[keys[0]]
                parts.append(part)
            elif missing and number == len(loc) - 1:
                parts.append(part)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
            parts.append(part)
    return parts, value


def _shown(value: Any) -> str:
    """A value on one line, not longer than a person wants to read."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:150]}... ({len(text):,} characters)"


def _known_keys(loc: list[Any]) -> list[str]:
    model: Any = Params
    for part in loc:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        while not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            annotation = annotation.__args__[0]
        model = annotation
    return list(model.model_fields)


def holds_results(root: str | Path) -> str | None:
    """What stages write that lies in this folder, or is it; None where nothing does."""
    held = [name for name in (".", "data", "reports") if Path(name).absolute().is_relative_to(os.path.abspath(root))]
    return None if not held else "this repository" if held[0] == "." else f"'{held[0]}', where stages write"


def _contradictions(params: Params) -> Iterable[str]:
    """What pydantic cannot see because it spans sections."""
    if held := holds_results(params.data.root):
        yield (
            f"data.root: '{params.data.root}' holds {held}, and prepare would wait for what it makes itself. Move the "
            "pictures, and a list with them, below data/raw and set data.root: data/raw"
        )
    for name in ("finetune", "student"):
        network: Network = getattr(params, name)
        if network.channels == 1 and params.data.channels == 3:
            yield (
                f"{name}.mean: one value (grey), but data.channels is 3. "
                f"Give {name}.mean and {name}.std three values, or set data.channels: 1"
            )
        yield from _watched(name, network)
    yield from _pruned_also(params)
    if params.self_train.networks and params.data.unlabelled == 0:
        yield (
            "self_train.networks: learns from pictures without labels, but data.unlabelled is 0. Set data.unlabelled: "
            "rest, or self_train.networks: []"
        )
    if params.prune.asked.is_drop and params.imbalance.choose_by != "accuracy":
        yield (
            f"imbalance.choose_by: '{params.imbalance.choose_by}' does not go with prune.target: max_drop, whose "
            "paired test is of accuracy. Set imbalance.choose_by: accuracy, or a target of macs, params or latency_ms"
        )
    if params.data.corrections is not None and not Path(params.data.corrections).is_file():
        yield f"data.corrections: no file '{params.data.corrections}'. Put it there, or set data.corrections: null"
    for number, name in enumerate(params.export.candidates):
        if name not in layout.networks(params):
            yield f"export.candidates[{number}]: unknown '{name}'. Choose one of: {', '.join(layout.networks(params))}"
    names = layout.candidate_names(params)
    if params.ship.candidate not in names:
        yield f"ship.candidate: unknown '{params.ship.candidate}'. Choose one of: {', '.join(names)}"
    if params.run.precision == "fp16" and params.run.device == "cpu":
        yield "run.precision: 'fp16' does not train on cpu. Choose one of: fp32, bf16"
    several = "devices" if params.run.devices > 1 else "nodes"
    if params.run.processes > 1 and params.distill.teacher == "live" and params.run.compile:
        yield f"run.compile: true does not go with run.{several} > 1 and distill.teacher: live. Set run.compile: false"
    yield from _teachers(params)
    if params.export.preprocessing_in_graph and params.export.opset < 18:
        yield (
            f"export.opset: {params.export.opset}, but export.preprocessing_in_graph: true needs antialiased resizing, "
            "which came with 18. Set export.opset: 18 or more"
        )
    if params.student.training.steps is None:
        yield (
            f"student.training.epochs: {params.student.training.epochs}, but scratch sees fewer images than distill: "
            "equal epochs are unequal budgets. Set student.training.epochs: null and student.training.steps: 1000"
        )
    yield from _looks(params)


def _looks(params: Params) -> Iterable[str]:
    """A network and its control are looked at, and may be stopped, after as many steps; they see unequal numbers of
    images, so once an epoch is not as often."""
    for section, pair, training in (
        ("student", "scratch sees fewer images than distill", params.student.training),
        ("prune", "small sees fewer images than prune", params.prune.training),
        ("self_train", "its control takes all images of a step from the labelled ones", params.self_train.training),
    ):
        off = params.data.unlabelled == 0 if section != "self_train" else not params.self_train.networks
        if training.validate_every is None and not off:
            yield (
                f"{section}.training.validate_every: null is once per epoch, but {pair}: one would be chosen among "
                f"more weights than the other. Set {section}.training.validate_every: 100"
            )


def _pruned_also(params: Params) -> Iterable[str]:
    source, also = params.prune.source, params.prune_also
    others = ", ".join(name for name in get_args(Prunable) if name != source)
    if source in also:
        yield f"prune_also: '{source}' is prune.source, and pruned already. Choose one of: {others}"
    if len(set(also)) < len(also):
        yield f"prune_also: {also} names one twice. Name each once; the choices are: {others}"


TEACHERS, WEIGHTS = Path("data/teachers"), Path("data/weights")  # DVC watches these folders


def _watched(name: str, network: Network) -> Iterable[str]:
    """A weights file lies where DVC sees it change."""
    weights = network.weights
    if weights is None or weights == "timm" or weights.startswith(("package:", "torchvision:")):
        return
    path = Path(weights)
    if ".." in path.parts or WEIGHTS not in path.parents:
        if not path.is_file():
            yield (
                f"{name}.weights: unknown '{weights}'. Choose one of: null, package:DISTRIBUTION, torchvision:ENUM, "
                f"timm, {WEIGHTS}/NAME.safetensors, {WEIGHTS}/NAME.pth"
            )
            return
        yield (
            f"{name}.weights: '{weights}' lies where DVC would not notice a change. Put it below {WEIGHTS}: "
            f"mkdir -p {WEIGHTS} && cp '{weights}' {WEIGHTS}/ and set {name}.weights: {WEIGHTS / path.name}"
        )
    elif not path.is_file():
        yield f"{name}.weights: no weights file '{weights}'. Put it there, or set {name}.weights: null"
    elif not path.resolve().is_relative_to(WEIGHTS.resolve()):  # itself it may be one
        yield (
            f"{name}.weights: '{weights}' is a link to {path.resolve()}, which DVC does not watch. Copy the file: "
            f"cp --remove-destination '{path.resolve()}' {path}"
        )


def _teachers(params: Params) -> Iterable[str]:
    teach = params.teach
    for number, name in enumerate(teach.teachers):
        where, path = f"teach.teachers[{number}]", Path(name)
        if name == "finetune":
            continue
        if path.parent != TEACHERS:
            yield (
                f"{where}: unknown '{name}'. Choose one of: finetune, {TEACHERS}/NAME (a checkpoint's folder), "
                f"{TEACHERS}/NAME.npz (logits)"
            )
        elif not path.exists():
            yield f"{where}: '{name}' does not exist. Put the checkpoint's folder or the .npz there (docs/teachers.md)"
        elif path.suffix == ".npz" and not params.student.augment.still:
            yield (
                f"{where}: '{name}' knows the images only as they are, but student.augment moves them. "
                "Set crop and aspect 1.0, flip false, policy null and the rest 0.0, or use networks as teachers"
            )
    if teach.flip and (files := [name for name in teach.teachers if name.endswith(".npz")]):
        yield (
            f"teach.flip: true, but '{files[0]}' is a file of logits, which nobody can ask about mirror images. Set "
            "teach.flip: false"
        )
    if teach.flip and "finetune" in teach.teachers and not params.finetune.augment.flip:
        yield (
            "teach.flip: true, but finetune.augment.flip: false, so the teacher has never seen a mirror image. Set "
            "teach.flip: false; or finetune.augment.flip: true, unless left and right differ, as in text"
        )
    if len(set(teach.teachers)) < len(teach.teachers):
        yield f"teach.teachers: {teach.teachers} names one twice. Name each once"
    if teach.features and teach.teachers[0].endswith(".npz"):
        yield (
            f"teach.features: come from the first teacher, but '{teach.teachers[0]}' is a file of logits. "
            "Put a network first, or set teach.features: []"
        )


def _deep_contradictions(params: Params, classes: int | None) -> list[str]:
    from thinner import checks

    return list(checks.deep(params, classes))
