"""The real pipeline, all ten stages, on a small real job: scikit-learn's 1,797 digits as a folder of pictures.

One copy of the repository is run by Prefect, another by `dvc repro` with a `kill -9` in the middle of distill; both
must end with the same weights. Then what a person does next: change a number, change it back, try an experiment,
ask for a prediction.
"""

import base64
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from sklearn.datasets import load_digits

from tests import forked
from tests.copies import commit_all, copy_project
from tests.servers import wait_until
from tests.toy import kill_family
from thinner.predict import open_candidate, predict_logits

pytestmark = pytest.mark.integration

PROJECT = Path(__file__).resolve().parents[1]
STAGES = ["prepare", "finetune", "scratch", "teach", "distill", "prune", "small", "quantize", "export", "evaluate",
          "report"]  # fmt: skip
SMALL = {
    "run.threads": 1,
    "data.source": "folder:data/raw/digits", "data.image_size": 8, "data.labelled": 200, "data.validation": 200,
    "data.test": 400,
    "finetune.network": "resnet14", "finetune.width": 8, "finetune.stem_stride": 1, "finetune.weights": None,
    "finetune.image_size": 16, "finetune.mean": [0.3], "finetune.std": [0.35], "finetune.training.epochs": 4,
    "finetune.training.validate_every": None, "finetune.training.batch_size": 32,
    "finetune.augment.flip": False,
    "student.width": 16, "student.stem_stride": 1, "student.image_size": 8, "student.training.steps": 60,
    "student.training.validate_every": 15, "student.training.batch_size": 64, "teach.batch_size": 100,
    "prune.tolerance": 0.5, "prune.rounds": 2, "prune.round_to": 8, "prune.training.steps": 20, "prune.training.validate_every": 10, "prune.training.lr": 0.005,
    "prune.training.batch_size": 64, "export.calibration_images": 32, "evaluate.latency_repeats": 10,
    "quantize.max_drop": 10.0, "quantize.images": 64, "quantize.training.steps": 10,
    "quantize.training.validate_every": 5, "quantize.training.batch_size": 64,
}  # fmt: skip


def set_params(root, changes):
    path = root / "params.yaml"
    raw = yaml.safe_load(path.read_text())
    for key, value in changes.items():
        *sections, last = key.split(".")
        place = raw
        for section in sections:
            place = place[section]
        place[last] = value
    path.write_text(yaml.safe_dump(raw, sort_keys=False))


def environment(root):
    """As a person's, but for one thing: once the flow has looked at params.yaml in depth, nobody does again. The first
    run does; afterwards it is seconds a stage."""
    digest = hashlib.sha256((root / "params.yaml").read_bytes()).hexdigest() if (root / "dvc.lock").exists() else ""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("THINNER_", "MLFLOW_", "PREFECT_API", "DVC_"))}
    return (
        kept
        | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(root),
            "THINNER_CHECKED": digest,
            "PREFECT_HOME": str(root / ".prefect"),
            "DVC_SITE_CACHE_DIR": str(root.parent / "site-cache"),
            "DVC_NO_ANALYTICS": "1",
        }
        | forked.address(str(root))
    )


def run(root, *command, check=True, **env):
    told = environment(root) | env
    done = subprocess.run(command, cwd=root, env=told, text=True, capture_output=True, check=False)
    assert not check or done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done


SERVER = {}  # of Prefect, for all runs but the first and the scheduled ones, which start their own


def pipeline(root, *stages):
    return run(root, sys.executable, "-m", "flows.pipeline", *stages, **SERVER).stdout


def clone(root):
    """The tracked files of this repository, as they are in the working tree, with the small job in place."""
    copy_project(root)
    digits = load_digits()
    for number, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        folder = root / "data" / "raw" / "digits" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 255 / 16).round().astype(np.uint8)).save(folder / f"{number:04d}.png")
    set_params(root, SMALL)
    commit_all(root)
    return root


@pytest.fixture(scope="module")
def finished(tmp_path_factory, request):
    """A copy of the repository after `python -m flows.pipeline`, and what that printed."""
    root = clone(tmp_path_factory.mktemp("prefect") / "thinner")
    printed = pipeline(root)
    SERVER["PREFECT_API_URL"] = request.getfixturevalue("prefect_url")
    yield root, printed
    SERVER.clear()


def weights(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted((root / "data").rglob("*.safetensors"))}


