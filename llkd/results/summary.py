"""What a finished command shows: the figures that a person wants to know, at a glance."""

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from llkd.cluster.progress import duration
from llkd.config.run import RunConfig
from llkd.distill.epoch_stats import read_stats
from llkd.store.folder import Folder, portable_path
from llkd.store.manifest import Manifest, require_complete
from llkd.store.schema import REPORT, RunLayout


def show_summary(config: RunConfig, metrics: dict[str, Any], console: Console) -> None:
    """What a person wants to know, at a glance."""
    layout = RunLayout(config.run_dir)
    console.print()
    if "test" in metrics.get("student", {}):
        console.print(_quality_table(metrics))
    console.print(_selection_table(config))
    seconds = metrics["seconds"]
    parts = [f"{name} {duration(value)}" for name, value in seconds.items() if name != "total"]
    console.print(f"Time      {', '.join(parts)}; in all {duration(seconds['total'])}")
    console.print(f"Student   {escape(portable_path(layout.student))}", highlight=False)
    console.print(f"Numbers   {escape(portable_path(layout.root))}/metrics.json", highlight=False)
    if Folder(layout.root).exists(REPORT):
        console.print(f"Report    {escape(portable_path(layout.root))}/{REPORT}", highlight=False)


def _quality_table(metrics: dict[str, Any]) -> Table:
    teacher, student = metrics["teacher"]["test"], metrics["student"]["test"]
    table = Table(title=f"Test set, {student['rows']:,} rows", title_justify="left")
    for column in ("", "accuracy", "macro-F1", "calibration error"):
        table.add_column(column, justify="left" if not column else "right")
    for name, figures in (("teacher", teacher), ("student", student)):
        table.add_row(name, *(f"{figures[key]:.3f}" for key in ("accuracy", "macro_f1", "ece")))
    table.add_row(
        "difference",
        *(f"{student[key] - teacher[key]:+.3f}" for key in ("accuracy", "macro_f1", "ece")),
    )
    return table


def _selection_table(config: RunConfig) -> Table:
    table = Table(title=f"Rows trained on, policy {config.selection.policy}", title_justify="left")
    for column in ("epoch", "rows", "share", "loss", "held out"):
        table.add_column(column, justify="right")
    distilled = require_complete(Folder(RunLayout(config.run_dir).epochs), "distill").results
    for epoch in range(distilled["epochs"]):
        stats = read_stats(config, epoch)
        validation = stats["validation"]
        agreement = "" if validation is None else f"{validation['accuracy']:.3f}"
        table.add_row(
            f"{epoch + 1}{' *' if epoch == distilled['epoch'] else ''}",
            f"{stats['selected']:,}",
            f"{stats['fraction']:.1%}",
            f"{stats['training_loss']:.3f}",
            agreement,
        )
    return table


def show_predictions(
    folder: Folder,
    predicted: Manifest,
    ingested: Manifest,
    figures: dict[str, Any] | None,
    console: Console,
) -> None:
    """What the student said of a whole corpus, at a glance."""
    labels = predicted.results["labels"]
    rows = sum(predicted.results["rows"])
    table = Table(title=f"Predictions, {rows:,} rows", title_justify="left")
    for column in ("label", "rows", "share", "mean confidence"):
        table.add_column(column, justify="left" if column == "label" else "right")
    for name, entry in labels.items():
        confidence = f"{entry['confidence']:.3f}" if entry["rows"] else "-"
        table.add_row(Text(name), f"{entry['rows']:,}", f"{entry['rows'] / rows:.1%}", confidence)
    mean = sum(entry["rows"] * entry["confidence"] for entry in labels.values()) / rows
    table.add_section()
    table.add_row("all", f"{rows:,}", "100.0%", f"{mean:.3f}")
    console.print()
    console.print(table)
    rejects = sum(ingested.results["rejects"].values())
    console.print(f"Left out  {rejects:,} {'row' if rejects == 1 else 'rows'}")
    if figures is not None and figures["rows"]:
        console.print(
            f"Gold      {figures['rows']:,} rows: accuracy {figures['accuracy']:.3f}, macro-F1 "
            f"{figures['macro_f1']:.3f}, calibration error {figures['ece']:.3f}"
        )
    console.print(f"Files     {escape(portable_path(folder.uri))}", highlight=False)
