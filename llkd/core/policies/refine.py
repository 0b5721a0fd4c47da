"""Labels and confidence refined by the student: the product of the teacher's distribution of a row
and the student's, where the student was not trained on the row recently.

    r ∝ p^α · q^(β · trust[a]) · exp(−bias)

p is the teacher's calibrated distribution, a its label, q the student's distribution: a student
trained on thousands of rows knows things that the teacher, which sees one row, does not. Label and
confidence are those of r. A student repeats what it was taught about a row, right or wrong, so its
prediction of that row carries no information. Therefore the corpus is split at random into parts,
and each epoch trains on the part that was used longest ago: the student's predictions are out of
fold, without a second student. All but the least confident rows of each class of the part are
selected: a student trained only on its most confident predictions confirms itself.

Three safeguards limit the influence of the student's errors; none needs gold:

- β is the exponent under which q best predicts the teacher's labels of the part's confident rows: 0
  for a student that knows nothing, small for an overconfident one. trust[a] is the student's recall
  of label a there, above chance: a class that it does not know keeps the teacher's labels.
- If student and teacher agree on the part more often than the teacher's confidence implies, the
  teacher is underconfident; α sharpens p until its mean confidence is the rate of agreement.
- The bias keeps the mean of r over the corpus equal to that of p: no class grows at the expense of
  others.

Not from a paper: a product of experts with the bias of batch calibration (arXiv 2309.17249) and
these safeguards.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from llkd.core.draws import uniform_by_position
from llkd.core.policies.base import ROWS, Choice, Signals, State
from llkd.core.policies.threshold import Rule, ThresholdPolicy
from llkd.core.policy_names import WeightKind
from llkd.core.statistics import ClassStatistics, class_statistics, on_grid
from llkd.core.tally import Tally, grid_sum
from llkd.core.thresholds import TOLERANCE, Thresholds

TRUST, MARGINAL = "trust", "marginal"

ASSUMED_MISSES = 2.0
"""Pseudo-count of misses, added to each class's denominator of the recall."""
BETA_STEPS = np.linspace(0.0, 1.0, 9)
"""Candidates for the student's exponent, as shares of `beta`."""
ALPHAS = np.array([1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0])
"""Candidates for the teacher's exponent."""
SMALLEST_PROB = 1e-4
"""Lower bound of probabilities: a zero must not veto a label."""
MARGINAL_ROUNDS = 4
MARGINAL_TOLERANCE = 0.02
"""Relative error of each class's mean at which the bias has converged."""
_COARSE = 2.0**-12
"""Products of its multiples are multiples of the grid, so their sums are exact."""
_STREAM = 0x6A7D5EED
"""Separates this draw from those of other policies with the same seed."""


