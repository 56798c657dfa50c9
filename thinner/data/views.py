"""A view: one augmented version of an image, a pure function of (seed, image number, view number).

Nothing here has a state. The parameters of a view come from a counter-based generator keyed by the three numbers,
so the order of the images, the batch size, the number of workers and restarts change nothing: the teacher that
looked at view 3 of image 17 yesterday and the student that trains on it today saw the same picture. A view is a
motion of the image's plane, not of its pixels, so it can be drawn at any resolution: the teacher sees it at 64
pixels and the student at 32. Of a stored image that is larger than that, a crop shows the pixels that are there
(`level_sides`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

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
    aspect: float = 1.0  # the least ratio of a crop's sides, either way
    policy: str | None = None  # trivialaugment, or none

    def __post_init__(self) -> None:
        if self.policy not in (None, "trivialaugment"):
            raise ValueError(f"policy: unknown '{self.policy}'. Choose one of: trivialaugment, None")

    @property
    def still(self) -> bool:
        return self == Policy()


_DRAWS = 17  # random numbers per view; a new use takes a new column, or every stored view changes its meaning

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

    The motion is one affine map, so pixels are mixed once. Past the image's border its last pixels go on. Where the
    stored image is larger than ``size``, the view is drawn from it as large as its crop needs (`level_sides`).
    """
    pixels = to_pixels(images, device)
    if policy.still:
        return resize(pixels, size)
    u = random_numbers(seed, np.asarray(index), view)
    signed = 2.0 * u - 1.0
    motion, scale = _motions(u, policy)
    operation, strength = np.empty(0, dtype=np.int64), {}
    if policy.policy is not None:
        operation, drawn = _operations(u)
        motion, strength = _after(motion, operation, drawn), {"strength": drawn}

    # every number of every view, in one copy to the device
    numbers = {
        **motion,
        "contrast": 1.0 + policy.contrast * signed[:, 7],
        "brightness": policy.brightness * signed[:, 8],
        "saturation": 1.0 + policy.saturation * signed[:, 12],
        "chosen": u[:, 9],
        "left": signed[:, 10],
        "top": signed[:, 11],
        **strength,
    }
    there = send(torch.from_numpy(np.stack(list(numbers.values())).astype(np.float32)), pixels.device)
    columns = {name: row.view(-1, 1, 1) for name, row in zip(numbers, there, strict=True)}

    # The grid is made element by element. affine_grid would use a matrix product, whose rounding depends on the
    # batch size, and then a view would no longer be a function of its three numbers alone.
    centre = (torch.arange(size, device=pixels.device, dtype=torch.float32) + 0.5) * (2.0 / size) - 1.0
    x, y = centre.view(1, 1, -1), centre.view(1, -1, 1)
    grid_x = columns["xx"] * x + columns["xy"] * y + columns["x"]
    grid_y = columns["yx"] * x + columns["yy"] * y + columns["y"]
    out = _sampled(pixels, torch.stack((grid_x, grid_y), dim=-1), level_sides(pixels.shape[-1], size, scale))
    if policy.contrast:
        out = (out - 0.5) * columns["contrast"][..., None] + 0.5
    if policy.brightness:
        out = out + columns["brightness"][..., None]
    if policy.saturation and out.shape[1] == 3:
        luma = (_LUMA[0] * out[:, 0] + _LUMA[1] * out[:, 1] + _LUMA[2] * out[:, 2])[:, None]
        out = luma + (out - luma) * columns["saturation"][..., None]
    if policy.contrast or policy.brightness or policy.saturation:
        out = out.clamp(0.0, 1.0)
    for number in np.unique(operation) if policy.policy is not None else ():
        if (change := _PIXELS.get(OPERATIONS[number])) is not None:
            rows = _rows(operation == number, out)
            out[rows] = change(out[rows], columns["strength"][rows][..., None])
    if policy.erase:
        # a square of a quarter of the area, mid-grey: a colour that needs no statistics of the image
        chosen = columns["chosen"] < policy.erase
        hole = chosen & ((x - columns["left"]).abs() < 0.5) & ((y - columns["top"]).abs() < 0.5)
        out = torch.where(hole[:, None], torch.full_like(out, 0.5), out)
    return out


