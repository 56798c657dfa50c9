"""A network on disk: ``model.safetensors`` (weights) and ``model.json`` (all that is needed to build it again).

No pickle is written or read. A pruned network is built from its description, then the dimensions that pruning
changed are set layer by layer from the spec; which channels went, and in which order, does not matter. Buffers that a
network leaves out of its state (tables of positions) are computed by building it; where pruning changed their size,
no building gives them, and they lie among the weights.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from thinner.data.views import Preprocessing
from thinner.errors import DamagedError, UserError, one_line
from thinner.files import json_files, whole
from thinner.networks import models, own
from thinner.networks.spec import NetworkSpec

WEIGHTS, SPEC = "model.safetensors", "model.json"


class CheckpointError(UserError):
    """A checkpoint cannot be read: missing, or not of this network."""


@dataclass(frozen=True)
class Loaded:
    model: nn.Module  # in eval mode, on the CPU
    spec: dict[str, Any]  # model.json
    sha256: str  # of the weights file

    @property
    def network(self) -> NetworkSpec:
        return NetworkSpec.from_json(self.spec["network"])

    @property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing.from_json(self.spec["preprocessing"])


def save(folder: str | Path, model: nn.Module, spec: dict[str, Any]) -> str:
    """Write ``model`` and ``spec`` into ``folder`` (made if need be), each file whole or not at all.

    ``spec`` needs ``network`` and ``preprocessing`` (`NetworkSpec` and `Preprocessing` as JSON), ``classes``,
    ``parents``, ``data_sha256`` and ``stage``; ``pruned`` is found out here. Returns the SHA-256 of the weights file.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    spec = {**spec, "pruned": changed_dimensions(model, NetworkSpec.from_json(spec["network"]))}
    state = {n: t.detach().cpu().contiguous().clone() for n, t in saved_tensors(model, spec).items()}
    whole.write(folder / WEIGHTS, lambda path: save_file(state, path))
    return write_spec(folder, spec, WEIGHTS)


def write_spec(folder: Path, spec: dict[str, Any], weights: str, *others: str) -> str:
    """Write ``model.json``, which vouches for itself and the files ``weights`` and ``others`` beside it; returns the
    SHA-256 of the first."""
    sealed = whole.sealed(spec, {name: folder / name for name in (weights, *others)})
    text = json.dumps(sealed, indent=1, sort_keys=True) + "\n"
    whole.write_text(folder / SPEC, text)
    return str(sealed["integrity"]["files"][weights])


def saved_tensors(model: nn.Module, spec: dict[str, Any]) -> dict[str, torch.Tensor]:
    """What a checkpoint of ``model`` holds: its state, and buffers outside of it that pruning resized.

    ``spec``: that of the checkpoint, with ``pruned``.
    """
    return model.state_dict() | _hidden(model, (spec.get("pruned") or {}).get("shapes", {}))


def load(folder: str | Path) -> Loaded:
    """Build the network from its spec and fill it strictly. Raises CheckpointError; DamagedError where a file is not
    what was written."""
    folder = Path(folder)
    spec, known = _read(folder)
    weights = folder / WEIGHTS
    digest = _checked(weights, known)
    try:
        state = load_file(weights)
    except Exception as error:
        raise DamagedError(
            f"{weights}: damaged ({one_line(error)}). Make it again: dvc checkout --force {folder}"
        ) from error
    try:
        return Loaded(_fill(spec, state, weights), spec, digest)
    except UserError:
        raise
    except Exception as error:  # each library has errors of its own for a network that it cannot build
        raise DamagedError(
            f"{folder / SPEC}: no network can be built as it says ({type(error).__name__}: {one_line(error)}). "
            f"Make it again: dvc checkout --force {folder}"
        ) from error


def check_file(path: Path) -> str:
    """SHA-256 of a model's file. Raises DamagedError where ``model.json`` beside it knows another one."""
    return _checked(path, None)


