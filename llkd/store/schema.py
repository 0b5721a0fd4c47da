"""Column names, Arrow schemas, and the folders of a run directory."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from llkd.errors import StorageError

ROW, TEXT, ID, GOLD, PROBABILITY = "row", "text", "id", "gold", "probability"
LOGPROBS, LABEL_MASS, DISAGREEMENT = "logprobs", "label_mass", "disagreement"
UNCERTAINTY, PROBS, STRATUM = "uncertainty", "probs", "stratum"
LABEL, CONFIDENCE, WEIGHT = "label", "confidence", "weight"
REASON = "reason"

COMPARE = "compare"
"""The folder of a run for other runs on the same rows and labels."""
REPORT = "report.html"
"""The results of a run, as a page."""
METRICS = "metrics.json"
"""The results of a run, as JSON."""
ROUNDS = "rounds"
"""The folder of a run for its rounds of labelling, each a run on the same rows."""

FORMAT_VERSION = 2
"""Raised when a run directory of an older LLKD can no longer be read."""


def corpus_schema(with_id: bool, with_gold: bool, with_probability: bool = False) -> pa.Schema:
    """A shard of rows: `row` is the position in the shard, `gold` a class index or null; `probability`
    that of being chosen for labelling, null if not at random."""
    fields = [pa.field(ROW, pa.int32(), nullable=False), pa.field(TEXT, pa.large_string(), False)]
    if with_id:
        fields.append(pa.field(ID, pa.string()))
    if with_gold:
        fields.append(pa.field(GOLD, pa.int32()))
    if with_probability:
        fields.append(pa.field(PROBABILITY, pa.float64()))
    return pa.schema(fields)


REJECTS_SCHEMA = pa.schema(
    [
        pa.field("stage", pa.string(), nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
        pa.field(ROW, pa.int64(), nullable=False),
        pa.field("source", pa.string()),
        pa.field(ID, pa.string()),
        pa.field(REASON, pa.string(), nullable=False),
        pa.field("detail", pa.string()),
    ]
)
"""Rejected rows. `row` counts within the source file at ingest, within the shard later."""


def labels_schema(classes: int, several: bool = False) -> pa.Schema:
    """The teacher's raw log-probability of every label, and their total mass; for several
    teachers also their disagreement."""
    fields = [
        pa.field(ROW, pa.int32(), nullable=False),
        pa.field(LOGPROBS, pa.list_(pa.float32(), classes), nullable=False),
        pa.field(LABEL_MASS, pa.float32(), nullable=False),
    ]
    return pa.schema(
        [*fields, pa.field(DISAGREEMENT, pa.float32(), nullable=False)] if several else fields
    )


PSEUDO_LABELS_SCHEMA = pa.schema(
    [
        pa.field(ROW, pa.int32(), False),
        pa.field(LABEL, pa.int32(), False),
        pa.field(CONFIDENCE, pa.float32(), False),
    ]
)
"""The most probable label of the calibrated teacher, or of its refined distribution, and its
probability."""

UNCERTAINTY_SCHEMA = pa.schema(
    [pa.field(ROW, pa.int32(), False), pa.field(UNCERTAINTY, pa.float32(), False)]
)

WANTED_SCHEMA = pa.schema([pa.field(ROW, pa.int32(), False)])
"""Rows that the teacher labels in a round."""

CANDIDATES_SCHEMA = pa.schema(
    [
        pa.field(ROW, pa.int32(), False),
        pa.field(STRATUM, pa.int32(), False),
        pa.field(UNCERTAINTY, pa.float32(), False),
    ]
)
"""Rows not yet chosen in any round, with the signals that the choice depends on."""

SELECTION_SCHEMA = pa.schema(
    [
        pa.field(ROW, pa.int32(), False),
        pa.field(LABEL, pa.int32(), False),
        pa.field(WEIGHT, pa.float32(), False),
    ]
)
"""Rows to train on; the weights are not normalised, their sum over all shards is in counts.json."""


def with_probs(schema: pa.Schema, numbers: pa.DataType, classes: int) -> pa.Schema:
    """A sidecar's schema with a distribution over the labels beside each row."""
    return schema.append(pa.field(PROBS, pa.list_(numbers, classes), nullable=False))


