"""The teacher labels every row: a pool of actors, mapped by Ray Data over the shards.

An actor is handed shard numbers; it reads the shard, labels it and writes the sidecar itself.
So text and results travel through storage, and a shard that is there is never labelled again.
In a round of labelling it is the rows that are wanted of each shard (see RunLayout).
"""

import contextlib
import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from llkd.cluster import actor_pool, connection, shard_tasks
from llkd.cluster.integrity import close_stage, shard_crcs
from llkd.cluster.progress import Pace, throttled
from llkd.cluster.telemetry import ShardDone, Work, announce
from llkd.config.parallelism import parallel_size
from llkd.config.run import RunConfig, TeacherConfig
from llkd.config.sources import SourceConfig
from llkd.errors import IncompleteError, RejectLimitError
from llkd.ingest.sources import list_files
from llkd.store.arrays import fixed_lists
from llkd.store.folder import Folder, portable_path
from llkd.store.manifest import (
    Manifest,
    begun,
    open_stage,
    read_manifest,
    require_complete,
)
from llkd.store.model_files import model_identity
from llkd.store.rejects import delete_shards, require_all_told
from llkd.store.schema import (
    ID,
    LABEL_MASS,
    LOGPROBS,
    REJECTS_SCHEMA,
    ROW,
    TEXT,
    RunLayout,
    labels_schema,
)
from llkd.teacher.engine import LabelBatch, engine_class
from llkd.teacher.examples import pool_identity
from llkd.teacher.machine_arguments import with_machine_arguments

CONTENT_FREE = ("N/A", "[MASK]", "-")
"""Texts that say nothing, labelled beside the corpus for contextual calibration (arXiv
2102.09690)."""
CONTENT_FREE_ITEM = ("content_free", 0)


class ShardCounts(NamedTuple):
    """What is kept of each shard while a corpus is labelled."""

    rows: int
    """Labelled ones."""
    label_mass: float
    """The sum of theirs."""
    crc: int | None
    """Of the file; None where an earlier command wrote it."""

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> "ShardCounts":
        """From what an actor or a task told."""
        return cls(told["rows"], told["label_mass"], told.get("crc"))


def label(config: RunConfig, datasets: Sequence[str], tracker: Any) -> dict[str, Manifest]:
    """Make the labels of each data set; shards that are there are left alone.

    Args:
        config: the run.
        datasets: `corpus`, and `test` where there is a test set.
        tracker: the progress tracker.

    Returns:
        The manifest of each data set's labels.

    Raises:
        IncompleteError: shards are missing at the end.
        TeacherError: the teacher cannot be loaded.
        ActorError: replicas died too often.
    """
    started = time.monotonic()
    layout = RunLayout(config.run_dir, config.teacher_number)
    manifests: dict[str, Manifest] = {}
    rows: dict[tuple[str, int], int] = {}
    work: list[tuple[str, int]] = []
    for dataset in datasets:
        asked = require_complete(Folder(layout.asked(dataset)), "ingest")
        folder = Folder(layout.answers(dataset))
        rejects = Folder(layout.label_rejects(dataset))
        if not begun(folder):  # what is beside it belongs to labels that were deleted
            rejects.delete()
            if dataset == "corpus" and not layout.is_round:
                Folder(layout.labels(CONTENT_FREE_ITEM[0])).delete()
        manifests[dataset] = open_stage(folder, manifest_of(config, dataset, asked))
        rows |= {(dataset, shard): n for shard, n in enumerate(asked.results["rows"])}
        if not manifests[dataset].complete:
            missing = sorted(set(range(len(asked.results["rows"]))) - folder.shards())
            delete_shards(rejects, rejects.shards().intersection(missing))
            work += [(dataset, shard) for shard in missing]
            announce(tracker, _work_on(config, dataset), missing)
    if not Folder(layout.labels(CONTENT_FREE_ITEM[0])).shards():
        work.append(CONTENT_FREE_ITEM)
    elif all(manifest.complete for manifest in manifests.values()):
        return manifests
    counts: dict[str, dict[int, ShardCounts]] = {dataset: {} for dataset in datasets}
    pace = Pace()
    if work:
        skipped = sum(rows.values()) - sum(rows.get(item, 0) for item in work)
        name = "label" if config.teacher_number is None else f"label by {config.teacher.model}"
        tracker.begin.remote(name, sum(rows.values()), skipped, "replica")
        for item in _run_pool(config, work, tracker):
            if item["dataset"] in counts:  # not the texts without content
                counts[item["dataset"]][item["shard"]] = ShardCounts.of(item)
                pace.add(item)
        tracker.end.remote()
    for dataset in datasets:
        if not manifests[dataset].complete:
            times = {
                "seconds": time.monotonic() - started,
                "rows_per_second": pace.rows_per_second,
            }
            manifests[dataset] = _finish(
                config, dataset, manifests[dataset], counts[dataset], times
            )
    return manifests


