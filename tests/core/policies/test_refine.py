"""Refined labels, by numbers worked out by hand; and the guard against a student that is no good."""

from dataclasses import replace

import numpy as np
import pytest

from llkd.core.policies import PolicySettings, Signals, make_policy, select_rows
from llkd.core.policies.base import State
from llkd.core.policies.refine import Refined, move_bias, refine
from llkd.core.statistics import class_statistics
from llkd.core.tally import Tally
from llkd.core.thresholds import Thresholds, no_thresholds
from tests.core.policies.test_invariance import SHARES, corpus, softmax, statistics

ROW = Signals(
    np.array([0]), np.array([0.6]), np.array([0.5]), np.array([0]),
    student_nc=np.array([[0.2, 0.8]]), teacher_nc=np.array([[0.6, 0.4]]),
)  # fmt: skip


def known(**changed: object) -> Thresholds:
    """Thresholds of a student that is fully trusted, but for what is changed."""
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


def test_a_class_that_the_student_does_not_know_keeps_the_teachers_word() -> None:
    assert refine(ROW, known(trust=[0.0, 1.0]))[0] == pytest.approx([0.6, 0.4])
    assert refine(ROW, known(beta=0.0))[0] == pytest.approx([0.6, 0.4])


def test_label_and_confidence_are_those_of_the_product() -> None:
    policy = make_policy("refined")
    seen = policy.view(1, ROW, known())
    assert seen.label_n.tolist() == [1]
    assert seen.confidence_n == pytest.approx([0.32 / 0.44])


def test_trust_from_the_guard_rows() -> None:
    policy = make_policy("refined")
    assert isinstance(policy, Refined)
    losses = np.arange(9.0)[::-1].copy()
    losses[4] = -1.0
    total = Tally(
        {
            "teacher_c": np.array([60.0, 40.0]), "rows": np.asarray(100),
            "guards": np.asarray(20), "agreed": np.asarray(16),
            "confident_c": np.array([18, 8]), "found_c": np.array([15, 1]),
            "loss_b": losses, "confidence_a": np.arange(14.0, 22.0),
        }
    )  # fmt: skip
    state = State(statistics([corpus()]), no_thresholds(2), None)
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


def refined(signals: Signals, epoch: int = 2) -> tuple[State, np.ndarray, np.ndarray]:
    policy = make_policy("refined", PolicySettings(class_floor=0.02, seed=1))
    state, [choice] = select_rows(policy, epoch, [signals], statistics([signals]), None)
    return state, choice.label_n, choice.weight_n


def gold() -> np.ndarray:
    """What `corpus` was made from."""
    return np.random.default_rng(0).choice(4, 600, p=SHARES)


def test_a_student_that_knows_more_mends_labels() -> None:
    signals = corpus()
    state, label_n, _ = refined(signals)
    assert (label_n == gold()).mean() > (signals.label_n == gold()).mean() + 0.05
    mean_c = refine(signals, state.thresholds).mean(axis=0)
    assert signals.teacher_nc is not None
    assert mean_c == pytest.approx(signals.teacher_nc.mean(axis=0), rel=0.05)


def test_a_student_of_noise_mends_nothing() -> None:
    rng = np.random.default_rng(5)
    noise_nc = softmax(3 * rng.normal(size=(600, 4))).astype(np.float16)
    signals = replace(corpus(), student_nc=noise_nc)
    state, label_n, _ = refined(signals)
    assert state.thresholds.parameters["beta"] <= 0.125
    assert (label_n != signals.label_n).mean() < 0.01


def test_guard_rows_are_never_trained_on() -> None:
    signals = corpus()
    policy = make_policy("refined", PolicySettings(class_floor=0.02, seed=1))
    assert isinstance(policy, Refined)
    for epoch in (0, 2):
        state, _, weight_n = refined(signals, epoch)
        guard_n = policy.guards(signals, state.thresholds)
        assert 0.05 < guard_n.mean() < 0.15
        assert not weight_n[guard_n].any()
        assert weight_n[~guard_n].any()


def test_a_small_class_gives_no_guard_rows() -> None:
    label_n = np.array([0] * 300 + [1] * 20)
    sure_n, position_n = np.full(320, 0.7), np.arange(320)
    policy = make_policy("refined")
    assert isinstance(policy, Refined)
    state = policy.begin(0, class_statistics(label_n, sure_n, None, 2), None)
    guard_n = policy.guards(Signals(label_n, sure_n, None, position_n), state.thresholds)
    assert guard_n[:300].any()
    assert not guard_n[300:].any()
