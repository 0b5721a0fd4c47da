"""The tables of a report, cell by cell as text; the page escapes them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llkd.cluster.progress import duration
from llkd.core.metrics import Evaluation
from llkd.results.report.derived import confusions, ever_taken_c, hesitations, needs
from llkd.results.report.facts import Facts
from llkd.results.report.readings import percent

MOST_LINES = 12
"""Of a table of the most frequent."""
NONE = "–"


@dataclass(frozen=True)
class Table:
    """Columns, and rows of as many cells. Those that begin with `#` hold numbers."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


def confusion_table(evaluation: Evaluation, names: Sequence[str]) -> Table:
    """What is taken for what most often."""
    lines = [
        [names[c.gold], names[c.said], f"{c.rows:,}", percent(c.share)]
        for c in confusions(evaluation.confusion_cc)[:MOST_LINES]
    ]
    return Table(("gold", "taken for", "#rows", "#of the label"), lines, "Most frequent confusions")


def hesitation_table(facts: Facts) -> Table:
    """Between what the teacher hesitates most."""
    lines = [
        [facts.names[c.gold], facts.names[c.said], f"{c.rows:,}", percent(c.share)]
        for c in hesitations(facts)[:MOST_LINES]
    ]
    columns = ("says", "thinks of", "#rows", "#mean probability of the other")
    return Table(columns, lines, "Most frequent hesitations")


def class_table(facts: Facts) -> Table:
    """All that is known by label."""
    columns, cells = ["label"], [list(facts.names)]

    def add(title: str, values: Sequence[float | None] | np.ndarray, form: str) -> None:
        columns.append(title)
        cells.append([NONE if v is None or v != v else format(v, form) for v in values])

    if facts.corpus is not None:
        add("#teacher's rows", facts.corpus.tally["rows_c"], ",")
    if facts.stats:
        last = list(facts.stats[-1]["classes"].values())
        add("#confidence", [found["mean_confidence"] for found in last], ".2f")
        add("#uncertainty, last epoch", [found["mean_uncertainty"] for found in last], ".2f")
    if facts.epochs is not None:
        add("#ever selected", ever_taken_c(facts), ".0%")
    for name in ("teacher", "student"):
        if facts.tested is None:
            break
        found: Evaluation = getattr(facts.tested, name)
        if name == "teacher":
            add("#test rows", found.per_class["support"], ",")
        for key in ("f1",) if name == "teacher" else ("f1", "precision", "recall"):
            add(f"#{name} {'F1' if key == 'f1' else key}", found.per_class[key], ".2f")
    return Table(columns, list(zip(*cells, strict=True)), "All labels")


def needs_table(facts: Facts) -> Table | None:
    """The labels that the student misses, and what would help."""
    if facts.tested is None:
        return None
    lines = [
        [
            facts.names[need.label],
            f"{need.missed:,}",
            percent(need.share),
            percent(need.teacher_right),
            "more of its rows" if need.teacher_right >= 0.5 else "labels by people",
        ]
        for need in needs(facts.tested.outcome_c4)[:MOST_LINES]
    ]
    columns = ("label", "#missed", "#of all mistakes", "#teacher right on", "what would help")
    return Table(columns, lines, "What the student misses most")


def steps_table(facts: Facts) -> Table:
    """The pipeline, step by step."""

    def number(value: int | None) -> str:
        return NONE if value is None else f"{value:,}"

    lines = [
        [
            step.name,
            step.state,
            number(step.rows_in),
            number(step.rows_out),
            number(step.rejected),
            NONE if step.seconds is None else duration(step.seconds),
            step.note,
        ]
        for step in facts.steps
    ]
    columns = ("step", "state", "#rows in", "#rows out", "#rejected", "#time", "")
    return Table(columns, lines, "Rows in, out and rejected")


def rejects_table(facts: Facts) -> Table | None:
    """Rows left out, by stage and reason."""
    if not facts.rejects:
        return None
    ordered = sorted(facts.rejects.items(), key=lambda item: -item[1])
    return Table(("stage: reason", "#rows"), [[k, f"{v:,}"] for k, v in ordered], "Rows left out")


def teachers_table(facts: Facts) -> Table | None:
    """Each of several teachers."""
    if not facts.teachers:
        return None
    lines = []
    for model, found in facts.teachers:
        rate, mass = found.get("rows_per_second"), found.get("label_mass")
        rows = f"{sum(found['rows']):,}" if found else NONE
        lines.append(
            [model, rows, f"{rate:.1f}" if rate else NONE, NONE if mass is None else percent(mass)]
        )
    caption = "Several teachers; all else is about their combined labels"
    if "disagreement" in facts.labelled:
        caption += f", disagreement {facts.labelled['disagreement']:.2f} (0 to 1)"
    return Table(("teacher", "#rows", "#rows/s", "#label mass"), lines, caption)


def cost_table(facts: Facts) -> Table:
    """Throughput, tokens and price, as far as they are known."""
    config, labelled, lines = facts.config, facts.labelled, list[list[str]]()
    if labelled.get("rows_per_second"):
        lines.append(["teacher, rows a second", f"{labelled['rows_per_second']:,.1f}"])
    if labelled.get("label_mass") is not None:
        lines.append(["teacher, probability on the labels", percent(labelled["label_mass"])])
    if facts.tokens is not None:
        lines.append(["tokens of the prompts (by the logs)", f"{facts.tokens:,}"])
    if facts.stats:
        scored = sum(found["rows"] for found in facts.stats if found["seconds"]["score"] > 0.5)
        trained = sum(found["selected"] - found["dropped"] for found in facts.stats)
        seconds = {
            key: sum(found["seconds"][key] for found in facts.stats) for key in ("score", "train")
        }
        for word, rows, key in (("scored", scored, "score"), ("trained on", trained, "train")):
            if rows and seconds[key] > 0.5:
                lines.append([f"student, rows {word} a second", f"{rows / seconds[key]:,.1f}"])
        lines.append(["student, rows trained on, all epochs", f"{trained:,}"])
        waits = [found["waiting"]["share"] for found in facts.stats]
        lines.append(["training workers waiting", percent(sum(waits) / len(waits))])
    price = config.plan.price_per_hour
    if price is not None:
        parts = {
            "teacher": (labelled.get("seconds"), config.teacher.replicas[1]),
            "student": (facts.distilled.get("seconds"), config.student.most_workers),
        }
        for name, (seconds_, most) in parts.items():
            if seconds_ is not None:
                cost = seconds_ / 3600 * most * price
                text = f"{name}, price of its last command at most ({most} × {duration(seconds_)}, plan.price_per_hour {price:g})"
                lines.append([text, f"{cost:,.2f}"])
    return Table(("", "#"), lines, "Throughput and cost")