def test_every_stage_ran_and_the_end_tells_what_came_out(finished):
    root, printed = finished
    metrics = json.loads((root / "reports" / "metrics.json").read_text())
    exports = {f"{name}_{format_}" for name in ("distill", "prune") for format_ in ("onnx", "onnx_int8", "pt2")}
    assert set(metrics) == {"finetune", "scratch", "distill", "small", "prune", "prune_int8"} | exports
    for candidate, row in metrics.items():
        assert candidate in printed
        assert 0.1 < row["accuracy"] <= row["accuracy_top5"] <= 1.0  # ten classes, so there is a top five
    assert metrics["prune"]["macs"] <= 0.5 * metrics["distill"]["macs"]
    assert metrics["prune"]["params"] < metrics["distill"]["params"]
    assert metrics["prune"]["file_bytes"] < metrics["distill"]["file_bytes"]
    assert "Target met: prune has " in printed
    ladder = pd.read_csv(root / "reports" / "quantize" / "ladder.csv")
    assert ladder["rung"].tolist()[:4] == ["float", "static", "static", "static"] and ladder["chosen"].sum() == 1
    held = json.loads((root / "reports" / "quantize" / "target.json").read_text())
    assert held["lines"][0] in " ".join(printed.split()) and held["lines"][0].startswith("8 bits hold: prune_int8 ")
    assert metrics["prune_int8"]["file_bytes"] < metrics["prune"]["file_bytes"]
    assert metrics["prune_int8"]["macs"] == metrics["prune"]["macs"]
    assert "report.html" in printed
    for verdict in json.loads((root / "reports" / "claims.json").read_text()).values():
        assert f"{verdict['outcome']:<10}{verdict['claim']}" in printed
    page, table = ((root / "reports" / name).read_text() for name in ("report.html", "results.md"))
    assert len(page) > 100_000
    assert "| vs baseline | top-5 |" in table
    # each stage that ran before is on record, with the commit that was checked out
    commit = run(root, "git", "rev-parse", "HEAD").stdout.strip()[:12]
    for stage in STAGES[:-1]:
        assert re.search(rf"^\| {stage} \| {commit}( and changes)? \| ", table, re.MULTILINE), stage
    assert "not recorded here" not in table


def test_then_everything_is_up_to_date_whoever_asks(finished):
    root, _ = finished
    assert run(root, "dvc", "status").stdout.strip() == "Data and pipelines are up to date."
    again = run(root, "dvc", "repro").stdout
    assert "Running stage" not in again
    assert "up to date" in pipeline(root)


def test_no_file_is_a_pickle(finished):
    root, _ = finished
    for path in [*(root / "data").rglob("*"), *(root / ".thinner").rglob("*")]:
        if path.is_file():
            assert path.suffix not in (".pt", ".pth", ".pkl", ".pickle"), path
            assert path.read_bytes()[:2] not in (b"\x80\x02", b"\x80\x04", b"\x80\x05"), path


def test_mlflow_has_a_parent_and_a_run_per_stage_with_what_was_asked(finished):
    root, _ = finished
    client = mlflow.MlflowClient(f"sqlite:///{root}/mlflow.db")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    by_name = {r.info.run_name: r for r in runs}
    assert set(STAGES) <= set(by_name)
    parents = {by_name[stage].data.tags["mlflow.parentRunId"] for stage in STAGES}
    assert len(parents) == 1
    distill = by_name["distill"]
    assert len(client.get_metric_history(distill.info.run_id, "val/accuracy")) == 4
    assert distill.inputs.dataset_inputs
    assert any(f.path == "checkpoint" for f in client.list_artifacts(distill.info.run_id))
    curve = pd.read_csv(root / "reports" / "prune" / "history.csv")
    kept = client.get_metric_history(by_name["prune"].info.run_id, "val/accuracy")
    assert [(m.step, m.value) for m in kept] == list(zip(curve["step"], curve["val_accuracy"], strict=True))
    for run_id, table in ((by_name["report"].info.run_id, "claims"), (*parents, "candidates")):
        files = {f.path for place in ("", "figures", "tables") for f in client.list_artifacts(run_id, place)}
        wanted = {"report.html", "figures/all.html", "figures/val-accuracy.json", f"tables/{table}.json"}
        assert wanted <= files, files
    for tag in ("dvc.stage_hash", "data.sha256", "git.commit", "device"):
        assert any(tag in name for name in distill.data.tags), (tag, sorted(distill.data.tags))


