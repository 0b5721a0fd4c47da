"""The training steps of one worker."""

import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from llkd.config.student import StudentConfig
from llkd.errors import StudentError
from llkd.student.data import Batch
from llkd.student.dropout import use_byte_dropout
from llkd.student.losses import row_losses
from llkd.student.model import autocast, head_of
from llkd.student.pooling import pooling_of

POOLED_HEAD_RATE = 2e-2
"""Default peak learning rate of a head that reads vectors of norm 1."""
NATIVE_HEAD_RATE = 1e-3
"""That of any other head, unless `student.learning_rate` is higher."""
CHECKED_EVERY = 32
"""On a GPU the loss is checked once in so many steps, because reading it stalls the GPU; on a CPU after every step."""


@dataclass(frozen=True)
class Schedule:
    """The learning rate within an epoch, as a share of its peak.

    It rises in the first epoch and decays linearly to 0 over the steps of the run; the epochs to
    come are assumed to take as many steps as this one.
    """

    taken: int
    """Optimiser steps of the epochs before."""
    count: int
    """Optimiser steps of this epoch."""
    epochs: int
    """Epochs to come, this one included."""
    warmup: float
    """Share of the first epoch's steps in which the rate rises."""

    def factor(self, step: int) -> float:
        """The share of the peak in the middle of a step of this epoch, from 0."""
        total, rising = self.taken + self.count * self.epochs, self.warmup * self.count
        rise = 1.0 if self.taken or rising == 0 else min((step + 0.5) / rising, 1.0)
        return rise * (1.0 - (self.taken + step + 0.5) / total)


def make_optimizer(model: torch.nn.Module, student: StudentConfig) -> torch.optim.AdamW:
    """AdamW without weight decay for biases and norms, which have one dimension.

    Each group of parameters has the peak of its learning rate under `peak`; that of the head, the
    last linear layer, is its own.
    """
    head_rate = student.head_learning_rate
    if head_rate is None:
        pooled = pooling_of(getattr(model, "module", model)) is not None
        head_rate = POOLED_HEAD_RATE if pooled else max(NATIVE_HEAD_RATE, student.learning_rate)
    trained = [p for p in model.parameters() if p.requires_grad]
    head = list(head_of(model).parameters())
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for parameter in trained:
        rate = head_rate if any(parameter is own for own in head) else student.learning_rate
        decay = student.weight_decay if parameter.ndim >= 2 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": params, "weight_decay": decay, "lr": rate, "peak": rate}
            for (rate, decay), params in groups.items()
        ],
        fused=True,  # one pass over the weights instead of a dozen: five times faster on a CPU
    )


class Trainer:
    """Takes optimiser steps on batches."""

    def __init__(
        self, model: torch.nn.Module, student: StudentConfig, device: torch.device, bfloat16: bool
    ) -> None:
        """`model` may be wrapped for data parallelism, which averages its gradients."""
        self._model = model
        self._student = student
        self._device = device
        self._bfloat16 = bfloat16
        if device.type == "cpu":
            use_byte_dropout(model)
        self.optimizer = make_optimizer(model, student)
        # On the device: reading it at every step would stall the GPU.
        self._total = torch.zeros((), dtype=torch.float64, device=device)
        self._rows = 0

    def train(self, steps: Iterable[Sequence[Batch]], schedule: Schedule) -> tuple[float, int]:
        """Train one epoch.

        Args:
            steps: the micro-batches of each optimiser step.
            schedule: of the learning rate.

        Returns:
            The sum of the rows' weighted losses, and the number of rows.

        Raises:
            StudentError: the loss is not a finite number.
        """
        self._model.train()
        every = 1 if self._device.type == "cpu" else CHECKED_EVERY
        self._total.zero_()
        self._rows = 0
        for step, batches in enumerate(steps):
            factor = schedule.factor(step)
            for group in self.optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            step_rows = sum(len(batch.labels_b) for batch in batches)
            self._total += self._step(batches, step_rows) * step_rows
            self._rows += step_rows
            if step % every == 0:
                self._require_finite(schedule.taken + step)
        self._require_finite(schedule.taken + schedule.count - 1)
        return float(self._total), self._rows

    def mean_loss(self) -> float | None:
        """The mean weighted loss of this epoch's rows so far; None before the first step."""
        return float(self._total) / self._rows if self._rows else None

    def _require_finite(self, step: int) -> None:
        if math.isfinite(float(self._total)):
            return
        if step == 0:
            raise StudentError(
                f"The loss of the first training step is not a finite number: {self._student.model} cannot be "
                f"computed in {'bfloat16' if self._bfloat16 else 'float32'} here",
                "Set student.precision to float32 or student.attn_implementation to sdpa, or use another student.model.",
            )
        raise StudentError(
            f"The training loss is not a finite number after {step + 1} steps: the student has diverged",
            f"Lower student.learning_rate ({self._student.learning_rate:g}).",
        )

    def _step(self, batches: Sequence[Batch], rows: int) -> torch.Tensor:
        """One update on the mean of the rows' weighted losses; returns the mean."""
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self._device)
        for number, batch in enumerate(batches):
            with self._gradient_sync(number == len(batches) - 1):
                loss = self._loss(batch) / rows
                loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(
            [p for p in self._model.parameters() if p.requires_grad], self._student.max_grad_norm
        )
        self.optimizer.step()
        return total

    def _loss(self, batch: Batch) -> torch.Tensor:
        """The sum of the rows' weighted losses."""
        inputs = {
            name: tensor.to(self._device, non_blocking=True)
            for name, tensor in batch.inputs.items()
        }
        with autocast(self._device, self._bfloat16):
            logits_bc = self._model(**inputs).logits
        targets_bc = batch.targets_bc
        if targets_bc is not None:
            targets_bc = targets_bc.to(self._device, non_blocking=True)
        labels_b = batch.labels_b.to(self._device)
        loss_b = row_losses(logits_bc, labels_b, targets_bc, self._student.loss)
        return (loss_b * batch.weights_b.to(self._device)).sum()

    def _gradient_sync(self, last: bool) -> AbstractContextManager[Any]:
        """Synchronises gradients once per step, in its last micro-batch."""
        model: Any = self._model
        if hasattr(model, "set_requires_gradient_sync"):  # torch's fully_shard
            model.set_requires_gradient_sync(last)
            return nullcontext()
        if last or not hasattr(model, "no_sync"):
            return nullcontext()
        return model.no_sync()
