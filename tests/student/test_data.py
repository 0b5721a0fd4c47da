"""How selected rows are divided among workers and batched."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from transformers import AutoTokenizer

from llkd.store.arrays import fixed_lists
from llkd.store.folder import Folder
from llkd.store.schema import SELECTION_SCHEMA, corpus_schema
from llkd.student.data import SelectedRows, portion
from tests.fakes import make_texts

SELECTED = [10, 0, 7, 25, 3]


@pytest.mark.parametrize("workers", [1, 2, 4, 7])
def test_every_row_goes_to_one_worker_and_all_get_the_same(workers: int) -> None:
    parts = [portion(SELECTED, rank, workers, seed=3) for rank in range(workers)]
    assert {part.rows for part in parts} == {45 // workers}
    assert {part.dropped for part in parts} == {45 % workers}
    taken = [
        (shard, row) for part in parts for shard, start, stop in part.pieces
        for row in range(start, stop)
    ]  # fmt: skip
    assert len(taken) == len(set(taken)) == 45 - 45 % workers
    assert all(row < SELECTED[shard] for shard, row in taken)


def test_the_order_of_shards_depends_on_the_seed() -> None:
    orders = {tuple(p[0] for p in portion(SELECTED, 0, 1, seed).pieces) for seed in range(8)}
    assert len(orders) > 3


def test_nothing_selected() -> None:
    assert portion([0, 0], 0, 2, seed=0).rows == 0


def reader_of(rows: Folder, selection: Folder, student: str, **options: Any) -> SelectedRows:
    tokenizer = AutoTokenizer.from_pretrained(student)
    return SelectedRows(rows, selection, tokenizer, batch_size=4, max_length=64, **options)


def rows_and_selection(tmp_path: Path) -> tuple[Folder, Folder, dict[str, tuple[int, float]]]:
    rows, selection = Folder(str(tmp_path / "rows")), Folder(str(tmp_path / "selection"))
    expected = {}
    for shard in range(3):
        texts = [f"{text} s{shard}" for text in make_texts(40, shard)[0]]
        chosen = list(range(shard, 40, 2))
        rows.write_shard(
            shard, pa.table({"row": range(40), "text": texts}, schema=corpus_schema(False, False))
        )
        weights = [0.5 + row / 40 for row in chosen]
        selection.write_shard(
            shard,
            pa.table(
                {"row": chosen, "label": [r % 3 for r in chosen], "weight": weights},
                schema=SELECTION_SCHEMA,
            ),
        )
        expected |= {texts[row]: (row % 3, w) for row, w in zip(chosen, weights, strict=True)}
    return rows, selection, expected


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_hold_each_selected_row_once_with_its_label_and_weight(
    tmp_path: Path, tiny_student: str, workers: int
) -> None:
    rows, selection, expected = rows_and_selection(tmp_path)
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_student)
    reader = reader_of(rows, selection, tiny_student)
    known = {tuple(tokenizer(text)["input_ids"]): value for text, value in expected.items()}
    seen = []
    for rank in range(workers):
        part = portion([20, 20, 19], rank, workers, seed=1)
        sizes = []
        for (batch,) in reader.steps(part, seed=1, weight_mean=2.0):
            sizes.append(len(batch.labels_b))
            for ids, mask, label, weight in zip(
                batch.inputs["input_ids"], batch.inputs["attention_mask"], batch.labels_b,
                batch.weights_b, strict=True,
            ):  # fmt: skip
                key = tuple(ids[mask.bool()].tolist())
                assert known[key][0] == int(label)
                assert known[key][1] / 2.0 == pytest.approx(float(weight))
                seen.append(key)
        assert sum(sizes) == 59 // workers
        assert sorted(sizes)[1:] == [4] * (len(sizes) - 1)
    assert len(seen) == len(set(seen)) == 59 - 59 % workers


def test_targets_go_with_their_rows(tmp_path: Path, tiny_student: str) -> None:
    rows, plain, _ = rows_and_selection(tmp_path)
    selection = Folder(str(tmp_path / "with_targets"))
    for shard in range(3):
        table = plain.read_shard(shard)
        probs = np.eye(3, dtype=np.float32)[table["label"].to_numpy()]
        selection.write_shard(shard, table.append_column("probs", fixed_lists(probs)))
    reader = reader_of(rows, selection, tiny_student, targets=True)
    for (batch,) in reader.steps(portion([20, 20, 19], 0, 1, seed=1), 1, 1.0):
        assert batch.targets_bc is not None
        assert batch.targets_bc.argmax(dim=1).tolist() == batch.labels_b.tolist()
        assert batch.targets_bc.shape == (len(batch.labels_b), 3)


def test_workers_meet_batches_of_like_length_at_the_same_step(
    tmp_path: Path, tiny_student: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llkd.student.data.WINDOW_BATCHES", 6)  # fewer than a worker's eight
    rows, selection, _ = rows_and_selection(tmp_path)
    reader = reader_of(rows, selection, tiny_student)
    parts = [portion([20, 20, 19], rank, 2, seed=1) for rank in range(2)]
    lengths = [
        [batch.inputs["input_ids"].shape[1] for (batch,) in reader.steps(part, 1, 1.0)]
        for part in parts
    ]
    gaps = np.abs(np.array(lengths[0]) - np.array(lengths[1]))
    assert gaps.mean() < np.std(lengths[0])


def test_few_rows_are_drawn_at_random_and_many_by_length(
    tmp_path: Path, tiny_student: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of one length would hold one class, where its texts have that length."""
    rows, selection, _ = rows_and_selection(tmp_path)
    reader, part = reader_of(rows, selection, tiny_student), portion([20, 20, 19], 0, 1, seed=1)

    def spread() -> float:
        """The mean over the batches of the deviation of their texts' lengths."""
        masks = [batch.inputs["attention_mask"] for (batch,) in reader.steps(part, 1, 1.0)]
        return float(np.mean([mask.sum(dim=1).double().std().item() for mask in masks[:-1]]))

    few = spread()
    monkeypatch.setattr("llkd.student.data.WINDOW_BATCHES", 14)  # one fewer than there are
    assert spread() < few / 2
