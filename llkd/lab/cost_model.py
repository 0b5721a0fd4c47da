"""Estimates what a run takes: time, cost, files, bytes, requests, and the driver's share.

Pure arithmetic on the config and on measurements of a sample. Work is linear in rows; files and
requests are linear in shards. One-off costs (engine starts, model loads, the export) are left out:
minutes, whatever the corpus.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from llkd.config.run import RunConfig
from llkd.distill.policy import policy_of
from llkd.ingest.stage import TEST_ROWS_PER_SHARD
from llkd.lab.shard_size import ShardSize
from llkd.lab.table_sizes import (
    LABELS_CLASS,
    LABELS_FIXED,
    LABELS_ROW,
    NUMBERS_FIXED,
    PREDICTIONS_ROW,
    PSEUDO_LABELS_ROW,
    RECORD_BYTES,
    SELECTION_ROW,
    UNCERTAINTY_FIXED,
    UNCERTAINTY_ROW,
    corpus_fixed,
)


class Requests(NamedTuple):
    """Requests to an object store for one shard."""

    reads: int
    """GET and HEAD."""
    writes: int
    """PUT."""


REQUESTS = {
    "ingest": Requests(4, 1),  # of a Parquet source: size, footer, metadata, a range of rows
    "label": Requests(2, 1),
    "prepare": Requests(4, 1),  # labels; the pseudo-labels again, for their statistics
    "score": Requests(6, 1),  # row numbers, texts, and the pseudo-labels with the sums
    "select": Requests(4, 1),  # pseudo-labels and uncertainty
    "train": Requests(4, 0),  # selected rows and their texts
    "unique": Requests(2, 0),  # selected rows of each epoch, once more at the end
    "predict": Requests(4, 1),  # texts; the predictions again, to count them
    "evaluate": Requests(4, 0),  # labels and gold, if the corpus has gold
    "report": Requests(4, 0),  # labels and pseudo-labels
    "report of an epoch": Requests(4, 0),  # uncertainty and selected rows
}
"""Requests for each shard, by stage: reading a shard takes two (its size, its content), writing one."""
PAGE_NAMES = 1000
"""Names that an object store lists in one request."""
LISTINGS = 4
"""Listings of a folder: before and after its stage, for the record of sizes and times, and for the
next command's check. Priced as writes."""

INGEST_RATE = 100_000.0
"""Rows a second that a CPU ingests: texts of some 500 letters in Parquet."""
SELECT_RATE = 8_000_000.0
"""Rows a second that a CPU selects, or turns from labels into pseudo-labels."""
SHARD_SECONDS = 0.001
"""CPU time of a task for the files of a shard, whatever their size."""

DRIVER_MIB = 300.0
"""Memory of the driver with Ray and no shards."""
DRIVER_BYTES = 1500.0
"""Its growth a shard: names, counts and checksums while a stage is closed."""
DRIVER_SECONDS = {"ingest": 1e-4, "label": 3e-4, "epoch": 4e-5, "predict": 3e-4, "start": 3e-5}
"""CPU time of the driver for a shard, by stage; `start` is the check of a command. Measured by
`jobs/benchmark.py control`."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The inputs that a run's config lacks: the size of its data, measured rates, and the cluster."""

    rows: int
    """Usable rows of the corpus."""
    test_rows: int = 0
    text_bytes: float = 500.0
    """Stored bytes of a row of the corpus."""
    teacher_rate: float
    """Rows a second of one replica; of several teachers, the inverse of the mean time a row."""
    teacher_replicas: int = 1
    teacher_gpus: float = 1.0
    """GPUs of one replica, on all its nodes; 1 on a cluster without GPUs."""
    prompt_tokens: float = 0.0
    """Mean tokens of a prompt, including the shared prefix."""
    score_rate: float
    """Rows a second that one worker scores."""
    train_rate: float
    """Rows a second that one worker trains on."""
    student_tokens: float = 0.0
    """Mean tokens of a text as the student reads it."""
    student_parameters: int = 0
    on_gpus: bool = True
    """Whether replicas and workers hold GPUs; otherwise CPUs."""
    cpus: int = 1
    """CPUs for ingest and selection."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The estimate of one stage."""

    name: str
    rows: float
    """Rows that it processes."""
    tokens: float = 0.0
    """Tokens that its model reads."""
    workers: int
    on: str
    """The resource of a worker: `GPU` or `CPU`."""
    rate: float
    """Rows a second of one worker."""
    held: float = 1.0
    """GPUs or CPUs of one worker."""
    model: bool = False
    """Whether its workers run a model."""
    seconds: float
    """Wall-clock time with all workers busy to the end."""
    cost: float | None
    files: int = 0
    """Shards of the tables that it keeps."""
    bytes: float = 0.0
    """Size of these files."""
    reads: float = 0.0
    """Requests that read."""
    writes: float = 0.0
    """Requests that write or list."""


