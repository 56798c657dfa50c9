"""Files that say when they are not what was written."""

import json
import os

import numpy as np
import pytest
import torch

from thinner.errors import DamagedError
from thinner.files import tensors as tensor_files
from thinner.files import whole

TENSORS = {
    "weight": torch.arange(12.0).reshape(3, 4),
    "half": torch.ones(2, dtype=torch.bfloat16),
    "step": torch.tensor(7),
    "none": torch.zeros(0, 3),
}
ABOUT = {"done": 7, "history": [{"val_accuracy": 0.1}]}


def test_what_was_written_is_read(tmp_path):
    file = tmp_path / "state.safetensors"
    tensor_files.write(file, TENSORS, ABOUT)
    tensors, about = tensor_files.read(file)
    assert about == ABOUT and tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype and torch.equal(tensors[name], tensor)
    whole.write_json(tmp_path / "a.json", ABOUT)
    assert whole.read_json(tmp_path / "a.json") == ABOUT
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "state.safetensors"]


def test_no_flipped_bit_passes(tmp_path):
    file = tmp_path / "state.safetensors"
    tensor_files.write(file, TENSORS, ABOUT)
    content = file.read_bytes()
    for at in range(len(content)):
        flipped = bytearray(content)
        flipped[at] ^= 1 << at % 8
        file.write_bytes(flipped)
        try:
            tensors, about = tensor_files.read(file)
        except DamagedError:
            continue
        # the blanks at the header's end may be other blanks
        assert about == ABOUT and all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items()), at


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_half_a_file_is_no_file(tmp_path, share):
    for name, write, read in (
        ("a", lambda file: tensor_files.write(file, TENSORS, ABOUT), tensor_files.read),
        ("b", lambda file: whole.write_json(file, ABOUT), whole.read_json),
    ):
        file = tmp_path / name
        write(file)
        content = file.read_bytes()
        file.write_bytes(content[: int(share * len(content))])
        with pytest.raises(DamagedError, match=str(file)):
            read(file)
        file.unlink()
        with pytest.raises(FileNotFoundError):
            read(file)


def test_json_that_was_changed_is_refused(tmp_path):
    file = tmp_path / "row.json"
    whole.write_json(file, {"macs": 100})
    file.write_text(file.read_text().replace("100", "101"))
    with pytest.raises(DamagedError, match="checksum"):
        whole.read_json(file)
    for text in ("[]", "3", '{"value": 1}', "\xff", "[" * 100_000):
        file.write_text(text, encoding="latin-1")
        with pytest.raises(DamagedError):
            whole.read_json(file)


def test_the_disk_has_it_before_it_has_its_name(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(whole.os, "fsync", lambda number: done.append("fsync"))
    monkeypatch.setattr(whole.os, "replace", lambda a, b, real=os.replace: (done.append("replace"), real(a, b)))
    whole.write_json(tmp_path / "a.json", 1)
    assert done == ["fsync", "replace"]


def test_a_seal_is_of_the_description_and_of_the_files_beside_it(tmp_path):
    (tmp_path / "model.bin").write_bytes(np.arange(9).tobytes())
    sealed = json.loads(json.dumps(whole.sealed({"classes": ["a"]}, {"model.bin": tmp_path / "model.bin"})))
    spec, files = whole.opened(sealed, tmp_path)
    assert spec == {"classes": ["a"]} and files == {"model.bin": whole.file_sha256(tmp_path / "model.bin")}
    assert whole.sealed(sealed, {"model.bin": tmp_path / "model.bin"}) == sealed  # once more changes nothing
    for other in (
        {**sealed, "classes": ["b"]},
        {**sealed, "more": 1},
        {**sealed, "integrity": 3},
        {**sealed, "integrity": {**sealed["integrity"], "files": {}}},
    ):
        with pytest.raises(DamagedError, match="is not what was written"):
            whole.opened(other, tmp_path)
    assert whole.opened({"classes": ["a"]}, tmp_path) == ({"classes": ["a"]}, {})  # written before there were seals
