"""DINOv2 and CLIP towers by timm's names: at another image size, from a file of weights as they are published."""

from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
import yaml

from thinner import checks
from thinner.data import views
from thinner.networks import checkpoint, models, weights
from thinner.networks.spec import NetworkSpec
from thinner.params import Params
from thinner.ship import model_card

GOOD = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text())
DINO, CLIP = "timm:vit_small_patch14_dinov2.lvd142m", "timm:vit_base_patch32_clip_224.openai"
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def network(name: str, size: int) -> dict[str, object]:
    return NetworkSpec(name, 10, 3, image_size=models.sized(name, size))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """A file as timm publishes it for DINOv2: 518 px, no head; the numbers are random."""
    torch.manual_seed(1)
    tensors = timm.create_model(DINO.removeprefix("timm:"), pretrained=False).state_dict()
    path = tmp_path_factory.mktemp("weights") / "dino.pth"
    torch.save(tensors, path)
    return path, tensors


def test_a_tower_is_filled_and_its_table_of_positions_resized(published):
    path, tensors = published
    model = models.create(network(DINO, 56))
    start = models.load_pretrained(model, network(DINO, 56), str(path))
    assert start.notes == ("1 tensors were resized as timm does: pos_embed", "learnt anew: the head head")
    found = model.state_dict()
    assert all(torch.equal(found[name], t) for name, t in tensors.items() if name != "pos_embed")
    # 37 x 37 patches of 14 px become 4 x 4; the class token's position stays
    grid = tensors["pos_embed"][:, 1:].reshape(1, 37, 37, 384).permute(0, 3, 1, 2)
    small = F.interpolate(grid, size=(4, 4), mode="bicubic", antialias=True).permute(0, 2, 3, 1).reshape(1, 16, 384)
    torch.testing.assert_close(found["pos_embed"], torch.cat([tensors["pos_embed"][:, :1], small], 1))
    with torch.no_grad():
        assert model.eval()(torch.zeros(2, 3, 56, 56)).shape == (2, 10)


def test_at_its_own_size_nothing_is_resized_and_the_description_is_as_before(published):
    assert network(DINO, 518) == NetworkSpec(DINO, 10, 3)
    fit = models.fit_weights(models.skeleton(network(DINO, 518)), network(DINO, 518), weights.Given("x", published[1]))
    assert not [note for note in fit.notes if "resized" in note]


def test_a_clip_tower_drops_the_head_of_its_512_numbers():
    whole = timm.create_model(CLIP.removeprefix("timm:"), pretrained=False, num_classes=512, device="meta")
    given = weights.Given(CLIP, dict(whole.state_dict()))
    fit = models.fit_weights(models.skeleton(network(CLIP, 64)), network(CLIP, 64), given)
    assert fit.fresh == ("head",)
    assert tuple(fit.tensors["pos_embed"].shape) == (1, 5, 768)  # 2 x 2 patches of 32 px, and the class


def test_a_checkpoint_builds_the_tower_of_its_own_size(tmp_path):
    small = network("timm:vit_tiny_patch16_224", 32)
    model = models.create(small).eval()
    sees = views.Preprocessing(32, mean=(0.5,) * 3, std=(0.5,) * 3)
    spec = {"network": small.as_json(), "classes": [str(n) for n in range(10)], "preprocessing": sees.as_json(), "parents": {},
            "data_sha256": "", "stage": "finetune"}  # fmt: skip
    checkpoint.save(tmp_path, model, spec)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(checkpoint.load(tmp_path).model(x), model(x))


@pytest.mark.parametrize(
    ("name", "size", "entry"),
    [
        (DINO, 56, 56),
        ("timm:hf-hub:timm/vit_small_patch14_dinov2.lvd142m", 56, 56),
        ("timm:hf-hub:somebody/else", 56, None),
        ("timm:swin_tiny_patch4_window7_224", 64, 64),
        ("timm:tf_efficientnet_lite0", 64, None),
        ("torchvision:vit_b_16", 64, None),
        ("resnet8", 64, None),
    ],
)
def test_only_networks_that_are_built_for_one_size_are_told_theirs(name, size, entry):
    assert models.sized(name, size) == entry


def params(**changes) -> Params:
    raw = yaml.safe_load(yaml.safe_dump(GOOD))
    raw["finetune"] |= {"network": DINO, "weights": None, "image_size": 56, "mean": IMAGENET[0], "std": IMAGENET[1]}
    raw["finetune"] |= changes
    return Params.model_validate(raw)


def of_finetune(given: Params) -> list[str]:
    return [line for line in checks.deep(given) if line.startswith("finetune")]


def test_the_check_takes_a_tower_and_the_stages_build_it_alike():
    given = params()
    assert of_finetune(given) == []
    assert models.describe(given.finetune, 10) == network(DINO, 56)


def test_a_size_that_is_no_whole_number_of_patches_is_refused():
    (line,) = of_finetune(params(image_size=64))
    assert line == (
        f"finetune.image_size: 64 px are no whole number of the 14 px patches of '{DINO}', which would not see the "
        "rest. Set 56 or 70"
    )
    (small,) = of_finetune(params(image_size=8))
    assert small.endswith("Set 14")


@pytest.mark.parametrize(("name", "mean"), [(DINO, IMAGENET[0]), (CLIP, [0.481, 0.458, 0.408])])
def test_mean_and_std_are_compared_with_those_of_timms_weights(published, name, mean):
    wrong = views.Preprocessing(56, mean=(0.5,) * 3, std=(0.5,) * 3)
    said = list(weights.remarks(name, str(published[0]), wrong))
    assert any(line.endswith(f"Unless that is meant: mean: {mean}") for line in said)
    assert len(said) == 2  # mean and std; who cut the images of a file is not known
    assert any("image_size: 56" in line for line in weights.remarks(name, "timm", wrong))


@pytest.mark.parametrize(
    ("given", "name", "licence"),
    [
        ("timm", DINO, "apache-2.0 (as timm says; of the pictures it was pretrained on: not stated)"),
        ("timm", "timm:hf-hub:timm/vit_small_patch16_dinov3.lvd1689m", "dinov3-license (as timm says"),
        ("timm", "timm:hf-hub:somebody/else", "not stated"),
        ("data/weights/dino.pth", DINO, "not stated"),
    ],
)
def test_the_model_card_says_the_licence_that_timm_knows(given, name, licence):
    assert model_card.licence_of(given, name).startswith(licence)
