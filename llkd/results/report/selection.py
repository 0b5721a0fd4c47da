"""The section on selection and training: was the selection sensible?"""

from typing import Any

import numpy as np
import plotly.graph_objects as go

from llkd.results.report.charts import (
    BLUE,
    MAX_HOVER_NAME,
    MAX_LABELS,
    ORANGE,
    PALE,
    PALETTE,
    PERCENT_AXIS,
    SKY,
    Series,
    bars,
    category_axis,
    epoch_axis,
    figure,
    label_axis,
    line,
    rows_height,
    share_map,
    shown,
)
from llkd.results.report.facts import Facts
from llkd.results.report.parts import Plot, Section, Table, cell, present
from llkd.results.report.passes import (
    OTHER,
    SELECTED,
    STUDENT_SURE,
    TEACHER_UNSURE,
    THRESHOLD_POLICIES,
)
from llkd.results.report.signals import plane_plot, uncertainty_plot
from llkd.results.report.words import count, listed, percent, quoted

MIN_ROWS = 20
"""Rows of a label below which a finding reports it."""


def selection_section(facts: Facts) -> Section:
    """What each epoch selected and left out, and how training went."""
    section = Section("selection", "Was the selection sensible?", "Selection")
    section.answer = ("What did selection leave out?", left_out(facts))
    if not facts.epochs:
        unread = "The selections of the epochs cannot be read."
        section.note(unread if facts.stats else "No epoch is trained yet.")
        return section
    policy = facts.stats[-1]["policy"]
    section.lead = f"Policy {policy}.{refinement(facts)}"
    thresholds, plane = _thresholds_plot(facts), plane_plot(facts, _has_reasons(facts))
    section.plots = present(
        _reasons_plot(facts),
        _shares_plot(facts),
        plane,
        thresholds,
        uncertainty_plot(facts),
        _training_plot(facts),
    )
    section.tables = present(_trial_table(facts))
    if thresholds is None:
        section.note(f"Policy {policy} has no thresholds.")
    if plane is None:
        section.note(f"Policy {policy} does not use the student's uncertainty.")
    if not facts.config.student.validation_fraction:
        section.note("There is no validation score: student.validation_fraction is 0.")
    if (facts.ever_selected_c == 0).any():
        section.find("bad", _shares_reading(facts))
    selected_c = facts.epochs["visits_ce"][:, 1:].sum(axis=1)
    few = [facts.names[i] for i in np.flatnonzero((selected_c > 0) & (selected_c < MIN_ROWS))]
    if few:
        section.find("warn", f"Fewer than {MIN_ROWS} rows were trained on for {listed(few)}.")
    return section


def refinement(facts: Facts) -> str:
    """What happened to the labels before the first epoch, with a space before; empty if they are the
    teacher's."""
    distilled = facts.distilled
    hand = _by_hand(distilled.get("gold"))
    if "relabelled_fraction" not in distilled:
        return hand
    changed = percent(distilled["relabelled_fraction"])
    text = f" Refinement changed {changed} of the teacher's labels.{hand}"
    prior = distilled.get("prior")
    if prior is None:
        return text
    evidence = (
        f"{prior['divergence']:.3f} nats from those of calibration; chance-corrected agreement of the "
        f"probes with confident labels {prior['agreement']:.2f}"
    )
    if prior["used"]:
        first = sorted(prior["imposed"].items(), key=lambda item: -item[1])[:MAX_LABELS]
        frequencies = ", ".join(f"{quoted(name)} {percent(share)}" for name, share in first)
        return f"{text} The labels now follow estimated frequencies: {frequencies} ({evidence})."
    return (
        f"{text} The estimated label frequencies were too close to those of calibration, or too "
        f"uncertain, to be used ({evidence})."
    )


def _by_hand(gold: dict[str, Any] | None) -> str:
    """How the labels do on the rows labelled by hand, with a space before; empty without such rows."""
    if gold is None:
        return ""
    rows = gold["rows"]
    return (
        f" Of {count(rows, 'row')} labelled by hand, the teacher has "
        f"{percent(gold['teacher_right'] / rows)} right, and the labels that the student learns "
        f"{percent(gold['refined_right'] / rows)}; each row was predicted without its own label."
        + (
            ""
            if gold["helps"]
            else " Fitted to these rows, fewer labels would be right, so they are not."
        )
    )


