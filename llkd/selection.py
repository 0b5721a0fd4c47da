"""The distributed selection step: thresholds from merged statistics, then a pass over shards.

Each shard is decided on alone, from its labels and its uncertainty; only small statistics cross
shards.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from llkd.arrays import matrix
from llkd.config import RunConfig
from llkd.core.calibration import Calibration
from llkd.core.policies import Policy, Signals, make_policy
from llkd.core.statistics import ClassStatistics, class_statistics
from llkd.core.thresholds import Thresholds
from llkd.errors import StorageError
from llkd.runtime import run_on_shards
from llkd.schema import (
    LABEL,
    LOGPROBS,
    ROW,
    SELECTION_SCHEMA,
    UNCERTAINTY,
    WEIGHT,
    RunLayout,
)
from llkd.storage import Folder


def policy_of(config: RunConfig) -> Policy:
    """The policy that the config asks for."""
    selection = config.selection
    return make_policy(
        selection.policy,
        momentum=selection.momentum,
        warmup_epochs=selection.warmup_epochs,
        class_floor=selection.class_floor,
        product_weights=selection.weights == "product",
        fraction=selection.fraction,
        seed=config.seed,
    )


def shard_starts(rows: Sequence[int]) -> tuple[int, ...]:
    """The position of each shard's first row, from the rows of each shard."""
    return tuple(int(start) for start in np.cumsum([0, *rows])[:-1])


