"""Which rows of a corpus a person should label: half of them uniformly, half where two classifiers disagree.

Every row has a known probability of being chosen, so both halves together estimate figures of the corpus
(llkd/core/inference.py). The second half is a systematic sample with probabilities proportional to size
(Madow 1949): along an order in which similar rows are neighbours, it spreads over all kinds of rows.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Drawn:
    """K rows to label, in random order."""

    index_k: np.ndarray
    """Which of the N rows, int64, shape (K,)."""
    uniform_k: np.ndarray
    """Whether a row is of the uniform half, bool, shape (K,)."""
    probability_k: np.ndarray
    """Of being chosen, in (0, 1], shape (K,)."""


def disagreement(first_nc: np.ndarray, second_nc: np.ndarray) -> np.ndarray:
    """The probability that labels drawn from two distributions of a row differ, in [0, 1]: shape (N,). It
    is high where both are unsure, too: there errors of either are likely.

    Args:
        first_nc: shape (N, C).
        second_nc: shape (N, C).
    """
    return np.asarray(np.clip(1 - (first_nc * second_nc).sum(axis=1), 0.0, 1.0))


def draw_rows(
    rows: int, wanted: int, size_k: np.ndarray, at_k: np.ndarray, random: np.random.Generator
) -> Drawn:
    """Half of the rows uniformly, the others with probabilities proportional to size.

    Args:
        rows: N, of the corpus.
        wanted: how many to draw; all of them if there are fewer.
        size_k: the sizes of K candidates for the second half, at least 0, in an order in which similar
            rows are neighbours, shape (K,). Without a positive size all rows are drawn uniformly.
        at_k: which rows they are, shape (K,).
        random: draws.
    """
    wanted = min(wanted, rows)
    by_size = wanted // 2 if (size_k > 0).any() else 0
    first = random.choice(rows, wanted - by_size, replace=False)
    rest_k = ~np.isin(at_k, first) & (size_k > 0)
    by_size = min(by_size, int(rest_k.sum()))
    share = len(first) / rows
    probability_k, factor = proportional(size_k[rest_k], by_size)
    second = at_k[rest_k][systematic(probability_k, random)]
    size_n = dict(zip(at_k.tolist(), size_k.tolist(), strict=True))
    index = np.concatenate([first, second]).astype(np.int64)
    by_size_n = np.array([min(1.0, factor * size_n.get(i, 0.0)) for i in index.tolist()])
    uniform = np.arange(len(index)) < len(first)
    order = random.permutation(len(index))
    probability = share + (1 - share) * by_size_n
    return Drawn(index[order], uniform[order], probability[order])


def proportional(size_n: np.ndarray, wanted: int) -> tuple[np.ndarray, float]:
    """(probabilities with sum `wanted`, shape (N,); the factor between size and probability). Rows whose
    probability would exceed 1 are certain.

    Args:
        size_n: above 0, at least `wanted` of them, shape (N,).
        wanted: rows to draw.
    """
    certain_n = np.zeros(len(size_n), bool)
    factor = 0.0
    while wanted > certain_n.sum():
        factor = (wanted - certain_n.sum()) / size_n[~certain_n].sum()
        above_n = ~certain_n & (factor * size_n >= 1)
        if not above_n.any():
            break
        certain_n |= above_n
    return np.where(certain_n, 1.0, np.minimum(factor * size_n, 1.0)), float(factor)


def systematic(probability_n: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The indices of a systematic sample: int64. Each row is in it with its probability.

    Args:
        probability_n: in [0, 1], shape (N,), with a whole number as their sum.
        random: draws the start.
    """
    total = round(float(probability_n.sum()))
    ends_n = np.cumsum(probability_n)
    if total:
        ends_n *= total / ends_n[-1]
    return np.searchsorted(ends_n, random.random() + np.arange(total), side="right")


def some_rows(rows: int, most: int, seed: int) -> np.ndarray:
    """At most so many of the rows, drawn uniformly, in their order: positions, int64."""
    return np.sort(np.random.default_rng(seed).permutation(rows)[:most])
