"""The epoch loop, as each training worker runs it.

In each epoch the workers score pieces of shards, balanced dynamically; rank 0 runs the selection as
Ray Data tasks on CPUs beside the workers; all workers train on equal parts of the selected rows, and
measure the student on the validation split.
"""

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray

from llkd.cluster.progress import throttled
from llkd.cluster.telemetry import Work
from llkd.config.run import RunConfig
from llkd.core.thresholds import Thresholds
from llkd.distill import probe
from llkd.distill.checkpointing import CheckpointStore
from llkd.distill.epoch_stats import STATS, best_epoch, notes, read_stats, scores_until
from llkd.distill.holdout import read_validation, write_predictions
from llkd.distill.idle_time import Waits
from llkd.distill.pseudo_labels import teacher_statistics
from llkd.distill.scoring_pass import UncertaintyPass
from llkd.distill.selection import Selector
from llkd.errors import LLKDError, StorageError, StudentError
from llkd.store.folder import Folder
from llkd.store.schema import RunLayout
from llkd.store.scratch import clear_dead, make_scratch
from llkd.store.transfer import local_copy
from llkd.student.prefetch import Ahead

STEPS_AHEAD = 8
"""Optimiser steps whose batches are read and tokenised before they are needed."""


def run_worker(loop_config: dict[str, Any]) -> None:
    """The entry point of a training worker.

    Ray Train restarts a failed group. After an error that no restart can fix, the new group ends at
    once and the driver raises that error.
    """
    queue = loop_config["queue"]
    if ray.get(queue.failure.remote()) is not None:
        return
    clear_dead()
    try:
        EpochLoop(**loop_config).run()
    except LLKDError as error:
        # The storage may be available again after a restart.
        keep = queue.trouble if isinstance(error, StorageError) else queue.fail
        ray.get(keep.remote(error))
        raise


