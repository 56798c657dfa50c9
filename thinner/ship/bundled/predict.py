"""Names the class of pictures with the network beside this file. It needs numpy, onnxruntime and pillow, nothing else.

    python predict.py photo.jpg more/*.png       a line of CSV for each picture: file,class,probability
    python predict.py --at-least 98 photo.jpg    'unsure' where fewer than 98 % of such answers would be right
    python predict.py --selftest                 does this machine compute what the maker's computed?

Or from Python, in this folder:

    import predict
    network = predict.Network()
    network.name("photo.jpg")                    ("cat", 0.97)

Exit code 0: at least one picture was named, or the self-test holds; what could not be read has a line of its own, on
stderr. 1: none was named, or it does not hold. 2: the call or a file of the bundle is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import functools
import hashlib
import importlib.util
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps, UnidentifiedImageError

HERE = Path(__file__).resolve().parent
# By content, whatever a file is called. No other of Pillow's readers is tried: that of EPS starts a program.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "HEIF", "JXL")
# ending -> (module, package) of Pillow's readers that are installed by themselves
LIBRARIES = {
    ".heic": ("pillow_heif", "pillow-heif"),
    ".heif": ("pillow_heif", "pillow-heif"),
    ".jxl": ("pillow_jxl", "pillow-jxl-plugin"),
}
ENDINGS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm",
    ".avif", *LIBRARIES,
)  # fmt: skip
UNSURE = "unsure"


class RefusedError(Exception):
    """What a person can mend; its text is the whole message."""


class Network:
    """model.onnx and what labels.json says of it."""

    def __init__(self, folder: Path = HERE, threads: int = 0) -> None:
        try:
            self.about: dict[str, Any] = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
            self.classes: list[str] = self.about["classes"]
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads  # 0: one per core
            self.session = onnxruntime.InferenceSession(
                str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the runtime has a dozen kinds for a file that is missing or damaged
            raise RefusedError(f"{folder}: no whole bundle here ({one_line(error)}). Unpack it again") from error

    def name(self, picture: str | os.PathLike[str], at_least: float | None = None) -> tuple[str, float]:
        """The class of a picture's file, and its probability. ``at_least``: percent of such answers that are right, one
        of the bundle's operating points; an answer that is not that sure is 'unsure'."""
        logits = self.logits(self.decode(picture)[None])[0]
        sure = at_least is None or log_odds(logits) >= self.threshold(at_least)
        shares = softmax(logits / self.about["temperature"])
        return self.classes[int(logits.argmax())] if sure else UNSURE, float(shares.max())

    def threshold(self, at_least: float) -> float:
        """From which log-odds on an answer is given."""
        points = {100 * point["at_least"]: point["log_odds"] for point in self.about["operating_points"]}
        for percent, odds in points.items():
            if math.isclose(percent, at_least):
                return math.inf if odds is None else odds
        choices = ", ".join(f"{percent:g}" for percent in points)
        raise RefusedError(
            f"--at-least {at_least:g}: no such operating point. "
            + (f"Choose one of: {choices}" if points else "This bundle has none")
        )

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        """float32 [batch, classes] of uint8 pictures [batch, height, width, channels] of any size, 0 is black.

        Resizing and normalising are part of model.onnx; oblong pictures are stretched: `decode` makes squares.
        """
        channels = self.about["input"]["channels"]
        if pixels.dtype != np.uint8:
            raise RefusedError(f"pixels: {pixels.dtype}, but the model takes uint8: 0 is black, 255 is white")
        if pixels.ndim != 4:
            raise RefusedError(
                f"pixels: {list(pixels.shape)} has {pixels.ndim} dimensions, but the model takes 4: batch, height, "
                "width, channels. Of one picture: pixels[None]"
            )
        if pixels.shape[3] != channels or 0 in pixels.shape:
            raise RefusedError(
                f"pixels: {list(pixels.shape)}, but the model takes [batch, height, width, {channels}], none of them 0"
            )
        found: np.ndarray = self.session.run(["logits"], {self.about["input"]["name"]: pixels})[0]
        return found

    def decode(self, picture: str | os.PathLike[str]) -> np.ndarray:
        """A picture's file as uint8 [side, side, channels]: upright, 8 bits, square, as the network's data were stored.

        Raises RefusedError where it is no picture.
        """
        how = self.about["picture"]
        side, mode = how["image_size"], "L" if self.about["input"]["channels"] == 1 else "RGB"
        Image.MAX_IMAGE_PIXELS = None  # ours is below, and counts what is decoded
        try:
            if not Path(picture).is_file():
                raise FileNotFoundError("no such file")
            with Image.open(picture, formats=readable()) as opened:
                pixels = opened.width * opened.height
                if opened.format in ("JPEG", "MPO"):  # leaves out detail beyond twice the wanted size
                    opened.draft(None, (2 * side, 2 * side))
                    if not opened.info.get("progressive"):
                        pixels = opened.width * opened.height
                if pixels > how["max_pixels"]:
                    raise ValueError(f"has {pixels:,} pixels; max_pixels in labels.json is {how['max_pixels']:,}")
                opened.load()
                ImageOps.exif_transpose(opened, in_place=True)
                image = eight_bits(opened, mode)
        except Exception as error:  # Pillow has a dozen kinds for a damaged file
            of_another = missing(picture) if isinstance(error, UnidentifiedImageError) else ""
            raise RefusedError(f"{shown(picture)}: {of_another or one_line(error)}") from error
        if image.width != image.height:
            fits: dict[str, Any] = {"crop": ImageOps.fit, "pad": padded, "stretch": Image.Image.resize}
            image = fits[how["fit"]](image, (side, side), Image.Resampling.BILINEAR)
        elif image.width != side:
            image = image.resize((side, side), Image.Resampling.BILINEAR)
        return np.asarray(image, dtype=np.uint8).reshape(side, side, -1)


