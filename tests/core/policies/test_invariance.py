"""No policy's choice depends on how the corpus is cut into shards, nor on the order of its rows."""

from functools import partial
from typing import get_args

import numpy as np
import pytest

from llkd.core.calibration import Calibration, fit_batch_bias, marginal
from llkd.core.policies import (
    PolicyName,
    PolicySettings,
    Rule,
    Signals,
    ThresholdKind,
    WeightKind,
    make_policy,
    select_rows,
)
from llkd.core.policies.base import Policy
from llkd.core.statistics import ClassStatistics, class_statistics, on_grid
from llkd.core.thresholds import Thresholds
from llkd.core.uncertainty import entropy

ROWS, CLASSES = 600, 4
SHARES = [0.5, 0.3, 0.15, 0.05]


def corpus(seed: int = 0, cold: bool = False) -> Signals:
    """A teacher that is right two times in three, and a student that leans its way."""
    rng = np.random.default_rng(seed)
    gold_n = rng.choice(CLASSES, ROWS, p=SHARES)
    truth_nc = np.eye(CLASSES)[gold_n]
    raw_nc = 1.6 * truth_nc + rng.normal(size=(ROWS, CLASSES))
    bias_c = fit_batch_bias(partial(marginal, raw_nc), np.array(SHARES))
    teacher_nc = Calibration(bias_c).apply(raw_nc).astype(np.float32)
    leaning_nc = 2.0 * truth_nc + np.log(teacher_nc) + rng.normal(size=(ROWS, CLASSES))
    student_nc = softmax(np.zeros_like(truth_nc) if cold else leaning_nc).astype(np.float16)
    return Signals(
        teacher_nc.argmax(axis=1), on_grid(teacher_nc.max(axis=1)), on_grid(entropy(student_nc)),
        np.arange(ROWS), student_nc, teacher_nc,
    )  # fmt: skip


def softmax(logits_nc: np.ndarray) -> np.ndarray:
    exp_nc = np.exp(logits_nc - logits_nc.max(axis=1, keepdims=True))
    return np.asarray(exp_nc / exp_nc.sum(axis=1, keepdims=True))


def taken(signals: Signals, row_n: np.ndarray) -> Signals:
    return Signals(*(np.asarray(value)[row_n] for value in vars(signals).values()))


def statistics(parts: list[Signals]) -> ClassStatistics:
    found = [class_statistics(p.label_n, p.confidence_n, p.uncertainty_n, CLASSES) for p in parts]
    return sum(found[1:], found[0])


def chosen(
    policy: Policy, signals: Signals, shards: int, order_n: np.ndarray
) -> tuple[list[dict[str, object]], np.ndarray, np.ndarray]:
    """(thresholds as JSON by epoch, labels, weights by position) over two warm epochs."""
    parts = [taken(signals, row_n) for row_n in np.array_split(order_n, shards)]
    previous, written = None, []
    for epoch in (0, 1, 2):
        state, found = select_rows(policy, epoch, parts, statistics(parts), previous)
        written.append(state.thresholds.to_json())
        previous = Thresholds.from_json(written[-1])
    label_n, weight_n = np.zeros(ROWS, int), np.zeros(ROWS)
    for part, choice in zip(parts, found, strict=True):
        label_n[part.position_n] = choice.label_n
        weight_n[part.position_n] = choice.weight_n
    return written, label_n, weight_n


VARIANTS = [
    *((name, Rule()) for name in get_args(PolicyName)),
    *(
        (name, Rule(thresholds=kind, momentum=0.5))
        for kind in get_args(ThresholdKind)
        for name in ("llkd", "refined")
    ),
    *(("llkd", Rule(weights=weights)) for weights in get_args(WeightKind)),
]


@pytest.mark.parametrize(("name", "rule"), VARIANTS)
def test_the_same_choice_for_1_2_and_7_shards_and_any_order(name: PolicyName, rule: Rule) -> None:
    policy = make_policy(name, PolicySettings(rule=rule, class_floor=0.1, seed=3))
    signals = corpus()
    whole = chosen(policy, signals, 1, np.arange(ROWS))
    shuffled_n = np.random.default_rng(1).permutation(ROWS)
    for shards, order_n in ((2, np.arange(ROWS)), (7, np.arange(ROWS)), (3, shuffled_n)):
        other = chosen(policy, signals, shards, order_n)
        assert other[0] == whole[0]
        assert np.array_equal(other[1], whole[1])
        assert np.array_equal(other[2], whole[2])
    assert np.isfinite(whole[2]).all()
    assert (whole[2] >= 0).all()
    filled = name not in ("all", "random", "softmatch")
    for label in range(CLASSES):
        of_class = whole[1] == label
        if of_class.any() and filled:
            assert (whole[2][of_class] > 0).mean() >= 0.1


@pytest.mark.parametrize("name", get_args(PolicyName))
def test_a_student_that_knows_nothing_breaks_nothing(name: PolicyName) -> None:
    policy = make_policy(name, PolicySettings(class_floor=0.02))
    written, label_n, weight_n = chosen(policy, corpus(cold=True), 2, np.arange(ROWS))
    assert np.isfinite(weight_n).all()
    assert weight_n.sum() > 0
    assert "NaN" not in str(written)
    assert np.array_equal(label_n, corpus().label_n)


@pytest.mark.parametrize("name", get_args(PolicyName))
def test_a_shard_without_rows(name: PolicyName) -> None:
    policy = make_policy(name)
    signals = corpus()
    parts = [signals, taken(signals, np.array([], dtype=int))]
    _, found = select_rows(policy, 2, parts, statistics(parts), None)
    assert [len(choice.weight_n) for choice in found] == [ROWS, 0]


def test_what_each_policy_asks_for() -> None:
    needs = {
        name: (policy.uses_uncertainty, policy.uses_student_probs, policy.uses_teacher_probs)
        for name in get_args(PolicyName)
        for policy in [make_policy(name)]
    }
    assert needs["llkd"] == (True, False, False)
    assert needs["all"] == needs["random"] == needs["teacher_confidence"] == (False, False, False)
    assert needs["refined"] == (True, True, True)
    for name in ("freematch", "softmatch", "small_loss", "confident_learning"):
        assert needs[name] == (True, True, False)
