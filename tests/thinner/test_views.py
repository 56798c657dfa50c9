"""Views are pure functions of (seed, image number, view number)."""

import multiprocessing
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as reference

from thinner.data import views

POLICY = views.Policy(
    crop=0.7, flip=True, rotation_degrees=15, translation=0.1, brightness=0.2, contrast=0.3, saturation=0.4, erase=0.5
)
IMAGES = np.random.default_rng(0).integers(0, 256, (12, 20, 20, 3), dtype=np.uint8)
INDEX = np.arange(100, 112)


def draw(rows, images=IMAGES, view=3, size=16, policy=POLICY, seed=5):
    rows = np.asarray(rows)
    return views.draw(images[rows], INDEX[rows], view, size=size, seed=seed, policy=policy)


def _in_process(rows):
    torch.set_num_threads(1)
    return draw(rows).numpy()


def test_a_view_does_not_depend_on_the_order_of_the_batch():
    order = np.random.default_rng(1).permutation(12)
    assert torch.equal(draw(np.arange(12))[order], draw(order))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("policy", [POLICY, replace(POLICY, crop=0.3, aspect=0.5, policy="trivialaugment")])
@pytest.mark.parametrize("size", [7, 16, 20, 33])
def test_a_view_does_not_depend_on_the_batch_size(size, policy, channels):
    images = IMAGES[..., :channels]
    whole = draw(np.arange(12), images, size=size, policy=policy)
    for parts in ([1] * 12, [5, 7], [3, 3, 6]):
        pieces = np.split(np.arange(12), np.cumsum(parts)[:-1])
        found = [draw(piece, images, size=size, policy=policy) for piece in pieces]
        assert torch.equal(torch.cat(found), whole)


def test_a_view_does_not_depend_on_the_process():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        elsewhere = pool.apply(_in_process, (np.arange(12),))
    assert np.array_equal(elsewhere, draw(np.arange(12)).numpy())


def test_each_image_can_have_its_own_view_number():
    mixed = draw(np.arange(12), view=np.arange(12) % 3)
    for number in range(3):
        rows = np.arange(12)[np.arange(12) % 3 == number]
        assert torch.equal(mixed[rows], draw(rows, view=number))


def test_views_images_and_seeds_differ():
    assert not torch.equal(draw([0], view=1), draw([0], view=2))
    assert not torch.equal(draw([0], seed=1), draw([0], seed=2))
    u = views.random_numbers(0, np.arange(1000), 0)
    assert len(np.unique(u)) == u.size


def test_random_numbers_are_uniform_and_uncorrelated():
    u = views.random_numbers(7, np.arange(20_000), 1)
    assert np.abs(u.mean(0) - 0.5).max() < 0.01
    assert np.abs(u.var(0) - 1 / 12).max() < 0.003
    correlation = np.corrcoef(np.concatenate([u, views.random_numbers(7, np.arange(20_000), 2)], axis=1).T)
    assert np.abs(correlation - np.eye(len(correlation))).max() < 0.04


def test_the_still_policy_draws_the_image_itself():
    still = draw(np.arange(12), size=20, policy=views.Policy())
    assert torch.equal(still, torch.from_numpy(IMAGES).permute(0, 3, 1, 2).float() / 255)
    assert views.Policy().still
    for moving in ({"crop": 0.9}, {"flip": True}, {"erase": 0.1}, {"aspect": 0.9}, {"policy": "trivialaugment"}):
        assert not views.Policy(**moving).still


def test_flip_alone_mirrors_about_half_of_the_images():
    flipped = draw(np.arange(12), size=20, policy=views.Policy(flip=True))
    plain = views.to_pixels(IMAGES)
    mirrored = [torch.allclose(f, p.flip(-1), atol=1e-5) for f, p in zip(flipped, plain, strict=True)]
    kept = [torch.allclose(f, p, atol=1e-5) for f, p in zip(flipped, plain, strict=True)]
    assert all(m != k for m, k in zip(mirrored, kept, strict=True))
    assert 2 <= sum(mirrored) <= 10


