"""Who teaches: the networks and files of ``teach.teachers`` as one teacher."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from tasks import learning
from thinner.data import store, views
from thinner.errors import UserError
from thinner.evidence import decision
from thinner.files import whole
from thinner.learn import signals, training
from thinner.measure import scores
from thinner.networks import checkpoint
from thinner.params import Params


def plain_or_self_trained(params: Params) -> str:
    """The folder of the teacher called ``finetune``: that of the self-trained network where the stage self_train chose
    it, else data/finetune."""
    folder = f"data/{decision.FOLDERS[decision.LEARNER]}"
    if decision.PLAIN in params.self_train.networks:
        found = decision.read(Path(folder))
        if found is None:
            raise UserError(f"{folder}: self-training has not been done. Do it: thinner stage self_train@finetune")
        if found["chosen"] == decision.LEARNER:
            return folder
    return "data/finetune"


def parents(params: Params) -> dict[str, str]:
    """SHA-256 of the weights of each teacher, or of its file of logits, by its name or its place."""
    found = {}
    for name in params.teach.teachers:
        if name == "finetune":
            place = plain_or_self_trained(params)
            found[Path(place).parts[1]] = learning.parent(place)
        else:
            found[name] = whole.file_sha256(name) if name.endswith(".npz") else learning.parent(name)
    return found


@dataclass(frozen=True)
class Chosen:
    """``query`` is the teacher; the rest says what it was made of."""

    query: signals.Teacher
    sha256: dict[str, str]  # of each teacher's weights or file, by its name in teach.teachers
    weights: dict[str, float]  # add up to 1


def teacher(
    params: Params, data: store.Store, device: torch.device, features: Sequence[signals.Feature] = ()
) -> Chosen:
    """The teachers on ``device``, averaged as ``teach.combine`` says; the first one's ``features`` beside the logits.

    Raises UserError for a teacher at chance (teach.at_chance), SignalsError for a file that does not fit the data,
    CheckpointError for a checkpoint of other classes.
    """
    section = params.teach
    validation = data.splits["validation"]
    made: list[signals.Teacher] = []
    sha256: dict[str, str] = {}
    known: dict[str, float] = {}  # accuracy on the validation split; of a file that may not have it, only if it counts
    for number, name in enumerate(section.teachers):
        if name.endswith(".npz"):
            needed = learning.training_pool(data)
            if section.combine == "accuracy":
                needed = np.sort(np.concatenate([needed, validation]))
            names = json.loads(Path(learning.PREPARED, "names.json").read_text(encoding="utf-8"))
            made.append(signals.GivenTeacher(*signals.read_given(Path(name), names, data.classes, needed)))
            sha256[name] = whole.file_sha256(name)
            continue
        loaded = checkpoint.load(plain_or_self_trained(params) if name == "finetune" else name)
        if list(loaded.spec["classes"]) != list(data.classes):
            raise checkpoint.CheckpointError(
                f"teach.teachers[{number}]: '{name}' knows the classes {loaded.spec['classes']}, "
                f"the data have {list(data.classes)}"
            )
        theirs, ours = loaded.preprocessing.channels, int(data.images.shape[-1])
        if theirs < ours:
            raise checkpoint.CheckpointError(
                f"teach.teachers[{number}]: '{name}' takes pictures of {theirs} channel, the data have {ours}. Name a "
                "teacher of colour pictures"
            )
        model = loaded.model.to(device).to(memory_format=learning.memory_format_of(params))
        kept = features if number == 0 else ()
        autocast = training.autocast(device, params.run.precision)
        made.append(signals.NetworkTeacher(model, loaded.preprocessing, kept, autocast, section.flip))
        sha256[name] = loaded.sha256
        if loaded.spec.get("data_sha256") == data.sha256 and "val_accuracy" in loaded.spec:
            known[name] = loaded.spec["val_accuracy"]
    for name, one in zip(section.teachers, made, strict=True):
        if name not in known and (section.combine == "accuracy" or not name.endswith(".npz")):
            known[name] = _accuracy(one, data, validation, device)
    if section.at_chance == "refuse":
        for number, (name, one) in enumerate(zip(section.teachers, made, strict=True)):
            where = f"teach.teachers[{number}]: '{name}'"
            rows = validation if name in known else data.splits["labelled"]  # those a file has in any case
            accuracy = known[name] if name in known else _accuracy(one, data, rows, device)
            answers = partial(_answers, one, data, rows, device)
            _refuse_chance(where, accuracy, data.labels[rows], answers, _mend_of(params, name), name in known)
    scores = [known[name] if section.combine == "accuracy" else 1.0 for name in section.teachers]
    total = sum(scores)
    weights = {name: score / total for name, score in zip(section.teachers, scores, strict=True)}
    return Chosen(signals.average(made, scores), sha256, weights)


def _accuracy(one: signals.Teacher, data: store.Store, index: np.ndarray, device: torch.device) -> float:
    """On the images ``index`` as they are."""
    return int((_answers(one, data, index, device) == data.labels[index]).sum()) / len(index)


def _answers(one: signals.Teacher, data: store.Store, index: np.ndarray, device: torch.device) -> np.ndarray:
    """The class that the teacher names for each image."""
    found = []
    for start in range(0, len(index), _BATCH):
        logits, _ = one(signals.View(data.images, index[start : start + _BATCH], 0, views.Policy(), 0, device))
        found.append(logits.argmax(1).cpu().numpy())
    return np.concatenate(found)


def _refuse_chance(
    what: str,
    accuracy: float,
    labels: np.ndarray,
    answers: Callable[[], np.ndarray] | None = None,
    mend: str = "Name another teacher",
    chosen_by: bool = True,
) -> None:
    """Raise UserError for a teacher that is not shown to know more than which class is the most frequent one (exact
    one-sided binomial test, 5 %; of fewer images than 100 it must only do better): its answers would be taught.

    Where classes are unequal, one that was trained to heed the rare ones may name fewer images right than that and know
    much: ``answers`` for these images, if they are to be had, are then looked at as well. ``labels``: of the validation
    images, or (not ``chosen_by``) of the labelled ones.
    """
    from scipy import stats

    count, chance = len(labels), float(np.bincount(labels).max()) / len(labels)
    shown = stats.binomtest(round(accuracy * count), count, chance, alternative="greater").pvalue <= 0.05
    if accuracy > chance and (count < 100 or shown):
        return
    if answers is None or not _tells_classes_apart(answers(), labels):
        split = "validation" if chosen_by else "labelled"
        raise UserError(
            f"{what} names {accuracy:.1%} of {count:,} {split} images right, and naming always the most frequent "
            f"class would {chance:.1%}: it has nothing to teach. {mend}; look at labels and classes. To go on all the "
            "same: teach.at_chance: allow"
        )


def _mend_of(params: Params, name: str) -> str:
    """What to do about a teacher that knows nothing."""
    if name != "finetune":
        return "Name another teacher"
    section = "finetune" if plain_or_self_trained(params) == "data/finetune" else "self_train"
    return f"Train it longer ({section}.training), or with another lr"


def _tells_classes_apart(answers: np.ndarray, labels: np.ndarray) -> bool:
    """Whether the balanced accuracy is more than answers without regard to the images would have: a permutation test,
    one-sided, 5 %."""
    classes = int(max(answers.max(), labels.max())) + 1

    def balanced(shuffled: np.ndarray) -> float:
        counts = np.bincount(labels * classes + shuffled, minlength=classes**2).reshape(classes, classes)
        return scores.score("balanced_accuracy", counts)

    rng, seen = np.random.default_rng(0), balanced(answers)
    as_good = sum(balanced(rng.permutation(answers)) >= seen - 1e-12 for _ in range(_PERMUTATIONS))
    return (as_good + 1) / (_PERMUTATIONS + 1) <= 0.05


_BATCH, _PERMUTATIONS = 256, 999
