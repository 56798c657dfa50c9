"""Recipes: every file can be run, and writing one into params.yaml changes nothing else."""

import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from flows import cli, recipes
from thinner.config import ParamsError, load_params
from thinner.errors import UserError

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(PROJECT / "params.yaml", tmp_path)
    (tmp_path / "dvc.yaml").write_text("")
    shutil.copytree(PROJECT / "recipes", tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", recipes.names(PROJECT))
def test_every_recipe_can_be_run_and_says_each_value_once(root: Path, name: str) -> None:
    found = recipes.load(root, name)
    recipes.apply(root, name)
    params = load_params(root / "params.yaml", deep=True).model_dump(mode="json")
    for key, value in found.set.items():
        place = params
        for section in key.split("."):
            place = place[section]
        assert place == value, key
    assert recipes.apply(root, name) == []  # it is there already


@pytest.mark.parametrize("name", recipes.names(PROJECT))
def test_comments_and_all_other_lines_stay(root: Path, name: str) -> None:
    before = (root / "params.yaml").read_text().splitlines()
    changed = recipes.apply(root, name)
    after = (root / "params.yaml").read_text().splitlines()
    kept = [line for line in before if line not in set(after)]
    scalars = [line for line in changed if not line.startswith("claims")]
    claims = len(yaml.safe_load((PROJECT / "params.yaml").read_text())["claims"])
    assert len(kept) <= len(scalars) + claims
    assert sum("#" in line for line in after) >= sum("#" in line for line in before) - 2


def test_what_changes_is_said_and_pictures_of_ones_own_take_the_recipes_place(root: Path, capsys) -> None:
    cli.recipe("cifar10", source="folder:data/raw/mine")
    said = capsys.readouterr().out
    assert "  data.source: torchvision:FashionMNIST -> folder:data/raw/mine\n" in said
    assert "  student.training.steps: 1000 -> 6000\n" in said
    data = load_params(root / "params.yaml").data
    assert (data.source, data.root) == ("folder:data/raw/mine", "data/raw/mine")  # which DVC then watches


def test_a_set_of_torchvision_is_downloaded_where_dvc_does_not_watch(root: Path) -> None:
    recipes.apply(root, "cifar10", source="torchvision:CIFAR10")
    data = load_params(root / "params.yaml").data
    assert (data.source, data.root) == ("torchvision:CIFAR10", "data/raw")


def test_fashion_mnist_is_params_yaml_as_it_comes_and_leads_back_from_every_other(root: Path) -> None:
    before = (root / "params.yaml").read_text()
    assert recipes.apply(root, "fashion-mnist") == []
    for name in recipes.names(PROJECT):
        recipes.apply(root, name)
        recipes.apply(root, "fashion-mnist")
        assert yaml.safe_load((root / "params.yaml").read_text()) == yaml.safe_load(before), name


def test_a_recipe_that_cannot_be_run_leaves_the_file_as_it_was(root: Path) -> None:
    before = (root / "params.yaml").read_bytes()
    with pytest.raises(ParamsError, match=r"^params.yaml: 1 mistake\n  data.source: unknown 'folders:elsewhere'"):
        recipes.apply(root, "cifar10", source="folders:elsewhere")
    (root / "recipes" / "odd.yaml").write_text("title: a\nnote: b\nset: {distil.temperature: 2.0}\n")
    with pytest.raises(UserError, match=r"recipes/odd.yaml: 'distil.temperature' is no key of params.yaml"):
        recipes.apply(root, "odd")
    assert (root / "params.yaml").read_bytes() == before
    assert not list(root.glob(".partial*"))


def test_a_params_file_that_cannot_be_read_is_named_and_left_as_it_is(root: Path) -> None:
    text = (root / "params.yaml").read_text().replace("  seed: 0", "  seed: 0\n  seed: 1")
    (root / "params.yaml").write_text(text)
    with pytest.raises(ParamsError, match=r"params.yaml: 1 mistake\n  line 6: the key seed stands there twice"):
        recipes.apply(root, "cifar10")
    assert (root / "params.yaml").read_text() == text


def test_an_unknown_recipe_names_the_near_one(root: Path) -> None:
    with pytest.raises(UserError, match=r"recipe: unknown 'cifar'. Did you mean 'cifar10'\? Choose one of: "):
        recipes.apply(root, "cifar")


def test_values_are_set_and_nothing_else_moves(root: Path) -> None:
    before = (root / "params.yaml").read_text().splitlines()
    pairs = ["distill.temperature=2", "prune.target={params: 0.3}", "data.test=1000", "student.mean=[0.5]"]
    done = CliRunner().invoke(cli.app, ["set", *pairs])
    assert done.exit_code == 0, done.output
    said = done.output.splitlines()
    assert "  distill.temperature: 4.0 -> 2" in said and "  prune.target: {macs: 0.5} -> {params: 0.3}" in said
    assert "  data.test: null -> 1000" in said and "  student.mean: [0.286] -> [0.5]" in said
    after = (root / "params.yaml").read_text().splitlines()
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert len(changed) == 4
    assert all(old.partition("#")[2] == new.partition("#")[2] for old, new in changed)
    params = load_params(root / "params.yaml")
    assert params.distill.temperature == 2.0 and params.prune.target == {"params": 0.3}
    assert "params.yaml has it" in CliRunner().invoke(cli.app, ["set", *pairs]).output


def test_what_stands_in_quotes_is_set_and_shown_as_any_other(root: Path) -> None:
    done = CliRunner().invoke(cli.app, ["set", 'data.source="folder:data/raw/my photos #2"'])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(cli.app, ["set", "data.source=folder:data/raw/2024"])
    assert done.exit_code == 0 and "data.source: 'folder:data/raw/my photos #2' -> folder:data/raw/2024" in done.output
    assert load_params(root / "params.yaml").data.source == "folder:data/raw/2024"


def test_one_image_is_not_all_of_them_and_no_key_is_no_null(root: Path) -> None:
    for value, said in (("1", "2000 -> 1"), ("1.0", "1 -> 1.0"), ("1", "1.0 -> 1")):
        done = CliRunner().invoke(cli.app, ["set", f"data.labelled={value}"])
        assert done.exit_code == 0 and f"data.labelled: {said}" in done.output, done.output
    done = CliRunner().invoke(cli.app, ["set", "distill.temprature=null"])
    assert done.exit_code == 1 and "distill.temprature" in done.output


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ("distill.temperature", "'distill.temperature': no KEY=VALUE. For example: thinner set distill.temperature=2"),
        ("=2", "'=2': no KEY=VALUE"),
        ("distil.temperature=2", "thinner set: 'distil.temperature' is no key of params.yaml: there is no 'distil'"),
        ("distill.temprature=2", "distill.temprature"),
        ("distill.temperature=hot", "distill.temperature: 'hot'"),
        ("distill.temperature={", "distill.temperature: '{' is no YAML"),
        ("claims.0=prune beats small on accuracy", "'claims.0' lies in a list. Give the whole list: claims=[...]"),
        ("prune.target={macs: 0.5, params: 0.5}", "prune.target"),
        ("run.compile=yes", "run.compile: 'yes'"),
        ("student.mean=[1e400]", "student.mean"),
    ],
)
def test_what_cannot_be_set_is_told_and_the_file_stays(root: Path, pair: str, said: str) -> None:
    before = (root / "params.yaml").read_bytes()
    done = CliRunner().invoke(cli.app, ["set", "run.seed=1", pair])
    assert done.exit_code == 1 and said in done.output and "Traceback" not in done.output
    assert (root / "params.yaml").read_bytes() == before
    assert not list(root.glob(".partial*"))