class Refined(ThresholdPolicy):
    """One part of the corpus per epoch, by refined labels and confidence; see the module docstring.

    Args:
        beta: maximum exponent of the student; 0 leaves the labels unchanged.
        parts: number of parts of the corpus, at least 1.
        keep: share of each class's rows of the part to select, the most confident first.
        weights: see Rule.
        momentum: see Rule.
        warmup_epochs: see ThresholdPolicy.
        class_floor: see ThresholdPolicy.
        seed: of the parts.
    """

    def __init__(
        self,
        *,
        beta: float = 1.0,
        parts: int = 4,
        keep: float = 0.9,
        weights: WeightKind = "product",
        momentum: float = 0.0,
        warmup_epochs: int = 1,
        class_floor: float = 0.0,
        seed: int = 0,
    ) -> None:
        rule = Rule(thresholds="quantile", fraction=keep, weights=weights, momentum=momentum)
        super().__init__(
            teacher_side=True, student_side=False, rule=rule, warmup_epochs=warmup_epochs,
            class_floor=class_floor, seed=seed,
        )  # fmt: skip
        self.uses_uncertainty = self.uses_student_probs = self.uses_teacher_probs = True
        self.beta, self.parts = beta, parts

    def begin(self, epoch: int, statistics: ClassStatistics, previous: Thresholds | None) -> State:
        """See Policy.begin: from which confidence on a row of each class counts as confident."""
        state = super().begin(epoch, statistics, previous)
        kept = {"confident": np.nan_to_num(statistics.mean_confidence_c)}
        return replace(state, thresholds=replace(state.thresholds, parameters=kept))

    def question(self, epoch: int, state: State, asked: Sequence[str]) -> str | None:
        """See Policy.question."""
        if epoch < self.warmup_epochs:
            return super().question(epoch, state, asked)
        if not asked:
            return TRUST
        if ROWS in asked:
            return None
        converged = state.thresholds.parameters["marginal_gap"] <= MARGINAL_TOLERANCE
        return ROWS if converged or len(asked) > MARGINAL_ROUNDS else MARGINAL

    def measure(self, epoch: int, question: str, signals: Signals, thresholds: Thresholds) -> Tally:
        """See Policy.measure."""
        if question == TRUST:
            return self._measure_trust(epoch, signals, thresholds)
        if question == MARGINAL:
            refined_nc = refine(signals, thresholds)
            coarse_nc = np.rint(refined_nc / _COARSE) * _COARSE
            return Tally(
                {"mean_c": grid_sum(refined_nc, axis=0), "second_cc": coarse_nc.T @ coarse_nc}
            )
        found = super().measure(epoch, question, signals, thresholds)
        # Only of the part: rows that the student was trained on have another distribution.
        part_n = self.in_part(epoch, signals)
        seen = self.view(epoch, signals, thresholds)
        of_part = class_statistics(
            seen.label_n[part_n], seen.confidence_n[part_n], None, len(thresholds.floor_c)
        )
        return Tally({**found.values, "histogram_cb": of_part.histogram_cb})

    def _measure_trust(self, epoch: int, signals: Signals, thresholds: Thresholds) -> Tally:
        assert signals.student_nc is not None
        assert signals.teacher_nc is not None
        part_n = self.in_part(epoch, signals)
        minimum_c = thresholds.parameters["confident"]
        label_p, student_pc = signals.label_n[part_n], signals.student_nc[part_n]
        confident_p = signals.confidence_n[part_n] >= minimum_c[label_p] - TOLERANCE
        found_p = student_pc.argmax(axis=1) == label_p
        classes = len(minimum_c)
        sure_p = label_p[confident_p]
        return Tally(
            {
                "teacher_c": grid_sum(signals.teacher_nc, axis=0),
                "rows": np.asarray(len(signals.label_n)),
                "part": np.asarray(len(label_p)),
                "agreed": np.asarray(int(found_p.sum())),
                "confident_c": np.bincount(sure_p, minlength=classes),
                "found_c": np.bincount(label_p[confident_p & found_p], minlength=classes),
                "loss_b": _losses(student_pc[confident_p], sure_p, self.beta * BETA_STEPS),
                "confidence_a": _confidences(signals.teacher_nc[part_n], ALPHAS),
            }
        )

    def learn(self, epoch: int, question: str, total: Tally, state: State) -> State:
        """See Policy.learn."""
        if question == ROWS:
            return super().learn(epoch, question, total, state)
        kept = dict(state.thresholds.parameters)
        if question == TRUST:
            kept |= self._trust(total, state.previous)
        else:
            kept |= move_bias(kept["bias"], kept["target"], total, float(kept["rows"]))
        return replace(state, thresholds=replace(state.thresholds, parameters=kept))

    def _trust(self, total: Tally, previous: Thresholds | None) -> dict[str, np.ndarray]:
        """Exponents, trust and the target marginal."""
        classes, rows = len(total["teacher_c"]), max(int(total["rows"]), 1)
        before = {} if previous is None else previous.parameters
        found_c = total["found_c"] / (total["confident_c"] + ASSUMED_MISSES)
        agreed = float(total["agreed"]) / max(int(total["part"]), 1)
        confidence_a = total["confidence_a"] / max(int(total["part"]), 1)
        reached_a = np.flatnonzero(confidence_a >= agreed)
        alpha = ALPHAS[reached_a[0]] if len(reached_a) else ALPHAS[-1]
        return {
            "alpha": np.asarray(alpha),
            "beta": np.asarray(self.beta * BETA_STEPS[int(total["loss_b"].argmin())]),
            "trust": np.clip((found_c - 1 / classes) / (1 - 1 / classes), 0.0, 1.0),
            "agreement": np.asarray(agreed),
            "target": np.maximum(total["teacher_c"] / rows, 1e-6),
            "rows": np.asarray(rows),
            "bias": before.get("bias", np.zeros(classes)),
            "marginal_gap": np.asarray(1.0),
        }

    def in_part(self, epoch: int, signals: Signals) -> np.ndarray:
        """Mask of the rows of the epoch's part: bool, shape (N,)."""
        draw_n = uniform_by_position(signals.position_n, self.seed, _STREAM)
        return np.asarray(np.floor(draw_n * self.parts) == epoch % self.parts)

    def view(self, epoch: int, signals: Signals, thresholds: Thresholds) -> Signals:
        """See Policy.view: labels, confidence and distribution of r, once the bias is known."""
        if "bias" not in thresholds.parameters:
            return signals
        refined_nc = refine(signals, thresholds)
        return replace(
            signals,
            label_n=refined_nc.argmax(axis=1).astype(signals.label_n.dtype),
            confidence_n=on_grid(refined_nc.max(axis=1)),
            teacher_nc=refined_nc,
        )

    def choose(self, epoch: int, signals: Signals, thresholds: Thresholds) -> Choice:
        """See Policy.choose: only rows of the epoch's part, also to fill a class."""
        chosen = super().choose(epoch, signals, thresholds)
        return chosen.without(~self.in_part(epoch, signals))


