"""A page of pictures to look through, one HTML file that needs nothing but a browser."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np
from jaxtyping import UInt8
from markupsafe import Markup
from PIL import Image

SIDE_PX = 192  # a larger picture is shown reduced, so that the page stays small


@dataclass(frozen=True)
class Card:
    """Pictures side by side, a caption under each, and a line on all of them."""

    pictures: Sequence[tuple[UInt8[np.ndarray, "height width channels"], Sequence[str]]]
    line: str


@dataclass(frozen=True)
class Section:
    title: str
    note: str
    cards: Sequence[Card]


def render(title: str, lead: Sequence[str], sections: Sequence[Section], figures: Sequence[Markup] = ()) -> str:
    """``figures``: SVG, shown between ``lead`` and the pictures."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["png"] = _png
    beside = max((len(card.pictures) for section in sections for card in section.cards), default=1)
    return environment.get_template("pictures.html.j2").render(
        title=title, lead=lead, sections=sections, figures=figures, width_px=150 * beside
    )


def _png(image: UInt8[np.ndarray, "height width channels"]) -> str:
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    picture.thumbnail((SIDE_PX, SIDE_PX))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
