"""Metrics by hand; tests/core/test_core_properties.py compares them with scikit-learn."""

import numpy as np
import pytest

from llkd.core.metrics import evaluate

PROBS = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]])
GOLD = np.array([0, 1, 1, 0])


def test_accuracy_and_f1_by_hand() -> None:
    found = evaluate(PROBS, GOLD)  # predictions 0, 0, 1, 1: two of four are right
    assert found.confusion_cc.tolist() == [[1, 1], [1, 1]]
    assert (found.accuracy, found.macro_f1) == (0.5, 0.5)
    assert found.per_class["precision"].tolist() == [0.5, 0.5]


def test_calibration_error_by_hand() -> None:
    # bins of 1/15: 0.9 alone (right), 0.6 alone (wrong), 0.8 alone (right), 0.7 alone (wrong)
    assert evaluate(PROBS, GOLD).ece == pytest.approx((0.1 + 0.6 + 0.2 + 0.7) / 4)


def test_auroc_by_hand() -> None:
    # right: 0.9, 0.8; wrong: 0.6, 0.7: every right one is surer
    assert evaluate(PROBS, GOLD).auroc == 1.0
    assert np.isnan(evaluate(PROBS[:1], GOLD[:1]).auroc)


def test_a_class_that_never_occurs_is_left_out_of_macro_f1() -> None:
    found = evaluate(np.array([[0.8, 0.2, 0.0]]), np.array([0]))
    assert found.macro_f1 == 1.0


def test_risk_among_the_most_confident_by_hand() -> None:
    # by confidence: 0.9 right, 0.8 right, 0.7 wrong, 0.6 wrong
    found = evaluate(PROBS, GOLD)
    assert [found.risk_at(c) for c in (0.25, 0.5, 0.75, 1.0)] == pytest.approx([0, 0, 1 / 3, 0.5])
    # Ties count in part: one right and one wrong at 0.9, of which half are taken.
    tied = evaluate(np.array([[0.9, 0.1], [0.9, 0.1]]), np.array([0, 1]))
    assert tied.risk_at(0.5) == pytest.approx(0.5)
    assert tied.risk_at(0.0) == 0.0


@pytest.mark.filterwarnings("error")
def test_a_class_that_is_never_predicted_and_a_test_set_of_one_class() -> None:
    probs_nc = np.array([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1]])
    never = evaluate(probs_nc, np.array([0, 2, 1]))
    assert never.per_class["f1"].tolist() == [2 / 3, 1, 0]
    assert never.macro_f1 == pytest.approx(5 / 9)
    alone = evaluate(probs_nc, np.array([0, 0, 0]))
    assert alone.macro_f1 == pytest.approx((0.8 + 0) / 2)
    assert np.isfinite([alone.ece, alone.accuracy, alone.auroc]).all()
