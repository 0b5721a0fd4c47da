"""The student's uncertainty about each row, from its distribution over the labels."""

from collections.abc import Callable

import numpy as np


def entropy(probs_nc: np.ndarray) -> np.ndarray:
    """Shannon entropy of each row, divided by log C: shape (N,), in [0, 1]."""
    return np.clip(-p_log_p(probs_nc).sum(axis=1) / np.log(probs_nc.shape[1]), 0.0, 1.0)


def p_log_p(probs_nc: np.ndarray) -> np.ndarray:
    """p log p of each probability, 0 for p = 0: float64, shape (N, C)."""
    probs_nc = probs_nc.astype(np.float64)
    return np.asarray(probs_nc * np.log(np.where(probs_nc > 0, probs_nc, 1.0)))


def least_confidence(probs_nc: np.ndarray) -> np.ndarray:
    """One minus the largest probability: shape (N,), in [0, 1 - 1/C]."""
    return 1.0 - probs_nc.max(axis=1).astype(np.float64)


def margin(probs_nc: np.ndarray) -> np.ndarray:
    """One minus the gap between the two largest probabilities: shape (N,), in [0, 1]."""
    top_two = np.partition(probs_nc.astype(np.float64), -2, axis=1)[:, -2:]
    return 1.0 - (top_two[:, 1] - top_two[:, 0])


MEASURES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "entropy": entropy,
    "least_confidence": least_confidence,
    "margin": margin,
}
"""By the name used in `selection.uncertainty`."""
