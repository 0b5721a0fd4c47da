"""The distributed selection step: thresholds from merged statistics, then a pass over shards.

Each shard is selected on its own, from its pseudo-labels and its uncertainty; only small
statistics cross shards.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from llkd.cluster.shard_tasks import sum_over_shards
from llkd.config.run import RunConfig
from llkd.core.policies.base import Policy, Signals
from llkd.core.policies.driver import select
from llkd.core.selection_stats import selection_stats
from llkd.core.statistics import ClassStatistics
from llkd.core.tally import Tally
from llkd.core.thresholds import Thresholds
from llkd.distill.selection_counts import COUNTS, Counts
from llkd.errors import StorageError
from llkd.store.arrays import fixed_lists, matrix
from llkd.store.folder import Folder
from llkd.store.schema import (
    CONFIDENCE,
    LABEL,
    PROBS,
    ROW,
    SELECTION_SCHEMA,
    UNCERTAINTY,
    WEIGHT,
    RunLayout,
    shard_name,
    with_probs,
)

PROBE_ROWS = 16384
"""Maximum rows of a sample to fit a probe to; more hardly change a linear model of a small encoder."""

Read = TypeVar("Read")


@dataclass(frozen=True)
class Selector:
    """Selects the rows of an epoch; one for a whole run."""

    config: RunConfig
    starts: tuple[int, ...]
    """Position of each shard's first row in the corpus."""
    policy: Policy
    """The policy of the config, see `policy_of`."""
    rivals: Mapping[str, Policy] = field(default_factory=dict)
    """Policies to try on the frozen student, see llkd/distill/trial.py; by name."""

    @property
    def shards(self) -> int:
        """Number of shards."""
        return len(self.starts)

    @property
    def classes(self) -> int:
        """C."""
        return len(self.config.task.labels)

    @property
    def keeps_teacher_probs(self) -> bool:
        """Whether the policy or the loss needs the teacher's distributions."""
        return self.policy.uses_teacher_probs or self.config.student.loss.uses_targets

    @property
    def _layout(self) -> RunLayout:
        return RunLayout(self.config.run_dir)

    def signals(
        self, shard: int, epoch: int | None, distributions: bool = False
    ) -> tuple[np.ndarray, Signals]:
        """(row, signals) of a shard's labelled rows.

        Args:
            shard: its number.
            epoch: the epoch whose uncertainty to read; None to read none.
            distributions: whether to read the distributions that the policy and the loss need.

        Raises:
            StorageError: the sidecars have different rows.
        """
        folder = Folder(self._layout.pseudo_labels)
        teacher = distributions and self.keeps_teacher_probs
        table = folder.read_shard(shard, [ROW, LABEL, CONFIDENCE, *([PROBS] if teacher else [])])
        uncertainty_n = student_nc = None
        row_n, found = self.teacher_signals(shard, table)
        if epoch is not None:
            folder = Folder(self._layout.uncertainty(epoch))
            student = distributions and self.policy.uses_student_probs
            scored = folder.read_shard(shard, [ROW, UNCERTAINTY, *([PROBS] if student else [])])
            if not np.array_equal(scored[ROW].to_numpy(), row_n):
                raise StorageError(
                    f"Shard {shard} of {folder.uri} has other rows than its labels",
                    f"Delete {self._layout.epoch(epoch)} and run again.",
                )
            uncertainty_n = scored[UNCERTAINTY].to_numpy()
            student_nc = matrix(scored[PROBS]) if student else None
        teacher_nc = matrix(table[PROBS]) if teacher else None
        return row_n, replace(
            found, uncertainty_n=uncertainty_n, student_nc=student_nc, teacher_nc=teacher_nc
        )

    def teacher_signals(self, shard: int, table: pa.Table) -> tuple[np.ndarray, Signals]:
        """(row, signals) of a shard's pseudo-labels, without distributions."""
        row_n = table[ROW].to_numpy()
        position_n = self.starts[shard] + row_n.astype(np.int64)
        return row_n, Signals(
            table[LABEL].to_numpy(), table[CONFIDENCE].to_numpy(), None, position_n
        )

    def held(self, shard: int, row_n: np.ndarray) -> np.ndarray:
        """Mask of the rows that are held out of training, bool, shape (N,)."""
        folder = Folder(self._layout.validation)
        if not self.holds_out or not folder.exists(shard_name(shard)):
            return np.zeros(len(row_n), dtype=bool)
        return np.isin(row_n, folder.read_shard(shard, [ROW])[ROW].to_numpy())

    @property
    def holds_out(self) -> bool:
        """Whether rows are held out of training."""
        return self.config.student.validation_fraction > 0

    def uncertainty_sums(self, shards: Sequence[int], epoch: int) -> np.ndarray:
        """Sums of the uncertainties of scored shards by pseudo-label, shape (C,)."""

        def work(shard: int) -> Tally:
            _, signals = self.signals(shard, epoch)
            assert signals.uncertainty_n is not None
            sum_c = sums_by_class(signals.label_n, signals.uncertainty_n, self.classes)
            return Tally({"sum_c": sum_c})

        if not shards:
            return np.zeros(self.classes)
        total: Tally = sum_over_shards(Tally, work, sorted(shards), reserve=False)
        return total["sum_c"]

    def select(
        self,
        epoch: int,
        statistics: ClassStatistics,
        uncertainty_c: np.ndarray | None,
        previous: Thresholds | None,
    ) -> dict[str, Any]:
        """Write the selection of an epoch; returns its `selection_stats`.

        Args:
            epoch: from 0.
            statistics: the teacher's statistics.
            uncertainty_c: sums of the student's uncertainty by class, shape (C,); None if the
                policy does not use it.
            previous: the thresholds of the previous epoch.
        """
        if uncertainty_c is not None:
            statistics = replace(statistics, uncertainty_c=uncertainty_c)

        validation = Folder(self._layout.validation)
        held_shards = sorted(validation.shards()) if self.holds_out else []

        def measure(question: str, thresholds: Thresholds, held: bool = False) -> Tally:
            shards = held_shards if held else range(self.shards)
            work = partial(_measure_shard, self, epoch, question, thresholds, held)
            total: Tally = sum_over_shards(Tally, work, shards, reserve=False)
            return total

        def choose(thresholds: Thresholds) -> tuple[Counts, np.ndarray]:
            counts = self.select_by(epoch, thresholds)
            return counts, counts.selected_c

        state, counts = select(
            self.policy, epoch, statistics, previous, measure, choose, bool(held_shards)
        )
        Folder(self._layout.selection(epoch)).write_json(COUNTS, counts.to_json(), indent=None)
        scored = uncertainty_c is not None
        return selection_stats(
            self.config.selection.policy,
            self.config.task.label_names,
            epoch,
            state.statistics,
            counts.selected_c,
            state.thresholds,
            scored,
        )

    def counts(self, epoch: int) -> Counts:
        """The stored counts of an epoch's selection."""
        return Counts.from_json(Folder(self._layout.selection(epoch)).read_json(COUNTS))

    def recount(self, epoch: int) -> Counts:
        """The counts of an epoch's selection, from its shards; a missing shard has no rows."""
        folder = Folder(self._layout.selection(epoch))
        existing = folder.shards()

        def work(shard: int) -> Counts:
            if shard not in existing:
                return Counts(np.zeros(self.classes, np.int64), np.zeros(1, np.int64), 0.0)
            return _counts_of(folder.read_shard(shard, [LABEL, WEIGHT]), self.classes)

        counts: Counts = sum_over_shards(Counts, work, range(self.shards), reserve=False)
        return counts

    def select_by(
        self,
        epoch: int,
        thresholds: Thresholds,
        shards: Sequence[int] | None = None,
    ) -> Counts:
        """Write the rows that thresholds select, of all shards or of some; returns their counts."""
        work = partial(_select_shard, self, epoch, thresholds)
        # Without a reservation: the training workers reserve the CPUs and wait for this.
        wanted = range(self.shards) if shards is None else shards
        counts: Counts = sum_over_shards(Counts, work, wanted, reserve=False)
        return counts

    def unique_rows(self, epochs: int) -> int:
        """Number of rows selected in at least one epoch."""

        def work(shard: int) -> Tally:
            chosen = [
                Folder(self._layout.selection(epoch)).read_shard(shard, [ROW])[ROW].to_numpy()
                for epoch in range(epochs)
            ]
            return Tally({"rows": np.asarray(len(np.unique(np.concatenate(chosen))))})

        total: Tally = sum_over_shards(Tally, work, range(self.shards))
        return int(total["rows"])


