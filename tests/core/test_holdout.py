"""The rows that are held out of training."""

import json

import numpy as np
import pytest

from llkd.core.holdout import MAX_ROWS, Holdout, draw_holdout
from llkd.core.policies import Signals
from llkd.core.statistics import ClassStatistics, class_statistics


def corpus(rows: int, classes: int = 2) -> tuple[Signals, ClassStatistics]:
    """Confidences 0 to 1 in even steps, classes in turn."""
    label_n = np.arange(rows) % classes
    confidence_n = np.arange(rows) / rows
    found = Signals(label_n, confidence_n, None, np.arange(rows))
    return found, class_statistics(label_n, confidence_n, None, classes)


def test_a_share_of_the_confident_rows_and_no_other() -> None:
    signals, statistics = corpus(20000)
    holdout = draw_holdout(0.1, statistics, shards=1, seed=3)
    held_n = holdout.rows(signals)
    assert held_n.sum() == pytest.approx(1000, rel=0.1)  # a tenth of half the rows
    assert signals.confidence_n[held_n].min() >= 0.5 - 1e-4
    assert set(signals.label_n[held_n]) == {0, 1}


def test_the_same_rows_however_the_corpus_is_cut() -> None:
    signals, statistics = corpus(2000)
    holdout = draw_holdout(0.2, statistics, shards=1, seed=3)
    parts = [holdout.rows(signals.of(part)) for part in np.split(np.arange(2000), 4)]
    assert np.array_equal(np.concatenate(parts), holdout.rows(signals))


def test_a_large_corpus_gives_no_more_than_are_needed_from_a_few_shards() -> None:
    signals, statistics = corpus(100_000)
    large = ClassStatistics(*(1000 * value for value in vars(statistics).values()))
    holdout = draw_holdout(0.5, large, shards=1000, seed=3)
    assert len(holdout.shards) == 64
    # one shard has a 1000th of the rows: 100,000, and half of them are confident
    assert holdout.rows(signals).sum() * 64 == pytest.approx(MAX_ROWS, rel=0.15)


def test_a_small_class_gives_none() -> None:
    label_n = np.array([0] * 1000 + [1] * 20)
    confidence_n = np.linspace(0.5, 1.0, 1020)
    statistics = class_statistics(label_n, confidence_n, None, 3)
    holdout = draw_holdout(0.5, statistics, shards=1, seed=0)
    held_n = holdout.rows(Signals(label_n, confidence_n, None, np.arange(1020)))
    assert held_n[:1000].any()
    assert not held_n[1000:].any()
    again = Holdout.from_json(json.loads(json.dumps(holdout.to_json())), seed=0)
    assert np.array_equal(again.confidence_c, holdout.confidence_c)
    assert (again.shards, again.rate, again.seed) == (holdout.shards, holdout.rate, holdout.seed)
