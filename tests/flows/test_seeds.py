"""flows/seeds.py on the toy repository: `thinner claims --seeds`, with real stages, real DVC, a blink each."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.states import Completed
from typer.testing import CliRunner

from flows import cli, seeds
from tasks import lineage
from tests.clusters import started
from tests.toy import GRAPH, PROGRAM, PROJECT, Toy, eventually

pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")  # inside DVC's trie

CLAIMS = ["distill beats scratch on accuracy", "distill is faster than scratch at batch 1"]
JOURNAL = "journal.txt"
# what begins and ends, of all working copies in one file
BEGIN = """
def work(stage: Stage) -> None:
    seed = stage.params.run.seed
    def journal(word: str) -> None:
        with open(os.environ["TOY_JOURNAL"], "a") as file:
            file.write(f"{word} {stage.name} {seed}\\n")
    journal("begin")
    if os.environ.get("TOY_FAIL_SEED") == str(seed) and stage.name == "scratch":
        raise UserError("asked to fail")"""
# of 400 test images distill names 95 % right, scratch 60 %; which ones the seed says
END = """
    if stage.name == "evaluate":
        import json
        import numpy as np
        rng, labels = np.random.default_rng(seed), np.arange(400) % 4
        shares = {"scratch": 0.6, "distill": 0.95}
        named = {f"predictions.{n}": np.where(rng.random(400) < s, labels, (labels + 1) % 4) for n, s in shares.items()}
        np.savez("data/evaluate/predictions.npz", index=np.arange(400), labels=labels, **named)
        rows = [f"{n},1,{k},{(2 if n == 'scratch' else 1) + 0.1 * rng.random()}" for n in shares for k in range(12)]
        Path("data/evaluate/latency.csv").write_text("\\n".join(["candidate,batch,round,latency_ms", *rows]))
        row = {"params": 1, "macs": 1000 * (1 + seed), "file_bytes": 1, "runtime": "pytorch", "accuracy": 0.5 + 0.01 * seed}
        row["latency_ms_b1"] = 1.0
        Path("reports").mkdir(exist_ok=True)
        Path("reports/metrics.json").write_text(json.dumps(dict.fromkeys(shares, row)))
    journal("end")

