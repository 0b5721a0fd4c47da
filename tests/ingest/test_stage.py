"""Ingest on a local Ray."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from llkd.config.sources import SourceConfig
from llkd.errors import DataError, FingerprintError, IncompleteError, RejectLimitError
from llkd.ingest.files import SourceFile
from llkd.ingest.stage import ShardPlan, ingest
from llkd.repair import reopen_damaged
from llkd.store.folder import Folder
from llkd.store.manifest import reopen
from llkd.store.schema import RunLayout
from tests.conftest import MakeConfig, SilentTracker

pytestmark = pytest.mark.usefixtures("local_ray")


def write_lines(path: Path, rows: list[object]) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def texts_of(uri: str) -> list[str]:
    folder = Folder(uri)
    return [
        text for shard in sorted(folder.shards())
        for text in folder.read_shard(shard)["text"].to_pylist()
    ]  # fmt: skip


def test_rows_keep_their_order_across_files_and_shards(
    tmp_path: Path, make_config: MakeConfig, tracker: SilentTracker
) -> None:
    for name, rows in (("a", range(5)), ("b", range(5, 6)), ("c", range(6, 13))):
        write_lines(tmp_path / f"{name}.jsonl", [{"text": f"t{i}", "key": i} for i in rows])
    config = make_config(
        corpus={"path": str(tmp_path / "*.jsonl"), "rows_per_shard": 4, "id_column": "key"}
    )
    manifest = ingest(config, "corpus", tracker)
    folder = Folder(RunLayout(config.run_dir).rows("corpus"))
    assert manifest.results["rows"] == [4, 4, 4, 1]
    assert texts_of(folder.uri) == [f"t{i}" for i in range(13)]
    assert folder.read_shard(1).to_pydict() == {
        "row": [0, 1, 2, 3], "text": ["t4", "t5", "t6", "t7"], "id": ["4", "5", "6", "7"]
    }  # fmt: skip


def test_unusable_rows_are_rejects_with_reasons(
    tmp_path: Path, make_config: MakeConfig, tracker: SilentTracker
) -> None:
    good: list[object] = [{"text": f"fine {i}", "key": i} for i in range(6)]
    bad: list[object] = [
        {"text": None, "key": "n"}, {"text": "  \n", "key": "e"}, {"text": 7, "key": "t"},
        {"text": "a\x00b", "key": "z"}, {"other": "x", "key": "m"}, ["list"],
        {"text": "\ud800", "key": "s"},
    ]  # fmt: skip
    path = write_lines(tmp_path / "x.jsonl", [*good[:3], *bad, *good[3:]])
    config = make_config(
        corpus={"path": path, "rows_per_shard": 5, "id_column": "key"}, max_reject_fraction=0.6
    )
    manifest = ingest(config, "corpus", tracker)
    reasons = {"missing": 2, "empty": 1, "not_text": 1, "nul_byte": 1, "damaged": 1, "not_utf8": 1}
    assert manifest.results["rejects"] == reasons
    assert sum(manifest.results["rows"]) == 6
    layout = RunLayout(config.run_dir)
    assert texts_of(layout.rows("corpus")) == [f"fine {i}" for i in range(6)]
    rejects = Folder(layout.rejects("ingest-corpus"))
    listed = [
        row for shard in sorted(rejects.shards()) for row in rejects.read_shard(shard).to_pylist()
    ]
    assert [(row["row"], row["id"], row["reason"]) for row in listed][:2] == [
        (3, "n", "missing"), (4, "e", "empty"),
    ]  # fmt: skip
    assert {row["source"] for row in listed} == {path}


def test_counts_from_tasks_are_not_read_from_the_shards_again(
    tmp_path: Path, make_config: MakeConfig, tracker: SilentTracker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    rows: list[object] = [{"text": None if i % 10 == 3 else f"t{i}"} for i in range(40)]
    path = write_lines(tmp_path / "x.jsonl", rows)
    config = make_config(corpus={"path": path, "rows_per_shard": 10}, max_reject_fraction=0.2)
    with monkeypatch.context() as here:  # not in the tasks' processes
        for name in ("shard_rows", "read_shard"):
            here.setattr(Folder, name, lambda *_: pytest.fail("the driver reads a shard"))
        first = ingest(config, "corpus", tracker).results
    assert (first["rows"], first["rejects"]) == ([9] * 4, {"missing": 4})

    # A later command finds some shards written.
    folder = Folder(RunLayout(config.run_dir).rows("corpus"))
    reopen(folder)
    folder.delete_file("part-00002.parquet")
    again = ingest(config, "corpus", tracker).results
    assert (again["rows"], again["rejects"]) == (first["rows"], first["rejects"])


def test_a_shard_covers_consecutive_rows_across_files() -> None:
    counts = [0, 3, 0, 0, 7, 1, 1, 1, 0, 12, 0]
    starts = [sum(counts[:number]) for number in range(len(counts) + 1)]
    files = tuple(SourceFile(f"{number}", "parquet", 1) for number in range(len(counts)))
    source = SourceConfig(path="x")
    for size in (1, 2, 4, 5, 25, 100):
        plan = ShardPlan("corpus", source, files, tuple(starts), size)
        rows = [
            [(int(file.uri), row) for file, start, stop in plan.pieces(shard)
             for row in range(start, stop)]
            for shard in range(plan.shards)
        ]  # fmt: skip
        assert all(len(shard) == size for shard in rows[:-1])
        whole = [(number, row) for number, count in enumerate(counts) for row in range(count)]
        assert [row for shard in rows for row in shard] == whole
        pieces = [piece for shard in range(plan.shards) for piece in plan.pieces(shard)]
        assert all(start < stop for _, start, stop in pieces)


def test_too_many_rejects_fail_the_stage_with_their_reasons(
    tmp_path: Path, make_config: MakeConfig, tracker: SilentTracker
) -> None:
    path = write_lines(tmp_path / "x.jsonl", [{"text": "a"}, {"text": ""}, {"text": ""}])
    config = make_config(corpus={"path": path})
    with pytest.raises(RejectLimitError, match=r"2 of 3 corpus rows.*'empty': 2"):
        ingest(config, "corpus", tracker)


@pytest.mark.usefixtures("in_process")
def test_gold_becomes_class_indices(
    tmp_path: Path, make_config: MakeConfig, tracker: SilentTracker
) -> None:
    rows: list[object] = [
        {"text": "a", "y": "tech"},
        {"text": "b", "y": None},
        {"text": "c", "y": "sport"},
    ]
    config = make_config(
        corpus={"path": write_lines(tmp_path / "x.jsonl", rows), "label_column": "y"}
    )
    ingest(config, "corpus", tracker)
    shard = Folder(RunLayout(config.run_dir).rows("corpus")).read_shard(0)
    assert shard["gold"].to_pylist() == [1, None, 0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"text": "a", "label": "trade"}, {"text": "b", "label": "Tech"}],
            r"row 2.*'Tech' is not one of",
        ),
        ([{"text": "a", "label": None}], "gold label is missing"),
        ([{"text": "a"}], "no column 'label'"),
        ([], r"t.jsonl is empty \(0 bytes\)"),
    ],
)
@pytest.mark.usefixtures("in_process")
def test_a_wrong_test_set_is_refused(
    tmp_path: Path,
    make_config: MakeConfig,
    tracker: SilentTracker,
    rows: list[object],
    message: str,
) -> None:
    config = make_config(test={"path": write_lines(tmp_path / "t.jsonl", rows)})
    with pytest.raises(DataError, match=message):
        ingest(config, "test", tracker)


@pytest.mark.usefixtures("in_process")
def test_files_without_a_row_are_refused(
    tmp_path: Path, make_config: MakeConfig, tracker: SilentTracker
) -> None:
    (tmp_path / "x.csv").write_text("text\n")
    with pytest.raises(DataError, match=r"corpus.path: .*x.csv holds no rows"):
        ingest(make_config(corpus={"path": str(tmp_path / "x.csv")}), "corpus", tracker)


@pytest.mark.usefixtures("in_process")
def test_resuming_writes_only_the_missing_shards(
    make_config: MakeConfig, tracker: SilentTracker
) -> None:
    config = make_config()
    manifest = ingest(config, "corpus", tracker)
    folder = Path(RunLayout(config.run_dir).rows("corpus"))
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("part-*")}
    assert len(before) == 7
    content = pq.read_table(folder / "part-00002.parquet")
    (folder / "part-00002.parquet").unlink()
    reopen(Folder(str(folder)))
    assert ingest(config, "corpus", tracker).results["rows"] == manifest.results["rows"]
    after = {path.name: path.stat().st_mtime_ns for path in folder.glob("part-*")}
    assert {name for name in before if before[name] != after[name]} == {"part-00002.parquet"}
    assert pq.read_table(folder / "part-00002.parquet").equals(content)


@pytest.mark.usefixtures("in_process")
def test_another_source_is_refused(make_config: MakeConfig, tracker: SilentTracker) -> None:
    ingest(make_config(), "corpus", tracker)
    with pytest.raises(FingerprintError, match=r"corpus.rows_per_shard: was 60, now 61"):
        ingest(make_config(corpus={"rows_per_shard": 61}), "corpus", tracker)


@pytest.mark.usefixtures("in_process")
def test_files_that_changed_during_ingest_are_refused(
    tmp_path: Path, make_config: MakeConfig, tracker: SilentTracker
) -> None:
    for name in "bc":
        write_lines(tmp_path / f"{name}.jsonl", [{"text": f"{name}{i}"} for i in range(4)])
    config = make_config(corpus={"path": str(tmp_path / "*.jsonl"), "rows_per_shard": 3})
    ingest(config, "corpus", tracker)
    folder = Folder(RunLayout(config.run_dir).rows("corpus"))
    reopen(folder)
    folder.delete_file("checksums.json")
    write_lines(tmp_path / "a.jsonl", [{"text": "new"}])
    with pytest.raises(FingerprintError, match=r"have changed.*b.jsonl.*a.jsonl"):
        ingest(config, "corpus", tracker)


@pytest.mark.usefixtures("in_process")
def test_a_shard_whose_rejects_are_lost_is_written_again(
    tmp_path: Path, make_config: MakeConfig, tracker: SilentTracker
) -> None:
    rows: list[object] = [{"text": f"fine {i}"} for i in range(20)]
    rows[3] = rows[12] = {"text": ""}
    config = make_config(
        corpus={"path": write_lines(tmp_path / "x.jsonl", rows), "rows_per_shard": 10},
        max_reject_fraction=0.2,
    )
    layout = RunLayout(config.run_dir)
    folder, rejects = Folder(layout.rows("corpus")), Folder(layout.rejects("ingest-corpus"))
    ingest(config, "corpus", tracker)
    kept = [rejects.read_shard(shard) for shard in (0, 1)]
    assert not reopen_damaged(folder, "corpus", str, rejects)

    rejects.delete_file("part-00001.parquet")  # of a complete stage
    lines: list[str] = []
    assert reopen_damaged(folder, "corpus", lines.append, rejects)
    assert lines == ["corpus: 1 damaged shard (part-00001.parquet) is made again"]
    assert folder.shards() == {0}
    ingest(config, "corpus", tracker)
    assert [rejects.read_shard(shard) for shard in (0, 1)] == kept

    reopen(folder)
    for name in ("part-00000.parquet", "checksums.json"):  # of an incomplete stage
        rejects.delete_file(name)
    with pytest.raises(IncompleteError, match="has lost rows that were left out of 1 shards"):
        ingest(config, "corpus", tracker)
    assert folder.shards() == {1}
    assert ingest(config, "corpus", tracker).results["rejects"] == {"empty": 2}
    assert [rejects.read_shard(shard) for shard in (0, 1)] == kept
