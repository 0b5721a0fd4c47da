"""The settings of the student."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from llkd.config.section import Fraction, ModelName, Positive, Section, check_no_secrets
from llkd.config.selection import Loss, LossSettings

Workers = Positive | tuple[Positive, Positive]

MAX_PASSES = 4
"""Of an epoch after the first: more passes over a few uncertain rows would memorise the wrong labels
among them."""


class LoraSettings(Section):
    """Low-rank adapters (arXiv 2106.09685), trained instead of all weights."""

    rank: Annotated[int, Field(ge=1)] = 16
    """Rank of each matrix update."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """Scaling: each update is multiplied by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Dropout on the adapters' input."""
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Names of the modules to adapt; `all-linear`: every linear layer except the head."""


class StudentConfig(Section):
    """The small classifier to train."""

    model: ModelName
    """A model directory or hub name that AutoModelForSequenceClassification can load."""
    revision: str | None = None
    """The hub revision (commit, tag or branch) of the model."""
    pooling: Literal["auto", "mean", "cls", "native"] = "auto"
    """The vector of a text that the classification head reads: the mean of its tokens, that of the
    first token (`cls`), or what AutoModelForSequenceClassification makes of the model (`native`). `auto`:
    what an encoder of sentence-transformers was trained for, otherwise `native`."""
    epochs: Annotated[int, Field(ge=1)] = 4
    """Cycles of scoring, selection and training. Each epoch scores the whole corpus. On a small corpus
    `min_steps` makes up for the few epochs."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Rows per optimiser step, summed over all workers."""
    learning_rate: Annotated[float, Field(gt=0)] = 5e-5
    """Peak learning rate of AdamW."""
    head_learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate of the last layer, which starts untrained. Default: 2e-2 where it reads a
    pooled vector of norm 1 (`pooling`), otherwise the larger of 1e-3 and `learning_rate`."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Weight decay of AdamW; not applied to biases and norms."""
    warmup_fraction: Fraction = 0.1
    """Share of the first epoch's steps in which the learning rate rises from 0. It decays linearly
    to 0 over the steps of the run."""
    min_steps: Annotated[int, Field(ge=0)] = 200
    """About how many optimiser steps a run takes at least. Where the selected rows are too few for an
    epoch's share of them, the epoch passes over its rows several times, after the first one at most
    four times. Of `llkd`, whose later epochs train on few rows, the epochs of
    `selection.warmup_epochs` take all of them."""
    loss: Loss = LossSettings()
    """The loss on the selected rows: its kind, or a section with its parameters."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Maximum gradient norm (Euclidean); larger gradients are clipped."""
    max_length: Annotated[int, Field(ge=2)] = 128
    """Texts are truncated to this many of the student's tokens."""
    workers: Workers = 1
    """Data-parallel training workers; each takes one GPU if the cluster has GPUs. [minimum, maximum]
    makes the group elastic: whenever it starts, also after the loss of a node, it takes as many
    workers as fit. If their number does not divide batch_size, batches are rounded down to a
    multiple of it."""
    resources: dict[str, Annotated[float, Field(gt=0)]] | None = None
    """Ray resources of one worker. Default: {GPU: 1} if the cluster has GPUs, otherwise the
    available CPUs divided by the workers, rounded down to a whole number or to 1/2, 1/4, ..."""
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    """Precision of the student's matrix products. `auto` times both on the worker and uses
    bfloat16 if it is faster; some processors support it only at half speed."""
    attn_implementation: Literal["eager", "sdpa", "flash_attention_2"] | None = None
    """How attention is computed. Default: what transformers chooses for the model."""
    micro_batch_size: Annotated[int, Field(ge=1)] | None = None
    """Maximum rows of a worker in one forward and backward pass; larger batches accumulate
    gradients. Default: all of the worker's rows at once."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of storing them: less memory, about a
    third more time."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """`ddp`: each worker holds the whole student. `fsdp`: weights, gradients and optimiser state
    are sharded over the workers, for students that do not fit on one during training; each worker
    still holds a bfloat16 copy for scoring."""
    lora: LoraSettings | None = None
    """Train low-rank adapters instead of all weights, and merge them at the end. Needs the package
    `peft`."""
    compile: bool = False
    """Score with `torch.compile`; its start-up of about a minute pays off on large corpora."""
    validation_fraction: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Share of the confident rows (at most 16,384) to hold out as a validation split: never trained
    on, and used to evaluate each epoch's student against the teacher's labels."""
    keep: Literal["best", "last", "probe"] = "best"
    """Which student to keep. `best`: that of the epoch with the highest score on the validation split,
    or the linear probe (a head on the frozen encoder, which every run fits) if it is clearly better
    there; without a validation split, the last epoch's. `last`: the last epoch's. `probe`: the linear
    probe."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Stop after this many epochs without improvement on the validation split; null: never."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """How often a failed worker group is restarted from its last epoch."""

    @property
    def fewest_workers(self) -> int:
        """Minimum size of the worker group."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most_workers(self) -> int:
        """Maximum size of the worker group."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    def passes(self, steps: int, taken: int, epoch: int, full_epochs: int) -> int:
        """How often an epoch passes over its rows so that the run takes about `min_steps`; after the
        first epoch at most MAX_PASSES times.

        Args:
            steps: optimiser steps of one pass, at least 1.
            taken: optimiser steps of the epochs before.
            epoch: from 0.
            full_epochs: see `Policy.full_epochs`.
        """
        wanted = round((self.min_steps - taken) / (max(full_epochs - epoch, 1) * steps))
        return max(min(wanted, MAX_PASSES) if epoch else wanted, 1)

    @model_validator(mode="after")
    def _check(self) -> "StudentConfig":
        check_no_secrets({"model": self.model})
        if self.fewest_workers > self.most_workers:
            raise ValueError(
                f"workers must be [minimum, maximum], "
                f"not [{self.fewest_workers}, {self.most_workers}]"
            )
        if isinstance(self.workers, int) and self.batch_size % self.workers:
            raise ValueError(
                f"batch_size ({self.batch_size}) counts the rows of all workers together, so it "
                f"must be a multiple of workers ({self.workers})"
            )
        if self.batch_size < self.most_workers:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be at least the number of workers "
                f"({self.most_workers})"
            )
        if self.patience is not None and self.validation_fraction == 0:
            raise ValueError("patience needs a validation split: set validation_fraction")
        return self
