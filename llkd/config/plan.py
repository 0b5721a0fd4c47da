"""The settings of a plan."""

from typing import Annotated

from pydantic import Field, model_validator

from llkd.config.section import Section


class PlanConfig(Section):
    """What `jobs/plan.py` measures, and what it assumes."""

    rows: Annotated[int, Field(ge=16)] = 256
    """Rows of the corpus to label, score and train on for the measurement."""
    corpus_rows: Annotated[float, Field(ge=1, le=1e15)] | None = None
    """Corpus size to plan for, such as 1e9 rows; null: the size of the corpus."""
    price_per_hour: Annotated[float, Field(gt=0)] | None = None
    """Price of one replica per hour, in any currency; also that of a training worker."""
    cpu_price_per_hour: Annotated[float, Field(gt=0)] | None = None
    """Price of one CPU per hour, for ingest and selection."""
    cpus: Annotated[int, Field(ge=1)] | None = None
    """CPUs for ingest and selection; null: the CPUs of the current Ray cluster."""
    teacher_rows_per_second: Annotated[float, Field(gt=0)] | None = None
    """Labelling throughput of one replica, if known; the teacher is then not loaded."""
    score_rows_per_second: Annotated[float, Field(gt=0)] | None = None
    """Scoring throughput of one worker. If this and the next setting are given, the student is not
    loaded."""
    train_rows_per_second: Annotated[float, Field(gt=0)] | None = None
    """Training throughput of one worker."""
    selected_fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the rows that an epoch trains on; null: typical for the policy (see
    llkd/lab/cost_model.py)."""

    @model_validator(mode="after")
    def _check(self) -> "PlanConfig":
        if (self.score_rows_per_second is None) != (self.train_rows_per_second is None):
            raise ValueError(
                "set both score_rows_per_second and train_rows_per_second, or neither: one "
                "measurement of the student yields both"
            )
        return self
