"""benchmarks/orders.py trains what the study trains, and its verdict can be no."""

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from benchmarks import distillation, orders
from benchmarks.orders import Training
from flows.sweep import Study, overridden
from tests.benchmarks.test_distillation import NETWORK, TINY
from thinner.config import load_params
from thinner.errors import UserError
from thinner.measure.profiling import count_macs
from thinner.networks import models
from thinner.params import Params

ROOT = Path(__file__).parents[2]


@functools.cache
def params_of(variant: str) -> Params:
    study = Study.model_validate(yaml.safe_load((ROOT / orders.STUDY).read_text()))
    return Params.model_validate(overridden(ROOT, study, study.variants[variant], 0))


@pytest.fixture
def nothing_trained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # fresh weights


@pytest.mark.integration
def test_distil_then_prune_trains_the_student_and_each_round_of_it(nothing_trained):
    params = params_of("distil_then_prune")
    found = orders.trainings(params)
    assert [one.steps for one in found] == [params.student.training.steps, *[params.prune.training.steps] * 2]
    assert {one.batch_size for one in found} == {256}
    macs = [count_macs(one.model, one.shape) for one in found]
    assert macs[0] > macs[1] > macs[2]
    assert macs[2] <= 0.5 * macs[0]


@pytest.mark.integration
def test_prune_then_distil_trains_what_is_left_of_the_teacher(nothing_trained):
    params = params_of("prune_then_distil")
    (one,) = orders.trainings(params)
    assert one.steps == params.prune.training.steps
    assert one.shape == (3, 64, 64)
    assert count_macs(one.model, one.shape) <= params.prune.target["macs"]


def test_a_budget_in_epochs_is_refused(nothing_trained):
    params = params_of("prune_then_distil")
    budget = params.prune.training.model_copy(update={"steps": None, "epochs": 3})
    params = params.model_copy(update={"prune": params.prune.model_copy(update={"training": budget})})
    with pytest.raises(UserError, match=r"training\.steps"):
        orders.trainings(params)


def test_every_network_takes_its_turn_in_each_round(monkeypatch):
    monkeypatch.setattr(distillation, "jobs", lambda params: [replace(TINY, policy={})])
    model = models.create(NETWORK)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    small = Training("small", model, (1, 16, 16), 100, 4)
    times = orders.measure(load_params(ROOT / "params.yaml"), {"a": [small, small], "b": [small]}, 2)
    assert {name: len(parts) for name, parts in times.items()} == {"a": 2, "b": 1}
    assert all(part.shape == (2,) and (part > 0).all() for parts in times.values() for part in parts)
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items()), "it was trained"


@pytest.mark.parametrize(
    ("second_ms", "macs_of_second", "holds"),
    [(200, 1.0, True), (240, 1.0, False), (160, 1.0, False), (200, 1.2, False)],
)
def test_the_verdict_follows_from_seconds_steps_and_macs(monkeypatch, second_ms, macs_of_second, holds):
    monkeypatch.setattr("thinner.measure.profiling.count_macs", lambda model, shape: model)
    first = [Training("student", 3_000_000, (1, 8, 8), 100, 4), Training("round 1", 1_000_000, (1, 8, 8), 50, 4)]
    second = [Training("teacher's", int(1_000_000 * macs_of_second), (1, 8, 8), 100, 4)]
    noise = 1 + np.random.default_rng(0).normal(0, 1e-3, (3, 12))
    times = {"a": [0.15 * noise[0], 0.10 * noise[1]], "b": [second_ms * 1e-3 * noise[2]]}
    found = orders.judge({"a": first, "b": second}, times)
    assert found["orders"]["a"]["seconds"] == pytest.approx(100 * 0.15 + 50 * 0.10, rel=0.01)
    assert found["cost"]["ratio"] == pytest.approx(second_ms / 200, rel=0.01)
    assert found["macs_apart"] == pytest.approx(macs_of_second)
    assert found["holds"] is holds
