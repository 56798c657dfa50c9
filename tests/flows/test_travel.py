"""Results that travel, with everything real: two clones with caches of their own, and between them a folder or a server
that speaks S3 and asks for a signature."""

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.empty import put_stores
from tests.servers import free_port
from tests.stores import Store, sftp, signed_gs, signed_s3
from tests.toy import Toy

STAGES = ["prepare", "finetune", "scratch", "distill"]


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with signed_s3(tmp_path_factory.mktemp("s3")) as store:
        yield store


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A server where what speaks S3 is installed, else a folder (tests/tasks/test_remote.py has one in any case)."""
    there = all(importlib.util.find_spec(name) for name in ("moto", "dvc_s3"))
    return request.getfixturevalue("s3") if there else Store([str(tmp_path / "store")])


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """The toy with numbers that git keeps, as the stages of this project have them; all of it has run."""
    toy = Toy(tmp_path_factory.mktemp("travel") / "toy")
    program = (toy.root / "program.py").read_text()
    kept = '    if stage.name == "distill":\n        Path("numbers.json").write_text(str(stage.params.distill.temperature))\n'
    (toy.root / "program.py").write_text(program.replace('    with Path("ran.txt")', kept + '    with Path("ran.txt")'))
    graph = toy.graph()
    graph["stages"]["distill"]["metrics"] = [{"numbers.json": {"cache": False}}]
    toy.write_graph(graph)
    toy.run("dvc", "repro")
    assert sorted(toy.ran()) == sorted(STAGES)
    toy.commit()
    return toy


@pytest.fixture
def toy(original: Toy, tmp_path: Path) -> Toy:
    return _copy(original, Path(shutil.copytree(original.root, tmp_path / "here", symlinks=True)))


def _copy(toy: Toy, root: Path) -> Toy:
    copy = object.__new__(Toy)
    copy.root = root
    copy.env = toy.env | {
        "PREFECT_HOME": str(root / ".prefect"),
        "DVC_SITE_CACHE_DIR": str(root.parent / f"site-{root.name}"),
        "HOME": str(root.parent / f"home-{root.name}"),  # no ~/.aws of the person's, no git config
    }
    if not (root / "mlflow.db").exists():
        put_stores(root)
    return copy


def _clone(toy: Toy, to: Path) -> Toy:
    subprocess.run(["git", "clone", "--quiet", str(toy.root), str(to)], check=True)
    made = _copy(toy, to)
    made.run("git", "config", "user.email", "clone@example.org")
    made.run("git", "config", "user.name", "Clone")
    return made


def _thinner(toy: Toy, *words: str, check: bool = True, **env: str) -> str:
    done = toy.run(sys.executable, "-m", "flows.cli", *words, check=check, **env)
    assert (done.returncode == 0) == check, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return " ".join((done.stdout + done.stderr).split())


def _states(toy: Toy, **env: str) -> dict[str, str]:
    """How each stage ended in a run."""
    toy.pipeline("--json", "end.json", **env)
    return {stage["name"]: stage["state"] for stage in json.loads((toy.root / "end.json").read_text())["stages"]}


@pytest.mark.integration
def test_elsewhere_everything_is_restored_and_what_a_colleague_made_is_restored_here(
    toy: Toy, store: Store, tmp_path: Path, prefect_url: str
) -> None:
    toy.env |= {**store.env, "PREFECT_API_URL": prefect_url}
    _thinner(toy, "remote", "init", *store.words, "--each-run")
    assert "has 4 results of 4 stages; 13 of their files were new there" in _thinner(toy, "push")
    toy.commit()

    there = _clone(toy, tmp_path / "there")
    there.run("git", "config", "thinner.pull", "true")
    there.run("git", "config", "thinner.push", "true")
    assert _states(there) == dict.fromkeys(STAGES, "restored")
    assert there.ran() == [] and "up to date" in there.run("dvc", "status").stdout

    there.change_param("temperature: ", "temperature: 1")
    assert _states(there) == dict.fromkeys(STAGES[:3], "up to date") | {"distill": "ran"}
    assert there.ran() == ["distill"]
    toy.change_param("temperature: ", "temperature: 1")
    assert _states(toy) == dict.fromkeys(STAGES[:3], "up to date") | {"distill": "restored"}
    assert toy.ran() == []
    for name in ("data/distill/model.json", "numbers.json"):
        assert (toy.root / name).read_bytes() == (there.root / name).read_bytes()

    for secret in store.env.values():  # nowhere: not in a file, a log, a database or git
        for root in (toy.root, there.root):
            for path in root.rglob("*"):
                assert not path.is_file() or secret.encode() not in path.read_bytes(), path


@pytest.mark.integration
def test_a_store_that_refuses_or_does_not_answer_is_one_line_and_a_run_goes_on_without_it(
    toy: Toy, s3: Store, prefect_url: str
) -> None:
    toy.env |= s3.env
    wrong = {"AWS_SECRET_ACCESS_KEY": "wrong" * 8}
    init = ("remote", "init", *s3.words)
    nobody = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    assert _thinner(toy, *init, check=False, **nobody).startswith(
        "s3://team/thinner: no credentials were found. They come by AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the"
    )
    assert _thinner(toy, *init, check=False, **wrong).startswith(
        "s3://team/thinner: refused (The request signature we calculated does not match the signature you provided."
    )
    assert _thinner(toy, *init, check=False, AWS_ACCESS_KEY_ID="nobodysname").startswith(
        "s3://team/thinner: refused (The AWS Access Key Id you provided does not exist in our records"
    )
    assert (
        _thinner(toy, "remote", "init", "s3://nosuch/x", *s3.words[1:], check=False)
        == "s3://nosuch/x: there is no such bucket. Make it first"
    )
    assert _thinner(toy, *init, "--profile", "joe", check=False).startswith(
        "s3://team/thinner: The config profile (joe) could not be found. Its name stands in ~/.aws/credentials"
    )
    assert "remote" not in (toy.root / ".dvc" / "config").read_text()
    _thinner(toy, *init, "--each-run")
    assert _thinner(toy, "push", check=False, **wrong).startswith("s3://team/thinner: refused (")

    closed = f"http://127.0.0.1:{free_port()}"  # nobody listens there
    toy.run("dvc", "remote", "modify", "results", "endpointurl", closed)
    assert _thinner(toy, "push", check=False).startswith("s3://team/thinner: does not answer (Could not connect to the")
    toy.change_param("temperature: ", "temperature: 1")
    done = toy.pipeline(PREFECT_API_URL=prefect_url)
    assert toy.ran() == ["distill"]
    said = " ".join(done.stdout.split())
    assert "this run goes on without the remote: s3://team/thinner: does not answer (Could not connect" in said
    assert "the results were not sent: s3://team/thinner: does not answer" in said


@pytest.mark.integration
def test_credentials_beside_the_file_that_git_keeps_are_used(toy: Toy, s3: Store) -> None:
    assert "was not tried, and .dvc/config names it" in _thinner(toy, "remote", "init", *s3.words, "--untried")
    assert _thinner(toy, "push", check=False).startswith("s3://team/thinner: no credentials were found")
    for option, value in zip(("access_key_id", "secret_access_key"), s3.env.values(), strict=True):
        toy.run("dvc", "remote", "modify", "--local", "results", option, value)
    assert "results of 4 stages" in _thinner(toy, "push")
    toy.commit()
    committed = toy.run("git", "show", "--format=", "HEAD").stdout
    assert "s3://team/thinner" in committed and not any(value in committed for value in s3.env.values())


@pytest.mark.long
def test_by_ssh_results_travel_with_a_key_that_each_clone_has(toy: Toy, tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    with sftp(tmp_path / "server") as server:
        url, key = server.words
        refused = _thinner(toy, "remote", "init", url, check=False)
        assert refused.startswith(f"{url}: refused (Permission denied for user joe on host 127.0.0.1)"), refused
        _thinner(toy, "remote", "init", url, "--untried")
        toy.run("dvc", "remote", "modify", "--local", "results", "keyfile", key)
        assert f"{url} answers" in _thinner(toy, "remote", "init", url)
        _thinner(toy, "push")
        toy.commit()
        there = _clone(toy, tmp_path / "there")
        there.run("dvc", "remote", "modify", "--local", "results", "keyfile", key)
        assert _thinner(there, "pull") == "restored: prepare, finetune, scratch, distill"
        assert there.ran() == []
        _thinner(there, "remote", "init", str(tmp_path / "store"), "--replace")  # no folder takes a keyfile
        assert "results of 4 stages" in _thinner(there, "push")


@pytest.mark.long
def test_by_googles_protocol_results_travel_with_a_key_file_that_the_environment_names(
    toy: Toy, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    with signed_gs(keys) as server:
        url, token = server.words
        toy.env |= server.env
        init = ("remote", "init", url)
        assert _thinner(toy, *init, check=False).startswith(
            f"{url}: no credentials were found. They come by GOOGLE_APPLICATION_CREDENTIALS in the environment"
        )
        stranger = {"GOOGLE_APPLICATION_CREDENTIALS": str(keys / "stranger.json")}
        refused = _thinner(toy, *init, check=False, **stranger)
        assert refused.startswith(f"{url}: refused (") and "stranger@thinner does not have storage.objects" in refused
        toy.env["GOOGLE_APPLICATION_CREDENTIALS"] = str(keys / "team.json")
        assert _thinner(toy, "remote", "init", "gs://nosuch/x", check=False) == (
            "gs://nosuch/x: there is no such bucket. Make it first"
        )
        assert "remote" not in (toy.root / ".dvc" / "config").read_text()
        assert f"{url} answers" in _thinner(toy, *init)
        assert "has 4 results of 4 stages; 13 of their files were new there" in _thinner(toy, "push")
        assert "; 0 of their files were new there" in _thinner(toy, "push")
        toy.commit()
        there = _clone(toy, tmp_path / "there")
        assert _thinner(there, "pull") == "restored: prepare, finetune, scratch, distill"
        assert there.ran() == [] and "up to date" in there.run("dvc", "status").stdout
    private = json.loads((keys / "team.json").read_text())["private_key"].splitlines()[1]
    for secret in (token, private):  # nowhere: not in a file, a log, a database or git
        for root in (toy.root, there.root):
            for path in root.rglob("*"):
                assert not path.is_file() or secret.encode() not in path.read_bytes(), path
