"""The same command repairs a damaged run, with the results of an undisturbed one."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from llkd.errors import DataError
from llkd.repair import reopen_damaged
from llkd.store.folder import Folder
from llkd.store.manifest import reopen
from tests import helpers
from tests.conftest import MadeRun
from tests.fakes import KeywordTeacher, text_key
from tests.helpers import cut

pytestmark = pytest.mark.usefixtures("local_ray", "in_process", "no_report")


@dataclass
class Finished:
    """A finished run; read-only."""

    made: MadeRun
    asked: set[str] = field(default_factory=set)
    """Hashes of the texts that the teacher labelled since the last start."""

    @property
    def run_dir(self) -> Path:
        return self.made.folder


@pytest.fixture
def finished(finished_run: MadeRun, monkeypatch: pytest.MonkeyPatch) -> Finished:
    found, label = Finished(finished_run), KeywordTeacher.label

    def counted(self: KeywordTeacher, texts: Sequence[str], *arguments: Any) -> Any:
        found.asked.update(map(text_key, texts))
        return label(self, texts, *arguments)

    monkeypatch.setattr(KeywordTeacher, "label", counted)
    return found


def run(finished: Finished, run_dir: Path) -> str:
    finished.asked.clear()
    return helpers.run("run", finished.made.config(run_dir=str(run_dir)), width=300)


def copied(finished: Finished, tmp_path: Path) -> Path:
    return finished.made.copy(tmp_path / "run").folder


def flip(path: Path) -> None:
    """Change a bit of the first page."""
    data = bytearray(path.read_bytes())
    data[60] ^= 1
    path.write_bytes(data)


def assert_same(run_dir: Path, finished: Finished) -> None:
    """All files and metrics except times are those of the undisturbed run."""
    for path in finished.run_dir.rglob("*.parquet"):
        other = run_dir / path.relative_to(finished.run_dir)
        assert other.read_bytes() == path.read_bytes(), other
    ours, theirs = (load_file(d / "student/model.safetensors") for d in (run_dir, finished.run_dir))
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    found = [json.loads((d / "metrics.json").read_text()) for d in (run_dir, finished.run_dir)]
    for metrics in found:
        metrics.pop("seconds")
    assert found[0] == found[1]


BROKEN: dict[str, str] = {
    "corpus/part-00003.parquet": "corpus: 2 damaged files (files.json, part-00003.parquet) are made",
    "corpus/files.json": "",
    "test/files.json": "test: 2 damaged files (files.json, part-00000.parquet) are made again",
    "test/part-00000.parquet": "",
    "labels/part-00002.parquet": "labels: 1 damaged shard (part-00002.parquet) is made again",
    "labels/calibration.json": "calibration: 1 damaged file (calibration.json) is made again",
    "content_free_labels/part-00000.parquet": "texts without content: 1 damaged shard",
    "test_labels/manifest.json": "",
    "epochs/00/selection/part-00001.parquet": "epoch 1 selection: 1 damaged shard (part-00001",
    "epochs/01/selection/counts.json": "epoch 2 selection: 1 damaged file (counts.json) is made",
    "epochs/pseudo_labels/part-00001.parquet": "pseudo-labels: 1 damaged shard (part-00001.parquet)",
    "test_predictions/part-00000.parquet": "test_predictions: 1 damaged shard",
    "student/model.safetensors": "student: 2 damaged files (config.json, model.safetensors) are made",
    "student/config.json": "",
}
"""Damaged file of a finished run, and the line on the console."""


def test_all_kinds_of_damage_to_a_finished_run(finished: Finished, tmp_path: Path) -> None:
    run_dir = copied(finished, tmp_path)
    for number, name in enumerate(BROKEN):
        flip(run_dir / name) if name.endswith(("parquet", "tensors")) else cut(run_dir / name)
        if number % 3 == 0:
            cut(run_dir / name)
    (run_dir / "labels/part-00002.parquet").unlink()
    output = run(finished, run_dir)
    for said in BROKEN.values():
        assert said in output
    assert "training" not in output
    assert_same(run_dir, finished)
    # Only the lost shard and the content-free texts are labelled.
    assert len(finished.asked) == 60 + 3
    flip(run_dir / "epochs/pseudo_labels/part-00006.parquet")
    held = next(run_dir.glob("epochs/validation/part-*"))
    cut(held)
    output = run(finished, run_dir)
    assert "pseudo-labels: 1 damaged shard (part-00006.parquet) is made again" in output
    assert f"rows held out: 1 damaged shard ({held.name}) is made again" in output
    assert_same(run_dir, finished)
    assert "damaged" not in run(finished, run_dir)
    assert not finished.asked


def test_a_finished_student_is_not_trained_again_for_its_figures(
    finished: Finished, tmp_path: Path
) -> None:
    run_dir = copied(finished, tmp_path)
    cut(run_dir / "epochs/01/validation/part-00000.parquet")
    cut(run_dir / "epochs/00/stats.json")
    (run_dir / "epochs/01/stats.json").unlink()
    output = run(finished, run_dir)
    assert "epoch 2 validation: 1 damaged shard (part-00000.parquet) is dropped" in output
    assert "epoch 1 figures: 1 damaged file (stats.json) is made again" in output
    assert "epoch 2 figures: 1 damaged file (stats.json) is made again" in output
    assert "training" not in output
    for name in ("epochs/00/stats.json", "epochs/01/stats.json", "student/model.safetensors"):
        assert (run_dir / name).read_bytes() == (finished.run_dir / name).read_bytes()
    held = json.loads((run_dir / "metrics.json").read_text())["student"]["held_out"]
    assert ["gold_accuracy" in figures for figures in held] == [True, False]


def test_epochs_are_trained_again_from_the_first_that_is_damaged(
    finished: Finished, tmp_path: Path
) -> None:
    run_dir = copied(finished, tmp_path)
    reopen(Folder(f"{run_dir}/epochs"))
    for part in ("selection", "uncertainty"):
        cut(run_dir / f"epochs/00/{part}/part-00004.parquet")
    output = run(finished, run_dir)
    assert "epoch 1 uncertainty: 1 damaged shard (part-00004.parquet) is made again" in output
    assert "epoch 1 and those after it are trained again" in output
    assert "epoch 2/2 training" in output
    assert_same(run_dir, finished)


def test_a_finished_student_is_not_trained_again_for_a_selection(
    finished: Finished, tmp_path: Path
) -> None:
    run_dir = copied(finished, tmp_path)
    cut(run_dir / "epochs/01/selection/part-00002.parquet")
    cut(run_dir / "epochs/01/uncertainty/part-00002.parquet")
    output = run(finished, run_dir)
    assert "epoch 2: its selection stays incomplete" in output
    assert "training" not in output
    name = "student/model.safetensors"
    assert (run_dir / name).read_bytes() == (finished.run_dir / name).read_bytes()


def test_an_export_and_the_checkpoint_that_it_needs(finished: Finished, tmp_path: Path) -> None:
    run_dir = copied(finished, tmp_path)
    (checkpoint,) = (run_dir / "checkpoints").glob("epoch-*")
    weights = checkpoint / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert "damaged" not in run(finished, run_dir)  # nothing needs it
    flip(run_dir / "student/model.safetensors")
    flip(run_dir / "epochs/00/uncertainty/part-00000.parquet")
    output = run(finished, run_dir)
    assert f"checkpoints: {checkpoint.name} is damaged, its epochs are trained again" in output
    assert "epoch 1/2 training" in output
    assert_same(run_dir, finished)


def test_shards_of_stages_that_were_not_at_their_end(finished: Finished, tmp_path: Path) -> None:
    run_dir = copied(finished, tmp_path)
    for folder in ("corpus", "labels", "epochs/00/selection"):
        (run_dir / folder / "checksums.json").unlink()
    for stage in ("corpus", "labels"):
        reopen(Folder(f"{run_dir}/{stage}"))
    flip(run_dir / "corpus/part-00005.parquet")
    flip(run_dir / "labels/part-00005.parquet")
    (run_dir / "labels/part-00006.parquet").unlink()
    output = run(finished, run_dir)
    assert "corpus: 1 damaged shard (part-00005.parquet) is made again" in output
    assert "labels: 1 damaged shard (part-00005.parquet) is made again" in output
    assert len(finished.asked) == 120
    assert_same(run_dir, finished)


def test_a_shard_that_was_made_again_may_differ_and_stays(
    finished: Finished, tmp_path: Path
) -> None:
    run_dir = copied(finished, tmp_path)
    for shard in (2, 4):
        (run_dir / f"labels/part-0000{shard}.parquet").unlink()
    labels = Folder(str(run_dir / "labels"))
    assert reopen_damaged(labels, "labels", str)
    other = labels.read_shard(3).slice(0, 59)  # as if the engine had rejected another row
    labels.write_shard(2, other)
    assert not reopen_damaged(labels, "labels", str)
    assert labels.read_shard(2).equals(other)


def test_a_shard_of_rows_whose_source_has_changed_is_not_made_up(
    finished: Finished, tmp_path: Path, corpus_files: tuple[str, str]
) -> None:
    import pyarrow.parquet as pq

    source, run_dir = tmp_path / "corpus.parquet", tmp_path / "run"
    shutil.copy(corpus_files[0], source)
    config = finished.made.config(run_dir=str(run_dir), corpus={"path": str(source)})
    helpers.run("ingest", config)
    size = source.stat().st_size
    cut(run_dir / "corpus/part-00001.parquet")
    table = pq.read_table(source)
    pq.write_table(table.slice(0, 400), source)
    with pytest.raises(DataError, match=r"damaged.*cannot be read again.*have changed"):
        helpers.run("ingest", config)
    texts = [text.replace("the", "eht") for text in table["text"].to_pylist()]
    pq.write_table(table.set_column(0, "text", [texts]), source)
    assert source.stat().st_size != size
    listed = run_dir / "corpus/files.json"
    entries = json.loads(listed.read_text())
    listed.write_text(json.dumps([[entries[0][0], source.stat().st_size, 420]]))
    with pytest.raises(DataError, match=r"corpus/(files.json|part-00001.parquet) was damaged"):
        helpers.run("ingest", config)
