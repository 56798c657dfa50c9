"""The record of a team: MLflow and Prefect on one PostgreSQL server, MLflow's files in the bucket of the results."""

import contextlib
import os
import re
import shlex
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers import answers, end_group, free_port, wait_until
from tests.stores import postgres, signed_s3
from tests.toy import PROJECT, Toy

STAGES = ["prepare", "finetune", "scratch", "distill"]
pytestmark = pytest.mark.integration


@contextlib.contextmanager
def mlflow_server(folder: Path, database: str, s3: str, secrets: dict[str, str]) -> Iterator[str]:
    """As docs/remotes.md starts it, word by word, but on a port that it is told."""
    port = str(free_port())
    page = (PROJECT / "docs" / "remotes.md").read_text()
    (lines,) = [block for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) if "mlflow server" in block]
    told = {"5000": port, "HOST": "localhost", "s3://BUCKET": "s3://team"}
    for word, value in {**told, "postgresql://USER@DATABASE/mlflow": database}.items():
        assert word in lines
        lines = lines.replace(word, value)
    exports, command = lines.replace("\\\n", "").splitlines()
    env = os.environ | secrets | {"MLFLOW_S3_ENDPOINT_URL": s3}
    env |= dict(word.split("=") for word in exports.removeprefix("export ").split())
    with (folder / "mlflow.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", *shlex.split(command), "--workers", "1"],
            cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/health"), server, folder / "mlflow.log")
        yield f"http://localhost:{port}"
    finally:
        end_group(server)


def rows(url: str, passes: str, query: str) -> list[Any]:
    import psycopg2

    with contextlib.closing(psycopg2.connect(url, passfile=passes)) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        return list(cursor.fetchall())


def test_runs_are_in_postgresql_files_in_the_bucket_and_no_password_is_anywhere(tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    with contextlib.ExitStack() as servers:
        database = servers.enter_context(postgres("mlflow", "prefect"))
        (where, password), passes = database.words, database.env["PGPASSFILE"]
        store = servers.enter_context(signed_s3(tmp_path / "server"))
        records, order = f"postgresql://{where}/mlflow", f"postgresql://{where}/prefect"
        url = servers.enter_context(
            mlflow_server(tmp_path / "server", records, store.words[-1], store.env | database.env)
        )
        other = urllib.request.Request(url, headers={"Host": "elsewhere:5000"})  # it was told its names
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(other, timeout=60)
        assistant = f"{url}/ajax-api/3.0/mlflow/assistant/config"
        put = urllib.request.Request(assistant, b"{}", {"Content-Type": "application/json"}, method="PUT")
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(put, timeout=60)
        toy = Toy(tmp_path / "toy")
        for file in ("mlflow.db", ".prefect/prefect.db"):
            (toy.root / file).unlink()
        program = (toy.root / "program.py").read_text()
        logged = '    Path("note.txt").write_text(stage.name)\n    stage.record.artifact("note.txt")\n    read = {'
        (toy.root / "program.py").write_text(program.replace("    read = {", logged))
        toy.commit()
        toy.env |= {"MLFLOW_TRACKING_URI": url, **database.env}
        toy.env["PREFECT_API_DATABASE_CONNECTION_URL"] = order.replace("postgresql:", "postgresql+asyncpg:")
        done = toy.pipeline()
        assert sorted(toy.ran()) == sorted(STAGES), done.stdout

        runs = rows(records, passes, "SELECT name, status FROM runs")
        assert sorted(name.split()[0] for name, _ in runs) == sorted(["pipeline", *STAGES])
        assert {status for _, status in runs} == {"FINISHED"}
        assert [name for (name,) in rows(order, passes, "SELECT state_name FROM flow_run")] == ["Completed"]
        assert sorted(rows(order, passes, "SELECT name, state_name FROM task_run")) == [
            (n, "Completed") for n in sorted(STAGES)
        ]
        look = (
            "import boto3, sys; found = boto3.client('s3', endpoint_url=sys.argv[1], region_name='us-east-1')"
            ".list_objects_v2(Bucket='team', Prefix='mlflow/'); print([one['Key'] for one in found['Contents']])"
        )
        listed = subprocess.run(
            [sys.executable, "-c", look, store.words[-1]],
            env=os.environ | store.env, check=True, text=True, capture_output=True,
        )  # fmt: skip
        assert listed.stdout.count("note.txt") == 4
        assert not (toy.root / "mlflow.db").exists() and not (toy.root / ".prefect" / "prefect.db").exists()
        for secret in (password, *store.env.values()):
            assert secret not in done.stdout + done.stderr
            for path in toy.root.rglob("*"):
                assert not path.is_file() or secret.encode() not in path.read_bytes(), path
