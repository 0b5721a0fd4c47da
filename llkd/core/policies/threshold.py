"""Selection by thresholds of the teacher's confidence and the student's uncertainty."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from llkd.core.policies.base import ROWS, SMALLEST_WEIGHT, FilledPolicy, Signals, State
from llkd.core.policy_names import ThresholdKind, WeightKind
from llkd.core.statistics import ClassStatistics, confidence_of_top, count_by
from llkd.core.tally import Tally, grid_sum
from llkd.core.thresholds import Thresholds, moving_average, no_thresholds
from llkd.core.uncertainty import p_log_p

UNCERTAINTY_BINS = 256
"""Equal bins of the uncertainty histogram that quantiles are read off."""


@dataclass(frozen=True)
class Rule:
    """How thresholds and weights are computed, for both signals."""

    thresholds: ThresholdKind = "class_mean"
    """`class_mean`: the mean over the rows of the same pseudo-label. `freematch`: the mean over
    all rows, times the class's own share of the signal over the largest (arXiv 2205.07246,
    equations 5 to 7). `quantile`: reached by `fraction` of the rows of the same pseudo-label.
    `fixed`: `confidence` and `uncertainty`."""
    fraction: float = 0.25
    confidence: float = 0.5
    uncertainty: float = 0.5
    momentum: float = 0.0
    """Momentum of the thresholds' moving average over epochs, in [0, 1)."""
    weights: WeightKind = "product"
    """Weight of a selected row: 1; confidence times uncertainty; their sum; or the truncated
    Gaussian of its confidence (arXiv 2301.10921, equation 8). Unused signals do not enter."""