def _motions(
    u: Float[np.ndarray, "batch draws"], policy: Policy
) -> tuple[dict[str, Float[np.ndarray, " batch"]], Float[np.ndarray, " batch"]]:
    """Where each view looks: the affine map from its coordinates (-1 to 1, right and down) to the image's,
    (x, y) -> (xx x + xy y + x, yx x + yy y + y); and the side of its crop, the root of its area, ratio of the image's.

    ``aspect``: the ratio of the sides is log-uniform between it and its inverse, as in torchvision's
    RandomResizedCrop, after Szegedy et al. 2015 (https://arxiv.org/abs/1409.4842, section 6). A crop that would leave
    the image is made smaller, in its shape.
    """
    signed = 2.0 * u - 1.0
    scale = 1.0 - (1.0 - policy.crop) * u[:, 0]
    wide = tall = scale
    if policy.aspect != 1.0:
        stretch = policy.aspect ** (-0.5 * signed[:, 13])
        scale = np.minimum(scale, 1.0 / np.maximum(stretch, 1.0 / stretch))
        wide, tall = scale * stretch, scale / stretch
    angle = np.deg2rad(policy.rotation_degrees) * signed[:, 5]
    mirror = np.where(u[:, 6] < 0.5, -1.0, 1.0) if policy.flip else np.ones(len(u))
    motion = {
        "xx": np.cos(angle) * wide * mirror,
        "xy": -(np.sin(angle) * tall),
        "x": signed[:, 1] * (1.0 - wide) + 2.0 * policy.translation * signed[:, 2],
        "yx": np.sin(angle) * wide * mirror,
        "yy": np.cos(angle) * tall,
        "y": signed[:, 3] * (1.0 - tall) + 2.0 * policy.translation * signed[:, 4],
    }
    return motion, scale


def level_sides(stored: int, size: int, scale: Float[np.ndarray, " batch"]) -> Int[np.ndarray, " batch"]:
    """How large, px, the picture is that each view is drawn from, where ``stored`` is the side that there is.

    An image that was reduced to ``size`` before it is cropped has lost what the crop would show, and training sees
    blurred what evaluation shows sharp. So a crop of ``scale`` sides is drawn from a picture of ``size`` / ``scale``
    pixels a side, rounded to quarters of an octave (size * 2^(k/4), never more than ``stored``): pixel for pixel
    within 9 %, and few sizes in a batch, each image reduced once. The whole image (scale 1) is drawn from exactly what
    evaluation shows. What is stored no larger than ``size`` is taken as it is. Objects in crops still look larger than
    in evaluation (Touvron et al. 2019, https://arxiv.org/abs/1906.06423).
    """
    quarters = np.rint(-4.0 * np.log2(scale))
    return np.minimum(stored, np.rint(size * 2.0 ** (quarters / 4.0))).astype(np.int64)


def _sampled(
    pixels: Float[Tensor, "batch channels height width"],
    grid: Float[Tensor, "batch size size 2"],
    sides: Int[np.ndarray, " batch"],
) -> Float[Tensor, "batch channels size size"]:
    """Each image, reduced with antialiasing to its own of ``sides``, at the places of ``grid`` (-1 to 1)."""

    def sample(images: Tensor, side: int, places: Tensor) -> Tensor:
        return F.grid_sample(resize(images, side), places, mode="bilinear", padding_mode="border", align_corners=False)

    if len(sides) and (sides == sides[0]).all():
        return sample(pixels, int(sides[0]), grid)
    out = pixels.new_empty(*pixels.shape[:2], *grid.shape[1:3])
    for side in np.unique(sides):  # never the whole batch at every level: each image is reduced once
        rows = _rows(sides == side, pixels)
        out[rows] = sample(pixels[rows], int(side), grid[rows])
    return out


def _rows(chosen: Any, like: Tensor) -> Int[Tensor, " rows"]:
    return send(torch.from_numpy(np.flatnonzero(chosen)), like.device)


def send(tensor: Tensor, device: torch.device | str) -> Tensor:
    """``tensor`` on ``device``; to a CUDA device from pinned memory, so that nobody waits for the copy: what the same
    stream computes next comes after it."""
    if torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


