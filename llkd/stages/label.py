"""The teacher labels every row: a pool of actors, mapped by Ray Data over the shards.

An actor is handed shard numbers; it reads the shard, labels it and writes the sidecar itself.
So text and results travel through storage, and a shard that is there is never labelled again.
"""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from llkd import runtime
from llkd.arrays import fixed_lists, matrix
from llkd.config import RunConfig
from llkd.core.calibration import fit_batch_bias, marginal
from llkd.errors import IncompleteError, RejectLimitError
from llkd.manifest import Manifest, open_stage, read_manifest, require_complete, write_manifest
from llkd.models import model_identity
from llkd.schema import (
    ID,
    LABEL_MASS,
    LOGPROBS,
    REJECTS_SCHEMA,
    ROW,
    TEXT,
    RunLayout,
    labels_schema,
)
from llkd.settled import settled_teacher
from llkd.storage import Folder
from llkd.teacher.engine import engine_class

CALIBRATION = "calibration.json"
CALIBRATION_VALUES = 2**25
"""Log-probabilities that calibration looks at, at most: 128 MiB of them."""


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
    """
    started = time.monotonic()
    layout = RunLayout(config.run_dir)
    manifests: dict[str, Manifest] = {}
    rows: dict[tuple[str, int], int] = {}
    work: list[tuple[str, int]] = []
    for dataset in datasets:
        ingested = require_complete(Folder(layout.rows(dataset)), "ingest")
        folder = Folder(layout.labels(dataset))
        if read_manifest(folder) is None:
            Folder(layout.rejects(f"label-{dataset}")).delete()  # of labels that were deleted
        manifests[dataset] = open_stage(folder, manifest_of(config, dataset, ingested))
        rows |= {(dataset, shard): n for shard, n in enumerate(ingested.results["rows"])}
        if not manifests[dataset].complete:
            missing = set(range(len(ingested.results["rows"]))) - folder.shards()
            work += [(dataset, shard) for shard in sorted(missing)]
    if all(manifest.complete for manifest in manifests.values()):
        return manifests
    done: list[dict[str, Any]] = []
    if work:
        skipped = sum(rows.values()) - sum(rows[item] for item in work)
        tracker.begin.remote("label", sum(rows.values()), skipped)
        done = _run_pool(config, work, tracker)
        tracker.end.remote()
    for dataset in datasets:
        if not manifests[dataset].complete:
            counts = {item["shard"]: item for item in done if item["dataset"] == dataset}
            times = {"seconds": time.monotonic() - started, "rows_per_second": _rate(done)}
            manifests[dataset] = _finish(config, dataset, manifests[dataset], counts, times)
    return manifests


def manifest_of(config: RunConfig, dataset: str, ingested: Manifest) -> Manifest:
    """What determines the labels of a data set."""
    teacher = config.teacher
    settings = {
        "teacher.engine": teacher.engine,
        "teacher.model": model_identity(teacher.model, teacher.revision, "teacher.model"),
        "teacher.prompt_format": teacher.prompt_format,
        "teacher.max_text_tokens": teacher.max_text_tokens,
        "teacher.calibration": teacher.calibration,
        **{f"teacher.engine_args.{key}": value for key, value in _shaping(config).items()},
        **{f"task.{key}": value for key, value in config.task.model_dump(mode="json").items()},
        "task.label_order": config.task.label_names,
    }
    return Manifest("label", settings, ingested.fingerprint)


def read_bias(config: RunConfig) -> np.ndarray:
    """The calibration of the corpus's labels: log bias by class, shape (C,)."""
    folder = Folder(RunLayout(config.run_dir).labels("corpus"))
    return np.asarray(folder.read_json(CALIBRATION)["log_bias"], dtype=np.float64)


