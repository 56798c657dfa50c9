"""What can only be found wrong by looking: networks, weights, losses, criteria, and stages that do not fit together.

Networks are built on the meta device, where nothing is allocated, so that this takes seconds and not memory.
"""

from __future__ import annotations

import copy
import difflib
import functools
import json
import math
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from thinner import layout
from thinner.compress import architectures, criteria, masks, pruning
from thinner.data import views
from thinner.errors import UserError, one_line
from thinner.evidence import drop
from thinner.learn import losses, training
from thinner.measure.profiling import count_params
from thinner.networks import checkpoint, models, own
from thinner.networks import weights as published
from thinner.networks.spec import NetworkSpec
from thinner.runtimes import catalogue

if TYPE_CHECKING:
    from thinner.params import LossPart, Network, Params

_CLASSES = 10  # a stand-in where the number is not known yet; what depends on it asks `_classes`
_FEW_CLASSES, _MANY_CLASSES = 2, 1000  # what is refused of a number that nobody knows yet is refused of both
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast; a search checks hundreds of params.yaml
_IMAGES = 64  # the same, for the memory of crd

Seeing = tuple[nn.Module, tuple[int, int, int]]  # a network, and the shape of the images that it is given


def deep(params: Params, classes: int | None = None) -> Iterator[str]:
    """One line for each mistake: key, value, choices. ``classes``: how many, where whoever asks has seen the pictures
    and they are not prepared yet."""
    yield from _drop(params)
    built: dict[str, nn.Module] = {}
    for name in ("finetune", "student"):
        section: Network = getattr(params, name)
        try:
            model = models.skeleton(models.describe(section, _CLASSES))
            built[name] = model
        except UserError as error:
            text = str(error)
            yield f"{name}.{text}" if text.startswith(("network:", "image_size:")) else f"{name}.network: {text}"
            if not str(section.weights).startswith(("torchvision:", "timm")):  # those belong to a network
                yield from _weights(name, section, there=False)
            continue
        yield from _weights(name, section)
        if why := _no_way_through(models.describe(section, _CLASSES), _shape(section)):
            yield (
                f"{name}.image_size: {section.image_size} px does not go through '{section.network}' "
                f"({why}). Choose the size that the network was made for"
            )
            built.pop(name)
            continue
        if own.is_own(section.network):
            yield from _answers(name, section, model)
    if "finetune" in built:
        parts = [n for n, _ in models.stages_of(built["finetune"])]
        if params.finetune.freeze > len(parts):
            listed = ", ".join(parts)
            yield f"finetune.freeze: {params.finetune.freeze}, but the network has {len(parts)} parts: {listed}"
    teacher: Seeing | None = None
    try:
        teacher = _teacher(params, built)
    except UserError as error:
        yield f"teach.teachers[0]: {error}"
    for number, name in enumerate(params.teach.teachers[1:], 1):
        if name != "finetune" and not name.endswith(".npz") and Path(name).exists():
            try:
                models.skeleton(NetworkSpec.from_json(checkpoint.read_spec(name)["network"]))
            except UserError as error:
                yield f"teach.teachers[{number}]: {error}"
    yield from _features(params, teacher)
    yield from _losses(params, built, teacher)
    yield from _pruning(params, built, classes or _classes(params))
    yield from _devices(params)
    yield from _source(params.data.source, params.data.root)
    if line := catalogue.missing(params.export.formats):
        yield f"export.formats: {line}"
    yield from _claims(params)


