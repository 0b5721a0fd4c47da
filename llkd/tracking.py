"""A run's figures where people follow runs: TensorBoard always, MLflow and Weights & Biases if asked.

All of them are read from what the run has left, epoch by epoch, so that a run which was broken off
and goes on tells nothing twice. The names are those of llkd/telemetry.py, without `llkd_` and
with tags as parts, and those of metrics.json, `/` in place of dots. A step is an epoch, from 0; what is
measured in the end has the step after the last.

TensorBoard gets a file for each step, whole when it appears: its reader goes on to the next file,
and an object store takes one PUT.
"""

import json
import math
import os
import re
import struct
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Protocol

import ray

from llkd.config import RunConfig
from llkd.epochs import STATS
from llkd.errors import ConfigError
from llkd.manifest import read_manifest
from llkd.schema import RunLayout
from llkd.scratch import make_scratch
from llkd.storage import Folder
from llkd.telemetry import (
    LABEL_SELECTED,
    LABEL_THRESHOLD,
    LOSS,
    MOST_VALUES,
    SELECTED,
    THRESHOLD,
    Metric,
)

TRACKING = "tracking.json"
"""The runs at the trackers that belong to a run directory, and how many steps they have."""
TENSORBOARD = "tensorboard"
MOST_STEPS = 10**9
POLL_SECONDS = 2.0
PACKAGES = {"mlflow": "mlflow", "wandb": "wandb"}
"""The module of each tracker."""
NAME_LENGTH = 100
"""Of a label within a name, at most: MLflow takes 250 characters in all."""

Say = Callable[[str], None]


def require_trackers(config: RunConfig) -> None:
    """See that the packages of the trackers are there.

    Raises:
        ConfigError: naming the setting whose package is not.
    """
    for name in config.tracking.trackers:
        if find_spec(PACKAGES[name]) is None:
            raise ConfigError(
                f"tracking.{name} needs the package {name}: pip install '.[tracking]', or set "
                f"tracking.{name} to null"
            )


def epoch_figures(stats: Mapping[str, Any]) -> dict[str, float]:
    """What is told of an epoch, by name, from its stats.json."""
    classes, labels = stats["classes"], _parts(list(stats["classes"]))
    by_label = len(labels) <= MOST_VALUES
    found: dict[str, float | None] = {
        _name(LOSS): stats["training_loss"],
        _name(SELECTED): stats["fraction"],
        "row_visits": stats["selected"] - stats["dropped"],
        "mean_uncertainty": _mean_uncertainty(classes.values()),
        "waiting/share": stats["waiting"]["share"],
        **{f"seconds/{part}": seconds for part, seconds in stats["seconds"].items()},
        **{f"student/held_out/{k}": v for k, v in (stats["validation"] or {}).items()},
    }
    if by_label:
        for label, of_label in zip(labels, classes.values(), strict=True):
            found[f"{_name(LABEL_SELECTED)}/{label}"] = of_label["fraction"]
    for signal in ("confidence", "uncertainty"):
        bars = dict(zip(labels, stats["thresholds"][f"{signal}_c"], strict=True))
        known = [bar for bar in bars.values() if bar is not None]
        if known:
            found[f"{_name(THRESHOLD)}/{signal}"] = math.fsum(known) / len(known)
            found[f"{_name(THRESHOLD)}_min/{signal}"] = min(known)
            found[f"{_name(THRESHOLD)}_max/{signal}"] = max(known)
        for label, bar in bars.items() if by_label else ():
            found[f"{_name(LABEL_THRESHOLD)}/{signal}/{label}"] = bar
    return _finite(found)


def final_figures(metrics: Mapping[str, Any]) -> dict[str, float]:
    """What is told in the end, by name, from metrics.json: all but figures by label or coverage."""
    found: dict[str, Any] = {}

    def walk(section: Mapping[str, Any], above: str) -> None:
        for key, value in section.items():
            if isinstance(value, Mapping) and key not in ("per_class", "risk_coverage"):
                walk(value, f"{above}{key}/")
            elif isinstance(value, int | float):
                found[f"{above}{key}"] = value

    walk(metrics, "")
    return _finite(found)


def _name(metric: Metric) -> str:
    return metric.name.removeprefix("llkd_")


def _parts(labels: Sequence[str]) -> list[str]:
    """Label names as parts of names that every tracker takes; distinct as they are."""
    found: list[str] = []
    for number, label in enumerate(labels):
        part = re.sub(r"[^\w -]|^[\s.]+|\s+$", "_", label)[:NAME_LENGTH]
        found.append(part if part not in found else f"{part[: NAME_LENGTH - 12]}_{number}")
    return found


def _mean_uncertainty(classes: Any) -> float | None:
    scored = [found for found in classes if found["mean_uncertainty"] is not None]
    rows = sum(found["rows"] for found in scored)
    if not rows:
        return None
    return math.fsum(found["mean_uncertainty"] * found["rows"] for found in scored) / rows


def _finite(found: Mapping[str, Any]) -> dict[str, float]:
    return {k: float(v) for k, v in found.items() if v is not None and math.isfinite(v)}


