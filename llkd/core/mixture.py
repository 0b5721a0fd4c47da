"""Two normal distributions fitted to a histogram."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Mixture:
    """Two components, the one with the smaller mean first."""

    share_2: np.ndarray
    """Share of the rows, shape (2,), sums to 1."""
    mean_2: np.ndarray
    """Shape (2,), ascending."""
    variance_2: np.ndarray
    """Shape (2,), positive."""

    def first(self, value_n: np.ndarray) -> np.ndarray:
        """Posterior probability of the first component: shape (N,)."""
        return np.asarray(_posterior(value_n, self.share_2, self.mean_2, self.variance_2)[0])


def fit_two_normals(
    value_b: np.ndarray, count_b: np.ndarray, steps: int = 100, tolerance: float = 1e-4
) -> Mixture:
    """Expectation maximisation, initialised with the lower and the upper half of the rows.

    The variance within a bin bounds a component's variance from below, so that none collapses to a
    point.

    Args:
        value_b: the centres of B equal bins, shape (B,), ascending.
        count_b: rows in each bin, shape (B,), not all zero.
        steps: maximum number of steps.
        tolerance: stop when no mean moves by more than this share of the range.
    """
    width = value_b[1] - value_b[0]
    least = width**2 / 12
    weight_b = count_b / count_b.sum()
    below_b = np.cumsum(weight_b) - weight_b / 2
    lower_b = np.where(below_b < 0.5, 1.0, 0.0)
    if not 1e-9 < (weight_b * lower_b).sum() < 1 - 1e-9:
        lower_b = np.full(len(value_b), 0.5)  # all rows in one bin: one component
    post_2b = np.stack([lower_b, 1 - lower_b])
    mean_2 = np.zeros(2)
    for _ in range(steps):
        share_2 = np.maximum((post_2b * weight_b).sum(axis=1), 1e-9)
        moved_2 = (post_2b * weight_b * value_b).sum(axis=1) / share_2
        away_2b = (value_b - moved_2[:, None]) ** 2
        variance_2 = np.maximum((post_2b * weight_b * away_2b).sum(axis=1) / share_2, least)
        share_2 = share_2 / share_2.sum()
        converged = np.abs(moved_2 - mean_2).max() <= tolerance * width * len(value_b)
        mean_2 = moved_2
        if converged:
            break
        post_2b = _posterior(value_b, share_2, mean_2, variance_2)
    order = np.argsort(mean_2, kind="stable")
    return Mixture(share_2[order], mean_2[order], variance_2[order])


def _posterior(
    value_n: np.ndarray, share_2: np.ndarray, mean_2: np.ndarray, variance_2: np.ndarray
) -> np.ndarray:
    """The probability of each component, shape (2, N)."""
    away_2n = (value_n - mean_2[:, None]) ** 2 / variance_2[:, None]
    log_2n = np.log(np.maximum(share_2, 1e-30) / np.sqrt(variance_2))[:, None] - away_2n / 2
    log_2n -= log_2n.max(axis=0)
    found_2n = np.exp(log_2n)
    return np.asarray(found_2n / found_2n.sum(axis=0))