def _devices(params: Params) -> Iterator[str]:
    """What this machine has, and whether a batch can be shared out evenly."""
    run = params.run
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if run.device == "cuda" and not cuda:
        yield "run.device: 'cuda', but no CUDA device is here. Choose one of: auto, cpu"
    if run.device == "mps" and not mps:
        yield "run.device: 'mps', but no Apple GPU is here. Choose one of: auto, cpu"
    if run.precision == "fp16" and run.device == "auto" and not (cuda or mps):
        yield "run.precision: 'fp16', but run.device: auto finds only a CPU here. Choose one of: fp32, bf16"
    if run.processes == 1:
        return
    if run.device in ("auto", "cuda") and cuda:
        if run.devices > (there := torch.cuda.device_count()):
            yield f"run.devices: {run.devices}, but there are {there} CUDA devices here. Set {there} or less"
    elif run.device in ("auto", "mps") and mps:
        key = "devices" if run.devices > 1 else "nodes"
        yield f"run.{key}: {getattr(run, key)}, but an Apple GPU trains alone. Set 1"
    elif run.sync_batch_norm:
        yield "run.sync_batch_norm: true, but PyTorch has that for CUDA devices, and none is here. Set it to false"
    for where, plan in (
        ("finetune.training", params.finetune.training),
        *((("self_train.training", params.self_train.training),) if params.self_train.networks else ()),
        ("student.training", params.student.training),
        ("prune.training", params.prune.training),
    ):
        if over := plan.batch_size % run.processes:
            less = plan.batch_size - over
            near = f"{less} or {less + run.processes}" if less else f"{run.processes}"
            among = f"run.devices: {run.devices}" + (f" of run.nodes: {run.nodes}" if run.nodes > 1 else "")
            yield f"{where}.batch_size: {plan.batch_size} cannot be shared evenly among {among}. Set {near}"


def _drop(params: Params) -> Iterator[str]:
    """A drop that so few validation images can never show: told here, before a teacher is trained. Where their number
    is a share, it is known once they are counted, and prune says it."""
    asked, images = params.prune.asked, params.data.validation
    if asked.is_drop and not isinstance(images, float | None) and (line := drop.refusal(asked.value, images)):
        yield line


def layers(params: Params) -> Iterator[str]:
    """One line for each layer with weights: section, path, type."""
    for name in ("finetune", "student"):
        for path, module in _with_weights(models.skeleton(models.describe(getattr(params, name), _CLASSES))).items():
            yield f"{name}  {path}  {type(module).__name__}"


_NO_WAY_THROUGH = (RuntimeError, AssertionError, ValueError)  # what networks raise at images that they cannot take


@functools.cache  # a search, a study and `thinner init` look at many params.yaml that hardly differ
def _no_way_through(spec: NetworkSpec, shape: tuple[int, int, int]) -> str | None:
    """Why images of this shape do not go through the network, or None. A network of the user's own may raise
    anything."""
    refusals = (Exception,) if own.is_own(spec.name) else _NO_WAY_THROUGH
    try:
        with torch.no_grad():
            models.skeleton(spec).eval()(torch.empty(1, *shape, device="meta"))
    except refusals as error:
        lines = (line for line in str(error).splitlines() if line.strip())
        return next(lines, type(error).__name__)  # a bare assert has no words
    return None


def _shape(section: Network) -> tuple[int, int, int]:
    return views.Preprocessing.of(section).shape


def _with_weights(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if name and any(True for _ in module.parameters())}


def _teacher(params: Params, built: Mapping[str, nn.Module]) -> Seeing | None:
    """The network whose layers losses may look at: the first teacher. None for a file of logits."""
    name = params.teach.teachers[0]
    if name == "finetune":
        return (built[name], _shape(params.finetune)) if name in built else None
    if name.endswith(".npz") or not Path(name).exists():  # the latter is told by thinner.config
        return None
    spec = checkpoint.read_spec(name)
    model = models.skeleton(NetworkSpec.from_json(spec["network"]))
    if spec.get("pruned"):
        checkpoint.apply_dimensions(model, spec["pruned"])
    return model, views.Preprocessing.from_json(spec["preprocessing"]).shape


def _answers(name: str, section: Network, model: nn.Module) -> Iterator[str]:
    """Whether a network of the user's own, which may be anything, gives a logit for each class."""
    with torch.no_grad():
        logits = copy.deepcopy(model).eval()(torch.empty(2, *_shape(section), device="meta"))
    if not isinstance(logits, Tensor) or tuple(logits.shape) != (2, _CLASSES):
        what = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        yield (
            f"{name}.network: '{section.network}' gives {what} for 2 images and {_CLASSES} classes. "
            f"Return logits of shape [2, {_CLASSES}]"
        )


