"""The progress tracker: the state of each phase of a command.

Workers anywhere in the cluster report to one small actor. The driver draws its state
(llkd/cluster/display.py); metrics and log lines are in llkd/cluster/telemetry.py.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from llkd.cluster.telemetry import ShardDone, Telemetry, Work

UPDATE_SECONDS = 0.25
"""Minimum time between two updates from a worker."""
REFRESH_SECONDS = 5.0
"""Gauge refresh interval."""

MIN_RATE_SECONDS = 1.0
"""Minimum time over which a rate is measured before it is shown."""


@dataclass(frozen=True)
class PhaseState:
    """A snapshot of a phase, for the display."""

    name: str
    rows: int
    total: int
    """0 if the phase has no rows."""
    skipped: int
    """Rows that an earlier command had done."""
    seconds: float
    rate: float | None
    """Rows per second since the first rows were done, which excludes the loading of engines; None
    before MIN_RATE_SECONDS."""
    ended: bool
    rejects: int = 0
    """Rows rejected by this command."""
    loss: float | None = None
    """Mean training loss so far."""
    actors: str = ""
    """Kind of the running actors, a key of connection.ACTOR_CLASSES; empty if there are none."""
    silent: bool = False
    """Whether the phase leaves no line when it ends."""
    waiting: str = "starting"
    """Status text until the first rows are done."""


@dataclass
class _Phase:
    """A pass over rows, or a step without rows."""

    name: str
    total: int
    skipped: int = 0
    done: dict[str, int] = field(default_factory=dict)
    """Rows done, by unit of work: absolute numbers, so a repeated update is harmless."""
    fresh: int = 0
    """The sum of `done`, which may have a million units."""
    begun: float = field(default_factory=time.monotonic)
    first: tuple[float, int] | None = None
    """When the first rows were done, and their number."""
    ended: float | None = None
    actors: str = ""
    silent: bool = False
    rejects: dict[tuple[str, int], int] = field(default_factory=dict)
    """Rows rejected, by data set and shard."""
    loss: float | None = None
    waiting: str = "starting"

    def update(self, unit: str, rows: int) -> None:
        self.fresh += rows - self.done.get(unit, 0)
        self.done[unit] = rows
        if self.first is None:
            self.first = time.monotonic(), rows

    def state(self) -> PhaseState:
        now = time.monotonic() if self.ended is None else self.ended
        rate = None
        if self.first is not None and now - self.first[0] >= MIN_RATE_SECONDS:
            rate = max(self.fresh - self.first[1], 0) / (now - self.first[0])
        rows = min(self.skipped + self.fresh, self.total)
        return PhaseState(
            self.name,
            rows,
            self.total,
            self.skipped,
            seconds=now - self.begun,
            rate=rate,
            ended=self.ended is not None,
            rejects=sum(self.rejects.values()),
            loss=self.loss,
            actors=self.actors,
            silent=self.silent,
            waiting=self.waiting,
        )


@ray.remote(num_cpus=0)
class ProgressTracker:
    """Collects the progress of all units of work. Calls are cheap, and workers do not wait for them."""

    def __init__(self, lines: str | None = None, echo: bool = False) -> None:
        """See Telemetry."""
        self._phases: list[_Phase] = []
        self._telemetry = Telemetry(lines, echo)
        self._epochs: dict[str, int] = {}
        self._refreshed = time.monotonic()

    def begin(self, name: str, total: int, skipped: int = 0, actors: str = "") -> None:
        """End the current phase and start the next; for `actors` see PhaseState."""
        self.end()
        self._phases.append(_Phase(name, total, skipped, actors=actors))

    def doing(self, name: str) -> None:
        """Start a phase without rows, which leaves no line when it ends."""
        self.end()
        self._phases.append(_Phase(name, total=0, silent=True))

    def end(self) -> None:
        """End the current phase."""
        if self._phases and self._phases[-1].ended is None:
            self._phases[-1].ended = time.monotonic()

    def update(
        self, unit: str, rows: int, of: Work | None = None, loss: float | None = None
    ) -> None:
        """Set the rows done of a unit of the current phase.

        Args:
            unit: the unit of work.
            rows: rows done so far.
            of: the pass to count them for, if it has no shards.
            loss: mean training loss so far.
        """
        if of is not None:
            self._telemetry.level(of, unit, rows)
        if self._phases and self._phases[-1].ended is None:
            self._phases[-1].update(unit, rows)
            if loss is not None:
                self._phases[-1].loss = loss

    def waits_for(self, text: str) -> None:
        """Set the status text until the first rows of the current phase are done."""
        if self._phases and self._phases[-1].ended is None:
            self._phases[-1].waiting = text

    def note(self, text: str) -> None:
        """End the current phase and print a line."""
        self.end()
        self._phases.append(_Phase(text, total=0))
        self.end()

    def missing(self, of: Work, shards: Sequence[int]) -> None:
        """Set the shards that a pass has yet to do."""
        self._telemetry.begin(of, shards)

    def shard(self, done: ShardDone) -> None:
        """Record a finished shard."""
        self._telemetry.shard(done)
        rejects = sum(done.rejects.values())
        if rejects and self._phases and self._phases[-1].ended is None:
            self._phases[-1].rejects[done.of.dataset, done.shard] = rejects

    def epoch(self, of: Work, stats: Mapping[str, Any]) -> None:
        """Record a finished epoch; `stats` is the content of its stats.json."""
        self._telemetry.epoch(of, stats)
        self._epochs[of.run] = int(stats["epoch"]) + 1

    def epochs_done(self, run: str) -> int:
        """Number of epochs of a run that have been reported as finished."""
        return self._epochs.get(run, 0)

    def since(self, index: int) -> list[PhaseState]:
        """The phases from `index` on."""
        if time.monotonic() - self._refreshed >= REFRESH_SECONDS:
            self._refreshed = time.monotonic()
            self._telemetry.refresh()
        return [phase.state() for phase in self._phases[index:]]


def throttled(report: Callable[[int], Any]) -> Callable[[int], None]:
    """`report`, limited to one call in UPDATE_SECONDS: a model's steps may take milliseconds."""
    last = 0.0

    def report_rarely(done: int) -> None:
        nonlocal last
        if time.monotonic() - last >= UPDATE_SECONDS:
            last = time.monotonic()
            report(done)

    return report_rarely


@dataclass
class Pace:
    """The combined throughput of a pool of actors, from its first row to its last, which excludes the
    loading of engines."""

    rows: int = 0
    started: float = math.inf
    ended: float = -math.inf

    def add(self, done: Mapping[str, Any]) -> None:
        """Add a unit of work: its `rows`, and its times `started` and `ended` in seconds."""
        self.rows += done["rows"]
        self.started = min(self.started, done["started"])
        self.ended = max(self.ended, done["ended"])

    @property
    def rows_per_second(self) -> float | None:
        """None if no rows were done."""
        if self.ended < self.started:
            return None
        return self.rows / max(self.ended - self.started, 1e-9)


def duration(seconds: float) -> str:
    """A duration in a suitable unit: 89 s, 1.5 min, 2.0 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
