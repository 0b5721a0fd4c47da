"""Tables of compared runs for the console."""

from collections.abc import Mapping

from rich.table import Table

from llkd.lab.compare.results import Comparison, overview


def _p_value(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if value >= 0.001 else "<0.001"


def summary_table(found: Comparison) -> Table:
    """The policies, the best first."""
    title = (
        "Mean ± standard deviation over the seeds; difference of macro-F1 from the best baseline"
    )
    table = Table(title=title, title_justify="left")
    heads = ("policy", "macro-F1", "accuracy", "row visits", "unique rows", "seconds")
    for head in (*heads, "difference", "p"):
        table.add_column(head, justify="left" if head == "policy" else "right", overflow="fold")
    for summary in found.summaries:
        mean, deviation = summary.mean, summary.deviation
        table.add_row(
            summary.policy,
            *(f"{mean[name]:.3f} ± {deviation[name]:.3f}" for name in ("macro_f1", "accuracy")),
            *(f"{mean[name]:.1%}" for name in ("row_visits_fraction", "unique_rows_fraction")),
            f"{mean['seconds']:.1f}",
            "(baseline)" if summary.difference is None else f"{summary.difference:+.3f}",
            _p_value(summary.p_value),
        )
    table.add_section()
    table.add_row("the teacher", f"{found.teacher_macro_f1:.3f}")
    return table


def overview_table(found: Mapping[str, Comparison]) -> Table:
    """The policies over several data sets, by name, the best first."""
    title = "Macro-F1 on the test sets; mean and least gain over the best baseline of each"
    table = Table(title=title, title_justify="left")
    for head in ("policy", *found, "gain", "least", "row visits"):
        table.add_column(head, justify="left" if head == "policy" else "right", overflow="fold")
    for entry in overview([one.summaries for one in found.values()]):
        cells = [
            f"{mean:.3f} ± {dev:.3f}"
            for mean, dev in zip(entry.macro_f1, entry.deviation, strict=True)
        ]
        share = f"{entry.row_visits_fraction:.1%}"
        table.add_row(entry.policy, *cells, f"{entry.gain:+.1%}", f"{entry.worst:+.1%}", share)
    table.add_section()
    table.add_row("the teacher", *(f"{one.teacher_macro_f1:.3f}" for one in found.values()))
    return table
