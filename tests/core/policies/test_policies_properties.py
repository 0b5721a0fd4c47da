"""Whatever the signals, no policy gives NaN, and none minds the order or the cut of the rows."""

from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from llkd.core.thresholds import Thresholds
from tests.strategies import corpora, rows_of, statistics_of

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
    beta=st.floats(0, 4),
    parts=st.integers(1, 4),
    keep=st.floats(0.01, 1),
    clean_probability=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**32 - 1),
)


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


@pytest.mark.parametrize("name", get_args(PolicyName))
@given(data=st.data(), corpus=corpora(), settings=settings_)
def test_a_policy_on_anything(
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
