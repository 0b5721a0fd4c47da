"""Distributes the corpus over the workers that score it, piece by piece."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import ray

from llkd.errors import LLKDError

PIECE_ROWS = 1024
"""Most rows a worker scores at a time: a window that is sorted by length."""
SMALLEST_PIECE = 64
"""Least rows of a piece: smaller ones cost more padding than the idle time they save."""


@dataclass(frozen=True)
class Piece:
    """Labelled rows [start, stop) of a shard."""

    shard: int
    start: int
    stop: int


@dataclass
class _Open:
    """A shard that was begun: rows [start, stop) are not taken yet."""

    start: int
    stop: int
    missing: int
    """Rows whose values are not there yet."""
    parts: dict[int, np.ndarray] = field(default_factory=dict)


class PieceQueue:
    """Whole shards go to one worker each, so that each is read once. When there are none left,
    workers that are free take pieces of the shards that others are busy with.

    The fewer rows are left, the smaller are the pieces of several workers, so that all end at
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
        """The next piece for a worker; None when there is none left."""
        mine = self._of_worker.get(worker)
        if mine in self._open and self._open[mine].start < self._open[mine].stop:
            return self._first(mine)
        if self._waiting:
            shard = self._waiting.pop()
            self._open[shard] = _Open(0, self._rows[shard], self._rows[shard])
            self._of_worker[worker] = shard
            return self._first(shard)
        untaken = {shard: entry.stop - entry.start for shard, entry in self._open.items()}
        fullest = max(untaken, key=untaken.__getitem__, default=None)
        if fullest is None or not untaken[fullest]:
            return None
        self._of_worker[worker] = fullest  # it reads the shard for more than one piece
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
        """Rows of the next piece of a shard: its pieces are of like size."""
        most = PIECE_ROWS
        if self._workers > 1:
            share = -(-self._left // (2 * self._workers))
            most = min(most, max(share, SMALLEST_PIECE))
        untaken = self._open[shard].stop - self._open[shard].start
        size = -(-untaken // max(-(-untaken // most), 1))
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
            shards: those to score.
            workers: how many share them.
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
        """A shard's sums of uncertainty by class."""
        if shard not in self._scored:
            self._scored.add(shard)
            self._sum_c = self._sum_c + sum_c  # exact, in whatever order they come

    def sums(self) -> tuple[set[int], np.ndarray | float]:
        """The shards that were scored in this pass, and the sums over them."""
        return self._scored, self._sum_c

    def fail(self, error: LLKDError) -> None:
        """Keep a typed error: Ray Train passes only its text to the driver."""
        self._failure = error

    def failure(self) -> LLKDError | None:
        """The typed error that ended the training; None while there is none."""
        return self._failure

    def trouble(self, error: LLKDError) -> None:
        """Keep a typed error that a restart of the group may survive."""
        self._trouble = error

    def last_trouble(self) -> LLKDError | None:
        """The last of them; None if there was none."""
        return self._trouble
