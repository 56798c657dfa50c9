"""The page of `thinner watch`: what was tested, the two distributions, the pictures to label, and those least like
validation's. One HTML file that needs nothing but a browser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Integer
from markupsafe import Markup, escape

from thinner.evidence.drift import LARGE, TESTS, Drift, images_for
from thinner.evidence.pictures_page import Section, render
from thinner.words import percent

BINS = 20  # of the confidences, from 0 to 1
MOST_CLASSES = 20
_COLOURS = {"validation": "#8c8c8c", "new": "#e69f00"}
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 760, 260, 44, 34, 34  # px


def histogram(reference: Float[np.ndarray, " m"], new: Float[np.ndarray, " n"]) -> Markup:
    """Confidences (0 to 1): the share of pictures in each of `BINS` bins."""
    edges = np.linspace(0, 1, BINS + 1)
    shares = {
        name: (np.histogram(values, edges)[0] / len(values)).tolist()
        for name, values in (("validation", reference), ("new", new))
    }
    labels = [f"{100 * edge:.0f} %" for edge in edges[:-1]]
    return bars("Confidence: share of the pictures", labels, shares, every=4)


def frequencies(classes: Sequence[str], reference: Integer[np.ndarray, " m"], new: Integer[np.ndarray, " n"]) -> Markup:
    """How often each class was answered; where there are many, those whose share differs most."""
    ours, theirs = (np.bincount(part, minlength=len(classes)) / len(part) for part in (reference, new))
    order = np.argsort(-np.abs(ours - theirs), kind="stable")[:MOST_CLASSES]
    shown = np.sort(order).tolist()
    what = "Answers: share of the pictures" + ("" if len(shown) == len(classes) else ", where it differs most")
    shares = {"validation": [float(ours[i]) for i in shown], "new": [float(theirs[i]) for i in shown]}
    return bars(what, [classes[i] for i in shown], shares)


def bars(title: str, labels: Sequence[str], shares: Mapping[str, Sequence[float]], every: int = 1) -> Markup:
    """An SVG of bars side by side; ``shares`` (0 to 1) of each of `_COLOURS`. Each bar says its numbers when it is
    pointed at. Below the axis one label of ``every`` so many is shown."""
    most = max((share for row in shares.values() for share in row), default=0.0) or 1.0
    step = (_WIDTH - _LEFT) / max(1, len(labels))
    floor, room = _HEIGHT - _BOTTOM, _HEIGHT - _TOP - _BOTTOM
    parts = [f'<text x="0" y="14">{escape(title)}</text>']
    for number, (name, row) in enumerate(shares.items()):
        colour, place = _COLOURS[name], _WIDTH - 190 + 100 * number
        parts.append(f'<rect x="{place}" y="4" width="12" height="12" fill="{colour}"/>')
        parts.append(f'<text x="{place + 17}" y="14">{escape(name)}</text>')
        for label, left, share in zip(labels, range(len(labels)), row, strict=True):
            height = room * share / most
            parts.append(
                f'<rect x="{_LEFT + step * (left + 0.1 + 0.4 * number):.1f}" y="{floor - height:.1f}" '
                f'width="{0.4 * step:.1f}" height="{height:.1f}" fill="{colour}">'
                f"<title>{escape(name)} {escape(label)} {percent(share)}</title></rect>"
            )
    parts.append(f'<text x="0" y="{_TOP + 8}">{100 * most:.0f} %</text><text x="0" y="{floor}">0 %</text>')
    parts.append(f'<path d="M{_LEFT} {floor}H{_WIDTH}" stroke="#8c8c8c"/>')
    letters = max(4, int(every * step / 6.5))
    for number, label in enumerate(labels):
        cut = label if len(label) <= letters else f"{label[: letters - 1]}\N{HORIZONTAL ELLIPSIS}"
        if number % every == 0:
            parts.append(f'<text x="{_LEFT + step * number:.1f}" y="{floor + 18}">{escape(cut)}</text>')
    body = "".join(str(part) for part in parts)
    return Markup(f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">{body}</svg>')  # noqa: S704 - all that is not ours is escaped


def sentences(drift: Drift) -> list[str]:
    """A sentence for each test: what came out, how large it is, what differs."""
    lines = []
    for name, found in drift.findings.items():
        came = f"drift, {found.size}: {found.text}" if found.drifted else "no drift seen"
        lines.append(f"{name.capitalize()} ({TESTS[name]}, p = {found.adjusted:.2g} by Holm): {came}")
    return lines


def conclusion(drift: Drift, candidate: str) -> str:
    """Drifted or not, of what, at which rate, and what that many pictures can show."""
    rate = f"at a false-alarm rate of {100 * drift.rate:g} %"
    compared = f"{drift.images:,} pictures against {drift.reference:,} of validation, by {candidate}"
    if drift.drifted:
        named = " and ".join(filter(None, (", ".join(drift.drifted[:-1]), drift.drifted[-1])))
        return f"Drift of {named}, {rate}: {compared}"
    found = (
        f"a shift that moves {percent(drift.detectable)} of them across some confidence is found in four of five cases"
    )
    if drift.verdict == "no drift seen":
        return f"No drift seen, {rate}: {compared}. With so many {found}"
    needed = images_for(LARGE, drift.reference, drift.rate)
    mend = "More pictures of validation are needed" if needed is None else f"Give {needed:,} or more"
    return f"Too few pictures to see a large shift, and no larger one is seen, {rate}: {compared}. {mend}"


def page(verdict: str, drift: Drift, figures: Sequence[Markup], sections: Sequence[Section]) -> str:
    return render("Watch", [verdict, *(f"{line}." for line in sentences(drift))], sections, figures)
