"""flows/ending.py and what `--quiet` and `--json` make of a run: the end, for a person and for programs."""

import io
import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

from flows import console, ending, pipeline
from tasks.lineage import Node
from tests.toy import PROJECT, Toy
from thinner.errors import UserError

ROW = {
    "accuracy": 0.894, "macro_f1": 0.89, "params": 38_562, "macs": 1_460_704, "file_bytes": 13_730_048,
    "runtime": "pytorch", "latency_ms_b1": 1.0, "latency_ms_b64": 5.31,
}  # fmt: skip
NAMES = (
    "finetune",
    "scratch",
    "distill",
    "small",
    "prune",
    "distill_onnx",
    "prune_onnx",
    "prune_onnx_int8",
    "prune_pt2",
)
CLAIMS = [
    {
        "kind": "within",
        "claim": "prune is within 1.0 points of distill on accuracy",
        "outcome": "proven",
        "numbers": "10000 images",
    },
    {"kind": "beats", "claim": "prune beats small on accuracy", "outcome": "proven", "numbers": "+7.57 points"},
]
TARGET = {"candidate": "prune", "met": True, "lines": ["Target met: prune has 1,460,704 MACs."], "round": 2,
          "size": 1_460_704.0, "unit": "MACs", "target": {"macs": 0.5}, "loss_bound": 1.0}  # fmt: skip


def node(name: str, *outs: str) -> Node:
    return Node(name, (), "true", outs, {})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """What stages leave of a run, as far as its end reads it."""

    def put(place: str, value: Any) -> None:
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(json.dumps(value))

    put(
        "data/prepared/info.json", {"counts": {"labelled": 2000, "unlabelled": 56_000, "validation": 0, "test": 10_000}}
    )
    for name in ("finetune", "prune"):
        put(f"data/{name}/model.json", {"val_accuracy": 0.8955} if name == "finetune" else {})
        (tmp_path / "data" / name / "model.safetensors").write_bytes(bytes(161_072))
    put("data/teach/signals.json", {"teachers": {"finetune": "0"}})
    np.save(tmp_path / "data/teach/index.npy", np.arange(58_000))
    for name in ("prune_onnx", "prune_pt2"):
        put(f"data/export/{name}/model.json", {})
    put("reports/metrics.json", dict.fromkeys(NAMES, ROW))
    put("reports/claims.json", {f"claim_{n}": claim for n, claim in enumerate(CLAIMS)})
    put("reports/prune/target.json", TARGET)
    put("reports/evaluate/environment.json", {"test_images": 10_000})
    (tmp_path / "reports/report.html").write_text("page")
    params = yaml.safe_load((PROJECT / "params.yaml").read_text())
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params | {"ship": {**params["ship"], "candidate": "prune"}}))
    return tmp_path


NODES = [
    node("prepare", "data/prepared"), node("finetune", "data/finetune"), node("teach", "data/teach"),
    node("prune", "data/prune"), node("export", "data/export"), node("evaluate", "data/evaluate"),
    node("report", "reports/report.html"),
]  # fmt: skip


def test_each_stage_says_what_it_took_and_what_it_made(root: Path) -> None:
    states = dict.fromkeys((n.name for n in NODES), "Completed") | {"prepare": "Cached", "teach": "Restored"}
    ends = ending.stages(root, NODES, states, {"finetune": 125.2, "teach": 1.6})
    assert [(end.name, end.time, end.made) for end in ends][:3] == [
        ("prepare", "up to date", "2,000 labelled, 56,000 unlabelled, 10,000 test images"),
        ("finetune", "2 min 05 s", "data/finetune: right on 89.5 % of the validation images, 161 kB"),
        ("teach", "restored, 2 s", "finetune's outputs for 58,000 images"),
    ]
    assert [end.made for end in ends][3:] == [
        "data/prune: round 2, 1.46 M MACs, 161 kB",
        "2 exports in data/export",
        "9 candidates on 10,000 test images",
        "reports/report.html: 2 of 2 claims proven",
    ]


def test_milliseconds_are_not_rounded_to_none(root: Path) -> None:
    target = {**TARGET, "target": {"latency_ms": 0.5}, "unit": "ms", "size": 0.4213}
    (root / "reports/prune/target.json").write_text(json.dumps(target))
    (end,) = ending.stages(root, [node("prune", "data/prune")], {"prune": "Completed"}, {"prune": 1.0})
    assert end.made == "data/prune: round 2, 0.421 ms, 161 kB"


