"""The plots of a report, as Plotly figures; each reads well in grey and without red and green.

Label names are shown as they are: Plotly would take `<b>` in them for markup.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from llkd.core.metrics import RANK_BINS, Evaluation
from llkd.report.derived import (
    MOST_LABELS,
    REASON_NAMES,
    doubts,
    has_reasons,
    needs,
    reasons_e4,
    seconds_by_part,
    taken_ec,
)
from llkd.report.facts import Facts
from llkd.report.found import BINS, CELLS
from llkd.report.passes import OTHER, SELECTED, STUDENT_SURE, TEACHER_UNSURE, planes_of

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


def _figure(data: Sequence[Any], height: int, **layout: Any) -> go.Figure:
    axis = {"gridcolor": "#E6EAEE", "zerolinecolor": "#B9C1C9", "automargin": True, "ticks": "outside",
            "tickcolor": "#B9C1C9", "title": {"standoff": 8, "font": {"size": 12}}}  # fmt: skip
    figure = go.Figure(data=list(data))
    figure.update_layout(
        template="none", height=height, margin={"l": 8, "r": 12, "t": 8, "b": 8},
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


def _rows_height(rows: int) -> int:
    return max(100 + 26 * rows, LEAST_HEIGHT)


def _label_axis(names: Sequence[str]) -> dict[str, Any]:
    """Labels from the top down; by place, for names that are cut may be the same."""
    return {
        "tickvals": list(range(len(names))), "ticktext": [shown(name) for name in names],
        "range": [len(names) - 0.5, -0.5], "showgrid": False, "zeroline": False, "ticks": "",
    }  # fmt: skip


def _bars(
    names: Sequence[str], values: Any, title: str, color: str, hatch: str, **more: Any
) -> go.Bar:
    return go.Bar(
        y=list(range(len(names))), x=np.asarray(values, dtype=float).tolist(), orientation="h", name=title,
        marker={"color": color, "pattern": {"shape": hatch, **HATCH}},
        customdata=[shown(name, 200) for name in names],
        hovertemplate="%{customdata}<br>" + title + ": %{x}<extra></extra>", **more,
    )  # fmt: skip


PERCENT_AXIS = {"tickformat": ".0%", "rangemode": "tozero"}


def labels(facts: Facts) -> Variants | None:
    """How often the teacher gives each label, before and after calibration, and gold."""
    if facts.corpus is None:
        return None
    rows_c, raw_c = facts.corpus.tally["rows_c"], facts.corpus.tally["raw_c"]
    order = np.argsort(-rows_c, kind="stable")
    if len(order) > MOST_LABELS:
        order = np.concatenate([order[: MOST_LABELS - 10], order[-10:]])
    names, total = [facts.names[i] for i in order], max(rows_c.sum(), 1)
    data = [_bars(names, rows_c[order] / total, "teacher", TEACHER, "", xhoverformat=".1%")]
    if facts.calibrated:
        before = _bars(
            names, raw_c[order] / total, "teacher, not calibrated", BEFORE, "/", xhoverformat=".1%"
        )
        data.append(before)
    evaluation = facts.corpus.evaluation("calibrated")
    if evaluation is not None:
        gold_c = evaluation.per_class["support"]
        data.append(
            _bars(
                names, gold_c[order] / max(gold_c.sum(), 1), "gold", BLACK, "x", xhoverformat=".1%"
            )
        )
    height = max(_rows_height(len(names)), 90 + (14 + 12 * len(data)) * len(names))
    return one(
        _figure(data, height, barmode="group", bargap=0.25, yaxis=_label_axis(names),
                xaxis={**PERCENT_AXIS, "title": {"text": "share of the rows"}})
    )  # fmt: skip


def confusion(evaluation: Evaluation, names: Sequence[str]) -> Variants:
    """Gold against what was said; of many labels those that are confused most."""
    counts_cc = evaluation.confusion_cc
    wrong_c = counts_cc.sum(axis=0) + counts_cc.sum(axis=1) - 2 * np.diag(counts_cc)
    kept = np.arange(len(names))
    if len(names) > MOST_LABELS:
        kept = np.sort(np.argsort(-wrong_c, kind="stable")[:MOST_LABELS])
    counts = counts_cc[np.ix_(kept, kept)]
    share = counts / np.maximum(counts_cc.sum(axis=1)[kept], 1)[:, None]
    few = len(kept) <= 12
    ticks = {"tickvals": list(range(len(kept))), "ticktext": [shown(names[i], 14) for i in kept],
             "showgrid": False, "zeroline": False, "ticks": ""}  # fmt: skip
    hover = [
        [f"{shown(names[a], 200)} taken for {shown(names[b], 200)}: {counts[i, j]:,} rows, {share[i, j]:.1%}"
         for j, b in enumerate(kept)]
        for i, a in enumerate(kept)
    ]  # fmt: skip
    heat = go.Heatmap(
        z=np.where(counts > 0, share, np.nan), zmin=0, zmax=1, colorscale="cividis", reversescale=True, xgap=1, ygap=1, hovertext=hover,
        hoverinfo="text", colorbar={"tickformat": ".0%", "thickness": 10, "outlinewidth": 0},
        text=[[f"{100 * x:.0f}" if x else "" for x in row] for row in share] if few else None,
        texttemplate="%{text}" if few else None,
    )  # fmt: skip
    return one(
        _figure([heat], max(130 + (44 if few else 22) * len(kept), 420),
                xaxis={**ticks, "title": {"text": "said"}, "tickangle": -40},
                yaxis={**ticks, "title": {"text": "gold"}, "autorange": "reversed"})
    )  # fmt: skip


def confidence(facts: Facts) -> Variants | None:
    """How confident the teacher is; right and wrong apart where there is gold."""
    gold = facts.gold
    evaluation = gold[1].evaluation("calibrated") if gold is not None else None
    if evaluation is not None:
        fine = np.arange(RANK_BINS) * BINS // RANK_BINS
        wrong, right = (np.bincount(fine, rows_r, BINS) for rows_r in evaluation.ranks_2r)
        parts = [("right", right, BLUE, ""), ("wrong", wrong, VERMILLION, "/")]
    elif facts.corpus is not None:
        parts = [("rows", facts.corpus.tally["confidence_b"], TEACHER, "")]
    else:
        return None
    middle = (np.arange(BINS) + 0.5) / BINS
    data = [
        go.Bar(x=middle, y=rows, width=1 / BINS, name=name,
               marker={"color": color, "line": {"color": "white", "width": 1},
                       "pattern": {"shape": hatch, **HATCH}},
               hovertemplate="confidence about %{x:.3f}: %{y:,} " + name + "<extra></extra>")
        for name, rows, color, hatch in parts
    ]  # fmt: skip
    return one(
        _figure(data, 360, barmode="stack", showlegend=len(parts) > 1,
                xaxis={"range": [0, 1], "title": {"text": "the teacher's confidence"}},
                yaxis={"title": {"text": "rows"}})
    )  # fmt: skip


def reliability(curves: Sequence[tuple[str, Evaluation, str, str, str]]) -> Variants:
    """Confidence against accuracy: (name, evaluation, colour, marker, dash) of each curve."""
    data = [
        go.Scatter(x=[0, 1], y=[0, 1], mode="lines", name="as sure as it is right",
                   line={"color": "#B9C1C9", "dash": "dot"}, hoverinfo="skip")
    ]  # fmt: skip
    for name, found, color, mark, dash in curves:
        seen = found.rows_b >= (FEWEST_ROWS if (found.rows_b >= FEWEST_ROWS).any() else 1)
        rows_b = found.rows_b[seen]
        size = 5 + 13 * np.sqrt(rows_b / max(rows_b.max(initial=1), 1))
        data.append(
            go.Scatter(x=found.confidence_b[seen] / rows_b, y=found.correct_b[seen] / rows_b, name=name,
                       mode="lines+markers", customdata=rows_b, line={"color": color, "dash": dash, "width": 1.5},
                       marker={"color": color, "symbol": mark, "size": size, "opacity": 0.9},
                       hovertemplate=name + "<br>confidence %{x:.2f}, right %{y:.0%} of %{customdata:,} rows<extra></extra>")
        )  # fmt: skip
    return one(
        _figure(data, 360, xaxis={"range": [0, 1.02], "title": {"text": "mean confidence"}},
                yaxis={"range": [0, 1.02], "tickformat": ".0%", "title": {"text": "right"}})
    )  # fmt: skip


def teacher_reliability(facts: Facts) -> Variants | None:
    """Before and after calibration."""
    if facts.gold is None:
        return None
    raw, made = (facts.gold[1].evaluation(name) for name in ("raw", "calibrated"))
    assert raw is not None and made is not None
    after = (
        "calibrated" if facts.calibrated else "not calibrated",
        made,
        TEACHER,
        "circle",
        "solid",
    )
    before = ("not calibrated", raw, BEFORE, "square", "dash")
    return reliability([before, after] if facts.calibrated else [after])


def risk(facts: Facts) -> Variants | None:
    """Share of wrong rows among the most confident ones."""
    if facts.gold is None:
        return None
    coverage = np.linspace(0.02, 1, 50)
    kinds = [
        ("calibrated", "calibrated", TEACHER, "solid"),
        ("raw", "not calibrated", BEFORE, "dash"),
    ]
    data = []
    for key, name, color, dash in kinds[: 2 if facts.calibrated else 1]:
        found = facts.gold[1].evaluation(key)
        assert found is not None
        data.append(
            go.Scatter(x=coverage, y=[found.risk_at(float(c)) for c in coverage], mode="lines", name=name,
                       line={"color": color, "dash": dash, "width": 2.5},
                       hovertemplate="most confident %{x:.0%}: %{y:.1%} wrong<extra></extra>")
        )  # fmt: skip
    return one(
        _figure(data, 360, xaxis={**PERCENT_AXIS, "range": [0, 1], "title": {"text": "most confident share of the rows"}},
                yaxis={**PERCENT_AXIS, "title": {"text": "wrong"}})
    )  # fmt: skip


def shares(facts: Facts) -> Variants | None:
    """The share of each label's rows that each epoch took; of many labels the least taken."""
    if facts.epochs is None:
        return None
    share_ec = taken_ec(facts)
    order = np.argsort(np.nan_to_num(np.nanmean(np.nan_to_num(share_ec), axis=0)), kind="stable")[
        :MOST_LABELS
    ]
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
        z=z, colorscale="cividis", reversescale=True, zmin=0, xgap=2, ygap=2, hovertext=hover, hoverinfo="text",
        text=[["" if np.isnan(x) else f"{100 * x:.0f}" for x in row] for row in z] if len(epochs) <= 10 else None,
        texttemplate="%{text}" if len(epochs) <= 10 else None,
        colorbar={"tickformat": ".0%", "thickness": 10, "outlinewidth": 0},
    )  # fmt: skip
    axis = {
        "tickvals": list(range(len(epochs))),
        "ticktext": epochs,
        "showgrid": False,
        "zeroline": False,
        "ticks": "",
    }
    return one(_figure([heat], _rows_height(len(names)), xaxis=axis, yaxis=_label_axis(names)))


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
        _bars(epochs, share_e4[:, why], text, *looks[why], xhoverformat=".1%")
        for why, text in texts.items()
        if share_e4[:, why].any()
    ]
    return one(
        _figure(data, _rows_height(len(epochs)), barmode="stack", bargap=0.3, yaxis=_label_axis(epochs),
                xaxis={**PERCENT_AXIS, "range": [0, 1], "title": {"text": "share of the labelled rows"}})
    )  # fmt: skip


