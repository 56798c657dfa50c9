"""Rounds without a stage: any function that trains will do, what was asked is met, and a killed run goes on."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from thinner.compress import criteria, pruning, rounds
from thinner.compress.target import Target
from thinner.evidence.drop import Drop
from thinner.evidence.statistics import Estimate
from thinner.learn import training
from thinner.measure.profiling import count_macs, count_params
from thinner.networks import checkpoint, models
from thinner.networks.spec import NetworkSpec

NETWORK = NetworkSpec("resnet8", 3, 1, width=8, stem_stride=1)
SHAPE = (1, 8, 8)
SPEC = {
    "stage": "prune",
    "network": NETWORK.as_json(),
    "classes": ["cat", "dog", "fox"],
    "preprocessing": {"image_size": 8, "channels": 1, "mean": [0.5], "std": [0.25]},
    "parents": {},
    "data_sha256": "0" * 64,
}
IMAGES = torch.from_numpy(np.random.default_rng(0).normal(size=(24, *SHAPE)).astype(np.float32))


@pytest.fixture
def source(tmp_path):
    torch.manual_seed(0)
    model = models.create(NETWORK)
    for module in model.modules():  # a trained network has no exact zeros and ones
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    checkpoint.save(tmp_path / "source", model, SPEC)
    return tmp_path / "source"


def go(source, target, way, recover=None, answers=None, said=None):
    """All rounds of pruning, in the folder of ``source``; what was recovered is told."""
    recovered = []

    def train(number, model, held):
        recovered.append(number)
        return 0.5, [{"step": 1.0, "val_accuracy": 0.5, "val_loss": 1.0}]

    loaded = checkpoint.load(source)
    plan = rounds.PruningPlan(target, way, loaded.model, SHAPE)
    found = rounds.prune_in_rounds(
        plan,
        loaded,
        source,
        recover=recover or train,
        answers=answers or (lambda model: np.ones(24, bool)),
        look=IMAGES[:4],
        spec=SPEC,
        folder=source.parent / "rounds",
        work=source.parent / "work",
        fabric=training.make_fabric("cpu", 1, "fp32"),
        say=(said if said is not None else []).append,
    )
    return plan, found, recovered


@pytest.mark.integration
def test_each_round_is_on_the_disk_smaller_than_the_one_before_and_the_last_meets_the_target(source):
    plan, found, recovered = go(source, Target("macs", 0.5), rounds.Way("l2", rounds=2))
    assert recovered == [1, 2]
    macs = [count_macs(network, SHAPE) for network in found.networks]
    assert macs == [row["macs"] for row in found.rows]
    assert macs[0] > macs[1] > macs[2] and macs[2] <= plan.limit == int(0.5 * macs[0])
    for number in (1, 2):
        kept = checkpoint.load(source.parent / "rounds" / str(number)).model
        assert all(t.equal(found.networks[number].state_dict()[name]) for name, t in kept.state_dict().items())
    # nothing trained in between, so these are all the cuts in a row
    model, held = plan.cut_in_rounds(copy.deepcopy(checkpoint.load(source).model))
    assert held == {}
    assert all(t.equal(model.state_dict()[name]) for name, t in found.networks[-1].state_dict().items())


@pytest.mark.integration
def test_a_run_that_was_killed_goes_on_after_its_last_round_and_with_the_cut_it_was_recovering(source):
    target, way = Target("macs", 0.5), rounds.Way("random", rounds=2)

    def dies(number, model, held):
        if number == 2:
            raise KeyboardInterrupt
        return 0.5, [{"step": 1.0, "val_accuracy": 0.5, "val_loss": 1.0}]

    with pytest.raises(KeyboardInterrupt):
        go(source, target, way, dies)
    cut = checkpoint.load(source.parent / "work/round-2/cut").model
    said = []
    _, found, recovered = go(source, target, way, said=said)
    assert recovered == [2]
    assert all(t.equal(found.networks[2].state_dict()[name]) for name, t in cut.state_dict().items())
    assert not any("done again" in line for line in said)


@pytest.mark.parametrize("name", ["model.safetensors", "model.json", "row.json", "masks.safetensors"])
def test_a_cut_with_a_flipped_bit_is_said_and_made_again(source, name):
    target, way = Target("params", 0.5, "weights"), rounds.Way("l1", rounds=1)

    def dies(number, model, held):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(source, target, way, dies)
    place = source.parent / "work/round-1/cut"
    good, bits = contents(place), (place / name).read_bytes()
    (place / name).write_bytes(bits[:-2] + bytes([bits[-2] ^ 1]) + bits[-1:])
    said = []
    with pytest.raises(KeyboardInterrupt):
        go(source, target, way, dies, said=said)
    assert any("done again" in line for line in said)
    assert contents(place) == good


def contents(folder):
    """What its files say: how a header is ordered does not count."""
    tensors = {path.name: load_file(path) for path in folder.glob("*.safetensors")}
    return {
        **{path.name: json.loads(path.read_text()) for path in folder.glob("*.json")},
        **{file: {name: t.tolist() for name, t in found.items()} for file, found in tensors.items()},
    }


def test_masks_of_a_run_that_goes_on_are_those_of_its_cut(source):
    target, way, held = Target("params", 0.5, "weights"), rounds.Way("l1", rounds=1), []

    def notes(number, model, masks):
        held.append((masks, {name: model.get_submodule(name).weight == 0 for name in masks}))
        raise KeyboardInterrupt

    for _ in range(2):  # cut here; read from the disk
        with pytest.raises(KeyboardInterrupt):
            go(source, target, way, notes)
    (first, zeros), (second, _) = held
    assert first and all(mask.equal(second[name]) for name, mask in first.items())
    assert all(zeros[name][~mask].all() for name, mask in first.items())


@pytest.mark.long
def test_several_processes_take_what_the_first_one_cuts(source, tmp_path):
    """By every criterion, in channels and in single weights; each process looks at images of its own."""
    program = tmp_path / "program.py"
    program.write_text(
        f"""
