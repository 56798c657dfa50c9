"""measure/outputs.py: features are what the classifier makes its logits of."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from thinner.measure.outputs import outputs
from thinner.predict import Candidate

SPEC: dict[str, Any] = {
    "classes": ["a", "b", "c"],
    "preprocessing": {"image_size": 8, "channels": 1, "mean": [0.5], "std": [0.25]},
}
IMAGES = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 1), np.uint8)


def candidate(network: nn.Module, model: nn.Module | None) -> Candidate:
    def run(batch: Any) -> Any:
        with torch.inference_mode():
            return network(batch)

    return Candidate("pytorch", "cpu", SPEC, lambda x: x, run, lambda logits: logits.numpy(), model)


def by_hand(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy((images.astype(np.float32) / 255 - 0.5) / 0.25).permute(0, 3, 1, 2)


def test_logits_and_features_are_those_of_one_pass_whatever_the_batches() -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    head = nn.Linear(5, 3)
    network = nn.Sequential(body, head).eval()
    told: list[int] = []
    found = outputs(candidate(network, network), [IMAGES[:4], IMAGES[4:4], IMAGES[4:]], told.append)
    with torch.inference_mode():
        features = body(by_hand(IMAGES))
        np.testing.assert_allclose(found.features, features.numpy(), atol=1e-5)
        np.testing.assert_allclose(found.logits, head(features).numpy(), atol=1e-5)
    assert told == [4, 7]
    assert not head._forward_pre_hooks


def test_of_a_convolutional_classifier_features_are_the_mean_over_the_plane() -> None:
    torch.manual_seed(0)
    body, head = nn.Conv2d(1, 5, 3), nn.Conv2d(5, 3, 1)
    network = nn.Sequential(body, head, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    found = outputs(candidate(network, network), [IMAGES])
    with torch.inference_mode():
        np.testing.assert_allclose(found.features, body(by_hand(IMAGES)).mean((2, 3)).numpy(), atol=1e-5)


def test_of_an_export_the_logits_stand_in_and_no_pictures_are_none() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval()
    found = outputs(candidate(network, None), [IMAGES])
    np.testing.assert_array_equal(found.features, found.logits)
    assert found.logits.shape == (7, 3)
    assert outputs(candidate(network, None), []).logits.shape == (0, 3)


def test_the_network_is_left_as_it_was_also_where_a_picture_breaks_it() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval()
    with pytest.raises(RuntimeError):
        outputs(candidate(nn.Sequential(nn.Flatten(), nn.Linear(9, 3)), network), [IMAGES])
    assert not network[1]._forward_pre_hooks
