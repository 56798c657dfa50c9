"""The pictures of docs/compare.md: MLflow's Compare page with two pipeline runs, and with the training stages.

    python -m benchmarks.screenshots                                # from this repository's record into docs/images
    python -m benchmarks.screenshots --store DIR/mlflow.db --out DIR

Chromium does what a person does: ticks runs, presses Compare. MLflow's server sees a copy of the record, because it
may change a database that it opens. tests/tasks/test_compare.py uses the same functions.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from benchmarks.browser import PATIENCE, Browser, BrowserError
from tasks.environment import home_root
from tasks.record import mlflow_client
from thinner.errors import UserError

STAGES = ("scratch", "distill", "prune")
START_SECONDS = 180.0
PLOTS = "document.querySelectorAll('.js-plotly-plot .main-svg').length"


@contextmanager
def serving(store: str, folder: Path) -> Iterator[str]:
    """The address of an MLflow server for this store, on loopback; its log goes to ``folder``."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--host", "127.0.0.1",
        "--port", str(port), "--workers", "1",
    ]  # fmt: skip
    env = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        give_up = time.monotonic() + START_SECONDS
        while True:
            if server.poll() is not None or time.monotonic() > give_up:
                raise BrowserError(f"MLflow does not start:\n{(folder / 'server.log').read_text()[-3000:]}")
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=PATIENCE)


def only(runs: Sequence[str]) -> str:
    """What one types into the search field to see these runs alone."""
    return f"attributes.run_id IN ({', '.join(repr(run) for run in runs)})"


def compare(browser: Browser, url: str, experiment: str, runs: Sequence[str], search: str = "") -> dict[str, list[Any]]:
    """In the list of runs (of those that ``search`` finds) unfold the pipelines, tick ``runs``, press Compare.

    Returns what the chart shows that is there without a further click: the titles of its axes as they are drawn, each
    with the values of its lines.
    """
    browser.open("about:blank")
    browser.open(f"{url}/#/experiments/{experiment}/runs?searchFilter={quote(search)}")
    ticks = [f".ag-row[row-id='{run}'] .ag-selection-checkbox input" for run in runs]
    seen = " && ".join(f'document.querySelector("{tick}")' for tick in ticks)
    browser.until("!!document.querySelector('.ag-row-level-0 .ag-selection-checkbox input')")
    if not browser.run(f"!!({seen})"):
        fold = ".ag-row-level-0 button[data-component-id*=runnamecellrenderer]"
        browser.run(f"document.querySelectorAll('{fold}').forEach(button => button.click())")
    browser.until(f"!!({seen})")
    for tick in ticks:
        browser.run(f'document.querySelector("{tick}").click()')
    button = "[...document.querySelectorAll('button')].find(button => button.textContent.trim() === 'Compare')"
    browser.until(f"{button} && !{button}.disabled")
    browser.run(f"{button}.click()")
    browser.until(f"document.body.innerText.includes('Comparing {len(runs)} Runs from 1 Experiment')")
    browser.until(f"{PLOTS} > 0")
    _close_assistant(browser)
    plot = "document.querySelector('.js-plotly-plot')"
    titles = browser.run(f"[...{plot}.querySelectorAll('.axis-title')].map(title => title.textContent)")
    values = browser.run(f"Object.fromEntries({plot}.data[0].dimensions.map(d => [d.label, [...d.values]]))")
    return {title: values[title] for title in titles}


def curves(browser: Browser, metric: str) -> dict[str, tuple[list[float], list[float]]]:
    """On the Compare page, press a metric's name in the table; returns what is drawn: (steps, values) by run."""
    link = f"[...document.querySelectorAll('a')].find(link => link.textContent === '{metric}')"
    # the table has the rows that are in sight: scroll it down until the metric's is
    shown = "[...document.querySelectorAll('a[href*=\"#/metric\"]')]"
    browser.until(f"!!{link} || ({shown}.slice(-1).forEach(last => last.scrollIntoView()), false)")
    browser.run(f"{link}.click()")
    browser.until(f"location.hash.startsWith('#/metric') && {PLOTS} > 0")
    time.sleep(2)
    return dict(browser.run("document.querySelector('.js-plotly-plot').data.map(d => [d.name, [[...d.x], [...d.y]]])"))


def _close_assistant(browser: Browser) -> None:
    """MLflow's assistant takes a quarter of the window."""
    close = "[...document.querySelectorAll('button')].find(b => /close/i.test(b.getAttribute('aria-label') || ''))"
    browser.run(f"{close} && {close}.click()")
    time.sleep(2)  # charts take the room


def copy_store(source: Path, folder: Path) -> str:
    """Copy an SQLite store, also one that is being written to, into ``folder``; the address of the copy."""
    if not source.is_file():
        raise UserError(f"{source}: no such file. Runs make it: thinner run")
    copy = folder / "mlflow.db"
    with (
        closing(sqlite3.connect(f"file:{quote(str(source.resolve()))}?mode=ro", uri=True)) as old,
        closing(sqlite3.connect(copy)) as new,
    ):
        old.backup(new)
    return f"sqlite:///{copy}"


def take(store: str, out: Path, folder: Path) -> list[Path]:
    """Take the pictures of this store's newest runs."""
    os.environ["MLFLOW_TRACKING_URI"] = store
    client, experiment = mlflow_client.connect()
    pipelines = client.search_runs(
        [experiment],
        "tags.stage = 'pipeline' and attributes.status = 'FINISHED'",
        order_by=["attributes.start_time DESC"],
        max_results=2,
    )
    if len(pipelines) < 2:
        raise UserError(
            f"{len(pipelines)} finished pipeline runs are in the record, two are compared. "
            "Change a number in params.yaml, then: thinner run"
        )
    tags = pipelines[0].data.tags
    stages = [tags[name] for stage in STAGES if (name := mlflow_client.tag_of("stage", stage)) in tags]
    with serving(store, folder) as url, Browser(folder, width=1400, height=1250) as browser:
        chosen = [run.info.run_id for run in pipelines]
        for title, values in compare(browser, url, experiment, chosen, only(chosen)).items():
            print(f"pipelines: {title}: {values}")
        # without the runs' times, and of the parameters those that differ: then the metrics are in the picture
        details = "[...document.querySelectorAll('[aria-expanded]')].find(e => e.textContent.trim() === 'Run details')"
        browser.run(f"{details}.click()")
        browser.run("document.querySelector('[role=switch]').click()")
        time.sleep(1)
        browser.screenshot(out / "compare.png")
        for title, values in compare(browser, url, experiment, stages, only(stages)).items():
            print(f"stages: {title}: {values}")
        for name, (steps, values) in curves(browser, "val/accuracy").items():
            print(f"val/accuracy of {name}: {len(steps)} points to step {steps[-1]}, the last {values[-1]:.4f}")
        browser.call(
            "Emulation.setDeviceMetricsOverride", width=1400, height=740, deviceScaleFactor=1, mobile=False
        )  # the page ends there
        browser.screenshot(out / "compare-stages.png")
    return [out / "compare.png", out / "compare-stages.png"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=home_root() / "mlflow.db", help="MLflow's SQLite file")
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="where the pictures go")
    given = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as folder:
            for path in take(copy_store(given.store, Path(folder)), given.out, Path(folder)):
                print(path)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
