"""One pass over the shards for each part of the report; only sums and a few rows come back.

Each pass returns None if there are no shards. Shards not written yet are skipped, so that the
report of a running job shows what exists.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llkd.cluster.shard_tasks import sum_over_shards
from llkd.config.run import RunConfig
from llkd.core.calibration import Calibration, no_calibration
from llkd.core.metrics import evaluate
from llkd.core.statistics import count_by
from llkd.core.thresholds import TOLERANCE, Thresholds
from llkd.distill.selection_counts import COUNTS, Counts
from llkd.results.report.totals import (
    BINS,
    CELLS,
    Totals,
    bins_of,
    evaluation_sums,
    top_rows,
)
from llkd.store.arrays import class_indices, matrix
from llkd.store.folder import Folder
from llkd.store.schema import (
    CONFIDENCE,
    GOLD,
    LABEL,
    LOGPROBS,
    PROBS,
    ROW,
    UNCERTAINTY,
    WEIGHT,
    RunLayout,
)

SELECTED, TEACHER_UNSURE, STUDENT_SURE, OTHER = range(4)
"""Why an epoch selected a row or left it out."""
BOTH, STUDENT_ALONE, TEACHER_ALONE, NEITHER = range(4)
"""Who labels a test row correctly."""
THRESHOLD_POLICIES = ("llkd", "teacher_confidence", "student_uncertainty")
"""Policies with thresholds for the teacher's confidence and the student's uncertainty."""
MAX_PLANES = 24
"""Labels with a confidence-uncertainty plane of their own."""
MAX_REJECTS = 3
"""Rejected rows kept of each reason."""


def _total(work: Callable[[int], Totals], shards: Collection[int]) -> Totals | None:
    """The sum over some shards; None without shards."""
    if not shards:
        return None
    totals: Totals = sum_over_shards(Totals, work, sorted(shards))
    return totals


def teacher_pass(config: RunConfig, dataset: str, calibration: Calibration | None) -> Totals | None:
    """The teacher's labels of a data set, raw and calibrated, against gold if there is any.

    Sums: `raw_c` and `rows_c`, rows by label before and after calibration; `confidence_b`, rows by
    bin of confidence; `second_cc`, the probability that rows of a label give to each label;
    evaluations `raw` and `calibrated`.
    """
    layout = RunLayout(config.run_dir)
    source = config.source(dataset)
    with_gold = source is not None and source.label_column is not None
    work = partial(_teacher_shard, layout, dataset, calibration, with_gold)
    return _total(work, Folder(layout.labels(dataset)).shards())


def _teacher_shard(
    layout: RunLayout,
    dataset: str,
    calibration: Calibration | None,
    with_gold: bool,
    shard: int,
) -> Totals:
    table = Folder(layout.labels(dataset)).read_shard(shard, [ROW, LOGPROBS])
    logprobs_nc = matrix(table[LOGPROBS])
    classes = logprobs_nc.shape[1]
    raw_nc = no_calibration(classes).apply(logprobs_nc)
    probs_nc = raw_nc if calibration is None else calibration.apply(logprobs_nc)
    label_n = probs_nc.argmax(axis=1)
    second_cc = np.zeros((classes, classes))
    np.add.at(second_cc, label_n, probs_nc)
    sums = {
        "raw_c": np.bincount(raw_nc.argmax(axis=1), minlength=classes),
        "rows_c": np.bincount(label_n, minlength=classes),
        "confidence_b": np.bincount(bins_of(probs_nc.max(axis=1), BINS), minlength=BINS),
        "second_cc": second_cc,
    }
    if with_gold:
        known_n, gold_n = _gold(layout, dataset, shard, table[ROW])
        sums |= evaluation_sums("raw", evaluate(raw_nc[known_n], gold_n))
        sums |= evaluation_sums("calibrated", evaluate(probs_nc[known_n], gold_n))
    return Totals(sums)


def _gold(
    layout: RunLayout, dataset: str, shard: int, row_n: pa.ChunkedArray
) -> tuple[np.ndarray, np.ndarray]:
    """(mask of the rows that have gold, their gold classes)."""
    gold_n = Folder(layout.rows(dataset)).read_shard(shard, [GOLD])[GOLD].take(row_n)
    return gold_n.is_valid().to_numpy(), gold_n.drop_null().to_numpy()


def epochs_pass(
    config: RunConfig, stats: Sequence[dict[str, Any]], shards: Sequence[int]
) -> Totals | None:
    """What the epochs selected; E epochs.

    Sums: `why_ec4`, rows by epoch, label and reason; `visits_ce`, rows by label and number of
    epochs that selected them; `uncertainty_e2b`, rows by epoch, selected or not, and bin;
    `plane_e2gg`, rows by epoch, selected or not, cell of confidence and of uncertainty;
    `label_plane_c2gg`, the same for the last epoch and the largest labels.
    Rows: `useful`, by their summed weights in the loss; `unsure`, never selected, of least
    confidence.
    """
    if not stats:
        return None
    epochs, layout = [epoch_stats["epoch"] for epoch_stats in stats], RunLayout(config.run_dir)
    means = [_mean_weight(layout, epoch) for epoch in epochs]
    scored = [_scored_shards(layout, epoch_stats) for epoch_stats in stats]
    return _total(partial(_epochs_shard, config, stats, means, scored), shards)


def _scored_shards(layout: RunLayout, stats: dict[str, Any]) -> set[int]:
    """The shards with uncertainty; none for a policy that does not use it."""
    if all(label_stats["mean_uncertainty"] is None for label_stats in stats["classes"].values()):
        return set()
    return Folder(layout.uncertainty(stats["epoch"])).shards()


def _mean_weight(layout: RunLayout, epoch: int) -> float:
    counts = Counts.from_json(Folder(layout.selection(epoch)).read_json(COUNTS))
    return counts.weight_sum / max(int(counts.selected_s.sum()), 1)


def planes_of(stats: dict[str, Any]) -> list[int]:
    """The indices of the labels whose planes `epochs_pass` counts: the most frequent ones."""
    rows = [label_stats["rows"] for label_stats in stats["classes"].values()]
    return [int(i) for i in np.sort(np.argsort(rows)[::-1][:MAX_PLANES])]


@dataclass(frozen=True)
class _Epoch:
    """N labelled rows of a shard in an epoch."""

    stats: dict[str, Any]
    label_n: np.ndarray
    confidence_n: np.ndarray
    uncertainty_n: np.ndarray | None
    """None if the epoch did not score the shard, or its file is lost."""
    selected_n: np.ndarray
    """Booleans."""

    def reasons(self, classes: int) -> np.ndarray:
        """Rows by label and reason, shape (C, 4). Without thresholds: selected or other."""
        why_n = np.full(len(self.label_n), OTHER)
        if self.stats["policy"] in THRESHOLD_POLICIES:
            thresholds = Thresholds.from_json(self.stats["thresholds"])
            if self.uncertainty_n is not None:
                lowest_n = thresholds.uncertainty_c[self.label_n] - TOLERANCE
                why_n[self.uncertainty_n < lowest_n] = STUDENT_SURE
            lowest_n = thresholds.confidence_c[self.label_n] - TOLERANCE
            why_n[self.confidence_n < lowest_n] = TEACHER_UNSURE
        why_n[self.selected_n] = SELECTED
        return count_by((classes, 4), self.label_n, why_n)

    def histogram(self) -> np.ndarray:
        """Rows by selected or not and bin of uncertainty, shape (2, BINS)."""
        if self.uncertainty_n is None:
            return np.zeros((2, BINS), dtype=np.int64)
        return count_by((2, BINS), self.selected_n, bins_of(self.uncertainty_n, BINS))

    def plane(self, label: int | None = None) -> np.ndarray:
        """Rows by selected or not and cells of confidence and uncertainty: (2, CELLS, CELLS)."""
        shape = (2, CELLS, CELLS)
        if self.uncertainty_n is None:
            return np.zeros(shape, dtype=np.int64)
        own_n = slice(None) if label is None else self.label_n == label
        cells = (
            bins_of(signal, CELLS)[own_n] for signal in (self.confidence_n, self.uncertainty_n)
        )
        return count_by(shape, self.selected_n[own_n], *cells)


def _epochs_shard(
    config: RunConfig,
    stats: Sequence[dict[str, Any]],
    means: Sequence[float],
    scored: Sequence[Collection[int]],
    shard: int,
) -> Totals:
    layout, classes = RunLayout(config.run_dir), len(config.task.labels)
    table = Folder(layout.pseudo_labels).read_shard(shard, [ROW, LABEL, CONFIDENCE])
    row_n, label_n = table[ROW].to_numpy(), table[LABEL].to_numpy()
    confidence_n = table[CONFIDENCE].to_numpy()
    score_n, visits_n = np.zeros(len(row_n)), np.zeros(len(row_n), dtype=np.int64)
    epochs = []
    for epoch_stats, mean, scored_shards in zip(stats, means, scored, strict=True):
        chosen = Folder(layout.selection(epoch_stats["epoch"])).read_shard(shard, [ROW, WEIGHT])
        place_n = np.searchsorted(row_n, chosen[ROW].to_numpy())
        selected_n = np.zeros(len(row_n), dtype=bool)
        selected_n[place_n] = True
        visits_n += selected_n
        score_n[place_n] += chosen[WEIGHT].to_numpy() / max(mean, 1e-30)
        uncertainty_n = None
        if shard in scored_shards:
            uncertainty = Folder(layout.uncertainty(epoch_stats["epoch"]))
            uncertainty_n = uncertainty.read_shard(shard, [UNCERTAINTY])[UNCERTAINTY].to_numpy()
        epochs.append(_Epoch(epoch_stats, label_n, confidence_n, uncertainty_n, selected_n))
    sums = {
        "why_ec4": np.stack([epoch.reasons(classes) for epoch in epochs]),
        "visits_ce": count_by((classes, len(epochs) + 1), label_n, visits_n),
        "uncertainty_e2b": np.stack([epoch.histogram() for epoch in epochs]),
        "plane_e2gg": np.stack([epoch.plane() for epoch in epochs]),
        "label_plane_c2gg": np.stack([epochs[-1].plane(c) for c in planes_of(stats[-1])]),
    }
    columns = {"row": row_n, "teacher": label_n, "confidence": confidence_n, "visits": visits_n}
    if uncertainty_n is not None:
        columns["uncertainty"] = uncertainty_n
    rows = {
        "useful": top_rows(np.where(visits_n > 0, score_n, -np.inf), shard, columns),
        "unsure": top_rows(np.where(visits_n == 0, -confidence_n, -np.inf), shard, columns),
    }
    return Totals(sums, rows)


def test_pass(config: RunConfig, calibration: Calibration | None) -> Totals | None:
    """Teacher and student on the same rows of the test set.

    Sums: evaluations `teacher` and `student`; `outcome_c4`, rows by gold label and who is right
    (BOTH, STUDENT_ALONE, TEACHER_ALONE, NEITHER). Rows: `disagree`, by the lower confidence of
    the two.
    """
    layout = RunLayout(config.run_dir)
    shards = Folder(layout.test_predictions).shards() & Folder(layout.labels("test")).shards()
    return _total(partial(_test_shard, config, calibration), shards)


def _test_shard(config: RunConfig, calibration: Calibration | None, shard: int) -> Totals:
    layout, classes = RunLayout(config.run_dir), len(config.task.labels)
    predictions = Folder(layout.test_predictions).read_shard(shard, [ROW, PROBS])
    row_n, teacher_nc, place_n = _both_labelled(config, "test", shard, calibration, predictions)
    known_n, gold_n = _gold(layout, "test", shard, pa.chunked_array([row_n]))
    row_n, teacher_nc = row_n[known_n], teacher_nc[known_n]
    student_nc = matrix(predictions[PROBS])[place_n[known_n]].astype(np.float64)
    student_right_n = student_nc.argmax(axis=1) == gold_n
    teacher_right_n = teacher_nc.argmax(axis=1) == gold_n
    who_n = np.select(
        [student_right_n & teacher_right_n, student_right_n, teacher_right_n],
        [BOTH, STUDENT_ALONE, TEACHER_ALONE],
        NEITHER,
    )
    sums = {
        **evaluation_sums("teacher", evaluate(teacher_nc, gold_n)),
        **evaluation_sums("student", evaluate(student_nc, gold_n)),
        "outcome_c4": count_by((classes, 4), gold_n, who_n),
    }
    columns = {"row": row_n, "gold": gold_n}
    student_n = student_nc.argmax(axis=1)
    rows = _disagreements(shard, columns, teacher_nc, student_n, student_nc.max(axis=1))
    return Totals(sums, {"disagree": rows})


def corpus_pass(
    config: RunConfig, calibration: Calibration | None, epoch: int | None
) -> Totals | None:
    """Teacher and student on the corpus, if the student's labels of it exist: from
    jobs/predict.py, or from an epoch whose policy keeps the student's distributions.

    Rows: `disagree`, by the lower confidence of the two.
    """
    layout = RunLayout(config.run_dir)
    folder = Folder(layout.predictions("corpus"))
    shards = folder.shards()
    if not shards and epoch is not None:
        folder = Folder(layout.uncertainty(epoch))
        shards = folder.shards()
        if not shards or PROBS not in folder.read_shard(min(shards)).column_names:
            return None
    shards &= Folder(layout.labels("corpus")).shards()
    return _total(partial(_corpus_shard, config, calibration, folder), shards)


def _corpus_shard(
    config: RunConfig, calibration: Calibration | None, folder: Folder, shard: int
) -> Totals:
    table = folder.read_shard(shard)
    row_n, teacher_nc, place_n = _both_labelled(config, "corpus", shard, calibration, table)
    if LABEL in table.column_names:  # predictions, with labels by name
        student_n = class_indices(table[LABEL], config.task.label_names)[place_n]
        sure_n = table[CONFIDENCE].to_numpy()[place_n]
    else:
        student_nc = matrix(table[PROBS])[place_n].astype(np.float64)
        student_n, sure_n = student_nc.argmax(axis=1), student_nc.max(axis=1)
    rows = _disagreements(shard, {"row": row_n}, teacher_nc, student_n, sure_n)
    return Totals(rows={"disagree": rows})


def _both_labelled(
    config: RunConfig, dataset: str, shard: int, calibration: Calibration | None, student: pa.Table
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows that teacher and student both labelled, the teacher's distributions of these, their
    positions in the student's table)."""
    labels = Folder(RunLayout(config.run_dir).labels(dataset)).read_shard(shard, [ROW, LOGPROBS])
    row_n, at_n, place_n = np.intersect1d(
        labels[ROW].to_numpy(), student[ROW].to_numpy(), return_indices=True
    )
    calibration = calibration or no_calibration(len(config.task.labels))
    return row_n, calibration.apply(matrix(labels[LOGPROBS])[at_n]), place_n


