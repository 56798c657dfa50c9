"""flows/cli.py: the `thinner` command."""

import errno
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from flows import cli, console, serve
from tasks import processes
from tasks.report import judge_runs
from tests.toy import PROJECT
from thinner.errors import UserError
from thinner.evidence import shipping
from thinner.networks import checkpoint, models
from thinner.networks.spec import NetworkSpec

pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")  # inside DVC's trie

runner = CliRunner()
VERBS = (
    "init",
    "plan",
    "recipe",
    "bundle",
    "search",
    "run",
    "set",
    "stage",
    "status",
    "verify",
    "sync",
    "report",
    "claims",
    "compare",
    "models",
    "promote",
    "rollback",
    "ui",
    "serve",
    "predict",
    "watch",
)


def test_help_names_every_verb_and_each_explains_itself() -> None:
    text = runner.invoke(cli.app, ["--help"]).output
    for verb in VERBS:
        assert verb in text
        own = runner.invoke(cli.app, [verb, "--help"])
        assert own.exit_code == 0
        assert f"thinner {verb}" in own.output or f"{verb} [OPTIONS]" in own.output


def test_help_starts_without_torch_mlflow_or_prefect() -> None:
    script = "import sys\nimport flows.cli\nprint(sorted({'torch', 'mlflow', 'prefect', 'dvc'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], text=True, capture_output=True, check=True, cwd=PROJECT)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("verb", ["status", "report", "ui", "serve", "run"])
def test_outside_of_the_repository_each_verb_says_where_to_go(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = runner.invoke(cli.app, [verb])
    assert done.exit_code != 0
    assert "root" in done.output


def test_status_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "params.yaml").write_text((PROJECT / "params.yaml").read_text())
    (tmp_path / "dvc.yaml").write_text(
        "stages:\n  first: {cmd: echo 1 > a, outs: [a]}\n  second: {cmd: cp a b, deps: [a], outs: [b]}\n"
    )
    for command in (["init", "--no-scm", "--quiet"], ["repro", "--quiet"]):
        subprocess.run([sys.executable, "-m", "dvc", *command], cwd=tmp_path, check=True, capture_output=True)
    monkeypatch.chdir(tmp_path)
    rows = {line.split()[0]: line for line in runner.invoke(cli.app, ["status"]).output.splitlines()}
    assert "up to date" in rows["first"]
    assert "up to date" in rows["second"]
    (tmp_path / "a").unlink()
    rows = {line.split()[0]: line for line in runner.invoke(cli.app, ["status"]).output.splitlines()}
    assert "a not here" in rows["first"]
    assert "out of date" in rows["second"]


def test_verify_says_what_was_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "params.yaml").write_text((PROJECT / "params.yaml").read_text())
    (tmp_path / "dvc.yaml").write_text("stages:\n  first: {cmd: echo 1 > a, outs: [a]}\n")
    for command in (["init", "--no-scm", "--quiet"], ["repro", "--quiet"]):
        subprocess.run([sys.executable, "-m", "dvc", *command], cwd=tmp_path, check=True, capture_output=True)
    monkeypatch.chdir(tmp_path)
    done = runner.invoke(cli.app, ["verify"])
    assert done.exit_code == 0 and "1 results of 1 stages: all as they were written" in done.output
    (copy,) = (file for file in (tmp_path / ".dvc/cache/files/md5").rglob("*") if file.is_file())
    for path in (tmp_path / "a", copy):
        before = path.stat()
        path.chmod(0o644)
        with path.open("r+b") as file:
            file.write(b"3")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        path.chmod(before.st_mode)
    done = runner.invoke(cli.app, ["verify"])
    assert done.exit_code == 1
    assert "a is not what first wrote" in done.output and "thinner run" in done.output
    done = runner.invoke(cli.app, ["verify"])  # it was removed
    assert done.exit_code == 1 and "a is not here" in done.output and "as they were written" not in done.output
    (tmp_path / "a").write_text("another")
    done = runner.invoke(cli.app, ["verify"])
    assert done.exit_code == 1 and "a was changed since its stage wrote it" in done.output


