"""tasks/record/compare.py and what people see of it: two pipeline runs in a real store, in the terminal and in MLflow's own UI."""

import io
import shutil
import time
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import screenshots
from flows import console
from tasks import prune
from tasks.record import candidates, compare, mlflow_client, pipeline_run, stage_run
from tasks.scratch import scratch
from tasks.stage import Stage
from tests.browser import Browser, find_chromium
from tests.tasks.test_registry import PARAMS, be_in, database, fill, measure, thinner, write_candidate  # noqa: F401 - a fixture
from tests.toy import PROJECT
from thinner.config import load_params
from thinner.errors import UserError
from thinner.params import Params

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's own deprecations


def pipeline(root: Path, monkeypatch: pytest.MonkeyPatch, stage_hash: str) -> str:
    """A pipeline run of which evaluate is the only stage; returns its id."""
    parent = pipeline_run.open_run()
    monkeypatch.setenv("THINNER_PARENT_RUN_ID", parent)
    measure(root, stage_hash)
    pipeline_run.close_run(parent, "FINISHED", {"evaluate": {"state": "Completed", "hash": stage_hash}})
    monkeypatch.delenv("THINNER_PARENT_RUN_ID")
    return parent


@pytest.fixture(scope="module")
def compared(database: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:  # noqa: F811
    """A project with two pipeline runs, made once. `prune` names the first class, then the second: 10 of 30 right each
    time, never the same ones."""
    root = tmp_path_factory.mktemp("compared")
    with pytest.MonkeyPatch.context() as patch:
        be_in(root, patch)
        fill(root, database)
        shutil.copy(PROJECT / "params.yaml", root)
        first = pipeline(root, patch, "one")
        write_candidate(root, "prune", [0.0, 1.0, 0.0])
        text = (root / "params.yaml").read_text()
        for old, new in {"target: {macs: 0.5} ": "target: {macs: 0.4} ", "keep: [] ": "keep: ['stage[a-c]'] "}.items():
            assert old in text
            text = text.replace(old, new)
        (root / "params.yaml").write_text(text)
        time.sleep(1)  # names have seconds
        return root, first, pipeline(root, patch, "two")


@pytest.fixture
def two(compared: tuple[Path, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """To be in a copy of that project; its two runs. What they have as files lies where it was."""
    root, first, second = compared
    shutil.copytree(root, tmp_path, ignore=shutil.ignore_patterns("mlartifacts"), dirs_exist_ok=True)
    be_in(tmp_path, monkeypatch)
    return first, second


def shown(found: compare.Comparison, everything: bool = False) -> str:
    page = Console(**console.PLAIN, width=200, record=True, file=io.StringIO())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(console, "console", page)
        console.print_comparison(found, everything)
    return page.export_text()


@pytest.mark.integration
def test_two_pipeline_runs_side_by_side_with_paired_tests(two: tuple[str, str]) -> None:
    first, second = two
    found = compare.compare([first[:12], second])
    assert [run.id for run in found.runs] == [first, second]
    by_name = {row.candidate: row.estimate for row in found.differences}
    assert set(by_name) == {"finetune", "scratch", "distill", "small", "prune"}
    assert by_name["distill"].effect == 0
    assert by_name["distill"].p_value == 1
    # 10 won, 10 lost: McNemar's exact p is 1, but the interval is wide
    assert (by_name["prune"].effect, by_name["prune"].p_value) == (0, 1)
    assert by_name["prune"].high - by_name["prune"].low > 0.4
    text = shown(found)
    lines = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert "33.33%" in lines["test/accuracy"]
    assert "test/distill/accuracy" not in text
    assert "test/distill/accuracy" in shown(found, everything=True)
    assert lines["prune.target.macs"].split() == ["prune.target.macs", "0.5", "0.4"]
    assert "student.width" not in text  # the same in both
    said = thinner("compare", first, second)
    assert said.exit_code == 0, said.output
    rows = {line.split()[0]: line.split() for line in said.output.splitlines() if line.strip()}
    assert rows["prune.target.macs"] == ["prune.target.macs", "0.5", "0.4"]
    assert rows["prune.keep"] == ["prune.keep", "[]", "['stage[a-c]']"]
    effect = f"[{100 * by_name['prune'].low:+.2f}, {100 * by_name['prune'].high:+.2f}]"
    assert effect in said.output
    assert [run.id for run in compare.compare([]).runs] == [second, first]  # the last two, the newest first


@pytest.mark.integration
def test_runs_of_two_candidates_are_compared_whatever_they_are_called(two: tuple[str, str]) -> None:
    found = compare.compare(["distill (test)", "prune (test)"])
    (row,) = found.differences
    assert row.candidate == "prune against distill"
    assert row.estimate.count == 30


@pytest.mark.integration
def test_runs_that_cannot_be_tested_say_why(two: tuple[str, str]) -> None:
    client, _ = mlflow_client.connect()
    client.set_tag(two[1], candidates.TEST, "others")
    found = compare.compare(list(two))
    assert not found.differences
    assert "tested on other images" in found.notes[0]
    found = compare.compare([two[0], "evaluate"])
    assert "not both keep what they named for each image" in found.notes[0]
    with pytest.raises(UserError, match=r"no run is named 'nothing'.*The last pipeline runs: 'pipeline "):
        compare.compare([two[0], "nothing"])
    with pytest.raises(UserError, match="two runs or more"):
        compare.compare([two[0], two[0][:10]])


@pytest.fixture
def stages(two: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """A real training, and two rounds of pruning as prune records them, below the first pipeline run."""
    monkeypatch.setenv("THINNER_PARENT_RUN_ID", two[0])
    raw = load_params().model_dump(mode="json")
    raw["student"] |= {"width": 4, "stem_stride": 1, "image_size": 10, "mean": [0.5], "std": [0.25]}
    raw["student"]["training"] |= {"steps": 4, "validate_every": 2, "batch_size": 8}
    params = Params.model_validate(raw)
    recorder = stage_run.start("scratch", {}, "one", {}, "cpu")
    scratch(Stage("scratch", params, recorder))
    recorder.end("FINISHED")
    pruned = stage_run.start("prune", {}, "one", {}, "cpu")
    for before in (0, 4):
        prune._record_curve(Stage("prune", params, pruned), Path("reports/scratch/history.csv"), before)
    pruned.end("FINISHED")
    assert recorder.run_id and pruned.run_id
    return recorder.run_id, pruned.run_id


@pytest.mark.integration
def test_mlflows_compare_page_shows_charts_of_two_runs_at_once(
    two: tuple[str, str], stages: tuple[str, str], tmp_path: Path
) -> None:
    find_chromium()
    client, experiment = mlflow_client.connect()
    with (
        screenshots.serving(mlflow_client.tracking_uri(), tmp_path) as url,
        Browser(tmp_path, width=1400, height=1400) as browser,
    ):
        # the chart that is there without another click: the shipped network's accuracy, by what differs
        drawn = screenshots.compare(browser, url, experiment, two)
        assert list(drawn)[-1] == "test/accuracy"
        assert (drawn["prune.target.macs"], drawn["test/accuracy"]) == ([0.5, 0.4], [10 / 30, 10 / 30])
        # stages: the last accuracy, and the learning curves behind its name
        drawn = screenshots.compare(browser, url, experiment, stages, screenshots.only(stages))
        last = client.get_run(stages[0]).data.metrics["val/accuracy"]
        assert list(drawn)[-1] == "val/accuracy"
        assert drawn["val/accuracy"] == [last, last]
        curves = screenshots.curves(browser, "val/accuracy")
        assert {name: steps for name, (steps, _) in curves.items()} == {"scratch": [2, 4], "prune": [2, 4, 6, 8]}
        assert curves["prune"][1] == curves["scratch"][1] * 2
