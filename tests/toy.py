"""A git and DVC repository with four real stages that take a blink: what the joining of the tools is tested
on.

    prepare ── finetune ──┐
        └───── scratch ───┴── distill

Each stage runs `run_stage` from tasks/stage.py, writes what it read, and can be told through the environment
to fail (TOY_FAIL=NAME), to be slow (TOY_SLOW=NAME:SECONDS), not to heed SIGTERM (TOY_DEAF=NAME) or to edit
its own input while it runs (TOY_EDIT=NAME).
"""

import contextlib
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import yaml

from tasks import forks
from tests import forked
from tests.empty import put_dvc, put_stores
from tests.servers import PATIENCE

PROJECT = Path(__file__).resolve().parent.parent

PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from tasks import forks
forks.hand_over()
from tasks.stage import Stage, run_stage
from thinner.errors import UserError

def work(stage: Stage) -> None:
    with Path("ran.txt").open("a") as ran:
        ran.write(stage.name + "\\n")
    if os.environ.get("TOY_DEAF") == stage.name:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    read = {"prepare": ["raw"], "finetune": ["data/prepare"], "scratch": ["data/prepare"],
            "distill": ["data/finetune", "data/scratch"]}[stage.name]
    text = "".join(p.read_text() for folder in read for p in sorted(Path(folder).iterdir()))
    name, _, seconds = os.environ.get("TOY_SLOW", "").partition(":")
    steps = 5
    with stage.output(f"data/{stage.name}") as folder, stage.progress(stage.name, total=steps) as bar:
        for step in range(steps):
            bar.update(step + 1, loss=1 / (step + 1))
            stage.record.metrics({"loss": 1 / (step + 1)}, step=step)
            if name == stage.name:
                time.sleep(float(seconds) / steps)
        if os.environ.get("TOY_FAIL") == stage.name:
            raise UserError("asked to fail")
        if os.environ.get("TOY_EDIT") == stage.name:
            Path("raw/one.txt").write_text("edited")
        value = stage.params.distill.temperature if stage.name == "distill" else ""
        (folder / "model.json").write_text(f"{stage.name}({text}{value})")

if __name__ == "__main__":
    run_stage(sys.argv[1], work)
"""

GRAPH = {
    "stages": {
        "prepare": {
            "cmd": "python program.py prepare",
            "deps": ["program.py", "raw"],
            "outs": ["data/prepare"],
        },
        "finetune": {
            "cmd": "python program.py finetune",
            "deps": ["program.py", "data/prepare"],
            "params": ["finetune.image_size"],
            "outs": ["data/finetune"],
        },
        "scratch": {
            "cmd": "python program.py scratch",
            "deps": ["program.py", "data/prepare"],
            "outs": ["data/scratch"],
        },
        "distill": {
            "cmd": "python program.py distill",
            "deps": ["program.py", "data/finetune", "data/scratch"],
            "params": ["distill.temperature"],
            "outs": ["data/distill"],
        },
    }
}


class Toy:
    """The repository at `root`, and what one does in it."""

    forks = "shared"  # a flow's stages are forks of the tests' process; "own": of the flow's own; "off": by themselves

    def __init__(self, root: Path) -> None:
        self.root = root
        self.env = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("THINNER_", "MLFLOW_", "PREFECT_API", "DVC_", "TOY_"))
        } | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(PROJECT),
            "PREFECT_HOME": str(root / ".prefect"),
            "DVC_SITE_CACHE_DIR": str(root.parent / "site-cache"),
            "DVC_NO_ANALYTICS": "1",
            "SHELL": "/bin/sh",
        }
        (root / "raw").mkdir(parents=True)
        (root / "raw" / "one.txt").write_text("one")
        (root / "program.py").write_text(PROGRAM)
        (root / "params.yaml").write_text((PROJECT / "params.yaml").read_text())
        (root / ".gitignore").write_text(
            "__pycache__/\n/.prefect/\n/.thinner/\nmlflow.db*\n/mlartifacts/\nran.txt\n.partial-*\n"
        )
        self.write_graph(GRAPH)
        put_stores(root)
        self.run("git", "init", "--quiet", "--initial-branch=main")
        self.run("git", "config", "user.email", "toy@example.org")
        self.run("git", "config", "user.name", "Toy")
        put_dvc(root)
        self.commit()

    def graph(self) -> dict:
        return yaml.safe_load((self.root / "dvc.yaml").read_text())

    def write_graph(self, graph: dict) -> None:
        (self.root / "dvc.yaml").write_text(yaml.safe_dump(graph, sort_keys=False))

    def commit(self) -> None:
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--message", "toy")

    def environment(self, **env: str) -> dict[str, str]:
        # the deep check of params.yaml imports torch, ten seconds a stage; it has tests of its own
        digest = hashlib.sha256((self.root / "params.yaml").read_bytes()).hexdigest()
        told = self.env | {"THINNER_CHECKED": digest}
        if self.forks == "off":
            told |= {forks.ADDRESS: forks.OFF}
        elif self.forks == "shared":
            told |= forked.address(told["PYTHONPATH"])
        return told | env

    def run(self, *command: str, check: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command, cwd=self.root, env=self.environment(**env), text=True, capture_output=True, check=False
        )
        assert not check or done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done

    def start(self, *command: str, **env: str) -> subprocess.Popen[str]:
        # a shell has its background jobs ignore Ctrl-C, and children inherit that
        heeding = (
            "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execvp(sys.argv[1], sys.argv[1:])"
        )
        return subprocess.Popen(
            [sys.executable, "-c", heeding, *command],
            cwd=self.root,
            env=self.environment(**env),
            text=True,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def pipeline(self, *stages: str, check: bool = True, **env: str) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", "flows.pipeline", *stages, check=check, **env)

    def ran(self) -> list[str]:
        """The stages that really ran since the last time this was asked."""
        path = self.root / "ran.txt"
        names = path.read_text().split() if path.exists() else []
        path.unlink(missing_ok=True)
        return names

    def change_param(self, old: str, new: str) -> None:
        path = self.root / "params.yaml"
        text = path.read_text()
        assert text.count(old) >= 1, old
        path.write_text(text.replace(old, new))

    def _holders(self) -> set[str]:
        """The numbers in the locks of stages, here and in worktrees, as processes write and remove them."""
        while True:
            with contextlib.suppress(FileNotFoundError):  # a folder that went while it was looked into
                places = [self.root, *self.root.glob(".thinner/s*/**/w*-[0-9]")]
                return {path.read_text() for place in places for path in place.glob(".thinner/locks/*.lock")}

    def stage_processes(self) -> list[psutil.Process]:
        """Stage programs of this repository and its worktrees that are alive, then the forks that they stand for
        (tasks/forks.py)."""
        found: list[psutil.Process] = []
        holders = self._holders()
        for process in psutil.process_iter():
            try:
                words, here = process.cmdline()[:3], Path(process.cwd()).is_relative_to(self.root)
                if not here or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                if "program.py" in words:
                    found.insert(0, process)
                elif "tasks.forks" in words and str(process.pid) in holders:
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found


def eventually(condition: Callable[[], object]) -> None:
    """Wait until `condition()` is true."""
    give_up = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up, f"not within {PATIENCE} s"
        time.sleep(0.05)


def kill_family(leader: subprocess.Popen[Any]) -> None:
    """`kill -9` of a process and all below it; some may end while they are looked at."""
    family = [psutil.Process(leader.pid), *psutil.Process(leader.pid).children(recursive=True)]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    leader.wait()
    psutil.wait_procs(family, timeout=10)