class EpochLoop:
    """One worker's epochs."""

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
        from ray.train.torch import get_device

        from llkd.student.model import load_student, use_bfloat16
        from llkd.student.parallel import parallel_model
        from llkd.student.scoring import Scorer, scoring_copy
        from llkd.student.training import Trainer

        self.config, self.selector, self.shard_rows = config, selector, shard_rows
        self.queue, self.tracker, self.waits = queue, tracker, Waits()
        context = get_context()
        self.rank, self.workers = context.get_world_rank(), context.get_world_size()
        self.layout, self.checkpoints = RunLayout(config.run_dir), CheckpointStore(config, queue)
        self.policy = selector.policy
        self.device = get_device()
        student = config.student
        if self.device.type == "cpu":
            torch.set_num_threads(_threads(context.get_local_world_size()))
        torch.manual_seed(config.seed)  # the same initial head on every worker
        self.tokenizer, whole = load_student(student, config.task.label_names)
        self._bfloat16 = use_bfloat16(student.precision, self.device)
        self._scored = scoring_copy(whole, self._bfloat16).to(self.device)
        self.scorer = Scorer(
            self.tokenizer, self._scored, max_length=student.max_length, compiled=student.compile,
            dropout_passes=config.selection.mc_dropout,
        )  # fmt: skip
        self.uncertainty = UncertaintyPass(
            config, selector, shard_rows, self.scorer, queue, tracker, self.rank, self.workers
        )
        self.model = parallel_model(whole, student.parallel, self.workers, self.device)
        self._weights = whole  # without the parallel wrapper
        self.trainer = Trainer(self.model, student, self.device, self._bfloat16)
        self.validation = read_validation(config)

    def run(self) -> None:
        """Run all remaining epochs."""
        from llkd.student.pooling import pooling_of

        first = self._resume()
        self._taken = sum(read_stats(self.config, epoch)["steps"] for epoch in range(first))
        if self.rank == 0:
            self.tracker.note.remote(
                f"pooling of the student: {pooling_of(self._weights) or 'native'}"
            )
        if self.rank == 0 and not self.layout.is_round:
            self.tracker.doing.remote("the linear probe")
            probe.fit(self.selector, self.validation, self.device, self._bfloat16)
        self._agreed(None)
        self._begun = time.monotonic()
        if first > 0 and read_stats(self.config, first - 1)["stopped"]:
            return
        for epoch in range(first, self.config.student.epochs):
            if self._epoch(epoch)["stopped"]:
                return

    def _epoch(self, epoch: int) -> dict[str, Any]:
        started = time.monotonic()
        if self.policy.uses_uncertainty:
            self.uncertainty.begin(epoch, self._name(epoch, "scoring"))
            self._agreed(None)
            self.uncertainty.run(epoch)
            self.waits.add("batches", self.scorer.taken_wait())
            with self.waits.on("others"):
                self._agreed(None)
        scored = time.monotonic()
        with self.waits.on("selection"):
            stats = self._select(epoch)
        selected = time.monotonic()
        stats.update(self._train(epoch, stats))
        stats["validation"] = self._validate(epoch)
        stats["stopped"] = self._out_of_patience(epoch, stats)
        stats["seconds"] = {
            "score": scored - started,
            "select": selected - scored,
            "train": time.monotonic() - selected,
        }
        # Measured from report to report, so it includes storing the previous checkpoint.
        stats["waiting"] = self._waiting(time.monotonic() - self._begun)
        self._begun, self.waits = time.monotonic(), Waits()
        with self.waits.on("checkpoint"):
            self._report(epoch, stats)
        return stats

    def _agreed(self, value: Any) -> Any:
        """Rank 0's value, on every worker; also a barrier."""
        from ray.train.collective import broadcast_from_rank_zero

        return broadcast_from_rank_zero(value if self.rank == 0 else None)

    def _total(self, values: np.ndarray) -> np.ndarray:
        """The sum over all workers: float64, of the shape of `values`."""
        import torch

        tensor = torch.as_tensor(values, dtype=torch.float64)
        if self.workers > 1:
            tensor = tensor.to(self.device)
            torch.distributed.all_reduce(tensor)
        return np.asarray(tensor.cpu().numpy())

    def _resume(self) -> int:
        """Load the last checkpoint, if any; returns the first epoch to run."""
        from llkd.student.checkpoints import last_checkpoint, load_checkpoint

        # Only rank 0 verifies the contents.
        found = last_checkpoint(Folder(self.layout.checkpoints), True) if self.rank == 0 else None
        name = self._agreed(found)
        if name is None:
            return 0
        with local_copy(f"{self.layout.checkpoints}/{name}") as directory:
            state = load_checkpoint(Path(directory), self.model, self.trainer.optimizer)
        self._refresh_scorer()
        return int(state["epoch"]) + 1

    def _refresh_scorer(self) -> None:
        """Copy the current weights to the model that scores."""
        from llkd.student.parallel import copy_weights

        copy_weights(self._weights, self._scored)

    def _name(self, epoch: int, what: str) -> str:
        return f"epoch {epoch + 1}/{self.config.student.epochs} {what}"

    def _select(self, epoch: int) -> dict[str, Any]:
        """Select the rows of this epoch, on rank 0; returns the stats, on every worker."""
        folder = Folder(self.layout.epoch(epoch))
        if self.rank == 0 and not folder.exists(STATS):
            self.tracker.doing.remote(self._name(epoch, "selection"))
            previous = None
            if epoch > 0:
                previous = Thresholds.from_json(read_stats(self.config, epoch - 1)["thresholds"])
            stats = self.selector.select(
                epoch,
                teacher_statistics(self.selector.config),
                self.uncertainty.merged(epoch) if self.policy.uses_uncertainty else None,
                previous,
            )
            folder.write_json(STATS, stats)
        self._agreed(None)
        return read_stats(self.config, epoch)

    def _train(self, epoch: int, stats: dict[str, Any]) -> dict[str, Any]:
        """Train on this worker's part.

        Returns:
            `training_loss`: the mean over all workers; `dropped`: the rows dropped to make the parts
            equal; `steps`: the optimiser steps; `passes`: over the part.
        """
        import torch

        from llkd.student.data import portion
        from llkd.student.training import Schedule

        seed = self.config.seed * 1009 + epoch
        counts = self.selector.counts(epoch)
        part = portion(counts.selected_s.tolist(), self.rank, self.workers, seed)
        if part.rows == 0:
            raise StudentError(
                f"Epoch {epoch + 1} selected {stats['selected']} rows, too few to train "
                f"{self.workers} worker(s).",
                "Use another selection.policy, or raise selection.class_floor (for random: "
                "selection.fraction).",
            )
        student = self.config.student
        steps = -(-part.rows // (student.batch_size // self.workers))
        full = self.policy.full_epochs(student.epochs)
        repeats = student.passes(steps, self._taken, epoch, full)
        if self.rank == 0:
            name, rows = self._name(epoch, "training"), part.rows * self.workers * repeats
            self.tracker.begin.remote(name, rows, 0, "worker")
        torch.manual_seed(seed * 65537 + self.rank)  # dropout
        schedule = Schedule(
            self._taken, steps * repeats, student.epochs - epoch, student.warmup_fraction
        )
        self._taken += schedule.count
        weight_mean = counts.weight_sum / max(stats["selected"], 1)
        with Ahead(self._batches(epoch, part, repeats, seed, weight_mean), STEPS_AHEAD) as batches:
            total, count = self.trainer.train(self._counted(batches, epoch), schedule)
            self.waits.add("batches", batches.waited)
        with self.waits.on("others"):
            total, count = self._total(np.array([total, count]))
        self._refresh_scorer()
        return {
            "training_loss": float(total / count), "dropped": part.dropped,
            "steps": schedule.count, "passes": repeats,
        }  # fmt: skip

    def _batches(
        self, epoch: int, part: Any, repeats: int, seed: int, weight_mean: float
    ) -> Iterator[Any]:
        """The batches of each optimiser step of this worker, over all passes."""
        from llkd.student.data import SelectedRows

        student = self.config.student
        rows = SelectedRows(
            Folder(self.layout.rows("corpus")), Folder(self.layout.selection(epoch)),
            self.tokenizer, batch_size=student.batch_size // self.workers,
            max_length=student.max_length, micro_batch_size=student.micro_batch_size,
            targets=student.loss.uses_targets,
        )  # fmt: skip
        for number in range(repeats):
            yield from rows.steps(part, seed + number * 1_000_003, weight_mean)

    def _counted(self, steps: Iterable[Any], epoch: int) -> Iterator[Any]:
        of, unit = self._work(epoch), f"{epoch}/{self.rank}"

        def update(done: int) -> None:
            loss = self.trainer.mean_loss() if self.rank == 0 else None
            self.tracker.update.remote(unit, done, of=of, loss=loss)

        report, done = throttled(update), 0
        for batches in steps:
            yield batches
            done += sum(len(batch.labels_b) for batch in batches)
            report(done)
        update(done)

    def _work(self, epoch: int) -> Work:
        return Work(self.layout.name, "train", "corpus", epoch)

    def _validate(self, epoch: int) -> dict[str, Any] | None:
        """The student's figures on the validation split; None without one."""
        if self.validation is None:
            return None
        part = self.validation.part(self.rank, self.workers)
        probs_vc = np.zeros((len(self.validation.texts), self.selector.classes))
        probs_vc[part] = self.scorer.probabilities(self.validation.texts[part])
        self.waits.add("batches", self.scorer.taken_wait())
        probs_vc = self._total(probs_vc)
        if self.rank == 0:
            write_predictions(self.config, epoch, probs_vc)
        return self.validation.measure(probs_vc)

    def _out_of_patience(self, epoch: int, stats: dict[str, Any]) -> bool:
        """Whether the last `student.patience` epochs did not improve the student."""
        patience = self.config.student.patience
        if patience is None:
            return False
        scores = [*scores_until(self.config, epoch), stats["validation"]["macro_f1"]]
        return epoch - best_epoch(scores) >= patience

    def _waiting(self, seconds: float) -> dict[str, Any]:
        """Idle seconds by reason, the mean over the workers, and their share of the epoch."""
        reasons = ("batches", "selection", "others", "checkpoint")
        mean = self._total(np.array([self.waits.seconds.get(r, 0.0) for r in reasons]))
        mean /= self.workers
        found = dict(zip(reasons, mean.tolist(), strict=True))
        return {"share": sum(found.values()) / seconds, "seconds": found}

    def _report(self, epoch: int, stats: dict[str, Any]) -> None:
        """Write the epoch's stats, and a checkpoint that is uploaded during the next epoch."""
        from ray.train import Checkpoint, CheckpointUploadMode, report

        from llkd.student.checkpoints import checkpoint_name, save_checkpoint
        from llkd.student.parallel import model_tensors, optimizer_tensors

        weights = model_tensors(self.model)
        moments = optimizer_tensors(self.model, self.trainer.optimizer)
        checkpoint = None
        if self.rank == 0:
            self.checkpoints.delete_old(epoch)
            Folder(self.layout.epoch(epoch)).write_json(STATS, stats)
            directory = make_scratch()
            save_checkpoint(directory, weights, moments, {"epoch": epoch})
            checkpoint = Checkpoint.from_directory(str(directory))
            self.tracker.epoch.remote(self._work(epoch), stats)
            for line in notes(epoch, stats):
                self.tracker.note.remote(line)
        report(
            {
                "epoch": epoch,
                "training_loss": stats["training_loss"],
                "selected_fraction": stats["fraction"],
            },
            checkpoint=checkpoint,
            checkpoint_dir_name=checkpoint_name(epoch),
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=self.checkpoints.upload,
        )


def _threads(workers_on_node: int) -> int:
    usable = os.sched_getaffinity(0) if sys.platform == "linux" else range(os.cpu_count() or 1)
    return max(len(usable) // workers_on_node, 1)