def _work_on(config: RunConfig, dataset: str) -> Work:
    teacher = None if config.teacher_number is None else config.teacher.model
    return Work(RunLayout(config.run_dir).name, "label", dataset, teacher=teacher)


def manifest_of(config: RunConfig, dataset: str, asked: Manifest) -> Manifest:
    """What determines the labels of a data set.

    Args:
        config: the run.
        dataset: whose labels.
        asked: the manifest of its rows; in a round of labelling of those that are wanted.
    """
    teacher = config.teacher
    settings = {
        "teacher.engine": teacher.engine,
        "teacher.model": _model_identity(teacher),
        "teacher.prompt_format": teacher.prompt_format,
        "teacher.max_text_tokens": teacher.max_text_tokens,
        "teacher.verbalizer": teacher.verbalizer,
        "teacher.truncation": teacher.truncation,
        "teacher.lora": teacher.lora
        and model_identity(teacher.lora, None, "teacher.lora", "adapter_config.json"),
        **{f"teacher.engine_args.{key}": value for key, value in _shaping(config).items()},
        **{f"task.{key}": value for key, value in config.task.model_dump(mode="json").items()},
        "task.label_order": config.task.label_names,
    }
    source = config.task.examples_from
    if source is not None:  # what is in the files counts, not where they lie
        named = source.model_dump(mode="json", exclude={"path", "embedder"})
        settings["task.examples_from"] = named
        settings["task.examples_from.rows"] = pool_identity(source, config.task)
        settings["task.examples_from.embedder"] = source.embedder and model_identity(
            source.embedder, None, "task.examples_from.embedder"
        )
    if dataset == "corpus":
        settings |= config.label.settings
    return Manifest("label", settings, asked.fingerprint)


def _model_identity(teacher: TeacherConfig) -> str:
    if teacher.engine != "table":
        return model_identity(teacher.model, teacher.revision, "teacher.model")
    files = list_files(SourceConfig(path=teacher.model), "teacher.model")
    listed = json.dumps([(portable_path(file.uri), file.size) for file in files])
    return f"{len(files)} files#{hashlib.sha256(listed.encode()).hexdigest()[:16]}"


_ENGINE_ARGS_WITHOUT_EFFECT = {
    "gpu_memory_utilization", "tensor_parallel_size", "pipeline_parallel_size", "max_num_seqs",
    "max_num_batched_tokens", "enforce_eager", "disable_log_stats", "enable_prefix_caching",
    "swap_space", "block_size", "download_dir", "load_format", "distributed_executor_backend",
    "kv_cache_memory_bytes", "compilation_config", "api_key_env", "concurrency",
    "requests_per_minute", "max_retries", "timeout",
}  # fmt: skip
"""They change the speed and the memory, not what the model computes."""


def _shaping(config: RunConfig) -> dict[str, Any]:
    arguments = config.teacher.engine_args
    return {k: arguments[k] for k in sorted(arguments) if k not in _ENGINE_ARGS_WITHOUT_EFFECT}