def test_what_came_out_is_the_challenger_and_each_candidate_is_a_run_with_a_model(finished):
    root, printed = finished
    assert "thinner-digits version 1 is in MLflow's model registry" in printed
    client = mlflow.MlflowClient(f"sqlite:///{root}/mlflow.db")
    version = client.get_model_version_by_alias("thinner-digits", "challenger")
    assert version.tags["candidate"] == "prune"
    metrics = json.loads((root / "reports" / "metrics.json").read_text())
    runs = {r.info.run_name: r for r in client.search_runs([e.experiment_id for e in client.search_experiments()])}
    for name, row in metrics.items():
        tested = runs[f"{name} (test)"]
        assert tested.data.metrics["test/accuracy"] == row["accuracy"]
        assert tested.data.tags["mlflow.parentRunId"] == runs["distill"].data.tags["mlflow.parentRunId"]
        assert tested.outputs.model_outputs
    text = (root / "params.yaml").read_text()
    claims = ["prune has at most 50 % of the MACs of distill", "prune agrees with distill on 10 % of images"]
    set_params(root, {"claims": claims})
    assert "out of date" in run_cli(root, "promote", code=1).stderr
    assert "\nTo ship: prune (2 of 2 claims proven)." in pipeline(root)
    assert "version 1 is champion: all 2 claims are proven" in run_cli(root, "promote").stdout
    assert "champion" in run_cli(root, "models").stdout
    (root / "params.yaml").write_text(text)  # back, for the tests below
    pipeline(root)
    assert run(root, "dvc", "status").stdout.strip() == "Data and pipelines are up to date."


def named_in_process(folder, pictures):
    """What the network in this folder makes of pictures that are as large as the stored ones, and grey."""
    images = np.stack([np.asarray(Image.open(path))[..., None] for path in pictures])
    logits = predict_logits(open_candidate(folder), images, np.arange(len(images)), batch_size=len(images))
    classes = json.loads((folder / "model.json").read_text())["classes"]
    return [classes[k] for k in logits.argmax(axis=1)]


def run_cli(root, *words, code=0):
    done = run(root, *forked.program("flows.cli"), *words, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_dvc_repro_killed_in_the_middle_of_distill_ends_with_the_same_weights(finished, tmp_path):
    # as it was before distill: what comes later is gone, and so is DVC's cache, from which it could come back
    root = Path(shutil.copytree(finished[0], tmp_path / "thinner", symlinks=True))
    for name in ("distill", "prune", "small", "export", "evaluate"):
        shutil.rmtree(root / "data" / name)
    shutil.rmtree(root / ".dvc" / "cache")
    command = [sys.executable, "-m", "dvc", "repro"]
    log = tmp_path / "repro.log"
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=root, env=environment(root), stdout=out, stderr=out)
    wait_until(lambda: list((root / ".thinner" / "resume").glob("distill-*/training.safetensors")), process, log)
    kill_family(process)
    assert len(list((root / ".thinner" / "resume").glob("distill-*/training.safetensors"))) == 1
    assert not (root / "data" / "distill" / "model.safetensors").exists()

    again = pipeline(root, "prune")  # the other of the two goes on
    assert "distill   done in" in again
    assert "teach     up to date" in again
    made, before = weights(root), weights(finished[0])
    assert {"data/distill/model.safetensors", "data/prune/model.safetensors"} <= set(made)
    assert made == {path: before[path] for path in made}


def counted(row):
    """Without what a clock or the system's memory measures, which differs from run to run."""
    return {k: v for k, v in row.items() if not k.startswith(("latency", "throughput", "peak_memory"))}


@pytest.mark.long
def test_another_pruning_runs_what_follows_and_changing_it_back_trains_nothing(finished):
    root, _ = finished
    before, measured = weights(root), json.loads((root / "reports" / "metrics.json").read_text())
    text = (root / "params.yaml").read_text()
    # in steps of 16 and 32 channels the first round goes further than both were asked to
    set_params(root, {"prune.target": {"macs": 0.96}, "prune.round_to": 32})
    status = run(root, "dvc", "status").stdout
    assert "prune:" in status
    assert "round 2: nothing to cut" in pipeline(root)
    assert list(pd.read_csv(root / "reports" / "prune" / "rounds.csv")["round"]) == [0, 1]
    assert weights(root)["data/distill/model.safetensors"] == before["data/distill/model.safetensors"]
    assert weights(root)["data/prune/model.safetensors"] != before["data/prune/model.safetensors"]
    # what is as it was is measured as it was, but for what a clock tells
    again = json.loads((root / "reports" / "metrics.json").read_text())
    same = [name for name in measured if not name.startswith(("prune", "small"))]
    assert len(same) > 3 and all(counted(again[name]) == counted(measured[name]) for name in same)
    (root / "params.yaml").write_text(text)
    back = run(root, "dvc", "repro").stdout
    assert "Running stage" not in back
    assert weights(root) == before
    assert "up to date" in pipeline(root)


