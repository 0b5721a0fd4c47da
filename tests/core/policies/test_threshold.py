"""Thresholds and policies, by numbers worked out by hand."""

import numpy as np
import pytest

from llkd.core.policies import (
    Policy,
    PolicyName,
    PolicySettings,
    Rule,
    Signals,
    make_policy,
    select_rows,
    uniform_by_position,
)
from llkd.core.policies.threshold import entropy_terms
from llkd.core.statistics import ClassStatistics, class_statistics, confidence_of_top
from llkd.core.thresholds import Thresholds, moving_average, no_thresholds
from llkd.core.uncertainty import entropy

LABELS = np.array([0, 0, 0, 1, 1])
CONFIDENCE = np.array([0.9, 0.6, 0.6, 0.8, 0.5])  # means 0.7 and 0.65
UNCERTAINTY = np.array([0.1, 0.9, 0.5, 0.6, 0.8])  # means 0.5 and 0.7

PLAIN = PolicySettings(rule=Rule(weights="none"))


def signals(uncertainty: np.ndarray | None = UNCERTAINTY) -> Signals:
    return Signals(LABELS, CONFIDENCE, uncertainty, np.arange(5))


def statistics(classes: int = 2) -> ClassStatistics:
    return class_statistics(LABELS, CONFIDENCE, UNCERTAINTY, classes)


def run(policy: Policy, epoch: int, previous: Thresholds | None = None) -> list[float]:
    thresholds = policy.thresholds(epoch, statistics(), previous)
    return policy.weights(epoch, signals(), thresholds).tolist()


def test_statistics_count_and_sum_by_class() -> None:
    found = statistics(3)
    assert found.rows_c.tolist() == [3, 2, 0]
    assert found.mean_confidence_c[:2] == pytest.approx([0.7, 0.65])
    assert found.mean_uncertainty_c[:2] == pytest.approx([0.5, 0.7])
    assert np.isnan(found.mean_confidence_c[2])


def test_statistics_merge_and_survive_json() -> None:
    parts = class_statistics(LABELS[:2], CONFIDENCE[:2], UNCERTAINTY[:2], 2) + class_statistics(
        LABELS[2:], CONFIDENCE[2:], UNCERTAINTY[2:], 2
    )
    for name, value in vars(statistics()).items():
        assert vars(parts)[name] == pytest.approx(value)
    again = ClassStatistics.from_json(parts.to_json())
    assert all(np.array_equal(vars(again)[n], vars(parts)[n]) for n in vars(parts))


TEACHER_SIDE = PolicySettings(sides="teacher")


@pytest.mark.parametrize(
    ("name", "settings", "epoch", "weights"),
    [
        # c >= (0.7, 0.65): rows 0 and 3; u >= (0.5, 0.7): rows 1, 2 and 4; both: none of them
        ("llkd", PLAIN, 1, [0, 0, 0, 0, 0]),
        ("llkd", PLAIN, 0, [1, 0, 0, 1, 0]),  # the warm-up uses the teacher's side alone
        ("teacher_confidence", PLAIN, 3, [1, 0, 0, 1, 0]),
        ("student_uncertainty", PLAIN, 3, [0, 1, 1, 0, 1]),
        ("student_uncertainty", PLAIN, 0, [1, 1, 1, 1, 1]),  # nothing is known yet: all rows
        # Product weights of the sides in use.
        ("teacher_confidence", None, 1, [0.9, 0, 0, 0.8, 0]),
        ("student_uncertainty", None, 1, [0, 0.9, 0.5, 0, 0.8]),
        ("llkd", None, 0, [0.9, 0, 0, 0.8, 0]),
        ("llkd", TEACHER_SIDE, 2, [0.9, 0, 0, 0.8, 0]),  # as teacher_confidence
        ("all", None, 2, [1, 1, 1, 1, 1]),
    ],
)
def test_weights_by_hand(
    name: PolicyName, settings: PolicySettings | None, epoch: int, weights: list[float]
) -> None:
    assert run(make_policy(name, settings), epoch) == pytest.approx(weights)


