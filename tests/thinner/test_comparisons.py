"""thinner.evidence.comparisons: differences from the teacher, and classes."""

import pytest

from tests.measured import Page, row_of
from thinner.evidence.comparisons import class_rows, differences
from thinner.evidence.markdown import render_pull_request
from thinner.evidence.page import render_html
from thinner.evidence.results import Results
from thinner.words import points


def test_differences_from_the_teacher_are_paired(results: Results) -> None:
    found = differences(results)
    assert set(found) == {"distill", "prune", "prune_onnx"}
    # 10 images: the small one is wrong on images 0 and 3, where the teacher is right, and right nowhere else
    assert found["prune"].effect == pytest.approx(-0.2)
    assert found["prune"].low < -0.2 < found["prune"].high
    assert found["prune"].p_value == pytest.approx(0.5)  # two coins that both fall one way: 2 * 0.25
    assert f"−20.0 [{points(found['prune'].low)}, {points(found['prune'].high)}]" in Page(render_html(results, 0)).words


def test_the_change_of_a_class_has_an_interval(results: Results) -> None:
    bag, coat, boot = class_rows(results)
    assert (bag.name, bag.images, bag.teacher, bag.small) == ("bag", 4, 0.75, 0.5)
    assert bag.difference.effect == pytest.approx(-0.25)
    assert bag.difference.low < -0.25 < bag.difference.high
    assert boot.difference.effect == 0
    assert coat.difference.effect == pytest.approx(-1 / 3)


def test_the_accuracy_of_a_class_has_wilsons_limits_on_the_page(results: Results) -> None:
    def wilson(right: int, images: int) -> list[float]:  # (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)
        z, p = 1.959964, right / images
        half = z * (p * (1 - p) / images + z**2 / (4 * images**2)) ** 0.5
        return [(p + z**2 / (2 * images) + sign * half) / (1 + z**2 / images) for sign in (-1, 1)]

    bag = class_rows(results)[0]
    assert bag.teacher_limits == pytest.approx(wilson(3, 4), abs=1e-6)
    assert bag.small_limits == pytest.approx(wilson(2, 4), abs=1e-6)
    words = row_of(render_html(results, 0), "Table of accuracy by class", "bag")
    assert words.startswith("bag 4 75.0 % [30.1, 95.4] 50.0 % [15.0, 85.0] −25.0 [")
    assert "| bag | 4 | 75.0 % [30.1, 95.4] | 50.0 % [15.0, 85.0] | −25.0 |" in render_pull_request(results)
