"""The interface of selection policies; llkd/core/policies/driver.py runs them.

A policy sees a shard only through its signals. It works in two steps: it determines its parameters
from mergeable statistics of all shards, then selects the rows of each shard on its own.

    begin                      initial thresholds, from the teacher's statistics
    question, measure, learn   repeated until there is no question: a pass over the shards, then the
                               thresholds from its total
    choose                     labels and weights of one shard's rows
    fill                       wider thresholds, if a class fell short of its floor: a minimum share
                               of its trainable rows
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from llkd.core.statistics import ClassStatistics, class_statistics, confidence_of_top
from llkd.core.tally import Tally
from llkd.core.thresholds import Thresholds, no_thresholds

ROWS = "rows"
"""The question for the statistics of the labels and confidences that a policy uses."""

SMALLEST_WEIGHT = 1e-6
"""Lower bound of a selected row's weight: weight zero always means not selected."""


@dataclass(frozen=True)
class Signals:
    """What a policy knows of N rows; C classes."""

    label_n: np.ndarray
    """Pseudo-labels, int64, shape (N,)."""
    confidence_n: np.ndarray
    """The teacher's confidence in them, float64, shape (N,), in [0, 1]."""
    uncertainty_n: np.ndarray | None
    """The student's uncertainty, float64, shape (N,), in [0, 1]; None if not measured."""
    position_n: np.ndarray
    """Positions in the corpus, int64, shape (N,): the source of randomness, so that draws do not
    depend on the sharding of the corpus."""
    student_nc: np.ndarray | None = None
    """The student's distribution, shape (N, C), in multiples of the grid; None if the policy does
    not use it."""
    teacher_nc: np.ndarray | None = None
    """The teacher's calibrated distribution, shape (N, C); None if the policy does not use it."""

    def of(self, chosen_n: np.ndarray) -> "Signals":
        """The signals of the rows in a mask: bool, shape (N,)."""
        known = {name: signal for name, signal in vars(self).items() if signal is not None}
        return replace(self, **{name: signal[chosen_n] for name, signal in known.items()})


@dataclass(frozen=True)
class State:
    """What a policy knows of an epoch so far."""

    statistics: ClassStatistics
    """Of the labels and confidences that the policy uses."""
    thresholds: Thresholds
    previous: Thresholds | None
    """The thresholds of the previous epoch."""


@dataclass(frozen=True)
class Choice:
    """Training labels and weights of N rows."""

    label_n: np.ndarray
    """Integers, shape (N,)."""
    weight_n: np.ndarray
    """Weights in the loss, float64, shape (N,); 0 leaves the row out."""
    target_nc: np.ndarray | None = None
    """Targets of a soft loss, shape (N, C); None if the signals lack the teacher's distribution."""

    def without(self, held_n: np.ndarray) -> "Choice":
        """The same choice without the rows in a mask: bool, shape (N,)."""
        return replace(self, weight_n=np.where(held_n, 0.0, self.weight_n))

    def counts(self, classes: int) -> np.ndarray:
        """Rows selected by label, int64, shape (C,)."""
        return np.bincount(self.label_n[self.weight_n > 0], minlength=classes)


class Policy(ABC):
    """The interface; `seed` determines all random draws."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    uses_uncertainty: bool = False
    """Whether the student must score the corpus each epoch."""
    uses_student_probs: bool = False
    """Whether the policy needs the student's distribution in addition to its uncertainty."""
    warmup_epochs: int = 0
    """First epochs, which ignore the student's signals: a cold student's output is noise."""
    uses_teacher_probs: bool = False
    """Whether the policy needs the teacher's calibrated distribution."""

    def full_epochs(self, epochs: int) -> int:
        """How many of the first of so many epochs train on a large part of the corpus."""
        return epochs

    def begin(self, epoch: int, statistics: ClassStatistics, previous: Thresholds | None) -> State:
        """The state before any measurement.

        Args:
            epoch: from 0.
            statistics: of the teacher's labels and confidences, and the student's uncertainty.
            previous: the thresholds of the previous epoch.
        """
        return State(statistics, self.thresholds(epoch, statistics, previous), previous)

    def question(self, epoch: int, state: State, asked: Sequence[str]) -> str | None:
        """The next question to measure over the shards, after those in `asked`; None to stop."""
        return None

    def measure(self, epoch: int, question: str, signals: Signals, thresholds: Thresholds) -> Tally:
        """One shard's part of the answer; by default the answer to ROWS."""
        return Tally(vars(self.class_statistics(self.view(epoch, signals, thresholds), thresholds)))

    def class_statistics(self, seen: Signals, thresholds: Thresholds) -> ClassStatistics:
        """Class statistics of a shard's `view`."""
        return class_statistics(
            seen.label_n, seen.confidence_n, seen.uncertainty_n, len(thresholds.floor_c)
        )

    def learn(self, epoch: int, question: str, total: Tally, state: State) -> State:
        """The state after the answers of all shards are added up."""
        raise NotImplementedError(f"{type(self).__name__} has no question {question}")

    def thresholds(
        self, epoch: int, statistics: ClassStatistics, previous: Thresholds | None
    ) -> Thresholds:
        """The thresholds of an epoch, given those of the previous epoch."""
        return no_thresholds(len(statistics.rows_c))

    def view(self, epoch: int, signals: Signals, thresholds: Thresholds) -> Signals:
        """The signals with the labels and the confidence that this policy uses."""
        return signals

    @abstractmethod
    def weights(self, epoch: int, seen: Signals, thresholds: Thresholds) -> np.ndarray:
        """Each row's weight in the loss, float64, shape (N,); 0 leaves the row out.

        Args:
            epoch: from 0.
            seen: the result of `view`.
            thresholds: of the epoch.
        """

    def choose(self, epoch: int, signals: Signals, thresholds: Thresholds) -> Choice:
        """One shard's part of the selection."""
        seen = self.view(epoch, signals, thresholds)
        return Choice(seen.label_n, self.weights(epoch, seen, thresholds), seen.teacher_nc)

    def fill(
        self, statistics: ClassStatistics, selected_c: np.ndarray, thresholds: Thresholds
    ) -> Thresholds | None:
        """Wider thresholds if a class fell short of its floor, else None.

        Args:
            statistics: of the trainable rows.
            selected_c: selected trainable rows, shape (C,).
            thresholds: the thresholds that selected them.
        """
        return None


class FilledPolicy(Policy):
    """Fills a class that falls short of its floor with its most confident rows.

    Args:
        class_floor: minimum share of each class's rows to select, in [0, 1].
        warmup_epochs: first epochs, which ignore the student's signals.
        seed: of all random draws.
    """

    def __init__(self, *, class_floor: float = 0.0, warmup_epochs: int = 1, seed: int = 0) -> None:
        super().__init__(seed)
        self.class_floor = class_floor
        self.warmup_epochs = warmup_epochs

    def learn(self, epoch: int, question: str, total: Tally, state: State) -> State:
        """See Policy.learn: thresholds from the statistics of the policy's view."""
        statistics = statistics_of(total)
        thresholds = self.thresholds(epoch, statistics, state.previous)
        kept = {**state.thresholds.parameters, **thresholds.parameters}
        return replace(
            state, statistics=statistics, thresholds=replace(thresholds, parameters=kept)
        )

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


def statistics_of(total: Tally) -> ClassStatistics:
    """The class statistics in a tally."""
    return ClassStatistics(*(total[name] for name in ClassStatistics.__dataclass_fields__))
