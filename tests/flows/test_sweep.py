"""flows/sweep.py on the toy repository: real stages, real DVC, a blink each."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from flows import sweep, worktrees
from tasks.git import git
from tests.toy import GRAPH, PROGRAM, Toy, eventually
from thinner.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")  # inside DVC's trie
ROOT = Path(__file__).resolve().parents[2]
STUDY = {
    "title": "Which?",
    "seeds": [0, 1],
    "target": "distill",
    "measure": "val_accuracy",
    "baseline": "scratch",
    "variants": {
        "scratch": {"target": "scratch"},
        "warm": {"set": {"distill.temperature": 4.0}},
        "hot": {"set": {"distill.temperature": 20.0}},
    },
}
ONE_SEED = {**STUDY, "seeds": [0]}
# a curve whose best row is in the middle; what it shows depends on the seed and, in distill, on the temperature
HISTORY = """
    value = 0.5 + 0.1 * stage.params.run.seed
    value += 0.01 * stage.params.distill.temperature if stage.name == "distill" else 0
    history = Path(f"reports/{stage.name}/history.csv")
    history.parent.mkdir(parents=True, exist_ok=True)
    history.write_text(f"step,val_accuracy,val_loss\\n1,0.1,3\\n2,{value},2\\n3,{value},2.5\\n")

if __name__"""


# a study whose process that speaks to MLflow dies with these words
REFUSED = """
import runpy
from flows import record
from thinner.errors import UserError

def refuse(*_):
    raise UserError("asked to refuse")

