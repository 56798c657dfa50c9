"""Cuts meet their target, keep what must be kept, and say when they cannot."""

import itertools
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from thinner.compress import pruning
from thinner.compress.criteria import CRITERIA, Criterion, Examples, score_channels
from thinner.compress.target import limit_of
from thinner.errors import UserError
from thinner.measure.profiling import count_macs, count_params
from thinner.networks import models
from thinner.networks.spec import NetworkSpec

NETWORK = NetworkSpec("resnet8", 10, 1, width=16, stem_stride=2)
EXAMPLE = torch.zeros(1, 1, 32, 32)


def network():
    torch.manual_seed(0)
    return models.create(NETWORK)


def macs(model):
    return count_macs(model, (1, 32, 32))


@pytest.mark.parametrize("scope", pruning.SCOPES)
@pytest.mark.parametrize("round_to", [1, 8])
@pytest.mark.parametrize("share", [0.8, 0.3])
def test_the_target_is_met_and_not_missed_by_much(scope, round_to, share):
    model = network()
    smaller, made = pruning.cut(
        model, EXAMPLE, macs=int(share * macs(model)), criterion="l2", scope=scope, round_to=round_to
    )
    assert macs(smaller) == made.macs_after <= share * made.macs_before
    assert made.params_after == count_params(smaller) < made.params_before
    if round_to == 1:
        assert made.macs_after > (share - 0.07) * made.macs_before
    assert smaller(torch.zeros(2, 1, 32, 32)).shape == (2, 10)


