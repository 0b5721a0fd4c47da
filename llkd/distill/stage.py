"""Distillation: the student scores the corpus, rows are selected, the student trains on them.

One Ray Train worker group runs all epochs, since starting one takes many seconds; its workers run
the epoch loop in llkd/distill/worker.py. A failed group starts again from the last epoch's checkpoint,
and at the shard within the scoring.
"""

import math
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray

from llkd.cluster import connection
from llkd.config.run import RunConfig
from llkd.core.calibration import Calibration
from llkd.core.policy_names import AUTO, DEFAULT_POLICY
from llkd.distill.epoch_stats import best_epoch, read_stats, scores_until
from llkd.distill.policy import policy_of, rivals_of, with_policy
from llkd.distill.policy_choice import chosen_policy, read_trial
from llkd.distill.precision import chosen_precision
from llkd.distill.probe import keeps_probe, read_probe
from llkd.distill.refine import read_refinement
from llkd.distill.selection import Selector
from llkd.distill.shard_queue import ShardQueue
from llkd.distill.state import prepare_epochs, record_epoch, trained_epochs
from llkd.distill.worker import run_worker
from llkd.errors import LLKDError, ResourceError, StudentError
from llkd.ingest.stage import manifest_of as ingest_manifest
from llkd.store.filesystems import filesystem
from llkd.store.folder import Folder
from llkd.store.manifest import Manifest, begun, open_stage, require_complete, write_manifest
from llkd.store.model_files import model_identity
from llkd.store.schema import RunLayout, shard_starts
from llkd.teacher.calibrate import calibration_settings

NEVER_SECONDS = 1e9
"""Interval at which Ray resizes an elastic group: never, since it would stop the group in the
middle of an epoch. The size is chosen whenever the group starts."""


def distill(config: RunConfig, calibration: Calibration, tracker: Any) -> Manifest:
    """Train the student; finished epochs are kept.

    Args:
        config: the run.
        calibration: of the corpus's labels.
        tracker: the progress tracker.

    Returns:
        The manifest. Its results hold the checkpoint of the chosen epoch and the selection's
        figures.

    Raises:
        ResourceError: the workers do not fit on this cluster.
        StudentError: training failed more often than `student.max_failures`.
    """
    from llkd.student.checkpoints import delete_checkpoints

    started = time.monotonic()
    layout = RunLayout(config.run_dir)
    labelled = require_complete(Folder(layout.labels("corpus")), "label")
    folder = Folder(layout.epochs)
    if not begun(folder):
        Folder(layout.checkpoints).delete()  # of a run whose epochs were deleted
    manifest = open_stage(folder, manifest_of(config, labelled))
    ingested = require_complete(Folder(layout.rows("corpus")), "ingest")
    selector = Selector(
        config, shard_starts(ingested.results["rows"]), policy_of(config), rivals_of(config)
    )
    if manifest.complete and (not manifest.results["keeps_probe"] or read_probe(config)):
        prepare_epochs(selector, calibration, tracker)
        delete_checkpoints(Folder(layout.checkpoints), [manifest.results["checkpoint"]])
        return manifest
    resources, max_workers = worker_resources(config)
    prepare_epochs(selector, calibration, tracker)
    chosen = with_policy(config, chosen_policy(config))  # `auto` is decided now
    selector = replace(selector, config=chosen, policy=policy_of(chosen))
    if config.selection.policy == AUTO:
        tracker.note.remote(_choice(chosen_policy(config), read_trial(config)))
    tracker.doing.remote("the training workers start")
    epochs = _train(config, selector, labelled.results["rows"], resources, max_workers, tracker)
    results = _results(selector, sum(labelled.results["rows"]), epochs)
    for line in _probe_notes(results):
        tracker.note.remote(line)
    finished = manifest.finished({**results, "seconds": time.monotonic() - started})
    for epoch in range(epochs):
        record_epoch(layout, epoch)
    write_manifest(folder, finished)
    delete_checkpoints(Folder(layout.checkpoints), [results["checkpoint"]])
    return finished


