"""Sizes and times as people type them. Nothing heavy is imported."""

from __future__ import annotations

import re

from thinner.errors import UserError


def parse_bytes(text: str, key: str = "--size") -> int:
    """``200kB`` -> 200,000; kB, MB and GB are powers of 1,000, as on a box. Raises UserError, which names ``key``."""
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kKMG]?)B?\s*", text)
    value = float(found[1]) * {"": 1, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9}[found[2]] if found else 0.0
    if value < 1:
        raise UserError(f"{key}: {text!r} is no size of a file. Give for example 200kB or 1.5MB")
    return int(value)


def parse_ms(text: str) -> float:
    """``2ms`` -> 2.0. Raises UserError."""
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(ms)?\s*", text)
    if not found or float(found[1]) <= 0:
        raise UserError(f"--latency: {text!r} is no time of one picture. Give for example 2ms")
    return float(found[1])
