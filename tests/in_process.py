"""Runs actor pools, shard tasks and a training worker in the process of the test.

Starting an actor or a worker group costs seconds of CPU. Tests of what a stage computes use the
fixture `in_process`; tests of how it runs on Ray do not.
"""

import contextlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray.train
import ray.train.torch
from ray.train.v2._internal.execution.train_fn_utils import LocalTrainFnUtils, set_train_fn_utils

from llkd.cluster import actor_pool, shard_tasks


def run_on_actors(
    actor: Callable[..., Callable[[Any], Any]],
    arguments: tuple[Any, ...],
    items: Sequence[Any],
    **options: Any,
) -> Iterator[Any]:
    """Replaces `actor_pool.run_on_actors`; uses a single actor, which is never restarted."""
    if items:
        replica = actor(*arguments)
        for item in items:
            yield _as_json(replica(json.loads(json.dumps(item))))


def run_on_shards(
    work: Callable[[int], dict[str, Any]], shards: Sequence[int], **options: Any
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Replaces `shard_tasks.run_on_shards`."""
    for shard in shards:
        yield shard, _as_json(work(shard))


def _as_json(result: Any) -> Any:
    """A result as another process would return it."""
    return json.loads(json.dumps(result))


class InProcessTrainer:
    """Replaces Ray Train's TorchTrainer; runs one worker, which is never restarted."""

    def __init__(
        self, loop: Callable[[dict[str, Any]], None], *, train_loop_config: dict[str, Any],
        **options: Any,
    ) -> None:  # fmt: skip
        self._loop, self._config = loop, train_loop_config

    def fit(self) -> None:
        """Run the training loop.

        Raises:
            TrainingFailedError: the loop failed.
        """
        set_train_fn_utils(_WorkerContext(experiment_name="in process"))
        try:
            self._loop(self._config)
        except Exception as error:
            raise ray.train.TrainingFailedError(str(error)) from error
        finally:
            set_train_fn_utils(None)


class _WorkerContext(LocalTrainFnUtils):
    """Ray Train's context of a local worker, extended by the storing of checkpoints."""

    def report(
        self, metrics: dict[str, Any], checkpoint: Any = None, checkpoint_dir_name: Any = None,
        *unused: Any, checkpoint_upload_fn: Any = None, **options: Any,
    ) -> None:  # fmt: skip
        super().report(metrics, checkpoint)
        if checkpoint is not None:
            checkpoint_upload_fn(checkpoint, checkpoint_dir_name)
            shutil.rmtree(checkpoint.path)


@contextlib.contextmanager
def in_process() -> Iterator[None]:
    """Replace pools, tasks and the trainer for the duration of the block."""
    pairs = [
        (actor_pool.run_on_actors, run_on_actors),
        (shard_tasks.run_on_shards, run_on_shards),
        (ray.train.torch.TorchTrainer, InProcessTrainer),
    ]
    try:
        for plain, ours in pairs:
            _replace(plain.__name__, plain, ours)
        yield
    finally:
        for plain, ours in pairs:
            _replace(plain.__name__, ours, plain)


def _replace(name: str, old: Any, new: Any) -> None:
    """Replace an object wherever it was imported by its name."""
    for module in list(sys.modules.values()):
        if (
            module.__name__.startswith(("llkd.", "ray.train.torch"))
            and vars(module).get(name) is old
        ):
            setattr(module, name, new)
