"""Calibration, by numbers worked out by hand."""

import numpy as np
import pytest

from llkd.core.calibration import LOWEST_LOGPROB, distribution, fit_batch_bias, marginal

LOG = np.log


def test_distribution_normalises_label_probabilities() -> None:
    logprobs = np.array([[LOG(0.2), LOG(0.1)], [LOG(0.03), LOG(0.01)]])
    assert distribution(logprobs) == pytest.approx(np.array([[2 / 3, 1 / 3], [0.75, 0.25]]))


def test_distribution_divides_by_the_bias() -> None:
    logprobs = np.array([[LOG(0.6), LOG(0.4)]])
    # 0.6 / 0.75 = 0.8 and 0.4 / 0.25 = 1.6: normalised 1/3 and 2/3
    assert distribution(logprobs, LOG([0.75, 0.25])) == pytest.approx(np.array([[1 / 3, 2 / 3]]))


def test_distribution_survives_infinite_logprobs() -> None:
    probs = distribution(np.array([[-np.inf, 0.0], [-np.inf, -np.inf]]))
    assert probs[0] == pytest.approx([np.exp(LOWEST_LOGPROB), 1.0])
    assert probs[1] == pytest.approx([0.5, 0.5])


def test_marginal_merges_over_shards() -> None:
    logprobs = LOG(np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8]]))
    bias = np.zeros(2)
    whole = marginal(logprobs, bias)
    parts = marginal(logprobs[:1], bias) + marginal(logprobs[1:], bias)
    assert whole.total_c == pytest.approx([1.8, 1.2])
    assert whole.mean_c == pytest.approx([0.6, 0.4])
    assert (parts.rows, parts.total_c) == (3, pytest.approx(whole.total_c))


def test_first_step_of_batch_calibration_divides_by_the_mean() -> None:
    logprobs = LOG(np.array([[0.9, 0.1], [0.7, 0.3]]))  # means 0.8 and 0.2
    bias = fit_batch_bias(lambda b: marginal(logprobs, b), 2, max_passes=1)
    assert bias[0] - bias[1] == pytest.approx(LOG(0.8 / 0.2))
    # 0.9/0.8 = 1.125 against 0.1/0.2 = 0.5: 9/13; 0.7/0.8 = 0.875 against 1.5: 7/19
    assert distribution(logprobs, bias)[:, 0] == pytest.approx([9 / 13, 7 / 19])


def test_fixed_point_makes_the_marginal_uniform() -> None:
    rng = np.random.default_rng(0)
    logprobs = rng.normal(size=(2000, 4)) * 2 + np.array([3.0, 0.0, -2.0, 1.0])
    bias = fit_batch_bias(lambda b: marginal(logprobs, b), 4, tolerance=1e-6, max_passes=500)
    assert distribution(logprobs, bias).mean(axis=0) == pytest.approx([0.25] * 4, abs=1e-6)


def test_calibration_recovers_labels_hidden_by_a_bias() -> None:
    # Each row prefers its own class by 1, but the model adds 5 to class 0 everywhere.
    logprobs = np.eye(3)[[0, 1, 2] * 10] + np.array([5.0, 0.0, 0.0])
    assert set(distribution(logprobs).argmax(axis=1)) == {0}
    bias = fit_batch_bias(lambda b: marginal(logprobs, b), 3)
    assert list(distribution(logprobs, bias).argmax(axis=1)) == [0, 1, 2] * 10
