"""One way over the shards for each thing that a report shows: only sums and a few rows come back.

Every function returns None where there is nothing to look at. Shards that are not written yet are
left out, so that a run in progress shows what is there.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llkd.cluster.shard_tasks import sum_over_shards
from llkd.config.run import RunConfig
from llkd.core.calibration import Calibration, no_calibration
from llkd.core.metrics import evaluate
from llkd.core.tally import Tally
from llkd.core.thresholds import TOLERANCE, Thresholds
from llkd.distill.selection_counts import COUNTS, Counts
from llkd.results.report.found import BINS, CELLS, Found, bins_of, count_by, counted, standing_out
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
"""Why a row was or was not taken in an epoch."""
BAR_POLICIES = ("llkd", "teacher_confidence", "student_uncertainty")
"""Their thresholds are bars for the teacher's confidence and the student's uncertainty."""
MOST_PLANES = 24
"""Labels whose plane of confidence and uncertainty is drawn apart."""


def over(work: Any, shards: Sequence[int]) -> Found | None:
    """The sum over some shards; None of none."""
    if not shards:
        return None
    found: Found = sum_over_shards(Found, work, sorted(shards))
    return found


def teacher_pass(config: RunConfig, dataset: str, calibration: Calibration | None) -> Found | None:
    """The teacher's labels of a data set, raw and calibrated, against gold where there is any.

    Sums: `raw_c` and `rows_c`, rows by label before and after calibration; `raw_b` and
    `confidence_b`, rows by bin of confidence; `second_cc`, the probability that rows of a label
    give to each label; evaluations `raw` and `calibrated`; `gold_c`.
    """
    layout = RunLayout(config.run_dir)
    source = config.source(dataset)
    with_gold = source is not None and source.label_column is not None
    shards = Folder(layout.labels(dataset)).shards()
    return over(partial(_teacher_shard, layout, dataset, calibration, with_gold), sorted(shards))


def _teacher_shard(
    layout: RunLayout,
    dataset: str,
    calibration: Calibration | None,
    with_gold: bool,
    shard: int,
) -> Found:
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
        "raw_b": np.bincount(bins_of(raw_nc.max(axis=1), BINS), minlength=BINS),
        "confidence_b": np.bincount(bins_of(probs_nc.max(axis=1), BINS), minlength=BINS),
        "second_cc": second_cc,
    }
    if with_gold:
        known_n, gold_n = _gold(layout, dataset, shard, table[ROW])
        sums |= counted("raw", evaluate(raw_nc[known_n], gold_n))
        sums |= counted("calibrated", evaluate(probs_nc[known_n], gold_n))
    return Found(Tally(sums))


def _gold(
    layout: RunLayout, dataset: str, shard: int, row_n: pa.ChunkedArray
) -> tuple[np.ndarray, np.ndarray]:
    """(which rows have gold, their gold)."""
    gold_n = Folder(layout.rows(dataset)).read_shard(shard, [GOLD])[GOLD].take(row_n)
    return gold_n.is_valid().to_numpy(), gold_n.drop_null().to_numpy()


def epochs_pass(
    config: RunConfig, stats: Sequence[dict[str, Any]], shards: Sequence[int]
) -> Found | None:
    """What the epochs selected; E epochs.

    Sums: `why_ec4`, rows by epoch, label and why; `visits_ce`, rows by label and in how many epochs
    they were taken; `uncertainty_e2b`, rows by epoch, whether taken, and bin; `plane_e2gg` by epoch,
    whether taken, cell of confidence and of uncertainty; `label_plane_c2gg`, the same of the last
    epoch for the largest labels; `sure_2b`, by whether ever taken and bin of confidence.
    Rows: `useful`, by their weights in the loss; `unsure`, never taken, of least confidence.
    """
    if not stats:
        return None
    means = [_mean_weight(config, found["epoch"]) for found in stats]
    work = partial(_epochs_shard, config, stats, means, planes_of(stats[-1]))
    return over(work, shards)


def _mean_weight(config: RunConfig, epoch: int) -> float:
    folder = Folder(RunLayout(config.run_dir).selection(epoch))
    counts = Counts.from_json(folder.read_json(COUNTS))
    return counts.weight_sum / max(int(counts.selected_s.sum()), 1)


def planes_of(stats: dict[str, Any]) -> list[int]:
    """The labels, by index, whose planes `epochs_pass` counts."""
    rows = [found["rows"] for found in stats["classes"].values()]
    return [int(i) for i in np.sort(np.argsort(rows)[::-1][:MOST_PLANES])]


def _epochs_shard(
    config: RunConfig,
    stats: Sequence[dict[str, Any]],
    means: Sequence[float],
    planes: Sequence[int],
    shard: int,
) -> Found:
    layout, classes, epochs = RunLayout(config.run_dir), len(config.task.labels), len(stats)
    table = Folder(layout.pseudo_labels).read_shard(shard, [ROW, LABEL, CONFIDENCE])
    row_n, label_n = table[ROW].to_numpy(), table[LABEL].to_numpy()
    confidence_n = table[CONFIDENCE].to_numpy()
    cell_n = bins_of(confidence_n, CELLS)
    taken_en = np.zeros((epochs, len(row_n)), dtype=bool)
    score_n, uncertainty_n = np.zeros(len(row_n)), None
    why, histogram, plane = [], [], []
    label_plane = np.zeros((len(planes), 2, CELLS, CELLS), dtype=np.int64)
    for e, found in enumerate(stats):
        chosen = Folder(layout.selection(found["epoch"])).read_shard(shard, [ROW, WEIGHT])
        place_n = np.searchsorted(row_n, chosen[ROW].to_numpy())
        taken_n = taken_en[e]
        taken_n[place_n] = True
        score_n[place_n] += chosen[WEIGHT].to_numpy() / max(means[e], 1e-30)
        uncertainty_n = _uncertainty(layout, found, shard)
        bars = Thresholds.from_json(found["thresholds"])
        barred = found["policy"] in BAR_POLICIES
        why_n = _why(bars if barred else None, label_n, confidence_n, uncertainty_n, taken_n)
        why.append(count_by((classes, 4), label_n, why_n))
        if uncertainty_n is None:
            histogram.append(np.zeros((2, BINS), dtype=np.int64))
            plane.append(np.zeros((2, CELLS, CELLS), dtype=np.int64))
            continue
        kind_n = taken_n.astype(np.int64)
        histogram.append(count_by((2, BINS), kind_n, bins_of(uncertainty_n, BINS)))
        height_n = bins_of(uncertainty_n, CELLS)
        plane.append(count_by((2, CELLS, CELLS), kind_n, cell_n, height_n))
        if e == epochs - 1:
            for p, label in enumerate(planes):
                own = label_n == label
                label_plane[p] = count_by(
                    (2, CELLS, CELLS), kind_n[own], cell_n[own], height_n[own]
                )
    visits_n = taken_en.sum(axis=0)
    ever_n = (visits_n > 0).astype(np.int64)
    sums = {
        "why_ec4": np.stack(why),
        "visits_ce": count_by((classes, epochs + 1), label_n, visits_n),
        "uncertainty_e2b": np.stack(histogram),
        "plane_e2gg": np.stack(plane),
        "label_plane_c2gg": label_plane,
        "sure_2b": count_by((2, BINS), ever_n, bins_of(confidence_n, BINS)),
    }
    told = {"row": row_n, "teacher": label_n, "confidence": confidence_n, "visits": visits_n}
    if uncertainty_n is not None:
        told["uncertainty"] = uncertainty_n
    rows = {
        "useful": standing_out(np.where(visits_n > 0, score_n, -np.inf), shard, told),
        "unsure": standing_out(np.where(visits_n == 0, -confidence_n, -np.inf), shard, told),
    }
    return Found(Tally(sums), rows)


def _uncertainty(layout: RunLayout, stats: dict[str, Any], shard: int) -> np.ndarray | None:
    """The student's, shape (N,); None in an epoch in which it was not asked."""
    if all(found["mean_uncertainty"] is None for found in stats["classes"].values()):
        return None
    table = Folder(layout.uncertainty(stats["epoch"])).read_shard(shard, [UNCERTAINTY])
    return table[UNCERTAINTY].to_numpy()


