"""A clone of this repository in which a benchmark runs whole jobs."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tasks.environment import child_environment

# What says where to record, or that something was looked at already: true of this repository alone.
_OURS = ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "PREFECT_HOME", "THINNER_CHECKED")


def make_clone(root: Path, folder: Path) -> Path:
    """The last commit of ``root`` in ``folder``, with a cache of its own."""
    subprocess.run(["git", "clone", "--quiet", str(root), str(folder)], check=True)
    return folder


def clone_environment(folder: Path) -> dict[str, str]:
    """For processes that work in the clone, with its own code."""
    environment = child_environment(PYTHONPATH=str(folder))
    return {name: value for name, value in environment.items() if name not in _OURS}
