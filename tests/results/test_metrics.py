"""What metrics.json holds of a run."""

from dataclasses import replace
from pathlib import Path

import pytest

from llkd.results.metrics import collect_metrics
from llkd.store.folder import Folder
from llkd.store.manifest import require_complete, write_manifest
from llkd.store.schema import RunLayout
from tests.conftest import MadeRun


@pytest.mark.parametrize("used", [True, False])
def test_label_frequencies_are_there_if_they_were_estimated_and_used(
    tmp_path: Path, finished_run: MadeRun, used: bool
) -> None:
    config = finished_run.copy(tmp_path / "run").config()
    folder = Folder(RunLayout(config.run_dir).epochs)
    manifest = require_complete(folder, "distill")
    prior = {"used": used, "imposed": {"sport": 0.5, "tech": 0.3, "trade": 0.2}}
    write_manifest(folder, replace(manifest, results={**manifest.results, "prior": prior}))
    selection = collect_metrics(config, {}, None, 0.0, 0.0)["selection"]
    assert selection.get("label_frequencies") == (prior["imposed"] if used else None)


def test_what_rows_labelled_by_hand_say_is_there(tmp_path: Path, finished_run: MadeRun) -> None:
    config = finished_run.copy(tmp_path / "run").config()
    folder = Folder(RunLayout(config.run_dir).epochs)
    manifest = require_complete(folder, "distill")
    assert "gold" not in collect_metrics(config, {}, None, 0.0, 0.0)
    gold = {"rows": 50, "teacher_right": 35, "refined_right": 40}
    write_manifest(folder, replace(manifest, results={**manifest.results, "gold": gold}))
    assert collect_metrics(config, {}, None, 0.0, 0.0)["gold"] == gold
