"""MLflow's run of a flow: a process of its own opens it and waits to close it, as MLflow takes seconds to import."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from thinner.errors import UserError

_MODULE = "tasks.record.pipeline_run"


class Opened(NamedTuple):
    kept: bool  # here, as MLflow does not answer
    run_id: str
    said: str  # on the way, to be passed on


class Closed(NamedTuple):
    well: bool
    said: str
    error: str


@dataclass(frozen=True)
class Record:
    """The process. Where nobody can speak to it any more it ends, and leaves the run for the next flow to mark."""

    process: subprocess.Popen[str]

    @classmethod
    def start(cls, root: Path, environment: Mapping[str, str]) -> Record:
        """It imports what it needs, and waits."""
        return cls(start(root, environment, _MODULE, "hold"))

    def open(self, name: str | None = None) -> Opened:
        """The run of a pipeline, or of what has this ``name``. Raises UserError."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(name), file=self.process.stdin, flush=True)
        if not (opened := self.process.stdout.readline()):
            what = f"MLflow's run of {name or 'this pipeline'} could not be opened"
            raise UserError(self.process.communicate()[1].strip() or what)
        return Opened(*json.loads(opened))

    def close(self, root: Path, environment: Mapping[str, str], run_id: str, **words: Any) -> Closed:
        """``words``: ``status``, and of a pipeline its ``stages``, as `tasks.record.pipeline_run` reads them.
        ``environment`` is for one that takes its place, should it have been killed."""
        process, told = self.process, json.dumps(words)
        said, error = process.communicate(told)
        if process.returncode < 0:
            process = start(root, environment, _MODULE, "close", run_id)
            said, error = process.communicate(told)
        return Closed(process.returncode == 0, said.strip(), error.strip())

    def leave(self) -> None:
        """Nothing is to be closed, or nobody will ask for it."""
        with contextlib.suppress(ValueError):
            self.process.communicate("")


def start(root: Path, environment: Mapping[str, str], *module: str) -> subprocess.Popen[str]:
    """A module of ours with pipes for all it reads and says."""
    return subprocess.Popen(
        [sys.executable, "-m", *module],
        cwd=root,
        env=environment,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for the flow, which tells the others
    )
