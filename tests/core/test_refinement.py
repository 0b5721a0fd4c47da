"""Refined distributions, by numbers worked out by hand."""

import numpy as np
import pytest

from llkd.core.refinement import (
    FOLDS,
    bias_to_match,
    confident_agreement,
    fold_of,
    product,
    refined,
)

TEACHER = np.array([[0.6, 0.4]])
STUDENT = np.array([[0.2, 0.8]])
NO_BIAS = np.zeros(2)


def test_the_product_of_teacher_and_student() -> None:
    # 0.6 * 0.2 against 0.4 * 0.8
    both_nc = refined(product(TEACHER, STUDENT, 1.0), NO_BIAS)
    assert both_nc[0] == pytest.approx([0.12 / 0.44, 0.32 / 0.44])
    # the student's root
    root = np.sqrt([0.2, 0.8]) * [0.6, 0.4]
    assert refined(product(TEACHER, STUDENT, 0.5), NO_BIAS)[0] == pytest.approx(root / root.sum())
    # a bias of log 4 takes a quarter of the second class's weight
    biased_nc = refined(product(TEACHER, STUDENT, 1.0), np.array([0.0, np.log(4)]))
    assert biased_nc[0] == pytest.approx([0.6, 0.4])


def test_without_weight_the_teachers_distribution_stays() -> None:
    assert refined(product(TEACHER, STUDENT, 0.0), NO_BIAS) == pytest.approx(TEACHER)


def test_agreement_counts_the_most_confident_fifth_alone() -> None:
    confidence_n = np.array([0.9, 0.8, *[0.6] * 8])
    teacher_nc = np.stack([confidence_n, 1 - confidence_n], axis=1)
    student_nc = np.tile([0.3, 0.7], (10, 1))
    student_nc[1] = [0.7, 0.3]
    assert confident_agreement(student_nc, teacher_nc) == pytest.approx((0.5, 0.85))


def test_a_zero_does_not_veto_a_label() -> None:
    found = refined(product(TEACHER, np.array([[0.0, 1.0]]), 1.0), NO_BIAS)
    assert 1e-5 < found[0, 0] < 1e-3


def test_the_bias_keeps_the_mean_of_each_class() -> None:
    random = np.random.default_rng(0)
    teacher_nc = random.dirichlet([4, 2, 1], 500)
    student_nc = random.dirichlet([1, 1, 6], 500)  # it has a favourite
    product_nc = product(teacher_nc, student_nc, 1.0)
    free_c = refined(product_nc, np.zeros(3)).mean(axis=0)
    kept_c = refined(product_nc, bias_to_match(product_nc, teacher_nc.mean(axis=0))).mean(axis=0)
    assert np.abs(free_c - teacher_nc.mean(axis=0)).max() > 0.1
    assert kept_c == pytest.approx(teacher_nc.mean(axis=0), rel=2e-3)


def test_a_fold_depends_on_the_text_alone() -> None:
    texts = [f"text {i}" for i in range(1000)]
    fold_n = fold_of(texts)
    assert np.array_equal(fold_of([*texts, *texts]), np.tile(fold_n, 2))
    assert np.array_equal(fold_of(texts[::-1]), fold_n[::-1])
    assert np.bincount(fold_n, minlength=FOLDS).min() > 150
    assert fold_of(["\ud800"]).shape == (1,)  # half a surrogate pair
    assert fold_of([]).shape == (0,)
