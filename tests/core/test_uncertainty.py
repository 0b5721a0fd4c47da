import numpy as np
import pytest

from llkd.core.uncertainty import MEASURES, entropy, least_confidence, margin

PROBS = np.array([[0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]])


def test_entropy_is_divided_by_log_classes() -> None:
    # uniform over 4: log 4 / log 4; certain: 0; two of four: log 2 / log 4 = 1/2
    assert entropy(PROBS) == pytest.approx([1.0, 0.0, 0.5])


def test_least_confidence() -> None:
    assert least_confidence(PROBS) == pytest.approx([0.75, 0.0, 0.5])


def test_margin() -> None:
    assert margin(np.array([[0.6, 0.3, 0.1], [0.4, 0.4, 0.2]])) == pytest.approx([0.7, 1.0])


@pytest.mark.parametrize("name", MEASURES)
def test_more_even_is_more_uncertain(name: str) -> None:
    sharp, even = np.array([[0.8, 0.15, 0.05]]), np.array([[0.4, 0.35, 0.25]])
    assert MEASURES[name](sharp)[0] < MEASURES[name](even)[0]
