"""tasks/record/candidates.py and tasks/record/registry.py against a real SQLite store: real networks, measured by the real evaluate.

DVC is left out (tests/test_end_to_end.py has it): "up to date" is answered with yes.
"""

import base64
import io
import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner, Result

from flows import cli
from tasks import lineage
from tasks.evaluate import evaluate
from tasks.record import candidates, mlflow_client, registry, stage_run
from tasks.stage import Stage
from tests.servers import answers, free_port, wait_until
from tests.tasks.test_evaluate import CLASSES, PREPROCESSING, SMALL, write_store
from tests.toy import PROJECT
from thinner.config import load_params
from thinner.errors import UserError
from thinner.networks import checkpoint, models
from thinner.networks.spec import NetworkSpec
from thinner.params import Ship
from thinner.predict import open_candidate, predict_logits

# MLflow and what it imports deprecate things of their own; SQLite's connections are closed by the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore")

PARAMS = SMALL.model_copy(
    update={
        "claims": ["prune beats scratch on accuracy"],
        "ship": Ship(name="shades", candidate="prune", margin_points=5.0),
        "export": SMALL.export.model_copy(update={"formats": []}),
        "evaluate": SMALL.evaluate.model_copy(
            update={"latency_repeats": 6, "latency_batches": [1], "corruptions": False}
        ),
    }
)
GENEROUS = PARAMS.model_copy(update={"ship": PARAMS.ship.model_copy(update={"margin_points": 60.0})})
NAME = "thinner-shades"


def shade(bias: list[float], slope: float) -> torch.nn.Module:
    """A resnet8 whose logits depend on the image's brightness alone as far as `slope` goes, else on `bias`."""
    network = NetworkSpec("resnet8", 3, 1, width=4, stem_stride=1)
    torch.manual_seed(0)
    model = models.create(network)
    with torch.no_grad():
        last = [m for m in model.modules() if isinstance(m, torch.nn.Linear)][-1]
        last.weight.mul_(slope)
        last.bias.copy_(torch.tensor(bias))
    return model


def write_candidate(root: Path, name: str, bias: list[float], slope: float = 0.0) -> None:
    network = NetworkSpec("resnet8", 3, 1, width=4, stem_stride=1)
    spec = {
        "stage": name, "network": network.as_json(), "classes": list(CLASSES), "preprocessing": PREPROCESSING.as_json(), "parents": {},
        "data_sha256": "0" * 64,
    }  # fmt: skip
    checkpoint.save(root / "data" / name, shade(bias, slope), spec)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables, made once: they take seconds."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


