"""The uncertainty pass of an epoch, as each training worker runs it: the student scores the corpus.

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
    """One worker's part of it."""

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
            scorer: the student, as it is now; see llkd.student.scoring.Scorer.
            queue: the ShardQueue of all workers.
            tracker: the progress tracker.
            rank: of this worker, in [0, workers).
            workers: how many share the corpus.
        """
        self._config, self._selector, self._shard_rows = config, selector, shard_rows
        self._scorer, self._queue, self._tracker = scorer, queue, tracker
        self._rank, self._workers = rank, workers
        self._layout, self._policy = RunLayout(config.run_dir), selector.policy
        self._labels: dict[int, pa.Table] = {}
        """The pseudo-labels of shards that are read but not yet written."""
        self._since = time.monotonic()

    def begin(self, epoch: int, name: str) -> None:
        """Fill the queue with the shards that are missing: done by rank 0, before any `run`.

        Args:
            epoch: from 0.
            name: what the tracker calls the pass.
        """
        if self._rank != 0:
            return
        rows, there = self._shard_rows, Folder(self._layout.uncertainty(epoch)).shards()
        missing = sorted(set(range(len(rows))) - there)
        # Dropout draws by piece, so the pieces must not depend on the workers' timing.
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
        self._labels.clear()  # those that another worker has written

    def _work(self, epoch: int) -> Work:
        return Work(self._layout.name, "score", "corpus", epoch)

    def merged(self, epoch: int) -> np.ndarray:
        """Sums of uncertainty by class over the corpus, shape (C,); after all workers have run."""
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

    def _write(self, epoch: int, shard: int, found: np.ndarray) -> None:
        """Write a shard's uncertainty, and report its sums by class.

        Args:
            epoch: from 0.
            shard: its number.
            found: uncertainty, shape (N,); or, with the student's distribution, (N, 1 + C).
        """
        kept = self._labels.pop(shard, None)
        labels = self._read_labels(shard) if kept is None else kept
        folder = Folder(self._layout.uncertainty(epoch))
        uncertainty_n = found if found.ndim == 1 else np.ascontiguousarray(found[:, 0])
        columns, schema = {ROW: labels[ROW], UNCERTAINTY: uncertainty_n}, UNCERTAINTY_SCHEMA
        if found.ndim == 2:
            columns[PROBS] = fixed_lists(found[:, 1:], np.float16)
            schema = with_probs(schema, pa.float16(), self._selector.classes)
        folder.write_shard(shard, pa.table(columns, schema=schema))
        sums_c = sums_by_class(labels[LABEL].to_numpy(), uncertainty_n, self._selector.classes)
        ray.get(self._queue.scored.remote(shard, sums_c))
        # A worker scores one shard after another, but for pieces of those of others.
        now = time.monotonic()
        self._tracker.shard.remote(
            ShardDone(self._work(epoch), shard, len(uncertainty_n), now - self._since)
        )
        self._since = now
