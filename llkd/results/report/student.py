"""The sections on the student: is it better than the teacher; where would more labels help?"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from llkd.core.metrics import paired_z
from llkd.results.hand.sentences import sentences
from llkd.results.report.charts import (
    AXIS,
    BLACK,
    MAX_HOVER_NAME,
    MAX_LABELS,
    PALE,
    SKY,
    STUDENT,
    TEACHER,
    VERMILLION,
    bars,
    figure,
    label_axis,
    rows_height,
    shown,
)
from llkd.results.report.evaluations import (
    MAX_LINES,
    RELIABILITY_TITLE,
    confusion_plot,
    gap_reading,
    reliability_diagram,
)
from llkd.results.report.facts import Facts, Tested
from llkd.results.report.parts import Plot, Section, Table, cell, present
from llkd.results.report.passes import BOTH, NEITHER, STUDENT_ALONE, TEACHER_ALONE
from llkd.results.report.words import count, listed, percent, points, quoted
from llkd.results.shortfalls import shortfalls

MAX_CHANCE = 2.0
"""Differences below this many standard deviations may be chance."""
MIN_TEST_ROWS = 200
"""Test rows below which a finding calls the figures imprecise."""


def student_section(facts: Facts) -> Section:
    """The student against the teacher on the test set."""
    section, tested = Section("student", "Is the student better?", "Student"), facts.tested
    section.tables = [*_estimate_tables(facts), _class_table(facts)]
    if tested is not None:
        section.lead = _comparison(tested)
        section.plots = [
            _classes_plot(tested, facts.names),
            _reliability_plot(tested),
            confusion_plot("student", tested.student, facts.names, "test set"),
        ]
        _add_findings(section, tested, facts.names)
        if facts.distilled.get("keeps_probe"):
            text = "The student is the linear probe, which was better than the fine-tuned encoder."
            section.find("warn", text)
        if "probe" in (found := shortfalls(facts.metrics)):
            section.find("bad", found["probe"])
    elif facts.config.test is None and "student" not in facts.metrics.get("estimates", {}):
        section.note("There is no test set (test.path), so nothing is measured.")
        section.find("warn", "Without a test set, the student's quality is unknown.")
    elif facts.config.test is None:
        section.note(
            "There is no test set (test.path); the rows labelled by hand measure the student."
        )
    else:
        section.note("The student has not been measured on the test set yet.")
    return section


def _estimate_tables(facts: Facts) -> list[Table]:
    """Teacher and student on the corpus, by the rows labelled by hand; none without such rows."""
    estimates = facts.metrics.get("estimates")
    if estimates is None:
        return []
    who = [name for name in ("teacher", "student") if name in estimates]
    titles = {"accuracy": "accuracy", "macro_f1": "macro-F1", "kappa": "Cohen's κ"}
    figures = {title: [estimates[name][key] for name in who] for key, title in titles.items()}
    for label in facts.names[:MAX_LABELS]:
        figures[f"F1, {shown(label, MAX_HOVER_NAME)}"] = [
            estimates[name]["f1"][label] for name in who
        ]
    lines = [
        [title, *(f"{one['value']:.2f} ({one['low']:.2f} to {one['high']:.2f})" for one in ones)]
        for title, ones in figures.items()
    ]
    caption = "On the corpus, with 95 % intervals. " + " ".join(sentences(estimates))
    return [Table(["", *(f"#{name}" for name in who)], lines, caption)]


def labels_section(facts: Facts) -> Section:
    """The labels for which more or better labelled rows would help most."""
    section = Section("labels", "Where would more labels help?", "More labels")
    doubts, answer = _doubts(facts), "This shows once a student is trained."
    if facts.tested is not None:
        answer = section.lead = _needed(facts.tested, facts.names)
        section.plots = present(_outcomes_plot(facts.tested, facts.names))
    elif doubts:
        answer = _most_doubtful(facts, doubts[0])
        section.plots = [_doubts_plot(doubts, facts.names, answer)]
    else:
        section.note(answer)
    section.answer = (section.title, answer)
    return section


def student_z(outcome_c4: np.ndarray) -> float:
    """`paired_z` of the student against the teacher."""
    return paired_z(
        int(outcome_c4[:, STUDENT_ALONE].sum()), int(outcome_c4[:, TEACHER_ALONE].sum())
    )


def _comparison(tested: Tested) -> str:
    teacher, student = tested.teacher.accuracy, tested.student.accuracy
    z, difference = student_z(tested.outcome_c4), points(student - teacher)
    rows = count(tested.student.rows, "test row")
    if abs(z) < MAX_CHANCE:
        return (
            f"The accuracies of student and teacher differ by {difference} on {rows}, which may be "
            "chance."
        )
    return (
        f"The student's accuracy is {difference} {'above' if z > 0 else 'below'} the teacher's on "
        f"{rows} ({percent(student)} against {percent(teacher)}), more than chance explains."
    )


def _add_findings(section: Section, tested: Tested, names: Sequence[str]) -> None:
    z, per_class, rows = student_z(tested.outcome_c4), tested.student.per_class, tested.student.rows
    kind = "note" if abs(z) < MAX_CHANCE else "good" if z > 0 else "bad"
    section.find(kind, section.lead)
    weak = np.flatnonzero((per_class["support"] >= 10) & (per_class["f1"] < 0.5))
    if len(weak):
        text = f"The student's F1 is below 0.5 for {listed([names[i] for i in weak])}."
        section.find("warn", text)
    if rows < MIN_TEST_ROWS:
        text = f"The test set has only {count(rows, 'row')}: its figures are imprecise."
        section.find("note", text)


def _classes_plot(tested: Tested, names: Sequence[str]) -> Plot:
    """F1 by label; of many labels, those with the largest differences."""
    teacher_c, student_c = tested.teacher.per_class["f1"], tested.student.per_class["f1"]
    gain_c, support_c = student_c - teacher_c, tested.student.per_class["support"]
    seen = np.flatnonzero((support_c > 0) | (student_c > 0))
    kept = seen[np.argsort(-np.abs(gain_c[seen]), kind="stable")[:MAX_LABELS]]
    kept = kept[np.argsort(student_c[kept], kind="stable")]
    places, texts = list(range(len(kept))), [shown(names[i], MAX_HOVER_NAME) for i in kept]
    data = [
        go.Scatter(
            x=[x for i in kept for x in (float(teacher_c[i]), float(student_c[i]), None)],
            y=[y for place in places for y in (place, place, None)],
            mode="lines", line={"color": AXIS, "width": 3}, showlegend=False, hoverinfo="skip",
        )
    ]  # fmt: skip
    data += [
        go.Scatter(
            x=f1_c[kept], y=places, mode="markers", name=name, customdata=texts,
            marker={"color": color, "symbol": mark, "size": 11},
            hovertemplate="%{customdata}<br>" + name + ": F1 %{x:.3f}<extra></extra>",
        )
        for name, f1_c, color, mark in (
            ("teacher", teacher_c, TEACHER, "diamond"),
            ("student", student_c, STUDENT, "circle"),
        )
    ]  # fmt: skip
    drawn = figure(
        data,
        rows_height(len(kept)),
        xaxis={"range": [-0.02, 1.02], "title": {"text": "F1 on the test set"}},
        yaxis=label_axis([names[i] for i in kept]),
    )
    reading = _classes_reading(tested, names)
    return Plot("student-classes", "F1 by label; weakest first", reading, drawn)


def _classes_reading(tested: Tested, names: Sequence[str]) -> str:
    measured = np.flatnonzero(tested.student.per_class["support"] > 0)
    student_m = tested.student.per_class["f1"][measured]
    gain_m = student_m - tested.teacher.per_class["f1"][measured]
    names_m = [quoted(names[i]) for i in measured]
    weak, up, down = int(student_m.argmin()), int(gain_m.argmax()), int(gain_m.argmin())
    reading = f"The student's weakest label is {names_m[weak]} (F1 {student_m[weak]:.2f})"
    if gain_m[up] > 0:
        reading += f"; it gains most over the teacher on {names_m[up]} ({gain_m[up]:+.2f})"
    if gain_m[down] < 0:
        reading += f"; it loses most on {names_m[down]} ({gain_m[down]:+.2f})"
    return f"{reading}."


def _reliability_plot(tested: Tested) -> Plot:
    drawn = reliability_diagram(
        ("teacher", tested.teacher, TEACHER, "diamond", "dash"),
        ("student", tested.student, STUDENT, "circle", "solid"),
    )
    reading = (
        f"The student's {gap_reading(tested.student)}; its calibration error is "
        f"{tested.student.ece:.2f}."
    )
    return Plot("student-reliability", RELIABILITY_TITLE, reading, drawn)


def _class_table(facts: Facts) -> Table:
    """All figures by label."""
    columns, cells = ["label"], [list(facts.names)]

    def add(title: str, values: Sequence[float | None] | np.ndarray, form: str) -> None:
        columns.append(title)
        cells.append([cell(value, form) for value in values])

    if facts.corpus:
        add("#teacher's rows", facts.corpus["rows_c"], ",")
    if facts.stats:
        last = facts.stats[-1]["classes"].values()
        add("#confidence", [label["mean_confidence"] for label in last], ".2f")
        add("#uncertainty, last epoch", [label["mean_uncertainty"] for label in last], ".2f")
    if facts.epochs:
        add("#ever selected", facts.ever_selected_c, ".0%")
    if facts.tested is not None:
        teacher, student = facts.tested.teacher.per_class, facts.tested.student.per_class
        add("#test rows", teacher["support"], ",")
        add("#teacher F1", teacher["f1"], ".2f")
        add("#student F1", student["f1"], ".2f")
        add("#student precision", student["precision"], ".2f")
        add("#student recall", student["recall"], ".2f")
    return Table(columns, list(zip(*cells, strict=True)), "All labels")


class Need(NamedTuple):
    """The student's mistakes on a label."""

    label: int
    missed: int
    """Its rows that the student takes for another label."""
    share: float
    """Of all rows that the student gets wrong."""
    teacher_right: float
    """Share of `missed` on which the teacher is right."""


