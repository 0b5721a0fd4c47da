"""Reads CSV with Arrow; a malformed line rejects its row instead of the file."""

import codecs
import re
import secrets
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

ROW_BYTES = 1 << 24
"""Maximum length of a row: Arrow parses blocks of this size, and a row must fit into one."""

END_COMMAS = 1 << 14
"""Commas in the appended end line: more fields than any table has columns (a spreadsheet has 16,384)."""


def csv_columns(stream: pa.NativeFile) -> list[str]:
    """The header.

    Raises:
        ArrowException: the file is not valid CSV.
        UnicodeDecodeError: it is not UTF-8.
    """
    content = _Content()
    with _reader(stream, content, None, lambda row: "skip") as reader:
        return [content.restored(name.encode()).decode() for name in reader.schema.names]


def csv_pieces(stream: pa.NativeFile, columns: Sequence[str]) -> Iterator[pa.RecordBatch | str]:
    """The rows of a file in order: batches of valid rows, and for each damaged row the reason.

    A line with too many or too few fields is damaged. Blank lines are not rows.

    Raises:
        ArrowException: the file is not valid CSV, or a damaged row spans several lines: after an
            unclosed quote the number of lost rows is unknown.
        ValueError: a quote in the last row is not closed.
    """
    content = _Content()
    damaged: deque[tuple[int, str]] = deque()
    ended = False

    def refuse(row: Any) -> str:
        nonlocal ended
        if row.text.startswith(content.end):
            ended = True
            return "skip"
        if "\n" in row.text.strip():
            return "error"
        place = row.number - 2  # Arrow counts from 1 and includes the header
        damaged.append((place, f"{row.actual_columns} fields instead of {row.expected_columns}"))
        return "skip"

    place = 0
    with _reader(stream, content, columns, refuse) as reader:
        for batch in map(content.restored_batch, reader):
            while damaged and damaged[0][0] < place + batch.num_rows:
                bad, reason = damaged.popleft()
                yield batch.slice(0, bad - place)
                yield reason
                batch, place = batch.slice(bad - place), bad + 1
            yield batch
            place += batch.num_rows
    if not ended:  # Arrow reads everything from the quote to the end of the file as one value
        raise ValueError(f"row #{place + 1} has a quote that is not closed")
    yield from (reason for _, reason in damaged)


class _Content:
    """Transforms a file's bytes for Arrow, to detect errors that Arrow does not report.

    A malformed line is appended. Arrow passes it to the handler of invalid rows unless a quote is
    still open, which reveals an unclosed quote. Bytes that are not UTF-8 are replaced by a marker,
    because pyarrow fails on a damaged line that contains one.
    """

    def __init__(self) -> None:
        mark = secrets.token_hex(8)  # occurs in no file
        self.end, self._bad_byte = f"<end of file {mark}>", f"<{mark}>"
        self._rest = "\n" + self.end + "," * END_COMMAS
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._all_utf8 = True

    def __call__(self, block: pa.Buffer) -> bytes:
        """Transform a block. An empty one marks the end of the file; it may come more than once."""
        text = self._decoder.decode(block, final=not len(block))
        if not len(block):
            text, self._rest = text + self._rest, ""
        try:
            return text.encode()
        except UnicodeEncodeError:
            self._all_utf8 = False
            return re.sub("[\udc80-\udcff]", self._bad_byte, text).encode()

    def restored(self, value: bytes) -> bytes:
        """A value in which bytes that are not UTF-8 replace their markers."""
        return value.replace(self._bad_byte.encode(), b"\xff")

    def restored_batch(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """`restored` for a batch of binary columns."""
        if self._all_utf8:
            return batch
        columns = [pc.replace_substring(each, self._bad_byte, b"\xff") for each in batch.columns]
        return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _reader(
    stream: pa.NativeFile,
    content: _Content,
    columns: Sequence[str] | None,
    refuse: Callable[[Any], str],
) -> pa_csv.CSVStreamingReader:
    # Columns are read as bytes: a text that looks like a number stays text, and a text that is
    # not UTF-8 rejects its row instead of the file.
    convert = pa_csv.ConvertOptions(
        include_columns=list(columns) if columns else None,
        column_types=dict.fromkeys(columns or (), pa.binary()),
        strings_can_be_null=False,
    )
    return pa_csv.open_csv(
        pa.TransformInputStream(stream, content),
        # Invalid rows have numbers only without threads.
        read_options=pa_csv.ReadOptions(block_size=ROW_BYTES, use_threads=False),
        parse_options=pa_csv.ParseOptions(newlines_in_values=True, invalid_row_handler=refuse),
        convert_options=convert,
    )
