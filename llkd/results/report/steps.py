"""The steps of the pipeline: their progress, and the rows in and out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llkd.config.run import RunConfig
from llkd.errors import LLKDError
from llkd.results.report.words import count
from llkd.store.folder import Folder
from llkd.store.manifest import Manifest, read_manifest
from llkd.store.schema import RunLayout


@dataclass(frozen=True)
class Step:
    """A step of the pipeline; None where a figure is unknown."""

    name: str
    state: str
    """`done`, `in progress` or `not started`."""
    rows_in: int | None = None
    rows_out: int | None = None
    rejected: int | None = None
    """Rows that could not be used."""
    seconds: float | None = None
    note: str = ""


def _manifest(uri: str) -> Manifest | None:
    """A stage's manifest; None if it is missing, or unreadable at the moment."""
    try:
        return read_manifest(Folder(uri))
    except LLKDError:
        return None


def results_of(uri: str) -> Mapping[str, Any]:
    """The results of a stage; empty until it is complete."""
    manifest = _manifest(uri)
    return manifest.results if manifest is not None and manifest.complete else {}


def steps_of(config: RunConfig, stats: Sequence[dict[str, Any]]) -> list[Step]:
    """The pipeline, step by step."""
    layout = RunLayout(config.run_dir)
    datasets = config.datasets
    steps = [_ingest_step(layout, dataset) for dataset in datasets]
    steps += [_label_step(config, dataset) for dataset in datasets]
    steps += [_epoch_step(config, stats, epoch) for epoch in range(_epochs_wanted(config, stats))]
    steps.append(Step("export the student", _state(_manifest(layout.student))))
    if config.test is not None:
        steps.append(_test_step(layout))
    return steps


def _state(manifest: Manifest | None) -> str:
    if manifest is None:
        return "not started"
    return "done" if manifest.complete else "in progress"


def _epochs_wanted(config: RunConfig, stats: Sequence[dict[str, Any]]) -> int:
    stopped = bool(stats) and stats[-1]["stopped"]
    return len(stats) if stopped else config.student.epochs


def _ingest_step(layout: RunLayout, dataset: str) -> Step:
    name, manifest = f"ingest {dataset}", _manifest(layout.rows(dataset))
    if manifest is None or not manifest.complete:
        return Step(name, _state(manifest), note=_so_far(layout.rows(dataset)))
    rows, rejected = sum(manifest.results["rows"]), sum(manifest.results["rejects"].values())
    return Step(name, "done", rows + rejected, rows, rejected, manifest.results["seconds"])


def _label_step(config: RunConfig, dataset: str) -> Step:
    layout = RunLayout(config.run_dir)
    name, manifest = f"label {dataset}", _manifest(layout.labels(dataset))
    rows = results_of(layout.rows(dataset)).get("rows")
    rows_in = None if rows is None else sum(rows)
    if manifest is None or not manifest.complete:
        note = _so_far(layout.labels(dataset), len(rows or []))
        return Step(name, _state(manifest), rows_in, note=note)
    results = manifest.results
    labelled, note = sum(results["rows"]), ""
    if dataset == "corpus" and config.label.in_part and rows_in:
        note = f"label.budget {config.label.budget:g}: {labelled / rows_in:.1%} of the corpus"
        note += f", in {count(len(Folder(layout.rounds).names()), 'round')}"
    # All data sets are labelled together: their time is listed once.
    seconds = results["seconds"] if dataset == "corpus" else None
    return Step(name, "done", rows_in, labelled, results.get("rejected", 0), seconds, note)


def _so_far(uri: str, shards: int = 0) -> str:
    done = len(Folder(uri).shards())
    if not done:
        return ""
    return (
        f"{done:,} of {count(shards, 'shard')} so far"
        if shards
        else f"{count(done, 'shard')} so far"
    )


def _test_step(layout: RunLayout) -> Step:
    name, manifest = "student on the test set", _manifest(layout.test_predictions)
    if manifest is None or not manifest.results:
        return Step(name, _state(manifest))
    rows, seconds = sum(manifest.results["rows"]), manifest.results.get("seconds")
    return Step(name, _state(manifest), rows, rows, 0, seconds)


def _epoch_step(config: RunConfig, stats: Sequence[dict[str, Any]], epoch: int) -> Step:
    name = f"epoch {epoch + 1}"
    if epoch < len(stats):
        own = stats[epoch]
        seconds, note = sum(own["seconds"].values()), "rows selected"
        return Step(name, "done", own["rows"], own["selected"], None, seconds, note)
    started = epoch == len(stats) and Folder(RunLayout(config.run_dir).epoch(epoch)).names()
    return Step(name, "in progress" if started else "not started")
