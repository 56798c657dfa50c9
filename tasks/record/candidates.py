"""Every candidate as an MLflow run with `test/accuracy`, `test/latency_ms_b1`, ..., and as a model that can be served.

    pipeline run
      evaluate          the stage
      prune (test)      a run per candidate, below the pipeline's run (below evaluate's after a plain `dvc repro`)
        model           a LoggedModel: `mlflow models serve` runs it (served.py); its metrics name the data set
        predictions.npz the class that it named for each test image, for paired tests later

`evaluate` asks for them when its files are written; tasks/record/registry.py does where that could not be recorded.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.record import mlflow_client
from thinner.config import load_params
from thinner.evidence import decision, shipping
from thinner.files import json_files
from thinner.runtimes import catalogue

if TYPE_CHECKING:
    from mlflow import MlflowClient

PREDICTIONS = "predictions.npz"
TEST = "test.sha256"  # tag: which test images, see `test_digest`
SERVED = "served.sha256"  # tag: what is served beside the candidate's files, see `served_digest`
PREDICTED = "predictions.sha256"  # tag: what it named for the test images, see `predictions_digest`
# the code that answers requests, of which each model has a copy
PROGRAM, PACKAGE = Path(__file__).with_name("served.py").resolve(), Path(__file__).resolve().parents[2] / "thinner"
DATASET = "test"  # the name of the data set that test metrics are linked to
# what the copy of `thinner` in a model imports when it answers a request
REQUIREMENTS = (
    "mlflow", "torch", "torchvision", "timm", "onnx", "onnxruntime", "numpy", "scipy", "pandas", "pillow",
    "safetensors", "jaxtyping",
)  # fmt: skip


def made(root: Path) -> dict[str, Path]:
    """The candidates that have been made, and where each lies: data/NAME, of prune_SOURCE data/prune_also/SOURCE, of
    self-training as decision.FOLDERS has it, data/export/NAME, or data/quantize/NAME."""
    trained = {name: root / "data" / folder for name, folder in decision.FOLDERS.items()}
    return {name: folder for name, folder in trained.items() if (folder / "model.json").is_file()} | {
        before + path.parent.name: path.parent
        for folder, before in (("data", ""), ("data/prune_also", "prune_"), ("data/export", ""), ("data/quantize", ""))
        for path in sorted(root.glob(f"{folder}/*/model.json"))
    }


def folder_of(name: str) -> Path:
    """Where the candidate's files lie; for one that has not been made, where its export would."""
    return made(Path()).get(name, Path("data/export") / name)


def record(
    client: MlflowClient, experiment: str, stage_hash: str, parent: str | None, names: Sequence[str] = ()
) -> list[str]:
    """Make a run for each candidate of reports/metrics.json (or those in ``names``) from the files that evaluate wrote.

    ``stage_hash`` is evaluate's: by it and the tag `candidate` a run is found again. Returns the runs' ids.
    """
    measured = shipping.read_metrics(Path("reports/metrics.json"))
    environment = json_files.read_object(Path("reports/evaluate/environment.json"), "Make it again: dvc repro evaluate")
    test = test_digest()
    return [
        _record_one(client, experiment, name, measured[name], environment, test, stage_hash, parent)
        for name in (names or measured)
    ]


def _record_one(
    client: MlflowClient,
    experiment: str,
    name: str,
    row: Mapping[str, Any],
    environment: Mapping[str, Any],
    test: str,
    stage_hash: str,
    parent: str | None,
) -> str:
    from mlflow.entities import LoggedModelInput, Metric, Param
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE

    images = environment["test_images"]
    shown, variant = mlflow_client.name_and_tags(f"{name} (test)")
    tags = {
        "candidate": name,
        "stage": "candidate",
        "dvc.stage_hash": stage_hash,
        "data.sha256": environment["data_sha256"],
        TEST: test,
        SERVED: served_digest(name),
        PREDICTED: predictions_digest(name),
        **({MLFLOW_PARENT_RUN_ID: parent} if parent else {}),
        MLFLOW_RUN_NOTE: (
            f"**{name}** on {images:,} test images, in {row['runtime']} on {row['device']}: "
            f"accuracy {row['accuracy']:.2%}, {row['params']:,} parameters, {row['macs']:,} MACs per image, "
            f"a file of {row['file_bytes']:,} bytes. Times were measured on {environment['cpu']}."
        ),
        **variant,
        **mlflow_client.origin(),
    }
    run_id = str(client.create_run(experiment, run_name=shown, tags=tags).info.run_id)
    status = "FAILED"
    try:
        numbers = {f"test/{key}": float(value) for key, value in row.items() if is_number(value)}
        words = {key: str(value) for key, value in row.items() if isinstance(value, str)}
        mlflow_client.log_dataset(
            client, run_id, DATASET, test, Path("data/prepared"), {"test": images}, context="testing"
        )
        log_predictions(client, run_id, read_predictions([name]))

        def rest(model_id: str) -> None:
            now = int(time.time() * 1000)
            linked = {"model_id": model_id, "dataset_name": DATASET, "dataset_digest": test[:36], "run_id": run_id}
            client.log_batch(
                run_id,
                metrics=[Metric(key, value, now, 0, **linked) for key, value in numbers.items()],
                params=[Param(key, value) for key, value in words.items()],
            )
            client.log_inputs(run_id, models=[LoggedModelInput(model_id)])

        log_model(run_id, name, rest)
        status = "FINISHED"
    finally:
        client.set_terminated(run_id, status)
    return run_id


