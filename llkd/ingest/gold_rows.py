"""Rows labelled by hand, as they come from the user's files."""

import difflib
import hashlib
import json
from collections.abc import Iterator, Sequence

from llkd.config.sources import GoldConfig, SourceConfig
from llkd.errors import DataError
from llkd.ingest.files import SourceFile, list_files
from llkd.ingest.sources import SourceRow, as_text, check_columns, count_rows, read_rows

SHOWN_ROWS = 5
"""Rows that an error names."""


def source_rows(source: SourceConfig, section: str) -> Iterator[tuple[SourceFile, SourceRow]]:
    """(file, row) of all rows of a small source.

    Args:
        source: the source.
        section: its section in the config, for errors.

    Raises:
        DataError: a file cannot be read, or lacks a column.
    """
    others = other_columns(source)
    for file in list_files(source, section):
        check_columns(file, source, section, others)
        for row in read_rows(file, source, 0, count_rows(file, source), others):
            yield file, row


def gold_identity(source: SourceConfig, section: str, labels: Sequence[str]) -> str:
    """A hash of the texts and gold labels of a source.

    Raises:
        DataError: labels are not in the task; names their rows.
    """
    rows, misspelt = [], []
    for file, row in source_rows(source, section):
        label = as_text(row.gold)
        rows.append((as_text(row.text), label, *map(as_text, row.others)))
        if label and label not in labels:
            close = difflib.get_close_matches(label, labels, 1)
            hint = f" ({close[0]!r}?)" if close else ""
            misspelt.append(f"{file.uri}, row {row.number + 1}: {label!r}{hint}")
    if misspelt:
        more = f"\n  and {len(misspelt) - SHOWN_ROWS} more" if len(misspelt) > SHOWN_ROWS else ""
        raise DataError(
            f"{len(misspelt)} labels of {section} are not in task.labels:\n  "
            + "\n  ".join(misspelt[:SHOWN_ROWS]) + more,
            f"Spell them as in task.labels ({', '.join(labels)}), or leave them empty.",
        )  # fmt: skip
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def other_columns(source: SourceConfig) -> list[str]:
    """Further columns that are read: of rows labelled by hand, their probability of being chosen."""
    column = source.probability_column if isinstance(source, GoldConfig) else None
    return [] if column is None else [column]


def probability_of(row: SourceRow, file: SourceFile, column: str) -> float | None:
    """A row's probability of being chosen; None for an empty one."""
    value = as_text(row.others[0])
    if not value:
        return None
    try:
        found = float(value)
    except ValueError:
        found = 0.0
    if not 0 < found < float("inf"):
        raise DataError(
            f"{file.uri}, row {row.number + 1}, column {column!r}: {value!r} is not a number above 0",
            "Keep the column as jobs/sample.py wrote it, or leave it empty for rows that were not drawn.",
        )
    return found
