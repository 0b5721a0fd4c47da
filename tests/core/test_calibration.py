"""Calibration, by numbers worked out by hand."""

import numpy as np
import pytest

from llkd.core.calibration import (
    LOWEST_LOGPROB,
    Calibration,
    contextual_bias,
    fit_batch_bias,
    fit_temperature,
    marginal,
    no_calibration,
)

LOG = np.log


def test_distribution_normalises_label_probabilities() -> None:
    logprobs = np.array([[LOG(0.2), LOG(0.1)], [LOG(0.03), LOG(0.01)]])
    assert no_calibration(2).apply(logprobs) == pytest.approx(
        np.array([[2 / 3, 1 / 3], [0.75, 0.25]])
    )


def test_distribution_divides_by_the_bias() -> None:
    logprobs = np.array([[LOG(0.6), LOG(0.4)]])
    # 0.6 / 0.75 = 0.8 and 0.4 / 0.25 = 1.6: normalised 1/3 and 2/3
    assert Calibration(LOG([0.75, 0.25])).apply(logprobs) == pytest.approx(
        np.array([[1 / 3, 2 / 3]])
    )


def test_distribution_survives_infinite_logprobs() -> None:
    probs = no_calibration(2).apply(np.array([[-np.inf, 0.0], [-np.inf, -np.inf]]))
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
    bias = fit_batch_bias(lambda b: marginal(logprobs, b), np.full(2, 1 / 2), max_passes=1)
    assert bias[0] - bias[1] == pytest.approx(LOG(0.8 / 0.2))
    # 0.9/0.8 = 1.125 against 0.1/0.2 = 0.5: 9/13; 0.7/0.8 = 0.875 against 1.5: 7/19
    assert Calibration(bias).apply(logprobs)[:, 0] == pytest.approx([9 / 13, 7 / 19])


@pytest.mark.parametrize("prior", [[0.25] * 4, [0.1, 0.2, 0.3, 0.4]])
def test_the_fixed_point_makes_the_marginal_the_prior(prior: list[float]) -> None:
    rng = np.random.default_rng(0)
    logprobs = rng.normal(size=(2000, 4)) * 2 + np.array([3.0, 0.0, -2.0, 1.0])
    bias = fit_batch_bias(
        lambda b: marginal(logprobs, b), np.array(prior), tolerance=1e-6, max_passes=500
    )
    assert Calibration(bias).apply(logprobs).mean(axis=0) == pytest.approx(prior, abs=1e-6)


def test_calibration_recovers_labels_hidden_by_a_bias() -> None:
    # Each row prefers its own class by 1, but the model adds 5 to class 0 everywhere.
    logprobs = np.eye(3)[[0, 1, 2] * 10] + np.array([5.0, 0.0, 0.0])
    assert set(no_calibration(3).apply(logprobs).argmax(axis=1)) == {0}
    bias = fit_batch_bias(lambda b: marginal(logprobs, b), np.full(3, 1 / 3))
    assert list(Calibration(bias).apply(logprobs).argmax(axis=1)) == [0, 1, 2] * 10


def test_contextual_calibration_divides_by_the_answer_to_no_content() -> None:
    content_free = LOG(np.array([[0.5, 0.1], [0.2, 0.2]]))  # normalised 5/6, 1/6 and 1/2, 1/2
    bias = contextual_bias(content_free)
    assert bias[0] - bias[1] == pytest.approx(LOG((5 / 6 + 1 / 2) / (1 / 6 + 1 / 2)))
    # 0.6 / (2/3) = 0.9 against 0.4 / (1/3) = 1.2: 3/7
    assert Calibration(bias).apply(LOG(np.array([[0.6, 0.4]])))[0, 0] == pytest.approx(3 / 7)


def test_temperature_flattens_the_distribution() -> None:
    # exp(log 9 / 2) = 3: 9/10 becomes 3/4
    calibration = Calibration(np.zeros(2), temperature=2.0)
    assert calibration.apply(LOG(np.array([[0.9, 0.1]]))) == pytest.approx(np.array([[0.75, 0.25]]))


def test_temperature_makes_confidence_what_gold_warrants() -> None:
    # The model says 9/10 on four rows and is right on three: 3/4, which is temperature 2.
    logprobs = LOG(np.array([[0.9, 0.1]] * 4))
    gold = np.array([0, 0, 0, 1])
    assert fit_temperature(logprobs, np.zeros(2), gold) == pytest.approx(2.0, rel=1e-6)
    # With a bias that takes out 3 of the 9, odds of 3 remain, and they are right as they are.
    assert fit_temperature(logprobs, LOG(np.array([3.0, 1.0])), gold) == pytest.approx(1, rel=1e-6)


def test_temperature_stays_finite_when_gold_is_always_the_likeliest() -> None:
    logprobs = LOG(np.array([[0.9, 0.1]] * 4))
    assert fit_temperature(logprobs, np.zeros(2), np.zeros(4, int)) == pytest.approx(0.01, rel=1e-3)