def test_what_the_disk_refuses_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "params.yaml")

    monkeypatch.setattr(cli, "repository_root", full)
    done = runner.invoke(cli.app, ["status"])
    assert done.exit_code == 1
    assert done.stderr.startswith("no room is left on the disk to write params.yaml") and done.stderr.count("\n") == 1


def test_report_says_what_to_do_when_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).write_text("")
    monkeypatch.chdir(tmp_path)
    done = runner.invoke(cli.app, ["report"])
    assert done.exit_code == 1
    assert "thinner run" in done.output


CLAIM = "prune beats scratch on accuracy"


def run_of_a_seed(root: Path, seed: int, labels: np.ndarray | None = None) -> Path:
    """What a pipeline's run leaves for its claims: params.yaml; 400 images, on which prune is far ahead of scratch."""
    params = yaml.safe_load((PROJECT / "params.yaml").read_text()) | {"claims": [CLAIM]}
    params["run"]["seed"] = seed
    root.mkdir()
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    rng = np.random.default_rng(seed)
    labels = np.arange(400) % 4 if labels is None else labels
    (root / "reports").mkdir(parents=True)
    (root / "data" / "evaluate").mkdir(parents=True)
    shares = {"scratch": 0.6, "prune": 0.95}
    predictions = {n: np.where(rng.random(400) < share, labels, (labels + 1) % 4) for n, share in shares.items()}
    np.savez(
        root / "data" / "evaluate" / "predictions.npz",
        index=np.arange(400),
        labels=labels,
        **{f"predictions.{name}": values for name, values in predictions.items()},  # type: ignore[arg-type]
    )
    sizes = {"params": 100 + seed, "macs": 1, "file_bytes": 1, "runtime": "pytorch", "temperature": 2.0}
    (root / "reports" / "metrics.json").write_text(json.dumps(dict.fromkeys(shares, sizes)))
    rows = [f"{name},1,{n},{1 + 0.1 * rng.random()}" for name in shares for n in range(12)]
    table = "\n".join(["candidate,batch,round,latency_ms", *rows])
    (root / "data" / "evaluate" / "latency.csv").write_text(table + "\n")
    return root


def test_claims_are_judged_over_the_seeds_of_several_working_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there, also = (run_of_a_seed(tmp_path / f"seed{seed}", seed) for seed in range(3))
    other = run_of_a_seed(tmp_path / "other", 3, labels=(np.arange(400) + 1) % 4)
    verdict = {"claim": CLAIM, "kind": "beats", "outcome": "proven", "numbers": "one seed"}
    (here / "reports" / "claims.json").write_text(json.dumps({"claim_1": verdict}))
    monkeypatch.chdir(here)
    (here / "dvc.yaml").write_text("")
    together = runner.invoke(cli.app, ["claims", "--with", str(there), "--with", str(also), "--strict"])
    assert together.exit_code == 0, together.output
    assert "3 seeds" in " ".join(together.output.split())
    unpaired = runner.invoke(cli.app, ["claims", "--with", str(other)])
    assert unpaired.exit_code == 1
    assert "was tested on other images" in unpaired.output
    nothing = runner.invoke(cli.app, ["claims", "--with", str(tmp_path)])
    assert nothing.exit_code == 1
    assert "no results here" in nothing.output
    assert shipping.find_temperature(here, "prune") == 2.0
    assert shipping.find_temperature(here, "distill") is None
    assert shipping.find_temperature(tmp_path, "prune") is None


def change(root: Path, **sections: dict[str, object]) -> None:
    """Set keys in a copy's params.yaml; a section that is no mapping is set whole."""
    params = yaml.safe_load((root / "params.yaml").read_text())
    for section, values in sections.items():
        params[section] = {**params[section], **values} if isinstance(values, dict) else values
    (root / "params.yaml").write_text(yaml.safe_dump(params))


