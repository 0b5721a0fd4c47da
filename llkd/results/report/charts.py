"""The style of the plots: legible in greyscale, in print and with any colour vision.

Label names are escaped: Plotly would interpret `<b>` in them as markup.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

# The palette of Okabe and Ito, distinguishable with any colour vision.
BLUE, ORANGE, GREEN, SKY, VERMILLION, PURPLE, GREY, BLACK = (
    "#0072B2", "#E69F00", "#009E73", "#56B4E9", "#D55E00", "#CC79A7", "#9AA3AD", "#1D2733",
)  # fmt: skip
PALE = "#C9CFD6"
AXIS = "#B9C1C9"
PALETTE = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, BLACK, GREY)
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "solid", "dash")
MARKS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "triangle-down", "star")
TEACHER, STUDENT, UNCALIBRATED = VERMILLION, BLUE, GREY
HATCH = {"fillmode": "overlay", "fgcolor": "#ffffff", "size": 6, "solidity": 0.3}
MAX_NAME = 26
"""Characters of a label name at an axis."""
MAX_HOVER_NAME = 200
MAX_LABELS = 15
"""Labels in a bar chart; the tables list all of them."""
MIN_HEIGHT = 340
PERCENT_AXIS = {"tickformat": "~%", "rangemode": "tozero"}

Series = tuple[str, Any, str, str]
"""(name, values, colour, hatch) of bars."""


def shown(name: str, longest: int = MAX_NAME) -> str:
    """A name for a plot, truncated and escaped."""
    cut = name if len(name) <= longest else f"{name[: longest - 1]}…"
    return cut.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def figure(data: Sequence[Any], height: int = 360, **layout: Any) -> go.Figure:
    """A plot of a height in pixels; `layout` overrides the common style."""
    axis = {
        "gridcolor": "#E6EAEE", "zerolinecolor": AXIS, "automargin": True, "ticks": "outside",
        "tickcolor": AXIS, "title": {"standoff": 8, "font": {"size": 12}},
    }  # fmt: skip
    figure = go.Figure(data=list(data))
    figure.update_layout(
        template="none", height=height, margin={"l": 8, "r": 24, "t": 8, "b": 8},
        font={"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 12,
              "color": BLACK},
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", hoverlabel={"namelength": -1},
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom",
                "traceorder": "normal"},
        dragmode=False,
    )  # fmt: skip
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    figure.update_layout(**layout)
    return figure


def rows_height(rows: int) -> int:
    """The height of a plot with a row for each label."""
    return max(100 + 26 * rows, MIN_HEIGHT)


def category_axis(names: Sequence[str], longest: int = MAX_NAME) -> dict[str, Any]:
    """Ticks by position, because truncated names may be equal."""
    return {
        "tickvals": list(range(len(names))), "ticktext": [shown(name, longest) for name in names],
        "showgrid": False, "zeroline": False, "ticks": "",
    }  # fmt: skip


def label_axis(names: Sequence[str]) -> dict[str, Any]:
    """Labels from top to bottom."""
    return {**category_axis(names), "range": [len(names) - 0.5, -0.5]}


def epoch_axis(epochs: Sequence[int]) -> dict[str, Any]:
    """Epochs from left to right, counted from 1."""
    step = max(len(epochs) // 10, 1)
    return {
        "tickvals": list(epochs)[::step], "title": {"text": "epoch"},
        "range": [epochs[0] - 0.3, epochs[-1] + 0.3], "zeroline": False,
    }  # fmt: skip


def bars(
    names: Sequence[str],
    series: Sequence[Series],
    axis: dict[str, Any],
    *,
    hover: str | None = None,
    text: Sequence[str] | None = None,
    height: int | None = None,
    **layout: Any,
) -> go.Figure:
    """Horizontal bars of several series, a group or a stack for each name.

    Args:
        names: from top to bottom.
        series: see Series.
        axis: the x axis.
        hover: number format of the values shown on hovering.
        text: labels of the bars.
        height: in pixels; by default it grows with the names.
        layout: see `figure`.
    """
    more = {} if text is None else {"text": list(text), "textposition": "auto"}
    if hover is not None:
        more["xhoverformat"] = hover
    data = [
        go.Bar(
            y=list(range(len(names))), x=np.asarray(values, dtype=float).tolist(), orientation="h",
            name=name, marker={"color": color, "pattern": {"shape": hatch, **HATCH}},
            customdata=[shown(label, MAX_HOVER_NAME) for label in names],
            hovertemplate="%{customdata}<br>" + name + ": %{x}<extra></extra>", **more,
        )
        for name, values, color, hatch in series
    ]  # fmt: skip
    layout = {"bargap": 0.3, "yaxis": label_axis(names), "xaxis": axis, **layout}
    return figure(data, height or rows_height(len(names)), **layout)


def line(
    x: Sequence[Any], values: Sequence[float | None], name: str, style: int, hover: str, **more: Any
) -> go.Scatter:
    """A line with markers, in one of the styles of PALETTE, DASHES and MARKS; NaN and None leave a
    gap."""
    style %= len(PALETTE)
    return go.Scatter(
        x=list(x), y=[None if v is None or np.isnan(v) else float(v) for v in values],
        mode="lines+markers", name=name, hovertemplate=hover + "<extra></extra>",
        line={"color": PALETTE[style], "dash": DASHES[style]},
        marker={"symbol": MARKS[style], "size": 9}, **more,
    )  # fmt: skip


def share_map(share: np.ndarray, top: float, hover: list[list[str]], numbers: bool) -> go.Heatmap:
    """Shares as coloured cells; NaN leaves a cell empty.

    Args:
        share: shape (rows, columns).
        top: the share of the darkest colour.
        hover: texts shown on hovering over each cell.
        numbers: whether to print the percentage into each cell.
    """
    text = [["" if np.isnan(x) else f"{100 * x:.0f}" for x in row] for row in share]
    return go.Heatmap(
        z=share, zmin=0, zmax=top, colorscale="cividis", reversescale=True, xgap=1, ygap=1,
        hovertext=hover, hoverinfo="text", text=text if numbers else None,
        texttemplate="%{text}" if numbers else None,
        colorbar={"tickformat": "~%", "thickness": 10, "outlinewidth": 0},
    )  # fmt: skip
