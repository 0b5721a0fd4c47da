"""Invalid files: which errors reject a whole file, and which a row of it."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llkd.config.sources import SourceConfig
from llkd.errors import DataError
from llkd.ingest.files import list_files
from llkd.ingest.sources import check_columns, count_rows, read_rows
from llkd.ingest.stage import usable_text

LONG = "x" * 10_000_000
NOT_UTF8 = pa.Array.from_buffers(
    pa.string(), 2, pa.array([b"good", b"caf\xe9"], pa.binary()).buffers()
)


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return bytes(sink.getvalue().to_pybytes())


def read(path: Path, content: bytes | None, **settings: str) -> list[tuple[str | None, str | None]]:
    """(text, None) or (None, reason) of each row of the files at a path."""
    if content is not None:
        path.write_bytes(content)
    source = SourceConfig(path=str(path), **settings)  # type: ignore[arg-type]
    found = []
    for file in list_files(source, "corpus"):
        check_columns(file, source, "corpus")
        for row in read_rows(file, source, 0, count_rows(file, source)):
            text, reason, _ = usable_text(row)
            found.append((text, reason))
    return found


FILES: dict[str, tuple[str, bytes | None, str]] = {
    "no such path": ("x.csv", None, "corpus.path: .*x.csv does not exist"),
    "NUL in the path": ("a\0.csv", None, "corpus.path: cannot search .*NUL"),
    "too long a path": ("x" * 300 + ".csv", None, "corpus.path: cannot search .*"),
    "a path not in UTF-8": ("\udcff.csv", None, "corpus.path: cannot search"),
    "an invalid glob": ("[z-a].csv", None, "corpus.path: cannot search .*bad character range"),
    "empty CSV": ("x.csv", b"", r"x.csv is empty \(0 bytes\)"),
    "empty Parquet": ("x.parquet", b"", r"x.parquet is empty \(0 bytes\)"),
    "nothing compressed": ("x.csv.gz", gzip.compress(b""), "Cannot read .*x.csv.gz: it has no header. Is it empty"),
    "empty JSON lines": ("x.jsonl", b"", r"x.jsonl is empty \(0 bytes\)"),
    "no JSON lines compressed": ("x.jsonl.gz", gzip.compress(b""), r"x.jsonl.gz is empty \(no line\)"),
    "blank JSON lines": ("x.jsonl", b"\n \n", r"x.jsonl is empty \(no line\)"),
    "a column that no line has": (
        "x.jsonl", b'{"n": 1}\n[]\n{"m": 1}', r"no column 'text' \(corpus.text_column\); its columns are: 'n', 'm'",
    ),
    "Parquet cut short": ("x.parquet", cut(parquet(pa.table({"text": ["a"]}))), "Cannot read .*x.parquet"),
    "JSON Lines cut short": ("x.jsonl.gz", cut(gzip.compress(b'{"text": "a"}\n' * 99)), "Cannot read .*x.jsonl.gz"),
    "not Parquet": ("x.parquet", b"text\na\n", "Cannot read .*x.parquet"),
    "gzip cut short": ("x.csv.gz", cut(gzip.compress(b"text\nabc\n" * 99)), "Cannot read .*Truncated"),
    "not gzip": ("x.csv.gz", b"text\na\n", "Cannot read .*incorrect header"),
    "no column": ("x.csv", b"body\na\n", r"no column 'text' \(corpus.text_column\); its columns are: 'body'"),
    "no column in Parquet": (
        "x.parquet", parquet(pa.table({"body": ["a"], "n": [1]})), r"no column 'text' \(corpus.text_column\).*: 'body', 'n'",
    ),
    "semicolons": ("x.csv", b"text;label\na;b\n", "no column 'text'.* its columns are: 'text;label'"),
    "a header of two": ("x.csv", b"text,text\na,b\n", r"x.csv has more than one column 'text'"),
    "Parquet of two": (
        "x.parquet", parquet(pa.table([["a"], ["b"]], names=["text", "text"])),
        r"x.parquet has more than one column 'text'",
    ),
    "UTF-16": ("x.csv", "text\na\n".encode("utf-16"), "Cannot read .*x.csv: it is not UTF-8"),
    "a quote not closed": ("x.csv", b'text,n\na,1\n"b,2\nc,3\n', r"(?s)x.csv: .*Row #3: .*a quote not closed\?"),
    "one in the last column": ("x.csv", b'n,text\n1,a\n2,"b\n3,c\n', "Cannot read .*x.csv: row #3 has a quote that is not closed"),
    "one in the only column": ("x.csv", b'text\na\n\n"b', "Cannot read .*x.csv: row #3 has a quote that is not closed"),
    "one that is compressed": ("x.csv.gz", gzip.compress(b'text,n\na,b,c\na,"\n'), "Cannot read .*x.csv.gz: row #3 has a quote"),
    "one in the header": ("x.csv", b'"text\na\n', "Cannot read .*x.csv: it has no header. Is .* a quote not closed"),
    "a header not in UTF-8": ("x.csv", b"te\xe9xt\na\n", "Cannot read .*x.csv: it is not UTF-8"),
    "a JSON array": ("x.jsonl", b'[\n {"text": "a"}\n]', "x.jsonl is a JSON array instead of JSON Lines.*jq"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message"), FILES.values(), ids=FILES)
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path / name, content)


def test_a_row_that_is_too_long_for_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llkd.ingest.csv_reader.ROW_BYTES", 100_000)
    with pytest.raises(DataError, match="x.csv: it has a row of more than 16 MiB"):
        read(tmp_path / "x.csv", b"text,n\n" + b"x" * 900_000 + b",1\n")


GOOD = ("good", None)
ROWS: dict[str, tuple[str, bytes, list[tuple[str | None, str | None]]]] = {
    "too many fields": ("x.csv", b"text,n\ngood,1\na,b,c\ngood,2\n", [GOOD, (None, "damaged"), GOOD]),
    "too few": ("x.csv", b"text,n\na\n\ngood,1\nb\nc\n", [(None, "damaged"), GOOD, *[(None, "damaged")] * 2]),
    "blank lines": ("x.csv", b"\n\ntext,n\n\ngood,1\n\na\n", [GOOD, (None, "damaged")]),
    "CSV not in UTF-8": ("x.csv", b"text\ngood\ncaf\xe9\n", [GOOD, (None, "not_utf8")]),
    "too few, not in UTF-8": ("x.csv", b"n,text\n1,good\ncaf\xe9\n2,caf\xe9\n", [GOOD, (None, "damaged"), (None, "not_utf8")]),
    "half a character at the end": ("x.csv", b"text\ngood\n\xc3", [GOOD, (None, "not_utf8")]),
    "quotes": ("x.csv", b'n,text\n1,good\n2,"a ""b"""\n"3","c\n\nd"', [GOOD, ('a "b"', None), ("c\n\nd", None)]),
    "CSV with NUL": ("x.csv", b"text\ngood\na\0b\n", [GOOD, (None, "nul_byte")]),
    "a number in CSV": ("x.csv", b"text\n12\n", [("12", None)]),
    "a byte-order mark": ("x.csv", b"\xef\xbb\xbftext\ngood\n", [GOOD]),
    "compressed": ("x.csv.gz", gzip.compress(b"text\ngood\n"), [GOOD]),
    "no JSON": ("x.jsonl", b'{"text": "good"}\n{"text":\n', [GOOD, (None, "damaged")]),
    "deep JSON": ("x.jsonl", b'{"text": "good"}\n' + b"[" * 100_000 + b'\n{"text": "good"}', [GOOD, (None, "damaged"), GOOD]),
    "JSON not in UTF-8": ("x.jsonl", b'{"text": "good"}\n{"text": "\xe9"}', [GOOD, (None, "damaged")]),
    "half a character": ("x.jsonl", b'{"text": "good"}\n{"text": "\\ud800"}', [GOOD, (None, "not_utf8")]),
    "no text": ("x.jsonl", b'{"text": "good"}\n{"body": "b"}', [GOOD, (None, "missing")]),
    "no text at first": ("x.jsonl", b'{"n": 1}\n[]\n{"text": "good"}', [(None, "missing"), (None, "damaged"), GOOD]),
    "nulls": ("x.parquet", parquet(pa.table({"text": ["good", None]})), [GOOD, (None, "missing")]),
    "numbers": ("x.parquet", parquet(pa.table({"text": [1, 2]})), [(None, "not_text")] * 2),
    "lists": ("x.parquet", parquet(pa.table({"text": [["a"]]})), [(None, "not_text")]),
    "bytes": (
        "x.parquet", parquet(pa.table({"text": [b"good", b"caf\xe9"]})), [GOOD, (None, "not_utf8")],
    ),
    "strings not in UTF-8": ("x.parquet", parquet(pa.table({"text": NOT_UTF8})), [GOOD, (None, "not_utf8")]),
    "a dictionary": (
        "x.parquet", parquet(pa.table({"text": pa.array(["good"]).dictionary_encode()})), [GOOD],
    ),
    "10 MB in CSV": ("x.csv", f"text\n{LONG}\na\n".encode(), [(LONG, None), ("a", None)]),
    "10 MB in JSON": ("x.jsonl", json.dumps({"text": LONG}).encode(), [(LONG, None)]),
    "10 MB in Parquet": ("x.parquet", parquet(pa.table({"text": [LONG]})), [(LONG, None)]),
    "white space": ("x.csv", b'text\n" "\n', [(None, "empty")]),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "expected"), ROWS.values(), ids=ROWS)
