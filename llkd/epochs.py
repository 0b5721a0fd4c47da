"""The epoch loop, as each training worker runs it.

In each epoch the workers take shards to score as they get free; rank 0 then runs the selection as
Ray Data tasks on CPUs beside the workers; then all train on equal parts of what was selected.
"""

import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from llkd.config import RunConfig
from llkd.core.statistics import ClassStatistics
from llkd.core.thresholds import Thresholds
from llkd.core.uncertainty import MEASURES
from llkd.errors import LLKDError, StorageError, StudentError
from llkd.schema import ROW, TEXT, UNCERTAINTY, UNCERTAINTY_SCHEMA, RunLayout
from llkd.selection import Selector, policy_of
from llkd.storage import Folder, local_copy

STATS = "stats.json"


def read_stats(config: RunConfig, epoch: int) -> dict[str, Any]:
    """An epoch's stats.json."""
    stats: dict[str, Any] = Folder(RunLayout(config.run_dir).epoch(epoch)).read_json(STATS)
    return stats


@ray.remote(num_cpus=0)
class ShardQueue:
    """Hands shards to the workers as they get free, and gathers what they found."""

    def __init__(self) -> None:
        self._waiting: list[int] = []
        self._found: dict[int, list[float]] = {}
        self._failure: tuple[str, str] | None = None

    def begin(self, shards: Sequence[int]) -> None:
        """Start a pass over these shards."""
        self._waiting, self._found = list(reversed(shards)), {}

    def take(self) -> int | None:
        """The next shard; None when there is none left."""
        return self._waiting.pop() if self._waiting else None

    def done(self, shard: int, sums: list[float]) -> None:
        """A shard's sums of uncertainty by class."""
        self._found[shard] = sums

    def found(self) -> dict[int, list[float]]:
        """The sums of all shards of the pass."""
        return self._found

    def fail(self, kind: str, message: str) -> None:
        """Keep a typed error: Ray Train tells the driver its text only."""
        self._failure = kind, message

    def failure(self) -> tuple[str, str] | None:
        """The typed error that ended the training; None while there is none."""
        return self._failure


def checkpoint_name(epoch: int) -> str:
    """The folder of an epoch's checkpoint; names sort like epochs."""
    return f"epoch-{epoch:04d}"


def run_worker(loop_config: dict[str, Any]) -> None:
    """What each training worker runs.

    Ray Train starts a failed group again. Where what failed is a mistake that no new start
    mends, the new group ends at once and the driver tells the mistake.
    """
    queue = loop_config["queue"]
    if ray.get(queue.failure.remote()) is not None:
        return
    try:
        EpochLoop(**loop_config).run()
    except LLKDError as error:
        if not isinstance(error, StorageError):
            ray.get(queue.fail.remote(type(error).__name__, str(error)))
        raise


