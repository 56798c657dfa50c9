"""thinner bundle --bench and thinner device add: this machine as 'the other one'."""

import csv
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from flows import cli
from tasks import devices as bringing
from tasks.report import judge_runs
from tests.programs import load_program
from tests.tasks.test_bundle import make, network, write_project
from thinner.compress import quantization
from thinner.errors import DamagedError, UserError
from thinner.evidence import candidates, shipping
from thinner.measure import devices
from thinner.networks import checkpoint, export, models
from thinner.predict import weights_sha256
from thinner.ship import bundle as bundling

CLAIM = "prune is faster than distill at batch 1 on pi5"


def write_projects(root: Path) -> Path:
    """A project with prune, and a distill that is wider, as evaluate left it."""
    write_project(root)
    about = replace(network(1)[0], width=32)
    torch.manual_seed(2)
    spec = checkpoint.read_spec(root / "data/prune")
    checkpoint.save(root / "data/distill", models.create(about), {**spec, "network": about.as_json()})
    row = json.loads((root / "reports/metrics.json").read_text())["prune"]
    (root / "reports/metrics.json").write_text(json.dumps({"finetune": row, "distill": row, "prune": row}))
    places = {"distill": root / "data/distill", "prune": root / "data/prune"}
    environment = {"test_images": 40, "weights_sha256": {name: weights_sha256(path) for name, path in places.items()}}
    (root / "reports/evaluate/environment.json").write_text(json.dumps(environment))
    # what evaluate left: forty images and one time of each
    (root / "data/evaluate").mkdir()
    labels = np.arange(40) % 3
    predictions = {f"predictions.{name}": labels for name in ("finetune", "distill", "prune")}
    np.savez(root / "data/evaluate/predictions.npz", index=np.arange(40), labels=labels, **predictions)
    (root / "data/evaluate/latency.csv").write_text(
        "candidate,batch,round,latency_ms\nprune,1,0,1.0\ndistill,1,0,2.0\n"
    )
    return root


def write_times(root: Path, path: Path) -> Path:
    """What bench.py would write: thirty rounds in which distill takes about twice as long."""
    rng = np.random.default_rng(0)
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(bench().COLUMNS)
        for batch in (1, 3):
            for number in range(30):
                for name in rng.permutation(["distill", "prune"]):
                    took = batch * (2 if name == "distill" else 1) * rng.uniform(0.9, 1.2)
                    there = (f"{took:.6f}", 1, "51.3", "", "Some Pi", 4, "Linux aarch64", "1.32.0")
                    table.writerow((name, weights_sha256(root / "data" / name), batch, number, *there))
    return path


def bench() -> Any:
    return load_program(bundling.PROGRAMS / "bench.py")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A project, and the times that came back."""
    root = write_projects(tmp_path_factory.mktemp("project"))
    return root, write_times(root, tmp_path_factory.mktemp("elsewhere") / "bench.csv")


@pytest.fixture
def project(measured: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A copy of both, in which one is."""
    root = Path(shutil.copytree(measured[0], tmp_path / "project"))
    monkeypatch.chdir(root)
    return root, Path(shutil.copy(measured[1], tmp_path))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_what_comes_back_is_on_the_page_in_the_table_of_costs_and_in_claims(project: tuple[Path, Path]) -> None:
    root, file = project
    done = CliRunner().invoke(cli.app, ["device", "add", "pi5", str(file)])
    assert done.exit_code == 0, done.output
    assert (root / "reports/devices/pi5.csv").read_bytes() == file.read_bytes()
    times = [float(row["latency_ms"]) for row in rows_of(file) if (row["candidate"], row["batch"]) == ("prune", "3")]
    known = devices.read_devices(root / "reports")
    assert list(known) == ["pi5"] and set(known["pi5"].weights) == {"distill", "prune"}  # which evaluate measured
    np.testing.assert_array_equal(known["pi5"].latency_ms[3]["prune"], times)
    found = devices.with_times(shipping.read_metrics(root / "reports/metrics.json"), known)
    assert found["prune"]["latency_ms_b3_on_pi5"] == np.median(times)
    assert found["prune"]["low_ms_b3_on_pi5"] <= np.median(times) <= found["prune"]["high_ms_b3_on_pi5"]
    assert "latency_ms_b3_on_pi5" not in found["finetune"]
    full = {
        name: {**row, "throughput_b1": 1.0, "latency_ms_b1_p95": 1.0, "params_nonzero": 1}
        for name, row in found.items()
    }
    table = candidates.costs(full)
    column = table.headings.index("ms, batch 3, on pi5")
    assert table.headings[column + 1] == "95 %, batch 3, on pi5"
    cells = {row[0]: row[column] for row in table.rows}
    assert cells["prune"] == f"{np.median(times):.3g}" and cells["finetune"] == ""
    (verdict,) = judge_runs([root], [CLAIM], 0).values()
    assert verdict["outcome"] == "proven" and verdict["count"] == 30
    both = [
        np.array([float(row["latency_ms"]) for row in rows_of(file) if (row["candidate"], row["batch"]) == (name, "1")])
        for name in ("distill", "prune")
    ]
    by_round = [
        np.array([row["round"] for row in rows_of(file) if row["candidate"] == name]) for name in ("distill", "prune")
    ]
    assert (by_round[0] == by_round[1]).all()
    assert verdict["effect"] == pytest.approx(np.exp(np.log(both[0] / both[1]).mean()))