def thresholds(facts: Facts) -> Variants | None:
    """What confidence and uncertainty had to reach, epoch by epoch."""
    found: Variants = {}
    for signal, name in (
        ("confidence", "the teacher's confidence"),
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
        go.Scatter(x=epochs, y=[None if np.isnan(v) else float(v) for v in values], mode="lines+markers", name=shown(name),
                   line={"color": SEVERAL[i], "dash": DASHES[i]}, marker={"symbol": MARKS[i], "size": 9},
                   hovertemplate=shown(name, 200) + "<br>epoch %{x}: %{y:.3f}<extra></extra>")
        for name, values, i in lines
    ]  # fmt: skip
    return _figure(data, 440, xaxis=_epoch_axis(epochs), yaxis={"title": {"text": title}})


def _epoch_axis(epochs: Sequence[int]) -> dict[str, Any]:
    step = max(len(epochs) // 10, 1)
    return {"tickvals": list(epochs)[::step], "title": {"text": "epoch"},
            "range": [epochs[0] - 0.3, epochs[-1] + 0.3], "zeroline": False}  # fmt: skip


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
                go.Scatter(y=height_b, name=name, fill="tonexty", showlegend=place == 0, customdata=rows_b,
                           line={"color": BLACK if name == "all rows" else "#B36B00", "width": 1.5, "dash": dash, "shape": "spline", "smoothing": 0.4},
                           fillcolor=color, opacity=0.9, hovertemplate="uncertainty about %{x:.3f}: %{customdata:,} " + name + "<extra></extra>",
                           **{k: v for k, v in base.items() if k != "hoverinfo"})
            )  # fmt: skip
    epochs = [f"epoch {facts.stats[e]['epoch'] + 1}" for e in known]
    axis = {**_label_axis(epochs), "range": [len(epochs) - 0.9, -1]}
    return one(
        _figure(
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
        go.Scatter(x=epochs, y=values, mode="lines+markers", name=name, yaxis=axis,
                   line={"color": SEVERAL[i], "dash": DASHES[i]}, marker={"symbol": MARKS[i], "size": 9},
                   hovertemplate="epoch %{x}: %{y:.3f}<extra></extra>")
        for name, values, i, axis in lines
    ]  # fmt: skip
    layout: dict[str, Any] = {
        "xaxis": _epoch_axis(epochs),
        "yaxis": {"rangemode": "tozero", "title": {"text": "training loss"}},
        "showlegend": True,
    }
    if len(lines) > 1:
        layout["yaxis2"] = {
            "overlaying": "y",
            "side": "right",
            "range": [0, 1],
            "showgrid": False,
            "automargin": True,
        }
    return one(_figure(data, 360, **layout))


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
        x=middle, y=middle, z=depth, zmin=0, zmax=max(float(np.nanmax(depth, initial=0)), 0.5), customdata=rows,
        colorscale=[[0, "#EDF0F3"], [1, "#4A5561"]], xgap=1, ygap=1,
        colorbar={"title": {"text": "rows"}, "thickness": 10, "outlinewidth": 0,
                  "tickvals": list(range(top + 1)), "ticktext": [f"{10**k:,}" for k in range(top + 1)]},
        hovertemplate="confidence about %{x:.2f}, uncertainty about %{y:.2f}: %{customdata:,} rows<extra></extra>",
    )  # fmt: skip
    at_y, at_x = np.nonzero(taken)
    count = taken[at_y, at_x]
    size = 4 + 12 * np.sqrt(count / max(count.max(initial=1), 1))
    dots = go.Scatter(
        x=middle[at_x], y=middle[at_y], mode="markers", name="selected rows", customdata=count,
        marker={"color": ORANGE, "size": size, "line": {"color": BLACK, "width": 1}},
        hovertemplate="%{customdata:,} rows selected here<extra></extra>",
    )  # fmt: skip
    figure = _figure(
        [heat, dots], 440, showlegend=True,
        xaxis={"range": [0, 1], "title": {"text": "the teacher's confidence"}},
        yaxis={"range": [0, 1.02], "title": {"text": "the student's uncertainty"}},
    )  # fmt: skip
    if bars is not None:
        line = {"color": BLACK, "width": 2, "dash": "dash"}
        if bars[0] is not None:
            figure.add_shape(
                type="line", x0=bars[0], x1=bars[0], y0=bars[1] or 0, y1=1.02, line=line
            )
        if bars[1] is not None:
            figure.add_shape(type="line", x0=bars[0] or 0, x1=1, y0=bars[1], y1=bars[1], line=line)
    return figure


