"""How right teacher and student are on the whole corpus, from a few rows labelled by hand.

For a system that says a, and gold g, the joint frequencies of (a, g) over the corpus are estimated by

    λ · mean over the corpus of [a] r(g)  +  weighted mean over the rows labelled by hand of [a] ([g] − λ r(g))

with r a model's distribution over the labels. It need not be right: the second term corrects it, and the better
it is, the narrower the interval (prediction-powered inference, arXiv 2301.09633; λ as in 2311.01453).
Weights are the inverse probabilities of being chosen, so rows need not be drawn uniformly. Accuracy, macro-F1
and Cohen's κ are functions of the joint frequencies; their standard errors come from the bootstrap, their
intervals from Student's t.
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

LEVEL = 0.95
RESAMPLES = 400
FEW = 3
"""Where fewer rows than this are wrong, or right, the standard error of the accuracy, or of a label's F1, is not left to
the bootstrap: rows that are all right do not prove that all others are."""
PRIOR_ROWS = 4.0
"""Rows, half of them wrong, that are then added for the standard error (Agresti and Coull 1998)."""


@dataclass(frozen=True)
class Answers:
    """What is known of N rows; C labels."""

    said_sn: np.ndarray
    """The label that each of S systems says, integers, shape (S, N)."""
    model_nc: np.ndarray
    """A model's distribution over the gold labels, shape (N, C)."""


@dataclass(frozen=True)
class Estimate:
    """A figure of the corpus."""

    value: float
    low: float
    """Of the 95 % interval."""
    high: float
    error: float
    """Standard error."""

    def to_json(self) -> dict[str, float]:
        """The value and its interval."""
        return {"value": self.value, "low": self.low, "high": self.high}


Figures = dict[str, Estimate]


@dataclass(frozen=True)
class Estimates:
    """Figures of each of S systems."""

    rows: int
    """Rows labelled by hand."""
    figures_s: list[Figures]
    """`accuracy`, `macro_f1`, `kappa`."""
    f1_sc: list[list[Estimate]]
    """F1 by label."""
    first_less_last: Figures
    """The paired differences of the first system and the last."""


def estimate(
    judged: Answers, gold_m: np.ndarray, probability_m: np.ndarray, corpus: Answers, seed: int = 0
) -> Estimates:
    """Figures of the corpus with 95 % intervals.

    Args:
        judged: what the systems say of the M rows labelled by hand. None of them has learnt these labels.
        gold_m: their gold classes, shape (M,).
        probability_m: of each of them to be chosen, in any unit, shape (M,).
        corpus: of a uniform sample of the corpus.
        seed: of the bootstrap.
    """
    random = np.random.default_rng(seed)
    rows, size = len(gold_m), len(corpus.model_nc)
    weight_m = 1 / probability_m
    drawn_bm = random.multinomial(rows, np.full(rows, 1 / rows), RESAMPLES) * weight_m
    drawn_bu = random.multinomial(size, np.full(size, 1 / size), RESAMPLES) / size
    weights_bm = np.vstack([weight_m, drawn_bm])
    weights_bm /= weights_bm.sum(axis=1, keepdims=True)
    weights_bu = np.vstack([np.full(size, 1 / size), drawn_bu])
    freedom = max(weight_m.sum() ** 2 / np.square(weight_m).sum(), 2.0) - 1
    found, values, by_label = [], [], []
    for said_m, said_u in zip(judged.said_sn, corpus.said_sn, strict=True):
        power = _power(said_m, judged.model_nc, gold_m, weight_m, said_u, corpus.model_nc)
        residual_mc = np.eye(judged.model_nc.shape[1])[gold_m] - power * judged.model_nc
        joint_bcc = power * _joint(said_u, corpus.model_nc, weights_bu)
        joint_bcc += _joint(said_m, residual_mc, weights_bm)
        figures_b, f1_bc = figures_of(joint_bcc)
        values.append(figures_b)
        right_m, labels = said_m == gold_m, range(f1_bc.shape[1])
        rows_cm = [(said_m == label) | (gold_m == label) for label in labels]
        missing_c = [
            _missing_variance(f1_b, right_m[of_m], weight_m[of_m])
            for f1_b, of_m in zip(f1_bc.T, rows_cm, strict=True)
        ]
        missing = {
            "accuracy": _missing_variance(figures_b["accuracy"], right_m, weight_m),
            "macro_f1": sum(missing_c) / len(missing_c) ** 2,
            "kappa": 0.0,
        }
        lowest = {"accuracy": 0.0, "macro_f1": 0.0, "kappa": -1.0}
        found.append(
            {
                name: _interval(figures_b[name], freedom, missing[name], lowest[name])
                for name in missing
            }
        )
        by_label.append(
            [_interval(f1_b, freedom, lack) for f1_b, lack in zip(f1_bc.T, missing_c, strict=True)]
        )
    differences = {
        name: _interval(values[0][name] - values[-1][name], freedom, 0.0, -1.0)
        for name in values[0]
    }
    return Estimates(rows, found, by_label, differences)


