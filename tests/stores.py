"""Servers on this machine that ask who is there: one that speaks S3 (moto's), SSH (asyncssh's), and PostgreSQL."""

import contextlib
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.servers import answers, free_port, wait_until

POLICY = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
MAKE_KEYS = """
import json, sys, boto3
where = dict(endpoint_url=sys.argv[1], aws_access_key_id="a", aws_secret_access_key="b", region_name="us-east-1")
users = boto3.client("iam", **where)
users.create_user(UserName="team")
users.put_user_policy(UserName="team", PolicyName="all", PolicyDocument=sys.argv[2])
key = users.create_access_key(UserName="team")["AccessKey"]
boto3.client("s3", **where).create_bucket(Bucket="team")
print(json.dumps([key["AccessKeyId"], key["SecretAccessKey"]]))
"""


@dataclass
class Store:
    """A server: what one is told of it (`thinner remote init`'s words, say), and what the environment has for it."""

    words: list[str]
    env: dict[str, str] = field(default_factory=dict)


@contextlib.contextmanager
def signed_s3(folder: Path) -> Iterator[Store]:
    """With a bucket `team`; skips the test where moto or dvc-s3 are not installed."""
    pytest.importorskip("moto")
    pytest.importorskip("dvc_s3")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    env = os.environ | {"INITIAL_NO_AUTH_ACTION_COUNT": "4"}  # what makes the user and the bucket; then it asks
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    try:
        wait_until(lambda: answers(f"{url}/moto-api/"), server, folder / "log", 60)
        made = [sys.executable, "-c", MAKE_KEYS, url, json.dumps(POLICY)]
        key, secret = json.loads(subprocess.run(made, check=True, text=True, capture_output=True).stdout)
        yield Store(
            ["s3://team/thinner", "--endpoint", url], {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}
        )
    finally:
        server.terminate()
        server.wait(20)


SERVE_FILES = """
import asyncio, sys, asyncssh
folder, port = sys.argv[1], int(sys.argv[2])
async def serve():
    for name in ("host", "key"):
        key = asyncssh.generate_private_key("ssh-ed25519")
        key.write_private_key(f"{folder}/{name}")
        key.write_public_key(f"{folder}/{name}.pub")
    await asyncssh.listen("127.0.0.1", port, server_host_keys=[f"{folder}/host"],
                          authorized_client_keys=f"{folder}/key.pub", sftp_factory=True)
    print("listening", flush=True)
    await asyncio.sleep(3600)
asyncio.run(serve())
"""


@contextlib.contextmanager
def sftp(folder: Path) -> Iterator[Store]:
    """An SSH server with files alone, below ``folder``; the words: an address, and the file of the key that it takes.
    Skips the test where dvc-ssh is not installed."""
    pytest.importorskip("dvc_ssh")
    port = free_port()
    command = [sys.executable, "-c", SERVE_FILES, str(folder), str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None and server.stdout.readline() == "listening\n"
            (folder / "key").chmod(0o600)
            yield Store([f"ssh://joe@127.0.0.1:{port}{folder}/store", f"{folder}/key"])
        finally:
            server.terminate()


@contextlib.contextmanager
def postgres(*databases: str) -> Iterator[Store]:
    """A PostgreSQL server with these databases: `thinner@HOST:PORT`, and a file with the password, which it wants. Skips
    the test where the server (Debian's package `postgresql`) or psycopg2 are not installed."""
    pytest.importorskip("psycopg2")
    places = [*map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), os.environ["PATH"]]
    programs = [shutil.which(name, path=os.pathsep.join(places)) for name in ("initdb", "postgres")]
    if None in programs:
        pytest.skip("PostgreSQL is not installed")
    initdb, server_program = map(str, programs)
    owner: dict[str, Any] = {}
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        try:
            account = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        owner = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    password = os.urandom(12).hex()
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="thinner-postgres-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "password").write_text(password)
        if owner:
            for path in (folder, folder / "password"):
                os.chown(path, owner["user"], owner["group"])
        made = [initdb, "-D", f"{folder}/data", "-U", "thinner", "-A", "scram-sha-256", "--no-sync"]
        made += ["--pwfile", f"{folder}/password", "--locale", "C.UTF-8"]
        subprocess.run(made, cwd=folder, check=True, capture_output=True, **owner)
        options = ["-p", str(port), "-k", str(folder), "-h", "127.0.0.1", "-c", "fsync=off"]
        with (folder / "log").open("w") as log:
            server = subprocess.Popen(
                [server_program, "-D", f"{folder}/data", *options], cwd=folder, stdout=log, stderr=log, **owner
            )
        try:
            import psycopg2

            where, passes = f"thinner@127.0.0.1:{port}", folder / "pgpass"
            passes.write_text(f"127.0.0.1:{port}:*:thinner:{password}\n")
            passes.chmod(0o600)
            give_up = time.monotonic() + 60
            while True:
                try:
                    connection = psycopg2.connect(f"postgresql://{where}/postgres", passfile=str(passes))
                    break
                except psycopg2.OperationalError:
                    assert server.poll() is None and time.monotonic() < give_up, (folder / "log").read_text()[-2000:]
                    time.sleep(0.2)
            connection.autocommit = True
            with contextlib.closing(connection), connection.cursor() as cursor:
                for database in databases:
                    cursor.execute(f"CREATE DATABASE {database}")
            yield Store([where, password], {"PGPASSFILE": str(passes)})
        finally:
            server.send_signal(signal.SIGINT)  # "fast": connections are ended
            server.wait(30)
