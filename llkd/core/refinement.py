"""Pseudo-labels refined by a classifier that has not seen the row's own label.

The teacher judges each text alone. A classifier fitted to the pseudo-labels of thousands of other
texts knows what their labels have in common, and its errors are others than the teacher's. Given
the label the two are taken as independent, so their distributions are multiplied:

    r ∝ p · q^β · exp(−bias)

p is the teacher's calibrated distribution, q the classifier's. It is cross-fitted: the texts are
split into folds, and q of a row comes from a classifier fitted to the other folds; one fitted to the
row itself would repeat its label, right or wrong. Equal texts share a fold. The classifier is fitted
to the distributions p and not to their labels, so that it is as unsure as its teacher; fitted again
to r, it is better, and so is r. The bias keeps the mean of r over the rows equal to that of p, so
that no class grows at the expense of others; or makes it equal to estimated label frequencies
(llkd/core/prior.py).

A classifier that cannot tell the classes apart agrees with the teacher on easy rows only, and a
student trained on those learns nothing beyond them. So its agreement with the teacher is checked on
the fifth of the rows with the highest confidence: it must be at least the teacher's mean confidence
there.

A product of experts, with the bias of batch calibration (arXiv 2309.17249); cross-fitting as in
confident learning (arXiv 1911.00068).
"""

import zlib
from collections.abc import Sequence
from functools import partial

import numpy as np

from llkd.core.calibration import Calibration, fit_batch_bias, marginal

FOLDS = 5
CHECKED = 0.2
"""Share of the rows, those with the highest confidence, on which the classifier's agreement is checked."""
SMALLEST_PROB = 1e-4
"""Lower bound of probabilities: a zero must not veto a label."""
GOLD_PROB = 0.999
"""Probability of a label given by hand."""


def fold_of(texts: Sequence[str]) -> np.ndarray:
    """The fold of each of N texts, int64, shape (N,), in [0, FOLDS): a hash of the text."""
    folds = (zlib.crc32(text.encode("utf-8", "surrogatepass")) % FOLDS for text in texts)
    return np.fromiter(folds, np.int64, count=len(texts))


def product(
    teacher_nc: np.ndarray, student_nc: np.ndarray, beta: float, alpha: float = 1.0
) -> np.ndarray:
    """α log p + β log q, float64, shape (N, C): r before its bias."""
    return alpha * logs(teacher_nc) + beta * logs(student_nc)


def bias_to_match(product_nc: np.ndarray, prior_c: np.ndarray) -> np.ndarray:
    """The bias, shape (C,), under which the mean of r is a prior.

    Args:
        product_nc: see `product`, shape (N, C).
        prior_c: label frequencies, shape (C,).
    """
    prior_c = np.maximum(prior_c, 1e-6)
    return fit_batch_bias(partial(marginal, product_nc), prior_c / prior_c.sum())


def refined(product_nc: np.ndarray, bias_c: np.ndarray) -> np.ndarray:
    """r, float64, shape (N, C); rows sum to 1.

    Args:
        product_nc: see `product`, shape (N, C).
        bias_c: see `bias_to_match`, shape (C,).
    """
    return Calibration(bias_c).apply(product_nc)


def with_gold(probs_nc: np.ndarray, gold_n: np.ndarray) -> np.ndarray:
    """The distributions with those of rows labelled by hand in place, float64, shape (N, C).

    Args:
        probs_nc: shape (N, C).
        gold_n: gold classes, -1 where there is none, integers, shape (N,).
    """
    known_n, classes = np.flatnonzero(gold_n >= 0), probs_nc.shape[1]
    found_nc = probs_nc.astype(np.float64)
    found_nc[known_n] = (1 - GOLD_PROB) / max(classes - 1, 1)
    found_nc[known_n, gold_n[known_n]] = GOLD_PROB
    return found_nc


def confident_agreement(student_nc: np.ndarray, teacher_nc: np.ndarray) -> tuple[float, float]:
    """(share of rows on which classifier and teacher agree, the teacher's mean confidence) among the rows
    with the highest confidence.

    Args:
        student_nc: q, shape (N, C).
        teacher_nc: p, shape (N, C).
    """
    confidence_n = teacher_nc.max(axis=1)
    checked_n = confidence_n >= np.quantile(confidence_n, 1 - CHECKED)
    agrees_n = student_nc.argmax(axis=1) == teacher_nc.argmax(axis=1)
    return float(agrees_n[checked_n].mean()), float(confidence_n[checked_n].mean())


def logs(probs_nc: np.ndarray) -> np.ndarray:
    """log p, float64, shape (N, C), with p at least SMALLEST_PROB."""
    return np.log(np.maximum(probs_nc.astype(np.float64), SMALLEST_PROB))
