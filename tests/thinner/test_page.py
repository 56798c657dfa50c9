"""thinner.evidence.page: every number on the page is computed, and the page stands alone."""

import base64
import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.browser import Browser
from tests.measured import CLASSES, METRICS, ROUNDS, Page, row, row_of, with_candidates
from thinner.evidence import charts
from thinner.evidence.candidates import headline
from thinner.evidence.markdown import render_pull_request
from thinner.evidence.page import render_html
from thinner.evidence.results import Results


def test_weights_set_to_zero_are_counted_where_channels_are_not_removed(results: Results) -> None:
    masked = ROUNDS.assign(macs=600_000, params=60_000, nonzero=[60_000, 24_000], compressed_bytes=[250_000, 120_000])
    page = replace(results, rounds={"prune": masked})
    html = render_html(page, 3)
    assert "1 (chosen) 600 k 60,000 24,000 120 kB" in Page(html).words
    assert "with weights set to zero" in html and "channels removed" not in html
    (chart,) = charts.pruning_curve(page)
    assert list(chart.figure.data[0].x) == [60_000, 24_000]
    assert "not zero" in chart.figure.layout.xaxis.title.text
    lines = render_pull_request(page)
    assert "| round | MACs | parameters | not zero | file, gzip | before recovery | after recovery |" in lines
    assert "| 1 (chosen) | 600 k | 60,000 | 24,000 | 120 kB |" in lines
    assert "not zero" not in render_pull_request(results)
    measured = {**METRICS, "prune": {**METRICS["prune"], "params_nonzero": 12_000}}
    assert "12,000 of its parameters are not zero" in headline(measured, 10)


