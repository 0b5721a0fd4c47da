"""Plots, tables and sentences about labels measured against gold, the teacher's or the student's."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from llkd.core.metrics import Evaluation
from llkd.results.report.charts import (
    AXIS,
    MAX_HOVER_NAME,
    category_axis,
    figure,
    share_map,
    shown,
)
from llkd.results.report.parts import Plot, Table
from llkd.results.report.words import percent, points, quoted

MAX_CONFUSED = 25
"""Labels of a confusion matrix."""
MAX_LINES = 12
"""Lines of a table of the most frequent cases."""
MIN_ROWS = 5
"""Reliability bins with fewer rows are left out."""
RELIABILITY_TITLE = (
    "Confidence against accuracy; marker size shows the number of rows, bins with fewer than "
    f"{MIN_ROWS} rows are left out"
)


@dataclass(frozen=True)
class Confusion:
    """One label taken for another."""

    label: int
    other: int
    rows: int
    share: float
    """Of the rows of the label."""


def confusions(confusion_cc: np.ndarray) -> list[Confusion]:
    """The MAX_LINES most frequent confusions, the most frequent first.

    Args:
        confusion_cc: rows by (gold, predicted), shape (C, C); of a single row, its distribution
            may stand for the predicted label.
    """
    wrong_cc = confusion_cc - np.diag(np.diag(confusion_cc))
    share_cc = wrong_cc / np.maximum(confusion_cc.sum(axis=1), 1)[:, None]
    kept = min(np.count_nonzero(wrong_cc), MAX_LINES)
    order = np.argsort(-wrong_cc, axis=None, kind="stable")[:kept]
    return [
        Confusion(int(gold), int(other), int(wrong_cc[gold, other]), float(share_cc[gold, other]))
        for gold, other in zip(*np.unravel_index(order, wrong_cc.shape), strict=True)
    ]


def confusion_reading(who: str, evaluation: Evaluation, names: Sequence[str], where: str) -> str:
    """The most frequent confusions in a sentence.

    Args:
        who: `teacher` or `student`.
        evaluation: of its labels.
        names: of the labels.
        where: what it labelled.
    """
    worst = confusions(evaluation.confusion_cc)
    if not worst:
        return f"The {who} makes no mistake on the {where}."
    first, label = worst[0], quoted(names[worst[0].label])
    text = (
        f"The {who} most often takes {label} for {quoted(names[first.other])}: on "
        f"{percent(first.share)} of the {label} rows ({first.rows:,}) of the {where}"
    )
    for second in worst[1:2]:
        text += (
            f"; next {quoted(names[second.label])} for {quoted(names[second.other])}, "
            f"{percent(second.share)}"
        )
    return f"{text}."


def confusion_table(found: Sequence[Confusion], names: Sequence[str], *head: str) -> Table:
    """A table of confusions; `head` is the caption and the four columns."""
    caption, *columns = head
    lines = [[names[c.label], names[c.other], f"{c.rows:,}", percent(c.share)] for c in found]
    return Table(columns, lines, caption)


def confusion_plot(who: str, evaluation: Evaluation, names: Sequence[str], where: str) -> Plot:
    """The confusion matrix with its table; see `confusion_reading`."""
    worst = confusions(evaluation.confusion_cc)
    head = ("Most frequent confusions", "gold", "taken for", "#rows", "#of the label")
    return Plot(
        f"{who}-confusion",
        f"Gold label against the {who}'s label on the {where}, % of each gold label",
        confusion_reading(who, evaluation, names, where),
        _confusion_map(evaluation.confusion_cc, names),
        confusion_table(worst, names, *head),
        wide=True,
    )


def _confusion_map(confusion_cc: np.ndarray, names: Sequence[str]) -> go.Figure:
    """Gold against predicted labels; of many labels, the most confused ones."""
    wrong_c = confusion_cc.sum(axis=0) + confusion_cc.sum(axis=1) - 2 * np.diag(confusion_cc)
    kept = list(range(len(names)))
    if len(names) > MAX_CONFUSED:
        kept = sorted(np.argsort(-wrong_c, kind="stable")[:MAX_CONFUSED].tolist())
    counts = confusion_cc[np.ix_(kept, kept)]
    share = counts / np.maximum(confusion_cc.sum(axis=1)[kept], 1)[:, None]
    few = len(kept) <= 12
    texts = [shown(names[i], MAX_HOVER_NAME) for i in kept]
    hover = [
        [
            f"{a} taken for {b}: {counts[i, j]:,} rows, {share[i, j]:.1%}"
            for j, b in enumerate(texts)
        ]
        for i, a in enumerate(texts)
    ]
    axis = category_axis([names[i] for i in kept], 14)
    return figure(
        [share_map(np.where(counts > 0, share, np.nan), 1, hover, few)],
        max(130 + (44 if few else 22) * len(kept), 420),
        xaxis={**axis, "title": {"text": "predicted"}, "tickangle": -40 if few else -90},
        yaxis={**axis, "title": {"text": "gold"}, "autorange": "reversed"},
    )


def confidence_gap(evaluation: Evaluation) -> float:
    """Mean confidence less accuracy: positive if overconfident."""
    mean = float(evaluation.confidence_b.sum() / max(evaluation.rows, 1))
    return mean - evaluation.accuracy


def gap_reading(evaluation: Evaluation) -> str:
    """The confidence gap, as a clause after `The teacher's` or `Its`."""
    gap = confidence_gap(evaluation)
    side = "above" if gap > 0 else "below"
    return f"mean confidence is {points(gap)} {side} its accuracy"


Curve = tuple[str, Evaluation, str, str, str]
"""(name, evaluation, colour, marker, dash)."""


def reliability_diagram(*curves: Curve) -> go.Figure:
    """Accuracy by mean confidence."""
    data = [
        go.Scatter(
            x=[0, 1], y=[0, 1], mode="lines", name="perfect calibration", hoverinfo="skip",
            line={"color": AXIS, "dash": "dot"},
        )
    ]  # fmt: skip
    for name, found, color, mark, dash in curves:
        seen = found.rows_b >= (MIN_ROWS if (found.rows_b >= MIN_ROWS).any() else 1)
        rows_b = found.rows_b[seen]
        size = 5 + 13 * np.sqrt(rows_b / max(rows_b.max(initial=1), 1))
        values = "confidence %{x:.2f}, accuracy %{y:.0%} of %{customdata:,} rows<extra></extra>"
        data.append(
            go.Scatter(
                x=found.confidence_b[seen] / rows_b, y=found.correct_b[seen] / rows_b, name=name,
                mode="lines+markers", customdata=rows_b, hovertemplate=f"{name}<br>{values}",
                line={"color": color, "dash": dash, "width": 1.5},
                marker={"color": color, "symbol": mark, "size": size, "opacity": 0.9},
            )
        )  # fmt: skip
    return figure(
        data,
        xaxis={"range": [0, 1.02], "title": {"text": "mean confidence"}},
        yaxis={"range": [0, 1.02], "tickformat": ".0%", "title": {"text": "accuracy"}},
    )
