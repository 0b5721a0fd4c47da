"""Files of rows to label: CSV, Parquet, and the import formats of Argilla and Label Studio.

All of them can be read back as `gold`, see llkd/ingest/annotations.py.
"""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import quoteattr

import pyarrow as pa
import pyarrow.parquet as pq

from llkd.store.folder import Folder

QUESTION, FIELD = "label", "text"
"""The names of the question and of the text in all files."""


@dataclass(frozen=True)
class HandRow:
    """A row to label."""

    id: str
    text: str
    uniform: bool | None
    """Whether it was drawn uniformly; None if it was not drawn at random."""
    probability: float | None
    """Of being chosen; None if it was not drawn at random."""
    suggestions: dict[str, tuple[str, float]]
    """(label, confidence) by who suggests it, the first of them first; empty if they are not shown."""


def write_files(folder: Folder, rows: Sequence[HandRow], labels: Sequence[str]) -> None:
    """Write the rows in every format.

    Args:
        folder: to write to; files of these names are replaced.
        rows: to label.
        labels: their names.
    """
    table = _table(rows)
    parquet, text = io.BytesIO(), io.StringIO(newline="")
    pq.write_table(table, parquet)
    writer = csv.writer(text, quoting=csv.QUOTE_MINIMAL, lineterminator="\n")
    writer.writerow(table.column_names)
    for record in table.to_pylist():
        writer.writerow([_cell(value) for value in record.values()])
    folder.write_bytes("rows.parquet", parquet.getvalue())
    folder.write_bytes("argilla.json", _json([_argilla(row) for row in rows]))
    folder.write_bytes("label_studio.json", _json([_label_studio(row) for row in rows]))
    folder.write_bytes("label_studio.xml", _interface(labels).encode())
    folder.write_bytes(
        "rows.csv", text.getvalue().encode()
    )  # last: its presence means all are there


def _table(rows: Sequence[HandRow]) -> pa.Table:
    who = list(rows[0].suggestions) if rows else []
    columns: dict[str, Any] = {
        "id": pa.array([row.id for row in rows], pa.string()),
        FIELD: pa.array([row.text for row in rows], pa.large_string()),
        QUESTION: pa.nulls(len(rows), pa.string()),
    }
    for name in who:
        columns[name] = pa.array([row.suggestions[name][0] for row in rows], pa.string())
        confidence = [row.suggestions[name][1] for row in rows]
        columns[f"{name}_confidence"] = pa.array(confidence, pa.float64())
    columns["uniform"] = pa.array([row.uniform for row in rows], pa.bool_())
    columns["probability"] = pa.array([row.probability for row in rows], pa.float64())
    return pa.table(columns)


def _cell(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value


def _json(records: list[dict[str, Any]]) -> bytes:
    return json.dumps(records, ensure_ascii=False, indent=1).encode()


def _design(row: HandRow) -> dict[str, Any]:
    """How a row was chosen, without empty values."""
    found = {
        "uniform": None if row.uniform is None else _cell(row.uniform),
        "probability": row.probability,
    }
    return {name: value for name, value in found.items() if value is not None}


def _argilla(row: HandRow) -> dict[str, Any]:
    """A record as `rg.Record.from_dict` reads it. Argilla shows one suggestion a question."""
    first = next(iter(row.suggestions.items()), None)
    suggestions = {}
    if first is not None:
        agent, (value, score) = first
        suggestions = {QUESTION: {"value": value, "score": score, "agent": agent}}
    return {
        "id": row.id, "fields": {FIELD: row.text}, "metadata": _design(row),
        "suggestions": suggestions, "responses": {}, "vectors": {},
    }  # fmt: skip


def _label_studio(row: HandRow) -> dict[str, Any]:
    """A task with its predictions."""
    predictions = [
        {
            "model_version": who,
            "score": score,
            "result": [
                {
                    "from_name": QUESTION,
                    "to_name": FIELD,
                    "type": "choices",
                    "value": {"choices": [value]},
                }
            ],
        }
        for who, (value, score) in row.suggestions.items()
    ]
    return {"data": {"id": row.id, FIELD: row.text, **_design(row)}, "predictions": predictions}


def _interface(labels: Sequence[str]) -> str:
    """The labelling interface of Label Studio for these labels."""
    choices = "\n".join(f"    <Choice value={quoteattr(label)}/>" for label in labels)
    return (
        f'<View>\n  <Text name="{FIELD}" value="${FIELD}"/>\n'
        f'  <Choices name="{QUESTION}" toName="{FIELD}" choice="single" required="true">\n'
        f"{choices}\n  </Choices>\n</View>\n"
    )
