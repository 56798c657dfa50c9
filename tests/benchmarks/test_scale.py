"""benchmarks/scale.py: the arithmetic, by hand."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import scale

ROOT = Path(__file__).resolve().parents[2]
FILES = {
    "rows": [{"files": 1000, "add": 1.0, "status": 1.0, "peak_bytes": 1e8}, {"files": 10000, "add": 20.0, "peak_bytes": 2e8}],
    "add_exponent": 1.0,
    "peak_bytes_exponent": 0.5,
}  # fmt: skip
SECONDS = {"decode": 0.001, "ask": 0.01, "train": 0.02}


def test_a_million_pictures_by_hand() -> None:
    found = scale.work_out(1_000_000, SECONDS, FILES, cores=2, core_hour=0.1, gb_month=0.01)
    assert found["pixel_bytes"] == 1e6 * 224 * 224 * 3
    assert found["signal_bytes"] == 1e6 * 2004
    assert found["top_k_bytes"] == 1e6 * 128  # 2 bytes of score and 4 of class for each of 20, and two numbers of 4
    assert found["hash_hours"] == pytest.approx(20 * 100 / 3600)  # a hundred times the files, exponent 1
    assert found["hash_memory"] == pytest.approx(2e8 * 10)  # exponent a half
    assert found["decode_core_hours"] == pytest.approx(1000 / 3600)
    assert found["ask_core_hours"] == pytest.approx(2 * 10_000 / 3600)
    assert found["train_core_hours"] == pytest.approx(2 * 90 * 20_000 / 3600)
    hours = (1000 + 20_000 + 3_600_000) / 3600
    assert found["computing"] == pytest.approx(0.1 * hours)
    assert found["keeping"] == pytest.approx(0.01 * (110 + 2 * 150.528))


def test_what_breaks_first_comes_first_and_only_where_it_breaks() -> None:
    assert scale.first_to_break(1_000_000, FILES) == []
    broken = scale.first_to_break(10**12, FILES)
    bounds = [float(line.split("from ")[1].split(" ")[0].replace(",", "")) for line in broken]
    assert len(broken) == 3 and bounds == sorted(bounds)
    assert bounds[0] == pytest.approx(20e12 / 150_528, abs=1)


def test_a_picture_is_decoded_in_some_time() -> None:
    assert 1e-5 < scale.measure_decoding(4) < 5


def test_a_file_of_something_else_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"nothing": {}}))
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.scale", str(tmp_path / "a.json")],
        cwd=ROOT, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and "a.json: not what benchmarks.orchestration files --json writes" in done.stderr