# -------------------------------------------------------------------------------------------------- TrivialAugment

# One of these and one of 31 strengths for each view: TrivialAugment (Müller & Hutter 2021,
# https://arxiv.org/abs/2103.10158) with the paper's space "Wide", as torchvision's TrivialAugmentWide has it.
# What differs: pictures are moved together with the crop, so that pixels are mixed once, bilinearly, and what moves in
# from outside is what the image has there, or its border, and not black; a translation is a share of the side (32 of
# the 224 pixels of the paper's ImageNet), so that it is the same at every resolution.
OPERATIONS = (
    "identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "color", "contrast",
    "sharpness", "posterize", "solarize", "autocontrast", "equalize",
)  # fmt: skip
_STRENGTHS = 31
_WIDE = {"shear": 0.99, "translate": 32 / 224, "rotate": 135.0, "blend": 0.99, "posterize": 6}  # at full strength


def _operations(u: Float[np.ndarray, "batch draws"]) -> tuple[Int[np.ndarray, " batch"], Float[np.ndarray, " batch"]]:
    """(number in `OPERATIONS`, strength from -1 to 1) of each view."""
    strength = np.floor(_STRENGTHS * u[:, 15]) / (_STRENGTHS - 1)
    return np.floor(len(OPERATIONS) * u[:, 14]).astype(np.int64), np.where(u[:, 16] < 0.5, -strength, strength)


def _after(
    motion: dict[str, Float[np.ndarray, " batch"]],
    operation: Int[np.ndarray, " batch"],
    strength: Float[np.ndarray, " batch"],
) -> dict[str, Float[np.ndarray, " batch"]]:
    """``motion`` of what ``operation`` then moves: where a pixel comes from, the two maps one inside the other."""

    def much(name: str, most: float) -> Float[np.ndarray, " batch"]:
        return np.where(operation == OPERATIONS.index(name), most * strength, 0.0)

    angle = np.deg2rad(much("rotate", _WIDE["rotate"]))  # about the centre; shears leave the upper left corner
    shear_x, shear_y = much("shear_x", _WIDE["shear"]), much("shear_y", _WIDE["shear"])
    own = {
        "xx": np.cos(angle),
        "xy": shear_x - np.sin(angle),
        "x": shear_x - 2.0 * much("translate_x", _WIDE["translate"]),
        "yx": shear_y + np.sin(angle),
        "yy": np.cos(angle),
        "y": shear_y - 2.0 * much("translate_y", _WIDE["translate"]),
    }
    both = {f"{row}{own_row}": motion[f"{row}x"] * own[f"x{own_row}"] + motion[f"{row}y"] * own[f"y{own_row}"]
            for row in "xy" for own_row in "xy"}  # fmt: skip
    shift = {row: motion[f"{row}x"] * own["x"] + motion[f"{row}y"] * own["y"] + motion[row] for row in "xy"}
    return both | shift


Pictures = Float[Tensor, "rows channels size size"]
Strength = Float[Tensor, "rows 1 1 1"]  # -1 to 1


def _luma(x: Pictures) -> Float[Tensor, "rows 1 size size"]:
    return x if x.shape[1] == 1 else (_LUMA[0] * x[:, 0] + _LUMA[1] * x[:, 1] + _LUMA[2] * x[:, 2])[:, None]


def _blend(x: Pictures, other: Tensor, strength: Strength) -> Pictures:
    return (other + (x - other) * (1.0 + _WIDE["blend"] * strength)).clamp(0.0, 1.0)


def _in_8_bits(x: Pictures) -> Int[Tensor, "rows channels size size"]:
    return (255.0 * x).round().to(torch.int64)


def _contrast(x: Pictures, strength: Strength) -> Pictures:
    # a sum of whole numbers is the same in every order, so on every device and in every batch
    whole = (_luma(x) * 2.0**20).round().to(torch.int64).sum(dim=(1, 2, 3), keepdim=True)
    return _blend(x, whole.to(x.dtype) / (2.0**20 * x.shape[-2] * x.shape[-1]), strength)


