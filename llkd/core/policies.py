"""Which rows the student trains on in an epoch, and with what weight.

A policy sees a shard only through its signals: pseudo-label a, the teacher's confidence c, the
student's uncertainty u, and the row's position in the corpus. It works in two steps: thresholds
from the merged statistics of all shards, then the weights of one shard's rows.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from llkd.core.statistics import ClassStatistics, confidence_of_top
from llkd.core.thresholds import Thresholds, moving_average, no_thresholds


@dataclass(frozen=True)
class Signals:
    """What a policy may know of N rows."""

    label_n: np.ndarray
    """Pseudo-labels, integers, shape (N,)."""
    confidence_n: np.ndarray
    """The teacher's confidence in them, shape (N,), in [0, 1]."""
    uncertainty_n: np.ndarray | None
    """The student's uncertainty, shape (N,), in [0, 1]; None if not measured."""
    position_n: np.ndarray
    """Positions in the corpus, int64, shape (N,): the source of randomness, so that a draw does
    not depend on how the corpus is cut into shards."""


class Policy(ABC):
    """The interface; `seed` fixes everything random."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    uses_uncertainty: bool = False
    """Whether the student has to score the corpus each epoch."""

    def thresholds(
        self, epoch: int, statistics: ClassStatistics, previous: Thresholds | None
    ) -> Thresholds:
        """The thresholds of an epoch, given those of the epoch before it."""
        return no_thresholds(len(statistics.rows_c))

    @abstractmethod
    def weights(self, epoch: int, signals: Signals, thresholds: Thresholds) -> np.ndarray:
        """Each row's weight in the loss, float64, shape (N,); 0 leaves the row out."""

    def fill(
        self, statistics: ClassStatistics, selected_c: np.ndarray, thresholds: Thresholds
    ) -> Thresholds | None:
        """Wider thresholds if a class fell short of its floor, else None."""
        return None


class SelectAll(Policy):
    """Every row, weight 1."""

    def weights(self, epoch: int, signals: Signals, thresholds: Thresholds) -> np.ndarray:
        """See Policy.weights."""
        return np.ones(len(signals.label_n))


class SelectRandom(Policy):
    """A fresh uniform draw of a share of the rows each epoch, weight 1."""

    def __init__(self, fraction: float, seed: int = 0) -> None:
        super().__init__(seed)
        self.fraction = fraction

    def weights(self, epoch: int, signals: Signals, thresholds: Thresholds) -> np.ndarray:
        """See Policy.weights."""
        draw_n = uniform_by_position(signals.position_n, self.seed, epoch)
        return (draw_n < self.fraction).astype(np.float64)


