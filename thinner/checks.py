"""What can only be found wrong by looking: networks, weights, losses, criteria, and stages that do not fit together.

Networks are built on the meta device, where nothing is allocated, so that this takes seconds and not memory.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from thinner import architectures, criteria, losses, masks, models, pruning
from thinner.errors import UserError
from thinner.profiling import count_macs, count_params

if TYPE_CHECKING:
    from thinner.config import Network, Params

_CLASSES = 10  # a stand-in where the data are not prepared yet; nothing here depends on the number


def deep(params: Params) -> Iterator[str]:
    """One line for each mistake: key, value, choices."""
    built: dict[str, torch.nn.Module] = {}
    for name in ("finetune", "student"):
        section: Network = getattr(params, name)
        network: dict[str, Any] = {"name": section.network, "classes": _CLASSES, "channels": section.channels}
        if section.width is not None:
            network |= {"width": section.width, "stem_stride": section.stem_stride}
        try:
            model = models.skeleton(network)
            built[name] = model
        except UserError as error:
            text = str(error)
            yield f"{name}.{text}" if text.startswith("network:") else f"{name}.network: {text}"
            if not str(section.weights).startswith("torchvision:"):  # those belong to a network
                yield from _weights(name, section)
            continue
        yield from _weights(name, section)
        try:
            count_macs(model, (section.channels, section.image_size, section.image_size))
        except (RuntimeError, AssertionError, ValueError) as error:
            yield (
                f"{name}.image_size: {section.image_size} px does not go through '{section.network}' "
                f"({str(error).splitlines()[0]}). Choose the size that the network was made for"
            )
            built.pop(name)
    if "finetune" in built:
        parts = [n for n, _ in models.stages_of(built["finetune"])]
        if params.finetune.freeze > len(parts):
            listed = ", ".join(parts)
            yield f"finetune.freeze: {params.finetune.freeze}, but the network has {len(parts)} parts: {listed}"
    yield from _features(params, built)
    yield from _losses(params, built)
    yield from _pruning(params, built)
    if params.run.device == "cuda" and not torch.cuda.is_available():
        yield "run.device: 'cuda', but no CUDA device is here. Choose one of: auto, cpu"
    if params.run.device == "mps" and not torch.backends.mps.is_available():
        yield "run.device: 'mps', but no Apple GPU is here. Choose one of: auto, cpu"
    yield from _source(params.data.source)
    yield from _claims(params)


def _weights(name: str, section: Network) -> Iterator[str]:
    weights = section.weights
    if weights is None or weights == "timm":
        return
    kind, _, what = weights.partition(":")
    try:
        if kind == "package":
            models.package_file(what)
        elif kind == "torchvision":
            models.check_torchvision_weights(section.network, what)
        else:
            models.check_weights_file(weights)
    except UserError as error:
        yield f"{name}.{error}"


def _losses(params: Params, built: dict[str, torch.nn.Module]) -> Iterator[str]:
    for number, part in enumerate(params.distill.losses):
        where = f"distill.losses[{number}]"
        if part.name not in losses.LOSSES:
            yield f"{where}.name: unknown '{part.name}'. Choose one of: {', '.join(losses.LOSSES)}"
            continue
        given = {k: v for k, v in part.parameters.items() if k != "warmup_epochs"}
        try:
            losses.check_parameters(part.name, given)
        except UserError as error:
            yield f"{where}: {error}"
        needs = losses.LOSSES[part.name].needs & {"features", "pooled"}
        if needs and params.distill.teacher == "cached":
            yield from _kept(params, where, given.get("teacher_layers", []), whole="features" in needs)
        if needs:
            for side, section in (("student", "student"), ("teacher", "finetune")):
                names = given.get(f"{side}_layers", [])
                if section in built and isinstance(names, list):
                    try:
                        models.tap(built[section], names)
                    except UserError as error:
                        yield f"{where}.{side}_layers: {error}"


def _kept(params: Params, where: str, layers: Any, whole: bool) -> Iterator[str]:
    """What a loss compares must lie in the cache, and be whole where it looks at places."""
    kept = {feature.layer: feature.keep for feature in params.teach.features}
    for layer in layers if isinstance(layers, list) else []:
        if layer not in kept or (whole and kept[layer] == "pooled"):
            has = f"kept as '{kept[layer]}'" if layer in kept else "not among teach.features"
            yield (
                f"{where}.teacher_layers: '{layer}' is {has}, but the loss needs it. Add to teach.features: "
                f"{{layer: {layer}, keep: {'map' if whole else 'pooled'}}}, or set distill.teacher: live"
            )


def _features(params: Params, built: dict[str, torch.nn.Module]) -> Iterator[str]:
    seen: set[str] = set()
    for number, feature in enumerate(params.teach.features):
        where = f"teach.features[{number}].layer"
        if feature.layer in seen:
            yield f"{where}: '{feature.layer}' is named twice. Name each layer once"
        seen.add(feature.layer)
        if params.teach.teachers[0] == "finetune" and "finetune" in built:
            try:
                models.tap(built["finetune"], [feature.layer])
            except UserError as error:
                yield f"{where}: {error}"


def _pruning(params: Params, built: dict[str, torch.nn.Module]) -> Iterator[str]:
    prune = params.prune
    sources: dict[str, str] = {}  # section with the network -> the first source that has it
    for candidate in (prune.source, *params.prune_also):
        sources.setdefault("finetune" if candidate == "finetune" else "student", candidate)
    yield from _rewinding(params, sources)
    try:
        criterion = criteria.look_up(prune.criterion)
    except UserError as error:
        yield str(error)
        return
    if prune.granularity != "channels" and criterion.weights is None:
        able = ", ".join(name for name, row in criteria.CRITERIA.items() if row.weights is not None)
        yield (
            f"prune.criterion: '{prune.criterion}' scores channels, not single weights. Choose one of: {able}; "
            "or set prune.granularity: channels"
        )
        return
    for section_name, source in sources.items():
        for line in _reachable(params, section_name) if section_name in built else ():
            yield line if source == prune.source else f"{line}; or take '{source}' out of prune_also"


def _reachable(params: Params, section_name: str) -> Iterator[str]:
    """Whether the network of this section can be pruned, and as far as is asked."""
    prune = params.prune
    section: Network = getattr(params, section_name)
    network: dict[str, Any] = {"name": section.network, "classes": _CLASSES, "channels": section.channels}
    if section.width is not None:
        network |= {"width": section.width, "stem_stride": section.stem_stride}
    with torch.random.fork_rng(devices=[]):
        model = models.create(network)  # the dependency graph is read off a real forward pass
    example = torch.zeros(1, section.channels, section.image_size, section.image_size)
    key, value = prune.goal
    unit: Any = {"max_drop": "macs"}.get(key, key) if prune.granularity == "channels" else "params"
    try:
        now, fewest = _reach(params, model, example, unit)
    except architectures.ArchitectureError as error:
        yield f"{section_name}.network: '{section.network}': {error}"
        return
    except UserError as error:
        yield str(error)
        return
    if key == "max_drop":
        if fewest >= now:
            yield f"prune.target: nothing of '{section.network}' can go. Lower prune.round_to, or shorten prune.keep"
        return
    wanted = value if key == "latency_ms" else pruning.final_size(value, now)
    if wanted < fewest:
        yield (
            f"prune.target: {pruning.sized(unit, wanted)} are asked for; '{section.network}' has "
            f"{pruning.sized(unit, now)}; " + pruning.out_of_reach(unit, now, fewest, prune.round_to, prune.keep)
        )
    elif wanted >= now:
        yield (
            f"prune.target: {pruning.sized(unit, wanted)} are asked for, and '{section.network}' has no more than "
            f"{pruning.sized(unit, now)} to begin with. Ask for less, down to {pruning.sized(unit, fewest)}"
        )


def _reach(params: Params, model: torch.nn.Module, example: torch.Tensor, unit: Any) -> tuple[float, float]:
    """(size now, smallest size) of a fresh network; a latency is measured, here and now."""
    prune = params.prune
    if prune.granularity == "channels":
        return pruning.reachable(
            unit,
            model,
            example,
            criterion=prune.criterion,
            scope=prune.scope,
            round_to=prune.round_to,
            keep=prune.keep,
            clock=pruning.Clock(prune.latency_batch),
        )
    for parameter in model.parameters():  # a fresh network has biases of 0, a trained one has not
        if parameter.ndim == 1:
            torch.nn.init.ones_(parameter)
    if prune.granularity == "weights":
        return masks.reachable(model, prune.keep)
    n, _, m = prune.granularity.partition(":")
    masks.apply(model, pattern := masks.mask_pattern(model, int(n), int(m), criterion="l2", keep=prune.keep))
    zeros = sum(int((~mask).sum()) for mask in pattern.values())
    return count_params(model), count_params(model) - zeros


def _rewinding(params: Params, sections: Iterable[str]) -> Iterator[str]:
    """Early weights are there only if the training of what is pruned keeps them."""
    for name in sections:
        if params.prune.rewind and getattr(params, name).training.keep_step is None:
            yield (
                f"prune.rewind: true, but {name}.training.keep_step is null: no early weights are kept. "
                f"Set {name}.training.keep_step: 100, or prune.rewind: false"
            )
    for name in ("finetune", "student"):
        training = getattr(params, name).training
        if training.keep_step is not None and training.steps is not None and training.keep_step >= training.steps:
            yield (
                f"{name}.training.keep_step: {training.keep_step}, but the training has {training.steps} steps. "
                "Give an earlier one"
            )


def _claims(params: Params) -> Iterator[str]:
    from thinner import statistics

    for number, text in enumerate(params.claims):
        try:
            claim = statistics.parse_claim(text, params.candidate_names)
        except UserError as error:
            yield f"claims[{number}]:\n" + textwrap.indent(str(error), "    ")
            continue
        if claim.kind != "faster":
            continue
        if claim.batch not in params.evaluate.latency_batches:
            timed = ", ".join(str(batch) for batch in params.evaluate.latency_batches)
            yield f"claims[{number}]: batch {claim.batch} is not timed. Choose one of evaluate.latency_batches: {timed}"
        if params.evaluate.latency_repeats < statistics.FEWEST_ROUNDS:
            yield (
                f"evaluate.latency_repeats: {params.evaluate.latency_repeats}, but claims[{number}] is about speed. "
                f"Give it {statistics.FEWEST_ROUNDS} or more"
            )
        if claim.runtime == "onnxruntime":
            exported = [name for name in params.candidate_names if name not in params.networks]
            for name in (claim.candidate, claim.reference):
                if name not in exported and f"{name}_onnx" not in exported:
                    yield f"claims[{number}]: '{name}' is not exported to ONNX. Add it to export.candidates"


def _source(source: str) -> Iterator[str]:
    kind, _, name = source.partition(":")
    if kind == "torchvision":
        from thinner import sources

        try:
            sources.check_torchvision_name(name)
        except UserError as error:
            yield str(error)
