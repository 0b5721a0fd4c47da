"""The combination of several teachers, by numbers worked out by hand."""

import numpy as np
import pytest

from llkd.core.ensemble import combine_distributions


def test_the_geometric_mean_normalised() -> None:
    one, other = np.array([[0.8, 0.2]]), np.array([[0.2, 0.8]])
    logprobs, _ = combine_distributions([one, other], [1, 1])
    assert np.exp(logprobs) == pytest.approx(np.array([[0.5, 0.5]]))
    # Weights 2 and 1: 0.8^(2/3) 0.2^(1/3) against 0.2^(2/3) 0.8^(1/3), a ratio of 4^(1/3)
    logprobs, _ = combine_distributions([one, other], [2, 1])
    assert np.exp(logprobs[0, 0] - logprobs[0, 1]) == pytest.approx(4 ** (1 / 3))


def test_one_teacher_alone_is_as_it_was() -> None:
    probs = np.array([[0.7, 0.2, 0.1]])
    logprobs, disagreement = combine_distributions([probs], [5])
    assert np.exp(logprobs) == pytest.approx(probs)
    assert disagreement == pytest.approx([0.0], abs=1e-6)


def test_disagreement_is_between_none_and_all() -> None:
    sure, opposite = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    assert combine_distributions([sure, sure], [1, 1])[1] == pytest.approx([0.0], abs=1e-6)
    assert combine_distributions([sure, opposite], [1, 1])[1] == pytest.approx([1.0], abs=1e-6)
    # H(0.5, 0.5) = log 2; H(0.9, 0.1) = 0.325083: (log 2 - 0.325083) / log 2
    near = np.array([[0.9, 0.1]]), np.array([[0.1, 0.9]])
    assert combine_distributions(near, [1, 1])[1] == pytest.approx([0.531004], abs=1e-5)
