"""What is cut is what belongs together, family by family; and what cannot be cut says so."""

import gc
import inspect
import weakref
from pathlib import Path

import pytest
import timm.models.maxxvit
import torch
import torch_pruning as tp
from torch import nn
from torchvision.models.regnet import BlockParams, RegNet
from torchvision.models.swin_transformer import PatchMerging, PatchMergingV2, SwinTransformer

from thinner import checks
from thinner.compress import architectures, pruning
from thinner.config import load_params
from thinner.measure.profiling import count_macs
from thinner.networks import models
from thinner.networks.spec import NetworkSpec

ROOT = Path(__file__).parents[2]


def cut(model, size, ratio, keep=()):
    return pruning.cut_share(model, torch.zeros(1, 3, size, size), ratio, criterion="l2", keep=keep)


def forward(model, size):
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval()(x)


def number(vector):
    """Give each channel its number, in a place that no criterion looks at."""
    with torch.no_grad():
        vector.copy_(torch.arange(float(len(vector))))


def numbers(vector):
    return [int(value) for value in vector]


# ------------------------------------------------------------------------------- cut together: checked by hand


@pytest.fixture
def swin():
    torch.manual_seed(0)
    return SwinTransformer([4, 4], 16, [1, 1], [2, 4], [4, 4], num_classes=5).eval()


def test_heads_of_a_swin_get_narrower_with_its_embedding(swin):
    number(swin.features[0][0].bias)
    attention = swin.features[1][0].attn
    smaller = cut(swin, 32, 0.5)
    kept = numbers(smaller.features[0][0].bias)
    assert len(kept) == 8
    assert sum(k < 8 for k in kept) == 4, "both heads lose the same number"
    rows = [16 * part + k for part in range(3) for k in kept]
    new = smaller.features[1][0].attn
    assert torch.equal(new.qkv.weight, attention.qkv.weight[rows][:, kept])
    assert torch.equal(new.qkv.bias, attention.qkv.bias[rows])
    assert torch.equal(new.proj.weight, attention.proj.weight[kept][:, kept])
    assert torch.equal(new.relative_position_bias_table, attention.relative_position_bias_table)


@pytest.mark.parametrize("merging", [PatchMerging, PatchMergingV2])
def test_patch_merging_loses_a_channel_of_each_of_its_four_neighbours(merging):
    torch.manual_seed(0)
    model = SwinTransformer([4, 4], 16, [1, 1], [2, 4], [4, 4], num_classes=5, downsample_layer=merging).eval()
    number(model.features[0][0].bias)
    number(model.features[3][0].norm1.bias)
    with torch.no_grad():
        model.features[2].norm.weight.normal_()
    smaller = cut(model, 32, 0.5)
    kept, out = numbers(smaller.features[0][0].bias), numbers(smaller.features[3][0].norm1.bias)
    columns = [16 * part + k for part in range(4) for k in kept]
    old, new = model.features[2], smaller.features[2]
    assert torch.equal(new.reduction.weight, old.reduction.weight[out][:, columns])
    assert torch.equal(new.norm.weight, old.norm.weight[columns if merging is PatchMerging else out])
    assert new.dim == 8


# -------------------------------------------------------------- channels that do nothing: the function is the same


