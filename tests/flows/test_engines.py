"""Engines: what is refused before anything runs, what travels to a worker, and a study on two workers that share no
folder: a cluster of Dask, and one of Ray, real stages, real DVC."""

import importlib.util
import logging
import os
import pickle
import signal
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from flows import cli, engines, worker
from tasks import lineage
from tasks.git import git
from tests.clusters import Cluster, started
from tests.flows.test_sweep import HISTORY, ONE_SEED
from tests.servers import end_group
from tests.toy import PROGRAM, PROJECT, Toy, eventually
from thinner.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")  # inside DVC's trie
# as a training: a state after each step, and on from the last one
STEPS = r"""        state = stage.resume / "step"
        begun = int(state.read_text()) if state.exists() else 0
        with Path("began.txt").open("a") as began:
            began.write(f"{stage.name}:{begun}\n")
        for step in range(begun, steps):
            state.with_name(".partial-step").write_text(str(step))
            state.with_name(".partial-step").replace(state)
"""
FAILURE = """
    if stage.name == "distill" and stage.params.distill.temperature == 13:
        raise UserError("asked to fail")
"""
STUDY = {
    **ONE_SEED,
    "title": "Where?",
    "variants": {
        "scratch": {"target": "scratch"},
        "warm": {"set": {"distill.temperature": 4.0}},
        "unlucky": {"set": {"distill.temperature": 13.0}},
        "late": {"set": {"distill.temperature": 5.0}},
    },
}
CLOSED = "tcp://127.0.0.1:9"  # the port of "discard", which nobody serves


@pytest.mark.parametrize(
    ("name", "address", "message"),
    [
        ("dusk", CLOSED, "--engine: unknown 'dusk'. Did you mean 'dask'"),
        ("slurm", CLOSED, "--engine: unknown 'slurm'. Choose one of: local, dask, ray"),
        (None, CLOSED, "--address: 'tcp://127.0.0.1:9' is a cluster's. Say which engine that is: --engine dask, or ray"),
        ("local", CLOSED, "Say which engine that is"),
        ("dask", None, "--engine dask: of which cluster. Give --address tcp://HOST:8786; to start one: dask scheduler"),
        ("ray", None, "--engine ray: of which cluster. Give --address ray://HOST:10001; to start one: ray start --head"),
    ],
)  # fmt: skip
def test_a_choice_that_is_none_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str | None, address: str | None, message: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(UserError, match=message):
        engines.choose(name, address)


def test_an_engine_of_seeds_needs_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    done = CliRunner().invoke(cli.app, ["claims", "--engine", "dask", "--address", CLOSED])
    assert done.exit_code == 1 and "--engine: where --seeds train. Give --seeds too, for example 0,1,2" in done.output


def test_here_needs_nothing() -> None:
    assert engines.choose(None, None) is engines.choose("local", None) is None


@pytest.mark.parametrize(("name", "module"), [("dask", "prefect_dask"), ("ray", "prefect_ray")])
def test_an_engine_that_is_not_installed_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, name: str, module: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked: None)
    with pytest.raises(UserError, match=rf"{module} is not installed. Install it: pip install -e '.\[{name}\]'"):
        engines.choose(name, CLOSED)


def test_every_engine_is_an_extra() -> None:
    extras = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name in engines.ENGINES[1:]:
        assert any(line.startswith(f"prefect-{name}>=") for line in extras[name])


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """With a folder that it names as DVC's remote, in the commit."""
    return project(tmp_path_factory.mktemp("engines"))


