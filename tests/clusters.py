"""Clusters on loopback, of Dask and of Ray: a scheduler, and workers that share no folder with whoever asks, nor with
one another."""

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

from flows import worker
from tests.servers import free_port
from tests.toy import Toy, eventually


@dataclass
class Cluster:
    """A scheduler and workers on loopback, each with a folder, a cache, a record and an environment of its own."""

    engine: str
    folder: Path
    toy: Toy
    address: str
    workers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start_head(self, sockets: str) -> None:
        (self.folder / "head").mkdir()
        scheme, host, port = re.fullmatch(r"(?:(\w+)://)?(.+):(\d+)", self.address).groups()
        if self.engine == "dask":
            words = ["scheduler", "--host", host, "--protocol", scheme, "--port", port, "--no-dashboard"]
        else:  # without a processor, so no stage runs there
            words = ["--head", "--port", port, "--num-cpus", "0", "--include-dashboard=false", "--temp-dir", sockets]
            words += ["--ray-client-server-port", str(free_port())]
        self._start("head", words, self.toy.env, sys.executable)

    def start_worker(self, name: str, **env: str) -> None:
        home = self.folder / name
        home.mkdir()
        own = {worker.FOLDER: str(home / "clones"), "PREFECT_HOME": str(home), "DVC_SITE_CACHE_DIR": str(home / "site")}
        own |= {"MLFLOW_TRACKING_URI": f"sqlite:///{home}/mlflow.db", "HOME": str(home), **env}
        shutil.copy(self.toy.root / "mlflow.db", home)
        words = ["worker", self.address, "--nthreads", "1", "--host", "127.0.0.1", "--no-dashboard", "--no-nanny"]
        words += ["--protocol", self.address.split(":")[0]]
        words += ["--local-directory", str(home / "dask"), "--name", name]
        if self.engine == "ray":
            words = ["--address", self.address, "--num-cpus", "1"]
        self._start(name, words, self.toy.env | own, _own_python(home / "env"))

    def _start(self, name: str, words: list[str], env: dict[str, str], python: str) -> None:
        home = self.folder / name
        command = [python, "-m", "dask", *words]
        if self.engine == "ray":
            command = [python, "-m", "ray.scripts.scripts", "start", "--block", "--node-ip-address", "127.0.0.1"]
            command += ["--object-store-memory", str(100 * 2**20), *words]
            env = env | {"RAY_USAGE_STATS_ENABLED": "0"}
        with (home / "log").open("w") as log:
            self.workers[name] = subprocess.Popen(command, env=env, cwd=home, stdout=log, stderr=log)
        begun = "Scheduler at:" if name == "head" else "Registered to:"
        if self.engine == "ray":
            begun = "Ray runtime started"
        eventually(lambda: begun in (home / "log").read_text())

    def kill(self, name: str) -> None:
        """As one whose machine is lost."""
        process = self.workers[name]
        parts = psutil.Process(process.pid).children() if self.engine == "ray" else []
        for part in [one for one in parts if one.name() == "raylet"] or [process]:
            part.kill()

    def end(self) -> None:
        for process in reversed(self.workers.values()):
            parts = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            process.terminate()
            _, left = psutil.wait_procs(parts, 10)
            for part in [*left, process]:
                part.kill()
            process.wait()

    def ran(self) -> list[tuple[str, str]]:
        """(worker, stage) of all that really ran."""
        files = self.folder.glob("*/clones/*/*/ran.txt")
        return [(f.relative_to(self.folder).parts[0], stage) for f in files for stage in f.read_text().split()]

    def read(self, name: str, start: str) -> list[str]:
        """What follows ``start`` in files of that name, of all workers."""
        words = [word for file in self.folder.glob(f"*/clones/*/*/{name}") for word in file.read_text().split()]
        return [word.removeprefix(start) for word in words if word.startswith(start)]

    def states(self) -> dict[str, int]:
        """The step in each state of distill that lies on the remote."""
        found = {}
        for path in (self.toy.root.parent / "store" / "states").glob("distill-*.tar"):
            with contextlib.suppress(tarfile.TarError, OSError, KeyError), tarfile.open(path) as archive:
                found[path.stem] = int((archive.extractfile("step") or io.BytesIO(b"0")).read())
        return found

    def stages(self) -> list[psutil.Process]:
        """Stage programs that are alive."""
        return [p for p in psutil.process_iter(["cmdline", "cwd", "status"])
                if "program.py" in (p.info["cmdline"] or [])[:3] and str(p.info["cwd"]).startswith(str(self.folder))
                and p.info["status"] != psutil.STATUS_ZOMBIE]  # fmt: skip

    def fork_for(self, stage: psutil.Process) -> psutil.Process | None:
        """The fork that works in the place of a stage's program, of a process that its worker keeps for that."""
        for process in psutil.process_iter(["cmdline", "cwd"]):
            with contextlib.suppress(psutil.Error):
                if "tasks.forks" in (process.info["cmdline"] or []) and process.info["cwd"] == stage.info["cwd"]:
                    return process
        return None


def _own_python(environment: Path) -> str:
    """Of a virtual environment that has this one's packages."""
    venv.create(environment, symlinks=True)
    (place,) = environment.glob("lib/python*/site-packages")
    (place / "packages.pth").write_text(f"{Path(pytest.__file__).parents[1]}\n")
    return str(environment / "bin" / "python")


def _certificates(folder: Path) -> dict[str, str]:
    """What Dask is told of a certificate for all of a cluster, which signs itself."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "cluster")])
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(1).not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    own, secret = folder / "certificate.pem", folder / "key.pem"
    own.write_bytes(made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    secret.write_bytes(key.private_bytes(*form))
    tls = "DASK_DISTRIBUTED__COMM__TLS__"
    roles = [f"{tls}{role}__" for role in ("SCHEDULER", "WORKER", "CLIENT")]
    certificates = {f"{role}CERT": str(own) for role in roles} | {f"{role}KEY": str(secret) for role in roles}
    return {f"{tls}CA_FILE": str(own), "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "true", **certificates}


@contextlib.contextmanager
def started(engine: str, toy: Toy, folder: Path, encrypted: bool = False) -> Iterator[Cluster]:
    """Without a worker as yet; skips the test where the engine is not installed. ``encrypted``: of Dask, tls://."""
    pytest.importorskip(f"prefect_{engine}")
    if encrypted:
        toy.env |= _certificates(folder)
    # Ray listens on all of a machine's addresses: only who has the token is heard
    toy.env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": os.urandom(16).hex()}
    scheme = {"dask": "tls://" if encrypted else "tcp://", "ray": ""}[engine]
    made = Cluster(engine, folder, toy, f"{scheme}127.0.0.1:{free_port()}")
    # a short name, for sockets lie in there
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as sockets:
        try:
            made.start_head(sockets)
            yield made
        finally:
            made.end()