import json, os, sys
sys.path[:0] = [{str(Path(__file__).parents[2])!r}, {str(Path(__file__).parent)!r}]
from pathlib import Path
import numpy as np, torch
import test_rounds as here
from thinner.compress import criteria, rounds
from thinner.learn import training
from thinner.networks import checkpoint
from thinner.compress.target import Target
torch.set_num_threads(1)
fabric = training.make_fabric("cpu", 2, "fp32")
rank = fabric.global_rank
loaded, source = checkpoint.load(sys.argv[1]), Path(sys.argv[1])
generator = torch.Generator().manual_seed(rank)
images = torch.randn(8, *here.SHAPE, generator=generator), torch.arange(8) % len(here.SPEC["classes"])
examples = criteria.Examples([images], torch.nn.functional.cross_entropy)
found = {{}}
ways = [(name, rounds.Way(name), Target("macs", 0.5)) for name in criteria.CRITERIA]
ways += [("weights " + name, rounds.Way(name), Target("params", 0.7, "weights")) for name in ("taylor", "random")]
for name, way, target in ways:
    plan = rounds.PruningPlan(target, way, loaded.model, here.SHAPE, seed=rank, examples=examples)
    place = source.parent / "work" / name
    smaller, held, _ = rounds._cut_once(plan, loaded.model, 1, None, place, here.SPEC, fabric, lambda text: None)
    states = [(list(p.shape), float(p.detach().sum())) for p in smaller.parameters()]
    states.append({{key: int(mask.sum()) for key, mask in held.items()}})
    found[name] = states
# and through all rounds
def recover(number, model, held):
    found[str(number)] = [(list(p.shape), float(p.detach().sum())) for p in model.parameters()]
    return 0.5, [{{"step": 1.0, "val_accuracy": 0.5, "val_loss": 1.0}}]
