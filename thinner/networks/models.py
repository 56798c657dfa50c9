"""Networks by name: ``torchvision:NAME``, ``timm:NAME``, ``python:FILE:FUNCTION`` and those of resnets.py; heads,
weights, freezing."""

from __future__ import annotations

import difflib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thinner.errors import NetworkError as NetworkError  # noqa: PLC0414 - callers say models.NetworkError
from thinner.errors import one_line
from thinner.networks import own, resnets
from thinner.networks import weights as published
from thinner.networks.spec import NetworkSpec


@runtime_checkable
class Section(Protocol):
    """What of a network's section in params.yaml says how it is built."""

    network: str
    width: int | None
    stem_stride: Any
    image_size: int

    @property
    def channels(self) -> int: ...


def create(network: NetworkSpec) -> nn.Module:
    """The network that ``network`` describes, with fresh weights from torch's global generator."""
    name, classes, channels = network.name, network.classes, network.channels
    if own.is_own(name):
        return own.build(network)
    check_name(name)
    family, _, inner = name.partition(":") if ":" in name else ("", "", name)
    if not family:
        return resnets.create(network)
    if family == "timm":
        return _timm(inner, classes, channels, network.image_size)
    import torchvision

    if channels != 3:
        raise NetworkError(f"network: '{name}' takes three channels. Give mean and std three values each")
    # the auxiliary classifiers of inception and googlenet are for training from nothing and are never exported
    extra = {"aux_logits": False, "init_weights": True} if inner in ("inception_v3", "googlenet") else {}
    return torchvision.models.get_model(inner, weights=None, num_classes=classes, **extra)


def describe(section: Section, classes: int) -> NetworkSpec:
    """The network of a section of params.yaml, finetune or student."""
    return NetworkSpec(
        name=section.network,
        classes=classes,
        channels=section.channels,
        width=section.width,
        stem_stride=section.stem_stride,
        image_size=sized(section.network, section.image_size),
        code_sha256=own.code_sha256(section.network) if own.is_own(section.network) else None,
    )


def sized(name: str, image_size: int) -> int | None:
    """``image_size`` of timm's networks that are built for one size (vision transformers have a table of positions),
    where theirs is another. None of all others, which take any size."""
    family, _, inner = name.partition(":")
    if family != "timm":
        return None
    import timm

    config = timm.models.get_pretrained_cfg(published.on_timms_hub(inner) or inner, allow_unregistered=True)
    if config is None or not config.fixed_input_size or config.input_size[-1] == image_size:
        return None
    return image_size


def _timm(inner: str, classes: int, channels: int, image_size: int | None) -> nn.Module:
    """Raises NetworkError where the sides of ``image_size`` px are not made of whole patches: the rest would not be
    seen."""
    import timm

    given: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    known = published.on_timms_hub(inner)
    inner, source = known or inner, "" if known else inner.rpartition(":")[0]
    try:
        model = timm.create_model(inner, pretrained=False, num_classes=classes, in_chans=channels, **given)
    except Exception as error:
        if not source:
            raise
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
        raise NetworkError(
            f"network: 'timm:{inner}' could not be read from the hub ({type(error).__name__}: {first}). Try again "
            "with a connection, or name the network without its hub: timm:NAME"
        ) from error
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    side = patch[0] if isinstance(patch, tuple) else patch
    if image_size is not None and isinstance(side, int) and (over := image_size % side):
        less = image_size - over
        raise NetworkError(
            f"image_size: {image_size} px are no whole number of the {side} px patches of 'timm:{inner}', which would "
            f"not see the rest. Set " + (f"{less} or {less + side}" if less else f"{side}")
        )
    return model


