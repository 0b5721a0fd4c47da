"""For any log-probabilities, calibration yields distributions, independent of the order of rows and
labels."""

from functools import partial, reduce
from operator import add

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from llkd.core.calibration import (
    Calibration,
    contextual_bias,
    fit_batch_bias,
    fit_temperature,
    marginal,
)
from llkd.core.ensemble import combine_distributions

EXTREMES = st.sampled_from([-np.inf, -1e30, -100.0, -1e-30, 0.0])
logprobs = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=12),
    elements=EXTREMES | st.floats(-50, 0, width=32),
    fill=EXTREMES,
)


def uniform(classes: int) -> np.ndarray:
    return np.full(classes, 1 / classes)


def is_distribution(probs_nc: np.ndarray) -> bool:
    return bool((probs_nc >= 0).all() and np.allclose(probs_nc.sum(axis=1), 1, atol=1e-9))


@given(logprobs, st.floats(0.01, 100))
def test_calibrated_labels_are_distributions(logprobs_nc: np.ndarray, temperature: float) -> None:
    classes = logprobs_nc.shape[1]
    fitted = fit_batch_bias(partial(marginal, logprobs_nc), uniform(classes))
    for bias_c in (np.zeros(classes), fitted, contextual_bias(logprobs_nc)):
        assert np.isfinite(bias_c).all()
        assert is_distribution(Calibration(bias_c, temperature).apply(logprobs_nc))


@given(logprobs, st.data())
def test_the_temperature_is_finite(logprobs_nc: np.ndarray, data: st.DataObject) -> None:
    rows, classes = logprobs_nc.shape
    gold_n = data.draw(arrays(np.int64, rows, elements=st.integers(0, classes - 1)))
    assert 0.0099 <= fit_temperature(logprobs_nc, np.zeros(classes), gold_n) <= 100.1


@given(logprobs, st.data())
def test_the_bias_depends_on_neither_order_nor_shards(
    logprobs_nc: np.ndarray, data: st.DataObject
) -> None:
    rows, classes = logprobs_nc.shape
    order_n = data.draw(st.permutations(range(rows)))
    shards = np.array_split(logprobs_nc[order_n], data.draw(st.integers(1, 7)))

    def of_shards(bias_c: np.ndarray) -> object:
        return reduce(add, (marginal(shard, bias_c) for shard in shards))

    whole_c, cut_c = (
        fit_batch_bias(of, uniform(classes), max_passes=5)  # type: ignore[arg-type]
        for of in (partial(marginal, logprobs_nc), of_shards)
    )
    np.testing.assert_allclose(cut_c, whole_c, rtol=1e-9, atol=1e-9)


@given(logprobs, st.data())
def test_labels_in_another_order_are_calibrated_alike(
    logprobs_nc: np.ndarray, data: st.DataObject
) -> None:
    classes = logprobs_nc.shape[1]
    order_c = data.draw(st.permutations(range(classes)))
    for fit in (
        lambda values: fit_batch_bias(partial(marginal, values), uniform(classes), max_passes=5),
        contextual_bias,
    ):
        np.testing.assert_allclose(
            fit(logprobs_nc[:, order_c]), fit(logprobs_nc)[order_c], rtol=1e-9, atol=1e-9
        )


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=4), logprobs)
def test_teachers_combined(weight_t: list[float], logprobs_nc: np.ndarray) -> None:
    classes = logprobs_nc.shape[1]
    first_nc = Calibration(np.zeros(classes)).apply(logprobs_nc)
    probs_tnc = [np.roll(first_nc, shift, axis=1) for shift in range(len(weight_t))]
    log_nc, apart_n = combine_distributions(probs_tnc, weight_t)
    assert np.isfinite(log_nc).all()
    np.testing.assert_allclose(np.exp(log_nc.astype(np.float64)).sum(axis=1), 1, atol=1e-5)
    assert ((apart_n >= 0) & (apart_n <= 1)).all()
    turned_nc, turned_n = combine_distributions(probs_tnc[::-1], weight_t[::-1])
    np.testing.assert_allclose(turned_nc, log_nc, atol=1e-5)
    np.testing.assert_allclose(turned_n, apart_n, atol=1e-5)
