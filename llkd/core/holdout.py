"""Rows that are never trained on: where the teacher is sure, the student is measured by them.

They are drawn from a few shards, by position in the corpus, so that any worker can tell which
they are without a list of them.
"""

from dataclasses import dataclass

import numpy as np

from llkd.core.draws import uniform_by_position
from llkd.core.policies.base import Signals
from llkd.core.statistics import ClassStatistics
from llkd.core.thresholds import TOLERANCE

MOST_ROWS = 16384
"""So many settle an accuracy to half a point; scoring more would only cost time."""
MOST_SHARDS = 64
"""Shards they are drawn from, so that not all of a large corpus is read to find them."""
MOST_OF_A_CLASS = 0.5
"""Where they come from few shards, at most this share of a shard's confident rows is held out."""
SMALL_CLASS = 40
"""A class with fewer rows gives none: it needs them all to be learnt from."""
_STREAM = 0x0DD5EED
"""Tells this draw from those of other policies of the same seed."""


@dataclass(frozen=True)
class Holdout:
    """Which rows are held out; C classes."""

    shards: frozenset[int]
    rate: float
    """Share of these shards' confident rows, in [0, 1]."""
    confidence_c: np.ndarray
    """A row of class y is confident from here on, shape (C,); infinite for a class that gives none."""
    seed: int

    def rows(self, signals: Signals) -> np.ndarray:
        """Which rows of one of the shards are held out: bool, shape (N,)."""
        confident_n = signals.confidence_n >= self.confidence_c[signals.label_n] - TOLERANCE
        draw_n = uniform_by_position(signals.position_n, self.seed, _STREAM)
        return np.asarray(confident_n & (draw_n < self.rate))


def draw_holdout(
    fraction: float, statistics: ClassStatistics, shards: int, seed: int
) -> Holdout | None:
    """The rows to hold out, or None if there are none.

    Args:
        fraction: share of the confident rows to hold out, in [0, 1): those at or above the mean
            confidence of their class, which are taken to be half of the rows.
        statistics: of the teacher's side of the whole corpus.
        shards: of the corpus.
        seed: of the draw.
    """
    if fraction == 0:
        return None
    mean_c = statistics.mean_confidence_c
    confidence_c = np.where(statistics.rows_c >= SMALL_CLASS, mean_c, np.inf)
    chosen = np.random.default_rng(seed).permutation(shards)[:MOST_SHARDS]
    confident = statistics.rows_c.sum() / 2
    wanted = min(fraction * confident, MOST_ROWS)
    here = max(confident * len(chosen) / shards, 1.0)
    rate = min(wanted / here, MOST_OF_A_CLASS)
    return Holdout(frozenset(map(int, chosen)), float(rate), confidence_c, seed)
