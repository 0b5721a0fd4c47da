"""Distributes the corpus over the workers that score it, in pieces of shards."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import ray

from llkd.errors import LLKDError

PIECE_ROWS = 1024
"""Maximum rows of a piece: a window that is sorted by length."""
SMALLEST_PIECE = 64
"""Minimum rows of a piece: smaller ones cost more padding than the idle time they save."""


@dataclass(frozen=True)
class Piece:
    """Labelled rows [start, stop) of a shard."""

    shard: int
    start: int
    stop: int


@dataclass
class _Open:
    """A shard in progress: rows [start, stop) are not taken yet."""

    start: int
    stop: int
    missing: int
    """Rows whose values have not arrived yet."""
    parts: dict[int, np.ndarray] = field(default_factory=dict)


class PieceQueue:
    """Assigns each shard to one worker, so that it is read once. When no shards are left, free
    workers take pieces of the shards of busy ones.

    With several workers, pieces shrink with the number of rows left, so that all workers finish at
    about the same time: guided self-scheduling (Polychronopoulos and Kuck 1987).
    """

    def __init__(self, shard_rows: Sequence[int], shards: Sequence[int], workers: int = 1) -> None:
        self._rows = shard_rows
        self._workers = workers
        self._waiting = list(reversed(shards))
        self._left = sum(shard_rows[shard] for shard in shards)
        self._open: dict[int, _Open] = {}
        self._of_worker: dict[int, int] = {}

    def take(self, worker: int) -> Piece | None:
        """The next piece for a worker; None when no rows are left."""
        own = self._of_worker.get(worker)
        if own in self._open and self._open[own].start < self._open[own].stop:
            return self._first(own)
        if self._waiting:
            shard = self._waiting.pop()
            self._open[shard] = _Open(0, self._rows[shard], self._rows[shard])
            self._of_worker[worker] = shard
            return self._first(shard)
        untaken = {shard: entry.stop - entry.start for shard, entry in self._open.items()}
        fullest = max(untaken, key=untaken.__getitem__, default=None)
        if fullest is None or not untaken[fullest]:
            return None
        self._of_worker[worker] = fullest  # reading the shard pays off for several pieces
        return self._first(fullest)

    def done(self, piece: Piece, values_n: np.ndarray) -> np.ndarray | None:
        """Keep the values of a piece; returns those of the whole shard after its last piece."""
        shard = self._open[piece.shard]
        shard.parts[piece.start] = values_n
        shard.missing -= piece.stop - piece.start
        if shard.missing:
            return None
        del self._open[piece.shard]
        return np.concatenate([shard.parts[start] for start in sorted(shard.parts)])

    def _first(self, shard: int) -> Piece:
        entry, size = self._open[shard], self._size(shard)
        entry.start += size
        return Piece(shard, entry.start - size, entry.start)

    def _size(self, shard: int) -> int:
        """Rows of the next piece of a shard; a shard's pieces have similar sizes."""
        limit = PIECE_ROWS
        if self._workers > 1:
            share = -(-self._left // (2 * self._workers))
            limit = min(limit, max(share, SMALLEST_PIECE))
        untaken = self._open[shard].stop - self._open[shard].start
        size = -(-untaken // max(-(-untaken // limit), 1))
        self._left -= size
        return size


@ray.remote(num_cpus=0, max_restarts=-1)
class ShardQueue:
    """The queue and the results of each pass, shared by all workers of a group.

    A restarted actor is empty: the group then fails and restarts its pass.
    """

    def __init__(self) -> None:
        self._pieces = PieceQueue([], [])
        self._scored: set[int] = set()
        self._sum_c: np.ndarray | float = 0.0
        self._failure: LLKDError | None = None
        self._trouble: LLKDError | None = None

    def begin(self, shard_rows: Sequence[int], shards: Sequence[int], workers: int) -> None:
        """Start a pass over these shards.

        Args:
            shard_rows: labelled rows of every shard of the corpus.
            shards: the shards to score.
            workers: number of workers.
        """
        self._pieces = PieceQueue(shard_rows, shards, workers)
        self._scored, self._sum_c = set(), 0.0

    def take(self, worker: int) -> Piece | None:
        """See PieceQueue.take."""
        return self._pieces.take(worker)

    def done(self, piece: Piece, values_n: np.ndarray) -> np.ndarray | None:
        """See PieceQueue.done."""
        return self._pieces.done(piece, values_n)

    def scored(self, shard: int, sum_c: np.ndarray) -> None:
        """Add a shard's sums of uncertainty by class."""
        if shard not in self._scored:
            self._scored.add(shard)
            self._sum_c = self._sum_c + sum_c  # exact in any order

    def sums(self) -> tuple[set[int], np.ndarray | float]:
        """The shards scored in this pass, and the sums over them."""
        return self._scored, self._sum_c

    def fail(self, error: LLKDError) -> None:
        """Keep a typed error: Ray Train passes only its text to the driver."""
        self._failure = error

    def failure(self) -> LLKDError | None:
        """The typed error that ended the training; None without one."""
        return self._failure

    def trouble(self, error: LLKDError) -> None:
        """Keep a typed error that a restart of the group may resolve."""
        self._trouble = error

    def last_trouble(self) -> LLKDError | None:
        """The last error of `trouble`; None without one."""
        return self._trouble
