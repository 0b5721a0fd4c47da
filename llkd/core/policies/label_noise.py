"""Policies against label noise: they leave out rows whose label the student does not learn."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from llkd.core.mixture import Mixture, fit_two_normals
from llkd.core.policies.base import ROWS, Signals, State
from llkd.core.policies.student_confidence import StudentConfidencePolicy
from llkd.core.statistics import count_by
from llkd.core.tally import Tally
from llkd.core.thresholds import Thresholds

SMALLEST_PROB = 2.0**-24
"""Lower bound of the student's probability of a label: the smallest positive float16."""
MAX_LOSS = float(-np.log(SMALLEST_PROB))
LOSS_BINS = 512
"""Equal bins of the loss, from 0 to MAX_LOSS."""


def losses(confidence_n: np.ndarray) -> np.ndarray:
    """The student's cross-entropy for a label of this probability, in nats: shape (N,)."""
    return np.asarray(-np.log(np.maximum(confidence_n.astype(np.float64), SMALLEST_PROB)))


def loss_bins(confidence_n: np.ndarray) -> np.ndarray:
    """The bin of each row's loss: int64, shape (N,)."""
    bin_n = (losses(confidence_n) * (LOSS_BINS / MAX_LOSS)).astype(np.int64)
    return np.minimum(bin_n, LOSS_BINS - 1)


