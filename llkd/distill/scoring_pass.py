"""The scoring pass of an epoch, as each training worker runs it: the student scores the corpus.

Workers take pieces of shards from one queue (dynamic load balancing); the worker that finishes a
shard's last piece writes its sidecar. Existing shards are not scored again.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from llkd.cluster.telemetry import ShardDone, Work, announce
from llkd.config.run import RunConfig
from llkd.core.statistics import on_grid
from llkd.core.uncertainty import MEASURES
from llkd.distill.selection import Selector, sums_by_class
from llkd.distill.shard_queue import Piece
from llkd.store.arrays import fixed_lists
from llkd.store.folder import Folder
from llkd.store.schema import (
    LABEL,
    PROBS,
    ROW,
    TEXT,
    UNCERTAINTY,
    UNCERTAINTY_SCHEMA,
    RunLayout,
    with_probs,
)


class UncertaintyPass:
    """One worker's part of the scoring pass."""

    def __init__(
        self,
        config: RunConfig,
        selector: Selector,
        shard_rows: Sequence[int],
        scorer: Any,
        queue: Any,
        tracker: Any,
        rank: int,
        workers: int,
    ) -> None:
        """
        Args:
            config: the run.
            selector: of the run.
            shard_rows: labelled rows of each shard.
            scorer: the current student; see llkd.student.scoring.Scorer.
            queue: the ShardQueue of all workers.
            tracker: the progress tracker.
            rank: of this worker, in [0, workers).
            workers: number of workers.
        """
        self._config, self._selector, self._shard_rows = config, selector, shard_rows
        self._scorer, self._queue, self._tracker = scorer, queue, tracker
        self._rank, self._workers = rank, workers
        self._layout, self._policy = RunLayout(config.run_dir), selector.policy
        self._labels: dict[int, pa.Table] = {}
        """Pseudo-labels of the shards that are read but not yet written."""
        self._since = time.monotonic()

    def begin(self, epoch: int, name: str) -> None:
        """Fill the queue with the missing shards: rank 0 does it, before any `run`.

        Args:
            epoch: from 0.
            name: name of the pass for the tracker.
        """
        if self._rank != 0:
            return
        rows, existing = self._shard_rows, Folder(self._layout.uncertainty(epoch)).shards()
        missing = sorted(set(range(len(rows))) - existing)
        # The seed of dropout depends on the piece, so pieces must not depend on timing.
        workers = 1 if self._config.selection.mc_dropout else self._workers
        announce(self._tracker, self._work(epoch), missing)
        ray.get(self._queue.begin.remote(list(rows), missing, workers))
        skipped = sum(rows) - sum(rows[shard] for shard in missing)
        self._tracker.begin.remote(name, sum(rows), skipped, "worker")

    def run(self, epoch: int) -> None:
        """Score pieces until the queue is empty."""
        measure = MEASURES[self._config.selection.uncertainty]
        done, seed = 0, self._config.seed * 1009 + epoch
        self._since = time.monotonic()
        for piece, probs_nc in self._scorer.stream(self._pieces(), seed):
            found_n = on_grid(measure(probs_nc))
            if self._policy.uses_student_probs:
                found_n = np.column_stack([found_n, probs_nc])
            whole_n = ray.get(self._queue.done.remote(piece, found_n))
            done += len(probs_nc)
            self._tracker.update.remote(f"{epoch}/{self._rank}", done)
            if whole_n is not None:
                self._write(epoch, piece.shard, whole_n)
        self._labels.clear()  # of shards that another worker has written

    def _work(self, epoch: int) -> Work:
        return Work(self._layout.name, "score", "corpus", epoch)

    def merged(self, epoch: int) -> np.ndarray:
        """Sums of uncertainty by class over the corpus, shape (C,); call it after all workers ran."""
        scored, sum_c = ray.get(self._queue.sums.remote())
        earlier = [shard for shard in range(len(self._shard_rows)) if shard not in scored]
        return np.asarray(self._selector.uncertainty_sums(earlier, epoch) + sum_c)

    def _pieces(self) -> Iterator[tuple[Piece, list[str]]]:
        """The pieces that this worker takes, with their texts."""
        shard, texts = -1, pa.array([], pa.large_string())
        while (piece := ray.get(self._queue.take.remote(self._rank))) is not None:
            if piece.shard != shard:
                shard = piece.shard
                labels = self._read_labels(shard)
                self._labels[shard] = labels
                texts = Folder(self._layout.rows("corpus")).read_shard(shard, [TEXT])[TEXT]
                texts = texts.take(labels[ROW])
            yield piece, texts[piece.start : piece.stop].to_pylist()

    def _read_labels(self, shard: int) -> pa.Table:
        return Folder(self._layout.pseudo_labels).read_shard(shard, [ROW, LABEL])

    def _write(self, epoch: int, shard: int, scores: np.ndarray) -> None:
        """Write a shard's uncertainty, and report its sums by class.

        Args:
            epoch: from 0.
            shard: its number.
            scores: uncertainty, shape (N,); or, with the student's distribution, (N, 1 + C).
        """
        kept = self._labels.pop(shard, None)
        labels = self._read_labels(shard) if kept is None else kept
        folder = Folder(self._layout.uncertainty(epoch))
        uncertainty_n = scores if scores.ndim == 1 else np.ascontiguousarray(scores[:, 0])
        columns, schema = {ROW: labels[ROW], UNCERTAINTY: uncertainty_n}, UNCERTAINTY_SCHEMA
        if scores.ndim == 2:
            columns[PROBS] = fixed_lists(scores[:, 1:], np.float16)
            schema = with_probs(schema, pa.float16(), self._selector.classes)
        folder.write_shard(shard, pa.table(columns, schema=schema))
        sums_c = sums_by_class(labels[LABEL].to_numpy(), uncertainty_n, self._selector.classes)
        ray.get(self._queue.scored.remote(shard, sums_c))
        # The time since the previous shard: apart from the last pieces, a worker scores one shard
        # at a time.
        now = time.monotonic()
        self._tracker.shard.remote(
            ShardDone(self._work(epoch), shard, len(uncertainty_n), now - self._since)
        )
        self._since = now
