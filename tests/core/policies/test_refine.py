"""Refined labels, by numbers worked out by hand, and with a useless student."""

from dataclasses import replace

import numpy as np
import pytest

from llkd.core.policies import (
    Choice,
    Policy,
    PolicySettings,
    Signals,
    State,
    make_policy,
    select_rows,
)
from llkd.core.policies.refine import Refined, move_bias, refine
from llkd.core.tally import Tally
from llkd.core.thresholds import Thresholds, no_thresholds
from tests.core.policies.test_policies_properties import CLASSES, SHARES, corpus, softmax
from tests.strategies import statistics_of

ROW = Signals(
    np.array([0]), np.array([0.6]), np.array([0.5]), np.array([0]),
    student_nc=np.array([[0.2, 0.8]]), teacher_nc=np.array([[0.6, 0.4]]),
)  # fmt: skip


def known(**changed: object) -> Thresholds:
    """Thresholds of a fully trusted student, except for the changed parameters."""
    kept = {"alpha": 1.0, "beta": 1.0, "trust": [1.0, 1.0], "bias": [0.0, 0.0], **changed}
    return replace(no_thresholds(2), parameters={k: np.asarray(v) for k, v in kept.items()})


def test_the_product_of_teacher_and_student() -> None:
    # 0.6 * 0.2 against 0.4 * 0.8
    assert refine(ROW, known())[0] == pytest.approx([0.12 / 0.44, 0.32 / 0.44])
    # the teacher's squared: 0.36 * 0.2 against 0.16 * 0.8
    assert refine(ROW, known(alpha=2.0))[0] == pytest.approx([0.36, 0.64])
    # the student's root
    root = np.sqrt([0.2, 0.8]) * [0.6, 0.4]
    assert refine(ROW, known(beta=0.5))[0] == pytest.approx(root / root.sum())
    # a bias of log 4 takes a quarter of class 1's weight
    assert refine(ROW, known(bias=[0.0, np.log(4)]))[0] == pytest.approx([0.6, 0.4])


def test_a_class_that_the_student_does_not_know_keeps_the_teachers_label() -> None:
    assert refine(ROW, known(trust=[0.0, 1.0]))[0] == pytest.approx([0.6, 0.4])
    assert refine(ROW, known(beta=0.0))[0] == pytest.approx([0.6, 0.4])


def test_label_and_confidence_are_those_of_the_product() -> None:
    policy = make_policy("refined")
    seen = policy.view(1, ROW, known())
    assert seen.label_n.tolist() == [1]
    assert seen.confidence_n == pytest.approx([0.32 / 0.44])


def test_trust_from_the_rows_of_the_part() -> None:
    policy = make_policy("refined")
    assert isinstance(policy, Refined)
    losses = np.arange(9.0)[::-1].copy()
    losses[4] = -1.0
    total = Tally(
        {
            "teacher_c": np.array([60.0, 40.0]), "rows": np.asarray(100),
            "part": np.asarray(20), "agreed": np.asarray(16),
            "confident_c": np.array([18, 8]), "found_c": np.array([15, 1]),
            "loss_b": losses, "confidence_a": np.arange(14.0, 22.0),
        }
    )  # fmt: skip
    state = State(statistics_of([corpus()], CLASSES), no_thresholds(2), None)
    found = policy.learn(1, "trust", total, state).thresholds.parameters
    # 15 of 18 + 2 found, by chance half; 1 of 8 + 2 is less than chance
    assert found["trust"] == pytest.approx([0.5, 0.0])
    assert found["agreement"] == pytest.approx(0.8)
    assert found["alpha"] == 1.5  # the first under which the mean confidence is 16 of 20
    assert found["beta"] == 0.5  # the fifth of nine from 0 to 1
    assert found["target"] == pytest.approx([0.6, 0.4])


