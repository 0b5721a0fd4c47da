"""Reads Parquet, JSON Lines, CSV and `datasets`."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llkd.config.sources import SourceConfig
from llkd.errors import DataError
from llkd.ingest.files import list_files
from llkd.ingest.sources import as_text, check_columns, count_rows, read_rows
from llkd.ingest.stage import usable_text

TEXTS = ["one", 'two, "quoted"', "three\nlines", "vier ü", "5"]
ROWS = [{"text": text, "label": str(i), "n": i} for i, text in enumerate(TEXTS)]


def write_parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=2)


def write_jsonl(path: Path) -> None:
    path.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n")


def write_jsonl_gz(path: Path) -> None:
    path.write_bytes(gzip.compress("\n".join(json.dumps(row) for row in ROWS).encode()))


def write_csv(path: Path) -> None:
    import csv

    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label", "n"])
        writer.writeheader()
        writer.writerows(ROWS)


FORMATS: dict[str, Callable[[Path], None]] = {
    "x.parquet": write_parquet, "x.jsonl": write_jsonl, "x.jsonl.gz": write_jsonl_gz,
    "x.csv": write_csv,
}  # fmt: skip


def text_of(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def source(path: object, **settings: object) -> SourceConfig:
    return SourceConfig(path=path if isinstance(path, tuple) else str(path), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", FORMATS)
def test_any_range_of_rows_can_be_read(tmp_path: Path, name: str) -> None:
    FORMATS[name](tmp_path / name)
    config = source(tmp_path / name, label_column="label", id_column="n")
    (file,) = list_files(config, "corpus")
    check_columns(file, config, "corpus")
    assert count_rows(file, config) == 5
    for start in range(5):
        for stop in range(start + 1, 6):
            rows = list(read_rows(file, config, start, stop))
            assert [text_of(row.text) for row in rows] == TEXTS[start:stop]
            assert [text_of(row.gold) for row in rows] == [str(i) for i in range(start, stop)]
            assert [int(text_of(row.id)) for row in rows] == list(range(start, stop))
            assert [row.number for row in rows] == list(range(start, stop))


def test_directories_globs_and_lists(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("b.csv", "a.csv", "deep/c.jsonl", "_hidden.csv", ".also.csv", "notes.txt"):
        (write_jsonl if name.endswith("jsonl") else write_csv)(tmp_path / name)

    def names(path: object) -> list[str]:
        return [Path(file.uri).name for file in list_files(source(path), "corpus")]

    assert names(tmp_path) == ["a.csv", "b.csv", "c.jsonl"]
    assert names(tmp_path / "*.csv") == ["a.csv", "b.csv"]
    assert names(tmp_path / "deep/*") == ["c.jsonl"]
    write_csv(tmp_path / "deep/test.csv")
    assert names(tmp_path / "*.csv") == ["a.csv", "b.csv"]
    assert names(tmp_path / "[ax]?csv") == ["a.csv"]
    assert names(tmp_path / "[!a]*.csv") == ["b.csv"]
    assert names(tmp_path / "**/*.csv") == ["a.csv", "b.csv", "test.csv"]
    (tmp_path / "deep/test.csv").unlink()
    assert names((str(tmp_path / "b.csv"), str(tmp_path / "deep"))) == ["b.csv", "c.jsonl"]
    assert names(f"file://{tmp_path}/a.csv") == ["a.csv"]


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.xlsx").write_text("")
    for path, message in {
        "nothing.csv": "does not exist",
        "empty": "no Parquet, JSON Lines or CSV files in",
        "*.csv": "no files in",
        "x.xlsx": "an unknown format.*parquet",
    }.items():
        with pytest.raises(DataError, match=message):
            list_files(source(tmp_path / path), "corpus")


def test_a_value_that_python_cannot_hold_costs_its_row_only(tmp_path: Path) -> None:
    texts = pa.array([b"a", b"\xff", b"c", b"d", b"e"]).view(pa.string())
    dates = pa.array([1, 2, 2**30, 4, None], pa.date32())
    pq.write_table(pa.table({"text": texts, "day": dates}), tmp_path / "x.parquet")
    config = source(tmp_path / "x.parquet", id_column="day")
    rows = list(read_rows(list_files(config, "corpus")[0], config, 0, 5))
    assert [row.number for row in rows] == [0, 1, 2, 3, 4]
    assert [usable_text(row)[:2] for row in rows] == [
        ("a", None), (None, "not_utf8"), (None, "damaged"), ("d", None), ("e", None),
    ]  # fmt: skip


def test_half_a_character_of_an_identifier_is_replaced() -> None:
    assert as_text("a\ud800") == "a\ufffd\ufffd\ufffd"
    assert [as_text(value) for value in (b"a\xff", 7, None)] == ["a\ufffd", "7", None]


def test_a_file_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    Path(os.fsdecode(bytes(tmp_path) + b"/\xff.csv")).write_text("text\na\n")
    with pytest.raises(DataError, match=r"corpus.path: cannot search"):
        list_files(source(tmp_path), "corpus")


def test_a_library_data_set(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "x.jsonl")
    arguments = {"data_files": str(tmp_path / "x.jsonl"), "split": "train"}
    config = source("datasets:json", dataset_args=arguments, id_column="n")
    (file,) = list_files(config, "corpus")
    check_columns(file, config, "corpus")
    assert count_rows(file, config) == 5
    assert [row.text for row in read_rows(file, config, 1, 4)] == TEXTS[1:4]
    with pytest.raises(DataError, match="no column 'body'"):
        check_columns(
            file, source("datasets:json", dataset_args=arguments, text_column="body"), "c"
        )


def test_a_library_data_set_needs_its_split(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "x.jsonl")
    config = source("datasets:json", dataset_args={"data_files": str(tmp_path / "x.jsonl")})
    with pytest.raises(DataError, match=r"splits \['train'\]"):
        count_rows(list_files(config, "corpus")[0], config)
    missing = source("datasets:no/such-data-set")
    with pytest.raises(DataError, match="cannot load"):
        count_rows(list_files(missing, "corpus")[0], missing)
