"""What fuzz tests share: odd values, damaged bytes, and one judge of every answer, which counts what it was asked."""

from __future__ import annotations

import copy
import json
import os
import random
import resource
import time
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from thinner.errors import UserError

INPUTS = int(os.environ.get("FUZZ_INPUTS", "20"))  # of each fuzz test; `python -m benchmarks.fuzz` tries more
SECONDS = 5.0
MEMORY_KB = 400_000  # more than any of these readers needs for its small files


def fuzz(share: float = 1.0) -> Any:
    """Settings of a fuzz test; ``share``: of `INPUTS`, less where an input takes long."""
    return settings(
        max_examples=max(5, round(share * INPUTS)),
        derandomize="FUZZ_INPUTS" not in os.environ,  # the same inputs in every run of the tests; others in a search
        deadline=None,  # `ask` looks at the clock, and leaves out what the test itself does
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


# ---------------------------------------------------------------------------------------------------- the judge


@dataclass
class Tried:
    """What one reader was asked, and how it answered."""

    inputs: int = 0
    refused: int = 0
    wrong: int = 0  # exceptions that are not ours, long or broken lines, too slow, too large
    slowest: float = 0.0  # seconds


TRIED: dict[str, Tried] = {}
CONTROL = {"Cc", "Cs", "Zl", "Zp"}  # control characters, half characters, line and paragraph separators


def ask(reader: str, read: Callable[[], Any], ours: type[Exception] = UserError) -> Any:
    """What ``read`` answers; None where it refuses in one line, within 5 s and without taking all memory."""
    tried = TRIED.setdefault(reader, Tried())
    tried.inputs += 1
    tried.wrong += 1  # until it is known to be right
    before, began = _peak_kb(), time.process_time()
    found, said = None, None
    try:
        found = read()
    except ours as error:
        said = str(error)
        tried.refused += 1
    seconds = time.process_time() - began
    tried.slowest = max(tried.slowest, seconds)
    assert seconds < SECONDS, f"{reader}: {seconds:.1f} s"
    assert _peak_kb() - before < MEMORY_KB, f"{reader}: {_peak_kb() - before} kB"
    if said is not None:
        assert 0 < len(said) < 1000, said
        assert not CONTROL & {unicodedata.category(letter) for letter in said}, ascii(said)
    tried.wrong -= 1
    return found


def _peak_kb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


# ---------------------------------------------------------------------------------------------------- inputs

SEEDS = st.integers(0, 2**32)


def damaged(content: bytes, seed: int, head: int = 0) -> bytes:
    """``content`` with a few bytes flipped, cut out, cut off, doubled or made odd; nothing of it, or something else.

    Half of the places are among the first ``head`` bytes (0: all), where a format says what it holds.
    """
    draw = random.Random(seed)  # noqa: S311 - no secret
    if draw.random() < 0.03:
        return draw.choice([b"", b"\n", content[:8], draw.randbytes(100), b"PK\x05\x06" + bytes(18), b"<html>", b"{}"])
    found = bytearray(content)
    for _ in range(draw.choice([1, 1, 1, 2, 4, 16])):
        if not found:
            break
        among = min(head, len(found)) if head and draw.random() < 0.5 else len(found)
        at = draw.randrange(among)
        how = draw.randrange(16)
        if how <= 8:  # most: what is still whole gets further into the reader
            found[at] ^= 1 << draw.randrange(8)
        elif how <= 10:
            found[at] = draw.choice([0, 1, 0x7F, 0x80, 0xFF, 0x0A, 0x22, 0x2D, 0x39])
        elif how <= 12:
            found[at : at + 4] = draw.choice([b"\xff\xff\xff\xff", bytes(4), b"\x7f\xff\xff\xff", b"\0\0\0\x80"])
        elif how == 13:
            del found[at : at + draw.choice([1, 2, 8, 64])]
        elif how == 14:
            found[at:at] = found[at : at + draw.choice([1, 4, 32])] or b"\0"
        else:
            del found[at if draw.random() < 0.3 else len(found) - draw.randrange(1, 40) :]
    return bytes(found)


DEEP = json.loads("[" * 500 + "]" * 500)
ODD = st.sampled_from(
    [None, True, False, -1, 0, 1, 2, 0.5, -0.0, 1e308, 10**40, -(10**40), 2**31, 2**63, 10**9, float("nan"),
     float("inf"), "", "a", "a\nb", "\x1b[31mred", "\u2028", "\ud800", "x" * 600, "../..", "1", [], {}, [[]], {"": {}},
     [None], [-1], [0], ["a\nb"], {"a\nb": 1}, [10**40], [1e308], [float("nan")], [0] * 2000, DEEP]
)  # fmt: skip
VALUES = ODD | st.recursive(
    ODD | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


def places(tree: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield (*before, key)
        if isinstance(value, dict | list):
            yield from places(value, (*before, key))


def changed(tree: Any, values: st.SearchStrategy[Any] = VALUES) -> st.SearchStrategy[Any]:
    """``tree`` (of JSON) with any value in any place, one more, or one less; now and then something else altogether."""

    def change(place: tuple[Any, ...], value: Any, how: str, name: str) -> Any:
        if how == "all":
            return value
        found = copy.deepcopy(tree)
        inner = found
        for key in place[:-1]:
            inner = inner[key]
        if how == "gone":
            del inner[place[-1]]
        elif how == "extra" and isinstance(inner, dict):
            inner[name] = value
        else:
            inner[place[-1]] = value
        return found

    ways = st.sampled_from(["value"] * 6 + ["gone", "gone", "extra", "all"])
    return st.builds(change, st.sampled_from(list(places(tree))), values, ways, st.text(max_size=5))


def written(value: Any, seed: int) -> bytes:
    """As JSON, of which one in four is then damaged."""
    text = json.dumps(value).encode()
    return damaged(text, seed) if seed % 4 == 0 else text
