"""The experiment trackers: TensorBoard, MLflow, Weights & Biases.

TensorBoard gets one complete file per step: its reader moves on to the next file, and an object store
needs one PUT. The others are called through their own clients, because a resumed command continues
the run that it began: Ray's `setup_mlflow` starts a new run on every call, and `setup_wandb` requires
an API key where the server needs none.
"""

import json
import os
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from llkd.config.run import RunConfig
from llkd.store.folder import Folder
from llkd.store.schema import RunLayout
from llkd.store.scratch import make_scratch, scratch_folder

TENSORBOARD = "tensorboard"


class ExperimentTracker(Protocol):
    """A destination of figures. Any call may raise; the tracker is not called again then."""

    def log(self, step: int, seconds: float, figures: Mapping[str, float]) -> None:
        """Log the figures of a step, with a time in seconds since 1970."""

    def close(self) -> None:
        """Send what is pending, and end."""


class TensorBoard:
    """Event files in a folder."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    def log(self, step: int, seconds: float, figures: Mapping[str, float]) -> None:
        """See ExperimentTracker."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=x) for name, x in figures.items()]
        with scratch_folder() as local:
            writer = EventsWriter(str(local / "events"))
            writer.write_event(Event(wall_time=seconds, step=step, summary=Summary(value=values)))
            writer.close()
            (written,) = local.iterdir()
            self._folder.write_bytes(event_file(step), written.read_bytes())

    def close(self) -> None:
        """See ExperimentTracker."""


def event_file(step: int) -> str:
    """The event file of a step. The names sort in the order of the steps."""
    return f"events.out.tfevents.{step:010d}.llkd"


class MLflow:
    """A run at MLflow."""

    def __init__(self, config: RunConfig, state: dict[str, Any]) -> None:
        """
        Args:
            config: the run.
            state: the tracker's entry in tracking.json, which keeps the run's id.
        """
        # An unreachable server fails after a minute instead of ten.
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
        """See ExperimentTracker. Skips steps that MLflow has: it would keep both values."""
        from mlflow.entities import Metric as Entry

        first = next(iter(figures))
        if first not in self._known:
            history = self._client.get_metric_history(self._run, first)
            self._known[first] = {entry.step for entry in history}
        if step not in self._known[first]:
            entries = [Entry(key, x, int(seconds * 1000), step) for key, x in figures.items()]
            self._client.log_batch(self._run, entries)

    def close(self) -> None:
        """See ExperimentTracker."""
        self._client.set_terminated(self._run)


class WeightsAndBiases:
    """A run at Weights & Biases, which ignores steps before the last one that it has."""

    def __init__(self, config: RunConfig, state: dict[str, Any]) -> None:
        """
        Args:
            config: the run.
            state: the tracker's entry in tracking.json, which keeps the run's id.
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
        """See ExperimentTracker."""
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        """See ExperimentTracker."""
        self._run.finish()


REMOTE_TRACKERS: dict[str, Callable[[RunConfig, dict[str, Any]], ExperimentTracker]] = {
    "mlflow": MLflow,
    "wandb": WeightsAndBiases,
}


def _run_name(config: RunConfig) -> str:
    return config.tracking.run_name or RunLayout(config.run_dir).name


def _settings(config: RunConfig) -> dict[str, str]:
    """The settings that distinguish runs, by dotted name; without texts and engine arguments."""
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
