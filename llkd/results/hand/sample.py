"""Chooses rows of the corpus for a person to label, or to review.

The doubtful rows are found by probes on the frozen student, fitted to the teacher's labels of a sample of up to
16,384 rows; each judges the rows that it was not fitted to (llkd/student/refiner.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llkd.cluster.actor_pool import run_on_actors
from llkd.config.run import RunConfig
from llkd.core.calibration import Calibration
from llkd.core.sampling import disagreement, draw_rows
from llkd.distill.labelled_rows import frozen_student, labelled_sample
from llkd.distill.policy import policy_of
from llkd.distill.precision import alone_on_cpus, chosen_precision, scoring_resources
from llkd.distill.selection import Selector
from llkd.errors import DataError
from llkd.ingest.gold_rows import source_rows
from llkd.ingest.sources import as_text
from llkd.results.hand.files import HandRow, write_files
from llkd.store.folder import Folder
from llkd.store.manifest import read_manifest, require_complete
from llkd.store.schema import ID, LOGPROBS, ROW, TEXT, RunLayout, shard_starts
from llkd.teacher.calibrate import calibrate

SMALLEST = 50
"""Labelled rows below which no probes are fitted, and all rows are drawn uniformly."""
TEACHER, STUDENT = "teacher", "student"


@dataclass(frozen=True)
class Doubts:
    """What teacher and probes say of K labelled rows."""

    shard_k: np.ndarray
    """Shape (K,)."""
    row_k: np.ndarray
    """Of the shard, shape (K,)."""
    teacher_kc: np.ndarray
    """Shape (K, C)."""
    student_kc: np.ndarray
    """Of probes that were fitted to other rows, shape (K, C)."""


class Doubt:
    """One replica: fits the probes."""

    def __init__(
        self, selector: Selector, calibration: Calibration, precision: str, threads: int
    ) -> None:
        self._selector, self._calibration = selector, calibration
        self._student = frozen_student(selector.config, precision, threads)

    def __call__(self, number: int) -> dict[str, Any]:
        """The doubts of a sample of the rows."""
        from llkd.student.refiner import fit_refiner

        rows = labelled_sample(self._selector, self._calibration, self._student)
        arguments = rows.features_nd, rows.teacher_nc, rows.fold_n
        refiner, _ = fit_refiner(*arguments, 1.0, bias=self._student.bias, always=True)
        student_nc = refiner.out_of_fold(rows.features_nd, rows.fold_n)
        return {
            "shard": number,
            "doubts": Doubts(rows.shard_n, rows.row_n, rows.teacher_nc, student_nc),
        }


def write_sample(
    config: RunConfig, rows: int, blind: bool, tracker: Any
) -> tuple[Folder, list[HandRow]]:
    """Write rows to label: half drawn uniformly, half where teacher and probes disagree most.

    Before the teacher has labelled the corpus all are drawn uniformly.

    Args:
        config: the run; its corpus is ingested.
        rows: how many to draw; texts that `gold` already has are left out of these.
        blind: whether to leave out what the teacher says.
        tracker: the progress tracker.

    Returns:
        The folder of the files, a new one, and the rows.

    Raises:
        DataError: every drawn row is labelled by hand already.
        StudentError: the student cannot be loaded.
    """
    shards, counts = _population(config)
    doubts = _doubts(config, tracker) if shards and sum(counts) >= SMALLEST else None
    starts = shard_starts(counts)
    random = np.random.default_rng([config.seed, _next(config, "sample")])
    size_k = at_k = np.zeros(0, np.int64)
    if doubts is not None:
        said_k, own_k = doubts.teacher_kc.argmax(axis=1), doubts.student_kc.argmax(axis=1)
        order_k = np.lexsort((doubts.student_kc.max(axis=1), own_k, said_k))
        size_k = disagreement(doubts.teacher_kc, doubts.student_kc)[order_k]
        at_k = _places(config, starts, doubts)[order_k]
    drawn = draw_rows(sum(counts), rows, size_k, at_k, random)
    read, row_of = _Reader(config, shards), dict[int, HandRow]()
    for k in np.argsort(drawn.index_k).tolist():  # each shard is read once
        index = int(drawn.index_k[k])
        shard = int(np.searchsorted(starts, index, side="right")) - 1
        design = bool(drawn.uniform_k[k]), float(drawn.probability_k[k])
        row_of[k] = read.row(shard, index - starts[shard], *design, not blind)
    found = [row_of[k] for k in range(len(row_of))]
    return _written(config, "sample", found)


def write_review(config: RunConfig, rows: int, tracker: Any) -> tuple[Folder, list[HandRow]]:
    """Write the rows whose teacher's label is most probably wrong, with both answers: those on which the probes say
    another label, the lowest product of their and the teacher's probability of its label first.

    Args:
        config: the run; the teacher has labelled its corpus.
        rows: how many.
        tracker: the progress tracker.

    Raises:
        IncompleteError: the corpus is not labelled.
        DataError: too few rows are labelled.
        StudentError: the student cannot be loaded.
    """
    counts = require_complete(Folder(RunLayout(config.run_dir).labels("corpus")), "label").results[
        "rows"
    ]
    if sum(counts) < SMALLEST:
        raise DataError(
            f"{sum(counts)} labelled rows are too few to find doubtful ones; {SMALLEST} are needed"
        )
    doubts = _doubts(config, tracker)
    said_k, own_k = doubts.teacher_kc.argmax(axis=1), doubts.student_kc.argmax(axis=1)
    every_k = np.arange(len(said_k))
    agreed_k = doubts.teacher_kc[every_k, said_k] * doubts.student_kc[every_k, said_k]
    first_k = np.argsort(np.where(own_k == said_k, np.inf, agreed_k), kind="stable")[:rows]
    first_k = first_k[own_k[first_k] != said_k[first_k]]
    read, names = _Reader(config, True), config.task.label_names
    found = []
    for k in first_k.tolist():
        row = read.labelled_row(int(doubts.shard_k[k]), int(doubts.row_k[k]))
        own = names[own_k[k]], float(doubts.student_kc[k, own_k[k]])
        found.append(HandRow(row.id, row.text, None, None, {STUDENT: own, **row.suggestions}))
    return _written(config, "review", found)


def _population(config: RunConfig) -> tuple[bool, list[int]]:
    """(whether the corpus is labelled; its labelled rows, or else all rows, by shard)."""
    layout = RunLayout(config.run_dir)
    labelled = read_manifest(Folder(layout.labels("corpus")))
    if labelled is not None and labelled.complete:
        return True, list(labelled.results["rows"])
    ingested = require_complete(Folder(layout.rows("corpus")), "ingest")
    return False, list(ingested.results["rows"])


def _doubts(config: RunConfig, tracker: Any) -> Doubts:
    ingested = require_complete(Folder(RunLayout(config.run_dir).rows("corpus")), "ingest")
    selector = Selector(config, shard_starts(ingested.results["rows"]), policy_of(config))
    resources = scoring_resources(config)
    precision = chosen_precision(config, resources)
    arguments = (selector, calibrate(config), precision, max(int(resources.get("CPU", 1)), 1))
    tracker.doing.remote("probes that find doubtful rows")
    if alone_on_cpus():
        found = Doubt(*arguments)(0)
    else:
        [found] = run_on_actors(Doubt, arguments, [0], resources=resources, pool=(1, 1))
    doubts: Doubts = found["doubts"]
    return doubts


def _places(config: RunConfig, starts: Sequence[int], doubts: Doubts) -> np.ndarray:
    """The place of each of K rows among all labelled rows, int64, shape (K,)."""
    labels, place_k = (
        Folder(RunLayout(config.run_dir).labels("corpus")),
        np.zeros(len(doubts.row_k), np.int64),
    )
    for shard in np.unique(doubts.shard_k).tolist():
        of_k = doubts.shard_k == shard
        row_n = labels.read_shard(shard, [ROW])[ROW].to_numpy()
        place_k[of_k] = starts[shard] + np.searchsorted(row_n, doubts.row_k[of_k])
    return place_k


class _Reader:
    """Reads single rows; keeps the shard that it read last."""

    def __init__(self, config: RunConfig, labelled: bool) -> None:
        self._config, self._layout = config, RunLayout(config.run_dir)
        self._calibration = calibrate(config) if labelled else None
        self._shard, self._row_n = -1, np.zeros(0, np.int64)
        self._rows: Any = None
        self._logprobs: Any = None

    def _read(self, shard: int) -> Any:
        if shard != self._shard:
            with_id = [ID] if self._config.corpus.id_column else []
            self._rows = Folder(self._layout.rows("corpus")).read_shard(shard, [TEXT, *with_id])
            self._row_n, self._shard = np.arange(len(self._rows)), shard
            if self._calibration is not None:
                labels = Folder(self._layout.labels("corpus")).read_shard(shard, [ROW, LOGPROBS])
                self._row_n, self._logprobs = labels[ROW].to_numpy(), labels[LOGPROBS]
        return self._rows

    def labelled_row(self, shard: int, row: int) -> HandRow:
        """A row by its number in the shard, with the teacher's answer."""
        self._read(shard)
        return self.row(shard, int(np.searchsorted(self._row_n, row)), None, None, True)

    def row(
        self, shard: int, offset: int, uniform: bool | None, probability: float | None, tells: bool
    ) -> HandRow:
        """The row at a place among the shard's labelled rows."""
        rows = self._read(shard)
        row = int(self._row_n[offset])
        own = rows[ID][row].as_py() if self._config.corpus.id_column else f"{shard:05d}-{row}"
        suggestions: dict[str, tuple[str, float]] = {}
        if tells and self._calibration is not None and self._logprobs is not None:
            logprobs_1c = np.array([self._logprobs[offset].as_py()])
            [probs_c] = self._calibration.apply(logprobs_1c)
            said = int(probs_c.argmax())
            suggestions[TEACHER] = self._config.task.label_names[said], float(probs_c[said])
        return HandRow(own or "", rows[TEXT][row].as_py(), uniform, probability, suggestions)


def _next(config: RunConfig, kind: str) -> int:
    """The number of the next sample or review: what a person may have filled in is never replaced."""
    number = 1
    while Folder(RunLayout(config.run_dir).hand(f"{kind}-{number:02d}")).exists("rows.csv"):
        number += 1
    return number


def _written(config: RunConfig, kind: str, found: list[HandRow]) -> tuple[Folder, list[HandRow]]:
    """Write the rows that are not labelled by hand already."""
    known = set()
    if config.gold is not None:
        known = {
            as_text(row.text) for _, row in source_rows(config.gold, "gold") if as_text(row.gold)
        }
    rows = list({row.text: row for row in found if row.text not in known}.values())
    if not rows:
        raise DataError(
            f"No row is left for {kind}: all that were chosen are labelled by hand already, or none is doubtful.",
            "Ask for more --rows.",
        )
    folder = Folder(RunLayout(config.run_dir).hand(f"{kind}-{_next(config, kind):02d}"))
    write_files(folder, rows, config.task.label_names)
    return folder, rows
