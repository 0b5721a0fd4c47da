"""The sections of the page: each a question, with what answers it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from llkd.cluster.progress import duration
from llkd.results.report import (
    draw_run,
    draw_selection,
    draw_student,
    draw_teacher,
    readings,
    tables,
)
from llkd.results.report.derived import never_taken
from llkd.results.report.facts import Facts
from llkd.results.report.readings import percent
from llkd.results.report.rows import Row
from llkd.results.report.style import FEWEST_ROWS, Variants
from llkd.results.report.tables import Table

RELIABILITY = (
    "Confidence against accuracy; larger marks have more rows, bins of fewer than "
    f"{FEWEST_ROWS} are left out"
)


@dataclass(frozen=True)
class Plot:
    """A figure with its reading."""

    key: str
    title: str
    reading: str
    variants: Variants
    table: Table | None = None
    wide: bool = False


@dataclass(frozen=True)
class Section:
    """A question, and what answers it."""

    key: str
    title: str
    short: str
    """In the navigation."""
    lead: str = ""
    plots: list[Plot] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    rows: list[tuple[str, str, list[dict[str, Any]]]] = field(default_factory=list)
    """(title, what they are, rows)."""
    missing: list[str] = field(default_factory=list)
    """What cannot be shown, and why."""


@dataclass(frozen=True)
class Tile:
    """A headline figure."""

    title: str
    value: str
    note: str = ""


def sections_of(facts: Facts) -> list[Section]:
    """All of them, in the order in which people ask."""
    return [
        _teacher(facts),
        _selection(facts),
        _student(facts),
        _needs(facts),
        _examples(facts),
        _cost(facts),
        _run(facts),
    ]


def _plots(facts: Facts, *wanted: tuple[Any, ...]) -> list[Plot]:
    """The plots for which there is something: (key, title, draw, read, table, wide) of each."""
    found = []
    for key, title, draw, read, *more in wanted:
        variants = draw(facts)
        if variants is not None:
            table: Callable[[Facts], Table | None] | None = more[0] if more else None
            made = None if table is None else table(facts)
            found.append(Plot(key, title, read(facts), variants, made, len(more) > 1 and more[1]))
    return found


def tiles_of(facts: Facts) -> list[Tile]:
    """The headline figures."""
    tiles = []
    if facts.tested is not None:
        teacher, student = facts.tested.teacher, facts.tested.student
        gain = student.macro_f1 - teacher.macro_f1
        tiles += [
            Tile(
                "student, macro-F1",
                f"{student.macro_f1:.3f}",
                f"teacher {teacher.macro_f1:.3f} ({gain:+.3f})",
            ),
            Tile("student, accuracy", f"{student.accuracy:.3f}", f"teacher {teacher.accuracy:.3f}"),
            Tile("measured on", f"{student.rows:,}", "test rows"),
        ]
    elif facts.gold is not None:
        made = facts.gold.calibrated
        note = f"{made.rows:,} rows of the {facts.gold.where}"
        tiles.append(Tile("teacher, accuracy", f"{made.accuracy:.3f}", note))
    if facts.corpus is not None:
        rows = int(facts.corpus.tally["rows_c"].sum())
        tiles.append(Tile("rows labelled", f"{rows:,}", f"{len(facts.names):,} labels"))
    if facts.epochs is not None:
        note = f"ever, in {readings.count(len(facts.stats), 'epoch')}"
        tiles.append(Tile("rows trained on", percent(1 - never_taken(facts)), note))
    seconds = facts.metrics.get("seconds", {}).get("total")
    if seconds is not None:
        tiles.append(Tile("time", duration(seconds), "all stages"))
    return tiles


def _teacher(facts: Facts) -> Section:
    names, head = facts.names, ("teacher", "Is the teacher any good?", "Teacher")
    if facts.corpus is None:
        return Section(*head, missing=["No row is labelled yet."])
    missing, found, extra = [], list[Plot](), list[Table]()
    gold = facts.gold
    if gold is not None:
        found.append(
            Plot(
                "teacher-confusion",
                f"Gold against the teacher's label, {gold.where}; share of each gold label, %",
                readings.teacher_confuses(facts),
                draw_teacher.confusion(gold.calibrated, names),
                tables.confusion_table(gold.calibrated, names),
                True,
            )
        )
    else:
        extra.append(tables.hesitation_table(facts))
        missing.append(
            "No gold: neither corpus.label_column nor a labelled test set tells how often the "
            "teacher is right, so that reliability and confusions are left out."
        )
    if not facts.calibrated:
        missing.append(
            "The labels are not calibrated yet; they are shown as the teacher gave them."
        )
    found += _plots(
        facts,
        (
            "teacher-labels",
            "How often each label is given in the corpus",
            draw_teacher.labels,
            readings.labels_reading,
        ),
        (
            "teacher-confidence",
            f"Rows by confidence{', ' + gold.where if gold else ''}",
            draw_teacher.confidence,
            readings.confidence_reading,
        ),
        (
            "teacher-reliability",
            RELIABILITY,
            draw_teacher.teacher_reliability,
            readings.reliability_reading,
        ),
        (
            "teacher-risk",
            "Wrong rows among the most confident ones",
            draw_teacher.risk,
            readings.risk_reading,
        ),
    )
    several = tables.teachers_table(facts)
    return Section(
        *head, plots=found, tables=extra + ([several] if several else []), missing=missing
    )


def _selection(facts: Facts) -> Section:
    head = ("selection", "Did the selection do something sensible?", "Selection")
    if facts.epochs is None:
        return Section(*head, missing=["No epoch is trained yet."])
    found = _plots(
        facts,
        (
            "selection-reasons",
            "Rows selected and left out, by epoch",
            draw_selection.reasons,
            readings.reasons_reading,
        ),
        (
            "selection-shares",
            "Share of each label's rows that an epoch took, %; least taken first",
            draw_selection.shares,
            readings.shares_reading,
        ),
        (
            "selection-plane",
            "Where the rows lie (grey) and which were selected (dots); dashed: the bars",
            draw_selection.plane,
            readings.plane_reading,
        ),
        (
            "selection-thresholds",
            "What a row had to reach",
            draw_selection.thresholds,
            readings.thresholds_reading,
        ),
        (
            "selection-uncertainty",
            "Rows by the student's uncertainty",
            draw_selection.uncertainty,
            readings.uncertainty_reading,
        ),
        ("selection-loss", "Training, epoch by epoch", draw_selection.loss, readings.loss_reading),
    )
    drawn, missing = {plot.key for plot in found}, []
    policy = facts.config.selection.policy
    if "selection-thresholds" not in drawn:
        missing.append(f"Policy {policy} has no thresholds.")
    if "selection-plane" not in drawn:
        missing.append(f"Policy {policy} does not ask the student how sure it is.")
    if not facts.config.student.validation_fraction:
        missing.append(
            "No rows were held out (student.validation_fraction): there is no validation score."
        )
    lead = f"Policy {policy}."
    return Section(*head, lead, found, missing=missing)


def _student(facts: Facts) -> Section:
    head = ("student", "Is the student better?", "Student")
    labels = [tables.class_table(facts)]
    tested = facts.tested
    if tested is None:
        why = "There is no test set (test.path): nothing is measured."
        if facts.config.test is not None:
            why = "The student has not been measured on the test set yet."
        return Section(*head, tables=labels, missing=[why])
    found = _plots(
        facts,
        (
            "student-classes",
            "F1 by label; weakest first",
            draw_student.classes,
            readings.classes_reading,
        ),
    )
    found.append(
        Plot(
            "student-reliability",
            RELIABILITY,
            readings.student_reliability(facts),
            draw_student.both_reliability(facts) or {},
        )
    )
    found.append(
        Plot(
            "student-confusion",
            "Gold against the student's label; share of each gold label, %",
            readings.student_confuses(facts),
            draw_teacher.confusion(tested.student, facts.names),
            tables.confusion_table(tested.student, facts.names),
            True,
        )
    )
    return Section(*head, readings.student_reading(facts), found, labels)


def _needs(facts: Facts) -> Section:
    head = ("labels", "Where would more labels help?", "More labels")
    if facts.tested is not None:
        found = _plots(
            facts,
            (
                "needs-outcomes",
                "Who is right, by gold label",
                draw_student.outcomes,
                readings.outcome_reading,
                tables.needs_table,
                True,
            ),
        )
        return Section(*head, readings.more_labels(facts), found)
    found = _plots(
        facts,
        ("needs-doubt", "How unsure both are, by label", draw_student.doubt, readings.more_labels),
    )
    return Section(
        *head, plots=found, missing=[] if found else ["That shows once a student was trained."]
    )


def _examples(facts: Facts) -> Section:
    kinds = [
        (
            "useful",
            "Most useful rows",
            "Selected with the largest weights, added up over the epochs.",
        ),
        (
            "mistakes",
            "Likely mistakes of the teacher",
            "Student and teacher disagree, and both are sure.",
        ),
        (
            "test_mistakes",
            "Student and teacher disagree on the test set",
            "Both are sure; gold says who is right.",
        ),
        (
            "unsure",
            "Rows that the teacher is least sure of",
            "Never selected. Are they of another kind, or of two labels?",
        ),
        ("rejected", "Rows that could not be used", "Some of each reason."),
    ]
    found = [
        (title, note, [_shown(facts, row) for row in facts.rows[kind]])
        for kind, title, note in kinds
        if facts.rows[kind]
    ]
    missing = []
    if facts.stats and not facts.rows["mistakes"] and facts.agreement is None:
        missing.append(
            "Likely mistakes of the teacher in the corpus need the student's labels of it: run "
            "jobs/predict.py, then jobs/report.py."
        )
    if not facts.rejects:
        missing.append("No row was rejected.")
    return Section("examples", "Which rows should I look at?", "Rows", rows=found, missing=missing)


def _shown(facts: Facts, row: Row) -> dict[str, Any]:
    """A row as the page shows it: where, text, and (what, value) pairs."""
    told, facts_ = row.told, list[tuple[str, str]]()
    for who, sure in (("gold", ""), ("teacher", "confidence"), ("student", "student_confidence")):
        if who in told:
            own = f" ({told[sure]:.2f})" if sure in told else ""
            facts_.append((who, f"{facts.names[told[who]]}{own}"))
    if "uncertainty" in told:
        facts_.append(("student's uncertainty", f"{told['uncertainty']:.2f}"))
    if told.get("visits"):
        facts_.append(("selected in", readings.count(told["visits"], "epoch")))
    if "reason" in told:
        facts_ += [("stage", str(told["stage"])), ("reason", str(told["reason"]))]
    return {"where": row.where, "text": row.text, "told": facts_}


def _cost(facts: Facts) -> Section:
    found = _plots(
        facts,
        (
            "cost-time",
            "Where the time went",
            draw_run.time,
            readings.time_reading,
            tables.cost_table,
            True,
        ),
    )
    missing = [] if found else ["No stage is finished yet."]
    if facts.config.plan.price_per_hour is None:
        missing.append("Prices are told where plan.price_per_hour is set.")
    return Section("cost", "What did it cost?", "Cost", plots=found, missing=missing)


def _run(facts: Facts) -> Section:
    found = _plots(
        facts,
        (
            "run-pipeline",
            "Rows on their way",
            draw_run.pipeline,
            readings.rows_reading,
            tables.steps_table,
            True,
        ),
    )
    rejected = tables.rejects_table(facts)
    lists: Sequence[Table] = [tables.steps_table(facts)] if not found else []
    lead = "" if found else readings.rows_reading(facts)
    return Section(
        "run", "Can I trust it?", "Trust", lead, found, [*lists, *([rejected] if rejected else [])]
    )