_ENGINE_ARGS_WITHOUT_EFFECT = {
    "gpu_memory_utilization", "tensor_parallel_size", "pipeline_parallel_size", "max_num_seqs",
    "max_num_batched_tokens", "enforce_eager", "disable_log_stats", "enable_prefix_caching",
    "swap_space", "block_size", "download_dir", "load_format", "distributed_executor_backend",
    "kv_cache_memory_bytes", "compilation_config",
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
        self._layout = RunLayout(config.run_dir)
        self._engine = engine_class(config.teacher.engine)(config.teacher, config.task)

    def __call__(self, item: tuple[str, int]) -> dict[str, Any]:
        """Label one shard; returns its counts, and when it began and ended."""
        dataset, shard = item
        started = time.time()
        counts = self._label_shard(dataset, shard)
        times = {"started": started, "ended": time.time()}
        return {"dataset": dataset, "shard": shard, **counts, **times}

    def _label_shard(self, dataset: str, shard: int) -> dict[str, Any]:
        unit = f"{dataset}/{shard}"
        rows = Folder(self._layout.rows(dataset)).read_shard(shard)
        texts = rows[TEXT].to_pylist()
        batch = self._engine.label(texts, partial(self._tracker.update.remote, unit))
        undefined_n = np.flatnonzero(np.isnan(batch.logprobs_nc).any(axis=1)).tolist()
        refused = {**dict.fromkeys(undefined_n, "not_a_number"), **batch.refused}
        if refused:
            self._write_rejects(dataset, shard, rows, refused)
        kept_n = np.array([i for i in range(len(texts)) if i not in refused], dtype=np.int32)
        logprobs_nc = batch.logprobs_nc[kept_n]
        table = pa.table(
            {
                ROW: kept_n,
                LOGPROBS: fixed_lists(logprobs_nc),
                LABEL_MASS: np.exp(logprobs_nc.astype(np.float64)).sum(axis=1).astype(np.float32),
            },
            schema=labels_schema(len(self._config.task.labels)),
        )
        Folder(self._layout.labels(dataset)).write_shard(shard, table)
        self._tracker.update.remote(unit, len(texts))
        return _counts(table)

    def _write_rejects(
        self, dataset: str, shard: int, rows: pa.Table, refused: dict[int, str]
    ) -> None:
        ids = rows[ID].to_pylist() if ID in rows.column_names else None
        rejected = [
            {"stage": "label", "shard": shard, "row": i, "id": ids[i] if ids else None,
             "reason": reason, "detail": None}
            for i, reason in sorted(refused.items())
        ]  # fmt: skip
        Folder(self._layout.rejects(f"label-{dataset}")).write_shard(
            shard, pa.Table.from_pylist(rejected, schema=REJECTS_SCHEMA)
        )


def _run_pool(
    config: RunConfig, work: Sequence[tuple[str, int]], tracker: Any
) -> list[dict[str, Any]]:
    """Map the teacher pool over the shards that are missing; returns each shard's counts."""
    resources = config.teacher.resources or default_resources(config)
    runtime.require_resources(resources, "teacher.resources")
    config = config.model_copy(update={"teacher": settled_teacher(config, resources)})
    return runtime.run_on_actors(
        TeacherActor, (config, tracker), work, pool=config.teacher.replicas, resources=resources
    )


def _rate(done: Sequence[dict[str, Any]]) -> float | None:
    """Rows per second, from the first engine's first row to the last one's last."""
    if not done:
        return None
    seconds = max(item["ended"] for item in done) - min(item["started"] for item in done)
    return sum(item["rows"] for item in done) / max(seconds, 1e-9)


def default_resources(config: RunConfig) -> runtime.Resources:
    """What one replica reserves when the config does not say."""
    arguments = config.teacher.engine_args
    if runtime.cluster_has_gpus():
        tensor = int(arguments.get("tensor_parallel_size", 1))
        return {"GPU": tensor * int(arguments.get("pipeline_parallel_size", 1)), "CPU": 1}
    return {"CPU": max(runtime.largest_node_cpus() // config.teacher.replicas[1], 1)}


def _finish(
    config: RunConfig,
    dataset: str,
    manifest: Manifest,
    counts: dict[int, dict[str, Any]],
    times: dict[str, Any],
) -> Manifest:
    """See that all shards are there, add up their counts, calibrate, and close the stage."""
    layout = RunLayout(config.run_dir)
    folder = Folder(layout.labels(dataset))
    ingested = read_manifest(Folder(layout.rows(dataset)))
    assert ingested is not None
    expected = ingested.results["rows"]
    if absent := sorted(set(range(len(expected))) - folder.shards()):
        raise IncompleteError(
            f"{folder.uri} lacks {len(absent)} of {len(expected)} shards, first {absent[0]}. "
            "Run the same command again."
        )
    earlier = [shard for shard in range(len(expected)) if shard not in counts]
    counts |= dict(runtime.run_on_shards(lambda shard: _counts(folder.read_shard(shard)), earlier))
    rows = [counts[shard]["rows"] for shard in range(len(expected))]
    rejected = sum(expected) - sum(rows)
    if rejected > config.max_reject_fraction * sum(expected):
        raise RejectLimitError(
            f"The teacher refused {rejected:,} of {sum(expected):,} {dataset} rows, more than "
            f"max_reject_fraction = {config.max_reject_fraction} allows. They are listed in "
            f"{layout.rejects(f'label-{dataset}')}."
        )
    if dataset == "corpus":
        _calibrate(config, folder, len(expected))
    mass = sum(entry["label_mass"] for entry in counts.values()) / max(sum(rows), 1)
    results = {"rows": rows, "rejected": rejected, "label_mass": mass, **times}
    finished = manifest.finished(results)
    write_manifest(folder, finished)
    return finished


def _counts(table: pa.Table) -> dict[str, Any]:
    """Rows labelled and the sum of their label mass."""
    mass_n = table[LABEL_MASS].to_numpy()
    return {"rows": len(mass_n), "label_mass": float(mass_n.sum(dtype=np.float64))}


def _calibrate(config: RunConfig, folder: Folder, shards: int) -> None:
    """Fit the bias on the corpus."""
    classes = len(config.task.labels)
    bias_c = np.zeros(classes)
    if config.teacher.calibration == "batch":
        logprobs_nc = _sample(folder, shards, classes)
        bias_c = fit_batch_bias(partial(marginal, logprobs_nc), classes)
    folder.write_json(
        CALIBRATION,
        {"method": config.teacher.calibration, "labels": config.task.label_names,
         "log_bias": bias_c.tolist()},
    )  # fmt: skip


def _sample(folder: Folder, shards: int, classes: int) -> np.ndarray:
    """Log-probabilities of whole shards spread evenly over the corpus, shape (N, C).

    All shards of a corpus that fits CALIBRATION_VALUES; of a larger one as many as fit. The bias
    is a mean over rows, and millions of them settle it far below what matters.
    """
    first = matrix(folder.read_shard(0, [LOGPROBS])[LOGPROBS])
    count = min(max(CALIBRATION_VALUES // max(first.size, 1), 1), shards)
    chosen = np.unique(np.linspace(0, shards - 1, count).round().astype(int))
    parts = [matrix(folder.read_shard(int(shard), [LOGPROBS])[LOGPROBS]) for shard in chosen]
    return np.concatenate(parts)
