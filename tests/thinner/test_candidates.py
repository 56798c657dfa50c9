"""thinner.evidence.candidates: what is said of the candidates, and the tables of them."""

from typing import Any

from tests.measured import METRICS, row
from thinner.evidence import candidates
from thinner.evidence.candidates import headline, speed


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


def test_what_prune_also_may_name_has_its_folder() -> None:
    from typing import get_args

    from thinner.params import Prunable

    assert candidates.ALSO == {f"prune_{name}": f"prune_also/{name}" for name in get_args(Prunable)}


def test_a_column_that_nobody_has_a_number_for_is_left_out_and_one_that_somebody_lacks_is_empty() -> None:
    some = {**METRICS, "prune": {**METRICS["prune"], "accuracy_top5": 0.95}}
    assert "top-5" not in candidates.for_markdown(METRICS).headings
    table = candidates.for_markdown(some)
    at = table.headings.index("top-5")
    assert [cells[at] for cells in table.rows] == ["", "", "95.0 %", ""]
    assert [values[at] for values in table.values] == ["", "", 0.95, ""]


def test_all_tables_show_the_batches_that_were_timed() -> None:
    def timed(row: dict[str, Any]) -> dict[str, Any]:
        kept = {key: value for key, value in row.items() if not key.startswith("latency_ms")}
        return kept | {
            "latency_ms_b4": 1.5,
            "latency_ms_b4_p95": 2.0,
            "latency_ms_b32": 6.25,
            "latency_ms_b32_p95": 7.0,
        }

    measured = {name: timed(row) for name, row in METRICS.items()}
    for table, headings in (
        (candidates.for_page(measured, {}), ["ms, batch 4", "ms, batch 32"]),
        (candidates.for_markdown(measured), ["ms, batch 4", "ms, batch 32"]),
        (candidates.for_readme(measured, "prune"), ["ms, batch 32"]),
        (candidates.for_terminal(measured), ["ms b4", "ms b32"]),
    ):
        found = [heading for heading in table.headings if heading.startswith("ms")]
        assert found == headings
        assert table.rows[0][table.headings.index(found[-1])] == "6.25"
    assert "against finetune, batch 32" in candidates.costs(measured).headings


def test_metrics_in_which_every_class_counts_stand_beside_macro_f1_and_the_worst_class_is_named() -> None:
    more = {"balanced_accuracy": 0.815, "worst_class": 0.25, "worst_class_name": "boot"}
    measured = {**METRICS, "prune": {**METRICS["prune"], **more}}
    for table in (candidates.for_markdown(measured), candidates.for_page(measured, {})):
        at = table.headings.index("macro-F1")
        assert list(table.headings[at - 1 : at + 2]) == ["balanced accuracy", "macro-F1", "worst class"]
        (cells,) = (row for row in table.rows if row[0] == "prune")
        assert (cells[at - 1], cells[at + 1]) == ("81.5 %", "25.0 %")
    page = candidates.for_page(measured, {})
    (notes,) = (n for n, row in zip(page.notes, page.rows, strict=True) if row[0] == "prune")
    assert notes[page.headings.index("worst class")] == ["boot"]
    assert "worst class" not in candidates.for_terminal(measured).headings  # 80 columns are full