def skeleton(network: NetworkSpec) -> nn.Module:
    """``create`` on the meta device: every shape, no numbers, and no random ones drawn."""
    if network.name.startswith(("torchvision:regnet", "python:")):
        # torchvision works out the widths of these with tensors, and anybody's code may do that, so they are built for
        # real and emptied
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
    if own.is_own(name):
        own.check_name(name)
        return
    if name.startswith("timm:") and (name.count(":") > 1 or "." in name):
        _check_timm_name(name.removeprefix("timm:"))
        return
    if resnets.is_ours(name):
        if wrong := resnets.mistake(name):
            imagenet = f". For the ImageNet network say torchvision:{name} or timm:{name}"
            raise NetworkError(wrong + imagenet * resnets.has_width(name))
        return
    known = names()
    if name not in known:
        near_names = difflib.get_close_matches(name, known, 5, 0.5) or ["resnet20", "torchvision:NAME", "timm:NAME"]
        raise NetworkError(f"unknown '{one_line(name, 100)}'. Choose for example one of: {', '.join(near_names)}")


def _check_timm_name(inner: str) -> None:
    """Names with a tag (resnet18.a1_in1k) and repositories of a hub (hf-hub:timm/resnet18.a1_in1k)."""
    import timm

    source, _, place = inner.rpartition(":")
    if source:
        if source not in ("hf-hub", "hf_hub") or place.count("/") != 1 or not all(place.split("/")):
            raise NetworkError(f"unknown 'timm:{inner}'. Of a hub say timm:hf-hub:OWNER/REPOSITORY")
        return
    base, _, tag = inner.partition(".")
    known = timm.list_pretrained(f"{base}.*") if timm.models.is_model(base) else []
    if inner not in known:
        near = difflib.get_close_matches(inner, known or timm.list_pretrained(), 5, 0.3) or known[:5]
        raise NetworkError(
            f"unknown 'timm:{inner}'. Choose for example one of: {', '.join(f'timm:{name}' for name in [*near, base])}"
            if known
            else f"unknown 'timm:{inner}': timm has no '{base}' with tag '{tag}'. Choose for example one of: "
            + ", ".join(f"timm:{name}" for name in near)
        )


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


