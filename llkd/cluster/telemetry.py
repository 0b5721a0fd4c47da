"""Monitoring of a run: Ray metrics, and a line of JSON for each shard.

Workers report each finished shard to the progress tracker (llkd/cluster/progress.py), which alone
counts and writes: the death of a worker loses nothing, a repeated shard counts once, and each metric
has one series instead of one per process. Ray's agents export the metrics to
Prometheus under the names below, prefixed by `ray_`; without an agent they are dropped. The number
of series of a metric is bounded by MAX_TAG_VALUES.
"""

import json
import logging
import math
import os
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

MAX_TAG_VALUES = 32
"""Maximum number of values of a tag: metrics by label are dropped for more labels, those by epoch
are kept for the last epochs, and further reasons of rejects are counted as OTHER."""
OTHER = "other"

SHARD_LOG: ContextVar[str | None] = ContextVar("SHARD_LOG", default=None)
"""The file for the lines of this command; None to write none."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Metric:
    """A metric; Prometheus sees its name with the prefix `ray_`."""

    name: str
    """`llkd_`, the quantity, and its unit if it has one; a counter ends in `_total`."""
    description: str
    tags: tuple[str, ...]

    @property
    def is_counter(self) -> bool:
        """Whether it is a counter, which only grows; else a gauge."""
        return self.name.endswith("_total")


_WORK = ("run", "stage", "dataset")

ROWS = Metric(
    "llkd_rows_total",
    "Rows that a stage has done, except rejected ones: ingested, labelled by the teacher, "
    "scored for their uncertainty, trained on, predicted.",
    _WORK,
)
REJECTS = Metric("llkd_rejects_total", "Rejected rows, by reason.", (*_WORK, "reason"))
PROMPT_TOKENS = Metric(
    "llkd_prompt_tokens_total",
    "Tokens of the teacher's prompts, including those of a cached prefix.",
    _WORK,
)
SHARDS = Metric("llkd_shards_total", "Shards that a stage has done.", _WORK)
SHARD_SECONDS = Metric(
    "llkd_shard_seconds_total",
    "Seconds that shards took, summed over the workers; its rate is the number of shards in progress.",
    _WORK,
)
SHARDS_WAITING = Metric(
    "llkd_shards_waiting", "Shards that a stage has yet to do, including those in progress.", _WORK
)
SELECTED = Metric(
    "llkd_selected_ratio", "Share of the labelled rows that an epoch selected.", ("run", "epoch")
)
LABEL_SELECTED = Metric(
    "llkd_label_selected_ratio",
    "Share of the rows with a pseudo-label that an epoch selected.",
    ("run", "epoch", "label"),
)
THRESHOLD = Metric(
    "llkd_threshold",
    "Mean over the labels of the threshold for a signal, confidence or uncertainty, in [0, 1].",
    ("run", "epoch", "signal"),
)
LABEL_THRESHOLD = Metric(
    "llkd_label_threshold",
    "Threshold for a signal, confidence or uncertainty, of the rows with a pseudo-label, in [0, 1].",
    ("run", "epoch", "signal", "label"),
)
LOSS = Metric("llkd_training_loss", "Mean weighted loss of an epoch's rows.", ("run", "epoch"))

METRICS = (
    ROWS, REJECTS, PROMPT_TOKENS, SHARDS, SHARD_SECONDS, SHARDS_WAITING, SELECTED, LABEL_SELECTED,
    THRESHOLD, LABEL_THRESHOLD, LOSS,
)  # fmt: skip
"""All metrics; jobs/clusters/grafana.json draws them."""


@dataclass(frozen=True)
class Work:
    """The pass of a stage over the shards of a data set."""

    run: str
    """RunLayout.name of the run directory."""
    stage: Literal["ingest", "label", "score", "train", "predict"]
    dataset: str
    epoch: int | None = None
    """The epoch of the student's training, from 0."""
    teacher: str | None = None
    """The labelling teacher, if there are several."""


def _node() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id()) if ray.is_initialized() else ""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True)
class ShardDone:
    """A worker's report of a finished shard, with time and place."""

    of: Work
    shard: int
    rows: int
    """Rows, except rejected ones."""
    seconds: float
    rejects: Mapping[str, int] = field(default_factory=dict)
    """Rejected rows, by reason."""
    tokens: int | None = None
    """Prompt tokens; None if the engine has no prompts or does not count their tokens."""
    time: str = field(default_factory=_now)
    """ISO 8601, UTC."""
    node: str = field(default_factory=_node)
    """Ray's id of the node."""
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)


def announce(tracker: Any, of: Work, missing: Sequence[int]) -> None:
    """Send the missing shards of a pass to the progress tracker, and wait until it has them. Calls from
    several processes arrive in any order, so a worker's report might otherwise arrive first."""
    import ray

    ray.wait([tracker.missing.remote(of, missing)])


@contextmanager
def _harmless() -> Iterator[None]:
    """Telemetry errors never fail a run."""
    try:
        yield
    except Exception:
        _log.warning("Telemetry failed", exc_info=True)


