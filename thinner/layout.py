"""What a job makes, by name: the networks that its stages train, the candidates that evaluate measures, and where each
lies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from thinner.evidence import decision
from thinner.runtimes import catalogue

if TYPE_CHECKING:
    from thinner.params import Params


def networks(params: Params) -> dict[str, str]:
    """The networks that stages train, in the order in which tables show them, and the folders where they lie."""
    folders = {name: f"data/{name}" for name in ("finetune", "scratch", "distill", "small", "prune")}
    if params.self_train.networks:
        again = {name: f"data/{folder}" for name, folder in decision.FOLDERS.items()}
        folders = {"finetune": folders["finetune"], **again, **folders}
    return folders | {f"prune_{source}": f"data/prune_also/{source}" for source in params.prune_also}


def candidate_names(params: Params) -> list[str]:
    """What evaluate measures, in the order in which tables show it: the networks, then their exports."""
    exports = [f"{name}_{format_}" for name in params.export.candidates for format_ in params.export.formats]
    return [*networks(params), *exports, *([params.quantize.candidate] if params.quantize.candidate else [])]


def folder_of(params: Params, candidate: str) -> str:
    """Where what evaluate measures lies."""
    made = "quantize" if candidate == params.quantize.candidate else "export"
    return networks(params).get(candidate, f"data/{made}/{candidate}")


def runtime_of(params: Params, candidate: str) -> str:
    """What it runs in, by its name in thinner/runtimes."""
    if candidate in networks(params):
        return catalogue.PYTORCH
    ending = next((name for name in params.export.formats if candidate.endswith(f"_{name}")), "onnx_int8")
    return catalogue.OF[ending].name
