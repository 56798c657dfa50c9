"""Residual networks for small images, by name: the ones that papers on pruning and distillation use.

| name | network | from |
|---|---|---|
| ``resnetN`` | projections (option B); ``width`` and ``stem_stride`` are chosen | He et al. 2015 |
| ``resnetNa`` | widths 16, 32, 64; shortcuts without parameters (option A) | He et al. 2015, section 4.2 |
| ``resnetNx4`` | stem 32, widths 64, 128, 256; projections | Tian et al. 2020 |
| ``wrn-N-K`` | stem 16, widths 16 K, 32 K, 64 K; norms before convolutions | Zagoruyko & Komodakis 2016 |

Links: https://arxiv.org/abs/1512.03385, https://arxiv.org/abs/1910.10699, https://arxiv.org/abs/1605.07146.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from thinner.networks.spec import NetworkSpec

Shortcut = Literal["A", "B"]


class PaddedShortcut(nn.Module):
    """The shortcut without parameters (option A): channels as they are, then channels of zeros.

    ``source`` says for each output channel which one it is: 0 zeros, i + 1 channel i of the input. As made, that is
    1, 2, ..., C, 0, 0, ...; a cut takes entries out and may leave a channel without its partner (architectures.py).
    It is a buffer, so a checkpoint carries it.
    """

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.channels_in = channels_in
        source = torch.zeros(channels, dtype=torch.int64)
        source[:channels_in] = torch.arange(1, channels_in + 1)
        self.source: Tensor
        self.register_buffer("source", source)

    def forward(self, x: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch d h w"]:
        return F.pad(x, (0, 0, 0, 0, 1, 0)).index_select(1, self.source)


def _every_second(stride: int) -> nn.Module:
    """The pixels that a convolution of size 1 and of ``stride`` looks at.

    Every second pixel, then a convolution of stride 1: the same numbers as one of stride 2. That one wrote beyond its
    memory on a CPU (torch 2.14.1, fewer than 8 channels_in, channels_last, one thread), and a pruned network may have
    so few.
    """
    return nn.MaxPool2d(1, stride) if stride != 1 else nn.Identity()


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2015, figure 2, https://arxiv.org/abs/1512.03385).

    Where the shape changes: ``shortcut`` B is a convolution of size 1 and its norm, A is ``PaddedShortcut``.
    """

    def __init__(self, channels_in: int, channels: int, stride: int, shortcut: Shortcut = "B") -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        self.subsample = _every_second(stride)
        self.shortcut: nn.Module = nn.Identity()
        if (stride != 1 or channels_in != channels) and shortcut == "A":
            self.shortcut = PaddedShortcut(channels_in, channels)
        elif stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(nn.Conv2d(channels_in, channels, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch d i j"]:
        y = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(y)) + self.shortcut(self.subsample(x)))