def test_a_row_that_cannot_be_used_costs_itself_alone(
    tmp_path: Path, name: str, content: bytes, expected: list[tuple[str | None, str | None]]
) -> None:
    assert read(tmp_path / name, content) == expected


def test_any_range_of_a_csv_with_damaged_lines_can_be_read(tmp_path: Path) -> None:
    path, damaged = tmp_path / "x.csv", {0, 3, 4, 9}
    lines = [f"t{i}" if i in damaged else f"t{i},{i}" for i in range(10)]
    path.write_text("\n".join(["text,n", *lines]))
    source = SourceConfig(path=str(path))
    (file,) = list_files(source, "corpus")
    assert count_rows(file, source) == 10
    for start in range(10):
        for stop in range(start + 1, 11):
            rows = list(read_rows(file, source, start, stop))
            assert [row.number for row in rows] == list(range(start, stop))
            for row in rows:
                expected = None if row.number in damaged else f"t{row.number}".encode()
                assert row.text == expected
                assert row.detail == ("1 fields instead of 2" if expected is None else None)


@pytest.mark.parametrize("end", ["", "\n", "\n\n"])
def test_rows_and_characters_that_lie_across_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr("llkd.ingest.csv_reader.ROW_BYTES", 30_001)
    texts = ["ü€😀\n"[: i % 5] + str(i) for i in range(20_000)]
    lines = [f'{i},"{text}"' if i % 97 else "\udcff" for i, text in enumerate(texts)]
    content = ("n,text\n" + "\n".join(lines) + end).encode(errors="surrogateescape")
    assert read(tmp_path / "x.csv", content) == [
        (text, None) if i % 97 else (None, "damaged") for i, text in enumerate(texts)
    ]


def test_files_of_other_columns_than_the_first(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"text\ngood\n")
    (tmp_path / "b.csv").write_bytes(b"n,text\n1,a\n")
    assert read(tmp_path, None) == [GOOD, ("a", None)]
    (tmp_path / "b.csv").write_bytes(b"body\na\n")
    with pytest.raises(DataError, match="b.csv has no column 'text'"):
        read(tmp_path, None)


def test_files_of_other_types_than_the_first(tmp_path: Path) -> None:
    for name, values in (("a", ["good"]), ("b", [1]), ("c", [b"bytes"])):
        pq.write_table(pa.table({"text": values}), tmp_path / f"{name}.parquet")
    assert read(tmp_path, None) == [GOOD, (None, "not_text"), ("bytes", None)]


def test_ids_need_not_differ(tmp_path: Path) -> None:
    assert read(tmp_path / "x.csv", b"text,id\na,1\nb,1\n", id_column="id") == [
        ("a", None), ("b", None),
    ]  # fmt: skip
