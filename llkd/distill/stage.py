"""The epoch loop: the student scores the corpus, rows are selected, the student trains on them.

One Ray Train worker group lives through all epochs, for starting one costs many seconds; what
its workers do is in llkd/distill/worker.py. A failed group starts again from the last epoch's checkpoint,
and at the shard within the scoring.
"""

import math
import signal
import time
from collections.abc import Sequence
from typing import Any

import ray

from llkd.cluster import connection
from llkd.config.run import RunConfig
from llkd.core.calibration import Calibration
from llkd.distill.epoch_stats import read_stats
from llkd.distill.holdout import best_epoch
from llkd.distill.precision import chosen_precision
from llkd.distill.selection import Selector
from llkd.distill.shard_queue import ShardQueue
from llkd.distill.state import prepare_epochs, record_epoch, trained_epochs
from llkd.distill.worker import run_worker, scores_until
from llkd.errors import LLKDError, ResourceError, StudentError
from llkd.store.folder import Folder, filesystem
from llkd.store.manifest import Manifest, begun, open_stage, require_complete, write_manifest
from llkd.store.model_files import model_identity
from llkd.store.schema import RunLayout, shard_starts
from llkd.teacher.calibrate import calibration_settings

NEVER_SECONDS = 1e9
"""Between two looks whether an elastic group can have more workers: Ray would stop the group in
the middle of an epoch for it. It is asked how many there can be whenever the group starts."""


def distill(config: RunConfig, calibration: Calibration, tracker: Any) -> Manifest:
    """Train the student; epochs that are done are not done again.

    Args:
        config: the run.
        calibration: of the corpus's labels.
        tracker: the progress tracker.

    Returns:
        The manifest, whose results hold the checkpoint of the chosen epoch and the selection's
        figures.

    Raises:
        ResourceError: workers and selection can never run beside each other on this cluster.
        StudentError: training failed more often than `student.max_failures`.
    """
    from llkd.student.checkpoints import checkpoint_name, delete_checkpoints

    started = time.monotonic()
    layout = RunLayout(config.run_dir)
    labelled = require_complete(Folder(layout.labels("corpus")), "label")
    folder = Folder(layout.epochs)
    if not begun(folder):
        Folder(layout.checkpoints).delete()  # of a run whose epochs were deleted
    manifest = open_stage(folder, manifest_of(config, labelled))
    ingested = require_complete(Folder(layout.rows("corpus")), "ingest")
    selector = Selector(config, shard_starts(ingested.results["rows"]))
    if manifest.complete:
        prepare_epochs(selector, calibration)
        delete_checkpoints(Folder(layout.checkpoints), [manifest.results["checkpoint"]])
        return manifest
    resources, most = worker_resources(config)
    prepare_epochs(selector, calibration)
    tracker.doing.remote("the training workers start")
    epochs = _train(config, selector, labelled.results["rows"], resources, most, tracker)
    stats = [read_stats(config, epoch) for epoch in range(epochs)]
    rows = sum(labelled.results["rows"])
    visits = sum(entry["selected"] - entry["dropped"] for entry in stats)
    best = _chosen_epoch(config, epochs)
    finished = manifest.finished(
        {
            "checkpoint": checkpoint_name(best),
            "epoch": best,
            "epochs": epochs,
            "rows": rows,
            "row_visits_fraction": visits / (rows * epochs),
            "unique_rows_fraction": selector.unique_rows(epochs) / rows,
            "stats": stats,  # a copy, should a file of them be lost
            "seconds": time.monotonic() - started,
        }
    )
    for epoch in range(epochs):
        record_epoch(layout, epoch)
    write_manifest(folder, finished)
    delete_checkpoints(Folder(layout.checkpoints), [checkpoint_name(best)])
    return finished


def _chosen_epoch(config: RunConfig, epochs: int) -> int:
    """The epoch whose student is the result."""
    if config.student.validation_fraction > 0 and config.student.keep == "best":
        return best_epoch(scores_until(config, epochs))
    return epochs - 1


_WITHOUT_EFFECT = {
    "model", "revision", "workers", "resources", "max_failures", "micro_batch_size",
    "gradient_checkpointing", "parallel", "compile",
}  # fmt: skip
"""They change the speed and the memory, not what the student learns; the model has a setting of
its own."""


def manifest_of(config: RunConfig, labelled: Manifest) -> Manifest:
    """What determines the student. The number of workers is not in it: equal work in equal
    global batches is meant to give the same student."""
    student = config.student.model_dump(mode="json", exclude=_WITHOUT_EFFECT)
    settings = {
        **calibration_settings(config),
        "student.model": model_identity(
            config.student.model, config.student.revision, "student.model"
        ),
        **{f"student.{key}": value for key, value in student.items()},
        **{f"selection.{key}": value for key, value in config.selection.model_dump().items()},
        "seed": config.seed,
    }
    return Manifest("distill", settings, labelled.fingerprint)


