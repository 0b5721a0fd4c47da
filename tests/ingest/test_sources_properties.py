"""Random files: each row is kept or rejected once and in order, or a DataError is raised."""

import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from llkd.config.load import parse_config
from llkd.config.sources import SourceConfig
from llkd.errors import DataError, RejectLimitError
from llkd.ingest import stage
from llkd.ingest.files import list_files
from llkd.ingest.sources import as_text, check_columns, count_rows, read_rows
from llkd.store.folder import Folder
from llkd.store.schema import RunLayout
from tests.config.test_config import MINIMAL
from tests.conftest import SilentTracker

NAMES = ["x.csv", "x.jsonl", "x.parquet", "x.csv.gz", "x.jsonl.zst"]
values = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.text(st.characters()), st.sampled_from(["\ud800", "a\udfff"]),
    st.lists(st.integers(), max_size=2), st.dictionaries(st.text(), st.text(), max_size=1),
)  # fmt: skip
texts = st.none() | st.text(max_size=20)


@pytest.fixture(autouse=True)
def without_ray(in_process: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.wait", lambda calls: None)


def read_all(path: Path, start: int = 0) -> list[Any] | None:
    """The rows of a file; None for a DataError."""
    source = SourceConfig(path=str(path), id_column="id")
    try:
        (file,) = list_files(source, "corpus")
        check_columns(file, source, "corpus")
        return list(read_rows(file, source, start, count_rows(file, source)))
    except DataError:
        return None


def ingested(path: Path, rows_per_shard: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(rows, rejects) in the order of the shards, of files with the columns `text` and `id`."""
    with tempfile.TemporaryDirectory() as folder:
        config = parse_config(
            {
                **MINIMAL, "run_dir": folder, "max_reject_fraction": 1.0,
                "corpus": {"path": str(path), "id_column": "id", "rows_per_shard": rows_per_shard},
            }
        )  # fmt: skip
        with contextlib.suppress(RejectLimitError):  # all rows are
            stage.ingest(config, "corpus", SilentTracker())
        layout = RunLayout(folder)
        found = [Folder(uri) for uri in (layout.rows("corpus"), layout.rejects("ingest-corpus"))]
        rows, rejects = (
            [row for shard in sorted(each.shards()) for row in each.read_shard(shard).to_pylist()]
            for each in found
        )
        return rows, rejects


@given(st.binary(max_size=300), st.sampled_from(NAMES), st.sampled_from([b"", b"text,id\n"]))
def test_random_bytes(tmp_path: Path, data: bytes, name: str, head: bytes) -> None:
    (tmp_path / name).write_bytes(head + data)
    rows = read_all(tmp_path / name)
    if rows is not None:
        assert [row.number for row in rows] == list(range(len(rows)))


@given(st.data(), st.sampled_from(["x.parquet", "x.csv.gz", "x.jsonl.zst"]))
def test_a_byte_that_flipped(tmp_path: Path, data: st.DataObject, name: str) -> None:
    table = pa.table({"text": ["a", "bb", "ccc"] * 5, "id": [1, 2, 3] * 5})
    if "parquet" in name:
        pq.write_table(table, tmp_path / name, row_group_size=4)
    else:
        with pa.CompressedOutputStream(
            str(tmp_path / name), "gzip" if name.endswith("gz") else "zstd"
        ) as out:
            lines = [json.dumps(row) for row in table.to_pylist()]
            out.write(("\n".join(lines) if "jsonl" in name else "text,id\na,1\nb,2\n").encode())
    content = bytearray((tmp_path / name).read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    (tmp_path / name).write_bytes(content)
    read_all(tmp_path / name)


@given(st.lists(st.fixed_dictionaries({"text": values}, optional={"id": values}), min_size=1),
       st.integers(1, 8), st.integers(1, 3))  # fmt: skip
def test_every_json_line_once(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], rows_per_shard: int, files: int
) -> None:
    folder = tmp_path_factory.mktemp("lines")
    for number in range(files):
        part = rows[number * len(rows) // files : (number + 1) * len(rows) // files]
        if part:
            part[-1].setdefault("id", None)  # some line has to have it
            (folder / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    kept, rejects = ingested(folder, rows_per_shard)
    usable = [row for row in rows if _is_usable(row["text"])]
    assert [(row["text"], row["id"]) for row in kept] == [
        (row["text"], as_text(row.get("id"))) for row in usable
    ]
    assert [row["id"] for row in rejects] == [
        as_text(row.get("id")) for row in rows if not _is_usable(row["text"])
    ]


def _is_usable(text: Any) -> bool:
    """A second implementation, to compare with."""
    if not isinstance(text, str) or "\0" in text or not text.strip():
        return False
    return not any(0xD800 <= ord(character) <= 0xDFFF for character in text)


@given(st.lists(texts, min_size=1, max_size=30), st.integers(1, 8), st.integers(1, 5))
def test_every_row_of_a_table_once(
    tmp_path_factory: pytest.TempPathFactory, column: list[Any], rows_per_shard: int, group: int
) -> None:
    column = [text and text.encode("utf-8", "replace").decode() for text in column]
    table = pa.table({"text": pa.array(column, pa.string()), "id": range(len(column))})
    expected = [(text, str(i)) for i, text in enumerate(column) if _is_usable(text)]
    for name in ("parquet", "csv"):
        folder = tmp_path_factory.mktemp(name)
        if name == "parquet":
            pq.write_table(table, folder / "x.parquet", row_group_size=group)
        else:
            pa_csv.write_csv(table, folder / "x.csv")
        kept, rejects = ingested(folder, rows_per_shard)
        assert [(row["text"], row["id"]) for row in kept] == expected
        assert len(rejects) == len(column) - len(expected)


types = st.sampled_from(
    [pa.string(), pa.large_binary(), pa.int8(), pa.uint64(), pa.float16(), pa.bool_(), pa.date32(),
     pa.date64(), pa.timestamp("s"), pa.timestamp("us"), pa.timestamp("ns"), pa.duration("us"),
     pa.time64("us"), pa.decimal128(38, 4), pa.null(), pa.list_(pa.string()),
     pa.dictionary(pa.int32(), pa.string())]
)  # fmt: skip


@given(types, types, st.binary(min_size=64, max_size=64))
def test_any_type_of_column(tmp_path: Path, of_text: Any, of_id: Any, data: bytes) -> None:
    columns = {"text": _random_array(of_text, data), "id": _random_array(of_id, data[::-1])}
    try:
        pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    except (pa.ArrowException, OSError):
        assume(False)
    rows = read_all(tmp_path / "x.parquet")
    assert rows is None or [row.number for row in rows] == [0, 1, 2]
    if rows is not None:
        kept, rejects = ingested(tmp_path / "x.parquet", 2)
        assert len(kept) + len(rejects) == 3


def _random_array(kind: Any, data: bytes) -> pa.Array:
    """Three values of a type, of random bytes."""
    if pa.types.is_null(kind):
        return pa.nulls(3)
    if pa.types.is_dictionary(kind):
        return _random_array(pa.string(), data).dictionary_encode()
    raw = pa.array([data[:3], data[3:9], None], pa.binary())
    if pa.types.is_list(kind):
        return pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), raw.view(pa.string()))
    if pa.types.is_large_binary(kind):
        return raw.cast(kind)
    if pa.types.is_string(kind):
        return raw.view(kind)
    return pa.Array.from_buffers(kind, 3, [None, pa.py_buffer(data)])
