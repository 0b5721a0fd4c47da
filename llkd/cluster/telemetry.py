"""What a run tells the machines that watch it: Ray metrics, and a line of JSON for each shard.

Workers tell the progress tracker of each shard that they have done (llkd/cluster/progress.py); it alone
counts and writes. So a worker's death takes nothing along, a shard that is done twice counts once,
and there is one series of each metric instead of one for each process. Ray's agents export the
metrics to Prometheus under the names below, with `ray_` before them; without an agent they go
nowhere. How many series a metric can have is bounded: see MOST_VALUES.
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

MOST_VALUES = 32
"""Most values of a tag that a run can have many of: what is told by label is told where there are
no more labels; of the epochs the last ones are told; reasons beyond are counted as `other`."""
OTHER = "other"

SHARD_LOG: ContextVar[str | None] = ContextVar("SHARD_LOG", default=None)
"""The file into which this command writes its lines; None for none."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Metric:
    """One name that Prometheus finds, `ray_` before it."""

    name: str
    """`llkd_`, what is measured, its unit if it has one; a counter ends in `_total`."""
    description: str
    tags: tuple[str, ...]

    @property
    def is_counter(self) -> bool:
        """Whether it only grows, while the command runs; else it is a gauge."""
        return self.name.endswith("_total")


_WORK = ("run", "stage", "dataset")

ROWS = Metric(
    "llkd_rows_total",
    "Rows that a stage has done, without the rejected ones: ingested, labelled by the teacher, "
    "scored for their uncertainty, trained on, predicted.",
    _WORK,
)
REJECTS = Metric("llkd_rejects_total", "Rows left out, by reason.", (*_WORK, "reason"))
PROMPT_TOKENS = Metric(
    "llkd_prompt_tokens_total",
    "Tokens of the prompts that the teacher was asked, those of a cached prefix among them.",
    _WORK,
)
SHARDS = Metric("llkd_shards_total", "Shards that a stage has done.", _WORK)
SHARD_SECONDS = Metric(
    "llkd_shard_seconds_total",
    "Seconds that shards took, summed over the workers; its rate is the number of shards in hand.",
    _WORK,
)
SHARDS_WAITING = Metric(
    "llkd_shards_waiting", "Shards that a stage has still to do, those in hand among them.", _WORK
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
"""All there are; jobs/clusters/grafana.json draws them."""


@dataclass(frozen=True)
class Work:
    """A stage's way over the shards of a data set."""

    run: str
    """RunLayout.name of the run directory."""
    stage: Literal["ingest", "label", "score", "train", "predict"]
    dataset: str
    epoch: int | None = None
    """Of the student's training, from 0."""
    teacher: str | None = None
    """Which of several teachers labels."""


def _node() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id()) if ray.is_initialized() else ""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True)
class ShardDone:
    """What a worker tells of a shard, when and where it has done it."""

    of: Work
    shard: int
    rows: int
    """Without the rejected ones."""
    seconds: float
    rejects: Mapping[str, int] = field(default_factory=dict)
    """Rows left out by reason."""
    tokens: int | None = None
    """Of the prompts; None where there are none, or the engine does not know."""
    time: str = field(default_factory=_now)
    """ISO 8601, UTC."""
    node: str = field(default_factory=_node)
    """Ray's id of the node."""
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)


def announce(tracker: Any, of: Work, missing: Sequence[int]) -> None:
    """Tell the progress tracker which shards a pass has to do, and wait until it knows: what workers
    tell of a shard may else be there first, for calls of several processes come in any order."""
    import ray

    ray.wait([tracker.missing.remote(of, missing)])


@contextmanager
def _harmless() -> Iterator[None]:
    """A run does not fail for want of being watched."""
    try:
        yield
    except Exception:
        _log.warning("Something of the run's progress is not told", exc_info=True)


class Telemetry:
    """Counts and writes what it is told. No call raises."""

    def __init__(self, lines: str | None = None, echo: bool = False) -> None:
        """
        Args:
            lines: the file to which lines are appended; None for none.
            echo: whether they go to stderr too, which Ray keeps in the log of a worker.
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
        """A pass begins; these shards are not done yet."""
        self._missing[_key(of)] = set(missing)
        self._set(SHARDS_WAITING, len(missing), *_key(of))

    @_harmless()
    def shard(self, done: ShardDone) -> None:
        """A shard is done; where that is told again it is only written down."""
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
        """So many rows of a unit of work are done by now: for a pass that has no shards."""
        before = self._levels.get((of, unit), 0)
        self._levels[of, unit] = rows
        # Below what it was: the unit was begun anew.
        self._count(ROWS, rows - before if rows >= before else rows, *_key(of))

    @_harmless()
    def epoch(self, of: Work, stats: Mapping[str, Any]) -> None:
        """An epoch is done.

        Args:
            of: the training of that epoch.
            stats: what its stats.json holds.
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
        if len(labels) <= MOST_VALUES:
            for label, found in stats["classes"].items():
                self._set(LABEL_SELECTED, found["fraction"], of.run, epoch, label)
        for signal in ("confidence", "uncertainty"):
            bars = {
                label: bar
                for label, bar in zip(labels, stats["thresholds"][f"{signal}_c"], strict=True)
                if bar is not None
            }
            if bars:
                self._set(THRESHOLD, math.fsum(bars.values()) / len(bars), of.run, epoch, signal)
            for label, bar in bars.items() if len(labels) <= MOST_VALUES else ():
                self._set(LABEL_THRESHOLD, bar, of.run, epoch, signal, label)
        self._forget_epochs_before(of.run, int(epoch) - MOST_VALUES + 1)

    @_harmless()
    def refresh(self) -> None:
        """Say all gauges again: Ray forgets one that was not set for some 20 seconds."""
        for (metric, tags), value in self._gauges.items():
            self._of(metric).set(value, dict(zip(metric.tags, tags, strict=True)))

    def _forget_epochs_before(self, run: str, first: int) -> None:
        for metric, tags in list(self._gauges):
            named = dict(zip(metric.tags, tags, strict=True))
            if named["run"] == run and int(named.get("epoch", first)) < first:
                del self._gauges[metric, tags]

    def _bounded(self, reason: str) -> str:
        """The reason, or OTHER: those of an engine that is not ours can be anything."""
        if len(self._reasons) < MOST_VALUES:
            self._reasons.add(reason)
        return reason if reason in self._reasons else OTHER

    def _write(self, time: str, of: Work, fields: Mapping[str, Any]) -> None:
        line = {
            "time": time, "run": of.run, "stage": of.stage, "dataset": of.dataset,
            "epoch": of.epoch, "teacher": of.teacher, **fields,
        }  # fmt: skip
        told = {key: value for key, value in line.items() if value is not None}
        self._lines.info("%s", json.dumps(told, ensure_ascii=False))

    def _count(self, metric: Metric, amount: float, *tags: str) -> None:
        if amount > 0:
            self._of(metric).inc(amount, dict(zip(metric.tags, tags, strict=True)))

    def _set(self, metric: Metric, value: float, *tags: str) -> None:
        self._gauges[metric, tags] = value
        self._of(metric).set(value, dict(zip(metric.tags, tags, strict=True)))

    def _of(self, metric: Metric) -> Any:
        """Ray's object of a metric."""
        if metric not in self._metrics:
            from ray.util.metrics import Counter, Gauge

            kind = Counter if metric.is_counter else Gauge
            self._metrics[metric] = kind(metric.name, metric.description, metric.tags)
        return self._metrics[metric]


def _key(of: Work) -> tuple[str, str, str]:
    return of.run, of.stage, of.dataset
