"""A run on a frozen student: a linear probe, trained on embeddings in one process.

The epochs follow llkd/distill/worker.py, with the same policies, statistics, thresholds, validation
split, losses and training steps, but without Ray and without training the encoder.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from llkd.config.run import RunConfig
from llkd.core.holdout import Validation, draw_holdout
from llkd.core.metrics import evaluate
from llkd.core.policies import Choice, Policy, Signals, select_rows
from llkd.core.refinement import fold_of
from llkd.core.statistics import class_statistics, on_grid
from llkd.core.thresholds import Thresholds
from llkd.core.uncertainty import MEASURES
from llkd.distill.epoch_stats import best_epoch
from llkd.distill.policy import policy_of
from llkd.distill.selection import epoch_stats
from llkd.errors import StudentError
from llkd.lab.compare.embeddings import embeddings
from llkd.lab.compare.results import RunResult, probe_result, reliability
from llkd.store.arrays import matrix
from llkd.store.folder import Folder
from llkd.store.manifest import require_complete
from llkd.store.schema import GOLD, LOGPROBS, ROW, TEXT, RunLayout, shard_starts
from llkd.student.data import Batch
from llkd.student.probe import fit_probe
from llkd.student.refiner import fit_refiner
from llkd.student.training import Schedule, Trainer
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


def _signals(probs_nc: np.ndarray, position_n: np.ndarray) -> Signals:
    """The signals of labels with these distributions, shape (N, C)."""
    return Signals(
        probs_nc.argmax(axis=1), on_grid(probs_nc.max(axis=1)), None, position_n, None, probs_nc
    )


class Head(torch.nn.Module):
    """A linear layer, or two with tanh between them, with dropout before each."""

    def __init__(self, inputs: int, hidden: int, classes: int, dropout: float) -> None:
        super().__init__()
        sizes = [inputs, hidden, classes] if hidden else [inputs, classes]
        layers: list[torch.nn.Module] = []
        for number, (size, following) in enumerate(pairwise(sizes)):
            layers += [torch.nn.Tanh()] if number else []
            layers += [torch.nn.Dropout(dropout), torch.nn.Linear(size, following)]
        self.layers = torch.nn.Sequential(*layers)

    def forward(self, features: torch.Tensor) -> Any:
        """An object with `logits`, shape (B, C), like the output of a transformers model."""
        return SimpleNamespace(logits=self.layers(features))

    def probabilities(self, features_nd: np.ndarray, passes: int = 0) -> np.ndarray:
        """Distributions, float32, shape (N, C): the mean of `passes` with dropout; of a single one
        without, if 0."""
        self.train(passes > 0)
        features = torch.from_numpy(features_nd)
        with torch.inference_mode():
            found = [torch.softmax(self(features).logits, dim=-1) for _ in range(max(passes, 1))]
        return np.asarray(torch.stack(found).mean(dim=0).numpy())


class CheapRun:
    """One policy, one seed."""

    def __init__(self, config: RunConfig, problem: Problem) -> None:
        self.config, self.problem = config, problem
        cheap, classes = config.cheap, len(config.task.labels)
        torch.manual_seed(config.seed)
        self.head = Head(problem.corpus_nd.shape[1], cheap.hidden, classes, cheap.dropout)
        rates = {"learning_rate": cheap.learning_rate, "head_learning_rate": cheap.learning_rate}
        student = config.student.model_copy(update=rates)
        self.trainer = Trainer(self.head, student, torch.device("cpu"), bfloat16=False)
        self._taken = 0  # optimiser steps
        self.policy: Policy = policy_of(config)
        probs_nc = problem.teacher_nc
        if config.selection.refines:
            refiner, _ = fit_refiner(
                problem.corpus_nd, probs_nc, problem.fold_n, config.selection.beta,
                always=config.selection.refine is True, estimates_prior=config.estimates_prior,
            )  # fmt: skip
            probs_nc = refiner.refine(problem.corpus_nd, probs_nc, problem.fold_n)
        self.signals = _signals(probs_nc, problem.position_n)
        self.held_n = self._held_out()
        label_v = problem.teacher_nc.argmax(axis=1)[self.held_n]
        self.validation = Validation([""] * len(label_v), label_v, classes)

    def _held_out(self) -> np.ndarray:
        """Rows that are never trained on, bool, shape (N,)."""
        problem, fraction = self.problem, self.config.student.validation_fraction
        signals = _signals(problem.teacher_nc, problem.position_n)
        if fraction == 0:
            return np.zeros(len(signals.label_n), dtype=bool)
        holdout = draw_holdout(
            fraction,
            class_statistics(
                signals.label_n, signals.confidence_n, None, len(self.config.task.labels)
            ),
            int(problem.shard_n.max()) + 1,
            self.config.seed,
        )
        return holdout.rows(signals) & np.isin(problem.shard_n, sorted(holdout.shards))

    def run(self) -> RunResult:
        """Train all epochs and evaluate the best or the last of them."""
        started, previous, epochs = time.monotonic(), None, self.config.student.epochs
        stats: list[dict[str, Any]] = []
        signals = self.signals
        tested: list[np.ndarray] = []
        seen_n = np.zeros(len(self.held_n), dtype=bool)
        for epoch in range(epochs):
            signals = self._scored()
            found, previous, chosen_n = self._epoch(epoch, signals, previous)
            seen_n[chosen_n] = True
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
            reliability=reliability(signals, self.problem.gold_n),
        )

    def _scored(self) -> Signals:
        """The signals, with the current student's uncertainty if the policy uses it."""
        if not self.policy.uses_uncertainty:
            return self.signals
        probs_nc = self.head.probabilities(self.problem.corpus_nd, self.config.selection.mc_dropout)
        uncertainty_n = on_grid(MEASURES[self.config.selection.uncertainty](probs_nc))
        student_nc = probs_nc.astype(np.float16)
        return replace(self.signals, uncertainty_n=uncertainty_n, student_nc=student_nc)

    def _epoch(
        self, epoch: int, signals: Signals, previous: Thresholds | None
    ) -> tuple[dict[str, Any], Thresholds, np.ndarray]:
        """Select and train; returns (stats, thresholds, rows trained on)."""
        classes = len(self.config.task.labels)
        statistics = class_statistics(
            signals.label_n, signals.confidence_n, signals.uncertainty_n, classes
        )
        state, [choice] = select_rows(
            self.policy, epoch, [signals], statistics, previous, [self.held_n]
        )
        chosen_n = np.flatnonzero(choice.weight_n)
        if len(chosen_n) == 0:
            raise StudentError(
                f"Epoch {epoch + 1} selected no row.",
                "Use another selection.policy, or raise selection.class_floor.",
            )
        found = epoch_stats(
            self.config, epoch, state.statistics, choice.counts(classes), state.thresholds,
            signals.uncertainty_n is not None,
        )  # fmt: skip
        found["training_loss"] = self._train(epoch, chosen_n, choice)
        found["validation"] = None
        if self.held_n.any():
            probs_vc = self.head.probabilities(self.problem.corpus_nd[self.held_n])
            found["validation"] = self.validation.measure(probs_vc)
        return found, state.thresholds, chosen_n

    def _train(self, epoch: int, chosen_n: np.ndarray, choice: Choice) -> float:
        """Train on the selected rows; returns the mean loss."""
        seed, size = self.config.seed * 1009 + epoch, self.config.student.batch_size
        passes = self.config.cheap.passes
        torch.manual_seed(seed * 65537)  # dropout
        random = np.random.default_rng(seed)
        scale = float(choice.weight_n[chosen_n].mean())

        def steps() -> Iterator[list[Batch]]:
            for _ in range(passes):
                order = random.permutation(chosen_n)
                for start in range(0, len(order), size):
                    yield [self._batch(order[start : start + size], choice, scale)]

        count = passes * -(-len(chosen_n) // size)
        student = self.config.student
        schedule = Schedule(self._taken, count, student.epochs - epoch, student.warmup_fraction)
        total, rows = self.trainer.train(steps(), schedule)
        self._taken += count
        return total / rows

    def _batch(self, row_b: np.ndarray, choice: Choice, scale: float) -> Batch:
        """A batch of rows, their weights divided by `scale`."""
        targets_bc = None
        if self.config.student.loss.uses_targets:
            assert choice.target_nc is not None
            targets_bc = torch.from_numpy(choice.target_nc[row_b].astype(np.float32))
        return Batch(
            {"features": torch.from_numpy(self.problem.corpus_nd[row_b])},
            torch.from_numpy(choice.label_n[row_b].astype(np.int64)),
            torch.from_numpy((choice.weight_n[row_b] / scale).astype(np.float32)),
            targets_bc,
        )
