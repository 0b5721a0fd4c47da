"""The validation split: confident rows that are never trained on and measure the student.

They are drawn from a few shards by their position in the corpus.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from llkd.core.draws import uniform_by_position
from llkd.core.metrics import evaluate
from llkd.core.policies.base import Signals
from llkd.core.statistics import ClassStatistics
from llkd.core.thresholds import TOLERANCE

MAX_ROWS = 16384
"""Enough to estimate an accuracy to half a point; more would only cost time."""
MAX_SHARDS = 64
"""Maximum shards to draw from, which bounds the reading of a large corpus."""
MAX_RATE = 0.5
"""Maximum share of a shard's confident rows to hold out."""
SMALL_CLASS = 40
"""A class with fewer rows keeps all of them for training."""
_STREAM = 0x0DD5EED
"""Separates this draw from those of policies with the same seed."""


@dataclass(frozen=True)
class Holdout:
    """The rule that determines the held-out rows; C classes."""

    shards: frozenset[int]
    rate: float
    """Share of these shards' confident rows, in [0, 1]."""
    confidence_c: np.ndarray
    """Minimum confidence of a held-out row by class, shape (C,); infinite for a class without any."""
    seed: int

    def to_json(self) -> dict[str, Any]:
        """Plain values without the seed, null for infinite; `from_json` reads them back."""
        confidences = [float(x) if np.isfinite(x) else None for x in self.confidence_c]
        return {"shards": sorted(self.shards), "rate": self.rate, "confidence_c": confidences}

    @staticmethod
    def from_json(data: dict[str, Any], seed: int) -> "Holdout":
        """The inverse of `to_json`."""
        confidence_c = [np.inf if x is None else x for x in data["confidence_c"]]
        return Holdout(frozenset(data["shards"]), data["rate"], np.array(confidence_c), seed)

    def rows(self, signals: Signals) -> np.ndarray:
        """Mask of the held-out rows of one of the shards: bool, shape (N,)."""
        confident_n = signals.confidence_n >= self.confidence_c[signals.label_n] - TOLERANCE
        draw_n = uniform_by_position(signals.position_n, self.seed, _STREAM)
        return np.asarray(confident_n & (draw_n < self.rate))


def draw_holdout(fraction: float, statistics: ClassStatistics, shards: int, seed: int) -> Holdout:
    """The rule for a corpus.

    Args:
        fraction: share of the confident rows to hold out, in (0, 1). A row is confident at or above
            the mean confidence of its class; half of the rows are assumed to be.
        statistics: the teacher's statistics of the whole corpus.
        shards: number of shards of the corpus.
        seed: of the draw.
    """
    mean_c = statistics.mean_confidence_c
    confidence_c = np.where(statistics.rows_c >= SMALL_CLASS, mean_c, np.inf)
    chosen = np.random.default_rng(seed).permutation(shards)[:MAX_SHARDS]
    confident = statistics.rows_c.sum() / 2
    wanted = min(fraction * confident, MAX_ROWS)
    available = max(confident * len(chosen) / shards, 1.0)
    rate = min(wanted / available, MAX_RATE)
    return Holdout(frozenset(map(int, chosen)), float(rate), confidence_c, seed)


@dataclass(frozen=True)
class Validation:
    """The validation split: V rows, C classes."""

    texts: list[str]
    label_v: np.ndarray
    """The teacher's labels, shape (V,)."""
    classes: int

    def part(self, rank: int, workers: int) -> slice:
        """The rows that a worker scores; parts differ by at most one row."""
        rows = len(self.texts)
        return slice(rows * rank // workers, rows * (rank + 1) // workers)

    def measure(self, probs_vc: np.ndarray) -> dict[str, Any]:
        """The agreement of a student with the teacher's confident labels.

        Args:
            probs_vc: the student's distributions, shape (V, C).
        """
        found = evaluate(probs_vc, self.label_v)
        own_v = probs_vc[np.arange(len(self.label_v)), self.label_v]
        return {
            "rows": found.rows,
            "accuracy": found.accuracy,
            "macro_f1": found.macro_f1,
            "loss": float(-np.log(np.maximum(own_v, 1e-12)).mean()),
        }
