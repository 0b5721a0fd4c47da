"""CSV as Arrow reads it, but a line that is malformed costs its row and not the file."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv

ROW_BYTES = 1 << 24
"""A row can be no longer: a block of so many bytes is parsed at once, and holds at least one."""


def csv_columns(stream: pa.NativeFile) -> list[str]:
    """The header.

    Raises:
        ArrowException: the file is no CSV.
        UnicodeDecodeError: it is not UTF-8.
    """
    with _reader(stream, None, lambda row: "skip") as reader:
        return list(reader.schema.names)


def csv_pieces(stream: pa.NativeFile, columns: Sequence[str]) -> Iterator[pa.RecordBatch | str]:
    """The rows of a file in order: batches of good ones, and why a row between them is damaged.

    A line that has too many fields or too few is damaged; blank lines are no rows.

    Raises:
        ArrowException: the file is no CSV, or a damaged row goes over several lines: where a quote
            is not closed, nobody knows how many rows are lost in it.
    """
    damaged: deque[tuple[int, str]] = deque()

    def refuse(row: Any) -> str:
        if "\n" in row.text.strip():
            return "error"
        place = row.number - 2  # Arrow counts from 1, the header too
        damaged.append((place, f"{row.actual_columns} fields in place of {row.expected_columns}"))
        return "skip"

    place = 0
    with _reader(stream, columns, refuse) as reader:
        for batch in reader:
            while damaged and damaged[0][0] < place + batch.num_rows:
                bad, reason = damaged.popleft()
                yield batch.slice(0, bad - place)
                yield reason
                batch, place = batch.slice(bad - place), bad + 1
            yield batch
            place += batch.num_rows
    yield from (reason for _, reason in damaged)


def _reader(
    stream: pa.NativeFile, columns: Sequence[str] | None, refuse: Callable[[Any], str]
) -> pa_csv.CSVStreamingReader:
    # Everything is read as bytes: a text that looks like a number stays text, and one that is
    # not UTF-8 costs its row, not the file.
    convert = pa_csv.ConvertOptions(
        include_columns=list(columns) if columns else None,
        column_types=dict.fromkeys(columns or (), pa.binary()),
        strings_can_be_null=False,
    )
    return pa_csv.open_csv(
        stream,
        # Without threads a refused row knows its number.
        read_options=pa_csv.ReadOptions(block_size=ROW_BYTES, use_threads=False),
        parse_options=pa_csv.ParseOptions(newlines_in_values=True, invalid_row_handler=refuse),
        convert_options=convert,
    )
