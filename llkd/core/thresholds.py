"""Thresholds by pseudo-label, and their moving average over epochs."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

TOLERANCE = 1e-6
"""A signal this little below its threshold still passes: a mean of equal numbers, or of the
same numbers summed in another order, must not push them out."""


@dataclass(frozen=True)
class Thresholds:
    """A row of class y passes when its signals reach these; C classes, -inf means no bar."""

    confidence_c: np.ndarray
    """For the teacher's confidence, shape (C,)."""
    uncertainty_c: np.ndarray
    """For the student's uncertainty, shape (C,)."""
    floor_c: np.ndarray
    """Confidence from which a row passes whatever else, shape (C,): how a class that would fall
    short of its floor is filled. Infinite where no filling is needed."""
    parameters: Mapping[str, np.ndarray] = field(default_factory=dict)
    """What else a policy learnt of the epoch, by name: finite arrays of any shape."""

    def passes(
        self, label_n: np.ndarray, confidence_n: np.ndarray, uncertainty_n: np.ndarray | None
    ) -> np.ndarray:
        """Which rows are selected: shape (N,), bool."""
        chosen_n = confidence_n >= self.confidence_c[label_n] - TOLERANCE
        if uncertainty_n is not None:
            chosen_n &= uncertainty_n >= self.uncertainty_c[label_n] - TOLERANCE
        return chosen_n | self.fills(label_n, confidence_n)

    def fills(self, label_n: np.ndarray, confidence_n: np.ndarray) -> np.ndarray:
        """Which rows fill a class up to its floor, whatever else: shape (N,), bool."""
        return confidence_n >= self.floor_c[label_n] - TOLERANCE

    def with_floor(self, floor_c: np.ndarray) -> "Thresholds":
        """The same thresholds with classes filled down to these confidences."""
        return replace(self, floor_c=np.minimum(self.floor_c, floor_c))

    def to_json(self) -> dict[str, Any]:
        """Plain lists, null for infinite; `from_json` reads them back."""
        bars = {
            name: [float(x) if np.isfinite(x) else None for x in getattr(self, name)]
            for name in ("confidence_c", "uncertainty_c", "floor_c")
        }
        if not self.parameters:
            return bars
        kept = {name: np.asarray(value).tolist() for name, value in self.parameters.items()}
        return {**bars, "parameters": kept}

    @staticmethod
    def from_json(data: dict[str, Any]) -> "Thresholds":
        """The inverse of `to_json`."""

        def bars(name: str, empty: float) -> np.ndarray:
            return np.array([empty if x is None else x for x in data[name]], dtype=np.float64)

        parameters = {
            name: np.asarray(value, dtype=np.float64)
            for name, value in data.get("parameters", {}).items()
        }
        return Thresholds(
            bars("confidence_c", -np.inf), bars("uncertainty_c", -np.inf),
            bars("floor_c", np.inf), parameters,
        )  # fmt: skip


def no_thresholds(classes: int) -> Thresholds:
    """Everything passes."""
    return Thresholds(
        np.full(classes, -np.inf), np.full(classes, -np.inf), np.full(classes, np.inf)
    )


def moving_average(
    previous_c: np.ndarray | None, observed_c: np.ndarray, momentum: float
) -> np.ndarray:
    """x <- m x + (1 - m) x_new by class, shape (C,).

    A class not observed (NaN) keeps its value; one not seen before takes the observation.
    A class never seen is NaN.
    """
    if previous_c is None:
        return observed_c
    mixed_c = momentum * previous_c + (1 - momentum) * observed_c
    return np.where(
        np.isnan(observed_c), previous_c, np.where(np.isfinite(previous_c), mixed_c, observed_c)
    )
