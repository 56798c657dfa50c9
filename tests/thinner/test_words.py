"""thinner.words: numbers as people read them."""

import pytest

from thinner.words import decimals, duration, number, points, si, times, with_thousands


@pytest.mark.parametrize(
    ("large", "small", "text"),
    [(99.6, 1, "100x"), (12.34, 1, "12.3x"), (3, 2, "1.5x"), (5, 5, "1.0x"), (1.004, 1, "1.004x"), (104, 100, "1.04x")],
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


@pytest.mark.parametrize(
    ("value", "limit", "digits"),
    [(1.0, 1.0, 2), (1.004, 1.0, 3), (1.0 + 1e-12, 1.0, 2), (1.2, 1.0, 2), (1.00000001, 1.0, 6)],
)
def test_decimals_tell_a_value_from_its_limit(value: float, limit: float, digits: int) -> None:
    assert decimals(value, limit) == digits


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


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (27_263.5, "27,264"),
        (1000, "1,000"),
        (999.96, "1000"),
        (0.41234, "0.4123"),
        (0.00001234, "0.00001234"),
        (-1.5e-7, "-0.00000015"),
        (3.0, "3"),
        (0, "0"),
        (1e12, "1,000,000,000,000"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
    ],
)
def test_numbers_of_any_size_have_no_exponent(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("p = 4.3e-25, 10000 images, 1 seed", "p = 4.3e-25, 10,000 images, 1 seed"),
        ("+1.2345 points, 12.34567x, 0.00012", "+1.2345 points, 12.34567x, 0.00012"),
        ("1,460,704 MACs of 3052160", "1,460,704 MACs of 3,052,160"),
        ("2000 rounds. 999 more", "2,000 rounds. 999 more"),
        ("sha 0123456789ab, 2026-11-27", "sha 0123456789ab, 2026-11-27"),
    ],
)
def test_whole_numbers_in_a_sentence_have_thousands_and_no_others_are_touched(text: str, shown: str) -> None:
    assert with_thousands(text) == shown