def heads_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """All classifiers: timm's distilled networks have two, whose outputs they average."""
    getter = getattr(model, "get_classifier", None)
    several = getter() if callable(getter) else None
    if not isinstance(several, tuple | list):
        return [head_of(model)]
    found: list[tuple[str, nn.Module]] = []
    for classifier in several:
        layers = [(n, m) for n, m in classifier.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        where = next((n for n, m in model.named_modules() if m is classifier), None)
        if layers and where:
            inner, layer = layers[-1]
            found.append((f"{where}.{inner}" if inner else where, layer))
    return found or [head_of(model)]


@dataclass(frozen=True)
class Start:
    """What a network started from."""

    source: str  # "fresh", or as params.yaml names the weights
    sha256: str | None = None  # of their file; None where a library downloaded it, and for "fresh"
    notes: tuple[str, ...] = ()  # what was mapped, left out or learnt anew

    @property
    def parents(self) -> dict[str, str]:
        """For a checkpoint's spec."""
        return {"weights": self.source} | ({"weights_sha256": self.sha256} if self.sha256 else {})


def load_pretrained(model: nn.Module, network: NetworkSpec, weights: str | None) -> Start:
    """Fill ``model`` in place and say from where. Heads are kept fresh when their number of classes differs.

    ``weights``: ``null``; ``package:DISTRIBUTION`` (the one weights file inside an installed package);
    ``torchvision:ENUM`` (``IMAGENET1K_V1``, downloaded by torchvision); ``timm`` (downloaded by timm); or a
    local file. How tensors find their places: ``thinner.networks.weights.fit``.
    """
    if weights is None:
        return Start("fresh")
    given = published.read(network.name, weights)
    fit = fit_weights(model, network, given)
    state = OrderedDict(fit.tensors)
    # the version of each module's state: files may lack it, and torchvision's MNASNet asks for it
    vars(state)["_metadata"] = vars(model.state_dict())["_metadata"]
    model.load_state_dict(state, strict=True)
    # Other classes: the head is learnt anew, from PyTorch's own small start. The start that timm gives to
    # EfficientNets (a range of 1/sqrt(outputs)) is for a thousand classes; with ten the first loss is above 5.
    for head in fit.fresh:
        replace_head(model, network.classes, head)
    learnt = (f"learnt anew: the head {', '.join(fit.fresh)}",) if fit.fresh else ()
    return Start(weights, given.sha256, (*fit.notes, *learnt))


def fit_weights(model: nn.Module, network: NetworkSpec, given: published.Given) -> published.Fit:
    """Which tensor of ``given`` goes where in ``model``, which may lie on "meta". Raises NetworkError."""
    filters: list[Callable[[dict[str, Tensor]], Any]] = []
    if network.name.startswith("timm:"):
        config: Any = getattr(model, "pretrained_cfg", None) or {}
        if entry := config.get("architecture"):
            filters = published.timm_filters(model, entry)
    return published.fit(
        given,
        model.state_dict(),
        network=network.name,
        heads=[path for path, _ in heads_of(model)],
        filters=filters,
    )


def replace_head(model: nn.Module, classes: int, path: str | None = None) -> None:
    """Put a fresh classifier of ``classes`` outputs in place of the old one, or of the one at ``path``."""
    name, old = head_of(model) if path is None else (path, model.get_submodule(path))
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
    """The network's own order of parts, from the image on, without the head and what it shares a module with; long
    sequences are parts each. Where one module holds all of the network, its parts are meant."""
    heads, around = [name for name, _ in heads_of(model)], _whole(model)
    for leaf, child in model.get_submodule(around[:-1]).named_children():
        name = f"{around}{leaf}"
        if any(head == name or head.startswith(f"{name}.") for head in heads):
            continue
        if isinstance(child, nn.Sequential | nn.ModuleList) and len(child) > 1:
            for inner_name, inner in child.named_children():
                yield f"{name}.{inner_name}", inner
        elif any(True for _ in child.parameters()):
            yield name, child


def _whole(model: nn.Module) -> str:
    """The path, with a point at its end, of the innermost module that holds all layers; nothing where that is the
    network itself."""
    heads, around = [name for name, _ in heads_of(model)], ""
    while True:
        place = model.get_submodule(around[:-1])
        held = [name for name, child in place.named_children() if any(True for _ in child.parameters())]
        if len(held) != 1 or not all(head.startswith(f"{around}{held[0]}.") for head in heads):
            return around
        around = f"{around}{held[0]}."


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
        freeze_all(part)
    return [name for name, _ in parts[:stages]]


def freeze_all(part: nn.Module) -> None:
    """No gradients, and batch norms keep their statistics."""
    part.requires_grad_(False)
    for module in part.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train = _stay_in_eval(module)  # type: ignore[method-assign,assignment]
            module.eval()


def layer_scales(model: nn.Module, decay: float) -> dict[str, float]:
    """By what each tensor's learning rate is multiplied with layer-wise decay: 1 for the head, ``decay`` for the part
    before it (see ``stages_of``), its square for the one before that, and so on to the image. Layers in one module with
    the head, which come after all parts, have ``decay``; what else belongs to no part, such as a class token, goes with
    the first one. Clark et al. 2020 (https://arxiv.org/abs/2003.10555); after Howard &
    Ruder 2018 (https://arxiv.org/abs/1801.06146).
    """
    heads = tuple(f"{name}." for name, _ in heads_of(model))
    parts = [f"{name}." for name, part in stages_of(model) if any(True for _ in part.parameters())]
    whole = _whole(model)
    around = tuple(f"{whole}{head.removeprefix(whole).split('.')[0]}." for head in heads)  # what the heads lie in

    def distance(path: str) -> int:
        if path.startswith(heads):
            return 0
        number = next((i for i, part in enumerate(parts) if path.startswith(part)), None)
        if number is None and path.startswith(around):
            return 1
        return len(parts) - (number or 0)

    return {path: decay ** distance(path) for path, _ in model.named_parameters()}


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


def pooled(output: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch width"]:
    """A layer's output, averaged over places: of a map [batch, channels, height, width] its height and width, of a
    transformer's tokens [batch, tokens, width] the tokens."""
    if output.ndim < 3:
        return output
    return output.mean(1) if output.ndim == 3 else output.flatten(2).mean(2)


def pooled_width(shape: Sequence[int]) -> int:
    """The width of what ``pooled`` makes of outputs of this shape, which is without the batch."""
    return shape[-1] if len(shape) == 2 else shape[0]
