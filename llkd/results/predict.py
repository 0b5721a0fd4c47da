"""Predict every row of a data set with the finished student: a pool of actors over the shards.

An actor receives shard numbers; it reads the shard, scores it and writes the sidecar itself. The
same code predicts the test set, on which the student is measured.
"""

import hashlib
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from llkd.cluster import actor_pool, shard_tasks
from llkd.cluster.integrity import require_recorded
from llkd.cluster.progress import Pace, throttled
from llkd.cluster.stage import ShardedStage
from llkd.cluster.telemetry import ShardDone, Work, announce
from llkd.config.run import RunConfig
from llkd.core.tally import Tally
from llkd.distill.precision import alone_on_cpus, chosen_precision, scoring_resources
from llkd.errors import DataError
from llkd.store.arrays import class_indices, fixed_lists, named
from llkd.store.folder import Folder
from llkd.store.manifest import FILES, Manifest, require_complete
from llkd.store.schema import (
    CONFIDENCE,
    ID,
    LABEL,
    PROBS,
    ROW,
    TEXT,
    RunLayout,
    predictions_schema,
)

MAX_ROWS_HERE = 16384
"""A test set of at most this many rows is scored in this process: starting an actor takes
longer."""


@dataclass(frozen=True)
class Pass:
    """One prediction pass."""

    dataset: str
    """The rows: `corpus`, `test` or `predict/NAME`."""
    folder: Folder
    """The folder of the predictions."""
    probabilities: bool
    """Whether the predictions include the whole distribution."""


def pass_over_test(config: RunConfig) -> Pass:
    """The pass over the test set, on which the student is measured."""
    return Pass("test", Folder(RunLayout(config.run_dir).test_predictions), True)


def pass_over_corpus(config: RunConfig) -> Pass:
    """The pass that the config's section `predict` describes."""
    wanted = config.predict
    folder = Folder(RunLayout(config.run_dir).predictions(wanted.folder))
    return Pass(wanted.dataset, folder, wanted.probabilities)


def predict(config: RunConfig, wanted: Pass, tracker: Any) -> Manifest:
    """Write the missing shards of the finished student's predictions of a data set.

    Returns:
        The manifest. Its results have `rows` by shard, `labels` with the `rows` and the mean
        `confidence` of each, and `rows_per_second`, without the actors' start.

    Raises:
        IncompleteError: the student is not finished, or a shard is absent.
        FingerprintError: the folder holds predictions of another student or of other rows.
        DataError: the data set is empty.
        ActorError: actors died too often.
    """
    started = time.monotonic()
    exported = require_complete(Folder(RunLayout(config.run_dir).student), "distill")
    rows = Folder(RunLayout(config.run_dir).rows(wanted.dataset))
    ingested = require_complete(rows, "ingest")
    stage = ShardedStage(wanted.folder, manifest_of(wanted, exported, ingested, rows))
    if stage.complete:
        return stage.manifest
    expected = ingested.results["rows"]
    if not sum(expected):
        raise DataError(f"{rows.uri} holds no rows to predict")
    missing = stage.missing(len(expected))
    skipped = sum(expected) - sum(expected[shard] for shard in missing)
    tracker.begin.remote(f"student on {wanted.dataset}", sum(expected), skipped, "replica")
    announce(tracker, _work_on(config, wanted), missing)
    pace = Pace()
    for item in _run_pool(config, wanted, missing, sum(expected) - skipped, tracker):
        pace.add(item)
        stage.add(item["shard"], item)
    tracker.end.remote()
    times = {"seconds": time.monotonic() - started, "rows_per_second": pace.rows_per_second}
    stage.require_all()
    labels = _by_label(wanted.folder, config.task.label_names, len(expected))
    return stage.close({"rows": list(expected), "labels": labels, **times})


def _work_on(config: RunConfig, wanted: Pass) -> Work:
    return Work(RunLayout(config.run_dir).name, "predict", wanted.dataset)


def manifest_of(wanted: Pass, exported: Manifest, ingested: Manifest, rows: Folder) -> Manifest:
    """The manifest of predictions: the settings that determine them. It includes the source files
    beside the settings of ingest, because rows ingested again from changed files differ."""
    settings = {
        "student": exported.fingerprint,
        "rows": ingested.fingerprint,
        "files": hashlib.sha256(rows.read_bytes(FILES)).hexdigest()[:16],
        "probabilities": wanted.probabilities,
    }
    return Manifest("predict", settings, "")


