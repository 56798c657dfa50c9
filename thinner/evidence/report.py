"""README's results: the table between its two marks, made from reports/.

The page is made by thinner.evidence.page, reports/results.md by thinner.evidence.markdown.

    python -m thinner.evidence.report --readme README.md            # put today's table between the two marks
    python -m thinner.evidence.report --readme README.md --check    # exit 1 if the table there is not today's
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from thinner.errors import UserError
from thinner.evidence import candidates, shipping
from thinner.evidence.markdown import first_lines, how_latency_was_measured, markdown_table, verdict_lines
from thinner.evidence.results import Environment, read_environment, read_metrics
from thinner.evidence.shipping import Metrics, read_targets

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"


def render_readme(
    measured: Metrics,
    environment: Environment,
    shipped: str,
    verdicts: Sequence[Mapping[str, Any]] = (),
    targets: Sequence[Mapping[str, Any]] = (),
) -> str:
    """What came out, and the networks with the exports of the one to ship. Claims stand here where they are not proven;
    results.md has all."""
    table = candidates.for_readme(measured, shipped)
    rows = [[f"**{name}**" if name == shipped else name, *cells] for name, *cells in table.rows]
    last = f"{environment.test_images:,} test images. {how_latency_was_measured(measured, environment)}"
    return "\n".join(
        [
            *(textwrap.fill(line, 120) for line in first_lines(measured, environment, shipped, verdicts, targets)),
            *verdict_lines([verdict for verdict in verdicts if verdict["outcome"] != "proven"]),
            *markdown_table(table.headings, rows),
            "",
            textwrap.fill(last, 120),
            "",
        ]
    )


def update_readme(path: Path, table: str) -> bool:
    """Put ``table`` between the two marks in ``path``; True if that changed the file.

    Raises UserError where the marks are missing, and leaves the file alone.
    """
    text = path.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise UserError(
            f"{path}: needs one line '{BEGIN}' and, after it, one line '{END}'; the table goes between them"
        )
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    updated = f"{before}{BEGIN}\n{table.strip()}\n{END}{after}"
    if updated == text:
        return False
    path.write_text(updated, encoding="utf-8")
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m thinner.evidence.report",
        description="Put the results table, made from reports/, into a README.",
    )
    parser.add_argument("--readme", type=Path, required=True, help=f"file with the marks {BEGIN} and {END}")
    parser.add_argument("--reports", type=Path, default=Path("reports"), help="folder that evaluate wrote (reports)")
    parser.add_argument(
        "--params", type=Path, default=Path("params.yaml"), help="where ship.candidate stands (params.yaml)"
    )
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if the table is out of date")
    options = parser.parse_args(arguments)
    try:
        table = render_readme(
            read_metrics(options.reports / "metrics.json"),
            read_environment(options.reports / "evaluate" / "environment.json"),
            yaml.safe_load(options.params.read_text(encoding="utf-8"))["ship"]["candidate"],
            list(shipping.read_verdicts(options.reports / "claims.json").values()),
            read_targets(options.reports),
        )
        if options.check:
            current = f"{BEGIN}\n{table.strip()}\n{END}" in options.readme.read_text(encoding="utf-8")
            if not current:
                print(  # noqa: T201 - a command speaks to a person
                    f"{options.readme}: the results are not those of {options.reports}/. "
                    f"Run: python -m thinner.evidence.report --readme {options.readme}",
                    file=sys.stderr,
                )
            return 0 if current else 1
        changed = update_readme(options.readme, table)
    except (UserError, FileNotFoundError) as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    print(f"{options.readme}: {'updated' if changed else 'was up to date'}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
