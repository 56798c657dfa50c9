"""report: what the other stages wrote, as one HTML page and one Markdown table."""

from __future__ import annotations

from pathlib import Path

from tasks.stage import Stage, run_stage
from thinner.report import read_evidence, render_html, render_markdown
from thinner.store import open_store


def report(stage: Stage) -> None:
    store = open_store("data/prepared")
    evidence = read_evidence(
        Path("reports"),
        Path("data/evaluate"),
        images=store.images,
        classes=store.classes,
        data=store.info,
        params=stage.params.model_dump(mode="json"),
    )
    with stage.output("reports/report.html") as page:
        page.write_text(render_html(evidence, stage.params.report.samples), encoding="utf-8")
    with stage.output("reports/results.md") as table:
        table.write_text(render_markdown(evidence.metrics, evidence.environment), encoding="utf-8")
    for path in ("reports/report.html", "reports/results.md"):
        stage.record.artifact(path)


if __name__ == "__main__":
    run_stage("report", report)
