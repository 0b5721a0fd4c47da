"""What to heed first, at the top of a report."""

from dataclasses import dataclass

import numpy as np

from llkd.results.report.derived import mean_gap, paired_z
from llkd.results.report.facts import Facts
from llkd.results.report.readings import CHANCE, count, percent, points, quoted, student_reading


@dataclass(frozen=True)
class Finding:
    """Something to know first."""

    kind: str
    """`bad`, `warn`, `good` or `note`."""
    text: str
    link: str
    """The section that shows it."""


KINDS = ("bad", "warn", "note", "good")


def findings(facts: Facts) -> list[Finding]:
    """What to heed, the gravest first."""
    found = [
        *_run_findings(facts), *_teacher_findings(facts), *_selection_findings(facts),
        *_student_findings(facts),
    ]  # fmt: skip
    return sorted(found, key=lambda finding: KINDS.index(finding.kind))


def _run_findings(facts: Facts) -> list[Finding]:
    found = [Finding("bad", f"Could not be read: {text}", "run") for text in facts.troubles]
    waiting = [step.name for step in facts.steps if step.state != "done"]
    if waiting:
        text = f"The run is not finished: next is “{waiting[0]}”. All that follows is so far."
        found.append(Finding("warn", text, "run"))
    most = facts.config.max_reject_fraction
    for step in facts.steps:
        share = (step.rejected or 0) / max(step.rows_in or 1, 1)
        if share > 0.01:
            kind = "bad" if share > most / 2 else "warn"
            allowed = percent(most)
            text = f"{step.name}: {percent(share)} of the rows left out (allowed: {allowed})."
            found.append(Finding(kind, text, "examples"))
    if facts.config.test is None:
        text = "There is no test set, so nothing says how good the student is."
        found.append(Finding("warn", text, "student"))
    return found


def _teacher_findings(facts: Facts) -> list[Finding]:
    found = []
    if facts.corpus is not None:
        missing = [facts.names[i] for i in np.flatnonzero(facts.corpus.tally["rows_c"] == 0)]
        if missing:
            listed = ", ".join(map(quoted, missing[:5])) + (" …" if len(missing) > 5 else "")
            found.append(Finding("bad", f"The teacher gave {listed} to no row at all.", "teacher"))
    mass = facts.labelled.get("label_mass")
    if mass is not None and mass < 0.05 and not facts.teachers:
        text = (
            f"The teacher gives the labels only {percent(mass)} of its probability: it would rather "
            "answer something else. Look at the prompt (jobs/plan.py shows it)."
        )
        found.append(Finding("warn", text, "teacher"))
    if facts.gold is None:
        return found
    raw, evaluation = facts.gold.raw, facts.gold.calibrated
    if evaluation.auroc < 0.6:
        auroc = f"{evaluation.auroc:.2f}"
        text = f"The teacher's confidence says little about right and wrong: AUROC {auroc}."
        found.append(Finding("bad", text, "teacher"))
    gap = mean_gap(evaluation)
    if abs(gap) > 0.15:
        word = "surer" if gap > 0 else "less sure"
        text = (
            f"The teacher is {word} than it is right: its mean confidence is {points(gap)} "
            f"{'above' if gap > 0 else 'below'} its accuracy."
        )
        found.append(Finding("warn", text, "teacher"))
    if evaluation.accuracy < raw.accuracy - 0.01:
        text = (
            f"Calibration made the teacher worse: {percent(raw.accuracy)} right before, "
            f"{percent(evaluation.accuracy)} after. Are the labels equally frequent? See teacher.prior."
        )
        found.append(Finding("bad", text, "teacher"))
    return found


def _selection_findings(facts: Facts) -> list[Finding]:
    if facts.epochs is None:
        return []
    visits_ce, found = facts.epochs.tally["visits_ce"], []
    rows_c, taken_c = visits_ce.sum(axis=1), visits_ce[:, 1:].sum(axis=1)
    none = np.flatnonzero((rows_c > 0) & (taken_c == 0))
    few = np.flatnonzero((taken_c > 0) & (taken_c < 20))
    for kind, labels, what in (
        ("bad", none, "No row of {} was ever selected."),
        ("warn", few, "Fewer than 20 rows were trained on of {}."),
    ):
        if len(labels):
            listed = ", ".join(quoted(facts.names[i]) for i in labels[:5])
            more = f" and {len(labels) - 5} other labels" if len(labels) > 5 else ""
            found.append(Finding(kind, what.format(listed + more), "selection"))
    waiting = facts.stats[-1]["waiting"]["share"]
    if waiting > 0.2:
        share = percent(waiting)
        text = f"In the last epoch the workers had nothing to compute for {share} of the time."
        found.append(Finding("warn", text, "cost"))
    return found


def _student_findings(facts: Facts) -> list[Finding]:
    if facts.tested is None:
        return []
    student, z = facts.tested.student, paired_z(facts.tested.outcome_c4)
    kind = "note" if abs(z) < CHANCE else "good" if z > 0 else "bad"
    found = [Finding(kind, student_reading(facts), "student")]
    per_class = student.per_class
    weak = np.flatnonzero((per_class["support"] >= 10) & (per_class["f1"] < 0.5))
    if len(weak):
        listed = ", ".join(quoted(facts.names[i]) for i in weak[:5])
        more = f" and {len(weak) - 5} other labels" if len(weak) > 5 else ""
        text = f"The student's F1 is below 0.5 on {listed}{more}."
        found.append(Finding("warn", text, "student"))
    if student.rows < 200:
        text = f"The test set has only {count(student.rows, 'row')}: its figures are rough."
        found.append(Finding("note", text, "student"))
    return found
