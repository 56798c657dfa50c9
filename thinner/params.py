"""Every choice of params.yaml as frozen models: what one value may be, and what goes together within a section.

``thinner.config`` reads the file into them. They decide what is refused, never what is computed: so they are no
dependency of any stage, and a new key of one does not run the others anew. Where networks lie: ``thinner.layout``.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from thinner.compress.target import Key, Target
from thinner.errors import did_you_mean
from thinner.runtimes import catalogue


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
    source: Annotated[str, Field(pattern=r"^(torchvision|folder|csv|shards):.+$")]
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
            is_tar = kind == "shards" and path.suffix == ".tar"
            if root != path and root not in path.parents:
                raise ValueError(
                    f"root: '{self.root}' does not hold '{place}', so DVC would not notice a changed picture. "
                    f"Set data.root: {path.parent if kind == 'csv' or is_tar else path}"
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
            raise ValueError(f"has an unknown key '{key}'. {did_you_mean(key, known, f'Known: {known}')}")
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


def _format(name: str) -> str:
    if name not in catalogue.FORMATS:
        raise ValueError(f"is no format. Choose one of: {', '.join(catalogue.FORMATS)}")
    return name


class Export(Section):
    candidates: Annotated[list[str], Field(min_length=1)]
    formats: list[Annotated[str, AfterValidator(_format)]]
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
