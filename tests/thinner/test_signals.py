"""What the teacher said once is what it would say again."""

import json

import numpy as np
import pytest
import torch

from thinner import models, signals, views

NETWORK = {"name": "resnet8", "width": 8, "stem_stride": 2, "classes": 7, "channels": 1}
PREPROCESSING = {"image_size": 16, "channels": 1, "mean": [0.5], "std": [0.25]}
POLICY = views.Policy(crop=0.8, flip=True)
IMAGES = np.random.default_rng(0).integers(0, 256, (30, 12, 12, 1), dtype=np.uint8)
INDEX = np.array([1, 2, 3, 5, 8, 13, 21, 22, 25, 29])


def teacher():
    torch.manual_seed(0)
    return models.create(NETWORK).eval()


def write(folder, work, **changes):
    folder.mkdir(exist_ok=True)
    work.mkdir(exist_ok=True)
    arguments = {
        "count": 3, "classes": 7, "preprocessing": PREPROCESSING, "policy": POLICY, "seed": 4, "batch_size": 4,
        "info": {"teacher": "x"}, "work": work, **changes,
    }  # fmt: skip
    signals.write_signals(folder, teacher(), IMAGES, INDEX, **arguments)


def test_cached_signals_equal_the_live_teacher(tmp_path):
    write(tmp_path / "out", tmp_path / "work")
    cache = signals.open_signals(tmp_path / "out")
    wanted = np.array([29, 1, 13, 8])
    view = np.array([0, 2, 1, 2])
    live = signals.view_logits(teacher(), IMAGES, wanted, view, preprocessing=PREPROCESSING, policy=POLICY, seed=4)
    assert (cache.logits(wanted, view) - live).abs().max() <= 2e-3


def test_large_logits_lose_little(tmp_path):
    # float16 keeps 2**-8 at 8; the centre halves the size of what is stored
    class Loud(torch.nn.Module):
        def forward(self, x):
            return torch.linspace(-15.0, 16.0, 7) + x.mean(dim=(1, 2, 3))[:, None] * 0

    (tmp_path / "work").mkdir()
    signals.write_signals(
        tmp_path, Loud(), IMAGES, INDEX, count=1, classes=7, preprocessing=PREPROCESSING, policy=POLICY, seed=0,
        batch_size=4, info={}, work=tmp_path / "work",
    )  # fmt: skip
    got = signals.open_signals(tmp_path).logits(INDEX, np.zeros(10, dtype=np.int64))
    assert (got - torch.linspace(-15.0, 16.0, 7)).abs().max() <= 4e-3


def test_the_batch_size_of_the_teacher_changes_next_to_nothing(tmp_path):
    for size in (3, 10):
        write(tmp_path / str(size), tmp_path / f"work{size}", batch_size=size)
    one, two = (signals.open_signals(tmp_path / str(size)) for size in (3, 10))
    view = np.ones(10, dtype=np.int64)
    assert torch.allclose(one.logits(INDEX, view), two.logits(INDEX, view), atol=2e-3)


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(tmp_path):
    write(tmp_path / "whole", tmp_path / "work")
    calls = []

    class KilledError(Exception):
        pass

    def kill(done):
        calls.append(done)
        if done >= 12:
            (tmp_path / "cut" / "mark").touch()
            raise KilledError

    work = tmp_path / "work2"
    (tmp_path / "cut").mkdir()
    with pytest.raises(KilledError):
        write(tmp_path / "cut", work, on_images=kill)
    (work / "done.json").write_text(json.dumps({"done": 8}))  # as if the mark of batch 2 had been reached
    again = []
    write(tmp_path / "cut", work, on_images=again.append)
    assert again[0] == 12
    for name in ("logits.npy", "centres.npy", "index.npy"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_an_image_without_signals_is_an_error(tmp_path):
    write(tmp_path / "out", tmp_path / "work")
    cache = signals.open_signals(tmp_path / "out")
    for stranger in (4, 30):
        with pytest.raises(signals.SignalsError, match="no signals for some of these images"):
            cache.logits(np.array([1, stranger]), np.array([0, 0]))


def test_missing_signals_name_the_stage(tmp_path):
    with pytest.raises(signals.SignalsError, match="thinner stage teach"):
        signals.open_signals(tmp_path)