@dataclass(frozen=True)
class Selector:
    """Selects the rows of an epoch; one for a whole run."""

    config: RunConfig
    calibration: Calibration
    """Of the teacher's labels."""
    starts: tuple[int, ...]
    """Position of each shard's first row in the corpus."""

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return len(self.starts)

    @property
    def _layout(self) -> RunLayout:
        return RunLayout(self.config.run_dir)

    def signals(self, shard: int, epoch: int | None) -> tuple[np.ndarray, Signals]:
        """(row, signals) of a shard's labelled rows; without an epoch, without uncertainty.

        Raises:
            StorageError: the sidecars do not belong together.
        """
        table = Folder(self._layout.labels("corpus")).read_shard(shard, [ROW, LOGPROBS])
        row_n = table[ROW].to_numpy()
        probs_nc = self.calibration.apply(matrix(table[LOGPROBS]))
        uncertainty_n = None
        if epoch is not None:
            folder = Folder(self._layout.uncertainty(epoch))
            scored = folder.read_shard(shard, [ROW, UNCERTAINTY])
            if not np.array_equal(scored[ROW].to_numpy(), row_n):
                raise StorageError(
                    f"Shard {shard} of {folder.uri} has other rows than its labels; delete "
                    f"{self._layout.epoch(epoch)} and run again"
                )
            uncertainty_n = scored[UNCERTAINTY].to_numpy().astype(np.float64)
        position_n = self.starts[shard] + row_n.astype(np.int64)
        return row_n, Signals(
            probs_nc.argmax(axis=1), probs_nc.max(axis=1), uncertainty_n, position_n
        )

    def teacher_statistics(self) -> ClassStatistics:
        """Counts and confidence by class over the corpus; the same in every epoch."""
        classes = self.calibration.classes

        def work(shard: int) -> dict[str, Any]:
            _, signals = self.signals(shard, None)
            return class_statistics(signals.label_n, signals.confidence_n, None, classes).to_json()

        results = dict(run_on_shards(work, range(self.shards)))
        return _merged([ClassStatistics.from_json(results[s]) for s in range(self.shards)])

    def uncertainty_sums(self, signals: Signals, uncertainty_n: np.ndarray) -> np.ndarray:
        """The sum of a shard's uncertainties by pseudo-label, shape (C,)."""
        return np.bincount(
            signals.label_n, weights=uncertainty_n, minlength=self.calibration.classes
        )

    def select(
        self,
        epoch: int,
        statistics: ClassStatistics,
        uncertainty_c: np.ndarray | None,
        previous: Thresholds | None,
    ) -> dict[str, Any]:
        """Write the epoch's selection, and return its stats (see stats.json in the README).

        Args:
            epoch: from 0.
            statistics: of the teacher's side.
            uncertainty_c: sums of the student's uncertainty by class, shape (C,); None where the
                policy does without.
            previous: the thresholds of the epoch before.
        """
        policy = policy_of(self.config)
        if uncertainty_c is not None:
            statistics = replace(statistics, uncertainty_c=uncertainty_c)
        thresholds = policy.thresholds(epoch, statistics, previous)
        counts = self._pass(epoch, policy, thresholds)
        wider = policy.fill(statistics, counts.selected_c, thresholds)
        if wider is not None:
            thresholds = wider
            counts = self._pass(epoch, policy, wider)
        names = self.config.task.label_names
        rows, chosen = int(statistics.rows_c.sum()), int(counts.selected_c.sum())
        return {
            "epoch": epoch,
            "policy": self.config.selection.policy,
            "rows": rows,
            "selected": chosen,
            "fraction": chosen / max(rows, 1),
            "classes": {
                name: {
                    "rows": int(statistics.rows_c[i]),
                    "selected": int(counts.selected_c[i]),
                    "fraction": float(counts.selected_c[i] / max(statistics.rows_c[i], 1)),
                    "mean_confidence": _number(statistics.mean_confidence_c[i]),
                    "mean_uncertainty": None
                    if uncertainty_c is None
                    else _number(statistics.mean_uncertainty_c[i]),
                }
                for i, name in enumerate(names)
            },
            "thresholds": thresholds.to_json(),
            "weight_mean": counts.weight_sum / max(chosen, 1),
            "selected_by_shard": counts.selected_by_shard,
        }

    def _pass(self, epoch: int, policy: Policy, thresholds: Thresholds) -> "_Counts":
        work = partial(_select_shard, self, epoch, policy, thresholds)
        results = dict(run_on_shards(work, range(self.shards)))
        by_shard = [np.asarray(results[s]["selected"], np.int64) for s in range(self.shards)]
        return _Counts(
            np.sum(by_shard, axis=0),
            [int(selected_c.sum()) for selected_c in by_shard],
            float(sum(results[s]["weight"] for s in range(self.shards))),
        )

    def unique_rows(self, epochs: int) -> int:
        """How many rows were selected in at least one epoch."""

        def work(shard: int) -> dict[str, Any]:
            chosen = [
                Folder(self._layout.selection(epoch)).read_shard(shard, [ROW])[ROW].to_numpy()
                for epoch in range(epochs)
            ]
            return {"rows": len(np.unique(np.concatenate(chosen)))}

        return sum(result["rows"] for _, result in run_on_shards(work, range(self.shards)))


@dataclass(frozen=True)
class _Counts:
    selected_c: np.ndarray
    selected_by_shard: list[int]
    weight_sum: float


def _select_shard(
    selector: Selector, epoch: int, policy: Policy, thresholds: Thresholds, shard: int
) -> dict[str, Any]:
    row_n, signals = selector.signals(shard, epoch if policy.uses_uncertainty else None)
    weight_n = policy.weights(epoch, signals, thresholds)
    chosen_n = weight_n > 0
    label_n = signals.label_n[chosen_n]
    table = pa.table(
        {
            ROW: row_n[chosen_n],
            LABEL: label_n.astype(np.int32),
            WEIGHT: weight_n[chosen_n].astype(np.float32),
        },
        schema=SELECTION_SCHEMA,
    )
    Folder(RunLayout(selector.config.run_dir).selection(epoch)).write_shard(shard, table)
    return {
        "selected": np.bincount(label_n, minlength=selector.calibration.classes).tolist(),
        "weight": float(weight_n.sum()),
    }


def _merged(statistics: list[ClassStatistics]) -> ClassStatistics:
    total = statistics[0]
    for other in statistics[1:]:
        total = total + other
    return total


def _number(value: float) -> float | None:
    """A JSON number; null for NaN, the mean of a class without rows."""
    return float(value) if np.isfinite(value) else None
