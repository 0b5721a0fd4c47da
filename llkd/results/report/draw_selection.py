"""The plots of the selection and the training, epoch by epoch."""

from typing import Any

import numpy as np
import plotly.graph_objects as go

from llkd.results.report.derived import (
    MOST_LABELS,
    REASON_NAMES,
    ever_taken_c,
    has_reasons,
    reasons_e4,
    taken_ec,
)
from llkd.results.report.facts import Facts
from llkd.results.report.found import BINS, CELLS
from llkd.results.report.passes import (
    BAR_POLICIES,
    OTHER,
    SELECTED,
    STUDENT_SURE,
    TEACHER_UNSURE,
    planes_of,
)
from llkd.results.report.style import (
    BLACK,
    BLUE,
    DASHES,
    MARKS,
    MOST_RIDGES,
    ORANGE,
    PERCENT_AXIS,
    SEVERAL,
    SKY,
    Variants,
    bars,
    epoch_axis,
    figure,
    label_axis,
    one,
    rows_height,
    shown,
)


def shares(facts: Facts) -> Variants | None:
    """The share of each label's rows that each epoch took; of many labels the least taken."""
    if facts.epochs is None:
        return None
    share_ec, ever_c = taken_ec(facts), ever_taken_c(facts)
    order = np.argsort(ever_c, kind="stable")[:MOST_LABELS]
    order = order[np.isfinite(ever_c[order])]  # the others have no rows
    names = [facts.names[i] for i in order]
    z = share_ec[:, order].T
    epochs = [f"epoch {found['epoch'] + 1}" for found in facts.stats]
    hover = [
        [
            f"{shown(name, 200)}, {epoch}: {z[i, j]:.1%} of its rows"
            for j, epoch in enumerate(epochs)
        ]
        for i, name in enumerate(names)
    ]
    heat = go.Heatmap(
        z=z,
        colorscale="cividis",
        reversescale=True,
        zmin=0,
        zmax=max(float(np.nanmax(z, initial=0)), 0.01),
        xgap=2,
        ygap=2,
        hovertext=hover,
        hoverinfo="text",
        text=[["" if np.isnan(x) else f"{100 * x:.0f}" for x in row] for row in z]
        if len(epochs) <= 10
        else None,
        texttemplate="%{text}" if len(epochs) <= 10 else None,
        colorbar={"tickformat": "~%", "thickness": 10, "outlinewidth": 0},
    )
    axis = {
        "tickvals": list(range(len(epochs))),
        "ticktext": epochs,
        "showgrid": False,
        "zeroline": False,
        "ticks": "",
    }
    return one(figure([heat], rows_height(len(names)), xaxis=axis, yaxis=label_axis(names)))


def reasons(facts: Facts) -> Variants | None:
    """Why rows were left out, epoch by epoch."""
    if facts.epochs is None:
        return None
    share_e4, epochs = reasons_e4(facts), [f"epoch {found['epoch'] + 1}" for found in facts.stats]
    looks = {
        SELECTED: (BLUE, ""),
        TEACHER_UNSURE: (ORANGE, "/"),
        STUDENT_SURE: (SKY, "."),
        OTHER: ("#C9CFD6", "x"),
    }
    texts = REASON_NAMES if has_reasons(facts) else {SELECTED: "selected", OTHER: "left out"}
    data = [
        bars(epochs, share_e4[:, why], text, *looks[why], xhoverformat=".1%")
        for why, text in texts.items()
        if share_e4[:, why].any()
    ]
    return one(
        figure(
            data,
            rows_height(len(epochs)),
            barmode="stack",
            bargap=0.3,
            yaxis=label_axis(epochs),
            xaxis={
                **PERCENT_AXIS,
                "range": [0, 1],
                "title": {"text": "share of the labelled rows"},
            },
        )
    )


def thresholds(facts: Facts) -> Variants | None:
    """What confidence and uncertainty had to reach, epoch by epoch."""
    found: Variants = {}
    own = any(stats["policy"] in BAR_POLICIES for stats in facts.stats)
    for signal, name in (
        ("confidence", "the teacher's confidence" if own else "the policy's confidence"),
        ("uncertainty", "the student's uncertainty"),
    ):
        bars_ec = np.array(
            [stats["thresholds"][f"{signal}_c"] for stats in facts.stats], dtype=float
        )
        if bars_ec.size and np.isfinite(bars_ec).any():
            found[name] = _threshold_lines(facts, bars_ec, "what it has to reach")
    return found or None