def _checked(path: Path, files: dict[str, str] | None) -> str:
    """``files``: what ``model.json`` knows of them, where it was read already."""
    try:
        digest = whole.file_sha256(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file. Make it again: dvc repro, or dvc checkout") from None
    known = (_read(path.parent)[1] if files is None else files).get(path.name)
    if known not in (None, digest):
        raise DamagedError(
            f"{path}: is not what was written (SHA-256 {digest[:12]}, {SPEC} beside it says {one_line(known[:12])}). "
            f"Make it again: dvc checkout --force {path.parent}"
        )
    return digest


def read_spec(folder: str | Path) -> dict[str, Any]:
    """What ``model.json`` says of the model beside it. Raises CheckpointError; DamagedError where a bit has flipped."""
    return _read(Path(folder))[0]


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    path = folder / SPEC
    again = f"Make it again: dvc checkout --force {folder}"
    try:
        spec = json_files.read(path, again)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file. Make it: thinner run") from None
    missing = {"network", "classes", "preprocessing"} - set(spec if isinstance(spec, dict) else {})
    if missing:
        raise CheckpointError(f"{path}: lacks {', '.join(sorted(missing))}. It was not written by thinner")
    found = whole.opened(spec, path)
    if wrong := _mistake(found[0]):
        raise DamagedError(f"{path}: {wrong}. {again}")
    return found


def _mistake(spec: dict[str, Any]) -> str | None:
    """What in ``spec`` no stage writes: it would be a traceback, or too large to build, wherever it is used."""
    network, sees = spec["network"], spec["preprocessing"]
    return (
        json_files.lacking(spec, _SPEC)
        or json_files.lacking({"classes": 0, **spec}, {k: t for k, t in _MORE.items() if k in spec})
        or _of("network", json_files.lacking(network, _NETWORK))
        or _of("network", json_files.lacking(network, {k: _up_to(_MOST) for k in _WIDTHS if k in network}))
        or _of("network", json_files.lacking(network, {"classes": lambda n: n == len(spec["classes"])}))
        or _of("preprocessing", json_files.lacking(sees, _SEES))
        or _of("pruned", json_files.lacking(spec.get("pruned") or _UNPRUNED, _PRUNED))
    )


def _of(key: str, wrong: str | None) -> str | None:
    return wrong and f"{key} {wrong}"


def _up_to(most: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and 1 <= value <= most


def _per_channel(value: Any) -> bool:
    return isinstance(value, list) and len(value) in (1, 3) and all(map(json_files.is_number, value))


def _are_objects(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(inner, dict) for inner in value.values())


_MOST = 10_000
_WIDTHS = ("width", "stem_stride")
_SPEC: dict[str, Callable[[Any], bool]] = {"classes": json_files.are_names}
_MORE: dict[str, Callable[[Any], bool]] = {
    "input": lambda value: value == "pixels",
    "parents": lambda value: isinstance(value, dict),
    "val_accuracy": json_files.is_number,
    "pruned": lambda value: value is None or isinstance(value, dict),
}
_NETWORK: dict[str, Callable[[Any], bool]] = {"name": json_files.is_text, "channels": lambda value: value in (1, 3)}
_SEES: dict[str, Callable[[Any], bool]] = {
    "image_size": _up_to(1024),  # as params.yaml allows
    "mean": _per_channel,
    "std": _per_channel,
}
_UNPRUNED: dict[str, Any] = {"attributes": {}, "shapes": {}}
_PRUNED: dict[str, Callable[[Any], bool]] = {
    "attributes": _are_objects,
    "shapes": lambda value: isinstance(value, dict),
}


def _fill(spec: dict[str, Any], state: dict[str, torch.Tensor], source: Path) -> nn.Module:
    # on "meta" nothing is allocated or drawn at random; every tensor then comes from the file
    model = models.skeleton(NetworkSpec.from_json(spec["network"]))
    if spec.get("pruned"):
        apply_dimensions(model, spec["pruned"])
    tensors = saved_tensors(model, spec)
    expected = {n: (tuple(t.shape), t.is_floating_point()) for n, t in tensors.items()}
    found = {n: (tuple(t.shape), t.is_floating_point()) for n, t in state.items()}
    if expected != found:
        wrong = sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
        name = wrong[0]
        raise CheckpointError(
            f"{source}: {len(wrong)} tensors do not fit the spec; first {one_line(name)}: file "
            f"{_said(state.get(name))}, spec {_said(tensors.get(name))}. Take the two files of one folder"
        )
    model = _materialise(model, spec)
    for name, buffer in _hidden(model, tensors).items():
        buffer.copy_(state.pop(name))
    named = OrderedDict(state)
    # the version of each module's state: safetensors has no place for it, and torchvision's MNASNet asks for it
    vars(named)["_metadata"] = vars(model.state_dict())["_metadata"]
    model.load_state_dict(named, strict=True)
    return model.eval()


def _said(tensor: torch.Tensor | None) -> str:
    return "none" if tensor is None else one_line(f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}")


def _materialise(model: nn.Module, spec: dict[str, Any]) -> nn.Module:
    """Out of "meta". Buffers that are not in the state (position tables) must be computed, so build for real; so are
    networks of one's own, in which two modules may share a tensor: each would get one of its own."""
    if not _hidden(model) and not own.is_own(spec["network"]["name"]):
        return model.to_empty(device="cpu")
    with torch.random.fork_rng(devices=[]):
        real = models.create(NetworkSpec.from_json(spec["network"]))
    if spec.get("pruned"):
        with torch.device("cpu"):
            apply_dimensions(real, spec["pruned"])
    return real


def _hidden(model: nn.Module, among: Container[str] | None = None) -> dict[str, torch.Tensor]:
    """Buffers that ``state_dict`` leaves out, all of them or those named in ``among``."""
    persistent = set(model.state_dict())
    return {n: t for n, t in model.named_buffers() if n not in persistent and (among is None or n in among)}


def _dimensions(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Per module, every plain number (or tuple of whole ones) that it holds: out_channels, num_features, scale, ..."""
    out: dict[str, dict[str, Any]] = {}
    for name, module in model.named_modules():
        values = {
            key: value
            for key, value in vars(module).items()
            if not key.startswith("_")
            and (
                type(value) in (int, float)
                or (isinstance(value, tuple) and value and all(type(v) is int for v in value))
            )
        }
        if values:
            out[name] = values
    return out


def changed_dimensions(model: nn.Module, network: NetworkSpec) -> dict[str, Any] | None:
    """What sets ``model`` apart from a fresh ``models.create(network)``: attributes and tensor shapes; None if nothing.

    ``{"attributes": {module: {name: value}}, "shapes": {tensor: [sizes]}}``
    """
    fresh = models.skeleton(network)
    before, after = _dimensions(fresh), _dimensions(model)
    attributes = {
        module: changed
        for module, values in after.items()
        if (changed := {k: v for k, v in values.items() if before.get(module, {}).get(k) != v})
    }
    shapes_before = {n: t.shape for n, t in _tensors(fresh)}
    shapes = {n: list(t.shape) for n, t in _tensors(model) if shapes_before.get(n) != t.shape}
    return {"attributes": attributes, "shapes": shapes} if attributes or shapes else None


def _tensors(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]


def apply_dimensions(model: nn.Module, pruned: dict[str, Any]) -> None:
    """Set the attributes and give the tensors their sizes (values are left empty). Raises DamagedError where that is
    more than to make them smaller: whoever wrote the description may have had other things in mind."""
    modules, known = dict(model.named_modules(remove_duplicate=False)), dict(_tensors(model))
    for name, values in pruned["attributes"].items():
        for key, given in values.items():
            value = tuple(given) if isinstance(given, list) else given
            if name not in modules or not _is_less(value, vars(modules[name]).get(key)):
                raise DamagedError(
                    f"{SPEC}: {one_line(f'{name}.{key}', 80)} cannot be {one_line(repr(value), 60)} in a pruned "
                    f"{type(model).__name__}. Make it again: dvc checkout --force"
                )
            setattr(modules[name], key, value)
    for name, shape in pruned["shapes"].items():
        if name not in known or not isinstance(shape, list) or not _is_less(tuple(shape), tuple(known[name].shape)):
            raise DamagedError(
                f"{SPEC}: {one_line(name, 80)} cannot be of shape {one_line(repr(shape), 60)} in a pruned "
                f"{type(model).__name__}. Make it again: dvc checkout --force"
            )
        owner, _, leaf = name.rpartition(".")
        module, old = modules[owner], known[name]
        empty = torch.empty(shape, dtype=old.dtype, device=old.device)
        if isinstance(old, nn.Parameter):
            module.register_parameter(leaf, nn.Parameter(empty, requires_grad=old.requires_grad))
        else:
            module.register_buffer(leaf, empty, persistent=leaf not in module._non_persistent_buffers_set)


def _is_less(value: Any, old: Any) -> bool:
    """Whether pruning may have made ``value`` of the number, or the sizes, ``old``."""
    if isinstance(old, tuple):
        alike = isinstance(value, tuple) and len(value) == len(old)
        return alike and all(_is_less(a, b) for a, b in zip(value, old, strict=True))
    if type(old) is float or type(value) is float:  # a scale: 1/sqrt of a width
        return type(old) in (int, float) and json_files.is_number(value)
    return type(old) is int and type(value) is int and min(1, old) <= value <= old
