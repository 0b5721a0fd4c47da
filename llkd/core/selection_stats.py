"""What stats.json says of an epoch's selection."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from llkd.core.statistics import ClassStatistics
from llkd.core.thresholds import Thresholds


def selection_stats(
    policy: str,
    names: Sequence[str],
    epoch: int,
    statistics: ClassStatistics,
    selected_c: np.ndarray,
    thresholds: Thresholds,
    scored: bool,
) -> dict[str, Any]:
    """The part of stats.json about an epoch's selection.

    Args:
        policy: its name.
        names: of the labels.
        epoch: from 0.
        statistics: of the labels and confidences that the policy uses.
        selected_c: selected rows by label, shape (C,).
        thresholds: the thresholds that selected them.
        scored: whether the student's uncertainty was measured.
    """
    rows, chosen = int(statistics.rows_c.sum()), int(selected_c.sum())
    return {
        "epoch": epoch,
        "policy": policy,
        "rows": rows,
        "selected": chosen,
        "fraction": chosen / max(rows, 1),
        "classes": {
            name: {
                "rows": int(statistics.rows_c[i]),
                "selected": int(selected_c[i]),
                "fraction": float(selected_c[i] / max(statistics.rows_c[i], 1)),
                "mean_confidence": _number(statistics.mean_confidence_c[i]),
                "mean_uncertainty": _number(statistics.mean_uncertainty_c[i]) if scored else None,
            }
            for i, name in enumerate(names)
        },
        "thresholds": thresholds.to_json(),
    }


def _number(value: float) -> float | None:
    """A JSON number; null for NaN, the mean of a class without rows."""
    return float(value) if np.isfinite(value) else None