class Sink(Protocol):
    """Where figures go. A call may raise anything; then it is called no more."""

    def log(self, step: int, seconds: float, figures: Mapping[str, float]) -> None:
        """Tell the figures of a step, as of a time in seconds since 1970."""

    def close(self) -> None:
        """End, with all that was told sent."""


class TensorBoard:
    """Event files in a folder."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    def log(self, step: int, seconds: float, figures: Mapping[str, float]) -> None:
        """See Sink."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=x) for name, x in figures.items()]
        events = [
            Event(wall_time=seconds, file_version="brain.Event:2"),
            Event(wall_time=seconds, step=step, summary=Summary(value=values)),
        ]
        data = b"".join(_framed(event.SerializeToString()) for event in events)
        self._folder.write_bytes(event_file(step), data)

    def close(self) -> None:
        """See Sink."""


def event_file(step: int) -> str:
    """The event file of a step; the names are in the order of the steps."""
    return f"events.out.tfevents.{step:010d}.llkd"


def _framed(data: bytes) -> bytes:
    """A record of an event file: length and content, each with its checksum."""
    from tensorboardX.record_writer import masked_crc32c

    length = struct.pack("<Q", len(data))
    sums = (struct.pack("<I", masked_crc32c(part)) for part in (length, data))
    return length + next(sums) + data + next(sums)


class MLflow:
    """A run at MLflow."""

    def __init__(self, config: RunConfig, state: dict[str, Any]) -> None:
        """
        Args:
            config: the run.
            state: of this tracker in tracking.json; the run's id is kept in it.
        """
        # An unreachable server is told in a minute, not in ten.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        from mlflow import MlflowClient

        tracking = config.tracking
        self._client = MlflowClient(tracking_uri=tracking.mlflow)
        if state.get("where") != tracking.mlflow:
            found = self._client.get_experiment_by_name(tracking.experiment)
            experiment = (
                self._client.create_experiment(tracking.experiment)
                if found is None
                else found.experiment_id
            )
            run = self._client.create_run(experiment, run_name=_run_name(config))
            state.clear()
            state.update(where=tracking.mlflow, run=run.info.run_id)
            for name, value in _settings(config).items():
                self._client.log_param(run.info.run_id, name, value)
        self._run = state["run"]
        self._client.update_run(self._run, status="RUNNING")
        self._known: dict[str, set[int]] = {}

    def log(self, step: int, seconds: float, figures: Mapping[str, float]) -> None:
        """See Sink. What MLflow has of the step is not told again: it would keep both."""
        from mlflow.entities import Metric as Entry

        first = next(iter(figures))
        if first not in self._known:
            history = self._client.get_metric_history(self._run, first)
            self._known[first] = {entry.step for entry in history}
        if step not in self._known[first]:
            entries = [Entry(key, x, int(seconds * 1000), step) for key, x in figures.items()]
            self._client.log_batch(self._run, entries)

    def close(self) -> None:
        """See Sink."""
        self._client.set_terminated(self._run)


class WeightsAndBiases:
    """A run at Weights & Biases. It takes no step that lies before one that it has."""

    def __init__(self, config: RunConfig, state: dict[str, Any]) -> None:
        """
        Args:
            config: the run.
            state: of this tracker in tracking.json; the run's id is kept in it.
        """
        import wandb

        tracking, layout = config.tracking, RunLayout(config.run_dir)
        if state.get("where") != tracking.wandb:
            state.clear()
            state.update(where=tracking.wandb, run=uuid.uuid4().hex[:8])
        folder = str(make_scratch()) if "://" in layout.root else layout.root
        self._run = wandb.init(
            project=tracking.wandb, name=_run_name(config), id=state["run"], resume="allow",
            dir=folder, config=_settings(config), reinit="create_new",
            settings=wandb.Settings(
                silent=True, console="off", disable_git=True, save_code=False, init_timeout=60,
                finish_timeout=120, x_disable_stats=True,
            ),
        )  # fmt: skip

    def log(self, step: int, seconds: float, figures: Mapping[str, float]) -> None:
        """See Sink."""
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        """See Sink."""
        self._run.finish()


_KINDS: dict[str, Callable[[RunConfig, dict[str, Any]], Sink]] = {
    "mlflow": MLflow,
    "wandb": WeightsAndBiases,
}


def _run_name(config: RunConfig) -> str:
    return config.tracking.run_name or RunLayout(config.run_dir).name


def _settings(config: RunConfig) -> dict[str, str]:
    """The settings that a run is told apart by, by dotted name; no text and no argument of an
    engine among them."""
    sections = {
        "teacher": config.teacher.model_dump(
            include={"engine", "model", "calibration", "verbalizer"}
        ),
        "student": config.student.model_dump(mode="json"),
        "selection": config.selection.model_dump(mode="json"),
    }
    flat = {f"{name}.{key}": json.dumps(value) for name, section in sections.items()
            for key, value in section.items()}  # fmt: skip
    return {**flat, "label.budget": str(config.label.budget), "seed": str(config.seed)}


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
                written = self._root.files()["metrics.json"].modified / 1e9
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
                self._sinks[name] = _KINDS[name](self._config, state)
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


LEAVE_SECONDS = 2.0
"""For which a command that fails, or is told to end, waits for a tracker."""
