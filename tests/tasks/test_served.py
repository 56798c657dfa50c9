"""tasks/record/served.py: the pictures of a request, without a server."""

from __future__ import annotations

import base64
import io
import warnings
from typing import Any

import mlflow
import numpy as np
import pytest
from PIL import Image

with warnings.catch_warnings():  # MLflow looks at the class's hints, and would rather see no Any
    warnings.filterwarnings("ignore", "(?s).*Any type hint is inferred", UserWarning)
    from tasks.record import served

SQUARE: dict[str, Any] = {"image_size": 8, "channels": 3, "fit": "crop", "max_pixels": 400}


def request(picture: Image.Image, format: str) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format)
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize("format", ["PNG", "TIFF", "GIF", "WEBP", "AVIF", "PPM"])
def test_the_kinds_that_prepare_reads_are_read(format: str) -> None:
    square = served._decode(0, request(Image.new("RGB", (20, 20), "white"), format), SQUARE)
    assert (square == np.full((8, 8, 3), 255)).all()


@pytest.mark.parametrize(
    ("format", "side", "reason"),
    [
        ("EPS", 16, "is no picture of a kind that is read: JPEG, PNG"),  # Pillow would start Ghostscript for it
        ("PNG", 21, "has 441 pixels, more than data.max_pixels. To read it: max_pixels: 441"),
    ],
)
def test_what_prepare_would_not_read_is_refused_with_the_number_of_the_picture(
    format: str, side: int, reason: str
) -> None:
    text = request(Image.new("RGB", (side, side)), format)
    with pytest.raises(mlflow.exceptions.MlflowException, match=f"^image 3: .*{reason}"):
        served._decode(3, text, SQUARE)
