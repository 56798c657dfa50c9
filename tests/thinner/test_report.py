"""thinner.report: every number on the page and in the table is computed, and the page stands alone."""

import base64
import hashlib
import itertools
import json
import re
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from tests.browser import Browser
from thinner import report
from thinner.errors import UserError
from thinner.report import (
    BEGIN,
    END,
    Evidence,
    headline,
    main,
    points,
    read_evidence,
    read_metrics,
    render_html,
    render_markdown,
    render_pull_request,
    render_readme,
    si,
    speed,
    times,
    update_readme,
)

CLASSES = ["bag", "</script><b>coat", "boot"]
LABELS = np.array([0, 0, 1, 1, 2, 2, 0, 1, 2, 0])
TEACHER = np.array([0, 0, 1, 1, 2, 2, 0, 1, 2, 1])  # 9 of 10
SMALL = np.array([1, 0, 1, 2, 2, 2, 0, 1, 2, 1])  # 7 of 10: wrong on 0, 3 and, like the teacher, on 9
CONFIDENCE = np.array([0.6, 0.9, 0.9, 0.8, 0.9, 0.9, 0.9, 0.9, 0.9, 0.99])
INDEX = np.arange(100, 110)


def row(accuracy: float, size: int, latency_ms: float, runtime: str = "pytorch") -> dict[str, Any]:
    return {
        "accuracy": accuracy,
        "macro_f1": accuracy,
        "agreement": 0.8,
        "params": size,
        "params_nonzero": size,
        "macs": 10 * size,
        "file_bytes": 4 * size,
        "latency_ms_b1": latency_ms / 8,
        "latency_ms_b1_p95": latency_ms / 7,
        "latency_ms_b64": latency_ms,
        "latency_ms_b64_p95": 2 * latency_ms,
        "runtime": runtime,
        "device": "cpu",
        "threads": 1,
    }


METRICS = {
    "finetune": row(0.9, 3_000_000, 120.0),
    "distill": row(0.8, 60_000, 8.0),
    "prune": row(0.7, 30_000, 4.0),
    "prune_onnx": row(0.7, 30_000, 3.0, "onnxruntime"),
}
ROUNDS = pd.DataFrame(
    {
        "round": [0, 1],
        "macs": [600_000, 300_000],
        "params": [60_000, 30_000],
        "accuracy_before": [0.8, 0.5],
        "accuracy_after": [0.8, 0.75],
        "chosen": [False, True],
    }
)
ENVIRONMENT = {
    "cpu": "Some CPU",
    "cores": 2,
    "memory_gib": 8,
    "accelerator": None,
    "system": "Linux x86_64",
    "python": "3.11.9",
    "libraries": {"torch": "2.14.1"},
    "device": "cpu",
    "latency_threads": 1,
    "latency_repeats": 50,
    "test_images": 10,
    "data_sha256": "ab" * 32,
}
INTEGRITY = {
    "origin": "made by hand",
    "unreadable": {"count": 0},
    "duplicates": {"count": 4},
    "leakage": {"count": {"labelled_test": 3}},
}


@pytest.fixture
def evidence() -> Evidence:
    steps = pd.DataFrame({"step": [10.0, 20.0], "loss": [1.0, 0.5], "val_accuracy": [0.5, 0.75]})
    return Evidence(
        metrics=METRICS,
        environment=ENVIRONMENT,
        history={"finetune": steps, "prune": pd.concat([steps, steps])},
        rounds={"prune": ROUNDS},
        index=INDEX,
        labels=LABELS,
        predictions={"finetune": TEACHER, "distill": SMALL, "prune": SMALL, "prune_onnx": SMALL},
        confidences=dict.fromkeys(METRICS, CONFIDENCE),
        images=np.random.default_rng(0).integers(0, 255, (110, 8, 8, 1), dtype=np.uint8),
        classes=CLASSES,
        data={"source": "folder:data/raw", "counts": {"labelled": 5, "test": 10}},
        integrity=INTEGRITY,
        params={"run": {"seed": 7}, "prune": {"source": "distill"}, "ship": {"candidate": "prune"}},
        verdicts=[{"claim": "distill beats <prune>", "outcome": "not shown", "numbers": "+1.00 points"}],
        hashes={"reports/metrics.json": "c0ffee"},
    )


