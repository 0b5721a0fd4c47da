"""The plots of the student, and of where more labels would help."""

from typing import Any

import numpy as np
import plotly.graph_objects as go

from llkd.results.report.derived import MOST_LABELS, doubts, needs
from llkd.results.report.draw_teacher import reliability
from llkd.results.report.facts import Facts
from llkd.results.report.style import (
    BLACK,
    SKY,
    STUDENT,
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


def classes(facts: Facts) -> Variants | None:
    """F1 of teacher and student by label; of many labels those where they differ most."""
    if facts.tested is None:
        return None
    teacher, student = facts.tested.teacher, facts.tested.student
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
            go.Scatter(
                x=values[kept],
                y=places,
                mode="markers",
                name=name,
                marker={"color": color, "symbol": mark, "size": 11},
                customdata=[shown(n, 200) for n in names],
                hovertemplate="%{customdata}<br>" + name + ": F1 %{x:.3f}<extra></extra>",
            )
        )
    return one(
        figure(
            data,
            rows_height(len(names)),
            xaxis={"range": [-0.02, 1.02], "title": {"text": "F1 on the test set"}},
            yaxis=label_axis(names),
        )
    )


def both_reliability(facts: Facts) -> Variants | None:
    """Student and teacher on the test set."""
    if facts.tested is None:
        return None
    teacher, student = facts.tested.teacher, facts.tested.student
    return reliability(
        [
            ("teacher", teacher, TEACHER, "diamond", "dash"),
            ("student", student, STUDENT, "circle", "solid"),
        ]
    )


def outcomes(facts: Facts) -> Variants | None:
    """Who is right, by label; of many labels those that the student misses most rows of."""
    if facts.tested is None:
        return None
    outcome_c4 = facts.tested.outcome_c4
    kept = [need.label for need in needs(outcome_c4)[:MOST_LABELS]]
    if not kept:
        return None
    names, looks = (
        [facts.names[i] for i in kept],
        (
            ("neither is right", 3, BLACK, "x"),
            ("teacher alone is right", 2, VERMILLION, "/"),
            ("student alone is right", 1, SKY, "."),
            ("both are right", 0, "#C9CFD6", ""),
        ),
    )
    data = [
        bars(names, outcome_c4[kept, who], text, color, hatch) for text, who, color, hatch in looks
    ]
    return one(
        figure(
            data,
            rows_height(len(names)),
            barmode="stack",
            bargap=0.3,
            yaxis=label_axis(names),
            xaxis={"title": {"text": "test rows of the label"}},
        )
    )


def doubt(facts: Facts) -> Variants | None:
    """Without gold: by label, how sure teacher and student are."""
    found = doubts(facts)[:MOST_LABELS]
    if not found:
        return None
    names = [facts.names[label] for label, _, _ in found]
    data = [
        bars(
            names,
            [1 - sure for _, sure, _ in found],
            "teacher: one less its confidence",
            TEACHER,
            "/",
            xhoverformat=".2f",
        ),
        bars(
            names,
            [unsure for _, _, unsure in found],
            "student: uncertainty",
            STUDENT,
            "",
            xhoverformat=".2f",
        ),
    ]
    return one(
        figure(
            data,
            rows_height(len(names)),
            barmode="group",
            yaxis=label_axis(names),
            xaxis={
                "range": [0, 1],
                "title": {"text": "mean over the rows of the label, last epoch"},
            },
        )
    )
