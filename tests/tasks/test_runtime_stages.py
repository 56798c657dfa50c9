"""A runtime goes through export, evaluate and claims; and a new one costs one file and its row."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.evaluate import evaluate
from tasks.export import export
from tasks.report import judge_runs, report
from tasks.stage import Stage
from tests.tasks import test_evaluate
from tests.tasks.test_evaluate import SMALL, read_csv
from tests.test_docs import fences
from thinner import config, layout
from thinner.evidence.statistics import ClaimError
from thinner.runtimes import catalogue

networks = test_evaluate.finished  # a folder in which networks and their exports lie

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = [name for name, one in catalogue.RUNTIMES.items() if one.optional]

PROGRAM = """
import json
from pathlib import Path

import torch
import yaml

from tasks.evaluate import evaluate
from tasks.export import export
from tasks.report import judge_runs
from tasks.stage import Stage
from tests.tasks.test_evaluate import CLASSES, PREPROCESSING, write_store
from thinner.networks import checkpoint, models
from thinner.networks.spec import NetworkSpec
from thinner import layout
from thinner.config import load_params

raw = yaml.safe_load(Path("params.yaml").read_text())
raw["export"] |= {"formats": ["onnx", "reference"], "calibration_images": 6}
raw["evaluate"] |= {"latency_batches": [1, 4], "latency_repeats": 10, "corruptions": False}
raw["quantize"]["rungs"] = []
raw["claims"] = ["prune is faster than distill at batch 4 in reference", "prune_reference agrees with prune on 80 % of images"]
raw["run"] |= {"device": "cpu", "threads": 1}
Path("params.yaml").write_text(yaml.safe_dump(raw))
params = load_params()
write_store(Path("data/prepared"))
for seed, name in enumerate(("finetune", "scratch", "distill", "small", "prune")):
    torch.manual_seed(seed)
    network = NetworkSpec("resnet8", classes=3, channels=1, width=4, stem_stride=1)
    spec = {"stage": name, "network": network.as_json(), "classes": list(CLASSES), "preprocessing": PREPROCESSING.as_json(), "parents": {},
            "data_sha256": "0" * 64}
    checkpoint.save(f"data/{name}", models.create(network), spec)
