"""Which rows are drawn for a person to label, and with what probability."""

import numpy as np
import pytest

from llkd.core.sampling import disagreement, draw_rows, proportional, some_rows, systematic

ROWS, WANTED = 200, 40


def sizes() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    at_k = random.permutation(ROWS)[:120]
    return random.random(120) ** 3, at_k


def test_rows_are_chosen_as_often_as_their_probability_says() -> None:
    size_k, at_k = sizes()
    counts, told = np.zeros(ROWS), np.zeros(ROWS)
    draws = 4000
    for seed in range(draws):
        drawn = draw_rows(ROWS, WANTED, size_k, at_k, np.random.default_rng(seed))
        assert len(set(drawn.index_k.tolist())) == WANTED
        assert drawn.uniform_k.sum() == WANTED // 2
        counts[drawn.index_k] += 1
        told[drawn.index_k] += drawn.probability_k
    assert counts / draws == pytest.approx(told / counts, abs=0.03)
    assert counts[at_k[size_k.argmax()]] / draws > 3 * WANTED / ROWS / 2


def test_weights_of_a_sample_add_up_to_the_corpus() -> None:
    size_k, at_k = sizes()
    total = [
        (1 / draw_rows(ROWS, WANTED, size_k, at_k, np.random.default_rng(seed)).probability_k).sum()
        for seed in range(500)
    ]
    assert np.mean(total) == pytest.approx(ROWS, rel=0.03)


def test_without_sizes_all_are_uniform_and_no_more_than_there_are() -> None:
    none = np.zeros(0, np.int64)
    drawn = draw_rows(10, 40, none, none, np.random.default_rng(0))
    assert sorted(drawn.index_k.tolist()) == list(range(10))
    assert drawn.uniform_k.all()
    assert drawn.probability_k.tolist() == [1.0] * 10
    every = draw_rows(10, 10, np.ones(10), np.arange(10), np.random.default_rng(0))
    assert sorted(every.index_k.tolist()) == list(range(10))


def test_probabilities_are_proportional_to_size_and_at_most_one() -> None:
    found_n, factor = proportional(np.array([1.0, 2.0, 100.0, 1.0]), 2)
    assert found_n.tolist() == [0.25, 0.5, 1.0, 0.25]
    assert factor == 0.25
    assert proportional(np.array([1.0, 1.0]), 0)[0].tolist() == [0.0, 0.0]


def test_a_systematic_sample_spreads_over_its_order() -> None:
    for seed in range(50):
        found = systematic(np.full(100, 0.1), np.random.default_rng(seed))
        assert (found // 10).tolist() == list(range(10))


def test_rows_disagree_where_distributions_differ_or_are_unsure() -> None:
    first = np.array([[1.0, 0.0], [1.0, 0.0], [0.5, 0.5]])
    second = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    assert disagreement(first, second).tolist() == [0.0, 1.0, 0.5]


def test_some_rows_are_spread_over_all() -> None:
    index = some_rows(10_000, 500, seed=0)
    assert len(set(index.tolist())) == 500
    assert (np.diff(index) > 0).all()
    assert np.histogram(index, bins=5, range=(0, 10_000))[0].min() > 60
    assert some_rows(3, 500, seed=0).tolist() == [0, 1, 2]
    assert len(some_rows(0, 500, seed=0)) == 0