def test_only_the_students_side_needs_uncertainty() -> None:
    assert make_policy("student_uncertainty").uses_uncertainty
    assert not make_policy("teacher_confidence").uses_uncertainty
    assert not make_policy("llkd", TEACHER_SIDE).uses_uncertainty


def test_epochs_that_train_on_a_large_part_of_the_corpus() -> None:
    assert make_policy("llkd").full_epochs(4) == 1
    assert make_policy("llkd", PolicySettings(warmup_epochs=3)).full_epochs(4) == 3
    assert make_policy("llkd", PolicySettings(warmup_epochs=0)).full_epochs(4) == 1
    assert make_policy("teacher_confidence").full_epochs(4) == 4
    assert make_policy("all").full_epochs(4) == 4


def test_llkd_takes_a_row_that_passes_both() -> None:
    policy = make_policy("llkd")
    thresholds = Thresholds(np.full(2, 0.6), np.full(2, 0.5), np.full(2, np.inf))
    # rows 1, 2 and 3 pass both; weights are c * u
    weights = policy.weights(1, signals(), thresholds)
    assert weights == pytest.approx([0, 0.54, 0.3, 0.48, 0])


def test_a_mean_of_equal_numbers_does_not_push_them_out() -> None:
    same = np.full(7, 0.1)  # summed and divided, 0.1 comes out a rounding above itself
    found = class_statistics(np.zeros(7, int), same, same, 1)
    policy = make_policy("llkd", PLAIN)
    weights = policy.weights(
        1, Signals(np.zeros(7, int), same, same, np.arange(7)), policy.thresholds(1, found, None)
    )
    assert weights.sum() == 7


def test_floor_fills_a_class_that_falls_short() -> None:
    policy = make_policy("llkd", PolicySettings(rule=Rule(weights="none"), class_floor=0.5))
    thresholds = policy.thresholds(1, statistics(), None)
    wider = policy.fill(statistics(), np.array([0, 0]), thresholds)
    assert wider is not None
    # half of 3 rows is 2, of 2 rows is 1: filled with those of most confidence; rows 1 and 2 tie
    assert policy.weights(1, signals(), wider).tolist() == [1, 1, 1, 1, 0]
    assert policy.fill(statistics(), np.array([2, 1]), thresholds) is None


def test_floor_counts_the_rows_that_can_be_trained_on() -> None:
    rule = Rule(thresholds="fixed", confidence=1.0, weights="none")
    policy = make_policy("teacher_confidence", PolicySettings(rule=rule, class_floor=0.5))
    confidence_n = np.linspace(0.9, 0.5, 9)
    shards = [
        Signals(np.zeros(len(part), int), confidence_n[part], None, part)
        for part in (np.arange(5), np.arange(5, 9))
    ]
    found = class_statistics(np.zeros(9, int), confidence_n, None, 1)
    held = [np.array([True, True, False, True, False]), np.array([False] * 4)]
    _, chosen = select_rows(policy, 0, shards, found, None, held)
    # half of the six that are left: those of most confidence, for none of them passes 1
    weights = np.concatenate([choice.weight_n for choice in chosen])
    assert weights.tolist() == [0, 0, 1, 0, 1, 1, 0, 0, 0]


def test_floor_leaves_full_classes_alone() -> None:
    policy = make_policy("llkd", PolicySettings(rule=Rule(weights="none"), class_floor=0.5))
    wider = policy.fill(statistics(), np.array([2, 0]), no_thresholds(2))
    assert wider is not None
    assert wider.floor_c[0] == np.inf
    assert 0.75 < wider.floor_c[1] <= 0.8


