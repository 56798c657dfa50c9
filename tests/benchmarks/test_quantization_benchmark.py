"""benchmarks/quantization.py: what it asks of the ladder, of numbers made by hand."""

import pytest

from benchmarks import quantization


def row(rung, points, chosen=False, **more):
    return {
        "rung": rung, "calibration": "minmax", "float_layers": 0, "points": points, "low": points - 0.3,
        "high": points + 0.3, "chosen": chosen, "holds": chosen, "accuracy": 0.9 - points / 100,
        "test_accuracy": 0.9 - points / 100, "file_bytes": 100 if rung == "float" else 30, "latency_ms": 1.0, **more,
    }  # fmt: skip


def found(part, *attempts):
    return {"part": part, "seed": 0, "attempts": [row("float", 0.0), *attempts]}


FELL = found("lite0", row("static", 2.4), row("mixed", 0.1, chosen=True, float_layers=8))
STOOD = found("resnet8", row("static", 0.2, chosen=True))


def test_the_ladder_has_to_hold_and_static_alone_to_fall_somewhere():
    assert all(quantization.musts([FELL, STOOD]).values())
    verdicts = quantization.musts([STOOD])
    assert verdicts == {
        "resnet8, seed 0: at most 0.5 points lost on the test images": True,
        "static alone loses more than 2.0 points of one network": False,
    }
    lost = found("lite0", row("static", 2.4), row("mixed", 0.6, chosen=True))
    assert not quantization.musts([lost])["lite0, seed 0: at most 0.5 points lost on the test images"]


def test_the_table_shows_intervals_and_what_was_not_run():
    table = quantization.markdown([FELL])
    assert (
        "| lite0, 0 | 90.00 % | 2.40 [2.10, 2.70] | 0.10 [-0.20, 0.40] | mixed, 8 layers in float | 30 % | not run |"
        in table
    )


def test_an_unknown_part_is_named(capsys):
    with pytest.raises(SystemExit):
        quantization.main(["lite1"])
    assert "unknown part 'lite1'. Choose one of: lite0, few, mobilenet, resnet18, resnet8" in capsys.readouterr().err