def padded(image: Image.Image, size: tuple[int, int], method: Image.Resampling) -> Image.Image:
    """With black bars. Of a picture so long that Pillow's would leave nothing of it, a line of one pixel stays."""
    if 2 * min(image.size) * max(size) <= max(image.size):
        image = image.resize((size[0], 1) if image.width > image.height else (1, size[1]), method)
    return ImageOps.pad(image, size, method)


def eight_bits(image: Image.Image, mode: str) -> Image.Image:
    """In grey (L) or colour (RGB): 16-bit grey scaled, not clipped; what is transparent becomes white."""
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64)
        if grey.min(initial=0) < 0 or grey.max(initial=0) > 65535:
            raise ValueError("more than 16 bits per pixel")
        return Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8)).convert(mode)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range; convert the file to 8 or 16 bits")
    if image.mode in ("LA", "La", "PA", "RGBa", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image).convert("RGB")
    return image if image.mode == mode else image.convert(mode)


@functools.cache
def readable() -> list[str]:
    Image.init()
    for module, _ in LIBRARIES.values():
        with contextlib.suppress(ImportError):
            library = importlib.import_module(module)
            if hasattr(library, "register_heif_opener"):
                library.register_heif_opener()
    return [name for name in FORMATS if name in Image.OPEN]


def missing(picture: str | os.PathLike[str]) -> str:
    """Which package would read a file of this ending, if that is not here; else nothing."""
    module, package = LIBRARIES.get(Path(picture).suffix.lower(), ("", ""))
    if not module or importlib.util.find_spec(module):
        return ""
    return f"is read by a package that is not here: pip install {package}"


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits.astype(np.float64) - logits.max())
    return powers / powers.sum()


def log_odds(logits: np.ndarray) -> float:
    """log(p / (1 - p)) of the top class: the threshold of an operating point is one of these, without temperature."""
    *rest, top = np.sort(logits.astype(np.float64))
    return float(top - rest[-1] - np.log(np.exp(np.array(rest) - rest[-1]).sum()))


def selftest(network: Network, folder: Path = HERE) -> bool:
    """Compares with the maker's logits for the pictures in golden.npz, and says in one line how it came out."""
    expected = network.about["model_sha256"]
    if (digest := hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()) != expected:
        print(f"self-test: model.onnx has SHA-256 {digest[:12]}, labels.json says {expected[:12]}: DOES NOT HOLD")
        return False
    with np.load(folder / "golden.npz", allow_pickle=False) as golden:
        sets = sorted(key.removeprefix("pictures_") for key in golden.files if key.startswith("pictures_"))
        pairs = [(network.logits(golden[f"pictures_{key}"]), golden[f"logits_{key}"]) for key in sets]
    got, wanted = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    difference = float(np.abs(got.astype(np.float64) - wanted).max())
    same = int((got.argmax(axis=1) == wanted.argmax(axis=1)).sum())
    allowed = network.about["golden_tolerance"]
    holds = difference <= allowed  # NaN does not
    print(
        f"self-test: {len(wanted)} pictures of {len(sets)} sizes, the class is the maker's for {same}, logits within "
        f"{difference:.1e} of the maker's, allowed {allowed:.0e}: {'holds' if holds else 'DOES NOT HOLD'}"
    )
    return holds


def files_of(path: str | os.PathLike[str]) -> list[str | os.PathLike[str]]:
    """The file itself; of a folder all pictures in it and below, sorted."""
    if not Path(path).is_dir():
        return [path]
    found = sorted(file for file in Path(path).rglob("*") if file.suffix.lower() in ENDINGS and file.name[0] != ".")
    if not found:
        raise RefusedError(f"{shown(path)}: no picture in this folder. Its name has to end with {', '.join(ENDINGS)}")
    return list(found)


def one_line(what: object) -> str:
    return "".join(sign if sign.isprintable() else " " for sign in " ".join(str(what).split()) or type(what).__name__)


def shown(path: str | os.PathLike[str]) -> str:
    """A file's name, with nothing in it that moves a terminal's cursor."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in os.fspath(path))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Name the class of pictures: a line of CSV for each.")
    parser.add_argument("pictures", nargs="*", help=f"files or folders; read are {', '.join(FORMATS)}")
    parser.add_argument("--at-least", type=float, metavar="PERCENT", help="'unsure' below this operating point")
    parser.add_argument("--selftest", action="store_true", help="compare with the maker's answers")
    asked = parser.parse_args(arguments)
    try:
        network = Network()
        if asked.selftest:
            return 0 if selftest(network) else 1
        if not asked.pictures:
            raise RefusedError("no picture. Name one or more: python predict.py photo.jpg")
        if asked.at_least is not None and math.isinf(network.threshold(asked.at_least)):
            print(
                f"--at-least {asked.at_least:g}: of no confidence of this network could so much be shown, so every "
                "answer is 'unsure'",
                file=sys.stderr,
            )
        pictures = [file for path in asked.pictures for file in files_of(path)]
    except RefusedError as error:
        print(error, file=sys.stderr)
        return 2
    rows = csv.writer(sys.stdout, lineterminator="\n")
    rows.writerow(("file", "class", "probability"))
    named = 0
    for picture in pictures:
        try:
            label, probability = network.name(picture, asked.at_least)
        except RefusedError as error:
            print(error, file=sys.stderr)
        else:
            named += 1
            rows.writerow((shown(picture), label, f"{probability:.4f}"))
            sys.stdout.flush()
    return 0 if named else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:  # whoever read our lines has enough of them, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
