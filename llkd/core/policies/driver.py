"""Runs a policy over the shards of an epoch."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce
from operator import add
from typing import Protocol, TypeVar

import numpy as np

from llkd.core.policies.base import ROWS, Choice, Policy, Signals, State, statistics_of
from llkd.core.statistics import ClassStatistics
from llkd.core.tally import Tally
from llkd.core.thresholds import Thresholds

Chosen = TypeVar("Chosen")


class Measure(Protocol):
    """A pass over the shards that adds up `Policy.measure`."""

    def __call__(self, question: str, thresholds: Thresholds, held: bool = False) -> Tally:
        """The total for a question and thresholds, over all rows or only over the held-out ones."""


def select(
    policy: Policy,
    epoch: int,
    statistics: ClassStatistics,
    previous: Thresholds | None,
    measure: Measure,
    choose: Callable[[Thresholds], tuple[Chosen, np.ndarray]],
    with_held: bool,
) -> tuple[State, Chosen]:
    """The selection of an epoch, for shards in memory or in storage.

    Args:
        policy: the policy.
        epoch: from 0.
        statistics: see `Policy.begin`.
        previous: see `Policy.begin`.
        measure: the pass that answers a question.
        choose: the pass that selects by thresholds; returns its result and the number of selected
            trainable rows, shape (C,). Called again if a class fell short of its floor.
        with_held: whether rows are held out. They are measured only if a class may fall short.

    Returns:
        The state with the final thresholds, and the result of the last `choose`.
    """
    state = policy.begin(epoch, statistics, previous)
    asked: list[str] = []
    while (question := policy.question(epoch, state, asked)) is not None:
        state = policy.learn(epoch, question, measure(question, state.thresholds), state)
        asked.append(question)
    chosen, selected_c = choose(state.thresholds)
    wider = policy.fill(state.statistics, selected_c, state.thresholds)
    if wider is not None and with_held:
        held = statistics_of(measure(ROWS, state.thresholds, held=True))
        wider = policy.fill(state.statistics - held, selected_c, state.thresholds)
    if wider is None:
        return state, chosen
    return replace(state, thresholds=wider), choose(wider)[0]


def select_rows(
    policy: Policy,
    epoch: int,
    parts: Sequence[Signals],
    statistics: ClassStatistics,
    previous: Thresholds | None,
    held: Sequence[np.ndarray] | None = None,
) -> tuple[State, list[Choice]]:
    """`select` with the signals of all shards in memory.

    Args:
        policy: the policy.
        epoch: from 0.
        parts: the signals of each shard.
        statistics: see `Policy.begin`.
        previous: see `Policy.begin`.
        held: mask of each shard's held-out rows, bool, shape (N,).

    Returns:
        The state, and each shard's choice.
    """
    masks = held if held is not None else [np.zeros(len(p.label_n), bool) for p in parts]

    def measure(question: str, thresholds: Thresholds, held: bool = False) -> Tally:
        measured = [p.of(m) for p, m in zip(parts, masks, strict=True)] if held else parts
        return reduce(add, (policy.measure(epoch, question, p, thresholds) for p in measured))

    def choose(thresholds: Thresholds) -> tuple[list[Choice], np.ndarray]:
        choices = [
            policy.choose(epoch, part, thresholds).without(mask_n)
            for part, mask_n in zip(parts, masks, strict=True)
        ]
        return choices, reduce(add, (choice.counts(len(statistics.rows_c)) for choice in choices))

    return select(policy, epoch, statistics, previous, measure, choose, held is not None)
