"""What the teacher said once is what it would say again."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from thinner.data import views
from thinner.files.mapped import read_rows
from thinner.learn import signals, training
from thinner.networks import models
from thinner.networks.spec import NetworkSpec

NETWORK = NetworkSpec("resnet8", 7, 1, width=8, stem_stride=2)
PREPROCESSING = views.Preprocessing(16, mean=(0.5,), std=(0.25,))
POLICY = views.Policy(crop=0.8, flip=True)
IMAGES = np.random.default_rng(0).integers(0, 256, (30, 12, 12, 1), dtype=np.uint8)
INDEX = np.array([1, 2, 3, 5, 8, 13, 21, 22, 25, 29])


def teacher():
    torch.manual_seed(0)
    return models.create(NETWORK).eval()


def write(folder, work, who=None, **changes):
    folder.mkdir(exist_ok=True)
    work.mkdir(exist_ok=True)
    arguments = {
        "count": 3, "policy": POLICY, "seed": 4, "batch_size": 4, "info": {"teacher": "x"}, "work": work, **changes,
    }  # fmt: skip
    who = who or signals.NetworkTeacher(teacher(), PREPROCESSING, changes.get("features", ()))
    signals.write_signals(folder, who, IMAGES, INDEX, **arguments)
    return signals.open_signals(folder)


def view_of(index, number=0, policy=POLICY):
    return signals.View(IMAGES, np.asarray(index), number, policy, 4)


def says(logits):
    """A teacher that says the same of every image."""
    row = torch.as_tensor(logits, dtype=torch.float32)
    return lambda view: (row.repeat(len(view.index), 1), {})


def test_cached_signals_equal_the_live_teacher(tmp_path):
    write(tmp_path / "out", tmp_path / "work")
    cache = signals.open_signals(tmp_path / "out")
    wanted = np.array([29, 1, 13, 8])
    view = np.array([0, 2, 1, 2])
    live = signals.view_logits(teacher(), IMAGES, wanted, view, preprocessing=PREPROCESSING, policy=POLICY, seed=4)
    assert (cache.logits(wanted, view) - live).abs().max() <= 2e-3


def test_a_teacher_in_bf16_stays_near_fp32_and_cached_equals_live_in_it(tmp_path):
    """The bound that docs/gpu.md states: 3 % of the largest logit."""
    half = signals.NetworkTeacher(teacher(), PREPROCESSING, autocast=training.autocast("cpu", "bf16"))
    cache = write(tmp_path / "out", tmp_path / "work", half)
    wanted, view = np.array([29, 1, 13, 8]), np.array([0, 2, 1, 2])
    live = half(signals.View(IMAGES, wanted, view, POLICY, 4))[0]
    assert (cache.logits(wanted, view) - live).abs().max() <= 2e-3
    whole = signals.NetworkTeacher(teacher(), PREPROCESSING)(signals.View(IMAGES, wanted, view, POLICY, 4))[0]
    assert 0 < (live - whole).abs().max() <= 0.03 * whole.abs().max()


def test_large_logits_lose_little(tmp_path):
    # float16 keeps 2**-8 at 8; the centre halves the size of what is stored
    loud = torch.linspace(-15.0, 16.0, 7)
    got = write(tmp_path / "out", tmp_path / "work", says(loud)).logits(INDEX, np.zeros(10, dtype=np.int64))
    assert (got - loud).abs().max() <= 4e-3


@pytest.mark.parametrize("size", [3, 10, 13, 27, 100])  # within a view, a whole one, across two, across three, all
def test_the_batch_size_of_the_teacher_changes_next_to_nothing(tmp_path, size):
    cache = write(tmp_path / "out", tmp_path / "work", batch_size=size)
    for number in range(3):
        live = signals.NetworkTeacher(teacher(), PREPROCESSING)(view_of(INDEX, number))[0]
        assert (cache.logits(INDEX, np.full(10, number)) - live).abs().max() <= 2e-3


@pytest.fixture
def killed(tmp_path, monkeypatch):
    """The work folder of a run that was killed after its third batch."""
    monkeypatch.setattr(signals, "_MARK_EVERY", 2)
    write(tmp_path / "whole", tmp_path / "work")

    class KilledError(Exception):
        pass

    def kill(done):
        if done >= 12:
            raise KilledError

    with pytest.raises(KilledError):
        write(tmp_path / "cut", tmp_path / "work2", on_images=kill)
    return tmp_path / "work2"


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(tmp_path, killed):
    again = []
    write(tmp_path / "cut", killed, on_images=again.append)
    assert again[0] == 12
    for name in ("logits.npy", "centres.npy", "index.npy"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_several_devices_write_what_one_does_also_after_a_kill(tmp_path, killed):
    """Two devices, both of which are this CPU; batches reach over views, and features are kept."""
    features = [signals.Feature("stages.1"), signals.Feature("stages.2", pooled=True)]

    def one():
        return signals.NetworkTeacher(teacher(), PREPROCESSING, features)

    write(tmp_path / "alone", tmp_path / "work a", features=features)
    write(tmp_path / "shared", tmp_path / "work b", features=features, others=[(one(), "cpu"), (one(), "cpu")])
    for file in (tmp_path / "alone").iterdir():
        assert (tmp_path / "shared" / file.name).read_bytes() == file.read_bytes(), file.name
    write(tmp_path / "cut", killed, others=[(signals.NetworkTeacher(teacher(), PREPROCESSING), "cpu")])
    assert (tmp_path / "cut/logits.npy").read_bytes() == (tmp_path / "whole/logits.npy").read_bytes()


@pytest.mark.parametrize("name", ["logits.npy", "centres.npy", "done.json"])
def test_what_was_kept_and_damaged_is_asked_for_anew(tmp_path, killed, name):
    kept = bytearray((killed / name).read_bytes())
    kept[-3 if name == "done.json" else 128] ^= 4  # of an array, the first number
    (killed / name).write_bytes(kept)
    again, said = [], []
    write(tmp_path / "cut", killed, on_images=again.append, say=said.append)
    assert again[0] == 4
    assert name == "done.json" or "not what was written" in said[0]
    for file in ("logits.npy", "centres.npy", "index.npy"):
        assert (tmp_path / "cut" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


@pytest.mark.parametrize("at", [3, 70])
def test_an_array_whose_header_is_damaged_is_made_anew(tmp_path, killed, at):
    kept = bytearray((killed / "logits.npy").read_bytes())
    kept[at] ^= 4
    (killed / "logits.npy").write_bytes(kept)
    write(tmp_path / "cut", killed)
    assert (tmp_path / "cut" / "logits.npy").read_bytes() == (tmp_path / "whole" / "logits.npy").read_bytes()


def test_an_image_without_signals_is_an_error(tmp_path):
    write(tmp_path / "out", tmp_path / "work")
    cache = signals.open_signals(tmp_path / "out")
    for stranger in (4, 30):
        with pytest.raises(signals.SignalsError, match="no signals for some of these images"):
            cache.logits(np.array([1, stranger]), np.array([0, 0]))


def test_missing_signals_name_the_stage(tmp_path):
    with pytest.raises(signals.SignalsError, match="thinner stage teach"):
        signals.open_signals(tmp_path)


def test_kept_features_are_those_of_the_live_teacher(tmp_path):
    features = [signals.Feature("stages.1"), signals.Feature("stages.2", pooled=True)]
    cache = write(tmp_path / "out", tmp_path / "work", features=features)
    wanted, number = np.array([29, 1, 13, 8]), np.array([0, 2, 1, 2])
    got = cache.features(wanted, number)
    live = signals.NetworkTeacher(teacher(), PREPROCESSING, [signals.Feature("stages.1"), signals.Feature("stages.2")])
    maps = live(view_of(wanted, number))[1]
    assert list(got) == ["stages.1", "stages.2"]
    torch.testing.assert_close(got["stages.1"], maps["stages.1"], atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(got["stages.2"], maps["stages.2"].mean((2, 3)), atol=2e-3, rtol=1e-3)
    assert list(cache.only(["stages.2"]).features(wanted, number)) == ["stages.2"]


def test_the_largest_logits_keep_their_probability_and_the_others_share_the_rest(tmp_path):
    probabilities = np.array([0.05, 0.5, 0.02, 0.25, 0.1, 0.05, 0.03])
    got = write(tmp_path / "out", tmp_path / "work", says(np.log(probabilities) + 3.0), top_k=3)
    got = got.logits(INDEX, np.ones(10, dtype=np.int64)).softmax(1)
    # by hand: 0.5, 0.25 and 0.1 are kept; the other four share 0.15
    expected = [0.0375, 0.5, 0.0375, 0.25, 0.1, 0.0375, 0.0375]
    np.testing.assert_allclose(got.numpy(), np.tile(expected, (10, 1)), atol=2e-4)


def test_many_classes_take_less_room(tmp_path):
    wide = says(torch.randn(1000, generator=torch.Generator().manual_seed(0)))
    for name, top in (("all", None), ("few", 20)):
        write(tmp_path / name, tmp_path / f"work {name}", wide, top_k=top)
    size = {name: sum(f.stat().st_size for f in (tmp_path / name).iterdir()) for name in ("all", "few")}
    assert size["few"] < 0.1 * size["all"]


def test_top_k_of_all_classes_is_refused(tmp_path):
    with pytest.raises(signals.SignalsError, match="teach.top_k: 7, but there are 7 classes. Set teach.top_k: null"):
        write(tmp_path / "out", tmp_path / "work", top_k=7)


def test_a_set_that_does_not_fit_the_disk_is_refused_before_the_first_image(tmp_path, monkeypatch):
    usage = signals.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(signals.shutil, "disk_usage", lambda path: usage._replace(free=100))
    seen = []
    with pytest.raises(
        signals.SignalsError, match=r"the signals take 0.0 GB, the disk has 0.0 GB left. Lower teach.views"
    ):
        write(tmp_path / "out", tmp_path / "work", on_images=seen.append)
    assert not seen


def test_several_teachers_are_averaged_by_weight():
    features = {"blocks": torch.ones(1)}
    first = lambda view: (torch.tensor([[4.0, 0.0]]), features)  # noqa: E731
    ask = signals.average([first, says([0.0, 8.0])], [3.0, 1.0])
    logits, found = ask(view_of([1]))
    assert logits.tolist() == [[3.0, 2.0]]  # (3 * 4 + 1 * 0) / 4, (3 * 0 + 1 * 8) / 4
    assert found is features
    with pytest.raises(signals.SignalsError, match="cannot be weighted"):
        signals.average([first, first], [0.0, 0.0])


def test_a_flipped_answer_is_the_mean_of_those_for_a_picture_and_for_its_mirror_image():
    plain = signals.NetworkTeacher(teacher(), PREPROCESSING)
    flipped = signals.NetworkTeacher(teacher(), PREPROCESSING, [signals.Feature("stages.1")], flip=True)
    asked = replace(view_of(INDEX), policy=views.Policy())
    mirrored = replace(asked, images=asked.images[:, :, ::-1])
    logits, features = flipped(asked)
    torch.testing.assert_close(logits, (plain(asked)[0] + plain(mirrored)[0]) / 2)
    assert not torch.allclose(logits, plain(asked)[0])
    torch.testing.assert_close(logits, flipped(mirrored)[0])  # neither side is preferred
    own = signals.NetworkTeacher(teacher(), PREPROCESSING, [signals.Feature("stages.1")])(asked)[1]
    assert torch.equal(features["stages.1"], own["stages.1"])  # of the picture itself


NAMES = [f"cat/{n}.jpg" for n in range(30)]


def save_given(path, rows=INDEX, **changes):
    logits = np.random.default_rng(1).normal(size=(len(rows), 2)).astype(np.float32)
    content = {"names": np.array([NAMES[n] for n in rows]), "logits": logits, "classes": np.array(["dog", "cat"])}
    content = {k: v for k, v in {**content, **changes}.items() if v is not None}
    np.savez(path, **content)
    return logits


def test_logits_from_a_file_are_matched_by_name_and_class(tmp_path):
    shuffled = np.random.default_rng(0).permutation(INDEX)
    logits = save_given(tmp_path / "t.npz", shuffled)
    index, given = signals.read_given(tmp_path / "t.npz", NAMES, ["cat", "dog"], INDEX)
    got, _ = signals.GivenTeacher(index, given)(view_of([29, 1, 8], policy=views.Policy()))
    rows = [int(np.flatnonzero(shuffled == n)[0]) for n in (29, 1, 8)]
    np.testing.assert_array_equal(got.numpy(), logits[rows][:, ::-1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": INDEX[:-2]}, r"no logits for 2 of the 10 images, such as cat/25.jpg, cat/29.jpg"),
        ({"classes": np.array(["cow", "cat"])}, r"has the classes \['cow', 'cat'\], the data \['cat', 'dog'\]"),
        ({"logits": np.zeros((10, 3), np.float32)}, r"logits are \[10, 3\], but there are 10 names and 2 classes"),
        ({"logits": np.full((10, 2), np.nan)}, "some logits are not finite"),
        ({"names": np.array([NAMES[n] for n in (*INDEX[:-1], INDEX[0])])}, "names 'cat/.*' twice. Give each"),
        ({"names": None}, "cannot be read as teacher logits .*numpy.savez"),
    ],
)
def test_a_file_of_logits_that_does_not_fit_is_named(tmp_path, changes, message):
    save_given(tmp_path / "t.npz", **changes)
    with pytest.raises(signals.SignalsError, match=message):
        signals.read_given(tmp_path / "t.npz", NAMES, ["cat", "dog"], INDEX)


def test_a_file_of_logits_has_no_answer_for_views_that_move(tmp_path):
    with pytest.raises(signals.SignalsError, match="student.augment: moves the images"):
        signals.GivenTeacher(INDEX, np.zeros((10, 2), np.float32))(view_of([1]))


def test_taking_rows_gives_the_pages_back(tmp_path):
    np.save(tmp_path / "big.npy", np.random.default_rng(0).integers(0, 256, (40_000, 784), dtype=np.uint8))
    mapped = np.load(tmp_path / "big.npy", mmap_mode="r")

    def resident():  # kB of this file that count as ours
        lines = Path("/proc/self/smaps").read_text().split("\n")
        start = next(n for n, line in enumerate(lines) if line.endswith("big.npy"))
        return int(next(line for line in lines[start:] if line.startswith("Rss:")).split()[1])

    if not Path("/proc/self/smaps").exists():
        pytest.skip("this system does not tell")
    rows = np.arange(0, 40_000, 4)
    np.testing.assert_array_equal(read_rows(mapped, rows), np.load(tmp_path / "big.npy")[rows])
    assert resident() < 1_000
    mapped[rows]
    assert resident() > 20_000  # what it would be otherwise
