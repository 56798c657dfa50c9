"""benchmarks.zoo: networks without weights have the counts of networks with them."""

from pathlib import Path

import pytest
from torchvision import models

from benchmarks import zoo
from thinner.measure.profiling import count_params


@pytest.mark.parametrize("name", ["regnet_x_400mf", "shufflenet_v2_x0_5", "googlenet", "squeezenet1_1"])
def test_counts_equal_torchvisions(name: str) -> None:
    row = zoo.measure(name)
    assert row.equal, row


def test_a_network_made_without_weights_has_all_of_them() -> None:
    assert zoo.measure("mobilenet_v3_small").params == count_params(models.mobilenet_v3_small())


def test_a_difference_is_told_and_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(models, "list_models", lambda module: ["squeezenet1_1", "alexnet"])
    assert zoo.main([]) == 0
    assert "2 of 2 equal" in capsys.readouterr().out
    real = zoo.count_params
    monkeypatch.setattr(zoo, "count_params", lambda model: real(model) + (type(model).__name__ == "AlexNet"))
    assert zoo.main([]) == 1
    assert "1 of 2 equal; not: alexnet" in capsys.readouterr().out


def test_what_the_table_leaves_out_is_no_classifier_that_could_be_a_candidate() -> None:
    left_out = set(models.list_models()) - set(models.list_models(module=models))
    kinds = {models.get_model_builder(name).__module__.split(".")[2] for name in left_out}
    assert kinds == {"detection", "segmentation", "optical_flow", "video", "quantization"}
    page = (Path(__file__).parents[2] / "docs" / "zoo.md").read_text(encoding="utf-8")
    for kind in kinds:
        assert kind.replace("_", " ").removesuffix("ization") in page


@pytest.mark.long
def test_all_of_the_zoo_is_equal_and_the_page_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert zoo.main([]) == 0
    page = (Path(__file__).parents[2] / "docs" / "zoo.md").read_text(encoding="utf-8")
    assert capsys.readouterr().out.strip() in page
