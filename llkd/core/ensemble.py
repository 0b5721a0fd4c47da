"""Combines the distributions of several teachers."""

from collections.abc import Sequence

import numpy as np

from llkd.core.uncertainty import p_log_p

SMALLEST_PROB = 1e-12
"""Lower bound of probabilities: a teacher's zero must not veto a label."""


def combine_distributions(
    probs_tnc: Sequence[np.ndarray], weight_t: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """The normalised weighted geometric mean, and the teachers' disagreement.

    The disagreement is the generalised Jensen-Shannon divergence (Lin, 1991): the entropy of the
    weighted arithmetic mean minus the weighted mean of the entropies, divided by log C.

    Args:
        probs_tnc: T arrays of distributions, each of shape (N, C).
        weight_t: T weights, positive.

    Returns:
        Log-probabilities, float32, shape (N, C); and disagreement, float32, shape (N,), in [0, 1].
    """
    share_t = np.asarray(weight_t, dtype=np.float64) / np.sum(weight_t)
    floored = [np.maximum(probs_nc.astype(np.float64), SMALLEST_PROB) for probs_nc in probs_tnc]
    log_nc = sum(share * np.log(p_nc) for share, p_nc in zip(share_t, floored, strict=True))
    log_nc -= np.logaddexp.reduce(log_nc, axis=1, keepdims=True)
    mean_nc = sum(share * p_nc for share, p_nc in zip(share_t, floored, strict=True))
    apart_n = sum(share * _entropy(p_nc) for share, p_nc in zip(share_t, floored, strict=True))
    classes = floored[0].shape[1]
    disagreement_n = np.clip((_entropy(mean_nc) - apart_n) / np.log(classes), 0.0, 1.0)
    return log_nc.astype(np.float32), disagreement_n.astype(np.float32)


def _entropy(probs_nc: np.ndarray) -> np.ndarray:
    return np.asarray(-p_log_p(probs_nc).sum(axis=1))
