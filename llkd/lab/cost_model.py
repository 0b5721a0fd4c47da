"""What a whole run takes, by formulas: rows, time, money, files, bytes, requests, the driver.

Pure arithmetic on what is known or was measured of a sample; it starts nothing and reads nothing.
Work is linear in rows, files and requests in shards. What a run does only once (engines and workers
that start, models that load, the export) is left out: minutes, whatever the corpus.
"""

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple


class Requests(NamedTuple):
    """Requests to an object store for a shard."""

    reads: float
    """GET and HEAD."""
    writes: float
    """PUT."""


READ = Requests(2, 0)
"""A shard that is read: its size is asked for, then all of it."""
WRITE = Requests(0, 1)
"""A shard that is written: one object."""

REQUESTS = {
    "ingest": Requests(4, 1),  # of a Parquet source: size, footer, metadata, a range of rows
    "label": Requests(2, 1),
    "prepare": Requests(4, 1),  # labels; what was written, for its statistics
    "score": Requests(6, 1),  # row numbers, texts, and the pseudo-labels with the sums
    "select": Requests(4, 1),  # pseudo-labels and uncertainty
    "train": Requests(4, 0),  # selected rows and their texts
    "unique": Requests(2, 0),  # selected rows of each epoch, once more at the end
    "predict": Requests(4, 1),  # texts; what was written, to be counted
    "evaluate": Requests(4, 0),  # labels and gold, where the corpus has any
    "report": Requests(4, 0),  # labels and pseudo-labels
    "report of an epoch": Requests(4, 0),  # uncertainty and selected rows
}
"""Of a shard, by stage, as the code asks for them: READ and WRITE, added up."""
LISTED_AT_ONCE = 1000
"""Names that an object store lists in one request."""
LISTINGS = 4
"""Of a folder in its stage: before, after, for the record of sizes and times, and for the next
command's check. Priced as writes."""

CORPUS_FIXED, LABELS_FIXED, NUMBERS_FIXED, UNCERTAINTY_FIXED = 1000, 1000, 600, 500
"""Bytes of a shard without rows: schema, footer, page headers."""
LABELS_ROW, LABELS_CLASS = 9.5, 5.2
"""Bytes a row of log-probabilities, and more for each label: packed, they hardly get smaller."""
PSEUDO_LABELS_ROW, UNCERTAINTY_ROW, SELECTION_ROW, PREDICTIONS_ROW = 4.6, 4.05, 5.3, 9.6
"""Bytes a row of the tables of numbers."""
RECORD_BYTES = 80
"""Of a file in checksums.json and in the manifest beside it."""

INGEST_RATE = 100_000.0
"""Rows a second and CPU, of texts of some 500 letters in Parquet."""
SELECT_RATE = 8_000_000.0
"""Rows a second and CPU that are selected; as many for the labels that it goes by."""
SHARD_SECONDS = 0.001
"""CPU time of a task for a shard's files, however small."""

DRIVER_MIB = 300.0
"""Of the driver with Ray, and no shards."""
DRIVER_BYTES = 1500.0
"""More of it for each shard: names, counts and checksums while a stage is closed."""
DRIVER_SECONDS = {"ingest": 1e-4, "label": 3e-4, "epoch": 4e-5, "predict": 3e-4, "start": 3e-5}
"""CPU time of the driver for a shard, by stage; `start` is the check of a command. Measured by
`jobs/benchmark.py control`."""

