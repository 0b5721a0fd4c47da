"""Quality of labels and of their confidence, from counts that merge over shards."""

from dataclasses import dataclass
from operator import add
from typing import Any

import numpy as np

from llkd.core.statistics import count_by

ECE_BINS = 15
"""Equal-width confidence bins of the expected calibration error."""
RANK_BINS = 4096
"""Confidence bins from which AUROC is computed."""


@dataclass(frozen=True)
class Evaluation:
    """Counts of predictions against gold; C classes."""

    confusion_cc: np.ndarray
    """Rows by (gold, predicted), shape (C, C), int64."""
    confidence_b: np.ndarray
    """Sum of confidence by bin, shape (ECE_BINS,)."""
    rows_b: np.ndarray
    """Rows by bin, shape (ECE_BINS,), int64."""
    correct_b: np.ndarray
    """Correct rows by bin, shape (ECE_BINS,), int64."""
    ranks_2r: np.ndarray
    """Rows by (wrong or right, fine confidence bin), shape (2, RANK_BINS), int64."""

    def __add__(self, other: "Evaluation") -> "Evaluation":
        return Evaluation(*map(add, vars(self).values(), vars(other).values()))

    def to_json(self) -> dict[str, Any]:
        """Plain lists; `from_json` reads them back."""
        return {name: value.tolist() for name, value in vars(self).items()}

    @staticmethod
    def from_json(data: dict[str, Any]) -> "Evaluation":
        """The inverse of `to_json`."""
        return Evaluation(*(np.asarray(data[name]) for name in Evaluation.__dataclass_fields__))

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self.confusion_cc.sum())

    @property
    def accuracy(self) -> float:
        """Share of rows whose prediction is the gold label."""
        return float(np.trace(self.confusion_cc) / max(self.rows, 1))

    @property
    def per_class(self) -> dict[str, np.ndarray]:
        """Precision, recall, F1 and support by class, each of shape (C,); 0 where undefined."""
        hits_c = np.diag(self.confusion_cc).astype(np.float64)
        gold_c, predicted_c = self.confusion_cc.sum(axis=1), self.confusion_cc.sum(axis=0)
        return {
            "precision": hits_c / np.maximum(predicted_c, 1),
            "recall": hits_c / np.maximum(gold_c, 1),
            "f1": 2 * hits_c / np.maximum(gold_c + predicted_c, 1),
            "support": gold_c,
        }

    @property
    def macro_f1(self) -> float:
        """Mean F1 over the classes that occur in gold or in the predictions."""
        seen_c = (self.confusion_cc.sum(axis=0) + self.confusion_cc.sum(axis=1)) > 0
        return float(self.per_class["f1"][seen_c].mean()) if seen_c.any() else 0.0

    @property
    def ece(self) -> float:
        """Expected calibration error (arXiv 1706.04599): mean gap of confidence and accuracy,
        over equal-width bins weighted by their rows."""
        gaps_b = np.abs(self.correct_b - self.confidence_b)
        return float(gaps_b.sum() / max(self.rows, 1))

    @property
    def auroc(self) -> float:
        """Probability that a correct row has higher confidence than a wrong one, ties counting
        half; NaN if all are correct or all wrong. Exact up to confidence bins of 1/RANK_BINS."""
        wrong_r, right_r = self.ranks_2r.astype(np.float64)
        pairs = wrong_r.sum() * right_r.sum()
        if pairs == 0:
            return float("nan")
        below_r = np.cumsum(wrong_r) - wrong_r
        return float((right_r * (below_r + wrong_r / 2)).sum() / pairs)

    def risk_at(self, coverage: float) -> float:
        """Error rate among the most confident rows, a share `coverage` of all.

        A point of the risk-coverage curve (arXiv 1705.08500). Ties at the edge count in proportion.
        """
        wrong_r, right_r = self.ranks_2r[:, ::-1].astype(np.float64)
        rows_r = wrong_r + right_r
        wanted = coverage * rows_r.sum()
        if wanted <= 0:
            return 0.0
        above_r = np.cumsum(rows_r) - rows_r
        taken_r = np.clip((wanted - above_r) / np.maximum(rows_r, 1), 0.0, 1.0)
        return float((taken_r * wrong_r).sum() / wanted)


def paired_z(better: int, worse: int) -> float:
    """Standard deviations by which one classifier surpasses another on the same rows (McNemar's test);
    0 if they never differ.

    Args:
        better: rows that only the one has right.
        worse: rows that only the other has right.
    """
    return float((better - worse) / np.sqrt(better + worse)) if better + worse else 0.0


def evaluate(probs_nc: np.ndarray, gold_n: np.ndarray) -> Evaluation:
    """The evaluation of one shard.

    Args:
        probs_nc: predicted distributions, shape (N, C).
        gold_n: gold classes, integers, shape (N,).
    """
    classes = probs_nc.shape[1]
    predicted_n = probs_nc.argmax(axis=1)
    confidence_n = probs_nc.max(axis=1).astype(np.float64)
    correct_n = predicted_n == gold_n
    bin_n = np.minimum((confidence_n * ECE_BINS).astype(np.int64), ECE_BINS - 1)
    rank_n = np.minimum((confidence_n * RANK_BINS).astype(np.int64), RANK_BINS - 1)
    return Evaluation(
        count_by((classes, classes), gold_n, predicted_n),
        np.bincount(bin_n, weights=confidence_n, minlength=ECE_BINS),
        np.bincount(bin_n, minlength=ECE_BINS),
        np.bincount(bin_n, weights=correct_n, minlength=ECE_BINS).astype(np.int64),
        count_by((2, RANK_BINS), correct_n, rank_n),
    )
