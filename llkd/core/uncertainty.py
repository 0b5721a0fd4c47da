"""The student's uncertainty about each row, from its distribution over the labels."""

from collections.abc import Callable

import numpy as np


def entropy(probs_nc: np.ndarray) -> np.ndarray:
    """Shannon entropy of each row, divided by log C: shape (N,), in [0, 1]."""
    probs_nc = probs_nc.astype(np.float64)
    terms_nc = probs_nc * np.log(np.where(probs_nc > 0, probs_nc, 1.0))
    return np.clip(-terms_nc.sum(axis=1) / np.log(probs_nc.shape[1]), 0.0, 1.0)


def least_confidence(probs_nc: np.ndarray) -> np.ndarray:
    """One minus the largest probability: shape (N,), in [0, 1 - 1/C]."""
    return 1.0 - probs_nc.max(axis=1).astype(np.float64)


def margin(probs_nc: np.ndarray) -> np.ndarray:
    """One minus the gap between the two largest probabilities: shape (N,), in [0, 1]."""
    top_two = np.partition(probs_nc.astype(np.float64), -2, axis=1)[:, -2:]
    return 1.0 - (top_two[:, 1] - top_two[:, 0])


def running_mean(mean_nc: np.ndarray, found_nc: np.ndarray, count: int) -> np.ndarray:
    """The mean of distributions over one more epoch: float16, shape (N, C).

    Args:
        mean_nc: over the epochs before, shape (N, C).
        found_nc: of this epoch, shape (N, C).
        count: epochs before.
    """
    mean_nc = mean_nc.astype(np.float64)
    return np.asarray(mean_nc + (found_nc - mean_nc) / (count + 1), dtype=np.float16)


MEASURES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "entropy": entropy,
    "least_confidence": least_confidence,
    "margin": margin,
}
"""By the name used in `selection.uncertainty`."""
