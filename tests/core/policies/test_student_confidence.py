"""Policies that use the student's probability of the label, by numbers worked out by hand."""

import numpy as np
import pytest

from llkd.core.mixture import Mixture, fit_two_normals
from llkd.core.policies import PolicyName, PolicySettings, Rule, Signals, make_policy, select_rows
from llkd.core.policies.base import State
from llkd.core.policies.label_noise import confident_joint, loss_bound, wrong_by_class
from llkd.core.statistics import class_statistics, on_grid
from llkd.core.thresholds import Thresholds
from llkd.core.uncertainty import entropy

LABELS = np.array([0, 0, 1, 1])
STUDENT = np.array([[1.0, 0.0], [0.5, 0.5], [0.5, 0.5], [0.75, 0.25]])
OWN = np.array([1.0, 0.5, 0.5, 0.25])  # the student's probability of the label; mean 0.5625


def choose(
    name: PolicyName,
    label_n: np.ndarray = LABELS,
    student_nc: np.ndarray = STUDENT,
    *,
    epoch: int = 1,
    previous: Thresholds | None = None,
    settings: PolicySettings | None = None,
) -> tuple[State, list[float]]:
    """The state and the weights on a corpus of one shard, with a teacher of constant confidence."""
    sure_n, uncertainty_n = np.full(len(label_n), 0.5), on_grid(entropy(student_nc))
    signals = Signals(label_n, sure_n, uncertainty_n, np.arange(len(label_n)), student_nc)
    statistics = class_statistics(label_n, sure_n, uncertainty_n, student_nc.shape[1])
    policy = make_policy(name, settings)
    state, [choice] = select_rows(policy, epoch, [signals], statistics, previous)
    return state, choice.weight_n.tolist()


@pytest.mark.parametrize("name", ["freematch", "softmatch", "small_loss", "confident_learning"])
def test_a_cold_student_is_not_asked(name: PolicyName) -> None:
    assert choose(name, epoch=0)[1] == [1, 1, 1, 1]


def test_freematch_asks_less_of_a_class_that_is_learnt_less() -> None:
    state, weights = choose("freematch")
    # class means of the student 0.6875 and 0.3125
    assert state.thresholds.confidence_c == pytest.approx([0.5625, 0.5625 * 0.3125 / 0.6875])
    assert weights == [1, 0, 1, 0]


def test_freematch_averages_its_means_over_epochs() -> None:
    kept = {"mean": np.asarray(0.4375), "class_mean": np.array([0.3125, 0.6875])}
    before = Thresholds(np.zeros(2), np.zeros(2), np.full(2, np.inf), kept)
    settings = PolicySettings(rule=Rule(momentum=0.5))
    state, _ = choose("freematch", previous=before, settings=settings)
    assert state.thresholds.confidence_c == pytest.approx([0.5, 0.5])


def test_softmatch_weighs_rows_below_the_mean_by_a_gaussian() -> None:
    _, weights = choose("softmatch")
    # squares sum to 1.5625: variance 0.390625 - 0.31640625
    expected = np.exp(-(np.minimum(OWN - 0.5625, 0) ** 2) / (2 * 0.07421875))
    assert weights == pytest.approx(expected.tolist(), abs=1e-6)
    assert weights[0] == 1
    assert weights[3] == pytest.approx(0.517941, abs=1e-5)


def test_two_normals_are_found_in_a_histogram() -> None:
    counts = np.array([0, 10, 20, 10, 0, 0, 0, 5, 10, 5])
    found = fit_two_normals(np.arange(10.0), counts)
    assert found.mean_2 == pytest.approx([2, 8], abs=0.01)
    assert found.variance_2 == pytest.approx([0.5, 0.5], abs=0.02)
    assert found.share_2 == pytest.approx([2 / 3, 1 / 3], abs=0.01)
    assert found.first(np.array([2.0, 8.0])) == pytest.approx([1, 0], abs=1e-6)


def test_the_posterior_of_two_equal_components() -> None:
    mixture = Mixture(np.array([0.5, 0.5]), np.array([0.0, 2.0]), np.array([1.0, 1.0]))
    # the densities at 0 are as 1 to exp(-2)
    expected = [1 / (1 + np.exp(-2)), 0.5]
    assert mixture.first(np.array([0.0, 1.0])) == pytest.approx(expected)


def test_one_value_alone_gives_no_component_less_than_half() -> None:
    counts = np.zeros(10)
    counts[4] = 7
    found = fit_two_normals(np.arange(10.0), counts)
    assert np.isfinite(found.variance_2).all()
    assert found.first(np.array([4.0])) == pytest.approx([0.5])


