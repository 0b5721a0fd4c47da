"""No policy's choice depends on the sharding of the corpus or the order of its rows, and none is NaN."""

from functools import partial
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llkd.core.calibration import Calibration, fit_batch_bias, marginal
from llkd.core.policies import (
    SMALLEST_WEIGHT,
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
from llkd.core.statistics import on_grid
from llkd.core.thresholds import Thresholds
from llkd.core.uncertainty import entropy
from tests.strategies import corpora, rows_of, statistics_of

ROWS, CLASSES = 600, 4
SHARES = [0.5, 0.3, 0.15, 0.05]


def corpus(seed: int = 0, cold: bool = False) -> Signals:
    """A teacher that is right for two rows in three, and a student that tends to agree with it."""
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


def chosen(
    policy: Policy,
    signals: Signals,
    classes: int,
    parts: list[np.ndarray],
    held_n: np.ndarray | None = None,
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """(thresholds by epoch, labels by epoch and position, weights likewise), shape (E, N)."""
    shards = [rows_of(signals, row_n) for row_n in parts]
    epochs, rows = 3, len(signals.label_n)
    label_en, weight_en = np.zeros((epochs, rows), int), np.full((epochs, rows), np.nan)
    previous, written = None, []
    for epoch in range(epochs):
        statistics = statistics_of(shards, classes)
        held = None if held_n is None else [held_n[shard.position_n] for shard in shards]
        state, found = select_rows(policy, epoch, shards, statistics, previous, held)
        written.append(repr(state.thresholds.to_json()))
        previous = Thresholds.from_json(state.thresholds.to_json())
        for shard, choice in zip(shards, found, strict=True):
            label_en[epoch, shard.position_n] = choice.label_n
            weight_en[epoch, shard.position_n] = choice.weight_n
    return written, label_en, weight_en


VARIANTS = [
    *((name, Rule()) for name in get_args(PolicyName)),
    *(
        (name, Rule(thresholds=kind, momentum=0.5))
        for kind in get_args(ThresholdKind)
        for name in ("llkd", "refined")
    ),
    *(("llkd", Rule(weights=weights)) for weights in get_args(WeightKind)),
]


rules = st.builds(
    Rule,
    thresholds=st.sampled_from(get_args(ThresholdKind)),
    fraction=st.floats(0.01, 1),
    confidence=st.floats(0, 1),
    uncertainty=st.floats(0, 1),
    momentum=st.sampled_from([0.0, 0.5, 0.999]),
    weights=st.sampled_from(get_args(WeightKind)),
)
settings_ = st.builds(
    PolicySettings,
    rule=rules,
    sides=st.sampled_from(["both", "teacher", "student"]),
    warmup_epochs=st.integers(0, 2),
    class_floor=st.sampled_from([0.0, 0.02, 0.5, 1.0]),
    parts=st.integers(1, 4),
    keep=st.floats(0.01, 1),
    clean_probability=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**32 - 1),
)


@pytest.mark.parametrize(("name", "rule"), VARIANTS)
def test_the_same_choice_for_1_2_and_7_shards_and_any_order(name: PolicyName, rule: Rule) -> None:
    policy = make_policy(name, PolicySettings(rule=rule, class_floor=0.1, parts=2, seed=3))
    signals, order_n = corpus(), np.arange(ROWS)
    written, label_en, weight_en = chosen(policy, signals, CLASSES, [order_n])
    shuffled_n = np.random.default_rng(1).permutation(ROWS)
    for shards, row_n in ((2, order_n), (7, order_n), (3, shuffled_n)):
        other = chosen(policy, signals, CLASSES, np.array_split(row_n, shards))
        assert other[0] == written
        assert np.array_equal(other[1], label_en)
        assert np.array_equal(other[2], weight_en)
    label_n, weight_n = label_en[-1], weight_en[-1]
    assert np.isfinite(weight_n).all()
    assert (weight_n >= 0).all()
    if name not in ("all", "random", "softmatch"):
        for label in np.unique(label_n):
            assert (weight_n[label_n == label] > 0).mean() >= 0.1


@pytest.mark.parametrize("name", get_args(PolicyName))
def test_a_student_that_knows_nothing_breaks_nothing(name: PolicyName) -> None:
    policy, signals = make_policy(name, PolicySettings(class_floor=0.02)), corpus(cold=True)
    parts = np.array_split(np.arange(ROWS), 2)
    written, label_en, weight_en = chosen(policy, signals, CLASSES, parts)
    assert np.isfinite(weight_en[-1]).all()
    assert weight_en[-1].sum() > 0
    assert "nan" not in "".join(written)
    assert np.array_equal(label_en[-1], corpus().label_n)


@pytest.mark.parametrize("name", get_args(PolicyName))
@given(data=st.data(), corpus=corpora(), settings=settings_)
def test_any_policy_on_any_signals(
    name: PolicyName, data: st.DataObject, corpus: tuple[Signals, int], settings: PolicySettings
) -> None:
    signals, classes = corpus
    policy, rows = make_policy(name, settings), len(signals.label_n)
    written, label_en, weight_en = chosen(policy, signals, classes, [np.arange(rows)])
    assert "nan" not in "".join(written)
    assert np.isfinite(weight_en).all()
    assert ((weight_en == 0) | (weight_en >= np.float32(SMALLEST_WEIGHT))).all()
    assert ((label_en >= 0) & (label_en < classes)).all()
    for shards in (2, 7):
        order_n = np.array(data.draw(st.permutations(range(rows))))
        other = chosen(policy, signals, classes, np.array_split(order_n, shards))
        assert other[0] == written
        assert np.array_equal(other[1], label_en)
        assert np.array_equal(other[2], weight_en)
    held_n = np.array(data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows)))
    halves = np.array_split(np.arange(rows), 2)
    _, label_en, weight_en = chosen(policy, signals, classes, halves, held_n)
    assert not weight_en[:, held_n].any()
    if settings.class_floor > 0 and name not in ("all", "random", "softmatch", "refined"):
        for label_n, weight_n in zip(label_en[:, ~held_n], weight_en[:, ~held_n], strict=True):
            for label in np.unique(label_n):
                taken = (weight_n[label_n == label] > 0).mean()
                assert taken >= settings.class_floor - 1e-12


def test_what_each_policy_asks_for() -> None:
    needs = {
        name: (policy.uses_uncertainty, policy.uses_student_probs, policy.uses_teacher_probs)
        for name in get_args(PolicyName)
        for policy in [make_policy(name)]
    }
    assert needs["llkd"] == (True, False, False)
    assert needs["all"] == needs["random"] == needs["refined"] == (False, False, False)
    for name in ("freematch", "softmatch", "small_loss", "confident_learning"):
        assert needs[name] == (True, True, False)


def test_a_class_is_filled_from_the_part_of_the_epoch() -> None:
    policy = make_policy("refined", PolicySettings(class_floor=0.2, parts=4, keep=0.01))
    signals = corpus()
    _, label_en, weight_en = chosen(policy, signals, CLASSES, [np.arange(ROWS)])
    for epoch in range(3):
        largest_n = label_en[epoch] == np.bincount(label_en[epoch]).argmax()
        assert (weight_en[epoch][largest_n] > 0).mean() >= 0.2  # a quarter is in the part
