"""benchmarks/orchestration.py: its sums, and one small round of what it measures."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from benchmarks import orchestration
from flows import search, sweep
from thinner.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
COST = {"wall": 1.0, "cpu": 0.5}
STAGES = {
    "stages": 5, "repeats": 3, "program": COST, "mlflow": COST, "dvc": COST, "prefect": COST,
    "stage": {"wall": 2.0, "cpu": 1.0}, "run": {"wall": 10.0, "cpu": 4.0},
}  # fmt: skip


def test_the_share_is_of_the_job_and_counts_the_run_once() -> None:
    assert orchestration.share_of(STAGES, 10, 500.0) == pytest.approx((10 + 10 * 2) / 500)


@pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")  # inside DVC's trie
def test_the_study_is_one_and_so_is_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (tmp_path / "workers.yaml").write_text(yaml.safe_dump(orchestration.study(3)))
    assert list(sweep.load_study(tmp_path / "workers.yaml", ROOT).variants) == ["a", "b", "c"]
    (tmp_path / "workers.yaml").write_text(yaml.safe_dump(orchestration.search(3)))
    wanted, _ = search.load_search(tmp_path / "workers.yaml", ROOT)
    assert wanted.trials == 3 and wanted.space == {"scratch.label_smoothing": [0.0, 0.01, 0.02]}
    own = ROOT / "searches/default.yaml"
    (tmp_path / "workers.yaml").write_text(yaml.safe_dump(orchestration.search_of(own, 18)))
    counted, _ = search.load_search(tmp_path / "workers.yaml", ROOT)
    wanted, _ = search.load_search(own, ROOT)
    assert wanted.minutes and counted == wanted.model_copy(update={"minutes": None, "trials": 18})


@pytest.mark.parametrize("text", [None, "- 1\n", "{", "\x00"])
def test_a_file_that_is_no_search_is_one_line(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "own.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=re.escape(f"--file {path}: ")) as told:
        orchestration.search_of(path, 3)
    assert len(str(told.value).splitlines()) == 1


def test_a_must_that_is_missed_is_named_and_what_was_not_measured_is_not() -> None:
    nothing = {"dvc": {"wall": 3.5, "cpu": 1.0}, "run": {"wall": 5.9, "cpu": 1.0}}
    assert orchestration.fallen_short({"nothing": nothing}) == ["dvc_seconds: 3.5, at most 3 asked"]
    assert orchestration.fallen_short({"share": 0.031}) == ["share: 0.031, at most 0.03 asked"]
    assert orchestration.fallen_short({"share": 0.03}) == []
    row = {"runs": 4, "one": 262.0, "two": 171.0, "efficiency": 0.77, "cores": 0.8}
    for what in ("study", "search"):
        assert orchestration.fallen_short({what: row}) == []
        short = [f"{what}: 0.77 of what two cores give, at least 0.9 asked"]
        assert orchestration.fallen_short({what: row | {"cores": 1.0}}) == short
        assert f"A {what} of 4 runs: 262 s with one worker, 171 s with two" in orchestration.render({what: row})
    assert orchestration.fallen_short({}) == []


def test_the_table_has_what_was_measured() -> None:
    files = {"rows": [{"files": 1000, "add": 2.0, "status": 1.0, "peak_bytes": 2**27}]}
    said = orchestration.render({"stages": STAGES, "share": 0.06, "job": 500.0, "job_stages": 10, "files": files})
    assert "| **all tools, per stage** | 2.00 | 1.00 |" in said
    assert "Of a job of 10 stages in 500 s: 6.0 %." in said
    assert "| 1,000 | 2.0 s | 1.0 s | 128 MiB |" in said and "Exponents" not in said


def test_a_command_that_fails_is_no_time(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"ended with 3:\nno$"):
        orchestration.timed([sys.executable, "-c", "print('no'); raise SystemExit(3)"], tmp_path, {})


def test_processor_seconds_are_those_of_the_command(tmp_path: Path) -> None:
    spin = "import time\nwhile time.process_time() < 0.3: pass"
    cost = orchestration.timed([sys.executable, "-c", spin], tmp_path, {})
    assert 0.3 <= cost.cpu < 0.3 + 2.0 and cost.wall >= 0.3


@pytest.mark.integration
def test_the_chain_runs_under_dvc_and_each_turn_is_out_of_date(tmp_path: Path) -> None:
    folder = tmp_path / "chain"
    environment = orchestration.make_chain(ROOT, folder, 2)
    assert list(yaml.safe_load((folder / "dvc.yaml").read_text())["stages"]) == ["nothing0", "nothing1"]
    for turn in ("one", "two"):
        (folder / "turn.txt").write_text(turn)
        orchestration.timed([sys.executable, "-m", "dvc", "repro", "--quiet", "nothing0"], folder, environment)
        assert (folder / "data/nothing0/nothing.txt").read_text() == turn
    command = [sys.executable, "program.py", "alone", "nothing1"]
    orchestration.timed(command, folder, environment)
    assert (folder / "data/nothing1/nothing.txt").read_text() == "two"


@pytest.mark.integration
def test_files_are_added_and_found_again(tmp_path: Path) -> None:
    found = orchestration.measure_files(tmp_path, [40, 10])
    assert [row["files"] for row in found["rows"]] == [10, 40]
    assert all(row["add"] > 0 and row["status"] > 0 and row["peak_bytes"] > 2**25 for row in found["rows"])
    assert math.isfinite(found["add_exponent"])
    assert not any(tmp_path.iterdir())


@pytest.mark.integration
def test_pictures_are_measured_as_files_and_in_shards(tmp_path: Path) -> None:
    rows = orchestration.measure_shards(tmp_path, [40])
    assert [(row["as"], row["files"]) for row in rows] == [("folder", 40), ("shards", 2)]  # one, and classes.json
    for row in rows:
        assert row["add"] > 0 and row["status"] > 0 and row["prepare"] > row["list"] > 0 and row["list_bytes"] >= 0
    said = orchestration.render({"shards": rows}).splitlines()
    assert (
        said[2].startswith("| 40 | 40 | ")
        and said[3].startswith("| 40 | 2 | ")
        and said[-1].startswith("Packed: 40 in ")
    )
    assert not any(tmp_path.iterdir())


def test_what_is_asked_wrongly_is_named() -> None:
    for words, message in ((["hours"], "'hours' is no part"), (["nothing", "--job", "5"], "Name that part, too")):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.orchestration", *words],
            cwd=ROOT, text=True, capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == 2 and message in done.stderr, json.dumps(done.stderr)