def test_small_loss_leaves_out_the_component_of_large_losses() -> None:
    rng = np.random.default_rng(0)
    own_n = np.concatenate([rng.uniform(0.8, 0.99, 60), rng.uniform(0.01, 0.06, 20)])
    student_nc = np.stack([own_n, 1 - own_n], axis=1)
    _, weights = choose("small_loss", np.zeros(80, int), student_nc)
    assert weights == [1.0] * 60 + [0.0] * 20


def noisy(rows: int = 900, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Labels of which a quarter is wrong, and a student that is mostly right."""
    rng = np.random.default_rng(7)
    gold_n = rng.integers(classes, size=rows)
    wrong_n = rng.random(rows) < 0.25
    label_n = np.where(wrong_n, (gold_n + rng.integers(1, classes, rows)) % classes, gold_n)
    logits_nc = 2.0 * np.eye(classes)[gold_n] + rng.normal(size=(rows, classes))
    exp_nc = np.exp(logits_nc)
    student_nc = (exp_nc / exp_nc.sum(axis=1, keepdims=True)).astype(np.float16)
    return label_n, student_nc.astype(np.float64)


def test_confident_learning_counts_what_cleanlab_counts() -> None:
    count = pytest.importorskip("cleanlab.count")
    label_n, student_nc = noisy()
    rows_c = np.bincount(label_n)
    state, weights = choose("confident_learning", label_n, student_nc)
    threshold_c = state.thresholds.parameters["self_confidence"]
    theirs_c = count.get_confident_thresholds(label_n, student_nc)
    assert threshold_c == pytest.approx(theirs_c, abs=1e-9)
    ours_cc = confident_joint(label_n, student_nc, threshold_c)
    plain_cc = count.compute_confident_joint(label_n, student_nc, calibrate=False)
    assert np.array_equal(ours_cc, plain_cc)
    joint_cc = count.compute_confident_joint(label_n, student_nc)
    wrong_c = wrong_by_class(ours_cc, rows_c)
    assert wrong_c == pytest.approx(rows_c - np.diag(joint_cc), abs=1)  # theirs are rounded
    left_c = np.bincount(label_n[np.array(weights) == 0], minlength=3)
    assert left_c == pytest.approx(wrong_c, abs=6)  # no more than that, by whole bins of the loss
    assert (left_c <= wrong_c + 0.5).all()


def test_a_row_that_two_classes_claim_is_of_the_likelier_one() -> None:
    threshold_c = np.array([0.2, 0.3, 0.6])
    probs_nc = np.array([[0.3, 0.6, 0.1], [0.45, 0.35, 0.2], [0.1, 0.2, 0.7], [0.1, 0.2, 0.5]])
    joint_cc = confident_joint(np.array([0, 1, 0, 0]), probs_nc, threshold_c)
    # The last row reaches no class's threshold.
    assert joint_cc.tolist() == [[0, 1, 1], [1, 0, 0], [0, 0, 0]]


def test_confident_learning_leaves_out_the_rows_that_cleanlab_does() -> None:
    pruning = pytest.importorskip("cleanlab.filter")
    label_n, student_nc = noisy()
    _, weights = choose("confident_learning", label_n, student_nc)
    theirs_n = pruning.find_label_issues(
        label_n, student_nc, filter_by="prune_by_class", n_jobs=1, min_examples_per_class=0
    )
    assert (np.array(weights) == 0).sum() > 100
    assert np.mean((np.array(weights) == 0) != theirs_n) < 0.02


def test_wrong_rows_by_class() -> None:
    # 3 of 4 confident rows of label 0 are right, of 8 rows 2 are wrong; class 1 has no confident
    # row of its own: one is taken to be right, half of 6 rows wrong
    assert wrong_by_class(np.array([[3, 1], [1, 0]]), np.array([8, 6])).tolist() == [2, 3]


def test_the_largest_losses_go_by_whole_bins() -> None:
    losses_cb = np.array([[5, 2, 2, 1], [3, 0, 0, 0]])
    # up to 3 rows: the last two bins have 3; up to 2: the last one alone; up to none: none
    assert loss_bound(losses_cb[:1], np.array([3.0])).tolist() == [2]
    assert loss_bound(losses_cb, np.array([2.0, 0.0])).tolist() == [3, 1]


@pytest.mark.parametrize("name", ["freematch", "small_loss", "confident_learning"])
def test_a_class_that_the_student_does_not_know_is_filled(name: PolicyName) -> None:
    label_n = np.array([0] * 30 + [1] * 10)
    own_n = np.linspace(0.6, 0.95, 40)
    student_nc = np.stack([own_n, 1 - own_n], axis=1)
    settings = PolicySettings(class_floor=0.2)
    _, weights = choose(name, label_n, student_nc, settings=settings)
    assert sum(w > 0 for w in weights[30:]) >= 2
