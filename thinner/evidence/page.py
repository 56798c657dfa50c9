"""The page: one HTML file that needs nothing but a browser. Equal results give equal pages."""

from __future__ import annotations

import base64
import io
import math
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import plotly.graph_objects as go
import plotly.io
import plotly.offline
import yaml
from jaxtyping import UInt8
from markupsafe import Markup, escape
from PIL import Image

from thinner.evidence import candidates, charts, prediction_charts
from thinner.evidence.answers import alternatives, first_answers
from thinner.evidence.candidates import SMALLEST, TEACHER, WHAT, headline
from thinner.evidence.charts import Chart
from thinner.evidence.comparisons import (
    CHOSEN,
    class_rows,
    differences,
    has_masks,
    ladder_table,
    most_confused,
    rounds_table,
    stages_table,
)
from thinner.evidence.glossary import Glossary
from thinner.evidence.prediction_charts import MOST_CLASSES_IN_A_TABLE
from thinner.evidence.results import Results, find_commit
from thinner.evidence.self_training_line import self_training_line
from thinner.evidence.shipping import ship_line
from thinner.words import interval, limits, percent, points, with_thousands

MOST_CLASSES_IN_A_CHART = 40
SAMPLE_SIDE_PX = 96  # a larger picture is shown reduced, so that the page stays small


def render_html(results: Results, samples: int) -> str:
    """The page. ``samples``: how many images that the smallest candidate gets wrong are shown."""
    folder = Path(__file__).parent / "templates"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "points": points,
        "interval": lambda estimate: interval(estimate.low, estimate.high),
        "limits": lambda pair: limits(*pair),
        "comma": lambda value: f"{value:,}",
        "thousands": with_thousands,
    }
    glossary = Glossary()
    environment.filters["breakable"] = lambda name: escape(name).replace("_", Markup("_<wbr>"))
    environment.filters |= {"marked": glossary.marked, "explained": glossary.heading}
    environment.globals |= {"zip": zip, "chart": _chart_json, "find_commit": find_commit}
    environment.globals |= {"term": glossary.term, "used_terms": glossary.used}
    accuracy = results.metrics[SMALLEST]["accuracy"]
    pruned = "weights set to zero" if has_masks(results) else "channels removed"
    what = WHAT | {"prune": f"{results.params['prune']['source']} with {pruned}"}
    return environment.get_template("report.html.j2").render(
        results=results,
        teacher_name=TEACHER,
        small_name=SMALLEST,
        what=what,
        answers=first_answers(results, what),
        alternatives=alternatives(results),
        has_exports=any(row["runtime"] == "onnxruntime" for row in results.metrics.values()),
        asked=results.shipped if results.shipped in results.metrics else SMALLEST,
        candidates=candidates.for_page(results.metrics, differences(results)),
        rounds=rounds_table(results),
        ladder=ladder_table(results),
        chosen_round=CHOSEN,
        verdicts=results.verdicts,
        headline=headline(results.metrics, len(results.labels)),
        shipped=results.shipped if results.ready else None,
        ship_line=ship_line(results.metrics, results.shipped, results.verdicts, results.targets),
        targets=results.targets,
        self_training=self_training_line(results.self_training) if results.self_training else "",
        calibration=candidates.calibration(results.metrics),
        cost=candidates.costs(results.metrics),
        standard_error=_standard_error(accuracy, len(results.labels)),
        charts=all_charts(results),
        runs=stages_table(results),
        whole_matrices=len(results.classes) <= MOST_CLASSES_IN_A_TABLE,
        confusions=most_confused(results),
        class_rows=class_rows(results),
        wrong=_wrong_samples(results, samples),
        wrong_count=int((results.predictions[SMALLEST] != results.labels).sum()),
        params_yaml=yaml.safe_dump(dict(results.params), sort_keys=False, allow_unicode=True, default_flow_style=None),
        plotly_js=plotly.offline.get_plotlyjs(),
    )


def render_figures(results: Results) -> dict[str, go.Figure]:
    """The page's charts by name, for those who keep figures elsewhere."""
    return {chart.key: chart.figure for chart in all_charts(results)}


def all_charts(results: Results) -> list[Chart]:
    """In the order of the page."""
    drawn = [*charts.tradeoffs(results), *charts.learning_curves(results), *charts.pruning_curve(results)]
    drawn += charts.sensitivity_chart(results)
    drawn += [*prediction_charts.reliability(results), *prediction_charts.risk_coverage(results)]
    drawn += prediction_charts.corruptions(results)
    if len(results.classes) <= MOST_CLASSES_IN_A_CHART:
        drawn += [prediction_charts.per_class(results), prediction_charts.class_changes(results)]
        drawn += prediction_charts.confusion_matrices(results)
    return drawn


def _chart_json(chart: Chart) -> str:
    # inside <script> only "</" could end the block
    return str(plotly.io.to_json(chart.figure, validate=True)).replace("</", "<\\/")


def _standard_error(share: float, images: int) -> float:
    """Of a share, with two images more that are right and two that are wrong (Agresti & Coull 1998,
    https://doi.org/10.1080/00031305.1998.10480550): where all are right, others need not be."""
    adjusted = (share * images + 2) / (images + 4)
    return math.sqrt(adjusted * (1 - adjusted) / (images + 4))


def _wrong_samples(results: Results, samples: int) -> list[dict[str, Any]]:
    """Images that the smallest candidate gets wrong: first those the teacher gets right, then by sureness."""
    small, teacher = results.predictions[SMALLEST], results.predictions[TEACHER]
    wrong = np.flatnonzero(small != results.labels)
    teacher_wrong = teacher[wrong] != results.labels[wrong]
    order = wrong[np.lexsort((results.index[wrong], -results.confidences[SMALLEST][wrong], teacher_wrong))]
    return [
        {
            "number": int(results.index[k]),
            "actual": results.classes[results.labels[k]],
            "small": results.classes[small[k]],
            "confidence": float(results.confidences[SMALLEST][k]),
            "teacher": results.classes[teacher[k]],
            "teacher_right": bool(teacher[k] == results.labels[k]),
            "png": _png(np.asarray(results.images[results.index[k]])),
        }
        for k in order[:samples]
    ]


def _png(image: UInt8[np.ndarray, "height width channels"]) -> str:
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    picture.thumbnail((SAMPLE_SIDE_PX, SAMPLE_SIDE_PX))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
