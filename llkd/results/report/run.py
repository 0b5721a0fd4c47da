"""The sections on the run: what did it cost, and can I trust it?"""

from collections import defaultdict

from llkd.cluster.progress import duration
from llkd.results.report.charts import BLUE, bars
from llkd.results.report.facts import Facts
from llkd.results.report.parts import NONE, Plot, Section, Table, cell, present
from llkd.results.report.words import count, percent

MAX_IDLE = 0.2
"""Share of idle time above which a finding reports it."""
EPOCH_PARTS = {"score": "student: scoring", "select": "selection", "train": "student: training"}
MAX_EPOCHS = 8
"""Number of epochs, the last ones, in the plot of rows."""


def cost_section(facts: Facts) -> Section:
    """Time, throughput and price."""
    section = Section("cost", "What did it cost?", "Cost", plots=present(_time_plot(facts)))
    if not section.plots:
        section.note("No stage is finished yet.")
    if facts.config.plan.price_per_hour is None:
        section.note("Set plan.price_per_hour to see prices.")
    if facts.epochs and (idle := facts.stats[-1]["waiting"]["share"]) > MAX_IDLE:
        text = f"In the last epoch the training workers were idle for {percent(idle)} of the time."
        section.find("warn", text)
    return section


def run_section(facts: Facts) -> Section:
    """The pipeline, step by step."""
    section = Section("run", "Can I trust it?", "Trust", plots=present(_rows_plot(facts)))
    section.tables = present(_rejects_table(facts))
    if not section.plots:
        section.lead = _steps_reading(facts)
        section.tables = [_steps_table(facts), *section.tables]
    for error in facts.errors:
        section.find("bad", f"Could not be read: {error}")
    waiting = [step.name for step in facts.steps if step.state != "done"]
    if waiting:
        text = f"The run is not finished: next is “{waiting[0]}”. All figures are preliminary."
        section.find("warn", text)
    return section


def _seconds_by_part(facts: Facts) -> dict[str, float]:
    """Seconds by part of the run, as far as known."""
    seconds = defaultdict[str, float](float)
    for step in facts.steps:
        if step.seconds and step.name.startswith("ingest"):
            seconds["reading rows"] += step.seconds
        elif step.seconds and step.name == "label corpus":
            seconds["teacher: labelling"] = step.seconds
    for stats in facts.stats:
        for key, name in EPOCH_PARTS.items():
            seconds[name] += stats["seconds"][key]
    if "seconds" in facts.distilled:
        epochs = sum(seconds[name] for name in EPOCH_PARTS.values())
        seconds["student: start, storage"] = max(facts.distilled["seconds"] - epochs, 0.0)
    if "seconds" in facts.metrics:
        seconds["evaluation"] = facts.metrics["seconds"]["evaluate"]
    return {name: value for name, value in seconds.items() if value}


def _time_plot(facts: Facts) -> Plot | None:
    parts = _seconds_by_part(facts)
    if not parts:
        return None
    name, most = max(parts.items(), key=lambda part: part[1])
    total = sum(parts.values())
    unit, scale = "hours", 3600
    if most < 300:
        unit, scale = "seconds", 1
    elif most < 3 * 3600:
        unit, scale = "minutes", 60
    values = [seconds / scale for seconds in parts.values()]
    drawn = bars(
        list(parts),
        [(unit, values, BLUE, "")],
        {"title": {"text": unit}},
        hover=".1f",
        text=[f"{value:,.1f}" for value in values],
    )
    reading = f"{duration(total)} in total; the largest part is {name} ({percent(most / total)})."
    return Plot("cost-time", "Time by stage", reading, drawn, _cost_table(facts), wide=True)


