"""export, evaluate and report as stages, on tiny real networks and a tiny real store."""

import csv
import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

from flows import cli
from tasks import evaluate as evaluating
from tasks.evaluate import evaluate
from tasks.export import export
from tasks.report import judge_runs, report
from tasks.stage import Stage
from thinner.config import load_params
from thinner.data import views
from thinner.data.store import open_store
from thinner.data.views import preprocess
from thinner.measure import operating
from thinner.measure.profiling import pinned_threads
from thinner.networks import checkpoint, models
from thinner.networks import export as exporting
from thinner.networks.export import open_session
from thinner.networks.spec import NetworkSpec
from thinner.predict import open_candidate, predict, predict_logits

CLASSES = ("dark", "medium", "bright")
TEST = 30
PREPROCESSING = views.Preprocessing(12, mean=(0.5,), std=(0.25,))
EXPORTS = {f"{name}_{format_}" for name in ("distill", "prune") for format_ in ("onnx", "onnx_int8", "pt2")}
CANDIDATES = {"finetune", "scratch", "distill", "small", "prune"} | EXPORTS
REPEATS = 10
CLAIMS = [
    "prune is smaller than finetune by 2x in parameters",
    "finetune is smaller than prune in macs",
    "prune_onnx agrees with prune on 80 % of images",
    "prune is faster than finetune by 1000x at batch 4 in pytorch",
    "prune is faster than distill by 1000x at batch 4 in onnxruntime",
]
PARAMS = load_params(Path(__file__).parents[2] / "params.yaml")
SMALL = PARAMS.model_copy(
    update={
        "run": PARAMS.run.model_copy(update={"device": "cpu"}),
        "claims": CLAIMS,
        "export": PARAMS.export.model_copy(update={"formats": ["onnx", "onnx_int8", "pt2"], "calibration_images": 6}),
        "evaluate": PARAMS.evaluate.model_copy(
            update={
                "batch_size": 7,
                "latency_batches": [1, 4],
                "latency_repeats": REPEATS,
                "latency_threads": 1,
                "corruptions": True,
            }
        ),
        "report": PARAMS.report.model_copy(update={"samples": 2}),
        "quantize": PARAMS.quantize.model_copy(update={"rungs": []}),  # tests/tasks/test_quantize.py has those
    }
)


