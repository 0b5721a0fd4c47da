"""What a person sees while a stage runs: rows done, rate, time left, loss, rejects, who is at work.

Workers anywhere in the cluster tell a small actor how far they are; a thread of the driver asks
it and draws. On a terminal that is one live line, elsewhere a plain line now and then. What the
actor tells the machines that watch is in llkd/cluster/telemetry.py.
"""

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import ray
from rich.cells import cell_len, set_cell_size
from rich.console import Console, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from llkd.cluster import connection
from llkd.cluster.telemetry import SHARD_LOG, ShardDone, Telemetry, Work

POLL_SECONDS = 0.5
PLAIN_LINE_SECONDS = 10.0
TELL_SECONDS = 0.25
"""Between two words of a worker to the tracker."""
REFRESH_SECONDS = 5.0
"""Between two words of the tracker on what is as it was."""

CREW_SECONDS = 2.0
"""Between two looks at how many actors run."""

MEASURABLE_SECONDS = 1.0
"""A rate is told only once it rests on so much time."""

BARS = (24, 16, 8)
"""Widths of the bar: the widest for which there is room, else none."""
MOST_OF_NAME = 36
"""Columns that the name of a phase takes at most: a teacher's may be long."""


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
    rejects: int = 0
    """Rows left out in this run."""
    loss: float | None = None
    """Mean training loss so far."""
    crew: str = ""
    """What its actors are called, a key of runtime.CREWS; empty where it has none."""
    silent: bool = False
    """Whether it ends without a line: what has no rows to count."""


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
    crew: str = ""
    silent: bool = False
    rejects: dict[tuple[str, int], int] = field(default_factory=dict)
    """Rows left out by data set and shard, where there are any."""
    loss: float | None = None

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
            sum(self.rejects.values()),
            self.loss,
            self.crew,
            self.silent,
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

    def begin(self, name: str, total: int, skipped: int = 0, crew: str = "") -> None:
        """Start the next phase; the one before it has ended. For `crew` see PhaseState."""
        self.end()
        self._phases.append(_Phase(name, total, skipped, crew=crew))

    def doing(self, name: str) -> None:
        """Start a phase that has no rows to count, and ends without a line."""
        self.end()
        self._phases.append(_Phase(name, total=0, silent=True))

    def end(self) -> None:
        """End the current phase."""
        if self._phases and self._phases[-1].ended is None:
            self._phases[-1].ended = time.monotonic()

    def update(
        self, unit: str, rows: int, of: Work | None = None, loss: float | None = None
    ) -> None:
        """Rows done of a unit of the current phase; with `of` they are counted as rows of that
        pass, which has no shards. `loss` is the mean training loss so far."""
        if of is not None:
            self._telemetry.level(of, unit, rows)
        if self._phases and self._phases[-1].ended is None:
            self._phases[-1].update(unit, rows)
            if loss is not None:
                self._phases[-1].loss = loss

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
        rejects = sum(done.rejects.values())
        if rejects and self._phases and self._phases[-1].ended is None:
            self._phases[-1].rejects[done.of.dataset, done.shard] = rejects

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
        self.tracker: Any = ProgressTracker.options(**connection.here()).remote(  # type: ignore[attr-defined]
            SHARD_LOG.get(), echo=not connection.is_local()
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._seen = 0
        self._last_plain = time.monotonic()
        self._running: PhaseState | None = None
        self._crew, self._crew_seen = 0, -math.inf
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            # Redirecting would bring the libraries' output back to the screen: see llkd/cli.py.
            self._live = Live(
                console=self._console, get_renderable=self._picture, transient=True,
                redirect_stdout=False, redirect_stderr=False,
            )  # fmt: skip
            self._live.start()
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
        self._running = None
        if self._live is not None:
            self._live.stop()
        ray.kill(self.tracker)

    def _watch(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            try:
                self._draw()
            except ray.exceptions.RayError:  # Ray is going away; the stage says why
                return

    def _draw(self) -> None:
        for state in ray.get(self.tracker.since.remote(self._seen)):
            if not state.ended:
                self._look_at_crew(state.crew)
                self._running = state
                self._print_now_and_then(state)
                return
            self._seen += 1
            self._running = None
            if not state.silent:
                self._print(closing_line(state, self._console.width - len(INDENT)))

    def _print_now_and_then(self, state: PhaseState) -> None:
        if self._live is None and time.monotonic() - self._last_plain >= PLAIN_LINE_SECONDS:
            self._last_plain = time.monotonic()
            name = f"{short_name(state.name)}: "
            room = self._console.width - len(INDENT) - cell_len(name)
            self._print(name + running_line(state, self._crew, room))

    def _print(self, line: str) -> None:
        if self._live is None:
            self._console.print(f"{INDENT}{escape(line)}")
        else:  # a long one is broken between words
            padded = Padding(Text(line), (0, 0, 0, len(INDENT)), expand=False)
            self._console.print(padded, soft_wrap=False)

    def _picture(self) -> Table | Text:
        """The live line, as it fits the terminal."""
        state = self._running
        if state is None:
            return Text("")
        name = f"{INDENT}{short_name(state.name)}"
        room = self._console.width - cell_len(name) - 1
        text, bar = live_text(state, self._crew, room)
        grid = Table.grid(padding=(0, 1, 0, 0))
        for _ in range(3):
            grid.add_column(no_wrap=True)
        done = ProgressBar(max(state.total, 1), state.rows, bar, pulse=not state.total)
        shown: list[RenderableType] = [Text(name), *([done] if bar else []), Text(text)]
        grid.add_row(*shown)
        return grid

    def _look_at_crew(self, crew: str) -> None:
        if not crew:
            self._crew, self._crew_seen = 0, -math.inf
        elif time.monotonic() - self._crew_seen >= CREW_SECONDS:
            self._crew, self._crew_seen = connection.crew_size(crew), time.monotonic()


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


INDENT = "  "


def running_line(state: PhaseState, crew: int = 0, width: float = math.inf) -> str:
    """A phase that runs: rows done, rate, time left and what else there is, as far as it fits.

    Args:
        state: of the phase.
        crew: how many actors work on it; 0 where it has none.
        width: columns that there are.
    """
    return fitted(_running_parts(state, crew), width)


def live_text(state: PhaseState, crew: int, room: int) -> tuple[str, int]:
    """(what stands beside the bar of a phase that runs, the width of the bar; 0: none)."""
    parts = _running_parts(state, crew)
    short = _running_parts(state, crew, short=True)
    for text in (", ".join(text for _, text in each) for each in (parts, short)):
        for bar in BARS:
            if bar + 1 + cell_len(text) <= room:
                return text, bar
    return fitted(short, room), 0


def _running_parts(state: PhaseState, crew: int, short: bool = False) -> list[tuple[int, str]]:
    """(importance, words) of what is told, in the order in which it is; see `fitted`."""
    of, unit = ("/", "") if short else (" of ", " rows")
    parts = [(9, f"{state.rows:,}{of}{state.total:,} rows")]
    if not state.total:
        parts = [(9, duration(state.seconds))]
    elif not state.rate:
        parts.append((8, f"starting ({duration(state.seconds)})"))
    else:
        parts.append((6, f"{state.rate:,.1f}{unit}/s"))
        parts.append((8, f"{duration((state.total - state.rows) / state.rate)} left"))
    if state.loss is not None:
        parts.append((5, f"loss {state.loss:.3f}"))
    if state.rejects:
        parts.append((7, f"{state.rejects:,} rejected"))
    if crew:
        parts.append((4, f"{crew:,} {state.crew}{'' if crew == 1 else 's'}"))
    return parts


def closing_line(state: PhaseState, width: float = math.inf) -> str:
    """What a phase that has ended did, as far as it fits."""
    if state.total == 0:
        return state.name
    parts = [(9, f"{short_name(state.name)}: {state.rows:,} rows")]
    if state.skipped:
        parts.append((6, f"({state.skipped:,} of them done before)"))
    parts.append((8, f"in {duration(state.seconds)}"))
    if state.rate:
        parts.append((5, f", {state.rate:,.1f} rows/s"))
    if state.rejects:
        parts.append((7, f", {state.rejects:,} rejected"))
    return fitted(parts, width, " ").replace(" ,", ",")


def fitted(parts: Sequence[tuple[int, str]], width: float, between: str = ", ") -> str:
    """Words put together, without the less important ones where there is no room for all.

    Args:
        parts: (importance, words); the most important are kept in any case.
        width: columns that there are.
        between: what stands between two parts.
    """
    kept = list(parts)
    while len(kept) > 1 and cell_len(between.join(words for _, words in kept)) > width:
        kept.remove(min(kept, key=lambda part: part[0]))
    return between.join(words for _, words in kept)


def short_name(name: str) -> str:
    """The name of a phase, cut in the middle where it is long."""
    if cell_len(name) <= MOST_OF_NAME:
        return name
    half = MOST_OF_NAME // 2
    end = name[::-1]
    return f"{set_cell_size(name, half - 1).rstrip()}…{set_cell_size(end, half).rstrip()[::-1]}"


def duration(seconds: float) -> str:
    """A span of time for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