def _weights(name: str, section: Network, there: bool = True) -> Iterator[str]:
    """Whether the weights can be read and belong to the network, where it is ``there``; of those that are downloaded,
    whether there are any."""
    try:
        if there:
            list(_started(section))
        elif section.weights is not None:
            published.read_file(published.file_of(section.weights))
    except UserError as error:
        yield f"{name}.{error}"


def _started(section: Network) -> Iterator[str]:
    """What is to be said of the weights that a section names. Raises UserError where they cannot be had."""
    weights = section.weights
    if weights is None:
        return
    kind, _, what = weights.partition(":")
    if kind == "torchvision":
        published.check_torchvision_weights(section.network, what)
    elif weights == "timm":
        published.check_timm_weights(section.network)
    else:
        state = published.file_of(weights).stat()
        yield from _fit(models.describe(section, _CLASSES), weights, (state.st_ino, state.st_size, state.st_mtime_ns))
    yield from published.remarks(section.network, weights, views.Preprocessing.of(section))


@functools.lru_cache(maxsize=32)
def _fit(network: NetworkSpec, weights: str, file: tuple[int, ...]) -> tuple[str, ...]:
    """What is to be said of weights in a file that is as ``file`` says: a search and `thinner init` ask many times."""
    found = models.fit_weights(models.skeleton(network), network, published.read(network.name, weights)).notes
    return tuple(note for note in found if published.KEPT not in note)  # the stage knows how many classes there are


def remarks(params: Params) -> Iterator[str]:
    """What is not wrong and yet worth knowing, for params that ``deep`` finds nothing wrong with."""
    for name in ("finetune", "student"):
        section: Network = getattr(params, name)
        for line in _started(section):
            yield f"{name}.{line}" if line.startswith(_PREPROCESSING) else f"{name}.weights: {line}"
    if params.run.processes > 1:
        yield from _of_a_share(params)


# what these compare lies in a process's own share of the batch (tests/thinner/test_training.py trains with every loss)
RELATING = ("dist", "rkd", "rkd_pooled", "pkt", "pkt_pooled", "sp", "crd", "review")


def _of_a_share(params: Params) -> Iterator[str]:
    """Where several processes train something else than one with the same batch would (docs/gpu.md)."""
    run = params.run
    for number, part in enumerate(params.distill.losses):
        if part.name in RELATING:
            yield (
                f"distill.losses[{number}].name: '{part.name}' compares the images of a batch, and each of the "
                f"{run.processes} processes of data-parallel training compares those of its own share"
            )
    networks = {name: models.describe(getattr(params, name), _CLASSES) for name in ("finetune", "student")}
    of_a_batch = nn.modules.batchnorm._BatchNorm
    normed = [
        n for n, spec in networks.items() if any(isinstance(m, of_a_batch) for m in models.skeleton(spec).modules())
    ]
    if normed and not run.sync_batch_norm:
        yield (
            f"run.sync_batch_norm: false: the batch norms of {' and '.join(normed)} see the share that each of the "
            f"{run.processes} processes has of a batch. On CUDA devices true has them see all of it"
        )


_PREPROCESSING = ("mean: ", "std: ", "image_size: ")


def _losses(params: Params, built: Mapping[str, nn.Module], teacher: Seeing | None) -> Iterator[str]:
    for number, part in enumerate(params.distill.losses):
        where = f"distill.losses[{number}]"
        if part.name not in losses.LOSSES:
            yield f"{where}.name: unknown '{part.name}'. Choose one of: {', '.join(losses.LOSSES)}"
            continue
        given = {k: v for k, v in part.parameters.items() if k != "warmup_epochs"}
        warm = part.parameters.get("warmup_epochs")
        if warm is not None and (type(warm) not in (int, float) or not 0 <= warm < math.inf):
            yield f"{where}.warmup_epochs: {warm!r} is no number of epochs. Give one from 0 on, or null"
        needs = losses.LOSSES[part.name].needs & {"features", "pooled"}
        if needs and params.distill.teacher == "cached":
            yield from _kept(params, where, given.get("teacher_layers", []), whole="features" in needs)
        try:
            losses.check_parameters(part.name, given)
        except UserError as error:
            yield f"{where}: {error}"
            continue
        try:
            losses.check_parameters(part.name, losses.with_temperature(part.name, given, params.distill.temperature))
        except UserError as error:
            yield f"distill.temperature: {params.distill.temperature:g} goes to {where}, and {error}"
            continue
        if needs and params.teach.teachers[0].endswith(".npz"):
            yield (
                f"{where}.name: '{part.name}' compares layers, but the first of teach.teachers, "
                f"'{params.teach.teachers[0]}', is a file of logits. Put a network first, or choose one of: "
                f"{_OF_LOGITS}"
            )
        elif needs:
            yield from _compared(params, where, part, given, built, teacher)


