"""The section on rows to inspect."""

from llkd.results.report.facts import Facts
from llkd.results.report.parts import RowList, Section
from llkd.results.report.words import percent

MAX_REJECTED = 0.01
"""Share of rejected rows above which a finding reports it."""
KINDS = {
    "useful": (
        "Most useful rows",
        "The rows with the largest weights in training, summed over the epochs.",
    ),
    "mistakes": (
        "Likely mistakes of the teacher",
        "Student and teacher disagree, and both are confident.",
    ),
    "test_mistakes": (
        "Disagreements on the test set",
        "Student and teacher disagree, and both are confident; gold shows who is right.",
    ),
    "unsure": (
        "Rows of the teacher's lowest confidence",
        "Never selected. Do they fit none of the labels, or more than one?",
    ),
    "rejected": ("Rows that could not be used", "A few for each reason."),
}
"""(title, note) of each kind of rows in `Facts.rows`."""


def examples_section(facts: Facts) -> Section:
    """The most useful, doubtful and rejected rows."""
    section = Section("examples", "Which rows should I look at?", "Rows")
    section.row_lists = [
        RowList(title, note, facts.rows[kind])
        for kind, (title, note) in KINDS.items()
        if facts.rows[kind]
    ]
    if facts.stats and not facts.rows["mistakes"] and not facts.agreement:
        section.note(
            "Likely mistakes of the teacher are shown once jobs/predict.py has labelled the corpus: "
            "run it, then jobs/report.py."
        )
    if not facts.rejects:
        section.note("No row was rejected.")
    limit = facts.config.max_reject_fraction
    for step in facts.steps:
        share = (step.rejected or 0) / max(step.rows_in or 1, 1)
        if share > MAX_REJECTED:
            text = f"{step.name}: {percent(share)} of the rows were rejected (limit: {percent(limit)})."
            section.find("bad" if share > limit / 2 else "warn", text)
    return section
