"""Labels from a table, joined to the corpus by its id column.

teacher: {engine: table, model: labels/*.parquet,
          engine_args: {id_column: id, label_column: label, confidence_column: confidence}}
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from llkd.config.run import TaskConfig, TeacherConfig
from llkd.config.sources import SourceConfig
from llkd.errors import DataError
from llkd.ingest.files import list_files
from llkd.ingest.sources import SourceRow, as_text, check_columns, count_rows, read_rows
from llkd.teacher.engine import LabelBatch, parse_arguments

MAX_CONFIDENCE = 1 - 1e-6
"""A confidence of 1 would give the other labels a log-probability of minus infinity."""


class TableArguments(BaseModel):
    """`teacher.engine_args` of the table."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    id_column: str = "id"
    """The column with the ids of `corpus.id_column`."""
    label_column: str = "label"
    """The column with the label, one of `task.labels`."""
    confidence_column: str | None = None
    """The column with the label's probability."""
    confidence: float = Field(default=0.9, gt=0, lt=1)
    """The probability of every label without such a column."""


class TableEngine:
    """Looks up the label by the row's id; rows that are not in the table are rejects.

    The label gets its confidence, the others share the rest equally. Ids are kept as 64-bit hashes:
    with label and confidence, a row takes 16 bytes.
    """

    by_id = True

    def __init__(self, teacher: TeacherConfig, task: TaskConfig) -> None:
        self._arguments = parse_arguments(TableArguments, teacher, "table")
        self._classes = {name: index for index, name in enumerate(task.label_names)}
        self._key_n, self._label_n, self._confidence_n = self._load(teacher)

    def label(
        self, texts: Sequence[str], ids: Sequence[Any], progress: Callable[[int], None]
    ) -> LabelBatch:
        """See Engine.label."""
        wanted_n = np.array([_key(value) for value in ids], dtype=np.uint64)
        place_n = np.minimum(np.searchsorted(self._key_n, wanted_n), len(self._key_n) - 1)
        found_n = self._key_n[place_n] == wanted_n
        refused = dict.fromkeys(np.flatnonzero(~found_n).tolist(), "no_label")
        refused |= {row: "no_id" for row, value in enumerate(ids) if value is None}
        confidence_n = self._confidence_n[place_n].astype(np.float64)
        classes = len(self._classes)
        logprobs_nc = np.repeat(np.log((1 - confidence_n) / (classes - 1))[:, None], classes, 1)
        logprobs_nc[np.arange(len(ids)), self._label_n[place_n]] = np.log(confidence_n)
        progress(len(texts))
        return LabelBatch(logprobs_nc.astype(np.float32), refused)

    def _load(self, teacher: TeacherConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(hash of the id, class, confidence), sorted by hash."""
        columns = self._arguments
        source = SourceConfig(
            path=teacher.model,
            text_column=columns.confidence_column or columns.label_column,
            label_column=columns.label_column,
            id_column=columns.id_column,
        )
        keys, labels, confidences = [], [], []
        for file in list_files(source, "teacher.model"):
            check_columns(file, source, "teacher.engine_args")
            for row in read_rows(file, source, 0, count_rows(file, source)):
                where = f"{file.uri}, row {row.number}"
                keys.append(_key(as_text(row.id)))
                labels.append(self._class_of(row, where))
                confidences.append(self._confidence_of(row, where))
        key_n = np.array(keys, dtype=np.uint64)
        if len(key_n) == 0:
            raise DataError(f"teacher.model: {teacher.model} contains no rows")
        order = np.argsort(key_n, kind="stable")
        duplicates = np.flatnonzero(np.diff(key_n[order]) == 0)
        if len(duplicates):
            raise DataError(
                f"teacher.model: {len(duplicates)} ids of {teacher.model} occur more than once, "
                f"such as that of row {order[duplicates[0] + 1]}"
            )
        return (
            key_n[order],
            np.array(labels, dtype=np.int32)[order],
            np.array(confidences, dtype=np.float32)[order],
        )

    def _class_of(self, row: SourceRow, where: str) -> int:
        name = as_text(row.gold)
        if name not in self._classes:
            raise DataError(
                f"{where}: label {name!r} is not one of task.labels ({', '.join(self._classes)})"
            )
        return self._classes[name]

    def _confidence_of(self, row: SourceRow, where: str) -> float:
        if self._arguments.confidence_column is None:
            return self._arguments.confidence
        text = as_text(row.text)
        try:
            confidence = float(text or "")
        except ValueError as error:
            raise DataError(f"{where}: confidence {text!r} is not a number") from error
        if not 0 < confidence <= 1:
            raise DataError(f"{where}: confidence must be in (0, 1], not {confidence}")
        return min(confidence, MAX_CONFIDENCE)


def _key(value: Any) -> int:
    """A 64-bit hash of an id; 1 and "1" are the same id, as in a CSV file."""
    return int.from_bytes(hashlib.blake2b(str(value).encode(), digest_size=8).digest(), "big")