def test_a_shufflenet_without_its_dead_channels_is_the_same_function():
    torch.manual_seed(0)
    model = models.create(NetworkSpec("torchvision:shufflenet_v2_x0_5", 5, 3)).eval()
    for stage in (model.stage2, model.stage3, model.stage4):
        for block in stage:
            first, norm, _, depthwise, norm2, last = block.branch2[:6]
            dead = torch.randperm(first.out_channels)[: first.out_channels // 4]
            with torch.no_grad():
                for layer in (first, depthwise, norm, norm2):
                    layer.weight[dead] = 0
                norm.bias[dead] = norm2.bias[dead] = 0
                last.weight[:, dead] = 0
    smaller = cut(model, 64, 0.25, keep=["^conv"])
    assert smaller.stage2[1].branch2[0].out_channels == 18
    assert smaller.stage2[1].branch2[5].out_channels == 24, "the width of the stages stays"
    torch.testing.assert_close(forward(smaller, 64), forward(model, 64))


class Attentive(nn.Module):
    """A patch embedding, one attention of timm's, a classifier."""

    def __init__(self, attention, flat):
        super().__init__()
        self.embed, self.attention, self.fc = nn.Conv2d(3, 16, 8, 8), attention, nn.Linear(16, 5)
        self.flat = flat

    def forward(self, x):
        x = self.embed(x).permute(0, 2, 3, 1)
        x = self.attention(x.flatten(1, 2) if self.flat else x)
        return self.fc(x.mean(1) if self.flat else x.mean((1, 2)))


@pytest.mark.parametrize(
    ("attention", "flat", "by_head"),
    [
        (lambda: timm.layers.attention.Attention(16, 4, qkv_bias=True), True, False),
        (lambda: timm.models.swin_transformer.WindowAttention(16, 4, window_size=4), True, False),
        (lambda: timm.models.maxxvit.AttentionCl(16, dim_head=4), False, True),
    ],
    ids=["vit", "swin", "maxvit"],
)
def test_heads_without_their_dead_channels_are_the_same_function(attention, flat, by_head):
    torch.manual_seed(0)
    model = Attentive(attention(), flat).eval()
    layer, dead = model.attention, [2, 6, 10, 14]  # the third of the four channels of each head
    with torch.no_grad():
        for i in dead:
            for part in range(3):
                row = (i // 4) * 12 + part * 4 + i % 4 if by_head else part * 16 + i
                layer.qkv.weight[row] = layer.qkv.bias[row] = 0
        layer.proj.weight[:, dead] = 0
    smaller = cut(model, 32, 0.25, keep=["embed", r"proj$"])
    assert smaller.attention.qkv.out_features == 36
    assert smaller.attention.proj.in_features == 12
    # the dot product of queries and keys is divided by the root of the width of a head, which is 3 now and was 4
    with torch.no_grad():
        for i in range(16):
            row = (i // 4) * 12 + i % 4 if by_head else i
            layer.qkv.weight[row] *= (4 / 3) ** 0.5
            layer.qkv.bias[row] *= (4 / 3) ** 0.5
    torch.testing.assert_close(forward(smaller, 32), forward(model, 32))
    smaller.attention.fused_attn = not smaller.attention.fused_attn  # timm's two ways to compute it
    torch.testing.assert_close(forward(smaller, 32), forward(model, 32))


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize(("round_to", "narrowest"), [(1, 1), (8, 8), (16, 16)])
def test_heads_get_narrower_with_the_share_and_are_never_whole_again(scope, round_to, narrowest):
    torch.manual_seed(0)
    model = timm.models.VisionTransformer(
        img_size=32, patch_size=16, embed_dim=96, depth=2, num_heads=3, num_classes=5
    ).eval()
    widths, sizes = [], []
    for share in (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98):
        smaller = pruning.cut_share(
            model, torch.zeros(1, 3, 32, 32), share, criterion="l2", scope=scope, round_to=round_to
        )
        assert smaller.blocks[0].attn.num_heads == 3
        assert smaller.patch_embed.proj.out_channels % round_to == 0
        widths.append(smaller.blocks[0].attn.head_dim)
        sizes.append(count_macs(smaller, (3, 32, 32)))
    assert widths == sorted(widths, reverse=True)
    assert sizes == sorted(sizes, reverse=True)
    assert widths[0] > narrowest == widths[-1]
    assert all(3 * width % round_to == 0 for width in widths)


@pytest.mark.parametrize("round_to", [1, 8, 16])
def test_grouped_stages_of_a_regnet_shrink_with_the_share(round_to):
    torch.manual_seed(0)
    parameters = BlockParams.from_init_params(depth=4, w_0=24, w_a=24.0, w_m=2.2, group_width=8)
    model = RegNet(parameters, num_classes=5).eval()
    sizes = []
    for share in (0.1, 0.5, 0.8, 0.98):
        smaller = pruning.cut_share(model, torch.zeros(1, 3, 32, 32), share, criterion="l2", round_to=round_to)
        sizes.append(count_macs(smaller, (3, 32, 32)))
    assert sizes == sorted(sizes, reverse=True)
    before, after = (
        [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.groups > 1] for net in (model, smaller)
    )
    assert all(now.out_channels <= was.out_channels / 2 for was, now in zip(before, after, strict=True))


def test_embeddings_with_class_tokens_are_cut_too():
    torch.manual_seed(0)
    network = NetworkSpec("timm:deit_tiny_patch16_224", 5, 3)
    model = models.create(network).eval()
    number(model.patch_embed.proj.bias)
    number(model.cls_token[0, 0])
    smaller = cut(model, 224, 0.5)
    kept = numbers(smaller.patch_embed.proj.bias)
    assert len(kept) == 96
    assert numbers(smaller.cls_token[0, 0]) == kept
    assert torch.equal(smaller.pos_embed, model.pos_embed[:, :, kept])
    assert smaller.blocks[0].attn.head_dim == 32, "half of each head"


# ------------------------------------------------------------------------------------- nothing is left behind


def test_the_stand_ins_are_gone_afterwards(swin):
    names = list(swin.state_dict())
    smaller = cut(swin, 32, 0.5)
    assert list(smaller.state_dict()) == names
    assert not any("forward" in vars(m) for m in smaller.modules())
    assert type(smaller.features[1][0].attn.qkv) is nn.Linear
    assert set(vars(smaller.features[1][0].attn.qkv)) == set(vars(swin.features[1][0].attn.qkv))


def test_a_network_that_was_cut_is_not_kept_in_memory():
    # Torch-Pruning's default dictionaries would hold every layer with groups or heads that was ever pruned
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, groups=4), nn.Flatten(), nn.Linear(16 * 16, 5))
    smaller = weakref.ref(cut(model, 8, 0.25))
    gc.collect()
    assert smaller() is None
    defaults = inspect.signature(tp.pruner.BasePruner).parameters
    assert defaults["out_channel_groups"].default == defaults["in_channel_groups"].default == {}


# --------------------------------------------------------------------------------------------- what cannot be


class Stubborn(nn.Module):
    """Reads a width that it wrote down, which nobody knows of."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc, self.width = nn.Conv2d(3, 8, 3), nn.Linear(8, 5), 8

    def forward(self, x):
        x = self.conv(x)
        return self.fc(x.reshape(len(x), self.width, -1).mean(2))


def test_a_network_that_would_not_run_is_refused_with_the_reason():
    with pytest.raises(
        architectures.ArchitectureError, match=r"'Stubborn' cannot be pruned: it does not run after a cut"
    ):
        cut(Stubborn(), 8, 0.5)


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 5)

    def forward(self, x):
        return self.fc(x.mean((2, 3)).detach().numpy() @ x)


def test_a_network_that_cannot_be_traced_is_refused_with_the_reason():
    with pytest.raises(architectures.ArchitectureError, match=r"'Untraceable' cannot be pruned: .*docs/networks\.md"):
        cut(Untraceable(), 8, 0.5)


def test_channels_that_multiply_are_stopped_before_the_memory_is_full(monkeypatch):
    monkeypatch.setattr(architectures, "_MOST_NUMBERS", 287)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 5))  # 288 numbers after the flattening
    original = tp.dependency.index_mapping._FlattenIndexMapping.__call__
    with pytest.raises(architectures.ArchitectureError, match="a reshape reads as a flattening of channels"):
        cut(model, 8, 0.5)
    assert tp.dependency.index_mapping._FlattenIndexMapping.__call__ is original
    monkeypatch.setattr(architectures, "_MOST_NUMBERS", 288)
    assert cut(model, 8, 0.5)[2].in_features == 4 * 36


def test_a_family_that_cannot_be_pruned_is_refused_by_name_before_anything_is_trained():
    params = load_params(ROOT / "params.yaml")
    other = {"network": "timm:swinv2_cr_tiny_224", "width": None, "stem_stride": None, "image_size": 224}
    student = params.student.model_copy(update={**other, "mean": (0.5,) * 3, "std": (0.5,) * 3})
    found = list(checks.deep(params.model_copy(update={"student": student})))
    assert any(
        line.startswith(
            "student.network: 'timm:swinv2_cr_tiny_224': 'SwinTransformerV2Cr' cannot be pruned: its blocks"
        )
        for line in found
    ), found
