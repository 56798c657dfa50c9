"""Numbers as people read them: the same in the page, in Markdown and in the terminal. Nothing heavy is imported."""

from __future__ import annotations

import re
from decimal import Decimal


def percent(ratio: float) -> str:
    return f"{100 * ratio:.1f} %"


def points(difference: float) -> str:
    """A difference of ratios in percentage points, with its sign (a typographic minus, which lines up)."""
    text = f"{round(100 * difference, 9):+.1f}"  # 0.55 points are 0.55, however they were subtracted
    return "0.0" if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def times(large: float, small: float) -> str:
    """How often ``small`` goes into ``large``, to two or three digits."""
    ratio = large / small
    if 1 < ratio < 1.05:  # 1.0x would say that they are alike
        return f"{ratio:.{decimals(ratio, 1.0, most=4)}f}x"
    return f"{ratio:.0f}x" if ratio >= 99.5 else f"{ratio:.1f}x"


def decimals(value: float, limit: float, least: int = 2, most: int = 6) -> int:
    """How many it takes for ``value`` to read as another number than the ``limit`` that it is not."""
    for digits in range(least, most):
        if abs(value - limit) < 1e-9 or f"{value:.{digits}f}" != f"{limit:.{digits}f}":
            return digits
    return most


def si(count: float, unit: str = "") -> str:
    """1,234,567 as ``1.23 M``."""
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= limit:
            return (
                f"{count / limit:.3g} {letter}{unit}"
                if count / limit < 999.5
                else f"{count / limit:.0f} {letter}{unit}"
            )
    return f"{count:.0f} {unit}".rstrip()


def interval(low: float, high: float) -> str:
    """Of a difference of ratios, in points: ``[+0.1, +1.3]``."""
    return f"[{points(low)}, {points(high)}]"


def limits(low: float, high: float) -> str:
    """Of a ratio, in percent: ``[88.0, 90.1]``."""
    return f"[{100 * low:.1f}, {100 * high:.1f}]"


def milliseconds(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def milliseconds_limits(low: float, high: float) -> str:
    return f"[{milliseconds(low)}, {milliseconds(high)}]"


def duration(seconds: float) -> str:
    """``7 s``, ``2 min 05 s``, ``1 h 02 min``."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    hours, left = divmod(minutes, 60)
    return f"{minutes} min {rest:02d} s" if hours < 1 else f"{hours} h {left:02d} min"


def number(value: float) -> str:
    """Of any size, to four digits or more, never with an exponent: ``27,264``, ``0.4123``, ``0.00001``."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    text = f"{value:.4g}"
    return f"{Decimal(text):f}" if "e" in text else text


def with_thousands(text: str) -> str:
    """A sentence whose whole numbers have their thousands apart: ``10000 images`` as ``10,000 images``."""
    return re.sub(r"(?<![\w.,-])\d{4,}(?![\w-]|[.,]\d)", lambda found: f"{int(found[0]):,}", text)
