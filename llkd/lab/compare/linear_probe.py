"""A run on a frozen student: a linear probe, trained on embeddings in one process.

The epochs are those of llkd/distill/frozen_run.py, with the same validation split as in a run.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llkd.config.run import RunConfig
from llkd.core.holdout import Validation, draw_holdout
from llkd.core.metrics import evaluate
from llkd.core.refinement import fold_of
from llkd.core.statistics import class_statistics
from llkd.distill.epoch_stats import best_epoch
from llkd.distill.frozen_run import FrozenRun, signals_of
from llkd.distill.policy import policy_of
from llkd.lab.compare.embeddings import embeddings
from llkd.lab.compare.results import RunResult, probe_result, reliability
from llkd.store.arrays import matrix
from llkd.store.folder import Folder
from llkd.store.manifest import require_complete
from llkd.store.schema import GOLD, LOGPROBS, ROW, TEXT, RunLayout, shard_starts
from llkd.student.probe import fit_probe
from llkd.student.refiner import fit_refiner
from llkd.teacher.calibrate import calibrate


@dataclass(frozen=True)
class Problem:
    """The data shared by all runs: N labelled rows, M test rows, C classes."""

    corpus_nd: np.ndarray
    """Embeddings, standardised, float32, shape (N, D)."""
    teacher_nc: np.ndarray
    """The teacher's calibrated distributions, float32, shape (N, C)."""
    position_n: np.ndarray
    """Positions in the corpus, int64, shape (N,)."""
    shard_n: np.ndarray
    """The shard of each row, shape (N,)."""
    fold_n: np.ndarray
    """The fold of each row, shape (N,), in which its label is refined."""
    gold_n: np.ndarray | None
    """Gold classes, −1 for rows without gold, shape (N,); None for a corpus without gold. Never
    used in training."""
    test_md: np.ndarray
    """Embeddings of the test set, shape (M, D)."""
    test_gold_m: np.ndarray
    """Gold classes of the test set, shape (M,)."""


def read_problem(config: RunConfig) -> Problem:
    """Read a labelled run.

    Raises:
        IncompleteError: the run is not labelled.
        StudentError: the student cannot be loaded.
    """
    layout = RunLayout(config.run_dir)
    labels, rows = Folder(layout.labels("corpus")), Folder(layout.rows("corpus"))
    shards = range(len(require_complete(labels, "label").results["rows"]))
    starts = shard_starts(require_complete(rows, "ingest").results["rows"])
    calibration = calibrate(config)
    tables = [labels.read_shard(shard, [ROW, LOGPROBS]) for shard in shards]
    position = [starts[s] + tables[s][ROW].to_numpy().astype(np.int64) for s in shards]
    probs = [calibration.apply(matrix(table[LOGPROBS])).astype(np.float32) for table in tables]
    position_n = np.concatenate(position)
    corpus_nd = embeddings(config, "corpus")[position_n]
    mean_d, deviation_d = corpus_nd.mean(axis=0), corpus_nd.std(axis=0) + 1e-6
    gold_n = None if config.corpus.label_column is None else _gold(rows, shards)[position_n]
    tested = Folder(layout.rows("test"))
    test_shards = range(len(require_complete(tested, "ingest").results["rows"]))
    gold_m = _gold(tested, test_shards)
    return Problem(
        (corpus_nd - mean_d) / deviation_d,
        np.concatenate(probs),
        position_n,
        np.repeat(list(shards), [len(part) for part in position]),
        np.concatenate([_folds(rows, shard)[tables[shard][ROW].to_numpy()] for shard in shards]),
        gold_n,
        ((embeddings(config, "test") - mean_d) / deviation_d)[gold_m >= 0],
        gold_m[gold_m >= 0],
    )


def _folds(rows: Folder, shard: int) -> np.ndarray:
    """The folds of a shard's rows."""
    return fold_of(rows.read_shard(shard, [TEXT])[TEXT].to_pylist())


