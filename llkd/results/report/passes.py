"""One pass over the shards for each part of the report; only sums and a few rows come back.

Each pass returns empty totals if there are no shards. Shards not written yet are skipped, so that the
report of a running job shows what exists.
"""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow.compute as pc

from llkd.cluster.shard_tasks import sum_over_shards
from llkd.config.run import RunConfig
from llkd.core.calibration import Calibration, no_calibration
from llkd.core.metrics import evaluate
from llkd.core.statistics import count_by
from llkd.core.thresholds import TOLERANCE, Thresholds
from llkd.distill.selection_counts import COUNTS, Counts
from llkd.results.gold import gold_of
from llkd.results.report.totals import (
    BINS,
    CELLS,
    MAX_REJECTS,
    Totals,
    bins_of,
    evaluation_sums,
    top_rows,
)
from llkd.store.arrays import class_indices, matrix
from llkd.store.folder import Folder
from llkd.store.schema import (
    CONFIDENCE,
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
"""Who labels a test row correctly: two for the student's mistake, one for the teacher's."""
THRESHOLD_POLICIES = ("llkd", "teacher_confidence", "student_uncertainty")
"""Policies with thresholds for the teacher's confidence and the student's uncertainty."""
MAX_PLANES = 24
"""Labels with a confidence-uncertainty plane of their own."""


def _total(work: Callable[[int], Totals], shards: Collection[int]) -> Totals:
    """The sum over some shards; empty without shards."""
    if not shards:
        return Totals()
    totals: Totals = sum_over_shards(Totals, work, sorted(shards))
    return totals


def teacher_pass(config: RunConfig, dataset: str, calibration: Calibration | None) -> Totals:
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
        known_n, gold_n = gold_of(layout, dataset, shard, table[ROW])
        sums |= evaluation_sums("raw", evaluate(raw_nc[known_n], gold_n))
        sums |= evaluation_sums("calibrated", evaluate(probs_nc[known_n], gold_n))
    return Totals(sums)


def epochs_pass(
    config: RunConfig, stats: Sequence[dict[str, Any]], shards: Collection[int]
) -> Totals:
    """What the epochs selected in some shards; E epochs.

    Sums: `why_ec4`, rows by epoch, label and reason; `visits_ce`, rows by label and number of
    epochs that selected them; `uncertainty_e2b`, rows by epoch, selected or not, and bin;
    `plane_e2gg`, rows by epoch, selected or not, cell of confidence and of uncertainty;
    `label_plane_c2gg`, the same for the last epoch and the largest labels.
    Rows: `useful`, by their summed weights in the loss; `unsure`, never selected, of least
    confidence.
    """
    if not stats:
        return Totals()
    if shards is None:
        shards = Folder(RunLayout(config.run_dir).pseudo_labels).shards()
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


def _epochs_shard(
    config: RunConfig,
    stats: Sequence[dict[str, Any]],
    means: Sequence[float],
    scored: Sequence[Collection[int]],
    shard: int,
) -> Totals:
    layout, classes = RunLayout(config.run_dir), len(config.task.labels)
    table = Folder(layout.pseudo_labels).read_shard(shard, [ROW, LABEL, CONFIDENCE])
    row_n, label_n, confidence_n = (column.to_numpy() for column in table.columns)
    score_n, visits_n = np.zeros(len(row_n)), np.zeros(len(row_n), dtype=np.int64)
    sums: dict[str, list[np.ndarray]] = {"why_ec4": [], "uncertainty_e2b": [], "plane_e2gg": []}
    for epoch_stats, mean, scored_shards in zip(stats, means, scored, strict=True):
        chosen = Folder(layout.selection(epoch_stats["epoch"])).read_shard(shard, [ROW, WEIGHT])
        place_n = np.searchsorted(row_n, chosen[ROW].to_numpy())
        selected_n = np.zeros(len(row_n), dtype=bool)
        selected_n[place_n] = True
        visits_n += selected_n
        score_n[place_n] += chosen[WEIGHT].to_numpy() / max(mean, 1e-30)
        uncertainty_n = np.full(len(row_n), np.nan)
        if shard in scored_shards:
            uncertainty = Folder(layout.uncertainty(epoch_stats["epoch"]))
            uncertainty_n = uncertainty.read_shard(shard, [UNCERTAINTY])[UNCERTAINTY].to_numpy()
        why_n = _reasons(epoch_stats, label_n, confidence_n, uncertainty_n)
        why_n[selected_n] = SELECTED
        sums["why_ec4"].append(count_by((classes, 4), label_n, why_n))
        scored_n = np.isfinite(uncertainty_n)  # all rows, or none of a shard without scores
        selected_s, unsure_s = selected_n[scored_n], uncertainty_n[scored_n]
        in_bins = count_by((2, BINS), selected_s, bins_of(unsure_s, BINS))
        sums["uncertainty_e2b"].append(in_bins)
        cells = [selected_s, bins_of(confidence_n[scored_n], CELLS), bins_of(unsure_s, CELLS)]
        sums["plane_e2gg"].append(count_by((2, CELLS, CELLS), *cells))
    planes = planes_of(stats[-1])
    own_s = np.isin(label_n[scored_n], planes)
    label_s = np.searchsorted(planes, label_n[scored_n][own_s])
    label_planes = count_by(
        (len(planes), 2, CELLS, CELLS), label_s, *(index_s[own_s] for index_s in cells)
    )
    columns = {"row": row_n, "teacher": label_n, "confidence": confidence_n, "visits": visits_n}
    if scored_n.all():
        columns["uncertainty"] = uncertainty_n
    return Totals(
        {
            **{name: np.stack(by_epoch) for name, by_epoch in sums.items()},
            "visits_ce": count_by((classes, len(stats) + 1), label_n, visits_n),
            "label_plane_c2gg": label_planes,
        },
        {
            "useful": top_rows(np.where(visits_n > 0, score_n, -np.inf), shard, columns),
            "unsure": top_rows(np.where(visits_n == 0, -confidence_n, -np.inf), shard, columns),
        },
    )


def _reasons(
    stats: dict[str, Any], label_n: np.ndarray, confidence_n: np.ndarray, uncertainty_n: np.ndarray
) -> np.ndarray:
    """Why the thresholds of an epoch exclude each row; OTHER if they do not: shape (N,)."""
    why_n = np.full(len(label_n), OTHER)
    if stats["policy"] in THRESHOLD_POLICIES:
        thresholds = Thresholds.from_json(stats["thresholds"])
        why_n[uncertainty_n < thresholds.uncertainty_c[label_n] - TOLERANCE] = STUDENT_SURE
        why_n[confidence_n < thresholds.confidence_c[label_n] - TOLERANCE] = TEACHER_UNSURE
    return why_n


def test_pass(config: RunConfig, calibration: Calibration | None) -> Totals:
    """Teacher and student on the rows of the test set that have gold.

    Sums: evaluations `teacher` and `student`; `outcome_c4`, rows by gold label and who is right
    (BOTH, STUDENT_ALONE, TEACHER_ALONE, NEITHER). Rows: `disagree`, by the lower confidence of
    the two.
    """
    folder = Folder(RunLayout(config.run_dir).test_predictions)
    return _both_pass(config, "test", calibration, folder)


def corpus_pass(config: RunConfig, calibration: Calibration | None, epoch: int | None) -> Totals:
    """Teacher and student on the corpus, if the student's labels of it exist: from
    jobs/predict.py, or from an epoch whose policy keeps the student's distributions.

    Rows: `disagree`, by the lower confidence of the two.
    """
    layout = RunLayout(config.run_dir)
    folder = Folder(layout.predictions("corpus"))
    if not folder.shards() and epoch is not None:
        folder = Folder(layout.uncertainty(epoch))
        shards = folder.shards()
        if shards and PROBS not in folder.read_shard(min(shards)).column_names:
            return Totals()
    return _both_pass(config, "corpus", calibration, folder)


def _both_pass(
    config: RunConfig, dataset: str, calibration: Calibration | None, student: Folder
) -> Totals:
    shards = student.shards() & Folder(RunLayout(config.run_dir).labels(dataset)).shards()
    return _total(partial(_both_shard, config, dataset, calibration, student), shards)


def _both_shard(
    config: RunConfig, dataset: str, calibration: Calibration | None, student: Folder, shard: int
) -> Totals:
    layout, classes = RunLayout(config.run_dir), len(config.task.labels)
    labels = Folder(layout.labels(dataset)).read_shard(shard, [ROW, LOGPROBS])
    predicted = student.read_shard(shard)
    row_n, at_n, place_n = np.intersect1d(
        labels[ROW].to_numpy(), predicted[ROW].to_numpy(), return_indices=True
    )
    sums, columns = dict[str, np.ndarray](), {"row": row_n}
    if dataset == "test":
        known_n, gold_n = gold_of(layout, dataset, shard, row_n)
        at_n, place_n = at_n[known_n], place_n[known_n]
        columns = {"row": row_n[known_n], "gold": gold_n}
    teacher_nc = (calibration or no_calibration(classes)).apply(matrix(labels[LOGPROBS])[at_n])
    teacher_n, teacher_sure_n = teacher_nc.argmax(axis=1), teacher_nc.max(axis=1)
    if LABEL in predicted.column_names:  # predictions, with labels by name
        student_n = class_indices(predicted[LABEL], config.task.label_names)[place_n]
        student_sure_n = predicted[CONFIDENCE].to_numpy()[place_n]
    else:
        student_nc = matrix(predicted[PROBS])[place_n].astype(np.float64)
        student_n, student_sure_n = student_nc.argmax(axis=1), student_nc.max(axis=1)
    if dataset == "test":
        student_nc = matrix(predicted[PROBS])[place_n].astype(np.float64)
        outcome_n = 2 * (student_n != gold_n) + (teacher_n != gold_n)
        sums = {
            **evaluation_sums("teacher", evaluate(teacher_nc, gold_n)),
            **evaluation_sums("student", evaluate(student_nc, gold_n)),
            "outcome_c4": count_by((classes, 4), gold_n, outcome_n),
        }
    score_n = np.minimum(teacher_sure_n, student_sure_n)
    columns |= {
        "teacher": teacher_n, "confidence": teacher_sure_n, "student": student_n,
        "student_confidence": student_sure_n,
    }  # fmt: skip
    rows = top_rows(np.where(teacher_n != student_n, score_n, -np.inf), shard, columns)
    return Totals(sums, {"disagree": rows})


def rejects_pass(folder: Folder) -> Totals:
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
