"""Views are pure functions of (seed, image number, view number)."""

import multiprocessing

import numpy as np
import pytest
import torch

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


@pytest.mark.parametrize("size", [16, 20, 33])
def test_a_view_does_not_depend_on_the_batch_size(size):
    whole = draw(np.arange(12), size=size)
    for parts in ([1] * 12, [5, 7], [3, 3, 6]):
        pieces = np.split(np.arange(12), np.cumsum(parts)[:-1])
        assert torch.equal(torch.cat([draw(piece, size=size) for piece in pieces]), whole)


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
    big, small = (views.draw(smooth, np.array([4]), 2, size=s, seed=0, policy=policy) for s in (64, 32))
    assert (torch.nn.functional.avg_pool2d(big, 2) - small).abs().mean() < 0.01


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
    angle = degrees * np.pi / 180.0
    out = np.zeros((len(images), size, size, images.shape[3]))
    for row in range(size):
        for column in range(size):
            right, down = (column + 0.5) / size - 0.5, (row + 0.5) / size - 0.5
            right *= mirror
            x = scale * (np.cos(angle) * right - np.sin(angle) * down) + shift[0] + 0.5
            y = scale * (np.sin(angle) * right + np.cos(angle) * down) + shift[1] + 0.5
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


def test_preprocess_follows_the_written_formula():
    grey = IMAGES[..., :1]
    out = views.preprocess(grey, {"image_size": 20, "mean": [0.5, 0.4, 0.3], "std": [0.5, 0.25, 0.2]})
    expected = (grey.astype(np.float64) / 255 - np.array([0.5, 0.4, 0.3])) / np.array([0.5, 0.25, 0.2])
    np.testing.assert_allclose(out.numpy(), expected.transpose(0, 3, 1, 2), atol=1e-6)


def test_preprocess_names_what_is_missing():
    with pytest.raises(TypeError, match="needs image_size"):
        views.preprocess(IMAGES, {"image_size": "20", "mean": [0.5], "std": [0.5]})
