"""Checks a finished run for rows lost, doubled or misplaced, and for files left behind."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from llkd.config.run import RunConfig
from llkd.errors import LLKDError
from llkd.store.arrays import matrix
from llkd.store.folder import Folder
from llkd.store.manifest import read_manifest, require_complete
from llkd.store.schema import LOGPROBS, METRICS, ROW, RunLayout


def problems(config: RunConfig, undisturbed: RunConfig, tolerance: float = 0.0) -> list[str]:
    """The problems of a finished run; empty if there are none.

    Every row of every data set is labelled or rejected exactly once and every sidecar belongs to
    its corpus shard; rows and labels are those of a run without faults; the stages are complete;
    no temporary file is left.

    Args:
        config: the run.
        undisturbed: a finished run with the same settings, without faults.
        tolerance: maximum difference of a log-probability: engines round differently when other
            rows share a batch.
    """
    found: list[str] = []
    for check in (_labels, _epochs, _predictions, _stages, _leftovers):
        try:
            found += check(config, undisturbed, tolerance)
        except LLKDError as error:
            found.append(str(error))
    return found


def _labels(config: RunConfig, undisturbed: RunConfig, tolerance: float) -> Iterator[str]:
    layout, reference = RunLayout(config.run_dir), RunLayout(undisturbed.run_dir)
    for dataset in config.datasets:
        rows, labels = Folder(layout.rows(dataset)), Folder(layout.labels(dataset))
        expected = Folder(reference.rows(dataset))
        if rows.shards() != expected.shards():
            yield f"{rows.uri}: shards {sorted(rows.shards() ^ expected.shards())} differ"
        for shard in sorted(rows.shards() & expected.shards()):
            table = rows.read_shard(shard)
            if not table.equals(expected.read_shard(shard)):
                yield f"{rows.uri}: shard {shard} is not that of the undisturbed run"
            yield from labelled_once(config, dataset, shard, len(table))
            yield from _same_labels(labels, Folder(reference.labels(dataset)), shard, tolerance)


def labelled_once(config: RunConfig, dataset: str, shard: int, rows: int) -> Iterator[str]:
    """Check that the labels and the rejects of a shard are its rows, each once, in order: for each
    of several teachers, and for the ensemble, which leaves out the rows that any of them refused."""
    numbers = [alone.teacher_number for alone in config.of_each_teacher] or [None]
    layouts = [RunLayout(config.run_dir, number) for number in numbers]
    refused = [_rejected(Folder(layout.label_rejects(dataset)), shard) for layout in layouts]
    for layout, refused_n in zip(layouts, refused, strict=True):
        yield from _each_once(Folder(layout.labels(dataset)), shard, rows, refused_n)
    if config.teachers:
        labels = Folder(RunLayout(config.run_dir).labels(dataset))
        yield from _each_once(labels, shard, rows, np.unique(np.concatenate(refused)))


def _rejected(rejects: Folder, shard: int) -> np.ndarray:
    return rows_of(rejects, shard) if shard in rejects.shards() else np.array([], int)


def _each_once(labels: Folder, shard: int, rows: int, rejected_n: np.ndarray) -> Iterator[str]:
    """Check that labels and rejects are `rows` rows, each once, in order."""
    labelled_n = rows_of(labels, shard)
    if np.any(np.diff(labelled_n) <= 0):
        yield f"{labels.uri}: shard {shard} has rows twice or out of order"
    counts = np.bincount(np.concatenate([labelled_n, rejected_n]).astype(int), minlength=rows)
    if len(counts) > rows:
        yield f"{labels.uri}: shard {shard} has rows that its corpus shard lacks"
    for what, wrong_n in (("lost", counts == 0), ("twice", counts > 1)):
        if wrong_n.any():
            yield f"{labels.uri}: shard {shard} has {wrong_n.sum()} rows {what}"


def _same_labels(labels: Folder, expected: Folder, shard: int, tolerance: float) -> Iterator[str]:
    ours_nc, theirs_nc = (
        matrix(folder.read_shard(shard, [LOGPROBS])[LOGPROBS]) for folder in (labels, expected)
    )
    if ours_nc.shape != theirs_nc.shape:
        yield f"{labels.uri}: shard {shard} has other rows than in the undisturbed run"
    elif not np.allclose(ours_nc, theirs_nc, rtol=0, atol=tolerance):
        apart = np.abs(ours_nc - theirs_nc).max()
        yield f"{labels.uri}: shard {shard} is not that of the undisturbed run, by {apart:.2g}"


def _epochs(config: RunConfig, undisturbed: RunConfig, tolerance: float) -> Iterator[str]:
    """Check that the rows that an epoch scored and selected have labels."""
    layout = RunLayout(config.run_dir)
    labels = Folder(layout.labels("corpus"))
    trained = require_complete(Folder(layout.epochs), "distill").results["epochs"]
    for epoch in range(trained):  # patience may have stopped before student.epochs
        scored, selected = Folder(layout.uncertainty(epoch)), Folder(layout.selection(epoch))
        for shard in sorted(labels.shards()):
            labelled_n = rows_of(labels, shard)
            if scored.shards() and not np.array_equal(rows_of(scored, shard), labelled_n):
                yield f"{scored.uri}: shard {shard} does not have the rows of its labels"
            selected_n = rows_of(selected, shard)
            if np.any(np.diff(selected_n) <= 0) or not np.isin(selected_n, labelled_n).all():
                yield f"{selected.uri}: shard {shard} has rows twice, or rows without a label"


def _predictions(config: RunConfig, undisturbed: RunConfig, tolerance: float) -> Iterator[str]:
    if config.test is None:
        return
    layout = RunLayout(config.run_dir)
    rows, predicted = Folder(layout.rows("test")), Folder(layout.test_predictions)
    for shard in sorted(rows.shards()):
        if not np.array_equal(rows_of(predicted, shard), rows_of(rows, shard)):
            yield f"{predicted.uri}: shard {shard} does not have the rows of the test set"


def _stages(config: RunConfig, undisturbed: RunConfig, tolerance: float) -> Iterator[str]:
    layout = RunLayout(config.run_dir)
    stages = [layout.epochs, layout.student, layout.rows("corpus"), layout.labels("corpus")]
    for uri in stages:
        manifest = read_manifest(Folder(uri))
        if manifest is None or not manifest.complete:
            yield f"{uri} is not complete"
    Folder(layout.root).read_json(METRICS)


def _leftovers(config: RunConfig, undisturbed: RunConfig, tolerance: float) -> Iterator[str]:
    if "://" not in config.run_dir:
        for path in Path(config.run_dir).rglob(".*.tmp"):
            yield f"{path} was left behind"


def rows_of(folder: Folder, shard: int) -> np.ndarray:
    """The row numbers of a shard."""
    column: pa.ChunkedArray = folder.read_shard(shard, [ROW])[ROW]
    return column.to_numpy()