@pytest.mark.parametrize(
    ("chosen", "said"), [("self_train", "it teaches"), ("finetune", "not shown better: finetune teaches")]
)
def test_self_training_says_who_teaches(root: Path, chosen: str, said: str) -> None:
    folder = root / "data/self_train/finetune"
    folder.mkdir(parents=True)
    (folder / "model.json").write_text(json.dumps({"val_accuracy": 0.785}))
    (folder / "model.safetensors").write_bytes(bytes(161_072))
    compared = dict.fromkeys(("effect", "low", "high", "p_value"), 0.1)
    found = {
        "chosen": chosen, "metric": "accuracy", "images": 500,
        "accuracy": dict.fromkeys(("finetune", "self_train", "self_train_control"), 0.7),
        "against": {"finetune": compared, "self_train_control": compared},
    }  # fmt: skip
    (folder / "decision.json").write_text(json.dumps(found))
    nodes = [node("self_train@finetune", "data/self_train/finetune")]
    (end,) = ending.stages(root, nodes, {"self_train@finetune": "Completed"}, {})
    assert end.made == f"data/self_train/finetune: right on 78.5 % of the validation images, 161 kB; {said}"


def test_a_stage_that_did_not_end_well_made_nothing_and_a_damaged_file_ends_nothing(root: Path) -> None:
    (root / "data/finetune/model.json").write_text("{")
    states = {"finetune": "Completed", "prune": "Failed", "export": "NotReady", "evaluate": "TimedOut"}
    ends = ending.stages(root, NODES, states, {"prune": 3.0, "evaluate": 61.0})
    assert {end.name: (end.time, end.made) for end in ends} == {
        "prepare": ("not run", ""), "finetune": ("ran", "data/finetune"), "teach": ("not run", ""),
        "prune": ("failed, 3 s", ""), "export": ("not run", ""), "evaluate": ("timed out, 1 min 01 s", ""),
        "report": ("not run", ""),
    }  # fmt: skip


def printed(monkeypatch: pytest.MonkeyPatch, width: int = 80) -> Console:
    page = Console(width=width, record=True, file=io.StringIO(), highlight=False, soft_wrap=True)
    for module in (console, ending):
        monkeypatch.setattr(module, "console", page)
    return page


