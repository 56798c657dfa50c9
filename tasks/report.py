"""report: what was proven, and what the other stages wrote, as one HTML page and one Markdown table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import yaml

from tasks import lineage
from tasks.record.stage_run import flatten
from tasks.stage import Stage, run_stage
from thinner.config import load_params
from thinner.data.store import open_store
from thinner.errors import UserError
from thinner.evidence import shipping, statistics
from thinner.evidence.markdown import render_pull_request
from thinner.evidence.page import render_figures, render_html
from thinner.evidence.results import read_results
from thinner.measure import devices, operating
from thinner.runtimes import catalogue

OUTCOMES = ("proven", "refuted", "not shown")
# What runs of one params.yaml may differ in: threads are the machine's and change rounding only; the rest is read after
# evaluate, and of it this working copy's counts. run.device is not among them: claims about speed are about it.
MAY_DIFFER = ("run.seed", "run.threads", "claims", "report", "ship")
FEW = 3  # differences that a message names


def report(stage: Stage) -> None:
    verdicts = _judge(stage)
    for verdict in verdicts.values():
        stage.say(f"{verdict['outcome']}: {verdict['claim']}: {verdict['numbers']}")
    with stage.output("reports/claims.json") as path:
        path.write_text(json.dumps(verdicts, indent=2) + "\n", encoding="utf-8")
    store = open_store("data/prepared")
    results = read_results(
        Path("reports"),
        Path("data/evaluate"),
        images=store.images,
        classes=store.classes,
        data=store.info,
        params=stage.params.model_dump(mode="json"),
        verdicts=list(verdicts.values()),
        runs=_runs(stage),
    )
    with stage.output("reports/report.html") as page:
        page.write_text(render_html(results, stage.params.report.samples), encoding="utf-8")
    with stage.output("reports/results.md") as table:
        table.write_text(render_pull_request(results), encoding="utf-8")
    outcomes = [verdict["outcome"] for verdict in verdicts.values()]
    stage.record.metrics({f"claims/{o.replace(' ', '_')}": float(outcomes.count(o)) for o in OUTCOMES})
    stage.record.metrics(
        {
            f"device/{device.name}/{name}/latency_ms_b{batch}": float(np.median(samples))
            for device in results.devices.values()
            for batch, table in device.latency_ms.items()
            for name, samples in table.items()
        }
    )
    for name in ("claims.json", "report.html", "results.md"):
        stage.record.artifact(f"reports/{name}")
    stage.record.figures(render_figures(results))
    stage.record.table("claims", list(verdicts.values()))


def _runs(stage: Stage) -> dict[str, dict[str, Any] | None]:
    """What is on record of the runs that made what is reported, by stage, in the order of dvc.yaml.

    It is shown and decides nothing, so it is no dependency: a stage that runs again and makes the same does not make
    the page anew.
    """
    if stage.record.run_id is None:  # in a test, in a REPL
        return {}
    hashes = lineage.locked_hashes(Path.cwd())
    names = [
        name
        for stage_, entry in yaml.safe_load(Path("dvc.yaml").read_text())["stages"].items()
        for name in ([f"{stage_}@{each}" for each in _items(stage, entry)] if "foreach" in entry else [stage_])
        if name != stage.name
    ]
    found = stage.record.runs_of({name: hashes[name] for name in names if name in hashes})
    return {name: found.get(name) for name in names}


def _items(stage: Stage, entry: Mapping[str, Any]) -> list[str]:
    """What a stage is repeated for: what ``${prune_also}`` is in params.yaml."""
    found: Any = stage.params
    for word in entry["foreach"].removeprefix("${").removesuffix("}").split("."):
        found = getattr(found, word)
    return list(found)


def _judge(stage: Stage) -> dict[str, dict[str, Any]]:
    """The verdict on each of ``claims``, in order, by the number of the claim."""
    return judge_runs([Path()], stage.params.claims, stage.params.run.seed)


def judge_runs(roots: Sequence[Path], claims: Sequence[str], seed: int) -> dict[str, dict[str, Any]]:
    """The verdict on each of ``claims``, by its number, from the results of one or several working copies.

    Several have to be runs of the same params.yaml with different ``run.seed``. UserError where one has no results, two
    have the same seed, parameters differ (but MAY_DIFFER), or one was tested on other images.
    """
    runs, images = [], []
    parsed: list[statistics.Claim] = []
    for root in roots:
        try:
            metrics = shipping.read_metrics(root / "reports" / "metrics.json")
            parsed = parsed or statistics.parse_claims(claims, list(metrics), list(catalogue.RUNTIMES))
            timed = devices.read_devices(root / "reports") if len(roots) == 1 else {}  # of one run's weights
            unsure = {claim.candidate for claim in parsed if claim.kind == "answers"} if len(roots) == 1 else set()
            known = {name: row for name, row in operating.read_points(root / operating.FILE).items() if name in unsure}
            runs.append(gather(root / "data" / "evaluate", metrics, timed, known))
            with np.load(root / "data" / "evaluate" / "predictions.npz", allow_pickle=False) as file:
                images.append((file["index"], file["labels"]))
        except FileNotFoundError as error:
            raise UserError(f"{root}: no results here ({error.filename}). Make them: thinner run") from None
    if len(roots) > 1:
        _refuse_other_runs(roots)
    for root, tested in zip(roots, images, strict=True):
        if not all(np.array_equal(mine, first) for mine, first in zip(tested, images[0], strict=True)):
            raise UserError(
                f"{root}: was tested on other images than {roots[0]}, so nothing can be paired. "
                "Give data.test a split of its own that no seed changes: null, or a folder `test`"
            )
    unfit = {name for root in roots for name in shipping.unfit(shipping.read_targets(root / "reports"))}
    evidence = statistics.over_seeds(runs)
    several = len(roots) > 1
    unjudged = {
        claim: _not_judged(claim, several)
        for claim in parsed
        if (claim.kind == "answers" and several) or (claim.device and not statistics.is_timed(claim, evidence))
    }
    verdicts = iter(statistics.judge([claim for claim in parsed if claim not in unjudged], evidence, seed=seed))
    found = {}
    for number, claim in enumerate(parsed, start=1):
        if claim in unjudged:
            found[f"claim_{number}"] = unjudged[claim]
            continue
        verdict = next(verdicts)
        estimate = verdict.estimate
        found[f"claim_{number}"] = {
            "claim": verdict.claim.text,
            "outcome": verdict.outcome,
            "kind": verdict.claim.kind,
            "effect": estimate.effect,
            "low": estimate.low,
            "high": estimate.high,
            "asked": verdict.threshold,
            "p_value": verdict.p_value,
            "count": estimate.count,
            "seeds": estimate.seeds,
            "method": estimate.method,
            "numbers": verdict.numbers,
        }
        if named := [name for name in (claim.candidate, claim.reference) if name in unfit]:
            found[f"claim_{number}"] |= {
                "outcome": "not shown",
                "numbers": f"no rung of the ladder holds for {named[0]}: {verdict.numbers}",
            }
    return found


def _not_judged(claim: statistics.Claim, several: bool) -> dict[str, Any]:
    """The verdict on a claim about a device that has not timed the present networks: training them again makes every
    such time one of other weights, and is no reason to stop. And on one about points that each seed chooses anew."""
    numbers = (
        f"{claim.device} has not timed these weights at batch {claim.batch}: thinner bundle --bench, and then "
        f"thinner device add {claim.device} bench.csv"
    )
    if several:
        what = f"what {claim.device} has timed" if claim.device else "an operating point"
        numbers = f"{what} is of one seed's weights, and these are several seeds'. thinner run judges it"
    empty = dict.fromkeys(("effect", "low", "high", "p_value"))
    return {
        "claim": claim.text,
        "outcome": "not shown",
        "kind": claim.kind,
        **empty,
        "asked": claim.amount,
        "count": 0,
        "seeds": 1,
        "method": "",
        "numbers": numbers,
    }


def _refuse_other_runs(roots: Sequence[Path]) -> None:
    """UserError unless the params.yaml of these working copies differ in the seed, and in nothing that matters."""
    first = roots[0]
    wanted: dict[str, Any] = {}
    seeds: dict[int, Path] = {}
    for root in roots:
        params = load_params(root / "params.yaml")
        if params.run.seed in seeds:
            raise UserError(
                f"{seeds[params.run.seed]} and {root}: both have run.seed {params.run.seed}. One seed counts once: "
                "leave one of them out, or set another run.seed in its params.yaml and run it again: thinner run"
            )
        seeds[params.run.seed] = root
        values = {
            key: value
            for key, value in flatten(params.model_dump(mode="json")).items()
            if key not in MAY_DIFFER and key.partition(".")[0] not in MAY_DIFFER
        }
        wanted = wanted or values
        keys = [key for key in {**wanted, **values} if values.get(key) != wanted.get(key)]
        if keys:
            named = [f"{key} is {wanted.get(key)} and {values.get(key)}" for key in keys[:FEW]]
            more = f"; and {len(keys) - FEW} more" if len(keys) > FEW else ""
            raise UserError(
                f"{first} and {root}: their params.yaml differ in more than the seed: {'; '.join(named)}{more}. "
                "Set the same values in both and run again: thinner run"
            )


def gather(
    evaluated: Path,
    metrics: dict[str, dict[str, Any]],
    timed: Mapping[str, devices.Device] | None = None,
    points: Mapping[str, Sequence[operating.Point]] | None = None,
) -> statistics.Evidence:
    """What evaluate measured, as the tests want it.

    Times are kept by runtime, where ``distill`` in onnxruntime is what tables call ``distill_onnx``, in openvino
    ``distill_openvino``; and by device.
    """
    with np.load(evaluated / "predictions.npz", allow_pickle=False) as file:
        labels = file["labels"]
        predictions = {name: file[f"predictions.{name}"] for name in metrics}
        odds = {name: operating.log_odds(file[f"logits.{name}"]) for name in points or {}}
    times: dict[tuple[str, int], dict[str, Any]] = {}
    for key, rows in pd.read_csv(evaluated / "latency.csv").groupby(["candidate", "batch"]):
        name, batch = cast(tuple[str, int], key)
        runtime = metrics[name]["runtime"]
        by_name = times.setdefault((runtime, int(batch)), {})
        by_name[name] = rows.sort_values("round")["latency_ms"].to_numpy()
        if catalogue.exported(runtime, network := shipping.network_of(name)) == name:
            by_name[network] = by_name[name]
    for device in (timed or {}).values():
        for batch, of_names in device.latency_ms.items():
            times[device.name, batch] = dict(of_names)
    return statistics.Evidence(
        right={name: predicted == labels for name, predicted in predictions.items()},
        predictions=predictions,
        sizes={
            name: {"parameters": found["params"], "macs": found["macs"], "bytes": found["file_bytes"]}
            for name, found in metrics.items()
        },
        latency_ms=times,
        answered={
            name: {p.at_least: odds[name] >= (np.inf if p.log_odds is None else p.log_odds) for p in row}
            for name, row in (points or {}).items()
        },
        labels=labels,
    )


if __name__ == "__main__":
    run_stage("report", report)