def _why(
    bars: Thresholds | None,
    label_n: np.ndarray,
    confidence_n: np.ndarray,
    uncertainty_n: np.ndarray | None,
    taken_n: np.ndarray,
) -> np.ndarray:
    """Why each row was or was not taken, shape (N,). Without bars only whether it was."""
    why_n = np.full(len(label_n), OTHER)
    if bars is not None:
        if uncertainty_n is not None:
            sure_n = uncertainty_n < bars.uncertainty_c[label_n] - TOLERANCE
            why_n[sure_n] = STUDENT_SURE
        why_n[confidence_n < bars.confidence_c[label_n] - TOLERANCE] = TEACHER_UNSURE
    why_n[taken_n] = SELECTED
    return why_n


def test_pass(config: RunConfig, calibration: Calibration | None) -> Found | None:
    """Teacher and student side by side on the test set.

    Sums: evaluations `teacher` and `student`; `outcome_c4`, rows by gold label and who is right
    (both, student alone, teacher alone, nobody). Rows: `disagree`, by how sure the less sure is.
    """
    layout = RunLayout(config.run_dir)
    shards = Folder(layout.test_predictions).shards() & Folder(layout.labels("test")).shards()
    return over(partial(_test_shard, config, calibration), sorted(shards))


def _test_shard(config: RunConfig, calibration: Calibration | None, shard: int) -> Found:
    layout, classes = RunLayout(config.run_dir), len(config.task.labels)
    labels = Folder(layout.labels("test")).read_shard(shard, [ROW, LOGPROBS])
    answers = Folder(layout.test_predictions).read_shard(shard, [ROW, PROBS])
    row_n, at_n, place_n = np.intersect1d(
        labels[ROW].to_numpy(), answers[ROW].to_numpy(), return_indices=True
    )
    known_n, gold_n = _gold(layout, "test", shard, pa.chunked_array([row_n]))
    row_n, at_n, place_n = row_n[known_n], at_n[known_n], place_n[known_n]
    made = calibration or no_calibration(classes)
    teacher_nc = made.apply(matrix(labels[LOGPROBS])[at_n])
    student_nc = matrix(answers[PROBS])[place_n].astype(np.float64)
    teacher_n, student_n = teacher_nc.argmax(axis=1), student_nc.argmax(axis=1)
    who_n = np.select(
        [
            (student_n == gold_n) & (teacher_n == gold_n),
            student_n == gold_n,
            teacher_n == gold_n,
        ],
        [0, 1, 2],
        3,
    )
    sums = {
        **counted("teacher", evaluate(teacher_nc, gold_n)),
        **counted("student", evaluate(student_nc, gold_n)),
        "outcome_c4": count_by((classes, 4), gold_n, who_n),
    }
    told = {"row": row_n, "gold": gold_n}
    rows = _disagreeing(shard, told, teacher_n, student_n, teacher_nc, student_nc)
    return Found(Tally(sums), {"disagree": rows})