def _trial_table(facts: Facts) -> Table | None:
    """What each policy would have done, by its trial on the frozen student."""
    trial = facts.distilled.get("trial")
    if trial is None:
        return None
    columns, gold = ["policy", "#row visits"], trial["gold_rows"]
    columns += ["#right, labelled by hand"] if gold else []
    tested = facts.config.test is not None
    columns += ["#accuracy, test set", "#macro-F1, test set"] if tested else []
    lines = []
    for name, found in trial["policies"].items():
        line = [name, percent(found["row_visits_fraction"])]
        line += [percent(found["gold_right"] / gold)] if gold else []
        figures = found.get("test", {})
        line += (
            [cell(figures.get(key), ".3f") for key in ("accuracy", "macro_f1")] if tested else []
        )
        lines.append(line)
    caption = (
        f"What each policy would have done: a head on the frozen student, trained on "
        f"{count(trial['rows'], 'row')} of the corpus. A fine-tuned student can differ"
    )
    return Table(columns, lines, caption)


def left_out(facts: Facts) -> str:
    """What selection left out, and why."""
    if not facts.epochs:
        return "No epoch has selected rows yet."
    never, epochs = facts.never_selected, count(len(facts.stats), "epoch")
    text = f"{percent(never)} of the labelled rows were never selected in {epochs}."
    if _has_reasons(facts):
        last = _reasons_e4(facts)[-1]
        text += (
            f" In the last epoch, {percent(last[TEACHER_UNSURE])} were left out because the teacher "
            f"was not confident enough, and {percent(last[STUDENT_SURE])} because the student was "
            "already certain."
        )
    if never > 0:
        ever_c = facts.ever_selected_c
        least = int(np.nanargmin(ever_c))
        text += (
            f" {quoted(facts.names[least])} was used least: {percent(float(ever_c[least]))} of its "
            "rows were ever selected."
        )
    return text


def _reasons_e4(facts: Facts) -> np.ndarray:
    """Share of the rows by epoch and reason, shape (E, 4)."""
    why_e4 = facts.epochs["why_ec4"].sum(axis=1)
    return np.asarray(why_e4 / np.maximum(why_e4.sum(axis=1, keepdims=True), 1))


def _has_reasons(facts: Facts) -> bool:
    """Whether thresholds left out any row."""
    return bool(_reasons_e4(facts)[:, [TEACHER_UNSURE, STUDENT_SURE]].any())


def _reasons_plot(facts: Facts) -> Plot:
    """Rows selected and left out, epoch by epoch."""
    shares = [percent(stats["fraction"]) for stats in facts.stats]
    if len(shares) == 1:
        reading = f"The only epoch selected {shares[0]} of the labelled rows."
    else:
        reading = (
            f"The first epoch selected {shares[0]} of the labelled rows, the last {shares[-1]}; "
            f"{percent(1 - facts.never_selected)} were selected at least once."
        )
    other = "left out: other (validation split, or not drawn)"
    if not _has_reasons(facts):
        other = "left out"
    share_e4 = _reasons_e4(facts)
    series: list[Series] = [
        (name, share_e4[:, why], color, hatch)
        for name, why, color, hatch in (
            ("selected", SELECTED, BLUE, ""),
            ("left out: teacher not confident enough", TEACHER_UNSURE, ORANGE, "/"),
            ("left out: student already certain", STUDENT_SURE, SKY, "."),
            (other, OTHER, PALE, "x"),
        )
        if share_e4[:, why].any()
    ]
    axis = {**PERCENT_AXIS, "range": [0, 1], "title": {"text": "share of the labelled rows"}}
    drawn = bars(facts.epoch_names, series, axis, hover=".1%", barmode="stack")
    return Plot("selection-reasons", "Rows selected and left out, by epoch", reading, drawn)


def _shares_plot(facts: Facts) -> Plot:
    """The share of each label's rows selected by each epoch; of many labels, the lowest shares."""
    ever_c, epochs = facts.ever_selected_c, facts.epoch_names
    order = np.argsort(ever_c, kind="stable")[:MAX_LABELS]
    order = order[np.isfinite(ever_c[order])]  # the others have no rows
    names, share = [facts.names[i] for i in order], facts.selected_ec[:, order].T
    hover = [
        [
            f"{shown(name, MAX_HOVER_NAME)}, {epoch}: {share[i, j]:.1%} of its rows"
            for j, epoch in enumerate(epochs)
        ]
        for i, name in enumerate(names)
    ]
    top = max(float(np.nanmax(share, initial=0)), 0.01)
    drawn = figure(
        [share_map(share, top, hover, len(epochs) <= 10)],
        rows_height(len(names)),
        xaxis=category_axis(epochs),
        yaxis=label_axis(names),
    )
    title = "Share of each label's rows selected per epoch, %; least selected labels first"
    return Plot("selection-shares", title, _shares_reading(facts), drawn)


