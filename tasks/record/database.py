"""MLflow's SQLite file, made whole or not at all.

MLflow makes its tables one by one. Killed in the middle it leaves a file with which it can do nothing more: "table
already exists". So a new file is made under another name, and one that was left half made is set aside.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import sys
from pathlib import Path

_SCHEME = "sqlite:///"
_ASIDE = ".half-made"


def prepare(uri: str) -> None:
    """Make the file of ``uri`` if it is not there. The caller holds the lock under which one process does so."""
    if not uri.startswith(_SCHEME):
        return
    path = Path(uri.removeprefix(_SCHEME))
    if path.exists():
        if not is_half_made(path):
            return
        aside = path.with_name(path.name + _ASIDE)
        os.replace(path, aside)
        print(
            f"warning: {path} was left half made and held no run. It is {aside.name} now", file=sys.stderr, flush=True
        )
    partial = path.with_name(f".partial-{path.name}")
    partial.unlink(missing_ok=True)
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    logging.getLogger("mlflow").setLevel(logging.WARNING)  # which importing it has set back
    store = SqlAlchemyStore(f"{_SCHEME}{partial}", "./mlruns")  # MLflow's own default, as with a client
    store.engine.dispose()
    os.replace(partial, path)


def read_only(path: Path) -> contextlib.closing[sqlite3.Connection]:
    """SQLite's file, which is neither made nor changed by being looked at."""
    return contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True))


def is_half_made(path: Path) -> bool:
    """Whether MLflow died while it made the file: there is no word on which version the tables are of, and no run."""
    with read_only(path) as database:
        try:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            count = {
                name: database.execute(f"SELECT count(*) FROM {name}").fetchone()[0] if name in tables else 0  # noqa: S608
                for name in ("alembic_version", "runs")
            }
        except sqlite3.DatabaseError:
            return False  # no database, or one that somebody works on: MLflow has words for that
    return count["alembic_version"] == 0 and count["runs"] == 0