def project(base: Path) -> Toy:
    toy = Toy(base / "toy")
    (toy.root / "nets").mkdir()
    (toy.root / "nets/README.md").write_text("networks of one's own")
    program = PROGRAM.replace("        for step in range(steps):\n", STEPS).replace("\nif __name__", FAILURE + HISTORY)
    (toy.root / "program.py").write_text(program)
    graph = toy.graph()
    for name in ("finetune", "scratch", "distill"):
        graph["stages"][name]["plots"] = [{f"reports/{name}/history.csv": {"cache": False}}]
    graph["stages"]["prepare"]["params"] = ["run.seed"]
    toy.write_graph(graph)
    (toy.root / "studies").mkdir()
    (toy.root / "studies" / "small.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False))
    toy.commit()
    toy.run("dvc", "remote", "add", "--default", "results", str(base / "store"))
    toy.commit()
    return toy


def check(toy: Toy, name: str, address: str) -> None:
    engines.check(engines.Choice(name, address), toy.root)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("name", "address", "message"),
    [
        ("dask", CLOSED, f"--address: no Dask cluster answers at {CLOSED} .Connection refused.. Start one: dask sched"),
        ("dask", "127.0.0.1:9", "no Dask cluster answers at 127.0.0.1:9"),
        ("ray", "ray://127.0.0.1:9", "--address: no Ray cluster answers at ray://127.0.0.1:9 .*Start one: ray start"),
        ("dask", "ray://127.0.0.1:9", "'ray://127.0.0.1:9' is no address of Dask. For example: tcp://HOST:8786"),
        ("ray", "127.0.0.1", "'127.0.0.1' is no address of Ray. For example: ray://HOST:10001"),
        ("dask", "tcp://127.0.0.1:port", "is no address of Dask"),
        ("dask", "tcp://10.0.0.7:8786", "workers at 10.0.0.7 tell Prefect .* Set PREFECT_API_URL to one that they reach"),
    ],
)  # fmt: skip
def test_a_cluster_that_cannot_be_used_is_refused(original: Toy, name: str, address: str, message: str) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings(restore_defaults={PREFECT_API_URL}), pytest.raises(UserError, match=message):
        check(original, name, address)


@pytest.mark.integration
def test_without_a_remote_that_workers_know_nothing_runs(tmp_path: Path) -> None:
    toy = Toy(tmp_path / "toy")
    with pytest.raises(UserError, match="none is set up: thinner remote init s3://BUCKET/FOLDER, then git commit"):
        check(toy, "dask", CLOSED)
    toy.run("dvc", "remote", "add", "--local", "--default", "results", str(tmp_path / "store"))
    with pytest.raises(UserError, match=r"the last commit does not name .*/store, so no worker knows it: thinner remo"):
        check(toy, "dask", CLOSED)


def test_a_commit_travels_whole_and_alone(original: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(worker.FOLDER, str(tmp_path / "worker"))
    (original.root / "notes.txt").write_text("nobody's")
    parcel = pickle.loads(pickle.dumps(worker.Parcel.of(original.root)))  # noqa: S301 - our own
    assert len(pickle.dumps(parcel)) < 100_000 and "bundle" not in repr(parcel)
    with worker.clone_of(parcel) as first, worker.clone_of(parcel) as second:  # two at once do not meet
        assert first != second
        for clone in (first, second):
            assert git(clone, "rev-parse", "HEAD") == git(original.root, "rev-parse", "HEAD")
            assert git(clone, "rev-list", "--count", "HEAD") == "3"
            assert git(clone, "status", "--porcelain") == git(clone, "remote") == ""
            assert not (clone / "notes.txt").exists()
            assert lineage.cache_folder(clone) == tmp_path / "worker" / parcel.project[:12] / "cache"
    with worker.clone_of(parcel) as again:
        assert again == first
    (first / ".git" / "index.lock").touch()  # of a git that was killed
    (original.root / "nets" / "README.md").write_text("changed")
    original.commit()
    with worker.clone_of(worker.Parcel.of(original.root)) as later:
        assert later == first and (later / "nets" / "README.md").read_text() == "changed"


def test_what_neither_git_nor_dvc_has_is_named(original: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(worker.FOLDER, str(tmp_path))
    monkeypatch.setattr(worker, "get_run_logger", lambda: logging.getLogger("test"))
    (original.root / ".git" / "info" / "exclude").write_text("raw/two.txt\n")
    (original.root / "raw" / "two.txt").write_text("mine")
    key = lineage.key(original.root, "distill")
    (original.root / "raw" / "two.txt").unlink()
    params = (original.root / "params.yaml").read_text()
    done = worker.run_stage.fn(worker.Parcel.of(original.root), worker.Order("distill", "kd seed 0", params, key))
    assert done.failure is not None and done.ran == ()
    assert done.failure.startswith("distill: what it rests on is not the same on the worker. Only what git or DVC has")


def test_of_the_environment_nothing_travels_but_where_mlflow_is(monkeypatch: pytest.MonkeyPatch) -> None:
    here = {"THINNER_PARENT_RUN_ID": "7", "THINNER_UNSENT": "no", "THINNER_HOME": "/here", "SECRET": "s"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////here/mlflow.db")
    assert engines.for_workers(here) == {}  # a file of this machine
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert engines.for_workers(here) == {
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:5000",
        "THINNER_PARENT_RUN_ID": "7",
        "THINNER_UNSENT": "no",
    }


@pytest.mark.parametrize("times", [2, 3])
def test_a_head_that_has_just_begun_is_asked_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, times: int) -> None:
    ray, task_runners = pytest.importorskip("ray"), pytest.importorskip("prefect_ray.task_runners")
    refusals = ['Traceback (most recent call last):\n  File "proxier.py"\nRuntimeError: no agent as yet\n'] * times

    asked: list[object] = []

    class Runner:
        def __init__(self, **how: object) -> None: ...

        def __enter__(self) -> "Runner":
            assert self not in asked  # a task runner begins once
            asked.append(self)
            if refusals:
                raise ConnectionAbortedError(refusals.pop())
            return self

        def __exit__(self, *error: object) -> None: ...

    monkeypatch.setattr(task_runners, "RayTaskRunner", Runner)
    monkeypatch.setattr(
        ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 1}}, {"Alive": True, "Resources": {}}]
    )
    monkeypatch.setattr(engines, "_HEAD_SECONDS", (0.0, 0.0))
    choice = engines.Choice("ray", "ray://127.0.0.1:9")
    if times == 2:
        with engines._ray(choice) as (_, workers):
            assert workers == 1
        return
    why = "^--address: ray://127.0.0.1:9 cannot be spoken to: ConnectionAbortedError: RuntimeError: no agent as yet$"
    with pytest.raises(UserError, match=why), engines.connected(choice, tmp_path):
        pass