class Telemetry:
    """Updates metrics and writes lines. No method raises."""

    def __init__(self, lines: str | None = None, echo: bool = False) -> None:
        """
        Args:
            lines: the file to append lines to; None for none.
            echo: whether to also write them to stderr, which Ray keeps in the log of a worker.
        """
        self._lines = logging.Logger("llkd.shards")
        if lines is not None:
            self._lines.addHandler(logging.FileHandler(lines, delay=True, encoding="utf-8"))
        if echo:
            self._lines.addHandler(logging.StreamHandler(sys.stderr))
        self._metrics: dict[Metric, Any] = {}
        self._gauges: dict[tuple[Metric, tuple[str, ...]], float] = {}
        self._missing: dict[tuple[str, str, str], set[int]] = {}
        self._levels: dict[tuple[Work, str], int] = {}
        self._reasons: set[str] = set()

    @_harmless()
    def begin(self, of: Work, missing: Sequence[int]) -> None:
        """A pass begins with these shards missing."""
        self._missing[_key(of)] = set(missing)
        self._set(SHARDS_WAITING, len(missing), *_key(of))

    @_harmless()
    def shard(self, done: ShardDone) -> None:
        """A shard is finished; a repeated report is written as a line, but not counted."""
        self._write(
            done.time, done.of,
            {
                "shard": done.shard, "rows": done.rows, "rejects": dict(done.rejects),
                "tokens": done.tokens, "seconds": round(done.seconds, 3), "node": done.node,
                "host": done.host, "pid": done.pid,
            },
        )  # fmt: skip
        key = _key(done.of)
        missing = self._missing.get(key, set())
        if done.shard not in missing:
            return
        missing.remove(done.shard)
        self._set(SHARDS_WAITING, len(missing), *key)
        self._count(SHARDS, 1, *key)
        self._count(ROWS, done.rows, *key)
        self._count(SHARD_SECONDS, done.seconds, *key)
        self._count(PROMPT_TOKENS, done.tokens or 0, *key)
        for reason, rows in done.rejects.items():
            self._count(REJECTS, rows, *key, self._bounded(reason))

    @_harmless()
    def level(self, of: Work, unit: str, rows: int) -> None:
        """Set the rows done of a unit of work, for a pass without shards."""
        before = self._levels.get((of, unit), 0)
        self._levels[of, unit] = rows
        # Fewer than before: the unit was restarted.
        self._count(ROWS, rows - before if rows >= before else rows, *_key(of))

    @_harmless()
    def epoch(self, of: Work, stats: Mapping[str, Any]) -> None:
        """An epoch is finished.

        Args:
            of: the training of that epoch.
            stats: the content of its stats.json.
        """
        self._write(
            _now(), of,
            {
                "rows": stats["selected"] - stats["dropped"], "selected_ratio": stats["fraction"],
                "loss": stats["training_loss"],
                "seconds": round(sum(stats["seconds"].values()), 3),
            },
        )  # fmt: skip
        epoch, labels = str(of.epoch), list(stats["classes"])
        self._set(SELECTED, stats["fraction"], of.run, epoch)
        self._set(LOSS, stats["training_loss"], of.run, epoch)
        if len(labels) <= MAX_TAG_VALUES:
            for label, found in stats["classes"].items():
                self._set(LABEL_SELECTED, found["fraction"], of.run, epoch, label)
        for signal in ("confidence", "uncertainty"):
            thresholds = {
                label: threshold
                for label, threshold in zip(labels, stats["thresholds"][f"{signal}_c"], strict=True)
                if threshold is not None
            }
            if thresholds:
                mean = math.fsum(thresholds.values()) / len(thresholds)
                self._set(THRESHOLD, mean, of.run, epoch, signal)
            for label, threshold in thresholds.items() if len(labels) <= MAX_TAG_VALUES else ():
                self._set(LABEL_THRESHOLD, threshold, of.run, epoch, signal, label)
        self._forget_epochs_before(of.run, int(epoch) - MAX_TAG_VALUES + 1)

    @_harmless()
    def refresh(self) -> None:
        """Set all gauges again: Ray drops a gauge that has not been set for about 20 seconds."""
        for (metric, tags), value in self._gauges.items():
            self._of(metric).set(value, dict(zip(metric.tags, tags, strict=True)))

    def _forget_epochs_before(self, run: str, first: int) -> None:
        for metric, tags in list(self._gauges):
            named = dict(zip(metric.tags, tags, strict=True))
            if named["run"] == run and int(named.get("epoch", first)) < first:
                del self._gauges[metric, tags]

    def _bounded(self, reason: str) -> str:
        """The reason, or OTHER: a custom engine may give any number of reasons."""
        if len(self._reasons) < MAX_TAG_VALUES:
            self._reasons.add(reason)
        return reason if reason in self._reasons else OTHER

    def _write(self, time: str, of: Work, fields: Mapping[str, Any]) -> None:
        line = {
            "time": time, "run": of.run, "stage": of.stage, "dataset": of.dataset,
            "epoch": of.epoch, "teacher": of.teacher, **fields,
        }  # fmt: skip
        known = {key: value for key, value in line.items() if value is not None}
        self._lines.info("%s", json.dumps(known, ensure_ascii=False))

    def _count(self, metric: Metric, amount: float, *tags: str) -> None:
        if amount > 0:
            self._of(metric).inc(amount, dict(zip(metric.tags, tags, strict=True)))

    def _set(self, metric: Metric, value: float, *tags: str) -> None:
        self._gauges[metric, tags] = value
        self._of(metric).set(value, dict(zip(metric.tags, tags, strict=True)))

    def _of(self, metric: Metric) -> Any:
        """Ray's object for a metric."""
        if metric not in self._metrics:
            from ray.util.metrics import Counter, Gauge

            kind = Counter if metric.is_counter else Gauge
            self._metrics[metric] = kind(metric.name, metric.description, metric.tags)
        return self._metrics[metric]


def _key(of: Work) -> tuple[str, str, str]:
    return of.run, of.stage, of.dataset