def test_a_view_is_the_same_motion_at_every_resolution():
    # a smooth picture, so that two resolutions of one motion can be compared
    y, x = np.mgrid[0:32, 0:32] / 31
    smooth = (255 * np.stack([x, y, (x + y) / 2], -1)).astype(np.uint8)[None]
    policy = views.Policy(crop=0.6, flip=True, rotation_degrees=20, translation=0.1)
    for changes in ({}, {"aspect": 0.5}, {"policy": "trivialaugment"}):
        for image in range(14 if changes else 1):
            big, small = (
                views.draw(smooth, np.array([image + 4]), 2, size=s, seed=0, policy=replace(policy, **changes))
                for s in (64, 32)
            )
            # equalize counts pixels, and of a quarter of them has coarser steps
            assert (torch.nn.functional.avg_pool2d(big, 2) - small).abs().mean() < (
                0.04 if "policy" in changes else 0.01
            )


def test_values_stay_between_0_and_1():
    out = draw(np.arange(12), policy=views.Policy(brightness=1.0, contrast=1.0, saturation=1.0))
    assert 0 <= out.min() and out.max() <= 1


def test_saturation_moves_colours_along_the_line_to_their_grey():
    pale = np.clip(IMAGES, 64, 191)  # so that nothing is cut off at 0 and 1
    before = torch.from_numpy(pale).permute(0, 3, 1, 2) / 255
    out = draw(np.arange(12), pale, size=20, policy=views.Policy(saturation=0.5))
    weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    luma, luma_before = (out * weights).sum(1, keepdim=True), (before * weights).sum(1, keepdim=True)
    assert torch.allclose(luma, luma_before, atol=1e-5)
    gains = ((out - luma) * (before - luma_before)).sum((1, 2, 3)) / (before - luma_before).square().sum((1, 2, 3))
    assert torch.allclose(out, luma + gains.view(-1, 1, 1, 1) * (before - luma), atol=1e-5)
    assert 0.5 <= gains.min() < 0.75 and 1.25 < gains.max() <= 1.5
    grey = np.repeat(pale[..., :1], 3, axis=-1)
    assert torch.allclose(
        draw(np.arange(12), grey, size=20, policy=views.Policy(saturation=1.0)), before[:, :1].expand_as(before)
    )


# ------------------------------------------------------------------------- against pictures worked out by other means

AT_REST = 0.5  # the number that moves nothing; 1.0 is as far as the policy allows to one side, 0.0 to the other
CROP, SHIFT_X, MOVE_X, SHIFT_Y, MOVE_Y, TURN, MIRROR, CONTRAST, BRIGHTNESS, ERASE, LEFT, TOP, SATURATION = range(13)
ASPECT, OPERATION, STRENGTH, SIGN = range(13, 17)


def drawn(monkeypatch, images, policy, size=None, **numbers):
    """The view of each image whose random numbers are these, by column; all others are at rest."""

    def chosen(seed, index, view):
        u = np.full((len(index), views._DRAWS), AT_REST)
        u[:, CROP] = 0.0
        for name, value in numbers.items():
            u[:, globals()[name]] = value
        return u

    monkeypatch.setattr(views, "random_numbers", chosen)
    out = views.draw(
        images, np.arange(len(images)), 0, size=size or images.shape[1], seed=0, policy=views.Policy(**policy)
    )
    return out.permute(0, 2, 3, 1).double().numpy()


def dot(row, column, side=8):
    """One bright pixel on black."""
    image = np.zeros((1, side, side, 1), np.uint8)
    image[0, row, column] = 255
    return image


def where(picture):
    """Row and column of the light, as its centre of mass."""
    light = picture[0, ..., 0]
    rows, columns = np.mgrid[0 : light.shape[0], 0 : light.shape[1]]
    return [round(float((light * axis).sum() / light.sum()), 3) for axis in (rows, columns)]


@pytest.mark.parametrize(("number", "turns"), [(1.0, 1), (0.0, -1)])
def test_ninety_degrees_are_a_quarter_turn(monkeypatch, number, turns):
    for place in ((1, 2), (0, 7), (6, 3)):
        image = dot(*place)
        out = drawn(monkeypatch, image, {"rotation_degrees": 90.0}, TURN=number)
        np.testing.assert_allclose(out[0], np.rot90(image[0] / 255.0, turns), atol=1e-5)
    half = drawn(monkeypatch, dot(1, 2), {"rotation_degrees": 180.0}, TURN=0.75)  # half of the way
    np.testing.assert_allclose(half[0], np.rot90(dot(1, 2)[0] / 255.0), atol=1e-5)