_OF_LOGITS = ", ".join(name for name, row in losses.LOSSES.items() if row.make is None)


def _compared(
    params: Params,
    where: str,
    part: LossPart,
    given: dict[str, Any],
    built: Mapping[str, nn.Module],
    teacher: Seeing | None,
) -> Iterator[str]:
    """Whether the layers of a loss are there and can be compared: in distill, and in all that prune recovers."""
    theirs: dict[str, Tensor] | None = None
    maps = part.name != "sp"  # which compares images by all numbers of a layer, wherever they stand
    if teacher is not None:
        try:
            theirs = _outputs(teacher, given["teacher_layers"], maps=maps)
        except UserError as error:
            yield f"{where}.teacher_layers: {error}"
    learners = {"student": ""}
    if "finetune" in _pruned(params):
        learners["finetune"] = (
            "; prune.source: finetune is recovered with this loss too. Set prune.source: distill"
            if params.prune.source == "finetune"
            else "; prune_also: [finetune] is recovered with this loss too. Take 'finetune' out of prune_also"
        ) + f", or choose a loss of logits: {_OF_LOGITS}"
    for section_name, also in learners.items():
        if section_name not in built:
            continue
        section: Network = getattr(params, section_name)
        model = built[section_name]
        try:
            ours = _outputs((model, _shape(section)), given["student_layers"], maps=maps)
        except UserError as error:
            yield f"{where}.student_layers: {error}{also}"
            continue
        sized = ours
        if _shape(section) != _shape(params.student):
            # tasks/distillation.py sizes what compares layers by images of the student's shape, whatever is recovered
            try:
                sized = _outputs((model, _shape(params.student)), given["student_layers"], maps=maps)
            except _NO_WAY_THROUGH:
                yield (
                    f"{where}.student_layers: are sized by the student's images, {_said(_shape(params.student))}, "
                    f"which do not go through '{section.network}' (made for {_said(_shape(section))}){also}"
                )
                continue
        if theirs is not None and (problem := _at_odds(part.name, given, sized, ours, theirs)):
            yield f"{where}: {problem}{also}"


def _said(shape: tuple[int, int, int]) -> str:
    return f"{shape[1]} px in {shape[0]} channel" + "s" * (shape[0] > 1)


def _outputs(seeing: Seeing, paths: Sequence[str], *, maps: bool = True) -> dict[str, Tensor]:
    """What the layers at ``paths`` give for two images, without the numbers. Raises NetworkError, also for what must be
    ``maps`` and has its channels last."""
    model, shape = seeing
    model = copy.deepcopy(model).to("meta").eval()  # the hooks go with the copy
    outputs = models.tap(model, paths)
    with torch.no_grad():
        model(torch.empty(2, *shape, device="meta"))
    for path in paths:
        if not isinstance(outputs.get(path), Tensor):
            raise models.NetworkError(f"layer '{path}' gives no tensor. Name another, or one within it")
        sizes = list(outputs[path].shape[1:])
        if maps and len(sizes) == 3 and sizes[0] == sizes[1] != sizes[2]:
            raise models.NetworkError(
                f"layer '{path}' gives {sizes}, the channels last, and what compares maps takes them first. Name a "
                "layer that gives [channels, height, width]"
            )
    return outputs


