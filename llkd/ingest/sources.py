"""Rows of text from the caller's files: Parquet, JSON lines, CSV, or a `datasets` data set.

A source is a list of files in a fixed order, each with its number of rows, so that any range of
rows can be read by any worker. A row that cannot be used is reported with a reason and never
ends the reading.
"""

import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llkd.config.section import DATASETS_PREFIX
from llkd.config.sources import SourceConfig
from llkd.errors import DataError
from llkd.ingest.csv_reader import ROW_BYTES, csv_columns, csv_pieces
from llkd.ingest.files import UNREADABLE, SourceFile, opened

JSON_LINES = 100_000
"""Lines of a JSON lines file that are looked at for its columns: about a second."""


@dataclass(frozen=True)
class SourceRow:
    """A row as it was read: raw values, or the reason why there are none."""

    number: int
    """Position in its file."""
    text: Any = None
    id: Any = None
    gold: Any = None
    reason: str | None = None
    detail: str | None = None


def check_columns(file: SourceFile, source: SourceConfig, setting: str) -> None:
    """See that a file is not empty and has the columns that the config names.

    Raises:
        DataError: naming the missing column and those that exist.
    """
    if file.size == 0 and file.format != "datasets":
        raise DataError(
            f"{file.uri} is empty (0 bytes)",
            "Delete it, or make it again.",
        )
    columns = _columns_of(file, source)
    if columns is None:
        return
    doubled = sorted({name for name in columns if columns.count(name) > 1})
    for key in ("text_column", "label_column", "id_column"):
        wanted = getattr(source, key)
        if wanted is None:
            continue
        if wanted not in columns:
            raise DataError(
                f"{file.uri} has no column {wanted!r} ({setting}.{key}); its columns are: "
                + ", ".join(map(repr, columns))
            )
        if wanted in doubled:
            raise DataError(f"{file.uri} has more than one column {wanted!r} ({setting}.{key})")


def count_rows(file: SourceFile, source: SourceConfig) -> int:
    """The rows of a file, usable or not.

    Raises:
        DataError: it cannot be read.
    """
    try:
        if file.format == "parquet":
            with opened(file) as handle:
                return int(pq.ParquetFile(handle).metadata.num_rows)
        if file.format == "datasets":
            return len(_load_dataset(file.uri, source))
        if file.format == "csv":
            pieces = csv_pieces(opened(file), [source.text_column])
            return sum(1 if isinstance(piece, str) else piece.num_rows for piece in pieces)
        with opened(file) as handle:
            return sum(1 for line in _lines(handle) if line.strip())
    except UNREADABLE as error:
        raise _cannot_read(file, error) from error


def read_rows(file: SourceFile, source: SourceConfig, start: int, stop: int) -> Iterator[SourceRow]:
    """The rows [start, stop) of a file, in order.

    Raises:
        DataError: it cannot be read.
    """
    columns = [name for name in (source.text_column, source.label_column, source.id_column) if name]
    reader = {"parquet": _read_parquet, "csv": _read_csv, "jsonl": _read_jsonl,
              "datasets": _read_dataset}[file.format]  # fmt: skip
    try:
        for number, record in reader(file, source, columns, start, stop):
            if isinstance(record, str):
                yield SourceRow(number, reason="damaged", detail=record)
                continue
            yield SourceRow(
                number,
                record.get(source.text_column),
                record.get(source.id_column) if source.id_column else None,
                record.get(source.label_column) if source.label_column else None,
            )
    except UNREADABLE as error:
        raise _cannot_read(file, error) from error


def _cannot_read(file: SourceFile, error: Exception) -> DataError:
    reason = str(error)[:300]
    if isinstance(error, UnicodeDecodeError):
        reason = f"it is not UTF-8 ({error.reason})"
    elif "straddl" in reason:  # Arrow's word for a row that does not fit into a block
        reason = (
            f"it has a row of more than {ROW_BYTES >> 20} MiB. Is a quote not closed? Texts of "
            "that length can be read from Parquet or JSON lines"
        )
    elif "Empty CSV" in reason:
        reason = "it has no header. Is it empty, or a quote in it not closed?"
    elif "CSV parse error" in reason:
        reason += ". Is a quote not closed?"
    return DataError(f"Cannot read {file.uri}: {reason}")


def as_text(value: Any) -> str | None:
    """An identifier or a label as text, whatever type the file has."""
    if value is None:
        return None
    if not isinstance(value, bytes):  # JSON can spell half a character
        value = str(value).encode("utf-8", errors="surrogatepass")
    return str(value, "utf-8", errors="replace")


def _columns_of(file: SourceFile, source: SourceConfig) -> list[str] | None:
    """The column names; None for JSON lines of which none has any."""
    try:
        if file.format == "parquet":
            with opened(file) as handle:
                return list(pq.ParquetFile(handle).schema_arrow.names)
        if file.format == "csv":
            return csv_columns(opened(file))
        if file.format == "datasets":
            return list(_load_dataset(file.uri, source).column_names)
        return _json_columns(file, source)
    except UNREADABLE as error:
        raise _cannot_read(file, error) from error


