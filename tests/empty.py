"""The files of MLflow, Prefect and DVC as they have just made them: that takes longer than most of what tests are about.
A first run of all, which makes MLflow's and Prefect's itself, is in tests/test_end_to_end.py and test_first_hour.py."""

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tasks import processes

PROJECT = Path(__file__).resolve().parent.parent


@functools.cache
def _made() -> Path:
    """Their folder; the processes of a test run share one."""
    if (shared := os.environ.get("TESTS_SHARE")) is None:  # a benchmark
        shared = tempfile.mkdtemp(prefix="thinner-empty-")
        atexit.register(shutil.rmtree, shared, ignore_errors=True)
    folder = Path(shared, "empty")
    with processes.only_one(Path(shared, "empty.lock")):
        return folder if folder.exists() else _make(Path(f"{folder}.partial")).rename(folder)


def _make(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
    record = f"from tasks.record import database; database.prepare('sqlite:///{folder / 'mlflow.db'}')"
    upgrade = ["-m", "prefect", "server", "database", "upgrade", "--yes"]
    repository = folder / "repository"
    subprocess.run(["git", "init", "--quiet", str(repository)], check=True)
    all_three = [
        subprocess.Popen(
            [sys.executable, *words], cwd=where, env=kept | {"PREFECT_HOME": str(folder)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for where, words in (
            (PROJECT, ["-c", record]), (PROJECT, upgrade), (repository, ["-m", "dvc", "init", "--quiet"]),
        )
    ]  # fmt: skip
    for process in all_three:
        said = process.communicate()[0]
        assert process.returncode == 0, said.decode()
    return folder


def put_stores(root: Path) -> None:
    """In the repository at ``root``, for runs that nobody has told of another place."""
    shutil.copy(_made() / "mlflow.db", root)
    put_prefect(root / ".prefect")


def put_dvc(root: Path) -> None:
    """What `dvc init` writes into the repository at ``root``."""
    shutil.copytree(_made() / "repository" / ".dvc", root / ".dvc")
    shutil.copy(_made() / "repository" / ".dvcignore", root)


def put_prefect(home: Path) -> None:
    """Prefect's alone, in a folder that is to be PREFECT_HOME."""
    home.mkdir(exist_ok=True)
    shutil.copy(_made() / "prefect.db", home)