def figures_of(joint_bcc: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """(accuracy, macro-F1 and Cohen's κ of joint frequencies, shapes (B,); F1 by label, shape (B, C)).

    Args:
        joint_bcc: estimated frequencies by label said and gold label, shape (B, C, C), with sum 1; some
            may be negative. Set to 0 they would bias the sums.
    """
    right_bc = np.diagonal(joint_bcc, axis1=1, axis2=2)
    said_bc, gold_bc = joint_bcc.sum(axis=2), joint_bcc.sum(axis=1)
    f1_bc = np.clip(2 * right_bc / np.maximum(said_bc + gold_bc, 1e-6), 0.0, 1.0)
    accuracy_b, chance_b = right_bc.sum(axis=1), (said_bc * gold_bc).sum(axis=1)
    kappa_b = (accuracy_b - chance_b) / np.maximum(1 - chance_b, 1e-12)
    figures = {"accuracy": accuracy_b, "macro_f1": f1_bc.mean(axis=1), "kappa": kappa_b}
    return figures, f1_bc


def student_t(freedom: float) -> float:
    """The 97.5 % quantile of Student's t, by its expansion about the normal's (Fisher and Cornish 1960)."""
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + first / freedom + second / freedom**2


def _power(
    said_m: np.ndarray,
    model_mc: np.ndarray,
    gold_m: np.ndarray,
    weight_m: np.ndarray,
    said_u: np.ndarray,
    model_uc: np.ndarray,
) -> float:
    """λ of the smallest variance of the accuracy, in [0, 1]."""
    right_m = (said_m == gold_m).astype(np.float64)
    sure_m, sure_u = (
        model[np.arange(len(said)), said]
        for said, model in ((said_m, model_mc), (said_u, model_uc))
    )
    square_m = np.square(weight_m)  # the variance of a weighted mean is of the squared weights
    centred_m = sure_m - np.average(sure_m, weights=square_m)
    covariance = np.average(centred_m * right_m, weights=square_m)
    variance = np.average(np.square(centred_m), weights=square_m) + sure_u.var() * len(
        said_m
    ) / len(said_u)
    return float(np.clip(covariance / max(variance, 1e-12), 0.0, 1.0))


def _joint(said_n: np.ndarray, values_nc: np.ndarray, weights_bn: np.ndarray) -> np.ndarray:
    """Weighted sums of the values by the label said: shape (B, C, C)."""
    classes = values_nc.shape[1]
    found_bcc = np.zeros((len(weights_bn), classes, classes))
    for label in np.unique(said_n):
        of_n = said_n == label
        found_bcc[:, label] = weights_bn[:, of_n] @ values_nc[of_n]
    return found_bcc


def _missing_variance(share_b: np.ndarray, right_m: np.ndarray, weight_m: np.ndarray) -> float:
    """What the bootstrap's variance of a share of right rows lacks, where fewer than FEW rows are right, or wrong."""
    if FEW <= right_m.sum() <= len(right_m) - FEW:
        return 0.0
    effective = weight_m.sum() ** 2 / max(np.square(weight_m).sum(), 1e-12)
    share = (share_b[0] * effective + PRIOR_ROWS / 2) / (effective + PRIOR_ROWS)
    variance = share * (1 - share) / (effective + PRIOR_ROWS)
    return float(max(variance - share_b[1:].var(ddof=1), 0.0))


def _interval(value_b: np.ndarray, freedom: float, missing: float, low: float = 0.0) -> Estimate:
    """The estimate, its first entry, with the interval that the variance of the others, and what it lacks, give it."""
    value, error = float(value_b[0]), float(np.sqrt(value_b[1:].var(ddof=1) + missing))
    half = float(student_t(freedom) * error)
    return Estimate(value, max(value - half, low), min(value + half, 1.0), error)
