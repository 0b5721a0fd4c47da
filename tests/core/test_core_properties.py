"""Metrics, uncertainty and acquisition on random input."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from llkd.core.acquisition import (
    digit_counts,
    draws,
    find_thresholds,
    priorities,
    round_sizes,
    water_fill,
)
from llkd.core.metrics import RANK_BINS, Evaluation, evaluate
from llkd.core.uncertainty import MEASURES
from tests.strategies import distributions


@given(st.data(), st.integers(1, 60), st.integers(2, 6))
def test_metrics_are_within_bounds_and_those_of_scikit_learn(
    data: st.DataObject, rows: int, classes: int
) -> None:
    probs_nc = data.draw(distributions(rows, classes))
    probs_nc = np.floor(probs_nc * RANK_BINS) / RANK_BINS  # AUROC is exact to such a bin
    gold_n = data.draw(arrays(np.int64, rows, elements=st.integers(0, classes - 1)))
    found = evaluate(probs_nc, gold_n)
    predicted_n = probs_nc.argmax(axis=1)
    assert found.accuracy == pytest.approx(accuracy_score(gold_n, predicted_n))
    assert found.macro_f1 == pytest.approx(f1_score(gold_n, predicted_n, average="macro"))
    assert 0 <= found.ece <= 1
    right_n = predicted_n == gold_n
    if 0 < right_n.sum() < rows:
        confidence_n = np.minimum(probs_nc.max(axis=1), 1 - 1 / RANK_BINS)
        assert found.auroc == pytest.approx(roc_auc_score(right_n, confidence_n))
    else:
        assert np.isnan(found.auroc)
    for coverage in (0.0, 0.3, 1.0):
        assert 0 <= found.risk_at(coverage) <= 1 + 1e-12
    order_n = np.array(data.draw(st.permutations(range(rows))))
    parts = [evaluate(probs_nc[part], gold_n[part]) for part in np.array_split(order_n, 3)]
    other = parts[0] + parts[1] + parts[2]
    assert np.array_equal(other.confusion_cc, found.confusion_cc)
    assert other.ece == pytest.approx(found.ece, abs=1e-12)
    again = Evaluation.from_json(found.to_json())
    assert (again.ece, again.macro_f1) == (found.ece, found.macro_f1)


@given(st.data(), st.sampled_from(list(MEASURES)), st.sampled_from([np.float16, np.float32]))
def test_uncertainty_is_in_0_to_1(data: st.DataObject, name: str, numbers: type) -> None:
    probs_nc = data.draw(distributions(20, 5)).astype(numbers)
    uncertainty_n = MEASURES[name](probs_nc)
    assert ((uncertainty_n >= 0) & (uncertainty_n <= 1)).all()


@given(st.data(), st.integers(0, 80), st.integers(1, 5), st.integers(0, 100))
def test_acquisition_takes_what_is_wanted_and_no_more(
    data: st.DataObject, rows: int, cells: int, wanted: int
) -> None:
    stratum_n = data.draw(arrays(np.int64, rows, elements=st.integers(0, 2 * cells - 1)))
    uncertainty_n = data.draw(arrays(np.float32, rows, elements=st.floats(0, 1, width=32)))
    priority_n = priorities(uncertainty_n, draws(np.arange(rows), seed=wanted))

    def count(threshold_s: np.ndarray, digit: int) -> np.ndarray:
        return digit_counts(stratum_n, priority_n, threshold_s, digit)

    taken_n = priority_n >= find_thresholds(count, wanted, cells)[stratum_n]
    assert taken_n.sum() == min(wanted, rows)
    repeated_n = stratum_n >= cells
    assert not (taken_n & repeated_n).any() or taken_n[~repeated_n].all()


@given(
    st.integers(0, 10**9), st.floats(0, 1, exclude_min=True), st.integers(1, 20),
    st.floats(0, 1, exclude_min=True, exclude_max=True),
)  # fmt: skip
def test_rounds_never_exceed_the_budget(
    rows: int, budget: float, rounds: int, first: float
) -> None:
    sizes = round_sizes(rows, budget, rounds, first)
    assert sum(sizes) <= min(rows, budget * rows + 1e-6)
    assert len(sizes) <= rounds
    assert all(size > 0 for size in sizes)


@given(st.lists(st.integers(0, 10**9), max_size=20), st.integers(0, 10**10))
def test_cells_are_filled_evenly(rows: list[int], wanted: int) -> None:
    taken_c = water_fill(np.array(rows, dtype=np.int64), wanted)
    assert taken_c.sum() == min(wanted, sum(rows))
    assert (taken_c <= rows).all()
    unfilled = [int(t) for t, n in zip(taken_c, rows, strict=True) if t < n]
    if unfilled:
        assert max(unfilled) - min(unfilled) <= 1
        assert taken_c.max() <= max(unfilled) + 1