def _json_columns(file: SourceFile, source: SourceConfig) -> list[str] | None:
    """The columns of the first lines, up to the one by which all have been seen that the config
    names: a line may leave out what is null."""
    with opened(file) as handle:
        if handle.read(4096).lstrip()[:1] == b"[":
            raise DataError(
                f"{file.uri} is a JSON array, and not JSON lines, an object on each line",
                "Convert it with `jq -c '.[]'`",
            )
    wanted = {source.text_column, source.label_column, source.id_column} - {None}
    columns: dict[str, None] = {}
    empty = True
    for _, record in itertools.islice(_json_lines(file), JSON_LINES):
        empty = False
        if isinstance(record, dict):
            columns |= dict.fromkeys(record)
        if wanted <= columns.keys():
            break
    if empty:
        raise DataError(
            f"{file.uri} is empty (no line)",
            "Delete it, or make it again.",
        )
    return list(columns) or None


def _json_lines(file: SourceFile, start: int = 0) -> Iterator[tuple[int, Any]]:
    """(line number, record) of each line from `start` that is not blank; a string instead of a
    record if the line is damaged."""
    with opened(file) as handle:
        lines = (line for line in _lines(handle) if line.strip())
        for number, line in enumerate(lines):
            if number < start:
                continue  # not parsed: that is what takes the time
            try:
                record = json.loads(line)
                yield number, record if isinstance(record, dict) else "not a JSON object"
            except (ValueError, RecursionError) as error:
                yield number, f"not valid JSON: {error}"[:200]


def _lines(handle: pa.NativeFile, block: int = 1 << 20) -> Iterator[bytes]:
    rest = b""
    while data := handle.read(block):
        *lines, rest = (rest + data).split(b"\n")
        yield from lines
    if rest:
        yield rest


Record = tuple[int, dict[str, Any] | str]


def _read_jsonl(
    file: SourceFile, source: SourceConfig, columns: list[str], start: int, stop: int
) -> Iterator[Record]:
    yield from itertools.takewhile(lambda row: row[0] < stop, _json_lines(file, start))


def _read_csv(
    file: SourceFile, source: SourceConfig, columns: list[str], start: int, stop: int
) -> Iterator[Record]:
    yield from _slice_batches(csv_pieces(opened(file), columns), 0, start, stop)


def _read_parquet(
    file: SourceFile, source: SourceConfig, columns: list[str], start: int, stop: int
) -> Iterator[Record]:
    with opened(file) as handle:
        parquet = pq.ParquetFile(handle, pre_buffer=True)  # one request for all columns
        first = 0
        for group in range(parquet.num_row_groups):
            rows = parquet.metadata.row_group(group).num_rows
            if first < stop and first + rows > start:
                batches = parquet.iter_batches(row_groups=[group], columns=columns)
                yield from _slice_batches(map(_as_bytes, batches), first, start, stop)
            first += rows


def _as_bytes(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Strings as bytes: one that is not UTF-8 costs its row, not the file."""
    columns = []
    for column in batch.columns:
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
        columns.append(column.cast(pa.large_binary()) if text else column)
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _read_dataset(
    file: SourceFile, source: SourceConfig, columns: list[str], start: int, stop: int
) -> Iterator[Record]:
    dataset = _load_dataset(file.uri, source)
    names = {
        column: feature.names
        for column, feature in dataset.features.items()
        if hasattr(feature, "names")  # ClassLabel: the column holds indices
    }
    rows = dataset.select(range(start, stop)).select_columns(columns)
    for offset, record in enumerate(rows):
        for column in names.keys() & record.keys():
            index = record[column]
            known = index is not None and 0 <= index < len(names[column])
            record[column] = names[column][index] if known else None
        yield start + offset, record


def _slice_batches(
    pieces: Iterable[pa.RecordBatch | str], first: int, start: int, stop: int
) -> Iterator[Record]:
    """The rows of a stream that fall into [start, stop); it begins at `first`. A string stands
    for a row that is damaged."""
    for batch in pieces:
        if isinstance(batch, str):
            if start <= first < stop:
                yield first, batch
            first += 1
            continue
        low, high = max(start - first, 0), min(stop - first, batch.num_rows)
        if low < high:
            for offset, record in enumerate(_records(batch.slice(low, high - low))):
                yield first + low + offset, record
        first += batch.num_rows
        if first >= stop:
            return


def _records(batch: pa.RecordBatch) -> list[dict[str, Any] | str]:
    """Each row's values by column; a string instead if Python cannot hold them, such as text that
    is not UTF-8 or a date in the year 100000."""
    try:
        return list(batch.to_pylist())
    except (ValueError, ArithmeticError) as error:
        if batch.num_rows == 1:
            return [str(error)[:200]]
        return [record for row in range(batch.num_rows) for record in _records(batch.slice(row, 1))]


def _load_dataset(uri: str, source: SourceConfig) -> Any:
    import datasets

    name = uri.removeprefix(DATASETS_PREFIX)
    try:
        dataset = datasets.load_dataset(name, **source.dataset_args)
    except Exception as error:  # the library raises many kinds
        raise DataError(f"`datasets` cannot load {name!r}: {error}") from error
    if isinstance(dataset, dict):
        raise DataError(
            f"Data set {name!r} has the splits {sorted(dataset)}",
            "Choose one with dataset_args: {split: ...}.",
        )
    return dataset
