"""A network that a run made, in Python: open its folder, give it pictures.

    import thinner
    net = thinner.load("data/prune")            # or data/export/prune_onnx, or data/distill, ...
    answer = net.predict("photo.jpg")           # a path, a PIL image, or a uint8 array
    answer.label, answer.confidence, answer.probabilities

`thinner predict` does the same, by this code. The package itself imports this module only when one of its names is
asked for, so `import thinner` costs nothing.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, overload

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps
from scipy.special import softmax

from thinner.config import read_params
from thinner.data import sources, store
from thinner.errors import UserError, one_line
from thinner.evidence import decision
from thinner.evidence.shipping import find_temperature
from thinner.files import json_files
from thinner.measure import operating
from thinner.networks import checkpoint
from thinner.predict import Candidate, open_candidate, weights_sha256

# an array: [height, width] or [height, width, 3], uint8, 0 is black
Picture: TypeAlias = str | os.PathLike[str] | Image.Image | np.ndarray
AnyPicture = TypeVar("AnyPicture", bound=Picture)


class UnreadablePictureError(UserError):
    """This one picture cannot be decoded; ``reason`` says why, without its name."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.reason = reason


@dataclass(frozen=True)
class Prediction:
    """What a network says of one picture."""

    label: str
    confidence: float  # probability of the label, 0 to 1: the largest of those below
    probabilities: Mapping[str, float]  # class -> 0 to 1, in the order of the network's classes; their sum is 1
    log_odds: float = math.nan  # log(p / (1 - p)) of the label without temperature: what operating points look at


@dataclass(frozen=True)
class Network:
    """An opened network; made by `load`."""

    folder: Path
    classes: tuple[str, ...]
    # divides the logits: fitted by evaluate on validation images (Guo et al. 2017, https://arxiv.org/abs/1706.04599).
    # None: evaluate has not measured this network, and its confidences are the softmax's own.
    temperature: float | None
    # from which log-odds on to answer, so that a share of the answers is right: fitted by evaluate as well; may be none
    operating_points: tuple[operating.Point, ...]
    _candidate: Candidate = field(repr=False)
    _as_stored: partial[Any] = field(repr=False)  # a picture as prepare's square

    @property
    def square(self) -> tuple[int, int]:
        """(px, channels) of what `decode` gives."""
        return self._as_stored.keywords["image_size"], self._as_stored.keywords["channels"]

    @overload
    def predict(self, images: Picture) -> Prediction: ...
    @overload
    def predict(self, images: list[AnyPicture] | tuple[AnyPicture, ...]) -> list[Prediction]: ...
    def predict(self, images: Any) -> Prediction | list[Prediction]:
        """Name the class of a picture, or of each in a list; they may differ in size and kind.

        A path is read as `prepare` reads its pictures: a large JPEG is decoded reduced, so that the same file opened by
        PIL may differ in the last digits. Of a PIL image the EXIF orientation counts, and it stays as it is.

        Raises:
            UserError: a picture cannot be read (UnreadablePictureError), an array is of another type or shape, or the
                folder's model does not run.
        """
        if isinstance(images, list | tuple):
            return [self._name(self.decode(image)) for image in images]
        return self._name(self.decode(images))

    def decode(self, image: Picture) -> UInt8[np.ndarray, "side side channels"]:
        """The picture as this network's data were stored by `prepare`: a square of ``data.image_size`` px."""
        if isinstance(image, np.ndarray):
            name, read = "the array", partial(Image.fromarray, _checked(image))
        elif isinstance(image, Image.Image):
            name, read = "the image", partial(ImageOps.exif_transpose, image)  # a copy, which decode may close
        elif isinstance(image, str | os.PathLike):
            name, read = str(image), partial(sources.open_picture, image)
        else:
            raise UserError(
                f"predict: {type(image).__name__} is no picture. Give a path, a PIL image, a uint8 array, or a list of "
                "those"
            )
        try:
            return self._as_stored(read)
        except store.UnreadableError as error:
            raise UnreadablePictureError(name, str(error)) from error

    def _name(self, image: UInt8[np.ndarray, "side side channels"]) -> Prediction:
        candidate = self._candidate
        try:
            logits = candidate.collect(candidate.run(candidate.place(candidate.preprocess(image[None]))))
        except Exception as error:  # a graph that somebody else made may fail at any of its operators
            raise UserError(
                f"{self.folder}: this model does not run on a picture ({one_line(error)}). Make it again: thinner run"
            ) from error
        if logits.shape != (1, len(self.classes)):
            raise UserError(
                f"{self.folder}: this model gives {list(logits.shape)} numbers for a picture, and {checkpoint.SPEC} "
                f"has {len(self.classes)} classes. Take the two files of one folder"
            )
        shares = softmax((logits[0] / (self.temperature or 1.0)).astype(np.float64))
        label = self.classes[int(logits[0].argmax())]
        odds = float(operating.log_odds(logits)[0])
        return Prediction(label, float(shares.max()), dict(zip(self.classes, shares.tolist(), strict=True)), odds)