def test_times_of_other_weights_are_refused_and_leave_when_the_network_is_trained_anew(
    project: tuple[Path, Path],
) -> None:
    root, file = project
    bringing.add(root, "pi5", file)
    loaded = checkpoint.load(root / "data/prune")
    with torch.no_grad():
        next(iter(loaded.model.parameters())).mul_(1.001)
    checkpoint.save(root / "data/prune", loaded.model, loaded.spec)
    with pytest.raises(
        UserError,
        match=r"is of other weights of prune \(SHA-256 \w{12}\) than the present ones .* thinner bundle --bench",
    ):
        bringing.add(root, "pi5", file)
    environment = json.loads((root / "reports/evaluate/environment.json").read_text())
    environment["weights_sha256"]["prune"] = weights_sha256(root / "data/prune")  # evaluate has run
    (root / "reports/evaluate/environment.json").write_text(json.dumps(environment))
    assert set(devices.read_devices(root / "reports")["pi5"].weights) == {"distill"}
    (verdict,) = judge_runs([root], [CLAIM], 0).values()
    assert verdict["outcome"] == "not shown"
    assert verdict["numbers"].startswith("pi5 has not timed these weights at batch 1: thinner bundle --bench")
    shutil.rmtree(root / "data/distill")
    with pytest.raises(UserError, match="has times of 'distill', and there is no such network here"):
        bringing.add(root, "pi5", file)


@pytest.mark.parametrize("name", ["", "5pi", "../pi", "pytorch", "pi 5", "a" * 41])
def test_a_device_has_a_name_that_a_claim_can_say(project: tuple[Path, Path], name: str) -> None:
    with pytest.raises(UserError, match="give it a name of letters, digits, _ and -"):
        bringing.add(project[0], name, project[1])


Rows = list[dict[str, str]]


def changed(**values: str) -> Callable[[Rows], Rows]:
    return lambda rows: [{**rows[0], **values}, *rows[1:]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: [], "has no times"),
        (lambda rows: [{k: v for k, v in row.items() if k != "batch"} for row in rows], "has no column batch"),
        (changed(latency_ms="soon"), "has something in latency_ms that cannot be"),
        (changed(latency_ms="nan"), "has something in latency_ms that cannot be"),
        (changed(latency_ms="0"), "has a time of 0"),
        (changed(latency_ms="-1"), "has something in latency_ms that cannot be"),
        (changed(batch="1.5"), "has a fraction in batch"),
        (changed(cpu="Another"), "is of several machines or settings: cpu is Another and"),
        (changed(threads="4"), "is of several machines or settings: threads is 4 and 1"),
        (changed(weights_sha256="0"), "has two networks of one name"),
        (lambda rows: rows[1:], "has not the same rounds of all networks at batch 1"),
        (lambda rows: [*rows, rows[0]], "rounds at batch 1"),
        (lambda rows: [row for row in rows if int(row["round"]) < 9], "has 9 rounds at batch 1; 10 are needed"),
    ],
)
def test_what_bench_did_not_write_is_refused_in_one_line(
    project: tuple[Path, Path], change: Callable[[Rows], Rows], said: str
) -> None:
    root, file = project
    rows = rows_of(file)
    rows = sorted(rows, key=lambda row: (int(row["batch"]), int(row["round"]), row["candidate"]))
    after = change(rows)
    with file.open("w", newline="") as text:
        table = csv.DictWriter(text, fieldnames=list(after[0]) if after else list(rows[0]))
        table.writeheader()
        table.writerows(after)
    with pytest.raises(DamagedError, match=re.escape(said)) as refused:
        bringing.add(root, "pi5", file)
    assert "\n" not in str(refused.value) and "Make it again on the device: python bench.py" in str(refused.value)
    assert not (root / "reports/devices/pi5.csv").exists()


