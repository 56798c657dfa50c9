"""The teacher's signals for a number of views of every training image: computed once, kept on disk.

In the folder, with V views, N images, C classes:

- ``logits.npy`` float16 [V, N, C], each row less its centre (half the sum of its largest and smallest value), because
  float16 is finest around zero; ``centres.npy`` float32 [V, N]
- ``index.npy`` int64 [N], sorted image numbers; ``signals.json`` what the set was made of
- with ``top_k``: ``logits.npy`` is [V, N, k], the k largest, ``classes.npy`` int32 [V, N, k] whose they are, and
  ``rest.npy`` float32 [V, N] the log of the summed exponentials of all others
- ``features-0.npy``, ... float16 [V, N, *shape]: outputs of layers of the first teacher, whole or pooled

A teacher is whatever answers for views of images; several are averaged. The set is exact: each answer is for the very
view that the student will see (thinner.data.views), rounded to float16 and to nothing else, unless ``top_k`` is set.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from thinner.data import views
from thinner.data.ahead import in_advance
from thinner.errors import DamagedError, UserError, one_line
from thinner.files import json_files, whole
from thinner.files.mapped import open_array, read_arrays, read_rows
from thinner.networks import models

_HALF = 65504.0  # the largest float16
_MOST_CLASSES = 1_000_000
_MARK_EVERY = 20  # batches; a run that was killed goes on from there


class SignalsError(UserError):
    """Teacher signals are missing or do not fit what is asked of them."""


# ---------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Signals:
    """A set on disk, opened; the arrays stay there until looked at."""

    scores: npt.NDArray[np.float16]
    centres: npt.NDArray[np.float32]
    index: npt.NDArray[np.int64]
    info: dict[str, Any]
    classes: npt.NDArray[np.int32] | None = None
    rest: npt.NDArray[np.float32] | None = None
    maps: Mapping[str, npt.NDArray[np.float16]] = field(default_factory=dict)

    def logits(
        self, index: Int[np.ndarray, " batch"], view: Int[np.ndarray, " batch"], device: torch.device | str = "cpu"
    ) -> Float[Tensor, "batch classes"]:
        """What the teacher said of these views.

        With ``top_k`` the classes that were not kept share what probability is left in equal parts (marginal
        smoothing, Shen & Xing 2021, https://arxiv.org/abs/2112.01528, section 3.2): the probabilities of the kept ones
        and the sum of the others are the teacher's, at temperature 1.
        """
        row = self._rows(index)
        centre = read_rows(self.centres, (view, row))[:, None]
        values = read_rows(self.scores, (view, row)).astype(np.float32) + centre
        if self.classes is not None and self.rest is not None:
            count = int(self.info["classes"])
            each = read_rows(self.rest, (view, row))[:, None] - np.log(max(1, count - values.shape[1]))
            chosen = read_rows(self.classes, (view, row)).astype(np.int64)
            if chosen.min(initial=0) < 0 or chosen.max(initial=0) >= count:
                raise SignalsError(
                    f"the teacher's signals are damaged: classes.npy names others than the {count} classes. "
                    "Make them again: thinner stage teach"
                )
            dense = np.broadcast_to(each, (len(row), count)).astype(np.float32)
            np.put_along_axis(dense, chosen, values, axis=1)
            values = dense
        return views.send(torch.from_numpy(values), device)

    def features(
        self, index: Int[np.ndarray, " batch"], view: Int[np.ndarray, " batch"], device: torch.device | str = "cpu"
    ) -> dict[str, Tensor]:
        """The kept layers' outputs for these views, by module path, float32 ``[batch, *shape]``."""
        row = self._rows(index)
        return {
            layer: views.send(torch.from_numpy(read_rows(values, (view, row)).astype(np.float32)), device)
            for layer, values in self.maps.items()
        }

    def only(self, layers: Sequence[str]) -> Signals:
        """The same set with the features of ``layers`` only: reading the others would cost time for nothing."""
        return Signals(
            self.scores, self.centres, self.index, self.info, self.classes, self.rest,
            {layer: self.maps[layer] for layer in layers},
        )  # fmt: skip

    def _rows(self, index: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        row = np.searchsorted(self.index, index)
        if (row >= len(self.index)).any() or (self.index[np.minimum(row, len(self.index) - 1)] != index).any():
            raise SignalsError("the teacher has no signals for some of these images. Make them: thinner stage teach")
        return row


def open_signals(folder: str | Path) -> Signals:
    folder = Path(folder)

    try:
        info = json_files.read_object(folder / "signals.json", "")
        kept = info.get("features", [])
        if not isinstance(kept, list) or any(json_files.lacking(one, {"layer": json_files.is_text}) for one in kept):
            raise DamagedError(f"signals.json has features: {one_line(repr(kept), 60)}")
        names = ["logits", "centres", *(["classes", "rest"] if info.get("top_k") is not None else [])]
        arrays = {name: open_array(folder / f"{name}.npy") for name in names}
        maps = {one["layer"]: open_array(folder / f"features-{n}.npy") for n, one in enumerate(kept)}
        index = np.array(open_array(folder / "index.npy"))
        _check_set(info, index, arrays, maps)
    except (FileNotFoundError, DamagedError) as error:
        raise SignalsError(
            f"{folder}: no whole set of teacher signals ({one_line(error)}). Make it: thinner stage teach"
        ) from error
    return Signals(arrays["logits"], arrays["centres"], index, info, arrays.get("classes"), arrays.get("rest"), maps)


def _check_set(
    info: Mapping[str, Any], index: npt.NDArray[Any], arrays: Mapping[str, npt.NDArray[Any]], maps: Mapping[str, Any]
) -> None:
    """Raise DamagedError where the arrays of a set do not go together: rows would be read that belong to others."""
    if index.ndim != 1 or index.dtype != np.int64 or (np.diff(index) <= 0).any():
        raise DamagedError("index.npy holds no sorted image numbers")
    scores = arrays["logits"]
    each = (scores.shape[0] if scores.ndim else 0, len(index))
    classes = info.get("classes", scores.shape[-1] if scores.ndim else 0)
    top = "classes" in arrays
    kinds: dict[str, tuple[type[np.generic], int]] = {
        "logits": (np.float16, 3), "centres": (np.float32, 2), "classes": (np.int32, 3), "rest": (np.float32, 2),
    }  # fmt: skip
    for name, array in arrays.items():
        dtype, axes = kinds[name]
        shape = (*each, *scores.shape[2:]) if axes == 3 else each
        if array.dtype != dtype or array.ndim != axes or array.shape != shape:
            raise DamagedError(f"{name}.npy is {array.dtype} {list(array.shape)}")
    for layer, array in maps.items():
        if array.dtype != np.float16 or array.shape[:2] != each:
            raise DamagedError(f"the features of {layer} are {array.dtype} {list(array.shape)}")
    width = scores.shape[2]
    if type(classes) is not int or classes > _MOST_CLASSES or not (width < classes if top else width == classes):
        raise DamagedError(f"signals.json has classes: {one_line(repr(classes), 60)}, logits.npy {width} of them")


# ---------------------------------------------------------------------------------------------------- teachers


@dataclass(frozen=True)
class Feature:
    """A layer whose output is kept: whole, or averaged over places (``pooled``)."""

    layer: str
    pooled: bool = False


@dataclass(frozen=True)
class View:
    """What a teacher is asked about: these images, in these views."""

    images: npt.NDArray[np.uint8]  # of the whole store, usually memory-mapped
    index: npt.NDArray[np.int64]
    number: int | npt.NDArray[np.int64]
    policy: views.Policy
    seed: int
    device: torch.device | str = "cpu"


class NetworkTeacher:
    """A network, and what it wants to see."""

    def __init__(
        self,
        model: nn.Module,
        preprocessing: views.Preprocessing,
        features: Sequence[Feature] = (),
        autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
        flip: bool = False,
    ) -> None:
        """``flip``: test-time augmentation, the mean of the logits of each view and of its mirror image; features are
        those of the view alone."""
        self.model, self.preprocessing, self._features = model.eval(), preprocessing, tuple(features)
        self._flip = flip
        self._autocast = autocast
        self._taps = models.tap(model, [feature.layer for feature in features])

    @torch.inference_mode()
    def __call__(self, view: View) -> tuple[Float[Tensor, "batch classes"], dict[str, Tensor]]:
        def query(mirrored: bool) -> Tensor:
            with self._autocast():
                return view_logits(
                    self.model, view.images, view.index, view.number, preprocessing=self.preprocessing,
                    policy=view.policy, seed=view.seed, device=view.device, mirrored=mirrored,
                )  # fmt: skip

        mirrored = query(True) if self._flip else None  # before the view itself, whose features are kept
        logits = query(False)
        if mirrored is not None:
            logits = (logits + mirrored) / 2.0
        found: dict[str, Tensor] = {}
        for feature in self._features:
            output = self._taps[feature.layer].float()
            found[feature.layer] = models.pooled(output) if feature.pooled else output
        return logits, found


class GivenTeacher:
    """Logits that were computed elsewhere, for images as they are stored: views that move have no answer here."""

    def __init__(self, index: npt.NDArray[np.int64], logits: npt.NDArray[np.float32]) -> None:
        order = np.argsort(index)
        self._index, self._logits = index[order], logits[order].astype(np.float32)

    def __call__(self, view: View) -> tuple[Float[Tensor, "batch classes"], dict[str, Tensor]]:
        if not view.policy.still:
            raise SignalsError(
                "student.augment: moves the images, but a teacher in a file knows them only as they are. "
                "Set crop and aspect 1.0, flip false, policy null and the rest 0.0, or use networks as teachers"
            )
        row = np.searchsorted(self._index, view.index)
        if (row >= len(self._index)).any() or (self._index[np.minimum(row, len(self._index) - 1)] != view.index).any():
            raise SignalsError("teach.teachers: the file has no logits for some of these images")
        return views.send(torch.from_numpy(self._logits[row]), view.device), {}


Teacher = Callable[[View], tuple[Tensor, dict[str, Tensor]]]


def average(teachers: Sequence[Teacher], weights: Sequence[float]) -> Teacher:
    """One teacher out of several: the mean of their logits with ``weights`` (made to add up to 1), which is the
    geometric mean of their distributions (Hinton et al. 2015, https://arxiv.org/abs/1503.02531, section 2). The
    features are those of the first."""
    total = sum(weights)
    if len(teachers) != len(weights) or total <= 0 or min(weights) < 0:
        raise SignalsError(f"{len(teachers)} teachers cannot be weighted by {list(weights)}")
    if len(teachers) == 1:
        return teachers[0]

    def query(view: View) -> tuple[Tensor, dict[str, Tensor]]:
        answers = [teacher(view) for teacher in teachers]
        logits = [logits * (weight / total) for (logits, _), weight in zip(answers, weights, strict=True)]
        return torch.stack(logits).sum(0), answers[0][1]

    return query


def read_given(
    path: Path, names: Sequence[str], classes: Sequence[str], needed: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """(image numbers, logits) of a ``.npz`` with ``names`` [M] (paths below the source's folder, as in ``names`` here),
    ``logits`` [M, classes], and, to be safe, ``classes`` [classes], which may come in another order.

    Raises SignalsError where an image of ``needed`` is missing or classes differ.
    """
    try:
        given = read_arrays(path)
        theirs, columns = _words(given, "names"), _words(given, "classes") if "classes" in given else list(classes)
        logits = given["logits"]
        if logits.dtype.kind not in "fiu":
            raise DamagedError(f"logits are {logits.dtype}, no numbers")
        with np.errstate(over="ignore"):  # then they are not finite
            logits = logits.astype(np.float32)
    except (OSError, KeyError, DamagedError) as error:
        raise SignalsError(
            f"{path}: cannot be read as teacher logits ({one_line(error)}). "
            "Write it with numpy.savez(path, names=..., logits=..., classes=...)"
        ) from error
    if logits.shape != (len(theirs), len(classes)):
        raise SignalsError(
            f"{path}: logits are {list(logits.shape)}, but there are {len(theirs)} names and {len(classes)} classes"
        )
    if not np.isfinite(logits).all():
        raise SignalsError(f"{path}: some logits are not finite numbers")
    if sorted(columns) != sorted(classes):
        raise SignalsError(
            f"{path}: has the classes {one_line(repr(columns), 300)}, the data {one_line(list(classes), 300)}"
        )
    logits = logits[:, [columns.index(name) for name in classes]]
    if len(set(theirs)) < len(theirs):
        twice = next(name for name, count in Counter(theirs).items() if count > 1)
        raise SignalsError(f"{path}: names '{one_line(twice, 100)}' twice. Give each picture one row")
    numbers = {name: number for number, name in enumerate(names)}
    known = [(numbers[name], row) for row, name in enumerate(theirs) if name in numbers]
    index = np.array([number for number, _ in known], dtype=np.int64)
    missing = np.setdiff1d(needed, index)
    if len(missing):
        some = ", ".join(names[number] for number in missing[:3])
        raise SignalsError(f"{path}: no logits for {len(missing)} of the {len(needed)} images, such as {some}")
    return index, logits[[row for _, row in known]]


def _words(given: Mapping[str, npt.NDArray[Any]], name: str) -> list[str]:
    """The texts in the array ``name``; raises KeyError, DamagedError."""
    array = given[name]
    if array.ndim != 1 or array.dtype.kind not in "US":
        raise DamagedError(f"{name} is {array.dtype} {list(array.shape)}, no list of texts")
    try:
        return [str(word) for word in array]
    except (ValueError, UnicodeError) as error:  # a number that is no character
        raise DamagedError(f"{name}: {one_line(error)}") from error


@torch.inference_mode()
def view_logits(
    teacher: nn.Module,
    images: npt.NDArray[np.uint8],
    index: npt.NDArray[np.int64],
    view: int | npt.NDArray[np.int64],
    *,
    preprocessing: views.Preprocessing,
    policy: views.Policy,
    seed: int,
    device: torch.device | str = "cpu",
    mirrored: bool = False,
) -> Float[Tensor, "batch classes"]:
    """What the live teacher says of these views, or of their mirror images (left and right exchanged)."""
    pixels = views.draw(
        read_rows(images, index), index, view, size=preprocessing.image_size, seed=seed, policy=policy, device=device
    )
    if mirrored:
        pixels = pixels.flip(-1)
    x = views.normalise(pixels, preprocessing.mean, preprocessing.std)
    logits: Tensor = teacher(views.laid_out_for(teacher, x))
    return logits.float()


# ---------------------------------------------------------------------------------------------------- writing


def write_signals(
    folder: Path,
    teacher: Teacher,
    images: npt.NDArray[np.uint8],
    index: npt.NDArray[np.int64],
    *,
    count: int,
    policy: views.Policy,
    seed: int,
    batch_size: int,
    device: torch.device | str = "cpu",
    info: dict[str, Any],
    work: Path,
    top_k: int | None = None,
    features: Sequence[Feature] = (),
    others: Sequence[tuple[Teacher, torch.device | str]] = (),
    on_images: Callable[[int], None] = lambda done: None,
    say: Callable[[str], None] = print,
) -> None:
    """Ask ``teacher`` for ``count`` views of the images ``index`` (sorted) and write the set into ``folder``.

    ``others``: the same teacher on further devices. Batches go round, and what is written is the same.

    The arrays grow in ``work``, which outlives a killed run: a new call goes on after the last whole batch, if what is
    there has the checksum that it had (else that is said by ``say``). Raises SignalsError before the first when the
    disk has no room for the set.
    """
    first = answer(teacher(View(images, index[:1], 0, policy, seed, device)), top_k, features)
    classes = int(first.pop("width")[0])
    total = count * len(index)
    needed = sum(total * values[0].nbytes for values in first.values())
    mark = work / "done.json"
    done, said_before = _state_of(mark)
    free = shutil.disk_usage(work).free
    if not done and needed > free:
        raise SignalsError(
            f"teach: the signals take {needed / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB left. "
            "Lower teach.views, set teach.top_k, or keep fewer or pooled teach.features"
        )
    shapes = {name: (count, len(index), *values.shape[1:]) for name, values in first.items()}
    arrays = {name: _grown(work / f"{name}.npy", shapes[name], values.dtype, done) for name, values in first.items()}
    digest = hashlib.sha256()
    for start in range(0, done, batch_size):
        for number, rows in _places(start, min(start + batch_size, total), len(index)):
            for name in sorted(arrays):
                digest.update(arrays[name][number, rows].tobytes())
    if done and digest.hexdigest() != said_before:
        say(f"{work}: the signals kept there are not what was written; all are asked for anew")
        done, digest = 0, hashlib.sha256()
    starts = range(done, total, batch_size)
    asked = [(one, where, threading.Lock()) for one, where in ((teacher, device), *others)]

    def query(batch: int) -> list[tuple[int, slice, dict[str, npt.NDArray[Any]]]]:
        one, where, alone = asked[batch % len(asked)]
        places = _places(starts[batch], min(starts[batch] + batch_size, total), len(index))
        with alone:  # a network's taps hold the features of one batch
            found = [
                answer(one(View(images, index[rows], number, policy, seed, where)), top_k, features)
                for number, rows in places
            ]
        return [(number, rows, values) for (number, rows), values in zip(places, found, strict=True)]

    apart = len(asked) > 1 or torch.device(device).type == "cuda"  # a CPU has nothing to spare while it computes
    ahead = in_advance(query, len(starts), len(asked), len(asked)) if apart else contextlib.nullcontext(query)
    with ahead as answered:
        for batch, start in enumerate(starts):
            for number, rows, values in answered(batch):
                for name in sorted(arrays):
                    arrays[name][number, rows] = values[name]
                    digest.update(values[name].tobytes())
            done = min(start + batch_size, total)
            on_images(done)
            if (start // batch_size) % _MARK_EVERY == _MARK_EVERY - 1:
                for array in arrays.values():
                    array.flush()
                whole.write_json(mark, {"done": done, "sha256": digest.hexdigest()})
    for array in arrays.values():
        array.flush()
    names = list(arrays)
    arrays.clear()
    np.save(folder / "index.npy", index)
    kept = [{"layer": feature.layer, "pooled": feature.pooled} for feature in features]
    about = {**info, "views": count, "classes": classes, "top_k": top_k, "features": kept}
    (folder / "signals.json").write_text(json.dumps(about, indent=1, sort_keys=True) + "\n")
    mark.unlink(missing_ok=True)  # from here on the arrays leave `work` one by one: not a state to go on from
    for name in names:
        shutil.move(work / f"{name}.npy", folder / f"{name}.npy")


def _state_of(mark: Path) -> tuple[int, str]:
    """(signals that are there, SHA-256 of them in the order in which they were asked for) of a run that was killed."""
    try:
        found = whole.read_json(mark)
    except (FileNotFoundError, DamagedError):
        return 0, ""
    return found["done"], found["sha256"]


def _grown(file: Path, shape: tuple[int, ...], dtype: np.dtype[Any], done: int) -> Any:
    """The array in ``file``, of which something may be there; its whole room is taken now, as a disk that fills under a
    memory map ends the process without a word."""
    if done:
        with contextlib.suppress(Exception):  # NumPy evaluates the header, so whatever Python raises
            array = np.lib.format.open_memmap(file, mode="r+")
            if array.shape == shape and array.dtype == dtype:
                return array
    array = np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate"):
        with file.open("r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
    return array


def _places(start: int, end: int, images: int) -> list[tuple[int, slice]]:
    """(view, rows) of the signals from ``start`` to ``end``: a batch may reach into further views."""
    return [
        (number, slice(max(0, start - number * images), min(images, end - number * images)))
        for number in range(start // images, -(-end // images))
    ]


def answer(
    said: tuple[Tensor, Mapping[str, Tensor]], top_k: int | None, features: Sequence[Feature]
) -> dict[str, npt.NDArray[Any]]:
    """What a teacher said, as the rows that are stored, by the name of their file; and ``width``, the classes. They are
    made where the teacher is: what leaves a GPU is as small as what is kept."""
    said_logits = said[0].float()
    width = said_logits.shape[1]
    rows: dict[str, Tensor] = {"width": torch.full((len(said_logits),), width)}
    logits = said_logits
    if top_k is not None:
        if top_k >= width:
            raise SignalsError(f"teach.top_k: {top_k}, but there are {width} classes. Set teach.top_k: null")
        logits, chosen = said_logits.topk(top_k, dim=1)
        rows["classes"] = chosen.to(torch.int32)
        rows["rest"] = said_logits.scatter(1, chosen, -torch.inf).logsumexp(1).clamp_min(-_HALF)
    centre = (logits.amax(1) + logits.amin(1)) / 2
    rows["logits"] = (logits - centre[:, None]).clamp(-_HALF, _HALF).to(torch.float16)
    rows["centres"] = centre
    for number, feature in enumerate(features):
        values = said[1][feature.layer].float()
        rows[f"features-{number}"] = values.clamp(-_HALF, _HALF).contiguous().to(torch.float16)
    return {name: row.cpu().numpy() for name, row in rows.items()}
