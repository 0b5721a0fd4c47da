"""Uncertainty measures, by numbers worked out by hand."""

import numpy as np
import pytest

from llkd.core.uncertainty import MEASURES

PROBS = np.array([[0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]])
TWO = np.array([[0.6, 0.3, 0.1], [0.4, 0.4, 0.2]])


@pytest.mark.parametrize(
    ("name", "probs_nc", "expected"),
    [
        # uniform over 4: log 4 / log 4; certain: 0; two of four: log 2 / log 4 = 1/2
        ("entropy", PROBS, [1.0, 0.0, 0.5]),
        ("least_confidence", PROBS, [0.75, 0.0, 0.5]),
        ("margin", TWO, [0.7, 1.0]),
    ],
)
def test_a_measure_by_hand(name: str, probs_nc: np.ndarray, expected: list[float]) -> None:
    assert MEASURES[name](probs_nc) == pytest.approx(expected)


@pytest.mark.parametrize("name", MEASURES)
def test_more_even_is_more_uncertain(name: str) -> None:
    sharp, even = np.array([[0.8, 0.15, 0.05]]), np.array([[0.4, 0.35, 0.25]])
    assert MEASURES[name](sharp)[0] < MEASURES[name](even)[0]
