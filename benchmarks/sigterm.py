"""SIGTERM in the midst of a real training: how soon is all gone, and how much training is lost?

    python -m benchmarks.sigterm                          # the stages of the default job that learn
    python -m benchmarks.sigterm distill prune --times 3  # these, at three moments each
    python -m benchmarks.sigterm --check                  # exits with 1 beyond 10 s, 30 s or where nothing goes on

In a clone, with links to the objects of this repository's cache, so that only the stage asked for has to run (its entry
in dvc.lock is taken out). The flow, `dvc repro` or the stage itself gets SIGTERM at a drawn moment of its training.
`ends in`: seconds until no process is left in the clone. `lost`: seconds of training since the state that is kept was
begun; 0 where it was written after the signal. `goes on`: a second run of the stage begins at that state's step.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import yaml

from benchmarks.clones import clone_environment, make_clone
from tasks.environment import repository_root
from thinner.errors import UserError
from thinner.files import tensors as tensor_files

ENDS, LOST = 10.0, 30.0
STAGES = ("finetune", "scratch", "teach", "distill", "prune", "small")
START = 120.0  # seconds that a stage may take until it trains
PROGRAMS = {"flow": ["flows.pipeline", "{}"], "dvc": ["dvc", "repro", "--single-item", "{}"], "stage": ["tasks.{}"]}


def clone_of(root: Path, folder: Path) -> Path:
    """A clone at the last commit, up to date by ``root``'s cache; it has no run cache, so what is forgotten runs."""
    make_clone(root, folder)
    cache = root / ".dvc" / "cache" / "files"
    if not cache.is_dir():
        raise UserError(f"{cache} is not there: run the job once, so that there are results to begin with: make run")
    shutil.copytree(cache, folder / ".dvc" / "cache" / "files", copy_function=os.link)
    for name in ("raw", "weights"):  # given, and not made by any stage
        if (root / "data" / name).is_dir() and not (folder / "data" / name).exists():
            shutil.copytree(root / "data" / name, folder / "data" / name)
    return folder


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, env=clone_environment(folder),
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def trial(folder: Path, stage: str, who: str, wait: float) -> dict[str, Any]:
    """Start the stage, wait until it has kept or made something and ``wait`` seconds more, send SIGTERM."""
    _forget(folder, stage)
    command = [part.format(stage) for part in PROGRAMS[who]]
    with (folder / "trial.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], cwd=folder, env=clone_environment(folder), stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
        learning = _learning(folder, stage, process)
        time.sleep(wait)
        if not _learns(folder, stage):  # it has ended, or is about to: too late
            process.wait()
            return trial(folder, stage, who, wait / 2)
        signalled, began = time.time(), time.monotonic()
        process.send_signal(signal.SIGTERM)
        while (alive := processes(folder)) and time.monotonic() - began < 120:
            time.sleep(0.05)
            process.poll()
        ends = time.monotonic() - began
    for left in alive:
        with contextlib.suppress(psutil.Error):
            left.kill()
    states = {path: path.stat().st_mtime for path in _states(folder, stage)}
    newest = max(states.values(), default=learning)
    kept = max(states, key=lambda path: states[path]) if states else None
    return {
        "stage": stage,
        "SIGTERM to": who,
        "after s": round(signalled - learning, 1),
        "ends in s": round(ends, 1),
        "lost s": round(max(0.0, signalled - newest), 1),
        "kept": _what(kept),
        "goes on": _goes_on(folder, stage, kept),
    }


def _forget(folder: Path, stage: str) -> None:
    """Have nobody know that the stage ever ran; all others are up to date."""
    subprocess.run(["git", "checkout", "--quiet", "--", "dvc.lock"], cwd=folder, check=True)
    done = run(folder, "dvc", "checkout", "--force", "--quiet")
    if done.returncode:
        raise UserError(f"dvc checkout in {folder}: {done.stderr.strip()[-300:]}")
    path = folder / "dvc.lock"
    lock = yaml.safe_load(path.read_text())
    lock["stages"].pop(stage, None)
    path.write_text(yaml.safe_dump(lock, sort_keys=False))
    shutil.rmtree(folder / ".thinner" / "resume", ignore_errors=True)
    shutil.rmtree(folder / ".dvc" / "cache" / "runs", ignore_errors=True)


def _learns(folder: Path, stage: str) -> bool:
    """Whether the stage has a folder for its states, which goes when its result is there."""
    return any((folder / ".thinner" / "resume").glob(f"{stage}-*"))


def _learning(folder: Path, stage: str, process: subprocess.Popen[bytes]) -> float:
    """Wait until the stage has a folder for its states; the time then."""
    give_up = time.monotonic() + START
    while not _learns(folder, stage):
        if process.poll() is not None or time.monotonic() > give_up:
            raise UserError(f"{stage} did not begin to learn:\n{(folder / 'trial.log').read_text()[-1000:]}")
        time.sleep(0.1)
    return time.time()


def _states(folder: Path, stage: str) -> list[Path]:
    found = []
    for path in (folder / ".thinner" / "resume").glob(f"{stage}-*/**/*"):
        with contextlib.suppress(OSError):
            if path.is_file() and not path.name.startswith("."):
                found.append(path)
    return found


def _what(kept: Path | None) -> str:
    if kept is None:
        return "nothing"
    step = _step(kept)
    return f"step {step}" if step is not None else kept.name


def _step(kept: Path) -> int | None:
    if kept.suffix != ".safetensors":
        return None
    _, about = tensor_files.read(kept)
    return about.get("done")


def _goes_on(folder: Path, stage: str, kept: Path | None) -> str:
    """Start the stage again, for as long as it needs to say where it begins."""
    if kept is None:
        return "-"
    step = _step(kept)
    process = subprocess.Popen(
        [sys.executable, "-m", f"tasks.{stage}"], cwd=folder,
        env=clone_environment(folder) | {"THINNER_PROGRESS": "json"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    first: int | None = None
    assert process.stdout is not None
    for line in process.stdout:
        if '"done"' in line:
            with contextlib.suppress(ValueError):
                told = json.loads(line[line.index("{") :])
                if told.get("done"):
                    first = int(told["done"])
                    break
    process.send_signal(signal.SIGTERM)
    process.communicate()
    if first is None:
        return "no"
    return "yes" if step is None or first > step else f"no, at {first}"


def processes(folder: Path) -> list[psutil.Process]:
    """All that work in the clone."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if Path(process.cwd()).is_relative_to(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sigterm", description="SIGTERM in real trainings.")
    parser.add_argument("stages", nargs="*", default=list(STAGES), help=f"of {', '.join(STAGES)}; none: all")
    parser.add_argument("--times", type=int, default=1, help="moments for each who gets the signal")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    if unknown := sorted(set(given.stages) - set(STAGES)):
        parser.error(f"stages: no '{unknown[0]}' here. Choose from {', '.join(STAGES)}")
    choose = random.Random(given.seed)  # noqa: S311 - moments, not secrets
    rows = []
    with tempfile.TemporaryDirectory(prefix="sigterm-") as base:
        try:
            clone = clone_of(repository_root(), Path(base).resolve() / "clone")
            for stage in given.stages:
                for who in PROGRAMS:
                    for _ in range(given.times):
                        rows.append(trial(clone, stage, who, choose.uniform(2.0, 40.0)))
                        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
        except UserError as error:
            print(error, file=sys.stderr)
            return 2
    print("\n" + pd.DataFrame(rows).to_markdown(index=False))
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")
    bad = [row for row in rows if row["ends in s"] > ENDS or row["lost s"] > LOST or row["goes on"].startswith("no")]
    return int(given.check and bool(bad))


if __name__ == "__main__":
    sys.exit(main())
