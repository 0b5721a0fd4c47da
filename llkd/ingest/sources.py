"""Reads rows of text from the user's files: Parquet, JSON Lines, CSV, or a `datasets` data set.

A source is a list of files in a fixed order, each with its number of rows, so that any worker can
read any range of rows. An unusable row is reported with a reason and does not stop the reader.
"""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llkd.config.section import DATASETS_PREFIX
from llkd.config.sources import SourceConfig
from llkd.errors import DataError
from llkd.ingest.annotations import is_array, read_array
from llkd.ingest.csv_reader import ROW_BYTES, csv_columns, csv_pieces
from llkd.ingest.files import UNREADABLE, SourceFile, opened

JSON_LINES = 100_000
"""Maximum lines of a JSON Lines file that are searched for its columns: about a second."""


@dataclass(frozen=True)
class SourceRow:
    """A row as read: raw values, or the reason why it has none."""

    number: int
    """Position in its file."""
    text: Any = None
    id: Any = None
    gold: Any = None
    reason: str | None = None
    detail: str | None = None
    others: tuple[Any, ...] = ()
    """The values of further columns."""


def check_columns(
    file: SourceFile, source: SourceConfig, setting: str, others: Sequence[str] = ()
) -> None:
    """Check that a file is not empty and has the columns that the config names, and `others`.

    Raises:
        DataError: the file is empty, or a column is missing; names the existing ones.
    """
    if file.size == 0 and file.format != "datasets":
        raise DataError(
            f"{file.uri} is empty (0 bytes)",
            "Delete or recreate it.",
        )
    columns = _columns_of(file, source, others)
    if columns is None:
        return
    doubled = sorted({name for name in columns if columns.count(name) > 1})
    keys = ("text_column", "label_column", "id_column")
    named = [(f"{setting}.{key}", getattr(source, key)) for key in keys]
    for where, wanted in [*named, *((setting, name) for name in others)]:
        if wanted is None:
            continue
        if wanted not in columns:
            raise DataError(
                f"{file.uri} has no column {wanted!r} ({where}); its columns are: "
                + ", ".join(map(repr, columns))
            )
        if wanted in doubled:
            raise DataError(f"{file.uri} has more than one column {wanted!r} ({where})")


def count_rows(file: SourceFile, source: SourceConfig) -> int:
    """The number of rows of a file, including unusable ones.

    Raises:
        DataError: the file cannot be read.
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
        if is_array(file):
            return len(read_array(file, source))
        with opened(file) as handle:
            return sum(1 for line in _lines(handle) if line.strip())
    except UNREADABLE as error:
        raise _cannot_read(file, error) from error


def read_rows(
    file: SourceFile, source: SourceConfig, start: int, stop: int, others: Sequence[str] = ()
) -> Iterator[SourceRow]:
    """The rows [start, stop) of a file, in order, with the columns `others` beside the config's.

    Raises:
        DataError: the file cannot be read.
    """
    own = (source.text_column, source.label_column, source.id_column)
    columns = list(dict.fromkeys(name for name in (*own, *others) if name))
    reader = {"parquet": _read_parquet, "csv": _read_csv, "jsonl": _read_jsonl, "json": _read_jsonl,
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
                others=tuple(record.get(name) for name in others),
            )
    except UNREADABLE as error:
        raise _cannot_read(file, error) from error


def _cannot_read(file: SourceFile, error: Exception) -> DataError:
    reason = str(error)[:300]
    if isinstance(error, UnicodeDecodeError):
        reason = f"it is not UTF-8 ({error.reason})"
    elif "straddl" in reason:  # Arrow's error for a row that does not fit into a block
        reason = (
            f"it has a row of more than {ROW_BYTES >> 20} MiB. Is a quote not closed? Store "
            "texts of that length as Parquet or JSON Lines"
        )
    elif "Empty CSV" in reason:
        reason = "it has no header. Is it empty, or is a quote not closed?"
    elif "CSV parse error" in reason:
        reason += ". Is a quote not closed?"
    return DataError(f"Cannot read {file.uri}: {reason}")


def as_text(value: Any) -> str | None:
    """An identifier or a label of any type as text."""
    if value is None:
        return None
    if not isinstance(value, bytes):  # JSON can encode lone surrogates
        value = str(value).encode("utf-8", errors="surrogatepass")
    return str(value, "utf-8", errors="replace")


def _columns_of(file: SourceFile, source: SourceConfig, others: Sequence[str]) -> list[str] | None:
    """The column names; None if no line of a JSON Lines file is an object."""
    try:
        if file.format == "parquet":
            with opened(file) as handle:
                return list(pq.ParquetFile(handle).schema_arrow.names)
        if file.format == "csv":
            return csv_columns(opened(file))
        if file.format == "datasets":
            return list(_load_dataset(file.uri, source).column_names)
        return _json_columns(file, source, others)
    except UNREADABLE as error:
        raise _cannot_read(file, error) from error


def _json_columns(
    file: SourceFile, source: SourceConfig, others: Sequence[str]
) -> list[str] | None:
    """The columns of the first lines, up to the line by which all columns in the config have
    occurred: a line may omit null values."""
    with opened(file) as handle:
        if file.format == "jsonl" and handle.read(4096).lstrip()[:1] == b"[":
            raise DataError(
                f"{file.uri} is a JSON array instead of JSON Lines, one object per line",
                "Convert it with `jq -c '.[]'`, or name it .json.",
            )
    wanted = {source.text_column, source.label_column, source.id_column, *others} - {None}
    columns: dict[str, None] = {}
    empty = True
    for _, record in itertools.islice(_json_records(file, source), JSON_LINES):
        empty = False
        if isinstance(record, dict):
            columns |= dict.fromkeys(record)
        if wanted <= columns.keys():
            break
    if empty:
        raise DataError(
            f"{file.uri} is empty (no line)",
            "Delete or recreate it.",
        )
    return list(columns) or None


def _json_records(
    file: SourceFile, source: SourceConfig, start: int = 0
) -> Iterator[tuple[int, Any]]:
    """(number, record) of each row from `start`; for a damaged row the record is a string with the
    reason."""
    if not is_array(file):
        return _json_lines(file, start)
    return itertools.islice(enumerate(read_array(file, source)), start, None)


def _json_lines(file: SourceFile, start: int = 0) -> Iterator[tuple[int, Any]]:
    """(number, record) of each non-blank line from `start`; for a damaged line the record is a string
    with the reason."""
    with opened(file) as handle:
        lines = (line for line in _lines(handle) if line.strip())
        for number, line in enumerate(lines):
            if number < start:
                continue  # parsing is the slow part
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
    yield from itertools.takewhile(lambda row: row[0] < stop, _json_records(file, source, start))


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
    """Cast strings to bytes: one that is not UTF-8 rejects its row instead of the file."""
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
    """The rows [start, stop) of a stream whose first row is number `first`. A string stands for a
    damaged row."""
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
    """Each row's values by column; a string if Python cannot represent them, for example a date in
    the year 100000."""
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
