"""Statistics of compared runs, with numbers worked out by hand."""

import numpy as np
import pytest

from llkd.core.policies import Signals
from llkd.lab.compare.results import RunResult, overview, paired_p_value, reliability, summarise


def result(policy: str, seed: int, macro_f1: float) -> RunResult:
    return RunResult(
        policy=policy, seed=seed, accuracy=0.5, macro_f1=macro_f1, row_visits_fraction=0.1,
        unique_rows_fraction=0.2, seconds=3.0,
    )  # fmt: skip


RESULTS = [
    *(result("llkd", seed, score) for seed, score in enumerate([0.80, 0.82, 0.84])),
    *(result("all", seed, score) for seed, score in enumerate([0.70, 0.74, 0.72])),
    *(result("random", seed, score) for seed, score in enumerate([0.60, 0.60, 0.60])),
]


def test_each_policy_beside_the_best_baseline() -> None:
    ours, best, other = summarise(RESULTS)
    assert [found.policy for found in (ours, best, other)] == ["llkd", "all", "random"]
    assert ours.mean["macro_f1"] == pytest.approx(0.82)
    assert ours.deviation["macro_f1"] == pytest.approx(0.02)  # of 3 seeds, 2 degrees of freedom
    assert ours.difference == pytest.approx(0.10)
    assert best.difference is None
    assert other.difference == pytest.approx(-0.12)


def test_the_paired_test() -> None:
    # differences 0.10, 0.08, 0.12: mean 0.10, standard error 0.02 / sqrt(3), t = 8.66, 2 degrees
    # of freedom: p = 1 - t / sqrt(t² + 2)
    p_value = paired_p_value(RESULTS[:3], RESULTS[3:6])
    t = 0.10 / (0.02 / np.sqrt(3))
    assert p_value == pytest.approx(1 - t / np.sqrt(t**2 + 2))


def test_no_p_value_for_too_few_seeds_or_equal_differences() -> None:
    assert paired_p_value(RESULTS[:1], RESULTS[3:4]) is None
    assert paired_p_value(RESULTS[6:], RESULTS[6:]) is None


def test_without_baselines_ours_are_compared_among_themselves() -> None:
    found = summarise([result("llkd", 0, 0.7), result("refined", 0, 0.8)])
    assert [(entry.policy, entry.difference) for entry in found] == [
        ("refined", None), ("llkd", pytest.approx(-0.1)),
    ]  # fmt: skip


def test_figures_written_to_the_file() -> None:
    assert list(RESULTS[0].figures()) == [
        "policy", "seed", "accuracy", "macro_f1", "row_visits_fraction", "unique_rows_fraction",
        "seconds",
    ]  # fmt: skip


def test_reliability_by_bins_of_equal_size() -> None:
    confidence_n = np.linspace(0.05, 0.95, 20)
    label_n = np.zeros(20, dtype=int)
    gold_n = np.where(confidence_n > 0.5, 0, 1)
    gold_n[0] = -1  # no gold
    found = reliability(Signals(label_n, confidence_n, None, np.arange(20)), gold_n)
    assert list(found) == ["confidence"]
    assert sum(rows for _, _, rows in found["confidence"]) == 19
    assert found["confidence"][0][1] == 0
    assert found["confidence"][-1] == (pytest.approx(0.95), 1.0, 1)
    assert reliability(Signals(label_n, confidence_n, None, np.arange(20)), None) == {}


def test_policies_over_data_sets() -> None:
    other = [
        *(result("llkd", seed, 0.45) for seed in range(3)),
        *(result("all", seed, 0.4) for seed in range(3)),
        *(result("random", seed, 0.5) for seed in range(3)),
    ]
    first, second, third = overview([summarise(RESULTS), summarise(other)])
    assert [entry.policy for entry in (first, second, third)] == ["llkd", "random", "all"]
    # the best baselines are `all` with 0.72 and `random` with 0.5
    assert first.macro_f1 == pytest.approx([0.82, 0.45])
    assert first.gain == pytest.approx((0.82 / 0.72 - 1 + 0.45 / 0.5 - 1) / 2)
    assert first.worst == pytest.approx(-0.1)
    assert second.gain == pytest.approx((0.6 / 0.72 - 1) / 2)
    assert first.row_visits_fraction == pytest.approx(0.1)