@pytest.fixture(scope="class")  # so that all is as it was before the next test
def widened(finished):
    """The graph with two more stages: the teacher is pruned as well, and trained on with the unlabelled pictures.
    (root, weights before, what the pipeline printed, the claims); afterwards all is as it was, and trained nothing."""
    root, _ = finished
    before, text = weights(root), (root / "params.yaml").read_text()
    claims = ["prune_finetune agrees with prune on 10 % of images", "prune is smaller than prune_finetune in macs",
              "self_train has at most 100 % of the parameters of self_train_control"]  # fmt: skip
    on = {
        "prune_also": ["finetune"], "self_train.networks": ["finetune"], "self_train.ratio": 2,
        "self_train.weak.flip": False, "self_train.strong.flip": False, "self_train.training.batch_size": 16,
        "self_train.training.steps": 30, "self_train.training.validate_every": 10,
        "export.candidates": ["self_train", "prune", "prune_finetune"], "claims": claims,
    }  # fmt: skip
    set_params(root, {"prune_also": ["finetune"]})
    assert "prune_also@finetune" in run_cli(root, "status").stdout
    assert "prune_also@finetune: round 2 of 2" in run_cli(root, "stage", "prune_also@finetune").stdout
    stages = ("prune_also@finetune", "prune", "small", "quantize")
    assert run(root, "dvc", "status", *stages).stdout.strip() == "Data and pipelines are up to date."
    assert {path: held for path, held in weights(root).items() if path in before} == before
    set_params(root, on)
    assert "self_train@finetune" in run_cli(root, "status").stdout
    printed = pipeline(root)
    assert run(root, "dvc", "status").stdout.strip() == "Data and pipelines are up to date."
    yield root, before, printed, claims

    (root / "params.yaml").write_text(text)  # what is there now is as it was, and trains nothing
    back = pipeline(root)
    for name in ("prune_also", "self_train"):
        assert f"data/{name}/finetune" in back.partition("removed, as params.yaml no longer names it: ")[2]
        assert not list((root / "reports" / name).rglob("*.csv"))
    assert weights(root) == before
    assert run(root, "dvc", "status").stdout.strip() == "Data and pipelines are up to date."


def pictures_of_each_class(root):
    return [min(folder.iterdir()) for folder in sorted((root / "data" / "raw" / "digits").iterdir())]