def _cost_table(facts: Facts) -> Table:
    """Throughput, tokens and price, as far as known."""
    labelled, lines = facts.labelled, list[list[str]]()
    if labelled.get("rows_per_second"):
        lines.append(["teacher, rows per second", f"{labelled['rows_per_second']:,.1f}"])
    if labelled.get("label_mass") is not None:
        lines.append(["teacher, probability on the labels", percent(labelled["label_mass"])])
    if facts.tokens is not None:
        lines.append(["prompt tokens, according to the logs", f"{facts.tokens:,}"])
    if facts.stats:
        scored = sum(s["rows"] for s in facts.stats if s["seconds"]["score"] > 0.5)
        trained = sum(s["selected"] - s["dropped"] for s in facts.stats)
        for what, rows, key in (("scored", scored, "score"), ("trained on", trained, "train")):
            seconds = sum(stats["seconds"][key] for stats in facts.stats)
            if rows and seconds > 0.5:
                lines.append([f"student, rows {what} per second", f"{rows / seconds:,.1f}"])
        lines.append(["student, rows trained on, all epochs", f"{trained:,}"])
        idle = [stats["waiting"]["share"] for stats in facts.stats]
        lines.append(["training workers, idle time", percent(sum(idle) / len(idle))])
    return Table(("", "#"), lines + _prices(facts), "Throughput and cost")


def _prices(facts: Facts) -> list[list[str]]:
    """Upper bounds of the price of labelling and distillation."""
    config, price, lines = facts.config, facts.config.plan.price_per_hour, []
    for name, results, machines in (
        ("teacher", facts.labelled, config.teacher.replicas[1]),
        ("student", facts.distilled, config.student.most_workers),
    ):
        seconds = results.get("seconds")
        if price is not None and seconds is not None:
            text = (
                f"{name}, price of its last command at most ({machines} × {duration(seconds)}, "
                f"plan.price_per_hour {price:g})"
            )
            lines.append([text, f"{seconds / 3600 * machines * price:,.2f}"])
    return lines


def _rows_plot(facts: Facts) -> Plot | None:
    """How many corpus rows reach each step."""
    steps = {step.name: step for step in facts.steps}
    ingested, labelled = steps.get("ingest corpus"), steps.get("label corpus")
    if ingested is None or ingested.rows_out is None:
        return None
    bar = {"rows read": ingested.rows_in or 0, "usable": ingested.rows_out}
    if labelled is not None and labelled.rows_out is not None:
        bar["labelled"] = labelled.rows_out
    if facts.epochs:
        bar["trained on in any epoch"] = int(facts.epochs["visits_ce"][:, 1:].sum())
        for stats in facts.stats[-MAX_EPOCHS:]:
            bar[f"in epoch {stats['epoch'] + 1}"] = stats["selected"]
    drawn = bars(
        list(bar),
        [("rows", list(bar.values()), BLUE, "")],
        {"title": {"text": "rows"}},
        hover=",",
        text=[f"{rows:,}" for rows in bar.values()],
    )
    title, reading = "Rows through the pipeline", _steps_reading(facts)
    return Plot("run-pipeline", title, reading, drawn, _steps_table(facts), wide=True)


def _steps_reading(facts: Facts) -> str:
    rejected = sum(step.rejected or 0 for step in facts.steps)
    done = sum(step.state == "done" for step in facts.steps)
    text = (
        "Every step is done" if facts.complete else f"{done} of {len(facts.steps)} steps are done"
    )
    if not rejected:
        return f"{text}, and no row was rejected."
    return f"{text}; {count(rejected, 'row')} could not be used."


def _steps_table(facts: Facts) -> Table:
    lines = [
        [
            step.name,
            step.state,
            cell(step.rows_in),
            cell(step.rows_out),
            cell(step.rejected),
            NONE if step.seconds is None else duration(step.seconds),
            step.note,
        ]
        for step in facts.steps
    ]
    columns = ("step", "state", "#rows in", "#rows out", "#rejected", "#time", "")
    return Table(columns, lines, "Rows in, out and rejected")


def _rejects_table(facts: Facts) -> Table | None:
    if not facts.rejects:
        return None
    ordered = sorted(facts.rejects.items(), key=lambda item: -item[1])
    return Table(("stage: reason", "#rows"), [[k, f"{v:,}"] for k, v in ordered], "Rejected rows")
