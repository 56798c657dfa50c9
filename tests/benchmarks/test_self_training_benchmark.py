"""benchmarks/self_training.py: the stages themselves run, once; what is told of their answers."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import self_training as benchmark
from thinner.params import Params

CLASSES = 3


def right(share: float, images: int = 400, seed: int = 0) -> dict[str, np.ndarray]:
    """Labels, and answers that are right on such a share of images for self_train and on half for the others."""
    labels = np.random.default_rng(seed).integers(0, CLASSES, images)
    wrong = (labels + 1) % CLASSES
    first = np.arange(images) < round(share * images)
    half = np.arange(images) % 2 == 0
    named = {"finetune": half, "self_train_control": half, "self_train": first}
    return {"labels": labels, **{name: np.where(ok, labels, wrong) for name, ok in named.items()}}


def runs(*shares: float) -> dict[int, dict[str, object]]:
    return {
        seed: {"test": right(share), "validation": right(share, seed=1), "seconds": {}}
        for seed, share in enumerate(shares)
    }


def test_a_gain_beyond_three_points_over_seeds_holds_and_one_of_two_does_not() -> None:
    far = benchmark.summary(runs(0.70, 0.72, 0.71, 0.73, 0.70))
    assert far["holds"]
    assert {verdict["outcome"] for verdict in far["verdicts"].values()} == {"proven"}
    assert set(far["chosen"]) == {100, 200}  # there are 400 validation images
    assert far["chosen"][100] <= far["chosen"][200] == 5
    near = benchmark.summary(runs(0.52, 0.53, 0.51, 0.52, 0.53))
    assert not near["holds"]
    assert near["chosen"][100] < 5
    table = benchmark.markdown(far)
    assert "| 0 | 50.0% | 50.0% | 70.0% | +20.0 | +20.0 |" in table
    assert "| mean | 50.0% | 50.0% | 71.2% | +21.2 | +21.2 |" in table


def test_a_key_that_is_not_there_is_named() -> None:
    with pytest.raises(SystemExit, match=r"--set self_train.methd: params.yaml has no such key"):
        benchmark.params_with({"self_train.methd": "fixmatch"}, 0)


def small(root: Path) -> Params:
    for part, count in (("train", 40), ("test", 12)):
        for number in range(count):
            folder = root / "raw" / part / f"class{number % CLASSES}"
            folder.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 90, (12, 12), dtype=np.uint8) + 60 * (number % CLASSES)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    network = {"network": "resnet8", "width": 8, "stem_stride": 1, "weights": None, "image_size": 12, "freeze": 0}
    steps = {"steps": 2, "validate_every": 2, "batch_size": 4}
    changes = {
        "data.root": str(root / "raw"), "data.source": f"folder:{root / 'raw'}", "data.image_size": 12,
        "data.labelled": 9, "data.validation": 9, "self_train.networks": ["finetune"], "finetune.training.epochs": None,
        "finetune.mean": [0.5], "finetune.std": [0.5], "run.threads": 1,
        **{f"finetune.{key}": value for key, value in network.items()},
        **{f"{section}.training.{key}": value for section in ("finetune", "self_train") for key, value in steps.items()},
    }  # fmt: skip
    return benchmark.params_with(changes, 0)


def test_the_stages_run_once_and_then_only_their_answers_are_read(tmp_path: Path) -> None:
    params = small(tmp_path)
    first = benchmark.measure(params, tmp_path / "work")
    again = benchmark.measure(params, tmp_path / "work")
    assert set(first["seconds"]) == {"prepare", "finetune", "self_train@finetune"}
    assert again["seconds"] == {}
    assert len(first["test"]["labels"]) == 12
    for split in ("test", "validation"):
        assert all(np.array_equal(first[split][name], again[split][name]) for name in first[split])
    assert Path.cwd() != tmp_path / "work"
    other = benchmark.measure(
        params.model_copy(update={"run": params.run.model_copy(update={"seed": 1})}), tmp_path / "work"
    )
    assert other["seconds"]  # another seed is another folder