def _at_odds(
    name: str,
    given: dict[str, Any],
    sized: Mapping[str, Tensor],
    student: Mapping[str, Tensor],
    teacher: Mapping[str, Tensor],
) -> str | None:
    """Why the loss cannot compare such layers: it is made for layers like ``sized``, as in distill, and called once."""
    shapes = [{path: tuple(output.shape[1:]) for path, output in side.items()} for side in (sized, teacher)]
    zeros = [{path: torch.zeros(output.shape) for path, output in side.items()} for side in (student, teacher)]
    logits = torch.zeros(2, _CLASSES)
    index = torch.arange(2)
    try:
        combined = losses.combine([(name, 1.0, given, None)], shapes[0], shapes[1], images=_IMAGES)
        with torch.no_grad():
            combined(logits, logits, index, student_features=zeros[0], teacher_features=zeros[1], index=index)
    except UserError as error:
        return str(error)
    except (RuntimeError, IndexError, ValueError) as error:
        pairs = zip(given["student_layers"], given["teacher_layers"], strict=True)
        listed = ", ".join(f"{s} {list(student[s].shape[1:])} with {t} {list(teacher[t].shape[1:])}" for s, t in pairs)
        return f"{name}: cannot compare {listed} ({one_line(error)}). Name layers of other shapes"
    return None


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


def _features(params: Params, teacher: Seeing | None) -> Iterator[str]:
    seen: set[str] = set()
    for number, feature in enumerate(params.teach.features):
        where = f"teach.features[{number}].layer"
        if feature.layer in seen:
            yield f"{where}: '{feature.layer}' is named twice. Name each layer once"
        seen.add(feature.layer)
        if teacher is not None:
            try:
                models.tap(copy.deepcopy(teacher[0]), [feature.layer])
            except UserError as error:
                yield f"{where}: {error}"


def _pruned(params: Params) -> dict[str, str]:
    """Sections whose networks are pruned -> the first source that has this network."""
    sources: dict[str, str] = {}
    for candidate in (params.prune.source, *params.prune_also):
        sources.setdefault("finetune" if candidate == "finetune" else "student", candidate)
    return sources


def _pruning(params: Params, built: Mapping[str, nn.Module], classes: int | None) -> Iterator[str]:
    prune = params.prune
    sources = _pruned(params)
    yield from _rewinding(params)
    if prune.asked.is_drop and prune.rounds == 1:
        yield (
            "prune.rounds: 1, but with target max_drop the last round cuts to the smallest network that can be "
            "reached, and here it is the only one. Set prune.rounds: 10, so that milder ones come before it"
        )
    if keep := list(_keep(params, {name: built[name] for name in sources if name in built})):
        yield from keep
        return
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
    yield from _control(params, built, classes)
    for section_name, source in sources.items():
        for line in _reachable(params, section_name, built[section_name], classes) if section_name in built else ():
            yield line if source == prune.source else f"{line}; or take '{source}' out of prune_also"


def _control(params: Params, built: Mapping[str, nn.Module], classes: int | None) -> Iterator[str]:
    """`small` is cut to prune's size: a network that cannot be cut, or is smaller to begin with, is no control."""
    asked, control = params.prune.asked, params.small.source
    mine, its = ("finetune" if name == "finetune" else "student" for name in (control, params.prune.source))
    if mine == its or mine not in built or its not in built:
        return
    unit = "macs" if asked.is_measured else asked.unit  # as tasks/small.py counts it
    section: Network = getattr(params, mine)
    try:
        own, _ = _reach(params, section, unit, classes or _CLASSES)
    except UserError as error:
        if mine not in _pruned(params):  # else `_reachable` says it
            yield f"small.source: {control}: '{section.network}': {error}"
        return
    if asked.is_drop or asked.is_measured:
        return
    try:
        now, fewest = _reach(params, getattr(params, its), unit, classes or _CLASSES)
    except UserError:
        return
    left = fewest if ":" in params.prune.granularity else asked.limit(now, fewest)
    if own < left and classes is None:
        try:
            if _reach(params, section, unit, _MANY_CLASSES)[0] >= left:
                return
        except UserError:  # a network of one's own may take no others
            return
    if own < left:
        yield (
            f"small.source: {control}, whose '{section.network}' has {asked.sized(own)}, but of "
            f"{params.prune.source} {asked.sized(left)} are to be left: it would be no control at prune's size. Set "
            f"small.source: {'scratch' if mine == 'finetune' else 'finetune'}"
        )


