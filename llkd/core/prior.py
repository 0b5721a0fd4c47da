"""The label frequencies of a corpus, estimated without gold labels.

Batch calibration imposes label frequencies, uniform ones by default. Far from the true ones, they
give many rows of a frequent label to a rare one. Classifiers that are fitted to equally many
confident rows of each label know nothing of frequencies; expectation maximisation finds those
under which their predictions for all rows are most likely (Saerens, Latinne and Decaestecker 2002,
Adjusting the outputs of a classifier to new a priori probabilities). It takes the classifiers for
calibrated, which temperature scaling on the confident rows achieves only in part.

So the estimate has errors of its own: a classifier that hardly tells two labels apart may give one
of them most rows. It is used only where it is far from the imposed frequencies and the classifiers
agree with the teacher's confident labels; then the mean of the two is imposed. The bounds were
chosen on 156 corpora with uniform and skewed labels (docs/measurements.md).
"""

import math
from dataclasses import dataclass

import numpy as np

from llkd.core.calibration import Calibration, fit_temperature

CONFIDENT = 0.3
"""Share of the rows to fit to, the same number of each label."""
MIN_DIVERGENCE = 0.07
"""Divergence from the imposed frequencies, in nats, above which an estimate is used."""
MIN_AGREEMENT = 0.5
"""Chance-corrected agreement that the classifiers need: 0 is that of chance, 1 is perfect."""
MAX_STEPS, TOLERANCE = 500, 1e-6
"""Limits of expectation maximisation."""


@dataclass(frozen=True)
class PriorEstimate:
    """Estimated label frequencies and the evidence for them."""

    imposed_c: np.ndarray
    """The frequencies that the teacher's distributions have, shape (C,), sums to 1."""
    estimate_c: np.ndarray
    """Shape (C,), sums to 1."""
    agreement: float
    """(a - 1/C) / (1 - 1/C), a the mean over the labels of the share of their confident rows for
    which a classifier that was not fitted to them predicts that label."""
    rows: int
    """Rows of the corpus that it was estimated from."""

    @property
    def divergence(self) -> float:
        """Kullback-Leibler divergence of the estimate from the imposed frequencies, in nats."""
        estimate_c = np.maximum(self.estimate_c, 1e-12)
        ratio_c = estimate_c / np.maximum(self.imposed_c, 1e-12)
        return float((estimate_c * np.log(ratio_c)).sum())

    @property
    def accepted(self) -> bool:
        """Whether the estimate is to be used. By chance alone the divergence is about (C - 1) / 2N;
        twice that is added to the bound."""
        bound = MIN_DIVERGENCE + (len(self.estimate_c) - 1) / self.rows
        return self.divergence > bound and self.agreement >= MIN_AGREEMENT

    @property
    def prior_c(self) -> np.ndarray:
        """The frequencies to impose, shape (C,), sums to 1."""
        return (self.estimate_c + self.imposed_c) / 2 if self.accepted else self.imposed_c


def confident_rows(teacher_nc: np.ndarray) -> np.ndarray:
    """Mask of the most confident rows, bool, shape (N,): of each label ceil(CONFIDENT N / C), or all
    that there are.

    Args:
        teacher_nc: the teacher's distributions, shape (N, C).
    """
    rows, classes = teacher_nc.shape
    label_n, confidence_n = teacher_nc.argmax(axis=1), teacher_nc.max(axis=1)
    chosen_n = np.zeros(rows, dtype=bool)
    for label in range(classes):
        own = np.flatnonzero(label_n == label)
        ranked = own[np.argsort(-confidence_n[own], kind="stable")]
        chosen_n[ranked[: math.ceil(CONFIDENT * rows / classes)]] = True
    return chosen_n


def estimate_prior(
    student_nc: np.ndarray, teacher_nc: np.ndarray, chosen_n: np.ndarray
) -> PriorEstimate:
    """The label frequencies of all rows. A label without a row of its own keeps the imposed one.

    Args:
        student_nc: distributions of classifiers fitted to the labels of the chosen rows, each row by
            one that was not fitted to it, shape (N, C).
        teacher_nc: the teacher's distributions, shape (N, C).
        chosen_n: see `confident_rows`, shape (N,).
    """
    rows, classes = teacher_nc.shape
    imposed_c = teacher_nc.mean(axis=0, dtype=np.float64)
    label_m = teacher_nc[chosen_n].argmax(axis=1)
    agrees_m = student_nc[chosen_n].argmax(axis=1) == label_m
    chosen_c = np.bincount(label_m, minlength=classes)
    agreement = float(
        (np.bincount(label_m[agrees_m], minlength=classes) / np.maximum(chosen_c, 1)).mean()
    )
    logs_nc = np.log(np.maximum(student_nc.astype(np.float64), 1e-6))
    temperature = fit_temperature(logs_nc[chosen_n], np.zeros(classes), label_m)
    probs_nc = Calibration(np.zeros(classes), temperature).apply(logs_nc)
    found_c = most_likely_prior(probs_nc, chosen_c / len(label_m))
    known_share = imposed_c[chosen_c > 0].sum()
    return PriorEstimate(
        imposed_c=imposed_c,
        estimate_c=np.where(chosen_c > 0, known_share * found_c, imposed_c),
        agreement=(agreement - 1 / classes) / (1 - 1 / classes),
        rows=rows,
    )


def most_likely_prior(probs_nc: np.ndarray, fitted_c: np.ndarray) -> np.ndarray:
    """The label frequencies under which a classifier's predictions are most likely, shape (C,).

    By expectation maximisation.

    Args:
        probs_nc: its distributions, shape (N, C).
        fitted_c: label frequencies of the rows that it was fitted to, shape (C,). A label that none
            of them has gets a share of 0.
    """
    ratio_nc = np.divide(
        probs_nc, fitted_c, out=np.zeros_like(probs_nc, dtype=np.float64), where=fitted_c > 0
    )
    share_c = fitted_c
    for _ in range(MAX_STEPS):
        posterior_nc = ratio_nc * share_c
        posterior_nc /= np.maximum(posterior_nc.sum(axis=1, keepdims=True), 1e-300)
        before_c, share_c = share_c, posterior_nc.mean(axis=0)
        if np.abs(share_c - before_c).max() < TOLERANCE:
            break
    return share_c