def test_a_translation_is_a_share_of_the_side(monkeypatch):
    quarter = {"translation": 0.25}  # two of eight pixels; the window moves right, so what is seen moves left
    assert where(drawn(monkeypatch, dot(3, 5), quarter, MOVE_X=1.0)) == [3.0, 3.0]
    assert where(drawn(monkeypatch, dot(3, 5), quarter, MOVE_X=0.0)) == [3.0, 7.0]
    assert where(drawn(monkeypatch, dot(3, 5), quarter, MOVE_Y=1.0)) == [1.0, 5.0]
    assert where(drawn(monkeypatch, dot(3, 5), quarter, MOVE_X=0.75, MOVE_Y=0.25)) == [4.0, 4.0]
    beyond = drawn(monkeypatch, dot(3, 7), quarter, MOVE_X=1.0)  # past the border its last pixel goes on
    assert beyond[0, 3, :, 0].round(5).tolist() == [0, 0, 0, 0, 0, 1, 1, 1]


def test_a_crop_is_a_square_of_that_side_and_never_leaves_the_image(monkeypatch):
    half = {"crop": 0.5}
    for x, y, columns, rows in (
        (0.5, 0.5, (2, 6), (2, 6)), (1.0, 0.5, (4, 8), (2, 6)), (0.0, 1.0, (0, 4), (4, 8)),
    ):  # fmt: skip
        for image in (dot(3, 5), dot(4, 2), dot(6, 1)):
            inside = image[:, rows[0] : rows[1], columns[0] : columns[1]]
            out = drawn(monkeypatch, image, half, CROP=1.0, SHIFT_X=x, SHIFT_Y=y)[0, ..., 0]
            # a pixel becomes two by two, and what lies between two pixels their mixture
            wide = np.kron(inside[0, ..., 0] / 255.0, np.ones((2, 2)))
            assert out[1:-1, 1:-1].max() <= wide.max() + 1e-6
            peak = np.argwhere(wide == 1.0)
            if len(peak):
                np.testing.assert_allclose(out[tuple(peak.T)].mean(), 0.75**2, atol=1e-5)
    whole = drawn(monkeypatch, IMAGES, half, CROP=0.0)
    np.testing.assert_allclose(whole, IMAGES / 255.0, atol=1e-5)
    three_quarters = drawn(monkeypatch, dot(3, 5), half, CROP=0.5)  # halfway between all of it and half of its side
    np.testing.assert_allclose(three_quarters, by_hand(dot(3, 5), 8, scale=0.75), atol=1e-5)


def test_contrast_turns_about_mid_grey_and_brightness_adds(monkeypatch):
    ramp = np.linspace(64, 191, 64).round().astype(np.uint8).reshape(1, 8, 8, 1)
    x = ramp / 255.0
    for number, gain in ((1.0, 1.4), (0.0, 0.6), (0.75, 1.2)):
        out = drawn(monkeypatch, ramp, {"contrast": 0.4}, CONTRAST=number)
        np.testing.assert_allclose(out, np.clip(0.5 + gain * (x - 0.5), 0, 1), atol=1e-5)
    for number, more in ((1.0, 0.3), (0.0, -0.3), (0.25, -0.15)):
        out = drawn(monkeypatch, ramp, {"brightness": 0.3}, BRIGHTNESS=number)
        np.testing.assert_allclose(out, np.clip(x + more, 0, 1), atol=1e-5)


def test_saturation_scales_what_is_not_grey(monkeypatch):
    pale = np.clip(IMAGES, 96, 159)
    x = pale / 255.0
    luma = (x @ np.array([0.299, 0.587, 0.114]))[..., None]
    for number, gain in ((1.0, 1.5), (0.0, 0.5)):
        out = drawn(monkeypatch, pale, {"saturation": 0.5}, SATURATION=number)
        np.testing.assert_allclose(out, luma + gain * (x - luma), atol=1e-5)


