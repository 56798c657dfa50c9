"""Networks of the user's own: built, kept and loaded as others are, and never run unless params.yaml names them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from thinner import predict
from thinner.compress import pruning
from thinner.config import ParamsError, load_params
from thinner.data import views
from thinner.errors import UserError
from thinner.measure import verify
from thinner.measure.profiling import count_macs, count_params
from thinner.networks import checkpoint, models, own
from thinner.networks.spec import NetworkSpec

ROOT = Path(__file__).parents[2]
NAME = "python:nets/mine.py:make"
MINE = """
from pathlib import Path
from torch import nn

Path("ran.txt").write_text("imported")


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()

    def forward(self, x):
        return self.act(self.norm(self.conv(x)))


def make(classes, channels):
    parts = [nn.Conv2d(channels, 32, 3, 2, 1), nn.ReLU(), Block(32), Block(32), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*parts, nn.Linear(32, classes))
"""
SEES = views.Preprocessing(16, mean=(0.3,), std=(0.3,))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder whose params.yaml names the network of nets/mine.py."""
    monkeypatch.chdir(tmp_path)
    Path("nets").mkdir()
    Path("nets/mine.py").write_text(MINE)
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    raw["student"] |= {"network": NAME, "width": None, "stem_stride": None, "image_size": 16}
    Path("params.yaml").write_text(yaml.safe_dump(raw))
    monkeypatch.setattr(own, "_MODULES", {})
    return tmp_path


def network_here():
    return NetworkSpec(NAME, 10, 1, code_sha256=own.code_sha256(NAME))


def spec_of(network):
    return {"stage": "distill", "network": network.as_json(), "classes": list("0123456789"), "preprocessing": SEES.as_json(),
            "parents": {}, "data_sha256": "0" * 64}  # fmt: skip


def kept(network):
    torch.manual_seed(0)
    model = models.create(network).eval()
    checkpoint.save("kept", model, spec_of(network))
    return model


@pytest.mark.integration
@pytest.mark.usefixtures("here")
def test_a_network_of_ones_own_is_kept_and_loaded_as_others_are():
    network = models.describe(load_params().student, 10)
    assert network == network_here()  # the spec names the code's hash
    model = kept(network)
    x = torch.rand(3, 1, 16, 16)
    assert checkpoint.load("kept").model(x).equal(model(x))
    assert predict.open_candidate("kept").run(x).equal(model(x))
    verify.verify_saved("kept", model, x)  # in a new process
    assert models.head_of(model)[0] == "6"


@pytest.mark.usefixtures("here")
def test_it_is_pruned_and_loads_pruned():
    network = network_here()
    model = kept(network)
    example = torch.zeros(1, 1, 16, 16)
    wanted = count_macs(model, (1, 16, 16)) // 2
    pruned, _ = pruning.cut(model, example, macs=wanted, criterion="l2", round_to=8)
    checkpoint.save("kept", pruned.eval(), spec_of(network))
    x = torch.rand(2, 1, 16, 16)
    loaded = checkpoint.load("kept")
    assert loaded.spec["pruned"]
    assert loaded.model(x).equal(pruned(x))


def test_modules_and_tensors_that_are_used_twice_are_loaded_as_one(here):
    two = "one := nn.Conv2d(32, 32, 1), nn.ReLU(), two := nn.Conv2d(32, 32, 1)"
    code = MINE.replace("Block(32), Block(32)", f"block := Block(32), block, {two}")
    Path("nets/mine.py").write_text(code.replace("    return nn", "    two.weight = one.weight\n    return nn"))
    model, x = kept(network_here()), torch.rand(2, 1, 16, 16)
    loaded = checkpoint.load("kept").model
    assert loaded[2] is loaded[3] and loaded[4].weight is loaded[6].weight and loaded(x).equal(model(x))
    assert count_params(loaded) == count_params(model)


