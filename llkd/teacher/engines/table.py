"""Labels from a table, joined to the corpus by its id column.

teacher: {engine: table, model: labels/*.parquet,
          engine_args: {id_column: id, label_column: label, confidence_column: confidence}}

or, with the distributions over the labels, engine_args: {id_column: id, probabilities: probs}.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from llkd.config.run import TaskConfig, TeacherConfig
from llkd.config.sources import SourceConfig
from llkd.errors import ConfigError, DataError
from llkd.ingest.files import list_files
from llkd.ingest.sources import SourceRow, as_text, check_columns, count_rows, read_rows
from llkd.teacher.engine import LabelBatch, parse_arguments

MAX_CONFIDENCE = 1 - 1e-6
"""A confidence of 1 would give the other labels a log-probability of minus infinity."""
MIN_PROBABILITY = 1e-6
"""For the same reason the smallest probability of a label."""
TOLERANCE = 0.01
"""By how much the probabilities of a row may differ from 1 in sum."""


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
    probabilities: str | dict[str, str] | None = None
    """In place of label and confidence: the column with the probabilities of all labels, a list in the
    order of `task.labels`, or {label: column} with a column for each label."""


class TableEngine:
    """Looks up the label by the row's id; rows that are not in the table are rejects.

    Without `probabilities` the label gets its confidence, and the others share the rest equally. Ids
    are kept as 64-bit hashes: with label and confidence a row takes 16 bytes, with C probabilities
    8 + 4 C.
    """

    by_id = True

    def __init__(self, teacher: TeacherConfig, task: TaskConfig) -> None:
        self._arguments = parse_arguments(TableArguments, teacher, "table")
        self._classes = {name: index for index, name in enumerate(task.label_names)}
        self._key_n, self._values = self._load(teacher)

    def label(
        self, texts: Sequence[str], ids: Sequence[Any], progress: Callable[[int], None]
    ) -> LabelBatch:
        """See Engine.label."""
        wanted_n = np.array([_key(value) for value in ids], dtype=np.uint64)
        place_n = np.minimum(np.searchsorted(self._key_n, wanted_n), len(self._key_n) - 1)
        found_n = self._key_n[place_n] == wanted_n
        refused = dict.fromkeys(np.flatnonzero(~found_n).tolist(), "no_label")
        refused |= {row: "no_id" for row, value in enumerate(ids) if value is None}
        values = self._values[place_n].astype(np.float64)
        if self._arguments.probabilities is None:
            values = self._spread(values)
        progress(len(texts))
        return LabelBatch(np.log(values).astype(np.float32), refused)

    def _spread(self, label_and_confidence_n2: np.ndarray) -> np.ndarray:
        """The distributions of labels and their confidences, shape (N, C)."""
        label_n, confidence_n = label_and_confidence_n2.T
        classes = len(self._classes)
        probs_nc = np.repeat(((1 - confidence_n) / (classes - 1))[:, None], classes, 1)
        probs_nc[np.arange(len(label_n)), label_n.astype(int)] = confidence_n
        return probs_nc

    def _columns(self) -> list[str]:
        """The columns of the probabilities.

        Raises:
            ConfigError: a label has none.
        """
        named = self._arguments.probabilities
        if not isinstance(named, dict):
            return [] if named is None else [named]
        if named.keys() != self._classes.keys():
            raise ConfigError(
                f"teacher.engine_args.probabilities: has columns for {', '.join(named)}, but "
                f"task.labels are {', '.join(self._classes)}",
                "Name one column for each label.",
            )
        return [named[label] for label in self._classes]

    def _load(self, teacher: TeacherConfig) -> tuple[np.ndarray, np.ndarray]:
        """(hash of the id, class and confidence or the probabilities), sorted by hash."""
        columns, others = self._arguments, self._columns()
        source = SourceConfig(
            path=teacher.model,
            text_column=columns.id_column if others
            else columns.confidence_column or columns.label_column,
            label_column=None if others else columns.label_column,
            id_column=columns.id_column,
        )  # fmt: skip
        keys, values = [], []
        for file in list_files(source, "teacher.model"):
            check_columns(file, source, "teacher.engine_args", others)
            for row in read_rows(file, source, 0, count_rows(file, source), others):
                where = f"{file.uri}, row {row.number}"
                keys.append(_key(as_text(row.id)))
                if others:
                    values.append(self._probabilities_of(row, where))
                else:
                    values.append([self._class_of(row, where), self._confidence_of(row, where)])
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
        return key_n[order], np.array(values, dtype=np.float32)[order]

    def _probabilities_of(self, row: SourceRow, where: str) -> list[float]:
        """The distribution of a row, no probability below MIN_PROBABILITY."""
        values: Any = row.others
        if isinstance(self._arguments.probabilities, str):
            (values,) = row.others
        try:
            found = [float(as_text(value) or "") for value in values]
        except (TypeError, ValueError) as error:
            raise DataError(f"{where}: the probabilities {values!r} are not numbers") from error
        if len(found) != len(self._classes):
            raise DataError(
                f"{where}: has {len(found)} probabilities, but there are {len(self._classes)} "
                "task.labels"
            )
        if not (min(found) >= 0 and abs(sum(found) - 1) <= TOLERANCE):
            raise DataError(f"{where}: the probabilities {found} are not a distribution")
        floored = [max(value, MIN_PROBABILITY) for value in found]
        return [value / sum(floored) for value in floored]

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