def test_what_is_erased_is_a_quarter_of_the_image_in_mid_grey(monkeypatch):
    white = np.full((1, 8, 8, 3), 255, np.uint8)
    middle = drawn(monkeypatch, white, {"erase": 0.3}, ERASE=0.29)
    expected = np.ones((1, 8, 8, 3))
    expected[:, 2:6, 2:6] = 0.5
    np.testing.assert_array_equal(middle, expected)
    fine = drawn(monkeypatch, white, {"erase": 0.3}, size=20, ERASE=0.29)
    assert np.argwhere(fine[0, :, 10, 0] == 0.5).ravel().tolist() == list(range(5, 15))
    assert np.argwhere(fine[0, 10, :, 0] == 0.5).ravel().tolist() == list(range(5, 15))
    corner = drawn(monkeypatch, white, {"erase": 0.3}, ERASE=0.0, LEFT=0.0, TOP=1.0)
    expected = np.ones((1, 8, 8, 3))
    expected[:, 6:, :2] = 0.5  # columns from the left border on, rows down to the lower one
    np.testing.assert_array_equal(corner, expected)
    for number in (0.3, 0.31, 0.99):  # as often as the policy says, and no more
        np.testing.assert_array_equal(drawn(monkeypatch, white, {"erase": 0.3}, ERASE=number), np.ones((1, 8, 8, 3)))


def test_a_smaller_picture_is_an_average_of_all_its_pixels():
    stripes = np.zeros((1, 32, 32, 1), np.uint8)
    stripes[:, :, ::4] = 255  # without antialiasing some or all of the stripes are missed
    small = views.resize(views.to_pixels(stripes), 8).double().numpy()
    np.testing.assert_allclose(small[0, 0, :, 2:-2], 0.25, atol=1e-5)
    seen = views.draw(stripes, np.array([0]), 0, size=8, seed=0, policy=views.Policy(brightness=1e-6)).double().numpy()
    np.testing.assert_allclose(seen, small, atol=1e-4)
    np.testing.assert_allclose(small[0], triangle(stripes[0] / 255.0, 8).transpose(2, 0, 1), atol=1e-5)
    odd = np.random.default_rng(2).integers(0, 256, (1, 21, 21, 3), dtype=np.uint8)
    found = views.resize(views.to_pixels(odd), 9)[0].permute(1, 2, 0).double().numpy()
    np.testing.assert_allclose(found, triangle(odd[0] / 255.0, 9), atol=1e-5)


def test_a_crop_of_a_larger_picture_shows_the_pixels_that_are_there(monkeypatch):
    large = np.random.default_rng(3).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    half = {"crop": 0.5}
    for x, y, columns, rows in ((0.5, 0.5, 8, 8), (1.0, 0.5, 16, 8), (0.0, 1.0, 0, 16)):
        out = drawn(monkeypatch, large, half, size=16, CROP=1.0, SHIFT_X=x, SHIFT_Y=y)
        inside = large[:, rows : rows + 16, columns : columns + 16]
        np.testing.assert_allclose(out, inside / 255.0, atol=2e-5)  # pixel for pixel
    whole = drawn(monkeypatch, large, half, size=16, CROP=0.0)  # and all of it as evaluation has it
    np.testing.assert_allclose(whole[0], triangle(large[0] / 255.0, 16), atol=1e-5)
    for number, side in ((0.25, 19), (0.5, 23), (0.8, 27)):  # 1 - u / 2 of the side: 16 / 0.875, 16 / 0.75, 16 / 0.6
        level = 255.0 * triangle(large[0] / 255.0, side)[None]
        out = drawn(monkeypatch, large, half, size=16, CROP=number)
        np.testing.assert_allclose(out, by_hand(level, 16, scale=1 - number / 2), atol=2e-5)


