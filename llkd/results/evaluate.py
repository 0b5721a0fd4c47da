"""How good teacher and student are, where there is gold to measure by.

The teacher is measured on the corpus (where it has gold) and on the test set, both with the
corpus's calibration; the student by the labels that it gave.
"""

from typing import Any

import numpy as np
import pyarrow as pa

from llkd.cluster import shard_tasks
from llkd.config.run import RunConfig
from llkd.core.calibration import Calibration
from llkd.core.metrics import Evaluation
from llkd.core.metrics import evaluate as count
from llkd.distill.epoch_stats import read_stats
from llkd.distill.holdout import read_predictions
from llkd.store.arrays import class_indices, matrix
from llkd.store.folder import Folder
from llkd.store.manifest import require_complete
from llkd.store.schema import CONFIDENCE, GOLD, LABEL, LOGPROBS, ROW, RunLayout


def evaluate(config: RunConfig, calibration: Calibration) -> dict[str, Evaluation]:
    """Measure what can be measured.

    Returns:
        By `teacher.corpus`, `teacher.test` and `student.test`, those that apply.

    Raises:
        IncompleteError: the labels, or the student's predictions of the test set, are not there.
    """
    found: dict[str, Evaluation] = {}
    if config.corpus.label_column is not None:
        found["teacher.corpus"] = measure_teacher(config, "corpus", calibration)
    if config.test is not None:
        found["teacher.test"] = measure_teacher(config, "test", calibration)
        predicted = Folder(RunLayout(config.run_dir).test_predictions)
        found["student.test"] = measure_predictions(config, "test", predicted)
    return found


def measure_teacher(config: RunConfig, dataset: str, calibration: Calibration) -> Evaluation:
    """Compare the calibrated labels of a data set with its gold.

    Raises:
        IncompleteError: they are not there.
    """
    layout = RunLayout(config.run_dir)
    folder = Folder(layout.labels(dataset))
    labelled = require_complete(folder, "label")

    def probabilities(shard: int) -> tuple[np.ndarray, np.ndarray]:
        table = folder.read_shard(shard, [ROW, LOGPROBS])
        return table[ROW].to_numpy(), calibration.apply(matrix(table[LOGPROBS]))

    return _measure(layout, dataset, len(labelled.results["rows"]), probabilities)


def measure_predictions(config: RunConfig, dataset: str, folder: Folder) -> Evaluation:
    """Compare the student's predictions of a data set with its gold.

    Raises:
        IncompleteError: not all of the predictions are there.
    """
    predicted = require_complete(folder, "predict")
    names = config.task.label_names

    def probabilities(shard: int) -> tuple[np.ndarray, np.ndarray]:
        table = folder.read_shard(shard, [ROW, LABEL, CONFIDENCE])
        # The label and its probability are all that is measured.
        probs_nc = np.zeros((len(table), len(names)), dtype=np.float32)
        class_n = class_indices(table[LABEL], names)
        probs_nc[np.arange(len(table)), class_n] = table[CONFIDENCE].to_numpy()
        return table[ROW].to_numpy(), probs_nc

    layout = RunLayout(config.run_dir)
    return _measure(layout, dataset, len(predicted.results["rows"]), probabilities)


def _measure(layout: RunLayout, dataset: str, shards: int, probabilities: Any) -> Evaluation:
    """Compare with gold, shard by shard; rows without gold are left out."""
    rows = Folder(layout.rows(dataset))

    def work(shard: int) -> Evaluation:
        row_n, probs_nc = probabilities(shard)
        return _against(probs_nc, rows.read_shard(shard, [GOLD])[GOLD].take(pa.array(row_n)))

    total: Evaluation = shard_tasks.sum_over_shards(Evaluation, work, range(shards))
    return total


def _against(probs_nc: np.ndarray, gold_n: pa.ChunkedArray) -> Evaluation:
    known_n = gold_n.is_valid().to_numpy()
    return count(probs_nc[known_n], gold_n.drop_null().to_numpy())


def measure_held_out(config: RunConfig, epochs: int) -> list[dict[str, Any]]:
    """For each epoch's student its agreement with the teacher on the rows held out of training,
    and, beside it, with gold where the corpus has any and its predictions are still there. Nothing
    was chosen by gold."""
    gold_v = None if config.corpus.label_column is None else _gold_held_out(config)
    found = []
    for epoch in range(epochs):
        figures = dict(read_stats(config, epoch)["validation"])
        if gold_v is not None and Folder(RunLayout(config.run_dir).validation_of(epoch)).shards():
            evaluation = _against(read_predictions(config, epoch), gold_v)
            figures["gold_accuracy"] = evaluation.accuracy
            figures["gold_macro_f1"] = evaluation.macro_f1
        found.append(figures)
    return found


def _gold_held_out(config: RunConfig) -> pa.ChunkedArray:
    """Gold of the rows held out, in their order."""
    layout = RunLayout(config.run_dir)
    held, rows = Folder(layout.validation), Folder(layout.rows("corpus"))
    parts = [
        rows.read_shard(shard, [GOLD])[GOLD].take(held.read_shard(shard, [ROW])[ROW])
        for shard in sorted(held.shards())
    ]
    return pa.chunked_array([chunk for part in parts for chunk in part.chunks], pa.int32())
