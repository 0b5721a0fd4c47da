"""Baseline policies: all rows, and a random share of them."""

import numpy as np

from llkd.core.draws import uniform_by_position
from llkd.core.policies.base import Policy, Signals
from llkd.core.thresholds import Thresholds


class SelectAll(Policy):
    """Every row, weight 1."""

    def weights(self, epoch: int, seen: Signals, thresholds: Thresholds) -> np.ndarray:
        """See Policy.weights."""
        return np.ones(len(seen.label_n))


class SelectRandom(Policy):
    """A fresh uniform draw of a share of the rows each epoch, weight 1."""

    def __init__(self, fraction: float, seed: int = 0) -> None:
        super().__init__(seed)
        self.fraction = fraction

    def weights(self, epoch: int, seen: Signals, thresholds: Thresholds) -> np.ndarray:
        """See Policy.weights."""
        draw_n = uniform_by_position(seen.position_n, self.seed, epoch)
        return (draw_n < self.fraction).astype(np.float64)
