"""benchmarks/pruning.py measures what it says, and its verdicts can be no."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch_pruning as tp

from benchmarks import distillation, pruning
from tests.benchmarks.test_distillation import NETWORK, TINY
from thinner.compress.pruning import cut
from thinner.config import load_params
from thinner.networks import models

PARAMS = load_params(Path(__file__).parents[2] / "params.yaml")


def test_the_parts_of_a_step_add_up_and_the_library_is_left_as_it_was():
    before = tp.dependency.Group.prune
    times = pruning.measure_step(NETWORK, 16, 3)
    assert set(times) == {*pruning.PARTS, "pass"}
    assert all(values.shape == (3,) and (values > 0).all() for values in times.values())
    assert tp.dependency.Group.prune is before
    judged = pruning.judge_step({part: np.full(3, 0.01) for part in (*pruning.PARTS, "pass")})
    assert judged["passes"] == pytest.approx(4)
    assert judged["ms"]["trace"] == pytest.approx(10)


def test_a_pruned_student_is_trained_in_both_ways(tmp_path, monkeypatch):
    import torch

    monkeypatch.setattr(distillation, "jobs", lambda params: [replace(TINY, policy={})])
    smaller, _ = cut(models.create(NETWORK), torch.zeros(1, 1, 16, 16), macs=30_000, criterion="l2")
    was = {name: t.clone() for name, t in smaller.state_dict().items()}
    times = pruning.measure_recovery(PARAMS, smaller, 2, tmp_path)
    assert set(times) == {"cached", "plain"}
    assert all((values > 0).all() for values in times.values())
    assert any(not t.equal(was[name]) for name, t in smaller.state_dict().items()), "it is this one that was trained"


@pytest.mark.parametrize(("cached", "holds"), [(1.05, True), (1.2, False)])
def test_the_verdict_on_recovery_follows_from_the_times(cached, holds):
    noise = 1 + np.random.default_rng(0).normal(0, 1e-3, (2, 12))
    judged = pruning.judge_recovery({"cached": cached * noise[0], "plain": noise[1]})
    assert judged["time_of_plain"] == pytest.approx(cached, rel=0.01)
    assert judged["holds"] is holds


@pytest.mark.integration
def test_every_network_is_timed_in_both_runtimes(tmp_path):
    import torch

    model = models.create(NETWORK).eval()
    smaller, _ = cut(model, torch.zeros(1, 1, 16, 16), macs=30_000, criterion="l2")
    samples = pruning.measure_speed(PARAMS, {1.0: model, 0.5: smaller}, (1, 16, 16), repeats=2)
    assert set(samples) == {f"{runtime}/{batch}" for runtime in ("pytorch", "onnxruntime") for batch in (1, 64)}
    assert all((times > 0).all() and times.shape == (2,) for row in samples.values() for times in row.values())


@pytest.mark.parametrize(
    ("ms", "verdict", "holds"), [(2.0, "faster", True), (3.5, "faster", False), (4.0, "not faster", False), (5.0, "slower", False)]
)  # fmt: skip
def test_a_network_is_called_faster_only_where_the_interval_says_so(ms, verdict, holds):
    noise = 1 + np.random.default_rng(0).normal(0, 0.02, (2, 20))
    samples = {
        place: {1.0: 4 * noise[0], 0.5: ms * noise[1]} for place in ("onnxruntime/64", "pytorch/1")
    }  # fmt: skip
    judged = pruning.judge_speed(samples, {1.0: 1.0, 0.5: 0.48})
    assert judged["places"]["onnxruntime/64"]["0.5"]["verdict"] == verdict
    assert judged["places"]["onnxruntime/64"]["0.5"]["macs_left"] == 0.48
    assert judged["holds"] is holds


@pytest.mark.long
def test_the_whole_benchmark_measures_and_shows_what_its_musts_are(monkeypatch, capsys):
    monkeypatch.chdir(Path(__file__).parents[2])
    tiny = replace(NETWORK, width=PARAMS.student.width)
    monkeypatch.setattr(pruning, "NETWORKS", (("SqueezeNet", "torchvision:squeezenet1_1", 32),))
    monkeypatch.setattr(distillation, "jobs", lambda params: [replace(TINY, student=tiny, policy={})])
    results = pruning.measure_all(PARAMS, rounds=10, repeats=10)
    assert set(results) == {"step", "source", "recovery", "speed", "widths"}
    half = results["speed"]["places"]["onnxruntime/64"]["0.5"]
    assert 0.3 < half["macs_left"] <= 0.5
    cut = results["widths"]["onnxruntime/64"]
    assert set(cut) == {"1.0", "round_to 1", "round_to 8", "round_to 16"}
    assert all(0 < row["macs_left"] <= 0.5 for name, row in cut.items() if name != "1.0")
    # multiples of 1 come closest to what is asked for
    assert cut["round_to 1"]["macs_left"] > max(cut["round_to 8"]["macs_left"], cut["round_to 16"]["macs_left"])
    pruning.show(results, "cpu")
    shown = capsys.readouterr().out
    assert "SqueezeNet" in shown
    assert f"{half['times_as_fast']:.2f} [{half['low']:.2f}, {half['high']:.2f}]" in shown
    assert shown.count("must:") == 2