class TeacherActor:
    """One replica: an engine, and the shards that come to it."""

    def __init__(self, config: RunConfig, tracker: Any) -> None:
        self._config = config
        self._tracker = tracker
        self._layout = RunLayout(config.run_dir, config.teacher_number)
        self._engine = engine_class(config.teacher.engine)(config.teacher, config.task)
        concurrent = getattr(self._engine, "concurrent", False)
        self._turn = contextlib.nullcontext() if concurrent else threading.Lock()

    def __call__(self, item: tuple[str, int]) -> dict[str, Any]:
        """Label one shard; returns its counts, and when it began and ended."""
        dataset, shard = item
        started = time.time()
        counts = self._label_shard(dataset, shard, started)
        times = {"started": started, "ended": time.time()}
        return {"dataset": dataset, "shard": shard, **counts, **times}

    def _label_shard(self, dataset: str, shard: int, started: float) -> dict[str, Any]:
        if (dataset, shard) == CONTENT_FREE_ITEM:
            return self._label_content_free()
        unit = f"{dataset}/{shard}"
        rows = Folder(self._layout.rows(dataset)).read_shard(shard)
        if self._layout.asked(dataset) != self._layout.rows(dataset):
            rows = rows.take(Folder(self._layout.asked(dataset)).read_shard(shard, [ROW])[ROW])
        texts = rows[TEXT].to_pylist()
        ids = rows[ID].to_pylist() if ID in rows.column_names else [None] * len(texts)
        batch = self._label(texts, ids, throttled(partial(self._tracker.update.remote, unit)))
        undefined_n = np.flatnonzero(np.isnan(batch.logprobs_nc).any(axis=1)).tolist()
        refused = {**dict.fromkeys(undefined_n, "not_a_number"), **batch.refused}
        if refused:
            self._write_rejects(dataset, shard, rows, refused)
        kept = [i for i in range(len(texts)) if i not in refused]
        row_n = rows[ROW].to_numpy()[kept]
        counts = self._write_labels((dataset, shard), row_n, batch.logprobs_nc[kept])
        self._tracker.update.remote(unit, len(texts))
        self._tracker.shard.remote(
            ShardDone(
                _work_on(self._config, dataset), shard, len(kept), time.time() - started,
                Counter(refused.values()), batch.tokens,
            )
        )  # fmt: skip
        return counts

    def _label(
        self, texts: Sequence[str], ids: Sequence[Any], progress: Callable[[int], None]
    ) -> LabelBatch:
        """Ask the engine, once for texts that are the same."""
        if not texts:
            return LabelBatch(np.zeros((0, len(self._config.task.labels)), dtype=np.float32))
        if getattr(self._engine, "by_id", False):
            with self._turn:
                return self._engine.label(texts, ids, progress)
        places: dict[str, int] = {}
        place_n = [places.setdefault(text, len(places)) for text in texts]
        with self._turn:
            batch = self._engine.label(list(places), [None] * len(places), progress)
        refused = {
            row: batch.refused[place] for row, place in enumerate(place_n) if place in batch.refused
        }
        return LabelBatch(batch.logprobs_nc[place_n], refused, batch.tokens)

    def _label_content_free(self) -> dict[str, Any]:
        batch = self._label(CONTENT_FREE, [None] * len(CONTENT_FREE), lambda done: None)
        kept = [i for i in range(len(CONTENT_FREE)) if i not in batch.refused]
        row_n = np.array(kept, dtype=np.int32)
        return self._write_labels(CONTENT_FREE_ITEM, row_n, batch.logprobs_nc[kept])

    def _write_labels(
        self, item: tuple[str, int], row_n: np.ndarray, logprobs_nc: np.ndarray
    ) -> dict[str, Any]:
        dataset, shard = item
        table = pa.table(
            {
                ROW: row_n,
                LOGPROBS: fixed_lists(logprobs_nc),
                LABEL_MASS: np.exp(logprobs_nc.astype(np.float64)).sum(axis=1).astype(np.float32),
            },
            schema=labels_schema(len(self._config.task.labels)),
        )
        crc = Folder(self._layout.answers(dataset)).write_shard(shard, table)
        return {**_counts(table), "crc": crc}

    def _write_rejects(
        self, dataset: str, shard: int, rows: pa.Table, refused: dict[int, str]
    ) -> None:
        ids = rows[ID].to_pylist() if ID in rows.column_names else None
        row_n = rows[ROW].to_pylist()
        rejected = [
            {"stage": "label", "shard": shard, "row": row_n[i], "id": ids[i] if ids else None,
             "reason": reason, "detail": None}
            for i, reason in sorted(refused.items())
        ]  # fmt: skip
        Folder(self._layout.label_rejects(dataset)).write_shard(
            shard, pa.Table.from_pylist(rejected, schema=REJECTS_SCHEMA)
        )


