"""thinner.evidence.markdown: every number in results.md is computed."""

from dataclasses import replace

from tests.measured import ENVIRONMENT, METRICS
from thinner.evidence.candidates import headline
from thinner.evidence.markdown import render_markdown, render_pull_request
from thinner.evidence.results import Results


def test_markdown_table_has_a_row_per_candidate_with_computed_deltas() -> None:
    verdict = {"claim": "prune beats scratch on accuracy", "kind": "beats", "outcome": "proven", "numbers": "+9 points"}
    assert "| **proven** | prune beats scratch on accuracy | +9 points |" in render_markdown(
        METRICS, ENVIRONMENT, "prune", [verdict]
    )
    lines = render_markdown(METRICS, ENVIRONMENT, "prune", [verdict]).splitlines()
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


def test_milliseconds_of_a_gpu_are_not_said_to_be_the_cpus() -> None:
    on_gpu = {name: row | {"device": "cuda"} if row["runtime"] == "pytorch" else row for name, row in METRICS.items()}
    text = render_markdown(on_gpu, replace(ENVIRONMENT, accelerator="NVIDIA X"), "prune")
    assert "ms, on cuda)." in text and "1 thread)" not in text
    rows = {line.split("|")[1].strip(" *"): line for line in text.splitlines() if line.startswith("| ")}
    assert rows["distill"].endswith("| PyTorch, cuda |") and rows["prune_onnx"].endswith("| ONNX Runtime |")
    assert f"runs on {ENVIRONMENT.cpu}, 1 thread; of networks in PyTorch on NVIDIA X. MACs are" in text


def test_markdown_for_a_pull_request_says_what_the_page_says(fuller: Results) -> None:
    text = render_pull_request(fuller)
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
