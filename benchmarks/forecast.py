"""Does `thinner plan` foretell how long a run takes? The whole job, run once in a clone, beside what was foretold.

    python -m benchmarks.forecast                        # the job of params.yaml
    python -m benchmarks.forecast --recipe cifar10       # a recipe's; its pictures have to be there
    python -m benchmarks.forecast --folder FOLDER        # the clone stays, with all that the run made
    python -m benchmarks.forecast --json FILE --check    # exits with 1 where the whole is off by more than 1.5

The clone has a cache of its own, so that everything is trained. What ran side by side took longer than alone, for which
the whole allows and the row of a stage does not.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import distillation
from benchmarks.clones import clone_environment, make_clone
from tasks.environment import repository_root
from thinner.config import load_params
from thinner.errors import UserError
from thinner.words import duration

FACTOR = 1.5


def run(clone: Path, *command: str) -> str:
    """What the command printed; what it says on the way is passed on. Raises UserError where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=clone, env=clone_environment(clone),
        stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise UserError(f"{' '.join(command)} ended with {done.returncode} in {clone}:\n{done.stdout[-2000:]}")
    return done.stdout


def measure(root: Path, clone: Path, recipe: str | None) -> dict[str, Any]:
    """Clone, plan, run. Raises UserError where the folder is taken or anything fails."""
    if clone.exists():
        raise UserError(f"--folder: '{clone}' is there already. Name another one, or remove it")
    make_clone(root, clone)
    if recipe is not None:
        run(clone, "flows.cli", "recipe", recipe)
    place = load_params(clone / "params.yaml").data.root
    if (root / place).is_dir() and not (clone / place).exists():
        (clone / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(root / place, clone / place)
    planned = json.loads(run(clone, "flows.cli", "plan", "--fresh", "--json"))
    end, began = clone / "end.json", time.perf_counter()
    run(clone, "flows.pipeline", "--json", str(end))
    seconds = time.perf_counter() - began
    took = {stage["name"]: stage["seconds"] for stage in json.loads(end.read_text())["stages"]}
    return {
        "recipe": recipe,
        "foretold": planned["seconds"],
        "took": seconds,
        "ratio": planned["seconds"] / seconds,
        "stages": {
            row["stage"]: {"foretold": row["seconds"], "took": took.get(row["stage"])} for row in planned["stages"]
        },
    }


def render(found: dict[str, Any]) -> str:
    lines = ["| stage | foretold | took |", "|---|---:|---:|"]
    for name, row in found["stages"].items():
        lines.append(f"| `{name}` | {duration(row['foretold'])} | {duration(row['took']) if row['took'] else '-'} |")
    whole = f"| **in all** | {duration(found['foretold'])} | {duration(found['took'])} |"
    return "\n".join([*lines, whole, "", f"The whole was foretold to {found['ratio']:.2f} of what it took."])


def main() -> int:
    parser = distillation.parser_of("forecast", str(__doc__).splitlines()[0])
    parser.add_argument("--recipe", help="instead of params.yaml's own job")
    parser.add_argument("--folder", type=Path, help="where the clone is made, and stays")
    options = parser.parse_args()
    try:
        root = repository_root()
        with tempfile.TemporaryDirectory() as temporary:
            clone = options.folder.resolve() if options.folder else Path(temporary) / "clone"
            found = measure(root, clone, options.recipe)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(render(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    return 1 if options.check and not 1 / FACTOR <= found["ratio"] <= FACTOR else 0


if __name__ == "__main__":
    sys.exit(main())
