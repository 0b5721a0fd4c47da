"""Reads JSON arrays: rows as people label them in Argilla and Label Studio, or plain objects.

- Argilla (`dataset.records.to_json`): the text is a field, the label a response to the question of that name.
- Label Studio (export "JSON"): the text is in `data`, the label a choice of each annotation. Its export
  "JSON-MIN" has plain objects.

A row with several answers is returned once for each, so that answers which differ are found as those of several rows.
"""

import json
from collections.abc import Iterator
from typing import Any

from llkd.config.sources import SourceConfig
from llkd.errors import DataError
from llkd.ingest.files import SourceFile, opened

MAX_BYTES = 256 << 20
"""An array is read as a whole, so a larger one is refused."""

Record = dict[str, Any]


def is_array(file: SourceFile) -> bool:
    """Whether a file named `.json` holds an array and not JSON Lines."""
    if file.format != "json":
        return False
    with opened(file) as handle:
        return bool(handle.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"[")


def read_array(file: SourceFile, source: SourceConfig) -> list[Record | str]:
    """The rows of an array, as columns by name; a string says why an element is not a row.

    Raises:
        DataError: the array is too large.
        ValueError: the file is not JSON.
    """
    with opened(file) as handle:
        content = handle.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise DataError(
            f"{file.uri} is a JSON array of more than {MAX_BYTES >> 20} MiB",
            "Convert it to JSON Lines with `jq -c '.[]'`.",
        )
    return [row for element in json.loads(content) for row in _rows(element, source)]


def _rows(element: Any, source: SourceConfig) -> Iterator[Record | str]:
    if not isinstance(element, dict):
        yield "not a JSON object"
    elif isinstance(element.get("fields"), dict):
        yield from _argilla(element, source)
    elif isinstance(element.get("data"), dict):
        yield from _label_studio(element, source)
    else:
        yield {name: _single(value) for name, value in element.items()}


def _argilla(record: Record, source: SourceConfig) -> Iterator[Record]:
    found = {**(record.get("metadata") or {}), **record["fields"]}
    found.setdefault("id", record.get("id"))
    answers = (record.get("responses") or {}).get(source.label_column) or []
    labels = [
        answer.get("value") for answer in answers if answer.get("status") in (None, "submitted")
    ]
    for label in labels or [None]:
        yield {**found, **_labelled(source, label)}


def _label_studio(task: Record, source: SourceConfig) -> Iterator[Record]:
    labels = []
    for annotation in task.get("annotations") or []:
        if annotation.get("was_cancelled"):
            continue
        for result in annotation.get("result") or []:
            if result.get("from_name") == source.label_column and result.get("type") == "choices":
                labels.append(_single(result["value"]))
    for label in labels or [None]:
        yield {"id": task.get("id"), **task["data"], **_labelled(source, label)}


def _labelled(source: SourceConfig, label: Any) -> Record:
    return {} if source.label_column is None else {source.label_column: label}


def _single(value: Any) -> Any:
    """The choice of Label Studio's `{"choices": [...]}`; other values as they are."""
    choices = value.get("choices") if isinstance(value, dict) else None
    if not isinstance(choices, list):
        return value
    return choices[0] if len(choices) == 1 else None
