"""How many inputs the readers of files and bodies were given, and how they answered.

    python -m benchmarks.fuzz --inputs 20000    # in all; minutes

Runs the tests of tests/**/test_any_*.py with that many inputs and prints what `anything.ask` counted as a table. Exits
with 1 where an answer was wrong: an exception that is not ours, more than one line, too slow or too large.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

FILES = ["tests/thinner/test_any_file.py", "tests/tasks/test_any_body.py"]


def table() -> str:
    """What was counted, as Markdown."""
    from anything import TRIED  # in tests/, which pytest has put on the path

    lines = ["| reader | inputs | refused in one line | wrong answers | slowest, s |", "|---|---:|---:|---:|---:|"]
    for reader, tried in sorted(TRIED.items()):
        lines.append(f"| {reader} | {tried.inputs:,} | {tried.refused:,} | {tried.wrong} | {tried.slowest:.2f} |")
    inputs, refused, wrong = (
        sum(getattr(one, key) for one in TRIED.values()) for key in ("inputs", "refused", "wrong")
    )
    slowest = max((one.slowest for one in TRIED.values()), default=0.0)
    return "\n".join([*lines, f"| all | {inputs:,} | {refused:,} | {wrong} | {slowest:.2f} |"])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description="Odd inputs, and what they do.")
    parser.add_argument("--inputs", type=int, default=20_000, help="how many in all, at least (20000)")
    options = parser.parse_args()
    text = "".join(Path(file).read_text(encoding="utf-8") for file in FILES)
    os.environ["FUZZ_INPUTS"] = str(-(-options.inputs // text.count("\n@fuzz(")))  # before the tests are imported

    import pytest

    code = pytest.main(["-q", "-p", "no:cacheprovider", *FILES])
    print(f"\n{table()}")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