def classes(facts: Facts) -> Variants | None:
    """F1 of teacher and student by label; of many labels those where they differ most."""
    teacher, student = _tested(facts)
    if teacher is None or student is None:
        return None
    t, s = teacher.per_class["f1"], student.per_class["f1"]
    seen = np.flatnonzero((student.per_class["support"] > 0) | (s > 0))
    kept = seen[np.argsort(-np.abs(s - t)[seen], kind="stable")[:MOST_LABELS]]
    kept = kept[np.argsort(s[kept], kind="stable")]
    names, places = [facts.names[i] for i in kept], list(range(len(kept)))
    joined_x = [x for i in kept for x in (float(t[i]), float(s[i]), None)]
    joined_y = [y for place in places for y in (place, place, None)]
    data: list[Any] = [
        go.Scatter(
            x=joined_x,
            y=joined_y,
            mode="lines",
            line={"color": "#B9C1C9", "width": 3},
            showlegend=False,
            hoverinfo="skip",
        )
    ]
    for name, values, color, mark in (
        ("teacher", t, TEACHER, "diamond"),
        ("student", s, STUDENT, "circle"),
    ):
        data.append(
            go.Scatter(x=values[kept], y=places, mode="markers", name=name, marker={"color": color, "symbol": mark, "size": 11},
                       customdata=[shown(n, 200) for n in names],
                       hovertemplate="%{customdata}<br>" + name + ": F1 %{x:.3f}<extra></extra>")
        )  # fmt: skip
    return one(
        _figure(data, _rows_height(len(names)), xaxis={"range": [-0.02, 1.02], "title": {"text": "F1 on the test set"}},
                yaxis=_label_axis(names))
    )  # fmt: skip


