"""thinner.evidence.charts and thinner.evidence.prediction_charts: what is drawn, and the same numbers in tables."""

from dataclasses import replace
from pathlib import Path

from tests.measured import (
    CLASSES,
    LADDER,
    METRICS,
    RELIABILITY,
    SENSITIVITY,
    Page,
    row,
    with_candidates,
    with_pruned_teacher,
)
from thinner.evidence import charts
from thinner.evidence.markdown import render_pull_request
from thinner.evidence.page import all_charts, render_figures, render_html
from thinner.evidence.results import Results, _table


def test_the_pareto_front_is_of_those_that_nobody_beats_in_both(results: Results) -> None:
    # as cheap as distill and worse; dearer than all and the worst
    worse = with_candidates(results, scratch=row(0.65, 60_000, 9.0), other=row(0.6, 4_000_000, 130.0))
    charts = {chart.key: chart for chart in all_charts(worse)}
    for key, front in (
        ("macs", [(300_000, 0.7), (600_000, 0.8), (30_000_000, 0.9)]),
        ("latency-ms-b64", [(3.0, 0.7), (8.0, 0.8), (120.0, 0.9)]),
    ):
        (trace,) = (trace for trace in charts[key].figure.data if trace.name == "Pareto front")
        assert list(zip(trace.x, trace.y, strict=True)) == front
    assert "as cheap): finetune, distill, prune_onnx." in charts["latency-ms-b64"].text


def test_each_pruned_network_has_its_rounds_and_its_curves(results: Results) -> None:
    both = with_pruned_teacher(results)
    text = " ".join(Page(render_html(both, 0)).text)
    for words in ("prune 1 (chosen)", "prune_finetune 1 (chosen)", "finetune with channels removed"):
        assert words in text
    assert "| prune_finetune 1 (chosen) | 15 M |" in render_pull_request(both)
    figures = render_figures(both)
    assert [trace.name for trace in figures["pruning"].data] == [
        "prune, after recovery", "prune, before recovery",
        "prune_finetune, after recovery", "prune_finetune, before recovery", "chosen",
    ]  # fmt: skip
    assert list(figures["pruning"].data[-1].x) == [300_000, 15_000_000]
    assert figures["pruning"].layout.xaxis.type == "log"
    assert "prune_finetune" in [trace.name for trace in figures["val-accuracy"].data]
    one = render_figures(results)["pruning"]
    assert [trace.name for trace in one.data] == ["after recovery", "before recovery", "chosen"]


def test_more_candidates_than_colours_are_told_apart(results: Results) -> None:
    many = replace(results, metrics={f"candidate {n}": METRICS["prune"] for n in range(20)})
    assert len({charts.style_of(name, many) for name in many.metrics}) == 20


def test_what_charts_show_is_in_tables_as_well(fuller: Results) -> None:
    tables = {chart.key: chart.table for chart in all_charts(fuller)}
    # the second round of pruning goes on where the first one ended
    assert [row for row in tables["val-accuracy"].rows if row[0] == "prune"] == [
        ["prune", "10", "50.0 %"], ["prune", "20", "75.0 %"], ["prune", "30", "50.0 %"], ["prune", "40", "75.0 %"],
    ]  # fmt: skip
    assert tables["loss"].rows[0] == ["finetune", "10", "1"]
    assert tables["reliability"].rows[4:6] == [
        ["prune, as it is", "70.0 %", "50.0 %", "5"], ["prune, as it is", "95.0 %", "90.0 %", "5"],
    ]  # fmt: skip
    assert len(tables["reliability"].rows) == len(RELIABILITY)
    (risks,) = tables["risk-coverage"].rows
    assert risks == ["prune", *["1.0 %"] * 5, *["12.5 %"] * 3, *["30.0 %"] * 2]
    assert tables["corruptions"].headings == ["candidate", "not corrupted", "noise", "blur"]
    assert tables["corruptions"].rows == [["prune", "70.0 %", "50.0 %", "60.0 %"]]
    assert tables["confusion-prune"].rows[0] == ["bag", "2", "2", "0"]
    html = render_html(fuller, 0)
    for key, table in tables.items():
        if table is not None:
            below = html.split(f'id="d-{key}"')[1].split("</figure>")[0]
            assert "<details>" in below
            assert all(cell in Page(below).words for row in table.rows for cell in row)
    assert "ten coverages." in Page(html).words
    many = replace(fuller, classes=[*CLASSES, *(f"class {k}" for k in range(17))])
    assert {chart.table for chart in all_charts(many) if chart.section == "confusion"} == {None}
    assert "of confusion matrices the most frequent mistakes." in Page(render_html(many, 0)).words


def test_the_ladder_is_a_table_and_its_layers_are_a_chart(results: Results, tmp_path: Path) -> None:
    climbed = replace(
        results,
        ladder=LADDER,
        sensitivity=SENSITIVITY,
        params={**results.params, "quantize": {"latency_batch": 64, "max_drop": 0.5}},
    )
    chart = render_figures(climbed)["sensitivity"]
    bars = {trace.name: list(zip(trace.y, trace.x, strict=True)) for trace in chart.data}
    assert bars == {"in 8 bits": [("fc", 0.01)], "in float": [("stem", 0.5)]}
    page = Page(render_html(climbed, 0))
    text = " ".join(page.text)
    assert "mixed (chosen)" in text and "25.00 [20.00, 30.00]" in text and "In float stay 1 of 2." in text
    assert "| mixed (chosen) | minmax | 1 | 75.0 % | 0.00 [-0.50, 0.40] | yes |" in render_pull_request(climbed)
    none = climbed.ladder.assign(float_names="")  # what was kept has no layer in float
    for name, table in (("ladder", none), ("sensitivity", SENSITIVITY.assign(layer=["8", "9"]))):
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    read = {name: _table(tmp_path / f"{name}.csv") for name in ("ladder", "sensitivity")}
    assert read["sensitivity"]["layer"].tolist() == ["8", "9"]
    chart = render_figures(replace(climbed, **read))["sensitivity"]
    assert len(next(trace for trace in chart.data if trace.name == "in float").y) == 0
    assert "sensitivity" not in render_figures(results)  # where only static was tried, no layer was looked at