def worker_resources(config: RunConfig) -> tuple[connection.Resources, int]:
    """What each worker reserves, and how many workers there can be.

    Raises:
        ResourceError: fewer than the config asks for.
    """
    student, nodes = config.student, connection.nodes()
    cpus = [node.get("CPU", 0) for node in nodes]
    resources = student.resources
    if resources is None:
        if connection.cluster_has_gpus("student.resources"):
            resources = {"GPU": 1.0, "CPU": 1.0}
        else:
            resources = {"CPU": largest_share(cpus, student.most_workers)}
    connection.require_resources(resources, "student.resources")
    if not resources or connection.autoscales():
        return resources, student.most_workers
    room = connection.room_for(nodes, resources)
    if room < student.fewest_workers:
        share = largest_share(cpus, student.fewest_workers)
        lower = f"lower student.resources.CPU to {share:g} or less, or "
        helps = connection.room_for(nodes, {**resources, "CPU": share}) >= student.fewest_workers
        raise ResourceError(
            f"student.workers ({student.fewest_workers}) with student.resources {resources} do not "
            f"fit on this cluster, which has room for {room}: {lower if helps else ''}use fewer "
            "workers."
        )
    return resources, min(student.most_workers, room)


def largest_share(nodes: Sequence[float], workers: int) -> float:
    """Most CPUs a worker can have so that all fit: whole ones, or a half, a quarter, ..., for Ray
    adds up shares in floating point and loses a worker over others."""
    shares = {_exact(node / k) for node in nodes for k in range(1, workers + 1) if node > 0}
    return max(
        (
            share
            for share in shares
            if sum(connection.times(node, share) for node in nodes) >= workers
        ),
        default=2.0**-6,
    )


def _exact(share: float) -> float:
    return math.floor(share) if share >= 1 else 2.0 ** math.floor(math.log2(share))


def _train(
    config: RunConfig,
    selector: Selector,
    shard_rows: Sequence[int],
    resources: connection.Resources,
    most_workers: int,
    tracker: Any,
) -> int:
    """Run the worker group to its end; returns how many epochs there were."""
    from ray.train import (
        CheckpointConfig,
        FailureConfig,
        ScalingConfig,
    )
    from ray.train import (
        RunConfig as TrainRunConfig,
    )
    from ray.train.torch import TorchConfig, TorchTrainer

    from llkd.cluster.loopback import LoopbackTorchConfig

    layout = RunLayout(config.run_dir)
    filesystem_, root = filesystem(layout.root)
    queue = ShardQueue.options(**connection.here()).remote()  # type: ignore[attr-defined]
    precision = chosen_precision(config, resources)
    workers = config.student.workers
    student = config.student.model_copy(update={"precision": precision})
    config = config.model_copy(update={"student": student})
    loop_config = {
        "config": config,
        "selector": selector,
        "shard_rows": list(shard_rows),
        "queue": queue,
        "tracker": tracker,
    }
    trainer = TorchTrainer(
        run_worker,
        train_loop_config=loop_config,
        torch_config=LoopbackTorchConfig() if connection.is_local() else TorchConfig(),
        scaling_config=ScalingConfig(
            num_workers=workers if isinstance(workers, int) else (workers[0], most_workers),
            elastic_resize_monitor_interval_s=NEVER_SECONDS,
            use_gpu=resources.get("GPU", 0) > 0,
            resources_per_worker=dict(resources),
        ),
        run_config=TrainRunConfig(
            name="checkpoints",
            storage_path=root,
            storage_filesystem=filesystem_,
            # Which of them are kept is decided by the epoch loop.
            checkpoint_config=CheckpointConfig(num_to_keep=None),
            failure_config=FailureConfig(max_failures=config.student.max_failures),
        ),
    )
    # Ray Train's own record of checkpoints is not written in one step, and ours suffice.
    Folder(layout.checkpoints).delete_file("checkpoint_manager_snapshot.json")
    interrupt = signal.getsignal(signal.SIGINT)
    failure = None
    try:
        trainer.fit()
        failure = _failure_of(queue)
    except SystemExit as error:  # what Ray Train makes of an interrupt
        raise KeyboardInterrupt from error
    except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
        failure = _failure_of(queue) or _trouble_of(queue) or StudentError(str(error))
    finally:
        signal.signal(signal.SIGINT, interrupt)
        ray.kill(queue)
    if failure is not None:
        raise failure
    epochs = trained_epochs(layout)
    if epochs < config.student.epochs and not (
        epochs and read_stats(config, epochs - 1)["stopped"]
    ):
        raise StudentError(
            f"Training ended after {epochs} epochs",
            "See the log.",
        )
    return epochs


def _failure_of(queue: Any) -> LLKDError | None:
    """The typed error that a worker left, if there is one and it can still be asked for."""
    try:
        failure: LLKDError | None = ray.get(queue.failure.remote())
    except ray.exceptions.RayError:
        return None
    return failure


def _trouble_of(queue: Any) -> LLKDError | None:
    """What a worker met that no new start mended."""
    try:
        trouble: LLKDError | None = ray.get(queue.last_trouble.remote())
    except ray.exceptions.RayError:
        return None
    return trouble
