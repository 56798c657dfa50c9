"""The arithmetic of a forecast; whether it comes true is measured by benchmarks/forecast.py."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from tasks import forecast
from tasks.forecast import Counts, makespan
from thinner.compress import pruning
from thinner.data.sources import Listing, Part
from thinner.measure.profiling import count_macs
from thinner.params import Params

PROJECT = Path(__file__).parents[2]


def params_with(**changes: object) -> Params:
    """params.yaml for two small networks, with other values by dotted key (``__`` for a dot)."""
    raw = yaml.safe_load((PROJECT / "params.yaml").read_text())
    small = {
        "finetune__network": "resnet8",
        "finetune__width": 4,
        "finetune__stem_stride": 2,
        "finetune__weights": None,
        "finetune__freeze": 0,
        "finetune__image_size": 16,
        "finetune__mean": [0.5],
        "finetune__std": [0.5],
        "student__image_size": 16,
        "student__width": 4,
        "prune__round_to": 2,
        "run__threads": 1,
    }
    for key, value in {**small, **changes}.items():
        *sections, last = key.split("__")
        place = raw
        for section in sections:
            place = place[section]
        place[last] = value
    return Params.model_validate(raw)


COUNTS = Counts(labelled=100, validation=50, test=60, unlabelled=200, classes=3, decode_seconds=0.001)


@pytest.fixture(scope="module")
def clock() -> forecast.Clock:
    made = forecast.Clock()
    made.__dict__["start_seconds"] = 0.0  # only the work is looked at
    return made


@pytest.mark.integration
def test_every_stage_of_the_graph_has_a_cost(clock: forecast.Clock) -> None:
    costs = forecast.foretell(params_with(prune_also=["finetune"], self_train__networks=["finetune"]), COUNTS, clock)
    stages = set(yaml.safe_load((PROJECT / "dvc.yaml").read_text())["stages"])
    assert {name.partition("@")[0] for name in costs} == stages
    assert all(cost.seconds > 0 or name in ("export", "report") for name, cost in costs.items())


@pytest.mark.parametrize(("stage", "key"), [("scratch", "student"), ("distill", "student"), ("prune", "prune")])
def test_a_thousand_steps_more_take_a_thousand_steps_longer(clock: forecast.Clock, stage: str, key: str) -> None:
    def seconds(steps: int) -> float:
        params = params_with(**{f"{key}__training__steps": steps, f"{key}__training__validate_every": 10_000})
        return forecast.foretell(params, COUNTS, clock)[stage].seconds

    first, second, third = seconds(1_000), seconds(2_000), seconds(3_000)
    assert second > first
    assert third - second == pytest.approx(second - first, rel=1e-9)


def test_self_training_is_two_trainings_and_its_weak_views(clock: forecast.Clock) -> None:
    def seconds(steps: int, ratio: int) -> float:
        on = {"networks": ["finetune"], "ratio": ratio}
        params = params_with(
            **{f"self_train__{key}": value for key, value in on.items()}, self_train__training__steps=steps
        )
        return forecast.foretell(params, COUNTS, clock)["self_train@finetune"].seconds

    assert seconds(2_000, 3) > 1.9 * seconds(1_000, 3)
    assert seconds(1_000, 31) > seconds(1_000, 1)  # in quiet more than three times: no noise turns it round
    assert "self_train@finetune" not in forecast.foretell(params_with(), COUNTS, clock)


def test_mirror_images_double_what_the_teacher_looks_at(clock: forecast.Clock) -> None:
    def seconds(flip: bool) -> float:
        return forecast.foretell(params_with(teach__flip=flip), COUNTS, clock)["teach"].seconds

    assert seconds(True) == pytest.approx(2 * seconds(False))


def test_steps_of_the_head_alone_are_counted(clock: forecast.Clock) -> None:
    def seconds(probe: int) -> float:
        return forecast.foretell(params_with(finetune__probe_steps=probe), COUNTS, clock)["finetune"].seconds

    none, some, more = seconds(0), seconds(1_000), seconds(3_000)
    assert none < some
    assert more - none == pytest.approx(3 * (some - none), rel=1e-9)


def test_a_clock_that_says_another_thing_each_time_ends_no_forecast(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers, refused = np.random.default_rng(0), []

    def wild(calls: dict[str, object], **_: object) -> dict[str, np.ndarray]:
        return {name: np.full(30, numbers.uniform(0.1, 10.0)) for name in calls}

    def cut(*given: object, **named: object) -> object:
        try:
            return real(*given, **named)
        except pruning.PruningError as error:
            refused.append(error)
            raise

    real = pruning.cut
    monkeypatch.setattr(pruning, "cut", cut)
    monkeypatch.setattr(pruning, "measure_latency", wild)
    params = params_with(prune__target={"latency_ms": 1.0})
    for _ in range(5):
        fresh = forecast._fresh(params.student, COUNTS.classes)
        made = forecast.Clock().cut(params, "distill", fresh, params.student)
        assert len(made) == params.prune.rounds
    assert refused  # or nothing was shown


@pytest.mark.integration
def test_small_is_cut_to_the_size_of_prune_and_not_as_far(clock: forecast.Clock) -> None:
    params = params_with(finetune__width=16, small__source="finetune", prune__target={"macs": 0.5})
    job = forecast._Job(params, COUNTS, clock)
    job.costs()
    sizes = {name: count_macs(job.networks[name][0][1](), (1, 16, 16)) for name in ("finetune", "small", "prune")}
    assert sizes["finetune"] > 10 * sizes["prune"]
    assert 0.5 * sizes["prune"] < sizes["small"] <= sizes["prune"]


def test_teach_takes_as_long_as_there_are_views_and_keeps_as_much(clock: forecast.Clock) -> None:
    one, four = (
        forecast.foretell(params_with(teach__views=n, student__augment__flip=True), COUNTS, clock)["teach"]
        for n in (1, 4)
    )
    assert four.seconds == pytest.approx(4 * one.seconds)
    assert one.bytes == 300 * (3 * 2 + 4)  # float16 logits and a float32 centre for each image
    assert four.bytes == 4 * one.bytes
    kept = params_with(teach__features=[{"layer": "stages.0", "keep": "pooled"}])
    assert forecast.foretell(kept, COUNTS, clock)["teach"].bytes == one.bytes + 300 * 2 * 4  # four channels


def test_images_are_counted_as_prepare_splits_them() -> None:
    labels = np.repeat([0, 1, -1], [50, 50, 30])
    parts = np.where(labels < 0, Part.UNLABELLED, Part.TRAIN).astype(np.int8)
    from PIL import Image

    picture = Image.new("L", (20, 20))
    listing = Listing(("a", "b"), labels, parts, str, lambda i: picture.copy(), "drawn")
    params = params_with(data__labelled=0.6, data__validation=0.2, data__test=0.2)
    counts = forecast.count_images(params, listing)
    assert (counts.labelled, counts.validation, counts.test, counts.unlabelled) == (60, 20, 20, 30)
    assert counts.classes == 2
    assert 0 < counts.decode_seconds < 1


@pytest.mark.parametrize(
    ("jobs", "threads", "cores", "seconds"),
    [
        (1, 1, 2, 10 + 40 + 20 + 5),  # one after the other
        (2, 1, 2, 10 + 40 + 5),  # b and c side by side, a core each
        (2, 2, 2, 10 + 60 + 5),  # both want all cores: no faster than one after the other
        (2, 2, 4, 10 + 40 + 5),
        (2, 4, 6, 10 + 20 / 0.75 + 20 + 5),  # three quarters of the speed while there are two
    ],
)
def test_stages_side_by_side_share_the_cores(jobs: int, threads: int, cores: int, seconds: float) -> None:
    costs = {"a": 10.0, "b": 40.0, "c": 20.0, "d": 5.0}
    upstream = {"b": ["a"], "c": ["a"], "d": ["b", "c"]}
    assert makespan(costs, upstream, jobs=jobs, threads=threads, cores=cores) == pytest.approx(seconds)


def test_what_is_up_to_date_is_waited_for_by_nobody() -> None:
    assert makespan({"d": 5.0}, {"d": ["b", "c"]}, jobs=2, threads=1, cores=2) == 5.0
