"""Stores and deletes the checkpoints of the epoch loop."""

from pathlib import Path
from typing import Any

import ray

from llkd.config.run import RunConfig
from llkd.distill.epoch_stats import best_epoch, scores_until
from llkd.errors import StorageError
from llkd.store.filesystems import filesystem
from llkd.store.folder import Folder
from llkd.store.schema import RunLayout


class CheckpointStore:
    """The checkpoints of a run; picklable, for Ray Train's upload thread."""

    def __init__(self, config: RunConfig, queue: Any) -> None:
        """
        Args:
            config: the run.
            queue: the ShardQueue of all workers, which keeps the error of a failed upload.
        """
        self._config, self._queue = config, queue
        self._folder = Folder(RunLayout(config.run_dir).checkpoints)

    def upload(self, checkpoint: Any, name: str) -> Any:
        """Store a checkpoint, in a thread of Ray Train; returns the stored one.

        Raises:
            StorageError: it cannot be written.
        """
        from ray.train import Checkpoint

        from llkd.student.checkpoints import store_checkpoint

        try:
            store_checkpoint(Path(checkpoint.path), self._folder, name)
        except StorageError as error:
            ray.get(self._queue.trouble.remote(StorageError(str(error))))
            raise
        filesystem_, path = filesystem(self._folder.uri)
        return Checkpoint(f"{path}/{name}", filesystem_)

    def delete_old(self, epoch: int) -> None:
        """Delete all checkpoints except that of the epoch before `epoch` and the best one."""
        from llkd.student.checkpoints import checkpoint_name, delete_checkpoints, is_whole

        before = checkpoint_name(epoch - 1)
        if not is_whole(self._folder, before):  # still being stored
            return
        kept = {before}
        if self._config.student.validation_fraction > 0 and epoch > 0:
            kept.add(checkpoint_name(best_epoch(scores_until(self._config, epoch))))
        delete_checkpoints(self._folder, kept)