def test_the_picture_that_a_crop_is_drawn_from_has_as_many_pixels_as_it_needs():
    scale = np.array([1.0, 0.93, 0.9, 0.75, 0.6, 0.5, 0.3])
    assert views.level_sides(64, 32, scale).tolist() == [32, 32, 38, 45, 54, 64, 64]
    assert views.level_sides(50, 32, scale).tolist() == [32, 32, 38, 45, 50, 50, 50]
    for stored in (32, 28):  # nothing finer is there
        assert views.level_sides(stored, 32, scale).tolist() == [stored] * 7
    many = np.linspace(0.1, 1.0, 1000)
    pixels = many * views.level_sides(10_000, 256, many) / 256  # of the picture for each of the view
    assert 2**-0.125 - 0.002 < pixels.min() < 0.93 and 1.08 < pixels.max() < 2**0.125 + 0.002


def test_a_larger_picture_without_a_crop_is_reduced_first(monkeypatch):
    """As it always was, to the bit: then the level is the network's size."""
    large = np.random.default_rng(3).integers(0, 256, (6, 40, 40, 3), dtype=np.uint8)
    policy = replace(POLICY, crop=1.0)
    found = views.draw(large, np.arange(6), 1, size=16, seed=0, policy=policy)
    monkeypatch.setattr(views, "to_pixels", lambda images, device: views.resize(plain(images), 16))
    plain = lambda images: torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().float().div(255.0)  # noqa: E731
    assert torch.equal(views.draw(large, np.arange(6), 1, size=16, seed=0, policy=policy), found)


def test_an_oblong_crop_has_the_area_of_the_square_and_stays_in_the_image(monkeypatch):
    picture = IMAGES[:1, :16, :16]
    oblong = {"crop": 0.5, "aspect": 0.25}
    wide = drawn(monkeypatch, picture, oblong, CROP=1.0, ASPECT=1.0, SHIFT_X=1.0, SHIFT_Y=1.0)
    # as wide as the image and a quarter as high, and down as far as it goes
    np.testing.assert_allclose(wide, by_hand(picture, 16, scale=(1.0, 0.25), shift=(0.0, 0.375)), atol=2e-5)
    high = drawn(monkeypatch, picture, oblong, CROP=1.0, ASPECT=0.0, SHIFT_X=0.0)
    np.testing.assert_allclose(high, by_hand(picture, 16, scale=(0.25, 1.0), shift=(-0.375, 0.0)), atol=2e-5)
    between = drawn(monkeypatch, picture, oblong, CROP=1.0, ASPECT=0.75)  # twice as wide as high
    np.testing.assert_allclose(between, by_hand(picture, 16, scale=(0.5 * 2**0.5, 0.5 / 2**0.5)), atol=2e-5)
    square = drawn(monkeypatch, picture, oblong, CROP=1.0)
    np.testing.assert_allclose(square, by_hand(picture, 16, scale=0.5), atol=2e-5)
    largest = drawn(monkeypatch, picture, oblong, CROP=0.0, ASPECT=1.0)  # what would leave the image is made smaller
    np.testing.assert_allclose(largest, by_hand(picture, 16, scale=(1.0, 0.25)), atol=2e-5)
    turned = drawn(monkeypatch, picture, oblong | {"rotation_degrees": 30.0}, CROP=1.0, ASPECT=0.75, TURN=1.0)
    np.testing.assert_allclose(
        turned, by_hand(picture, 16, scale=(0.5 * 2**0.5, 0.5 / 2**0.5), degrees=30.0), atol=2e-5
    )


def test_ratios_of_oblong_crops_are_as_often_wide_as_high():
    u = views.random_numbers(3, np.arange(20_000), 0)
    motion, scale = views._motions(u, views.Policy(crop=0.4, aspect=0.75))
    wide, high = motion["xx"], motion["yy"]
    logs = np.log(wide / high) / np.log(4 / 3)
    assert -1 <= logs.min() < -0.99 and 0.99 < logs.max() <= 1 and abs(logs.mean()) < 0.02
    assert abs(logs.var() - 1 / 3) < 0.01  # uniform
    assert max(wide.max(), high.max()) < 1 + 1e-12
    np.testing.assert_allclose(wide * high, scale**2)
    asked = 1 - 0.6 * u[:, CROP]
    fits = asked * np.sqrt(np.maximum(wide / high, high / wide)) <= 1
    assert fits.mean() > 0.8 and (scale == asked)[fits].mean() > 0.999


# --------------------------------------------------------------------------------- TrivialAugment, against torchvision


