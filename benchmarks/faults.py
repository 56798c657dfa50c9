"""Kills of everything that runs, at random and at writes: does the next run end with the same result, without a person?

    python -m benchmarks.faults                      # 200 kills; goes on where it was stopped
    python -m benchmarks.faults --workers 2          # two repositories side by side
    python -m benchmarks.faults --count 20 --seed 1  # other ones
    python -m benchmarks.faults --check              # exits with 1 unless all ended well

Each trial is a repository with four real stages of the project's own life cycle (tests/toy.py), everything of which is
out of date. The flow or `dvc repro` is started; a process of it is killed with -9: at a random moment, or at a random
one of its writes, renames and removals, just before it or just after a file was emptied. Then the same command runs
once more, with nothing cleaned up (before `dvc repro` comes `thinner status`: DVC alone does not survive a kill while
it writes dvc.lock or its rwlock). It must succeed, and leave the very bytes that a run nobody killed leaves: results,
dvc.lock, no half file, no process, and no run in MLflow that seems to run.

Trial N of a seed is always the same kill, as far as the machine allows. Kills that came too late (the process had ended
before its Nth write) are shown and do not count.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import psutil

ROOT = Path(__file__).resolve().parent.parent
FAULTS = ROOT / "tests" / "faults"
RESULTS = ROOT / "benchmarks" / "faults.json"
PAGE = ROOT / "docs" / "faults.md"
COUNT = 200
PATIENCE = 240.0  # seconds that a run may take; on a quiet machine it takes 15 to 30
GONE = 40.0  # seconds in which all that a killed run had started has to be gone

# victim -> what its command line has
VICTIMS = {
    "stage": "program.py",
    "dvc": "-m dvc",
    "flow": "flows.pipeline",
    "record": "tasks.record.pipeline_run",
    "server": "prefect.server.api",
}
RUNNERS = {"flow": ["-m", "flows.pipeline"], "dvc": ["-m", "dvc", "repro"]}


def plan(seed: int, number: int) -> dict[str, Any]:
    """What trial ``number`` does."""
    choose = random.Random(f"{seed} {number}")  # noqa: S311 - moments to fail at, not secrets
    runner = choose.choice(list(RUNNERS))
    victims = [name for name in VICTIMS if runner == "flow" or name in ("stage", "dvc")]
    if choose.random() < 0.5:
        seconds = choose.uniform(0.5, 30.0 if runner == "flow" else 18.0)
        return {
            "runner": runner,
            "victim": choose.choice([*victims, "all"]),
            "kind": "moment",
            "at": f"{seconds:.1f} s",
        }
    writers = [name for name in victims if name != "server"]  # which writes into SQLite only
    return {
        "runner": runner,
        "victim": choose.choice(writers),
        "kind": "write",
        "at": f"{choose.randint(1, 40)} {choose.choice(['before', 'after'])}",
    }


def trial(made: Any, reference: Mapping[str, bytes], chosen: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Kill as ``chosen`` says, run again, and look. ``ended``: "same", or what was wrong; "too late"."""
    toy = copy_of(made, folder)
    fell = folder / "fell"
    extra = {}
    if chosen["kind"] == "write":
        extra = {
            "THINNER_FAULT": f"{VICTIMS[chosen['victim']]} {chosen['at']}",
            "THINNER_FAULT_ROOT": str(toy.root),
            "THINNER_FAULT_FELL": str(fell),
            "PYTHONPATH": os.pathsep.join([str(FAULTS), toy.env["PYTHONPATH"]]),
        }
    command = [sys.executable, *RUNNERS[chosen["runner"]]]
    with (folder / "killed.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=toy.root, env=toy.environment(**extra), stdout=log, stderr=log, start_new_session=True
        )
        if chosen["kind"] == "moment":
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(float(chosen["at"].split()[0]))
            if process.poll() is None and kill(toy.root, chosen["victim"], process.pid):
                fell.touch()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            kill(toy.root, "all", process.pid)
            return {**chosen, "ended": f"hung for {PATIENCE:.0f} s after the kill"}
    if not fell.exists():
        return {**chosen, "ended": "too late"}
    give_up = time.monotonic() + GONE
    while (left := processes(toy.root)) and time.monotonic() < give_up:
        time.sleep(0.2)
    if left:
        names = [words(process)[-80:] for process in left]
        kill(toy.root, "all", 0)
        return {**chosen, "ended": f"left behind: {names}"}
    began = time.monotonic()
    looked = [[sys.executable, "-m", "flows.cli", "status"]] if chosen["runner"] == "dvc" else []
    try:
        for again in [*looked, command]:
            done = subprocess.run(
                again,
                cwd=toy.root,
                env=toy.environment(),
                capture_output=True,
                text=True,
                check=False,
                timeout=PATIENCE,
            )
    except subprocess.TimeoutExpired:
        kill(toy.root, "all", 0)
        return {**chosen, "ended": f"the next run hung for {PATIENCE:.0f} s"}
    seconds = round(time.monotonic() - began, 1)
    if done.returncode:
        return {**chosen, "ended": f"needs a person: {(done.stdout + done.stderr).strip()[-300:]}"}
    return {**chosen, "ended": difference(toy.root, reference, chosen["runner"]), "seconds": seconds}


def difference(root: Path, reference: Mapping[str, bytes], runner: str) -> str:
    """ "same", or what sets the repository apart from one in which nobody was killed."""
    now = content(root)
    if wrong := sorted(name for name in now.keys() | reference.keys() if now.get(name) != reference.get(name)):
        return f"differs: {', '.join(wrong[:5])}"
    if half := [str(path.relative_to(root)) for path in root.rglob(".partial-*") if ".dvc" not in path.parts]:
        return f"half files: {', '.join(half)}"
    if runner == "flow":
        with contextlib.closing(sqlite3.connect(root / "mlflow.db")) as database:
            running = database.execute("SELECT count(*) FROM runs WHERE status = 'RUNNING'").fetchone()[0]
        if running:
            return f"{running} runs seem to run in MLflow"
    return "same"