def _threshold_lines(facts: Facts, bars_ec: np.ndarray, title: str) -> go.Figure:
    epochs = [stats["epoch"] + 1 for stats in facts.stats]
    if bars_ec.shape[1] <= len(SEVERAL):
        lines = [(name, bars_ec[:, i], i) for i, name in enumerate(facts.names)]
    else:
        with np.errstate(all="ignore"):
            known = np.where(np.isfinite(bars_ec).any(axis=1, keepdims=True), bars_ec, 0)
            levels = np.nanquantile(known, [1, 0.75, 0.5, 0.25, 0], axis=1)
        levels[:, ~np.isfinite(bars_ec).any(axis=1)] = np.nan
        texts = ("highest of all labels", "upper quarter", "median", "lower quarter", "lowest")
        lines = [(text, levels[i], i) for i, text in enumerate(texts)]
    data = [
        go.Scatter(
            x=epochs,
            y=[None if np.isnan(v) else float(v) for v in values],
            mode="lines+markers",
            name=shown(name),
            line={"color": SEVERAL[i], "dash": DASHES[i]},
            marker={"symbol": MARKS[i], "size": 9},
            hovertemplate=shown(name, 200) + "<br>epoch %{x}: %{y:.3f}<extra></extra>",
        )
        for name, values, i in lines
    ]
    return figure(data, 440, xaxis=epoch_axis(epochs), yaxis={"title": {"text": title}})


def uncertainty(facts: Facts) -> Variants | None:
    """How the student's uncertainty is distributed, epoch by epoch."""
    if facts.epochs is None:
        return None
    rows_eb = facts.epochs.tally["uncertainty_e2b"].sum(axis=1)
    known = [e for e in range(len(rows_eb)) if rows_eb[e].any()]
    if not known:
        return None
    known = sorted(
        {known[i] for i in np.linspace(0, len(known) - 1, MOST_RIDGES).round().astype(int)}
    )
    middle, data = (np.arange(BINS) + 0.5) / BINS, []
    for place, e in enumerate(known):
        both = facts.epochs.tally["uncertainty_e2b"][e]
        top = both.sum(axis=0).max()
        for name, rows_b, color, dash in (
            ("all rows", both.sum(axis=0), "#9AA3AD", "solid"),
            ("selected rows", both[1], ORANGE, "dot"),
        ):
            height_b = place - 0.85 * rows_b / top
            base = {"x": middle, "mode": "lines", "legendgroup": name, "hoverinfo": "skip"}
            data.append(
                go.Scatter(y=np.full(BINS, place), line={"width": 0}, showlegend=False, **base)
            )
            data.append(
                go.Scatter(
                    y=height_b,
                    name=name,
                    fill="tonexty",
                    showlegend=place == 0,
                    customdata=rows_b,
                    line={
                        "color": BLACK if name == "all rows" else "#B36B00",
                        "width": 1.5,
                        "dash": dash,
                        "shape": "spline",
                        "smoothing": 0.4,
                    },
                    fillcolor=color,
                    opacity=0.9,
                    hovertemplate="uncertainty about %{x:.3f}: %{customdata:,} "
                    + name
                    + "<extra></extra>",
                    **{k: v for k, v in base.items() if k != "hoverinfo"},
                )
            )
    epochs = [f"epoch {facts.stats[e]['epoch'] + 1}" for e in known]
    axis = {**label_axis(epochs), "range": [len(epochs) - 0.9, -1]}
    return one(
        figure(
            data,
            max(360, 120 + 60 * len(known)),
            yaxis=axis,
            xaxis={"range": [0, 1], "title": {"text": "the student's uncertainty"}},
        )
    )