def test_only_runs_that_differ_in_nothing_but_the_seed_are_judged_together(tmp_path: Path) -> None:
    here, there = (run_of_a_seed(tmp_path / f"seed{seed}", seed) for seed in range(2))
    claims = [CLAIM]
    with pytest.raises(UserError, match=re.escape(f"{here} and {here}: both have run.seed 0. One seed counts once")):
        judge_runs([here, here], claims, 0)
    change(there, run={"threads": 3}, claims=[], report={"samples": 3}, ship={"margin_points": 2.0})
    assert judge_runs([here, there], claims, 0)["claim_1"]["seeds"] == 2  # none of these can change what is judged

    change(there, run={"seed": 0})
    with pytest.raises(UserError, match=re.escape(f"{here} and {there}: both have run.seed 0.")):
        judge_runs([here, there], claims, 0)
    change(there, run={"seed": 1, "device": "cpu"}, student={"width": 8}, prune={"target": {"params": 0.5}})
    with pytest.raises(UserError) as refused:
        judge_runs([here, there], claims, 0)
    assert str(refused.value) == (
        f"{here} and {there}: their params.yaml differ in more than the seed: run.device is auto and cpu; "
        "student.width is 16 and 8; prune.target.macs is 0.5 and None; and 1 more. "
        "Set the same values in both and run again: thinner run"
    )


def test_claims_are_shown_and_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(PROJECT / "params.yaml", tmp_path)
    (tmp_path / "dvc.yaml").write_text("")
    (tmp_path / "reports").mkdir()
    monkeypatch.chdir(tmp_path)
    none_yet = runner.invoke(cli.app, ["claims"])
    assert none_yet.exit_code == 1
    assert "thinner run" in none_yet.output
    texts = yaml.safe_load((PROJECT / "params.yaml").read_text())["claims"]
    verdicts = {
        f"claim_{n}": {"claim": text, "kind": "beats", "outcome": "proven", "numbers": "+4.0 points"}
        for n, text in enumerate(texts)
    }
    judged = tmp_path / "reports" / "claims.json"
    judged.write_text(json.dumps(verdicts))
    shown = runner.invoke(cli.app, ["claims", "--strict", "--json", "kept/verdicts.json"])
    assert json.loads((tmp_path / "kept" / "verdicts.json").read_text()) == verdicts
    for option in ("--json", "--page"):
        refused = runner.invoke(cli.app, ["claims", "--seeds", "0,1", option, "reports"])
        assert refused.exit_code == 1 and refused.stderr == f"{option} reports: is a folder. Name a file in it\n"
    assert shown.exit_code == 0, shown.output
    assert texts[0] in shown.output
    assert f"{len(texts)} of {len(texts)} proven" in shown.output
    verdicts["claim_1"]["outcome"] = "not shown"
    judged.write_text(json.dumps(verdicts))
    assert runner.invoke(cli.app, ["claims"]).exit_code == 0
    assert runner.invoke(cli.app, ["claims", "--strict"]).exit_code == 1
    del verdicts["claim_1"]  # judged before params.yaml was edited
    judged.write_text(json.dumps(verdicts))
    stale = runner.invoke(cli.app, ["claims", "--strict"])
    assert stale.exit_code == 1
    assert "thinner stage report" in stale.output


def test_results_table_has_a_row_per_candidate_in_the_units_of_its_headings() -> None:
    table = console.results_table(
        {
            "prune_onnx_int8": {
                "accuracy": 0.8841,
                "macro_f1": 0.884,
                "params": 3_384_000,
                "macs": 30_000_000,
                "file_bytes": 13_600_000,
                "latency_ms_b1": 5.25,
                "latency_ms_b64": None,
            },
            "note": {"not": "a candidate"},
        }
    )
    page = Console(width=80, record=True, file=io.StringIO())
    page.print(table)
    text = page.export_text()
    for cell in ("prune_onnx_int8", "88.41%", "0.8840", "3,384,000", "30.00 M", "13.6 MB", "5.25"):
        assert cell in text
    assert "note" not in text