class SmallLoss(StudentConfidencePolicy):
    """Rows whose loss belongs to the smaller of two normal components.

    The student learns correct labels before wrong ones, so their losses are smaller. The mixture
    over the whole corpus is that of DivideMix (arXiv 2002.07394), which FreeAL (arXiv 2311.15614)
    applies to the labels of an LLM. Here it is fitted to a histogram, which merges over shards.

    Args:
        clean_probability: minimum posterior probability of the smaller component, in (0, 1).
        class_floor: see FilledPolicy.
        warmup_epochs: see FilledPolicy.
        seed: unused.
    """

    def __init__(
        self,
        *,
        clean_probability: float = 0.5,
        class_floor: float = 0.0,
        warmup_epochs: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(class_floor=class_floor, warmup_epochs=warmup_epochs, seed=seed)
        self.clean_probability = clean_probability

    def measure(self, epoch: int, question: str, signals: Signals, thresholds: Thresholds) -> Tally:
        """See Policy.measure."""
        found = super().measure(epoch, question, signals, thresholds)
        bin_n = loss_bins(self.view(epoch, signals, thresholds).confidence_n)
        return Tally({**found.values, "losses_b": np.bincount(bin_n, minlength=LOSS_BINS)})

    def learn(self, epoch: int, question: str, total: Tally, state: State) -> State:
        """See Policy.learn."""
        state = super().learn(epoch, question, total, state)
        centre_b = (np.arange(LOSS_BINS) + 0.5) * (MAX_LOSS / LOSS_BINS)
        if total["losses_b"].sum() == 0:
            return state
        found = fit_two_normals(centre_b, total["losses_b"])
        kept = {"share": found.share_2, "mean": found.mean_2, "variance": found.variance_2}
        return replace(state, thresholds=replace(state.thresholds, parameters=kept))

    def warm_weights(self, seen: Signals, thresholds: Thresholds) -> np.ndarray:
        """See StudentConfidencePolicy.warm_weights."""
        kept = thresholds.parameters
        mixture = Mixture(kept["share"], kept["mean"], kept["variance"])
        # Clipped to the means: on its tail, a wide lower component would win the largest losses
        # back, and a wide upper one the smallest.
        loss_n = np.clip(losses(seen.confidence_n), *mixture.mean_2)
        return (mixture.first(loss_n) >= self.clean_probability).astype(np.float64)


JOINT = "joint"


class ConfidentLearning(StudentConfidencePolicy):
    """All rows except those that confident learning considers mislabelled (arXiv 1911.00068).

    A row is confidently of class j if q(j) reaches the mean of q(j) over the rows labelled j. The
    joint counts of labels and confident classes, scaled to the counts of the labels, estimate the
    number of mislabelled rows of each label; that many rows with the lowest q(a) are left out (the
    paper's "prune by class"). The counts are those of the library cleanlab, which needs all rows in
    memory. It also expects predictions of held-out rows; this student has been trained on them.
    """

    def question(self, epoch: int, state: State, asked: Sequence[str]) -> str | None:
        """See Policy.question."""
        if not self.is_warm(epoch):
            return None
        return next((name for name in (ROWS, JOINT) if name not in asked), None)

    def measure(self, epoch: int, question: str, signals: Signals, thresholds: Thresholds) -> Tally:
        """See Policy.measure."""
        if question == ROWS:
            return super().measure(epoch, question, signals, thresholds)
        assert signals.student_nc is not None
        classes = len(thresholds.floor_c)
        bin_n = loss_bins(self.view(epoch, signals, thresholds).confidence_n)
        losses_cb = count_by((classes, LOSS_BINS), signals.label_n, bin_n)
        joint_cc = confident_joint(
            signals.label_n, signals.student_nc, thresholds.parameters["self_confidence"]
        )
        return Tally({"losses_cb": losses_cb, "joint_cc": joint_cc})

    def learn(self, epoch: int, question: str, total: Tally, state: State) -> State:
        """See Policy.learn."""
        if question == ROWS:
            state = super().learn(epoch, question, total, state)
            mean_c = state.statistics.mean_confidence_c
            # No row is confidently of a class without labelled rows.
            kept = {"self_confidence": np.where(np.isnan(mean_c), 2.0, np.maximum(mean_c, 0.01))}
        else:
            wrong_c = wrong_by_class(total["joint_cc"], state.statistics.rows_c)
            bound_c = loss_bound(total["losses_cb"], wrong_c)
            kept = {**state.thresholds.parameters, "loss_bin": bound_c, "wrong": wrong_c}
        return replace(state, thresholds=replace(state.thresholds, parameters=kept))

    def warm_weights(self, seen: Signals, thresholds: Thresholds) -> np.ndarray:
        """See StudentConfidencePolicy.warm_weights."""
        bound_c = thresholds.parameters["loss_bin"]
        return (loss_bins(seen.confidence_n) < bound_c[seen.label_n]).astype(np.float64)


def confident_joint(
    label_n: np.ndarray, probs_nc: np.ndarray, threshold_c: np.ndarray
) -> np.ndarray:
    """Rows by label and confident class, int64, shape (C, C): not yet calibrated.

    Args:
        label_n: shape (N,).
        probs_nc: the student's distribution, shape (N, C).
        threshold_c: mean probability of a class over the rows labelled with it, shape (C,).
    """
    classes = len(threshold_c)
    reached_nc = probs_nc >= threshold_c - 1e-6  # cleanlab's own tolerance
    reached_n = reached_nc.sum(axis=1)
    true_n = np.where(reached_n > 1, probs_nc.argmax(axis=1), reached_nc.argmax(axis=1))
    confident_n = reached_n > 0
    return count_by((classes, classes), label_n[confident_n], true_n[confident_n])


def wrong_by_class(joint_cc: np.ndarray, rows_c: np.ndarray) -> np.ndarray:
    """Estimated number of mislabelled rows of each label: float64, shape (C,).

    Args:
        joint_cc: the total of `confident_joint` over all rows, shape (C, C).
        rows_c: rows by label, shape (C,).
    """
    counted_cc = joint_cc.astype(np.float64)
    np.fill_diagonal(counted_cc, np.maximum(np.diag(counted_cc), 1.0))
    right_c = np.diag(counted_cc) / counted_cc.sum(axis=1)
    return np.asarray((1.0 - right_c) * rows_c)


def loss_bound(losses_cb: np.ndarray, wrong_c: np.ndarray) -> np.ndarray:
    """The first loss bin to leave out of each class, float64, shape (C,): it leaves out at most
    `wrong_c` rows, rounded to whole rows."""
    from_top_cb = np.cumsum(losses_cb[:, ::-1], axis=1)[:, ::-1]
    kept_cb = from_top_cb > wrong_c[:, None] + 0.5
    return kept_cb.sum(axis=1).astype(np.float64)