@pytest.mark.long
class TestWithMoreStages:
    def test_the_pruned_student_is_compared_with_the_pruned_teacher(self, widened):
        root, _, _, claims = widened
        assert "data/prune_also/finetune/model.safetensors" in weights(root)
        metrics = json.loads((root / "reports" / "metrics.json").read_text())
        assert {"prune_finetune", "prune_finetune_onnx_int8"} < set(metrics)
        assert metrics["prune_finetune"]["macs"] < metrics["finetune"]["macs"]  # which round was chosen is validation's
        assert metrics["prune_finetune_onnx"]["macs"] == metrics["prune_finetune"]["macs"]
        verdicts = json.loads((root / "reports" / "claims.json").read_text()).values()
        assert [(verdict["claim"], verdict["outcome"]) for verdict in verdicts][:2] == [
            (claims[0], "proven"),
            (claims[1], "proven" if metrics["prune"]["macs"] < metrics["prune_finetune"]["macs"] else "refuted"),
        ]
        page = (root / "reports" / "report.html").read_text()
        assert "prune_finetune, after recovery" in page
        client = mlflow.MlflowClient(f"sqlite:///{root}/mlflow.db")
        newest_first = client.search_runs([e.experiment_id for e in client.search_experiments()])
        runs = {r.info.run_name: r for r in reversed(newest_first)}
        assert runs["prune_finetune (test)"].data.metrics["test/accuracy"] == metrics["prune_finetune"]["accuracy"]
        assert runs["evaluate"].data.tags["upstream.prune_also.finetune"] == runs["prune_also@finetune"].info.run_id
        pictures = pictures_of_each_class(root)
        answers = run_cli(root, "predict", *map(str, pictures), "--candidate", "prune_finetune", "--json").stdout
        named = named_in_process(root / "data" / "prune_also" / "finetune", pictures)
        assert [json.loads(line)["label"] for line in answers.splitlines()] == named
        assert len(set(named)) > 3  # of ten digits

    def test_a_self_trained_teacher_stands_beside_its_control_and_teaches_only_if_it_helped(self, widened):
        root, before, printed, _ = widened
        found = json.loads((root / "reports/self_train/finetune/decision.json").read_text())
        helped = found["chosen"] == "self_train"
        said = "Self-training helped: " if helped else "Self-training was not shown to help: "
        for place in (printed, *((root / "reports" / name).read_text() for name in ("report.html", "results.md"))):
            assert said in place

        own = root / "data" / "self_train" / "finetune"
        teacher = own if helped else root / "data" / "finetune"
        digest = hashlib.sha256((teacher / "model.safetensors").read_bytes()).hexdigest()
        assert json.loads((root / "data/teach/signals.json").read_text())["teachers"] == {"finetune": digest}
        parents = json.loads((root / "data/distill/model.json").read_text())["parents"]
        assert parents == {"self_train" if helped else "finetune": digest}
        if not helped:  # then nothing that was there is another one now
            after = weights(root)
            assert {path: after[path] for path in before} == before
            assert re.search(r"distill +(done|restored|up to date)", printed)

        metrics = json.loads((root / "reports" / "metrics.json").read_text())
        assert {"self_train", "self_train_control", "self_train_onnx"} < set(metrics)
        pictures = pictures_of_each_class(root)
        answers = run_cli(root, "predict", *map(str, pictures), "--candidate", "self_train_control", "--json").stdout
        assert [json.loads(line)["label"] for line in answers.splitlines()] == named_in_process(
            own / "control", pictures
        )


def test_labels_of_the_unlabelled_images_cannot_reach_a_checkpoint(finished):
    # tests/thinner/test_store.py: with nonsense for these labels prepare writes the same bytes. And no other stage has
    # another way to the data.
    root = finished[0]
    labels = np.load(root / "data" / "prepared" / "labels.npy")
    splits = np.load(root / "data" / "prepared" / "splits.npz")
    assert (labels[splits["unlabelled"]] == -1).all()
    graph = yaml.safe_load((root / "dvc.yaml").read_text())["stages"]
    assert [name for name, stage in graph.items() if "${data.root}" in stage.get("do", stage)["deps"]] == ["prepare"]


def test_an_experiment_is_listed(finished):
    root, _ = finished
    run(root, "git", "add", "--all")
    run(root, "git", "commit", "--quiet", "--message", "results")
    before, text = weights(root), (root / "params.yaml").read_text()
    run(root, "dvc", "exp", "run", "--quiet", "-S", "distill.temperature=2", "--name", "cooler", "distill")
    shown = run(root, "dvc", "exp", "show", "--csv", "--no-pager").stdout
    assert "cooler" in shown
    assert "distill.temperature" in shown
    changed = {path for path, held in weights(root).items() if held != before[path]}
    assert changed == {"data/distill/model.safetensors"}
    (root / "params.yaml").write_text(text)  # back, for the tests below
    assert "Running stage" not in run(root, "dvc", "repro").stdout
    assert weights(root) == before


def test_predict_names_the_digit(finished):
    root, _ = finished
    pictures = sorted((root / "data" / "raw" / "digits" / "3").iterdir())[:20]
    answered = run_cli(root, "predict", *map(str, pictures), "--candidate", "prune", "--json")
    assert answered.stdout.count('"3"') >= 10


@pytest.mark.filterwarnings("default")  # of Jupyter's own
def test_the_notebook_runs_and_shows_this_run(finished, tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    root, _ = finished
    for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    notebook = nbformat.read(root / "docs" / "first-steps.ipynb", as_version=4)
    where = {"metadata": {"path": str(root / "docs")}}
    told = environment(root) | {"IPYTHONDIR": str(tmp_path / "ipython")}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where).execute(env=told)
    shown = [
        output.data["text/plain"] for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output
    ]
    metrics = json.loads((root / "reports" / "metrics.json").read_text())
    assert f"temperature={metrics['prune']['temperature']}" in shown[0]
    images, splits = np.load(root / "data/prepared/images.npy"), np.load(root / "data/prepared/splits.npz")
    logits = predict_logits(open_candidate(root / "data/prune"), images, splits["test"][:8], batch_size=1)
    assert re.findall(r"^\d +\d+ +\d +(\d) ", shown[1], re.MULTILINE) == [str(k) for k in logits.argmax(axis=1)]
    assert all(re.search(rf"^{name} +{row['accuracy']:.4g}", shown[3], re.MULTILINE) for name, row in metrics.items())


