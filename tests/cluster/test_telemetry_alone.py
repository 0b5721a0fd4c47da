"""Telemetry by itself, without a run: what it says, and that it fails nothing."""

import json
import subprocess
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llkd.cluster.telemetry import (
    LOSS,
    MAX_TAG_VALUES,
    SHARDS_WAITING,
    Metric,
    ShardDone,
    Telemetry,
    Work,
)
from llkd.store.schema import RunLayout
from tests.cluster.test_telemetry import stats_of
from tests.conftest import ROOT


def test_a_run_around_it_names_a_round_and_a_comparison() -> None:
    names = {
        "runs/bbc": "bbc", "s3://bucket/bbc/": "bbc", "bbc": "bbc",
        "runs/bbc/rounds/01": "bbc/rounds/01", "runs/bbc/compare/all-1": "bbc/compare/all-1",
        "runs/bbc/compare/all-1/rounds/00": "bbc/compare/all-1/rounds/00", "rounds/x": "x",
    }  # fmt: skip
    assert {uri: RunLayout(uri).name for uri in names} == names


DONE = ShardDone(Work("r", "label", "corpus"), 3, 5, 1.5, {"refused": 2}, 70)


def test_what_cannot_be_told_fails_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> None:
        raise RuntimeError("no agent")

    telemetry = Telemetry(str(tmp_path / "lines"))
    monkeypatch.setattr(telemetry, "_of", broken)
    telemetry.begin(DONE.of, [3])
    telemetry.shard(DONE)
    telemetry.level(DONE.of, "0/0", 5)
    telemetry.epoch(replace(DONE.of, stage="train", epoch=0), stats_of(2))
    telemetry.refresh()
    told = [json.loads(line) for line in (tmp_path / "lines").read_text().splitlines()]
    assert [line["stage"] for line in told] == ["label", "train"]
    nowhere = Telemetry(str(tmp_path / "no/such/folder/lines"))
    nowhere.shard(DONE)


class Recorder:
    """Replaces Ray's gauge; records its values."""

    def __init__(self) -> None:
        self.found: list[tuple[float, dict[str, str]]] = []

    def set(self, value: float, tags: dict[str, str]) -> None:
        self.found.append((value, tags))


def test_gauges_are_said_again_those_of_the_last_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    recorders: dict[Metric, Recorder] = defaultdict(Recorder)
    telemetry = Telemetry()
    monkeypatch.setattr(telemetry, "_of", recorders.__getitem__)
    telemetry.begin(DONE.of, [3, 4])
    telemetry.epoch(Work("other", "train", "corpus", 0), stats_of(2))
    for epoch in range(MAX_TAG_VALUES + 2):
        telemetry.epoch(Work("r", "train", "corpus", epoch), stats_of(2))
    recorders.clear()
    telemetry.refresh()
    waiting = {"run": "r", "stage": "label", "dataset": "corpus"}
    assert recorders[SHARDS_WAITING].found == [(2, waiting)]
    kept = [("other", "0"), *(("r", str(epoch)) for epoch in range(2, MAX_TAG_VALUES + 2))]
    assert [(tags["run"], tags["epoch"]) for _, tags in recorders[LOSS].found] == kept
    assert len(recorders) == 6


WITHOUT_RAY = """
import sys
from llkd.cluster.telemetry import ShardDone, Telemetry, Work
of = Work("r", "label", "corpus")
telemetry = Telemetry(echo=True)
telemetry.begin(of, [0])
telemetry.shard(ShardDone(of, 0, 5, 1.5, {"refused": 2}, 70))
telemetry.refresh()
"""


def test_without_ray_only_lines_are_written() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_RAY], cwd=ROOT, capture_output=True, text=True, check=True
    )
    (line,) = done.stderr.splitlines()
    told = json.loads(line)
    assert (told["rows"], told["rejects"], told["tokens"]) == (5, {"refused": 2}, 70)
    assert told["node"] == done.stdout == ""


def test_on_a_cluster_ray_keeps_the_lines_in_a_log(local_ray: None) -> None:
    import ray
    from ray._private.worker import _global_node

    from llkd.cluster.progress import ProgressTracker

    tracker = ProgressTracker.remote(echo=True)  # type: ignore[attr-defined]
    ray.get(tracker.shard.remote(DONE))
    logs = Path(_global_node.get_logs_dir_path()).glob("worker-*.err")
    (line,) = [line for log in logs for line in log.read_text().splitlines() if DONE.time in line]
    assert json.loads(line)["rows"] == 5
