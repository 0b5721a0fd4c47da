"""The section on the teacher: is it any good?"""

from dataclasses import replace

import numpy as np
import plotly.graph_objects as go

from llkd.core.metrics import RANK_BINS
from llkd.results.report.charts import (
    BLACK,
    BLUE,
    HATCH,
    MAX_LABELS,
    PERCENT_AXIS,
    TEACHER,
    UNCALIBRATED,
    VERMILLION,
    Series,
    bars,
    figure,
    rows_height,
)
from llkd.results.report.evaluations import (
    RELIABILITY_TITLE,
    Confusion,
    Curve,
    confidence_gap,
    confusion_plot,
    confusion_reading,
    confusion_table,
    confusions,
    gap_reading,
    reliability_diagram,
)
from llkd.results.report.facts import Facts, Judged
from llkd.results.report.parts import NONE, Plot, Section, Table, present
from llkd.results.report.totals import BINS
from llkd.results.report.words import listed, percent, quoted

MIN_AUROC = 0.6
"""AUROC below which confidence hardly separates right from wrong."""
MAX_GAP = 0.15
"""Confidence gap above which a finding reports it."""
MIN_LABEL_MASS = 0.05
"""Probability on the labels below which a finding reports it."""


def teacher_section(facts: Facts) -> Section:
    """Labels, confidence and, given gold, correctness."""
    section, gold = Section("teacher", "Is the teacher any good?", "Teacher"), facts.gold
    section.answer = ("Which labels does the teacher confuse?", confused_labels(facts))
    if not facts.corpus:
        section.note("No row is labelled yet.")
    else:
        section.plots = [_labels_plot(facts), _confidence_plot(facts)]
        section.tables = present(_teachers_table(facts))
        if gold is not None:
            confused = confusion_plot("teacher", gold.calibrated, facts.names, gold.where)
            measured = [_reliability_plot(facts, gold), _risk_plot(facts, gold)]
            section.plots = [confused, *section.plots, *measured]
        else:
            section.tables = [_hesitation_table(facts), *section.tables]
            section.note(
                "Without gold (corpus.label_column or a labelled test set), the teacher's accuracy, "
                "reliability and confusions are unknown."
            )
        if not facts.calibrated:
            section.note("The labels are not calibrated yet.")
    _add_findings(section, facts)
    return section


def confused_labels(facts: Facts) -> str:
    """The teacher's most frequent confusions; without gold, the most frequent hesitation."""
    if facts.gold is not None:
        gold = facts.gold
        return confusion_reading("teacher", gold.calibrated, facts.names, gold.where)
    hesitations = _hesitations(facts)
    if not hesitations:
        return "The teacher has not labelled anything yet."
    first = hesitations[0]
    label, other = quoted(facts.names[first.label]), quoted(facts.names[first.other])
    return (
        f"There is no gold to check against. The teacher hesitates most between {label} and {other}: "
        f"when it chooses {label}, it gives {other} a probability of {percent(first.share)} on average."
    )


def _hesitations(facts: Facts) -> list[Confusion]:
    """Pairs of labels by the probability that rows of one give to the other; `share` is its mean,
    `rows` the number of these rows."""
    if not facts.corpus:
        return []
    rows_c = facts.corpus["rows_c"]
    return [replace(c, rows=int(rows_c[c.label])) for c in confusions(facts.corpus["second_cc"])]


def _hesitation_table(facts: Facts) -> Table:
    columns = ("label", "runner-up", "#rows", "#mean probability of the runner-up")
    return confusion_table(_hesitations(facts), facts.names, "Most frequent hesitations", *columns)


def _teachers_table(facts: Facts) -> Table | None:
    """Each teacher of an ensemble."""
    if not facts.teachers:
        return None
    lines = []
    for model, results in facts.teachers:
        rate, mass = results.get("rows_per_second"), results.get("label_mass")
        rows = f"{sum(results['rows']):,}" if results else NONE
        speed = f"{rate:.1f}" if rate else NONE
        lines.append([model, rows, speed, NONE if mass is None else percent(mass)])
    caption = "The teachers of the ensemble; everything else describes their combined labels"
    if "disagreement" in facts.labelled:
        caption += f", disagreement {facts.labelled['disagreement']:.2f} (0 to 1)"
    return Table(("teacher", "#rows", "#rows/s", "#label mass"), lines, caption)


