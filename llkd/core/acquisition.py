"""Acquisition: the teacher labels the rows of highest student uncertainty, spread over cells.

A row's priority is an integer: its uncertainty in the high bits, a random draw by its position in
the low bits to break ties. A round takes the rows of highest priority in each cell. The corpus is
not sorted: the threshold that a row must reach is determined one digit at a time from histograms
that merge by addition (radix selection). The result does not depend on the order or sharding of the
rows, and the number of rows is exact.

A stratum is a cell's rows with new texts, or its rows with repeated texts: strata [0, cells) hold
the new texts, [cells, 2 cells) the repeated ones.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from llkd.core.draws import uniform_by_position
from llkd.core.statistics import count_by

UNCERTAINTY_BITS = 16
DRAW_BITS = 47
DIGIT_BITS = 8
DIGITS = 8
"""Digits of a priority, which has 63 bits."""
VALUES = 2**DIGIT_BITS
NEVER = np.uint64(2**63)
"""A threshold that no priority reaches."""
_STREAM = 0xB0D6E7
"""Separates these draws from others with the same seed."""


@dataclass(frozen=True)
class RandomSlice:
    """The rows of the first round: those whose draw is below a limit. Of the labelled rows, only
    these are a random sample of the corpus."""

    seed: int
    below: float

    def rows(self, position_n: np.ndarray) -> np.ndarray:
        """Mask of the rows in the slice, from their positions in the corpus: bool, shape (N,)."""
        return np.asarray(draws(position_n, self.seed) < self.below)


def draws(position_n: np.ndarray, seed: int) -> np.ndarray:
    """Random draws in [0, 1) that order rows of equal uncertainty: shape (N,)."""
    return uniform_by_position(position_n, seed, _STREAM)


def round_sizes(rows: int, budget: float, rounds: int, first: float) -> list[int]:
    """Rows to label in each round; empty rounds are omitted.

    Args:
        rows: rows of the corpus.
        budget: share of the rows to label, in (0, 1].
        rounds: maximum number of rounds.
        first: share of the budget in the first round, in (0, 1); the other rounds share the rest.
    """
    total = math.floor(budget * rows + 1e-9)  # 0.29 * 100 is less than 29
    head = total if rounds == 1 else min(max(round(first * total), 1), total)
    edges = [0, head, *(head + (total - head) * i // (rounds - 1) for i in range(1, rounds))]
    return [stop - start for start, stop in pairwise(edges) if stop > start]


def priorities(uncertainty_n: np.ndarray, draw_n: np.ndarray) -> np.ndarray:
    """Priority of each row, highest first: uint64, shape (N,), below 2**63.

    Args:
        uncertainty_n: in [0, 1], shape (N,); rows with the same 16 high bits are ordered by draw.
        draw_n: in [0, 1), shape (N,); lower draws have higher priority.
    """
    steps = 2**UNCERTAINTY_BITS
    level_n = np.minimum(np.floor(uncertainty_n.astype(np.float64) * steps), steps - 1)
    draw_n = np.floor(draw_n * 2.0**DRAW_BITS).astype(np.uint64)
    last = np.uint64(2**DRAW_BITS - 1)
    return (level_n.astype(np.uint64) << np.uint64(DRAW_BITS)) | (last - draw_n)


def draw_limit(threshold: np.uint64) -> float:
    """The draw below which a row of zero uncertainty reaches the threshold."""
    return 1.0 - int(threshold) / 2.0**DRAW_BITS


def strata(cell_n: np.ndarray, text_n: np.ndarray, asked_n: np.ndarray, cells: int) -> np.ndarray:
    """The stratum of each row of a shard: int64, shape (N,).

    Args:
        cell_n: the cell of each row's text, shape (N,), in [0, cells).
        text_n: an index of each row's text, equal for equal texts, shape (N,), from 0.
        asked_n: whether an earlier round chose the row, shape (N,). Its text counts as repeated.
        cells: number of cells.
    """
    if not len(text_n):
        return np.zeros(0, dtype=np.int64)
    known_t = np.zeros(int(text_n.max()) + 1, dtype=bool)
    known_t[text_n[asked_n]] = True
    repeated_n = np.ones(len(text_n), dtype=bool)
    repeated_n[np.unique(text_n, return_index=True)[1]] = False
    return np.asarray(cell_n + cells * (repeated_n | known_t[text_n]), dtype=np.int64)


def digit_counts(
    stratum_n: np.ndarray, priority_n: np.ndarray, threshold_s: np.ndarray, digit: int
) -> np.ndarray:
    """Rows by stratum and by a digit of their priority: int64, shape (S, VALUES).

    Counts only the rows that agree with their stratum's threshold in all higher digits.

    Args:
        stratum_n: shape (N,), in [0, S).
        priority_n: shape (N,), uint64.
        threshold_s: the higher digits, shape (S,), uint64; the remaining digits are zero.
        digit: index of the digit; 0 is the highest.
    """
    shift = np.uint64(DIGIT_BITS * (DIGITS - 1 - digit))
    if digit:
        above = shift + np.uint64(DIGIT_BITS)
        tied_n = (priority_n >> above) == (threshold_s[stratum_n] >> above)
        stratum_n, priority_n = stratum_n[tied_n], priority_n[tied_n]
    value_n = (priority_n >> shift) & np.uint64(VALUES - 1)
    return count_by((len(threshold_s), VALUES), stratum_n, value_n)


def find_thresholds(
    count: Callable[[np.ndarray, int], np.ndarray], rows: int, cells: int
) -> np.ndarray:
    """The minimum priority of the rows to take from each stratum: uint64, shape (2 cells,).

    Exactly `rows` rows reach it, or all if there are fewer. Only equal priorities within a stratum
    could make them fewer; these need two draws with the same 47 bits.

    Args:
        count: `digit_counts` over all available rows, as a function of thresholds and digit.
        rows: number of rows to take.
        cells: S / 2.
    """
    threshold_s = np.zeros(2 * cells, dtype=np.uint64)
    counts_sv = count(threshold_s, 0)
    left_s = quotas(counts_sv.sum(axis=1), rows)
    wanted_s = left_s > 0
    for digit in range(DIGITS):
        if digit:
            counts_sv = count(threshold_s, digit)
        threshold_s, left_s, tied_s = _next_digit(counts_sv, threshold_s, left_s, digit)
        undecided_s = wanted_s & (left_s < tied_s)
        if not undecided_s.any():
            break
    return np.where(wanted_s, threshold_s + undecided_s.astype(np.uint64), NEVER)


def _next_digit(
    counts_sv: np.ndarray, threshold_s: np.ndarray, left_s: np.ndarray, digit: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(thresholds with one more digit, rows still to take among those tied, number tied)."""
    from_top_sv = np.cumsum(counts_sv[:, ::-1], axis=1)[:, ::-1]
    # The highest value that enough rows reach.
    value_s = np.maximum((from_top_sv >= np.maximum(left_s, 1)[:, None]).sum(axis=1) - 1, 0)
    here = np.arange(len(threshold_s)), value_s
    tied_s = counts_sv[here]
    above_s = from_top_sv[here] - tied_s
    shift = np.uint64(DIGIT_BITS * (DIGITS - 1 - digit))
    return threshold_s | (value_s.astype(np.uint64) << shift), left_s - above_s, tied_s