def test_the_source_is_left_as_it_was():
    model = network()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    pruning.cut(model, EXAMPLE, macs=macs(model) // 2, criterion="l2")
    assert all(t.equal(before[n]) for n, t in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_frozen_parts_stay_frozen_and_the_others_learn():
    model = network()
    frozen = models.freeze(model, 2)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    assert frozen and set(before.values()) == {True, False}
    smaller, _ = pruning.cut(model, EXAMPLE, macs=macs(model) // 2, criterion="l2")
    assert {name: p.requires_grad for name, p in smaller.named_parameters()} == before
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before


@pytest.mark.parametrize("scope", pruning.SCOPES)
@pytest.mark.parametrize("round_to", [1, 8])
def test_pruning_nothing_changes_no_bit(scope, round_to):
    model = network().eval()
    same = pruning._prune(model, EXAMPLE, 0.0, score_channels("l2", model), scope, round_to, ())
    assert same is not model
    assert all(t.equal(same.state_dict()[name]) for name, t in model.state_dict().items())
    x = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    assert same(x).equal(model(x))


def test_widths_are_multiples():
    model = network()
    smaller, _ = pruning.cut(model, EXAMPLE, macs=macs(model) // 2, criterion="l2", round_to=8)
    assert all(m.out_channels % 8 == 0 for m in smaller.modules() if isinstance(m, nn.Conv2d))


def test_layers_no_wider_than_the_multiple_may_be_halved_and_wider_ones_keep_to_it():
    model = network()  # 16, 32 and 64 wide
    smaller, _ = pruning.cut(model, EXAMPLE, macs=macs(model) // 2, criterion="l2", round_to=16)
    before = [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]
    after = [m.out_channels for m in smaller.modules() if isinstance(m, nn.Conv2d)]
    assert {now for was, now in zip(before, after, strict=True) if was == 16} == {8}
    assert all(now % 16 == 0 for was, now in zip(before, after, strict=True) if was > 16)


def test_what_one_cut_made_no_wider_than_the_multiple_the_next_may_halve_and_then_it_stays():
    model, widths = network(), []
    for _ in range(3):
        model = pruning.cut_share(model, EXAMPLE, 0.9, criterion="l2", round_to=16)
        widths.append([m.out_channels for m in model.stages[2].modules() if isinstance(m, nn.Conv2d)])
    assert widths == [[16, 16, 16], [8, 8, 8], [8, 8, 8]]  # from 64


def grouped(groups, width):
    """A convolution of ``groups`` groups, each ``width`` wide, and convolutions without groups around it."""
    channels = groups * width
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, channels, 1),
        nn.Conv2d(channels, channels, 3, padding=1, groups=groups),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, 48, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(48, 5),
    )


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize(
    ("groups", "width", "round_to", "smallest"),
    [
        (4, 16, 1, 4),  # one channel of each group
        (4, 16, 8, 8),  # a multiple of 8 that 4 groups share: 2 each
        (4, 16, 16, 16),
        (32, 4, 16, 32),  # the narrowest ResNeXt: 1 each, and 32 is a multiple already
        (3, 32, 16, 48),  # 3 groups share multiples of 48
        (3, 16, 16, 24),  # which is the layer's own width, so half of it
        (13, 8, 16, 52),  # 13 groups share multiples of 208, 104, 52
        (2, 8, 16, 8),  # half of 16, as without groups,
        (2, 4, 16, 8),  # and no less
    ],
)
def test_groups_keep_whole_multiples_and_never_grow_back(scope, groups, width, round_to, smallest):
    model, example = grouped(groups, width), torch.zeros(1, 3, 8, 8)
    widths, sizes = [], []
    for share in (0.1, 0.3, 0.5, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98):
        smaller = pruning.cut_share(model, example, share, criterion="l2", scope=scope, round_to=round_to)
        assert smaller[1].groups == groups
        widths.append((smaller[1].in_channels, smaller[1].out_channels))  # each by itself: other layers hang on them
        sizes.append(count_macs(smaller, (3, 8, 8)))
    assert all(column == sorted(column, reverse=True) for column in map(list, zip(*widths, strict=True)))
    assert sizes == sorted(sizes, reverse=True)
    assert {now for pair in widths for now in pair} <= {groups * width, *range(smallest, groups * width, smallest)}
    if scope == "layer":  # ranked globally, the best layer may keep more at the cost of the others
        assert widths[-1] == (smallest, smallest)
    target = int(1.1 * sizes[-1])
    _, made = pruning.cut(model, example, macs=target, criterion="l2", scope=scope, round_to=round_to)
    assert made.macs_after <= target


def test_kept_layers_keep_their_outputs():
    model = network()
    smaller, _ = pruning.cut(
        model, EXAMPLE, macs=int(0.7 * macs(model)), criterion="l2", keep=[r"^stages\.2\.0\.conv1$"]
    )
    assert smaller.get_submodule("stages.2.0.conv1").out_channels == 64


def test_the_channels_of_least_magnitude_go_by_hand():
    # one hidden layer; channel k has weight k+1, so half of the MACs means the channels 0 and 1 go
    model = nn.Sequential(nn.Conv2d(1, 4, 1, bias=False), nn.Flatten(), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.arange(1.0, 5.0).view(4, 1, 1, 1))
        model[2].weight.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]]))
    smaller, _ = pruning.cut(model, torch.zeros(1, 1, 1, 1), macs=6, criterion="l2")
    assert smaller[0].weight.flatten().tolist() == [3.0, 4.0]
    assert smaller[2].weight.tolist() == [[3.0, 4.0], [3.0, 4.0]]


@pytest.mark.parametrize("share", [0.7, 0.3])
def test_parameters_can_be_the_limit(share):
    model = network()
    allowed = int(share * count_params(model))
    smaller, made = pruning.cut(model, EXAMPLE, params=allowed, criterion="l2")
    assert 0.95 * allowed < count_params(smaller) == made.params_after <= allowed
    assert made.macs_after == macs(smaller) < made.macs_before


