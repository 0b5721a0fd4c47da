"""What a report says in words: a line above each figure."""

import numpy as np

from llkd.cluster.progress import duration
from llkd.core.metrics import Evaluation
from llkd.results.report.derived import (
    TEACHER_ALONE,
    confusions,
    doubts,
    ever_taken_c,
    has_reasons,
    hesitations,
    mean_gap,
    needs,
    never_taken,
    paired_z,
    reasons_e4,
    seconds_by_part,
)
from llkd.results.report.facts import Facts
from llkd.results.report.passes import BAR_POLICIES, STUDENT_SURE, TEACHER_UNSURE
from llkd.results.tracked_figures import mean_uncertainty

LONGEST_NAME = 40
CHANCE = 2.0
"""Standard deviations below which a difference may be chance."""


def percent(share: float) -> str:
    """A share as people read it."""
    if 0 < share < 0.001:
        return "under 0.1\u00a0%"
    return f"{100 * share:.1f}\u00a0%" if 0 < share < 0.1 else f"{100 * share:.0f}\u00a0%"


def points(difference: float) -> str:
    """A difference of two shares, without its sign."""
    return f"{abs(100 * difference):.1f} points"


def count(number: int, noun: str) -> str:
    """`1 row`, `2,000 rows`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def quoted(name: str) -> str:
    """A label name within a sentence, cut, whose direction of writing ends with it."""
    name = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
    return f"“{name}”" if name.isascii() else f"“\u2068{name}\u2069”"


def teacher_confuses(facts: Facts) -> str:
    """Which labels the teacher confuses."""
    names, gold = facts.names, facts.gold
    if gold is not None:
        worst = confusions(gold.calibrated.confusion_cc)
        if not worst:
            return f"The teacher is right on all {count(gold.calibrated.rows, 'row')} with gold."
        first = worst[0]
        said = (
            f"The teacher takes {quoted(names[first.gold])} for {quoted(names[first.said])} most "
            f"often: {percent(first.share)} of the {quoted(names[first.gold])} rows "
            f"({first.rows:,}) of the {gold.where}"
        )
        if len(worst) > 1:
            second = worst[1]
            said += (
                f"; next {quoted(names[second.gold])} for {quoted(names[second.said])}, "
                f"{percent(second.share)}"
            )
        return f"{said}."
    unsure = hesitations(facts)
    if not unsure:
        return "The teacher has not labelled anything yet."
    first = unsure[0]
    return (
        f"There is no gold to tell. The teacher hesitates most between {quoted(names[first.gold])} "
        f"and {quoted(names[first.said])}: where it says {quoted(names[first.gold])}, it gives "
        f"{percent(first.share)} to the other."
    )


def selection_left_out(facts: Facts) -> str:
    """What selection left out."""
    if facts.epochs is None:
        return "No epoch has selected rows yet."
    never = never_taken(facts)
    epochs = count(len(facts.stats), "epoch")
    said = f"{percent(never)} of the labelled rows were taken in none of {epochs}."
    if has_reasons(facts):
        last = reasons_e4(facts)[-1]
        said += (
            f" In the last one {percent(last[TEACHER_UNSURE])} were left out because the teacher "
            f"was not sure enough, and {percent(last[STUDENT_SURE])} because the student was sure already."
        )
    ever_c = ever_taken_c(facts)
    if np.isfinite(ever_c).any() and never > 0:
        least = int(np.nanargmin(ever_c))
        said += (
            f" Least is used of {quoted(facts.names[least])}: {percent(float(ever_c[least]))} of "
            "its rows were ever taken."
        )
    return said


def more_labels(facts: Facts) -> str:
    """Where more labels would help."""
    if facts.tested is not None:
        found = needs(facts.tested.outcome_c4)
        if not found:
            return "The student makes no mistake on the test set."
        first = found[0]
        name = quoted(facts.names[first.label])
        said = (
            f"On {name}: {percent(first.share)} of the student's mistakes on the test set are "
            f"{name} rows that it takes for something else"
        )
        if first.teacher_right >= 0.5:
            return f"{said}. The teacher gets most of them right: more of its rows would help."
        return (
            f"{said}. The teacher is wrong on {percent(1 - first.teacher_right)} of these too: labels by "
            "people, or a better prompt, would help more than more rows."
        )
    unsure = doubts(facts)
    if not unsure:
        return "That shows once a student was trained."
    label, sure, uncertainty = unsure[0]
    unmeasured = (
        "Nothing is measured without a test set."
        if facts.config.test is None
        else "The test set is not measured yet."
    )
    return (
        f"{unmeasured} By doubt it is {quoted(facts.names[label])}: "
        f"the teacher's mean confidence is {sure:.2f}, and the student's mean uncertainty still "
        f"{uncertainty:.2f}."
    )


def labels_reading(facts: Facts) -> str:
    """Above the teacher's labels."""
    assert facts.corpus is not None
    rows_c, raw_c = facts.corpus.tally["rows_c"], facts.corpus.tally["raw_c"]
    total, most, least = max(rows_c.sum(), 1), int(rows_c.argmax()), int(rows_c.argmin())
    said = (
        f"Most frequent is {quoted(facts.names[most])} with {percent(rows_c[most] / total)} of the "
        f"rows, least {quoted(facts.names[least])} with {percent(rows_c[least] / total)}."
    )
    moved = np.abs(rows_c - raw_c).sum() / 2
    if facts.calibrated and moved:
        said += f" Calibration changed the label of at least {percent(moved / total)} of the rows."
    return said


