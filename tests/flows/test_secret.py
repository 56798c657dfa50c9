"""Who gets in to the servers that we start: whoever has the working copy's secret."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import flows
from tasks import processes

PROJECT = Path(__file__).parents[2]
NAMES = ("PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING", "PREFECT_SERVER_CORS_ALLOWED_ORIGINS")
PROGRAM = f"import flows, json, os; print(json.dumps({{n: os.environ.get(n) for n in {(*NAMES, 'NO_PROXY')!r}}}))"


def variables(**extra: str) -> dict[str, str | None]:
    """What a process has in its environment once it has imported `flows`."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT") and k.upper() != "NO_PROXY"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=PROJECT, env=clean | extra, text=True, capture_output=True, check=True
    )
    found: dict[str, str | None] = json.loads(done.stdout)
    return found


def test_servers_ask_for_a_secret_and_clients_have_it(tmp_path: Path) -> None:
    found = variables(PREFECT_HOME=str(tmp_path))
    client, server, origins = (found[name] for name in NAMES)
    assert client == server == flows._secret(PROJECT / ".thinner" / "prefect-secret")
    assert origins not in (None, "*")


def test_a_server_of_the_persons_own_is_left_alone(tmp_path: Path) -> None:
    nothing = dict.fromkeys(NAMES)
    assert {k: variables(PREFECT_API_URL="http://prefect.example/api")[k] for k in NAMES} == nothing
    (tmp_path / "profiles.toml").write_text('[profiles.team]\nPREFECT_API_URL = "http://prefect.example/api"\n')
    assert {k: variables(PREFECT_HOME=str(tmp_path))[k] for k in NAMES} == nothing


def test_the_secret_is_long_its_owners_alone_and_stays(tmp_path: Path) -> None:
    file = tmp_path / ".thinner" / "prefect-secret"
    made = flows._secret(file)
    assert len(made.removeprefix("thinner:")) >= 32
    assert file.stat().st_mode & 0o777 == 0o600
    assert flows._secret(file) == made
    assert flows._secret(tmp_path / "other" / "prefect-secret") != made
    # where it cannot be kept the process has one of its own
    (tmp_path / "file").write_text("")
    assert flows._secret(tmp_path / "file" / "prefect-secret").startswith("thinner:")


def test_while_the_server_of_make_ui_runs_it_is_used_by_whatever_begins(tmp_path: Path) -> None:
    """In a shell with no variable of Prefect's, as a person's is; in a folder of its own, which has no other server."""
    (tmp_path / "flows").mkdir()
    for name in ("__init__.py", "prefect_settings.py"):
        shutil.copy(PROJECT / "flows" / name, tmp_path / "flows" / name)
    (tmp_path / ".thinner").mkdir()
    us = {"url": "http://127.0.0.1:4299", "pid": os.getpid(), "started": processes.started(os.getpid())}
    (tmp_path / ".thinner" / "prefect-server.json").write_text(json.dumps(us))
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT") and k != "THINNER_OWN_SERVER"}
    program = "import flows, os; print(os.environ['PREFECT_API_URL'], os.environ['PREFECT_API_AUTH_STRING'])"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, text=True, capture_output=True, check=False,
        env=clean | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{PROJECT}"},
    )  # fmt: skip
    secret = (tmp_path / ".thinner" / "prefect-secret").read_text()
    assert done.stdout.split() == ["http://127.0.0.1:4299/api", secret], done.stderr


def test_where_no_proxy_is_wanted_at_all_that_stays(tmp_path: Path) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        program = "import flows, urllib.request; print(urllib.request.proxy_bypass('example.org'))"
        clean = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT") and k.upper() != "NO_PROXY"}
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=PROJECT, text=True, capture_output=True, check=True,
            env=clean | {"PREFECT_HOME": str(tmp_path), "https_proxy": "http://proxy.example:3128", name: "*"},
        )  # fmt: skip
        assert done.stdout.strip() in ("True", "1")


def test_a_proxy_is_not_asked_for_this_machine(tmp_path: Path) -> None:
    hosts = str(variables(PREFECT_HOME=str(tmp_path), NO_PROXY="intranet.example,localhost")["NO_PROXY"]).split(",")
    assert hosts == ["intranet.example", "localhost", "127.0.0.1", "::1"]
