"""Statistics of shards by pseudo-label, which merge by addition."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from operator import add, sub
from typing import Any

import numpy as np

CONFIDENCE_BINS = 256
"""Bins of the confidence histogram. They are finer towards 1, where a strong teacher's rows lie:
bin b holds confidences with -log2(1 - c) in [b, b + 1) / BINS_PER_BIT."""
BINS_PER_BIT = 16

GRID = 2.0**-24
"""Signals are integer multiples of it, as all float32 numbers in [0.5, 1] are anyway. Their sums are
exact up to 2**29 rows per class, and so independent of the order and sharding of the corpus."""


def on_grid(signal_n: np.ndarray) -> np.ndarray:
    """A signal in [0, 1] rounded to the grid: float32, shape (N,)."""
    return np.asarray(np.rint(signal_n / GRID) * GRID, dtype=np.float32)


@dataclass(frozen=True)
class ClassStatistics:
    """Counts and sums of a set of rows by pseudo-label; C classes, B = CONFIDENCE_BINS."""

    rows_c: np.ndarray
    """Rows, shape (C,), int64."""
    confidence_c: np.ndarray
    """Sum of the teacher's confidence, shape (C,), float64."""
    uncertainty_c: np.ndarray
    """Sum of the student's uncertainty, shape (C,), float64; zeros if not measured."""
    histogram_cb: np.ndarray
    """Rows by confidence bin, shape (C, B), int64."""

    def __add__(self, other: "ClassStatistics") -> "ClassStatistics":
        return ClassStatistics(*map(add, vars(self).values(), vars(other).values()))

    def __sub__(self, other: "ClassStatistics") -> "ClassStatistics":
        """The statistics of these rows without a subset of them."""
        return ClassStatistics(*map(sub, vars(self).values(), vars(other).values()))

    @property
    def mean_confidence_c(self) -> np.ndarray:
        """Mean confidence by class, shape (C,); NaN for a class without rows."""
        return _mean(self.confidence_c, self.rows_c)

    @property
    def mean_uncertainty_c(self) -> np.ndarray:
        """Mean uncertainty by class, shape (C,); NaN for a class without rows."""
        return _mean(self.uncertainty_c, self.rows_c)

    def to_json(self) -> dict[str, Any]:
        """Plain lists; `from_json` reads them back exactly."""
        return {name: value.tolist() for name, value in vars(self).items()}

    @staticmethod
    def from_json(data: dict[str, Any]) -> "ClassStatistics":
        """The inverse of `to_json`."""
        return ClassStatistics(
            np.asarray(data["rows_c"], dtype=np.int64),
            np.asarray(data["confidence_c"], dtype=np.float64),
            np.asarray(data["uncertainty_c"], dtype=np.float64),
            np.asarray(data["histogram_cb"], dtype=np.int64),
        )


def count_by(shape: tuple[int, ...], *index_n: Iterable[int]) -> np.ndarray:
    """Number of rows with each combination of indices: int64, of that shape."""
    flat_n = np.zeros((), dtype=np.int64)
    for size, each_n in zip(shape, index_n, strict=True):
        flat_n = flat_n * size + np.asarray(each_n, dtype=np.int64)
    return np.bincount(flat_n, minlength=math.prod(shape)).reshape(shape)


def class_statistics(
    label_n: np.ndarray, confidence_n: np.ndarray, uncertainty_n: np.ndarray | None, classes: int
) -> ClassStatistics:
    """The statistics of one shard.

    Args:
        label_n: pseudo-labels, shape (N,), integers in [0, classes).
        confidence_n: the teacher's confidence, shape (N,), in [0, 1].
        uncertainty_n: the student's uncertainty, shape (N,), in [0, 1]; None if not measured.
        classes: C.
    """
    bits_n = -np.log2(np.maximum(1.0 - confidence_n.astype(np.float64), 2.0**-60))
    bin_n = np.minimum((bits_n * BINS_PER_BIT).astype(np.int64), CONFIDENCE_BINS - 1)
    return ClassStatistics(
        np.bincount(label_n, minlength=classes).astype(np.int64),
        np.bincount(label_n, weights=confidence_n, minlength=classes),
        np.zeros(classes)
        if uncertainty_n is None
        else np.bincount(label_n, weights=uncertainty_n, minlength=classes),
        count_by((classes, CONFIDENCE_BINS), label_n, bin_n),
    )


def confidence_of_top(histogram_cb: np.ndarray, wanted_c: np.ndarray) -> np.ndarray:
    """The confidence that at least the wanted rows of each class reach: shape (C,).

    It is the lower edge of a bin, so slightly more rows can reach it. It is 0 for a class with
    fewer rows than wanted, and infinite if none are wanted.
    """
    bins = histogram_cb.shape[1]
    from_top_cb = np.cumsum(histogram_cb[:, ::-1], axis=1)
    reached_cb = from_top_cb >= wanted_c[:, None]
    bins_needed_c = np.where(reached_cb.any(axis=1), reached_cb.argmax(axis=1), bins - 1)
    edge_c = 1.0 - 2.0 ** (-(bins - 1 - bins_needed_c) / BINS_PER_BIT)
    return np.where(wanted_c > 0, edge_c, np.inf)


def _mean(total_c: np.ndarray, rows_c: np.ndarray) -> np.ndarray:
    return np.where(rows_c > 0, total_c / np.maximum(rows_c, 1), np.nan)
