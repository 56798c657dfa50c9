"""Parameters and MACs of all of torchvision's classifiers, beside the figures that torchvision publishes.

    python -m benchmarks.zoo                     # all of them; exit code 1 where one differs
    python -m benchmarks.zoo resnet18 vit_b_16   # some

Networks are built on the meta device: no weights are made or downloaded, so this takes seconds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torchvision import models

from thinner.measure.profiling import count_macs, count_params


@dataclass(frozen=True)
class Row:
    name: str
    image_size: int
    params: int
    published_params: int
    macs: int
    published_gmacs: float  # published with three decimals, under the name of GFLOPS

    @property
    def equal(self) -> bool:
        """Equal to all digits that are published. torchvision rounds a half up, and Python to even: both are taken."""
        return self.params == self.published_params and abs(self.macs / 1e9 - self.published_gmacs) <= 0.0005 + 1e-9


class _WithoutWeights(TorchFunctionMode):
    """What becomes weights is made on the meta device. ``torch.device("meta")`` would take the small tensors as well
    with which RegNet works out its widths."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.empty, torch.zeros, torch.ones) and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def measure(name: str) -> Row:
    weights = models.get_model_weights(name).DEFAULT  # its description; the file is not asked for
    size = weights.transforms().crop_size[0]
    options: dict[str, Any] = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    if name.startswith("vit_"):  # its positions are made for one size
        options = {"image_size": size}
    with _WithoutWeights():
        model = models.get_model(name, weights=None, **options)
    if name == "googlenet":  # published without its auxiliary classifiers, inception_v3 with
        model.aux1 = model.aux2 = None
    return Row(
        name,
        size,
        count_params(model),
        weights.meta["num_params"],
        count_macs(model, (3, size, size)),
        weights.meta["_ops"],
    )


def render(rows: list[Row]) -> str:
    lines = [
        "| network | image size, px | parameters | published | GMACs | published | equal |",
        "|---|--:|--:|--:|--:|--:|---|",
    ]
    lines += [
        f"| {r.name} | {r.image_size} | {r.params:,} | {r.published_params:,} | {r.macs / 1e9:.3f} "
        f"| {r.published_gmacs:.3f} | {'yes' if r.equal else '**no**'} |"
        for r in rows
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("network", nargs="*", help="a name of torchvision's, for example resnet18; none: all of them")
    names = parser.parse_args(argv).network
    known = models.list_models(module=models)
    if unknown := [name for name in names if name not in known]:
        parser.error(f"unknown: {', '.join(unknown)}. torchvision has: {', '.join(known)}")
    rows = []
    for name in names or known:
        rows.append(measure(name))
        print(name, "" if rows[-1].equal else "differs", file=sys.stderr, flush=True)
    different = [row.name for row in rows if not row.equal]
    print(render(rows))
    print(
        f"\n{len(rows) - len(different)} of {len(rows)} equal" + (f"; not: {', '.join(different)}" if different else "")
    )
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