def confidence_reading(facts: Facts) -> str:
    """Above the histogram of confidence."""
    if facts.gold is not None:
        auroc = facts.gold.calibrated.auroc
        if np.isfinite(auroc):
            word = "hardly" if auroc < 0.6 else "somewhat" if auroc < 0.75 else "clearly"
            return (
                f"Confidence {word} tells right from wrong: a right row has more of it than a wrong "
                f"one in {percent(auroc)} of the cases (AUROC; 50 % is guessing)."
            )
        return "The teacher is right on all rows with gold, or on none: its confidence tells nothing there."
    assert facts.corpus is not None
    rows_b = facts.corpus.tally["confidence_b"]
    half = int(np.searchsorted(np.cumsum(rows_b), rows_b.sum() / 2))
    return (
        f"Half of the rows have a confidence below {(half + 1) / len(rows_b):.2f}. There is no gold to "
        "tell what it is worth."
    )


def reliability_reading(facts: Facts) -> str:
    """Above the teacher's reliability diagram."""
    assert facts.gold is not None
    raw, made = facts.gold.raw, facts.gold.calibrated
    said = confidence_gap("teacher", made)
    if not facts.calibrated:
        return f"{said}; there is no calibration yet."
    return (
        f"{said}. Calibration took its accuracy from {percent(raw.accuracy)} to "
        f"{percent(made.accuracy)}, and the calibration error from {raw.ece:.2f} to {made.ece:.2f}."
    )


def risk_reading(facts: Facts) -> str:
    """Above risk and coverage."""
    assert facts.gold is not None
    made = facts.gold.calibrated
    return (
        f"Of the most confident quarter of the rows {percent(made.risk_at(0.25))} are wrong, of the "
        f"better half {percent(made.risk_at(0.5))}, of all {percent(1 - made.accuracy)}."
    )


def reasons_reading(facts: Facts) -> str:
    """Above why rows were left out."""
    taken = [found["fraction"] for found in facts.stats]
    if len(taken) == 1:
        return f"The one epoch took {percent(taken[0])} of the labelled rows."
    return (
        f"The first epoch took {percent(taken[0])} of the labelled rows, the last "
        f"{percent(taken[-1])}; {percent(1 - never_taken(facts))} were taken at least once."
    )


def shares_reading(facts: Facts) -> str:
    """Above the selected share by label."""
    ever_c = ever_taken_c(facts)
    if not np.isfinite(ever_c).any():
        return "No label has rows."
    none = [facts.names[i] for i in np.flatnonzero(ever_c == 0)]
    if none:
        listed = ", ".join(map(quoted, none[:5])) + (" and others" if len(none) > 5 else "")
        them = "it" if len(none) == 1 else "them"
        return f"No row of {listed} was ever taken: the student cannot learn {them}."
    least, most = int(np.nanargmin(ever_c)), int(np.nanargmax(ever_c))
    return (
        f"Every label was trained on: between {percent(float(ever_c[least]))} "
        f"({quoted(facts.names[least])}) and {percent(float(ever_c[most]))} "
        f"({quoted(facts.names[most])}) of its rows at least once."
    )


def thresholds_reading(facts: Facts) -> str:
    """Above the thresholds."""
    names = facts.names
    bars = [
        (bar, i)
        for i, bar in enumerate(facts.stats[-1]["thresholds"]["confidence_c"])
        if bar is not None
    ]
    if not bars:
        return "The policy's bar is the student's uncertainty alone."
    (low, easy), (high, hard) = min(bars), max(bars)
    who = "teacher" if facts.stats[-1]["policy"] in BAR_POLICIES else "policy"
    return (
        f"In the last epoch the {who} had to be surest of {quoted(names[hard])} "
        f"({high:.2f}) and least of {quoted(names[easy])} ({low:.2f})."
    )


def uncertainty_reading(facts: Facts) -> str:
    """Above the distribution of uncertainty."""
    means = [
        mean
        for found in facts.stats
        if (mean := mean_uncertainty(found["classes"].values())) is not None
    ]
    if len(means) < 2:
        return f"The student's mean uncertainty was {means[0]:.2f}." if means else ""
    word = "fell" if means[-1] < means[0] else "rose"
    return f"The student's mean uncertainty {word} from {means[0]:.2f} to {means[-1]:.2f}."


