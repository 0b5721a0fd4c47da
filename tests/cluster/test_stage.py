"""The life of a stage's shards, in this process."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from llkd.cluster.integrity import read_record
from llkd.cluster.stage import ShardCounts, ShardedStage, column_sums
from llkd.errors import FingerprintError, IncompleteError
from llkd.store.folder import Folder
from llkd.store.manifest import Manifest, read_manifest, reopen
from llkd.store.schema import REASON, shard_name

pytestmark = pytest.mark.usefixtures("in_process")

WANTED = Manifest("label", {"teacher.model": "x"}, "")
MASS = "label_mass"
ROWS = [3, 2, 4]


class Run:
    """A stage that rejects a given number of rows and records the shards that it writes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.rejects = Folder(f"{folder}/labels"), Folder(f"{folder}/rejects")
        self.written: list[int] = []

    def open(self, wanted: Manifest = WANTED) -> ShardedStage:
        return ShardedStage(self.folder, wanted, self.rejects, summed=[MASS])

    def write(self, shard: int, rejected: int = 0) -> dict[str, Any]:
        self.written.append(shard)
        reasons = {"refused": rejected} if rejected else {}
        if rejected:
            self.rejects.write_shard(shard, pa.table({REASON: ["refused"] * rejected}))
        table = pa.table({MASS: pa.array([0.5] * (ROWS[shard] - rejected), pa.float32())})
        crc = self.folder.write_shard(shard, table)
        return {"rows": len(table), "rejects": reasons, "crc": crc, **column_sums(table, [MASS])}


@pytest.fixture
def made(tmp_path: Path) -> Run:
    """All shards are written; one row of shard 1 is rejected."""
    run = Run(tmp_path)
    stage = run.open()
    stage.run(lambda shard: run.write(shard, rejected=int(shard == 1)), len(ROWS))
    run.written.clear()
    return run


COUNTS = [ShardCounts(3, {}, (1.5,)), ShardCounts(1, {"refused": 1}, (0.5,)),
          ShardCounts(4, {}, (2.0,))]  # fmt: skip


def test_a_stage_from_its_begin_to_its_end(tmp_path: Path) -> None:
    run = Run(tmp_path)
    stage = run.open()
    assert not stage.complete
    assert stage.missing(len(ROWS)) == [0, 1, 2]
    for shard in (2, 0, 1):  # workers finish in any order
        stage.add(shard, run.write(shard, rejected=int(shard == 1)))
    assert stage.counts(ROWS) == COUNTS
    manifest = stage.close({"rows": [3, 1, 4]})
    assert manifest == read_manifest(run.folder)
    assert (manifest.complete, manifest.results) == (True, {"rows": [3, 1, 4]})
    record = read_record(run.folder) or {}
    assert {name: entry.crc for name, entry in record.items()} == {
        shard_name(shard): run.folder.crc32(shard_name(shard)) for shard in range(3)
    }
    assert list(read_record(run.rejects) or {}) == [shard_name(1)]
    assert run.open().complete


def test_a_later_command_writes_the_missing_shards_and_counts_the_others(made: Run) -> None:
    made.folder.delete_file(shard_name(1))
    made.folder.delete_file(shard_name(2))
    stage = made.open()
    stage.run(made.write, len(ROWS))
    assert made.written == [1, 2]
    # Shard 1 rejects no row this time: its old rejects are gone.
    assert stage.counts(ROWS) == [COUNTS[0], ShardCounts(2, {}, (1.0,)), COUNTS[2]]
    assert made.rejects.shards() == set()


def test_counts_of_an_earlier_command_are_the_same(made: Run) -> None:
    stage = made.open()
    assert stage.missing(len(ROWS)) == []
    assert stage.counts(ROWS) == COUNTS


def test_an_absent_shard_is_refused(made: Run) -> None:
    made.folder.delete_file(shard_name(1))
    stage = made.open()
    assert stage.missing(len(ROWS)) == [1]
    for act in (lambda: stage.counts(ROWS), lambda: stage.close({})):
        with pytest.raises(IncompleteError, match="lacks 1 of 3 shards, first 1. Run the same"):
            act()
    assert not made.open().complete


def test_a_shard_whose_rejects_are_lost_is_written_again(made: Run) -> None:
    made.rejects.delete_file(shard_name(1))
    stage = made.open()
    assert stage.missing(len(ROWS)) == []
    with pytest.raises(IncompleteError, match="lost rows that were left out of 1 shards.*first 1"):
        stage.counts(ROWS)
    assert made.open().missing(len(ROWS)) == [1]


def test_rejects_of_a_worker_that_died_do_not_count(made: Run) -> None:
    # The worker had rejected a row of shard 0 and died; its successor rejected none.
    made.rejects.write_shard(0, pa.table({REASON: ["refused"]}))
    stage = made.open()
    assert stage.missing(len(ROWS)) == []
    assert stage.counts(ROWS) == COUNTS
    assert made.rejects.shards() == {1}


def test_rejects_beside_a_deleted_folder_are_deleted(made: Run) -> None:
    made.folder.delete()
    made.open()
    assert made.rejects.shards() == set()


def test_other_settings_are_refused(made: Run) -> None:
    with pytest.raises(FingerprintError, match='teacher.model: was "x", now "y"'):
        made.open(Manifest("label", {"teacher.model": "y"}, ""))


def test_a_reopened_stage_keeps_its_times(made: Run) -> None:
    stage = made.open()
    stage.missing(len(ROWS))
    stage.close({"rows": [3, 1, 4], "seconds": 100.0})
    reopen(made.folder)
    again = made.open()
    assert again.missing(len(ROWS)) == []
    assert again.close({"rows": [3, 1, 4], "seconds": 1.0}).results["seconds"] == 100.0
