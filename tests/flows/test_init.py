"""thinner init: what it finds out, what it writes, and what it says of bad input."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from ruamel.yaml import YAML

from flows import amounts, init, recipes
from flows.init import Wishes
from tasks import forecast
from tests.thinner.test_sources import mnist_files
from thinner.config import load_params
from thinner.errors import UserError
from thinner.networks.spec import NetworkSpec

PROJECT = Path(__file__).parents[2]


def draw(folder: Path, count: int, side: int = 40, *, colour: bool = True, seed: int = 0, ending: str = "jpg") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for number in range(count):
        shape = (side, side + 10, 3) if colour else (side, side + 10)
        pixels = rng.integers(0, 256, shape, dtype=np.uint8)
        if not colour and ending == "jpg":
            pixels = np.stack([pixels] * 3, axis=2)  # grey, kept as colour, as scanners do
        Image.fromarray(pixels).save(folder / f"{number}.{ending}")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(PROJECT / "params.yaml", tmp_path)
    shutil.copytree(PROJECT / "recipes", tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_folder_is_looked_at(root: Path) -> None:
    for number, name in enumerate(("cat", "dog")):
        draw(root / "photos" / name, 30, 40, seed=number)
    draw(root / "photos" / "unlabelled", 12)
    (root / "photos" / "cat" / "notes.txt").write_text("x")
    (root / "photos" / "dog" / "broken.jpg").write_bytes(b"no picture")
    found = init.look("photos")
    assert (found.source, found.root) == ("folder:photos", "photos")
    assert (found.side, found.colour, found.unreadable) == (40, True, 1)
    assert found.per_class == {"cat": 30, "dog": 31}
    assert any("1 .txt" in line for line in init.describe(found))


def test_grey_pictures_are_grey_whatever_they_are_saved_as(root: Path) -> None:
    for name in ("a", "b"):
        draw(root / "photos" / name, 4, colour=False)
    assert not init.look("photos").colour


def test_a_list_is_looked_at_with_its_own_splits(root: Path) -> None:
    draw(root / "pictures", 9)
    rows = [f"{number}.jpg,{('cat', 'dog')[number % 2]},{'test' if number < 2 else ''}" for number in range(8)]
    (root / "pictures/list.csv").write_text("\n".join(["path,label,split", *rows, "8.jpg,,"]) + "\n")
    found = init.look("pictures/list.csv")
    assert (found.source, found.root, found.side) == ("csv:pictures/list.csv", "pictures", 40)
    assert next(iter(init.describe(found))) == (
        "csv:pictures/list.csv: 6 pictures to learn from, with a label, 2 to test with, 1 without a label; 2 classes"
    )


def test_a_set_of_torchvision_is_looked_at(root: Path) -> None:
    raw = root / "data/raw/torchvision/MNIST/raw"
    raw.mkdir(parents=True)
    for name, content in mnist_files().items():
        (raw / name).write_bytes(content)
    found = init.look("torchvision:MNIST")
    assert (found.root, found.side, found.colour) == ("data/raw", 28, False)
    proposal = init.propose(found, Wishes(), 64, 1.0)
    chosen = {
        key: proposal.values[key] for key in ("data.channels", "data.image_size", "data.test", "data.max_unreadable")
    }
    assert chosen == {"data.channels": 1, "data.image_size": 28, "data.test": None, "data.max_unreadable": 0.0}


@pytest.mark.parametrize(
    ("photos", "said"),
    [
        ("nowhere", "nowhere: no such folder or file"),
        ("params.yaml", "is a file, but no .csv"),
        (".", r"\.: holds this repository\. Give the folder of pictures alone"),
        ("torchvision:MNITS", "Did you mean MNIST"),
    ],
)
def test_what_are_no_pictures_is_said_in_a_line(root: Path, photos: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        init.look(photos)


@pytest.mark.parametrize(
    ("train", "classes", "share"),
    [(1_000, 2, 0.2), (100_000, 2, 0.2), (1_000_000, 2, 0.02), (1_000_000, 10_000, 0.1), (10_000_000, 2, 0.002)],
)
def test_a_split_of_very_many_pictures_is_no_larger_than_what_shows_something_more(
    train: int, classes: int, share: float
) -> None:
    assert init._drawn(train, classes, 0.2) == share
    assert share * train >= classes


def test_too_few_pictures_are_told_before_anything_is_timed_and_just_enough_can_be_split(root: Path) -> None:
    draw(root / "photos" / "cat", 7)
    draw(root / "photos" / "dog", 2)
    said = "photos: 9 pictures with a label are too few to learn, choose and test by: 10 are needed at the least, 3 of each class ('dog' has 2)"
    with pytest.raises(UserError, match=re.escape(said)):
        init.check_enough("photos", init.look("photos"))
    before = (root / "params.yaml").read_bytes()
    with pytest.raises(UserError, match=re.escape(said)):
        init.init(root, "photos", Wishes(), None, lambda line: None)
    assert (root / "params.yaml").read_bytes() == before
    draw(root / "photos" / "dog", 3, seed=1)
    pictures = init.look("photos")
    init.check_enough("photos", pictures)
    proposal = init.propose(pictures, Wishes(), 64, 1.0)
    counts = forecast.count_images(init.as_params(root, proposal.values), pictures.listing)
    assert (counts.test, counts.validation, counts.labelled) == (2, 2, 6)


@pytest.mark.parametrize(("text", "count"), [("200kB", 200_000), ("1.5MB", 1_500_000), ("48000", 48_000), ("3 M", 3e6)])
def test_sizes_are_read_as_people_write_them(text: str, count: float) -> None:
    assert amounts.parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "big", "-3kB", "0", "3 litres"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="200kB"):
        amounts.parse_bytes(text)


@pytest.mark.parametrize("text", ["", "fast", "0ms", "-1"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="2ms"):
        amounts.parse_ms(text)


@pytest.mark.parametrize(
    ("most", "pool", "batch"), [(256, 60_000, 256), (256, 512, 256), (256, 511, 128), (64, 70, 32), (64, 3, 8)]
)
def test_a_batch_is_a_power_of_two_and_half_of_the_pictures_at_most(most: int, pool: int, batch: int) -> None:
    assert init._batch(most, pool) == batch


WISHES = {
    "nothing": Wishes(),
    "tiny": Wishes(size_bytes=200_000),
    "large": Wishes(size_bytes=6_000_000),
    "fast": Wishes(),  # asks for a share of what the teacher takes on this machine
    "gpu": Wishes("gpu"),
}


@pytest.mark.parametrize("asked", WISHES)
@pytest.mark.parametrize("ready", ["flat", "test", "all"])
def test_what_is_written_can_be_run_and_has_a_reason_beside_each_number(root: Path, asked: str, ready: str) -> None:
    wishes = WISHES[asked]
    if asked == "fast":
        teacher = NetworkSpec(init.TEACHER, 2, 3)
        wishes = Wishes(latency_ms=init._milliseconds(teacher, 64) / 2)
    tops = {"flat": [""], "test": ["train", "test"], "all": ["train", "val", "test"]}[ready]
    for top in tops:
        for number, name in enumerate(("cat", "dog")):
            draw(root / "photos" / top / name, 30, 40, seed=number)
    pictures = init.look("photos")
    proposal = init.propose(pictures, wishes, 64, 1.0)
    init.choose_claims(proposal, 500)
    recipes.write(root, proposal.values, "init", proposal.why)
    params = load_params(root / "params.yaml", deep=True)
    assert params.data.image_size == 40
    assert 0 < params.finetune.probe_steps <= init._MOST_OF_THE_HEAD  # the head alone first
    assert (params.data.test is None) == (ready != "flat")
    assert (params.data.validation is None) == (ready == "all")
    assert params.prune.source == ("distill" if asked in ("tiny", "fast") else "finetune")
    text = (root / "params.yaml").read_text()
    for reason in proposal.why.values():
        assert f"# {reason}" in text
    raw = yaml.safe_load(text)  # a comment in a mapping on one line would swallow the rest of it
    assert raw["finetune"]["augment"]["flip"] is True


def written(root: Path, photos: str, wishes: Wishes, recipe: str | None = None) -> init.Proposal:
    """What `thinner init` writes into params.yaml, without the timing of steps."""
    pictures = init._with_corrections(root, init.look(photos), lambda line: None)
    overrides = init._shared(root, recipe)
    proposal = init.propose(pictures, wishes, 64, 1.0)
    proposal.take(overrides)
    init.complete(root, proposal, pictures, overrides)
    recipes.write(root, proposal.values, "init", proposal.why)
    load_params(root / "params.yaml", deep=True)
    return proposal


@pytest.fixture
def two_folders(root: Path) -> Path:
    """Few pictures of unequal classes; and many of equal ones, with splits of their own."""
    for number, (name, count) in enumerate((("cat", 110), ("dog", 20))):
        draw(root / "few" / name, count, 8, seed=number)
        draw(root / "many" / "train" / name, 400, 8, seed=number)
        draw(root / "many" / "test" / name, 5, 8, seed=number)
    return root


def comments(text: str) -> list[str]:
    return [line.partition("#")[2].strip() for line in text.splitlines()]


@pytest.mark.integration
def test_no_reason_outlives_what_it_was_given_for(two_folders: Path) -> None:
    path = two_folders / "params.yaml"
    shipped = path.read_text()
    recipe = two_folders / "mine.yaml"
    recipe.write_text(
        "title: t\nnote: n\nset: {prune.training.lr: 0.003, student.augment.crop: 0.6, prune.tolerance: 0.02,"
        " claims: [prune beats small on accuracy]}\n"
    )
    written(two_folders, "few", Wishes("gpu", size_bytes=200_000), str(recipe))
    first = path.read_text()
    for said in (
        "half the memory on a GPU",
        "no more than half of 78",
        "times as many",
        "as asked: --size",
        init.FROM,
    ):
        assert said in first
    written(two_folders, "many", Wishes())
    again = path.read_text()
    path.write_text(shipped)
    written(two_folders, "many", Wishes())
    assert comments(again) == comments(path.read_text())
    assert first.count("\n\n") == again.count("\n\n") == shipped.count("\n\n")  # sections stay apart


def test_every_number_that_is_chosen_has_its_reason_beside_it(two_folders: Path) -> None:
    for photos, wishes in (("few", Wishes("gpu", size_bytes=200_000)), ("many", Wishes())):
        proposal = written(two_folders, photos, wishes)
        beside = YAML().load((two_folders / "params.yaml").read_text())
        for key, value in proposal.values.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and ".augment." not in key:
                place, last = recipes._find(beside, key, "")
                assert recipes._comment(place, last).startswith("# "), key


def test_what_a_recipe_says_comes_first_with_no_reason_that_is_not_its_own(two_folders: Path) -> None:
    proposal = written(two_folders, "many", Wishes(), "photos")
    recipe = recipes.load(two_folders, "photos").set
    assert proposal.values["claims"] == recipe["claims"] and not [key for key in proposal.why if "claims" in key]
    assert proposal.values["quantize.max_drop"] == 5.0
    assert (proposal.why["prune.training.lr"], proposal.why["prune.target"]) == (init.FROM, init.FROM)
    text = (two_folders / "params.yaml").read_text()
    assert "augment: {crop: 0.7, flip: true, rotation_degrees" in text  # on one line
    assert "# sentences about candidates, tested on the test split" in text
    assert ("prune.tolerance", "0.03", init.FROM) in set(init.shown(proposal))


def test_of_few_validation_images_a_recipe_asks_no_8_bits_that_they_could_not_judge(two_folders: Path) -> None:
    proposal = written(two_folders, "few", Wishes(), "photos")
    assert proposal.values["quantize.max_drop"] == 10.0 and "quantize.max_drop" not in proposal.shared


@pytest.mark.integration
def test_corrected_labels_stay_with_their_pictures_and_are_left_out_of_others(two_folders: Path) -> None:
    place = two_folders / "few/corrections.csv"
    place.write_text("file,given,label\n")
    recipes.write(
        two_folders, {"data.source": "folder:few", "data.root": "few", "data.corrections": "few/corrections.csv"}, ""
    )
    written(two_folders, "few", Wishes())
    data = load_params(two_folders / "params.yaml").data
    assert (data.root, data.corrections) == ("few", "few/corrections.csv")
    said: list[str] = []
    other = init._with_corrections(two_folders, init.look("many"), said.append)
    assert other.corrections is None and said == [
        "data.corrections: few/corrections.csv is not of these pictures: left out"
    ]
    written(two_folders, "many", Wishes())
    data = load_params(two_folders / "params.yaml").data
    assert (data.root, data.corrections) == ("many", None)


@pytest.mark.parametrize("size", [6_000_000, 10_000_000, 13_000_000])
def test_a_claim_about_parameters_asks_for_no_more_than_the_target(root: Path, size: int) -> None:
    for number, name in enumerate(("cat", "dog")):
        draw(root / "photos" / name, 30, seed=number)
    proposal = init.propose(init.look("photos"), Wishes(size_bytes=size), 64, 1.0)
    init.choose_claims(proposal, 500)
    claim = next(text for text in proposal.values["claims"] if "in parameters" in text)
    times = float(claim.removeprefix("prune is smaller than finetune by ").partition("x")[0])
    assert proposal.teacher_params is not None
    assert 1 < times <= min(2, proposal.teacher_params / proposal.values["prune.target"]["params"])


def test_a_list_in_the_repository_itself_is_refused(root: Path) -> None:
    draw(root / "photos" / "cat", 2)
    (root / "list.csv").write_text("path,label\nphotos/cat/0.png,cat\n")
    with pytest.raises(UserError, match="list.csv: lies in a folder that holds this repository"):
        init.look("list.csv")
    (root / "data").mkdir(exist_ok=True)
    shutil.copy(root / "list.csv", root / "data")
    with pytest.raises(UserError, match="data/list.csv: lies in a folder that holds 'data', where stages write"):
        init.look("data/list.csv")


def test_what_the_test_images_cannot_show_keeps_a_network_from_being_shipped(root: Path) -> None:
    for number, name in enumerate(("cat", "dog")):
        draw(root / "photos" / name, 30, seed=number)
    pictures = init.look("photos")
    few, many = (init.propose(pictures, Wishes(), 64, 1.0) for _ in range(2))
    said = init.choose_claims(few, 23)
    assert few.values["claims"] == [
        "prune has at most 25 % of the MACs of finetune",
        "prune is within 8.0 points of finetune on accuracy",  # not shown: nothing is ready to ship
    ]
    assert "nothing will be called ready to ship. Label more: 123 test images (of some 615 with labels) show 8" in said
    assert "With 23 test images a difference of accuracy under 18 points cannot be shown" in said
    assert "under 0.9 points" in init.choose_claims(many, 10_000)
    assert "prune is within 3.0 points of finetune on accuracy" in many.values["claims"]
    assert not any("int8" in claim for claim in many.values["claims"])  # nothing is quantised as yet
    init.choose_drop(many, 2_000)
    init.choose_claims(many, 247)
    assert "prune_int8 is within 6.0 points of prune on accuracy" in many.values["claims"]
    init.choose_claims(many, 10_000)
    assert "prune_int8 is within 1.0 points of prune on accuracy" in many.values["claims"]


def test_recipes_come_first_but_for_where_pictures_lie(root: Path) -> None:
    shared = init._shared(root, "photos")
    assert shared["prune.training.lr"] == 0.005
    assert not {key for key in shared if key.startswith("data.") and key != "data.image_size"}
    (root / "mine.yaml").write_text("title: mine\nnote: measured\nset: {teach.views: 3}\n")
    assert init._shared(root, "mine.yaml") == {"teach.views": 3}
    with pytest.raises(UserError, match="no file 'theirs.yaml'"):
        init._shared(root, "theirs.yaml")
    with pytest.raises(UserError, match="Did you mean 'photos'"):
        init._shared(root, "photo")


def test_unequal_classes_are_noticed_corrected_and_claimed(root: Path) -> None:
    for number, (name, count) in enumerate((("cat", 400), ("dog", 60))):
        draw(root / "photos" / name, count, 8, seed=number)
    pictures = init.look("photos")
    proposal = init.propose(pictures, Wishes(), 64, 1.0)
    by_class = init._tested_by_class(proposal, pictures)
    assert by_class == [80, 12]  # a fifth of each
    said = init.choose_claims(proposal, 92, by_class)
    assert "Of balanced accuracy none under 13.7 points can: the smallest class has about 12 test images" in said
    assert not any("balanced_accuracy" in claim for claim in proposal.values["claims"])  # nor is it claimed
    init.choose_claims(proposal, 920, [800, 120])
    assert "prune is within 5.0 points of finetune on balanced_accuracy" in proposal.values["claims"]
    recipes.write(root, proposal.values, "init", proposal.why)
    params = load_params(root / "params.yaml", deep=True)
    assert (params.imbalance.sampling, params.imbalance.choose_by) == ("balanced", "balanced_accuracy")
    text = (root / "params.yaml").read_text()
    assert "# 400 pictures of the largest class, 60 of the smallest: 7 times as many" in text


def test_of_about_equal_classes_nothing_is_said(root: Path) -> None:
    for number, (name, count) in enumerate((("cat", 40), ("dog", 20))):
        draw(root / "photos" / name, count, 8, seed=number)
    pictures = init.look("photos")
    proposal = init.propose(pictures, Wishes(), 64, 1.0)
    assert "balanced" not in init.choose_claims(proposal, 500, [300, 200])
    assert (proposal.values["imbalance.sampling"], proposal.values["imbalance.choose_by"]) == ("natural", "accuracy")


@pytest.fixture
def run_init(two_folders: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`thinner init` for another machine, for which no step is timed."""
    monkeypatch.setattr(init.lineage, "graph", lambda root: [])
    monkeypatch.setattr(init, "_has_gpu", lambda: False)

    def run(photos: str, recipe: str | None = None, **wishes: Any) -> None:
        init.init(two_folders, photos, Wishes("gpu", **wishes), recipe, lambda line: None)

    return run