class Workers(NamedTuple):
    """The replicas or workers of a model, or the CPUs of Ray tasks."""

    number: int
    rate: float
    """Rows a second of one of them."""
    tokens: float = 0.0
    """Tokens of a row."""
    held: float = 1.0
    """GPUs or CPUs of one of them."""
    model: bool = True


class Table(NamedTuple):
    """A table that a stage writes, a file a shard."""

    rows: float
    row_bytes: float
    fixed_bytes: float
    """Bytes of a file without rows."""
    copies: int = 1
    """Tables of this form."""


NO_TABLE = Table(0, 0.0, 0.0, copies=0)


@dataclass(frozen=True)
class Estimate:
    """The estimate of a run, stage by stage.

    A model's seconds are rows / (rate x workers). Those of a task are
    (rows / rate + shards x SHARD_SECONDS) / CPUs. Requests are shards x REQUESTS, and LISTINGS of
    each folder that is written.
    """

    config: RunConfig
    workload: Workload

    @cached_property
    def stages(self) -> list[Stage]:
        """The stages in the order in which they run."""
        config, load, label = self.config, self.workload, self.config.label
        labelled, teachers = load.rows * label.budget, max(len(config.teachers), 1)
        # The labels of each teacher and, of several, their combination.
        labels = Table(labelled, self._labels_row, LABELS_FIXED, teachers + (teachers > 1))
        replicas = Workers(
            load.teacher_replicas, load.teacher_rate, load.prompt_tokens * teachers, load.teacher_gpus
        )  # fmt: skip
        corpus = Table(load.rows, load.text_bytes, corpus_fixed(config))
        stages = [
            self._stage("ingest", load.rows, self._cpus(INGEST_RATE), corpus),
            self._stage("label", labelled + load.test_rows, replicas, labels),
        ]
        # The first round labels `label.first` of the budget, the others equal shares of the rest.
        # After each but the last a student learns from the labels so far and predicts all rows.
        for number in range(label.rounds - 1 if label.in_part else 0):
            later = (1 - label.first) / (label.rounds - 1)
            so_far = labelled * (label.first + later * number)
            prefix = f"round {number + 1} "
            stages += self._epochs(so_far, prefix)
            stages.append(self._stage("predict", load.rows, self._predictors, prefix=prefix))
        reported = REQUESTS["report"].reads
        reported += config.student.epochs * REQUESTS["report of an epoch"].reads
        stages += self._epochs(labelled, last_reads=reported)
        if load.test_rows or config.corpus.label_column is not None:
            stages.append(self._evaluate())
        row = self._labels_row if config.predict.probabilities else PREDICTIONS_ROW
        predictions = Table(load.rows, row, LABELS_FIXED)
        return [*stages, self._stage("predict", load.rows, self._predictors, predictions)]

    def _epochs(self, labelled: float, prefix: str = "", last_reads: int = 0) -> list[Stage]:
        """Pseudo-labels, then for each epoch score, select, train.

        Args:
            labelled: rows with a label.
            prefix: of the stages' names.
            last_reads: further reads of a shard after the last epoch.
        """
        config, load, policy = self.config, self.workload, policy_of(self.config)
        classes, epochs = len(config.task.labels), config.student.epochs
        distribution = self._labels_row - PSEUDO_LABELS_ROW
        targets = config.student.loss.uses_targets
        kept = distribution if policy.uses_teacher_probs or targets else 0.0
        pseudo_labels = Table(labelled, PSEUDO_LABELS_ROW + kept, NUMBERS_FIXED)
        selected_row = SELECTION_ROW + (distribution if targets else 0.0)
        scored_row = UNCERTAINTY_ROW + (2.0 * classes if policy.uses_student_probs else 0.0)
        scored = Table(labelled, scored_row, UNCERTAINTY_FIXED)
        scorers = Workers(config.student.most_workers, load.score_rate, load.student_tokens)
        trainers = scorers._replace(rate=load.train_rate)
        cpus = self._cpus(SELECT_RATE)
        last_reads += epochs * REQUESTS["unique"].reads
        refines = config.selection.refines and not prefix  # rounds of labelling refine nothing
        makers, texts = (self._predictors, 2) if refines else (cpus, 0)
        stages = [
            self._stage("prepare", labelled, makers, pseudo_labels, prefix=prefix, reads=texts)
        ]
        taken = 0  # optimiser steps
        for number, share in enumerate(selected_shares(config), start=1):
            epoch, rows = f"{prefix}epoch {number} ", labelled * share
            if policy.uses_uncertainty:
                stages.append(self._stage("score", labelled, scorers, scored, prefix=epoch))
            selection = Table(rows, selected_row, NUMBERS_FIXED)
            reads = last_reads if number == epochs else 0
            steps = max(math.ceil(rows / config.student.batch_size), 1)
            full = policy.full_epochs(epochs)
            passes = config.student.passes(steps, taken, number - 1, full)
            taken += steps * passes
            stages += [
                self._stage("select", labelled, cpus, selection, prefix=epoch),
                self._stage("train", rows * passes, trainers, prefix=epoch, reads=reads),
            ]
        return stages

    def _evaluate(self) -> Stage:
        """The student on the test set, whose three tables are counted here, and the teacher on the
        corpus if it has gold labels."""
        rows = self.workload.test_rows
        unread = 0 if self.config.corpus.label_column is not None else -REQUESTS["evaluate"].reads
        stage = self._stage("evaluate", rows, self._predictors, reads=unread)
        files = 3 * -(-rows // TEST_ROWS_PER_SHARD)
        row_bytes = self.workload.text_bytes + 2 * self._labels_row
        written = rows * row_bytes + files * (LABELS_FIXED + RECORD_BYTES)
        return replace(stage, files=files, bytes=written)

    def _stage(
        self, kind: str, rows: float, workers: Workers, table: Table = NO_TABLE,
        *, prefix: str = "", reads: int = 0,
    ) -> Stage:  # fmt: skip
        """The figures of a stage.

        Args:
            kind: a key of REQUESTS, and the end of the stage's name.
            rows: that it processes.
            workers: that it runs on.
            table: that it writes.
            prefix: of its name.
            reads: of a shard, in addition to REQUESTS.
        """
        plan, shards, requests = self.config.plan, self.shards, REQUESTS[kind]
        price = plan.price_per_hour if workers.model else plan.cpu_price_per_hour
        opening = 0.0 if workers.model else shards * SHARD_SECONDS
        seconds = (rows / workers.rate + opening) / workers.number
        size = table.rows * table.row_bytes + shards * (table.fixed_bytes + RECORD_BYTES)
        copies, listings = max(table.copies, 1), LISTINGS * -(-shards // PAGE_NAMES)
        return Stage(
            name=prefix + kind, rows=rows, tokens=rows * workers.tokens, workers=workers.number,
            on="GPU" if workers.model and self.workload.on_gpus else "CPU", rate=workers.rate,
            held=workers.held, model=workers.model, seconds=seconds,
            cost=None if price is None else price * workers.number * seconds / 3600,
            files=shards * table.copies, bytes=table.copies * size,
            reads=float(shards * (requests.reads + reads) * copies),
            writes=float(shards * requests.writes * copies + table.copies * listings),
        )  # fmt: skip

    def _cpus(self, rate: float) -> Workers:
        return Workers(self.workload.cpus, rate, model=False)

    @property
    def _labels_row(self) -> float:
        """Bytes of a row that holds a distribution over the labels."""
        return LABELS_ROW + LABELS_CLASS * len(self.config.task.labels)

    @property
    def _predictors(self) -> Workers:
        load = self.workload
        return Workers(self.config.predict.replicas[1], load.score_rate, load.student_tokens)

    @property
    def shards(self) -> int:
        """ceil(rows / rows_per_shard)."""
        return -(-self.workload.rows // self.config.corpus.rows_per_shard)

    def total(self, name: str) -> float:
        """The sum of a figure over all stages."""
        return float(sum(getattr(stage, name) for stage in self.stages))

    @property
    def worker_hours(self) -> float:
        """GPU hours of all models; without GPUs, hours of their workers."""
        models = [stage for stage in self.stages if stage.model]
        return sum(stage.seconds * stage.workers * stage.held for stage in models) / 3600

    @property
    def cost(self) -> float | None:
        """Of all stages; None without a price."""
        known = [stage.cost for stage in self.stages if stage.cost is not None]
        return sum(known) if known else None

    @property
    def driver_seconds(self) -> float:
        """CPU time of the driver: shards times DRIVER_SECONDS of each stage and epoch."""
        each = dict(DRIVER_SECONDS)
        each["epoch"] *= self.config.student.epochs
        return self.shards * sum(each.values())

    @property
    def driver_mib(self) -> float:
        """DRIVER_MIB + shards x DRIVER_BYTES."""
        return DRIVER_MIB + self.shards * DRIVER_BYTES / 2**20

    @property
    def shard_size(self) -> ShardSize:
        """The recommended size of a shard."""
        load, student = self.workload, self.config.student.most_workers
        actors = max(load.teacher_replicas, student, self.config.predict.replicas[1])
        return ShardSize(load.rows, actors, load.text_bytes, load.teacher_rate)

    def to_json(self) -> dict[str, Any]:
        """All figures as plain values."""
        names = ("seconds", "files", "bytes", "reads", "writes", "tokens")
        return {
            "setup": asdict(self.workload),
            "shards": self.shards,
            "recommended_rows_per_shard": self.shard_size.recommended,
            "stages": [asdict(stage) for stage in self.stages],
            "total": {name: self.total(name) for name in names} | {"cost": self.cost},
            "worker_hours": self.worker_hours,
            "driver": {"seconds": self.driver_seconds, "mib": self.driver_mib},
        }


def selected_shares(config: RunConfig) -> Sequence[float]:
    """The share of the labelled rows that each epoch trains on, before their signals are known.

    `plan.selected_fraction` if it is set. `all`: 1. `random`: `fraction`. `refined`: `keep` of one
    of `parts`. The others by their signals: a row exceeds the mean of its class by one signal half
    of the time, by two a quarter of the time; the warm-up has one signal.
    """
    selection, epochs = config.selection, config.student.epochs
    if config.plan.selected_fraction is not None:
        return (config.plan.selected_fraction,) * epochs
    if selection.policy == "all":
        return (1.0,) * epochs
    if selection.policy == "random":
        return (selection.fraction,) * epochs
    if selection.policy == "refined":
        return (selection.keep / min(selection.parts, epochs),) * epochs
    later = 0.25 if selection.policy == "llkd" else 0.5
    return tuple(0.5 if epoch < selection.warmup_epochs else later for epoch in range(epochs))