def test_the_bias_brings_the_mean_to_its_target_in_a_few_steps() -> None:
    rng = np.random.default_rng(2)
    logits_nc = rng.normal(size=(2000, 5)) * 3 + [2.0, 0, 0, 0, -2]
    target_c, bias_c = np.array([0.1, 0.2, 0.3, 0.3, 0.1]), np.zeros(5)
    for _ in range(4):
        found_nc = softmax(logits_nc - bias_c)
        total = Tally({"mean_c": found_nc.sum(axis=0), "second_cc": found_nc.T @ found_nc})
        bias_c = move_bias(bias_c, target_c, total, 2000)["bias"]
    assert softmax(logits_nc - bias_c).mean(axis=0) == pytest.approx(target_c, rel=0.02)


def choose(policy: Policy, epoch: int, signals: Signals) -> tuple[State, Choice]:
    """The state and the choice on a corpus of one shard."""
    state, [choice] = select_rows(policy, epoch, [signals], statistics_of([signals], CLASSES), None)
    return state, choice


def refined(signals: Signals) -> tuple[State, np.ndarray]:
    """The state and the labels of a warm epoch."""
    policy = make_policy("refined", PolicySettings(class_floor=0.02, seed=1))
    state, choice = choose(policy, 2, signals)
    return state, choice.label_n


def gold() -> np.ndarray:
    """The true labels of `corpus`."""
    return np.random.default_rng(0).choice(4, 600, p=SHARES)


def test_a_student_that_knows_more_corrects_labels() -> None:
    signals = corpus()
    state, label_n = refined(signals)
    assert (label_n == gold()).mean() > (signals.label_n == gold()).mean() + 0.05
    mean_c = refine(signals, state.thresholds).mean(axis=0)
    assert signals.teacher_nc is not None
    assert mean_c == pytest.approx(signals.teacher_nc.mean(axis=0), rel=0.05)


def test_a_student_of_noise_corrects_nothing() -> None:
    rng = np.random.default_rng(5)
    noise_nc = softmax(3 * rng.normal(size=(600, 4))).astype(np.float16)
    signals = replace(corpus(), student_nc=noise_nc)
    state, label_n = refined(signals)
    assert state.thresholds.parameters["beta"] <= 0.125
    # The exponent is fitted to 150 rows, and not quite 0 for every draw of them.
    assert (label_n != signals.label_n).mean() < 0.03


def test_an_epoch_trains_on_its_part_and_every_row_has_one() -> None:
    signals = corpus()
    policy = make_policy("refined", PolicySettings(seed=1, parts=3, keep=1.0))
    assert isinstance(policy, Refined)
    parts = [policy.in_part(epoch, signals) for epoch in range(4)]
    assert np.array_equal(
        sum(part.astype(int) for part in parts[:3]), np.ones(len(signals.label_n))
    )
    assert np.array_equal(parts[3], parts[0])
    assert all(0.25 < part.mean() < 0.42 for part in parts)
    for epoch in range(4):
        _, choice = choose(policy, epoch, signals)
        assert np.array_equal(choice.weight_n > 0, parts[epoch])


def test_the_least_confident_rows_of_each_class_are_left_out() -> None:
    signals = corpus()
    policy = make_policy("refined", PolicySettings(parts=1, keep=0.75))
    _, choice = choose(policy, 0, signals)
    for label in range(4):
        own_n = signals.label_n == label
        taken_n = own_n & (choice.weight_n > 0)
        least = signals.confidence_n[taken_n].min()
        assert signals.confidence_n[own_n & (choice.weight_n == 0)].max() < least
        assert taken_n.sum() >= 0.75 * own_n.sum()  # more, to a bin of the histogram
        assert taken_n.sum() < own_n.sum()


def test_rows_that_the_student_has_learnt_raise_no_threshold() -> None:
    signals = corpus()
    policy = make_policy("refined", PolicySettings(seed=1, parts=4, keep=0.9))
    assert isinstance(policy, Refined)
    assert signals.student_nc is not None
    part_n = policy.in_part(3, signals)
    learnt_nc = np.where(part_n[:, None], signals.student_nc, np.eye(4)[signals.label_n])
    for student_nc in (signals.student_nc, learnt_nc.astype(np.float16)):
        seen = replace(signals, student_nc=student_nc)
        _, choice = choose(policy, 3, seen)
        taken = (choice.weight_n[part_n] > 0).mean()
        assert 0.88 < taken < 1.0
        assert not choice.weight_n[~part_n].any()
