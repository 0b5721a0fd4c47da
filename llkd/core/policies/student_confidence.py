"""Policies of semi-supervised learning, which select by the student's confidence.

They use the student's probability of the teacher's label, q(a); the papers use the probability of
the student's most probable label. In the papers, the student produces the labels itself; here the
teacher does, and a row whose label the student doubts has low confidence. With labels of its own,
the student would drift away from the teacher.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from llkd.core.policies.base import ROWS, SMALLEST_WEIGHT, FilledPolicy, Signals, State
from llkd.core.policies.threshold import confidence_spread, freematch_threshold, gaussian_weight
from llkd.core.tally import Tally, grid_sum
from llkd.core.thresholds import Thresholds, no_thresholds


class StudentConfidencePolicy(FilledPolicy):
    """Selects by the student's probability of the teacher's label; during the warm-up it selects
    all rows with weight 1.

    Args:
        momentum: of the moving averages over epochs, in [0, 1).
        class_floor: see FilledPolicy.
        warmup_epochs: see FilledPolicy.
        seed: unused.
    """

    uses_student_probs = True
    uses_uncertainty = True  # it comes with the student's distribution

    def __init__(
        self,
        *,
        momentum: float = 0.0,
        class_floor: float = 0.0,
        warmup_epochs: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(class_floor=class_floor, warmup_epochs=warmup_epochs, seed=seed)
        self.momentum = momentum

    def is_warm(self, epoch: int) -> bool:
        """Whether the warm-up is over."""
        return epoch >= self.warmup_epochs

    def view(self, epoch: int, signals: Signals, thresholds: Thresholds) -> Signals:
        """See Policy.view."""
        if not self.is_warm(epoch):
            return signals
        assert signals.student_nc is not None
        own_n = signals.student_nc[np.arange(len(signals.label_n)), signals.label_n]
        return replace(signals, confidence_n=own_n)

    def question(self, epoch: int, state: State, asked: Sequence[str]) -> str | None:
        """See Policy.question."""
        return ROWS if ROWS not in asked and self.is_warm(epoch) else None

    def weights(self, epoch: int, seen: Signals, thresholds: Thresholds) -> np.ndarray:
        """See Policy.weights."""
        if not self.is_warm(epoch):
            return np.ones(len(seen.label_n))
        weight_n = self.warm_weights(seen, thresholds)
        fills_n = thresholds.fills(seen.label_n, seen.confidence_n)
        return np.where(fills_n, 1.0, weight_n)

    def warm_weights(self, seen: Signals, thresholds: Thresholds) -> np.ndarray:
        """Weights before classes are filled, shape (N,); by default 1 for the rows that reach the
        confidence thresholds."""
        return thresholds.passes(seen.label_n, seen.confidence_n, None).astype(np.float64)


class FreeMatch(StudentConfidencePolicy):
    """Self-adaptive thresholds (arXiv 2205.07246): rows with q(a) >= g · l(a) / max l, where g is
    the mean of q(a) over the corpus and l(y) the mean of q(y), both moving averages over epochs."""

    def measure(self, epoch: int, question: str, signals: Signals, thresholds: Thresholds) -> Tally:
        """See Policy.measure."""
        found = super().measure(epoch, question, signals, thresholds)
        assert signals.student_nc is not None
        return Tally({**found.values, "student_c": grid_sum(signals.student_nc, axis=0)})

    def learn(self, epoch: int, question: str, total: Tally, state: State) -> State:
        """See Policy.learn."""
        state = super().learn(epoch, question, total, state)
        rows = max(int(state.statistics.rows_c.sum()), 1)
        mean = np.asarray(state.statistics.confidence_c.sum() / rows)
        found = {"mean": mean, "class_mean": total["student_c"] / rows}
        kept = mixed(state.previous, found, self.momentum)
        threshold_c = freematch_threshold(float(kept["mean"]), kept["class_mean"])
        none = no_thresholds(len(threshold_c))
        thresholds = replace(none, confidence_c=threshold_c, parameters=kept)
        return replace(state, thresholds=thresholds)


class SoftMatch(StudentConfidencePolicy):
    """Every row, weighted by the truncated Gaussian of q(a) (arXiv 2301.10921): 1 at or above the
    mean, decreasing below it. Mean and variance are moving averages over epochs."""

    def measure(self, epoch: int, question: str, signals: Signals, thresholds: Thresholds) -> Tally:
        """See Policy.measure."""
        found = super().measure(epoch, question, signals, thresholds)
        own_n = self.view(epoch, signals, thresholds).confidence_n.astype(np.float64)
        return Tally({**found.values, "squares": grid_sum(own_n**2)})

    def learn(self, epoch: int, question: str, total: Tally, state: State) -> State:
        """See Policy.learn."""
        state = super().learn(epoch, question, total, state)
        spread = confidence_spread(state.statistics, float(total["squares"]))
        kept = mixed(state.previous, {"confidence_spread": spread}, self.momentum)
        return replace(state, thresholds=replace(state.thresholds, parameters=kept))

    def warm_weights(self, seen: Signals, thresholds: Thresholds) -> np.ndarray:
        """See StudentConfidencePolicy.warm_weights."""
        weight_n = gaussian_weight(seen.confidence_n, thresholds.parameters["confidence_spread"])
        return np.maximum(weight_n, SMALLEST_WEIGHT)


def mixed(
    previous: Thresholds | None, found: dict[str, np.ndarray], momentum: float
) -> dict[str, np.ndarray]:
    """Moving averages of parameters by name; a new parameter keeps its value."""
    before = {} if previous is None else previous.parameters
    return {
        name: momentum * before[name] + (1 - momentum) * value if name in before else value
        for name, value in found.items()
    }
