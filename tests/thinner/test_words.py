"""thinner.words: numbers as people read them."""

import pytest

from thinner.words import duration, points, si, times


@pytest.mark.parametrize(
    ("large", "small", "text"), [(99.6, 1, "100x"), (12.34, 1, "12.3x"), (3, 2, "1.5x"), (5, 5, "1.0x")]
)
def test_times(large: float, small: float, text: str) -> None:
    assert times(large, small) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (7, "7"),
        (999, "999"),
        (1000, "1 k"),
        (78_042, "78 k"),
        (1_234_567, "1.23 M"),
        (999_600, "1000 k"),
        (2.5e9, "2.5 G"),
    ],
)
def test_si(count: float, text: str) -> None:
    assert si(count) == text


def test_points_have_a_sign_and_no_negative_zero() -> None:
    assert (points(0.012), points(-0.012), points(-0.0001), points(0.0)) == (
        "+1.2",
        "\N{MINUS SIGN}1.2",
        "0.0",
        "0.0",
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (3599.6, "1 h 00 min"), (3725, "1 h 02 min")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