def test_a_latency_can_be_the_limit(monkeypatch):
    # a clock that says one microsecond per 1,000 MACs: what is asked of the network is then known exactly
    monkeypatch.setattr(
        pruning, "measure_latency", lambda calls, repeats: {n: np.full(6, ms_of(call)) for n, call in calls.items()}
    )

    def ms_of(call):
        (x,) = [c.cell_contents for c in call.__closure__ if isinstance(c.cell_contents, torch.Tensor)]
        (found,) = call.__defaults__
        assert x.shape[0] == 64
        return macs(found) / 1e6

    model, clock = network(), pruning.Clock(batch=64)
    smaller, _ = pruning.cut(model, EXAMPLE, latency_ms=0.6 * macs(model) / 1e6, clock=clock, criterion="l2")
    assert 0.55 * macs(model) < macs(smaller) <= 0.6 * macs(model)
    with pytest.raises(pruning.PruningError, match=r"0.001 ms of .* ms are asked for"):
        pruning.cut(model, EXAMPLE, latency_ms=0.001, clock=clock, criterion="l2")


def test_the_reach_of_a_latency_is_measured_by_the_clock(monkeypatch):
    monkeypatch.setattr(
        pruning,
        "measure_latency",
        lambda calls, repeats: {n: np.full(6, float(macs(call.__defaults__[0]))) for n, call in calls.items()},
    )
    found = pruning.reachable("latency_ms", network(), EXAMPLE, clock=pruning.Clock(batch=1), round_to=8)
    assert found == pruning.reachable("macs", network(), EXAMPLE, round_to=8)


def test_a_latency_is_the_upper_limit_of_its_median(monkeypatch):
    """Of 20 runs the median lies between the 6th and the 15th: 1 - 2 P(Binomial(20, 1/2) <= 5) = 95.9 %."""
    runs = np.random.default_rng(0).permutation(np.arange(1.0, 21.0))
    monkeypatch.setattr(pruning, "measure_latency", lambda calls, repeats: dict.fromkeys(calls, runs))
    assert pruning.size_of("latency_ms", network(), EXAMPLE, pruning.Clock(batch=1, repeats=20)) == 15.0


def test_a_latency_is_measured_in_milliseconds_of_a_whole_batch():
    class Slow(nn.Module):
        def forward(self, x):
            time.sleep(0.002 + 0.0001 * len(x))
            return x

    measured = pruning.size_of("latency_ms", Slow(), EXAMPLE, pruning.Clock(batch=80, repeats=6))
    assert 10 <= measured < 1000  # of all 80 images, in milliseconds; one alone takes 2.1
    with pytest.raises(pruning.PruningError, match="needs a clock"):
        pruning.size_of("latency_ms", Slow(), EXAMPLE)


def test_a_clock_runs_copies_in_eval_mode_on_one_thread_in_its_layout_of_memory(monkeypatch):
    seen = []

    class Looks(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name, self.conv = name, nn.Conv2d(2, 2, 3)

        def forward(self, x):
            last = torch.channels_last
            layouts = [t.is_contiguous(memory_format=last) for t in (x, self.conv.weight)]
            seen.append(
                (self.name, len(x), *layouts, self.training, torch.get_num_threads(), torch.is_inference_mode_enabled())
            )
            return x

    def once(calls, repeats):
        for call in calls.values():
            call()
        return {name: np.arange(1.0, repeats + 1) for name in calls}

    monkeypatch.setattr(pruning, "measure_latency", once)
    model, beside, example = Looks("it").train(), Looks("beside").train(), torch.zeros(1, 2, 4, 4)
    torch.set_num_threads(2)
    # of 20 runs the median lies between the 6th and the 15th
    assert pruning.size_of("latency_ms", model, example, pruning.Clock(3, repeats=20, beside=beside)) == 15
    assert [found[0] for found in seen] == ["it", "beside"]
    assert {found[1:] for found in seen} == {(3, True, True, False, 1, True)}
    assert torch.get_num_threads() == 2 and model.training and beside.training
    for network_ in (model, beside):  # the copies were changed
        assert network_.conv.training and not network_.conv.weight.is_contiguous(memory_format=torch.channels_last)
    seen.clear()
    pruning.size_of("latency_ms", model, example, pruning.Clock(1, torch.contiguous_format, repeats=20))
    assert seen == [("it", 1, False, False, False, 1, True)]


def test_sizes_by_hand():
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.Flatten(), nn.Linear(12, 2, bias=False))
    with torch.no_grad():
        model[2].weight[0, :5] = 0
    example = torch.zeros(7, 2, 2, 2)
    sizes = {unit: pruning.size_of(unit, model, example) for unit in ("macs", "params", "nonzero")}
    assert sizes == {"macs": 2 * 3 * 4 + 12 * 2, "params": 2 * 3 + 3 + 24, "nonzero": 2 * 3 + 3 + 24 - 5}