def write_store(folder: Path) -> None:
    """10x10 grey images, brighter with each class."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    images = (labels[:, None, None, None] * 80 + rng.integers(0, 80, (60, 10, 10, 1))).astype(np.uint8)
    splits = {
        "labelled": np.arange(0, 12),
        "unlabelled": np.arange(12, 18),
        "validation": np.arange(18, 30),
        "test": np.arange(30, 60),
    }
    np.save(folder / "images.npy", images)
    np.save(folder / "labels.npy", labels)
    np.savez(folder / "splits.npz", **splits)  # type: ignore[arg-type]
    info = {
        "classes": list(CLASSES),
        "sha256": "0" * 64,
        "source": "made here",
        "counts": {name: len(values) for name, values in splits.items()},
    }
    (folder / "info.json").write_text(json.dumps(info))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which export, evaluate and report have run."""
    root = tmp_path_factory.mktemp("project")
    write_store(root / "data" / "prepared")
    for seed, (name, width) in enumerate({"finetune": 8, "scratch": 4, "distill": 4, "prune": 4, "small": 4}.items()):
        torch.manual_seed(seed)
        network = NetworkSpec("resnet8", 3, 1, width=width, stem_stride=1)
        checkpoint.save(
            root / "data" / name, models.create(network),
            {"stage": name, "network": network.as_json(), "classes": list(CLASSES), "preprocessing": PREPROCESSING.as_json(),
             "parents": {}, "data_sha256": "0" * 64},
        )  # fmt: skip
    (root / "reports").mkdir()
    (root / "reports" / "prepare.json").write_text(
        json.dumps(
            {
                "origin": "made here",
                "unreadable": {"count": 0},
                "duplicates": {"count": 0},
                "leakage": {"count": {}},
            }
        )
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for name, stage in (("export", export), ("evaluate", evaluate), ("report", report)):
            stage(Stage(name, SMALL))
    return root


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def results(finished: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads((finished / "reports" / "metrics.json").read_text())
    return found


@pytest.mark.integration
@pytest.mark.by_itself
def test_every_candidate_has_every_number(results: dict[str, dict[str, Any]]) -> None:
    assert set(results) == CANDIDATES
    for row in results.values():
        assert set(row) == {
            "accuracy", "balanced_accuracy", "macro_f1", "worst_class", "worst_class_name", "agreement", "params",
            "params_nonzero", "macs", "file_bytes", "runtime",
            "device", "threads", "latency_ms_b1", "latency_ms_b1_p95", "latency_ms_b1_low", "latency_ms_b1_high",
            "latency_ms_b4", "latency_ms_b4_p95", "latency_ms_b4_low", "latency_ms_b4_high", "throughput_b1",
            "throughput_b4", "nll", "brier", "ece", "temperature", "nll_scaled", "brier_scaled", "ece_scaled", "aurc",
            "peak_memory_bytes", "corruption_accuracy",
        }  # fmt: skip
        assert all(
            0 <= row[key] <= 1 for key in ("accuracy", "balanced_accuracy", "macro_f1", "worst_class", "agreement")
        )
        assert all(row[key] > 0 for key in ("params", "macs", "file_bytes", "latency_ms_b1", "latency_ms_b4"))


@pytest.mark.parametrize(("classes", "there"), [(5, False), (6, True), (9, True)])
def test_top_5_is_measured_where_there_are_more_than_five_classes(classes: int, there: bool) -> None:
    rng = np.random.default_rng(0)
    labels, logits = rng.integers(0, classes, 200), rng.normal(size=(200, classes)).astype(np.float32)
    found = evaluating._confidence(labels, logits, 1.0)
    assert ("accuracy_top5" in found) == there
    if there:
        expected = np.mean([label in np.argsort(-row)[:5] for label, row in zip(labels, logits, strict=True)])
        assert found["accuracy_top5"] == pytest.approx(expected, rel=1e-12)
        assert 0 < expected < 1


@pytest.mark.integration
@pytest.mark.parametrize("threads", [1, 2])
def test_while_latencies_are_measured_threads_are_as_many_as_asked(
    finished: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """What runs is real; it is only looked at on its way."""
    measure, run_session = evaluating.measure_latency, exporting.run_session
    of_torch: list[int] = []
    of_sessions: list[int] = []

    def measure_watched(calls: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        def watched(call: Any) -> Any:
            def look_and_call() -> Any:
                of_torch.append(torch.get_num_threads())
                return call()

            return look_and_call

        return measure({name: watched(call) for name, call in calls.items()}, *arguments, **options)

    def run_watched(session: Any, inputs: Any) -> Any:
        of_sessions.append(session.get_session_options().intra_op_num_threads)
        return run_session(session, inputs)

    monkeypatch.setattr(evaluating, "measure_latency", measure_watched)
    monkeypatch.setattr(exporting, "run_session", run_watched)
    params = SMALL.model_copy(update={"evaluate": SMALL.evaluate.model_copy(update={"latency_threads": threads})})
    places = {"prune": finished / "data/prune"}
    places |= {name: finished / "data/export" / name for name in ("prune_onnx", "prune_onnx_int8", "prune_pt2")}
    others = 3 - threads  # of everything before and after
    with pinned_threads(others):
        candidates = {name: open_candidate(path, threads=others) for name, path in places.items()}
        evaluating._time(Stage("evaluate", params), open_store(finished / "data" / "prepared"), candidates, places)
        assert torch.get_num_threads() == others
    rounds = 2 * (REPEATS + 5)  # two batch sizes; five rounds of warm-up
    assert of_torch == [threads] * rounds * len(places)
    assert of_sessions == [threads] * rounds * 2


def test_the_docs_explain_every_number(results: dict[str, dict[str, Any]]) -> None:
    text = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
    for key in results["prune"]:
        assert f"`{key.replace('_b4', '_b1')}`" in text


@pytest.mark.integration
def test_accuracy_is_that_of_the_test_split_and_an_odd_last_batch_counts(
    finished: Path, results: dict[str, dict[str, Any]]
) -> None:
    store = open_store(finished / "data" / "prepared")
    for name in ("finetune", "prune"):
        loaded = checkpoint.load(finished / "data" / name)
        with torch.inference_mode():  # all 30 at once; evaluate took batches of 7
            predicted = loaded.model(preprocess(np.array(store.images[30:60]), PREPROCESSING)).argmax(1).numpy()
        assert results[name]["accuracy"] == float((predicted == np.arange(30, 60) % 3).mean())


def test_the_teacher_agrees_with_itself_and_the_onnx_export_with_its_source(
    results: dict[str, dict[str, Any]],
) -> None:
    assert results["finetune"]["agreement"] == 1.0
    for name in ("distill", "prune"):
        for key in ("accuracy", "macro_f1", "agreement", "params", "macs"):
            assert results[f"{name}_onnx"][key] == results[name][key]
            assert results[f"{name}_pt2"][key] == results[name][key]
    assert results["distill"]["agreement"] != results["prune"]["agreement"]  # else the above would show nothing


@pytest.mark.integration
def test_sizes_are_those_of_the_files(finished: Path, results: dict[str, dict[str, Any]]) -> None:
    assert results["prune"]["file_bytes"] == (finished / "data/prune/model.safetensors").stat().st_size
    assert results["prune_onnx"]["file_bytes"] == (finished / "data/export/prune_onnx/model.onnx").stat().st_size
    assert results["prune_pt2"]["file_bytes"] == (finished / "data/export/prune_pt2/model.pt2").stat().st_size
    assert results["prune"]["params"] < results["finetune"]["params"]


@pytest.mark.integration
def test_predictions_of_every_candidate_are_kept_image_by_image(
    finished: Path, results: dict[str, dict[str, Any]]
) -> None:
    with np.load(finished / "data" / "evaluate" / "predictions.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["index"], np.arange(30, 60))
        np.testing.assert_array_equal(arrays["labels"], np.arange(30, 60) % 3)
        for name in CANDIDATES:
            logits = arrays[f"logits.{name}"]
            assert (logits.shape, logits.dtype) == ((TEST, 3), np.float32)
            np.testing.assert_array_equal(arrays[f"predictions.{name}"], logits.argmax(1))
            assert (arrays[f"predictions.{name}"] == arrays["labels"]).mean() == results[name]["accuracy"]
            expected = torch.from_numpy(logits).double().softmax(1).amax(1).numpy()
            np.testing.assert_allclose(arrays[f"confidences.{name}"], expected, rtol=1e-12)


@pytest.mark.integration
def test_every_latency_sample_is_kept_for_later_tests(finished: Path, results: dict[str, dict[str, Any]]) -> None:
    rows = read_csv(finished / "data" / "evaluate" / "latency.csv")
    assert len(rows) == len(CANDIDATES) * 2 * REPEATS
    mine = [float(r["latency_ms"]) for r in rows if (r["candidate"], r["batch"]) == ("prune", "4")]
    assert results["prune"]["latency_ms_b4"] == pytest.approx(np.median(mine))


def test_no_table_holds_a_formula(tmp_path: Path) -> None:
    rows = [('=HYPERLINK("http://x")', -1.5), ("@sum", 0), ("-cat", 1), ("+", 2), ("a=b", 3)]
    evaluating._write_csv(tmp_path / "t.csv", ("class", "n"), rows)
    read = read_csv(tmp_path / "t.csv")
    assert [r["class"] for r in read] == ['\'=HYPERLINK("http://x")', "'@sum", "'-cat", "'+", "a=b"]
    assert read[0]["n"] == "-1.5"


@pytest.mark.integration
def test_tables_for_dvc_plots(finished: Path, results: dict[str, dict[str, Any]]) -> None:
    folder = finished / "reports" / "evaluate"
    confusion = read_csv(folder / "confusion.csv")
    assert len(confusion) == TEST
    assert sum(r["actual"] == r["predicted"] for r in confusion) / TEST == results["prune"]["accuracy"]
    per_class = read_csv(folder / "per_class.csv")
    assert len(per_class) == len(CANDIDATES) * len(CLASSES)
    for r in per_class:  # Wilson's limits, by his formula
        n, p, z = int(r["images"]), float(r["accuracy"]), 1.959963984540054
        half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
        limits = [(p + z**2 / (2 * n) + sign * half) / (1 + z**2 / n) for sign in (-1, 1)]
        assert [float(r["low"]), float(r["high"])] == pytest.approx(limits, abs=1e-12)
    assert any(0 < float(r["accuracy"]) < 1 for r in per_class)  # else a swap of the limits' sides could hide
    mean = sum(float(r["accuracy"]) * int(r["images"]) for r in per_class if r["candidate"] == "scratch") / TEST
    assert mean == pytest.approx(results["scratch"]["accuracy"], rel=1e-12)
    pareto = {r["candidate"]: r for r in read_csv(folder / "pareto.csv")}
    best = max(results, key=lambda name: results[name]["accuracy"])
    equals = [name for name in results if results[name]["accuracy"] == results[best]["accuracy"]]
    assert any(pareto[name]["front_macs"] == "1" for name in equals)


@pytest.mark.integration
def test_temperatures_are_fitted_on_the_validation_split(finished: Path, results: dict[str, dict[str, Any]]) -> None:
    store = open_store(finished / "data" / "prepared")
    loaded = checkpoint.load(finished / "data" / "scratch")
    with torch.inference_mode():
        seen = loaded.model(preprocess(np.array(store.images[18:30]), PREPROCESSING)).double()
    loss = torch.nn.functional.cross_entropy
    tried = torch.logspace(-1.3, 1.3, 4001, dtype=torch.float64)
    best = min(tried, key=lambda t: float(loss(seen / t, torch.arange(18, 30) % 3)))
    assert results["scratch"]["temperature"] == pytest.approx(float(best), rel=2e-3)
    with np.load(finished / "data" / "evaluate" / "predictions.npz") as arrays:
        scaled = torch.from_numpy(arrays["logits.scratch"]).double() / results["scratch"]["temperature"]
        assert results["scratch"]["nll_scaled"] == pytest.approx(float(loss(scaled, torch.arange(30, 60) % 3)))


def test_an_export_has_the_confidences_of_its_source(results: dict[str, dict[str, Any]]) -> None:
    for key in ("nll", "brier", "temperature", "nll_scaled", "aurc"):
        assert results["prune_onnx"][key] == pytest.approx(results["prune"][key], rel=1e-3)


def test_throughput_and_interval_belong_to_the_median(results: dict[str, dict[str, Any]]) -> None:
    for row in results.values():
        assert row["throughput_b4"] == pytest.approx(4 / (row["latency_ms_b4"] / 1000))
        assert row["latency_ms_b4_low"] <= row["latency_ms_b4"] <= row["latency_ms_b4_high"]


@pytest.mark.integration
def test_tables_of_confidence(finished: Path, results: dict[str, dict[str, Any]]) -> None:
    folder = finished / "reports" / "evaluate"
    for scaled, key in (("0", "ece"), ("1", "ece_scaled")):
        rows = [r for r in read_csv(folder / "reliability.csv") if (r["candidate"], r["scaled"]) == ("prune", scaled)]
        assert sum(int(r["images"]) for r in rows) == TEST
        gaps = [int(r["images"]) * abs(float(r["confidence"]) - float(r["accuracy"])) for r in rows]
        assert sum(gaps) / TEST == pytest.approx(results["prune"][key], rel=1e-9)
    curves = read_csv(folder / "risk_coverage.csv")
    assert len(curves) == len(CANDIDATES) * TEST  # 30 images have 30 coverages
    (last,) = (float(r["risk"]) for r in curves if (r["candidate"], r["coverage"]) == ("prune", "1.0"))
    assert last == pytest.approx(1 - results["prune"]["accuracy"])
    assert sum(float(r["risk"]) for r in curves if r["candidate"] == "prune") / TEST == pytest.approx(
        results["prune"]["aurc"]
    )


@pytest.mark.integration
def test_classes_are_listed_by_what_they_lost_against_the_teacher(
    finished: Path, results: dict[str, dict[str, Any]]
) -> None:
    rows = read_csv(finished / "reports" / "evaluate" / "lost_classes.csv")
    assert len(rows) == (len(CANDIDATES) - 1) * len(CLASSES)
    mine = [r for r in rows if r["candidate"] == "scratch"]
    assert [float(r["difference"]) for r in mine] == sorted(float(r["difference"]) for r in mine)
    overall = sum(float(r["difference"]) * int(r["images"]) for r in mine) / TEST
    assert overall == pytest.approx(results["scratch"]["accuracy"] - results["finetune"]["accuracy"])


@pytest.mark.integration
def test_corrupted_accuracy_is_that_of_corrupted_pictures(finished: Path, results: dict[str, dict[str, Any]]) -> None:
    rows = read_csv(finished / "reports" / "evaluate" / "corruptions.csv")
    assert len(rows) == len(CANDIDATES) * 4 * 3
    mine = {(r["corruption"], r["severity"]): float(r["accuracy"]) for r in rows if r["candidate"] == "scratch"}
    assert results["scratch"]["corruption_accuracy"] == pytest.approx(np.mean(list(mine.values())))
    store = open_store(finished / "data" / "prepared")
    pale = np.array(store.images[30:60]).astype(float)
    pale = (0.05 * pale + 0.95 * pale.mean((1, 2), keepdims=True)).round().astype(np.uint8)
    with torch.inference_mode():
        found = checkpoint.load(finished / "data" / "scratch").model(preprocess(pale, PREPROCESSING)).argmax(1).numpy()
    assert mine["contrast", "3"] == (found == np.arange(30, 60) % 3).mean()


@pytest.mark.integration
def test_without_corruptions_nothing_of_them_is_written(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    plain = SMALL.model_copy(update={"evaluate": SMALL.evaluate.model_copy(update={"corruptions": False})})
    evaluate(Stage("evaluate", plain))
    assert not (tmp_path / "reports" / "evaluate" / "corruptions.csv").exists()
    assert "corruption_accuracy" not in json.loads((tmp_path / "reports" / "metrics.json").read_text())["prune"]


@pytest.mark.integration
def test_labels_outside_the_validation_and_test_splits_change_nothing(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished, tmp_path / "copy")
    labels = tmp_path / "copy" / "data" / "prepared" / "labels.npy"
    nonsense = np.load(labels)
    nonsense[:18] = -1  # from 18 to 29 are the validation images, on which temperatures are fitted
    np.save(labels, nonsense)
    monkeypatch.chdir(tmp_path / "copy")
    evaluate(Stage("evaluate", SMALL))
    before, after = (json.loads((root / "reports/metrics.json").read_text()) for root in (finished, tmp_path / "copy"))
    for name in CANDIDATES:
        for key in ("accuracy", "macro_f1", "agreement", "params", "macs", "file_bytes", "ece_scaled", "aurc"):
            assert after[name][key] == before[name][key]
    predictions = Path("data/evaluate/predictions.npz")
    assert (tmp_path / "copy" / predictions).read_bytes() == (finished / predictions).read_bytes()


@pytest.mark.integration
def test_exports_carry_the_spec_of_their_source(finished: Path) -> None:
    for format_ in ("onnx", "onnx_int8"):
        folder = finished / "data" / "export" / f"prune_{format_}"
        spec = json.loads((folder / "model.json").read_text())
        source = checkpoint.load(finished / "data" / "prune")
        assert spec["format"] == format_
        assert spec["parents"] == {"prune": source.sha256}
        assert (spec["classes"], spec["preprocessing"]) == (
            source.spec["classes"],
            source.spec["preprocessing"],
        )
        assert open_session(folder / "model.onnx").get_inputs()[0].shape == ["batch", 1, 12, 12]


@pytest.mark.integration
def test_exporting_int8_alone_leaves_no_other_export_and_gives_the_same_bytes(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    only = SMALL.model_copy(update={"export": SMALL.export.model_copy(update={"formats": ["onnx_int8"]})})
    export(Stage("export", only))
    made = sorted(path.name for path in (tmp_path / "data" / "export").iterdir())
    assert made == ["distill_onnx_int8", "prune_onnx_int8"]
    for file in (finished / "data" / "export" / "prune_onnx_int8").iterdir():
        assert (tmp_path / file.relative_to(finished)).read_bytes() == file.read_bytes()


@pytest.mark.integration
def test_report_holds_the_numbers_of_evaluate(finished: Path, results: dict[str, dict[str, Any]]) -> None:
    page = (finished / "reports" / "report.html").read_text()
    table = (finished / "reports" / "results.md").read_text()
    assert f"{results['prune']['params']:,} parameters" in page
    assert f"{100 * results['finetune']['accuracy']:.1f} %" in table
    candidates, differences = table.split("### Differences of accuracy")
    lines = [line for line in candidates.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(CANDIDATES) + 2 + len(CLAIMS)
    lines = [line for line in differences.split("\n\n")[1].splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(CANDIDATES) - 1


@pytest.mark.integration
def test_each_claim_has_a_verdict_from_what_evaluate_measured(
    finished: Path, results: dict[str, dict[str, Any]]
) -> None:
    verdicts = json.loads((finished / "reports" / "claims.json").read_text())
    assert [verdict["claim"] for verdict in verdicts.values()] == CLAIMS
    small, larger, agree, *speeds = verdicts.values()
    assert small["outcome"] == "proven"
    assert small["effect"] == results["finetune"]["params"] / results["prune"]["params"]
    assert larger["outcome"] == "refuted"
    assert (agree["effect"], agree["count"]) == (1.0, TEST)
    rows = read_csv(finished / "data" / "evaluate" / "latency.csv")
    for verdict, (mine, other) in zip(speeds, (("prune", "finetune"), ("prune_onnx", "distill_onnx")), strict=True):
        assert verdict["outcome"] == "refuted"
        times = {
            name: np.array([float(r["latency_ms"]) for r in rows if (r["candidate"], r["batch"]) == (name, "4")])
            for name in (mine, other)
        }
        assert verdict["effect"] == pytest.approx(np.exp(np.log(times[other] / times[mine]).mean()), rel=1e-9)
    page = (finished / "reports" / "report.html").read_text()
    assert page.index("Verdicts</h2>") < page.index("Candidates</h2>")
    assert CLAIMS[0] in page


@pytest.mark.integration
def test_reporting_again_gives_the_same_bytes(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = finished / "reports" / "report.html"
    before = page.read_bytes()
    monkeypatch.chdir(finished)
    report(Stage("report", SMALL))
    assert page.read_bytes() == before


@pytest.mark.integration
@pytest.mark.parametrize("folder", ["data/prune", "data/export/prune_onnx", "data/export/prune_pt2"])
def test_predict_names_the_class_of_images_of_any_size(finished: Path, folder: str) -> None:
    images = [np.full((side, side, 1), 200, dtype=np.uint8) for side in (10, 31)]
    predictions = predict(finished / folder, images)
    assert len(predictions) == 2
    assert all(p.label in CLASSES and 1 / 3 <= p.confidence <= 1 for p in predictions)
    tempered = predict(finished / folder, images, temperature=1e6)
    assert all(p.confidence == pytest.approx(1 / 3, abs=1e-4) for p in tempered)
    assert [p.label for p in tempered] == [p.label for p in predictions]
    # the same flat grey at two sizes is the same picture
    assert predictions[0].confidence == pytest.approx(predictions[1].confidence, abs=1e-5)


@pytest.mark.integration
def test_all_formats_give_the_same_logits(finished: Path) -> None:
    store = open_store(finished / "data" / "prepared")
    index = np.arange(30, 60)
    torch_, onnx_, program = (
        predict_logits(open_candidate(finished / folder, channels_last=True), store.images, index, batch_size=11)
        for folder in ("data/prune", "data/export/prune_onnx", "data/export/prune_pt2")
    )
    np.testing.assert_allclose(torch_, onnx_, atol=1e-4)
    np.testing.assert_allclose(torch_, program, atol=1e-5)


@pytest.mark.integration
def test_exports_with_preprocessing_in_the_graph_answer_as_those_without(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    inside = SMALL.export.model_copy(update={"preprocessing_in_graph": True, "candidates": ["prune"]})
    export(Stage("export", SMALL.model_copy(update={"export": inside})))
    store = open_store(finished / "data" / "prepared")
    index = np.arange(30, 60)
    for format_ in ("onnx", "onnx_int8", "pt2"):
        folder = Path("data/export") / f"prune_{format_}"
        candidate = open_candidate(folder)
        assert candidate.spec.get("input") == (None if format_ == "pt2" else "pixels")
        found = predict_logits(candidate, store.images, index, batch_size=11)
        expected = predict_logits(open_candidate(finished / folder), store.images, index, batch_size=11)
        np.testing.assert_allclose(found, expected, atol=1e-4)
        assert predict(folder, [np.full((31, 31, 1), 200, dtype=np.uint8)])[0].label in CLASSES


@pytest.mark.integration
def test_the_command_names_pictures_of_a_folder_with_an_onnx_candidate(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("data", "reports"):
        shutil.copytree(finished / name, tmp_path / name)
    data = SMALL.data.model_copy(update={"image_size": 10})
    params = SMALL.model_copy(update={"data": data}).model_dump(mode="json")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    (tmp_path / "dvc.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    images = np.asarray(open_store(Path("data/prepared")).images[30:34])
    pictures = [Path("pictures", name) for name in ("1.png", ":cat:.png", "photo[/b].png", "photo[red].png")]
    for path, image in zip(pictures, images, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(path)

    measured = json.loads(Path("reports/metrics.json").read_text())
    measured["prune_onnx"]["temperature"] = 0.4
    Path("reports/metrics.json").write_text(json.dumps(measured))
    folder = Path("data/export/prune_onnx")
    logits = predict_logits(open_candidate(folder), images, np.arange(4), batch_size=4).astype(np.float64) / 0.4
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    sure = (shares / shares.sum(axis=1, keepdims=True)).max(axis=1)
    named = [CLASSES[k] for k in logits.argmax(axis=1)]
    assert len({f"{share:.1%}" for share in sure}) > 1

    said = CliRunner().invoke(cli.app, ["predict", "pictures", "--candidate", "prune_onnx"])
    assert said.exit_code == 0, said.output
    rows = {line.split()[0]: line.split()[1:] for line in said.output.splitlines()}
    assert rows == {"picture": ["class", "confidence"]} | {
        str(path): [name, f"{share:.1%}"] for path, name, share in zip(pictures, named, sure, strict=True)
    }
    said = CliRunner().invoke(cli.app, ["predict", "pictures", "--candidate", "prune_onnx", "--json"])
    answers = {answer["image"]: answer for answer in map(json.loads, said.output.splitlines())}
    for path, name, share in zip(pictures, named, sure, strict=True):
        assert answers[str(path)]["label"] == name
        assert answers[str(path)]["confidence"] == pytest.approx(share, abs=1e-4)


@pytest.mark.integration
def test_programs_alone_need_no_onnx(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(finished / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    only = SMALL.model_copy(update={"export": SMALL.export.model_copy(update={"formats": ["pt2"]})})
    export(Stage("export", only))
    assert sorted(path.name for path in (tmp_path / "data" / "export").iterdir()) == ["distill_pt2", "prune_pt2"]
    assert (
        Path("data/export/prune_pt2/model.pt2").read_bytes()
        == (finished / "data/export/prune_pt2/model.pt2").read_bytes()
    )


def test_a_folder_without_weights_names_what_is_missing(tmp_path: Path) -> None:
    files = r"model\.safetensors nor model\.onnx nor model\.pt2 nor model\.xml nor model\.pte"
    with pytest.raises(Exception, match=rf"neither {files} here\. Make it: thinner run"):
        open_candidate(tmp_path)


@pytest.mark.integration
def test_every_candidate_has_its_operating_points_and_the_weights_they_are_of(finished: Path) -> None:
    points = operating.read_points(finished / operating.FILE)
    assert set(points) == CANDIDATES
    for row in points.values():  # twelve validation images show nothing, so it is always unsure
        assert [(p.at_least, p.log_odds, p.coverage, p.images) for p in row] == [
            (target, None, 0.0, TEST) for target in (0.95, 0.98, 0.99)
        ]
    environment = json.loads((finished / "reports/evaluate/environment.json").read_text())
    for name in ("prune", "prune_onnx", "prune_pt2"):
        place = finished / "data" / name if name == "prune" else finished / "data/export" / name
        digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in place.iterdir()}
        assert environment["weights_sha256"][name] in digests


@pytest.mark.integration
def test_what_is_of_one_seed_is_not_shown_of_several_and_stops_no_other_claim(finished: Path, tmp_path: Path) -> None:
    roots = [tmp_path / str(seed) for seed in range(2)]
    for seed, root in enumerate(roots):
        for name in ("reports", "data/evaluate"):
            shutil.copytree(finished / name, root / name)
        params = SMALL.model_dump(mode="json")
        (root / "params.yaml").write_text(yaml.safe_dump({**params, "run": {**params["run"], "seed": seed}}))
    claims = [
        "prune answers 5 % of images with at least 95 % accuracy",
        "prune is smaller than finetune in parameters",
        "prune is faster than finetune at batch 1 on pi5",
    ]
    points, size, device = judge_runs(roots, claims, 0).values()
    assert (points["outcome"], size["outcome"], device["outcome"]) == ("not shown", "proven", "not shown")
    assert (
        points["numbers"]
        == "an operating point is of one seed's weights, and these are several seeds'. thinner run judges it"
    )
    assert device["numbers"].startswith("what pi5 has timed is of one seed's weights")


@pytest.mark.integration
def test_nothing_is_claimed_of_8_bits_that_do_not_hold(finished: Path, tmp_path: Path) -> None:
    """Whatever the test images say: the ladder was asked on validation."""
    for name in ("reports", "data/evaluate"):
        shutil.copytree(finished / name, tmp_path / name)
    claims = ["prune_onnx is smaller than finetune in bytes", "prune is smaller than finetune by 2x in parameters"]
    target = tmp_path / "reports" / "quantize" / "target.json"
    target.parent.mkdir()
    said = {"candidate": "prune_onnx", "met": True, "lines": ["8 bits hold: "], "rung": "static"}
    target.write_text(json.dumps(said))
    before = [verdict["outcome"] for verdict in judge_runs([tmp_path], claims, 0).values()]
    assert before == ["proven", "proven"]
    target.write_text(json.dumps({**said, "met": False}))
    unfit, other = judge_runs([tmp_path], claims, 0).values()
    assert (unfit["outcome"], other["outcome"]) == ("not shown", "proven")
    assert unfit["numbers"].startswith("no rung of the ladder holds for prune_onnx: ")
