"""The run above the stages' runs, one per run of the flow that had something to do: its stages, all numbers.

    pipeline run    this
      distill       one per stage that ran: stage_run
      prune (test)  one per candidate that evaluate measured, with its model: candidates

For a stage that was up to date it points to the run that made the result (tag `stage.NAME`), which is found by the hash
of the stage's inputs (tag `dvc.stage_hash`).

`python -m tasks.record.pipeline_run hold` is how a flow, which does not import MLflow, opens and closes it
(flows/record.py).
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.environment import FLOW, UNSENT, set_environment
from tasks.record import mlflow_client, stage_run, unsent
from thinner.errors import DamagedError, UserError
from thinner.evidence import shipping

if TYPE_CHECKING:
    from mlflow import MlflowClient


@mlflow_client.or_here
def open_run(name: str | None = None) -> str:
    """Open the run above the stages' runs (a study's, or of claims over seeds, where it has a ``name``); also mark what
    died without saying so. Returns its id."""
    client, experiment, _ = mlflow_client.connect_or_keep()
    with mlflow_client.reachable():
        mlflow_client.mark_killed(client, experiment)
        kind = "study" if name else "pipeline"
        name = datetime.now().strftime(f"{name or kind} %Y-%m-%d %H:%M:%S")
        # The process to watch is the flow, not this helper, which is gone in a second.
        tags = {"stage": kind, **mlflow_client.origin()}
        if flow := os.environ.get(FLOW):
            tags["pid"], tags["pid.started"] = flow.split(":")
        return str(client.create_run(experiment, run_name=name, tags=tags).info.run_id)


@mlflow_client.or_here
def close_run(run_id: str, status: str, stages: Mapping[str, Mapping[str, str]]) -> None:
    """`stages` maps each stage to `state` (what the flow called it) and `hash` (its dvc.stage_hash)."""
    client, experiment, run_id, kept = mlflow_client.where_it_goes_on(run_id)
    recorder = stage_run.Recorder(client, run_id, experiment, kept=kept)
    with mlflow_client.reachable():  # a stage that did not end within its grace could not end its run either
        mlflow_client.mark_killed(client, experiment)
    lines = ["| stage | state | run | took | energy |", "|---|---|---|---:|---:|"]
    with mlflow_client.reachable():
        for name, stage in stages.items():
            made_by = mlflow_client.find_run(client, experiment, name, stage["hash"]) if stage.get("hash") else None
            if made_by:
                recorder.tags({mlflow_client.tag_of("stage", name): made_by})
            if made_by and name == "report" and status == "FINISHED":
                recorder.figures_of(made_by)
            link = f"[{made_by[:8]}](#/experiments/{experiment}/runs/{made_by})" if made_by else "not recorded"
            lines.append(f"| {name} | {stage['state']} | {link} | {_cost(client, made_by)} |")
    targets = shipping.read_targets(Path("reports")) if status == "FINISHED" else []
    first = [part for line in shipping.target_lines(targets) for part in (f"**{line}**", "")]
    recorder.tags({"mlflow.note.content": "\n".join([*first, *lines])})
    if status == "FINISHED":
        _record_results(recorder)
        for file in map(
            Path,
            (
                "reports/metrics.json",
                "reports/claims.json",
                "reports/evaluate",
                "reports/report.html",
                "reports/results.md",
                "dvc.lock",
                "params.yaml",
            ),
        ):
            if file.exists():
                recorder.artifact(file, file.name if file.is_dir() else None)
    recorder.end(status)


@mlflow_client.or_here
def _end(run_id: str, status: str) -> None:
    client, _, run_id, _ = mlflow_client.where_it_goes_on(run_id)
    with mlflow_client.reachable():
        client.set_terminated(run_id, status)


@mlflow_client.or_here
def _mend() -> None:
    client, experiment, _ = mlflow_client.connect_or_keep()
    with mlflow_client.reachable():
        mlflow_client.mark_killed(client, experiment)


def _cost(client: MlflowClient, run_id: str | None) -> str:
    """How long the run took that made the result, whenever that was, and what energy, where the machine tells."""
    if run_id is None:
        return " | "
    run = mlflow_client.took(client, run_id)
    joules = run["joules"]
    return f"{run['seconds']:.0f} s | {f'{joules:.0f} J' if joules is not None else 'not told'}"


def _record_results(recorder: stage_run.Recorder) -> None:
    """What a pipeline run is compared by: choices, numbers, verdicts, and what was named for each test image."""
    from thinner.config import load_params

    with contextlib.suppress(FileNotFoundError, DamagedError):
        params = load_params()
        recorder.params(params.model_dump(mode="json"))
        measured = shipping.read_metrics(Path("reports/metrics.json"))
        recorder.metrics(candidate_metrics(measured, params.ship.candidate))
        recorder.tags({"ship.candidate": params.ship.candidate})
        for target in shipping.read_targets(Path("reports")):
            recorder.metrics({f"{target['candidate']}/target_met": float(target["met"])})
        recorder.table("candidates", [{"candidate": name, **row} for name, row in measured.items()])
    with contextlib.suppress(FileNotFoundError, DamagedError):
        verdicts = list(shipping.read_verdicts(Path("reports/claims.json")).values())
        # the sentence is the value: a name may not have a "%" in it
        recorder.tags(
            {f"claim.{number}": f"{v['outcome']}: {v['claim']}" for number, v in enumerate(verdicts, start=1)}
        )
        recorder.metrics({"claims/proven": float(sum(v["outcome"] == "proven" for v in verdicts))})
        recorder.table("claims", verdicts)
    with contextlib.suppress(FileNotFoundError):
        recorder.predictions()


def candidate_metrics(report: Mapping[str, Any], shipped: str) -> dict[str, float]:
    """`test/NAME/KEY` of every candidate, as evaluate's run has them, and `test/KEY` of the one that is shipped, as
    the candidates' own runs have them. What is not a number stays out."""
    numbers = {
        name: {key: float(value) for key, value in row.items() if isinstance(value, int | float)}
        for name, row in report.items()
    }
    # first those of the shipped one: MLflow's compare page begins with the first that it finds
    flat = {f"test/{key}": value for key, value in numbers.get(shipped, {}).items()}
    return flat | {f"test/{name}/{key}": value for name, row in numbers.items() for key, value in row.items()}


