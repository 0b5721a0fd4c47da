"""Plots of the two signals of selection: the teacher's confidence, the student's uncertainty."""

from typing import Any

import numpy as np
import plotly.graph_objects as go

from llkd.results.report.charts import BLACK, GREY, ORANGE, figure, label_axis
from llkd.results.report.facts import Facts
from llkd.results.report.parts import Plot
from llkd.results.report.passes import planes_of
from llkd.results.report.totals import BINS, CELLS
from llkd.results.report.words import percent
from llkd.results.tracked_figures import mean_uncertainty

MAX_RIDGES = 8
"""Epochs in the plot of uncertainty."""


def plane_plot(facts: Facts, thresholds: bool) -> Plot | None:
    """The teacher's confidence against the student's uncertainty, and what was selected."""
    plane_e2gg, last = facts.epochs["plane_e2gg"], facts.stats[-1]
    figures = {
        f"{name}, all labels": _plane(plane_2gg, None)
        for name, plane_2gg in reversed(list(zip(facts.epoch_names, plane_e2gg, strict=True)))
        if plane_2gg.any()
    }
    if not figures:
        return None
    if plane_e2gg[-1].any():
        for place, label in enumerate(planes_of(last)):
            own = [last["thresholds"][f"{k}_c"][label] for k in ("confidence", "uncertainty")]
            figures[f"epoch {last['epoch'] + 1}, {facts.names[label]}"] = _plane(
                facts.epochs["label_plane_c2gg"][place], own if thresholds else None
            )
    rows_gg, half = plane_e2gg[-1].sum(axis=0), CELLS // 2
    rows = max(int(rows_gg.sum()), 1)
    sure, easy = rows_gg[half:].sum() / rows, rows_gg[half:, :half].sum() / rows
    reading = (
        f"In the last epoch the teacher was confident (above 0.5) on {percent(sure)} of the rows; on "
        f"{percent(easy)} the student was certain too, and had little left to learn."
    )
    title = "All rows (grey) and the selected ones (dots); dashed: the thresholds"
    return Plot("selection-plane", title, reading, figures)


def _plane(plane_2gg: np.ndarray, thresholds: list[float | None] | None) -> go.Figure:
    rows, selected = plane_2gg.sum(axis=0).T, plane_2gg[1].T
    middle = (np.arange(CELLS) + 0.5) / CELLS
    with np.errstate(divide="ignore"):
        depth = np.where(rows > 0, np.log10(rows), np.nan)
    top = max(int(np.ceil(np.log10(max(rows.max(), 10)))), 1)
    cells = go.Heatmap(
        x=middle, y=middle, z=depth, zmin=0, zmax=max(float(np.nanmax(depth, initial=0)), 0.5),
        customdata=rows, colorscale=[[0, "#EDF0F3"], [1, "#4A5561"]], xgap=1, ygap=1,
        colorbar={
            "title": {"text": "rows"}, "thickness": 10, "outlinewidth": 0,
            "tickvals": list(range(top + 1)), "ticktext": [f"{10**k:,}" for k in range(top + 1)],
        },
        hovertemplate="confidence about %{x:.2f}, uncertainty about %{y:.2f}: %{customdata:,} rows<extra></extra>",
    )  # fmt: skip
    at_y, at_x = np.nonzero(selected)
    rows_d = selected[at_y, at_x]
    size = 4 + 12 * np.sqrt(rows_d / max(rows_d.max(initial=1), 1))
    dots = go.Scatter(
        x=middle[at_x], y=middle[at_y], mode="markers", name="selected rows", customdata=rows_d,
        marker={"color": ORANGE, "size": size, "line": {"color": BLACK, "width": 1}},
        hovertemplate="%{customdata:,} rows selected here<extra></extra>",
    )  # fmt: skip
    drawn = figure(
        [cells, dots],
        440,
        showlegend=True,
        xaxis={"range": [0, 1], "title": {"text": "the teacher's confidence"}},
        yaxis={"range": [0, 1.02], "title": {"text": "the student's uncertainty"}},
    )
    confidence, uncertainty = thresholds or (None, None)
    edge = {"type": "line", "line": {"color": BLACK, "width": 2, "dash": "dash"}}
    if confidence is not None:
        drawn.add_shape(x0=confidence, x1=confidence, y0=uncertainty or 0, y1=1.02, **edge)
    if uncertainty is not None:
        drawn.add_shape(x0=confidence or 0, x1=1, y0=uncertainty, y1=uncertainty, **edge)
    return drawn


def uncertainty_plot(facts: Facts) -> Plot | None:
    """The distribution of the student's uncertainty, epoch by epoch."""
    uncertainty_e2b = facts.epochs["uncertainty_e2b"]
    scored = np.flatnonzero(uncertainty_e2b.any(axis=(1, 2)))
    if not len(scored):
        return None
    means = [mean_uncertainty(stats["classes"].values()) for stats in facts.stats]
    known = [mean for mean in means if mean is not None]
    reading = f"The student's mean uncertainty was {known[0]:.2f}."
    if len(known) > 1:
        word = "fell" if known[-1] < known[0] else "rose"
        reading = f"The student's mean uncertainty {word} from {known[0]:.2f} to {known[-1]:.2f}."
    spread = np.linspace(0, len(scored) - 1, MAX_RIDGES).round().astype(int)
    kept = scored[np.unique(spread)]
    data = [trace for place, e in enumerate(kept) for trace in _ridge(uncertainty_e2b[e], place)]
    epochs = [facts.epoch_names[e] for e in kept]
    drawn = figure(
        data,
        max(360, 120 + 60 * len(kept)),
        yaxis={**label_axis(epochs), "range": [len(epochs) - 0.9, -1]},
        xaxis={"range": [0, 1], "title": {"text": "the student's uncertainty"}},
    )
    title = "Distribution of the student's uncertainty, by epoch"
    return Plot("selection-uncertainty", title, reading, drawn)


def _ridge(rows_2b: np.ndarray, place: int) -> list[go.Scatter]:
    """The distributions of all rows and of the selected ones, drawn upwards from a baseline."""
    middle, top, traces = (np.arange(BINS) + 0.5) / BINS, rows_2b.sum(axis=0).max(), []
    for name, rows_b, fill, color, dash in (
        ("all rows", rows_2b.sum(axis=0), GREY, BLACK, "solid"),
        ("selected rows", rows_2b[1], ORANGE, "#B36B00", "dot"),
    ):
        common: dict[str, Any] = {"x": middle, "mode": "lines", "legendgroup": name}
        baseline = go.Scatter(
            y=np.full(BINS, place), line={"width": 0}, showlegend=False, hoverinfo="skip", **common
        )
        ridge = go.Scatter(
            y=place - 0.85 * rows_b / top, name=name, showlegend=place == 0, customdata=rows_b,
            fill="tonexty", fillcolor=fill, opacity=0.9,
            line={"color": color, "width": 1.5, "dash": dash, "shape": "spline", "smoothing": 0.4},
            hovertemplate="uncertainty about %{x:.3f}: %{customdata:,} " + name + "<extra></extra>",
            **common,
        )  # fmt: skip
        traces += [baseline, ridge]
    return traces
