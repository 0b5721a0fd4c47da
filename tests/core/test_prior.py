"""Label frequencies estimated without gold labels."""

import numpy as np
import pytest

from llkd.core.calibration import Calibration
from llkd.core.prior import PriorEstimate, confident_rows, estimate_prior, most_likely_prior

TRUE_C = np.array([0.75, 0.15, 0.1])


def mixture(share_c: np.ndarray, rows: int = 6000) -> tuple[np.ndarray, np.ndarray]:
    """(exact posteriors under equally frequent labels, gold) of three normal distributions."""
    random = np.random.default_rng(0)
    gold_n = random.choice(len(share_c), rows, p=share_c)
    mean_cd = 1.5 * np.eye(len(share_c))
    value_nd = mean_cd[gold_n] + random.normal(size=(rows, len(share_c)))
    log_nc = -((value_nd[:, None] - mean_cd) ** 2).sum(axis=2) / 2
    probs_nc = np.exp(log_nc - log_nc.max(axis=1, keepdims=True))
    return probs_nc / probs_nc.sum(axis=1, keepdims=True), gold_n


def test_the_most_likely_prior_is_that_of_the_rows() -> None:
    probs_nc, _ = mixture(TRUE_C)
    uniform_c = np.full(3, 1 / 3)
    assert most_likely_prior(probs_nc, uniform_c) == pytest.approx(TRUE_C, abs=0.02)
    # The mean of the predictions, which counting would give, is far from it.
    assert probs_nc.mean(axis=0)[0] < 0.6
    # A classifier fitted to other frequencies predicts otherwise, and gives the same estimate.
    shifted_nc = probs_nc * [0.2, 0.3, 0.5]
    shifted_nc /= shifted_nc.sum(axis=1, keepdims=True)
    found_c = most_likely_prior(shifted_nc, np.array([0.2, 0.3, 0.5]))
    assert found_c == pytest.approx(TRUE_C, abs=0.02)


def test_a_label_without_fitted_rows_gets_no_share() -> None:
    probs_nc, _ = mixture(TRUE_C)
    found_c = most_likely_prior(probs_nc, np.array([0.5, 0.5, 0.0]))
    assert found_c[2] == 0
    assert found_c.sum() == pytest.approx(1)


def test_equally_many_rows_of_each_label_are_confident() -> None:
    random = np.random.default_rng(0)
    teacher_nc = random.dirichlet([8.0, 1.0, 0.05], size=1000)
    label_n, confidence_n = teacher_nc.argmax(axis=1), teacher_nc.max(axis=1)
    chosen_n = confident_rows(teacher_nc)
    counts = np.bincount(label_n[chosen_n], minlength=3)
    assert counts.tolist() == [100, min(100, (label_n == 1).sum()), (label_n == 2).sum()]
    first_n = label_n == 0
    assert confidence_n[first_n & chosen_n].min() >= confidence_n[first_n & ~chosen_n].max()


def test_an_estimate_is_sharpened_before_it_is_made() -> None:
    probs_nc, _ = mixture(TRUE_C)
    teacher_nc = Calibration(np.log(probs_nc.mean(axis=0))).apply(np.log(probs_nc))
    chosen_n = confident_rows(teacher_nc)
    flat_nc = probs_nc**0.3 / (probs_nc**0.3).sum(axis=1, keepdims=True)
    found = estimate_prior(flat_nc, teacher_nc, chosen_n)
    assert found.estimate_c == pytest.approx(
        estimate_prior(probs_nc, teacher_nc, chosen_n).estimate_c, abs=0.01
    )
    assert found.accepted
    assert 0.5 < found.agreement <= 1
    assert found.imposed_c == pytest.approx(teacher_nc.mean(axis=0))
    assert found.prior_c == pytest.approx((found.estimate_c + found.imposed_c) / 2)


def test_a_label_that_the_teacher_never_gives_is_no_evidence() -> None:
    probs_nc, _ = mixture(np.full(3, 1 / 3))
    teacher_nc = probs_nc * [1.0, 1.0, 1e-4]
    teacher_nc = 0.2 + 0.4 * teacher_nc / teacher_nc.sum(axis=1, keepdims=True)
    assert (teacher_nc.argmax(axis=1) < 2).all()
    chosen_n = confident_rows(teacher_nc)
    found = estimate_prior(np.eye(3)[teacher_nc.argmax(axis=1)], teacher_nc, chosen_n)
    assert found.estimate_c[2] == pytest.approx(found.imposed_c[2])
    assert found.estimate_c.sum() == pytest.approx(1)
    assert found.agreement == pytest.approx((2 / 3 - 1 / 3) / (1 - 1 / 3))
    assert not found.accepted


@pytest.mark.parametrize(
    ("first", "agreement", "rows", "accepted"),
    [
        (0.75, 0.9, 1000, True),
        (0.75, 0.4, 1000, False),  # the classifiers cannot tell the labels apart
        (0.6, 0.9, 1000, False),  # hardly another prior: 0.02 nats
        (0.75, 0.9, 15, False),  # of a few rows, chance makes as much
    ],
)
def test_an_estimate_is_used_on_evidence_alone(
    first: float, agreement: float, rows: int, accepted: bool
) -> None:
    uniform_c, share_c = np.full(2, 0.5), np.array([first, 1 - first])
    found = PriorEstimate(uniform_c, share_c, agreement, rows)
    assert found.accepted is accepted
    expected_c = (share_c + uniform_c) / 2 if accepted else uniform_c
    assert found.prior_c == pytest.approx(expected_c)