def test_confidence_of_top_counts_from_above() -> None:
    confidence = np.array([0.5, 0.9, 0.99, 0.999, 1.0])
    found = class_statistics(np.zeros(5, int), confidence, None, 2).histogram_cb
    for wanted in range(1, 6):
        edge = confidence_of_top(found, np.array([wanted, 0]))
        assert (confidence >= edge[0] - 1e-6).sum() == wanted
        assert edge[1] == np.inf
    assert confidence_of_top(found, np.array([6, 1])).tolist() == [0.0, 0.0]


def test_filling_the_class_of_a_sure_teacher_does_not_take_all_of_it() -> None:
    confidence = 1 - 10.0 ** -np.linspace(2, 4, 1000)  # nearly all above 0.99
    found = class_statistics(np.zeros(1000, int), confidence, None, 1)
    edge = confidence_of_top(found.histogram_cb, np.array([20]))
    assert 20 <= (confidence >= edge[0] - 1e-6).sum() <= 45


def test_rows_that_fill_a_class_weigh_by_confidence() -> None:
    thresholds = Thresholds(np.array([2.0, 0.6]), np.array([2.0, 0.5]), np.array([0.9, np.inf]))
    weights = make_policy("llkd").weights(1, signals(), thresholds)
    assert weights == pytest.approx([0.9, 0, 0, 0.8 * 0.6, 0])


def test_moving_average() -> None:
    previous, observed = np.array([0.2, 0.4, np.nan]), np.array([0.6, np.nan, 0.5])
    # 0.75 * 0.2 + 0.25 * 0.6; kept; taken
    assert moving_average(previous, observed, 0.75) == pytest.approx([0.3, 0.4, 0.5])
    assert moving_average(None, observed[:1], 0.75) == pytest.approx([0.6])


def test_thresholds_move_with_momentum() -> None:
    policy = make_policy("llkd", PolicySettings(rule=Rule(momentum=0.5)))
    previous = Thresholds(np.array([0.5, 0.45]), np.array([-np.inf, 0.9]), np.full(2, np.inf))
    found = policy.thresholds(1, statistics(), previous)
    assert found.confidence_c == pytest.approx([0.6, 0.55])
    assert found.uncertainty_c == pytest.approx([0.5, 0.8])  # class 0 had no threshold before


def test_thresholds_survive_json() -> None:
    thresholds = Thresholds(np.array([0.5, -np.inf]), np.array([0.1, 0.2]), np.array([np.inf, 0.3]))
    again = Thresholds.from_json(thresholds.to_json())
    assert all(np.array_equal(vars(again)[n], vars(thresholds)[n]) for n in vars(thresholds))


def test_class_without_rows_has_no_threshold() -> None:
    found = make_policy("llkd").thresholds(1, statistics(3), None)
    assert found.confidence_c[2] == -np.inf


def test_random_draws_its_share_anew_each_epoch() -> None:
    policy = make_policy("random", PolicySettings(rule=Rule(fraction=0.25), seed=3))
    many = Signals(np.zeros(20000, int), np.ones(20000), None, np.arange(20000))
    first, second = (policy.weights(e, many, no_thresholds(1)) for e in (0, 1))
    assert first.mean() == pytest.approx(0.25, abs=0.02)
    assert (first * second).mean() == pytest.approx(0.0625, abs=0.01)
    assert np.array_equal(first, policy.weights(0, many, no_thresholds(1)))


def test_random_numbers_depend_on_the_position_alone() -> None:
    whole = uniform_by_position(np.arange(1000), seed=1, epoch=2)
    parts = [uniform_by_position(np.arange(i, i + 100), 1, 2) for i in range(0, 1000, 100)]
    assert np.array_equal(whole, np.concatenate(parts))
    assert 0 <= whole.min() < whole.max() < 1
    assert np.histogram(whole, bins=4, range=(0, 1))[0] == pytest.approx([250] * 4, abs=50)
    assert not np.array_equal(whole, uniform_by_position(np.arange(1000), 2, 2))


