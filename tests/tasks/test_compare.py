"""tasks/compare.py and what people see of it: two pipeline runs in a real store, in the terminal and in MLflow's own UI."""

import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from flows import console
from tasks import candidates, compare, tracking
from tests.browser import Browser, find_chromium
from tests.tasks.test_registry import PARAMS, database, measure, project, write_candidate  # noqa: F401 - fixtures
from tests.toy import PROJECT
from thinner.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow's own deprecations


def pipeline(root: Path, monkeypatch: pytest.MonkeyPatch, stage_hash: str) -> str:
    """A pipeline run of which evaluate is the only stage; returns its id."""
    parent = tracking.open_pipeline_run()
    monkeypatch.setenv("THINNER_PARENT_RUN_ID", parent)
    measure(root, stage_hash)
    tracking.close_pipeline_run(parent, "FINISHED", {"evaluate": {"state": "Completed", "hash": stage_hash}})
    monkeypatch.delenv("THINNER_PARENT_RUN_ID")
    return parent


@pytest.fixture
def two(project: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:  # noqa: F811
    """`prune` names the first class, then the second: 10 of 30 right each time, never the same ones."""
    shutil.copy(PROJECT / "params.yaml", project)
    first = pipeline(project, monkeypatch, "one")
    write_candidate(project, "prune", [0.0, 1.0, 0.0])
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("target: {macs: 0.5} ", "target: {macs: 0.4} "))
    time.sleep(1)  # names have seconds
    return first, pipeline(project, monkeypatch, "two")


def shown(found: compare.Comparison, everything: bool = False) -> str:
    page = Console(width=200, record=True, file=io.StringIO())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(console, "console", page)
        console.print_comparison(found, everything)
    return page.export_text()


def test_two_pipeline_runs_side_by_side_with_paired_tests(two: tuple[str, str]) -> None:
    first, second = two
    found = compare.compare([first[:12], second])
    assert [run.id for run in found.runs] == [first, second]
    by_name = {row.candidate: row.estimate for row in found.differences}
    assert set(by_name) == {"finetune", "scratch", "distill", "prune"}
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
    assert [run.id for run in compare.compare([]).runs] == [second, first]  # the last two, the newest first


def test_runs_of_two_candidates_are_compared_whatever_they_are_called(two: tuple[str, str]) -> None:
    found = compare.compare(["distill (test)", "prune (test)"])
    (row,) = found.differences
    assert row.candidate == "prune against distill"
    assert row.estimate.count == 30


def test_runs_that_cannot_be_tested_say_why(two: tuple[str, str]) -> None:
    client, _ = tracking.connect()
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


@pytest.mark.integration
def test_mlflows_compare_page_shows_charts_of_two_runs_at_once(two: tuple[str, str], tmp_path: Path) -> None:
    find_chromium()
    _, experiment = tracking.connect()
    with serving(tracking.tracking_uri(), tmp_path) as url:
        compare_in_browser(url, experiment, tmp_path)
    assert (tmp_path / "charts.png").stat().st_size > 30_000


@contextmanager
def serving(store: str, folder: Path) -> Iterator[str]:
    """MLflow's server on loopback, for this store."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--host", "127.0.0.1", "--port", str(port),
        "--workers", "1",
    ]  # fmt: skip
    env = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        give_up = time.monotonic() + 180
        while True:
            assert server.poll() is None, (folder / "server.log").read_text()[-3000:]
            assert time.monotonic() < give_up
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=60)


# What a person does: tick the two newest runs, press Compare. A click is an event of the mouse's, as a person's is.
ROWS = """[...document.querySelectorAll('.ag-pinned-left-cols-container .ag-row, .ag-center-cols-container .ag-row')]
    .filter(row => row.querySelector('input[type=checkbox]') && row.textContent.includes('pipeline'))"""


def compare_in_browser(url: str, experiment: str, folder: Path) -> None:
    """Compare the two newest pipeline runs in MLflow's UI; leaves compare.png and charts.png in ``folder``."""
    with Browser(folder, width=1600, height=1400) as browser:
        browser.open(f"{url}/#/experiments/{experiment}/runs")
        browser.until(f"{ROWS}.length >= 2", seconds=120)
        browser.run(f"{ROWS}.slice(0, 2).forEach(row => row.querySelector('input[type=checkbox]').click())")
        button = "[...document.querySelectorAll('button')].find(button => button.textContent.trim() === 'Compare')"
        browser.until(f"{button} && !{button}.disabled")
        browser.run(f"{button}.click()")
        browser.until("document.body.innerText.includes('Comparing 2 Runs from 1 Experiment')")
        browser.until("document.querySelectorAll('.js-plotly-plot .main-svg').length > 0")
        # the chart that is there without another click shows the shipped network's accuracy
        assert "test/accuracy" in browser.run("document.body.innerText")
        browser.screenshot(folder / "compare.png")

        browser.open("about:blank")
        browser.open(f"{url}/#/experiments/{experiment}/runs?compareRunsMode=CHART")
        browser.until("document.querySelectorAll('.js-plotly-plot .main-svg').length >= 3", seconds=120)
        close = "[...document.querySelectorAll('button')].find(b => /close/i.test(b.getAttribute('aria-label') || ''))"
        browser.run(f"{close} && {close}.click()")  # the assistant, which takes a quarter of the window
        time.sleep(2)  # charts take the room
        browser.screenshot(folder / "charts.png")
        titles = browser.run("document.body.innerText")
        assert re.search(r"(?m)^test\s*\(\d+\)", titles)  # the group of metrics that every run has by the same names