MOST_SHARDS = 100_000
"""More cost listings, requests and small files; so many are what the driver is tested with."""
SHARDS_EACH = 16
"""Shards for each replica or worker, below which some wait for the others at the end."""
TEST_ROWS_PER_SHARD = 4096
"""Of the test set."""
USUAL_ROWS, FEWEST_ROWS, MOST_ROWS = 8192, 256, 2**20
"""Rows of a shard: what is taken where nothing speaks against it, and bounds."""
SHARD_BYTES = 2**28
"""Text of a shard, at most: a worker holds two of them."""
SHARD_FOR_SECONDS = 1800.0
"""A replica's time for a shard, at most: that is what a kill loses."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What is known of a run."""

    rows: int
    """Of the corpus, those that can be used."""
    rows_per_shard: int
    classes: int
    teachers: int = 1
    teacher_rate: float
    """Rows a second of one replica; of several teachers the mean time a row, inverted."""
    teacher_replicas: int = 1
    teacher_gpus: float = 1.0
    """GPUs of one of them, on all its nodes; 1 where there are none."""
    prompt_tokens: float = 0.0
    """Tokens of a prompt, its shared beginning included."""
    epochs: int = 4
    score_rate: float
    """Rows a second of one worker that scores."""
    train_rate: float
    """Rows a second of one worker that trains."""
    workers: int = 1
    predict_replicas: int = 1
    student_tokens: float = 0.0
    """Tokens of a text as the student reads it."""
    student_parameters: int = 0
    scores: bool = True
    """Whether the policy asks the student."""
    selected: tuple[float, ...] = ()
    """Share of the labelled rows that each epoch trains on; see `selected_shares`."""
    labels_kept: bool = False
    """Whether the teacher's distributions are kept beside the pseudo-labels."""
    targets_kept: bool = False
    """Whether they are kept beside the selected rows."""
    student_distributions: bool = False
    """Whether the student's are kept beside its uncertainty."""
    probabilities: bool = False
    """Whether predictions hold the student's."""
    budget: float = 1.0
    """Share of the rows that the teacher labels."""
    rounds: int = 1
    first: float = 1.0
    """Share of the budget in the first round."""
    gold: bool = False
    """Whether the corpus has gold to measure the teacher by."""
    test_rows: int = 0
    text_bytes: float = 500.0
    """Of a row of the corpus, as it is stored."""
    on_gpus: bool = True
    """Whether replicas and workers hold GPUs; else CPUs."""
    cpus: int = 1
    """For ingest and selection."""
    price: float | None = None
    """Of a replica or worker for an hour."""
    cpu_price: float | None = None
    """Of a CPU for an hour."""

    @property
    def shards(self) -> int:
        """ceil(rows / rows_per_shard)."""
        return -(-self.rows // self.rows_per_shard)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What a stage takes."""

    name: str
    rows: float
    """That go through it."""
    tokens: float = 0.0
    """That its model reads."""
    workers: int
    on: str
    """What a worker holds: `GPU` or `CPU`."""
    rate: float
    """Rows a second of one worker."""
    held: float = 1.0
    """Of what it is on, that a worker holds."""
    model: bool = False
    """Whether the workers are a model's."""
    seconds: float
    """With all of them, each busy to the end."""
    cost: float | None
    files: int = 0
    """That it leaves: shards of a table."""
    bytes: float = 0.0
    """Of these."""
    reads: float = 0.0
    """Requests that read."""
    writes: float = 0.0
    """Requests that write or list."""


@dataclass(frozen=True)
class Estimate:
    """What a run takes."""

    setup: Setup
    stages: list[Stage] = field(default_factory=list)

    def total(self, name: str) -> float:
        """The sum of a figure over all stages."""
        return float(sum(getattr(stage, name) for stage in self.stages))

    @property
    def worker_hours(self) -> float:
        """Hours of GPUs, or of workers where there are none."""
        models = [stage for stage in self.stages if stage.model]
        return sum(stage.seconds * stage.workers * stage.held for stage in models) / 3600

    @property
    def cost(self) -> float | None:
        """In all; None where no price is known."""
        known = [stage.cost for stage in self.stages if stage.cost is not None]
        return sum(known) if known else None

    @property
    def driver_seconds(self) -> float:
        """CPU time of the driver: shards times DRIVER_SECONDS of each stage and epoch."""
        each = dict(DRIVER_SECONDS)
        each["epoch"] *= self.setup.epochs
        return self.setup.shards * sum(each.values())

    @property
    def driver_mib(self) -> float:
        """DRIVER_MIB + shards x DRIVER_BYTES."""
        return DRIVER_MIB + self.setup.shards * DRIVER_BYTES / 2**20

    def to_json(self) -> dict[str, Any]:
        """All of it, for a file."""
        names = ("seconds", "files", "bytes", "reads", "writes", "tokens")
        return {
            "setup": asdict(self.setup),
            "shards": self.setup.shards,
            "recommended_rows_per_shard": recommended_rows_per_shard(self.setup),
            "stages": [asdict(stage) for stage in self.stages],
            "total": {name: self.total(name) for name in names} | {"cost": self.cost},
            "worker_hours": self.worker_hours,
            "driver": {"seconds": self.driver_seconds, "mib": self.driver_mib},
        }


def estimate(setup: Setup) -> Estimate:
    """What a run takes, stage by stage in their order.

    A model's seconds are rows / (rate x workers). Those of a task are
    (rows / rate + shards x SHARD_SECONDS) / CPUs. Requests are shards x REQUESTS, and LISTINGS of
    each folder that is written.
    """
    labelled = setup.rows * setup.budget
    stages = [
        _task(setup, "ingest", setup.rows, INGEST_RATE, setup.text_bytes, CORPUS_FIXED),
        _model(
            setup, "label", labelled + setup.test_rows, setup.teacher_rate, setup.teacher_replicas,
            setup.prompt_tokens * setup.teachers,
            row=_labels_row(setup), fixed=LABELS_FIXED, stored=labelled, copies=_label_tables(setup),
            held=setup.teacher_gpus,
        ),
    ]  # fmt: skip
    for number in range(setup.rounds - 1 if setup.budget < 1 else 0):
        stages += _round(setup, number)
    stages += _epochs(setup, labelled, "")
    reported = REQUESTS["report"].reads + setup.epochs * REQUESTS["report of an epoch"].reads
    stages[-1] = replace(stages[-1], reads=stages[-1].reads + setup.shards * reported)
    if setup.test_rows or setup.gold:
        stages.append(_evaluate(setup))
    row = LABELS_ROW + LABELS_CLASS * setup.classes if setup.probabilities else PREDICTIONS_ROW
    stages.append(
        _model(
            setup, "predict", setup.rows, setup.score_rate, setup.predict_replicas,
            setup.student_tokens, row=row, fixed=LABELS_FIXED, stored=setup.rows, copies=1,
        )
    )  # fmt: skip
    return Estimate(setup, stages)


def _round(setup: Setup, number: int) -> list[Stage]:
    """The student between two rounds of labelling: trained on the labels so far, asked about all
    rows. Its shards are deleted when it has served."""
    later = (1 - setup.first) / max(setup.rounds - 1, 1)
    labelled = setup.rows * setup.budget * (setup.first + later * number)
    name = f"round {number + 1} "
    return [
        *_epochs(setup, labelled, name),
        _model(
            setup, f"{name}predict", setup.rows, setup.score_rate, setup.predict_replicas,
            setup.student_tokens, requests=REQUESTS["predict"],
        ),
    ]  # fmt: skip


def _epochs(setup: Setup, labelled: float, prefix: str) -> list[Stage]:
    """Pseudo-labels, then for each epoch score, select, train."""
    distribution = LABELS_CLASS * setup.classes + LABELS_ROW - PSEUDO_LABELS_ROW
    row = PSEUDO_LABELS_ROW + (distribution if setup.labels_kept else 0.0)
    chosen_row = SELECTION_ROW + (distribution if setup.targets_kept else 0.0)
    stages = [
        _task(setup, f"{prefix}prepare", labelled, SELECT_RATE, row, NUMBERS_FIXED, "prepare")
    ]
    for epoch in range(setup.epochs):
        name = f"{prefix}epoch {epoch + 1} "
        share = setup.selected[epoch]
        if setup.scores:
            halves = 2.0 * setup.classes if setup.student_distributions else 0.0
            stages.append(
                _model(
                    setup, f"{name}score", labelled, setup.score_rate, setup.workers,
                    setup.student_tokens, row=UNCERTAINTY_ROW + halves, fixed=UNCERTAINTY_FIXED,
                    stored=labelled, copies=1, requests=REQUESTS["score"],
                )
            )  # fmt: skip
        selected = labelled * share
        stage = _task(setup, f"{name}select", labelled, SELECT_RATE, 0.0, NUMBERS_FIXED, "select")
        written = stage.bytes + selected * chosen_row
        stages.append(replace(stage, bytes=written))
        stages.append(
            _model(
                setup, f"{name}train", selected, setup.train_rate, setup.workers,
                setup.student_tokens, requests=REQUESTS["train"],
            )
        )  # fmt: skip
    unique = setup.shards * setup.epochs * REQUESTS["unique"].reads
    return [*stages[:-1], replace(stages[-1], reads=stages[-1].reads + unique)]


def _evaluate(setup: Setup) -> Stage:
    """The student on the test set, whose three tables are counted here; the teacher on the corpus,
    where it has gold."""
    stage = _model(
        setup, "evaluate", setup.test_rows, setup.score_rate, setup.predict_replicas,
        setup.student_tokens, requests=REQUESTS["evaluate"] if setup.gold else Requests(0, 0),
    )  # fmt: skip
    shards = -(-setup.test_rows // TEST_ROWS_PER_SHARD)
    row = setup.text_bytes + 2 * _labels_row(setup)
    written = setup.test_rows * row + shards * 3 * (LABELS_FIXED + RECORD_BYTES)
    return replace(stage, files=3 * shards, bytes=written)


def _label_tables(setup: Setup) -> int:
    """Folders of labels: each teacher's, and where there are several the combined ones."""
    return setup.teachers + (setup.teachers > 1)


def _labels_row(setup: Setup) -> float:
    return LABELS_ROW + LABELS_CLASS * setup.classes


def _task(
    setup: Setup, name: str, rows: float, rate: float, row: float, fixed: float, kind: str = ""
) -> Stage:
    """A stage of Ray Data tasks on CPUs that writes a shard of one table for each shard."""
    shards, requests = setup.shards, REQUESTS[kind or name]
    seconds = (rows / rate + shards * SHARD_SECONDS) / setup.cpus
    return Stage(
        name=name, rows=rows, workers=setup.cpus, on="CPU", rate=rate, seconds=seconds,
        cost=_cost(setup.cpu_price, seconds, setup.cpus),
        files=shards, bytes=rows * row + shards * (fixed + RECORD_BYTES),
        reads=shards * requests.reads, writes=shards * requests.writes + _listings(shards),
    )  # fmt: skip


def _model(
    setup: Setup, name: str, rows: float, rate: float, workers: int, tokens: float, *,
    row: float = 0.0, fixed: float = 0.0, stored: float = 0.0, copies: int = 0, held: float = 1.0,
    requests: Requests | None = None,
) -> Stage:  # fmt: skip
    """A stage of a model's replicas or workers.

    Args:
        setup: the run.
        name: of the stage.
        rows: that the model reads.
        rate: rows a second of one of them.
        workers: how many there are.
        tokens: of a row.
        row: bytes that are stored of a row.
        fixed: bytes of a shard beside its rows.
        stored: rows that are stored.
        copies: tables that it writes.
        held: GPUs of a worker.
        requests: of a shard, where they are not those of its name.
    """
    seconds, shards = rows / (rate * workers), setup.shards
    asked = requests or REQUESTS[name]
    return Stage(
        name=name, rows=rows, tokens=rows * tokens, workers=workers,
        on="GPU" if setup.on_gpus else "CPU", rate=rate, held=held, model=True,
        seconds=seconds,
        cost=_cost(setup.price, seconds, workers), files=shards * copies,
        bytes=copies * (stored * row + shards * (fixed + RECORD_BYTES)),
        reads=shards * asked.reads * max(copies, 1),
        writes=shards * asked.writes * max(copies, 1) + copies * _listings(shards),
    )  # fmt: skip


def _listings(shards: int) -> float:
    return float(LISTINGS * -(-shards // LISTED_AT_ONCE))


def _cost(price: float | None, seconds: float, workers: int) -> float | None:
    return None if price is None else price * workers * seconds / 3600


def selected_shares(
    policy: str, epochs: int, *, warmup: int = 1, fraction: float = 0.25, parts: int = 4,
    keep: float = 0.9,
) -> tuple[float, ...]:  # fmt: skip
    """The share of the labelled rows that each epoch trains on, before anything is known of them.

    `all`: 1. `random`: `fraction`. `refined`: `keep` of one of `parts`. The others by their
    signals: a row is above the mean of its class by one signal every other time, by two a quarter
    of the times; in the warm-up there is one.
    """
    if policy == "all":
        return (1.0,) * epochs
    if policy == "random":
        return (fraction,) * epochs
    if policy == "refined":
        return (keep / min(parts, epochs),) * epochs
    later = 0.25 if policy == "llkd" else 0.5
    return tuple(0.5 if epoch < warmup else later for epoch in range(epochs))


def recommended_rows_per_shard(setup: Setup) -> int:
    """A power of two: USUAL_ROWS, unless that gives more than MOST_SHARDS (then more), or less than
    SHARDS_EACH for each replica and worker (then fewer); within what a worker can hold and what a
    kill may lose."""
    actors = max(setup.teacher_replicas, setup.workers, setup.predict_replicas)
    rows = float(USUAL_ROWS)
    if setup.rows > rows * MOST_SHARDS:
        rows = 2.0 ** math.ceil(math.log2(setup.rows / MOST_SHARDS))
    elif setup.rows < rows * SHARDS_EACH * actors:
        rows = 2.0 ** math.floor(math.log2(max(setup.rows / (SHARDS_EACH * actors), 1)))
    held = SHARD_BYTES / max(setup.text_bytes, 1)
    lost = SHARD_FOR_SECONDS * setup.teacher_rate
    most = 2.0 ** math.floor(math.log2(max(min(held, lost, MOST_ROWS), FEWEST_ROWS)))
    return int(max(min(rows, most), FEWEST_ROWS))


def shards_advice(setup: Setup) -> str | None:
    """What to change where shards are too many or too few; None where they are not."""
    actors = max(setup.teacher_replicas, setup.workers, setup.predict_replicas)
    better = recommended_rows_per_shard(setup)
    given, shards = setup.rows_per_shard, setup.shards
    text = f"corpus.rows_per_shard = {given:,} gives {shards:,} shards"
    if shards > MOST_SHARDS and better > given:
        return (
            f"{text}: with {better:,} there are {-(-setup.rows // better):,}, and fewer requests."
        )
    if shards < SHARDS_EACH * actors / 4 and better < given:
        return (
            f"{text} for {actors} replicas or workers, of which some will wait: with {better:,} "
            f"there are {-(-setup.rows // better):,}."
        )
    if given > 2 * better and given * setup.text_bytes > SHARD_BYTES:
        return f"{text} of {given * setup.text_bytes / 2**20:,.0f} MiB text each: take {better:,}."
    return None