@pytest.mark.parametrize("shipped", ["prune", "prune_onnx_int8"])
def test_what_is_to_be_shipped_is_named_below_the_headline_and_marked(results: Results, shipped: str) -> None:
    verdicts = [{"claim": f"{shipped} beats network_{n} on accuracy", "kind": "beats", "outcome": outcome, "numbers": ""} for n, outcome in enumerate(
        ("proven", "proven", "proven")
    )]  # fmt: skip
    told = replace(
        with_candidates(results, prune_onnx_int8=row(0.7, 20_000, 2.0, "onnxruntime")),
        params={**results.params, "ship": {"candidate": shipped}},
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
    text = render_pull_request(told)
    assert text.split("\n\n")[1] == f"**{line}**"
    assert [cell for cell in re.findall(r"^\| (.+?) \|", text, re.MULTILINE) if "to ship" in cell] == [
        f"**{shipped}** (to ship)"
    ]


def test_a_missed_target_and_a_shown_loss_stand_before_all_else(results: Results) -> None:
    verdicts = [{"claim": "prune beats small on accuracy", "kind": "beats", "outcome": "proven", "numbers": ""}]
    met = {"candidate": "prune", "met": True, "lines": ["Target met: half."]}
    missed = {"candidate": "prune", "met": False, "lines": ["TARGET MISSED: two thirds."]}
    lost = {"candidate": "prune", "met": True, "lines": ["Target met: half.", "LOSS SHOWN: 3 points."],
            "target": {"macs": 0.5}, "loss_bound": 1.0, "within_bound": "refuted"}  # fmt: skip
    told = {key: replace(results, verdicts=verdicts, targets=[target]) for key, target in
            {"met": met, "missed": missed, "lost": lost}.items()}  # fmt: skip
    text = {key: render_pull_request(one).splitlines() for key, one in told.items()}
    assert text["met"][2] == "**Target met: half.**"
    assert text["missed"][0] == "**TARGET MISSED: two thirds.**"
    assert text["lost"][:3] == ["**Target met: half.**", "", "**LOSS SHOWN: 3 points.**"]
    assert "Nothing is ready to ship (1 of 1 claims proven). prune missed its target." in "".join(text["missed"])
    assert "prune was shown to have lost more than prune.tolerance, 1 points of accuracy" in "".join(text["lost"])
    for key in ("missed", "lost"):
        assert "(to ship)" not in "".join(text[key])
    for key, one in told.items():
        words = Page(render_html(one, 0)).words
        assert words.index(" ".join(one.targets[0]["lines"])) < words.index(headline(one.metrics, 10)), key
        assert ("to ship" in row_of(render_html(one, 0), "Table of candidates", "prune")) == (key == "met")


def test_top_5_has_a_column_where_it_was_measured(results: Results) -> None:
    five = {name: {**row, "accuracy_top5": 0.95 + n / 100} for n, (name, row) in enumerate(METRICS.items())}
    told = replace(results, metrics=five)
    assert "70.0 % −20.0" in row_of(render_html(told, 0), "Table of candidates", "prune")
    assert "97.0 %" in row_of(render_html(told, 0), "Table of candidates", "prune")
    text = render_pull_request(told)
    assert "| candidate | accuracy | vs baseline | top-5 | macro-F1 |" in text
    assert "| prune | 70.0 % | −20.0 | 97.0 % | 0.700 |" in text
    assert "top" not in Page(render_html(results, 0)).words.replace("top-5", "top").split("Trade-offs")[1].split()
    assert "top-5" not in render_pull_request(results)


def test_a_latency_has_its_interval_and_what_it_is_against_the_teacher(fuller: Results) -> None:
    html = render_html(fuller, 0)
    assert "4 [3.9, 4.2] p95 8 30.0x faster" in row_of(html, "Table of candidates", "prune")
    assert "faster" not in row_of(html, "Table of candidates", "finetune")
    slower = replace(fuller, metrics={**fuller.metrics, "distill": row(0.8, 60_000, 480.0)})
    assert "4.0x slower" in row_of(render_html(slower, 0), "Table of candidates", "distill")
    assert "4 [3.9, 4.2] 8 30.0x faster 16,000 2.5 MB 30,000" in row_of(html, "Table of costs", "prune")


RUNS = {
    "prepare": None,
    "finetune": {"commit": "0123456789abcdef0123", "dirty": False, "seconds": 125.2, "joules": 4_200.0},
    "distill": {"commit": "fedcba9876543210ffff", "dirty": True, "seconds": 7.4, "joules": None},
}


def test_what_was_run_tells_duration_commit_and_energy_of_each_stage(results: Results) -> None:
    told = replace(results, runs=RUNS)
    html = render_html(told, 0)
    assert row_of(html, "Table of stages", "prepare") == "prepare not recorded here"
    assert row_of(html, "Table of stages", "finetune") == "finetune 0123456789ab 2 min 05 s 4.2 kJ"
    assert row_of(html, "Table of stages", "distill") == "distill fedcba987654 and changes 7 s not told"
    text = render_pull_request(told)
    assert "| prepare | not recorded here |  |  |\n| finetune | 0123456789ab | 2 min 05 s | 4.2 kJ |" in text
    assert html == render_html(replace(results, runs={**RUNS}), 0)
    assert "How long the stages took is not recorded here." in Page(render_html(results, 0)).words
    assert "Stages: not recorded here." in render_pull_request(results)


def test_page_is_the_same_for_the_same_evidence(results: Results) -> None:
    assert render_html(results, 3) == render_html(results, 3)


def test_page_stands_alone_and_stays_below_6_mb(results: Results) -> None:
    html = render_html(results, 3)
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


def test_page_can_be_read_by_a_screen_reader(results: Results) -> None:
    page = Page(render_html(results, 3))
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


def test_page_starts_with_what_came_out_and_names_what_was_run(results: Results) -> None:
    words = Page(render_html(results, 3)).words
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


def test_page_never_calls_a_ratio_of_macs_a_speed_up(results: Results) -> None:
    words = Page(render_html(results, 3)).words.lower()
    assert "speed-up" not in words
    assert "speedup" not in words
    assert not re.search(r"faster[^.]*macs|macs[^.]*faster", words.replace("macs and a file", ""))


def test_class_names_are_text_and_never_markup(results: Results) -> None:
    html = render_html(results, 3)
    assert "</script><b>coat" not in html
    assert "</script><b>coat" in Page(html).words


def test_every_chart_is_valid_json_for_plotly(results: Results) -> None:
    html = render_html(results, 3)
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


def test_mistakes_show_what_the_teacher_knew_first_and_the_surest_before_others(results: Results) -> None:
    page = Page(render_html(results, 3))
    # the small one is surest on image 109, but there the teacher errs as well
    assert [re.findall(r"image (\d+)", image["alt"] or "")[0] for image in page.all("img")] == [
        "103",
        "100",
        "109",
    ]


def test_below_the_mistakes_stands_how_to_find_wrong_labels_and_near_duplicates(results: Results) -> None:
    words = Page(render_html(results, 1)).words
    mistakes = words[words.index("is wrong on") : words.rindex("What was run")]
    assert "thinner data suspects" in mistakes and "thinner data duplicates" in mistakes


def test_as_many_mistakes_are_shown_as_asked(results: Results) -> None:
    assert len(Page(render_html(results, 1)).all("img")) == 1
    assert len(Page(render_html(results, 0)).all("img")) == 0


def test_a_run_without_pruning_rounds_and_curves_still_has_a_page(results: Results) -> None:
    page = Page(render_html(replace(results, rounds={}, history={}), 3))
    assert "Pruning" not in page.words
    assert "Learning curves" not in page.words


def test_many_classes_leave_the_big_matrices_out(results: Results) -> None:
    many = replace(results, classes=[*CLASSES, *(f"class {k}" for k in range(97))])
    html = render_html(many, 0)
    assert "plot-confusion" not in html
    assert "The most frequent mistakes" in html


def test_a_fuller_evaluation_has_calibration_risk_robustness_and_cost(fuller: Results) -> None:
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


def test_an_evaluation_without_them_has_no_empty_sections(results: Results) -> None:
    page = Page(render_html(results, 1))
    assert "Calibration" not in page.words
    assert "Robustness" not in page.words


def test_the_first_screen_answers_before_anything_else_and_the_glossary_explains_what_is_used(results: Results) -> None:
    html = render_html(results, 1)
    words = Page(html).words
    order = ["Which one?", "How sure?", "What does it cost?", "What did it lose?", headline(METRICS, 10), "Verdicts"]
    assert [words.index(part) for part in order] == sorted(words.index(part) for part in order)
    assert row_of_alternatives(html, "prune_onnx").startswith("ONNX Runtime prune_onnx 1.3x faster 70.0 %, 0.0 [")
    used = set(re.findall(r'class="term" href="#(term-[\w-]+)"', html))
    listed = set(re.findall(r'<dt id="(term-[\w-]+)">', html))
    assert {"term-macs", "term-interval", "term-proven", "term-distillation", "term-pareto-front"} <= used <= listed
    assert "term-ece" not in listed  # no calibration was measured
    for term, text in re.findall(r'<dt id="term-[\w-]+">(.+?)</dt><dd>(.+?)</dd>', html):
        assert f'title="{text}"' in html, term


def test_numbers_in_verdicts_have_thousands_also_in_markdown(results: Results) -> None:
    told = replace(
        results,
        verdicts=[{"claim": "c", "kind": "beats", "outcome": "proven", "numbers": "+1.23 points, 10000 images"}],
    )
    assert "+1.23 points, 10,000 images" in Page(render_html(told, 0)).words
    assert "| +1.23 points, 10,000 images |" in render_pull_request(told)


def row_of_alternatives(html: str, name: str) -> str:
    body = html.partition('aria-label="Table of alternatives"')[2].partition("</table>")[0]
    (found,) = (row for row in body.split("<tr") if f">{name}</th>" in row)
    return Page("<tr" + found).words


@pytest.mark.integration
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (420, 900)])
def test_all_four_answers_are_on_the_first_screen(fuller: Results, tmp_path: Path, width: int, height: int) -> None:
    page = tmp_path / "page.html"
    page.write_text(render_html(fuller, 0))
    with Browser(tmp_path, width=width, height=height) as browser:
        browser.open(page.as_uri())
        bottom = browser.run("document.querySelector('dl.answers').getBoundingClientRect().bottom")
        assert 0 < bottom <= height
        assert browser.run("document.querySelectorAll('dl.answers dd.short').length") == 4