plan = rounds.PruningPlan(Target("macs", 0.5), rounds.Way("random", rounds=2), loaded.model, here.SHAPE, seed=rank)
rounds.prune_in_rounds(plan, loaded, source, recover=recover, answers=lambda model: np.ones(24, bool),
    look=here.IMAGES[:4], spec=here.SPEC, folder=source.parent / "rounds", work=source.parent / "work" / "all",
    fabric=fabric, say=lambda text: None)
(source.parent / f"found-{{rank}}.json").write_text(json.dumps(found))
fabric.barrier()
"""
    )
    subprocess.run([sys.executable, str(program), str(source)], check=True, timeout=600, capture_output=True)
    first, second = (json.loads((source.parent / f"found-{rank}.json").read_text()) for rank in (0, 1))
    assert len(first) == len(criteria.CRITERIA) + 4
    assert first == second


def test_a_network_that_is_small_enough_already_is_an_error_that_says_so(source):
    nonzero = count_params(checkpoint.load(source).model, nonzero=True)
    with pytest.raises(pruning.PruningError, match=r"\{params: \d+\} is asked for, and source has .* Ask for less"):
        go(source, Target("params", nonzero, "weights"), rounds.Way("l1"))


@pytest.mark.parametrize(
    ("target", "stop_drop", "points", "enough"),
    [
        (Target("max_drop", 0.5), None, 0.5, False),
        (Target("max_drop", 0.5), None, 0.6, True),
        (Target("macs", 0.5), 2.0, 2.1, True),
        (Target("macs", 0.5), 2.0, 1.9, False),
        (Target("macs", 0.5), None, 50.0, False),  # a limit of size looks at no accuracy
    ],
)
def test_when_a_round_is_the_last(target, stop_drop, points, enough):
    way = rounds.Way("l2", rounds=3, stop_drop=stop_drop)
    assert rounds._is_enough(target, way, 1, points, lambda text: None) is enough


@pytest.mark.parametrize(
    ("schedule", "numbers", "ended", "aimed"),
    [
        ("linear", [0, 1, 2, 3], False, [False, False, False, True]),
        ("linear", [0, 1, 2], False, [False, False, True]),  # the second was small enough for the third
        ("linear", [0, 1, 2], True, [False, False, False]),  # the second lost too much
        ("one_shot", [0, 1], False, [False, True]),
        ("one_shot", [0, 1], True, [False, True]),
    ],
)
def test_which_rounds_were_cut_to_the_target_itself(schedule, numbers, ended, aimed):
    plan = rounds.PruningPlan(
        Target("params", 0.5), rounds.Way("l2", schedule=schedule, rounds=3), models.create(NETWORK), SHAPE
    )
    found = rounds.Rounds([{"round": number} for number in numbers], [], ended)
    assert [found.cut_to_limit(plan, row) for row in found.rows] == aimed


def test_milliseconds_that_no_round_was_cut_to_are_not_missed_for_the_clock():
    lost, way = Drop(3.0, 2.0, 4.0, 100, None), rounds.Way("l2", rounds=3, stop_drop=2.0)
    asked = Target("latency_ms", 1.5)
    assert "the machine is slower now" in rounds.why_missed(asked, way, lost)
    assert "prune.stop_drop is 2.0" in rounds.why_missed(asked, way, lost, cut_to_it=False)


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (Estimate(1.34, 1.30, 1.38, 0.0, 30, 1, ""), "faster 1.34x [1.30, 1.38]"),
        (Estimate(1.02, 0.99, 1.05, 0.2, 30, 1, ""), "not faster (1.02x [0.99, 1.05])"),
        (Estimate(1.02, 1.00, 1.05, 0.2, 30, 1, ""), "not faster (1.02x [1.00, 1.05])"),
        (Estimate(0.90, 0.85, 0.95, 0.0, 30, 1, ""), "not faster (0.90x [0.85, 0.95])"),
    ],
)
def test_faster_is_said_only_where_the_interval_lies_above_one(ratio, text):
    assert rounds.speed_text(ratio) == text
