"""benchmarks/runtimes.py, on networks of a few thousand weights."""

import shutil
from pathlib import Path

import pytest

from benchmarks import runtimes
from tests.tasks import test_evaluate
from thinner.runtimes import catalogue

networks = test_evaluate.finished  # a folder in which networks and their exports lie


@pytest.mark.long
def test_every_runtime_that_is_installed_has_its_row(
    networks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(networks / "data", tmp_path / "data")
    shutil.copyfile(Path(__file__).parents[2] / "params.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    assert runtimes.main(["prune", "distill_onnx_int8", "--rounds", "10"]) == 0
    lines = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    here = [name for name in catalogue.FORMATS if catalogue.missing([name]) is None]
    # an ONNX file runs as it is, and in OpenVINO, which reads it
    others = ["distill_onnx_int8", *(["distill_onnx_int8_openvino"] if "openvino" in here else [])]
    assert [row[0] for row in lines] == ["candidate", "prune", *(f"prune_{name}" for name in here), *others]
    for name, words, _, difference, same, *times in lines[1:]:
        assert words in {one.words for one in catalogue.RUNTIMES.values()} and len(times) == 2
        if "int8" not in name:
            assert float(difference) < 1e-4 and same == "30"
        low, high = times[0].split("[")[1].rstrip("]").split(", ")
        assert 0 < float(low) <= float(high)
