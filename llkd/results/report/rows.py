"""Rows to look at, with their texts: read for the few that are shown, when all are known."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from llkd.config.run import RunConfig
from llkd.errors import LLKDError
from llkd.results.report.found import MOST_ROWS, Found
from llkd.store.folder import Folder
from llkd.store.schema import ID, ROW, TEXT, RunLayout

MOST_CHARACTERS = 320
"""Of a text."""


@dataclass(frozen=True)
class Row:
    """A row that is shown."""

    where: str
    """Its id, or its shard and row."""
    text: str
    told: Mapping[str, Any] = field(default_factory=dict)
    """What else is known of it; classes are indices."""


def with_texts(config: RunConfig, dataset: str, found: Sequence[dict[str, Any]]) -> list[Row]:
    """The rows that a pass found, with their texts, each text once."""
    source = config.source(dataset)
    with_id = source is not None and source.id_column is not None
    folder, rows = Folder(RunLayout(config.run_dir).rows(dataset)), dict[str, Row]()
    tables: dict[int, Any] = {}
    for told in found:
        shard, row = told["shard"], told[ROW]
        try:
            if shard not in tables:
                tables[shard] = folder.read_shard(shard, [TEXT, *([ID] if with_id else [])])
            text = tables[shard][TEXT][row].as_py()
            own = tables[shard][ID][row].as_py() if with_id else None
        except (LLKDError, IndexError):
            text, own = "(the text cannot be read)", None
        rows.setdefault(text, Row(own or f"shard {shard}, row {row}", shortened(text), told))
    return list(rows.values())


def reject_rows(config: RunConfig, rejects: Mapping[str, Found]) -> list[Row]:
    """Some of the rows that were left out, of each reason some."""
    rows = []
    for stage, found in rejects.items():
        dataset = stage.partition("-")[2].partition("-")[0]
        for reason, examples in found.rows.items():
            kept = examples[: max(MOST_ROWS // max(len(found.rows), 1), 1)]
            if stage.startswith("label-"):  # the texts of the others were never kept
                shown = with_texts(config, dataset, kept)
            else:
                shown = [Row(_place(row), shortened(row["detail"] or ""), row) for row in kept]
            about = {"stage": stage, "reason": reason}
            rows += [replace(row, told={**row.told, **about}) for row in shown]
    return rows


def _place(row: Mapping[str, Any]) -> str:
    name = (row.get("source") or "").rpartition("/")[2] or f"shard {row['shard']}"
    own = f", id {row['id']}" if row.get("id") else ""
    return f"{name}, row {row[ROW]}{own}"


def shortened(text: str) -> str:
    """The beginning of a text, without empty lines."""
    text = re.sub(r"\s*\n\s*", "\n", text.strip())
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS].rstrip()} …"
