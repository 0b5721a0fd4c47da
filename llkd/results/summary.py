"""The console summary of a finished run or prediction."""

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from llkd.cluster.progress import duration
from llkd.config.run import RunConfig
from llkd.distill.epoch_stats import read_stats
from llkd.distill.policy_choice import chosen_policy
from llkd.results.hand.sentences import sentences
from llkd.results.shortfalls import shortfalls
from llkd.store.folder import Folder, portable_path
from llkd.store.manifest import Manifest, require_complete
from llkd.store.schema import METRICS, REPORT, RunLayout


def show_summary(config: RunConfig, metrics: dict[str, Any], console: Console) -> None:
    """Print quality, training, time and the paths of the results."""
    layout = RunLayout(config.run_dir)
    root = portable_path(layout.root)
    console.print()
    if "test" in metrics.get("student", {}):
        console.print(_quality_table(metrics))
        for sentence in shortfalls(metrics).values():
            console.print(f"Warning   {sentence}")
    for sentence in sentences(metrics["estimates"]) if "estimates" in metrics else ():
        console.print(f"Corpus    {sentence}", highlight=False)
    console.print(_training_table(config))
    seconds = metrics["seconds"]
    parts = [f"{name} {duration(value)}" for name, value in seconds.items() if name != "total"]
    console.print(f"Time      {', '.join(parts)}; total {duration(seconds['total'])}")
    _print_path("Student", portable_path(layout.student), console)
    _print_path("Metrics", f"{root}/{METRICS}", console)
    if Folder(layout.root).exists(REPORT):
        _print_path("Report", f"{root}/{REPORT}", console)


def _print_path(title: str, path: str, console: Console) -> None:
    console.print(f"{title:<10}{escape(path)}", highlight=False)


def _table(title: str, *columns: str, names: str | None = None) -> Table:
    """A table of numbers; the column `names` is left-aligned."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column == names else "right")
    return table


def _quality_table(metrics: dict[str, Any]) -> Table:
    teacher, student = metrics["teacher"]["test"], metrics["student"]["test"]
    keys, title = ("accuracy", "macro_f1", "ece"), f"Test set, {student['rows']:,} rows"
    table = _table(title, "", "accuracy", "macro-F1", "calibration error", names="")
    both = [("teacher", teacher), ("student", student)]
    if "test" in metrics.get("probe", {}):
        both.insert(1, ("linear probe", metrics["probe"]["test"]))
    for name, figures in both:
        table.add_row(name, *(f"{figures[key]:.3f}" for key in keys))
    table.add_row("student - teacher", *(f"{student[key] - teacher[key]:+.3f}" for key in keys))
    return table


def _training_table(config: RunConfig) -> Table:
    """The epochs; an asterisk marks the one whose student is kept."""
    distilled = require_complete(Folder(RunLayout(config.run_dir).epochs), "distill").results
    kept = None if distilled["keeps_probe"] else distilled["epoch"]
    of_title = "the linear probe is kept" if kept is None else "* the epoch kept"
    columns = ("epoch", "rows", "share", "loss", "validation agreement")
    table = _table(f"Training, policy {chosen_policy(config)} ({of_title})", *columns)
    for epoch in range(distilled["epochs"]):
        stats = read_stats(config, epoch)
        validation = stats["validation"]
        table.add_row(
            f"{epoch + 1}{' *' if epoch == kept else ''}",
            f"{stats['selected']:,}",
            f"{stats['fraction']:.1%}",
            f"{stats['training_loss']:.3f}",
            "" if validation is None else f"{validation['accuracy']:.3f}",
        )
    return table


def show_predictions(
    folder: Folder,
    predicted: Manifest,
    ingested: Manifest,
    figures: dict[str, Any] | None,
    console: Console,
) -> None:
    """Print the predicted labels, the rejected rows and, given gold, the quality.

    Args:
        folder: of the predictions.
        predicted: the manifest of the predictions.
        ingested: the manifest of the rows.
        figures: measured against gold; None without gold.
        console: to print on.
    """
    labels = predicted.results["labels"]
    rows = sum(predicted.results["rows"])
    columns = ("label", "rows", "share", "mean confidence")
    table = _table(f"Predictions, {rows:,} rows", *columns, names="label")
    for name, entry in labels.items():
        confidence = f"{entry['confidence']:.3f}" if entry["rows"] else "-"
        table.add_row(Text(name), f"{entry['rows']:,}", f"{entry['rows'] / rows:.1%}", confidence)
    mean = sum(entry["rows"] * entry["confidence"] for entry in labels.values()) / rows
    table.add_section()
    table.add_row("all", f"{rows:,}", "100.0%", f"{mean:.3f}")
    console.print()
    console.print(table)
    rejected = sum(ingested.results["rejects"].values())
    console.print(f"Rejected  {rejected:,} {'row' if rejected == 1 else 'rows'}")
    if figures is not None and figures["rows"]:
        console.print(
            f"Gold      {figures['rows']:,} rows: accuracy {figures['accuracy']:.3f}, macro-F1 "
            f"{figures['macro_f1']:.3f}, calibration error {figures['ece']:.3f}"
        )
    _print_path("Files", portable_path(folder.uri), console)
