"""Run any candidate on images: a PyTorch checkpoint or an export, behind one interface.

A candidate's folder says what it is: `model.safetensors` is a checkpoint, and by an export's file its runtime knows it
(thinner/runtimes). All come with `model.json`, and get exactly the same preprocessed images; but where preprocessing is
part of an ONNX graph, that gets the pictures.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Integer, UInt8
from torch import Tensor

from thinner.data import views
from thinner.data.ahead import in_advance
from thinner.errors import UserError, one_line
from thinner.networks import checkpoint
from thinner.runtimes import catalogue
from thinner.runtimes.protocol import Runtime

Images = UInt8[np.ndarray, "images height width channels"]


@dataclass(frozen=True)
class Candidate:
    """Something that evaluate can measure. A whole inference is ``collect(run(place(preprocessed images)))``.

    The three steps are apart so that a clock can be put around ``run`` alone, which returns when its work is
    done.
    """

    runtime: str  # its name in thinner/runtimes
    device: str
    spec: dict[str, Any]
    place: Callable[[Tensor], Any]
    run: Callable[[Any], Any]
    collect: Callable[[Any], Float[np.ndarray, "batch classes"]]
    model: torch.nn.Module | None  # None where there is no PyTorch module behind it

    @property
    def preprocessing(self) -> views.Preprocessing:
        return views.Preprocessing.from_json(self.spec["preprocessing"])

    def preprocess(self, images: Images) -> Tensor:
        return preprocess(images, self.spec, self.device)


@dataclass(frozen=True)
class Prediction:
    label: str
    confidence: float  # softmax probability of the label, 0 to 1, of logits divided by the temperature


def open_candidate(folder: str | Path, device: str = "cpu", threads: int = 0, channels_last: bool = False) -> Candidate:
    """Load the candidate in ``folder``.

    ``device`` and ``channels_last`` (the memory layout it was trained in) matter to PyTorch only. ``threads``
    is fixed here for other runtimes (0: all cores), while PyTorch's number belongs to the process: see
    profiling.pinned_threads. Raises UserError: nothing is there, it is damaged, or its runtime is not installed.
    """
    folder = Path(folder)
    if (runtime := catalogue.in_folder(folder)) is not None:
        return _open_export(runtime, folder, device, threads, channels_last)
    if (folder / checkpoint.WEIGHTS).is_file():
        model = checkpoint.load(folder).model.eval()
        return _torch_candidate(model, model, folder, device, channels_last)
    known = " nor ".join((checkpoint.WEIGHTS, *(runtime.files[0] for runtime in catalogue.RUNTIMES.values())))
    raise UserError(f"{folder}: neither {known} here. Make it: thinner run, or dvc checkout")


def weights_sha256(folder: str | Path) -> str:
    """SHA-256 of a candidate's own file: model.safetensors, or an export's; where that has several, of their SHA-256.
    Raises DamagedError where one is not what was written."""
    runtime = catalogue.in_folder(Path(folder))
    first, *others = (
        checkpoint.check_file(Path(folder, name)) for name in (runtime.files if runtime else (checkpoint.WEIGHTS,))
    )
    return hashlib.sha256(" ".join([first, *others]).encode()).hexdigest() if others else first


def preprocess(images: Images, spec: Mapping[str, Any], device: torch.device | str = "cpu") -> Tensor:
    """What the candidate with this ``spec`` is fed, made on ``device``: floats [images, colours, size, size]; or the
    pictures as they are, uint8 [images, height, width, channels], where preprocessing is part of an export's graph
    (``input: pixels``)."""
    if spec.get("input") == "pixels":
        return torch.from_numpy(np.array(images))
    return views.preprocess(images, views.Preprocessing.from_json(spec["preprocessing"]), device)


def choose_device(device: str) -> str:
    """``auto`` is the machine's accelerator where it has one that works, and its CPU otherwise."""
    if device != "auto":
        return device
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator.type if accelerator else "cpu"


def _torch_candidate(
    network: torch.nn.Module, model: torch.nn.Module | None, folder: Path, device: str, channels_last: bool
) -> Candidate:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = network.to(device=device, memory_format=layout)  # type: ignore[call-overload]
    where = torch.device(device)
    waits: dict[str, Callable[[], None]] = {
        "cuda": partial(torch.cuda.synchronize, where),
        "mps": torch.mps.synchronize,
    }
    wait = waits.get(where.type)

    def run(batch: Tensor) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = network(batch)
        if wait:  # a GPU returns at once and works later
            wait()
        return logits

    return Candidate(
        runtime=catalogue.PYTORCH,
        device=device,
        spec=checkpoint.read_spec(folder),
        model=model,
        run=run,
        place=lambda images: images.to(device=device, memory_format=layout),
        collect=lambda logits: logits.float().cpu().numpy(),
    )


