"""Draws the phases of the progress tracker: one live line on a terminal, else a line every few
seconds, and a closing line for each phase."""

import math
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import ray
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column
from rich.text import Text

from llkd.cluster import connection
from llkd.cluster.progress import PhaseState, ProgressTracker, duration
from llkd.cluster.telemetry import SHARD_LOG

POLL_SECONDS = 0.5
PLAIN_LINE_SECONDS = 10.0
"""Minimum time between two lines if the console is not a terminal."""
ACTORS_SECONDS = 2.0
"""Minimum time between two counts of the running actors."""

INDENT = "  "
MAX_NAME = 36
"""Maximum columns of a phase's name: that of a teacher may be long."""
BAR = (8, 24)
"""Minimum and maximum columns of the progress bar."""


class ProgressDisplay:
    """Draws a tracker's phases on a console within its `with` block."""

    def __init__(self, console: Console) -> None:
        self._console = console
        # On a cluster the lines also go to Ray's log of the tracker, where log collectors look.
        self.tracker: Any = ProgressTracker.options(**connection.here()).remote(  # type: ignore[attr-defined]
            SHARD_LOG.get(), echo=not connection.is_local()
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._seen = 0
        self._last_plain = time.monotonic()
        self._actors, self._actors_counted = 0, -math.inf
        # Redirecting would show library output on the screen: see llkd/cli.py.
        self._live = Progress(
            TextColumn(INDENT + "{task.description}", markup=False),
            BarColumn(bar_width=None, table_column=Column(max_width=BAR[1])),
            TextColumn("{task.fields[status]}", markup=False),
            console=console,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            disable=not console.is_terminal,
        )
        self._task = self._live.add_task("", visible=False, status="")

    def __enter__(self) -> Self:
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
        self._live.stop()
        ray.kill(self.tracker)

    def _watch(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            try:
                self._draw()
            except ray.exceptions.RayError:  # Ray is stopping; the stage reports the reason
                return

    def _draw(self) -> None:
        for state in ray.get(self.tracker.since.remote(self._seen)):
            if not state.ended:
                self._show(state)
                return
            self._seen += 1
            self._live.update(self._task, visible=False)
            if not state.silent:
                self._print(closing_line(state, self._console.width - len(INDENT)))

    def _show(self, state: PhaseState) -> None:
        """Update the live line, or print a line if PLAIN_LINE_SECONDS have passed."""
        self._count_actors(state.actors)
        name = short_name(state.name)
        room = self._console.width - len(INDENT) - cell_len(name)
        if self._console.is_terminal:
            self._live.update(
                self._task,
                description=name,
                total=state.total or None,
                completed=state.rows,
                status=running_line(state, self._actors, room - BAR[0] - 2),
                visible=True,
            )
        elif time.monotonic() - self._last_plain >= PLAIN_LINE_SECONDS:
            self._last_plain = time.monotonic()
            self._print(f"{name}: {running_line(state, self._actors, room - 2)}")

    def _print(self, line: str) -> None:
        if self._console.is_terminal:  # a long line wraps between words
            padded = Padding(Text(line), (0, 0, 0, len(INDENT)), expand=False)
            self._console.print(padded, soft_wrap=False)
        else:
            self._console.print(f"{INDENT}{line}", markup=False)

    def _count_actors(self, kind: str) -> None:
        if not kind:
            self._actors, self._actors_counted = 0, -math.inf
        elif time.monotonic() - self._actors_counted >= ACTORS_SECONDS:
            self._actors = connection.running_actors(kind)
            self._actors_counted = time.monotonic()


def running_line(state: PhaseState, actors: int = 0, width: float = math.inf) -> str:
    """A running phase: rows done, rate, time left, loss, rejects and actors, as far as they fit.

    Args:
        state: the state of the phase.
        actors: number of running actors.
        width: available columns.
    """
    parts = [(9, f"{state.rows:,} of {state.total:,} rows")]
    if not state.total:
        parts = [(9, duration(state.seconds))]
    elif not state.rate:
        parts.append((8, f"{state.waiting} ({duration(state.seconds)})"))
    else:
        parts.append((6, f"{state.rate:,.1f} rows/s"))
        parts.append((8, f"{duration((state.total - state.rows) / state.rate)} left"))
    if state.loss is not None:
        parts.append((5, f"loss {state.loss:.3f}"))
    if state.rejects:
        parts.append((7, f"{state.rejects:,} rejected"))
    if actors:
        parts.append((4, f"{actors:,} {state.actors}{'' if actors == 1 else 's'}"))
    return fitted(parts, width)


def closing_line(state: PhaseState, width: float = math.inf) -> str:
    """The result of a finished phase, as far as it fits."""
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


def fitted(parts: Sequence[tuple[int, str]], width: float, separator: str = ", ") -> str:
    """Join the parts, without the least important ones if they do not all fit.

    Args:
        parts: (importance, text); the most important part is always kept.
        width: available columns.
        separator: the text between two parts.
    """
    kept = list(parts)
    while len(kept) > 1 and cell_len(separator.join(text for _, text in kept)) > width:
        kept.remove(min(kept, key=lambda part: part[0]))
    return separator.join(text for _, text in kept)


def short_name(name: str) -> str:
    """The name of a phase, shortened in the middle to MAX_NAME columns."""
    if cell_len(name) <= MAX_NAME:
        return name
    half = MAX_NAME // 2
    end = name[::-1]
    return f"{set_cell_size(name, half - 1).rstrip()}…{set_cell_size(end, half).rstrip()[::-1]}"