@pytest.mark.parametrize(
    ("parts", "width", "going", "round_to", "goes"),
    [
        (1, 16, 3, 1, 3),
        (1, 16, 5, 8, 8),  # 11 remain: 8 is the nearest multiple
        (1, 16, 3, 8, 0),  # 13 remain: 16 is
        (1, 16, 15, 8, 8),  # at least one multiple
        (1, 16, 16, 8, 8),
        (1, 12, 0, 8, 0),  # 12: round(1.5) is 2, and none grows
        (1, 8, 4, 8, 4),  # no wider than the multiple: halved
        (1, 8, 1, 8, 0),
        (1, 5, 4, 8, 1),  # 4, half of 8, of 5
        (1, 3, 2, 8, 0),  # narrower than half of it: it stays
        (4, 16, 9, 16, 8),  # 4 groups share multiples of 4: 7 remain, 8 are nearest
        (3, 16, 12, 16, 8),  # 3 groups share none of 16: half, 8 of each
        (6, 8, 7, 4, 6),  # multiples of 2 in each of 6 groups
        (1, 1, 1, 1, 0),  # one channel stays
        (1, 2, 1, 2, 1),  # half of 2 is 1
        (1, 3, 2, 3, 2),  # half of 3 is 1 as well
        (2, 3, 2, 6, 0),  # 2 groups share multiples of 3; one channel of each would be less than half of 6
    ],
)
def test_widths_are_rounded_by_hand(parts, width, going, round_to, goes):
    rounded = pruning._WholeMultiples._round_to(SimpleNamespace(_parts=parts), going, parts * width, round_to)
    assert rounded == goes


@pytest.mark.parametrize(
    ("unit", "schedule", "rounds", "cuts"),
    [("macs", "linear", 4, 4), ("params", "cubic", 3, 3), ("macs", "one_shot", 4, 1), ("latency_ms", "linear", 4, 1)],
)
def test_a_target_may_count_on_so_many_cuts_in_a_row(unit, schedule, rounds, cuts):
    assert pruning.cuts_in_a_row(unit, schedule, rounds) == cuts


def test_without_examples_what_needs_some_counts_as_l2_and_rounds_have_seeds_of_their_own(monkeypatch):
    seen, score = [], pruning.score_channels

    def spied(name, model, examples, seed):
        seen.append((name, examples, seed))
        return score(name, model, examples, seed)

    monkeypatch.setattr(pruning, "score_channels", spied)
    pruning.reachable("params", network(), EXAMPLE, criterion="taylor", seed=5, rounds=2, round_to=16)
    assert seen == [("l2", None, 5), ("l2", None, 6)]
    seen.clear()
    examples = Examples([(EXAMPLE, torch.zeros(1, dtype=torch.int64))], nn.functional.cross_entropy)
    pruning.reachable("params", network(), EXAMPLE, criterion="taylor", examples=examples)
    assert seen == [("taylor", examples, 0)]


def test_what_a_cut_did_is_counted_of_the_whole_network():
    model = nn.Sequential(nn.Conv2d(1, 4, 1, bias=False), nn.Flatten(), nn.Linear(4, 2, bias=False))
    _, made = pruning.cut(model, torch.zeros(1, 1, 1, 1), params=6, criterion="l2")
    assert made == pruning.Cut(macs_before=12, macs_after=6, params_before=12, params_after=6)
    with pytest.raises(pruning.PruningError) as caught:
        pruning.cut(model, torch.zeros(1, 1, 1, 1), params=2, criterion="l2")
    assert str(caught.value) == (
        "prune.target: 2 parameters of 12 parameters are asked for; with round_to 1 the smallest that can be reached "
        "is 3 parameters (25%). Ask for 25% to 100%, or lower prune.round_to"
    )


