"""Log a run's figures to experiment trackers: always TensorBoard, on request MLflow and Weights & Biases.

The figures (llkd/results/tracked_figures.py) are read from the run directory, epoch by epoch, so a
resumed run logs nothing twice. A step is an epoch, from 0; the final figures have the step after the
last epoch.
"""

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import ray

from llkd.config.run import RunConfig
from llkd.distill.epoch_stats import STATS
from llkd.errors import ConfigError
from llkd.results.tracked_figures import epoch_figures, final_figures
from llkd.results.trackers import (
    REMOTE_TRACKERS,
    TENSORBOARD,
    ExperimentTracker,
    TensorBoard,
    event_file,
)
from llkd.store.folder import Folder
from llkd.store.manifest import read_manifest
from llkd.store.schema import METRICS, RunLayout

TRACKING = "tracking.json"
"""The runs at the remote trackers that belong to a run directory, and their numbers of steps."""
POLL_SECONDS = 2.0
LEAVE_SECONDS = 2.0
"""A failed or interrupted command waits at most this long for a tracker."""

PrintLine = Callable[[str], None]


def require_trackers(config: RunConfig) -> None:
    """Check that the packages of the experiment trackers are installed.

    Raises:
        ConfigError: naming the setting whose package is missing.
    """
    for name in config.tracking.trackers:
        if find_spec(name) is None:
            raise ConfigError(
                f"tracking.{name} needs the package {name}",
                f"Install it: pip install '.[tracking]', or set tracking.{name} to null.",
            )


class Recorder:
    """Logs a run to all experiment trackers. No call raises; a tracker that fails is dropped."""

    def __init__(self, config: RunConfig, print_line: PrintLine) -> None:
        """
        Args:
            config: the run.
            print_line: prints a warning on the console.
        """
        self._config, self._print_line = config, print_line
        self._layout = RunLayout(config.run_dir)
        self._root, self._events = Folder(self._layout.root), Folder(self._layout.tensorboard)
        self._written = 0
        """Number of steps in TensorBoard."""
        self._states: dict[str, dict[str, Any]] = {}
        self._trackers: dict[str, ExperimentTracker] = {}
        self._failed: set[str] = set()
        with self._no_error_of("tracking"):
            existing = set(self._events.names())
            while event_file(self._written) in existing:
                self._written += 1
            if config.tracking.trackers:
                self._states = self._root.read_json_if_there(TRACKING) or {}

    @contextmanager
    def _no_error_of(self, name: str) -> Iterator[None]:
        """Tracker errors never fail a run: the first one of each tracker is a warning."""
        try:
            yield
        except Exception as error:
            if name in self._failed:
                return
            self._failed.add(name)
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            self._print_line(f"warning: nothing more is logged to {name}: {first[:200]}")

    def forget_from(self, epoch: int) -> None:
        """Drop TensorBoard's steps from an epoch on, because it is trained again. The other
        trackers keep the figures of its first training."""
        with self._no_error_of(TENSORBOARD):
            for step in range(epoch, self._written):
                self._events.delete_file(event_file(step))
        self._written = min(self._written, epoch)

    def log_epochs(self, count: int) -> None:
        """Log the first `count` epochs, except those already logged."""
        for epoch in range(self._next_step(), count):
            folder = Folder(self._layout.epoch(epoch))
            with self._no_error_of("tracking"):
                stats = folder.read_json(STATS)
                written = folder.files()[STATS].modified / 1e9
                self._log(epoch, written, epoch_figures(stats))

    def log_all_epochs(self) -> None:
        """Log all epochs of a trained student. Those trained again since they were logged are
        logged again."""
        with self._no_error_of("tracking"):
            manifest = read_manifest(Folder(self._layout.epochs))
            if manifest is not None and manifest.complete:
                count = int(manifest.results["epochs"])
                events = self._events.files()
                for epoch in range(min(count, self._written)):
                    stats = Folder(self._layout.epoch(epoch)).files().get(STATS)
                    event = events.get(event_file(epoch))
                    if stats is None or event is None or stats.modified > event.modified:
                        self.forget_from(epoch)
                        break
                self.log_epochs(count)

    def log_metrics(self, epochs: int, metrics: Mapping[str, Any]) -> None:
        """Log the final figures of a run after its epochs."""
        with self._no_error_of("tracking"):
            self.log_epochs(epochs)
            if self._next_step() <= epochs:
                written = self._root.files()[METRICS].modified / 1e9
                self._log(epochs, written, final_figures(metrics))

    def close(self) -> None:
        """Close the trackers that still work."""
        for name, tracker in self._trackers.items():
            if name not in self._failed:
                with self._no_error_of(name):
                    tracker.close()

    def _names(self) -> list[str]:
        wanted = [TENSORBOARD, *self._config.tracking.trackers]
        return [name for name in wanted if name not in self._failed]

    def _next_step(self) -> int:
        """The first step that a working tracker lacks."""
        return min((self._steps(name) for name in self._names()), default=sys.maxsize)

    def _steps(self, name: str) -> int:
        if name == TENSORBOARD:
            return self._written
        state = self._states.get(name, {})
        where = getattr(self._config.tracking, name, None)
        return int(state.get("steps", 0)) if state.get("where") == where else 0

    def _log(self, step: int, seconds: float, figures: Mapping[str, float]) -> None:
        for name in self._names():
            if step < self._steps(name):
                continue
            with self._no_error_of(name):
                self._tracker(name).log(step, seconds, figures)
                if name == TENSORBOARD:
                    self._written = step + 1
                else:
                    self._states[name]["steps"] = step + 1
        if self._states:
            self._root.write_json(TRACKING, self._states)

    def _tracker(self, name: str) -> ExperimentTracker:
        if name not in self._trackers:
            self._trackers[name] = (
                TensorBoard(self._events)
                if name == TENSORBOARD
                else REMOTE_TRACKERS[name](self._config, self._states.setdefault(name, {}))
            )
        return self._trackers[name]


@contextmanager
def logged_epochs(config: RunConfig, progress: Any, print_line: PrintLine) -> Iterator[None]:
    """Log the epochs of a student as they end, while it is trained in the block.

    Args:
        config: the run.
        progress: the progress tracker, which counts the finished epochs.
        print_line: prints a warning on the console.
    """
    recorder, stop = Recorder(config, print_line), threading.Event()

    def follow() -> None:
        logged = 0
        while not stop.wait(POLL_SECONDS):
            try:
                done = ray.get(progress.epochs_done.remote(RunLayout(config.run_dir).name))
            except Exception:  # Ray shuts down and raises many kinds; the stage reports the cause
                return
            if done and not logged:
                recorder.forget_from(done - 1)
            logged = done
            recorder.log_epochs(done)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    except BaseException:  # the next start logs what is missing: do not wait for a server
        stop.set()
        thread.join(LEAVE_SECONDS)
        raise
    stop.set()
    thread.join()
    recorder.log_all_epochs()
    recorder.close()


def log_final_metrics(config: RunConfig, metrics: Mapping[str, Any], print_line: PrintLine) -> None:
    """Log the final figures of a run to all trackers that lack them."""
    recorder = Recorder(config, print_line)
    recorder.log_metrics(int(metrics["selection"]["epochs"]), metrics)
    recorder.close()