export(Stage("export", params))
evaluate(Stage("evaluate", params))
print(json.dumps(judge_runs([Path()], params.claims, 0)))
"""


@pytest.mark.integration
def test_a_runtime_of_ones_own_is_one_file_and_its_row(tmp_path: Path) -> None:
    """In a copy of the packages: exported, measured in the same rounds, and judged, by no other change."""
    for package in ("thinner", "tasks", "flows", "tests"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    (example,) = [block for block in fences(ROOT / "docs" / "extend.md", "python") if "RUNTIME = " in block]
    (tmp_path / "thinner" / "runtimes" / "reference.py").write_text(example)
    rows = tmp_path / "thinner" / "runtimes" / "catalogue.py"
    text = rows.read_text()
    text = text.replace("from thinner.runtimes import ", "from thinner.runtimes import reference, ")
    rows.write_text(
        text.replace("        onnxruntime.RUNTIME,\n", "        onnxruntime.RUNTIME,\n        reference.RUNTIME,\n")
    )
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "program.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    faster, agrees = json.loads(done.stdout.splitlines()[-1]).values()
    assert faster["outcome"] in ("proven", "refuted", "not shown") and faster["count"] == 10
    assert agrees["outcome"] == "proven" and agrees["effect"] == 1.0
    measured = json.loads((tmp_path / "reports" / "metrics.json").read_text())
    row = measured["prune_reference"]
    assert row["runtime"] == "reference" and row["accuracy"] == measured["prune"]["accuracy"]
    assert row["file_bytes"] == (tmp_path / "data/export/prune_reference/model.ref").stat().st_size
    assert row["peak_memory_bytes"] > 0
    environment = json.loads((tmp_path / "reports/evaluate/environment.json").read_text())
    assert len(environment["weights_sha256"]["prune_reference"]) == 64
    rounds = [line["candidate"] for line in read_csv(tmp_path / "data/evaluate/latency.csv")]
    assert rounds.count("prune_reference") == rounds.count("prune_onnx") == 2 * 10


@pytest.mark.parametrize("runtime", EXTRAS)
@pytest.mark.integration
def test_an_optional_runtime_goes_through_export_evaluate_and_claims(
    networks: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    runtime: str,
) -> None:
    formats = list(catalogue.RUNTIMES[runtime].formats)
    if line := catalogue.missing(formats):
        pytest.skip(line)
    shutil.copytree(networks / "data", tmp_path / "data")
    shutil.copytree(networks / "reports", tmp_path / "reports")
    monkeypatch.chdir(tmp_path)
    claims = [
        f"prune is faster than distill at batch 4 in {runtime}",
        f"prune_{runtime} agrees with prune on 80 % of images",
    ]
    section = SMALL.export.model_copy(update={"formats": ["onnx", *formats]})
    params = SMALL.model_copy(update={"export": section, "claims": claims})
    export(Stage("export", params))
    evaluate(Stage("evaluate", params))
    measured = json.loads(Path("reports/metrics.json").read_text())
    for name in ("distill", "prune"):
        row, onnx = measured[f"{name}_{runtime}"], measured[f"{name}_onnx"]
        assert row["runtime"] == runtime and row["device"] == "cpu"
        assert {**row, "runtime": 0}.keys() == onnx.keys()
        for key in ("accuracy", "agreement", "macs", "params", "corruption_accuracy"):
            assert row[key] == onnx[key]
        for key in ("nll", "temperature", "aurc"):
            assert row[key] == pytest.approx(onnx[key], rel=1e-3)
        files = [Path("data/export", f"{name}_{runtime}", file) for file in catalogue.RUNTIMES[runtime].files]
        assert row["file_bytes"] == sum(file.stat().st_size for file in files)
        assert 0 < row["peak_memory_bytes"] < 100e6
    faster, agrees = judge_runs([Path()], claims, 0).values()
    assert faster["count"] == 10 and agrees["outcome"] == "proven"
    report(Stage("report", params))
    words = catalogue.RUNTIMES[runtime].words
    for page in (Path("reports/report.html"), Path("reports/results.md")):
        assert f"prune_{runtime}" in page.read_text() and words in page.read_text()
    libraries = json.loads(Path("reports/evaluate/environment.json").read_text())["libraries"]
    assert runtime in libraries
    with pytest.raises(ClaimError, match=r"unknown runtime\. Did you mean"):
        judge_runs([Path()], [f"prune is faster than distill at batch 4 in {runtime}s"], 0)


def test_all_formats_are_candidates_by_their_names_and_know_their_runtime() -> None:
    section = SMALL.export.model_copy(update={"formats": list(catalogue.FORMATS)})
    params = SMALL.model_copy(update={"export": section})
    for format_, one in catalogue.OF.items():
        assert f"prune_{format_}" in layout.candidate_names(params)
        assert layout.runtime_of(params, f"prune_{format_}") == one.name
        assert layout.folder_of(params, f"prune_{format_}") == f"data/export/prune_{format_}"
    assert layout.runtime_of(params, "prune") == "pytorch" and layout.runtime_of(params, "prune_int8") == "onnxruntime"


@pytest.mark.integration
def test_export_of_what_is_not_installed_is_one_line_before_anything_is_written(
    networks: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(networks / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(catalogue.importlib.util, "find_spec", lambda name: None)
    before = sorted(Path("data/export").rglob("*"))
    section = SMALL.export.model_copy(update={"formats": ["onnx", "openvino"]})
    with pytest.raises(catalogue.MissingError, match=r"pip install -e '\.\[openvino\]'$"):
        export(Stage("export", SMALL.model_copy(update={"export": section})))
    assert sorted(Path("data/export").rglob("*")) == before


def test_the_check_before_anything_trains_names_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    import yaml

    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    raw["export"]["formats"] = ["onnx", "openvino", "executorch"]
    raw["claims"], raw["ship"]["candidate"] = [], "prune_openvino"
    monkeypatch.setattr(catalogue.importlib.util, "find_spec", lambda name: None)
    from thinner import checks

    params = config.Params.model_validate(raw)
    lines = [line for line in checks.deep(params) if line.startswith("export.formats")]
    assert lines == [
        "export.formats: OpenVINO and ExecuTorch are not installed. "
        "Install what is missing: pip install -e '.[openvino,executorch]'"
    ]
