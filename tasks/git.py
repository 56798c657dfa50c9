"""Git, asked without a terminal: it answers, or says why not, and never waits for a password."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tasks.record.mlflow_client import without_passwords
from thinner.errors import UserError, one_line

_AWAY = ("fetch", "ls-remote", "push")  # commands that speak to another machine
_PATIENCE = 120.0  # seconds for those


def git(folder: Path, *arguments: str, strip: bool = True, env: Mapping[str, str] | None = None) -> str:
    """What git says. Raises UserError with git's own words, where it fails."""
    done = ask(folder, *arguments, env=env)
    if done.returncode:
        said = one_line(without_passwords(done.stderr)) or f"exit code {done.returncode}"
        raise UserError(f"git {arguments[0]}: {said}")
    return done.stdout.rstrip("\n") if strip else done.stdout


def ask(folder: Path, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """The same, also where it fails. Raises UserError where another machine lets it wait."""
    environment = {"GIT_SSH_COMMAND": "ssh -oBatchMode=yes", **os.environ, "GIT_TERMINAL_PROMPT": "0", **(env or {})}
    try:
        return subprocess.run(
            ["git", *arguments], cwd=folder, env=environment, text=True, errors="replace", capture_output=True,
            stdin=subprocess.DEVNULL, timeout=_PATIENCE if arguments[0] in _AWAY else None, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise UserError(f"git {arguments[0]}: did not end within {_PATIENCE:.0f} seconds") from None
