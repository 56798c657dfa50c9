"""benchmarks/gpu.py runs to its end without a GPU, and without the three tools; what it says follows from its rows."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import gpu

ROOT = Path(__file__).parents[2]
LACKING = ("prefect", "dvc", "mlflow")
BLOCKED = f"""
import importlib.machinery, sys

class Lacking(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in {LACKING!r} else super().find_spec(name, path, target)

sys.meta_path[:] = [Lacking if finder is importlib.machinery.PathFinder else finder for finder in sys.meta_path]
"""
IMPORTS = f"""
import importlib, pathlib
for file in sorted(pathlib.Path("thinner").rglob("*.py")):
    if "bundled" not in file.parts:
        importlib.import_module(".".join(file.with_suffix("").parts))
for stage in ("prepare", "finetune", "scratch", "teach", "distill", "prune", "small", "export", "evaluate"):
    importlib.import_module(f"tasks.{{stage}}")
import benchmarks.gpu
sys.path.insert(0, "tests")
import test_gpu
assert test_gpu.TOOLS == list({LACKING!r}), test_gpu.TOOLS
print("all are there")
"""
PROGRAM = """
import runpy
runpy.run_module("benchmarks.gpu", run_name="__main__", alter_sys=True)
"""
ROWS = {"resnet50": 9, "student": 8, "mobilenet": 8, "teach": 3, "distill": 6, "deterministic": 4, "compile": 4}
GOALS = {"resnet50": [0.95], "student": [0.90], "mobilenet": [0.85], "teach": [0.90], "distill": [3.0]}


def python(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    # what a compiler makes of a network is tested elsewhere, and takes a minute
    env = os.environ | {"OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", BLOCKED + program, *arguments],
        cwd=ROOT, env=env, text=True, capture_output=True, check=False,
    )  # fmt: skip


@pytest.mark.integration
def test_thinner_the_stages_and_the_gpu_tests_import_without_the_three_tools():
    done = python(IMPORTS)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "all are there" in done.stdout


@pytest.mark.integration
def test_the_command_runs_to_its_end_without_the_tools_and_without_a_gpu(tmp_path):
    file = tmp_path / "gpu.json"
    done = python(PROGRAM, "--device", "cpu", "--quick", "--json", str(file))
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(file.read_text())
    parts = found["parts"]
    assert list(parts) == list(gpu.PARTS)
    assert {name: part["failure"] for name, part in parts.items()} == dict.fromkeys(parts)
    assert {name: len(part["rows"]) for name, part in parts.items()} == ROWS
    for name, part in parts.items():
        assert [row["least"] for row in part["rows"] if row["least"] is not None] == GOALS.get(name, [])
        for row in part["rows"]:
            assert row["name"] in done.stdout
            only_on_a_gpu = row["name"] in ("peak memory", "of the card's figure")
            assert (row["value"] is None) == only_on_a_gpu, row
            assert only_on_a_gpu or row["value"] > 0
    resnet50 = {row["name"]: row["value"] for row in parts["resnet50"]["rows"]}
    hours = 90 * 1_281_167 / resnet50["with the real data path"] / 3600
    assert resnet50["ImageNet, 90 passes at that rate"] == pytest.approx(hours)
    assert found["card"] is None
    assert found["libraries"].keys() == set(gpu.LIBRARIES)
    assert "nothing of speed" in done.stdout


def bench(tmp_path, until=float("inf")):
    import torch

    return gpu.Bench({}, torch.device("cpu"), gpu.QUICK, True, tmp_path, until)


def test_a_part_that_fails_is_one_line_and_the_others_run(tmp_path, monkeypatch, capsys):
    def broken(bench):
        raise ValueError("first line\nsecond line")

    def right(bench):
        return [gpu.Row("a ratio", 0.97, "times", 0.96, 0.98, 0.95), gpu.Row("memory", None, "GiB")]

    monkeypatch.setattr(gpu, "PARTS", {"broken": broken, "right": right})
    kept = []
    found = gpu.run(bench(tmp_path), ["broken", "right"], lambda known: kept.append(json.dumps(known)))
    assert [len(json.loads(known)["parts"]) for known in kept] == [1, 2]  # after each part, so a limit loses nothing
    assert found["parts"]["broken"]["failure"] == "ValueError: first line second line"
    assert found["parts"]["right"]["failure"] is None
    assert not gpu.all_hold(found)
    text = gpu.render(found)
    assert "right: a ratio, >= 0.95: holds (0.970)" in text
    assert "broken: NO (failed)" in text
    del found["parts"]["broken"]
    assert gpu.all_hold(found)


def test_a_card_that_is_too_small_costs_the_parts_that_do_not_fit(tmp_path, monkeypatch):
    """The text is one of PyTorch's; there is no card here that could be filled."""
    import torch

    def large(bench):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has 7.79 GiB")

    monkeypatch.setattr(gpu, "PARTS", {"large": large, "small": lambda bench: [gpu.Row("a ratio", 1.0, "times")]})
    found = gpu.run(bench(tmp_path), ["large", "small"], lambda known: None)
    text = gpu.render(found)
    assert "large: NO (failed)" in text and "small         a ratio" in text
    assert "2.00 GiB. GPU 0 has 7.79 GiB; the sizes are for a card of 40 GB or more" in text


def test_no_part_leaves_its_store_on_the_card(tmp_path, monkeypatch):
    """Peak memory would count it, and each part would leave another."""
    import torch

    from thinner.files import yaml_files
    from thinner.learn import training

    monkeypatch.setattr(training, "_there", {})
    monkeypatch.setattr(
        training, "on_device", lambda images, device: training._there.setdefault(0, torch.tensor(images))
    )
    monkeypatch.setattr(gpu, "set_up_torch", lambda run: None)
    raw = yaml_files.read(ROOT / "params.yaml")
    small = gpu.Bench(raw, torch.device("cpu"), gpu.QUICK, True, tmp_path, float("inf"))
    with small.store("small") as data:
        *_, batches = gpu.open_job(small, gpu.QUICK.student, data, "small")
    assert batches.there is None and training._there == {}


def test_the_page_says_how_large_a_card_is_meant():
    assert f"a card of {gpu.NEEDS_GB} GB or more" in (ROOT / "docs/gpu.md").read_text()


@pytest.mark.parametrize(("value", "holds"), [(0.95, True), (0.949, False), (None, False)])
def test_a_goal_holds_from_its_number_on(value, holds):
    assert gpu.Row("a ratio", value, "times", least=0.95).holds is holds
    assert gpu.Row("a ratio", value, "times").holds


def test_what_has_not_begun_in_time_does_not_begin(tmp_path):
    late = bench(tmp_path, until=0.0)
    found = gpu.run(late, ["teach"], lambda known: None)
    assert found["parts"]["teach"]["failure"] == "OutOfTimeError: no time is left"
    with pytest.raises(gpu.OutOfTimeError, match="no time is left after -1 of 10 rounds"):
        gpu.take_turns(late, "late", {"way": lambda number: 1.0})


def test_ways_take_turns_and_the_first_round_does_not_count(tmp_path):
    seen = []

    def way(name, seconds):
        def call(number):
            seen.append((number, name))
            return seconds + number

        return call

    times = gpu.take_turns(bench(tmp_path), "turns", {"one": way("one", 100), "two": way("two", 200)})
    assert times["one"].tolist() == [100 + number for number in range(gpu.ROUNDS)]
    assert [number for number, _ in seen] == [number for number in range(-1, gpu.ROUNDS) for _ in range(2)]
    assert len({tuple(name for _, name in seen[i : i + 2]) for i in range(0, len(seen), 2)}) == 2  # both orders
    row = gpu.ratio("a ratio", {"real": np.full(10, 2.0), "held": np.full(10, 1.9)}, "real", "held", 0.9)
    assert row.value == pytest.approx(0.95)
    assert row.holds


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.5), ("NVIDIA H100 PCIe", 756.5), ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.5), ("NVIDIA H200 NVL", 835.5), ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
    ],
)  # fmt: skip
def test_the_cards_figure_is_half_of_its_dense_flops(name, teraflops):
    rate, source = gpu.card_rate(name)
    assert rate == teraflops * 1e12 / 2
    assert source.startswith("https://www.nvidia.com/")


def test_of_an_unknown_card_no_share_is_told():
    assert gpu.card_rate("NVIDIA GeForce RTX 4090") is None
    assert gpu.card_rate("") is None


def test_without_a_cuda_device_it_says_what_to_do(capsys, monkeypatch):
    import torch

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    assert "--device cpu --quick" in capsys.readouterr().err