def be_in(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "THINNER_PARENT_RUN_ID", "THINNER_FLOW", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(root)
    monkeypatch.setattr(lineage, "graph", lambda root: [])
    monkeypatch.setattr(lineage, "locked_hashes", lambda root: {"evaluate": "hash-e"})


def fill(root: Path, database: Path) -> None:
    """Prepared data and four networks that always name the first class: each is right on 10 of 30 test images."""
    shutil.copy(database, root)
    (root / "params.yaml").write_text(yaml.safe_dump(PARAMS.model_dump(mode="json")))
    (root / "dvc.yaml").write_text("")
    write_store(root / "data" / "prepared")
    info = root / "data" / "prepared" / "info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"image_size": 10, "channels": 1, "fit": "crop"}))
    for name in ("finetune", "scratch", "distill", "small", "prune"):
        write_candidate(root, name, [1.0, 0.0, 0.0])


@pytest.fixture
def project(database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as `fill` leaves it, and to be in it."""
    be_in(tmp_path, monkeypatch)
    fill(tmp_path, database)
    return tmp_path


def measure(root: Path, stage_hash: str = "hash-e", outcome: str = "proven", record: bool = True) -> None:
    """Run evaluate, and write the verdict that report would."""
    recorder = stage_run.start("evaluate", {}, stage_hash, {}, "cpu") if record else stage_run.Recorder()
    evaluate(Stage("evaluate", PARAMS, recorder))
    recorder.end("FINISHED")
    verdict = {"claim": PARAMS.claims[0], "kind": "beats", "outcome": outcome, "numbers": "+1 points"}
    (root / "reports" / "claims.json").write_text(json.dumps({"claim_1": verdict}))


def thinner(*words: str) -> Result:
    """The command, in this process; what it sets in the environment is for it alone."""
    kept = dict(os.environ)
    try:
        return CliRunner().invoke(cli.app, words)
    finally:
        os.environ.clear()
        os.environ.update(kept)


@pytest.mark.integration
def test_each_candidate_is_a_run_with_the_same_metric_names_and_a_model_that_answers(project: Path) -> None:
    (project / "data" / "prune").rename(project / "elsewhere")
    (project / "data" / "prune").symlink_to(project / "elsewhere")  # as DVC may do
    measure(project)
    client, experiment = mlflow_client.connect()
    runs = {run.info.run_name: run for run in client.search_runs([experiment])}
    assert set(runs) == {
        "evaluate",
        "finetune (test)",
        "scratch (test)",
        "distill (test)",
        "small (test)",
        "prune (test)",
    }
    measured = json.loads((project / "reports" / "metrics.json").read_text())
    for name, row in measured.items():
        run = runs[f"{name} (test)"]
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == runs["evaluate"].info.run_id
        assert run.data.metrics["test/accuracy"] == row["accuracy"] == 10 / 30
        assert run.data.metrics["test/latency_ms_b1"] == row["latency_ms_b1"]
        assert f"accuracy {row['accuracy']:.2%}" in run.data.tags["mlflow.note.content"]
        (output,) = run.outputs.model_outputs
        model = client.get_logged_model(output.model_id)
        assert {m.key: m.value for m in model.metrics}["test/macs"] == row["macs"]
        assert {m.dataset_digest for m in model.metrics} == {candidates.test_digest()[:36]}
        kept = candidates.fetch_predictions(client, run.info.run_id)
        assert kept is not None
        assert (kept[f"predictions.{name}"] == kept["labels"]).mean() == row["accuracy"]

    files = [path for path in (project / "mlartifacts").rglob("*") if path.is_file()]
    assert any(path.name == "model.safetensors" for path in files)
    assert not [path for path in files if path.suffix in (".pkl", ".pickle", ".pt", ".pth", ".pyc")]

    import mlflow

    loaded = mlflow.pyfunc.load_model(f"models:/{output.model_id}")
    assert [column.name for column in loaded.metadata.signature.inputs] == ["image"]
    picture = Image.fromarray(np.full((31, 17), 200, dtype=np.uint8))  # of another size, and oblong
    answer = loaded.predict([{"image": base64.b64encode(png(picture)).decode()}])
    assert answer["label"].tolist() == ["dark"]
    # softmax of (1, 0, 0), which an evaluation that fits a temperature divides by it
    e = np.exp(1 / measured["prune"].get("temperature", 1.0))
    assert answer["confidence"][0] == pytest.approx(e / (e + 2), abs=1e-6)
    example = loaded.input_example  # which people paste into a request
    (text,) = example["image"]
    with Image.open(io.BytesIO(base64.b64decode(text))) as picture:
        assert (np.asarray(picture) == np.load(project / "data/prepared/images.npy")[18, ..., 0]).all()
    assert loaded.predict(example)["label"].tolist() == ["dark"]
    with pytest.raises(mlflow.exceptions.MlflowException, match="image 0: not a picture's file in base64"):
        loaded.predict([{"image": "not base64!"}])


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.integration
def test_the_first_champion_has_to_pass_the_claims_alone_and_files_are_registered_once(project: Path) -> None:
    measure(project, outcome="not shown")
    refused = registry.promote(project, PARAMS)
    assert not refused.promoted
    assert refused.reason == "prune is not ready to ship: not shown: prune beats scratch on accuracy"
    (row,) = registry.versions(PARAMS)
    assert (row["version"], row["alias"]) == ("1", "challenger")
    assert row["reason"] == "not promoted: prune is not ready to ship: not shown: prune beats scratch on accuracy"

    measure(project)  # measured anew, the same files: DVC restores, someone runs evaluate again
    assert registry.register(project, PARAMS) == (NAME, "1")
    done = registry.promote(project, PARAMS)
    assert (done.promoted, done.version) == (True, "1")
    assert done.reason == "all 1 claims are proven; nothing was champion before"
    (row,) = registry.versions(PARAMS)
    assert (row["alias"], row["claims"]) == ("champion", "1 of 1 proven")
    client, _ = mlflow_client.connect()
    text = client.get_model_version(NAME, "1").description
    assert text.startswith("prune: accuracy 33.33%")
    assert text.index("not promoted: prune is not ready") < text.index("champion: all 1 claims are proven")
    assert "already" in registry.promote(project, PARAMS).reason


@pytest.mark.integration
def test_what_lies_here_does_not_take_the_place_of_a_later_challenger(project: Path) -> None:
    """As the schedule leaves it, which works in a folder of its own."""
    measure(project)
    registry.promote(project, PARAMS)
    kept = {path: path.read_bytes() for path in (project / "data/prune").iterdir()}
    write_candidate(project, "prune", [0.0, 1.0, 0.0])
    measure(project)
    assert registry.register(project, PARAMS) == (NAME, "2")
    for path, content in kept.items():
        path.write_bytes(content)
    measure(project)
    with pytest.raises(UserError, match="what lies here is version 1, and the challenger is version 2"):
        registry.promote(project, PARAMS)
    assert [row["alias"] for row in registry.versions(PARAMS)] == ["challenger", "champion"]
    assert "already" in registry.promote(project, PARAMS, again=True).reason


@pytest.mark.integration
def test_a_challenger_that_is_worse_stays_one_and_rollback_brings_the_one_before_back(project: Path) -> None:
    measure(project)
    registry.promote(project, PARAMS)
    write_candidate(project, "prune", [0.0, 1.0, 0.0])  # always "medium": as often right, on other images
    measure(project)
    worse = registry.promote(project, PARAMS)
    assert not worse.promoted
    # 10 images won and 10 lost of 30: equal, but far from shown to be within 5 points
    assert "against version 1: +0.00 points" in worse.reason
    assert "on 30 images, not shown to be at most 5 points worse" in worse.reason
    assert [row["alias"] for row in registry.versions(PARAMS)] == ["challenger", "champion"]

    better = registry.promote(project, GENEROUS)
    assert better.promoted
    assert "shown to be at most 60 points worse" in better.reason
    client, _ = mlflow_client.connect()
    assert client.get_model_version(NAME, "2").tags["champion.before"] == "1"
    assert [row["alias"] for row in registry.versions(PARAMS)] == ["champion", ""]

    back = registry.rollback(PARAMS, "wrong at night")
    assert back.version == "1"
    rows = {row["version"]: row for row in registry.versions(PARAMS)}
    assert (rows["1"]["alias"], rows["2"]["alias"]) == ("champion", "")
    assert rows["2"]["reason"] == "rolled back: wrong at night"
    assert rows["1"]["reason"] == "champion again: version 2 was rolled back: wrong at night"
    with pytest.raises(UserError, match=r"rolled back: wrong at night\. .*thinner promote --again"):
        registry.promote(project, GENEROUS)
    assert registry.promote(project, GENEROUS, again=True).promoted
    registry.rollback(PARAMS, "once more")
    with pytest.raises(UserError, match="version 1 was the first champion"):
        registry.rollback(PARAMS, "too far")


def set_temperature(root: Path, temperature: float) -> None:
    """As if evaluate had fitted it for `prune`: the same files, which are served with other confidences."""
    path = root / "reports" / "metrics.json"
    measured = json.loads(path.read_text())
    measured["prune"]["temperature"] = temperature
    path.write_text(json.dumps(measured))


@pytest.mark.integration
def test_the_same_files_behind_other_code_or_another_temperature_are_another_version(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    def answer(version: str) -> tuple[str, float]:
        model = mlflow.pyfunc.load_model(f"models:/{NAME}/{version}")
        ((label, confidence),) = model.predict(model.input_example).to_numpy()
        return label, confidence

    def softmax(temperature: float) -> float:
        e = np.exp(1 / temperature)
        return pytest.approx(e / (e + 2), abs=1e-6)

    measure(project, record=False)
    set_temperature(project, 1.0)
    assert registry.register(project, PARAMS) == (NAME, "1")
    set_temperature(project, 1.0 + 1e-9)  # fitted anew
    assert registry.register(project, PARAMS) == (NAME, "1")
    set_temperature(project, 2.0)
    assert registry.register(project, PARAMS) == (NAME, "2")

    fixed = project / "fixed" / "served.py"
    fixed.parent.mkdir()
    source = candidates.PROGRAM.read_text()
    fixed.write_text(source.replace("classes[k] for", "classes[k].upper() for"))
    assert fixed.read_text() != source
    monkeypatch.setattr(candidates, "PROGRAM", fixed)
    assert registry.register(project, PARAMS) == (NAME, "3")
    assert [answer(version) for version in "123"] == [("dark", softmax(1)), ("dark", softmax(2)), ("DARK", softmax(2))]

    package = Path(shutil.copytree(candidates.PACKAGE, project / "fixed" / "thinner"))
    with (package / "predict.py").open("a") as file:
        file.write("# mended\n")
    monkeypatch.setattr(candidates, "PACKAGE", package)
    assert registry.register(project, PARAMS) == (NAME, "4")
    folder = mlflow.artifacts.download_artifacts(f"models:/{NAME}/4")
    assert (Path(folder) / "code" / "thinner" / "predict.py").read_text().endswith("# mended\n")


@pytest.mark.integration
def test_rollback_skips_what_was_rolled_back_and_says_when_nothing_is_left(project: Path) -> None:
    measure(project, record=False)

    def promote(temperature: float, again: bool = False) -> str:
        set_temperature(project, temperature)
        decision = registry.promote(project, GENEROUS, again=again)
        assert decision.promoted
        return decision.version

    def tags(version: str) -> dict[str, str]:
        return mlflow_client.connect()[0].get_model_version(NAME, version).tags

    assert [promote(temperature) for temperature in (1.0, 2.0, 3.0)] == ["1", "2", "3"]
    assert promote(2.0) == "2"  # its files come back, and replace 3
    assert tags("2")["champion.before"] == "3,1"
    assert registry.rollback(PARAMS, "too sure").version == "3"
    said = thinner("rollback", "wrong [see night] photos :cat:")  # 2 was champion before 3, and was rolled back
    assert said.exit_code == 0, said.output
    assert f"{NAME} version 1 is champion: version 3 was rolled back: wrong [see night] photos :cat:" in said.output
    listed = " ".join(thinner("models").output.split())
    assert "rolled back: wrong [see night] photos :cat:" in listed
    with pytest.raises(UserError, match="version 1 was the first champion"):
        registry.rollback(PARAMS, "too far")

    with pytest.raises(UserError, match="version 2 was rolled back: too sure"):
        promote(2.0)
    assert promote(2.0, again=True) == "2"
    assert "rolled_back" not in tags("2")
    assert promote(1.0) == "1"  # replaces 2, which replaced it
    assert registry.rollback(PARAMS, "once more").version == "2"
    nothing = thinner("rollback", "and again")
    assert nothing.exit_code == 1
    assert f"{NAME} version 2 stays champion: what was it before (1) was rolled back" in nothing.output
    assert "rolled_back" not in tags("2")


@pytest.mark.integration
def test_other_test_images_cannot_be_compared_and_other_training_images_can(project: Path) -> None:
    generous = PARAMS.model_copy(update={"ship": PARAMS.ship.model_copy(update={"margin_points": 30.0})})
    measure(project)
    registry.promote(project, generous)
    write_candidate(project, "prune", [2.0, 0.0, 0.0])  # the same answers, other weights
    images = project / "data" / "prepared" / "images.npy"
    pixels = np.load(images)
    pixels[:30] = 7  # none of them is a test image
    np.save(images, pixels)
    measure(project)
    assert registry.promote(project, generous).promoted

    write_candidate(project, "prune", [3.0, 0.0, 0.0])
    pixels[45] = 7
    np.save(images, pixels)
    measure(project)
    with pytest.raises(UserError, match=r"version 3 was tested on the images .*--other-images") as refused:
        registry.promote(project, generous)
    assert "cannot be compared" in str(refused.value)
    done = registry.promote(project, generous, other_images=True)
    assert done.promoted
    assert done.reason.endswith("version 2 was tested on other images")


@pytest.mark.integration
def test_results_without_a_record_are_recorded_when_they_are_registered(project: Path) -> None:
    measure(project, record=False)  # MLflow was down
    assert registry.register(project, PARAMS) == (NAME, "1")
    assert registry.promote(project, PARAMS).promoted


@pytest.mark.integration
def test_what_is_missing_or_out_of_date_is_named(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"no reports/metrics\.json yet.*thinner run"):
        registry.promote(project, PARAMS)
    measure(project, record=False)
    with pytest.raises(UserError, match="thinner-shades has no champion"):
        registry.rollback(PARAMS, "x")
    monkeypatch.setattr(lineage, "graph", lambda root: [lineage.Node("evaluate", (), "", (), {})])
    monkeypatch.setattr(lineage, "all_reasons", lambda root, names: {name: ["data/prune modified"] for name in names})
    with pytest.raises(UserError, match=r"evaluate is out of date \(data/prune modified\).*thinner run"):
        registry.promote(project, PARAMS)


@pytest.mark.parametrize(
    ("source", "given", "name"),
    [
        ("torchvision:FashionMNIST", None, "thinner-fashionmnist"),
        ("folder:data/raw/My photos", None, "thinner-my-photos"),
        ("csv:data/raw/list.csv", None, "thinner-list"),
        ("torchvision:CIFAR10", "cars", "thinner-cars"),
    ],
)
def test_the_name_in_the_registry(source: str, given: str | None, name: str) -> None:
    params = PARAMS.model_copy(
        update={
            "data": PARAMS.data.model_copy(update={"source": source}),
            "ship": PARAMS.ship.model_copy(update={"name": given}),
        }
    )
    assert registry.model_name(params) == name


def test_an_unknown_candidate_is_named_before_anything_runs(tmp_path: Path) -> None:
    text = (PROJECT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text.replace("  candidate: prune\n", "  candidate: pruned\n"))
    with pytest.raises(UserError, match=r"ship\.candidate: unknown 'pruned'\. Choose one of: finetune, scratch"):
        load_params(tmp_path / "params.yaml")


@pytest.mark.integration
def test_mlflow_serves_the_champion_over_http_and_it_answers_with_a_class(project: Path, tmp_path: Path) -> None:
    write_candidate(project, "prune", [0.0, 0.0, 0.0], slope=1.0)
    measure(project)
    registry.promote(project, PARAMS)
    port = free_port()
    elsewhere = tmp_path / "elsewhere"  # the model brings all that it needs of ours
    elsewhere.mkdir()
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{project}/mlflow.db",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    command = [
        sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", f"models:/{NAME}@champion",
        "--env-manager", "local", "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
    log = tmp_path / "serve.log"
    with log.open("w") as out:
        server = subprocess.Popen(command, cwd=elsewhere, env=env, stdout=out, stderr=out, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: answers(f"{url}/ping"), server, log)
        image = np.asarray(np.load(project / "data/prepared/images.npy")[42])
        text = base64.b64encode(png(Image.fromarray(image[..., 0]))).decode()
        (answer,) = ask(url, {"dataframe_records": [{"image": text}]})["predictions"]
        row = json.loads((project / "reports" / "metrics.json").read_text())["prune"]
        logits = predict_logits(open_candidate(project / "data" / "prune"), image[None], np.arange(1), 1)[0]
        shares = np.exp(logits.astype(np.float64) / row.get("temperature", 1.0))
        assert answer["label"] == CLASSES[int(logits.argmax())]
        assert answer["confidence"] == pytest.approx(float(shares.max() / shares.sum()), abs=1e-5)
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(url, {"dataframe_records": [{"image": "nonsense"}]})
        assert refused.value.code == 400
        assert "not a picture's file in base64" in refused.value.read().decode()
    finally:
        os.killpg(server.pid, 15)
        server.wait(timeout=600)
    shutil.rmtree(elsewhere)


def ask(url: str, body: dict) -> dict:
    request = urllib.request.Request(
        f"{url}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.load(answer)


def test_a_candidate_is_found_where_its_stage_wrote_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("data/prune", "data/prune_also/finetune", "data/export/prune_finetune_onnx"):
        Path(folder).mkdir(parents=True)
        Path(folder, "model.json").write_text("{}")
    for name, folder in {
        "prune": "data/prune",
        "prune_finetune": "data/prune_also/finetune",
        "prune_finetune_onnx": "data/export/prune_finetune_onnx",
    }.items():
        assert candidates.folder_of(name) == Path(folder)