def test_mirror_images_that_were_forbidden_stay_forbidden_for_the_same_pictures(
    two_folders: Path, run_init: Callable[..., None]
) -> None:
    run_init("few")
    recipes.write(two_folders, {"finetune.augment.flip": False, "student.augment.flip": False}, "")
    by_hand = (two_folders / "params.yaml").read_bytes()
    run_init("few")
    params = load_params(two_folders / "params.yaml")
    assert not params.finetune.augment.flip and not params.student.augment.flip
    assert (two_folders / init.KEPT).read_bytes() == by_hand
    run_init("many")
    assert load_params(two_folders / "params.yaml").student.augment.flip


def test_a_size_beside_a_recipe_with_a_target_of_its_own_is_refused(
    two_folders: Path, run_init: Callable[..., None]
) -> None:
    before = (two_folders / "params.yaml").read_bytes()
    with pytest.raises(UserError, match="--size: the recipe 'photos' has a prune.target of its own. Give one of the"):
        run_init("few", "photos", size_bytes=200_000)
    assert (two_folders / "params.yaml").read_bytes() == before and not (two_folders / init.KEPT).exists()


@pytest.mark.parametrize("path", sorted((PROJECT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_that_claims_something_says_what_is_pruned_and_how_far(path: Path) -> None:
    given = yaml.safe_load(path.read_text())["set"]
    assert "claims" not in given or {"prune.source", "prune.target"} <= set(given)