def loss_reading(facts: Facts) -> str:
    """Above loss and validation."""
    losses = [found["training_loss"] for found in facts.stats]
    if len(losses) == 1:
        said = f"The training loss of the one epoch was {losses[0]:.2f}."
    else:
        said = f"The training loss went from {losses[0]:.2f} to {losses[-1]:.2f}"
        said += "; each epoch trains on other rows, so it need not fall."
    held = {
        epoch: found["validation"]["macro_f1"]
        for epoch, found in enumerate(facts.stats)
        if found["validation"]
    }
    if held:
        best = max(held, key=lambda epoch: held[epoch])
        said += (
            f" On the rows held out the student agrees best with the teacher after epoch {best + 1}"
            f" (macro-F1 {held[best]:.2f})."
        )
    return said


def plane_reading(facts: Facts) -> str:
    """Above confidence against uncertainty."""
    assert facts.epochs is not None
    plane_2gg = facts.epochs.tally["plane_e2gg"][-1]
    half = plane_2gg.shape[1] // 2
    left, taken = plane_2gg[0], plane_2gg[1]
    rows = max(int(plane_2gg.sum()), 1)
    sure, easy = (left + taken)[half:].sum() / rows, (left + taken)[half:, :half].sum() / rows
    return (
        f"In the last epoch the teacher was sure (confidence above a half) of {percent(sure)} of "
        f"the rows; of {percent(easy)} the student was sure too, and had little left to learn."
    )


def student_reading(facts: Facts) -> str:
    """Whether the student is better than the teacher."""
    assert facts.tested is not None
    teacher, student = facts.tested.teacher, facts.tested.student
    z = paired_z(facts.tested.outcome_c4)
    difference = points(student.accuracy - teacher.accuracy)
    rows = count(student.rows, "test row")
    if abs(z) < CHANCE:
        return (
            f"Student and teacher differ by {difference} in accuracy on {rows}, which may "
            "be chance."
        )
    word = "above" if z > 0 else "below"
    return (
        f"The student is {difference} {word} the teacher in accuracy on {rows} "
        f"({percent(student.accuracy)} and {percent(teacher.accuracy)}), too much for chance."
    )


def classes_reading(facts: Facts) -> str:
    """Above F1 by label."""
    assert facts.tested is not None
    teacher, student = facts.tested.teacher, facts.tested.student
    seen = np.flatnonzero(student.per_class["support"] > 0)
    gain = student.per_class["f1"][seen] - teacher.per_class["f1"][seen]
    up, down = int(seen[gain.argmax()]), int(seen[gain.argmin()])
    weak = int(seen[student.per_class["f1"][seen].argmin()])
    f1 = student.per_class["f1"][weak]
    said = f"The student's weakest label is {quoted(facts.names[weak])} (F1 {f1:.2f})"
    if gain.max() > 0:
        said += f"; it gains most on the teacher on {quoted(facts.names[up])} ({gain.max():+.2f})"
    if gain.min() < 0:
        said += f" and loses most on {quoted(facts.names[down])} ({gain.min():+.2f})"
    return f"{said}."


def student_confuses(facts: Facts) -> str:
    """Above the student's confusion matrix."""
    assert facts.tested is not None
    student = facts.tested.student
    worst = confusions(student.confusion_cc)
    if not worst:
        return "The student makes no mistake on the test set."
    first, names = worst[0], facts.names
    return (
        f"The student takes {quoted(names[first.gold])} for {quoted(names[first.said])} most often: "
        f"{percent(first.share)} of the {quoted(names[first.gold])} rows ({first.rows:,})."
    )


def student_reliability(facts: Facts) -> str:
    """Above the student's reliability diagram."""
    assert facts.tested is not None
    student = facts.tested.student
    return f"{confidence_gap('student', student)}; its calibration error is {student.ece:.2f}."


def confidence_gap(who: str, measured: Evaluation) -> str:
    """Which way a mean confidence lies from accuracy, and how far."""
    gap = mean_gap(measured)
    word = "above" if gap > 0 else "below"
    return f"The {who}'s confidence is on average {points(gap)} {word} its accuracy"


def outcome_reading(facts: Facts) -> str:
    """Above who is right by label."""
    assert facts.tested is not None
    outcome = facts.tested.outcome_c4
    lost, rows = int(outcome[:, TEACHER_ALONE].sum()), int(outcome.sum())
    both = int(outcome[:, 3].sum())
    return (
        f"On {percent(lost / max(rows, 1))} of the test rows the teacher alone is right (more of its "
        f"labels would help), on {percent(both / max(rows, 1))} neither is (only labels by people, "
        "or another prompt, would)."
    )


def time_reading(facts: Facts) -> str:
    """Above where the time went."""
    parts = seconds_by_part(facts)
    if not any(parts.values()):
        return "No stage is finished yet."
    name, most = max(parts.items(), key=lambda part: part[1])
    total = sum(parts.values())
    return f"{duration(total)} in all; most of it, {percent(most / total)}, is {name}."


def rows_reading(facts: Facts) -> str:
    """Above the pipeline."""
    rejected = sum(step.rejected or 0 for step in facts.steps)
    done = sum(step.state == "done" for step in facts.steps)
    said = (
        "Every step is done" if facts.complete else f"{done} of {len(facts.steps)} steps are done"
    )
    if not rejected:
        return f"{said}, and no row had to be left out."
    return f"{said}; {count(rejected, 'row')} could not be used."
