"""What a person sees while a stage runs: rows done, rate, time left.

Workers anywhere in the cluster tell a small actor how far they are; a thread of the driver asks
it and draws. On a terminal that is one live line, elsewhere a plain line now and then. What the
actor tells the machines that watch is in llkd/telemetry.py.
"""

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import ray
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from llkd import runtime
from llkd.telemetry import SHARD_LOG, ShardDone, Telemetry, Work

POLL_SECONDS = 0.5
PLAIN_LINE_SECONDS = 10.0
TELL_SECONDS = 0.25
"""Between two words of a worker to the tracker."""
REFRESH_SECONDS = 5.0
"""Between two words of the tracker on what is as it was."""

MEASURABLE_SECONDS = 1.0
"""A rate is told only once it rests on so much time."""


@dataclass(frozen=True)
class PhaseState:
    """How far a phase is, as it is told to the display."""

    name: str
    rows: int
    total: int
    """0 for a line that is only to be printed."""
    skipped: int
    """Rows that an earlier run had done already."""
    seconds: float
    rate: float | None
    """Rows per second since the first ones were done, without the engines' loading; None while
    there is too little to tell."""
    ended: bool


@dataclass
class _Phase:
    """One pass over rows."""

    name: str
    total: int
    skipped: int = 0
    done: dict[str, int] = field(default_factory=dict)
    """Rows done by unit of work: told as a level, not a step, so that a repeat is harmless."""
    fresh: int = 0
    """Their sum, for there may be a million units."""
    begun: float = field(default_factory=time.monotonic)
    first: tuple[float, int] | None = None
    """When the first rows were done, and how many those were."""
    ended: float | None = None

    def update(self, unit: str, rows: int) -> None:
        self.fresh += rows - self.done.get(unit, 0)
        self.done[unit] = rows
        if self.first is None:
            self.first = time.monotonic(), rows

    def state(self) -> PhaseState:
        now = time.monotonic() if self.ended is None else self.ended
        rate = None
        if self.first is not None and now - self.first[0] >= MEASURABLE_SECONDS:
            rate = max(self.fresh - self.first[1], 0) / (now - self.first[0])
        rows = min(self.skipped + self.fresh, self.total)
        return PhaseState(
            self.name,
            rows,
            self.total,
            self.skipped,
            now - self.begun,
            rate,
            self.ended is not None,
        )


@ray.remote(num_cpus=0)
class ProgressTracker:
    """Collects how far each unit of work is. Calls are cheap; workers do not wait for them."""

    def __init__(self, lines: str | None = None, echo: bool = False) -> None:
        """See Telemetry."""
        self._phases: list[_Phase] = []
        self._telemetry = Telemetry(lines, echo)
        self._epochs: dict[str, int] = {}
        self._refreshed = time.monotonic()

    def begin(self, name: str, total: int, skipped: int = 0) -> None:
        """Start the next phase; the one before it has ended."""
        self.end()
        self._phases.append(_Phase(name, total, skipped))

    def end(self) -> None:
        """End the current phase."""
        if self._phases and self._phases[-1].ended is None:
            self._phases[-1].ended = time.monotonic()

    def update(self, unit: str, rows: int, of: Work | None = None) -> None:
        """Rows done of a unit of the current phase; with `of` they are counted as rows of that
        pass, which has no shards."""
        if of is not None:
            self._telemetry.level(of, unit, rows)
        if self._phases and self._phases[-1].ended is None:
            self._phases[-1].update(unit, rows)

    def note(self, text: str) -> None:
        """A line to print as it is; it ends the current phase."""
        self.end()
        self._phases.append(_Phase(text, total=0))
        self.end()

    def missing(self, of: Work, shards: Sequence[int]) -> None:
        """The shards that a pass has to do."""
        self._telemetry.begin(of, shards)

    def shard(self, done: ShardDone) -> None:
        """A shard is done."""
        self._telemetry.shard(done)

    def epoch(self, of: Work, stats: Mapping[str, Any]) -> None:
        """An epoch is done; `stats` are those of its stats.json."""
        self._telemetry.epoch(of, stats)
        self._epochs[of.run] = int(stats["epoch"]) + 1

    def epochs_done(self, run: str) -> int:
        """How many epochs of a run are done, as far as this command has seen them."""
        return self._epochs.get(run, 0)

    def since(self, index: int) -> list[PhaseState]:
        """The phases from `index` on."""
        if time.monotonic() - self._refreshed >= REFRESH_SECONDS:
            self._refreshed = time.monotonic()
            self._telemetry.refresh()
        return [phase.state() for phase in self._phases[index:]]


