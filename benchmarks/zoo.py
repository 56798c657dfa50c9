"""Parameters and MACs of all of torchvision's classifiers, beside the figures that torchvision publishes.

    python -m benchmarks.zoo            # the table, for docs/zoo.md; exit code 1 where one differs

Networks are built on the meta device: no weights are made or downloaded, so this takes seconds.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch
from torchvision import models

from thinner.profiling import count_macs, count_params


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


def measure(name: str) -> Row:
    weights = models.get_model_weights(name).DEFAULT  # its description; the file is not asked for
    # with what the weights were trained with; eval mode leaves auxiliary classifiers out of the MACs
    auxiliary = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with torch.device("meta"):
        model = models.get_model(name, weights=None, **auxiliary)
    size = weights.transforms().crop_size[0]
    if auxiliary:  # published without them
        model.aux_logits = False
        for part in ("aux1", "aux2", "AuxLogits"):
            if hasattr(model, part):
                setattr(model, part, None)
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


def main() -> int:
    rows = [measure(name) for name in models.list_models(module=models)]
    different = [row.name for row in rows if not row.equal]
    print(render(rows))
    print(
        f"\n{len(rows) - len(different)} of {len(rows)} equal" + (f"; not: {', '.join(different)}" if different else "")
    )
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
