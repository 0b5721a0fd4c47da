"""The confident rows of one part of the corpus per epoch, for refined labels."""

from collections.abc import Sequence

import numpy as np

from llkd.core.draws import uniform_by_position
from llkd.core.policies.base import ROWS, Choice, Signals, State
from llkd.core.policies.threshold import Rule, ThresholdPolicy
from llkd.core.policy_names import WeightKind
from llkd.core.tally import Tally
from llkd.core.thresholds import Thresholds

_STREAM = 0x6A7D5EED
"""Separates this draw from those of other policies with the same seed."""


class Refined(ThresholdPolicy):
    """All but the least confident rows of each class, in one part of the corpus per epoch.

    Epoch n trains on part n modulo `parts`, so that a pass over the corpus is spread over the epochs.
    The labels are refined before the first epoch; see llkd/core/refinement.py.

    Args:
        parts: number of random parts of the corpus, at least 1.
        keep: share of each class's rows to select, the most confident first.
        weights: see Rule.
        momentum: see Rule.
        warmup_epochs: see ThresholdPolicy.
        class_floor: see ThresholdPolicy.
        seed: of the parts.
    """

    def __init__(
        self,
        *,
        parts: int = 4,
        keep: float = 0.9,
        weights: WeightKind = "product",
        momentum: float = 0.0,
        warmup_epochs: int = 1,
        class_floor: float = 0.0,
        seed: int = 0,
    ) -> None:
        rule = Rule(thresholds="quantile", fraction=keep, weights=weights, momentum=momentum)
        super().__init__(
            teacher_side=True, student_side=False, rule=rule, warmup_epochs=warmup_epochs,
            class_floor=class_floor, seed=seed,
        )  # fmt: skip
        self.parts = parts

    def question(self, epoch: int, state: State, asked: Sequence[str]) -> str | None:
        """See Policy.question."""
        return None if ROWS in asked else ROWS

    def measure(self, epoch: int, question: str, signals: Signals, thresholds: Thresholds) -> Tally:
        """See Policy.measure; confidences are counted in the epoch's part, which fills a class."""
        found = super().measure(epoch, question, signals, thresholds)
        part = signals.of(self._in_part(epoch, signals))
        of_part = self.class_statistics(part, thresholds)
        return Tally({**found.values, "histogram_cb": of_part.histogram_cb})

    def choose(self, epoch: int, signals: Signals, thresholds: Thresholds) -> Choice:
        """See Policy.choose: only rows of the epoch's part, also to fill a class."""
        chosen = super().choose(epoch, signals, thresholds)
        return chosen.without(~self._in_part(epoch, signals))

    def _in_part(self, epoch: int, signals: Signals) -> np.ndarray:
        """Mask of the rows of the epoch's part: bool, shape (N,)."""
        draw_n = uniform_by_position(signals.position_n, self.seed, _STREAM)
        return np.asarray(np.floor(draw_n * self.parts) == epoch % self.parts)