@pytest.mark.parametrize(
    ("batches", "title"),
    [
        ((), ""),
        ((4,), "; ms: one batch of 4 images"),
        ((4, 16, 256), "; ms: one batch of 4, of 16 and of 256 images"),
    ],
)
def test_results_table_has_the_batches_that_were_timed_and_no_others(batches: tuple[int, ...], title: str) -> None:
    row = {"accuracy": 0.9, "macro_f1": 0.9, "params": 10, "macs": 1000, "file_bytes": 5000, "runtime": "pytorch"}
    times = {f"latency_ms_b{batch}{end}": batch + 0.125 for batch in batches for end in ("", "_p95", "_low")}
    table = console.results_table({"distill": row, "prune": {**row, **times}})
    assert table.title == f"Candidates, on the test split{title}"
    assert [column.header for column in table.columns][6:] == [f"ms b{batch}" for batch in batches]
    cells = [list(column.cells) for column in table.columns]
    assert cells[0] == ["distill", "prune"]
    assert cells[6:] == [["-", f"{batch}.12"] for batch in batches]


def test_few_names_the_first_and_counts_the_rest() -> None:
    assert console.abbreviated(["a", "b"]) == "a, b"
    assert console.abbreviated(list("abcdef"), most=2) == "a, b and 4 more"


