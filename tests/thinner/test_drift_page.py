"""evidence/drift_page.py: bars as high as their shares, names that are no markup, and the sentence at the end."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest

from thinner.evidence import drift_page
from thinner.evidence.drift import Drift, Finding

SVG = "{http://www.w3.org/2000/svg}"


def parsed(svg: object) -> ET.Element:
    return ET.fromstring(str(svg).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))  # noqa: S314 - ours


def bars(svg: object) -> dict[str, float]:
    """What each bar says -> its height."""
    found = {}
    for rect in parsed(svg).iter(f"{SVG}rect"):
        if (title := rect.find(f"{SVG}title")) is not None:
            found[str(title.text)] = float(rect.get("height", ""))
    return found


def test_confidences_are_counted_in_bins_of_a_twentieth() -> None:
    svg = drift_page.histogram(np.array([0.96, 0.97, 1.0, 0.51]), np.array([0.5, 0.53]))
    found = bars(svg)
    assert len(found) == 2 * drift_page.BINS
    assert found["validation 95 % 75.0 %"] == pytest.approx(0.75 * found["new 50 % 100.0 %"], rel=0.01)
    assert found["validation 50 % 25.0 %"] == pytest.approx(found["new 50 % 100.0 %"] / 4, rel=0.01)
    shown = [text.text for text in parsed(svg).iter(f"{SVG}text")]
    assert shown[-5:] == ["0 %", "20 %", "40 %", "60 %", "80 %"]


def test_of_many_classes_those_that_differ_most_are_shown_and_names_are_no_markup() -> None:
    classes = [f"<b>{i}</b>&" for i in range(30)]
    usual, new = np.arange(300) % 30, np.concatenate([np.arange(300) % 30, np.full(100, 7)])
    svg = drift_page.frequencies(classes, usual, new)
    found = bars(svg)
    assert len(found) == 2 * drift_page.MOST_CLASSES
    assert found["new <b>7</b>& 27.5 %"] == max(found.values())
    assert "where it differs most" in str(svg) and "<b>" not in str(svg)
    assert "where it differs most" not in str(drift_page.frequencies(classes[:2], usual % 2, new % 2))


def finding(drifted: bool) -> Finding:
    return Finding(0.5, 0.001, 0.003 if drifted else 0.7, drifted, 0.3, "medium", "what differs")


def found(images: int, reference: int, detectable: float, *drifted: str) -> Drift:
    findings = {name: finding(name in drifted) for name in ("confidence", "classes", "features")}
    return Drift(0.01, images, reference, findings, detectable, np.arange(3))


@pytest.mark.parametrize(
    ("drift", "sentence"),
    [
        (
            found(1200, 2000, 0.08, "classes", "features"),
            "Drift of classes and features, at a false-alarm rate of 1 %: 1,200 pictures against 2,000 of validation, by it",
        ),
        (
            found(90, 2000, 0.2, "features"),
            "Drift of features, at a false-alarm rate of 1 %: 90 pictures against 2,000 of validation, by it",
        ),
        (
            found(90, 2000, 0.2, "confidence", "classes", "features"),
            "Drift of confidence, classes and features, at a false-alarm rate of 1 %: 90 pictures against 2,000 of "
            "validation, by it",
        ),
        (
            found(200, 2000, 0.164),
            "No drift seen, at a false-alarm rate of 1 %: 200 pictures against 2,000 of validation, by it. With so many a "
            "shift that moves 16.4 % of them across some confidence is found in four of five cases",
        ),
        (
            found(20, 2000, 0.5),
            "Too few pictures to see a large shift, and no larger one is seen, at a false-alarm rate of 1 %: 20 pictures "
            "against 2,000 of validation, by it. Give 52 or more",
        ),
        (
            found(20, 30, 0.6),
            "Too few pictures to see a large shift, and no larger one is seen, at a false-alarm rate of 1 %: 20 pictures "
            "against 30 of validation, by it. More pictures of validation are needed",
        ),
    ],
)
def test_the_conclusion_says_what_at_which_rate_and_what_could_have_been_seen(drift: Drift, sentence: str) -> None:
    assert drift_page.conclusion(drift, "it") == sentence


def test_what_differs_is_said_only_where_it_was_shown() -> None:
    lines = drift_page.sentences(found(200, 2000, 0.1, "features"))
    assert lines == [
        "Confidence (Kolmogorov-Smirnov, p = 0.7 by Holm): no drift seen",
        "Classes (chi-square, p = 0.7 by Holm): no drift seen",
        "Features (MMD, p = 0.003 by Holm): drift, medium: what differs",
    ]