def needs(outcome_c4: np.ndarray) -> list[Need]:
    """The labels by how many of their rows the student misses.

    Args:
        outcome_c4: rows by gold label and who is right, shape (C, 4).
    """
    missed_c = outcome_c4[:, [TEACHER_ALONE, NEITHER]].sum(axis=1)
    order = [int(c) for c in np.argsort(-missed_c, kind="stable") if missed_c[c]]
    teacher_c, total = outcome_c4[:, TEACHER_ALONE], missed_c.sum()
    return [
        Need(c, int(missed_c[c]), missed_c[c] / total, teacher_c[c] / missed_c[c]) for c in order
    ]


def _needed(tested: Tested, names: Sequence[str]) -> str:
    """The label with most of the student's mistakes, and the remedy."""
    missed = needs(tested.outcome_c4)
    if not missed:
        return "The student makes no mistake on the test set."
    first = missed[0]
    text = (
        f"Most on {quoted(names[first.label])}: its rows make up {percent(first.share)} of the "
        "student's mistakes on the test set."
    )
    if first.teacher_right >= 0.5:
        return f"{text} The teacher gets most of them right, so more of its labels would help."
    return (
        f"{text} The teacher is wrong on {percent(1 - first.teacher_right)} of them too, so human "
        "labels or a better prompt would help more than more rows."
    )