def test_a_module_that_is_used_twice_is_cut_once_and_loads_so(here):
    Path("nets/mine.py").write_text(MINE.replace("Block(32), Block(32)", "block := Block(32), block"))
    network = network_here()
    model, x = kept(network), torch.rand(2, 1, 16, 16)
    pruned, _ = pruning.cut(model, x[:1], params=count_params(model) // 2, criterion="l2", round_to=4)
    checkpoint.save("kept", pruned.eval(), spec_of(network))
    loaded = checkpoint.load("kept").model
    assert loaded[2] is loaded[3] and loaded(x).equal(pruned(x))
    assert count_params(loaded) == count_params(pruned) <= count_params(model) // 2


def test_a_cut_that_would_take_logits_is_refused_with_the_mend(here):
    """The head is a convolution, and a linear layer lies somewhere before it: that one would be kept whole."""
    code = (
        MINE
        + """

class Gate(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.scale = nn.Linear(width, width)

    def forward(self, x):
        return x * self.scale(x.mean((2, 3)))[:, :, None, None].sigmoid()


def make(classes, channels):
    parts = [nn.Conv2d(channels, 32, 3, 2, 1), nn.ReLU(), Gate(32), Block(32), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*parts, nn.Conv2d(32, classes, 1), nn.Flatten())
"""
    )
    Path("nets/mine.py").write_text(code)
    model, example = models.create(network_here()), torch.zeros(1, 1, 16, 16)
    half = count_macs(model, (1, 16, 16)) // 2
    with pytest.raises(UserError, match=r"a cut leaves \d of its 10 logits\..* keep the one that is: prune\.keep"):
        pruning.cut(model, example, macs=half, criterion="l2")
    pruned, _ = pruning.cut(model, example, macs=half, criterion="l2", keep=["^5$"])
    assert pruned(example).shape == (1, 10)


@pytest.mark.parametrize("ask", [checkpoint.load, predict.open_candidate, models.create, models.skeleton])
def test_code_that_params_yaml_does_not_name_is_never_imported(here, ask):
    kept(network := network_here())
    Path("ran.txt").unlink()
    own._MODULES.clear()
    params = Path("params.yaml").read_text()
    for other in ("finetune: {network: python:nets/mine.py:other}\nstudent: {}\n", "[]", "a: [", None):
        Path("params.yaml").write_text(other) if other else Path("params.yaml").unlink()
        given = network if ask in (models.create, models.skeleton) else "kept"
        with pytest.raises(models.NetworkError, match="is code, and params.yaml of this folder does not name it") as no:
            ask(given)
        assert "\n" not in str(no.value)
    assert not Path("ran.txt").exists()
    Path("params.yaml").write_text(params)
    checkpoint.load("kept")
    assert Path("ran.txt").exists()


def test_a_new_process_refuses_a_strangers_checkpoint_in_one_line(here):
    kept(network_here())
    Path("params.yaml").unlink()
    Path("ran.txt").unlink()
    done = subprocess.run(
        [sys.executable, "-m", "thinner.measure.verify", "kept"],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "is code, and params.yaml of this folder does not name it" in done.stderr
    assert not Path("ran.txt").exists()


def test_other_code_than_the_checkpoint_was_made_with_is_refused(here):
    kept(network_here())
    Path("nets/mine.py").write_text(MINE + "\n# another\n")
    Path("ran.txt").unlink()
    with pytest.raises(models.NetworkError, match=r"nets/mine\.py is another than this checkpoint was made with"):
        checkpoint.load("kept")
    assert not Path("ran.txt").exists()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def other(classes, channels): ...", "nets/mine.py has no function 'make'"),
        ("make = 3", "nets/mine.py has no function 'make'"),
        ("def make(classes, channels): ...", "make returned a NoneType. Return an nn.Module"),
        ("def make(classes): ...", "make(classes, channels) failed: TypeError: make() got an unexpected keyword argument"),
        ("def make(classes, channels):\n  x = 1\n  return x / 0", "ZeroDivisionError: division by zero (line 3)"),
        ("import no_such_thing", "'nets/mine.py' cannot be imported: ModuleNotFoundError: No module named 'no_such_thing' (line 1)"),
        ("def make(:", "cannot be imported: SyntaxError"),
    ],
)  # fmt: skip
def test_mistakes_in_the_code_are_one_line_with_its_number(here, code, message):
    Path("nets/mine.py").write_text(code)
    with pytest.raises(models.NetworkError, match=re.escape(message)) as caught:
        models.create(NetworkSpec(NAME, 10, 1))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("assert x.shape[-1] == 32", "AssertionError"),
        ("return x + [1]", "unsupported operand"),
        ("return x.nothing", "has no attribute 'nothing'"),
        ("raise ValueError('\\n\\ntoo small')", "(too small)"),
    ],
)
def test_what_goes_wrong_in_it_is_one_line_of_the_check(here, line, why):
    code = "from torch import nn\nclass Net(nn.Conv2d):\n  def forward(self, x):\n    " + line
    Path("nets/mine.py").write_text(f"{code}\ndef make(classes, channels):\n  return Net(channels, classes, 1)\n")
    with pytest.raises(ParamsError) as caught:
        load_params("params.yaml", deep=True)
    (line,) = (line for line in caught.value.lines if line.startswith("student.image_size: "))
    assert line.startswith(f"student.image_size: 16 px does not go through '{NAME}' (") and why in line


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("python:evil.py:make", "A network of your own is python:nets/FILE.py:FUNCTION"),
        ("python:nets/../evil.py:make", "A network of your own is python:nets/FILE.py:FUNCTION"),
        ("python:/etc/evil.py:make", "A network of your own is python:nets/FILE.py:FUNCTION"),
        ("python:nets/mine.py", "A network of your own is python:nets/FILE.py:FUNCTION"),
        ("python:nets/none.py:make", "no file 'nets/none.py' here"),
        ("python:nets/link.py:make", "is a link to a place that DVC does not watch"),
    ],
)
def test_only_files_below_nets_are_taken(here, name, message):
    Path("evil.py").write_text(MINE)
    Path("nets/link.py").symlink_to("../evil.py")
    Path("params.yaml").write_text(yaml.safe_dump({"student": {"network": name}}))
    with pytest.raises(models.NetworkError, match=re.escape(message)):
        models.create(NetworkSpec(name, 10, 1))
    assert not Path("ran.txt").exists()
