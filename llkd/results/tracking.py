"""A run's figures where people follow runs: TensorBoard always, MLflow and Weights & Biases if asked.

All of them are read from what the run has left, epoch by epoch, so that a run which was broken off
and goes on tells nothing twice. The names are those of llkd/cluster/telemetry.py, without `llkd_` and
with tags as parts, and those of metrics.json, `/` in place of dots. A step is an epoch, from 0; what is
measured in the end has the step after the last.
"""

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
from llkd.results.trackers import KINDS, TENSORBOARD, Sink, TensorBoard, event_file
from llkd.store.folder import Folder
from llkd.store.manifest import read_manifest
from llkd.store.schema import METRICS, RunLayout

TRACKING = "tracking.json"
"""The runs at the trackers that belong to a run directory, and how many steps they have."""
MOST_STEPS = 10**9
POLL_SECONDS = 2.0
LEAVE_SECONDS = 2.0
"""For which a command that fails, or is told to end, waits for a tracker."""
PACKAGES = {"mlflow": "mlflow", "wandb": "wandb"}
"""The module of each tracker."""

Say = Callable[[str], None]


def require_trackers(config: RunConfig) -> None:
    """See that the packages of the trackers are there.

    Raises:
        ConfigError: naming the setting whose package is not.
    """
    for name in config.tracking.trackers:
        if find_spec(PACKAGES[name]) is None:
            raise ConfigError(
                f"tracking.{name} needs the package {name}",
                f"Install it: pip install '.[tracking]', or set tracking.{name} to null.",
            )


class Recorder:
    """Tells all trackers of a run. No call raises; a tracker that fails is left alone after that."""

    def __init__(self, config: RunConfig, say: Say) -> None:
        """
        Args:
            config: the run.
            say: takes a line for the console.
        """
        self._config, self._say = config, say
        self._layout = RunLayout(config.run_dir)
        self._root = Folder(self._layout.root)
        self._written = 0
        """Steps that TensorBoard has."""
        self._states: dict[str, dict[str, Any]] = {}
        self._sinks: dict[str, Sink] = {}
        self._failed: set[str] = set()
        with self._harmless("tracking"):
            there = set(Folder(self._layout.tensorboard).names())
            while event_file(self._written) in there:
                self._written += 1
            if config.tracking.trackers:
                self._states = self._root.read_json_if_there(TRACKING) or {}

    @contextmanager
    def _harmless(self, name: str) -> Iterator[None]:
        """A run does not fail for want of being followed."""
        try:
            yield
        except Exception as error:
            if name in self._failed:
                return
            self._failed.add(name)
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            self._say(f"warning: {name} is not told any more: {first[:200]}")

    def trained_again(self, epoch: int) -> None:
        """Have TensorBoard told of an epoch and what came after it once more. The others keep what
        they were told first."""
        with self._harmless(TENSORBOARD):
            for step in range(epoch, self._written):
                Folder(self._layout.tensorboard).delete_file(event_file(step))
        self._written = min(self._written, epoch)

    def epochs(self, count: int) -> None:
        """Tell of the first epochs what is not told yet."""
        for epoch in range(self._told(), count):
            folder = Folder(self._layout.epoch(epoch))
            with self._harmless("tracking"):
                stats = folder.read_json(STATS)
                written = folder.files()[STATS].modified / 1e9
                self._log(epoch, written, epoch_figures(stats))

    def all_epochs(self) -> None:
        """The same, of all epochs of a student that is trained."""
        with self._harmless("tracking"):
            manifest = read_manifest(Folder(self._layout.epochs))
            if manifest is not None and manifest.complete:
                count = int(manifest.results["epochs"])
                self._look_again(count)
                self.epochs(count)

    def _look_again(self, count: int) -> None:
        """Have TensorBoard told again of epochs that were trained after it was told of them."""
        told = Folder(self._layout.tensorboard).files()
        for epoch in range(min(count, self._written)):
            stats = Folder(self._layout.epoch(epoch)).files().get(STATS)
            event = told.get(event_file(epoch))
            if stats is None or event is None or stats.modified > event.modified:
                self.trained_again(epoch)
                return

    def figures(self, epochs: int, metrics: Mapping[str, Any]) -> None:
        """Tell what a run was measured at in the end, after so many epochs."""
        with self._harmless("tracking"):
            self.epochs(epochs)
            if self._told() <= epochs:
                written = self._root.files()[METRICS].modified / 1e9
                self._log(epochs, written, final_figures(metrics))

    def close(self) -> None:
        """End, and keep how far each tracker is."""
        for name, sink in self._sinks.items():
            if name not in self._failed:
                with self._harmless(name):
                    sink.close()

    def _names(self) -> list[str]:
        wanted = [TENSORBOARD, *self._config.tracking.trackers]
        return [name for name in wanted if name not in self._failed]

    def _told(self) -> int:
        """The first step that some tracker lacks."""
        return min((self._steps(name) for name in self._names()), default=MOST_STEPS)

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
            with self._harmless(name):
                self._sink(name).log(step, seconds, figures)
                if name == TENSORBOARD:
                    self._written = step + 1
                else:
                    self._states[name]["steps"] = step + 1
        if self._states:
            self._root.write_json(TRACKING, self._states)

    def _sink(self, name: str) -> Sink:
        if name not in self._sinks:
            if name == TENSORBOARD:
                self._sinks[name] = TensorBoard(Folder(self._layout.tensorboard))
            else:
                state = self._states.setdefault(name, {})
                self._sinks[name] = KINDS[name](self._config, state)
        return self._sinks[name]


@contextmanager
def followed(config: RunConfig, tracker: Any, say: Say) -> Iterator[None]:
    """While a student is trained, its epochs are told as they are done.

    Args:
        config: the run.
        tracker: the progress tracker, which knows how many there are.
        say: takes a line for the console.
    """
    recorder, stop = Recorder(config, say), threading.Event()

    def follow() -> None:
        seen = 0
        while not stop.wait(POLL_SECONDS):
            try:
                done = ray.get(tracker.epochs_done.remote(RunLayout(config.run_dir).name))
            except Exception:  # Ray is going away, and says it in many ways; the stage says why
                return
            if done and not seen:
                recorder.trained_again(done - 1)
            seen = done
            recorder.epochs(done)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    except BaseException:  # what is not told yet the next start tells: nobody waits for a server
        stop.set()
        thread.join(LEAVE_SECONDS)
        raise
    stop.set()
    thread.join()
    recorder.all_epochs()
    recorder.close()


def tell_figures(config: RunConfig, metrics: Mapping[str, Any], say: Say) -> None:
    """Tell all trackers what a finished run was measured at; what they have is not told again."""
    recorder = Recorder(config, say)
    recorder.figures(int(metrics["selection"]["epochs"]), metrics)
    recorder.close()