def _sharpness(x: Pictures, strength: Strength) -> Pictures:
    """Against a 3 x 3 blur whose centre counts five times; the border stays."""
    height, width = x.shape[-2:]
    smooth = x.clone()
    inner = 4.0 * x[..., 1:-1, 1:-1]
    for row in range(3):
        for column in range(3):
            inner = inner + x[..., row : height - 2 + row, column : width - 2 + column]
    smooth[..., 1:-1, 1:-1] = inner / 13.0
    return _blend(x, smooth, strength)


def _posterize(x: Pictures, strength: Strength) -> Pictures:
    off = (_WIDE["posterize"] * strength.abs()).round().to(torch.int64)  # bits of 8
    return ((_in_8_bits(x) >> off) << off).to(x.dtype) / 255.0


def _solarize(x: Pictures, strength: Strength) -> Pictures:
    limit = (510.0 * (1.0 - strength.abs())).round() / 2.0  # of 255; rounded, as strengths are thirtieths
    return torch.where(_in_8_bits(x) >= limit, 1.0 - x, x)


def _autocontrast(x: Pictures, strength: Strength) -> Pictures:
    eight = _in_8_bits(x)  # or the rounding of a picture of one colour would be blown up to black and white
    low, high = (bound.to(x.dtype) / 255.0 for bound in (eight.amin((2, 3), True), eight.amax((2, 3), True)))
    flat = high == low
    return torch.where(flat, x, ((x - low) / torch.where(flat, torch.ones_like(low), high - low)).clamp(0.0, 1.0))


def _equalize(x: Pictures, strength: Strength) -> Pictures:
    """A flat histogram of each channel, as Pillow has it: the last level that is there does not count."""
    eight = _in_8_bits(x).flatten(2)
    counts = torch.zeros(*eight.shape[:2], 256, dtype=torch.int64, device=x.device)
    counts.scatter_add_(2, eight, torch.ones_like(eight))
    step = (eight.shape[2] - counts.gather(2, eight.amax(dim=2, keepdim=True))) // 255
    before = counts.cumsum(2) - counts
    table = ((before + step // 2) // step.clamp(min=1)).clamp(0, 255)
    return torch.where(step == 0, eight, table.gather(2, eight)).view(x.shape).to(x.dtype) / 255.0


_PIXELS: dict[str, Callable[[Pictures, Strength], Pictures]] = {
    "brightness": lambda x, strength: _blend(x, torch.zeros_like(x), strength),
    "color": lambda x, strength: _blend(x, _luma(x), strength),
    "contrast": _contrast,
    "sharpness": _sharpness,
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
}


# ------------------------------------------------------------------------------------------- what a network sees


def _per_channel(values: Sequence[float], like: Tensor) -> Float[Tensor, "1 channels 1 1"]:
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
    pixels: Float[Tensor, "batch channels height width"], mean: Sequence[float], std: Sequence[float]
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


@runtime_checkable
class Section(Protocol):
    """What of a network's section in params.yaml says how it sees."""

    image_size: int
    mean: list[float]
    std: list[float]


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes a network's input: a square of ``image_size`` px, of which ``(pixels - mean) / std`` is
    taken in each channel. Pixels are 0 to 1."""

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, section: Section) -> Preprocessing:
        """As a section of params.yaml has it."""
        return cls(section.image_size, tuple(section.mean), tuple(section.std))

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Preprocessing:
        """The entry ``preprocessing`` of a checkpoint's spec."""
        return cls(entry["image_size"], tuple(entry["mean"]), tuple(entry["std"]))

    def as_json(self) -> dict[str, Any]:
        return {
            "channels": self.channels, "image_size": self.image_size, "mean": list(self.mean), "std": list(self.std),
        }  # fmt: skip

    @property
    def channels(self) -> int:
        return len(self.mean)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image that the network is given: channels, height, width."""
        return self.channels, self.image_size, self.image_size


def preprocess(
    images: Images, preprocessing: Preprocessing, device: torch.device | str = "cpu"
) -> Float[Tensor, "batch colours size size"]:
    """What a network sees of unaugmented images."""
    size, mean, std = preprocessing.image_size, preprocessing.mean, preprocessing.std
    return normalise(resize(to_pixels(images, device), size), mean, std)