class CifarResNet(nn.Module):
    """ResNet for small images: depth 6n+2, three stages of n blocks, the second and third at half the resolution.

    He et al. 2015, section 4.2 (https://arxiv.org/abs/1512.03385). ``stem``: channels of the first convolution, and
    ``widths`` those of the stages. ``stem_stride=2`` halves the resolution in the first convolution, which the paper
    does not do: a quarter of the MACs.
    """

    def __init__(
        self,
        depth: int,
        stem: int,
        widths: Sequence[int],
        stem_stride: int,
        shortcut: Shortcut,
        classes: int,
        channels: int,
    ) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.stem = nn.Sequential(
            nn.Conv2d(channels, stem, 3, stem_stride, 1, bias=False), nn.BatchNorm2d(stem), nn.ReLU()
        )
        self.stages = nn.Sequential(
            *(
                nn.Sequential(
                    *(
                        BasicBlock([stem, *widths][s] if b == 0 else out, out, 2 if s > 0 and b == 0 else 1, shortcut)
                        for b in range(blocks)
                    )
                )
                for s, out in enumerate(widths)
            )
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(widths[-1], classes)
        _start(self)

    def forward(self, x: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch classes"]:
        return self.fc(self.flatten(self.pool(self.stages(self.stem(x)))))


class PreactivationBlock(nn.Module):
    """Norm and ReLU before each of two 3x3 convolutions, and nothing behind the sum.

    Zagoruyko & Komodakis 2016 (https://arxiv.org/abs/1605.07146, table 1 and figure 1), after He et al. 2016
    (https://arxiv.org/abs/1603.05027). Where the number of channels changes, the projection looks at what the first
    norm gives. No dropout, as in the networks that the papers on distillation use.
    """

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.projects = channels_in != channels
        self.subsample = _every_second(stride)
        self.shortcut: nn.Module = nn.Conv2d(channels_in, channels, 1, bias=False) if self.projects else nn.Identity()

    def forward(self, x: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch d i j"]:
        ready = self.relu1(self.bn1(x))
        y = self.conv2(self.relu2(self.bn2(self.conv1(ready))))
        return y + self.shortcut(self.subsample(ready if self.projects else x))


class WideResNet(nn.Module):
    """Depth 6n+4, three stages of n blocks with 16, 32 and 64 channels times ``widen``; WRN-N-K of the paper.

    Zagoruyko & Komodakis 2016, table 1 (https://arxiv.org/abs/1605.07146).
    """

    def __init__(self, depth: int, widen: int, classes: int, channels: int) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        widths = [16, 16 * widen, 32 * widen, 64 * widen]
        self.stem = nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False)
        self.stages = nn.Sequential(
            *(
                nn.Sequential(
                    *(
                        PreactivationBlock(widths[s] if b == 0 else out, out, 2 if s > 0 and b == 0 else 1)
                        for b in range(blocks)
                    )
                )
                for s, out in enumerate(widths[1:])
            )
        )
        self.bn = nn.BatchNorm2d(widths[-1])
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(widths[-1], classes)
        _start(self)

    def forward(self, x: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch classes"]:
        return self.fc(self.flatten(self.pool(self.relu(self.bn(self.stages(self.stem(x)))))))


def _start(network: nn.Module) -> None:
    for module in network.modules():
        # of a skeleton there is nothing to draw, and PyTorch takes a second to find that out (it loads its compiler)
        if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


# ---------------------------------------------------------------------------------------------------- by name

_NAME = re.compile(r"resnet(?P<depth>\d{1,6})(?P<kind>a|x4)?|wrn-(?P<wide_depth>\d{1,6})-(?P<widen>\d{1,6})")
_DEEPEST = 1202  # the papers' own; a name in a file must not build for hours
_WIDEST = 100


def create(network: NetworkSpec) -> nn.Module:
    """``network``: as in ``models.create``; its name must be one that ``mistake`` finds nothing wrong with."""
    classes, channels, width, stride = network.classes, network.channels, network.width, network.stem_stride
    found = _NAME.fullmatch(network.name)
    if found is None:  # pragma: no cover - models.check_name was there before
        raise ValueError(network.name)
    if found["wide_depth"]:
        return WideResNet(int(found["wide_depth"]), int(found["widen"]), classes, channels)
    depth = int(found["depth"])
    if found["kind"] == "x4":
        return CifarResNet(depth, 32, (64, 128, 256), 1, "B", classes, channels)
    if found["kind"] == "a":
        return CifarResNet(depth, 16, (16, 32, 64), 1, "A", classes, channels)
    if width is None or stride is None:
        raise ValueError(f"{network.name}: width and stem_stride are {width} and {stride}. Give both")
    return CifarResNet(depth, width, (width, 2 * width, 4 * width), stride, "B", classes, channels)


def has_width(name: str) -> bool:
    """Whether ``width`` and ``stem_stride`` are chosen (``resnetN``), and not part of what the name means."""
    return bool(re.fullmatch(r"resnet\d+", name))


def is_ours(name: str) -> bool:
    """Whether the name has the form of one of these families; its numbers may be wrong all the same."""
    return bool(_NAME.fullmatch(name))


def mistake(name: str) -> str | None:
    """What is wrong with the numbers in a name of these families, and the nearest right one; None if nothing."""
    found = _NAME.fullmatch(name)
    if found is None:
        return f"'{name}' is none of resnetN, resnetNa, resnetNx4, wrn-N-K"
    if found["wide_depth"]:
        depth, widen = int(found["wide_depth"]), int(found["widen"])
        if depth > _DEEPEST or widen > _WIDEST:
            return f"unknown '{name}'. Depth is at most {_DEEPEST} and the factor at most {_WIDEST}"
        if depth >= 10 and (depth - 4) % 6 == 0 and widen >= 1:
            return None
        near = f"wrn-{6 * max(1, round((depth - 4) / 6)) + 4}-{max(1, widen)}"
        return f"unknown '{name}'. Depth is 6n+4 and the factor at least 1; the nearest is {near}"
    depth = int(found["depth"])
    if depth > _DEEPEST:
        return f"unknown '{name}'. Depth is at most {_DEEPEST}"
    if depth >= 8 and (depth - 2) % 6 == 0:
        return None
    return (
        f"unknown '{name}'. Depth is 6n+2; the nearest is "
        f"resnet{6 * max(1, round((depth - 2) / 6)) + 2}{found['kind'] or ''}"
    )


def names() -> list[str]:
    """Every name up to the depths that papers use; the families have no end."""
    depths = [6 * n + 2 for n in range(1, 19)]
    return [
        *(f"resnet{depth}" for depth in depths),
        *(f"resnet{depth}a" for depth in depths),
        *(f"resnet{depth}x4" for depth in depths[:5]),
        *(f"wrn-{depth}-{widen}" for depth in (10, 16, 22, 28, 34, 40) for widen in (1, 2, 4, 8, 10)),
    ]
