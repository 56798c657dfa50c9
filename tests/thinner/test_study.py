"""A study's table: means, differences seed by seed, intervals that the t distribution gives."""

import math

import numpy as np
import pandas as pd
import pytest

from thinner.evidence import study


def rows(**variants):
    return pd.DataFrame(
        [{"variant": n, "seed": s, "value": v} for n, values in variants.items() for s, v in values.items()]
    )


SCRATCH = {0: 0.80, 1: 0.82, 2: 0.84}
KD = {0: 0.85, 1: 0.86, 2: 0.90}


def test_differences_are_taken_seed_by_seed():
    summary = study.summarise(rows(scratch=SCRATCH, kd=KD), "scratch").set_index("variant")
    kd = summary.loc["kd"]
    # by hand: differences 5, 4, 6; mean 5, sd 1, standard error 1/sqrt(3); t(0.975, 2) = 4.302653
    assert kd["mean"] == pytest.approx(87.0)
    assert kd["sd"] == pytest.approx(math.sqrt(((85 - 87) ** 2 + (86 - 87) ** 2 + (90 - 87) ** 2) / 2))
    assert kd["difference"] == pytest.approx(5.0)
    assert (kd["low"], kd["high"]) == pytest.approx((5 - 4.302653 / math.sqrt(3), 5 + 4.302653 / math.sqrt(3)))
    # t = 5 * sqrt(3); for two degrees of freedom p = 1 - t / sqrt(t^2 + 2)
    t = 5 * math.sqrt(3)
    assert kd["p"] == pytest.approx(1 - t / math.sqrt(t * t + 2))
    assert np.isnan(summary.loc["scratch", "difference"])


def test_p_values_are_adjusted_for_the_number_of_variants():
    one = study.summarise(rows(scratch=SCRATCH, kd=KD), "scratch").set_index("variant")
    two = study.summarise(rows(scratch=SCRATCH, kd=KD, mse={0: 0.79, 1: 0.84, 2: 0.84}), "scratch").set_index("variant")
    assert two.loc["kd", "p"] == pytest.approx(2 * one.loc["kd", "p"])  # the smallest of two


def test_best_first_and_unfinished_ones_are_marked():
    summary = study.summarise(rows(scratch=SCRATCH, kd={1: 0.9}, at={0: 0.7, 1: 0.7}), "scratch")
    assert summary["variant"].tolist() == ["kd", "scratch", "at"]
    text = study.render_markdown(summary, "scratch", 3)
    assert "| `kd` | **1 of 3** | 90.00 |  | +8.00 |  |" in text
    assert "| `scratch` | 3 | 82.00 | 2.00 |  |  |" in text
    assert "| `at` | **2 of 3** | 70.00 | 0.00 | -11.00 [-23.71, +1.71] |" in text


@pytest.mark.parametrize("ahead", [0.0, 0.005])  # of 200 images one more, with either seed
def test_differences_without_spread_prove_nothing(ahead: float):
    own = {0: 0.615, 1: 0.79}
    both = rows(scratch=own, kd={seed: value + ahead for seed, value in own.items()})
    summary = study.summarise(both, "scratch").set_index("variant")
    assert summary.loc["kd", "difference"] == pytest.approx(100 * ahead)
    assert summary.loc["kd", ["low", "high"]].isna().all() and summary.loc["kd", "p"] == 1.0
    assert f"| {100 * ahead:+.2f} | 1.0000 |" in study.render_markdown(summary.reset_index(), "scratch", 2)


def test_the_figure_shows_every_run_and_is_the_same_each_time(tmp_path):
    table = rows(scratch=SCRATCH, kd=KD)
    summary = study.summarise(table, "scratch")
    for name in ("a.svg", "b.svg"):
        study.draw(table, summary, "Which?", "accuracy", tmp_path / name)
    text = (tmp_path / "a.svg").read_text()
    assert text == (tmp_path / "b.svg").read_text()
    assert all(word in text for word in ("Which?", "kd", "scratch", "accuracy, %"))


def test_macs_are_shown_where_there_are_some():
    table = rows(distill=SCRATCH, prune=KD)
    table["macs"] = [math.nan] * 3 + [1_450_000, 1_490_000, 1_460_000]
    table["share"] = [math.nan] * 3 + [0.48, 0.5, 0.49]
    summary = study.summarise(table, "distill")
    assert summary.set_index("variant").loc["prune", "share"] == pytest.approx(0.49)
    lines = study.render_markdown(summary, "distill", 3).splitlines()
    assert [line.split("|")[-2].strip() for line in lines] == ["MACs", "---:", "1.47 M (49.0%)", ""]
    table.loc[table["variant"] == "distill", "macs"] = 3_000_000  # which was not pruned
    lines = study.render_markdown(study.summarise(table, "distill"), "distill", 3).splitlines()
    assert [line.split("|")[-2].strip() for line in lines] == ["MACs", "---:", "1.47 M (49.0%)", "3.00 M"]
    assert "MACs" not in study.render_markdown(study.summarise(rows(distill=SCRATCH), "distill"), "distill", 3)


def test_a_second_comparison_has_columns_of_its_own():
    table = rows(scratch=SCRATCH, kd=KD, at={0: 0.84, 1: 0.84, 2: 0.88})
    first, second = (study.summarise(table, name) for name in ("scratch", "kd"))
    lines = study.render_markdown(first, "scratch", 3, second).splitlines()
    assert "| against scratch, points | p (Holm) | against kd, points | p (Holm) |" in lines[0]
    assert len({line.count("|") for line in lines}) == 1
    at = next(line for line in lines if "`at`" in line)
    assert "+3.33" in at and "-1.67" in at  # (4 + 2 + 4) / 3, -(1 + 2 + 2) / 3
