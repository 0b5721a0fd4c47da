"""Labels from a table."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llkd.config.run import TaskConfig, TeacherConfig
from llkd.errors import ConfigError, DataError
from llkd.teacher.engines.table import TableEngine

TASK = TaskConfig(instruction="?", labels=["sport", "tech", "trade"])  # type: ignore[arg-type]


def engine(path: Path, rows: str, **arguments: Any) -> TableEngine:
    file = path / "labels.csv"
    file.write_text("id,label,confidence\n" + rows)
    settings = {"confidence_column": "confidence", **arguments}
    return TableEngine(TeacherConfig(model=str(file), engine="table", engine_args=settings), TASK)


def test_labels_are_joined_by_id_and_misses_are_refused(tmp_path: Path) -> None:
    table = engine(tmp_path, "7,tech,0.8\n3,sport,1.0\nx y,trade,0.4\n")
    batch = table.label(["a"] * 5, [3, "x y", "8", 7, None], lambda done: None)
    assert batch.refused == {2: "no_label", 4: "no_id"}
    assert np.exp(batch.logprobs_nc[[1, 3]]) == pytest.approx(
        np.array([[0.3, 0.3, 0.4], [0.1, 0.8, 0.1]])
    )
    assert np.exp(batch.logprobs_nc[0]) == pytest.approx([1, 0, 0], abs=2e-6)
    assert np.isfinite(batch.logprobs_nc[0]).all()


def test_without_a_column_every_label_is_as_sure(tmp_path: Path) -> None:
    table = engine(tmp_path, "7,tech,0.8\n", confidence_column=None, confidence=0.6)
    batch = table.label(["a"], [7], lambda done: None)
    assert np.exp(batch.logprobs_nc) == pytest.approx(np.array([[0.2, 0.6, 0.2]]))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("7,music,0.8\n", r"row 0: label 'music' is not one of task.labels"),
        ("7,tech,1.5\n", r"confidence must be in \(0, 1\], not 1.5"),
        ("7,tech,high\n", "confidence 'high' is not a number"),
        ("7,tech,0.5\n7,sport,0.5\n", "1 ids of .* occur more than once"),
        ("", "contains no rows"),
    ],
)
def test_a_wrong_table_is_told_with_its_row(tmp_path: Path, rows: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        engine(tmp_path, rows)


def test_wrong_columns_and_arguments_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no column 'key'"):
        engine(tmp_path, "7,tech,0.8\n", id_column="key")
    with pytest.raises(ConfigError, match="id_colunm"):
        engine(tmp_path, "7,tech,0.8\n", id_colunm="id")
