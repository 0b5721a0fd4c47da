"""What compared runs look like."""

from collections.abc import Sequence
from io import BytesIO
from typing import Any

from llkd.lab.compare.results import RunResult, Summary
from llkd.store.folder import Folder

_SIZE = (4.0, 3.0)
"""Inches of one panel."""


def draw_all(folder: Folder, results: Sequence[RunResult], summaries: Sequence[Summary]) -> None:
    """Write all plots as PNG: `score`, `selected`, `thresholds` where there are any, and
    `reliability` where the corpus has gold. Of each policy the first seed is drawn where all would be too much."""
    first: dict[str, RunResult] = {}
    for result in results:
        first.setdefault(result.policy, result)
    _save(folder, "score", _score(results, summaries))
    _save(folder, "selected", _selected(first))
    barred = {policy: result for policy, result in first.items() if _has_bars(result)}
    if barred:
        _save(folder, "thresholds", _thresholds(barred))
    if any(result.reliability for result in first.values()):
        _save(folder, "reliability", _reliability(first))


def _figure(rows: int, columns: int) -> tuple[Any, Any]:
    """(figure, its panels, shape (rows, columns))."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_SIZE[0] * columns, _SIZE[1] * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _save(folder: Folder, name: str, figure: Any) -> None:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    folder.write_bytes(f"{name}.png", buffer.getvalue())


def _score(results: Sequence[RunResult], summaries: Sequence[Summary]) -> Any:
    """Macro-F1 against rows trained on: each run a dot, each policy its mean."""
    figure, [[panel]] = _figure(1, 1)
    figure.set_size_inches(7, 4.5)
    for number, found in enumerate(summaries):
        runs = [result for result in results if result.policy == found.policy]
        color = f"C{number % 10}"
        panel.scatter(
            [100 * run.row_visits_fraction for run in runs], [run.macro_f1 for run in runs],
            s=12, alpha=0.4, color=color,
        )  # fmt: skip
        panel.errorbar(
            100 * found.mean["row_visits_fraction"], found.mean["macro_f1"],
            found.deviation["macro_f1"], marker="s", capsize=3, color=color, label=found.policy,
        )  # fmt: skip
    panel.set(xlabel="row visits, % of rows × epochs", ylabel="macro-F1 on the test set")
    panel.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _selected(first: dict[str, RunResult]) -> Any:
    """Share of each class's rows that is selected, by epoch; a panel for each policy."""
    figure, panels = _figure(1, len(first))
    for panel, (policy, result) in zip(panels[0], first.items(), strict=True):
        epochs = range(1, len(result.epochs) + 1)
        for name in result.epochs[0]["classes"]:
            share = [entry["classes"][name]["fraction"] for entry in result.epochs]
            panel.plot(epochs, share, marker=".", label=_plain(name))
        panel.set(title=policy, xlabel="epoch", ylabel="share selected", ylim=(0, 1.02))
        panel.set_xticks(list(epochs))
    _legend(panels[0][-1])
    return figure


def _has_bars(result: RunResult) -> bool:
    return any(
        bar is not None
        for entry in result.epochs
        for signal in ("confidence", "uncertainty")
        for bar in entry["thresholds"][f"{signal}_c"]
    )


def _thresholds(first: dict[str, RunResult]) -> Any:
    """Thresholds by class and epoch; a column for each policy."""
    figure, panels = _figure(2, len(first))
    for column, (policy, result) in enumerate(first.items()):
        epochs = range(1, len(result.epochs) + 1)
        names = list(result.epochs[0]["classes"])
        for row, signal in enumerate(("confidence", "uncertainty")):
            panel = panels[row][column]
            for number, name in enumerate(names):
                bars = [entry["thresholds"][f"{signal}_c"][number] for entry in result.epochs]
                values = [float("nan") if bar is None else bar for bar in bars]
                panel.plot(epochs, values, marker=".", label=_plain(name))
            panel.set(title=policy, xlabel="epoch", ylabel=f"threshold of {signal}", ylim=(0, 1.02))
            panel.set_xticks(list(epochs))
    _legend(panels[0][-1])
    return figure


def _reliability(first: dict[str, RunResult]) -> Any:
    """How often the teacher is right, by its confidence and by the student's uncertainty."""
    figure, panels = _figure(1, 2)
    for panel, signal in zip(panels[0], ("confidence", "uncertainty"), strict=True):
        for policy, result in first.items():
            if bins := result.reliability.get(signal):
                mean, right, _ = zip(*bins, strict=True)
                panel.plot(mean, right, marker=".", label=policy)
            if signal == "confidence" and bins:
                break  # it is the teacher's: the same in all runs
        panel.set(xlabel=signal, ylabel="share of labels that are right", ylim=(0, 1.02))
    _legend(panels[0][-1])
    return figure


def _legend(panel: Any) -> None:
    """A legend, where there are few enough lines to tell apart."""
    handles, labels = panel.get_legend_handles_labels()
    if 0 < len(labels) <= 12:
        panel.legend(handles, labels, fontsize="x-small")


def _plain(name: str) -> str:
    """A label that is drawn as it is: `$` would begin a formula, `_` in front hide it."""
    shown = name.replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown
