"""Common corruptions of stored pictures: noise, blur, contrast, JPEG, each at three severities.

How much of a network's accuracy is left on pictures that are worse than those it learned from: Hendrycks & Dietterich
2019, https://arxiv.org/abs/1903.12261. The strengths are theirs, severities 1, 3 and 5 of five: of ImageNet-C, but for
the blur, which is that of CIFAR-10-C, scaled from 32 pixels to the picture's side. Not here: their other corruptions.

A corrupted picture depends on (picture, its number, corruption, severity, seed) alone: batch size and order change
nothing.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image
from scipy.ndimage import gaussian_filter

Images = UInt8[np.ndarray, "images height width channels"]
Numbers = Integer[np.ndarray, " images"]

SEVERITIES = (1, 2, 3)
NOISE = (0.08, 0.18, 0.38)  # standard deviation, of a range of 0 to 1
BLUR = (0.4, 0.7, 1.0)  # standard deviation in pixels, of a picture of 32
CONTRAST = (0.4, 0.2, 0.05)  # what is left of it
JPEG = (25, 15, 7)  # quality, of 100


def corrupt(images: Images, index: Numbers, name: str, severity: int, seed: int) -> Images:
    """The pictures whose numbers are ``index``, corrupted; the originals stay as they are.

    ``name`` is one of `CORRUPTIONS`, ``severity`` one of `SEVERITIES`; KeyError and ValueError else.
    """
    if severity not in SEVERITIES:
        raise ValueError(f"severity {severity}: choose one of {', '.join(map(str, SEVERITIES))}")
    return CORRUPTIONS[name](images, index, severity - 1, seed)


def _noise(images: Images, index: Numbers, level: int, seed: int) -> Images:
    """Gaussian, of every pixel and channel by itself."""
    noise = [np.random.default_rng([seed, level, int(i)]).standard_normal(images.shape[1:]) for i in index]
    return _to_bytes(images + 255 * NOISE[level] * np.array(noise))


def _blur(images: Images, index: Numbers, level: int, seed: int) -> Images:
    """Gaussian."""
    sigma = BLUR[level] * images.shape[1] / 32
    return _to_bytes(gaussian_filter(images.astype(np.float64), (0, sigma, sigma, 0), mode="mirror"))


def _contrast(images: Images, index: Numbers, level: int, seed: int) -> Images:
    """Every channel is pulled towards its mean over the picture."""
    mean = images.mean(axis=(1, 2), keepdims=True)
    return _to_bytes((images - mean) * CONTRAST[level] + mean)


def _jpeg(images: Images, index: Numbers, level: int, seed: int) -> Images:
    """Written as JPEG and read again, by Pillow."""
    out = np.empty_like(images)
    for number, image in enumerate(images):
        buffer = io.BytesIO()
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "JPEG", quality=JPEG[level])
        out[number] = np.asarray(Image.open(buffer)).reshape(image.shape)
    return out


def _to_bytes(values: np.ndarray) -> Images:
    return np.asarray(values.round().clip(0, 255).astype(np.uint8))


CORRUPTIONS: dict[str, Callable[[Images, Numbers, int, int], Images]] = {
    "noise": _noise,
    "blur": _blur,
    "contrast": _contrast,
    "jpeg": _jpeg,
}
