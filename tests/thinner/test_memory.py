"""thinner.measure.memory against sizes worked out by hand. Processes are started: some seconds."""

from pathlib import Path

import numpy as np
import pytest
import torch

from thinner.data import views
from thinner.data.views import preprocess
from thinner.measure import memory
from thinner.networks import checkpoint, export, models
from thinner.networks.spec import NetworkSpec

MIB = 2**20
PREPROCESSING = views.Preprocessing(32, mean=(0.5,), std=(0.25,))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A slim network, a wide one, and the wide one as ONNX."""
    root = tmp_path_factory.mktemp("candidates")
    torch.manual_seed(0)
    for name, width in (("slim", 4), ("wide", 128)):
        network = NetworkSpec("resnet8", 3, 1, width=width, stem_stride=1)
        spec = {"stage": name, "network": network.as_json(), "classes": list("abc"), "preprocessing": PREPROCESSING.as_json(),
                "parents": {}, "data_sha256": "0" * 64}  # fmt: skip
        checkpoint.save(root / name, models.create(network), spec)
    (root / "wide_onnx").mkdir()
    wide = checkpoint.load(root / "wide")
    export.export_onnx(wide.model, root / "wide_onnx" / "model.onnx", (1, 32, 32), {}, opset=20)
    (root / "wide_onnx" / "model.json").write_text((root / "wide" / "model.json").read_text())
    return {name: root / name for name in ("slim", "wide", "wide_onnx")}


@pytest.mark.integration
def test_memory_holds_the_weights_and_the_largest_activations(folders: dict[str, Path]) -> None:
    few, many = (
        memory.measure_memory(list(folders.values()), batch, threads=1, picture=(28, 28, 1)) for batch in (1, 33)
    )
    grown = {name: (few[str(path)], many[str(path)]) for name, path in folders.items()}
    weights = (folders["wide"] / "model.safetensors").stat().st_size
    assert weights > 16 * MIB
    # a block's input and its output at full resolution: images x channels x pixels x 4 bytes, twice
    activations = 2 * 33 * 128 * 32 * 32 * 4
    for name in ("wide", "wide_onnx"):
        assert weights <= grown[name][0] < 8 * weights  # runtimes keep copies, and how many depends on the processor
        assert weights + activations <= grown[name][1] < 8 * (weights + activations)
        assert grown[name][1] > grown[name][0]
    # ONNX Runtime's peak at batch 1 is that of loading, so the difference tells of activations in PyTorch only
    assert grown["wide"][1] - grown["wide"][0] >= 0.9 * activations * 32 / 33
    assert grown["slim"][0] < 4 * MIB
    assert 2 * 33 * 4 * 32 * 32 * 4 <= grown["slim"][1] < grown["wide"][1] / 10


@pytest.mark.integration
def test_a_candidate_that_cannot_be_opened_is_an_error_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)memory could not be measured.*model\.json: no such file"):
        memory.measure_memory([tmp_path], 1, threads=1, picture=(28, 28, 1))


def test_where_the_system_keeps_no_peak_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "RESET", Path("/nowhere"))
    assert memory.measure_memory(["/nowhere"], 1, threads=1, picture=(28, 28, 1)) == {}


def test_the_inputs_are_those_of_the_candidate() -> None:
    from thinner.predict import preprocess as for_candidate

    pictures = np.full((2, 28, 28, 1), 100, dtype=np.uint8)
    torch.testing.assert_close(
        for_candidate(pictures, {"preprocessing": PREPROCESSING.as_json()}), preprocess(pictures, PREPROCESSING)
    )
    raw = for_candidate(pictures, {"preprocessing": PREPROCESSING.as_json(), "input": "pixels"})
    assert raw.dtype == torch.uint8 and raw.shape == (2, 28, 28, 1)
