"""The plots of the run: time and rows."""

from llkd.results.report.derived import seconds_by_part
from llkd.results.report.facts import Facts
from llkd.results.report.style import BLUE, Variants, bars, figure, label_axis, one, rows_height


def time(facts: Facts) -> Variants | None:
    """Where the time went."""
    parts = {name: seconds for name, seconds in seconds_by_part(facts).items() if seconds}
    if not parts:
        return None
    longest = max(parts.values())
    unit, by = (
        ("seconds", 1)
        if longest < 300
        else ("minutes", 60)
        if longest < 3 * 3600
        else ("hours", 3600)
    )
    names = list(parts)
    drawn = bars(
        names,
        [seconds / by for seconds in parts.values()],
        unit,
        BLUE,
        "",
        xhoverformat=".1f",
        text=[f"{seconds / by:,.1f}" for seconds in parts.values()],
        textposition="auto",
    )
    return one(
        figure(
            [drawn],
            rows_height(len(names)),
            bargap=0.3,
            yaxis=label_axis(names),
            xaxis={"title": {"text": unit}},
        )
    )


def pipeline(facts: Facts) -> Variants | None:
    """How many rows come through the steps on the corpus."""
    steps = [
        step
        for step in facts.steps
        if step.rows_out is not None and step.name in ("ingest corpus", "label corpus")
    ]
    if not steps:
        return None
    named = [("rows read", steps[0].rows_in or 0), ("usable", steps[0].rows_out or 0)]
    named += [("labelled", step.rows_out or 0) for step in steps[1:]]
    if facts.epochs is not None:
        visits_ce = facts.epochs.tally["visits_ce"]
        named.append(("trained on, ever", int(visits_ce[:, 1:].sum())))
        named += [(f"in epoch {s['epoch'] + 1}", s["selected"]) for s in facts.stats[-8:]]
    names, values = [name for name, _ in named], [value for _, value in named]
    drawn = bars(
        names,
        values,
        "rows",
        BLUE,
        "",
        xhoverformat=",",
        text=[f"{v:,}" for v in values],
        textposition="auto",
    )
    return one(
        figure(
            [drawn],
            rows_height(len(names)),
            bargap=0.3,
            yaxis=label_axis(names),
            xaxis={"title": {"text": "rows"}},
        )
    )
