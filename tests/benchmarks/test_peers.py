"""benchmarks/peers.py compares like with like, says what came out, and goes on where it was stopped."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import peers
from thinner.config import load_params
from thinner.errors import UserError
from thinner.learn import losses
from thinner.networks.spec import NetworkSpec

ROOT = Path(__file__).parents[2]


# ------------------------------------------------------------------------------------------ like with like


@pytest.mark.parametrize("name", [name for name, (_, theirs) in peers.LOSSES.items() if theirs])
def test_our_loss_and_torchdistills_are_one_function(name):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(16, 10, generator=generator, dtype=torch.float64) for _ in range(2))
    labels = torch.arange(16) % 10
    ours, theirs = student.clone().requires_grad_(True), student.clone().requires_grad_(True)
    mine = losses.combine(peers.LOSSES[name][0])(ours, teacher, labels, epoch=0.0)["loss"]
    other = peers.torchdistill_loss(name)(theirs, teacher, labels)
    torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-9)
    mine.backward()
    other.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-8)


def test_the_peers_loop_is_the_textbooks():
    """One parameter, two steps, by hand: Nesterov momentum 0.9, decay 5e-4, the rates of the one cycle."""
    from thinner.learn import training

    class Line(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor([[2.0]]))

        def forward(self, x):
            return x @ self.weight

    model = Line()
    bench = peers.Bench(peers.BUDGETS["tiny"], Path(), Path(), None, None)
    object.__setattr__(bench, "batches", lambda start=0: lambda number: number)
    bench.plain_loop(model, lambda network, batch: network.weight.sum() * (batch + 1), 2, 0.1)
    weight, velocity = 2.0, 0.0
    for number in range(2):
        rate = 0.1 * training.learning_rate_factor("onecycle", number, 2, 0.15)
        gradient = (number + 1) + 5e-4 * weight
        velocity = 0.9 * velocity + gradient
        weight -= rate * (gradient + 0.9 * velocity)
    assert model.weight.item() == pytest.approx(weight, rel=1e-6)
    assert not model.training


def test_what_a_teacher_costs_follows_from_the_macs():
    pair = peers.Pair("", NetworkSpec("resnet56a", 10, 3), 32, NetworkSpec("resnet20a", 10, 3))
    # forward of the teacher, and forward and backward (two more) of the student
    assert peers.macs_say(pair) == pytest.approx(1 + 125_485_696 / (3 * 40_551_040))


# ---------------------------------------------------------------------------------------------- verdicts


def row(validation=0.5, **more):
    return {"validation": validation, "macs": 47, "params": 10, "seconds": 1.0, **more}


def answers(ours, theirs, seconds=1.0):
    """What the units say where the pruned networks have the images ``ours`` and ``theirs`` right."""
    rights = {"source": ours, "prune-ours": ours, "prune-torchpruning": theirs, "scratch": theirs}
    rights |= {"ours-kd": ours, "ours-dkd": theirs, "torchdistill-kd": theirs}
    noise = 1 + np.random.default_rng(0).normal(0, 1e-3, 12)
    times = {
        "thinner": (seconds * noise).tolist(),
        "torchdistill, 0 workers": (6 * noise).tolist(),
        "torchdistill, 2 workers": (8 * noise).tolist(),
    }
    units = {name: row() for name in rights} | {f"test/{name}": {"right": right} for name, right in rights.items()}
    units["ours-kd"] = row(validation=0.6)
    units["signals"] = {"seconds": 3.0}
    units["speed"] = {"times": {"default job": times}, "macs_say": {"default job": 4.0}}
    units["latency"] = {"samples": {"1": {"source": [2.0] * 12, "prune-ours": [1.0] * 12}}}
    return units


@pytest.mark.parametrize(
    ("ours", "theirs", "pruning"),
    [
        ("1" * 900 + "0" * 100, "1" * 900 + "0" * 100, True),  # the same images: within half a point for sure
        ("1" * 870 + "0" * 130, "1" * 900 + "0" * 100, False),  # three points worse
        # as many, but others: 100 against 100 of 1,000 are no proof of anything within half a point
        ("1" * 800 + "0" * 100 + "1" * 100, "1" * 900 + "0" * 100, False),
    ],
)
def test_not_worse_is_said_where_the_interval_says_it(ours, theirs, pruning):
    found = peers.judge(answers(ours, theirs))
    assert found["musts"] == {"pruning": pruning, "distillation": pruning, "speed": True}
    assert found["best_distillation"]["ours"] == "ours-kd"
    assert found["pruning"]["prune-ours, prune-torchpruning"]["effect"] == pytest.approx(
        (ours.count("1") - theirs.count("1")) / 1e3
    )
    assert found["latency"]["1"]["prune-ours"]["ratio"] == pytest.approx(2.0)


def test_the_faster_way_to_run_torchdistill_is_the_one_that_counts():
    found = peers.judge(answers("10", "10", seconds=1.5))["speed"]["default job"]
    assert found["against"] == "torchdistill, 0 workers"
    assert found["ratio"] == pytest.approx(4.0, rel=1e-2)
    assert not peers.judge(answers("10", "10", seconds=1.5))["musts"]["speed"]


def test_intervals_are_tangos():
    from thinner.evidence.statistics import score_difference

    found = peers.compare({"a": "1110100000", "b": "1101000000"}, "a", "b")
    low, high, _ = score_difference(2, 1, 10, peers.MARGIN)
    assert found == {"effect": pytest.approx(0.1), "low": low, "high": high}


def test_the_results_of_all_budgets_are_not_overwritten_by_those_of_one(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    before = peers.RESULTS.read_bytes()
    with pytest.raises(SystemExit):
        peers.main(["--budget", "tiny", "--json", str(peers.RESULTS)])
    assert "--json: benchmarks/peers.json holds the results of all budgets" in capsys.readouterr().err
    assert peers.RESULTS.read_bytes() == before


def test_the_page_is_made_of_the_results():
    assert (ROOT / peers.PAGE).read_text() == peers.page(
        json.loads((ROOT / peers.RESULTS).read_text()) if (ROOT / peers.RESULTS).exists() else {}
    ), "python -m benchmarks.peers writes it"


def test_a_must_that_falls_short_stands_on_the_page():
    from dataclasses import asdict

    said = {
        right: peers.render(
            {
                "budget": asdict(peers.BUDGETS["small"]),
                "device": "cpu",
                **peers.judge(answers(right, "1" * 900 + "0" * 100)),
            }
        )
        for right in ("1" * 900 + "0" * 100, "1" * 870 + "0" * 130)
    }
    assert [text.count("**NO**") for text in said.values()] == [0, 2]
    assert "| pruned, ours, less pruned, Torch-Pruning alone | -3.00 [" in said["1" * 870 + "0" * 130]
    assert "6.00 [" in said["1" * 900 + "0" * 100]


# ---------------------------------------------------------------------------------------------- goes on


def test_a_unit_is_done_once_and_one_that_was_stopped_is_done_again(tmp_path, capsys):
    bench = peers.Bench(peers.BUDGETS["tiny"], tmp_path, tmp_path, None, None)
    calls = []

    def work(folder):
        calls.append(folder)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return {"validation": 0.25}

    with pytest.raises(KeyboardInterrupt):
        peers.unit(bench, "one", work)
    first = peers.unit(bench, "one", work)
    assert peers.unit(bench, "one", work) == first
    assert len(calls) == 2
    assert first["validation"] == 0.25
    assert "validation 25.00%" in capsys.readouterr().err


def draw(folder, train, test):
    """Noise around a grey of its own for each of ten classes."""
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("test", test)):
        for number in range(10):
            place = folder / part / f"class{number}"
            place.mkdir(parents=True)
            for picture in range(count):
                pixels = np.clip(rng.normal(60 + 14 * number, 30, (32, 32, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{picture}.png")
    return folder


def test_a_folder_of_another_run_is_refused(tmp_path):
    params = load_params(ROOT / "params.yaml")
    pictures, work = draw(tmp_path / "pictures", 10, 1), tmp_path / "work"
    work.mkdir()
    bench = peers.open_bench(params, peers.BUDGETS["tiny"], pictures, work)
    assert {name: len(numbers) for name, numbers in bench.data.splits.items()} == {
        "labelled": 60, "unlabelled": 0, "validation": 40, "test": 10,
    }  # fmt: skip
    with pytest.raises(UserError, match="--work: .* holds a run of another plan"):
        peers.open_bench(params, replace(peers.BUDGETS["tiny"], views=3), pictures, work)
    with pytest.raises(UserError, match="--data: .* has no train and test"):
        peers.open_bench(params, peers.BUDGETS["tiny"], tmp_path / "nowhere", tmp_path / "other")


@pytest.mark.long
def test_the_whole_of_it_runs_and_goes_on_where_it_was_stopped(tmp_path):
    pictures, work, told = draw(tmp_path / "pictures", 30, 12), tmp_path / "work", tmp_path / "told.json"

    def go(*more):
        return subprocess.run(
            [sys.executable, "-m", "benchmarks.peers", "--budget", "tiny", "--data", pictures, "--work", work, *more],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip

    done = go("--json", told)
    assert done.returncode == 0, done.stderr
    found = json.loads(told.read_text())
    whole = found["networks"]["source"]["macs"]
    for name, network in found["networks"].items():
        if name.startswith("prune"):
            assert 0.3 * whole < network["macs"] <= peers.MACS_LEFT * whole
    same = [found["networks"][name]["params"] for name in ("scratch", "ours-kd", "torchdistill-kd")]
    assert len(set(same)) == 1
    assert found["images"] == 120
    assert set(found["networks"]) == set(peers.NAMES)
    for name in ("prune-ours", "prune-ours/round-2", "test/prune-ours"):
        (work / name / "row.json").unlink()
    again = go("--check")
    assert again.returncode == (0 if all(found["musts"].values()) else 1)
    began = set(re.findall(r"([\w/-]+) \.\.\.", again.stderr))
    assert began == {"prune-ours", "prune-ours/round-2", "test/prune-ours"}
