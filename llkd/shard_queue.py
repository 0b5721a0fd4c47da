"""Hands the corpus to the workers that score it, piece by piece as they get free."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import ray

PIECE_ROWS = 1024
"""Rows a worker scores at a time: a window that is sorted by length, and what a slow worker can
hold up the others by."""


@dataclass(frozen=True)
class Piece:
    """Labelled rows [start, stop) of a shard."""

    shard: int
    start: int
    stop: int


@dataclass
class _Open:
    """A shard that was begun."""

    waiting: list[Piece]
    missing: int
    parts: dict[int, np.ndarray] = field(default_factory=dict)


class PieceQueue:
    """Whole shards go to one worker each, so that each is read once. When there are none left,
    workers that are free take pieces of the shards that others are busy with."""

    def __init__(self, shard_rows: Sequence[int], shards: Sequence[int]) -> None:
        self._rows = shard_rows
        self._waiting = list(reversed(shards))
        self._open: dict[int, _Open] = {}
        self._of_worker: dict[int, int] = {}

    def take(self, worker: int) -> Piece | None:
        """The next piece for a worker; None when there is none left."""
        mine = self._of_worker.get(worker)
        if mine in self._open and self._open[mine].waiting:
            return self._open[mine].waiting.pop(0)
        if self._waiting:
            shard = self._waiting.pop()
            pieces = _cut(shard, self._rows[shard])
            self._open[shard] = _Open(pieces, len(pieces))
            self._of_worker[worker] = shard
            return pieces.pop(0)
        fullest = max(self._open.values(), key=lambda shard: len(shard.waiting), default=None)
        return fullest.waiting.pop() if fullest and fullest.waiting else None

    def done(self, piece: Piece, values_n: np.ndarray) -> np.ndarray | None:
        """Keep what a piece gave; the values of the whole shard if it was the last one."""
        shard = self._open[piece.shard]
        shard.parts[piece.start] = values_n
        shard.missing -= 1
        if shard.missing:
            return None
        del self._open[piece.shard]
        return np.concatenate([shard.parts[start] for start in sorted(shard.parts)])


def _cut(shard: int, rows: int) -> list[Piece]:
    """A shard's pieces, equal to a row; one for a shard without rows."""
    count = max(-(-rows // PIECE_ROWS), 1)
    edges = [rows * i // count for i in range(count + 1)]
    return [Piece(shard, start, stop) for start, stop in itertools.pairwise(edges)]


@ray.remote(num_cpus=0, max_restarts=-1)
class ShardQueue:
    """The queue of each pass, and what the passes found, for all workers of a group.

    Started again after a death it knows nothing: the group then fails and begins its pass anew.
    """

    def __init__(self) -> None:
        self._pieces = PieceQueue([], [])
        self._scored: set[int] = set()
        self._sum_c: np.ndarray | float = 0.0
        self._failure: tuple[str, str] | None = None

    def begin(self, shard_rows: Sequence[int], shards: Sequence[int]) -> None:
        """Start a pass over these shards.

        Args:
            shard_rows: labelled rows of every shard of the corpus.
            shards: those to score.
        """
        self._pieces = PieceQueue(shard_rows, shards)
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

    def fail(self, kind: str, message: str) -> None:
        """Keep a typed error: Ray Train tells the driver its text only."""
        self._failure = kind, message

    def failure(self) -> tuple[str, str] | None:
        """The typed error that ended the training; None while there is none."""
        return self._failure
