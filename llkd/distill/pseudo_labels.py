"""Pseudo-labels: the teacher's log-probabilities, calibrated once for all epochs.

A sidecar holds each row's most probable label and its confidence, and the whole distribution where
the policy or the loss needs it. The statistics by class are merged over all shards.
"""

import numpy as np
import pyarrow as pa

from llkd.cluster.integrity import write_record
from llkd.cluster.shard_tasks import sum_over_shards
from llkd.config.run import RunConfig
from llkd.core.calibration import Calibration
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
    RunLayout,
    shard_name,
    with_probs,
)

STATISTICS = "statistics.json"


def make_pseudo_labels(
    config: RunConfig, shards: int, calibration: Calibration, keep_probs: bool
) -> None:
    """Write the pseudo-labels of the shards that lack them, and the statistics of all.

    Args:
        config: the run.
        shards: of the corpus.
        calibration: of the corpus's labels.
        keep_probs: whether the distributions are kept beside the labels.
    """
    layout, classes = RunLayout(config.run_dir), len(config.task.labels)
    folder, labels = Folder(layout.pseudo_labels), Folder(layout.labels("corpus"))
    if folder.exists(STATISTICS):
        return
    existing = folder.shards()

    def work(shard: int) -> ClassStatistics:
        if shard in existing:
            table = folder.read_shard(shard, [LABEL, CONFIDENCE])
        else:
            table = pseudo_labels(
                labels.read_shard(shard, [ROW, LOGPROBS]), calibration, keep_probs
            )
            folder.write_shard(shard, table)
        label_n, confidence_n = table[LABEL].to_numpy(), table[CONFIDENCE].to_numpy()
        return class_statistics(label_n, confidence_n, None, classes)

    total = sum_over_shards(ClassStatistics, work, range(shards))
    write_record(folder, dict.fromkeys(map(shard_name, range(shards))))
    folder.write_json(STATISTICS, total.to_json())


def pseudo_labels(labels: pa.Table, calibration: Calibration, keep_probs: bool) -> pa.Table:
    """The pseudo-labels of one shard of raw labels; see PSEUDO_LABELS_SCHEMA."""
    probs_nc = calibration.apply(matrix(labels[LOGPROBS]))
    columns, schema = {
        ROW: labels[ROW],
        LABEL: probs_nc.argmax(axis=1).astype(np.int32),
        CONFIDENCE: on_grid(probs_nc.max(axis=1)),
    }, PSEUDO_LABELS_SCHEMA  # fmt: skip
    if keep_probs:
        columns[PROBS] = fixed_lists(probs_nc)
        schema = with_probs(schema, pa.float32(), probs_nc.shape[1])
    return pa.table(columns, schema=schema)


def read_statistics(config: RunConfig) -> ClassStatistics:
    """The statistics of the pseudo-labels of all shards."""
    folder = Folder(RunLayout(config.run_dir).pseudo_labels)
    return ClassStatistics.from_json(folder.read_json(STATISTICS))