def _shares_reading(facts: Facts) -> str:
    ever_c = facts.ever_selected_c
    none = [facts.names[i] for i in np.flatnonzero(ever_c == 0)]
    if none:
        what = "this label" if len(none) == 1 else "these labels"
        return f"No row of {listed(none)} was ever selected: the student cannot learn {what}."
    least, most = int(np.nanargmin(ever_c)), int(np.nanargmax(ever_c))
    return (
        f"No label was left out: between {percent(float(ever_c[least]))} "
        f"({quoted(facts.names[least])}) and {percent(float(ever_c[most]))} "
        f"({quoted(facts.names[most])}) of its rows were selected at least once."
    )


def _thresholds_plot(facts: Facts) -> Plot | None:
    """Thresholds of confidence and uncertainty, epoch by epoch."""
    own = facts.stats[-1]["policy"] in THRESHOLD_POLICIES
    confidence = "the teacher's confidence" if own else "the policy's confidence"
    figures = {}
    for signal, name in (("confidence", confidence), ("uncertainty", "the student's uncertainty")):
        thresholds_ec = np.array(
            [stats["thresholds"][f"{signal}_c"] for stats in facts.stats], dtype=float
        )
        if np.isfinite(thresholds_ec).any():
            figures[name] = _threshold_lines(facts, thresholds_ec)
    if not figures:
        return None
    last = facts.stats[-1]["thresholds"]["confidence_c"]
    known = [(value, i) for i, value in enumerate(last) if value is not None]
    reading = "The policy's only threshold is on the student's uncertainty."
    if known:
        (low, easy), (high, hard) = min(known), max(known)
        reading = (
            f"In the last epoch the threshold on {confidence} was highest for "
            f"{quoted(facts.names[hard])} ({high:.2f}) and lowest for {quoted(facts.names[easy])} "
            f"({low:.2f})."
        )
    return Plot("selection-thresholds", "Selection thresholds by epoch", reading, figures)


def _threshold_lines(facts: Facts, thresholds_ec: np.ndarray) -> go.Figure:
    """A line per label; of many labels, the quartiles."""
    epochs = [stats["epoch"] + 1 for stats in facts.stats]
    lines = list(zip(facts.names, thresholds_ec.T, strict=True))
    if len(lines) > len(PALETTE):
        names = ("highest of all labels", "upper quartile", "median", "lower quartile", "lowest")
        known_e = np.isfinite(thresholds_ec).any(axis=1)
        levels = np.full((len(names), len(epochs)), np.nan)
        quantiles = np.nanquantile(thresholds_ec[known_e], [1, 0.75, 0.5, 0.25, 0], axis=1)
        levels[:, known_e] = quantiles
        lines = list(zip(names, levels, strict=True))
    data = [
        line(
            epochs,
            values,
            shown(name),
            i,
            f"{shown(name, MAX_HOVER_NAME)}<br>epoch %{{x}}: %{{y:.3f}}",
        )
        for i, (name, values) in enumerate(lines)
    ]
    return figure(data, 440, xaxis=epoch_axis(epochs), yaxis={"title": {"text": "threshold"}})


def _training_plot(facts: Facts) -> Plot:
    """Training loss and validation score, epoch by epoch."""
    epochs = [stats["epoch"] + 1 for stats in facts.stats]
    losses = [stats["training_loss"] for stats in facts.stats]
    scores = [(stats["validation"] or {}).get("macro_f1") for stats in facts.stats]
    if len(losses) == 1:
        reading = f"The training loss of the only epoch was {losses[0]:.2f}."
    else:
        reading = (
            f"The training loss went from {losses[0]:.2f} to {losses[-1]:.2f}; each epoch trains on "
            "different rows, so it need not fall."
        )
    known = [
        (score, -epoch) for score, epoch in zip(scores, epochs, strict=True) if score is not None
    ]
    if known:
        score, best = max(known)
        reading += (
            f" On the validation split the student agrees best with the teacher after epoch {-best} "
            f"(macro-F1 {score:.2f})."
        )
    data = [line(epochs, losses, "training loss", 0, "epoch %{x}: %{y:.3f}", yaxis="y")]
    layout: dict[str, Any] = {}
    if len(known) == len(epochs):
        name = "macro-F1 on the validation split (right axis)"
        data.append(line(epochs, scores, name, 1, "epoch %{x}: %{y:.3f}", yaxis="y2"))
        layout["yaxis2"] = {
            "overlaying": "y", "side": "right", "range": [0, 1], "dtick": 0.2, "zeroline": False,
            "showgrid": False, "automargin": True,
        }  # fmt: skip
    drawn = figure(
        data,
        xaxis=epoch_axis(epochs),
        yaxis={"rangemode": "tozero", "title": {"text": "training loss"}},
        showlegend=True,
        **layout,
    )
    return Plot("selection-loss", "Training, by epoch", reading, drawn)