def test_python_gives_what_the_command_gives_for_every_network(finished, monkeypatch):
    import thinner

    root, _ = finished
    pictures = sorted((root / "data" / "raw" / "digits" / "3").iterdir())[:3]
    for name, folder in (("distill", "data/distill"), ("prune_onnx_int8", "data/export/prune_onnx_int8"),
                         ("prune_pt2", "data/export/prune_pt2")):  # fmt: skip
        said = run_cli(root, "predict", *map(str, pictures), "--candidate", name, "--json").stdout.splitlines()
        answers = thinner.load(root / folder).predict(pictures)
        assert [(row["label"], row["confidence"]) for row in map(json.loads, said)] == [
            (answer.label, answer.confidence) for answer in answers
        ]


def test_plots_are_rendered(finished, tmp_path):
    root, _ = finished
    run(root, "dvc", "plots", "show", "--out", str(tmp_path / "plots"))
    page = (tmp_path / "plots" / "index.html").read_text()
    assert "val_accuracy" in page


def ask(url, what, secret, **filters):
    token = base64.b64encode(secret.encode()).decode()
    headers = {"Content-Type": "application/json", "Authorization": f"Basic {token}"}
    request = urllib.request.Request(f"{url}/api/{what}/filter", json.dumps(filters).encode(), headers)
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.load(answer)


def answer_to_a_page(url, **headers):
    """(status, who may read it) of what a web page could send: it has no secret, and its own origin or host."""
    asked = urllib.request.Request(f"{url}/api/deployments/", b"{}", {"Content-Type": "text/plain", **headers})
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(asked, timeout=600)
    with caught.value as refused:  # or its socket stays open until somebody else's test
        return refused.code, refused.headers.get("access-control-allow-origin")


@pytest.mark.long
def test_the_schedule_fires_runs_and_at_the_second_firing_finds_everything_up_to_date(finished):
    root, _ = finished
    set_params(root, {"report.samples": 5})  # work for the report alone
    nightly = root / "prefect.yaml"
    text = nightly.read_text()
    assert 'cron: "0 3 * * *"' in text
    nightly.write_text(text.replace('cron: "0 3 * * *"', "interval: 30"))  # seconds
    with (root / "serve.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.serve", "serve"], cwd=root, env=environment(root), stdout=log, stderr=log
        )
    try:
        give_up = time.monotonic() + 600
        note = root / ".thinner" / "prefect-server.json"
        done = []
        while len(done) < 2:
            assert process.poll() is None, (root / "serve.log").read_text()[-3000:]
            assert time.monotonic() < give_up, (root / "serve.log").read_text()[-3000:]
            time.sleep(2)
            if note.exists():
                url = json.loads(note.read_text())["url"]
                scheduled = {"deployment_id": {"is_null_": False}, "state": {"type": {"any_": ["COMPLETED"]}}}
                secret = (root / ".thinner" / "prefect-secret").read_text()
                with pytest.raises(urllib.error.HTTPError, match="401"):
                    ask(url, "flow_runs", "thinner:guessed")
                ours = {"name": {"any_": ["nightly"]}}  # and not what looks for new data
                done = ask(url, "flow_runs", secret, flow_runs=scheduled, deployments=ours, sort="START_TIME_ASC")
        assert answer_to_a_page(url, Origin="http://page.example") == (401, None)
        assert answer_to_a_page(url, Host="page.example") == (401, None)  # a name that it has pointed at 127.0.0.1
        ended = []
        for flow_run in done[:2]:
            runs = ask(url, "task_runs", secret, flow_runs={"parent_flow_run_id": {"any_": [flow_run["id"]]}})
            ended.append({run["name"]: run["state_name"] for run in runs})
            assert set(ended[-1]) == set(STAGES)
        assert ended[0]["report"] == "Completed"
        assert {state for name, state in ended[0].items() if name != "report"} == {"Cached"}
        assert set(ended[1].values()) == {"Cached"}
    finally:
        process.send_signal(signal.SIGINT)
        left = process.wait(timeout=600)
        nightly.write_text(text)
    assert left == 0
