"""tasks/lineage.py against a real DVC repository whose stages are shell commands."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

from tasks import lineage
from thinner.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")  # inside DVC's trie

GRAPH = {
    "stages": {
        "last": {
            "cmd": "mkdir -p out && cat a.txt b/x > out/last",
            "deps": ["a.txt", "b"],
            "outs": ["out/last"],
        },
        "first": {
            "cmd": "cat raw/* > a.txt",
            "deps": ["raw"],
            "params": ["first.number"],
            "outs": ["a.txt"],
            "meta": {"timeout_minutes": 2},
        },
        "second": {
            "cmd": "mkdir -p b && cp a.txt b/x",
            "deps": ["a.txt"],
            "params": ["second"],
            "outs": ["b"],
        },
    }
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository in which everything has run once."""
    root = tmp_path_factory.mktemp("lineage") / "repo"
    (root / "raw").mkdir(parents=True)
    (root / "raw" / "x").write_text("x")
    (root / "params.yaml").write_text("first: {number: 0.001, other: 1}\nsecond: {list: [1, 2.5, null], flag: true}\n")
    (root / "dvc.yaml").write_text(yaml.safe_dump(GRAPH))
    _dvc(root, "init", "--no-scm", "--quiet")
    _dvc(root, "repro", "--quiet")
    return root