@pytest.mark.parametrize("name", ["llkd", "teacher_confidence", "student_uncertainty"])
def test_selected_rows_have_weight(name: PolicyName) -> None:
    policy = make_policy(name, PolicySettings(class_floor=1.0))
    zero = np.zeros(4)
    found = class_statistics(np.array([0, 0, 1, 1]), zero, zero, 2)
    thresholds = policy.thresholds(5, found, None)
    weights = policy.weights(
        5, Signals(np.array([0, 0, 1, 1]), zero, zero, np.arange(4)), thresholds
    )
    assert (weights > 0).all()


def thresholds_by(rule: Rule, epoch: int = 1, **extra: np.ndarray) -> Thresholds:
    """The thresholds of llkd on the five rows under a rule."""
    policy = make_policy("llkd", PolicySettings(rule=rule))
    found = Signals(LABELS, CONFIDENCE, UNCERTAINTY, np.arange(5), **extra)
    state, _ = select_rows(policy, epoch, [found], statistics(), None)
    return state.thresholds


def test_quantile_thresholds_are_reached_by_a_share_of_each_class() -> None:
    found = thresholds_by(Rule(thresholds="quantile", fraction=0.34))
    # 0.34 of 3 rows is 2 and of 2 rows 1; two rows of class 0 tie at 0.6
    assert (found.confidence_c[LABELS] <= CONFIDENCE).tolist() == [True, True, True, True, False]
    assert found.uncertainty_c == pytest.approx([128 / 256, 204 / 256])


def test_fixed_thresholds() -> None:
    found = thresholds_by(Rule(thresholds="fixed", confidence=0.7, uncertainty=0.4))
    assert found.confidence_c.tolist() == [0.7, 0.7]
    assert found.uncertainty_c.tolist() == [0.4, 0.4]


def test_freematch_thresholds_scale_the_mean_by_the_share_of_the_class() -> None:
    teacher_nc = np.array([[0.9, 0.1], [0.6, 0.4], [0.6, 0.4], [0.2, 0.8], [0.5, 0.5]])
    student_nc = np.full((5, 2), 0.5)
    found = thresholds_by(
        Rule(thresholds="freematch"), teacher_nc=teacher_nc, student_nc=student_nc
    )
    # mean confidence 3.4 / 5; class sums 2.8 and 2.2
    assert found.confidence_c == pytest.approx([0.68, 0.68 * 2.2 / 2.8])
    # mean uncertainty 2.9 / 5; both classes have the same share of the entropy
    assert found.uncertainty_c == pytest.approx([0.58, 0.58])


def test_entropy_terms_add_up_to_the_entropy() -> None:
    probs_nc = np.array([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]])
    assert entropy_terms(probs_nc).sum(axis=1) == pytest.approx(entropy(probs_nc))


def test_sum_and_gaussian_weights() -> None:
    thresholds = Thresholds(
        np.array([0.6, 0.6]), np.array([0.5, 0.5]), np.full(2, np.inf),
        {"confidence_spread": np.array([0.7, 0.01])},
    )  # fmt: skip
    added = make_policy("llkd", PolicySettings(rule=Rule(weights="sum")))
    # rows 1, 2 and 3 pass: 0.6 + 0.9, 0.6 + 0.5, 0.8 + 0.6
    assert added.weights(1, signals(), thresholds) == pytest.approx([0, 1.5, 1.1, 1.4, 0])
    soft = make_policy("llkd", PolicySettings(rule=Rule(weights="softmatch")))
    # 0.6 is a deviation below the mean: exp(-1/2); 0.8 is above it
    expected = [0, np.exp(-0.5), np.exp(-0.5), 1, 0]
    assert soft.weights(1, signals(), thresholds) == pytest.approx(expected)


def test_the_spread_of_the_confidence_is_measured() -> None:
    found = thresholds_by(Rule(weights="softmatch")).parameters["confidence_spread"]
    # mean 0.68; squares 0.81 + 0.36 + 0.36 + 0.64 + 0.25 = 2.42
    assert found == pytest.approx([0.68, 2.42 / 5 - 0.68**2], abs=1e-6)
