"""What training starts from is said in the log and stands in the checkpoint."""

import contextlib
import hashlib
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from tasks import learning
from tasks.stage import Stage
from thinner.networks import models
from thinner.networks.spec import NetworkSpec
from thinner.params import Params

GOOD = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text())


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Weights of the student's network in another port."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(5)
    state = models.create(models.describe(Params.model_validate(GOOD).student, 10)).state_dict()
    numbers = {}
    ported = {
        f"m{numbers.setdefault(n.rpartition('.')[0], len(numbers))}.{n.rpartition('.')[2]}": t for n, t in state.items()
    }
    Path("data/weights").mkdir(parents=True)
    torch.save({"state_dict": ported}, "data/weights/port.pth")
    return "data/weights/port.pth", state


def params_of(**student):
    return Params.model_validate(GOOD | {"student": GOOD["student"] | student})


def test_the_log_says_what_was_mapped_and_the_spec_which_file_it_was(file, capsys):
    path, state = file
    stage = Stage("scratch", params_of(weights=path))
    model, _, parents = learning.new_student(stage, SimpleNamespace(classes=list("0123456789")))
    assert all(t.equal(state[n]) for n, t in model.state_dict().items())
    assert parents == {"weights": path, "weights_sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest()}
    assert (
        f"scratch: {len(state)} tensors taken by their order, since their names are others: m0"
        in capsys.readouterr().out
    )


def test_the_log_says_where_preprocessing_is_another_than_the_weights_had(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("data/weights").mkdir(parents=True)
    name = "torchvision:squeezenet1_1"
    torch.save(models.create(NetworkSpec(name, 1000, 3)).state_dict(), "data/weights/w.pth")
    changes = {"network": name, "width": None, "stem_stride": None, "mean": [0.5] * 3, "std": [0.25] * 3}
    stage = Stage("distill", params_of(weights="data/weights/w.pth", **changes))
    learning.started(stage, stage.params.student, 10)
    said = capsys.readouterr().out
    assert "distill: learnt anew: the head classifier.1" in said
    assert (
        "distill: mean: [0.5, 0.5, 0.5], but the library's weights of 'squeezenet1_1' were trained with other." in said
    )


def test_a_student_from_nothing_names_no_weights():
    stage = Stage("scratch", params_of())
    assert learning.new_student(stage, SimpleNamespace(classes=list("ab")))[2] == {}


def test_a_further_process_leaves_the_end_to_the_first(tmp_path, monkeypatch):
    """Which removes what both resume from as soon as it is done."""
    monkeypatch.chdir(tmp_path)
    stage = Stage("distill", params_of(), helper=True)
    learning.finish(stage, None, {}, [{"step": 1.0, "val_accuracy": 0.5, "val_loss": 1.0}])
    assert not list(tmp_path.iterdir())


def test_the_first_process_goes_alone_and_lets_the_others_go_on_when_it_fails():
    """Two threads in place of two processes."""
    both, seen = threading.Barrier(2, timeout=30), []

    def go(rank, fails):
        fabric = SimpleNamespace(global_rank=rank, barrier=both.wait)
        with contextlib.suppress(KeyError), learning.first_alone(fabric):
            seen.append(f"{rank} in")
            if fails:
                raise KeyError
            time.sleep(0.1)
            seen.append(f"{rank} out")

    for fails in (False, True):
        threads = [threading.Thread(target=go, args=(rank, fails and rank == 0)) for rank in (1, 0)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert seen == ["0 in", "0 out", "1 in", "1 out", "0 in", "1 in", "1 out"]
