"""The rows that the page shows; only their texts are read from the corpus."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llkd.config.run import RunConfig
from llkd.errors import LLKDError
from llkd.results.report.totals import MAX_REJECTS, MAX_ROWS, Totals
from llkd.results.report.words import count
from llkd.store.folder import Folder
from llkd.store.schema import ID, ROW, TEXT, RunLayout

MAX_CHARACTERS = 320
"""Characters of a text."""


@dataclass(frozen=True)
class Row:
    """A row to show."""

    where: str
    """Its id, or its shard and row."""
    text: str
    facts: Sequence[tuple[str, str]]
    """(name, value) pairs."""


def with_texts(config: RunConfig, dataset: str, found: Sequence[dict[str, Any]]) -> list[Row]:
    """The rows that a pass kept, with their texts; duplicate texts are dropped."""
    source = config.source(dataset)
    with_id = source is not None and source.id_column is not None
    folder, rows = Folder(RunLayout(config.run_dir).rows(dataset)), dict[str, Row]()
    tables: dict[int, Any] = {}
    for columns in found:
        shard, row = columns["shard"], columns[ROW]
        try:
            if shard not in tables:
                tables[shard] = folder.read_shard(shard, [TEXT, *([ID] if with_id else [])])
            text = tables[shard][TEXT][row].as_py()
            row_id = tables[shard][ID][row].as_py() if with_id else None
        except (LLKDError, IndexError):
            text, row_id = "(the text cannot be read)", None
        place = row_id or f"shard {shard}, row {row}"
        rows.setdefault(text, Row(place, shortened(text), _facts(columns, config.task.label_names)))
    return list(rows.values())


def _facts(columns: Mapping[str, Any], names: Sequence[str]) -> list[tuple[str, str]]:
    """The columns of a row that the passes kept, as the page shows them."""
    facts = []
    for who, sure in (("gold", ""), ("teacher", "confidence"), ("student", "student_confidence")):
        if who in columns:
            confidence = f" ({columns[sure]:.2f})" if sure in columns else ""
            facts.append((who, f"{names[columns[who]]}{confidence}"))
    if "uncertainty" in columns:
        facts.append(("student's uncertainty", f"{columns['uncertainty']:.2f}"))
    if columns.get("visits"):
        facts.append(("selected in", count(columns["visits"], "epoch")))
    return facts


def reject_rows(config: RunConfig, rejects: Mapping[str, Totals]) -> list[Row]:
    """Some rejected rows of each stage and reason."""
    rows = []
    for stage, totals in rejects.items():
        dataset = stage.partition("-")[2].partition("-")[0]
        kept = min(max(MAX_ROWS // max(len(totals.rows), 1), 1), MAX_REJECTS)
        for reason, examples in totals.rows.items():
            if stage.startswith("label-"):  # only these have a text in the run directory
                shown = with_texts(config, dataset, examples[:kept])
            else:
                shown = [Row(_place(r), shortened(r["detail"] or ""), ()) for r in examples[:kept]]
            rows += [replace(row, facts=[("stage", stage), ("reason", reason)]) for row in shown]
    return rows


def _place(row: Mapping[str, Any]) -> str:
    name = (row.get("source") or "").rpartition("/")[2] or f"shard {row['shard']}"
    row_id = f", id {row['id']}" if row.get("id") else ""
    return f"{name}, row {row[ROW]}{row_id}"


def shortened(text: str) -> str:
    """The start of a text, without empty lines."""
    text = re.sub(r"\s*\n\s*", "\n", text.strip())
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS].rstrip()} …"
