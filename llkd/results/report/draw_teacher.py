"""The plots of the teacher."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from llkd.core.metrics import RANK_BINS, Evaluation
from llkd.results.report.derived import MOST_LABELS
from llkd.results.report.facts import Facts
from llkd.results.report.found import BINS
from llkd.results.report.style import (
    BEFORE,
    BLACK,
    BLUE,
    FEWEST_ROWS,
    HATCH,
    PERCENT_AXIS,
    TEACHER,
    VERMILLION,
    Variants,
    bars,
    figure,
    label_axis,
    one,
    rows_height,
    shown,
)

MOST_CONFUSED = 25
"""Labels of a confusion matrix."""


def labels(facts: Facts) -> Variants | None:
    """How often the teacher gives each label, before and after calibration, and gold."""
    if facts.corpus is None:
        return None
    rows_c, raw_c = facts.corpus.tally["rows_c"], facts.corpus.tally["raw_c"]
    order = np.argsort(-rows_c, kind="stable")
    if len(order) > MOST_LABELS:
        order = np.concatenate([order[: MOST_LABELS - 5], order[-5:]])
    names, total = [facts.names[i] for i in order], max(rows_c.sum(), 1)
    data = [bars(names, rows_c[order] / total, "teacher", TEACHER, "", xhoverformat=".1%")]
    if facts.calibrated:
        before = bars(
            names, raw_c[order] / total, "teacher, not calibrated", BEFORE, "/", xhoverformat=".1%"
        )
        data.append(before)
    evaluation = facts.corpus.evaluation("calibrated")
    if evaluation is not None:
        gold_c = evaluation.per_class["support"]
        data.append(
            bars(
                names, gold_c[order] / max(gold_c.sum(), 1), "gold", BLACK, "x", xhoverformat=".1%"
            )
        )
    height = max(rows_height(len(names)), 90 + (10 + 9 * len(data)) * len(names))
    return one(
        figure(
            data,
            height,
            barmode="group",
            bargap=0.25,
            yaxis=label_axis(names),
            xaxis={**PERCENT_AXIS, "title": {"text": "share of the rows"}},
        )
    )


def confusion(evaluation: Evaluation, names: Sequence[str]) -> Variants:
    """Gold against what was said; of many labels those that are confused most."""
    counts_cc = evaluation.confusion_cc
    wrong_c = counts_cc.sum(axis=0) + counts_cc.sum(axis=1) - 2 * np.diag(counts_cc)
    kept = list(range(len(names)))
    if len(names) > MOST_CONFUSED:
        kept = sorted(np.argsort(-wrong_c, kind="stable")[:MOST_CONFUSED].tolist())
    counts = counts_cc[np.ix_(kept, kept)]
    share = counts / np.maximum(counts_cc.sum(axis=1)[kept], 1)[:, None]
    few = len(kept) <= 12
    ticks = {
        "tickvals": list(range(len(kept))),
        "ticktext": [shown(names[i], 14) for i in kept],
        "showgrid": False,
        "zeroline": False,
        "ticks": "",
    }
    hover = [
        [
            f"{shown(names[a], 200)} taken for {shown(names[b], 200)}: {counts[i, j]:,} rows, {share[i, j]:.1%}"
            for j, b in enumerate(kept)
        ]
        for i, a in enumerate(kept)
    ]
    heat = go.Heatmap(
        z=np.where(counts > 0, share, np.nan),
        zmin=0,
        zmax=1,
        colorscale="cividis",
        reversescale=True,
        xgap=1,
        ygap=1,
        hovertext=hover,
        hoverinfo="text",
        colorbar={"tickformat": ".0%", "thickness": 10, "outlinewidth": 0},
        text=[[f"{100 * x:.0f}" if x else "" for x in row] for row in share] if few else None,
        texttemplate="%{text}" if few else None,
    )
    return one(
        figure(
            [heat],
            max(130 + (44 if few else 22) * len(kept), 420),
            xaxis={**ticks, "title": {"text": "said"}, "tickangle": -40 if few else -90},
            yaxis={**ticks, "title": {"text": "gold"}, "autorange": "reversed"},
        )
    )


def confidence(facts: Facts) -> Variants | None:
    """How confident the teacher is; right and wrong apart where there is gold."""
    gold = facts.gold
    evaluation = gold.calibrated if gold is not None else None
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
        go.Bar(
            x=middle,
            y=rows,
            width=1 / BINS,
            name=name,
            marker={
                "color": color,
                "line": {"color": "white", "width": 1},
                "pattern": {"shape": hatch, **HATCH},
            },
            hovertemplate="confidence about %{x:.3f}: %{y:,} " + name + "<extra></extra>",
        )
        for name, rows, color, hatch in parts
    ]
    return one(
        figure(
            data,
            360,
            barmode="stack",
            showlegend=len(parts) > 1,
            xaxis={"range": [0, 1], "title": {"text": "the teacher's confidence"}},
            yaxis={"title": {"text": "rows"}},
        )
    )


def reliability(curves: Sequence[tuple[str, Evaluation, str, str, str]]) -> Variants:
    """Confidence against accuracy: (name, evaluation, colour, marker, dash) of each curve."""
    data = [
        go.Scatter(
            x=[0, 1],
            y=[0, 1],
            mode="lines",
            name="as sure as it is right",
            line={"color": "#B9C1C9", "dash": "dot"},
            hoverinfo="skip",
        )
    ]
    for name, found, color, mark, dash in curves:
        seen = found.rows_b >= (FEWEST_ROWS if (found.rows_b >= FEWEST_ROWS).any() else 1)
        rows_b = found.rows_b[seen]
        size = 5 + 13 * np.sqrt(rows_b / max(rows_b.max(initial=1), 1))
        data.append(
            go.Scatter(
                x=found.confidence_b[seen] / rows_b,
                y=found.correct_b[seen] / rows_b,
                name=name,
                mode="lines+markers",
                customdata=rows_b,
                line={"color": color, "dash": dash, "width": 1.5},
                marker={"color": color, "symbol": mark, "size": size, "opacity": 0.9},
                hovertemplate=name
                + "<br>confidence %{x:.2f}, right %{y:.0%} of %{customdata:,} rows<extra></extra>",
            )
        )
    return one(
        figure(
            data,
            360,
            xaxis={"range": [0, 1.02], "title": {"text": "mean confidence"}},
            yaxis={"range": [0, 1.02], "tickformat": ".0%", "title": {"text": "right"}},
        )
    )


def teacher_reliability(facts: Facts) -> Variants | None:
    """Before and after calibration."""
    if facts.gold is None:
        return None
    raw, made = facts.gold.raw, facts.gold.calibrated
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
        found = getattr(facts.gold, key)
        data.append(
            go.Scatter(
                x=coverage,
                y=[found.risk_at(float(c)) for c in coverage],
                mode="lines",
                name=name,
                line={"color": color, "dash": dash, "width": 2.5},
                hovertemplate="most confident %{x:.0%}: %{y:.1%} wrong<extra></extra>",
            )
        )
    return one(
        figure(
            data,
            360,
            xaxis={
                **PERCENT_AXIS,
                "range": [0, 1],
                "title": {"text": "most confident share of the rows"},
            },
            yaxis={**PERCENT_AXIS, "title": {"text": "wrong"}},
        )
    )
