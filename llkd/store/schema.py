"""Column names, Arrow schemas, and where everything lies in a run directory."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from llkd.errors import StorageError

ROW, TEXT, ID, GOLD = "row", "text", "id", "gold"
LOGPROBS, LABEL_MASS, DISAGREEMENT = "logprobs", "label_mass", "disagreement"
UNCERTAINTY, PROBS, STRATUM = "uncertainty", "probs", "stratum"
LABEL, CONFIDENCE, WEIGHT = "label", "confidence", "weight"
REASON = "reason"

COMPARE = "compare"
"""The folder of a run that holds runs on the same rows and labels."""
REPORT = "report.html"
"""What a run came to, for people."""
METRICS = "metrics.json"
"""The same, for machines."""
ROUNDS = "rounds"
"""The folder of a run that holds a run for each round of labelling, on the same rows."""

FORMAT_VERSION = 2
"""Raised when a run directory of an older LLKD can no longer be read."""


def corpus_schema(with_id: bool, with_gold: bool) -> pa.Schema:
    """A shard of rows: `row` is the position in the shard, `gold` a class index or null."""
    fields = [pa.field(ROW, pa.int32(), nullable=False), pa.field(TEXT, pa.large_string(), False)]
    if with_id:
        fields.append(pa.field(ID, pa.string()))
    if with_gold:
        fields.append(pa.field(GOLD, pa.int32()))
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
"""Rows left out. `row` is the row of the source file at ingest, of the corpus shard later."""


def labels_schema(classes: int, several: bool = False) -> pa.Schema:
    """The teacher's raw log-probability of every label, and their total mass; of several
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
"""The calibrated teacher's most probable label, and its probability."""

UNCERTAINTY_SCHEMA = pa.schema(
    [pa.field(ROW, pa.int32(), False), pa.field(UNCERTAINTY, pa.float32(), False)]
)

WANTED_SCHEMA = pa.schema([pa.field(ROW, pa.int32(), False)])
"""Rows that the teacher is asked about in a round."""

CANDIDATES_SCHEMA = pa.schema(
    [
        pa.field(ROW, pa.int32(), False),
        pa.field(STRATUM, pa.int32(), False),
        pa.field(UNCERTAINTY, pa.float32(), False),
    ]
)
"""Rows that it was not asked about yet, as they are chosen from."""

SELECTION_SCHEMA = pa.schema(
    [
        pa.field(ROW, pa.int32(), False),
        pa.field(LABEL, pa.int32(), False),
        pa.field(WEIGHT, pa.float32(), False),
    ]
)
"""The rows to train on; weights are raw, their sum over all shards is in counts.json."""


def with_probs(schema: pa.Schema, numbers: pa.DataType, classes: int) -> pa.Schema:
    """A sidecar's schema with a distribution over the labels beside each row."""
    return schema.append(pa.field(PROBS, pa.list_(numbers, classes), nullable=False))


