"""CSV as Arrow reads it, but a line that is malformed costs its row and not the file."""

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
"""A row can be no longer: a block of so many bytes is parsed at once, and holds at least one."""

END_COMMAS = 1 << 14
"""In the line that is put after the last: no table has one column more than a spreadsheet can."""


def csv_columns(stream: pa.NativeFile) -> list[str]:
    """The header.

    Raises:
        ArrowException: the file is no CSV.
        UnicodeDecodeError: it is not UTF-8.
    """
    content = _Content()
    with _reader(stream, content, None, lambda row: "skip") as reader:
        return [content.restored(name.encode()).decode() for name in reader.schema.names]


def csv_pieces(stream: pa.NativeFile, columns: Sequence[str]) -> Iterator[pa.RecordBatch | str]:
    """The rows of a file in order: batches of good ones, and why a row between them is damaged.

    A line that has too many fields or too few is damaged; blank lines are no rows.

    Raises:
        ArrowException: the file is no CSV, or a damaged row goes over several lines: where a quote
            is not closed, nobody knows how many rows are lost in it.
        ValueError: the last row has a quote that is not closed.
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
        place = row.number - 2  # Arrow counts from 1, the header too
        damaged.append((place, f"{row.actual_columns} fields in place of {row.expected_columns}"))
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
    if not ended:  # Arrow takes all from the quote to the end of the file as one value
        raise ValueError(f"row #{place + 1} has a quote that is not closed")
    yield from (reason for _, reason in damaged)


class _Content:
    """A file's bytes as Arrow is given them, so that it tells what it would not tell otherwise.

    After the last line stands one that is malformed: Arrow refuses it, unless a quote before it
    is open. A byte that is not UTF-8 is spelt in characters: pyarrow gives up at a damaged line
    that holds one.
    """

    def __init__(self) -> None:
        mark = secrets.token_hex(8)  # in no file
        self.end, self._bad_byte = f"<end of file {mark}>", f"<{mark}>"
        self._rest = "\n" + self.end + "," * END_COMMAS
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._all_utf8 = True

    def __call__(self, block: pa.Buffer) -> bytes:
        """A block as Arrow gets it; an empty one is the end of the file, which may come again."""
        text = self._decoder.decode(block, final=not len(block))
        if not len(block):
            text, self._rest = text + self._rest, ""
        try:
            return text.encode()
        except UnicodeEncodeError:
            self._all_utf8 = False
            return re.sub("[\udc80-\udcff]", self._bad_byte, text).encode()

    def restored(self, value: bytes) -> bytes:
        """A value with bytes that are not UTF-8 where the file has such."""
        return value.replace(self._bad_byte.encode(), b"\xff")

    def restored_batch(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The same for a batch of binary columns."""
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
    # Everything is read as bytes: a text that looks like a number stays text, and one that is
    # not UTF-8 costs its row, not the file.
    convert = pa_csv.ConvertOptions(
        include_columns=list(columns) if columns else None,
        column_types=dict.fromkeys(columns or (), pa.binary()),
        strings_can_be_null=False,
    )
    return pa_csv.open_csv(
        pa.TransformInputStream(stream, content),
        # Without threads a refused row knows its number.
        read_options=pa_csv.ReadOptions(block_size=ROW_BYTES, use_threads=False),
        parse_options=pa_csv.ParseOptions(newlines_in_values=True, invalid_row_handler=refuse),
        convert_options=convert,
    )