def test_the_end_says_target_and_claims_first_then_the_networks_that_matter_then_what_next(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = printed(monkeypatch)
    assert ending.print_results(root) == (
        "to ship",
        "To ship: prune (2 of 2 claims proven). It is right on 89.4 %, its file has 13.7 MB, and a batch of 64 takes "
        "5.31 ms in PyTorch.",
    )
    text = page.export_text()
    order = [
        "Target met",
        "proven    prune is within",
        "10,000 images",
        "To ship: prune",
        "ms, batch 64",
        "Report",
        "Next",
    ]
    assert [text.index(words) for words in order] == sorted(text.index(words) for words in order)
    rows = [line.split()[0] for line in text.splitlines() if "13.7 MB" in line and "To ship" not in line]
    assert rows == ["finetune", "scratch", "distill", "small", "prune", "prune_onnx", "prune_onnx_int8", "prune_pt2"]
    table = [line for line in text.splitlines() if "13.7 MB" in line and "To ship" not in line]
    assert all(len(line.rstrip()) <= 80 for line in table)
    assert "Also measured: distill_onnx. All of them: thinner report --all" in text
    assert "Network  data/prune" in text and "Report   reports/report.html" in text


@pytest.mark.parametrize("at_hand", [True, False])
def test_what_has_to_be_activated_is_said_where_the_command_is_not_at_hand(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_hand: bool
) -> None:
    (tmp_path / "bin").mkdir()
    if at_hand:
        (tmp_path / "bin" / "thinner").symlink_to(sys.executable)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    page = printed(monkeypatch)
    ending.print_results(root)
    text = page.export_text()
    assert ("bin/activate" in text) is not at_hand and "thinner predict photo.jpg" in text


def test_report_all_has_every_candidate(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = printed(monkeypatch)
    ending.print_results(root, everything=True)
    text = page.export_text()
    assert all(f"{name} " in text for name in NAMES) and "ms b1" in text


def test_programs_get_the_same(root: Path) -> None:
    ends = ending.stages(root, NODES, {"finetune": "Completed"}, {"finetune": 2.5})
    found = ending.as_json(root, "to ship", "To ship: prune.", ends, whole=True)
    assert found["verdict"] == "to ship" and found["exit_code"] == 0 and found["ship"] == "prune"
    assert found["target"][0]["lines"] == TARGET["lines"]
    assert [claim["outcome"] for claim in found["claims"]] == ["proven", "proven"]
    assert found["stages"][1] == {
        "name": "finetune", "state": "ran", "seconds": 2.5,
        "made": "data/finetune: right on 89.5 % of the validation images, 161 kB",
    }  # fmt: skip
    assert found["places"]["networks"]["prune_onnx"] == "data/export/prune_onnx"
    assert found["places"]["report.html"] == "reports/report.html"
    missed = {**TARGET, "met": False, "lines": ["TARGET MISSED"]}
    (root / "reports/prune/target.json").write_text(json.dumps(missed))
    assert ending.as_json(root, "nothing to ship", "", ends, whole=True)["ship"] is None
    # of a run that did not get as far, the reports are another run's
    assert ending.as_json(root, "failed", "", ends, whole=False)["target"] == []


def test_a_file_of_somebody_elses_is_not_overwritten(root: Path, tmp_path: Path) -> None:
    ours = tmp_path / "new folder" / "end.json"
    ending.check_file(ours)
    assert not ours.exists()
    ending.write(ours, ending.as_json(root, "done", "", [], whole=False))
    ending.check_file(ours)
    assert [path.name for path in ours.parent.iterdir()] == ["end.json"]
    for name, said in (("params.yaml", "is there, and was not written by thinner run"), ("data", "is a folder")):
        with pytest.raises(UserError, match=rf"^--json .*{name}: {said}"):
            ending.check_file(root / name)
    with pytest.raises(UserError, match=r"^--json .*cannot be written \(Not a directory\)|^--json .*File exists"):
        ending.check_file(root / "params.yaml" / "end.json")


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def test_numbers_of_a_running_stage_have_no_exponents() -> None:
    log, kept = logging.getLogger("test_ending"), _Lines()
    log.setLevel(logging.INFO)
    log.addHandler(kept)
    numbers = {"loss": 0.41234, "images": 27_263.5, "lr": 0.00001234}
    event = {"stage": "a", "description": "a", "done": 1, "total": 4, "numbers": numbers, "last": False}
    for done in (1, 4):
        console._lines["aa"] = (0.0, -console.LINE_SECONDS - 1e9)
        console.show_progress({**event, "done": done, "last": done == 4}, log)
    assert kept.lines[0].startswith("a   25%  loss 0.4123  images 27,264  lr 0.00001234  ")
    assert kept.lines[1] == "a  100%  loss 0.4123  images 27,264  lr 0.00001234"


def test_the_program_takes_the_arguments_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(pipeline, "run", lambda *arguments: given.append(arguments) or 0)
    monkeypatch.setattr(sys, "argv", ["flows.pipeline", "distill", "--jobs", "1", "--quiet", "--json", "end.json"])
    assert pipeline.main() == 0
    monkeypatch.setattr(sys, "argv", ["flows.pipeline"])
    pipeline.main()
    assert given == [(["distill"], 1, True, Path("end.json")), (None, 2, False, None)]


@pytest.mark.integration
def test_quiet_says_only_the_end_and_json_tells_programs_how_it_went(tmp_path: Path) -> None:
    toy = Toy(tmp_path / "toy")
    file = toy.root / "end.json"
    done = toy.pipeline("--quiet", "--json", "end.json")
    assert "up to date" not in done.stdout and "100%" not in done.stdout and "Out of date" not in done.stdout
    assert done.stdout.startswith("stage") and "data/distill" in done.stdout and "Next" in done.stdout
    found = json.loads(file.read_text())
    assert [(stage["name"], stage["state"]) for stage in found["stages"]] == [
        ("prepare", "ran"), ("finetune", "ran"), ("scratch", "ran"), ("distill", "ran"),
    ]  # fmt: skip
    assert all(0 < stage["seconds"] < 600 for stage in found["stages"])
    assert found["verdict"] == "nothing to ship"

    (toy.root / "raw/one.txt").write_text("two")
    failed = toy.pipeline("--json", "end.json", check=False, TOY_FAIL="finetune")
    assert failed.returncode == 1
    found = json.loads(file.read_text())
    assert (found["verdict"], found["exit_code"]) == ("failed", 1)
    assert found["message"] in failed.stdout and "asked to fail" in found["message"]
    states = {stage["name"]: stage["state"] for stage in found["stages"]}
    assert states == {"prepare": "ran", "finetune": "failed", "scratch": "ran", "distill": "not run"}

    toy.change_param("temperature: ", "temperatur: ")
    refused = toy.pipeline("--quiet", "--json", "end.json", check=False)
    assert refused.returncode == 2
    found = json.loads(file.read_text())
    assert (found["verdict"], found["stages"]) == ("refused", []) and "temperatur" in found["message"]
    command = [sys.executable, "-m", "flows.cli", "run", "--recipe", "of-nobody", "--json", "end.json"]
    assert toy.run(*command, check=False).returncode == 2
    assert "of-nobody" in json.loads(file.read_text())["message"]
    before = (toy.root / "params.yaml").read_text()
    assert toy.pipeline("--json", "params.yaml", check=False).returncode == 2
    assert (toy.root / "params.yaml").read_text() == before