class EpochLoop:
    """One worker's way through the epochs."""

    def __init__(
        self,
        config: RunConfig,
        selector: Selector,
        shard_rows: Sequence[int],
        queue: Any,
        tracker: Any,
    ) -> None:
        import torch
        from ray.train import get_context
        from ray.train.torch import get_device, prepare_model

        from llkd.student.model import load_student, use_bfloat16
        from llkd.student.scoring import Scorer
        from llkd.student.training import Trainer

        self.config, self.selector, self.shard_rows = config, selector, shard_rows
        self.queue, self.tracker = queue, tracker
        context = get_context()
        self.rank, self.workers = context.get_world_rank(), context.get_world_size()
        self.layout = RunLayout(config.run_dir)
        self.policy = policy_of(config)
        self.device = get_device()
        if self.device.type == "cpu":
            torch.set_num_threads(_threads(context.get_local_world_size()))
        torch.manual_seed(config.seed)  # the head starts the same everywhere
        self.tokenizer, self.model = load_student(config.student, config.task.label_names)
        bfloat16 = use_bfloat16(config.student.precision, self.device)
        wrapped = prepare_model(
            self.model, parallel_strategy_kwargs={"gradient_as_bucket_view": True}
        )
        self.trainer = Trainer(wrapped, config.student, self.device, bfloat16)
        self.scorer = Scorer(
            self.tokenizer, self.model, max_length=config.student.max_length, bfloat16=bfloat16
        )

    def run(self) -> None:
        """All epochs that are not done yet."""
        for epoch in range(self._resume(), self.config.student.epochs):
            started = time.monotonic()
            if self.policy.uses_uncertainty:
                self._score(epoch)
            scored = time.monotonic()
            stats = self._select(epoch)
            selected = time.monotonic()
            loss = self._train(epoch, stats)
            stats["training_loss"] = loss
            stats["seconds"] = {
                "score": scored - started,
                "select": selected - scored,
                "train": time.monotonic() - selected,
            }
            self._report(epoch, stats)

    def _agreed(self, value: Any) -> Any:
        """Rank 0's value, on every worker; also a barrier."""
        from ray.train.collective import broadcast_from_rank_zero

        return broadcast_from_rank_zero(value if self.rank == 0 else None)

    def _resume(self) -> int:
        """Load the last checkpoint, if there is one; returns the epoch to begin with."""
        from llkd.student.training import last_checkpoint, load_checkpoint

        name = self._agreed(last_checkpoint(Folder(self.layout.checkpoints)))
        if name is None:
            return 0
        with local_copy(f"{self.layout.checkpoints}/{name}") as directory:
            state = load_checkpoint(Path(directory), self.model, self.trainer.optimizer)
        return int(state["epoch"]) + 1

    def _name(self, epoch: int, what: str) -> str:
        return f"epoch {epoch + 1}/{self.config.student.epochs} {what}"

    def _score(self, epoch: int) -> None:
        """The uncertainty pass: shards of this epoch that are not there yet."""
        folder = Folder(self.layout.uncertainty(epoch))
        if self.rank == 0:
            missing = sorted(set(range(len(self.shard_rows))) - folder.shards())
            ray.get(self.queue.begin.remote(missing))
            skipped = sum(self.shard_rows) - sum(self.shard_rows[shard] for shard in missing)
            self.tracker.begin.remote(self._name(epoch, "scoring"), sum(self.shard_rows), skipped)
        self._agreed(None)
        while (shard := ray.get(self.queue.take.remote())) is not None:
            ray.get(self.queue.done.remote(shard, self._score_shard(epoch, shard)))
        self._agreed(None)

    def _score_shard(self, epoch: int, shard: int) -> list[float]:
        """Write a shard's uncertainty; returns its sums by class."""
        row_n, signals = self.selector.signals(shard, None)
        texts = Folder(self.layout.rows("corpus")).read_shard(shard, [TEXT])[TEXT]
        probs_nc = self.scorer.probabilities(
            texts.take(pa.array(row_n)).to_pylist(),
            partial(self.tracker.update.remote, f"{epoch}/{shard}"),
        )
        uncertainty_n = MEASURES[self.config.selection.uncertainty](probs_nc).astype(np.float32)
        table = pa.table({ROW: row_n, UNCERTAINTY: uncertainty_n}, schema=UNCERTAINTY_SCHEMA)
        Folder(self.layout.uncertainty(epoch)).write_shard(shard, table)
        return self.selector.uncertainty_sums(signals, uncertainty_n).tolist()

    def _select(self, epoch: int) -> dict[str, Any]:
        """The selection of this epoch: made by rank 0, read by all."""
        folder = Folder(self.layout.epoch(epoch))
        if self.rank == 0 and not folder.exists(STATS):
            sums_c = self._merged_uncertainty(epoch) if self.policy.uses_uncertainty else None
            stats = self.selector.select(
                epoch, self._teacher_statistics(), sums_c, self._previous_thresholds(epoch)
            )
            folder.write_json(STATS, stats)
        self._agreed(None)
        return read_stats(self.config, epoch)

    def _teacher_statistics(self) -> ClassStatistics:
        """The teacher's side of the statistics, computed in the first epoch and kept."""
        folder, name = Folder(self.layout.labels("corpus")), "statistics.json"
        if not folder.exists(name):
            folder.write_json(name, self.selector.teacher_statistics().to_json())
        return ClassStatistics.from_json(folder.read_json(name))

    def _merged_uncertainty(self, epoch: int) -> np.ndarray:
        """Sums of uncertainty by class, in shard order so that they are the same every time."""
        found = ray.get(self.queue.found.remote())
        total_c = np.zeros(len(self.config.task.labels))
        for shard in range(len(self.shard_rows)):
            if shard not in found:  # scored before a failure
                _, signals = self.selector.signals(shard, epoch)
                assert signals.uncertainty_n is not None
                found[shard] = self.selector.uncertainty_sums(signals, signals.uncertainty_n)
            total_c += np.asarray(found[shard])
        return total_c

    def _previous_thresholds(self, epoch: int) -> Thresholds | None:
        if epoch == 0:
            return None
        return Thresholds.from_json(read_stats(self.config, epoch - 1)["thresholds"])

    def _train(self, epoch: int, stats: dict[str, Any]) -> float:
        """Train on this worker's part; returns the mean loss over all workers."""
        import torch

        from llkd.student.data import SelectedRows, portion

        seed = self.config.seed * 1009 + epoch
        part = portion(stats["selected_by_shard"], self.rank, self.workers, seed)
        if part.rows == 0:
            raise StudentError(
                f"Epoch {epoch + 1} selected {stats['selected']} rows, too few to train "
                f"{self.workers} worker(s). Use another selection.policy, or raise "
                "selection.class_floor (for random: selection.fraction)."
            )
        if self.rank == 0:
            self.tracker.begin.remote(self._name(epoch, "training"), part.rows * self.workers)
        batch_size = self.config.student.batch_size // self.workers
        rows = SelectedRows(
            Folder(self.layout.rows("corpus")),
            Folder(self.layout.selection(epoch)),
            self.tokenizer,
            batch_size=batch_size,
            max_length=self.config.student.max_length,
        )
        torch.manual_seed(seed * 65537 + self.rank)  # dropout
        batches = self._counted(rows.batches(part, seed, stats["weight_mean"]), epoch)
        total, count = self.trainer.train(batches, epoch, steps=-(-part.rows // batch_size))
        sums = torch.tensor([total, count], dtype=torch.float64)
        if self.workers > 1:
            sums = sums.to(self.device)
            torch.distributed.all_reduce(sums)
        return float(sums[0] / sums[1])

    def _counted(self, batches: Any, epoch: int) -> Any:
        done = 0
        for batch in batches:
            yield batch
            done += len(batch.labels_b)
            self.tracker.update.remote(f"{epoch}/{self.rank}", done)

    def _report(self, epoch: int, stats: dict[str, Any]) -> None:
        """Leave the epoch's stats and a checkpoint."""
        from ray.train import Checkpoint, report

        from llkd.student.training import save_checkpoint

        metrics = {
            "epoch": epoch,
            "training_loss": stats["training_loss"],
            "selected_fraction": stats["fraction"],
        }
        with TemporaryDirectory(prefix="llkd-") as directory:
            checkpoint = None
            if self.rank == 0:
                Folder(self.layout.epoch(epoch)).write_json(STATS, stats)
                save_checkpoint(
                    Path(directory), self.model, self.trainer.optimizer, {"epoch": epoch}
                )
                checkpoint = Checkpoint.from_directory(directory)
                self.tracker.note.remote(
                    f"epoch {epoch + 1}: {stats['selected']:,} of {stats['rows']:,} rows selected "
                    f"({stats['fraction']:.1%}), training loss {stats['training_loss']:.3f}"
                )
            report(metrics, checkpoint=checkpoint, checkpoint_dir_name=checkpoint_name(epoch))


def _threads(workers_on_node: int) -> int:
    return max((os.cpu_count() or 1) // workers_on_node, 1)
