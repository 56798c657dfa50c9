"""Which planted mistakes do the fast tests of a module not notice?

    pip install mutmut
    python -m benchmarks.mutants views          # thinner's module of that name; some ten minutes
    python -m benchmarks.mutants data/store     # the one in that room, where two are called so
    python -m benchmarks.mutants views losses --least 85    # and exit code 1 below 85 % of each

mutmut (https://github.com/boxed/mutmut) changes one operator, number or argument of a function at a time in a copy of
the project, and runs those fast tests of the module's own files (tests/**/test_NAME.py, and ``ALSO``) that reach it.
What is killed fails one. Not changed: what stands outside of functions. Shapes are not checked meanwhile (mutmut
imports a module before jaxtyping can), so it is the assertions that kill.

Each mutant that lives costs all tests that reach it. ``--but`` leaves out the slowest, which can only raise the number
that lives. What was tried is kept in ``--work``: a run that was stopped goes on there, as long as neither code nor
tests changed. Survivors are written to ``--work``/NAME/survivors.diff.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

from thinner.errors import UserError

ROOT = Path(__file__).parents[1]
ALSO = {"statistics": ("test_class_claims.py",)}  # further files of tests that are about one module
# `mutmut show` of all at once: by the command each costs a second
SHOW = "import sys; from mutmut.__main__ import show; [show.callback(name) for name in sys.argv[1:]]"
KILLED = ("killed", "timeout", "suspicious", "segfault")


def only(folder: Path, name: str) -> Path:
    """The one file below ``folder`` whose path ends in ``name``, from the project's root."""
    found = sorted(path.relative_to(ROOT) for path in (ROOT / folder).rglob(name))
    if len(found) != 1:
        paths = ", ".join(map(str, found)) or "none"
        raise UserError(f"{folder}/**/{name}: {len(found)} files of that name ({paths}). Name one, such as data/store")
    return found[0]


def undecorated(source: str) -> str:
    """``source`` in which ``f = decorator(f)`` stands below each function in place of ``@decorator`` above it, which
    means the same: mutmut passes over decorated functions. But for caches, which would answer for a mutant what they
    know of the function."""
    lines = source.splitlines()
    found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    for node in sorted(found, key=lambda node: node.lineno, reverse=True):
        words = [ast.unparse(decorator) for decorator in node.decorator_list]
        if words and not {"staticmethod", "classmethod", "functools.cache"} & set(words):
            indent = " " * node.col_offset
            lines[node.end_lineno : node.end_lineno] = [f"{indent}{node.name} = {w}({node.name})" for w in words[::-1]]
            del lines[node.decorator_list[0].lineno - 1 : node.lineno - 1]
    return "\n".join(lines) + "\n"


def copied(module: Path, tests: list[Path], work: Path, but: str = "") -> None:
    """What mutmut needs, with its settings; what it has found stays."""
    arguments = ["-q", "-p", "no:cacheprovider", "-m", "not integration and not gpu"]
    arguments += ["-k", f"not ({but})"] if but else []
    work.mkdir(parents=True, exist_ok=True)
    (work / "mutants/mutmut-stats.json").unlink(missing_ok=True)  # which test reaches what: asked anew
    for name in ("thinner", "tests", "tasks", "benchmarks", "docs"):
        shutil.rmtree(work / name, ignore_errors=True)
        shutil.copytree(ROOT / name, work / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "params.yaml", work)
    (work / module).write_text(undecorated((ROOT / module).read_text(encoding="utf-8")), encoding="utf-8")
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    settings = re.sub(r" --jaxtyping-packages=[^\"\s]*", "", settings)
    settings += f"""
[tool.mutmut]
source_paths = ["thinner"]
only_mutate = ["{module}"]
also_copy = ["tasks", "benchmarks", "docs", "params.yaml"]
pytest_add_cli_args = {json.dumps(arguments)}
pytest_add_cli_args_test_selection = {[str(path) for path in tests]}
use_git_change_detection = false
"""
    (work / "pyproject.toml").write_text(settings, encoding="utf-8")


def mutmut(work: Path, *arguments: str, shown: bool = False) -> str:
    return called(work, "-m", "mutmut", *arguments, shown=shown)


def called(work: Path, *arguments: str, shown: bool = False) -> str:
    """What Python says of these ``arguments`` in ``work``."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=work, env=environment, text=True, check=False,
        stdout=None if shown else subprocess.PIPE, stderr=None if shown else subprocess.STDOUT,
    )  # fmt: skip
    if done.returncode:
        command = " ".join(arguments[1:])[:100]
        raise UserError(f"{command}: exit code {done.returncode} in {work}. {done.stdout or ''}")
    return done.stdout or ""


def outcomes(text: str) -> dict[str, str]:
    """mutant -> what became of it, from ``mutmut results --all true``."""
    return dict(re.findall(r"^\s*(\S+__mutmut_\d+): (.+?)\s*$", text, re.MULTILINE))


def row(name: str, found: dict[str, str]) -> tuple[str, float]:
    """A line of the table, and the share (0 to 1) that was killed."""
    counts = Counter("killed" if what in KILLED else what for what in found.values())
    tried = sum(counts.values()) - counts["not checked"]
    share = counts["killed"] / tried if tried else 0.0
    numbers = (tried, counts["killed"], counts["survived"], counts["no tests"])
    return f"| {name} | {' | '.join(f'{number:,}' for number in numbers)} | {share:.1%} |", share


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mutants", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("modules", nargs="+", help="of thinner, for example views or data/store")
    parser.add_argument("--least", type=float, default=0.0, help="percent that must be killed in each")
    parser.add_argument("--but", default="", help="tests that are left out, as pytest -k names them: slow ones")
    parser.add_argument("--only", default="", help="a sample: mutants of such names, for example '*[27]' for a fifth")
    parser.add_argument("--children", type=int, default=1, help="processes")
    parser.add_argument("--work", type=Path, default=ROOT / ".thinner/mutants", help="where mutants are kept")
    given = parser.parse_args(arguments)
    lines, worst = ["| module | mutants | killed | survived | no test | killed |", "|---|" + "---:|" * 5], 1.0
    try:
        if importlib.util.find_spec("mutmut") is None:
            raise UserError("mutmut is not installed. Do: pip install mutmut")
        for name in given.modules:
            work, module = given.work / name, only(Path("thinner"), f"{name}.py")
            files = (f"test_{module.name}", *ALSO.get(module.stem, ()))
            copied(module, [only(Path("tests/thinner"), file) for file in files], work, given.but)
            sample = [given.only] if given.only else []  # those that are named are tried even where they were before
            mutmut(work, "run", "--max-children", str(given.children), *sample, shown=True)
            found = outcomes(mutmut(work, "results", "--all", "true"))
            alive = [mutant for mutant, what in found.items() if what in ("survived", "no tests")]
            (work / "survivors.diff").write_text(called(work, "-c", SHOW, *alive))
            line, share = row(name, found)
            lines.append(line)
            worst = min(worst, share)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    print("\n" + "\n".join(lines))
    return int(100 * worst < given.least)


if __name__ == "__main__":
    sys.exit(main())
