"""A bundle: a folder, and a zip of it, that names the class of pictures without this project and without PyTorch.

    model.onnx      takes uint8 pictures of any size: resizing and normalising are in the graph
    labels.json     classes, input, how a file becomes a square, temperature, operating points, SHA-256 of the model
    predict.py      numpy, onnxruntime and pillow; `python predict.py photo.jpg`
    golden.npz      pictures, and what the candidate answers to them, for `python predict.py --selftest`
    browser/        the same in JavaScript, with onnxruntime-web
    model-card.md   what it is, how good, made of what, and what is not known (thinner/ship/model_card.py)

Decoding is Pillow's on both sides, and its squares are of 8 bits: predict.py makes the very pixels that `prepare` does.
From there on all is the graph's. Equal candidates, numbers and commits give equal bytes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from thinner.data.views import Preprocessing
from thinner.errors import UserError
from thinner.files import whole
from thinner.measure.operating import Point
from thinner.networks import checkpoint, export
from thinner.predict import Candidate, open_candidate

MODEL, LABELS, GOLDEN, CARD, PROGRAM, BENCH = (
    "model.onnx", "labels.json", "golden.npz", "model-card.md", "predict.py", "bench.py",
)  # fmt: skip
PROGRAMS = Path(__file__).resolve().parent / "bundled"
# Sizes that are neither square nor the network's, smaller and larger: what a graph that does not resize as PyTorch does
# gets wrong. (height, width) in px
ODD_SIZES = ((97, 61), (19, 45))
TOLERANCE = 1e-4  # between logits
# A network in 8 bits rounds: an input that differs in its last digit may round the other way, and all behind it follows
INT8_TOLERANCE = 0.5

Pictures = UInt8[np.ndarray, "pictures height width channels"]


@dataclass(frozen=True)
class Model:
    """What `write_model` wrote."""

    spec: Mapping[str, Any]  # the candidate's model.json
    sha256: str
    source_sha256: str  # of the candidate's own file
    runtime: str  # which one the candidate itself runs in: its answers are the golden ones
    int8: bool


def write_model(source: Path, target: Path, channels: int, opset: int) -> Model:
    """Write the candidate in ``source`` to ``target`` as ONNX that takes pictures: a checkpoint is exported, an export
    gets its preprocessing in front, if it has none yet. Raises UserError for an export of another format."""
    model = _write_network(source, target, max(opset, export.ANTIALIASED), "bundle another candidate")
    if model.spec.get("input") != "pixels":
        about = {**_about(model.spec), "input": "pixels"}
        export.add_preprocessing(target, Preprocessing.from_json(model.spec["preprocessing"]), channels, about)
    return replace(model, sha256=whole.file_sha256(target))


def _about(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {"classes": spec["classes"], "preprocessing": spec["preprocessing"]}


def _write_network(source: Path, target: Path, opset: int, instead: str) -> Model:
    """The candidate as ONNX as it is, or exported: without preprocessing, unless it has it already."""
    spec = checkpoint.read_spec(source)
    if (source / MODEL).is_file():
        digest, runtime = checkpoint.check_file(source / MODEL), "onnxruntime"
        shutil.copyfile(source / MODEL, target)
        for path in source.glob(f"{MODEL}.*"):  # weights beyond 2 GB lie beside it
            shutil.copyfile(path, target.with_name(path.name))
    elif (source / checkpoint.WEIGHTS).is_file():
        loaded, runtime = checkpoint.load(source), "pytorch"
        digest = loaded.sha256
        export.export_onnx(loaded.model, target, _shape(spec), _about(spec), opset, instead)
    else:
        known = ", ".join(path.name for path in sorted(source.glob("model.*"))) or "nothing"
        raise UserError(
            f"{source}: holds {known}, of which no ONNX file can be made. Bundle the network that it was made of"
        )
    return Model(spec, whole.file_sha256(target), digest, runtime, "int8" in str(spec.get("format", "")))


def _shape(spec: Mapping[str, Any]) -> tuple[int, int, int]:
    """Of one preprocessed picture: channels, height, width."""
    return Preprocessing.from_json(spec["preprocessing"]).shape


def write_bench(folder: Path, sources: Mapping[str, Path], opset: int) -> list[str]:
    """Write bench.py and the folder ``bench`` with the networks in ``sources`` (candidate -> folder), without their
    preprocessing: the network alone is timed, as evaluate does. Returns the names of those that there are.

    Left out is what no ONNX file can be made of, what has its preprocessing in the graph, and an ONNX export of a
    network that is there by itself: it would be exported to the same.
    """
    (folder / "bench").mkdir()
    networks: dict[str, dict[str, Any]] = {}
    for name, source in sources.items():
        of_another = name.endswith("_onnx") and name.removesuffix("_onnx") in sources
        known = any((source / file).is_file() for file in (MODEL, checkpoint.WEIGHTS))
        if not known or of_another or checkpoint.read_spec(source).get("input") == "pixels":
            continue
        target = folder / "bench" / f"{name}.onnx"
        # before that version few networks can be written
        model = _write_network(source, target, max(opset, export.ANTIALIASED), "leave --bench out")
        networks[name] = {
            "file": target.name,
            "sha256": model.sha256,
            "weights_sha256": model.source_sha256,
            "input": list(_shape(model.spec)),
        }
    text = json.dumps(networks, indent=2) + "\n"
    (folder / "bench" / "networks.json").write_text(text, encoding="utf-8")
    shutil.copyfile(PROGRAMS / BENCH, folder / BENCH)
    return list(networks)


def write_golden(path: Path, source: Path, model: Path, pictures: Pictures, tolerance: float) -> float:
    """Write ``pictures`` and pictures of noise of `ODD_SIZES` to ``path``, with the logits of the candidate in
    ``source``; returns how far those of ``model`` are from them at most. Raises ExportError beyond ``tolerance``.

    The arrays are ``pictures_SIZE`` (uint8 [n, height, width, channels]) and ``logits_SIZE`` (float32 [n, classes]).
    """
    candidate, session = open_candidate(source, threads=1), export.open_session(model, threads=1)
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (2, *size, pictures.shape[3]), dtype=np.uint8) for size in ODD_SIZES]
    arrays: dict[str, np.ndarray] = {}
    worst = 0.0
    for some in (pictures, *noise):
        expected = np.concatenate([_answer(candidate, picture[None]) for picture in some])
        for got in (export.run_session(session, some), _one_by_one(session, some)):
            worst = float(np.maximum(worst, np.abs(got.astype(np.float64) - expected).max()))  # keeps NaN
        name = f"{some.shape[1]}x{some.shape[2]}"
        arrays[f"pictures_{name}"], arrays[f"logits_{name}"] = some, expected.astype(np.float32)
    if not worst <= tolerance:  # written so that NaN fails
        raise export.ExportError(
            f"{model.name}: logits differ from those of {source} by up to {worst:.2e}, allowed are {tolerance:.0e}. "
            "Try another export.opset"
        )
    np.savez(path, allow_pickle=False, **arrays)
    return worst


def _answer(candidate: Candidate, picture: Pictures) -> np.ndarray:
    return candidate.collect(candidate.run(candidate.place(candidate.preprocess(picture))))


def _one_by_one(session: Any, pictures: Pictures) -> np.ndarray:
    return np.concatenate([export.run_session(session, picture[None]) for picture in pictures])


def write_labels(
    path: Path,
    candidate: str,
    model: Model,
    picture: Mapping[str, Any],
    channels: int,
    temperature: float | None,
    points: Sequence[Point],
    tolerance: float,
) -> None:
    """What predict.py, and who writes the like in another language, has to know of model.onnx.

    ``picture``: image_size (px), fit, max_pixels; as `prepare` made its squares.
    """
    about = {
        "candidate": candidate,
        "classes": list(model.spec["classes"]),
        "input": {
            "name": export.PIXELS,
            "dtype": "uint8",
            "shape": ["batch", "height", "width", channels],
            "channels": channels,
            "meaning": f"0 is black, 255 is white; {'grey' if channels == 1 else 'red, green, blue'}",
        },
        "output": {"name": export.OUTPUT, "dtype": "float32", "shape": ["batch", len(model.spec["classes"])]},
        "picture": dict(picture),
        "temperature": 1.0 if temperature is None else temperature,
        "calibrated": temperature is not None,
        "operating_points": [asdict(point) for point in points],
        "golden_tolerance": tolerance,
        "model_sha256": model.sha256,
    }
    path.write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def copy_programs(folder: Path) -> None:
    """predict.py, and the page for the browser."""
    shutil.copyfile(PROGRAMS / PROGRAM, folder / PROGRAM)
    shutil.copytree(PROGRAMS / "browser", folder / "browser", ignore=shutil.ignore_patterns("__pycache__"))


def archive_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.zip")


def _is_of_bundle(archive: Path, name: str) -> bool:
    try:
        with zipfile.ZipFile(archive) as opened:
            return f"{name}/{LABELS}" in opened.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


@contextlib.contextmanager
def new_folder(out: Path, over: bool = False) -> Iterator[Path]:
    """A folder to write a bundle into; when all went well it is ``out``, with ``out``.zip beside it, else nothing.

    Raises UserError where one of them is there already, unless ``over``.
    """
    if not out.name:
        raise UserError(f"--out {out}: names no new folder. Give one, such as bundles/prune")
    there = [place for place in (out, archive_of(out)) if os.path.lexists(place)]
    if there and not over:
        raise UserError(
            f"{there[0]}: is there already. Give --out another place, or replace it: thinner bundle --replace"
        )
    if there and os.path.lexists(out) and not (out / LABELS).is_file():
        raise UserError(f"{out}: is no bundle, so it is not replaced. Give --out another place")
    if archive_of(out) in there and not _is_of_bundle(archive_of(out), out.name):
        raise UserError(f"{archive_of(out)}: is of no bundle, so it is not replaced. Give --out another place")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=out.parent) as beside:
        folder, archive, old = (Path(beside) / name for name in ("folder", "archive.zip", "old"))
        folder.mkdir()
        yield folder
        _zip(folder, archive, out.name)
        if out.exists():
            out.rename(old)
        folder.rename(out)
        archive.replace(archive_of(out))


def _zip(folder: Path, target: Path, name: str) -> None:
    """The files of ``folder`` below ``name``/, without times or owners: equal files give an equal archive."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            entry = zipfile.ZipInfo(f"{name}/{path.relative_to(folder).as_posix()}")  # dated 1980
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, path.read_bytes())