def changed(monkeypatch, images, name, level, sign=1, size=None):
    """``images`` after one operation of TrivialAugment at ``level`` of 0 to 30."""
    return drawn(
        monkeypatch, images, {"policy": "trivialaugment"}, size=size,
        OPERATION=(views.OPERATIONS.index(name) + 0.5) / 14, STRENGTH=(level + 0.5) / 31, SIGN=0.75 if sign > 0 else 0.25,
    )  # fmt: skip


PLAIN = np.random.default_rng(4).integers(0, 256, (4, 28, 28, 3), dtype=np.uint8)
PALE = (90 + PLAIN // 4).astype(np.uint8)  # 90 to 153
FEW = (PLAIN // 64 * 20).astype(np.uint8)  # four levels
FLAT = np.full((1, 28, 28, 3), 77, np.uint8)
TWO = np.where(np.arange(28)[None, :, None, None] < 9, 10, 200).astype(np.uint8).repeat(28, 2).repeat(3, 3)
UNEQUAL = np.rint(PLAIN * np.linspace(0.2, 1.0, 12).reshape(4, 1, 1, 3)).astype(np.uint8)  # each channel as far up
PICTURES = {
    "plain": PLAIN,
    "unequal": UNEQUAL,
    "pale": PALE,
    "few levels": FEW,
    "flat": FLAT,
    "two levels": TWO,
    "two of each": TWO // np.array([1, 2, 3], np.uint8),
    "grey": PLAIN[..., :1],
}


def torchvisions(images, name, level, sign, bytes_first):
    """The same by torchvision, on floats or on uint8."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    x = x if bytes_first else x.double() / 255
    much = level / 30
    out = {
        "identity": lambda: x,
        "brightness": lambda: reference.adjust_brightness(x, 1 + sign * 0.99 * much),
        "color": lambda: reference.adjust_saturation(x, 1 + sign * 0.99 * much),
        "contrast": lambda: torch.cat([reference.adjust_contrast(one[None], 1 + sign * 0.99 * much) for one in x]),
        "sharpness": lambda: reference.adjust_sharpness(x, 1 + sign * 0.99 * much),
        "posterize": lambda: reference.posterize(x, round(8 - 6 * much)),
        "solarize": lambda: reference.solarize(x, 255.0 * (30 - level) / 30),  # its own linspace rounds
        "autocontrast": lambda: reference.autocontrast(x),
        "equalize": lambda: reference.equalize(x),
    }[name]()
    return out.permute(0, 2, 3, 1).double().numpy() / (255.0 if bytes_first else 1.0)


@pytest.mark.parametrize("kind", PICTURES)
@pytest.mark.parametrize(
    "name", [name for name in views.OPERATIONS if not name.startswith(("shear", "translate", "rotate"))]
)
def test_operations_on_pixels_are_torchvisions(monkeypatch, name, kind):
    images = PICTURES[kind]
    in_8_bits = name in ("posterize", "solarize", "equalize")
    for level, sign in ((0, 1), (7, -1), (15, 1), (16, 1), (23, -1), (30, 1), (30, -1)):
        found = changed(monkeypatch, images, name, level, sign)
        expected = torchvisions(images, name, level, sign, in_8_bits)
        # torchvision's luma has 0.2989 where ITU-R BT.601 has 0.299
        np.testing.assert_allclose(found, expected, atol=2e-4 if name in ("color", "contrast") else 2e-5)


@pytest.mark.parametrize("name", ["shear_x", "shear_y", "translate_x", "translate_y", "rotate"])
def test_operations_that_move_are_torchvisions_where_both_look_at_the_image(monkeypatch, name):
    x = torch.from_numpy(PLAIN).permute(0, 3, 1, 2).double() / 255
    for level, sign in ((0, 1), (15, 1), (15, -1), (30, 1), (30, -1)):
        much = sign * level / 30

        def moved(image, much=much):
            how = {"interpolation": InterpolationMode.BILINEAR, "fill": 0.0}
            if name == "rotate":
                return reference.rotate(image, 135 * much, **how)
            shear, translate = [0.0, 0.0], [0, 0]
            axis = 0 if name.endswith("x") else 1
            if name.startswith("shear"):
                shear[axis] = float(np.rad2deg(np.arctan(0.99 * much)))
            else:
                translate[axis] = round(28 * much / 7)
            corner = {"center": [0.0, 0.0]} if name.startswith("shear") else {}
            return reference.affine(image, angle=0.0, translate=translate, scale=1.0, shear=shear, **how, **corner)

        inside = (moved(torch.ones_like(x)) > 0.9999).permute(0, 2, 3, 1).numpy()
        assert inside.mean() > 0.4
        found = changed(monkeypatch, PLAIN, name, level, sign)
        np.testing.assert_allclose(found[inside], moved(x).permute(0, 2, 3, 1).numpy()[inside], atol=1e-4)


def test_an_operation_moves_the_crop_and_the_mirror_image(monkeypatch):
    """Crop, mirror, then the operation: a translation of the mirror image goes the other way in the image."""
    large = np.random.default_rng(3).integers(0, 256, (1, 28, 28, 1), dtype=np.uint8)
    policy = {"crop": 0.5, "flip": True, "policy": "trivialaugment"}
    for number, side, rows, columns in (("translate_x", 1, 10, 5 + 2), ("translate_y", -1, 10 + 2, 5)):
        out = drawn(
            monkeypatch, large, policy, size=14, CROP=1.0, MIRROR=0.0, SIGN=0.75 if side > 0 else 0.25, STRENGTH=0.99,
            SHIFT_X=5 / 14, SHIFT_Y=10 / 14, OPERATION=(views.OPERATIONS.index(number) + 0.5) / 14,
        )  # fmt: skip
        crop = large[0, rows : rows + 14, columns : columns + 14] / 255.0  # moved by two pixels of 14
        np.testing.assert_allclose(out[0], crop[:, ::-1], atol=2e-5)


def test_trivialaugment_draws_every_operation_and_strength_alike():
    u = views.random_numbers(1, np.arange(40_000), 0)
    operation, strength = views._operations(u)
    assert np.bincount(operation, minlength=14).min() > 2_600 and operation.max() == 13  # 2,857 each
    levels = np.bincount(np.rint(30 * np.abs(strength)).astype(int), minlength=31)
    assert levels.min() > 1_100 and len(levels) == 31  # 1,290 each
    assert abs((strength > 0).sum() - (strength < 0).sum()) < 800
    assert abs(np.corrcoef(operation, strength)[0, 1]) < 0.02


def test_operations_in_one_batch_are_those_of_each_image():
    """Other images of the batch have other operations, and erasing comes after them all."""
    policy = views.Policy(policy="trivialaugment", erase=1.0)
    many = np.random.default_rng(5).integers(0, 256, (200, 8, 8, 3), dtype=np.uint8)
    found = views.draw(many, np.arange(200), 0, size=8, seed=0, policy=policy)
    u = views.random_numbers(0, np.arange(200), 0)
    assert len(np.unique(np.floor(14 * u[:, OPERATION]))) == 14
    assert (found == 0.5).all(dim=1).sum(dim=(1, 2)).min() >= 4  # the grey square is grey
    for number in (0, 99, 199):
        alone = views.draw(many[number : number + 1], np.array([number]), 0, size=8, seed=0, policy=policy)
        assert torch.equal(alone[0], found[number])


def test_an_unknown_policy_is_named():
    with pytest.raises(ValueError, match="policy: unknown 'randaugment'. Choose one of: trivialaugment, None"):
        views.Policy(policy="randaugment")


def triangle(image, size):
    """A reduction with a triangle as wide as two new pixels, in float64, one side after the other."""
    side = len(image)
    factor = side / size
    weights = np.zeros((size, side))
    for new in range(size):
        for old in range(side):
            weights[new, old] = max(0.0, 1.0 - abs((old + 0.5) - (new + 0.5) * factor) / factor)
    weights /= weights.sum(1, keepdims=True)
    return np.einsum("ri,cj,ijk->rck", weights, weights, image)


def by_hand(images, size, *, scale=1.0, degrees=0.0, mirror=1.0, shift=(0.0, 0.0)):
    """Where each pixel of the view comes from, in float64, pixel by pixel; ``shift`` in sides (right, down)."""
    side = images.shape[1]
    wide, high = scale if isinstance(scale, tuple) else (scale, scale)
    angle = degrees * np.pi / 180.0
    out = np.zeros((len(images), size, size, images.shape[3]))
    for row in range(size):
        for column in range(size):
            right, down = (column + 0.5) / size - 0.5, (row + 0.5) / size - 0.5
            right *= mirror
            right, down = wide * right, high * down
            x = np.cos(angle) * right - np.sin(angle) * down + shift[0] + 0.5
            y = np.sin(angle) * right + np.cos(angle) * down + shift[1] + 0.5
            x, y = (min(max(p * side - 0.5, 0.0), side - 1.0) for p in (x, y))
            left, top = min(int(x), side - 2), min(int(y), side - 2)
            a, b = x - left, y - top
            part = images[:, top : top + 2, left : left + 2] / 255.0
            out[:, row, column] = (
                (1 - a) * (1 - b) * part[:, 0, 0] + a * (1 - b) * part[:, 0, 1]
                + (1 - a) * b * part[:, 1, 0] + a * b * part[:, 1, 1]
            )  # fmt: skip
    return out


@pytest.mark.parametrize("size", [20, 27])
def test_motions_together_are_what_their_numbers_say(size):
    policy = views.Policy(crop=0.6, flip=True, rotation_degrees=25.0, translation=0.15)
    for number in range(12):
        u = views.random_numbers(5, INDEX[number : number + 1], 3)[0]
        signed = 2 * u - 1
        scale = 1 - 0.4 * u[CROP]
        room = (1 - scale) / 2
        expected = by_hand(
            IMAGES[number : number + 1],
            size,
            scale=scale,
            degrees=25.0 * signed[TURN],
            mirror=-1.0 if u[MIRROR] < 0.5 else 1.0,
            shift=(
                room * signed[SHIFT_X] + 0.15 * signed[MOVE_X],
                room * signed[SHIFT_Y] + 0.15 * signed[MOVE_Y],
            ),
        )
        found = draw([number], size=size, policy=policy).permute(0, 2, 3, 1).double().numpy()
        np.testing.assert_allclose(found, expected, atol=2e-5)


def test_stored_views_keep_their_meaning():
    """Another generator, or another order of its columns, would make every stored teacher signal wrong."""
    found = views.random_numbers(7, np.array([0, 3]), 2)
    assert found[:, 0].tolist() == [0.8836350087551216, 0.4412569237176588]
    assert found[:, 11].tolist() == [0.5873931166179163, 0.13715079813034514]
    assert found[:, 16].tolist() == [0.8477829550638813, 0.028012373028276194]


def test_preprocess_follows_the_written_formula():
    grey = IMAGES[..., :1]
    out = views.preprocess(grey, views.Preprocessing(20, mean=(0.5, 0.4, 0.3), std=(0.5, 0.25, 0.2)))
    expected = (grey.astype(np.float64) / 255 - np.array([0.5, 0.4, 0.3])) / np.array([0.5, 0.25, 0.2])
    np.testing.assert_allclose(out.numpy(), expected.transpose(0, 3, 1, 2), atol=1e-6)


def test_preprocessing_is_kept_as_json():
    sees = views.Preprocessing(20, mean=(0.5, 0.4, 0.3), std=(0.25, 0.5, 0.125))
    entry = {"image_size": 20, "channels": 3, "mean": [0.5, 0.4, 0.3], "std": [0.25, 0.5, 0.125]}
    assert sees.as_json() == entry and views.Preprocessing.from_json(entry) == sees
    assert views.Preprocessing.of(SimpleNamespace(**entry)) == sees and sees.shape == (3, 20, 20)


def test_images_are_laid_out_as_the_network_is():
    images = torch.rand(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    layers = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Conv2d(3, 4, 3))
    assert views.laid_out_for(layers, images).is_contiguous()
    layers.to(memory_format=torch.channels_last)
    found = views.laid_out_for(layers, images.contiguous())
    assert found.is_contiguous(memory_format=torch.channels_last) and not found.is_contiguous()
    assert torch.equal(found, images)