def _disagreeing(
    shard: int,
    told: dict[str, np.ndarray],
    teacher_n: np.ndarray,
    student_n: np.ndarray,
    teacher_nc: np.ndarray,
    student_nc: np.ndarray,
) -> Any:
    confidence_n, sure_n = teacher_nc.max(axis=1), student_nc.max(axis=1)
    both_n = np.minimum(confidence_n, sure_n)
    columns = {
        **told, "teacher": teacher_n, "confidence": confidence_n, "student": student_n,
        "student_confidence": sure_n,
    }  # fmt: skip
    return standing_out(np.where(teacher_n != student_n, both_n, -np.inf), shard, columns)


def corpus_pass(
    config: RunConfig, calibration: Calibration | None, epoch: int | None
) -> Found | None:
    """Teacher and student side by side on the corpus, where the student's labels of it are kept: by
    jobs/predict.py, or of an epoch by a policy that needs them.

    Sums: `cross_cc`, rows by the teacher's and the student's label. Rows: `disagree`.
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
    return over(partial(_corpus_shard, config, calibration, folder), sorted(shards))


def _corpus_shard(
    config: RunConfig, calibration: Calibration | None, folder: Folder, shard: int
) -> Found:
    names = config.task.label_names
    labels = Folder(RunLayout(config.run_dir).labels("corpus")).read_shard(shard, [ROW, LOGPROBS])
    table = folder.read_shard(shard)
    row_n, at_n, place_n = np.intersect1d(
        labels[ROW].to_numpy(), table[ROW].to_numpy(), return_indices=True
    )
    teacher_nc = (calibration or no_calibration(len(names))).apply(matrix(labels[LOGPROBS])[at_n])
    if LABEL in table.column_names:  # predictions, by name
        student_n = class_indices(table[LABEL], names)[place_n]
        student_nc = table[CONFIDENCE].to_numpy()[place_n][:, None]
    else:
        student_nc = matrix(table[PROBS])[place_n].astype(np.float64)
        student_n = student_nc.argmax(axis=1)
    teacher_n = teacher_nc.argmax(axis=1)
    sums = {"cross_cc": count_by((len(names), len(names)), teacher_n, student_n)}
    told = {"row": row_n}
    rows = _disagreeing(shard, told, teacher_n, student_n, teacher_nc, student_nc)
    return Found(Tally(sums), {"disagree": rows})


def rejects_pass(folder: Folder) -> Found | None:
    """The rows that a stage left out. Sums: rows by reason. Rows: some of each reason, by it."""

    def work(shard: int) -> Found:
        table = folder.read_shard(shard)
        counts = pc.value_counts(table["reason"].combine_chunks()).to_pylist()
        first: dict[str, list[dict[str, Any]]] = {}
        for row in table.slice(0, 1000).to_pylist():
            kept = first.setdefault(row["reason"], [])
            if len(kept) < 3:
                kept.append({"score": -shard, **row})
        sums = {found["values"]: np.array(found["counts"]) for found in counts}
        return _Rejects(Tally(sums), first)

    shards = folder.shards()
    return sum_over_shards(_Rejects, work, sorted(shards)) if shards else None


class _Rejects(Found):
    """Reasons differ from shard to shard."""

    def __add__(self, other: Found) -> "_Rejects":
        reasons = [*self.tally.values, *(r for r in other.tally.values if r not in self.tally)]
        sums = {
            reason: sum(
                (found.tally[reason] for found in (self, other) if reason in found.tally),
                np.zeros((), dtype=np.int64),
            )
            for reason in reasons
        }
        both = {**{reason: rows[:3] for reason, rows in other.rows.items()}, **self.rows}
        return _Rejects(Tally(sums), both)

    @staticmethod
    def from_json(data: dict[str, Any]) -> "_Rejects":
        """The inverse of `to_json`."""
        return _Rejects(Tally.from_json(data["tally"]), data["rows"])
