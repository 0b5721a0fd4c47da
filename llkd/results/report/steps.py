"""The steps of the pipeline: their progress, and the rows in and out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llkd.config.run import RunConfig
from llkd.errors import LLKDError
from llkd.results.report.words import count
from llkd.store.folder import Folder
from llkd.store.manifest import read_manifest
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


def _stage(uri: str) -> tuple[str, Mapping[str, Any]]:
    """The state of a stage, and its results, which are empty until it is complete."""
    try:
        manifest = read_manifest(Folder(uri))
    except LLKDError:  # unreadable at the moment
        manifest = None
    if manifest is None:
        return "not started", {}
    return ("done", manifest.results) if manifest.complete else ("in progress", {})


def results_of(uri: str) -> Mapping[str, Any]:
    """The results of a stage; empty until it is complete."""
    return _stage(uri)[1]


def steps_of(config: RunConfig, stats: Sequence[dict[str, Any]]) -> list[Step]:
    """The pipeline, step by step."""
    layout, datasets = RunLayout(config.run_dir), config.datasets
    stopped = bool(stats) and stats[-1]["stopped"]
    epochs = len(stats) if stopped else config.student.epochs
    steps = [_ingest_step(layout, dataset) for dataset in datasets]
    steps += [_label_step(config, dataset) for dataset in datasets]
    steps += [_epoch_step(layout, stats, epoch) for epoch in range(epochs)]
    steps.append(Step("export the student", _stage(layout.student)[0]))
    if config.test is not None:
        steps.append(_test_step(layout))
    return steps


def _ingest_step(layout: RunLayout, dataset: str) -> Step:
    name, uri = f"ingest {dataset}", layout.rows(dataset)
    state, results = _stage(uri)
    if state != "done":
        return Step(name, state, note=_so_far(uri))
    rows, rejected = sum(results["rows"]), sum(results["rejects"].values())
    return Step(name, state, rows + rejected, rows, rejected, results["seconds"])


def _label_step(config: RunConfig, dataset: str) -> Step:
    layout = RunLayout(config.run_dir)
    name, uri = f"label {dataset}", layout.labels(dataset)
    rows = results_of(layout.rows(dataset)).get("rows")
    rows_in = None if rows is None else sum(rows)
    state, results = _stage(uri)
    if state != "done":
        return Step(name, state, rows_in, note=_so_far(uri, len(rows or [])))
    labelled, note = sum(results["rows"]), ""
    if dataset == "corpus" and config.label.in_part and rows_in:
        note = f"label.budget {config.label.budget:g}: {labelled / rows_in:.1%} of the corpus"
        note += f", in {count(len(Folder(layout.rounds).names()), 'round')}"
    # All data sets are labelled together: their time is listed once.
    seconds = results["seconds"] if dataset == "corpus" else None
    return Step(name, state, rows_in, labelled, results.get("rejected", 0), seconds, note)


def _so_far(uri: str, shards: int = 0) -> str:
    done = len(Folder(uri).shards())
    if not done:
        return ""
    known = f"{done:,} of {count(shards, 'shard')}" if shards else count(done, "shard")
    return f"{known} so far"


def _test_step(layout: RunLayout) -> Step:
    state, results = _stage(layout.test_predictions)
    rows = sum(results["rows"]) if results else None
    rejected = 0 if results else None
    return Step("student on the test set", state, rows, rows, rejected, results.get("seconds"))


def _epoch_step(layout: RunLayout, stats: Sequence[dict[str, Any]], epoch: int) -> Step:
    name = f"epoch {epoch + 1}"
    if epoch < len(stats):
        own = stats[epoch]
        seconds, note = sum(own["seconds"].values()), "rows selected"
        return Step(name, "done", own["rows"], own["selected"], None, seconds, note)
    started = epoch == len(stats) and Folder(layout.epoch(epoch)).names()
    return Step(name, "in progress" if started else "not started")
