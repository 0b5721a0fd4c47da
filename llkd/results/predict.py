"""The finished student labels every row of a data set: a pool of actors over the shards.

An actor is handed shard numbers; it reads the shard, scores it and writes the sidecar itself. The
same pass labels the test set, by which the student is measured.
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

from llkd.cluster import actor_pool, connection, shard_tasks
from llkd.cluster.integrity import close_stage, require_recorded, shard_crcs
from llkd.cluster.progress import Pace, throttled
from llkd.cluster.telemetry import ShardDone, Work, announce
from llkd.config.run import RunConfig
from llkd.core.tally import Tally
from llkd.distill.precision import chosen_precision
from llkd.errors import DataError, IncompleteError
from llkd.store.arrays import class_indices, fixed_lists, named
from llkd.store.folder import Folder
from llkd.store.manifest import FILES, Manifest, open_stage, require_complete
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

FEW_ROWS = 16384
"""A test set of so many rows is scored by the process that has just exported the student: an actor
would take longer to start."""


@dataclass(frozen=True)
class Pass:
    """What the student is asked."""

    dataset: str
    """The rows: `corpus`, `test` or `predict/NAME`."""
    folder: Folder
    """Where its answers go."""
    probabilities: bool
    """Whether they hold the whole distribution."""


def pass_over_test(config: RunConfig) -> Pass:
    """The pass over the test set, from which the student is measured."""
    return Pass("test", Folder(RunLayout(config.run_dir).test_predictions), True)


def pass_over_corpus(config: RunConfig) -> Pass:
    """The pass that the section `predict` asks for."""
    wanted = config.predict
    folder = Folder(RunLayout(config.run_dir).predictions(wanted.folder))
    return Pass(wanted.dataset, folder, wanted.probabilities)


def predict(config: RunConfig, wanted: Pass, tracker: Any) -> Manifest:
    """Write the finished student's labels of a data set; shards that are there are left alone.

    Returns:
        The manifest, whose results hold `rows` by shard, by label its `rows` and its mean
        `confidence`, and `rows_per_second` of the model at work.

    Raises:
        IncompleteError: the student is not finished, or shards are missing at the end.
        FingerprintError: the folder was made by another student, or of other rows.
        DataError: there are no rows.
        ActorError: actors died too often.
    """
    started = time.monotonic()
    exported = require_complete(Folder(RunLayout(config.run_dir).student), "distill")
    rows = Folder(RunLayout(config.run_dir).rows(wanted.dataset))
    ingested = require_complete(rows, "ingest")
    manifest = open_stage(wanted.folder, manifest_of(wanted, exported, ingested, rows))
    if manifest.complete:
        return manifest
    expected = ingested.results["rows"]
    if not sum(expected):
        raise DataError(f"{rows.uri} holds no rows to predict")
    missing = sorted(set(range(len(expected))) - wanted.folder.shards())
    skipped = sum(expected) - sum(expected[shard] for shard in missing)
    tracker.begin.remote(f"student on {wanted.dataset}", sum(expected), skipped, "replica")
    announce(tracker, _work_on(config, wanted), missing)
    pace, written = Pace(), {}
    for item in _run_pool(config, wanted, missing, sum(expected) - skipped, tracker):
        pace.add(item)
        written[item["shard"]] = item["crc"]
    tracker.end.remote()
    times = {"seconds": time.monotonic() - started, "rows_per_second": pace.rows_per_second}
    finished = _finished(config, wanted, manifest, expected, times)
    return close_stage(wanted.folder, finished, shard_crcs(wanted.folder, len(expected), written))


def _work_on(config: RunConfig, wanted: Pass) -> Work:
    return Work(RunLayout(config.run_dir).name, "predict", wanted.dataset)


def manifest_of(wanted: Pass, exported: Manifest, ingested: Manifest, rows: Folder) -> Manifest:
    """What determines the predictions. The files count beside the settings of ingest: rows that
    were deleted to be ingested anew, from files that have changed, are other rows."""
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
    """Map the pool of students over the shards that are missing, of so many rows; returns what
    is told of each."""
    if not missing:
        return []
    resources = config.predict.resources or _default_resources(config)
    connection.require_resources(resources, "predict.resources")
    precision = chosen_precision(config, resources)
    threads = max(int(resources.get("CPU", 1)), 1)
    arguments = (config, wanted, precision, threads, tracker)
    if wanted.dataset == "test" and rows <= FEW_ROWS and _alone_on_cpus():
        here = StudentActor(*arguments)
        return map(here, missing)
    return actor_pool.run_on_actors(
        StudentActor,
        arguments,
        missing,
        pool=config.predict.replicas,
        resources=resources,
    )


def _alone_on_cpus() -> bool:
    """Whether this process may compute: on a Ray of its own, whose CPUs nobody uses by now. On a
    GPU it would keep the memory from whoever comes next."""
    return connection.is_local() and not connection.cluster_has_gpus("predict.resources")


def _default_resources(config: RunConfig) -> connection.Resources:
    """What one replica reserves when the config does not say."""
    if connection.cluster_has_gpus("predict.resources"):
        return {"GPU": 1.0}
    return {"CPU": connection.cpus_each(config.predict.replicas[1])}


class StudentActor:
    """The finished student, and the shards that come to it."""

    def __init__(
        self, config: RunConfig, wanted: Pass, precision: str, threads: int, tracker: Any
    ) -> None:
        import torch

        from llkd.store.transfer import local_copy
        from llkd.student.model import load_finished, use_bfloat16
        from llkd.student.scoring import Scorer, scoring_copy

        layout = RunLayout(config.run_dir)
        self._wanted, self._tracker, self._work = wanted, tracker, _work_on(config, wanted)
        self._rows = Folder(layout.rows(wanted.dataset))
        self._names = config.task.label_names
        source = config.source(wanted.dataset)
        self._with_id = source is not None and source.id_column is not None
        # Two shards come at once, to overlap their files; a fast tokenizer serves one thread only.
        self._turn = threading.Lock()
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if device.type == "cpu":
            torch.set_num_threads(threads)
        with local_copy(layout.student) as directory:
            require_recorded(Folder(directory))
            tokenizer, model = load_finished(directory)
        model = scoring_copy(model, use_bfloat16(precision, device)).to(device)
        self._scorer = Scorer(
            tokenizer, model, max_length=config.student.max_length, compiled=config.student.compile
        )

    def __call__(self, shard: int) -> dict[str, Any]:
        """Predict one shard; returns how many rows, and when it began and ended."""
        started = time.time()
        rows = self._rows.read_shard(shard, [ROW, TEXT, *([ID] if self._with_id else [])])
        tell = partial(self._tracker.update.remote, f"{shard}")
        with self._turn:
            probs_nc = self._scorer.probabilities(rows[TEXT].to_pylist(), throttled(tell))
        table = self._table(rows, probs_nc)
        crc = self._wanted.folder.write_shard(shard, table)
        tell(len(table))
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
    """Rows by predicted label, and the sum of their confidence."""
    table = folder.read_shard(shard, [LABEL, CONFIDENCE])
    class_n, confidence_n = class_indices(table[LABEL], names), table[CONFIDENCE].to_numpy()
    return Tally(
        {
            "rows_c": np.bincount(class_n, minlength=len(names)),
            "confidence_c": np.bincount(class_n, weights=confidence_n, minlength=len(names)),
        }
    )


def _finished(
    config: RunConfig,
    wanted: Pass,
    manifest: Manifest,
    expected: Sequence[int],
    times: dict[str, Any],
) -> Manifest:
    """See that all shards are there, and add up their counts."""
    folder, names = wanted.folder, config.task.label_names
    if absent := sorted(set(range(len(expected))) - folder.shards()):
        raise IncompleteError(
            f"{folder.uri} lacks {len(absent)} of {len(expected)} shards, first {absent[0]}.",
            "Run the same command again.",
        )
    work = partial(_tally, folder, names)
    tally: Tally = shard_tasks.sum_over_shards(Tally, work, range(len(expected)))
    rows_c = tally["rows_c"]
    mean_c = tally["confidence_c"] / np.maximum(rows_c, 1)
    labels = {
        name: {"rows": int(rows_c[i]), "confidence": float(mean_c[i])}
        for i, name in enumerate(names)
    }
    return manifest.finished({"rows": list(expected), "labels": labels, **times})
