"""The settings of input data.

The docstring under each field is its documentation.
"""

import re
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from llkd.config.section import (
    DATASETS_PREFIX,
    Fraction,
    Paths,
    Replicas,
    Section,
    check_no_secrets,
    check_replicas,
)

PREDICT = "predict"
"""Section and directory of the rows that only the finished student labels."""

NAME_BYTES = 200
"""Maximum length of a directory name. File systems allow 255; sibling files add suffixes."""


def section_of(dataset: str) -> str:
    """The config section that defines a data set."""
    return dataset.partition("/")[0]


def _folder_name(name: str) -> str:
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ValueError(
            "must be a plain directory name: letters, digits, `_`, `-` and dots, no leading dot"
        )
    if len(name.encode()) > NAME_BYTES:
        raise ValueError(f"must have at most {NAME_BYTES} bytes")
    return name


def _name_of(path: str) -> str:
    """A directory name derived from a path: its last component that is not a glob, without file
    extensions. May be empty."""
    parts = [
        part for part in path.removeprefix(DATASETS_PREFIX).split("/") if not set(part) & set("*?[")
    ]
    last = next((part for part in reversed(parts) if part), "")
    name = re.sub(r"[^\w-]+", "-", last.partition(".")[0]).strip("-")
    return name if len(name.encode()) <= NAME_BYTES else ""


class _AnySource(Section):
    """Rows of text; the path is optional."""

    path: Paths | None = None
    """Location of the rows, in any form that `corpus.path` accepts."""
    text_column: str = "text"
    """The column that holds the text."""
    label_column: str | None = None
    """The column of gold labels; used only for evaluation, never for training."""
    id_column: str | None = None
    """A column of your own identifiers, copied to every result."""
    dataset_args: dict[str, Any] = Field(default_factory=dict)
    """For `datasets:NAME`: arguments to `datasets.load_dataset`, such as `split` or `name`."""

    @model_validator(mode="after")
    def _check_secrets(self) -> Self:
        check_no_secrets({"path": self.path, "dataset_args": self.dataset_args})
        return self


class SourceConfig(_AnySource):
    """A source of text rows."""

    path: Paths
    """Parquet, JSON Lines or CSV files: a file, a glob, a directory, a URI (s3://, gs://), or a list
    of these. Or `datasets:NAME`, which the `datasets` library loads."""

    @property
    def paths(self) -> tuple[str, ...]:
        """The path setting as a tuple."""
        return (self.path,) if isinstance(self.path, str) else self.path


class CorpusConfig(SourceConfig):
    """The unlabelled corpus."""

    rows_per_shard: Annotated[int, Field(ge=1, le=2**24)] = 8192
    """Rows per shard, the unit of work, recovery and memory use."""


class TestConfig(SourceConfig):
    """A labelled test set for evaluating teacher and student."""

    __test__ = False  # the class name would make pytest collect it
    label_column: str = "label"
    """The column of gold labels."""


class GoldConfig(SourceConfig):
    """Rows labelled by hand."""

    label_column: str = "label"
    """The column of gold labels."""
    probability_column: str | None = None
    """The column with each row's probability of being chosen, in any unit, as `jobs/sample.py` writes it; empty
    for rows that were not drawn at random. Without it, all rows count as drawn uniformly."""
    judge: Fraction = 0.5
    """Share of the rows drawn at random that only judge: their labels are told to nothing, so that they show how
    right the student is on the whole corpus (llkd/core/inference.py). The others are trained on
    and fitted to."""
    relabel: bool = True
    """Where labels are refined: fit the combination of teacher and probes to these rows
    (llkd/student/combination.py)."""
    train: bool = True
    """Rows of the corpus with the text of a row that does not judge are trained on with its label."""


class PredictConfig(_AnySource):
    """Settings of `jobs/predict.py`, which applies the finished student to a whole corpus.

    `path` and the settings that describe it work as in `corpus`; without a path the job predicts
    the run's own corpus. If `label_column` is set, the student is evaluated on these rows.
    """

    rows_per_shard: Annotated[int, Field(ge=1, le=2**24)] = 8192
    """Rows per shard of `path`."""
    name: Annotated[str, AfterValidator(_folder_name)] | None = None
    """Directory of these predictions in `<run_dir>/predictions`. Default: the last component of the
    path without its extension; `corpus` for the run's own corpus."""
    probabilities: bool = False
    """Also write the full distribution over the labels."""
    replicas: Replicas = (1, 1)
    """Minimum and maximum number of actors, each with its own student; the pool grows while shards
    are waiting."""
    resources: dict[str, Annotated[float, Field(gt=0)]] | None = None
    """Ray resources of one replica. Default: {GPU: 1} if the cluster has GPUs, otherwise the CPUs
    of one node divided by the maximum number of replicas."""

    @property
    def source(self) -> CorpusConfig | None:
        """The source of the rows; None for the run's own corpus."""
        if self.path is None:
            return None
        return CorpusConfig(**{name: getattr(self, name) for name in CorpusConfig.model_fields})

    @property
    def folder(self) -> str:
        """The directory name, given or derived."""
        if self.name is not None:
            return self.name
        source = self.source
        return "corpus" if source is None else _name_of(source.paths[0])

    @property
    def dataset(self) -> str:
        """The data set to predict: `corpus` or `predict/NAME`."""
        return "corpus" if self.path is None else f"{PREDICT}/{self.folder}"

    @model_validator(mode="after")
    def _check(self) -> "PredictConfig":
        check_replicas(self.replicas)
        if self.path is None:
            for name in CorpusConfig.model_fields:
                if getattr(self, name) != type(self).model_fields[name].get_default(
                    call_default_factory=True
                ):
                    raise ValueError(f"{name} describes how to read path, which is not set")
        elif not self.folder:
            raise ValueError(f"cannot derive a directory name from path {self.path!r}; set name")
        elif self.folder == "corpus":
            raise ValueError(
                "the name 'corpus' is reserved for the run's own corpus; set another name"
            )
        return self
