"""flows/pipeline.py: the joining of Prefect, DVC and MLflow, on a small repository with real stages
(tests/toy.py)."""

import contextlib
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect.settings import Settings
from prefect.states import Completed, Failed, Pending

from flows import own_server, pipeline, serve, server, watch
from flows.worktrees import Worktrees
from tasks.lineage import Node
from tests.servers import free_port
from tests.toy import PROJECT, Toy, eventually
from thinner.errors import UserError

STAGES = ["prepare", "finetune", "scratch", "distill"]


def _node(name: str, *upstream: str) -> Node:
    return Node(name, upstream, "true", (), {})


NODES = [_node("a"), _node("b", "a"), _node("c", "a"), _node("d", "b", "c")]


def test_select_takes_what_a_stage_needs_and_keeps_the_order() -> None:
    assert [node.name for node in pipeline.select(NODES, None)] == ["a", "b", "c", "d"]
    assert [node.name for node in pipeline.select(NODES, ["c"])] == ["a", "c"]


def test_select_names_the_choices() -> None:
    with pytest.raises(UserError, match=r"unknown stage 'e'\. Choose one of: a, b, c, d"):
        pipeline.select(NODES, ["e"])


@pytest.mark.parametrize(
    ("line", "talk"),
    [
        ("ERROR: failed to reproduce 'a': failed to run: python -m tasks.a, exited with 1", True),
        ("ERROR: failed to reproduce 'a'", True),
        ("ERROR: failed to reproduce 'a': missing data 'source': nets", False),
        ("ERROR: failed to reproduce 'a': output 'data/a' does not exist", False),
        ("Running stage 'a':", True),
        ("a: 90 % on validation", False),
    ],
)
def test_what_dvc_itself_failed_at_is_no_talk(line: str, talk: bool) -> None:
    assert pipeline.is_talk(line) is talk


def test_runs_in_a_database_that_others_use_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", "postgresql+asyncpg://u@h/prefect")
    monkeypatch.setenv(watch.MARK, pipeline.processes.mark())
    monkeypatch.setattr(pipeline, "get_client", lambda **_: pytest.fail("others' runs are asked for"))
    pipeline._end_leftovers()
    serve._free_slots({})  # nor does a program begin, which would have no address


@pytest.mark.parametrize(
    "ask",
    [lambda root: pipeline.plan(root, []), lambda root: Worktrees(root, [])],
    ids=["the flow, also as deployed", "studies and seeds"],
)
def test_what_dvc_would_hang_at_is_refused_before_it_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ask: Callable[[Path], object]
) -> None:
    shutil.copy(PROJECT / "params.yaml", tmp_path)
    (tmp_path / "data/raw").mkdir(parents=True)
    os.mkfifo(tmp_path / "data/raw/x.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^data.root: '.*data/raw/x.png' is a FIFO, no file. Remove it$"):
        ask(tmp_path)


def test_verdict_of_nothing_to_do() -> None:
    state = pipeline._verdict({"a": Completed(name="Cached"), "b": Completed(name="Cached")})
    assert (state.is_completed(), state.name) == (True, "Cached")


def test_verdict_names_what_failed_and_what_did_not_run() -> None:
    state = pipeline._verdict(
        {
            "a": Completed(),
            "b": Failed(message="b failed after 3 s: no images"),
            "d": Pending(name="NotReady"),
        }
    )
    assert state.is_failed()
    assert state.message == "b failed after 3 s: no images. Not run: d"


@pytest.mark.parametrize(
    ("message", "worth"), [("x Busy: 'data/a' is busy, it is being blocked", True), ("b failed", False)]
)
def test_only_a_busy_workspace_is_worth_a_retry(message: str, worth: bool) -> None:
    assert pipeline._is_busy(None, None, Failed(message=message)) is worth


class _Log:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def info(self, message: str, *args: Any, **_: Any) -> None:
        self.lines.append(message % args if args else message)


def test_dvcs_own_talk_is_left_out_of_the_log() -> None:
    log, said = _Log(), []
    for line in (
        "Running stage 'distill':",
        "> python -m tasks.distill",
        "epoch 1",
        "",
        "Updating lock file 'dvc.lock'",
        '::progress {"stage": "distill", "description": "x", "done": 1, "total": 1, "numbers": {}, "last": true}',
        "\tgit add dvc.lock",
        "Use `dvc push` to send your updates to remote storage.",
    ):
        pipeline._pass_on(line, said, log)
    assert log.lines == ["epoch 1", "x  100%"]


