"""thinner.evidence.results: what stages wrote is read back, or said to be damaged."""

import hashlib
import json
import subprocess
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.measured import CLASSES, ENVIRONMENT, INTEGRITY, with_pruned_teacher, write_inputs
from thinner.errors import DamagedError, UserError
from thinner.evidence.page import render_html
from thinner.evidence.results import Results, _md5, find_commit, read_environment, read_metrics, read_results


def test_evidence_is_read_back_from_the_files_that_stages_write(results: Results, tmp_path: Path) -> None:
    results = with_pruned_teacher(results)
    reports, evaluated = write_inputs(tmp_path, results)
    read = read_results(
        reports,
        evaluated,
        images=results.images,
        classes=CLASSES,
        data=results.data,
        params=results.params,
        verdicts=results.verdicts,
    )
    assert list(read.metrics) == [
        "finetune",
        "distill",
        "prune",
        "prune_finetune",
        "prune_onnx",
    ]  # in the order of the pipeline, not of the alphabet
    assert read.hashes == {"reports/metrics.json": hashlib.md5((reports / "metrics.json").read_bytes()).hexdigest()}
    assert render_html(replace(read, hashes=results.hashes), 3) == render_html(results, 3)


def test_the_hash_by_which_the_commit_is_found_is_dvcs(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    lock = subprocess.run(["git", "show", "HEAD:dvc.lock"], cwd=root, capture_output=True, text=True, check=True).stdout
    outs = {out["path"]: out["md5"] for stage in yaml.safe_load(lock)["stages"].values() for out in stage["outs"]}
    text = subprocess.run(
        ["git", "show", "HEAD:reports/metrics.json"], cwd=root, capture_output=True, check=True
    ).stdout
    path = tmp_path / "metrics.json"
    path.write_bytes(text)
    assert _md5(path) == outs["reports/metrics.json"]
    # and the command on the page names a commit in which dvc.lock has it
    words = find_commit(outs["reports/metrics.json"]).split()
    commit = subprocess.run(words, cwd=root, capture_output=True, text=True, check=True).stdout.strip()
    assert len(commit) == 40
    there = subprocess.run(
        ["git", "show", f"{commit}:dvc.lock"], cwd=root, capture_output=True, text=True, check=True
    ).stdout
    assert outs["reports/metrics.json"] in there


def test_missing_metrics_name_the_command_that_makes_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"metrics\.json: no such file\. Make it: thinner run"):
        read_metrics(tmp_path / "metrics.json")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "latency_repeats",
            "many",
            r"environment\.json: has latency_repeats: 'many'\. Make it again: dvc repro evaluate",
        ),
        ("libraries", {"torch": 2}, r"environment\.json: has libraries"),
        ("accelerator", 1, r"environment\.json: has accelerator"),
    ],
)
def test_an_environment_that_somebody_changed_is_refused(tmp_path: Path, key: str, value: Any, message: str) -> None:
    path = tmp_path / "environment.json"
    path.write_text(json.dumps(asdict(ENVIRONMENT) | {"device": "cpu"}))
    assert read_environment(path) == ENVIRONMENT
    path.write_text(json.dumps(asdict(ENVIRONMENT) | {key: value}))
    with pytest.raises(DamagedError, match=message):
        read_environment(path)
    path.write_text(json.dumps({k: v for k, v in asdict(ENVIRONMENT).items() if k != key}))
    with pytest.raises(DamagedError, match=f"lacks {key}"):
        read_environment(path)


def test_checks_of_the_data_that_somebody_changed_are_refused(results: Results, tmp_path: Path) -> None:
    reports, evaluated = write_inputs(tmp_path, results)
    (reports / "prepare.json").write_text(json.dumps({**INTEGRITY, "leakage": {"count": 3}}))
    with pytest.raises(DamagedError, match=r"prepare\.json: has leakage: .*\. Make it again: dvc repro prepare"):
        read_results(
            reports, evaluated, images=results.images, classes=CLASSES, data=results.data, params=results.params
        )
