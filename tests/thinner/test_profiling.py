"""thinner.measure.profiling against torchvision's published figures and against numbers worked by hand."""

import gc
import math
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import models

from thinner.measure.profiling import (
    count_macs,
    count_params,
    file_bytes,
    measure_latency,
    median_interval,
    pareto_front,
    pinned_threads,
    summarise_latency,
)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "efficientnet_b0", "vit_b_16"])
def test_params_and_macs_equal_torchvisions_published_figures(name: str) -> None:
    weights = models.get_model_weights(name).DEFAULT  # its metadata only: nothing is downloaded
    with torch.device("meta"):
        model = models.get_model(name, weights=None)
    side = weights.transforms().crop_size[0]
    assert count_params(model) == weights.meta["num_params"]
    # published with three decimals: equal to all of them
    assert round(count_macs(model, (3, side, side)) / 1e9, 3) == weights.meta["_ops"]


def test_macs_of_a_small_network_worked_by_hand() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Flatten(),
        nn.Linear(8 * 6 * 6, 5),
    )
    # 8x8 outputs of 8 channels over 3x3x3; 6x6 outputs of 8 channels over 3x3x1; 5 outputs over 288
    assert count_macs(network, (3, 8, 8)) == 8 * 8 * 8 * 27 + 6 * 6 * 8 * 9 + 5 * 288
    assert count_params(network) == (8 * 27 + 8) + (8 * 9 + 8) + (5 * 288 + 5)


def test_counting_macs_leaves_the_network_as_it_was() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    count_macs(network, (1, 5, 5))
    assert network.training
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_attention_is_counted_although_eval_mode_fuses_it() -> None:
    attention = nn.TransformerEncoderLayer(d_model=8, nhead=2, dim_feedforward=16, batch_first=True).eval()
    # 4 tokens: projections of q, k, v and output 4 * 8*8 each; scores and weighted sum 2 * 4*4*8; two linears
    assert count_macs(attention, (4, 8)) == 4 * 4 * 64 + 2 * 4 * 4 * 8 + 2 * 4 * 8 * 16


def test_nonzero_parameters_leave_out_masked_ones_and_shared_ones_count_once() -> None:
    layer = nn.Linear(4, 4)
    with torch.no_grad():
        layer.weight.fill_(1.0)[0] = 0.0
        layer.bias.fill_(1.0)
    shared = nn.Sequential(layer, layer)
    assert count_params(shared) == 20
    assert count_params(shared, nonzero=True) == 16


def test_file_bytes_counts_weights_and_not_the_json_beside_them(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"neither model\.safetensors nor the file of an export"):
        file_bytes(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"12345")
    (tmp_path / "model.onnx.data").write_bytes(b"123")
    assert file_bytes(tmp_path) == 8
    assert file_bytes(tmp_path / "model.onnx") == 5


def test_candidates_take_turns_and_warm_up_is_thrown_away() -> None:
    calls: list[str] = []
    samples = measure_latency({n: lambda n=n: calls.append(n) for n in "abc"}, repeats=4, warmup=2)  # type: ignore[misc]
    rounds = [calls[i : i + 3] for i in range(0, len(calls), 3)]
    assert len(rounds) == 6
    assert all(sorted(turn) == ["a", "b", "c"] for turn in rounds)
    assert len({tuple(turn) for turn in rounds}) > 1  # nobody always runs after the same neighbour
    assert {name: len(values) for name, values in samples.items()} == {"a": 4, "b": 4, "c": 4}


def test_latency_is_in_milliseconds() -> None:
    samples = measure_latency({"sleeper": lambda: time.sleep(0.005)}, repeats=3, warmup=0)["sleeper"]
    assert all(5.0 <= value < 2000.0 for value in samples)


def test_garbage_collection_is_off_while_the_clock_runs_and_on_again_even_after_an_error() -> None:
    seen: list[bool] = []
    measure_latency({"a": lambda: seen.append(gc.isenabled())}, repeats=2)
    assert not any(seen)
    assert gc.isenabled()

    def broken() -> None:
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        measure_latency({"a": broken}, repeats=1)
    assert gc.isenabled()


def test_summary_is_the_median_and_the_95th_percentile() -> None:
    assert summarise_latency(np.arange(101.0)) == (50.0, 95.0)


def test_interval_of_the_median_is_that_of_tables_and_covers_it() -> None:
    # order statistics for 95 % of 20 samples are the 6th and the 15th: P(6 <= Binomial(20, 1/2) <= 14) = 0.9586
    assert (
        sum(math.comb(20, k) for k in range(6, 15)) / 2**20
        >= 0.95
        > sum(math.comb(20, k) for k in range(7, 14)) / 2**20
    )
    assert median_interval(np.arange(1.0, 21.0)) == (6.0, 15.0)
    assert median_interval(np.arange(1.0, 7.0)) == (1.0, 6.0)
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(1000):
        low, high = median_interval(rng.lognormal(0, 0.3, 50))
        inside += low <= 1.0 <= high
    assert 0.94 <= inside / 1000 <= 0.985  # at least 95 %, and not much more: 0.9672 by the binomial


def test_too_few_samples_have_no_interval() -> None:
    with pytest.raises(ValueError, match="5 samples: no interval of 95 % with fewer than 6"):
        median_interval(np.arange(5.0))


def test_pinned_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    with pinned_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_pareto_front_worked_by_hand() -> None:
    costs, accuracies = [10, 5, 5, 1, 20], [0.9, 0.9, 0.8, 0.7, 0.95]
    #   beaten by the second; kept; beaten by the second; cheapest; best
    assert pareto_front(costs, accuracies) == [False, True, False, True, True]


def test_equal_candidates_are_both_on_the_pareto_front() -> None:
    assert pareto_front([1, 1], [0.5, 0.5]) == [True, True]
