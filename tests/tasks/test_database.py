"""A kill while MLflow's file is made leaves nothing that the next run stumbles over."""

import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.record import database as mlflow_file
from tests.toy import PROJECT

OPEN = "from tasks.record import mlflow_client; client, experiment = mlflow_client.connect(); print('experiment', experiment)"


def connect(env: dict[str, str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", OPEN], cwd=PROJECT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def environment(root: Path) -> dict[str, str]:
    gone = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME")
    return {k: v for k, v in os.environ.items() if k not in gone} | {"DVC_ROOT": str(root)}


@pytest.mark.integration
def test_killed_while_it_is_made_the_next_one_makes_it(tmp_path: Path) -> None:
    """As soon as a file appears, and a little later: one table after the other is made then."""
    for number, wait in enumerate((0.0, 0.3)):
        root = tmp_path / str(number)
        root.mkdir()
        env = environment(root)
        process = connect(env)
        while process.poll() is None and not any(root.glob("*mlflow.db")):
            time.sleep(0.002)
        assert process.poll() is None, process.communicate()[0]
        time.sleep(wait)
        process.kill()
        process.communicate()
        said, _ = connect(env).communicate(timeout=600)
        assert "experiment 1" in said, said
        assert not mlflow_file.is_half_made(root / "mlflow.db")


@pytest.mark.integration
@pytest.mark.parametrize("statement", ["", "CREATE TABLE experiments (id INTEGER)"])
def test_a_file_left_half_made_is_set_aside_with_a_word(tmp_path: Path, statement: str) -> None:
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute(statement or "PRAGMA user_version = 1")
    database.close()
    said, _ = connect(environment(tmp_path)).communicate(timeout=600)
    assert "was left half made and held no run. It is mlflow.db.half-made now" in said
    assert "experiment 1" in said
    assert (tmp_path / "mlflow.db.half-made").exists()


def test_a_whole_file_and_what_is_no_database_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE alembic_version (version_num TEXT)")
        database.execute("INSERT INTO alembic_version VALUES ('a')")
    database.close()
    assert not mlflow_file.is_half_made(path)
    path.write_bytes(b"something else, and longer than a header of SQLite would be" * 10)
    assert not mlflow_file.is_half_made(path)
    before = path.read_bytes()
    mlflow_file.prepare(f"sqlite:///{path}")
    mlflow_file.prepare("http://127.0.0.1:1")
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["My%20Project", "C#", "what?", "a b"])
def test_a_database_is_looked_at_where_it_lies_whatever_its_folder_is_called(tmp_path: Path, name: str) -> None:
    root = tmp_path / name
    root.mkdir()
    with sqlite3.connect(root / "mlflow.db") as database:
        for table in ("alembic_version", "runs"):
            database.execute(f"CREATE TABLE {table} (word TEXT)")
        database.execute("INSERT INTO alembic_version VALUES ('a')")
    database.close()
    assert not mlflow_file.is_half_made(root / "mlflow.db")
    assert [path.name for path in tmp_path.iterdir()] == [name]  # no other file was made
    with mlflow_file.read_only(root / "mlflow.db") as opened, pytest.raises(sqlite3.OperationalError, match="readonly"):
        opened.execute("INSERT INTO runs VALUES ('b')")
