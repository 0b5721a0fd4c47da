"""A run's figures in TensorBoard, in the real MLflow and in the real Weights & Biases."""

import json
import os
import struct
import threading
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event

from llkd.config.run import RunConfig
from llkd.errors import ConfigError
from llkd.preflight import require_inputs
from llkd.results import tracking
from llkd.results.tracked_figures import epoch_figures, final_figures
from llkd.results.trackers import event_file
from llkd.results.tracking import Recorder, log_final_metrics
from llkd.store.folder import Folder
from llkd.store.manifest import Manifest, write_manifest
from llkd.store.schema import RunLayout
from tests.conftest import MakeConfig, SilentTracker
from tests.helpers import wait_until

METRICS = {
    "teacher": {"rows": 420, "test": {"accuracy": 0.5, "per_class": {"sport": {"f1": 0.1}}}},
    "student": {"test": {"accuracy": 0.75, "macro_f1": 0.5}, "held_out": [{"accuracy": 1.0}]},
    "selection": {"rows": 420, "epochs": 2, "row_visits_fraction": 0.25},
}


def stats(epoch: int, names: tuple[str, ...] = ("sport", "tech", "trade")) -> dict[str, Any]:
    """An epoch's stats.json, with figures that are easy to add up."""
    return {
        "epoch": epoch, "rows": 100, "selected": 31, "fraction": 0.31, "dropped": 1,
        "training_loss": 1.5 - epoch, "stopped": False, "waiting": {"share": 0.125, "seconds": {}},
        "seconds": {"score": 1.0, "select": 2.0, "train": 3.0},
        "validation": {"accuracy": 0.5, "macro_f1": 0.25},
        "classes": {
            name: {"rows": 10 * (i + 1), "fraction": i / 4, "mean_uncertainty": (i + 1) / 4}
            for i, name in enumerate(names)
        },
        "thresholds": {
            "confidence_c": [0.25, 0.5, 0.75][: len(names)],
            "uncertainty_c": [None] * len(names),
        },
    }  # fmt: skip


@pytest.fixture
def trained(make_config: MakeConfig, tmp_path: Path) -> Any:
    """A trained run of two epochs; makes its config with a section `tracking`."""

    def make(**wanted: Any) -> RunConfig:
        return make_config(tracking=wanted)

    config = make()
    for epoch in range(2):
        Folder(RunLayout(config.run_dir).epoch(epoch)).write_json("stats.json", stats(epoch))
    Folder(config.run_dir).write_json("metrics.json", METRICS)
    return make


def events(path: Path) -> list[Event]:
    """The records of an event file, by its lengths."""
    data, found = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        found.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return found


def logged(config: RunConfig) -> dict[int, dict[str, float]]:
    """The content of TensorBoard's files, by step."""
    steps: dict[int, dict[str, float]] = {}
    for path in sorted(Path(config.run_dir, "tensorboard").iterdir()):
        first, second = events(path)
        assert first.file_version == "brain.Event:2"
        assert second.step not in steps
        steps[second.step] = {v.tag: v.simple_value for v in second.summary.value}
    return steps


def record(config: RunConfig, epochs: int) -> list[str]:
    """Log some epochs; returns the lines that were printed."""
    lines: list[str] = []
    recorder = Recorder(config, lines.append)
    recorder.log_epochs(epochs)
    recorder.close()
    return lines


def test_the_figures_of_an_epoch() -> None:
    assert epoch_figures(stats(0)) == {
        "training_loss": 1.5, "selected_ratio": 0.31, "row_visits": 30, "waiting/share": 0.125,
        "mean_uncertainty": pytest.approx((10 * 1 + 20 * 2 + 30 * 3) / 4 / 60),
        "seconds/score": 1.0, "seconds/select": 2.0, "seconds/train": 3.0,
        "student/held_out/accuracy": 0.5, "student/held_out/macro_f1": 0.25,
        "label_selected_ratio/sport": 0.0, "label_selected_ratio/tech": 0.25,
        "label_selected_ratio/trade": 0.5, "threshold/confidence": 0.5,
        "threshold_min/confidence": 0.25, "threshold_max/confidence": 0.75,
        "label_threshold/confidence/sport": 0.25, "label_threshold/confidence/tech": 0.5,
        "label_threshold/confidence/trade": 0.75,
    }  # fmt: skip
    many = stats(0, tuple(f"l{i}" for i in range(33)))
    many["thresholds"]["confidence_c"] = many["thresholds"]["uncertainty_c"]
    assert not [name for name in epoch_figures(many) if name.startswith("label_")]
    assert final_figures(METRICS) == {
        "teacher/rows": 420, "teacher/test/accuracy": 0.5, "student/test/accuracy": 0.75,
        "student/test/macro_f1": 0.5, "selection/rows": 420, "selection/epochs": 2,
        "selection/row_visits_fraction": 0.25,
    }  # fmt: skip


def test_tensorboard_gets_each_epoch_once_and_the_final_figures(trained: Any) -> None:
    config = trained()
    assert record(config, 1) == []
    first = Path(config.run_dir, "tensorboard", event_file(0))
    before = first.stat().st_mtime_ns
    assert logged(config).keys() == {0}
    record(config, 2)
    log_final_metrics(config, METRICS, [].append)
    log_final_metrics(config, METRICS, [].append)
    assert first.stat().st_mtime_ns == before
    steps = logged(config)
    assert [steps[0]["training_loss"], steps[1]["training_loss"]] == [1.5, 0.5]
    assert steps[2] == final_figures(METRICS)
    assert not Path(config.run_dir, "tracking.json").exists()

    recorder = Recorder(config, [].append)  # the second epoch was lost and trained again
    Folder(RunLayout(config.run_dir).epoch(1)).write_json(
        "stats.json", {**stats(1), "training_loss": 0.25}
    )
    recorder.forget_from(1)
    recorder.log_epochs(2)
    assert logged(config).keys() == {0, 1}
    assert logged(config)[1]["training_loss"] == 0.25
    assert first.stat().st_mtime_ns == before