def _run_pool(
    config: RunConfig, wanted: Pass, missing: Sequence[int], rows: int, tracker: Any
) -> Iterable[dict[str, Any]]:
    """Map a pool of students over the missing shards, which have `rows` rows; yields the counts of
    each."""
    if not missing:
        return []
    resources = scoring_resources(config)
    precision = chosen_precision(config, resources)
    threads = max(int(resources.get("CPU", 1)), 1)
    arguments = (config, wanted, precision, threads, tracker)
    if wanted.dataset == "test" and rows <= MAX_ROWS_HERE and alone_on_cpus():
        here = StudentActor(*arguments)
        return map(here, missing)
    return actor_pool.run_on_actors(
        StudentActor,
        arguments,
        missing,
        pool=config.predict.replicas,
        resources=resources,
    )


def finished_scorer(config: RunConfig, precision: str, threads: int) -> Any:
    """The finished student, see llkd.student.scoring.Scorer.

    Args:
        config: the run.
        precision: of its matrix products.
        threads: of this process, on a CPU.
    """
    import torch

    from llkd.store.transfer import local_copy
    from llkd.student.model import load_finished, use_bfloat16
    from llkd.student.scoring import Scorer, scoring_copy

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(threads)
    with local_copy(RunLayout(config.run_dir).student) as directory:
        require_recorded(Folder(directory))
        tokenizer, model = load_finished(directory, config.student.attn_implementation)
    model = scoring_copy(model, use_bfloat16(precision, device)).to(device)
    return Scorer(
        tokenizer, model, max_length=config.student.max_length, compiled=config.student.compile
    )


class StudentActor:
    """One replica: the finished student, which scores the shards it receives."""

    def __init__(
        self, config: RunConfig, wanted: Pass, precision: str, threads: int, tracker: Any
    ) -> None:
        layout = RunLayout(config.run_dir)
        self._wanted, self._tracker, self._work = wanted, tracker, _work_on(config, wanted)
        self._rows = Folder(layout.rows(wanted.dataset))
        self._names = config.task.label_names
        source = config.source(wanted.dataset)
        self._with_id = source is not None and source.id_column is not None
        # Two shards arrive at once, to overlap their I/O, but a fast tokenizer is not thread-safe.
        self._turn = threading.Lock()
        self._scorer = finished_scorer(config, precision, threads)

    def __call__(self, shard: int) -> dict[str, Any]:
        """Predict one shard; returns its counts, and its start and end times."""
        started = time.time()
        rows = self._rows.read_shard(shard, [ROW, TEXT, *([ID] if self._with_id else [])])
        update = partial(self._tracker.update.remote, f"{shard}")
        with self._turn:
            probs_nc = self._scorer.probabilities(rows[TEXT].to_pylist(), throttled(update))
        table = self._table(rows, probs_nc)
        crc = self._wanted.folder.write_shard(shard, table)
        update(len(table))
        self._tracker.shard.remote(ShardDone(self._work, shard, len(table), time.time() - started))
        times = {"started": started, "ended": time.time()}
        return {"shard": shard, "rows": len(table), "crc": crc, **times}

    def _table(self, rows: pa.Table, probs_nc: np.ndarray) -> pa.Table:
        columns: dict[str, Any] = {
            ROW: rows[ROW],
            LABEL: named(probs_nc.argmax(axis=1), self._names),
            CONFIDENCE: probs_nc.max(axis=1),
        }
        if self._with_id:
            columns[ID] = rows[ID]
        if self._wanted.probabilities:
            columns[PROBS] = fixed_lists(probs_nc)
        classes = len(self._names) if self._wanted.probabilities else None
        return pa.table(columns, schema=predictions_schema(self._with_id, classes))


def _tally(folder: Folder, names: Sequence[str], shard: int) -> Tally:
    table = folder.read_shard(shard, [LABEL, CONFIDENCE])
    class_n = class_indices(table[LABEL], names)
    return Tally(tally_by_label(class_n, table[CONFIDENCE].to_numpy(), len(names)))


def tally_by_label(
    class_n: np.ndarray, confidence_n: np.ndarray, classes: int
) -> dict[str, np.ndarray]:
    """Rows and summed confidence by label, shape (C,)."""
    return {
        "rows_c": np.bincount(class_n, minlength=classes),
        "confidence_c": np.bincount(class_n, weights=confidence_n, minlength=classes),
    }


def _by_label(folder: Folder, names: Sequence[str], shards: int) -> dict[str, Any]:
    """The rows predicted as each label, and their mean confidence."""
    tally: Tally = shard_tasks.sum_over_shards(Tally, partial(_tally, folder, names), range(shards))
    rows_c = tally["rows_c"]
    mean_c = tally["confidence_c"] / np.maximum(rows_c, 1)
    return {
        name: {"rows": int(rows_c[i]), "confidence": float(mean_c[i])}
        for i, name in enumerate(names)
    }