def predictions_schema(with_id: bool, classes: int | None) -> pa.Schema:
    """The finished student's label of each row by name, and its probability; with `classes` the
    whole distribution too."""
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
    """The file of a shard."""
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
    """The folders of a run directory, by URI."""

    run_dir: str
    teacher: int | None = None
    """Which of several teachers' labels are meant; None for those that the student learns from."""

    def __post_init__(self) -> None:
        if not self.run_dir.strip("/"):
            raise StorageError(f"run_dir must name a directory, not {self.run_dir!r}")

    @property
    def name(self) -> str:
        """How the run is called where it is watched: the last part of its directory; for a round or
        a comparison that of the run around it, too."""
        parts = self.root.split("/")
        start = len(parts) - 1
        while start > 1 and parts[start - 1] in (COMPARE, ROUNDS):
            start -= 2
        return "/".join(parts[start:])

    def _at(self, *parts: str) -> str:
        return "/".join((self.run_dir.rstrip("/"), *parts))

    def _input(self, *parts: str, shared_by: tuple[str, ...] = (COMPARE,)) -> str:
        """Where rows and labels are: of a run in RUN/compare/NAME those of RUN, so that runs which
        differ in the student share them on any filesystem."""
        *outer, folder, _ = ["", *self.run_dir.rstrip("/").split("/")]
        return "/".join((*outer[1:], *parts)) if folder in shared_by else self._at(*parts)

    def comparison(self, name: str) -> str:
        """A run on this run's rows and labels; or what such runs have in common."""
        return self._at(COMPARE, name)

    @property
    def root(self) -> str:
        """The run directory."""
        return self.run_dir.rstrip("/")

    def rows(self, dataset: str) -> str:
        """Shards of rows; `dataset` is `corpus`, `test`, `validation` or `predict/NAME`."""
        return self._input(dataset, shared_by=(COMPARE, ROUNDS))

    def labels(self, dataset: str) -> str:
        """The teacher's labels of a data set; one of several teachers has a folder of its own. A
        round has all labels of the corpus up to and with it, and shares those of the rest."""
        name = "labels" if dataset == "corpus" else f"{dataset}_labels"
        parts = () if self.teacher is None else ("teachers", self._number)
        shared_by = (COMPARE,) if dataset == "corpus" else (COMPARE, ROUNDS)
        return self._input(*parts, name, shared_by=shared_by)

    @property
    def teacher_choices(self) -> str:
        """Where it is kept what a teacher chose for the machine."""
        parts = () if self.teacher is None else ("teachers", self._number)
        return self._input(*parts, "labels", shared_by=(COMPARE, ROUNDS))

    @property
    def rounds(self) -> str:
        """The runs of all rounds of labelling."""
        return self._input(ROUNDS, shared_by=(COMPARE, ROUNDS))

    def round(self, number: int) -> str:
        """The run of a round of labelling."""
        return f"{self.rounds}/{number:02d}"

    @property
    def is_round(self) -> bool:
        """Whether this run is a round of another."""
        return self.root.split("/")[-2:-1] == [ROUNDS]

    @property
    def wanted(self) -> str:
        """In a round: the rows that the teacher is asked about."""
        return self._at("wanted")

    @property
    def candidates(self) -> str:
        """In a round: the rows that they are chosen from, while they are."""
        return self._at("candidates")

    def answers(self, dataset: str) -> str:
        """What the teacher is asked for: in a round, of the corpus, the labels of its wanted rows
        alone; else all labels of a data set."""
        return self._at("answers") if self._asks_in_part(dataset) else self.labels(dataset)

    def asked(self, dataset: str) -> str:
        """The folder whose manifest tells how many rows of each shard the teacher is asked."""
        return self.wanted if self._asks_in_part(dataset) else self.rows(dataset)

    def _asks_in_part(self, dataset: str) -> bool:
        return self.is_round and dataset == "corpus"

    @property
    def _number(self) -> str:
        return f"{self.teacher:02d}"

    def label_rejects(self, dataset: str) -> str:
        """Rows that the teacher refused."""
        number = "" if self.teacher is None else f"-{self._number}"
        shared_by = (COMPARE,) if dataset == "corpus" else (COMPARE, ROUNDS)
        return self._input("rejects", f"label-{dataset}{number}", shared_by=shared_by)

    def predictions(self, name: str) -> str:
        """The finished student's labels of a whole corpus."""
        return self._at("predictions", name)

    @property
    def test_predictions(self) -> str:
        """The finished student's labels of the test set, by which it is measured."""
        return self._at("test_predictions")

    def rejects(self, stage: str) -> str:
        """Rows that a stage left out."""
        return self._input("rejects", stage)

    @property
    def pseudo_labels(self) -> str:
        """Labels and confidences that all epochs select by, by shard."""
        return self._at("epochs", "pseudo_labels")

    @property
    def validation(self) -> str:
        """Rows held out of training."""
        return self._at("epochs", "validation")

    def validation_of(self, epoch: int) -> str:
        """What an epoch's student says of the rows held out."""
        return self._at("epochs", f"{epoch:02d}", "validation")

    def uncertainty(self, epoch: int) -> str:
        """The student's uncertainty, by shard."""
        return self._at("epochs", f"{epoch:02d}", "uncertainty")

    def selection(self, epoch: int) -> str:
        """What was selected, by shard."""
        return self._at("epochs", f"{epoch:02d}", "selection")

    @property
    def epochs(self) -> str:
        """All epochs; holds the manifest of distillation."""
        return self._at("epochs")

    def epoch(self, epoch: int) -> str:
        """All of an epoch; holds stats.json."""
        return self._at("epochs", f"{epoch:02d}")

    @property
    def checkpoints(self) -> str:
        """Ray Train's own folder."""
        return self._at("checkpoints")

    @property
    def student(self) -> str:
        """The finished student, as `save_pretrained` leaves it."""
        return self._at("student")

    @property
    def exported(self) -> str:
        """What `jobs/export.py` makes, unless it is told another folder."""
        return self._at("export")

    @property
    def tensorboard(self) -> str:
        """Event files of TensorBoard."""
        return self._at("tensorboard")

    @property
    def logs(self) -> str:
        """What the libraries said."""
        return self._at("logs")