def predictions_schema(with_id: bool, classes: int | None) -> pa.Schema:
    """The finished student's label of each row by name, and its probability; with `classes` also the
    distribution."""
    fields = [pa.field(ROW, pa.int32(), False)]
    if with_id:
        fields.append(pa.field(ID, pa.string()))
    fields += [
        pa.field(LABEL, pa.dictionary(pa.int32(), pa.string()), False),
        pa.field(CONFIDENCE, pa.float32(), False),
    ]
    if classes is not None:
        fields.append(pa.field(PROBS, pa.list_(pa.float32(), classes), False))
    return pa.schema(fields)


def shard_name(shard: int) -> str:
    """The file name of a shard."""
    return f"part-{shard:05d}.parquet"


def shard_number(name: str) -> int | None:
    """The inverse of `shard_name`; None for another file."""
    digits = re.fullmatch(r"part-([0-9]{5,18})\.parquet", name)
    if digits is None:
        return None
    number = int(digits[1])
    return number if shard_name(number) == name else None


def shard_starts(rows: Sequence[int]) -> tuple[int, ...]:
    """The position of each shard's first row in the corpus, from the rows of each shard."""
    return tuple(itertools.accumulate(rows, initial=0))[:-1]


@dataclass(frozen=True)
class RunLayout:
    """The folders of a run directory, by URI.

    A run may share the rows and labels of another, its owner. A comparison, RUN/compare/NAME, reads
    RUN's rows and labels. A round of labelling, RUN/rounds/NN, reads RUN's rows and has its own
    labels of the corpus. Both have their own student.
    """

    run_dir: str
    teacher: int | None = None
    """The teacher of an ensemble whose labels these are; None for the labels the student trains on."""

    def __post_init__(self) -> None:
        if not self.run_dir.strip("/"):
            raise StorageError(
                f"run_dir is {self.run_dir!r}, which names no directory", "Name a directory."
            )

    @property
    def root(self) -> str:
        """The run directory."""
        return self.run_dir.rstrip("/")

    @property
    def _kind(self) -> str | None:
        """COMPARE or ROUNDS for a run inside another; None for any other run."""
        *owner, folder, _ = ["", *self.root.split("/")]
        return folder if folder in (COMPARE, ROUNDS) and any(owner) else None

    @property
    def owner(self) -> "RunLayout":
        """The run whose rows this one reads; itself unless it is a comparison or a round."""
        if self._kind is None:
            return self
        return RunLayout(self.root.rsplit("/", 2)[0], self.teacher)

    @property
    def is_round(self) -> bool:
        """Whether this run is a round of labelling of another."""
        return self._kind == ROUNDS

    @property
    def name(self) -> str:
        """The run's name in progress and metrics: the last part of its directory, for a comparison
        or a round preceded by its owner's."""
        if self._kind is None:
            return self.root.rpartition("/")[2]
        return self.owner.name + self.root.removeprefix(self.owner.root)

    def _at(self, *parts: str) -> str:
        return "/".join((self.root, *parts))

    # Rows and labels, which a comparison and a round share with their owner.

    def rows(self, dataset: str) -> str:
        """Shards of rows; `dataset` is `corpus`, `test`, `gold` or `predict/NAME`."""
        return self.owner._at(dataset)

    def rejects(self, stage: str) -> str:
        """Rows that a stage rejected."""
        return self.owner._at("rejects", stage)

    def _labels_owner(self, dataset: str) -> "RunLayout":
        return self if self.is_round and dataset == "corpus" else self.owner

    @property
    def _teacher_parts(self) -> tuple[str, ...]:
        return () if self.teacher is None else ("teachers", f"{self.teacher:02d}")

    def labels(self, dataset: str) -> str:
        """The teacher's labels of a data set. Each of several teachers has its own folder. A round's
        labels of the corpus are those of all rounds up to and including it."""
        name = "labels" if dataset == "corpus" else f"{dataset}_labels"
        return self._labels_owner(dataset)._at(*self._teacher_parts, name)

    def label_rejects(self, dataset: str) -> str:
        """Rows that the teacher rejected."""
        number = "" if self.teacher is None else f"-{self.teacher:02d}"
        return self._labels_owner(dataset)._at("rejects", f"label-{dataset}{number}")

    @property
    def teacher_choices(self) -> str:
        """The folder of the engine arguments chosen for the machine."""
        return self.owner._at(*self._teacher_parts, "labels")

    # Runs inside this one.

    def comparison(self, name: str) -> str:
        """A run on this run's rows and labels, or a folder that such runs share."""
        return self._at(COMPARE, name)

    @property
    def rounds(self) -> str:
        """The runs of all rounds of labelling."""
        return self.owner._at(ROUNDS)

    def round(self, number: int) -> "RunLayout":
        """The run of a round of labelling, from 0."""
        return RunLayout(f"{self.rounds}/{number:02d}")

    @property
    def wanted(self) -> str:
        """In a round: the rows for the teacher to label."""
        return self._at("wanted")

    @property
    def candidates(self) -> str:
        """In a round: the rows to choose from, until it has chosen."""
        return self._at("candidates")

    @property
    def answers(self) -> str:
        """In a round: the teacher's labels of the wanted rows alone."""
        return self._at("answers")

    # The student and its outputs; every run has its own.

    @property
    def epochs(self) -> str:
        """All epochs; holds the manifest of distillation."""
        return self._at("epochs")

    @property
    def pseudo_labels(self) -> str:
        """Labels and confidences that all epochs select by, by shard."""
        return self._at("epochs", "pseudo_labels")

    @property
    def refinement(self) -> str:
        """What refines the teacher's labels to the pseudo-labels."""
        return self._at("epochs", "refinement")

    @property
    def validation(self) -> str:
        """Rows held out of training."""
        return self._at("epochs", "validation")

    @property
    def probe(self) -> str:
        """The linear probe beside the student."""
        return self._at("epochs", "probe")

    @property
    def probe_predictions(self) -> str:
        """The probe's distributions for the test set, by shard."""
        return f"{self.probe}/test"

    def epoch(self, epoch: int) -> str:
        """The files of one epoch; holds stats.json."""
        return self._at("epochs", f"{epoch:02d}")

    def validation_of(self, epoch: int) -> str:
        """The predictions of an epoch's student on the rows held out."""
        return f"{self.epoch(epoch)}/validation"

    def uncertainty(self, epoch: int) -> str:
        """The student's uncertainty, by shard."""
        return f"{self.epoch(epoch)}/uncertainty"

    def selection(self, epoch: int) -> str:
        """The selected rows, by shard."""
        return f"{self.epoch(epoch)}/selection"

    @property
    def checkpoints(self) -> str:
        """Ray Train's folder."""
        return self._at("checkpoints")

    @property
    def student(self) -> str:
        """The finished student, as `save_pretrained` writes it."""
        return self._at("student")

    def predictions(self, name: str) -> str:
        """The finished student's labels of a whole corpus."""
        return self._at("predictions", name)

    @property
    def test_predictions(self) -> str:
        """The finished student's labels of the test set, from which it is measured."""
        return self._at("test_predictions")

    def hand(self, name: str) -> str:
        """Rows for a person to label."""
        return self.owner._at("hand", name)

    @property
    def exported(self) -> str:
        """The output of `jobs/export.py`, unless the config names another folder."""
        return self._at("export")

    @property
    def tensorboard(self) -> str:
        """TensorBoard event files."""
        return self._at("tensorboard")

    @property
    def logs(self) -> str:
        """Log files."""
        return self._at("logs")