def refine(signals: Signals, thresholds: Thresholds) -> np.ndarray:
    """The refined distributions r, float64, shape (N, C); rows sum to 1."""
    assert signals.student_nc is not None
    assert signals.teacher_nc is not None
    kept = thresholds.parameters
    exponent_n = kept["beta"] * kept["trust"][signals.label_n]
    logits_nc = kept["alpha"] * _logs(signals.teacher_nc)
    logits_nc += exponent_n[:, None] * _logs(signals.student_nc)
    return _softmax(logits_nc - kept["bias"])


def move_bias(
    bias_c: np.ndarray, target_c: np.ndarray, total: Tally, rows: float
) -> dict[str, np.ndarray]:
    """A damped Newton step towards the bias under which the mean of r is the target.

    The derivative of the mean m by the bias is −(diag(m) − E[r rᵀ]). The bracket is a covariance
    matrix, so the problem is convex. Damping E[r rᵀ] keeps the matrix regular.

    Args:
        bias_c: the bias under which r was measured, shape (C,).
        target_c: the target marginal, shape (C,).
        total: sums of r, shape (C,), and of r rᵀ, shape (C, C), over all rows.
        rows: number of rows.

    Returns:
        The bias, and the largest relative error of a class's mean before the step.
    """
    mean_c = np.maximum(total["mean_c"] / rows, 1e-9)
    gap = float(np.abs(mean_c / target_c - 1).max())
    if gap <= MARGINAL_TOLERANCE:
        return {"bias": bias_c, "marginal_gap": np.asarray(gap)}
    slope_cc = np.diag(mean_c) - 0.98 * total["second_cc"] / rows + 1e-9 * np.eye(len(mean_c))
    step_c = np.clip(np.linalg.solve(slope_cc, mean_c - target_c), -2.0, 2.0)
    moved_c = bias_c + step_c
    return {"bias": moved_c - moved_c.mean(), "marginal_gap": np.asarray(gap)}


def _losses(probs_nc: np.ndarray, label_n: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    """Sums over rows of −log softmax(e log q)[label], one per exponent: shape (E,)."""
    logs_nc, row_n = _logs(probs_nc), np.arange(len(label_n))
    found = []
    for exponent in exponents:
        own_n = _softmax(exponent * logs_nc)[row_n, label_n]
        found.append(grid_sum(-np.log(np.maximum(own_n, SMALLEST_PROB**2))))
    return np.array(found)


def _confidences(probs_nc: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    """Sums over rows of the largest probability under each exponent: shape (E,)."""
    logs_nc = _logs(probs_nc)
    return np.array([grid_sum(_softmax(e * logs_nc).max(axis=1, initial=0.0)) for e in exponents])


def _logs(probs_nc: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(probs_nc.astype(np.float64), SMALLEST_PROB))


def _softmax(logits_nc: np.ndarray) -> np.ndarray:
    exp_nc = np.exp(logits_nc - logits_nc.max(axis=1, keepdims=True))
    return np.asarray(exp_nc / exp_nc.sum(axis=1, keepdims=True))