if __name__"""


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    """prepare - scratch - evaluate"""
    made = Toy(tmp_path / "toy")
    made.env["TOY_JOURNAL"] = str(made.root / JOURNAL)
    program = PROGRAM.replace("\ndef work(stage: Stage) -> None:", BEGIN).replace("\nif __name__", END)
    program = program.replace('"distill": [', '"evaluate": ["data/scratch"], "distill": [')
    (made.root / "program.py").write_text(program)
    ignored = made.root / ".gitignore"
    ignored.write_text(f"{ignored.read_text()}{JOURNAL}\n")
    stages = {name: dict(GRAPH["stages"][name]) for name in ("prepare", "scratch")}
    stages["prepare"]["params"] = ["run.seed"]
    stages["scratch"]["params"] = ["run.seed", "scratch.label_smoothing"]
    stages["evaluate"] = {
        "cmd": "python program.py evaluate",
        "deps": ["program.py", "data/scratch"],
        "params": ["run.seed", "scratch.label_smoothing"],
        "outs": ["data/evaluate"],
        "metrics": [{"reports/metrics.json": {"cache": False}}],
    }
    made.write_graph({"stages": stages})
    params = yaml.safe_load((made.root / "params.yaml").read_text()) | {"claims": CLAIMS}
    (made.root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    made.commit()
    return made


def journal(toy: Toy) -> list[str]:
    """What the stages wrote since the last time this was asked."""
    path = toy.root / JOURNAL
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


def begun(toy: Toy) -> list[str]:
    return sorted(line.removeprefix("begin ") for line in journal(toy) if line.startswith("begin"))


def claims(toy: Toy, *arguments: str, code: int = 0, **env: str) -> str:
    done = toy.run(sys.executable, "-m", "flows.cli", "claims", *arguments, check=False, **env)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.integration
@pytest.mark.usefixtures("shared")
def test_seeds_run_once_and_claims_are_judged_over_them(toy: Toy) -> None:
    toy.pipeline("evaluate")
    assert begun(toy) == ["evaluate 0", "prepare 0", "scratch 0"]

    said = claims(toy, "--seeds", "0,1", "--workers", "2", "--strict", "--json", "reports/over.json")
    assert begun(toy) == ["evaluate 1", "prepare 1", "scratch 1"]  # seed 0 came from DVC's cache
    assert "400 images, 2 seeds" in said
    assert "2 of 2 proven" in said
    verdicts = json.loads((toy.root / "reports" / "over.json").read_text())
    assert [(v["claim"], v["seeds"]) for v in verdicts.values()] == [(text, 2) for text in CLAIMS]
    assert toy.run("git", "worktree", "list").stdout.count("\n") == 1
    assert toy.run("git", "status", "--porcelain", "params.yaml").stdout == ""

    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{toy.root / 'mlflow.db'}")
    runs = client.search_runs(["1"])
    mine = {r.info.run_name: r.data.tags for r in runs if r.data.tags.get("variant") == "claims"}
    assert sorted(mine) == ["evaluate claims seed 1", "prepare claims seed 1", "scratch claims seed 1"]
    parents = {tags["mlflow.parentRunId"] for tags in mine.values()}
    above = [r for r in runs if r.info.run_id in parents]
    assert [(r.info.run_name.startswith("claims over seeds 0, 1 "), r.info.status) for r in above] == [
        (True, "FINISHED")
    ]

    again = claims(toy, "--seeds", "1,0", "--page", "docs/seeds.md")
    page = (toy.root / "docs/seeds.md").read_text()
    assert all(f"| **proven** | {text} | " in page for text in CLAIMS)
    assert "| `scratch` | 51.00 | 50.00 | 50.50 | 1 k to 2 k |\n" in page
    assert "| network | seed 1 | seed 0 | mean |" in page and "--seeds 1,0 --strict" in page
    assert "Up to date: seeds 1, 0" in again
    assert "2 seeds" in again
    assert journal(toy) == []
    assert len(client.search_runs(["1"])) == len(runs)

    toy.change_param("label_smoothing: 0.0", "label_smoothing: 0.25")
    assert "params.yaml: changed since the last commit" in claims(toy, "--seeds", "0,1", code=1)
    toy.commit()
    assert "To run: seeds 0, 1" in claims(toy, "--seeds", "0,1", "--workers", "2")
    lines = journal(toy)
    assert sorted(lines[:4]) == ["begin scratch 0", "begin scratch 1", "end scratch 0", "end scratch 1"]
    assert lines[4:] == ["begin evaluate 0", "end evaluate 0", "begin evaluate 1", "end evaluate 1"]  # nothing beside


@pytest.mark.long
@pytest.mark.usefixtures("shared")
def test_a_cluster_trains_seeds_and_what_measures_speed_runs_here(toy: Toy, tmp_path: Path) -> None:
    toy.run("dvc", "remote", "add", "--default", "results", str(tmp_path / "store"))
    toy.commit()
    with started("dask", toy, tmp_path) as cluster:
        cluster.start_worker("one")
        said = claims(toy, "--seeds", "0,1", "--engine", "dask", "--address", cluster.address)
        assert "2 of 2 proven" in said
        assert begun(toy) == sorted(
            f"{stage} {seed}" for stage in ("prepare", "scratch", "evaluate") for seed in (0, 1)
        )
        assert sorted(cluster.ran()) == [("one", "prepare")] * 2 + [("one", "scratch")] * 2


@pytest.mark.integration
@pytest.mark.usefixtures("shared")
def test_a_seed_that_fails_is_named_and_stops_no_other(toy: Toy) -> None:
    said = claims(toy, "--seeds", "0,1", code=1, TOY_FAIL_SEED="0")
    assert "1 of 2 failed:\n  seed 0: " in said
    assert "asked to fail" in said
    assert "Nothing was judged" in said
    assert "evaluate 1" in begun(toy)
    assert "2 seeds" in claims(toy, "--seeds", "0,1")
    assert begun(toy) == ["evaluate 0", "scratch 0"]


@pytest.mark.integration
def test_what_is_stopped_goes_on(toy: Toy) -> None:
    process = toy.start(sys.executable, "-m", "flows.cli", "claims", "--seeds", "3", TOY_SLOW="scratch:900")
    eventually(lambda: "begin scratch 3" in ((toy.root / JOURNAL).read_text() if (toy.root / JOURNAL).exists() else ""))
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 130, said
    assert "the same command goes on" in said
    eventually(lambda: not toy.stage_processes())
    assert not (toy.root / seeds.FOLDER / "3").exists()
    journal(toy)
    assert "1 seed: what another seed would change is not known" in claims(toy, "--seeds", "3")
    assert begun(toy) == ["evaluate 3", "scratch 3"]


@pytest.mark.integration
def test_what_is_measured_while_what_it_rests_on_changes_is_kept_for_neither(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seeds, "_bring", lambda *_: Completed())  # as if it had run
    for name in ("reports/metrics.json", "data/evaluate/latency.csv"):
        (toy.root / name).parent.mkdir(parents=True, exist_ok=True)
        (toy.root / name).write_text("{}")
    kept = toy.root / seeds.FOLDER / "1"
    before = lineage.key(toy.root, seeds.TARGET)
    (toy.root / "program.py").write_text("# edited\n" + (toy.root / "program.py").read_text())
    ended = seeds.evaluate.fn(toy.root, 1, toy.root, before, {})
    assert ended.is_failed() and "so it is of neither" in str(ended.message) and not kept.exists()
    assert seeds.evaluate.fn(toy.root, 1, toy.root, now := lineage.key(toy.root, seeds.TARGET), {}).is_completed()
    assert (kept / seeds.KEY).read_text() == now


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0,x"], "'x' is no seed. Give whole numbers from 0 on"),
        (["--seeds", "-1"], "'-1' is no seed"),
        (["--seeds", ""], "'' is no seed"),
        (["--seeds", "1,2,1"], "1,2,1 has one twice"),
        (["--seeds", "0", "--with", "../seed1"], "--seeds and --with: give one of them"),
        (["--workers", "2"], "Give --seeds too"),
        (["--page", "a.md"], "Give --seeds too"),
        (["--seeds", "0,1", "--workers", "0"], "Invalid value for '--workers'"),
    ],
)
def test_what_is_asked_wrongly_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    assert message in claims_alone(tmp_path, monkeypatch, *arguments)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"data": {"test": 400}}, "data.test: 400: each seed draws other test images"),
        ({"claims": []}, "claims: params.yaml has none"),
    ],
)
def test_what_cannot_be_judged_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, params: dict, message: str
) -> None:
    assert message in claims_alone(tmp_path, monkeypatch, "--seeds", "0,1", **params)
    assert not (tmp_path / ".thinner").exists()


def claims_alone(root: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str, **params: Any) -> str:
    """What the command says, and that it failed, where there is nothing but params.yaml and dvc.yaml."""
    shipped = yaml.safe_load((PROJECT / "params.yaml").read_text())
    for section, values in params.items():
        shipped[section] = {**shipped[section], **values} if isinstance(values, dict) else values
    (root / "params.yaml").write_text(yaml.safe_dump(shipped))
    (root / "dvc.yaml").write_text("")
    monkeypatch.chdir(root)
    done = CliRunner().invoke(cli.app, ["claims", *arguments])
    assert done.exit_code != 0
    return done.output
