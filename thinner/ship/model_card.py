"""model-card.md of a bundle: what the network is, how good, made of what, and what nobody knows.

Written from what the stages left, not typed: reports/metrics.json and claims.json, reports/evaluate, params.yaml, the
candidate's model.json. What none of them says is "not stated". The headings are those of Mitchell et al. 2019, Model
Cards for Model Reporting (https://arxiv.org/abs/1810.03993), as far as there is something to say.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from statsmodels.stats.proportion import proportion_confint

from thinner.evidence.candidates import RUNTIME, TEACHER, WHAT, on_accelerator, threads
from thinner.evidence.markdown import cell, markdown_table, verdict_lines
from thinner.evidence.shipping import RUNTIMES, latency_batches, network_of, target_lines
from thinner.measure.operating import DELTA, Point
from thinner.networks import weights as published
from thinner.params import Params
from thinner.ship.bundle import CARD, GOLDEN, LABELS, MODEL, PROGRAM, Model
from thinner.words import limits, milliseconds, milliseconds_limits, percent, si

NOT_STATED = "not stated"
# Of sets that come without a note of their own: what their authors say, and where.
LICENCES = {
    "torchvision:FashionMNIST": "MIT (https://github.com/zalandoresearch/fashion-mnist)",
}
_MOST_CLASSES = 30


@dataclass(frozen=True)
class Facts:
    """All that a card tells. Where something was not measured or is not known, it is empty."""

    candidate: str
    model: Model
    params: Params
    data: Mapping[str, Any]  # data/prepared/info.json
    golden_pictures: int
    golden_difference: float
    tolerance: float
    measured: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # reports/metrics.json
    environment: Mapping[str, Any] = field(default_factory=dict)  # reports/evaluate/environment.json
    classes: Sequence[Mapping[str, str]] = ()  # the candidate's rows of reports/evaluate/per_class.csv
    verdicts: Sequence[Mapping[str, Any]] = ()
    targets: Sequence[Mapping[str, Any]] = ()
    points: Sequence[Point] = ()
    commit: str = ""
    changed: bool = False  # since that commit
    outdated: Sequence[str] = ()  # stages whose results are not those of what is here
    hashes: Mapping[str, str] = field(default_factory=dict)  # what -> SHA-256


def render(facts: Facts) -> str:
    """The card, as Markdown."""
    parts = [
        f"# Model card: {facts.candidate}, {cell(_source(facts))}",
        *_what(facts),
        *_use(facts),
        *_numbers(facts),
        *_points(facts),
        *_claims(facts),
        *_data(facts),
        *_weights(facts),
        *_limits(facts),
        *_reproduce(facts),
    ]
    return "\n".join(parts).rstrip() + "\n"


def _section(heading: str, *lines: str) -> list[str]:
    return ["", f"## {heading}", "", *lines]


def _what(facts: Facts) -> list[str]:
    spec = facts.model.spec
    network, sees = spec["network"], spec["preprocessing"]
    what = WHAT.get(facts.candidate, "")
    described = f"`{facts.candidate}`{f': {what}' if what else ''}. Architecture {network['name']}"
    if (spec.get("pruned") or {}).get("shapes"):
        described += ", of which channels were cut out"
    lines = [
        f"A classifier of pictures: it names one of {len(spec['classes'])} classes.",
        f"{described}. It sees {sees['image_size']} x {sees['image_size']} px, "
        f"{'grey' if len(sees['mean']) == 1 else 'in three channels'}.",
        "",
        "Classes: " + ", ".join(cell(name) for name in spec["classes"]) + ".",
    ]
    if facts.outdated:
        lines = [
            f"**The numbers below are of an earlier state: {', '.join(facts.outdated)} out of date when this bundle "
            "was made.**",
            "",
            *lines,
        ]
    return ["", *lines]


def _use(facts: Facts) -> list[str]:
    told = facts.params.data
    stored = {key: facts.data.get(key, getattr(told, key)) for key in ("channels", "fit", "image_size")}
    return _section(
        "Use",
        "```sh",
        "pip install numpy onnxruntime pillow",
        f"python {PROGRAM} photo.jpg",
        f"python {PROGRAM} --selftest",
        "```",
        "",
        f"`{MODEL}` takes uint8 [batch, height, width, {stored['channels']}], of any size, under the name in "
        f"`{LABELS}`, and gives logits. Resizing and normalising are in the graph. A file is decoded, turned upright, "
        "made square "
        f"({stored['fit']}) at {stored['image_size']} px by `{PROGRAM}`, as the training data were.",
        "",
        f"`{GOLDEN}` has {facts.golden_pictures} pictures of the validation split and some of noise, with the logits "
        f"that the candidate gives in {RUNTIMES[facts.model.runtime]}. `{MODEL}` is within "
        f"{facts.golden_difference:.1e} of them where it was made; allowed are {facts.tolerance:.0e}.",
    )


def _numbers(facts: Facts) -> list[str]:
    if facts.candidate not in facts.measured:
        return _section("Numbers", "Not measured: `evaluate` has not seen this network.")
    images = int(facts.environment["test_images"])
    batches = latency_batches(facts.measured)
    headings = ["", "accuracy", "95 %", "parameters", "MACs", "file"]
    headings += [heading for batch in batches for heading in (f"ms, batch {batch}", "95 %")] + ["runtime"]
    rows = []
    for name in _compared(facts):
        row = facts.measured[name]
        low, high = proportion_confint(round(row["accuracy"] * images), images, alpha=0.05, method="wilson")
        cells = [name, percent(row["accuracy"]), limits(low, high), si(row["params"]), si(row["macs"])]
        cells.append(si(row["file_bytes"], "B"))
        for batch in batches:
            key = f"latency_ms_b{batch}"
            cells.append(milliseconds(row[key]))
            cells.append(milliseconds_limits(row[f"{key}_low"], row[f"{key}_high"]) if f"{key}_low" in row else "")
        rows.append([*cells, RUNTIME.text(row)])
    row = facts.measured[facts.candidate]
    place = f"{facts.environment.get('cpu', NOT_STATED)}, {threads(row['threads'])}"
    if any(on_accelerator(facts.measured[name]) for name in _compared(facts)):
        place += f"; of networks in PyTorch on {facts.environment.get('accelerator') or NOT_STATED}"
    lines = [
        f"On {images:,} test images, which neither trained nor chose it.",
        "",
        *markdown_table(headings, rows, last="---"),
        "",
        f"Accuracy with Wilson's interval. Latency is the median of the network alone, without preprocessing, on "
        f"{place}; on another machine it is another. MACs are per image.",
    ]
    if "ece_scaled" in row:
        lines += [
            "",
            f"Probabilities are calibrated by a temperature of {row['temperature']:.3g}: expected calibration error "
            f"{percent(row['ece'])} before, {percent(row['ece_scaled'])} after.",
        ]
    if 0 < len(facts.classes) <= _MOST_CLASSES:
        shares = [
            [
                cell(each["class"]),
                f"{int(each['images']):,}",
                percent(float(each["accuracy"])),
                limits(float(each["low"]), float(each["high"])),
            ]
            for each in facts.classes
        ]
        lines += ["", *markdown_table(["class", "test images", "accuracy", "95 %"], shares)]
    return _section("Numbers", *lines)


def _compared(facts: Facts) -> list[str]:
    """The candidate, what it computes in ONNX Runtime if that was timed, and what it was made from."""
    names = (facts.candidate, f"{network_of(facts.candidate)}_onnx", TEACHER)
    return [name for name in dict.fromkeys(names) if name in facts.measured]


def _points(facts: Facts) -> list[str]:
    if not facts.points:
        return []
    rows = [
        [
            f"{100 * point.at_least:g} %",
            "none found" if point.log_odds is None else f"{point.log_odds:.3f}",
            percent(point.coverage),
            "" if point.accuracy is None else percent(point.accuracy),
            "" if point.low is None or point.high is None else limits(point.low, point.high),
        ]
        for point in facts.points
    ]
    first = facts.points[0]
    return _section(
        "Operating points",
        *markdown_table(["right at least", "log-odds from", "answers", "right, of those", "95 %"], rows),
        "",
        f"Below the threshold the answer is 'unsure' (`python {PROGRAM} --at-least {100 * first.at_least:g}`). Each "
        f"threshold was fitted on {first.validation_images:,} validation images by Learn then Test "
        f"(https://arxiv.org/abs/2110.01052): with a probability of {percent(1 - DELTA)} over their draw the promise "
        f"holds for pictures like them. What it does on {first.images:,} test images is to the right.",
        "",
        "The validation images also chose among the weights of one training, which this does not account for.",
    )


def _claims(facts: Facts) -> list[str]:
    lines = [part for line in target_lines(list(facts.targets)) for part in (line, "")]
    lines += verdict_lines([{"numbers": "", **verdict} for verdict in facts.verdicts]) or ["No claims were made."]
    if facts.verdicts:
        lines.append("One training run of each network; another seed is another run.")
    return _section("Claims", *lines)


def _source(facts: Facts) -> str:
    """Where a folder lies on its maker's machine is nobody's business; what it is called may be."""
    kind, _, place = facts.params.data.source.partition(":")
    return facts.params.data.source if kind == "torchvision" else f"{kind}:{PurePath(place).name or 'of its maker'}"


def _data(facts: Facts) -> list[str]:
    source, corrections = facts.params.data.source, facts.params.data.corrections
    counts = facts.data.get("counts", {})
    lines = [
        f"- Source: {cell(_source(facts))}",
        f"- Licence: {LICENCES.get(source, NOT_STATED)}",
        f"- Pictures: {', '.join(f'{count:,} {name}' for name, count in counts.items()) or NOT_STATED}",
        f"- Labels: {'as in the source' if corrections is None else 'some were corrected by hand after the fact'}",
        f"- SHA-256: `{facts.data.get('sha256', NOT_STATED)}`",
        f"- How they were collected, whom they show, who agreed: {NOT_STATED}",
    ]
    return _section("Data", *lines)


def _weights(facts: Facts) -> list[str]:
    teacher, student = facts.params.finetune, facts.params.student
    lines = []
    for name, section in ((TEACHER, teacher), ("the student", student)):
        given = section.weights
        start = "fresh weights" if given is None else f"{given}, licence: {licence_of(given, section.network)}"
        lines.append(f"- {name} ({section.network}) started from {start}")
    return _section("Weights", *lines, f"- {PROGRAM} and the code that trained it: Apache-2.0")


def licence_of(weights: str, network: str) -> str:
    """What the package of ``package:NAME`` says of its licence, or timm of the weights that it downloads for
    ``network``; of other weights nothing is known here."""
    kind, _, name = weights.partition(":")
    if weights == "timm":
        return _of_timm(network)
    if kind != "package":
        return NOT_STATED
    try:
        about = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        return NOT_STATED
    said = next(
        (about[key] for key in ("License-Expression", "License") if key in about and about[key] != "UNKNOWN"), ""
    )
    named = [line.rpartition("::")[2].strip() for line in about.get_all("Classifier") or () if "License ::" in line]
    first = said.strip().splitlines()[0][:80] if said.strip() else ", ".join(named)
    return (
        f"{cell(first)} (as its package says; of the pictures it was pretrained on: {NOT_STATED})"
        if first
        else NOT_STATED
    )


def _of_timm(network: str) -> str:
    import timm

    inner = network.partition(":")[2]
    config = timm.models.get_pretrained_cfg(published.on_timms_hub(inner) or inner, allow_unregistered=True)
    if config is None or not config.license:
        return NOT_STATED
    return f"{cell(config.license)} (as timm says; of the pictures it was pretrained on: {NOT_STATED})"


def _limits(facts: Facts) -> list[str]:
    lines = [
        "- It always names one of its classes (or 'unsure'), also for a picture that shows none of them.",
        "- All numbers are of pictures like those of its data. Nothing is known of others: another camera or place.",
        "- One label for a picture; no boxes, no masks.",
        "- Fairness towards groups of people was not looked at.",
    ]
    if facts.model.int8:
        lines.append(
            "- It computes in 8 bits: a picture whose input differs in the last digit can get logits that differ by "
            "some hundredths, on another processor too."
        )
    return _section("Limits", *lines)


def _reproduce(facts: Facts) -> list[str]:
    commit = facts.commit or "COMMIT"
    note = "not stated: made outside of git" if not facts.commit else f"`{facts.commit}`"
    if facts.changed:
        note += ", with changes that are not committed"
    rows = [[f"`{what}`", f"`{digest}`"] for what, digest in facts.hashes.items()]
    if facts.changed:  # no commit has what this was made of
        commands = ["This bundle cannot be made again from a commit. Commit the changes, and make it again.", ""]
    else:
        lines = [f"git checkout {commit} && dvc checkout", f"thinner bundle {facts.candidate}"]
        commands = ["```sh", *lines, "```", ""]
    return _section(
        "Reproduce",
        *commands,
        f"Commit: {note}. Equal commit, data and library versions give equal bytes. Hashes (SHA-256):",
        "",
        *markdown_table(["file", "SHA-256"], rows, last="---"),
        "",
        f"This page ({CARD}) is generated.",
    )
