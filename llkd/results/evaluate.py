"""Measure the teacher and the student against gold.

The teacher is measured on the corpus, if it has gold, and on the test set, both times with the
corpus's calibration. The student is measured by its stored predictions.
"""

from typing import Any

import numpy as np

from llkd.cluster import shard_tasks
from llkd.config.run import RunConfig
from llkd.core.calibration import Calibration
from llkd.core.metrics import Evaluation
from llkd.core.metrics import evaluate as compare_with_gold
from llkd.distill.epoch_stats import read_stats
from llkd.distill.holdout import read_predictions
from llkd.errors import DamageError
from llkd.results.gold import gold_of
from llkd.store.arrays import class_indices, matrix
from llkd.store.folder import Folder
from llkd.store.manifest import require_complete
from llkd.store.schema import CONFIDENCE, LABEL, LOGPROBS, PROBS, ROW, RunLayout


def evaluate(config: RunConfig, calibration: Calibration) -> dict[str, Evaluation]:
    """Measure wherever gold exists.

    Returns:
        The evaluations that apply, by `teacher.corpus`, `teacher.test`, `student.test` and
        `probe.test`.

    Raises:
        IncompleteError: the labels or the student's predictions of the test set are incomplete.
    """
    found: dict[str, Evaluation] = {}
    if config.corpus.label_column is not None:
        found["teacher.corpus"] = measure_teacher(config, "corpus", calibration)
    if config.test is not None:
        found["teacher.test"] = measure_teacher(config, "test", calibration)
        predicted = Folder(RunLayout(config.run_dir).test_predictions)
        found["student.test"] = measure_predictions(config, "test", predicted)
        probe = _measure_probe(config)
        if probe is not None:
            found["probe.test"] = probe
    return found


def _measure_probe(config: RunConfig) -> Evaluation | None:
    """Compare the linear probe's predictions of the test set with its gold; None where some are
    missing or damaged, as for a test set that was named after training."""
    layout = RunLayout(config.run_dir)
    folder = Folder(layout.probe_predictions)
    shards = len(require_complete(Folder(layout.rows("test")), "ingest").results["rows"])

    def probabilities(shard: int) -> tuple[np.ndarray, np.ndarray]:
        table = folder.read_shard(shard, [ROW, PROBS])
        return table[ROW].to_numpy(), matrix(table[PROBS])

    try:
        return _measure(layout, "test", shards, probabilities)
    except DamageError:
        return None


def measure_teacher(config: RunConfig, dataset: str, calibration: Calibration) -> Evaluation:
    """Compare the calibrated labels of a data set with its gold.

    Raises:
        IncompleteError: the labels are incomplete.
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
        IncompleteError: the predictions are incomplete.
    """
    predicted = require_complete(folder, "predict")
    names = config.task.label_names

    def probabilities(shard: int) -> tuple[np.ndarray, np.ndarray]:
        table = folder.read_shard(shard, [ROW, LABEL, CONFIDENCE])
        # The metrics read only the most probable label and its probability.
        probs_nc = np.zeros((len(table), len(names)), dtype=np.float32)
        class_n = class_indices(table[LABEL], names)
        probs_nc[np.arange(len(table)), class_n] = table[CONFIDENCE].to_numpy()
        return table[ROW].to_numpy(), probs_nc

    layout = RunLayout(config.run_dir)
    return _measure(layout, dataset, len(predicted.results["rows"]), probabilities)


def _measure(layout: RunLayout, dataset: str, shards: int, probabilities: Any) -> Evaluation:
    """Compare the rows that have gold with it, shard by shard."""

    def work(shard: int) -> Evaluation:
        row_n, probs_nc = probabilities(shard)
        known_n, gold_n = gold_of(layout, dataset, shard, row_n)
        return compare_with_gold(probs_nc[known_n], gold_n)

    total: Evaluation = shard_tasks.sum_over_shards(Evaluation, work, range(shards))
    return total


def measure_held_out(config: RunConfig, epochs: int) -> list[dict[str, Any]]:
    """The agreement of each epoch's student with the teacher on the validation split. Where the
    corpus has gold and the epoch's predictions still exist, also with gold, which chooses nothing."""
    layout, gold = RunLayout(config.run_dir), None
    if config.corpus.label_column is not None and Folder(layout.validation).shards():
        gold = _gold_held_out(layout)
    found = []
    for epoch in range(epochs):
        figures = dict(read_stats(config, epoch)["validation"])
        if gold is not None and Folder(layout.validation_of(epoch)).shards():
            known_v, gold_v = gold
            evaluation = compare_with_gold(read_predictions(config, epoch)[known_v], gold_v)
            figures["gold_accuracy"] = evaluation.accuracy
            figures["gold_macro_f1"] = evaluation.macro_f1
        found.append(figures)
    return found


def _gold_held_out(layout: RunLayout) -> tuple[np.ndarray, np.ndarray]:
    """The gold of the validation split, in the order of its rows; see `gold_of`."""
    held = Folder(layout.validation)
    parts = [
        gold_of(layout, "corpus", shard, held.read_shard(shard, [ROW])[ROW])
        for shard in sorted(held.shards())
    ]
    known, gold = zip(*parts, strict=True)
    return np.concatenate(known), np.concatenate(gold)
