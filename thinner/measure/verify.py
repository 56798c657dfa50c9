"""What was saved is what was meant: loaded in a new process, counted there, and asked the same question.

    python -m thinner.measure.verify FOLDER [BATCH]     # a checkpoint, and images to look at: prints one JSON object

A network that cannot be loaded again, or says something else then, is found here and not by whoever gets it.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from thinner.errors import UserError
from thinner.measure.profiling import count_macs, count_params, file_bytes, pinned_threads
from thinner.networks import checkpoint


class VerificationError(UserError):
    """A saved network is not the one that was to be saved."""


@dataclass(frozen=True)
class Facts:
    """What is counted on both sides."""

    macs: int
    params: int
    nonzero: int
    tensor_bytes: int  # of all that a checkpoint of it holds, without the file's header


def facts_of(model: nn.Module, shape: tuple[int, ...], spec: dict[str, Any]) -> Facts:
    """``spec``: that of the model's checkpoint."""
    return Facts(
        count_macs(model, shape),
        count_params(model),
        count_params(model, nonzero=True),
        sum(t.numel() * t.element_size() for t in checkpoint.saved_tensors(model, spec).values()),
    )


@torch.inference_mode()
def _logits(model: nn.Module, images: Tensor) -> Float[Tensor, "images classes"]:
    """On one thread and from tensors in their plain layout: other layouts and shares of work round differently."""
    plain = copy.deepcopy(model).cpu().eval()
    for tensor in (*plain.parameters(), *plain.buffers()):
        tensor.data = tensor.clone(memory_format=torch.contiguous_format)
    with pinned_threads(1):
        return plain(images.cpu().contiguous())


def verify_saved(
    folder: str | Path,
    model: nn.Module,
    images: Float[Tensor, "images channels size size"],
    *,
    at_most: dict[str, float] | None = None,
) -> Facts:
    """Load ``folder`` in a new process; compare it with ``model``, as it was in memory when it was saved.

    Equal must be: MACs, parameters, those that are not zero, the tensors' bytes, and the logits for ``images`` bit for
    bit. ``at_most``: limits that were asked for (``macs``, ``params``, ``nonzero``). The file must be as large as its
    tensors and its header. Raises VerificationError, which names all that is not so.
    """
    folder = Path(folder).resolve()
    expected = facts_of(model, tuple(images.shape[1:]), checkpoint.read_spec(folder))
    with tempfile.TemporaryDirectory() as scratch:
        paths = [str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        batch, answer = Path(scratch) / "images.safetensors", Path(scratch) / "logits.safetensors"
        save_file({"images": images.cpu().contiguous()}, batch)
        done = subprocess.run(
            [sys.executable, "-m", "thinner.measure.verify", str(folder), str(batch), "--logits", str(answer)],
            # this very package, and the current folder: its params.yaml says which code of the user's own may be run
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise VerificationError(
                f"{folder}: what was saved does not load in a new process: "
                f"{(done.stderr.strip().splitlines() or ['no message'])[-1]}"
            )
        found = Facts(**json.loads(done.stdout)["facts"])
        said = load_file(answer)["logits"]
    wrong = [
        f"{name} {value:,} in memory, {asdict(found)[name]:,} when loaded"
        for name, value in asdict(expected).items()
        if value != asdict(found)[name]
    ]
    wrong += [
        f"{name} {asdict(found)[name]:,}, at most {limit:,.0f} asked"
        for name, limit in (at_most or {}).items()
        if asdict(found)[name] > limit
    ]
    with (folder / checkpoint.WEIGHTS).open("rb") as file:
        header = 8 + int.from_bytes(file.read(8), "little")
    if (size := file_bytes(folder)) != header + found.tensor_bytes:
        wrong.append(f"{size:,} bytes on disk, {header + found.tensor_bytes:,} expected")
    before = _logits(model, images)
    if before.shape != said.shape or not torch.equal(before.view(torch.int32), said.view(torch.int32)):
        far = float((before - said).abs().max()) if before.shape == said.shape else float("inf")
        wrong.append(f"logits differ by up to {far:.3g}")
    if wrong:
        raise VerificationError(
            f"{folder}: not the network that was pruned: {'; '.join(wrong)}. This is a bug: report it"
        )
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m thinner.measure.verify", description=str(__doc__).splitlines()[0])
    parser.add_argument("folder", type=Path, help="a checkpoint: model.safetensors and model.json")
    parser.add_argument("batch", type=Path, nargs="?", help="a safetensors file with the tensor `images`, normalised")
    parser.add_argument("--logits", type=Path, help="where to write what the network says of them")
    given = parser.parse_args(argv)
    try:
        loaded = checkpoint.load(given.folder)
    except UserError as error:
        print(error, file=sys.stderr)  # noqa: T201 - a command speaks to a person
        return 1
    facts = facts_of(loaded.model, loaded.preprocessing.shape, loaded.spec)
    if given.batch is not None:
        logits = _logits(loaded.model, load_file(given.batch)["images"])
        if given.logits is not None:
            save_file({"logits": logits.contiguous()}, given.logits)
    answer = {"facts": asdict(facts), "sha256": loaded.sha256, "file_bytes": file_bytes(given.folder)}
    print(json.dumps(answer))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