class ProgressDisplay:
    """Draws a tracker's phases on a console until the `with` block ends."""

    def __init__(self, console: Console) -> None:
        self._console = console
        # On a cluster the lines are in Ray's log of the tracker, too, where collectors of logs look.
        self.tracker: Any = ProgressTracker.options(**runtime.here()).remote(  # type: ignore[attr-defined]
            SHARD_LOG.get(), echo=not runtime.is_local()
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._seen = 0
        self._last_plain = time.monotonic()
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("  {task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[text]}"),
                console=self._console,
                transient=True,
            )
            self._bar.start()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        if kind is None:
            ray.get(self.tracker.end.remote())
            self._draw()
        if self._bar is not None:
            self._bar.stop()
        ray.kill(self.tracker)

    def _watch(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            try:
                self._draw()
            except ray.exceptions.RayError:  # Ray is going away; the stage says why
                return

    def _draw(self) -> None:
        for state in ray.get(self.tracker.since.remote(self._seen)):
            if state.ended:
                self._seen += 1
                self._clear_bar()
                self._console.print(f"  {escape(closing_line(state))}")
            else:
                self._show(state)

    def _show(self, state: PhaseState) -> None:
        text = running_line(state)
        if self._bar is None:
            if time.monotonic() - self._last_plain >= PLAIN_LINE_SECONDS:
                self._last_plain = time.monotonic()
                self._console.print(f"  {escape(state.name)}: {text}")
            return
        if self._task is None:
            self._task = self._bar.add_task("", total=state.total, text="")
        self._bar.update(
            self._task,
            description=escape(state.name),
            completed=state.rows,
            total=state.total,
            text=text,
        )

    def _clear_bar(self) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None


def now_and_then(tell: Callable[[int], Any]) -> Callable[[int], None]:
    """`tell`, but no more often than anybody looks: a model's steps may be milliseconds."""
    last = 0.0

    def maybe(done: int) -> None:
        nonlocal last
        if time.monotonic() - last >= TELL_SECONDS:
            last = time.monotonic()
            tell(done)

    return maybe


@dataclass
class Pace:
    """How fast some actors are together, without their start: from the first one's first row to
    the last one's last."""

    rows: int = 0
    started: float = math.inf
    ended: float = -math.inf

    def add(self, done: Mapping[str, Any]) -> None:
        """A unit of work: its `rows`, and when it `started` and `ended`, in seconds."""
        self.rows += done["rows"]
        self.started = min(self.started, done["started"])
        self.ended = max(self.ended, done["ended"])

    @property
    def rows_per_second(self) -> float | None:
        """None where nothing was done."""
        if self.ended < self.started:
            return None
        return self.rows / max(self.ended - self.started, 1e-9)


def running_line(state: PhaseState) -> str:
    """Rows done, rate and time left of a phase that runs."""
    share = f"{state.rows:,} of {state.total:,} rows"
    if not state.rate:
        return f"{share}, starting ({duration(state.seconds)})"
    left = duration((state.total - state.rows) / state.rate)
    return f"{share}, {state.rate:,.1f} rows/s, {left} left"


def closing_line(state: PhaseState) -> str:
    """What a phase that has ended did."""
    if state.total == 0:
        return state.name
    resumed = f" ({state.skipped:,} of them done before)" if state.skipped else ""
    rate = f", {state.rate:,.1f} rows/s" if state.rate else ""
    return f"{state.name}: {state.rows:,} rows{resumed} in {duration(state.seconds)}{rate}"


def duration(seconds: float) -> str:
    """A span of time for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
