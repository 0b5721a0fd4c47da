"""The validation split: rows held out of training, on which each epoch's student is measured.

They are rows with confident teacher labels; gold is not read here. The student's predictions for
them are stored, for a later comparison with gold if the corpus has any.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llkd.cluster.shard_tasks import run_on_shards
from llkd.config.run import RunConfig
from llkd.core.holdout import Holdout, Validation, draw_holdout
from llkd.core.prompts import CHARACTERS_PER_TOKEN
from llkd.distill.pseudo_labels import teacher_statistics
from llkd.distill.selection import Selector
from llkd.errors import DataError
from llkd.store.arrays import fixed_lists, matrix
from llkd.store.folder import Folder
from llkd.store.schema import LABEL, PROBS, ROW, TEXT, RunLayout


def holdout_of(config: RunConfig, selector: Selector) -> Holdout | None:
    """The rule that determines the held-out rows; None without validation split."""
    return draw_holdout(
        config.student.validation_fraction,
        teacher_statistics(selector.config),
        selector.shards,
        config.seed,
    )


def make_validation(config: RunConfig, selector: Selector) -> None:
    """Write the held-out rows of each shard that has any; existing shards are kept.

    Raises:
        DataError: the corpus is too small for a validation split.
    """
    holdout = holdout_of(config, selector)
    if holdout is None:
        return
    layout = RunLayout(config.run_dir)
    folder = Folder(layout.validation)
    max_characters = config.student.max_length * CHARACTERS_PER_TOKEN

    def work(shard: int) -> dict[str, Any]:
        row_n, signals = selector.signals(shard, None)
        held_n = np.flatnonzero(holdout.rows(signals))
        texts = Folder(layout.rows("corpus")).read_shard(shard, [TEXT])[TEXT]
        held_texts = texts.take(pa.array(row_n[held_n]))
        columns = {
            ROW: row_n[held_n],
            LABEL: signals.label_n[held_n],
            TEXT: pc.utf8_slice_codeunits(held_texts, 0, max_characters),
        }
        folder.write_shard(shard, pa.table(columns))
        return {}

    missing = sorted(holdout.shards - folder.shards())
    for _ in run_on_shards(work, missing):
        pass
    if not any(folder.shard_rows(shard) for shard in sorted(holdout.shards)):
        raise DataError(
            f"student.validation_fraction = {config.student.validation_fraction} holds "
            "out no row of this corpus",
            "Raise it, or set it to 0.",
        )


def read_validation(config: RunConfig) -> Validation | None:
    """The validation split, in the order of its shards; None if there is none."""
    if config.student.validation_fraction == 0:
        return None
    folder = Folder(RunLayout(config.run_dir).validation)
    table = pa.concat_tables(
        folder.read_shard(shard, [TEXT, LABEL]) for shard in sorted(folder.shards())
    )
    return Validation(table[TEXT].to_pylist(), table[LABEL].to_numpy(), len(config.task.labels))


def write_predictions(config: RunConfig, epoch: int, probs_vc: np.ndarray) -> None:
    """Write the predictions of an epoch's student for the held-out rows."""
    table = pa.table({PROBS: fixed_lists(probs_vc)})
    Folder(RunLayout(config.run_dir).validation_of(epoch)).write_shard(0, table)


def read_predictions(config: RunConfig, epoch: int) -> np.ndarray:
    """The inverse of `write_predictions`: shape (V, C)."""
    folder = Folder(RunLayout(config.run_dir).validation_of(epoch))
    return matrix(folder.read_shard(0, [PROBS])[PROBS])
