"""What pruning must know about families of networks: attention, patch merging, shuffles, padded shortcuts, sizes.

Torch-Pruning reads which layers hang together off the autograd graph (Fang et al. 2023, DepGraph,
https://arxiv.org/abs/2301.12900) and keeps a channel's number through everything that is not a layer. Inside a windowed
attention that goes wrong: a slice of rows is taken for a slice of channels and a reshape for a flattening, whose
numbers then multiply without end (swin_t and maxvit_t filled 14 GB). So while the graph is read, such modules run a
stand-in: a forward pass of the same shapes, of which each step means for channels what the real one means.

After the cut, sizes that a network wrote down for its own forward pass are set anew.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch_pruning as tp
from jaxtyping import Float
from torch import Tensor, nn

from thinner.errors import UserError, one_line


class ArchitectureError(UserError):
    """A network of this family cannot be pruned."""


@dataclass(frozen=True)
class Handling:
    """What a Torch-Pruning pruner has to be told about one network."""

    ignored_layers: list[nn.Module] = field(default_factory=list)  # their outputs are kept
    num_heads: dict[nn.Module, int] = field(default_factory=dict)  # layers whose outputs are [3, heads, width]
    out_channel_groups: dict[nn.Module, int] = field(default_factory=dict)  # equal parts that lose the same number
    customized_pruners: dict[type[nn.Module], Any] = field(default_factory=dict)

    def arguments(self, ignored_layers: Sequence[nn.Module] = ()) -> dict[str, Any]:
        """Keyword arguments for ``torch_pruning.pruner.BasePruner``.

        The two ``channel_groups`` are passed because Torch-Pruning 1.6 has mutable defaults there: it would remember
        the layers of every network that was ever pruned, and keep them in memory.
        """
        return {
            "ignored_layers": [*ignored_layers, *self.ignored_layers],
            "num_heads": dict(self.num_heads),
            "customized_pruners": dict(self.customized_pruners),
            "in_channel_groups": {},
            "out_channel_groups": dict(self.out_channel_groups),
        }


@contextmanager
def prunable(model: nn.Module, example: Float[Tensor, "batch channels height width"]) -> Iterator[Handling]:
    """While the block runs, ``model`` can be traced and cut by Torch-Pruning; afterwards it computes again.

    At the end the sizes that the network keeps for itself are set, and ``example`` goes through once. Raises
    ArchitectureError when the network cannot be traced, does not run after the cut, or then has fewer logits; it is
    spoilt then.
    """
    if reason := refusal(model):
        raise ArchitectureError(f"{_name(model)} cannot be pruned: {reason}. {_INSTEAD}")
    handling = Handling()
    replaced: list[Callable[[], None]] = []
    try:
        for module in list(model.modules()):
            for kind, handle in _HANDLERS.items():
                if _is(module, kind):
                    replaced.append(handle(module, handling))
                    break
        with warnings.catch_warnings(), _bounded_numbers():
            # class tokens and the like: cut along with what they are added to
            warnings.filterwarnings("ignore", message=".*[Uu]nwrapped parameters.*")
            warnings.filterwarnings("ignore", message="Maximum recursive depth.*")  # what comes of it is an error here
            with torch.no_grad():
                before = model(example).shape
            yield handling
    except UserError:
        raise
    except Exception as error:
        raise ArchitectureError(
            f"{_name(model)} cannot be pruned: its layers' dependencies could not be found "
            f"({type(error).__name__}: {one_line(error)}). {_INSTEAD}"
        ) from error
    finally:
        for restore in replaced:
            restore()
    _set_sizes(model)
    training = model.training
    try:
        with torch.no_grad():
            after = model.eval()(example).shape
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ArchitectureError(
            f"{_name(model)} cannot be pruned: it does not run after a cut ({one_line(error)}). {_INSTEAD}"
        ) from error
    if after != before:
        raise ArchitectureError(
            f"{_name(model)} cannot be pruned: a cut leaves {after[1]} of its {before[1]} logits. The last linear "
            "layer (or, without one, convolution) is taken for the classifier; keep the one that is: prune.keep"
        )
    model.train(training)


_MOST_NUMBERS = 1_000_000  # of channels in one step of the graph; a VGG, the widest of all, has 25,088


@contextmanager
def _bounded_numbers() -> Iterator[None]:
    """Stop where channels multiply without end: at each reshape that is no flattening, until the memory is full."""
    mapping = tp.dependency.index_mapping._FlattenIndexMapping
    original = mapping.__call__

    def call(self: Any, numbers: Sequence[Any]) -> Any:
        if not self.reverse and len(numbers) * self._stride > _MOST_NUMBERS:
            raise RuntimeError("a reshape reads as a flattening of channels, again and again")
        return original(self, numbers)

    mapping.__call__ = call
    try:
        yield
    finally:
        mapping.__call__ = original


_INSTEAD = "docs/networks.md lists the networks that can; or keep the layers at fault with prune.keep"


def _name(model: nn.Module) -> str:
    return f"'{type(model).__name__}'"


def _is(module: nn.Module, kind: str) -> bool:
    """By name, so that neither timm nor torchvision is imported for a network of the other."""
    return f"{type(module).__module__}.{type(module).__name__}" == kind


# ---------------------------------------------------------------------------------------------------- stand-ins


class _Opaque(torch.autograd.Function):
    """One node of the graph, whatever the module computes: zeros of the shape that it returns."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: tuple[int, ...]) -> Tensor:
        return x.new_zeros(shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:  # pragma: no cover - the graph is read, never run
        raise NotImplementedError


def _opaque(x: Tensor, shape: Sequence[int]) -> Tensor:
    return _Opaque.apply(x, tuple(shape))


def _stand_in(module: nn.Module, forward: Callable[..., Tensor]) -> Callable[[], None]:
    vars(module)["forward"] = forward  # an attribute of the instance hides the method of the class
    return lambda: vars(module).pop("forward")


class _Qkv(nn.Linear):
    """A linear layer for queries, keys and values at once, during the trace: as wide as one of the three."""

    attention: Any
    heads: int
    width: Callable[[], int]  # of the three: heads times the width of a head
    rows: Callable[[int], list[int]]  # of the weight, that hold channel i of queries, of keys and of values

    def forward(self, x: Tensor) -> Tensor:
        return _opaque(x, (*x.shape[:-1], self.width()))


class _QkvPruner(tp.pruner.function.BasePruningFunc):  # type: ignore[misc]
    """Inputs and heads are cut by themselves; every head loses the same number of channels."""

    def prune_out_channels(self, layer: _Qkv, idxs: Sequence[int]) -> nn.Module:
        rows = sorted(row for i in idxs for row in layer.rows(i))
        _LINEAR.prune_out_channels(layer, rows)
        for name in ("q_bias", "k_bias", "v_bias"):  # swin v2 keeps them beside the layer
            if (bias := getattr(layer.attention, name, None)) is not None:
                kept = bias.detach()[[i for i in range(len(bias)) if i not in set(idxs)]]
                setattr(layer.attention, name, nn.Parameter(kept) if isinstance(bias, nn.Parameter) else kept)
        return layer

    def prune_in_channels(self, layer: _Qkv, idxs: Sequence[int]) -> nn.Module:
        return _LINEAR.prune_in_channels(layer, idxs)

    def get_out_channels(self, layer: _Qkv) -> int:
        return layer.width()

    def get_in_channels(self, layer: _Qkv) -> int:
        return layer.in_features

    def get_out_channel_groups(self, layer: _Qkv) -> int:
        return layer.heads


class _Tied(_Qkv):
    """Where the width of a head is read off the input's: channel i of the input goes with channel i of the three."""


class _TiedPruner(_QkvPruner):
    def prune_out_channels(self, layer: _Qkv, idxs: Sequence[int]) -> nn.Module:
        super().prune_out_channels(layer, idxs)
        return super().prune_in_channels(layer, idxs)

    prune_in_channels = prune_out_channels  # Torch-Pruning's sign for: outputs follow inputs

    def get_in_channel_groups(self, layer: _Qkv) -> int:
        return layer.heads


_LINEAR, _LAYER_NORM = tp.pruner.function.LinearPruner(), tp.pruner.function.LayernormPruner()
_QKV_PRUNERS = {_Qkv: _QkvPruner(), _Tied: _TiedPruner()}


def _attention(
    kind: type[_Qkv], qkv: str = "qkv", proj: str = "proj", heads: str = "num_heads", by_head: bool = False
) -> Callable[[Any, Handling], Callable[[], None]]:
    """A handler of attention with one layer for queries, keys and values: [3, heads, width], or [heads, 3, width].

    Left out of the graph are masks, relative positions and the attention itself, none of which has channels.
    """

    def handle(attention: Any, handling: Handling) -> Callable[[], None]:
        layer, count = getattr(attention, qkv), getattr(attention, heads)
        original = type(layer)

        def width() -> int:
            return layer.out_features // 3

        def rows(i: int) -> list[int]:
            if not by_head:
                return [part * width() + i for part in range(3)]
            each = width() // count
            return [(3 * (i // each) + part) * each + i % each for part in range(3)]

        layer.__class__ = kind
        layer.attention, layer.heads, layer.width, layer.rows = _Unregistered(attention), count, width, rows
        handling.customized_pruners[kind] = _QKV_PRUNERS[kind]
        restore = _stand_in(attention, lambda x, *_, **__: getattr(attention, proj)(layer(x)))

        def undo() -> None:
            restore()
            layer.__class__ = original
            for name in ("attention", "heads", "width", "rows"):
                delattr(layer, name)

        return undo

    return handle


class _Unregistered:
    """A module held by one of its own layers, without becoming that layer's child."""

    def __init__(self, module: nn.Module) -> None:
        object.__setattr__(self, "module", module)

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "module"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(object.__getattribute__(self, "module"), name, value)


def _timm_attention(attention: Any, handling: Handling) -> Callable[[], None]:
    """timm's usual attention, a pattern that Torch-Pruning knows: heads are cut by themselves, and scored."""
    heads = attention.num_heads
    handling.num_heads[attention.qkv] = heads
    others = [getattr(attention, name, None) for name in ("q_norm", "k_norm", "norm", "gate")]
    if any(True for other in others if isinstance(other, nn.Module) for _ in other.parameters()):
        handling.ignored_layers.append(attention.qkv)  # these are as wide as the heads, which therefore stay

    def forward(x: Tensor, *_: Any, **__: Any) -> Tensor:
        batch, tokens, _width = x.shape
        q, k, v = attention.qkv(x).reshape(batch, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return attention.proj((q + k + v).transpose(1, 2).reshape(batch, tokens, -1))

    return _stand_in(attention, forward)


def _torch_attention(attention: nn.MultiheadAttention, handling: Handling) -> Callable[[], None]:
    """PyTorch's own: Torch-Pruning cuts heads and embedding together."""
    handling.out_channel_groups[attention] = attention.num_heads
    return lambda: None


class _PatchMergingPruner(tp.pruner.function.BasePruningFunc):  # type: ignore[misc]
    """Four neighbours side by side, each with all channels: input channel i is i, i + C, i + 2C and i + 3C."""

    def prune_in_channels(self, layer: Any, idxs: Sequence[int]) -> nn.Module:
        width = layer.reduction.in_features // 4
        columns = [part * width + i for part in range(4) for i in idxs]
        if layer.norm.normalized_shape[0] == layer.reduction.in_features:  # swin; v2 has its norm behind
            _LAYER_NORM.prune_out_channels(layer.norm, columns)
        _LINEAR.prune_in_channels(layer.reduction, columns)
        layer.dim = width - len(idxs)
        return layer

    def prune_out_channels(self, layer: Any, idxs: Sequence[int]) -> nn.Module:
        if layer.norm.normalized_shape[0] == layer.reduction.out_features:
            _LAYER_NORM.prune_out_channels(layer.norm, idxs)
        _LINEAR.prune_out_channels(layer.reduction, idxs)
        return layer

    def get_in_channels(self, layer: Any) -> int:
        return layer.reduction.in_features // 4

    def get_out_channels(self, layer: Any) -> int:
        return layer.reduction.out_features


_PATCH_MERGING = _PatchMergingPruner()


def _patch_merging(merging: Any, handling: Handling) -> Callable[[], None]:
    handling.customized_pruners[type(merging)] = _PATCH_MERGING

    def forward(x: Tensor) -> Tensor:
        batch, height, width, _channels = x.shape
        return _opaque(x, (batch, (height + 1) // 2, (width + 1) // 2, merging.reduction.out_features))

    return _stand_in(merging, forward)


def _partition(partition: Any, handling: Handling) -> Callable[[], None]:
    """torchvision's maxvit, from images to windows and back: the channels stay as they are."""
    real = partition.forward

    def forward(x: Tensor, *sizes: int) -> Tensor:
        with torch.no_grad():
            shape = real(x, *sizes).shape
        return _opaque(x, shape)

    return _stand_in(partition, forward)


def _shuffle_block(block: Any, handling: Handling) -> Callable[[], None]:
    """ShuffleNetV2: half of the channels goes through a branch, then both halves are shuffled.

    A block's width has to stay twice that of its branch, and a channel has another number after each block, so the
    widths of the stages stay and the inside of each branch is cut.
    """
    convolutions = [m for m in block.branch2 if isinstance(m, nn.Conv2d)]
    handling.ignored_layers.append(convolutions[-1])
    handling.ignored_layers.extend(m for m in block.branch1 if isinstance(m, nn.Conv2d) and m.groups == 1)

    def forward(x: Tensor) -> Tensor:
        if block.stride == 1:
            half = _opaque(x, (x.shape[0], x.shape[1] // 2, *x.shape[2:]))
            y = block.branch2(half)
            return _opaque(y, x.shape)
        y = block.branch2(x) + block.branch1(x)
        return _opaque(y, (y.shape[0], 2 * y.shape[1], *y.shape[2:]))

    return _stand_in(block, forward)


class _PaddedShortcutPruner(tp.pruner.function.BasePruningFunc):  # type: ignore[misc]
    """Inputs and outputs are cut each by themselves: an output whose input goes gets zeros from then on."""

    def prune_in_channels(self, layer: Any, idxs: Sequence[int]) -> nn.Module:
        gone = set(idxs)
        place = [0] * (layer.channels_in + 1)  # of each of the sources, zeros first, in what is left of the input
        kept = [i for i in range(layer.channels_in) if i not in gone]
        for number, i in enumerate(kept):
            place[i + 1] = number + 1
        layer.source = torch.tensor(place, device=layer.source.device)[layer.source]
        layer.channels_in = len(kept)
        return layer

    def prune_out_channels(self, layer: Any, idxs: Sequence[int]) -> nn.Module:
        gone = set(idxs)
        layer.source = layer.source[[i for i in range(len(layer.source)) if i not in gone]]
        return layer

    def get_in_channels(self, layer: Any) -> int:
        return int(layer.channels_in)

    def get_out_channels(self, layer: Any) -> int:
        return len(layer.source)


_PADDED_SHORTCUT = _PaddedShortcutPruner()


def _padded_shortcut(shortcut: Any, handling: Handling) -> Callable[[], None]:
    """Option A of ResNets for small images: no weights, but a width on each side, so a layer for the graph."""
    handling.customized_pruners[type(shortcut)] = _PADDED_SHORTCUT
    return _stand_in(shortcut, lambda x: _opaque(x, (x.shape[0], len(shortcut.source), *x.shape[2:])))


# To add a family: a handler that replaces what cannot be traced and returns how to undo it, and its row here.
_HANDLERS: dict[str, Callable[[Any, Handling], Callable[[], None]]] = {
    "torch.nn.modules.activation.MultiheadAttention": _torch_attention,
    "torchvision.models.swin_transformer.ShiftedWindowAttention": _attention(_Tied),
    "torchvision.models.swin_transformer.ShiftedWindowAttentionV2": _attention(_Tied),
    "torchvision.models.swin_transformer.PatchMerging": _patch_merging,
    "torchvision.models.swin_transformer.PatchMergingV2": _patch_merging,
    "torchvision.models.maxvit.RelativePositionalMultiHeadAttention": _attention(_Tied, "to_qkv", "merge", "n_heads"),
    "torchvision.models.maxvit.WindowPartition": _partition,
    "torchvision.models.maxvit.WindowDepartition": _partition,
    "torchvision.models.shufflenetv2.InvertedResidual": _shuffle_block,
    "thinner.networks.resnets.PaddedShortcut": _padded_shortcut,
    "timm.layers.attention.Attention": _timm_attention,
    "timm.models.swin_transformer.WindowAttention": _attention(_Qkv),
    "timm.models.swin_transformer.PatchMerging": _patch_merging,
    "timm.models.swin_transformer_v2.WindowAttention": _attention(_Tied),
    "timm.models.swin_transformer_v2.PatchMerging": _patch_merging,
    "timm.models.maxxvit.AttentionCl": _attention(_Qkv, by_head=True),
}


# ----------------------------------------------------------------------------------------------- after the cut


def _set_sizes(model: nn.Module) -> None:
    """What a network wrote down about itself and reads in its forward pass."""
    for module in model.modules():
        for kind, setter in _SIZES.items():
            if _is(module, kind):
                setter(module)


def _timm_heads(attention: Any) -> None:
    attention.attn_dim = attention.qkv.out_features // 3
    attention.head_dim = attention.attn_dim // attention.num_heads
    # PyTorch's fused attention scales by the width that it finds; timm's plain one, which other runtimes take, by this
    attention.scale = attention.head_dim**-0.5


def _timm_window_heads(attention: Any) -> None:
    attention.scale = (attention.proj.in_features // attention.num_heads) ** -0.5


def _timm_maxvit_heads(attention: Any) -> None:
    attention.dim_head = attention.proj.in_features // attention.num_heads
    attention.scale = attention.dim_head**-0.5


def _maxvit_heads(attention: Any) -> None:
    attention.head_dim = attention.to_qkv.in_features // attention.n_heads


def _vit_width(vit: Any) -> None:
    vit.hidden_dim = vit.conv_proj.out_channels


_SIZES: dict[str, Callable[[Any], None]] = {
    "timm.layers.attention.Attention": _timm_heads,
    "timm.models.maxxvit.AttentionCl": _timm_maxvit_heads,
    "timm.models.swin_transformer.WindowAttention": _timm_window_heads,
    "torchvision.models.maxvit.RelativePositionalMultiHeadAttention": _maxvit_heads,
    "torchvision.models.vision_transformer.VisionTransformer": _vit_width,
}


# ----------------------------------------------------------------------------------------------- what cannot be


def refusal(model: nn.Module) -> str | None:
    """Why networks of this class cannot be pruned; None when nothing is known against it."""
    return REFUSED.get(f"{type(model).__module__}.{type(model).__name__}")


REFUSED: dict[str, str] = {
    "timm.models.swin_transformer_v2_cr.SwinTransformerV2Cr": (
        "its blocks turn images into windows by reshapes that read as a change of channels"
    ),
}