def _tested(facts: Facts) -> tuple[Evaluation | None, Evaluation | None]:
    if facts.test is None:
        return None, None
    return facts.test.evaluation("teacher"), facts.test.evaluation("student")


def both_reliability(facts: Facts) -> Variants | None:
    """Student and teacher on the test set."""
    teacher, student = _tested(facts)
    if teacher is None or student is None:
        return None
    return reliability(
        [
            ("teacher", teacher, TEACHER, "diamond", "dash"),
            ("student", student, STUDENT, "circle", "solid"),
        ]
    )


def outcomes(facts: Facts) -> Variants | None:
    """Who is right, by label; of many labels those that the student misses most rows of."""
    if facts.test is None:
        return None
    outcome_c4 = facts.test.tally["outcome_c4"]
    kept = [need.label for need in needs(outcome_c4)[:MOST_LABELS]]
    if not kept:
        return None
    names, looks = [facts.names[i] for i in kept], (
        ("neither is right", 3, BLACK, "x"), ("teacher alone is right", 2, VERMILLION, "/"),
        ("student alone is right", 1, SKY, "."), ("both are right", 0, "#C9CFD6", ""),
    )  # fmt: skip
    data = [
        _bars(names, outcome_c4[kept, who], text, color, hatch) for text, who, color, hatch in looks
    ]
    return one(
        _figure(data, _rows_height(len(names)), barmode="stack", bargap=0.3, yaxis=_label_axis(names),
                xaxis={"title": {"text": "test rows of the label"}})
    )  # fmt: skip


