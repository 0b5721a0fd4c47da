"""Acquisition: numbers worked out by hand, and the same rows for any sharding of the corpus."""

import numpy as np
import pytest

from llkd.core.acquisition import (
    DIGITS,
    NEVER,
    RandomSlice,
    digit_counts,
    draw_limit,
    draws,
    find_thresholds,
    priorities,
    quotas,
    round_sizes,
    strata,
    water_fill,
)
from llkd.core.uncertainty import MEASURES


def chosen(
    stratum_n: np.ndarray, priority_n: np.ndarray, rows: int, cells: int, shards: int = 1
) -> tuple[np.ndarray, int]:
    """(mask of the rows taken, number of passes), with histograms added up over shards."""
    parts = np.array_split(np.arange(len(stratum_n)), shards)
    passes = []

    def count(threshold_s: np.ndarray, digit: int) -> np.ndarray:
        passes.append(digit)
        found = [
            digit_counts(stratum_n[p], priority_n[p], threshold_s, digit) for p in reversed(parts)
        ]
        return np.sum(found, axis=0)

    threshold_s = find_thresholds(count, rows, cells)
    return priority_n >= threshold_s[stratum_n], len(passes)


def sorted_choice(
    stratum_n: np.ndarray, priority_n: np.ndarray, rows: int, cells: int
) -> np.ndarray:
    """The same rows, by sorting each stratum."""
    taken_n = np.zeros(len(stratum_n), dtype=bool)
    for stratum, quota in enumerate(quotas(np.bincount(stratum_n, minlength=2 * cells), rows)):
        here = np.flatnonzero(stratum_n == stratum)
        taken_n[here[np.argsort(priority_n[here])[::-1][:quota]]] = True
    return taken_n


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        ((420, 0.4, 3, 0.5), [84, 42, 42]),
        ((100, 0.29, 1, 0.5), [29]),
        ((1000, 0.1, 4, 0.4), [40, 20, 20, 20]),
        ((100, 0.11, 3, 0.5), [6, 2, 3]),
        ((10, 0.2, 5, 0.5), [1, 1]),
        ((1, 0.5, 3, 0.5), []),
    ],
)
def test_sizes_of_rounds(settings: tuple[int, float, int, float], sizes: list[int]) -> None:
    assert round_sizes(*settings) == sizes


@pytest.mark.parametrize(
    ("rows", "wanted", "taken"),
    [
        ([10, 2, 5, 0], 12, [5, 2, 5, 0]),
        ([10, 2, 5, 0], 11, [5, 2, 4, 0]),  # level 4, and one more where there are most
        ([3, 3, 3], 4, [2, 1, 1]),
        ([3, 3], 100, [3, 3]),
        ([7, 1], 0, [0, 0]),
        ([1], 1, [1]),
        ([], 3, []),
    ],
)
def test_water_fill(rows: list[int], wanted: int, taken: list[int]) -> None:
    assert water_fill(np.array(rows, dtype=np.int64), wanted).tolist() == taken


def test_repeated_texts_come_after_all_others() -> None:
    # Cells 0 and 1: new texts 5 and 1, repeated ones 9 and 9.
    rows_s = np.array([5, 1, 9, 9])
    assert quotas(rows_s, 4).tolist() == [3, 1, 0, 0]
    assert quotas(rows_s, 6).tolist() == [5, 1, 0, 0]
    assert quotas(rows_s, 9).tolist() == [5, 1, 2, 1]


def test_strata_by_hand() -> None:
    cell_n = np.array([3, 1, 3, 3, 0, 1])
    text_n = np.array([0, 1, 0, 0, 2, 1])
    nothing = np.zeros(6, dtype=bool)
    assert strata(cell_n, text_n, nothing, 4).tolist() == [3, 1, 7, 7, 0, 5]
    asked_n = nothing.copy()
    asked_n[5] = True  # whose text is that of row 1
    assert strata(cell_n, text_n, asked_n, 4).tolist() == [3, 5, 7, 7, 0, 5]
    assert strata(cell_n[:0], text_n[:0], nothing[:0], 4).tolist() == []