def _results(selector: Selector, rows: int, epochs: int) -> dict[str, Any]:
    """The results of a finished training.

    Args:
        selector: of the run.
        rows: labelled rows.
        epochs: trained epochs.
    """
    from llkd.student.checkpoints import checkpoint_name

    config = selector.config
    stats = [read_stats(config, epoch) for epoch in range(epochs)]
    visits = sum(entry["selected"] - entry["dropped"] for entry in stats)
    best = _chosen_epoch(config, epochs)
    return {
        "checkpoint": checkpoint_name(best),
        "epoch": best,
        "probe": read_probe(config),
        "keeps_probe": keeps_probe(config, stats[best]["validation"]),
        "epochs": epochs,
        "rows": rows,
        "row_visits_fraction": visits / (rows * epochs),
        "unique_rows_fraction": selector.unique_rows(epochs) / rows,
        **_refined(config),
        **({} if (trial := read_trial(config)) is None else {"trial": trial}),
        "stats": stats,  # a copy, in case a file is lost
    }


def _choice(chosen: str, trial: dict[str, Any] | None) -> str:
    """The console line about `selection.policy: auto`."""
    if trial is None or not trial["gold_rows"]:
        return (
            f"policy: {chosen}, the default: there are no rows labelled by hand to choose by (gold)"
        )
    right, rows = trial["policies"][chosen]["gold_right"], trial["gold_rows"]
    default = trial["policies"][DEFAULT_POLICY]["gold_right"]
    line = f"policy: {chosen}; its trial has {right} of {rows} rows labelled by hand right"
    if chosen == DEFAULT_POLICY:
        return f"{line}, and no other policy has clearly more"
    return f"{line}, that of {DEFAULT_POLICY} {default}"


def _refined(config: RunConfig) -> dict[str, Any]:
    """What refinement did to the labels; nothing if there was none."""
    found = read_refinement(config)
    if found is None:
        return {}
    gold = {"gold": found["gold"]} if found["gold"] else {}
    if not found["refines"]:
        return gold
    estimated = {"prior": found["prior"]} if found["prior"] else {}
    return {"relabelled_fraction": found["changed"], **estimated, **gold}


def _probe_notes(results: dict[str, Any]) -> list[str]:
    """The console lines about the linear probe."""
    probe, student = results["probe"], results["stats"][results["epoch"]]["validation"]
    if probe is None or student is None:
        return ["the linear probe is the result: student.keep"] if results["keeps_probe"] else []
    figures = f"{probe['validation']['macro_f1']:.3f} and {student['macro_f1']:.3f}"
    line = f"linear probe and student, macro-F1 on rows held out: {figures}"
    if results["keeps_probe"]:
        return [line, "warning: the student is below the linear probe, which is kept instead"]
    return [line]


def _chosen_epoch(config: RunConfig, epochs: int) -> int:
    """The epoch whose student is kept."""
    if config.student.validation_fraction > 0 and config.student.keep == "best":
        return best_epoch(scores_until(config, epochs))
    return epochs - 1


_WITHOUT_EFFECT = {
    "model", "revision", "workers", "resources", "max_failures", "micro_batch_size",
    "gradient_checkpointing", "parallel", "compile",
}  # fmt: skip
"""Settings that change speed and memory use, but not the student; the model is recorded by its
identity instead."""


def manifest_of(config: RunConfig, labelled: Manifest) -> Manifest:
    """The manifest of the student: the settings that determine it. The number of workers is not one
    of them: the global batches are the same for any number."""
    student = config.student.model_dump(mode="json", exclude=_WITHOUT_EFFECT)
    selection = config.selection.model_dump(exclude={"trial"})
    settings = {
        **calibration_settings(config),
        "student.model": model_identity(
            config.student.model, config.student.revision, "student.model"
        ),
        **{f"student.{key}": value for key, value in student.items()},
        **{f"selection.{key}": value for key, value in selection.items()},
        "seed": config.seed,
    }
    if config.gold is not None:
        settings["gold.rows"] = ingest_manifest(config, "gold").settings["gold.rows"]
        for setting in ("relabel", "train", "judge"):
            settings[f"gold.{setting}"] = getattr(config.gold, setting)
    return Manifest("distill", settings, labelled.fingerprint)