def quotas(rows_s: np.ndarray, wanted: int) -> np.ndarray:
    """Rows to take from each stratum: int64, shape (S,); repeated texts only after all new ones.

    Args:
        rows_s: available rows, shape (S,).
        wanted: rows to take in total, at most.
    """
    new_c, repeated_c = np.split(np.asarray(rows_s, dtype=np.int64), 2)
    of_new = min(wanted, int(new_c.sum()))
    return np.concatenate([water_fill(new_c, of_new), water_fill(repeated_c, wanted - of_new)])


def water_fill(rows_c: np.ndarray, wanted: int) -> np.ndarray:
    """Rows to take from each cell, as evenly as possible: int64, shape (C,).

    Takes min(n_c, m) of each cell's n_c rows, for the highest level m at which the total does not
    exceed `wanted`; the remainder comes from the largest cells, one row each.
    """
    rows_c = np.asarray(rows_c, dtype=np.int64)
    low, high = 0, int(rows_c.max(initial=0))
    while low < high:
        level = (low + high + 1) // 2
        fits = np.minimum(rows_c, level).sum() <= wanted
        low, high = (level, high) if fits else (low, level - 1)
    taken_c = np.minimum(rows_c, low)
    more_c = np.argsort(-rows_c, kind="stable")[: max(wanted - int(taken_c.sum()), 0)]
    taken_c[more_c] += rows_c[more_c] > low
    return taken_c
