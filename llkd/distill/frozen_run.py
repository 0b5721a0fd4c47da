"""A run on a frozen student: a head, trained on features in one process.

The epochs follow llkd/distill/worker.py, with the same policies, statistics, thresholds, losses and
training steps, but without Ray and without training the encoder.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from llkd.config.run import RunConfig
from llkd.core.policies.base import Choice, Policy, Signals
from llkd.core.policies.driver import select_rows
from llkd.core.selection_stats import selection_stats
from llkd.core.statistics import class_statistics, on_grid
from llkd.core.thresholds import Thresholds
from llkd.core.uncertainty import MEASURES
from llkd.errors import StudentError
from llkd.student.data import Batch
from llkd.student.training import Schedule, Trainer


def signals_of(probs_nc: np.ndarray, position_n: np.ndarray) -> Signals:
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


class FrozenRun:
    """One policy, one seed; `config.cheap` has the settings of head and training."""

    def __init__(
        self,
        config: RunConfig,
        policy: Policy,
        features_nd: np.ndarray,
        probs_nc: np.ndarray,
        position_n: np.ndarray,
        held_n: np.ndarray,
    ) -> None:
        """
        Args:
            config: the run.
            policy: to select by.
            features_nd: of the rows, standardised, float32, shape (N, D).
            probs_nc: the distributions whose labels to train on, shape (N, C).
            position_n: positions in the corpus, int64, shape (N,).
            held_n: mask of the rows that are never trained on, bool, shape (N,).
        """
        self.config, self.features_nd, self.held_n = config, features_nd, held_n
        self.signals = signals_of(probs_nc, position_n)
        """Of the last epoch."""
        cheap = config.cheap
        torch.manual_seed(config.seed)
        self.head = Head(features_nd.shape[1], cheap.hidden, probs_nc.shape[1], cheap.dropout)
        rates = {"learning_rate": cheap.learning_rate, "head_learning_rate": cheap.learning_rate}
        student = config.student.model_copy(update=rates)
        self._trainer = Trainer(self.head, student, torch.device("cpu"), bfloat16=False)
        self._taken = 0  # optimiser steps
        self._policy = policy
        self._thresholds: Thresholds | None = None  # of the epoch before

    def _scored(self) -> Signals:
        """The signals, with the current student's uncertainty if the policy uses it."""
        if not self._policy.uses_uncertainty:
            return self.signals
        probs_nc = self.head.probabilities(self.features_nd, self.config.selection.mc_dropout)
        uncertainty_n = on_grid(MEASURES[self.config.selection.uncertainty](probs_nc))
        student_nc = probs_nc.astype(np.float16)
        return replace(self.signals, uncertainty_n=uncertainty_n, student_nc=student_nc)

    def epoch(self, epoch: int) -> tuple[dict[str, Any], np.ndarray]:
        """Score, select and train; returns (stats, rows trained on). Epochs come in order, from 0.

        Raises:
            StudentError: the policy selected no row.
        """
        self.signals = signals = self._scored()
        classes = len(self.config.task.labels)
        statistics = class_statistics(
            signals.label_n, signals.confidence_n, signals.uncertainty_n, classes
        )
        state, [choice] = select_rows(
            self._policy, epoch, [signals], statistics, self._thresholds, [self.held_n]
        )
        self._thresholds = state.thresholds
        chosen_n = np.flatnonzero(choice.weight_n)
        if len(chosen_n) == 0:
            raise StudentError(
                f"Epoch {epoch + 1} selected no row.",
                "Use another selection.policy, or raise selection.class_floor.",
            )
        found = selection_stats(
            self.config.selection.policy, self.config.task.label_names, epoch, state.statistics, choice.counts(classes), state.thresholds,
            signals.uncertainty_n is not None,
        )  # fmt: skip
        found["training_loss"] = self._train(epoch, chosen_n, choice)
        return found, chosen_n

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
        total, rows = self._trainer.train(steps(), schedule)
        self._taken += count
        return total / rows

    def _batch(self, row_b: np.ndarray, choice: Choice, scale: float) -> Batch:
        """A batch of rows, their weights divided by `scale`."""
        targets_bc = None
        if self.config.student.loss.uses_targets:
            assert choice.target_nc is not None
            targets_bc = torch.from_numpy(choice.target_nc[row_b].astype(np.float32))
        return Batch(
            {"features": torch.from_numpy(self.features_nd[row_b])},
            torch.from_numpy(choice.label_n[row_b].astype(np.int64)),
            torch.from_numpy((choice.weight_n[row_b] / scale).astype(np.float32)),
            targets_bc,
        )
