"""Which rows the teacher is asked next: those that the student is least sure of, spread over cells.

Every row has a priority, a whole number that holds its uncertainty and, to break ties, a random
draw by its position. The rows of a round are the first ones of each cell by priority. They are
found without sorting the corpus: the priority that a row has to reach is settled a digit at a time
from histograms that merge by addition (radix selection), so that neither the order nor the cut of
the rows matters, and the number of rows is exact.

A stratum is a cell of rows whose text is new, or one of rows whose text is another's: the strata
[0, cells) are those of new texts, [cells, 2 cells) those of repeated ones.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from llkd.core.draws import uniform_by_position

UNCERTAINTY_BITS = 16
DRAW_BITS = 47
DIGIT_BITS = 8
DIGITS = 8
"""Digits of a priority, which has 63 bits."""
VALUES = 2**DIGIT_BITS
NEVER = np.uint64(2**63)
"""A bar that no priority reaches."""
_STREAM = 0xB0D6E7
"""Tells these draws from others of the same seed."""


@dataclass(frozen=True)
class RandomSlice:
    """The rows of the first round: those whose draw is below a limit. Of all that is labelled they
    alone are a fair sample of the corpus."""

    seed: int
    below: float

    def rows(self, position_n: np.ndarray) -> np.ndarray:
        """Which rows are in it, by their positions in the corpus: bool, shape (N,)."""
        return np.asarray(draws(position_n, self.seed) < self.below)


def draws(position_n: np.ndarray, seed: int) -> np.ndarray:
    """What orders rows of the same uncertainty, in [0, 1): shape (N,)."""
    return uniform_by_position(position_n, seed, _STREAM)


def round_sizes(rows: int, budget: float, rounds: int, first: float) -> list[int]:
    """Rows to label in each round; rounds that would have none are left out.

    Args:
        rows: of the corpus.
        budget: share of them that is labelled, in (0, 1].
        rounds: how many, if there are rows enough.
        first: share of the budget in the first round, in (0, 1); the others share the rest.
    """
    total = math.floor(budget * rows + 1e-9)  # 0.29 * 100 is less than 29
    head = total if rounds == 1 else min(max(round(first * total), 1), total)
    edges = [0, head, *(head + (total - head) * i // (rounds - 1) for i in range(1, rounds))]
    return [stop - start for start, stop in pairwise(edges) if stop > start]


def priorities(uncertainty_n: np.ndarray, draw_n: np.ndarray) -> np.ndarray:
    """The higher, the sooner a row is taken: uint64, shape (N,), below 2**63.

    Args:
        uncertainty_n: in [0, 1], shape (N,); rows that agree in 16 bits of it are ordered by draw.
        draw_n: in [0, 1), shape (N,); the lower, the sooner.
    """
    steps = 2**UNCERTAINTY_BITS
    level_n = np.minimum(np.floor(uncertainty_n.astype(np.float64) * steps), steps - 1)
    draw_n = np.floor(draw_n * 2.0**DRAW_BITS).astype(np.uint64)
    last = np.uint64(2**DRAW_BITS - 1)
    return (level_n.astype(np.uint64) << np.uint64(DRAW_BITS)) | (last - draw_n)


def draw_limit(bar: np.uint64) -> float:
    """Among rows without uncertainty: those whose draw is below it reach the bar."""
    return 1.0 - int(bar) / 2.0**DRAW_BITS


def strata(cell_n: np.ndarray, text_n: np.ndarray, asked_n: np.ndarray, cells: int) -> np.ndarray:
    """The stratum of each row of a shard: int64, shape (N,).

    Args:
        cell_n: the cell of each row's text, shape (N,), in [0, cells).
        text_n: a number for each row, the same for rows of the same text, shape (N,), from 0.
        asked_n: whether the teacher was asked about the row before, shape (N,). A text that it
            knows is repeated.
        cells: how many there are.
    """
    if not len(text_n):
        return np.zeros(0, dtype=np.int64)
    known_t = np.zeros(int(text_n.max()) + 1, dtype=bool)
    known_t[text_n[asked_n]] = True
    repeated_n = np.ones(len(text_n), dtype=bool)
    repeated_n[np.unique(text_n, return_index=True)[1]] = False
    return np.asarray(cell_n + cells * (repeated_n | known_t[text_n]), dtype=np.int64)


def digit_counts(
    stratum_n: np.ndarray, priority_n: np.ndarray, bar_s: np.ndarray, digit: int
) -> np.ndarray:
    """Rows by stratum and by a digit of their priority: int64, shape (S, VALUES).

    Only rows that agree with the bar of their stratum in all digits before are counted.

    Args:
        stratum_n: shape (N,), in [0, S).
        priority_n: shape (N,), uint64.
        bar_s: the digits before, shape (S,), uint64, zeros in the rest.
        digit: which, from 0, the highest.
    """
    shift = np.uint64(DIGIT_BITS * (DIGITS - 1 - digit))
    if digit:
        above = shift + np.uint64(DIGIT_BITS)
        tied_n = (priority_n >> above) == (bar_s[stratum_n] >> above)
        stratum_n, priority_n = stratum_n[tied_n], priority_n[tied_n]
    value_n = ((priority_n >> shift) & np.uint64(VALUES - 1)).astype(np.int64)
    flat = np.bincount(stratum_n * VALUES + value_n, minlength=len(bar_s) * VALUES)
    return flat.reshape(len(bar_s), VALUES).astype(np.int64)


def find_bars(count: Callable[[np.ndarray, int], np.ndarray], rows: int, cells: int) -> np.ndarray:
    """The priority that a row of each stratum has to reach to be taken: uint64, shape (2 cells,).

    Rows that reach it are as many as wanted, or all there are. They would be fewer only if rows
    of a cell had the same priority, which takes the same 47 bits of two draws.

    Args:
        count: of bars and a digit: `digit_counts` over all rows that can be taken.
        rows: how many are wanted.
        cells: S / 2.
    """
    bar_s = np.zeros(2 * cells, dtype=np.uint64)
    counts_sv = count(bar_s, 0)
    left_s = quotas(counts_sv.sum(axis=1), rows)
    wanted_s = left_s > 0
    for digit in range(DIGITS):
        if digit:
            counts_sv = count(bar_s, digit)
        bar_s, left_s, tied_s = _next_digit(counts_sv, bar_s, left_s, digit)
        unsettled_s = wanted_s & (left_s < tied_s)
        if not unsettled_s.any():
            break
    return np.where(wanted_s, bar_s + unsettled_s.astype(np.uint64), NEVER)


def _next_digit(
    counts_sv: np.ndarray, bar_s: np.ndarray, left_s: np.ndarray, digit: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(bars with one more digit, rows still to take of those that tie with them, how many tie)."""
    from_top_sv = np.cumsum(counts_sv[:, ::-1], axis=1)[:, ::-1]
    # The highest value at or above which there are rows enough.
    value_s = np.maximum((from_top_sv >= np.maximum(left_s, 1)[:, None]).sum(axis=1) - 1, 0)
    here = np.arange(len(bar_s)), value_s
    tied_s = counts_sv[here]
    above_s = from_top_sv[here] - tied_s
    shift = np.uint64(DIGIT_BITS * (DIGITS - 1 - digit))
    return bar_s | (value_s.astype(np.uint64) << shift), left_s - above_s, tied_s


def quotas(rows_s: np.ndarray, wanted: int) -> np.ndarray:
    """Rows to take of each stratum: int64, shape (S,); repeated texts once there are no new ones.

    Args:
        rows_s: rows that can be taken, shape (S,).
        wanted: rows to take, if there are so many.
    """
    new_c, repeated_c = np.split(np.asarray(rows_s, dtype=np.int64), 2)
    of_new = min(wanted, int(new_c.sum()))
    return np.concatenate([water_fill(new_c, of_new), water_fill(repeated_c, wanted - of_new)])


def water_fill(rows_c: np.ndarray, wanted: int) -> np.ndarray:
    """Rows to take of each cell, as even as there are rows for: int64, shape (C,).

    min(n_c, m) of each cell with n_c rows, for the highest level m at which these are not more
    than wanted; what is missing then is taken one by one from the cells that have most rows.
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
