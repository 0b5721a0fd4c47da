"""Figures of a report that sentences, plots and tables share."""

from dataclasses import dataclass

import numpy as np

from llkd.core.metrics import Evaluation
from llkd.results.report.facts import Facts
from llkd.results.report.passes import OTHER, SELECTED, STUDENT_SURE, TEACHER_UNSURE

BOTH, STUDENT_ALONE, TEACHER_ALONE, NOBODY = range(4)
"""Who is right, in `outcome_c4`."""
MOST_LABELS = 15
"""Labels that a plot shows; the tables have all of them."""


@dataclass(frozen=True)
class Confusion:
    """Rows of one label that were taken for another."""

    gold: int
    said: int
    rows: int
    share: float
    """Of the rows of that label."""


def confusions(confusion_cc: np.ndarray) -> list[Confusion]:
    """All of them, the most frequent first.

    Args:
        confusion_cc: rows by (gold, predicted), shape (C, C).
    """
    wrong_cc = confusion_cc - np.diag(np.diag(confusion_cc))
    gold_c = np.maximum(confusion_cc.sum(axis=1), 1)
    order = np.argsort(-wrong_cc, axis=None, kind="stable")
    found = []
    for place in order[: np.count_nonzero(wrong_cc)]:
        gold, said = np.unravel_index(place, wrong_cc.shape)
        rows = int(wrong_cc[gold, said])
        found.append(Confusion(int(gold), int(said), rows, rows / float(gold_c[gold])))
    return found


def hesitations(facts: Facts) -> list[Confusion]:
    """Without gold: the labels that get most of the probability which the chosen one does not;
    `share` is the mean of it."""
    if facts.corpus is None:
        return []
    second_cc, rows_c = facts.corpus.tally["second_cc"], facts.corpus.tally["rows_c"]
    share_cc = second_cc / np.maximum(rows_c, 1)[:, None]
    np.fill_diagonal(share_cc, 0)
    order = np.argsort(-share_cc * rows_c[:, None], axis=None, kind="stable")
    places = [np.unravel_index(place, share_cc.shape) for place in order[:50]]
    return [
        Confusion(int(a), int(b), int(rows_c[a]), float(share_cc[a, b]))
        for a, b in places
        if share_cc[a, b] > 0
    ]


def taken_ec(facts: Facts) -> np.ndarray:
    """Share of each label's rows that an epoch took, shape (E, C); NaN for a label without rows."""
    assert facts.epochs is not None
    why_ec4 = facts.epochs.tally["why_ec4"]
    rows_ec = why_ec4.sum(axis=2)
    return np.where(rows_ec > 0, why_ec4[:, :, SELECTED] / np.maximum(rows_ec, 1), np.nan)


def ever_taken_c(facts: Facts) -> np.ndarray:
    """Share of each label's rows that some epoch took, shape (C,); NaN for a label without rows."""
    assert facts.epochs is not None
    visits_ce = facts.epochs.tally["visits_ce"]
    rows_c = visits_ce.sum(axis=1)
    return np.where(rows_c > 0, 1 - visits_ce[:, 0] / np.maximum(rows_c, 1), np.nan)


def never_taken(facts: Facts) -> float:
    """Share of the rows that no epoch took."""
    assert facts.epochs is not None
    visits_ce = facts.epochs.tally["visits_ce"]
    return float(visits_ce[:, 0].sum() / max(visits_ce.sum(), 1))


def reasons_e4(facts: Facts) -> np.ndarray:
    """Share of the rows by why they were or were not taken, shape (E, 4)."""
    assert facts.epochs is not None
    why_e4 = facts.epochs.tally["why_ec4"].sum(axis=1)
    return np.asarray(why_e4 / np.maximum(why_e4.sum(axis=1, keepdims=True), 1))


def has_reasons(facts: Facts) -> bool:
    """Whether the policy has bars by which rows were left out."""
    assert facts.epochs is not None
    return bool(facts.epochs.tally["why_ec4"][:, :, [TEACHER_UNSURE, STUDENT_SURE]].any())


REASON_NAMES = {
    SELECTED: "selected",
    TEACHER_UNSURE: "left out: teacher not sure enough",
    STUDENT_SURE: "left out: student already sure",
    OTHER: "left out: other (held out, or not drawn)",
}


def mean_gap(evaluation: Evaluation) -> float:
    """Mean confidence less accuracy: above 0 it is too sure."""
    return float(evaluation.confidence_b.sum() / max(evaluation.rows, 1)) - evaluation.accuracy


def paired_z(outcome_c4: np.ndarray) -> float:
    """How many standard deviations the student is above the teacher on the same rows (McNemar's
    test); 0 where they never differ."""
    better, worse = outcome_c4[:, STUDENT_ALONE].sum(), outcome_c4[:, TEACHER_ALONE].sum()
    return float((better - worse) / np.sqrt(better + worse)) if better + worse else 0.0


@dataclass(frozen=True)
class Need:
    """A label on which the student fails most."""

    label: int
    missed: int
    """Rows of it that the student takes for another."""
    share: float
    """Of all rows that the student gets wrong."""
    teacher_right: float
    """Share of `missed` on which the teacher is right."""


def needs(outcome_c4: np.ndarray) -> list[Need]:
    """The labels by how many of their rows the student misses.

    Args:
        outcome_c4: rows by gold label and who is right, shape (C, 4).
    """
    missed_c = outcome_c4[:, [TEACHER_ALONE, NOBODY]].sum(axis=1)
    total = max(int(missed_c.sum()), 1)
    return [
        Need(
            int(c),
            int(missed_c[c]),
            float(missed_c[c] / total),
            float(outcome_c4[c, TEACHER_ALONE] / missed_c[c]),
        )
        for c in np.argsort(-missed_c, kind="stable")
        if missed_c[c]
    ]


def doubts(facts: Facts) -> list[tuple[int, float, float]]:
    """Without gold: (label, mean confidence of the teacher, mean uncertainty of the student in the
    last epoch), those first where rows, doubt and uncertainty are most."""
    found = []
    for label, told in enumerate(facts.stats[-1]["classes"].values() if facts.stats else ()):
        sure, unsure = told["mean_confidence"], told["mean_uncertainty"]
        if sure is not None and unsure is not None:
            found.append((told["rows"] * (1 - sure) * unsure, (label, sure, unsure)))
    return [each for _, each in sorted(found, key=lambda one: -one[0])]


def seconds_by_part(facts: Facts) -> dict[str, float]:
    """Where the time went, as far as it is known."""
    found: dict[str, float] = {}
    for step in facts.steps:
        if step.seconds and step.name.startswith("ingest"):
            found["reading rows"] = found.get("reading rows", 0.0) + step.seconds
        elif step.seconds and step.name == "label corpus":
            found["teacher: labelling"] = step.seconds
    for stats in facts.stats:
        for key, name in _PARTS.items():
            found[name] = found.get(name, 0.0) + stats["seconds"][key]
    if "seconds" in facts.distilled:
        inside = sum(found.get(name, 0.0) for name in _PARTS.values())
        found["student: start, storage"] = max(facts.distilled["seconds"] - inside, 0.0)
    if "seconds" in facts.metrics:
        found["measuring"] = facts.metrics["seconds"]["evaluate"]
    return found


_PARTS = {"score": "student: scoring", "select": "selection", "train": "student: training"}