@pytest.fixture
def repo(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = Path(shutil.copytree(made, tmp_path / "repo"))
    monkeypatch.chdir(root)
    return root


def _dvc(root: Path, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=root, check=True, capture_output=True)


def test_graph_puts_each_stage_after_its_upstream_ones(repo: Path) -> None:
    nodes = lineage.graph(repo)
    assert [node.name for node in nodes] == ["first", "second", "last"]
    assert {node.name: node.upstream for node in nodes} == {
        "first": (),
        "second": ("first",),
        "last": ("first", "second"),
    }
    assert nodes[0].timeout_seconds == 120
    assert nodes[1].timeout_seconds is None


def test_nothing_is_out_of_date_after_repro(repo: Path) -> None:
    assert [lineage.reasons(repo, name) for name in ("first", "second", "last")] == [[], [], []]


def test_what_dvc_add_keeps_is_no_stage(repo: Path) -> None:
    (repo / "kept.txt").write_text("a raw file")
    _dvc(repo, "add", "--quiet", "kept.txt")
    names = [node.name for node in lineage.graph(repo)]
    assert lineage.all_reasons(repo, names) == {"first": [], "second": [], "last": []}


def test_the_key_of_a_result_has_what_dvc_add_keeps(repo: Path) -> None:
    before = lineage.key(repo, "last")
    _dvc(repo, "add", "--quiet", "raw")
    assert lineage.key(repo, "last") == before
    assert lineage.inputs(repo, "last").upstream.keys() == {"first", "second"}
    (repo / "raw" / "x").write_text("another")
    assert lineage.key(repo, "last") != before


def test_reasons_are_those_of_the_working_copy_that_is_asked_about(repo: Path, tmp_path: Path) -> None:
    # a study asks about its worktrees from a repository in which everything has run
    other = Path(shutil.copytree(repo, tmp_path / "other"))
    assert [lineage.reasons(other, name) for name in ("first", "second", "last")] == [[], [], []]
    (other / "a.txt").unlink()
    (other / "raw" / "x").write_text("y")
    assert lineage.reasons(other, "first") == ["raw modified", "a.txt not here (output)"]
    assert lineage.reasons(repo, "first") == []
    (repo / "raw" / "x").write_text("z")
    (other / "raw" / "x").write_text("x")
    assert lineage.reasons(other, "first") == ["a.txt not here (output)"]
    assert lineage.reasons(repo, "first") == ["raw modified"]


@pytest.mark.parametrize(
    ("edit", "stage", "reason"),
    [
        (lambda root: (root / "raw" / "x").write_text("y"), "first", "raw modified"),
        (lambda root: (root / "a.txt").unlink(), "first", "a.txt not here (output)"),
        (lambda root: _replace(root / "params.yaml", "0.001", "0.002"), "first", "first.number modified"),
        (lambda root: _replace(root / "dvc.yaml", "cp a.txt", "cp -p a.txt"), "second", "changed command"),
        (lambda root: (root / "dvc.lock").unlink(), "last", "has not run yet"),
    ],
)
def test_a_reason_names_what_changed(repo: Path, edit, stage: str, reason: str) -> None:
    edit(repo)
    assert reason in lineage.reasons(repo, stage)


def test_a_parameter_that_no_stage_reads_changes_nothing(repo: Path) -> None:
    _replace(repo / "params.yaml", "other: 1", "other: 2")
    assert lineage.reasons(repo, "first") == []


@pytest.mark.parametrize("name", ["first", "second", "last"])
def test_hash_of_the_inputs_equals_the_one_in_dvc_lock(repo: Path, name: str) -> None:
    # The running stage hashes its files; for a stage that was up to date only dvc.lock is read. MLflow's tag
    # must agree.
    assert lineage.inputs(repo, name).hash == lineage.locked_hashes(repo)[name]


def test_hash_changes_with_a_dependency_and_with_a_parameter(repo: Path) -> None:
    before = lineage.inputs(repo, "first")
    (repo / "raw" / "x").write_text("y")
    edited = lineage.inputs(repo, "first")
    assert edited.hash != before.hash
    assert before.changes(edited) == ["raw"]
    _replace(repo / "params.yaml", "0.001", "0.002")
    assert edited.changes(lineage.inputs(repo, "first")) == ["first.number"]


def test_inputs_name_the_upstream_stages_with_their_hashes(repo: Path) -> None:
    assert lineage.inputs(repo, "last").upstream == {
        name: value for name, value in lineage.locked_hashes(repo).items() if name != "last"
    }


def test_hashing_leaves_dvc_lock_alone(repo: Path) -> None:
    before = (repo / "dvc.lock").read_bytes()
    (repo / "raw" / "x").write_text("y")
    lineage.inputs(repo, "first")
    assert (repo / "dvc.lock").read_bytes() == before


def test_a_missing_dependency_says_what_to_do(repo: Path) -> None:
    (repo / "a.txt").unlink()
    with pytest.raises(UserError, match=r"second: .*a\.txt.*dvc repro second"):
        lineage.inputs(repo, "second")


def test_an_unknown_stage_is_an_error_for_people(repo: Path) -> None:
    with pytest.raises(UserError, match="third"):
        lineage.inputs(repo, "third")


def test_a_folder_without_dvc_is_an_error_for_people(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dvc init"):
        lineage.graph(tmp_path)


def test_a_torn_lock_file_is_an_error_for_people(repo: Path) -> None:
    (repo / "dvc.lock").write_text("stages: {first: [")
    with pytest.raises(UserError, match="not YAML"):
        lineage.locked_hashes(repo)


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.integration
def test_what_a_foreach_no_longer_names_is_removed_and_comes_back_from_the_cache(repo: Path) -> None:
    """The folder around it is then as in a fresh clone, so that what reads the folder is up to date as it was."""
    each = {
        "cmd": "mkdir -p all reports/${item} && cp a.txt all/${item} && date +%N > reports/${item}/at.csv",
        "deps": ["a.txt"],
        "outs": ["all/${item}"],
        "plots": [{"reports/${item}/at.csv": {"cache": False}}],
    }
    reader = {"cmd": "ls all > list.txt", "deps": ["all"], "params": ["names"], "outs": ["list.txt"]}
    stages = {**GRAPH["stages"], "also": {"foreach": "${names}", "do": each}, "reader": reader}
    (repo / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    (repo / "all").mkdir()
    (repo / "all" / "README.md").write_text("so that the folder is there")
    text = (repo / "params.yaml").read_text()

    def reproduce(names: str) -> str:
        (repo / "params.yaml").write_text(f"{text}names: {names}\n")
        lineage.remove_leftovers(repo, lineage.graph(repo))
        return subprocess.run(
            [sys.executable, "-m", "dvc", "repro"], cwd=repo, check=True, capture_output=True, text=True
        ).stdout

    reproduce("[]")
    without = lineage.locked_hashes(repo)["reader"]
    assert "also@one" not in {node.name for node in lineage.graph(repo)}
    reproduce("[one, two]")
    made = (repo / "reports" / "two" / "at.csv").read_text()
    upstream = {node.name: node.upstream for node in lineage.graph(repo)}
    assert upstream["reader"] == ("also@one", "also@two")
    assert lineage.inputs(repo, "also@two").outs == ("all/two", "reports/two/at.csv")
    assert (repo / "list.txt").read_text().split() == ["README.md", "one", "two"]

    (repo / "params.yaml").write_text(f"{text}names: [one]\n")
    assert lineage.remove_leftovers(repo, lineage.graph(repo)) == ["all/two", "reports/two/at.csv"]
    assert lineage.remove_leftovers(repo, lineage.graph(repo)) == []
    assert (repo / "all" / "one").exists()
    assert "Running stage" not in reproduce("[]")
    assert lineage.locked_hashes(repo)["reader"] == without
    assert "Running stage" not in reproduce("[one, two]")
    assert (repo / "reports" / "two" / "at.csv").read_text() == made


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else for a moment")
def test_where_a_result_cannot_be_written_is_said_before_anything_runs() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        root.chmod(0o777)
        for name in ("data", "reports", ".dvc/tmp", ".thinner", "cache"):
            (root / name).mkdir(parents=True)
            (root / name).chmod(0o777)
        (root / "dvc.lock").touch()
        (root / "dvc.lock").chmod(0o666)
        nodes = [lineage.Node("first", (), "true", ("data/first", "reports/first/x.csv"), {})]
        os.seteuid(65534)
        try:
            lineage.check_writable(root, nodes, root / "cache")
            wants = {
                "data": "data/first",
                "reports": "reports/first/x.csv",
                "dvc.lock": "dvc.lock",
                "cache": "files/md5",
            }
            for name, wanted in wants.items():
                os.seteuid(0)
                before = (root / name).stat().st_mode
                (root / name).chmod(0o555)
                os.seteuid(65534)
                with pytest.raises(UserError, match=rf"^{name}: may not be written .*r-xr-xr-x.*{wanted}.*chmod u\+w"):
                    lineage.check_writable(root, nodes, root / "cache")
                os.seteuid(0)
                (root / name).chmod(before)
        finally:
            os.seteuid(0)