@pytest.mark.integration
def test_a_word_is_explained_to_who_comes_by_the_keyboard_and_on_paper(fuller: Results, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(render_html(fuller, 0))
    shown = "(tip => tip.hidden ? '' : tip.textContent)(document.getElementById('tip'))"
    with Browser(tmp_path) as browser:
        browser.open(page.as_uri())
        browser.until("!!document.getElementById('tip')")
        assert browser.run(shown) == ""
        for word, explained in (("MACs", "a.term"), ("parameters", "th button")):
            for _ in range(80):
                browser.press("Tab")
                if (
                    browser.run(f"document.activeElement.matches('{explained}') && document.activeElement.textContent")
                    == word
                ):
                    break
            else:
                pytest.fail(f"the Tab key does not reach {word}")
            assert browser.run(shown).startswith({"MACs": "Multiply-accumulate", "parameters": "The numbers of"}[word])
            box = browser.run(
                "(b => [b.left, b.top, b.right, b.bottom])(document.getElementById('tip').getBoundingClientRect())"
            )
            assert box[0] >= 0 and box[1] >= 0 and box[2] <= 1280 and box[3] <= 900
        browser.run("[...document.querySelectorAll('a.term')].find(a => a.textContent === 'MACs').focus()")
        browser.press("Enter")
        assert browser.run("location.hash") == "#term-macs"
        browser.call("Emulation.setEmulatedMedia", media="print")
        assert browser.run("getComputedStyle(document.getElementById('tip')).display") == "none"
        assert browser.run("document.querySelector('dl.glossary').getBoundingClientRect().height") > 100
        assert not browser.complaints


@pytest.mark.integration
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (420, False), (420, True), (390, False)])
def test_a_real_browser_draws_every_chart_and_has_nothing_to_complain_of(
    fuller: Results, tmp_path: Path, width: int, dark: bool
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
        assert browser.run(FAINT) == []
        browser.screenshot(tmp_path / "page.png", whole=True)
        assert (tmp_path / "page.png").stat().st_size > 50_000
        assert not browser.complaints
        assert not browser.requests


# Words whose contrast with what is behind them is under 4.5, as WCAG 2.1 (criterion 1.4.3) defines it; charts aside.
FAINT = """(() => {
    const parts = colour => colour.match(/[\\d.]+/g).map(Number);
    const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
    const behind = element => {
        for (; element; element = element.parentElement) {
            const colour = parts(getComputedStyle(element).backgroundColor);
            if (colour.length < 4 || colour[3] === 1) return colour;
        }
        return [255, 255, 255];
    };
    return [...document.body.querySelectorAll('*')]
        .filter(element => !element.closest('.plot, svg, script, style') && element.checkVisibility()
            && [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim()))
        .filter(element => {
            const [a, b] = [parts(getComputedStyle(element).color), behind(element)].map(light);
            return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5;
        })
        .map(element => element.outerHTML.slice(0, 120));
})()"""

CUT_OFF = """[...document.querySelectorAll('table')]
    .filter(table => table.getBoundingClientRect().right > innerWidth).map(table => table.parentElement.ariaLabel)"""


@pytest.mark.integration
def test_no_column_is_cut_off_and_names_stay_in_sight_where_a_table_is_scrolled(
    fuller: Results, tmp_path: Path
) -> None:
    wide = {
        **fuller.metrics["prune"], "accuracy_top5": 0.99, "balanced_accuracy": 0.89, "worst_class": 0.7, "latency_ms_b1_low": 1.1,
        "worst_class_name": "Ankle boot", "params": 3_381_234, "macs": 31_400_000, "latency_ms_b1_high": 1.3,
    }  # fmt: skip
    names = ("self_train_control", "prune_finetune_onnx_int8", "prune_finetune_openvino_int8")
    page = tmp_path / "page.html"
    page.write_text(render_html(with_candidates(fuller, **dict.fromkeys(names, wide)), 3))
    table = "document.querySelector('table.wide').parentElement"
    name = f"{table}.querySelector('tbody th').getBoundingClientRect()"
    with Browser(tmp_path, width=1280) as browser:
        browser.open(page.as_uri())
        assert browser.run(f"{table}.scrollWidth - {table}.clientWidth") == 0
    with Browser(tmp_path, width=420) as browser:
        browser.open(page.as_uri())
        before = browser.run(f"{name}.left")
        assert browser.run(f"({table}.scrollLeft = 500, {table}.scrollLeft)") == 500
        assert browser.run(f"{name}.left") == before
        assert browser.run(f"{name}.width") < 420 / 2
    with Browser(tmp_path, width=718, dark=True) as browser:  # A4 without margins, at 96 px to the inch
        browser.open(page.as_uri())
        browser.call("Emulation.setEmulatedMedia", media="print")
        browser.run("dispatchEvent(new Event('beforeprint'))")
        assert browser.run(CUT_OFF) == []


@pytest.mark.integration
def test_the_table_is_sorted_by_the_keyboard_alone(fuller: Results, tmp_path: Path) -> None:
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