def test_kill_group_ends_children_and_grandchildren(tmp_path: Path) -> None:
    process = subprocess.Popen(
        ["sh", "-c", "sh -c 'sleep 900 & echo $! > pid; wait'; true"],
        cwd=tmp_path,
        text=True,
        start_new_session=True,
    )
    eventually(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip())
    pipeline.kill_group(process)
    grandchild = int((tmp_path / "pid").read_text())
    eventually(lambda: not _alive(grandchild))
    assert process.wait(600) != 0


def test_kill_group_does_not_wait_for_the_deaf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "GRACE_SECONDS", 0.3)
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import signal, time; signal.signal(15, signal.SIG_IGN)\nprint('deaf', flush=True); time.sleep(900)",
        ],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    with process.stdout as out:
        assert out.readline() == "deaf\n"
        pipeline.kill_group(process)
        assert process.wait(600) == -signal.SIGKILL


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z" if Path("/proc").exists() else True
    except (ProcessLookupError, FileNotFoundError):
        return False


# --- with everything real ---


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """The toy after its first pipeline run."""
    toy = Toy(tmp_path_factory.mktemp("pipeline") / "toy")
    done = toy.pipeline()
    assert sorted(toy.ran()) == sorted(STAGES), done.stdout
    return toy


@pytest.fixture
def toy(made: Toy, tmp_path: Path) -> Toy:
    copy = object.__new__(Toy)
    copy.root = Path(shutil.copytree(made.root, tmp_path / "toy", symlinks=True))
    copy.env = made.env | {
        "PREFECT_HOME": str(copy.root / ".prefect"),
        "DVC_SITE_CACHE_DIR": str(tmp_path / "site-cache"),
    }
    return copy


