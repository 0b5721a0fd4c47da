"""Ingest on a real local Ray."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from llkd.errors import DataError, FingerprintError, RejectLimitError
from llkd.schema import RunLayout
from llkd.stages.ingest import ingest
from llkd.storage import Folder
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


def test_bytes_that_are_not_utf8_cost_their_row_only(
    tmp_path: Path, make_config: MakeConfig, tracker: SilentTracker
) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b"text\n" + b"good\n" * 20 + b"caf\xe9\n" + b"12\n")
    config = make_config(corpus={"path": str(path)})
    manifest = ingest(config, "corpus", tracker)
    assert manifest.results["rejects"] == {"not_utf8": 1}
    assert texts_of(RunLayout(config.run_dir).rows("corpus"))[-1] == "12"


def test_too_many_rejects_fail_the_stage_and_say_why(
    tmp_path: Path, make_config: MakeConfig, tracker: SilentTracker
) -> None:
    path = write_lines(tmp_path / "x.jsonl", [{"text": "a"}, {"text": ""}, {"text": ""}])
    config = make_config(corpus={"path": path})
    with pytest.raises(RejectLimitError, match=r"2 of 3 corpus rows.*'empty': 2"):
        ingest(config, "corpus", tracker)


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


def test_files_without_a_row_are_refused(
    tmp_path: Path, make_config: MakeConfig, tracker: SilentTracker
) -> None:
    (tmp_path / "x.csv").write_text("text\n")
    with pytest.raises(DataError, match=r"corpus.path: .*x.csv holds no rows"):
        ingest(make_config(corpus={"path": str(tmp_path / "x.csv")}), "corpus", tracker)


def test_resuming_makes_the_missing_shards_only(
    make_config: MakeConfig, tracker: SilentTracker
) -> None:
    config = make_config()
    manifest = ingest(config, "corpus", tracker)
    folder = Path(RunLayout(config.run_dir).rows("corpus"))
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("part-*")}
    assert len(before) == 7
    content = pq.read_table(folder / "part-00002.parquet")
    (folder / "part-00002.parquet").unlink()
    Folder(str(folder)).write_json(
        "manifest.json", {**json.loads((folder / "manifest.json").read_text()), "complete": False}
    )
    assert ingest(config, "corpus", tracker).results["rows"] == manifest.results["rows"]
    after = {path.name: path.stat().st_mtime_ns for path in folder.glob("part-*")}
    assert {name for name in before if before[name] != after[name]} == {"part-00002.parquet"}
    assert pq.read_table(folder / "part-00002.parquet").equals(content)


def test_another_source_is_refused(make_config: MakeConfig, tracker: SilentTracker) -> None:
    ingest(make_config(), "corpus", tracker)
    with pytest.raises(FingerprintError, match=r"corpus.rows_per_shard: was 60, now 61"):
        ingest(make_config(corpus={"rows_per_shard": 61}), "corpus", tracker)


def test_files_that_changed_in_the_middle_are_refused(
    tmp_path: Path, make_config: MakeConfig, tracker: SilentTracker
) -> None:
    for name in "bc":
        write_lines(tmp_path / f"{name}.jsonl", [{"text": f"{name}{i}"} for i in range(4)])
    config = make_config(corpus={"path": str(tmp_path / "*.jsonl"), "rows_per_shard": 3})
    ingest(config, "corpus", tracker)
    folder = Folder(RunLayout(config.run_dir).rows("corpus"))
    folder.write_json("manifest.json", {**folder.read_json("manifest.json"), "complete": False})
    folder.delete_file("checksums.json")
    write_lines(tmp_path / "a.jsonl", [{"text": "new"}])
    with pytest.raises(FingerprintError, match=r"have changed.*b.jsonl.*a.jsonl"):
        ingest(config, "corpus", tracker)


def test_rejects_of_shards_that_were_deleted_do_not_count(
    tmp_path: Path, make_config: MakeConfig, tracker: SilentTracker
) -> None:
    import shutil

    rows: list[object] = [{"text": "a"}] * 9 + [{"text": ""}]
    path = write_lines(tmp_path / "x.jsonl", rows)
    ingest(make_config(corpus={"path": path, "rows_per_shard": 2}), "corpus", tracker)
    config = make_config(corpus={"path": path, "rows_per_shard": 10})
    shutil.rmtree(RunLayout(config.run_dir).rows("corpus"))
    assert ingest(config, "corpus", tracker).results["rejects"] == {"empty": 1}
