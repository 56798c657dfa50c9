"""thinner.measure.devices: another machine's times on the page and in Markdown. Bringing them: tests/tasks/test_device_command.py."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anything import SEEDS, ask, changed, damaged, fuzz, written
from hypothesis import given
from hypothesis import strategies as st

from thinner.evidence.markdown import render_pull_request
from thinner.evidence.page import render_html
from thinner.evidence.results import Results
from thinner.evidence.statistics import ClaimError, Evidence, judge, parse_claim
from thinner.measure.devices import Device, read_device, with_times
from thinner.measure.operating import read_points

TIMES = {"prune": np.linspace(1, 1.2, 21), "distill": np.linspace(2, 2.4, 21)}
PI = Device("pi5", "Raspberry <Pi> 5", "Linux aarch64", 4, {"prune": "a", "distill": "b"}, {1: TIMES, 16: TIMES})


def test_times_of_other_weights_are_left_out() -> None:
    kept = PI.of({"prune": "a", "distill": "another"})
    assert set(kept.weights) == {"prune"} and set(kept.latency_ms) == {1, 16} and set(kept.latency_ms[1]) == {"prune"}
    assert PI.of({}).latency_ms == {}


def test_the_page_and_results_have_columns_for_the_device_and_say_what_it_is(results: Results) -> None:
    told = replace(results, metrics=with_times(results.metrics, {"pi5": PI}), devices={"pi5": PI})
    markdown = render_pull_request(told)
    heading = next(line for line in markdown.splitlines() if "ms, batch 1, on pi5" in line)
    cells = [cell.strip() for cell in heading.strip("|").split("|")]
    assert cells.index("ms, batch 1, on pi5") + 2 == cells.index("ms, batch 16, on pi5")  # by number, not by letter
    row = next(line for line in markdown.splitlines() if line.startswith("| prune |") and "1.1" in line)
    assert row.strip("|").split("|")[cells.index("ms, batch 1, on pi5")].strip() == "1.1"
    # the 95 % interval of the median of 21 is its 6th and 16th in order (binomial; Conover's table)
    assert "[1.05, 1.15]" in row
    assert "Timed on pi5 too: Raspberry <Pi> 5, Linux aarch64, 4 threads, ONNX Runtime, the network alone" in markdown
    page = render_html(told, 2)
    assert (
        "ms, batch 16, on pi5" in page
        and "pi5 is a machine of yours (Raspberry &lt;Pi&gt; 5, Linux aarch64, 4 CPU threads)" in page
    )
    assert "pi5" not in render_pull_request(results) and "machine of yours" not in render_html(results, 2)


def test_a_claim_may_name_the_device() -> None:
    noise = np.random.default_rng(0).uniform(0.95, 1.05, 21)
    times = {"prune": TIMES["prune"] * noise, "distill": TIMES["distill"]}
    turned = {"prune": times["distill"], "distill": times["prune"]}
    evidence = Evidence({}, {}, {}, {("pi5", 1): times, ("pytorch", 1): turned})
    claim = parse_claim("prune is faster than distill at batch 1 on pi5", ["prune", "distill"])
    assert (claim.device, claim.batch, claim.kind) == ("pi5", 1, "faster")
    share = parse_claim("prune has at most 60 % of the milliseconds of distill at batch 1 on pi5")
    here = parse_claim("prune is faster than distill at batch 1")
    assert here.device is None
    verdicts = judge([claim, share, here], evidence)
    assert [verdict.outcome for verdict in verdicts] == ["proven", "proven", "refuted"]
    assert verdicts[0].estimate.effect == pytest.approx(2, rel=0.05) and verdicts[1].estimate.effect == pytest.approx(
        0.5, rel=0.05
    )
    with pytest.raises(ClaimError, match="the name of a device"):
        parse_claim("prune is faster than distill at batch 1 on")


HEADER = (
    "candidate,weights_sha256,batch,round,latency_ms,threads,temperature_c,clock_mhz,cpu,cores,system,onnxruntime\n"
)
ROWS = "".join(f"prune,a,1,{number},1.5,1,,,Pi,4,Linux,1.32\n" for number in range(12))
CELLS = st.text("abc019.,-+e\n\"'", max_size=120)


@fuzz(2)
@given(CELLS | CELLS.map(lambda text: HEADER + text) | SEEDS)
def test_any_file_is_a_bench_or_one_line(tmp_path_factory: pytest.TempPathFactory, text: str | int) -> None:
    path = tmp_path_factory.mktemp("bench") / "bench.csv"
    content = damaged((HEADER + ROWS).encode(), text) if isinstance(text, int) else text.encode()
    path.write_bytes(content)
    found = ask("bench", lambda: read_device(path, "pi5"))
    assert found is None or found.latency_ms


def test_the_bench_itself_is_read(tmp_path: Path) -> None:
    (tmp_path / "bench.csv").write_text(HEADER + ROWS)
    found = read_device(tmp_path / "bench.csv", "pi5")
    assert found.latency_ms[1]["prune"].tolist() == [1.5] * 12 and found.weights == {"prune": "a"}


POINT = {
    "at_least": 0.98, "log_odds": 1.5, "coverage": 0.6, "accuracy": 0.99, "low": 0.98, "high": 0.995, "images": 9,
    "validation_images": 7,
}  # fmt: skip


@fuzz(2)
@given(changed({"prune": [POINT, {**POINT, "log_odds": None}]}), SEEDS)
def test_any_operating_points_are_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, points: Any, seed: int
) -> None:
    path = tmp_path_factory.mktemp("points") / "operating_points.json"
    path.write_bytes(written(points, seed))
    found = ask("operating points", lambda: read_points(path))
    assert found is None or all(point.covers(1e9) in (True, False) for row in found.values() for point in row)
