"""Networks of each kind prune; and benchmarks/coverage.py would say so if they did not."""

import re
import time
from pathlib import Path

import pytest
import torchvision

from benchmarks import coverage

ROOT = Path(__file__).parents[2]
GOOD = {"macs_left": 0.4, "params_left": 0.5, "step": True, "loads": True, "onnx_difference": 1e-7}


KINDS = (
    "torchvision:mobilenet_v3_small",  # depthwise, squeeze and excitation
    "timm:resnet10t",  # residual
    "timm:deit_tiny_patch16_224",  # heads, class token, table of positions
)
OTHER_KINDS = (
    "torchvision:squeezenet1_1",  # concatenation, and a convolution that classifies
    "torchvision:shufflenet_v2_x0_5",  # channel shuffle
    "torchvision:regnet_y_400mf",  # grouped; its widths are worked out with tensors
    "timm:convnext_atto",  # layer norm, layer scale
    "resnet20a",  # shortcuts without parameters
    "timm:swin_s3_tiny_224",  # windows, patch merging, buffers that are not saved
)


@pytest.mark.integration
@pytest.mark.parametrize("name", [*KINDS, *(pytest.param(name, marks=pytest.mark.long) for name in OTHER_KINDS)])
def test_a_network_of_each_kind_prunes(name):
    result = coverage.judge(name, coverage.family_of(name).size, limit_gb=6, timeout_s=600)
    assert coverage.verdict({"params": 0, **result}) == "prunes"


def eat(gigabytes):
    block = bytearray(int(gigabytes * 2**30))
    for start in range(0, len(block), 4096):
        block[start] = 1
    time.sleep(30)
    return {}


def sleep(seconds):
    time.sleep(seconds)
    return {"slept": seconds}


def fall_over():
    raise ValueError("no such width\nand a second line")


@pytest.mark.integration
def test_a_process_ends_with_its_result_or_with_the_reason():
    assert coverage.bounded(sleep, (0,), 6, 60) == {"slept": 0}
    assert coverage.bounded(fall_over, (), 6, 60) == {"failed": "ValueError: no such width"}
    assert coverage.bounded(sleep, (60,), 6, 1) == {"failed": "more than 1 s"}
    assert coverage.bounded(eat, (1.5,), 1.2, 60) == {"failed": "more than 1.2 GB"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "prunes"),
        ({"loads": False}, "FAILS: 0.6: loads"),
        ({"step": False}, "FAILS: 0.6: step"),
        ({"onnx_difference": 3e-3}, "FAILS: 0.6: ONNX 3e-03"),
        ({"macs_left": 0.46}, "FAILS: 0.6: 46% of the MACs are left"),
    ],
)
def test_one_thing_amiss_is_a_failure_that_names_it(change, said):
    result = {"params": 1e6, "size": 64, "ratios": {"0.3": GOOD, "0.6": GOOD | change}}
    assert coverage.verdict(result) == said
    assert coverage.passes(result) is (not change)


def test_an_exporter_that_cannot_do_the_whole_network_is_told_and_not_held_against_pruning():
    rows = {ratio: {key: value for key, value in GOOD.items() if key != "onnx_difference"} for ratio in ("0.3", "0.6")}
    result = {"params": 1e6, "size": 64, "no_onnx": True, "ratios": rows}
    assert coverage.verdict(result) == "prunes; PyTorch's ONNX exporter fails, on the whole network too"
    assert coverage.passes(result)
    assert not coverage.passes({**result, "no_onnx": False})


def test_every_classifier_of_torchvision_is_on_the_list_and_in_a_family():
    names = coverage.networks()
    assert {n.removeprefix("torchvision:") for n in names if n.startswith("torchvision:")} == set(
        torchvision.models.list_models(module=torchvision.models)
    )
    assert {coverage.family_of(name).name for name in names} == {family.name for family in coverage.FAMILIES}
    assert coverage.family_of("timm:tf_efficientnet_lite0").name == "efficientnet lite"
    assert coverage.family_of("torchvision:wide_resnet50_2").name == "resnet"


def test_what_is_too_large_is_listed_with_what_stands_for_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "benchmarks").mkdir()
    monkeypatch.setattr(coverage, "judge", lambda *_: {"size": 64, "ratios": {"0.3": GOOD, "0.6": GOOD}})
    coverage.run(["torchvision:vit_h_14", "torchvision:vit_b_16"], 6, 60)
    results = coverage.read()
    assert (
        coverage.verdict(results["torchvision:vit_h_14"]) == "not run here (size; torchvision:vit_b_16 stands for it)"
    )
    assert coverage.verdict(results["torchvision:vit_b_16"]) == "prunes"


def test_the_page_is_made_of_the_results():
    text = (ROOT / coverage.PAGE).read_text()
    results = coverage.json.loads((ROOT / coverage.RESULTS).read_text())
    assert coverage.page(text, results) == text, "python -m benchmarks.coverage --write"
    rows = re.findall(r"^\| [\w ]+ \| (?:(?:torchvision|timm):\w+|resnet\w+|wrn[\d-]+) \|.*$", text, re.MULTILINE)
    assert len(rows) == len(results)
    assert not [row for row in rows if "FAILS" in row]
    for name in coverage.networks():
        assert f" {name} |" in text or f" {name}" in text.split("No result yet")[1], "nothing is left out silently"