def doubt(facts: Facts) -> Variants | None:
    """Without gold: by label, how sure teacher and student are."""
    found = doubts(facts)[:MOST_LABELS]
    if not found:
        return None
    names = [facts.names[label] for label, _, _ in found]
    data = [
        _bars(
            names,
            [1 - sure for _, sure, _ in found],
            "teacher: one less its confidence",
            TEACHER,
            "/",
            xhoverformat=".2f",
        ),
        _bars(
            names,
            [unsure for _, _, unsure in found],
            "student: uncertainty",
            STUDENT,
            "",
            xhoverformat=".2f",
        ),
    ]
    return one(
        _figure(data, _rows_height(len(names)), barmode="group", yaxis=_label_axis(names),
                xaxis={"range": [0, 1], "title": {"text": "mean over the rows of the label, last epoch"}})
    )  # fmt: skip


def time(facts: Facts) -> Variants | None:
    """Where the time went."""
    parts = {name: seconds for name, seconds in seconds_by_part(facts).items() if seconds}
    if not parts:
        return None
    longest = max(parts.values())
    unit, by = (
        ("seconds", 1)
        if longest < 300
        else ("minutes", 60)
        if longest < 3 * 3600
        else ("hours", 3600)
    )
    names = list(parts)
    bars = _bars(names, [seconds / by for seconds in parts.values()], unit, BLUE, "", xhoverformat=".1f",
                 text=[f"{seconds / by:,.1f}" for seconds in parts.values()], textposition="auto")  # fmt: skip
    return one(
        _figure(
            [bars],
            _rows_height(len(names)),
            bargap=0.3,
            yaxis=_label_axis(names),
            xaxis={"title": {"text": unit}},
        )
    )


def pipeline(facts: Facts) -> Variants | None:
    """How many rows come through the steps on the corpus."""
    steps = [
        step
        for step in facts.steps
        if step.rows_out is not None and step.name in ("ingest corpus", "label corpus")
    ]
    if not steps:
        return None
    named = [("rows read", steps[0].rows_in or 0), ("usable", steps[0].rows_out or 0)]
    named += [("labelled", step.rows_out or 0) for step in steps[1:]]
    if facts.epochs is not None:
        visits_ce = facts.epochs.tally["visits_ce"]
        named.append(("trained on, ever", int(visits_ce[:, 1:].sum())))
        named += [(f"in epoch {s['epoch'] + 1}", s["selected"]) for s in facts.stats[-8:]]
    names, values = [name for name, _ in named], [value for _, value in named]
    bars = _bars(
        names,
        values,
        "rows",
        BLUE,
        "",
        xhoverformat=",",
        text=[f"{v:,}" for v in values],
        textposition="auto",
    )
    return one(
        _figure(
            [bars],
            _rows_height(len(names)),
            bargap=0.3,
            yaxis=_label_axis(names),
            xaxis={"title": {"text": "rows"}},
        )
    )