def test_pictures_are_found_in_folders_and_named_one_by_one(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("b.PNG", "a.jpg", "notes.txt", "sub/c.webp"):
        (tmp_path / name).touch()
    assert [p.name for p in cli.find_pictures([tmp_path])] == ["a.jpg", "b.PNG", "c.webp"]
    assert cli.find_pictures([tmp_path / "notes.txt"]) == [tmp_path / "notes.txt"]
    with pytest.raises(UserError, match="no such file or folder"):
        cli.find_pictures([tmp_path / "missing"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no pictures"):
        cli.find_pictures([tmp_path / "empty"])


def test_what_a_folder_of_pictures_has_beside_them_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("p/a.png", "p/._a.png", "p/.cache/b.png", "p/1.psd", "p/2.PSD", "p/locked/c.png", "elsewhere/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "p/linked").symlink_to(tmp_path / "elsewhere")
    real = os.scandir

    def scandir(path):  # root may read everything, so permissions alone would show nothing
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert cli.find_pictures([tmp_path / "p"]) == [tmp_path / "p/a.png"]
    assert capsys.readouterr().err.splitlines() == [
        f"note: passed over: {tmp_path}/p/linked: a link to a folder is not followed. Name it too: {tmp_path}/p/linked/",
        f"note: passed over: {tmp_path}/p/locked: cannot be read (Permission denied)",
        f"note: passed over: {tmp_path}/p: files of other kinds: 2 .psd",
    ]
    assert cli.find_pictures([tmp_path / "p/linked"]) == [tmp_path / "p/linked/d.png"]
    with pytest.raises(UserError, match=r"no pictures in this folder .*; .*/locked: cannot be read \(Permission"):
        cli.find_pictures([tmp_path / "p/locked"])


def test_a_name_that_could_not_be_printed_is_escaped() -> None:
    assert cli.shown(os.fsdecode(b"caf\xe9.png")) == "caf\\xe9.png"
    assert cli.shown("caf\u00e9 [red].png") == "caf\u00e9 [red].png"
    assert cli.shown("a\x1b[2J\n.png") == "a\\x1b[2J\\n.png"


def test_an_unknown_candidate_names_those_that_were_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="None has been made yet"):
        cli.candidate_folder(tmp_path, "prune")
    for folder in ("data/prune", "data/export/prune_onnx"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "model.json").write_text(json.dumps({}))
    assert cli.candidate_folder(tmp_path, "prune_onnx") == tmp_path / "data/export/prune_onnx"
    also = tmp_path / "data/prune_also/finetune"
    also.mkdir(parents=True)
    (also / "model.json").write_text(json.dumps({}))
    assert cli.candidate_folder(tmp_path, "prune_finetune") == also
    with pytest.raises(UserError, match=r"no candidate 'pruned'\. Choose one of: prune, prune_finetune, prune_onnx"):
        cli.candidate_folder(tmp_path, "pruned")


def test_a_server_that_has_gone_is_not_used(tmp_path: Path) -> None:
    (tmp_path / ".thinner").mkdir()
    assert serve.running_server(tmp_path) is None
    note, pid = tmp_path / ".thinner/prefect-server.json", os.getpid()
    note.write_text(json.dumps({"url": "http://127.0.0.1:4200", "pid": pid, "started": processes.started(pid) - 100}))
    assert serve.running_server(tmp_path) is None  # its number is another process's now
    note.write_text(json.dumps({"url": "http://127.0.0.1:4200", "pid": pid, "started": processes.started(pid)}))
    assert serve.running_server(tmp_path) == "http://127.0.0.1:4200"


def test_a_picture_that_cannot_be_read_is_a_row_and_the_others_are_named(tmp_path, monkeypatch) -> None:
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(PROJECT / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    network = NetworkSpec("resnet8", 2, 1, width=4, stem_stride=1)
    spec = {
        "network": network.as_json(),
        "classes": ["cat", "dog"],
        "stage": "prune",
        "parents": {},
        "data_sha256": "0",
        "preprocessing": {"image_size": 8, "channels": 1, "mean": [0.5], "std": [0.5]},
    }
    checkpoint.save(Path("data/prune"), models.create(network), spec)
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.tif", "c[red].jfif"):
        Image.new("L", (9, 8), 100).save(folder / name, "TIFF" if name == "a.tif" else "JPEG")
    (folder / "b.png").write_bytes(b"no picture")
    (folder / "big.pgm").write_bytes(b"P5 20000 10000 255\n")
    os.mkfifo(folder / "d.gif")
    (folder / "notes.txt").write_text("passed over")
    done = runner.invoke(cli.app, ["predict", str(folder), "--json"])
    assert done.exit_code == 0, done.output
    assert f"note: passed over: {folder}: files of other kinds: 1 .txt" in done.stderr
    rows = {Path(row["image"]).name: row for row in map(json.loads, done.stdout.splitlines())}
    assert list(rows) == ["a.tif", "b.png", "big.pgm", "c[red].jfif", "d.gif"]
    assert {name for name, row in rows.items() if row.get("label") in ("cat", "dog")} == {"a.tif", "c[red].jfif"}
    assert rows["b.png"]["error"].startswith("is no picture of a kind that is read: JPEG, PNG")
    assert rows["big.pgm"]["error"] == (
        "has 200,000,000 pixels, more than data.max_pixels. To read it: max_pixels: 200000000"
    )
    assert rows["d.gif"]["error"] == "is a FIFO, no file"
    table = runner.invoke(cli.app, ["predict", "photos"])
    assert table.exit_code == 0
    assert "unreadable: is a FIFO" in " ".join(table.output.split())
    assert "photos/c[red].jfif" in table.output
    deep = folder / ("a" * 100) / ("b" * 100)
    deep.mkdir(parents=True)
    shutil.copy(folder / "a.tif", deep / "last.tif")
    folded = runner.invoke(cli.app, ["predict", str(deep)])
    assert "\N{HORIZONTAL ELLIPSIS}" not in folded.output and "last.tif" in "".join(folded.output.split())
    long = runner.invoke(cli.app, ["predict", "photos/a.tif", "x" * 300, "--json"])
    assert [bool(row.get("error")) for row in map(json.loads, long.stdout.splitlines())] == [False, True]
    assert runner.invoke(cli.app, ["predict", str(folder / "b.png")]).exit_code == 1  # nothing was named
