"""benchmarks/distillation.py measures what it says, and its verdict can be no."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.distillation import WAYS, Job, judge, measure, measure_memory
from thinner.config import load_params
from thinner.networks.spec import NetworkSpec

PARAMS = load_params(Path(__file__).parents[2] / "params.yaml")
NETWORK = NetworkSpec("resnet8", 10, 1, width=4, stem_stride=2)
TINY = Job(
    "tiny", NETWORK, 16, replace(NETWORK, width=16), 16, 12,
    images=64, batch_size=8, steps=dict.fromkeys(WAYS, 1), policy={"flip": True}, least_of_limit=0.8,
)  # fmt: skip


def test_every_way_is_timed_in_every_round(tmp_path: Path) -> None:
    times = measure(TINY, 3, tmp_path, PARAMS)
    assert set(times) == set(WAYS)
    for values in times.values():
        assert values.shape == (3,)
        assert (values > 0).all()


@pytest.mark.parametrize(
    ("limit", "cached", "plain", "holds"),
    [(1.0, 1.2, 1.15, True), (1.0, 1.3, 1.25, False), (1.0, 1.2, 1.0, False)],
)
def test_the_verdict_follows_from_the_times(limit: float, cached: float, plain: float, holds: bool) -> None:
    noise = 1 + np.random.default_rng(0).normal(0, 1e-3, (4, 12))
    seconds = dict(zip(WAYS, (limit, cached, plain, 5.0), strict=True))
    result = judge(TINY, {way: seconds[way] * noise[n] for n, way in enumerate(WAYS)})
    assert result["cached_of_limit"]["ratio"] == pytest.approx(limit / cached, rel=0.01)
    assert result["time_of_plain"] == pytest.approx(cached / plain, rel=0.01)
    assert result["cached_of_live"]["ratio"] == pytest.approx(5 / cached, rel=0.01)
    assert result["holds"] is holds


@pytest.mark.long
def test_memory_is_that_of_a_new_process_for_each_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    result = measure_memory(TINY, few=200)
    assert list(result["resident_bytes"]) == [200, 2000]
    assert all(size > 100 * 2**20 for size in result["resident_bytes"].values())  # torch alone is more
    assert result["growth"] == result["resident_bytes"][2000] / result["resident_bytes"][200]