class ThresholdPolicy(Policy):
    """Rows whose signals reach their class's mean, filled up to a floor by class.

    The method of LLKD (arXiv 2411.08028): c >= mean c and u >= mean u over the rows with the
    same pseudo-label. Either side can be switched off, which gives the two one-sided baselines.

    Args:
        teacher_side: ask for c >= its threshold.
        student_side: ask for u >= its threshold.
        momentum: of the thresholds' moving average over epochs, in [0, 1).
        warmup_epochs: epochs in which the student's side is not asked, for a cold student's
            uncertainty is noise.
        class_floor: least share of each class's rows to select, in [0, 1].
        product_weights: weight rows by c times u (by what is in use of the two), else by 1.
        seed: not used; the policy has nothing random.
    """

    def __init__(
        self,
        *,
        teacher_side: bool,
        student_side: bool,
        momentum: float = 0.0,
        warmup_epochs: int = 1,
        class_floor: float = 0.0,
        product_weights: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        self.teacher_side = teacher_side
        self.student_side = student_side
        self.momentum = momentum
        self.warmup_epochs = warmup_epochs
        self.class_floor = class_floor
        self.product_weights = product_weights
        self.uses_uncertainty = student_side

    def _student_speaks(self, epoch: int) -> bool:
        return self.student_side and epoch >= self.warmup_epochs

    def thresholds(
        self, epoch: int, statistics: ClassStatistics, previous: Thresholds | None
    ) -> Thresholds:
        """Class means of the sides in use, averaged over epochs."""
        none = no_thresholds(len(statistics.rows_c))
        confidence_c, uncertainty_c = none.confidence_c, none.uncertainty_c
        if self.teacher_side:
            confidence_c = _averaged(
                None if previous is None else previous.confidence_c,
                statistics.mean_confidence_c,
                self.momentum,
            )
        if self._student_speaks(epoch):
            uncertainty_c = _averaged(
                None if previous is None else previous.uncertainty_c,
                statistics.mean_uncertainty_c,
                self.momentum,
            )
        return Thresholds(confidence_c, uncertainty_c, none.floor_c)

    def weights(self, epoch: int, signals: Signals, thresholds: Thresholds) -> np.ndarray:
        """See Policy.weights."""
        uncertainty_n = signals.uncertainty_n if self._student_speaks(epoch) else None
        chosen_n = thresholds.passes(signals.label_n, signals.confidence_n, uncertainty_n)
        if not self.product_weights:
            return chosen_n.astype(np.float64)
        weight_n = np.ones(len(chosen_n))
        if self.teacher_side:
            weight_n = weight_n * signals.confidence_n
        if uncertainty_n is not None:
            # A row that only fills its class counts by its confidence: it is there because the
            # teacher is sure, and its uncertainty may be next to nothing.
            fills_n = thresholds.fills(signals.label_n, signals.confidence_n)
            weight_n = weight_n * np.where(fills_n, 1.0, uncertainty_n)
        return np.where(chosen_n, np.maximum(weight_n, SMALLEST_WEIGHT), 0.0)

    def fill(
        self, statistics: ClassStatistics, selected_c: np.ndarray, thresholds: Thresholds
    ) -> Thresholds | None:
        """See Policy.fill."""
        wanted_c = np.ceil(self.class_floor * statistics.rows_c).astype(np.int64)
        if self.class_floor > 0:
            wanted_c = np.minimum(np.maximum(wanted_c, 1), statistics.rows_c)
        short_c = selected_c < wanted_c
        if not short_c.any():
            return None
        floor_c = confidence_of_top(statistics.histogram_cb, np.where(short_c, wanted_c, 0))
        return thresholds.with_floor(floor_c)


SMALLEST_WEIGHT = 1e-6
"""A selected row keeps at least this weight, so that zero means left out and nothing else."""


def uniform_by_position(position_n: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Uniform numbers in [0, 1), one a position, by the SplitMix64 mixer: shape (N,)."""
    with np.errstate(over="ignore"):
        key = _mix(_mix(np.uint64(seed) + _GOLDEN) + np.uint64(epoch) * _GOLDEN)
        mixed_n = _mix(position_n.astype(np.uint64) * _GOLDEN + key)
    return (mixed_n >> np.uint64(11)).astype(np.float64) * 2.0**-53


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(value: np.ndarray | np.uint64) -> np.ndarray:
    z: np.ndarray = np.asarray(value, dtype=np.uint64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))


def _averaged(previous_c: np.ndarray | None, observed_c: np.ndarray, momentum: float) -> np.ndarray:
    """The moving average, with no bar for a class never seen."""
    if previous_c is not None:
        previous_c = np.where(np.isfinite(previous_c), previous_c, np.nan)
    averaged_c = moving_average(previous_c, observed_c, momentum)
    return np.where(np.isnan(averaged_c), -np.inf, averaged_c)


def make_policy(
    name: str,
    *,
    momentum: float = 0.0,
    warmup_epochs: int = 1,
    class_floor: float = 0.0,
    product_weights: bool = True,
    fraction: float = 0.25,
    seed: int = 0,
) -> Policy:
    """The policy of a name in `selection.policy`."""
    if name == "all":
        return SelectAll(seed)
    if name == "random":
        return SelectRandom(fraction, seed)
    sides = {
        "llkd": (True, True),
        "teacher_confidence": (True, False),
        "student_uncertainty": (False, True),
    }
    teacher_side, student_side = sides[name]
    return ThresholdPolicy(
        teacher_side=teacher_side,
        student_side=student_side,
        momentum=momentum,
        warmup_epochs=warmup_epochs,
        class_floor=class_floor,
        product_weights=product_weights,
        seed=seed,
    )