def _keep(params: Params, networks: Mapping[str, nn.Module]) -> Iterator[str]:
    """Patterns that are none, or that keep nothing of any of ``networks`` (section -> what is pruned)."""
    single = params.prune.granularity != "channels"  # then no layer is kept for the module that it lies in
    paths = [
        name
        for network in networks.values()
        for name, module in _with_weights(network).items()
        if not single or isinstance(module, nn.modules.conv._ConvNd | nn.Linear)
    ]
    for number, pattern in enumerate(params.prune.keep):
        where = f"prune.keep[{number}]"
        try:
            found = re.compile(pattern)
        except (re.error, OverflowError) as error:
            yield (
                f"{where}: '{pattern}' is not a regular expression ({error}). "
                f"Where its signs stand for themselves, write '{re.escape(pattern)}'"
            )
            continue
        if paths and not any(found.search(path) for path in paths):
            names = " or ".join(f"'{getattr(params, name).network}'" for name in networks)
            near = difflib.get_close_matches(pattern, paths, 5, 0.4)
            hint = f"Near: {', '.join(near)}" if near else f"There are for example: {', '.join(paths[:5])}"
            kinds = "convolution or linear layer" if single else "layer with weights"
            yield (
                f"{where}: '{pattern}' matches no {kinds} of {names}. {hint}. "
                "All of them: python -m tasks.check --layers"
            )


def _reachable(params: Params, section_name: str, skeleton: nn.Module, classes: int | None) -> Iterator[str]:
    """Whether the network of this section can be pruned, by this criterion, and as far as is asked."""
    prune = params.prune
    section: Network = getattr(params, section_name)
    if prune.criterion == "apoz" and not _gives_zeros(skeleton, _shape(section)):
        yield (
            f"prune.criterion: 'apoz' counts zeros among activations, and '{section.network}' has no activation that "
            "gives any (ReLU, ReLU6, Hardswish): all channels would look alike. Choose for example one of: taylor, "
            "mean_activation, l2"
        )
    asked = prune.asked
    unit = asked.unit
    try:
        now, fewest = _reach(params, section, unit, classes or _CLASSES)
    except architectures.ArchitectureError as error:
        yield f"{section_name}.network: '{section.network}': {error}"
        return
    except UserError as error:
        yield str(error)
        return
    if asked.is_drop:
        if fewest >= now:
            yield f"prune.target: nothing of '{section.network}' can go. Lower prune.round_to, or shorten prune.keep"
        return
    wanted = asked.limit(now, fewest)
    if classes is None and not asked.is_measured and not fewest <= wanted < now:
        for number in (_FEW_CLASSES, _MANY_CLASSES):
            try:
                most, least = _reach(params, section, unit, number)
            except UserError:  # a network of one's own may take no others: prune will say it
                return
            if least <= asked.limit(most, least) < most:
                return
    if wanted < fewest:
        yield (
            f"prune.target: {asked.sized(wanted)} are asked for; '{section.network}' has "
            f"{asked.sized(now)}; " + pruning.out_of_reach(unit, now, fewest, prune.round_to, prune.keep)
        )
    elif wanted >= now:
        yield (
            f"prune.target: {asked.sized(wanted)} are asked for, and '{section.network}' has no more than "
            f"{asked.sized(now)} to begin with. Ask for less, down to {asked.sized(fewest)}"
        )


