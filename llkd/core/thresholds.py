"""Thresholds by pseudo-label, and their moving average over epochs."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

TOLERANCE = 1e-6
"""A signal this close below its threshold still passes: rounding in the mean of equal numbers must
not exclude them."""


@dataclass(frozen=True)
class Thresholds:
    """A row of class y passes if its signals reach these; C classes, -inf means no threshold."""

    confidence_c: np.ndarray
    """Minimum of the teacher's confidence, shape (C,)."""
    uncertainty_c: np.ndarray
    """Minimum of the student's uncertainty, shape (C,)."""
    floor_c: np.ndarray
    """Confidence from which a row passes regardless of the other thresholds, shape (C,): fills a
    class up to its floor. Infinite for a class that needs no filling."""
    parameters: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Further parameters of a policy in this epoch, by name: finite arrays of any shape."""

    def passes(
        self, label_n: np.ndarray, confidence_n: np.ndarray, uncertainty_n: np.ndarray | None
    ) -> np.ndarray:
        """Mask of the rows that pass: shape (N,), bool."""
        passes_n = confidence_n >= self.confidence_c[label_n] - TOLERANCE
        if uncertainty_n is not None:
            passes_n &= uncertainty_n >= self.uncertainty_c[label_n] - TOLERANCE
        return passes_n | self.fills(label_n, confidence_n)

    def fills(self, label_n: np.ndarray, confidence_n: np.ndarray) -> np.ndarray:
        """Mask of the rows that fill a class up to its floor: shape (N,), bool."""
        return confidence_n >= self.floor_c[label_n] - TOLERANCE

    def with_floor(self, floor_c: np.ndarray) -> "Thresholds":
        """The same thresholds, with classes filled down to these confidences."""
        return replace(self, floor_c=np.minimum(self.floor_c, floor_c))

    def to_json(self) -> dict[str, Any]:
        """Plain lists, null for infinite; `from_json` reads them back."""
        thresholds = {
            name: [float(x) if np.isfinite(x) else None for x in getattr(self, name)]
            for name in ("confidence_c", "uncertainty_c", "floor_c")
        }
        if not self.parameters:
            return thresholds
        parameters = {name: np.asarray(value).tolist() for name, value in self.parameters.items()}
        return {**thresholds, "parameters": parameters}

    @staticmethod
    def from_json(data: dict[str, Any]) -> "Thresholds":
        """The inverse of `to_json`."""

        def read(name: str, infinite: float) -> np.ndarray:
            return np.array([infinite if x is None else x for x in data[name]], dtype=np.float64)

        parameters = {
            name: np.asarray(value, dtype=np.float64)
            for name, value in data.get("parameters", {}).items()
        }
        return Thresholds(
            read("confidence_c", -np.inf), read("uncertainty_c", -np.inf),
            read("floor_c", np.inf), parameters,
        )  # fmt: skip


def no_thresholds(classes: int) -> Thresholds:
    """Thresholds that every row passes."""
    return Thresholds(
        np.full(classes, -np.inf), np.full(classes, -np.inf), np.full(classes, np.inf)
    )


def moving_average(
    previous_c: np.ndarray | None, observed_c: np.ndarray, momentum: float
) -> np.ndarray:
    """x <- m x + (1 - m) x_new by class, shape (C,).

    A class without observation (NaN) keeps its value; a class without a previous value takes the
    observation. A class never observed is NaN.
    """
    if previous_c is None:
        return observed_c
    mixed_c = momentum * previous_c + (1 - momentum) * observed_c
    return np.where(
        np.isnan(observed_c), previous_c, np.where(np.isfinite(previous_c), mixed_c, observed_c)
    )