def _outcomes_plot(tested: Tested, names: Sequence[str]) -> Plot | None:
    """Who is right, by label; of many labels, those that the student misses most."""
    outcome_c4, missed = tested.outcome_c4, needs(tested.outcome_c4)
    kept = [need.label for need in missed[:MAX_LABELS]]
    if not kept:
        return None
    drawn = bars(
        [names[i] for i in kept],
        [
            ("neither is right", outcome_c4[kept, NEITHER], BLACK, "x"),
            ("only the teacher is right", outcome_c4[kept, TEACHER_ALONE], VERMILLION, "/"),
            ("only the student is right", outcome_c4[kept, STUDENT_ALONE], SKY, "."),
            ("both are right", outcome_c4[kept, BOTH], PALE, ""),
        ],
        {"title": {"text": "test rows of the label"}},
        barmode="stack",
    )
    lines = [
        [
            names[need.label],
            f"{need.missed:,}",
            percent(need.share),
            percent(need.teacher_right),
            "more of its rows" if need.teacher_right >= 0.5 else "human labels",
        ]
        for need in missed[:MAX_LINES]
    ]
    columns = ("label", "#missed", "#of all mistakes", "#teacher right on", "what would help")
    share_4 = outcome_c4.sum(axis=0) / max(int(outcome_c4.sum()), 1)
    reading = (
        f"On {percent(float(share_4[TEACHER_ALONE]))} of the test rows only the teacher is right: more "
        f"of its labels would help. On {percent(float(share_4[NEITHER]))} neither is: only human labels "
        "or another prompt would help."
    )
    table = Table(columns, lines, "The labels that the student misses most")
    title = "Who is right, by gold label"
    return Plot("needs-outcomes", title, reading, drawn, table, wide=True)


Doubt = tuple[int, float, float]
"""(label, the teacher's mean confidence, the student's mean uncertainty in the last epoch)."""


def _doubts(facts: Facts) -> list[Doubt]:
    """The labels by rows × the teacher's doubt × the student's uncertainty: a proxy without gold."""
    found = []
    for label, stats in enumerate(facts.stats[-1]["classes"].values() if facts.stats else ()):
        sure, unsure = stats["mean_confidence"], stats["mean_uncertainty"]
        if sure is not None and unsure is not None:
            found.append((stats["rows"] * (1 - sure) * unsure, (label, sure, unsure)))
    return [doubt for _, doubt in sorted(found, key=lambda entry: -entry[0])]


def _most_doubtful(facts: Facts, doubt: Doubt) -> str:
    label, sure, unsure = doubt
    unmeasured = "The test set is not measured yet."
    if facts.config.test is None:
        unmeasured = "Without a test set, mistakes cannot be counted."
    return (
        f"{unmeasured} The most doubtful label is {quoted(facts.names[label])}: the teacher's mean "
        f"confidence is {sure:.2f}, and the student's mean uncertainty is still {unsure:.2f}."
    )


def _doubts_plot(doubts: Sequence[Doubt], names: Sequence[str], reading: str) -> Plot:
    """Doubt and uncertainty by label."""
    kept = doubts[:MAX_LABELS]
    title = "mean over the rows of the label, last epoch"
    drawn = bars(
        [names[label] for label, _, _ in kept],
        [
            ("teacher: 1 − confidence", [1 - sure for _, sure, _ in kept], TEACHER, "/"),
            ("student: uncertainty", [unsure for _, _, unsure in kept], STUDENT, ""),
        ],
        {"range": [0, 1], "title": {"text": title}},
        hover=".2f",
        barmode="group",
        bargap=None,
    )
    return Plot("needs-doubt", "Doubt of teacher and student, by label", reading, drawn)