def test_an_out_of_reach_target_names_the_reach_and_what_stands_in_its_way():
    model = network()
    with pytest.raises(
        pruning.PruningError,
        match=r"1,000 MACs of [\d,]+ MACs are asked for; with round_to 8, with prune.keep: \['stages'\] the smallest "
        r"that can be reached is [\d,]+ MACs \(\d+%\). Ask for \d+% to 100%, or lower prune.round_to or prune.keep",
    ):
        pruning.cut(model, EXAMPLE, macs=1000, criterion="l2", round_to=8, keep=["stages"])


@pytest.mark.parametrize(
    ("scope", "criterion", "round_to"),
    [("global", "l2", 8), ("isomorphic", "random", 1), ("isomorphic", "taylor", 1), ("global", "random", 1)],
)
def test_what_is_reachable_is_reached_and_no_less(scope, criterion, round_to):
    model = network()
    images = torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    how = {
        "criterion": criterion,
        "scope": scope,
        "round_to": round_to,
        "examples": Examples([(images, torch.arange(4))], nn.functional.cross_entropy),
        "seed": 3,
    }
    now, fewest = pruning.reachable("macs", model, EXAMPLE, **how)
    assert now == macs(model)
    smaller, _ = pruning.cut(model, EXAMPLE, macs=int(fewest), **how)
    assert macs(smaller) == fewest
    with pytest.raises(pruning.PruningError, match="smallest that can be reached"):
        pruning.cut(model, EXAMPLE, macs=int(fewest) - 1, **how)
    if round_to == 1:
        assert fewest != pruning.reachable("macs", model, EXAMPLE, scope=scope)[1], "scores decide how far a cut goes"


