"""Servers on this machine that ask who is there: one that speaks S3 (moto's), Google's (gcp-storage-emulator), SSH
(asyncssh's), and PostgreSQL."""

import contextlib
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
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
        wait_until(lambda: answers(f"{url}/moto-api/"), server, folder / "log")
        made = [sys.executable, "-c", MAKE_KEYS, url, json.dumps(POLICY)]
        key, secret = json.loads(subprocess.run(made, check=True, text=True, capture_output=True).stdout)
        yield Store(
            ["s3://team/thinner", "--endpoint", url], {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}
        )
    finally:
        server.terminate()
        server.wait(20)


# The emulator lets anybody in. So before it stands what Google has: whoever signs with the team's key gets a token, and
# without that each request is refused, in Google's words.
SERVE_OBJECTS = """
import base64, http.server, json, sys, urllib.parse
from functools import partial
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from gcp_storage_emulator import server
from google.auth import crypt

folder, port, token = sys.argv[1], int(sys.argv[2]), sys.argv[3]
url = f"http://127.0.0.1:{port}"
pem = serialization.Encoding.PEM
verifiers = {}
for name in ("team", "stranger"):
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    verifiers[f"{name}@thinner"] = crypt.RSAVerifier.from_string(public)
    with open(f"{folder}/{name}.json", "w") as file:
        json.dump({"type": "service_account", "project_id": "thinner", "private_key_id": name, "private_key": private,
                   "client_email": f"{name}@thinner", "token_uri": f"{url}/token"}, file)

class Handler(server.RequestHandler):
    def answer(self, code, body):
        text = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def refuse(self, code, who):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        right = "storage.objects.create access to the Google Cloud Storage object."
        self.answer(code, {"error": {"code": code, "message": f"{who} does not have {right}"}})

    def asked(self):
        if self.path == "/token":
            form = self.rfile.read(int(self.headers["Content-Length"])).decode()
            signed = urllib.parse.parse_qs(form)["assertion"][0].encode()
            who = json.loads(base64.urlsafe_b64decode(signed.split(b".")[1] + b"=="))["iss"]
            text, _, signature = signed.rpartition(b".")
            if verifiers[who].verify(text, base64.urlsafe_b64decode(signature + b"==")):
                given = token if who == "team@thinner" else "strangers"
                return self.answer(200, {"access_token": given, "expires_in": 3600, "token_type": "Bearer"})
            return self.answer(400, {"error": "invalid_grant", "error_description": "Invalid JWT Signature."})
        given = self.headers.get("Authorization")
        if given == f"Bearer {token}":
            return server.Router(self).handle(self.command)
        code, who = (403, "stranger@thinner") if given == "Bearer strangers" else (401, "Anonymous caller")
        return self.refuse(code, who)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = asked

storage = server.Storage(use_memory_fs=True)
server.buckets.create_bucket("team", storage)
with http.server.HTTPServer(("127.0.0.1", port), partial(Handler, storage)) as made:
    print("listening", flush=True)
    made.serve_forever()
"""


@contextlib.contextmanager
def signed_gs(folder: Path) -> Iterator[Store]:
    """With a bucket `team`; the words: an address, a token that is a secret. ``folder`` has the keys of two accounts,
    `team.json` and `stranger.json`. Skips the test where the emulator or dvc-gs are not installed."""
    pytest.importorskip("gcp_storage_emulator")
    pytest.importorskip("dvc_gs")
    port, token = free_port(), os.urandom(12).hex()
    command = [sys.executable, "-c", SERVE_OBJECTS, str(folder), str(port), token]
    with (folder / "log").open("w") as log, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"listening\n", (folder / "log").read_text()
            env = {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}"}  # Google's name for such an address
            # else gcsfs asks Google's own servers, by another protocol, what kind of bucket it is
            env |= {"GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
            yield Store(["gs://team/thinner", token], env)
        finally:
            server.terminate()


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
            connections = []

            def connected() -> bool:
                with contextlib.suppress(psycopg2.OperationalError):
                    connections.append(psycopg2.connect(f"postgresql://{where}/postgres", passfile=str(passes)))
                return bool(connections)

            wait_until(connected, server, folder / "log")
            (connection,) = connections
            connection.autocommit = True
            with contextlib.closing(connection), connection.cursor() as cursor:
                for database in databases:
                    cursor.execute(f"CREATE DATABASE {database}")
            yield Store([where, password], {"PGPASSFILE": str(passes)})
        finally:
            server.send_signal(signal.SIGINT)  # "fast": connections are ended
            server.wait(600)