def sampled(
    selector: Selector, candidates: Callable[[int], tuple[np.ndarray, Read]]
) -> Iterator[tuple[int, np.ndarray, Read]]:
    """Up to PROBE_ROWS rows of shards drawn at random: (shard, indices of its rows, what was read).

    Args:
        selector: of the run.
        candidates: of a shard: (indices of the rows to draw from, what was read of it).
    """
    random, left = np.random.default_rng(selector.config.seed), PROBE_ROWS
    for shard in random.permutation(selector.shards).tolist():
        chosen, read = candidates(shard)
        if len(chosen) > left:
            chosen = np.sort(random.choice(chosen, left, replace=False))
        left -= len(chosen)
        yield shard, chosen, read
        if left == 0:
            return


def sums_by_class(label_n: np.ndarray, signal_n: np.ndarray, classes: int) -> np.ndarray:
    """The sum of a signal by pseudo-label, float64, shape (C,)."""
    return np.bincount(label_n, weights=signal_n, minlength=classes)


def _measure_shard(
    selector: Selector,
    epoch: int,
    question: str,
    thresholds: Thresholds,
    held: bool,
    shard: int,
) -> Tally:
    """See Policy.measure; with `held` restricted to the rows held out."""
    policy = selector.policy
    row_n, signals = selector.signals(shard, epoch if policy.uses_uncertainty else None, True)
    if held:
        signals = signals.of(selector.held(shard, row_n))
    return policy.measure(epoch, question, signals, thresholds)


def _select_shard(
    selector: Selector,
    epoch: int,
    thresholds: Thresholds,
    shard: int,
) -> Counts:
    policy = selector.policy
    row_n, signals = selector.signals(shard, epoch if policy.uses_uncertainty else None, True)
    choice = policy.choose(epoch, signals, thresholds).without(selector.held(shard, row_n))
    chosen_n = np.flatnonzero(choice.weight_n)
    label_n = choice.label_n[chosen_n]
    weight_n = choice.weight_n[chosen_n].astype(np.float32)
    columns, schema = {ROW: row_n[chosen_n], LABEL: label_n, WEIGHT: weight_n}, SELECTION_SCHEMA
    if selector.config.student.loss.uses_targets:
        assert choice.target_nc is not None
        columns[PROBS] = fixed_lists(choice.target_nc[chosen_n])
        schema = with_probs(schema, pa.float32(), selector.classes)
    table = pa.table(columns, schema=schema)
    Folder(RunLayout(selector.config.run_dir).selection(epoch)).write_shard(shard, table)
    return _counts_of(table, selector.classes)


def _counts_of(table: pa.Table, classes: int) -> Counts:
    """The counts of one shard of a selection."""
    return Counts(
        np.bincount(table[LABEL].to_numpy(), minlength=classes),
        np.array([len(table)]),
        float(table[WEIGHT].to_numpy().sum(dtype=np.float64)),
    )