def load(
    folder: str | os.PathLike[str], *, params: str | os.PathLike[str] | None = None, device: str = "cpu"
) -> Network:
    """Open the network in ``folder``: data/NAME of a stage, data/prune_also/NAME, data/export/NAME, or
    data/quantize/NAME.

    How a picture becomes the network's input stands in data/prepared, if that is what it learned from, else in the
    ``data`` section of params.yaml, and the temperature of its confidences in reports/metrics.json: all are looked for
    in the repository around ``folder``. Of a folder that was
    copied elsewhere ``params`` names that file. ``device`` ("cpu", "cuda", "mps") matters to PyTorch only.

    Raises:
        UserError: there is no model in the folder, it is damaged, or there is no params.yaml.
    """
    folder = Path(folder)
    file = _params_around(folder) if params is None else Path(params)
    root = Path(os.path.abspath(file)).parent
    data = read_params(file).data  # where a notebook runs, none of the other sections' files need lie
    candidate = open_candidate(folder, device)
    how: dict[str, Any] = {"image_size": data.image_size, "channels": data.channels, "fit": data.fit}
    how |= _prepared_for(root, candidate.spec, how)
    as_stored = partial(store.decode, **how, max_pixels=data.max_pixels)
    name = _candidate_in(root, folder)
    measured = name is not None and is_measured(root, name, folder)
    temperature = find_temperature(root, name) if name is not None and measured else None
    points = tuple(operating.read_points(root / operating.FILE).get(name or "", ()) if measured else ())
    return Network(folder, tuple(candidate.spec["classes"]), temperature, points, candidate, as_stored)


def _prepared_for(root: Path, spec: Mapping[str, Any], how: Mapping[str, Any]) -> dict[str, Any]:
    """What the data that the network learned from say of ``how`` pictures are stored, where they still lie here:
    params.yaml may have changed since."""
    path = root / "data" / "prepared" / "info.json"
    if not path.is_file():
        return {}
    info = json_files.read_object(path, "Make it again: dvc repro prepare")
    return {key: info[key] for key in how if key in info} if info.get("sha256") == spec.get("data_sha256") else {}


def is_measured(root: Path, candidate: str, folder: Path) -> bool:
    """Whether what evaluate left (temperature, operating points) is of the weights in ``folder``, and not of those that
    lay there before. Where no hash of them was left it is taken to be."""
    path = root / "reports" / "evaluate" / "environment.json"
    if not path.is_file():
        return True
    weights = json_files.read_object(path, "Make it again: dvc repro evaluate").get("weights_sha256")
    known = weights.get(candidate) if isinstance(weights, dict) else None
    return known is None or known == weights_sha256(folder)


def _params_around(folder: Path) -> Path:
    here = Path(os.path.abspath(folder))  # not resolve(): a link of DVC's leads into its cache
    for place in here.parents:
        if (place / "params.yaml").is_file() and (place / "dvc.yaml").is_file():
            return place / "params.yaml"
    raise UserError(
        f"{folder}: no params.yaml around it says how a picture becomes its input. Name the one that it was made with: "
        f"thinner.load({str(folder)!r}, params='params.yaml')"
    )


def _candidate_in(root: Path, folder: Path) -> str | None:
    """What the pipeline calls the network in ``folder``; None where it lies at none of the pipeline's places."""
    try:
        parts = Path(os.path.abspath(folder)).relative_to(root / "data").parts
    except ValueError:
        return None
    match parts:
        case ("prune_also", source):
            return f"prune_{source}"
        case ("self_train", *_):
            return next((name for name, place in decision.FOLDERS.items() if place == "/".join(parts)), None)
        case ("export" | "quantize", name) | (name,):
            return str(name)
    return None


def _checked(array: np.ndarray) -> np.ndarray:
    """The array without its channel where that is one."""
    shape = array.shape[:-1] if array.ndim == 3 and array.shape[-1] == 1 else array.shape
    if array.dtype != np.uint8 or 0 in shape or not (len(shape) == 2 or (len(shape) == 3 and shape[2] == 3)):
        raise UserError(
            f"predict: an array of {array.dtype} {list(array.shape)} is no picture. Give uint8 [height, width] or "
            "[height, width, 3], with 0 for black and 255 for white"
        )
    return array.reshape(shape)