def test_a_cut_that_removes_nothing_is_an_error():
    model = network()
    with pytest.raises(pruning.PruningError, match="nothing to prune: the network has .* MACs and up to"):
        pruning.cut(model, EXAMPLE, macs=macs(model), criterion="l2")
    with pytest.raises(pruning.PruningError, match=r"with prune.keep: \['.*'\] the smallest .* \(100%\)"):
        pruning.cut(model, EXAMPLE, macs=macs(model) // 2, criterion="l2", keep=[".*"])


def test_one_limit_is_wanted():
    with pytest.raises(pruning.PruningError, match="give one of macs, params, latency_ms; there are 2"):
        pruning.cut(network(), EXAMPLE, macs=1, params=1, criterion="l2")


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_meets_the_target(criterion):
    model = network()
    images = torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    examples = Examples([(images, torch.arange(4))], nn.functional.cross_entropy)
    smaller, made = pruning.cut(model, EXAMPLE, macs=macs(model) // 2, criterion=criterion, examples=examples)
    assert 0.4 * made.macs_before < macs(smaller) <= made.macs_before / 2
    assert smaller(EXAMPLE).shape == (1, 10)


@pytest.mark.parametrize(("scope", "round_to"), [("global", 1), ("global", 8), ("layer", 1), ("isomorphic", 1)])
def test_a_constant_criterion_takes_the_same_share_of_every_layer(monkeypatch, scope, round_to):
    def constant(model, examples, seed):
        return {key: torch.ones_like(vector) for key, vector in CRITERIA["l2"].channels(model, None, 0).items()}

    monkeypatch.setitem(CRITERIA, "constant", Criterion(constant, None, "", ""))
    model = network()
    smaller, _ = pruning.cut(
        model, EXAMPLE, macs=macs(model) // 2, criterion="constant", scope=scope, round_to=round_to
    )
    before = [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]
    after = [m.out_channels for m in smaller.modules() if isinstance(m, nn.Conv2d)]
    shares = [now / was for now, was in zip(after, before, strict=True)]
    assert max(shares) - min(shares) <= (2 / 16 if round_to == 1 else 8 / 16)
    assert max(shares) < 1 or round_to == 8
    # of a layer's equal channels the first go
    assert smaller.stem[0].weight.equal(model.stem[0].weight[-after[0] :])


def test_channels_of_later_rounds_are_among_those_of_earlier_ones():
    model = network()
    kept = [{filter_.numpy().tobytes() for filter_ in model.stem[0].weight.detach()}]
    for share in (0.7, 0.5, 0.3):
        model, _ = pruning.cut(model, EXAMPLE, macs=int(share * macs(network())), criterion="l1")
        kept.append({filter_.numpy().tobytes() for filter_ in model.stem[0].weight.detach()})
    assert all(later <= earlier for earlier, later in itertools.pairwise(kept))
    assert len(kept[-1]) < len(kept[0])


def test_rewound_weights_are_of_the_channels_that_the_trained_network_chose():
    model, early = network(), network()
    with torch.no_grad():
        for number, parameter in enumerate(early.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    trained, _ = pruning.cut(model, EXAMPLE, macs=macs(model) // 2, criterion="l2")
    rewound, made = pruning.cut(model, EXAMPLE, macs=macs(model) // 2, criterion="l2", rewound=early)
    assert made.macs_after == macs(rewound) == macs(trained)
    chosen = [n for n, f in enumerate(model.stem[0].weight) if any(f.equal(k) for k in trained.stem[0].weight)]
    assert 0 < len(chosen) < 16
    assert rewound.stem[0].weight.equal(early.stem[0].weight[chosen])


class Branches(nn.Module):
    """Concatenated, residual, grouped, depthwise and shared layers in one."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1)
        self.norm = nn.BatchNorm2d(16)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.pointwise = nn.Conv2d(16, 16, 1)
        self.shared = nn.Conv2d(16, 16, 1)
        self.fc = nn.Linear(16, 5)

    def forward(self, x):
        x = self.norm(torch.cat([self.left(x), self.right(x)], 1)).relu()
        x = x + self.grouped(x).relu()
        x = self.pointwise(self.depthwise(x)).relu()
        x = self.shared(self.shared(x).relu())  # the same weights twice
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize(
    ("criterion", "scope"), [*(("l1", scope) for scope in pruning.SCOPES), ("fpgm", "global"), ("hessian", "global")]
)
def test_joined_layers_are_cut_together(scope, criterion):
    torch.manual_seed(0)
    model, example = Branches(), torch.zeros(1, 3, 8, 8)
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    examples = Examples([(images, torch.arange(3))], nn.functional.cross_entropy)
    before = count_macs(model, (3, 8, 8))
    smaller, _ = pruning.cut(
        model, example, macs=int(0.6 * before), criterion=criterion, scope=scope, examples=examples
    )
    assert smaller.left.out_channels + smaller.right.out_channels == smaller.norm.num_features
    assert smaller.norm.num_features == smaller.grouped.in_channels == smaller.grouped.out_channels
    assert smaller.grouped.out_channels % smaller.grouped.groups == 0
    assert smaller.depthwise.groups == smaller.depthwise.in_channels == smaller.depthwise.out_channels
    assert smaller.shared.in_channels == smaller.shared.out_channels == smaller.fc.in_features
    assert smaller.fc.out_features == 5
    loss = smaller.train()(images).square().mean()
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is not None for p in smaller.parameters())


def test_what_remains_computes_what_those_channels_computed():
    # channels that nobody reads are taken away: the network says the same as before
    model = network().eval()
    with torch.no_grad():
        for layer in (model.stages[1][0], model.stages[2][0]):
            layer.conv1.weight[::2] = 0
            layer.bn1.weight[::2] = layer.bn1.bias[::2] = layer.bn1.running_mean[::2] = 0
            layer.conv2.weight[:, ::2] = 0
    smaller, _ = pruning.cut(model, EXAMPLE, macs=int(0.8 * macs(model)), criterion="l2")
    x = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    removed = [
        (a.out_channels - b.out_channels) for a, b in zip(convolutions(model), convolutions(smaller), strict=True)
    ]
    assert sum(removed) > 8
    assert [n for n, count in enumerate(removed) if count] == [3, 6]  # conv1 of the two
    torch.testing.assert_close(smaller.eval()(x), model(x), rtol=1e-4, atol=1e-5)


def convolutions(model):
    return [m for m in model.modules() if isinstance(m, nn.Conv2d)]


def test_an_unknown_word_lists_the_known():
    with pytest.raises(UserError, match="unknown 'L9'. Choose one of: random, l1"):
        pruning.cut(network(), EXAMPLE, macs=1_000_000, criterion="L9")
    with pytest.raises(UserError, match="unknown 'all'. Choose one of: global, layer, isomorphic"):
        pruning.cut(network(), EXAMPLE, macs=1_000_000, criterion="l2", scope="all")
    with pytest.raises(UserError, match="unknown 'sudden'. Choose one of: one_shot, linear, cubic, geometric"):
        pruning.size_after(100, 50, "sudden", 1, 2)


@pytest.mark.parametrize("schedule", pruning.SCHEDULES)
@pytest.mark.parametrize("rounds", [1, 2, 7])
@pytest.mark.parametrize(
    ("now", "final"),
    [(1_000_003, 333_333), (3.25, 1.5), (100, 1), (49, 1), (1.1, 0.3)],  # 49 * (1 / 49) is not 1
)
def test_schedules_never_rise_and_end_exactly_at_the_target(schedule, rounds, now, final):
    sizes = [pruning.size_after(now, final, schedule, number, rounds) for number in range(rounds + 1)]
    assert sizes[0] == now
    assert sizes[-1] == final  # exactly
    assert all(later <= earlier for earlier, later in itertools.pairwise(sizes))


@pytest.mark.parametrize(
    ("schedule", "sizes"),
    [
        ("one_shot", [20, 20, 20, 20]),
        ("linear", [80, 60, 40, 20]),
        ("cubic", [20 + 80 * 27 / 64, 20 + 80 * 8 / 64, 20 + 80 / 64, 20]),
        ("geometric", [100 * 0.2**0.25, 100 * 0.2**0.5, 100 * 0.2**0.75, 20]),
    ],
)
def test_schedules_by_hand(schedule, sizes):
    assert [pruning.size_after(100, 20, schedule, number, 4) for number in (1, 2, 3, 4)] == pytest.approx(sizes)


def test_a_whole_number_is_a_count_and_one_with_a_point_a_share():
    assert limit_of(0.5, 101) == 50
    assert limit_of(20_000, 60_000) == 20_000
    assert limit_of(1.0, 101) == 101


def test_statistics_are_the_plain_mean_over_the_batches():
    norm = nn.BatchNorm2d(1)
    model = nn.Sequential(norm).eval()
    norm(torch.full((2, 1, 3, 3), 1e6))  # what was seen before is forgotten
    norm.running_mean.fill_(1e6)
    data = torch.randn(4, 8, 1, 5, 5, generator=torch.Generator().manual_seed(0)) * 3 + 2
    pruning.reestimate_statistics(model, lambda number: data[number], 4)
    assert torch.allclose(norm.running_mean, data.mean(dim=(1, 2, 3, 4)).mean().view(1), atol=1e-6)
    assert torch.allclose(norm.running_var, data.flatten(1).var(dim=1).mean().view(1), rtol=1e-5)
    assert not model.training
    assert norm.momentum == 0.1


def test_a_network_without_statistics_is_left_alone():
    model = nn.Sequential(nn.Conv2d(1, 1, 1)).train()
    pruning.reestimate_statistics(model, lambda number: pytest.fail("a batch was asked for"), 4)
    assert model.training


def test_what_rounds_can_reach_is_less_than_what_one_cut_can():
    model = network()
    now, one = pruning.reachable("macs", model, EXAMPLE, round_to=16)
    _, two = pruning.reachable("macs", model, EXAMPLE, round_to=16, rounds=2)
    _, many = pruning.reachable("macs", model, EXAMPLE, round_to=16, rounds=9)
    assert now > one > two >= many > 0
    first, _ = pruning.cut(model, EXAMPLE, macs=int(one), criterion="l2", round_to=16)
    second, _ = pruning.cut(first, EXAMPLE, macs=int(two), criterion="l2", round_to=16)
    assert macs(second) == two
    with pytest.raises(pruning.PruningError, match="the smallest that can be reached"):
        pruning.cut(model, EXAMPLE, macs=int(two), criterion="l2", round_to=16)


def test_a_network_that_is_small_enough_is_an_error_of_its_own():
    with pytest.raises(pruning.NothingToPruneError, match="nothing to prune: the network has"):
        pruning.cut(network(), EXAMPLE, macs=10**9, criterion="l2")


def test_a_latency_is_measured_beside_another_network(monkeypatch):
    seen = []
    measure = pruning.measure_latency
    monkeypatch.setattr(
        pruning, "measure_latency", lambda calls, **how: (seen.append(list(calls)), measure(calls, **how))[1]
    )
    small, large = network(), nn.Sequential(network(), nn.Identity())
    clock = pruning.Clock(1, repeats=6, beside=large)
    assert 0 < pruning.size_of("latency_ms", small, EXAMPLE, clock)
    assert 0 < pruning.size_of("latency_ms", small, EXAMPLE, pruning.Clock(1, repeats=6))
    assert seen == [["", "beside"], [""]]


def test_what_is_not_said_is_single_channels_and_the_first_seed():
    torch.manual_seed(0)
    model, example = nn.Sequential(nn.Conv2d(1, 40, 1), nn.Flatten(), nn.Linear(40, 2)), torch.zeros(1, 1, 1, 1)
    for said, width in (({}, 1), ({"round_to": 2}, 2)):
        assert pruning.cut_share(model, example, 0.98, criterion="l2", **said)[0].out_channels == width
        assert pruning.reachable("params", model, example, **said)[1] == 2 * width + 2 * width + 2
    kept = [
        pruning.cut(model, example, params=100, criterion="random", **said)[0][0].bias.tolist()
        for said in ({}, {"seed": 0}, {"seed": 1})
    ]
    assert kept[0] == kept[1] != kept[2]


def test_isomorphic_ranks_together_what_is_of_one_make_and_global_all_layers():
    # the first layer has one channel that outweighs all of its others, in the second all are alike
    model = nn.Sequential(
        nn.Conv2d(1, 40, 1, bias=False), nn.Conv2d(40, 40, 1, bias=False), nn.Flatten(), nn.Linear(40, 2, bias=False)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
        model[0].weight[0], model[1].weight[:, 0] = 1e4, 1e4
    widths = {}
    for scope in pruning.SCOPES:
        smaller = pruning.cut_share(model, torch.zeros(1, 1, 1, 1), 0.5, criterion="l2", scope=scope)
        widths[scope] = (smaller[0].out_channels, smaller[1].out_channels)
    assert widths["isomorphic"] == widths["layer"] == (20, 20)
    assert widths["global"] == (1, 39)


def test_a_clock_that_finds_the_same_network_faster_the_next_time_cuts_all_the_same(monkeypatch):
    # round_to 16 leaves the network whole at small shares; each measurement is a little faster than the one before
    paces = itertools.chain([1.0], itertools.repeat(0.9))
    measure = pruning.size_of
    monkeypatch.setattr(
        pruning,
        "size_of",
        lambda unit, model, example, clock=None: (
            macs(model) * next(paces) if unit == "latency_ms" else measure(unit, model, example)
        ),
    )
    model, clock = network(), pruning.Clock(1)
    smaller, found = pruning.cut(
        model, EXAMPLE, latency_ms=0.95 * macs(model), criterion="l2", round_to=16, clock=clock
    )
    assert found.params_after < found.params_before
    assert macs(smaller) < macs(model)
    paces = itertools.chain([1.0], itertools.repeat(0.9))
    with pytest.raises(pruning.NothingToPruneError, match="no channel can go"):
        pruning.cut(model, EXAMPLE, latency_ms=0.95 * macs(model), criterion="l2", keep=[".*"], clock=clock)