def _run_pool(
    config: RunConfig, work: Sequence[tuple[str, int]], tracker: Any
) -> Iterator[dict[str, Any]]:
    """Map the teacher pool over the shards that are missing; yields each shard's counts."""
    resources = config.teacher.resources or default_resources(config)
    nodes = config.teacher.nodes
    connection.require_resources(resources, "teacher.resources", nodes)
    config = config.model_copy(update={"teacher": with_machine_arguments(config, resources)})
    return actor_pool.run_on_actors(
        TeacherActor,
        (config, tracker),
        work,
        pool=config.teacher.replicas,
        resources=resources,
        nodes=nodes,
        max_failures=config.teacher.max_actor_failures,
    )


def default_resources(config: RunConfig) -> connection.Resources:
    """What one replica reserves on each of its nodes when the config does not say."""
    teacher = config.teacher
    if teacher.nodes > 1 or connection.cluster_has_gpus("teacher.resources"):
        return {"GPU": parallel_size(teacher.engine_args) // teacher.nodes, "CPU": 1}
    return {"CPU": connection.cpus_each(config.teacher.replicas[1])}


def _finish(
    config: RunConfig,
    dataset: str,
    manifest: Manifest,
    counts: dict[int, ShardCounts],
    times: dict[str, Any],
) -> Manifest:
    """See that all shards are there, add up their counts, and close the stage."""
    layout = RunLayout(config.run_dir, config.teacher_number)
    folder = Folder(layout.answers(dataset))
    asked = read_manifest(Folder(layout.asked(dataset)))
    assert asked is not None
    expected = asked.results["rows"]
    if absent := sorted(set(range(len(expected))) - folder.shards()):
        raise IncompleteError(
            f"{folder.uri} lacks {len(absent)} of {len(expected)} shards, first {absent[0]}.",
            "Run the same command again.",
        )
    written = {shard: entry.crc for shard, entry in counts.items() if entry.crc is not None}
    earlier = [shard for shard in range(len(expected)) if shard not in counts]
    rejects = Folder(layout.label_rejects(dataset))
    refused = rejects.shards() if earlier else set()

    def read(shard: int) -> dict[str, Any]:
        left_out = rejects.shard_rows(shard) if shard in refused else 0
        return {**_counts(folder.read_shard(shard)), "rejected": left_out}

    lost = []
    for shard, found in shard_tasks.run_on_shards(read, earlier):
        counts[shard] = ShardCounts.of(found)
        if found["rows"] + found["rejected"] != expected[shard]:
            lost.append(shard)
    require_all_told(folder, rejects, lost)
    rows = [counts[shard].rows for shard in range(len(expected))]
    # What an actor that died had left out, and the one after it did not.
    delete_shards(rejects, [n for n in rejects.shards() if rows[n] == expected[n]])
    rejected = sum(expected) - sum(rows)
    judged = not (layout.is_round and dataset == "corpus")  # else by the rounds together
    if judged and rejected > config.max_reject_fraction * sum(expected):
        raise RejectLimitError(
            f"The teacher refused {rejected:,} of {sum(expected):,} {dataset} rows, more than "
            f"max_reject_fraction = {config.max_reject_fraction} allows. They are listed in "
            f"{layout.label_rejects(dataset)}."
        )
    mass = sum(entry.label_mass for entry in counts.values()) / max(sum(rows), 1)
    results = {"rows": rows, "rejected": rejected, "label_mass": mass, **times}
    crcs = shard_crcs(folder, len(expected), written)
    return close_stage(folder, manifest.finished(results), crcs, rejects)


def _counts(table: pa.Table) -> dict[str, Any]:
    """Rows labelled and the sum of their label mass."""
    mass_n = table[LABEL_MASS].to_numpy()
    return {"rows": len(mass_n), "label_mass": float(mass_n.sum(dtype=np.float64))}
