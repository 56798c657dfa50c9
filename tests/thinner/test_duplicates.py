"""thinner/data/duplicates.py: copies that Pillow made are found, and nothing else is."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from thinner.data import duplicates
from thinner.data.duplicates import Pair


def scenes(count: int, side: int = 32, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Pictures of coarse blots and finer ones, each octave half as strong as the one before: as photos are."""
    rng = np.random.default_rng(seed)
    made = np.zeros((count, side, side, channels))
    for octave, cells in enumerate((3, 6, 12, 24)):
        for image in made:
            for channel in range(channels):
                small = Image.fromarray(rng.normal(size=(cells, cells)).astype(np.float32))
                image[..., channel] += np.asarray(small.resize((side, side), Image.Resampling.BICUBIC)) / 2**octave
    return np.clip(110 + 30 * made, 0, 255).astype(np.uint8)


def changed(image: np.ndarray, what: str) -> np.ndarray:
    side, channels = image.shape[0], image.shape[2]
    picture = Image.fromarray(image[..., 0] if channels == 1 else image)
    if what == "crop":
        width = round(0.9 * side)
        left = side - width  # at the edge
        picture = picture.crop((left, 0, left + width, width)).resize((side, side), Image.Resampling.BILINEAR)
    elif what == "jpeg":
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=60)
        picture = Image.open(buffer)
    elif what == "mirror":
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    elif what == "brightness":
        picture = picture.point(lambda value: min(255, round(1.15 * value)))
    return np.asarray(picture).reshape(image.shape)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [28, 48])
def test_copies_are_found_and_nothing_else(side: int, channels: int) -> None:
    images = scenes(120, side, channels)
    kinds = ("crop", "jpeg", "mirror", "brightness")
    copies = [changed(images[10 * place], kind) for place, kind in enumerate(kinds)]
    pairs = duplicates.find(np.concatenate([images, np.stack(copies)]))
    assert {(pair.first, pair.second) for pair in pairs} == {(10 * place, 120 + place) for place in range(4)}
    how = {pair.second - 120: pair.how for pair in pairs}
    assert float(how[0].removeprefix("crop ")) == pytest.approx(0.9, abs=0.02)
    assert how[2] == "mirrored" and "mirrored" not in how[0] + how[1] + how[3]
    assert all(duplicates.DUPLICATE <= pair.similarity <= 1 for pair in pairs)


def test_identical_pictures_are_joined_to_the_first_also_those_of_one_colour() -> None:
    images = scenes(40)
    images[5] = images[20] = images[30] = 0
    images[33] = images[1]
    found = duplicates.find(images)
    assert found == [Pair(1, 33, 1.0, "identical"), Pair(5, 20, 1.0, "identical"), Pair(5, 30, 1.0, "identical")]


def test_the_same_pictures_give_the_same_pairs() -> None:
    images = scenes(60)
    images = np.concatenate([images, np.stack([changed(image, "jpeg") for image in images[:5]])])
    assert duplicates.find(images) == duplicates.find(images)


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_few_pictures(count: int) -> None:
    assert duplicates.find(scenes(count) if count else np.zeros((0, 32, 32, 3), np.uint8)) == []


def test_progress_comes_to_the_number_of_pictures() -> None:
    told: list[int] = []
    duplicates.find(scenes(600, 16), progress=told.append)
    assert told == [512, 600]


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_crop_is_what_pillow_cuts_out_and_stretches(mirrored: bool) -> None:
    image = np.random.default_rng(0).random((20, 20)).astype(np.float32)
    top, left, size = 0.04, 0.07, 0.9
    box = (20 * left, 20 * top, 20 * (left + size), 20 * (top + size))
    expected = np.asarray(Image.fromarray(image).resize((20, 20), Image.Resampling.BILINEAR, box=box))
    values = [torch.tensor([value]) for value in (size, top, left)]
    crop = duplicates._Crops(*values, torch.tensor([mirrored])).of(torch.from_numpy(image)[None, None])[0, 0].numpy()
    np.testing.assert_allclose(crop, expected[:, ::-1] if mirrored else expected, atol=1e-5)


def test_a_crop_that_is_moved_stays_inside() -> None:
    start = duplicates._Crops(*(torch.tensor([value]) for value in (0.9, 0.1, 0.0)), torch.tensor([False]))
    moved = start.moved(0.05, 0.3, -0.3)
    assert moved.side.item() == pytest.approx(0.95)
    assert moved.top.item() == pytest.approx(0.05)
    assert moved.left.item() == 0
    assert start.moved(-0.5, 0.0, 0.0).side.item() == pytest.approx(duplicates.SMALLEST_CROP)


def test_groups_hold_what_pairs_join_through_others() -> None:
    group = duplicates.groups(6, [Pair(0, 3, 1.0, ""), Pair(3, 5, 1.0, ""), Pair(1, 2, 1.0, "")])
    assert group[0] == group[3] == group[5] and group[1] == group[2]
    assert len(set(group.tolist())) == 3
    assert len(set(duplicates.groups(4, []).tolist())) == 4


def test_leaks_count_pictures_of_the_later_split() -> None:
    splits = ("labelled", "validation", "test", "unused")
    home = ["labelled", "test", "test", "validation", "validation", "unused", "labelled"]
    group = np.array([7, 7, 7, 7, 3, 3, 1])
    found = duplicates.leaks(home, group, splits)
    assert found == {("labelled", "test"): 2, ("validation", "test"): 2, ("labelled", "validation"): 1}
    assert next(iter(found))[1] == "test"
