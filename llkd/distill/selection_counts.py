"""The numbers of selected rows, which merge by addition."""

from dataclasses import dataclass
from typing import Any

import numpy as np

COUNTS = "counts.json"
"""The file of an epoch's `Counts`."""


@dataclass(frozen=True)
class Counts:
    """The numbers of selected rows; C classes, S shards."""

    selected_c: np.ndarray
    """Rows by class, shape (C,), int64."""
    selected_s: np.ndarray
    """Rows by shard, shape (S,), int64."""
    weight_sum: float

    def __add__(self, other: "Counts") -> "Counts":
        """The counts of these shards, followed by those of `other`."""
        return Counts(
            self.selected_c + other.selected_c,
            np.concatenate([self.selected_s, other.selected_s]),
            self.weight_sum + other.weight_sum,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain lists; `from_json` reads them back."""
        return {
            "selected_c": self.selected_c.tolist(),
            "selected_s": self.selected_s.tolist(),
            "weight_sum": self.weight_sum,
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> "Counts":
        """The inverse of `to_json`."""
        return Counts(
            np.asarray(data["selected_c"], np.int64),
            np.asarray(data["selected_s"], np.int64),
            float(data["weight_sum"]),
        )