def _disagreements(
    shard: int,
    columns: dict[str, np.ndarray],
    teacher_nc: np.ndarray,
    student_n: np.ndarray,
    sure_n: np.ndarray,
) -> list[dict[str, Any]]:
    """The rows of which teacher and student are most confident of different labels."""
    teacher_n, confidence_n = teacher_nc.argmax(axis=1), teacher_nc.max(axis=1)
    score_n = np.where(teacher_n != student_n, np.minimum(confidence_n, sure_n), -np.inf)
    columns = {
        **columns, "teacher": teacher_n, "confidence": confidence_n, "student": student_n,
        "student_confidence": sure_n,
    }  # fmt: skip
    return top_rows(score_n, shard, columns)


def rejects_pass(folder: Folder) -> Totals | None:
    """The rows that a stage rejected. Sums: rows by reason. Rows: the first ones of each reason."""
    return _total(partial(_rejects_shard, folder), folder.shards())


def _rejects_shard(folder: Folder, shard: int) -> Totals:
    table = folder.read_shard(shard)
    first: dict[str, list[dict[str, Any]]] = {}
    for row in table.slice(0, 1000).to_pylist():
        kept = first.setdefault(row["reason"], [])
        if len(kept) < MAX_REJECTS:
            kept.append({"score": -shard, **row})
    counts = pc.value_counts(table["reason"].combine_chunks()).to_pylist()
    return Totals({entry["values"]: np.array(entry["counts"]) for entry in counts}, first)
