"""How a network is described in ``model.json``, so that it can be built again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class NetworkSpec:
    """What ``models.create`` builds, with as many outputs as there are classes. Pruning is described apart from it."""

    name: str
    classes: int
    channels: int  # of its input: 1 or 3
    width: int | None = None  # of resnetN alone
    stem_stride: int | None = None  # of resnetN alone
    image_size: int | None = None  # px; of timm's networks for one size, where it is another (`models.sized`)
    code_sha256: str | None = None  # of networks of one's own: the file that makes it

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> NetworkSpec:
        """The entry ``network`` of a checkpoint's spec; what it does not name, or not by these names, is left out."""
        return cls(**{field.name: entry[field.name] for field in dataclasses.fields(cls) if field.name in entry})

    def as_json(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if value is not None}
