"""The teacher labels every row: a pool of actors, mapped by Ray Data over the shards.

An actor receives shard numbers; it reads the shard, labels it and writes the sidecar itself. So
text and results travel through storage, and a finished shard is never labelled again. In a round
of labelling, the teacher labels the chosen rows of each shard.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llkd.cluster import actor_pool, connection
from llkd.cluster.progress import Pace
from llkd.cluster.stage import ShardedStage
from llkd.cluster.telemetry import announce
from llkd.config.parallelism import parallel_size
from llkd.config.run import RunConfig, TeacherConfig
from llkd.config.sources import SourceConfig
from llkd.errors import RejectLimitError
from llkd.ingest.files import list_files
from llkd.store.folder import portable_path
from llkd.store.manifest import Manifest, begun, require_complete
from llkd.store.model_files import model_identity
from llkd.store.schema import LABEL_MASS
from llkd.teacher.actor import CONTENT_FREE_ITEM, Request, TeacherActor, work_on
from llkd.teacher.examples import pool_identity
from llkd.teacher.machine_arguments import with_machine_arguments


def label(config: RunConfig, datasets: Sequence[str], tracker: Any) -> dict[str, Manifest]:
    """Label the missing shards of each data set, all by the same engines.

    Args:
        config: the run.
        datasets: `corpus`, and `test` where there is a test set.
        tracker: the progress tracker.

    Returns:
        The manifest of each data set's labels.

    Raises:
        IncompleteError: rows to label are incomplete, a shard is absent, or rows of it are lost.
        RejectLimitError: the teacher refused too many rows.
        TeacherError: the teacher cannot be loaded.
        ActorError: replicas died too often.
    """
    started = time.monotonic()
    labelling = [Labelling(config, dataset) for dataset in datasets]
    work = [(each.dataset, shard) for each in labelling for shard in each.missing(tracker)]
    if not Request.of(config, CONTENT_FREE_ITEM[0]).labels.shards():
        work.append(CONTENT_FREE_ITEM)
    pace = _run(config, work, labelling, tracker)
    for each in labelling:
        if not each.stage.complete:
            seconds = time.monotonic() - started
            each.close({"seconds": seconds, "rows_per_second": pace.rows_per_second})
    return {each.dataset: each.stage.manifest for each in labelling}


class Labelling:
    """The labels of one data set, while the teacher makes them."""

    def __init__(self, config: RunConfig, dataset: str) -> None:
        """Begin or resume the stage.

        Raises:
            IncompleteError: the rows to label are incomplete.
            FingerprintError: the labels were made with other settings.
        """
        self.dataset = dataset
        self._config = config
        self._request = request = Request.of(config, dataset)
        asked = require_complete(request.chosen or request.rows, "ingest")
        self.expected: list[int] = asked.results["rows"]
        if dataset == "corpus" and request.chosen is None and not begun(request.labels):
            Request.of(config, CONTENT_FREE_ITEM[0]).labels.delete()  # beside deleted labels
        wanted = manifest_of(config, dataset, asked)
        self.stage = ShardedStage(request.labels, wanted, request.rejects, summed=[LABEL_MASS])

    def missing(self, tracker: Any) -> list[int]:
        """The shards still to label; announces them to the tracker."""
        if self.stage.complete:
            return []
        missing = self.stage.missing(len(self.expected))
        announce(tracker, work_on(self._config, self.dataset), missing)
        return missing

    def close(self, times: Mapping[str, Any]) -> None:
        """Close the stage once all shards are labelled.

        Raises:
            IncompleteError: a shard is absent, or rows of it are lost.
            RejectLimitError: the teacher refused too many rows.
        """
        counts = self.stage.counts(self.expected)
        rows = [shard.rows for shard in counts]
        total = sum(self.expected)
        rejected = total - sum(rows)
        # Of chosen rows, the rounds limit the rejects of all rounds together.
        limited = self._request.chosen is None
        if limited and rejected > self._config.max_reject_fraction * total:
            raise RejectLimitError(
                f"The teacher refused {rejected:,} of {total:,} {self.dataset} rows, more than "
                f"max_reject_fraction = {self._config.max_reject_fraction} allows. They are listed "
                f"in {self._request.rejects.uri}."
            )
        mass = sum(shard.sums[0] for shard in counts) / max(sum(rows), 1)
        self.stage.close({"rows": rows, "rejected": rejected, "label_mass": mass, **times})


def _run(
    config: RunConfig,
    work: Sequence[tuple[str, int]],
    labelling: Sequence[Labelling],
    tracker: Any,
) -> Pace:
    """Label the missing shards of all data sets by the same engines; returns how fast."""
    pace = Pace()
    if not work:
        return pace
    by_name = {each.dataset: each for each in labelling}
    total = sum(sum(each.expected) for each in labelling)
    todo = sum(by_name[name].expected[shard] for name, shard in work if name in by_name)
    name = "label" if config.teacher_number is None else f"label by {config.teacher.model}"
    tracker.begin.remote(name, total, total - todo, "replica")
    for item in _run_pool(config, work, tracker):
        if item["dataset"] in by_name:  # not the content-free texts
            by_name[item["dataset"]].stage.add(item["shard"], item)
            pace.add(item)
    tracker.end.remote()
    return pace


def manifest_of(config: RunConfig, dataset: str, asked: Manifest) -> Manifest:
    """The manifest of a data set's labels: the settings that determine them.

    Args:
        config: the run.
        dataset: `corpus`, `test` or `gold`.
        asked: the manifest of its rows; in a round of labelling, of the chosen rows.
    """
    teacher = config.teacher
    settings = {
        "teacher.engine": teacher.engine,
        "teacher.model": _model_identity(teacher),
        "teacher.prompt_format": teacher.prompt_format,
        "teacher.chat_template_kwargs": teacher.chat_template_kwargs,
        "teacher.today": teacher.today,
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
    if source is not None:  # the files' content counts, not their paths
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
"""Engine arguments that change speed and memory use, but no label."""


def _shaping(config: RunConfig) -> dict[str, Any]:
    arguments = config.teacher.engine_args
    return {k: arguments[k] for k in sorted(arguments) if k not in _ENGINE_ARGS_WITHOUT_EFFECT}


def _run_pool(
    config: RunConfig, work: Sequence[tuple[str, int]], tracker: Any
) -> Iterator[dict[str, Any]]:
    """Map the teacher pool over the missing shards; yields the counts of each."""
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
    """The resources that one replica reserves on each of its nodes unless the config sets them."""
    teacher = config.teacher
    if teacher.nodes > 1 or connection.cluster_has_gpus("teacher.resources"):
        return {"GPU": parallel_size(teacher.engine_args) // teacher.nodes, "CPU": 1}
    return {"CPU": connection.cpus_each(config.teacher.replicas[1])}