HOSTILE = ("a/b", "../x", "..", "|`</script>", "é", "é" * 300, "é" * 301)


def test_mlflow_has_the_same_figures_under_the_same_names(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    where = f"file://{tmp_path}/mlruns"
    config = trained(mlflow=where, run_name="mine")
    hostile = {**stats(1, HOSTILE), "thresholds": {"confidence_c": [0.5] * 7,
               "uncertainty_c": [0.5] * 7}}  # fmt: skip
    Folder(RunLayout(config.run_dir).epoch(1)).write_json("stats.json", hostile)
    assert record(config, 1) == []
    assert record(config, 2) == []
    # A kill before the tracker's progress was stored.
    Folder(config.run_dir).delete_file(event_file(1))
    kept = Path(config.run_dir, "tracking.json")
    state = json.loads(kept.read_text())
    assert state["mlflow"]["steps"] == 2
    state["mlflow"]["steps"] = 0
    kept.write_text(json.dumps(state))
    first = Path(config.run_dir, "tensorboard", event_file(0))
    before = first.stat().st_mtime_ns
    log_final_metrics(config, METRICS, [].append)
    assert first.stat().st_mtime_ns == before  # only MLflow lacked that step

    client = MlflowClient(tracking_uri=where)
    (run,) = client.search_runs([client.get_experiment_by_name("llkd").experiment_id])
    assert (run.info.run_name, run.info.status) == ("mine", "FINISHED")
    assert json.loads(run.data.params["student.epochs"]) == 2
    steps = logged(config)
    assert sum(name.startswith("label_threshold/uncertainty/") for name in steps[1]) == 7
    for name in {*steps[0], *steps[1], *steps[2]}:
        history = client.get_metric_history(run.info.run_id, name)
        assert {entry.step: pytest.approx(entry.value) for entry in history} == {
            step: found[name] for step, found in steps.items() if name in found
        }
        assert len(history) == len({entry.step for entry in history})


def test_weights_and_biases_offline(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = trained(wandb="topics")
    assert record(config, 2) == []
    assert record(config, 2) == []  # nothing is new, so no run starts
    (kept,) = Path(config.run_dir, "wandb").glob("offline-run-*/run-*.wandb")
    names = [name.encode() for name in epoch_figures(stats(0))]
    # its own process writes the file
    wait_until(lambda: all(name in kept.read_bytes() for name in names))
    assert json.loads(Path(config.run_dir, "tracking.json").read_text())["wandb"]["steps"] == 2


def test_an_epoch_trained_after_it_was_logged_is_logged_again(trained: Any) -> None:
    config = trained()
    record(config, 2)
    layout = RunLayout(config.run_dir)
    write_manifest(Folder(layout.epochs), Manifest("distill", {}, "", True, {"epochs": 2}))
    stats_file = Path(layout.epoch(1), "stats.json")
    Folder(layout.epoch(1)).write_json("stats.json", {**stats(1), "training_loss": 0.25})
    later = Path(config.run_dir, "tensorboard", event_file(1)).stat().st_mtime_ns + 10**9
    os.utime(stats_file, ns=(later, later))
    first = Path(config.run_dir, "tensorboard", event_file(0))
    before = first.stat().st_mtime_ns
    Recorder(config, [].append).log_all_epochs()
    assert [logged(config)[step]["training_loss"] for step in (0, 1)] == [1.5, 0.25]
    assert first.stat().st_mtime_ns == before


def test_a_command_that_fails_does_not_wait_for_a_tracker(
    trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, answers = threading.Event(), threading.Event()

    def epochs(self: Recorder, count: int) -> None:
        asked.set()
        answers.wait()

    monkeypatch.setattr(tracking, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(tracking, "LEAVE_SECONDS", 0.01)
    monkeypatch.setattr(tracking.ray, "get", lambda reference: 1)
    monkeypatch.setattr(Recorder, "log_epochs", epochs)
    monkeypatch.setattr(
        Recorder, "log_all_epochs", lambda self: pytest.fail("logged, and waited for")
    )

    def interrupted() -> None:
        with tracking.logged_epochs(trained(), SilentTracker(), print):
            asked.wait()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    answers.set()


def test_a_tracker_that_fails_is_one_warning_and_the_run_goes_on(
    trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def __init__(self, config: RunConfig, state: dict[str, Any]) -> None:
            self.calls = 0

        def log(self, *arguments: Any) -> None:
            self.calls += 1
            if self.calls > 1:
                raise OSError("the server\nis gone")

        def close(self) -> None:
            raise AssertionError("it is left alone")

    monkeypatch.setitem(tracking.REMOTE_TRACKERS, "mlflow", Broken)
    config = trained(mlflow="http://127.0.0.1:9")
    assert record(config, 2) == ["warning: nothing more is logged to mlflow: the server"]
    assert logged(config).keys() == {0, 1}


@pytest.mark.parametrize("stage", ["run", "distill", "evaluate"])
def test_a_missing_package_is_reported_before_any_work(
    make_config: MakeConfig, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_inputs(stage, make_config(tracking={"mlflow": "x", "wandb": "x"}))
    monkeypatch.setattr(tracking, "find_spec", lambda name: name == "mlflow" or None)
    require_inputs(stage, make_config(tracking={"mlflow": "x"}))
    with pytest.raises(ConfigError, match=r"tracking.wandb needs .*pip install '\.\[tracking\]'"):
        require_inputs(stage, make_config(tracking={"wandb": "x"}))
