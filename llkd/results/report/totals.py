"""The result of a pass over the shards: sums, and the few rows of highest score."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import numpy as np

from llkd.core.metrics import Evaluation

MAX_REJECTS = 3
"""Rejected rows kept of each reason."""
MAX_ROWS = 12
"""Rows shown of each kind."""
BINS = 20
"""Equal-width bins of confidence and uncertainty."""
CELLS = 24
"""Cells along each axis of the confidence-uncertainty plane."""
SCORE = "score"


@dataclass(frozen=True)
class Totals:
    """Sums by name and the highest-scoring rows of each kind, merged over shards by addition."""

    sums: Mapping[str, np.ndarray] = field(default_factory=dict)
    rows: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    """By kind, the highest scores first: `score`, `shard`, `row` and further columns."""

    def __getitem__(self, name: str) -> np.ndarray:
        return self.sums[name]

    def __bool__(self) -> bool:
        """Whether it holds any sum or row."""
        return bool(self.sums or self.rows)

    def __add__(self, other: "Totals") -> "Totals":
        names = dict.fromkeys([*self.sums, *other.sums])
        sums = {
            name: np.asarray(sum(part[name] for part in (self, other) if name in part.sums))
            for name in names
        }
        kinds = dict.fromkeys([*self.rows, *other.rows])
        merged = {kind: best(self.rows.get(kind, []) + other.rows.get(kind, [])) for kind in kinds}
        return Totals(sums, merged)

    def to_json(self) -> dict[str, Any]:
        """Plain lists; `from_json` reads them back exactly."""
        sums = {name: np.asarray(value).tolist() for name, value in self.sums.items()}
        return {"sums": sums, "rows": dict(self.rows)}

    @staticmethod
    def from_json(data: dict[str, Any]) -> "Totals":
        """The inverse of `to_json`."""
        return Totals({k: np.asarray(v) for k, v in data["sums"].items()}, data["rows"])

    def evaluation(self, name: str) -> Evaluation | None:
        """The evaluation that `evaluation_sums` stored by this name; None if it has no rows."""
        if f"{name}.confusion_cc" not in self.sums:
            return None
        fields = Evaluation.__dataclass_fields__
        evaluation = Evaluation(*(self[f"{name}.{key}"] for key in fields))
        return evaluation if evaluation.rows else None


def evaluation_sums(name: str, evaluation: Evaluation) -> dict[str, np.ndarray]:
    """The fields of an evaluation as named sums."""
    return {f"{name}.{key}": value for key, value in vars(evaluation).items()}


def best(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of highest score."""
    return sorted(rows, key=itemgetter(SCORE), reverse=True)[:MAX_ROWS]


def top_rows(
    score_n: np.ndarray, shard: int, columns: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    """The highest-scoring rows of a shard; a score of -inf excludes a row.

    Args:
        score_n: shape (N,).
        shard: its number.
        columns: values to keep, each of shape (N, ...); `row` is among them.
    """
    order = np.argsort(-score_n, kind="stable")[:MAX_ROWS]
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
