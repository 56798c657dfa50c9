"""The teacher's signals: its logits for a number of views of every training image, computed once, kept on disk.

``logits.npy`` float16 [views, images, classes], each row less its centre (half the sum of its largest and smallest
value), because float16 is finest around zero; ``centres.npy`` float32 [views, images]; ``index.npy`` int64
[images], sorted image numbers; ``signals.json`` what they were made of.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from thinner import views
from thinner.errors import UserError


class SignalsError(UserError):
    """Cached signals are missing or do not fit what is asked of them."""


@dataclass(frozen=True)
class Signals:
    scores: npt.NDArray[np.float16]
    centres: npt.NDArray[np.float32]
    index: npt.NDArray[np.int64]
    info: dict[str, Any]

    def logits(
        self, index: Int[np.ndarray, " batch"], view: Int[np.ndarray, " batch"], device: torch.device | str = "cpu"
    ) -> Float[Tensor, "batch classes"]:
        row = np.searchsorted(self.index, index)
        if (row >= len(self.index)).any() or (self.index[np.minimum(row, len(self.index) - 1)] != index).any():
            raise SignalsError("the teacher has no signals for some of these images. Make them: thinner stage teach")
        values = self.scores[view, row].astype(np.float32) + self.centres[view, row][:, None]
        return torch.from_numpy(values).to(device)


def open_signals(folder: str | Path) -> Signals:
    folder = Path(folder)
    try:
        return Signals(
            np.load(folder / "logits.npy", mmap_mode="r"),
            np.load(folder / "centres.npy", mmap_mode="r"),
            np.load(folder / "index.npy"),
            json.loads((folder / "signals.json").read_text()),
        )
    except (FileNotFoundError, ValueError) as error:
        raise SignalsError(
            f"{folder}: no whole set of teacher signals ({error}). Make it: thinner stage teach"
        ) from error


@torch.inference_mode()
def write_signals(
    folder: Path,
    teacher: nn.Module,
    images: npt.NDArray[np.uint8],
    index: npt.NDArray[np.int64],
    *,
    count: int,
    classes: int,
    preprocessing: dict[str, Any],
    policy: views.Policy,
    seed: int,
    batch_size: int,
    device: torch.device | str = "cpu",
    info: dict[str, Any],
    work: Path,
    on_images: Callable[[int], None] = lambda done: None,
) -> None:
    """Ask ``teacher`` for ``count`` views of the images ``index`` (sorted) and write the set into ``folder``.

    The arrays grow in ``work``, which outlives a killed run: a new call goes on after the last whole batch.
    """
    teacher.eval().to(device)
    shape = (count, len(index), classes)
    mark = work / "done.json"
    done = json.loads(mark.read_text())["done"] if mark.exists() else 0
    mode = "r+" if done else "w+"
    scores = np.lib.format.open_memmap(work / "logits.npy", mode=mode, dtype=np.float16, shape=shape)
    centres = np.lib.format.open_memmap(work / "centres.npy", mode=mode, dtype=np.float32, shape=shape[:2])
    for start in range(done, count * len(index), batch_size):
        # batches run over images first, then views, and do not cross from one view to the next
        view, row = divmod(start, len(index))
        stop = min(row + batch_size, len(index))
        for first, last, number in ((row, stop, view), (0, row + batch_size - len(index), view + 1)):
            if last > first and number < count:
                logits = view_logits(
                    teacher,
                    images,
                    index[first:last],
                    number,
                    preprocessing=preprocessing,
                    policy=policy,
                    seed=seed,
                    device=device,
                ).cpu()
                centre = (logits.amax(1) + logits.amin(1)) / 2
                scores[number, first:last] = (logits - centre[:, None]).to(torch.float16).numpy()
                centres[number, first:last] = centre.numpy()
        done = min(start + batch_size, count * len(index))
        on_images(done)
        if (start // batch_size) % 20 == 19:
            scores.flush()
            centres.flush()
            partial = mark.with_suffix(".partial")
            partial.write_text(json.dumps({"done": done}))
            partial.replace(mark)
    scores.flush()
    centres.flush()
    del scores, centres
    np.save(folder / "index.npy", index)
    (folder / "signals.json").write_text(json.dumps(info, indent=1, sort_keys=True) + "\n")
    for name in ("logits.npy", "centres.npy"):
        np.save(folder / name, np.load(work / name, mmap_mode="r"))


@torch.inference_mode()
def view_logits(
    teacher: nn.Module,
    images: npt.NDArray[np.uint8],
    index: npt.NDArray[np.int64],
    view: int | npt.NDArray[np.int64],
    *,
    preprocessing: dict[str, Any],
    policy: views.Policy,
    seed: int,
    device: torch.device | str = "cpu",
) -> Float[Tensor, "batch classes"]:
    """What the live teacher says of these views."""
    pixels = views.draw(
        images[index], index, view, size=preprocessing["image_size"], seed=seed, policy=policy, device=device
    )
    x = views.normalise(pixels, preprocessing["mean"], preprocessing["std"])
    logits: Tensor = teacher(views.laid_out_for(teacher, x))
    return logits.float()
