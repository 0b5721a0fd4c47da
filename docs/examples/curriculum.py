"""A policy: the teacher's surest rows first, more of them each epoch.

selection: {policy: "docs.examples.curriculum:Curriculum", fraction: 0.25}
"""

from dataclasses import replace

import numpy as np

from llkd.core.policies import Policy, PolicySettings, Signals
from llkd.core.statistics import ClassStatistics, confidence_of_top
from llkd.core.thresholds import Thresholds, no_thresholds


class Curriculum(Policy):
    """Epoch e trains on the most confident min(1, fraction × (e + 1)) of each class, weight 1."""

    def __init__(self, settings: PolicySettings) -> None:
        super().__init__(settings.seed)
        self._fraction = settings.rule.fraction

    def thresholds(
        self, epoch: int, statistics: ClassStatistics, previous: Thresholds | None
    ) -> Thresholds:
        """From what is known of all shards: the confidence that so many rows of a class reach."""
        wanted_c = np.ceil(min(1.0, self._fraction * (epoch + 1)) * statistics.rows_c)
        bar_c = confidence_of_top(statistics.histogram_cb, wanted_c)
        return replace(no_thresholds(len(bar_c)), confidence_c=bar_c)

    def weights(self, epoch: int, seen: Signals, thresholds: Thresholds) -> np.ndarray:
        """Of one shard's rows: 1 to train on the row, 0 to leave it out."""
        return thresholds.passes(seen.label_n, seen.confidence_n, None).astype(np.float64)
