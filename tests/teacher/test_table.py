"""Labels from a table."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
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


def with_distributions(file: Path, probabilities: Any) -> TableEngine:
    settings = {"probabilities": probabilities}
    return TableEngine(TeacherConfig(model=str(file), engine="table", engine_args=settings), TASK)


BY_LABEL = {"trade": "p_trade", "sport": "p_sport", "tech": "p_tech"}


def test_distributions_come_from_a_list_or_a_column_for_each_label(tmp_path: Path) -> None:
    expected = np.array([[0.2, 0.7, 0.1], [1.0, 0.0, 0.0]])
    ids, lists = pa.array([3, 8]), pa.array(expected.tolist())
    pq.write_table(pa.table({"id": ids, "probs": lists}), tmp_path / "lists.parquet")
    (tmp_path / "lists.jsonl").write_text(
        '{"id": 3, "probs": [0.2, 0.7, 0.1]}\n{"id": 8, "probs": [1, 0, 0]}\n'
    )
    (tmp_path / "columns.csv").write_text("id,p_sport,p_tech,p_trade\n3,0.2,0.7,0.1\n8,1.0,0.0,0\n")
    for name, probabilities in (
        ("lists.parquet", "probs"), ("lists.jsonl", "probs"), ("columns.csv", BY_LABEL)
    ):  # fmt: skip
        table = with_distributions(tmp_path / name, probabilities)
        batch = table.label(["a"] * 3, [8, 3, 9], lambda done: None)
        assert batch.refused == {2: "no_label"}
        assert np.exp(batch.logprobs_nc[:2]) == pytest.approx(expected[::-1], abs=3e-6)
        assert np.isfinite(batch.logprobs_nc).all()


@pytest.mark.parametrize(
    ("probs", "message"),
    [
        ("[0.5, 0.5]", "row 0: has 2 probabilities, but there are 3 task.labels"),
        ("[0.5, 0.5, 0.5]", r"\[0.5, 0.5, 0.5\] are not a distribution"),
        ("[1.5, -0.5, 0.0]", "are not a distribution"),
        ('[1, 0, "x"]', "are not numbers"),
        ("null", "the probabilities None are not numbers"),
        ("[NaN, 0.5, 0.5]", "are not a distribution"),
    ],
)
def test_a_wrong_distribution_is_told_with_its_row(
    tmp_path: Path, probs: str, message: str
) -> None:
    file = tmp_path / "labels.jsonl"
    file.write_text(f'{{"id": 3, "probs": {probs}}}\n')
    with pytest.raises(DataError, match=message):
        with_distributions(file, "probs")


def test_columns_of_probabilities_that_do_not_exist_are_named(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text("id,p_sport,p_tech\n3,0.5,0.5\n")
    with pytest.raises(DataError, match="has no column 'p_trade'"):
        with_distributions(file, BY_LABEL)
    with pytest.raises(ConfigError, match=r"has columns for sport, but.*one column for each label"):
        with_distributions(file, {"sport": "p_sport"})