def test_digest() -> str:
    """SHA-256 of the test images, their labels and the classes' names. Other than the hash of all data it stays when
    images are added to the training part, or their splits are drawn anew: then two networks can still be compared."""
    folder = Path("data/prepared")
    images, labels = (
        np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in ("images", "labels")
    )
    with np.load(folder / "splits.npz", allow_pickle=False) as splits:
        test = splits["test"]
    whole = hashlib.sha256(json.dumps(json.loads((folder / "info.json").read_text())["classes"]).encode())
    for start in range(0, len(test), 1000):  # the array may be larger than memory
        part = test[start : start + 1000]
        whole.update(images[part].tobytes())
        whole.update(labels[part].astype("<i8").tobytes())
    return whole.hexdigest()


def served_digest(name: str) -> str:
    """SHA-256 of what answers requests beside the candidate's files: served.py, the package `thinner`, and what
    they are told (the temperature). The same network behind other code is another model."""
    # an evaluation that is run again may fit a temperature that differs in its last digits
    told = {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in _told(name).items()}
    whole = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    sources = sorted(path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    files = {PROGRAM.name: PROGRAM, **{f"{PACKAGE.name}/{path.relative_to(PACKAGE)}": path for path in sources}}
    for place, path in files.items():
        whole.update(f"{place} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return whole.hexdigest()


def predictions_digest(name: str) -> str:
    """SHA-256 of the classes that the candidate named for the test images, in their order."""
    return hashlib.sha256(read_predictions([name])[f"predictions.{name}"].astype("<u2").tobytes()).hexdigest()


def _told(name: str) -> dict[str, Any]:
    """The model's configuration: how a picture becomes a square, and the temperature that divides logits."""
    info = json.loads(Path("data/prepared/info.json").read_text())
    limit = load_params().data.max_pixels
    measured = shipping.read_metrics(Path("reports/metrics.json"))[name]
    # an evaluation that fits no temperature leaves confidences as they are
    temperature = float(measured.get("temperature", 1.0))
    square = {key: info[key] for key in ("image_size", "channels", "fit")}
    return {**square, "max_pixels": limit, "temperature": temperature}


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_predictions(names: Sequence[str] | None = None) -> dict[str, Any]:
    """What evaluate predicted, in as few bytes as it takes: index, labels and `predictions.NAME` per test image."""
    with np.load("data/evaluate/predictions.npz", allow_pickle=False) as file:
        wanted = [key for key in file.files if key.startswith("predictions.")]
        if names is not None:
            wanted = [f"predictions.{name}" for name in names]
        return {"index": file["index"], **{key: file[key].astype(np.uint16) for key in ("labels", *wanted)}}


def log_model(run_id: str, name: str, rest: Callable[[str], None]) -> None:
    """Record the candidate as a model of this run: its files, a copy of `thinner`, and served.py to run them.

    ``rest`` is given the LoggedModel's id and records what else belongs to the run, which MLflow says is finished as
    soon as this one ends.
    """
    import mlflow
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    signature = ModelSignature(
        inputs=Schema([ColSpec("string", "image")]),
        outputs=Schema([ColSpec("string", "label"), ColSpec("double", "confidence")]),
    )
    runtime = catalogue.in_folder(folder_of(name))
    packages = dict.fromkeys((*REQUIREMENTS, *([runtime.package] if runtime else [])))
    mlflow.set_tracking_uri(mlflow_client.tracking_uri())  # a fluent function: it knows one address
    with tempfile.TemporaryDirectory() as copy, _no_bytecode(), mlflow.start_run(run_id=run_id):
        # MLflow takes no links, which DVC may have put in place of files (its cache.type)
        files = shutil.copytree(folder_of(name), Path(copy) / name)
        logged = mlflow.pyfunc.log_model(
            name=name,
            python_model=str(PROGRAM),
            artifacts={"candidate": str(files)},
            code_paths=[str(PACKAGE)],
            model_config=_told(name),
            signature=signature,
            input_example=pd.DataFrame({"image": [_example()]}),
            pip_requirements=[f"{package}=={v}" for package in packages if (v := mlflow_client.version_of(package))],
        )
        rest(str(logged.model_id))


@contextlib.contextmanager
def _no_bytecode() -> Iterator[None]:
    """MLflow imports the program that it has copied into the model: what Python compiles of it is no part of that."""
    before = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def _example() -> str:
    """The first validation image as a PNG in base64: what a request holds."""
    from PIL import Image

    with np.load("data/prepared/splits.npz", allow_pickle=False) as splits:
        number = int(splits["validation"][0])
    pixels = np.asarray(np.load("data/prepared/images.npy", mmap_mode="r", allow_pickle=False)[number])
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def find(client: MlflowClient, experiment: str, name: str, stage_hash: str) -> str | None:
    """The newest finished run of this candidate, of this evaluation."""
    return mlflow_client.newest_run(client, experiment, "candidate", name, stage_hash)


def log_predictions(client: MlflowClient, run_id: str, found: Mapping[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / PREDICTIONS
        np.savez_compressed(kept, **found)
        client.log_artifact(run_id, str(kept))


def fetch_predictions(client: MlflowClient, run_id: str) -> dict[str, Any] | None:
    """`index`, `labels` and `predictions.NAME` that a run keeps; None where it keeps none."""
    if not any(file.path == PREDICTIONS for file in client.list_artifacts(run_id)):
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = client.download_artifacts(run_id, PREDICTIONS, folder)
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
