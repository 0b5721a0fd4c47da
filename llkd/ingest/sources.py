"""Rows of text from the caller's files: Parquet, JSON lines, CSV, or a `datasets` data set.

A source is a list of files in a fixed order, each with its number of rows, so that any range of
rows can be read by any worker. A row that cannot be used is reported with a reason and never
ends the reading.
"""

import itertools
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from llkd.config.sources import SourceConfig
from llkd.errors import DataError
from llkd.ingest.csv_reader import ROW_BYTES, csv_columns, csv_pieces
from llkd.store.folder import filesystem

DATASETS_PREFIX = "datasets:"
FORMATS = {"parquet": "parquet", "pq": "parquet", "jsonl": "jsonl", "ndjson": "jsonl",
           "json": "jsonl", "csv": "csv"}  # fmt: skip
COMPRESSIONS = {"gz": "gzip", "zst": "zstd", "bz2": "bz2"}

JSON_LINES = 100_000
"""Lines of a JSON lines file that are looked at for its columns: about a second."""

_UNREADABLE = (pa.ArrowException, OSError, ValueError)
"""What reading raises. ValueError is for names that are not UTF-8."""


@dataclass(frozen=True)
class SourceFile:
    """One file of a source; `format` is `parquet`, `jsonl`, `csv` or `datasets`."""

    uri: str
    format: str
    size: int
    """Bytes; 0 for a `datasets` data set."""


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


def list_files(source: SourceConfig, setting: str) -> list[SourceFile]:
    """The files of a source, sorted by path within each given path.

    Args:
        source: where to look.
        setting: the name of its section in the config, for messages.

    Raises:
        DataError: a path does not exist, holds no data, or is of an unknown format.
    """
    files: list[SourceFile] = []
    for path in source.paths:
        if path.startswith(DATASETS_PREFIX):
            files.append(SourceFile(path, "datasets", 0))
            continue
        files.extend(_expand(path, setting))
    return list(dict.fromkeys(files))


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
            with _open(file) as handle:
                return int(pq.ParquetFile(handle).metadata.num_rows)
        if file.format == "datasets":
            return len(_load_dataset(file.uri, source))
        if file.format == "csv":
            pieces = csv_pieces(_open(file), [source.text_column])
            return sum(1 if isinstance(piece, str) else piece.num_rows for piece in pieces)
        with _open(file) as handle:
            return sum(1 for line in _lines(handle) if line.strip())
    except _UNREADABLE as error:
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
    except _UNREADABLE as error:
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


def _expand(path: str, setting: str) -> list[SourceFile]:
    try:
        return _found(path, setting)
    except (*_UNREADABLE, re.error) as error:
        raise DataError(f"{setting}.path: cannot look for {path!r}: {error}") from error


_BEFORE_BUCKET = re.compile(r"\w+://([^/@]*@)?")
"""`s3://`, or `gs://anonymous@`, for a bucket that is open to all."""


def _found(path: str, setting: str) -> list[SourceFile]:
    first_wild = min((path.index(char) for char in "*?[" if char in path), default=None)
    base = path if first_wild is None else path[:first_wild].rpartition("/")[0]
    filesystem_, root = filesystem(base or ("/" if path.startswith("/") else "."))
    before = _BEFORE_BUCKET.match(base)  # which pyarrow's paths begin with
    scheme = before.group() if before else ""
    info = filesystem_.get_file_info(root)
    if info.type == fs.FileType.NotFound:
        raise DataError(f"{setting}.path: {path} does not exist")
    if info.type == fs.FileType.File:
        return [SourceFile(scheme + root, _format_of(path, setting), info.size)]
    found = filesystem_.get_file_info(fs.FileSelector(root, recursive=True))
    pattern = None
    if first_wild is None:
        found = [f for f in found if _split_name(f.path)[0] in FORMATS]
    else:
        pattern = _glob_pattern(path[len(base) :].lstrip("/"))
        found = [f for f in found if pattern.fullmatch(f.path[len(root) :].lstrip("/"))]
    found = [
        f for f in found
        if f.type == fs.FileType.File and not f.base_name.startswith((".", "_"))
    ]  # fmt: skip
    if not found:
        kinds = "files" if pattern else "Parquet, JSON lines or CSV files"
        raise DataError(f"{setting}.path: no {kinds} in {path}")
    return [
        SourceFile(scheme + f.path, _format_of(f.path, setting), f.size)
        for f in sorted(found, key=lambda f: f.path)
    ]


def _glob_pattern(glob: str) -> re.Pattern[str]:
    """A glob as a shell reads it: `*` and `?` stay within a folder, `**/` is any folders, `[...]`
    one of some characters and `[!...]` any other."""
    parts = re.split(r"(\*\*/|\*|\?|\[!?[^]]+\])", glob)
    meaning = {"**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    return re.compile(
        "".join(
            meaning.get(part, _one_of(part) if number % 2 else re.escape(part))
            for number, part in enumerate(parts)
        )
    )


def _one_of(brackets: str) -> str:
    """`[...]` of a glob as a regular expression."""
    inner = brackets[1:-1]
    negated = inner.startswith("!")
    characters = re.sub(r"([\\\[^&~|])", r"\\\1", inner[negated:])
    return f"(?!/)[{'^' if negated else ''}{characters}]"


def _split_name(path: str) -> tuple[str, str | None]:
    """The format's and the compression's extension of a path."""
    parts = path.rpartition("/")[2].lower().split(".")
    compression = COMPRESSIONS.get(parts[-1]) if len(parts) > 2 else None
    return (parts[-2] if compression else parts[-1]), compression


def _format_of(path: str, setting: str) -> str:
    extension = _split_name(path)[0]
    if extension not in FORMATS:
        raise DataError(
            f"{setting}.path: {path} is of no known format; the name must end in one of "
            + ", ".join(f".{name}" for name in FORMATS)
            + " (JSON lines and CSV also with .gz, .zst or .bz2)"
        )
    return FORMATS[extension]


def _open(file: SourceFile) -> pa.NativeFile:
    filesystem_, path = filesystem(file.uri)
    if file.format == "parquet":
        return filesystem_.open_input_file(path)
    return filesystem_.open_input_stream(path, compression=_split_name(path)[1])


def _columns_of(file: SourceFile, source: SourceConfig) -> list[str] | None:
    """The column names; None for JSON lines of which none has any."""
    try:
        if file.format == "parquet":
            with _open(file) as handle:
                return list(pq.ParquetFile(handle).schema_arrow.names)
        if file.format == "csv":
            return csv_columns(_open(file))
        if file.format == "datasets":
            return list(_load_dataset(file.uri, source).column_names)
        return _json_columns(file, source)
    except _UNREADABLE as error:
        raise _cannot_read(file, error) from error


def _json_columns(file: SourceFile, source: SourceConfig) -> list[str] | None:
    """The columns of the first lines, up to the one by which all have been seen that the config
    names: a line may leave out what is null."""
    with _open(file) as handle:
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
    with _open(file) as handle:
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
    yield from _slice_batches(csv_pieces(_open(file), columns), 0, start, stop)


def _read_parquet(
    file: SourceFile, source: SourceConfig, columns: list[str], start: int, stop: int
) -> Iterator[Record]:
    with _open(file) as handle:
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
