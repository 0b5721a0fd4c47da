"""Pseudo-labels: the calibrated teacher's most probable label of each row, and its confidence.

They are computed once, into sidecars from which all epochs select. Where they are refined first,
llkd/distill/refine.py writes the sidecars.
"""

import numpy as np
import pyarrow as pa

from llkd.cluster.integrity import record_shards
from llkd.cluster.shard_tasks import sum_over_shards
from llkd.config.run import RunConfig
from llkd.core.calibration import Calibration
from llkd.core.refinement import with_gold
from llkd.core.statistics import ClassStatistics, class_statistics, on_grid
from llkd.store.arrays import fixed_lists, matrix
from llkd.store.folder import Folder
from llkd.store.schema import (
    CONFIDENCE,
    LABEL,
    LOGPROBS,
    PROBS,
    PSEUDO_LABELS_SCHEMA,
    ROW,
    TEXT,
    RunLayout,
    with_probs,
)
from llkd.teacher.gold import Gold, told_gold

STATISTICS = "statistics.json"


def make_pseudo_labels(
    config: RunConfig, shards: int, calibration: Calibration, with_distributions: bool
) -> None:
    """Write the pseudo-labels of each shard, and their statistics; existing shards are kept.

    Args:
        config: the run.
        shards: of its corpus.
        calibration: of the corpus's labels.
        with_distributions: see `pseudo_labels`.
    """
    layout = RunLayout(config.run_dir)
    folder, labels = Folder(layout.pseudo_labels), Folder(layout.labels("corpus"))
    if folder.exists(STATISTICS):
        return
    gold, texts = trained_gold(config), Folder(layout.rows("corpus"))
    existing, classes = folder.shards(), len(config.task.labels)

    def work(shard: int) -> ClassStatistics:
        if shard in existing:
            table = folder.read_shard(shard, [LABEL, CONFIDENCE])
        else:
            logprobs = labels.read_shard(shard, [ROW, LOGPROBS])
            probs_nc = calibration.apply(matrix(logprobs[LOGPROBS]))
            if gold is not None:
                labelled = texts.read_shard(shard, [TEXT])[TEXT].take(logprobs[ROW])
                probs_nc = with_gold(probs_nc, gold.of(labelled.to_pylist()))
            table = pseudo_labels(logprobs[ROW], probs_nc, with_distributions)
            folder.write_shard(shard, table)
        label_n, confidence_n = table[LABEL].to_numpy(), table[CONFIDENCE].to_numpy()
        return class_statistics(label_n, confidence_n, None, classes)

    total = sum_over_shards(ClassStatistics, work, range(shards))
    record_shards(folder)
    folder.write_json(STATISTICS, total.to_json())


def trained_gold(config: RunConfig) -> Gold | None:
    """The rows labelled by hand whose labels the student learns; None if there are none."""
    return told_gold(config) if config.gold is not None and config.gold.train else None


def pseudo_labels(
    rows: pa.ChunkedArray, probs_nc: np.ndarray, with_distributions: bool
) -> pa.Table:
    """Label and confidence of each row, on request with the distribution.

    Args:
        rows: the row numbers.
        probs_nc: their distributions, shape (N, C).
        with_distributions: whether the policy or the loss reads the distributions.
    """
    columns, schema = {
        ROW: rows,
        LABEL: probs_nc.argmax(axis=1).astype(np.int32),
        CONFIDENCE: on_grid(probs_nc.max(axis=1)),
    }, PSEUDO_LABELS_SCHEMA  # fmt: skip
    if with_distributions:
        columns[PROBS] = fixed_lists(probs_nc)
        schema = with_probs(schema, pa.float32(), probs_nc.shape[1])
    return pa.table(columns, schema=schema)


def teacher_statistics(config: RunConfig) -> ClassStatistics:
    """Counts and confidence by class over the corpus; the same in every epoch."""
    folder = Folder(RunLayout(config.run_dir).pseudo_labels)
    return ClassStatistics.from_json(folder.read_json(STATISTICS))