def _reach(params: Params, section: Network, unit: Any, classes: int) -> tuple[float, float]:
    """(size now, smallest size) of a fresh network; a latency is measured, here and now."""
    prune, spec, shape = params.prune, models.describe(section, classes), _shape(section)
    if prune.granularity != "channels":
        return _zeros_reach(spec, prune.granularity, tuple(prune.keep))
    layout_ = torch.channels_last if params.run.channels_last else torch.contiguous_format
    clock = pruning.Clock(prune.latency_batch, layout_) if unit == "latency_ms" else None
    reach = _channels_reach if clock is None else _channels_reach.__wrapped__
    rounds = pruning.cuts_in_a_row(unit, prune.schedule, prune.rounds)
    return reach(spec, shape, unit, prune.criterion, prune.scope, prune.round_to, tuple(prune.keep), rounds, clock)


def _fresh(spec: NetworkSpec) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return models.create(spec)


@functools.cache
def _channels_reach(
    spec: NetworkSpec, shape: tuple[int, int, int], unit: Any, criterion: str, scope: str, round_to: int,
    keep: tuple[str, ...], rounds: int, clock: pruning.Clock | None,
) -> tuple[float, float]:  # fmt: skip
    # the dependency graph is read off a real forward pass
    return pruning.reachable(
        unit, _fresh(spec), torch.zeros(1, *shape), criterion=criterion, scope=scope, round_to=round_to, keep=keep,
        clock=clock, rounds=rounds,
    )  # fmt: skip


@functools.cache
def _zeros_reach(spec: NetworkSpec, granularity: str, keep: tuple[str, ...]) -> tuple[float, float]:
    model = _fresh(spec)
    for parameter in model.parameters():  # a fresh network has biases of 0, a trained one has not
        if parameter.ndim == 1:
            nn.init.ones_(parameter)
    if granularity == "weights":
        return masks.reachable(model, keep)
    n, _, m = granularity.partition(":")
    masks.apply(model, pattern := masks.mask_pattern(model, int(n), int(m), criterion="l2", keep=keep))
    zeros = sum(int((~mask).sum()) for mask in pattern.values())
    return count_params(model), count_params(model) - zeros


class _Activations(TorchDispatchMode):
    """Notes whether an operator runs that sends a range of numbers to zero: some call it by no module."""

    def __init__(self) -> None:
        super().__init__()
        self.give_zeros = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__.rstrip("_")
        # ReLU6 is a hardtanh that begins at 0
        self.give_zeros |= name in ("relu", "hardswish") or (name == "hardtanh" and args[1] == 0)
        return func(*args, **(kwargs or {}))


def _gives_zeros(model: nn.Module, shape: tuple[int, int, int]) -> bool:
    model = copy.deepcopy(model).eval()
    with torch.no_grad(), _Activations() as seen:
        model(torch.empty(1, *shape, device="meta"))
    return seen.give_zeros


def _rewinding(params: Params) -> Iterator[str]:
    """Early weights are there only if the training of what is pruned keeps them, and gets as far."""
    for name in ("finetune", "student"):
        plan = getattr(params, name).training
        rewound = params.prune.rewind and name in _pruned(params)
        where = f"{name}.training.keep_step"
        if plan.keep_step is None:
            if rewound:
                yield (
                    f"prune.rewind: true, but {where} is null: no early weights are kept. "
                    f"Set {where}: 100, or prune.rewind: false"
                )
            continue
        images = _labelled(params) if name == "finetune" else None  # the student's length is given in steps
        if plan.steps is None and images is None:
            continue
        steps, validate_every = training.steps_of(
            images or 0,
            batch_size=plan.batch_size,
            steps=plan.steps,
            epochs=plan.epochs,
            validate_every=plan.validate_every,
        )
        if plan.keep_step >= steps:
            of = f" ({plan.epochs} epochs of {images:,} images, {plan.batch_size} at once)" if plan.epochs else ""
            yield f"{where}: {plan.keep_step}, but the training has {steps} steps{of}. Give an earlier one"
        elif rewound and plan.patience is not None and (plan.validate_every or images):
            surely = (1 + plan.patience) * validate_every
            if plan.keep_step >= surely:
                yield (
                    f"{where}: {plan.keep_step}, but {name}.training.patience: {plan.patience} may end the training "
                    f"after {surely} steps, and prune.rewind: true needs that step. Give an earlier one, or "
                    "patience: null"
                )


