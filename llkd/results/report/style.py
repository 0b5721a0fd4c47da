"""How the plots of a report look: in grey, on paper and without red and green as well.

Label names are shown as they are: Plotly would take `<b>` in them for markup.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

# Okabe and Ito's colours, told apart by all kinds of sight.
BLUE, ORANGE, GREEN, SKY, VERMILLION, PURPLE, GREY, BLACK = (
    "#0072B2", "#E69F00", "#009E73", "#56B4E9", "#D55E00", "#CC79A7", "#9AA3AD", "#1D2733",
)  # fmt: skip
SEVERAL = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, BLACK, GREY)
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "solid", "dash")
MARKS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "triangle-down", "star")
TEACHER, STUDENT, BEFORE = VERMILLION, BLUE, GREY
HATCH = {"fillmode": "overlay", "fgcolor": "#ffffff", "size": 6, "solidity": 0.3}
LONGEST_NAME = 26

LEAST_HEIGHT = 340
MOST_RIDGES = 8
FEWEST_ROWS = 5
"""A bin of fewer says nothing about reliability."""

Variants = dict[str, go.Figure]
"""A figure for each choice that the reader has; one of no name where there is none."""


def shown(name: str, longest: int = LONGEST_NAME) -> str:
    """A name for a plot: cut, and with no markup in it."""
    cut = name if len(name) <= longest else f"{name[: longest - 1]}…"
    return cut.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def one(figure: go.Figure) -> Variants:
    """A figure without a choice."""
    return {"": figure}


PERCENT_AXIS = {"tickformat": "~%", "rangemode": "tozero"}


def figure(data: Sequence[Any], height: int, **layout: Any) -> go.Figure:
    """A plot of so many pixels; `layout` goes over what all have in common."""
    axis = {"gridcolor": "#E6EAEE", "zerolinecolor": "#B9C1C9", "automargin": True, "ticks": "outside",
            "tickcolor": "#B9C1C9", "title": {"standoff": 8, "font": {"size": 12}}}  # fmt: skip
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
    """The height of a plot with so many bars."""
    return max(100 + 26 * rows, LEAST_HEIGHT)


def label_axis(names: Sequence[str]) -> dict[str, Any]:
    """Labels from the top down; by place, for names that are cut may be the same."""
    return {
        "tickvals": list(range(len(names))), "ticktext": [shown(name) for name in names],
        "range": [len(names) - 0.5, -0.5], "showgrid": False, "zeroline": False, "ticks": "",
    }  # fmt: skip


def bars(
    names: Sequence[str], values: Any, title: str, color: str, hatch: str, **more: Any
) -> go.Bar:
    """Bars of one kind, from the top down."""
    return go.Bar(
        y=list(range(len(names))), x=np.asarray(values, dtype=float).tolist(), orientation="h", name=title,
        marker={"color": color, "pattern": {"shape": hatch, **HATCH}},
        customdata=[shown(name, 200) for name in names],
        hovertemplate="%{customdata}<br>" + title + ": %{x}<extra></extra>", **more,
    )  # fmt: skip


def epoch_axis(epochs: Sequence[int]) -> dict[str, Any]:
    """Epochs from the left to the right, counted from 1."""
    step = max(len(epochs) // 10, 1)
    return {"tickvals": list(epochs)[::step], "title": {"text": "epoch"},
            "range": [epochs[0] - 0.3, epochs[-1] + 0.3], "zeroline": False}  # fmt: skip
