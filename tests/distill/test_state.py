"""Damaged files of a finished student's epochs, on a run made without a model."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llkd.config.run import RunConfig
from llkd.distill.policy import policy_of
from llkd.distill.selection import Selector
from llkd.distill.state import prepare_epochs, record_epoch
from llkd.repair import EpochsRepair
from llkd.results.report.facts import gather
from llkd.results.report.page import render
from llkd.store.folder import Folder
from llkd.store.manifest import Manifest, write_manifest
from llkd.store.schema import RunLayout, shard_starts
from llkd.teacher.calibrate import calibrate
from tests.conftest import SilentTracker
from tests.helpers import cut
from tests.results.report import made

SHARDS, ROWS = 3, 20


def finished_run(run_dir: Path) -> RunConfig:
    """A run of two epochs whose student is exported."""
    random, config = np.random.default_rng(0), made.a_config(run_dir, "abc")
    gold_n = random.integers(0, 3, ROWS)
    made.ingested(config, "corpus", [([f"text {i}" for i in range(ROWS)], gold_n)] * SHARDS)
    made.labelled(config, "corpus", [random.dirichlet([1, 1, 1], ROWS) for _ in range(SHARDS)])
    for epoch in range(2):
        made.trained(config, epoch, [random.random(ROWS) for _ in range(SHARDS)])
        record_epoch(RunLayout(config.run_dir), epoch)
    layout, results = RunLayout(config.run_dir), {"epochs": 2, "checkpoint": "epoch-0001"}
    write_manifest(Folder(layout.epochs), Manifest("distill", {}, "").finished(results))
    write_manifest(Folder(layout.student), Manifest("export", {}, "").finished({}))
    return config


def repair(config: RunConfig) -> list[str]:
    """Repair the epochs, as a command does before and at distillation; returns what is printed."""
    lines: list[str] = []
    EpochsRepair(config, SHARDS, lines.append).repair()
    selector = Selector(config, shard_starts([ROWS] * SHARDS), policy_of(config))
    prepare_epochs(selector, calibrate(config), SilentTracker())
    return lines


def test_a_selection_is_made_again_by_its_thresholds(tmp_path: Path) -> None:
    config = finished_run(tmp_path)
    folder = tmp_path / "epochs/01/selection"
    before = {path: path.read_bytes() for path in sorted(folder.iterdir())}
    cut(folder / "part-00001.parquet")
    (folder / "counts.json").write_text("{")
    assert repair(config) == [
        "epoch 2 selection: 1 damaged shard (part-00001.parquet) is made again",
        "epoch 2 selection: 1 damaged file (counts.json) is made again",
    ]
    for path, content in before.items():
        assert path.name == "checksums.json" or path.read_bytes() == content
    assert repair(config) == []


INCOMPLETE = "epoch 2: its selection stays incomplete, because its uncertainty is damaged too"


def test_without_its_uncertainty_a_selection_stays_incomplete(tmp_path: Path) -> None:
    config = finished_run(tmp_path)
    manifests = [tmp_path / name / "manifest.json" for name in ("epochs", "student")]
    before = [path.read_bytes() for path in manifests]
    selection, stats = tmp_path / "epochs/01/selection", tmp_path / "epochs/01/stats.json"
    other = (selection / "part-00002.parquet").read_bytes()
    for part in ("selection", "uncertainty"):
        cut(tmp_path / f"epochs/01/{part}/part-00001.parquet")
    cut(selection / "part-00002.parquet")  # its uncertainty is intact
    (selection / "counts.json").unlink()
    assert repair(config)[:3] == [
        "epoch 2 selection: 1 damaged shard (part-00001.parquet) is lost",
        "epoch 2 uncertainty: 1 damaged shard (part-00001.parquet) is lost",
        "epoch 2 selection: 1 damaged shard (part-00002.parquet) is made again",
    ]
    assert [path.read_bytes() for path in manifests] == before
    assert stats.exists()
    assert not (selection / "part-00001.parquet").exists()
    assert (selection / "part-00002.parquet").read_bytes() == other
    counted = json.loads((selection / "counts.json").read_text())["selected_s"]
    assert (counted[1], counted[2] > 0) == (0, True)
    assert repair(config) == []


@pytest.mark.parametrize(
    ("damage", "lost", "rows"),
    [
        (lambda part: cut(part / "part-00001.parquet"), 1, 2 * ROWS),
        (shutil.rmtree, SHARDS, None),
    ],
)
def test_the_report_shows_what_is_left_of_a_selection(
    tmp_path: Path, damage: Callable[[Path], None], lost: int, rows: int | None
) -> None:
    config = finished_run(tmp_path)
    for part in ("selection", "uncertainty"):
        damage(tmp_path / f"epochs/01/{part}")
    assert INCOMPLETE in repair(config)
    facts = gather(config)
    assert facts.errors == [
        f"{lost} of 3 shards of the selection of epoch 2 are lost. The figures of all epochs leave "
        "these shards out."
    ]
    assert (facts.epochs["visits_ce"].sum() if facts.epochs else None) == rows
    assert len(facts.stats) == 2
    assert "Was the selection sensible?" in render(facts)


def test_uncertainty_that_is_no_longer_needed_is_dropped(tmp_path: Path) -> None:
    config = finished_run(tmp_path)
    cut(tmp_path / "epochs/00/uncertainty/part-00002.parquet")
    line = "epoch 1 uncertainty: 1 damaged shard (part-00002.parquet) is dropped: no longer needed"
    assert repair(config) == [line]
    assert repair(config) == []
    facts = gather(config)
    assert facts.errors == []
    assert facts.epochs is not None
    assert facts.epochs["visits_ce"].sum() == SHARDS * ROWS
    assert facts.epochs["uncertainty_e2b"].sum(axis=(1, 2)).tolist() == [2 * ROWS, SHARDS * ROWS]
