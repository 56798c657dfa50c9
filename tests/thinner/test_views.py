"""Views are pure functions of (seed, image number, view number)."""

import multiprocessing

import numpy as np
import pytest
import torch

from thinner import views

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
