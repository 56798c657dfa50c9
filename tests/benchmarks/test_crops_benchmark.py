"""benchmarks/crops.py: what is compared, on a handful of pictures; and a second call trains nothing anew."""

import numpy as np
import pytest
from PIL import Image

from benchmarks import crops


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(crops, "LABELLED", 6)
    monkeypatch.setattr(crops, "VALIDATION", 2)
    monkeypatch.setattr(crops, "BATCH", 4)
    random = np.random.default_rng(0)
    for part, count in (("train", 9), ("test", 3)):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(count):
                picture = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(picture).save(tmp_path / part / name / f"{number:04}.jpg")
    return tmp_path


def test_both_train_on_the_same_pictures_and_test_on_others(folder):
    pictures = crops.Pictures(folder)
    assert [len(part) for part in (pictures.labelled, pictures.validation, pictures.test)] == [12, 4, 6]
    assert len({*pictures.labelled, *pictures.validation, *pictures.test}) == 22
    assert pictures.stored.shape == (22, 32, 32, 3) and pictures.reduced.shape == (22, 16, 16, 3)
    # an average of each square of two by two and of its neighbours: a triangle of 1, 3, 3, 1 eighths
    inner = pictures.stored.astype(float)
    weights = np.array([1, 3, 3, 1]) / 8
    expected = sum(
        weights[i] * weights[j] * inner[:, 1 + i : 28 + i : 2, 1 + j : 28 + j : 2] for i in range(4) for j in range(4)
    )
    assert np.abs(pictures.reduced[:, 1:-1, 1:-1] - expected).max() <= 0.5 + 1e-3
    assert np.bincount(pictures.labels[pictures.labelled]).tolist() == [6, 6]


def test_a_run_that_was_stopped_goes_on(folder, tmp_path_factory, monkeypatch, capsys):
    kept = tmp_path_factory.mktemp("kept") / "crops.json"
    given = ["--data", str(folder), "--steps", "2", "--seeds", "0", "--kept", str(kept)]
    learn, done = crops.learn, []

    def stopped(*arguments):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(learn(*arguments))
        return done[-1]

    monkeypatch.setattr(crops, "learn", stopped)
    with pytest.raises(KeyboardInterrupt):
        crops.main(given)
    monkeypatch.setattr(crops, "learn", lambda *arguments: done.append(learn(*arguments)) or done[-1])
    assert crops.main(given) == 0 and len(done) == len(crops.WAYS)
    assert crops.main(given) == 0 and len(done) == len(crops.WAYS)
    assert capsys.readouterr().out.count("| crop: 0.7 | ") == 2


def test_gains_are_those_of_each_seed():
    found = {f"{name}; {seed}": 0.5 for name in crops.WAYS for seed in range(3)}
    found |= {"crop: 0.5; 0": 0.51, "crop: 0.5; 1": 0.52, "crop: 0.5; 2": 0.53}
    table = crops.markdown(found, dict.fromkeys(crops.WAYS, 1.25), [0, 1, 2])
    # the mean is 2, the standard error 1 / sqrt(3), and of two degrees of freedom t is 4.303
    assert "| crop: 0.5 | 52.0 % | crop: 0.5, reduced | +2.0 [-0.5, 4.5] | +1.0, +2.0, +3.0 | 1.25x |" in table


def test_too_few_pictures_are_named(folder, monkeypatch, capsys):
    monkeypatch.setattr(crops, "LABELLED", 60)
    assert crops.main(["--data", str(folder)]) == 1
    assert "62 pictures of each class are needed in train/CLASS" in capsys.readouterr().err