def _add_findings(section: Section, facts: Facts) -> None:
    if facts.corpus:
        unused = [facts.names[i] for i in np.flatnonzero(facts.corpus["rows_c"] == 0)]
        if unused:
            section.find("bad", f"The teacher gave no row the label {listed(unused)}.")
    mass = facts.labelled.get("label_mass")
    if mass is not None and mass < MIN_LABEL_MASS and not facts.teachers:
        text = (
            f"The teacher puts only {percent(mass)} of its probability on the labels: it would "
            "rather answer something else. Check the prompt (jobs/plan.py shows it)."
        )
        section.find("warn", text)
    if facts.gold is None:
        return
    raw, calibrated = facts.gold.raw, facts.gold.calibrated
    if calibrated.auroc < MIN_AUROC:
        section.find("bad", _confidence_reading(facts))
    gap = confidence_gap(calibrated)
    if abs(gap) > MAX_GAP:
        word = "overconfident" if gap > 0 else "underconfident"
        section.find("warn", f"The teacher is {word}: its {gap_reading(calibrated)}.")
    if calibrated.accuracy < raw.accuracy - 0.01:
        text = f"{_calibration_effect(facts.gold)}. Are the labels equally frequent? See teacher.prior."
        section.find("bad", text)


def _labels_plot(facts: Facts) -> Plot:
    """How often the teacher gives each label, before and after calibration, and gold."""
    rows_c, raw_c = facts.corpus["rows_c"], facts.corpus["raw_c"]
    total, most, least = max(rows_c.sum(), 1), int(rows_c.argmax()), int(rows_c.argmin())
    reading = (
        f"The most frequent label is {quoted(facts.names[most])} ({percent(rows_c[most] / total)} of "
        f"the rows), the least frequent {quoted(facts.names[least])} "
        f"({percent(rows_c[least] / total)})."
    )
    moved = np.abs(rows_c - raw_c).sum() / 2
    if facts.calibrated and moved:
        reading += (
            f" Calibration changed the label of at least {percent(moved / total)} of the rows."
        )
    order = np.argsort(-rows_c, kind="stable")
    if len(order) > MAX_LABELS:
        order = np.concatenate([order[: MAX_LABELS - 5], order[-5:]])
    series: list[Series] = [("teacher", rows_c[order] / total, TEACHER, "")]
    if facts.calibrated:
        series.append(("teacher, uncalibrated", raw_c[order] / total, UNCALIBRATED, "/"))
    evaluation = facts.corpus.evaluation("calibrated")
    if evaluation is not None:
        gold_c = evaluation.per_class["support"]
        series.append(("gold", gold_c[order] / max(gold_c.sum(), 1), BLACK, "x"))
    drawn = bars(
        [facts.names[i] for i in order],
        series,
        {**PERCENT_AXIS, "title": {"text": "share of the rows"}},
        hover=".1%",
        height=max(rows_height(len(order)), 90 + (10 + 9 * len(series)) * len(order)),
        barmode="group",
        bargap=0.25,
    )
    return Plot("teacher-labels", "Label frequencies in the corpus", reading, drawn)


def _confidence_plot(facts: Facts) -> Plot:
    """Rows by confidence, right and wrong apart if there is gold."""
    title, gold = "Rows by confidence", facts.gold
    parts = [("rows", facts.corpus["confidence_b"], TEACHER, "")]
    if gold is not None:
        title += f", {gold.where}"
        fine = np.arange(RANK_BINS) * BINS // RANK_BINS
        wrong, right = (np.bincount(fine, rows_r, BINS) for rows_r in gold.calibrated.ranks_2r)
        parts = [("right", right, BLUE, ""), ("wrong", wrong, VERMILLION, "/")]
    data = [
        go.Bar(
            x=(np.arange(BINS) + 0.5) / BINS, y=rows, width=1 / BINS, name=name,
            marker={
                "color": color,
                "line": {"color": "white", "width": 1},
                "pattern": {"shape": hatch, **HATCH},
            },
            hovertemplate="confidence about %{x:.3f}: %{y:,} " + name + "<extra></extra>",
        )
        for name, rows, color, hatch in parts
    ]  # fmt: skip
    drawn = figure(
        data,
        barmode="stack",
        showlegend=len(parts) > 1,
        xaxis={"range": [0, 1], "title": {"text": "the teacher's confidence"}},
        yaxis={"title": {"text": "rows"}},
    )
    return Plot("teacher-confidence", title, _confidence_reading(facts), drawn)