def _gold(rows: Folder, shards: Sequence[int]) -> np.ndarray:
    """Gold classes of the rows of some shards, −1 for rows without gold."""
    parts = [rows.read_shard(shard, [GOLD])[GOLD].fill_null(-1).to_numpy() for shard in shards]
    return np.concatenate(parts)


def fitted_probe(problem: Problem, seed: int) -> RunResult:
    """The baseline of softmax regression on the pseudo-labels of all rows, as in a run."""
    started = time.monotonic()
    classes = problem.teacher_nc.shape[1]
    targets_nc = np.eye(classes)[problem.teacher_nc.argmax(axis=1)]
    probe = fit_probe(problem.corpus_nd, targets_nc, seed)
    found = evaluate(probe.probabilities(problem.test_md), problem.test_gold_m)
    return probe_result(seed, found.accuracy, found.macro_f1, time.monotonic() - started)


class CheapRun(FrozenRun):
    """One policy, one seed."""

    def __init__(self, config: RunConfig, problem: Problem) -> None:
        self.problem = problem
        super().__init__(
            config, policy_of(config), problem.corpus_nd, self._labels(config), problem.position_n,
            self._held_out(config),
        )  # fmt: skip
        label_v = problem.teacher_nc.argmax(axis=1)[self.held_n]
        self.validation = Validation([""] * len(label_v), label_v, problem.teacher_nc.shape[1])

    def _labels(self, config: RunConfig) -> np.ndarray:
        """The distributions whose labels to train on, shape (N, C)."""
        problem, probs_nc = self.problem, self.problem.teacher_nc
        if not config.selection.refines:
            return probs_nc
        refiner, _ = fit_refiner(
            problem.corpus_nd, probs_nc, problem.fold_n, config.selection.beta,
            always=config.selection.refine is True, estimates_prior=config.estimates_prior,
        )  # fmt: skip
        return refiner.refine(problem.corpus_nd, probs_nc, problem.fold_n)

    def _held_out(self, config: RunConfig) -> np.ndarray:
        """Rows that are never trained on, bool, shape (N,)."""
        problem, fraction = self.problem, config.student.validation_fraction
        signals = signals_of(problem.teacher_nc, problem.position_n)
        if fraction == 0:
            return np.zeros(len(signals.label_n), dtype=bool)
        statistics = class_statistics(
            signals.label_n, signals.confidence_n, None, len(config.task.labels)
        )
        shards = int(problem.shard_n.max()) + 1
        holdout = draw_holdout(fraction, statistics, shards, config.seed)
        return holdout.rows(signals) & np.isin(problem.shard_n, sorted(holdout.shards))

    def run(self) -> RunResult:
        """Train all epochs and evaluate the best or the last of them."""
        started, epochs = time.monotonic(), self.config.student.epochs
        stats: list[dict[str, Any]] = []
        tested: list[np.ndarray] = []
        seen_n = np.zeros(len(self.held_n), dtype=bool)
        for epoch in range(epochs):
            found, chosen_n = self.epoch(epoch)
            seen_n[chosen_n] = True
            found["validation"] = None
            if self.held_n.any():
                probs_vc = self.head.probabilities(self.features_nd[self.held_n])
                found["validation"] = self.validation.measure(probs_vc)
            stats.append(found)
            tested.append(self.head.probabilities(self.problem.test_md))
        scores = [entry["validation"]["macro_f1"] for entry in stats if entry["validation"]]
        keeps_best = scores and self.config.student.keep == "best"
        best = best_epoch(scores) if keeps_best else epochs - 1
        evaluation = evaluate(tested[best], self.problem.test_gold_m)
        rows = len(seen_n)
        return RunResult(
            policy=self.config.selection.policy,
            seed=self.config.seed,
            accuracy=evaluation.accuracy,
            macro_f1=evaluation.macro_f1,
            row_visits_fraction=sum(entry["selected"] for entry in stats) / (rows * epochs),
            unique_rows_fraction=float(seen_n.mean()),
            seconds=time.monotonic() - started,
            epochs=tuple(stats),
            reliability=reliability(self.signals, self.problem.gold_n),
        )