@pytest.mark.parametrize("content", [b"", b"\x00\xff\xfe", b"\x89PNG\r\n\x1a\n" * 50])
def test_what_is_no_table_is_refused_in_one_line(project: tuple[Path, Path], content: bytes) -> None:
    project[1].write_bytes(content)
    with pytest.raises(DamagedError, match="Make it again on the device") as refused:
        bringing.add(project[0], "pi5", project[1])
    assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match="no such file. It is what bench.py of a bundle writes"):
        bringing.add(project[0], "pi5", Path("nowhere.csv"))


@pytest.mark.integration
def test_this_machine_as_the_other_one(project: tuple[Path, Path], tmp_path: Path) -> None:
    """The bundle is moved, times all networks, and what it writes comes back; with int8, and without what is a twin."""
    root = project[0]
    loaded = checkpoint.load(root / "data/prune")
    for name in ("prune_onnx", "prune_onnx_int8", "prune_pt2"):
        place = root / "data/export" / name
        place.mkdir(parents=True)
        if name == "prune_pt2":
            export.export_pt2(loaded.model, place / "model.pt2", (1, 32, 32), {})
        elif name == "prune_onnx":
            export.export_onnx(loaded.model, place / "model.onnx", (1, 32, 32), {}, 20)
        else:
            noise = np.random.default_rng(0).normal(size=(4, 1, 32, 32)).astype(np.float32)
            quantization.quantise_onnx(root / "data/export/prune_onnx/model.onnx", place / "model.onnx", [noise])
        file = "model.pt2" if name == "prune_pt2" else "model.onnx"
        checkpoint.write_spec(place, {**loaded.spec, "format": name.removeprefix("prune_")}, file)
    folder = Path(shutil.move(root / make(root, bench=True), tmp_path / "moved"))
    names = {"distill", "prune", "prune_onnx_int8"}  # prune_onnx is prune, and prune_pt2 needs torch
    assert {path.name for path in (folder / "bench").iterdir()} == {
        "networks.json",
        *(f"{name}.onnx" for name in names),
    }

    def timed(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", str(folder / "bench.py"), *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    done = timed("--rounds", "30", "--batches", "1,3", "--out", "here.csv")
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "here.csv")
    assert sorted((row["candidate"], row["batch"], int(row["round"])) for row in rows) == sorted(
        (name, batch, number) for name in names for batch in ("1", "3") for number in range(30)
    )
    rounds = [tuple(row["candidate"] for row in rows[i : i + 3]) for i in range(0, len(rows), 3)]
    assert {frozenset(each) for each in rounds} == {frozenset(names)} and len(set(rounds)) > 1  # in changing order
    for row in rows:
        assert float(row["latency_ms"]) > 0 and row["threads"] == "1" and row["cpu"] and row["onnxruntime"]
        assert re.fullmatch(r"(\d+\.\d)?", row["temperature_c"]) and re.fullmatch(r"\d*", row["clock_mhz"])
    bringing.add(root, "here", tmp_path / "here.csv")
    (verdict,) = judge_runs([root], [CLAIM.replace("pi5", "here")], 0).values()
    assert verdict["outcome"] == "proven", verdict  # distill has eight times the width
    (folder / "bench/prune.onnx").write_bytes((folder / "bench/prune.onnx").read_bytes() + b" ")
    done = timed("--out", "there.csv")
    assert done.returncode == 1 and done.stderr.startswith("prune.onnx: is not the file that was bundled")
    assert not (tmp_path / "there.csv").exists()
    done = timed("--batches", "0")
    assert done.returncode == 2 and "whole numbers of 1 or more" in done.stderr