# ---------------------------------------------------------------------------------------------- two workers


@pytest.fixture(params=engines.ENGINES[1:])
def cluster(request: pytest.FixtureRequest, prefect_url: str, tmp_path: Path) -> Iterator[Cluster]:
    toy = project(tmp_path / "project")
    toy.env["PREFECT_API_URL"] = prefect_url
    with started(request.param, toy, tmp_path) as made:
        yield made


@pytest.mark.long
def test_a_study_on_two_workers_shares_results_and_outlives_a_worker_and_a_failure_and_ctrl_c_ends_it(
    cluster: Cluster, request: pytest.FixtureRequest
) -> None:
    toy, csv = cluster.toy, cluster.toy.root / "docs/studies/small.csv"
    for name in ("one", "two"):
        cluster.start_worker(name, TOY_SLOW="distill:20")
    words = ["-m", "flows.sweep", "studies/small.yaml", "--engine", cluster.engine, "--address", cluster.address]
    toy.run("git", "config", "thinner.states", "true")
    process = toy.start(sys.executable, *words)

    def end() -> None:  # where something fails midway: what is left open would fail a later test
        if process.poll() is None:
            end_group(process)
        assert process.stdout is not None
        process.stdout.close()

    request.addfinalizer(end)
    seen: list[str] = []  # of what is sent again and again, as it was found whole
    eventually(
        lambda: process.poll() is not None or seen.extend(n for n, step in cluster.states().items() if step > 0) or seen
    )
    assert process.poll() is None, process.communicate()[0]
    state = seen[0]
    where = next(cluster.folder.glob(f"*/clones/*/*/.thinner/resume/{state}"))
    lost = where.relative_to(cluster.folder).parts[0]
    for stage in cluster.stages():  # by the environment of its worker
        assert stage.environ()["PATH"].startswith(str(Path(stage.info["cwd"]).parents[2] / "env" / "bin"))
        assert cluster.fork_for(stage) is not None
    cluster.kill(lost)
    eventually(lambda: not any(f"/{lost}/" in str(stage.info["cwd"]) for stage in cluster.stages()))

    # what was cut off goes on at the other one, from its state; unlucky fails; then late
    eventually(lambda: [stage for _, stage in cluster.ran()].count("distill") == 4 and cluster.stages())
    os.killpg(process.pid, signal.SIGINT)
    eventually(lambda: not cluster.stages())
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 130, said
    assert [name for name, one in cluster.workers.items() if one.poll() is not None] == [lost]  # the other stays
    assert "unlucky seed 0: distill: asked to fail" in said, said
    assert pd.read_csv(csv).set_index("variant")["value"].round(4).to_dict() == {"scratch": 0.5, "warm": 0.54}
    begun = [int(step) for step in cluster.read("began.txt", "distill:")]
    assert len(begun) == 4 and sum(step > 0 for step in begun) == 1, begun
    # the teacher once, and pulled by the other
    assert sorted(stage for _, stage in cluster.ran()) == ["distill"] * 4 + ["finetune", "prepare", "scratch"]
    assert {name for name, _ in cluster.ran()} == {"one", "two"}
    assert len(list(cluster.folder.glob("*/clones/*/cache"))) == 2
    # what was made elsewhere is here as if it had been made here, and nothing ran here
    assert not list((toy.root / ".thinner").rglob("ran.txt"))
