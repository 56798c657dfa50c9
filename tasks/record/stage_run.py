"""The run of a stage: parameters, metrics per epoch, data set, outputs, tags.

A stage that was up to date has no new run. One that a plain `dvc repro` ran has a run without a parent.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import lockfile
from tasks.environment import PARENT
from tasks.record import candidates, mlflow_client

if TYPE_CHECKING:
    from mlflow import MlflowClient

FLUSH_SECONDS = 2.0  # one log_batch in two seconds costs nothing; one log_metric a step costs 5 ms each
FIGURES = "figures/all.html"
BATCH = 1000  # MLflow's own limit for metrics in one call
LAST_SECONDS = 30  # that the end of a run waits for what is unsent


def _call(method: str, *arguments: Any, **named: Any) -> Callable[[MlflowClient, str], object]:
    """``client.method(run_id, ...)``, for when its turn comes."""
    return lambda client, run_id: getattr(client, method)(run_id, *arguments, **named)


class Recorder:
    """Writes one MLflow run. Without one (`Recorder()`) every method does nothing: stages need not ask.

    Metrics, parameters and tags are handed to a thread and sent in batches, so that a slow server never holds
    up training. When the server goes away in the middle, that is said once, and the rest is kept here until it can be
    sent (tasks/record/unsent.py).
    """

    def __init__(
        self,
        client: MlflowClient | None = None,
        run_id: str | None = None,
        experiment: str = "",
        stage_hash: str = "",
        kept: bool = False,
    ) -> None:
        self.run_id = run_id
        self._client = client
        self._experiment, self._stage_hash = experiment, stage_hash
        self._joules = read_joules()
        self._metrics: list[tuple[str, float, int, int]] = []  # key, value, milliseconds since 1970, step
        self._calls: queue.SimpleQueue[Callable[[MlflowClient, str], object]] = queue.SimpleQueue()
        self._guard, self._switch = threading.Lock(), threading.Lock()
        self._kept, self._said = kept, set[str]()
        self._wake = threading.Event()
        self._ending = False
        self._thread: threading.Thread | None = None
        if client is not None:
            self._thread = threading.Thread(target=self._send_until_end, name="mlflow", daemon=True)
            self._thread.start()

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Numbers of one moment; `step` in the unit that the stage counts in."""
        if self._client is None:
            return
        now = int(time.time() * 1000)
        # MLflow's Compare page begins with the first that all runs have: a learning curve's accuracy, not its rate
        ordered = sorted(values.items(), key=lambda item: not item[0].startswith("val/"))
        with self._guard:
            self._metrics += [(name, float(value), now, step or 0) for name, value in ordered]

    def params(self, values: Mapping[str, Any]) -> None:
        """Settings; nested mappings become dotted names. The stage's section is recorded without being asked
        for."""
        if self._client is None:
            return
        from mlflow.entities import Param

        flat = [Param(name, str(value)[:6000]) for name, value in flatten(values).items()]
        for start in range(0, len(flat), 100):  # MLflow's own limit in one call
            part = flat[start : start + 100]
            self._later(_call("log_batch", params=part))

    def tags(self, values: Mapping[str, str]) -> None:
        for name, value in values.items():
            self._later(_call("set_tag", name, str(value)))

    def dataset(self, name: str, sha256: str, path: Path | str, counts: Mapping[str, int]) -> None:
        """The images that the stage worked with. `sha256` is the tag by which runs on the same data are
        found."""
        self.tags({"data.sha256": sha256})
        self._later(lambda client, run_id: mlflow_client.log_dataset(client, run_id, name, sha256, Path(path), counts))

    def artifact(self, path: Path | str, folder: str | None = None) -> None:
        """Copy a file, or a folder with all in it, into the record. Done before it returns: `path` may go
        after."""
        if self._client is None or self.run_id is None:
            return
        log = "log_artifacts" if Path(path).is_dir() else "log_artifact"
        self._do(_call(log, str(path), folder))

    def candidates(self) -> None:
        """A run and a model for each candidate, from the files that evaluate has written."""
        if self._client is None or self.run_id is None:
            return

        parent = os.environ.get(PARENT) or self.run_id
        try:
            candidates.record(self._client, self._experiment, self._stage_hash, parent)
        except Exception as error:  # noqa: BLE001 - as above; the stage's own run may still be written
            where, why = mlflow_client.shown_uri(), mlflow_client.first_line(error)
            print(
                f"warning: the candidates are not in MLflow at {where} ({why}). "
                "The stage goes on; `thinner promote` records what it ships.",
                file=sys.stderr,
                flush=True,
            )

    def predictions(self) -> None:
        """What every candidate named for each test image, small; and which images these were."""
        if self._client is None or self.run_id is None:
            return

        found = candidates.read_predictions()
        self._do(lambda client, run_id: candidates.log_predictions(client, run_id, found))
        self.tags({candidates.TEST: candidates.test_digest()})

    def figures(self, figures: Mapping[str, Any]) -> None:
        """Plotly figures as a page that MLflow's UI shows, `figures/all.html`, and each as `figures/NAME.json` for
        `plotly.io.from_json`. One page, because the library is in it, five megabytes: it needs no network."""
        if self._client is None or self.run_id is None or not figures:
            return
        page = ["<!doctype html><meta charset='utf-8'><title>Figures</title><body style='font-family: sans-serif'>"]
        texts = {}
        for number, (name, figure) in enumerate(figures.items()):
            texts[f"figures/{name}.json"] = figure.to_json()
            page.append(f"<h2>{name}</h2>")
            page.append(figure.to_html(full_html=False, include_plotlyjs=number == 0, default_height="450px"))
        for file, text in {**texts, FIGURES: "\n".join(page)}.items():
            self._do(_call("log_text", text, file))

    def figures_of(self, run_id: str) -> None:
        """The figures that another run has, as far as it has any: a pipeline run shows those of its report."""

        def copy(client: MlflowClient, own: str) -> None:
            with tempfile.TemporaryDirectory() as folder:
                if client.list_artifacts(run_id, "figures"):
                    client.log_artifacts(own, client.download_artifacts(run_id, "figures", folder), "figures")

        self._do(copy)

    def runs_of(self, stages: Mapping[str, str]) -> dict[str, dict[str, Any]]:
        """By stage, `took` of the newest run that made its result; `stages` maps each to the hash of its inputs. One
        that was made elsewhere is left out. To be shown to people: nothing is decided by it."""
        found: dict[str, dict[str, Any]] = {}

        def look(client: MlflowClient, _: str) -> None:
            for name, stage_hash in stages.items():
                if run_id := mlflow_client.find_run(client, self._experiment, name, stage_hash):
                    found[name] = mlflow_client.took(client, run_id)

        self._do(look)
        return found

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows with equal keys as `tables/NAME.json`: MLflow's UI shows it as a table, and lays runs side by side."""
        if self._client is None or self.run_id is None or not rows:
            return
        columns = {key: [row.get(key) for row in rows] for key in rows[0]}
        self._do(_call("log_table", columns, f"tables/{name}.json"))

    def end(self, status: str) -> None:
        """FINISHED, FAILED or KILLED. Waits for what is unsent, at most `LAST_SECONDS`; then it says what is lost."""
        self.metrics(joules_since(self._joules))
        if self._thread is not None:
            self._ending = True
            self._wake.set()
            self._thread.join(timeout=LAST_SECONDS)
            if self._thread.is_alive():
                self._warn(
                    f"MLflow at {mlflow_client.shown_uri()} is slow: what run {self.run_id} had not sent within "
                    f"{LAST_SECONDS} s of its end is lost to the record. The stage's own files have it all"
                )
        self._do(_call("set_terminated", status))

    def _later(self, call: Callable[[MlflowClient, str], object]) -> None:
        if self._client is not None:
            self._calls.put(call)

    def _send_until_end(self) -> None:
        while not self._ending:
            self._wake.wait(FLUSH_SECONDS)
            self._send()
        self._send()

    def _send(self) -> None:
        from mlflow.entities import Metric

        with self._guard:
            waiting, self._metrics = self._metrics, []
        while True:
            try:
                call = self._calls.get_nowait()
            except queue.Empty:
                break
            self._do(call)
        for start in range(0, len(waiting), BATCH):
            some = [Metric(*metric) for metric in waiting[start : start + BATCH]]
            self._do(_call("log_batch", metrics=some))

    def _do(self, call: Callable[[MlflowClient, str], object]) -> None:
        """Whatever a broken record raises, hours of training must survive it."""
        for _ in range(2):  # there, and if that is gone, here
            with self._switch:
                client, run_id = self._client, self.run_id
            if client is None or run_id is None:
                return
            try:
                call(client, run_id)
            except Exception as error:  # noqa: BLE001 - as above
                if mlflow_client.is_gone(error):
                    self._go_on_here(client, error)
                    continue
                self._warn(f"this could not be recorded: {mlflow_client.first_line(error)}. The stage goes on")
            return

    def _go_on_here(self, gone: MlflowClient, error: Exception) -> None:
        with self._switch:
            if self._client is not gone:  # the other thread was faster
                return
            if self._kept or self.run_id is None:
                self._client = None
                self._warn(f"nothing more is recorded ({mlflow_client.first_line(error)}). The stage goes on")
                return
            gone_words = f"MLflow at {mlflow_client.shown_uri()} no longer answers ({mlflow_client.first_line(error)})"
            try:
                self._client, self._experiment, self.run_id = mlflow_client.continued(self.run_id)
                self._kept = True
                self._warn(f"{gone_words}. {mlflow_client.KEPT_HERE}")
            except Exception as other:  # noqa: BLE001 - as above
                self._client = None
                self._warn(
                    f"{gone_words}, and the rest cannot be kept here "
                    f"({mlflow_client.first_line(other)}). The stage goes on; it is not recorded"
                )

    def _warn(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            print(f"warning: {text}", file=sys.stderr, flush=True)


@mlflow_client.or_here
def start(name: str, section: Mapping[str, Any], stage_hash: str, upstream: Mapping[str, str], device: str) -> Recorder:
    """Open a stage's run, below the flow's if there is one (variable THINNER_PARENT_RUN_ID).

    `upstream` maps each upstream stage to its stage hash; their runs become tags `upstream.NAME`.

    Where MLflow does not answer, the run is kept here, and that is said.
    """
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME, MLFLOW_RUN_NOTE

    lockfile.keep(Path.cwd())  # also of runs by `dvc repro` alone
    client, experiment, kept = mlflow_client.connect_or_keep()
    with mlflow_client.reachable():
        parent = os.environ.get(PARENT)
        shown, variant = mlflow_client.name_and_tags(name)
        tags = {
            MLFLOW_RUN_NAME: shown,
            "stage": name,
            "dvc.stage_hash": stage_hash,
            "device": device,
            **variant,
            **mlflow_client.origin(),
        }
        if words := description():
            tags[MLFLOW_RUN_NOTE] = words
        if parent:
            tags[MLFLOW_PARENT_RUN_ID] = parent
        for stage, upstream_hash in upstream.items():
            made_by = mlflow_client.find_run(client, experiment, stage, upstream_hash)
            if made_by:
                tags[mlflow_client.tag_of("upstream", stage)] = made_by
        run = client.create_run(experiment, run_name=shown, tags=tags)
    recorder = Recorder(client, run.info.run_id, experiment, stage_hash, kept)
    recorder.params(section)
    return recorder


def description() -> str:
    """What the stage does, in the words with which its program's file begins."""
    text = getattr(sys.modules["__main__"], "__doc__", None) or ""
    return " ".join(text.split("\n\n")[0].split())


POWER = Path("/sys/class/powercap")  # Linux: counters of the energy that each processor has used, if they may be read


def read_joules(folder: Path | None = None) -> dict[Path, tuple[float, float]]:
    """Per processor: what its counter shows, and where it starts anew, in joules. Empty where nothing tells."""
    found = {}
    for zone in sorted((folder or POWER).glob("intel-rapl:?")):  # whole processors; "intel-rapl:0:0" is a part of one
        with contextlib.suppress(OSError, ValueError):  # since 2020 most systems let only root read them
            now, turn = ((zone / name).read_text() for name in ("energy_uj", "max_energy_range_uj"))
            found[zone] = (int(now) / 1e6, int(turn) / 1e6)
    return found


def joules_since(before: Mapping[Path, tuple[float, float]]) -> dict[str, float]:
    """What the processors have used since, with whatever else ran on them; {} where nothing tells."""
    if not before:
        return {}
    after = read_joules(next(iter(before)).parent)
    used = [(after[zone][0] - joules) % turn for zone, (joules, turn) in before.items() if zone in after]
    return {"system/energy_joules": sum(used)} if used else {}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"training": {"lr": 1}}` -> `{"training.lr": 1}`; lists stay whole."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