def test_the_most_uncertain_rows_of_each_cell() -> None:
    uncertainty_n = np.array([0.9, 0.1, 0.5, 0.6, 0.2, 1.0])
    stratum_n = np.array([0, 0, 0, 0, 1, 1])
    priority_n = priorities(uncertainty_n, np.full(6, 0.5))
    taken_n, _ = chosen(stratum_n, priority_n, 3, cells=2)
    # Level 1 of both cells, and one more from the cell that has most.
    assert taken_n.tolist() == [True, False, False, True, False, True]
    taken_n, _ = chosen(np.zeros(6, dtype=np.int64), priority_n, 3, cells=1)
    assert taken_n.tolist() == [True, False, False, True, False, True]


def test_uncertainty_counts_before_the_draw() -> None:
    priority_n = priorities(np.array([1.0, 1.0, 0.0, 0.5]), np.array([0.25, 0.0, 0.0, 0.999]))
    assert np.argsort(priority_n)[::-1].tolist() == [1, 0, 3, 2]
    assert (priority_n < NEVER).all()
    assert priority_n[1] == NEVER - np.uint64(1)


@pytest.mark.parametrize("rows", [0, 1, 37, 700, 2999, 3000, 5000])
@pytest.mark.parametrize("cells", [1, 16])
def test_the_same_rows_by_sorting_and_in_any_shards(rows: int, cells: int) -> None:
    rng = np.random.default_rng(rows + cells)
    stratum_n = rng.integers(0, 2 * cells, 3000)
    uncertainty_n = rng.choice([0.0, 0.3, 1.0, 0.30001], 3000)
    priority_n = priorities(uncertainty_n, draws(np.arange(3000), seed=7))
    expected_n = sorted_choice(stratum_n, priority_n, rows, cells)
    assert expected_n.sum() == min(rows, 3000)
    for shards in (1, 2, 7):
        taken_n, _ = chosen(stratum_n, priority_n, rows, cells, shards)
        assert np.array_equal(taken_n, expected_n)
    order = rng.permutation(3000)
    taken_n, _ = chosen(stratum_n[order], priority_n[order], rows, cells, 3)
    assert np.array_equal(taken_n, expected_n[order])


def test_degenerate_cases() -> None:
    zeros = np.zeros(1, dtype=np.int64)
    one = priorities(np.array([0.5]), np.array([0.5]))
    assert chosen(zeros, one, 0, 1)[0].tolist() == [False]
    assert chosen(zeros, one, 1, 1) == (np.array([True]), 1)
    assert chosen(zeros[:0], one[:0], 5, 1)[0].tolist() == []
    # Two labels: entropy and margin reach 1, least confidence a half.
    probs_nc = np.array([[0.5, 0.5], [1.0, 0.0], [0.9, 0.1]])
    for measure in MEASURES.values():
        priority_n = priorities(measure(probs_nc), np.array([0.9, 0.1, 0.5]))
        assert np.argsort(priority_n)[::-1].tolist() == [0, 2, 1]
    # Rows of equal priority are not taken: never more than wanted.
    same = np.repeat(one, 5)
    taken_n, passes = chosen(np.zeros(5, dtype=np.int64), same, 3, 1)
    assert (taken_n.sum(), passes) == (0, DIGITS)
    assert chosen(np.zeros(5, dtype=np.int64), same, 5, 1)[0].sum() == 5


def test_without_uncertainty_the_rows_are_a_random_slice() -> None:
    draw_n = draws(np.arange(5000), seed=3)
    priority_n = priorities(np.zeros(5000), draw_n)
    stratum_n = np.zeros(5000, dtype=np.int64)
    threshold_s = find_thresholds(
        lambda known_s, digit: digit_counts(stratum_n, priority_n, known_s, digit), 600, 1
    )
    taken_n = priority_n >= threshold_s[0]
    assert np.array_equal(np.flatnonzero(taken_n), np.sort(np.argsort(draw_n)[:600]))
    assert np.array_equal(RandomSlice(3, draw_limit(threshold_s[0])).rows(np.arange(5000)), taken_n)
