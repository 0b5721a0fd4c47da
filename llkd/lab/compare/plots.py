"""Plots of compared runs, in one HTML file that needs no network."""

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from llkd.lab.compare.results import RunResult, Summary
from llkd.results.report.charts import (
    MAX_HOVER_NAME,
    PALETTE,
    PERCENT_AXIS,
    epoch_axis,
    figure,
    line,
    shown,
)
from llkd.store.folder import Folder

PLOTS = "plots.html"
SETTINGS = {"responsive": True, "displaylogo": False}
SIGNALS = ("confidence", "uncertainty")
MAX_LEGEND = 12
"""Lines that a legend can tell apart."""
UNIT_RANGE = [0, 1.02]
SHARE_AXIS = {**PERCENT_AXIS, "range": UNIT_RANGE}
PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<title>Compared runs</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; margin: 24px; }
section { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 16px; }
figure { margin: 0; }
</style>
<script>{{ plotlyjs|safe }}</script>
{% for title, figures in sections.items() if figures %}
<h2>{{ title }}</h2>
<section>
{% for caption, figure in figures.items() %}
<figure><figcaption>{{ caption }}</figcaption>
{{ figure.to_html(config=settings, full_html=False, include_plotlyjs=False)|safe }}</figure>
{% endfor %}
</section>
{% endfor %}
</html>
"""


def draw_all(folder: Folder, results: Sequence[RunResult], summaries: Sequence[Summary]) -> None:
    """Write PLOTS: scores, shares selected, thresholds and, given gold, the teacher's reliability.

    Where all seeds would be too much, the first seed of each policy is drawn.
    """
    from jinja2 import Environment, StrictUndefined
    from plotly.offline import get_plotlyjs

    first: dict[str, RunResult] = {}
    for result in results:
        if result.epochs:  # a linear probe has none
            first.setdefault(result.policy, result)
    score = _score(results, summaries)
    sections: dict[str, dict[str, go.Figure]] = {
        "Score against rows trained on": {"mean and deviation over the seeds": score},
        "Share of each label's rows selected": {
            policy: _epoch_lines(result, _fractions(result), "share selected", SHARE_AXIS)
            for policy, result in first.items()
        },
    }
    for signal in SIGNALS:
        sections[f"Thresholds on {signal}"] = {
            policy: _epoch_lines(
                result, _thresholds(result, signal), "threshold", {"range": UNIT_RANGE}
            )
            for policy, result in first.items()
            if any(value is not None for values in _thresholds(result, signal) for value in values)
        }
    sections["How often the teacher is right"] = _reliability(first)
    page = Environment(autoescape=True, undefined=StrictUndefined).from_string(PAGE)
    html = page.render(sections=sections, settings=SETTINGS, plotlyjs=get_plotlyjs())
    folder.write_bytes(PLOTS, html.encode())


def _score(results: Sequence[RunResult], summaries: Sequence[Summary]) -> go.Figure:
    """Macro-F1 against row visits: a small mark for each run, a large one for each policy's mean."""
    data = []
    for number, summary in enumerate(summaries):
        color, policy = PALETTE[number % len(PALETTE)], shown(summary.policy, MAX_HOVER_NAME)
        runs = [result for result in results if result.policy == summary.policy]
        common = {"mode": "markers", "name": policy, "legendgroup": policy}
        hover = "%{x:.1%} row visits, macro-F1 %{y:.3f}"
        data += [
            go.Scatter(
                x=[run.row_visits_fraction for run in runs], y=[run.macro_f1 for run in runs],
                marker={"color": color, "size": 6, "opacity": 0.4}, showlegend=False,
                hovertemplate=hover, **common,
            ),
            go.Scatter(
                x=[summary.mean["row_visits_fraction"]], y=[summary.mean["macro_f1"]],
                error_y={"array": [summary.deviation["macro_f1"]]},
                marker={"color": color, "size": 11, "symbol": "square"}, hovertemplate=hover,
                **common,
            ),
        ]  # fmt: skip
    return figure(
        data,
        440,
        showlegend=True,
        xaxis={**PERCENT_AXIS, "title": {"text": "row visits, share of rows × epochs"}},
        yaxis={"title": {"text": "macro-F1 on the test set"}},
    )


Lines = Sequence[Sequence[float | None]]
"""Of each label a value for each epoch."""


def _fractions(result: RunResult) -> Lines:
    labels = result.epochs[0]["classes"]
    return [[entry["classes"][name]["fraction"] for entry in result.epochs] for name in labels]


def _thresholds(result: RunResult, signal: str) -> Lines:
    by_epoch = [entry["thresholds"][f"{signal}_c"] for entry in result.epochs]
    return list(zip(*by_epoch, strict=True))


def _epoch_lines(result: RunResult, lines: Lines, title: str, axis: dict[str, Any]) -> go.Figure:
    """A line for each label."""
    epochs = list(range(1, len(result.epochs) + 1))
    names = [shown(name, MAX_HOVER_NAME) for name in result.epochs[0]["classes"]]
    data = [
        line(epochs, values, name, i, f"{name}<br>epoch %{{x}}: %{{y:.3f}}")
        for i, (name, values) in enumerate(zip(names, lines, strict=True))
    ]
    return figure(
        data,
        showlegend=len(data) <= MAX_LEGEND,
        xaxis=epoch_axis(epochs),
        yaxis={**axis, "title": {"text": title}},
    )


def _reliability(first: Mapping[str, RunResult]) -> dict[str, go.Figure]:
    """The teacher's accuracy by its confidence and by the student's uncertainty."""
    figures = {}
    for signal in SIGNALS:
        curves = {
            policy: result.reliability[signal]
            for policy, result in first.items()
            if result.reliability.get(signal)
        }
        if signal == "confidence":  # the teacher's own: the same in all runs
            curves = dict(list(curves.items())[:1])
        data = [
            line(
                [mean for mean, _, _ in bins], [right for _, right, _ in bins],
                shown(policy, MAX_HOVER_NAME), i, f"{signal} %{{x:.3f}}: %{{y:.1%}} right",
            )
            for i, (policy, bins) in enumerate(curves.items())
        ]  # fmt: skip
        if data:
            figures[f"by {signal}"] = figure(
                data,
                showlegend=signal != "confidence" and len(data) <= MAX_LEGEND,
                xaxis={"title": {"text": signal}},
                yaxis={**SHARE_AXIS, "title": {"text": "share of labels that are right"}},
            )
    return figures
