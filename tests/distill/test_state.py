"""Damaged files of a finished student's epochs, on a run made without a model."""

from pathlib import Path

import numpy as np

from llkd.config.run import RunConfig
from llkd.distill.policy import policy_of
from llkd.distill.selection import Selector
from llkd.distill.state import prepare_epochs, record_epoch
from llkd.repair import EpochsRepair
from llkd.store.folder import Folder
from llkd.store.manifest import Manifest, write_manifest
from llkd.store.schema import RunLayout, shard_starts
from llkd.teacher.calibrate import calibrate
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
    prepare_epochs(selector, calibrate(config))
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


def test_without_its_uncertainty_a_selection_stays_incomplete(tmp_path: Path) -> None:
    config = finished_run(tmp_path)
    manifests = [tmp_path / name / "manifest.json" for name in ("epochs", "student")]
    before = [path.read_bytes() for path in manifests]
    for part in ("selection", "uncertainty"):
        cut(tmp_path / f"epochs/01/{part}/part-00001.parquet")
    lines = repair(config)
    assert (
        "epoch 2: its selection stays incomplete, because its uncertainty is damaged too" in lines
    )
    assert [path.read_bytes() for path in manifests] == before
    assert (tmp_path / "epochs/01/stats.json").exists()
    assert not (tmp_path / "epochs/01/selection/part-00001.parquet").exists()
    assert (tmp_path / "epochs/01/selection/part-00002.parquet").exists()


def test_uncertainty_that_is_no_longer_needed_is_dropped(tmp_path: Path) -> None:
    config = finished_run(tmp_path)
    cut(tmp_path / "epochs/00/uncertainty/part-00002.parquet")
    line = "epoch 1 uncertainty: 1 damaged shard (part-00002.parquet) is dropped: no longer needed"
    assert repair(config) == [line]
    assert repair(config) == []
