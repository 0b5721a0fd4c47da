"""The section on selection and training: did the selection do something sensible?"""

from typing import Any

import numpy as np
import plotly.graph_objects as go

from llkd.results.report.charts import (
    BLACK,
    BLUE,
    GREY,
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
from llkd.results.report.parts import Finding, Plot, Section, present
from llkd.results.report.passes import (
    OTHER,
    SELECTED,
    STUDENT_SURE,
    TEACHER_UNSURE,
    THRESHOLD_POLICIES,
    planes_of,
)
from llkd.results.report.totals import BINS, CELLS
from llkd.results.report.words import count, listed, percent, quoted
from llkd.results.tracked_figures import mean_uncertainty

FEW_ROWS = 20
"""Of a label: too few to learn it."""
MAX_RIDGES = 8
"""Epochs in the plot of uncertainty."""


def selection_section(facts: Facts) -> Section:
    """What each epoch selected and left out, and how training went."""
    plots, notes, findings = list[Plot](), [], list[Finding]()
    policy = facts.config.selection.policy
    if facts.epochs is None:
        notes.append("No epoch is trained yet.")
    else:
        thresholds, plane = _thresholds_plot(facts), _plane_plot(facts)
        plots = present(
            _reasons_plot(facts),
            _shares_plot(facts),
            plane,
            thresholds,
            _uncertainty_plot(facts),
            _training_plot(facts),
        )
        if thresholds is None:
            notes.append(f"Policy {policy} has no thresholds.")
        if plane is None:
            notes.append(f"Policy {policy} does not use the student's uncertainty.")
        if not facts.config.student.validation_fraction:
            notes.append("There is no validation score: student.validation_fraction is 0.")
        findings = _findings(facts)
    return Section(
        key="selection",
        title="Did the selection do something sensible?",
        short="Selection",
        lead="" if facts.epochs is None else f"Policy {policy}.",
        notes=notes,
        plots=plots,
        findings=findings,
        answer=("What did selection leave out?", left_out(facts)),
    )


def left_out(facts: Facts) -> str:
    """What selection left out, and why."""
    if facts.epochs is None:
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
    ever_c = facts.ever_selected_c
    if np.isfinite(ever_c).any() and never > 0:
        least = int(np.nanargmin(ever_c))
        text += (
            f" {quoted(facts.names[least])} was used least: {percent(float(ever_c[least]))} of its "
            "rows were ever selected."
        )
    return text


def _reasons_e4(facts: Facts) -> np.ndarray:
    """Share of the rows by epoch and reason, shape (E, 4)."""
    assert facts.epochs is not None
    why_e4 = facts.epochs["why_ec4"].sum(axis=1)
    return np.asarray(why_e4 / np.maximum(why_e4.sum(axis=1, keepdims=True), 1))


def _has_reasons(facts: Facts) -> bool:
    """Whether thresholds left out any row."""
    return bool(_reasons_e4(facts)[:, [TEACHER_UNSURE, STUDENT_SURE]].any())


def _findings(facts: Facts) -> list[Finding]:
    assert facts.epochs is not None
    selected_c, findings = facts.epochs["visits_ce"][:, 1:].sum(axis=1), []
    if (facts.ever_selected_c == 0).any():
        findings.append(Finding("bad", _shares_reading(facts)))
    few = np.flatnonzero((selected_c > 0) & (selected_c < FEW_ROWS))
    if len(few):
        names = listed([facts.names[i] for i in few])
        text = f"Fewer than {FEW_ROWS} rows were trained on for {names}."
        findings.append(Finding("warn", text))
    return findings


def _epoch_names(facts: Facts) -> list[str]:
    return [f"epoch {stats['epoch'] + 1}" for stats in facts.stats]


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
    drawn = bars(_epoch_names(facts), series, axis, hover=".1%", barmode="stack")
    return Plot("selection-reasons", "Rows selected and left out, by epoch", reading, drawn)


def _shares_plot(facts: Facts) -> Plot:
    """The share of each label's rows that each epoch selected; of many labels the least selected."""
    ever_c, epochs = facts.ever_selected_c, _epoch_names(facts)
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
    if not np.isfinite(ever_c).any():
        return "No label has rows."
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
        if thresholds_ec.size and np.isfinite(thresholds_ec).any():
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
    """A line for each label; of many labels the quartiles."""
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


def _plane_plot(facts: Facts) -> Plot | None:
    """The teacher's confidence against the student's uncertainty, and what was selected."""
    assert facts.epochs is not None
    plane_e2gg, last = facts.epochs["plane_e2gg"], facts.stats[-1]
    figures = {
        f"{name}, all labels": _plane(plane_2gg, None)
        for name, plane_2gg in reversed(list(zip(_epoch_names(facts), plane_e2gg, strict=True)))
        if plane_2gg.any()
    }
    if not figures:
        return None
    if plane_e2gg[-1].any():
        for place, label in enumerate(planes_of(last)):
            thresholds = [
                last["thresholds"][f"{k}_c"][label] for k in ("confidence", "uncertainty")
            ]
            figures[f"epoch {last['epoch'] + 1}, {facts.names[label]}"] = _plane(
                facts.epochs["label_plane_c2gg"][place], thresholds if _has_reasons(facts) else None
            )
    rows_gg, half = plane_e2gg[-1].sum(axis=0), CELLS // 2
    rows = max(int(rows_gg.sum()), 1)
    sure, easy = rows_gg[half:].sum() / rows, rows_gg[half:, :half].sum() / rows
    reading = (
        f"In the last epoch the teacher was confident (above 0.5) on {percent(sure)} of the rows; on "
        f"{percent(easy)} the student was certain too, and had little left to learn."
    )
    title = "All rows (grey) and the selected ones (dots); dashed: the thresholds"
    return Plot("selection-plane", title, reading, figures)


def _plane(plane_2gg: np.ndarray, thresholds: list[float | None] | None) -> go.Figure:
    rows, selected = plane_2gg.sum(axis=0).T, plane_2gg[1].T
    middle = (np.arange(CELLS) + 0.5) / CELLS
    with np.errstate(divide="ignore"):
        depth = np.where(rows > 0, np.log10(rows), np.nan)
    top = max(int(np.ceil(np.log10(max(rows.max(), 10)))), 1)
    cells = go.Heatmap(
        x=middle, y=middle, z=depth, zmin=0, zmax=max(float(np.nanmax(depth, initial=0)), 0.5),
        customdata=rows, colorscale=[[0, "#EDF0F3"], [1, "#4A5561"]], xgap=1, ygap=1,
        colorbar={
            "title": {"text": "rows"}, "thickness": 10, "outlinewidth": 0,
            "tickvals": list(range(top + 1)), "ticktext": [f"{10**k:,}" for k in range(top + 1)],
        },
        hovertemplate="confidence about %{x:.2f}, uncertainty about %{y:.2f}: %{customdata:,} rows<extra></extra>",
    )  # fmt: skip
    at_y, at_x = np.nonzero(selected)
    rows_d = selected[at_y, at_x]
    size = 4 + 12 * np.sqrt(rows_d / max(rows_d.max(initial=1), 1))
    dots = go.Scatter(
        x=middle[at_x], y=middle[at_y], mode="markers", name="selected rows", customdata=rows_d,
        marker={"color": ORANGE, "size": size, "line": {"color": BLACK, "width": 1}},
        hovertemplate="%{customdata:,} rows selected here<extra></extra>",
    )  # fmt: skip
    drawn = figure(
        [cells, dots],
        440,
        showlegend=True,
        xaxis={"range": [0, 1], "title": {"text": "the teacher's confidence"}},
        yaxis={"range": [0, 1.02], "title": {"text": "the student's uncertainty"}},
    )
    confidence, uncertainty = thresholds or (None, None)
    edge = {"type": "line", "line": {"color": BLACK, "width": 2, "dash": "dash"}}
    if confidence is not None:
        drawn.add_shape(x0=confidence, x1=confidence, y0=uncertainty or 0, y1=1.02, **edge)
    if uncertainty is not None:
        drawn.add_shape(x0=confidence or 0, x1=1, y0=uncertainty, y1=uncertainty, **edge)
    return drawn


def _uncertainty_plot(facts: Facts) -> Plot | None:
    """The distribution of the student's uncertainty, epoch by epoch."""
    assert facts.epochs is not None
    uncertainty_e2b = facts.epochs["uncertainty_e2b"]
    scored = np.flatnonzero(uncertainty_e2b.any(axis=(1, 2)))
    if not len(scored):
        return None
    means = [mean_uncertainty(stats["classes"].values()) for stats in facts.stats]
    known = [mean for mean in means if mean is not None]
    reading = f"The student's mean uncertainty was {known[0]:.2f}."
    if len(known) > 1:
        word = "fell" if known[-1] < known[0] else "rose"
        reading = f"The student's mean uncertainty {word} from {known[0]:.2f} to {known[-1]:.2f}."
    spread = np.linspace(0, len(scored) - 1, MAX_RIDGES).round().astype(int)
    kept = scored[np.unique(spread)]
    data = [trace for place, e in enumerate(kept) for trace in _ridge(uncertainty_e2b[e], place)]
    epochs = [_epoch_names(facts)[e] for e in kept]
    drawn = figure(
        data,
        max(360, 120 + 60 * len(kept)),
        yaxis={**label_axis(epochs), "range": [len(epochs) - 0.9, -1]},
        xaxis={"range": [0, 1], "title": {"text": "the student's uncertainty"}},
    )
    title = "Distribution of the student's uncertainty, by epoch"
    return Plot("selection-uncertainty", title, reading, drawn)


def _ridge(rows_2b: np.ndarray, place: int) -> list[go.Scatter]:
    """The distributions of all rows and of the selected ones, drawn upwards from a baseline."""
    middle, top, traces = (np.arange(BINS) + 0.5) / BINS, rows_2b.sum(axis=0).max(), []
    for name, rows_b, fill, color, dash in (
        ("all rows", rows_2b.sum(axis=0), GREY, BLACK, "solid"),
        ("selected rows", rows_2b[1], ORANGE, "#B36B00", "dot"),
    ):
        common: dict[str, Any] = {"x": middle, "mode": "lines", "legendgroup": name}
        baseline = go.Scatter(
            y=np.full(BINS, place), line={"width": 0}, showlegend=False, hoverinfo="skip", **common
        )
        ridge = go.Scatter(
            y=place - 0.85 * rows_b / top, name=name, showlegend=place == 0, customdata=rows_b,
            fill="tonexty", fillcolor=fill, opacity=0.9,
            line={"color": color, "width": 1.5, "dash": dash, "shape": "spline", "smoothing": 0.4},
            hovertemplate="uncertainty about %{x:.3f}: %{customdata:,} " + name + "<extra></extra>",
            **common,
        )  # fmt: skip
        traces += [baseline, ridge]
    return traces


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