def worker_resources(config: RunConfig) -> tuple[connection.Resources, int]:
    """The resources of each worker, and the maximum number of workers.

    Raises:
        ResourceError: fewer workers fit than the config requires.
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
    """Maximum CPUs per worker with which all workers fit: an integer, or 1/2, 1/4, ...: Ray adds
    shares in floating point, and with other fractions one worker might not fit."""
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
    max_workers: int,
    tracker: Any,
) -> int:
    """Run the worker group to its end; returns the number of epochs."""
    layout = RunLayout(config.run_dir)
    queue = ShardQueue.options(**connection.here()).remote()  # type: ignore[attr-defined]
    precision = chosen_precision(config, resources)
    student = config.student.model_copy(update={"precision": precision})
    config = config.model_copy(update={"student": student})
    loop_config = {
        "config": config,
        "selector": selector,
        "shard_rows": list(shard_rows),
        "queue": queue,
        "tracker": tracker,
    }
    trainer = _trainer(config, loop_config, resources, max_workers)
    # Ray Train's own record of checkpoints is not written atomically, and ours suffice.
    Folder(layout.checkpoints).delete_file("checkpoint_manager_snapshot.json")
    _fit(trainer, queue)
    return _require_trained(config)


def _trainer(
    config: RunConfig,
    loop_config: dict[str, Any],
    resources: connection.Resources,
    max_workers: int,
) -> Any:
    """Ray Train's trainer; the worker group starts with its `fit`."""
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

    filesystem_, root = filesystem(RunLayout(config.run_dir).root)
    workers = config.student.workers
    return TorchTrainer(
        run_worker,
        train_loop_config=loop_config,
        torch_config=LoopbackTorchConfig() if connection.is_local() else TorchConfig(),
        scaling_config=ScalingConfig(
            num_workers=workers if isinstance(workers, int) else (workers[0], max_workers),
            elastic_resize_monitor_interval_s=NEVER_SECONDS,
            use_gpu=resources.get("GPU", 0) > 0,
            resources_per_worker=dict(resources),
        ),
        run_config=TrainRunConfig(
            name="checkpoints",
            storage_path=root,
            storage_filesystem=filesystem_,
            # The epoch loop decides which checkpoints are kept.
            checkpoint_config=CheckpointConfig(num_to_keep=None),
            failure_config=FailureConfig(max_failures=config.student.max_failures),
        ),
    )


def _fit(trainer: Any, queue: Any) -> None:
    """Run the worker group to its end, then kill its queue.

    Raises:
        LLKDError: the typed error of a worker, or a StudentError with Ray's text.
    """
    interrupt = signal.getsignal(signal.SIGINT)
    failure = None
    try:
        trainer.fit()
        failure = _error_in(queue.failure)
    except SystemExit as error:  # Ray Train's response to an interrupt
        raise KeyboardInterrupt from error
    except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
        failure = (
            _error_in(queue.failure) or _error_in(queue.last_trouble) or StudentError(str(error))
        )
    finally:
        signal.signal(signal.SIGINT, interrupt)
        ray.kill(queue)
    if failure is not None:
        raise failure


def _error_in(method: Any) -> LLKDError | None:
    """The typed error that the queue keeps; None if it has none or has died."""
    try:
        error: LLKDError | None = ray.get(method.remote())
    except ray.exceptions.RayError:
        return None
    return error


def _require_trained(config: RunConfig) -> int:
    """The number of trained epochs.

    Raises:
        StudentError: fewer than the config asks for, and training did not stop early.
    """
    epochs = trained_epochs(RunLayout(config.run_dir))
    if epochs < config.student.epochs and not (
        epochs and read_stats(config, epochs - 1)["stopped"]
    ):
        raise StudentError(f"Training ended after {epochs} epochs", "See the log.")
    return epochs