def _labelled(params: Params) -> int | None:
    """How many images finetune sees, where that is known: a count, or what prepare made of this very section."""
    if isinstance(params.data.labelled, int):
        return params.data.labelled
    count = _prepared(params).get("counts", {}).get("labelled")
    return None if count is None else int(count)


def _classes(params: Params) -> int | None:
    """How many classes the pictures have, where they are prepared."""
    return len(_prepared(params).get("classes", ())) or None


def _prepared(params: Params) -> Mapping[str, Any]:
    """What prepare wrote of this very section of params.yaml; nothing where it has not run, or of another."""
    try:
        found = json.loads(Path("data/prepared/info.json").read_text(encoding="utf-8"))
        lock = yaml.load(Path("dvc.lock").read_text(encoding="utf-8"), Loader=_LOADER)  # noqa: S506 - a safe one
        made_of = lock["stages"]["prepare"]["params"]["params.yaml"]["data"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return {}
    return found if made_of == params.data.model_dump() and isinstance(found, dict) else {}


def _claims(params: Params) -> Iterator[str]:
    from thinner.evidence import statistics
    from thinner.measure import operating

    for number, text in enumerate(params.claims):
        try:
            claim = statistics.parse_claim(text, layout.candidate_names(params), list(catalogue.RUNTIMES))
        except UserError as error:
            yield f"claims[{number}]:\n" + textwrap.indent(str(error), "    ")
            continue
        if claim.at_least is not None and not any(math.isclose(claim.at_least, at) for at in operating.TARGETS):
            known = ", ".join(f"{100 * at:g}" for at in operating.TARGETS)
            yield f"claims[{number}]: at least {100 * claim.at_least:g} % is no operating point. Choose one of: {known}"
        if claim.metric != "latency" or claim.device:  # whether a device has timed it is for the report to say
            continue
        if claim.batch not in params.evaluate.latency_batches:
            timed = ", ".join(str(batch) for batch in params.evaluate.latency_batches)
            yield f"claims[{number}]: batch {claim.batch} is not timed. Choose one of evaluate.latency_batches: {timed}"
        if params.evaluate.latency_repeats < statistics.FEWEST_ROUNDS:
            yield (
                f"evaluate.latency_repeats: {params.evaluate.latency_repeats}, but claims[{number}] is about speed. "
                f"Give it {statistics.FEWEST_ROUNDS} or more"
            )
        for name in (claim.candidate, claim.reference):
            if line := _not_run(name, str(claim.runtime), params):
                yield f"claims[{number}]: {line}"


def _not_run(name: str, runtime: str, params: Params) -> str | None:
    """Why ``name`` is not timed in ``runtime``, and what to do; None where it is."""
    own = layout.runtime_of(params, name)
    if own == runtime:
        return None
    if runtime == catalogue.PYTORCH:
        return f"'{name}' does not run in PyTorch, which is meant where none is named. Write after the batch: in {own}"
    export = catalogue.exported(runtime, name)
    if export in layout.candidate_names(params):
        return None
    words = catalogue.RUNTIMES[runtime].words
    if name not in layout.networks(params):
        return f"'{name}' does not run in {words}. Name the network that it was made of"
    format_ = export.removeprefix(f"{name}_")
    mends = ["it to export.candidates"] * (name not in params.export.candidates)
    mends += [f"{format_} to export.formats"] * (format_ not in params.export.formats)
    return f"'{name}' is not exported for {words}. Add {' and '.join(mends)}"


def _source(source: str, root: str) -> Iterator[str]:
    from thinner.data import sources

    kind, _, name = source.partition(":")
    try:
        if kind == "torchvision":
            sources.check_torchvision_name(name)
        sources.check_files(root, source)
    except UserError as error:
        yield str(error)
        return
    if kind == "torchvision" and Path(root) != Path("data/raw") and not Path(root, "torchvision").is_dir():
        yield (
            f"data.root: '{root}' has no folder torchvision, and a set is downloaded to data/raw alone: DVC would see "
            "pictures come where it watches. Set data.root: data/raw"
        )
