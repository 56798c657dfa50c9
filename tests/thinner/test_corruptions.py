"""thinner.data.corruptions: strengths worked by hand, torchvision's blur and SciPy's cosine transform as oracles."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.fft import dctn, idctn
from torchvision.transforms.v2.functional import gaussian_blur

from thinner.data.corruptions import BLUR, CORRUPTIONS, JPEG, NOISE, SEVERITIES, corrupt

INDEX = np.arange(6)


def pictures(channels: int, side: int = 32) -> np.ndarray:
    """Coloured squares on a slope: something to blur and to compress."""
    rng = np.random.default_rng(0)
    images = np.tile(np.linspace(40, 120, side)[:, None, None], (6, 1, side, channels))
    for image in images:
        top, left = rng.integers(2, side // 2, 2)
        image[top : top + side // 3, left : left + side // 3] = rng.integers(0, 255, channels)
    return images.astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_higher_severity_is_further_from_the_picture(name: str, channels: int) -> None:
    images = pictures(channels)
    before = images.copy()
    errors = []
    for severity in SEVERITIES:
        corrupted = corrupt(images, INDEX, name, severity, seed=0)
        assert (corrupted.shape, corrupted.dtype) == (images.shape, np.uint8)
        errors.append(np.abs(corrupted.astype(float) - images).mean())
    assert 0 < errors[0] < errors[1] < errors[2]
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_batch_size_and_order_change_nothing(name: str) -> None:
    images = pictures(3)
    whole = corrupt(images, INDEX, name, 2, seed=0)
    for number in reversed(INDEX):
        alone = corrupt(images[number : number + 1], INDEX[number : number + 1], name, 2, seed=0)
        np.testing.assert_array_equal(alone[0], whole[number])


def test_noise_has_the_stated_spread_and_depends_on_seed_and_picture() -> None:
    grey = np.full((4, 64, 64, 1), 128, dtype=np.uint8)
    noisy = corrupt(grey, np.arange(4), "noise", 1, seed=0)
    assert noisy.astype(float).std() == pytest.approx(255 * NOISE[0], rel=0.02)
    assert noisy.astype(float).mean() == pytest.approx(128, abs=1)
    assert not np.array_equal(noisy[0], noisy[1])
    assert not np.array_equal(noisy, corrupt(grey, np.arange(4), "noise", 1, seed=1))


def test_blur_is_torchvisions() -> None:
    images = pictures(3, side=64)
    sigma = BLUR[1] * 64 / 32
    expected = gaussian_blur(torch.from_numpy(images).permute(0, 3, 1, 2), [15, 15], [sigma, sigma]).permute(0, 2, 3, 1)
    difference = np.abs(corrupt(images, INDEX, "blur", 2, seed=0).astype(int) - expected.numpy().astype(int))
    assert difference.max() <= 1  # a kernel that is cut off at 4 standard deviations, and rounding


def test_contrast_worked_by_hand() -> None:
    image = np.array([[0, 100], [100, 200]], dtype=np.uint8).reshape(1, 2, 2, 1)
    # the mean is 100: 0.4 of the distances -100, 0, 0, 100
    np.testing.assert_array_equal(corrupt(image, np.array([0]), "contrast", 1, 0).ravel(), [60, 100, 100, 140])


def test_jpeg_is_the_rounded_cosine_transform() -> None:
    image = pictures(1)[:1]
    # table K.1 of the standard (ITU-T T.81), first row: libjpeg scales it by 200 % - 2 * quality, or 5000 % / quality
    first_row = np.array([16, 11, 10, 16, 24, 40, 51, 61])
    buffer = io.BytesIO()
    Image.fromarray(image[0, ..., 0]).save(buffer, "JPEG", quality=JPEG[0])
    table = np.array(Image.open(buffer).quantization[0]).reshape(8, 8)
    np.testing.assert_array_equal(table[0], (first_row * (5000 // JPEG[0]) + 50) // 100)
    blocks = image[0, ..., 0].astype(float).reshape(4, 8, 4, 8).swapaxes(1, 2) - 128
    kept = (dctn(blocks, axes=(2, 3), norm="ortho") / table).round() * table
    expected = (idctn(kept, axes=(2, 3), norm="ortho") + 128).clip(0, 255).swapaxes(1, 2).reshape(32, 32)
    difference = np.abs(corrupt(image, np.array([0]), "jpeg", 1, 0)[0, ..., 0] - expected)
    assert difference.max() <= 2  # libjpeg's transform is in whole numbers


def test_unknown_severities_are_refused() -> None:
    with pytest.raises(ValueError, match="severity 4: choose one of 1, 2, 3"):
        corrupt(pictures(1), INDEX, "noise", 4, 0)