def _open_export(runtime: Runtime, folder: Path, device: str, threads: int, channels_last: bool) -> Candidate:
    for name in runtime.files:
        checkpoint.check_file(folder / name)
    catalogue.require(runtime)
    opened = runtime.open(folder / runtime.files[0], threads)
    if isinstance(opened, torch.nn.Module):
        # without eval(): a program has no modes, it was exported in that one
        return _torch_candidate(opened, None, folder, device, channels_last)
    return Candidate(
        runtime=runtime.name,
        device="cpu",
        spec=checkpoint.read_spec(folder),
        model=None,
        place=lambda images: np.ascontiguousarray(images.numpy()),
        run=opened,
        collect=lambda logits: logits,
    )


def predict_logits(
    candidate: Candidate,
    images: Images,
    index: Integer[np.ndarray, " chosen"],
    batch_size: int,
    on_batch: Callable[[int], None] | None = None,
    others: Sequence[Candidate] = (),
) -> Float[np.ndarray, "chosen classes"]:
    """float32 logits of ``images[index]``, a batch at a time: ``images`` may be a map larger than memory.

    ``on_batch`` is told how many images are done. ``others``: the same candidate on further devices; batches go round,
    and what they say is the same.
    """
    logits = np.empty((len(index), len(candidate.spec["classes"])), dtype=np.float32)
    parts = [index[start : start + batch_size] for start in range(0, len(index), batch_size)]
    asked = [(one, threading.Lock()) for one in (candidate, *others)]

    def answer(number: int) -> Float[np.ndarray, "batch classes"]:
        one, alone = asked[number % len(asked)]
        batch = one.place(one.preprocess(np.asarray(images[parts[number]])))
        with alone:
            return one.collect(one.run(batch))

    # while a GPU computes, its next batch is read and prepared; a CPU has nothing to spare for that
    apart = len(parts) > 1 and (len(asked) > 1 or torch.device(candidate.device).type == "cuda")
    threads = 2 * len(asked)
    done = 0
    with in_advance(answer, len(parts), threads, threads) if apart else nullcontext(answer) as answered:
        for number, part in enumerate(parts):
            logits[done : done + len(part)] = answered(number)
            done += len(part)
            if on_batch:
                on_batch(done)
    return logits


def predict(
    folder: str | Path,
    images: Sequence[UInt8[np.ndarray, "_ _ channels"]],
    device: str = "cpu",
    temperature: float = 1.0,
) -> list[Prediction]:
    """Name the class of each image with the candidate in ``folder``; the images may differ in size.

    ``temperature`` is what evaluate fitted for the candidate (``metrics.fit_temperature``); 1 is no calibration.
    """
    candidate = open_candidate(folder, device)
    classes = candidate.spec["classes"]
    predictions = []
    for image in images:
        try:
            logits = candidate.collect(candidate.run(candidate.place(candidate.preprocess(image[None]))))
        except Exception as error:  # a graph that somebody else made may fail at any of its operators
            raise UserError(
                f"{folder}: this model does not run on a picture ({one_line(error)}). Make it again: thinner run"
            ) from error
        if logits.shape != (1, len(classes)):
            raise UserError(
                f"{folder}: this model gives {list(logits.shape)} numbers for a picture, and {checkpoint.SPEC} has "
                f"{len(classes)} classes. Take the two files of one folder"
            )
        label = classes[int(logits[0].argmax())]
        calibrated = torch.from_numpy(logits).double() / temperature
        predictions.append(Prediction(label, float(calibrated.softmax(dim=1).max())))
    return predictions


def calls_on(candidates: Mapping[str, Candidate], images: Images) -> dict[str, Callable[[], object]]:
    """For each candidate a call of its network alone, on ``images`` that are preprocessed and in place: what is
    timed."""
    calls: dict[str, Callable[[], object]] = {}
    for name, candidate in candidates.items():
        inputs = candidate.place(candidate.preprocess(images))
        calls[name] = partial(candidate.run, inputs)
    return calls
