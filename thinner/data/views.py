"""A view: one augmented version of an image, a pure function of (seed, image number, view number).

Nothing here has a state. The parameters of a view come from a counter-based generator keyed by the three numbers,
so the order of the images, the batch size, the number of workers and restarts change nothing: the teacher that
looked at view 3 of image 17 yesterday and the student that trains on it today saw the same picture. A view is a
motion of the image's plane, not of its pixels, so it can be drawn at any resolution: the teacher sees it at 64
pixels and the student at 32.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

Images = UInt8[np.ndarray, "batch height width channels"]
Stored = UInt8[Tensor, "batch height width channels"]  # the same on a device


@dataclass(frozen=True)
class Policy:
    """How far a view may stray from its image. All at rest (``Policy()``) draws the image itself."""

    crop: float = 1.0  # the smallest side that a crop may have, ratio of the image's side
    flip: bool = False
    rotation_degrees: float = 0.0
    translation: float = 0.0  # ratio of the image's side
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    erase: float = 0.0  # probability that a rectangle is erased

    @property
    def still(self) -> bool:
        return asdict(self) == asdict(Policy())


_DRAWS = 13  # random numbers per view; a new use takes a new column, or every stored view changes its meaning

_LUMA = (0.299, 0.587, 0.114)  # red, green, blue: ITU-R BT.601


def random_numbers(
    seed: int, index: Int[np.ndarray, " batch"], view: int | Int[np.ndarray, " batch"]
) -> Float[np.ndarray, "batch draws"]:
    """Uniform numbers in [0, 1): SplitMix64 (Steele et al. 2014, https://doi.org/10.1145/2660193.2660195) as a hash
    of seed, image number, view number and column."""
    with np.errstate(over="ignore"):
        state = _mix(np.asarray(np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15) + np.asarray(view).astype(np.uint64)))
        keys = _mix(state ^ _mix(index.astype(np.uint64) + np.uint64(1)))
        columns = np.arange(1, _DRAWS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        bits = _mix(keys[:, None] + columns[None, :])
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))


def draw(
    images: Images | Stored,
    index: Int[np.ndarray, " batch"],
    view: int | Int[np.ndarray, " batch"],
    *,
    size: int,
    seed: int,
    policy: Policy,
    device: torch.device | str = "cpu",
) -> Float[Tensor, "batch channels size size"]:
    """View number ``view`` (one for all, or one each) of the images whose numbers are ``index``, as floats 0 to 1
    at ``size`` pixels.

    Where the stored image is larger than ``size``, it is first reduced with antialiasing, then moved.
    """
    pixels = to_pixels(images, device)
    if policy.still:
        return resize(pixels, size)
    if pixels.shape[-1] > size:
        pixels = resize(pixels, size)
    u = random_numbers(seed, np.asarray(index), view)
    signed = 2.0 * u - 1.0
    scale = 1.0 - (1.0 - policy.crop) * u[:, 0]
    room = 1.0 - scale
    shift_x = signed[:, 1] * room + 2.0 * policy.translation * signed[:, 2]
    shift_y = signed[:, 3] * room + 2.0 * policy.translation * signed[:, 4]
    angle = np.deg2rad(policy.rotation_degrees) * signed[:, 5]
    mirror = np.where(u[:, 6] < 0.5, -1.0, 1.0) if policy.flip else np.ones(len(u))
    cosine, sine = np.cos(angle) * scale, np.sin(angle) * scale

    # every number of every view, in one copy to the device
    numbers = {
        "along": cosine * mirror,
        "across": sine * mirror,
        "sine": sine,
        "cosine": cosine,
        "x": shift_x,
        "y": shift_y,
        "contrast": 1.0 + policy.contrast * signed[:, 7],
        "brightness": policy.brightness * signed[:, 8],
        "saturation": 1.0 + policy.saturation * signed[:, 12],
        "chosen": u[:, 9],
        "left": signed[:, 10],
        "top": signed[:, 11],
    }
    there = send(torch.from_numpy(np.stack(list(numbers.values())).astype(np.float32)), pixels.device)
    columns = {name: row.view(-1, 1, 1) for name, row in zip(numbers, there, strict=True)}

    # The grid is made element by element. affine_grid would use a matrix product, whose rounding depends on the
    # batch size, and then a view would no longer be a function of its three numbers alone.
    centre = (torch.arange(size, device=pixels.device, dtype=torch.float32) + 0.5) * (2.0 / size) - 1.0
    x, y = centre.view(1, 1, -1), centre.view(1, -1, 1)
    grid_x = columns["along"] * x - columns["sine"] * y + columns["x"]
    grid_y = columns["across"] * x + columns["cosine"] * y + columns["y"]
    out = F.grid_sample(
        pixels, torch.stack((grid_x, grid_y), dim=-1), mode="bilinear", padding_mode="border", align_corners=False
    )
    if policy.contrast:
        out = (out - 0.5) * columns["contrast"][..., None] + 0.5
    if policy.brightness:
        out = out + columns["brightness"][..., None]
    if policy.saturation and out.shape[1] == 3:
        luma = (_LUMA[0] * out[:, 0] + _LUMA[1] * out[:, 1] + _LUMA[2] * out[:, 2])[:, None]
        out = luma + (out - luma) * columns["saturation"][..., None]
    if policy.contrast or policy.brightness or policy.saturation:
        out = out.clamp(0.0, 1.0)
    if policy.erase:
        # a square of a quarter of the area, mid-grey: a colour that needs no statistics of the image
        chosen = columns["chosen"] < policy.erase
        hole = chosen & ((x - columns["left"]).abs() < 0.5) & ((y - columns["top"]).abs() < 0.5)
        out = torch.where(hole[:, None], torch.full_like(out, 0.5), out)
    return out


def send(tensor: Tensor, device: torch.device | str) -> Tensor:
    """``tensor`` on ``device``; to a CUDA device from pinned memory, so that nobody waits for the copy: what the same
    stream computes next comes after it."""
    if torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def _per_channel(values: list[float], like: Tensor) -> Float[Tensor, "1 channels 1 1"]:
    cuda = like.device.type == "cuda"
    numbers = send(torch.tensor(values, dtype=like.dtype), like.device) if cuda else like.new_tensor(values)
    return numbers.view(1, -1, 1, 1)


def to_pixels(
    images: Images | Stored, device: torch.device | str = "cpu"
) -> Float[Tensor, "batch channels height width"]:
    """uint8 HWC to float CHW, 0 to 1."""
    if isinstance(images, Tensor):
        batch = images.to(device)
    else:
        # a slice of a read-only memory map would make a tensor that PyTorch may not write to, and warns about
        images = np.ascontiguousarray(images) if images.flags.writeable else images.copy()
        batch = send(torch.from_numpy(images), device)
    return batch.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).div_(255.0)


def resize(
    pixels: Float[Tensor, "batch channels height width"], size: int
) -> Float[Tensor, "batch channels size size"]:
    if pixels.shape[-2:] == (size, size):
        return pixels
    return F.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True, align_corners=False)


def normalise(
    pixels: Float[Tensor, "batch channels height width"], mean: list[float], std: list[float]
) -> Float[Tensor, "batch colours height width"]:
    """Grey becomes three equal channels where ``mean`` has three values; then ``(x - mean) / std``."""
    if pixels.shape[1] == 1 and len(mean) == 3:
        pixels = pixels.expand(-1, 3, -1, -1)
    return (pixels - _per_channel(mean, pixels)) / _per_channel(std, pixels)


def laid_out_for(model: nn.Module, images: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch c h w"]:
    """``images`` in the memory format of the network's convolutions: a mismatch costs a copy in every layer."""
    for parameter in model.parameters():
        if parameter.ndim == 4 and not parameter.is_contiguous():
            return images.contiguous(memory_format=torch.channels_last)
    return images.contiguous()


def preprocess(
    images: Images, preprocessing: dict[str, object], device: torch.device | str = "cpu"
) -> Float[Tensor, "batch colours size size"]:
    """What a network sees of unaugmented images; ``preprocessing`` is the entry of a checkpoint's spec
    (``image_size``, ``mean``, ``std``)."""
    size, mean, std = preprocessing["image_size"], preprocessing["mean"], preprocessing["std"]
    if not isinstance(size, int) or not isinstance(mean, list) or not isinstance(std, list):
        raise TypeError(f"preprocessing needs image_size: int, mean: list, std: list; got {preprocessing}")
    return normalise(resize(to_pixels(images, device), size), mean, std)
