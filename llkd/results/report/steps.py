"""The steps of the pipeline: how far each is, and the rows that came through it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llkd.config.run import RunConfig
from llkd.errors import LLKDError
from llkd.store.folder import Folder
from llkd.store.manifest import Manifest, read_manifest
from llkd.store.schema import RunLayout


@dataclass(frozen=True)
class Step:
    """A step of the pipeline; None where it is not known."""

    name: str
    state: str
    """`done`, `in progress` or `not begun`."""
    rows_in: int | None = None
    rows_out: int | None = None
    rejected: int | None = None
    """Rows that could not be used."""
    seconds: float | None = None
    note: str = ""


def _manifest(uri: str) -> Manifest | None:
    """A stage's manifest; None where it is not there, or cannot be read just now."""
    try:
        return read_manifest(Folder(uri))
    except LLKDError:
        return None


def results_of(uri: str) -> Mapping[str, Any]:
    """The results of a stage; nothing until it is done."""
    found = _manifest(uri)
    return found.results if found is not None and found.complete else {}


def steps_of(config: RunConfig, stats: Sequence[dict[str, Any]]) -> list[Step]:
    """The pipeline, step by step."""
    layout = RunLayout(config.run_dir)
    datasets = config.datasets
    steps = [_ingest_step(layout, dataset) for dataset in datasets]
    steps += [_label_step(config, dataset) for dataset in datasets]
    steps += [_epoch_step(config, stats, epoch) for epoch in range(_epochs_wanted(config, stats))]
    exported = _manifest(layout.student)
    steps.append(Step("export the student", _state(exported)))
    if config.test is not None:
        predicted = _manifest(layout.test_predictions)
        results = predicted.results if predicted is not None else {}
        rows = sum(results["rows"]) if results else None
        seconds = results.get("seconds")
        steps.append(
            Step(
                "student on the test set",
                _state(predicted),
                rows,
                rows,
                0 if rows else None,
                seconds,
            )
        )
    return steps


def _state(manifest: Manifest | None) -> str:
    if manifest is None:
        return "not begun"
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
    found = manifest.results
    labelled, note = sum(found["rows"]), ""
    if dataset == "corpus" and config.label.in_part and rows_in:
        note = f"label.budget {config.label.budget:g}: {labelled / rows_in:.1%} of the corpus"
        rounds = len(Folder(layout.rounds).names())
        note += f", in {rounds} round{'s' * (rounds != 1)}"
    # All data sets are labelled in one go: its time is told once.
    seconds = found["seconds"] if dataset == "corpus" else None
    return Step(name, "done", rows_in, labelled, found.get("rejected", 0), seconds, note)


def _so_far(uri: str, shards: int = 0) -> str:
    done = len(Folder(uri).shards())
    of = f" of {shards:,}" if shards else ""
    return f"{done:,}{of} shard{'s' * ((shards or done) != 1)} so far" if done else ""


def _epoch_step(config: RunConfig, stats: Sequence[dict[str, Any]], epoch: int) -> Step:
    name = f"epoch {epoch + 1}"
    if epoch < len(stats):
        found = stats[epoch]
        seconds, note = sum(found["seconds"].values()), "rows selected"
        return Step(name, "done", found["rows"], found["selected"], None, seconds, note)
    begun = epoch == len(stats) and Folder(RunLayout(config.run_dir).epoch(epoch)).names()
    return Step(name, "in progress" if begun else "not begun")