def content(root: Path) -> dict[str, bytes]:
    """Results, and the stages of dvc.lock without their order, which is that of their ending."""
    import yaml

    found = {str(path.relative_to(root)): path.read_bytes() for path in (root / "data").rglob("*") if path.is_file()}
    lock = yaml.safe_load((root / "dvc.lock").read_text())["stages"]
    return found | {"dvc.lock": json.dumps(lock, sort_keys=True).encode()}


def processes(root: Path) -> list[psutil.Process]:
    """All that work for the repository at ``root``."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            home = process.environ().get("PREFECT_HOME", "")
            if home == str(root / ".prefect") and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def words(process: psutil.Process) -> str:
    """Its command line; nothing of one that has ended meanwhile."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""


def kill(root: Path, victim: str, leader: int) -> bool:
    """SIGKILL to the victim's processes, or to all; whether there was one."""
    hit = False
    for process in processes(root):
        with contextlib.suppress(psutil.Error):
            if victim == "all" or (VICTIMS[victim] in words(process) and (victim != "flow" or process.pid == leader)):
                process.send_signal(signal.SIGKILL)
                hit = True
    return hit


def copy_of(made: Any, folder: Path) -> Any:
    """The toy, copied, with everything out of date."""
    toy = object.__new__(type(made))
    toy.forks = "off"  # a file of its own is in each process's path, which a fork would not have read
    toy.root = Path(shutil.copytree(made.root, folder / "toy", symlinks=True))
    toy.env = made.env | {
        "PREFECT_HOME": str(toy.root / ".prefect"),
        "DVC_SITE_CACHE_DIR": str(folder / "site-cache"),
    }
    (toy.root / "raw" / "one.txt").write_text("two")
    return toy


def prepared(folder: Path) -> tuple[Any, dict[str, bytes]]:
    """The toy after a first run, and what it holds after a second one with other data."""
    from tests.toy import Toy

    made = Toy(folder / "made" / "toy")
    made.pipeline()
    (folder / "straight").mkdir()
    straight = copy_of(made, folder / "straight")
    straight.pipeline()
    return made, content(straight.root)


def table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """By what was killed, and when: kills, those after which the next run ended the same, and its seconds."""
    frame = pd.DataFrame(rows)
    fell = frame[frame["ended"] != "too late"]
    groups = fell.groupby(["victim", "kind"])
    found = pd.DataFrame(
        {
            "kills": groups.size(),
            "same": groups["ended"].agg(lambda ended: int((ended == "same").sum())),
            "seconds to the end": groups["seconds"].median() if "seconds" in fell else float("nan"),
        }
    ).reset_index()
    return found.rename(columns={"kind": "at a"})


def render(rows: list[dict[str, Any]]) -> str:
    fell = [row for row in rows if row["ended"] != "too late"]
    wrong = [row for row in fell if row["ended"] != "same"]
    lines = [
        "<!-- written by `python -m benchmarks.faults`; do not edit -->",
        "# What do kills do?",
        "",
        f"{len(fell)} kills, on {psutil.cpu_count()} CPU cores; {len(rows) - len(fell)} more came too late. After",
        f"{len(fell) - len(wrong)} of them the next run ended with the very same results and nobody's help.",
        "",
        table(rows).to_markdown(index=False, floatfmt=".0f"),
        "",
        "`seconds to the end`: the median of what the next run took, the start of Python and Prefect's server in it.",
        "What is killed how, and what is compared: `benchmarks/faults.py`. More about faults:",
        "[reliability.md](reliability.md).",
    ]
    for row in wrong:
        lines.append(f"\n- {row['runner']}, {row['victim']} at {row['kind']} {row['at']}: {row['ended']}")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description="Kills, and what they do.")
    parser.add_argument("--count", type=int, default=COUNT, help="kills that count")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="trials side by side")
    parser.add_argument("--json", type=Path, default=RESULTS, help="results; what is there is kept")
    parser.add_argument("--check", action="store_true", help="exit with 1 unless all ended well")
    given = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(given.json.read_text()) if given.json.exists() else []
    done = {row["number"] for row in rows if row["seed"] == given.seed}
    numbers = (number for number in itertools.count() if number not in done)
    guard = threading.Lock()

    def enough() -> bool:
        return sum(row["ended"] != "too late" and row["seed"] == given.seed for row in rows) >= given.count

    def work(made: Any, reference: Mapping[str, bytes]) -> None:
        while True:
            with guard:
                if enough():
                    return
                number = next(numbers)
            with tempfile.TemporaryDirectory(prefix="fault-") as folder:
                row = trial(made, reference, plan(given.seed, number), Path(folder))
            with guard:
                rows.append({"seed": given.seed, "number": number, **row})
                given.json.write_text(json.dumps(rows, indent=1) + "\n")
                words = f"{row['runner']:5}{row['victim']:7}{row['kind']:7}{row['at']:10}"
                print(f"{number:4d}  {words}{row['ended']}", flush=True)

    with tempfile.TemporaryDirectory(prefix="faults-") as base, ThreadPoolExecutor(given.workers) as pool:
        made, reference = prepared(Path(base))
        for future in [pool.submit(work, made, reference) for _ in range(given.workers)]:
            future.result()
    if given.json == RESULTS:
        PAGE.write_text(render(rows), encoding="utf-8")
    print(f"\n{table(rows).to_string(index=False)}")
    return int(given.check and any(row["ended"] not in ("same", "too late") for row in rows))


if __name__ == "__main__":
    sys.exit(main())