def _bring_to_registry() -> None:
    """The network that came out becomes the challenger. If that fails, `thinner promote` does it later."""
    from tasks.record import registry
    from thinner.config import load_params

    try:
        name, version = registry.register(Path.cwd(), load_params())
        print(f"{name} version {version} is in MLflow's model registry. To ship it: thinner promote")
    except UserError as error:
        print(f"not brought to the model registry: {error}")


def _send_missed() -> None:
    if unsent.is_any():
        with contextlib.suppress(UserError):  # it has been said that MLflow does not answer; the next run tries
            print(f"{mlflow_client.sync()} runs that MLflow had missed are in it now")


def _close(run_id: str) -> None:
    """As standard input says once the stages have ended; without a word whoever asked has died, and the next run marks
    it."""
    if not (words := sys.stdin.read()):
        return
    told = json.loads(words)
    status, stages = told["status"], told.get("stages")
    if stages is None:
        _end(run_id, status)
        return
    _send_missed()  # before: the summary tells of the stages' runs
    close_run(run_id, status, stages)
    _send_missed()
    if status == "FINISHED" and "report" in stages:
        _bring_to_registry()


def main(arguments: list[str]) -> int:
    """`hold` waits for a line with a name or null (all is JSON), opens the run of a study, or of the pipeline, prints
    whether it is kept here, its id and what was said on the way, and waits to close it: then it reads status and stages
    from standard input, and brings what was made to the model registry; without stages it only ends the run.
    `close ID` is the second half of that. `mend` ends those whose process is gone.
    """
    set_environment()
    try:
        if arguments[0] == "hold":
            said = io.StringIO()
            if mlflow_client.tracking_uri().startswith("sqlite"):  # which takes seconds
                with contextlib.suppress(UserError), contextlib.redirect_stderr(said):
                    mlflow_client.connect()
            if not (line := sys.stdin.readline()):  # whoever asked has ended without a run
                return 0
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
                run_id = open_run(json.loads(line))
            print(json.dumps([os.environ.get(UNSENT) == "yes", run_id, said.getvalue().strip()]), flush=True)
            _close(run_id)
        elif arguments[0] == "mend":
            _mend()
        else:
            _close(arguments[1])
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
