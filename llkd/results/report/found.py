"""What the passes of a report bring back of a shard: sums, and the few rows that stand out."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import numpy as np

from llkd.core.metrics import Evaluation
from llkd.core.tally import Tally

MOST_ROWS = 12
"""Rows of a kind that are shown."""
BINS = 20
"""Equal-width bins of confidence and uncertainty."""
CELLS = 24
"""Cells along each side of the plane of confidence and uncertainty."""
SCORE = "score"


@dataclass(frozen=True)
class Found:
    """Sums by name, and by kind the rows of highest score; added over shards."""

    tally: Tally = field(default_factory=lambda: Tally({}))
    rows: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    """By kind: `score`, `shard`, `row` and what else is told of a row; the highest scores first."""

    def __add__(self, other: "Found") -> "Found":
        kinds = dict.fromkeys([*self.rows, *other.rows])
        merged = {kind: best(self.rows.get(kind, []) + other.rows.get(kind, [])) for kind in kinds}
        return Found(self.tally + other.tally, merged)

    def to_json(self) -> dict[str, Any]:
        """Plain lists; `from_json` reads them back."""
        return {"tally": self.tally.to_json(), "rows": dict(self.rows)}

    @staticmethod
    def from_json(data: dict[str, Any]) -> "Found":
        """The inverse of `to_json`."""
        return Found(Tally.from_json(data["tally"]), data["rows"])

    def evaluation(self, name: str) -> Evaluation | None:
        """What `counted` put in by that name; None if nothing was, or of no row."""
        if f"{name}.confusion_cc" not in self.tally:
            return None
        fields = Evaluation.__dataclass_fields__
        found = Evaluation(*(self.tally[f"{name}.{key}"] for key in fields))
        return found if found.rows else None


def counted(name: str, evaluation: Evaluation) -> dict[str, np.ndarray]:
    """An evaluation among the sums of a tally."""
    return {f"{name}.{key}": value for key, value in vars(evaluation).items()}


def best(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of highest score."""
    return sorted(rows, key=itemgetter(SCORE), reverse=True)[:MOST_ROWS]


def standing_out(score_n: np.ndarray, shard: int, columns: Mapping[str, np.ndarray]) -> Any:
    """The rows of a shard with the highest scores; those of -inf never.

    Args:
        score_n: shape (N,).
        shard: its number.
        columns: what is told of them, each of shape (N, ...); `row` among it.
    """
    order = np.argsort(-score_n, kind="stable")[:MOST_ROWS]
    return [
        {
            SCORE: float(score_n[i]),
            "shard": shard,
            **{name: column[i].tolist() for name, column in columns.items()},
        }
        for i in order
        if np.isfinite(score_n[i])
    ]


def bins_of(signal_n: np.ndarray, bins: int) -> np.ndarray:
    """The equal-width bin of each signal in [0, 1]: integers, shape (N,)."""
    return np.minimum((signal_n.astype(np.float64) * bins).astype(np.int64), bins - 1)


def count_by(shape: tuple[int, ...], *index_n: Iterable[int]) -> np.ndarray:
    """How many rows have each combination of indices: int64, of that shape."""
    flat_n = np.ravel_multi_index(tuple(np.asarray(i) for i in index_n), shape)
    return np.bincount(flat_n, minlength=int(np.prod(shape))).reshape(shape)