record.Record.open = refuse
runpy.run_module("flows.sweep", run_name="__main__", alter_sys=True)
"""


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    made = Toy(tmp_path / "toy")
    (made.root / "program.py").write_text(PROGRAM.replace("\nif __name__", HISTORY))
    graph = yaml.safe_load(yaml.safe_dump(GRAPH))
    for stage in graph["stages"].values():
        stage["params"] = [*stage.get("params", []), "run.seed"]
    for name in ("finetune", "scratch", "distill"):
        graph["stages"][name]["plots"] = [{f"reports/{name}/history.csv": {"cache": False}}]
    made.write_graph(graph)
    write(made, STUDY)
    return made


def test_worktrees_see_all_that_stages_read_and_git_does_not_keep() -> None:
    stages = [stage.get("do", stage) for stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values()]
    written = {out.partition("/$")[0] for stage in stages for out in stage["outs"]}
    read = {dep for stage in stages for dep in stage["deps"] if dep.startswith("data/") and "$" not in dep}
    assert read - written == set(worktrees.OUTSIDE)


def test_a_study_with_a_network_that_is_not_in_git_is_refused(toy: Toy) -> None:
    (toy.root / "notes.txt").write_text("nobody's")
    worktrees.refuse_changes(toy.root, "A study is of a commit")
    (toy.root / "nets").mkdir()
    (toy.root / "nets/README.md").write_text("networks")
    toy.commit()
    (toy.root / "nets/mine.py").write_text("def make(classes, channels): ...")
    with pytest.raises(UserError, match=r"nets/mine\.py: changed since the last commit\. A study is of a commit"):
        worktrees.refuse_changes(toy.root, "A study is of a commit")


def write(toy: Toy, study: dict) -> None:
    (toy.root / "studies").mkdir(exist_ok=True)
    (toy.root / "studies" / "small.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    toy.commit()


def ran(toy: Toy) -> list[str]:
    """The stages that really ran in the worktrees since the last time this was asked."""
    names: list[str] = []
    for path in (toy.root / ".thinner" / "sweeps" / "small").glob("worker-*/ran.txt"):
        names += path.read_text().split()
        path.unlink()
    return sorted(names)


def run(toy: Toy, *arguments: str, check: bool = True, **env: str) -> str:
    # kept worktrees tell what ran in them: a failing seed at the end of the list would do the same
    done = toy.run(sys.executable, "-m", "flows.sweep", "studies/small.yaml", *arguments, check=check, **env)
    return done.stdout + done.stderr


def table(toy: Toy) -> pd.DataFrame:
    return pd.read_csv(toy.root / "docs" / "studies" / "small.csv")


@pytest.mark.integration
def test_a_study_whose_prefect_server_cannot_start_says_so_and_ends(toy: Toy) -> None:
    (toy.root / ".prefect").mkdir(exist_ok=True)
    (toy.root / ".prefect/prefect.db").write_bytes(b"not a database" * 1000)
    done = toy.run(sys.executable, "-m", "flows.sweep", "studies/small.yaml", check=False)
    assert done.returncode == 2 and "Prefect's server did not start; nothing has run" in done.stderr
    assert ran(toy) == []


@pytest.mark.integration
@pytest.mark.usefixtures("shared")
def test_a_study_whose_record_cannot_be_opened_says_so_and_runs_nothing(toy: Toy) -> None:
    done = toy.run(sys.executable, "-c", REFUSED, "studies/small.yaml", check=False)
    assert done.returncode == 2 and "asked to refuse" in done.stderr and "Traceback" not in done.stdout + done.stderr
    assert ran(toy) == []


@pytest.mark.integration
@pytest.mark.usefixtures("shared")
def test_a_study_runs_once_and_says_what_it_found(toy: Toy) -> None:
    said = run(toy, "--workers", "2")
    found = table(toy).set_index(["variant", "seed"])
    assert found["value"].round(4).to_dict() == {
        ("scratch", 0): 0.5, ("scratch", 1): 0.6, ("warm", 0): 0.54, ("warm", 1): 0.64, ("hot", 0): 0.7, ("hot", 1): 0.8,
    }  # fmt: skip
    assert set(found["step"]) == {2}
    text = (toy.root / "docs" / "studies" / "small.md").read_text()
    assert "| `hot` | 2 | 75.00 | 7.07 | +20.00 | 1.0000 |" in text  # of two equal differences nothing is shown
    assert "hot" in said and "docs/studies/small.md" in said
    assert (toy.root / "docs" / "studies" / "small.svg").is_file()
    assert not list((toy.root / ".thinner" / "sweeps" / "small").glob("worker-*"))  # all done: nothing is left lying
    assert toy.run("git", "worktree", "list").stdout.count("\n") == 1

    before = (toy.root / "docs" / "studies" / "small.csv").read_bytes()
    again = run(toy)
    assert again.count("up to date") == 6
    assert (toy.root / "docs" / "studies" / "small.csv").read_bytes() == before

    import mlflow

    runs = mlflow.MlflowClient(f"sqlite:///{toy.root / 'mlflow.db'}").search_runs(["1"])
    hot = [r for r in runs if r.data.tags.get("variant") == "hot" and r.data.tags["stage"] == "distill"]
    assert sorted(r.data.tags["seed"] for r in hot) == ["0", "1"]
    assert {r.info.run_name for r in hot} == {"distill hot seed 0", "distill hot seed 1"}
    parents = {r.data.tags["mlflow.parentRunId"] for r in hot}
    assert [r.data.tags["stage"] for r in runs if r.info.run_id in parents] == ["study"]


@pytest.mark.long
@pytest.mark.usefixtures("shared")
def test_what_is_shared_runs_once_and_only_what_changed_runs_again(toy: Toy) -> None:
    # a variant that fails keeps the worktrees, which then tell what ran
    broken = {**ONE_SEED, "variants": {**STUDY["variants"], "broken": {"set": {"distill.losses": []}}}}
    write(toy, broken)
    text = run(toy, check=False)
    assert "distill.losses" in text  # refused before anything ran
    assert not (toy.root / "docs" / "studies" / "small.csv").exists()

    write(toy, ONE_SEED)
    said = run(toy, "--workers", "2", check=False, TOY_FAIL="scratch")
    assert "1 of 3 failed" not in said  # distill needs scratch in this graph: all fail
    assert "3 of 3 failed" in said and "asked to fail" in said
    assert sorted(set(ran(toy))) == ["finetune", "prepare", "scratch"]
    assert not (toy.root / "docs" / "studies" / "small.csv").exists()

    run(toy, "--only", "warm, scratch")
    assert len(table(toy)) == 2

    changed = yaml.safe_load(yaml.safe_dump(ONE_SEED))
    changed["variants"]["warm"]["set"]["distill.temperature"] = 5.0
    write(toy, changed)
    said = run(toy)
    assert said.count("up to date") == 1  # scratch
    assert table(toy).set_index(["variant", "seed"])["value"].round(4).to_dict()["warm", 0] == 0.55


@pytest.mark.integration
@pytest.mark.usefixtures("shared")
def test_a_run_that_needs_what_another_run_is_about_waits_for_it(toy: Toy) -> None:
    # distill makes finetune on its way, and finetune is a variant of its own: the very same stage
    variants = {"student": {}, "teacher": {"target": "finetune"}}
    write(toy, {**ONE_SEED, "variants": variants, "baseline": "student"})
    said = run(
        toy, "--workers", "2", check=False, TOY_SLOW="finetune:12", TOY_FAIL="distill"
    )  # a failure keeps worktrees
    assert "1 of 2 failed" in said
    assert ran(toy) == ["distill", "finetune", "prepare", "scratch"]
    assert table(toy)["variant"].tolist() == ["teacher"]


@pytest.mark.integration
def test_a_study_that_is_stopped_goes_on(toy: Toy) -> None:
    write(toy, ONE_SEED)
    process = toy.start(sys.executable, "-m", "flows.sweep", "studies/small.yaml", TOY_SLOW="distill:20")
    csv = toy.root / "docs" / "studies" / "small.csv"
    place = toy.root / ".thinner/sweeps/small"
    eventually(lambda: any("distill" in path.read_text() for path in place.glob("worker-*/ran.txt")))
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=600)
    assert process.returncode != 0, said
    eventually(lambda: not toy.stage_processes())
    assert not csv.exists()
    run(toy)
    assert len(table(toy)) == 3


def recipe(toy: Toy) -> None:
    (toy.root / "recipes").mkdir()
    (toy.root / "recipes" / "photos.yaml").write_text(
        "title: Photos\nnote: In a folder of their own\n"
        "set: {data.root: data/photos, data.source: 'folder:data/photos', distill.temperature: 20.0}\n"
    )


@pytest.mark.integration
@pytest.mark.usefixtures("shared")
def test_a_study_of_a_recipe_has_its_values_and_its_data(toy: Toy) -> None:
    recipe(toy)
    (toy.root / "data/photos/cat").mkdir(parents=True)  # which git does not know
    write(toy, {**STUDY, "seeds": [0], "recipe": "photos", "variants": {**STUDY["variants"], "warm": {}}})
    run(toy)
    assert table(toy).set_index("variant")["value"].round(4).to_dict() == {"scratch": 0.5, "warm": 0.7, "hot": 0.7}
    trees = worktrees.Worktrees(toy.root, [toy.root / "tree"], [("data/photos", "folder:data/photos")])
    assert (toy.root / "tree/data/photos/cat").is_dir()
    trees.remove()


@pytest.mark.integration
def test_pictures_outside_of_the_repository_stay_where_they_are(toy: Toy) -> None:
    photos = toy.root.parent / "photos"
    (photos / "cat").mkdir(parents=True)
    (photos / "cat/1.png").write_bytes(b"mine")
    folder = toy.root / ".thinner/small"
    for place in (str(photos), "../photos"):
        paths = [folder / f"worker-{number}" for number in range(2)]
        for _ in range(2):  # made, and found again
            trees = worktrees.Worktrees(toy.root, paths, [(place, f"folder:{place}")])
            assert [(tree / place / "cat/1.png").read_bytes() for tree in trees.paths] == [b"mine", b"mine"]
        trees.remove()
        assert (photos / "cat/1.png").read_bytes() == b"mine" and not photos.is_symlink()
    with pytest.raises(UserError, match="data.root: './' is this repository itself, of which a copy"):
        worktrees.Worktrees(toy.root, paths, [("./", "folder:photos")])
    (folder / "photos").mkdir()
    (folder / "photos/other.txt").write_text("of another study")
    with pytest.raises(UserError, match=rf"data.root: '../photos' leads out .* thinner set data.root={photos}$"):
        worktrees.Worktrees(toy.root, paths, [("../photos", "folder:../photos")])
    assert (folder / "photos/other.txt").exists()


@pytest.mark.parametrize("name", ["plain", "Photos, 2024", "C#", 'say "cheese"'])
def test_dvc_reads_where_the_cache_lies_as_it_is_called(tmp_path: Path, name: str) -> None:
    from dvc.config import Config

    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config.local").write_text("[core]\n    autostage = true\n")
    worktrees._share_cache(tmp_path / ".dvc/config.local", tmp_path / "theirs", tmp_path / name)
    (tmp_path / "theirs").replace(tmp_path / ".dvc/config.local")
    found = Config(tmp_path / ".dvc")
    assert found["cache"]["dir"] == str(tmp_path / name) and found["core"]["autostage"] is True


def test_a_stage_that_takes_longer_than_its_minutes_is_ended(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('at it', flush=True); import time; time.sleep(900)"]
    said, code = worktrees.hear(command, tmp_path, "kd seed 3", {}, None, seconds=1.5)
    assert code != 0 and said[-1] == worktrees.TOO_LONG
    assert not worktrees._processes


def test_a_study_with_a_dot_in_its_name_writes_its_own_page(toy: Toy) -> None:
    (toy.root / "docs/studies").mkdir(parents=True, exist_ok=True)
    path = toy.root / "studies" / "small.v2.yaml"
    path.write_text((toy.root / "studies/small.yaml").read_text())
    (toy.root / "docs/studies/small.csv").write_text("another study's\n")
    with pytest.raises(UserError, match=r"small\.v2\.csv has no finished run"):
        sweep.write_report(path, toy.root)


def load(toy: Toy, **changes: object) -> sweep.Study:
    path = toy.root / "studies" / "small.yaml"
    path.write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False))
    return sweep.load_study(path, toy.root)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": "none"}, "'none' is no variant. Choose one of: scratch, warm, hot"),
        ({"seeds": [1, 1]}, r"seeds: \[1, 1\] has one twice"),
        ({"seeds": []}, "seeds: .*at least 1"),
        ({"measure": "test_accuracy"}, "measure: 'test_accuracy': input should be 'val_accuracy'"),
        ({"recipe": "cifar"}, r"1 mistake\(s\)\n  recipe: unknown 'cifar'. Choose one of: photos$"),
        ({"colour": "red"}, "colour: 'red': extra inputs"),
        ({"target": "distil"}, "variants.warm: unknown target 'distil'. Choose one of: prepare, finetune"),
        ({"set": {"run.seed": 1}}, "run.seed is set by `seeds`. Take it out"),
        ({"set": {"distil.temperature": 1.0}}, "'distil.temperature' is no key of params.yaml: there is no section 'distil'"),
        ({"set": {"distill.temperatur": 1.0}}, "variants.warm: distill.temperatur: unknown key .*Did you mean 'temperature'"),
        ({"set": {"distill.temperature": -1.0}}, "variants.hot: distill.temperature|variants.scratch: distill.temperature: -1.0"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_study_is_named(toy: Toy, monkeypatch: pytest.MonkeyPatch, changes: dict, message: str) -> None:
    monkeypatch.chdir(toy.root)
    recipe(toy)
    with pytest.raises(UserError, match=message):
        load(toy, **changes)


def test_a_study_that_is_not_there_or_no_yaml(toy: Toy) -> None:
    with pytest.raises(UserError, match=r"nothing.yaml: no such file. docs/studies.md"):
        sweep.load_study(toy.root / "nothing.yaml", toy.root)
    (toy.root / "bad.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"bad.yaml: line 2: not YAML"):
        sweep.load_study(toy.root / "bad.yaml", toy.root)


def test_a_study_is_of_a_commit(toy: Toy) -> None:
    toy.change_param("temperature: 4.0", "temperature: 3.0")
    said = run(toy, check=False)
    assert "params.yaml: changed since the last commit" in said


def test_the_first_run_of_each_seed_goes_first(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(toy.root)
    study = load(toy)
    names = [one.name for one in sweep.plan(study, toy.root)]
    assert names == ["warm seed 0", "warm seed 1", "scratch seed 0", "hot seed 0", "scratch seed 1", "hot seed 1"]
    assert [one.name for one in sweep.plan(study, toy.root, ["hot"], [1])] == ["hot seed 1"]
    with pytest.raises(UserError, match="--only: no variant 'cold'"):
        sweep.plan(study, toy.root, ["cold"])


def test_variants_may_be_called_by_numbers_or_nothing(tmp_path: Path) -> None:
    study = sweep.Study.model_validate(
        {
            "title": "Which width?", "target": "scratch", "measure": "val_accuracy", "baseline": "8", "seeds": [0],
            "variants": {"8": {}, "null": {}},
        }
    )  # fmt: skip
    row = {
        "target": "scratch",
        "value": 0.5,
        "step": 1,
        "macs": 10,
        "share": 1.0,
        "seconds": 1.0,
        "commit": "0",
        "key": "1",
    }
    results = sweep.Results(tmp_path / "widths.csv", study)
    for name in study.variants:
        results.add(sweep.Run(name, 0, "scratch", {}), {"variant": name, "seed": 0, **row})
    again = sweep.Results(tmp_path / "widths.csv", study)
    assert list(again.frame()["variant"]) == ["8", "null"]


def test_the_result_of_prune_is_that_of_the_round_it_chose(tmp_path: Path) -> None:
    folder = tmp_path / "reports" / "prune"
    folder.mkdir(parents=True)
    (folder / "rounds.csv").write_text(
        "round,macs,accuracy_after,chosen\n0,1000,0.9,False\n1,700,0.89,False\n2,480,0.88,True\n3,300,0.95,False\n"
    )
    one = sweep.Run("half", 0, "prune", {})
    assert sweep.read_result(tmp_path, one, "val_accuracy") == {"value": 0.88, "step": 2, "macs": 480, "share": 0.48}


@pytest.mark.parametrize("path", sorted((ROOT / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_studies_are_right(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    study = sweep.load_study(path, ROOT)
    report = ROOT / "docs" / "studies" / f"{path.stem}.md"
    from thinner.evidence.study import summarise

    rows = sweep.Results(report.with_suffix(".csv"), study).frame()  # what is committed is what the numbers give
    assert report.read_text() == sweep.render(study, path.relative_to(ROOT), rows, summarise(rows, study.baseline))
    assert not re.search(r"runs are missing", report.read_text())


def test_a_seed_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["flows.sweep", "studies/losses.yaml", "--seeds", "0,x"])
    assert sweep.main() == 2
    assert "--seeds: 'x' is no seed. Give whole numbers from 0 on, such as 0,1,2" in capsys.readouterr().err


def test_the_worktrees_of_a_repository_that_was_moved_or_copied_are_its_own(tmp_path: Path) -> None:
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    one.mkdir()
    for words in ("init --quiet", "commit --quiet --allow-empty --message first", "worktree add --quiet --detach kept"):
        command = ["git", "-c", "user.name=x", "-c", "user.email=x@y", *words.split()]
        subprocess.run(command, cwd=one, check=True)

    def made_ours(root: Path) -> str:
        trees = object.__new__(worktrees.Worktrees)
        trees._root = root
        trees._make_ours(root / "kept")
        return git(root / "kept", "rev-parse", "--path-format=absolute", "--git-common-dir")

    assert made_ours(one) == str(one / ".git")
    one.rename(two)
    assert made_ours(two) == str(two / ".git")
    shutil.copytree(two, three)
    assert made_ours(three) == str(three / ".git")
    assert made_ours(two) == str(two / ".git")  # nothing was taken from it
    assert git(three, "worktree", "list").count(str(three / "kept")) == 1
    shutil.rmtree(three / ".git" / "worktrees")  # as `git worktree prune` leaves a copy
    trees = object.__new__(worktrees.Worktrees)
    trees._root = three
    trees._make_ours(three / "kept")
    assert not (three / "kept" / ".git").exists()  # and so it is made anew
    (two / "other").mkdir()
    (two / "other" / ".git").write_text(f"gitdir: {two / '.git' / 'worktrees' / 'kept'}\n")  # which is another's
    trees._root = two
    trees._make_ours(two / "other")
    assert not (two / "other" / ".git").exists() and made_ours(two) == str(two / ".git")