def loss(facts: Facts) -> Variants | None:
    """Training loss, and agreement on the rows held out, epoch by epoch."""
    if not facts.stats:
        return None
    epochs = [stats["epoch"] + 1 for stats in facts.stats]
    lines = [("training loss", [s["training_loss"] for s in facts.stats], 0, "y")]
    held = [stats["validation"] for stats in facts.stats]
    if all(held):
        lines.append(
            ("macro-F1 on rows held out (right axis)", [v["macro_f1"] for v in held], 1, "y2")
        )
    data = [
        go.Scatter(
            x=epochs,
            y=values,
            mode="lines+markers",
            name=name,
            yaxis=axis,
            line={"color": SEVERAL[i], "dash": DASHES[i]},
            marker={"symbol": MARKS[i], "size": 9},
            hovertemplate="epoch %{x}: %{y:.3f}<extra></extra>",
        )
        for name, values, i, axis in lines
    ]
    layout: dict[str, Any] = {
        "xaxis": epoch_axis(epochs),
        "yaxis": {"rangemode": "tozero", "title": {"text": "training loss"}},
        "showlegend": True,
    }
    if len(lines) > 1:
        layout["yaxis2"] = {
            "overlaying": "y",
            "side": "right",
            "range": [0, 1],
            "dtick": 0.2,
            "zeroline": False,
            "showgrid": False,
            "automargin": True,
        }
    return one(figure(data, 360, **layout))


def plane(facts: Facts) -> Variants | None:
    """The teacher's confidence against the student's uncertainty, and what was taken of it."""
    if facts.epochs is None:
        return None
    found: Variants = {}
    plane_e2gg = facts.epochs.tally["plane_e2gg"]
    for e in reversed(range(len(plane_e2gg))):
        if plane_e2gg[e].any():
            found[f"epoch {facts.stats[e]['epoch'] + 1}, all labels"] = _plane(plane_e2gg[e], None)
    if not found:
        return None
    last = facts.stats[-1]
    if plane_e2gg[-1].any():
        bars = last["thresholds"]
        for p, label in enumerate(planes_of(last)):
            own = (bars["confidence_c"][label], bars["uncertainty_c"][label])
            title = f"epoch {last['epoch'] + 1}, {facts.names[label]}"
            found[title] = _plane(
                facts.epochs.tally["label_plane_c2gg"][p], own if has_reasons(facts) else None
            )
    return found


def _plane(plane_2gg: np.ndarray, bars: tuple[float | None, float | None] | None) -> go.Figure:
    rows, taken = plane_2gg.sum(axis=0).T, plane_2gg[1].T
    middle = (np.arange(CELLS) + 0.5) / CELLS
    with np.errstate(divide="ignore"):
        depth = np.where(rows > 0, np.log10(rows), np.nan)
    top = max(int(np.ceil(np.log10(max(rows.max(), 10)))), 1)
    heat = go.Heatmap(
        x=middle,
        y=middle,
        z=depth,
        zmin=0,
        zmax=max(float(np.nanmax(depth, initial=0)), 0.5),
        customdata=rows,
        colorscale=[[0, "#EDF0F3"], [1, "#4A5561"]],
        xgap=1,
        ygap=1,
        colorbar={
            "title": {"text": "rows"},
            "thickness": 10,
            "outlinewidth": 0,
            "tickvals": list(range(top + 1)),
            "ticktext": [f"{10**k:,}" for k in range(top + 1)],
        },
        hovertemplate="confidence about %{x:.2f}, uncertainty about %{y:.2f}: %{customdata:,} rows<extra></extra>",
    )
    at_y, at_x = np.nonzero(taken)
    count = taken[at_y, at_x]
    size = 4 + 12 * np.sqrt(count / max(count.max(initial=1), 1))
    dots = go.Scatter(
        x=middle[at_x],
        y=middle[at_y],
        mode="markers",
        name="selected rows",
        customdata=count,
        marker={"color": ORANGE, "size": size, "line": {"color": BLACK, "width": 1}},
        hovertemplate="%{customdata:,} rows selected here<extra></extra>",
    )
    made = figure(
        [heat, dots],
        440,
        showlegend=True,
        xaxis={"range": [0, 1], "title": {"text": "the teacher's confidence"}},
        yaxis={"range": [0, 1.02], "title": {"text": "the student's uncertainty"}},
    )
    if bars is not None:
        line = {"color": BLACK, "width": 2, "dash": "dash"}
        if bars[0] is not None:
            made.add_shape(type="line", x0=bars[0], x1=bars[0], y0=bars[1] or 0, y1=1.02, line=line)
        if bars[1] is not None:
            made.add_shape(type="line", x0=bars[0] or 0, x1=1, y0=bars[1], y1=bars[1], line=line)
    return made
