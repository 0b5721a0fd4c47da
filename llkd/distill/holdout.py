"""The validation split: rows held out of training, on which each epoch's student is measured.

They are rows with confident teacher labels; gold is not read here. The student's predictions for
them are stored, for a later comparison with gold if the corpus has any.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llkd.cluster.shard_tasks import run_on_shards, sum_over_shards
from llkd.config.run import RunConfig
from llkd.core.calibration import Calibration
from llkd.core.holdout import Holdout, Validation, draw_holdout
from llkd.core.policies.base import Signals
from llkd.core.prompts import CHARACTERS_PER_TOKEN
from llkd.core.statistics import ClassStatistics, class_statistics
from llkd.distill.pseudo_labels import pseudo_labels
from llkd.distill.selection import Selector
from llkd.errors import DataError
from llkd.store.arrays import fixed_lists, matrix
from llkd.store.folder import Folder
from llkd.store.schema import LABEL, LOGPROBS, PROBS, ROW, TEXT, RunLayout

RULE = "rule.json"


def make_validation(selector: Selector, calibration: Calibration) -> None:
    """Write the held-out rows of each shard that has any; existing shards are kept.

    Rows are drawn and labelled by the teacher alone: a refined label is in part the opinion of a linear
    probe, which would be measured by itself.

    Args:
        selector: of the run.
        calibration: of their labels; see `refine.with_estimated_prior`.

    Raises:
        DataError: the corpus is too small for a validation split.
    """
    config, fraction = selector.config, selector.config.student.validation_fraction
    if fraction == 0:
        return
    layout = RunLayout(config.run_dir)
    folder, labels = Folder(layout.validation), Folder(layout.labels("corpus"))
    max_characters = config.student.max_length * CHARACTERS_PER_TOKEN

    def signals_of(shard: int) -> tuple[np.ndarray, Signals]:
        logprobs = labels.read_shard(shard, [ROW, LOGPROBS])
        table = pseudo_labels(logprobs[ROW], calibration.apply(matrix(logprobs[LOGPROBS])), False)
        return selector.teacher_signals(shard, table)

    def count(shard: int) -> ClassStatistics:
        _, signals = signals_of(shard)
        return class_statistics(signals.label_n, signals.confidence_n, None, selector.classes)

    if not folder.exists(RULE):
        total = sum_over_shards(ClassStatistics, count, range(selector.shards))
        holdout = draw_holdout(fraction, total, selector.shards, config.seed)
        folder.write_json(RULE, holdout.to_json())
    holdout = Holdout.from_json(folder.read_json(RULE), config.seed)

    def work(shard: int) -> dict[str, Any]:
        row_n, signals = signals_of(shard)
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
            f"student.validation_fraction = {fraction} holds out no row of this corpus",
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
