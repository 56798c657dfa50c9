"""Every choice of params.yaml as frozen models: what is wrong is named before anything runs.

``load_params`` reads the file and checks all that can be checked without torch: unknown keys, types, bounds,
keys that contradict each other. ``deep=True`` also looks networks, weights, criteria and losses up and checks
that the stages fit together; it imports torch, so the flow leaves it to the stages and to ``tasks.check``.

All errors of a file are raised together, one line each: key, value, mend.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from thinner import decision, yaml_files
from thinner.errors import UserError
from thinner.target import Key, Target


class ParamsError(UserError):
    """params.yaml cannot be run; ``str()`` has one line per mistake."""

    def __init__(self, path: str | Path, lines: Iterable[str]) -> None:
        self.lines = list(lines)
        count = f"{len(self.lines)} mistake" + ("s" if len(self.lines) > 1 else "")
        super().__init__("\n".join([f"{path}: {count}", *(f"  {line}" for line in self.lines)]))


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


# 1 is an int, and people mean a number by it
def _number(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return math.inf  # which is refused
    return value


_Real = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Ratio = Annotated[_Real, Field(ge=0.0, le=1.0)]
Positive = Annotated[_Real, Field(gt=0.0)]
NonNegative = Annotated[_Real, Field(ge=0.0)]
Count = Annotated[int, Field(ge=1, le=10**12)]


def _share(value: int | float) -> int | float:
    if isinstance(value, bool) or value < 0 or (isinstance(value, float) and value > 1):
        raise ValueError("must be a whole number of images, or a ratio between 0.0 and 1.0")
    return value


Share = Annotated[int | float, AfterValidator(_share)]


class Run(Section):
    """What holds for every stage."""

    seed: Annotated[int, Field(ge=0, lt=2**31)]
    device: Literal["auto", "cpu", "cuda", "mps"]
    devices: Count
    nodes: Count
    precision: Literal["fp32", "tf32", "bf16", "fp16"]
    threads: Literal["auto"] | Count
    channels_last: bool
    compile: bool
    sync_batch_norm: bool

    @property
    def processes(self) -> int:
        """Of data-parallel training, on all machines."""
        return self.devices * self.nodes


class Data(Section):
    source: Annotated[str, Field(pattern=r"^(torchvision|folder|csv):.+$")]
    root: str
    image_size: Annotated[int, Field(ge=8, le=1024)]
    channels: Literal[1, 3]
    fit: Literal["crop", "pad", "stretch"]
    labelled: Share
    validation: Share | None
    test: Share | None
    unlabelled: Literal["rest"] | Annotated[int, Field(ge=0)]
    max_unreadable: Ratio
    max_pixels: Annotated[int, Field(ge=1)]
    corrections: Annotated[str, Field(min_length=1)] | None
    near_duplicates: Literal["keep", "one_split"]

    @model_validator(mode="after")
    def _files_lie_below_root(self) -> Data:
        if self.corrections is not None:
            root, file = (Path(os.path.normpath(text)) for text in (self.root, self.corrections))
            if root not in file.parents:
                raise ValueError(
                    f"corrections: '{self.corrections}' lies outside of data.root ('{self.root}'), so DVC would not "
                    f"notice a change. Move it: data.corrections: {root / file.name}"
                )
        kind, _, place = self.source.partition(":")
        if kind != "torchvision":
            root, path = (Path(os.path.normpath(text)) for text in (self.root, place))  # ".." leads out as well
            if root != path and root not in path.parents:
                raise ValueError(
                    f"root: '{self.root}' does not hold '{place}', so DVC would not notice a changed picture. "
                    f"Set data.root: {path if kind == 'folder' else path.parent}"
                )
        return self


class Imbalance(Section):
    """What is done about unequal classes, in every training that learns from labels; at rest as shipped."""

    weights: Literal["none", "balanced"]
    sampling: Literal["natural", "balanced"]
    logit_adjustment: Annotated[_Real, Field(ge=0.0, le=10.0)]
    choose_by: Literal["accuracy", "balanced_accuracy", "macro_f1", "worst_class"]

    @model_validator(mode="after")
    def _corrects_once(self) -> Imbalance:
        given = {"weights": self.weights, "sampling": self.sampling, "logit_adjustment": self.logit_adjustment}
        on = [key for key, value in given.items() if value not in ("none", "natural", 0.0)]
        if len(on) > 1:
            first, *others = (f"{key}: {given[key]}" for key in on)
            off = {"weights": "none", "sampling": "natural", "logit_adjustment": "0.0"}
            raise ValueError(
                f"{first} and {' and '.join(others)} each make all classes count alike; together they correct twice "
                "(Menon et al. 2021, theorem 1). Keep one, and set "
                + " and ".join(f"imbalance.{key}: {off[key]}" for key in on[1:])
            )
        return self


class Augmentation(Section):
    """How far a view may stray from its image; all at rest is the image itself."""

    crop: Annotated[float, Field(gt=0.0, le=1.0)]  # smallest side of the crop, ratio of the image's side
    flip: bool
    rotation_degrees: NonNegative
    translation: Ratio
    brightness: Ratio
    contrast: Ratio
    saturation: Ratio
    erase: Ratio
    # these two came later: a file without them keeps its meaning
    aspect: Annotated[_Real, Field(gt=0.0, le=1.0)] = 1.0  # least ratio of a crop's sides
    policy: Literal["trivialaugment"] | None = None

    @property
    def still(self) -> bool:
        """Whether views are the image itself."""
        at_rest = self.crop == self.aspect == 1.0
        return at_rest and not any(self.model_dump(exclude={"crop", "aspect"}).values())


class Budget(Section):
    """How long and how fast a network is trained."""

    optimizer: Literal["sgd", "adam", "adamw"]
    lr: Positive
    head_lr: Positive | None
    weight_decay: NonNegative
    schedule: Literal["constant", "cosine", "linear", "onecycle"]
    warmup: Ratio
    epochs: Count | None
    steps: Count | None
    validate_every: Count | None
    batch_size: Annotated[int, Field(ge=2)]
    clip_norm: Positive | None
    ema: Annotated[float, Field(ge=0.0, lt=1.0)]
    patience: Count | None
    keep_step: Count | None

    @model_validator(mode="after")
    def _one_length(self) -> Budget:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(
                f"epochs: {self.epochs} and steps: {self.steps}. Give one of the two, and null for the other"
            )
        return self


class Training(Budget):
    """A budget, and what training with labels can have beside it."""

    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)]
    mixup: NonNegative
    cutmix: NonNegative


class Network(Section):
    """A network by name, its weights, and what it wants to see."""

    network: str
    width: Count | None
    stem_stride: Literal[1, 2] | None
    weights: str | None
    image_size: Annotated[int, Field(ge=8, le=1024)]
    mean: Annotated[list[float], Field(min_length=1, max_length=3)]
    std: Annotated[list[Positive], Field(min_length=1, max_length=3)]

    @model_validator(mode="after")
    def _fits_itself(self) -> Network:
        if len(self.mean) != len(self.std) or len(self.mean) == 2:
            raise ValueError(f"mean: {self.mean} and std: {self.std} must both have 1 value (grey) or 3 (colour)")
        ours = re.fullmatch(r"resnet\d+", self.network)
        for key in ("width", "stem_stride"):
            if ours and getattr(self, key) is None:
                raise ValueError(
                    f"{key}: null, but network '{self.network}' needs one. Set for example {key}: "
                    + ("16" if key == "width" else "1")
                )
            if not ours and getattr(self, key) is not None:
                raise ValueError(
                    f"{key}: {getattr(self, key)} belongs to the resnetN family; set {key}: null for '{self.network}'"
                )
        return self

    @property
    def channels(self) -> int:
        return len(self.mean)


class Finetune(Network):
    freeze: Annotated[int, Field(ge=0)]
    probe_steps: Annotated[int, Field(ge=0)]
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)]
    augment: Augmentation
    training: Training


class SelfTrain(Section):
    """One round of self-training of the fine-tuned network; with no ``networks`` there is no such stage."""

    networks: list[Literal["finetune"]]
    method: Literal["freematch", "fixmatch"]
    threshold: Annotated[float, Field(gt=0.0, lt=1.0)]
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)]
    ratio: Count
    weight: Positive
    weak: Augmentation
    strong: Augmentation
    training: Training

    @model_validator(mode="after")
    def _fits_itself(self) -> SelfTrain:
        if len(self.networks) > 1:
            raise ValueError(f"networks: {self.networks} names one twice. Name it once")
        if self.training.steps is None:
            raise ValueError(
                f"training.epochs: {self.training.epochs}, but an epoch of the labelled images does not say how long "
                "the others are seen. Set training.epochs: null and training.steps: 500"
            )
        if self.training.keep_step is not None:
            raise ValueError("training.keep_step: nothing is rewound to this training. Set null")
        if self.strong.still:
            raise ValueError(
                "strong: is the picture itself, so a network would learn only what it says already. Set for example "
                "strong.crop: 0.5 and strong.erase: 0.5"
            )
        return self


class Student(Network):
    """The small network, its views and its budget: the same for scratch and for distill."""

    augment: Augmentation
    training: Budget


class Control(Section):
    """A control has the network, views and number of steps of what it is compared with; what follows is its own."""

    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)]
    mixup: NonNegative
    cutmix: NonNegative


class Small(Control):
    source: Literal["finetune", "scratch"]


class Feature(Section):
    """A layer of the teacher whose output is kept for losses that compare features."""

    layer: str
    keep: Literal["map", "pooled"]


class Teach(Section):
    teachers: Annotated[list[str], Field(min_length=1)]
    combine: Literal["mean", "accuracy"]
    at_chance: Literal["refuse", "allow"]
    views: Count
    flip: bool
    batch_size: Count
    top_k: Count | None
    features: list[Feature]


class LossPart(BaseModel):
    """One term of the distillation loss; keys beyond these two are the loss's own parameters (docs/losses.md)."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    name: str
    weight: Positive

    @property
    def parameters(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Distill(Section):
    teacher: Literal["cached", "live"]
    temperature: Positive
    losses: Annotated[list[LossPart], Field(min_length=1)]


def _target(value: dict[str, Any]) -> dict[str, Any]:
    known = ("macs", "params", "latency_ms", "max_drop")
    given = {key: amount for key, amount in value.items() if amount is not None}
    for key, amount in given.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            raise ValueError(
                f"has an unknown key '{key}'. " + (f"Did you mean '{near[0]}'?" if near else f"Known: {known}")
            )
        whole = isinstance(amount, int) and not isinstance(amount, bool)
        if key in ("macs", "params"):
            if not ((whole and amount >= 1) or (isinstance(amount, float) and 0.0 < amount < 1.0)):
                raise ValueError(
                    f"has {key}: {amount!r}. Give a share above 0.0 and below 1.0, or a count as a whole number"
                )
        elif not ((whole or isinstance(amount, float)) and amount > 0):
            raise ValueError(f"has {key}: {amount!r}. Give " + ("milliseconds" if key == "latency_ms" else "points"))
    if len(given) != 1:
        raise ValueError(f"must have one of the keys {', '.join(known)}, and has {len(given)}. Set the others to null")
    return given


def _pattern(value: Any) -> Any:
    if isinstance(value, int):  # YAML reads 2:4 as a number to the base of 60
        raise ValueError(  # noqa: TRY004 - pydantic turns ValueErrors into lines
            f"is read as a number. Put it in quotes: '{value // 60}:{value % 60}'"
        )
    return value


Prunable = Literal["distill", "finetune", "scratch"]


class Prune(Section):
    source: Prunable
    granularity: Annotated[str, BeforeValidator(_pattern), Field(pattern=r"^(channels|weights|[1-9]\d*:[1-9]\d*)$")]
    target: Annotated[dict[str, Any], AfterValidator(_target)]
    rounds: Annotated[int, Field(ge=1, le=50)]
    schedule: Literal["one_shot", "linear", "cubic", "geometric"]
    scope: Literal["global", "layer", "isomorphic"]
    criterion: str
    images: Count
    sparsity: NonNegative
    round_to: Count
    keep: list[str]
    latency_batch: Count
    tolerance: Ratio | None
    on_miss: Literal["fail", "keep"]
    stop_drop: Positive | None
    rewind: bool
    training: Budget

    @property
    def asked(self) -> Target:
        """The target as one value, for everything that cuts, checks and tells."""
        ((key, value),) = self.target.items()
        return Target(cast(Key, key), value, self.granularity, self.latency_batch, self.tolerance)

    @model_validator(mode="after")
    def _fits_itself(self) -> Prune:
        key, value = self.asked.key, self.asked.value
        if self.schedule == "one_shot" and self.rounds > 1:
            raise ValueError(
                f"rounds: {self.rounds}, but schedule 'one_shot' has one. Set rounds: 1, or another schedule"
            )
        if key == "max_drop" and self.schedule == "one_shot":
            raise ValueError("schedule: 'one_shot' goes nowhere with target max_drop. Choose geometric, and rounds: 10")
        if self.sparsity > 0 and self.criterion != "bn_scale":
            raise ValueError(
                f"sparsity: {self.sparsity} pushes the scales of batch norms down, which criterion "
                f"'{self.criterion}' does not look at. Set sparsity: 0.0, or criterion: bn_scale"
            )
        if self.training.keep_step is not None:
            raise ValueError("training.keep_step: rewinding goes to the source's training, not to a recovery. Set null")
        if self.granularity == "channels":
            return self
        if key in ("macs", "latency_ms"):
            raise ValueError(
                f"target: {{{key}: {value}}}, but granularity '{self.granularity}' sets weights to zero where they "
                "stand: as many MACs, the same speed. Set target: {params: 0.5}, or granularity: channels"
            )
        if self.scope == "isomorphic":
            raise ValueError(f"scope: 'isomorphic' is for channels. Choose global or layer for '{self.granularity}'")
        if self.granularity != "weights" and self.rounds > 1:
            raise ValueError(
                f"rounds: {self.rounds}, but '{self.granularity}' is one pattern, not a growing share. Set 1"
            )
        if self.granularity != "weights" and key == "max_drop":
            raise ValueError(f"target: max_drop wants growing shares, and '{self.granularity}' is one. Set params")
        return self


class Quantize(Section):
    """The ladder to 8 bits: which network, which rungs, and how much accuracy it may cost."""

    source: Literal["finetune", "scratch", "distill", "small", "prune"]
    rungs: list[Literal["static", "mixed", "trained"]]
    max_drop: Annotated[_Real, Field(gt=0.0, le=100.0)]
    calibration: Annotated[list[Literal["minmax", "percentile", "entropy"]], Field(min_length=1)]
    images: Count
    max_float: Ratio
    latency_batch: Count
    training: Budget

    @property
    def candidate(self) -> str | None:
        """What comes out, as evaluate and claims call it; None where nothing is quantised."""
        return f"{self.source}_int8" if self.rungs else None

    @model_validator(mode="after")
    def _fits_itself(self) -> Quantize:
        order = [rung for rung in ("static", "mixed", "trained") if rung in self.rungs]
        if self.rungs != order:
            raise ValueError(f"rungs: {self.rungs} are climbed from below, each once. Write {order}")
        if self.rungs and "static" not in self.rungs:
            raise ValueError(f"rungs: {self.rungs} start from what static calibrates. Put static first, or set []")
        if len(set(self.calibration)) < len(self.calibration):
            raise ValueError(f"calibration: {self.calibration} names one twice. Name each once")
        for key in ("head_lr", "keep_step"):
            if getattr(self.training, key) is not None:
                raise ValueError(f"training.{key}: {getattr(self.training, key)}: not of a network in 8 bits. Set null")
        return self


class Export(Section):
    candidates: Annotated[list[str], Field(min_length=1)]
    formats: list[Literal["onnx", "onnx_int8", "pt2"]]
    preprocessing_in_graph: bool
    opset: Annotated[int, Field(ge=17)]
    calibration_images: Count


class Evaluate(Section):
    batch_size: Count
    latency_batches: Annotated[list[Count], Field(min_length=1)]
    latency_repeats: Annotated[int, Field(ge=6)]  # fewer have no 95 % interval
    latency_threads: Count
    corruptions: bool


class Report(Section):
    samples: Annotated[int, Field(ge=0, le=200)]


class Ship(Section):
    """Which candidate is brought to the model registry, and how much worse than today's champion it may be."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")] | None
    candidate: str
    margin_points: Annotated[_Real, Field(gt=0.0, le=100.0)]


class Params(Section):
    run: Run
    data: Data
    imbalance: Imbalance
    finetune: Finetune
    self_train: SelfTrain
    student: Student
    scratch: Control
    teach: Teach
    distill: Distill
    prune: Prune
    prune_also: list[Prunable]
    small: Small
    quantize: Quantize
    export: Export
    evaluate: Evaluate
    report: Report
    claims: list[str]
    ship: Ship

    @property
    def networks(self) -> dict[str, str]:
        """The networks that stages train, in the order in which tables show them, and the folders where they lie."""
        folders = {name: f"data/{name}" for name in ("finetune", "scratch", "distill", "small", "prune")}
        if self.self_train.networks:
            again = {name: f"data/{folder}" for name, folder in decision.FOLDERS.items()}
            folders = {"finetune": folders["finetune"], **again, **folders}
        return folders | {f"prune_{source}": f"data/prune_also/{source}" for source in self.prune_also}

    @property
    def candidate_names(self) -> list[str]:
        """What evaluate measures, in the order in which tables show it: the networks, then their exports."""
        exports = [f"{name}_{format_}" for name in self.export.candidates for format_ in self.export.formats]
        return [*self.networks, *exports, *([self.quantize.candidate] if self.quantize.candidate else [])]

    def folder_of(self, candidate: str) -> str:
        """Where what evaluate measures lies."""
        made = "quantize" if candidate == self.quantize.candidate else "export"
        return self.networks.get(candidate, f"data/{made}/{candidate}")


def load_params(path: str | Path = "params.yaml", deep: bool = False) -> Params:
    """The choices in ``path``. Raises ParamsError with every mistake of the file."""
    path = Path(path)
    if not path.is_file():
        raise ParamsError(
            path, ["no such file. Run from the repository's root, or restore it: git checkout params.yaml"]
        )
    try:
        raw = yaml_files.read(path)
    except yaml_files.YamlFileError as error:
        raise ParamsError(path, [str(error)]) from None
    except OSError as error:
        raise ParamsError(path, [f"cannot be read ({error.strerror})"]) from None
    if not isinstance(raw, dict):
        raise ParamsError(path, [f"must be sections with keys, found {type(raw).__name__}"])
    try:
        params = Params.model_validate(raw)
    except ValidationError as error:
        raise ParamsError(path, _readable(error, raw)) from None
    lines = list(_contradictions(params))
    if deep:
        lines += _deep_contradictions(params)
    if lines:
        raise ParamsError(path, lines)
    return params


def _readable(error: ValidationError, raw: dict[Any, Any]) -> list[str]:
    lines: dict[str, str] = {}
    for item in error.errors():
        kind, context = item["type"], item.get("ctx", {})
        parts, value = _place(item["loc"], raw, missing=kind == "missing")
        key, shown = ".".join(str(part) for part in parts), _shown(value)
        if kind == "extra_forbidden":
            known = _known_keys(parts[:-1])
            near = difflib.get_close_matches(str(parts[-1]), known, 1)
            hint = f"Did you mean '{near[0]}'?" if near else f"Known keys: {', '.join(known)}"
            line = f"unknown key (value {shown}). {hint}"
        elif kind == "missing":
            line = "missing. Add it; docs/params.md says what it does"
        elif kind == "literal_error":
            line = f"unknown {shown}. Choose one of: {context['expected']}"
        elif kind == "value_error":
            text = str(context["error"])
            if parts and parts[0] in Params.model_fields and ": " in text and " " not in text.split(": ", 1)[0]:
                inner, _, text = text.partition(": ")
                key = f"{key}.{inner}"
                line = text
            else:
                line = f"{shown} {text}"
        elif kind == "string_pattern_mismatch" and key == "data.source":
            line = f"unknown {shown}. Choose one of: torchvision:NAME, folder:PATH, csv:PATH"
        elif kind == "bool_type":
            line = f"{shown}: should be a valid boolean, true or false"
        else:
            message = item["msg"][0].lower() + item["msg"][1:]
            line = f"{shown}: {message.replace('input ', '')}"
        lines[key] = f"{lines[key]}; or {line}" if key in lines and lines[key] != line else line
    return [f"{key}: {line}" if key else line for key, line in lines.items()]


def _place(loc: tuple[int | str, ...], raw: Any, *, missing: bool) -> tuple[list[Any], Any]:
    """The keys of the file in pydantic's location, and the value there.

    pydantic adds to a location which branch of a union it tried ("int", "constrained-float"): no key of the file. It
    also writes keys that are no strings as such.
    """
    parts: list[Any] = []
    value = raw
    for number, part in enumerate(loc):
        if isinstance(value, dict):
            keys = [key for key in value if key == part or (not isinstance(key, str) and str(key) == part)]
            if keys:
                value = value[keys[0]]
                parts.append(part)
            elif missing and number == len(loc) - 1:
                parts.append(part)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
            parts.append(part)
    return parts, value


def _shown(value: Any) -> str:
    """A value on one line, not longer than a person wants to read."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:150]}... ({len(text):,} characters)"


def _known_keys(loc: list[Any]) -> list[str]:
    model: Any = Params
    for part in loc:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        while not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            annotation = annotation.__args__[0]
        model = annotation
    return list(model.model_fields)


def _contradictions(params: Params) -> Iterable[str]:
    """What pydantic cannot see because it spans sections."""
    for name in ("finetune", "student"):
        network: Network = getattr(params, name)
        if network.channels == 1 and params.data.channels == 3:
            yield (
                f"{name}.mean: one value (grey), but data.channels is 3. "
                f"Give {name}.mean and {name}.std three values, or set data.channels: 1"
            )
        yield from _watched(name, network)
    yield from _pruned_also(params)
    if params.self_train.networks and params.data.unlabelled == 0:
        yield (
            "self_train.networks: learns from pictures without labels, but data.unlabelled is 0. Set data.unlabelled: "
            "rest, or self_train.networks: []"
        )
    if params.prune.asked.is_drop and params.imbalance.choose_by != "accuracy":
        yield (
            f"imbalance.choose_by: '{params.imbalance.choose_by}' does not go with prune.target: max_drop, whose "
            "paired test is of accuracy. Set imbalance.choose_by: accuracy, or a target of macs, params or latency_ms"
        )
    if params.data.corrections is not None and not Path(params.data.corrections).is_file():
        yield f"data.corrections: no file '{params.data.corrections}'. Put it there, or set data.corrections: null"
    for number, name in enumerate(params.export.candidates):
        if name not in params.networks:
            yield f"export.candidates[{number}]: unknown '{name}'. Choose one of: {', '.join(params.networks)}"
    if params.ship.candidate not in params.candidate_names:
        yield f"ship.candidate: unknown '{params.ship.candidate}'. Choose one of: {', '.join(params.candidate_names)}"
    if params.run.precision == "fp16" and params.run.device == "cpu":
        yield "run.precision: 'fp16' does not train on cpu. Choose one of: fp32, bf16"
    several = "devices" if params.run.devices > 1 else "nodes"
    if params.run.processes > 1 and params.distill.teacher == "live" and params.run.compile:
        yield f"run.compile: true does not go with run.{several} > 1 and distill.teacher: live. Set run.compile: false"
    yield from _teachers(params)
    if params.export.preprocessing_in_graph and params.export.opset < 18:
        yield (
            f"export.opset: {params.export.opset}, but export.preprocessing_in_graph: true needs antialiased resizing, "
            "which came with 18. Set export.opset: 18 or more"
        )
    if params.student.training.steps is None:
        yield (
            f"student.training.epochs: {params.student.training.epochs}, but scratch sees fewer images than distill: "
            "equal epochs are unequal budgets. Set student.training.epochs: null and student.training.steps: 1000"
        )


def _pruned_also(params: Params) -> Iterable[str]:
    source, also = params.prune.source, params.prune_also
    others = ", ".join(name for name in get_args(Prunable) if name != source)
    if source in also:
        yield f"prune_also: '{source}' is prune.source, and pruned already. Choose one of: {others}"
    if len(set(also)) < len(also):
        yield f"prune_also: {also} names one twice. Name each once; the choices are: {others}"


TEACHERS, WEIGHTS = Path("data/teachers"), Path("data/weights")  # DVC watches these folders


def _watched(name: str, network: Network) -> Iterable[str]:
    """A weights file lies where DVC sees it change."""
    weights = network.weights
    if weights is None or weights == "timm" or weights.startswith(("package:", "torchvision:")):
        return
    path = Path(weights)
    if ".." in path.parts or WEIGHTS not in path.parents:
        if not path.is_file():
            yield (
                f"{name}.weights: unknown '{weights}'. Choose one of: null, package:DISTRIBUTION, torchvision:ENUM, "
                f"timm, {WEIGHTS}/NAME.safetensors, {WEIGHTS}/NAME.pth"
            )
            return
        yield (
            f"{name}.weights: '{weights}' lies where DVC would not notice a change. Put it below {WEIGHTS}: "
            f"mkdir -p {WEIGHTS} && cp '{weights}' {WEIGHTS}/ and set {name}.weights: {WEIGHTS / path.name}"
        )
    elif not path.is_file():
        yield f"{name}.weights: no weights file '{weights}'. Put it there, or set {name}.weights: null"
    elif not path.resolve().is_relative_to(WEIGHTS.resolve()):  # itself it may be one
        yield (
            f"{name}.weights: '{weights}' is a link to {path.resolve()}, which DVC does not watch. Copy the file: "
            f"cp --remove-destination '{path.resolve()}' {path}"
        )


def _teachers(params: Params) -> Iterable[str]:
    teach = params.teach
    for number, name in enumerate(teach.teachers):
        where, path = f"teach.teachers[{number}]", Path(name)
        if name == "finetune":
            continue
        if path.parent != TEACHERS:
            yield (
                f"{where}: unknown '{name}'. Choose one of: finetune, {TEACHERS}/NAME (a checkpoint's folder), "
                f"{TEACHERS}/NAME.npz (logits)"
            )
        elif not path.exists():
            yield f"{where}: '{name}' does not exist. Put the checkpoint's folder or the .npz there (docs/teachers.md)"
        elif path.suffix == ".npz" and not params.student.augment.still:
            yield (
                f"{where}: '{name}' knows the images only as they are, but student.augment moves them. "
                "Set crop 1.0, flip false and the rest 0.0, or use networks as teachers"
            )
    if teach.flip and (files := [name for name in teach.teachers if name.endswith(".npz")]):
        yield (
            f"teach.flip: true, but '{files[0]}' is a file of logits, which nobody can ask about mirror images. Set "
            "teach.flip: false"
        )
    if teach.flip and "finetune" in teach.teachers and not params.finetune.augment.flip:
        yield (
            "teach.flip: true, but finetune.augment.flip: false, so the teacher has never seen a mirror image. Set "
            "teach.flip: false; or finetune.augment.flip: true, unless left and right differ, as in text"
        )
    if len(set(teach.teachers)) < len(teach.teachers):
        yield f"teach.teachers: {teach.teachers} names one twice. Name each once"
    if teach.features and teach.teachers[0].endswith(".npz"):
        yield (
            f"teach.features: come from the first teacher, but '{teach.teachers[0]}' is a file of logits. "
            "Put a network first, or set teach.features: []"
        )


def _deep_contradictions(params: Params) -> list[str]:
    from thinner import checks

    return list(checks.deep(params))