def _confidence_reading(facts: Facts) -> str:
    if facts.gold is not None:
        auroc = facts.gold.calibrated.auroc
        if not np.isfinite(auroc):
            return (
                "The teacher is right on all rows with gold, or on none: they do not show what its "
                "confidence is worth."
            )
        word = "hardly" if auroc < MIN_AUROC else "somewhat" if auroc < 0.75 else "clearly"
        return (
            f"The teacher's confidence {word} separates right from wrong: a correct label is "
            f"more confident than a wrong one in {percent(auroc)} of pairs (AUROC; 50\u00a0% is chance)."
        )
    rows_b = facts.corpus["confidence_b"]
    half = int(np.searchsorted(np.cumsum(rows_b), rows_b.sum() / 2))
    return (
        f"Half of the rows have a confidence below {(half + 1) / len(rows_b):.2f}. Without gold, "
        "its worth is unknown."
    )


def _calibration_effect(gold: Judged) -> str:
    before, after = percent(gold.raw.accuracy), percent(gold.calibrated.accuracy)
    if before == after:
        return f"Calibration left the teacher's accuracy at {after}"
    return f"Calibration changed the teacher's accuracy from {before} to {after}"


def _reliability_plot(facts: Facts, gold: Judged) -> Plot:
    reading = f"The teacher's {gap_reading(gold.calibrated)}"
    if facts.calibrated:
        reading += (
            f". {_calibration_effect(gold)}; the calibration error went from {gold.raw.ece:.2f} to "
            f"{gold.calibrated.ece:.2f}."
        )
    else:
        reading += "; there is no calibration yet."
    drawn = reliability_diagram(*reversed(_curves(facts, gold)))
    return Plot("teacher-reliability", RELIABILITY_TITLE, reading, drawn)


def _curves(facts: Facts, gold: Judged) -> list[Curve]:
    """The teacher after calibration, if there is one, and before it."""
    if not facts.calibrated:
        return [("uncalibrated", gold.raw, TEACHER, "circle", "solid")]
    return [
        ("calibrated", gold.calibrated, TEACHER, "circle", "solid"),
        ("uncalibrated", gold.raw, UNCALIBRATED, "square", "dash"),
    ]


def _risk_plot(facts: Facts, gold: Judged) -> Plot:
    """Risk and coverage: the share of wrong rows among the most confident ones."""
    made, coverage = gold.calibrated, np.linspace(0.02, 1, 50)
    reading = (
        f"Of the most confident quarter of the rows, {percent(made.risk_at(0.25))} are wrong; of the "
        f"most confident half, {percent(made.risk_at(0.5))}; of all, {percent(1 - made.accuracy)}."
    )
    data = [
        go.Scatter(
            x=coverage, y=[evaluation.risk_at(float(c)) for c in coverage], mode="lines", name=name,
            line={"color": color, "dash": dash, "width": 2.5},
            hovertemplate="most confident %{x:.0%}: %{y:.1%} wrong<extra></extra>",
        )
        for name, evaluation, color, _, dash in _curves(facts, gold)
    ]  # fmt: skip
    title = {"text": "most confident share of the rows"}
    drawn = figure(
        data,
        xaxis={**PERCENT_AXIS, "range": [0, 1], "title": title},
        yaxis={**PERCENT_AXIS, "title": {"text": "wrong"}},
    )
    return Plot("teacher-risk", "Errors among the most confident rows", reading, drawn)
