"""A copy of this repository as it is in the working tree, in which a job of its own can run."""

import shutil
import subprocess
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent


def copy_project(root: Path) -> Path:
    """The tracked and new files in ``root``, without what a run leaves (dvc.lock and reports, but for their pages)."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=PROJECT, text=True, capture_output=True, check=True
    )
    for name in listed.stdout.splitlines():
        made = name == "dvc.lock" or (name.startswith("reports/") and not name.endswith(".md"))
        if (PROJECT / name).is_file() and not made:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / name, root / name)
    return root


def commit_all(root: Path) -> None:
    """Make ``root`` a repository with one commit."""
    for command in (
        ["init", "--quiet", "--initial-branch=main"],
        ["config", "user.email", "copy@example.org"],
        ["config", "user.name", "Copy"],
        ["add", "--all"],
        ["commit", "--quiet", "--message", "a copy"],
    ):
        subprocess.run(["git", *command], cwd=root, check=True)
