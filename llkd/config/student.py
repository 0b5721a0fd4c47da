"""The student's settings."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from llkd.config.selection import Loss, LossSettings
from llkd.config.sources import Fraction, ModelName, Positive, Section, check_no_secrets

Workers = Positive | tuple[Positive, Positive]


class LoraSettings(Section):
    """Low-rank adapters (arXiv 2106.09685) in place of training all weights."""

    rank: Annotated[int, Field(ge=1)] = 16
    """Rank of the update of each matrix."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """The update is scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Dropout on the input of the adapters."""
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Names of the modules that get an adapter; `all-linear`: every linear layer but the head."""


class StudentConfig(Section):
    """The small classifier that is trained."""

    model: ModelName
    """A model directory or a hub name: anything AutoModelForSequenceClassification loads."""
    revision: str | None = None
    """The hub revision (commit, tag or branch) of the model."""
    epochs: Annotated[int, Field(ge=1)] = 10
    """Rounds of scoring, selection and training. An epoch trains on some fifth of the rows, so that
    few thousand of them need about ten; with hundreds of thousands four are enough, and each of
    them scores the whole corpus."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Rows per optimiser step, over all workers together."""
    learning_rate: Annotated[float, Field(gt=0)] = 5e-5
    """Peak learning rate of AdamW."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Weight decay of AdamW; biases and norms are left out."""
    warmup_fraction: Fraction = 0.1
    """Share of the training steps in which the learning rate rises from 0 to its peak; after
    that it falls linearly to 0."""
    loss: Loss = LossSettings()
    """What a selected row costs: hard or soft labels, and how."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are clipped to this Euclidean norm."""
    max_length: Annotated[int, Field(ge=2)] = 128
    """Texts are cut to this many of the student's tokens."""
    workers: Workers = 1
    """Data-parallel training workers; each takes one GPU where the cluster has GPUs. [fewest, most]
    makes the group elastic: whenever it starts, as after the loss of a node, it takes what there
    is. Where their number does not divide batch_size, batches are smaller by less than it."""
    resources: dict[str, Annotated[float, Field(gt=0)]] | None = None
    """Ray resources of one worker. By default {GPU: 1} where the cluster has GPUs, else the CPUs
    that are there, divided by the workers and rounded down to a whole number, or to 1/2, 1/4, ..."""
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    """Precision of the student's matrix products. `auto` times both on the worker and takes
    bfloat16 where it is faster: some processors have it and run it at half speed."""
    micro_batch_size: Annotated[int, Field(ge=1)] | None = None
    """Most rows of a worker in one forward and backward pass; a batch that has more is
    accumulated from several. By default all of the worker's rows at once."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, about
    a third more time."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """`ddp`: each worker holds the whole student. `fsdp`: weights, gradients and optimiser state
    are cut among the workers, for students whose training does not fit into one; each still holds
    a copy in bfloat16, to score with."""
    lora: LoraSettings | None = None
    """Train low-rank adapters instead of all weights; merged into the weights at the end. Needs
    the package `peft`."""
    compile: bool = False
    """Score with `torch.compile`: worth its start-up of a minute or so on large corpora."""
    validation_fraction: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Share of the confident rows (at most 16,384) that is never trained on, and by which the
    student of each epoch is measured, against the teacher's labels."""
    keep: Literal["best", "last"] = "best"
    """Which epoch's student is the result, where rows are held out; else it is the last."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Stop after so many epochs without a better student on the rows held out; null: never."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """How often a failed worker group is started again, from its last epoch."""

    @property
    def fewest_workers(self) -> int:
        """Workers that the group has at least."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most_workers(self) -> int:
        """Workers that the group has at most."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @model_validator(mode="after")
    def _check(self) -> "StudentConfig":
        check_no_secrets({"model": self.model})
        if self.fewest_workers > self.most_workers:
            raise ValueError(
                f"workers must be [fewest, most], not [{self.fewest_workers}, {self.most_workers}]"
            )
        if isinstance(self.workers, int) and self.batch_size % self.workers:
            raise ValueError(
                f"batch_size ({self.batch_size}) counts the rows of all workers together, so it "
                f"must be a multiple of workers ({self.workers})"
            )
        if self.batch_size < self.most_workers:
            raise ValueError(
                f"batch_size ({self.batch_size}) must give each of {self.most_workers} workers a row"
            )
        if self.patience is not None and self.validation_fraction == 0:
            raise ValueError("patience needs rows held out: set validation_fraction")
        return self
