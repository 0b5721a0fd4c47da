"""Named sums over rows that merge by addition: statistics beside ClassStatistics."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from llkd.core.statistics import GRID


@dataclass(frozen=True)
class Tally:
    """Counts and sums by name, arrays of any shape. They are integers or multiples of the grid, so
    that the total does not depend on the order or sharding of the rows."""

    values: Mapping[str, np.ndarray]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.values[name]

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def __add__(self, other: "Tally") -> "Tally":
        return Tally({name: value + other.values[name] for name, value in self.values.items()})

    def to_json(self) -> dict[str, Any]:
        """Plain lists; `from_json` reads them back exactly."""
        return {name: np.asarray(value).tolist() for name, value in self.values.items()}

    @staticmethod
    def from_json(data: dict[str, Any]) -> "Tally":
        """The inverse of `to_json`."""
        return Tally({name: np.asarray(value) for name, value in data.items()})


def grid_sum(values: np.ndarray, axis: int | None = None) -> np.ndarray:
    """The sum of values, each rounded to the grid: exact, in any order."""
    return np.asarray((np.rint(values.astype(np.float64) / GRID) * GRID).sum(axis=axis))