class Page(HTMLParser):
    """Tags with their attributes, and the visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._hidden = 0
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._hidden += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def test_headline_worked_by_hand() -> None:
    assert headline(METRICS, 10_000) == (
        "prune is right on 70.0 % of 10,000 test images (−20.0 points against finetune's 90.0 %) "
        "with 30,000 parameters: "
        "100x fewer, 100x fewer MACs and a file 100x smaller. "
        "Measured in PyTorch at batch 64, it is 30.0x faster (4 ms against 120 ms, 1 thread)."
    )


def test_headline_tells_the_truth_about_a_small_model_that_is_larger_and_slower() -> None:
    measured = {**METRICS, "prune": row(0.95, 6_000_000, 240.0)}
    text = headline(measured, 10)
    assert "+5.0 points" in text
    assert "2.0x more, 2.0x more MACs and a file 2.0x larger" in text
    assert "2.0x slower" in text


def test_faster_is_said_only_where_the_intervals_do_not_meet() -> None:
    def timed(low: float, median: float, high: float) -> dict[str, float]:
        return {"latency_ms_b64": median, "latency_ms_b64_low": low, "latency_ms_b64_high": high}

    source = timed(9.0, 10.0, 11.0)
    assert speed(timed(4.0, 5.0, 6.0), source, 64) == "2.0x faster"
    assert speed(timed(8.0, 9.0, 9.5), source, 64) == "not faster (1.11x)"
    assert speed(timed(10.5, 12.5, 13.0), source, 64) == "not faster (0.80x)"
    assert speed(timed(12.0, 12.5, 13.0), source, 64) == "1.2x slower"
    meets = {**METRICS, "prune": {**METRICS["prune"], **timed(110.0, 115.0, 125.0)}}
    meets["finetune"] = {**METRICS["finetune"], **timed(118.0, 120.0, 121.0)}
    assert "it is not faster (1.04x) (115 ms against 120 ms, 1 thread)" in headline(meets, 10)


def test_weights_set_to_zero_are_counted_where_channels_are_not_removed(evidence: Evidence) -> None:
    masked = ROUNDS.assign(macs=600_000, params=60_000, nonzero=[60_000, 24_000], compressed_bytes=[250_000, 120_000])
    page = replace(evidence, rounds={"prune": masked})
    html = render_html(page, 3)
    assert "1 (chosen) 600 k 60,000 24,000 120 kB" in Page(html).words
    assert "with weights set to zero" in html and "channels removed" not in html
    (chart,) = report._pruning_curve(page)
    assert list(chart.figure.data[0].x) == [60_000, 24_000]
    assert "not zero" in chart.figure.layout.xaxis.title.text
    lines = render_pull_request(page)
    assert "| round | MACs | parameters | not zero | file, gzip | before recovery | after recovery |" in lines
    assert "| 1 (chosen) | 600 k | 60,000 | 24,000 | 120 kB |" in lines
    assert "not zero" not in render_pull_request(evidence)
    measured = {**METRICS, "prune": {**METRICS["prune"], "params_nonzero": 12_000}}
    assert "12,000 of its parameters are not zero" in headline(measured, 10)


@pytest.mark.parametrize(
    ("large", "small", "text"), [(99.6, 1, "100x"), (12.34, 1, "12.3x"), (3, 2, "1.5x"), (5, 5, "1.0x")]
)
def test_times(large: float, small: float, text: str) -> None:
    assert times(large, small) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (7, "7"),
        (999, "999"),
        (1000, "1 k"),
        (78_042, "78 k"),
        (1_234_567, "1.23 M"),
        (999_600, "1000 k"),
        (2.5e9, "2.5 G"),
    ],
)
def test_si(count: float, text: str) -> None:
    assert si(count) == text


def test_points_have_a_sign_and_no_negative_zero() -> None:
    assert (points(0.012), points(-0.012), points(-0.0001), points(0.0)) == (
        "+1.2",
        "\N{MINUS SIGN}1.2",
        "0.0",
        "0.0",
    )


def test_a_readme_shows_the_networks_and_only_what_is_not_proven() -> None:
    proven = {"claim": "distill beats prune on accuracy", "outcome": "proven", "numbers": "+9 points"}
    open_ = {"claim": "prune beats distill on accuracy", "outcome": "refuted", "numbers": "-9 points"}
    text = render_readme(METRICS, ENVIRONMENT, "prune", [proven])
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]
    assert rows[2:] == ["finetune", "distill", "**prune**", "prune_onnx"] and "+9 points" not in text
    assert "To ship: prune" in text and max(map(len, text.splitlines())) <= 120
    text = render_readme(METRICS, ENVIRONMENT, "prune", [proven, open_])
    assert "| **refuted** | prune beats distill on accuracy | -9 points |" in text and "+9 points" not in text
    assert "Nothing is ready to ship" in text


def test_markdown_table_has_a_row_per_candidate_with_computed_deltas() -> None:
    verdict = {"claim": "distill beats prune on accuracy", "outcome": "proven", "numbers": "+9 points"}
    assert "| **proven** | distill beats prune on accuracy | +9 points |" in render_markdown(
        METRICS, ENVIRONMENT, "prune", [verdict]
    )
    lines = render_markdown(METRICS, ENVIRONMENT, "prune", [{**verdict, "claim": "c"}]).splitlines()
    lines = [line for line in lines if "verdict" not in line and "proven" not in line and line != "|---|---|---|"]
    rows = [line for line in lines if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 1
    assert [line.split("|")[1].strip() for line in rows[2:]] == [
        "finetune",
        "distill",
        "**prune** (to ship)",
        "prune_onnx",
    ]
    assert [cell.strip() for cell in rows[4].split("|")[2:-1]] == [
        "70.0 %",
        "\N{MINUS SIGN}20.0",
        "0.700",
        "80.0 %",
        "30 k",
        "300 k",
        "120 kB",
        "0.5",
        "4",
        "PyTorch",
    ]


def with_candidates(evidence: Evidence, **rows: dict[str, Any]) -> Evidence:
    """With further candidates that predict what the small one does."""
    return replace(
        evidence,
        metrics={**evidence.metrics, **rows},
        predictions={**evidence.predictions, **dict.fromkeys(rows, SMALL)},
        confidences={**evidence.confidences, **dict.fromkeys(rows, CONFIDENCE)},
    )


def row_of(html: str, table: str, name: str) -> str:
    """The words of one row of the table with that label."""
    body = html.partition(f'aria-label="{table}"')[2].partition("</table>")[0]
    (found,) = (row for row in body.split("<tr") if f'data-value="{name}"' in row)
    return Page("<tr" + found).words


@pytest.mark.parametrize("shipped", ["prune", "prune_onnx_int8"])
def test_what_is_to_be_shipped_is_named_below_the_headline_and_marked(evidence: Evidence, shipped: str) -> None:
    verdicts = [{"claim": f"claim {n}", "outcome": outcome, "numbers": ""} for n, outcome in enumerate(
        ("proven", "proven", "proven")
    )]  # fmt: skip
    told = replace(
        with_candidates(evidence, prune_onnx_int8=row(0.7, 20_000, 2.0, "onnxruntime")),
        params={**evidence.params, "ship": {"candidate": shipped}},
        verdicts=verdicts,
    )
    line = {
        "prune": "To ship: prune (3 of 3 claims proven). It is right on 70.0 %, its file has 120 kB, and a batch of 64 "
        "takes 4 ms in PyTorch.",
        "prune_onnx_int8": "To ship: prune_onnx_int8 (3 of 3 claims proven). It is right on 70.0 %, its file has 80 kB, "
        "and a batch of 64 takes 2 ms in ONNX Runtime.",
    }[shipped]
    html = render_html(told, 0)
    assert f"{headline(told.metrics, 10)} {line} Verdicts" in Page(html).words
    for name in told.metrics:
        for table in ("Table of candidates", "Table of costs"):  # a person who hears the page is told as well
            assert ("to ship" in row_of(html, table, name)) == (name == shipped)
    marked = re.findall(r'<tr class="chosen">\s*<th scope="row" data-value="(\w+)">', html)
    assert marked == [shipped, shipped]
    text = report.render_pull_request(told)
    assert text.split("\n\n")[1] == f"**{line}**"
    assert [cell for cell in re.findall(r"^\| (.+?) \|", text, re.MULTILINE) if "to ship" in cell] == [
        f"**{shipped}** (to ship)"
    ]


def test_a_missed_target_and_a_shown_loss_stand_before_all_else(evidence: Evidence) -> None:
    verdicts = [{"claim": "claim", "outcome": "proven", "numbers": ""}]
    met = {"candidate": "prune", "met": True, "lines": ["Target met: half."]}
    missed = {"candidate": "prune", "met": False, "lines": ["TARGET MISSED: two thirds."]}
    lost = {"candidate": "prune", "met": True, "lines": ["Target met: half.", "LOSS SHOWN: 3 points."]}
    told = {key: replace(evidence, verdicts=verdicts, targets=[target]) for key, target in
            {"met": met, "missed": missed, "lost": lost}.items()}  # fmt: skip
    text = {key: report.render_pull_request(one).splitlines() for key, one in told.items()}
    assert text["met"][2] == "**Target met: half.**"
    assert text["missed"][0] == "**TARGET MISSED: two thirds.**"
    assert text["lost"][:3] == ["**Target met: half.**", "", "**LOSS SHOWN: 3 points.**"]
    assert "Nothing is ready to ship (1 of 1 claims proven). prune missed its target." in "".join(text["missed"])
    assert "(to ship)" not in "".join(text["missed"])
    for key, one in told.items():
        words = Page(render_html(one, 0)).words
        assert words.index(" ".join(one.targets[0]["lines"])) < words.index(headline(one.metrics, 10)), key
        assert ("to ship" in row_of(render_html(one, 0), "Table of candidates", "prune")) == (key != "missed")


def test_what_prune_also_may_name_has_its_folder() -> None:
    from typing import get_args

    from thinner.config import Prunable

    assert report.ALSO == {f"prune_{name}": f"prune_also/{name}" for name in get_args(Prunable)}


def test_top_5_has_a_column_where_it_was_measured(evidence: Evidence) -> None:
    five = {name: {**row, "accuracy_top5": 0.95 + n / 100} for n, (name, row) in enumerate(METRICS.items())}
    told = replace(evidence, metrics=five)
    assert "70.0 % −20.0" in row_of(render_html(told, 0), "Table of candidates", "prune")
    assert "97.0 %" in row_of(render_html(told, 0), "Table of candidates", "prune")
    text = report.render_pull_request(told)
    assert "| candidate | accuracy | vs teacher | top-5 | macro-F1 |" in text
    assert "| prune | 70.0 % | −20.0 | 97.0 % | 0.700 |" in text
    assert "top" not in Page(render_html(evidence, 0)).words.replace("top-5", "top").split("Trade-offs")[1].split()
    assert "top-5" not in report.render_pull_request(evidence)


def test_a_latency_has_its_interval_and_what_it_is_against_the_teacher(fuller: Evidence) -> None:
    html = render_html(fuller, 0)
    assert "4 [3.9, 4.2] p95 8 30.0x faster" in row_of(html, "Table of candidates", "prune")
    assert "faster" not in row_of(html, "Table of candidates", "finetune")
    slower = replace(fuller, metrics={**fuller.metrics, "distill": row(0.8, 60_000, 480.0)})
    assert "4.0x slower" in row_of(render_html(slower, 0), "Table of candidates", "distill")
    assert "4 [3.9, 4.2] 8 30.0x faster 16,000 2.5 MB 30,000" in row_of(html, "Table of costs", "prune")


def test_the_pareto_front_is_of_those_that_nobody_beats_in_both(evidence: Evidence) -> None:
    # as cheap as distill and worse; dearer than all and the worst
    worse = with_candidates(evidence, scratch=row(0.65, 60_000, 9.0), other=row(0.6, 4_000_000, 130.0))
    charts = {chart.key: chart for chart in report._charts(worse)}
    for key, front in (
        ("macs", [(300_000, 0.7), (600_000, 0.8), (30_000_000, 0.9)]),
        ("latency-ms-b64", [(3.0, 0.7), (8.0, 0.8), (120.0, 0.9)]),
    ):
        (trace,) = (trace for trace in charts[key].figure.data if trace.name == "Pareto front")
        assert list(zip(trace.x, trace.y, strict=True)) == front
    assert "as cheap): finetune, distill, prune_onnx." in charts["latency-ms-b64"].text


RUNS = {
    "prepare": None,
    "finetune": {"commit": "0123456789abcdef0123", "dirty": False, "seconds": 125.2, "joules": 4_200.0},
    "distill": {"commit": "fedcba9876543210ffff", "dirty": True, "seconds": 7.4, "joules": None},
}


def test_what_was_run_tells_duration_commit_and_energy_of_each_stage(evidence: Evidence) -> None:
    told = replace(evidence, runs=RUNS)
    html = render_html(told, 0)
    assert row_of(html, "Table of stages", "prepare") == "prepare not recorded here"
    assert row_of(html, "Table of stages", "finetune") == "finetune 0123456789ab 2 min 05 s 4.2 kJ"
    assert row_of(html, "Table of stages", "distill") == "distill fedcba987654 and changes 7 s not told"
    text = report.render_pull_request(told)
    assert "| prepare | not recorded here |  |  |\n| finetune | 0123456789ab | 2 min 05 s | 4.2 kJ |" in text
    assert html == render_html(replace(evidence, runs={**RUNS}), 0)
    assert "How long the stages took is not recorded here." in Page(render_html(evidence, 0)).words
    assert "Stages: not recorded here." in report.render_pull_request(evidence)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (3599.6, "1 h 00 min"), (3725, "1 h 02 min")],
)
def test_duration(seconds: float, text: str) -> None:
    assert report.duration(seconds) == text


def test_page_is_the_same_for_the_same_evidence(evidence: Evidence) -> None:
    assert render_html(evidence, 3) == render_html(evidence, 3)


def test_page_stands_alone_and_stays_below_6_mb(evidence: Evidence) -> None:
    html = render_html(evidence, 3)
    page = Page(html)
    assert len(html.encode()) < 6_000_000
    assert not page.all("link")
    assert not page.all("iframe")
    assert not page.all("object")
    assert all("src" not in script for script in page.all("script"))
    assert all((image["src"] or "").startswith("data:image/png;base64,") for image in page.all("img"))
    assert all((link["href"] or "").startswith("#") for link in page.all("a"))
    policy = next(meta for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in (policy["content"] or "")


def test_page_can_be_read_by_a_screen_reader(evidence: Evidence) -> None:
    page = Page(render_html(evidence, 3))
    assert page.all("html")[0]["lang"] == "en"
    assert all(image["alt"] for image in page.all("img"))
    assert len(page.all("caption")) == len(page.all("table")) >= 4
    assert all(head.get("scope") in ("col", "row") for head in page.all("th"))
    plots = [div for div in page.all("div") if div.get("class") == "plot"]
    assert len(plots) >= 9
    assert all(div["role"] == "img" and div["aria-label"] for div in plots)
    identifiers = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    targets = {(link["href"] or "")[1:] for link in page.all("a")}
    assert targets <= set(identifiers)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_page_starts_with_what_came_out_and_names_what_was_run(evidence: Evidence) -> None:
    words = Page(render_html(evidence, 3)).words
    assert headline(METRICS, 10) in words
    for fact in (
        "Some CPU",
        "torch 2.14.1",
        "ab" * 32,
        "made by hand",
        "labelled and test 3",
        "seed: 7",
        "make run",
    ):
        assert fact in words


def test_page_never_calls_a_ratio_of_macs_a_speed_up(evidence: Evidence) -> None:
    words = Page(render_html(evidence, 3)).words.lower()
    assert "speed-up" not in words
    assert "speedup" not in words
    assert not re.search(r"faster[^.]*macs|macs[^.]*faster", words.replace("macs and a file", ""))


def test_class_names_are_text_and_never_markup(evidence: Evidence) -> None:
    html = render_html(evidence, 3)
    assert "</script><b>coat" not in html
    assert "</script><b>coat" in Page(html).words


def test_every_chart_is_valid_json_for_plotly(evidence: Evidence) -> None:
    html = render_html(evidence, 3)
    charts = re.findall(
        r'<script type="application/json" class="chart" data-plot="plot-([\w-]+)">(.*?)</script>',
        html,
        re.DOTALL,
    )
    assert {
        "macs",
        "latency-ms-b1",
        "latency-ms-b64",
        "val-accuracy",
        "loss",
        "pruning",
        "per-class",
        "confusion-prune",
    } <= {key for key, _ in charts}
    assert all(json.loads(text)["data"] for _, text in charts)


def test_mistakes_show_what_the_teacher_knew_first_and_the_surest_before_others(evidence: Evidence) -> None:
    page = Page(render_html(evidence, 3))
    # the small one is surest on image 109, but there the teacher errs as well
    assert [re.findall(r"image (\d+)", image["alt"] or "")[0] for image in page.all("img")] == [
        "103",
        "100",
        "109",
    ]


def test_as_many_mistakes_are_shown_as_asked(evidence: Evidence) -> None:
    assert len(Page(render_html(evidence, 1)).all("img")) == 1
    assert len(Page(render_html(evidence, 0)).all("img")) == 0


def test_a_run_without_pruning_rounds_and_curves_still_has_a_page(evidence: Evidence) -> None:
    page = Page(render_html(replace(evidence, rounds={}, history={}), 3))
    assert "Pruning" not in page.words
    assert "Learning curves" not in page.words


def test_many_classes_leave_the_big_matrices_out(evidence: Evidence) -> None:
    many = replace(evidence, classes=[*CLASSES, *(f"class {k}" for k in range(97))])
    html = render_html(many, 0)
    assert "plot-confusion" not in html
    assert "The most frequent mistakes" in html


def with_pruned_teacher(evidence: Evidence) -> Evidence:
    curve, names = evidence.history["finetune"], ("finetune", "distill", "prune", "prune_finetune", "prune_onnx")
    return replace(
        evidence,
        metrics={name: METRICS.get(name, row(0.85, 1_500_000, 60.0)) for name in names},
        history={**evidence.history, "prune_finetune": curve},
        rounds={"prune": ROUNDS, "prune_finetune": ROUNDS.assign(macs=[30_000_000, 15_000_000])},
        predictions={**evidence.predictions, "prune_finetune": TEACHER},
        confidences={**evidence.confidences, "prune_finetune": CONFIDENCE},
    )


def test_each_pruned_network_has_its_rounds_and_its_curves(evidence: Evidence) -> None:
    both = with_pruned_teacher(evidence)
    text = " ".join(Page(render_html(both, 0)).text)
    for words in ("prune 1 (chosen)", "prune_finetune 1 (chosen)", "finetune with channels removed"):
        assert words in text
    assert "| prune_finetune 1 (chosen) | 15 M |" in report.render_pull_request(both)
    figures = report.render_figures(both)
    assert [trace.name for trace in figures["pruning"].data] == [
        "prune, after recovery", "prune, before recovery",
        "prune_finetune, after recovery", "prune_finetune, before recovery", "chosen",
    ]  # fmt: skip
    assert list(figures["pruning"].data[-1].x) == [300_000, 15_000_000]
    assert figures["pruning"].layout.xaxis.type == "log"
    assert "prune_finetune" in [trace.name for trace in figures["val-accuracy"].data]
    one = report.render_figures(evidence)["pruning"]
    assert [trace.name for trace in one.data] == ["after recovery", "before recovery", "chosen"]


def test_more_candidates_than_colours_are_told_apart(evidence: Evidence) -> None:
    many = replace(evidence, metrics={f"candidate {n}": METRICS["prune"] for n in range(20)})
    assert len({report._style(name, many) for name in many.metrics}) == 20


def write_inputs(folder: Path, evidence: Evidence) -> tuple[Path, Path]:
    reports, evaluated = folder / "reports", folder / "evaluate"
    places = {"prune_finetune": "prune_also/finetune"}
    for path in (reports / "evaluate", evaluated, *(reports / places.get(name, name) for name in evidence.history)):
        path.mkdir(parents=True)
    (reports / "metrics.json").write_text(json.dumps(evidence.metrics, sort_keys=True))
    (reports / "evaluate" / "environment.json").write_text(json.dumps(evidence.environment))
    verdicts = {f"claim_{n}": verdict for n, verdict in enumerate(evidence.verdicts)}
    (reports / "claims.json").write_text(json.dumps(verdicts))
    (reports / "prepare.json").write_text(json.dumps(evidence.integrity))
    for name, frame in evidence.history.items():
        frame.to_csv(reports / places.get(name, name) / "history.csv", index=False)
    for name, frame in evidence.rounds.items():
        frame.to_csv(reports / places.get(name, name) / "rounds.csv", index=False)
    np.savez(
        evaluated / "predictions.npz",
        index=evidence.index,
        labels=evidence.labels,
        **{f"predictions.{name}": values for name, values in evidence.predictions.items()},
        **{f"confidences.{name}": values for name, values in evidence.confidences.items()},
    )
    return reports, evaluated


def test_evidence_is_read_back_from_the_files_that_stages_write(evidence: Evidence, tmp_path: Path) -> None:
    evidence = with_pruned_teacher(evidence)
    reports, evaluated = write_inputs(tmp_path, evidence)
    read = read_evidence(
        reports,
        evaluated,
        images=evidence.images,
        classes=CLASSES,
        data=evidence.data,
        params=evidence.params,
        verdicts=evidence.verdicts,
    )
    assert list(read.metrics) == [
        "finetune",
        "distill",
        "prune",
        "prune_finetune",
        "prune_onnx",
    ]  # in the order of the pipeline, not of the alphabet
    assert read.hashes == {"reports/metrics.json": hashlib.md5((reports / "metrics.json").read_bytes()).hexdigest()}
    assert render_html(replace(read, hashes=evidence.hashes), 3) == render_html(evidence, 3)


def test_the_hash_by_which_the_commit_is_found_is_dvcs(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    lock = subprocess.run(["git", "show", "HEAD:dvc.lock"], cwd=root, capture_output=True, text=True, check=True).stdout
    outs = {out["path"]: out["md5"] for stage in yaml.safe_load(lock)["stages"].values() for out in stage["outs"]}
    text = subprocess.run(
        ["git", "show", "HEAD:reports/metrics.json"], cwd=root, capture_output=True, check=True
    ).stdout
    path = tmp_path / "metrics.json"
    path.write_bytes(text)
    assert report._md5(path) == outs["reports/metrics.json"]
    # and the command on the page names a commit in which dvc.lock has it
    words = report.find_commit(outs["reports/metrics.json"]).split()
    commit = subprocess.run(words, cwd=root, capture_output=True, text=True, check=True).stdout.strip()
    assert len(commit) == 40
    there = subprocess.run(
        ["git", "show", f"{commit}:dvc.lock"], cwd=root, capture_output=True, text=True, check=True
    ).stdout
    assert outs["reports/metrics.json"] in there


# what a fuller evaluation writes beside it
RELIABILITY = pd.DataFrame(
    {
        "candidate": ["finetune"] * 4 + ["prune"] * 4,
        "scaled": [0, 0, 1, 1] * 2,
        "bin": [0, 1] * 4,
        "confidence": [0.6, 0.9, 0.62, 0.85, 0.7, 0.95, 0.65, 0.8],
        "accuracy": [0.61, 0.92, 0.6, 0.88, 0.5, 0.9, 0.6, 0.82],
        "images": [5] * 8,
    }
)
RISK = pd.DataFrame({"candidate": ["prune"] * 3, "coverage": [0.5, 0.8, 1.0], "risk": [0.01, 0.125, 0.3]})
CORRUPTIONS = pd.DataFrame(
    {
        "candidate": ["prune"] * 4,
        "corruption": ["noise", "noise", "blur", "blur"],
        "severity": [1, 3, 1, 3],
        "accuracy": [0.6, 0.4, 0.7, 0.5],  # mean 0.55; clean 0.7
    }
)


@pytest.fixture
def fuller(evidence: Evidence) -> Evidence:
    more = {
        "nll": 0.512, "brier": 0.2, "ece": 0.081, "temperature": 1.5, "nll_scaled": 0.4, "brier_scaled": 0.19,
        "ece_scaled": 0.0123, "aurc": 0.0456, "throughput_b64": 16_000.0, "latency_ms_b64_low": 3.9,
        "latency_ms_b64_high": 4.2, "peak_memory_bytes": 2_500_000,
    }  # fmt: skip
    measured = {**METRICS, "prune": {**METRICS["prune"], **more}}
    return replace(evidence, metrics=measured, reliability=RELIABILITY, risk_coverage=RISK, corruptions=CORRUPTIONS)


def test_a_fuller_evaluation_has_calibration_risk_robustness_and_cost(fuller: Evidence) -> None:
    page = Page(render_html(fuller, 1))
    words = page.words
    assert "prune's calibration error is 8.1 %, and 1.2 % after temperature scaling" in words
    assert "Wrong among the surest 80 %: prune 12.5 %." in words
    assert "Mean of 2 severities. Points against clean images, over all kinds: prune −15.0." in words
    for cell in ("0.512", "0.0456", "16,000", "2.5 MB", "95 %, batch 64", "[3.9, 4.2]", "Calibration", "Robustness"):
        assert cell in words
    keys = {div["id"] for div in page.all("div") if div.get("class") == "plot"}
    assert {"plot-reliability", "plot-risk-coverage", "plot-corruptions", "plot-class-changes"} <= keys
    assert len(page.all("caption")) == len(page.all("table"))


def test_an_evaluation_without_them_has_no_empty_sections(evidence: Evidence) -> None:
    page = Page(render_html(evidence, 1))
    assert "Calibration" not in page.words
    assert "Robustness" not in page.words


def test_differences_from_the_teacher_are_paired(evidence: Evidence) -> None:
    found = report.differences(evidence)
    assert set(found) == {"distill", "prune", "prune_onnx"}
    # 10 images: the small one is wrong on images 0 and 3, where the teacher is right, and right nowhere else
    assert found["prune"].effect == pytest.approx(-0.2)
    assert found["prune"].low < -0.2 < found["prune"].high
    assert found["prune"].p_value == pytest.approx(0.5)  # two coins that both fall one way: 2 * 0.25
    assert (
        f"−20.0 [{points(found['prune'].low)}, {points(found['prune'].high)}]" in Page(render_html(evidence, 0)).words
    )


def test_the_change_of_a_class_has_an_interval(evidence: Evidence) -> None:
    bag, coat, boot = report._class_rows(evidence)
    assert (bag["images"], bag["teacher"], bag["small"]) == (4, 0.75, 0.5)
    assert bag["difference"] == pytest.approx(-0.25)
    assert bag["low"] < -0.25 < bag["high"]
    assert boot["difference"] == 0
    assert coat["difference"] == pytest.approx(-1 / 3)


def test_the_accuracy_of_a_class_has_wilsons_limits_on_the_page(evidence: Evidence) -> None:
    def wilson(right: int, images: int) -> list[float]:  # (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)
        z, p = 1.959964, right / images
        half = z * (p * (1 - p) / images + z**2 / (4 * images**2)) ** 0.5
        return [(p + z**2 / (2 * images) + sign * half) / (1 + z**2 / images) for sign in (-1, 1)]

    bag = report._class_rows(evidence)[0]
    assert bag["teacher_limits"] == pytest.approx(wilson(3, 4), abs=1e-6)
    assert bag["small_limits"] == pytest.approx(wilson(2, 4), abs=1e-6)
    words = row_of(render_html(evidence, 0), "Table of accuracy by class", "bag")
    assert words.startswith("bag 4 75.0 % [30.1, 95.4] 50.0 % [15.0, 85.0] −25.0 [")
    assert "| bag | 4 | 75.0 % [30.1, 95.4] | 50.0 % [15.0, 85.0] | −25.0 |" in report.render_pull_request(evidence)


def test_what_charts_show_is_in_tables_as_well(fuller: Evidence) -> None:
    tables = {chart.key: chart.table for chart in report._charts(fuller)}
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
    assert {chart.table for chart in report._charts(many) if chart.section == "confusion"} == {None}
    assert "of confusion matrices the most frequent mistakes." in Page(render_html(many, 0)).words


def test_markdown_for_a_pull_request_says_what_the_page_says(fuller: Evidence) -> None:
    text = report.render_pull_request(fuller)
    assert text.startswith(headline(METRICS, 10))
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert any(line.startswith("| **not shown** | distill beats <prune>") for line in rows)
    assert any(line.startswith("| prune | −20.0 | [") for line in rows)
    assert "| prune | 0.512 | 0.200 | 8.1 % | 1.50 | 0.400 | 0.190 | 1.2 % | 0.0456 |" in rows
    assert "| 1 (chosen) | 300 k | 30,000 | 50.0 % | 75.0 % |" in rows
    (cost,) = (line for line in rows if line.startswith("| prune | 0.5 |"))
    assert cost == (
        "| prune | 0.5 | 0.571 | 30.0x faster | 4 | [3.9, 4.2] | 8 | 30.0x faster | 16,000 | 2.5 MB | 30,000 | 30,000 |"
    )
    assert "| prune | 70.0 % | 50.0 % | 60.0 % |" in rows  # corrupted
    assert any(line.startswith("| \\</script\\>\\<b\\>coat | 3 |") for line in rows)
    assert "git log -1 --format=%H -S c0ffee -- dvc.lock" in text
    assert "ab" * 32 in text


def test_missing_metrics_name_the_command_that_makes_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"metrics\.json: no such file\. Make it: thinner run"):
        read_metrics(tmp_path / "metrics.json")


def test_readme_gets_the_table_between_its_marks_and_only_there(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"# Title\n\n{BEGIN}\nold\n{END}\n\nThe rest.\n")
    assert update_readme(readme, "| a |\n")
    assert readme.read_text() == f"# Title\n\n{BEGIN}\n| a |\n{END}\n\nThe rest.\n"
    assert not update_readme(readme, "| a |\n")


@pytest.mark.parametrize("text", ["no marks", f"{END} {BEGIN}", f"{BEGIN}{BEGIN}{END}"])
def test_readme_without_its_marks_is_left_alone(tmp_path: Path, text: str) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(UserError, match="needs one line"):
        update_readme(readme, "| a |")
    assert readme.read_text() == text


def test_command_updates_a_readme_and_check_says_whether_it_is_todays(
    evidence: Evidence, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reports, _ = write_inputs(tmp_path, evidence)
    readme = tmp_path / "README.md"
    readme.write_text(f"{BEGIN}\n{END}\n")
    options = ["--readme", str(readme), "--reports", str(reports)]
    assert main([*options, "--check"]) == 1
    assert "Run: python -m thinner.report --readme" in capsys.readouterr().err
    assert main(options) == 0
    assert main([*options, "--check"]) == 0
    readme.write_text(readme.read_text().replace("70.0 %", "99.0 %"))
    assert main([*options, "--check"]) == 1


def test_command_explains_a_missing_readme(
    evidence: Evidence, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reports, _ = write_inputs(tmp_path, evidence)
    assert main(["--readme", str(tmp_path / "none.md"), "--reports", str(reports)]) == 1
    assert "none.md" in capsys.readouterr().err


@pytest.mark.integration
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, False), (1280, True)])
def test_a_real_browser_draws_every_chart_and_has_nothing_to_complain_of(
    fuller: Evidence, tmp_path: Path, width: int, dark: bool
) -> None:
    page = tmp_path / "page.html"
    page.write_text(render_html(fuller, 3))
    with Browser(tmp_path, width=width, dark=dark) as browser:
        browser.open(page.as_uri())
        plots = browser.run("document.querySelectorAll('.plot').length")
        assert plots >= 14
        browser.until(f"document.querySelectorAll('.plot .main-svg').length >= {plots}")
        browser.until("[...document.querySelectorAll('.plot')].every(plot => plot.querySelector('.main-svg'))")
        assert browser.run("document.documentElement.scrollWidth") <= width  # wide tables scroll by themselves
        paper = browser.run("getComputedStyle(document.body).backgroundColor")
        assert paper == ("rgb(20, 23, 26)" if dark else "rgb(255, 255, 255)")
        browser.run("document.querySelectorAll('details').forEach(part => { part.open = true; })")
        assert browser.run("document.documentElement.scrollWidth") <= width  # nor do those that were folded in
        browser.screenshot(tmp_path / "page.png", whole=True)
        assert (tmp_path / "page.png").stat().st_size > 50_000
        assert not browser.complaints
        assert not browser.requests


@pytest.mark.integration
def test_the_table_is_sorted_by_the_keyboard_alone(fuller: Evidence, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(render_html(fuller, 0))
    names = "[...document.querySelectorAll('table.wide tbody th')].map(cell => cell.dataset.value).join()"
    with Browser(tmp_path, dark=True) as browser:
        browser.open(page.as_uri())
        assert browser.run(names) == "finetune,distill,prune,prune_onnx"
        for _ in range(60):
            browser.press("Tab")
            if browser.run("document.activeElement.textContent") == "parameters":
                break
        else:
            pytest.fail("the Tab key does not reach the heading")
        browser.press("Enter")
        assert browser.run(names) == "prune,prune_onnx,distill,finetune"
        assert browser.run("document.activeElement.closest('th').getAttribute('aria-sort')") == "ascending"
        browser.press("Enter")
        assert browser.run(names) == "finetune,distill,prune,prune_onnx"
        # costs are sorted by numbers, 0.375 < 0.5 < 1 < 15, and what has none stands last, whichever way
        costs = "[...document.querySelectorAll('#tradeoff ~ details tbody th')].map(cell => cell.dataset.value).join()"
        press = (
            "[...document.querySelectorAll('#tradeoff ~ details th button')].find(b => b.textContent === '{}').click()"
        )
        browser.run(press.format("ms, batch 1"))
        assert browser.run(costs) == "prune_onnx,prune,distill,finetune"
        browser.run(press.format("images/s, batch 64"))
        assert browser.run(costs).startswith("prune,")
        browser.run(press.format("images/s, batch 64"))
        assert browser.run(costs).startswith("prune,")
        # on paper nothing is folded away, and pages are white, also where the screen is dark
        body = "getComputedStyle(document.body)"
        assert browser.run(f"{body}.backgroundColor") == "rgb(20, 23, 26)"
        dark = [{"name": "prefers-color-scheme", "value": "dark"}]
        browser.call("Emulation.setEmulatedMedia", media="print", features=dark)
        assert browser.run(f"{body}.backgroundColor") == "rgb(255, 255, 255)"
        assert browser.run(f"{body}.color") == "rgb(0, 0, 0)"
        browser.run("dispatchEvent(new Event('beforeprint'))")
        assert browser.run("[...document.querySelectorAll('details')].every(part => part.open)")
        assert browser.run("getComputedStyle(document.querySelector('nav')).display") == "none"
        pdf = browser.call("Page.printToPDF")["data"]
        assert base64.b64decode(pdf).startswith(b"%PDF")
        assert not browser.complaints