class ThresholdPolicy(FilledPolicy):
    """Rows whose signals reach the thresholds of their class, filled up to a floor by class.

    The method of LLKD (arXiv 2411.08028): c >= mean c and u >= mean u over the rows with the
    same pseudo-label. Either side can be switched off, which gives the two one-sided baselines.

    Args:
        teacher_side: require c >= its threshold.
        student_side: require u >= its threshold.
        rule: how to compute thresholds and weights.
        warmup_epochs: first epochs, without the student's side: a cold student's uncertainty is
            noise.
        class_floor: minimum share of each class's rows to select, in [0, 1].
        seed: unused; the policy draws nothing at random.
    """

    def __init__(
        self,
        *,
        teacher_side: bool,
        student_side: bool,
        rule: Rule,
        warmup_epochs: int = 1,
        class_floor: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(class_floor=class_floor, warmup_epochs=warmup_epochs, seed=seed)
        self.teacher_side = teacher_side
        self.student_side = student_side
        self.rule = rule
        self.uses_uncertainty = student_side
        if rule.thresholds == "freematch":
            self.uses_student_probs = student_side
            self.uses_teacher_probs = teacher_side

    def full_epochs(self, epochs: int) -> int:
        """See Policy.full_epochs: once the student's side applies, few rows are left."""
        return max(self.warmup_epochs, 1) if self.student_side else epochs

    def _uses_student(self, epoch: int) -> bool:
        return self.student_side and epoch >= self.warmup_epochs

    def _needs_pass(self, epoch: int) -> bool:
        """Whether the rule needs more than sums and confidence histograms by class."""
        kind = self.rule.thresholds
        return (
            kind == "freematch"
            or (kind == "quantile" and self._uses_student(epoch))
            or self.rule.weights == "softmatch"
        )

    def question(self, epoch: int, state: State, asked: Sequence[str]) -> str | None:
        """See Policy.question."""
        return ROWS if ROWS not in asked and self._needs_pass(epoch) else None

    def measure(self, epoch: int, question: str, signals: Signals, thresholds: Thresholds) -> Tally:
        """See Policy.measure."""
        seen = self.view(epoch, signals, thresholds)
        sums = dict(vars(self.class_statistics(seen, thresholds)))
        sums["squares"] = grid_sum(seen.confidence_n.astype(np.float64) ** 2)
        if self.rule.thresholds == "freematch" and seen.teacher_nc is not None:
            sums["teacher_c"] = grid_sum(seen.teacher_nc, axis=0)
        if self._uses_student(epoch) and self.rule.thresholds == "freematch":
            assert seen.student_nc is not None
            sums["student_c"] = grid_sum(entropy_terms(seen.student_nc), axis=0)
        if self._uses_student(epoch) and self.rule.thresholds == "quantile":
            assert seen.uncertainty_n is not None
            classes = len(thresholds.floor_c)
            sums["uncertainty_cb"] = uncertainty_histogram(
                seen.label_n, seen.uncertainty_n, classes
            )
        return Tally(sums)

    def learn(self, epoch: int, question: str, total: Tally, state: State) -> State:
        """See Policy.learn."""
        state = super().learn(epoch, question, total, state)
        thresholds = self._thresholds(epoch, state.statistics, state.previous, total)
        spread = confidence_spread(state.statistics, float(total["squares"]))
        kept = {**state.thresholds.parameters, "confidence_spread": spread}
        return replace(state, thresholds=replace(thresholds, parameters=kept))

    def thresholds(
        self, epoch: int, statistics: ClassStatistics, previous: Thresholds | None
    ) -> Thresholds:
        """The thresholds of the signals in use, averaged over epochs, from the class statistics."""
        return self._thresholds(epoch, statistics, previous, Tally({}))

    def _thresholds(
        self,
        epoch: int,
        statistics: ClassStatistics,
        previous: Thresholds | None,
        measured: Tally,
    ) -> Thresholds:
        none = no_thresholds(len(statistics.rows_c))
        confidence_c, uncertainty_c = none.confidence_c, none.uncertainty_c
        if self.teacher_side:
            confidence_c = averaged(
                None if previous is None else previous.confidence_c,
                self._confidence_threshold(statistics, measured),
                self.rule.momentum,
            )
        if self._uses_student(epoch):
            uncertainty_c = averaged(
                None if previous is None else previous.uncertainty_c,
                self._uncertainty_threshold(statistics, measured),
                self.rule.momentum,
            )
        return Thresholds(confidence_c, uncertainty_c, none.floor_c)

    def _confidence_threshold(self, statistics: ClassStatistics, measured: Tally) -> np.ndarray:
        """Shape (C,); NaN for a class without rows."""
        kind, rows_c = self.rule.thresholds, statistics.rows_c
        if kind == "freematch" and "teacher_c" in measured:
            mean = _mean(statistics.confidence_c, rows_c)
            return freematch_threshold(mean, measured["teacher_c"])
        if kind == "quantile":
            counted_c = statistics.histogram_cb.sum(axis=1)
            wanted_c = np.ceil(self.rule.fraction * counted_c - 1e-9)
            return _known(confidence_of_top(statistics.histogram_cb, wanted_c), counted_c)
        if kind == "fixed":
            return np.full(len(rows_c), self.rule.confidence)
        return statistics.mean_confidence_c

    def _uncertainty_threshold(self, statistics: ClassStatistics, measured: Tally) -> np.ndarray:
        """Shape (C,); NaN for a class without rows."""
        kind, rows_c = self.rule.thresholds, statistics.rows_c
        if kind == "freematch" and "student_c" in measured:
            mean = _mean(statistics.uncertainty_c, rows_c)
            return freematch_threshold(mean, measured["student_c"])
        if kind == "quantile" and "uncertainty_cb" in measured:
            wanted_c = np.ceil(self.rule.fraction * rows_c - 1e-9)
            return _known(uncertainty_of_top(measured["uncertainty_cb"], wanted_c), rows_c)
        if kind == "fixed":
            return np.full(len(rows_c), self.rule.uncertainty)
        return statistics.mean_uncertainty_c

    def weights(self, epoch: int, seen: Signals, thresholds: Thresholds) -> np.ndarray:
        """See Policy.weights."""
        uncertainty_n = seen.uncertainty_n if self._uses_student(epoch) else None
        chosen_n = thresholds.passes(seen.label_n, seen.confidence_n, uncertainty_n)
        if self.rule.weights == "none":
            return chosen_n.astype(np.float64)
        if self.rule.weights == "softmatch":
            weight_n = gaussian_weight(
                seen.confidence_n, thresholds.parameters["confidence_spread"]
            )
        else:
            weight_n = self._signal_weight(seen, uncertainty_n, thresholds)
        return np.where(chosen_n, np.maximum(weight_n, SMALLEST_WEIGHT), 0.0)

    def _signal_weight(
        self, seen: Signals, uncertainty_n: np.ndarray | None, thresholds: Thresholds
    ) -> np.ndarray:
        """The product or the sum of the signals in use, shape (N,)."""
        signals: list[np.ndarray] = [seen.confidence_n] if self.teacher_side else []
        if uncertainty_n is not None:
            # A row that fills its class is weighted by confidence alone: it was selected for it,
            # and its uncertainty may be close to zero.
            fills_n = thresholds.fills(seen.label_n, seen.confidence_n)
            neutral = 1.0 if self.rule.weights == "product" else 0.0
            signals.append(np.where(fills_n, neutral, uncertainty_n))
        if not signals:
            return np.ones(len(seen.label_n))
        return np.asarray(
            np.prod(signals, axis=0) if self.rule.weights == "product" else np.sum(signals, axis=0)
        )


def freematch_threshold(mean: float, class_c: np.ndarray) -> np.ndarray:
    """g · l(y) / max l, shape (C,): g the mean of a signal over all rows, l(y) its class term.

    Self-adaptive thresholds (arXiv 2205.07246, equation 7). All zero if all class terms are.

    Args:
        mean: of the signal over all rows.
        class_c: mean or sum of each class's term of the signal over all rows, shape (C,).
    """
    return np.asarray(mean * class_c / max(float(class_c.max()), 1e-30))


def entropy_terms(probs_nc: np.ndarray) -> np.ndarray:
    """−q log q / log C of each class, whose sum is the entropy: shape (N, C)."""
    return np.asarray(-p_log_p(probs_nc) / np.log(probs_nc.shape[1]))


def uncertainty_histogram(
    label_n: np.ndarray, uncertainty_n: np.ndarray, classes: int
) -> np.ndarray:
    """Rows by pseudo-label and uncertainty bin, int64, shape (C, UNCERTAINTY_BINS)."""
    bin_n = (uncertainty_n.astype(np.float64) * UNCERTAINTY_BINS).astype(np.int64)
    bin_n = np.minimum(bin_n, UNCERTAINTY_BINS - 1)
    return count_by((classes, UNCERTAINTY_BINS), label_n, bin_n)


def uncertainty_of_top(histogram_cb: np.ndarray, wanted_c: np.ndarray) -> np.ndarray:
    """The uncertainty that at least the wanted rows of a class reach, shape (C,): the lower edge
    of a bin, so slightly more rows can reach it."""
    from_top_cb = np.cumsum(histogram_cb[:, ::-1], axis=1)[:, ::-1]
    enough_cb = from_top_cb >= np.maximum(wanted_c, 1)[:, None]
    return np.asarray(np.maximum(enough_cb.sum(axis=1) - 1, 0) / UNCERTAINTY_BINS)


def confidence_spread(statistics: ClassStatistics, squares: float) -> np.ndarray:
    """(mean, variance) of the confidence over all rows, from its sums and its sum of squares."""
    rows = max(int(statistics.rows_c.sum()), 1)
    mean = float(statistics.confidence_c.sum()) / rows
    return np.array([mean, max(squares / rows - mean**2, 0.0)])


def gaussian_weight(confidence_n: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """The truncated Gaussian of SoftMatch (arXiv 2301.10921, equation 8), shape (N,): 1 at or above
    the mean confidence, exp(−(c − mean)² / (2 variance)) below it.

    Args:
        confidence_n: shape (N,).
        spread: (mean, variance).
    """
    mean, variance = float(spread[0]), max(float(spread[1]), 1e-12)
    below_n = np.minimum(confidence_n.astype(np.float64) - mean, 0.0)
    return np.exp(-(below_n**2) / (2 * variance))


def averaged(previous_c: np.ndarray | None, observed_c: np.ndarray, momentum: float) -> np.ndarray:
    """The moving average, without a threshold for a class never observed."""
    if previous_c is not None:
        previous_c = np.where(np.isfinite(previous_c), previous_c, np.nan)
    averaged_c = moving_average(previous_c, observed_c, momentum)
    return np.where(np.isnan(averaged_c), -np.inf, averaged_c)


def _known(threshold_c: np.ndarray, rows_c: np.ndarray) -> np.ndarray:
    return np.where(rows_c > 0, threshold_c, np.nan)


def _mean(total_c: np.ndarray, rows_c: np.ndarray) -> float:
    return float(total_c.sum() / max(int(rows_c.sum()), 1))