def _runs(toy: Toy) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{toy.root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("thinner")
    return list(client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"]))


@pytest.mark.integration
def test_dvc_agrees_that_everything_is_up_to_date(toy: Toy) -> None:
    assert "up to date" in toy.run("dvc", "status").stdout
    toy.run("dvc", "repro")
    assert toy.ran() == []


@pytest.mark.integration
def test_second_run_does_nothing_records_nothing_and_imports_neither_torch_nor_mlflow(toy: Toy) -> None:
    before = len(_runs(toy))
    database = toy.root / ".prefect" / "prefect.db"
    told = database.stat().st_mtime_ns
    script = (
        "import sys\nfrom flows import pipeline\ncode = pipeline.run()\n"
        "print('HEAVY', sorted({'torch', 'mlflow', 'torchvision', 'timm'} & set(sys.modules)))\n"
        "sys.exit(code)"
    )
    done = toy.run(sys.executable, "-c", script)
    assert toy.ran() == []
    assert "HEAVY []" in done.stdout
    assert "Every stage is up to date" in done.stdout
    assert len(_runs(toy)) == before
    assert database.stat().st_mtime_ns == told  # no server was started to be told of nothing


@pytest.mark.integration
def test_flow_finds_up_to_date_what_dvc_repro_ran(toy: Toy) -> None:
    toy.change_param("temperature: ", "temperature: 1")
    toy.run("dvc", "repro")
    assert toy.ran() == ["distill"]
    assert "Every stage is up to date" in toy.pipeline().stdout
    assert toy.ran() == []
    newest = _runs(toy)[0]  # what DVC ran by itself is recorded, without a parent
    assert newest.data.tags["stage"] == "distill"
    assert "mlflow.parentRunId" not in newest.data.tags


@pytest.mark.integration
@pytest.mark.usefixtures("shared")
def test_a_changed_parameter_runs_what_follows_and_changing_it_back_restores(toy: Toy) -> None:
    before = (toy.root / "data/distill/model.json").read_text()
    toy.change_param("temperature: ", "temperature: 1")
    toy.pipeline()
    assert toy.ran() == ["distill"]
    assert (toy.root / "data/distill/model.json").read_text() != before
    toy.change_param("temperature: 1", "temperature: ")
    done = toy.pipeline()
    assert toy.ran() == []
    assert "restored from DVC's cache" in done.stdout
    assert (toy.root / "data/distill/model.json").read_text() == before


@pytest.mark.integration
@pytest.mark.usefixtures("shared")
def test_record_links_stages_to_the_runs_that_made_them(toy: Toy) -> None:
    toy.change_param("temperature: ", "temperature: 1")
    toy.pipeline()
    runs = _runs(toy)
    parent = next(run for run in runs if run.data.tags["stage"] == "pipeline")
    by_id = {run.info.run_id: run for run in runs}
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert [run.info.run_name for run in children] == ["distill"]
    linked = {name: by_id[parent.data.tags[f"stage.{name}"]] for name in STAGES}
    assert {name: run.data.tags["stage"] for name, run in linked.items()} == {name: name for name in STAGES}
    assert linked["distill"] is by_id[children[0].info.run_id]
    assert linked["distill"].data.tags["upstream.finetune"] == linked["finetune"].info.run_id
    assert all(run.info.status == "FINISHED" for run in runs)
    assert linked["distill"].data.metrics["loss"] == pytest.approx(0.2)
    assert "| finetune | Cached |" in parent.data.tags["mlflow.note.content"]


@pytest.mark.integration
@pytest.mark.usefixtures("shared")
def test_a_failure_is_told_once_and_what_follows_does_not_run(toy: Toy) -> None:
    (toy.root / "raw/one.txt").write_text("two")
    done = toy.pipeline(check=False, TOY_FAIL="finetune")
    assert done.returncode == 1
    assert "finetune: asked to fail. Not run: distill" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert sorted(toy.ran()) == ["finetune", "prepare", "scratch"]  # the other branch goes on
    statuses = {run.info.run_name.split()[0]: run.info.status for run in reversed(_runs(toy))}
    assert statuses["finetune"] == statuses["pipeline"] == "FAILED"
    toy.pipeline()
    assert toy.ran() == ["finetune", "distill"]


@pytest.mark.integration
@pytest.mark.parametrize(
    ("number", "deaf", "forks"),
    [(signal.SIGINT, False, "off"), (signal.SIGTERM, True, "own")],
)
def test_cancelling_the_flow_ends_the_stage(
    toy: Toy, prefect_url: str, number: signal.Signals, deaf: bool, forks: str
) -> None:
    toy.forks = forks
    if deaf:  # else with a server of its own
        toy.env["PREFECT_API_URL"] = prefect_url
    process = _start_slow(toy, TOY_DEAF="distill" if deaf else "")
    os.kill(process.pid, number)
    output, _ = process.communicate(timeout=600)
    assert process.returncode != 0
    assert toy.stage_processes() == []
    assert not (toy.root / "data/distill").exists()
    assert (toy.root / "data/.partial-distill").exists() == deaf, output  # the next run removes it
    toy.ran()
    toy.pipeline()
    assert toy.ran() == ["distill"]
    # a fork may still be leaving as the flow ends; the next run marks it then
    assert [run.info.status for run in _runs(toy)[:4]] == ["FINISHED", "FINISHED", "KILLED", "KILLED"]


@pytest.mark.integration
@pytest.mark.parametrize(
    "victim",
    [
        "flow",
        pytest.param("dvc", marks=pytest.mark.long),
        pytest.param("stage", marks=pytest.mark.long),
        "stand-in of a fork",
    ],
)
def test_after_kill_9_of_anything_the_next_run_just_works(toy: Toy, prefect_url: str, victim: str) -> None:
    toy.forks = "own" if "fork" in victim else "off"
    if victim != "flow":  # whose own server has to end with it
        toy.env["PREFECT_API_URL"] = prefect_url
    process = _start_slow(toy)
    stage, *fork = toy.stage_processes()
    assert len(fork) == ("fork" in victim)
    dvc = next(parent.pid for parent in stage.parents() if "dvc" in parent.cmdline())
    os.kill({"flow": process.pid, "dvc": dvc}.get(victim, stage.pid), signal.SIGKILL)
    eventually(lambda: toy.stage_processes() == [])
    process.communicate(timeout=600)
    toy.ran()
    done = toy.pipeline()
    assert toy.ran() == ["distill"], done.stdout
    assert "up to date" in toy.run("dvc", "status").stdout
    assert all(run.info.status != "RUNNING" for run in _runs(toy))


def _servers(toy: Toy) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if any(watch.PROGRAM in word for word in process.cmdline()) and process.environ().get(
                "PREFECT_HOME"
            ) == str(toy.root / ".prefect"):
                found.append(process)
    return found


@pytest.mark.integration
@pytest.mark.parametrize("wait", [0.0, 1.0])
def test_a_flow_that_is_killed_while_its_server_starts_leaves_no_server(toy: Toy, wait: float) -> None:
    toy.change_param("temperature: ", "temperature: 1")
    process = toy.start(sys.executable, "-m", "flows.pipeline")
    eventually(lambda: _servers(toy))
    time.sleep(wait)
    process.kill()
    process.communicate(timeout=600)  # whoever holds the other end of the pipe has gone
    eventually(lambda: not _servers(toy))


@pytest.mark.integration
@pytest.mark.usefixtures("shared")
def test_results_that_dvc_links_instead_of_copying_are_replaced_and_brought_back_as_well(toy: Toy) -> None:
    """As docs/gpu.md advises for large stores: one file on the disk, read-only, and two names."""
    toy.run("dvc", "config", "cache.type", "hardlink,symlink")
    toy.run("dvc", "checkout", "--relink")
    made = toy.root / "data/distill/model.json"
    before = made.read_text()
    assert made.stat().st_nlink == 2 and not made.stat().st_mode & 0o222
    toy.change_param("temperature: ", "temperature: 1")
    toy.ran()
    toy.pipeline()
    assert toy.ran() == ["distill"] and made.read_text() != before and made.stat().st_nlink == 2
    toy.change_param("temperature: 1", "temperature: ")
    toy.pipeline()
    assert toy.ran() == [] and made.read_text() == before
    assert "all as they were written" in toy.run(sys.executable, "-m", "flows.cli", "verify").stdout


@pytest.mark.integration
@pytest.mark.usefixtures("shared")
def test_a_result_that_is_damaged_everywhere_is_made_again_in_the_same_run(toy: Toy) -> None:
    """Bits flipped in the workspace and in DVC's cache, of which DVC sees nothing."""
    assert "up to date" in toy.run("dvc", "status").stdout  # DVC has seen all files as they lie here
    made = toy.root / "data/finetune/model.json"
    before = made.read_bytes()
    digest = hashlib.md5(before).hexdigest()
    for path in (made, toy.root / ".dvc/cache/files/md5" / digest[:2] / digest[2:]):
        state = path.stat()
        path.chmod(0o644)
        with path.open("r+b") as file:
            file.write(bytes([before[0] ^ 1]))
        path.chmod(state.st_mode)
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert "up to date" in toy.run("dvc", "status").stdout
    toy.change_param("temperature: ", "temperature: 1")
    done = toy.pipeline()
    assert "data/finetune/model.json is not what finetune wrote" in done.stdout
    assert toy.ran() == ["finetune", "distill"] and made.read_bytes() == before
    assert "up to date" in toy.run("dvc", "status").stdout


@pytest.mark.integration
@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize("share", [0.0, 0.4])
def test_a_lock_file_that_was_cut_off_is_mended_and_nothing_is_trained_again(toy: Toy, share: float) -> None:
    lock = toy.root / "dvc.lock"
    whole = lock.read_text()
    lock.write_text(whole[: int(share * len(whole))])
    done = toy.pipeline()
    assert (
        "dvc.lock was cut off (a full disk, or a kill while DVC wrote it). It is whole again, by .thinner"
        in done.stdout
    )
    assert "Every stage is up to date" in done.stdout and toy.ran() == []
    assert lock.read_text() == whole


@pytest.mark.integration
@pytest.mark.usefixtures("shared")
def test_a_second_run_at_the_same_time_is_told_so(toy: Toy) -> None:
    process = _start_slow(toy)
    try:
        done = toy.pipeline(check=False)
        assert done.returncode != 0
        assert "another run of the pipeline is at work" in done.stdout
    finally:
        os.kill(process.pid, signal.SIGTERM)
        process.communicate(timeout=600)


@pytest.mark.integration
@pytest.mark.usefixtures("shared")
def test_a_stage_that_takes_too_long_is_ended_and_dvc_records_nothing(toy: Toy) -> None:
    graph = toy.graph()
    graph["stages"]["distill"]["meta"] = {"timeout_minutes": 0.3}
    toy.write_graph(graph)
    toy.change_param("temperature: ", "temperature: 1")
    done = toy.pipeline(check=False, TOY_SLOW="distill:600")
    assert done.returncode == 1
    assert "distill took longer than 0.3 minutes" in done.stdout
    assert toy.stage_processes() == []
    assert "distill.temperature" in toy.run("dvc", "status").stdout


@pytest.mark.integration
@pytest.mark.usefixtures("shared")
def test_an_input_edited_while_the_stage_ran_is_not_recorded_as_read(toy: Toy) -> None:
    (toy.root / "raw/one.txt").write_text("two")
    done = toy.run("dvc", "repro", "prepare", check=False, TOY_EDIT="prepare")
    assert done.returncode != 0
    assert "changed while the stage ran: raw" in done.stderr
    assert "prepare" in toy.run("dvc", "status", "prepare").stdout


@pytest.mark.integration
def test_an_experiment_in_a_copy_is_recorded_in_the_repository_that_the_person_sees(toy: Toy) -> None:
    toy.commit()
    toy.run("dvc", "exp", "run", "--temp", "--name", "warm", "--set-param", "distill.temperature=7", "distill")
    assert "warm" in toy.run("dvc", "exp", "show", "--csv").stdout
    newest = _runs(toy)[0]
    assert newest.data.params["distill.temperature"] == "7"
    assert newest.data.tags["dvc.experiment"] == "warm"
    assert "up to date" in toy.run("dvc", "status").stdout  # the workspace was not touched


@pytest.mark.integration
@pytest.mark.usefixtures("shared")
def test_what_a_dead_mlflow_misses_is_sent_by_the_next_run_that_reaches_it(toy: Toy) -> None:
    before = len(_runs(toy))
    toy.change_param("temperature: ", "temperature: 1")
    done = toy.pipeline(MLFLOW_TRACKING_URI="http://somebody:secret@127.0.0.1:9")
    assert toy.ran() == ["distill"]
    assert "MLflow at http://***@127.0.0.1:9 cannot be used" in done.stdout and "thinner sync" in done.stdout
    assert "secret" not in done.stdout
    assert "was not closed" not in done.stdout  # it was, here
    assert len(_runs(toy)) == before
    toy.change_param("temperature: ", "temperature: 1")
    done = toy.pipeline()
    assert "2 runs that MLflow had missed are in it now" in done.stdout
    runs = _runs(toy)
    assert len(runs) == before + 4 and all(run.info.status == "FINISHED" for run in runs)
    late = [run for run in runs if run.data.tags["stage"] == "distill"][1]
    assert late.data.metrics["loss"] == pytest.approx(0.2) and late.data.params["distill.temperature"]
    parent = next(run for run in runs if run.info.run_id == late.data.tags["mlflow.parentRunId"])
    assert parent.data.tags["stage"] == "pipeline" and parent.data.tags["stage.distill"] == late.info.run_id


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1:9/api", "127.0.0.1:4200"])
def test_a_prefect_address_of_another_kind_is_not_opened(url: str) -> None:
    assert server.why_dead(url) == "its address has to begin with http:// or https://"


@pytest.mark.integration
@pytest.mark.parametrize("hangs", [False, True])
def test_a_prefect_server_that_is_dead_or_hangs_does_not_hold_up_a_run(toy: Toy, hangs: bool) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if hangs:  # takes what comes, and says nothing
            server.listen(8)
        url = f"http://somebody:secret@127.0.0.1:{server.getsockname()[1]}/api"
        if hangs:
            toy.change_param("temperature: ", "temperature: 1")
        done = toy.pipeline(PREFECT_API_URL=url)
    assert "does not answer" in done.stdout and "This run has a server of its own" in done.stdout
    assert "secret" not in done.stdout and "Traceback" not in done.stdout + done.stderr
    assert toy.ran() == (["distill"] if hangs else [])


def test_a_servers_blocks_are_left_out_by_settings_that_prefect_has(monkeypatch: pytest.MonkeyPatch) -> None:
    def blocks() -> set[bool]:
        found = Settings().server
        return {found.register_blocks_on_start, found.memoize_block_auto_registration}

    assert blocks() == {True}
    for name, value in own_server.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    assert blocks() == {False}


@pytest.mark.integration
def test_a_prefect_server_that_does_not_start_in_time_is_one_line_and_leaves_no_process(toy: Toy) -> None:
    toy.change_param("temperature: ", "temperature: 1")
    done = toy.pipeline(check=False, PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS="1")
    assert done.returncode == 2 and "Traceback" not in done.stdout
    assert "Prefect's server did not start within 1 s; nothing has run" in done.stdout
    assert "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS=300" in done.stdout and "dvc repro" in done.stdout
    assert toy.ran() == []
    eventually(lambda: not _servers(toy))


@pytest.mark.integration
def test_a_prefect_server_that_is_killed_while_it_starts_is_started_again(toy: Toy) -> None:
    toy.change_param("temperature: ", "temperature: 1")
    process = toy.start(sys.executable, "-m", "flows.pipeline")
    killed: list[psutil.Process] = []
    for _ in range(server.STARTS - 1):
        eventually(lambda: set(_servers(toy)) - set(killed))
        (own, *_) = set(_servers(toy)) - set(killed)
        own.kill()
        killed.append(own)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0 and "Traceback" not in output, output
    assert toy.ran() == ["distill"]
    assert [run.info.status for run in _runs(toy)[:2]] == ["FINISHED", "FINISHED"]


LATE = """
import logging

async def app(scope, receive, send):
    assert scope["type"] == "lifespan"
    for part in ("startup", "shutdown"):
        await receive()
        logging.error("an error at %s", part)
        await send({"type": f"lifespan.{part}.complete"})
"""


def test_a_runs_own_server_says_nothing_once_it_is_asked_to_end(tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text(LATE)
    command = [sys.executable, "-m", "flows.own_server", "late:app", "--port", str(free_port()), "--log-level", "info"]
    environment = {**os.environ, "PYTHONPATH": f"{PROJECT}{os.pathsep}{tmp_path}"}
    with (tmp_path / "said").open("w+") as out:
        own = subprocess.Popen(command, stdout=out, stderr=out, cwd=tmp_path, env=environment)
        try:
            eventually(lambda: "Uvicorn running on" in (tmp_path / "said").read_text() or own.poll() is not None)
            own.terminate()
            assert own.wait(600) in (0, -signal.SIGTERM)
        finally:
            own.kill()
            own.wait()
        out.seek(0)
        said = out.read()
    assert "an error at startup" in said and "Uvicorn running on" in said
    assert "an error at shutdown" not in said


@pytest.mark.integration
def test_a_prefect_server_that_cannot_start_is_one_line_and_no_endless_loop(toy: Toy) -> None:
    toy.change_param("temperature: ", "temperature: 1")
    (toy.root / ".prefect").mkdir(exist_ok=True)
    (toy.root / ".prefect/prefect.db").write_bytes(b"not a database" * 1000)
    done = toy.pipeline(check=False)  # Prefect alone starts it for ever
    assert done.returncode == 2
    assert "Prefect's server did not start; nothing has run. It ended 3 times while it started" in done.stdout
    assert str(toy.root / ".prefect") in done.stdout and "dvc repro" in done.stdout
    assert toy.ran() == []
    eventually(lambda: not _servers(toy))


@pytest.mark.integration
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["dies", "hangs"])
def test_a_run_whose_prefect_server_goes_in_its_midst_ends_as_it_would_have(toy: Toy, number: signal.Signals) -> None:
    toy.change_param("temperature: ", "temperature: 1")
    process = toy.start(sys.executable, "-m", "flows.pipeline", TOY_SLOW="distill:10")
    eventually(lambda: (toy.root / "ran.txt").exists() and "distill" in (toy.root / "ran.txt").read_text())
    (own,) = _servers(toy)
    assert own_server.ENVIRONMENT.items() <= own.environ().items()
    own.send_signal(number)
    try:
        process.wait(timeout=600)
    finally:
        with contextlib.suppress(psutil.Error):
            own.kill()  # one that is stopped would hold our end of the pipe for ten seconds more
    output, _ = process.communicate(timeout=600)
    late = time.time() - (toy.root / "data/distill").stat().st_mtime
    assert process.returncode == 0, output
    assert output.count("Prefect's server does not answer any more") == 1
    assert "Traceback" not in output and "Errno" not in output.replace("[Errno 111] Connection refused)", ""), output
    assert late < 180  # five seconds to look, five to leave, and MLflow's part; machines may be busy
    assert toy.ran() == ["distill"]
    assert "up to date" in toy.run("dvc", "status").stdout
    assert [run.info.status for run in _runs(toy)[:2]] == ["FINISHED", "FINISHED"]


@pytest.mark.integration
def test_wrong_parameters_are_told_before_anything_runs(toy: Toy) -> None:
    toy.change_param("temperature: ", "temperatur: ")
    done = toy.pipeline(check=False)
    assert done.returncode == 2
    assert "temperatur" in done.stdout
    assert toy.ran() == []


def _start_slow(toy: Toy, **env: str) -> "subprocess.Popen[str]":
    """A run of the flow that is in the middle of distill."""
    toy.change_param("temperature: ", "temperature: 1")
    process = toy.start(sys.executable, "-m", "flows.pipeline", TOY_SLOW="distill:600", **env)
    eventually(lambda: (toy.root / "ran.txt").exists() and "distill" in (toy.root / "ran.txt").read_text())
    time.sleep(0.5)
    assert process.poll() is None
    return process


def test_flow_does_not_run_elsewhere(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flows.pipeline"],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        check=False,
    )
    assert done.returncode == 2
    assert "run this from the repository's root" in done.stdout
